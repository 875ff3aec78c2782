"""What must hold of a group after every event, whatever goes wrong: asked of the members and of what they reported.

The numbers are those of the invariants in docs/explanation/consensus.md. I3, I8 and I10 are held by `Group` itself.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from nova.consensus.core import Entry
from nova.consensus.raft.members import Members
from nova.consensus.raft.messages import Vote, VoteReply
from nova.types import NodeId

if TYPE_CHECKING:
    from nova.sim.group import Group, GroupMember

FLYING_MAX = 1_000


class _Life(NamedTuple):
    """What was last seen of a member, between two starts of it."""

    core: Any
    term: int
    committed: int
    applied: int


class LogInvariants:
    """For protocols with terms and one log: a core has `log` (an EntryLog), `term`, `committed`, `role`."""

    def __init__(self) -> None:
        self._leaders: dict[int, NodeId] = {}
        self._terms: dict[NodeId, int] = {}
        self._votes: dict[tuple[int, NodeId], NodeId] = {}
        self._led: set[tuple[int, NodeId]] = set()
        self._lives: dict[NodeId, _Life] = {}
        self._chains: dict[tuple[int, int], bytes] = {}
        self._seen: dict[NodeId, tuple[Any, int, list[tuple[Entry, bytes]]]] = {}
        self._durable: dict[NodeId, tuple[int, int]] = {}  # node -> (position, term) of the end of what is on its disk
        self._digests: dict[int, tuple[int, NodeId]] = {}
        self._reported = 0

    def sent(self, node: NodeId, target: NodeId, message: Any) -> None:
        """I1: a vote that leaves is a promise; one a term, restarts included."""
        if isinstance(message, Vote) and not message.pre:
            target = node  # who campaigns voted for itself
        elif not (isinstance(message, VoteReply) and message.granted and not message.pre):
            return
        first = self._votes.setdefault((message.term, node), target)
        assert first == target, f"I1: {node} voted for {first} and for {target} in term {message.term}"

    def __call__(self, group: Group) -> None:
        touched = group.world.touched
        for member in group.world:
            if touched is None or member.replica.node == touched:
                self._member(group, member)
        if len(group.decided) > self._reported:
            self._stored(group)
            self._reported = len(group.decided)

    def _member(self, group: Group, member: GroupMember) -> None:
        core, node = member.core, member.replica.node
        if core.role == "leader" and (core.term, node) not in self._led:
            first = self._leaders.setdefault(core.term, node)
            assert first == node, f"I1: {first} and {node} both lead in term {core.term}"
            self._led.add((core.term, node))
            self._complete(group, core, node)
        life = self._lives.get(node)
        if life is not None and life.core is core:
            assert core.term >= life.term, f"I6: {node} went from term {life.term} to {core.term}"
            assert core.committed >= life.committed, f"I6: {node} went from commit {life.committed} to {core.committed}"
            assert member.replica.applied_position >= life.applied, f"I6: {node} unapplied what it had applied"
        assert core.term >= self._terms.get(node, 0), f"I6: {node} forgot term {self._terms[node]} in a crash"
        if core._token == core._durable_token:  # its disk has all that it knows
            self._terms[node] = core.term
        self._lives[node] = _Life(core, core.term, core.committed, member.replica.applied_position)
        self._matching(core, node)
        position = member.replica.applied_position
        digest = member.values.digest
        first_digest, other = self._digests.setdefault(position, (digest, node))
        assert digest == first_digest, f"I7: {node} and {other} applied up to {position} and hold different states"
        for peer, progress in core._progress.items():
            assert len(progress.flying) <= FLYING_MAX, f"I9: {len(progress.flying)} appends fly from {node} to {peer}"
        durable = core.log.durable
        self._durable[node] = durable, core.log.term(durable) or 0

    def _complete(self, group: Group, core: Any, node: NodeId) -> None:
        """I5: who begins to lead holds everything that was decided in earlier terms, and so is a voter."""
        assert core.members.votes(node), f"{node} leads in term {core.term}, and is no voter of {core.members}"
        for position, (kind, data, other) in group.decided.items():
            if position <= core.log.offset or group.terms[position] >= core.term:
                continue
            held = core.log.between(position - 1, position)
            assert [(int(entry.kind), entry.data) for entry in held] == [(kind, data)], (
                f"I5: {node} leads in term {core.term} without position {position}, which {other} saw committed"
            )

    def _matching(self, core: Any, node: NodeId) -> None:
        """I2: one position and term, one log up to there. Costs what changed since the last look."""
        log = core.log
        known, offset, seen = self._seen.get(node, (None, 0, []))
        if known is not core or offset != log.offset:
            seen = []
        entries = log.entries
        while seen and (len(seen) > len(entries) or seen[-1][0] is not entries[len(seen) - 1]):
            seen.pop()
        for entry in entries[len(seen) :]:
            before = seen[-1][1] if seen else self._chains.get((log.offset, log.offset_term), b"")
            if not seen and log.offset and not before:
                break  # nobody's log reaches back that far any more
            chain = blake2b(before + b"%d %d " % (entry.term, entry.kind) + entry.data, digest_size=16).digest()
            first = self._chains.setdefault((entry.position, entry.term), chain)
            assert first == chain, f"I2: logs differ before position {entry.position} of term {entry.term} ({node})"
            seen.append((entry, chain))
        self._seen[node] = core, log.offset, seen

    def _stored(self, group: Group) -> None:
        """I4: what is reported committed for the first time is on the disks of a quorum of a configuration that may
        have decided it: the one in force at its position, or one behind it in the log of who reports it or leads."""
        newest = max(group.decided)
        term, reporter = group.terms[newest], group.decided[newest][2]
        have = [node for node, (position, at) in self._durable.items() if (at, position) >= (term, newest)]
        members = [m for m in group.world if m.core.role == "leader" or m.replica.node == reporter]
        assert any(_quorum(config, have) for member in members for config in _in_force(member.core, newest)), (
            f"I4: position {newest} of term {term} was reported committed by {reporter} and is durable at {have}; that "
            f"is no quorum of {[_in_force(member.core, newest) for member in members]}"
        )


def _in_force(core: Any, position: int) -> list[Members]:
    """The configuration under which an entry of this position stands in a log, and those behind it."""
    known = core._configurations
    first = max((number for number, (at, _) in enumerate(known) if at <= position), default=0)
    return [members for _, members in known[first:]]


def _quorum(members: Members, have: Collection[NodeId]) -> bool:
    """Counted here, and not by what is under test: more than half of the voters, and of those who go."""
    return all(2 * len(set(have) & set(side)) > len(side) for side in (members.voters, members.outgoing) if side)
