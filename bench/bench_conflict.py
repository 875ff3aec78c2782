"""Conflicts: what a clean pair costs, what a record costs, settling one by one and by the million, and merging VMs.

Run with `pytest bench/bench_conflict.py`. Calls under a microsecond are timed a hundred at a time (`operations`). The
peers that are dicts do less: nothing is described, no order is total.
"""

from __future__ import annotations

import random
from functools import partial

import numpy
import pytest

from nova.cli import conflict_works as works
from nova.cli.benchmarks import dict_before
from nova.clock import Order
from nova.conflict import vm
from nova.conflict.batch import settle_many
from nova.conflict.detect import ConflictDetector, ResourceIndex, Version
from nova.conflict.strategies import SemanticMerge


def vm_of(fields, seed=7):
    """A VM of about `fields` leaves."""
    chance = random.Random(seed)
    value = {"id": "vm-1", "power_state": "running", "cpu": 4, "memory_mb": 8192, "host": "h1", "region": "eu"}
    value["disks"] = [{"id": f"d{i}", "size_gb": chance.randrange(1, 99)} for i in range(fields // 10)]
    value["labels"] = {f"label-{i}": str(chance.randrange(1000)) for i in range(fields - len(value) - fields // 10)}
    return value


def hundred(benchmark, work):
    """Time a hundred calls at a time; the result of the last one."""
    benchmark.extra_info["operations"] = 100

    def run():
        for _ in range(100):
            out = work()
        return out

    return benchmark(run)


@pytest.mark.benchmark(group="conflict.order of two clocks, 8 nodes")
@pytest.mark.parametrize("peer", ["nova", "dict"])
def test_order_of_clocks_of_8_nodes(benchmark, peer):
    a, b = works.clean_pair()
    if peer == "nova":
        x, y = a.clock, b.clock
        assert hundred(benchmark, partial(x.compare, y)) is Order.BEFORE
    else:
        one, other = a.clock.to_dict(), b.clock.to_dict()
        assert hundred(benchmark, partial(dict_before, one, other))


@pytest.mark.benchmark(group="conflict.order of two clocks, 8 nodes, a million pairs")
def test_order_of_a_million_clocks_of_8_nodes(benchmark):
    benchmark.extra_info["operations"] = 1_000_000
    (ours, *_), (theirs, *_) = works.version_batches(1_000_000)
    merged = ours.merge_pairs(theirs)  # its bases are ours: those of replicas that share a snapshot
    out = numpy.empty(1_000_000, numpy.int8)
    assert (benchmark(ours.compare_pairs, merged, out) <= Order.BEFORE).all()


@pytest.mark.benchmark(group="conflict.detect")
@pytest.mark.parametrize("peer", ["nova", "dict"])
@pytest.mark.parametrize("case", ["clean", "concurrent", "concurrent records of 20 fields"])
def test_detect(benchmark, case, peer):
    pair = works.clean_pair() if case == "clean" else works.concurrent_pair()
    if "records" in case:
        base, local, _ = works.three_versions(20)
        pair = works.concurrent_pair(base, local)
    (found,) = hundred(benchmark, (works.detects if peer == "nova" else works.plain_detect)(pair))
    assert bool(found) == (case != "clean")
    if peer == "nova" and "records" in case:
        assert found.paths == ("/cpu", "/label-3")


@pytest.mark.benchmark(group="conflict.detect, and all of the record read")
def test_detect_and_read_the_whole_record(benchmark):
    """The id and the complexity are made when they are first read."""
    detect, pair = ConflictDetector().detect, works.concurrent_pair()

    def work():
        found = detect("vm/1", *pair)
        return found.id, found.complexity, found.types, found.severity, found.paths

    assert len(hundred(benchmark, work)[0]) == 32


@pytest.mark.benchmark(group="conflict.detect_many, 10,000 pairs")
def test_detect_many(benchmark):
    benchmark.extra_info["operations"] = 10_000
    pairs = [(works.version(1, "node-0", 6 + i, 1), works.version(2, f"node-{i % 2}", 6, 2)) for i in range(1, 10_001)]
    verdicts = benchmark(ConflictDetector().detect_many, pairs)
    assert verdicts.count(3) == 5_000


@pytest.mark.benchmark(group="conflict.settle")
@pytest.mark.parametrize("peer", ["nova", "dict"])
def test_last_writer_of_two_settled(benchmark, peer):
    out = hundred(benchmark, works.settles() if peer == "nova" else works.plain_settles())
    assert len(out.discarded if peer == "nova" else out["discarded"]) == 1


@pytest.mark.benchmark(group="conflict.settle, and the explanation read")
def test_last_writer_settled_and_explained(benchmark):
    """The sentences are made when they are first read."""
    found = ConflictDetector().detect("vm/1", *works.concurrent_pair())
    resolve = works.LastWriteWins().resolve
    assert "written last" in hundred(benchmark, lambda: resolve(found).explanation)[0]


@pytest.mark.benchmark(group="conflict.prune")
@pytest.mark.parametrize("peer", ["nova", "dict"])
def test_three_siblings_pruned(benchmark, peer):
    assert len(hundred(benchmark, works.prunes() if peer == "nova" else works.plain_prune())) == 3


@pytest.mark.benchmark(group="conflict.settle by the million")
@pytest.mark.parametrize(("peer", "rows"), [("nova", 1_000_000), ("dict", 10_000)])
def test_pairs_compared_and_settled(benchmark, peer, rows):
    benchmark.extra_info["operations"] = rows
    if peer == "dict":
        assert len(benchmark(works.plain_settles_many(rows))) == rows
        return
    out = benchmark(settle_many, *works.version_batches(rows))
    assert len(out.winners) == rows
    assert set(out.winners.tolist()) == {0, 1}


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
    siblings = {name: list(works.concurrent_pair(*values[name])) for name in names}
    detector, strategy = ConflictDetector(), SemanticMerge()
    resolution = benchmark(lambda: strategy.resolve(detector.examine("vm/1", "vm", siblings)))
    assert len(resolution.discarded) == paths


@pytest.mark.benchmark(group="conflict.merge of a VM")
@pytest.mark.parametrize("peer", ["nova", "plain Python"])
@pytest.mark.parametrize("fields", [20, 500])
def test_merge_whole_vms(benchmark, peer, fields):
    base, local, remote = vm_of(fields), vm_of(fields), vm_of(fields)
    local["cpu"], remote["power_state"] = 8, "stopped"
    root = Version(base, works.clock(), 0, "node-0")
    conflict = ConflictDetector().detect("vm/1", *works.concurrent_pair(local, remote), base=root, kind="vm")
    strategy = SemanticMerge()
    if peer == "nova":
        merged = benchmark(lambda: strategy.resolve(conflict)).value
    else:
        merged = benchmark(works.plain_merge, base, local, remote)
    assert (merged["cpu"], merged["power_state"], len(merged["labels"])) == (8, "stopped", len(base["labels"]))


@pytest.mark.benchmark(group="conflict.vm")
@pytest.mark.parametrize("what", ["split", "join"])
def test_split_and_join(benchmark, what):
    value = vm_of(20)
    leaves = vm.split(value)
    assert benchmark(vm.split, value) == leaves if what == "split" else benchmark(vm.join, leaves)["cpu"] == 4


@pytest.mark.benchmark(group="conflict.resources")
def test_resource_index_update(benchmark):
    index = ResourceIndex()
    for i in range(10_000):
        index.update(f"vm/{i}", {f"ip:10.0.{i >> 8}.{i & 255}", f"mac:{i}"})
    one, two = {"ip:10.0.0.1", "mac:1"}, {"ip:10.9.9.9", "mac:1"}
    assert hundred(benchmark, lambda: index.update("vm/1", two) or index.update("vm/1", one)) == []
