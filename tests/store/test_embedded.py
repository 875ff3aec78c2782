from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.errors import KeyNotFoundError, LimitError, StaleContextError, UnavailableError, UsageError
from nova.store import Put, ReplicatedStore, verify_audit
from nova.store.core import StoreConfig


def pair(**options) -> tuple[ReplicatedStore, ReplicatedStore]:
    return ReplicatedStore(node="a", **options), ReplicatedStore(node="b", **options)


VM = {"id": "vm1", "power_state": "running", "cpu": 2, "memory_mb": 2048}


def test_a_write_is_read_back_with_its_clock():
    store = ReplicatedStore(node="a")
    written = store.put("greeting", {"hello": "world"})
    entry = store.get("greeting")
    assert entry == written
    assert entry.value == {"hello": "world"}
    assert entry.clock == {"a~1": 1}
    assert entry.origin == "a"
    assert entry.siblings == []


def test_every_json_value_comes_back_as_it_was():
    store = ReplicatedStore(node="a")
    for value in (None, True, 0, -1, 1.5, "", "\U0001f600", [], {}, [1, [2, {"x": None}]], 2**53):
        store.put("k", value)
        assert store.get("k").value == value
        assert type(store.get("k").value) is type(value)


def test_an_absent_key_says_so():
    store = ReplicatedStore(node="a")
    with pytest.raises(KeyNotFoundError, match="'nothing' holds nothing"):
        store.get("nothing")
    with pytest.raises(KeyNotFoundError):
        store.delete("nothing")


def test_two_replicas_that_met_hold_the_same():
    a, b = pair()
    a.put("x", 1)
    b.put("y", 2)
    a.sync_with(b)
    assert a.digest == b.digest
    assert a.clock == b.clock == {"a~1": 1, "b~1": 1}
    assert [entry.value for entry in b.scan()[0]] == [1, 2]


def test_concurrent_writes_conflict_and_both_replicas_settle_them_alike():
    a, b = pair()
    a.put("x", "first")
    a.sync_with(b)
    a.put("x", "from a")
    b.put("x", "from b")
    a.sync_with(b)
    at_a, at_b = a.get("x"), b.get("x")
    assert at_a.value == at_b.value == "from b"
    assert at_a.conflict == at_b.conflict is not None
    assert {sibling.value for sibling in at_a.siblings} == {"from a", "from b"}
    (conflict,) = a.conflicts()
    assert conflict["types"] == ["concurrent_update"]
    assert conflict["resolution"]["strategy"] == "lww"
    assert [lost["value"] for lost in conflict["resolution"]["discarded"]] == ["from a"]
    assert conflict["id"] == b.conflicts()[0]["id"]
    assert "from a" in a.why("x")["text"]


def test_an_ordered_pair_is_never_a_conflict():
    a, b = pair()
    for n in range(5):
        a.put("x", n)
        a.sync_with(b)
        b.put("x", -n)
        a.sync_with(b)
    assert a.conflicts() == b.conflicts() == []


def test_concurrent_writes_of_the_same_value_are_no_conflict():
    a, b = pair()
    a.put("x", 1)
    b.put("x", 1)
    a.sync_with(b)
    assert a.conflicts() == []
    assert a.get("x").conflict is None


def test_the_next_write_supersedes_the_siblings():
    a, b = pair()
    a.put("x", 1)
    b.put("x", 2)
    a.sync_with(b)
    a.put("x", 3)
    a.sync_with(b)
    assert b.get("x").value == 3
    assert b.get("x").siblings == []
    assert b.replica.conflicts.page()["conflicts"][0]["status"] == "superseded"


def test_a_write_with_an_old_context_stands_beside_what_it_did_not_see():
    store = ReplicatedStore(node="a")
    old = store.put("x", 1).clock
    store.put("x", 2)
    store.put("x", 3, context=old)
    assert {sibling.value for sibling in store.get("x").siblings} == {2, 3}


