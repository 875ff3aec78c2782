"""How a member that missed something gets it: votes and entries again, new views, and the state as a whole."""

from __future__ import annotations

import msgspec

from nova.consensus.core import Installed, Kind, Snapshot
from nova.consensus.pbft.base import STABLE, STATE
from nova.consensus.pbft.evidence import Wrong
from nova.consensus.pbft.messages import (
    Commit,
    Ordered,
    Prepare,
    PrePrepare,
    Stable,
    StateAsk,
    StateChunk,
    Status,
    encode,
    entry_digest,
    state_digest,
)
from nova.consensus.pbft.slots import Slot
from nova.consensus.pbft.viewing import Viewing
from nova.consensus.snapshots import pack_snapshot, pieces
from nova.types import NodeId, Outputs

IDLE_STATUSES = 5
"""A member that waits for nothing tells its status this many times more rarely."""


class Transfer:
    """A state on its way from one member; a wrong one, or none, and the next member is asked.

    target   what a quorum signed: no other state of that position is taken, and not a byte more than its size
    """

    def __init__(self, target: Stable, sources: tuple[NodeId, ...]) -> None:
        self.target = target
        self._sources = sources
        self._number = 0
        self.data = bytearray()
        self.idle = 0

    @property
    def source(self) -> NodeId:
        return self._sources[self._number % len(self._sources)]

    def ask(self) -> StateAsk:
        return StateAsk(self.target.position, self.target.digest, len(self.data))

    def elsewhere(self) -> None:
        """This source is of no use."""
        self._number += 1
        self.data.clear()
        self.idle = 0

    def take(self, sender: NodeId, message: StateChunk) -> bool | None:
        """A chunk: True if the state is whole and right, False if it is wrong, None if more is to come."""
        target = self.target
        if sender != self.source or (message.position, message.digest) != (target.position, target.digest):
            return None
        if message.offset != len(self.data) or not message.data:
            return None
        self.idle = 0
        self.data += message.data
        if len(self.data) < target.size:
            return None
        return len(self.data) == target.size and state_digest(bytes(self.data)) == target.digest


