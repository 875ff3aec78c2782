"""Which engine is taken, why, and what happens when it fails and comes back."""

import asyncio
import ctypes
import errno
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nova.errors import PeerError, UsageError
from nova.transport import choose
from nova.transport.base import Identity
from nova.transport.choose import AutoTransport, explain
from nova.transport.engine import Kind
from nova.transport.uring import EngineTransport

KEY = bytes(32)
FORBIDDEN = "io_uring is forbidden here (EPERM): sysctl kernel.io_uring_disabled=0"


def identity(node):
    return Identity(node, "r", "c", 1, "")


def test_the_first_usable_engine_is_chosen_and_what_is_missing_is_named():
    choice = explain(lambda scheme: FORBIDDEN if scheme == "uring" else "")
    assert choice.chosen == "epoll"
    assert choice.reason == "epoll is the first that is usable; uring is not: io_uring is forbidden here (EPERM)"
    assert [option.scheme for option in choice.options] == ["uring", "epoll", "tcp"]
    assert choice.options[0].mend == "sysctl kernel.io_uring_disabled=0"
    assert explain(lambda scheme: "" if scheme == "tcp" else "none: x").chosen == "tcp"
    assert explain(lambda scheme: "").chosen == "uring"


def test_this_machine_is_asked():
    choice = explain()
    assert choice.chosen in ("uring", "epoll", "tcp")
    assert next(option for option in choice.options if option.scheme == choice.chosen).usable


class Kernel:
    """Answers which engines can be had; what it forbids, no engine opens."""

    def __init__(self, monkeypatch):
        self.forbidden = set()
        opened = EngineTransport._engine

        def open_engine(transport):
            if (scheme := "uring" if transport.kind is Kind.URING else "epoll") in self.forbidden:
                raise choose.EngineError(f"{scheme} is forbidden here")
            return opened(transport)

        monkeypatch.setattr(EngineTransport, "_engine", open_engine)

    def missing(self, scheme):
        return choose._missing(scheme) or (f"{scheme} is forbidden here: allow it" if scheme in self.forbidden else "")


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


best = explain().chosen


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class Pair:
    """A listening transport that echoes, and one that dials."""

    def __init__(self, kernel, retry_s):
        self.server = AutoTransport(identity("b"), key=KEY, missing=kernel.missing, retry_s=retry_s)
        self.client = AutoTransport(identity("a"), key=KEY, missing=kernel.missing, retry_s=retry_s)

    async def listen(self):
        async def echo(stream):
            while (message := await stream.recv()) is not None:
                stream.send(message)

        self.address = await self.server.listen("127.0.0.1:0", echo)

    async def talks(self):
        stream = await self.client.connect(self.address)
        stream.send(b"hello")
        assert await stream.recv() == b"hello"
        return stream


def run(kernel, test, *, retry_s=60.0):
    async def whole():
        pair = Pair(kernel, retry_s)
        try:
            async with asyncio.timeout(20):
                await pair.listen()
                await test(pair)
        finally:
            await pair.client.close()
            await pair.server.close()

    asyncio.run(whole())


def test_without_io_uring_streams_go_by_epoll_and_one_line_says_why(kernel, caplog):
    caplog.set_level(logging.INFO)
    kernel.forbidden = {"uring"}

    async def test(pair):
        await pair.talks()
        assert pair.client.scheme == pair.server.scheme == "epoll"

    run(kernel, test)
    lines = [record.message for record in caplog.records if "uring" in record.message]
    assert len(lines) == 2  # one a transport
    assert all("epoll is the first that is usable; uring is not: " in line for line in lines)


def test_without_either_asyncio_carries_them(kernel):
    kernel.forbidden = {"uring", "epoll"}

    async def test(pair):
        await pair.talks()
        assert pair.client.scheme == pair.server.scheme == "tcp"

    run(kernel, test)


@pytest.mark.skipif(best != "uring", reason="io_uring is not usable here")
def test_an_engine_that_refuses_to_open_is_left_for_the_next(kernel):
    async def test(pair):
        await pair.talks()
        assert pair.client.scheme == "uring"
        kernel.forbidden = {"uring"}
        await pair.talks()
        assert pair.client.scheme == "epoll"
        assert pair.server.scheme == "uring"

    run(kernel, test)


@pytest.mark.skipif(best != "uring", reason="io_uring is not usable here")
def test_an_engine_that_fails_loses_its_streams_and_all_comes_back_by_itself(kernel, caplog):
    async def test(pair):
        stream = await pair.talks()
        assert pair.server.scheme == "uring"
        kernel.forbidden = {"uring"}
        pair.server._made["uring"]._home.engine.fail(errno.ENOMEM)
        pair.server._made["uring"]._home.asked()
        with pytest.raises(PeerError):
            await stream.recv()
        # The same address, by the next engine.
        await until(lambda: pair.server._listeners[0].scheme == "epoll")
        assert pair.server.scheme == pair.client.scheme == "epoll"
        old = await pair.talks()
        kernel.forbidden = set()
        await until(lambda: pair.server._listeners[0].scheme == "uring")
        await until(lambda: pair.client.scheme == "uring")
        await pair.talks()
        old.send(b"still on epoll")
        assert await old.recv() == b"still on epoll"
        assert pair.server.scheme == "uring"

    run(kernel, test, retry_s=0.05)
    assert "the io_uring engine failed: cannot allocate memory" in caplog.text
    assert "epoll goes on, uring is tried again in 0.05 s" in caplog.text


