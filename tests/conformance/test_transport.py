"""One suite for every engine behind the Transport seam."""

import asyncio
import random
import struct

import pytest
import uvloop

from nova.errors import LimitError, PeerError, UnavailableError, UsageError
from nova.sim import loop as virtual
from nova.sim.transport import Links, SimTransport
from nova.transport.base import Identity, Limits
from nova.transport.session import HANDSHAKE_FRAME_BYTES_MAX, PROTOCOL_VERSION, Session
from nova.transport.tcp import TcpTransport, split_address

KEY = bytes(range(32))
SMALL = Limits(queue_bytes_max=256 * 1024, credit_bytes=64 * 1024, message_bytes_max=1024 * 1024)


def identity(node, *, cluster="c", incarnation=1):
    return Identity(node, "r", cluster, incarnation, f"{node}:1")


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class Engine:
    """Makes transports of one kind and runs a test on the loop that belongs to it."""

    def __init__(self, kind):
        self.kind = kind

    def run(self, test):
        async def whole():
            self.links = Links(random.Random(7), delay=0.001)
            self.made = []
            try:
                async with asyncio.timeout(20):
                    await test(self)
            finally:
                await asyncio.gather(*(transport.close() for transport in self.made))

        runners = {"sim": virtual.run, "tcp": asyncio.run, "tcp on uvloop": uvloop.run}
        runners[self.kind](whole())

    def make(self, node, *, key=KEY, limits=None, **more):
        who = identity(node, **more)
        made = (
            SimTransport(who, self.links, key=key, limits=limits)
            if self.kind == "sim"
            else TcpTransport(who, key=key, limits=limits)
        )
        self.made.append(made)
        return made

    async def pair(self, *, limits=None, key=KEY):
        """Two connected streams: (a's, b's)."""
        a, b = self.make("a", limits=limits, key=key), self.make("b", limits=limits, key=key)
        accepted = asyncio.get_running_loop().create_future()

        async def accept(stream):
            accepted.set_result(stream)

        address = await b.listen("127.0.0.1:0", accept)
        return await a.connect(address), await accepted


@pytest.fixture(params=["tcp", "tcp on uvloop", "sim"])
def engine(request):
    return Engine(request.param)


def test_messages_arrive_whole_in_order_and_once(engine):
    async def test(engine):
        one, two = await engine.pair()
        chance = random.Random(1)
        sent = [chance.randbytes(chance.choice([0, 1, 64, 5000, 70_000])) for _ in range(500)]

        async def write():
            for message in sent:
                while not one.send(message):
                    await one.drain()
            await one.close()

        writer = asyncio.create_task(write())
        got = []
        while (message := await two.recv()) is not None:
            got.append(bytes(message))
        await writer
        assert got == sent
        assert one.peer == identity("b")
        assert two.peer == identity("a")
        assert one.initiator
        assert not two.initiator

    engine.run(test)


@pytest.mark.parametrize("key", [KEY, None])
def test_a_message_larger_than_a_frame_and_than_the_credit_arrives(engine, key):
    async def test(engine):
        one, two = await engine.pair(limits=Limits(credit_bytes=64 * 1024), key=key)
        big = random.Random(2).randbytes(3_000_000)
        assert one.send(big)
        assert one.send(b"after")
        assert await two.recv() == big
        assert await two.recv() == b"after"

    engine.run(test)


def test_a_full_queue_refuses_and_drain_frees(engine):
    async def test(engine):
        one, two = await engine.pair(limits=SMALL)
        accepted = 0
        while one.send(b"x" * 1000):
            accepted += 1
        # What the credit lets out may have left at once.
        assert 250 < accepted <= (SMALL.queue_bytes_max + SMALL.credit_bytes) // 1000
        draining = asyncio.create_task(one.drain())
        got = 0
        while got < accepted:
            got += len(await two.recv_batch())
        await draining
        assert one.send(b"y")
        assert await two.recv() == b"y"

    engine.run(test)


def test_a_reader_that_does_not_read_holds_the_sender_back(engine):
    async def test(engine):
        one, two = await engine.pair(limits=SMALL)
        sent = 0
        while two.stats.received_bytes < SMALL.credit_bytes * 0.97 or one.send(b"x" * 1000):
            while one.send(b"x" * 1000):
                sent += 1
            await asyncio.sleep(0.001)
        # What the other side holds for us is bounded by the credit, what we hold by the queue.
        assert sent * 1004 <= SMALL.credit_bytes + SMALL.queue_bytes_max + 1004
        assert two.stats.received_bytes < SMALL.credit_bytes * 1.1 + 10_000
        assert not two.closed

    engine.run(test)


