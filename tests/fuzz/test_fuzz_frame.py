"""Hostile bytes into the frame parser and the session: only PeerError may come out, and memory stays bounded."""

import contextlib
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova._native.frame import (
    HEADER_BYTES,
    MESSAGE_COST_BYTES_MIN,
    FrameParser,
    cost,
    crc32c,
    crc32c_at,
    crc32c_levels,
    crc32c_plain,
    encode,
    pack,
    seal,
    split,
)
from nova.errors import PeerError
from nova.transport.base import Identity, Limits
from nova.transport.session import Established, Goodbye, Session

KEY = bytes(32)


def frame(payload=b"payload", *, kind=3, sequence=0, stream=0, trace=None, mac=None):
    out = encode(kind, stream, sequence, payload, trace, mac is not None)
    seal(out, mac)
    return bytes(out)


def feed_in_parts(parser, data, cuts):
    out, at = [], 0
    for cut in sorted(c % (len(data) + 1) for c in cuts):
        out += parser.feed(data[at:cut])
        at = cut
    return out + parser.feed(data[at:])


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_the_checksum_agrees_with_the_plain_one(data, start):
    assert crc32c(data, start) == crc32c_plain(data, start)
    assert crc32c(b"123456789") == 0xE3069283


@given(st.integers(0, 3000), st.integers(0, 64), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_every_way_to_the_checksum_agrees_with_the_plain_one(size, skip, start, chance):
    data = memoryview(chance.randbytes(size + skip))[skip:]
    plain = crc32c_plain(data, start)
    assert [crc32c_at(level, data, start) for level in range(crc32c_levels())] == [plain] * crc32c_levels()


frames = st.builds(
    dict,
    payload=st.binary(max_size=200),
    kind=st.integers(0, 255),
    sequence=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    trace=st.none() | st.binary(min_size=24, max_size=24),
    mac=st.none() | st.binary(min_size=16, max_size=16),
)


@given(st.lists(frames, max_size=5), st.lists(st.integers(0, 10_000), max_size=12))
def test_frames_come_back_however_the_bytes_arrive(made, cuts):
    got = feed_in_parts(FrameParser(1000), b"".join(frame(**one) for one in made), cuts)
    assert [(f.type, f.sequence, f.stream, bytes(f.payload), f.trace, f.mac or None) for f in got] == [
        (m["kind"], m["sequence"], m["stream"], m["payload"], m["trace"], m["mac"]) for m in made
    ]


@given(st.binary(max_size=200), st.integers(0, 2**16), st.integers(1, 255))
def test_no_flipped_byte_goes_unnoticed(payload, position, flip):
    raw = bytearray(frame(payload))
    raw[position % len(raw)] ^= flip
    parser = FrameParser(1000)
    with pytest.raises(PeerError):  # noqa: PT012
        # A longer length makes the parser wait for more; the next frame's bytes then break the checksum.
        parser.feed(bytes(raw) + frame(b"\0" * 1000))
        parser.feed(frame(b"\0" * 1000))
    with pytest.raises(PeerError):
        parser.feed(frame())


@given(st.binary(max_size=500), st.lists(st.integers(0, 10_000), max_size=5))
def test_garbage_gives_frames_or_a_peer_error(data, cuts):
    for prefix in (b"", b"N\x01", b"N\x01\x03\x00\x00\x00"):
        try:
            feed_in_parts(FrameParser(1000), prefix + data, cuts)
        except PeerError:
            continue


def test_a_hostile_length_is_refused_before_memory_is_taken():
    parser = FrameParser(1000)
    with pytest.raises(PeerError, match="frame of 4294967295 bytes is over the limit of 1000"):
        parser.feed(b"N\x01\x03\x00\xff\xff\xff\xff" + bytes(16))


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20), st.integers(5, 400), st.integers(64, 2000))
def test_packed_messages_come_back(messages, room, credit):
    queue, offset, got, partial = deque(messages), 0, [], b""
    while queue:
        before = cost([*queue]) - offset
        packed = pack(3, 0, 0, queue, offset, room, credit)
        assert packed is not None
        raw, charged, left, offset = packed
        assert len(raw) - HEADER_BYTES <= room
        assert charged <= credit
        assert left == before - (cost([*queue]) - offset)
        seal(raw)
        (one,) = FrameParser(1000).feed(bytes(raw))
        pieces, more = split(one.payload)
        assert charged == cost(pieces) >= MESSAGE_COST_BYTES_MIN * len(pieces)
        for index, piece in enumerate(pieces):
            partial += bytes(piece)
            if not (more and index == len(pieces) - 1):
                got.append(partial)
                partial = b""
    assert got == messages
    assert partial == b""


@given(st.binary(max_size=100))
def test_split_gives_pieces_inside_the_payload_or_a_peer_error(data):
    try:
        pieces, _ = split(memoryview(data))
    except PeerError:
        return
    assert sum(len(piece) + 4 for piece in pieces) == len(data)


