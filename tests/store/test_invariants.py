"""Truths about many keys of a store: found where they break, told once, over in time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.errors import ConfigError
from nova.store import ReplicatedStore, heal
from nova.store.core import StoreConfig
from nova.store.invariants import InvariantIndex, StoreInvariant

CAPACITY = StoreInvariant("sum_le", "vm/", "/cpu", by="/host", limit=8)
NAMES = StoreInvariant("unique", "vm/", "/name", name="names")
HOSTS = StoreInvariant("reference", "vm/", "/host", to="host/")


def opened(node, data=None, invariants=()):
    config = StoreConfig(kinds={"vm/": "vm", "host/": "map"}, invariants=invariants)
    return ReplicatedStore(data, node=node, config=config)


@pytest.fixture
def pair():
    with opened("a", invariants=(CAPACITY,)) as a, opened("b", invariants=(CAPACITY,)) as b:
        yield a, b


def broken(store):
    return [c for c in store.conflicts(1_000) if "invariant" in c["types"] and c["status"] == "pending"]


def counted(store, name):
    return store.replica.conflicts.metrics._made[name].value


def test_a_merge_that_overcommits_a_host_is_found_on_both_sides_and_is_over_when_it_holds(pair):
    a, b = pair
    a.put("vm/1", {"id": "1", "cpu": 5, "host": "h1"})
    b.put("vm/2", {"id": "2", "cpu": 4, "host": "h1"})
    assert not broken(a)
    assert not broken(b)
    heal(a, b)
    for store in pair:
        (record,) = broken(store)
        assert record["broken"] == [["sum_le vm/*/cpu", record["broken"][0][1]]]
        assert "adds up to 9, over the limit of 8" in record["reason"]
        assert record["contentions"][0]["owners"] == ["vm/1", "vm/2"]
        assert counted(store, "dwcp_invariant_violations_total") == 1
        assert "over the limit of 8" in store.why(record["key"])["text"]
    a.put("vm/2", {"host": "h2"}, merge=True)
    heal(a, b)
    assert not broken(a)
    assert not broken(b)


def test_what_is_broken_is_told_once_and_does_not_follow_every_edit(pair):
    a, _ = pair
    a.put("vm/1", {"id": "1", "cpu": 9, "host": "h1"})
    assert len(broken(a)) == 1
    a.put("vm/1", {"labels": {"x": "1"}}, merge=True)
    a.put("vm/1", {"cpu": 12}, merge=True)
    a.put("vm/2", {"id": "2", "cpu": 1, "host": "h1"})
    assert len(broken(a)) == len(a.conflicts(100)) == 1
    a.put("vm/1", {"cpu": 2}, merge=True)
    assert not broken(a)
    a.put("vm/1", {"cpu": 8}, merge=True)
    assert len(broken(a)) == 1  # broken anew: told anew
    a.delete("vm/1")
    assert not broken(a)


def test_it_is_still_known_after_a_restart(tmp_path):
    with opened("a", tmp_path / "a", invariants=(CAPACITY,)) as store:
        store.put("vm/1", {"id": "1", "cpu": 9, "host": "h1"})
    with opened("a", tmp_path / "a", invariants=(CAPACITY,)) as store:
        assert len(broken(store)) == 1
        store.put("vm/1", {"cpu": 3}, merge=True)
        assert not broken(store)


def test_two_keys_with_one_name_and_a_name_of_nothing():
    with opened("a", invariants=(NAMES, HOSTS)) as store:
        store.put("host/h1", {"slots": 4})
        store.put("vm/1", {"id": "1", "name": "web", "host": "h1"})
        assert not broken(store)
        store.put("vm/2", {"id": "2", "name": "web"})
        assert [each["broken"][0][0] for each in broken(store)] == ["names"]
        store.put("vm/2", {"name": "db"}, merge=True)
        store.put("vm/2", {"host": "h9"}, merge=True)
        assert "no such key" in broken(store)[0]["reason"]
        store.put("host/h9", {"slots": 1})
        assert not broken(store)
        store.delete("host/h1")
        assert "/host names host/h1" in broken(store)[0]["reason"]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.none() | st.tuples(st.integers(0, 9), st.sampled_from("xyz"))),
        max_size=60,
    )
)
def test_the_index_says_what_a_count_over_everything_says(changes):
    rules = (StoreInvariant("sum_le", "k/", "/n", by="/g", limit=10), StoreInvariant("unique", "k/", "/n"))
    state = {}
    index = InvariantIndex(rules, lambda key: key in state)
    for name, change in changes:
        key = f"k/{name}"
        if change is None:
            state.pop(key, None)
        else:
            state[key] = {"n": change[0], "g": change[1]}
        index.update(key, state.get(key))
        groups, values = {}, {}
        for value in state.values():
            groups[value["g"]] = groups.get(value["g"], 0) + value["n"]
            values[value["n"]] = values.get(value["n"], 0) + 1
        expected = {f"sum_le:k/*/n@{group}" for group, total in groups.items() if total > 10}
        expected |= {f"unique:k/*/n@{value}" for value, count in values.items() if count > 1}
        assert {each.subject for each in index.everything()} == expected


@pytest.mark.parametrize("by", ["", "/host"])
def test_a_write_that_breaks_nothing_looks_at_no_other_key(by):
    count = 2_000
    index = InvariantIndex((StoreInvariant("sum_le", "vm/", "/cpu", by=by, limit=count),), lambda key: True)
    for number in range(count):
        index.update(f"vm/{number}", {"cpu": 1, "host": f"h{number}"})  # without `by`, just at the limit
    groups = index._groups[0]
    groups.members = {group: _Watched(members) for group, members in groups.members.items()}
    assert index.update("vm/7", {"cpu": 0.5, "host": "h7"}) == []
    assert index.update("vm/7", {"cpu": 1, "host": "h7"}) == []


class _Watched(dict):
    """Members that nobody may go through."""

    def __iter__(self):
        raise AssertionError("all members were looked at")

    keys = values = items = __iter__


def test_what_was_added_and_taken_away_again_leaves_nothing_behind():
    index = InvariantIndex((StoreInvariant("sum_le", "k/", "/n", limit=0.3),), lambda key: True)
    index.update("k/1", {"n": 0.1})
    assert [index.update("k/2", {"n": number}) for number in (1e300, 0.2)][1] == []  # of floats: 0.1 is lost in 1e300
    index.update("k/2", None)
    assert index.update("k/3", {"n": 0.1}) == []
    assert index.update("k/4", {"n": 0.1}) == []  # three times 0.1 is 0.3
    assert index.update("k/5", {"n": 1e-9}) != []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "sum_le", "prefix": "a", "path": ""}, "no path"),
        ({"kind": "sum_le", "prefix": "a", "path": "cpu"}, "begins with /"),
        ({"kind": "reference", "prefix": "a", "path": "/x"}, "no `to`"),
        ({"kind": "sum_le", "prefix": "a", "path": "/x", "limit": float("nan")}, "from 0"),
    ],
)
def test_what_declares_nothing_is_refused_in_words(table, words):
    with pytest.raises(ConfigError, match=words):
        StoreInvariant(**table)
