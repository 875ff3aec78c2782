"""Documents answer to plain maps: what they hold, what differs between them, and how they merge."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova._native.merge import _blur
from nova.conflict.detect import canonical
from nova.conflict.merge import MISSING, Document, diff, merge, patch, same
from nova.errors import LimitError, StaleContextError, UsageError
from tests.conflict.merge_values import documents, keys, values
from tests.conflict.test_merge_laws import SCHEMA, three

many = st.dictionaries(st.integers(0, 300).map(str), st.integers(0, 3), max_size=120)


@pytest.fixture(params=["all bits", "3 bits", "no bit"])
def colliding(request):
    """How much of their hashes keys are told apart by."""
    _blur({"all bits": (1 << 64) - 1, "3 bits": 7 << 61, "no bit": 0}[request.param])
    yield
    _blur((1 << 64) - 1)


function_scoped = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@given(documents)
def test_a_document_holds_what_it_was_made_of(value):
    made = Document(value)
    assert same(made.value, value)
    assert list(made) == sorted(value)
    assert len(made) == len(value)
    assert all(key in made for key in value)
    assert made == Document(copy.deepcopy(value))
    assert hash(made) == hash(Document(copy.deepcopy(value)))


@given(documents, documents)
def test_documents_are_equal_exactly_when_their_values_are(a, b):
    assert (Document(a) == Document(b)) == same(a, b)


@pytest.mark.usefixtures("colliding")
@function_scoped
@given(many, st.lists(st.tuples(st.integers(0, 300).map(str), st.none() | st.integers(0, 3)), max_size=40))
def test_edits_do_what_they_do_to_a_map_and_leave_the_old_document_alone(value, edits):
    made, model, first = Document(value), dict(value), Document(value)
    for key, change in edits:
        if change is not None:
            made = made.set((key,), change)
            model[key] = change
        elif key in model:
            made = made.remove((key,))
            del model[key]
        assert made.get((key,), MISSING) == model.get(key, MISSING)
    assert made.value == model
    assert made == Document(model)
    assert first.value == value


@given(documents, documents)
def test_documents_differ_as_their_values_do(a, b):
    one, other = Document(a), Document(b)
    changes = diff(one, other)
    assert patch(one, changes) == other
    assert patch(other, changes.invert()) == one
    assert {edit.path for edit in changes.edits} == {edit.path for edit in diff(a, b).edits}


@pytest.mark.parametrize("warm", [False, True])
@given(three())
@settings(max_examples=200)
def test_documents_merge_as_their_values_do(warm, found):
    plain, schema = found
    if not all(isinstance(value, dict) for value in plain):
        return
    made = [Document(value) for value in plain]
    if warm:
        assert all(isinstance(hash(each), int) for each in made)
    expected, result = merge(*plain, schema), merge(*made, schema)
    assert canonical(result.value.value) == canonical(expected.value)
    assert result.value == Document(result.value.value)
    assert sorted((c.path, c.type, c.kind) for c in result.conflicts) == sorted(
        (c.path, c.type, c.kind) for c in expected.conflicts
    )
    assert sorted((item.path, item.side) for item in result.lost) == sorted(
        (item.path, item.side) for item in expected.lost
    )


@pytest.mark.usefixtures("colliding")
@function_scoped
@given(many, st.data())
def test_documents_that_share_parts_merge_as_their_values_do(value, data):
    base = Document(value)
    sides, models = [base, base], [dict(value), dict(value)]
    for i in (0, 1):
        for _ in range(data.draw(st.integers(0, 5))):
            key, change = data.draw(st.integers(0, 300).map(str)), data.draw(st.none() | st.integers(0, 3))
            if change is not None:
                sides[i], models[i][key] = sides[i].set((key,), change), change
            elif key in models[i]:
                sides[i] = sides[i].remove((key,))
                del models[i][key]
    expected, result = merge(value, *models), merge(base, *sides)
    assert result.value.value == expected.value
    assert {c.path for c in result.conflicts} == {c.path for c in expected.conflicts}
    changed = {(change.path, change.side) for change in result.changes}
    assert changed == {(change.path, change.side) for change in expected.changes}


def test_equal_nodes_are_not_skipped_above_a_counter_or_a_monotone_field():
    schema = {"/m/count": SCHEMA["/count"], "/m/epoch": SCHEMA["/epoch"]}
    base = Document({"m": {"count": 1, "epoch": 5}, "x": 1})
    side = base.set(("m", "count"), 3)
    assert merge(base, side, side, schema).value.value["m"]["count"] == 5
    lowered = base.set(("m", "epoch"), 4)
    assert merge(base, lowered, base, schema).value.value["m"]["epoch"] == 5
    assert merge(base, lowered, lowered, schema).value.value["m"]["epoch"] == 5


def test_an_edit_shares_all_that_it_does_not_touch():
    base = Document({"a": {"b": {"c": 1}}, "d": {"e": 1}})
    edited = base.set(("a", "b", "c"), 2)
    assert edited.get(("d",)) is base.get(("d",))
    assert merge(base, edited, base).value is edited or merge(base, edited, base).value == edited


def test_a_list_that_is_changed_outside_changes_no_document():
    mine = [1, {"x": 1}]
    made = Document({"l": mine})
    mine[1]["x"] = 2
    mine.append(3)
    out = made.value
    assert out == {"l": [1, {"x": 1}]}
    out["l"].append(4)
    assert made.value == {"l": [1, {"x": 1}]}


@given(st.lists(st.tuples(keys, values), max_size=5))
def test_any_value_may_be_set_and_is_given_back(pairs):
    made, model = Document(), {}
    for key, value in pairs:
        made, model[key] = made.set((key,), value), value
    assert same(made.value, model)


def test_calls_that_cannot_be_are_refused():
    made = Document({"a": {"b": 1}})
    for call, word in (
        (lambda: Document([1]), "made of a list"),
        (lambda: Document({1: 1}), "keys are text"),
        (lambda: made.set((), 1), "0 keys"),
        (lambda: made.remove(()), "0 keys"),
        (lambda: made.remove(("x",)), "there is nothing at"),
        (lambda: made.set(("x", "y"), 1), "there is no map at"),
        (lambda: made.set(("a", "b", "c"), 1), "there is no map at"),
    ):
        with pytest.raises(UsageError, match=word):
            call()
    with pytest.raises(StaleContextError):
        patch(made, diff(Document({"a": {"b": 2}}), Document({"a": {"b": 3}})))
    loop = {}
    loop["x"] = loop
    with pytest.raises(LimitError):
        Document(loop)


def test_documents_in_documents_meet_the_limit_of_levels():
    deep = Document()
    for _ in range(199):
        deep = Document({"x": deep})
    assert hash(deep)
    assert deep.value
    with pytest.raises(LimitError):
        Document({"x": deep})
    with pytest.raises(LimitError):
        Document({"x": 1}).set(("x",), deep)
    with pytest.raises(LimitError):
        merge(Document({"x": 1}), Document({"x": 2}), Document({"x": 3}), None, lambda conflict: deep)
