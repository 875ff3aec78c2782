"""Raw byte streams of many connections in batches: one call receives from all of them, one call sends to all of them.

For services that speak a protocol of their own to hundreds of connections from one thread. No session, no proof of who
is there: `nova.transport.uring` has that. On io_uring a batch costs one system call, whatever its size.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from nova._native.uring import ffi, lib
from nova.errors import UsageError
from nova.transport.base import Buffer
from nova.transport.engine import Engine, EngineOptions, EngineStats, Kind, probe
from nova.transport.tcp import join_address, split_address

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BACKLOG = 1024
OPTIONS = EngineOptions(
    submissions=1024, completions=8192, buffers=1024, buffer_bytes=4096, queue_bytes_max=4 * 1024 * 1024
)


class Batch(NamedTuple):
    """Piece i is ``slab[offsets[i]:offsets[i + 1]]`` of ``connections[i]``. Valid until the next `recv_batch`."""

    slab: memoryview
    offsets: npt.NDArray[np.uint64]
    connections: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.connections)


class Change(msgspec.Struct, frozen=True):
    """What became of a connection; `error` is the errno of one that broke."""

    what: Literal["accepted", "connected", "closed"]
    connection: int
    error: int = 0


class Hub:
    """Connections of one thread.

    kind        which part of the kernel; None takes io_uring where it is allowed, else epoll
    slab_bytes  received bytes that one batch has room for
    pieces_max  received pieces that one batch has room for
    raises      UsageError in another thread than the one that made it, EngineError where there is no such engine

    A connection that does not read what it is sent piles it up here, up to `queue_bytes_max` of the options; then it is
    closed with ENOBUFS.
    """

    def __init__(
        self,
        kind: Kind | None = None,
        *,
        options: EngineOptions = OPTIONS,
        slab_bytes: int = 1 << 20,
        pieces_max: int = 4096,
    ) -> None:
        import numpy as np

        if slab_bytes < options.buffer_bytes or pieces_max < 1:
            raise UsageError(
                f"slab_bytes {slab_bytes} and pieces_max {pieces_max}; a slab has room for one buffer of "
                f"{options.buffer_bytes} bytes at least, and a batch for one piece"
            )
        if kind is None:
            kind = Kind.EPOLL if probe(Kind.URING) else Kind.URING
        self._engine = Engine(kind, options, driven=True)
        self._changes: list[Change] = []
        self._slab = bytearray(slab_bytes)
        self._offsets = np.zeros(pieces_max + 1, np.uint64)
        self._connections = np.zeros(pieces_max, np.uint32)
        self._into = (
            ffi.from_buffer("uint8_t[]", self._slab, require_writable=True),
            slab_bytes,
            ffi.from_buffer("uint64_t[]", self._offsets, require_writable=True),
            ffi.from_buffer("uint32_t[]", self._connections, require_writable=True),
            pieces_max,
        )
        self._view = memoryview(self._slab).toreadonly()

    @property
    def kind(self) -> Kind:
        return self._engine.kind

    def listen(self, address: str) -> str:
        """Accept on host:port (port 0 picks one); returns the address in use. Raises UsageError."""
        host, port = split_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            server = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise UsageError(f"cannot listen on {address}: {os.strerror(error.errno or 0).lower()}") from None
        name = server.getsockname()
        self._engine.listen(server.detach())
        return join_address(name[0], name[1])

    def connect(self, address: str) -> int:
        """Begin to connect to a numeric host:port; a change tells how it ended. Returns the connection."""
        return self._engine.connect(*split_address(address))

    def recv_batch(self, timeout_s: float | None = None) -> Batch:
        """What has arrived on all connections, after waiting up to `timeout_s` (None: without end) for the first piece.

        Empty when time is up, and when something else happened: see `changes`. What was queued by `send_batch` leaves
        with this call, in the same system call on io_uring.
        """
        engine = self._engine
        timeout_ns = -1 if timeout_s is None else int(timeout_s * 1e9)
        count = engine._checked(lib.nova_engine_recv_batch(engine._alive(), *self._into, timeout_ns))
        if not count:
            engine.poll(self, notices=True)
        return Batch(self._view, self._offsets[: count + 1], self._connections[:count])

    def send_batch(self, slab: Buffer, offsets: npt.NDArray[np.uint64], connections: npt.NDArray[np.uint32]) -> int:
        """Queue ``slab[offsets[i]:offsets[i + 1]]`` for ``connections[i]``; returns how many pieces were.

        The bytes are copied: all three may be changed again at once. Pieces for connections that are gone, and empty
        ones, are left out. Raises UsageError for offsets that do not ascend or leave the slab.
        """
        count = len(connections)
        if not count:
            return 0
        if offsets.dtype != self._offsets.dtype or connections.dtype != self._connections.dtype:
            raise UsageError(
                f"offsets of {offsets.dtype} and connections of {connections.dtype}; they are uint64 and uint32"
            )
        engine = self._engine
        status = -errno.EINVAL
        if len(offsets) == count + 1:
            status = lib.nova_engine_send_batch(
                engine._alive(),
                ffi.from_buffer("uint8_t[]", slab),
                memoryview(slab).nbytes,
                ffi.from_buffer("uint64_t[]", offsets),
                ffi.from_buffer("uint32_t[]", connections),
                count,
            )
        if status == -errno.EINVAL:
            raise UsageError(
                f"{len(offsets)} offsets up to {int(offsets.max(initial=0))} for {count} pieces in a slab of "
                f"{memoryview(slab).nbytes} bytes; they ascend within it, one more than there are pieces"
            )
        return engine._checked(status)

    def send(self, connection: int, data: Buffer) -> bool:
        """Queue bytes for one connection; they are copied. False if it is gone."""
        return self._engine.send(connection, data, copy=True) >= 0

    def disconnect(self, connection: int) -> None:
        """Close it once what is queued has left."""
        self._engine.shut(connection)

    def changes(self) -> list[Change]:
        """Connections that came and went since the last call."""
        self._engine.poll(self, notices=True)
        out, self._changes = self._changes, []
        return out

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    def close(self) -> None:
        """End every connection. May be called twice."""
        self._engine.close()

    # -- what the engine tells, but for received bytes -----------------------------------------------------------

    def accepted(self, connection: int, listener: int) -> None:
        self._changes.append(Change("accepted", connection))

    def connected(self, connection: int) -> None:
        self._changes.append(Change("connected", connection))

    def closed(self, connection: int, error: int) -> None:
        self._changes.append(Change("closed", connection, error))

    def received(self, connection: int, data: memoryview) -> None:
        raise AssertionError("received bytes are taken by recv_batch")

    def drained(self, connection: int) -> None:
        pass

    def accept_failed(self, listener: int, error: int) -> None:
        pass

    def failed(self, error: int) -> None:
        pass
