"""Streams through shared memory: who may have one, what a stranger in the memory can do, and how they end."""

import asyncio
import contextlib
import fcntl
import gc
import mmap
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

import pytest

from nova import transport
from nova._native.frame import FrameParser
from nova._native.shm import DATA, Rings, map_bytes
from nova.errors import PeerError, UnavailableError, UsageError
from nova.transport import Limits, blocking, handover
from nova.transport.base import Identity
from nova.transport.session import FrameType, Goodbye, Session
from nova.transport.shm import ShmTransport
from nova.transport.tcp import TcpTransport, split_address
from tests import authorities

KEY = bytes(range(32))
RING = 64 * 1024
HEAD, TAIL, BELL, SIDE, OUT = 0, 128, 256, 512, 4096
"""Where the initiator's words are, how far behind the responder's are, and the first ring."""


def identity(node):
    return Identity(node, "r", "nova", 1, f"{node}:1")


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def world(address="@", *, key=KEY, **options):
    """A listening transport, its address, the streams that it accepts, and one that connects."""
    options.setdefault("ring_bytes", RING)
    server, client = (ShmTransport(identity(node), key=key, **options) for node in "ba")
    accepted = asyncio.Queue()
    try:
        async with asyncio.timeout(20):
            yield client, await server.listen(address, accepted.put), accepted, server
    finally:
        await client.close()
        await server.close()


def run(test, *arguments, **options):
    async def whole():
        async with world(*arguments, **options) as made:
            await test(*made)

    asyncio.run(whole())


def shared(monkeypatch):
    """The memory of every stream that is made from now on, as a stranger sees it."""
    made, make = [], handover.make_memory

    def watched(ring_bytes):
        memory = make(ring_bytes)
        made.append(mmap.mmap(memory, map_bytes(ring_bytes)))
        return memory

    monkeypatch.setattr(handover, "make_memory", watched)
    return made


# -- addresses and files ---------------------------------------------------------------------------------------------


def test_streams_by_address(tmp_path):
    async def whole():
        url = f"shm://{tmp_path}/nova.sock"
        async with await transport.listen(url, ring_bytes=RING) as listener:
            assert listener.url == url
            one = await transport.connect(url)
            two = await listener.accept()
            one.send(b"there")
            assert await two.recv() == b"there"
            await two.put(bytes(1_000_000))
            assert await one.recv() == bytes(1_000_000)
            await one.close()

    asyncio.run(whole())


def test_the_socket_file_is_for_its_user_and_goes_with_the_listener(tmp_path):
    path = tmp_path / "nova.sock"

    async def test(client, address, accepted, server):
        assert address == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await server.close()
        assert not path.exists()
        with pytest.raises(UnavailableError, match="connection refused, nobody listens there"):
            await client.connect(address)

    run(test, str(path))


def test_a_file_that_a_dead_listener_left_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "nova.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()

    async def test(client, address, accepted, server):
        await client.connect(address)
        for listen in (ShmTransport(identity("c"), key=KEY).listen, lambda a, _: blocking.listen(f"shm://{a}")):
            with pytest.raises(UsageError, match=f"address {path} is in use"):
                await listen(address, accepted.put)
        assert (await accepted.get()).peer.node == "a"

    run(test, str(path))
    path.write_text("precious")
    with pytest.raises(UsageError, match="is in use"):
        handover.bind(str(path))
    assert path.read_text() == "precious"


def test_a_file_that_another_listener_has_put_there_since_stays(tmp_path):
    path = tmp_path / "nova.sock"
    first = handover.bind(str(path))
    path.unlink()
    with handover.bind(str(path)):
        handover.unbind(first)
        handover.unbind(first)
        assert path.exists()


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("nova.sock", "is neither a path from the root nor @name"),
        ("127.0.0.1:80", "is neither a path from the root nor @name"),
        ("/" + "x" * 107, "has 108 bytes; a Unix socket's name has 107 at most"),
        ("/nowhere/nova.sock", "cannot listen on /nowhere/nova.sock: no such file or directory; choose a path"),
    ],
)
def test_an_address_that_cannot_be_is_named(address, complaint):
    with pytest.raises(UsageError, match=complaint):
        run(None, address)
    if "listen" not in complaint:
        with pytest.raises(UsageError, match=complaint):
            asyncio.run(transport.connect(f"shm://{address}", key=KEY))


