"""The native engine on both of its drivers: each trap of asynchronous sockets, and that no byte or buffer is lost."""

import errno
import os
import resource
import select
import socket
import threading
import time

import pytest

from nova._native.uring import ffi, lib
from nova.errors import UsageError
from nova.transport.engine import EngineError, Kind
from tests.transport.engine_log import (
    KINDS,
    SECONDS_MAX,
    called,
    dialled,
    listening,
    opening,
    pattern,
    read,
    uring_only,
)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["by its thread", "driven"])
def driven(request):
    return request.param


@pytest.fixture
def opened():
    with opening() as open_one:
        yield open_one


# -- what it is for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switch",
    [{}, {"defer": False}, {"multishot": False}, {"fixed_files": False}, {"zerocopy": False}],
    ids=lambda switch: "without " + next(iter(switch)) if switch else "with all",
)
def test_bytes_go_both_ways_whatever_the_kernel_lacks(kind, driven, opened, switch):
    log = opened(kind, driven=driven, buffers=4, buffer_bytes=4096, **switch)
    _, address = listening(log)
    (peer,), (connection,) = called(log, address)
    assert log.engine.peer(connection) == peer.getsockname()
    data = pattern(300_000)
    thread = threading.Thread(target=peer.sendall, args=(data,))
    thread.start()
    log.until(lambda: len(log.data.get(connection, b"")) == len(data))
    thread.join()
    assert log.data[connection] == data
    log.engine.send(connection, b"small", copy=True)
    log.engine.send(connection, data, copy=False)
    answer = []
    thread = threading.Thread(target=lambda: answer.append(read(peer, len(data) + 5)))
    thread.start()
    log.until(lambda: not log.engine.held)
    thread.join()
    assert answer == [b"small" + data]
    peer.close()
    log.until(lambda: connection in log.ends)
    assert log.ends[connection] == 0
    stats = log.engine.stats
    assert stats.buffers_free == 4
    assert stats.connections == 0


@uring_only
def test_the_switches_are_what_they_say(opened):
    stats = opened(Kind.URING).engine.stats
    assert stats.deferred
    assert stats.multishot
    assert stats.fixed_files
    assert stats.zerocopy_on
    stats = opened(Kind.URING, defer=False, multishot=False, fixed_files=False, zerocopy=False).engine.stats
    assert not any((stats.deferred, stats.multishot, stats.fixed_files, stats.zerocopy_on))


def test_many_small_sends_leave_together(kind, opened):
    log = opened(kind, driven=True)
    connection, peer = dialled(log)
    for number in range(1000):
        log.engine.send(connection, b"%04d" % number, copy=True)
    log.look()
    log.look()
    assert read(peer, 4000) == b"".join(b"%04d" % number for number in range(1000))
    assert log.engine.stats.sends <= 2
    peer.close()


def test_an_end_of_the_other_side_waits_for_what_it_is_still_owed(kind, driven, opened):
    log = opened(kind, driven=driven)
    connection, peer = dialled(log)
    data = pattern(12_000_000)
    log.engine.send(connection, data, copy=False)
    peer.shutdown(socket.SHUT_WR)
    answer = []
    thread = threading.Thread(target=lambda: answer.append(read(peer, len(data))))
    thread.start()
    log.until(lambda: connection in log.ends)
    thread.join()
    assert answer == [data]
    assert peer.recv(1) == b""


def test_an_abort_resets_and_gives_every_buffer_back(kind, driven, opened):
    log = opened(kind, driven=driven)
    connection, peer = dialled(log, receive_bytes=4096)
    for _ in range(20):
        log.engine.send(connection, bytes(1 << 20), copy=False)
    log.look()
    assert log.engine.held
    log.engine.abort(connection)
    log.until(lambda: connection in log.ends and not log.engine.held)
    with pytest.raises(ConnectionResetError):
        read(peer, 32 << 20)
    log.until(lambda: log.engine.stats.connections == 0)
    assert log.engine.send(connection, b"late", copy=True) == -1


def test_a_connection_in_the_place_of_a_closed_one_is_another(kind, opened):
    log = opened(kind, connections_max=1)
    first, peer = dialled(log)
    peer.close()
    log.until(lambda: first in log.ends and log.engine.stats.connections == 0)
    second, peer = dialled(log)
    assert second != first
    log.engine.abort(first)
    assert log.engine.send(first, b"stale", copy=True) == -1
    assert log.engine.peer(first) is None
    log.engine.send(second, b"fresh", copy=True)
    assert read(peer, 5) == b"fresh"
    peer.close()


