"""The audit chain: any tampering is found, and what it holds is told in plain words."""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict import vm
from nova.conflict.audit import (
    GENESIS,
    MAGIC,
    AuditChain,
    ChainMark,
    decision_body,
    decode_event,
    describe,
    detect_body,
    escalate_body,
    explain,
    export_lines,
    fail_body,
    import_lines,
    point_body,
    resolve_body,
    verify,
    vote_body,
)
from nova.conflict.detect import MISSING, ConflictDetector, Contention, Version
from nova.conflict.strategies import ResolveContext, SemanticMerge
from nova.errors import CorruptionError, UsageError

KEY = b"secret"


def chain_of(count, key=b""):
    chain = AuditChain(key=key)
    records = [chain.append("detect", 1000 + i, f"c{i}", "vm/1", {"n": i, "paths": ["/cpu"]}) for i in range(count)]
    return chain, records


def story():
    def row(value, writer, stamp):
        return Version(value, VectorClock({writer: stamp}), stamp << 16, writer)

    rows = {
        "/cpu": [row(4, "eu-1", 1000), row(8, "us-1", 2000)],
        "/labels/x": [row(MISSING, "eu-1", 1000), row("y", "us-1", 2000)],
    }
    conflict = ConflictDetector().examine("vm/1", "vm", rows)
    return conflict, SemanticMerge().resolve(conflict, ResolveContext())


@given(st.integers(0, 6), st.binary(max_size=64))
def test_a_whole_chain_verifies_up_to_its_mark(count, key):
    chain, records = chain_of(count, key)
    verdict = verify(records, chain.mark, key=key)
    assert (verdict.ok, verdict.events, verdict.head) == (True, count, chain.mark)


@pytest.mark.parametrize("key", [b"", KEY])
def test_every_flipped_byte_is_found(key):
    chain, records = chain_of(4, key)
    for index, record in enumerate(records):
        for position in range(len(record)):
            for mask in (1, 0x80):
                changed = bytearray(record)
                changed[position] ^= mask
                verdict = verify([*records[:index], bytes(changed), *records[index + 1 :]], chain.mark, key=key)
                assert not verdict.ok, (index, position)
                assert verdict.events == index


def test_every_deletion_exchange_repetition_and_truncation_is_found():
    chain, records = chain_of(5)
    for i in range(5):
        assert not verify(records[:i] + records[i + 1 :], chain.mark).ok
        assert not verify([*records[: i + 1], records[i], *records[i + 1 :]], chain.mark).ok
        assert not verify([*records[:i], records[i][:-1], *records[i + 1 :]], chain.mark).ok
        assert not verify([*records[:i], b"", *records[i + 1 :]], chain.mark).ok
        for j in range(i):
            swapped = list(records)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            assert "removed, added or exchanged" in (verify(swapped, chain.mark).error or "")


def test_a_cut_tail_is_found_when_the_head_is_kept_elsewhere_and_only_then():
    chain, records = chain_of(5)
    assert verify(records[:3]).ok
    verdict = verify(records[:3], chain.mark)
    assert not verdict.ok
    assert verdict.error == "the chain ends at record 3, it once reached 5: its tail was cut off"
    assert "the head is old" in (verify(records, ChainMark(3, decode_event(records[2]).hash)).error or "")
    assert "made anew" in (verify(records, ChainMark(5, GENESIS)).error or "")


def test_a_record_of_another_chain_is_found_though_its_number_fits():
    _, records = chain_of(3)
    other = AuditChain()
    foreign = [other.append("fail", 1, "c", "r", {"n": n}) for n in range(3)]
    for i in (1, 2):
        verdict = verify([*records[:i], *foreign[i:]])
        assert (verdict.ok, verdict.events) == (False, i)


def test_a_record_that_calls_itself_another_number_is_found_though_its_hash_fits():
    chain, records = chain_of(2)
    forged = AuditChain(chain.head, 7).append("fail", 1, "c", "r", {})
    assert verify([*records, forged]).error == "record 3 calls itself 8: records were removed, added or exchanged"
    with pytest.raises(CorruptionError, match="event 8 does not follow event 2"):
        chain.resume(decode_event(forged))
    with pytest.raises(CorruptionError, match="does not follow"):
        chain.resume(decode_event(AuditChain(GENESIS, 2).append("fail", 1, "c", "r", {})))


def test_a_chain_made_anew_needs_the_key():
    forged, records = chain_of(3, b"guess")
    assert verify(records, forged.mark, key=b"guess").ok
    assert not verify(records, forged.mark, key=KEY).ok


def test_retention_moves_the_anchor():
    chain, records = chain_of(6)
    anchor = ChainMark(2, decode_event(records[1]).hash)
    assert verify(records[2:], chain.mark, anchor=anchor).events == 4
    assert not verify(records[3:], chain.mark, anchor=anchor).ok


