"""Conflicts: what a clean pair costs, what a record costs, and a VM merge against 15 lines of plain Python.

Run with `pytest bench/bench_conflict.py`. Calls under a microsecond are timed a hundred at a time (`operations`).
"""

from __future__ import annotations

import random

import pytest

from nova.clock import VectorClock
from nova.conflict import vm
from nova.conflict.audit import AuditChain, verify
from nova.conflict.detect import ConflictDetector, ResourceIndex, Version, prune
from nova.conflict.strategies import LastWriteWins, SemanticMerge

ACTORS = [f"node-{i}" for i in range(8)]
MISSING = object()


def clock(**more):
    return VectorClock({**dict.fromkeys(ACTORS, 5), **more})


def version(value, origin, count, stamp):
    return Version(value, clock(**{origin: count}), stamp << 16, origin)


def vm_of(fields, seed=7):
    """A VM of about `fields` leaves."""
    chance = random.Random(seed)
    value = {"id": "vm-1", "power_state": "running", "cpu": 4, "memory_mb": 8192, "host": "h1", "region": "eu"}
    value["disks"] = [{"id": f"d{i}", "size_gb": chance.randrange(1, 99)} for i in range(fields // 10)]
    value["labels"] = {f"label-{i}": str(chance.randrange(1000)) for i in range(fields - len(value) - fields // 10)}
    return value


def plain_merge(base, local, remote):
    """The peer: a three-way merge as one writes it in a hurry. No rules, no explanation, nothing recorded."""
    if isinstance(local, dict) and isinstance(remote, dict):
        known = base if isinstance(base, dict) else {}
        out = {}
        for key in {*local, *remote}:
            value = plain_merge(known.get(key, MISSING), local.get(key, MISSING), remote.get(key, MISSING))
            if value is not MISSING:
                out[key] = value
        return out
    if local == remote or remote == base:
        return local
    if local == base:
        return remote
    return remote


@pytest.mark.benchmark(group="conflict.detect")
@pytest.mark.parametrize("case", ["clean", "concurrent"])
def test_detect(benchmark, case):
    benchmark.extra_info["operations"] = 100
    detector = ConflictDetector()
    local = version(1, "node-0", 6, 1)
    other = version(2, "node-1", 6, 2)
    remote = other if case == "concurrent" else Version(2, local.clock.merge(other.clock), 2, "node-1")

    def hundred():
        for _ in range(100):
            found = detector.detect("vm/1", local, remote)
        return found

    assert (benchmark(hundred) is not None) == (case == "concurrent")


@pytest.mark.benchmark(group="conflict.detect_many, 10,000 pairs")
def test_detect_many(benchmark):
    benchmark.extra_info["operations"] = 10_000
    pairs = [(version(1, "node-0", 6 + i, 1), version(2, f"node-{i % 2}", 6, 2)) for i in range(10_000)]
    verdicts = benchmark(ConflictDetector().detect_many, pairs)
    assert verdicts.count(3) == 5_000


@pytest.mark.benchmark(group="conflict.resolve")
@pytest.mark.parametrize("what", ["lww", "prune of 3"])
def test_settle_three_scalars(benchmark, what):
    benchmark.extra_info["operations"] = 100
    versions = [version(i, f"node-{i}", 6, i) for i in range(3)]
    conflict = ConflictDetector().examine("vm/1", "register", {"": versions})
    strategy = LastWriteWins()

    def hundred():
        for _ in range(100):
            out = prune(versions) if what == "prune of 3" else strategy.resolve(conflict).discarded
        return out

    assert len(benchmark(hundred)) == (3 if what == "prune of 3" else 2)


@pytest.mark.benchmark(group="conflict.examine and settle a VM")
@pytest.mark.parametrize("paths", [1, 5])
def test_examine_and_settle_leaves(benchmark, paths):
    names = ["/power_state", "/cpu", "/memory_mb", "/name", "/owner"][:paths]
    values = {
        "/power_state": ("running", "stopped"),
        "/cpu": (2, 4),
        "/memory_mb": (1, 2),
        "/name": "xy",
        "/owner": "pq",
    }
    siblings = {
        name: [version(values[name][0], "node-0", 6, 1), version(values[name][1], "node-1", 6, 2)] for name in names
    }
    detector, strategy = ConflictDetector(), SemanticMerge()
    resolution = benchmark(lambda: strategy.resolve(detector.examine("vm/1", "vm", siblings)))
    assert len(resolution.discarded) == paths


@pytest.mark.benchmark(group="conflict.merge of a VM")
@pytest.mark.parametrize("who", ["nova", "plain python"])
@pytest.mark.parametrize("fields", [20, 500])
def test_merge_whole_vms(benchmark, who, fields):
    base, local, remote = vm_of(fields), vm_of(fields), vm_of(fields)
    local["cpu"], remote["power_state"] = 8, "stopped"
    root = Version(base, clock(), 0, "node-0")
    conflict = ConflictDetector().detect(
        "vm/1", version(local, "node-0", 6, 1), version(remote, "node-1", 6, 2), base=root, kind="vm"
    )
    strategy = SemanticMerge()
    if who == "nova":
        merged = benchmark(lambda: strategy.resolve(conflict)).value
    else:
        merged = benchmark(plain_merge, base, local, remote)
    assert (merged["cpu"], merged["power_state"], len(merged["labels"])) == (8, "stopped", len(base["labels"]))


@pytest.mark.benchmark(group="conflict.vm")
@pytest.mark.parametrize("what", ["split", "join"])
def test_split_and_join(benchmark, what):
    value = vm_of(20)
    leaves = vm.split(value)
    assert benchmark(vm.split, value) == leaves if what == "split" else benchmark(vm.join, leaves)["cpu"] == 4


@pytest.mark.benchmark(group="conflict.resources")
def test_resource_index_update(benchmark):
    benchmark.extra_info["operations"] = 100
    index = ResourceIndex()
    for i in range(10_000):
        index.update(f"vm/{i}", {f"ip:10.0.{i >> 8}.{i & 255}", f"mac:{i}"})
    one, two = {"ip:10.0.0.1", "mac:1"}, {"ip:10.9.9.9", "mac:1"}

    def hundred():
        for _ in range(50):
            index.update("vm/1", two)
            found = index.update("vm/1", one)
        return found

    assert benchmark(hundred) == []


@pytest.mark.benchmark(group="conflict.audit")
@pytest.mark.parametrize("what", ["append", "verify"])
def test_audit(benchmark, what):
    benchmark.extra_info["operations"] = 100
    chain = AuditChain(key=b"k" * 32)
    body = {"strategy": "semantic", "values": {"/cpu": 8}, "explanation": ["/cpu: 8 is the maximum"], "pending": False}
    records = [chain.append("resolve", 1_700_000_000_000, "ab" * 16, "vm/1", body) for _ in range(100)]

    def hundred():
        for _ in range(100):
            record = chain.append("resolve", 1_700_000_000_000, "ab" * 16, "vm/1", body)
        return record

    assert benchmark(hundred) if what == "append" else benchmark(verify, records, key=b"k" * 32).ok
