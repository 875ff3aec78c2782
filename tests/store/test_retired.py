"""A keyspace without the actors that will never write again: the same rows, the same answers, a shorter clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.crdt.keyspace import Keyspace, batch_head
from nova.errors import PeerError, UnavailableError
from tests.models.keyspace import live
from tests.store.test_keyspace import KEYS, PATHS, Fleet, exchange, rows_of

ALL = 2**48 - 1


def put(space: Keyspace, key: str, value: bytes, stamp: int = 1, context: dict[str, int] | None = None) -> None:
    space.write(key, 0, [("", value)], [], False, context, stamp)


def batch_of(space: Keyspace) -> bytes:
    closed = space.close_batch()
    assert closed is not None
    return closed[2]


def restarted(space: Keyspace) -> Keyspace:
    node, _, life = space.actor.rpartition("~")
    again = Keyspace(f"{node}~{int(life) + 1}")
    again.join(space.state())
    return again


def take_over(space: Keyspace, clock: dict[str, int]) -> None:
    for entry, upto in clock.items():
        if entry.endswith("~"):
            space.retire(entry[:-1], upto, clock.get(entry + "+", 0))


def pair() -> tuple[Keyspace, Keyspace, list[bytes]]:
    """a~2, which has retired a~1, and b~1, which has not; b has all but the last batch of a~1."""
    a, b = Keyspace("a~1"), Keyspace("b~1")
    batches = []
    for number in range(3):
        put(a, f"k{number}", b"%d" % number, number + 1)
        batches.append(batch_of(a))
    for batch in batches[:2]:
        b.receive(batch)
    a = restarted(a)
    assert a.retire("a", 1, 3)
    return a, b, batches


def test_a_floor_takes_the_place_of_the_actors_below_it():
    a = Keyspace("a~1")
    put(a, "k", b"1")
    a.close_batch()
    a = restarted(a)
    put(a, "k", b"2")
    put(a, "l", b"3")
    a.close_batch()
    a = restarted(a)
    before = a.revision, a.digest, rows_of(a)
    assert a.clock == {"a~1": 1, "a~2": 2}
    assert a.retire("a", 2, 3)
    assert a.clock == {"a~": 2, "a~+": 3}
    assert a.count("a~1") == a.count("a~2") == ALL
    assert a.count("a~3") == 0
    assert (a.revision, a.digest, rows_of(a)) == before
    assert not a.retire("a", 2, 3), "raised already"
    copy = Keyspace("copy~1")
    copy.join(a.state())
    assert (copy.clock, copy.revision, copy.digest, rows_of(copy)) == (a.clock, *before)


def test_only_who_has_everything_below_a_floor_takes_it_over():
    _, b, batches = pair()
    assert b.operations("a", 1) == 2
    assert not b.retire("a", 1, 3)
    assert b.clock == {"a~1": 2}
    b.receive(batches[2])
    assert b.retire("a", 1, 3)
    assert b.clock == {"a~": 1, "a~+": 3}
    assert b.receive(batches[2]) == [], "a batch of a retired actor is a duplicate"


def test_an_operation_waits_for_the_floor_below_it():
    a, b, batches = pair()
    put(a, "k2", b"new", 9)
    later = batch_of(a)
    assert dict(batch_head(later).deps) == {"a~": 1, "a~+": 3}
    assert b.receive(later) is None
    b.receive(batches[2])
    assert b.receive(later) is None, "all is here, but nobody said yet that it is all"
    assert b.retire("a", 1, 3)
    assert b.receive(later)
    assert rows_of(b) == rows_of(a)


@pytest.mark.parametrize("ranges", [False, True])
def test_one_who_is_behind_a_floor_catches_up_by_a_state(ranges):
    a, b, _ = pair()
    put(b, "own", b"kept")
    b.close_batch()
    exchange(b, a, ranges)
    exchange(a, b, ranges)
    assert a.clock == b.clock == {"a~": 1, "a~+": 3, "b~1": 1}
    assert rows_of(a) == rows_of(b)
    assert a.digest == b.digest


@pytest.mark.parametrize("first", ["old joins new", "new joins old"])
def test_what_was_removed_does_not_come_back_from_one_who_still_counts_its_actor(first):
    a, b, _ = pair()
    a.write("k0", 0, [], [], True, None, 7)
    a.close_batch()
    if first == "new joins old":
        a.join(b.state())
        assert a.get("k0") is None
        assert "a~1" not in a.clock
    b.join(a.state())
    assert b.get("k0") is None
    assert b.clock == a.clock
    assert b.digest == a.digest


def test_a_row_of_a_retired_actor_can_be_read_removed_and_replaced():
    a, b, _ = pair()
    b.join(a.state())
    assert a.get("k0").clock == {"a~1": 1}
    put(a, "k0", b"new", 7, context=a.get("k0").clock)
    a.write("k1", 0, [], [], True, None, 8)
    b.receive(batch_of(a))
    for space in (a, b):
        assert [row.value for row in space.get("k0").at("")] == [b"new"]
        assert space.get("k1") is None
        assert space.get("k2").single.write.dot == ("a~1", 3)
    assert a.digest == b.digest


def test_a_write_that_did_not_see_a_row_of_a_retired_actor_stands_beside_it():
    a, _, _ = pair()
    put(a, "k0", b"blind", 7, context={})
    assert sorted(row.value for row in a.get("k0").at("")) == [b"0", b"blind"]
    put(a, "k0", b"blinder", 8, context={"a~0": 5})  # an actor that is retired, and known only by that
    assert len(a.get("k0").at("")) == 3


def test_contexts_do_not_repeat_the_retired_whose_rows_are_gone():
    a = Keyspace("a~1")
    for _ in range(20):
        put(a, "k", b"x")
        a.close_batch()
        life = int(a.actor[2:])
        a = restarted(a)
        a.retire("a", life, a.operations("a", life))
    put(a, "k", b"y")
    assert a.get("k").clock == {"a~20": 1, "a~21": 1}
    a.close_batch()
    a = restarted(a)
    assert len(a.actors) <= 6


def test_a_context_may_name_the_retired_but_not_the_future():
    a, _, _ = pair()
    put(a, "k0", b"1", 7, context={"a~1": 3, "a~0": 9})
    with pytest.raises(UnavailableError, match="knows event 1 of a~3"):
        put(a, "k0", b"2", 8, context={"a~3": 1})


def test_one_who_runs_from_an_old_copy_of_a_disk_is_told_so():
    a, _, _ = pair()
    copy = Keyspace("a~1")
    with pytest.raises(PeerError, match=r"a~1 is retired.*old copy"):
        copy.join(a.state())
    with pytest.raises(PeerError, match=r"a~1 is retired.*old copy"):
        copy.retire("a", 1, 3)
    assert copy.clock == {}


def test_a_floor_that_counts_less_than_is_here_is_refused_before_anything_changes():
    a, b = Keyspace("a~1"), Keyspace("b~1")
    for _ in range(2):
        put(a, "k", b"1")
        b.receive(batch_of(a))
    put(b, "l", b"1")
    b.close_batch()
    shorter = Keyspace("a~1")
    put(shorter, "k", b"1")
    shorter.close_batch()
    shorter = restarted(shorter)
    assert shorter.retire("a", 1, 1)
    before = b.clock, rows_of(b)
    with pytest.raises(PeerError, match="a wrote 1 operations up to its incarnation 1, but 2 are here"):
        b.join(shorter.state())
    assert (b.clock, rows_of(b)) == before


def test_nobody_writes_under_the_name_of_a_floor():
    space, hostile = Keyspace("b~1"), Keyspace("a~")
    put(hostile, "k", b"1")
    with pytest.raises(PeerError, match="the name of no actor"):
        space.receive(batch_of(hostile))


steps = st.lists(
    st.tuples(
        st.integers(0, 2),  # replica
        st.sampled_from(["write"] * 4 + ["close", "deliver", "deliver", "state", "restart", "retire", "hear", "hear"]),
        st.sampled_from(KEYS),
        st.dictionaries(st.sampled_from(PATHS), st.binary(min_size=1, max_size=2), max_size=2),
        st.lists(st.sampled_from(PATHS), max_size=2, unique=True),
        st.booleans(),
        st.integers(0, 30),
    ),
    max_size=40,
)


def forward(fleet: Fleet, floors: dict[str, int]) -> None:
    """Deliver everything to everybody; whoever has all below a floor hears of it, the others get a state."""
    for i, space in enumerate(fleet.spaces):
        fleet.close(i)
        for number in list(range(len(fleet.batches))) * 2:
            take_over(space, floors)
            fleet.deliver(i, number)
    for i in range(3):
        for j in range(3):
            exchange(fleet.spaces[i], fleet.spaces[j], ranges=(i + j) % 2 == 0)
            fleet.ops[i] |= fleet.ops[j]


@given(steps)
def test_rows_are_what_the_definition_says_whoever_has_retired_whom(script):
    fleet = Fleet(3)
    floors: dict[str, int] = {}
    for i, what, key, puts, drops, flag, number in script:
        space = fleet.spaces[i]
        if what == "write":
            fleet.write(i, key, puts, drops, clear=not puts and flag, stale=flag and number % 2 == 0)
        elif what == "deliver" and fleet.batches:
            fleet.deliver(i, number % len(fleet.batches))
        elif what != "write":
            fleet.close(i)
        if what == "state":
            other = number % 3
            fleet.close(other)
            exchange(space, fleet.spaces[other])
            fleet.ops[i] |= fleet.ops[other]
        elif what == "restart":
            fleet.spaces[i] = restarted(space)
        elif what == "retire":  # without asking anybody: it costs states, and nothing else
            life = int(space.actor[3:])
            space.retire(f"n{i}", life - 1, space.operations(f"n{i}", life - 1))
            floors |= {entry: count for entry, count in space.clock.items() if entry.startswith(f"n{i}~")}
        elif what == "hear":
            take_over(space, floors)
        fleet.check()
    forward(fleet, floors)
    fleet.check()
    assert len({space.digest for space in fleet.spaces}) == 1
    assert len({tuple(sorted(space.clock.items())) for space in fleet.spaces}) == 1
    assert len({space.revision for space in fleet.spaces}) == 1
    assert rows_of(fleet.spaces[0]) == live(set().union(*fleet.ops))
