"""The TCP engine against plain asyncio streams and blocking sockets: small messages, round trips, bulk."""

import asyncio
import socket
import threading

import pytest

from nova.transport.base import Identity
from nova.transport.tcp import TcpTransport

KEY = bytes(32)
SMALL, BULK = b"x" * 64, b"x" * (1 << 20)


class Nova:
    def __init__(self, key):
        self.key = key

    async def open(self):
        self.client = TcpTransport(Identity("a", "r", "c", 1, ""), key=self.key)
        self.server = TcpTransport(Identity("b", "r", "c", 1, ""), key=self.key)
        accepted = asyncio.get_running_loop().create_future()

        async def accept(stream):
            accepted.set_result(stream)

        self.one = await self.client.connect(await self.server.listen("127.0.0.1:0", accept))
        self.two = await accepted

    async def stream(self, message, count):
        async def write():
            for _ in range(count):
                while not self.one.send(message):
                    await self.one.drain()

        writer = asyncio.create_task(write())
        got = 0
        while got < count:
            got += len(await self.two.recv_batch())
        await writer
        return got

    async def round_trips(self, count):
        async def echo():
            for _ in range(count):
                self.two.send(await self.two.recv())

        task = asyncio.create_task(echo())
        for _ in range(count):
            self.one.send(SMALL)
            await self.one.recv()
        await task
        return count

    async def close(self):
        await self.client.close()
        await self.server.close()


class AsyncioStreams:
    """Length-prefixed messages on asyncio's own streams: no checksum, no MAC, no credit."""

    async def open(self):
        accepted = asyncio.get_running_loop().create_future()

        async def accept(reader, writer):
            accepted.set_result((reader, writer))

        self.server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 21)
        port = self.server.sockets[0].getsockname()[1]
        self.one = await asyncio.open_connection("127.0.0.1", port, limit=1 << 21)
        self.two = await accepted

    @staticmethod
    async def _recv(reader):
        return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))

    async def stream(self, message, count):
        async def write():
            head = len(message).to_bytes(4, "big")
            for _ in range(count):
                self.one[1].write(head + message)
                await self.one[1].drain()

        task = asyncio.create_task(write())
        for _ in range(count):
            await self._recv(self.two[0])
        await task
        return count

    async def round_trips(self, count):
        async def echo():
            for _ in range(count):
                self.two[1].write(len(SMALL).to_bytes(4, "big") + await self._recv(self.two[0]))

        task = asyncio.create_task(echo())
        for _ in range(count):
            self.one[1].write(len(SMALL).to_bytes(4, "big") + SMALL)
            await self._recv(self.one[0])
        await task
        return count

    async def close(self):
        for _, writer in (self.one, self.two):
            writer.close()
        self.server.close()


class BlockingSockets:
    """Two threads, raw bytes of known size: what the kernel and Python allow."""

    async def open(self):
        server = socket.create_server(("127.0.0.1", 0))
        self.one = socket.create_connection(server.getsockname())
        self.two, _ = server.accept()
        server.close()
        for end in (self.one, self.two):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def stream(self, message, count):
        thread = threading.Thread(target=lambda: [self.one.sendall(message) for _ in range(count)])
        thread.start()
        left, buffer = len(message) * count, bytearray(1 << 18)
        while left:
            left -= self.two.recv_into(buffer)
        thread.join()
        return count

    async def round_trips(self, count):
        def echo():
            for _ in range(count):
                self.two.sendall(self.two.recv(64))

        thread = threading.Thread(target=echo)
        thread.start()
        for _ in range(count):
            self.one.sendall(SMALL)
            self.one.recv(64)
        thread.join()
        return count

    async def close(self):
        self.one.close()
        self.two.close()


PEERS = {
    "nova": lambda: Nova(KEY),
    "nova-crc-only": lambda: Nova(None),
    "asyncio-streams": AsyncioStreams,
    "blocking-sockets": BlockingSockets,
}


@pytest.fixture(params=list(PEERS))
def wire(request):
    loop = asyncio.new_event_loop()
    peer = PEERS[request.param]()
    loop.run_until_complete(peer.open())
    yield lambda work: loop.run_until_complete(work(peer))
    loop.run_until_complete(peer.close())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.benchmark(group="transport.message of 64 B, 10,000 in a row")
def test_small_messages(benchmark, wire):
    benchmark.extra_info["operations"] = 10_000
    assert benchmark.pedantic(wire, (lambda peer: peer.stream(SMALL, 10_000),), rounds=5, warmup_rounds=1) == 10_000


@pytest.mark.benchmark(group="transport.round trip of 64 B")
def test_round_trips(benchmark, wire):
    benchmark.extra_info["operations"] = 1_000
    assert benchmark.pedantic(wire, (lambda peer: peer.round_trips(1000),), rounds=5, warmup_rounds=1) == 1000


@pytest.mark.benchmark(group="transport.message of 1 MiB")
def test_bulk(benchmark, wire):
    benchmark.extra_info["operations"] = 64
    assert benchmark.pedantic(wire, (lambda peer: peer.stream(BULK, 64),), rounds=5, warmup_rounds=1) == 64
