"""The text CRDT on real keystrokes, beside loro where it is installed. Run: pytest bench/bench_sequence.py

The traces come from NOVA_TEST_DATA (default ../shared/data).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nova.crdt import RGA

DATA = Path(os.environ.get("NOVA_TEST_DATA", "../shared/data"))
PREFIX, DIVERGED = 100_000, 8_692

Patches = list[tuple[int, int, str]]


@cache
def trace() -> tuple[Patches, str]:
    path = DATA / "editing-traces" / "automerge-paper.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here; NOVA_TEST_DATA names the folder of the public data")
    with gzip.open(path, "rt") as file:
        found = json.load(file)
    return [tuple(patch) for txn in found["txns"] for patch in txn["patches"]], found["endContent"]


def nova_edits(patches: Patches) -> str:
    text = RGA(actor="a")
    splice = text.splice
    for pos, n, inserted in patches:
        splice(pos, n, inserted)
    return text.text


def nova_batch(patches: Patches) -> str:
    text = RGA(actor="a")
    text.apply_patches(patches)
    return text.text


def loro_edits(patches: Patches) -> str:
    loro = pytest.importorskip("loro", reason="peer loro is not installed")
    text = loro.LoroDoc().get_text("t")
    for pos, n, inserted in patches:
        if n:
            text.delete(pos, n)
        if inserted:
            text.insert(pos, inserted)
    return str(text.to_string())


PEERS: dict[str, Callable[[Patches], str]] = {
    "nova": nova_edits,
    "nova-batch": nova_batch,
    "loro": loro_edits,
}


@pytest.mark.benchmark(group="crdt.text, the 259,778 edits of a paper")
@pytest.mark.parametrize("peer", list(PEERS))
def test_a_paper_is_typed(benchmark: Any, peer: str) -> None:
    patches, text = trace()
    benchmark.extra_info["operations"] = len(patches)
    assert benchmark.pedantic(PEERS[peer], (patches,), rounds=3) == text


@pytest.mark.benchmark(group="crdt.text, the whole history of a paper from bytes to text")
def test_a_paper_is_loaded(benchmark: Any) -> None:
    patches, text = trace()
    paper = RGA(actor="a")
    paper.apply_patches(patches)
    data = paper.to_bytes()
    benchmark.extra_info["bytes"] = len(data)
    assert benchmark(lambda: RGA.from_bytes(data).text) == text


@pytest.mark.benchmark(group="crdt.text, two documents of 8,692 edits each merged, one way")
def test_diverged_documents_merge(benchmark: Any) -> None:
    patches, _ = trace()
    base = RGA(actor="base")
    base.apply_patches(patches[:PREFIX])
    length = len(base)
    left, right = base.fork("left"), base.fork("right")
    left.apply_patches(patches[PREFIX : PREFIX + DIVERGED])
    right.apply_patches([(pos % length, 0, text or "-") for pos, _, text in patches[PREFIX + DIVERGED :][:DIVERGED]])

    def setup() -> Any:
        return (left.fork(None), right), {}

    benchmark.pedantic(lambda a, b: a.merge(b), setup=setup, rounds=10)
