"""Traps of three-way merges, one test each."""

from __future__ import annotations

import dataclasses
import datetime
from random import Random
from typing import Annotated

import msgspec
import pytest

from nova.conflict.detect import Invariant
from nova.conflict.merge import (
    MISSING,
    Atomic,
    Counter,
    Custom,
    Group,
    Keyed,
    Max,
    Min,
    Moves,
    Precedence,
    Sequence,
    SetOf,
    Text,
    compile_schema,
    merge,
    same,
)
from nova.errors import LimitError, UsageError

POWER = {"/power": Precedence("stopped", "paused", "running"), "/cpu": Max, "/disks": Keyed("id")}


def kinds(result):
    return [(conflict.path, conflict.kind) for conflict in result.conflicts]


# ------------------------------------------------------------------------------------------------ lattices, counters


def test_a_machine_can_be_stopped_although_running_ranks_higher():
    assert merge({"power": "running"}, {"power": "stopped"}, {"power": "running"}, POWER).value == {"power": "stopped"}
    assert merge({"cpu": 8}, {"cpu": 8}, {"cpu": 2}, POWER).value == {"cpu": 2}


def test_the_loser_of_a_lattice_is_listed():
    result = merge({"power": "running"}, {"power": "stopped"}, {"power": "paused"}, POWER)
    assert result.clean
    (lost,) = result.lost
    assert (lost.path, lost.value, lost.side) == ("/power", "stopped", "local")


def test_a_word_that_precedence_does_not_know_is_a_conflict():
    assert kinds(merge({"power": "stopped"}, {"power": "odd"}, {"power": "running"}, POWER)) == [
        ("/power", "update/update")
    ]


def test_a_detached_disk_does_not_come_back():
    disks = [{"id": "a", "gb": 1}, {"id": "b", "gb": 1}]
    result = merge({"disks": disks}, {"disks": disks[:1]}, {"disks": [*disks, {"id": "c"}]}, POWER)
    assert result.clean
    assert [disk["id"] for disk in result.value["disks"]] == ["a", "c"]


def test_equal_subtrees_are_not_skipped_above_a_counter():
    schema = {"/m/n": Counter}
    base, side = {"m": {"n": 1, "x": 0}}, {"m": {"n": 3, "x": 5}}
    assert merge(base, side, {"m": {"n": 3, "x": 5}}, schema).value == {"m": {"n": 5, "x": 5}}


def test_an_unchanged_side_is_not_skipped_above_a_monotone_field():
    schema = {"/m/epoch": Max(monotone=True), "/m/floor": Min(monotone=True)}
    base = {"m": {"epoch": 5, "floor": 5, "x": 0}}
    result = merge(base, {"m": {"epoch": 4, "floor": 6, "x": 1}}, base, schema)
    assert result.value == {"m": {"epoch": 5, "floor": 5, "x": 1}}
    assert [(item.path, item.value) for item in result.lost] == [("/m/epoch", 4), ("/m/floor", 6)]


def test_a_monotone_field_that_one_side_gave_another_type_takes_it():
    schema = {"/e": Max(monotone=True)}
    assert merge({"e": 1}, {"e": "x"}, {"e": 1}, schema).value == {"e": "x"}
    assert merge({"e": 1}, {"e": float("nan")}, {"e": 1}, schema).clean


def test_counters_stay_exact_above_two_to_the_53():
    big = 1 << 60
    assert merge({"n": big}, {"n": big + 1}, {"n": big + 2}, {"/n": Counter}).value == {"n": big + 3}


@pytest.mark.parametrize("odd", [True, "1", None, float("inf"), float("nan")])
def test_a_counter_that_is_no_number_is_a_conflict_not_an_accident(odd):
    result = merge({"n": 1}, {"n": odd}, {"n": 4}, {"/n": Counter})
    assert [conflict.path for conflict in result.conflicts] == ["/n"]
    assert result.value == {"n": 1}


def test_a_counter_too_large_for_a_float_is_a_conflict():
    assert not merge({"n": 0}, {"n": 10**400}, {"n": 0.5}, {"/n": Counter}).clean


# ------------------------------------------------------------------------------------------------ equality


def test_true_is_not_one():
    assert kinds(merge({"a": 0}, {"a": True}, {"a": 1}, None)) == [("/a", "type_change")]
    assert merge({"a": 1}, {"a": True}, {"a": 1}).value["a"] is True


