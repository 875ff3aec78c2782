"""EPaxos under faults: links lossy, cut in one direction or both, nodes that crash and lose what they had not synced.

After every event: one value for each instance, one order of what interferes, what is reported on the disks of a
majority, nothing going back, equal states of equal executed sets. At the end everything is mended, and the group has to
serve and to hold every acknowledged write in an order that fits real time.
"""

from __future__ import annotations

import pytest

from nova.sim.group import Group
from nova.sim.subjects import SUBJECTS

EPAXOS = SUBJECTS["epaxos"]
BATCH = 50


@pytest.mark.parametrize("first", range(0, 2_000, BATCH))
def test_every_promise_holds_under_faults(first):
    for seed in range(first, first + BATCH):
        length = 1 + (seed % 4 == 0)
        group = Group(EPAXOS, seed, nodes=3 + 2 * (seed % 4 == 3), seconds=length, faults=3 * length, clients=4)
        assert group.run() == []
        assert not group.refused


def test_one_seed_is_one_history():
    traces = []
    for _ in range(2):
        group = Group(EPAXOS, 11)
        assert group.run() == []
        traces.append((group.world.trace, group.world.events, group.acknowledged))
    assert traces[0] == traces[1]


def test_clients_get_on_also_while_there_are_faults():
    group = Group(EPAXOS, 5, faults=0)
    assert group.run() == []
    assert group.acknowledged > 100
    assert group.reads
    assert not group.refused
