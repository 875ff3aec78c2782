import sys
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.conflict.ot import json0
from nova.errors import LimitError, UsageError
from tests.fuzz.ot import a_value, json0_op, run, same

seeds = st.integers(0, 2**32).map(Random)


@pytest.mark.parametrize("kind", ["text", "json0"])
def test_both_orders_give_one_value(kind):
    assert not list(run(kind, 1500, seed=7))


@pytest.mark.parametrize(
    ("kind", "conflicts", "kinds"),
    [
        ("json0", (), ("oi", "od", "od+oi", "li", "ld", "ld+li", "lm", "na", "si", "sd", "t")),
        ("json1", ("removed under", "collision"), ("insert", "remove", "move", "edit text", "add")),
    ],
)
def test_the_pairs_that_are_tried_are_not_empty(kind, conflicts, kinds):
    mix: Counter[str] = Counter()
    assert not list(run(kind, 600, seed=8, mix=mix))
    assert mix["pairs"] == 600
    assert mix["pairs on one scalar"] < 60
    assert mix["pairs met"] > 240
    assert mix["pairs with less to do"] > 90
    assert mix["pairs in which a side does nothing"] < 30
    assert all(mix[f"pairs in conflict: {name}"] > 12 for name in conflicts)
    assert all(mix[f"changes: {name}"] > 20 for name in kinds)


@settings(deadline=None)
@given(seeds)
def test_compose_is_one_after_the_other_and_an_inverse_undoes(random):
    doc = a_value(random)
    a = json0_op(random, doc)
    b = json0_op(random, json0.apply(doc, a))
    now = json0.apply(json0.apply(doc, a), b)
    both = json0.compose(a, b)
    assert same(json0.apply(doc, both), now)
    assert same(json0.apply(now, json0.invert(both)), doc)


@settings(deadline=None)
@given(seeds)
def test_neither_documents_nor_operations_are_changed(random):
    doc = a_value(random)
    a, b = json0_op(random, doc), json0_op(random, doc)
    before = repr((doc, a, b))
    json0.apply(doc, json0.compose(a, json0.transform(b, a, "right")))
    assert repr((doc, a, b)) == before


def test_the_short_form_and_text0_are_one_type():
    long = [{"p": ["k"], "t": "text0", "o": [{"p": 0, "d": "ab"}]}]
    assert json0.transform([{"p": ["k", 2], "si": "x"}], long, "left") == [{"p": ["k", 0], "si": "x"}]


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ("x", "is a list of components"),
        ([1], "component 0 is 1"),
        ([{"p": "a", "oi": 1}], "path"),
        ([{"p": [-1], "li": 1}], "indices ints from 0"),
        ([{"p": [True], "li": 1}], "indices ints from 0"),
        ([{"p": [0], "li": 1, "oi": 1}], "forms of json0"),
        ([{"p": [], "li": 1}], "only the whole document"),
        ([{"p": [0], "lm": -1}], "'lm' is an index"),
        ([{"p": [0], "na": "1"}], "'na' is a number"),
        ([{"p": [0], "t": "none", "o": []}], "type 'none' is unknown"),
        ([{"p": ["0"], "li": 1}], "changes a list at '0'"),
    ],
)
def test_what_is_no_operation_is_refused_in_words(op, words):
    for call in (lambda: json0.apply([0], op), lambda: json0.transform(op, op, "left"), lambda: json0.compose([], op)):
        with pytest.raises(UsageError, match=words):
            call()


def test_what_is_not_there_cannot_be_changed():
    for doc, component, words in [
        ([1], {"p": [2], "li": 0}, "the list, which has 1 items"),
        ([1], {"p": [0], "lm": 1}, "moves to 1 of 1 items"),
        ({"a": 1}, {"p": ["b", "c"], "oi": 0}, "nothing is at '/b'"),
        ({"a": "x"}, {"p": ["a", 2], "si": "y"}, "position 2 is beyond"),
        ({"a": "x"}, {"p": ["a"], "na": 2}, "no number to add to"),
    ]:
        with pytest.raises(UsageError, match=words):
            json0.apply(doc, [component])


def test_depth_and_size_are_limited_and_depth_does_not_recurse():
    depth = json0.DEPTH_MAX
    with pytest.raises(LimitError, match=f"the most is {depth}"):
        json0.check([{"p": [0] * (depth + 1), "li": 0}])
    with pytest.raises(LimitError, match="split it"):
        json0.check([{"p": [0], "li": 0}] * (json0.COMPONENTS_MAX + 1))
    doc = "x"
    for _ in range(sys.getrecursionlimit() * 2):
        doc = [doc]
    deep = json0.apply(doc, [{"p": [0] * depth, "ld": 0, "li": 1}])
    for _ in range(depth - 1):
        (deep,) = deep
    assert deep == [1]
