"""What tests of the native engine share: a log of what it tells, and connections to plain sockets."""

import contextlib
import select
import socket
import time

import pytest

from nova.transport.engine import Engine, EngineOptions, Kind, probe

SECONDS_MAX = 10.0
NO_URING = probe(Kind.URING)
uring_only = pytest.mark.skipif(bool(NO_URING), reason=NO_URING or "io_uring is here")
KINDS = [pytest.param(Kind.EPOLL, id="epoll"), pytest.param(Kind.URING, id="io_uring", marks=uring_only)]


@contextlib.contextmanager
def opening():
    """A function that opens engines, which are closed at the end; it returns their logs."""
    made = []

    def open_one(kind, *, driven=False, **sizes):
        made.append(Engine(kind, EngineOptions(**sizes), driven=driven))
        return Log(made[-1])

    yield open_one
    for engine in made:
        engine.close()


class Log:
    """Keeps what an engine tells, and waits for it."""

    def __init__(self, engine):
        self.engine = engine
        self.accepts, self.connects, self.ends, self.failures, self.accept_failures = [], [], {}, [], []
        self.data, self.drains = {}, []

    def accepted(self, connection, listener):
        self.accepts.append(connection)

    def connected(self, connection):
        self.connects.append(connection)

    def received(self, connection, data):
        self.data.setdefault(connection, bytearray()).extend(data)

    def drained(self, connection):
        self.drains.append(connection)

    def closed(self, connection, error):
        self.ends[connection] = error

    def accept_failed(self, listener, error):
        self.accept_failures.append(error)

    def failed(self, error):
        self.failures.append(error)

    def look(self, seconds=0.0):
        """Take in what happens within some time."""
        if self.engine.driven:
            self.engine.turn(seconds)
        else:
            select.select([self.engine], [], [], seconds)
        return self.engine.poll(self)

    def until(self, condition):
        end = time.monotonic() + SECONDS_MAX
        while not condition():
            assert time.monotonic() < end, (vars(self), self.engine.stats)
            self.look(0.05)


def dialled(log, *, receive_bytes=0):
    """A connection of the engine to a plain socket: (connection, socket)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        if receive_bytes:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection = log.engine.connect(*server.getsockname())
        log.until(lambda: connection in log.connects)
        peer, _ = server.accept()
    peer.settimeout(SECONDS_MAX)
    return connection, peer


def listening(log):
    server = socket.create_server(("127.0.0.1", 0), backlog=256)
    address = server.getsockname()
    return log.engine.listen(server.detach()), address


def called(log, address, count=1):
    """Plain sockets that the engine has accepted, with their connections in it."""
    peers = []
    for _ in range(count):
        before = len(log.accepts)
        peers.append(socket.create_connection(address, timeout=SECONDS_MAX))
        log.until(lambda before=before: len(log.accepts) > before)
    return peers, log.accepts[-count:]


def pattern(size):
    return bytes(range(251)) * (size // 251) + bytes(size % 251)


def read(peer, size):
    out = bytearray()
    while len(out) < size:
        part = peer.recv(min(65536, size - len(out)))
        assert part, f"ended after {len(out)} bytes"
        out += part
    return bytes(out)
