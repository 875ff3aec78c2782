"""Bytes from strangers: every decoder of clocks and CRDTs answers damage with an error of ours, and never with a lie.

NOVA_FUZZ_SECONDS makes the mutation run last as long as you like (0.4 s a decoder without it); run it in a
sanitizer build to see the kernels checked too.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest

from nova.clock import CausalContext, VectorClock
from nova.crdt import GCounter, ORMap
from nova.digest import digest128
from nova.errors import CorruptionError, UsageError
from tests.fuzz.targets.decoders import KINDS as TYPES
from tests.fuzz.targets.decoders import a_replica, read, sealed

SECONDS = float(os.environ.get("NOVA_FUZZ_SECONDS", "0.4"))


def seed_of(kind: Any) -> Any:
    if kind is VectorClock:
        return VectorClock({"a": 1, "b": 300, 7: 2**64 - 1, b"x": 5})
    if kind is CausalContext:
        return CausalContext({"a": 5, "bé": 2**63}, [("a", 7), ("a", 9), ("c", 3)])
    return a_replica(kind)


def damaged(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(4, max(5, len(out)))
        what = rng.randrange(6)
        if what == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0xC1, 0xDB, 0xDD, 0xDF, 0xCB, 0xC7, rng.randrange(256)))
        elif what == 2:
            del out[at : at + rng.randrange(1, 9)]
        elif what == 3:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif what == 4:
            out[at:at] = out[rng.randrange(4, len(out) + 1) :][: rng.randrange(1, 24)]
        else:
            out[at:at] = b"\xff" * rng.randrange(1, 10) + b"\x01"
    return bytes(out)


def hammer(seeds: list[bytes], read: Any, write: Any) -> tuple[int, int]:
    """Feed damaged bytes until time is up. What is accepted must be canonical: it writes back the very same bytes."""
    rng = random.Random(digest128(seeds[0]))
    until = time.monotonic() + SECONDS
    accepted = rejected = 0
    while time.monotonic() < until:
        body = damaged(rng.choice(seeds)[:-8], rng)
        data = sealed(body) if rng.random() < 0.95 else body
        try:
            found = read(data)
        except (CorruptionError, UsageError):
            rejected += 1
        else:
            accepted += 1
            assert write is None or write(found) == data
    return accepted, rejected


@pytest.mark.parametrize("kind", [VectorClock, CausalContext, *TYPES], ids=lambda kind: kind.__name__)
def test_damaged_states_are_refused_or_canonical(kind):
    def read(data: bytes) -> Any:
        found = kind.from_bytes(data)
        if kind in TYPES:
            _ = found.value, found.digest()
            if len(seeds) < 40 and rng.random() < 0.05:
                seeds.append(data)
        return found

    rng = random.Random(3)
    seeds = [seed_of(kind).to_bytes(), kind().to_bytes()]
    accepted, rejected = hammer(seeds, read, lambda found: found.to_bytes())
    assert accepted
    assert rejected


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_damaged_deltas_are_refused_whole_or_applied(kind):
    source = seed_of(kind)
    base = kind(actor="reader")
    half = kind(actor="z")
    seeds = [source.delta_since(), source.delta_since({"a": 3}), source.delta_since(source.context)]

    def read(data: bytes) -> Any:
        for replica in (base, half.fork(None).merge(source)):
            target = replica.fork(None)
            before = target.to_bytes()
            try:
                target.apply_delta(data)
            except (CorruptionError, UsageError):
                assert target.to_bytes() == before
                raise
            assert kind.from_bytes(target.to_bytes()) == target
            _ = target.value

    _, rejected = hammer(seeds, read, None)
    assert rejected


@pytest.mark.parametrize("kind", [VectorClock, CausalContext, *TYPES], ids=lambda kind: kind.__name__)
def test_every_cut_and_every_length_is_refused(kind):
    data = seed_of(kind).to_bytes()
    body = data[:-8]
    assert sealed(body) == data
    for end in range(len(body)):
        with pytest.raises(CorruptionError):
            read(kind, sealed(body[:end]))
    for more in (b"\0", b"\xff" * 9 + b"\x01"):
        with pytest.raises(CorruptionError):
            read(kind, sealed(body + more))
        for at in range(4, len(body)):
            try:
                found = read(kind, sealed(body[:at] + more + body[at + 1 :]))
            except (CorruptionError, UsageError):
                continue
            assert found.to_bytes()[:-8] == body[:at] + more + body[at + 1 :]


STRANGE_TOTAL = b"\1\0\0\0\3\0\2\xad\2"
"""One row: event 3 of b, a total of 301."""


def test_a_stranger_cannot_leave_two_totals_of_one_actor():
    mine = GCounter(actor="b")
    mine.increment(300)
    reader = GCounter().merge(mine)
    before = reader.to_bytes()
    # Each knows event 3 of b: one neither of the two before, the other says that the reader is to keep event 1.
    state = sealed(b"NVR\1\1\1\2\1b\1\3\0" + STRANGE_TOTAL)
    news = b"\1\2\1b\1\2\1"
    delta = sealed(b"NVD\2\1\1\2\1b\1\1\2\1" + news + b"\0" + STRANGE_TOTAL)
    with pytest.raises(CorruptionError, match="event 3 of actor 'b' is two different writes"):
        reader.merge(GCounter.from_bytes(state))
    with pytest.raises(CorruptionError, match="event 3 of actor 'b' is two different writes"):
        reader.apply_delta(delta)
    assert reader.to_bytes() == before
    assert GCounter.from_bytes(before) == reader


def test_a_stranger_cannot_leave_two_totals_in_a_map():
    mine = ORMap(actor="b")
    mine.at("k", GCounter).increment(300)
    reader = ORMap().merge(mine)
    row = b"\1\1\1k" + STRANGE_TOTAL[2:]
    data = sealed(b"NVR\1\x08\1\2\1b\1\3\0\1" + row)
    with pytest.raises(CorruptionError, match="event 3 of actor 'b' is two different writes"):
        reader.merge(ORMap.from_bytes(data))
    mine.at("k", GCounter).increment()
    mine.at("k", GCounter).increment()
    assert reader.merge(mine).value == {"k": 302}


def test_a_hostile_length_costs_no_memory():
    import tracemalloc

    huge = b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"
    tracemalloc.start()
    for magic in (b"NVC\x01", b"NVX\x01", *(b"NVR\x01" + bytes([n]) for n in range(1, 12)), b"NVT\x01"):
        for kind in (VectorClock, CausalContext, *TYPES):
            for head in (b"", b"\x01\x02\x01a", b"\x01\x02\x01a\x01\x01\x05"):
                with pytest.raises(CorruptionError):
                    kind.from_bytes(sealed(magic + head + huge + b"\0" * 50))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