def test_a_full_engine_refuses_and_says_so(kind, driven, opened):
    log = opened(kind, driven=driven, connections_max=2)
    _, address = listening(log)
    peers, _ = called(log, address, 2)
    with pytest.raises(EngineError, match="full: 2 connections"):
        log.engine.connect(*address)
    third = socket.create_connection(address, timeout=SECONDS_MAX)
    log.until(lambda: log.accept_failures)
    assert third.recv(1) == b""
    peers[0].close()
    log.until(lambda: log.engine.stats.connections == 1)
    called(log, address)


def test_a_connection_that_nobody_takes_is_refused(kind, driven, opened):
    log = opened(kind, driven=driven)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    connection = log.engine.connect(*address)
    log.until(lambda: connection in log.ends)
    assert log.ends[connection] == errno.ECONNREFUSED


def test_after_unlisten_callers_are_refused_at_once(kind, driven, opened):
    log = opened(kind, driven=driven)
    listener, address = listening(log)
    called(log, address)
    log.engine.unlisten(listener)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=SECONDS_MAX)
    with pytest.raises(UsageError, match="no such connection or listener"):
        log.engine.unlisten(listener)


def test_want_of_descriptors_stops_accepting_only_for_a_while(kind, opened):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    log = opened(kind)
    caller = socket.socket()
    caller.settimeout(SECONDS_MAX)
    taken = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 20, hard))
    try:
        _, address = listening(log)  # a ring keeps the limit that stood when it was asked to accept
        with pytest.raises(OSError, match="Too many open files"):
            taken.extend(os.dup(0) for _ in range(100))
        caller.connect(address)
        log.until(lambda: log.accept_failures)
        assert log.accept_failures[0] == errno.EMFILE
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    log.until(lambda: log.accepts)
    caller.close()


# -- traps -----------------------------------------------------------------------------------------------------------


def test_short_sends_are_continued_where_they_stopped(kind, driven, opened):
    log = opened(kind, driven=driven, zerocopy=False)
    connection, peer = dialled(log, receive_bytes=4096)
    data = pattern(12_000_000)
    log.engine.send(connection, b"first", copy=True)
    log.engine.send(connection, data, copy=False)
    log.engine.send(connection, b"last", copy=True)
    answer = []
    thread = threading.Thread(target=lambda: answer.append(read(peer, len(data) + 9)))
    thread.start()
    log.until(lambda: not log.engine.held)
    thread.join()
    assert answer == [b"first" + data + b"last"]
    assert log.engine.stats.sends_short > 0


@uring_only
@pytest.mark.parametrize("registered", [False, True], ids=["pinned for the send", "registered"])
def test_a_zero_copy_buffer_is_the_kernels_until_the_second_completion(opened, registered):
    log = opened(Kind.URING, keep_zerocopy=True)
    connection, peer = dialled(log)
    data = bytearray(pattern(512 * 1024))
    if registered:
        log.engine.register(data)
    log.engine.send(connection, data, copy=False)
    # The first completion: the socket has taken all. What the window does not admit still lies in `data` alone.
    log.until(lambda: log.engine.stats.sent_bytes == len(data))
    log.look(0.01)
    stats = log.engine.stats
    assert stats.zerocopy_pending > 0
    assert stats.zerocopy_fixed == registered
    assert log.engine.held == 1
    with pytest.raises(BufferError):
        data.append(0)
    assert read(peer, len(data)) == data
    log.until(lambda: not log.engine.held)
    assert log.engine.stats.zerocopy_pending == 0
    peer.close()


@uring_only
def test_a_zero_copy_buffer_stays_the_kernels_after_the_connection_is_closed(opened):
    log = opened(Kind.URING, keep_zerocopy=True)
    connection, peer = dialled(log)
    data = pattern(512 * 1024)
    log.engine.send(connection, data, copy=False)
    log.engine.shut(connection)
    log.until(lambda: connection in log.ends)
    log.look(0.01)
    assert log.engine.held == 1
    assert log.engine.stats.connections == 1  # its place is not given away before
    assert read(peer, len(data)) == data
    assert peer.recv(1) == b""
    log.until(lambda: not log.engine.held)
    log.until(lambda: log.engine.stats.connections == 0)


