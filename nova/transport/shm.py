"""Shared memory between two processes of one machine: no bytes go through the kernel, only wake-ups do.

Each stream has a ring of bytes for each direction (csrc/shm.h), in memory that `handover` gets across, and the
session's frames go through it as they would through a socket. What the other process writes there is never believed:
positions are checked, bytes are copied out once and parsed from the copy.

The other end is woken by a byte on the socket, and only if it sleeps. That is not an eventfd, which is quicker, because
both ends would hold the same description of it: whoever clears O_NONBLOCK on it and fills it up makes the other's
write, and with it the loop, hang. A send with MSG_DONTWAIT on a socket of one's own cannot be made to wait.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from nova._native.channel import Channel
from nova._native.shm import DATA, ROOM, Rings, map_bytes
from nova.errors import NovaError, PeerError, UnavailableError, UsageError
from nova.transport import handover
from nova.transport.base import Identity, Limits, Stream, Tls
from nova.transport.session import NONCE_BYTES, Session
from nova.transport.sockets import NO_ROOM, PAUSE_SECONDS
from nova.transport.stream import DirectPipe, SessionStream, logger

HANDSHAKES_MAX = 256
BELLS_BYTES = 4096
"""Wake-ups that are read at once: the first says it all."""
TURN_BYTES: Final = 1 << 20
"""So much of one stream is taken in before others have their turn."""


class ShmTransport:
    """Streams over shared memory; addresses are paths of Unix sockets, or ``@name``.

    key               what both sides prove; None: the credentials of the socket are all there is
    send_delay        as of `nova.transport.tcp.TcpTransport`
    ring_bytes        of one direction, a power of two; the smaller of both ends' is taken
    memory_bytes_max  what all streams may take together; further ones are refused until some are gone
    uids              users who are let in beside this one and root
    """

    def __init__(
        self,
        identity: Identity,
        *,
        key: bytes | None,
        limits: Limits | None = None,
        send_delay: Callable[[Identity], float] | None = None,
        ring_bytes: int = handover.RING_BYTES,
        memory_bytes_max: int = handover.MEMORY_BYTES_MAX,
        uids: Collection[int] | None = None,
    ) -> None:
        self._identity = identity
        self._key = key
        self._limits = limits or Limits()
        self._send_delay = send_delay
        self._ring_bytes = handover.check_ring(ring_bytes)
        self._memory_bytes_max = memory_bytes_max
        self._uids = uids
        self._memory_bytes = 0
        self._doors: list[_Door] = []
        self._streams: set[SessionStream] = set()
        self._handshakes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def listen(self, address: str, accept: Callable[[Stream], Awaitable[None]]) -> str:
        if self._closed:
            raise UsageError("this transport is closed; make a new one to listen")

        def accepted(stream: SessionStream) -> None:
            self._handshakes -= 1

            async def run() -> None:
                await accept(stream)

            self._spawn(run())

        def connected(sock: socket.socket) -> None:
            self._spawn(self._open(sock, address, accepted))

        door = _Door(handover.bind(address), connected)
        self._doors.append(door)
        return door.address

    async def connect(self, address: str) -> Stream:
        if self._closed:
            raise UsageError("this transport is closed; make a new one to connect")
        name = handover.socket_name(address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        seconds = self._limits.handshake_ms_max / 1000
        try:
            sock.setblocking(False)
            try:
                async with asyncio.timeout(seconds):
                    sock.connect(name)  # never waits: it is refused or in the queue
                    peer = handover.check_user(sock, self._uids)
                    sock.send(handover.greeting(self._ring_bytes))
                    await _readable(sock)
                    memory, ring_bytes = handover.receive_memory(sock, self._ring_bytes)
            except TimeoutError:
                raise UnavailableError(f"no answer from {address} within {seconds:g} s") from None
            except (FileNotFoundError, ConnectionRefusedError):
                raise UnavailableError(
                    f"cannot connect to {address}: connection refused, nobody listens there"
                ) from None
            except BlockingIOError:
                raise UnavailableError(f"cannot connect to {address}: too many wait there already") from None
            except OSError as error:
                raise UnavailableError(f"cannot connect to {address}: {handover.plain(error)}") from None
            stream = self._start(sock, memory, ring_bytes, f"{address} (process {peer.pid})", None)
        except BaseException:
            sock.close()
            raise
        try:
            await asyncio.shield(stream.ready)
        except asyncio.CancelledError:
            stream.abort("given up while connecting")
            raise
        return stream

    async def close(self) -> None:
        self._closed = True
        for door in self._doors:
            door.close()
        self._doors.clear()
        await asyncio.gather(*(stream.close("the node shuts down") for stream in list(self._streams)))
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def memory_bytes(self) -> int:
        """Shared memory that streams of this transport hold now."""
        return self._memory_bytes

    # -- inside --------------------------------------------------------------------------------------------------

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("serving a peer failed", exc_info=task.exception())

    async def _open(self, sock: socket.socket, address: str, accepted: Callable[[SessionStream], None]) -> None:
        """Hand memory over to whoever has just connected; whoever cannot have it is told why."""
        if self._closed or self._handshakes >= HANDSHAKES_MAX:
            logger.warning(
                "a connection is refused: %s", "closing" if self._closed else "too many handshakes under way"
            )
            sock.close()
            return
        self._handshakes += 1
        try:
            peer = handover.check_user(sock, self._uids)
            async with asyncio.timeout(self._limits.handshake_ms_max / 1000):
                theirs = handover.parse_greeting(await _exactly(sock, handover.GREETING.size))
            ring_bytes = handover.agree(self._ring_bytes, theirs)
            held, more = self._memory_bytes, map_bytes(ring_bytes)
            if held + more > self._memory_bytes_max:
                raise UnavailableError(
                    f"streams hold {held} of {self._memory_bytes_max} bytes of shared memory here, and this one would "
                    f"take {more}: close some, or raise memory_bytes_max"
                )
            memory = handover.make_memory(ring_bytes)
            try:
                handover.send_memory(sock, memory, ring_bytes)
            except BaseException:
                os.close(memory)
                raise
            self._start(sock, memory, ring_bytes, f"{address} (process {peer.pid})", accepted)
        except BaseException as error:
            self._handshakes -= 1
            if isinstance(error, NovaError):
                handover.send_refusal(sock, error)
            sock.close()
            if isinstance(error, NovaError):
                logger.warning("a connection on %s is refused: %s", address, error)
            elif isinstance(error, TimeoutError):
                logger.warning("a connection on %s is refused: no greeting in time", address)
            elif isinstance(error, OSError):
                logger.warning("a connection on %s broke: %s", address, handover.plain(error))
            else:
                raise

    def _start(
        self,
        sock: socket.socket,
        memory: int,
        ring_bytes: int,
        remote: str,
        accepted: Callable[[SessionStream], None] | None,
    ) -> SessionStream:
        """The stream on memory that both ends have. The memory's descriptor is closed; the socket is the stream's."""
        try:
            rings = Rings(memory, ring_bytes, initiator=accepted is None, bell=sock.fileno())
        finally:
            os.close(memory)
        self._memory_bytes += rings.memory_bytes

        def closed(stream: SessionStream) -> None:
            self._streams.discard(stream)
            self._memory_bytes -= map_bytes(ring_bytes)
            if accepted and (not stream.ready.done() or stream.ready.exception() is not None):
                self._handshakes -= 1

        pipe = RingPipe(sock, rings)
        direct: DirectPipe = pipe  # else each frame would be made into an object
        session = Session(
            self._identity,
            key=self._key,
            initiator=accepted is None,
            nonce=os.urandom(NONCE_BYTES),
            now_ns=time.monotonic_ns(),
            limits=self._limits,
        )
        stream = SessionStream(
            session, direct, remote, on_established=accepted, on_closed=closed, send_delay=self._send_delay
        )
        self._streams.add(stream)
        pipe.start(stream)
        return stream


class RingPipe:
    """The pipe of one stream: its rings, and the socket on which it is woken (`nova.transport.stream.DirectPipe`)."""

    def __init__(self, sock: socket.socket, rings: Rings) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._rings = rings
        self._stream: SessionStream | None = None
        self._rest = bytearray()  # of what was written, for which the ring had no room
        self._fits = False
        self._wants_room = False
        self._closing = False
        self._left_behind = -1  # once the other end is gone: what it may at most have left in the ring

    def start(self, stream: SessionStream) -> None:
        """From now on what arrives is the stream's."""
        self._stream = stream
        self._loop.add_reader(self._fd, self._rung)
        self._loop.call_soon(self._turn)

    @property
    def fd(self) -> int:
        """None: bytes do not leave by a descriptor."""
        return -1

    # -- the stream calls --------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._fd < 0:
            return
        try:
            put = 0 if self._rest else self._rings.write(data)
        except PeerError as error:
            self._broke(error)
            return
        if put < len(data):
            self._rest += memoryview(data)[put:]
            self._await_room()

    def flush(self, channel: Channel) -> bool:
        if self._fd < 0:
            return True
        if not self._fits:
            self._rings.fit(channel)
            self._fits = True
        if not self._rest and self._rings.push(channel):
            return True
        self._await_room()
        return False

    def close(self) -> None:
        self._closing = True
        if not self._rest:
            self._end("")

    def abort(self) -> None:
        self._end("")

    # -- the loop calls ----------------------------------------------------------------------------------------------

    def _rung(self) -> None:
        try:
            if not self._sock.recv(BELLS_BYTES):
                self._gone()
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._gone()  # the reason of a reset is that the other end is gone
            return
        self._turn()

    def _gone(self) -> None:
        """The other end is: what it has put in before is still read."""
        self._loop.remove_reader(self._fd)
        self._left_behind = self._rings.ring_bytes
        self._turn()

    def _turn(self) -> None:
        """Take in what has come, put out what waits for room, then have the bell rung for more."""
        stream = self._stream
        if self._fd < 0 or stream is None:
            return
        try:
            got = stream.pull(self._rings)
            if self._fd < 0:
                return
            if self._left_behind >= 0:
                self._left_behind -= got
                if got == 0 or self._left_behind < 0:
                    self._end("")
                else:
                    self._loop.call_soon(self._turn)
                return
            if self._wants_room:
                self._wants_room = False
                self._write_rest()
                if self._fd >= 0 and not self._wants_room:
                    stream.resume_writing()
            if self._fd >= 0 and self._rings.arm(DATA | ROOM if self._wants_room else DATA):
                self._loop.call_soon(self._turn)
        except PeerError as error:
            self._broke(error)

    def _write_rest(self) -> None:
        if self._rest:
            del self._rest[: self._rings.write(self._rest)]
            if self._rest:
                self._wants_room = True
            elif self._closing:
                self._end("")

    def _await_room(self) -> None:
        if not self._wants_room:
            self._wants_room = True
            if self._rings.arm(ROOM):
                self._loop.call_soon(self._turn)

    def _broke(self, error: PeerError) -> None:
        """The other end wrote into the memory what cannot be: nothing that it says is heard any more."""
        logger.warning("shared memory of a stream is broken: %s", error)
        if self._stream is not None:
            self._stream.abort(str(error))
        self._end("")

    def _end(self, cause: str) -> None:
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        self._fd = -1
        self._rest.clear()
        self._rings.unmap()
        self._sock.close()
        if self._stream is not None:
            self._loop.call_soon(self._stream.pipe_lost, cause)


