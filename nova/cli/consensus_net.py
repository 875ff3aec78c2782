"""Puts over the network against a group of three processes, from a process of their own: ours, or etcd's.

`python -m nova.cli.consensus_net member CONFIG` is a member with a port for clients, `... load CONFIG` the callers.
Each caller has one put out at a time, and they share so many clients, which is so many connections.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from nova.cli.consensus_works import Followers, Work, each_of, free_addresses
from nova.consensus.answering import ServingOptions
from nova.consensus.client import ConsensusClient
from nova.consensus.core import Command, OverloadedError
from nova.consensus.engine import ConsensusEngine, EngineOptions
from nova.consensus.serving import ClientServer
from nova.runtime import new_loop

KEYS: Final = 1_000
VALUE: Final = bytes(range(128))
WARMUP_S: Final = 0.2
MODULE: Final = "nova.cli.consensus_net"

Put = Callable[[bytes], Awaitable[Any]]


class Values:
    """A machine of values by key: a command is the length of the key, the key and the value."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def apply(self, commands: Sequence[Command]) -> list[bytes]:
        """Put them."""
        values = self.values
        for command in commands:
            data = command.data
            end = 1 + data[0]
            values[data[1:end]] = data[end:]
        return [b""] * len(commands)

    def read(self, query: bytes) -> bytes:
        """The value of a key, b"" if there is none."""
        return self.values.get(query, b"")

    def snapshot(self) -> bytes:
        """All of them."""
        return msgspec.msgpack.encode(sorted(self.values.items()))

    def restore(self, data: bytes) -> None:
        """Replace them."""
        self.values = dict(msgspec.msgpack.decode(data, type=list[tuple[bytes, bytes]]))


def put(key: bytes, value: bytes) -> bytes:
    """The command that puts a value."""
    return bytes([len(key)]) + key + value


async def _member(config: dict[str, Any]) -> None:
    """A member until its input ends."""
    engine = ConsensusEngine(
        config["node"], config["members"], config["directory"], Values(),
        options=EngineOptions(protocol={"election_ticks": config["election_ticks"]}),
    )  # fmt: skip
    ports, options = config["clients"], ServingOptions(**config["serving"])
    async with engine, ClientServer(engine, ports[config["node"]], addresses=ports, options=options):
        await engine.read(b"", timeout_s=30)  # there is a leader
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


class PortGroup:
    """Three processes, each with a port for clients; the first leads. Context manager.

    serving  options of the ports
    """

    def __init__(self, folder: Path, **serving: int) -> None:
        addresses = free_addresses(6)
        members, self.clients = (dict(zip("abc", part, strict=True)) for part in (addresses[:3], addresses[3:]))
        self._configs = [
            {
                "node": name, "members": members, "directory": str(folder / name), "clients": self.clients,
                "election_ticks": 10 if name == "a" else 100, "serving": serving,
            }
            for name in "abc"
        ]  # fmt: skip

    def __enter__(self) -> PortGroup:
        self._members = Followers("member", self._configs, module=MODULE)
        return self

    def __exit__(self, *_: object) -> None:
        self._members.end()


# --- callers ----------------------------------------------------------------------------------------------------------


async def _nova(stack: AsyncExitStack, addresses: list[str], count: int) -> list[Put]:
    clients = [await stack.enter_async_context(ConsensusClient(addresses)) for _ in range(count)]
    for client in clients:
        await client.propose(put(b"load/0", VALUE), timeout_s=30)

    def putting(client: ConsensusClient) -> Put:
        return lambda key: client.propose(put(key, VALUE))

    return [putting(client) for client in clients]


async def _etcd(stack: AsyncExitStack, addresses: list[str], count: int) -> list[Put]:
    """etcd's own gRPC, by aetcd."""
    import aetcd  # type: ignore[import-not-found, import-untyped, unused-ignore]

    def putting(client: Any) -> Put:
        return lambda key: client.put(key, VALUE)

    puts = []
    for _ in range(count):
        host, _, port = addresses[0].rpartition(":")
        client = await stack.enter_async_context(aetcd.Client(host=host, port=int(port)))
        await client.put(b"load/0", VALUE)
        puts.append(putting(client))
    return puts


async def _round(puts: list[Put], callers: int, seconds: float, each: int) -> dict[str, Any]:
    """One round: for so long, or of so many puts by each caller."""
    took: list[float] = []
    refused: list[float] = []
    begin = time.perf_counter() + (WARMUP_S if seconds else 0)
    end = begin + seconds

    async def caller(number: int) -> None:
        ask = puts[number % len(puts)]
        serial = number
        while True:
            before = time.perf_counter()
            if before >= end if seconds else serial >= number + callers * each:
                return
            serial += callers
            try:
                await ask(b"load/%d" % (serial % KEYS))
            except OverloadedError as error:
                refused.append(before)
                await asyncio.sleep(error.retry_after_ns / 1e9)
                continue
            if before >= begin:
                took.append(time.perf_counter() - before)

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    took.sort()
    return {
        "per_s": len(took) / (seconds or wall), "p50_ms": took[len(took) // 2] * 1e3,
        "p99_ms": took[len(took) * 99 // 100] * 1e3, "load_cpu_cores": cpu / wall,
        "refused_per_s": sum(at >= begin for at in refused) / (seconds or wall),
    }  # fmt: skip


async def _callers(config: dict[str, Any]) -> None:
    """For each line of the input, which tells how, a round and a line of figures."""
    make = {"nova": _nova, "etcd": _etcd}[config["what"]]
    async with AsyncExitStack() as stack:
        puts = await make(stack, config["addresses"], config["clients"])
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            told = json.loads(line)
            print(json.dumps(await _round(puts, told["callers"], told["seconds"], told["each"])), flush=True)


class Load:
    """The process of the callers. what: `nova` or `etcd`. Context manager."""

    def __init__(self, what: str, addresses: Sequence[str], *, clients: int = 1) -> None:
        self._config = {"what": what, "addresses": list(addresses), "clients": clients}

    def __enter__(self) -> Load:
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, "load", json.dumps(self._config)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.__exit__()
            raise RuntimeError(f"the callers ended with {self._process.wait()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def round(self, callers: int, *, seconds: float = 0, each: int = 0) -> dict[str, float]:
        """The figures of one round: of so many seconds, or of so many puts by each caller."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"callers": callers, "seconds": seconds, "each": each}) + "\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found


def port_puts(clients: int) -> Callable[[Path], Any]:
    """Work: closed-loop puts of so many callers over one connection."""

    @contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        with PortGroup(folder) as group, Load("nova", list(group.clients.values())) as load:
            yield lambda: load.round(clients, each=each_of(clients))

    return maker


if __name__ == "__main__":
    works = {"member": _member, "load": _callers}
    loop = new_loop()
    loop.run_until_complete(works[sys.argv[1]](json.loads(sys.argv[2])))
    loop.close()
