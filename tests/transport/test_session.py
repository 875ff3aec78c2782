"""The session alone: round trips, what tiny messages cost, keys of the two directions."""

import pytest

from nova._native.frame import MESSAGE_COST_BYTES_MIN, encode, seal
from nova.errors import PeerError
from nova.transport.base import Identity, Limits
from nova.transport.session import FrameType, Session

KEY = bytes(range(32))
LIMITS = Limits(credit_bytes=64 * 1024, queue_bytes_max=256 * 1024)


def session(node, *, initiator, key=KEY):
    identity = Identity(node, "r", "c", 1, "")
    return Session(identity, key=key, initiator=initiator, nonce=node.encode() * 32, now_ns=0, limits=LIMITS)


def deliver(source, target, now_ns=0):
    """All that `source` has to say; the events at `target`."""
    return target.receive(b"".join(source.take_output()), now_ns)


def pair(key=KEY):
    one, two = session("a", initiator=True, key=key), session("b", initiator=False, key=key)
    for _ in range(4):
        deliver(one, two)
        deliver(two, one)
    return one, two


def test_a_round_trip_is_taken_down_at_once_and_up_by_an_eighth():
    one, two = pair()
    now_ns, known = 0, []
    for sample_ns in (80_000, 20_000, 100_000, 20_001, 7_000):
        one.channel.rtt_ns = 0 if not known else one.rtt_ns
        now_ns += 6_000_000_000
        one.tick(now_ns)
        deliver(one, two, now_ns)
        deliver(two, one, now_ns + sample_ns)
        known.append(one.rtt_ns)
    assert known == [80_000, 20_000, 30_000, 20_001, 7_000]


def test_a_flood_of_empty_messages_is_held_back_by_credit_and_queue():
    one, two = pair()
    sent = 0
    while one.send(b""):
        sent += 1
    assert sent <= LIMITS.queue_bytes_max // MESSAGE_COST_BYTES_MIN
    got = []
    for _ in range(50):
        while one.send(b""):
            sent += 1
        got += deliver(one, two)
        deliver(two, one)
    assert len(got) == LIMITS.credit_bytes // MESSAGE_COST_BYTES_MIN
    two.consumed(got[:200])
    deliver(two, one)
    assert not deliver(one, two)  # the next credit comes once a quarter is free
    two.consumed(got[200:])
    deliver(two, one)
    assert len(deliver(one, two)) == len(got)


def test_a_peer_that_does_not_count_its_empty_messages_is_refused():
    one, two = pair(key=None)
    frame = encode(
        FrameType.DATA, 0, one.channel.sequence_out, bytes(4 * (LIMITS.credit_bytes // MESSAGE_COST_BYTES_MIN + 1))
    )
    seal(frame)
    with pytest.raises(PeerError, match="sent 64 bytes more than its credit"):
        two.receive(bytes(frame), 0)


def test_the_queue_is_empty_again_after_cut_and_tiny_messages():
    one, two = pair()
    for size in (0, 1, 59, 60, 61, 4092, 4093, 100_000, 0):
        assert one.send(bytes(size))
    got = []
    for _ in range(20):
        new = deliver(one, two)
        two.consumed(new)
        got += new
        deliver(two, one)
    assert [len(message) for message in got] == [0, 1, 59, 60, 61, 4092, 4093, 100_000, 0]
    assert one.queue_bytes == 0
    arrived, consumed, _ = two.channel.data_totals
    assert arrived == consumed == one.channel.data_totals[2]


@pytest.mark.parametrize("size", [10, 10_000])
def test_a_frame_sent_back_to_its_maker_is_refused(size):
    one, two = pair()
    assert one.channel.sequence_out == two.channel.sequence_out  # only the key tells the directions apart
    one.send(bytes(size))
    own = b"".join(one.take_output())
    with pytest.raises(PeerError, match="MAC is wrong"):
        one.receive(own, 0)


@pytest.mark.parametrize("size", [10, 10_000])
def test_a_body_changed_under_a_fresh_checksum_is_refused(size):
    one, two = pair()
    one.send(bytes(size))
    (frame,) = one.take_output()
    frame[-20] ^= 1
    seal(frame)
    with pytest.raises(PeerError, match="MAC is wrong"):
        two.receive(bytes(frame), 0)
