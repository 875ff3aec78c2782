"""What voters are asked, who counts, and what becomes of a vote that nobody wins."""

from __future__ import annotations

import msgspec
import pytest

import nova.store.votes
from nova.cli.histories import TICK_NS
from nova.conflict.policy import PolicyBuilder
from nova.conflict.strategies import ConsensusVote, OperationalTransform
from nova.errors import ConfigError, PeerError
from nova.sim.faults import SECOND, random_plan
from nova.store.cluster import Notice
from nova.store.core import StoreConfig
from nova.store.decisions import decide, waiting
from nova.store.model import Put
from nova.store.votes import VoteCast, VoteEnded
from nova.types import Outputs
from tests.sim.voters import CONFIG, NAMES, VOTERS, Cluster, partitioned


def configured(**changes):
    return msgspec.structs.replace(CONFIG, **changes)


def start(cluster):
    world = cluster.world
    assert world.run(until=lambda: all(len(m.core.membership.peers()) == 4 for m in world), ticks_max=300)
    return world


def write(world, node, key, value, **options):
    world[node].replica.put(Put(key, value, **options))
    world.submit(node, Outputs())
    world.run(10)


def two_fields(kind, *crashed, **changes):
    """Both sides write two fields of one key, each in a write of its own."""
    cluster = Cluster(21, configured(**{"strategies": {"m/": "consensus_vote"}, "kinds": {"m/": kind}, **changes}))
    world = start(cluster)
    write(world, "n0", "m/1", {"id": "m", "cpu": 1, "memory_mb": 1})
    world.run(50)
    world.partition({"n0", "n1", "n2"}, {"n3", "n4"})
    for node, cpu, memory in (("n0", 10, 20), ("n4", 100, 200)):
        write(world, node, "m/1", {"cpu": cpu}, merge=True)
        write(world, node, "m/1", {"memory_mb": memory}, merge=True)
    for node in crashed:
        world.crash(node)
    world.heal()
    return cluster


def values(world, key="x/0"):
    return [member.replica.get(key).value for member in world]


def asking(world, *names):
    """Runs until these nodes have a vote; the id of each one's."""
    ballots = [world[name].replica.conflicts.ballots for name in names]
    assert world.run(until=lambda: all(each.open() for each in ballots), ticks_max=300)
    return [next(iter(each.open())) for each in ballots]


def undecided(seed):
    """A vote of which two of four voters know; the cluster and the vote."""
    cluster = Cluster(seed, configured(vote_timeout_ms=0))
    world = start(cluster)
    world.partition({"n0", "n1", "n2"}, {"n3", "n4"})
    cluster.put("n0", "x/0", "left")
    cluster.put("n4", "x/0", "right")
    world.run(20)
    world.crash("n1")
    world.crash("n2")
    world.heal()
    (conflict,) = asking(world, "n0")
    polls = world["n0"].core.votes._polls
    both = lambda: conflict in polls and len(polled(world, conflict).ballots[""]) == 2  # noqa: E731
    assert world.run(until=both, ticks_max=300)
    return cluster, conflict


def polled(world, conflict):
    return world["n0"].core.votes._polls[conflict]


@pytest.mark.parametrize("kind", ["map", "vm"])
def test_all_fields_that_are_contended_are_one_question(kind):
    """However they came in: an outcome about one of them would drop what the others hold."""
    cluster = two_fields(kind)
    assert cluster.world.run(until=cluster.settled, ticks_max=600)
    assert values(cluster.world, "m/1") == [{"id": "m", "cpu": 10, "memory_mb": 20}] * 5
    cluster.check()
    assert {path for _, ended in cluster.ended for path in ended.winners} == {"/cpu", "/memory_mb"}


def test_what_is_left_when_somebody_settles_a_part_is_another_vote():
    cluster = two_fields("map")
    world = cluster.world
    both = lambda: len(world["n0"].replica.conflicts.contended("m/1")) == 2  # noqa: E731
    assert world.run(until=both, ticks_max=300)
    world.partition({"n0"}, {"n1", "n2", "n3", "n4"})
    write(world, "n0", "m/1", {"cpu": 7}, merge=True)
    assert list(world["n0"].replica.conflicts.contended("m/1")) == ["/memory_mb"]
    (conflict,) = world["n0"].replica.conflicts.ballots.open()
    assert conflict == world["n0"].replica.conflicts.shown("m/1")
    world.heal()
    assert world.run(until=cluster.settled, ticks_max=1_000)
    assert {value["memory_mb"] for value in values(world, "m/1")} == {20}
    cluster.check()


