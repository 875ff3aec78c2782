from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import msgspec
import pytest

import nova.sim
from nova.sim.checkers import Histories, converged, differences, lost
from nova.sim.faults import KINDS, Crash, Fault, Heal, Restart, random_plan
from nova.sim.network import Link
from nova.sim.world import InvariantError, World
from nova.types import Dot, Outputs

SECOND = 1_000_000_000


class Ball(msgspec.Struct, frozen=True, array_like=True, tag="b"):
    count: int


class BallCodec:
    def encode(self, message: Any) -> bytes:
        return msgspec.msgpack.encode(message)

    def decode(self, data: bytes) -> Any:
        return msgspec.msgpack.decode(data, type=Ball)


class Player:
    """Persists each ball it gets, then throws it on."""

    def __init__(self, name: str, log: Any, snapshots: Any, chance: random.Random, clock: Any) -> None:
        self.name, self.log, self.clock = name, log, clock
        self.kept = [int(record) for _, record in log.replay()]
        self.chance = chance
        self.told: list[int] = []

    def step(self, sender: str, ball: Ball) -> Outputs:
        self.kept.append(ball.count)
        return Outputs([str(ball.count).encode()], [(sender, Ball(ball.count + 1))], [ball.count])

    def tick(self) -> Outputs:
        if self.name == "n0" and self.chance.random() < 0.1:
            return Outputs(send=[("n1", Ball(0))])
        return Outputs()

    def applied(self, event: int) -> None:
        assert self.log.durable >= len(self.told) + 1, "told before it was durable"
        self.told.append(event)


def playing(seed: int, **options: Any) -> World:
    return World(seed, 2, Player, codec=BallCodec(), **options)


def test_the_public_names_are_loaded_when_they_are_used() -> None:
    show = "import nova.sim, sys; print(*(name for name in sys.modules if name.startswith('nova.sim.')))"
    assert subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout == "\n"
    for name in nova.sim.__all__:
        assert getattr(nova.sim, name) is not None
    with pytest.raises(AttributeError, match="it has Group"):
        nova.sim.Wolrd  # noqa: B018


def test_one_seed_gives_one_history() -> None:
    link = Link(loss_ratio=0.1, duplicate_ratio=0.1, reorder_ratio=0.1)
    traces = []
    for seed in (1, 1, 2):
        world = playing(seed, network=link)
        world.run(ticks=50)
        traces.append(world.trace)
    assert traces[0] == traces[1] != traces[2]


@pytest.mark.parametrize("seed", range(40))
def test_what_was_applied_survives_a_crash(seed: int) -> None:
    told: list[int] = []
    world = playing(seed, on_event=lambda node, event: told.append(event) if node == "n1" else None)
    world.run(ticks=20)
    world.crash("n1")
    assert world.up == ["n0"]
    world.run(ticks=3)
    world.restart("n1")
    assert world["n1"].kept[: len(told)] == told


def test_a_cut_stops_one_direction_and_a_partition_both() -> None:
    heard: list[tuple[str, str]] = []

    class Talker:
        def __init__(self, name: str, *_: Any) -> None:
            self.name = name

        def step(self, sender: str, message: Any) -> Outputs:
            heard.append((sender, self.name))
            return Outputs()

        def tick(self) -> Outputs:
            return Outputs(send=[(peer, "hello") for peer in ("n0", "n1") if peer != self.name])

    world = World(0, 2, Talker)
    world.cut("n0", "n1")
    world.run(ticks=5)
    assert set(heard) == {("n1", "n0")}
    world.partition({"n0"}, {"n1"})
    world.run(ticks=1)
    heard.clear()
    world.run(ticks=5)
    assert not heard
    world.heal()
    assert world.run(until=lambda: len(set(heard)) == 2, ticks_max=3)


def test_a_broken_invariant_names_the_seed() -> None:
    def few_events(world: World) -> None:
        assert world.events < 5, "too many events"

    with pytest.raises(InvariantError, match=r"seed 7, event 5 .*too many events"):
        playing(7, invariants=[few_events]).run(ticks=10)


def test_a_plan_mends_everything_at_its_end() -> None:
    kinds = [kind for kind in KINDS if kind != "duplicate"]  # two balls would be two for ever, and soon a thousand
    for seed in range(50):
        plan: list[Fault] = random_plan(random.Random(seed), ["n0", "n1"], SECOND, faults=10, kinds=kinds)
        world = playing(seed)
        world.plan(plan)
        world.run(ticks=12)
        assert world.up == ["n0", "n1"]
        assert not world.network.cuts
        assert isinstance(plan[-1], Heal)
        assert msgspec.json.decode(msgspec.json.encode(Crash(1, "n0")), type=Crash | Restart) == Crash(1, "n0")


def test_checkers_tell_what_is_wrong() -> None:
    equal = {"a": (b"x", {"a~1": 2}), "b": (b"x", {"a~1": 2})}
    assert converged(equal)
    assert not differences(equal)
    assert not converged({**equal, "c": (b"x", {"a~1": 1})})
    assert differences({**equal, "c": (b"y", {"a~1": 1})}) == [
        "a knows 2 of a~1, c knows 1",
        "the digest of a is b'x', that of c b'y'",
    ]
    assert lost([Dot("a~1", 2), Dot("a~1", 3)], {"a~1": 2}) == [Dot("a~1", 3)]


def test_sessions_must_see_what_they_wrote_and_had_read() -> None:
    histories = Histories()
    histories.write("s", "k", Dot("a~1", 3))
    histories.read("s", "k", {"a~1": 3, "b~1": 1})
    assert not histories.violations()
    histories.read("s", "k", {"a~1": 2, "b~1": 1})
    histories.read("s", "k", {"a~1": 3})
    assert [line.split(":")[0] for line in histories.violations()] == [
        "read your writes", "monotonic reads", "monotonic reads",
    ]  # fmt: skip


def test_a_crash_takes_what_was_not_synced_and_nobody_was_told_of_it() -> None:
    survived = []
    for seed in range(20):
        told: list[Any] = []
        world = playing(seed, on_event=lambda node, event, told=told: told.append(event))
        world.submit("n1", Outputs([b"7"], [("n0", Ball(8))], [7]))
        world.crash("n1")
        assert not told
        assert world.messages == 0
        world.restart("n1")
        survived.append(world["n1"].kept == [7])
    assert not all(survived)
