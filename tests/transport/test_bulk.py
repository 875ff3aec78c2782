"""Whole transfers over real sockets: every source and place, broken and slow streams, limits, deadlines, resuming."""

import asyncio
import contextlib
import logging
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nova.errors import (
    CorruptionError,
    LimitError,
    PeerError,
    TransferCancelledError,
    UnavailableError,
    UsageError,
)
from nova.transport.base import Identity
from nova.transport.bulk import (
    BulkListener,
    BulkSender,
    bulk_recv,
    bulk_recv_async,
    bulk_send,
    bulk_send_async,
)
from nova.transport.bulk_lane import ask, dial
from nova.transport.bulk_wire import Call, Finish, host_and_port
from nova.transport.session import Session
from nova.transport.telemetry import LinkSample, LinkTelemetry
from tests.transport.bulk_proxy import Proxy

KEY = bytes(range(32))
CHUNK = 4096


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as threads:
        yield threads


def some_bytes(size, seed=1):
    return random.Random(seed).randbytes(size)


def transfer(pool, source, into=None, *, key=None, address=None, options=None, **more):
    """(sender's receipt, receiver's receipt)."""
    with BulkListener(key=key) as listener:
        got = pool.submit(bulk_recv, listener, into, **(options or {}))
        sent = bulk_send(source, address or listener.address, key=key, **more)
        return sent, got.result(20)


SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 40 * CHUNK + 7]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "keyed"])
@pytest.mark.parametrize("size", SIZES)
def test_bytes_arrive_as_they_were(pool, size, key):
    data = some_bytes(size)
    sent, got = transfer(pool, data, key=key, streams=3, chunk_bytes=CHUNK)
    assert got.data == data
    assert sent.root == got.root
    assert sent.transfer == got.transfer
    assert sent.size_bytes == got.size_bytes == sent.moved_bytes == size


@pytest.mark.parametrize("digest", ["crc32c", "blake3"])
def test_a_file_becomes_a_file_and_nothing_else_stays(pool, tmp_path, digest):
    data = some_bytes(3_000_001)
    (tmp_path / "a").write_bytes(data)
    _, got = transfer(pool, tmp_path / "a", tmp_path / "b", streams=4, digest=digest)
    assert (tmp_path / "b").read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert got.name == "a"
    assert got.data is None


def test_a_range_of_a_descriptor_goes_into_a_range(pool, tmp_path):
    data = some_bytes(100_000)
    (tmp_path / "a").write_bytes(b"before" + data + b"after")
    (tmp_path / "b").write_bytes(bytes(200_000))
    one, two = os.open(tmp_path / "a", os.O_RDONLY), os.open(tmp_path / "b", os.O_RDWR)
    transfer(pool, (one, 6, len(data)), (two, 50, len(data)), streams=2, chunk_bytes=CHUNK)
    os.close(one)
    os.close(two)
    assert (tmp_path / "b").read_bytes() == bytes(50) + data + bytes(200_000 - 50 - len(data))


def test_an_array_arrives_in_an_array(pool):
    source = np.arange(100_000, dtype=np.float64).reshape(100, 1000)
    into = np.zeros((100, 1000))
    _, got = transfer(pool, source, into, streams=2)
    assert np.array_equal(source, into)
    assert np.shares_memory(np.asarray(got.data), into)