def test_a_count_that_ends_after_somebody_settled_a_part_has_no_outcome():
    cluster = two_fields("map", "n1", "n2", vote_timeout_ms=0)
    world = cluster.world
    votes, replica = world["n0"].core.votes, world["n0"].replica
    assert world.run(until=lambda: any(len(poll.tallies) == 2 for poll in votes._polls.values()), ticks_max=300)
    ((conflict, poll),) = votes._polls.items()
    replica.put(Put("m/1", {"cpu": 7}, merge=True))
    poll.timeout_ms = poll.age_ms = 1
    assert not votes._finish(conflict, poll).send
    assert conflict not in replica.conflicts.ballots._ended
    assert replica.get("m/1").value["cpu"] == 7
    assert {sibling.value for sibling in replica.get("m/1").siblings} == {20, 200}


def test_the_same_writes_at_fewer_fields_are_one_other_question():
    cluster = Cluster(36, configured(strategies={"m/": "consensus_vote"}, kinds={"m/": "map"}, vote_timeout_ms=0))
    world = start(cluster)
    write(world, "n0", "m/1", {"id": "m"})
    world.run(50)
    world.partition(*({name} for name in NAMES))
    write(world, "n0", "m/1", {"cpu": 10, "memory_mb": 20}, merge=True)
    write(world, "n4", "m/1", {"cpu": 100, "memory_mb": 200}, merge=True)
    world.heal()
    world.partition({"n0", "n4"}, {"n1"}, {"n2"}, {"n3"})
    conflicts = world["n0"].replica.conflicts
    assert world.run(until=lambda: len(conflicts.contended("m/1")) == 2, ticks_max=300)
    before = conflicts.shown("m/1")
    write(world, "n0", "m/1", {"cpu": 7}, merge=True)
    assert list(conflicts.contended("m/1")) == ["/memory_mb"]
    assert conflicts.shown("m/1") != before
    assert list(conflicts.ballots.open()) == [conflicts.shown("m/1")]
    world.heal()
    assert world.run(until=cluster.settled, ticks_max=1_000)
    assert {value["cpu"] for value in values(world, "m/1")} == {7}
    cluster.check()


def test_voters_name_a_conflict_alike_whatever_came_first():
    """One side removes what it saw, the other writes on: what met where differs, what stands against each other not."""
    cluster = Cluster(22, configured(vote_timeout_ms=0))
    world = start(cluster)
    cluster.put("n0", "x/0", "base")
    world.run(50)
    world.partition({"n0", "n1", "n2"}, {"n3", "n4"})
    cluster.put("n0", "x/0", "left")
    world.run(20)
    world["n3"].replica.delete("x/0")
    world.submit("n3", Outputs())
    world.run(5)
    cluster.put("n4", "x/0", "right")
    world.run(20)
    world.heal()
    assert world.run(until=cluster.settled, ticks_max=600)
    assert len({entry.value for entry in (member.replica.get("x/0") for member in world)}) == 1
    cluster.check()
    for member in world:  # what a removal did not take is told, beside the vote
        records = member.replica.conflicts.page(key="x/0")["conflicts"]
        assert any(record["resolution"]["strategy"] == "observed_remove" for record in records), member.node


def test_more_conflicts_than_are_kept_on_record_are_all_decided():
    cluster = Cluster(23, configured(conflicts_count=10))
    world = start(cluster)
    world.partition({"n0", "n1", "n2"}, {"n3", "n4"})
    for node, value in (("n0", "left"), ("n4", "right")):
        for number in range(40):
            world[node].replica.put(Put(f"x/{number}", value))
        world.submit(node, Outputs())
        world.run(30)
    world.heal()
    world.run(4)
    world.crash("n1")
    world.restart("n1")
    assert world.run(until=cluster.settled, ticks_max=600)
    assert all(entry.value == "left" and not entry.siblings for entry in world["n1"].replica.scan()[0])
    cluster.check()


