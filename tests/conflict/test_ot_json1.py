from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.conflict.detect import MISSING
from nova.conflict.ot import json1
from nova.errors import LimitError, UsageError
from tests.fuzz.ot import a_value, json1_op, json1_simple, run, same, slots

seeds = st.integers(0, 2**32).map(Random)


def test_both_orders_give_one_value():
    assert not list(run("json1", 1500, seed=7))


@settings(deadline=None)
@given(seeds)
def test_compose_is_one_after_the_other_however_they_are_grouped(random):
    doc = a_value(random)
    ops, now = [], doc
    for _ in range(4):
        ops.append(json1_simple(random, now))
        now = json1.apply(now, ops[-1])
    a, b, c, d = ops
    left = json1.compose(json1.compose(json1.compose(a, b), c), d)
    pairs = json1.compose(json1.compose(a, b), json1.compose(c, d))
    json1.check(left)
    assert same(json1.apply(doc, left), now)
    assert same(json1.apply(doc, pairs), now)


@settings(deadline=None)
@given(seeds)
def test_an_inverse_undoes(random):
    doc = a_value(random)
    op = json1.make_invertible(json1_op(random, doc), doc)
    assert same(json1.apply(json1.apply(doc, op), json1.invert(op)), doc)


@settings(deadline=None)
@given(seeds)
def test_both_sides_see_a_conflict_and_without_one_there_is_nothing_to_settle(random):
    doc = a_value(random)
    a, b = json1_op(random, doc), json1_op(random, doc)
    outcome = json1.try_transform(a, b, "left")
    mirrored = json1.try_transform(b, a, "right")
    assert outcome["ok"] == mirrored["ok"]
    if outcome["ok"]:
        settled = json1.transform_no_conflict(a, b, "left")
        assert same(json1.normalize(settled), json1.normalize(outcome["result"]))


@settings(deadline=None)
@given(seeds)
def test_neither_documents_nor_operations_are_changed(random):
    doc = a_value(random)
    a, b = json1_op(random, doc), json1_op(random, doc)
    before = repr((doc, a, b))
    json1.transform_no_conflict(a, b, "left")
    json1.apply(doc, json1.compose(a, json1.transform_no_conflict(b, a, "right")))
    json1.make_invertible(a, doc)
    assert repr((doc, a, b)) == before


@settings(deadline=None)
@given(seeds)
def test_a_path_leads_to_the_same_thing_after_an_operation(random):
    doc = a_value(random)
    places = list(slots(doc))
    path, _ = random.choice(places)
    op = json1.make_invertible(json1_simple(random, doc), doc)
    moved = json1.transform_position(list(path), op)
    if moved is not None and path and isinstance(json1.transform_position(list(path[:-1]), op), list):
        assert json1.transform_position(moved, json1.invert(op)) == list(path)


def test_a_removal_follows_what_was_moved():
    move = [["a", {"p": 0}], ["b", {"d": 0}]]
    assert json1.transform(["a", {"r": True}], move, "right") == ["b", {"r": True}]


def test_moves_into_each_other_are_reported_and_settled_alike_on_both_sides():
    a = [["x", {"p": 0}], ["y", "a", {"d": 0}]]
    b = [["x", "a", {"d": 0}], ["y", {"p": 0}]]
    with pytest.raises(json1.ConflictError, match="into each other") as caught:
        json1.transform(a, b, "left")
    assert caught.value.conflict == {"type": json1.BLACK_HOLE, "op1": a, "op2": b}
    doc = {"x": {}, "y": {}, "z": 1}
    one = json1.apply(json1.apply(doc, b), json1.transform_no_conflict(a, b, "left"))
    assert one == json1.apply(json1.apply(doc, a), json1.transform_no_conflict(b, a, "right")) == {"z": 1}


def test_what_a_side_left_alone_keeps_its_place_among_what_was_put_around_it():
    # The text stands before the first item, the moved one after the second: their places do not meet.
    doc = ["x", "y"]
    a = json1.compose([1, {"r": True}], [[0, {"i": "new"}], [2, {"i": "end"}]])
    b = [[0, {"p": 0}], [1, {"d": 0}]]
    merged = json1.apply(json1.apply(doc, b), json1.transform(a, b, "right"))
    assert merged == json1.apply(json1.apply(doc, a), json1.transform(b, a, "left")) == ["new", "x", "end"]


