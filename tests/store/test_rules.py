"""Declared rules about parts of one key: refused where one breaks them, recorded where several did together."""

from __future__ import annotations

import pytest

from nova.conflict.semantics import SemanticRule
from nova.errors import UsageError
from nova.store import ReplicatedStore, heal
from nova.store.core import StoreConfig

OWNED = SemanticRule("owned", "/power_state", ("running",), requires="/owner", prefix="vm/")
LOCKED = SemanticRule("locked", "/locked", (True,), excludes="/move", one_of=("planned", "running"), prefix="map/")


def opened(node, data=None):
    config = StoreConfig(kinds={"vm/": "vm", "map/": "map"}, semantics=(OWNED, LOCKED))
    return ReplicatedStore(data, node=node, config=config)


@pytest.fixture
def pair():
    with opened("a") as a, opened("b") as b:
        a.put("vm/1", {"id": "1", "power_state": "stopped", "owner": "ann"})
        a.put("map/1", {"locked": False, "n": 1})
        heal(a, b)
        yield a, b


def disagreements(store):
    return [each for each in store.conflicts(100) if each["types"] == ["semantic"] and each["status"] == "pending"]


@pytest.mark.parametrize(
    ("key", "one", "other", "mend", "words"),
    [
        ("vm/1", {"power_state": "running"}, {"owner": None}, {"owner": "bob"}, "which needs a value at /owner"),
        ("map/1", {"locked": True}, {"move": "planned"}, {"move": "completed"}, "at /move"),
    ],
)
def test_two_sound_writes_that_make_what_nobody_meant_are_found_on_both_sides(pair, key, one, other, mend, words):
    a, b = pair
    a.put(key, one, merge=True)
    b.put(key, other, merge=True)
    for store in pair:
        assert not store.conflicts(100)
    heal(a, b)
    found = [disagreements(store) for store in pair]
    assert [each["id"] for each in found[0]] == [each["id"] for each in found[1]]
    (record,) = found[0]
    assert words in record["reason"]
    assert [each.id for each in b.waiting()] == [record["id"]]
    assert words in a.why(key)["text"]
    a.put(
        key, {"labels": {"x": "1"}} if key == "vm/1" else {"n": 2}, merge=True
    )  # what was broken before: no hindrance
    assert len(disagreements(a)) == 1
    a.put(key, mend, merge=True)
    heal(a, b)
    for store in pair:
        assert not disagreements(store)
        assert not store.waiting()


def test_who_breaks_a_rule_by_himself_is_told_so(pair):
    a, b = pair
    a.put("vm/1", {"owner": None}, merge=True)
    with pytest.raises(UsageError, match=r"'vm/1' would break the rule 'owned': .* needs a value at /owner"):
        a.put("vm/1", {"power_state": "running"}, merge=True)
    with pytest.raises(UsageError, match="would break the rule"):
        a.put("vm/2", {"id": "2", "power_state": "running"})
    a.put("vm/1", {"power_state": "running", "owner": "bob"}, merge=True)
    b.put("vm/1", {"labels": {"x": "1"}}, merge=True)
    heal(a, b)
    assert not disagreements(a)
    assert not disagreements(b)


def test_a_contended_part_that_stands_breaks_nothing(pair):
    a, b = pair
    a.put("vm/1", {"owner": "bob"}, merge=True)
    b.put("vm/1", {"owner": "cyd"}, merge=True)
    heal(a, b)
    a.put("vm/1", {"power_state": "running"}, merge=True)
    heal(a, b)
    assert not disagreements(b)


def test_it_is_still_known_after_a_restart(tmp_path):
    with opened("a", tmp_path / "a") as a, opened("b") as b:
        a.put("vm/1", {"id": "1", "power_state": "stopped", "owner": "ann"})
        heal(a, b)
        a.put("vm/1", {"power_state": "running"}, merge=True)
        b.put("vm/1", {"owner": None}, merge=True)
        heal(a, b)
    with opened("a", tmp_path / "a") as a:
        assert len(disagreements(a)) == 1
        a.put("vm/1", {"power_state": "stopped"}, merge=True)
        assert not disagreements(a)


def test_contended_parts_that_make_what_nobody_meant_are_of_that_type_too(pair):
    a, b = pair
    b.put("map/1", {"move": "planned", "locked": "no"}, merge=True)
    for number in range(20):  # its clock goes on even within a millisecond
        a.put("map/2", {"n": number})
    a.put("map/1", {"locked": True}, merge=True)  # written last, so it stands beside the move
    heal(a, b)
    for store in pair:
        (record,) = store.conflicts(100)
        assert record["types"] == ["concurrent_update", "semantic"]
        assert record["resolution"]["pending"]
        assert [each.id for each in store.waiting()] == [record["id"]]


@pytest.mark.parametrize("meet", [heal, ReplicatedStore.sync_with])
def test_they_are_found_though_both_wrote_another_field_alike(pair, meet):
    a, b = pair
    a.put("vm/1", {"power_state": "running", "cpu": 2}, merge=True)
    b.put("vm/1", {"owner": None, "cpu": 2}, merge=True)
    meet(a, b)
    for store in pair:
        assert len(disagreements(store)) == 1


@pytest.mark.parametrize("meet", [heal, ReplicatedStore.sync_with])
def test_what_is_contended_and_waits_for_that_reason_is_told_once(pair, meet):
    a, b = pair
    b.put("map/1", {"move": "planned", "locked": "no"}, merge=True)
    for number in range(20):
        a.put("map/2", {"n": number})
    a.put("map/1", {"locked": True}, merge=True)
    meet(a, b)
    for store in pair:
        assert len(store.waiting()) == 1
    a.decide("map/1", a.waiting()[0].shown, {"/locked": True}, by="ann")  # who has seen the move
    meet(a, b)
    for store in pair:
        assert not store.waiting()


def test_another_field_that_is_contended_and_waits_for_that_reason_stands_for_it(pair):
    a, b = pair
    a.put("map/1", {"locked": True, "n": 5}, merge=True)
    b.put("map/1", {"move": "planned"}, merge=True)
    b.put("map/1", {"n": 6}, merge=True)
    heal(a, b)
    for store in pair:
        (waiting,) = store.waiting()
        assert {each.path for each in waiting.candidates} == {"/n"}
        assert "locked" in waiting.reason
    a.decide("map/1", a.waiting()[0].shown, {"/n": 6}, by="ann")
    heal(a, b)
    for store in pair:  # now it stands for itself
        assert len(disagreements(store)) == 1
