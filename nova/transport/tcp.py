"""TCP on asyncio: the portable engine."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import cast

from nova.errors import PeerError, UnavailableError, UsageError
from nova.transport.base import Identity, Limits, Stream, Tls
from nova.transport.session import NONCE_BYTES, Session
from nova.transport.sockets import BACKLOG, DirectSocket, Listener, dial, tune
from nova.transport.stream import Pipe, SessionStream, logger

WRITE_BYTES_HIGH = 1 << 20
HANDSHAKES_MAX = 256


def split_address(address: str) -> tuple[str, int]:
    """host and port of ``host:port`` or ``[ipv6]:port``. Raises UsageError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(
            f"address {address!r} is not host:port with a port from 0 to 65535; for example 127.0.0.1:7400"
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether host:port can be reached from this machine only. Raises UsageError."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TcpTransport:
    """Streams over TCP.

    key         the cluster key that both sides prove, 32 bytes or more; None only where the configuration says so
    send_delay  seconds that everything to a peer is held back, in order: stands in for the distance of regions
    tls         TLS below the session; without it sockets are read and written by compiled code
    """

    def __init__(
        self,
        identity: Identity,
        *,
        key: bytes | None,
        limits: Limits | None = None,
        send_delay: Callable[[Identity], float] | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._identity = identity
        self._key = key
        self._limits = limits or Limits()
        self._send_delay = send_delay
        self._tls = tls
        self._servers: list[Listener | asyncio.Server] = []
        self._streams: set[SessionStream] = set()
        self._handshakes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def listen(self, address: str, accept: Callable[[Stream], Awaitable[None]]) -> str:
        if self._closed:
            raise UsageError("this transport is closed; make a new one to listen")
        host, port = split_address(address)
        loop = asyncio.get_running_loop()

        def accepted(stream: SessionStream) -> None:
            self._handshakes -= 1

            async def run() -> None:
                await accept(stream)

            task = loop.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._accept_done)

        server: Listener | asyncio.Server
        try:
            if self._tls is None:
                server = Listener(lambda sock, name: self._open(sock, join_address(*name), accepted))
                used = await server.open(host, port)
            else:
                server = await loop.create_server(
                    lambda: _Connection(self, None, accepted),
                    host,
                    port,
                    backlog=BACKLOG,
                    ssl=self._tls.context(server=True),
                )
                used = server.sockets[0].getsockname()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(
                    f"address {address} is in use by another process: stop it or choose another port"
                ) from None
            raise UsageError(f"cannot listen on {address}: {plain(error)}; choose an address of this machine") from None
        self._servers.append(server)
        return join_address(used[0], used[1])

    async def connect(self, address: str) -> Stream:
        if self._closed:
            raise UsageError("this transport is closed; make a new one to connect")
        host, port = split_address(address)
        seconds = self._limits.handshake_ms_max / 1000
        stream: SessionStream | None
        try:
            async with asyncio.timeout(seconds):
                if self._tls is None:
                    stream = self._open(await dial(host, port), address, None)
                else:
                    _, connection = await asyncio.get_running_loop().create_connection(
                        lambda: _Connection(self, address, None), host, port, ssl=self._tls.context(server=False)
                    )
                    stream = connection.stream
        except TimeoutError:
            raise UnavailableError(f"no answer from {address} within {seconds:g} s") from None
        except ssl.SSLError as error:
            raise PeerError(f"no TLS with {address}: {error.reason or error}") from None
        except OSError as error:
            raise UnavailableError(f"cannot connect to {address}: {plain(error)}") from None
        if stream is None:
            raise UsageError("this transport is closed; make a new one to connect")
        try:
            await asyncio.shield(stream.ready)
        except asyncio.CancelledError:
            stream.abort("given up while connecting")
            raise
        return stream

    async def close(self) -> None:
        self._closed = True
        for server in self._servers:
            server.close()
        await asyncio.gather(*(stream.close("the node shuts down") for stream in list(self._streams)))
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._servers.clear()

    def _admits(self, accepts: bool) -> bool:
        if not self._closed and not (accepts and self._handshakes >= HANDSHAKES_MAX):
            self._handshakes += accepts
            return True
        logger.warning("a connection is refused: %s", "closing" if self._closed else "too many handshakes under way")
        return False

    def _open(
        self, sock: socket.socket, remote: str, accepted: Callable[[SessionStream], None] | None
    ) -> SessionStream | None:
        """The stream on a connected socket of ours."""
        if not self._admits(accepted is not None):
            sock.close()
            return None
        pipe = DirectSocket(sock)
        stream = self._stream(pipe, remote, accepted)
        pipe.start(stream)
        return stream

    def _stream(
        self,
        pipe: Pipe,
        remote: str,
        accepted: Callable[[SessionStream], None] | None,
        proved: Callable[[Identity], None] | None = None,
    ) -> SessionStream:
        def closed(stream: SessionStream) -> None:
            self._streams.discard(stream)
            if accepted and (not stream.ready.done() or stream.ready.exception() is not None):
                self._handshakes -= 1

        session = self._session(initiator=accepted is None)
        stream = SessionStream(
            session,
            pipe,
            remote,
            on_established=accepted,
            on_closed=closed,
            on_proved=proved,
            send_delay=self._send_delay,
        )
        self._streams.add(stream)
        return stream

    def _accept_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("serving a peer failed", exc_info=task.exception())

    def _session(self, initiator: bool) -> Session:
        return Session(
            self._identity,
            key=self._key,
            initiator=initiator,
            nonce=os.urandom(NONCE_BYTES),
            now_ns=time.monotonic_ns(),
            limits=self._limits,
        )


class _Connection(asyncio.Protocol):
    """One connection with TLS: the loop has the socket, its bytes go to the stream, the stream's bytes to the loop."""

    def __init__(
        self, owner: TcpTransport, address: str | None, accepted: Callable[[SessionStream], None] | None
    ) -> None:
        self._owner = owner
        self._address = address
        self._accepted = accepted
        self.stream: SessionStream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class
        owner, tls = self._owner, self._owner._tls
        assert tls is not None
        if not owner._admits(self._accepted is not None):
            transport.abort()
            return
        if (raw := transport.get_extra_info("socket")) is not None:
            tune(raw)
        transport.set_write_buffer_limits(high=WRITE_BYTES_HIGH)
        name = transport.get_extra_info("peername")
        remote = self._address or (join_address(name[0], name[1]) if isinstance(name, tuple) else "an unknown peer")
        end = transport.get_extra_info("ssl_object")
        self.stream = owner._stream(transport, remote, self._accepted, lambda peer: tls.check(end, peer))

    def data_received(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.bytes_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.stream is not None:
            self.stream.pipe_lost(plain(error) if isinstance(error, OSError) else "")

    def pause_writing(self) -> None:
        if self.stream is not None:
            self.stream.pause_writing()

    def resume_writing(self) -> None:
        if self.stream is not None:
            self.stream.resume_writing()


def plain(error: OSError) -> str:
    """What went wrong with a socket, in a few words."""
    if isinstance(error, socket.gaierror):
        return f"the name is not known ({error.strerror})"
    if error.errno in (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EADDRNOTAVAIL,
    ):
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error)).lower()


def engine(
    identity: Identity, *, key: bytes | None, limits: Limits | None = None, tls: Tls | None = None
) -> TcpTransport:
    """The engine of ``tcp://`` (`nova.transport.engines`)."""
    return TcpTransport(identity, key=key, limits=limits, tls=tls)
