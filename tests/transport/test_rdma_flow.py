"""The flow over RDMA without a device: two sides and two queues that keep order, as a reliable connection does."""

from __future__ import annotations

import random
from collections import deque

import msgspec
import pytest

from nova.errors import PeerError
from nova.transport.rdma.flow import (
    BULK_BYTES,
    BULK_SLOTS,
    CREDIT_MAX,
    INLINE_BYTES,
    SEND_QUEUE,
    SIGNAL_EVERY,
    SLOT_BYTES,
    SLOTS,
    VERSION,
    WRITE_BYTES,
    Flow,
    Offer,
)

OFFER = Offer(VERSION, "::ffff:10.0.0.1", 0, 17, 5, 3, SLOTS, SLOT_BYTES, 4096, 7, BULK_SLOTS, BULK_BYTES)


class Side:
    """A flow with a device that has just so many receives posted, and bulk slots with something in them."""

    def __init__(self):
        self.flow = Flow()
        self.queue = bytearray()
        self.got = bytearray()
        self.posted = SLOTS
        self.wire = deque()
        self.unacknowledged = deque()
        self.bulk = [b""] * BULK_SLOTS

    def pump(self, peer):
        moved = False
        while (step := self.flow.step(len(self.queue))) is not None:
            moved = True
            assert step.kind != "credit" or step.size == 0
            data, self.queue = bytes(self.queue[: step.size]), self.queue[step.size :]
            if step.kind == "bulk":
                assert peer.bulk[step.slot] == b"", "a bulk slot is overwritten"
                peer.bulk[step.slot] = data
                assert SLOT_BYTES < step.size <= BULK_BYTES
            else:
                assert step.size <= SLOT_BYTES
            self.wire.append((step, data))
        assert self.flow.requests <= SEND_QUEUE
        assert self.flow.messages <= SLOTS
        assert self.flow.bulks <= BULK_SLOTS
        return moved

    def receive(self, peer, chance):
        """Some of what is on the wire arrives; what was signaled is acknowledged, now or later."""
        moved = False
        for _ in range(chance.randrange(len(peer.wire) + 1)):
            step, data = peer.wire.popleft()
            assert self.posted > 0, "receiver not ready"
            self.posted -= 1
            length = self.flow.arrived(step.immediate, bulk=step.kind == "bulk")
            if step.kind == "bulk":
                assert length == len(data)
                self.bulk[step.slot] = b""
            self.got += data
            self.posted += 1  # posted again before the credit is told
            if step.signaled:
                peer.unacknowledged.append(step)
            moved = True
        while peer.unacknowledged and chance.random() < 0.7:
            peer.unacknowledged.popleft()
            peer.flow.completed()
            moved = True
        return moved


@pytest.mark.parametrize("seed", range(12))
def test_all_bytes_arrive_in_order_and_no_receive_is_ever_missing(seed):
    chance = random.Random(seed)
    one, two = Side(), Side()
    sent = {one: bytearray(), two: bytearray()}
    largest = chance.choice([100, 9000, 600_000])
    for _ in range(300):
        for side, peer in ((one, two), (two, one)):
            if chance.random() < 0.5:
                data = chance.randbytes(chance.randrange(largest))
                side.queue += data
                sent[side] += data
            side.pump(peer)
            side.receive(peer, chance)
    idle = 0
    while idle < 50:  # whatever is left gets through, with nobody sending anything new
        moved = [side.pump(peer) | side.receive(peer, chance) for side, peer in ((one, two), (two, one))]
        idle = 0 if any(moved) else idle + 1
    assert two.got == sent[one]
    assert one.got == sent[two]
    for side, peer in ((one, two), (two, one)):
        if (step := side.flow.step(0, last=True)) is not None:
            side.wire.append((step, b""))
        while not side.flow.idle:
            peer.receive(side, chance)
        assert not side.queue


def test_the_last_credit_is_kept_for_giving_credits_back():
    flow = Flow()
    while flow.step(10):
        if flow.messages == SIGNAL_EVERY:
            flow.completed()
    assert flow.credits == 1
    for _ in range(SLOTS // 2):
        flow.arrived(0, bulk=False)
    step = flow.step(10)
    assert (step.kind, step.immediate >> 23) == ("credit", SLOTS // 2)
    assert flow.credits == 0
    assert flow.step(10) is None


def test_a_message_of_credits_only_does_not_call_for_another():
    one, two = Flow(), Flow()
    for _ in range(SLOTS // 2):
        two.arrived(one.step(1).immediate, bulk=False)
    step = two.step(0)
    assert step.kind == "credit"
    one.arrived(step.immediate, bulk=False)
    assert one.step(0) is None
    assert two.step(0) is None


def test_every_so_many_messages_one_completion_is_asked_for_and_every_bulk():
    flow = Flow()
    assert [flow.step(1).signaled for _ in range(SIGNAL_EVERY)] == [False] * (SIGNAL_EVERY - 1) + [True]
    assert flow.step(SLOT_BYTES + 1).signaled
    assert flow.step(1, last=True).signaled


def test_a_bulk_message_takes_as_many_requests_as_it_has_writes():
    flow = Flow()
    assert flow.step(BULK_BYTES + 5).size == BULK_BYTES
    assert flow.requests == BULK_BYTES // WRITE_BYTES
    for _ in range(BULK_SLOTS - 1):
        assert flow.step(BULK_BYTES).kind == "bulk"
    assert flow.step(BULK_BYTES) is None
    flow.completed()
    assert flow.step(BULK_BYTES) is None  # here is room again, there is not
    flow.arrived(1 << 19, bulk=False)
    assert flow.step(BULK_BYTES).slot == 0


@pytest.mark.parametrize(
    ("immediate", "bulk", "complaint"),
    [
        (1 << 23, False, "gives back 1 credits"),
        (CREDIT_MAX << 23, False, "gives back 511 credits"),
        (1 << 19, False, "1 bulk slots"),
        (5, False, "5 bytes in a message"),
        (0, True, "0 bytes in a bulk slot"),
        (BULK_BYTES + 1, True, "262145 bytes"),
    ],
)
def test_what_a_peer_cannot_honestly_say_is_refused(immediate, bulk, complaint):
    with pytest.raises(PeerError, match=complaint):
        Flow().arrived(immediate, bulk=bulk)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", VERSION + 1),
        ("slots", 3),
        ("slots", CREDIT_MAX + 1),
        ("slot_bytes", INLINE_BYTES - 1),
        ("bulk_slots", 0),
        ("bulk_slots", 16),
        ("bulk_bytes", SLOT_BYTES - 1),
        ("bulk_bytes", 1 << 19),
        ("qpn", 1 << 24),
        ("psn", -1),
        ("mtu", 6),
        ("lid", 1 << 16),
        ("bulk_rkey", 1 << 32),
        ("bulk_address", (1 << 64) - 1),
        ("gid", "10.0.0.1"),
    ],
)
def test_an_offer_that_cannot_be_is_refused_with_the_value(field, value):
    OFFER.check()
    with pytest.raises(PeerError, match=str(value)):
        msgspec.structs.replace(OFFER, **{field: value}).check()