class _Door:
    """Accepts on one Unix socket."""

    def __init__(self, sock: socket.socket, connected: Callable[[socket.socket], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._connected = connected
        self.address = handover.address_of(sock)
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(handover.BACKLOG):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                logger.error("nobody is accepted for %g s: %s", PAUSE_SECONDS, handover.plain(error))
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(PAUSE_SECONDS, self._again)
                return
            sock.setblocking(False)
            self._connected(sock)

    def _again(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more. May be called twice."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            handover.unbind(self._sock)


async def _readable(sock: socket.socket) -> None:
    """Wait until a socket has something, or has ended."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock.fileno(), lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


async def _exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes, less if it ends before."""
    data = b""
    while len(data) < size:
        await _readable(sock)
        more = sock.recv(size - len(data))
        if not more:
            break
        data += more
    return data


def engine(
    identity: Identity,
    *,
    key: bytes | None,
    limits: Limits | None = None,
    tls: Tls | None = None,
    ring_bytes: int = handover.RING_BYTES,
    memory_bytes_max: int = handover.MEMORY_BYTES_MAX,
    uids: Collection[int] | None = None,
) -> ShmTransport:
    """The engine of ``shm://`` (`nova.transport.engines`)."""
    if tls is not None:
        raise UsageError("shm:// has no TLS: nothing leaves the machine; key= has both ends prove that they hold it")
    return ShmTransport(
        identity, key=key, limits=limits, ring_bytes=ring_bytes, memory_bytes_max=memory_bytes_max, uids=uids
    )
