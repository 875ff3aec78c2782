"""The resolver of a swarm: laws over any grouping of versions and results, and what each strategy keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import permutations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict.detect import canonical, same
from nova.conflict.resolver import ConflictResolver, StateVersion
from nova.errors import LimitError, PeerError, UsageError

AGENTS = ("ann", "bob", "cyd")
STRATEGIES = ("lww", "vector", "crdt")
amounts = st.integers(0, 9) | st.sampled_from([0.1, 0.2, 1.0, 2.5])
items = st.integers(0, 3) | st.booleans() | st.sampled_from(["x", 1.0, None])
values = {
    "counter": amounts | st.dictionaries(st.sampled_from(AGENTS), amounts, min_size=1),
    "set": st.lists(items, max_size=3) | st.frozensets(items, max_size=3),
    "map": st.dictionaries(st.sampled_from("pqr"), items, max_size=3),
    "register": items,
}


@st.composite
def versions(draw, count_min=1):
    """Some versions of one key whose clocks and wall clocks need not agree."""
    crdt_type = draw(st.sampled_from(sorted(values)))
    made = []
    for number in range(draw(st.integers(count_min, 5))):
        agent = draw(st.sampled_from(AGENTS))
        clock = draw(st.dictionaries(st.sampled_from(AGENTS), st.integers(1, 3), max_size=3))
        metadata = {"crdt_type": crdt_type, f"note{number}": draw(items)}
        made.append(StateVersion("k", draw(values[crdt_type]), clock, draw(st.integers(0, 3)), agent, metadata))
    return made


def alike(a: StateVersion, b: StateVersion) -> bool:
    return a.encode() == b.encode()


@given(versions(), st.sampled_from(STRATEGIES), st.randoms(use_true_random=False))
def test_order_and_repetition_make_no_difference(given_, strategy, chance):
    resolver = ConflictResolver(strategy)
    once = resolver.resolve("k", given_)
    shuffled = given_ * 2
    chance.shuffle(shuffled)
    assert alike(resolver.resolve("k", shuffled), once)
    assert alike(resolver.resolve("k", [once]), once)
    assert alike(resolver.resolve("k", [once, *shuffled, once]), once)


@given(versions(2), st.sampled_from(STRATEGIES), st.data())
def test_grouping_makes_no_difference(given_, strategy, data):
    """Associative, and more: results of results, over groups that overlap."""
    resolver = ConflictResolver(strategy)
    groups = data.draw(st.lists(st.lists(st.sampled_from(given_), min_size=1, max_size=3), max_size=3))
    nested = [resolver.resolve("k", group) for group in groups]
    nested += [resolver.resolve("k", nested[:2])] if nested else []
    assert alike(resolver.resolve("k", [*nested, *given_]), resolver.resolve("k", given_))


@given(versions(), st.sampled_from(STRATEGIES))
def test_a_result_covers_its_inputs_and_keeps_all_their_metadata(given_, strategy):
    resolver = ConflictResolver(strategy)
    found = resolver.resolve("k", [resolver.resolve("k", given_[:1]), *given_])
    notes = {name for version in given_ for name in version.metadata}
    assert set(found.metadata) == notes
    kept = [(source.origin, source.metadata) for source in found.sources] or [(found.agent_id, found.metadata)]
    for version in given_:
        assert found.version.dominates(version.version) or found.version == version.version
        assert any(agent == version.agent_id and same(m, version.metadata) for agent, m in kept)


@given(versions(), st.sampled_from(STRATEGIES))
def test_a_result_goes_round_through_bytes_and_back_into_the_resolver(given_, strategy):
    resolver = ConflictResolver(strategy)
    found = resolver.resolve("k", given_)
    back = StateVersion.decode(found.encode())
    assert alike(back, found)
    assert same(back.value, found.value)
    assert back.version == found.version
    assert alike(resolver.resolve("k", [back, *given_]), found)


@given(versions())
def test_what_another_supersedes_does_not_win_however_new_its_wall_clock(given_):
    winner = ConflictResolver("vector").resolve("k", given_)
    writers = [v for v in given_ if v.agent_id == winner.agent_id and same(v.value, winner.value)]
    assert any(not any(v.version < other.version for other in given_) for v in writers)


@given(versions())
def test_a_counter_is_the_sum_of_what_each_agent_was_seen_with_at_most(given_):
    counted = [v for v in given_ if v.metadata["crdt_type"] == "counter"]
    if not counted:
        return
    most: dict[str, float] = {}
    for version in counted:
        parts = version.value if isinstance(version.value, dict) else {version.agent_id: version.value}
        for agent, amount in parts.items():
            most[agent] = max(amount, most.get(agent, 0))
    assert ConflictResolver("crdt").resolve("k", counted).value == pytest.approx(sum(most.values()))


@given(versions())
def test_conflicts_are_the_concurrent_pairs_of_what_nothing_supersedes(given_):
    resolver = ConflictResolver()
    pairs = resolver.detect_conflicts(given_)
    unique = {(v.agent_id, v.version, v.timestamp, canonical(v.value), canonical(v.metadata)): v for v in given_}
    maximal = [v for v in unique.values() if not any(v.version < other.version for other in given_)]
    expected = sum(
        1
        for i, a in enumerate(maximal)
        for b in maximal[:i]
        if a.version.concurrent(b.version) or (a.version == b.version and not same(a.value, b.value))
    )
    assert len(pairs) == expected
    assert all(not a.version < b.version and not b.version < a.version for a, b in pairs)
    shuffled = resolver.detect_conflicts(given_[::-1])
    assert [(a.encode(), b.encode()) for a, b in shuffled] == [(a.encode(), b.encode()) for a, b in pairs]


# -- by example


def version(value, clock, at, agent, **metadata):
    return StateVersion("k", value, clock, at, agent, metadata)


def test_lww_goes_by_time_then_agent():
    a, b, c = version("a", 1, 5, "a"), version("b", 1, 9, "b"), version("c", 1, 9, "c")
    for order in permutations((a, b, c)):
        assert ConflictResolver("lww").resolve("k", order).value == "c"


def test_vector_goes_by_causality_first():
    old, new = version("old", {"a": 1}, 99, "a"), version("new", {"a": 1, "b": 1}, 1, "b")
    assert ConflictResolver("vector").resolve("k", [old, new]).value == "new"
    assert ConflictResolver("lww").resolve("k", [old, new]).value == "old"
    assert ConflictResolver().detect_conflicts([old, new]) == []
    aside = version("aside", {"c": 1}, 5, "c")
    assert ConflictResolver().detect_conflicts([old, new, aside]) == [(new, aside)]


def test_a_dominated_write_does_not_come_back_through_a_result():
    """The result of a and b must not hide from c, which supersedes b, that a is not superseded."""
    a, b = version("a", {"a": 1}, 1, "a"), version("b", {"b": 1}, 9, "b")
    c = version("c", {"b": 2}, 0, "b")
    resolver = ConflictResolver("vector")
    assert resolver.resolve("k", [resolver.resolve("k", [a, b]), c]).value == "a"


def test_a_counter_never_counts_twice():
    resolver = ConflictResolver("crdt")
    a, b = version(5, {"a": 1}, 1, "a", crdt_type="counter"), version(3, {"b": 1}, 2, "b", crdt_type="counter")
    once = resolver.resolve("k", [a, b])
    assert once.value == 8
    assert resolver.resolve("k", [once, a, b]).value == 8
    assert resolver.resolve("k", [once, once]).value == 8
    later = version(7, {"a": 2, "b": 1}, 3, "a", crdt_type="counter")
    assert resolver.resolve("k", [once, later]).value == 10
    assert resolver.resolve("k", [version({"a": 4, "b": 6}, 1, 1, "c", crdt_type="counter"), a]).value == 11


def test_sets_unite_and_maps_merge_by_key():
    resolver = ConflictResolver("crdt")
    sets = [version(["x"], {"a": 1}, 1, "a", crdt_type="set"), version(["y"], {"b": 1}, 2, "b", crdt_type="set")]
    assert resolver.resolve("k", sets).value == ["x", "y"]
    assert resolver.resolve("k", [version({True}, 1, 1, "a", crdt_type="set"),
                                  version({1}, 1, 1, "b", crdt_type="set")]).value == [1, True]  # fmt: skip
    maps = [
        version({"p": 1, "q": 1}, {"a": 1}, 9, "a", crdt_type="map"),
        version({"p": 2}, {"a": 1, "b": 1}, 1, "b", crdt_type="map"),
        version({"q": 3}, {"c": 1}, 10, "c", crdt_type="map"),
    ]
    assert resolver.resolve("k", maps).value == {"p": 2, "q": 3}


def test_notes_on_a_result_stay_and_a_write_over_one_counts_as_a_write():
    a, b = version(1, {"a": 1}, 1, "a", crdt_type="counter"), version(2, {"b": 1}, 2, "b", crdt_type="counter")
    resolver = ConflictResolver("crdt")
    once = resolver.resolve("k", [a, b])
    noted = msgspec.structs.replace(once, metadata={**once.metadata, "seen": "by cyd"})
    again = resolver.resolve("k", [noted, a])
    assert (again.value, again.metadata["seen"]) == (3, "by cyd")
    assert alike(resolver.resolve("k", [again, noted]), again)
    changed = msgspec.structs.replace(once, value=99)
    with pytest.raises(UsageError, match="is not what its sources make"):
        resolver.resolve("k", [changed])
    over = msgspec.structs.replace(once, value=99, version=once.version.increment("c"), agent_id="c")
    assert ConflictResolver("vector").resolve("k", [over, a, b]).value == 99


def test_time_may_be_a_datetime_with_a_zone():
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert version(1, 1, moment, "a").timestamp == moment.timestamp()
    assert version(1, 0, 1, "a").version == VectorClock({})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ConflictResolver("newest"), "strategy is 'newest'; it is one of lww, vector, crdt"),
        (lambda: ConflictResolver(sources_max=0), "give 1 or more"),
        (lambda: version(1, -1, 1, "a"), "give a VectorClock"),
        (lambda: version(1, True, 1, "a"), "give a VectorClock"),
        (lambda: version(1, 1, float("nan"), "a"), "timestamp is nan"),
        (lambda: version(1, 1, datetime(2026, 1, 1), "a"), "with a zone"),
        (lambda: version(1, 1, 1, ""), "name the agent"),
        (lambda: StateVersion("k", 1, VectorClock(), 1, "a", 7), "metadata is 7"),
        (lambda: ConflictResolver().resolve("k", []), "0 versions of 'k'"),
        (lambda: ConflictResolver().resolve("j", [version(1, 1, 1, "a")]), "resolve each key alone"),
        (lambda: ConflictResolver("crdt").resolve("k", [version(1, 1, 1, "a")]), "crdt_type of 'k' is null"),
        (lambda: ConflictResolver("crdt").resolve("k", [version(-1, 1, 1, "a", crdt_type="counter")]), "from 0"),
        (lambda: ConflictResolver("crdt").resolve("k", [version(1, 1, 1, "a", crdt_type="set")]), "a set or a list"),
        (lambda: ConflictResolver("crdt").resolve("k", [version(1, 1, 1, "a", crdt_type="map")]), "texts as keys"),
        (lambda: version(object(), 1, 1, "a").encode(), "cannot be encoded"),
    ],
)
def test_what_is_wrong_is_refused_with_the_value_and_the_mend(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_there_is_a_limit_to_what_a_result_carries():
    many = [version(i, {f"a{i}": 1}, i, f"a{i}") for i in range(5)]
    with pytest.raises(LimitError, match="5 writes are behind 'k'; the limit is 4"):
        ConflictResolver(sources_max=4).resolve("k", many)


@given(versions(), st.data())
def test_damaged_bytes_are_refused(given_, data):
    good = ConflictResolver("vector").resolve("k", given_).encode()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    for wrong in (bad, good[:at], good + b"\0"):
        with pytest.raises(PeerError):
            StateVersion.decode(wrong)
