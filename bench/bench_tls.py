"""TLS 1.3: a stream of blocking sockets beside AES and copy in series, and the mesh's streams with and without it.

The peers of the stream: `plain` sockets, which only copy, and `aes-and-copy`, which seals each record of 16 KiB by
AES-256-GCM (`cryptography`, with an OpenSSL of its own) on the way and opens it at the other end, and does nothing else
of what TLS does. Sender and receiver are two processes.
"""

import asyncio
import os
import resource
import socket
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from nova.runtime import new_loop
from nova.transport.authority import Authority
from nova.transport.base import Identity
from nova.transport.tcp import TcpTransport
from nova.transport.tls import Tls, TlsFiles
from nova.transport.tls_socket import secure

MIB = 1 << 20
TOTAL = 128 * MIB
RECORD, TAG = 16 * 1024, 16
DATA = bytes(range(256)) * (MIB // 256)
KEY = bytes(32)


@pytest.fixture(scope="module")
def sides():
    with tempfile.TemporaryDirectory() as folder:
        made = Authority.create(Path(folder) / "certs", "c")
        for node in "ab":
            made.issue(node, "r")
        yield [Tls(TlsFiles.in_folder(made.folder, node), cluster="c") for node in "ab"]


def pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
    for end in (one, two):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, two


def secured(sides):
    one, two = pair()
    found = []
    thread = threading.Thread(target=lambda: found.append(secure(two, sides[1], server_side=True)[0]))
    thread.start()
    end, _ = secure(one, sides[0], server_side=False)
    thread.join()
    return end, found[0]


def send(sock):
    for _ in range(TOTAL // MIB):
        sock.sendall(DATA)


def receive(sock):
    left, buffer = TOTAL, bytearray(256 * 1024)
    while left:
        left -= sock.recv_into(buffer)


def send_sealed(sock):
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, view, number = AESGCM(KEY), memoryview(DATA), 0
    for _ in range(TOTAL // MIB):
        for at in range(0, MIB, RECORD):
            number += 1
            sock.sendall(cipher.encrypt(number.to_bytes(12, "big"), view[at : at + RECORD], None))


def receive_sealed(sock):
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, buffer, number, left, fill = AESGCM(KEY), memoryview(bytearray(512 * 1024)), 0, TOTAL, 0
    while left:
        fill += sock.recv_into(buffer[fill:])
        at = 0
        while fill - at >= RECORD + TAG:
            number += 1
            left -= len(cipher.decrypt(number.to_bytes(12, "big"), buffer[at : at + RECORD + TAG], None))
            at += RECORD + TAG
        buffer[: fill - at] = bytes(buffer[at:fill])
        fill -= at


WAYS = {
    "nova": (secured, send, receive),
    "aes-and-copy": (lambda sides: pair(), send_sealed, receive_sealed),
    "plain": (lambda sides: pair(), send, receive),
}


def cpu_s():
    return sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )  # fmt: skip


@contextmanager
def receiver(sock, work):
    """A process that takes all of it, and says when it has."""
    child = os.fork()
    if child == 0:
        try:
            work(sock)
            sock.sendall(b".")
        finally:
            os._exit(0)
    yield
    os.waitpid(child, 0)


@pytest.mark.parametrize("peer", list(WAYS))
@pytest.mark.benchmark(group="tls.128 MiB over blocking sockets")
def test_stream(benchmark, sides, peer):
    make, sender, taker = WAYS[peer]
    costs = []

    def setup():
        return make(sides), {}

    def carry(one, two):
        before = cpu_s()
        with receiver(two, taker):
            sender(one)
            assert one.recv(1) == b"."
        costs.append((cpu_s() - before) / (TOTAL / 1e9))
        one.close()
        two.close()

    benchmark.pedantic(carry, setup=setup, rounds=5, warmup_rounds=1)
    benchmark.extra_info["operations"] = TOTAL // MIB
    benchmark.extra_info["cpu_s_per_gb"] = round(sorted(costs)[len(costs) // 2], 3)


@pytest.fixture(params=["nova", "without-tls"])
def wire(request, sides):
    """Two connected streams as a mesh has them, and their loop: with TLS, and without but with a cluster key."""
    loop = new_loop()
    tls = sides if request.param == "nova" else (None, None)

    async def open_both():
        one, two = (
            TcpTransport(Identity(node, "r", "c", 1, ""), key=KEY, tls=side)
            for node, side in zip("ab", tls, strict=True)
        )
        accepted = loop.create_future()

        async def accept(stream):
            accepted.set_result(stream)

        address = await two.listen("127.0.0.1:0", accept)
        return one, two, await one.connect(address), await accepted

    one, two, here, there = loop.run_until_complete(open_both())
    yield loop, here, there
    loop.run_until_complete(one.close())
    loop.run_until_complete(two.close())
    loop.close()


async def carried(here, there, message, count):
    async def write():
        for _ in range(count):
            while not here.send(message):
                await here.drain()

    writer = asyncio.create_task(write())
    got = 0
    while got < count:
        got += len(await there.recv_batch())
    await writer
    return got


@pytest.mark.parametrize(("size", "count"), [(64, 20_000), (MIB, 64)], ids=["64 B", "1 MiB"])
@pytest.mark.benchmark(group="tls.messages through the mesh's streams")
def test_mesh(benchmark, wire, size, count):
    loop, here, there = wire
    benchmark.extra_info["operations"] = count
    work = lambda: loop.run_until_complete(carried(here, there, b"x" * size, count))  # noqa: E731
    assert benchmark.pedantic(work, rounds=5, warmup_rounds=1) == count


@pytest.mark.benchmark(group="tls.round trip of 64 B through the mesh's streams")
def test_round_trips_over_tls(benchmark, wire):
    loop, here, there = wire

    async def all_of_them():
        async def echo():
            for _ in range(1_000):
                there.send(await there.recv())

        task = asyncio.create_task(echo())
        for _ in range(1_000):
            here.send(b"x" * 64)
            await here.recv()
        await task
        return 1_000

    benchmark.extra_info["operations"] = 1_000
    assert benchmark.pedantic(lambda: loop.run_until_complete(all_of_them()), rounds=5, warmup_rounds=1) == 1_000


@pytest.mark.benchmark(group="tls.handshake")
def test_handshake(benchmark, sides):
    from nova.transport.tls import handshake_in_memory

    a, b = sides
    _, end = benchmark(lambda: handshake_in_memory(a.context(server=False), b.context(server=True)))
    assert b.certified(end).node == "a"
