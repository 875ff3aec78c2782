from __future__ import annotations

import random
from typing import Any, Union

import msgspec
import pytest

from nova.errors import PeerError
from nova.sim.network import Link
from nova.sim.world import World
from nova.sync.membership import (
    MEMBERSHIP_MESSAGES,
    Member,
    MemberDown,
    MemberLeft,
    Membership,
    MembershipConfig,
    MemberSuspected,
    MemberUp,
    News,
    Ping,
)
from nova.types import Outputs

Events = list[tuple[str, Any]]
decoder = msgspec.msgpack.Decoder(Union[MEMBERSHIP_MESSAGES])  # noqa: UP007


class WireCodec:
    def encode(self, message: Any) -> bytes:
        return msgspec.msgpack.encode(message)

    def decode(self, data: bytes) -> Any:
        return decoder.decode(data)


def cluster(seed: int, nodes: int, config: MembershipConfig | None = None, **options: Any) -> tuple[World, Events]:
    """Members that all met the first, then had time to learn of each other."""
    events: Events = []

    def make(name: str, log: Any, snapshots: Any, chance: random.Random, clock: Any) -> Membership:
        return Membership(Member(name), config=config, random=chance)

    world = World(
        seed, nodes, make, codec=WireCodec(), on_event=lambda node, event: events.append((node, event)), **options
    )
    for name in world.names[1:]:
        meet(world, name, "n0")
    assert world.run(until=lambda: all(len(node.peers()) == nodes - 1 for node in world), ticks_max=600)
    events.clear()
    return world, events


def meet(world: World, a: str, b: str) -> None:
    mine, other = world[a].self_member, world[b].self_member
    world.submit(a, world[a].met(other))
    world.submit(b, world[b].met(mine))


def downs(events: Events) -> list[tuple[str, str]]:
    return [(node, event.member.node) for node, event in events if isinstance(event, MemberDown)]


@pytest.mark.parametrize("seed", range(20))
def test_a_crashed_node_is_declared_dead_by_all_and_nobody_else_is(seed: int) -> None:
    world, events = cluster(seed, 8, network=Link(loss_ratio=0.05))
    world.crash("n3")
    assert world.run(until=lambda: all(node.members["n3"].state == "dead" for node in world), ticks_max=400)
    assert {dead for _, dead in downs(events)} == {"n3"}


@pytest.mark.parametrize("seed", range(20))
def test_scenario_73_a_slow_node_refutes_and_its_refutation_wins_everywhere(seed: int) -> None:
    world, events = cluster(seed, 6)
    slow = "n2"
    for name in world.names:
        if name != slow:
            world.cut(slow, name)
    suspected = [e for e in events if isinstance(e[1], MemberSuspected)]
    assert world.run(
        until=lambda: any(isinstance(e, MemberSuspected) and e.member.node == slow for _, e in events), ticks_max=100
    )
    assert not suspected
    world.run(ticks=10)  # less than the suspicion time
    world.heal()
    assert world.run(
        until=lambda: all(n.members[slow].state == "alive" and n.members[slow].incarnation > 0 for n in world),
        ticks_max=100,
    )
    world.run(ticks=200)
    assert slow not in [dead for _, dead in downs(events)]
    assert all(node.members[slow].state == "alive" for node in world)


@pytest.mark.parametrize("seed", range(20))
def test_scenario_74_lost_direct_probes_alone_never_kill(seed: int) -> None:
    world, events = cluster(seed, 5)
    world.cut("n0", "n1")
    world.cut("n1", "n0")
    world.run(ticks=20 * 10 * 4)  # four rounds of 4 peers are at least 16 probes of n1 by n0; at least 20 of both ways
    assert not downs(events)


@pytest.mark.parametrize("seed", range(10))
def test_scenario_75_an_overloaded_node_doubts_itself_and_not_the_others(seed: int) -> None:
    world, events = cluster(seed, 8)
    world.network.slow_ns["n0"] = 1_500_000_000
    health = 0

    def watch(world: World) -> None:
        nonlocal health
        health = max(health, world["n0"].health)

    world.invariants.append(watch)
    world.run(ticks=600)
    assert health >= 3
    assert not [dead for node, dead in downs(events) if dead != "n0"]


@pytest.mark.parametrize("seed", range(20))
def test_scenario_76_a_restarted_node_outbids_its_own_death(seed: int) -> None:
    config = MembershipConfig()
    world, _ = cluster(seed, 6, config)
    for name in world.names[1:]:
        node = world[name]
        world.submit(name, node.step("n5", News([Member("n0", 100, "dead")])))
    world.crash("n0")
    world.run(ticks=2)
    assert all(world[name].members["n0"].incarnation >= 100 for name in world.names[1:])
    world.restart("n0")
    assert world["n0"].self_member.incarnation == 0
    meet(world, "n0", "n4")
    assert world.run(
        until=lambda: all(n.members["n0"].state == "alive" and n.members["n0"].incarnation >= 101 for n in world),
        ticks_max=config.ticks(config.sync_ms),
    )


def test_scenario_76_an_accusation_about_an_unknown_node_is_passed_on() -> None:
    node = Membership(Member("a"), random=random.Random(1))
    node.met(Member("b"))
    node.step("b", News([Member("stranger", 100, "dead")]))
    ((_, ack),) = node.step("b", Ping(1, [])).send
    assert Member("stranger", 100, "dead") in ack.updates


