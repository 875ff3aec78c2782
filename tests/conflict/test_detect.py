"""Detection: exact by causality, equal on all replicas, and the index of exclusive resources."""

from __future__ import annotations

import math
import pickle
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict.detect import (
    MISSING,
    STANDARD,
    Case,
    ConflictDetector,
    ConflictType,
    Contention,
    Finding,
    Invariant,
    ResourceIndex,
    Severity,
    Version,
    at_most,
    canonical,
    classifier,
    conflict_id,
    matches,
    newest,
    ordered,
    prune,
    same,
)
from nova.conflict.strategies import LastWriteWins
from nova.errors import UsageError
from nova.types import Order

clocks = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(width=16) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


def version(value=None, clock=None, timestamp=1, origin="a", **metadata):
    return Version(value, VectorClock({origin: 1} if clock is None else clock), timestamp, origin, metadata)


def model_concurrent(a, b):
    ahead = any(a.get(x, 0) > b.get(x, 0) for x in a | b)
    behind = any(a.get(x, 0) < b.get(x, 0) for x in a | b)
    return ahead and behind


@given(clocks, clocks, st.integers(0, 9), st.integers(0, 9))
def test_a_conflict_is_reported_exactly_when_neither_clock_covers_the_other(a, b, ta, tb):
    found = ConflictDetector().detect("r", version(1, a, ta, "a"), version(2, b, tb, "b"))
    expected = model_concurrent(a, b)
    assert (found is not None) == expected


@given(st.lists(st.tuples(clocks, clocks), max_size=20))
def test_the_batch_form_agrees_with_the_single_one(pairs):
    detector = ConflictDetector()
    made = [(Version(1, VectorClock(a), 1, "a"), Version(2, VectorClock(b), 2, "b")) for a, b in pairs]
    verdicts = detector.detect_many(made)
    assert [v == Order.CONCURRENT for v in verdicts] == [detector.detect("r", a, b) is not None for a, b in made]


def test_equal_clocks_are_no_conflict():
    assert ConflictDetector().detect("r", version(1, {"a": 2}), version(2, {"a": 2})) is None


def test_a_dominated_write_with_a_newer_wall_clock_does_not_win():
    old, new = version("old", {"a": 1}, timestamp=999), version("new", {"a": 2}, timestamp=1)
    assert ConflictDetector().detect("r", old, new) is None
    assert prune([old, new]) == prune([new, old]) == [new]


@given(st.lists(clocks, max_size=5))
def test_prune_keeps_exactly_the_versions_that_nothing_supersedes(given_clocks):
    versions = [Version(i, VectorClock(c), i, f"w{i}") for i, c in enumerate(given_clocks)]
    kept = {v.value for v in prune(versions)}
    for v in versions:
        beaten = any(
            o.clock.compare(v.clock) is Order.AFTER or (o.clock.compare(v.clock) is Order.EQUAL and o.value > v.value)
            for o in versions
        )
        assert (v.value in kept) == (not beaten)


# -- the record


def test_every_replica_gives_a_conflict_the_same_id():
    a, b, c = version(1, {"a": 1}), version(2, {"b": 1}, 2, "b"), version(3, {"c": 1}, 3, "c")
    detector = ConflictDetector()
    ab, ba = detector.detect("r", a, b), detector.detect("r", b, a)
    assert ab is not None
    assert ba is not None
    assert ab.id == ba.id
    assert len(ab.id) == 32
    ids = {detector.examine("r", "register", {"": list(order)}).id for order in permutations([a, b, c])}
    assert len(ids) == 1
    assert ab.id not in ids
    other = detector.detect("r2", a, b)
    assert other is not None
    assert other.id != ab.id


def test_the_id_of_a_conflict_is_the_same_in_every_process():
    versions = [Version(i, VectorClock({f"n{i}~1": i + 1, "z~1": 2}), i << 16, f"n{i}") for i in range(5)]
    assert conflict_id("vm/1", versions) == conflict_id("vm/1", versions[::-1]) == "d0ea2607e32ba02aceb5e95f8f22e1f2"


