"""Scenarios 61-63: which protocol, by which rule, and not more often than its dwell time allows."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.consensus.adaptive import AdaptiveConsensus, Observation, predict_ms
from nova.errors import UsageError
from nova.sync.modes import Mode, mode_of

SECOND = 1_000_000_000


def decided(policy="classic", **inputs):
    return AdaptiveConsensus(policy, members=4).decide(Observation(**inputs))


@pytest.mark.parametrize(
    ("inputs", "strong", "convergent"),
    [
        ({"rtt_ms": 49.9, "regions": 3}, "raft", "raft"),
        ({"rtt_ms": 50.0, "regions": 3}, "paxos", "paxos"),
        ({"rtt_ms": 49.9, "regions": 4}, "paxos", "paxos"),
        ({"rtt_ms": 200.0, "regions": 4}, "paxos", "paxos"),
        ({"rtt_ms": 200.1, "regions": 4}, "paxos", "eventual"),
        ({"rtt_ms": 100.0, "regions": 4, "conflict_rate": 0.21}, "epaxos", "epaxos"),
        ({"rtt_ms": 250.0, "regions": 4, "conflict_rate": 0.21}, "epaxos", "eventual"),
        ({"rtt_ms": 100.0, "regions": 4, "conflict_rate": 0.2}, "paxos", "paxos"),
        ({"rtt_ms": 100.0, "regions": 4, "tiers": 2}, "hybrid", "hybrid"),
        ({"rtt_ms": 1.0, "regions": 1, "untrusted": True}, "pbft", "pbft"),
        ({}, "paxos", "paxos"),
    ],
)
def test_61_the_classic_rules(inputs, strong, convergent):
    decision = decided(**inputs)
    assert (decision.strong, decision.convergent) == (strong, convergent)
    assert decision.inputs == Observation(**inputs)
    assert decision.policy == "classic v1"
    assert decision.rule in decision.reason


def test_61_measured_takes_epaxos_only_far_apart_with_few_conflicts():
    assert decided("measured", rtt_ms=100.0, regions=4, conflict_rate=0.019).strong == "epaxos"
    assert decided("measured", rtt_ms=100.0, regions=4, conflict_rate=0.02).strong == "paxos"
    assert decided("measured", rtt_ms=100.0, regions=4, conflict_rate=0.5).strong == "paxos"
    assert decided("measured", rtt_ms=20.0, regions=5, conflict_rate=0.0).strong == "paxos"
    assert decided("measured", rtt_ms=100.0, regions=4).strong == "paxos"


@pytest.mark.parametrize(
    ("rtt", "bandwidth", "mode"),
    [
        (9.9, 1.1, Mode.DATACENTER),
        (50.1, 10.0, Mode.INTERNET),
        (1.0, 0.99, Mode.INTERNET),
        (10.0, 2.0, Mode.HYBRID),
        (50.0, 2.0, Mode.HYBRID),
        (5.0, 1.0, Mode.HYBRID),
        (None, 0.5, Mode.INTERNET),
        (None, 5.0, None),
        (math.nan, 5.0, None),
        (5.0, None, None),
    ],
)
def test_62_modes(rtt, bandwidth, mode):
    assert mode_of(rtt, bandwidth) == mode


@pytest.mark.parametrize(("low", "high"), [(49.0, 51.0), (30.0, 90.0), (1.0, 1000.0)])
def test_63_an_input_that_goes_to_and_fro_changes_once_in_a_dwell_time(low, high):
    controller = AdaptiveConsensus("classic", present=("raft", "raft"))
    changes = [
        second
        for second in range(600)
        if controller.observe(second * SECOND, Observation(rtt_ms=(low, high)[second % 2], regions=3)) is not None
    ]
    assert all(later - earlier >= 30 for earlier, later in pairwise(changes))
    assert bool(changes) == (high > 55)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -1.0])
def test_63_a_sample_that_is_none_changes_nothing(bad):
    controller = AdaptiveConsensus("classic", present=("raft", "raft"))
    controller.observe(0, Observation(rtt_ms=10.0, regions=2))
    for second in range(1, 200):
        assert controller.observe(second * SECOND, Observation(rtt_ms=bad, regions=2)) is None
    assert controller.observe(200 * SECOND, Observation(rtt_ms=100.0)) is not None


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(allow_nan=True)),
            st.one_of(st.none(), st.floats(allow_nan=True)),
            st.one_of(st.none(), st.integers(0, 9)),
            st.booleans(),
        ),
        max_size=40,
    ),
    st.sampled_from(["classic", "measured"]),
)
def test_strong_keys_are_never_eventual_and_changes_are_rare(samples, policy):
    controller = AdaptiveConsensus(policy, members=4)
    last = None
    for second, (rtt, conflict, regions, untrusted) in enumerate(samples):
        seen = Observation(rtt_ms=rtt, conflict_rate=conflict, regions=regions, untrusted=untrusted)
        decision = controller.observe(second * SECOND, seen)
        if decision is not None:
            assert decision.strong != "eventual"
            assert last is None or second - last >= 30
            last = second


def test_what_cannot_run_is_not_chosen_and_the_decision_says_why():
    controller = AdaptiveConsensus("classic", available=("raft", "paxos", "pbft"), members=3)
    decision = controller.decide(Observation(rtt_ms=100.0, regions=5, conflict_rate=0.9))
    assert decision.strong == "paxos"
    assert "epaxos is not available" in decision.reason
    lied_to = controller.decide(Observation(untrusted=True))
    assert lied_to.strong == "raft"  # as it is: no crash-fault protocol would bear lies any better
    assert "needs 4 members" in lied_to.reason


def test_an_operator_decides_whatever_is_observed():
    controller = AdaptiveConsensus("measured", members=4)
    controller.override("pbft")
    decision = controller.observe(0, Observation(rtt_ms=1.0, regions=1))
    assert decision is not None
    assert decision.strong == "pbft"
    assert "operator" in decision.reason
    controller.override(None)
    assert controller.observe(SECOND, Observation()) is None  # the dwell time holds
    assert controller.observe(31 * SECOND, Observation()) is not None
    with pytest.raises(UsageError, match="can't be eventual"):
        controller.override("eventual")
    with pytest.raises(UsageError, match="not available"):
        controller.override("zab")


def test_bad_settings_are_refused():
    with pytest.raises(UsageError, match="classic, measured"):
        AdaptiveConsensus("newest")
    with pytest.raises(UsageError, match="margin"):
        AdaptiveConsensus(margin=1.5)
    with pytest.raises(UsageError, match="dwell"):
        AdaptiveConsensus(dwell_ns=-1)


def test_a_policy_of_your_own():
    def mine(seen):
        return "paxos", "paxos", "because"

    decision = AdaptiveConsensus(mine).observe(0, Observation())
    assert decision is not None
    assert decision.reason.startswith("paxos, paxos for convergent keys: because (mine")


def test_predicted_latencies():
    rtts = {"b": 10.0, "c": 80.0, "d": 90.0, "e": 100.0}
    assert predict_ms("raft", rtts) == 80.0
    assert predict_ms("paxos", rtts, leader="e") == 180.0
    assert predict_ms("epaxos", rtts) == 80.0
    assert predict_ms("pbft", rtts) == 1.5 * 90.0
    assert predict_ms("eventual", rtts) == 0.0
    assert predict_ms("raft", {}) == 0.0
    with pytest.raises(UsageError, match="none of"):
        predict_ms("raft", rtts, leader="x")
    with pytest.raises(UsageError, match="unknown"):
        predict_ms("zab", rtts)
