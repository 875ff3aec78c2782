"""Vector clocks, hybrid logical clocks and contexts, beside plain dicts. Run: pytest bench/bench_clock.py"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nova.cli.benchmarks import dict_before, dict_merge
from nova.clock import CausalContext, ClockBatch, HybridLogicalClock, Order, VectorClock

LOOP = 100  # under a microsecond the harness is half the number, so a loop of a hundred is timed


def pair(actors: int) -> tuple[dict[str, int], dict[str, int]]:
    a = {f"node-{i}": i + 1 for i in range(actors)}
    return a, {**a, "node-0": 2}


@pytest.mark.parametrize("actors", [16, 64, 256, 1024])
@pytest.mark.parametrize("peer", ["nova", "nova-unshared", "dict"])
def test_before_when_one_actor_differs(benchmark: Any, actors: int, peer: str) -> None:
    a, b = pair(actors)
    benchmark.group = f"clock.before, {actors} actors"
    benchmark.extra_info["operations"] = LOOP
    if peer == "dict":
        less, x, y = dict_before, a, b
    else:
        x = VectorClock(a)
        y = x.increment("node-0") if peer == "nova" else VectorClock(b)
        less = VectorClock.__lt__

    if peer == "dict":

        def loop() -> bool:
            for _ in range(LOOP):
                out = less(x, y)
            return out
    else:

        def loop() -> bool:
            for _ in range(LOOP):
                out = x < y
            return out

    assert benchmark(loop)


@pytest.mark.benchmark(group="clock.the call alone")
def test_before_of_empty_clocks(benchmark: Any) -> None:
    """What the loop and a call from Python take where there is nothing to do: no figure beside it can be less."""
    benchmark.extra_info["operations"] = LOOP
    x, y = VectorClock(), VectorClock()

    def loop() -> bool:
        for _ in range(LOOP):
            out = x < y
        return out

    assert benchmark(loop) is False


@pytest.mark.parametrize("actors", [16, 256])
@pytest.mark.parametrize("peer", ["nova", "dict"])
@pytest.mark.parametrize("news", ["none", "both"])
def test_merge(benchmark: Any, actors: int, peer: str, news: str) -> None:
    a, b = pair(actors)
    if news == "both":
        a = {**a, "node-1": 9}
    benchmark.group = f"clock.merge, {actors} actors, news on {news} side{'s' * (news == 'both')}"
    if peer == "dict":
        assert benchmark(dict_merge, b, a)["node-0"] == 2
    else:
        x, y = VectorClock(b), VectorClock(a)
        assert benchmark(x.merge, y).get("node-0") == 2


@pytest.mark.benchmark(group="clock.compare")
@pytest.mark.parametrize("actors", [16, 1024])
def test_compare_to_an_order(benchmark: Any, actors: int) -> None:
    a, b = (VectorClock(counts) for counts in pair(actors))
    assert benchmark(a.compare, b) is Order.BEFORE


@pytest.mark.benchmark(group="clock.hlc")
def test_tick(benchmark: Any) -> None:
    clock = HybridLogicalClock()
    assert benchmark(clock.tick, 1_700_000_000_000_000_000) > 0


@pytest.mark.benchmark(group="clock.context")
def test_context_membership(benchmark: Any) -> None:
    context = CausalContext({f"node-{i}": 1000 for i in range(16)})
    assert benchmark(context.__contains__, ("node-3", 1000))


BATCHES = {"in cache": 4096, "64 MiB": 1 << 20}


@pytest.mark.parametrize("size", BATCHES)
@pytest.mark.parametrize("peer", ["nova", "numpy"])
def test_one_clock_against_many(benchmark: Any, size: str, peer: str) -> None:
    """16 actors; 64 MiB is what the counts take in 32 bits."""
    rows, actors = BATCHES[size], 16
    table = np.random.default_rng(1).integers(0, 1 << 30, size=(rows, actors), dtype=np.uint64)
    query = np.full(actors, 1 << 29, np.uint64)
    benchmark.group = f"clock.batch, 16 actors, {size}"
    benchmark.extra_info["operations"] = rows
    if peer == "numpy":

        def compare() -> Any:
            return (table < query).any(axis=1) + 2 * (table > query).any(axis=1)

        assert len(benchmark(compare)) == rows
    else:
        names = [f"node-{i:02}" for i in range(actors)]
        batch = ClockBatch.from_array(names, table)
        clock, out = VectorClock(dict.fromkeys(names, 1 << 29)), np.empty(rows, np.int8)
        assert benchmark(batch.compare, clock, out=out) is out
