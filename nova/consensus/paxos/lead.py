"""One leadership: a ballot, the slots proposed under it, and the members that accept them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nova.consensus.core import Entry, Kind
from nova.consensus.paxos.messages import Accept, Accepted, Heartbeat, HeartbeatReply
from nova.consensus.paxos.options import PaxosOptions
from nova.consensus.paxos.peers import Peer
from nova.consensus.paxos.slots import Slots
from nova.consensus.quorum import Quorum
from nova.consensus.rounds import Read, Rounds
from nova.types import NodeId, Outputs


class Lead:
    """What a leader does; what it proposes stands in `slots` before it is sent.

    first    its first slot: everything before it was decided when it began
    next     the slot of its next proposal
    barrier  the last slot that it found in phase 1: when that is decided it knows all that ever was before it
    sealing  where it proposed a SEAL
    """

    def __init__(
        self,
        node: NodeId,
        ballot: int,
        first: int,
        others: Sequence[NodeId],
        *,
        slots: Slots,
        quorum: Quorum,
        options: PaxosOptions,
        rounds: Rounds,
        now_ns: Callable[[], int],
    ) -> None:
        self.ballot, self.first, self.next = ballot, first, first
        self.barrier = first - 1
        self.sealing: int | None = None
        self.peers = {peer: Peer(first) for peer in others}
        self.open_bytes = 0
        self._node, self._slots, self._quorum, self._options = node, slots, quorum, options
        self._rounds, self._now_ns = rounds, now_ns
        self._age = 0
        rounds.lead()

    # -- proposals --

    def make(self, values: Sequence[tuple[Kind, bytes]]) -> list[Entry]:
        """Entries for the next slots."""
        made = [Entry(slot, self.ballot, kind, data) for slot, (kind, data) in enumerate(values, self.next)]
        self.next += len(made)
        for entry in made:
            self.open_bytes += len(entry.data)
            if entry.kind == Kind.SEAL and self.sealing is None:
                self.sealing = entry.position
        return made

    def send(self, committed: int, out: Outputs) -> None:
        """Send what was proposed to everybody who may get more."""
        for name in self.peers:
            self._send(name, committed, out)

    def _send(self, name: NodeId, committed: int, out: Outputs) -> None:
        peer, options = self.peers[name], self._options
        if peer.next <= self._slots.offset:
            peer.next = self._slots.offset + 1  # it asks for what is compacted
        while peer.next < self.next and not peer.full(options.flying_count_max, options.flying_bytes_max):
            entries = self._slots.slice(peer.next, self.next - 1, options.append_entries_max, options.append_bytes_max)
            out.early.append((name, Accept(self.ballot, self.first, committed, entries)))
            peer.sent(entries[-1].position, sum(len(entry.data) for entry in entries))

    def decided(self, durable: int) -> int:
        """Up to which slot a phase-2 quorum accepted; `durable` is how far we did, on disk."""
        accepted = {name: peer.matched for name, peer in self.peers.items()}
        accepted[self._node] = durable
        return self._quorum.committed(accepted)

    def committed(self, entries: Sequence[Entry]) -> None:
        """These of ours are decided."""
        self.open_bytes -= sum(len(entry.data) for entry in entries)

    # -- answers --

    def answer(self, sender: NodeId, message: Accepted | HeartbeatReply, committed: int, out: Outputs) -> None:
        """Take an answer to our ballot."""
        peer = self.peers[sender]
        if message.upto >= self.next:
            return  # nobody honest says so
        peer.active = True
        peer.accepted(message.upto)
        if isinstance(message, HeartbeatReply):
            if message.round > self._rounds.number:
                return
            self._rounds.heard(sender, message.round)
            if message.missing > self._slots.offset:  # else it asks for the snapshot first
                peer.rewind(message.missing, message.round, self._rounds.number)
        self._send(sender, committed, out)

    # -- heartbeats and reads --

    def tick(self, committed: int, out: Outputs) -> bool:
        """Let a tick pass; whether we still lead: False when no phase-2 quorum was heard for an election timeout."""
        self._age += 1
        if self._age % self._options.election_ticks == 0:
            active = [name for name, peer in self.peers.items() if peer.active]
            if not self._quorum.phase2([*active, self._node]):
                return False
            for peer in self.peers.values():
                peer.active = False
        if self._age % self._options.heartbeat_ticks == 0:
            self.beat(committed, out)
        return True

    def beat(self, committed: int, out: Outputs) -> None:
        """Begin a round of heartbeats."""
        round = self._rounds.begin(self._now_ns() if self._options.lease_reads else None)
        for name in self.peers:
            self._beat(name, round, committed, out)

    def tell(self, name: NodeId, committed: int, out: Outputs) -> None:
        """Say once more how far it is decided."""
        self._beat(name, self._rounds.number, committed, out)

    def _beat(self, name: NodeId, round: int, committed: int, out: Outputs) -> None:
        out.early.append((name, Heartbeat(self.ballot, round, self.first, committed, self.peers[name].next - 1)))

    def read(self, asker: NodeId, ids: tuple[int, ...], committed: int, out: Outputs) -> list[Read]:
        """Take reads, if there is room; those that may be answered now."""
        if self._options.lease_reads and committed >= self.barrier and self._now_ns() < self._rounds.lease_until_ns:
            return [Read(0, asker, ids, committed)]
        if self._rounds.ask(asker, ids, committed):
            self.beat(committed, out)
        return self.confirm(committed, out)

    def confirm(self, committed: int, out: Outputs) -> list[Read]:
        """The reads that may be answered: asked before a round that a quorum answered.

        Those who answered had promised nobody a higher ballot. A phase-2 quorum meets every phase-1 quorum, so nobody
        had been elected under one.
        """
        if committed < self.barrier:
            return []
        confirmed = self._rounds.confirmed(self._node, self._quorum.phase2)
        if self._options.lease_reads:
            # A tick may begin right behind a heartbeat: who counts T of them waited T - 1 for certain.
            ticks = self._options.election_ticks - 1
            self._rounds.lease(confirmed, int(ticks * self._options.tick_ns * (1 - self._options.drift_ratio)))
        answered = self._rounds.answered(confirmed)
        if self._rounds.wanted:
            self.beat(committed, out)
        # Asked before what we found in phase 1 was decided, a read has to wait for that: it is decided by now.
        return [read._replace(position=max(read.position, self.barrier)) for read in answered]

    @property
    def full(self) -> bool:
        """No more reads may wait."""
        return len(self._rounds) >= self._options.reads_max
