"""The compiled half of a session: however bytes are cut, keyed or not, with new peers and with old ones."""

import itertools
import random

import blake3 as reference
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nova._native.channel import LARGE_BYTES, Channel, keyed_hash, pool_bytes
from nova._native.frame import FrameParser, encode, seal
from nova.errors import PeerError, UsageError
from nova.transport.base import Identity, Limits
from nova.transport.session import CAPABILITIES, Session

KEY = bytes(range(32))
OLD = ("credit", "pieces")  # what peers of before offer
STEPS_MAX = 500  # a megabyte byte by byte would take minutes


def session(node, *, key=KEY, capabilities=CAPABILITIES, limits=None):
    return Session(
        Identity(node, "r", "c", 1, ""),
        key=key,
        initiator=node == "a",
        nonce=node.encode() * 32,
        now_ns=0,
        limits=limits or Limits(),
        capabilities=capabilities,
    )


def pair(**options):
    one, two = session("a", **options), session("b", **{**options, "capabilities": CAPABILITIES})
    for _ in range(4):
        for source, target in ((one, two), (two, one)):
            target.receive(b"".join(source.take_output()), 1)
    return one, two


def placed(channel, data, sizes):
    """Bytes by the way a socket takes: into the place that the channel names, as many as there is room for."""
    at, turn = 0, 0
    while at < len(data):
        room = channel.where()
        size = min(len(room), len(data) - at, max(sizes[turn % len(sizes)], len(data) // STEPS_MAX))
        room[:size] = data[at : at + size]
        channel.arrived(size, 1)
        at, turn = at + size, turn + 1


def exchange(one, two, messages, deliver):
    """Send all of `messages`, (payload, priority) each; what two gets, in order."""
    left, got = list(messages), []
    for _ in range(10_000):
        while left and one.send(*left[0]):
            left.pop(0)
        data = b"".join(one.take_output())
        deliver(two.channel, data)
        got += map(bytes, two.channel.recv_batch())
        one.receive(b"".join(two.take_output()), 1)
        if not left and not one.queue_bytes and not data:
            return got
    raise AssertionError("it does not end")


payloads = st.tuples(
    st.one_of(st.integers(0, 200), st.sampled_from([4091, 8191, 8192, 8193, 16383, 16384, 70_000, 300_000])),
    st.integers(0, 3),
    st.integers(0, 255),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(payloads, max_size=12),
    st.sampled_from([None, KEY]),
    st.sampled_from([OLD, CAPABILITIES]),
    st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    st.booleans(),
)
@example([(70_000, 0, 1), (5, 0, 2)], KEY, OLD, [1], False)
@example([(300_000, 0, 1), (5, 3, 2)], None, CAPABILITIES, [200_000], True)
def test_messages_arrive_whole_and_in_order_of_their_priority(made, key, capabilities, sizes, by_place):
    limits = Limits(credit_bytes=64 * 1024, queue_bytes_max=256 * 1024)
    one, two = pair(key=key, capabilities=capabilities, limits=limits)
    messages = [(bytes([fill]) * size, priority) for size, priority, fill in made]

    def fed(channel, data):
        at, turn = 0, 0
        while at < len(data):
            size = max(sizes[turn % len(sizes)], len(data) // STEPS_MAX)
            channel.feed(data[at : at + size], 1)
            at, turn = at + size, turn + 1

    got = exchange(one, two, messages, (lambda c, d: placed(c, d, sizes)) if by_place else fed)
    assert sorted(got) == sorted(payload for payload, _ in messages)
    for priority in range(4):
        mine = [payload for payload, p in messages if p == priority]
        shared = {payload for payload, p in messages if p != priority}
        assert [m for m in got if m in mine and m not in shared] == [m for m in mine if m not in shared]
    arrived, consumed, _ = two.channel.data_totals
    assert arrived == consumed == one.channel.data_totals[2]
    assert one.queue_bytes == 0


@pytest.mark.parametrize("key", [None, KEY])
def test_a_stream_may_be_cut_at_every_byte(key):
    one, two = pair(key=key)
    sent = [b"small", bytes(LARGE_BYTES + 7), b"", bytes(300)]
    for message in sent:
        one.send(message)
    data = b"".join(one.take_output())
    ends = 480  # the last message and what stands before it; between them is only the inside of the large one
    for cut in (*range(1, 100), *range(100, len(data) - ends, 61), *range(len(data) - ends, len(data))):
        _, two = pair(key=key)
        for part in (data[:cut], data[cut:]):
            two.channel.feed(part, 1)
        assert two.channel.recv_batch() == sent, cut
    _, two = pair(key=key)
    for position in range(len(data)):
        two.channel.feed(data[position : position + 1], 1)
    assert two.channel.recv_batch() == sent


@pytest.mark.parametrize("capabilities", [OLD, CAPABILITIES])
@pytest.mark.parametrize("size", [10, 20_000])
def test_no_message_is_handed_out_before_its_frame_is_proved(capabilities, size):
    one, two = pair(capabilities=capabilities)
    one.send(b"first" * 100)
    one.send(bytes(size))
    data = bytearray(b"".join(one.take_output()))
    two.channel.feed(data[:-1], 1)
    before = two.channel.waiting
    assert before < 2
    data[-1] ^= 1
    with pytest.raises(PeerError, match="checksum"):
        two.channel.feed(data[-1:], 1)
    assert two.channel.waiting == before
    with pytest.raises(PeerError, match="broken already"):
        two.channel.feed(b"", 1)


@pytest.mark.parametrize("capabilities", [OLD, CAPABILITIES])
@pytest.mark.parametrize("position", [0, 8, 15, 19, 24, 27, 28, 30, -17, -16, -1])
def test_a_changed_byte_under_a_fresh_checksum_is_refused(capabilities, position):
    one, two = pair(capabilities=capabilities)
    one.send(b"pay 100")
    (frame,) = one.take_output()
    frame[position] ^= 1
    try:
        seal(frame)
    except ValueError:
        return  # no frame any more
    with pytest.raises(PeerError):
        two.channel.feed(frame, 1)
    assert not two.channel.waiting


def test_with_an_old_peer_the_bytes_are_those_of_before():
    one, two = pair(capabilities=OLD)
    assert two.capabilities == set(OLD)
    one.send(b"abc")
    one.send(b"urgent", 3)
    frames = one.take_output()
    assert [frame[16:20] for frame in frames] == [bytes(4)] * len(frames)  # stream 0 only
    import hashlib
    import hmac

    def proof(label):
        return hmac.digest(KEY, b"nova session 1 " + label + b"\0" + one._transcript, "sha256")

    for frame in frames:
        mac = hashlib.blake2b(frame[:20] + frame[24:-16], key=proof(b"key of initiator"), digest_size=16).digest()
        assert frame[-16:] == mac
    one.send(bytes(5000))
    (frame,) = one.take_output()
    assert frame[-16:] == hmac.digest(proof(b"bulk key of initiator"), frame[:20] + frame[24:-16], "sha256")[:16]


def test_with_a_new_peer_the_mac_is_keyed_blake3():
    one, _ = pair()
    one.send(bytes(5000))
    (frame,) = one.take_output()
    key = one._proof("blake3 key of initiator")
    assert frame[-16:] == reference.blake3(frame[:20] + frame[24:-16], key=key).digest()[:16]


@given(st.lists(st.one_of(st.integers(0, 100), st.sampled_from([1024, 1025, 8191, 8192, 8193, 20_000])), max_size=6))
def test_a_hash_of_parts_is_the_hash_of_the_whole(sizes):
    parts = [random.Random(index).randbytes(size) for index, size in enumerate(sizes)]
    assert keyed_hash(KEY, parts) == reference.blake3(b"".join(parts), key=KEY).digest()


def test_an_urgent_message_waits_for_one_frame_at_most():
    one, two = pair()
    one.send(bytes(10_000_000))
    first = one.take_output(1)
    one.send(b"urgent", 3)
    second = one.take_output(1)
    two.channel.feed(b"".join(first + second), 1)
    assert two.channel.recv_batch() == [b"urgent"]


def test_an_old_peer_gets_a_message_to_its_end_first():
    one, two = pair(capabilities=OLD)
    one.send(bytes(600_000))
    out = one.take_output(1)
    one.send(b"urgent", 3)
    one.send(b"later", 0)
    out += one.take_output()
    two.channel.feed(b"".join(out), 1)
    assert [len(m) for m in two.channel.recv_batch()] == [600_000, 6, 5]


def test_each_lane_may_be_in_the_middle_of_a_message():
    one, two = pair()
    for priority in range(4):
        one.send(bytes([priority]) * 600_000, priority)
        out = b"".join(one.take_output(1))
        two.channel.feed(out, 1)
    assert not two.channel.waiting
    two.channel.feed(b"".join(one.take_output(10_000_000)), 1)
    assert [message[0] for message in two.channel.recv_batch()] == [3, 2, 1, 0]


def test_a_lane_that_was_not_agreed_on_is_refused():
    one, two = pair(key=None, capabilities=OLD)
    frame = encode(3, 1, one.channel.sequence_out, b"\0\0\0\1x")
    seal(frame)
    with pytest.raises(PeerError, match=r"of stream 1 from .* came where .* of stream 0 was due"):
        two.channel.feed(frame, 1)


def test_blocks_are_given_back_when_a_stream_breaks_in_the_middle():
    before = pool_bytes()[1]
    one, two = pair(key=None)
    one.send(bytes(3_000_000))
    data = b"".join(one.take_output())
    two.channel.feed(data[:1_000_000], 1)
    with pytest.raises(PeerError):
        two.channel.feed(bytes(300_000), 1)
    del one, two
    assert pool_bytes()[1] == before


def test_what_is_lent_is_given_back_when_the_channel_goes():
    data = bytearray(1_000_000)
    one, _ = pair(key=None)
    lent = one.channel.lend(data)
    with pytest.raises(BufferError):
        data.append(0)
    assert not lent.left
    del lent, one
    data.append(0)


def test_a_reclaimed_buffer_is_free_and_its_message_still_leaves():
    one, two = pair(key=None)
    data = bytearray(random.Random(1).randbytes(1_000_000))
    copy = bytes(data)
    lent = one.channel.lend(data)
    out = one.take_output(1)
    one.channel.reclaim(lent)
    one.channel.reclaim(lent)
    data[:] = bytes(len(data))
    data.clear()
    two.channel.feed(b"".join(out + one.take_output(10_000_000)), 1)
    assert two.channel.recv() == copy


def test_a_message_of_many_pieces_grows_and_the_next_one_fits_at_once():
    one, two = pair(key=None)
    for size in (2_000_000, 2_000_000, 100_000):
        one.send(bytes([size % 251]) * size)
        two.channel.feed(b"".join(one.take_output(10_000_000)), 1)
        one.receive(b"".join(two.take_output()), 1)
        assert two.channel.recv() == bytes([size % 251]) * size


def test_a_message_over_the_limit_is_refused_while_it_grows():
    one, two = pair(key=None, limits=Limits(message_bytes_max=1_000_000))
    body = (0x80000000 | 200_000).to_bytes(4, "big") + bytes(200_000)

    def send_a_piece(number):
        frame = encode(3, 0, one.channel.sequence_out + number, body)
        seal(frame)
        two.channel.feed(frame, 1)

    for number in range(5):
        send_a_piece(number)
    with pytest.raises(PeerError, match="message of 1200000 bytes and more is over the limit of 1000000"):
        send_a_piece(5)


def test_a_trace_context_before_the_payload_is_passed_over():
    one, two = pair(key=None)
    frame = encode(3, 0, one.channel.sequence_out, b"\0\0\0\5hello", bytes(24))
    seal(frame)
    for byte in frame:
        two.channel.feed(bytes([byte]), 1)
    assert two.channel.recv() == b"hello"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "without a message"),
        (b"\0\0", "ends 2 bytes after its last piece"),
        (b"\0\0\0\5abc", "a piece of 5 bytes stands in a frame that ends before it"),
        (b"\x80\0\0\0", "an empty piece that goes on"),
        (b"\x80\0\0\1a\0\0\0\1b", "is not the last one of its frame"),
    ],
)
def test_a_data_frame_that_cannot_be_is_named(body, complaint):
    one, two = pair(key=None)
    frame = encode(3, 0, one.channel.sequence_out, body)
    seal(frame)
    with pytest.raises(PeerError, match=complaint):
        two.channel.feed(frame, 1)


