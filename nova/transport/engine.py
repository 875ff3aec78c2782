"""The native engine that moves the bytes of many sockets: on io_uring, or on epoll where the kernel forbids that.

`Engine` is the thin face of csrc/uring.h. With a thread of its own it raises `fileno()` whenever events wait, and
`poll` hands them out; `Hub` (nova.transport.hub) drives one from the caller's thread instead. Neither knows of
sessions: `nova.transport.uring` puts those on top.
"""

from __future__ import annotations

import errno
import os
import resource
import weakref
from enum import IntEnum
from typing import Any, Protocol

import msgspec

from nova._native.uring import ffi, lib
from nova.errors import UnavailableError, UsageError
from nova.transport.base import Buffer

CAUSE_BYTES = 256
EVENTS_MAX = 256
CLOSED_WITHOUT_ERROR = 0


class Kind(IntEnum):
    """Which part of the kernel an engine stands on."""

    URING = lib.NOVA_ENGINE_URING
    EPOLL = lib.NOVA_ENGINE_EPOLL

    @property
    def title(self) -> str:
        return "io_uring" if self is Kind.URING else "epoll"


class EngineError(UnavailableError):
    """The engine cannot be opened here, or has failed: another kind of it may work."""


class EngineOptions(msgspec.Struct, frozen=True):
    """Sizes of one engine, and switches that force what older kernels and special paths need."""

    submissions: int = 512
    completions: int = 4096
    buffers: int = 128
    """Of the pool for received bytes, a power of two."""
    buffer_bytes: int = 64 * 1024
    connections_max: int = 4096
    zerocopy_bytes_min: int = 64 * 1024
    queue_bytes_low: int = 256 * 1024
    queue_bytes_max: int = 0
    """A connection whose queue grows over it is closed with ENOBUFS; 0: no limit, the caller heeds what waits."""
    defer: bool = True
    multishot: bool = True
    fixed_files: bool = True
    zerocopy: bool = True
    keep_zerocopy: bool = False
    """Go on with zero-copy sends where the kernel turns out to copy all the same, as on loopback."""

    def flags(self, driven: bool) -> int:
        return (
            (lib.NOVA_ENGINE_DRIVEN if driven else 0)
            | (0 if self.defer else lib.NOVA_ENGINE_NO_DEFER)
            | (0 if self.multishot else lib.NOVA_ENGINE_NO_MULTISHOT)
            | (0 if self.fixed_files else lib.NOVA_ENGINE_NO_FIXED_FILES)
            | (0 if self.zerocopy else lib.NOVA_ENGINE_NO_ZEROCOPY)
            | (lib.NOVA_ENGINE_KEEP_ZEROCOPY if self.keep_zerocopy else 0)
        )


class EngineStats(msgspec.Struct, frozen=True):
    """What an engine has done since it was opened, and what the kernel gave it. See csrc/uring.h."""

    turns: int
    syscalls: int
    received_bytes: int
    received: int
    sent_bytes: int
    sends: int
    sends_short: int
    zerocopy: int
    zerocopy_copied: int
    zerocopy_fixed: int
    zerocopy_pending: int
    no_buffers: int
    overflows: int
    rearmed: int
    wakes: int
    buffers_free: int
    connections: int
    deferred: bool
    multishot: bool
    fixed_files: bool
    zerocopy_on: bool


class Receiver(Protocol):
    """Who is told what happened, in the thread that polls."""

    def accepted(self, connection: int, listener: int) -> None: ...
    def connected(self, connection: int) -> None: ...
    def received(self, connection: int, data: memoryview) -> None:
        """`data` lies in a buffer of the engine and is only lent for the call."""

    def drained(self, connection: int) -> None: ...
    def closed(self, connection: int, error: int) -> None:
        """The last word of a connection; `error` is an errno, 0 for the end in good order."""

    def accept_failed(self, listener: int, error: int) -> None: ...
    def failed(self, error: int) -> None:
        """The engine has ended; all its connections have been told closed before."""


def probe(kind: Kind) -> str:
    """Why an engine of this kind cannot be opened here, in one line; empty if it can. Takes a fraction of a ms."""
    cause = ffi.new("char[]", CAUSE_BYTES)
    if lib.nova_engine_probe(int(kind), cause, CAUSE_BYTES) == 0:
        return ""
    return str(ffi.string(cause).decode())