def test_true_is_not_false():
    assert merge({"a": True}, {"a": False}, {"a": True}).value["a"] is False


def test_nan_is_no_change_from_nan():
    nan = float("nan")
    assert merge({"a": nan}, {"a": float("nan")}, {"a": 2}).value == {"a": 2}


@pytest.mark.parametrize(("a", "b"), [(1, 1.0), (0.0, -0.0), ([1], [1.0]), ({"x": 2}, {"x": 2.0}), ([1], (1,))])
def test_equal_values_in_different_form_give_one_form_in_both_directions(a, b):
    one, two = merge({"v": 9}, {"v": a}, {"v": b}), merge({"v": 9}, {"v": b}, {"v": a})
    assert one.clean
    assert repr(one.value) == repr(two.value)


def test_composed_and_decomposed_text_differ():
    assert not merge({"a": ""}, {"a": "\u00e9"}, {"a": "e\u0301"}).clean


def test_null_is_a_value_and_missing_is_not_null():
    assert merge({"a": 1}, {"a": None}, {"a": 1}).value == {"a": None}
    assert kinds(merge({"a": 1}, {"a": None}, {})) == [("/a", "delete/update")]
    assert merge({}, {"a": None}, {}).value == {"a": None}


def test_without_a_common_ancestor_what_both_have_was_added_by_both():
    result = merge(MISSING, {"a": 1, "b": 2}, {"b": 3, "c": 4})
    assert result.value == {"a": 1, "c": 4}
    assert kinds(result) == [("/b", "add/add")]


# ------------------------------------------------------------------------------------------------ deletions, moves


def test_a_deletion_against_an_edit_is_reported_once_and_the_content_kept():
    base = {"m": {"x": {"y": 1, "z": 2}}}
    result = merge(base, {}, {"m": {"x": {"y": 5, "z": 6}}})
    assert kinds(result) == [("/m", "delete/update")]
    assert result.value == base
    assert [(item.path, item.side) for item in result.lost] == [("/m", "remote")]


TREE = {"": Moves}


def test_an_edit_follows_what_the_other_side_moved():
    base = {"p": {"vm": {"cpu": 1, "name": "a"}}, "q": {}}
    local = {"p": {}, "q": {"vm": {"cpu": 1, "name": "a"}}}
    remote = {"p": {"vm": {"cpu": 2, "name": "a"}}, "q": {}}
    for sides in ((local, remote), (remote, local)):
        result = merge(base, *sides, TREE)
        assert result.clean
        assert result.value == {"p": {}, "q": {"vm": {"cpu": 2, "name": "a"}}}


def test_a_renamed_map_takes_the_edit_along():
    base = {"old": {"x": 1, "y": 2}}
    assert merge(base, {"new": {"x": 1, "y": 2}}, {"old": {"x": 1, "y": 3}}, TREE).value == {"new": {"x": 1, "y": 3}}


def test_one_thing_moved_to_two_places_does_not_become_two():
    base, local, remote = {"p": {"x": [1]}, "q": {}, "r": {}}, {"p": {}, "q": {"x": [1]}, "r": {}}, None
    remote = {"p": {}, "q": {}, "r": {"x": [1]}}
    result = merge(base, local, remote, TREE)
    assert kinds(result) == [("/p/x", "move/move")]
    assert result.value == base


def test_three_moves_that_close_a_circle_are_undone():
    base = {"A": {"a": 1}, "B": {"b": 1}, "C": {"c": 1}}
    local = {"B": {"b": 1, "A": {"a": 1}}, "C": {"c": 1}}
    local = {"C": {"c": 1, "B": {"b": 1, "A": {"a": 1}}}}
    remote = {"A": {"a": 1, "C": {"c": 1}}, "B": {"b": 1}}
    for sides in ((local, remote), (remote, local)):
        result = merge(base, *sides, TREE)
        assert [conflict.kind for conflict in result.conflicts] == ["cycle"]
        assert sorted(str(result.value).count(f"'{name}'") for name in "ABC") == [1, 1, 1]


def test_nothing_vanishes_in_a_folder_that_the_other_side_removed():
    base = {"a": {"x": [1]}, "b": {"y": 1}}
    local = {"a": {}, "b": {"y": 1, "x": [1]}}
    remote = {"a": {"x": [1]}}
    for sides in ((local, remote), (remote, local)):
        result = merge(base, *sides, TREE)
        assert kinds(result) == [("/b", "delete/update")]
        assert result.value == base


