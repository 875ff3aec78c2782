"""Non-blocking sockets that belong to us and not to a transport of the loop: compiled code reads and writes them.

The loop only tells when they are ready. `DirectSocket` is the pipe of one stream, `Listener` accepts, `dial` connects.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Callable

from nova._native.channel import Channel
from nova.transport.stream import SessionStream

logger = logging.getLogger("nova.transport")

BACKLOG = 256
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE_SECONDS = 1.0
"""How long nobody is accepted when the process has no descriptor left."""


async def resolve(host: str, port: int, *, passive: bool = False) -> list[tuple[int, tuple[str, int]]]:
    """(family, address) pairs of a name, in the order in which to try them. Raises OSError."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        return [(family, (host, port))]
    except ValueError:
        pass
    flags = socket.AI_PASSIVE if passive else 0
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((family, (str(name[0]), int(name[1]))) for family, _, _, _, name in found))


async def dial(host: str, port: int) -> socket.socket:
    """A connected socket; every address of the name is tried. Raises OSError."""
    loop = asyncio.get_running_loop()
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, address in await resolve(host, port):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            tune(sock)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


def tune(sock: socket.socket) -> None:
    """What every stream wants of its socket: a message leaves when it is written."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def bind(family: int, address: tuple[str, int]) -> socket.socket:
    """A listening socket. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class Listener:
    """Accepts on all addresses of a name; `connected` gets each new socket and where it is from."""

    def __init__(self, connected: Callable[[socket.socket, tuple[str, int]], object]) -> None:
        self._connected = connected
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Begin; the first address in use. Raises OSError."""
        failure: OSError | None = None
        for family, (name, wanted) in await resolve(host, port, passive=True):
            chosen = wanted or (self._sockets[0].getsockname()[1] if self._sockets else 0)
            try:
                self._sockets.append(bind(family, (name, chosen)))
            except OSError as error:
                # A name may have an address of a family that this machine does not speak; the others will do.
                failure = failure or error
        if failure is not None and (not self._sockets or failure.errno == errno.EADDRINUSE):
            self.close()
            raise failure
        for sock in self._sockets:
            sock.setblocking(False)
            self._loop.add_reader(sock.fileno(), self._accept, sock)
        first = self._sockets[0].getsockname()
        return first[0], first[1]

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(BACKLOG):
            try:
                sock, name = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                logger.error("nobody is accepted for %g s: %s", PAUSE_SECONDS, os.strerror(error.errno or 0).lower())
                self._loop.remove_reader(listening.fileno())
                self._loop.call_later(PAUSE_SECONDS, self._again, listening)
                return
            sock.setblocking(False)
            tune(sock)
            self._connected(sock, (name[0], name[1]))

    def _again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def close(self) -> None:
        """Accept no more. May be called twice."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()


class DirectSocket:
    """The pipe of a stream on a socket of its own (`nova.transport.stream.DirectPipe`)."""

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._stream: SessionStream | None = None
        self._rest = bytearray()  # of what was written, which the socket did not take
        self._closing = False
        self._watches = False

    @property
    def fd(self) -> int:
        return self._fd

    def start(self, stream: SessionStream) -> None:
        """From now on what arrives is the stream's."""
        self._stream = stream
        self._loop.add_reader(self._fd, self._readable)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._fd < 0:
            return
        sent = 0
        if not self._rest:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._lost(error)
                return
        if sent < len(data):
            self._rest += memoryview(data)[sent:]
            self._watch()
            if self._stream is not None:
                self._stream.pause_writing()

    def flush(self, channel: Channel) -> bool:
        if self._fd < 0:
            return True
        if self._rest or not channel.write(self._fd):
            self._watch()
            return False
        return True

    def close(self) -> None:
        self._closing = True
        if not self._rest:
            self._end("")

    def abort(self) -> None:
        self._end("")

    def _watch(self) -> None:
        if not self._watches:
            self._watches = True
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        if self._rest:
            try:
                del self._rest[: self._sock.send(self._rest)]
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lost(error)
                return
            if self._rest:
                return
        if self._closing:
            self._end("")
            return
        self._watches = False
        self._loop.remove_writer(self._fd)
        if self._stream is not None:
            self._stream.resume_writing()

    def _readable(self) -> None:
        stream = self._stream
        assert stream is not None
        try:
            if stream.readable(self._fd):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        self._end("")

    def _lost(self, error: OSError) -> None:
        self._end(os.strerror(error.errno).lower() if error.errno else str(error))

    def _end(self, cause: str) -> None:
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        if self._watches:
            self._loop.remove_writer(self._fd)
        self._fd = -1
        self._rest.clear()
        self._sock.close()
        if self._stream is not None:
            self._loop.call_soon(self._stream.pipe_lost, cause)
