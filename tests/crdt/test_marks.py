"""Marks on text: what each covers while the text changes under it, on every replica alike."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova.crdt import RGA
from nova.errors import CorruptionError, LimitError, UsageError
from tests.crdt.test_sequence import Pair, hostile, typed
from tests.models import sequence as model

NAMES = ("a", "b", "c")
who, places = st.integers(0, 2), st.integers(0, 30)
inserts = st.tuples(st.just("insert"), who, places, st.text("xyz", min_size=1, max_size=3))
cuts = st.tuples(st.just("delete"), who, places, st.integers(1, 3))
exchanges = st.tuples(st.sampled_from(["merge", "delta"]), who, who, st.none())
said = st.tuples(
    st.sampled_from(["bold", "size"]),
    st.sampled_from([None, True, 1, "x"]),
    st.sampled_from(["none", "before", "after", "both"]),
    st.integers(1, 4),
)
marks = st.tuples(st.just("mark"), who, places, said)
histories = st.lists(st.one_of(inserts, cuts, exchanges, marks, marks), max_size=22)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def mark(pair: Pair, pos: int, name: str, value: Any, expand: str, n: int) -> None:
    length = len(pair.replica)
    if not length:
        return
    pos %= length
    n = min(n, length - pos)
    if value is None:
        pair.replica.unmark(pos, n, name, expand=expand)
    else:
        pair.replica.mark(pos, n, name, value, expand=expand)
    model.mark(pair.ops, pair.name, pos, n, name, value, expand)


def same(spans: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    """Spans with values as they are written: True is not 1."""
    return [(text, repr(dict(sorted(found.items())))) for text, found in spans]


@quick
@given(histories)
def test_every_step_marks_what_the_model_marks(steps):
    pairs = [Pair(name) for name in NAMES]
    for what, i, j, extra in steps:
        if what == "insert":
            pairs[i].insert(j, extra)
        elif what == "delete":
            pairs[i].delete(j, extra)
        elif what == "mark":
            mark(pairs[i], j, *extra)
        else:
            pairs[i].learn(pairs[j], what == "delta")
        assert same(pairs[i].replica.spans) == same(model.spans(pairs[i].ops))
        assert pairs[i].replica._check() == 0
    found = set()
    for order in permutations(pairs):
        out = RGA()
        for pair in order:
            out.merge(pair.replica)
        back = RGA.from_bytes(out.to_bytes())
        assert same(back.spans) == same(out.spans)
        assert back.digest() == out.digest()
        found.add((str(same(out.spans)), out.to_bytes(), out.digest()))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("expand", "before", "after"),
    [("none", False, False), ("before", True, False), ("after", False, True), ("both", True, True)],
)
def test_text_at_the_ends_of_a_mark_is_marked_as_it_expands(expand, before, after):
    a = typed("a", "-word-")
    a.mark(1, 4, "bold", expand=expand)
    a.insert(5, ">")
    a.insert(1, "<")
    a.insert(4, "#")
    bold = "".join(text for text, found in a.spans if found)
    assert bold == "<" * before + "wo#rd" + ">" * after


def test_the_later_mark_counts_and_of_two_at_once_that_of_the_greater_actor():
    a = typed("a", "text")
    b = a.fork("b")
    a.mark(0, 4, "color", "red")
    b.mark(0, 2, "color", "blue")
    a.merge(b)
    b.merge(a)
    assert a.spans == b.spans == [("te", {"color": "blue"}), ("xt", {"color": "red"})]
    a.mark(0, 4, "color", "green")
    assert b.merge(a).spans == [("text", {"color": "green"})]
    b.unmark(1, 2, "color")
    assert b.spans == [("t", {"color": "green"}), ("ex", {}), ("t", {"color": "green"})]


def test_a_mark_counts_over_all_that_its_writer_knew():
    a = typed("b", "text")
    for color in ("red", "blue", "green"):
        a.mark(0, 4, "color", color)
    b = a.fork("a")  # the smaller actor, and its first mark
    b.unmark(0, 4, "color")
    assert a.merge(b).spans == b.spans == [("text", {})]


def test_marks_of_different_names_stand_beside_each_other():
    a = typed("a", "abcdef")
    a.mark(0, 4, "bold")
    a.mark(2, 4, "link", {"to": "x"}, expand="none")
    assert a.spans == [
        ("ab", {"bold": True}),
        ("cd", {"bold": True, "link": {"to": "x"}}),
        ("ef", {"link": {"to": "x"}}),
    ]
    a.delete(1, 4)
    assert a.spans == [("a", {"bold": True}), ("f", {"link": {"to": "x"}})]


def test_a_mark_on_text_that_is_deleted_meanwhile_covers_what_was_typed_into_it():
    a = typed("a", "hello")
    b = a.fork("b")
    a.mark(0, 5, "bold", expand="none")
    b.insert(3, "!")
    b.delete(0, 3)
    b.delete(1, 2)
    assert a.merge(b).spans == [("!", {"bold": True})]


def test_true_and_one_are_two_values():
    a = typed("a", "ab")
    a.mark(0, 1, "n", 1)
    a.mark(1, 1, "n", True)
    assert [text for text, _ in a.spans] == ["a", "b"]


def test_what_is_no_mark_is_refused_and_changes_nothing():
    a = typed("a", "abc")
    before = a.to_bytes()
    for call, message in [
        (lambda: a.mark(0, 0, "bold"), "at least one"),
        (lambda: a.mark(2, 2, "bold"), "not within the text of 3 code points"),
        (lambda: a.mark(0, 1, ""), "a str for a name"),
        (lambda: a.mark(0, 1, "bold", None), "unmark takes a mark away"),
        (lambda: a.mark(0, 1, "bold", expand="all"), "none, before, after, both"),
        (lambda: a.mark(0, 1, "bold", object()), "cannot be kept"),
        (lambda: a.fork(None).mark(0, 1, "bold"), "no actor"),
    ]:
        with pytest.raises(UsageError, match=message):
            call()
    with pytest.raises(LimitError, match="the limit is 65536"):
        a.mark(0, 1, "note", "x" * 70_000)
    assert a.to_bytes() == before


@pytest.mark.parametrize(
    "stamps",
    [
        (0,),  # below all
        (2,),  # above what a writer could know who knows of no other mark
        (1, 1),  # twice the same
        (2, 1),  # backwards
    ],
)
def test_stamps_that_no_honest_writer_gives_are_refused(stamps):
    base = typed("a", "abcde")
    before = base.to_bytes()
    runs = [("mark", 0, (0, 0), (0, 4), 0, stamp) for stamp in stamps]
    data = hostile([("a", 5, 5), ("z", 0, len(stamps))], *runs, says=[("bold", True)])
    with pytest.raises(CorruptionError, match="no possible history"):
        base.apply_delta(data)
    assert base.to_bytes() == before


def test_marks_that_say_nothing_or_hold_on_to_nothing_are_refused():
    base = typed("a", "abcde")
    counts = [("a", 5, 5), ("z", 0, 1)]
    bold: list[tuple[str, Any]] = [("bold", True)]
    for runs, says, message in [
        ([("mark", 0, (0, 0), (0, 4), 1, 1)], bold, "says nothing"),
        ([("mark", 0, (0, 9), (0, 4), 0, 1)], bold, "no possible history"),
        ([("mark", 0, (0, 0), (0, 9), 0, 1)], bold, "no possible history"),
        ([("mark", 4, (0, 0), (0, 4), 0, 1)], bold, "out of bounds"),
        ([("mark", 0, (0, 0), (0, 4), 0, 1)], [("", True)], "no name"),
        ([("mark", 0, (0, 0), (0, 4), 0, 1)], [(7, True)], "no name"),
    ]:
        with pytest.raises(CorruptionError, match=message):
            base.apply_delta(hostile(counts, *runs, says=says))
    strange = hostile(counts, ("mark", 3, (0, 4), (0, 0), 0, 1), says=bold)  # from behind the end to the beginning
    assert base.apply_delta(strange).spans == [("abcde", {})]
    assert base._check() == 0


def test_refused_marks_leave_nothing_behind():
    base = typed("a", "abc")
    for i in range(50):
        data = hostile([("a", 3, 3), ("z", 0, 1)], ("mark", 0, (0, 50), None, 0, 1), says=[(f"name {i}", "x" * 1000)])
        with pytest.raises(CorruptionError):
            base.apply_delta(data)
    base.mark(0, 1, "bold")
    assert len(base.to_bytes()) < 100
    assert base.spans == [("a", {"bold": True}), ("bc", {})]


def test_many_overlapping_marks_cost_their_number_not_its_square():
    # Each covers all that the later ones do; painting all of them one over the other would take 10**9 steps.
    a = typed("a", "x" * 60_000)
    for i in range(20_000):
        a.mark(i, 60_000 - 2 * i, "depth", i % 7, expand="none")
    assert sum(len(text) for text, _ in a.spans) == 60_000
    assert a.spans[19_999] == ("x" * 20_002, {"depth": 19_999 % 7})
