"""CRDTs beside plain dicts and, where installed, pycrdt and loro. Run: pytest bench/bench_crdt.py

A merge is timed on a fresh copy each round. `shared` is how much both sides have already when they part: of a million
elements each side then changes one in a hundred.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from nova.cli.benchmarks import DictORSet
from nova.crdt import LWWMap, LWWRegister, MVRegister, ORMap, ORSet, PNCounter

GROWTH = [1_000, 100_000, 1_000_000]
LOOP = 100  # under a microsecond the harness is half the number
REGISTERS = 1_000  # a loop that cannot be repeated without new registers: long enough for the CPU clock's 0.7 us
CHANGED = 100  # one row in so many


class DictCounter:
    """Totals of each actor: the greater of both sides, as plain dicts do it."""

    def __init__(self, actor: str, totals: dict[str, tuple[int, int]] | None = None) -> None:
        self.actor, self.totals = actor, totals or {}

    def increment(self) -> None:
        plus, minus = self.totals.get(self.actor, (0, 0))
        self.totals[self.actor] = plus + 1, minus

    def fork(self, actor: str) -> DictCounter:
        return DictCounter(actor, dict(self.totals))

    def merge(self, other: DictCounter) -> DictCounter:
        for actor, (plus, minus) in other.totals.items():
            mine = self.totals.get(actor, (0, 0))
            self.totals[actor] = max(mine[0], plus), max(mine[1], minus)
        return self


class DictLWWMap:
    """The greatest (stamp, actor) of each key."""

    def __init__(self, actor: str, rows: dict[str, tuple[int, str, Any]] | None = None) -> None:
        self.actor, self.rows = actor, rows or {}

    def set(self, key: str, value: Any, stamp: int) -> None:
        self.rows[key] = stamp, self.actor, value

    def fork(self, actor: str) -> DictLWWMap:
        return DictLWWMap(actor, dict(self.rows))

    def merge(self, other: DictLWWMap) -> DictLWWMap:
        for key, row in other.rows.items():
            mine = self.rows.get(key)
            if mine is None or mine[:2] < row[:2]:
                self.rows[key] = row
        return self


class DictMVRegister:
    """The values of writes that nobody has overwritten, by dot, and what was seen."""

    def __init__(self, actor: str | None, rows: dict[Any, Any] | None = None, seen: dict[Any, int] | None = None):
        self.actor, self.rows, self.seen = actor, rows or {}, seen or {}

    @property
    def value(self) -> list[Any]:
        return sorted(self.rows.values())

    def set(self, value: Any) -> None:
        self.seen[self.actor] = count = self.seen.get(self.actor, 0) + 1
        self.rows = {(self.actor, count): value}

    def fork(self, actor: str | None) -> DictMVRegister:
        return DictMVRegister(actor, dict(self.rows), dict(self.seen))

    def merge(self, other: DictMVRegister) -> DictMVRegister:
        mine, theirs = self.rows, other.rows
        kept = {dot: value for dot, value in mine.items() if dot in theirs or other.seen.get(dot[0], 0) < dot[1]}
        kept.update((dot, value) for dot, value in theirs.items() if self.seen.get(dot[0], 0) < dot[1])
        self.rows = kept
        for actor, count in other.seen.items():
            self.seen[actor] = max(count, self.seen.get(actor, 0))
        return self


SETS: dict[str, Any] = {"nova": ORSet, "dict": DictORSet}


def filled(kind: Any, actor: str, size: int) -> Any:
    out = kind(actor)
    for i in range(size):
        out.add(f"element-{i}")
    return out


@cache
def large(kind: Any, size: int) -> Any:
    """Made once for all benchmarks; they fork it."""
    return filled(kind, "a", size)


def changed(a: Any, count: int) -> Any:
    """A fork that added so many of the elements again."""
    b = a.fork("b")
    for i in range(count):
        b.add(f"element-{i * 97 % len(a)}")
    return b


def set_pair(kind: Any, size: int, count: int = 0) -> tuple[Any, Any]:
    a = large(kind, size)
    return a, changed(a, count or size // CHANGED)


def map_pair(kind: Any, size: int) -> tuple[Any, Any]:
    a = kind("a")
    for i in range(size):
        a.set(f"key-{i}", i, i + 1)
    b = a.fork("b")
    for i in range(size // CHANGED):
        b.set(f"key-{i * 97 % size}", -i, size + i + 1)
    return a, b


def counter_pair(kind: Any, size: int) -> tuple[Any, Any]:
    """As many actors, each with a total."""
    if kind is DictCounter:
        a = DictCounter("a", {f"actor-{i}": (i, 0) for i in range(size)})
    else:
        a = kind("a")
        for i in range(size):
            one = kind(f"actor-{i}")
            one.increment()
            a.merge(one)
    b = a.fork("b")
    b.increment()
    return a, b


def nested_pair(kind: Any, size: int) -> tuple[Any, Any]:
    """As many keys, under each a set of one."""
    a = kind("a")
    for i in range(size):
        a.at(f"key-{i}", ORSet).add(i)
    b = a.fork("b")
    for i in range(size // CHANGED):
        b.at(f"key-{i * 97 % size}", ORSet).add(-i)
    return a, b


PAIRS: dict[str, tuple[Callable[[Any, int], tuple[Any, Any]], dict[str, Any]]] = {
    "PN-Counter, one actor counted on": (counter_pair, {"nova": PNCounter, "dict": DictCounter}),
    "OR-Set, 100 changed": (lambda kind, size: set_pair(kind, size, 100), SETS),
    "OR-Set, 1% changed": (set_pair, SETS),
    "LWW-Map, 1% changed": (map_pair, {"nova": LWWMap, "dict": DictLWWMap}),
    "OR-Map of sets, 1% changed": (nested_pair, {"nova": ORMap}),
}


@pytest.mark.parametrize("size", GROWTH)
@pytest.mark.parametrize(("what", "peer"), [(what, peer) for what, (_, peers) in PAIRS.items() for peer in peers])
def test_full_merge(benchmark: Any, best_of: Any, what: str, peer: str, size: int) -> None:
    benchmark.group = f"crdt.full merge, {what}, {size:,}"
    make, peers = PAIRS[what]
    a, b = make(peers[peer], size)
    if peer == "nova":  # what was written since the last digest is hashed once, by whoever asks first
        a.digest()
        b.digest()
    best_of(lambda x, y: x.merge(y), lambda: (a.fork("c"), b))


@pytest.mark.parametrize("size", GROWTH)
@pytest.mark.parametrize("peer", ["nova", "nova-one side told"])
def test_full_merge_of_fresh_states(benchmark: Any, best_of: Any, peer: str, size: int) -> None:
    """Nobody has asked these sets for a digest, so the merge hashes their rows: of both, or of the other side only.

    A dict has no digests: what it takes is what `test_full_merge` says.
    """
    benchmark.group = f"crdt.full merge, OR-Set, 1% changed, never digested, {size:,}"
    a = filled(ORSet, "a", size)  # not `large`: others ask that one for its digest
    b = changed(a, size // CHANGED)
    if "told" in peer:
        a.digest()
    found = best_of(lambda x, y: x.merge(y), lambda: (a.fork("c"), b.fork("d")))
    assert len(found) == size


@pytest.mark.parametrize("size", [1_000, 100_000])
@pytest.mark.parametrize("peer", SETS)
def test_merge_of_sets_that_share_nothing(benchmark: Any, best_of: Any, size: int, peer: str) -> None:
    benchmark.group = f"crdt.full merge, OR-Set, all of it new, {size:,}"
    a, b = filled(SETS[peer], "a", size), filled(SETS[peer], "b", size)
    best_of(lambda x, y: x.merge(y), lambda: (a.fork("c"), b))


@pytest.mark.parametrize("size", GROWTH)
@pytest.mark.parametrize("peer", SETS)
def test_merge_that_brings_nothing_new(benchmark: Any, best_of: Any, size: int, peer: str) -> None:
    benchmark.group = f"crdt.merge that brings nothing new, {size:,} elements"
    a = large(SETS[peer], size)
    b = a.fork("b")
    if peer == "dict":
        best_of(lambda: a.merge(b))
        return
    benchmark.extra_info["operations"] = LOOP
    merge = a.merge

    def loop() -> bool:
        for _ in range(LOOP):
            merge(b)
        return True

    assert benchmark(loop)


@pytest.mark.parametrize("size", GROWTH)
def test_delta_into(benchmark: Any, best_of: Any, size: int) -> None:
    """A delta of a hundred dots, or in the largest of ten thousand, applied."""
    news = 10_000 if size > 100_000 else 100
    benchmark.group = f"crdt.delta applied to {size:,} elements, a dot"
    benchmark.extra_info["operations"] = news
    a = large(ORSet, size)
    b = a.fork("b")
    for i in range(news):
        b.add(f"news-{i}")
    delta = b.delta_since(a.context)
    benchmark.extra_info["bytes"] = len(delta)
    best_of(lambda x: x.apply_delta(delta), lambda: (a.fork(None),))


@pytest.mark.parametrize("size", GROWTH)
def test_delta_of_one_dot_from_a_set_full_of_holes(benchmark: Any, size: int) -> None:
    """One element in a hundred was added again, so the living dots are in as many runs; then one is new."""
    benchmark.group = f"crdt.delta_since of one dot, OR-Set of {size:,}, 1% added again"
    a = large(ORSet, size)
    b = a.fork("b")
    for i in range(0, size, CHANGED):
        b.add(f"element-{i}")
    reader = b.fork(None)
    b.add("news")
    known = reader.context
    delta = benchmark(b.delta_since, known)
    benchmark.extra_info["bytes"] = len(delta)
    assert reader.apply_delta(delta) == b


@pytest.mark.parametrize("peer", ["nova", "dict", "pycrdt", "loro"])
def test_or_set_add(benchmark: Any, peer: str) -> None:
    benchmark.group = "crdt.add to a set of 1,000, again and again"
    benchmark.extra_info["operations"] = LOOP
    if peer in SETS:
        add = filled(SETS[peer], "a", 1000).add
    elif peer == "pycrdt":
        pycrdt = pytest.importorskip("pycrdt", reason="peer pycrdt is not installed")
        doc = pycrdt.Doc()
        doc["m"] = shared = pycrdt.Map()

        def add(element: str) -> None:
            shared[element] = True
    else:
        loro = pytest.importorskip("loro", reason="peer loro is not installed")
        shared = loro.LoroDoc().get_map("m")

        def add(element: str) -> None:
            shared.insert(element, True)

    names = [f"element-{i}" for i in range(LOOP)]

    def loop() -> bool:
        for name in names:
            add(name)
        return True

    assert benchmark(loop)


def some_of(size: int) -> list[str]:
    """Up to a hundred thousand different elements of a set of so many, in no order."""
    return [f"element-{i}" for i in random.Random(3).sample(range(size), min(size, 100_000))]


@pytest.mark.parametrize("size", GROWTH)
@pytest.mark.parametrize("peer", SETS)
def test_or_set_add_at_random(benchmark: Any, best_of: Any, size: int, peer: str) -> None:
    """Elements that are there are added again, each once, in no order."""
    benchmark.group = f"crdt.add again to a set of {size:,}, at random"
    names = some_of(size)
    benchmark.extra_info["operations"] = len(names)
    elements = large(SETS[peer], size)

    def adds(one: Any) -> Any:
        add = one.add
        for name in names:
            add(name)
        return one

    assert len(best_of(adds, lambda: (elements.fork("b"),))) == size


@pytest.mark.parametrize("size", GROWTH)
@pytest.mark.parametrize("peer", ["nova", "dict"])
def test_contains(benchmark: Any, size: int, peer: str) -> None:
    """One element that is there; the dict peer is Python's own."""
    benchmark.group = f"crdt.contains, {size:,} elements"
    benchmark.extra_info["operations"] = LOOP
    elements = large(SETS[peer], size)
    if peer == "dict":
        elements = elements.rows

    def loop() -> bool:
        for _ in range(LOOP):
            out = "element-7" in elements
        return out

    assert benchmark(loop)


