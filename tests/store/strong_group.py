"""Strong keys of a group of engines in one process, on real logs and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time

import msgspec

from nova.consensus import ConsensusEngine, EngineOptions
from nova.store.strong import StrongKeys, WatchedMachine


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


async def eventually(condition, what="", seconds=30):
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true within {seconds} s: {what() if callable(what) else what}"
        await asyncio.sleep(0.005)
    return value


class Group:
    """name -> StrongKeys; `async with` starts all and closes what still runs."""

    def __init__(
        self, folder, names="abc", *, bytes_max=1 << 24, protocol="raft", lease=False, protocol_options=None, **options
    ):
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}
        self.folder, self.protocol, self.bytes_max = folder, protocol, bytes_max
        self.options = EngineOptions(**{"segment_bytes": 1 << 20, "timeout_ms": 20_000, "close_ms": 2_000, **options})
        if given := {**(protocol_options or {}), **({"lease_reads": True} if lease else {})}:
            self.options = msgspec.structs.replace(self.options, protocol=given)
        self.up: dict[str, StrongKeys] = {}

    async def start(self, name):
        machine, count = WatchedMachine(), itertools.count(1)
        engine = ConsensusEngine(
            name, self.addresses, self.folder / name, machine, protocol=self.protocol, options=self.options
        )
        await engine.start()
        keys = StrongKeys(engine, machine, node=name, now_ms=lambda: next(count), bytes_max=self.bytes_max)
        self.up[name] = keys
        return keys

    async def stop(self, name):
        await self.up.pop(name).engine.aclose()

    async def __aenter__(self):
        for name in self.addresses:
            await self.start(name)
        return self

    async def __aexit__(self, *_):
        for name in list(self.up):
            await self.stop(name)

    def __getitem__(self, name):
        return self.up[name]

    def __iter__(self):
        return iter(self.up.values())

    async def leader(self):
        def agreed():
            leaders = {keys.engine.status().core.leader for keys in self}
            return len(leaders) == 1 and self.up.get(leaders.pop() or "")

        return await eventually(agreed, lambda: [keys.engine.status().core for keys in self])

    async def follower(self):
        leader = await self.leader()
        return next(keys for keys in self if keys is not leader)

    async def same(self):
        """All that run have applied the same."""
        await eventually(
            lambda: len({(keys.machine.revision, keys.machine.digest) for keys in self}) == 1,
            lambda: [(keys.machine.revision, keys.machine.digest) for keys in self],
        )
        assert len({keys.machine.snapshot() for keys in self}) == 1
