"""Keys that regions own: whatever comes between the commands of two regions, members end up with the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.consensus.core import Command
from nova.errors import CorruptionError, UsageError
from nova.store.strong.commands import (
    Add,
    Get,
    Remove,
    Transact,
    Verdict,
    VersionIs,
    Write,
    pack,
    packed,
    unpack_held,
    unpack_told,
)
from nova.store.strong.regions import Addressed, RegionalMachine

REGIONS = ("ap", "eu", "us")


def command(region, key, *operations, conditions=(), bytes_max=1 << 20):
    asked = Transact(key, tuple(conditions), operations, f"{region}-1", 5, bytes_max)
    return Command(0, 0, pack(Addressed(region, pack(asked))))


operations = st.one_of(
    st.integers(0, 9).map(lambda value: Write(packed(value))), st.just(Remove()), st.integers(-3, 3).map(Add)
)
# A key of one name in all regions: if they shared anything, it would show.
streams = st.fixed_dictionaries(
    {
        region: st.lists(
            st.builds(
                lambda key, operation, versions, bytes_max, region=region: command(
                    region, key, operation, conditions=map(VersionIs, versions), bytes_max=bytes_max
                ),
                st.sampled_from(["x", "y"]),
                operations,
                st.lists(st.integers(0, 4), max_size=1),
                st.sampled_from([100, 1 << 20]),
            ),
            max_size=8,
        )
        for region in REGIONS
    }
)


def told_in_any_order(streams, chance):
    """Any interleaving of the streams, each in its order, in entries of any size; region -> what was answered."""
    machine, answers = RegionalMachine(REGIONS), {region: [] for region in REGIONS}
    left = {region: list(commands) for region, commands in streams.items()}
    while any(left.values()):
        entry = []
        for _ in range(chance.randint(1, 4)):
            if open_ := [region for region in REGIONS if left[region]]:
                region = chance.choice(open_)
                entry.append((region, left[region].pop(0)))
        for (region, _), answer in zip(entry, machine.apply([each for _, each in entry]), strict=True):
            answers[region].append(answer)
        if chance.random() < 0.2:  # a member that got a snapshot goes on alike
            other = RegionalMachine(REGIONS)
            other.restore(machine.snapshot())
            assert other.digest == machine.digest
            machine = other
    return machine, answers


@given(streams, st.integers(0, 2**32), st.integers(0, 2**32))
def test_any_interleaving_of_the_regions_gives_equal_states_and_answers(streams, one, two):
    machine, answers = told_in_any_order(streams, random.Random(one))
    other, others = told_in_any_order(streams, random.Random(two))
    assert answers == others
    assert (machine.digest, machine.snapshot()) == (other.digest, other.snapshot())


def test_a_change_of_any_region_shows_in_the_digest_and_in_that_region_alone():
    machine = RegionalMachine(REGIONS)
    seen = {machine.digest}
    for region in REGIONS:
        before = {owner: inner.revision for owner, inner in machine.of.items()}
        (told,) = machine.apply([command(region, "x", Write(packed(1)), conditions=[VersionIs(0)])])
        assert unpack_told(told).held.version == 1
        seen.add(machine.digest)
        assert {owner: inner.revision for owner, inner in machine.of.items()} == before | {region: 1}
    assert len(seen) == 4
    assert len(machine) == 3
    assert unpack_held(machine.read(pack(Addressed("eu", pack(Get("x")))))).origin == "eu-1"


def test_what_is_of_no_region_is_answered_and_changes_nothing():
    machine = RegionalMachine(REGIONS)
    before = machine.snapshot()
    for wrong in (command("mars", "x", Write(b"1")), Command(0, 0, b"\xc1"), Command(0, 0, b"")):
        told = unpack_told(machine.apply([wrong])[0])
        assert told.verdict is Verdict.REFUSED
        assert "no region of this group; they are ap, eu, us" in told.reason
    assert machine.snapshot() == before
    for query in (b"\xc1", pack(Addressed("mars", b""))):
        with pytest.raises(UsageError):
            machine.read(query)


def test_a_state_of_other_regions_is_refused():
    machine = RegionalMachine(REGIONS)
    for data in (b"\xc1", RegionalMachine(["eu"]).snapshot(), pack((9, []))):
        with pytest.raises(CorruptionError):
            machine.restore(data)
