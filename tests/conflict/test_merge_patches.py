"""Patches: exact ones, JSON Patch, merge patches, and what hostile ones get."""

from __future__ import annotations

import copy
import dataclasses
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.conflict.merge import (
    apply_json_patch,
    apply_merge_patch,
    diff,
    patch,
    same,
    to_json_patch,
    to_merge_patch,
)
from nova.errors import LimitError, StaleContextError, UsageError
from tests.conflict.merge_values import documents, values


@given(values, values)
def test_a_patch_turns_one_value_into_the_other_and_back(a, b):
    before = copy.deepcopy(a)
    changes = diff(a, b)
    assert same(patch(a, changes), b)
    assert same(patch(b, changes.invert()), a)
    assert same(a, before)


@given(values)
def test_equal_values_have_an_empty_patch(a):
    assert not diff(a, copy.deepcopy(a))


@given(values, values)
def test_a_patch_said_as_json_patch_does_the_same(a, b):
    assert same(apply_json_patch(a, json.loads(json.dumps(to_json_patch(diff(a, b))))), b)


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


@given(documents, documents)
def test_a_merge_patch_turns_one_document_into_the_other(a, b):
    b = without_nulls(b)
    assert same(apply_merge_patch(a, to_merge_patch(a, b)), b)


def test_a_merge_patch_cannot_say_null():
    with pytest.raises(UsageError, match="/a becomes null"):
        to_merge_patch({"a": 1}, {"a": None})


def test_a_patch_is_refused_where_the_value_is_another():
    changes = diff({"a": {"b": 1}}, {"a": {"b": 2}})
    with pytest.raises(StaleContextError, match="expects 1 at /a/b and finds 7") as caught:
        patch({"a": {"b": 7}}, changes)
    assert caught.value.current == 7
    with pytest.raises(StaleContextError):
        patch({"a": []}, changes)
    with pytest.raises(StaleContextError):
        patch([1], diff([1, 2], [1, 3]))


def test_one_element_put_first_is_one_edit():
    assert len(diff({"l": list(range(50))}, {"l": [-1, *range(50)]})) == 1


def test_a_change_deep_in_a_list_is_an_edit_deep_in_it():
    (edit,) = diff({"l": [{"id": 1, "v": 1}, {"id": 2}]}, {"l": [{"id": 1, "v": 2}, {"id": 2}]}).edits
    assert (edit.pointer, edit.before, edit.after) == ("/l/0/v", 1, 2)


@dataclasses.dataclass(frozen=True)
class Nic:
    mac: str
    mtu: int = 1500


class Vm(msgspec.Struct, frozen=True):
    name: str
    nics: list[Nic] = []


def test_records_are_patched_field_by_field():
    a = Vm("x", [Nic("m1"), Nic("m2")])
    b = Vm("x", [Nic("m1", 9000), Nic("m2")])
    changes = diff(a, b)
    assert [edit.pointer for edit in changes.edits] == ["/nics/0/mtu"]
    assert patch(a, changes) == b
    assert patch(b, changes.invert()) == a


def test_records_sets_and_tuples_are_said_in_the_containers_of_json():
    made = to_json_patch(diff({}, {"vm": Vm("x", [Nic("m1")]), "s": {3, 1, 2}, "t": (1, 2)}))
    assert [operation["value"] for operation in made] == [
        {"name": "x", "nics": [{"mac": "m1", "mtu": 1500}]},
        [1, 2, 3],
        [1, 2],
    ]
    assert json.dumps(made)


# ------------------------------------------------------------------------------------------------ hostile patches


def test_a_patch_that_fails_changes_nothing():
    document = {"a": [1, {"b": 2}]}
    operations = [{"op": "remove", "path": "/a/1/b"}, {"op": "add", "path": "/a/0", "value": 9}, {"op": "no"}]
    with pytest.raises(UsageError, match="operation 2 of the JSON Patch"):
        apply_json_patch(document, operations)
    assert document == {"a": [1, {"b": 2}]}


def test_a_copy_is_no_alias():
    found = apply_json_patch(
        {"a": {"x": [1]}},
        [
            {"op": "add", "path": "/a/x/-", "value": 2},
            {"op": "copy", "from": "/a", "path": "/b"},
            {"op": "add", "path": "/a/x/-", "value": 3},
            {"op": "replace", "path": "/b/x/0", "value": 0},
        ],
    )
    assert found == {"a": {"x": [1, 2, 3]}, "b": {"x": [0, 2]}}


def test_the_values_of_a_patch_are_not_changed_by_it():
    operations = [{"op": "add", "path": "/a", "value": []}, {"op": "add", "path": "/a/-", "value": 1}]
    assert apply_json_patch({}, operations) == {"a": [1]}
    assert operations[0]["value"] == []


def test_copies_of_copies_meet_a_limit():
    bomb = [{"op": "copy", "from": "", "path": f"/{i}"} for i in range(64)]
    with pytest.raises(LimitError, match="copies add more than"):
        apply_json_patch({"x": 1}, bomb)


@pytest.mark.parametrize(
    ("operation", "word"),
    [
        ({"op": "test", "path": "/a~2b", "value": 1}, "neither 0 nor 1"),
        ({"op": "add", "path": "a", "value": 1}, "starts without /"),
        ({"op": "add", "path": None, "value": 1}, "pointer is null"),
        ({"op": "add", "path": "/l/" + "9" * 5000, "value": 1}, "list index is"),
        ({"op": "remove", "path": "/l/٣"}, "list index is"),
        ({"op": "remove", "path": "/l/-"}, "list index is"),
        ({"op": "remove", "path": ""}, "cannot be removed"),
        ({"op": "move", "from": "/l", "path": "/l/0"}, "into itself"),
        ({"op": "add", "path": "/s/x", "value": 1}, "nothing below the string"),
        ({"op": "test", "path": "/t", "value": 1}, "there is true"),
        ([], "an operation is a map"),
    ],
)
def test_a_malformed_operation_is_named_with_its_mend(operation, word):
    with pytest.raises(UsageError, match=word):
        apply_json_patch({"l": [1, 2, 3, 4], "s": "text", "t": True}, [operation])


def nest(levels):
    value = {}
    for _ in range(levels):
        value = {"x": value}
    return value


@pytest.mark.parametrize("levels", [300, 100_000])
def test_a_value_too_deep_is_refused_with_a_limit(levels):
    a, b = nest(levels), nest(levels)
    for call in (
        lambda: diff(a, b),
        lambda: same(a, b),
        lambda: apply_merge_patch({}, a),
        lambda: to_merge_patch({}, a),
    ):
        with pytest.raises(LimitError, match="deeper than"):
            call()
    with pytest.raises(LimitError, match="parts"):
        apply_json_patch({}, [{"op": "add", "path": "/x" * levels, "value": 1}])
    while a:
        a, b = a["x"], b["x"]


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_lists_round_trip(a, b):
    assert patch(a, diff(a, b)) == b
