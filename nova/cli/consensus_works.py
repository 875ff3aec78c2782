"""What `nova bench consensus` measures: groups of three on loopback, and three cores in memory, beside their peers.

The leader and its callers live in this process, on a loop in a thread of its own; the other two members are processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from nova.consensus.core import Command, Committed, Epoch, Kind, Persisted, pack
from nova.consensus.engine import ConsensusEngine, EngineOptions
from nova.consensus.raft import Raft
from nova.runtime import new_loop
from nova.types import Outputs

COMMAND: Final = bytes(range(128))
SECONDS_MAX: Final = 30.0

Work = Callable[[], object]


class Register:
    """The least of a machine: it keeps the last command."""

    def __init__(self) -> None:
        self.value = b""

    def apply(self, commands: Sequence[Command]) -> list[bytes]:
        """Keep the last."""
        self.value = commands[-1].data
        return [b"ok"] * len(commands)

    def read(self, query: bytes) -> bytes:
        """The last."""
        return self.value

    def snapshot(self) -> bytes:
        """The last."""
        return self.value

    def restore(self, data: bytes) -> None:
        """Replace it."""
        self.value = data


def free_addresses(count: int) -> list[str]:
    """Addresses of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]


def engine_of(config: dict[str, Any]) -> ConsensusEngine:
    """A member as the group configures it."""
    return ConsensusEngine(
        config["node"], config["members"], config["directory"], Register(),
        options=EngineOptions(protocol=config["protocol"]),
    )  # fmt: skip


async def _member(config: dict[str, Any]) -> None:
    """A member until its input ends."""
    async with engine_of(config):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


