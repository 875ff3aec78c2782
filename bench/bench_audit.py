"""The audit trail: append and verify, beside what one writes in a hurry with the standard library.

Run with `pytest bench/bench_audit.py`. The peers make the same chain (each record holds the hash of the one before) of
the same events: `hashlib + json` is Python's BLAKE2b or SHA-256 over canonical JSON. On disk: bench_audit_log.py.
Times are of a whole batch; `operations` is how many events it has.
"""

from __future__ import annotations

import hashlib
import json
import time

import pytest

from nova.conflict.audit import AuditChain, PatternDetector, SpaceSaving, blake3, verify

KEY = b"k" * 32
COUNT = 10_000
BODY = {"strategy": "semantic", "values": {"/cpu": 8}, "explanation": ["/cpu: 8 is the maximum"], "pending": False}
EVENTS = [("resolve", 1_700_000_000_000 + n, f"{n:032x}", f"vm/{n % 997}", BODY) for n in range(COUNT)]
CPU = {"timer": time.process_time, "min_time": 0.001, "disable_gc": True}


def json_records(hash_of, events):
    """15 lines of plain Python: what nova's chain is measured against."""
    previous, out = bytes(32), []
    for number, (type_, time_ms, conflict, resource, body) in enumerate(events, 1):
        content = json.dumps(
            {"seq": number, "time": time_ms, "type": type_, "conflict": conflict, "resource": resource, "body": body},
            sort_keys=True,
            separators=(",", ":"),
        ).encode()
        previous = hash_of(previous + content)
        out.append((previous, content))
    return out


def json_verify(hash_of, records):
    previous = bytes(32)
    for number, (digest, content) in enumerate(records, 1):
        previous = hash_of(previous + content)
        if previous != digest or json.loads(content)["seq"] != number:
            return False
    return True


def blake2b(data):
    return hashlib.blake2b(data, digest_size=32, key=KEY).digest()


def sha256(data):
    return hashlib.sha256(KEY + data).digest()


PEERS = {"hashlib blake2b + json": blake2b, "hashlib sha256 + json": sha256}


@pytest.mark.benchmark(group="audit.append one by one, BLAKE3 chain", **CPU)
@pytest.mark.parametrize("peer", ["nova", *PEERS])
def test_append(benchmark, peer):
    events = EVENTS[:1000]
    benchmark.extra_info["operations"] = len(events)
    chain = AuditChain(key=KEY)

    def nova():
        append = chain.append
        return [append(type_, at, conflict, resource, body) for type_, at, conflict, resource, body in events]

    made = benchmark(nova) if peer == "nova" else benchmark(json_records, PEERS[peer], events)
    assert len(made) == len(events)


@pytest.mark.benchmark(group="audit.append 10,000 at once, BLAKE3 chain", **CPU)
@pytest.mark.parametrize("peer", ["nova", *PEERS])
def test_append_many(benchmark, peer):
    benchmark.extra_info["operations"] = COUNT
    chain = AuditChain(key=KEY)
    made = benchmark(chain.append_many, EVENTS) if peer == "nova" else benchmark(json_records, PEERS[peer], EVENTS)
    assert len(made) == COUNT


@pytest.mark.benchmark(group="audit.verify 10,000", **CPU)
@pytest.mark.parametrize("peer", ["nova", *PEERS])
def test_verify(benchmark, peer):
    benchmark.extra_info["operations"] = COUNT
    if peer == "nova":
        chain = AuditChain(key=KEY)
        records = chain.append_many(EVENTS)
        assert benchmark(verify, records, chain.mark, key=KEY).ok
    else:
        assert benchmark(json_verify, PEERS[peer], json_records(PEERS[peer], EVENTS))


@pytest.mark.benchmark(group="audit.patterns", **CPU)
@pytest.mark.parametrize("what", ["count one item (Space-Saving, 256)", "watch a detection"])
def test_patterns(benchmark, what):
    benchmark.extra_info["operations"] = COUNT
    items = [f"vm/{n * 7919 % 5003}" for n in range(COUNT)]
    body = {"kind": "vm", "paths": ["/cpu"], "versions": [{"origin": "eu-1"}, {"origin": "us-1"}]}

    def count():
        counted = SpaceSaving(256)
        for item in items:
            counted.add(item)
        return counted.total

    def watch():
        detector = PatternDetector()
        for item in items:
            detector.observe(0, item, body)
        return sum(detector.hours)

    assert benchmark(count if what.startswith("count") else watch) == COUNT


@pytest.mark.parametrize("size", [64, 1024, 65_536])
@pytest.mark.parametrize("peer", ["nova", "blake3", "hashlib blake2b", "hashlib sha256"])
def test_hash(benchmark, size, peer):
    benchmark.group = f"audit.hash of {size:,} bytes"
    reference = pytest.importorskip("blake3") if peer == "blake3" else None
    hashes = {
        "nova": blake3,
        "blake3": lambda data: reference.blake3(data).digest(),
        "hashlib blake2b": lambda data: hashlib.blake2b(data, digest_size=32).digest(),
        "hashlib sha256": lambda data: hashlib.sha256(data).digest(),
    }
    benchmark.extra_info["operations"] = 100
    data, hash_of = bytes(size), hashes[peer]

    def hundred():
        for _ in range(100):
            digest = hash_of(data)
        return digest

    assert len(benchmark(hundred)) == 32