@uring_only
def test_a_cancelled_zero_copy_send_gives_its_buffer_back(opened):
    log = opened(Kind.URING, keep_zerocopy=True)
    connection, peer = dialled(log)
    for _ in range(4):
        log.engine.send(connection, pattern(16 << 20), copy=False)
    log.until(lambda: log.engine.stats.sends_short > 0)
    log.engine.abort(connection)
    log.until(lambda: connection in log.ends and not log.engine.held)
    assert log.engine.stats.zerocopy_pending == 0
    peer.close()


@uring_only
def test_an_engine_closes_with_zero_copy_sends_under_way(opened):
    log = opened(Kind.URING, keep_zerocopy=True)
    connection, peer = dialled(log)
    log.engine.send(connection, pattern(512 * 1024), copy=False)
    log.until(lambda: log.engine.stats.zerocopy_pending > 0)
    log.engine.close()
    assert log.engine.held == 0
    peer.close()


@uring_only
def test_what_the_kernel_still_reads_outlives_the_engine(opened):
    log = opened(Kind.URING, keep_zerocopy=True)
    connection, peer = dialled(log)
    data = bytearray(pattern(512 * 1024))
    log.engine.send(connection, data, copy=False)
    log.engine.shut(connection)
    log.until(lambda: connection in log.ends)
    log.engine.close()
    with pytest.raises(BufferError):
        data.append(0)
    assert read(peer, len(data)) == data
    peer.close()


@uring_only
def test_zero_copy_is_given_up_where_the_kernel_copies_all_the_same(opened):
    log = opened(Kind.URING)
    connection, peer = dialled(log)
    data = pattern(200_000)
    for _ in range(3):
        log.engine.send(connection, data, copy=False)
        assert read(peer, len(data)) == data
        log.until(lambda: not log.engine.held)
    stats = log.engine.stats
    assert (stats.zerocopy, stats.zerocopy_copied) == (1, 1)
    peer.close()


def test_a_pool_that_ran_empty_ends_no_receive_for_good(kind, driven, opened):
    log = opened(kind, driven=driven, buffers=2, buffer_bytes=64)
    _, address = listening(log)
    peers, connections = called(log, address, 3)
    data = pattern(20_000)
    for peer in peers:
        peer.sendall(data)
    log.until(lambda: all(len(log.data.get(c, b"")) == len(data) for c in connections))
    assert all(log.data[c] == data for c in connections)
    assert log.engine.stats.no_buffers > 0


@uring_only
@pytest.mark.parametrize("defer", [True, False])
def test_more_completions_than_the_queue_holds_are_not_lost(opened, defer):
    log = opened(Kind.URING, driven=True, submissions=2, completions=4, buffers=64, buffer_bytes=512, defer=defer)
    _, address = listening(log)
    peers, connections = called(log, address, 40)
    for number, peer in enumerate(peers):
        peer.sendall(b"%03d" % number)
    time.sleep(0)
    log.until(lambda: all(c in log.data for c in connections))
    assert [bytes(log.data[c]) for c in connections] == [b"%03d" % number for number in range(40)]
    assert log.engine.stats.overflows > 0
    for peer in peers:
        peer.sendall(b"again")
    log.until(lambda: all(len(log.data[c]) == 8 for c in connections))
    for c in connections:
        log.engine.send(c, b"back", copy=True)
    log.look()
    log.look()
    assert all(read(peer, 4) == b"back" for peer in peers)


def in_thread(work):
    """What it returns or raises, run in a thread of its own."""
    out = []

    def run():
        try:
            out.append(work())
        except Exception as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return out[0]


def test_only_its_own_thread_may_turn_a_driven_engine(kind, opened):
    log = opened(kind, driven=True)
    for work in (lambda: log.engine.turn(0), lambda: log.engine.pending, log.engine.close):
        error = in_thread(work)
        assert isinstance(error, UsageError)
        assert "driven by the thread that opened it" in str(error)
    connection, peer = dialled(log)
    log.engine.send(connection, b"still", copy=True)
    log.look()
    assert read(peer, 5) == b"still"
    peer.close()


def test_any_thread_may_ask_and_wakes_a_sleeping_engine(kind, driven, opened):
    log = opened(kind, driven=driven)
    connection, peer = dialled(log)
    got = []
    reader = threading.Thread(target=lambda: got.append(read(peer, 4000)))
    reader.start()
    senders = [
        threading.Thread(target=lambda: [log.engine.send(connection, b"x", copy=True) for _ in range(1000)])
        for _ in range(4)
    ]
    for thread in senders:
        thread.start()
    log.until(lambda: not reader.is_alive())
    for thread in (*senders, reader):
        thread.join()
    assert got == [b"x" * 4000]
    peer.close()


