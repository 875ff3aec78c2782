"""Shared memory against loopback, pyzmq's ipc:// and a C ring: round trips and bulk between two processes.

`python bench/bench_shm.py [ROUNDS]` lets all of them take turns and prints medians and the best.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from load import cpu_s  # noqa: E402

from nova import transport  # noqa: E402
from nova.transport import blocking  # noqa: E402

KEY = bytes(32)
SMALL = b"x" * 64
BULK_BYTES = 256 * 1024
TRIPS, BULK = 2_000, 400


class Peer:
    """Two processes and what is between them. The far end sends back what it gets; after 8 bytes that hold a count, it
    takes in so many messages and answers then."""

    def __enter__(self) -> Peer:
        self.folder = tempfile.TemporaryDirectory()
        self.listen()
        self.far = os.fork()
        if self.far == 0:
            try:
                self.serve()
            finally:
                os._exit(0)
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        os.waitpid(self.far, 0)
        self.folder.cleanup()

    def listen(self) -> None: ...

    def serve(self) -> None:
        self.accept()
        while (message := self.recv()) is not None:
            if len(message) == 8:
                for _ in range(int.from_bytes(message, "big")):
                    self.recv()
                message = b"all"
            self.send(message)

    def accept(self) -> None: ...
    def connect(self) -> None: ...
    def close(self) -> None: ...
    def send(self, message: Any) -> None: ...
    def recv(self) -> Any: ...

    def trips(self, count: int) -> float:
        """Seconds of so many round trips of 64 bytes."""
        began = time.perf_counter()
        for _ in range(count):
            self.send(SMALL)
            self.recv()
        return time.perf_counter() - began

    def bulk(self, count: int) -> float:
        """Seconds of so many messages of 256 KiB in a row."""
        data = bytes(BULK_BYTES)
        began = time.perf_counter()
        self.send(count.to_bytes(8, "big"))
        for _ in range(count):
            self.send(data)
        self.recv()
        return time.perf_counter() - began

    def cpu_s(self) -> float:
        """What both processes have used."""
        return cpu_s(str(self.far)) + cpu_s("self")


class Threads(Peer):
    """nova's streams for threads."""

    def __init__(self, url: str, key: bytes | None = None, **options: Any) -> None:
        self.url, self.key, self.options = url, key, options

    def listen(self) -> None:
        self.listener = blocking.listen(self.url, key=self.key, **self.options)

    def accept(self) -> None:
        self.take(self.listener.accept())

    def connect(self) -> None:
        self.take(blocking.connect(self.listener.url, key=self.key, **self.options))

    def take(self, stream: blocking.BlockingStream) -> None:
        self.stream, self.send, self.recv = stream, stream.send, stream.recv  # type: ignore[method-assign]

    def close(self) -> None:
        self.stream.close()
        self.listener.close()


class Loops(Peer):
    """nova's streams on the loop, uvloop where it is installed."""

    def __init__(self, url: str, key: bytes | None = None) -> None:
        self.url, self.key = url, key
        self.out, self.into = os.pipe()

    def new_loop(self) -> None:
        from nova.runtime import new_loop

        self.loop = new_loop()

    def serve(self) -> None:
        self.new_loop()

        async def whole() -> None:
            async with await transport.listen(self.url, key=self.key) as listener:
                os.write(self.into, listener.url.encode())
                stream = await listener.accept()
                while (message := await stream.recv()) is not None:
                    if len(message) == 8:
                        left = int.from_bytes(message, "big")
                        while left:
                            left -= len(await stream.recv_batch())
                        message = memoryview(b"all")
                    stream.send(message)

        self.loop.run_until_complete(whole())

    def connect(self) -> None:
        url = os.read(self.out, 1000).decode()
        self.new_loop()
        self.stream = self.loop.run_until_complete(transport.connect(url, key=self.key))

    def close(self) -> None:
        self.loop.run_until_complete(self.stream.close())
        self.loop.close()
        os.close(self.out)
        os.close(self.into)

    def trips(self, count: int) -> float:
        async def whole() -> None:
            for _ in range(count):
                self.stream.send(SMALL)
                await self.stream.recv()

        began = time.perf_counter()
        self.loop.run_until_complete(whole())
        return time.perf_counter() - began

    def bulk(self, count: int) -> float:
        async def whole() -> None:
            data = bytes(BULK_BYTES)
            self.stream.send(count.to_bytes(8, "big"))
            for _ in range(count):
                while not self.stream.send(data):
                    await self.stream.drain()
            await self.stream.recv()

        began = time.perf_counter()
        self.loop.run_until_complete(whole())
        return time.perf_counter() - began


