"""What must hold of an eventual group after every event. The numbers are those in docs/explanation/consensus.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nova.consensus.eventual.messages import Push
from nova.consensus.eventual.streams import Dot, Vector, covers
from nova.types import NodeId

if TYPE_CHECKING:
    from nova.sim.group import Group, GroupMember

RETAINED_MAX = 2_000


class EventualInvariants:
    """For `Eventual`: causal delivery, copies before anything is seen, one end, equal states of equal vectors."""

    def __init__(self) -> None:
        self._cores: dict[NodeId, Any] = {}
        self._dots: dict[tuple[int, int], Dot] = {}
        self._own: dict[NodeId, int] = {}
        self._digests: dict[Vector, tuple[int, NodeId]] = {}
        self._safe: set[tuple[int, int]] = set()
        self._marks: dict[NodeId, tuple[Vector, Vector]] = {}

    def sent(self, group: Group, node: NodeId, target: NodeId, message: Any) -> None:
        """What leaves has one meaning for ever."""
        if isinstance(message, Push):
            for dot in message.dots:
                first = self._dots.setdefault((dot.owner, dot.number), dot)
                assert first == dot, f"I3: dot {dot.number} of stream {dot.owner} is two: {first} and {dot}"

    def __call__(self, group: Group) -> None:
        touched = group.world.touched
        for member in group.world if touched is None else group.world.running(touched):
            self._member(member)

    def _member(self, member: GroupMember) -> None:
        core, node = member.core, member.replica.node
        streams = core.streams
        if self._cores.get(node) is not core:
            self._cores[node] = core
            self._marks[node] = (tuple(streams.delivered), tuple(core._durable))
            self._own[node] = streams.received[core._me]
        now = (tuple(streams.delivered), tuple(core._durable))
        before = self._marks[node]
        if now != before:
            assert covers(now[0], before[0]), f"I6: {node} went back from {before[0]} to {now[0]} delivered"
            assert covers(now[1], before[1]), f"I6: {node} went back from {before[1]} to {now[1]} on its disk"
            self._marks[node] = now
        me = core._me
        for number in range(max(self._own[node], streams.forgotten[me]) + 1, streams.received[me] + 1):
            # It depends on all that was told where it was made, before it was.
            dot = streams.get(me, number)
            assert covers(dot.deps, before[0]), (
                f"I2: {node} proposes dot {number} behind {list(dot.deps)}, where {list(before[0])} was told"
            )
        self._own[node] = streams.received[me]
        if now[0] != before[0]:
            self._delivered(core, node, before[0])
            first, other = self._digests.setdefault(now[0], (member.values.digest, node))
            assert first == member.values.digest, (
                f"I7: {node} and {other} delivered {list(now[0])} and hold different states"
            )
        assert streams.retained <= RETAINED_MAX, f"I9: {node} retains {streams.retained} dots"

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
            assert covers(told, dot.deps), (
                f"I2: {node} tells dot {dot.number} of stream {dot.owner}, which depends on {list(dot.deps)}, where "
                f"{told} is told"
            )
            told[dot.owner] = dot.number
            if (dot.owner, dot.number) not in self._safe:
                self._safe.add((dot.owner, dot.number))
                self._stored(core, node, dot.owner, dot.number)

    def _stored(self, teller: Any, node: NodeId, owner: int, number: int) -> None:
        """I4: what is told for the first time is on W disks: of members that have crashed, too."""
        have = [each for each, core in self._cores.items() if core._durable[owner] >= number]
        needed = teller.w
        if teller._seal.decided:  # by a majority that holds all of it
            needed = min(needed, len(teller.members) // 2 + 1)
        assert len(have) >= needed, f"I4: dot {number} of stream {owner} is told at {node} and durable at {have}"


__all__ = ["EventualInvariants"]
