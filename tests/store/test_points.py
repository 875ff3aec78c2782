"""Rollback: back to a whole state by a new write that dominates, and nothing undone that it did not know of."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict.audit import Retention
from nova.errors import KeyNotFoundError, UnavailableError, UsageError
from nova.store import ReplicatedStore, verify_audit
from nova.types import Order

VM = {"id": "vm1", "power_state": "running", "cpu": 2, "labels": {"tier": "gold"}}


@pytest.fixture(params=["memory", "files"])
def store(request, tmp_path):
    with ReplicatedStore(tmp_path / "d" if request.param == "files" else None, node="a") as store:
        yield store


def with_vm(store):
    store.put("vm/1", VM, kind="vm")
    return store.point("vm/1", "before the upgrade")


def test_a_rollback_is_a_new_version_that_dominates_and_can_be_undone(store):
    point = with_vm(store)
    store.put("vm/1", {"cpu": 8, "labels": {"tier": None, "new": "x"}}, merge=True)
    before = store.get("vm/1")
    done = store.rollback("vm/1", point, by="ann")
    after = store.get("vm/1")
    assert after.value == VM
    assert VectorClock(after.clock).compare(VectorClock(before.clock)) is Order.AFTER
    assert after.revision > before.revision
    assert done.restored == {"/cpu": 2, "/labels/tier": "gold"}
    assert done.removed == ["/labels/new"]
    assert {(lost["path"], lost["value"], lost["origin"]) for lost in done.discarded} == {
        ("/cpu", 8, "a"), ("/labels/new", "x", "a")
    }  # fmt: skip
    assert done.kept == []
    assert done.undo is not None
    store.rollback("vm/1", done.undo)
    assert store.get("vm/1").value == before.value
    told = [event.type for event in store.audit.events(resource="vm/1")]
    assert told == ["point", "point", "rollback", "point", "rollback"]
    assert store.audit.verify().ok


def test_history_is_not_rewritten_and_why_tells_the_whole_way(store):
    point = with_vm(store)
    store.put("vm/1", {"cpu": 8}, merge=True)
    store.rollback("vm/1", point, by="ann")
    text = store.why("vm/1")["text"]
    for words in (
        f"the state of vm/1 was kept as point {point} (before the upgrade)",
        f"vm/1 was rolled back to {point} by ann",
        "  /cpu is 2 again",
        f"  discarded: 8 of a at /cpu: rolled back to {point}",
        "/cpu was set to 2 by a at",
    ):
        assert words in text, text


def test_a_write_that_came_after_the_decision_is_not_undone(store):
    """Rollback while writes arrive undoes only its own."""
    point = with_vm(store)
    store.put("vm/1", {"cpu": 8}, merge=True)
    seen = store.get("vm/1").clock
    store.put("vm/1", {"labels": {"late": "1"}, "memory_mb": 512}, merge=True)
    done = store.rollback("vm/1", point, context=seen)
    value = store.get("vm/1").value
    assert (value["cpu"], value["memory_mb"], value["labels"]) == (2, 512, {"tier": "gold", "late": "1"})
    assert [(kept["path"], kept["value"]) for kept in done.kept] == [("/labels/late", "1"), ("/memory_mb", 512)]
    assert done.discarded == [{"path": "/cpu", "value": 8, "origin": "a", "reason": f"rolled back to {point}"}]


def test_a_late_write_to_the_very_field_stays_too(store):
    point = with_vm(store)
    store.put("vm/1", {"cpu": 8}, merge=True)
    seen = store.get("vm/1").clock
    store.put("vm/1", {"cpu": 16}, merge=True)
    done = store.rollback("vm/1", point, context=seen)
    assert store.get("vm/1").value["cpu"] == 16
    assert done.undo is None, "nothing was written"
    assert [kept["value"] for kept in done.kept] == [16]


def test_a_write_of_a_replica_that_had_not_heard_of_it_is_a_conflict_like_any_other():
    here, there = ReplicatedStore(node="a"), ReplicatedStore(node="b")
    point = with_vm(here)
    here.put("vm/1", {"cpu": 8}, merge=True)
    there.sync_with(here)
    here.rollback("vm/1", point)
    there.put("vm/1", {"cpu": 12}, merge=True)
    here.sync_with(there)
    entry = here.get("vm/1")
    assert entry.value == there.get("vm/1").value
    assert sorted(sibling.value for sibling in entry.siblings) == [2, 12]
    assert here.digest == there.digest
    text = here.why("vm/1")["text"]
    assert "rolled back" in text
    assert "concurrent_update" in text


def test_a_deleted_key_comes_back(store):
    point = with_vm(store)
    store.delete("vm/1")
    store.rollback("vm/1", point)
    assert store.get("vm/1").value == VM
    assert store.get("vm/1").kind == "vm"


def test_a_register_and_a_set_go_back_too(store):
    store.put("r", {"deep": [1]})
    store.put("s", [1, 2], kind="set")
    points = store.point("r"), store.point("s")
    store.put("r", None)
    store.put("s", {"add": [3], "remove": [1]}, merge=True)
    store.rollback("r", points[0])
    store.rollback("s", points[1])
    assert store.get("r").value == {"deep": [1]}
    assert store.get("s").value == [1, 2]


def test_a_counter_goes_back_and_what_others_add_meanwhile_still_counts():
    here, there = ReplicatedStore(node="a"), ReplicatedStore(node="b")
    here.put("hits", 5, kind="counter", merge=True)
    point = here.point("hits")
    here.put("hits", 7, merge=True)
    there.sync_with(here)
    there.put("hits", 100, merge=True)
    here.rollback("hits", point)
    assert here.get("hits").value == 5
    here.sync_with(there)
    assert here.get("hits").value == there.get("hits").value == 105
    here.rollback("hits", point)
    assert here.get("hits").value == 5


def test_going_back_to_where_one_is_writes_nothing(store):
    point = with_vm(store)
    clock = store.get("vm/1").clock
    done = store.rollback("vm/1", point)
    assert (done.restored, done.removed, done.undo) == ({}, [], None)
    assert store.get("vm/1").clock == clock


def test_a_point_is_named_by_its_beginning_and_only_of_its_own_key(store):
    point = with_vm(store)
    store.put("vm/2", VM, kind="vm")
    store.rollback("vm/1", point[:6])
    for key, to in (("vm/2", point), ("vm/1", "x"), ("vm/1", "")):
        with pytest.raises(KeyNotFoundError, match="no point"):
            store.rollback(key, to)
    store.point("vm/1")
    with pytest.raises(KeyNotFoundError, match="beginning of 2 points"):
        store.rollback("vm/1", "p")
    with pytest.raises(KeyNotFoundError):
        store.point("none")
    store.put("vm/1", {"cpu": 9}, merge=True)
    with pytest.raises(UnavailableError, match="try again"):
        store.rollback("vm/1", point, context={"a~1": 999})


def test_another_kind_is_not_overwritten(store):
    point = with_vm(store)
    store.delete("vm/1")
    store.put("vm/1", "text", kind="register")
    with pytest.raises(UsageError, match=r"holds a register now, point .* a vm"):
        store.rollback("vm/1", point)


def test_points_and_the_story_survive_reopening(tmp_path):
    with ReplicatedStore(tmp_path / "d", node="a") as store:
        point = with_vm(store)
        store.put("vm/1", {"cpu": 8}, merge=True)
    with ReplicatedStore(tmp_path / "d", node="a") as store:
        (kept,) = store.points("vm/1")
        assert (kept.id, kept.value, kept.note) == (point, VM, "before the upgrade")
        store.rollback("vm/1", point)
        assert store.retain(Retention(events_max=1)) == 2
    with ReplicatedStore(tmp_path / "d", node="a") as store:
        assert store.get("vm/1").value == VM
        assert [event.type for event in store.audit.events()] == ["rollback", "retain"]
        assert store.points("vm/1") == [], "retention drops points, too"
        store.point("vm/1")
    verdict = verify_audit(tmp_path / "d")
    assert (verdict["ok"], verdict["events"]) == (True, 3)
    head = f"1:{'00' * 32}"
    assert "too old to compare" in verify_audit(tmp_path / "d", head)["error"]


def test_the_trail_of_a_store_in_memory_does_not_grow_without_end(monkeypatch):
    monkeypatch.setattr("nova.store.embedded.MEMORY_EVENTS", 10)
    store = ReplicatedStore(node="a")
    store.put("x", 1)
    for _ in range(50):
        store.point("x")
        assert store.audit.mark.count - store.audit.anchor.count <= 21
    assert store.audit.verify().ok


edits = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["/x", "/y", "/z"]), st.none() | st.integers(0, 3)), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(edits, edits, edits)
def test_whatever_was_written_a_rollback_restores_what_its_context_knew_and_nothing_else(before, known, late):
    stores = {"a": ReplicatedStore(node="a"), "b": ReplicatedStore(node="b")}

    def write(edits):
        for who, path, value in edits:
            stores[who].put("m", {path[1:]: value}, merge=True)
            stores["a"].sync_with(stores["b"])

    stores["a"].put("m", {"x": 0, "y": 0}, kind="map")
    stores["a"].sync_with(stores["b"])
    write(before)
    here = stores["a"]
    then = here.get("m").value
    point = here.point("m")
    write(known)
    seen = here.get("m").clock
    write(late)
    touched = {path[1:] for _, path, _ in late}
    now = here.get("m").value
    here.rollback("m", point, context=seen)
    after = here.get("m").value
    for name in "xyz":
        expected = now if name in touched and name in now else then
        # A late removal leaves no row to keep: the field goes back like any other.
        assert after.get(name) == expected.get(name), (name, then, now, after)
    stores["b"].sync_with(here)
    assert stores["b"].get("m").value == after
    assert stores["b"].digest == here.digest