class Followers:
    """Processes that end with this one: `python -m MODULE KIND CONFIG`."""

    def __init__(self, kind: str, configs: list[dict[str, Any]], *, module: str = "nova.cli.consensus_works") -> None:
        command = [sys.executable, "-m", module, kind]
        self._processes = [
            subprocess.Popen([*command, json.dumps(config)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for config in configs
        ]
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                self.end()
                raise RuntimeError(f"a member ended with {process.wait()}")

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [process.pid for process in self._processes]

    def end(self) -> None:
        """End them all."""
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Group:
    """Three members; the first, which leads, is here. Context manager."""

    def __init__(self, folder: Path, **protocol: Any) -> None:
        members = dict(zip("abc", free_addresses(3), strict=True))
        # The others do not campaign while this one lives, so that the callers are where the leader is.
        self._configs: list[dict[str, Any]] = [
            {
                "node": name, "members": members, "directory": str(folder / name),
                "protocol": {"election_ticks": 10 if name == "a" else 500, **protocol},
            }
            for name in members
        ]  # fmt: skip

    def __enter__(self) -> Group:
        self.followers = Followers("member", self._configs[1:])
        self._loop = new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.engine = engine_of(self._configs[0])
        try:
            self.run(self.engine.start())
            self.run(self.engine.propose(COMMAND, timeout_s=SECONDS_MAX))
            assert self.engine.status().core.role == "leader", self.engine.status()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.followers.end()
        with contextlib.suppress(Exception):
            self.run(self.engine.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it on the group's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def closed_loop(self, ask: Callable[[], Any], clients: int, each: int) -> list[float]:
        """So many callers, each with one question out at a time; how long each answer took, in seconds."""
        took: list[float] = []

        async def client() -> None:
            for _ in range(each):
                began = time.perf_counter()
                await ask()
                took.append(time.perf_counter() - began)

        async def all_clients() -> None:
            await asyncio.gather(*(client() for _ in range(clients)))

        self.run(all_clients())
        return took

    def commits(self, clients: int, each: int) -> list[float]:
        """Durable commits of 128 bytes."""
        return self.closed_loop(lambda: self.engine.propose(COMMAND), clients, each)

    def reads(self, clients: int, each: int) -> list[float]:
        """Linearizable reads."""
        return self.closed_loop(lambda: self.engine.read(b""), clients, each)


def each_of(clients: int) -> int:
    """Questions of one caller in one call of a work."""
    return 8 if clients < 8 else 4


def group_commits(clients: int) -> Callable[[Path], contextlib.AbstractContextManager[Work]]:
    """Work: closed-loop commits of so many callers."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        with Group(folder) as group:
            yield lambda: group.commits(clients, each_of(clients))

    return maker


def group_reads(clients: int, *, lease: bool = False) -> Callable[[Path], contextlib.AbstractContextManager[Work]]:
    """Work: closed-loop linearizable reads of so many callers."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        with Group(folder, lease_reads=lease) as group:
            yield lambda: group.reads(clients, each_of(clients))

    return maker


# --- PySyncObj --------------------------------------------------------------------------------------------------------


def _sync_object(config: dict[str, Any]) -> Any:
    from pysyncobj import SyncObj, SyncObjConf, replicated  # type: ignore[import-not-found, import-untyped, unused-ignore]

    class Kept(SyncObj):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            conf = SyncObjConf(journalFile=config["journal"], commandsQueueSize=1 << 20)
            super().__init__(config["address"], config["others"], conf)
            self.value = b""

        @replicated  # type: ignore[untyped-decorator, unused-ignore]
        def keep(self, value: bytes) -> bool:
            self.value = value
            return True

    return Kept()


class SyncObjects:
    """Three members of PySyncObj, one of them here. Context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        addresses = free_addresses(3)
        self._configs: list[dict[str, Any]] = [
            {
                "address": address, "others": [other for other in addresses if other != address],
                "journal": str(folder / f"journal{number}"),
            }
            for number, address in enumerate(addresses)
        ]  # fmt: skip

    def __enter__(self) -> SyncObjects:
        self.followers = Followers("sync-object", self._configs[1:])
        self.object = _sync_object(self._configs[0])
        end = time.monotonic() + SECONDS_MAX
        while not self.object.isReady():
            if time.monotonic() > end:
                self.__exit__()
                raise RuntimeError("PySyncObj has no leader")
            time.sleep(0.02)
        self.commits(1, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self.object.destroy()
        self.followers.end()

    def commits(self, window: int, each: int) -> list[float]:
        """Commits with so many under way; how long each took. The member here need not be the leader."""
        took: list[float] = []
        left, lock, done = window * each, threading.Lock(), threading.Event()
        asked = 0

        def ask() -> None:
            nonlocal asked
            with lock:
                if asked == left:
                    return
                asked += 1
            began = time.perf_counter()

            def answered(_: Any, error: Any) -> None:
                assert not error, error
                took.append(time.perf_counter() - began)
                if len(took) == left:
                    done.set()
                ask()

            self.object.keep(COMMAND, callback=answered)

        for _ in range(window):
            ask()
        assert done.wait(SECONDS_MAX), f"PySyncObj answered {len(took)} of {left}"
        return took


def sync_object_commits(clients: int) -> Callable[[Path], contextlib.AbstractContextManager[Work]]:
    """Work: the same by PySyncObj."""

    @contextlib.contextmanager
    def maker(folder: Path) -> Iterator[Work]:
        with SyncObjects(folder) as group:
            yield lambda: group.commits(clients, each_of(clients))

    return maker


# --- three cores in memory --------------------------------------------------------------------------------------------


class Cores:
    """Three Raft cores, disks that sync at once and a network that delivers at once."""

    def __init__(self) -> None:
        names = ("a", "b", "c")
        epoch = Epoch(0, "raft", names, options={"trailing": 0})
        self._cores = {name: Raft(name, epoch, random.Random(name), time.monotonic_ns) for name in names}
        self._flying: deque[tuple[str, str, Any]] = deque()
        self.committed = 0
        while self._cores["a"].role != "leader":
            self._take("a", self._cores["a"].tick())
            self._deliver()

    def _take(self, name: str, out: Outputs) -> None:
        flying = self._flying
        for peer, message in out.early:
            flying.append((name, peer, message))
        for peer, message in out.send:
            flying.append((name, peer, message))
        for event in out.apply:
            if type(event) is Persisted:
                self._take(name, self._cores[name].advance(event.token))
            elif type(event) is Committed and name == "a":
                self.committed += len(event.entries)

    def _deliver(self) -> None:
        flying, cores = self._flying, self._cores
        while flying:
            source, target, message = flying.popleft()
            self._take(target, cores[target].step(source, message))

    def commit(self, count: int) -> int:
        """Propose, replicate and commit so many commands, one by one."""
        leader, before = self._cores["a"], self.committed
        data = pack([Command(7, 1, COMMAND)])
        for _ in range(count):
            self._take("a", leader.propose([(Kind.COMMANDS, data)]))
            self._deliver()
        for core in self._cores.values():
            core.compact(core.snapshot(core.committed, b""))
        return self.committed - before


def plain_commits(count: int) -> int:
    """A leader that never fails, two followers that never refuse, and a majority: no terms, no elections."""
    logs: dict[str, list[bytes]] = {name: [] for name in "abc"}
    matched = dict.fromkeys(logs, 0)
    committed = 0
    data = pack([Command(7, 1, COMMAND)])
    for _ in range(count):
        logs["a"].append(data)
        matched["a"] = len(logs["a"])
        for follower in ("b", "c"):
            previous = matched[follower]
            if len(logs[follower]) == previous:
                logs[follower] += logs["a"][previous:]
            matched[follower] = len(logs[follower])
            committed = max(committed, sorted(matched.values())[1])
    return committed


if __name__ == "__main__":
    what, told = sys.argv[1], json.loads(sys.argv[2])
    if what == "member":
        loop = new_loop()
        loop.run_until_complete(_member(told))
        loop.close()
    else:
        member = _sync_object(told)
        print("ready", flush=True)
        sys.stdin.read()
        member.destroy()