@pytest.mark.parametrize("ring_bytes", [0, 4096, 100_000, 1 << 31])
def test_a_ring_that_cannot_be_is_named(ring_bytes):
    for make in (
        lambda: ShmTransport(identity("a"), key=None, ring_bytes=ring_bytes),
        lambda: blocking.connect("shm://@nobody", ring_bytes=ring_bytes),
        lambda: blocking.listen("shm://@", ring_bytes=ring_bytes),
    ):
        with pytest.raises(UsageError, match=f"ring_bytes is {ring_bytes}; it is a power of two from 65536"):
            make()


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="shm:// has no TLS"):
        asyncio.run(transport.connect("shm://@nobody", tls=authorities.tls("a")))
    with pytest.raises(UsageError, match="spin_us is -1; it is microseconds"):
        blocking.listen("shm://@", spin_us=-1)
    with pytest.raises(UsageError, match="tcp:// knows no ring_bytes="):
        blocking.connect("tcp://127.0.0.1:1", ring_bytes=RING)


def test_the_smaller_ring_of_both_ends_is_taken(monkeypatch):
    memories = shared(monkeypatch)

    async def test(client, address, accepted, server):
        for ring_bytes, agreed in ((RING, RING), (16 * RING, 4 * RING)):
            with_rings = ShmTransport(identity("a"), key=KEY, ring_bytes=ring_bytes)
            await with_rings.connect(address)
            assert len(memories[-1]) == map_bytes(agreed)
            await with_rings.close()

    run(test, ring_bytes=4 * RING)


# -- who may ---------------------------------------------------------------------------------------------------------


def test_the_kernel_tells_who_is_at_the_other_end():
    with handover.bind("@") as listening, socket.socket(socket.AF_UNIX) as one:
        one.connect(listening.getsockname())
        with listening.accept()[0] as two:
            assert handover.credentials(one) == handover.credentials(two) == (os.getpid(), os.geteuid())
            handover.check_user(one, None)


def test_another_user_is_refused_by_name_on_both_sides(monkeypatch, caplog):
    async def test(client, address, accepted, server):
        for uid, uids in ((os.geteuid(), None), (0, None), (4711, None), (4711, [4712]), (4711, [4711])):
            monkeypatch.setattr(handover, "credentials", lambda sock, uid=uid: handover.Credentials(77, uid))
            server._uids = uids
            client._uids = [4711]
            if uid == 4711 and uids != [4711]:
                with pytest.raises(
                    PeerError, match="refused by the peer: the other end, process 77, runs as user 4711"
                ):
                    await client.connect(address)
                assert "name others in uids=" in caplog.text
            else:
                await client.connect(address)
                await accepted.get()
        client._uids = None
        with pytest.raises(PeerError, match=r"the other end, process 77, runs as user 4711; here user \d+ and root"):
            await client.connect(address)

    run(test)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_a_real_process_of_another_user_is_refused(caplog):
    async def test(client, address, accepted, server):
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65534)
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect("\0" + address[1:])
                    sock.send(handover.greeting(RING))
                    os.write(into, sock.recv(1000))
            finally:
                os._exit(0)
        os.close(into)
        said = await asyncio.to_thread(os.read, out, 1000)
        os.close(out)
        os.waitpid(child, 0)
        assert b"runs as user 65534" in said
        assert accepted.empty()

    run(test)


def test_memory_is_limited_over_all_streams_and_comes_back(caplog):
    async def test(client, address, accepted, server):
        one, two = await client.connect(address), await client.connect(address)
        assert server.memory_bytes == client.memory_bytes == 2 * map_bytes(RING)
        with pytest.raises(UnavailableError, match="raise memory_bytes_max"):
            await client.connect(address)
        assert f"streams hold {2 * map_bytes(RING)} of {2 * map_bytes(RING) + 1} bytes" in caplog.text
        await asyncio.gather(one.close(), (await accepted.get()).close())
        await until(lambda: server.memory_bytes == map_bytes(RING))
        await client.connect(address)
        two.abort("enough")
        await until(lambda: server.memory_bytes == client.memory_bytes == map_bytes(RING))

    run(test, memory_bytes_max=2 * map_bytes(RING) + 1)


