"""PBFT under faults of both kinds: networks and disks as for Raft, and up to f members that lie.

After every event, of those that do not lie: no two prepare different entries for one view and position, nothing is
decided twice, what is decided is on the disks of a quorum, nothing goes back, equal states, bounded tables. At the end
everything but the liars is mended, and the group has to serve and to hold every acknowledged write in an order that
fits real time.
"""

from __future__ import annotations

import random

import pytest

from nova.sim.byzantine import BEHAVIOURS, Liar, some_liars
from nova.sim.group import Group
from nova.sim.subjects import SUBJECTS

PBFT = SUBJECTS["pbft"]
BATCH = 50


def group_of(seed):
    """Four members, sometimes 5, 6 or 7; in two of three histories as many lie as may."""
    nodes = 5 + seed // 8 % 3 if seed % 8 == 7 else 4
    names = [f"n{number}" for number in range(nodes)]
    liars = some_liars(random.Random(f"{seed} liars"), names, (nodes - 1) // 3) if seed % 3 else {}
    return Group(PBFT, seed, nodes=nodes, faults=5, clients=3, seconds=1, liars=liars)


@pytest.mark.parametrize("first", range(0, 2_000, BATCH))
def test_every_promise_holds_under_faults_and_lies(first):
    for seed in range(first, first + BATCH):
        group = group_of(seed)
        assert group.run() == []
        assert not group.refused
        sound = [member.core for member in group.members()]
        # Whatever the network does and liars say, nothing is held against one who does not lie.
        assert not [(core.node, peer.node) for core in sound for peer in sound if core.evidence.of(peer.node)], seed


@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_a_group_outlives_a_first_primary_that_lies(name):
    group = Group(
        PBFT, 1, faults=0, seconds=2, liars={"n0": lambda core, chance: Liar(core, chance, [BEHAVIOURS[name]])}
    )
    assert group.run() == []
    assert group.acknowledged > 15


def test_one_seed_is_one_history():
    traces = []
    for _ in range(2):
        group = group_of(13)
        assert group.liars
        assert group.run() == []
        traces.append((group.world.trace, group.world.events, group.acknowledged))
    assert traces[0] == traces[1]


def test_clients_get_on_also_while_there_are_faults():
    group = Group(PBFT, 5, faults=0, liars={})
    assert group.run() == []
    assert group.acknowledged > 100
    assert group.reads
    assert not group.refused
    assert all(member.core.low.position > 0 for member in group.members())
    assert all(not member.core.evidence.of(peer) for member in group.members() for peer in group.world.names)
