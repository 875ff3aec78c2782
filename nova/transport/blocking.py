"""Streams for threads and scripts: `connect` and `listen` as in `nova.transport`, without a loop.

    with blocking.listen("tcp://127.0.0.1:0") as listener:
        stream = blocking.connect(listener.url)
        stream.send(b"hello")
        with listener.accept() as served, served.recv() as message:
            ...

A call goes straight to the socket, in compiled code and without the interpreter lock. One thread may receive while
another sends; more of either queue. `send` returns when the message has left, so its buffer may be changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

from nova._native.channel import SocketStream
from nova.errors import DeadlineError, NovaError, PeerError, UnavailableError, UsageError
from nova.transport.base import Identity, Limits, StreamStats, Tls
from nova.transport.engines import check_key, local_identity, split_url
from nova.transport.session import NONCE_BYTES, Session
from nova.transport.sockets import bind, tune
from nova.transport.stream import logger
from nova.transport.tcp import join_address, plain, split_address

READ_WAIT_SECONDS = 1.0
"""A receive returns this often, to see to signals, pings and the idle limit."""

SEND_WAIT_SECONDS = 0.05
"""A send that waits for a full socket returns this often, to see whether the peer waits for us to receive."""


class BlockingStream(SocketStream):
    """A `Stream` for threads: the same words, and each waits for its end. Use it with `with`, or close it."""

    def __init__(self, channel: object, sock: socket.socket, session: Session) -> None:
        self._session = session

    @property
    def local(self) -> Identity:
        return self._session.identity

    @property
    def peer(self) -> Identity:
        assert self._session.peer is not None
        return self._session.peer

    @property
    def initiator(self) -> bool:
        return self._session.initiator

    @property
    def stats(self) -> StreamStats:
        session = self._session
        return StreamStats(session.sent_bytes, session.received_bytes, session.rtt_ns, session.queue_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort(f"given up: {error}")


def handshake(sock: socket.socket, session: Session, seconds: float) -> None:
    """Bring a fresh session to its end of the handshake on a connected socket; not one byte behind it is read or sent.

    The socket's own timeout is changed. Raises PeerError if the peer is refused or refuses, UnavailableError if it does
    not answer in time.
    """
    until = time.monotonic() + seconds
    try:
        while True:
            out = b"".join(session.take_handshake())
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            if out:
                sock.sendall(out)
            if session.established:
                return
            data = sock.recv(session.need)
            if not data:
                raise PeerError(f"{_name(sock)} hung up without a goodbye")
            session.feed(data, time.monotonic_ns())
    except PeerError:
        out = b"".join(session.take_handshake())  # why the peer is refused
        with contextlib.suppress(OSError):
            sock.sendall(out)
        raise
    except TimeoutError:
        raise UnavailableError(f"handshake with {_name(sock)} not finished within {seconds:g} s") from None
    except OSError as error:
        raise PeerError(f"the connection to {_name(sock)} broke: {plain(error)}") from None


def _name(sock: socket.socket) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return "the peer"
    return join_address(name[0], name[1]) if isinstance(name, tuple) else "the peer"


def _session(identity: Identity, key: bytes | None, limits: Limits | None, *, initiator: bool) -> Session:
    return Session(
        identity,
        key=key,
        initiator=initiator,
        nonce=os.urandom(NONCE_BYTES),
        now_ns=time.monotonic_ns(),
        limits=limits,
    )


def _prepared(sock: socket.socket) -> None:
    sock.settimeout(None)
    for option, seconds in ((socket.SO_RCVTIMEO, READ_WAIT_SECONDS), (socket.SO_SNDTIMEO, SEND_WAIT_SECONDS)):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))


def _no_tls_yet(tls: Tls | None) -> None:
    if tls is not None:
        raise UsageError("blocking streams speak TCP without TLS; nova.transport.connect(tls=...) has it on the loop")


def connect(
    url: str,
    *,
    key: bytes | None = None,
    identity: Identity | None = None,
    limits: Limits | None = None,
    tls: Tls | None = None,
    timeout: float | None = None,
) -> BlockingStream:
    """A stream to whoever listens on `url`, both sides proved; arguments and errors as `nova.transport.connect`."""
    address = _address(url, key, tls, server=False)
    limits = limits or Limits()
    seconds = limits.handshake_ms_max / 1000 if timeout is None else timeout
    session = _session(identity or local_identity(), key, limits, initiator=True)
    try:
        sock = socket.create_connection(split_address(address), timeout=seconds)
    except TimeoutError:
        raise UnavailableError(f"no answer from {address} within {seconds:g} s") from None
    except OSError as error:
        raise UnavailableError(f"cannot connect to {address}: {plain(error)}") from None
    return _established(sock, session, seconds)


def _established(sock: socket.socket, session: Session, seconds: float) -> BlockingStream:
    try:
        tune(sock)
        handshake(sock, session, seconds)
        _prepared(sock)
    except BaseException:
        sock.close()
        raise
    return BlockingStream(session.channel, sock, session)


def _address(url: str, key: bytes | None, tls: Tls | None, *, server: bool) -> str:
    scheme, address = split_url(url)
    if scheme not in ("tcp", "auto"):
        raise UsageError(f"blocking streams speak tcp://, not {scheme}://; nova.transport has the other engines")
    check_key(url, address, key, tls, server=server)
    _no_tls_yet(tls)
    return address


class BlockingListener:
    """Accepts streams on one address. Made by `listen`."""

    def __init__(self, sock: socket.socket, identity: Identity, key: bytes | None, limits: Limits) -> None:
        self._socket = sock
        self._identity = identity
        self._key = key
        self._limits = limits
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """Where it listens, with the port that was chosen."""
        name = self._socket.getsockname()
        return join_address(name[0], name[1])

    @property
    def url(self) -> str:
        return f"tcp://{self.address}"

    def accept(self, timeout: float | None = None) -> BlockingStream:
        """The next stream whose other end has proved itself; those that cannot are logged and left out.

        timeout   seconds; DeadlineError after them
        raises    UsageError once the listener is closed

        A handshake under way holds the next one up, for `Limits.handshake_ms_max` at most.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._lock:
                try:
                    self._socket.settimeout(None if until is None else max(0.0, until - time.monotonic()))
                    sock, name = self._socket.accept()
                except (TimeoutError, BlockingIOError):
                    raise DeadlineError(f"nobody connected to {self.url} in time") from None
                except OSError as error:
                    if self._socket.fileno() < 0 or error.errno in (errno.EINVAL, errno.EBADF):
                        raise UsageError("this listener is closed; listen again to accept") from None
                    raise UnavailableError(f"cannot accept: {plain(error)}") from None
            session = _session(self._identity, self._key, self._limits, initiator=False)
            try:
                return _established(sock, session, self._limits.handshake_ms_max / 1000)
            except NovaError as error:
                logger.warning("a connection from %s is refused: %s", join_address(name[0], name[1]), error)

    def close(self) -> None:
        """Accept no more; streams live on. A thread in `accept` gets UsageError. May be called twice."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def listen(
    url: str,
    *,
    key: bytes | None = None,
    identity: Identity | None = None,
    limits: Limits | None = None,
    tls: Tls | None = None,
) -> BlockingListener:
    """Accept streams on `url` (port 0 picks one); arguments and errors as `nova.transport.listen`."""
    host, port = split_address(_address(url, key, tls, server=True))
    try:
        family, _, _, _, name = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = bind(family, (str(name[0]), int(name[1])))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"address {host}:{port} is in use: stop whoever uses it or choose another port") from None
        raise UsageError(f"cannot listen on {host}:{port}: {plain(error)}; choose an address of this machine") from None
    return BlockingListener(sock, identity or local_identity(), key, limits or Limits())


__all__ = ["BlockingListener", "BlockingStream", "connect", "handshake", "listen"]
