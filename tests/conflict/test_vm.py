"""Virtual machines: leaves and back, clear refusals, and the rules for leaves that two writers changed."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict import vm
from nova.conflict.detect import ConflictDetector, ConflictType, ResourceIndex, Severity, Version, at_most, canonical
from nova.conflict.strategies import ResolveContext, SemanticMerge
from nova.conflict.vm import VMState, join, resources, snapshot_links, split, split_patch
from nova.conflict.vm.state import canonical_state
from nova.errors import UsageError

MAC, MAC2 = "52:54:00:00:00:01", "52:54:00:00:00:02"
keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.sampled_from(["a/b", "~", "~1", "//"])
macs = st.integers(0, 3).map(lambda i: f"52:54:00:00:00:0{i}")
ips = st.integers(1, 3).map(lambda i: f"10.0.0.{i}")


def listed(items, key):
    return st.lists(items, max_size=3, unique_by=lambda item: item[key])


vms = st.fixed_dictionaries(
    {"id": keys},
    optional={
        "name": st.text(max_size=3),
        "power_state": st.sampled_from(["running", "paused", "suspended", "stopped"]),
        "cpu": st.integers(1, 64),
        "memory_mb": st.integers(1, 1 << 20),
        "host": st.none() | keys,
        "region": st.none() | keys,
        "owner": st.none() | keys,
        "networks": listed(st.fixed_dictionaries({"mac": macs}, optional={"ip": ips | st.none()}), "mac"),
        "disks": listed(st.fixed_dictionaries({"id": keys}, optional={"size_gb": st.integers(0, 9)}), "id"),
        "snapshots": listed(st.fixed_dictionaries({"id": keys}, optional={"parent": st.none() | keys}), "id"),
        "migration": st.none() | st.fixed_dictionaries({"status": st.sampled_from(["running", "failed"])}),
        "tags": st.lists(keys, max_size=3),
        "labels": st.dictionaries(keys, st.text(max_size=3), max_size=3),
        "metrics": st.dictionaries(keys, st.floats(allow_nan=False), max_size=3),
        "x/y~": st.integers() | st.lists(st.integers(), max_size=2),
    },
)


def plain_model(value):
    """The canonical form, said differently: sorted by escaped id, empty collections left out."""
    out = {}
    for name, item in value.items():
        if name in vm.ITEM_KEYS:
            item = sorted(item, key=lambda one: vm.escape(one[vm.ITEM_KEYS[name]]))
        elif name == "tags":
            item = sorted(set(item), key=vm.escape)
        if name not in vm.COLLECTIONS or item:
            out[name] = item
    return out


@given(vms)
def test_join_of_split_is_the_canonical_vm(value):
    assert canonical(join(split(value))) == canonical(plain_model(value))
    assert canonical(canonical_state(value)) == canonical(plain_model(value))
    assert split(join(split(value))) == split(value)


@given(vms)
def test_vmstate_goes_round_through_its_plain_form(value):
    state = VMState.of(value)
    assert VMState.of(state.to_dict()) == state
    assert split(state.to_dict()).keys() >= {p for p, leaf in split(value).items() if leaf is not None}


@given(vms, vms)
def test_a_patch_is_the_same_on_leaves_as_on_the_whole(value, patch):
    """Replacing by a whole list, writing and removing fields: checked against a plain dict."""
    current = split(value)
    patch = {name: item for name, item in patch.items() if name not in ("labels", "metrics")}
    puts, drops = split_patch(patch, current)
    after = {path: leaf for path, leaf in current.items() if path not in drops} | puts
    expected = {**value, **patch}
    expected = {name: item for name, item in expected.items() if item is not None or name not in patch}
    assert canonical(join(after)) == canonical(plain_model(expected))
    assert set(drops) <= current.keys()


def test_a_patch_changes_single_items_by_id():
    current = split(
        {
            "id": "v", "cpu": 2, "tags": ["a", "b"], "labels": {"x": "1", "y": "2"},
            "networks": [{"mac": MAC, "ip": "10.0.0.1", "network": "n"}], "disks": [{"id": "d", "size_gb": 1}],
        }
    )  # fmt: skip
    patch = {
        "cpu": 2, "labels": {"x": None, "z": "3"}, "tags": {"a": None, "c": True},
        "networks": {MAC.upper(): {"ip": "10.0.0.2"}}, "disks": {"d": None, "e": {"size_gb": 4}}, "host": None,
    }  # fmt: skip
    puts, drops = split_patch(patch, current)
    assert puts == {
        "/cpu": 2, "/labels/z": "3", "/tags/c": True,
        f"/networks/{MAC}": {"mac": MAC, "ip": "10.0.0.2", "network": "n"}, "/disks/e": {"id": "e", "size_gb": 4},
    }  # fmt: skip
    assert sorted(drops) == ["/disks/d", "/labels/x", "/tags/a"]
    assert split_patch({"disks": None}, current) == ({}, ["/disks/d"])
    assert split_patch({"disks": [{"id": "d", "size_gb": 1}]}, current) == ({}, [])


def test_addresses_have_one_form():
    nic = {"mac": "52-54-00-AB-00-01", "ip": "FD00:0::1"}
    assert split({"networks": [nic]}) == {"/networks/52:54:00:ab:00:01": {"mac": "52:54:00:ab:00:01", "ip": "fd00::1"}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"cpu": 0}, "vm field cpu is 0: Expected `int` >= 1; give a whole number from 1 to 4096"),
        ({"cpu": True}, "vm field cpu is true"),
        ({"cpu": None}, "vm field cpu is null"),
        ({"power_state": "on"}, 'vm field power_state is "on": .*; use one of running, paused, suspended, stopped'),
        ({"disks": [{"id": "a", "size_gb": -1}]}, "vm field disks.* is -1: .*; give a list of objects with id"),
        ({"disks": [{"id": "a", "sise": 1}]}, "unknown field `sise`"),
        ({"disks": [{"id": "a"}, {"id": "a"}]}, 'names "a" 2 times'),
        ({"networks": [{"mac": MAC}, {"mac": MAC}]}, "2 times"),
        ({"networks": [{"mac": "1"}]}, "give six octets such as"),
        ({"networks": [{"mac": MAC, "ip": "10.0.0.256"}]}, "give an address such as 10.0.0.1"),
        ({"networks": None}, "vm field networks is null"),
        ({"migration": {"status": "done"}}, "give an object with status"),
        ({"labels": {"a": 1}}, "vm field labels.*; give an object of texts"),
        ({"id": ""}, "give 1 to 255 characters"),
        ({}, "vm has 0 fields"),
    ],
)
def test_a_wrong_field_is_refused_with_value_limit_and_mend(value, words):
    with pytest.raises(UsageError, match=words):
        split(value)


def test_vmstate_is_valid_where_it_is_made():
    with pytest.raises(UsageError, match="vm field memory_mb is 0"):
        VMState(id="v", memory_mb=0)
    with pytest.raises(UsageError, match="has no field id"):
        VMState.of({"cpu": 1})
    assert VMState.of({"id": "v", "colour": "red"}).to_dict()["colour"] == "red"


@pytest.mark.parametrize("path", ["", "cpu", "/cpu/x", "/disks", "/disks/a/b"])
def test_a_path_that_no_vm_has_is_refused(path):
    with pytest.raises(UsageError, match="is none of a vm"):
        join({path: 1})


def test_patches_are_checked_too():
    for patch in (
        {"tags": {"a": 1}},
        {"disks": {"a": 1}},
        {"disks": {"a": {"id": "b"}}},
        {"cpu": -1},
        {"labels": {"a": 2}},
    ):
        with pytest.raises(UsageError):
            split_patch(patch, {})


# -- resources


def test_addresses_are_claimed_within_their_network():
    leaves = split({"networks": [{"mac": MAC, "ip": "10.0.0.1"}, {"mac": MAC2, "ip": "10.0.0.1", "network": "n"}]})
    assert resources(leaves) == {f"mac:{MAC}", f"mac:{MAC2}", "ip:10.0.0.1", "ip:10.0.0.1@n"}


def test_two_vms_with_one_address_contend_until_one_lets_go():
    index = ResourceIndex()
    first = split({"id": "1", "networks": [{"mac": MAC, "ip": "10.0.0.1"}]})
    second = split({"id": "2", "networks": [{"mac": MAC2, "ip": "10.0.0.1"}]})
    assert index.update("vm/1", resources(first)) == []
    (found,) = index.update("vm/2", resources(second))
    assert (found.resource, found.owners) == ("ip:10.0.0.1", ("vm/1", "vm/2"))
    index.update("vm/1", set())
    assert index.contentions() == []


# -- rules


def settle(path, *values, context=None, leaves=None):
    """What siblings at one path settle to, checked over all orders of arrival: (leaf, conflict, resolution)."""
    rows = [Version(v, VectorClock({f"w{i}": 1}), i + 1, f"w{i}") for i, v in enumerate(values)]
    results = []
    for order in permutations(rows):
        conflict = ConflictDetector().examine("vm/1", "vm", {path: order}, leaves=leaves or {})
        resolution = SemanticMerge().resolve(conflict, context or ResolveContext())
        results.append((resolution.settled[path], conflict, resolution))
    assert len({canonical(leaf) for leaf, _, _ in results}) == 1
    return results[0]


@pytest.mark.parametrize(
    ("path", "values", "expected"),
    [
        ("/power_state", ["running", "paused", "suspended", "stopped"], "running"),
        ("/power_state", ["suspended", "stopped"], "suspended"),
        ("/power_state", ["suspended", "paused"], "paused"),
        ("/cpu", [8, 2, 4], 8),
        ("/memory_mb", [1024, 4096, 2048], 4096),
        ("/updated_ms", [5, 3], 5),
        ("/disks/d", [{"id": "d", "size_gb": 9, "path": "x"}, {"id": "d", "size_gb": 5, "path": "y"}],
         {"id": "d", "size_gb": 9, "path": "y"}),
        ("/name", ["old", "new"], "new"),
        ("/host", ["h2", "h1"], "h1"),
        ("/metrics/cpu_mhz", [9.5, 1.5], 1.5),
        ("/unknown", [9, 1], 1),
    ],
)  # fmt: skip
def test_field_rules(path, values, expected):
    leaf, _, resolution = settle(path, *values)
    assert leaf == expected
    assert resolution.discarded


@pytest.mark.parametrize(
    ("values", "winner"),
    [
        ([("running", 1), ("completed", 1)], 0),  # an ended one needs a newer epoch
        ([("running", 1), ("completed", 2)], 1),
        ([("running", 3), ("completed", 2)], 0),
        ([("planned", 1), ("switchover", 1), ("preparing", 1)], 1),
        ([("completed", 1), ("failed", 1), ("cancelled", 1)], 0),
        ([None, ("planned", 0)], 1),
    ],
)
def test_migrations_go_by_epoch_then_by_being_under_way_then_by_state(values, winner):
    leaves = [v and {"status": v[0], "epoch": v[1], "target": f"h{i}"} for i, v in enumerate(values)]
    assert settle("/migration", *leaves)[0] == leaves[winner]
    assert settle("/migration", *leaves[::-1])[0] == leaves[winner]


def test_the_maximum_stays_within_the_capacity_of_the_host():
    capacity = ResolveContext(invariants=(at_most("/cpu", 8, "host capacity"),))
    leaf, _, resolution = settle("/cpu", 16, 4, 8, context=capacity)
    assert (leaf, resolution.pending) == (8, False)
    assert "keeps host capacity" in resolution.explanation[0]
    leaf, _, resolution = settle("/cpu", 16, 12, context=capacity)
    assert (leaf, resolution.pending) == (12, True)


def test_one_mac_with_two_addresses_is_contention_settled_by_the_last_writer():
    leaf, conflict, resolution = settle(
        f"/networks/{MAC}", {"mac": MAC, "ip": "10.0.0.1"}, {"mac": MAC, "ip": "10.0.0.2"}
    )
    assert leaf["ip"] == "10.0.0.2"
    assert ConflictType.RESOURCE_CONTENTION in conflict.types
    assert (conflict.auto_resolvable, resolution.pending) == (True, False)
    _, same_ip, _ = settle(f"/networks/{MAC}", {"mac": MAC, "model": "e1000"}, {"mac": MAC, "model": "virtio"})
    assert ConflictType.RESOURCE_CONTENTION not in same_ip.types


# -- split brain


def test_a_vm_running_on_two_hosts_is_split_brain_and_waits_for_a_quorum():
    leaf, conflict, resolution = settle("/host", "h1", "h2", leaves={"/power_state": "running"})
    assert leaf == "h2"
    assert ConflictType.RESOURCE_CONTENTION in conflict.types
    assert (conflict.severity, conflict.auto_resolvable, resolution.pending) == (Severity.CRITICAL, False, True)
    assert 'split brain: running at host "h1" and "h2"' in conflict.reason


@pytest.mark.parametrize("leaves", [{"/power_state": "stopped"}, {}])
def test_two_hosts_of_a_vm_that_does_not_run_are_no_split_brain(leaves):
    _, conflict, resolution = settle("/host", "h1", "h2", leaves=leaves)
    assert conflict.types == (ConflictType.CONCURRENT_UPDATE,)
    assert not resolution.pending


def test_who_stopped_the_vm_where_he_put_it_does_not_split_its_brain():
    def row(value, writer):
        return Version(value, VectorClock({writer: 1}), 1, writer)

    rows = {
        "/host": [row("h1", "a"), row("h2", "b")],
        "/power_state": [row("running", "a"), row("stopped", "b")],
    }
    assert ConflictDetector().examine("vm/1", "vm", rows).auto_resolvable
    rows["/power_state"][1] = row("running", "b")
    assert not ConflictDetector().examine("vm/1", "vm", rows).auto_resolvable


def test_split_brain_is_seen_in_whole_values():
    a = Version({"id": "v", "power_state": "running", "region": "eu"}, VectorClock({"a": 1}), 1, "a")
    b = Version({"id": "v", "power_state": "running", "region": "us"}, VectorClock({"b": 1}), 2, "b")
    found = ConflictDetector().detect("vm/v", a, b, kind="vm")
    assert found is not None
    assert found.severity is Severity.CRITICAL


# -- whole values


def three_way(base, local, remote):
    def made(value, clock, stamp, origin):
        return Version({"id": "v", **value}, VectorClock(clock), stamp, origin)

    root = made(base, {"a": 1}, 0, "a")
    sides = made(local, {"a": 2}, 1, "a"), made(remote, {"a": 1, "b": 1}, 2, "b")
    outcomes = []
    for one, two in (sides, sides[::-1]):
        conflict = ConflictDetector().detect("vm/v", one, two, base=root, kind="vm")
        assert conflict is not None
        outcomes.append(SemanticMerge().resolve(conflict))
    assert canonical(outcomes[0].value) == canonical(outcomes[1].value)
    return outcomes[0]


def test_a_vm_can_be_stopped_when_only_one_side_touches_its_power_state():
    stopped = three_way({"power_state": "running", "cpu": 2}, {"power_state": "stopped", "cpu": 2},
                        {"power_state": "running", "cpu": 4})  # fmt: skip
    assert (stopped.value["power_state"], stopped.value["cpu"]) == ("stopped", 4)
    assert stopped.explanation == ("the writers changed different parts; all changes are in",)
    assert not stopped.discarded


def test_cpu_can_be_lowered_when_only_one_side_touches_it():
    assert three_way({"cpu": 8}, {"cpu": 2}, {"cpu": 8, "name": "n"}).value["cpu"] == 2


def test_a_detached_disk_is_not_resurrected():
    disks = [{"id": "d1"}, {"id": "d2"}]
    merged = three_way({"disks": disks}, {"disks": disks[:1]}, {"disks": disks, "tags": ["x"]})
    assert merged.value["disks"] == [{"id": "d1"}]


def test_a_disk_detached_here_and_grown_there_stays_and_is_told_once():
    grown = {"id": "d", "size_gb": 9}
    merged = three_way({"disks": [{"id": "d", "size_gb": 1}]}, {}, {"disks": [grown]})
    assert merged.value["disks"] == [grown]
    assert [d.path for d in merged.discarded] == ["/disks/d"]


def test_both_sides_add_disks_and_both_stay():
    merged = three_way({}, {"disks": [{"id": "a"}]}, {"disks": [{"id": "b"}]})
    assert merged.value["disks"] == [{"id": "a"}, {"id": "b"}]


def test_mac_and_ip_are_one_leaf_and_never_mixed():
    nics = [{"mac": MAC, "ip": "10.0.0.1", "network": "n1"}, {"mac": MAC, "ip": "10.0.0.2", "network": "n2"}]
    merged = three_way({"networks": [{"mac": MAC}]}, {"networks": nics[:1]}, {"networks": nics[1:]})
    assert merged.value["networks"] == [nics[1]]


def test_migration_status_and_target_are_one_leaf_and_never_mixed():
    merged = three_way(
        {}, {"migration": {"status": "running", "target": "h1", "epoch": 2}},
        {"migration": {"status": "planned", "target": "h2", "epoch": 1}},
    )  # fmt: skip
    assert merged.value["migration"] == {"status": "running", "target": "h1", "epoch": 2}


def test_a_snapshot_whose_parent_was_removed_meanwhile_is_noticed():
    base = {"snapshots": [{"id": "s1"}]}
    merged = three_way(base, {}, {"snapshots": [{"id": "s1"}, {"id": "s2", "parent": "s1"}]})
    assert merged.pending
    assert "snapshot s2 builds on s1, which is not there" in merged.alarms[0]


def test_a_violation_already_in_the_base_does_not_block_unrelated_edits():
    broken = {"snapshots": [{"id": "s2", "parent": "s1"}]}
    merged = three_way(broken, {**broken, "cpu": 2}, {**broken, "memory_mb": 2})
    assert not merged.pending
    assert (merged.value["cpu"], merged.value["memory_mb"]) == (2, 2)


def test_snapshot_circles_are_noticed():
    ring = {"snapshots": [{"id": "a", "parent": "b"}, {"id": "b", "parent": "a"}]}
    assert "builds on itself" in (snapshot_links(ring) or "")
    assert snapshot_links({"snapshots": [{"id": "a", "parent": None}, {"id": "b", "parent": "a"}]}) is None


@given(vms, vms, vms)
def test_a_three_way_merge_settles_alike_on_both_sides_and_yields_to_the_side_that_changed(base, local, remote):
    drop = {name: item for name, item in base.items() if name != "id"}
    merged = three_way(
        drop, {k: v for k, v in local.items() if k != "id"}, {k: v for k, v in remote.items() if k != "id"}
    )
    if merged.pending:  # it breaks what the base did not: nothing is merged before somebody looked
        assert canonical(merged.value) == canonical(join(split({**base, "id": "v"})))
        return
    b, one, two, out = (split({**x, "id": "v"}) for x in (base, local, remote, merged.value))
    nothing = object()
    for path in b.keys() | one.keys() | two.keys():
        was, x, y = (canonical(s[path]) if path in s else nothing for s in (b, one, two))
        now = canonical(out[path]) if path in out else nothing
        if path.startswith("/disks/") and nothing not in (was, x, y):
            continue  # sizes only grow: see test_vm_handler
        if x == y or y == was:
            assert now == x
        elif x == was:
            assert now == y


def test_a_whole_value_that_is_no_vm_falls_to_the_last_writer():
    a, b = Version({"cpu": "x"}, VectorClock({"a": 1}), 1, "a"), Version({"cpu": 2}, VectorClock({"b": 1}), 2, "b")
    found = ConflictDetector().detect("vm/v", a, b, kind="vm")
    assert found is not None
    assert SemanticMerge().resolve(found).value == {"cpu": 2}