@pytest.mark.skipif(best != "uring", reason="io_uring is not usable here")
def test_listeners_of_an_engine_that_failed_are_opened_again_at_once(kernel):
    async def test(pair):
        kernel.forbidden = {"uring"}
        pair.server._made["uring"]._home.engine.fail(errno.EIO)
        pair.server._made["uring"]._home.asked()
        await until(lambda: pair.server._listeners[0].scheme == "epoll")
        await pair.talks()

    run(kernel, test)


def test_what_the_address_forbids_is_no_reason_for_another_engine(kernel):
    async def test(pair):
        with pytest.raises(UsageError, match="is in use"):
            await pair.client.listen(pair.address, None)
        assert pair.client.scheme == best

    run(kernel, test)


def test_a_closed_transport_takes_nothing_more(kernel):
    async def test(pair):
        await pair.client.close()
        with pytest.raises(UsageError, match="closed"):
            await pair.client.connect(pair.address)
        with pytest.raises(UsageError, match="closed"):
            await pair.client.listen("127.0.0.1:0", None)

    run(kernel, test)


def test_tls_and_the_engines_that_carry_none():
    from nova.transport import uring

    for make, scheme in ((uring.engine, "uring"), (uring.epoll_engine, "epoll")):
        with pytest.raises(UsageError, match=f"{scheme}:// carries no TLS; use tcp://"):
            make(identity("a"), key=KEY, tls=object())
    assert isinstance(choose.engine(identity("a"), key=KEY), AutoTransport)


FORBIDDING = """
import asyncio, ctypes, logging, struct, sys

logging.basicConfig(level=logging.INFO, format="%(message)s")
# What a container's profile does: io_uring_setup (425) answers with an errno.
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050000 | int(sys.argv[1])), (0x06, 0, 0, 0x7FFF0000)]
filters = b"".join(struct.pack("HBBI", *step) for step in steps)
memory = ctypes.create_string_buffer(filters, len(filters))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(memory)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()

from nova.errors import UnavailableError
from nova.transport.base import Identity
from nova.transport.choose import AutoTransport
from nova.transport.uring import UringTransport

async def main():
    a, b = (AutoTransport(Identity(name, "r", "c", 1, ""), key=bytes(32)) for name in "ab")

    async def echo(stream):
        stream.send(await stream.recv())

    stream = await a.connect(await b.listen("127.0.0.1:0", echo))
    stream.send(b"hello")
    print(bytes(await stream.recv()).decode(), "by", a.scheme)
    try:
        await UringTransport(Identity("c", "r", "c", 1, ""), key=bytes(32)).connect("127.0.0.1:1")
    except UnavailableError as error:
        print(error)
    await a.close()
    await b.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("error", "words"), [(errno.EPERM, "io_uring is forbidden here (EPERM)"), (errno.ENOSYS, "or forbids it (ENOSYS)")]
)
def test_where_a_container_forbids_io_uring_epoll_takes_over_and_says_why(error, words):
    command = [sys.executable, "-c", FORBIDDING, str(int(error))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said, refusal = done.stdout.splitlines()
    assert said == "hello by epoll"
    if "built without liburing" not in refusal:
        assert words in refusal
        assert done.stderr.count(words.partition(",")[0]) == 2  # one line a transport


def test_without_liburing_the_same_sources_build_and_say_so(tmp_path):
    root = Path(__file__).resolve().parents[2]
    library = tmp_path / "stub.so"
    sources = map(str, sorted((root / "csrc").glob("uring*.c")))
    subprocess.run(["cc", "-std=c11", "-w", "-shared", "-fPIC", "-pthread", *sources, "-o", str(library)], check=True)
    stub = ctypes.CDLL(str(library))
    cause = ctypes.create_string_buffer(256)
    assert stub.nova_engine_probe(int(Kind.URING), cause, ctypes.c_size_t(256)) < 0
    assert cause.value == b"built without liburing: apt install liburing-dev, then build nova again"
    assert stub.nova_engine_probe(int(Kind.EPOLL), cause, ctypes.c_size_t(256)) == 0


def test_a_name_with_two_families_listens_on_one_port(kernel):
    async def test(pair):
        transport = AutoTransport(identity("c"), key=KEY, missing=kernel.missing)

        async def accept(stream): ...

        address = await transport.listen("localhost:0", accept)
        port = int(address.rpartition(":")[2])
        for family, *_, name in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM):
            with socket.socket(family, socket.SOCK_STREAM) as caller:
                caller.connect(name)
        await transport.close()

    run(kernel, test)
