"""Trees of texts, revision trees and field ownership beyond their public suites."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nova.conflict.merge import (
    ObjectSchema,
    Owned,
    conflicting_revisions,
    merge_revisions,
    merge_trees,
    path_of,
    revision_leaves,
    winning_revision,
)
from nova.errors import LimitError, StaleContextError, UsageError

# ------------------------------------------------------------------------------------------------ trees of texts

names = st.sampled_from(["f", "g", "d/a", "d/b", "e/a"])
bodies = st.lists(st.sampled_from(["one\n", "two\n", "three\n", "four\n"]), min_size=1, max_size=5).map("".join)
trees = st.dictionaries(names, bodies, max_size=4)


@given(trees, trees)
def test_a_side_that_changed_nothing_yields(base, other):
    assert merge_trees(base, base, other).files == other
    assert merge_trees(base, other, base).files == other


@given(trees, trees, trees)
@example({"f": "one\none\none\none\n"}, {"g": "one\none\n"}, {"d/a": "one\none\none\n"})
def test_swapped_sides_give_the_same_tree(base, local, remote):
    one, two = merge_trees(base, local, remote), merge_trees(base, remote, local)
    assert one.files == two.files
    assert {(c.path, c.kind) for c in one.conflicts} == {(c.path, c.kind) for c in two.conflicts}


def test_a_file_that_is_none_is_refused_and_renames_have_a_limit():
    with pytest.raises(UsageError, match="holds a int"):
        merge_trees({}, {"f": 1}, {})
    base = {f"a{i}": f"{i}\n" for i in range(1100)}
    side = {f"b{i}": f"-{i}\n" for i in range(1100)}
    with pytest.raises(LimitError, match="pairs"):
        merge_trees(base, side, base)


# ------------------------------------------------------------------------------------------------ revisions


def test_branches_merge_to_one_tree_in_any_order():
    branches = [path_of(["1", "2"]), path_of(["1", "3", "4"]), path_of(["1", "3", "5"], deleted=True)]
    made = []
    for order in itertools.permutations(branches):
        tree = []
        for branch in order:
            tree = merge_revisions(tree, branch).tree
        made.append(tree)
    assert all(tree == made[0] for tree in made)
    assert winning_revision(made[0]) == "3-4"
    assert conflicting_revisions(made[0]) == ["2-2"]
    assert revision_leaves(made[0]) == [("2-2", False), ("3-4", False), ("3-5", True)]


def test_a_long_branch_needs_no_recursion():
    hashes = [str(i) for i in range(20_000)]
    found = merge_revisions([], path_of(hashes), 1000)
    assert winning_revision(found.tree) == "20000-19999"
    assert len(found.stemmed) == 19_000


@pytest.mark.parametrize(
    "tree", [[1], [{"pos": 1}], [{"pos": 1, "ids": ["a", {}]}], [{"pos": "x", "ids": ["a", {}, []]}]]
)
def test_a_revision_tree_of_another_form_is_refused(tree):
    with pytest.raises(UsageError, match="revision tree is"):
        winning_revision(tree)


def test_revisions_refuse_what_cannot_be():
    with pytest.raises(UsageError, match="depth is 0"):
        merge_revisions([], path_of(["1"]), 0)
    with pytest.raises(UsageError, match="0 revisions"):
        winning_revision([])
    with pytest.raises(UsageError, match="0 revisions"):
        path_of([])


# ------------------------------------------------------------------------------------------------ ownership

TYPES = [
    {
        "name": "vm",
        "map": {
            "fields": [
                {"name": "cpu", "type": {"scalar": "numeric"}},
                {
                    "name": "nics",
                    "type": {
                        "list": {
                            "elementRelationship": "associative",
                            "keys": ["id"],
                            "elementType": {"map": {"elementType": {"scalar": "untyped"}}},
                        }
                    },
                },
            ]
        },
    }
]


def test_an_apply_takes_nothing_from_others_without_force():
    state = (
        Owned(ObjectSchema(TYPES, "vm")).apply("ops", {"cpu": 2}).apply("net", {"nics": [{"id": "n0", "mtu": 9000}]})
    )
    with pytest.raises(StaleContextError, match="f:cpu of ops") as caught:
        state.apply("net", {"cpu": 4})
    assert caught.value.current == [("ops", ("f:cpu",))]
    forced = state.apply("net", {"cpu": 4}, force=True)
    assert forced.value == {"cpu": 4}
    assert set(forced.managers) == {"net"}
    assert state.value == {"cpu": 2, "nics": [{"id": "n0", "mtu": 9000}]}


def test_two_managers_may_own_one_value_and_it_goes_with_the_last():
    state = Owned(ObjectSchema()).apply("a", {"x": 1, "y": 1}).apply("b", {"x": 1})
    state = state.apply("a", {"y": 1})
    assert state.value == {"x": 1, "y": 1}
    state = state.apply("b", {})
    assert state.value == {"y": 1}


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        ({"disk": 1}, "not in the schema"),
        ({"cpu": "two"}, "it is numeric"),
        ({"cpu": {}}, "its type allows scalar"),
        ({"nics": [{"mtu": 1}]}, "has no id"),
        ({"nics": [{"id": 1}, {"id": 1}]}, "twice"),
        ({"nics": [1]}, "its items are maps"),
    ],
)
def test_an_object_that_does_not_fit_is_refused(wanted, word):
    with pytest.raises(UsageError, match=word):
        Owned(ObjectSchema(TYPES, "vm")).apply("a", wanted)


def test_an_object_too_deep_is_refused():
    value = {}
    for _ in range(400):
        value = {"x": value}
    with pytest.raises(LimitError):
        Owned(ObjectSchema()).apply("a", value)
    with pytest.raises(LimitError):
        Owned(ObjectSchema()).update("a", value)
