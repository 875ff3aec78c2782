"""Strategies: the same bytes on every replica, clocks that cover all inputs, and no loss in silence."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict import vm  # noqa: F401  registers the rules of the kind
from nova.conflict.detect import MISSING, ConflictDetector, Contention, Version, canonical, same
from nova.conflict.strategies import (
    STRATEGIES,
    LastWriteWins,
    MultiValue,
    ResolveContext,
    Schema,
    SemanticMerge,
    Settled,
    Strategy,
    maximum,
    register_strategy,
    strategy_named,
)
from nova.errors import UsageError
from nova.types import Order

NAMES = ["lww", "multi_value", "semantic"]
scalars = st.sampled_from(
    [None, True, False, 1, 1.0, 0, 2, 2.5, "a", "\u00e9", "e\u0301", "running", float("nan"), -0.0]
)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from("xy"), scalars) | st.just(MISSING)
leaf_values = {
    "/power_state": st.sampled_from(["running", "paused", "suspended", "stopped"]),
    "/cpu": st.sampled_from([1, 2, 2.0, 8]),
    "/disks/d": st.builds(lambda size, path: {"id": "d", "size_gb": size, "path": path}, st.integers(1, 3), scalars),
    "/migration": st.none()
    | st.builds(
        lambda status, epoch: {"status": status, "epoch": epoch},
        st.sampled_from(["planned", "running", "failed", "completed"]),
        st.integers(0, 2),
    ),
    "/networks/m": st.builds(lambda ip: {"mac": "m", "ip": ip}, st.sampled_from(["1", "2"])),
    "/labels/k": values,
}


@st.composite
def sibling_rows(draw):
    writers = draw(st.lists(st.sampled_from("abcde"), min_size=2, max_size=5, unique=True))
    stamps = {writer: draw(st.integers(0, 2)) for writer in writers}
    rows = {}
    for path in draw(st.sets(st.sampled_from(sorted(leaf_values)), min_size=1, max_size=3)):
        rows[path] = [Version(draw(leaf_values[path]), VectorClock({w: 1}), stamps[w], w) for w in writers]
    return rows


def examine(rows, kind="vm", **more):
    return ConflictDetector().examine("r", kind, rows, **more)


def frozen(resolution):
    """Every word of a resolution as bytes."""
    settled = {path: canonical(value) for path, value in resolution.settled.items()}
    lost = [(d.path, canonical(d.value), d.origin, d.reason) for d in resolution.discarded]
    kept = {path: [(v.origin, v.timestamp, canonical(v.value)) for v in vs] for path, vs in resolution.siblings.items()}
    return msgspec.msgpack.encode(
        [
            canonical(resolution.value), sorted(resolution.clock.to_dict().items()), resolution.strategy,
            resolution.explanation, lost, resolution.confidence, settled, kept, resolution.alarms, resolution.pending,
            [repr(value) for path, value in sorted(resolution.settled.items())],
        ],
        order="deterministic",
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(rows=sibling_rows(), random=st.randoms())
def test_versions_in_any_order_settle_to_identical_bytes(name, rows, random):
    expected = frozen(strategy_named(name).resolve(examine(rows)))
    size = len(next(iter(rows.values())))
    orders = list(permutations(range(size)))
    for order in random.sample(orders, min(len(orders), 8)):
        shuffled = {path: [rows[path][i] for i in order] for path in reversed(list(rows))}
        assert frozen(strategy_named(name).resolve(examine(shuffled))) == expected


@pytest.mark.parametrize("name", NAMES)
@given(a=values, b=values, ta=st.integers(0, 1), tb=st.integers(0, 1))
def test_local_and_remote_exchanged_settle_to_identical_bytes(name, a, b, ta, tb):
    one, two = Version(a, VectorClock({"a": 1}), ta, "a"), Version(b, VectorClock({"b": 1}), tb, "b")
    detector = ConflictDetector()
    here, there = detector.detect("r", one, two), detector.detect("r", two, one)
    assert frozen(strategy_named(name).resolve(here)) == frozen(strategy_named(name).resolve(there))


@pytest.mark.parametrize("name", NAMES)
@given(rows=sibling_rows())
def test_a_resolution_covers_all_clocks_and_settles_every_path(name, rows):
    resolution = strategy_named(name).resolve(examine(rows))
    assert resolution.settled.keys() == rows.keys()
    assert 0 < resolution.confidence <= 1
    for versions in rows.values():
        for version in versions:
            assert resolution.clock.compare(version.clock) in (Order.AFTER, Order.EQUAL)


@pytest.mark.parametrize("name", NAMES)
@given(rows=sibling_rows())
def test_a_loss_cannot_hide(name, rows):
    resolution = strategy_named(name).resolve(examine(rows))
    for path, versions in rows.items():
        told = [d.value for d in resolution.discarded if d.path == path]
        told += [v.value for v in resolution.siblings.get(path, ())] + [resolution.settled[path]]
        for version in versions:
            assert any(same(version.value, value) for value in told)


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_is_one_by_the_protocol_and_found_by_name(name):
    assert isinstance(strategy_named(name), Strategy)
    assert strategy_named(name).name == name


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'coin' is unknown; known are automatic_rollback, .*lww, .*semantic"):
        strategy_named("coin")
    with pytest.raises(UsageError, match="is no strategy"):
        register_strategy(object())  # type: ignore[arg-type]


def test_users_can_register_their_own():
    class First(LastWriteWins):
        name = "first"

    try:
        register_strategy(First())
        assert strategy_named("first").name == "first"
    finally:
        del STRATEGIES["first"]


# -- last writer


def two(a, b, ta=1, tb=2, **more):
    return {"": [Version(a, VectorClock({"a": 1}), ta, "a"), Version(b, VectorClock({"b": 1}), tb, "b")]}


def test_the_last_writer_wins_by_time_then_origin_and_the_loser_is_recorded():
    late = LastWriteWins().resolve(examine(two("x", "y", 5, 2), "register"))
    assert late.value == "x"
    assert [(d.path, d.value, d.origin) for d in late.discarded] == [("", "y", "b")]
    assert LastWriteWins().resolve(examine(two("x", "y", 2, 2), "register")).value == "y"


@pytest.mark.parametrize("name", NAMES)
def test_equal_values_in_different_form_keep_one_form_in_both_directions(name):
    for a, b in [(1, 1.0), (1.0, 1), (0.0, -0.0), ({"x": 1}, {"x": 1.0})]:
        rows = two(a, b)[""]
        forms = {
            repr(strategy_named(name).resolve(examine({"": order}, "register")).value) for order in (rows, rows[::-1])
        }
        assert forms == {repr(b)}
        assert not strategy_named(name).resolve(examine({"": rows}, "register")).discarded


@pytest.mark.parametrize("name", NAMES)
def test_true_against_1_and_composed_against_decomposed_text_are_different_values(name):
    for a, b in [(True, 1), ("\u00e9", "e\u0301"), (None, MISSING)]:
        resolution = strategy_named(name).resolve(examine(two(a, b), "register"))
        assert resolution.confidence < 1


@pytest.mark.parametrize("name", NAMES)
def test_a_contention_without_versions_leaves_everything_as_it_is_and_pending(name):
    found = ConflictDetector().examine("vm/1", "vm", {}, contentions=[Contention("ip:1", ("vm/1", "vm/2"))])
    resolution = strategy_named(name).resolve(found)
    assert (dict(resolution.settled), resolution.pending) == ({}, True)
    assert "ip:1 is claimed by vm/1, vm/2" in resolution.explanation[-1]


# -- multi-value


def test_multi_value_keeps_every_sibling():
    resolution = MultiValue().resolve(examine(two("x", "y"), "register"))
    assert resolution.value == "y"
    assert [v.value for v in resolution.siblings[""]] == ["x", "y"]
    assert (resolution.discarded, resolution.confidence) == ((), 0.5)


def test_multi_value_raises_an_alarm_when_siblings_explode():
    rows = {"": [Version(i, VectorClock({f"w{i}": 1}), i, f"w{i}") for i in range(6)]}
    resolution = MultiValue(siblings_max=4).resolve(examine(rows, "register"))
    assert [v.value for v in resolution.siblings[""]] == [2, 3, 4, 5]
    assert [d.value for d in resolution.discarded] == [0, 1]
    assert "6 siblings are over the limit of 4" in resolution.alarms[0]
    with pytest.raises(UsageError, match="give 2 or more"):
        MultiValue(1)


# -- semantic


def test_sets_unite_and_an_unknown_kind_falls_to_the_last_writer():
    merged = SemanticMerge().resolve(examine(two({1, 2}, {2, 3}), "register"))
    assert (merged.value, merged.discarded) == ({1, 2, 3}, ())
    assert SemanticMerge().resolve(examine(two("x", "y"), "register")).value == "y"


def test_a_union_that_python_would_cut_is_no_union():
    resolution = SemanticMerge().resolve(examine(two({1}, {True}), "register"))
    assert repr(resolution.value) == "{True}"
    assert [repr(d.value) for d in resolution.discarded] == ["{1}"]


def test_a_rule_that_raises_leaves_no_half_result():
    def bad(path, versions, context):
        versions[0].value.append(1 / 0)

    merge = SemanticMerge({"k": Schema((("/a", bad), ("/b", maximum)))})
    rows = {
        "/a": [Version(["x"], VectorClock({"a": 1}), 1, "a"), Version(["y"], VectorClock({"b": 1}), 2, "b")],
        "/b": [Version(3, VectorClock({"a": 1}), 1, "a"), Version(2, VectorClock({"b": 1}), 2, "b")],
    }
    resolution = merge.resolve(examine(rows, "k"))
    assert resolution.settled == {"/a": ["y"], "/b": 3}
    assert "failed with ZeroDivisionError" in resolution.explanation[0]


def test_rules_may_be_pending():
    def ask(path, versions, context):
        return Settled(versions[-1].value, "ask", "asked", 1.0, True)

    resolution = SemanticMerge({"k": Schema((("/a", ask),))}).resolve(
        examine({"/a": two(1, 2)[""]}, "k"), ResolveContext()
    )
    assert (resolution.pending, resolution.confidence) == (True, 0.3)


def test_a_delete_against_an_update_is_told_once_and_the_content_stays():
    rows = {"/labels/k": [Version(MISSING, VectorClock({"a": 1}), 9, "a"), Version("v", VectorClock({"b": 1}), 2, "b")]}
    resolution = SemanticMerge().resolve(examine(rows))
    assert resolution.settled == {"/labels/k": "v"}
    assert len(resolution.explanation) == 1
    assert [(d.value, d.origin) for d in resolution.discarded] == [(MISSING, "a")]


def test_every_loser_of_three_is_recorded_and_the_clock_covers_them_all():
    rows = [Version(i, VectorClock({f"w{i}": 1}), i, f"w{i}") for i in range(3)]
    found = strategy_named("lww").resolve(ConflictDetector().examine("r", "register", {"": rows}))
    assert [(lost.value, lost.origin, lost.reason) for lost in found.discarded] == [
        (0, "w0", "a later write by w2"),
        (1, "w1", "a later write by w2"),
    ]
    assert found.value == 2
    assert found.clock == VectorClock({"w0": 1, "w1": 1, "w2": 1})
