"""The session between two nodes: bytes in, events and bytes out; no socket, clock or chance of its own.

    initiator                         responder
        HELLO (version, identity, nonce)  ->
        <-  HELLO (version, identity, nonce)          transcript = SHA-256 of both HELLOs
        PROOF HMAC(key, "initiator", transcript)  ->
        <-  PROOF HMAC(key, "responder", transcript)
        DATA CREDIT PING PONG GOODBYE, each under a MAC of its direction's session key

The proofs bind both nonces and both identities, and the roles differ, so a proof cannot be reflected or used again.
The initiator proves first: a stranger learns nothing from a responder but its name. Every later frame carries a MAC
over header and body, which hold the sequence, so frames cannot be replayed, moved or injected: keyed BLAKE2b for small
bodies, where it is four times quicker to begin, HMAC-SHA256 from BULK_MAC_BYTES on, twice as fast a byte on processors
with SHA instructions; each has a key of its own. Without a cluster key frames carry their checksum only.

Flow control is credit in bytes: the receiver tells up to which total the sender may go. Every piece of a message
charges its bytes and its length, and at least MESSAGE_COST_BYTES_MIN, so that empty messages do not come for nothing.
A message that is larger than the credit slides the window while it is put together, and only while no finished message
waits before it, so one side never holds more than credit_bytes + message_bytes_max for the other.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import msgspec

from nova._native.frame import (
    MAC_BYTES,
    MESSAGE_COST_BYTES_MIN,
    Frame,
    FrameParser,
    cost,
    crc32c,
    encode,
    pack,
    seal,
    split,
)
from nova.errors import LimitError, PeerError, UsageError
from nova.transport.base import Buffer, Identity, Limits
from nova.wire import Codec

__all__ = ["CAPABILITIES", "PROTOCOL_VERSION", "Established", "Event", "Goodbye", "Session", "crc32c"]

PROTOCOL_VERSION = 1
CAPABILITIES = ("credit", "pieces")
KEY_BYTES_MIN = 32
NONCE_BYTES = 32
HANDSHAKE_FRAME_BYTES_MAX = 4096
SEND_FRAME_BYTES = 256 * 1024
BULK_MAC_BYTES = 4096
CREDIT_BYTES_MIN = 64 * 1024
PIECE_BYTES_MIN = 4096
PING_MS_MAX = 5_000
CONTROL_FRAMES_MAX = 1024
REASON_BYTES_MAX = 512


class FrameType(IntEnum):
    HELLO = 1
    PROOF = 2
    DATA = 3
    CREDIT = 4
    PING = 5
    PONG = 6
    GOODBYE = 7
    REFUSE = 8


Name = Annotated[str, msgspec.Meta(max_length=200)]
Bytes = Annotated[int, msgspec.Meta(ge=HANDSHAKE_FRAME_BYTES_MAX, le=2**31 - 1)]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    node: Name
    region: Name
    cluster: Name
    incarnation: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    address: Name
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    keyed: bool
    capabilities: Annotated[list[Name], msgspec.Meta(max_length=64)]
    frame_bytes_max: Bytes
    message_bytes_max: Bytes
    credit_bytes: Annotated[int, msgspec.Meta(ge=CREDIT_BYTES_MIN, le=2**40)]


@dataclass(frozen=True, slots=True)
class Established:
    """Both sides are proved."""

    peer: Identity


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The peer closed in good order; no message follows."""

    reason: str


Event = Established | Goodbye | memoryview

_hello: Codec[Hello] = Codec(Hello)
DATA = int(FrameType.DATA)  # an enum member costs more than the rest of the comparison


class _Mac:
    """The MAC of one direction: which of the two a frame has follows from its size, so both sides agree."""

    __slots__ = ("_bulk", "_small")

    def __init__(self, small: bytes, bulk: bytes) -> None:
        self._small = hashlib.blake2b(key=small, digest_size=MAC_BYTES)
        self._bulk = hmac.new(bulk, digestmod="sha256")

    def digest(self, head: Buffer, signed: Buffer) -> bytes:
        if len(signed) < BULK_MAC_BYTES:
            small = self._small.copy()
            small.update(head)
            small.update(signed)
            return small.digest()
        bulk = self._bulk.copy()
        bulk.update(head)
        bulk.update(signed)
        return bulk.digest()[:MAC_BYTES]


