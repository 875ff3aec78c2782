"""nova bench: the hot paths on this machine, each beside something that is on every machine, and beside libraries that
do the same where they are installed.

Ours and the peers run in turns, so that whatever else the machine does slows all of them. The repository's `bench/`
measures more, against more peers, and imports what is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import sqlite3
import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

from nova._version import __version__
from nova.cli import conflict_works as conflicts
from nova.cli import consensus_net
from nova.cli import consensus_works as consensus
from nova.cli import transport_works as wires
from nova.cli.output import Json, print_json, print_table
from nova.clock import ClockBatch, HybridLogicalClock, VectorClock
from nova.crdt import ORSet
from nova.digest import Reconciler, SetDigest, digest128
from nova.errors import UsageError
from nova.metrics import Registry
from nova.runtime import new_loop
from nova.storage.log import RECORD_OVERHEAD_BYTES, FileLog
from nova.store import ReplicatedStore
from nova.store.model import Put

ROUNDS = 15
FILE_BYTES = 64 << 20

Work = Callable[[], object]
"""What is timed. It returns something true, or the figure is worth nothing."""
Maker = Callable[[Path], contextlib.AbstractContextManager[Work]]
"""Sets the work up, in a folder of its own, and clears it away."""


# --- peers: what one would write or take instead ----------------------------------------------------------------------


def dict_before(a: dict[str, int], b: dict[str, int]) -> bool:
    """Did a happen before b? Vector clocks as dicts."""
    return all(b.get(actor, 0) >= count for actor, count in a.items()) and a != b


def dict_merge(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {actor: max(a.get(actor, 0), b.get(actor, 0)) for actor in a.keys() | b.keys()}


class DictORSet:
    """Element -> dots, and a clock: the semantics of ORSet with what Python has."""

    def __init__(self, actor: str) -> None:
        self.actor = actor
        self.clock: dict[str, int] = {}
        self.rows: dict[Any, set[tuple[str, int]]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, element: Any) -> None:
        self.clock[self.actor] = count = self.clock.get(self.actor, 0) + 1
        self.rows[element] = {(self.actor, count)}

    def merge(self, other: DictORSet) -> DictORSet:
        for element in self.rows.keys() | other.rows.keys():
            mine, theirs = self.rows.get(element, set()), other.rows.get(element, set())
            live = (
                (mine & theirs)
                | {dot for dot in mine if other.clock.get(dot[0], 0) < dot[1]}
                | {dot for dot in theirs if self.clock.get(dot[0], 0) < dot[1]}
            )
            if live:
                self.rows[element] = live
            else:
                self.rows.pop(element, None)
        self.clock = dict_merge(self.clock, other.clock)
        return self

    def fork(self, actor: str) -> DictORSet:
        out = DictORSet(actor)
        out.clock, out.rows = dict(self.clock), dict(self.rows)
        return out


class PlainClock:
    """A hybrid logical clock in five lines of Python."""

    def __init__(self) -> None:
        self.last = 0

    def tick(self, now_ns: int) -> int:
        self.last = max(self.last + 1, now_ns // 1_000_000 << 16)
        return self.last


class PlainHistogram:
    """Counts below upper bounds, in Python."""

    def __init__(self, buckets: list[float]) -> None:
        self.buckets, self.counts, self.total = buckets, [0] * (len(buckets) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.buckets, value)] += 1
        self.total += value


class BareDisk:
    """The limit of any log: one pwrite and one fdatasync into a preallocated file."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / "bare", os.O_RDWR | os.O_CREAT, 0o600)
        self._offset = FILE_BYTES

    def commit(self, data: bytes) -> int:
        if self._offset + len(data) > FILE_BYTES:  # blocks written before sync faster than fresh ones: stay like a log
            os.ftruncate(self._fd, 0)
            os.posix_fallocate(self._fd, 0, FILE_BYTES)
            os.fsync(self._fd)
            self._offset = 0
        os.pwrite(self._fd, data, self._offset)
        os.fdatasync(self._fd)
        self._offset += len(data)
        return self._offset

    def close(self) -> None:
        os.close(self._fd)