def test_a_count_that_comes_to_no_end_is_taken_over():
    """Alive, but of no use: an older release, or one that is configured otherwise."""
    cluster = Cluster(24, configured(vote_timeout_ms=0))
    world = start(cluster)
    world["n0"].core.votes.tick = lambda live: Outputs()
    partitioned(cluster)
    assert world.run(until=cluster.settled, ticks_max=600)
    assert set(values(world)) == {"left"}
    assert cluster.ended[0][0] == "n1"


@pytest.mark.parametrize("seed", range(12))
def test_all_voters_may_count_at_once(seed, monkeypatch):
    monkeypatch.setattr(nova.store.votes, "TAKEOVER_MS", 0)
    cluster = Cluster(seed)
    partitioned(cluster)
    assert cluster.world.run(until=cluster.settled, ticks_max=600)
    cluster.check()
    assert len({conflict for _, conflict in cluster.asked}) >= 1
    assert len({sender for sender, _ in cluster.asked}) > 1
    assert set(values(cluster.world)) == {"left"}


@pytest.mark.parametrize("seed", range(20))
def test_two_who_count_in_a_partition_find_no_two_winners(seed):
    """The cut goes through the vote, anywhere; either side may find the majority, time runs out for the other one."""
    cluster = Cluster(seed, configured(vote_timeout_ms=2_000))
    world = cluster.world
    partitioned(cluster)
    ballots = [world[name].replica.conflicts.ballots for name in ("n0", "n1")]
    assert world.run(until=lambda: any(each.open() for each in ballots), ticks_max=300)
    world.run(seed)
    world.partition({"n0", "n2"}, {"n1", "n3", "n4"})
    world.run(80)
    world.heal()
    assert world.run(until=cluster.settled, ticks_max=1_500)
    cluster.check()
    assert len(set(values(world))) == 1


def test_votes_of_strangers_second_votes_and_unknown_choices_count_for_nothing():
    cluster, conflict = undecided(25)
    world = cluster.world
    core, poll = world["n0"].core, polled(world, conflict)
    tally, first = poll.tallies[""], poll.ballots[""]["n3"]
    (question,) = world["n0"].replica.conflicts.get(conflict)["resolution"]["vote"]
    left, right = question["candidates"]
    counted = dict(tally.counted)
    for sender, choice in (("n4", first), ("n9", first), ("n2", "ff"), ("n3", first)):
        core.step(sender, VoteCast(conflict, {"": choice}))
    second = right if first == left else left
    core.step("n3", VoteCast(conflict, {"": second}))
    assert tally.counted == counted
    assert tally.equivocations == [("n3", first, second)]
    world.restart("n1")
    world.restart("n2")
    assert world.run(until=cluster.settled, ticks_max=600)
    before = world["n0"].replica.digest
    core.step("n3", VoteCast(conflict, {"": second}))  # late: there is no count any more
    assert world["n0"].replica.digest == before
    assert set(values(world)) == {"left"}


def test_a_voter_that_left_for_good_has_no_vote_and_the_majority_does_not_shrink():
    cluster, conflict = undecided(26)
    world = cluster.world
    poll = polled(world, conflict)
    world.submit("n3", world["n3"].core.leave())
    assert world.run(until=lambda: "n3" not in poll.ballots[""], ticks_max=100)
    assert poll.tallies[""].majority == 3
    assert not poll.tallies[""].hopeless  # n1 and n2 may still come, and agree with n0
    world["n0"].core.votes.left("n2")
    assert poll.tallies[""].hopeless
    agree = lambda: len({world[name].replica.digest for name in ("n0", "n4")}) == 1  # noqa: E731
    assert world.run(until=lambda: not world["n0"].replica.get("x/0").siblings and agree(), ticks_max=100)
    assert not cluster.ended[-1][1].winners