def test_the_id_of_a_pure_contention_depends_on_the_claim_not_on_who_came_second():
    contention = Contention("ip:10.0.0.1", ("vm/1", "vm/2"))
    one = ConflictDetector().examine("vm/1", "vm", {}, contentions=[contention])
    two = ConflictDetector().examine("vm/2", "vm", {}, contentions=[contention])
    assert one.id == two.id
    assert one.types == (ConflictType.RESOURCE_CONTENTION,)
    assert not one.auto_resolvable
    with pytest.raises(UsageError, match="look at its contentions"):
        _ = one.local


def test_examine_refuses_nothing_to_look_at():
    with pytest.raises(UsageError, match="give at least 1"):
        ConflictDetector().examine("r", "register", {})


def test_a_conflict_at_paths_has_one_version_per_write():
    a = [version(v, {"a": 4}, 7, "a") for v in (1, "x")]
    b = [version(v, {"b": 2}, 8, "b") for v in (2, "x")]
    found = ConflictDetector().examine("r", "map", {"/n": [b[0], a[0]], "/s": [a[1], b[1]]})
    assert [(v.origin, v.value) for v in found.versions] == [("a", {"/n": 1, "/s": "x"}), ("b", {"/n": 2, "/s": "x"})]
    assert found.paths == ("/n",)  # at /s both agree
    assert found.values_of(found.local) == {"/n": 1, "/s": "x"}


def test_paths_are_those_that_differ_and_with_a_base_those_that_both_changed():
    base = version({"x": 1, "y": {"z": 1}, "k/~": 1}, {"a": 1}, 0)
    local = version({"x": 2, "y": {"z": 1}, "k/~": 2}, {"a": 2}, 1)
    remote = version({"x": 1, "y": {"z": 3}, "k/~": 3}, {"a": 1, "b": 1}, 2, "b")
    detector = ConflictDetector()
    two = detector.detect("r", local, remote)
    three = detector.detect("r", local, remote, base=base)
    assert two is not None
    assert three is not None
    assert two.paths == ("/k~1~0", "/x", "/y/z")
    assert three.paths == ("/k~1~0",)


def test_null_is_not_missing():
    assert not same(None, MISSING)
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING
    found = ConflictDetector().detect("r", version({"x": None}, {"a": 1}), version({}, {"b": 1}, 2, "b"))
    assert found is not None
    assert found.paths == ("/x",)


@given(st.integers(0, 30), st.integers(0, 5), st.integers(0, 5))
def test_complexity_stays_between_0_and_1(paths, depth, broken):
    leaf = "/x" * depth
    siblings = {f"/{i}{leaf}": [version(1), version(2, {"b": 1}, 2, "b")] for i in range(paths + 1)}
    invariants = [Invariant(f"no{i}", lambda value: "never", "/**") for i in range(broken)]
    found = ConflictDetector().examine("r", "map", siblings, invariants=invariants)
    assert 0 <= found.complexity < 1
    assert (found.complexity == 0) == (paths == 0 and depth == 0 and broken == 0)


# -- types


def test_a_clock_that_does_not_cover_its_base_is_a_causal_violation():
    base = version(0, {"a": 5}, 0)
    found = ConflictDetector().detect("r", version(1, {"a": 6}), version(2, {"a": 4, "b": 1}, 2, "b"), base=base)
    assert found is not None
    assert ConflictType.CAUSAL_VIOLATION in found.types
    assert not found.auto_resolvable
    assert "b has a clock that went backwards" in found.reason


@pytest.mark.parametrize("seen", [{"b": 1}, VectorClock({"b": 1})])
def test_a_version_that_claims_what_its_replica_has_not_seen_is_a_causal_violation(seen):
    liar = version(2, {"b": 1, "c": 9}, 2, "b", replica_clock=seen)
    found = ConflictDetector().detect("r", version(1), liar)
    assert found is not None
    assert ConflictType.CAUSAL_VIOLATION in found.types


