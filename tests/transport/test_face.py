"""connect and listen by address, on the loop."""

import asyncio
import gc
import itertools
import os
import random
import threading

import numpy as np
import pytest

from nova import transport
from nova._native.channel import pool_bytes
from nova.errors import LimitError, PeerError, UnavailableError, UsageError
from nova.transport import PRIORITY_URGENT, Limits, engines

KEY = bytes(range(32))


def run(test, **options):
    """Run test(one, two) with the two ends of a stream."""

    async def whole():
        async with asyncio.timeout(20), await transport.listen("tcp://127.0.0.1:0", **options) as listener:
            one = await transport.connect(listener.url, **options)
            two = await listener.accept()
            await test(one, two)
            await one.close()

    asyncio.run(whole())


@pytest.mark.parametrize("key", [None, KEY])
def test_a_stream_by_address_carries_messages_both_ways(key):
    async def test(one, two):
        one.send(b"there")
        assert await two.recv() == b"there"
        two.send(b"back")
        assert await one.recv() == b"back"

    run(test, key=key)


def test_a_listener_can_be_walked_until_it_is_closed():
    async def whole():
        listener = await transport.listen("tcp://127.0.0.1:0")
        streams = [await transport.connect(listener.url) for _ in range(3)]
        for number, stream in enumerate(streams):
            stream.send(b"%d" % number)
        got = []
        async for stream in listener:
            got.append(bytes(await stream.recv()))
            if len(got) == 3:
                await listener.close()
        assert sorted(got) == [b"0", b"1", b"2"]
        with pytest.raises(UsageError, match="is closed; listen again"):
            await listener.accept()

    asyncio.run(whole())


def test_streams_go_to_serve_if_it_is_given():
    async def whole():
        async def echo(stream):
            while (message := await stream.recv()) is not None:
                stream.send(message)

        async with await transport.listen("tcp://127.0.0.1:0", echo) as listener:
            one = await transport.connect(listener.url)
            one.send(b"again")
            assert await one.recv() == b"again"
            with pytest.raises(UsageError, match="accept\\(\\) has none"):
                await listener.accept()
            await one.close()

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("127.0.0.1:1", "is not scheme://address"),
        ("http://127.0.0.1:1", "scheme 'http' of .* is not known; there are tcp"),
        ("tcp://192.0.2.1:7400", "is not on this machine, and there is no key"),
        ("tcp://0.0.0.0:7400", "is not on this machine, and there is no key"),
        ("tcp://localhost", "is not host:port"),
    ],
)
def test_an_address_that_cannot_be_is_named_with_the_mend(url, complaint):
    with pytest.raises(UsageError, match=complaint):
        asyncio.run(transport.connect(url))
    with pytest.raises(UsageError, match=complaint):
        asyncio.run(transport.listen(url))


def test_an_engine_that_this_install_lacks_is_unavailable(monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "carrier", "nova.transport.pigeon:engine")
    with pytest.raises(UnavailableError, match="carrier:// is not part of this nova"):
        asyncio.run(transport.connect("carrier://127.0.0.1:1"))


def test_a_deadline_ends_a_connect_that_nobody_answers():
    async def whole():
        silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        with pytest.raises(UnavailableError, match=r"within 0.05 s"):
            await transport.connect(f"tcp://127.0.0.1:{port}", timeout=0.05)
        silent.close()

    asyncio.run(whole())


# -- buffers ---------------------------------------------------------------------------------------------------------


def test_any_buffer_can_be_sent_and_changed_at_once():
    async def test(one, two):
        array = np.arange(100_000, dtype=np.int64)
        small, large = bytearray(b"small"), bytearray(b"large" * 10_000)
        for payload in (array, array[:7], small, large, memoryview(large)[5:10]):
            assert one.send(payload)
        del payload
        array[:] = -1
        small[:] = b"SMALL"
        large.clear()  # nobody exports it
        assert (np.frombuffer(await two.recv(), np.int64) == np.arange(100_000)).all()
        assert (np.frombuffer(await two.recv(), np.int64) == np.arange(7)).all()
        assert [bytes(await two.recv()) for _ in range(3)] == [b"small", b"large" * 10_000, b"large"]

    run(test)


def test_a_put_returns_when_the_buffer_is_free_and_keeps_it_from_resizing_before():
    async def test(one, two):
        data = bytearray(random.Random(1).randbytes(6_000_000))  # more than credit and socket hold
        copy = bytes(data)
        putting = asyncio.create_task(one.put(data))
        await asyncio.sleep(0)
        with pytest.raises(BufferError):
            data.append(0)
        assert await two.recv() == copy
        await putting
        data.clear()

    run(test)


def test_a_cancelled_put_frees_the_buffer_and_the_message_still_arrives_whole():
    async def test(one, two):
        data = bytearray(random.Random(2).randbytes(6_000_000))
        copy = bytes(data)
        putting = asyncio.create_task(one.put(data))
        await asyncio.sleep(0)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        data[:] = bytes(len(data))
        data.clear()
        assert await two.recv() == copy

    run(test)


