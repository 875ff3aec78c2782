from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.crdt.keyspace import batch_head
from nova.errors import ConfigError, PeerError
from nova.store.core import Replica as Store
from nova.store.history import History
from nova.store.model import Put
from nova.sync.gossip import Gossip, Have
from nova.sync.retire import ALL, RetireConfig, Retirement, count_of, floors, lacking, life_of, operations, tidy
from nova.types import Outputs

# What n~1 .. n~3 wrote before n~4 began, and m~1 before m~2 did.
FINAL = {"n~1": 3, "n~2": 1, "n~3": 2, "m~1": 2}
CONFIG = RetireConfig(tick_ms=1, settle_ms=10, check_ms=1, away_ms=100)


def retired(clock, lives):
    """The same knowledge with floors, where all of it is there: `lives` says up to which one."""
    out = dict(clock)
    for node, upto in lives.items():
        below = {a: c for a, c in FINAL.items() if life_of(a)[0] == node and life_of(a)[1] <= upto}
        if below and all(clock.get(a, 0) == c for a, c in below.items()):
            out |= {f"{node}~": upto, f"{node}~+": sum(below.values())}
    tidy(out)
    return out


counts = st.fixed_dictionaries({}, optional={a: st.integers(1, c) for a, c in FINAL.items()} | {"n~4": st.just(1)})
whole = st.booleans().flatmap(lambda full: st.just(dict(FINAL)) if full else counts)
lives = st.fixed_dictionaries({}, optional={"n": st.integers(1, 3), "m": st.just(1)})


@given(whole, lives)
def test_a_floor_is_another_notation_for_the_same_counts(clock, upto):
    short = retired(clock, upto)
    for actor, final in [*FINAL.items(), ("n~4", 1), ("n~5", 1), ("x~1", 1)]:
        assert min(count_of(short, actor), final) == clock.get(actor, 0)
    for life in (1, 2, 3):
        below = sum(c for a, c in clock.items() if life_of(a)[0] == "n" and life_of(a)[1] <= life)
        if life >= short.get("n~", 0):
            assert operations(short, "n", life) == below
    assert not any(
        life_of(a)[1] <= top for a in short if life_of(a) for n, top, _ in floors(short) if n == life_of(a)[0]
    )


@given(whole, lives, whole, lives)
def test_who_lacks_something_does_not_depend_on_who_retired_whom(known, known_lives, clock, clock_lives):
    short = lacking(retired(known, known_lives), retired(clock, clock_lives))
    assert bool(short) == any(count > known.get(actor, 0) for actor, count in clock.items())


def test_names_that_are_no_lives_of_a_node_are_never_retired():
    clock = {"n~": 9, "n~+": 3, "a~n~": 9}
    for actor in ("n", "n~", "n~+", "n~x", "n~-1", "n~\u0663", "n~10", "n~" + "1" * 30):
        assert life_of(actor) is None or count_of(clock, actor) == 0
    assert count_of(clock, "n~0") == count_of(clock, "n~9") == count_of(clock, "a~n~9") == ALL
    assert count_of(clock, "a~9") == 0


class Replica:
    def __init__(self, clock):
        self.known = clock
        self.retired = []

    def clock(self):
        return self.known

    def retire(self, node, upto, total):
        self.retired.append((node, upto, total))
        return Outputs()


def core(clocks, clock=None):
    replica = Replica({"n~": 1, "n~+": 5, "n~2": 3, "n~3": 1, "n~4": 9, "m~1": 4} if clock is None else clock)
    return replica, Retirement("n", 4, replica, clock_of=lambda node: clocks.get(node, {}), config=CONFIG)


def ticks(retirement, count):
    for _ in range(count):
        retirement.tick()


DONE = [("n", 3, 9)]


def test_a_node_retires_its_earlier_lives_once_every_member_has_told_that_it_has_them():
    clocks = {"m": {"n~2": 3, "n~3": 1}}
    replica, retirement = core(clocks)
    retirement.set_members({"n": True, "m": True, "o": True})
    ticks(retirement, 50)
    assert retirement.waits_for() == ["o"]
    clocks["o"] = {"n~2": 3}
    ticks(retirement, 50)
    assert not replica.retired
    clocks["o"] = {"n~2": 3, "n~3": 1}
    ticks(retirement, 1)
    assert replica.retired == DONE


