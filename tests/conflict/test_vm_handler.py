"""Whole states of a VM: each field rule through the three-way engine, and what a merge must not decide."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_vm import vms

from nova.clock import VectorClock
from nova.conflict.detect import ConflictDetector, ConflictType, Version, canonical
from nova.conflict.healing.fencing import Observation
from nova.conflict.strategies import strategy_named
from nova.conflict.vm import VMState, VMStateHandler, capacity, join, split
from nova.errors import UsageError

MAC, MAC2 = "52:54:00:00:00:01", "52:54:00:00:00:02"
HANDLER = VMStateHandler()


def merged(base, local, remote, handler=HANDLER, newer=""):
    """The result, after a check that it is the same whichever side is called local."""
    sides = {"id": "v", **base}, {"id": "v", **local}, {"id": "v", **remote}
    found = handler.merge(*sides, newer=newer)
    swapped = handler.merge(sides[0], sides[2], sides[1], newer={"local": "remote", "remote": "local"}.get(newer, ""))
    assert canonical(found.value) == canonical(swapped.value)
    assert sorted((c.path, c.kind) for c in found.conflicts) == sorted((c.path, c.kind) for c in swapped.conflicts)
    return found


def kinds(found):
    return [(c.path, c.type, c.kind) for c in found.conflicts]


def test_power_state_goes_by_rank_only_if_both_sides_changed_it():
    for weaker, stronger in (("paused", "running"), ("suspended", "paused"), ("stopped", "suspended")):
        base = {"power_state": next(s for s in ("running", "stopped") if s not in (weaker, stronger))}
        found = merged(base, {"power_state": weaker}, {"power_state": stronger})
        assert found.value["power_state"] == stronger
        assert [lost.value for lost in found.lost] == [weaker]
    running = {"power_state": "running"}
    assert merged(running, {"power_state": "stopped"}, running).value["power_state"] == "stopped"


def test_cpu_and_memory_take_the_greatest_that_fits_the_host():
    base, small, large = {"cpu": 2, "memory_mb": 1}, {"cpu": 4, "memory_mb": 2}, {"cpu": 8, "memory_mb": 3}
    assert merged(base, small, large).value["cpu"] == 8
    host = VMStateHandler(capacity(cpu=6))
    found = merged(base, small, large, host)
    assert (found.value["cpu"], found.value["memory_mb"]) == (4, 3)
    assert [(lost.path, lost.value) for lost in found.lost if lost.path == "/cpu"] == [("/cpu", 8)]
    assert merged({"cpu": 8}, {"cpu": 2}, {"cpu": 8}).value["cpu"] == 2
    none_fits = merged(base, small, large, VMStateHandler(capacity(cpu=3)))
    assert (none_fits.value["cpu"], none_fits.value["memory_mb"]) == (2, 3)  # the rest is merged all the same
    assert [c.path for c in none_fits.unresolved] == ["/cpu"]
    alone = merged(base, {**base, "cpu": 8}, base, host)
    assert not alone.committed
    assert merged({"cpu": 8}, {"cpu": 8, "name": "a"}, {"cpu": 8}, host).committed  # broken before: an edit may pass


def test_networks_merge_by_mac_and_mac_ip_and_space_come_from_one_side():
    base = {"networks": [{"mac": MAC, "ip": "10.0.0.1", "network": "a", "model": "e1000"}]}
    moved = {"networks": [{"mac": MAC, "ip": "10.0.0.2", "network": "b", "model": "e1000"}]}
    found = merged(base, moved, {"networks": [{**base["networks"][0], "model": "virtio"}]})
    assert found.value["networks"] == [{"mac": MAC, "ip": "10.0.0.2", "network": "b", "model": "virtio"}]
    other = {"networks": [{"mac": MAC, "ip": "10.0.0.3", "network": "a", "model": "e1000"}]}
    found = merged(base, moved, other, newer="remote")
    assert found.value == {"id": "v", **other}
    assert merged(base, moved, other).value == {"id": "v", **base}
    open_ = merged({}, moved, other)  # which address it has, nobody said
    assert open_.value["networks"] == [{"mac": MAC, "model": "e1000"}]
    assert [lost.value["ip"] for lost in open_.lost] == ["10.0.0.2", "10.0.0.3"]


def test_one_address_at_two_nics_is_contention_and_not_committed():
    one, two = {"networks": [{"mac": MAC, "ip": "10.0.0.1"}]}, {"networks": [{"mac": MAC2, "ip": "10.0.0.1"}]}
    found = merged({}, one, two)
    assert kinds(found) == [("/networks", "resource_contention", "duplicate_ip")]
    assert not found.committed
    assert found.value == {"id": "v"}
    apart = {"networks": [{"mac": MAC2, "ip": "10.0.0.1", "network": "blue"}]}
    assert merged({}, one, apart).clean
    both = {"networks": one["networks"] + two["networks"]}
    assert merged(both, {**both, "cpu": 2}, both).committed


def test_disks_unite_grow_and_stay_detached():
    base = {"disks": [{"id": "d", "size_gb": 5}, {"id": "e"}]}
    found = merged(base, {"disks": [{"id": "d", "size_gb": 9}]}, {"disks": [{"id": "d", "size_gb": 7}, {"id": "f"}]})
    assert found.value["disks"] == [{"id": "d", "size_gb": 9}, {"id": "f"}]
    shrunk = merged(base, {"disks": [{"id": "d", "size_gb": 1}, {"id": "e"}]}, {**base, "cpu": 3})
    assert shrunk.value["disks"][0]["size_gb"] == 5
    detached = merged(base, {"disks": []}, {**base, "tags": ["x"]})
    assert "disks" not in detached.value
    assert detached.clean
    kept = merged(base, {}, {"disks": [{"id": "d", "size_gb": 9}, {"id": "e"}]})
    assert kept.value["disks"] == [{"id": "d", "size_gb": 9}]
    assert kinds(kept) == [("/disks/[id=d]", "concurrent_update", "delete/update")]
    placed = {"disks": [{"id": "d", "path": "/a"}]}
    one, two = {"disks": [{"id": "d"}]}, {"disks": [{"id": "d", "path": "/b"}]}
    assert merged(placed, one, two).value["disks"] == [{"id": "d", "path": "/b"}]


def test_snapshots_unite_and_a_lost_parent_is_not_committed():
    base = {"snapshots": [{"id": "s1"}]}
    child = {"snapshots": [{"id": "s1"}, {"id": "s2", "parent": "s1"}]}
    both = merged(base, child, {"snapshots": [{"id": "s1"}, {"id": "s3", "parent": "s1"}]})
    assert [s["id"] for s in both.value["snapshots"]] == ["s1", "s2", "s3"]
    orphan = merged(base, {}, child)
    assert not orphan.committed
    assert "snapshot s2 builds on s1, which is not there" in orphan.explain()


def at(status, target, epoch):
    return {"migration": {"status": status, "target": target, "epoch": epoch}}


@pytest.mark.parametrize(
    ("local", "remote", "wins"),
    [
        (at("running", "h2", 3), at("completed", "h1", 3), 0),
        (at("running", "h2", 3), at("completed", "h1", 4), 1),
        (at("running", "h2", 3), at("switchover", "h2", 3), 1),
        (at("running", "h2", 4), at("switchover", "h3", 3), 0),
        (at("failed", "h2", 4), at("cancelled", "h2", 5), 1),
    ],
)
def test_a_migration_goes_by_epoch_then_state_and_is_never_mixed(local, remote, wins):
    found = merged(at("planned", "h9", 1), local, remote)
    assert found.value["migration"] == (local, remote)[wins]["migration"]
    assert not found.unresolved


@pytest.mark.parametrize(
    ("local", "remote", "kind"),
    [
        (at("running", "h2", 3), at("running", "h3", 3), "exclusive"),
        (at("completed", "h2", 3), at("cancelled", "h2", 3), "state_machine"),
    ],
)
def test_migrations_of_one_epoch_that_exclude_each_other_are_left_open(local, remote, kind):
    base = at("planned", "h1", 2)
    for newer in ("", "remote"):
        found = merged(base, local, remote, newer=newer)
        assert [c.kind for c in found.unresolved] == [kind]
        assert found.value["migration"] == base["migration"]
    conflict = conflict_of(base, local, remote)
    assert not conflict.auto_resolvable
    assert {"exclusive": "resource_contention", "state_machine": "semantic"}[kind] in conflict.types


RUNS = {"power_state": "running"}


def test_a_vm_that_both_sides_run_somewhere_else_is_never_merged():
    base = {"power_state": "stopped", "host": "h1"}
    for local, remote in [
        ({**RUNS, "host": "h1"}, {**RUNS, "host": "h2"}),  # one of them only started it where it was
        ({**RUNS, "host": "h3"}, {**RUNS, "host": "h2"}),
    ]:
        found = merged(base, local, remote, newer="remote")
        assert kinds(found) == [("/host", "resource_contention", "split_brain")]
        assert not found.committed
        assert found.value == {"id": "v", **base}
    assert (
        kinds(merged({"cpu": 1}, {**RUNS, "region": "eu"}, {**RUNS, "region": "us"}, newer="local"))[0][0] == "/region"
    )


def test_a_vm_that_one_side_moved_is_no_split_brain():
    base = {**RUNS, "host": "h1"}
    found = merged(base, {**RUNS, "host": "h2"}, {**base, "cpu": 4})
    assert found.clean
    assert (found.value["host"], found.value["cpu"]) == ("h2", 4)
    assert conflict_of(base, {**RUNS, "host": "h2"}, {**base, "cpu": 4}).auto_resolvable


def test_a_nic_that_one_side_changed_is_no_contention():
    base = {"networks": [{"mac": MAC, "ip": "10.0.0.1"}]}
    found = conflict_of(base, {"networks": [{"mac": MAC, "ip": "10.0.0.2"}]}, {**base, "cpu": 4})
    assert ConflictType.RESOURCE_CONTENTION not in found.types


def version(value, clock, stamp, origin):
    return Version({"id": "v", **value}, VectorClock(clock), stamp, origin)


def conflict_of(base, local, remote, stamps=(1, 2)):
    root = version(base, {"a": 1}, 0, "a") if base is not None else None
    sides = version(local, {"a": 2}, stamps[0], "a"), version(remote, {"a": 1, "b": 1}, stamps[1], "b")
    found = ConflictDetector().detect("vm/v", *sides, base=root, kind="vm")
    assert found is not None
    return found


def test_as_a_strategy_what_no_rule_decides_falls_to_the_newer_write():
    vm = strategy_named("vm")
    for stamps, name in (((1, 2), "b"), ((2, 1), "a")):
        found = vm.resolve(conflict_of({"name": "x"}, {"name": "a"}, {"name": "b"}, stamps))
        assert found.value["name"] == name
        assert [d.origin for d in found.discarded] == ["a" if name == "b" else "b"]
        assert found.clock == VectorClock({"a": 2, "b": 1})
        assert not found.pending
    split_brain = vm.resolve(conflict_of({"host": "h1"}, {**RUNS, "host": "h2"}, {**RUNS, "host": "h3"}))
    assert split_brain.pending
    assert split_brain.value == {"id": "v", "host": "h1"}
    assert {d.origin for d in split_brain.discarded} == {"a", "b"}
    without = vm.resolve(conflict_of(None, {"cpu": 1}, {"cpu": 2}))
    assert without.value["cpu"] == 2


@given(vms, vms, vms, st.booleans())
def test_a_strategy_settles_alike_on_both_sides_and_yields_to_the_side_that_changed(base, local, remote, tie):
    """Leaf by leaf: equal changes stand, and a side that left a leaf alone yields."""
    sides = [{k: v for k, v in each.items() if k != "id"} for each in (base, local, remote)]
    conflict = conflict_of(*sides, (1, 1 if tie else 2))
    swapped = ConflictDetector().detect(
        "vm/v", conflict.versions[1], conflict.versions[0], base=conflict.base, kind="vm"
    )
    outcomes = [HANDLER.resolve(each) for each in (conflict, swapped)]
    assert canonical(outcomes[0].value) == canonical(outcomes[1].value)
    assert canonical(outcomes[0].discarded) == canonical(outcomes[1].discarded)
    out = outcomes[0].value
    result = HANDLER.merge(*({"id": "v", **each} for each in sides), newer="remote")
    b, one, two, now = (split(each) for each in (*({"id": "v", **x} for x in sides), result.proposal))
    for path in b.keys() | one.keys() | two.keys():
        was, x, y, z = (canonical(s[path]) if path in s else None for s in (b, one, two, now))
        if path.startswith("/disks/"):
            continue  # sizes only grow: see below
        if x == y or y == was:
            assert z == x, path
        elif x == was:
            assert z == y, path
    assert canonical(out) in (canonical(result.value), canonical(result.proposal)) or not result.committed
    assert canonical(join(split(out))) == canonical(out)


@given(vms, vms, vms)
def test_disks_never_shrink_and_what_one_side_alone_detached_stays_detached(base, local, remote):
    found = HANDLER.merge(*({**each, "id": "v"} for each in (base, local, remote)), newer="remote").proposal
    b, x, y, out = ({d["id"]: d for d in each.get("disks", ())} for each in (base, local, remote, found))
    for name, disk in out.items():
        sizes = [side[name].get("size_gb", 0) for side in (b, x, y) if name in side]
        assert disk.get("size_gb", 0) == max(sizes)
    for name in b:
        for one, two in ((x, y), (y, x)):
            if name not in one and two.get(name) == b[name] and "size_gb" in b[name]:
                assert name not in out
            if name in one and name in two:
                assert name in out


@given(st.lists(vms, min_size=2, max_size=2))
def test_a_merge_with_an_unchanged_side_is_the_other_side(pair):
    base, other = ({**each, "id": "v"} for each in pair)
    grown = HANDLER.merge(base, other, base)
    if grown.committed:
        assert sized(grown.value, disks=False) == sized(other, disks=False)
    assert sized(HANDLER.merge(base, base, base).value) == sized(base)


def sized(state, disks=True):
    """The canonical form, each disk with its size."""
    leaves = {p: {"size_gb": 0, **v} if p.startswith("/disks/") else v for p, v in split(state).items()}
    return canonical({p: v for p, v in leaves.items() if disks or not p.startswith("/disks/")})


def test_typed_states_come_back_typed_and_what_is_no_vm_is_refused():
    a = VMState(id="v", cpu=2)
    found = HANDLER.merge(a, VMState(id="v", cpu=4), VMState(id="v", cpu=2, name="n"))
    assert found.value == VMState(id="v", cpu=4, name="n")
    with pytest.raises(UsageError, match="the state of a vm is 7"):
        HANDLER.merge(None, 7, {"id": "v"})
    with pytest.raises(UsageError, match="vm field cpu is 0"):
        HANDLER.merge(None, {"id": "v", "cpu": 0}, {"id": "v"})
    with pytest.raises(UsageError, match="newer is 'both'"):
        HANDLER.merge(None, {"id": "v"}, {"id": "v"}, newer="both")


def test_addresses_that_several_vms_claim_are_contentions():
    nic = {"mac": MAC, "ip": "10.0.0.1"}
    found = HANDLER.contentions({"vm/1": {"networks": [nic]}, "vm/2": VMState(id="2", networks=()), "vm/3": {
        "networks": [{**nic, "mac": MAC2}]}})  # fmt: skip
    assert [(c.resource, c.owners) for c in found] == [("ip:10.0.0.1", ("vm/1", "vm/3"))]


class Voters:
    def __init__(self, answer, token=20):
        self.answer, self.given, self.asked = answer, token, []

    def ask(self, question):
        self.asked.append(question)
        return self.answer

    def token(self):
        return self.given


def seen(node, host, clock, epoch=11, power="running"):
    return Observation(node, host, power, VectorClock(clock), epoch)


def test_a_split_brain_is_fenced_by_the_quorum_and_never_without():
    views = [seen("a", "h1", {"a": 1}), seen("b", "h2", {"b": 1})]
    for order in permutations(views):
        found = HANDLER.detect_split_brain("v", order)
        assert found is not None
        assert found.hosts == ("h1", "h2")
        assert HANDLER.fence(found).action == "escalate"
    voters = Voters("h2")
    decision = VMStateHandler(quorum=voters).fence(found)
    assert (decision.action, decision.keep, decision.fence, decision.token) == ("fence", "h2", ("h1",), 20)
    assert voters.asked[0].options == ("h1", "h2")
    assert voters.asked[0].proposal is None
    for wrong in (Voters(None), Voters("h9"), Voters("h1", token=11)):
        assert VMStateHandler(quorum=wrong).fence(found).action == "escalate"
