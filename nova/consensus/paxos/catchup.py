"""Members that lack what others know to be decided: when to ask, what to answer, and snapshots on their way."""

from __future__ import annotations

from nova.consensus.core import Snapshot
from nova.consensus.paxos.messages import Learn, Learned, SnapshotChunk
from nova.consensus.paxos.options import PaxosOptions
from nova.consensus.paxos.slots import Slots
from nova.consensus.snapshots import Incoming, pack_snapshot
from nova.types import NodeId


class CatchUp:
    """Asks one peer at a time. Slots on their way as accepts are not asked for: only who made no progress between two
    words of the leader is behind, and it waits `patience` ticks before it asks again."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._age = patience
        self._mark = -1
        self._incoming: Incoming | None = None
        self._source: NodeId | None = None

    def tick(self) -> None:
        """Let a tick pass."""
        self._age += 1

    def due(self, committed: int) -> bool:
        """The leader knows more than `committed`, which is what is known here; whether to ask now."""
        stuck = self._mark == committed
        self._mark = committed
        return stuck and self._age >= self._patience

    def ask(self, peer: NodeId, committed: int) -> Learn:
        """What to ask of a peer."""
        self._age = 0
        incoming = self._incoming
        if incoming is None or self._source != peer or incoming.name[0] <= committed:
            self._incoming = None
            return Learn(0, committed + 1)
        position, term, total = incoming.name
        return Learn(0, committed + 1, position, term, total, len(incoming.data))

    def take(self, sender: NodeId, chunk: SnapshotChunk) -> tuple[bool, bytes | None]:
        """A chunk; whether it brought more, and the packed snapshot when it was the last one."""
        name = (chunk.position, chunk.position_term, chunk.total)
        if self._incoming is None or self._source != sender or self._incoming.name != name:
            # Two members' snapshots of one position need not be the same bytes: never a mix of both.
            self._incoming, self._source = Incoming(*name), sender
        before = len(self._incoming.data)
        whole = self._incoming.take(chunk.offset, chunk.data)
        if not whole:
            return len(self._incoming.data) > before, None
        packed, self._incoming = bytes(self._incoming.data), None
        return True, packed


class Teacher:
    """Tells others what was decided: entries while they are in memory, else a snapshot, chunk by chunk."""

    def __init__(self, slots: Slots, options: PaxosOptions) -> None:
        self._slots, self._options = slots, options
        self.snapshot: Snapshot | None = None
        self._packed = b""

    def keep(self, snapshot: Snapshot) -> None:
        """The newest snapshot."""
        self.snapshot, self._packed = snapshot, b""

    def answer(self, message: Learn, committed: int) -> Learned | SnapshotChunk | None:
        """What to tell one who asks; None if there is nothing."""
        options, snapshot = self._options, self.snapshot
        if message.first > committed:
            return None
        if message.first > self._slots.offset:
            entries = self._slots.slice(message.first, committed, options.append_entries_max, options.append_bytes_max)
            return Learned(0, committed, entries)
        if snapshot is None:
            return None
        if not self._packed:
            self._packed = pack_snapshot(snapshot)
        total = len(self._packed)
        same = (message.position, message.position_term, message.total) == (snapshot.position, snapshot.term, total)
        offset = message.offset if same and 0 <= message.offset < total else 0
        data = self._packed[offset : offset + options.chunk_bytes]
        return SnapshotChunk(0, snapshot.position, snapshot.term, offset, total, data)