def test_thousands_of_moves_and_a_chain_over_both_sides_end():
    base = {"from": {str(i): [i] for i in range(3000)}, "to": {}}
    local = {"from": {}, "to": base["from"]}
    remote = {"from": {**base["from"], "7": [8]}, "to": {}}
    result = merge(base, local, remote, TREE)
    assert len(result.value["to"]) == 3000
    base = {f"n{i:03}": {"id": i} for i in range(300)}
    sides = [dict(base), dict(base)]
    for i in range(299):
        name, into = f"n{i:03}", f"n{i + 1:03}"
        side = sides[i % 2]
        side[into] = {**side[into], name: side.pop(name)}
    with pytest.raises(LimitError):
        merge(base, *sides, TREE)


def test_a_move_of_what_the_other_side_removed_is_a_conflict():
    base = {"a": {"x": [1]}, "b": {}}
    for sides in (({"a": {}, "b": {"x": [1]}}, {"a": {}, "b": {}}), ({"a": {}, "b": {}}, {"a": {}, "b": {"x": [1]}})):
        result = merge(base, *sides, TREE)
        assert kinds(result) == [("/a/x", "delete/move")]
        assert result.value == base


THING = {"a": {"x": [1]}, "b": {}, "c": {}}
DEEP = {"a": {"x": [1]}, "b": {"d": {}}}
IN_B, IN_C = {"a": {}, "b": {"x": [1]}, "c": {}}, {"a": {}, "b": {}, "c": {"x": [1]}}


@pytest.mark.parametrize(
    ("base", "local", "remote", "path", "kind"),
    [
        (THING, IN_B, IN_C, "/a/x", "move/move"),
        (THING, IN_B, {"a": {}, "b": {}, "c": {}}, "/a/x", "delete/move"),
        (THING, IN_B, {"a": {"x": [1]}, "c": {}}, "/b", "delete/update"),
        (DEEP, {"a": {}, "b": {"d": {"x": [1]}}}, {"a": {"x": [1]}, "b": 5}, "/b", "type_change"),
        (THING, IN_B, {"a": {"x": [1]}, "b": {"x": 2}, "c": {}}, "/b/x", "add/add"),
        ({"a": {"x": [1]}}, {"a": {}, "b": {"x": [1]}}, {"a": {"x": [1]}, "b": 5}, "/b/x", "add/add"),
        ({"A": {"a": 1}, "B": {"b": 1}}, {"B": {"b": 1, "A": {"a": 1}}}, {"A": {"a": 1, "B": {"b": 1}}}, "/A", "cycle"),
    ],
)
def test_a_policy_decides_for_a_side_whose_moves_then_stand(base, local, remote, path, kind):
    for word, wins in (("local", local), ("remote", remote), ("base", base)):
        result = merge(base, local, remote, TREE, word)
        assert [(c.path, c.kind) for c in result.conflicts][:1] == [(path, kind)]
        assert not result.unresolved
        if word != "base" or kind != "add/add":
            assert result.value == wins
        held = str(result.value)
        for value in ("5", "2"):  # what the other side put in the way is lost and told
            assert (value in held) == (
                value in str(remote) and not any(str(lost.value) == value for lost in result.lost)
            )
    assert merge(base, local, remote, TREE).conflicts[0].resolved is False


def test_a_function_decides_among_moves_by_the_value_of_a_side():
    for give, value in ((lambda c: c.local, IN_B), (lambda c: c.remote, IN_C), (lambda c: c.base, THING)):
        assert merge(THING, IN_B, IN_C, TREE, give).value == value
    result = merge(THING, IN_B, IN_C, TREE, lambda c: "elsewhere")
    assert result.value == THING
    assert result.unresolved[0].note.endswith('"elsewhere" is of neither side nor the base')


# ------------------------------------------------------------------------------------------------ groups, invariants


@dataclasses.dataclass(frozen=True)
class Nic:
    id: str
    ip: Annotated[str, Group("address")] = ""
    mac: Annotated[str, Group("address")] = ""
    mtu: Annotated[int, Max] = 1500
    errors: Annotated[int, Counter] = 0


class Vm(msgspec.Struct, frozen=True):
    name: str
    nics: Annotated[list[Nic], Keyed("id")] = []
    tags: Annotated[list[str], SetOf] = []
    owners: frozenset[str] = frozenset()
    steps: Annotated[list[str], Sequence] = []
    notes: Annotated[str, Text] = ""
    selector: Annotated[dict[str, str], Atomic] = {}
    since: datetime.datetime | None = None