def test_a_broken_invariant_is_named_and_one_broken_in_the_base_does_not_block():
    even = Invariant("even", lambda value: "odd" if value % 2 else None)
    detector = ConflictDetector()
    found = detector.detect("r", version(1), version(2, {"b": 1}, 2, "b"), invariants=[even])
    assert found is not None
    assert ConflictType.INVARIANT in found.types
    assert found.broken == (("even", "odd"),)
    base = version(7, {"a": 1}, 0)
    before = detector.detect(
        "r", version(1, {"a": 2}), version(2, {"a": 1, "b": 1}, 2, "b"), base=base, invariants=[even]
    )
    assert before is not None
    assert ConflictType.INVARIANT not in before.types


def test_an_invariant_that_raises_counts_as_broken():
    assert "ZeroDivisionError" in (Invariant("bad", lambda value: str(1 / 0)).broken(1) or "")


def test_a_capacity_speaks_about_its_path_only():
    siblings = {"/cpu": [version(4), version(80, {"b": 1}, 2, "b")], "/x": [version(99), version(98, {"b": 1}, 2, "b")]}
    found = ConflictDetector().examine("vm/1", "vm", siblings, invariants=[at_most("/cpu", 64)])
    assert found.broken == (("at_most:/cpu", "/cpu is 80, over the limit of 64"),)


def test_classifiers_can_be_added_and_replaced():
    def always(case: Case) -> Finding:
        return Finding(ConflictType.SEMANTIC, Severity.HIGH, f"{case.resource_id} is special", manual=True)

    detector = ConflictDetector()
    detector.add("mine", always)
    found = detector.examine("r", "register", {"": [version(1), version(2, {"b": 1}, 2, "b")]})
    assert found.types == (ConflictType.CONCURRENT_UPDATE, ConflictType.SEMANTIC)
    assert (found.reason, found.auto_resolvable) == ("r is special", False)
    detector.add("mine", lambda case: None)
    assert detector.examine("r", "register", {"": [version(1), version(2)]}).auto_resolvable
    assert ConflictDetector({}).classifiers == {}


def test_concurrent_writes_of_one_value_are_a_conflict_of_low_severity():
    found = ConflictDetector().detect("r", version(1), version(1.0, {"b": 1}, 2, "b"))
    assert found is not None
    assert (found.severity, found.paths) == (Severity.LOW, ())


# -- values


def test_canonical_bytes_hold_apart_what_differs_and_together_what_is_equal():
    values = [
        None,
        MISSING,
        True,
        False,
        1,
        0,
        "1",
        b"1",
        [1],
        {"1": 1},
        {1: 1},
        {1},
        "\u00e9",
        "e\u0301",
        1 << 70,
        1.5,
    ]
    assert len({canonical(value) for value in values}) == len(values)
    assert same(1, 1.0)
    assert not same(True, 1)
    assert same(math.nan, -math.nan)
    assert same(0.0, -0.0)
    assert same({"a": 1, "b": [2.0]}, {"b": [2], "a": 1})
    assert same(float(1 << 70), 1 << 70)
    assert not same([1], {1})


@given(json_values, json_values)
def test_same_is_equality_of_canonical_bytes(a, b):
    assert same(a, b) == (canonical(a) == canonical(b))
    assert same({"k": a}, {"k": b}) == (canonical(a) == canonical(b))
    assert not same({"k": MISSING}, {"l": MISSING})
    assert not same({1: a}, {True: a})


