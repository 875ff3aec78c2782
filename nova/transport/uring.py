"""Streams on the native engine: `UringTransport` where the kernel allows io_uring, `EpollTransport` everywhere else.

The same `Session` and `SessionStream` as over asyncio, so the bytes on the wire are the same; only who moves them
differs. All transports of one kind in one event loop share an engine, which is opened with the first of them and closed
with the last. It has a thread of its own, without the GIL, or is driven by the loop: once a turn, for all connections.
With many streams the thread pays, since one wake-up serves them all; with a few, each hand-over costs some 10 us of a
round trip, and asyncio's sockets (`nova.transport.tcp`) are quicker.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import ClassVar

from nova.errors import UnavailableError, UsageError
from nova.transport.base import Identity, Limits, Stream
from nova.transport.engine import Engine, EngineError, Kind, probe
from nova.transport.session import NONCE_BYTES, Session
from nova.transport.stream import SessionStream, logger
from nova.transport.tcp import join_address, split_address

__all__ = ["EngineTransport", "EpollTransport", "UringTransport", "engine", "epoll_engine", "probe"]

WRITE_BYTES_HIGH = 1 << 20
COPY_BYTES_MAX = 16 * 1024
"""Shorter writes are copied, which costs less than to keep track of who owns them."""
HANDSHAKES_MAX = 256
BACKLOG = 256


class _Pipe:
    """One socket of the engine, as a stream sees it."""

    __slots__ = ("_connection", "_home", "_paused", "stream")

    def __init__(self, home: _Home, connection: int) -> None:
        self._home = home
        self._connection = connection
        self._paused = False
        self.stream: SessionStream | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        home = self._home
        if home.ended or not len(data):
            return
        try:
            queued = home.engine.send(self._connection, data, copy=len(data) <= COPY_BYTES_MAX)
        except EngineError:
            return  # it has just failed, and is about to say so
        home.asked()
        if queued > WRITE_BYTES_HIGH and not self._paused and self.stream is not None:
            self._paused = True
            self.stream.pause_writing()

    def drained(self) -> None:
        if self._paused and self.stream is not None:
            self._paused = False
            self.stream.resume_writing()

    def close(self) -> None:
        if not self._home.ended:
            with contextlib.suppress(EngineError):
                self._home.engine.shut(self._connection)
            self._home.asked()

    def abort(self) -> None:
        self._home.abort(self._connection)


class _Home:
    """An engine in an event loop: its events find their pipes, dials and listeners here."""

    def __init__(self, kind: Kind, loop: asyncio.AbstractEventLoop, *, driven: bool) -> None:
        self.engine = Engine(kind, driven=driven)
        self.driven = driven
        self.kind = kind
        self.loop = loop
        self.users = 0
        self.ended = False
        self.pipes: dict[int, _Pipe] = {}
        self.dials: dict[int, asyncio.Future[None]] = {}
        self.listeners: dict[int, Callable[[int], None]] = {}
        self.mourners: set[Callable[[str], None]] = set()
        self.turn_due = False
        self.fd = self.engine.fileno()
        loop.add_reader(self.fd, self._turn if driven else self._poll)

    def _poll(self) -> None:
        if not self.ended:
            self.engine.poll(self)

    def _turn(self) -> None:
        self.turn_due = False
        if self.ended:
            return
        try:
            self.engine.turn(0)
        except EngineError as error:
            logger.debug("the last turn: %s", error)  # `failed` is among the events
        self.engine.poll(self)
        if not self.ended and self.engine.pending:
            self.asked()

    def asked(self) -> None:
        """The engine was given something to do: what drives itself knows, else it is for the next turn of the loop."""
        if self.driven and not self.turn_due:
            self.turn_due = True
            self.loop.call_soon(self._turn)

    def abort(self, connection: int) -> None:
        if not self.ended:
            with contextlib.suppress(EngineError):
                self.engine.abort(connection)
            self.asked()

    def close(self) -> None:
        if not self.ended:
            self.loop.remove_reader(self.fd)
            self.ended = True
        self.engine.close()

    # -- Receiver ------------------------------------------------------------------------------------------------

    def accepted(self, connection: int, listener: int) -> None:
        serve = self.listeners.get(listener)
        if serve is None:
            self.abort(connection)
        else:
            serve(connection)

    def connected(self, connection: int) -> None:
        dial = self.dials.pop(connection, None)
        if dial is not None and not dial.done():
            dial.set_result(None)

    def received(self, connection: int, data: memoryview) -> None:
        pipe = self.pipes.get(connection)
        if pipe is not None and pipe.stream is not None:
            pipe.stream.bytes_received(data)

    def drained(self, connection: int) -> None:
        pipe = self.pipes.get(connection)
        if pipe is not None:
            pipe.drained()

    def closed(self, connection: int, error: int) -> None:
        dial = self.dials.pop(connection, None)
        if dial is not None and not dial.done():
            dial.set_exception(OSError(error, os.strerror(error)))
        pipe = self.pipes.pop(connection, None)
        if pipe is not None and pipe.stream is not None:
            pipe.stream.pipe_lost(os.strerror(error).lower() if error else "")

    def accept_failed(self, listener: int, error: int) -> None:
        logger.warning("accepting failed, again in 100 ms: %s", os.strerror(error).lower())

    def failed(self, error: int) -> None:
        cause = f"the {self.kind.title} engine failed: {os.strerror(error).lower()}"
        logger.error("%s", cause)
        self.loop.remove_reader(self.fd)
        self.ended = True
        _forget(self)
        pipes, self.pipes = self.pipes, {}
        for pipe in pipes.values():
            if pipe.stream is not None:
                pipe.stream.pipe_lost(cause)
        for dial in self.dials.values():
            if not dial.done():
                dial.set_exception(EngineError(cause))
        self.dials.clear()
        for mourner in list(self.mourners):
            mourner(cause)


_homes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Kind, bool], _Home]] = (
    weakref.WeakKeyDictionary()
)


def _move_in(kind: Kind, driven: bool) -> _Home:
    loop = asyncio.get_running_loop()
    homes = _homes.setdefault(loop, {})
    home = homes.get((kind, driven))
    if home is None:
        home = homes[kind, driven] = _Home(kind, loop, driven=driven)
    home.users += 1
    return home


def _forget(home: _Home) -> None:
    homes = _homes.get(home.loop, {})
    if homes.get((home.kind, home.driven)) is home:
        del homes[home.kind, home.driven]


def _move_out(home: _Home) -> None:
    home.users -= 1
    if home.users == 0:
        _forget(home)
        home.close()


class EngineTransport:
    """Streams over TCP, moved by a native engine.

    key         the cluster key that both sides prove, 32 bytes or more; None only where the configuration says so
    send_delay  seconds that everything to a peer is held back, in order: stands in for the distance of regions
    threaded    whether the engine has a thread of its own, or is driven by the loop
    on_failed   told the cause if the engine ends by itself; streams and listeners are gone then, and the next
                `connect` or `listen` opens a new one
    raises      `connect` and `listen` raise EngineError, an UnavailableError, if there can be no such engine here
    """

    kind: ClassVar[Kind]

    def __init__(
        self,
        identity: Identity,
        *,
        key: bytes | None,
        limits: Limits | None = None,
        send_delay: Callable[[Identity], float] | None = None,
        threaded: bool = True,
        on_failed: Callable[[str], None] | None = None,
    ) -> None:
        self._identity = identity
        self._key = key
        self._limits = limits or Limits()
        self._send_delay = send_delay
        self._threaded = threaded
        self._on_failed = on_failed
        self._home: _Home | None = None
        self._listeners: dict[str, list[int]] = {}
        self._streams: set[SessionStream] = set()
        self._handshakes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- the Transport seam --------------------------------------------------------------------------------------

    async def listen(self, address: str, accept: Callable[[Stream], Awaitable[None]]) -> str:
        if self._closed:
            raise UsageError("this transport is closed; make a new one to listen")
        host, port = split_address(address)
        home = self._engine()
        sockets = await _bound(address, host, port)
        name = sockets[0].getsockname()
        bound = join_address(name[0], name[1])
        for each in sockets:
            listener = home.engine.listen(each.detach())
            home.listeners[listener] = lambda connection: self._accepted(connection, accept)
            self._listeners.setdefault(bound, []).append(listener)
        home.asked()
        return bound

    async def unlisten(self, address: str) -> None:
        """Accept no more on an address that `listen` returned; streams stay. Of any other address, nothing."""
        home = self._home
        for listener in self._listeners.pop(address, []):
            if home is not None and not home.ended:
                home.engine.unlisten(listener)
                home.listeners.pop(listener, None)
                home.asked()

    async def connect(self, address: str) -> Stream:
        if self._closed:
            raise UsageError("this transport is closed; make a new one to connect")
        host, port = split_address(address)
        seconds = self._limits.handshake_ms_max / 1000
        try:
            async with asyncio.timeout(seconds):
                connection = await self._dial(self._engine(), host, port)
        except TimeoutError:
            raise UnavailableError(f"no answer from {address} within {seconds:g} s") from None
        except OSError as error:
            raise UnavailableError(f"cannot connect to {address}: {_plain(error)}") from None
        assert self._home is not None
        stream = self._stream(self._home, connection, address, None)
        try:
            await asyncio.shield(stream.ready)
        except asyncio.CancelledError:
            stream.abort("given up while connecting")
            raise
        return stream

    async def close(self) -> None:
        self._closed = True
        for address in list(self._listeners):
            await self.unlisten(address)
        await asyncio.gather(*(stream.close("the node shuts down") for stream in list(self._streams)))
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._home is not None:
            self._leave()

    # -- inside --------------------------------------------------------------------------------------------------

    def _engine(self) -> _Home:
        home = self._home
        if home is None or home.ended:
            self._leave()
            home = self._home = _move_in(self.kind, not self._threaded)
            home.mourners.add(self._bereaved)
        return home

    def _leave(self) -> None:
        home, self._home = self._home, None
        if home is not None:
            home.mourners.discard(self._bereaved)
            _move_out(home)

    def _bereaved(self, cause: str) -> None:
        self._listeners.clear()
        if self._on_failed is not None:
            self._on_failed(cause)

    async def _dial(self, home: _Home, host: str, port: int) -> int:
        """The first address of the name that answers. Raises the OSError of the last that does not."""
        found = await home.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failure: OSError = OSError(errno.EADDRNOTAVAIL, "the name has no address")
        for _, _, _, _, name in found:
            connection = home.engine.connect(_numeric(name), port)
            home.asked()
            dial = home.dials[connection] = home.loop.create_future()
            try:
                await dial
                return connection
            except OSError as error:
                failure = error
            except asyncio.CancelledError:
                home.dials.pop(connection, None)
                home.abort(connection)
                raise
        raise failure

    def _accepted(self, connection: int, accept: Callable[[Stream], Awaitable[None]]) -> None:
        home = self._home
        assert home is not None
        if self._closed or self._handshakes >= HANDSHAKES_MAX:
            why = "closing" if self._closed else "too many handshakes under way"
            logger.warning("a connection is refused: %s", why)
            home.abort(connection)
            return

        def established(stream: SessionStream) -> None:
            self._handshakes -= 1

            async def run() -> None:
                await accept(stream)

            task = home.loop.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._accept_done)

        self._handshakes += 1
        peer = home.engine.peer(connection)
        self._stream(home, connection, join_address(*peer) if peer else "an unknown peer", established)

    def _stream(
        self, home: _Home, connection: int, remote: str, established: Callable[[SessionStream], None] | None
    ) -> SessionStream:
        pipe = _Pipe(home, connection)
        session = Session(
            self._identity,
            key=self._key,
            initiator=established is None,
            nonce=os.urandom(NONCE_BYTES),
            now_ns=time.monotonic_ns(),
            limits=self._limits,
        )

        def closed(stream: SessionStream) -> None:
            self._streams.discard(stream)
            if established is not None and (not stream.ready.done() or stream.ready.exception() is not None):
                self._handshakes -= 1

        stream = SessionStream(
            session, pipe, remote, on_established=established, on_closed=closed, send_delay=self._send_delay
        )
        pipe.stream = stream
        home.pipes[connection] = pipe
        self._streams.add(stream)
        return stream

    def _accept_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("serving a peer failed", exc_info=task.exception())


class UringTransport(EngineTransport):
    """Streams over TCP by io_uring: one ring in a thread of its own. See EngineTransport."""

    kind = Kind.URING


class EpollTransport(EngineTransport):
    """Streams over TCP by the same engine on epoll, which every kernel and container allows. See EngineTransport."""

    kind = Kind.EPOLL


async def _bound(address: str, host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of the name, all on one port."""
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, name in found:
            each = socket.socket(family, kind, protocol)
            sockets.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind((name[0], port, *name[2:]))
            each.listen(BACKLOG)
            port = each.getsockname()[1]
    except OSError as error:
        for each in sockets:
            each.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"address {address} is in use by another process: stop it or choose another port"
            ) from None
        raise UsageError(f"cannot listen on {address}: {_plain(error)}; choose an address of this machine") from None
    return sockets


def _numeric(name: tuple[object, ...]) -> str:
    host = str(name[0])
    scoped = len(name) == 4 and name[3] and "%" not in host
    return f"{host}%{name[3]}" if scoped else host


def _plain(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name is not known ({error.strerror})"
    return (error.strerror or str(error)).lower()


def engine(
    identity: Identity, *, key: bytes | None, limits: Limits | None = None, tls: object = None
) -> UringTransport:
    """The engine of ``uring://``. Raises UsageError for `tls`, which it does not carry."""
    _no_tls(tls, "uring")
    return UringTransport(identity, key=key, limits=limits)


def epoll_engine(
    identity: Identity, *, key: bytes | None, limits: Limits | None = None, tls: object = None
) -> EpollTransport:
    """The engine of ``epoll://``. Raises UsageError for `tls`, which it does not carry."""
    _no_tls(tls, "epoll")
    return EpollTransport(identity, key=key, limits=limits)


def _no_tls(tls: object, scheme: str) -> None:
    if tls is not None:
        raise UsageError(f"{scheme}:// carries no TLS; use tcp:// with tls=, or {scheme}:// with the cluster key alone")