class Engine:
    """Sockets by number. May be used from any thread, but `turn` and what the class says otherwise.

    raises  EngineError if this machine cannot have it, UsageError for sizes that cannot be; after that, calls raise
            UsageError in a child process and in the wrong thread, EngineError once the engine has ended
    """

    def __init__(self, kind: Kind, options: EngineOptions | None = None, *, driven: bool = False) -> None:
        self.kind = kind
        self.driven = driven
        self.options = options = options or EngineOptions()
        try:
            given = ffi.new(
                "nova_engine_options *",
                {
                    "engine": int(kind),
                    "flags": options.flags(driven),
                    "submissions": options.submissions,
                    "completions": options.completions,
                    "buffers": options.buffers,
                    "buffer_bytes": options.buffer_bytes,
                    "connections_max": options.connections_max,
                    "zerocopy_bytes_min": options.zerocopy_bytes_min,
                    "queue_bytes_low": options.queue_bytes_low,
                    "queue_bytes_max": options.queue_bytes_max,
                },
            )
        except OverflowError as error:
            raise UsageError(f"{options}: {error}; sizes are from 0 to 4294967295") from None
        failure = ffi.new("int *")
        cause = ffi.new("char[]", CAUSE_BYTES)
        self._engine = lib.nova_engine_open(given, failure, cause, CAUSE_BYTES)
        if self._engine == ffi.NULL:
            text = ffi.string(cause).decode()
            if failure[0] == -errno.EINVAL:
                raise UsageError(f"{text}; given are {options}")
            raise EngineError(f"{kind.title}: {text}")
        self._pid = os.getpid()
        self._events = ffi.new("nova_event[]", EVENTS_MAX)
        self._held: dict[int, Any] = {}
        self._regions: list[Any] = []
        self._token = 0
        # The kernel may read what is held until the engine is closed, so both end together, and in this order.
        self._finalizer = weakref.finalize(self, _end, self._engine, self._held, self._regions)

    def fileno(self) -> int:
        """Readable whenever `poll` has something to tell; of a driven engine, whenever `turn` has something to do."""
        fd = lib.nova_engine_poll_fd if self.driven else lib.nova_engine_wake_fd
        return self._checked(fd(self._alive()))

    # -- what to do ----------------------------------------------------------------------------------------------

    def listen(self, fd: int) -> int:
        """Accept from this listening socket, which becomes the engine's; returns the number of the listener."""
        os.set_blocking(fd, self.kind is Kind.URING)
        return self._checked(lib.nova_engine_listen(self._alive(), fd))

    def unlisten(self, listener: int) -> None:
        """Accept no more there. New connections are refused when this returns."""
        self._checked(lib.nova_engine_unlisten(self._alive(), listener))

    def connect(self, host: str, port: int) -> int:
        """Begin to connect to a numeric address; `connected` or `closed` follows. Returns the connection."""
        status = lib.nova_engine_connect(self._alive(), host.encode(), port)
        if status == -errno.EINVAL:
            raise UsageError(f"{host!r} is no numeric address; look the name up first")
        return self._checked(status)

    def peer(self, connection: int) -> tuple[str, int] | None:
        """Numeric host and port of the other side; None if the connection is gone."""
        out = ffi.new("char[]", 96)
        status = lib.nova_engine_peer(self._alive(), connection, out, 96)
        if status in (lib.NOVA_ENGINE_E_GONE, -errno.ENOTCONN):
            return None
        self._checked(status)
        host, _, port = ffi.string(out).decode().partition(" ")
        return host, int(port)

    def send(self, connection: int, data: Buffer, *, copy: bool) -> int:
        """Queue bytes; returns how many wait now, -1 if the connection takes none any more.

        Without `copy`, `data` is borrowed: it must not change, and is referred to until the kernel needs it no more.
        """
        engine = self._alive()
        view = ffi.from_buffer(data)
        if not view_bytes(view):
            return 0
        if copy:
            return self._queued(lib.nova_engine_send(engine, connection, view, view_bytes(view), 0))
        self._token = token = self._token + 1
        self._held[token] = view
        queued = lib.nova_engine_send(engine, connection, view, view_bytes(view), token)
        if queued < 0:
            del self._held[token]
        return self._queued(queued)

    def shut(self, connection: int) -> None:
        """Close once what is queued has left. Of a connection that is gone, nothing."""
        self._told(lib.nova_engine_shut(self._alive(), connection))

    def abort(self, connection: int) -> None:
        """Close now; the other side sees a reset. Of a connection that is gone, nothing."""
        self._told(lib.nova_engine_abort(self._alive(), connection))

    def register(self, memory: Buffer) -> None:
        """Register memory with the ring: zero-copy sends out of it then pin no pages. It is kept until the end.

        raises  EngineError naming the limit if the kernel may not lock as much
        """
        view = ffi.from_buffer(memory)
        status = lib.nova_engine_register(self._alive(), view, view_bytes(view))
        if status == -errno.ENOMEM:
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            raise EngineError(
                f"cannot lock {view_bytes(view)} bytes: the limit of locked memory is {limit} bytes; raise it with "
                f"ulimit -l, or LimitMEMLOCK= of the unit"
            )
        self._checked(status)
        self._regions.append(view)

    # -- what happened -------------------------------------------------------------------------------------------

    def poll(self, receiver: Receiver, *, notices: bool = False) -> int:
        """Tell the receiver all that has happened; returns how many events that were. Does not wait.

        notices  only what a batch of received bytes passed over
        """
        engine, events, total = self._alive(), self._events, 0
        take = lib.nova_engine_notices if notices else lib.nova_engine_events
        while n := self._checked(take(engine, events, EVENTS_MAX)):
            lent = []
            try:
                for i in range(n):
                    event = events[i]
                    if event.kind == lib.NOVA_RECEIVED:
                        lent.append(event.buffer)
                        receiver.received(event.connection, memoryview(ffi.buffer(event.bytes, event.length)))
                    else:
                        self._tell(event, receiver)
            finally:
                if lent:
                    lib.nova_engine_release(engine, lent, len(lent))
            total += n
            if n < EVENTS_MAX:
                break
        return total

    def _tell(self, event: Any, receiver: Receiver) -> None:
        kind = event.kind
        if kind == lib.NOVA_SENT:
            self._held.pop(event.token, None)
        elif kind == lib.NOVA_ACCEPTED:
            receiver.accepted(event.connection, event.listener)
        elif kind == lib.NOVA_CONNECTED:
            receiver.connected(event.connection)
        elif kind == lib.NOVA_DRAINED:
            receiver.drained(event.connection)
        elif kind == lib.NOVA_CLOSED:
            receiver.closed(event.connection, event.result)
        elif event.listener:
            receiver.accept_failed(event.listener, event.result)
        else:
            receiver.failed(event.result)

    def turn(self, timeout_s: float | None) -> None:
        """Drive it: submit, and wait up to `timeout_s` (None: without end) for something. Only its own thread may."""
        self._checked(lib.nova_engine_turn(self._alive(), -1 if timeout_s is None else int(timeout_s * 1e9)))

    @property
    def pending(self) -> bool:
        """Whether a driven engine has work for a turn already: then nobody must wait for `fileno` first."""
        return bool(self._checked(lib.nova_engine_pending(self._alive())))

    @property
    def held(self) -> int:
        """Buffers lent to the engine that it has not given back."""
        return len(self._held)

    @property
    def stats(self) -> EngineStats:
        out = ffi.new("nova_engine_stats *")
        lib.nova_engine_stats_read(self._alive(), out)
        values = {name: getattr(out, name) for name in EngineStats.__struct_fields__}
        for name in ("deferred", "multishot", "fixed_files", "zerocopy_on"):
            values[name] = bool(values[name])
        return EngineStats(**values)

    def fail(self, error: int) -> None:
        """End as if the kernel had failed with this errno, for tests of what comes after."""
        self._checked(lib.nova_engine_fail(self._alive(), error))

    def close(self) -> None:
        """End every connection and wait until the kernel has let go of all memory. May be called twice.

        raises  UsageError from another thread than the one that drives it
        """
        if self._finalizer.alive:
            self._checked(lib.nova_engine_close(self._engine))
            self._finalizer()

    # -- inside --------------------------------------------------------------------------------------------------

    def _alive(self) -> Any:
        if not self._finalizer.alive:
            raise EngineError(f"this {self.kind.title} engine is closed; open another one")
        return self._engine

    def _checked(self, status: int) -> int:
        if status >= 0:
            return status
        if status == lib.NOVA_ENGINE_E_FORKED:
            raise UsageError(
                f"this engine belongs to process {self._pid}, and this is its child {os.getpid()}: open one here"
            )
        if status == lib.NOVA_ENGINE_E_THREAD:
            raise UsageError("this engine is driven by the thread that opened it: turn and close it there")
        if status == lib.NOVA_ENGINE_E_ENDED:
            raise EngineError(f"the {self.kind.title} engine has ended; open another one")
        if status == lib.NOVA_ENGINE_E_FULL:
            raise EngineError(f"the engine is full: {self.options.connections_max} connections; raise connections_max")
        if status == lib.NOVA_ENGINE_E_GONE:
            raise UsageError("no such connection or listener: it is closed")
        if status == lib.NOVA_ENGINE_E_KERNEL:
            raise EngineError("the kernel cannot do this")
        raise EngineError(f"{self.kind.title}: {os.strerror(-status)}")

    def _queued(self, status: int) -> int:
        return -1 if status == lib.NOVA_ENGINE_E_GONE else self._checked(status)

    def _told(self, status: int) -> None:
        if status != lib.NOVA_ENGINE_E_GONE:
            self._checked(status)


def view_bytes(view: Any) -> int:
    return int(ffi.sizeof(view))


def _end(engine: Any, held: dict[int, Any], regions: list[Any]) -> None:
    """Close and free. A driven engine that is collected in another thread than its own can only be kept."""
    status = lib.nova_engine_close(engine)
    if status == lib.NOVA_ENGINE_E_THREAD:
        _kept.append((engine, held, regions))
        return
    lib.nova_engine_free(engine)
    if status > 0:  # the kernel still reads what was sent
        _kept.append((dict(held), list(regions)))
    held.clear()
    regions.clear()


_kept: list[Any] = []
