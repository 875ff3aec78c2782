"""A consensus group of real processes, whose streams run through proxies that can hold one direction."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from real_nodes import ROOT, _die_with_the_tests, free_ports

from nova.errors import UnavailableError
from nova.sim.linearize import REFUSED, Call, KeyValue, check_linearizable
from nova.storage.unsynced import cut_power

SECONDS_MAX = 40.0
PROGRAM = Path(__file__).with_name("consensus_member.py")


class Lost(Exception):
    """The member is gone, or did not do it. `certain`: and will not."""

    def __init__(self, text: str, *, certain: bool = False) -> None:
        super().__init__(text)
        self.certain = certain


async def eventually(condition: Any, what: Any = "", seconds: float = SECONDS_MAX) -> Any:
    """The first true value of an async function."""
    end = time.monotonic() + seconds
    while not (value := await condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not true within {seconds:g} s: {await what() if callable(what) else what}")
        await asyncio.sleep(0.01)
    return value


class Towards(KeyValue):
    """Texts by key of which the last read is known: whatever does not lead there need not be looked at."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def step(self, state: Any, call: Call) -> Any:
        after = super().step(state, call)
        leads_there = after is REFUSED or self._texts[str(call.key)].startswith(after)
        return after if leads_there else REFUSED


class Proxies:
    """Between every two members: what one sends the other may be held, and comes later, as it was."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self._addresses = addresses
        self._held: set[tuple[str, str]] = set()
        self._changed = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.at: dict[tuple[str, str], str] = {}

    async def start(self) -> None:
        for source in self._addresses:
            for target in self._addresses:
                if source == target:
                    continue

                async def connected(reader: Any, writer: Any, source: str = source, target: str = target) -> None:
                    host, _, port = self._addresses[target].rpartition(":")
                    try:
                        there, back = await asyncio.open_connection(host, int(port))
                    except OSError:
                        writer.close()
                        return
                    for direction, one, two in (((source, target), reader, back), ((target, source), there, writer)):
                        task = asyncio.ensure_future(self._copy(direction, one, two))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)

                server = await asyncio.start_server(connected, "127.0.0.1", 0)
                self._servers.append(server)
                self.at[source, target] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _copy(self, direction: tuple[str, str], reader: Any, writer: Any) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                while direction in self._held:
                    changed = self._changed
                    await changed.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    def hold(self, *directions: tuple[str, str]) -> None:
        """From now on hold these directions, and no others."""
        self._held = set(directions)
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        self.hold()
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Member:
    """One process."""

    def __init__(self, group: Group, name: str) -> None:
        self.group, self.name = group, name
        self.directory = group.folder / name
        self.words_file = group.folder / f"{name}.log"
        self.process: asyncio.subprocess.Process | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._reading: asyncio.Task[None] | None = None

    async def launch(self) -> None:
        """Start the process."""
        group = self.group
        members = {
            name: address if name == self.name else group.proxies.at[self.name, name]
            for name, address in group.addresses.items()
        }
        config = {
            "node": self.name, "members": members, "voters": sorted(members), "directory": str(self.directory),
            "listen": group.addresses[self.name], "options": group.options, "disk_ms": group.disk_ms,
            "clients": group.ports, "serving": group.serving,
        }  # fmt: skip
        with open(self.words_file, "ab") as words:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, str(PROGRAM), json.dumps(config), stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=words, cwd=ROOT, preexec_fn=_die_with_the_tests, limit=1 << 24,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        self._waiting = {0: asyncio.get_running_loop().create_future()}
        self._ready = self._waiting[0]
        self._reading = asyncio.ensure_future(self._read(self.process))

    async def start(self) -> Member:
        """Start it, and wait until it takes part."""
        await self.launch()
        try:
            await asyncio.wait_for(self._ready, SECONDS_MAX)
        except Lost:
            raise AssertionError(f"{self.name} did not start:\n{self.words()}") from None
        return self

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            told = json.loads(line)
            future = self._waiting.pop(told["id"], None)
            if future is None or future.done():
                continue
            if "error" in told:
                certain = told["error"] in ("OverloadedError", "UnavailableError", "SealedError", "NotLeaderError")
                future.set_exception(Lost(f"{told['error']}: {told['text']}", certain=certain))
            else:
                future.set_result(told["result"])
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Lost(f"{self.name} is gone"))
                future.exception()
        self._waiting.clear()

    async def ask(self, op: str, **more: Any) -> Any:
        """Raises Lost."""
        assert self.process is not None
        assert self.process.stdin is not None
        if not self.running:
            raise Lost(f"{self.name} does not run", certain=True)
        self._number += 1
        future = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        request = {"id": self._number, "op": op, "timeout": 10.0, **more}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return await future

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None and not self._reading.done()

    async def kill(self) -> None:
        """SIGKILL, and wait until the kernel has buried it."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def cut_power(self) -> bool:
        """Take every page that was not synced from the log of the dead member. False where that cannot be told."""
        try:
            for path in sorted((self.directory / "log").glob("*.log")):
                cut_power(path)
        except UnavailableError:
            return False
        return True

    def words(self) -> str:
        return self.words_file.read_text("utf-8", "replace")[-6000:]


