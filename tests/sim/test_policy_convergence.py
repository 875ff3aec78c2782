"""Replicas with one policy settle the same random conflicts to identical bytes, in any order of delivery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from nova.clock import VectorClock
from nova.conflict.detect import ConflictDetector, Version, prune
from nova.conflict.policy import PolicyManager, policy_from_toml
from nova.conflict.strategies import LastWriteWins
from nova.sim.network import Link
from nova.sim.world import World
from nova.types import Outputs
from tests.conflict.conflicts import frozen

POLICY = """
name = "production"
default = "semantic"

[strategies.regions]
use = "highest_priority"
by = "region"
priorities = { n0 = 2, n1 = 2, n2 = 1 }

[fallback]
regions = "operational_transform"
operational_transform = "lww"

[fields]
"/cpu" = "max"
"networks[*].ip" = "manual"
"limits.*" = "min"

[[rules]]
name = "texts"
when = { resource = "text/*" }
use = "operational_transform"

[[rules]]
name = "wide"
when = { complexity_over = 0.2 }
use = "regions"

[[rules]]
name = "many"
when = { siblings_over = 2 }
use = "multi_value"

[[escalations]]
name = "back"
when = { resource = "rolled/*" }
action = "roll_back"
"""
RESOURCES = ("doc/1", "doc/2", "text/1", "rolled/1")
BASE = {
    "doc/1": {"cpu": 2, "name": "x", "networks": [{"id": "e0", "ip": "1"}], "limits": {"a": 5, "b": 5}},
    "doc/2": {"cpu": 2, "tags": ["a"], "note": "hello"},
    "text/1": "the quick fox",
    "rolled/1": {"n": 1},
}
LINK = Link(delay_ns_min=1_000_000, jitter_ns_mean=200_000_000, loss_ratio=0.0, duplicate_ratio=0.2, reorder_ratio=0.5)


class Codec:
    def encode(self, message: Any) -> bytes:
        return msgspec.msgpack.encode(message)

    def decode(self, data: bytes) -> Any:
        return msgspec.msgpack.decode(data)


class Settler:
    """A node that writes each resource once, without having seen the others, and settles what has come so far."""

    def __init__(self, name: str, names: list[str], random: Any) -> None:
        self.name, self.names, self.random = name, names, random
        self.detector = ConflictDetector()
        # A manager of its own: what it remembers must not show in what it settles.
        self.manager = PolicyManager([policy_from_toml(POLICY)])
        self.held: dict[str, list[Version]] = {resource: [] for resource in RESOURCES}
        self.settled: dict[str, bytes] = {}
        self.written = False

    def step(self, sender: str, message: Any) -> Outputs:
        resource, value, clock, stamp, origin = message
        self.take(resource, Version(value, VectorClock(clock), stamp, origin, {"region": origin}))
        return Outputs()

    def tick(self) -> Outputs:
        if self.written:
            return Outputs()
        self.written = True
        out = Outputs()
        for resource in RESOURCES:
            value = changed(BASE[resource], self.random)
            version = Version(
                value, VectorClock({"base": 1, self.name: 1}), self.random.randrange(3) << 16, self.name,
                {"region": self.name},
            )  # fmt: skip
            self.take(resource, version)
            message = [resource, value, version.clock.to_dict(), version.timestamp, self.name]
            out.send += [(peer, message) for peer in self.names if peer != self.name]
        return out

    def take(self, resource: str, version: Version) -> None:
        if all(other.origin != version.origin for other in self.held[resource]):
            self.held[resource].append(version)
        held = prune(self.held[resource])
        if len(held) < 2:
            return
        conflict = self.detector.examine(resource, "register", {"": held})
        base = Version(BASE[resource], VectorClock({"base": 1}), 0, "base")
        conflict = conflict.replace(base=base)
        self.settled[resource] = frozen(self.manager.resolve(conflict))


def changed(value: Any, random: Any) -> Any:
    if isinstance(value, Mapping):
        out = {key: changed(item, random) if random.random() < 0.5 else item for key, item in value.items()}
        if random.random() < 0.2:
            out.pop(random.choice(sorted(out)))
        if random.random() < 0.2:
            out[f"new{random.randrange(2)}"] = random.randrange(3)
        return out
    if isinstance(value, list):
        return [changed(item, random) for item in value] + ([random.randrange(3)] if random.random() < 0.3 else [])
    if isinstance(value, str):
        at = random.randrange(len(value) + 1)
        return value[:at] + random.choice(["", "A", "B"]) + value[at + random.randrange(2) :]
    return value + random.randrange(4)


def history(seed: int, nodes: int) -> World:
    names = [f"n{i}" for i in range(nodes)]
    world = World(
        seed,
        names,
        lambda name, log, snapshots, random, clock: Settler(name, names, random),
        network=LINK,
        codec=Codec(),
    )
    world.run(ticks=60)
    return world


@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("seed", range(40))
def test_replicas_with_one_policy_settle_to_identical_bytes(seed, nodes):
    world = history(seed, nodes)
    settled = [node.settled for node in world]
    assert all(len(node.held[resource]) == nodes for node in world for resource in RESOURCES)
    assert all(each.keys() == set(RESOURCES) for each in settled)
    assert all(each == settled[0] for each in settled)


def test_a_strategy_that_goes_by_the_order_of_arrival_is_noticed(monkeypatch):
    resolve = PolicyManager.resolve

    def by_arrival(self, conflict, *args, **more):
        found = resolve(self, conflict, *args, **more)
        return found.replace(value=conflict.versions[0].value)

    monkeypatch.setattr(PolicyManager, "resolve", by_arrival)
    examine = ConflictDetector.examine

    def as_they_came(self, resource, kind, siblings, **more):
        found = examine(self, resource, kind, siblings, **more)
        return found.replace(versions=tuple(siblings[""]))

    monkeypatch.setattr(ConflictDetector, "examine", as_they_came)
    worlds = [history(seed, 3) for seed in range(5)]
    assert any(node.settled != world["n0"].settled for world in worlds for node in world)


def test_the_strategies_of_this_policy_do_not_all_come_to_the_same():
    """Else the test above would show nothing."""
    world = history(1, 3)
    node = world["n0"]
    conflict = ConflictDetector().examine("doc/1", "register", {"": node.held["doc/1"]})
    assert frozen(LastWriteWins().resolve(conflict)) != node.settled["doc/1"]
