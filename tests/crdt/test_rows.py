"""The kernel of the row types at a size where it matters: chunks that split and empty, an arena that is rewritten, a
table that grows, siblings by the dozen, boxes that come and go. The twin below is plain dicts and cannot be wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nova.crdt import GSet, LWWMap, LWWRegister, MVRegister, ORMap, ORSet, PNCounter, TwoPSet
from nova.errors import CorruptionError

Path = tuple[Any, ...]


class Twin:
    """Rows by dot under a set of known dots: what the module's docstring says, and nothing else."""

    def __init__(self, actor: str) -> None:
        self.actor = actor
        self.known: set[tuple[str, int]] = set()
        self.count = 0
        self.rows: dict[tuple[str, int], tuple[Path, Any]] = {}

    def event(self, drops: list[tuple[str, int]], path: Path | None = None, payload: Any = None) -> None:
        self.count += 1
        dot = self.actor, self.count
        self.known.add(dot)
        for old in drops:
            del self.rows[old]
        if path is not None:
            self.rows[dot] = path, payload

    def at(self, path: Path) -> list[tuple[str, int]]:
        return [dot for dot, (where, _) in self.rows.items() if where == path]

    def under(self, path: Path) -> list[tuple[str, int]]:
        return [dot for dot, (where, _) in self.rows.items() if where[: len(path)] == path]

    def merge(self, other: Twin) -> None:
        for dot in [dot for dot in self.rows if dot in other.known and dot not in other.rows]:
            del self.rows[dot]
        self.rows.update({dot: row for dot, row in other.rows.items() if dot not in self.known})
        self.known |= other.known


class SetPair:
    kind: Any = ORSet

    def __init__(self, actor: str) -> None:
        self.real, self.twin = self.kind(actor=actor), Twin(actor)

    def act(self, rng: random.Random, span: int) -> None:
        element: Any = rng.randrange(span)
        if rng.random() < 0.3:
            element = f"{'long ' * (element % 9)}{element}"
        if rng.random() < 0.45:
            drops = self.twin.at((element,))
            assert self.real.remove(element) is bool(drops)
            if drops:
                self.twin.event(drops)
        elif rng.random() < 0.002:
            if self.twin.rows:
                self.twin.event(list(self.twin.rows))
            self.real.clear()
        else:
            self.real.add(element)
            self.twin.event(self.twin.at((element,)), (element,))

    def check(self) -> None:
        expected = {path[0] for path, _ in self.twin.rows.values()}
        assert self.real.value == expected
        assert len(self.real) == len(expected)
        assert len(list(self.real)) == len(expected)


