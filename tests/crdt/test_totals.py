"""Counters of many writers: pages that copies share until one writes, and merges that take a page for another."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

from nova.crdt import GCounter, ORMap, PNCounter
from nova.errors import CorruptionError, UsageError

Twin = dict[str, tuple[int, int, int]]  # actor -> events, up, down

KINDS = [GCounter, PNCounter]


def count(counter: Any, twin: Twin, actor: str, amount: int) -> None:
    events, up, down = twin.get(actor, (0, 0, 0))
    if amount > 0:
        counter.increment(amount)
        twin[actor] = events + 1, up + amount, down
    else:
        counter.decrement(-amount)
        twin[actor] = events + 1, up, down - amount


def join(mine: Twin, theirs: Twin) -> None:
    for actor, total in theirs.items():
        mine[actor] = max(mine.get(actor, (0, 0, 0)), total)


def check(counter: Any, twin: Twin) -> None:
    assert counter.value == sum(up - down for _, up, down in twin.values())
    assert counter.context.vector.to_dict() == {actor: events for actor, (events, _, _) in twin.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seed", "actors", "steps"), [(1, 4, 1500), (2, 90, 2500), (3, 700, 4000)])
def test_counters_agree_with_totals_in_dicts(kind, seed, actors, steps):
    rng = random.Random(seed)
    pool = [f"{kind.__name__}-{seed}-{i}" for i in range(actors)]
    rng.shuffle(pool)
    ones: list[tuple[str, Any, Twin]] = [(name, kind(actor=name), {}) for name in (pool.pop() for _ in range(4))]
    for _ in range(steps):
        i, j = rng.randrange(4), rng.randrange(4)
        name, counter, twin = ones[i]
        what = rng.random()
        if what < 0.5:
            amount = rng.choice((1, 2, 200, 2**40))
            count(counter, twin, name, -amount if kind is PNCounter and rng.random() < 0.4 else amount)
        elif what < 0.7:
            counter.merge(ones[j][1])
            join(twin, ones[j][2])
        elif what < 0.8:
            counter.apply_delta(ones[j][1].delta_since(counter.context))
            join(twin, ones[j][2])
        elif what < 0.95 and pool:  # the end of a life and the start of one, by memory or by bytes
            name = pool.pop()
            again = counter.fork(name) if what < 0.9 else kind.from_bytes(counter.to_bytes(), actor=name)
            assert again.digest() == counter.digest()
            check(counter, twin)
            ones[i] = name, again, dict(twin)
        check(*ones[i][1:])
    for _, counter, twin in ones:
        ones[0][1].merge(counter)
        join(ones[0][2], twin)
    for _, counter, _ in ones:
        counter.merge(ones[0][1])
        check(counter, ones[0][2])
        assert counter.to_bytes() == ones[0][1].to_bytes()
        assert counter.digest() == ones[0][1].digest() == kind.from_bytes(counter.to_bytes()).digest()


@pytest.mark.parametrize("kind", KINDS)
def test_a_counter_in_a_map_counts_as_one_that_stands_alone(kind):
    """Alone it is columns, in a map it is rows."""
    rng = random.Random(7)
    alone = [kind(actor=name) for name in "abc"]
    maps = [ORMap(actor=name) for name in "abc"]
    for _ in range(600):
        i, j = rng.randrange(3), rng.randrange(3)
        if rng.random() < 0.7:
            amount = rng.choice((1, 300, 2**50))
            what = "decrement" if kind is PNCounter and rng.random() < 0.5 else "increment"
            getattr(alone[i], what)(amount)
            getattr(maps[i].at("k", kind), what)(amount)
        elif rng.random() < 0.5:
            alone[i].merge(alone[j])
            maps[i].merge(maps[j])
        else:
            alone[i].apply_delta(alone[j].delta_since(alone[i].context))
            maps[i].apply_delta(maps[j].delta_since(maps[i].context))
        assert alone[i].value == maps[i].at("k", kind).value


def crowd(size: int, amount: int = 1) -> PNCounter:
    out = PNCounter()
    for i in range(size):
        one = PNCounter(actor=f"crowd-{i:04}")
        one.increment(amount)
        out.merge(one)
    return out


def test_what_one_copy_counts_does_not_show_in_another():
    first = crowd(200)
    second = first.fork("b")
    before, digest = first.to_bytes(), first.digest()
    second.increment(5)
    second.merge(crowd(201))
    assert (first.value, second.value) == (200, 206)
    assert (first.to_bytes(), first.digest()) == (before, digest)
    third = first.fork(None).merge(second)
    second.decrement(1)
    assert (third.value, second.value) == (206, 205)


@pytest.mark.parametrize("size", [3, 60, 300])
def test_one_total_that_was_written_twice_is_found_and_changes_nothing(size):
    ours, theirs = crowd(size), crowd(size - 1)
    news, liar = PNCounter(actor="0-news"), PNCounter(actor=f"crowd-{size - 1:04}")
    news.increment()
    liar.increment(2)
    theirs.merge(news).merge(liar)
    before = ours.to_bytes()
    with pytest.raises(CorruptionError, match=f"event 1 of actor 'crowd-{size - 1:04}' is two different writes"):
        ours.merge(theirs)
    assert ours.to_bytes() == before
    with pytest.raises(CorruptionError, match="two different writes"):
        ours.apply_delta(theirs.delta_since())
    assert ours.to_bytes() == before


def test_a_second_life_of_an_actor_is_found_among_many():
    one, two = crowd(100).fork("twin"), crowd(100).fork("twin")
    two.increment()
    before = one.to_bytes()
    with pytest.raises(CorruptionError, match="share an actor"):
        one.merge(two)
    assert one.to_bytes() == before


def test_a_delta_of_a_counter_is_refused_by_who_knows_less():
    full = crowd(70)
    one = full.fork("b")
    one.increment()
    delta = one.delta_since(full.context)
    with pytest.raises(UsageError, match="knew more"):
        crowd(69).apply_delta(delta)
    assert full.apply_delta(delta) == one


def test_names_are_given_back_with_the_last_counter_that_knows_them():
    name = "".join(["a name that ", "nobody else holds"])
    before = sys.getrefcount(name)
    one = GCounter(actor=name)
    one.increment()
    other = GCounter().merge(one)
    del one
    assert sys.getrefcount(name) > before
    assert other.value == 1
    del other
    assert sys.getrefcount(name) == before
