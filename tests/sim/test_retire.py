"""Retirement of actors in whole clusters: clocks stay small, nothing comes back, nobody is forgotten too early."""

from __future__ import annotations

from collections import defaultdict

import pytest

from nova.cli.histories import History, SimulatedMember
from nova.sim.network import Link
from nova.sim.world import World
from nova.store.cluster import CODEC, ClusterCore
from nova.store.model import Put
from nova.sync.antientropy import AntiEntropyConfig
from nova.sync.gossip import GossipConfig
from nova.sync.membership import Member, MembershipConfig
from nova.sync.retire import RetireConfig, Retirement, count_of, life_of
from nova.types import Outputs

TICK_MS = 2_000
TICKS_PER_HOUR = 3_600_000 // TICK_MS
LINK = Link(delay_ns_min=5_000_000, jitter_ns_mean=10_000_000, loss_ratio=0.01)


class SlowMember(SimulatedMember):
    """A member whose ticks are so long that a day of them fits into a test."""

    def __init__(self, node, names, incarnation, *rest, away_ms=3_600_000):
        super().__init__(node, names, incarnation, *rest)
        self.incarnation = incarnation
        self.core = ClusterCore(
            self.replica,
            Member(node, incarnation, address=node),
            random=rest[2],
            membership=MembershipConfig(tick_ms=TICK_MS, probe_ms=10_000, probe_timeout_ms=4_000, suspicion_ms=30_000),
            gossip=GossipConfig(tick_ms=TICK_MS, round_ms=TICK_MS, push_pull_ms=30_000, pull_timeout_ms=20_000),
            antientropy=AntiEntropyConfig(tick_ms=TICK_MS, period_ms=60_000, timeout_ms=20_000),
            retire=RetireConfig(tick_ms=TICK_MS, settle_ms=20_000, check_ms=10_000, away_ms=away_ms),
        )


class Day:
    """Nodes that start again and again, in a world of long ticks."""

    def __init__(self, seed, nodes, **options):
        self.names = [f"n{i}" for i in range(nodes)]
        self.lives = defaultdict(int)
        self.archives = defaultdict(list)
        self.options = options
        self.sent_bytes = 0
        self.dots = {}
        self.world = World(
            seed, self.names, self._make, network=LINK, tick_ns=TICK_MS * 1_000_000, codec=CODEC, sent=self._sent,
            invariants=[self._known_once_is_known_for_ever],
        )  # fmt: skip
        self.chance = self.world.stream("clients")

    def _make(self, node, log, snapshots, random, wall_ns):
        self.lives[node] += 1
        archive = self.archives[node]
        return SlowMember(node, self.names, self.lives[node], log, snapshots, random, wall_ns, archive, **self.options)

    def _sent(self, source, target, message):
        self.sent_bytes += len(CODEC.encode(message))

    def _known_once_is_known_for_ever(self, world):
        for member in world:
            clock = member.replica.clock()
            before = self.dots.get(member.node)
            if before is not clock:
                for actor, count in (before or {}).items():
                    assert count_of(clock, actor) >= count, f"{member.node} knew {count} of {actor}: {clock}"
                self.dots[member.node] = clock

    def restart(self, node):
        self.world.crash(node)
        self.world.run(3)
        self.world.restart(node)

    def write(self, node, key, value):
        replica = self.world[node].replica
        if value is not None:
            replica.put(Put(key, value))
        elif replica.space.get(key) is not None:
            replica.delete(key)
        self.world.submit(node, Outputs())
        self.world.run(1)  # the disk is quicker than a tick

    def equal(self):
        states = [(member.replica.digest, member.replica.clock()) for member in self.world]
        return all(state == states[0] for state in states)

    def retired(self):
        """No running node names an earlier life of any node."""
        return all(
            life[1] == self.lives[life[0]]
            for member in self.world
            for actor in member.replica.clock()
            if (life := life_of(actor)) is not None
        )

    def settle(self, ticks_max=1_000):
        return self.world.run(until=lambda: self.equal() and self.retired(), ticks_max=ticks_max)


