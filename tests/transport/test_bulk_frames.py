"""The compiled half of bulk transfers: frames from strangers, acknowledgements that lie, work that is given back."""

import fcntl
import socket
import struct
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova._native import bulk as native
from nova._native.audit import blake3
from nova._native.bulk import BLAKE3, CRC32C, Board, BulkStream, crc_join
from nova._native.frame import crc32c, encode, seal
from nova.errors import UsageError

CHUNK_TYPE, ACK_TYPE = 9, 10
CHUNK, SIZE, ID = 4096, 10 * 4096 + 100, 77
DATA = bytes(range(256)) * 200
DATA = (DATA * 2)[:SIZE]
KEY_A, KEY_B = bytes([1]) * 32, bytes([2]) * 32


def frame(offset, body, *, sequence=0, transfer=ID, kind=CHUNK_TYPE, stream=0):
    made = encode(kind, stream, sequence, struct.pack(">QQ", transfer, offset) + body)
    seal(made)
    return bytes(made)


def keyed_frame(offset, body, key, *, sequence=0, kind=CHUNK_TYPE):
    """As the format is described, made without the code under test."""
    head = struct.pack(">QQ", ID, offset)
    made = encode(kind, 0, sequence, head + body, mac=True)
    hashed = blake3(body) if kind == CHUNK_TYPE else bytes(32)
    seal(made, blake3(bytes(made[:20]) + head + hashed, key)[:16])
    return bytes(made)


def chunk(number):
    return DATA[number * CHUNK : (number + 1) * CHUNK]


class Receiving:
    """A receiving stream whose other side is the test."""

    def __init__(self, *, keyed=False, digest=BLAKE3):
        self.into = bytearray(SIZE)
        self.board = Board(ID, SIZE, CHUNK, digest, receiving=True, memory=self.into)
        self.pool = ThreadPoolExecutor(4)
        self.keys = (KEY_B, KEY_A) if keyed else (None, None)
        self.streams = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.board.close()
        for ours, theirs, _, run in self.streams:
            run.result(5)
            ours.close()
            theirs.close()
        self.pool.shutdown()

    def open(self):
        ours, theirs = socket.socketpair()
        ours.settimeout(5)
        stream = BulkStream(self.board)
        run = self.pool.submit(stream.run, theirs.fileno(), *self.keys)
        self.streams.append((ours, theirs, stream, run))
        return ours, stream, run

    def code_of(self, data, *, end=True):
        ours, _, run = self.open()
        ours.sendall(data)
        if end:
            ours.shutdown(socket.SHUT_WR)
        return run.result(5)


def acks_of(sock, count):
    """Wait until `count` chunk frames are acknowledged; how many acknowledgements came."""
    frames = 0
    while True:
        ack = sock.recv(40, socket.MSG_WAITALL)
        frames += 1
        assert ack[2] == ACK_TYPE
        if struct.unpack_from(">Q", ack, 32)[0] >= count:
            return frames


def wait_until_read(sock):
    """Until the other side has taken all that was sent."""
    until = time.monotonic() + 5
    while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]:
        assert time.monotonic() < until
        time.sleep(0.001)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_join(a, b):
    assert crc_join(crc32c(a), crc32c(b), len(b)) == crc32c(a + b)