def test_no_wake_up_is_lost_between_the_look_and_the_sleep(kind, opened):
    """Two threads that never wait for a clock: an order or an event that nobody is woken for would stop them."""
    log = opened(kind)
    connection, peer = dialled(log)
    rounds = 2000

    def echo():
        for _ in range(rounds):
            peer.sendall(read(peer, 1))

    thread = threading.Thread(target=echo)
    thread.start()
    for number in range(rounds):
        log.engine.send(connection, b"x", copy=True)
        while len(log.data.get(connection, b"")) <= number:
            assert select.select([log.engine], [], [], SECONDS_MAX)[0], f"round {number}: {log.engine.stats}"
            log.engine.poll(log)
    thread.join()
    peer.close()


def test_no_order_is_overlooked_on_the_way_to_sleep(kind, opened):
    log = opened(kind)
    connection, peer = dialled(log)
    for number in range(3000):
        # The second comes while the engine, done with the first, is about to sleep; nothing else will wake it.
        log.engine.send(connection, b"x", copy=False)
        log.engine.send(connection, b"y", copy=False)
        while log.engine.held:
            assert select.select([log.engine], [], [], SECONDS_MAX)[0], f"round {number}: {log.engine.stats}"
            log.engine.poll(log)
    assert read(peer, 6000) == b"xy" * 3000
    peer.close()


def test_the_descriptor_of_a_driven_engine_tells_when_a_turn_is_due(kind, opened):
    """As an event loop drives it: no turn but when the descriptor is readable, or when the engine says it is due."""
    log = opened(kind, driven=True)
    _, address = listening(log)

    def turns_until(condition):
        while not condition():
            if not log.engine.pending:
                assert select.select([log.engine], [], [], SECONDS_MAX)[0], (vars(log), log.engine.stats)
            log.engine.turn(0)
            log.engine.poll(log)

    log.engine.fileno()
    peer = socket.create_connection(address, timeout=SECONDS_MAX)
    turns_until(lambda: log.accepts)
    (connection,) = log.accepts
    for number in range(1, 200):
        peer.sendall(b"x")
        turns_until(lambda number=number: len(log.data.get(connection, b"")) == number)
        log.engine.send(connection, b"y", copy=True)
        turns_until(lambda number=number: log.engine.stats.sent_bytes == number)
    while log.engine.pending or select.select([log.engine], [], [], 0)[0]:
        log.engine.turn(0)
    # Of what another thread asks, nothing but the descriptor tells.
    in_thread(lambda: log.engine.send(connection, b"z", copy=True))
    assert select.select([log.engine], [], [], SECONDS_MAX)[0]
    turns_until(lambda: log.engine.stats.sent_bytes == 200)
    peer.close()


def take(engine, out):
    """Events of a driven engine that keep their buffers lent."""
    end = time.monotonic() + SECONDS_MAX
    while time.monotonic() < end:
        engine.turn(0.01)
        n = lib.nova_engine_events(engine._engine, out, len(out))
        received = [out[i] for i in range(n) if out[i].kind == lib.NOVA_RECEIVED]
        if received:
            return received
    raise AssertionError(engine.stats)


def test_a_buffer_may_be_released_in_another_thread_and_only_once(kind, opened):
    log = opened(kind, driven=True, buffers=1, buffer_bytes=64)
    _, address = listening(log)
    (peer,), _ = called(log, address)
    peer.sendall(b"a" * 64 + b"b" * 64)
    events = ffi.new("nova_event[]", 4)
    (first,) = take(log.engine, events)
    bid = first.buffer
    assert bytes(ffi.buffer(first.bytes, first.length)) == b"a" * 64
    for _ in range(3):
        log.engine.turn(0.001)
        assert lib.nova_engine_events(log.engine._engine, events, 4) == 0  # the only buffer is out
    assert in_thread(lambda: lib.nova_engine_release(log.engine._engine, [bid], 1)) == 0
    assert lib.nova_engine_release(log.engine._engine, [bid], 1) == lib.NOVA_ENGINE_E_LENT
    assert lib.nova_engine_release(log.engine._engine, [7], 1) == lib.NOVA_ENGINE_E_LENT
    (second,) = take(log.engine, events)
    assert bytes(ffi.buffer(second.bytes, second.length)) == b"b" * 64
    peer.close()
