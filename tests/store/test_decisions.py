"""Policies in a store, and decisions that people make about what waits in it."""

from __future__ import annotations

import pytest

from nova.conflict.policy import PolicyBuilder
from nova.conflict.policy import conditions as on
from nova.errors import KeyNotFoundError, StaleContextError, UnavailableError, UsageError
from nova.store import ReplicatedStore, heal
from nova.store.core import StoreConfig

BY_HAND = PolicyBuilder("production").default("manual").build()


def pair(**options):
    return [ReplicatedStore(node=name, **options) for name in ("a", "b")]


def clash(stores, key="x", values=(1, 2), **options):
    for store, value in zip(stores, values, strict=True):
        store.put(key, value, **options)
    stores[0].sync_with(stores[1])


def test_a_policy_settles_alike_on_both_replicas_and_says_which_rule():
    policy = PolicyBuilder("production").field("/cpu", "max").rule("names", on.path_matches("/name"), use="min").build()
    stores = pair(policies={"m/": policy}, kinds={"m/": "map"})
    clash(stores, "m/1", ({"cpu": 8, "name": "x"}, {"cpu": 4, "name": "a"}))
    entries = [store.get("m/1") for store in stores]
    assert entries[0].value == entries[1].value == {"cpu": 8, "name": "a"}
    assert entries[0].strategy == "max+min"
    assert "rule 1, names" in stores[0].why("m/1")["text"]


def test_a_strategy_of_a_longer_prefix_goes_before_a_policy():
    stores = pair(policies={"": BY_HAND}, strategies={"free/": "lww"})
    clash(stores, "free/x")
    clash(stores, "bound/x")
    assert [each.key for each in stores[0].waiting()] == ["bound/x"]


@pytest.mark.parametrize("data", [False, True])
def test_a_decision_is_refused_where_the_siblings_are_others_by_now(tmp_path, data):
    stores = [
        ReplicatedStore(tmp_path / name if data else None, node=name, policies={"": BY_HAND}) for name in ("a", "b")
    ]
    try:
        clash(stores)
        (shown,) = stores[0].waiting()
        assert sorted(each.value for each in shown.candidates) == [1, 2]
        assert [each.shown for each in stores[1].waiting()] == [shown.shown]
        third = ReplicatedStore(node="c")
        third.put("x", 3)
        stores[0].sync_with(third)
        with pytest.raises(StaleContextError, match="stale decision: siblings changed") as caught:
            stores[0].decide("x", shown.shown, {"": 1}, by="ann")
        assert sorted(each.value for each in caught.value.current.candidates) == [1, 2, 3]
        assert len(stores[0].get("x").siblings) == 3
        done = stores[0].decide("x", caught.value.current.shown, {"": 1}, by="ann")
        assert sorted(each["value"] for each in done.discarded) == [2, 3]
        entry = stores[0].get("x")
        assert (entry.value, entry.siblings) == (1, [])
        assert stores[0].waiting() == []
        stores[0].sync_with(stores[1])
        assert stores[1].get("x").value == 1
        assert "ann decided" in stores[0].why("x")["text"]
        with pytest.raises(StaleContextError, match="contended any more"):
            stores[0].decide("x", shown.shown, {"": 2})
    finally:
        for store in stores:
            store.close()


def test_a_decision_fits_the_key():
    stores = pair(policies={"": BY_HAND}, kinds={"vm/": "vm"})
    clash(stores, "vm/1", ({"id": "1", "cpu": 2}, {"id": "1", "cpu": 4}))
    (shown,) = stores[0].waiting()
    with pytest.raises(UsageError):
        stores[0].decide("vm/1", shown.shown, {"/cpu": "many"})
    with pytest.raises(UsageError, match="give a value for each of /cpu"):
        stores[0].decide("vm/1", shown.shown, {"/host": "h"})
    with pytest.raises(KeyNotFoundError):
        stores[0].decide("nothing", shown.shown, {})
    stores[0].decide("vm/1", shown.shown, {"/cpu": 3})
    assert stores[0].get("vm/1").value["cpu"] == 3


def test_what_a_policy_froze_takes_no_writes_until_somebody_decides(tmp_path):
    freeze = PolicyBuilder("strict").default("lww").escalate("all", on.always(), action="freeze", to="ann").build()
    with ReplicatedStore(tmp_path, node="a", policies={"": freeze}) as store:
        clash([store, ReplicatedStore(node="b")])
        with pytest.raises(UnavailableError, match="frozen by conflict"):
            store.put("x", 3)
        with pytest.raises(UnavailableError):
            store.delete("x")
    with ReplicatedStore(tmp_path, node="a", policies={"": freeze}) as store:  # also after a restart
        with pytest.raises(UnavailableError):
            store.put("x", 3)
        store.put("y", 3)
        (shown,) = store.waiting()
        assert shown.actions[0]["to"] == "ann"
        store.decide("x", shown.shown, {"": 2})
        assert store.put("x", 3).value == 3


def test_reading_a_conflict_again_does_not_count_as_another():
    limited = PolicyBuilder("hot").default("lww").auto_limit(1, window_ms=60_000).build()
    stores = pair(policies={"": limited})
    clash(stores)
    for _ in range(5):
        assert stores[0].get("x").value == 2
    assert stores[0].waiting() == []


@pytest.mark.parametrize("meet", [heal, ReplicatedStore.sync_with])
def test_what_waits_is_not_hidden_by_a_later_conflict_about_another_field(meet):
    config = StoreConfig(kinds={"vm/": "vm"})
    with ReplicatedStore(node="a", config=config) as a, ReplicatedStore(node="b", config=config) as b:
        a.put("vm/1", {"id": "1", "power_state": "stopped", "host": "h1"})
        meet(a, b)
        a.put("vm/1", {"power_state": "running"}, merge=True)
        b.put("vm/1", {"power_state": "running", "host": "h2"}, merge=True)
        a.put("vm/1", {"labels": {"x": "1"}}, merge=True)
        b.put("vm/1", {"labels": {"x": "2"}}, merge=True)
        meet(a, b)
        for store in (a, b):
            (waiting,) = store.waiting()
            assert "split brain" in waiting.reason
            assert {each.path for each in waiting.candidates} == {"/host", "/labels/x"}
