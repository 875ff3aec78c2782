"""One VM at two places: found by where each writer saw it when he started it, told once, and never settled silently."""

from __future__ import annotations

from random import Random

import pytest

from nova.store import ReplicatedStore, heal
from nova.store.core import StoreConfig

RUNS = {"power_state": "running"}
STOPPED = {"id": "1", "power_state": "stopped", "host": "h1"}


def opened(node, data=None, **more):
    return ReplicatedStore(data, node=node, config=StoreConfig(kinds={"vm/": "vm"}, **more))


@pytest.fixture
def pair():
    with opened("a") as a, opened("b") as b:
        a.put("vm/1", STOPPED)
        heal(a, b)
        yield a, b


def split_brains(store):
    return [c for c in store.conflicts(100) if c["severity"] == "critical" and c["status"] == "pending"]


def counted(store):
    return store.replica.conflicts.metrics._made["dwcp_split_brain_detections_total"].value


def both(pair, write_a, write_b):
    """What each node finds when these writes meet; both find the same."""
    a, b = pair
    a.put("vm/1", write_a, merge=True)
    b.put("vm/1", write_b, merge=True)
    heal(a, b)
    found = [split_brains(store) for store in pair]
    assert [each["id"] for each in found[0]] == [each["id"] for each in found[1]]
    assert counted(a) == counted(b) == len(found[0])
    return found[0]


@pytest.mark.parametrize(
    ("one", "other", "places"),
    [
        (RUNS, {**RUNS, "host": "h2"}, '"h1" and "h2"'),  # one of them had moved it
        ({**RUNS, "host": "h3"}, {**RUNS, "host": "h2"}, '"h2" and "h3"'),
    ],
)
def test_a_vm_that_two_started_at_two_hosts_is_contended_and_waits(pair, one, other, places):
    (record,) = both(pair, one, other)
    assert "resource_contention" in record["types"]
    assert f"split brain: running at host {places}; tokens give no order, so nobody is fenced" in record["reason"]
    assert record["resolution"]["pending"]
    for store in pair:
        assert {each.value for each in store.get("vm/1").siblings} == set(places.replace('"', "").split(" and "))
        assert [each.id for each in store.waiting()] == [record["id"]]
        assert "split brain" in store.why("vm/1")["text"]


def test_the_record_says_whom_fencing_would_keep(pair):
    (record,) = both(pair, {**RUNS, "fencing_token": 3}, {**RUNS, "host": "h2", "fencing_token": 7})
    assert 'fencing would keep "h2", which has the newest token, 7' in record["reason"]
    assert record["resolution"]["pending"]


def test_a_host_that_was_moved_in_a_write_of_its_own_counts_as_well(pair):
    _, b = pair
    b.put("vm/1", {"host": "h2"}, merge=True)
    assert len(both(pair, RUNS, RUNS)) == 1


def test_it_is_over_when_one_side_has_stopped(pair):
    a, b = pair
    assert both(pair, RUNS, {**RUNS, "host": "h2"})
    b.put("vm/1", {"power_state": "stopped"}, merge=True)
    heal(a, b)
    for store in pair:
        assert not split_brains(store)
        assert not store.waiting()


def test_it_is_over_when_somebody_has_decided(pair):
    a, b = pair
    assert both(pair, RUNS, {**RUNS, "host": "h2"})
    (waiting,) = a.waiting()
    a.decide("vm/1", waiting.shown, {"/host": "h1"}, by="ann")
    heal(a, b)
    for store in pair:
        assert not split_brains(store)
        assert store.get("vm/1").value["host"] == "h1"
        assert store.get("vm/1").value["power_state"] == "running"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (RUNS, RUNS),
        (RUNS, {**RUNS, "host": "h1"}),  # one of them names the host where it is
        (RUNS, {**STOPPED, **RUNS}),
        ({"labels": {"x": "1"}}, {**RUNS, "host": "h2"}),  # moved and started by one side
        ({"power_state": "stopped"}, {**RUNS, "host": "h2"}),
        (RUNS, {"host": "h2"}),  # it was started at one place, and not at the other
    ],
)
def test_one_place_is_no_split_brain(pair, one, other):
    assert not both(pair, one, other)


def test_a_migration_of_a_vm_that_runs_is_none_and_two_at_once_are_one(pair):
    a, b = pair
    a.put("vm/1", RUNS, merge=True)
    heal(a, b)
    a.put("vm/1", {"host": "h2"}, merge=True)
    b.put("vm/1", RUNS, merge=True)  # still runs, says who has not heard of it
    heal(a, b)
    assert not split_brains(a)
    assert a.get("vm/1").value["host"] == b.get("vm/1").value["host"] == "h2"
    assert len(both(pair, {"host": "h3"}, {"host": "h4"})) == 1


def test_two_who_start_it_while_a_third_moves_it_started_it_at_one_place(pair):
    a, b = pair
    with opened("c") as c:
        heal(a, c)
        c.put("vm/1", {"host": "h2"}, merge=True)
        both(pair, RUNS, RUNS)
        heal(a, c)
        heal(b, c)
        for store in (a, b, c):
            assert not split_brains(store)
            assert {each.value for each in store.get("vm/1").siblings} == {"h1", "h2"}  # and that is shown


