"""What differs between two sets, found from bytes in proportion to the difference."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.digest import Difference, Reconciler
from nova.errors import CorruptionError, LimitError, UsageError

TOP = 2**64 - 1
ids = st.one_of(st.integers(1, 40), st.integers(1, TOP), st.sampled_from([1, 2, TOP, TOP - 1, 1 << 63]))
sets = st.sets(ids, max_size=60)


def expected(here: set[int], there: set[int]) -> Difference:
    return Difference(sorted(here - there), sorted(there - here))


@given(sets, sets, st.integers(0, TOP))
@settings(max_examples=300)
def test_the_difference_is_that_of_the_sets(here: set[int], there: set[int], seed: int) -> None:
    mine, theirs = Reconciler(here, seed=seed), Reconciler(there, seed=seed)
    found = mine.decode(theirs.encode())
    assert found == (expected(here, there) if len(here ^ there) <= 10 else None)
    assert mine.difference(theirs) == expected(here, there)
    assert mine.decode(theirs.encode(cells=2048)) == expected(here, there)
    assert (mine.digest() == theirs.digest()) == (here == there)


@given(sets, sets)
def test_what_came_and_went_leaves_no_trace(stay: set[int], go: set[int]) -> None:
    went = Reconciler(stay - go)
    went.add_many(go)
    for id in go:
        went.remove(id)
    assert went.encode() == Reconciler(stay - go).encode()
    assert went.encode(cells=2048) == Reconciler(stay - go).encode(cells=2048)
    assert len(went) == len(stay - go)


@pytest.mark.parametrize("count", range(12))
def test_a_sketch_reveals_ten(count: int) -> None:
    values = random.Random(count)
    common = {values.randrange(1, 1 << 64) for _ in range(1000)}
    extra = [values.randrange(1, 1 << 64) for _ in range(count)]
    here, there = common | set(extra[::2]), common | set(extra[1::2])
    data = Reconciler(there).encode()
    assert len(data) == 98
    assert Reconciler(here).decode(data) == (expected(here, there) if count <= 10 else None)


@pytest.mark.parametrize("differences", [1, 11, 50, 300, 1000, 3000])
def test_cells_come_in_pieces_until_they_are_enough(differences: int) -> None:
    values = random.Random(differences)
    here = {values.randrange(1, 1 << 64) for _ in range(differences // 2)} | set(range(1, 500))
    there = {values.randrange(1, 1 << 64) for _ in range(differences - differences // 2)} | set(range(1, 500))
    mine, theirs = Reconciler(here, cells=8192), Reconciler(there, cells=8192)
    pieces: list[bytes] = []
    found, start, step = None, 0, 32
    while found is None:
        pieces.append(theirs.encode(cells=step, start=start))
        found = mine.decode(*pieces)
        start, step = start + step, max(32, start // 8)
    assert found == expected(here, there)
    assert start < 1.6 * differences + 64
    if differences == 1000:
        assert sum(map(len, pieces)) <= 19_000 + 22 * len(pieces)
    assert mine.decode(theirs.encode(cells=Reconciler.cells_for(differences))) == found


def test_a_thousand_differences_fit_in_nineteen_kilobytes() -> None:
    assert len(Reconciler().encode(cells=Reconciler.cells_for(1000))) <= 19_000


def test_sides_may_keep_different_numbers_of_cells() -> None:
    few, many = Reconciler(range(1, 30), cells=64), Reconciler(range(20, 50), cells=4096)
    wanted = expected(set(range(1, 30)), set(range(20, 50)))
    pieces = [many.encode(cells=100, start=start) for start in (0, 100)]
    assert few.decode(*pieces) == wanted or few.decode(*pieces) is None
    assert many.decode(few.encode(cells=64)) in (Difference(wanted.there, wanted.here), None)
    assert Reconciler(range(1, 30), cells=512).decode(*pieces) == wanted


def test_more_differences_than_cells_are_told() -> None:
    with pytest.raises(LimitError, match="more cells"):
        Reconciler(range(1, 5000), cells=64).difference(Reconciler(cells=64))
    with pytest.raises(LimitError, match="keeps 64"):
        Reconciler(cells=64).encode(cells=65)


def test_a_wrong_side_never_passes_the_sum() -> None:
    """A sketch alone cannot tell whose an id is; the sums can."""
    for count in range(1, 11):
        for split in range(count + 1):
            here, there = set(range(1, split + 1)), set(range(split + 1, count + 1))
            assert Reconciler(here).decode(Reconciler(there).encode()) == expected(here, there)


@pytest.mark.parametrize("cells", [0, 40])
@given(data=st.data())
def test_changed_bytes_are_refused_or_reveal_nothing(cells: int, data: st.DataObject) -> None:
    mine, theirs = Reconciler(range(1, 9)), Reconciler(range(3, 12))
    raw = bytearray(theirs.encode(cells=cells))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = mine.decode(bytes(raw))
    except (CorruptionError, UsageError):
        return
    assert found is None


@pytest.mark.parametrize("cells", [0, 40])
def test_a_result_is_checked_against_both_sums(cells: int) -> None:
    mine, theirs = Reconciler(range(1, 9)), Reconciler(range(3, 12))
    raw = theirs.encode(cells=cells)
    assert mine.decode(raw) == Difference([1, 2], [9, 10, 11])
    for at in range(2, 18):
        assert mine.decode(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]) is None


@given(st.binary(max_size=300), st.integers(0, 3))
@settings(max_examples=500)
def test_hostile_bytes_end_in_time(tail: bytes, cut: int) -> None:
    mine = Reconciler(range(1, 9))
    for head in (mine.encode()[:18], mine.encode(cells=5)[:19]):
        try:
            mine.decode((head + tail)[: len(head) + len(tail) - cut])
        except (CorruptionError, UsageError):
            continue


def test_ids_come_from_arrays() -> None:
    table = np.arange(1, 1001, dtype=np.uint64)
    mine = Reconciler(table)
    assert mine.digest() == Reconciler(range(1, 1001)).digest()
    mine.remove_many(table[500:])
    assert mine.encode() == Reconciler(range(1, 501)).encode()
    for wrong in (np.arange(3, dtype=np.int64), np.arange(3, dtype=np.uint32), np.zeros(2, np.uint64), table[::2]):
        with pytest.raises(UsageError):
            mine.add_many(wrong)
    with pytest.raises(UsageError, match="id 0"):
        mine.add_many([1001, 0])
    assert len(mine) == 500  # all or none


@pytest.mark.parametrize("id", [0, -1, 1 << 64, "a", None, True, 1.0])
def test_what_is_no_id_is_refused(id: object) -> None:
    with pytest.raises(UsageError, match="id"):
        Reconciler().add(id)  # type: ignore[arg-type]


def test_pieces_that_do_not_fit_are_refused() -> None:
    mine, theirs = Reconciler([1]), Reconciler([2])
    first, second = theirs.encode(cells=16), theirs.encode(cells=16, start=16)
    assert mine.decode(first, second) == Difference([1], [2])
    with pytest.raises(UsageError, match="in order"):
        mine.decode(second)
    with pytest.raises(UsageError, match="another seed"):
        Reconciler(seed=5).decode(first)
    with pytest.raises(UsageError, match="alone"):
        mine.decode(first, theirs.encode())
    theirs.add(3)
    with pytest.raises(UsageError, match="changed"):
        mine.decode(first, theirs.encode(cells=16, start=16))
    with pytest.raises(UsageError, match="nothing"):
        mine.decode()
    with pytest.raises(UsageError, match="bytes"):
        mine.decode("x")  # type: ignore[arg-type]


@pytest.mark.parametrize("differences", [1, 5, 11, 20, 50, 100, 200, 300, 1000])
def test_cells_for_is_enough_ninety_nine_times_of_a_hundred(differences: int) -> None:
    values, missed, trials = np.random.default_rng(differences), 0, 300
    for seed in range(trials):
        theirs = Reconciler(values.integers(1, 1 << 63, size=differences, dtype=np.uint64), seed=seed)
        found = Reconciler(seed=seed).decode(theirs.encode(cells=Reconciler.cells_for(differences)))
        missed += found is None
    assert missed * 100 <= trials


def test_more_cannot_be_removed_than_is_in() -> None:
    mine = Reconciler([1, 2])
    for wrong in ([1, 2, 3], np.arange(1, 4, dtype=np.uint64), np.arange(1, 5000, dtype=np.uint64)):
        with pytest.raises(UsageError, match="only what is in"):
            mine.remove_many(wrong)
    mine.remove_many([1, 2])
    with pytest.raises(UsageError, match="only what is in"):
        mine.remove(1)
    assert mine.encode() == Reconciler().encode()
    assert len(mine) == 0


def test_threads_that_write_at_once_lose_nothing() -> None:
    parts = [np.arange(1 + 20_000 * n, 1 + 20_000 * (n + 1), dtype=np.uint64) for n in range(8)]
    shared, alone = Reconciler(), Reconciler()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(shared.add_many, parts * 5 + parts))  # six times: what is twice in goes out of the xors
        list(pool.map(shared.remove_many, parts * 5))
    alone.add_many(np.concatenate(parts))
    assert len(shared) == len(alone) == 160_000
    assert shared.digest() == alone.digest()
    assert shared.encode(cells=2048) == alone.encode(cells=2048)