class SqliteStore:
    """A table of keys and JSON values. On disk a commit is as durable as ours: WAL, synchronous=FULL."""

    def __init__(self, folder: Path | None) -> None:
        self.db = sqlite3.connect(":memory:" if folder is None else folder / "store.sqlite", isolation_level=None)
        if folder is not None:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("CREATE TABLE store (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def put_many(self, rows: list[tuple[str, str]]) -> int:
        self.db.execute("BEGIN")
        self.db.executemany(
            "INSERT INTO store VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", rows
        )
        self.db.execute("COMMIT")
        return len(rows)

    def merge(self, key: str, patch: str) -> int:
        return self.db.execute("UPDATE store SET value = json_patch(value, ?) WHERE key = ?", (patch, key)).rowcount

    def get(self, key: str) -> Any:
        (text,) = self.db.execute("SELECT value FROM store WHERE key = ?", (key,)).fetchone()
        return msgspec.json.decode(text)

    def close(self) -> None:
        self.db.close()


# --- inputs -----------------------------------------------------------------------------------------------------------

KEYS = 10_000
VALUE = {"id": "vm-0", "power_state": "running", "cpu": 4, "memory_mb": 8192, "owner": "team-a", "labels": {"t": "1"}}


def clocks(actors: int) -> tuple[dict[str, int], dict[str, int]]:
    """Two clocks, the second one event ahead."""
    a = {f"node-{i}": i + 1 for i in range(actors)}
    return a, {**a, "node-0": 2}


PAIR_8, PAIR_16, PAIR_256 = clocks(8), clocks(16), clocks(256)


class Batches:
    """Endless batches of `count` puts, walking over KEYS keys, made before they are asked for.

    Every pass writes other values than the one before: SQLite writes nothing for a row that stays the same.
    """

    def __init__(self, count: int, *, text: bool = False) -> None:
        rows = [(f"vm/{n}", VALUE | {"cpu": n % 64 + 1 + step}) for step in (0, 100) for n in range(KEYS)]
        self._items: list[Any] = (
            [(key, msgspec.json.encode(value).decode()) for key, value in rows] if text else [Put(*row) for row in rows]
        )
        self._count, self._at = count, 0

    def take(self) -> list[Any]:
        if self._at + self._count > len(self._items):
            self._at = 0
        self._at += self._count
        return self._items[self._at - self._count : self._at]


# --- the cases --------------------------------------------------------------------------------------------------------


def simple(make: Callable[[], Work]) -> Maker:
    """For work that leaves nothing behind."""

    @contextlib.contextmanager
    def maker(_: Path) -> Iterator[Work]:
        yield make()

    return maker


def durable_puts(count: int) -> Maker:
    """Puts in commits of `count` by a ReplicatedStore on disk."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        batches = Batches(count)
        with ReplicatedStore(folder / "nova", node="a") as store:
            yield lambda: store.put_many(batches.take())

    return maker


def sqlite_puts(count: int) -> Maker:
    """The same in SQLite."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        batches = Batches(count, text=True)
        with contextlib.closing(SqliteStore(folder)) as store:
            yield lambda: store.put_many(batches.take())

    return maker


def log_commits(records: list[bytes]) -> Maker:
    """Commits of these records to our log."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        with FileLog(folder / "log") as log:

            def commit() -> int:
                log.append(records)
                return log.commit()

            yield commit

    return maker


def bare_commits(records: list[bytes], times: int = 1) -> Maker:
    """The same bytes, straight to the disk, `times` times."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        data = b"".join(records) + bytes(RECORD_OVERHEAD_BYTES * len(records))
        with contextlib.closing(BareDisk(folder)) as disk:
            yield lambda: [disk.commit(data) for _ in range(times)]

    return maker


def in_memory(count: int) -> Callable[[], Work]:
    """Commits by three cores in memory."""

    def make() -> Work:
        cores = consensus.Cores()
        return lambda: cores.commit(count)

    return make


def future_rounds(clients: int, each: int) -> Work:
    """What asyncio itself takes: callers that wait for a future that is set in the next turn of the loop."""

    async def client() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(each):
            future: asyncio.Future[bytes] = loop.create_future()
            loop.call_soon(future.set_result, b"")
            await future

    async def rounds() -> int:
        await asyncio.gather(*(client() for _ in range(clients)))
        return clients * each

    loop = new_loop()
    return lambda: loop.run_until_complete(rounds())


@contextlib.contextmanager
def filled_store(_: Path) -> Iterator[ReplicatedStore]:
    with ReplicatedStore(node="a", kinds={"vm/": "vm"}) as store:
        store.put_many(Batches(KEYS).take())
        yield store


@contextlib.contextmanager
def filled_sqlite(_: Path) -> Iterator[SqliteStore]:
    with contextlib.closing(SqliteStore(None)) as store:
        store.put_many(Batches(KEYS, text=True).take())
        yield store


def on(maker: Callable[[Path], contextlib.AbstractContextManager[Any]], make: Callable[[Any], Work]) -> Maker:
    """Work on what `maker` sets up."""

    @contextlib.contextmanager
    def inner(folder: Path) -> Iterator[Work]:
        with maker(folder) as made:
            yield make(made)

    return inner


def merges(store: ReplicatedStore) -> Work:
    numbers = iter(range(1 << 62))

    def merge() -> str:
        n = next(numbers)
        return store.put(f"vm/{n % KEYS}", {"cpu": n % 60 + 100, "power_state": "paused"}, merge=True).key

    return merge


def sqlite_merges(store: SqliteStore) -> Work:
    numbers = iter(range(1 << 62))

    def merge() -> int:
        n = next(numbers)
        return store.merge(f"vm/{n % KEYS}", f'{{"cpu": {n % 60 + 100}, "power_state": "paused"}}')

    return merge


def sqlite_upserts(store: SqliteStore) -> Work:
    batches = Batches(1_000, text=True)
    return lambda: store.put_many(batches.take())


def remote_applies(count: int) -> Maker:
    """Apply batches of a peer, `count` operations each: causality checked, concurrent writes looked for."""

    @contextlib.contextmanager
    def maker(_: Path) -> Iterator[Work]:
        with ReplicatedStore(node="a") as here, ReplicatedStore(node="b") as there:
            batches = Batches(count)
            ready: list[bytes] = []

            def apply() -> int:
                if not ready:
                    raise AssertionError("no batch is ready")
                here.apply_delta(ready.pop())
                return count

            def prepare() -> None:
                there.put_many(batches.take())
                (batch,) = there.delta_since(here.clock)
                ready.append(batch)

            apply.prepare = prepare  # type: ignore[attr-defined]
            yield apply

    return maker


def vector_order(actors: int) -> Work:
    x = VectorClock(clocks(actors)[0])
    y = x.increment("node-0")
    return lambda: x < y


def vector_merge(actors: int) -> Work:
    a, b = clocks(actors)
    x, y = VectorClock(a), VectorClock({**b, "node-1": 1})
    return lambda: x.merge(y)


def vectors_before(rows: int) -> Work:
    import numpy

    table = numpy.arange(rows * 16, dtype=numpy.uint64).reshape(rows, 16)
    names = [f"node-{i:02}" for i in range(16)]
    batch, out = ClockBatch.from_array(names, table), numpy.empty(rows, numpy.int8)
    clock = VectorClock(dict.fromkeys(names, 1000))
    return lambda: batch.compare(clock, out=out) is out


def arrays_before(rows: int) -> Work:
    import numpy

    table = numpy.arange(rows * 16, dtype=numpy.uint64).reshape(rows, 16)
    clock = numpy.full(16, 1000, numpy.uint64)
    return lambda: ((table < clock).any(axis=1) + 2 * (table > clock).any(axis=1)).nbytes


def or_set_of(kind: Any, size: int) -> Any:
    out = kind("a")
    for n in range(size):
        out.add(f"a-{n}")
    return out


def nothing_new(kind: Any, size: int) -> Work:
    a = or_set_of(kind, size)
    b = a.fork("b")
    return lambda: a.merge(b)


def found_by_sketch(size: int, differences: int) -> Work:
    mine = Reconciler(range(1, size + 1))
    data = Reconciler(range(differences + 1, size + 1)).encode()
    return lambda: mine.decode(data)


def found_by_sets(size: int, differences: int) -> Work:
    mine, theirs = set(range(1, size + 1)), set(range(differences + 1, size + 1))
    return lambda: mine - theirs


def or_sets(kind: Any, size: int) -> Work:
    a, b = kind("a"), kind("b")
    for n in range(size):
        a.add(f"a-{n}")
        b.add(f"b-{n}")
    return lambda: a.fork("c").merge(b)


def or_set_adds(kind: Any) -> Work:
    names = [f"element-{n}" for n in range(1_000)]

    def adds() -> int:
        out = kind("a")
        for name in names:
            out.add(name)
        return len(out)

    return adds


def loro_map(names: list[str]) -> Any:
    doc = importlib.import_module("loro").LoroDoc()
    shared = doc.get_map("m")
    for name in names:
        shared.insert(name, True)
    doc.commit()
    return doc


def pycrdt_map(names: list[str]) -> Any:
    library = importlib.import_module("pycrdt")
    doc = library.Doc()
    doc["m"] = shared = library.Map()
    for start in range(0, len(names), 10):  # one transaction for all takes longer, one for each as well
        with doc.transaction():
            for name in names[start : start + 10]:
                shared[name] = True
    return doc


def map_adds(make: Callable[[list[str]], Any]) -> Work:
    names = [f"element-{n}" for n in range(1_000)]
    return lambda: make(names)


def on_fresh(make: Callable[[], Work]) -> Work:
    """Work on what is made anew before each call, outside the timed part."""
    ready: list[Work] = []

    def call() -> object:
        return ready.pop()()

    call.prepare = lambda: ready.append(make())  # type: ignore[attr-defined]
    return call


def loro_merges(size: int) -> Work:
    here, there = (loro_map([f"{side}-{n}" for n in range(size)]) for side in "ab")
    data = there.export(importlib.import_module("loro").ExportMode.Snapshot())
    return on_fresh(lambda: partial(here.fork().import_, data))


def pycrdt_merges(size: int) -> Work:
    here, there = (pycrdt_map([f"{side}-{n}" for n in range(size)]).get_update() for side in "ab")

    def fresh() -> Work:
        copy = importlib.import_module("pycrdt").Doc()
        copy.apply_update(here)
        return lambda: copy.apply_update(there) is None

    return on_fresh(fresh)


def xxh3(data: bytes) -> Work:
    return partial(importlib.import_module("xxhash").xxh3_128_digest, data)


ROW = b"a row of a hundred bytes".ljust(100, b".")
PAGE = bytes(range(256)) * 16


def set_digest() -> Work:
    digest = SetDigest()

    def add() -> bool:
        digest.add(ROW)
        return True

    return add


def xor_digest() -> Work:
    total = 0

    def add() -> bool:
        nonlocal total
        total ^= int.from_bytes(hashlib.blake2b(ROW, digest_size=16).digest(), "little")
        return True

    return add


def ticks(clock: Any) -> Work:
    now = time.time_ns()
    return lambda: clock.tick(now)


BUCKETS = [0.001 * 2**n for n in range(15)]


def observations(histogram: Any) -> Work:
    def observe() -> bool:
        histogram.observe(0.037)
        return True

    return observe


def dict_count() -> Work:
    counts = {("x", "y"): 0.0}

    def increment() -> bool:
        counts["x", "y"] += 1
        return True

    return increment


def nova_count() -> Work:
    child = Registry().counter("c_total", "", ("a", "b")).labels("x", "y")

    def increment() -> bool:
        child.inc()
        return True

    return increment


class Peer(NamedTuple):
    """What ours is measured beside; `library` must be importable, if one is named."""

    name: str
    maker: Maker
    library: str = ""

    @property
    def installed(self) -> bool:
        return not self.library or importlib.util.find_spec(self.library) is not None


class Case(NamedTuple):
    """`peer` is on every machine, `others` may be. `operations` is how many one call of the work does."""

    part: str
    name: str
    ours: Maker
    peer_name: str
    peer: Maker
    operations: int = 1
    others: tuple[Peer, ...] = ()

    @property
    def peers(self) -> list[Peer]:
        return [Peer(self.peer_name, self.peer), *self.others]


RECORDS = [bytes(range(100))]

CASES = [
    Case("clocks", "order of two clocks, 16 actors", simple(lambda: vector_order(16)), "dict",
         simple(lambda: lambda: dict_before(*PAIR_16))),
    Case("clocks", "order of two clocks, 256 actors", simple(lambda: vector_order(256)), "dict",
         simple(lambda: lambda: dict_before(*PAIR_256))),
    Case("clocks", "merge of two clocks, 256 actors", simple(lambda: vector_merge(256)), "dict",
         simple(lambda: lambda: dict_merge(*PAIR_256))),
    Case("clocks", "one clock against 4,096, 16 actors, each", simple(lambda: vectors_before(4096)), "numpy",
         simple(lambda: arrays_before(4096)), 4096),
    Case("clocks", "hybrid clock tick", simple(lambda: ticks(HybridLogicalClock())), "plain Python",
         simple(lambda: ticks(PlainClock()))),
    Case("crdt", "OR-set, add", simple(lambda: or_set_adds(ORSet)), "dict and sets",
         simple(lambda: or_set_adds(DictORSet)), 1_000,
         (Peer("loro map", simple(lambda: map_adds(loro_map)), "loro"),
          Peer("pycrdt map", simple(lambda: map_adds(pycrdt_map)), "pycrdt"))),
    Case("crdt", "OR-set, merge of 1,000 concurrent adds", simple(lambda: or_sets(ORSet, 1_000)), "dict and sets",
         simple(lambda: or_sets(DictORSet, 1_000)), 1,
         (Peer("loro map", simple(lambda: loro_merges(1_000)), "loro"),
          Peer("pycrdt map", simple(lambda: pycrdt_merges(1_000)), "pycrdt"))),
    Case("crdt", "OR-set of 10,000, contains",
         simple(lambda: partial(ORSet.__contains__, or_set_of(ORSet, KEYS), "a-77")), "dict",
         simple(lambda: partial(dict.__contains__, or_set_of(DictORSet, KEYS).rows, "a-77"))),
    Case("crdt", "OR-set of 10,000, a merge that brings nothing new", simple(lambda: nothing_new(ORSet, KEYS)),
         "dict and sets", simple(lambda: nothing_new(DictORSet, KEYS))),
    Case("digest", "10 differences between sets of 100,000 ids", simple(lambda: found_by_sketch(100_000, 10)),
         "two Python sets in one place", simple(lambda: found_by_sets(100_000, 10))),
    Case("digest", "a row of 100 bytes joins a set digest", simple(set_digest), "XOR of blake2b", simple(xor_digest), 1,
         (Peer("XXH3 alone", simple(lambda: xxh3(ROW)), "xxhash"),)),
    Case("digest", "128 bits over 4 KiB", simple(lambda: lambda: digest128(PAGE)), "blake2b",
         simple(lambda: lambda: hashlib.blake2b(PAGE, digest_size=16).digest()), 1,
         (Peer("XXH3", simple(lambda: xxh3(PAGE)), "xxhash"),)),
    Case("log", "durable commit of 1 record", log_commits(RECORDS), "pwrite + fdatasync", bare_commits(RECORDS)),
    Case("log", "durable commit of 1,000 records", log_commits(RECORDS * 1_000), "pwrite + fdatasync",
         bare_commits(RECORDS * 1_000)),
    Case("store", "durable put", durable_puts(1), "SQLite, WAL, FULL", sqlite_puts(1)),
    Case("store", "durable put, 1,000 in a commit", durable_puts(1_000), "SQLite, WAL, FULL", sqlite_puts(1_000),
         1_000),
    Case("store", "merge two fields of a VM, in memory", on(filled_store, merges), "SQLite json_patch",
         on(filled_sqlite, sqlite_merges)),
    Case("store", "get a VM, in memory", on(filled_store, lambda store: lambda: store.get("vm/77").value), "SQLite",
         on(filled_sqlite, lambda store: lambda: store.get("vm/77"))),
    Case("store", "apply a put of a peer", remote_applies(1_000), "SQLite upsert, in memory",
         on(filled_sqlite, sqlite_upserts), 1_000),
    Case("conflict", "order of two clocks, 8 nodes", simple(lambda: vector_order(8)), "dict",
         simple(lambda: lambda: dict_before(*PAIR_8))),
    Case("conflict", "detect, clean pair", simple(lambda: conflicts.detects(conflicts.clean_pair())), "dicts",
         simple(lambda: conflicts.plain_detect(conflicts.clean_pair()))),
    Case("conflict", "detect, with a record", simple(lambda: conflicts.detects(conflicts.concurrent_pair())), "dicts",
         simple(lambda: conflicts.plain_detect(conflicts.concurrent_pair()))),
    Case("conflict", "last writer wins, loser recorded", simple(conflicts.settles), "dicts and a list",
         simple(conflicts.plain_settles)),
    Case("conflict", "three siblings pruned", simple(conflicts.prunes), "dicts", simple(conflicts.plain_prune)),
    Case("conflict", "10,000 pairs compared and settled, each", simple(lambda: conflicts.settles_many(10_000)),
         "dicts", simple(lambda: conflicts.plain_settles_many(10_000)), 10_000),
    *(
        Case("conflict", f"three-way merge of a record of {n} fields",
             simple(partial(conflicts.merges_plainly, conflicts.nova_merge, n)), "15 lines of Python",
             simple(partial(conflicts.merges_plainly, conflicts.plain_merge, n)), 1,
             (Peer("nbdime", simple(partial(conflicts.merges_plainly, conflicts.nbdime_merge, n)), "nbdime"),
              Peer("dictdiffer", simple(partial(conflicts.merges_plainly, conflicts.dictdiffer_merge, n)),
                   "dictdiffer")))
        for n in (20, 500)
    ),
    *(
        Case("conflict", f"the same of documents of {n:,} fields, {edits} edits a side",
             simple(partial(conflicts.merges_documents, n, edits)), "15 lines of Python, 500 fields",
             simple(lambda: conflicts.merges_plainly(conflicts.plain_merge, 500)))
        for n, edits in ((500, 1), (50_000, 10))
    ),
    Case("conflict", "JSON Patch made, 500 fields", simple(lambda: conflicts.makes_patch(500)), "10 lines of Python",
         simple(lambda: conflicts.plain_makes(500)), 1,
         (Peer("jsonpatch", simple(lambda: conflicts.jsonpatch_makes(500)), "jsonpatch"),
          Peer("deepdiff", simple(lambda: conflicts.deepdiff_finds(500)), "deepdiff"))),
    Case("conflict", "JSON Patch applied, 500 fields", simple(lambda: conflicts.applies_patch(500)), "a deep copy",
         simple(lambda: conflicts.plain_applies(500)), 1,
         (Peer("jsonpatch", simple(lambda: conflicts.jsonpatch_applies(500)), "jsonpatch"),)),
    Case("conflict", "audit event appended with its BLAKE3 hash", simple(lambda: conflicts.appends(1_000)),
         "json and blake2b", simple(lambda: conflicts.plain_appends(1_000)), 1_000),
    Case("conflict", "audit event verified, each", simple(lambda: conflicts.verifies(10_000)),
         "json and blake2b", simple(lambda: conflicts.plain_verifies(10_000)), 10_000),
    Case("consensus", "three Raft cores in memory, a commit of 1 command", simple(in_memory(1_000)),
         "15 lines of Python, no elections", simple(lambda: lambda: consensus.plain_commits(1_000)), 1_000),
    *(
        Case("consensus", f"group of 3 on loopback, durable commit, {clients} caller{'s' * (clients > 1)}",
             consensus.group_commits(clients), f"pwrite + fdatasync, {clients} in a commit",
             bare_commits([consensus.COMMAND] * clients, consensus.each_of(clients)),
             clients * consensus.each_of(clients),
             (Peer("PySyncObj", consensus.sync_object_commits(clients), "pysyncobj"),))
        for clients in (1, 64, 256)
    ),
    *(
        Case("consensus", f"the same over the network, {clients} caller{'s' * (clients > 1)} on one connection",
             consensus_net.port_puts(clients), f"pwrite + fdatasync, {clients} in a commit",
             bare_commits([consensus.COMMAND] * clients, consensus.each_of(clients)),
             clients * consensus.each_of(clients))
        for clients in (1, 64, 256)
    ),
    Case("consensus", "a group of 3 in this process and two more, linearizable read, 64 callers",
         consensus.group_reads(64),
         "asyncio futures that are set in the next turn", simple(lambda: future_rounds(64, consensus.each_of(64))),
         64 * consensus.each_of(64)),
    Case("consensus", "the same, read by lease, 64 callers", consensus.group_reads(64, lease=True),
         "asyncio futures that are set in the next turn", simple(lambda: future_rounds(64, consensus.each_of(64))),
         64 * consensus.each_of(64)),
    *(
        Case("transport", name, maker("nova" if "batch" not in name else "slab"), peer, maker("socket"), each,
             (Peer("pyzmq", maker("zmq"), "zmq"),))
        for name, maker, peer, each in (
            ("round trip of 64 B to another process", wires.trips, "socket of Python", wires.TRIPS),
            ("message of 64 B to another process, an object each", wires.messages, "socket of Python, unframed",
             wires.MESSAGES),
            ("the same by batch", wires.messages, "socket of Python, unframed", wires.MESSAGES),
            ("message of 256 KiB to another process", wires.bulk, "socket of Python, unframed", wires.BULKS),
        )
    ),
    Case("transport", "round trip of 64 B on one loop", wires.trips_on_the_loop(), "protocols of the loop, unframed",
         wires.trips_on_the_loop(raw=True), wires.TRIPS),
    Case("metrics", "counter with two labels", simple(nova_count), "dict entry", simple(dict_count)),
    Case("metrics", "histogram of 15 buckets",
         simple(lambda: observations(Registry().histogram("h", "", buckets=BUCKETS))), "bisect and list",
         simple(lambda: observations(PlainHistogram(BUCKETS)))),
]  # fmt: skip
"""What is measured, in the order of the table."""

PARTS = list(dict.fromkeys(case.part for case in CASES))


# --- measuring --------------------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """Seconds per operation: the median of the rounds, and half the distance of the quartiles from each other."""

    median_s: float
    spread_s: float


class Result(NamedTuple):
    """One case beside one peer. `ratio`: how many times faster than the peer, below 1: slower."""

    case: Case
    ours: Figure
    peer_name: str
    peer: Figure

    @property
    def ratio(self) -> float:
        return self.peer.median_s / self.ours.median_s


def measure(case: Case, round_s: float) -> list[Result]:
    """Ours beside each peer that is installed; all in the same rounds."""
    peers = [peer for peer in case.peers if peer.installed]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nova-bench-")))
        works = [stack.enter_context(maker(folder)) for maker in (case.ours, *(peer.maker for peer in peers))]
        ours, *theirs = in_turns(works, round_s, operations=case.operations)
    return [Result(case, ours, peer.name, found) for peer, found in zip(peers, theirs, strict=True)]


def in_turns(works: list[Work], round_s: float, *, operations: int = 1, rounds: int = ROUNDS) -> list[Figure]:
    """One figure for each: in every round, each has its turn of about `round_s`."""
    loops = [_loops(work, round_s) for work in works]
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for which, work in enumerate(works):
            times[which].append(_time(work, loops[which]) / loops[which] / operations)
    return [figure(each) for each in times]


def figure(times: list[float]) -> Figure:
    """Median and spread of some timings."""
    if len(times) < 2:
        return Figure(times[0], 0.0)
    low, median, high = statistics.quantiles(times, n=4)
    return Figure(median, (high - low) / 2)


def _loops(work: Work, round_s: float) -> int:
    if not (hasattr(work, "prepare") or work()):
        raise AssertionError(f"{work} returned nothing: it did not do its work")
    loops, took = 1, _time(work, 1)
    while took < round_s / 2 and loops < 1 << 24:
        loops = max(loops * 2, min(loops * 10, int(loops * round_s / max(took, 1e-7))))
        took = _time(work, loops)
    return loops


def _time(work: Work, loops: int) -> float:
    prepare = getattr(work, "prepare", None)
    clock = time.perf_counter
    if prepare is not None:  # what a call uses up is made anew outside the timed part
        total = 0.0
        for _ in range(loops):
            prepare()
            start = clock()
            work()
            total += clock() - start
        return total
    start = clock()
    for _ in range(loops):
        work()
    return clock() - start


def machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, kernel, Python, compiler of the native modules."""
    import nova._native

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
    compiler = "unknown"
    for module in sorted(Path(nova._native.__path__[0]).glob("*.so")):
        named = re.search(rb"GCC: \([^)]*\) [0-9.]+|clang version [0-9.]+", module.read_bytes())
        if named:
            compiler = named[0].decode()
            break
    release = re.match(r"[0-9.]+", platform.release())
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "kernel": f"{platform.system()} {release[0] if release else platform.release()}",
        "python": platform.python_version(),
        "compiler": compiler,
        "nova": __version__,
    }


def seconds(value: float) -> str:
    """A duration with three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def bench(
    part: Annotated[
        str | None, typer.Argument(metavar="[PART]", help=f"Only these: {', '.join(PARTS)}.", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the time, rougher figures.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the hot paths on this machine, each beside a peer that every machine has.

    Beside libraries that do the same, such as loro, xxhash and nbdime, too, where they are installed.

    RATIO says how many times faster than the peer; SPREAD is half the interquartile range.

    Example: nova bench store --json
    """
    if part is not None and part not in PARTS:
        raise UsageError(f"there is no part {part!r} to measure; the parts are {', '.join(PARTS)}")
    cases = [case for case in CASES if part in (None, case.part)]
    results = [result for case in cases for result in measure(case, 0.002 if quick else 0.02)]
    missing = sorted({peer.library for case in cases for peer in case.others if not peer.installed})
    if as_json:
        rows = [
            {
                "part": result.case.part,
                "case": result.case.name,
                "seconds": result.ours.median_s,
                "spread_s": result.ours.spread_s,
                "per_s": 1 / result.ours.median_s,
                "peer": result.peer_name,
                "peer_seconds": result.peer.median_s,
                "peer_spread_s": result.peer.spread_s,
                "ratio": result.ratio,
            }
            for result in results
        ]
        print_json({"machine": machine(), "not_installed": missing, "cases": rows})
        return
    table = [
        (
            result.case.part,
            result.case.name,
            seconds(result.ours.median_s),
            f"{result.ours.spread_s / result.ours.median_s:.0%}",
            f"{1 / result.ours.median_s:,.0f}",
            result.peer_name,
            seconds(result.peer.median_s),
            f"{result.ratio:.2f}",
        )
        for result in results
    ]
    print_table(("PART", "CASE", "NOVA", "SPREAD", "PER S", "PEER", "TAKES", "RATIO"), table, "nothing")
    facts = machine()
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['kernel']}, Python {facts['python']}, {facts['compiler']}")
    if missing:
        print(f"not installed, so not measured: {', '.join(missing)}")