@given(st.lists(st.tuples(json_values, st.integers(0, 2), st.sampled_from("ab")), min_size=1, max_size=5), st.randoms())
def test_the_order_of_versions_is_total(items, random):
    versions = [Version(value, VectorClock({o: 1}), t, o) for value, t, o in items]
    shuffled = random.sample(versions, len(versions))
    assert [canonical(v.value) for v in ordered(versions)] == [canonical(v.value) for v in ordered(shuffled)]
    assert canonical(newest(shuffled).value) == canonical(ordered(versions)[-1].value)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("", "", True),
        ("", "/a", False),
        ("/a", "/a", True),
        ("/a/*", "/a/b", True),
        ("/a/*", "/a", False),
        ("/a/*", "/a/b/c", False),
        ("/*/b", "/a/b", True),
        ("/a/**", "/a/b/c", True),
        ("/a/**", "/a", False),
        ("/**", "/a", True),
        ("/a/**", "/b/c", False),
    ],
)
def test_patterns_match_segment_by_segment(pattern, path, expected):
    assert matches(pattern, path) is expected


# -- exclusive resources

resource_sets = st.frozensets(st.sampled_from(["ip:1", "ip:2", "ip:3", "mac:1"]))


@given(st.lists(st.tuples(st.sampled_from("pqr"), resource_sets | st.none()), max_size=30))
def test_the_resource_index_agrees_with_a_full_scan(steps):
    index, held = ResourceIndex(), {}
    for key, resources in steps:
        if resources is None:
            index.remove(key)
            held.pop(key, None)
        else:
            gained = resources - held.get(key, frozenset())
            held[key] = resources
            expected = [
                Contention(r, tuple(sorted(k for k in held if r in held[k])))
                for r in sorted(gained)
                if sum(r in held[k] for k in held) > 1
            ]
            assert index.update(key, set(resources)) == expected
        scan = {}
        for k, rs in held.items():
            for r in rs:
                scan.setdefault(r, set()).add(k)
        assert len(index) == len(scan)
        assert index.contentions() == [
            Contention(r, tuple(sorted(ks))) for r, ks in sorted(scan.items()) if len(ks) > 1
        ]
        for k in held:
            assert index.of(k) == [c for c in index.contentions() if k in c.owners]


# -- invariants across values

ADDRESSES = {"kind": "unique", "path": "/nics/*/ip"}
CAPACITY = {"kind": "sum_le", "path": "/vms/*", "limit": "/capacity"}
OWNER = {"kind": "reference", "from": "/disks/*/vm", "to": "/vms/*/id"}


@pytest.mark.parametrize(
    ("invariant", "base", "local", "remote", "wrong"),
    [
        (CAPACITY, {"capacity": 10, "vms": {"a": 4}}, {"b": 4}, {"c": 4}, "the sum is 12, over the limit of 10"),
        (ADDRESSES, {"nics": {"a": {"ip": "1"}}}, {"b": {"ip": "2"}}, {"c": {"ip": "2"}}, '"2" stands at'),
    ],
)
def test_two_values_that_hold_may_break_an_invariant_together(invariant, base, local, remote, wrong):
    part = invariant["path"].split("/")[1]
    sides = [{**base, part: {**base[part], **side}} for side in (local, remote)]
    versions = version(sides[0], {"a": 2}), version(sides[1], {"a": 1, "b": 1}, 2, "b")
    detector = ConflictDetector()
    alone = detector.detect("r", *versions, invariants=[invariant])
    assert ConflictType.INVARIANT not in alone.types
    found = detector.detect("r", *versions, base=version(base), invariants=[invariant])
    assert ConflictType.INVARIANT in found.types
    assert found.severity is Severity.HIGH
    assert found.broken[0][0] == invariant["kind"]
    assert wrong in found.broken[0][1]


def test_a_foreign_key_that_one_side_broke_is_told_and_one_that_was_broken_before_is_not():
    base = {"vms": {"a": {"id": 1}}, "disks": {"d": {"vm": 1}, "old": {"vm": 7}}}
    local = {**base, "vms": {}}
    remote = {**base, "x": 1}
    found = ConflictDetector().detect(
        "r", version(local, {"a": 2}), version(remote, {"a": 1, "b": 1}, 2, "b"), base=version(base), invariants=[OWNER]
    )
    assert found.broken == (("reference", "1 is at no /vms/*/id"),)