def test_a_day_of_restarts_does_not_grow_what_nodes_keep_and_send():
    day = Day(1, 3)
    sizes = {}
    for hour in range(1, 25):
        day.sent_bytes = 0
        clock = summary = snapshot = 0
        for step in range(TICKS_PER_HOUR // 12):
            if step % 10 == 0:
                day.restart(day.names[step // 10 % 3])
            day.world.run(7 if step % 10 == 0 else 10)
            for _ in range(2):
                node = day.names[day.chance.randrange(3)]
                key = f"k{day.chance.randrange(12)}"
                day.write(node, key, None if day.chance.random() < 0.3 else {"n": day.chance.randrange(1_000)})
            for member in day.world:
                if not member.replica.settled:
                    continue
                clock = max(clock, len(member.replica.clock()))
                summary = max(summary, len(member.replica.summary()))
                snapshot = max(snapshot, len(member.replica.snapshot()))
        sizes[hour] = {"clock": clock, "summary": summary, "snapshot": snapshot, "sent": day.sent_bytes}
    assert min(day.lives.values()) > 100
    assert sizes[24]["clock"] <= 3 * 3 + 4, sizes  # a floor of two entries and a life for each, and those on their way
    for what, size in sizes[24].items():
        assert size < 1.25 * sizes[2][what], f"{what} grew from hour 2 to 24: {sizes[2]}, {sizes[24]}"
    assert day.settle()


def test_a_member_that_cannot_be_reached_blocks_until_it_has_told_what_it_has():
    day = Day(2, 3)
    day.world.run(60)
    day.world.partition({"n0", "n1"}, {"n2"})
    day.write("n0", "k", 1)
    day.restart("n0")
    day.world.run(200)
    assert day.world["n0"].core.retirement.waits_for() == ["n2"]
    for node in ("n0", "n1"):
        assert day.world[node].replica.clock() == {"n0~1": 1}
    day.world.heal()
    assert day.settle()
    assert day.world["n2"].replica.clock() == {"n0~": 1, "n0~+": 1}
    assert not any("took over" in notice.text for member in day.world for notice in member.notices), (
        "who was waited for needs no state"
    )


def test_a_member_that_was_given_up_and_returns_brings_nothing_back_and_loses_nothing():
    day = Day(3, 3, away_ms=60_000)
    day.world.run(60)
    for number in range(6):
        day.write("n0", f"k{number}", number)
    day.world.run(until=day.equal, ticks_max=200)
    day.world.partition({"n0", "n1"}, {"n2"})
    day.names.remove("n2")  # nobody dials it any more
    day.write("n0", "k0", "newer")
    day.restart("n0")
    for number in range(1, 6):
        day.write("n1", f"k{number}", None)
    day.write("n2", "own", "unseen")
    day.write("n2", "k1", "unseen")
    day.world.run(200)
    assert day.world["n1"].replica.clock() == {"n0~": 1, "n0~+": 7, "n1~1": 5}, "it was given up, so it does not block"
    assert day.world["n2"].replica.clock() == {"n0~1": 6, "n2~1": 2}
    day.world.heal()
    day.names.append("n2")
    assert day.settle()
    for member in day.world:
        entries = {entry.key: entry.value for entry in member.replica.scan()[0]}
        assert entries == {"k0": "newer", "k1": "unseen", "own": "unseen"}
        assert member.replica.clock() == {"n0~": 1, "n0~+": 7, "n1~1": 5, "n2~1": 2}


@pytest.mark.parametrize("moment", ["before the floor is on disk", "before anybody hears of it"])
def test_a_crash_between_the_phases_leaves_all_as_it_was_or_all_done(moment):
    day = Day(4, 3)
    day.world.run(60)
    day.write("n0", "k", 1)
    day.write("n0", "l", 1)
    day.write("n0", "l", None)
    day.world.run(until=day.equal, ticks_max=200)
    day.restart("n0")
    replica = day.world["n0"].replica
    early = moment == "before the floor is on disk"
    name = "retire" if early else "applied"
    through = getattr(replica, name)

    def crashing(*arguments):
        result = through(*arguments)
        if result if early else "n0~" in arguments[0].clock:
            day.world.crash("n0")
        return result

    setattr(replica, name, crashing)
    day.world.run(until=lambda: "n0" not in day.world.up, ticks_max=400)
    assert all("n0~" not in member.replica.clock() for member in day.world), "nobody heard of it"
    day.world.restart("n0")
    assert day.world["n0"].replica.clock() == ({"n0~1": 3} if early else {"n0~": 1, "n0~+": 3})
    day.write("n0", "m", 1)
    day.restart("n0")
    assert day.settle()
    for member in day.world:
        assert {entry.key for entry in member.replica.scan()[0]} == {"k", "m"}
        assert member.replica.clock() == {"n0~": 3, "n0~+": 4}


@pytest.mark.parametrize("seed", range(2_100, 2_130))
def test_to_retire_without_asking_anybody_costs_states_and_breaks_nothing(seed, monkeypatch):
    monkeypatch.setattr(Retirement, "waits_for", lambda self: [])
    assert History(seed, nodes=3, faults=20).run() == []


def test_the_histories_of_the_simulator_retire_actors_and_need_no_more_states_for_it():
    histories = [History(seed, nodes=3, faults=12) for seed in range(2_000, 2_020)]
    assert [history.run() for history in histories] == [[]] * len(histories)
    assert sum(history.retired > 0 for history in histories) >= 5
