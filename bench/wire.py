"""Two processes and a stream between them: what `bench_transport.py` measures, for nova and for its peers alike.

usage: python bench/wire.py KIND PEER COUNT [SIZE]     one measurement: seconds, and CPU seconds of both processes

The far end is a fork of this process, made before anything is open. It waits for a first message, so that nothing of
connecting is timed. `KINDS` has who takes part in what.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

HERE = Path(__file__).resolve().parent
CONGESTION = "cubic"
"""On both sides of everything that is compared: the default may be one that takes twice as long for each byte."""

Took = tuple[float, float]


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def pin(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION.encode())


class PinnedSocket(socket.socket):
    """Before it connects: what a connection begins with leaves traces in it."""

    def __init__(self, *arguments: Any, **names: Any) -> None:
        super().__init__(*arguments, **names)
        pin(self)


socket.socket = PinnedSocket  # type: ignore[misc]  # whoever makes one here makes one of these


@contextlib.contextmanager
def forked(work: Callable[[], None]) -> Iterator[None]:
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    try:
        yield
    except BaseException:
        os.kill(child, 9)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("the far end failed")


def some_messages(size: int) -> list[bytes]:
    return [str(number).encode().zfill(size) for number in range(1000)]


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return port_of(sock)


# ---- nova, blocking --------------------------------------------------------------------------------------------------


def blocking_pair(far: Callable[[Any], None], near: Callable[[Any], float], key: bytes | None) -> Took:
    from nova.transport import blocking

    listener = blocking.listen("tcp://127.0.0.1:0", key=key)

    def child() -> None:
        stream = blocking.connect(listener.url, key=key)
        stream.recv()
        far(stream)
        stream.close()

    before = cpu_s()
    with forked(child):
        stream = listener.accept(10)
        stream.send(b"go")
        took = near(stream)
        stream.close()
    return took, cpu_s() - before


def nova_bulk(count: int, size: int, key: bytes | None = None) -> Took:
    def send(stream: Any) -> None:
        data = memoryview(bytearray(b"x" * size))
        for _ in range(count):
            stream.send(data)

    def receive(stream: Any) -> float:
        began = time.perf_counter()
        for _ in range(count):
            with stream.recv() as message:
                assert len(message) == size
        return time.perf_counter() - began

    return blocking_pair(send, receive, key)


def nova_slab(count: int, size: int, key: bytes | None = None) -> Took:
    import numpy as np

    def send(stream: Any) -> None:
        part = 100_000
        slab, offsets = np.ones(size * part, np.uint8), np.arange(0, size * part + 1, size)
        for left in range(count, 0, -part):
            stream.send_batch(slab, offsets[: min(part, left) + 1])

    def receive(stream: Any) -> float:
        began, got = time.perf_counter(), 0
        while got < count:
            _, offsets = stream.recv_slab()
            got += len(offsets) - 1
        return time.perf_counter() - began

    return blocking_pair(send, receive, key)


def nova_objects(count: int, size: int, key: bytes | None = None) -> Took:
    def send(stream: Any) -> None:
        messages = some_messages(size)
        for number in range(count):
            stream.send(messages[number % 1000], flush=False)
        stream.flush()

    def receive(stream: Any) -> float:
        began, got = time.perf_counter(), 0
        while got < count:
            for message in stream.recv_batch():
                assert len(message) == size
                got += 1
        return time.perf_counter() - began

    return blocking_pair(send, receive, key)


def nova_trips(count: int, size: int, key: bytes | None = None) -> Took:
    def echo(stream: Any) -> None:
        for _ in range(count):
            stream.send(stream.recv())

    def ask(stream: Any) -> float:
        data = b"x" * size
        began = time.perf_counter()
        for _ in range(count):
            stream.send(data)
            stream.recv()
        return time.perf_counter() - began

    return blocking_pair(echo, ask, key)


# ---- nova, on the loop -----------------------------------------------------------------------------------------------


def run(work: Any) -> Any:
    import uvloop

    return uvloop.run(work)


def loop_pair(far: Callable[[Any], Any], near: Callable[[Any], Any], key: bytes | None) -> Took:
    from nova import transport
    from nova.errors import UnavailableError

    port = free_port()

    async def child() -> None:
        for _ in range(200):
            try:
                stream = await transport.connect(f"tcp://127.0.0.1:{port}", key=key)
                break
            except UnavailableError:
                await asyncio.sleep(0.01)
        await stream.recv()
        await far(stream)
        await stream.close()

    async def parent() -> float:
        async with await transport.listen(f"tcp://127.0.0.1:{port}", key=key) as listener:
            stream = await listener.accept()
            stream.send(b"go")
            took: float = await near(stream)
            await stream.close()
            return took

    before = cpu_s()
    with forked(lambda: run(child())):
        took = run(parent())
    return took, cpu_s() - before


def nova_loop_bulk(count: int, size: int, key: bytes | None = None) -> Took:
    async def send(stream: Any) -> None:
        data = memoryview(bytearray(b"x" * size))
        for _ in range(count):
            await stream.put(data)

    async def receive(stream: Any) -> float:
        began = time.perf_counter()
        for _ in range(count):
            with await stream.recv() as message:
                assert len(message) == size
        return time.perf_counter() - began

    return loop_pair(send, receive, key)


def nova_loop_objects(count: int, size: int, key: bytes | None = None) -> Took:
    async def send(stream: Any) -> None:
        messages = some_messages(size)
        for number in range(count):
            while not stream.send(messages[number % 1000]):
                await stream.drain()
        while stream.stats.queue_bytes:
            await asyncio.sleep(0)

    async def receive(stream: Any) -> float:
        began, got = time.perf_counter(), 0
        while got < count:
            for message in await stream.recv_batch():
                assert len(message) == size
                got += 1
        return time.perf_counter() - began

    return loop_pair(send, receive, key)


def nova_loop_trips(count: int, size: int, key: bytes | None = None) -> Took:
    async def echo(stream: Any) -> None:
        for _ in range(count):
            stream.send(await stream.recv())

    async def ask(stream: Any) -> float:
        data = b"x" * size
        began = time.perf_counter()
        for _ in range(count):
            stream.send(data)
            await stream.recv()
        return time.perf_counter() - began

    return loop_pair(echo, ask, key)


# ---- peers -----------------------------------------------------------------------------------------------------------


def uvloop_trips(count: int, size: int) -> Took:
    """Protocols on uvloop that answer in `data_received`: no framing, no queue, no task is woken."""
    port = free_port()

    class Echo(asyncio.Protocol):
        def __init__(self, over: asyncio.Future[None]) -> None:
            self.over = over

        def connection_made(self, wire: Any) -> None:
            self.wire = wire
            pin(wire.get_extra_info("socket"))

        def data_received(self, data: bytes) -> None:
            self.wire.write(data)

        def connection_lost(self, error: Exception | None) -> None:
            self.over.set_result(None)

    class Ask(asyncio.Protocol):
        def __init__(self, over: asyncio.Future[None]) -> None:
            self.over, self.left, self.data = over, count, b"x" * size

        def connection_made(self, wire: Any) -> None:
            self.wire = wire
            pin(wire.get_extra_info("socket"))
            self.began = time.perf_counter()
            wire.write(self.data)

        def data_received(self, data: bytes) -> None:
            self.left -= 1
            if self.left:
                self.wire.write(self.data)
            else:
                self.took = time.perf_counter() - self.began
                self.over.set_result(None)

    async def child() -> None:
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        server = await loop.create_server(lambda: Echo(over), "127.0.0.1", port)
        await over
        server.close()

    async def parent() -> float:
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        for _ in range(200):
            try:
                wire, asking = await loop.create_connection(lambda: Ask(over), "127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.01)
        await over
        wire.close()
        await asyncio.sleep(0)
        return asking.took

    before = cpu_s()
    with forked(lambda: run(child())):
        took = run(parent())
    return took, cpu_s() - before


def zmq_objects(count: int, size: int) -> Took:
    port = free_port()

    def child() -> None:
        import zmq

        context = zmq.Context()
        end = context.socket(zmq.PAIR)
        end.sndhwm = 100_000
        end.connect(f"tcp://127.0.0.1:{port}")
        end.recv()
        messages = some_messages(size)
        for number in range(count):
            end.send(messages[number % 1000])
        end.close(60_000)
        context.term()

    before = cpu_s()
    with forked(child):
        import zmq

        context = zmq.Context()
        end = context.socket(zmq.PAIR)
        end.rcvhwm = 100_000
        end.bind(f"tcp://127.0.0.1:{port}")
        end.send(b"go")
        began = time.perf_counter()
        for _ in range(count):
            assert len(end.recv()) == size
        took = time.perf_counter() - began
        end.close(0)
        context.term()
    return took, cpu_s() - before


def zmq_trips(count: int, size: int) -> Took:
    port = free_port()

    def child() -> None:
        import zmq

        context = zmq.Context()
        end = context.socket(zmq.PAIR)
        end.connect(f"tcp://127.0.0.1:{port}")
        for _ in range(count + 1):
            end.send(end.recv())
        end.close(10_000)
        context.term()

    before = cpu_s()
    with forked(child):
        import zmq

        context = zmq.Context()
        end = context.socket(zmq.PAIR)
        end.bind(f"tcp://127.0.0.1:{port}")
        data = b"x" * size
        end.send(data)
        end.recv()
        began = time.perf_counter()
        for _ in range(count):
            end.send(data)
            end.recv()
        took = time.perf_counter() - began
        end.close(0)
        context.term()
    return took, cpu_s() - before


def c_program() -> Path:
    """The peer in C, built on first use. Raises FileNotFoundError without a compiler."""
    source = HERE / "blocking.c"
    program = HERE.parent / "build" / "bench-blocking"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            made = Path(folder, "blocking")
            subprocess.run(["cc", "-O2", "-o", made, source, "-lpthread"], check=True)
            made.replace(program)
    return program


def c(kind: str, count: int, size: int) -> Took:
    words = subprocess.run(
        [c_program(), kind, str(size), str(count), CONGESTION], check=True, capture_output=True, text=True
    ).stdout.split()
    return float(words[0]), float(words[1])


def iperf3(count: int, size: int) -> Took:
    port = free_port()
    before = cpu_s()
    server = subprocess.Popen(
        ["iperf3", "-s", "-1", "--forceflush", "-p", str(port)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    while "listening" not in (line := server.stdout.readline()):
        if not line:
            raise RuntimeError("iperf3 does not listen")
    began = time.perf_counter()
    subprocess.run(
        ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-n", str(count * size), "-l", str(size), "-C", CONGESTION],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    took = time.perf_counter() - began
    server.communicate()
    return took, cpu_s() - before


KEY = bytes(range(32))
KINDS: dict[str, dict[str, Callable[[int, int], Took]]] = {
    "bulk": {
        "nova": nova_bulk,
        "nova-keyed": lambda count, size: nova_bulk(count, size, KEY),
        "nova-loop": nova_loop_bulk,
        "c-blocking": lambda count, size: c("stream", count, size),
        "iperf3": iperf3,
    },
    "slab": {"nova": nova_slab, "nova-keyed": lambda count, size: nova_slab(count, size, KEY), "pyzmq": zmq_objects},
    "objects": {
        "nova": nova_objects,
        "nova-keyed": lambda count, size: nova_objects(count, size, KEY),
        "nova-loop": nova_loop_objects,
        "pyzmq": zmq_objects,
    },
    "trips": {
        "nova": nova_trips,
        "nova-keyed": lambda count, size: nova_trips(count, size, KEY),
        "c-blocking": lambda count, size: c("rtt", count, size),
        "pyzmq": zmq_trips,
    },
    "loop trips": {
        "nova": nova_loop_trips,
        "nova-keyed": lambda count, size: nova_loop_trips(count, size, KEY),
        "uvloop": uvloop_trips,
    },
}


def lacks(peer: str) -> str:
    """What is missing for a peer; empty if it can run."""
    if peer == "pyzmq":
        try:
            import zmq  # noqa: F401
        except ImportError:
            return "pyzmq is not installed"
    if peer == "iperf3" and shutil.which("iperf3") is None:
        return "iperf3 is not installed"
    if peer == "c-blocking" and shutil.which("cc") is None:
        return "there is no C compiler"
    return ""


if __name__ == "__main__":
    kind, peer, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    size = int(sys.argv[4]) if len(sys.argv) > 4 else 64
    print(*KINDS[kind][peer](count, size))
