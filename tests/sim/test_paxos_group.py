"""Multi-Paxos under faults: links lossy, cut in one direction or both, nodes that crash and lose what they had not
synced.

After every event: one leader a ballot, one value a ballot and slot, promises kept over crashes, nothing decided twice,
what is decided on the disks of a phase-2 quorum and known to every later leader, nothing going back, equal states. At
the end everything is mended, and the group has to serve and to hold every acknowledged write in an order that fits
real time.
"""

from __future__ import annotations

import msgspec
import pytest

from nova.sim.group import Group
from nova.sim.subjects import SUBJECTS

PAXOS = SUBJECTS["paxos"]
FLEXIBLE = msgspec.structs.replace(PAXOS, options={**PAXOS.options, "phase1": 4, "phase2": 2})
BATCH = 50


def group_of(seed, **options):
    """Three members, five, or five of whom two decide and four elect."""
    if seed % 4 < 3:
        return Group(PAXOS, seed, nodes=3, **options)
    return Group(PAXOS if seed % 8 == 3 else FLEXIBLE, seed, nodes=5, **options)


@pytest.mark.parametrize("first", range(0, 2_000, BATCH))
def test_every_promise_holds_under_faults(first):
    for seed in range(first, first + BATCH):
        assert group_of(seed).run() == []


def test_one_seed_is_one_history():
    traces = []
    for _ in range(2):
        group = Group(PAXOS, 11)
        assert group.run() == []
        traces.append((group.world.trace, group.world.events, group.acknowledged))
    assert traces[0] == traces[1]


def test_clients_get_on_also_while_there_are_faults():
    group = Group(PAXOS, 5, faults=0)
    assert group.run() == []
    assert group.acknowledged > 100
    assert group.reads
    assert not group.refused
