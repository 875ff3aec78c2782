"""Streams of messages to a process of its own and back: what `nova bench transport` times, ours and the peers'.

``python -m nova.cli.transport_works KIND PORT COUNT`` is the far end. It answers each message (echo), or one for
`COUNT` of them (sink).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from nova import transport
from nova.runtime import new_loop
from nova.transport import blocking

SMALL: Final = 64
BULK: Final = 256 * 1024
TRIPS: Final = 100
MESSAGES: Final = 10_000
BULKS: Final = 100
MODULE: Final = "nova.cli.transport_works"

Work = Callable[[], object]
Maker = Callable[[Path], contextlib.AbstractContextManager[Work]]


class Wire(Protocol):
    """One connected end. `send` may hold messages back until `flush`."""

    def send(self, message: bytes) -> None: ...
    def flush(self) -> None: ...
    def recv(self, size: int) -> object: ...
    def sink(self, count: int, size: int) -> None: ...


class NovaWire:
    """A blocking stream."""

    def __init__(self, stream: blocking.BlockingStream) -> None:
        self.stream = stream

    def send(self, message: bytes) -> None:
        self.stream.send(message, flush=False)

    def flush(self) -> None:
        self.stream.flush()

    def recv(self, size: int) -> object:
        return self.stream.recv()

    def sink(self, count: int, size: int) -> None:
        while count > 0:
            batch = self.stream.recv_batch()
            if not batch:
                raise EOFError
            count -= len(batch)


class SlabWire(NovaWire):
    """The same, by whole batches."""

    def sink(self, count: int, size: int) -> None:
        while count > 0:
            _, offsets = self.stream.recv_slab()
            if len(offsets) == 1:
                raise EOFError
            count -= len(offsets) - 1


class SocketWire:
    """A blocking socket of Python: bytes of known length, no framing, no checksum."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.room = memoryview(bytearray(BULK))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: bytes) -> None:
        self.sock.sendall(message)

    def flush(self) -> None: ...

    def recv(self, size: int) -> object:
        got = self.sock.recv_into(self.room[:size], size, socket.MSG_WAITALL)
        if not got:
            raise EOFError
        return self.room[:got]

    def sink(self, count: int, size: int) -> None:
        for _ in range(count):
            self.recv(size)


class ZmqWire:
    """A PAIR of ZeroMQ."""

    def __init__(self, end: Any) -> None:
        self.end = end

    def send(self, message: bytes) -> None:
        self.end.send(message)

    def flush(self) -> None: ...

    def recv(self, size: int) -> object:
        return self.end.recv()

    def sink(self, count: int, size: int) -> None:
        for _ in range(count):
            self.end.recv()


def _zmq(port: int, *, far: bool) -> tuple[Any, Any]:
    zmq: Any = importlib.import_module("zmq")  # a peer that may not be there, nor its types
    context: Any = zmq.Context()
    end = context.socket(zmq.PAIR)
    end.linger = 0
    (end.connect if far else end.bind)(f"tcp://127.0.0.1:{port}")
    return context, end


def _far(kind: str, port: int, count: int) -> None:
    engine, _, what = kind.partition(" ")
    wire: Wire
    if engine == "zmq":
        _, end = _zmq(port, far=True)
        wire = ZmqWire(end)
    elif engine == "socket":
        wire = SocketWire(socket.create_connection(("127.0.0.1", port)))
    else:
        stream = blocking.connect(f"tcp://127.0.0.1:{port}")
        wire = SlabWire(stream) if engine == "slab" else NovaWire(stream)
    size = BULK if what == "bulk" else SMALL
    while True:
        if what == "echo":
            answer = wire.recv(size)
            if answer is None:
                return
            wire.send(answer)  # type: ignore[arg-type]
        else:
            wire.sink(count, size)
            wire.send(bytes(SMALL))
        wire.flush()


