"""What carries a key, by its class and the mode, and that the mode does not follow every wave."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.errors import UsageError
from nova.sync.modes import Mode, mode_of
from nova.sync.statesync import Carrier, StateSync

S = 1_000_000_000


@pytest.mark.parametrize("mode", [*Mode])
def test_what_carries_a_class_is_the_same_in_every_mode(mode):
    sync = StateSync(mode)
    assert sync.carrier("strong") is Carrier.LOG
    assert sync.carrier("eventual") is Carrier.GOSSIP
    assert sync.carrier("hybrid") is Carrier.REGIONS
    assert sync.round_ms == (500 if mode is Mode.INTERNET else 200)


def test_a_mode_that_was_told_stays_whatever_is_measured():
    sync = StateSync("datacenter")
    for at in range(10):
        assert sync.observe(at * 20 * S, rtt_ms=300.0) is None
    assert (sync.mode, sync.changes) == (Mode.DATACENTER, 0)


def test_the_mode_is_found_at_the_second_look_and_not_sooner():
    sync = StateSync()
    assert sync.mode is Mode.HYBRID
    assert sync.observe(0, rtt_ms=200.0) is None
    assert sync.observe(9 * S, rtt_ms=200.0) is None  # that is no look yet
    assert sync.observe(10 * S, rtt_ms=200.0) is Mode.INTERNET
    assert sync.observe(20 * S, rtt_ms=1.0, bandwidth_gbit=10.0) is None
    assert sync.observe(30 * S, rtt_ms=200.0) is None  # it came back in between: from the start
    assert sync.observe(40 * S, rtt_ms=1.0, bandwidth_gbit=10.0) is None
    assert sync.observe(50 * S, rtt_ms=1.0, bandwidth_gbit=10.0) is Mode.DATACENTER
    assert sync.changes == 2


def test_what_wavers_around_a_threshold_or_is_unknown_changes_nothing():
    sync = StateSync()
    for at in range(50):
        assert sync.observe(at * 10 * S, rtt_ms=50.0 + (-1) ** at * 4) is None
        assert sync.observe(at * 10 * S, rtt_ms=None) is None
        assert sync.observe(at * 10 * S, rtt_ms=math.nan) is None
    for at in range(50, 60):
        assert sync.observe(at * 10 * S, rtt_ms=52.0) is None  # past it, and too close to say
    assert sync.mode is Mode.HYBRID


measured = st.one_of(st.none(), st.floats(0, 400))
links = st.lists(st.tuples(measured, st.one_of(st.none(), st.floats(0, 40))), max_size=40)


@given(links)
def test_a_change_is_always_to_what_was_measured_twice_and_never_more_often_than_it_looks(samples):
    sync = StateSync(margin=0.0)
    found = []
    for at, (rtt, bandwidth) in enumerate(samples):
        found.append(mode_of(rtt, bandwidth))
        changed = sync.observe(at * 10 * S, rtt_ms=rtt, bandwidth_gbit=bandwidth)
        if changed is not None:
            assert found[-2:] == [changed, changed]
            assert sync.mode is changed
    assert sync.changes <= len(samples) // 2


def test_what_there_is_not_is_refused():
    for wrong in ({"mode": "lan"}, {"every_ns": -1}, {"margin": 1.0}):
        with pytest.raises(UsageError):
            StateSync(**wrong)
    with pytest.raises(UsageError, match="'fast'; use one of eventual, hybrid, strong"):
        StateSync().carrier("fast")
