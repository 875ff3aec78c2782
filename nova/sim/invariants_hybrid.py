"""What must hold of a hybrid group after every event. The numbers are those in docs/explanation/consensus.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nova.consensus.eventual.messages import Push
from nova.consensus.eventual.streams import Dot, Vector, covers
from nova.types import NodeId

if TYPE_CHECKING:
    from nova.sim.group import Group, GroupMember

RETAINED_MAX = 3_000


class HybridInvariants:
    """For `Hybrid`: one log a region, on the disks of its majority; causal delivery; equal states of equal vectors."""

    def __init__(self) -> None:
        self._cores: dict[NodeId, Any] = {}
        self._dots: dict[tuple[int, int], Dot] = {}
        self._digests: dict[Vector, tuple[int, NodeId]] = {}
        self._seen: dict[NodeId, tuple[Vector, Vector]] = {}
        self._leaders: dict[tuple[int, int], NodeId] = {}

    def sent(self, group: Group, node: NodeId, target: NodeId, message: Any) -> None:
        """What leaves a region has one meaning for ever."""
        if isinstance(message, Push):
            for dot in message.dots:
                self._one(dot, node)

    def _one(self, dot: Dot, node: NodeId) -> bool:
        """Whether it is known; raises if it is another one elsewhere."""
        known = (dot.owner, dot.number) in self._dots
        first = self._dots.setdefault((dot.owner, dot.number), dot)
        assert first == dot, f"I3: dot {dot.number} of stream {dot.owner} is {first}, and {dot} at {node}"
        return known

    def __call__(self, group: Group) -> None:
        touched = group.world.touched
        for member in group.world if touched is None else group.world.running(touched):
            self._member(member)

    def _member(self, member: GroupMember) -> None:
        core, node = member.core, member.replica.node
        streams = core.streams
        if core.inner.role == "leader":
            first_leader = self._leaders.setdefault((core._mine, core.inner.term), node)
            assert first_leader == node, f"I1: {first_leader} and {node} lead {core.region} in term {core.inner.term}"
        now = (tuple(streams.delivered), tuple(streams.received))
        if self._cores.get(node) is not core:
            self._cores[node] = core
            before = ((0,) * streams.count, (0,) * streams.count) if node not in self._seen else now
        else:
            before = self._seen[node]
        if now == before:
            self._seen[node] = now
            return
        assert covers(now[0], before[0]), f"I6: {node} went back from {before[0]} to {now[0]} delivered"
        assert covers(now[1], before[1]), f"I6: {node} went back from {before[1]} to {now[1]} received"
        self._seen[node] = now
        for owner in range(streams.count):
            for number in range(max(before[1][owner], streams.forgotten[owner]) + 1, now[1][owner] + 1):
                if not self._one(streams.get(owner, number), node):
                    self._stored(core, owner, number)
        if now[0] == before[0]:
            return
        self._delivered(core, node, before[0])
        first, other = self._digests.setdefault(now[0], (member.values.digest, node))
        assert first == member.values.digest, f"I7: {node} and {other} delivered {list(now[0])} and hold other states"
        assert streams.retained <= RETAINED_MAX, f"I9: {node} retains {streams.retained} dots"

    def _stored(self, core: Any, owner: int, number: int) -> None:
        """I4: what a region commits is in the logs of a majority of its members, on their disks."""
        name = list(core.regions)[owner]
        members = core.regions[name]
        cores = [self._cores[member] for member in members if member in self._cores]
        have = [each.node for each in cores if each.inner.log.durable >= number or each._durable[owner] >= number]
        assert 2 * len(have) > len(members), f"I4: dot {number} of region {name} is committed and durable at {have}"

    def _delivered(self, core: Any, node: NodeId, before: Vector) -> None:
        """In causal order: what is still here of it."""
        streams = core.streams
        told = [max(pair) for pair in zip(before, streams.forgotten, strict=True)]
        for dot in streams._order:
            if dot.number <= told[dot.owner]:
                continue
            assert dot.number == told[dot.owner] + 1, (
                f"I2: {node} tells dot {dot.number} of stream {dot.owner} after {told[dot.owner]}"
            )
            assert not dot.deps or covers(told, dot.deps), (
                f"I2: {node} tells dot {dot.number} of stream {dot.owner}, which depends on {list(dot.deps)}, where "
                f"{told} is told"
            )
            told[dot.owner] = dot.number


__all__ = ["HybridInvariants"]