def test_a_conditional_write_with_an_old_context_is_refused_with_what_is_there():
    store = ReplicatedStore(node="a")
    old = store.put("x", 1).clock
    store.put("x", 2)
    with pytest.raises(StaleContextError, match="changed since it was read") as refused:
        store.put("x", 3, context=old, conditional=True)
    assert refused.value.current.value == 2
    assert store.get("x").value == 2
    store.put("x", 3, context=store.get("x").clock, conditional=True)
    with pytest.raises(StaleContextError):
        store.put("x", 4, context={}, conditional=True)
    store.put("new", 1, context={}, conditional=True)


def test_a_delete_against_an_update_keeps_the_update_and_is_reported_on_both_sides():
    a, b = pair()
    a.put("x", 1)
    a.sync_with(b)
    a.put("x", 2)
    b.delete("x")
    a.sync_with(b)
    assert a.get("x").value == b.get("x").value == 2
    assert a.digest == b.digest
    assert [c["resolution"]["strategy"] for c in a.conflicts()] == ["observed_remove"]
    assert [c["id"] for c in a.conflicts()] == [c["id"] for c in b.conflicts()]


def test_a_deleted_key_stays_deleted_whoever_comes_back():
    a, b = pair()
    a.put("x", 1)
    a.sync_with(b)
    a.delete("x")
    old = ReplicatedStore(node="old")
    old.sync_with(b)
    old.sync_with(a)
    b.sync_with(old)
    assert not any("x" in store for store in (a, b, old))
    assert a.digest == b.digest == old.digest


def test_writers_of_different_fields_of_a_vm_do_not_conflict():
    a, b = pair(kinds={"vm/": "vm"})
    a.put("vm/1", VM)
    a.sync_with(b)
    a.put("vm/1", {"cpu": 4}, merge=True)
    b.put("vm/1", {**VM, "memory_mb": 4096})
    a.sync_with(b)
    assert a.get("vm/1").value == b.get("vm/1").value == {**VM, "cpu": 4, "memory_mb": 4096}
    assert a.conflicts() == []


def test_the_rules_of_a_vm_settle_what_both_sides_changed():
    a, b = pair(kinds={"vm/": "vm"})
    a.put("vm/1", VM)
    a.sync_with(b)
    a.put("vm/1", {"power_state": "stopped", "cpu": 8, "disks": {"d1": {"size_gb": 10}}}, merge=True)
    b.put("vm/1", {"power_state": "paused", "cpu": 4, "disks": {"d2": {"size_gb": 20}}}, merge=True)
    a.sync_with(b)
    value = a.get("vm/1").value
    assert value == b.get("vm/1").value
    assert (value["power_state"], value["cpu"], len(value["disks"])) == ("paused", 8, 2)
    assert a.get("vm/1").strategy == "semantic"


def test_a_vm_can_be_stopped_by_one_writer():
    a, b = pair(kinds={"vm/": "vm"})
    a.put("vm/1", VM)
    a.sync_with(b)
    b.put("vm/1", {"power_state": "stopped"}, merge=True)
    a.sync_with(b)
    assert a.get("vm/1").value["power_state"] == "stopped"


def test_a_detached_disk_stays_detached():
    a, b = pair(kinds={"vm/": "vm"})
    a.put("vm/1", {**VM, "disks": [{"id": "d1", "size_gb": 10}]})
    a.sync_with(b)
    a.put("vm/1", {"disks": {"d1": None}}, merge=True)
    b.put("vm/1", {"disks": {"d2": {"size_gb": 5}}}, merge=True)
    a.sync_with(b)
    assert [disk["id"] for disk in a.get("vm/1").value["disks"]] == ["d2"]


def test_two_vms_with_one_address_are_reported_and_neither_is_touched():
    store = ReplicatedStore(node="a", kinds={"vm/": "vm"})
    nic = {"mac": "52:54:00:00:00:01", "ip": "10.0.0.1"}
    store.put("vm/1", {**VM, "networks": [nic]})
    store.put("vm/2", {**VM, "id": "vm2", "networks": [{**nic, "mac": "52:54:00:00:00:02"}]})
    (conflict,) = store.conflicts()
    assert conflict["types"] == ["resource_contention"]
    assert conflict["resource"] == "ip:10.0.0.1"
    assert store.replica.conflicts.get(conflict["id"])["status"] == "pending"
    store.put("vm/2", {"networks": {"52:54:00:00:00:02": {"ip": "10.0.0.2"}}}, merge=True)
    assert store.replica.conflicts.get(conflict["id"])["status"] == "superseded"


