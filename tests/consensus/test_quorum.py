"""Quorums that decide about the same thing share a member: shown over all sets, for every strategy."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.consensus.quorum import All, Flexible, Grid, Majority, One, Weighted
from nova.errors import UsageError

FIVE = ("a", "b", "c", "d", "e")
GRID = {"r1": ("a", "b", "c"), "r2": ("d", "e", "f"), "r3": ("g", "h", "i")}
STRATEGIES = {
    "majority of 5": Majority(FIVE),
    "majority of 4": Majority(FIVE[:4]),
    "all": All(FIVE),
    "one": One(FIVE),
    "weighted": Weighted({"a": 3, "b": 1, "c": 1, "d": 1, "e": 0}),
    "halves": Weighted({"a": 0.1, "b": 0.2, "c": 0.3}),
    "grid": Grid(GRID),
    "flexible 4 2": Flexible(FIVE, phase1=4, phase2=2),
}


def sets_of(members):
    return [frozenset(some) for count in range(len(members) + 1) for some in combinations(members, count)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_election_meets_every_commit(name):
    quorum = STRATEGIES[name]
    every = sets_of(quorum.members)
    elect, commit = [s for s in every if quorum.phase1(s)], [s for s in every if quorum.phase2(s)]
    assert elect
    assert commit
    assert all(one & other for one in elect for other in commit)
    for some in (elect, commit):  # more never does worse
        assert all(larger in some for smaller in some[:40] for larger in every if smaller < larger)


@pytest.mark.parametrize("name", STRATEGIES)
@given(positions=st.lists(st.integers(0, 6), min_size=9, max_size=9))
def test_what_is_committed_is_what_a_commit_quorum_stored(name, positions):
    quorum = STRATEGIES[name]
    stored = dict(zip(quorum.members, positions, strict=False))
    expected = max(p for p in range(7) if quorum.phase2([m for m in quorum.members if stored[m] >= p]))
    assert quorum.committed(stored) == expected


def test_what_each_strategy_survives():
    assert STRATEGIES["grid"].phase2("abde")  # four of nine
    assert STRATEGIES["grid"].phase1("abcdef")  # a region is gone
    assert not STRATEGIES["grid"].phase1("abcg")
    assert not STRATEGIES["halves"].phase1("c")  # 0.3 is half of 0.6, not more
    assert STRATEGIES["weighted"].phase2("ab")
    assert not STRATEGIES["weighted"].phase2("bcd")


def test_34_with_two_of_five_gone_flexible_quorums_commit_and_elect_nobody():
    quorum = STRATEGIES["flexible 4 2"]
    assert quorum.phase2("abc")
    assert not quorum.phase1("abc")
    with pytest.raises(UsageError, match="need not meet"):
        Flexible(FIVE, phase1=3, phase2=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Majority(()),
        lambda: Majority(("a", "a")),
        lambda: Weighted({"a": -1, "b": 2}),
        lambda: Weighted({"a": float("nan")}),
        lambda: Weighted({"a": 0}),
        lambda: Grid({"r1": ("a",), "r2": ("a", "b")}),
        lambda: Grid({"r1": ("a",), "r2": ()}),
    ],
)
def test_what_makes_no_quorum_is_refused(make):
    with pytest.raises(UsageError):
        make()