@pytest.mark.parametrize(
    ("kind", "body", "complaint"),
    [
        (4, bytes(7), "credit of 7 bytes; it has 8"),
        (5, bytes(9), "ping of 9 bytes"),
        (6, b"", "pong of 0 bytes"),
        (7, bytes(5000), "goodbye of 5000 bytes"),
        (1, b"", "frame of type 1 from node 'a' does not belong"),
        (200, b"", "type 200"),
    ],
)
def test_a_control_frame_that_cannot_be_is_named(kind, body, complaint):
    one, two = pair(key=None)
    frame = encode(kind, 0, one.channel.sequence_out, body)
    seal(frame)
    with pytest.raises(PeerError, match=complaint):
        two.channel.feed(frame, 1)


def test_every_frame_that_leaves_is_one_that_the_parser_of_frames_reads():
    one, _ = pair(limits=Limits(frame_bytes_max=8192))
    for size in (0, 10, 8000, 9000, 50_000):
        one.send(bytes(size))
    frames = one.take_output()
    read = FrameParser(8192).feed(b"".join(frames))
    assert [f.sequence for f in read] == list(range(read[0].sequence, read[0].sequence + len(frames)))
    assert all(len(frame) <= 8192 + 24 for frame in frames)


def test_a_channel_cannot_be_made_with_other_lanes_or_keys():
    names = """sequence_in sequence_out frame_bytes_max message_bytes_max send_bytes_max payload_bytes
        queue_bytes_max credit_bytes may_send idle_ns ping_ns now_ns sent_bytes received_bytes"""
    rest = dict.fromkeys(names.split(), 0)
    with pytest.raises(UsageError, match="3 lanes"):
        Channel("x", mac_in=None, mac_out=None, lanes=3, **rest)
    with pytest.raises(UsageError, match="MAC key of 5 bytes"):
        Channel("x", mac_in=b"short", mac_out=None, lanes=1, **rest)


