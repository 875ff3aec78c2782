"""What a node hands to the controller of its group, and what it does not take for a reason."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from nova.consensus.adaptive import Observation
from nova.errors import StaleContextError
from nova.metrics import Registry
from nova.server.adaptive import Adaptive
from nova.server.config import Limits, NodeConfig
from nova.server.group import Group
from nova.server.group_config import Consensus


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


def with_group(scenario: Any, folder: Path, count: int = 1) -> None:
    """Run with the groups of `count` members, a first, in one process."""

    async def inner() -> None:
        members = {name: f"127.0.0.1:{port}" for name, port in zip("abc"[:count], free_ports(count), strict=True)}
        groups = [
            Group(
                NodeConfig(
                    name=name, data=str(folder / name), limits=Limits(segment_bytes=1 << 20),
                    consensus=Consensus(members=members),
                ),
                Registry(),
            )
            for name in members
        ]  # fmt: skip
        for group in groups:
            await group.engine.start()
        try:
            async with asyncio.timeout(30):
                await scenario(*groups)
        finally:
            for group in groups:
                await group.engine.aclose()

    asyncio.run(inner())


def test_the_round_trips_and_regions_of_members_count_and_those_of_others_do_not(tmp_path: Path) -> None:
    async def scenario(group: Group, *_: Group) -> None:
        links = {"b": (30.0, "east"), "c": (50.0, "west"), "z": (900.0, "moon")}
        adaptive = Adaptive(group, lambda: links, "east")
        assert adaptive.observe() == Observation(rtt_ms=40.0, regions=2)
        links.clear()
        assert adaptive.observe() == Observation()

    with_group(scenario, tmp_path, 3)


def test_what_is_refused_as_stale_of_late_is_the_rate_of_conflicts(tmp_path: Path) -> None:
    async def scenario(group: Group) -> None:
        adaptive = Adaptive(group, dict, "east")
        await group.keys.put("k", 1)
        for _ in range(3):
            with pytest.raises(StaleContextError):
                await group.keys.put("k", 1, expect=0)
        assert adaptive.observe().conflict_rate == 0.75
        assert adaptive.observe().conflict_rate is None

    with_group(scenario, tmp_path)


def test_nothing_changes_while_nothing_is_measured(tmp_path: Path) -> None:
    async def scenario(group: Group, *_: Group) -> None:
        links: dict[str, tuple[float, str]] = {}
        adaptive = Adaptive(group, lambda: links, "east")
        assert adaptive.status() == {"policy": "measured v1", "decision": None}
        assert adaptive.controller.observe(0, adaptive.observe()) is None
        links |= {"b": (1.0, "east"), "c": (0.0, "east")}  # a round trip of 0: it was not measured
        assert adaptive.controller.observe(1, adaptive.observe()) is None
        links["b"] = links["c"] = (180.0, "west")
        decision = adaptive.controller.observe(2, adaptive.observe())
        assert decision is not None
        assert decision.strong == "paxos"

    with_group(scenario, tmp_path, 3)


def test_a_decision_is_never_for_what_strong_keys_gain_nothing_from(tmp_path: Path) -> None:
    async def scenario(group: Group) -> None:
        adaptive = Adaptive(group, dict, "east")
        for seen in (
            Observation(rtt_ms=180.0, regions=3, conflict_rate=0.0),
            Observation(rtt_ms=300.0, regions=9, tiers=3),
            Observation(rtt_ms=3.0, regions=1, untrusted=True),
        ):
            assert adaptive.controller.decide(seen).strong in ("raft", "paxos")

    with_group(scenario, tmp_path)
