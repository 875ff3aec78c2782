"""Multi-Paxos as a state machine (Lamport, The part-time parliament 1998; Paxos made simple 2001).

One member is proposer, acceptor and learner. Each slot is decided by Paxos of its own, and all slots share one promise:

- Phase 1 (prepare, promise) asks once about every slot from the proposer's first undecided one on. Who hears a phase-1
  quorum leads: for each slot that somebody accepted it proposes what was accepted under the highest ballot, and no-ops
  for the gaps between. From then on a slot takes one round trip of phase 2 (accept, accepted).
- Quorums of both phases meet, those of one phase need not (Howard, Malkhi & Spiegelman 2016).

Where it goes beyond the papers, or another way:

- Accepting raises the promise to that ballot; so does a leader's heartbeat.
- Promises and acknowledgements leave when what they promise is durable: also one that repeats an earlier promise whose
  sync is still under way (`Outbox`). A prepare leaves when its ballot is durable: who forgot it might make it twice.
- A leader sends while its own disk writes, and counts itself when that is done. Acknowledgements are cumulative.
- Before it campaigns, a member asks whether it would be promised (probe); who has heard of a leader within an election
  timeout refuses, as a leader does that hears a phase-2 quorum. One that does not hear it for that long steps down.
- Accepts and heartbeats carry the commit position. It says something about a slot only to those who accepted it under
  the same ballot; others ask for it (learn), and get entries, or a snapshot when they are compacted. A promise says
  which of its entries are decided, so a proposer catches up while it prepares.
- Linearizable reads by a round of heartbeats. It needs members that meet every phase-1 quorum, which is what a phase-2
  quorum does; and the leader must have decided everything that it found in phase 1. With `lease_reads` a clock that the
  driver reads vouches for it; who restarts keeps silent for an election timeout then, for it may have vowed to.
- A SEAL in a slot ends the log: nothing is told of the slots behind it, whatever was decided there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import msgspec

from nova.consensus.core import (
    Committed,
    Entry,
    Epoch,
    Fatal,
    Installed,
    Kind,
    NotLeaderError,
    OverloadedError,
    ReadLost,
    ReadReady,
    SealedError,
    Snapshot,
    Status,
    checked_members,
    pack_epoch,
)
from nova.consensus.paxos import records
from nova.consensus.paxos.asked import Asked
from nova.consensus.paxos.ballots import Ballots
from nova.consensus.paxos.campaign import Campaign
from nova.consensus.paxos.catchup import CatchUp, Teacher
from nova.consensus.paxos.checks import check, check_promise
from nova.consensus.paxos.lead import Lead
from nova.consensus.paxos.messages import (
    MESSAGES,
    Accept,
    Accepted,
    Heartbeat,
    HeartbeatReply,
    Learn,
    Learned,
    Message,
    Prepare,
    Promise,
    ReadIndex,
    ReadIndexReply,
    Refused,
    SnapshotChunk,
)
from nova.consensus.paxos.options import paxos_options
from nova.consensus.paxos.outbox import Outbox
from nova.consensus.paxos.pace import Pace
from nova.consensus.paxos.reach import Reach
from nova.consensus.paxos.slots import Slots
from nova.consensus.rounds import Read, Rounds
from nova.consensus.snapshots import Pieces, pieces, unpack_snapshot
from nova.errors import CorruptionError, PeerError, UsageError
from nova.types import NodeId, Outputs, Random

FOLLOWER, CANDIDATE, LEADER = "follower", "candidate", "leader"


class Paxos:
    """A member; see `nova.consensus.core.Core`."""

    ordered: ClassVar[bool] = True
    begins_led: ClassVar[bool] = True
    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = MESSAGES

    def __init__(self, node: NodeId, epoch: Epoch, random: Random, now_ns: Callable[[], int]) -> None:
        self.node, self.epoch = node, epoch
        self.members = checked_members(node, epoch)
        self.options = paxos_options(epoch)
        self.quorum = self.options.quorum(self.members)
        self.ballots = Ballots(self.members)
        self._others = [member for member in self.members if member != node]
        self._now_ns = now_ns
        self.slots = Slots(epoch.start - 1)
        self.promised = 0
        self.committed = epoch.start - 1
        self.sealed: int | None = None
        self.role = FOLLOWER
        self._leader: NodeId | None = None
        self._reach = Reach(self.slots)
        # as a proposer
        self._campaign: Campaign | None = None
        self._lead: Lead | None = None
        self._rounds = Rounds()
        self._round_seen = 0
        self._pace = Pace(random, self.options.election_ticks, self.options.backoff_doublings)
        # as a learner
        self._catchup = CatchUp(self.options.learn_ticks)
        self._teacher = Teacher(self.slots, self.options)
        self._pieces = Pieces()
        self._installed: Snapshot | None = None
        self._recovered_commit = 0
        self._asked = Asked(random, self.options.reads_max)
        self._outbox = Outbox(self.options.append_bytes_max, self.options.held_count_max)
        self._fresh = True  # not of an earlier life
        if epoch.first:
            # All have promised the first ballot to it, and nobody accepted anything before: the epoch says so.
            self._promise_ballot(self.ballots.make(1, epoch.first))
            self._outbox.recovered(self.promised, None)
            if epoch.first != node:
                self._leader = epoch.first
                self._pace.hears()

    # -- what others see --

    @property
    def leader(self) -> NodeId | None:
        return self._leader

    @property
    def status(self) -> Status:
        return Status(
            self.node,
            "paxos",
            self.role if self.sealed is None else "sealed",
            self.promised,
            self._leader,
            self.committed,
            self.slots.last,
            self.members,
            {name: peer.matched for name, peer in self._lead.peers.items()} if self._lead is not None else {},
        )

    # -- inputs --

    def step(self, sender: NodeId, message: Message) -> Outputs:
        """Take a message. Raises PeerError for one of a stranger, or about a ballot that its sender can't make."""
        check(self.node, self.members, self.ballots, sender, message)
        out = Outputs()
        match message:
            case Prepare():
                self._prepare(sender, message, out)
            case Promise():
                self._promised(sender, message, out)
            case Accept():
                if self._obeys(sender, message.ballot, message.first, out):
                    self._accept(sender, message, out)
            case Heartbeat():
                if self._obeys(sender, message.ballot, message.first, out):
                    self._heartbeat(sender, message, out)
            case Accepted() | HeartbeatReply():
                if self._lead is not None and message.ballot == self._lead.ballot:
                    self._lead.answer(sender, message, self.committed, out)
                    self._count(out)
                    self._confirm(out)
            case Refused():
                self._refused(message, out)
            case Learn():
                answer = self._teacher.answer(message, self.committed)
                if answer is not None:
                    out.early.append((sender, answer))
            case Learned():
                if self._lead is None:
                    self._learn_from(sender, message, out)
            case SnapshotChunk():
                if self._lead is None and message.position > self.committed:
                    self._chunk(sender, message, out)
            case ReadIndex(_, ids):
                if self._lead is not None and self.sealed is None and not self._lead.full:
                    self._ready(self._lead.read(sender, ids, self.committed, out), out)
            case ReadIndexReply(_, ids, position):
                known = self._asked.answered(ids)
                if known:
                    out.apply.append(ReadReady(known, position))
        return self._done(out)

    def tick(self) -> Outputs:
        """Let a tick pass."""
        out = Outputs()
        self._pace.tick()
        self._catchup.tick()
        if self._lead is not None:
            if not self._lead.tick(self.committed, out):
                self._retreat(out)
            elif not self._others:
                self._confirm(out)
        elif self._pace.due and self.node in self.members:
            self._begin(out, probe=True)
        return self._done(out)

    def lead(self) -> Outputs:
        """Lead as the first, or ask for promises if nobody can lead yet."""
        out = Outputs()
        untouched = self._fresh and self.role == FOLLOWER and self.slots.last == self.epoch.start - 1
        if self.epoch.first == self.node and untouched and self.ballots.round(self.promised) == 1:
            self._begin_to_lead(self.promised, (), out)
        elif not self.promised and self.node in self.members:
            self._begin(out)
        return self._done(out)

    def propose(self, entries: Sequence[tuple[Kind, bytes]]) -> Outputs:
        """Propose entries, in order. Raises UsageError for MEMBERS: they change from epoch to epoch."""
        lead = self._may_propose()
        if any(kind == Kind.MEMBERS for kind, _ in entries):
            raise UsageError("the members of a paxos epoch do not change; seal it with a successor that has others")
        size = sum(len(data) for _, data in entries)
        options = self.options
        if lead.open_bytes and lead.open_bytes + size > options.open_bytes_max:
            raise OverloadedError(
                f"{lead.open_bytes} bytes are proposed and not decided, {size} more are too many; the limit is "
                f"{options.open_bytes_max}: try again when some are decided"
            )
        if lead.next - 1 - self.committed + len(entries) > options.open_slots_max:
            raise OverloadedError(
                f"{lead.next - 1 - self.committed} slots are open, {len(entries)} more are too many; the limit is "
                f"{options.open_slots_max}: try again when some are decided"
            )
        out = Outputs()
        self._propose(lead, entries, out)
        return self._done(out)

    def _may_propose(self) -> Lead:
        at = self.sealed
        if at is None and self._lead is not None:
            at = self._lead.sealing
        if at is not None:
            raise SealedError(f"epoch {self.epoch.number} ends at position {at}; ask its successor", 50_000_000)
        if self._lead is None:
            raise NotLeaderError(self.node, self._leader)
        return self._lead

    def seal(self, successor: Epoch) -> Outputs:
        """Propose the end of this epoch."""
        if successor.number != self.epoch.number + 1:
            raise UsageError(f"epoch {successor.number} can't follow epoch {self.epoch.number}")
        checked_members(self.node, successor)
        return self.propose([(Kind.SEAL, pack_epoch(successor))])

    def tell(self, peer: NodeId, position: int) -> Outputs:
        """Let a member that waits for this slot know now that it is decided. Nothing comes of it while it is not."""
        out = Outputs()
        if self._lead is not None and self.committed >= position and peer in self._lead.peers:
            self._lead.tell(peer, self.committed, out)
        return out

    def read(self, id: int) -> Outputs:
        """Ask for a position for a linearizable read. Raises SealedError as well: the successor knows more."""
        if self.sealed is not None:
            raise SealedError(
                f"epoch {self.epoch.number} ended at position {self.sealed}; ask its successor", 50_000_000
            )
        out = Outputs()
        if self._lead is not None:
            if self._lead.full:
                raise OverloadedError(
                    f"{self.options.reads_max} reads wait for a round; try again when some are answered", 50_000_000
                )
            self._ready(self._lead.read(self.node, (id,), self.committed, out), out)
        elif self._leader is None:
            raise NotLeaderError(self.node, None)
        else:
            self._asked.ask(self._leader, id, out)
        return self._done(out)

    def advance(self, token: int) -> Outputs:
        """Everything up to this token is durable."""
        out = Outputs()
        self._outbox.advance(token, out)
        self._reach.synced(self._outbox.durable)
        if self._campaign is not None and not self._campaign.probe and self._outbox.settled(self.promised):
            self._campaign.promised.add(self.node)
            self._count_promises(out)
        self._count(out)
        self._confirm(out)
        return self._done(out)

    # -- phase 1 --

    def _begin(self, out: Outputs, *, probe: bool = False) -> None:
        """Ask whether we would be promised a ballot, or for the promise."""
        self.role, self._leader = CANDIDATE, None
        self._asked.lose(out)
        self._pace.rest()
        round = max(self.ballots.round(self.promised), self._round_seen) + 1
        ballot = self.ballots.make(round, self.node)
        self._campaign = Campaign(ballot, probe=probe)
        request = Prepare(ballot, self.committed + 1, probe)
        if probe:
            self._campaign.promised.add(self.node)
            out.early += [(peer, request) for peer in self._others]
            self._count_promises(out)
        else:
            self._pace.campaigns()
            self._promise_ballot(ballot)  # counted when it is durable
            out.send += [(peer, request) for peer in self._others]

    def _promise_ballot(self, ballot: int) -> None:
        self.promised = ballot
        self._reach.promise(ballot)

    def _prepare(self, sender: NodeId, message: Prepare, out: Outputs) -> None:
        ballot = message.ballot
        # Who hears a leader keeps to it: a member that comes back does not depose it, and a lease is worth something.
        kept = self._lead is not None or self._pace.led
        late = ballot <= self.promised if message.probe else ballot < self.promised
        if late or (kept and ballot != self.promised):
            self._outbox.promise(sender, Refused(ballot, self.promised))
            return
        if ballot > self.promised and not message.probe:
            self._yield_to(ballot, out)
        entries: tuple[Entry, ...] = ()
        following = 0
        if not message.probe and message.first > self.slots.offset:
            options = self.options
            entries, following = self.slots.page(message.first, options.append_entries_max, options.append_bytes_max)
        self._outbox.promise(
            sender,
            Promise(ballot, message.first, self.committed, self.slots.offset, entries, following, message.probe),
        )

    def _promised(self, sender: NodeId, message: Promise, out: Outputs) -> None:
        campaign = self._campaign
        if campaign is None or (message.ballot, message.probe) != (campaign.ballot, campaign.probe):
            return
        if max(message.first, self.committed + 1) <= message.compacted:
            # What it forgot was decided, and nothing else will tell: get its snapshot, and campaign then.
            self._retreat(out)
            out.early.append((sender, self._catchup.ask(sender, self.committed)))
            return
        if not message.probe:
            check_promise(sender, message, max(message.committed, self.committed) + self.options.open_slots_max)
            self._learn([entry for entry in message.entries if entry.position <= message.committed], out)
            lie = campaign.heard(entry for entry in message.entries if entry.position > message.committed)
            if lie is not None:
                out.apply.append(Fatal(self._broken(lie)))
                return
            following = message.following if message.first > message.compacted else self.committed + 1
            if following:
                out.early.append((sender, Prepare(campaign.ballot, max(following, self.committed + 1))))
                return
        campaign.promised.add(sender)
        self._count_promises(out)

    def _count_promises(self, out: Outputs) -> None:
        campaign = self._campaign
        if campaign is None or not self.quorum.phase1(campaign.promised):
            return
        if campaign.probe:
            self._begin(out)
            return
        # What we accepted ourselves counts, too, whether or not our own promise is needed.
        lie = campaign.heard(self.slots.held(self.committed + 1))
        if lie is not None:
            out.apply.append(Fatal(self._broken(lie)))
            return
        self._campaign = None
        self._begin_to_lead(campaign.ballot, campaign.values(self.committed + 1), out)

    def _begin_to_lead(self, ballot: int, values: Sequence[tuple[Kind, bytes]], out: Outputs) -> None:
        """Nobody else can have decided anything that is neither known here nor among the values."""
        first = self.committed + 1
        lead = self._lead = Lead(
            self.node,
            ballot,
            first,
            self._others,
            slots=self.slots,
            quorum=self.quorum,
            options=self.options,
            rounds=self._rounds,
            now_ns=self._now_ns,
        )
        self.role, self._leader = LEADER, self.node
        self._reach.begin(first)
        self._pace.succeeds()
        if self.sealed is None:
            self._propose(lead, values, out)
        lead.barrier = lead.next - 1
        lead.beat(self.committed, out)

    def _refused(self, message: Refused, out: Outputs) -> None:
        if self.ballots.owner(message.promised) is None:
            return
        self._round_seen = max(self._round_seen, self.ballots.round(message.promised))
        if message.promised > message.ballot == self.promised and self.role != FOLLOWER:
            self._retreat(out)  # pre-empted: try again, later by chance

    def _yield_to(self, ballot: int, out: Outputs) -> None:
        """A higher ballot of somebody else: promise it, and be nothing but an acceptor."""
        self._retreat(out)
        self._promise_ballot(ballot)

    def _retreat(self, out: Outputs) -> None:
        if self._lead is not None:
            self._lead = None
            for read in self._rounds.lose():
                if read.asker == self.node:
                    out.apply.append(ReadLost(read.ids, None))
            self._pace.silent()
        self._asked.lose(out)
        self._campaign = None
        self.role, self._leader = FOLLOWER, None
        self._pace.rest()

    # -- phase 2 --

    def _propose(self, lead: Lead, values: Sequence[tuple[Kind, bytes]], out: Outputs) -> None:
        made = lead.make(values)
        for entry in made:
            fresh = self.slots.put(entry)
            assert fresh, f"slot {entry.position} of ballot {lead.ballot} is taken"
        self._outbox.accepted += made
        lead.send(self.committed, out)

    def _count(self, out: Outputs) -> None:
        if self._lead is not None:
            position = self._lead.decided(self._reach.durable)
            if position > self.committed:
                self._commit(position, out)

    def _obeys(self, sender: NodeId, ballot: int, first: int, out: Outputs) -> bool:
        """A leader's word; whether it counts here."""
        if ballot < self.promised:
            self._outbox.promise(sender, Refused(ballot, self.promised))
            return False
        if ballot > self.promised:
            self._yield_to(ballot, out)
        self._reach.begin(first)
        if self._leader != sender:
            self._asked.lose(out)
        self._campaign = None
        self.role, self._leader = FOLLOWER, sender
        self._pace.hears()
        return True

    def _accept(self, sender: NodeId, message: Accept, out: Outputs) -> None:
        window = self.committed + self.options.open_slots_max
        for entry in message.entries:
            if entry.position > window:
                break  # it will come again
            if entry.position > self.committed:
                if self.slots.put(entry):
                    self._outbox.accepted.append(entry)
            elif self._differs(entry):
                out.apply.append(Fatal(self._broken(entry)))
                return
        self._reach.extend(self.committed)
        self._follow(message.committed, out)
        self._outbox.promise(sender, Accepted(message.ballot, self._reach.upto))

    def _heartbeat(self, sender: NodeId, message: Heartbeat, out: Outputs) -> None:
        self._reach.extend(self.committed)
        self._follow(message.committed, out)
        if self.committed < message.committed and self._catchup.due(self.committed):
            out.early.append((sender, self._catchup.ask(sender, self.committed)))
        reach = self._reach
        missing = reach.upto + 1 if reach.upto < message.sent else 0
        reply = HeartbeatReply(message.ballot, message.round, reach.durable, missing)
        if not self._outbox.settled(self.promised):
            self._outbox.promise(sender, reply)  # it shows that we promised this ballot
        else:
            out.early.append((sender, reply))

    # -- learning --

    def _follow(self, committed: int, out: Outputs) -> None:
        """The leader of the promised ballot knows that slots up to this one are decided: as it proposed them."""
        position = self.committed
        while position < committed and self.slots.term(position + 1) == self.promised:
            position += 1
        if position > self.committed:
            self._commit(position, out)

    def _commit(self, position: int, out: Outputs) -> None:
        """Slots up to this one hold what was decided."""
        if self.sealed is not None:
            return
        entries = self.slots.between(self.committed, position)
        for number, entry in enumerate(entries, 1):
            if entry.kind == Kind.SEAL:
                self.sealed = entry.position
                entries = entries[:number]
                break
        self.committed = entries[-1].position
        out.apply.append(Committed(entries))
        if self._lead is not None:
            self._lead.committed(entries)

    def _learn(self, entries: Iterable[Entry], out: Outputs) -> None:
        """These, consecutive, are decided: no matter what was promised."""
        position = self.committed
        for entry in entries:
            if entry.position <= position:
                continue
            if entry.position != position + 1:
                break
            held = self.slots.get(entry.position)
            if held is not None and held.term >= entry.term and self._differs(entry):
                out.apply.append(Fatal(self._broken(entry)))
                return
            if self.slots.put(entry):
                self._outbox.learned.append(entry)
            position += 1
        if position > self.committed:
            self._commit(position, out)

    def _differs(self, entry: Entry) -> bool:
        held = self.slots.get(entry.position)
        return held is not None and (held.kind, held.data) != (entry.kind, entry.data)

    def _broken(self, entry: Entry) -> str:
        return (
            f"slot {entry.position} was accepted with another value here than under ballot {entry.term}, which cannot "
            "be; one of the disks lies, or two members have one name"
        )

    def _learn_from(self, sender: NodeId, message: Learned, out: Outputs) -> None:
        before = self.committed
        self._learn(message.entries, out)
        if before < self.committed < message.committed:
            out.early.append((sender, self._catchup.ask(sender, self.committed)))

    def _chunk(self, sender: NodeId, message: SnapshotChunk, out: Outputs) -> None:
        if message.total > self.options.snapshot_bytes_max:
            raise PeerError(
                f"{sender} sends a snapshot of {message.total} bytes; the limit is {self.options.snapshot_bytes_max}"
            )
        grown, packed = self._catchup.take(sender, message)
        if packed is None:
            if grown:
                out.early.append((sender, self._catchup.ask(sender, self.committed)))
            return
        try:
            snapshot = unpack_snapshot(packed)
            if snapshot.position != message.position:
                raise CorruptionError(f"a snapshot of {snapshot.position} came as one of {message.position}")
            self._adopt(snapshot)
        except CorruptionError:
            return  # asked for again
        out.persist += [records.SNAPSHOT + piece for piece in pieces(packed)]
        out.apply.append(Installed(snapshot))
        self._reach.extend(self.committed)

    # -- reads --

    def _confirm(self, out: Outputs) -> None:
        if self._lead is not None and (len(self._rounds) or self.options.lease_reads):
            self._ready(self._lead.confirm(self.committed, out), out)

    def _ready(self, reads: Iterable[Read], out: Outputs) -> None:
        for _, asker, ids, position in reads:
            if asker == self.node:
                out.apply.append(ReadReady(ids, position))
            else:
                out.early.append((asker, ReadIndexReply(0, ids, position)))

    # -- snapshots --

    def _adopt(self, snapshot: Snapshot) -> None:
        sealed = records.read_sealed(snapshot.core)
        self.slots.skip(snapshot.position, snapshot.term)
        self.committed = snapshot.position
        self.sealed = sealed
        self._teacher.keep(snapshot)

    def snapshot(self, position: int, state: bytes) -> Snapshot:
        """What to keep in place of the slots up to a decided one."""
        term = self.slots.term(position)
        if term is None or position > self.committed:
            raise UsageError(f"position {position} is not decided here ({self.slots.offset}..{self.committed})")
        sealed = self.sealed if self.sealed is not None and self.sealed <= position else None
        return Snapshot(position, term, records.write_sealed(sealed), state)

    def compact(self, snapshot: Snapshot) -> list[bytes]:
        """Forget what the snapshot covers, but for the trailing slots; the records that recovery begins with."""
        position = snapshot.position
        self._teacher.keep(snapshot)
        held = list(self.slots.held(position + 1))
        self.slots.compact(max(self.slots.offset, position - self.options.trailing))
        return records.written([(records.LEARNED, held)], self.promised, self.committed, self.options.append_bytes_max)

    # -- recovery --

    def restore(self, snapshot: Snapshot) -> None:
        """Start from a snapshot."""
        self._adopt(snapshot)

    def replay(self, record: bytes) -> None:
        """Take a record back."""
        tag = record[:1]
        try:
            if tag in (records.ACCEPTED, records.LEARNED):
                promised, committed, entries = records.read(record)
                self.promised = max(self.promised, promised)
                self._recovered_commit = max(self._recovered_commit, committed)
                for entry in entries:
                    self.slots.put(entry)
            elif tag == records.SNAPSHOT:
                snapshot = self._pieces.take(record[1:])
                if snapshot is not None and snapshot.position > self.committed:
                    self._adopt(snapshot)
                    self._installed = snapshot
            else:
                raise CorruptionError(f"the log of {self.node} holds a record {tag!r} that is not paxos'")
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(
                f"a record of {len(record)} bytes in the log of {self.node} is none: {error}"
            ) from None

    def recovered(self) -> Outputs:
        """The log is at its end."""
        self._fresh = False
        self._reach.promise(self.promised)
        out = Outputs()
        if self._installed is not None:
            out.apply.append(Installed(self._installed))
            self._installed = None
        position = self.committed
        while position < self._recovered_commit and self.slots.get(position + 1) is not None:
            position += 1
        if position > self.committed:
            self._commit(position, out)
        self._outbox.recovered(self.promised, self.sealed)
        if self.options.lease_reads and self.promised:
            self._pace.heard = 0  # in our last life we may have vowed to promise nobody else for so long
        return out

    def _done(self, out: Outputs) -> Outputs:
        self._reach.extend(self.committed)
        if self._outbox.close(out, self.promised, self.committed, self.sealed):
            self._reach.syncing(self._outbox.token)
        elif self._outbox.token == self._outbox.durable:
            self._reach.settle()
        return out


__all__ = ["Paxos"]
