"""The transport seam: ordered, authenticated, bounded message streams between nodes."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from nova.types import Buffer as Buffer  # a word of this seam

PRIORITY_BULK = 0
PRIORITY_URGENT = 3
"""Priorities of messages: higher ones leave first, between the frames of large ones of lower priority."""


class Identity(msgspec.Struct, frozen=True):
    """Who a node says it is, proved by the cluster key in the handshake."""

    node: str
    region: str
    cluster: str
    incarnation: int
    address: str
    """host:port on which the node listens for peers; empty if it does not."""


class Certified(msgspec.Struct, frozen=True):
    """What the encrypted channel under a session proved before it began: who the other side is."""

    cluster: str
    region: str
    node: str
    binding: bytes
    """Of this pair of certificates; what a session proves covers it."""

    def mismatch(self, hello: Identity) -> str:
        """What a hello says of itself and the certificate does not; empty if they are of one mind.

        Parts of a cluster, ``nova/strong`` say, are the cluster's.
        """
        for what, said, certified in (
            ("node", hello.node, self.node),
            ("region", hello.region, self.region),
            ("cluster", hello.cluster.partition("/")[0], self.cluster),
        ):
            if said != certified:
                return f"{what} {said!r}, and {certified!r} in the certificate"
        return ""


class Limits(msgspec.Struct, frozen=True):
    """What a stream accepts from the other side, and how much it queues for it."""

    frame_bytes_max: int = 16 * 1024 * 1024
    queue_bytes_max: int = 32 * 1024 * 1024
    credit_bytes: int = 4 * 1024 * 1024
    message_bytes_max: int = 256 * 1024 * 1024
    handshake_ms_max: int = 5_000
    idle_ms_max: int = 30_000


class StreamStats(msgspec.Struct, frozen=True):
    """What one stream has carried so far. `rtt_ns` is 0 until the first answer to a ping."""

    sent_bytes: int
    received_bytes: int
    rtt_ns: int
    queue_bytes: int


class Tls(Protocol):
    """TLS under a stream, as `nova.transport.tls` has it."""

    def context(self, server: bool) -> ssl.SSLContext:
        """What new connections are made with; asked for each, so that certificates may change."""

    def identity(self) -> Identity:
        """Who this side is, by its certificate."""

    def certified(self, end: ssl.SSLObject | ssl.SSLSocket) -> Certified:
        """What the handshake has proved of the peer, for `Session(certified=)`. Raises PeerError."""

    def check(self, end: ssl.SSLObject | ssl.SSLSocket, peer: Identity) -> None:
        """Does the peer's certificate fit the identity that it proved? Raises PeerError."""


class Stream(Protocol):
    """One session with one peer. Messages arrive whole, at most once, and in order within a priority.

    A broken stream stays broken. Messages are read-only views of pooled memory: valid as long as they are held, and
    ``release()`` (or ``with``, or the last reference going) gives the memory back, in any thread. A stream belongs to
    the process that opened it: a fork of it gets UsageError.
    """

    @property
    def local(self) -> Identity: ...
    @property
    def peer(self) -> Identity: ...
    @property
    def closed(self) -> bool: ...

    def send(self, payload: Buffer, priority: int = PRIORITY_BULK) -> bool:
        """Queue one message. False, and nothing queued, when the queue is full or the stream is closed.

        payload   any buffer, NumPy arrays too; it is the caller's again on return
        raises    LimitError if the peer would never accept it
        """

    def send_batch(self, slab: Buffer, offsets: Buffer, priority: int = PRIORITY_BULK, first: int = 0) -> int:
        """Queue messages ``slab[offsets[i]:offsets[i + 1]]`` from i = `first` on; returns how many of them are.

        Fewer than all: the queue is full (`drain`, then go on). Both are the caller's again on return.

        offsets   int64, ascending, one more than there are messages
        """

    async def put(self, payload: Buffer, priority: int = PRIORITY_BULK) -> None:
        """Send one message from where it stands, without a copy; returns when its buffer may be changed again.

        Waits for room in the queue. Cancelled before it is queued, the message is not sent; later, what has not left is
        copied, and it is. Raises PeerError if the stream is closed or broke.
        """

    async def drain(self) -> None:
        """Wait until the queue is below half of its limit. Raises PeerError if the stream broke."""

    async def recv(self) -> memoryview | None:
        """The next message, None once the peer has closed in good order. Raises PeerError if the stream broke.

        Cancelling it loses nothing.
        """

    async def recv_batch(self) -> list[memoryview]:
        """All messages that are here, waiting for the first; empty once the peer has closed. Raises PeerError."""

    async def recv_slab(self) -> tuple[memoryview, memoryview]:
        """As recv_batch, in one piece: bytes, and int64 offsets, one more than there are messages."""

    async def close(self, reason: str = "") -> None:
        """Send what is queued, say goodbye with `reason`, close. May be called twice."""

    def abort(self, reason: str) -> None:
        """Break the stream now; nothing queued is sent. `reason` is for the local side only."""

    @property
    def initiator(self) -> bool:
        """True on the side that connected."""

    @property
    def reason(self) -> str:
        """Why the stream is closed, in one line; empty while it is open."""

    @property
    def stats(self) -> StreamStats: ...


class Transport(Protocol):
    """Makes streams. One engine (TCP, io_uring, RDMA, the simulated network) is one implementation."""

    async def listen(self, address: str, accept: Callable[[Stream], Awaitable[None]]) -> str:
        """Accept peers on `address` (host:port, port 0 picks one); returns the address in use."""

    async def connect(self, address: str) -> Stream:
        """A stream to the node at `address`, both sides proved. Raises PeerError or UnavailableError."""

    async def close(self) -> None:
        """Stop listening and close every stream. May be called twice."""
