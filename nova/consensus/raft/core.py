"""Raft as a state machine (Ongaro & Ousterhout 2014; Ongaro's dissertation 2014, named chapters below).

Where it goes beyond the paper, or another way:

- Before it campaigns, a member asks whether it would win (pre-vote, 9.6); who has heard of a leader within an election
  timeout says no to all but a hand-over. A leader that hears no quorum for that long steps down. So neither a member
  that comes back, nor one that is cut off in one direction, nor one that was removed disturbs the others.
- A leader sends entries while its own disk still writes them (10.2.1), and counts itself when that is done.
- Votes and acknowledgements leave when what they promise is durable: also one that repeats an earlier promise whose
  sync is still under way (`_promise`).
- Members change by joint consensus (6), and a configuration counts as soon as it is in the log. A leader leaves the
  joint configuration by itself, when it is committed.
- A rejected append says where the logs may meet, by term, so that each differing term costs one probe at most (5.3).
- Reads ask a round of heartbeats whether the leader still leads (6.4), many reads a round; or, with `lease_reads`, they
  trust a clock that the driver reads (6.4.1). Who hands leadership over gives up leases for the rest of its term: the
  word that it sent may arrive whenever, and forces an election past them. A member that restarts gives no vote for an
  election timeout, since a leader may hold a lease that rests on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import msgspec

from nova._native.raft import RaftState, Steady
from nova.consensus.core import (
    Committed,
    Entry,
    Epoch,
    Fatal,
    Installed,
    Kind,
    NotLeaderError,
    OverloadedError,
    Persisted,
    ReadLost,
    ReadReady,
    SealedError,
    Snapshot,
    Status,
    checked_members,
    pack_epoch,
)
from nova.consensus.raft.log import EntryLog
from nova.consensus.raft.members import Members, pack_members, unpack_members
from nova.consensus.raft.messages import (
    MESSAGES,
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadIndex,
    ReadIndexReply,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from nova.consensus.raft.options import RaftOptions
from nova.consensus.raft.progress import Mode, Progress
from nova.consensus.rounds import Rounds
from nova.consensus.snapshots import Incoming, Pieces, pack_snapshot, pieces, unpack_snapshot
from nova.errors import CorruptionError, UsageError
from nova.types import NodeId, Outputs, Random

FOLLOWER, CANDIDATE, LEADER = "follower", "candidate", "leader"
HARD, ENTRIES, SNAPSHOT = b"H", b"E", b"S"
"""First byte of a record: term and vote, entries, a piece of an installed snapshot."""
RECORD_BYTES = 4 << 20
"""Of entries that are written again behind a snapshot, in one record."""


class Raft(RaftState):
    """A member; see `nova.consensus.core.Core`.

    What comes over and over between a leader and followers that keep up is taken by `Steady`, compiled. All of Raft is
    here, that included.
    """

    compiled: ClassVar[bool] = True
    """Tests turn it off, to hold both against each other."""
    ordered: ClassVar[bool] = True
    begins_led: ClassVar[bool] = True
    log: EntryLog
    options: RaftOptions
    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = MESSAGES

    def __init__(self, node: NodeId, epoch: Epoch, random: Random, now_ns: Callable[[], int]) -> None:
        voters = checked_members(node, epoch)
        try:
            self.options = msgspec.convert(epoch.options, RaftOptions)
        except msgspec.ValidationError as error:
            raise UsageError(f"the options of epoch {epoch.number} do not fit raft: {error}") from None
        self.node, self.epoch = node, epoch
        self._random, self._now_ns = random, now_ns
        self.log = EntryLog(epoch.start - 1)
        # Where the epoch names who is first, all have voted for it in term 1, without a record: the epoch says so.
        first = epoch.first or None
        self.term = 1 if first else 0
        self.voted_for: NodeId | None = first
        self.committed = epoch.start - 1
        self.role = FOLLOWER
        self._leader: NodeId | None = first if first != node else None
        self._configurations: list[tuple[int, Members]] = [(epoch.start - 1, Members(voters))]
        self._told = epoch.start - 1
        self._token = self._durable_token = 0
        self._promises: list[tuple[NodeId, Message]] = []
        self._held: deque[tuple[int, NodeId, Message]] = deque()
        self._hard: tuple[int, NodeId | None] = (self.term, first)  # as last persisted
        self._elapsed = 0
        self._heard = 0 if first else self.options.election_ticks  # ticks since the leader's last word
        self._timeout = self._drawn()
        self._votes: dict[NodeId, bool] = {}
        self._votes_pre = False
        self._self_vote_token = 0
        self._progress: dict[NodeId, Progress] = {}
        self._uncommitted_bytes = 0
        self._transferee: NodeId | None = None
        self._handed_over = 0  # the term in which it was, or was to be
        self._rounds = Rounds()
        self._snapshot: Snapshot | None = None
        self._snapshot_bytes = b""
        self._incoming: Incoming | None = None
        self._pieces = Pieces()
        self._sealed_at: int | None = None
        self._fresh = True  # not of an earlier life

    # -- what others see --

    @property
    def members(self) -> Members:
        """The newest configuration in the log: it counts before it is committed."""
        return self._configurations[-1][1]

    @property
    def changing(self) -> bool:
        """A change of members is in the log and not committed to its end."""
        position, members = self._configurations[-1]
        return members.joint or position > self.committed

    @property
    def leader(self) -> NodeId | None:
        return self._leader

    @property
    def status(self) -> Status:
        role = self.role
        if role == FOLLOWER and not self.members.votes(self.node):
            role = "learner"
        return Status(
            self.node,
            "raft",
            role,
            self.term,
            self._leader,
            self.committed,
            self.log.last,
            self.members.voters,
            {peer: progress.matched for peer, progress in self._progress.items()},
        )

    # -- inputs --

    def step(self, sender: NodeId, message: Message) -> Outputs:
        """Take a message."""
        if self.compiled and (usual := _steady.step(self, sender, message)) is not None:
            return usual
        out = Outputs()
        if message.term > self.term:
            if not self._hears(sender, message, out):
                return self._done(out)
        elif message.term < self.term and not isinstance(message, Vote | ReadIndex | ReadIndexReply):
            # A leader of the past has to learn that it is one: with pre-vote nobody else tells it.
            if isinstance(message, Append | Heartbeat | SnapshotChunk):
                out.early.append((sender, AppendReply(self.term, 0)))
            return self._done(out)
        match message:
            case Vote():
                self._asked_for_vote(sender, message, out)
            case VoteReply():
                self._got_vote(sender, message, out)
            case Append():
                self._append(sender, message, out)
            case Heartbeat():
                self._follow(sender)
                self._commit(min(message.committed, self.log.last), out)
                out.early.append((sender, HeartbeatReply(self.term, message.round)))
            case SnapshotChunk():
                self._chunk(sender, message, out)
            case TimeoutNow():
                if self._stands() and self.role != LEADER:
                    self._campaign(out, forced=True)
            case ReadIndex(_, ids):
                if self.role == LEADER:
                    self._read(sender, ids, out)
            case ReadIndexReply(_, ids, position):
                out.apply.append(ReadReady(ids, position))
            case _ if self.role == LEADER and sender in self._progress:
                self._answer(sender, message, out)
        return self._done(out)

    def tick(self) -> Outputs:
        """Let a tick pass."""
        out = Outputs()
        self._elapsed += 1
        self._heard += 1
        if self.role == LEADER:
            self._tick_leader(out)
        elif self._elapsed >= self._timeout and self._stands():
            self._campaign(out, pre=True)
        return self._done(out)

    def lead(self) -> Outputs:
        """Lead as the first, or campaign if nobody leads yet, or nobody else can."""
        out = Outputs()
        alone = self.role == FOLLOWER and self.members.quorum([self.node])
        if self._fresh and self.epoch.first == self.node and self.term == 1 and self.log.last == self.epoch.start - 1:
            self._become_leader(out)
        elif (self.term == 0 or alone) and self.members.votes(self.node):
            self._campaign(out)
        return self._done(out)

    def propose(self, entries: Sequence[tuple[Kind, bytes]]) -> Outputs:
        """Propose entries, in order."""
        if self.compiled and (usual := _steady.propose(self, entries)) is not None:
            return usual
        self._may_propose()
        size = sum(len(data) for _, data in entries)
        if self._uncommitted_bytes and self._uncommitted_bytes + size > self.options.uncommitted_bytes_max:
            raise OverloadedError(
                f"{self._uncommitted_bytes} bytes are proposed and not committed, {size} more are too many; the limit "
                f"is {self.options.uncommitted_bytes_max}: try again when some are committed"
            )
        out = Outputs()
        self._lead_append(entries, out)
        return self._done(out)

    def seal(self, successor: Epoch) -> Outputs:
        """Propose the end of this epoch."""
        if successor.number != self.epoch.number + 1:
            raise UsageError(f"epoch {successor.number} can't follow epoch {self.epoch.number}")
        checked_members(self.node, successor)
        return self.propose([(Kind.SEAL, pack_epoch(successor))])

    def change(self, voters: Iterable[NodeId], learners: Iterable[NodeId] = ()) -> Outputs:
        """Change who votes and who learns, by joint consensus. One change at a time.

        Raises NotLeaderError, SealedError; UsageError for a change that is none or while another one is under way.
        """
        self._may_propose()
        position, present = self._configurations[-1]
        if position > self.committed or position > self._told:
            raise UsageError(f"the change at position {position} is not applied yet; wait for it")
        out = Outputs()
        self._lead_append([(Kind.MEMBERS, pack_members(present.changed(voters, learners)))], out)
        return self._done(out)

    def transfer(self, target: NodeId) -> Outputs:
        """Hand leadership to a voter; proposals are refused until it leads, or an election timeout has passed.

        Raises NotLeaderError; UsageError if the target is no voter.
        """
        self._may_propose()
        if target not in self.members.voters:
            raise UsageError(f"{target} is no voter of {list(self.members.voters)}; leadership goes to voters only")
        out = Outputs()
        if target != self.node:
            self._transferee = target
            self._elapsed = 0
            self._rounds.lease_until_ns = 0
            self._handed_over = self.term
            self._hand_over(out)
        return self._done(out)

    def tell(self, peer: NodeId, position: int) -> Outputs:
        """Let a member that waits for this commit know of it now, not with the next entries or heartbeat. Nothing comes
        of it as long as the position is not committed."""
        out = Outputs()
        progress = self._progress.get(peer) if self.role == LEADER else None
        if progress is None or self.committed < position:
            return out
        if progress.matched >= position:
            committed = min(self.committed, progress.matched)
            out.early.append((peer, Heartbeat(self.term, self._rounds.number, committed)))
        elif (term := self.log.term(position)) is not None:
            # Sent it was, and comes before this: which counts only where the logs meet.
            out.early.append((peer, Append(self.term, position, term, self.committed, ())))
        return out

    def read(self, id: int) -> Outputs:
        """Ask for a position for a linearizable read."""
        out = Outputs()
        if self.role == LEADER:
            self._read(self.node, (id,), out)
        elif self._leader is None:
            raise NotLeaderError(self.node, None)
        else:
            out.early.append((self._leader, ReadIndex(self.term, (id,))))
        return self._done(out)

    def advance(self, token: int) -> Outputs:
        """Everything up to this token is durable."""
        if self.compiled and (usual := _steady.advance(self, token)) is not None:
            return usual
        out = Outputs()
        self._durable_token = max(self._durable_token, token)
        self.log.synced(token)
        while self._held and self._held[0][0] <= self._durable_token:
            _, peer, message = self._held.popleft()
            if message.term == self.term:  # an older promise would say less than what was promised since
                out.send.append((peer, message))
        if self.role == CANDIDATE and not self._votes_pre and self._durable_token >= self._self_vote_token:
            self._votes[self.node] = True
            self._count_votes(out)
        if self.role == LEADER:
            self._count_stored(out)
        return self._done(out)

    # -- elections --

    def _drawn(self) -> int:
        ticks = self.options.election_ticks
        return ticks + self._random.randrange(ticks)

    def _stands(self) -> bool:
        """It votes by the newest configuration, or by one before it that is in force until the newest is committed.

        One that has its own removal in its log, not committed yet, may be the only one whose log can win: it has to
        stand for election, and counts itself nowhere (dissertation, 4.2.2).
        """
        for position, members in reversed(self._configurations):
            if members.votes(self.node):
                return True
            if position <= self.committed:
                break
        return False

    def _hears(self, sender: NodeId, message: Message, out: Outputs) -> bool:
        """A higher term; whether the message counts."""
        if isinstance(message, Vote):
            heard = self.role == LEADER or self._heard < self.options.election_ticks
            leased = self.options.check_quorum and heard
            if leased and not message.forced:
                return False
            if message.pre:
                return True
        elif isinstance(message, VoteReply) and message.pre and message.granted:
            return True  # our own next term, as we named it
        self._become_follower(message.term, None, out)
        return True

    def _become_follower(self, term: int, leader: NodeId | None, out: Outputs) -> None:
        if self.role == LEADER:
            self._lose_reads(out)
            self._progress.clear()
            self._transferee = None
            self._rounds.lease_until_ns = 0
            self._heard = self.options.election_ticks
        if term > self.term:
            self.term, self.voted_for = term, None
        self.role, self._leader = FOLLOWER, leader
        self._elapsed, self._timeout = 0, self._drawn()
        self._votes.clear()

    def _campaign(self, out: Outputs, *, pre: bool = False, forced: bool = False) -> None:
        self.role, self._leader, self._votes_pre = CANDIDATE, None, pre
        self._elapsed, self._timeout = 0, self._drawn()
        self._votes = {}
        if pre:
            term = self.term + 1
            self._votes[self.node] = True
        else:
            self.term = term = self.term + 1
            self.voted_for = self.node  # counted when it is durable
        request = Vote(term, self.log.last, self.log.last_term, pre, forced)
        voters = {*self.members.voters, *self.members.outgoing} - {self.node}
        for peer in sorted(voters):
            if pre:
                out.early.append((peer, request))
            else:
                out.send.append((peer, request))
        if pre:
            self._count_votes(out)

    def _asked_for_vote(self, sender: NodeId, message: Vote, out: Outputs) -> None:
        # Also one that is no voter as far as it knows answers: the others may know better (dissertation, 4.2.1).
        if message.pre:
            granted = message.term > self.term and self.log.up_to_date(message.last, message.last_term)
            out.early.append((sender, VoteReply(message.term if granted else self.term, granted, True)))
            return
        granted = (
            message.term == self.term
            and self.voted_for in (None, sender)
            and (self._leader is None or self.voted_for == sender)
            and self.role != LEADER
            and self.log.up_to_date(message.last, message.last_term)
        )
        if granted:
            self.voted_for = sender
            self._elapsed = 0
        self._promise(sender, VoteReply(self.term, granted))

    def _got_vote(self, sender: NodeId, message: VoteReply, out: Outputs) -> None:
        if self.role != CANDIDATE or message.pre != self._votes_pre:
            return
        if message.term != (self.term + 1 if message.pre and message.granted else self.term):
            return
        self._votes.setdefault(sender, message.granted)
        self._count_votes(out)

    def _count_votes(self, out: Outputs) -> None:
        members = self.members
        granted = [node for node, vote in self._votes.items() if vote]
        if members.quorum(granted):
            if self._votes_pre:
                self._campaign(out)
            else:
                self._become_leader(out)
        elif not members.quorum([node for node in members.everybody if self._votes.get(node, True)]):
            self._become_follower(self.term, None, out)  # too many said no

    def _become_leader(self, out: Outputs) -> None:
        self.role, self._leader = LEADER, self.node
        self._elapsed = 0
        self._progress = {}
        self._meet()
        self._rounds.lead()
        self._uncommitted_bytes = sum(len(entry.data) for entry in self.log.between(self.committed, self.log.last))
        if self._is_first():
            self._beat(out)  # nothing was there before, so no entry has to be committed to know what is
        else:
            self._lead_append([(Kind.NOOP, b"")], out)

    def _meet(self) -> None:
        """Keep a progress of every member but ourselves."""
        everybody = set(self.members.everybody) - {self.node}
        for peer in sorted(everybody - self._progress.keys()):
            self._progress[peer] = Progress(self.log.last + 1)
            self._progress[peer].active = True
        for peer in self._progress.keys() - everybody:
            del self._progress[peer]

    # -- leading --

    def _may_propose(self) -> None:
        if self.role != LEADER:
            raise NotLeaderError(self.node, self._leader)
        if self._sealed_at is not None:
            raise SealedError(f"epoch {self.epoch.number} ends at position {self._sealed_at}; ask its successor")
        if self._transferee is not None:
            raise NotLeaderError(self.node, None)

    def _lead_append(self, entries: Sequence[tuple[Kind, bytes]], out: Outputs) -> None:
        position = self.log.last
        made = [Entry(position + number, self.term, kind, data) for number, (kind, data) in enumerate(entries, start=1)]
        self._uncommitted_bytes += sum(len(entry.data) for entry in made)
        self._store(made, out)
        for peer in self._progress:
            self._send_appends(peer, out)
        self._count_stored(out)

    def _send_appends(self, peer: NodeId, out: Outputs) -> None:
        progress, options, log = self._progress[peer], self.options, self.log
        while not progress.full(options.flying_count_max, options.flying_bytes_max):
            previous = progress.next - 1
            term = log.term(previous)
            if term is None:
                self._send_snapshot(peer, out)
                return
            if progress.mode is Mode.REPLICATE and progress.next > log.last:
                return
            entries = log.slice(progress.next, options.append_entries_max, options.append_bytes_max)
            # To one that is probed an empty append goes as well: it asks where the logs meet.
            out.early.append((peer, Append(self.term, previous, term, self.committed, entries)))
            progress.sent(previous + len(entries), sum(len(entry.data) for entry in entries))

    def _answer(self, sender: NodeId, message: Message, out: Outputs) -> None:
        progress = self._progress[sender]
        progress.active = True
        match message:
            case AppendReply(_, matched, rejected, hint, hint_term):
                if matched > self.log.last:
                    return  # nobody honest says so
                if rejected or not matched:
                    if rejected and progress.rejected(rejected, self.log.last_at_most(hint, hint_term), self.log.last):
                        self._send_appends(sender, out)
                    return
                progress.acknowledged(matched)
                self._count_stored(out)
                if sender in self._progress:
                    self._send_appends(sender, out)
                if self._transferee == sender:
                    self._hand_over(out)
            case HeartbeatReply(_, round):
                self._rounds.heard(sender, round)
                self._confirm(out)
                if progress.mode is not Mode.SNAPSHOT and progress.matched < self.log.last:
                    if (
                        progress.mode is Mode.REPLICATE
                        and progress.flying
                        and progress.quiet > self.options.election_ticks // 2
                    ):
                        progress.probe()  # it hears us, and says nothing about what it was sent
                    elif progress.mode is Mode.PROBE:
                        progress.paused = False
                    self._send_appends(sender, out)
            case SnapshotReply(_, position, offset):
                if progress.mode is Mode.SNAPSHOT and position == progress.snapshot_position:
                    progress.quiet = 0
                    self._send_chunk(sender, offset, out)

    def _count_stored(self, out: Outputs) -> None:
        stored = {self.node: self.log.durable}
        for peer, progress in self._progress.items():
            stored[peer] = progress.matched
        position = self.members.committed(stored)
        # Replicas of an entry of an earlier term prove nothing: a later leader may overwrite it (5.4.2, figure 8).
        if position > self.committed and self.log.term(position) == self.term:
            self._commit(position, out)

    def _commit(self, position: int, out: Outputs) -> None:
        if position <= self.committed:
            return
        entries = self.log.between(max(self._told, self.log.offset), position)
        self.committed = self._told = position
        if self._sealed_at is not None and position > self._sealed_at:  # void, like the no-op of a later leader
            entries = tuple(entry for entry in entries if entry.position <= self._sealed_at)
        if entries:
            out.apply.append(Committed(entries))
        if self.role != LEADER:
            return
        self._uncommitted_bytes -= sum(len(entry.data) for entry in entries)
        self._members_committed(out)
        if self.role == LEADER:
            self._confirm(out)  # reads that waited for the first commit of the term

    def _members_committed(self, out: Outputs) -> None:
        position, members = self._configurations[-1]
        if position > self.committed:
            return
        if members.joint:
            self._lead_append([(Kind.MEMBERS, pack_members(members.left()))], out)
        elif self.node not in members.voters:
            # Told once more that the change is committed, the others go on without us.
            for peer, progress in self._progress.items():
                committed = min(self.committed, progress.matched)  # beyond it the peer may hold something else
                out.early.append((peer, Heartbeat(self.term, self._rounds.number, committed)))
            self._become_follower(self.term, None, out)

    def _tick_leader(self, out: Outputs) -> None:
        options = self.options
        if self._elapsed >= options.election_ticks:
            self._elapsed = 0
            if self._transferee is not None:
                self._transferee = None  # it does not answer: go on leading
            if options.check_quorum:
                active = [peer for peer, progress in self._progress.items() if progress.active]
                if not self.members.quorum([*active, self.node]):
                    self._become_follower(self.term, None, out)
                    return
                for progress in self._progress.values():
                    progress.active = False
        if self._elapsed % options.heartbeat_ticks == 0:
            self._beat(out)

    def _beat(self, out: Outputs) -> None:
        round = self._rounds.begin(self._now_ns() if self.options.lease_reads else None)
        for peer, progress in self._progress.items():
            out.early.append((peer, Heartbeat(self.term, round, min(self.committed, progress.matched))))
            progress.quiet += 1
            if progress.mode is Mode.SNAPSHOT and progress.quiet > self.options.election_ticks:
                progress.probe()
        if not self._progress:
            self._confirm(out)

    def _hand_over(self, out: Outputs) -> None:
        target = self._transferee
        if target is not None and self._progress[target].matched == self.log.last:
            out.early.append((target, TimeoutNow(self.term)))

    # -- reads --

    def _read(self, asker: NodeId, ids: tuple[int, ...], out: Outputs) -> None:
        if len(self._rounds) >= self.options.reads_max:
            self._lost(asker, ids, out)
        elif self.options.lease_reads and self._now_ns() < self._rounds.lease_until_ns and self._leads_for_sure():
            self._ready(asker, ids, self.committed, out)
        else:
            if self._rounds.ask(asker, ids, self.committed):
                self._beat(out)
            if not self._progress:
                self._confirm(out)

    def _leads_for_sure(self) -> bool:
        """An entry of this term is committed: before, the commit position may lag behind what clients were told."""
        return self._is_first() or self.log.term(self.committed) == self.term

    def _is_first(self) -> bool:
        return self.term == 1 and self.epoch.first == self.node

    def _confirm(self, out: Outputs) -> None:
        """Rounds that a quorum has answered vouch for the reads that were asked before them."""
        if not self._leads_for_sure():
            return
        confirmed = self._rounds.confirmed(self.node, self.members.quorum)
        if self.options.lease_reads and self._handed_over != self.term:
            timeout_ns = self.options.election_ticks * self.options.tick_ns
            self._rounds.lease(confirmed, int(timeout_ns * (1 - self.options.drift_ratio)))
        for _, asker, ids, position in self._rounds.answered(confirmed):
            # Asked before this term's first commit, it has to wait for that (6.4): it is in `committed` by now.
            known = self._is_first() or self.log.term(position) == self.term
            self._ready(asker, ids, position if known else self.committed, out)
        if self._rounds.wanted:
            self._beat(out)

    def _ready(self, asker: NodeId, ids: tuple[int, ...], position: int, out: Outputs) -> None:
        if asker == self.node:
            out.apply.append(ReadReady(ids, position))
        else:
            out.early.append((asker, ReadIndexReply(self.term, ids, position)))

    def _lost(self, asker: NodeId, ids: tuple[int, ...], out: Outputs) -> None:
        if asker == self.node:  # others hear nothing, and ask again
            out.apply.append(ReadLost(ids, self._leader))

    def _lose_reads(self, out: Outputs) -> None:
        for read in self._rounds.lose():
            self._lost(read.asker, read.ids, out)

    # -- following --

    def _follow(self, leader: NodeId) -> None:
        if self.role == CANDIDATE:
            self._votes.clear()
        self.role, self._leader = FOLLOWER, leader
        self._elapsed = self._heard = 0

    def _append(self, sender: NodeId, message: Append, out: Outputs) -> None:
        self._follow(sender)
        log = self.log
        entries = tuple(entry for entry in message.entries if entry.position > log.offset)
        if message.previous >= log.offset and not log.matches(message.previous, message.previous_term):
            if message.previous <= self.committed:
                out.apply.append(Fatal(self._broken(message.previous, message.previous_term)))
                return
            hint = log.last_at_most(message.previous - 1, message.previous_term)
            out.early.append((sender, AppendReply(self.term, 0, message.previous, hint, log.term(hint) or 0)))
            return
        fresh = log.conflict(entries)
        if fresh is not None:
            if fresh <= self.committed:
                out.apply.append(Fatal(self._broken(fresh, next(e.term for e in entries if e.position == fresh))))
                return
            self._store([entry for entry in entries if entry.position >= fresh], out)
        # What a later message already brought stays, but this one vouches only for its own entries.
        matched = max(message.previous + len(message.entries), self.committed)
        self._commit(min(message.committed, matched), out)
        self._promise(sender, AppendReply(self.term, matched))

    def _broken(self, position: int, term: int) -> str:
        return (
            f"the leader of term {self.term} has an entry of term {term} at position {position}, where one of term "
            f"{self.log.term(position)} is committed here; one of both disks lies"
        )

    def _store(self, entries: Sequence[Entry], out: Outputs) -> None:
        """Put entries into the log and onto the disk; configurations among them count at once."""
        first = entries[0].position
        while self._configurations[-1][0] >= first:
            self._configurations.pop()
        if self._sealed_at is not None and self._sealed_at >= first:
            self._sealed_at = None
        self.log.append(entries)
        out.persist.append(ENTRIES + _pack(entries))
        self._configure(entries)

    def _configure(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.kind == Kind.MEMBERS:
                self._configurations.append((entry.position, unpack_members(entry.data)))
                if self.role == LEADER:
                    self._meet()
            elif entry.kind == Kind.SEAL and self._sealed_at is None:
                self._sealed_at = entry.position

    # -- snapshots --

    def _send_snapshot(self, peer: NodeId, out: Outputs) -> None:
        if self._snapshot is None or self._snapshot.position < self.log.offset:
            return  # the next checkpoint will have one
        progress = self._progress[peer]
        progress.send_snapshot(self._snapshot.position)
        self._send_chunk(peer, 0, out)

    def _send_chunk(self, peer: NodeId, offset: int, out: Outputs) -> None:
        snapshot, progress = self._snapshot, self._progress[peer]
        if snapshot is None or snapshot.position != progress.snapshot_position:
            progress.probe()  # it was replaced by a newer one
            self._send_appends(peer, out)
            return
        if not self._snapshot_bytes:
            self._snapshot_bytes = pack_snapshot(snapshot)
        total = len(self._snapshot_bytes)
        if offset < total:
            data = self._snapshot_bytes[offset : offset + self.options.chunk_bytes]
            out.early.append((peer, SnapshotChunk(self.term, snapshot.position, snapshot.term, offset, total, data)))

    def _chunk(self, sender: NodeId, message: SnapshotChunk, out: Outputs) -> None:
        self._follow(sender)
        position, term = message.position, message.position_term
        if position <= self.committed or self.log.matches(position, term):
            self._commit(min(position, self.log.last), out)
            self._promise(sender, AppendReply(self.term, self.committed))
            return
        if self._incoming is None or self._incoming.name != (position, term, message.total):
            self._incoming = Incoming(position, term, message.total)
        if not self._incoming.take(message.offset, message.data):
            out.early.append((sender, SnapshotReply(self.term, position, len(self._incoming.data))))
            return
        packed, self._incoming = bytes(self._incoming.data), None
        try:
            snapshot = unpack_snapshot(packed)
        except CorruptionError:
            out.early.append((sender, SnapshotReply(self.term, position, 0)))
            return
        out.persist += [SNAPSHOT + piece for piece in pieces(packed)]
        self._adopt(snapshot)
        out.apply.append(Installed(snapshot))
        self._promise(sender, AppendReply(self.term, snapshot.position))

    def _adopt(self, snapshot: Snapshot) -> None:
        self.log.reset(snapshot.position, snapshot.term)
        self.committed = self._told = snapshot.position
        self._configurations = [(snapshot.position, unpack_members(snapshot.core))]
        self._snapshot, self._snapshot_bytes = snapshot, b""
        self._sealed_at = None

    def snapshot(self, position: int, state: bytes) -> Snapshot:
        """What to keep in place of the entries up to a committed position."""
        term = self.log.term(position)
        if term is None or position > self.committed:
            raise UsageError(f"position {position} is not committed in this log ({self.log.offset}..{self.committed})")
        members = next(members for at, members in reversed(self._configurations) if at <= position)
        return Snapshot(position, term, pack_members(members), state)

    def compact(self, snapshot: Snapshot) -> list[bytes]:
        """Forget what the snapshot covers, but for the trailing entries; the records that recovery begins with."""
        position = snapshot.position
        self._snapshot, self._snapshot_bytes = snapshot, b""
        while len(self._configurations) > 1 and self._configurations[1][0] <= position:
            self._configurations.pop(0)
        records = [HARD + _pack((self.term, self.voted_for))]
        first = position + 1
        while first <= self.log.last:  # a record has its limit, what is not committed may be more
            entries = self.log.slice(first, self.log.last, RECORD_BYTES)
            records.append(ENTRIES + _pack(entries))
            first += len(entries)
        self.log.compact(max(self.log.offset, position - self.options.trailing))
        return records

    # -- recovery --

    def restore(self, snapshot: Snapshot) -> None:
        """Start from a snapshot."""
        self._adopt(snapshot)

    def replay(self, record: bytes) -> None:
        """Take a record back."""
        tag, data = record[:1], record[1:]
        try:
            if tag == HARD:
                self.term, self.voted_for = self._hard = _unpack_hard(data)
            elif tag == ENTRIES:
                entries = [entry for entry in _unpack_entries(data) if entry.position > self.log.offset]
                fresh = self.log.conflict(entries)
                if fresh is not None:
                    self._store([entry for entry in entries if entry.position >= fresh], Outputs())
            elif tag == SNAPSHOT:
                snapshot = self._pieces.take(data)
                if snapshot is not None and snapshot.position > self.committed:
                    self._adopt(snapshot)
                    self._installed = snapshot
            else:
                raise CorruptionError(f"the log of {self.node} holds a record {tag!r} that is not raft's")
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(
                f"a record of {len(record)} bytes in the log of {self.node} is none: {error}"
            ) from None

    _installed: Snapshot | None = None

    def recovered(self) -> Outputs:
        """The log is at its end."""
        self._fresh = False
        self.log.syncing(0)
        self.log.synced(0)
        if self.options.lease_reads and self.term:
            self._heard = 0  # in our last life we may have heard of a leader a moment ago
        out = Outputs()
        if self._installed is not None:
            out.apply.append(Installed(self._installed))
            self._installed = None
        return out

    # -- outputs --

    def _promise(self, peer: NodeId, message: Message) -> None:
        """Send what must not be known before all that it rests on is durable."""
        self._promises.append((peer, message))

    def _done(self, out: Outputs) -> Outputs:
        hard = (self.term, self.voted_for)
        if hard != self._hard:
            out.persist.append(HARD + _pack(hard))
            self._hard = hard
            self._self_vote_token = self._token + 1
        if out.persist:
            self._token += 1
            self.log.syncing(self._token)
            out.apply.insert(0, Persisted(self._token))
            out.send += self._promises
        elif self._token > self._durable_token:
            self._held += [(self._token, peer, message) for peer, message in self._promises]
        else:
            out.send += self._promises
        self._promises.clear()
        return out


_pack = msgspec.msgpack.Encoder().encode
_steady = Steady(
    append=Append, reply=AppendReply, entry=Entry, committed=Committed, persisted=Persisted, outputs=Outputs,
    pack=_pack, follower=FOLLOWER, leader=LEADER, replicate=Mode.REPLICATE,
)  # fmt: skip
_unpack_hard = msgspec.msgpack.Decoder(tuple[int, NodeId | None]).decode
_unpack_entries = msgspec.msgpack.Decoder(list[Entry]).decode

__all__ = ["Raft"]
