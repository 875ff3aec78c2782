"""Votes of a cluster in the simulator: links fail, nodes crash, two count at once; one outcome, and stable ballots."""

from __future__ import annotations

import msgspec
import pytest

from nova.cli.histories import TICK_NS
from nova.errors import ConfigError
from nova.sim.faults import SECOND, random_plan
from nova.store.cluster import Notice
from nova.store.core import StoreConfig
from nova.store.votes import VoteAsk
from nova.types import Outputs
from tests.sim.voters import KEYS, NAMES, VOTERS, Cluster, partitioned


@pytest.mark.parametrize("seed", range(40))
def test_a_vote_has_one_outcome_whatever_happens(seed):
    cluster = Cluster(seed)
    world, random = cluster.world, cluster.world.stream("writers")
    end = 12 * SECOND
    for number in range(12):
        node, key = NAMES[random.randrange(5)], KEYS[random.randrange(2)]
        world.at(random.randrange(end), lambda node=node, key=key, number=number: cluster.put(node, key, number % 3))
    world.plan(random_plan(world.stream("faults"), NAMES, end, faults=10))
    world.run(end // TICK_NS)
    assert world.run(until=cluster.settled, ticks_max=3_000), [member.replica.conflicts.pending() for member in world]
    cluster.check()
    for member in world:
        for entry in member.replica.scan()[0]:
            assert not entry.siblings


def test_most_voters_had_it_first_so_it_stays():
    cluster = Cluster(1)
    partitioned(cluster)
    assert cluster.world.run(until=cluster.settled, ticks_max=600)
    assert {member.replica.get("x/0").value for member in cluster.world} == {"left"}
    assert len(cluster.check()) == 1
    told = cluster.world["n1"].replica.why("x/0")["text"]
    assert "until they have decided" in told
    counting = cluster.ended[0][0]
    events = [record for record in cluster.archives[counting] if b"vote" in record or b"decision" in record]
    assert len(events) >= 3  # our ballot, how it ended, and what it decided


def test_each_voter_hears_how_it_ended():
    cluster = Cluster(2)
    partitioned(cluster)
    assert cluster.world.run(until=cluster.settled, ticks_max=600)
    cluster.world.run(30)
    for voter in VOTERS:
        assert any(b"outcome" in record for record in cluster.archives[voter]), voter


@pytest.mark.parametrize("ticks", range(0, 24, 2))
def test_who_counts_may_crash_at_any_moment(ticks):
    cluster = Cluster(3)
    world = cluster.world
    partitioned(cluster)
    assert world.run(until=lambda: any(sender == "n0" for sender, _ in cluster.asked), ticks_max=300)
    world.run(ticks)
    world.crash("n0")
    survivors = [name for name in NAMES if name != "n0"]
    agree = lambda: (  # noqa: E731
        len({world[name].replica.digest for name in survivors}) == 1
        and not any(world[name].replica.conflicts.pending() for name in survivors)
    )
    assert world.run(until=agree, ticks_max=1_000)
    world.restart("n0")
    assert world.run(until=cluster.settled, ticks_max=1_000)
    cluster.check()


def test_a_ballot_is_the_same_after_a_crash():
    cluster = Cluster(4)
    world = cluster.world
    partitioned(cluster)
    world.partition({"n0"}, {"n1"}, {"n2"}, {"n3"}, {"n4"})  # as soon as both versions are everywhere, nobody counts
    assert not cluster.ended
    world.heal()
    assert world.run(until=lambda: bool(cluster.cast), ticks_max=300)
    (conflict, voter), before = next(iter(cluster.cast.items()))
    world.crash(voter)
    world.restart(voter)
    after = world[voter].replica.conflicts.ballots.ballot(conflict)
    assert {msgspec.msgpack.encode(after, order="sorted")} == before
    assert world.run(until=cluster.settled, ticks_max=1_000)
    cluster.check()


def test_a_ballot_leaves_when_it_is_on_disk():
    cluster = Cluster(5)
    world = cluster.world
    partitioned(cluster)
    world.run(until=lambda: bool(world["n1"].replica.conflicts.ballots.open()), ticks_max=300)
    replica = world["n1"].replica
    (conflict,) = replica.conflicts.ballots.open()
    token, choices = replica.conflicts.ballots._own[conflict]
    replica.conflicts.ballots._own[conflict] = replica.durable_token + 1, choices
    assert replica.conflicts.ballots.ballot(conflict) is None
    assert not world["n1"].core.step("n0", VoteAsk(conflict, "x/0")).send
    replica.conflicts.ballots._own[conflict] = token, choices
    assert world.run(until=lambda: replica.conflicts.ballots.ballot(conflict) == choices, ticks_max=10)


def test_without_a_majority_the_fallback_decides_when_time_is_up():
    cluster = Cluster(6)
    world = cluster.world
    partitioned(cluster)
    world.run(until=lambda: bool(world["n0"].replica.conflicts.ballots.open()), ticks_max=300)
    for gone in ("n1", "n2", "n3"):
        world.crash(gone)
    ended = len(cluster.ended)
    present = lambda: not world["n0"].replica.get("x/0").siblings  # noqa: E731
    assert world.run(until=present, ticks_max=1_000)
    if len(cluster.ended) > ended and not cluster.ended[-1][1].winners:
        assert world["n0"].replica.get("x/0").value == "right"
    for gone in ("n1", "n2", "n3"):
        world.restart(gone)
    assert world.run(until=cluster.settled, ticks_max=1_000)


def test_a_newer_version_is_another_vote():
    """What a count finds is not written over a version that came after its question."""
    cluster = Cluster(9)
    world = cluster.world
    partitioned(cluster)
    assert world.run(until=lambda: bool(world["n0"].core.votes._polls), ticks_max=300)
    votes, replica = world["n0"].core.votes, world["n0"].replica
    ((conflict, poll),) = votes._polls.items()
    cluster.put("n0", "x/0", "third")
    poll.age_ms = poll.timeout_ms  # the count of the old question ends now
    assert not votes._finish(conflict, poll).send
    assert conflict not in replica.conflicts.ballots._ended  # nor is an end of it noted
    assert {sibling.value for sibling in replica.get("x/0").siblings} == {"left", "right", "third"}
    assert world.run(until=cluster.settled, ticks_max=600)
    assert conflict not in {ended.conflict for _, ended in cluster.ended}
    assert {member.replica.get("x/0").value for member in world} == {"left"}


def test_what_is_found_again_is_voted_on_again():
    """A crash may take operations whose conflict is on record already; when they come again, so does the vote."""
    cluster = Cluster(10)
    world = cluster.world
    partitioned(cluster)
    assert world.run(until=lambda: bool(world["n1"].replica.conflicts.ballots.open()), ticks_max=300)
    conflicts = world["n1"].replica.conflicts
    (conflict,) = conflicts.ballots.open()
    conflicts.ballots._open.clear()  # as after a tick in which the operations were gone
    assert conflicts.examine_keys([("x/0", True, False)]) == []
    assert list(conflicts.ballots.open()) == [conflict]


def test_somebody_may_decide_before_the_voters_do():
    cluster = Cluster(7)
    world = cluster.world
    partitioned(cluster)
    world.run(until=lambda: bool(world["n4"].replica.conflicts.ballots.open()), ticks_max=300)
    from nova.store.decisions import decide, waiting

    replica = world["n4"].replica
    (case,) = waiting(replica)
    assert case.vote[""]["voters"] == list(VOTERS)
    decide(replica, "x/0", case.shown, {"": "neither"}, "an operator")
    world.submit("n4", Outputs())
    assert world.run(until=cluster.settled, ticks_max=600)
    assert {member.replica.get("x/0").value for member in world} <= {"neither", "left"}
    cluster.check()


def test_a_strategy_that_asks_needs_somebody_to_ask():
    with pytest.raises(ConfigError, match="set voters"):
        Cluster(0, StoreConfig(strategies={"x/": "consensus_vote"}))


@pytest.mark.parametrize(("name", "mend"), [("sum", "kind counter"), ("operational_transform", r"nova\.crdt")])
def test_a_strategy_that_needs_an_ancestor_is_refused_where_there_is_none(name, mend):
    with pytest.raises(ConfigError, match=mend):
        Cluster(0, StoreConfig(strategies={"x/": name}))


def test_what_waits_for_somebody_is_escalated_level_by_level_and_once():
    config = StoreConfig(strategies={"x/": "manual"}, escalate=("on-call", "manager"), escalate_ms=5_000)
    cluster = Cluster(8, config)
    world = cluster.world
    partitioned(cluster)

    def told():
        return [n.text for member in world for n in member.notices if isinstance(n, Notice) and "tell " in n.text]

    assert world.run(until=lambda: any("on-call" in text for text in told()), ticks_max=300)
    assert not any("manager" in text for text in told())
    world.crash("n0")
    world.run(5)
    world.restart("n0")  # its notices of before are gone, what it told is in its trail
    assert world.run(until=lambda: any("manager" in text for text in told()), ticks_max=300)
    world.run(200)
    levels = [record for record in cluster.archives["n0"] if b"undecided" in record]
    assert len(levels) == 2
    assert sum("manager" in text for text in told()) == 1