class Session:
    """One end of one session.

    nonce    32 fresh unpredictable bytes, never used before
    now_ns   any steady clock; later calls pass the same one
    raises   UsageError for a key or limits that cannot be
    """

    def __init__(
        self,
        identity: Identity,
        *,
        key: bytes | None,
        initiator: bool,
        nonce: bytes,
        now_ns: int,
        limits: Limits | None = None,
        capabilities: tuple[str, ...] = CAPABILITIES,
        version: int = PROTOCOL_VERSION,
    ) -> None:
        limits = limits or Limits()
        if key is not None and len(key) < KEY_BYTES_MIN:
            raise UsageError(f"cluster key of {len(key)} bytes is too short; {KEY_BYTES_MIN} random bytes are needed")
        if len(nonce) != NONCE_BYTES:
            raise UsageError(f"nonce of {len(nonce)} bytes; a session needs {NONCE_BYTES}")
        if limits.credit_bytes < CREDIT_BYTES_MIN or limits.frame_bytes_max < HANDSHAKE_FRAME_BYTES_MAX:
            raise UsageError(
                f"credit of {limits.credit_bytes} and frames of {limits.frame_bytes_max} bytes are too small; the "
                f"least is {CREDIT_BYTES_MIN} and {HANDSHAKE_FRAME_BYTES_MAX}"
            )
        self.identity = identity
        self.initiator = initiator
        self.limits = limits
        self.peer: Identity | None = None
        self.capabilities: frozenset[str] = frozenset()
        self.established = False
        self.rtt_ns = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.queue_bytes = 0
        self.done = False
        """True once our goodbye is among the output: nothing follows it."""
        self._key = key
        self._version = version
        self._hello = Hello(
            identity.node,
            identity.region,
            identity.cluster,
            identity.incarnation,
            identity.address,
            nonce,
            key is not None,
            list(capabilities),
            limits.frame_bytes_max,
            limits.message_bytes_max,
            limits.credit_bytes,
        )
        self._hello_bytes = struct.pack(">H", version) + _hello.encode(self._hello)
        self._transcript = b""
        self._parser = FrameParser(min(HANDSHAKE_FRAME_BYTES_MAX, limits.frame_bytes_max))
        self._mac_in: _Mac | None = None
        self._mac_out: _Mac | None = None
        self._sequence_in = 0
        self._sequence_out = 0
        self._out: list[bytearray] = []
        self._queue: deque[bytes] = deque()
        self._offset = 0
        self._payload_bytes = SEND_FRAME_BYTES
        self._message_bytes_max = limits.message_bytes_max
        self._may_send = 0  # totals of data payload, ever: what the peer allows, what has left
        self._data_out = 0
        self._granted = limits.credit_bytes  # what we allowed, what came, what was consumed
        self._data_in = 0
        self._consumed = 0
        self._waiting = 0  # finished messages that the application has not taken
        self._partial: list[memoryview] = []
        self._partial_bytes = 0
        self._partial_cost = 0
        self._closing: str | None = None
        self._peer_done = False
        self._broken = False
        self._started_ns = self._heard_ns = now_ns
        self._pinged_ns = 0
        self._ping_ns = 0
        if initiator:
            self._put(FrameType.HELLO, self._hello_bytes)

    # -- bytes in ------------------------------------------------------------------------------------------------

    def receive(self, data: Buffer, now_ns: int) -> list[Event]:
        """What the bytes mean. Raises PeerError if they break the protocol: send what output there is, then hang up."""
        if self._broken:
            raise PeerError("this session is broken already")
        self.received_bytes += len(data)
        self._heard_ns = now_ns
        events: list[Event] = []
        try:
            # Up to the end of the handshake frames are taken one by one: the limits change behind it.
            while not self.established and len(data):
                need = self._parser.need
                for frame in self._parser.feed(bytes(data[:need])):
                    self._handshake(frame, now_ns, events)
                data = data[need:]
            if len(data):
                for frame in self._parser.feed(data):
                    self._frame(frame, now_ns, events)
        except PeerError:
            self._broken = True
            raise
        return events

    def consumed(self, messages: list[memoryview]) -> None:
        """The application has taken these messages: what they were charged becomes credit again."""
        self._waiting -= len(messages)
        self._consumed += cost(messages)
        self._grant()

    def tick(self, now_ns: int) -> None:
        """Let time pass. Raises PeerError when the peer was silent for too long."""
        if self._broken:
            return
        limits = self.limits
        if not self.established:
            if now_ns - self._started_ns >= limits.handshake_ms_max * 1_000_000:
                self._broken = True
                raise PeerError(f"handshake not finished within {limits.handshake_ms_max} ms")
            return
        if now_ns - self._heard_ns >= limits.idle_ms_max * 1_000_000:
            self._broken = True
            raise PeerError(f"no word from {self._who()} for {limits.idle_ms_max} ms")
        if now_ns - self._pinged_ns >= self._ping_ns and not self.done:
            self._ping(now_ns)

    @property
    def deadline_ns(self) -> int:
        """When `tick` has something to do at the latest."""
        if not self.established:
            return self._started_ns + self.limits.handshake_ms_max * 1_000_000
        silence_ns = self._heard_ns + self.limits.idle_ms_max * 1_000_000
        return silence_ns if self.done else min(silence_ns, self._pinged_ns + self._ping_ns)

    # -- bytes out -----------------------------------------------------------------------------------------------

    def send(self, payload: Buffer) -> bool:
        """Queue one message. False when the queue is full or the session over; LimitError if no peer would take it."""
        if not self.established or self._broken or self._closing is not None or self._peer_done:
            return False
        size = len(payload) if type(payload) is bytes else memoryview(payload).nbytes
        if size > self._message_bytes_max:
            raise LimitError(
                f"message of {size} bytes is over the limit of {self._message_bytes_max} that {self._who()} accepts; "
                f"split it or raise message_bytes_max"
            )
        charge = max(size + 4, MESSAGE_COST_BYTES_MIN)
        if self.queue_bytes and self.queue_bytes + charge > self.limits.queue_bytes_max:
            return False
        self._queue.append(payload if type(payload) is bytes else bytes(payload))
        self.queue_bytes += charge
        return True

    def close(self, reason: str = "", *, discard: bool = False) -> None:
        """Say goodbye once the queue has left; with `discard`, at once."""
        if discard:
            self._queue.clear()
            self.queue_bytes = self._offset = 0
        if self._closing is None:
            self._closing = reason
        if not self.established:
            self._broken = True

    @property
    def has_output(self) -> bool:
        """False when `take_output` would surely give nothing."""
        return bool(self._out or self._queue) or (self._closing is not None and not self.done)

    def take_output(self, bytes_max: int = 1 << 20) -> list[bytearray]:
        """Frames to send now, in order: all control, and data up to about `bytes_max` or the end of the credit."""
        taken = 0
        while self._queue and taken < bytes_max and not self._broken and not self._peer_done:
            credit = self._may_send - self._data_out
            if credit < PIECE_BYTES_MIN and credit < 4 + len(self._queue[0]) - self._offset:
                break
            packed = pack(
                DATA, 0, self._sequence_out, self._queue, self._offset, self._payload_bytes, credit,
                self._mac_out is not None,
            )  # fmt: skip
            if packed is None:
                break
            frame, charged, left, self._offset = packed
            self._data_out += charged
            self.queue_bytes -= left
            self._seal(frame)
            taken += len(frame)
        may_end = self.established and not self.done and not self._broken
        if self._closing is not None and not self._queue and may_end:
            self.done = True
            self._put(FrameType.GOODBYE, self._closing.encode()[:REASON_BYTES_MAX])
        out, self._out = self._out, []
        self.sent_bytes += sum(map(len, out))
        return out

    def subkey(self, label: str) -> bytes | None:
        """32 bytes bound to this session's transcript, for who speaks frames of its own after the handshake.

        None without a cluster key. Raises UsageError before the session is established.
        """
        if not self.established:
            raise UsageError("a session that is not established has no keys yet; wait for Established")
        return None if self._key is None else self._proof("subkey " + label)

    # -- handshake -----------------------------------------------------------------------------------------------

    def _handshake(self, frame: Frame, now_ns: int, events: list[Event]) -> None:
        self._in_order(frame)
        payload = bytes(frame.payload)
        if frame.flags:
            raise PeerError(f"handshake frame with flags {frame.flags:#04x}; it has none")
        if frame.type == FrameType.REFUSE:
            text = payload[:REASON_BYTES_MAX].decode("utf-8", "replace")
            raise PeerError("refused by the peer: " + "".join(c if c.isprintable() else "?" for c in text))
        if frame.type == FrameType.HELLO and self.peer is None:
            self._greet(payload)
            if self.initiator:
                if self._key is not None:
                    self._put(FrameType.PROOF, self._proof("initiator"))
                else:
                    self._put(FrameType.PROOF, b"")
            else:
                self._put(FrameType.HELLO, self._hello_bytes)
            return
        if frame.type == FrameType.PROOF and self.peer is not None:
            role = "responder" if self.initiator else "initiator"
            expected = self._proof(role) if self._key is not None else b""
            if not hmac.compare_digest(expected, payload):
                self._refuse("your proof does not fit: you hold another cluster key")
                raise PeerError(f"{self._who()} does not hold this cluster's key: its proof does not fit")
            if not self.initiator:
                self._put(FrameType.PROOF, self._proof("responder") if self._key is not None else b"")
            self._establish(now_ns)
            events.append(Established(self.peer))
            return
        raise PeerError(f"frame of type {frame.type} in the handshake, where it does not belong")

    def _greet(self, payload: bytes) -> None:
        if len(payload) < 2:
            raise PeerError(f"hello of {len(payload)} bytes")
        (version,) = struct.unpack_from(">H", payload)
        if version != self._version:
            self._refuse(f"protocol version {version} is not spoken here, version {self._version} is")
            raise PeerError(
                f"peer speaks protocol version {version}, this node version {self._version}: upgrade the older one"
            )
        hello = _hello.decode(payload[2:])
        own = self._hello
        if not hello.node or not all(map(str.isprintable, (hello.node, hello.region, hello.cluster, hello.address))):
            raise PeerError("hello with an empty or unprintable name")
        if hello.cluster != own.cluster:
            self._refuse(f"this node is not of cluster {hello.cluster!r}")
            raise PeerError(f"peer {hello.node!r} is of cluster {hello.cluster!r}, this node of {own.cluster!r}")
        if hello.keyed != own.keyed:
            self._refuse(
                "this node asks for a cluster key" if own.keyed else "this node has no cluster key, yours has one"
            )
            raise PeerError(
                f"peer {hello.node!r} has {'a' if hello.keyed else 'no'} cluster key, this node "
                f"{'one' if own.keyed else 'none'}: give both the same key"
            )
        if hello.nonce == own.nonce:
            raise PeerError("the peer sent our own hello back: a reflection, refused")
        self.peer = Identity(hello.node, hello.region, hello.cluster, hello.incarnation, hello.address)
        self.capabilities = frozenset(hello.capabilities) & frozenset(own.capabilities)
        self._payload_bytes = min(SEND_FRAME_BYTES, hello.frame_bytes_max - MAC_BYTES)
        self._message_bytes_max = min(self.limits.message_bytes_max, hello.message_bytes_max)
        self._may_send = hello.credit_bytes
        pair = (self._hello_bytes, payload) if self.initiator else (payload, self._hello_bytes)
        self._transcript = hashlib.sha256(b"".join(struct.pack(">I", len(part)) + part for part in pair)).digest()

    def _proof(self, label: str) -> bytes:
        assert self._key is not None
        return hmac.digest(self._key, b"nova session 1 " + label.encode() + b"\0" + self._transcript, "sha256")

    def _establish(self, now_ns: int) -> None:
        if self._key is not None:
            ends = ("key of initiator", "key of responder")
            out, into = ends if self.initiator else ends[::-1]
            self._mac_out = _Mac(self._proof(out), self._proof("bulk " + out))
            self._mac_in = _Mac(self._proof(into), self._proof("bulk " + into))
        self._parser.limit(self.limits.frame_bytes_max)
        self._ping_ns = min(PING_MS_MAX, max(1, self.limits.idle_ms_max // 3)) * 1_000_000
        self.established = True
        self._ping(now_ns)

    def _refuse(self, text: str) -> None:
        self._put(FrameType.REFUSE, text.encode()[:REASON_BYTES_MAX])

    # -- established ---------------------------------------------------------------------------------------------

    def _frame(self, frame: Frame, now_ns: int, events: list[Event]) -> None:
        mac_in = self._mac_in
        if mac_in is not None and not hmac.compare_digest(mac_in.digest(frame.head, frame.signed), frame.mac):
            raise PeerError(f"frame {frame.sequence} from {self._who()} was not made by it: its MAC is wrong")
        self._in_order(frame)
        if self._peer_done:
            raise PeerError(f"{self._who()} sent a frame of type {frame.type} after its goodbye")
        payload = frame.payload
        if frame.type == DATA:
            self._data(payload, events)
        elif frame.type == FrameType.CREDIT:
            total = self._number(payload, "credit")
            # Credit never shrinks, and no honest peer grants more than it announced in one go ahead of what left.
            self._may_send = max(self._may_send, total)
        elif frame.type == FrameType.PING:
            self._number(payload, "ping")
            if not self.done:
                self._put(FrameType.PONG, bytes(payload))
        elif frame.type == FrameType.PONG:
            sent_ns = self._number(payload, "pong")
            if sent_ns <= now_ns:
                # Queues and busy loops only ever add to a round trip: down at once, up by an eighth (RFC 6298).
                sample_ns = max(1, now_ns - sent_ns)
                known_ns = self.rtt_ns or sample_ns
                self.rtt_ns = sample_ns if sample_ns < known_ns else known_ns + (sample_ns - known_ns) // 8
        elif frame.type == FrameType.GOODBYE:
            if self._partial and self._closing is None:
                raise PeerError(f"{self._who()} said goodbye in the middle of a message")
            text = bytes(payload[:REASON_BYTES_MAX]).decode("utf-8", "replace")
            self._peer_done = True
            events.append(Goodbye("".join(c if c.isprintable() else "?" for c in text)))
        else:
            raise PeerError(f"frame of type {frame.type} from {self._who()} does not belong into a session")

    def _data(self, payload: memoryview, events: list[Event]) -> None:
        pieces, more = split(payload)
        self._data_in += cost(pieces)
        if self._data_in > self._granted:
            raise PeerError(f"{self._who()} sent {self._data_in - self._granted} bytes more than its credit")
        if not more and not self._partial:
            self._waiting += len(pieces)
            events.extend(pieces)
            return
        last = len(pieces) - 1
        for index, piece in enumerate(pieces):
            if not self._partial and not (more and index == last):
                self._waiting += 1
                events.append(piece)
                continue
            self._partial.append(piece)
            self._partial_bytes += len(piece)
            self._partial_cost += cost([piece])
            if self._partial_bytes > self.limits.message_bytes_max:
                raise PeerError(
                    f"message of {self._partial_bytes} bytes and more is over the limit of "
                    f"{self.limits.message_bytes_max}"
                )
            if not (more and index == last):
                whole = memoryview(b"".join(self._partial))
                events.append(whole)
                self._waiting += 1
                self._consumed += self._partial_cost - cost([whole])  # what being cut has cost on top
                self._partial, self._partial_bytes, self._partial_cost = [], 0, 0
        if self._partial:
            self._grant()

    def _grant(self) -> None:
        limit = self._consumed + self.limits.credit_bytes + (self._partial_cost if not self._waiting else 0)
        if limit - self._granted >= self.limits.credit_bytes // 4 and not self.done and not self._broken:
            self._granted = limit
            self._put(FrameType.CREDIT, struct.pack(">Q", limit))

    def _number(self, payload: memoryview, word: str) -> int:
        if len(payload) != 8:
            raise PeerError(f"{word} of {len(payload)} bytes; it has 8")
        return int.from_bytes(payload, "big")

    def _ping(self, now_ns: int) -> None:
        self._pinged_ns = now_ns
        self._put(FrameType.PING, struct.pack(">Q", now_ns))

    def _in_order(self, frame: Frame) -> None:
        if frame.sequence != self._sequence_in or frame.stream != 0:
            raise PeerError(
                f"frame {frame.sequence} of stream {frame.stream} from {self._who()} came where frame "
                f"{self._sequence_in} of stream 0 was due: replayed, lost or moved"
            )
        self._sequence_in += 1

    def _put(self, kind: FrameType, payload: bytes) -> None:
        if len(self._out) >= CONTROL_FRAMES_MAX:
            raise PeerError(f"{self._who()} asks for answers and does not read them: {CONTROL_FRAMES_MAX} are waiting")
        self._seal(encode(kind, 0, self._sequence_out, payload, None, self._mac_out is not None))

    def _seal(self, frame: bytearray) -> None:
        self._sequence_out += 1
        if self._mac_out is None:
            seal(frame)
        else:
            with memoryview(frame) as view:
                mac = self._mac_out.digest(view[:20], view[24:-MAC_BYTES])
            seal(frame, mac)
        self._out.append(frame)

    def _who(self) -> str:
        return f"node {self.peer.node!r}" if self.peer else "the peer"
