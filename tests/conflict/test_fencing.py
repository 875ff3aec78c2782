"""Split brain: found whatever the order of reports, decided by tokens or a majority, fenced before promoted."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict.healing.fencing import (
    Failover,
    Observation,
    find_split_brain,
    resolve_split_brain,
)
from nova.errors import FenceRequiredError, StaleContextError, UsageError


class Voters:
    def __init__(self, answer, token=20):
        self.answer, self.given = answer, token

    def ask(self, question):
        return self.answer

    def token(self):
        return self.given


def seen(node, host, clock, epoch=11, power="running"):
    return Observation(node, host, power, VectorClock(clock), epoch)


EQUAL = [seen("a", "h1", {"a": 1}), seen("b", "h2", {"b": 1})]

observations = st.builds(
    Observation,
    st.sampled_from("abc"),
    st.sampled_from(["h1", "h2", "h3"]),
    st.sampled_from(["running", "stopped"]),
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 2), max_size=3).map(VectorClock),
    st.integers(0, 2),
)


@given(st.lists(observations, max_size=4), st.randoms(use_true_random=False))
def test_a_split_brain_is_two_running_hosts_that_nothing_newer_contradicts(views, chance):
    alive = {o.host for o in views if o.power_state == "running" and not any(o.clock < other.clock for other in views)}
    found = find_split_brain("v", views)
    assert (found is not None) == (len(alive) > 1)
    shuffled = views * 2
    chance.shuffle(shuffled)
    assert find_split_brain("v", shuffled) == found


@given(st.lists(observations, min_size=2, max_size=4))
def test_what_stays_alone_has_the_newest_token_or_nobody_does(views):
    found = find_split_brain("v", views)
    if found is None:
        return
    decision = resolve_split_brain(found, "newest")
    newest = {o.host for o in found.observations if o.epoch == max(o.epoch for o in found.observations)}
    if len(newest) == 1:
        assert decision.keep in newest
        assert {decision.keep, *decision.fence} == set(found.hosts)
    else:
        assert (decision.action, decision.keep, decision.fence) == ("escalate", None, ())


def test_a_view_that_a_later_one_supersedes_says_nothing():
    moved = [seen("a", "h1", {"a": 1}), seen("b", "h2", {"a": 1, "b": 1})]
    assert find_split_brain("v", moved) is None
    assert find_split_brain("v", [EQUAL[0], seen("b", "h2", {"b": 1}, power="stopped")]) is None


def test_a_manual_decision_is_about_what_was_shown():
    found = find_split_brain("v", EQUAL)
    assert found is not None
    decision = resolve_split_brain(found, "manual", Voters(None), keep="h1", shown=found.id)
    assert (decision.keep, decision.fence, decision.token) == ("h1", ("h2",), 20)
    third = find_split_brain("v", [*EQUAL, seen("c", "h3", {"c": 1})])
    assert third is not None
    with pytest.raises(StaleContextError, match="look again"):
        resolve_split_brain(third, "manual", Voters(None), keep="h1", shown=found.id)
    with pytest.raises(UsageError, match="keep is 'h9'"):
        resolve_split_brain(found, "manual", Voters(None), keep="h9", shown=found.id)


def test_a_decision_needs_a_known_mode_and_one_that_gives_tokens():
    found = find_split_brain("v", EQUAL)
    assert found is not None
    with pytest.raises(UsageError, match="mode is 'fastest'"):
        resolve_split_brain(found, "fastest")
    with pytest.raises(UsageError, match="needs a quorum"):
        resolve_split_brain(found)
    with pytest.raises(UsageError, match="give 0 or more, and a host"):
        seen("a", "", {"a": 1})


def failover(upto, voters=5):
    made = Failover(voters)
    steps = {
        "detect": made.detect, "quorum": lambda: made.quorum(3), "fence": lambda: made.fence(["a"], 7),
        "confirm": lambda: made.confirm("a", 7), "promote": made.promote,
    }  # fmt: skip
    for name in ("detect", "quorum", "fence", "confirm", "promote")[:upto]:
        steps[name]()
    return made, steps


def test_the_only_way_to_promote_is_through_the_fence():
    order = ["detect", "quorum", "fence", "confirm", "promote"]
    for upto in range(len(order) + 1):
        for name in order:
            made, steps = failover(upto)
            before = made.state
            if upto < len(order) and name == order[upto]:
                steps[name]()
                continue
            with pytest.raises(FenceRequiredError if name == "promote" else UsageError):
                steps[name]()
            assert made.state == before
    made, _ = failover(5)
    assert (made.state, made.token, made.takes_writes) == ("promoted", 7, True)


def test_every_order_of_steps_promotes_only_what_is_fenced():
    for order in permutations(["detect", "quorum", "fence", "confirm", "promote"]):
        made, steps = failover(0)
        for name in order:
            try:
                steps[name]()
            except UsageError:
                continue
        assert (made.state == "promoted") == (order == ("detect", "quorum", "fence", "confirm", "promote"))


def test_a_minority_is_degraded_and_takes_no_writes_until_it_is_none():
    made, _ = failover(1)
    assert made.quorum(2) is False
    assert (made.state, made.takes_writes) == ("degraded", False)
    with pytest.raises(FenceRequiredError) as refused:
        made.promote()
    assert refused.value.code == "fence_required"
    assert made.quorum(3) is True
    assert Failover(4).takes_writes
    even = Failover(4)
    even.detect()
    assert even.quorum(2) is False  # half is no majority
    with pytest.raises(UsageError, match="6 of 5 voters"):
        failover(1)[0].quorum(6)


def test_all_that_must_be_fenced_must_confirm_under_this_token():
    made, _ = failover(2)
    made.fence(["a", "b"], 7)
    assert made.confirm("a", 7) is False
    assert made.confirm("b", 6) is False  # late word of an older attempt
    with pytest.raises(FenceRequiredError, match="b not confirmed"):
        made.promote()
    assert made.confirm("b", 7) is True
    assert made.promote() == 7
    with pytest.raises(UsageError, match="one above 0"):
        failover(2)[0].fence(["a"], 0)