def test_records_merge_by_their_annotations():
    base = Vm("vm", [Nic("n0", "ip0", "m0")], ["a"], frozenset("a"), ["s1", "s2"], "one\ntwo\nthree\n")
    local = Vm(
        "vm", [Nic("n0", "ip0", "m0", 9000, 2)], ["a", "c"], frozenset("ac"), ["s0", "s1", "s2"], "ONE\ntwo\nthree\n"
    )
    remote = Vm("vm", [Nic("n0", "ip1", "m1", 4000, 2)], ["b"], frozenset("b"), ["s1", "s2", "s3"], "one\ntwo\nTHREE\n")
    result = merge(base, local, remote)
    assert result.clean
    assert result.value == Vm(
        "vm",
        [Nic("n0", "ip1", "m1", 9000, 4)],
        ["b", "c"],
        frozenset("bc"),
        ["s0", "s1", "s2", "s3"],
        "ONE\ntwo\nTHREE\n",
    )


def test_a_counter_inside_a_record_inside_a_plain_map_still_adds():
    base, side = {"n": Nic("n0")}, {"n": Nic("n0", errors=2)}
    assert merge(base, side, {"n": Nic("n0", errors=2)}).value["n"].errors == 4


class Fence(msgspec.Struct):
    epoch: Annotated[int, Max(monotone=True)]


def test_a_monotone_field_inside_a_record_inside_a_plain_map_still_holds():
    for wrap in (dict, lambda found: {"x": found}):
        base, lowered = wrap({"f": Fence(5)}), wrap({"f": Fence(4)})
        assert repr(merge(base, lowered, base).value) == repr(base)
        assert repr(merge(base, wrap({"f": Fence(5)}), lowered).value) == repr(base)


def test_fields_of_a_group_come_from_one_side():
    base = [Nic("n0", "ip0", "m0")]
    result = merge(Vm("v", base), Vm("v", [Nic("n0", "ip1", "m0")]), Vm("v", [Nic("n0", "ip0", "m2")]))
    assert kinds(result) == [("/nics/[id=n0]/ip", "update/update")]
    assert result.value.nics == base
    pointers = {"/a": {"groups": [["ip", "mac"]]}}
    values = ({"a": {"ip": 1, "mac": 1}}, {"a": {"ip": 2, "mac": 1}}, {"a": {"ip": 1, "mac": 1, "x": 1}})
    assert merge(*values, pointers).value == {"a": {"ip": 2, "mac": 1, "x": 1}}


def test_a_violation_in_the_base_does_not_block_an_unrelated_edit_but_a_new_one_does():
    unique = [{"name": "ips", "kind": "unique", "path": "/nics/*/ip"}]
    base = {"nics": {"a": {"ip": 1}, "b": {"ip": 1}}, "x": 0}
    result = merge(base, {**base, "x": 1}, base, invariants=unique)
    assert (result.committed, result.preexisting, result.value["x"]) == (True, ("ips",), 1)
    local = {"nics": {**base["nics"], "c": {"ip": 2}}, "x": 0}
    remote = {"nics": {**base["nics"], "d": {"ip": 2}}, "x": 0}
    result = merge(base, local, remote, invariants=unique)
    assert not result.committed
    assert result.value == base
    assert result.proposal["nics"].keys() == {"a", "b", "c", "d"}


def test_an_invariant_in_python_is_checked_on_the_outcome():
    def even(value):
        return None if value % 2 == 0 else f"{value} is odd"

    result = merge({"n": 0}, {"n": 3}, {"n": 0}, invariants=[Invariant("even", even, "/n")])
    assert kinds(result) == [("/n", "check")]
    assert "3 is odd" in result.explain()


# ------------------------------------------------------------------------------------------------ lists


def test_both_sides_reorder_a_keyed_list_differently():
    base = {"l": [{"id": 1}, {"id": 2}, {"id": 3}]}
    local = {"l": [{"id": 3}, {"id": 1}, {"id": 2}]}
    remote = {"l": [{"id": 2}, {"id": 1}, {"id": 3, "v": 1}]}
    result = merge(base, local, remote, {"/l": Keyed("id")})
    assert kinds(result) == [("/l", "move/move")]
    assert result.value == {"l": [{"id": 1}, {"id": 2}, {"id": 3, "v": 1}]}
    taken = merge(base, local, remote, {"/l": Keyed("id")}, "local")
    assert [item["id"] for item in taken.value["l"]] == [3, 1, 2]


