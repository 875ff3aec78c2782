"""Multi-Paxos under faults: links lossy, cut in one direction or both, nodes that crash and lose what they had not
synced.

After every event: one leader a ballot, one value a ballot and slot, promises kept over crashes, nothing decided twice,
what is decided on the disks of a phase-2 quorum and known to every later leader, nothing going back, equal states. At
the end everything is mended, and the group has to serve and to hold every acknowledged write in an order that fits
real time.
"""

from __future__ import annotations

import contextlib

import msgspec
import pytest

from nova.consensus.core import Epoch, Kind, OverloadedError, SealedError
from nova.sim.faults import SECOND
from nova.sim.group import TICK_NS, Group
from nova.sim.network import Link
from nova.sim.subjects import SUBJECTS

PAXOS = SUBJECTS["paxos"]
FLEXIBLE = msgspec.structs.replace(PAXOS, options={**PAXOS.options, "phase1": 4, "phase2": 2})
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
        assert group_of(seed, seconds=2, faults=10).run() == []


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


class SealedGroup(Group):
    """A group whose leaders, at any time from the second second on, try to end the epoch while clients write."""

    def _clients_tick(self):
        super()._clients_tick()
        if self.world.now > SECOND and self._random.random() < 0.05:
            for member in self.world:
                if member.core.role == "leader" and member.core.sealed is None:
                    successor = Epoch(1, "paxos", self.epoch.members, options={"trailing": self._random.randrange(9)})
                    with contextlib.suppress(SealedError, OverloadedError):
                        self.world.submit(member.replica.node, member.replica._framed(member.core.seal(successor)))

    def _read(self, client, touched):
        try:
            super()._read(client, touched)
        except SealedError:
            client.reading = None

    def sealed(self):
        ends = {member.core.sealed for member in self.world}
        return len(self.world.up) == len(self.world.names) and len(ends) == 1 and None not in ends


@pytest.mark.parametrize("first", range(0, 100, BATCH))
def test_one_seal_ends_the_epoch_for_everybody(first):
    behind = 0
    for seed in range(first, first + BATCH):
        group = strikes(SealedGroup(PAXOS, seed, nodes=3, faults=0, link=FAR, clients=12, seconds=3))
        world = group.world
        world.run(STRIKES_NS // TICK_NS)
        for name in world.names:
            world.restart(name)
        world.heal()
        assert world.run(until=group.sealed, ticks_max=1_500), f"seed {seed}"
        (end,) = {member.core.sealed for member in world}
        assert max(group.decided) == end, f"seed {seed}"
        assert [position for position, (kind, _, _) in group.decided.items() if kind == Kind.SEAL] == [end]
        behind += any(member.core.slots.last > end for member in world)
        for member in world:
            with pytest.raises(SealedError):
                member.core.propose([(Kind.COMMANDS, b"")])
    assert behind  # some had accepted slots behind the seal, and told nobody


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