def test_memory_that_cannot_be_had_is_told(monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    async def test(client, address, accepted, server):
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UnavailableError, match="no 135168 bytes of shared memory: no space left on device; choose"):
            await client.connect(address)
        monkeypatch.undo()
        await client.connect(address)

    run(test)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def mappings():
    with open("/proc/self/maps") as maps:
        return maps.read().count("nova-shm")


def test_nothing_is_left_of_a_stream_that_has_ended():
    async def test(client, address, accepted, server):
        async def one_stream():
            stream = await client.connect(address)
            await asyncio.gather(stream.close(), (await accepted.get()).close())

        await one_stream()
        gc.collect()  # what other tests left
        before = descriptors(), mappings()
        for _ in range(10):
            await one_stream()
        await until(lambda: descriptors() <= before[0] and mappings() <= before[1])

    run(test)


# -- strangers on the socket -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "greet nobody: not a nova peer"),
        (handover.GREETING.pack(b"NOVASHM", 9, RING), "shares memory by version 9, this one by 1"),
        (handover.greeting(4096), "takes rings of 4096 bytes at most; 65536 are needed"),
        (b"NOVA", "hung up before it had said what memory to share"),
    ],
)
def test_a_greeting_that_is_none_gets_one_clear_line_and_a_closed_door(data, complaint, caplog):
    async def test(client, address, accepted, server):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect("\0" + address[1:])
            stranger.send(data)
            stranger.shutdown(socket.SHUT_WR)
            answer = await asyncio.to_thread(stranger.recv, 1000)
        assert complaint in answer.decode("utf-8", "replace")
        assert accepted.empty()
        honest = await client.connect(address)
        honest.send(b"still there")
        assert await (await accepted.get()).recv() == b"still there"

    run(test)
    assert complaint in caplog.text


def test_a_greeting_that_drips_is_cut_off_in_time(caplog):
    async def test(client, address, accepted, server):
        reader, writer = await asyncio.open_unix_connection("\0" + address[1:])
        writer.write(b"N")
        assert await reader.read() == b""
        writer.close()

    run(test, limits=Limits(handshake_ms_max=100))
    assert "no greeting in time" in caplog.text


def test_a_session_that_never_begins_is_given_up(caplog):
    async def test(client, address, accepted, server):
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect("\0" + address[1:])
            silent.send(handover.greeting(RING))
            await until(lambda: "handshake not finished within 100 ms" in caplog.text)
            await until(lambda: server.memory_bytes == 0)

    run(test, limits=Limits(handshake_ms_max=100))


def plain_file(tmp):
    descriptor = os.open(tmp / "plain", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, map_bytes(RING))
    return [descriptor]


def unsealed(tmp):
    memory = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, map_bytes(RING))
    return [memory]


def half_sealed(tmp):
    (memory,) = unsealed(tmp)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return [memory]


def too_short(tmp):
    memory = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, map_bytes(RING) - 4096)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, handover.SEALS)
    return [memory]


HOSTILE_ANSWERS = [
    (plain_file, RING, "is no shared memory"),
    (unsealed, RING, "is not sealed"),
    (half_sealed, RING, "it could be cut under our feet"),
    (too_short, RING, "memory has 131072 bytes; rings of 65536 take 135168"),
    (lambda tmp: [], RING, "sent 0 descriptors; one"),
    (lambda tmp: [handover.make_memory(RING) for _ in range(2)], RING, "descriptors; one, of the memory"),
    (lambda tmp: [handover.make_memory(RING)], 3 * RING, "has rings of 196608 bytes; this one takes up to"),
    (lambda tmp: [handover.make_memory(RING)], 1 << 62, "this one takes up to"),
    (lambda tmp: [os.pipe()[0]], RING, "is no shared memory"),
]