def test_who_starts_it_from_an_older_reading_says_where_he_saw_it(pair):
    a, _ = pair
    seen = a.get("vm/1").clock
    a.put("vm/1", {"host": "h2"}, merge=True)
    a.put("vm/1", RUNS, merge=True, context=seen)
    assert "host" in a.get("vm/1").value
    assert a.get("vm/1").value["host"] == "h2"  # he has not seen h2, and what he saw is not here any more


@pytest.fixture
def three():
    with opened("a") as a, opened("b") as b, opened("c") as c:
        a.put("vm/1", {**STOPPED, **RUNS})
        heal(a, b)
        heal(a, c)
        yield a, b, c


def met(stores):
    for one, other in ((0, 1), (0, 2), (0, 1)):
        heal(stores[one], stores[other])
    found = [[each["id"] for each in split_brains(store)] for store in stores]
    assert found[0] == found[1] == found[2]
    return len(found[0])


def test_who_had_stopped_it_before_he_moved_it_runs_it_nowhere(three):
    a, b, c = three
    a.put("vm/1", {"power_state": "stopped"}, merge=True)
    a.put("vm/1", {"host": "h2"}, merge=True)
    b.put("vm/1", RUNS, merge=True)  # still runs, says who has not heard of it
    c.put("vm/1", {"host": "h3"}, merge=True)
    assert not met(three)


def test_two_migrations_at_once_are_seen_though_a_third_says_meanwhile_that_it_runs(three):
    a, b, c = three
    a.put("vm/1", {"host": "h2"}, merge=True)
    b.put("vm/1", RUNS, merge=True)
    c.put("vm/1", {"host": "h3"}, merge=True)
    assert met(three) == 1


@pytest.mark.parametrize("meet", [heal, ReplicatedStore.sync_with])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_told_when_it_is_one_and_only_then(seed, meet):
    """Against the definition: two places, of which each was taken by a start or by the move of a VM that ran, and of
    which none who knew it took another one, or stopped it."""
    random = Random(seed)
    for _ in range(25):
        history(random, meet)


def history(random, meet):
    stores = {name: opened(name) for name in "abc"}
    power = random.choice(["stopped", "running"])
    stores["a"].put("vm/1", {**STOPPED, "power_state": power})
    for other in "bc":
        meet(stores["a"], stores[other])
    known = {name: frozenset([0]) for name in stores}
    events = {0: ("h1" if power == "running" else None, frozenset())}  # where it runs by that, and what was known
    log = []
    for _ in range(random.randrange(2, 9)):
        if random.random() < 0.25:
            one, other = random.sample("abc", 2)
            meet(stores[one], stores[other])
            known[one] = known[other] = known[one] | known[other]
            log.append((one, other))
            continue
        name, host = random.choice("abc"), f"h{random.randrange(1, 4)}"
        present = stores[name].get("vm/1")
        if present.siblings:
            continue
        runs, here = present.value["power_state"] == "running", present.value["host"]
        wanted = random.choice(["start", "start at", "stop", "move", "move, all of it", "label"])
        if (wanted == "start" and runs) or (wanted == "move, all of it" and host == here):
            continue
        change, event = {
            "start": (RUNS, here),
            "start at": ({**RUNS, "host": host}, host),
            "stop": ({"power_state": "stopped"}, None),
            "move": ({"host": host}, host if runs else None),
            "move, all of it": ({**present.value, "host": host}, host if runs else None),
            "label": ({"labels": {"x": host}}, ""),
        }[wanted]
        stores[name].put("vm/1", change, merge=wanted != "move, all of it")
        log.append((name, wanted, host))
        if event != "":
            events[len(events)] = event, known[name]
            known[name] |= {len(events) - 1}
    for other in "bcbc":
        meet(stores["a"], stores[other])
    last = [each for each in events if not any(each in seen for _, seen in events.values())]
    places = {events[each][0] for each in last} - {None}
    for store in stores.values():
        assert bool(split_brains(store)) == (len(places) > 1), (power, log)
        store.close()


def test_where_a_vm_has_no_id_a_move_at_the_same_time_is_one_alarm_too_many(pair):
    a, b = pair
    for store in pair:
        store.put("vm/2", {"power_state": "running", "host": "h1"}, merge=True)
    heal(a, b)
    a.put("vm/2", {"host": "h2"}, merge=True)
    b.put("vm/2", {"power_state": "stopped"}, merge=True)
    b.put("vm/2", RUNS, merge=True)
    heal(a, b)
    assert [record["key"] for record in split_brains(a)] == ["vm/2"]


def test_a_move_of_a_vm_that_runs_does_not_hinder_who_stops_it(pair):
    a, b = pair
    a.put("vm/1", RUNS, merge=True)
    heal(a, b)
    assert not both(pair, {"host": "h2"}, {"power_state": "stopped"})
    assert a.get("vm/1").value == {"id": "1", "power_state": "stopped", "host": "h2"}
    assert not a.conflicts(10)


def test_a_rollback_to_another_host_moves_it_like_any_write(tmp_path):
    with opened("a", tmp_path / "a") as a, opened("b") as b:
        a.put("vm/1", {**STOPPED, **RUNS})
        point = a.point("vm/1")
        a.put("vm/1", {"host": "h2"}, merge=True)
        heal(a, b)
        a.rollback("vm/1", to=point)
        b.put("vm/1", {"power_state": "stopped"}, merge=True)
        b.put("vm/1", RUNS, merge=True)
        heal(a, b)
        for store in (a, b):
            (record,) = split_brains(store)
            assert 'running at host "h1" and "h2"' in record["reason"]
