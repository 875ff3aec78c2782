"""What the two ends of a bulk transfer say to each other before and after the chunks, on blocking sockets.

    sender                                      receiver
    the session handshake (nova.transport.session), capability "bulk"
    Open (which object, its size, its grid)     ->
                                                <-  Ready (what is in place already), or Refuse
    Go                                          ->
    from here on chunk frames                   ->  and <- acknowledgements: csrc/bulk.h

Every stream begins so. When all chunks are acknowledged, one more connection carries Finish (the digest of the whole
object) and its answer, Finished or Refuse.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, TypeVar

import msgspec

from nova.errors import CorruptionError, LimitError, NovaError, PeerError, UnavailableError, UsageError
from nova.transport.base import Buffer, Identity, Limits
from nova.transport.session import CAPABILITIES, NONCE_BYTES, Established, Goodbye, Session
from nova.transport.tcp import is_loopback, join_address, split_address
from nova.wire import Codec

T = TypeVar("T")

CAPABILITY = "bulk"
HEADER_BYTES = 24
CHUNK_BYTES_MIN = 4096
CHUNK_BYTES_MAX = 16 * 1024 * 1024
CHUNKS_MAX = 1 << 22
KEEPALIVE_SECONDS = 5
LOOPBACK_BUFFER_BYTES = 256 * 1024
RTT_US_AT, NEAR_US = 68, 2000  # in TCP_INFO; a loopback that emulates a long path wants long buffers

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Progress(msgspec.Struct, frozen=True):
    """How far a transfer is, as this side knows it."""

    transfer: int
    done_bytes: int
    size_bytes: int
    streams: int
    seconds: float


class BulkReceipt(msgspec.Struct, frozen=True):
    """A whole transfer. Both sides have the same `transfer`, `size_bytes` and `root`, the digest of the object.

    moved_bytes    what crossed the network in this call
    resumed_bytes  what was in place before it
    streams        the most that ran at a time
    data           what was received, if that is memory
    """

    transfer: int
    name: str
    size_bytes: int
    moved_bytes: int
    resumed_bytes: int
    streams: int
    seconds: float
    root: bytes
    data: memoryview | None = None


class Open(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """One stream of a transfer. `known` is the incarnation of the receiver that the sender knows the map of, or 0."""

    transfer: Number
    size: Number
    chunk_bytes: Annotated[int, msgspec.Meta(ge=CHUNK_BYTES_MIN, le=CHUNK_BYTES_MAX)]
    digest: Annotated[int, msgspec.Meta(ge=1, le=2)]
    name: Annotated[str, msgspec.Meta(max_length=255)]
    known: Number


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The receiver takes chunks. `map` has a bit for each chunk in place; None where the sender knows it."""

    incarnation: Number
    streams_max: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    map: bytes | None


class Go(msgspec.Struct, frozen=True, array_like=True, tag="go"):
    """Chunk frames follow."""


class Wait(msgspec.Struct, frozen=True, array_like=True, tag="wait"):
    """The answer takes its time, at a disk: whoever asked waits on."""


class Finish(msgspec.Struct, frozen=True, array_like=True, tag="finish"):
    """All is acknowledged, and this is the digest of all."""

    transfer: Number
    root: Digest


class Finished(msgspec.Struct, frozen=True, array_like=True, tag="finished"):
    """The digests are equal, and the object is where it belongs, as durably as its place can be."""

    root: Digest


class Missing(msgspec.Struct, frozen=True, array_like=True, tag="missing"):
    """Not all of it is in place here: open streams again to learn what is."""


class Refuse(msgspec.Struct, frozen=True, array_like=True, tag="refuse"):
    kind: Annotated[str, msgspec.Meta(max_length=32)]
    reason: Annotated[str, msgspec.Meta(max_length=1000)]


Message = Open | Ready | Wait | Go | Finish | Finished | Missing | Refuse
_codec: Codec[Message] = Codec(Open, Ready, Wait, Go, Finish, Finished, Missing, Refuse)
_KINDS: dict[str, type[NovaError]] = {
    kind.code: kind for kind in (CorruptionError, LimitError, PeerError, UnavailableError, UsageError)
}


def refusal(error: Exception) -> Refuse:
    code = error.code if isinstance(error, NovaError) and error.code in _KINDS else UnavailableError.code
    return Refuse(code, str(error)[:1000])


def raise_refusal(message: Refuse, who: str) -> None:
    """Raises what the other side reports."""
    text = "".join(c if c.isprintable() else "?" for c in message.reason)
    raise _KINDS.get(message.kind, UnavailableError)(f"{who} refused: {text}")


def host_and_port(address: str) -> tuple[str, int]:
    """Of ``host:port`` or ``tcp://host:port``. Raises UsageError."""
    return split_address(address.removeprefix("tcp://"))


def check_key(address: str, key: bytes | None) -> None:
    """Without a key only what cannot leave this machine. Raises UsageError."""
    if key is None and not is_loopback(address.removeprefix("tcp://")):
        raise UsageError(
            f"address {address} can be reached from other machines and there is no cluster key; pass key= (32 random "
            f"bytes or more, the same on both sides), or use 127.0.0.1"
        )


