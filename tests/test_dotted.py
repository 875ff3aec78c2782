"""Dotted version vectors: inclusion of events, and siblings that lose nothing."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.clock import CausalContext, DottedVersionVector, Order, VectorClock
from nova.errors import CorruptionError, UsageError

vectors = st.dictionaries(st.sampled_from(["a", "b", b"a", 7]), st.integers(0, 3), max_size=3)


@st.composite
def versions(draw: st.DrawFn) -> DottedVersionVector:
    vector = draw(vectors)
    if draw(st.booleans()):
        return DottedVersionVector(vector)
    actor = draw(st.sampled_from(["a", "b", b"a", 7]))
    return DottedVersionVector(vector, (actor, vector.get(actor, 0) + draw(st.integers(1, 3))))


def events(version: DottedVersionVector) -> set[tuple[object, int]]:
    """The oracle: a version is the set of events that it names."""
    out: set[tuple[object, int]] = {(actor, n) for actor, count in version.vector.items() for n in range(1, count + 1)}
    return out | ({tuple(version.dot)} if version.dot else set())


@given(versions(), versions())
@settings(max_examples=1000)
def test_order_is_inclusion_of_events(a: DottedVersionVector, b: DottedVersionVector) -> None:
    x, y = events(a), events(b)
    expected = {(1, 1): Order.EQUAL, (1, 0): Order.BEFORE, (0, 1): Order.AFTER, (0, 0): Order.CONCURRENT}[
        x <= y, y <= x
    ]
    assert a.compare(b) is expected
    assert (a < b, a <= b, a == b, a != b, a > b, a >= b) == (x < y, x <= y, x == y, x != y, x > y, x >= y)
    assert a.concurrent(b) == (expected is Order.CONCURRENT)
    if a == b:
        assert hash(a) == hash(b)


@given(versions())
def test_bytes_and_pickle_bring_it_back(version: DottedVersionVector) -> None:
    for again in (DottedVersionVector.from_bytes(version.to_bytes()), pickle.loads(pickle.dumps(version))):
        assert (again.vector, again.dot) == (version.vector, version.dot)
        assert again.to_bytes() == version.to_bytes()


def test_clients_who_did_not_see_one_another_stay_siblings() -> None:
    """The case that plain server-side version vectors get wrong: two clients write through one server."""
    write, sync, join = DottedVersionVector.write, DottedVersionVector.sync, DottedVersionVector.join
    first = write(VectorClock(), [], "server")
    second = write(VectorClock(), [first], "server")
    assert first.concurrent(second)
    both = sync([first], [second])
    assert both == [first, second]
    third = write(join(both), both, "server")
    assert sync(both, [third]) == [third]
    assert third.known_to(join([third]))
    assert not third.known_to(join(both))
    assert second.dot == ("server", 2)
    assert second.vector == VectorClock()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=12))
@settings(max_examples=400)
def test_no_version_is_lost_that_nobody_replaced(steps: list[tuple[int, int, bool]]) -> None:
    """Servers, clients and synchronizations at random beside a model that keeps all of history."""
    servers: list[list[DottedVersionVector]] = [[], [], []]
    seen: list[VectorClock] = [VectorClock()] * 3
    replaced: dict[object, set[object]] = {}  # version's dot -> dots that its writer had read
    holds: list[set[object]] = [set(), set(), set()]  # what each server ever learned of
    read: list[set[object]] = [set(), set(), set()]

    def live(server: int) -> set[object]:
        gone = set().union(*(replaced[dot] for dot in holds[server])) if holds[server] else set()
        return holds[server] - gone

    for server, other, writes in steps:
        if writes:
            version = DottedVersionVector.write(seen[other], servers[server], f"s{server}")
            servers[server] = DottedVersionVector.sync(servers[server], [version])
            replaced[version.dot] = set(read[other])
            holds[server] |= read[other] | {version.dot}
        else:
            servers[server] = DottedVersionVector.sync(servers[server], servers[other])
            holds[server] |= holds[other]
            seen[other] = DottedVersionVector.join(servers[server])
            read[other] = set(holds[server])
        assert {version.dot for version in servers[server]} == live(server)
        assert all(a.concurrent(b) for a, b in pairwise(servers[server]))


@pytest.mark.parametrize(
    ("vector", "dot", "why"),
    [
        ({"a": 3}, ("a", 3), "seen itself"),
        ({}, ("a", 0), "count from 1"),
        ({}, "a", "no dot"),
        ({}, (None, 1), "actor None"),
        ({}, ("a", 2**64), "2\\*\\*64"),
    ],
)
def test_what_is_no_version_is_refused(vector: dict[str, int], dot: object, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        DottedVersionVector(vector, dot)  # type: ignore[arg-type]


def test_an_actor_at_its_last_count_is_told() -> None:
    with pytest.raises(UsageError, match="the last one"):
        DottedVersionVector.write(VectorClock({"a": 2**64 - 1}), [], "a")


@given(versions(), st.data())
def test_hostile_bytes_are_refused(version: DottedVersionVector, data: st.DataObject) -> None:
    raw = bytearray(version.to_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptionError):
        DottedVersionVector.from_bytes(bytes(raw))


def test_actors_can_be_forgotten() -> None:
    clock = VectorClock({"a": 1, "b": 2, b"b": 3})
    assert clock.without(["b", "nobody"]) == VectorClock({"a": 1, b"b": 3})
    assert clock.without("b") == clock.without(["b"])
    assert clock.without([]) is clock
    context = CausalContext({"a": 2}, [("b", 4)])
    context.forget(["b", "nobody"])
    assert context == CausalContext({"a": 2})
    assert pickle.loads(pickle.dumps(context)) == context
