"""The laws of the merge engine, for documents that Hypothesis draws."""

from __future__ import annotations

import copy
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nova.conflict.detect import canonical
from nova.conflict.merge import MISSING, diff, merge, same
from tests.conflict.merge_values import atoms, documents, keys, values

items = st.lists(
    st.fixed_dictionaries({"id": st.sampled_from(["n0", "n1", "n2"])}, optional={"v": atoms, "w": atoms}),
    max_size=3,
    unique_by=lambda item: item["id"],
)
SCHEMA = {
    "/count": {"type": "counter"},
    "/most": {"merge": "max"},
    "/least": {"merge": "min"},
    "/epoch": {"merge": "max", "monotone": True},
    "/power": {"merge": "precedence", "order": ["stopped", "paused", "running"]},
    "/tags": {"type": "set"},
    "/nics": {"type": "map_list", "key": "id"},
    "/nics/*/v": {"merge": "max"},
    "/list": {"type": "sequence"},
    "/notes": {"type": "text"},
    "/selector": {"type": "atomic"},
    "/tree": {"track_moves": True},
    "/pair": {"groups": [["a", "b"]]},
}
small = st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from(["a", "b", 1.0, float("nan")]))
declared = st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(-3, 3) | small,
        "most": small,
        "least": small,
        "epoch": st.integers(0, 5) | small,
        "power": st.sampled_from(["stopped", "paused", "running", "unknown"]),
        "tags": st.lists(small, max_size=3) | small,
        "nics": items | small,
        "list": st.lists(small, max_size=4) | small,
        "notes": st.lists(st.sampled_from(["x\n", "y\n", "z"]), max_size=4).map("".join) | small,
        "selector": documents,
        "tree": st.recursive(st.just({}), lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=5),
        "pair": st.dictionaries(st.sampled_from("abc"), small, max_size=3),
        "free": values,
    },
)
cases = st.sampled_from([(documents, None), (values, None), (declared, SCHEMA)])


@st.composite
def three(draw):
    source, schema = draw(cases)
    base = draw(source)
    sides = [draw(st.just(base) | source) for _ in range(2)]
    return [copy.deepcopy(value) for value in (base, *sides)], schema


def counts(value):
    return isinstance(value, dict) and "count" in value


def test_what_either_side_added_is_there():
    assert merge({}, {"a": 1}, {"b": 2}).value == merge({}, {"b": 2}, {"a": 1}).value == {"a": 1, "b": 2}
    assert merge({"c": 3}, {"c": 3}, {"c": 3, "b": 2}).value == {"c": 3, "b": 2}


@given(three())
def test_a_side_that_changed_nothing_yields(found):
    (base, other, _), schema = found
    before = [copy.deepcopy(base), copy.deepcopy(other)]
    for result in (
        merge(base, base, other, schema),
        merge(base, other, base, schema),
        merge(base, copy.deepcopy(base), other, schema),
    ):
        assert result.clean
        if schema is None or "epoch" not in other or "epoch" not in base:
            assert same(result.value, other)
    assert same([base, other], before)


@given(three())
def test_equal_changes_are_agreement_except_for_counters(found):
    (base, other, _), schema = found
    result = merge(base, other, copy.deepcopy(other), schema)
    value = copy.copy(result.value)
    if schema is None:
        assert result.clean
        assert same(result.value, other)
        return
    expected = dict(other)
    for field in ("count", "epoch"):
        value.pop(field, None)
        expected.pop(field, None)
    assert same(value, expected)
    assert result.clean


@given(three())
def test_swapped_sides_give_the_same_bytes(found):
    (base, local, remote), schema = found
    one, two = merge(base, local, remote, schema), merge(base, remote, local, schema)
    assert canonical(one.value) == canonical(two.value)
    assert repr(one.value) == repr(two.value) or same(one.value, two.value)
    assert sorted((c.path, c.type, c.kind) for c in one.conflicts) == sorted(
        (c.path, c.type, c.kind) for c in two.conflicts
    )


@given(three())
@example(([{"tree": {"a": {}, "b": {}}}, {"tree": {"a": {"a": {}, "b": {}}}}, {"tree": {}}], SCHEMA))
def test_a_result_is_clean_exactly_when_there_is_no_conflict(found):
    (base, local, remote), schema = found
    result = merge(base, local, remote, schema)
    assert result.clean == (len(result.conflicts) == 0)
    assert result.explain()
    again = merge(base, local, remote, schema, "local")
    assert all(conflict.resolved for conflict in again.conflicts)