@pytest.mark.parametrize(("memories", "ring_bytes", "complaint"), HOSTILE_ANSWERS)
@pytest.mark.parametrize(
    "connect",
    [lambda url, **options: asyncio.run(transport.connect(url, **options)), blocking.connect],
    ids=["loop", "thread"],
)
def test_memory_that_could_hurt_is_not_taken(memories, ring_bytes, complaint, connect, tmp_path):
    with handover.bind("@") as listening:

        def answer():
            with listening.accept()[0] as sock:
                sock.recv(16)
                given = memories(tmp_path)
                socket.send_fds(sock, [handover.greeting(ring_bytes)], given)
                sock.recv(1)
                for descriptor in given:
                    os.close(descriptor)

        thread = threading.Thread(target=answer)
        thread.start()
        before = descriptors()
        url = f"shm://{handover.address_of(listening)}"
        with pytest.raises(PeerError, match=complaint):
            connect(url, ring_bytes=2 * RING)
        thread.join(10)
        assert not thread.is_alive()
        assert descriptors() <= before + 1  # the other end of a pipe


def test_a_flood_of_wake_ups_does_no_harm():
    async def test(client, address, accepted, server):
        one = await client.connect(address)
        two = await accepted.get()
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                one._pipe._sock.send(bytes(100_000))
            one.send(b"x")
            assert await two.recv() == b"x"

    run(test)


# -- strangers in the memory -----------------------------------------------------------------------------------------


def poke(memory, offset, value):
    memory[offset : offset + 8] = struct.pack("=Q", value % 2**64)


@pytest.mark.parametrize(
    ("offset", "value", "complaint"),
    [
        (HEAD, 2**40, "wait in a ring of 65536"),
        (HEAD, 0, "takes back what it put"),
        (TAIL, 2**63, "of our bytes still to take"),
    ],
)
def test_a_position_that_cannot_be_breaks_the_stream_and_no_other(monkeypatch, offset, value, complaint, caplog):
    memories = shared(monkeypatch)

    async def test(client, address, accepted, server):
        one, two = await client.connect(address), await accepted.get()
        other, another = await client.connect(address), await accepted.get()
        one.send(b"honest")
        assert await two.recv() == b"honest"
        poke(memories[0], offset, value)
        if offset == TAIL:
            two.send(bytes(2 * RING))  # leaves at once, and looks at the tail when the ring seems to be full
        else:
            one._pipe._sock.send(b"!")  # the stranger rings
        with pytest.raises(PeerError, match=complaint):
            await two.recv()
        assert two.closed
        with pytest.raises(PeerError):
            await one.recv()
        other.send(b"not touched")
        assert await another.recv() == b"not touched"

    run(test)


@pytest.mark.parametrize("key", [KEY, None])
def test_bytes_that_a_stranger_put_into_the_ring_break_the_stream(monkeypatch, key):
    memories = shared(monkeypatch)

    async def test(client, address, accepted, server):
        one, two = await client.connect(address), await accepted.get()
        one.send(b"honest")
        assert await two.recv() == b"honest"
        at = struct.unpack("=Q", memories[0][HEAD : HEAD + 8])[0]
        memories[0][OUT + at : OUT + at + 100] = b"!" * 100
        poke(memories[0], HEAD, at + 100)
        one._pipe._sock.send(b"!")
        with pytest.raises(PeerError, match="start no frame: not a nova peer"):
            await two.recv()

    run(test, key=key)


def test_messages_do_not_change_when_the_memory_does(monkeypatch):
    memories = shared(monkeypatch)

    async def test(client, address, accepted, server):
        one, two = await client.connect(address), await accepted.get()
        for size in (10, 5000, 50_000):
            one.send(b"x" * size)
            message = await two.recv()
            memories[0][OUT : OUT + 2 * RING] = b"!" * (2 * RING)
            assert message == b"x" * size

    run(test)


