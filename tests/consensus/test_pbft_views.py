"""What a new view orders anew: the decision procedure by itself, and against all that a run can have left behind."""

from __future__ import annotations

import random

import pytest

from nova.consensus.pbft.base import quorum_of
from nova.consensus.pbft.messages import NULL, Claim, Stable, ViewChange
from nova.consensus.pbft.views import chosen, newest_stable

X, Y = b"x" * 32, b"y" * 32


def change(*claims, also=(), stable=0, view=9):
    """A view change: what it prepared it accepted; `also` it accepted only."""
    return ViewChange(view, Stable(stable), tuple(claims), (*claims, *also))


def choose(*changes, count=4):
    return chosen(changes, f=(count - 1) // 3, quorum=quorum_of(count))


def test_nothing_prepared_leaves_nothing():
    assert choose(change(), change(), change(also=[Claim(1, 0, X)])) == ()


def test_what_was_prepared_once_and_accepted_by_f_plus_1_is_chosen():
    one = Claim(1, 0, X)
    assert choose(change(one), change(also=[one]), change()) == ((1, X),)


def test_a_claim_that_nobody_else_accepted_stays_open_until_a_quorum_says_nothing():
    one = Claim(1, 0, X)
    assert choose(change(one), change(), change()) is None
    assert choose(change(one), change(), change(), change()) == ((1, NULL),)


def test_the_later_view_wins():
    first, later = Claim(1, 0, X), Claim(1, 2, Y)
    assert choose(change(first), change(later), change(also=[later])) == ((1, Y),)


def test_a_claim_of_a_later_view_stands_against_an_earlier_one():
    first, later = Claim(1, 0, X), Claim(1, 2, Y)
    # Y lacks vouchers here, and X is opposed by Y: neither is chosen, nor null.
    assert choose(change(first), change(later), change(also=[first])) is None


def test_who_accepted_it_only_in_an_earlier_view_does_not_vouch():
    later = Claim(1, 2, Y)
    assert choose(change(later), change(also=[Claim(1, 1, Y)]), change()) is None
    assert choose(change(later), change(also=[Claim(1, 3, Y)]), change()) == ((1, Y),)


def test_gaps_are_null_and_the_newest_stable_checkpoint_is_the_floor():
    claim = Claim(103, 0, X)
    changes = [change(claim, stable=100), change(Claim(99, 0, Y), claim, stable=0), change()]
    assert newest_stable(changes).position == 100
    assert choose(*changes) == ((101, NULL), (102, NULL), (103, X))


@pytest.mark.parametrize("count", [4, 5, 6, 7])
def test_what_a_quorum_prepared_is_chosen_whatever_liars_claim(count):
    """A value that was committed is never lost: any quorum of view changes, up to f of them made up."""
    f, quorum = (count - 1) // 3, quorum_of(count)
    chance = random.Random(count)
    for _ in range(3_000):
        committed = Claim(1, 3, X)
        members = list(range(count))
        chance.shuffle(members)
        liars, correct = members[:f], members[f:]
        prepared = correct[: quorum - f]  # with the liars they were a quorum
        accepted = correct
        said = {}
        for member in correct:
            older = [Claim(1, 1, Y)] if chance.random() < 0.3 else []
            if member in prepared:
                said[member] = change(committed, also=older)
            else:
                said[member] = change(*older, also=[committed] if member in accepted else [])
        for member in liars:
            made_up = Claim(1, chance.randrange(9), chance.choice([X, Y]))
            said[member] = chance.choice([change(), change(made_up), change(also=[made_up])])
        voters = chance.sample(members, chance.randrange(quorum, count + 1))
        result = choose(*(said[member] for member in voters), count=count)
        assert result in (((1, X),), None)
        # All correct ones together always decide.
        everybody = [said[member] for member in correct]
        assert choose(*everybody, count=count) == ((1, X),)
