"""Vector clocks, hybrid logical time and causal contexts."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.clock import CausalContext, HybridLogicalClock, Order, VectorClock, stamp_ms
from nova.errors import CorruptionError, LimitError, UsageError

U64_MAX = 2**64 - 1
actors = st.one_of(
    st.integers(0, 9), st.sampled_from(["a", "b", "é", "\U0001f600", "1"]), st.sampled_from([b"a", b"1"])
)
counts = st.dictionaries(actors, st.integers(0, 4))
dense = st.lists(st.integers(1, 3), min_size=40, max_size=40).map(lambda c: dict(enumerate(c)))


@given(st.one_of(st.tuples(counts, counts), st.tuples(dense, dense)))
@settings(max_examples=300)
def test_compare_agrees_with_the_definition(pair):
    a, b = pair
    before = any(a.get(x, 0) < b.get(x, 0) for x in a | b)
    after = any(a.get(x, 0) > b.get(x, 0) for x in a | b)
    order = tuple(Order)[before + 2 * after]
    x, y = VectorClock(a), VectorClock(b)
    assert x.compare(y) is order
    assert (x < y, x <= y, x == y, x != y, x > y, x >= y) == (
        order == 1, order in (0, 1), order == 0, order != 0, order == 2, order in (0, 2),
    )  # fmt: skip
    assert x.concurrent(y) == (order is Order.CONCURRENT)
    assert x.dominates(y) == (order in (Order.EQUAL, Order.AFTER))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 64, 255, 1024])
def test_one_difference_is_seen_wherever_it_is(size):
    base = VectorClock(dict.fromkeys(range(size), 2**63))
    for at in range(0, size, max(1, size // 16)):
        more = base.increment(at)
        assert base.compare(more) is Order.BEFORE
        assert more.compare(base) is Order.AFTER
        assert VectorClock(more.to_dict()).compare(base) is Order.AFTER
        if size > 1:
            assert more.compare(base.increment((at + 1) % size)) is Order.CONCURRENT


@given(counts, counts)
def test_merge_is_the_least_upper_bound(a, b):
    merged = VectorClock(a).merge(VectorClock(b))
    assert merged.to_dict() == VectorClock({x: max(a.get(x, 0), b.get(x, 0)) for x in a | b}).to_dict()


@given(counts, actors)
def test_increment_adds_one_event_and_changes_nothing_else(a, actor):
    before = VectorClock(a)
    after = before.increment(actor)
    assert after.get(actor) == a.get(actor, 0) + 1
    assert before == VectorClock(a)
    assert before < after
    assert after == VectorClock({**a, actor: a.get(actor, 0) + 1})


@given(counts)
def test_equal_clocks_are_equal_in_hash_and_bytes_however_they_were_made(a):
    there, back = VectorClock(a), VectorClock(dict(reversed(a.items())))
    assert hash(there) == hash(back)
    assert there.to_bytes() == back.to_bytes()
    assert VectorClock.from_bytes(there.to_bytes()) == there
    assert pickle.loads(pickle.dumps(there)) == copy.deepcopy(there) == there
    assert len(there) == sum(1 for count in a.values() if count)


def test_canonical_bytes_do_not_depend_on_which_actor_was_seen_first():
    VectorClock({"zz": 1})
    assert (
        VectorClock({"c": 3, "b": 2, "a": 1}).to_bytes().hex() == "4e56430103020161010201620202016303738fc0f101eaba90"
    )
    assert [actor for actor, _ in VectorClock({"b": 1, b"z": 1, 7: 1, "a": 1}).items()] == [7, b"z", "a", "b"]


def test_numbers_of_actors_are_given_back():
    for round in range(3):
        clocks = [VectorClock({f"{round}-{i}": 1}) for i in range(1000)]
        merged = clocks[0]
        for clock in clocks[1:50]:
            merged = merged.merge(clock)
        assert len(merged) == 50
        del clocks
        assert all(merged.get(f"{round}-{i}") == 1 for i in range(50))
        assert merged.to_dict() == {f"{round}-{i}": 1 for i in range(50)}


def test_clocks_made_apart_of_the_same_actors_share_their_column_from_the_first_comparison_on():
    one, other = ({f"apart-{i}": i + 1 for i in range(100)} for _ in range(2))
    a, b, c = VectorClock(one), VectorClock({**other, "apart-7": 99}), VectorClock({**other, "elsewhere": 1})
    for _ in range(2):  # the second time by one column
        assert a < b
        assert a < c
        assert b.concurrent(c)
    del a
    assert (b.to_dict(), c.to_dict()) == ({**other, "apart-7": 99}, {**other, "elsewhere": 1})
    assert VectorClock.from_bytes(b.to_bytes()) == b
    assert VectorClock({}) == VectorClock() <= b


def test_int_text_and_bytes_are_different_actors():
    clock = VectorClock({1: 1, "1": 2, b"1": 3})
    assert [clock.get(1), clock.get("1"), clock.get(b"1")] == [1, 2, 3]


def test_a_clock_of_text_is_json():
    clock = VectorClock({"b": 2, "a": 1})
    assert json.dumps(clock.to_dict()) == '{"a": 1, "b": 2}'
    assert VectorClock(json.loads(json.dumps(clock.to_dict()))) == clock


def test_a_count_never_wraps():
    full = VectorClock({"a": U64_MAX})
    with pytest.raises(UsageError, match=r"2\*\*64 - 1"):
        full.increment("a")
    assert full.get("a") == U64_MAX
    assert VectorClock.from_bytes(full.to_bytes()) == full


@pytest.mark.parametrize(
    "bad",
    [
        {"a": -1},
        {"a": U64_MAX + 1},
        {"a": 1.0},
        {"a": True},
        {True: 1},
        {1.5: 1},
        {-1: 1},
        {"\ud800": 1},
        [("a", 1)],
        7,
    ],
)
def test_what_is_no_clock_is_refused(bad):
    with pytest.raises(UsageError):
        VectorClock(bad)


def test_a_negative_count_is_named_with_its_mend():
    with pytest.raises(UsageError, match="count of actor 7 is -1; counts start at 0"):
        VectorClock({7: -1})
    with pytest.raises(LimitError, match="shorter"):
        VectorClock({"x" * 2000: 1})


def test_a_clock_is_immutable():
    clock = VectorClock({"a": 1})
    with pytest.raises(UsageError, match="immutable"):
        clock.__init__({"a": 2})
    assert clock.get("a") == 1


# --- hybrid logical clock ---

walls = st.integers(0, 10**15)


@given(st.lists(st.tuples(st.booleans(), walls, st.integers(0, 5)), max_size=30))
def test_stamps_only_rise_also_when_the_wall_steps_back(steps):
    clock, last = HybridLogicalClock(drift_ms_max=10**10), 0
    for receive, wall_ns, ahead in steps:
        stamp = clock.receive(last + ahead, wall_ns) if receive else clock.tick(wall_ns)
        assert stamp > last
        assert stamp_ms(stamp) >= wall_ns // 10**6
        last = stamp
    assert clock.last == last


def test_receive_takes_the_greatest_of_all_three_and_carries():
    ms = 10**6
    assert HybridLogicalClock().receive(5 << 16, 9 * ms) == 9 << 16
    assert HybridLogicalClock().receive(9 << 16 | 3, 5 * ms) == 9 << 16 | 4
    assert HybridLogicalClock(last=9 << 16 | 7).receive(9 << 16 | 3, 5 * ms) == 9 << 16 | 8
    assert HybridLogicalClock(last=9 << 16 | 0xFFFF).tick(5 * ms) == 10 << 16
    assert HybridLogicalClock().receive(9 << 16 | 0xFFFF, 9 * ms) == 10 << 16


def test_a_stamp_far_in_the_future_is_refused_and_changes_nothing():
    clock = HybridLogicalClock(drift_ms_max=1000)
    clock.tick(10**9)
    before = clock.last
    with pytest.raises(UsageError, match=r"1001 ms ahead.*limit is 1000 ms.*set the clock"):
        clock.receive(2001 << 16, 10**9)
    assert clock.last == before
    assert clock.receive(2000 << 16, 10**9) == 2000 << 16 | 1


def test_a_restart_goes_on_above_the_last_stamp():
    assert HybridLogicalClock(last=10**20 % 2**63).tick(0) == 10**20 % 2**63 + 1


def test_a_stamp_never_wraps():
    clock = HybridLogicalClock(last=U64_MAX)
    with pytest.raises(UsageError, match="last one"):
        clock.tick(0)
    with pytest.raises(UsageError):
        HybridLogicalClock(drift_ms_max=2**48 - 1).receive(U64_MAX, 2**62)
    for bad in (-1, U64_MAX + 1, 1.5, True, "1"):
        with pytest.raises(UsageError):
            HybridLogicalClock().receive(bad, 0)
        with pytest.raises(UsageError):
            HybridLogicalClock(last=bad)


# --- causal context ---

dots = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 12)), max_size=30)


def facts(context, limit=14):
    return {(actor, count) for actor in "abc" for count in range(1, limit) if (actor, count) in context}


@given(dots)
def test_a_context_knows_exactly_its_dots(items):
    context = CausalContext(dots=items)
    assert facts(context) == set(items)
    for actor in "abc":
        run = 0
        while (actor, run + 1) in set(items):
            run += 1
        assert context.vector.get(actor) == run
        assert context.next(actor) == (actor, max((c for a, c in items if a == actor), default=0) + 1)


@given(dots, dots)
def test_merging_contexts_is_the_union_of_their_dots(a, b):
    x, y = CausalContext(dots=a), CausalContext(dots=b)
    assert x.covers(y) == (set(b) <= set(a))
    joined = x.copy()
    joined.merge(y)
    assert facts(joined) == set(a) | set(b)
    assert facts(x) == set(a)
    assert joined == CausalContext(dots=b + a)
    assert joined.to_bytes() == CausalContext(dots=b + a).to_bytes()
    assert CausalContext.from_bytes(joined.to_bytes()) == joined


def test_the_vector_never_advances_over_a_gap():
    context = CausalContext({"a": 3}, [("a", 5), ("a", 6)])
    assert context.vector.get("a") == 3
    assert context.cloud() == [("a", 5, 6)]
    context.add(("a", 4))
    assert context.vector.get("a") == 6
    assert context.cloud() == []


def test_the_last_dot_has_no_next():
    with pytest.raises(UsageError, match="new actor"):
        CausalContext({"a": U64_MAX}).next("a")
    for bad in (("a", 0), ("a", -1), (1, 1), ("a",), None, ("a", 1.5)):
        with pytest.raises(UsageError):
            CausalContext(dots=[bad])


@pytest.mark.parametrize("kind", [VectorClock, CausalContext])
def test_bytes_of_another_version_or_kind_say_so(kind):
    data = kind({"a": 1}).to_bytes()
    with pytest.raises(CorruptionError, match="version 9"):
        kind.from_bytes(data[:3] + b"\x09" + data[4:])
    with pytest.raises(CorruptionError, match="check sum"):
        kind.from_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for bad in (b"", b"NVC", "text", None, bytearray(data)):
        with pytest.raises((CorruptionError, UsageError)):
            kind.from_bytes(bad)
