"""What must hold of a group after every event, whatever goes wrong: asked of the members and of what they reported.

The numbers are those of the invariants in docs/explanation/consensus.md. I3, I8 and I10 are held by `Group` itself.
Some ask for more than their number says, and so notice a bug long before chance makes a disaster of it: not only that
no two lead, but that each vote is kept and each leader was elected; not only that leaders hold what was decided, but
that nobody could be elected who does not.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from nova.consensus.core import Entry, Kind
from nova.consensus.raft.members import Members, unpack_members
from nova.consensus.raft.messages import AppendReply, Vote, VoteReply
from nova.types import NodeId

if TYPE_CHECKING:
    from nova.sim.group import Group, GroupMember

FLYING_MAX = 1_000


class LogInvariants:
    """For protocols with terms, votes and one log that holds its members: what `nova.consensus.raft` has."""

    def __init__(self) -> None:
        self._leaders: dict[int, NodeId] = {}
        self._votes: dict[tuple[int, NodeId], NodeId] = {}
        self._terms: dict[NodeId, int] = {}
        self._led: set[tuple[int, NodeId]] = set()
        self._lives: dict[NodeId, tuple[Any, ...]] = {}
        self._chains: dict[tuple[int, int], bytes] = {}
        self._seen: dict[NodeId, tuple[Any, int, list[tuple[Entry, bytes]]]] = {}
        self._durable: dict[NodeId, tuple[int, int]] = {}  # node -> (position, term) of the end of what is on its disk
        self._kept: dict[NodeId, tuple[int, int]] = {}  # the same, but only what must be there after a crash
        self._digests: dict[int, tuple[int, NodeId]] = {}
        self._members: list[tuple[int, Members]] = []  # decided configurations, by position
        self._known = 0  # what is decided up to here is known without a gap
        self._reported = self._newest = 0

    def sent(self, group: Group, node: NodeId, target: NodeId, message: Any) -> None:
        """What leaves is a promise. I1: one vote a term, restarts included. I2: who acknowledges has the same there."""
        match message:
            case AppendReply(term, matched) if matched:
                cores = [member.core for member in group.world if member.replica.node in (node, target)]
                if len(cores) == 2 and all(core.term == term for core in cores):
                    held = {core.log.term(matched) for core in cores} - {None}
                    assert len(held) < 2, f"I2: {node} acknowledges position {matched} to {target}: of terms {held}"
            case Vote(term, pre=False):
                self._voted(node, node, term)  # who campaigns votes for itself
            case VoteReply(term, granted=True, pre=False):
                self._voted(node, target, term)

    def _voted(self, node: NodeId, choice: NodeId, term: int) -> None:
        first = self._votes.setdefault((term, node), choice)
        assert first == choice, f"I1: {node} voted for {first} and for {choice} in term {term}"

    def __call__(self, group: Group) -> None:
        while (known := group.decided.get(self._known + 1)) is not None:
            self._known += 1
            if known[0] == Kind.MEMBERS:
                self._members.append((self._known, unpack_members(known[1])))
        touched = group.world.touched
        for member in group.world if touched is None else group.world.running(touched):
            core, log = member.core, member.core.log
            newest = log.entries[-1] if log.entries else None
            now = (
                core, core.term, core.committed, member.replica.applied_position, core.role, core._durable_token,
                log.durable, log.offset, len(log.entries), newest, member.values.digest,
            )  # fmt: skip
            node = member.replica.node
            before = self._lives.get(node)
            # Most events are heartbeats, and change nothing of this. Equal entries of one term are the same entry.
            if before != now:
                self._member(group, member, before)
                self._lives[node] = now
        if len(group.decided) > self._reported:
            self._stored(group)
            self._reported = len(group.decided)

    def _member(self, group: Group, member: GroupMember, before: tuple[Any, ...] | None) -> None:
        core, node = member.core, member.replica.node
        position = member.replica.applied_position
        if before is None or before[0] is not core:
            self._restarted(core, node)
            self._configured(group, core, node)
        else:
            _, term, committed, applied, *_ = before
            assert core.term >= term, f"I6: {node} went from term {term} to {core.term}"
            assert core.committed >= committed, f"I6: {node} went from commit {committed} to {core.committed}"
            assert position >= applied, f"I6: {node} unapplied what it had applied"
            if core.committed > committed:
                if (core.term, node) in self._led and core.role == "leader":
                    assert core.log.term(core.committed) == core.term, (
                        f"I3: {node} commits position {core.committed} of an earlier term by counting (Raft 5.4.2)"
                    )
                self._configured(group, core, node)
        if core.role == "leader" and (core.term, node) not in self._led:
            self._begins_to_lead(group, core, node)
        if core._token == core._durable_token:  # its disk has all that it knows
            self._terms[node] = core.term
        self._matching(core, node)
        digest = member.values.digest
        first_digest, other = self._digests.setdefault(position, (digest, node))
        assert digest == first_digest, f"I7: {node} and {other} applied up to {position} and hold different states"
        for peer, progress in core._progress.items():
            assert len(progress.flying) <= FLYING_MAX, f"I9: {len(progress.flying)} appends fly from {node} to {peer}"
        durable = core.log.durable
        self._durable[node] = durable, core.log.term(durable) or 0
        # A position that is compacted counts as durable at once, since it is decided; our own disk may be behind.
        if durable > core.log.offset or core._token == core._durable_token:
            self._kept[node] = self._durable[node]

    def _restarted(self, core: Any, node: NodeId) -> None:
        """I6: what a node has promised, or said to be on its disk, is there when it starts again."""
        assert core.term >= self._terms.get(node, 0), f"I6: {node} forgot term {self._terms[node]} in a crash"
        promised = self._votes.get((core.term, node), core.voted_for)
        assert core.voted_for == promised, f"I6: {node} forgot its vote for {promised} in term {core.term}"
        position, term = self._kept.get(node, (0, 0))
        assert position <= core.log.offset or core.log.term(position) == term, (
            f"I4: position {position} of term {term} was on the disk of {node}, and is {core.log.term(position)} now"
        )

    def _begins_to_lead(self, group: Group, core: Any, node: NodeId) -> None:
        """I1: by the votes of a quorum. I5: holding everything that was decided in earlier terms."""
        first = self._leaders.setdefault(core.term, node)
        assert first == node, f"I1: {first} and {node} both lead in term {core.term}"
        self._led.add((core.term, node))
        votes = {voter for (term, voter), choice in self._votes.items() if term == core.term and choice == node}
        if core.term == 1 and core.epoch.first == node:
            votes = set(core.epoch.members)  # by the epoch
        assert _quorum(core.members, {*votes, node}), (
            f"I1: {node} leads in term {core.term} by the votes of {sorted(votes)}; that is no quorum of {core.members}"
        )
        assert _stands(core), f"I1: {node} leads in term {core.term}, and has no vote"
        for position, (kind, data, other) in group.decided.items():
            if position <= core.log.offset or group.terms[position] >= core.term:
                continue
            held = core.log.between(position - 1, position)
            assert [(int(entry.kind), entry.data) for entry in held] == [(kind, data)], (
                f"I5: {node} leads in term {core.term} without position {position}, which {other} saw committed"
            )

    def _configured(self, group: Group, core: Any, node: NodeId) -> None:
        """I7, of the members: the configuration in force at the commit position is the one that was decided."""
        if core.committed > self._known:
            return  # it will be told in a moment
        decided = [members for position, members in self._members if position <= core.committed]
        expected = decided[-1] if decided else Members(group.epoch.members)
        found = _in_force(core, core.committed)[0]
        assert found == expected, f"I7: {node} goes by {found} at position {core.committed}; decided is {expected}"

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
        if newest == self._newest:
            return  # only a gap was filled: one that reported late, behind its own sync
        self._newest = newest
        term, reporter = group.terms[newest], group.decided[newest][2]
        have = [node for node, (position, at) in self._durable.items() if (at, position) >= (term, newest)]
        members = [m for m in group.world if m.core.role == "leader" or m.replica.node == reporter]
        assert any(_quorum(config, have) for member in members for config in _in_force(member.core, newest)), (
            f"I4: position {newest} of term {term} was reported committed by {reporter} and is durable at {have}; that "
            f"is no quorum of {[_in_force(member.core, newest) for member in members]}"
        )
        for member in group.world:
            self._cannot_be_elected_without(newest, term, member.core)

    def _cannot_be_elected_without(self, position: int, term: int, core: Any) -> None:
        """I5, ahead of time: who lacks what is decided finds no quorum whose logs let it vote for that one."""
        log, members = core.log, core.members
        if position <= log.offset or log.term(position) == term or not _stands(core):
            return
        end = (log.last_term, log.last)
        votes = [node for node in members.everybody if self._durable.get(node, (0, 0))[::-1] <= end]
        assert not _quorum(members, votes), (
            f"I5: position {position} of term {term} is decided, and {core.node}, which lacks it and ends at {end[1]} "
            f"of term {end[0]}, could be elected by {votes}"
        )


def _in_force(core: Any, position: int) -> list[Members]:
    """The configuration under which an entry of this position stands in a log, and those behind it."""
    known = core._configurations
    first = max((number for number, (at, _) in enumerate(known) if at <= position), default=0)
    return [members for _, members in known[first:]]


def _stands(core: Any) -> bool:
    """It votes by a configuration that is in force, or may yet be needed."""
    return any(members.votes(core.node) for members in _in_force(core, core.committed))


def _quorum(members: Members, have: Collection[NodeId]) -> bool:
    """Counted here, and not by what is under test: more than half of the voters, and of those who go."""
    return all(2 * len(set(have) & set(side)) > len(side) for side in (members.voters, members.outgoing) if side)


class ChainInvariants:
    """For groups that switch protocols: what holds whatever the protocol is. `Group` holds that successors are one."""

    def __init__(self) -> None:
        self._seen: dict[NodeId, tuple[Any, int, int]] = {}
        self._digests: dict[int, tuple[int, NodeId]] = {}

    def __call__(self, group: Group) -> None:
        for member in group.world:
            replica = member.replica
            now = (replica, replica.epoch.number, replica.applied_position)
            before, epoch, applied = self._seen.get(replica.node, now)
            assert before is not replica or now[1] >= epoch, f"I6: {replica.node} went back to epoch {now[1]}"
            assert before is not replica or now[2] >= applied, f"I6: {replica.node} unapplied what it had applied"
            self._seen[replica.node] = now
            if replica.sessions.ordered:  # else a position says nothing; the seal compares digests
                digest, other = self._digests.setdefault(now[2], (member.values.digest, replica.node))
                assert digest == member.values.digest, (
                    f"I7: {replica.node} and {other} applied up to {now[2]} and hold different states"
                )
            assert len(replica.chain._links) <= 3, f"I9: {replica.node} has {len(replica.chain._links)} epochs alive"