class Group:
    """The members, and what clients saw of them.

    disk_ms  what every write of theirs takes longer
    serving  options of their ports for clients, `ports`; None: they have none
    """

    def __init__(
        self, folder: Path, names: str = "abc", disk_ms: int = 0, serving: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self.folder, self.disk_ms, self.serving = folder, disk_ms, serving
        self.ports: dict[str, str] = {}
        if serving is not None:
            self.ports = {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}
        self.options = {"segment_bytes": 1 << 20, **options}
        self.proxies = Proxies(self.addresses)
        self.members = {name: Member(self, name) for name in names}
        self.history: list[Call] = []
        self.acknowledged: dict[int, str] = {}
        self.impossible: set[int] = set()
        self._serial = 0
        self._clients: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> Group:
        await self.proxies.start()
        try:
            await asyncio.gather(*(member.start() for member in self.members.values()))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        for member in self.members.values():
            if member.process is not None:
                await member.kill()
        await self.proxies.close()

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def words(self) -> str:
        return "\n".join(f"--- {name}\n{member.words()}" for name, member in self.members.items())

    async def leader(self, among: str | None = None) -> Member:
        """Who leads, as a majority of those asked says."""

        async def agreed() -> Member | None:
            told = await self._states(among)
            leaders = [state["leader"] for state in told if state["leader"]]
            for name in set(leaders):
                leads = self.members[name].running and (among is None or name in among)
                if leads and leaders.count(name) * 2 > len(self.members):
                    return self.members[name]
            return None

        return await eventually(agreed, lambda: self._states(among))

    async def _states(self, among: str | None) -> list[dict[str, Any]]:
        told = await asyncio.gather(
            *(member.ask("status") for name, member in self.members.items() if among is None or name in among),
            return_exceptions=True,
        )
        return [state for state in told if isinstance(state, dict)]

    # -- clients --

    def load(self, clients: int, *, keys: int = 2, timeout: float = 1.0) -> None:
        """Clients that append and read, at any member that runs, until `settle`."""
        self._clients += [
            asyncio.ensure_future(self._client(random.Random(number), keys, timeout)) for number in range(clients)
        ]

    async def _client(self, chance: random.Random, keys: int, timeout: float) -> None:
        while not self._stopping:
            running = [member for member in self.members.values() if member.running]
            if not running:
                await asyncio.sleep(0.01)
                continue
            member = running[chance.randrange(len(running))]
            key = f"k{chance.randrange(keys)}"
            with contextlib.suppress(Lost):
                if chance.random() < 0.6:
                    await self.append(member, key, timeout)
                else:
                    await self.get(member, key, timeout)
            await asyncio.sleep(0.002)

    async def append(self, member: Member, key: str, timeout: float = 10.0) -> int:
        """Append a new number, and note what was seen of it. Raises Lost."""
        self._serial += 1
        value, begin = self._serial, time.monotonic_ns()
        asked = ("append", f"{value},")
        try:
            await member.ask("append", key=key, value=value, timeout=timeout)
        except Lost as lost:
            if lost.certain:
                self.impossible.add(value)
            else:
                self.history.append(Call(begin, None, asked, None, key))
            raise
        except asyncio.CancelledError:
            self.history.append(Call(begin, None, asked, None, key))
            raise
        self.acknowledged[value] = key
        self.history.append(Call(begin, time.monotonic_ns(), asked, None, key))
        return value

    async def get(self, member: Member, key: str, timeout: float = 10.0) -> list[int]:
        """Read, and note it. Raises Lost."""
        begin = time.monotonic_ns()
        values: list[int] = await member.ask("get", key=key, timeout=timeout)
        text = "".join(f"{value}," for value in values)
        self.history.append(Call(begin, time.monotonic_ns(), ("get",), text, key))
        return values

    async def settle(self) -> None:
        """No more clients; all members that run have the same, hold every acknowledged append once, and what clients
        saw is linearizable."""
        self._stopping = True
        await asyncio.gather(*self._clients, return_exceptions=True)

        async def same() -> bool:
            states = await self._states(None)
            return len(states) == sum(member.running for member in self.members.values()) and (
                len({(state["applied"], state["digest"]) for state in states}) == 1
            )

        member = await self.leader()
        held: dict[str, list[int]] = {}
        for key in sorted({str(call.key) for call in self.history}):
            held[key] = await self.get(member, key)
        await eventually(same, lambda: self._states(None))
        everything = [value for values in held.values() for value in values]
        assert len(everything) == len(set(everything)), "applied twice"
        missing = {value for value, key in self.acknowledged.items() if value not in held[key]}
        assert not missing, f"acknowledged and lost: {sorted(missing)[:5]}"
        refused = self.impossible & set(everything)
        assert not refused, f"refused, and there: {sorted(refused)[:5]}"
        texts = {key: "".join(f"{value}," for value in values) for key, values in held.items()}
        # What has no answer and is not there at the end took no effect before the last read.
        happened = [call for call in self.history if call.end is not None or call.input[1] in texts[str(call.key)]]
        verdict = check_linearizable(happened, Towards(texts))
        assert verdict.ok, f"{verdict.key}: behind {len(verdict.prefix)} calls none fits of {verdict.stuck[:5]}"
