"""Bytes in order over one reliable connection (RC): what is sent how, and when it may be. No device, no memory.

Every message takes one receive that the other side has posted, so a credit is a posted receive, and a sender without
one waits: the device never has to say "receiver not ready". Three ways, by how much is queued:

    inline    up to INLINE_BYTES, a SEND whose bytes stand in the work request
    medium    up to a slot, a SEND into the receiver's slab of slots
    bulk      up to a bulk slot, WRITEs into the receiver's ring of bulk slots, the last one WITH_IMM

Each message has an immediate of 32 bits: receives posted again since the last one (9 bits), bulk slots that are free
again (4), and the length of a bulk message (19), whose last WRITE tells only its own. The last credit is for messages
that only give credits back, so two sides that have both spent theirs still get out; such a message is due when half of
the slots is owed, so it does not call for another.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

import msgspec

from nova.errors import PeerError

VERSION = 1
INLINE_BYTES = 256
SLOT_BYTES = 8 * 1024
SLOTS = 64
BULK_BYTES = 256 * 1024
BULK_SLOTS = 4
WRITE_BYTES = 64 * 1024
"""A bulk message goes in WRITEs of so much: the first packets travel while the last are being posted."""
SIGNAL_EVERY = 32
SEND_QUEUE = 128
"""Work requests under way; a bulk message takes up to BULK_BYTES / WRITE_BYTES of them."""

LENGTH_BITS, BULK_BITS, CREDIT_BITS = 19, 4, 9
LENGTH_MAX, BULK_MAX, CREDIT_MAX = (1 << LENGTH_BITS) - 1, (1 << BULK_BITS) - 1, (1 << CREDIT_BITS) - 1


class Offer(msgspec.Struct, frozen=True, array_like=True, tag="offer", forbid_unknown_fields=True):
    """How one side can be reached, told to the other over a proved session."""

    version: int
    gid: str
    lid: int
    qpn: int
    psn: int
    mtu: int
    """As verbs count it: 1 is 256 bytes, 5 is 4096."""
    slots: int
    slot_bytes: int
    bulk_address: int
    bulk_rkey: int
    bulk_slots: int
    bulk_bytes: int

    def check(self) -> None:
        """Raises PeerError for sizes that cannot be: they come from outside."""
        if self.version != VERSION:
            raise PeerError(
                f"peer speaks version {self.version} of the RDMA flow, this node version {VERSION}: upgrade the older"
            )
        try:
            ipaddress.IPv6Address(self.gid)
        except ValueError:
            raise PeerError(f"peer offers the address {self.gid!r}, which is none") from None
        for name, value, least, most in (
            ("slots", self.slots, 4, CREDIT_MAX),
            ("slot_bytes", self.slot_bytes, INLINE_BYTES, LENGTH_MAX),
            ("bulk_slots", self.bulk_slots, 1, BULK_MAX),
            ("bulk_bytes", self.bulk_bytes, self.slot_bytes, LENGTH_MAX),
            ("qpn", self.qpn, 0, 0xFFFFFF),
            ("psn", self.psn, 0, 0xFFFFFF),
            ("lid", self.lid, 0, 0xFFFF),
            ("mtu", self.mtu, 1, 5),
            ("bulk_rkey", self.bulk_rkey, 0, 0xFFFFFFFF),
            ("bulk_address", self.bulk_address, 0, (1 << 64) - 1 - self.bulk_slots * self.bulk_bytes),
        ):
            if not least <= value <= most:
                raise PeerError(f"peer offers {name} {value}; the limits are {least} and {most}")


@dataclass(frozen=True, slots=True)
class Step:
    """One message to post. A `credit` has no bytes; `slot` is the bulk slot at the peer."""

    kind: Literal["send", "bulk", "credit"]
    size: int
    slot: int
    immediate: int
    signaled: bool


class Flow:
    """One side of one connection: what it may send and what it owes."""

    def __init__(
        self,
        *,
        slots: int = SLOTS,
        bulk_slots: int = BULK_SLOTS,
        peer_slots: int = SLOTS,
        peer_slot_bytes: int = SLOT_BYTES,
        peer_bulk_slots: int = BULK_SLOTS,
        peer_bulk_bytes: int = BULK_BYTES,
    ) -> None:
        self._slots, self._bulk_slots = slots, bulk_slots
        self._peer_slots, self._peer_bulk_slots = peer_slots, peer_bulk_slots
        self._slot_bytes = min(SLOT_BYTES, peer_slot_bytes)
        self._bulk_bytes = min(BULK_BYTES, peer_bulk_bytes)
        self.credits = peer_slots
        self.bulk_free = peer_bulk_slots
        self.owed = 0
        self.bulk_owed = 0
        self._bulk_next = 0
        self._unsignaled = 0
        self.requests = 0  # work requests under way, messages in slots of the send slab, bulk slots: until reaped
        self.messages = 0
        self.bulks = 0
        self._signaled: list[tuple[int, int, int]] = []
        self._since = (0, 0, 0)

    # -- out -----------------------------------------------------------------------------------------------------

    def step(self, queued_bytes: int, *, last: bool = False) -> Step | None:
        """What to post now, None if nothing may be.

        last    nothing follows: the completion of what is posted last is asked for, by a message of its own if need be
        """
        owes = self.owed * 2 >= self._slots or self.bulk_owed * 2 >= self._bulk_slots
        if self.credits < 1 or self.requests + 8 > SEND_QUEUE or self.messages >= SLOTS:
            return None
        if queued_bytes and self.credits > 1:
            if queued_bytes <= self._slot_bytes:
                return self._take("send", queued_bytes, last)
            if self.bulk_free and self.bulks < BULK_SLOTS:
                size = min(queued_bytes, self._bulk_bytes)
                return self._take("bulk", size, last and size == queued_bytes)
        return self._take("credit", 0, last) if owes or (last and self._unsignaled) else None

    def _take(self, kind: Literal["send", "bulk", "credit"], size: int, last: bool) -> Step:
        requests = -(-size // WRITE_BYTES) if kind == "bulk" else 1
        slot = self._bulk_next
        if kind == "bulk":
            self.bulk_free -= 1
            self._bulk_next = (slot + 1) % self._peer_bulk_slots
        credits, self.owed = min(self.owed, CREDIT_MAX), max(0, self.owed - CREDIT_MAX)
        bulk, self.bulk_owed = self.bulk_owed, 0
        self.credits -= 1
        self._unsignaled += 1
        signaled = kind == "bulk" or last or self._unsignaled >= SIGNAL_EVERY
        taken = (requests, 1, kind == "bulk")
        self._since = (self._since[0] + taken[0], self._since[1] + taken[1], self._since[2] + taken[2])
        self.requests += requests
        self.messages += 1
        self.bulks += kind == "bulk"
        if signaled:
            self._signaled.append(self._since)
            self._since, self._unsignaled = (0, 0, 0), 0
        length = size if kind == "bulk" else 0
        return Step(kind, size, slot, credits << 23 | bulk << LENGTH_BITS | length, signaled)

    def completed(self) -> None:
        """A signaled message and all before it have arrived."""
        requests, messages, bulks = self._signaled.pop(0)
        self.requests -= requests
        self.messages -= messages
        self.bulks -= bulks

    @property
    def idle(self) -> bool:
        """Everything that was posted is known to have arrived."""
        return not self._signaled and not self._unsignaled

    # -- in ------------------------------------------------------------------------------------------------------

    def arrived(self, immediate: int, *, bulk: bool) -> int:
        """A message came: its credits count, and it is owed. The length of a bulk message.

        raises  PeerError for credits that were never given out, and lengths that do not fit
        """
        credits, freed, length = (
            immediate >> 23,
            immediate >> LENGTH_BITS & BULK_MAX,
            immediate & LENGTH_MAX,
        )
        self.credits += credits
        self.bulk_free += freed
        if self.credits > self._peer_slots or self.bulk_free > self._peer_bulk_slots:
            raise PeerError(
                f"peer gives back {credits} credits and {freed} bulk slots; it has {self._peer_slots} and "
                f"{self._peer_bulk_slots} in all"
            )
        if length > BULK_BYTES or bool(length) is not bulk:
            raise PeerError(f"peer tells of {length} bytes in a {'bulk slot' if bulk else 'message'}")
        self.owed += 1
        self.bulk_owed += bulk
        return length