def test_where_the_fallback_is_a_person_a_tie_waits_for_one():
    config = configured(vote_otherwise="manual", voters=("n0", "n3"), escalate=("on-call",), escalate_ms=3_000)
    cluster = Cluster(27, config)
    world = cluster.world
    partitioned(cluster)
    ballots = world["n1"].replica.conflicts.ballots
    (conflict,) = asking(world, "n1")
    assert world.run(until=lambda: not ballots.open(), ticks_max=300)
    for name in ("n0", "n1"):
        world.crash(name)
        world.restart(name)
    world.run(60)
    for member in world:
        (case,) = waiting(member.replica)
        assert {candidate.value for candidate in case.candidates} == {"left", "right"}
        assert case.vote[""]["ballots"] == {"n0": "left", "n3": "right"}
    told = [n.text for member in world for n in member.notices if isinstance(n, Notice) and "tell on-call" in n.text]
    assert len(told) == 1
    replica = world["n1"].replica
    decide(replica, "x/0", conflict, {"": "right"}, "ann")
    world.submit("n1", Outputs())
    assert world.run(until=cluster.settled, ticks_max=600)
    assert set(values(world)) == {"right"}


def test_a_level_is_not_told_again_by_who_comes_next():
    config = configured(strategies={"x/": "manual"}, escalate=("on-call", "manager"), escalate_ms=5_000)
    cluster = Cluster(35, config)
    world = cluster.world
    partitioned(cluster)
    told = lambda name: [n.text for n in world[name].notices if isinstance(n, Notice) and "tell " in n.text]  # noqa: E731
    assert world.run(until=lambda: told("n0"), ticks_max=300)
    world.run(5)
    world.crash("n0")
    assert world.run(until=lambda: told("n1"), ticks_max=600)
    assert ["tell manager" in text for text in told("n1")] == [True]
    world.restart("n0")
    world.run(100)
    assert not any(told(name) for name in ("n0", "n2", "n3", "n4"))
    for name in NAMES:
        assert sum(b"undecided" in record for record in cluster.archives[name]) == 2, name


def test_who_missed_how_a_vote_ended_asks_for_it():
    cluster = Cluster(28)
    world = cluster.world
    partitioned(cluster)
    asking(world, "n4")
    votes, missed = world["n4"].core.votes, []
    take = votes.step

    def step(sender, message):
        if isinstance(message, VoteEnded) and len(missed) < 2:
            missed.append(sender)
            return Outputs()
        return take(sender, message)

    votes.step = step
    told = lambda: any(b"outcome" in record for record in cluster.archives["n4"])  # noqa: E731
    assert world.run(until=told, ticks_max=600)
    assert missed
    text = world["n4"].replica.why("x/0")["text"]
    assert "until they have decided" in text
    assert world.run(until=cluster.settled, ticks_max=600)
    assert not world["n4"].replica.conflicts.ballots.unheard()


def test_an_end_that_no_vote_can_have_is_refused():
    cluster = Cluster(29)
    world = cluster.world
    partitioned(cluster)
    (conflict,) = asking(world, "n1")
    core = world["n1"].core
    question = world["n1"].replica.conflicts.get(conflict)["resolution"]["vote"][0]
    one, other = question["candidates"]
    for ballots, winner in (
        ({"n0": one, "n1": one}, one),  # two of four
        ({"n0": one, "n1": one, "n9": one}, one),
        ({"n0": one, "n1": one, "n2": one}, other),
        ({"n0": "ff", "n1": "ff", "n2": "ff"}, "ff"),
    ):
        with pytest.raises(PeerError, match="no majority"):
            core.votes.step("n0", VoteEnded(conflict, "x/0", {"": ballots}, {"": winner}))
    with pytest.raises(PeerError, match="no majority"):
        core.votes.step("n0", VoteEnded(conflict, "x/0", {"/y": {}}, {}))
    (notice,) = core.step("n0", VoteEnded(conflict, "x/0", {"/y": {}}, {})).apply  # told, and the link stays
    assert "configure the same voters" in notice.text
    assert world["n1"].replica.conflicts.ballots.ended(conflict) is None
    core.step("n0", VoteEnded("00" * 16, "x/0", {"": {}}, {}))  # of one that was forgotten here, or never known


def test_a_record_that_a_crash_left_without_a_ballot_gets_one_when_its_operations_come_again():
    cluster = Cluster(30)
    world = cluster.world
    partitioned(cluster)
    (conflict,) = asking(world, "n1")
    ballots = world["n1"].replica.conflicts.ballots
    del ballots._own[conflict]
    assert ballots.ballot(conflict) is None
    world["n1"].replica.examine_again("x/0")
    world.submit("n1", Outputs())
    assert world.run(until=lambda: ballots.ballot(conflict) is not None, ticks_max=20)