@pytest.mark.parametrize("size", GROWTH)
@pytest.mark.parametrize("peer", ["nova", "dict"])
def test_contains_at_random(benchmark: Any, size: int, peer: str) -> None:
    """In a large set the table, the row and the text asked for miss the cache."""
    benchmark.group = f"crdt.contains, {size:,} elements, at random"
    elements = large(SETS[peer], size)
    if peer == "dict":
        elements = elements.rows
    names = some_of(size)
    benchmark.extra_info["operations"] = len(names)

    def loop() -> bool:
        for name in names:
            out = name in elements
        return out

    assert all(name in elements for name in names)
    assert "element-x" not in elements
    assert benchmark(loop)


@pytest.mark.parametrize("what", ["add_many", "contains_many"])
def test_batches_of_integers(benchmark: Any, best_of: Any, what: str) -> None:
    import numpy

    numbers = numpy.arange(100_000)
    benchmark.group = f"crdt.{what} of 100,000 integers, each"
    benchmark.extra_info["operations"] = len(numbers)
    elements = ORSet("a")
    elements.add_many(numbers)
    if what == "add_many":
        best_of(lambda x: x.add_many(numbers), lambda: (ORSet("b"),))
    else:
        assert benchmark(elements.contains_many, numbers).all()


@pytest.mark.parametrize("peer", ["nova", "dict"])
def test_register_of_the_last_writer_merges(benchmark: Any, best_of: Any, peer: str) -> None:
    """A newer value arrives, on each of a thousand registers."""
    benchmark.group = "crdt.LWW-Register, a merge that brings a newer value"
    benchmark.extra_info["operations"] = REGISTERS
    kind: Any = LWWRegister if peer == "nova" else DictLWWMap
    key = () if peer == "nova" else ("",)
    a, b = kind("a"), kind("b")
    a.set(*key, 1, 1)
    b.set(*key, 2, 2)
    a.merge(b)
    b.set(*key, 3, 3)

    def merges(ones: list[Any]) -> None:
        for one in ones:
            one.merge(b)

    best_of(merges, lambda: ([a.fork(None) for _ in range(REGISTERS)],))


