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
from nova.sim.invariants import ChainInvariants
from nova.sim.network import Link
from nova.sim.subjects import SUBJECTS

PAXOS = SUBJECTS["paxos"]
FLEXIBLE = msgspec.structs.replace(PAXOS, options={**PAXOS.options, "phase1": 4, "phase2": 2})
CHAINED = msgspec.structs.replace(
    PAXOS, invariants=ChainInvariants, successors={"paxos": (PAXOS.make, {"trailing": 3})}
)
BATCH = 50
FAR = Link(delay_ns_min=4_000_000, jitter_ns_mean=12_000_000, loss_ratio=0.2, duplicate_ratio=0.02, reorder_ratio=0.2)
STRIKES_NS = 3_000_000_000


def group_of(seed, **options):
    """Three members, five, or five of whom two decide and four elect."""
    if seed % 4 < 3:
        return Group(PAXOS, seed, nodes=3, **options)
    return Group(PAXOS if seed % 8 == 3 else FLEXIBLE, seed, nodes=5, **options)


@pytest.mark.parametrize("first", range(0, 2_000, BATCH))
def test_every_promise_holds_under_faults(first):
    for seed in range(first, first + BATCH):
        length = 1 + (seed % 5 == 0)
        assert group_of(seed, seconds=length, faults=5 * length).run() == []


def strikes(group, period_ns=250_000_000):
    """Leaders fall in the middle of their work: cut off from some members, and often crashed a little later."""
    world, random = group.world, group.world.stream("strikes")

    def strike():
        if world.now >= STRIKES_NS:
            return
        world.at(period_ns // 2 + random.randrange(period_ns), strike)
        world.heal()
        for name in world.names:
            world.restart(name)
        leaders = [member.replica.node for member in world if member.core.role == "leader"]
        if not leaders:
            return
        leader = leaders[random.randrange(len(leaders))]
        others = [name for name in world.names if name != leader]
        random.shuffle(others)
        for other in others[: random.randrange(1, len(others) + 1)]:
            world.cut(leader, other)
        if random.random() < 0.6:
            world.at(1 + random.randrange(30_000_000), lambda: world.now < STRIKES_NS and world.crash(leader))

    world.at(period_ns, strike)
    return group


@pytest.mark.parametrize("first", range(0, 100, BATCH))
def test_leaders_fall_with_slots_open(first):
    ballots = 0
    for seed in range(first, first + BATCH):
        group = strikes(Group(PAXOS, seed, nodes=3 if seed % 3 else 5, faults=0, link=FAR, clients=12, seconds=3))
        assert group.run() == []
        ballots = max(ballots, *(member.core.ballots.round(member.core.promised) for member in group.members()))
    assert ballots >= 10


@pytest.mark.parametrize("first", range(0, 100, BATCH))
def test_epochs_end_while_leaders_fall_with_slots_open(first):
    epochs = 0
    for seed in range(first, first + BATCH):
        group = strikes(Group(CHAINED, seed, nodes=3, faults=0, link=FAR, clients=12, seconds=3))
        assert group.run() == []
        epochs += max(group.epochs)
    assert epochs > BATCH


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