def test_items_without_identity_make_a_keyed_list_atomic():
    base = {"l": [{"id": 1}]}
    for odd in ([{"id": 1}, {"id": 1}], [{"x": 1}], [1]):
        assert kinds(merge(base, {"l": odd}, {"l": [{"id": 2}]}, {"/l": Keyed("id")})) == [("/l", "update/update")]


def test_a_permuted_set_does_not_keep_its_container_alive():
    base = {"m": {"tags": ["a", "b"]}}
    assert merge(base, {}, {"m": {"tags": ["b", "a"]}}, {"/m/tags": SetOf}).value == {}


def test_a_sequence_keeps_what_merges_beside_what_does_not():
    base = {"l": list("abcdefg")}
    result = merge(base, {"l": list("aXcdefg")}, {"l": list("aYcdefZg")}, {"/l": Sequence})
    assert result.value == {"l": list("abcdefZg")}
    assert [(item.value, item.side) for item in result.lost] == [(["X"], "local"), (["Y"], "remote")]


def test_an_operational_transform_keeps_all_insertions_and_all_deletions():
    base = {"l": list("abc")}
    result = merge(base, {"l": list("axc")}, {"l": list("aybc")}, {"/l": Sequence}, "operational_transform")
    assert result.value["l"] == list("axyc") or result.value["l"] == list("ayxc")
    assert not result.unresolved


# ------------------------------------------------------------------------------------------------ functions, policies


def test_a_function_that_raises_leaves_no_half_result():
    def fails(*sides):
        raise RuntimeError("no")

    base = {"a": 1, "b": 1}
    result = merge(base, {"a": 2, "b": 2}, {"a": 3, "b": 1}, {"/a": Custom(fails)})
    assert result.value == {"a": 1, "b": 2}
    assert "RuntimeError: no" in result.conflicts[0].note
    result = merge(base, {"a": 2, "b": 2}, {"a": 3, "b": 1}, None, fails)
    assert result.value == {"a": 1, "b": 2}
    assert "RuntimeError: no" in result.conflicts[0].note


def test_a_declared_function_decides_where_both_changed():
    result = merge({"a": 1}, {"a": 2}, {"a": 3}, {"/a": {"merge": lambda base, mine, yours: mine * yours}})
    assert result.value == {"a": 6}
    assert {item.value for item in result.lost} == {2, 3}


@pytest.mark.parametrize(("policy", "value"), [("local", 2), ("remote", 3), ("base", 1)])
def test_a_policy_decides_and_the_loser_is_listed(policy, value):
    result = merge({"a": 1}, {"a": 2}, {"a": 3}, None, policy)
    assert result.value == {"a": value}
    assert not result.unresolved
    assert not result.clean
    assert {item.value for item in result.lost} == {2, 3} - {value}


def test_the_longest_pattern_of_a_policy_decides():
    result = merge(
        {"a": {"b": 1, "c": 1}},
        {"a": {"b": 2, "c": 2}},
        {"a": {"b": 3, "c": 3}},
        None,
        {"/a/*": "remote", "/a/b": "local"},
    )
    assert result.value == {"a": {"b": 2, "c": 3}}


def test_a_policy_may_remove_or_leave_open():
    assert merge({"a": 1}, {"a": 2}, {"a": 3}, None, lambda conflict: MISSING).value == {}
    assert merge({"a": 1}, {"a": 2}, {"a": 3}, None, lambda conflict: conflict).unresolved


# ------------------------------------------------------------------------------------------------ bad calls


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"/a": {"type": "heap"}}, 'says "heap"'),
        ({"/a": {"typ": "set"}}, 'has "typ"'),
        ({"/a": {"monotone": True}}, "needs `type` or `merge`"),
        ({"a": {"type": "set"}}, "starts without /"),
        ({"/a": 7}, "is 7"),
        ({"/a": {"type": "map_list"}}, "keys of a keyed list"),
        ({"/a": {"merge": "precedence", "order": ["x"]}}, "give at least 2"),
        ({"/a": {"type": "text", "unit": "word"}}, "unit of a text"),
        (int, "schema is int"),
        (7, "schema is 7"),
    ],
)
def test_a_declaration_that_is_none_is_refused(schema, word):
    with pytest.raises(UsageError, match=word):
        merge({}, {}, {}, schema)