def test_what_cannot_be_sent_or_received_is_refused_with_the_mend(tmp_path):
    with BulkListener() as listener:
        with pytest.raises(UsageError, match="ascontiguousarray"):
            bulk_send(np.zeros((10, 10))[:, :5], listener.address)
        with pytest.raises(UsageError, match="writable"):
            bulk_recv(listener, b"read only")
        with pytest.raises(UsageError, match="no regular file"):
            bulk_send("/dev/zero", listener.address)
        with pytest.raises(UsageError, match="make it first"):
            bulk_recv(listener, tmp_path / "none" / "file")
        with pytest.raises(UsageError, match="name the file"):
            bulk_recv(listener, tmp_path)
        with pytest.raises(UsageError, match="no open descriptor"):
            bulk_send((9999, 0, 1), listener.address)
        with pytest.raises(UsageError, match="33 streams"):
            bulk_send(b"x", listener.address, streams=33)
        with pytest.raises(UsageError, match="chunks have from 4096"):
            bulk_send(b"x", listener.address, chunk_bytes=100)
        with pytest.raises(UsageError, match="authenticated by their blake3"):
            bulk_send(b"x", listener.address, key=KEY, digest="crc32c")
        with pytest.raises(UsageError, match="not one of this machine's"):
            bulk_send(b"x", listener.address, congestion="nonesuch")


def test_without_a_key_nothing_leaves_the_machine():
    for call in (lambda: bulk_send(b"x", "192.0.2.1:7"), lambda: BulkListener("0.0.0.0:0")):
        with pytest.raises(UsageError, match="no cluster key"):
            call()


def test_another_key_and_another_cluster_are_refused(pool):
    with BulkListener(key=KEY) as listener:
        with pytest.raises(PeerError, match="another cluster key"):
            bulk_send(b"x", listener.address, key=bytes(32))
        with pytest.raises(PeerError, match="not of cluster 'other'"):
            bulk_send(b"x", listener.address, key=KEY, identity=Identity("n", "r", "other", 1, ""))