def test_a_message_over_the_limit_is_refused_with_the_limit(engine):
    async def test(engine):
        one, _ = await engine.pair(limits=SMALL)
        with pytest.raises(LimitError, match="1048577 bytes is over the limit of 1048576"):
            one.send(bytes(1024 * 1024 + 1))
        assert not one.closed

    engine.run(test)


def test_close_sends_what_is_queued_and_tells_why(engine):
    async def test(engine):
        one, two = await engine.pair()
        for number in range(100):
            assert one.send(b"%d" % number)
        await one.close("going home")
        await one.close()
        assert not one.send(b"late")
        assert [bytes(await two.recv()) for _ in range(100)] == [b"%d" % n for n in range(100)]
        assert await two.recv() is None
        assert two.reason == "going home"
        assert two.closed
        await two.close()
        assert await one.recv() is None

    engine.run(test)


def test_an_aborted_stream_is_an_error_on_both_sides(engine):
    async def test(engine):
        one, two = await engine.pair()
        waiting = asyncio.create_task(two.recv())
        await asyncio.sleep(0)
        one.abort("enough")
        with pytest.raises(PeerError, match="without a goodbye"):
            await waiting
        with pytest.raises(PeerError, match="enough"):
            await one.recv()
        with pytest.raises(PeerError):
            await two.drain()
        assert not one.send(b"x")
        assert not two.send(b"x")

    engine.run(test)


@pytest.mark.parametrize(
    ("theirs", "here", "there"),
    [
        ({"key": bytes(32)}, "another cluster key", "does not hold this cluster's key"),
        ({"cluster": "other"}, "not of cluster 'other'", "is of cluster 'other', this node of 'c'"),
        ({"key": None}, "asks for a cluster key", "has no cluster key"),
    ],
    ids=["wrong key", "wrong cluster", "no key"],
)
def test_strangers_are_refused_with_one_clear_line_on_both_sides(engine, theirs, here, there, caplog):
    async def test(engine):
        server, stranger = engine.make("b"), engine.make("x", **theirs)
        accepted = []

        async def accept(stream):
            accepted.append(stream)

        address = await server.listen("127.0.0.1:0", accept)
        with pytest.raises(PeerError, match=here):
            await stranger.connect(address)
        assert not accepted
        assert there in caplog.text

    engine.run(test)


def test_nobody_listening_is_unavailable(engine):
    async def test(engine):
        lonely = engine.make("a")
        server = engine.make("b")

        async def accept(stream): ...

        address = await server.listen("127.0.0.1:0", accept)
        await server.close()
        with pytest.raises(UnavailableError, match="refused"):
            await lonely.connect(address)

    engine.run(test)


def test_a_port_in_use_is_named(engine):
    async def test(engine):
        async def accept(stream): ...

        address = await engine.make("a").listen("127.0.0.1:0", accept)
        with pytest.raises(UsageError, match=f"{address} is in use"):
            await engine.make("b").listen(address, accept)

    engine.run(test)


def test_a_silent_peer_is_given_up_after_the_idle_limit():
    async def test():
        links = Links(random.Random(1), delay=0.01)
        engine = Engine("sim")
        engine.links, engine.made = links, []
        one, two = await engine.pair()
        await asyncio.sleep(100)  # pings keep it alive
        assert not one.closed
        assert 19e6 < one.stats.rtt_ns < 22e6
        links.cut("a", "b")
        with pytest.raises(PeerError, match="no word from node 'a' for 30000 ms"):
            await two.recv()

    virtual.run(test())


def test_a_short_one_way_cut_only_delays():
    async def test():
        engine = Engine("sim")
        engine.links, engine.made = Links(random.Random(1), delay=0.01), []
        one, two = await engine.pair()
        engine.links.cut("a", "b")
        one.send(b"late but whole")
        two.send(b"this way is open")
        assert await one.recv() == b"this way is open"
        await asyncio.sleep(5)
        engine.links.heal()
        assert await two.recv() == b"late but whole"

    virtual.run(test())


def test_one_seed_gives_one_history():
    def history(seed):
        out = []

        async def test():
            engine = Engine("sim")
            engine.links, engine.made = Links(random.Random(seed), delay=0.01, jitter_ratio=0.5), []
            one, two = await engine.pair()
            for number in range(50):
                one.send(b"%d" % number)
                await asyncio.sleep(0.003)
                out.append((asyncio.get_running_loop().time(), one.stats))
            while len(out) < 90:
                out.append((asyncio.get_running_loop().time(), bytes(await two.recv())))

        virtual.run(test())
        return out

    assert history(3) == history(3)
    assert history(3) != history(4)


# -- hostile bytes on a real socket ----------------------------------------------------------------------------------