@contextlib.contextmanager
def far_end(kind: str, port: int, count: int) -> Iterator[None]:
    """A process that talks to `port` until its other end is closed."""
    process = subprocess.Popen([sys.executable, "-m", MODULE, kind, str(port), str(count)], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def wired(kind: str, count: int) -> Iterator[Wire]:
    """The near end of a connection whose far end does `kind`."""
    engine = kind.partition(" ")[0]
    with contextlib.ExitStack() as stack:
        if engine == "zmq":
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            context, end = _zmq(port, far=False)
            stack.callback(context.term)
            stack.callback(end.close, 0)
            stack.enter_context(far_end(kind, port, count))
            yield ZmqWire(end)
        elif engine == "socket":
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.enter_context(far_end(kind, server.getsockname()[1], count))
            sock = stack.enter_context(server.accept()[0])
            yield SocketWire(sock)
        else:
            listener = stack.enter_context(blocking.listen("tcp://127.0.0.1:0"))
            stack.enter_context(far_end(kind, int(listener.address.rpartition(":")[2]), count))
            stream = listener.accept(30)
            stack.callback(stream.abort)
            yield SlabWire(stream) if engine == "slab" else NovaWire(stream)


def trips(engine: str) -> Maker:
    """TRIPS round trips of 64 B a call."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        with wired(f"{engine} echo", 1) as wire:
            message = bytes(SMALL)

            def work() -> object:
                for _ in range(TRIPS):
                    wire.send(message)
                    wire.flush()
                    answer = wire.recv(SMALL)
                return answer

            yield work

    return maker


def messages(engine: str) -> Maker:
    """MESSAGES of 64 B a call, as an object each, or as a slab."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        with wired(f"{engine} sink", MESSAGES) as wire:
            several = [str(number).encode().zfill(SMALL) for number in range(MESSAGES)]
            slab, offsets = b"".join(several), _offsets()

            def work() -> object:
                if isinstance(wire, SlabWire):
                    wire.stream.send_batch(slab, offsets)
                else:
                    for message in several:
                        wire.send(message)
                    wire.flush()
                return wire.recv(SMALL)

            yield work

    return maker


def _offsets() -> memoryview:
    from array import array

    return memoryview(array("q", range(0, SMALL * MESSAGES + 1, SMALL)))


def bulk(engine: str) -> Maker:
    """BULKS messages of 256 KiB a call."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        with wired(f"{engine} bulk", BULKS) as wire:
            message = bytes(BULK)

            def work() -> object:
                for _ in range(BULKS):
                    wire.send(message)
                wire.flush()
                return wire.recv(SMALL)

            yield work

    return maker


def trips_on_the_loop(raw: bool = False) -> Maker:
    """TRIPS round trips of 64 B a call between two ends on one loop; raw: protocols that answer in data_received."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        loop = new_loop()
        ask, end = loop.run_until_complete(_protocols() if raw else _streams())
        try:
            yield lambda: loop.run_until_complete(ask()) or True
        finally:
            loop.run_until_complete(end())
            loop.close()

    return maker


async def _streams() -> tuple[Callable[[], Any], Callable[[], Any]]:
    async def echo(stream: transport.Stream) -> None:
        while (message := await stream.recv()) is not None:
            stream.send(message)

    listener = await transport.listen("tcp://127.0.0.1:0", echo)
    stream = await transport.connect(listener.url)

    async def ask() -> None:
        message = bytes(SMALL)
        for _ in range(TRIPS):
            stream.send(message)
            await stream.recv()

    async def end() -> None:
        await stream.close()
        await listener.close()

    return ask, end


async def _protocols() -> tuple[Callable[[], Any], Callable[[], Any]]:
    loop = asyncio.get_running_loop()

    class Echo(asyncio.Protocol):
        def connection_made(self, wire: Any) -> None:
            self.wire = wire

        def data_received(self, data: bytes) -> None:
            self.wire.write(data)

    class Ask(Echo):
        left = 0
        over: asyncio.Future[None]

        def data_received(self, data: bytes) -> None:
            self.left -= 1
            if self.left:
                self.wire.write(data)
            else:
                self.over.set_result(None)

    server = await loop.create_server(Echo, "127.0.0.1", 0)
    wire, asking = await loop.create_connection(Ask, *server.sockets[0].getsockname())

    async def ask() -> None:
        asking.left, asking.over = TRIPS, loop.create_future()
        asking.wire.write(bytes(SMALL))
        await asking.over

    async def end() -> None:
        wire.close()
        server.close()

    return ask, end


if __name__ == "__main__":
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        _far(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
