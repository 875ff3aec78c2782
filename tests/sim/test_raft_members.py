"""Raft while operators change its members and hand leadership around, at random and in the middle of faults.

Two nodes run beside the members of the beginning. Learners are added and promoted, members removed and taken back,
several replaced at once; what was removed goes on running, and may not have heard of it.
"""

from __future__ import annotations

import pytest

from nova.consensus.core import Kind
from nova.sim.faults import SECOND, Change, Heal, Partition, Transfer
from nova.sim.group import Group
from nova.sim.subjects import SUBJECTS

RAFT = SUBJECTS["raft"]
MS = SECOND // 1_000
BATCH = 25


@pytest.mark.parametrize("first", range(10_000, 10_500, BATCH))
def test_every_promise_holds_while_members_change(first):
    operated = 0
    for seed in range(first, first + BATCH):
        group = Group(RAFT, seed, nodes=3 + seed % 2, spares=2, faults=20, operations=15)
        assert group.run() == []
        operated += group.operated
    assert operated > 2 * BATCH, "few of the changes were refused"


def members(group):
    return [(m.core.members.voters, m.core.members.learners, m.core.members.joint) for m in group.serving()]


def test_a_spare_learns_votes_and_leads_and_the_first_members_go():
    group = Group(
        RAFT,
        1,
        spares=2,
        faults=[
            Change(500 * MS, ["n0", "n1", "n2"], ["s0", "s1"]),
            Change(1_000 * MS, ["n0", "n1", "s0", "s1"]),
            Transfer(1_500 * MS, "s0"),
            Change(2_000 * MS, ["s0", "s1"]),
        ],
    )
    assert group.run() == []
    assert group.operated == 4
    assert sum(kind == Kind.MEMBERS for kind, *_ in group.decided.values()) == 1 + 2 + 2, "two of them were joint"
    assert members(group) == [(("s0", "s1"), (), False)] * 2
    assert group.world["s0"].core.role == "leader"
    assert {m.core.term for m in group.members() if m.replica.node in ("s0", "s1")} == {group._newest_leader().term}


@pytest.mark.parametrize("seed", range(20))
def test_19_one_who_was_removed_while_it_was_away_disturbs_nobody(seed):
    group = Group(
        RAFT,
        seed,
        nodes=4,
        faults=[
            Partition(500 * MS, [["n0", "n1", "n2"], ["n3"]]),
            Change(1_000 * MS, ["n0", "n1", "n2"]),
            Change(1_200 * MS, ["n0", "n1", "n2"]),
            Heal(1_500 * MS),
        ],
    )
    group.world.run(120)
    before = group._newest_leader()
    assert group.run() == []
    assert group.world["n3"].core.members.votes("n3"), "it never heard of it"
    after = group._newest_leader()
    if "n3" not in (before.node, after.node) and before.members == ("n0", "n1", "n2"):
        assert (after.node, after.term) == (before.node, before.term)