def test_a_peer_that_moves_no_bulk_objects_is_told_so(pool):
    """An older node: it shakes hands, and does not know the capability."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        sock, _ = server.accept()
        with sock, contextlib.suppress(ConnectionError):
            session = Session(
                Identity("old", "r", "nova", 1, ""), key=None, initiator=False, nonce=os.urandom(32), now_ns=0
            )
            while data := sock.recv(65536):
                session.receive(data, 0)
                for frame in session.take_output():
                    sock.sendall(frame)

    done = pool.submit(serve)
    with pytest.raises(PeerError, match="lacks the capability"):
        bulk_send(b"x", f"127.0.0.1:{server.getsockname()[1]}")
    server.close()
    done.result(5)


def test_strangers_do_not_stop_a_listener(pool):
    with BulkListener(key=KEY) as listener:
        host, port = listener.address.split(":")
        for junk in (b"GET / HTTP/1.1\r\n\r\n" * 3, b"N\1\1\0\xff\xff\xff\xff" + bytes(16), b"N", b""):
            with socket.create_connection((host, int(port))) as sock:
                sock.sendall(junk)
        got = pool.submit(bulk_recv, listener)
        bulk_send(b"data", listener.address, key=KEY)
        assert got.result(10).data == b"data"


# -- limits --------------------------------------------------------------------------------------------------------


def test_an_object_that_does_not_fit_is_refused_on_both_sides(pool, tmp_path):
    for into, options, refused_here in (
        (bytearray(10), {}, True),
        (None, {"memory_bytes_max": 10}, True),
        (None, {"size_max": 10}, False),
    ):
        with BulkListener() as listener:
            got = pool.submit(bulk_recv, listener, into, idle_s=1.0, **options)
            with pytest.raises(LimitError, match="10"):
                bulk_send(bytes(11), listener.address)
            with pytest.raises(LimitError if refused_here else UnavailableError):
                got.result(10)


def test_one_that_is_too_large_leaves_the_place_to_the_next(pool):
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener, None, size_max=10)
        with pytest.raises(LimitError):
            bulk_send(bytes(11), listener.address)
        bulk_send(b"fits", listener.address)
        assert got.result(10).data == b"fits"


def test_a_destination_without_room_is_an_error_on_both_sides(pool):
    full = os.open("/dev/full", os.O_RDWR)
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener, (full, 0, 1 << 20))
        with pytest.raises(UnavailableError):
            bulk_send(some_bytes(100_000), listener.address, retry_s=1.0)
        with pytest.raises(UnavailableError, match="no space left"):
            got.result(10)
    os.close(full)


def test_a_source_that_becomes_shorter_is_an_error(pool, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(1_000_000))
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener, None, idle_s=1.0)
        sender = BulkSender(path, listener.address, streams=1)
        os.truncate(path, 500_000)
        with pytest.raises(UsageError, match="shorter"):
            list(sender)
        with pytest.raises(UnavailableError):
            got.result(10)


# -- breaking and slowing ------------------------------------------------------------------------------------------


def test_a_killed_connection_loses_only_what_was_not_acknowledged(pool):
    """The others, and one more, take over what it had; what the receiver had placed is not sent again."""
    data = some_bytes(6_000_000)
    with BulkListener() as listener, Proxy(listener.address, slow={2: 400_000}) as proxy:
        got = pool.submit(bulk_recv, listener)
        sent = pool.submit(bulk_send, data, proxy.address, streams=4, chunk_bytes=CHUNK, pace_bps=100_000_000)
        proxy.wait_forwarded(2, 300_000)
        proxy.kill(2)
        receipt = sent.result(20)
        assert got.result(10).data == data
    assert receipt.moved_bytes == len(data)
    # Frames and handshakes are 2% on top; in the killed one's buffers were at most its window and the sockets'.
    assert sum(proxy.forwarded.values()) < len(data) * 1.05 + 2_000_000


def test_a_slow_stream_does_not_hold_the_others_up(pool):
    """One of four stands still after 100 kB: it is cut in the end, and the others did all the rest."""
    data = some_bytes(8_000_000)
    with BulkListener() as listener, Proxy(listener.address, slow={1: 100_000}) as proxy:
        got = pool.submit(bulk_recv, listener)
        started = time.monotonic()
        bulk_send(data, proxy.address, streams=4, chunk_bytes=64 * 1024)
        assert got.result(10).data == data
        assert proxy.forwarded[1] <= 100_000
    assert time.monotonic() - started < 8  # the stall alone would be noticed after ten


def test_a_receiver_that_comes_back_gets_only_what_it_lacks(pool, tmp_path):
    data = some_bytes(4_000_000)
    into = tmp_path / "x"
    with BulkListener() as first, Proxy(first.address) as proxy:
        receiver = first.receive(into, sync_bytes=CHUNK)
        sender = pool.submit(bulk_send, data, proxy.address, streams=3, chunk_bytes=CHUNK, pace_bps=40_000_000)
        for progress in receiver:
            if progress.done_bytes > 1_000_000:
                break
        assert not into.exists()
        first.close()
        with BulkListener() as second:
            proxy.target = ("127.0.0.1", int(second.address.split(":")[1]))
            got = bulk_recv(second, into)
            assert sender.result(20).size_bytes == len(data)
    assert into.read_bytes() == data
    assert got.resumed_bytes > 500_000
    assert got.moved_bytes == len(data) - got.resumed_bytes
    assert os.listdir(tmp_path) == ["x"]


def test_memory_that_went_with_its_receiver_is_sent_again(pool):
    """Nothing of the first receiver is there any more, though the sender had it acknowledged."""
    data = some_bytes(2_000_000)
    with BulkListener() as first, Proxy(first.address) as proxy:
        sender = pool.submit(bulk_send, data, proxy.address, streams=2, chunk_bytes=CHUNK, pace_bps=40_000_000)
        for progress in first.receive():
            if progress.done_bytes > 500_000:
                break
        first.close()
        with BulkListener() as second:
            proxy.target = ("127.0.0.1", int(second.address.split(":")[1]))
            got = bulk_recv(second)
            assert got.data == data
            assert got.resumed_bytes == 0
            sender.result(20)


def test_a_sender_that_comes_back_goes_on(pool, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(data := some_bytes(3_000_000))
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener, tmp_path / "b")
        for progress in BulkSender(path, listener.address, streams=2, chunk_bytes=CHUNK, pace_bps=40_000_000):
            if progress.done_bytes > 1_000_000:
                break
        again = bulk_send(path, listener.address, streams=2, chunk_bytes=CHUNK)
        assert got.result(10).moved_bytes == len(data)
    assert again.resumed_bytes > 900_000
    assert again.moved_bytes == len(data) - again.resumed_bytes
    assert (tmp_path / "b").read_bytes() == data


def test_a_sender_that_did_not_hear_of_the_end_is_told_it(pool, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(some_bytes(100_000))
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener)
        first = BulkSender(path, listener.address)
        list(first._move())
        with dial(first.target, 5) as sock:
            ask(Call(sock, first.identity, key=None, initiator=True, seconds=5), Finish(first.transfer, first._root()))
        first.close()  # it was killed before it said that it knows
        root = got.result(10).root
        again = bulk_send(path, listener.address)
    assert again.moved_bytes == 0
    assert again.root == root


def test_what_was_sent_once_is_received_again_where_it_is_expected_again(pool, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(data := some_bytes(100_000))
    with BulkListener() as listener:
        for _ in range(3):
            sent = pool.submit(bulk_send, path, listener.address)
            assert bulk_recv(listener).data == data
            assert sent.result(10).moved_bytes == len(data)


def test_a_transfer_runs_once_and_not_in_a_fork():
    with BulkListener() as listener:
        sender, receiver = BulkSender(b"x", listener.address, retry_s=0.1), listener.receive(idle_s=0.1)
        if (child := os.fork()) == 0:
            refused = 0
            for one in (sender, receiver):
                try:
                    list(one)
                except UsageError as error:
                    refused += f"in process {os.getppid()}" in str(error)
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        for one in (sender, receiver):
            with pytest.raises(UnavailableError):
                list(one)
            with pytest.raises(UsageError, match="runs once"):
                list(one)


def test_a_source_that_changed_between_is_an_error_and_never_a_file(pool, tmp_path):
    """Half of the old bytes, half of the new: the digests differ, both sides say so, and the next try begins anew."""
    data = bytearray(some_bytes(2_000_000))
    into = tmp_path / "x"
    with BulkListener() as listener:
        receiver = listener.receive(into, sync_bytes=CHUNK)
        sender = pool.submit(
            bulk_send, bytes(data), listener.address, transfer=5, streams=2, chunk_bytes=CHUNK, retry_s=0.5,
            pace_bps=40_000_000,
        )  # fmt: skip
        for progress in receiver:
            if progress.done_bytes > 1_000_000:
                break
        with pytest.raises(UnavailableError):
            sender.result(10)
    data[:1000] = bytes(1000)
    data[-1000:] = bytes(1000)
    assert not into.exists()
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener, into)
        with pytest.raises(CorruptionError, match="the source changed"):
            bulk_send(bytes(data), listener.address, transfer=5, chunk_bytes=CHUNK)
        with pytest.raises(CorruptionError, match="the source changed"):
            got.result(10)
    assert os.listdir(tmp_path) == []


# -- many, deadlines, cancelling -----------------------------------------------------------------------------------


def test_transfers_of_one_listener_do_not_mix(pool):
    with BulkListener(key=KEY) as listener:
        wanted = {n: some_bytes(500_000 + n, seed=n) for n in (7, 8)}
        got = {n: pool.submit(bulk_recv, listener, None, transfer=n) for n in wanted}
        sent = [
            pool.submit(bulk_send, data, listener.address, key=KEY, transfer=n, streams=3, chunk_bytes=CHUNK)
            for n, data in wanted.items()
        ]
        for n, data in wanted.items():
            assert got[n].result(10).data == data
        for one in sent:
            one.result(10)


def test_two_objects_under_one_number_are_refused(pool):
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener)
        first = iter(BulkSender(bytes(1_000_000), listener.address, transfer=3, chunk_bytes=CHUNK, pace_bps=8_000_000))
        while next(first).done_bytes == 0:
            pass
        with pytest.raises(UsageError, match="same number"):
            bulk_send(bytes(1_000_001), listener.address, transfer=3)
        first.close()
        listener.close()
        with pytest.raises(TransferCancelledError):
            got.result(10)


def test_a_deadline_ends_both_sides(pool):
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener, None, deadline_s=0.4)
        with pytest.raises(UnavailableError, match=r"not finished within 0\.3 s.*send again to go on"):
            bulk_send(bytes(10_000_000), listener.address, pace_bps=8_000_000, deadline_s=0.3)
        with pytest.raises(UnavailableError, match=r"not finished within 0\.4 s"):
            got.result(10)


def test_nobody_there_and_nobody_waiting_are_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UnavailableError, match="connection refused"):
        bulk_send(b"x", f"127.0.0.1:{port}", retry_s=0.2)
    with BulkListener() as listener, pytest.raises(UnavailableError, match="nobody here expects"):
        bulk_send(b"x", listener.address, retry_s=0.2)


def test_a_receiver_that_hears_nothing_gives_up():
    with BulkListener() as listener, pytest.raises(UnavailableError, match=r"nothing came for 0\.1 s"):
        bulk_recv(listener, idle_s=0.1)


def test_cancelling_ends_both_sides_and_keeps_what_is_there(pool, tmp_path):
    with BulkListener() as listener:
        receiver = listener.receive(tmp_path / "x", sync_bytes=CHUNK)
        got = pool.submit(list, receiver)
        sender = BulkSender(bytes(5_000_000), listener.address, chunk_bytes=CHUNK, pace_bps=40_000_000)

        def cancel_in_the_middle():
            for progress in sender:
                if progress.done_bytes:
                    threading.Thread(target=sender.cancel).start()

        with pytest.raises(TransferCancelledError, match="send again to go on"):
            cancel_in_the_middle()
        receiver.cancel()
        with pytest.raises(TransferCancelledError):
            got.result(10)
    assert sorted(os.listdir(tmp_path)) == ["x.journal", "x.part"]


def test_a_cancelled_task_lets_go_of_everything():
    async def main():
        source, into = bytearray(5_000_000), bytearray(5_000_000)
        with BulkListener() as listener:
            moved = asyncio.Event()
            loop = asyncio.get_running_loop()

            def progress(now):
                if now.done_bytes:
                    loop.call_soon_threadsafe(moved.set)

            got = asyncio.create_task(bulk_recv_async(listener, into))
            sent = asyncio.create_task(
                bulk_send_async(source, listener.address, pace_bps=8_000_000, chunk_bytes=CHUNK, progress=progress)
            )
            await moved.wait()
            with pytest.raises(BufferError):
                source.append(1)  # it is being read
            for task in (sent, got):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        source.append(1)

    asyncio.run(main())


def test_objects_are_moved_by_tasks():
    async def main():
        data = some_bytes(1_000_000)
        with BulkListener(key=KEY) as listener:
            got, sent = await asyncio.gather(
                bulk_recv_async(listener), bulk_send_async(data, listener.address, key=KEY)
            )
        assert got.data == data
        assert got.root == sent.root

    asyncio.run(main())


def test_a_pace_is_kept(pool):
    """Of all streams together; a burst at the end of a pause is not made up for."""
    size = 2_000_000
    sent, _ = transfer(pool, bytes(size), streams=4, chunk_bytes=CHUNK, pace_bps=32_000_000)
    assert sent.seconds >= 0.9 * size * 8 / 32_000_000


def test_the_kernel_paces_each_stream(pool):
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener)
        seen = set()
        sender = BulkSender(
            bytes(1_000_000), listener.address, streams=2, chunk_bytes=CHUNK, stream_pace_bps=80_000_000,
            pace_bps=16_000_000,
        )  # fmt: skip
        for _ in sender:
            for lane in sender._lanes:
                if lane.running and lane.sock is not None:
                    seen.add(lane.sock.getsockopt(socket.SOL_SOCKET, 47))
        got.result(10)
    assert seen == {10_000_000}


def test_the_congestion_control_is_the_one_that_was_asked_for():
    with BulkListener() as listener, dial(host_and_port(listener.address), 5, congestion="reno") as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"


def test_progress_only_grows_and_ends_at_the_whole(pool):
    seen = []
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener)
        bulk_send(bytes(1_000_000), listener.address, chunk_bytes=CHUNK, pace_bps=32_000_000, progress=seen.append)
        got.result(10)
    done = [one.done_bytes for one in seen]
    assert done == sorted(done)
    assert done[-1] == 1_000_000
    assert len(done) > 3


def test_streams_come_and_go_while_an_object_is_moved(pool):
    data = some_bytes(5_000_000)

    class Moody:
        """Wants another number at every look."""

        def __init__(self):
            self.looks, self.seen = 0, set()

        def step(self, view):
            self.looks += 1
            self.seen.add(view.streams)
            return (1, 6, 2, 4, 1, 8)[self.looks // 2 % 6]

    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener)
        sender = BulkSender(data, listener.address, chunk_bytes=CHUNK, pace_bps=40_000_000)
        moody = sender._count = Moody()
        list(sender)
        assert got.result(10).data == data
    assert sender.receipt.moved_bytes == len(data)  # who leaves has all of its chunks acknowledged first
    assert len(moody.seen) >= 3


def test_more_streams_than_the_receiver_takes_are_not_opened(pool, caplog):
    with caplog.at_level(logging.WARNING, "nova.transport"):
        sent, got = transfer(pool, bytes(3_000_000), streams=8, chunk_bytes=CHUNK, pace_bps=80_000_000,
                             options={"streams_max": 2})  # fmt: skip
    assert sent.streams <= 2
    assert got.streams <= 2
    assert not caplog.records


def test_a_transfer_tells_telemetry_what_the_link_carried(pool):
    links, rates = LinkTelemetry(), []
    with BulkListener() as listener:
        for _ in range(2):  # the second one begins with what the first one found
            got = pool.submit(bulk_recv, listener)
            sent = bulk_send(
                bytes(4_000_000), listener.address, chunk_bytes=CHUNK, pace_bps=64_000_000, telemetry=links
            )
            rates.append(8 * sent.moved_bytes / sent.seconds)
            got.result(10)
        known = links.estimate(listener.address, time.time_ns())
        forecast_bps = links.forecast_bps(listener.address)
    # A busy machine may be slower than the pace; what is known is neither below what was seen nor above the pace.
    assert 0.8 * min(rates) <= known.bandwidth_bps <= 1.3 * 64e6
    assert 0.8 * min(rates) <= forecast_bps <= 1.3 * 64e6
    assert known.rtt_ns > 0


def test_what_was_there_before_is_not_taken_for_carried(pool, tmp_path):
    path, links = tmp_path / "a", LinkTelemetry()
    path.write_bytes(bytes(4_000_000))
    with BulkListener() as listener:
        got = pool.submit(bulk_recv, listener)
        for progress in BulkSender(path, listener.address, chunk_bytes=CHUNK, pace_bps=80_000_000):
            if progress.done_bytes > 3_000_000:
                break
        bulk_send(path, listener.address, chunk_bytes=CHUNK, pace_bps=16_000_000, telemetry=links)
        got.result(10)
        assert links.estimate(listener.address, time.time_ns()).bandwidth_bps < 32_000_000


def test_the_count_begins_with_what_is_known_of_the_link():
    links = LinkTelemetry()
    links.observe("127.0.0.1:9", time.time_ns(), LinkSample(125_000_000, 1_000_000_000, 50_000_000, 1000, 10))
    assert BulkSender(b"", "127.0.0.1:9", telemetry=links)._wanted == 32
    assert BulkSender(b"", "127.0.0.1:9", telemetry=links, streams_max=4)._wanted == 4
    assert BulkSender(b"", "127.0.0.1:8", telemetry=links)._wanted == 1
