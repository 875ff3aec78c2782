"""Clocks by the thousand: every answer of a batch is the answer of the clocks one by one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.clock import ClockBatch, Order, VectorClock
from nova.errors import LimitError, UsageError

TOP = 2**64 - 1
actors = st.sampled_from(["a", "b", "c", b"a", 1, 2, "é"])
counts = st.one_of(
    st.integers(0, 4), st.sampled_from([0, 255, 2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**63, TOP - 1, TOP])
)
near = st.integers(2**40, 2**40 + 3)
clocks = st.one_of(
    st.dictionaries(actors, counts, max_size=5).map(VectorClock),
    st.dictionaries(actors, near, max_size=5).map(VectorClock),
    st.fixed_dictionaries({"a": near, "b": near}).map(VectorClock),
)
lists = st.lists(clocks, max_size=70)


@given(lists, clocks)
@settings(max_examples=300)
def test_a_batch_against_one_clock(rows: list[VectorClock], clock: VectorClock) -> None:
    found = ClockBatch.from_clocks(rows).compare(clock)
    assert found.dtype == np.int8
    assert [Order(n) for n in found] == [row.compare(clock) for row in rows]


@given(st.lists(st.tuples(clocks, clocks), max_size=70))
def test_two_batches_merged_in_pairs(pairs: list[tuple[VectorClock, VectorClock]]) -> None:
    left, right = ClockBatch.from_clocks(a for a, _ in pairs), ClockBatch.from_clocks(b for _, b in pairs)
    merged = left.merge_pairs(right)
    assert [merged[i] for i in range(len(merged))] == [a.merge(b) for a, b in pairs]
    with pytest.raises(UsageError, match="equally long"):
        left.merge_pairs(ClockBatch.from_clocks([VectorClock()] * (len(pairs) + 1)))


@given(st.lists(st.tuples(clocks, clocks), max_size=70))
def test_two_batches_in_pairs(pairs: list[tuple[VectorClock, VectorClock]]) -> None:
    left, right = ClockBatch.from_clocks(a for a, _ in pairs), ClockBatch.from_clocks(b for _, b in pairs)
    assert [Order(n) for n in left.compare_pairs(right)] == [a.compare(b) for a, b in pairs]


@given(lists, lists)
@settings(max_examples=60)
def test_all_of_one_batch_against_all_of_another(a: list[VectorClock], b: list[VectorClock]) -> None:
    found = ClockBatch.from_clocks(a).compare_all(ClockBatch.from_clocks(b))
    assert found.shape == (len(a), len(b))
    assert [[Order(n) for n in row] for row in found] == [[x.compare(y) for y in b] for x in a]


@given(lists)
def test_bounds_of_a_batch(rows: list[VectorClock]) -> None:
    batch = ClockBatch.from_clocks(rows)
    upper, lower = batch.merge_all(), batch.meet_all()
    expected = VectorClock()
    for row in rows:
        expected = expected.merge(row)
    assert upper == expected
    names = {actor for row in rows for actor in row}
    assert lower == VectorClock({name: min(row.get(name) for row in rows) for name in names})


@given(lists)
def test_rows_come_back_as_they_went_in(rows: list[VectorClock]) -> None:
    batch = ClockBatch.from_clocks(rows)
    assert len(batch) == len(rows)
    assert [batch[i] for i in range(len(rows))] == rows
    assert [batch[-1 - i] for i in range(len(rows))] == rows[::-1]
    again = pickle.loads(pickle.dumps(batch))
    assert [again[i] for i in range(len(rows))] == rows
    table = ClockBatch.from_array(batch.actors, batch.counts)
    assert (table.counts == batch.counts).all()
    assert table.actors == batch.actors


@pytest.mark.parametrize("spread", [3, 2**16 + 3, 2**33])
@pytest.mark.parametrize("actors", [1, 7, 5000])
def test_blocks_tails_and_widths(spread: int, actors: int) -> None:
    """More actors than one pass holds, rows that end inside a block, each width, more rows than one tile."""
    rows = 1 if actors == 5000 else 2500
    random = np.random.default_rng(actors)
    table = random.integers(0, spread, size=(rows, actors), dtype=np.uint64) + np.uint64(2**40)
    if rows > 1 and actors > 1:
        table[1::2, 1:] = table[::2, 1:]  # so that not all are concurrent
    names = [f"node-{i}" for i in range(actors)]
    batch = ClockBatch.from_array(names, table)
    order = np.argsort(np.array(names))
    assert batch.actors == tuple(sorted(names))
    assert (batch.counts == table[:, order]).all()
    query = table[rows // 2]
    less, more = (table < query).any(axis=1), (table > query).any(axis=1)
    clock = VectorClock(dict(zip(names, query.tolist(), strict=True)))
    assert (batch.compare(clock) == less + 2 * more).all()
    few = ClockBatch.from_array(names, table[:3])
    less = (table[:3, None, :] < table[None, :, :]).any(axis=2)
    more = (table[:3, None, :] > table[None, :, :]).any(axis=2)
    assert (few.compare_all(batch) == less + 2 * more).all()


def test_an_actor_beyond_the_batch_counts() -> None:
    batch = ClockBatch.from_clocks([VectorClock({"a": 5}), VectorClock({"a": 1})])
    assert batch.compare(VectorClock({"a": 3, "z": 1})).tolist() == [Order.CONCURRENT, Order.BEFORE]
    assert batch.compare(VectorClock()).tolist() == [Order.AFTER, Order.AFTER]


def test_results_go_where_the_caller_says() -> None:
    batch = ClockBatch.from_clocks([VectorClock({"a": n}) for n in range(4)])
    out = np.full(4, 9, np.int8)
    assert batch.compare(VectorClock({"a": 2}), out=out) is out
    assert out.tolist() == [1, 1, 0, 2]
    matrix = np.empty((4, 4), np.int8)
    assert batch.compare_all(batch, out=matrix) is matrix


@pytest.mark.parametrize(
    ("out", "why"),
    [
        (np.empty(3, np.int8), "shape"),
        (np.empty(4, np.int16), "int8"),
        (np.empty(8, np.int8)[::2], "written"),
        (b"1234", "written"),
        ([1, 2, 3, 4], "written"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out: object, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        ClockBatch.from_clocks([VectorClock()] * 4).compare(VectorClock(), out=out)


@pytest.mark.parametrize(
    ("actors", "table", "why"),
    [
        (["a"], [[1, 2]], "shape"),
        (["a"], [1], "shape"),
        (["a", "a"], [[1, 2]], "twice"),
        (["a"], [[-1]], "no count"),
        (["a"], [[0.5]], "no count"),
        ([None], [[1]], "actor None"),
    ],
)
def test_an_array_that_is_no_batch_is_refused(actors: list[str], table: list[object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        ClockBatch.from_array(actors, table)


def test_what_is_no_clock_is_refused() -> None:
    with pytest.raises(UsageError, match="VectorClock objects"):
        ClockBatch.from_clocks([{"a": 1}])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="from_clocks"):
        ClockBatch()
    with pytest.raises(UsageError, match="equally long"):
        ClockBatch.from_clocks([]).compare_pairs(ClockBatch.from_clocks([VectorClock()]))
    with pytest.raises(IndexError):
        ClockBatch.from_clocks([])[0]


def test_a_batch_too_large_for_one_array_is_refused() -> None:
    """A million clocks that share no actor would need the square of that."""
    wide = VectorClock(dict.fromkeys(range(1 << 16), 1))
    with pytest.raises(LimitError, match="share actors"):
        ClockBatch.from_clocks([wide] * (1 << 18))