@pytest.mark.parametrize("peer", ["nova", "dict"])
def test_registers_of_two_siblings_each_merge(benchmark: Any, best_of: Any, peer: str) -> None:
    benchmark.group = "crdt.MV-Register, 2 x 2 siblings merged"
    benchmark.extra_info["operations"] = REGISTERS
    kind: Any = MVRegister if peer == "nova" else DictMVRegister
    a, b, c, d = (kind(actor) for actor in "abcd")
    for one in (a, b, c, d):
        one.set(one.actor)
    a.merge(b)
    c.merge(d)

    def merges(ones: list[Any]) -> None:
        for one in ones:
            one.merge(c)

    best_of(merges, lambda: ([a.fork(None) for _ in range(REGISTERS)],))
    assert len(a.fork(None).merge(c).value) == 4


def elements_of(what: str, size: int) -> tuple[Any, int]:
    """So many elements, and the bytes that they are written in: integers with their tag, text without."""
    if what == "strings":
        names = [f"element-{i}" for i in range(size)]
        return names, sum(map(len, names))
    import numpy

    return numpy.arange(size), sum(1 if i < 128 else 2 if i < 256 else 3 if i < 65536 else 5 for i in range(size))


@pytest.mark.parametrize("size", GROWTH)
@pytest.mark.parametrize("what", ["integers", "strings"])
def test_memory_of_an_element(benchmark: Any, what: str, size: int) -> None:
    """Everything that a set of so many elements takes, less the bytes of the elements; and per element of the same set
    after each was added again."""
    benchmark.group = f"crdt.memory of a set of {what}"
    given, spelt = elements_of(what, size)
    elements = ORSet("a")
    benchmark.pedantic(elements.add_many, (given,), rounds=1)
    before = elements.nbytes
    elements.add_many(given)
    benchmark.extra_info["figures"] = {
        "metadata_bytes_an_element": round((before - spelt) / size, 1),
        "bytes_an_element": round(before / size, 1),
        "bytes_an_element_added_again": round(elements.nbytes / size, 1),
    }


