"""What must hold of a group of Multi-Paxos after every event. What was promised and accepted is read off the disks.

The numbers are those of the invariants in docs/explanation/consensus.md. I3, I8 and I10 are held by `Group` itself.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from nova.consensus.paxos import records
from nova.types import NodeId

if TYPE_CHECKING:
    from nova.sim.group import Group, GroupMember

Value = tuple[int, bytes]


class _Life(NamedTuple):
    """What was last seen of a member, between two starts of it."""

    core: Any
    lead: Any
    promised: int
    committed: int
    applied: int


class PaxosInvariants:
    """One leader a ballot, one value a ballot and slot, promises that are kept, decisions that are on enough disks."""

    def __init__(self) -> None:
        self._leaders: dict[int, tuple[NodeId, Any]] = {}
        self._lives: dict[NodeId, _Life] = {}
        self._read: dict[NodeId, int] = {}  # position of the newest record that was looked at
        self._promised: dict[NodeId, int] = {}  # on disk
        self._covered: dict[NodeId, int] = {}  # slots up to it are in a snapshot on disk
        self._values: dict[tuple[int, int], Value] = {}
        self._votes: dict[int, dict[int, set[NodeId]]] = {}  # slot -> ballot -> whose disks hold that vote
        self._digests: dict[int, tuple[int, NodeId]] = {}
        self._reported = 0

    def __call__(self, group: Group) -> None:
        touched = group.world.touched
        for member in group.world:
            if touched is None or member.replica.node == touched:
                self._disk(member)
                self._member(group, member)
        if len(group.decided) > self._reported:
            for position in islice(group.decided, self._reported, None):
                self._stored(group, position)
            self._reported = len(group.decided)

    def _disk(self, member: GroupMember) -> None:
        """I2: one value a ballot and slot. Looks at the records that became durable since the last look."""
        node, log = member.replica.node, member._log
        read = self._read.get(node, 0)
        durable: int = log.durable
        if durable <= read:
            return
        # What a checkpoint dropped before it was seen was written once more, behind the snapshot.
        dropped = log.first > read + 1
        if dropped and member.core._teacher.snapshot is not None:
            self._covered[node] = max(self._covered.get(node, 0), member.core._teacher.snapshot.position)
        for _, record in log.replay(read + 1):
            record = record[1:]  # the first byte names the epoch
            tag = record[:1]
            if tag == records.SNAPSHOT:
                if member.core._teacher.snapshot is not None:
                    self._covered[node] = max(self._covered.get(node, 0), member.core._teacher.snapshot.position)
                continue
            promised, _, entries = records.read(record)
            self._promised[node] = max(self._promised.get(node, 0), promised)
            for entry in entries:
                value = (int(entry.kind), entry.data)
                first = self._values.setdefault((entry.position, entry.term), value)
                assert first == value, f"I2: slot {entry.position} has two values under ballot {entry.term} ({node})"
                if tag == records.ACCEPTED or dropped:
                    assert dropped or entry.term == promised, (
                        f"I6: {node} promised {promised} and accepted slot {entry.position} under {entry.term}"
                    )
                    self._votes.setdefault(entry.position, {}).setdefault(entry.term, set()).add(node)
        self._read[node] = durable

    def _member(self, group: Group, member: GroupMember) -> None:
        core, node = member.core, member.replica.node
        options, lead = core.options, core._lead
        assert len(core._outbox.held) <= options.held_count_max, f"I9: too many answers wait for the disk of {node}"
        if lead is not None:
            for name, peer in lead.peers.items():
                assert len(peer.flying) <= options.flying_count_max, f"I9: {len(peer.flying)} accepts fly to {name}"
        now = _Life(core, lead, core.promised, core.committed, member.replica.applied_position)
        life = self._lives.get(node)
        if life is not None and life == now:
            return
        self._lives[node] = now
        if lead is not None:
            self._leads(group, core, node, lead.ballot)
        if life is not None and life.core is core:
            assert now.promised >= life.promised, f"I6: {node} promised {life.promised}, then {now.promised}"
            assert now.committed >= life.committed, f"I6: {node} went from commit {life.committed} to {now.committed}"
            assert now.applied >= life.applied, f"I6: {node} unapplied what it had applied"
        assert core.promised >= self._promised.get(node, 0), f"I6: {node} forgot its promise of {self._promised[node]}"
        digest = member.values.digest
        first_digest, other = self._digests.setdefault(now.applied, (digest, node))
        assert digest == first_digest, f"I7: {node} and {other} applied up to {now.applied} and hold different states"
        assert core.slots.last <= core.committed + 2 * options.open_slots_max, (
            f"I9: {node} keeps slot {core.slots.last}"
        )

    def _leads(self, group: Group, core: Any, node: NodeId, ballot: int) -> None:
        leader = self._leaders.get(ballot)
        if leader is None:
            self._leaders[ballot] = node, core
            self._complete(group, core, node, ballot)
        else:
            assert leader[0] == node, f"I1: {leader[0]} and {node} both lead under ballot {ballot}"
            assert leader[1] is core, f"I1: {node} leads under ballot {ballot} in two lives"

    def _complete(self, group: Group, core: Any, node: NodeId, ballot: int) -> None:
        """I5: who begins to lead holds everything that was decided under lower ballots."""
        for position, (kind, data, other) in group.decided.items():
            if position <= core.slots.offset or group.terms[position] >= ballot:
                continue
            held = core.slots.get(position)
            assert held is not None, (
                f"I5: {node} leads under {ballot} without slot {position}, which {other} saw decided"
            )
            assert (held.kind, held.data) == (kind, data), (
                f"I5: {node} proposes another value for decided slot {position}"
            )

    def _stored(self, group: Group, position: int) -> None:
        """I4: what is reported decided for the first time is on the disks of a phase-2 quorum, under one ballot."""
        kind, data, node = group.decided[position]
        covered = {name for name, upto in self._covered.items() if upto >= position}
        votes = self._votes.get(position, {})
        quorum = next(iter(group.world)).core.quorum
        assert any(
            quorum.phase2(covered | voters) and self._values[position, ballot] == (kind, data)
            for ballot, voters in votes.items()
        ), f"I4: {node} reported slot {position} decided, and it is durable at {votes} of {group.world.names}"
