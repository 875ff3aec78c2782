"""How many events the simulator runs in a second of processor time: with a trivial core, and with Raft, checked.

Run with `pytest bench/bench_sim.py`. `bench_sync.py` has the whole store in it.
"""

from __future__ import annotations

import time

import pytest

from nova.sim.group import Group
from nova.sim.subjects import SUBJECTS
from nova.sim.world import World
from nova.types import Outputs

EVENTS_MIN = 5_000


class Echo:
    """Sends whatever it gets back."""

    def __init__(self, name):
        self.peer = "n1" if name == "n0" else "n0"

    def step(self, sender, message):
        return Outputs(send=[(sender, message + 1)])

    def tick(self):
        return Outputs(send=[(self.peer, 0)])


class Keeper(Echo):
    """Persists it first."""

    def step(self, sender, message):
        return Outputs([b"%d" % message], [(sender, message + 1)])


@pytest.mark.parametrize("what", ["sent on", "kept, then sent on"])
@pytest.mark.benchmark(group="simulator.one event of 2 nodes, trivial core", timer=time.process_time)
def test_trivial_core(benchmark, what):
    core = Echo if what == "sent on" else Keeper

    def run():
        world = World(1, 2, lambda name, *_: core(name), tick_ns=1_000_000)
        world.run(60 if core is Echo else 120)
        return world.events

    benchmark.extra_info["operations"] = run()
    assert benchmark(run) > EVENTS_MIN


@pytest.mark.parametrize("members", ["fixed", "changing"])
@pytest.mark.benchmark(group="simulator.one event of a Raft group under faults, checked", timer=time.process_time)
def test_raft_group(benchmark, members):
    def run():
        groups = [Group(SUBJECTS["raft"], seed, spares=2 * (members == "changing")) for seed in range(4)]
        assert [group.run() for group in groups] == [[]] * 4
        return sum(group.world.events for group in groups)

    benchmark.extra_info["operations"] = run()
    assert benchmark.pedantic(run, rounds=3) > EVENTS_MIN
