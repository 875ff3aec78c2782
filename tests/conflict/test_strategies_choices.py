"""Priority, rollback, operations and three-way merges as strategies, and what all strategies owe."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict.detect import ConflictDetector, Invariant, Version, at_most, canonical, prune
from nova.conflict.merge import Counter, Keyed
from nova.conflict.ot import text
from nova.conflict.strategies import (
    STRATEGIES,
    AutomaticRollback,
    Declared,
    HighestPriority,
    OperationalTransform,
    ResolveContext,
    Schema,
    SemanticMerge,
    UndecidedError,
    known_strategies,
    register_strategy,
    strategy_named,
)
from nova.conflict.strategies import base as seam
from nova.errors import UsageError
from nova.types import Order
from tests.conflict.conflicts import at_paths, frozen, versions, whole

scalars = st.sampled_from([None, True, 1, 1.0, 2, "a", "ab", "abc", float("nan")])
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner), max_leaves=6
)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(trees, min_size=2, max_size=3), base=trees | st.none(), known=st.booleans())
def test_every_strategy_gives_the_same_bytes_in_any_order_and_a_clock_that_dominates(name, values, base, known):
    rows = versions(*values)
    found = set()
    for order in permutations(rows):
        conflict = ConflictDetector().examine("r", "register", {"": list(order)})
        if known:
            conflict = conflict.replace(base=Version(base, VectorClock({"z": 1}), 1, "z"))
        resolution = strategy_named(name).resolve(conflict)
        found.add(frozen(resolution))
        for version in rows:
            assert resolution.clock.compare(version.clock) is Order.AFTER
    assert len(found) == 1


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_which_side_is_local_makes_no_difference(name):
    base = Version("ac", VectorClock({"z": 1}), 1, "z")
    one, other = versions("abc", "aXc")
    found = [ConflictDetector().detect("r", *pair, base=base) for pair in ((one, other), (other, one))]
    assert frozen(strategy_named(name).resolve(found[0])) == frozen(strategy_named(name).resolve(found[1]))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_stamp_from_the_far_future_is_refused_and_told(name):
    conflict = whole(1, 2, 9, base=0)
    far = msgspec.structs.replace(conflict.versions[2], timestamp=1 << 60)
    conflict = conflict.replace(siblings={"": (*conflict.versions[:2], far)})
    found = strategy_named(name).resolve(conflict, ResolveContext(stamp_max=1 << 40))
    assert found.value != 9
    assert [lost.origin for lost in found.discarded if "refused" in lost.reason] == ["c"]
    assert any("refused" in alarm for alarm in found.alarms)
    assert found.clock.compare(far.clock) is Order.AFTER


def test_where_every_stamp_is_from_the_far_future_all_stay():
    found = strategy_named("lww").resolve(whole(1, 2), ResolveContext(stamp_max=1))
    assert found.value == 2


def test_a_dominated_write_with_a_newer_wall_clock_does_not_win():
    old = Version("old", VectorClock({"a": 1}), 99 << 16, "a")
    new = Version("new", VectorClock({"a": 1, "b": 1}), 1 << 16, "b")
    other = Version("other", VectorClock({"c": 1}), 2 << 16, "c")
    assert ConflictDetector().detect("r", old, new) is None
    for order in permutations([old, new, other]):
        conflict = ConflictDetector().examine("r", "register", {"": prune(order)})
        assert strategy_named("lww").resolve(conflict).value == "other"
        assert strategy_named("max").resolve(conflict).value != "old"


# ------------------------------------------------------------------------------------------------ priority


def test_the_greatest_priority_wins_over_a_later_write():
    found = HighestPriority({"a": 2, "b": 1}).resolve(whole("first", "last"))
    assert found.value == "first"
    assert [(lost.value, lost.origin) for lost in found.discarded] == [("last", "b")]


def test_a_tie_falls_to_the_next_strategy_among_the_tied_only():
    found = HighestPriority({"a": 5, "b": 5, "c": 1}).resolve(whole("x", "y", "z"))
    assert found.value == "y"
    assert found.via == ("highest_priority", "lww")
    assert {lost.value for lost in found.discarded} == {"x", "z"}
    with pytest.raises(UndecidedError):
        HighestPriority(otherwise=None).resolve(whole("x", "y"))


def test_priority_by_region_and_by_field():
    rows = [
        msgspec.structs.replace(version, metadata={"region": region})
        for version, region in zip(versions("x", "y"), ("eu", "us"), strict=True)
    ]
    conflict = ConflictDetector().detect("r", *rows)
    assert HighestPriority({"eu": 9, "us": 1}, by="region").resolve(conflict).value == "x"
    generations = whole({"generation": 7, "v": 1}, {"generation": 3, "v": 2})
    assert HighestPriority(by="/generation").resolve(generations).value["v"] == 1


def test_paths_with_a_clear_winner_and_tied_ones_are_settled_together():
    conflict = ConflictDetector().examine(
        "r", "map", {"/p": versions(1, 2), "/q": versions(3, 4)[:1] + versions(3, 3)[1:]}
    )
    found = HighestPriority({"a": 1}).resolve(conflict)
    assert found.settled == {"/p": 1, "/q": 3}


def test_a_priority_that_is_none_is_refused():
    for wrong in ({"priorities": {"a": "high"}}, {"by": "age"}, {"priorities": {"a": 1}, "by": "/x"}):
        with pytest.raises(UsageError):
            HighestPriority(**wrong)


# ------------------------------------------------------------------------------------------------ rollback


def test_a_rollback_goes_to_the_last_version_that_satisfies_every_invariant():
    history = (
        Version({"cpu": 4}, VectorClock({"z": 1}), 1, "z"),
        Version({"cpu": 99}, VectorClock({"z": 2}), 2, "z"),
    )
    limit = Invariant("cpu", lambda value: f"{value['cpu']} cpus" if value["cpu"] > 16 else None)
    context = ResolveContext(history=history, invariants=(limit,))
    found = AutomaticRollback().resolve(whole({"cpu": 8}, {"cpu": 20}), context)
    assert found.value == {"cpu": 4}
    assert [lost.value for lost in found.discarded] == [{"cpu": 8}, {"cpu": 20}]


def test_without_a_sound_past_the_newest_sound_write_stays_and_without_that_somebody_decides():
    context = ResolveContext(invariants=(at_most("", 16),))
    assert AutomaticRollback().resolve(whole(8, 20), context).value == 8
    found = AutomaticRollback().resolve(whole(18, 20), context)
    assert found.pending
    assert found.via == ("automatic_rollback", "manual")
    with pytest.raises(UndecidedError):
        AutomaticRollback(otherwise=None).resolve(whole(18, 20), context)


def test_a_rollback_undoes_only_what_is_contended():
    base = Version({"/a": 1, "/b": 1}, VectorClock({"z": 1}), 1, "z")
    conflict = at_paths({"/a": [2, 3]}).replace(base=base)
    found = AutomaticRollback().resolve(conflict, ResolveContext(leaves={"/b": 5, "/c": 7}))
    assert found.settled == {"/a": 1}


# ------------------------------------------------------------------------------------------------ operations


def test_texts_and_lists_keep_what_everybody_put_in():
    ot = OperationalTransform()
    found = ot.resolve(whole("hello, world", "hello world!", "Hello world", base="hello world"))
    assert found.value == "Hello, world!"
    assert found.discarded == ()
    assert ot.resolve(whole([1, 9, 2, 3], [1, 3], [1, 2, 3, 4], base=[1, 2, 3])).value == [1, 9, 3, 4]


def test_an_operation_that_a_version_brings_is_used_and_has_to_fit():
    base, values = "ab", ("aXb", "abY")
    ops = ([1, "X"], [2, "Y"])
    rows = [
        msgspec.structs.replace(version, metadata={"ot": "text", "op": op})
        for version, op in zip(versions(*values), ops, strict=True)
    ]
    conflict = ConflictDetector().detect("r", *rows).replace(base=Version(base, VectorClock({"z": 1}), 1, "z"))
    assert OperationalTransform().resolve(conflict).value == text.apply("aXb", text.transform(ops[1], ops[0], "right"))
    rows[1] = msgspec.structs.replace(rows[1], value="other")
    wrong = conflict.replace(versions=tuple(rows), siblings={"": tuple(rows)})
    found = OperationalTransform().resolve(wrong)
    assert found.via == ("operational_transform", "lww")
    assert "does not lead from the base" in found.explanation[0]


def test_numbers_in_json0_add_up():
    rows = [
        msgspec.structs.replace(version, metadata={"ot": "json0", "op": [{"p": ["n"], "na": amount}]})
        for version, amount in zip(versions({"n": 11}, {"n": 15}), (1, 5), strict=True)
    ]
    conflict = ConflictDetector().detect("r", *rows).replace(base=Version({"n": 10}, VectorClock({"z": 1}), 1, "z"))
    assert OperationalTransform().resolve(conflict).value == {"n": 16}


@pytest.mark.parametrize("name", ["{", "{0.__class__}", "{x}", "%s"])
def test_a_name_with_braces_is_a_name(name):
    conflict = whole(8, 20)
    versions = tuple(
        msgspec.structs.replace(version, origin=f"{name}{i}") for i, version in enumerate(conflict.versions)
    )
    strange = conflict.replace(versions=versions, siblings={"": versions})
    for strategy in (AutomaticRollback(), HighestPriority(), strategy_named("manual"), strategy_named("lww")):
        told = " ".join(strategy.resolve(strange).explanation)
        assert name in told


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(trees, min_size=2, max_size=3), st.dictionaries(st.sampled_from("xyz"), trees))
def test_what_a_tree_of_operations_does_not_hold_is_listed(values, base):
    values = [value if isinstance(value, dict) else {"x": value} for value in values]
    found = OperationalTransform(otherwise=None).resolve(whole(*values, base=base))
    lost = {(each.origin, each.path.split("/")[1] if each.path else "") for each in found.discarded}
    for name, value in zip("abc", values, strict=False):
        for key, leaf in value.items():
            kept = key in found.value and canonical(found.value[key]) == canonical(leaf)
            unchanged = key in base and canonical(base[key]) == canonical(leaf)
            if not isinstance(leaf, str | list | dict) and not kept and not unchanged:
                assert (name, key) in lost or (name, "") in lost


# ------------------------------------------------------------------------------------------------ three-way


def test_maps_with_a_base_merge_three_way_and_removals_stay_removed():
    found = SemanticMerge({}).resolve(whole({"x": 2, "y": 1}, {"x": 1, "z": 3}, base={"x": 1, "y": 1}))
    assert found.value == {"x": 2, "z": 3}
    assert found.confidence == 0.9


def test_a_declared_schema_merges_whole_values():
    schemas = {"doc": Schema(declared={"/n": Counter, "/nics": Keyed("id"), "/nics/*/mtu": {"merge": "min"}})}
    base = {"n": 10, "nics": [{"id": "e0", "mtu": 1500}]}
    conflict = whole(
        {"n": 12, "nics": [{"id": "e0", "mtu": 1400}]},
        {"n": 13, "nics": [{"id": "e0", "mtu": 1300}, {"id": "e1", "mtu": 9000}]},
        base=base,
        kind="doc",
    )
    found = SemanticMerge(schemas).resolve(conflict)
    assert found.value == {"n": 15, "nics": [{"id": "e0", "mtu": 1300}, {"id": "e1", "mtu": 9000}]}
    assert [lost.value for lost in found.discarded] == [1400]


def test_lattices_apply_only_where_both_sides_changed():
    assert strategy_named("max").resolve(whole(8, 2, base=8)).value == 2
    assert strategy_named("max").resolve(whole(8, 2, base=4)).value == 8
    assert Declared("n", Counter()).resolve(whole(12, 13, base=10)).value == 15
    assert Declared("n", Counter()).resolve(whole(12, 13)).value == 13


# ------------------------------------------------------------------------------------------------ names


class Loud:
    name = "loud"

    def resolve(self, conflict, context=None):
        raise AssertionError


def test_strategies_come_from_entry_points_too(monkeypatch):
    class Point:
        name, value = "loud", "package:Loud"

        def load(self):
            return Loud

    monkeypatch.setattr(seam, "entry_points", lambda group, name="loud": [Point()] if name == "loud" else [])
    monkeypatch.delitem(STRATEGIES, "loud", raising=False)
    assert "loud" in known_strategies()
    assert isinstance(strategy_named("loud"), Loud)
    del STRATEGIES["loud"]
    monkeypatch.setattr(Point, "load", lambda self: 1 / 0)
    with pytest.raises(UsageError, match="package:Loud cannot be loaded"):
        strategy_named("loud")
    with pytest.raises(UsageError, match="known are"):
        strategy_named("nowhere")
    with pytest.raises(UsageError):
        register_strategy(object())
