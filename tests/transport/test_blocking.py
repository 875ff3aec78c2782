"""Streams for threads: the same words without a loop."""

import gc
import itertools
import os
import random
import signal
import socket
import threading
import time

import numpy as np
import pytest

from nova._native.channel import pool_bytes
from nova.errors import DeadlineError, LimitError, PeerError, UnavailableError, UsageError
from nova.transport import PRIORITY_URGENT, Identity, Limits, blocking
from nova.transport.session import Session

KEY = bytes(range(32))


class Threads:
    """Runs functions beside the test; their errors are the test's."""

    def __init__(self):
        self.running = []

    def start(self, work, *arguments):
        out = []

        def run():
            try:
                out.append(work(*arguments))
            except BaseException as error:
                out.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.running.append((thread, out))
        return lambda: self.result(thread, out)

    @staticmethod
    def result(thread, out):
        thread.join(30)
        assert not thread.is_alive()
        if isinstance(out[0], BaseException):
            raise out[0]
        return out[0]


@pytest.fixture
def threads():
    made = Threads()
    yield made
    for thread, _ in made.running:
        thread.join(30)
        assert not thread.is_alive()


ANYWHERE = ["tcp://127.0.0.1:0", "shm://@"]


@pytest.fixture(params=ANYWHERE, ids=["tcp", "shm"])
def pair(request, threads):
    """Makes two ends of a stream."""
    made = []

    def make(*, key=None, limits=None):
        with blocking.listen(request.param, key=key, limits=limits) as listener:
            accepted = threads.start(listener.accept, 10)
            one = blocking.connect(listener.url, key=key, limits=limits)
            made.extend((one, accepted()))
        return made[-2:]

    yield make
    for stream in made:
        stream.abort("the test is over")


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.parametrize("key", [None, KEY])
def test_messages_of_all_sizes_cross_both_ways(pair, threads, key):
    one, two = pair(key=key)
    chance = random.Random(1)
    sizes = [0, 1, 64, 8192, 8193, 16383, 16384, 70_000, 262_144, 262_145, 3_000_000]
    sent = [chance.randbytes(size) for size in chance.choices(sizes, k=60)]

    def echo():
        while (message := two.recv()) is not None:
            two.send(message)

    echoing = threads.start(echo)
    got = threads.start(lambda: [bytes(one.recv()) for _ in sent])
    for message in sent:
        one.send(message)
    assert got() == sent
    one.close("done")
    echoing()
    assert two.reason == "done"
    assert one.peer == two.local
    assert one.initiator
    assert not two.initiator


def test_any_buffer_can_be_sent_and_changed_on_return(pair):
    one, two = pair()
    array = np.arange(100_000)
    one.send(array)
    array[:] = -1
    assert (np.frombuffer(two.recv(), array.dtype) == np.arange(100_000)).all()
    large = bytearray(b"large" * 10_000)
    one.send(large)
    large.clear()
    assert two.recv() == b"large" * 10_000


def test_batches_cross_as_slab_and_as_objects(pair, threads):
    one, two = pair()
    sizes = np.random.default_rng(1).integers(0, 200, 20_000)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    slab = np.random.default_rng(2).integers(0, 255, offsets[-1], dtype=np.uint8)
    whole = slab.tobytes()
    for send in (
        lambda: one.send_batch(slab, offsets),
        lambda: one.send_batch([whole[a:b] for a, b in itertools.pairwise(offsets)]),
    ):
        for receive in (
            lambda: (lambda data, index: (bytes(data), len(index) - 1))(*two.recv_slab()),
            lambda: (lambda batch: (b"".join(batch), len(batch)))(two.recv_batch()),
        ):
            sending = threads.start(send)
            got, count = b"", 0
            while count < 20_000:
                part, more = receive()
                got, count = got + part, count + more
            sending()
            assert got == whole


def test_small_messages_that_wait_for_a_flush_leave_with_it(pair):
    one, two = pair()
    for number in range(100):
        one.send(b"%d" % number, flush=False)
    assert one.queue_bytes
    one.flush()
    assert not one.queue_bytes
    assert [bytes(two.recv()) for _ in range(100)] == [b"%d" % number for number in range(100)]


def test_an_urgent_message_leaves_before_those_that_are_queued(pair):
    one, two = pair()
    for number in range(3):
        one.send(b"%d" % number, flush=False)
    one.send(b"urgent", PRIORITY_URGENT)
    assert [bytes(two.recv()) for _ in range(4)] == [b"urgent", b"0", b"1", b"2"]