def test_no_document_is_missing_and_not_null():
    assert json1.apply({"x": 1}, [{"r": True}]) is MISSING
    assert json1.apply(MISSING, [{"i": None}]) is None
    with pytest.raises(UsageError, match="already"):
        json1.apply(None, [{"i": 1}])


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ([], "changes nothing"),
        ("x", "None or a list"),
        (["x"], "changes nothing"),
        ([{"r": True}, {"i": 1}], "one place has one change"),
        ([{"p": 0}], "not the same slots"),
        ([-1, {"r": True}], "no step of a path"),
        ([["b", {"r": True}], ["a", {"r": True}]], "ascending"),
        ([["a", {"r": True}]], "one branch alone"),
        ([["a", {"r": True}], ["b", {"r": True}], {"r": True}], "nothing follows"),
        ([{"q": 1}], "a change has"),
        ([{"e": 1}], "e without et"),
        ([{"et": "none", "e": 1}], "type 'none' is unknown"),
        ([{"es": [{"d": -1}]}], "component 0"),
        ([{"ena": "1"}], "no number"),
    ],
)
def test_what_is_no_operation_is_refused_in_words(op, words):
    for call in (json1.check, lambda op: json1.transform(op, None, "left"), lambda op: json1.compose(None, op)):
        with pytest.raises(UsageError, match=words):
            call(op)


def test_depth_and_size_are_limited():
    with pytest.raises(LimitError, match=f"more than {json1.DEPTH_MAX} deep"):
        json1.check([0] * (json1.DEPTH_MAX + 1) + [{"r": True}])
    nest = [{"r": True}]
    for _ in range(100_000):
        nest = [["a", {"r": True}], nest]
    with pytest.raises(UsageError):
        json1.check(nest)
    deep = [0] * json1.DEPTH_MAX + [{"r": True}]
    json1.check(json1.transform(deep, [0, {"i": 1}], "left"))
    with pytest.raises(LimitError):
        json1.compose(json1.normalize([["c", {"p": 0}], [*["d"] * 150, {"d": 0}]]), [*["d"] * 201, {"i": 1}])


def test_the_deepest_operations_run_far_from_the_top_of_the_stack():
    depth = json1.DEPTH_MAX
    doc = "x"
    for _ in range(depth):
        doc = [doc]
    here, there = [0] * depth, [0] * (depth - 1) + [1]
    edit, move = [*here, {"es": ["a"]}], json1.normalize([[*here, {"p": 0}], [*here, {"d": 0}]])

    def called(frames):
        if frames:
            return called(frames - 1)
        assert json1.apply(doc, json1.compose(edit, [*there, {"i": 1}])) is not None
        both = json1.transform(json1.make_invertible([*here, {"r": True}], doc), move, "left")
        return json1.invert(json1.make_invertible(both, doc))

    assert called(500) == [*here, {"i": "x"}]


def test_wide_operations_take_time_in_proportion_to_their_size():
    """Ten thousand changes in one list: with anything quadratic this test would take minutes."""
    size = json1.CHANGES_MAX // 2 - 1
    inserts = json1.normalize([[i, {"i": i}] for i in range(size)])
    moves = json1.normalize([[i, {"p": i, "d": size - 1 - i}] for i in range(size)])
    doc = list(range(size))
    one = json1.apply(json1.apply(doc, moves), json1.transform(inserts, moves, "left"))
    assert one == json1.apply(json1.apply(doc, inserts), json1.transform(moves, inserts, "right"))
    assert json1.apply(doc, json1.compose(inserts, moves)) == json1.apply(json1.apply(doc, inserts), moves)


def test_what_is_removed_stays_removed_though_the_other_side_moved_it_into_what_goes():
    """Found by the 719,743rd pair of a long run: a list is moved out of what is removed, an item of it is removed."""
    doc = [{}, ["x", "y"]]
    a = [[0, {"r": True, "d": 0}], [1, {"p": 0}, 0, {"r": True}]]
    b = [[0, "b", {"i": {}}, "a", {"d": 0}, 0, {"d": 1}], [1, {"p": 0}, 0, {"p": 1}]]
    for left, right, expected in ((a, b, [["y"]]), (b, a, [])):
        one = json1.apply(json1.apply(doc, right), json1.transform_no_conflict(left, right, "left"))
        two = json1.apply(json1.apply(doc, left), json1.transform_no_conflict(right, left, "right"))
        assert one == two == expected
