"""The text CRDT on real keystrokes, beside four others. Run: pytest bench/bench_sequence.py

The traces come from NOVA_TEST_DATA (default ../shared/data).
"""

from __future__ import annotations

import gzip
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from texts import NODE, TEXTS, NovaBuffer, Patches, in_node, lacks

from nova.cli.benchmarks import figure
from nova.crdt import RGA

DATA = Path(os.environ.get("NOVA_TEST_DATA", "../shared/data"))
PREFIX, DIVERGED = 100_000, 8_692
ROUNDS = 10  # of peers in Node; the first ones pay for its compiler


@cache
def trace() -> tuple[Patches, str]:
    path = DATA / "editing-traces" / "automerge-paper.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here; NOVA_TEST_DATA names the folder of the public data")
    with gzip.open(path, "rt") as file:
        found = json.load(file)
    return [tuple(patch) for txn in found["txns"] for patch in txn["patches"]], found["endContent"]


@cache
def parted() -> dict[str, Patches]:
    """What both sides share, and what each then writes: the trace goes on, and text is put all over it."""
    patches, _ = trace()
    base = patches[:PREFIX]
    length = sum(len(inserted) - n for _, n, inserted in base)
    left = patches[PREFIX : PREFIX + DIVERGED]
    right = [(pos % length, 0, text or "-") for pos, _, text in patches[PREFIX + DIVERGED :][:DIVERGED]]
    return {"base": base, "left": left, "right": right}


def measured_in_node(benchmark: Any, peer: str, task: str, given: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Node times itself; the harness times nothing, and the figures go into its results as `timing`."""
    found = in_node(peer, task, given, rounds=ROUNDS if benchmark.enabled else 1, scratch=scratch)
    operations = benchmark.extra_info.get("operations", 1)
    seconds = [taken / operations for taken in found["seconds"]]
    median, spread = figure(seconds)
    benchmark.extra_info["timing"] = {"best": min(seconds), "median": median, "spread": spread, "clock": "process_time"}
    benchmark.pedantic(lambda: None, rounds=1)
    return found


def need(peer: str) -> None:
    if reason := lacks(peer):
        pytest.skip(reason)


@pytest.mark.benchmark(group="crdt.text, the 259,778 edits of a paper")
@pytest.mark.parametrize("peer", [*TEXTS, *NODE])
def test_a_paper_is_typed(benchmark: Any, best_of: Any, tmp_path: Path, peer: str) -> None:
    need(peer)
    patches, text = trace()
    benchmark.extra_info["operations"] = len(patches)
    if peer in NODE:
        assert measured_in_node(benchmark, peer, "typed", {"patches": patches}, tmp_path)["text"] == text
        return

    given = NovaBuffer.of(patches) if peer == "nova-buffer" else patches

    def typed() -> str:
        paper = TEXTS[peer]("a")
        paper.edit(given)
        return str(paper.text())

    assert best_of(typed) == text


@pytest.mark.benchmark(group="crdt.text, the whole history of a paper from bytes to text")
@pytest.mark.parametrize("peer", [name for name in TEXTS if not name.startswith("nova-")] + [*NODE])
def test_a_paper_is_loaded(benchmark: Any, tmp_path: Path, peer: str) -> None:
    """`bytes` in the results: of the history, as each writes it to be kept."""
    need(peer)
    patches, text = trace()
    if peer in NODE:
        found = measured_in_node(benchmark, peer, "loaded", {"patches": patches}, tmp_path)
        benchmark.extra_info["bytes"] = found["bytes"]
        assert found["text"] == text
        return
    kind = TEXTS[peer]
    paper = kind("a")
    paper.edit(patches)
    data = paper.to_bytes()
    benchmark.extra_info["bytes"] = len(data)
    assert benchmark(lambda: kind.from_bytes(data).text()) == text


@pytest.mark.benchmark(group="crdt.text, a paper from bytes, and what the first edit of it waits for")
def test_the_history_of_a_paper_is_read(benchmark: Any) -> None:
    """Reading a text leaves its history for later; this is later."""
    patches, _ = trace()
    paper = RGA(actor="a")
    paper.apply_patches(patches)
    data, digest = paper.to_bytes(), paper.digest()
    assert benchmark(lambda: RGA.from_bytes(data).digest()) == digest


@cache
def sides(peer: str) -> list[tuple[bytes, bytes]]:
    """(state, what it wrote since they parted) of two documents that parted after the same edits."""
    given, kind = parted(), TEXTS[peer]
    base = kind("base")
    base.edit(given["base"])
    data, out = base.to_bytes(), []
    for actor in ("left", "right"):
        side = kind.from_bytes(data, actor)
        mark = side.mark()
        side.edit(given[actor])
        out.append((side.to_bytes(), side.since(mark)))
    return out


@pytest.mark.benchmark(group="crdt.text, two documents of 8,692 edits each merged, one way")
def test_diverged_documents_merge(benchmark: Any, best_of: Any) -> None:
    left, right = (TEXTS["nova"].from_bytes(state).rga for state, _ in sides("nova"))
    best_of(lambda a, b: a.merge(b), lambda: (left.fork(None), right))


@pytest.mark.benchmark(group="crdt.text, two documents of 8,692 edits each merged, both ways")
@pytest.mark.parametrize("peer", ["nova", "nova-deltas", "loro", "pycrdt", *NODE])
def test_diverged_documents_meet(benchmark: Any, best_of: Any, tmp_path: Path, peer: str) -> None:
    """Ours merge the other's state and find what is new in it. Peers, and ours as `deltas`, apply what the other wrote
    since they parted, encoded beforehand. Each round has documents that were read from bytes; ours have read their
    history, too, which test_the_history_of_a_paper_is_read times."""
    need(peer)
    if peer in NODE:
        text = measured_in_node(benchmark, peer, "met", parted(), tmp_path)["text"]
    else:
        who = peer.partition("-")[0]
        (left, to_right), (right, to_left) = sides(who)

        def read(data: bytes) -> Any:
            document = TEXTS[who].from_bytes(data)
            if who == "nova":
                document.rga.digest()
            return document

        there = read(right), read(left)

        def merged(a: Any, b: Any) -> tuple[Any, Any]:
            a.rga.merge(there[0].rga)
            b.rga.merge(there[1].rga)
            return a, b

        def told(a: Any, b: Any) -> tuple[Any, Any]:
            a.apply(to_left)
            b.apply(to_right)
            return a, b

        a, b = best_of(merged if peer == "nova" else told, lambda: (read(left), read(right)))
        text = a.text()
        assert text == b.text()
    assert len(text) == sum(len(inserted) - n for patches in parted().values() for _, n, inserted in patches)