class Zmq(Peer):
    """A pair of pyzmq sockets on ipc://; the messages are not copied for Python."""

    def open(self, bind: bool) -> None:
        import zmq

        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PAIR)
        (self.socket.bind if bind else self.socket.connect)(f"ipc://{self.folder.name}/zmq")
        self.send = functools.partial(self.socket.send, copy=False)  # type: ignore[method-assign]

    def accept(self) -> None:
        self.open(True)

    def connect(self) -> None:
        self.open(False)

    def recv(self) -> Any:
        message = self.socket.recv(copy=False).buffer
        return message if len(message) else None

    def close(self) -> None:
        self.send(b"")
        self.socket.close()
        self.context.term()


class CRing(Peer):
    """bench/ring.c: spins, frames nothing and believes everything."""

    def __enter__(self) -> Peer:
        self.folder = tempfile.TemporaryDirectory()
        self.program = Path(self.folder.name, "ring")
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            pytest.skip("no C compiler: bench/ring.c is built when it is needed")
        subprocess.run([compiler, "-O2", HERE / "ring.c", "-o", self.program], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def trips(self, count: int) -> float:
        done = subprocess.run([self.program, str(max(count, 300))], check=True, capture_output=True, text=True)
        return float(done.stdout.split()[1]) * count / 1e9

    def bulk(self, count: int) -> float:
        return float("nan")


PEERS: dict[str, Callable[[], Peer]] = {
    "nova, threads": lambda: Threads("shm://@", spin_us=0),
    "nova, threads that spin": lambda: Threads("shm://@", spin_us=50),
    "nova, threads that spin, with a key": lambda: Threads("shm://@", KEY, spin_us=50),
    "nova, tcp, threads": lambda: Threads("tcp://127.0.0.1:0"),
    "nova, loop": lambda: Loops("shm://@"),
    "nova, tcp, loop": lambda: Loops("tcp://127.0.0.1:0"),
    "pyzmq ipc": Zmq,
    "C ring that spins": CRing,
}


@pytest.fixture(params=list(PEERS))
def peer(request: pytest.FixtureRequest) -> Any:
    if request.param.startswith("pyzmq") and importlib.util.find_spec("zmq") is None:
        pytest.skip("pyzmq is not installed")
    with PEERS[request.param]() as made:
        yield made


@pytest.mark.benchmark(group="shm.round trip of 64 B between two processes")
def test_round_trips(benchmark: Any, peer: Peer) -> None:
    benchmark.extra_info["operations"] = TRIPS
    assert benchmark.pedantic(peer.trips, (TRIPS,), rounds=7, warmup_rounds=1) > 0


@pytest.mark.benchmark(group="shm.message of 256 KiB between two processes")
def test_bulk(benchmark: Any, peer: Peer) -> None:
    if isinstance(peer, CRing):
        pytest.skip("the C ring has no messages of that size")
    benchmark.extra_info["operations"] = BULK
    assert benchmark.pedantic(peer.bulk, (BULK,), rounds=5, warmup_rounds=1) > 0


def main(rounds: int) -> None:
    """All peers in turns."""
    names = [name for name in PEERS if not name.startswith("pyzmq") or importlib.util.find_spec("zmq")]
    peers = {name: PEERS[name]().__enter__() for name in names}
    trips: dict[str, list[float]] = {name: [] for name in names}
    bulk: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, float] = dict.fromkeys(names, 0.0)
    for turn in range(rounds + 1):
        for name, peer in peers.items():
            took = peer.trips(TRIPS) / TRIPS * 1e6
            before = peer.cpu_s() if not isinstance(peer, CRing) else 0.0
            gbps = BULK_BYTES * BULK * 8 / peer.bulk(BULK) / 1e9
            if turn:
                trips[name].append(took)
                bulk[name].append(gbps)
                cpu[name] += peer.cpu_s() - before if not isinstance(peer, CRing) else 0.0
    print(f"{'':38}{'round trip, us':>24}{'256 KiB, Gbit/s':>24}{'CPU s/GB':>10}")
    for name in names:
        line = f"{name:38}{statistics.median(trips[name]):>12.2f}{min(trips[name]):>8.2f} best"
        if not isinstance(peers[name], CRing):
            gigabytes = rounds * BULK * BULK_BYTES / 1e9
            line += f"{statistics.median(bulk[name]):>11.1f}{max(bulk[name]):>8.1f} best{cpu[name] / gigabytes:>10.2f}"
        print(line)
    for peer in reversed(peers.values()):
        peer.__exit__()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