def on_tcp(test, *, limits=None, key=KEY):
    """Run `test(address, accepted)` against a listening node, then prove that the node still serves honest peers."""

    async def whole():
        server = TcpTransport(identity("b"), key=key, limits=limits)
        accepted = asyncio.Queue()

        async def accept(stream):
            await accepted.put(stream)

        address = await server.listen("127.0.0.1:0", accept)
        honest = TcpTransport(identity("h"), key=key)
        try:
            async with asyncio.timeout(20):
                await test(address, accepted)
                while not accepted.empty():
                    accepted.get_nowait()
                stream = await honest.connect(address)
                stream.send(b"still there")
                assert await (await accepted.get()).recv() == b"still there"
        finally:
            await honest.close()
            await server.close()

    asyncio.run(whole())


async def raw(address, data):
    """Send raw bytes; whatever comes back until the node hangs up."""
    reader, writer = await asyncio.open_connection(*split_address(address))
    try:
        writer.write(data)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not a nova peer"),
        (b"\x00" * 100, "not a nova peer"),
        (
            struct.pack(">BBBBIQII", 0x4E, 1, 1, 0, 0xFFFFFFFF, 0, 0, 0),
            "of 4294967295 bytes is over the limit of 4096",
        ),
        (struct.pack(">BBBBIQII", 0x4E, 1, 1, 0, HANDSHAKE_FRAME_BYTES_MAX + 1, 0, 0, 0), "over the limit of 4096"),
        (struct.pack(">BBBBIQII", 0x4E, 9, 1, 0, 8, 0, 0, 0), "frame format 9"),
        (struct.pack(">BBBBIQII", 0x4E, 1, 3, 0, 0, 0, 0, 0), "checksum"),
    ],
    ids=["http", "zeros", "hostile length", "long hello", "newer format", "bad checksum"],
)
def test_garbage_gets_one_clear_line_and_a_closed_door(data, complaint, caplog):
    async def test(address, accepted):
        await raw(address, data)
        assert accepted.empty()

    on_tcp(test)
    assert complaint in caplog.text


def test_another_protocol_version_is_named_on_both_sides(caplog):
    async def test(address, accepted):
        session = Session(
            identity("x"), key=KEY, initiator=True, nonce=bytes(32), now_ns=0, version=PROTOCOL_VERSION + 1
        )
        answer = await raw(address, b"".join(session.take_output()))
        with pytest.raises(PeerError, match="protocol version 2 is not spoken here, version 1 is"):
            session.receive(answer, 0)

    on_tcp(test)
    assert "peer speaks protocol version 2, this node version 1" in caplog.text


def test_a_handshake_that_drips_is_cut_off_in_time(caplog):
    async def test(address, accepted):
        reader, writer = await asyncio.open_connection(*split_address(address))
        session = Session(identity("x"), key=KEY, initiator=True, nonce=bytes(32), now_ns=0)
        hello = b"".join(session.take_output())
        began = asyncio.get_running_loop().time()
        hung_up = asyncio.ensure_future(reader.read())
        for position in range(len(hello) - 1):
            writer.write(hello[position : position + 1])
            await asyncio.wait([hung_up], timeout=0.02)
            if hung_up.done():
                break
        await asyncio.gather(hung_up, return_exceptions=True)
        assert asyncio.get_running_loop().time() - began < 3
        writer.close()

    on_tcp(test, limits=Limits(handshake_ms_max=200))
    assert "handshake not finished within 200 ms" in caplog.text


class Middle:
    """A man in the middle on a real socket, who may tamper with what the connecting side sends."""

    def __init__(self, target):
        self.target = target
        self.tamper = None
        self.tampered = 0

    async def start(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader, writer):
        there_reader, there_writer = await asyncio.open_connection(*split_address(self.target))

        async def back():
            try:
                while data := await there_reader.read(65536):
                    writer.write(data)
            except ConnectionError:
                pass
            writer.close()

        task = asyncio.create_task(back())
        try:
            while True:
                head = await reader.readexactly(24)
                frame = head + await reader.readexactly(int.from_bytes(head[4:8], "big"))
                outs = [frame]
                if self.tamper:
                    outs = self.tamper(frame)
                    self.tampered += 1
                for out in outs:
                    there_writer.write(out)
        except (asyncio.IncompleteReadError, ConnectionError):
            there_writer.close()
        await task


def resealed(frame):
    """The frame with a fresh checksum: what an attacker who knows the format, but not the key, can do."""
    from nova._native.frame import seal

    out = bytearray(frame)
    seal(out)
    return bytes(out)


def replay(frame):
    return [frame, frame]


def modify(frame):
    return [resealed(frame[:30] + bytes([frame[30] ^ 1]) + frame[31:])]


