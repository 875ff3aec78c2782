"""Raft under faults: links lossy, cut in one direction or both, nodes that crash and lose what they had not synced.

After every event: one leader a term, logs that match, nothing decided twice, what is decided on the disks of a majority
and in the log of every later leader, nothing going back, equal states. At the end everything is mended, and the group
has to serve and to hold every acknowledged write in an order that fits real time.
"""

from __future__ import annotations

import pytest

from nova.sim.group import Group
from nova.sim.subjects import SUBJECTS

RAFT = SUBJECTS["raft"]
BATCH = 50


@pytest.mark.parametrize("first", range(0, 2_000, BATCH))
def test_every_promise_holds_under_faults(first):
    for seed in range(first, first + BATCH):
        length = 1 + (seed % 4 == 0)
        assert Group(RAFT, seed, nodes=3 + 2 * (seed % 4 == 3), seconds=length, faults=5 * length).run() == []


def test_one_seed_is_one_history():
    traces = []
    for _ in range(2):
        group = Group(RAFT, 11)
        assert group.run() == []
        traces.append((group.world.trace, group.world.events, group.acknowledged))
    assert traces[0] == traces[1]


def test_clients_get_on_also_while_there_are_faults():
    group = Group(RAFT, 5, faults=0)
    assert group.run() == []
    assert group.acknowledged > 100
    assert group.reads
    assert not group.refused