def test_an_invariant_of_a_path_holds_for_whole_values_too():
    found = ConflictDetector().detect(
        "r", version({"cpu": 80}), version({"cpu": 4}, {"b": 1}, 2, "b"), invariants=[at_most("/cpu", 64)]
    )
    assert found.broken == (("at_most:/cpu", "/cpu is 80, over the limit of 64"),)
    with pytest.raises(UsageError, match="it is an Invariant or a map of kind"):
        ConflictDetector().detect("r", version(1), version(2, {"b": 1}, 2, "b"), invariants=[{"kind": "sum"}])


# -- the record


def test_a_record_and_a_resolution_never_change_and_survive_a_pickle():
    found = ConflictDetector().detect("r", version({"x": 1}), version({"x": 2}, {"b": 1}, 2, "b"))
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert (again.id, again.complexity, hash(again)) == (found.id, found.complexity, hash(found))
    assert found != ConflictDetector().detect("r", version({"x": 1}), version({"x": 3}, {"b": 1}, 2, "b"))
    with pytest.raises(AttributeError):
        found.reason = "other"
    with pytest.raises(UsageError, match="immutable"):
        found.__init__(*found.__reduce__()[1])
    part = found.replace(paths=(), siblings={"": found.versions[:1]})
    assert (part.id, part.complexity, part.paths) == (found.id, found.complexity, ())
    assert found.replace(complexity=0.5).complexity == 0.5
    assert pickle.loads(pickle.dumps(found.replace(complexity=0.5))).complexity == 0.5
    with pytest.raises(UsageError, match="a Conflict has no id; its fields are resource_id"):
        found.replace(id="other")
    settled = LastWriteWins().resolve(found)
    assert pickle.loads(pickle.dumps(settled)) == settled
    assert settled.replace(pending=True).pending
    assert settled.replace(pending=True).explanation == settled.explanation
    with pytest.raises(UsageError, match="has no"):
        settled.replace(colour="red")
    with pytest.raises(UsageError, match="immutable"):
        settled.__init__(*settled.__reduce__()[1])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.randoms())
def test_many_versions_are_put_in_order_as_few_are(stamps, random):
    versions = [Version(i, VectorClock({"a": 1}), stamp, "w") for i, stamp in enumerate(stamps)]
    shuffled = random.sample(versions, len(versions))
    expected = sorted(versions, key=lambda v: (v.timestamp, canonical(v.value)))
    assert ordered(shuffled) == expected
    assert newest(shuffled) == expected[-1]


def test_a_classifier_of_a_kind_is_asked_about_that_kind_only():
    asked = []
    detector = ConflictDetector()

    @classifier("only_disks", kind="disk")
    def of_disks(case):
        asked.append(case.kind)

    try:
        detector = ConflictDetector()
        for kind in ("register", "disk", "register"):
            detector.detect("r", version(1), version(2, {"b": 1}, 2, "b"), kind=kind)
        assert asked == ["disk"]
    finally:
        del STANDARD["only_disks"]


@given(json_values, json_values, st.none() | json_values)
def test_plain_conflicts_are_described_alike_with_and_without_being_asked_about(a, b, base):
    """Where only our classifiers are asked, none of them is."""
    quick, slow = ConflictDetector(), ConflictDetector()
    slow.add("silent", lambda case: None)
    more = {} if base is None else {"base": version(base, {})}
    for kind in ("register", "map"):
        for _ in range(2):
            one = quick.detect("r", version(a), version(b, {"b": 1}, 2, "b"), kind=kind, **more)
            other = slow.detect("r", version(a), version(b, {"b": 1}, 2, "b"), kind=kind, **more)
            assert canonical([one.paths, one.reason]) == canonical([other.paths, other.reason])
            assert (one.types, one.severity, one.id, one.complexity) == (
                other.types, other.severity, other.id, other.complexity,
            )  # fmt: skip