def test_memory_of_an_element_in_dicts(benchmark: Any) -> None:
    """What Python allocates for the same set; the elements themselves are the caller's and not counted."""
    benchmark.group = "crdt.memory of a set of strings, in dicts"
    given, _ = elements_of("strings", 100_000)
    elements = DictORSet("a")
    tracemalloc.start()
    try:
        benchmark.pedantic(lambda: [elements.add(name) for name in given], rounds=1)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    benchmark.extra_info["figures"] = {"metadata_bytes_an_element": round(taken / len(given), 1)}


def test_a_million_cycles_on_ten_keys(benchmark: Any) -> None:
    benchmark.group = "crdt.add and remove, 10 keys"
    benchmark.extra_info["operations"] = 100_000
    elements = ORSet("a")

    def cycles() -> None:
        for i in range(100_000):
            elements.add(i % 10)
            elements.remove(i % 10)

    benchmark.pedantic(cycles, rounds=10)
    assert elements.nbytes < 100_000


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_bytes_and_back(benchmark: Any, size: int) -> None:
    benchmark.group = f"crdt.to_bytes and from_bytes, {size:,} elements"
    a = large(ORSet, size)
    assert len(benchmark(lambda: ORSet.from_bytes(a.to_bytes()))) == size


@pytest.mark.parametrize("peer", ["nova", "dict"])
def test_counter_increment(benchmark: Any, peer: str) -> None:
    benchmark.group = "crdt.counter, one increment"
    benchmark.extra_info["operations"] = LOOP
    increment = (PNCounter if peer == "nova" else DictCounter)("a").increment

    def loop() -> bool:
        for _ in range(LOOP):
            increment()
        return True

    assert benchmark(loop)


def test_writes_of_the_last_writer(benchmark: Any) -> None:
    benchmark.group = "crdt.LWW-Map, one set"
    lww, stamps = LWWMap("a"), iter(range(1, 10**9))
    assert benchmark(lambda: lww.set("key", "value", next(stamps)))
