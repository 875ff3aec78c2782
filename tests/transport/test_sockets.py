"""Streams on real sockets that take and give little at a time, or end in the middle."""

import asyncio
import errno
import random
import socket

import pytest

from nova import transport
from nova._native.channel import Channel
from nova.errors import PeerError, UnavailableError, UsageError
from nova.transport import Limits, sockets


def channels():
    """Two channels that know each other, without a handshake."""
    settings = {
        "mac_in": None, "mac_out": None, "sequence_in": 0, "sequence_out": 0, "frame_bytes_max": 1 << 24,
        "message_bytes_max": 1 << 26, "send_bytes_max": 1 << 26, "payload_bytes": 1 << 18, "queue_bytes_max": 1 << 27,
        "credit_bytes": 1 << 27, "may_send": 1 << 27, "lanes": 4, "idle_ns": 10**12, "ping_ns": 10**12, "now_ns": 1,
        "sent_bytes": 0, "received_bytes": 0,
    }  # fmt: skip
    return Channel("one", **settings), Channel("two", **settings)


@pytest.fixture
def wire():
    """A pair of sockets with little room."""
    one, two = socket.socketpair()
    for end in (one, two):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        end.setblocking(False)
    yield one, two
    one.close()
    two.close()


def pump(one, two, wire):
    """Write and read in turns until all has left; how often the socket took no more."""
    short = 0
    while True:
        done = one.write(wire[0].fileno())
        while two.read(wire[1].fileno(), 1) > 0:
            pass
        if done:
            return short
        short += 1


def test_short_sends_lose_and_repeat_nothing(wire):
    one, two = channels()
    sent = [random.Random(n).randbytes(n * 9973 % 300_000) for n in range(20)]
    for message in sent:
        one.send(message)
    assert pump(one, two, wire) > 100
    assert two.recv_batch() == sent
    assert one.queue_bytes == 0


def test_a_buffer_in_flight_is_not_free_until_the_kernel_has_taken_it(wire):
    one, two = channels()
    data = bytearray(random.Random(1).randbytes(100_000))
    copy = bytes(data)
    lent = one.lend(data)
    assert not one.write(wire[0].fileno())  # framed as a whole, taken in part
    assert one.queue_bytes == 0
    assert not lent.left
    with pytest.raises(BufferError):
        data.append(0)
    pump(one, two, wire)
    assert lent.left
    data.clear()
    assert two.recv() == copy


def test_a_buffer_in_flight_can_be_reclaimed(wire):
    one, two = channels()
    data = bytearray(random.Random(2).randbytes(100_000))
    copy = bytes(data)
    lent = one.lend(data)
    assert not one.write(wire[0].fileno())
    one.reclaim(lent)
    data[:] = bytes(len(data))
    data.clear()
    pump(one, two, wire)
    assert two.recv() == copy


def test_the_end_and_a_reset_are_told_apart(wire):
    one, two = channels()
    one.send(b"last")
    one.write(wire[0].fileno())
    wire[0].close()
    assert two.read(wire[1].fileno()) > 0
    assert two.recv() == b"last"
    assert two.read(wire[1].fileno()) == -1
    two.send(b"nobody")
    with pytest.raises(OSError) as caught:
        two.write(wire[1].fileno())
    assert caught.value.errno == errno.EPIPE


def test_what_waits_is_given_back_when_a_connection_is_gone(wire):
    one, _ = channels()
    data = bytearray(1_000_000)
    lent = one.lend(data)
    assert not one.write(wire[0].fileno())
    one.drop()
    assert lent.left
    data.clear()


def test_a_slow_reader_holds_the_writer_back_on_the_loop():
    async def whole():
        limits = Limits(queue_bytes_max=1 << 20, credit_bytes=1 << 26)
        async with await transport.listen("tcp://127.0.0.1:0", limits=limits) as listener:
            one = await transport.connect(listener.url, limits=limits)
            two = await listener.accept()
            assert isinstance(two._pipe, sockets.DirectSocket)
            asyncio.get_running_loop().remove_reader(two._pipe.fd)  # nobody takes anything out of the socket
            sent = 0
            while one.send(bytes([sent % 251]) * 100_000):
                sent += 1
                await asyncio.sleep(0)
            draining = asyncio.create_task(one.drain())
            await asyncio.sleep(0)
            assert not draining.done()
            asyncio.get_running_loop().add_reader(two._pipe.fd, two._pipe._readable)
            await draining
            for number in range(sent):
                assert (await two.recv())[0] == number % 251
            await one.close()

    asyncio.run(whole())


def test_a_listener_without_descriptors_pauses_and_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(sockets, "PAUSE_SECONDS", 0.01)

    async def whole():
        failures = [errno.EMFILE]

        class Tired(socket.socket):
            def accept(self):
                if failures:
                    raise OSError(failures.pop(), "too many")
                return super().accept()

        monkeypatch.setattr(sockets.socket, "socket", Tired)
        async with await transport.listen("tcp://127.0.0.1:0") as listener:
            one = await transport.connect(listener.url)
            two = await listener.accept()
            one.send(b"at last")
            assert await two.recv() == b"at last"
            await one.close()

    asyncio.run(whole())
    assert "nobody is accepted for 0.01 s: too many open files" in caplog.text


def test_a_name_with_several_addresses_is_tried_to_the_end():
    async def whole():
        async with await transport.listen("tcp://127.0.0.1:0") as listener:
            port = listener.address.rpartition(":")[2]
            one = await transport.connect(f"tcp://localhost:{port}")  # ::1 may come first, where nobody listens
            await one.close()

    asyncio.run(whole())


def test_an_address_of_another_machine_cannot_be_listened_on():
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1:0"):
        asyncio.run(transport.listen("tcp://192.0.2.1:0", key=bytes(32)))
    with pytest.raises(UnavailableError, match="refused"):
        asyncio.run(transport.connect("tcp://127.0.0.1:1"))


def test_a_connection_that_dies_in_the_handshake_is_an_error_at_once():
    async def whole():
        async def hang_up(reader, writer):
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PeerError, match=r"hung up|reset"):
            await transport.connect(f"tcp://127.0.0.1:{port}")
        server.close()

    asyncio.run(whole())


def test_an_address_of_a_family_that_is_not_spoken_here_is_left_out(monkeypatch):
    real = sockets.bind

    def without_six(family, address):
        if family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "no such address")
        return real(family, address)

    async def both(host, port, *, passive=False):
        return [(socket.AF_INET6, ("::1", port)), (socket.AF_INET, ("127.0.0.1", port))]

    monkeypatch.setattr(sockets, "bind", without_six)
    monkeypatch.setattr(sockets, "resolve", both)

    async def whole():
        async with await transport.listen("tcp://localhost:0") as listener:
            assert listener.address.startswith("127.0.0.1:")
            one = await transport.connect(listener.url)  # ::1 is tried first, and refused
            await one.close()

    asyncio.run(whole())
