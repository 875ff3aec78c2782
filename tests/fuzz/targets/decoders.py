"""What the fuzzer calls with bytes, for the decoders that are written in Cython; and where all targets begin from.

A target is a function of bytes. It returns if they are refused with an error of ours, or accepted and sound; anything
else that it raises is a finding, as is whatever the sanitizers find beneath. Sums are made right first: no fuzzer
guesses them, and no stranger has to. `SEEDS` has a few inputs of each target, from real objects.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any

from nova._native.audit import blake3, blake3_derive
from nova._native.frame import encode, seal
from nova.clock import CausalContext, ClockBatch, DottedVersionVector, VectorClock
from nova.conflict.audit import (
    MAGIC,
    AuditChain,
    ChainMark,
    decode_event,
    describe,
    explain,
    export_lines,
    import_lines,
    verify,
)
from nova.crdt import (
    RGA,
    BoundedCounter,
    EnableWinsFlag,
    GCounter,
    GSet,
    LWWMap,
    LWWRegister,
    MVRegister,
    ORMap,
    ORSet,
    PNCounter,
    RGAList,
    TwoPSet,
)
from nova.crdt.keyspace import Keyspace, batch_head
from nova.digest import Reconciler, digest128
from nova.errors import CorruptionError, PeerError, UnavailableError, UsageError

KINDS: list[Any] = [
    GCounter,
    PNCounter,
    GSet,
    LWWRegister,
    MVRegister,
    ORSet,
    LWWMap,
    ORMap,
    TwoPSet,
    EnableWinsFlag,
    BoundedCounter,
    RGA,
    RGAList,
]
CLOCKS: list[Any] = [VectorClock, DottedVersionVector, CausalContext]
REFUSED = (CorruptionError, PeerError, UnavailableError, UsageError)
CHECK_SEED = 0x4E56
SUM_BYTES = 8


def sealed(body: bytes) -> bytes:
    return body + digest128(body, CHECK_SEED)[:SUM_BYTES]


# --- CRDTs: the first byte says which type ---------------------------------------------------------------------------


def require_sound(replica: Any) -> None:
    """It reads, digests, copies, merges with itself unchanged, and all of it goes by a delta too."""
    data = replica.to_bytes()
    kind = type(replica)
    _ = replica.value, replica.context
    assert kind.from_bytes(data).to_bytes() == data
    assert kind.from_bytes(data).digest() == replica.digest()
    assert replica.fork(None).merge(kind.from_bytes(data)).to_bytes() == data
    assert kind().apply_delta(replica.delta_since()).to_bytes() == data
    if kind in (RGA, RGAList):
        assert replica._check() == 0
    if kind is RGA:
        assert "".join(text for text, _ in replica.spans) == replica.text


def read(kind: Any, data: bytes) -> Any:
    """All of a state: the history of a sequence is read when it is needed, as it is here."""
    replica = kind.from_bytes(data)
    if kind in (RGA, RGAList):
        replica.digest()
    return replica


def state(data: bytes) -> None:
    """A whole state from a stranger, alone and merged into a replica that has its own."""
    kind = KINDS[data[0] % len(KINDS)] if data else RGA
    whole = sealed(data[1:])
    try:
        replica = read(kind, whole)
    except REFUSED:
        return
    assert replica.to_bytes() == whole
    require_sound(replica)
    mine = BASES[kind].fork(None)
    before = mine.to_bytes()
    try:
        mine.merge(replica)
    except REFUSED:
        assert mine.to_bytes() == before
    else:
        require_sound(mine)
        assert mine.merge(replica).to_bytes() == mine.to_bytes()


def delta(data: bytes) -> None:
    """A delta from a stranger, for a replica that knows nothing and for one that knows something."""
    kind = KINDS[data[0] % len(KINDS)] if data else RGA
    whole = sealed(data[1:])
    for mine in (kind(), BASES[kind].fork(None)):
        before = mine.to_bytes()
        try:
            mine.apply_delta(whole)
        except REFUSED:
            assert mine.to_bytes() == before
        else:
            require_sound(mine)
            after = mine.to_bytes()
            assert mine.apply_delta(whole).to_bytes() == after


# --- clocks ----------------------------------------------------------------------------------------------------------


def clock(data: bytes) -> None:
    """A clock, dotted vector or context from a stranger."""
    kind = CLOCKS[data[0] % len(CLOCKS)] if data else VectorClock
    whole = sealed(data[1:])
    try:
        found = kind.from_bytes(whole)
    except REFUSED:
        return
    assert found.to_bytes() == whole
    assert found == kind.from_bytes(whole)
    if kind is CausalContext:
        twin = found.copy()
        twin.merge(found)
        assert twin == found
        assert found.covers(twin)
        mine = CausalContext({"a": 4}, [("b", 7)])
        twin.merge(mine)
        mine.merge(found)
        assert mine == twin
        assert mine.covers(found)
        assert CausalContext.from_bytes(mine.to_bytes()) == mine
    elif kind is DottedVersionVector:
        assert hash(found) == hash(kind.from_bytes(whole))
        assert DottedVersionVector(found.vector, found.dot) == found
        assert found.known_to(DottedVersionVector.join([found]))
    else:
        mine = VectorClock({"a": 4, 7: 2, b"x": 9})
        both = found.merge(mine)
        assert both == mine.merge(found)
        assert found <= both >= mine
        assert VectorClock.from_bytes(both.to_bytes()) == both
        batch = ClockBatch.from_clocks([found, mine, both])
        assert [batch[i] for i in range(3)] == [found, mine, both]
        assert batch.merge_all() == both


# --- sets that are compared ------------------------------------------------------------------------------------------

IDS = [i * 0x9E3779B97F4A7C15 % 2**64 for i in range(1, 101)]


def pieces(data: bytes) -> None:
    """What a stranger sends as its sketch, or as cells in up to two pieces: the first byte is the size of the first."""
    if not data:
        return
    sent = [part for part in (data[1 : 1 + 4 * data[0]], data[1 + 4 * data[0] :]) if part]
    try:
        found = OURS.decode(*sent)
    except REFUSED:
        return
    if found is None:
        return
    # It is believed only if it explains the other side's sum.
    assert len(set(found.here)) == len(found.here)
    assert len(set(found.there)) == len(found.there)
    theirs = Reconciler(IDS, seed=OURS_SEED, cells=16)
    for id in found.there:
        theirs.add(id)
    for id in found.here:
        theirs.remove(id)
    assert theirs.digest() == sent[0][2:18]


OURS_SEED = 3
OURS = Reconciler(IDS, seed=OURS_SEED, cells=256)


# --- the keyspace ----------------------------------------------------------------------------------------------------


def a_keyspace(actor: str) -> tuple[Keyspace, list[bytes]]:
    """A replica with values, a removal, siblings and two writers; and the batches that made it."""
    one, two = Keyspace("a~1"), Keyspace("b~1")
    batches = []
    for n in range(4):
        one.write(f"k{n % 2}", 1, [("/p", b"x" * n), ("", b"y")], ["/q"], False, None, n + 1)
    batches.append(one.close_batch()[2])  # type: ignore[index]
    two.receive(batches[0])
    two.write("k0", 1, [("/p", b"z")], [], False, None, 9)
    one.write("k0", 1, [("/p", b"w")], [], False, None, 9)
    one.write("k1", 0, [], [], True, None, 10)
    batches += [two.close_batch()[2], one.close_batch()[2]]  # type: ignore[index]
    mine = Keyspace(actor)
    for batch in batches:
        mine.receive(batch)
    return mine, batches


def require_same_elsewhere(space: Keyspace) -> None:
    for entry in space.entries.values():
        for _, rows in entry.live():
            dots = [row.write.dot for row in rows]
            assert len(set(dots)) == len(dots) > 0
    copy = Keyspace("copy~1")
    copy.join(space.state())
    assert copy.digest == space.digest
    assert copy.leaf_digests() == space.leaf_digests()
    assert copy.clock == space.clock
    assert space.join(copy.state()) == []


def keyspace(data: bytes) -> None:
    """A batch, state or summary from a stranger, by the first byte; for a new replica and for one that has rows."""
    if not data:
        return
    what, body = data[0] % 3, data[1:]
    for mine in (Keyspace("c~1"), a_keyspace("c~1")[0]):
        before = mine.state(), mine.digest, mine.clock
        try:
            if what == 0:
                batch_head(body)
                mine.receive(body)
            elif what == 1:
                mine.join(body)
            else:
                mine.state(body)
        except REFUSED:
            assert (mine.state(), mine.digest, mine.clock) == before
        else:
            require_same_elsewhere(mine)


# --- the audit trail --------------------------------------------------------------------------------------------------


def audit(data: bytes) -> None:
    """A record of an audit trail, by the first byte with its hash made right or not, or a line of an export."""
    if not data:
        return
    if data[0] % 3 == 2:
        try:
            for record in import_lines([data[1:]]):
                assert [*import_lines(export_lines([record]))] == [record]
        except REFUSED:
            return
        return
    record = data[1:]
    if data[0] % 3 == 1:
        content = blake3(record, blake3_derive("nova audit 2: content of a record", b""))
        digest = blake3(bytes(32) + content, blake3_derive("nova audit 2: link of a chain", b""))
        record = MAGIC + digest + bytes(32) + record
    verdict = verify([record])
    try:
        event = decode_event(record)
    except REFUSED:
        return
    assert data[0] % 3 != 1 or verdict.ok == (event.seq == 1)
    assert not verdict.ok or verdict.head == ChainMark(1, event.hash)
    assert describe(event)
    assert explain(event.resource_id, None, [], [event])


# --- seeds -----------------------------------------------------------------------------------------------------------


def a_replica(kind: Any) -> Any:
    """Two writers of everything that a type can do, merged."""
    a, b = kind(actor="a"), kind(actor="bé")
    for i, r in enumerate((a, b)):
        if kind in (GCounter, PNCounter):
            r.increment(300 + i)
        elif kind in (GSet, ORSet, TwoPSet):
            for element in (1, "x", b"y", (1, (2.5, None)), True):
                r.add(element)
            if kind is not GSet:
                r.remove("x")
        elif kind is EnableWinsFlag:
            r.disable()
            r.enable()
        elif kind is BoundedCounter:
            r.increment(300)
            r.decrement(100)
            r.transfer("é" * (1 + i), 7)
        elif kind is RGA:
            r.insert(0, "text é𝒳")
            r.delete(i, 2)
            r.insert(3, "more")
            r.delete(2, 3)
            r.mark(0, 3, "bold", expand=("after", "both")[i])
            r.mark(1, 2, "link", {"to": "é"}, expand="none")
            r.unmark(1 + i, 1, "bold")
        elif kind is RGAList:
            r.insert(0, [1, "x", b"y", None, [2.5, {"a": i}]])
            r.delete(i, 2)
            r.splice(1, 1, ["more", True])
        elif kind is MVRegister:
            r.set({"v": [i, "text"], "w": -1.5})
        elif kind is LWWRegister:
            r.set([i, None], 1 << 40)
        elif kind is LWWMap:
            r.set("k", i, 5 + i)
            r.set("é", {"a": 1, "b": 2}, 9)
        else:
            r.at("s", ORSet).add(i)
            r.at("m", ORMap).at("c", PNCounter).increment()
            r.at("m", ORMap).at("l", LWWMap).set("k", i, i)
            r.at("r", MVRegister).set("x")
    return a.merge(b)


BASES: dict[Any, Any] = {kind: a_replica(kind) for kind in KINDS}


def seeds_of_states() -> Iterator[bytes]:
    for i, kind in enumerate(KINDS):
        yield bytes([i]) + BASES[kind].to_bytes()[:-SUM_BYTES]
        yield bytes([i]) + kind().to_bytes()[:-SUM_BYTES]


def seeds_of_deltas() -> Iterator[bytes]:
    for i, kind in enumerate(KINDS):
        for known in (None, {"a": 1}, BASES[kind].context):
            yield bytes([i]) + BASES[kind].delta_since(known)[:-SUM_BYTES]
        further = BASES[kind].fork("z")
        if kind is RGA:
            further.insert(4, "further")
            further.delete(2, 4)
            further.mark(1, 4, "bold", False)
            yield bytes([i]) + further.delta_since(BASES[kind].context)[:-SUM_BYTES]


def seeds_of_clocks() -> Iterator[bytes]:
    clocks = [
        VectorClock(),
        VectorClock({"a": 1, "b": 300, 7: 2**64 - 1, b"x": 5}),
        DottedVersionVector({"a": 2, 7: 1}, ("a", 5)),
        DottedVersionVector({"a": 2}),
        CausalContext(),
        CausalContext({"a": 5, "bé": 2**63}, [("a", 7), ("a", 9), ("c", 3)]),
    ]
    for found in clocks:
        yield bytes([CLOCKS.index(type(found))]) + found.to_bytes()[:-SUM_BYTES]


def seeds_of_pieces() -> Iterator[bytes]:
    for ids in (IDS, IDS[3:], [*IDS[1:], 5, 6], [*IDS, *range(1, 40)], range(1, 200)):
        other = Reconciler(ids, seed=OURS_SEED, cells=256)
        yield b"\xff" + other.encode()
        first = other.encode(cells=16)
        yield bytes([len(first) // 4]) + first
        first = other.encode(cells=54)  # a size that is a multiple of 4
        assert len(first) % 4 == 2
        yield bytes([len(first) // 4]) + first + other.encode(cells=100, start=54)
        yield b"\xff" + other.encode(cells=70)


def seeds_of_keyspaces() -> Iterator[bytes]:
    mine, batches = a_keyspace("d~1")
    for batch in batches:
        yield b"\0" + batch
    mine.write("mine", 1, [("/p", b"v")], [], False, None, 11)
    yield b"\0" + mine.close_batch()[2]  # type: ignore[index]
    yield b"\1" + mine.state()
    yield b"\1" + mine.state(Keyspace("e~1").summary())
    yield b"\1" + Keyspace("e~1").state()
    yield b"\2" + mine.summary()


def seeds_of_values() -> Iterator[bytes]:
    yield from (
        b"\xc0",
        b"\xcb" + b"\x7f\xf8" + bytes(6),
        b"\xff",
        b"\xcd\x01\x00",
        b"\xd0\x80",
        b"\xdc\x00\x10" + bytes(16),
    )
    yield b"\x82\xa1a\x93\x01\xc3\xcb\xff\xf8\0\0\0\0\0\0\xa1b\xc4\x03abc"
    yield b"\x91" * 64 + b"\xd9\x20" + b"x" * 32


def seeds_of_sequences() -> Iterator[bytes]:
    """State and delta of a text, without names and elements: agents, and per set the counts, the size and the runs."""

    def number(value: int) -> bytes:
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    text = BASES[RGA].fork("c")
    first = text.to_bytes()
    before = text.context
    text.insert(2, "again")
    text.delete(0, 3)
    text.insert(0, "ab")
    text.mark(1, 3, "bold")

    def parts(data: bytes, delta: bool) -> bytes:
        places = iter(range(4, len(data)))

        def take() -> int:
            value = 0
            for shift in itertools.count(0, 7):
                byte = data[next(places)]
                value |= (byte & 0x7F) << shift
                if byte < 0x80:
                    return value
            raise AssertionError

        events = []
        for _ in range(take()):
            for _ in range(take()):
                next(places)
            known = take() if delta else 0
            events += [0, take() - known]
        head = take()  # of the elements
        for _ in range(take() if head & 1 else head >> 1):
            next(places)
        for _ in range(take()):  # what marks say
            for _ in range(take()):
                next(places)
        runs = data[next(places) : -SUM_BYTES]
        events += [0] * (6 - len(events))
        return b"".join(map(number, events)) + number(len(runs)) + runs

    yield b"\2" + parts(text.to_bytes(), False)
    yield b"\2" + parts(first, False) + parts(text.delta_since(before), True)


def seeds_of_packs() -> Iterator[bytes]:
    for text in ("abcd" * 40, "the cat and the dog and the cat and the hen, " * 2 + "x" * 400, "é" * 30):
        replica = RGA(actor="a")
        replica.insert(0, text)
        yield len(text.encode()).to_bytes(2, "little") + replica.to_bytes()[10:-SUM_BYTES]


def seeds_of_sketches() -> Iterator[bytes]:
    raw = [id.to_bytes(8, "little") for id in IDS]
    for n in (1, 2, 5, 10, 11):
        yield b"\0" + b"".join(raw[:n])
    for n in (0, 3, 20, 60):
        yield b"\1" + bytes([n, n]) + b"".join(raw[:n])
    yield b"\1" + bytes([30, 5]) + b"".join(raw[:5]) + b"\1" * 26


def seeds_of_frames() -> Iterator[bytes]:
    for flags, body in ((0, b"payload"), (1, bytes(24) + b"traced"), (3, bytes(40) + b"both"), (2, bytes(16))):
        yield b"N\1\3" + bytes([flags]) + len(body).to_bytes(4, "big") + bytes(7) + b"\5\0\0\0\2" + bytes(4) + body


def seeds_of_channels() -> Iterator[bytes]:
    """A byte of choices, then raw bytes, or frames as (length, type, body), or messages as (length, what, fill)."""
    data = b"\x80\0\0\3abc", b"\0\0\0\2de\0\0\0\0", bytes(8)
    for choice in (1, 5, 9):
        parts = zip((3, 3, 4, 5, 6, 7), (*data, bytes(8), bytes(8), b"bye"), strict=True)
        yield bytes([choice]) + b"".join(len(part).to_bytes(2, "big") + bytes([kind]) + part for kind, part in parts)
    for choice in (2, 6, 10, 14):
        yield bytes([choice]) + bytes([0, 40, 0, 60, 200, 7, 0, 0, 1, 255, 255, 14, 3, 3, 3] * 8)
    yield b"\0N\1\3\0\0\0\0\7" + bytes(7) + b"\5" + bytes(8) + b"\0\0\0\3abc"


def seeds_of_logs() -> Iterator[bytes]:
    def record(index: int, kind: int, payload: bytes) -> bytes:
        return bytes(4) + index.to_bytes(4, "little") + len(payload).to_bytes(4, "little") + bytes([kind]) + payload

    run = record(0, 0x81, b"first") + record(1, 1, b"second" * 9) + record(2, 0x81, b"") + record(3, 2, b"")
    yield b"\4" + run + bytes(40)
    yield b"\2" + run
    yield b"\1" + b"NOVALOG\n" + b"\1\0\0\0" + bytes(4) + b"12345678" + bytes(40)


def seeds_of_audits() -> Iterator[bytes]:
    lost = [{"path": "/a", "value": 1, "origin": "x", "reason": "older"}]
    bodies: dict[str, dict[str, Any]] = {
        "detect": {"types": ["semantic"], "paths": ["/a"], "versions": [{"origin": "x", "values": {"/a": 1}}]},
        "resolve": {"strategy": "lww", "explanation": ["so"], "discarded": lost},
        "vote": {"question": "?", "ballots": {"a": "1"}, "voters": 3, "needed": 2, "outcome": None},
        "rollback": {"to": "p", "restored": {"/a": 1}, "removed": ["/b"], "kept": lost, "discarded": lost},
    }
    for kind, body in bodies.items():
        record = AuditChain().append(kind, 1 << 40, "c" * 32, "vm/1", body)
        yield b"\0" + record
        yield b"\1" + record[68:]
        yield b"\2" + next(export_lines([record])).encode()


def seeds_of_text_operations() -> Iterator[bytes]:
    """A length, then pieces: kind mod 3, whose by the top bit, size above it."""
    yield b"\x20" + bytes([0x30, 0x31, 0x92, 0xB1])
    yield b"\x64" + bytes(range(0, 256, 7))
    yield b"\xf0" + bytes([2, 130, 1, 129]) * 10


def seeds_of_texts() -> Iterator[bytes]:
    """How many letters, where the first text ends, both texts."""
    yield b"\x1a\x80" + b"abcabba" + b"cbabacx"
    yield b"\x03\x70" + b"abacabad" * 20 + b"abadcaba" * 24
    yield b"\xff\x7f" + bytes(range(200)) + bytes(range(20, 220))


def seeds_of_bulk_frames() -> Iterator[bytes]:
    """Heads of chunks, first and last ones of a plan of the target, and acknowledgements."""
    chunk, size, transfer = 4096, 10 * 4096 + 100, 77
    for number, kind in itertools.product((0, 9, 10), (9, 10)):
        length = min(chunk, size - number * chunk)
        body = struct.pack(">QQ", transfer, number * chunk if kind == 9 else number) + bytes(length if kind == 9 else 0)
        for mac in (False, True):
            frame = encode(kind, 0, 0, body, mac=mac)
            seal(frame, bytes(16) if mac else None)
            yield bytes(frame[:72])


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "state": seeds_of_states,
    "delta": seeds_of_deltas,
    "clock": seeds_of_clocks,
    "pieces": seeds_of_pieces,
    "keyspace": seeds_of_keyspaces,
    "audit": seeds_of_audits,
    "sequence": seeds_of_sequences,
    "pack": seeds_of_packs,
    "sketch": seeds_of_sketches,
    "value": seeds_of_values,
    "frame": seeds_of_frames,
    "channel": seeds_of_channels,
    "log": seeds_of_logs,
    "ottext": seeds_of_text_operations,
    "text": seeds_of_texts,
    "bulk": seeds_of_bulk_frames,
}
# What a decoder compares with byte by byte; the sanitizers' own compare hooks find the rest.
MAGICS = [
    b"NVC\1",
    b"NVO\1",
    b"NVX\1",
    b"NVD\2",
    b"NVR\1",
    b"NVT\2",
    b"NVU\2",
    b"NVL\1",
    b"NVM\1",
    b"NVB\1",
    b"NVS\1",
    b"NVQ\1",
    MAGIC,
    b"NOVALOG\n",
    b"N\1",
]