@pytest.mark.parametrize("size", [1, 255, 4096, 65_537, 1 << 20])
def test_checksums_of_large_parts_join(size):
    a, b = b"before", bytes(range(251)) * (size // 251 + 1)
    assert crc_join(crc32c(a), crc32c(b[:size]), size) == crc32c(a + b[:size])


@pytest.mark.parametrize(("digest", "keyed"), [(CRC32C, False), (BLAKE3, False), (BLAKE3, True)])
def test_frames_made_by_the_description_are_placed_in_any_order(digest, keyed):
    with Receiving(keyed=keyed, digest=digest) as end:
        order = [10, 3, 0, 1, 9, 2, 8, 4, 7, 5, 6]
        frames = [
            keyed_frame(n * CHUNK, chunk(n), KEY_A, sequence=i) if keyed else frame(n * CHUNK, chunk(n), sequence=i)
            for i, n in enumerate(order)
        ]
        assert end.code_of(b"".join(frames)) == 0
        assert end.board.complete
        assert end.into == DATA
        expected = [blake3(chunk(n)) if digest == BLAKE3 else struct.pack(">I", crc32c(chunk(n))) + bytes(28)
                    for n in range(11)]  # fmt: skip
        assert [end.board.sum(n) for n in range(11)] == expected
        parts = struct.pack(">QQQ", SIZE, CHUNK, digest) + blake3(b"".join(expected))
        assert end.board.root() == blake3(parts)


BAD = [
    ("another type", native.ETYPE, frame(0, chunk(0), kind=3)),
    ("a later turn", native.ESEQUENCE, frame(0, chunk(0), sequence=1)),
    ("a stream number", native.ESEQUENCE, frame(0, chunk(0), stream=1)),
    ("another transfer", native.ETRANSFER, frame(0, chunk(0), transfer=ID + 1)),
    ("off the grid", native.EOFFSET, frame(1, chunk(0))),
    ("behind the end", native.EOFFSET, frame(11 * CHUNK, chunk(0))),
    ("far behind the end", native.EOFFSET, frame((1 << 64) - CHUNK, chunk(0))),
    ("too short", native.ELENGTH, frame(0, chunk(0)[:-1])),
    ("the last one too long", native.ELENGTH, frame(10 * CHUNK, chunk(0))),
    ("nothing in it", native.ELENGTH, frame(0, b"")),
    ("less than its head", native.ELENGTH, frame(0, b"")[:4] + bytes([0, 0, 0, 3]) + frame(0, b"")[8:]),
    ("longer than any", -4, frame(0, chunk(0) + b"x")),
    ("a length of 4 GB", -4, frame(0, b"")[:4] + b"\xff\xff\xff\xff" + frame(0, b"")[8:]),
    ("no frame", -1, b"GET / HTTP/1.1\r\n" + bytes(30)),
    ("another format", -2, b"N\2" + frame(0, chunk(0))[2:]),
    ("a MAC where none is due", -3, keyed_frame(10 * CHUNK, chunk(10), KEY_A)),
    ("a flipped bit of the bytes", native.ECRC, frame(0, chunk(0))[:-1] + b"!"),
    ("a flipped bit of the head", native.ECRC, frame(0, chunk(0))[:20] + b"\0\0\0\0" + frame(0, chunk(0))[24:]),
    ("half a head", native.EHANGUP, frame(0, chunk(0))[:39]),
    ("half a chunk", native.EHANGUP, frame(0, chunk(0))[:-1]),
]


@pytest.mark.parametrize(("code", "data"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_frame_that_is_not_right_ends_the_stream_and_places_nothing(code, data):
    with Receiving() as end:
        assert end.code_of(data) == code
        assert end.board.done == 0
        # The place is free again: an honest stream gets it.
        assert end.code_of(frame(0, chunk(0))) == 0
        assert end.board.done == 1


def test_a_frame_of_somebody_without_the_key_is_refused():
    with Receiving(keyed=True) as end:
        assert end.code_of(frame(0, chunk(0))) == -3
        assert end.code_of(keyed_frame(0, chunk(0), KEY_B)) == native.EMAC
        good = keyed_frame(0, chunk(0), KEY_A)
        moved = bytearray(good)
        moved[32:40] = struct.pack(">Q", CHUNK)
        seal(moved, good[-16:])
        assert end.code_of(bytes(moved)) == native.EMAC  # its checksum fits, its place is another one
        assert end.board.done == 0
        assert end.code_of(good) == 0
        assert end.code_of(good + good) == native.ESEQUENCE  # replayed
        assert end.board.done == 1


def test_a_chunk_that_comes_twice_has_to_be_the_same():
    with Receiving() as end:
        assert end.code_of(frame(0, chunk(0)) + frame(0, chunk(0), sequence=1)) == 0
        assert end.code_of(frame(0, bytes(CHUNK))) == native.EOTHER
        assert end.into[:CHUNK] == chunk(0)


def test_what_is_placed_is_acknowledged_before_the_stream_waits():
    with Receiving() as end:
        ours, _, run = end.open()
        ours.sendall(frame(0, chunk(0)))
        assert acks_of(ours, 1) == 1
        ours.sendall(b"".join(frame(n * CHUNK, chunk(n), sequence=n) for n in range(1, 11)))
        assert acks_of(ours, 11) <= 11
        ours.shutdown(socket.SHUT_WR)
        assert run.result(5) == 0


def test_a_chunk_that_comes_on_another_stream_cuts_the_one_it_is_stuck_on():
    """The sender has given the first stream up; two must not write to one place."""
    with Receiving() as end:
        stuck, _, stuck_run = end.open()
        whole = frame(0, chunk(0))
        stuck.sendall(whole[:-10])
        wait_until_read(stuck)
        other, _, other_run = end.open()
        other.sendall(frame(CHUNK, chunk(1)))
        acks_of(other, 1)
        other.sendall(frame(0, chunk(0), sequence=1))
        acks_of(other, 2)
        assert stuck_run.result(5) == native.ECUT
        other.shutdown(socket.SHUT_WR)
        assert other_run.result(5) == 0
        assert end.into[: 2 * CHUNK] == DATA[: 2 * CHUNK]


# -- the sending side ----------------------------------------------------------------------------------------------


class Sending:
    """A sending board, and streams whose other side is the test."""

    def __init__(self, *, keyed=False, data=DATA):
        self.board = Board(ID, len(data), CHUNK, BLAKE3, receiving=False, memory=data)
        self.pool = ThreadPoolExecutor(4)
        self.keys = (KEY_A, KEY_B) if keyed else (None, None)
        self.streams = []

    __enter__ = Receiving.__enter__
    __exit__ = Receiving.__exit__
    open = Receiving.open


def take_frames(sock, count):
    """(offset, bytes) of the next frames."""
    out = []
    for _ in range(count):
        head = sock.recv(40, socket.MSG_WAITALL)
        assert len(head) == 40
        (length,) = struct.unpack_from(">I", head, 4)
        body = sock.recv(length - 16, socket.MSG_WAITALL)
        assert struct.unpack_from(">I", head, 20)[0] == crc32c(head[:20] + head[24:] + body)
        out.append((struct.unpack_from(">Q", head, 32)[0], body))
    return out


def ack(count, sequence=0):
    made = encode(ACK_TYPE, 0, sequence, struct.pack(">QQ", ID, count))
    seal(made)
    return bytes(made)


def test_what_is_sent_is_what_the_description_says():
    for keyed in (False, True):
        with Sending(keyed=keyed) as end:
            ours, _, run = end.open()
            got = b""
            expected = b"".join(
                keyed_frame(n * CHUNK, chunk(n), KEY_A, sequence=n) if keyed else frame(n * CHUNK, chunk(n), sequence=n)
                for n in range(11)
            )
            while len(got) < len(expected):
                got += ours.recv(1 << 16)
            assert got == expected
            ours.sendall(keyed_frame(11, b"", KEY_B, kind=ACK_TYPE) if keyed else ack(11))
            assert run.result(5) == 0
            assert end.board.complete


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (native.EACK, ack(12)),
        (native.EACK, ack(5) + ack(4, 1)),
        (native.ESEQUENCE, ack(1, 1)),
        (native.ETYPE, frame(1, b"", kind=CHUNK_TYPE)),
        (native.ETRANSFER, frame(1, b"", kind=ACK_TYPE, transfer=1)),
        (native.ECRC, ack(1)[:-1] + b"\7"),
        (-4, frame(0, b"x", kind=ACK_TYPE)),
        (-1, b"x" * 40),
    ],
)
def test_an_acknowledgement_that_lies_ends_the_stream(code, data):
    with Sending() as end:
        ours, _, run = end.open()
        take_frames(ours, 11)
        ours.sendall(data)
        assert run.result(5) == code
        assert end.board.done in (0, 5)


def test_an_acknowledgement_without_the_key_counts_for_nothing():
    with Sending(keyed=True) as end:
        ours, _, run = end.open()
        ours.sendall(keyed_frame(1, b"", KEY_A, kind=ACK_TYPE))
        assert run.result(5) == native.EMAC
        assert end.board.done == 0


def test_a_broken_stream_gives_back_what_was_not_acknowledged_and_only_that():
    with Sending() as end:
        one, _, one_run = end.open()
        first = take_frames(one, 11)
        one.sendall(ack(4))
        one.shutdown(socket.SHUT_RDWR)
        assert one_run.result(5) in (native.EHANGUP, native.ESOCKET)
        assert end.board.done == 4
        two, _, two_run = end.open()
        second = take_frames(two, 7)
        assert sorted(second) == sorted(first[4:])
        two.sendall(ack(7))
        assert two_run.result(5) == 0
        assert end.board.complete


def test_a_stream_that_waits_takes_what_another_one_gives_back():
    """It has sent all there was and has it acknowledged; then the other one breaks."""
    data = DATA * 50
    with Sending(data=data) as end:
        one, one_stream, one_run = end.open()
        (first,) = take_frames(one, 1)  # the rest stays in the socket, which holds less than the object
        two, _, two_run = end.open()
        count = 0
        while count < end.board.chunks - one_stream.waiting:
            take_frames(two, 1)
            count += 1
            two.sendall(ack(count, count - 1))
        left = one_stream.waiting
        assert left
        one.shutdown(socket.SHUT_RDWR)
        assert one_run.result(5) != 0
        assert first in take_frames(two, left)
        two.sendall(ack(count + left, count))
        assert two_run.result(5) == 0
        assert end.board.complete


def test_a_stream_that_leaves_ends_when_its_chunks_are_acknowledged():
    with Sending() as end:
        one, stream, run = end.open()
        take_frames(one, 11)
        stream.leave()
        assert not run.done()
        one.sendall(ack(11))
        assert run.result(5) == 0


def test_cutting_and_closing_end_a_stream_that_waits_for_its_peer():
    data = bytes(20_000_000)  # more than a socket holds
    for end_it in (lambda end, stream: stream.cut(), lambda end, stream: end.board.close()):
        with Sending(data=data) as end:
            ours, stream, run = end.open()
            take_frames(ours, 1)
            end_it(end, stream)
            assert run.result(5) == native.ECUT
            assert end.board.done == 0


@pytest.mark.parametrize("kind", [Receiving, Sending])
@pytest.mark.parametrize("how", ["cut", "close"])
def test_a_stream_that_was_ended_before_it_ran_ends_at_once(kind, how):
    """Nothing comes on its socket, and nobody will shut that down."""
    with kind() as end:
        ours, theirs = socket.socketpair()
        stream = BulkStream(end.board)
        stream.cut() if how == "cut" else end.board.close()
        run = end.pool.submit(stream.run, theirs.fileno())
        end.streams.append((ours, theirs, stream, run))
        try:
            assert run.result(5) == native.ECUT
        finally:
            ours.shutdown(socket.SHUT_RDWR)


def test_many_streams_place_each_chunk_once():
    source, into = DATA * 100, bytearray(len(DATA) * 100)
    out = Board(ID, len(source), CHUNK, BLAKE3, receiving=False, memory=source)
    back = Board(ID, len(source), CHUNK, BLAKE3, receiving=True, memory=into)
    pairs = [socket.socketpair() for _ in range(16)]
    codes = []
    threads = [
        threading.Thread(target=lambda board=board, sock=sock: codes.append(BulkStream(board).run(sock.fileno())))
        for pair in pairs
        for board, sock in zip((out, back), pair, strict=True)
    ]
    for thread in threads:
        thread.start()
    events = out.events
    while not out.complete:
        events = out.wait(events, 1)
    for pair in pairs:
        pair[0].shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    assert set(codes) == {0}
    assert into == source
    assert out.root() == back.root()
    assert out.map() == back.map()
    fresh = back.fresh()
    assert len(fresh) == back.chunks * native.RECORD_BYTES
    assert back.fresh() == b""
    assert sorted(struct.unpack_from("<I", fresh, at)[0] for at in range(0, len(fresh), 36)) == list(range(back.chunks))
    for one, two in pairs:
        one.close()
        two.close()


# -- boards --------------------------------------------------------------------------------------------------------


def test_a_board_that_cannot_be_is_refused():
    for arguments, options, word in (
        ((1, 10, 0, BLAKE3), {"memory": bytes(10)}, "1 byte or more"),
        ((1, 10, 4, 3), {"memory": bytes(10)}, "digest 3"),
        ((1, 10, 4, BLAKE3), {"memory": bytes(9)}, "9 bytes for an object of 10"),
        ((1, 10, 4, BLAKE3), {}, "memory or a file"),
        ((1, 1 << 62, 1, BLAKE3), {"file": 0}, "make chunks larger"),
    ):
        with pytest.raises(UsageError, match=word):
            Board(*arguments, receiving=False, **options)


def test_memory_is_held_until_it_is_released():
    data = bytearray(100)
    board = Board(1, 100, 4096, BLAKE3, receiving=True, memory=data)
    with pytest.raises(BufferError):
        data.append(1)
    board.close()
    board.release()
    data.append(1)


def test_what_is_recalled_has_to_be_there_and_right():
    into = bytearray(DATA)
    source = Board(ID, SIZE, CHUNK, BLAKE3, receiving=False, memory=DATA)
    assert source.fill() == (0, 0)
    records = b"".join(struct.pack("<I", n) + source.sum(n) for n in (0, 1, 5, 10))
    into[CHUNK] ^= 1  # of chunk 1
    board = Board(ID, SIZE, CHUNK, BLAKE3, receiving=True, memory=into)
    assert board.recall(records + struct.pack("<I", 99) + bytes(32) + b"torn") == 3
    assert board.map() == bytes([0b100001, 0b100])
    assert board.done_bytes == 2 * CHUNK + 100
    board.reset()
    assert board.done == board.done_bytes == 0


@given(st.binary(max_size=64), st.booleans(), st.integers(0, 3))
def test_any_head_is_refused_or_on_the_grid(junk, keyed, sequence):
    board = Board(ID, SIZE, CHUNK, BLAKE3, receiving=True, memory=bytearray(SIZE))
    base = bytearray(
        keyed_frame(0, chunk(0), KEY_A, sequence=sequence) if keyed else frame(0, chunk(0), sequence=sequence)
    )
    base[4 : 4 + len(junk)] = junk
    found = board.read_head(bytes(base[:40]), keyed, sequence)
    assert found < board.chunks


@pytest.mark.parametrize("size", [n * 1024 + d for n in (64, 65, 128, 192, 256, 320, 1024) for d in (-1, 0, 1)])
def test_large_chunks_are_hashed_as_the_published_blake3_does_it(size):
    """From 64 KiB on parents are joined side by side."""
    published = pytest.importorskip("blake3").blake3
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    assert blake3(data) == published(data).digest()
    assert blake3(data, KEY_A) == published(data, key=KEY_A).digest()