def test_a_put_on_a_stream_that_breaks_frees_the_buffer_and_says_so():
    async def test(one, two):
        data = bytearray(6_000_000)
        putting = asyncio.create_task(one.put(data))
        await asyncio.sleep(0)
        two.abort("enough")
        with pytest.raises(PeerError):
            await putting
        data.clear()

    run(test)


def test_a_message_over_the_limit_is_refused_by_every_way_of_sending():
    async def test(one, two):
        for send in (one.send, lambda data: one.send_batch(data, np.array([0, len(data)]))):
            with pytest.raises(LimitError, match="5001 bytes is over the limit of 5000"):
                send(bytes(5001))
        with pytest.raises(LimitError, match="5001 bytes"):
            await one.put(bytes(5001))

    run(test, limits=Limits(message_bytes_max=5000))


def test_a_batch_arrives_as_slab_as_list_and_one_by_one():
    async def test(one, two):
        sizes = np.random.default_rng(1).integers(0, 300, 5000)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        slab = np.random.default_rng(2).integers(0, 255, offsets[-1], dtype=np.uint8)
        expected = [slab[a:b].tobytes() for a, b in itertools.pairwise(offsets)]

        async def send():
            done = 0
            while done < 5000:
                done += one.send_batch(slab, offsets, first=done)
                await one.drain()

        for way in ("slab", "batch", "each"):
            sending = asyncio.create_task(send())
            got = []
            while len(got) < 5000:
                if way == "slab":
                    data, index = await two.recv_slab()
                    assert index.format == "q"
                    got += [bytes(data[a:b]) for a, b in itertools.pairwise(index)]
                elif way == "batch":
                    got += map(bytes, await two.recv_batch())
                else:
                    got.append(bytes(await two.recv()))
            await sending
            assert got == expected

    run(test)


@pytest.mark.parametrize(
    ("offsets", "complaint"),
    [([], "offsets is empty"), ([0, 11], "the slab has 10 bytes"), ([-1, 5], "run from -1"), ([0, 7, 5], "before")],
)
def test_offsets_that_lie_outside_or_go_back_are_refused(offsets, complaint):
    async def test(one, two):
        with pytest.raises(UsageError, match=complaint):
            one.send_batch(bytes(10), np.array(offsets, dtype=np.int64))
        with pytest.raises(UsageError, match="first is 3; there are 1"):
            one.send_batch(bytes(10), np.array([0, 1]), first=3)

    run(test)


# -- ownership -------------------------------------------------------------------------------------------------------


def test_messages_are_views_that_stay_valid_until_released_in_any_thread():
    async def test(one, two):
        kept = []
        for number in range(300):
            one.send(b"%04d" % number * 100)
            kept.append(await two.recv())
        large = bytes(200_000)
        one.send(large)
        kept.append(await two.recv())
        for number, message in enumerate(kept[:300]):
            assert message == b"%04d" % number * 100
            assert message.readonly
        with kept[300] as message:
            assert message == large
        with pytest.raises(ValueError, match="released"):
            kept[300][0]
        thread = threading.Thread(target=lambda: [message.release() for message in kept])
        thread.start()
        thread.join()
        kept.clear()

    gc.collect()
    before = pool_bytes()[1]
    run(test)
    gc.collect()
    assert pool_bytes()[1] == before


def test_a_cancelled_recv_loses_nothing():
    async def test(one, two):
        for number in range(100):
            waiting = asyncio.create_task(two.recv())
            await asyncio.sleep(0)
            if number % 3 == 0:
                one.send(b"%d" % number)  # may arrive before or after the cancellation
                await asyncio.sleep(0)
            waiting.cancel()
            try:
                assert await waiting == b"%d" % number
            except asyncio.CancelledError:
                if number % 3 == 0:
                    assert await two.recv() == b"%d" % number

    run(test)


def test_a_deadline_on_recv_loses_nothing():
    async def test(one, two):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await two.recv()
        one.send(b"later")
        assert await two.recv() == b"later"

    run(test)


def test_a_forked_child_is_refused_and_the_parent_goes_on():
    async def test(one, two):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # no assertion may leave the child
            complaint = "none"
            try:
                one.send(b"from the child")
            except UsageError as error:
                complaint = str(error)
            os.write(write, complaint.encode())
            os._exit(0)
        os.waitpid(child, 0)
        complaint = os.read(read, 4096).decode()
        assert f"belongs to process {os.getpid()}; process {child}, forked from it, has to open its own" in complaint
        one.send(b"from the parent")
        assert await two.recv() == b"from the parent"
        os.close(read)
        os.close(write)

    run(test)


# -- priorities ------------------------------------------------------------------------------------------------------


def test_an_urgent_message_passes_the_frames_of_a_large_one():
    async def test(one, two):
        one.send(bytes(20_000_000))
        one.send(b"bulk behind it")
        one.send(b"urgent", PRIORITY_URGENT)
        assert [len(await two.recv()) for _ in range(3)] == [6, 20_000_000, 14]

    run(test)


@pytest.mark.parametrize("priority", [-1, 4])
def test_a_priority_that_is_not_is_refused(priority):
    async def test(one, two):
        with pytest.raises(UsageError, match=f"priority is {priority}; it is 0"):
            one.send(b"x", priority)

    run(test)