def default_identity(cluster: str = "nova") -> Identity:
    return Identity(f"{socket.gethostname()}/{os.getpid()}"[:200], "local", cluster, 1, "")


def tune(sock: socket.socket) -> None:
    """Answers leave at once, and a machine that is gone is noticed though nothing is sent to it.

    On one machine buffers that grow as on a long path only push chunks out of the caches before they are read: small
    ones save a sixth of the CPU time.
    """
    near = struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), RTT_US_AT)[0] < NEAR_US
    if near and is_loopback(join_address(*sock.getpeername()[:2])):
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, buffer, LOOPBACK_BUFFER_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


class Once:
    """A transfer is run once, and in the process that made it: threads and locks do not come along through a fork."""

    def __init__(self, what: str) -> None:
        self._what, self._pid, self._begun = what, os.getpid(), False

    def begin(self) -> None:
        """Raises UsageError the second time, and in another process."""
        if os.getpid() != self._pid:
            raise UsageError(f"this {self._what} was made in process {self._pid}; make one in process {os.getpid()}")
        if self._begun:
            raise UsageError(f"a {self._what} runs once; make a new one")
        self._begun = True


class Call:
    """A session on a connected blocking socket, read frame by frame: what follows the last frame stays in the socket.

    seconds  how long the other side may take for the handshake, and then for each answer

    raises   PeerError, UnavailableError, from all methods
    """

    def __init__(
        self, sock: socket.socket, identity: Identity, *, key: bytes | None, initiator: bool, seconds: float
    ) -> None:
        self.sock = sock
        self._key = key
        self._seconds = seconds
        self._until_ns = time.monotonic_ns() + int(seconds * 1e9)
        self._session = Session(
            identity,
            key=key,
            initiator=initiator,
            nonce=os.urandom(NONCE_BYTES),
            now_ns=time.monotonic_ns(),
            limits=Limits(),
            capabilities=(*CAPABILITIES, CAPABILITY),
        )
        self._messages: list[memoryview] = []
        self._flush()
        while not self._session.established:
            self._read_frame()
        if CAPABILITY not in self._session.capabilities:
            raise PeerError(f"node {self.peer.node!r} moves no bulk objects: it lacks the capability {CAPABILITY!r}")

    @property
    def peer(self) -> Identity:
        assert self._session.peer is not None
        return self._session.peer

    @property
    def keyed(self) -> bool:
        return self._key is not None

    def keys(self, sender: bool) -> tuple[bytes | None, bytes | None]:
        """(out, in) for the frames of chunks and acknowledgements; Nones without a cluster key."""
        pair = self._session.subkey("bulk chunks"), self._session.subkey("bulk acknowledgements")
        return pair if sender else (pair[1], pair[0])

    def send(self, message: Message) -> None:
        self._until_ns = time.monotonic_ns() + int(self._seconds * 1e9)
        self._session.send(_codec.encode(message))
        self._flush()

    def recv(self) -> Message:
        """The next message that is more than a word of patience."""
        while True:
            self._until_ns = time.monotonic_ns() + int(self._seconds * 1e9)
            while not self._messages:
                self._read_frame()
            message = _codec.decode(self._messages.pop(0))
            if not isinstance(message, Wait):
                return message

    def release(self) -> socket.socket:
        """The socket, for the loops of csrc/bulk.h: without a timeout, and so really blocking."""
        self.sock.settimeout(None)
        return self.sock

    def _flush(self) -> None:
        for frame in self._session.take_output():
            self._within(partial(self.sock.sendall, frame))

    def _read_frame(self) -> None:
        # The header is judged before its length is believed.
        header = self._exactly(HEADER_BYTES)
        self._take(header)
        (length,) = struct.unpack_from(">I", header, 4)
        if length:
            self._take(self._exactly(length))
        self._flush()

    def _take(self, data: Buffer) -> None:
        try:
            events = self._session.receive(data, time.monotonic_ns())
        except PeerError:
            self._flush()  # a refusal, if there is one
            raise
        for event in events:
            if isinstance(event, memoryview):
                self._messages.append(event)
                self._session.consumed([event])
            elif isinstance(event, Goodbye):
                raise PeerError(f"node {self.peer.node!r} said goodbye: {event.reason}")
            else:
                assert isinstance(event, Established)

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        with memoryview(data) as view:
            have = 0
            while have < size:
                got = self._within(partial(self.sock.recv_into, view[have:]))
                if not got:
                    raise PeerError("the peer hung up")
                have += got
        return data

    def _within(self, act: Callable[[], T]) -> T:
        left = (self._until_ns - time.monotonic_ns()) / 1e9
        if left <= 0:
            raise UnavailableError("no answer in time from the other side")
        self.sock.settimeout(left)
        try:
            return act()
        except TimeoutError:
            raise UnavailableError("no answer in time from the other side") from None
        except OSError as error:
            raise PeerError(f"the connection broke: {(error.strerror or str(error)).lower()}") from None
