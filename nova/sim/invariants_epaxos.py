"""What must hold of an EPaxos group after every event. The numbers are those in docs/explanation/consensus.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nova.consensus.core import Committed
from nova.consensus.epaxos.instances import NOTHING, Id, Instance, Status, Value, keys_of
from nova.sim.changes import Watched
from nova.types import NodeId

if TYPE_CHECKING:
    from nova.sim.group import Group, GroupMember

INSTANCES_MAX = 5_000
EVERYTHING = b""


class EPaxosInvariants:
    """For `EPaxos`: agreement on attributes, one order of what interferes, durability, nothing going back."""

    def __init__(self) -> None:
        self._cores: dict[NodeId, Any] = {}
        self._states: dict[NodeId, dict[Id, tuple[int, int]]] = {}
        self._values: dict[Id, tuple[Value, NodeId]] = {}
        self._last: dict[NodeId, tuple[int, int]] = {}
        self._digests: dict[Any, tuple[int, NodeId]] = {}
        self._reported: set[Id] = set()
        self._orders: dict[bytes, list[Id]] = {EVERYTHING: []}
        self._places: dict[NodeId, tuple[Any, int, dict[bytes, int]]] = {}

    def __call__(self, group: Group) -> None:
        touched = group.world.touched
        for member in group.world if touched is None else group.world.running(touched):
            self._member(member)
        for _, event in group.news:
            for entry in event.entries if isinstance(event, Committed) else ():
                number, owner = divmod(entry.position - group.epoch.start, len(group.world.names))
                self._told(group, (owner, number + 1))

    def _member(self, member: GroupMember) -> None:
        core, node = member.core, member.replica.node
        if self._cores.get(node) is not core:
            self._cores[node], self._states[node] = core, {}
            core.instances = Watched(core.instances, Instance)
        assert len(core.instances) <= INSTANCES_MAX, f"I9: {node} remembers {len(core.instances)} instances"
        for instance in core.instances.changed():
            self._instance(node, instance)
        digest = member.values.digest
        if self._last.get(node) != (len(core.executed), digest):
            self._last[node] = len(core.executed), digest
            self._executed(core, node)
            frontier, beyond = core.executed.plain()
            executed = (tuple(frontier), tuple(map(tuple, beyond)))
            first, other = self._digests.setdefault(executed, (digest, node))
            assert digest == first, f"I7: {node} and {other} executed the same and hold different states"

    def _instance(self, node: NodeId, instance: Instance) -> None:
        states = self._states[node]
        before = states.get(instance.id, (0, 0))
        now = (instance.ballot, min(instance.status, Status.COMMITTED))
        id = instance.id
        if now != before:
            assert now[0] >= before[0], f"I6: {node} went back from ballot {before[0]} to {now[0]} at {id}"
            assert now[1] >= before[1], f"I6: {node} went back from status {before[1]} to {now[1]} at {id}"
            states[id] = now
        if instance.decided:
            assert instance.value is not None
            value, other = self._values.setdefault(id, (instance.value, node))
            assert value == instance.value, f"I3: instance {id} is {value} at {other} and {instance.value} at {node}"

    # -- what was reported --

    def _told(self, group: Group, id: Id) -> None:
        if id not in self._reported:
            self._reported.add(id)
            self._stored(group, id)

    def _stored(self, group: Group, id: Id) -> None:
        """I4: what is reported for the first time is on the disks of a majority."""
        have: list[NodeId] = []
        for node, core in self._cores.items():  # of a crashed member: as it was
            instance = core.instances.get(id)
            if instance is None:
                durable = id in core.executed
            else:
                durable = instance.token <= core._durable_token and instance.status > Status.NONE
            if durable:
                have.append(node)
        names = group.world.names
        assert len(have) > len(names) // 2, f"I4: instance {id} was reported and is durable at {have} of {len(names)}"

    def _executed(self, core: Any, node: NodeId) -> None:
        """What this member executed since the last look, in its order."""
        known, seen, _ = self._places.get(node, (None, 0, {}))
        remembered = len(core.executed) - len(core._recent)
        if known is not core.executed or seen < remembered:  # another life, a snapshot, or some forgotten at once
            seen = remembered
            self._places[node] = (core.executed, seen, {})
        new = len(core.executed) - seen
        for instance in list(core._recent)[len(core._recent) - new :]:
            value = instance.value
            keys = keys_of(value.kind, value.data)
            if keys == NOTHING:
                continue
            for key in self._orders if keys is None else keys:
                if key not in self._orders:
                    self._orders[key] = list(self._orders[EVERYTHING])
                self._ordered(node, key, instance.id)
        self._places[node] = (core.executed, len(core.executed), self._places[node][2])

    def _ordered(self, node: NodeId, key: bytes, id: Id) -> None:
        """I3: on each key, each member is somewhere in one order of what interferes there."""
        order, places = self._orders[key], self._places[node][2]
        at = places.get(key)
        if at is None:  # the first of a life, or behind a snapshot: it may be anywhere, what follows may not
            at = order.index(id) if id in order else len(order)
        if at == len(order):
            order.append(id)
        assert order[at] == id, f"I3: {node} executed {id} on {key!r}, where others executed {order[at]}"
        places[key] = at + 1