def renumber_and_inject(frame):
    number = int.from_bytes(frame[8:16], "big") + 1
    return [frame, resealed(frame[:8] + number.to_bytes(8, "big") + frame[16:])]


def strip_mac(frame):
    body = frame[24:-16]
    return [resealed(frame[:3] + b"\0" + len(body).to_bytes(4, "big") + frame[8:24] + body)]


def drop(frame):
    return []


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (replay, "replayed, lost or moved"),
        (modify, "its MAC is wrong"),
        (renumber_and_inject, "its MAC is wrong"),
        (strip_mac, "its MAC is wrong"),
        (drop, "replayed, lost or moved"),
    ],
)
def test_a_man_in_the_middle_only_breaks_the_stream(tamper, complaint):
    async def test(address, accepted):
        middle = Middle(address)
        via = await middle.start()
        client = TcpTransport(identity("a"), key=KEY)
        one = await client.connect(via)
        two = await accepted.get()
        one.send(b"first, untouched")
        assert await two.recv() == b"first, untouched"
        middle.tamper = tamper
        one.send(b"second")
        await until(lambda: middle.tampered)  # two sends, two frames
        middle.tamper = None if tamper is drop else tamper
        one.send(b"third")
        got = []

        async def read():
            while True:
                got.append(bytes(await two.recv()))

        with pytest.raises(PeerError, match=complaint):
            await read()
        assert got in ([], [b"second"])
        await client.close()
        middle.server.close()

    on_tcp(test)


def test_frames_with_the_order_changed_are_noticed():
    async def test(address, accepted):
        middle = Middle(address)
        via = await middle.start()
        client = TcpTransport(identity("a"), key=KEY)
        one = await client.connect(via)
        two = await accepted.get()
        held = []

        def swap(frame):
            held.append(frame)
            return held[::-1] if len(held) == 2 else []

        one.send(b"0")
        assert await two.recv() == b"0"
        middle.tamper = swap
        one.send(b"1")
        await until(lambda: middle.tampered)
        one.send(b"2")
        with pytest.raises(PeerError, match="replayed, lost or moved"):
            await two.recv()
        await client.close()
        middle.server.close()

    on_tcp(test)


def test_a_name_that_does_not_resolve_is_unavailable():
    async def test():
        transport = TcpTransport(identity("a"), key=KEY, limits=Limits(handshake_ms_max=2000))
        with pytest.raises(UnavailableError):
            await transport.connect("no-such-host.invalid:1")
        for wrong in ("nowhere", "host:", ":1", "host:99999", "host:x"):
            with pytest.raises(UsageError, match="host:port"):
                await transport.connect(wrong)

    asyncio.run(test())


def test_a_delay_that_shrinks_lets_nothing_overtake():
    async def test():
        delays = [0.05]
        slow = TcpTransport(identity("a"), key=KEY, send_delay=lambda peer: delays[0])
        server = TcpTransport(identity("b"), key=KEY)
        accepted = asyncio.get_running_loop().create_future()

        async def accept(stream):
            accepted.set_result(stream)

        one = await slow.connect(await server.listen("127.0.0.1:0", accept))
        two = await accepted
        for number, delays[0] in enumerate((0.05, 0.02, 0.0)):
            left = one.stats.sent_bytes
            one.send(b"%d" % number)
            await until(lambda left=left: one.stats.sent_bytes > left)
        assert [bytes(await two.recv()) for _ in range(3)] == [b"0", b"1", b"2"]
        await slow.close()
        await server.close()

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["tcp", "tcp on uvloop"])
def test_a_round_trip_is_finer_than_the_clock_of_the_loop(kind):
    async def test(engine):
        one, two = await engine.pair()
        for end in (one, two):
            await until(lambda end=end: end.stats.rtt_ns)
            assert end.stats.rtt_ns > 1000
            assert end.stats.rtt_ns % 1_000_000  # uvloop's clock counts whole milliseconds

    Engine(kind).run(test)


def test_an_emulated_delay_holds_messages_back_in_order():
    async def test():
        slow = TcpTransport(identity("a"), key=KEY, send_delay=lambda peer: 0.05 if peer.node == "b" else 0)
        server = TcpTransport(identity("b"), key=KEY)
        accepted = asyncio.get_running_loop().create_future()

        async def accept(stream):
            accepted.set_result(stream)

        one = await slow.connect(await server.listen("127.0.0.1:0", accept))
        two = await accepted
        began = asyncio.get_running_loop().time()
        for number in range(10):
            one.send(b"%d" % number)
            await asyncio.sleep(0)
        assert [bytes(await two.recv()) for _ in range(10)] == [b"%d" % n for n in range(10)]
        assert asyncio.get_running_loop().time() - began >= 0.05
        await slow.close()
        await server.close()

    asyncio.run(test())