class MapPair(SetPair):
    """Sets and registers by key, in maps in a map."""

    kind = ORMap

    def act(self, rng: random.Random, span: int) -> None:
        key, inner = str(rng.randrange(span // 40 + 2)), str(rng.randrange(4))
        what = rng.random()
        if what < 0.1:
            drops = self.twin.under((key,))
            assert self.real.remove(key) is bool(drops)
            if drops:
                self.twin.event(drops)
        elif what < 0.2:
            box = self.real.at(key, ORMap)
            drops = self.twin.under((key, inner))
            assert box.remove(inner) is bool(drops)
            if drops:
                self.twin.event(drops)
        elif what < 0.5:
            value = rng.randrange(100)
            self.real.at(key, ORMap).at(inner, MVRegister).set(value)
            self.twin.event(self.twin.at((key, inner, "mv")), (key, inner, "mv"), value)
        else:
            element = rng.randrange(6)
            box = self.real.at(key, ORMap).at(inner, ORSet)
            drops = self.twin.at((key, inner, "set", element))
            if what < 0.7:
                assert box.remove(element) is bool(drops)
                if drops:
                    self.twin.event(drops)
            else:
                box.add(element)
                self.twin.event(drops, (key, inner, "set", element))

    def check(self) -> None:
        keys = {path[0] for path, _ in self.twin.rows.values()}
        assert set(self.real) == keys
        assert len(self.real) == len(keys)
        for key in keys:
            inner = self.real.at(key, ORMap)
            assert set(inner) == {path[1] for path, _ in self.twin.rows.values() if path[0] == key}
            for name in inner:
                rows = [(path[2:], value) for path, value in self.twin.rows.values() if path[:2] == (key, name)]
                elements = {path[1] for path, _ in rows if path[0] == "set"}
                assert inner.at(name, ORSet).value == elements
                assert len(inner.at(name, ORSet)) == len(elements)
                assert set(inner.at(name, MVRegister).value) == {value for path, value in rows if path[0] == "mv"}


@pytest.mark.parametrize("pair", [SetPair, MapPair], ids=["ORSet", "ORMap"])
@pytest.mark.parametrize(("seed", "span", "steps"), [(1, 6, 3000), (2, 60, 3000), (3, 1500, 4000), (4, 300, 3000)])
def test_the_kernel_does_what_dicts_do(pair, seed, span, steps):
    rng = random.Random(seed)
    pairs = [pair(name) for name in "abcd"]
    for step in range(steps):
        one = rng.choice(pairs)
        for _ in range(rng.choice((1, 1, 8))):
            one.act(rng, span)
        if rng.random() < 0.08:
            other = rng.choice(pairs)
            if rng.random() < 0.5:
                other.real.merge(one.real)
            else:
                other.real.apply_delta(one.real.delta_since(other.real.context))
            other.twin.merge(one.twin)
            assert other.real.digest() == type(other.real).from_bytes(other.real.to_bytes()).digest()
        if step % 400 == 399:
            one.check()
    for one in pairs:
        pairs[0].real.merge(one.real)
        pairs[0].twin.merge(one.twin)
    for one in pairs:
        one.real.apply_delta(pairs[0].real.delta_since(one.real.context))
        one.twin.merge(pairs[0].twin)
        one.check()
        assert one.real.to_bytes() == pairs[0].real.to_bytes()
        assert one.real.digest() == pairs[0].real.digest()
        assert one.real.fork(None) == one.real


def test_many_siblings_are_merged_and_removed_in_linear_time():
    """A stranger may send any number of writers of one key; a chain must not be walked once for each."""
    reader = ORSet()
    for i in range(3000):
        writer = ORSet(actor=f"w{i}")
        writer.add("x")
        reader.merge(writer)
    assert len(reader) == 1
    keeper = reader.fork("keeper")
    assert keeper.remove("x")
    assert reader.merge(keeper).value == frozenset()
    assert reader == keeper


@pytest.mark.parametrize("size", [3, 60, 200])
def test_one_double_spent_dot_among_many_is_found(size):
    def history(last: int) -> ORSet:
        out = ORSet(actor="a")
        out.add_many([*range(size - 1), last])
        return out

    reader = ORSet().merge(history(-1))
    before = reader.to_bytes()
    other = history(-2)
    more = ORSet(actor="b")
    more.add("news")
    other.merge(more)
    with pytest.raises(CorruptionError, match=f"event {size} of actor 'a' is two different writes"):
        reader.merge(other)
    assert reader.to_bytes() == before


@pytest.mark.parametrize("kind", [ORSet, ORMap])
@pytest.mark.parametrize("told", ["neither", "ours", "theirs"])
def test_copies_that_lie_alike_are_compared_in_place_of_being_hashed_and_have_the_same_digests(kind, told):
    rng = random.Random(11)
    origin = kind("origin")

    def elements(one: Any) -> Any:
        return one if kind is ORSet else one.at("set", ORSet)

    elements(origin).add_many(range(1000))
    ours, theirs = origin.fork("ours"), origin.fork("theirs")
    for _ in range(4):  # what was compared twice is hashed
        for one in ours, theirs:
            for _ in range(20):
                elements(one).add(rng.randrange(1200))
                elements(one).remove(rng.randrange(1200))
        if told != "neither":
            (ours if told == "ours" else theirs).digest()
        for one, other in (ours, theirs), (theirs, ours):
            one.merge(other)
            for each in one, other:  # its fork is asked, so that it is not told itself
                assert each.fork(None).digest() == kind.from_bytes(each.to_bytes()).digest()
        assert ours.value == theirs.value


@pytest.mark.parametrize("told", [False, True])
def test_one_double_spent_dot_is_found_among_copies_that_lie_alike(told):
    origin = ORSet("origin")
    origin.add_many(range(1000, 1100))
    one, other = origin.fork("twice"), origin.fork("twice")
    for element in range(1100, 1300):
        one.add(element)
        other.add(element if element != 1250 else 1900)
    other = other.fork("elsewhere")
    other.add("news")
    reader = one.fork(None)
    if told:
        reader.digest()
    before = reader.to_bytes()
    with pytest.raises(CorruptionError, match="event 151 of actor 'twice' is two different writes"):
        reader.merge(other)
    assert reader.to_bytes() == before


def test_a_million_cycles_on_ten_keys_stay_in_bounded_memory():
    s, peer = ORSet(actor="a"), ORSet(actor="b")
    sizes = []
    for _ in range(100):
        for i in range(10_000):
            s.add(i % 10)
            if i % 3:
                s.remove(i % 10)
        peer.merge(s)
        sizes.append((s.nbytes, peer.nbytes, len(s.to_bytes()), len(s.delta_since(peer.context))))
    assert max(sizes[50:]) <= max(sizes[:50])
    assert max(map(max, sizes)) < 200_000
    assert s.value == peer.value


def test_registers_and_maps_of_last_writers_settle_alike_whatever_way_they_merge():
    rng = random.Random(5)
    for kind in (LWWRegister, LWWMap):
        replicas = [kind(actor=name) for name in "abc"]
        for step in range(3000):
            one = rng.choice(replicas)
            key = () if kind is LWWRegister else (f"k{rng.randrange(40)}",)
            if kind is LWWMap and rng.random() < 0.2:
                one.remove(*key)
            else:
                stamp = (step + rng.randrange(30)) * 10_000 + 3 * step + replicas.index(one)
                one.set(*key, rng.randrange(5), stamp)
            if rng.random() < 0.2:
                other = rng.choice(replicas)
                if rng.random() < 0.5:
                    other.merge(one)
                else:
                    other.apply_delta(one.delta_since(other.context))
        for one in replicas:
            replicas[0].merge(one)
        for one in replicas[1:]:
            one.merge(replicas[0])
            assert one == replicas[0]
            assert one.value == replicas[0].value
            assert one.digest() == replicas[0].digest()


@pytest.mark.parametrize("kind", [ORSet, GSet])
def test_batches_are_the_same_as_single_calls(kind):
    import numpy

    numbers = numpy.array([5, -1, 127, 128, -33, 2**40, -(2**63), 5, 70000, 255, 256, -129, 2**31], numpy.int64)
    one, many, listed = kind(actor="a"), kind(actor="a"), kind(actor="a")
    for number in numbers.tolist():
        one.add(number)
    many.add_many(numbers)
    listed.add_many(numbers.tolist())
    assert one == many == listed
    asked = [5, 6, "x", -33, (1, 2)]
    assert many.contains_many(asked).tolist() == [element in one for element in asked]
    assert many.contains_many(numpy.array([5, 6, -33])).tolist() == [True, False, True]
    assert many.contains_many(numpy.zeros(0, numpy.int64)).tolist() == []
    if kind is ORSet:
        assert many.remove_many([5, 6, -33, 5]) == 2
        assert 5 not in many
        assert many.remove_many([6]) == 0
        assert one.fork(None).merge(many) == many


def test_a_two_phase_set_answers_batches_by_its_marks():
    s = TwoPSet(actor="a")
    s.add(1)
    s.add(2)
    s.remove(2)
    assert s.contains_many([1, 2, 3]).tolist() == [True, False, False]
    assert PNCounter(actor="a").nbytes > 0


def test_what_is_read_from_bytes_is_found_by_its_keys():
    s, m = ORSet(actor="a"), LWWMap(actor="a")
    for i in range(300):
        s.add(i)
        m.set(f"k{i}", i, i + 1)
    again, map_again = ORSet.from_bytes(s.to_bytes(), actor="b"), LWWMap.from_bytes(m.to_bytes(), actor="b")
    assert len(again) == len(map_again) == 300
    assert 299 in again
    assert map_again.get("k299") == 299
    assert again.remove(7) is map_again.remove("k7") is True
    assert s.apply_delta(again.delta_since(s.context)).value == again.value == set(range(300)) - {7}
    assert len(m.apply_delta(map_again.delta_since(m.context))) == 299


def scattered(size: int) -> ORSet:
    """A set whose living dots have a hole at every second place."""
    out = ORSet(actor="a")
    out.add_many(range(size))
    out.remove_many(range(0, size, 2))
    return out


def test_a_delta_is_as_large_as_the_news_however_scattered_the_living_dots_are():
    s = scattered(4000)
    peer, reader = s.fork("b"), s.fork(None)
    s.add("news")
    s.remove(1)
    delta = s.delta_since(peer.context)
    assert len(delta) < 100
    assert peer.apply_delta(delta) == s
    peer.remove(3)
    assert len(peer.delta_since(s.context)) < 100
    assert s.apply_delta(peer.delta_since(s.context)) == peer
    assert len(peer.delta_since(reader.context)) < 150
    assert reader.apply_delta(peer.delta_since(reader.context)) == peer


def test_a_delta_from_before_the_log_names_all_that_is_gone():
    """Who was read from bytes does not know when its rows went."""
    s = scattered(400)
    asker = ORSet(actor="c")
    asker.apply_delta(s.delta_since())
    again = ORSet.from_bytes(s.to_bytes(), actor="d")
    again.add("news")
    assert len(again.delta_since(asker.context)) < 100
    assert asker.apply_delta(again.delta_since(asker.context)) == again
    behind = ORSet(actor="a")
    behind.add_many(range(400))
    behind = behind.fork(None)
    assert len(again.delta_since(behind.context)) > 400
    assert behind.apply_delta(again.delta_since(behind.context)) == again


def test_what_was_learned_without_a_row_goes_where_it_still_has_one():
    """The middle never saw the row that the writer dropped: it must still tell whoever has it."""
    first, second, middle, last = (ORSet(actor=name) for name in "abcd")
    first.add("x")
    last.merge(first)
    second.merge(first)
    second.remove("x")
    middle.apply_delta(second.delta_since(middle.context))
    middle.add("y")
    assert last.apply_delta(middle.delta_since(last.context)).value == {"y"}
    assert last == middle


@pytest.mark.parametrize("seed", range(6))
def test_logs_that_overflow_make_larger_deltas_and_no_other(seed):
    rng = random.Random(seed)
    replicas = [ORSet(actor=name) for name in "abcd"]
    for _ in range(400):
        one, other = rng.sample(replicas, 2)
        for _ in range(rng.choice((1, 1, 5, 150))):
            one.add(rng.randrange(30))
            one.remove(rng.randrange(30))
        merged = other.fork(None).merge(one)
        assert other.apply_delta(one.delta_since(other.context)) == merged
