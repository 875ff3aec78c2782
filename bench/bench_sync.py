"""How fast replicas meet again after a cut, in one process, and how fast the simulator runs."""

from __future__ import annotations

import pytest

from nova.cli.simulate import History
from nova.store import ReplicatedStore
from nova.store.core import StoreConfig


def cut(common, differing, history_bytes=1 << 30):
    """Two replicas with `common` equal keys, each of which then wrote half of `differing` others."""
    config = StoreConfig(history_bytes=history_bytes)
    east = ReplicatedStore(node="east", config=config)
    west = ReplicatedStore(node="west", config=config)
    value = {"cpu": 4, "name": "x" * 80}
    for start in range(0, common, 1_000):
        east.put_many([(f"key/{n}", value) for n in range(start, min(start + 1_000, common))])
    east.sync_with(west)
    for store in (east, west):
        mine = [(f"{store.replica.node}/{n}", value) for n in range(differing // 2)]
        for start in range(0, len(mine), 100):
            store.put_many(mine[start : start + 100])
    return east, west


def by_deltas(east, west):
    """Batches that the other lacks, out of the history."""
    east.sync_with(west)


def by_state(east, west):
    """Nothing is in the history any more: the key ranges whose digests differ are exchanged whole."""
    for one, other in ((east, west), (west, east)):
        one.apply_delta(other.replica.state_for(one.replica.summary()))


WAYS = {"by deltas": by_deltas, "by state of the ranges that differ": by_state}


@pytest.mark.parametrize("differing", [100, 10_000])
@pytest.mark.parametrize("how", list(WAYS))
@pytest.mark.parametrize("common", [0, 100_000])
def test_meet_again_after_a_cut(benchmark, common, differing, how):
    benchmark.group = f"sync.after a cut, {common:,} keys in common, {differing:,} differ: {how}"
    benchmark.extra_info["operations"] = differing
    pairs = []

    def setup():
        pairs.append(cut(common, differing, history_bytes=1 if "state" in how else 1 << 30))
        return pairs[-1], {}

    benchmark.pedantic(WAYS[how], setup=setup, rounds=3)
    east, west = pairs[-1]
    assert east.digest == west.digest
    assert len(east) == common + differing


@pytest.mark.benchmark(group="simulator.one event of 3 nodes under faults, checked")
def test_simulated_events(benchmark):
    def histories():
        events = 0
        for seed in range(5):
            history = History(seed, 3, 12)
            assert not history.run()
            events += history.world.events
        return events

    benchmark.extra_info["operations"] = benchmark.pedantic(histories, rounds=3)