def leaves(value, path=()):
    """Every leaf of a document; lists and empty containers are leaves, since undeclared ones are atomic."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def at(value, path):
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return MISSING
        value = value[key]
    return value


@given(documents, documents, documents)
@settings(max_examples=300)
def test_a_loss_does_not_hide(base, local, remote):
    result = merge(base, local, remote)
    for side, mine in (("local", local), ("remote", remote)):
        for path, value in leaves(mine):
            if value == {} or same(at(result.value, path), value) or same(at(base, path), value):
                continue  # it is there, or the other side changed what this one left as it was
            pointer = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path)
            assert any(
                pointer == item.path or pointer.startswith(item.path + "/") for item in result.lost if item.side == side
            ), pointer


@given(documents, documents, documents)
@settings(max_examples=300)
def test_no_value_is_invented(base, local, remote):
    result = merge(base, local, remote)
    known = {canonical(value) for side in (base, local, remote) for _, value in leaves(side)}
    known.add(canonical({}))
    assert all(canonical(value) in known for _, value in leaves(result.value))


@given(documents, documents, documents)
@settings(max_examples=300)
def test_every_change_without_a_conflict_is_in_the_result(base, local, remote):
    result = merge(base, local, remote)
    contended = [conflict.path for conflict in result.conflicts]
    for side in (local, remote):
        for edit in diff(base, side).edits:
            names = [part for part in edit.path if isinstance(part, str)]
            where = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in names)
            if any(
                where == path or (where + "/").startswith(path + "/") or path.startswith(where + "/")
                for path in contended
            ):
                continue
            if len(names) < len(edit.path):
                assert same(at(result.value, names), at(side, names))  # in a list, which is atomic
            elif edit.after is MISSING or not isinstance(edit.after, dict):
                assert same(at(result.value, names), edit.after)


FOREST = {"a": {"b": {"leaf1": 1}, "leaf2": 2}, "c": {"d": {"leaf3": 3}, "e": {"leaf4": 4}}, "f": {"leaf5": 5}}


@st.composite
def rearranged(draw):
    """The forest after up to three moves, none of them into what moves."""
    tree = copy.deepcopy(FOREST)
    for _ in range(draw(st.integers(0, 3))):
        maps, stack = [((), tree)], [((), tree)]
        while stack:
            path, here = stack.pop()
            below = [((*path, key), value) for key, value in here.items() if isinstance(value, dict)]
            maps += below
            stack += below
        origin, key = draw(st.sampled_from([(path, key) for path, here in maps for key in sorted(here)]))
        targets = [path for path, here in maps if path[: len(origin) + 1] != (*origin, key) and key not in here]
        if targets:
            target = draw(st.sampled_from(sorted(targets)))
            at(tree, target)[key] = at(tree, origin).pop(key)
    return tree


@given(rearranged(), rearranged())
@settings(max_examples=300)
def test_no_thing_is_doubled_or_vanishes_by_concurrent_moves(local, remote):
    schema = {"": {"track_moves": True}}
    result, swapped = merge(FOREST, local, remote, schema), merge(FOREST, remote, local, schema)
    found = sorted(value for _, value in leaves(result.value) if value != {})
    assert found == [1, 2, 3, 4, 5]
    assert same(result.value, swapped.value)
    if same(local, FOREST):
        assert result.clean
        assert same(result.value, remote)


@given(rearranged(), rearranged())
def test_a_policy_decides_among_moves_and_doubles_and_loses_nothing(local, remote):
    schema = {"": {"track_moves": True}}
    for word, other in (("local", "remote"), ("remote", "local"), ("base", "base")):
        result, swapped = merge(FOREST, local, remote, schema, word), merge(FOREST, remote, local, schema, other)
        assert sorted(value for _, value in leaves(result.value) if value != {}) == [1, 2, 3, 4, 5]
        assert not result.unresolved
        assert same(result.value, swapped.value)


lattices = st.fixed_dictionaries(
    {"count": st.integers(-5, 5), "epoch": st.integers(0, 5), "tags": st.lists(st.sampled_from("abcd"), unique=True)}
)


@given(lattices, st.lists(lattices, min_size=3, max_size=3))
def test_three_writers_of_lattices_agree_in_any_order_and_grouping(base, writers):
    schema = {name: SCHEMA[name] for name in ("/count", "/epoch", "/tags")}
    found = set()
    for one, two, three_ in itertools.permutations(writers):
        left = merge(base, merge(base, one, two, schema).value, three_, schema).value
        right = merge(base, one, merge(base, two, three_, schema).value, schema).value
        found |= {canonical({**value, "tags": sorted(value["tags"])}) for value in (left, right)}
    assert len(found) == 1


def test_a_conflict_of_three_writers_is_seen_in_any_order():
    base, writers = {"x": 0}, [{"x": 1}, {"x": 0, "y": 1}, {"x": 2}]
    for one, two, three_ in itertools.permutations(writers):
        first = merge(base, one, two)
        second = merge(base, first.value, three_)
        paths = [conflict.path for conflict in (*first.conflicts, *second.conflicts)]
        lost = [item.value for item in (*first.lost, *second.lost)]
        assert "/x" in paths or {1, 2} & set(lost)
        assert not (first.clean and second.clean)


@pytest.mark.parametrize("schema", [None, SCHEMA])
@given(values, values, values)
def test_any_values_merge_without_an_error(schema, base, local, remote):
    merge(base, local, remote, schema)
    merge(MISSING, local, remote, schema)