def test_a_goodbye_in_the_middle_of_a_message_is_no_goodbye():
    one, two = pair(key=None)
    one.send(bytes(600_000))
    out = one.take_output(1)
    one.close("enough", discard=True)
    with pytest.raises(PeerError, match="said goodbye in the middle of a message"):
        two.channel.feed(b"".join(out + one.take_output()), 1)


@pytest.mark.parametrize("taken", ["batch", "each", "slab", "never"])
def test_messages_that_share_a_block_give_it_back_together(taken):
    before = pool_bytes()[1]
    one, two = pair(key=None)
    for number in range(300):
        one.send(b"%d" % number)
    two.channel.feed(b"".join(one.take_output()), 1)
    if taken == "batch":
        got = two.channel.recv_batch()
    elif taken == "each":
        got = [two.channel.recv() for _ in range(300)]
    elif taken == "slab":
        data, offsets = two.channel.recv_slab()
        got = [data[a:b] for a, b in itertools.pairwise(offsets)]
        del data, offsets
    else:
        got = [b"%d" % number for number in range(300)]
    del one, two
    assert got == [b"%d" % number for number in range(300)]
    del got
    assert pool_bytes()[1] == before


@pytest.mark.parametrize("step", [1009, 40_000])
def test_small_messages_fill_slab_after_slab(step):
    one, two = pair(key=None)
    sent = [random.Random(n).randbytes(n % 700) for n in range(2000)]
    for message in sent:
        one.send(message)
    data = b"".join(one.take_output(10_000_000))
    assert len(data) > 4 * 131_072
    placed(two.channel, data, [step])
    assert two.channel.recv_batch() == sent