def test_what_the_trail_does_not_tell_any_more_is_voted_on_all_the_same():
    """Retention may drop a record while its conflict waits."""
    cluster = Cluster(31, configured(vote_timeout_ms=0))
    world = cluster.world
    partitioned(cluster)
    asking(world, *NAMES)
    world.partition(*({name} for name in NAMES))
    world.crash("n0")
    world.restart("n0")
    conflicts = world["n0"].replica.conflicts
    for record in list(conflicts._records.values()):
        del conflicts._records[record["id"]]
        conflicts._forget(record)
    assert not conflicts.ballots.open()
    world.run(3)
    assert list(conflicts.ballots.open()) == [conflicts.shown("x/0")]
    world.heal()
    assert world.run(until=cluster.settled, ticks_max=600)


def test_a_policy_asks_the_voters_of_the_store_where_it_names_none():
    policy = PolicyBuilder("p").default("consensus_vote").fallback("consensus_vote", "lww").build()
    cluster = Cluster(32, configured(strategies={}, policies={"x/": policy}))
    partitioned(cluster)
    assert cluster.world.run(until=cluster.settled, ticks_max=600)
    assert set(values(cluster.world)) == {"left"}
    assert cluster.check()
    assert policy.strategy("consensus_vote").voters == ()  # ours was not touched


def test_a_vote_about_a_part_of_one_value_falls_to_the_fallback_and_says_so():
    policy = (
        PolicyBuilder("p").default("lww").field("/region", "consensus_vote").fallback("consensus_vote", "lww").build()
    )
    cluster = Cluster(33, configured(strategies={}, policies={"x/": policy}))
    world = start(cluster)
    world.partition({"n0", "n1", "n2"}, {"n3", "n4"})
    cluster.put("n0", "x/0", {"region": "eu"})
    world.run(20)
    cluster.put("n4", "x/0", {"region": "us"})
    world.run(20)
    world.heal()
    agree = lambda: len({member.replica.digest for member in world}) == 1  # noqa: E731
    assert world.run(until=agree, ticks_max=300)
    (record,) = world["n0"].replica.conflicts.page()["conflicts"]
    assert any("not about parts of one" in line for line in record["resolution"]["explanation"])
    assert record["status"] == "resolved"
    assert values(world) == [{"region": "us"}] * 5


REGIONS = OperationalTransform(otherwise=None)


@pytest.mark.parametrize(
    ("policy", "mend"),
    [
        (PolicyBuilder("p").default("sum").build(), "kind counter"),
        (PolicyBuilder("p").default("lww").field("/text", "operational_transform").build(), r"nova\.crdt"),
        (PolicyBuilder("p").default("lww").strategy("regions", REGIONS).field("/t", "regions").build(), "nova"),
        (PolicyBuilder("p").default("lww").field("/owner", "consensus_vote").build(), "set voters"),
        (PolicyBuilder("p").default("consensus_vote").build(), "set voters"),
    ],
)
def test_a_policy_that_a_store_cannot_follow_is_refused(policy, mend):
    with pytest.raises(ConfigError, match=mend):
        Cluster(0, StoreConfig(policies={"x/": policy}))


def test_a_vote_that_would_come_to_no_value_is_refused():
    for name in ("multi_value", "consensus_vote", "sum"):
        with pytest.raises(ConfigError, match="settles no value by itself"):
            Cluster(0, configured(vote_otherwise=name))
    policy = PolicyBuilder("p").default("consensus_vote").fallback("consensus_vote", "multi_value").build()
    with pytest.raises(ConfigError, match="settles no value by itself"):
        Cluster(0, configured(strategies={}, policies={"x/": policy}))


def test_a_policys_own_voters_are_asked_though_nobody_gave_it_an_asker():
    own = ConsensusVote(VOTERS, otherwise=None)
    policy = PolicyBuilder("p").strategy("elders", own).default("elders").fallback("elders", "lww").build()
    cluster = Cluster(34, StoreConfig(policies={"x/": policy}))
    partitioned(cluster)
    assert cluster.world.run(until=cluster.settled, ticks_max=600)
    assert set(values(cluster.world)) == {"left"}
    assert cluster.check()