def test_two_ends_that_only_send_do_not_wait_for_each_other(pair, threads):
    one, two = pair(limits=Limits(credit_bytes=64 * 1024 * 1024))
    data = bytes(40_000_000)

    def first_send_then_receive(end):
        end.send(data)
        return len(end.recv())

    both = [threads.start(first_send_then_receive, end) for end in (one, two)]
    assert [done() for done in both] == [40_000_000] * 2


def test_one_thread_receives_while_another_sends(pair, threads):
    one, two = pair()
    count = 200

    def send(end):
        for number in range(count):
            end.send(bytes([number % 256]) * 50_000)

    def receive(end):
        return [end.recv()[0] for _ in range(count)]

    sending = [threads.start(send, end) for end in (one, two)]
    receiving = [threads.start(receive, end) for end in (one, two)]
    for done in sending:
        done()
    assert [done() for done in receiving] == [[n % 256 for n in range(count)]] * 2


def test_a_deadline_of_recv_loses_nothing(pair):
    one, two = pair()
    with pytest.raises(DeadlineError, match="no message from node"):
        two.recv(0.01)
    one.send(bytes(200_000))
    one.send(b"after")
    got = []
    while len(got) < 2:
        try:
            got.append(len(two.recv(0)))
        except TimeoutError:
            continue
    assert got == [200_000, 5]


def test_a_deadline_of_send_frees_the_buffer_and_the_message_arrives_whole(pair):
    one, two = pair()
    data = bytearray(random.Random(3).randbytes(20_000_000))
    copy = bytes(data)
    with pytest.raises(DeadlineError, match="it stays queued"):
        one.send(data, timeout=0.05)
    data.clear()
    got = []
    reading = threading.Thread(target=lambda: got.append(two.recv()))
    reading.start()
    one.flush()
    reading.join()
    assert got == [copy]


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_none_is_refused(pair, timeout):
    one, _ = pair()
    with pytest.raises(UsageError, match="it is seconds, 0 or more"):
        one.recv(timeout)


def test_close_sends_what_is_queued_and_the_other_side_hears_why(pair, threads):
    one, two = pair()
    for number in range(10):
        one.send(b"%d" % number, flush=False)
    closing = threads.start(one.close, "going home")
    assert [bytes(two.recv()) for _ in range(10)] == [b"%d" % number for number in range(10)]
    assert two.recv() is None
    assert two.recv_batch() == []
    closing()
    one.close()
    assert two.reason == "going home"
    with pytest.raises(PeerError, match="is closed: going home"):
        two.send(b"late")
    with pytest.raises(PeerError, match="is closed: going home"):
        one.send(b"late")


def test_an_abort_wakes_who_waits_and_the_other_side_notices(pair, threads):
    one, two = pair()
    waiting = threads.start(one.recv)
    one.abort("enough")
    with pytest.raises(PeerError, match="enough"):
        waiting()
    with pytest.raises(PeerError, match="without a goodbye"):
        two.recv()
    with pytest.raises(PeerError, match="without a goodbye"):
        two.send(b"x")


def test_leaving_the_with_by_an_error_aborts(pair):
    one, two = pair()
    with pytest.raises(KeyError), one:
        raise KeyError("broken")
    with pytest.raises(PeerError, match="without a goodbye"):
        two.recv()


def test_a_message_over_the_limit_is_refused(pair):
    one, _ = pair(limits=Limits(message_bytes_max=5000))
    for send in (one.send, lambda data: one.send_batch([data]), lambda data: one.send_batch(data, np.array([0, 5001]))):
        with pytest.raises(LimitError, match="5001 bytes is over the limit of 5000"):
            send(bytes(5001))


def test_a_silent_peer_is_given_up_after_the_idle_limit(pair):
    one, _ = pair(limits=Limits(idle_ms_max=300))
    with pytest.raises(PeerError, match=r"no word from node .* for 300 ms"):
        one.recv()


def test_pings_keep_a_quiet_stream_alive(pair, threads):
    one, two = pair(limits=Limits(idle_ms_max=1500))
    waiting = threads.start(one.recv)
    began = time.monotonic()
    while time.monotonic() - began < 2:
        with pytest.raises(DeadlineError):
            two.recv(0.2)
    two.send(b"still there")
    assert waiting() == b"still there"
    assert one.stats.rtt_ns