def test_bytes_that_change_while_they_are_taken_only_break_the_stream(monkeypatch):
    """A stranger writes over the ring all the time: what arrives is what was sent, or nothing."""
    memories = shared(monkeypatch)

    async def test(client, address, accepted, server):
        one, two = await client.connect(address), await accepted.get()
        over = threading.Event()

        def scribble():
            while not over.is_set():
                memories[0][OUT + 7 : OUT + RING : 97] = b"!" * len(range(OUT + 7, OUT + RING, 97))

        stranger = threading.Thread(target=scribble)
        stranger.start()
        try:
            with pytest.raises(PeerError):  # noqa: PT012
                for number in range(10_000):
                    one.send(bytes([number % 256]) * 20_000)
                    assert await two.recv() == bytes([number % 256]) * 20_000
        finally:
            over.set()
            stranger.join()

    run(test)


# -- the end ---------------------------------------------------------------------------------------------------------

TALKER = """
import asyncio, sys
from nova import transport
async def main():
    stream = await transport.connect(sys.argv[1], key=bytes(range(32)))
    for number in range(100):
        await stream.put(b"%d" % number)
    print("said", flush=True)
    await stream.recv()
asyncio.run(main())
"""

BLOCKING_TALKER = """
import sys
from nova.transport import blocking
stream = blocking.connect(sys.argv[1], key=bytes(range(32)))
for number in range(100):
    stream.send(b"%d" % number)
print("said", flush=True)
stream.recv()
"""


@pytest.mark.parametrize("talker", [TALKER, BLOCKING_TALKER], ids=["loop", "thread"])
def test_a_killed_process_is_noticed_at_once_and_its_last_words_are_read(talker):
    async def test(client, address, accepted, server):
        child = subprocess.Popen([sys.executable, "-c", talker, f"shm://{address}"], stdout=subprocess.PIPE)
        try:
            stream = await accepted.get()
            assert f"(process {child.pid})" in stream._remote
            assert [bytes(await stream.recv()) for _ in range(50)] == [b"%d" % number for number in range(50)]
            assert await asyncio.to_thread(child.stdout.readline) == b"said\n"
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert [bytes(await stream.recv()) for _ in range(50)] == [b"%d" % number for number in range(50, 100)]
            began = time.monotonic()
            with pytest.raises(PeerError, match="hung up without a goodbye"):
                await stream.recv()
            assert time.monotonic() - began < 5  # the idle limit is 30 s
        finally:
            child.kill()
            child.communicate()

    run(test)


def test_a_killed_process_is_noticed_by_a_thread_that_waits():
    with blocking.listen("shm://@", key=KEY) as listener:
        child = subprocess.Popen([sys.executable, "-c", BLOCKING_TALKER, listener.url], stdout=subprocess.DEVNULL)
        try:
            stream = listener.accept(20)
            assert [bytes(stream.recv()) for _ in range(100)] == [b"%d" % number for number in range(100)]
            threading.Timer(0.1, child.kill).start()
            began = time.monotonic()
            with pytest.raises(PeerError, match="hung up without a goodbye"):
                stream.recv()
            assert time.monotonic() - began < 5
            with pytest.raises(PeerError):
                stream.send(b"x")
        finally:
            child.kill()
            child.wait()


def test_what_was_put_in_last_is_read_though_no_bell_was_rung(monkeypatch):
    """A process that dies between its last bytes and the wake-up."""
    memories = shared(monkeypatch)

    async def test(client, address, accepted, server):
        one, two = await client.connect(address), await accepted.get()
        one.send(b"first")
        assert await two.recv() == b"first"
        await until(lambda: memories[0][SIDE + BELL] == DATA << 2)  # it sleeps
        memories[0][SIDE + BELL] = 0
        one.send(b"last")
        one._flush()
        one._pipe._sock.shutdown(socket.SHUT_RDWR)
        assert await two.recv() == b"last"
        with pytest.raises(PeerError, match="hung up without a goodbye"):
            await two.recv()

    run(test)


def test_who_waits_hears_the_goodbye_of_the_other_end():
    async def test(client, address, accepted, server):
        one, two = await client.connect(address), await accepted.get()
        waiting = asyncio.create_task(two.recv())
        await asyncio.sleep(0)
        await one.close("going home")
        assert await waiting is None
        assert two.reason == "going home"

    run(test)