def test_a_chain_goes_on_where_it_was_left():
    chain, records = chain_of(2)
    again = AuditChain(chain.head, chain.seq)
    replayed = AuditChain()
    for record in records:
        replayed.resume(decode_event(record))
    assert again.mark == replayed.mark == chain.mark
    assert again.append("fail", 1, "c", "r", {}) == replayed.append("fail", 1, "c", "r", {})
    with pytest.raises(CorruptionError, match="event 1 does not follow event 3"):
        replayed.resume(decode_event(records[0]))


@given(st.integers(0, 700), st.integers(0, 2000), st.binary(max_size=64))
def test_many_records_at_once_are_the_records_one_by_one(count, size, key):
    one, many = AuditChain(key=key), AuditChain(key=key)
    events = [("fail", n * 977 - 5, f"c{n}", "r" * (n % 300), {"n": "x" * (size * n % 1700)}) for n in range(count)]
    records = many.append_many(events)
    assert records == [one.append(*event) for event in events]
    assert many.mark == one.mark
    assert verify(records, many.mark, key=key).ok


def test_of_many_records_none_is_made_if_one_is_wrong():
    chain, _ = chain_of(2)
    before = chain.mark
    good = ("fail", 1, "c", "r", {})
    for bad in (("guess", 1, "c", "r", {}), ("fail", 1 << 80, "c", "r", {}), ("fail", 1, "c" * 70000, "r", {})):
        with pytest.raises((UsageError, OverflowError)):
            chain.append_many([good, bad])
        assert chain.mark == before
    with pytest.raises(UsageError, match="surrogate"):
        chain.append("fail", 1, "c", "\ud800", {})
    assert chain.mark == before


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.text(max_size=70), st.text(max_size=300), st.integers(0, 1 << 62))
def test_a_record_is_the_messagepack_that_anybody_reads(time_ms, conflict, resource, seq):
    record = AuditChain(seq=seq).append("vote", time_ms, conflict, resource, {"b": 1, "a": [None]})
    content = msgspec.msgpack.encode([seq + 1, time_ms, "vote", conflict, resource, {"a": [None], "b": 1}])
    assert record[68:] == content
    event = decode_event(record)
    assert (event.seq, event.time_ms, event.conflict_id, event.resource_id) == (seq + 1, time_ms, conflict, resource)


def test_a_sealed_head_is_read_with_its_key_and_no_other():
    chain, _ = chain_of(3, KEY)
    sealed = chain.mark.seal(KEY)
    assert ChainMark.unseal(sealed, KEY) == chain.mark
    assert ChainMark.parse(sealed) == ChainMark.parse(str(chain.mark)) == chain.mark
    for wrong in (sealed.replace("3:", "2:", 1), sealed[:-1] + "é", str(chain.mark), chain.mark.seal(b"")):
        with pytest.raises(CorruptionError, match="does not fit"):
            ChainMark.unseal(wrong, KEY)
    for rubbish in ("", "x", "1", "1:zz", "1:00", "-1:" + "00" * 32):
        with pytest.raises(UsageError, match="COUNT:HASH"):
            ChainMark.parse(rubbish)


def test_an_unknown_type_is_refused_and_leaves_the_chain_as_it_was():
    chain, _ = chain_of(1)
    before = chain.mark
    with pytest.raises(UsageError, match="'guess' is unknown; use one of decision, detect"):
        chain.append("guess", 1, "c", "r", {})
    assert chain.mark == before
    with pytest.raises(UsageError, match="at most 64"):
        AuditChain(key=bytes(65))
    with pytest.raises(UsageError, match="32 bytes of hash"):
        AuditChain(b"x")


def test_equal_bodies_make_equal_bytes_and_every_value_has_some():
    one, two = AuditChain(), AuditChain()
    assert one.append("fail", 1, "c", "r", {"a": 1, "b": 2}) == two.append("fail", 1, "c", "r", {"b": 2, "a": 1})
    for value in (MISSING, {1, 2}, float("nan"), b"\xff", 1 << 80, {1: 2}, ("x",), None, complex):
        chain = AuditChain()
        try:
            record = chain.append("fail", 1, "c", "r", {"value": value})
        except TypeError:
            assert value is complex  # a class is no value
            assert chain.seq == 0
            continue
        assert verify([record], chain.mark).ok
        assert list(import_lines(export_lines([record]))) == [record]


@given(st.binary(max_size=200))
def test_hostile_bytes_are_refused_not_believed(data):
    for record in (data, MAGIC + data, MAGIC + bytes(64) + data):
        assert not verify([record]).ok
        with suppress(CorruptionError):
            decode_event(record)


# -- export