def test_a_signal_gets_through_to_a_waiting_thread(pair):
    one, _ = pair()

    def interrupt(number, frame):
        raise InterruptedError("by the test")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError, match="by the test"):
            one.recv()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_forked_child_is_refused_and_the_parent_goes_on(pair):
    one, two = pair()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        complaints = []
        for call in (lambda: one.send(b"x"), one.recv, one.close):
            try:
                call()
                complaints.append("none")
            except UsageError as error:
                complaints.append(str(error))
        os.write(write, "\n".join(complaints).encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(read, 4096).decode().splitlines()
    assert (
        said
        == [f"this stream belongs to process {os.getpid()}; process {child}, forked from it, has to open its own"] * 3
    )
    one.send(b"from the parent")
    assert two.recv() == b"from the parent"
    os.close(read)
    os.close(write)


def test_messages_released_in_another_thread_go_back_to_the_pool(pair, threads):
    gc.collect()
    before = pool_bytes()[1]
    one, two = pair()
    sending = threads.start(one.send, bytes(5_000_000))
    message = two.recv()
    sending()
    assert pool_bytes()[1] >= before + 5_000_000
    threads.start(message.release)()
    assert pool_bytes()[1] < before + 5_000_000


def test_strangers_are_refused_with_one_clear_line_on_both_sides(threads, caplog):
    with blocking.listen("tcp://127.0.0.1:0", key=KEY) as listener:
        accepting = threads.start(listener.accept, 20)
        with pytest.raises(PeerError, match="another cluster key"):
            blocking.connect(listener.url, key=bytes(32))
        with pytest.raises(PeerError, match="asks for a cluster key"):
            blocking.connect(listener.url)
        with socket.create_connection(("127.0.0.1", int(listener.address.rpartition(":")[2]))) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert raw.recv(100) == b""
        honest = blocking.connect(listener.url, key=KEY)
        accepting().send(b"welcome")
        assert honest.recv() == b"welcome"
        honest.abort()
    for line in ("does not hold this cluster's key", "has no cluster key", "not a nova peer"):
        assert line in caplog.text


def test_addresses_that_cannot_be_are_named(threads):
    with pytest.raises(UnavailableError, match="refused"):
        blocking.connect("tcp://127.0.0.1:1")
    with pytest.raises(UsageError, match="there is no key"):
        blocking.listen("tcp://0.0.0.0:0")
    with pytest.raises(UsageError, match="not rdma://"):
        blocking.connect("rdma://127.0.0.1:1")
    with blocking.listen("tcp://127.0.0.1:0") as listener:
        with pytest.raises(UsageError, match="is in use"):
            blocking.listen(listener.url)
        with pytest.raises(DeadlineError, match="nobody connected"):
            listener.accept(0)
        accepting = threads.start(listener.accept)
        until(lambda: accepting)
    with pytest.raises(UsageError, match="is closed; listen again"):
        accepting()


def test_a_handshake_alone_reads_and_sends_nothing_behind_it(threads):
    one, two = socket.socketpair()
    sessions = [
        Session(Identity(n, "r", "c", 1, ""), key=KEY, initiator=n == "a", nonce=n.encode() * 32, now_ns=0)
        for n in "ab"
    ]
    with one, two:
        other = threads.start(blocking.handshake, two, sessions[1], 10)
        one.sendall(b"")
        blocking.handshake(one, sessions[0], 10)
        other()
        one.sendall(b"mine")
        two.sendall(b"yours")
        assert (two.recv(100), one.recv(100)) == (b"mine", b"yours")
    assert sessions[0].subkey("x") == sessions[1].subkey("x") != sessions[0].subkey("y")
    assert len(sessions[0].subkey("x")) == 32


@pytest.mark.parametrize("anywhere", ANYWHERE)
def test_a_stream_of_a_thread_and_one_of_a_loop_understand_each_other(threads, anywhere):
    import asyncio

    from nova import transport

    async def serve():
        async with await transport.listen(anywhere, key=KEY) as listener:
            talking = asyncio.to_thread(talk, listener.url)
            task = asyncio.create_task(talking)
            stream = await listener.accept()
            while (message := await stream.recv()) is not None:
                await stream.put(message)
            await task

    def talk(url):
        with blocking.connect(url, key=KEY) as stream:
            for size in (10, 10_000, 1_000_000):
                stream.send(bytes(size))
                assert stream.recv() == bytes(size)

    asyncio.run(serve())


def test_a_sender_that_waits_hears_the_goodbye_that_another_thread_received(pair, threads):
    one, two = pair()
    data = bytearray(30_000_000)
    sending = threads.start(one.send, data)
    until(lambda: one.queue_bytes)
    receiving = threads.start(one.recv)
    closing = threads.start(two.close, "no more")
    with pytest.raises(PeerError, match="is closed: no more"):
        sending()
    assert receiving() is None
    closing()
    data.clear()
    assert one.reason == "no more"