def test_a_ballot_stays_when_the_record_that_it_is_about_goes():
    """A crash may take what came after the conflict, and bring it back: another vote would be a second one."""
    cluster = two_fields("map", vote_timeout_ms=0)
    (id,) = asking(cluster.world, "n0")
    ballots = cluster.world["n0"].replica.conflicts.ballots
    assert cluster.world.run(until=lambda: ballots.ballot(id) is not None, ticks_max=300)
    record, told = ballots.open()[id], ballots.ballot(id)
    ballots.forget(id)
    assert not ballots.open()
    assert ballots.ballot(id) == told
    assert ballots.again(record, {}, {}) == []  # it came back: nothing is chosen anew
    assert ballots.ballot(id) == told


@pytest.mark.parametrize("seed", range(20))
def test_fields_removals_and_whole_values_are_voted_on_whatever_happens(seed):
    """Every value that stands in the end was written: none is made up, and nothing stays contended."""
    changes = {"strategies": {"m/": "consensus_vote", "v/": "consensus_vote"}, "kinds": {"m/": "map", "v/": "vm"}}
    cluster = Cluster(seed, configured(vote_timeout_ms=3_000, conflicts_count=8, **changes))
    world, random = cluster.world, cluster.world.stream("writers")
    end = 12 * SECOND

    def act(node, key, number):
        if node not in world.up:
            return
        replica, draw = world[node].replica, random.random()
        held = replica.space.get(key) is not None
        if held and draw < 0.15:
            replica.delete(key)
        elif draw < 0.3:
            replica.put(Put(key, {"id": "x", "cpu": number, "memory_mb": number}, context={}))
        else:
            replica.put(Put(key, {"cpu" if draw < 0.65 else "memory_mb": number}, merge=True))
        world.submit(node, Outputs())

    for number in range(1, 40):
        node, key = NAMES[random.randrange(5)], ("m/0", "v/0", "v/1")[random.randrange(3)]
        world.at(random.randrange(end), lambda node=node, key=key, number=number: act(node, key, number))
    world.plan(random_plan(world.stream("faults"), NAMES, end, faults=10))
    world.run(end // TICK_NS)
    assert world.run(until=cluster.settled, ticks_max=3_000), [list(m.replica.conflicts.waiting()) for m in world]
    cluster.check()
    for member in world:
        for entry in member.replica.scan()[0]:
            assert not entry.siblings
            for field in ("cpu", "memory_mb"):
                assert entry.value.get(field, 1) in range(1, 40), entry


def test_what_waits_for_a_person_is_not_decided_by_a_vote_about_another_field():
    policy = (
        PolicyBuilder("p").default("lww").fallback("consensus_vote", "lww")
        .field("/cpu", "consensus_vote").field("/memory_mb", "manual").build()
    )  # fmt: skip
    cluster = two_fields("map", strategies={}, policies={"m/": policy})
    world = cluster.world
    asking(world, "n0")
    ended = lambda: any(message.winners for _, message in cluster.ended)  # noqa: E731
    assert world.run(until=ended, ticks_max=600)
    world.run(100)
    for member in world:
        (case,) = waiting(member.replica)
        assert {each.value for each in case.candidates if each.path == "/memory_mb"} == {20, 200}, member.node


def test_a_vm_that_runs_at_two_hosts_stays_at_that_which_most_voters_had_first():
    cluster = Cluster(37, configured(strategies={"v/": "consensus_vote"}, kinds={"v/": "vm"}))
    world = start(cluster)
    write(world, "n0", "v/1", {"id": "v", "power_state": "stopped", "host": "h0"})
    world.run(50)
    world.partition({"n0", "n1", "n2"}, {"n3", "n4"})
    write(world, "n0", "v/1", {"power_state": "running", "host": "h1"}, merge=True)
    write(world, "n4", "v/1", {"power_state": "running", "host": "h2"}, merge=True)
    world.heal()
    assert world.run(until=cluster.settled, ticks_max=600)
    (record,) = world["n0"].replica.conflicts.page(key="v/1")["conflicts"]
    assert "split brain" in record["reason"]
    assert [value["host"] for value in values(world, "v/1")] == ["h1"] * 5
    assert cluster.check()
