"""The replicated store in one process: durable puts beside SQLite and the bare disk, merges, reads, remote operations.

Values are JSON objects of about a hundred bytes (one VM); SQLite holds them as JSON text in a table with a primary key.
"""

from __future__ import annotations

import contextlib
import random

import pytest

from nova.cli.benchmarks import (
    KEYS,
    VALUE,
    Batches,
    bare_commits,
    durable_puts,
    filled_sqlite,
    filled_store,
    merges,
    remote_applies,
    sqlite_merges,
    sqlite_puts,
    sqlite_upserts,
)
from nova.crdt.keyspace import Keyspace
from nova.store import ReplicatedStore


def bare_puts(count):
    """The bytes that our store writes for `count` puts, straight to the disk."""
    with ReplicatedStore(node="a") as store:
        store.put_many(Batches(count).take())
        return bare_commits(store.delta_since({}))


DURABLE = {"nova": durable_puts, "SQLite, WAL, synchronous=FULL": sqlite_puts, "bare pwrite + fdatasync": bare_puts}


@pytest.mark.parametrize("count", [1, 10, 100, 1000])
@pytest.mark.parametrize("peer", list(DURABLE))
def test_durable_puts(benchmark, durable_in_turns, peer, count):
    benchmark.group = f"store.durable put, {count:,} in a commit"
    durable_in_turns(benchmark, {name: make(count) for name, make in DURABLE.items()}, peer, count)


@pytest.mark.parametrize("peer", ["nova", "SQLite json_patch"])
@pytest.mark.benchmark(group="store.merge two fields of a VM, in memory", max_time=0.5)
def test_merge_two_fields(benchmark, tmp_path, peer):
    opened, work = (filled_store, merges) if peer == "nova" else (filled_sqlite, sqlite_merges)
    with opened(tmp_path) as store:
        assert benchmark(work(store))


@pytest.mark.parametrize("peer", ["nova", "SQLite and JSON"])
@pytest.mark.parametrize("kind", ["vm", "register"])
@pytest.mark.benchmark(max_time=0.5)
def test_get(benchmark, tmp_path, peer, kind):
    benchmark.group = f"store.get a {kind}, in memory"
    if peer == "nova":
        with ReplicatedStore(node="a", kinds={"vm/": kind}) as store:
            store.put_many(Batches(KEYS).take())
            assert benchmark(lambda: store.get("vm/77").value)["cpu"] == 14
    else:
        with filled_sqlite(tmp_path) as store:
            assert benchmark(lambda: store.get("vm/77"))["cpu"] == 14


@pytest.mark.parametrize("peer", ["nova", "SQLite upsert"])
@pytest.mark.parametrize("count", [1, 1000])
def test_apply_puts_of_a_peer(benchmark, tmp_path, peer, count):
    benchmark.group = f"store.apply a put of a peer, {count:,} in a batch, in memory"
    benchmark.extra_info["operations"] = count
    if peer == "nova":
        with remote_applies(count)(tmp_path) as work:
            benchmark.pedantic(work, setup=work.prepare, rounds=2_000 // count + 40, warmup_rounds=11)
    elif count == 1:
        with filled_sqlite(tmp_path) as store:
            batches = Batches(1, text=True)
            assert benchmark(lambda: store.put_many(batches.take()))
    else:
        with filled_sqlite(tmp_path) as store:
            assert benchmark(sqlite_upserts(store))


@pytest.fixture(scope="module", params=[1_000, 100_000, 1_000_000], ids=lambda keys: f"{keys:,} keys")
def keys(request):
    """A store of so many keys. Module scope: the million is filled once."""
    with ReplicatedStore(node="a") as store:
        count = request.param
        for start in range(0, count, 1_000):
            store.put_many([(f"key/{n}", {"n": n, "name": "x" * 80}) for n in range(start, min(start + 1_000, count))])
        yield count, store


@pytest.mark.parametrize("what", ["put", "get"])
@pytest.mark.benchmark(max_time=0.5)
def test_growth(benchmark, keys, what):
    count, store = keys
    benchmark.group = f"store.{what} by the number of keys, in memory"
    benchmark.extra_info["operations"] = 1_000
    chance = random.Random(7)
    names = [f"key/{chance.randrange(count)}" for _ in range(1_000)]
    if what == "put":
        value = {"n": 0, "name": "y" * 80}
        assert benchmark(lambda: store.put_many([(name, value) for name in names])) == 1_000
    else:
        assert benchmark(lambda: [store.get(name) for name in names])[0].key == names[0]


@pytest.mark.parametrize("peer", ["nova", "dict assignment"])
@pytest.mark.parametrize("what", ["write", "receive"])
def test_the_keyspace_alone(benchmark, peer, what):
    benchmark.group = f"keyspace.{what} of a row of 100 bytes, the kernel alone"
    benchmark.extra_info["operations"] = 1_000
    data = bytes(100)
    names = [f"key/{n}" for n in range(1_000)]
    if peer != "nova":
        rows: dict[str, bytes] = {}

        def assign():
            for name in names:
                rows[name] = data
            return len(rows)

        assert benchmark(assign) == 1_000
        return
    here, there = Keyspace("a~1"), Keyspace("b~1")
    stamps = iter(range(1, 1 << 60))

    def write():
        puts = [("", data)]
        for name in names:
            here.write(name, 0, puts, [], False, None, next(stamps))
        return here.close_batch()

    if what == "write":
        assert benchmark(write)[2]
    else:
        batches: list[bytes] = []
        benchmark.pedantic(
            lambda: there.receive(batches.pop()), setup=lambda: batches.append(write()[2]), rounds=100, warmup_rounds=5
        )
        assert there.count("a~1") == here.count("a~1")


@pytest.mark.benchmark(group="store.recovery, one of 100,000 puts in the log", min_rounds=3, max_time=0.5)
def test_open_and_replay(benchmark, tmp_path):
    benchmark.extra_info["operations"] = 100_000
    with ReplicatedStore(tmp_path, node="a") as store:
        for start in range(0, 100_000, 1_000):
            store.put_many([(f"key/{n}", VALUE) for n in range(start, start + 1_000)])

    def reopen():
        with contextlib.closing(ReplicatedStore(tmp_path, node="a")) as store:
            return len(store)

    assert benchmark.pedantic(reopen, rounds=3) == 100_000
