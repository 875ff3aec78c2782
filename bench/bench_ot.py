"""Operational transformation: texts by the number of their components, trees by the number of their changes."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from nova.conflict.ot import json0, json1, text

LOOPS = 100


def text_op(random: Random, components: int) -> list[Any]:
    op: list[Any] = []
    for _ in range(components // 2):
        op.append(random.randint(1, 9))
        op.append(random.choice(["abc", {"d": random.randint(1, 5)}]))
    return op


def text_pair(components: int) -> tuple[str, list[Any], list[Any]]:
    random = Random(1)
    return "x" * (components * 10), text_op(random, components), text_op(random, components)


@pytest.mark.parametrize("components", [4, 64, 1024])
@pytest.mark.parametrize("what", ["transform", "compose"])
@pytest.mark.benchmark(group="ot.transform and compose text")
def test_text_operations(benchmark, what, components):
    benchmark.extra_info["operations"] = LOOPS
    doc, a, b = text_pair(components)
    both = text.apply(text.apply(doc, a), b if what == "compose" else text.transform(b, a, "right"))

    def operations():
        for _ in range(LOOPS):
            done = text.compose(a, b) if what == "compose" else text.transform(a, b, "left")
        return done

    done = benchmark(operations)
    assert text.apply(doc if what == "compose" else text.apply(doc, b), done) == both


@pytest.mark.parametrize("changes", [1, 8, 64])
@pytest.mark.benchmark(group="ot.transform json0")
def test_transform_json0(benchmark, changes):
    doc = [list(range(10)) for _ in range(changes)]
    a = [{"p": [i, 1], "lm": 8} for i in range(changes)]
    b = [{"p": [i, 5], "ld": 5} for i in range(changes)]
    left = benchmark(json0.transform, a, b, "left")
    assert json0.apply(json0.apply(doc, b), left) == json0.apply(json0.apply(doc, a), json0.transform(b, a, "right"))


@pytest.mark.parametrize("changes", [1, 8, 64])
@pytest.mark.benchmark(group="ot.transform json1")
def test_transform_json1(benchmark, changes):
    doc = {f"k{i}": list(range(10)) for i in range(changes)}
    a = json1.normalize([[f"k{i}", [1, {"p": i}], [8, {"d": i}]] for i in range(changes)] + [["z", {"i": 1}]])
    b = json1.normalize([[f"k{i}", 5, {"r": True}] for i in range(changes)] + [["y", {"i": 1}]])
    left = benchmark(json1.transform, a, b, "left")
    assert json1.apply(json1.apply(doc, b), left) == json1.apply(json1.apply(doc, a), json1.transform(b, a, "right"))
