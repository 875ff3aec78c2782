"""Batches over many connections: every piece with its connection, in order, and few system calls."""

import errno
import random
import socket
import threading

import numpy as np
import pytest

from nova.errors import UsageError
from nova.transport.engine import EngineOptions, Kind, probe
from nova.transport.hub import Hub

SECONDS_MAX = 10.0
NO_URING = probe(Kind.URING)
KINDS = [
    pytest.param(Kind.EPOLL, id="epoll"),
    pytest.param(
        Kind.URING, id="io_uring", marks=pytest.mark.skipif(bool(NO_URING), reason=NO_URING or "io_uring is here")
    ),
]


@pytest.fixture(params=KINDS)
def hub(request):
    made = Hub(request.param)
    yield made
    made.close()


def callers(hub, count):
    """Plain sockets to the hub, and their connections in it."""
    address = hub.listen("127.0.0.1:0")
    host, _, port = address.rpartition(":")
    peers, connections = [], []
    for _ in range(count):
        peers.append(socket.create_connection((host, int(port)), timeout=SECONDS_MAX))
        while len(connections) < len(peers):
            assert not len(hub.recv_batch(SECONDS_MAX))
            connections += [change.connection for change in hub.changes() if change.what == "accepted"]
    return peers, connections


def pieces(batch):
    return [
        (int(connection), bytes(batch.slab[int(batch.offsets[i]) : int(batch.offsets[i + 1])]))
        for i, connection in enumerate(batch.connections)
    ]


def test_a_batch_holds_the_pieces_of_all_connections(hub):
    peers, connections = callers(hub, 50)
    chance = random.Random(1)
    sent = dict.fromkeys(connections, b"")
    for _ in range(500):
        who = chance.randrange(50)
        data = chance.randbytes(chance.choice([1, 64, 5000]))
        peers[who].sendall(data)
        sent[connections[who]] += data
    got = dict.fromkeys(connections, b"")
    while any(len(got[c]) < len(sent[c]) for c in connections):
        batch = hub.recv_batch(SECONDS_MAX)
        assert len(batch)
        for connection, piece in pieces(batch):
            got[connection] += piece
    assert got == sent
    for peer in peers:
        peer.close()


def test_what_one_batch_brings_another_sends_back(hub):
    peers, _ = callers(hub, 20)
    for number, peer in enumerate(peers):
        peer.sendall(b"%02d" % number * 100)
    answers = [b""] * len(peers)

    def read():
        for number, peer in enumerate(peers):
            while len(answers[number]) < 200:
                answers[number] += peer.recv(200)

    reader = threading.Thread(target=read)
    reader.start()
    echoed = 0
    while echoed < 20 * 200 or reader.is_alive():
        batch = hub.recv_batch(0.05)
        assert hub.send_batch(batch.slab, batch.offsets, batch.connections) == len(batch)
        echoed += int(batch.offsets[-1])
    reader.join()
    assert answers == [b"%02d" % number * 100 for number in range(20)]
    for peer in peers:
        peer.close()


@pytest.mark.skipif(bool(NO_URING), reason=NO_URING or "io_uring is here")
def test_a_batch_over_many_connections_is_one_system_call():
    hub = Hub(Kind.URING)
    peers, _ = callers(hub, 128)
    rounds = 20
    before = hub.stats
    for _ in range(rounds):
        for peer in peers:
            peer.sendall(b"x" * 64)
        got = 0
        while got < len(peers):
            batch = hub.recv_batch(SECONDS_MAX)
            got += len(batch)
            hub.send_batch(batch.slab, batch.offsets, batch.connections)
        hub.recv_batch(0)
        for peer in peers:
            assert peer.recv(64) == b"x" * 64
    after = hub.stats
    assert after.received - before.received == rounds * len(peers)
    assert (after.syscalls - before.syscalls) / (rounds * len(peers)) <= 0.05
    hub.close()


def test_a_slab_without_room_leaves_the_rest_for_the_next_batch():
    hub = Hub(Kind.EPOLL, options=EngineOptions(buffer_bytes=64, buffers=64), slab_bytes=64, pieces_max=1)
    peers, connections = callers(hub, 2)
    for peer in peers:
        peer.sendall(b"x" * 200)
    got = dict.fromkeys(connections, 0)
    while sum(got.values()) < 400:
        batch = hub.recv_batch(SECONDS_MAX)
        assert len(batch) == 1
        got[int(batch.connections[0])] += int(batch.offsets[1])
    assert set(got.values()) == {200}
    hub.close()


def test_connections_come_and_go(hub):
    (peer,), (connection,) = callers(hub, 1)
    peer.sendall(b"last words")
    peer.close()
    said, ended = b"", []
    while not ended:
        for who, piece in pieces(hub.recv_batch(SECONDS_MAX)):
            assert who == connection
            said += piece
        ended = hub.changes()
    assert said == b"last words"
    assert [(change.what, change.connection, change.error) for change in ended] == [("closed", connection, 0)]
    assert not hub.send(connection, b"late")
    offsets, gone = np.array([0, 1], np.uint64), np.array([connection], np.uint32)
    assert hub.send_batch(b"x", offsets, gone) == 0


def test_hubs_call_each_other(hub):
    other = Hub(hub.kind)
    connection = other.connect(hub.listen("127.0.0.1:0"))
    assert other.send(connection, b"hello")
    while not (change := other.changes()):
        other.recv_batch(0.01)
    assert change[0].what == "connected"
    while not len(batch := hub.recv_batch(0.01)):
        other.recv_batch(0)
    assert pieces(batch)[0][1] == b"hello"
    other.close()


def test_who_is_sent_to_and_does_not_read_is_closed():
    hub = Hub(Kind.EPOLL, options=EngineOptions(queue_bytes_max=100_000))
    (peer,), (connection,) = callers(hub, 1)
    slab, offsets = bytes(50_000), np.array([0, 50_000], np.uint64)
    to = np.array([connection], np.uint32)
    ended = []
    for _ in range(1000):
        hub.send_batch(slab, offsets, to)
        hub.recv_batch(0)
        if ended := hub.changes():
            break
    assert [(change.what, change.error) for change in ended] == [("closed", errno.ENOBUFS)]
    peer.close()
    hub.close()


def test_batches_that_cannot_be_are_refused(hub):
    one = np.array([1], np.uint32)
    for offsets, connections in (
        (np.array([0], np.uint64), one),
        (np.array([0, 9], np.uint64), one),
        (np.array([0, 2, 1], np.uint64), np.array([1, 1], np.uint32)),
    ):
        with pytest.raises(UsageError, match="they ascend within it"):
            hub.send_batch(b"12345678", offsets, connections)
    with pytest.raises(UsageError, match="they are uint64 and uint32"):
        hub.send_batch(b"12345678", np.array([0, 1], np.int32), one)
    with pytest.raises(UsageError, match="a slab has room for one buffer"):
        Hub(Kind.EPOLL, slab_bytes=100)
    with pytest.raises(UsageError, match="is not host:port"):
        hub.listen("nowhere")


def test_a_hub_belongs_to_one_thread(hub):
    errors = []

    def work():
        try:
            hub.recv_batch(0)
        except UsageError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == ["this engine is driven by the thread that opened it: turn and close it there"]
