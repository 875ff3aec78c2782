"""Every engine puts the same bytes on the wire: captured with fixed nonces and a clock that stands."""

import asyncio
from functools import partial

import pytest

from nova.transport import tcp, uring
from nova.transport.base import Identity
from nova.transport.engine import Kind, probe
from nova.transport.session import Session
from nova.transport.stream import SessionStream
from nova.transport.tcp import TcpTransport
from nova.transport.uring import EpollTransport, UringTransport

KEY = bytes(range(32))
ENGINES = {
    "tcp": TcpTransport,
    "epoll": EpollTransport,
    "epoll by the loop": partial(EpollTransport, threaded=False),
    "io_uring": UringTransport,
    "io_uring by the loop": partial(UringTransport, threaded=False),
}


def nonce(count):
    return b"\x07" * count


def standing():
    return 1


def identity(node):
    return Identity(node, "r", "c", 1, "")


async def captured(make, messages):
    """What one side of a session sends: handshake, messages of all sizes, and the goodbye."""
    wire = bytearray()
    over = asyncio.get_running_loop().create_future()

    async def answer(reader, writer):
        session = Session(identity("b"), key=KEY, initiator=False, nonce=b"\x01" * 32, now_ns=1)
        got = []
        while data := await reader.read(65536):
            wire.extend(data)
            events = session.receive(data, 1)
            got += [bytes(event) for event in events if isinstance(event, memoryview)]
            session.consumed([event for event in events if isinstance(event, memoryview)])
            if got == messages:
                session.close("enough")
            writer.writelines(session.take_output())
        writer.close()
        over.set_result(got)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    transport = make(identity("a"), key=KEY)
    stream = await transport.connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for message in messages:
        assert stream.send(message)
    assert await stream.recv() is None
    assert await over == messages
    await transport.close()
    server.close()
    return bytes(wire)


@pytest.fixture
def fixed(monkeypatch):
    """No chance and no time in what is sent."""
    for module in (tcp, uring):
        monkeypatch.setattr(module.os, "urandom", nonce)
        monkeypatch.setattr(module.time, "monotonic_ns", standing)
    monkeypatch.setitem(SessionStream.__init__.__kwdefaults__, "clock", standing)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "tcp"])
def test_all_engines_put_the_same_bytes_on_the_wire(engine, fixed):
    if engine.startswith("io_uring") and (missing := probe(Kind.URING)):
        pytest.skip(missing)
    messages = [b"", b"small", bytes(5000), bytes(range(256)) * 1200, b"last"]
    wire = asyncio.run(captured(ENGINES[engine], messages))
    assert len(wire) > sum(map(len, messages))
    assert wire == asyncio.run(captured(ENGINES["tcp"], messages))