def test_repeating_the_settled_value_decides_the_conflict():
    a, b = pair(kinds={"vm/": "vm"})
    a.put("vm/1", VM)
    a.sync_with(b)
    a.put("vm/1", {"cpu": 8}, merge=True)
    b.put("vm/1", {"cpu": 4}, merge=True)
    a.sync_with(b)
    assert a.get("vm/1").siblings
    a.put("vm/1", {"cpu": 8}, merge=True)
    assert not a.get("vm/1").siblings


def test_counters_count_every_addition_and_sets_keep_every_concurrent_add():
    a, b = pair(kinds={"n/": "counter", "s/": "set"})
    a.put("n/1", 5, merge=True)
    b.put("n/1", 7, merge=True)
    a.put("s/1", {"add": ["x", "y"]}, merge=True)
    a.sync_with(b)
    b.put("s/1", {"remove": ["x"]}, merge=True)
    a.put("s/1", {"add": ["x"]}, merge=True)
    a.sync_with(b)
    a.sync_with(b)
    assert a.get("n/1").value == b.get("n/1").value == 12
    assert a.get("s/1").value == b.get("s/1").value == ["x", "y"]
    assert a.digest == b.digest


def test_a_register_merges_by_rfc_7396():
    store = ReplicatedStore(node="a")
    store.put("x", {"a": 1, "b": {"c": 2, "d": 3}})
    store.put("x", {"a": None, "b": {"c": 9}}, merge=True)
    assert store.get("x").value == {"b": {"c": 9, "d": 3}}


def test_the_wrong_kind_key_or_size_is_refused_by_name():
    store = ReplicatedStore(node="a", config=StoreConfig(value_bytes_max=100))
    store.put("x", 1)
    with pytest.raises(UsageError, match="holds a register, not a vm"):
        store.put("x", VM, kind="vm")
    with pytest.raises(UsageError, match="'nonsense' is unknown; the kinds are"):
        store.put("y", 1, kind="nonsense")
    with pytest.raises(LimitError, match="keys have 1 to 1024 bytes"):
        store.put("", 1)
    with pytest.raises(LimitError, match="the limit is 100"):
        store.put("big", "x" * 200)
    with pytest.raises(UsageError, match="power_state"):
        store.put("vm", {**VM, "power_state": "exploded"}, kind="vm")
    with pytest.raises(UnavailableError, match="this node only 0"):
        store.put("x", 2, context={"stranger~1": 4})
    assert store.scan()[0][0].value == 1
    assert len(store) == 1


def test_pages_cover_every_key_once():
    store = ReplicatedStore(node="a")
    store.put_many((f"k/{n:03}", n) for n in range(25))
    store.put("other", 1)
    keys, after = [], ""
    while after is not None:
        page, after = store.scan(prefix="k/", limit=7, after=after)
        keys += [entry.key for entry in page]
    assert keys == [f"k/{n:03}" for n in range(25)]


def test_the_change_feed_tells_each_change_once():
    store = ReplicatedStore(node="a")
    store.put("x", 1)
    seen = store.changes()[-1].revision
    store.put("x", 2)
    store.put("y", 3)
    store.delete("x")
    assert [(c.key, c.deleted, c.value) for c in store.changes(seen)] == [("y", False, 3), ("x", True, None)]


def test_everything_is_there_after_reopening(tmp_path):
    with ReplicatedStore(tmp_path / "d", node="a", kinds={"vm/": "vm"}) as store:
        store.put("x", 1)
        store.put("vm/1", VM)
        store.put("gone", 1)
        store.delete("gone")
        digest, clock = store.digest, store.clock
    with ReplicatedStore(tmp_path / "d", node="a", kinds={"vm/": "vm"}) as again:
        assert again.digest == digest
        assert again.clock == clock
        assert again.get("vm/1").value == VM
        again.put("x", 2)
        assert again.clock == {**clock, "a~2": 1}, "every start is a new actor"


