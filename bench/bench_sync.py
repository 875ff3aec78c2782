"""How fast replicas meet again after a cut, in one process, and how fast the simulator runs."""

from __future__ import annotations

import pytest

from nova.cli.histories import History
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


def fetch(asker, other, cells):
    """Ask until it is answered, as sync.antientropy does; `cells` None: by ranges. Returns the bytes of both ways."""
    question = asker.replica.summary(cells)
    answer = other.replica.state_for(question)
    if isinstance(answer, int):
        return len(question) + fetch(asker, other, answer or None)
    asker.apply_delta(answer)
    return len(question) + len(answer)


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


@pytest.mark.parametrize("differing", [10, 1_000])
@pytest.mark.parametrize("peer", ["nova", "whole key ranges"])
def test_few_differ_among_many(benchmark, differing, peer):
    """Both sides fetch what they lack of 100,000 keys, no history left. `bytes` in the results: what travels, per key.

    Both have compared before, so the summaries are kept up; what was written since then is put in while timed."""
    benchmark.group = f"sync.no history, 100,000 keys in common, {differing:,} differ"
    benchmark.extra_info["operations"] = differing
    cells = {"nova": 0, "whole key ranges": None}[peer]
    east, west = cut(100_000, 0, history_bytes=1)
    value, rounds, sizes = {"cpu": 5, "name": "y" * 80}, iter(range(1_000)), []
    for store in (east, west):
        store.replica.summary(0)

    def setup():
        start = next(rounds) * differing
        for store, half in ((east, 0), (west, 1)):
            keys = [f"key/{(start + 2 * n + half) * 37 % 100_000}" for n in range(differing // 2)]
            store.put_many([(key, value) for key in keys])

    def meet():
        sizes.append(fetch(east, west, cells) + fetch(west, east, cells))

    benchmark.pedantic(meet, setup=setup, rounds=7)
    benchmark.extra_info["bytes"] = sizes[-1] // differing
    assert east.digest == west.digest
    assert len(east) == 100_000


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