@pytest.mark.parametrize("seed", range(20))
def test_scenario_77_who_left_stays_left_until_it_comes_back_higher(seed: int) -> None:
    world, events = cluster(seed, 5)
    old = world["n2"].self_member
    world.submit("n2", world["n2"].leave())
    world.run(ticks=30)
    world.crash("n2")
    rest = [name for name in world.names if name != "n2"]
    assert all(world[name].members["n2"].state == "left" for name in rest)
    assert {e.member.node for _, e in events if isinstance(e, MemberLeft)} == {"n2"}
    for name in rest:
        world.submit(name, world[name].step("n0", News([old])))
    world.run(ticks=100)
    assert all(world[name].members["n2"].state == "left" for name in rest)
    assert not downs(events)
    events.clear()
    for name in rest[:1]:
        world.submit(name, world[name].met(Member("n2", old.incarnation + 1)))
    world.run(ticks=20)
    assert {node for node, e in events if isinstance(e, MemberUp) and e.member.node == "n2"} == set(rest)


@pytest.mark.parametrize("seed", range(10))
def test_both_halves_of_a_partition_find_together_again(seed: int) -> None:
    world, _ = cluster(seed, 6)
    world.partition({"n0", "n1", "n2"}, {"n3", "n4", "n5"})
    assert world.run(until=lambda: all(len(node.peers()) == 2 for node in world), ticks_max=600)
    world.heal()
    meet(world, "n1", "n4")  # the transport tries again
    assert world.run(until=lambda: all(len(node.peers()) == 5 for node in world), ticks_max=300)
    assert world.run(until=lambda: len({node.digest for node in world}) == 1, ticks_max=300)


@pytest.mark.parametrize("seed", range(5))
def test_a_lost_session_starts_a_probe_at_once(seed: int) -> None:
    world, events = cluster(seed, 5)
    world.crash("n1")
    for name in world.up:
        world.submit(name, world[name].lost("n1"))
    world.run(ticks=12)
    assert {node for node, event in events if isinstance(event, MemberSuspected)} == set(world.up)
    assert world.run(until=lambda: len(downs(events)) == 4, ticks_max=90)


@pytest.mark.parametrize("nodes", [10, 100])
def test_traffic_per_member_does_not_grow_with_the_cluster(nodes: int) -> None:
    counted: list[int] = []

    def make(name: str, log: Any, snapshots: Any, chance: random.Random, clock: Any) -> Membership:
        node = Membership(Member(name), random=chance)
        for index in range(nodes):
            if name != f"n{index}":
                node._store(Member(f"n{index}"))  # as if all had met long ago
        return node

    world = World(
        3, nodes, make, sent=lambda source, target, message: counted.append(len(msgspec.msgpack.encode(message)))
    )
    world.run(ticks=50)
    messages, size = len(counted) / nodes / 5, sum(counted) / nodes / 5
    print(f"{nodes} members: {messages:.2f} messages and {size:.0f} bytes a second from each")
    assert 1.5 <= messages <= 2.5
    assert size < 100


def test_six_hundred_members_hear_of_a_newcomer_at_the_same_cost() -> None:
    nodes = 600
    busiest: dict[str, int] = {}

    def make(name: str, log: Any, snapshots: Any, chance: random.Random, clock: Any) -> Membership:
        node = Membership(Member(name), random=chance)
        for index in range(nodes):
            if name != f"n{index}":
                node._store(Member(f"n{index}"))
        return node

    def count(source: str, target: str, message: Any) -> None:
        busiest[source] = busiest.get(source, 0) + 1

    world = World(5, nodes, make, sent=count)
    world.run(ticks=10)
    busiest.clear()
    world.submit("n0", world["n0"].step("n1", News([Member("newcomer")])))
    start = world.now
    assert world.run(until=lambda: all("newcomer" in node.members for node in world), ticks_max=300)
    seconds = (world.now - start) / 1e9
    print(f"600 members knew of a newcomer after {seconds:.1f} s; busiest sent {max(busiest.values())} messages")
    assert seconds < 15
    assert max(busiest.values()) / seconds < 8


def test_a_message_stays_small_however_much_news_there_is() -> None:
    node = Membership(Member("a"), random=random.Random(1))
    for i in range(1_000):
        node.met(Member(f"n{i}"))
    ((_, ack),) = node.step("n1", Ping(1, [])).send
    assert len(ack.updates) == MembershipConfig().updates_max


def test_the_dead_are_forgotten_and_strangers_do_not_fill_the_memory() -> None:
    config = MembershipConfig(members_max=50, forget_ms=60_000)
    node = Membership(Member("a"), config=config, random=random.Random(1))
    for i in range(500):
        node.step("b", News([Member(f"n{i}", 0, "dead" if i % 2 else "left")]))
    assert len(node.members) == 50
    for _ in range(1_000):
        node.tick()
    assert list(node.members) == ["a"]


@pytest.mark.parametrize("bad", [Member("b", -1), Member("b", 2**60), Member(""), Member("b", region="x" * 300)])
def test_a_member_that_cannot_be_is_refused(bad: Member) -> None:
    node = Membership(Member("a"), random=random.Random(1))
    with pytest.raises(PeerError):
        node.step("b", News([bad]))
    assert node.tick() == Outputs()