def test_unknown_policies_and_invariants_are_refused():
    with pytest.raises(UsageError, match='policy is "mine"'):
        merge({}, {}, {}, None, "mine")
    with pytest.raises(UsageError, match="invariant is"):
        merge({}, {}, {}, invariants=[{"kind": "odd"}])
    with pytest.raises(UsageError, match="no `limit`"):
        merge({}, {}, {}, invariants=[{"kind": "ge", "path": "/a"}])


def test_a_key_that_is_not_text_is_refused():
    with pytest.raises(UsageError, match="map key 1 is of type int"):
        merge({1: 1}, {1: 2}, {1: 3})


@pytest.mark.parametrize("schema", [None, {"": Moves}, {"/x": Keyed("id")}])
@pytest.mark.parametrize("levels", [250, 50_000])
def test_values_too_deep_are_refused_with_a_limit(levels, schema):
    def nest(leaf):
        value = {"leaf": leaf}
        for _ in range(levels):
            value = {"x": value}
        return value

    made = [nest(leaf) for leaf in range(3)]
    with pytest.raises(LimitError, match="deeper than"):
        merge(*made, schema)
    for value in made:  # taken apart by hand: the interpreter would do it by recursion
        while "x" in value:
            value = value.pop("x")


def test_a_value_that_contains_itself_is_refused():
    loop, other = {}, {}
    loop["x"], other["x"] = loop, other
    with pytest.raises(LimitError, match="contains itself"):
        merge({}, loop, other)


def test_arguments_are_never_changed_and_parts_are_shared():
    base = {"a": {"b": [1]}, "c": {"d": 1}}
    local, remote = {**base, "c": {"d": 2}}, {**base, "e": 1}
    result = merge(base, local, remote)
    assert result.value["a"] is base["a"]
    assert same(base, {"a": {"b": [1]}, "c": {"d": 1}})


def test_a_compiled_schema_does_what_its_declarations_do():
    base, local, remote = {"power": "running"}, {"power": "stopped"}, {"power": "paused"}
    assert merge(base, local, remote, compile_schema(POWER)).value == merge(base, local, remote, POWER).value


@pytest.mark.parametrize(
    ("one", "two", "same_item"), [(1, 1.0, True), (1, True, False), (0.0, -0.0, True), ("1", 1, False)]
)
def test_items_are_one_exactly_when_their_keys_are_equal(one, two, same_item):
    result = merge({"l": []}, {"l": [{"id": one, "v": 1}]}, {"l": [{"id": two, "v": 1}]}, {"/l": Keyed("id")})
    assert len(result.value["l"]) == (1 if same_item else 2)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_keys_makes_no_difference(seed):
    """Maps are walked side by side where their keys are in one order; elsewhere keys are looked up."""
    random = Random(seed)
    base = {f"k{i}": i for i in range(12)}
    local, remote = dict(base), dict(base)
    for side, mark in ((local, "l"), (remote, "r")):
        for key in random.sample(sorted(base), 3):
            side[key] = f"{mark}{key}"
        for key in random.sample(sorted(base), 2):
            del side[key]
        side[f"new-{mark}"] = 1
    expected = merge(base, local, remote)

    def shuffled(side):
        return {"".join(key): value for key, value in random.sample(sorted(side.items()), len(side))}

    found = merge(shuffled(base), shuffled(local), shuffled(remote))
    assert found.value == expected.value
    assert {c.path for c in found.conflicts} == {c.path for c in expected.conflicts}
    assert sorted(c.path for c in found.changes) == sorted(c.path for c in expected.changes)
    changed = {key for key in base if local.get(key) != base[key]} | {
        key for key in base if remote.get(key) != base[key]
    }
    assert {c.path.strip("/") for c in (*expected.conflicts, *expected.changes)} == changed | {"new-l", "new-r"}


def test_an_item_that_both_added_keeps_its_key_though_that_is_part_of_a_contended_group():
    schema = {"/n": {"type": "map_list", "key": "mac"}, "/n/*": {"groups": [["mac", "ip"]]}}
    found = merge({"n": []}, {"n": [{"mac": "m", "ip": 1}]}, {"n": [{"mac": "m", "ip": 2}]}, schema)
    assert found.value == {"n": [{"mac": "m"}]}
    assert [(c.path, c.kind) for c in found.conflicts] == [("/n/[mac=m]/mac", "add/add")]