def test_conflicts_and_their_audit_chain_survive_reopening(tmp_path):
    other = ReplicatedStore(node="b")
    with ReplicatedStore(tmp_path / "d", node="a") as store:
        for n in range(3):
            store.put(f"x{n}", "a")
            other.put(f"x{n}", "b")
        store.sync_with(other)
        before = store.conflicts()
        assert len(before) == 3
    with ReplicatedStore(tmp_path / "d", node="a") as again:
        assert again.conflicts() == before
    verdict = verify_audit(tmp_path / "d")
    assert verdict["ok"]
    assert verdict["events"] == 6


def test_a_changed_byte_of_the_audit_archive_is_found(tmp_path):
    other = ReplicatedStore(node="b")
    with ReplicatedStore(tmp_path / "d", node="a") as store:
        store.put("x", "a")
        other.put("x", "b")
        store.sync_with(other)
    (segment,) = [path for path in (tmp_path / "d" / "audit").iterdir() if path.stat().st_size > 4096]
    data = segment.read_bytes()
    where = data.index(b"concurrent_update")
    segment.write_bytes(data[:where] + b"C" + data[where + 1 :])
    verdict = verify_audit(tmp_path / "d")
    assert not verdict["ok"]
    assert verdict["error"]


def test_a_directory_has_one_owner_and_one_process(tmp_path):
    with ReplicatedStore(tmp_path / "d", node="a"), pytest.raises(UsageError, match="in use"):
        ReplicatedStore(tmp_path / "d", node="a")
    with pytest.raises(UsageError, match="belongs to node 'a'"):
        ReplicatedStore(tmp_path / "d", node="b")
    ReplicatedStore(tmp_path / "d", node="a").close()


def test_a_far_behind_replica_gets_a_state_instead_of_batches(tmp_path):
    a = ReplicatedStore(node="a", config=StoreConfig(history_bytes=1_000))
    b = ReplicatedStore(node="b")
    a.put("early", 1)
    b.sync_with(a)
    for n in range(200):
        a.put(f"k{n % 10}", n)
    a.delete("early")
    assert a.replica.batches_since(b.clock, 1 << 20) is None
    b.put("mine", 1)
    a.sync_with(b)
    assert a.digest == b.digest
    assert "early" not in b
    assert b.get("mine").value == a.get("mine").value == 1


writes = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["put", "merge", "delete", "sync"]),
        st.sampled_from(["vm/1", "vm/2"]),
        st.sampled_from(["running", "paused", "stopped"]),
        st.integers(1, 64),
        st.sampled_from(["d1", "d2"]),
        st.integers(0, 2),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(writes)
def test_replicas_that_met_agree_on_every_value_and_explain_every_conflict(script):
    stores = [ReplicatedStore(node=f"n{i}", kinds={"vm/": "vm"}) for i in range(3)]
    for who, what, key, power, cpu, disk, other in script:
        store = stores[who]
        if what == "put":
            store.put(key, {**VM, "power_state": power, "cpu": cpu, "disks": [{"id": disk, "size_gb": cpu}]})
        elif what == "merge":
            store.put(key, {"power_state": power, "disks": {disk: {"size_gb": cpu}}}, merge=True)
        elif what == "delete" and key in store:
            store.delete(key)
        elif what == "sync" and other != who:
            store.sync_with(stores[other])
    for left, right in permutations(range(3), 2):
        stores[left].sync_with(stores[right])
    assert len({store.digest for store in stores}) == 1
    values = [[(entry.key, entry.value, entry.conflict) for entry in store.scan()[0]] for store in stores]
    assert values[0] == values[1] == values[2]
    for store in stores:
        for entry in store.scan()[0]:
            assert (entry.conflict is None) == (not entry.siblings)
            if entry.conflict:
                assert entry.strategy == "semantic"


def test_many_writes_share_one_sync(tmp_path):
    with ReplicatedStore(tmp_path / "d", node="a") as store:
        assert store.put_many([Put("a", 1), ("b", 2)]) == 2
        with pytest.raises(UsageError):
            store.put_many([("c", 3), Put("d", 1, kind="nonsense")])
        assert store.get("c").value == 3
