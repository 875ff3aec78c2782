"""A cluster of five in the simulator, of which four vote, for the tests of votes."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from nova.cli.histories import LINK, TICK_NS, SimulatedMember
from nova.sim.world import World
from nova.store.cluster import CODEC
from nova.store.core import StoreConfig
from nova.store.model import Put
from nova.store.votes import VoteAsk, VoteCast, VoteEnded
from nova.types import Outputs

NAMES = [f"n{number}" for number in range(5)]
VOTERS = ("n0", "n1", "n2", "n3")
KEYS = ("x/0", "x/1")
CONFIG = StoreConfig(strategies={"x/": "consensus_vote"}, voters=VOTERS, vote_timeout_ms=8_000, siblings_max=8)


class Cluster:
    """Five members, of which four vote."""

    def __init__(self, seed, config=CONFIG, names=NAMES):
        self.config, self.names = config, names
        self.incarnations, self.archives = defaultdict(int), defaultdict(list)
        self.cast, self.ended, self.asked = defaultdict(set), [], set()
        self.world = World(
            seed, names, self._make, network=LINK, tick_ns=TICK_NS, codec=CODEC, sent=self._sent, dropped=self._dropped
        )

    def _dropped(self, node, error):
        raise error

    def _make(self, node, log, snapshots, random, wall_ns):
        self.incarnations[node] += 1
        return SimulatedMember(
            node, self.names, self.incarnations[node], log, snapshots, random, wall_ns, self.archives[node], self.config
        )

    def _sent(self, sender, peer, message):
        match message:
            case VoteAsk(conflict, _):
                self.asked.add((sender, conflict))
            case VoteCast(conflict, choices):
                self.cast[conflict, sender].add(msgspec.msgpack.encode(choices, order="sorted"))
            case VoteEnded():
                self.ended.append((sender, message))

    def put(self, node, key, value):
        if node in self.world.up:
            self.world[node].replica.put(Put(key, value, context={}))  # as one who has not read: a sibling
            self.world.submit(node, Outputs())

    def settled(self):
        members = list(self.world)
        return (
            len(members) == len(self.names)
            and len({member.replica.digest for member in members}) == 1
            and not any(member.replica.conflicts.pending() for member in members)
            and not any(member.replica.space.open_bytes for member in members)
        )

    def check(self):
        """What holds of every run: ballots are stable, an outcome is that of a majority, and each vote has one."""
        for (conflict, voter), ballots in self.cast.items():
            assert len(ballots) == 1, f"{voter} voted twice in {conflict}: {ballots}"
        winners = defaultdict(set)
        for _, ended in self.ended:
            for path, winner in ended.winners.items():
                winners[ended.conflict, path].add(winner)
                assert list(ended.ballots[path].values()).count(winner) > len(VOTERS) // 2
        assert all(len(found) == 1 for found in winners.values()), winners
        return winners


def partitioned(cluster):
    """Two sides write while they are apart; then they meet."""
    world = cluster.world
    assert world.run(until=lambda: all(len(m.core.membership.peers()) == 4 for m in world), ticks_max=300)
    world.partition({"n0", "n1", "n2"}, {"n3", "n4"})
    cluster.put("n0", "x/0", "left")
    world.run(20)
    cluster.put("n4", "x/0", "right")  # later: the last writer
    world.run(20)
    world.heal()
