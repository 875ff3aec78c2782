"""The session between two nodes: bytes in, events and bytes out; no socket, clock or chance of its own.

    initiator                         responder
        HELLO (version, identity, nonce)  ->
        <-  HELLO (version, identity, nonce)          transcript = SHA-256 of both HELLOs
        PROOF HMAC(key, "initiator", transcript)  ->
        <-  PROOF HMAC(key, "responder", transcript)
        DATA CREDIT PING PONG GOODBYE, each under a MAC of its direction's session key

The proofs bind both nonces and both identities, and the roles differ, so a proof cannot be reflected or used again.
The initiator proves first: a stranger learns nothing from a responder but its name. Every later frame carries a MAC
over header and body, which hold the sequence, so frames cannot be replayed, moved or injected. With the capability
"blake3" it is keyed BLAKE3; without, keyed BLAKE2b for small bodies and HMAC-SHA256 from BULK_MAC_BYTES on; each has a
key of its own. Without a cluster key frames carry their checksum only.

With the capability "lanes" the stream of a data frame is its priority, 0 to 3, and each lane may be in the middle of
one message: an urgent one passes between the frames of a large one. Without it all data is of stream 0, and a message
that has begun is finished first.

Flow control is credit in bytes: the receiver tells up to which total the sender may go. Every piece of a message
charges its bytes and its length, and at least MESSAGE_COST_BYTES_MIN, so that empty messages do not come for nothing.
A message that is larger than the credit slides the window while it is put together, and only while no finished message
waits before it, so one side never holds more than credit_bytes + message_bytes_max (of each lane) for the other.

What is here is the handshake. Everything behind it is compiled: `Session.channel`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Protocol

import msgspec

from nova._native.channel import LANES, Channel
from nova._native.frame import MAC_BYTES, Frame, FrameParser, cost, crc32c, encode, seal
from nova.errors import PeerError, UsageError
from nova.transport.base import Buffer, Identity, Limits
from nova.wire import Codec

__all__ = ["CAPABILITIES", "PROTOCOL_VERSION", "Established", "Event", "FrameType", "Goodbye", "Session", "crc32c"]

PROTOCOL_VERSION = 1
CAPABILITIES = ("credit", "pieces", "blake3", "lanes")
KEY_BYTES_MIN = 32
NONCE_BYTES = 32
HANDSHAKE_FRAME_BYTES_MAX = 4096
SEND_FRAME_BYTES = 256 * 1024 + 64  # a message of 256 KiB needs one frame
BULK_MAC_BYTES = 4096
CREDIT_BYTES_MIN = 64 * 1024
PING_MS_MAX = 5_000
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


class _Digest(Protocol):
    def update(self, part: Buffer, /) -> None: ...
    def digest(self) -> bytes: ...


class _Mac:
    """The MAC of one direction with a peer that has no BLAKE3: which of two a frame has follows from its size."""

    def __init__(self, small: bytes, bulk: bytes) -> None:
        self._small = hashlib.blake2b(key=small, digest_size=MAC_BYTES)
        self._bulk = hmac.new(bulk, digestmod="sha256")
        self._now: _Digest = self._small

    def begin(self, head: bytes, signed_bytes: int) -> None:
        self._now = self._small.copy() if signed_bytes < BULK_MAC_BYTES else self._bulk.copy()
        self._now.update(head)

    def add(self, part: memoryview) -> None:
        self._now.update(part)

    def end(self) -> bytes:
        return self._now.digest()[:MAC_BYTES]


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
        if limits.message_bytes_max < HANDSHAKE_FRAME_BYTES_MAX:
            raise UsageError(
                f"message_bytes_max of {limits.message_bytes_max} is too small; the least is "
                f"{HANDSHAKE_FRAME_BYTES_MAX}"
            )
        self.identity = identity
        self.initiator = initiator
        self.limits = limits
        self.peer: Identity | None = None
        self.capabilities: frozenset[str] = frozenset()
        self.established = False
        self.channel: Channel | None = None
        """Takes over at the end of the handshake; None before."""
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
        self._sequence_in = 0
        self._sequence_out = 0
        self._out: list[bytearray] = []
        self._sent_bytes = 0
        self._received_bytes = 0
        self._payload_bytes = SEND_FRAME_BYTES
        self._message_bytes_max = limits.message_bytes_max
        self._may_send = 0
        self._said_goodbye = False
        self._broken = False
        self._started_ns = now_ns
        if initiator:
            self._put(FrameType.HELLO, self._hello_bytes)

    # -- bytes in ------------------------------------------------------------------------------------------------

    def receive(self, data: Buffer, now_ns: int) -> list[Event]:
        """What the bytes mean. Raises PeerError if they break the protocol: send what output there is, then hang up.

        `consumed` gives the credit of the messages back. Who waits for messages calls `feed` instead.
        """
        events = self.feed(data, now_ns)
        if self.channel is not None and self.channel.waiting:
            before_goodbye = len(events) - bool(events and isinstance(events[-1], Goodbye))
            events[before_goodbye:before_goodbye] = self.channel.recv_batch(consume=False)
        return events

    def feed(self, data: Buffer, now_ns: int) -> list[Event]:
        """The same, but messages stay in the `channel`. The bytes are used up or copied on return."""
        if self._broken:
            raise PeerError("this session is broken already")
        events: list[Event] = []
        try:
            if self.channel is None:
                # Up to the end of the handshake frames are taken one by one: the limits change behind it.
                rest = memoryview(data)
                while self.channel is None and rest:
                    need = self._parser.need
                    self._received_bytes += len(rest[:need])
                    for frame in self._parser.feed(bytes(rest[:need])):
                        self._handshake(frame, now_ns, events)
                    rest = rest[need:]
                data = rest
            if self.channel is not None:
                self.channel.feed(data, now_ns)
                events += self.news()
        except PeerError:
            self._broken = True
            raise
        return events

    def news(self) -> list[Event]:
        """Whether the channel has heard the peer's goodbye, once."""
        if self._said_goodbye or self.channel is None or not self.channel.peer_done:
            return []
        self._said_goodbye = True
        return [Goodbye("".join(c if c.isprintable() else "?" for c in self.channel.reason))]

    def consumed(self, messages: list[memoryview]) -> None:
        """The application has taken these messages: what they were charged becomes credit again."""
        if self.channel is not None:
            self.channel.consumed(cost(messages))

    def tick(self, now_ns: int) -> None:
        """Let time pass. Raises PeerError when the peer was silent for too long."""
        if self._broken:
            return
        if self.channel is not None:
            self.channel.tick(now_ns)
        elif now_ns - self._started_ns >= self.limits.handshake_ms_max * 1_000_000:
            self._broken = True
            raise PeerError(f"handshake not finished within {self.limits.handshake_ms_max} ms")

    @property
    def deadline_ns(self) -> int:
        """When `tick` has something to do at the latest."""
        if self.channel is None:
            return self._started_ns + self.limits.handshake_ms_max * 1_000_000
        return self.channel.deadline_ns

    # -- bytes out -----------------------------------------------------------------------------------------------

    def send(self, payload: Buffer, priority: int = 0) -> bool:
        """Queue one message. False when the queue is full or the session over; LimitError if no peer would take it."""
        return self.channel is not None and not self._broken and self.channel.send(payload, priority)

    def close(self, reason: str = "", *, discard: bool = False) -> None:
        """Say goodbye once the queue has left; with `discard`, at once."""
        if self.channel is not None:
            self.channel.close(reason, discard)
        else:
            self._broken = True

    @property
    def has_output(self) -> bool:
        """False when `take_output` would surely give nothing."""
        return bool(self._out) or (self.channel is not None and self.channel.has_output)

    @property
    def done(self) -> bool:
        """True once our goodbye is among the output: nothing follows it."""
        return self.channel is not None and self.channel.done

    def take_output(self, bytes_max: int = 1 << 20) -> list[bytearray]:
        """Frames to send now, in order: all control, and data up to about `bytes_max` or the end of the credit."""
        out, self._out = self._out, []
        if self.channel is not None:
            out += self.channel.take_output(0 if self._broken else bytes_max)
        return out

    def take_handshake(self) -> list[bytearray]:
        """Of the output only what belongs to the handshake, for whoever speaks frames of his own behind it."""
        out, self._out = self._out, []
        return out

    # -- what it knows -------------------------------------------------------------------------------------------

    @property
    def sent_bytes(self) -> int:
        return self._sent_bytes if self.channel is None else self.channel.sent_bytes

    @property
    def received_bytes(self) -> int:
        return self._received_bytes if self.channel is None else self.channel.received_bytes

    @property
    def queue_bytes(self) -> int:
        return 0 if self.channel is None else self.channel.queue_bytes

    @property
    def rtt_ns(self) -> int:
        return 0 if self.channel is None else self.channel.rtt_ns

    @property
    def need(self) -> int:
        """Bytes of the handshake that are still to come, for whoever may not read further. 1 or more."""
        return self._parser.need

    def subkey(self, label: str) -> bytes | None:
        """32 bytes that only the two ends of this session know, for the purpose `label`; None without a cluster key."""
        return self._proof("subkey " + label) if self._key is not None else None

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
        assert self.peer is not None
        limits = self.limits
        mac_out: bytes | _Mac | None = None
        mac_in: bytes | _Mac | None = None
        if self._key is not None:
            ends = ("key of initiator", "key of responder")
            out, into = ends if self.initiator else ends[::-1]
            if "blake3" in self.capabilities:
                mac_out, mac_in = self._proof("blake3 " + out), self._proof("blake3 " + into)
            else:
                mac_out = _Mac(self._proof(out), self._proof("bulk " + out))
                mac_in = _Mac(self._proof(into), self._proof("bulk " + into))
        self.channel = Channel(
            f"node {self.peer.node!r}",
            mac_in=mac_in,
            mac_out=mac_out,
            sequence_in=self._sequence_in,
            sequence_out=self._sequence_out,
            frame_bytes_max=limits.frame_bytes_max,
            message_bytes_max=limits.message_bytes_max,
            send_bytes_max=self._message_bytes_max,
            payload_bytes=self._payload_bytes,
            queue_bytes_max=limits.queue_bytes_max,
            credit_bytes=limits.credit_bytes,
            may_send=self._may_send,
            lanes=LANES if "lanes" in self.capabilities else 1,
            idle_ns=limits.idle_ms_max * 1_000_000,
            ping_ns=min(PING_MS_MAX, max(1, limits.idle_ms_max // 3)) * 1_000_000,
            now_ns=now_ns,
            sent_bytes=self._sent_bytes,
            received_bytes=self._received_bytes,
        )
        self.established = True

    def _refuse(self, text: str) -> None:
        self._put(FrameType.REFUSE, text.encode()[:REASON_BYTES_MAX])

    # -- frames of the handshake ---------------------------------------------------------------------------------

    def _in_order(self, frame: Frame) -> None:
        if frame.sequence != self._sequence_in or frame.stream != 0:
            raise PeerError(
                f"frame {frame.sequence} of stream {frame.stream} from {self._who()} came where frame "
                f"{self._sequence_in} of stream 0 was due: replayed, lost or moved"
            )
        self._sequence_in += 1

    def _put(self, kind: FrameType, payload: bytes) -> None:
        frame = encode(kind, 0, self._sequence_out, payload)
        seal(frame)
        self._sequence_out += 1
        self._sent_bytes += len(frame)
        self._out.append(frame)

    def _who(self) -> str:
        return f"node {self.peer.node!r}" if self.peer else "the peer"
