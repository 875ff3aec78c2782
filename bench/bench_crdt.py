"""CRDTs beside plain dicts and, where installed, pycrdt, loro and automerge. Run: pytest bench/bench_crdt.py

A merge is timed on a fresh copy each round. `shared` is how much both sides have already when they part: of a million
elements each side then changes one in a hundred.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from nova.cli.benchmarks import DictORSet
from nova.crdt import LWWMap, LWWRegister, MVRegister, ORMap, ORSet, PNCounter

GROWTH = [1_000, 100_000, 1_000_000]
LOOP = 100  # under a microsecond the harness is half the number
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


def set_pair(kind: Any, size: int, changed: int = 0) -> tuple[Any, Any]:
    a = large(kind, size)
    b = a.fork("b")
    for i in range(changed or size // CHANGED):
        b.add(f"element-{i * 97 % size}")
    return a, b


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
def test_full_merge(benchmark: Any, what: str, peer: str, size: int) -> None:
    benchmark.group = f"crdt.full merge, {what}, {size:,}"
    make, peers = PAIRS[what]
    a, b = make(peers[peer], size)
    if peer == "nova":  # what was written since the last digest is hashed once, by whoever asks first
        a.digest()
        b.digest()
    benchmark.pedantic(lambda x, y: x.merge(y), setup=lambda: ((a.fork("c"), b), {}), rounds=5)


@pytest.mark.parametrize("size", [1_000, 100_000])
@pytest.mark.parametrize("peer", SETS)
def test_merge_of_sets_that_share_nothing(benchmark: Any, size: int, peer: str) -> None:
    benchmark.group = f"crdt.full merge, OR-Set, all of it new, {size:,}"
    a, b = filled(SETS[peer], "a", size), filled(SETS[peer], "b", size)
    benchmark.pedantic(lambda x, y: x.merge(y), setup=lambda: ((a.fork("c"), b), {}), rounds=5)


@pytest.mark.parametrize("size", GROWTH)
@pytest.mark.parametrize("peer", SETS)
def test_merge_that_brings_nothing_new(benchmark: Any, size: int, peer: str) -> None:
    benchmark.group = f"crdt.merge that brings nothing new, {size:,} elements"
    a = large(SETS[peer], size)
    b = a.fork("b")
    if peer == "dict":
        benchmark.pedantic(a.merge, (b,), rounds=3)
        return
    benchmark.extra_info["operations"] = LOOP
    merge = a.merge

    def loop() -> bool:
        for _ in range(LOOP):
            merge(b)
        return True

    assert benchmark(loop)


@pytest.mark.parametrize("size", GROWTH)
def test_delta_into(benchmark: Any, size: int) -> None:
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
    benchmark.pedantic(lambda x: x.apply_delta(delta), setup=lambda: ((a.fork(None),), {}), rounds=5)


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


@pytest.mark.parametrize("what", ["add_many", "contains_many"])
def test_batches_of_integers(benchmark: Any, what: str) -> None:
    import numpy

    numbers = numpy.arange(100_000)
    benchmark.group = f"crdt.{what} of 100,000 integers, each"
    benchmark.extra_info["operations"] = len(numbers)
    elements = ORSet("a")
    elements.add_many(numbers)
    if what == "add_many":
        benchmark.pedantic(lambda x: x.add_many(numbers), setup=lambda: ((ORSet("b"),), {}), rounds=5)
    else:
        assert benchmark(elements.contains_many, numbers).all()


@pytest.mark.parametrize("peer", ["nova", "dict"])
def test_register_of_the_last_writer_merges(benchmark: Any, peer: str) -> None:
    """A newer value arrives, on each of a hundred registers."""
    benchmark.group = "crdt.LWW-Register, a merge that brings a newer value"
    benchmark.extra_info["operations"] = LOOP
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

    benchmark.pedantic(merges, setup=lambda: (([a.fork(None) for _ in range(LOOP)],), {}), rounds=50)


def test_registers_of_two_siblings_each_merge(benchmark: Any) -> None:
    benchmark.group = "crdt.MV-Register, 2 x 2 siblings merged"
    benchmark.extra_info["operations"] = LOOP
    a, b, c, d = (MVRegister(actor) for actor in "abcd")
    for one in (a, b, c, d):
        one.set(one.actor)
    a.merge(b)
    c.merge(d)

    def merges(ones: list[Any]) -> None:
        for one in ones:
            one.merge(c)

    benchmark.pedantic(merges, setup=lambda: (([a.fork(None) for _ in range(LOOP)],), {}), rounds=50)
    assert len(a.fork(None).merge(c).value) == 4


@pytest.mark.parametrize("size", GROWTH)
def test_memory_of_an_element(benchmark: Any, size: int) -> None:
    """Everything that a set of the integers from 0 takes, less the bytes of the integers; and per element of the same
    set after each was added again."""
    import numpy

    benchmark.group = "crdt.memory of a set of integers"
    numbers = numpy.arange(size)
    elements = ORSet("a")
    benchmark.pedantic(elements.add_many, (numbers,), rounds=1)
    spelt = sum(1 if i < 128 else 2 if i < 256 else 3 if i < 65536 else 5 for i in range(size))
    before = elements.nbytes
    elements.add_many(numbers)
    benchmark.extra_info["figures"] = {
        "metadata_bytes_an_element": round((before - spelt) / size, 1),
        "bytes_an_element": round(before / size, 1),
        "bytes_an_element_added_again": round(elements.nbytes / size, 1),
    }


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