class CatchingUp(Viewing):
    """A member that is behind, and one that helps such."""

    def _begin_catching_up(self) -> None:
        self._transfer: Transfer | None = None
        self._ticks = 0
        self._told_status = 0
        self._answered: dict[tuple[NodeId, type], int] = {}  # (peer, what it said) -> tick of the last answer to it
        self._seal_data_of = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode

    def _tick_status(self, out: Outputs) -> None:
        self._ticks += 1
        waits = (
            not self.active
            or len(self.requests)
            or self.mark.position > self.executed
            or any(position > self.executed for position in self.slots)
        )
        every = self.options.status_ticks * (1 if waits else IDLE_STATUSES)
        if self._ticks - self._told_status >= every:
            self._told_status = self._ticks
            self._say_all(Status(self.view, self.active, self.executed, self.mark.position))
            self._ask_entries()
            if not self.active and len(self._held) <= self.options.held_count_max:
                self._promise_all(self._own_change())
            if self.sealed_at is None and self.node in self._seal_votes:
                self._say_all(self._seal_votes[self.node])
        self._fetch(out)

    # -- helping --

    def _status(self, sender: NodeId, message: Status, out: Outputs) -> None:
        if not self._answers(sender, Status) or len(self._held) > self.options.held_count_max:
            return
        if message.stable < self.mark.position:
            self._say(sender, self.mark)
        own = self._votes[self.node]
        for position in sorted(own):
            if position > message.stable:
                self._promise(sender, own[position])
        if message.view < self.view or (message.view == self.view and self.active and not message.active):
            if not self.active:
                self._promise(sender, self._own_change())
            elif self._new_view is not None:
                self._promise(sender, self._new_view)
        self._tell_ordered(sender, message.position)
        if self.active and message.active and message.view == self.view:
            self._tell_votes(sender, message.position)

    def _answers(self, peer: NodeId, what: type) -> bool:
        """One answer a tick: the question is small, what it brings back is not."""
        if self._answered.get((peer, what)) == self._ticks:
            return False
        self._answered[peer, what] = self._ticks
        return True

    def _tell_ordered(self, peer: NodeId, position: int) -> None:
        entries: list[tuple[int, Kind, bytes]] = []
        size = 0
        for place in range(max(position, 0) + 1, min(position + self.options.resend_count_max, self.executed) + 1):
            slot = self.slots.get(place)
            if slot is None or slot.decided is None:
                break
            content = slot.contents[slot.decided]
            size += len(content[1])
            if entries and size > self.options.resend_bytes_max:
                break
            entries.append((place, *content))
        if entries:
            self._promise(peer, Ordered(tuple(entries)))

    def _tell_votes(self, peer: NodeId, position: int) -> None:
        size = 0
        first = max(position, self.low.position) + 1
        for place in range(first, first + self.options.resend_count_max):
            slot = self.slots.get(place)
            if slot is None or slot.view != self.view:
                continue
            if self.leads:
                kind, data = slot.contents[slot.digest]
                size += len(data)
                if size > self.options.resend_bytes_max and place > first:
                    return
                self._promise(peer, PrePrepare(self.view, place, slot.digest, kind, data, self._proof_of(slot)))
            else:
                self._promise(peer, Prepare(self.view, place, slot.digest))
            if slot.prepared:
                self._promise(peer, Commit(self.view, place, slot.digest))

    def _proof_of(self, slot: Slot) -> tuple[tuple[NodeId, bytes], ...]:
        kind, data = slot.contents[slot.digest]
        if kind != Kind.SEAL:
            return ()
        return tuple((who, vote.signature) for who, vote in sorted(self._seal_votes.items()) if vote.successor == data)

    def _ordered(self, sender: NodeId, message: Ordered, out: Outputs) -> None:
        """What f + 1 members say is decided is: one of them is correct."""
        for position, kind, data in message.entries[: self.options.resend_count_max]:
            if not self.executed < position <= self.executed + self.options.window or not self._within(position):
                continue
            if self.sealed_at is not None or len(data) > self.options.entry_bytes_max:
                continue
            slot = self._slot(position)
            if slot.decided is not None or sender in slot.claims:
                continue
            digest = entry_digest(kind, data)
            slot.contents.setdefault(digest, (kind, data))
            slot.claims[sender] = digest
            if sum(claim == digest for claim in slot.claims.values()) > self.f:
                self._decide(slot, digest, out)

    # -- the state as a whole --

    def _stable_came(self, sender: NodeId, message: Stable, out: Outputs) -> None:
        if message.position <= self.mark.position:
            return
        if not self._proved(message):
            self.evidence.count(sender, Wrong.SIGNATURE)
            return
        self._stable(message, out)

    def _fetch(self, out: Outputs) -> None:
        """Ask for the state at the mark, if what leads there is no longer to be had."""
        if self.mark.position <= self.executed:
            self._transfer = None
            return
        if self._transfer is None or self._transfer.target.position < self.mark.position:
            # Begin with those who signed: they had it. Not all at the same one: `others` differ in their order.
            signers = {signer for signer, _ in self.mark.proof}
            start = self.members.index(self.node)
            turned = self.members[start + 1 :] + self.members[:start]
            sources = tuple(sorted(turned, key=lambda member: member not in signers))
            self._transfer = Transfer(self.mark, sources)
            return  # a tick of patience: it may be on its way as entries
        transfer = self._transfer
        transfer.idle += 1
        if transfer.idle == 1:
            self._say(transfer.source, transfer.ask())
        elif transfer.idle > self.options.status_ticks:
            transfer.elsewhere()

    def _state_asked(self, sender: NodeId, message: StateAsk) -> None:
        held = self._states.get(message.position)
        if held is None or held[0] != message.digest or not 0 <= message.offset < len(held[1]):
            if self.mark.position > message.position:
                self._say(sender, self.mark)
            return
        data = held[1][message.offset : message.offset + self.options.chunk_bytes]
        self._say(sender, StateChunk(message.position, message.digest, message.offset, data))

    def _state_came(self, sender: NodeId, message: StateChunk, out: Outputs) -> None:
        transfer = self._transfer
        if transfer is None or transfer.target.position <= self.executed:
            return
        before = len(transfer.data)
        verdict = transfer.take(sender, message)
        if verdict is None:
            if len(transfer.data) > before:
                self._say(transfer.source, transfer.ask())
                transfer.idle = 1
            return
        if not verdict:
            self.evidence.count(sender, Wrong.STATE)
            transfer.elsewhere()
            return
        self._transfer = None
        snapshot = self._snapshot_of(transfer.target, bytes(transfer.data))
        out.persist += [STATE + piece for piece in pieces(pack_snapshot(snapshot))]
        out.persist.append(STABLE + encode(transfer.target))
        self._adopt(transfer.target, snapshot, bytes(transfer.data))
        out.apply.append(Installed(snapshot))
        self._execute(out)

    def _snapshot_of(self, stable: Stable, packed: bytes) -> Snapshot:
        seal, state = self._seal_data_of(packed)
        return Snapshot(stable.position, 0, seal, state)

    def _adopt(self, stable: Stable, snapshot: Snapshot, packed: bytes) -> None:
        """Stand on a state in place of the entries up to it."""
        self.executed = stable.position
        self._states = {stable.position: (stable.digest, packed)}
        self._let_go(stable)
        if stable.position > self.mark.position:
            self.mark = stable
        if snapshot.core:
            self.sealed_at, self.seal_data = stable.position, snapshot.core
            self.requests.clear()
        self.requests.keep_own(self.node)
        self._next = max(self._next, self.executed + 1)
        self._stalled = 0