def session(node, *, initiator, key=KEY):
    return Session(
        Identity(node, "r", "c", 1, ""),
        key=key,
        initiator=initiator,
        nonce=node.encode() * 32,
        now_ns=0,
        limits=Limits(frame_bytes_max=8192, message_bytes_max=100_000),
    )


def talk(one, two, rounds=4):
    """Bytes both ways until quiet; the events of each."""
    events = ([], [])
    for _ in range(rounds):
        for index, (source, target) in enumerate(((one, two), (two, one))):
            for raw in source.take_output():
                events[1 - index].extend(target.receive(bytes(raw), 1))
    return events


@pytest.mark.parametrize("key", [KEY, None])
def test_two_sessions_agree_on_who_they_are(key):
    one, two = session("a", initiator=True, key=key), session("b", initiator=False, key=key)
    events = talk(one, two)
    assert events == ([Established(two.identity)], [Established(one.identity)])
    assert one.send(b"x" * 50_000)
    one.close("bye")
    got = talk(one, two)[1]
    assert got == [b"x" * 50_000, Goodbye("bye")]
    assert one.done


def test_a_reflected_hello_is_refused():
    one = session("a", initiator=True)
    with pytest.raises(PeerError, match="reflection"):
        one.receive(bytes(one.take_output()[0]), 0)


def test_a_proof_sent_back_does_not_fit():
    one, two = session("a", initiator=True), session("b", initiator=False)
    two.receive(bytes(one.take_output()[0]), 0)
    one.receive(bytes(two.take_output()[0]), 0)
    with pytest.raises(PeerError, match="does not hold this cluster's key"):
        one.receive(bytes(one.take_output()[0]), 0)


def test_frames_of_another_session_with_the_same_key_are_refused():
    old = session("a", initiator=True), session("b", initiator=False)
    talk(*old)
    old[0].send(b"pay 100")
    recorded = old[0].take_output()
    one = session("a", initiator=True)
    two = Session(Identity("b", "r", "c", 1, ""), key=KEY, initiator=False, nonce=b"n" * 32, now_ns=0)
    talk(one, two)
    with pytest.raises(PeerError, match="MAC is wrong"):
        two.receive(b"".join(recorded), 1)


def test_data_beyond_the_credit_is_refused():
    one, two = session("a", initiator=True, key=None), session("b", initiator=False, key=None)
    talk(one, two)
    # The sender believes in a credit that the receiver never gave.
    one.receive(frame((2**60).to_bytes(8, "big"), kind=4, sequence=two.channel.sequence_out), 1)
    with pytest.raises(PeerError, match="more than its credit"):  # noqa: PT012
        for _ in range(100):
            one.send(b"x" * 90_000)
            for raw in one.take_output():
                two.receive(bytes(raw), 1)


@settings(max_examples=150)
@given(
    st.sampled_from([KEY, None]),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
    st.booleans(),
    st.binary(max_size=60),
)
def test_no_bytes_bring_a_session_down_with_anything_but_a_peer_error(key, when, flips, reseal, junk):
    one, two = session("a", initiator=True, key=key), session("b", initiator=False, key=key)
    step, mutated = 0, False
    try:
        for _ in range(4):
            for source, target in ((one, two), (two, one)):
                if source.established:
                    source.send(b"message" * 100)
                for raw in source.take_output():
                    data = bytearray(raw)
                    if step == when:
                        for position, value in flips:
                            mutated |= data[position % len(data)] != value
                            data[position % len(data)] = value
                        if reseal:
                            with contextlib.suppress(ValueError):
                                seal(data)
                        data += junk
                    step += 1
                    target.receive(bytes(data), 1)
    except PeerError:
        assert mutated or junk
        return
    for end in (one, two):
        with contextlib.suppress(PeerError):
            end.tick(10**15)


@settings(max_examples=100)
@given(st.integers(0, 20), st.binary(max_size=300))
def test_an_unkeyed_session_survives_any_well_formed_frame(kind, payload):
    one, two = session("a", initiator=True, key=None), session("b", initiator=False, key=None)
    talk(one, two)
    try:
        two.receive(frame(payload, kind=kind, sequence=one.channel.sequence_out), 1)
    except PeerError:
        return


@settings(max_examples=100)
@given(st.integers(0, 20), st.binary(max_size=300))
def test_a_fresh_session_survives_any_well_formed_frame(kind, payload):
    try:
        session("b", initiator=False).receive(frame(payload, kind=kind), 1)
    except PeerError:
        return


def test_pings_that_are_never_read_do_not_pile_up():
    one, two = session("a", initiator=True, key=None), session("b", initiator=False, key=None)
    talk(one, two)
    with pytest.raises(PeerError, match="does not read"):  # noqa: PT012
        for number in range(5000):
            two.receive(frame(bytes(8), kind=5, sequence=one.channel.sequence_out + number), 1)
