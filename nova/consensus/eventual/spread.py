"""How dots reach every member, also one that was away: what all cores that deliver streams share.

A proposer pushes a dot to all when it is on its own disk: so no number is ever given twice. Members tell each other
what they have (`Marks`); who sees for a whole beat that it lacks something asks for it (`Fetch`), from whomever has
it, whether its proposer lives or not. Who has forgotten it says that it is gone, and sends its snapshot, chunk by
chunk; what was delivered beyond that snapshot is delivered again on top of it.

A dot is kept until it is on every member's disk. Where more than half have to store one (`_droppable`), those that a
silent member lacks are dropped beyond `retained_max` of a stream, and that member gets a snapshot: everybody who is
heard has them then. Else nobody drops them: two who had dropped what the other lacks could help each other no more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from nova.consensus.core import (
    Committed,
    Entry,
    Epoch,
    Fatal,
    Installed,
    Kind,
    Persisted,
    ReadLost,
    ReadReady,
    Snapshot,
    checked_members,
)
from nova.consensus.eventual.messages import Fetch, Gone, Marks, Push, SnapshotAsk, SnapshotChunk, SpreadMessage
from nova.consensus.eventual.options import SpreadOptions
from nova.consensus.eventual.streams import Dot, Streams, Vector, covers, joined
from nova.consensus.snapshots import Incoming, Pieces, pack_snapshot, pieces, unpack_snapshot
from nova.errors import CorruptionError, PeerError, UsageError
from nova.types import NodeId, Outputs, Random

DOTS: Final = b"D"
SNAPSHOT: Final = b"S"
"""First byte of a record: dots, a piece of an installed snapshot."""
RECORD_BYTES: Final = 1 << 20
PULL_TICKS: Final = 100
"""A peer that sends no chunk of a snapshot for so long is given up."""


class _Pull:
    __slots__ = ("incoming", "peer", "quiet")

    def __init__(self, peer: NodeId) -> None:
        self.peer = peer
        self.incoming = Incoming(0, 0, 0)
        self.quiet = 0


class Spread(ABC):
    """The streams of a member, their records, and the messages about them."""

    options: SpreadOptions
    snapshot_wanted = False
    """A peer needs a newer snapshot than there is: the driver may make one although little was applied since."""

    def __init__(self, node: NodeId, epoch: Epoch, streams: int, random: Random, now_ns: Callable[[], int]) -> None:
        self.members = checked_members(node, epoch)
        if node not in self.members:
            raise UsageError(f"{node} is not among {list(self.members)}; every replica of {epoch.protocol} is a member")
        self.node, self.epoch = node, epoch
        self._random = random
        self._peers = tuple(member for member in self.members if member != node)
        self.streams = Streams(streams)
        self.sealed = False
        self._now = 0
        self._have: dict[NodeId, list[int]] = {member: [0] * streams for member in self.members}
        self._heard = dict.fromkeys(self._peers, 0)
        self._durable = [0] * streams
        self._writing: deque[tuple[int, int, int]] = deque()  # (token, owner, number)
        self._fresh: list[Dot] = []
        self._known = [0] * streams  # what somebody had at the last beat
        self._asked = -self.options.resend_ticks
        self._source = 0
        self._waiting: list[tuple[int, Vector]] = []
        self._pull: _Pull | None = None
        self._pieces = Pieces()
        self._snapshot: Snapshot | None = None
        self._snapshot_bytes = b""
        self._snapshot_vector: Vector = (0,) * streams
        self._restored: Vector | None = None
        self._installed: Snapshot | None = None
        self._again: list[Dot] = []
        self._token = self._durable_token = 0
        self._promises: list[tuple[NodeId, Any]] = []
        self._held: deque[tuple[int, NodeId, Any]] = deque()

    # -- what a protocol adds --

    @abstractmethod
    def _bounds(self) -> list[int]:
        """Up to where each stream may be delivered."""

    @abstractmethod
    def _until(self) -> Vector | None:
        """Up to where dots are taken; None: as far as the window reaches."""

    @abstractmethod
    def _reached(self, owners: Iterable[int], out: Outputs) -> None:
        """More of these streams is on this disk."""

    @abstractmethod
    def _marked(self, sender: NodeId, message: Marks, out: Outputs) -> None:
        """A member has more on its disk."""

    @abstractmethod
    def _droppable(self) -> Vector | None:
        """Up to where dots are on so many disks that silent members need not be waited for; None: nowhere."""

    @abstractmethod
    def _ended(self) -> Entry | None:
        """The seal, if this epoch has one and everything before it is delivered."""

    def _taken(self, dot: Dot) -> None:  # noqa: B027  # who has nothing to add leaves it
        """A dot came."""

    def _safe(self) -> Vector:
        return tuple(self._bounds())

    # -- what others see --

    @property
    def frontier(self) -> Vector:
        """All that was delivered here: what a session has seen that was served here."""
        return tuple(self.streams.delivered)

    def _position(self, owner: int, number: int) -> int:
        return self.epoch.start + (number - 1) * self.streams.count + owner

    def _last_position(self, vector: Iterable[int]) -> int:
        positions = [self._position(owner, number) for owner, number in enumerate(vector) if number]
        return max(positions, default=self.epoch.start - 1)

    def _silent(self, peer: NodeId) -> bool:
        return self._now - self._heard[peer] > self.options.silent_ticks

    def _alive(self) -> list[NodeId]:
        """Who was heard of late, this member included."""
        return [member for member in self.members if member == self.node or not self._silent(member)]

    # -- dots --

    def _limit(self, owner: int) -> int:
        until = self._until()
        if until is not None:
            return until[owner]
        return self.streams.delivered[owner] + self.options.window

    def _store(self, dot: Dot) -> bool:
        """Take a dot, if it is the next of its stream and not too far ahead."""
        if dot.number > self._limit(dot.owner) or not self.streams.take(dot):
            return False
        self._taken(dot)
        self._fresh.append(dot)
        return True

    def _on_spread(self, sender: NodeId, message: SpreadMessage, out: Outputs) -> None:
        match message:
            case Push():
                self._on_push(sender, message, out)
            case Marks():
                self._on_marks(sender, message, out)
            case Fetch():
                self._on_fetch(sender, message, out)
            case Gone():
                self._on_gone(sender, out)
            case SnapshotAsk():
                self._on_ask(sender, message, out)
            case SnapshotChunk():
                self._on_chunk(sender, message, out)

    def _on_push(self, sender: NodeId, message: Push, out: Outputs) -> None:
        count = self.streams.count
        gap = False
        for dot in message.dots:
            if not 0 <= dot.owner < count or dot.number < 1 or len(dot.deps) not in (0, count):
                raise PeerError(
                    f"{sender} sent dot {dot.number} of stream {dot.owner} behind {len(dot.deps)} streams; there are "
                    f"{count} streams, and numbers start at 1"
                )
            if not self._store(dot) and self.streams.received[dot.owner] + 1 < dot.number <= self._limit(dot.owner):
                gap = True
        if message.more or (gap and self._now - self._asked >= self.options.resend_ticks):
            self._fetch(sender, out)

    def _fetch(self, peer: NodeId, out: Outputs) -> None:
        self._asked = self._now
        out.early.append((peer, Fetch(tuple(self.streams.received), self._until() or ())))

    def _on_fetch(self, sender: NodeId, message: Fetch, out: Outputs) -> None:
        streams = self.streams
        self._vector(sender, message.have)
        until = message.until or tuple(streams.received)
        self._vector(sender, until)
        lost = [
            owner for owner in range(streams.count) if message.have[owner] < min(streams.forgotten[owner], until[owner])
        ]
        if lost:
            out.early.append((sender, Gone()))
            return
        dots, more = streams.after(message.have, until, self.options.push_bytes_max)
        if dots:
            # Not before they are on this disk: they may be our own.
            self._promise(sender, Push(tuple(dots), more))

    def _vector(self, sender: NodeId, vector: Vector) -> None:
        if len(vector) != self.streams.count or min(vector) < 0:
            raise PeerError(f"{sender} sent {list(vector)}; a vector has {self.streams.count} numbers from 0")

    def _on_marks(self, sender: NodeId, message: Marks, out: Outputs) -> None:
        self._vector(sender, message.have)
        self._vector(sender, message.safe)
        have = self._have[sender]
        for owner, number in enumerate(message.have):
            have[owner] = max(have[owner], number)
        self._marked(sender, message, out)

    def _marks(self) -> Marks:
        return Marks(tuple(self._have[self.node]), self._safe())

    def _beat(self, out: Outputs) -> None:
        """Tell what is here, and ask for what somebody had a beat ago and is not here yet."""
        marks = self._marks()
        out.early += [(peer, marks) for peer in self._peers]
        received = self.streams.received
        if self._pull is None and any(
            min(known, self._limit(owner)) > received[owner] for owner, known in enumerate(self._known)
        ):
            self._fetch(self._who_has(), out)
        self._known = list(joined(self._have[peer] for peer in self._peers)) if self._peers else self._known

    def _who_has(self) -> NodeId:
        received = self.streams.received

        def worth(peer: NodeId) -> tuple[bool, int]:
            pairs = zip(self._have[peer], received, strict=True)
            return not self._silent(peer), sum(max(0, theirs - mine) for theirs, mine in pairs)

        return max(self._peers, key=worth)

    def _deliver(self, out: Outputs) -> None:
        """Tell what may be told, then the reads that waited for it, then the end."""
        if self.sealed:
            return
        dots = self.streams.deliver(self._bounds())
        if dots:
            self._tell(dots, out)
            self._answer(out)
        end = self._ended()
        if end is not None:
            self.sealed = True
            out.apply.append(Committed((end,)))
            lost = tuple(id for id, _ in self._waiting)
            self._waiting = []
            if lost:
                out.apply.append(ReadLost(lost, None))

    def _tell(self, dots: Iterable[Dot], out: Outputs) -> None:
        entries = [
            Entry(self._position(dot.owner, dot.number), 0, dot.kind, dot.data)
            for dot in dots
            if dot.kind is Kind.COMMANDS
        ]
        if entries:
            out.apply.append(Committed(tuple(entries)))

    # -- reads --

    def _read(self, id: int, after: Vector, out: Outputs) -> None:
        if after and len(after) != self.streams.count:
            raise UsageError(f"a read behind {list(after)}; epoch {self.epoch.number} has {self.streams.count} streams")
        if self.sealed or len(self._waiting) >= self.options.reads_max:
            out.apply.append(ReadLost((id,), None))
        elif not after or covers(self.streams.delivered, after):
            out.apply.append(ReadReady((id,), 0))
        else:
            self._waiting.append((id, after))

    def _answer(self, out: Outputs) -> None:
        if not self._waiting:
            return
        ready = tuple(id for id, after in self._waiting if covers(self.streams.delivered, after))
        if ready:
            self._waiting = [each for each in self._waiting if each[0] not in ready]
            out.apply.append(ReadReady(ready, 0))

    # -- snapshots --

    def _on_gone(self, sender: NodeId, out: Outputs) -> None:
        if self._pull is None:
            self._pull = _Pull(sender)
            self._ask(out)

    def _ask(self, out: Outputs) -> None:
        pull = self._pull
        assert pull is not None
        ask = SnapshotAsk(tuple(self.streams.forgotten), pull.incoming.name[:2], len(pull.incoming.data))
        out.early.append((pull.peer, ask))

    def _tick_pull(self, out: Outputs) -> None:
        if (pull := self._pull) is None:
            return
        pull.quiet += 1
        if pull.quiet >= PULL_TICKS:
            self._pull = None
        elif pull.quiet % self.options.resend_ticks == 0:
            self._ask(out)

    def _on_ask(self, sender: NodeId, message: SnapshotAsk, out: Outputs) -> None:
        self._vector(sender, message.base)
        snapshot = self._snapshot
        # One that lacks what is forgotten here would only be asked for again.
        if snapshot is None or not covers(self._snapshot_vector, message.base):
            self.snapshot_wanted = True
            return
        offset = message.offset if message.name == (snapshot.position, snapshot.term) else 0
        if not self._snapshot_bytes:
            self._snapshot_bytes = pack_snapshot(snapshot)
        total = len(self._snapshot_bytes)
        if 0 <= offset < total:
            data = self._snapshot_bytes[offset : offset + self.options.chunk_bytes]
            out.early.append((sender, SnapshotChunk((snapshot.position, snapshot.term), offset, total, data)))

    def _on_chunk(self, sender: NodeId, message: SnapshotChunk, out: Outputs) -> None:
        pull = self._pull
        if pull is None or pull.peer != sender:
            return
        name = (*message.name, message.total)
        if pull.incoming.name != name:
            if message.offset:
                return
            pull.incoming = Incoming(*name)
        before = len(pull.incoming.data)
        whole = pull.incoming.take(message.offset, message.data)
        if len(pull.incoming.data) == before:
            return
        pull.quiet = 0
        if not whole:
            self._ask(out)
            return
        packed, self._pull = bytes(pull.incoming.data), None
        try:
            snapshot = unpack_snapshot(packed)
            vector, _, extra = self._unpack_core(snapshot)
        except CorruptionError:
            return
        if not covers(vector, self.streams.forgotten) or covers(self.streams.delivered, vector):
            return  # the next one will, or nothing is missing any more
        self._flush(out)
        out.persist += [SNAPSHOT + piece for piece in pieces(packed)]
        out.apply.append(Installed(snapshot))
        again = self._adopt(snapshot, vector, extra)
        self._tell(again, out)

    def _adopt(self, snapshot: Snapshot, vector: Vector, extra: bytes) -> list[Dot]:
        before = list(self.streams.received)
        again = self.streams.adopt(vector)
        for owner, number in enumerate(self.streams.received):
            if number > before[owner]:  # the snapshot holds what was missing, and gets durable with this turn
                self._writing.append((self._token + 1, owner, number))
        self._keep(snapshot, vector)
        self._adopt_extra(extra)
        return again

    def _keep(self, snapshot: Snapshot, vector: Vector) -> None:
        """The snapshot that peers may have."""
        self._snapshot, self._snapshot_bytes, self._snapshot_vector = snapshot, b"", vector
        self.snapshot_wanted = False

    def _unpack_core(self, snapshot: Snapshot) -> tuple[Vector, Vector, bytes]:
        try:
            found = _unpack_core(snapshot.core)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"a snapshot of {self.node} holds no vectors: {error}") from None
        if any(len(vector) != self.streams.count or min(vector) < 0 for vector in found[:2]):
            raise CorruptionError(f"a snapshot of {self.node} has not {self.streams.count} streams: {found[:2]}")
        return found

    def _extra(self) -> bytes:
        """What a protocol adds to the core of a snapshot."""
        return b""

    def snapshot(self, position: int, state: bytes) -> Snapshot:
        """What to keep in place of all that was delivered; `position` says nothing here."""
        self._forget()
        delivered = tuple(self.streams.delivered)
        core = _pack((delivered, tuple(self.streams.forgotten), self._extra()))
        return Snapshot(self._last_position(delivered), sum(delivered), core, state)

    def _forget(self) -> None:
        """Drop what everybody has; and, where that is allowed, what only silent ones lack, if it is too much."""
        stable = joined_low(list(self._have.values()))
        droppable = self._droppable()
        if droppable is not None:
            heard = joined_low([*(self._have[member] for member in self._alive()), list(droppable)])
            keep = self.options.retained_max
            stable = tuple(
                max(all_have, min(live, delivered - keep))
                for all_have, live, delivered in zip(stable, heard, self.streams.delivered, strict=True)
            )
        self.streams.forget(stable)

    def compact(self, snapshot: Snapshot) -> list[bytes]:
        """What the snapshot covers need not be replayed; what others may lack, or is not delivered, is kept."""
        self._keep(snapshot, self._unpack_core(snapshot)[0])
        return [*dot_records(self.streams.every()), *self._records()]

    def _records(self) -> list[bytes]:
        """What a protocol has to remember besides dots."""
        return []

    # -- recovery --

    def restore(self, snapshot: Snapshot) -> None:
        """Start from a snapshot."""
        delivered, forgotten, extra = self._unpack_core(snapshot)
        self.streams.restore(forgotten, forgotten)
        self._restored = delivered
        self._keep(snapshot, delivered)
        self._restore_extra(extra)

    def _restore_extra(self, extra: bytes) -> None:  # noqa: B027
        """Take back what `_extra` gave to this member."""

    def _adopt_extra(self, extra: bytes) -> None:  # noqa: B027
        """Take what `_extra` gave to another member."""

    def _rest(self) -> None:
        """The dots that the restored state holds, and that are kept for others, count as delivered."""
        if self._restored is not None:
            restored, self._restored = self._restored, None
            self.streams.deliver(restored)
            if tuple(self.streams.delivered) != restored:
                raise CorruptionError(
                    f"the log of {self.node} lacks dots that its snapshot retains: {self.streams.delivered} of "
                    f"{list(restored)}"
                )

    def replay(self, record: bytes) -> None:
        """Take a record back."""
        tag, data = record[:1], record[1:]
        try:
            if tag == DOTS:
                for dot in _unpack_dots(data):
                    if self.streams.take(dot):
                        self._taken(dot)
            elif tag == SNAPSHOT:
                snapshot = self._pieces.take(data)
                if snapshot is not None:
                    self._rest()
                    vector, _, extra = self._unpack_core(snapshot)
                    self._again = self._adopt(snapshot, vector, extra)
                    self._installed = snapshot
            else:
                self._replay(tag, data)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(
                f"a record of {len(record)} bytes in the log of {self.node} is none: {error}"
            ) from None

    def _replay(self, tag: bytes, data: bytes) -> None:
        """Take back a record that is the protocol's own."""
        raise CorruptionError(f"the log of {self.node} holds a record {tag!r} that is not {self.epoch.protocol}'s")

    def _recover(self, out: Outputs) -> None:
        """The log is at its end."""
        self._rest()
        self._writing.clear()
        self._durable = list(self.streams.received)
        if self._installed is not None:
            out.apply.append(Installed(self._installed))
            self._tell(self._again, out)
            self._installed, self._again = None, []

    # -- outputs --

    def _promise(self, peer: NodeId, message: Any) -> None:
        """Send what must not be known before all that it rests on is durable."""
        self._promises.append((peer, message))

    def _durable_now(self, token: int, out: Outputs) -> None:
        """Everything up to this token is durable."""
        self._durable_token = max(self._durable_token, token)
        touched = set()
        while self._writing and self._writing[0][0] <= self._durable_token:
            _, owner, number = self._writing.popleft()
            self._durable[owner] = max(self._durable[owner], number)
            touched.add(owner)
        while self._held and self._held[0][0] <= self._durable_token:
            _, peer, message = self._held.popleft()
            out.send.append((peer, message))
        if touched:
            self._reached(sorted(touched), out)

    def _flush(self, out: Outputs) -> None:
        """Fresh dots go to the log before whatever rests on them."""
        if self._fresh:
            out.persist += dot_records(self._fresh)
            self._writing += [(self._token + 1, dot.owner, dot.number) for dot in self._fresh]
            self._fresh = []

    def _finished(self, out: Outputs) -> Outputs:
        """Let what is promised wait for the records that it rests on."""
        self._flush(out)
        if out.persist:
            self._token += 1
            out.apply.insert(0, Persisted(self._token))
            out.send += self._promises
        elif self._token > self._durable_token:
            self._held += [(self._token, peer, message) for peer, message in self._promises]
        else:
            out.send += self._promises
        self._promises.clear()
        return out

    def _fail(self, reason: str, out: Outputs) -> None:
        out.apply.append(Fatal(reason))


def joined_low(vectors: list[list[int]]) -> Vector:
    """What all of these have."""
    return tuple(min(numbers) for numbers in zip(*vectors, strict=True))


def dot_records(dots: list[Dot]) -> list[bytes]:
    """Dots as records of the log, each below its limit."""
    records: list[bytes] = []
    batch: list[Dot] = []
    size = 0
    for dot in dots:
        size += len(dot.data) + 32
        if batch and size > RECORD_BYTES:
            records.append(DOTS + _pack(batch))
            batch, size = [], len(dot.data) + 32
        batch.append(dot)
    if batch:
        records.append(DOTS + _pack(batch))
    return records


_pack = msgspec.msgpack.Encoder().encode
_unpack_dots = msgspec.msgpack.Decoder(list[Dot]).decode
_unpack_core = msgspec.msgpack.Decoder(tuple[Vector, Vector, bytes]).decode

__all__ = ["Spread"]
