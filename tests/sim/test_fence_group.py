"""Scenario 68 with whole members: EPaxos is left for Raft while instances are in flight, and links and members fail.

A seal is a fence among the instances: each is executed before it, by all in one order of what interferes, or is void
and its command is asked of the successor under the same number. What clients saw is checked by `Group` as ever.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any, NamedTuple

import pytest

from nova.consensus.core import Committed, Kind, unpack
from nova.consensus.epaxos import EPaxos
from nova.consensus.epaxos.instances import Status, keys_of
from nova.consensus.epaxos.messages import MESSAGES as EPAXOS_MESSAGES
from nova.consensus.raft import Raft
from nova.consensus.raft.messages import MESSAGES as RAFT_MESSAGES
from nova.sim.group import Group, Subject
from nova.sim.invariants import ChainInvariants

FENCED = Subject(
    "epaxos",
    EPaxos,
    (*EPAXOS_MESSAGES, *RAFT_MESSAGES),
    ChainInvariants,
    options={"trailing": 10_000},  # so that each core remembers all that it executed, in its order
    successors={"raft": (Raft, {})},
)
MS = 1_000_000
IN_FLIGHT_MIN = 3


class Fence(Group):
    """A group of EPaxos members that one operator, once, hands over to Raft, when enough is in flight."""

    def __init__(self, seed, **options):
        self.in_flight = {}
        """Instance -> names of its commands, of what was known and not committed when the seal was asked for."""
        self.cores = {}
        """Member (another one for each life) -> its EPaxos core, if that life began before the fence."""
        self.told = set()
        """Instances that took effect at somebody."""
        self.later = set()
        """Names of the commands that the successor decided."""
        super().__init__(
            FENCED, seed, nodes=3, clients=10, keys=2, seconds=2, invariants=[lambda _: self.watch()], **options
        )

    def watch(self):
        touched = self.world.touched
        for member in self.world if touched is None else self.world.running(touched):
            if member not in self.cores and isinstance(first := member.replica.chain._links[0].core, EPaxos):
                self.cores[member] = first

    def _operator_tick(self):
        self.world.at(2 * MS, self._operator_tick)
        if self.in_flight or self.world.now < 500 * MS or not self.world.up:
            return
        found = {
            instance.id: names(instance.init.data)
            for member in self.world
            for instance in member.core.instances.values()
            if instance.status < Status.COMMITTED and instance.init is not None and instance.init.kind == Kind.COMMANDS
        }
        if len(found) >= IN_FLIGHT_MIN:
            up = self.world.up
            node = up[self._operator.randrange(len(up))]
            self.in_flight = found
            self.world.submit(node, self.world[node].replica.switch("raft", self.world.names))

    def _event(self, node, event):
        super()._event(node, event)
        if isinstance(event, Committed):
            for entry in event.entries:
                if event.epoch:
                    self.later |= set(names(entry.data)) if entry.kind == Kind.COMMANDS else set()
                else:
                    number, owner = divmod(entry.position - self.epoch.start, len(self.epoch.members))
                    self.told.add((owner, number + 1))


def names(data):
    return [(command.session, command.sequence, command.data) for command in unpack(data)]


class Life(NamedTuple):
    """What the core of one life executed: key -> instances that took effect before the fence, and those behind it.

    whole  it came to the fence, and executed all before it itself
    """

    orders: dict[bytes, list[Any]]
    behind: set[Any]
    whole: bool


def life_of(core, told):
    orders, behind, fenced = {b"k0": [], b"k1": []}, set(), False
    for instance in core._recent:
        value = instance.value
        if fenced:
            behind.add(instance.id)
        elif value.kind == Kind.SEAL:
            fenced = True
        elif value.kind == Kind.COMMANDS and instance.id in told:
            keys = keys_of(value.kind, value.data)
            for key in orders if keys is None else keys:
                orders[key].append(instance.id)
    return Life(orders, behind, fenced and len(core._recent) == len(core.executed))


def counts_of(group):
    """Hold a run against the scenario; of those in flight: how many executed, how many not, how many asked again; and
    how many members came to the fence by themselves."""
    fences = {each.id for core in group.cores.values() for each in core._recent if each.value.kind == Kind.SEAL}
    assert len(fences & group.told) == 1
    lives = {
        (member.replica.node, number): life_of(core, group.told)
        for number, (member, core) in enumerate(group.cores.items())
    }
    for (name, one), (other, two) in itertools.combinations(lives.items(), 2):
        for key in one.orders:
            common = {*one.orders[key]} & {*two.orders[key]}
            mine, theirs = ([id for id in life.orders[key] if id in common] for life in (one, two))
            assert mine == theirs, f"{name} and {other} executed {key} in different orders"
    for name, life in lives.items():
        assert not life.behind & group.told, f"{name} executed {life.behind & group.told} behind the fence"
    whole = {name: {id for order in life.orders.values() for id in order} for name, life in lives.items() if life.whole}
    assert len(set(map(frozenset, whole.values()))) <= 1, f"{whole.keys()} executed different instances"
    done = group.in_flight.keys() & group.told
    void = group.in_flight.keys() - group.told
    again = sum({*group.in_flight[id]} <= group.later for id in void)
    return Counter(done=len(done), void=len(void), again=again, whole=len(whole))


@pytest.mark.parametrize("first", range(0, 20, 10))
@pytest.mark.parametrize("faults", [0, 8])
def test_68_every_instance_is_executed_before_the_fence_or_asked_of_the_successor(first, faults):
    total = Counter()
    for seed in range(first, first + 10):
        group = Fence(seed, faults=faults)
        assert group.run() == []
        assert max(group.epochs) == 1
        assert {member.replica.epoch.protocol for member in group.world} == {"raft"}
        counts = counts_of(group)
        if not faults:
            assert counts["void"] == counts["again"], "nobody gave up"
        total += counts
    assert total["done"] > 5
    assert total["void"] >= total["again"] > 0
    assert total["whole"] > 5