def test_an_export_comes_back_byte_for_byte_and_changed_lines_are_refused():
    chain, records = chain_of(3)
    lines = list(export_lines(records))
    assert verify(import_lines("\n".join(lines).splitlines()), chain.mark).ok
    assert list(import_lines([line.encode() for line in lines] + ["\n"])) == records
    event = json.loads(lines[1])
    assert (event["seq"], event["type"], event["resource_id"]) == (2, "detect", "vm/1")
    for field, value in [("seq", 9), ("resource_id", "vm/2"), ("body", {}), ("record", "AAAA"), ("hash", "00")]:
        changed = json.dumps({**event, field: value})
        with pytest.raises(CorruptionError, match="line 2"):
            list(import_lines([lines[0], changed]))
    with pytest.raises(CorruptionError, match="line 1 is no audit event"):
        list(import_lines(["[]"]))


# -- words


def test_why_tells_writes_conflicts_rules_and_what_was_discarded():
    conflict, resolution = story()
    chain = AuditChain()
    records = [
        chain.append("detect", 3000, conflict.id, "vm/1", detect_body(conflict)),
        chain.append("resolve", 3001, conflict.id, "vm/1", resolve_body(resolution)),
        chain.append("detect", 3002, "other", "vm/2", {}),
    ]
    writes = [
        {"path": "/cpu", "value": v, "origin": o, "timestamp": t << 16} for v, o, t in [(8, "us-1", 2), (4, "eu-1", 1)]
    ]
    text = explain("vm/1", {"cpu": 8}, writes, map(decode_event, records))
    for words in (
        'vm/1 holds {"cpu":8}.',
        "/cpu was set to 4 by eu-1 at 1970-01-01 00:00:00.001Z, concurrently with another write of it.",
        "concurrent_update, severity medium, at /cpu and /labels/x, between eu-1 and us-1.",
        "  eu-1 wrote /cpu = 4",
        "  eu-1 removed /labels/x",
        "was settled by semantic; 2 values discarded.",
        "  /cpu: 8 by us-1 is the maximum of 4, 8",
        "  discarded: 4 of eu-1 at /cpu: not the maximum; us-1 asked for 8",
    ):
        assert words in text, words
    assert "vm/2" not in text
    assert text.index("by eu-1") < text.index("by us-1")


def test_why_takes_conflict_records_of_the_api_too():
    conflict, resolution = story()
    record = {"id": conflict.id, "key": "vm/1", "detected_ms": 3000, **detect_body(conflict)}
    text = explain("vm/1", {"cpu": 8}, [], [{**record, "resolution": resolve_body(resolution)}])
    assert "No write of it is live." in text
    assert "was settled by semantic; 2 values discarded" in text
    assert "  /cpu: 8 by us-1 is the maximum of 4, 8" in text
    assert explain("vm/9", None, [], [record]).endswith("No conflict of it is on record.")


def test_why_tells_the_owners_of_a_contended_resource():
    conflict = ConflictDetector().examine("ip:1", "resource", {}, contentions=[Contention("ip:1", ("vm/1", "vm/2"))])
    chain = AuditChain()
    event = decode_event(chain.append("detect", 1, conflict.id, "ip:1", detect_body(conflict)))
    assert "over ip:1" in explain("vm/2", 1, [], [event])


@pytest.mark.parametrize(
    ("type_", "body", "words"),
    [
        ("fail", {"error": "no quorum"}, "could not be settled: no quorum"),
        ("escalate", {"reason": "timeout"}, "was escalated: timeout"),
        ("rollback", {"to": "point 7"}, "r was rolled back to point 7"),
        ("rollback", {"to": "p", "by": "ann", "kept": [{}]}, "back to p by ann; 1 write that came meanwhile stays"),
        ("fail", fail_body(ValueError("no quorum"), "consensus", 3), "could not be settled: no quorum"),
        ("escalate", escalate_body("freeze", "nobody answered", "ops"), "was escalated: nobody answered"),
        (
            "vote",
            vote_body("who runs it?", {"b": "h1", "a": "h1", "c": "h2"}, voters=3, needed=2, outcome="h1"),
            "a vote on r asked 'who runs it?': a h1, b h1 and c h2; h1 won (2 of 3 needed)",
        ),
        ("vote", vote_body("q", {}, voters=3, needed=2, outcome=None), "nobody voted; no majority"),
        ("decision", decision_body("ann", {"/cpu": 4}, note="as agreed"), "ann decided conflict c on r: as agreed"),
        ("point", point_body("p1", "vm", {}, {}, "before"), "the state of r was kept as point p1 (before)"),
        ("retain", {"dropped": 5, "anchor": "5:00"}, "5 events were dropped"),
        ("erase", {"key": "ab"}, "key ab was destroyed"),
        ("resolve", {"strategy": "lww", "discarded": [{}], "pending": True}, "1 value discarded; pending"),
        ("detect", {"types": 5, "versions": "x", "paths": None}, "conflict c on r"),
        ("resolve", {}, "settled by a strategy"),
    ],
)
def test_every_event_is_one_sentence_whatever_its_body(type_, body, words):
    event = decode_event(AuditChain().append(type_, 1 << 60, "c", "r", body))
    assert words in describe(event)
    assert explain("r", 1, [], [event])


def test_the_rules_of_vms_are_registered():
    assert vm.RULES
