"""Members of one group in one process: real logs and sockets, one loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path

from nova.consensus.engine import ConsensusEngine, EngineOptions
from nova.sim.machine import KeyValue

SECONDS_MAX = 30


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


async def eventually(condition, what="", seconds=SECONDS_MAX):
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true within {seconds} s: {what() if callable(what) else what}"
        await asyncio.sleep(0.005)
    return value


class Engines:
    """Engines by name; `async with` closes what still runs."""

    def __init__(self, folder: Path, names="abc", *, machine=KeyValue, others="", **options):
        ports = free_ports(len(names) + len(others))
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in zip([*names, *others], ports, strict=True)}
        self.voters = tuple(names)
        self.folder, self.machine = folder, machine
        self.options = EngineOptions(**{"segment_bytes": 1 << 20, "timeout_ms": 20_000, "close_ms": 2_000, **options})
        self.up: dict[str, ConsensusEngine] = {}

    def make(self, name, **more):
        return ConsensusEngine(
            name, self.addresses, self.folder / name, self.machine(),
            **{"voters": self.voters, "options": self.options, **more},
        )  # fmt: skip

    async def start(self, *names):
        for name in names or self.voters:
            engine = self.make(name)
            await engine.start()
            self.up[name] = engine
        return self

    async def stop(self, name):
        await self.up.pop(name).aclose()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        # The leader last: it need not look for heirs that go as well.
        for engine in sorted(self.up.values(), key=lambda engine: engine._replica.core.leader == engine.node):
            await engine.aclose()

    def __getitem__(self, name):
        return self.up[name]

    def __iter__(self):
        return iter(self.up.values())

    async def leader(self):
        """The engine that leads, as all that run see it."""

        def agreed():
            leaders = {engine.status().core.leader for engine in self}
            return len(leaders) == 1 and self.up.get(leaders.pop() or "")

        return await eventually(agreed, lambda: [engine.status().core for engine in self])

    async def follower(self):
        leader = await self.leader()
        return next(engine for engine in self if engine is not leader)

    async def same(self):
        """All that run have applied the same."""
        await eventually(
            lambda: len({engine.status().applied for engine in self}) == 1,
            lambda: [engine.status() for engine in self],
        )
        assert len({engine.machine.digest for engine in self}) == 1