def test_one_that_is_suspected_or_dead_blocks_until_it_has_been_dead_for_long():
    replica, retirement = core({})
    retirement.set_members({"m": True})
    ticks(retirement, 500)
    retirement.set_members({"m": False})
    ticks(retirement, 50)
    retirement.set_members({"m": False})
    ticks(retirement, 49)
    assert not replica.retired
    ticks(retirement, 1)
    assert replica.retired == DONE


def test_a_dead_member_that_is_back_blocks_again():
    replica, retirement = core({})
    retirement.set_members({"m": False})
    ticks(retirement, 90)
    retirement.set_members({"m": True})
    ticks(retirement, 500)
    assert not replica.retired
    retirement.set_members({"m": False})
    ticks(retirement, 99)
    assert not replica.retired


def test_each_change_of_the_view_begins_the_wait_anew():
    replica, retirement = core({name: {"n~2": 3, "n~3": 1} for name in "mo"})
    retirement.set_members({"m": True})
    ticks(retirement, 9)
    retirement.set_members({"m": True, "o": True})
    ticks(retirement, 9)
    retirement.set_members({"o": True})
    ticks(retirement, 9)
    assert not replica.retired
    ticks(retirement, 1)
    assert replica.retired == DONE


def test_one_who_has_more_of_an_earlier_life_than_the_node_itself_blocks():
    replica, retirement = core({"m": {"n~2": 3, "n~3": 2}})
    retirement.set_members({"m": True})
    ticks(retirement, 500)
    assert retirement.waits_for() == ["m"]
    assert not replica.retired


def test_there_is_nothing_to_retire_where_nothing_was_written():
    replica, retirement = core({}, {"n~4": 3, "m~1": 2, "n~": 2, "n~+": 3})
    ticks(retirement, 50)
    assert not replica.retired
    with pytest.raises(ConfigError, match="tick_ms"):
        RetireConfig(tick_ms=0)


def test_batches_of_the_retired_are_not_served_and_not_missed():
    history = History(1_000)
    history.add("n~1", 1, 2, b"a")
    history.add("m~1", 1, 1, b"b")
    history.forget(["n~1"])
    assert history.size_bytes == 1
    mine = {"n~": 1, "n~+": 2, "m~1": 1}
    assert history.since({"n~1": 2}, mine, 100) == [b"b"], "has all, and only has to hear that it is all"
    assert history.since({"n~": 1, "n~+": 2}, mine, 100) == [b"b"]
    assert history.since({"n~1": 1}, mine, 100) is None, "needs a state"
    assert history.since({"m~": 1, "m~+": 1, "n~": 1, "n~+": 2}, mine, 100) == []


def told(clock):
    """A store `a~2` that holds one operation of m~1 hears this clock; what it knows then."""
    writer = Store("m", wall_ns=lambda: 1_000_000_000)
    writer.put(Put("k", 1))
    store = Store("a", incarnation=2, wall_ns=lambda: 1_000_000_000)
    gossip = Gossip("a", store, head=batch_head, region="r", random=random.Random(1))
    gossip.set_peers({"m": "r"})
    out = store.receive(writer.turn().persist[0][1:])
    out.extend(gossip.step("m", Have(clock)))
    for event in out.apply:
        store.applied(event)
    assert store.clock() == store.space.clock
    return store.clock()


@pytest.mark.parametrize(
    "clock",
    [
        {"m~": 1},
        {"m~+": 1},
        {"m~": 1, "m~+": 2},
        {"m~": 0, "m~+": 1},
        {"m~": 2**64 - 1, "m~+": 1},
        {"m~": 2**48 - 1, "m~+": 1},
        {"m~": 1, "m~+": 2**64 - 1},
        {"~": 1, "~+": 1, "": 3},
    ],
)
def test_a_floor_that_does_not_add_up_changes_nothing(clock):
    assert told(clock) == {"m~1": 1}


def test_a_floor_that_adds_up_is_taken_over_where_it_is_heard():
    assert told({"m~": 1, "m~+": 1}) == {"m~": 1, "m~+": 1}


def test_nobody_retires_another_one_that_runs():
    with pytest.raises(PeerError, match="a~2 is retired"):
        told({"a~": 2})