def test_what_was_written_before_the_end_is_read_after_it():
    async def test(client, address, accepted, server):
        one, two = await client.connect(address), await accepted.get()
        sent = [bytes([number]) * 30_000 for number in range(100)]  # many times what the ring holds
        for message in sent:
            one.send(message)
        closing = asyncio.create_task(one.close())
        got = []
        while (message := await two.recv()) is not None:
            got.append(bytes(message))
        await closing
        assert got == sent

    run(test)


def test_a_peer_that_reads_nothing_is_given_up_after_the_idle_limit():
    async def test(client, address, accepted, server):
        one = await client.connect(address)
        two = await accepted.get()
        asyncio.get_running_loop().remove_reader(one._pipe._fd)  # as if its process were stopped
        one._timer.cancel()
        with pytest.raises(PeerError, match="no word from node 'a' for 300 ms"):
            await two.recv()
        one.abort("it is stopped")

    run(test, limits=Limits(idle_ms_max=300))


def test_a_forked_child_is_refused_and_the_parent_goes_on():
    async def test(client, address, accepted, server):
        one, two = await client.connect(address), await accepted.get()
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                one.send(b"x")
                os.write(into, b"sent")
            except UsageError as error:
                os.write(into, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(into)
        assert "forked from it, has to open its own" in os.read(out, 1000).decode()
        os.close(out)
        one.send(b"from the parent")
        assert await two.recv() == b"from the parent"

    run(test)


# -- the same protocol -----------------------------------------------------------------------------------------------


class ByHand:
    """The initiator of a session, by hand: keeps every byte that comes."""

    def __init__(self, key):
        self.session = Session(identity("a"), key=key, initiator=True, nonce=b"n" * 32, now_ns=0)
        self.bytes = b""

    def take(self, data):
        self.bytes += data
        if any(isinstance(event, Goodbye) for event in self.session.receive(data, 1)):
            self.session.close(discard=True)

    def out(self):
        return b"".join(self.session.take_output())


async def captured_on_tcp(hand, accepted, server):
    host, port = split_address(await server.listen("127.0.0.1:0", accepted.put))
    reader, writer = await asyncio.open_connection(host, port)
    while True:
        writer.write(hand.out())
        data = await reader.read(100_000)
        if not data:
            break
        hand.take(data)
    writer.close()


async def captured_on_shm(hand, accepted, server):
    address = await server.listen("@", accepted.put)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + address[1:])
        sock.send(handover.greeting(handover.RING_BYTES))
        memory, ring_bytes = await asyncio.to_thread(handover.receive_memory, sock, handover.RING_BYTES)
        rings = Rings(memory, ring_bytes, initiator=True, bell=sock.fileno())
        os.close(memory)
        rings.write(hand.out())
        while not hand.session.done:
            await asyncio.to_thread(rings.wait, DATA, 0.1)
            hand.take(rings.read())
            rings.write(hand.out())
        rings.close()


def frames(data):
    return FrameParser(1 << 24).feed(data)


@pytest.mark.parametrize("key", [KEY, None])
def test_the_bytes_are_those_of_any_other_engine(key, monkeypatch):
    """With the same nonces a session through shared memory and one over TCP say the same, but for the time in pings."""
    monkeypatch.setattr(os, "urandom", lambda size: b"m" * size)
    sent = [b"a message", b"x" * 10_000, b"y" * 100_000]
    heard = []
    for make, capture in ((TcpTransport, captured_on_tcp), (ShmTransport, captured_on_shm)):
        hand = ByHand(key)

        async def whole(make=make, capture=capture, hand=hand):
            server, accepted = make(identity("b"), key=key), asyncio.Queue()

            async def speak():
                stream = await accepted.get()
                for message in sent:
                    stream.send(message)
                    await asyncio.sleep(0.02)
                await stream.close("done")

            async with asyncio.timeout(20):
                speaking = asyncio.create_task(speak())
                await capture(hand, accepted, server)
                await speaking
            await server.close()

        asyncio.run(whole())
        skip = (FrameType.PING, FrameType.PONG)
        heard.append([(f.type, f.flags, f.stream, bytes(f.payload)) for f in frames(hand.bytes) if f.type not in skip])
    assert heard[0] == heard[1]
    assert len(heard[0]) >= 5
