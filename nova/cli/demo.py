"""nova demo: a real cluster in three regions, a real fleet, a cut, a kill, and proof that nothing was lost.

The phases are methods of `Demo`, in the order in which they run. What must be true afterwards is worked out by
`nova.cli.demo_oracle` from the acknowledgements, not by the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import msgspec
import typer

from nova.cli.demo_cluster import REGIONS, Cluster, Member, cut_power, eventually, free_ports
from nova.cli.demo_oracle import Acked, Held, Ledger, Verdict, canonical, check, show
from nova.client import Client, encode, key_target, problem
from nova.errors import NovaError, UnavailableError, UsageError
from nova.fleet import Changes, Fleet, FleetEvent, Trace, read_trace, vm_id

BATCH_PUTS: Final = 250
LANES: Final = 2
AWAY_RATIO: Final = 0.03
"""Share of the changes that another region than the VM's own makes: they meet the own region's on the way."""
CONFLICTING_VMS_MAX: Final = 600
KILL_PUTS: Final = 3_000
CALM_S: Final = 2.0
CONVERGE_S_MAX: Final = 30.0
PAGE: Final = 1_000


class Written(msgspec.Struct, gc=False):
    """One result of a batch, or the answer to a single write."""

    key: str = ""
    clock: dict[str, int] = {}
    timestamp: int = 0
    dot: tuple[str, int] = ("", 0)
    code: str = ""
    error: str = ""


class Results(msgspec.Struct):
    results: list[Written]


class Page(msgspec.Struct):
    keys: list[Held]
    next: str | None = None


_results = msgspec.json.Decoder(Results).decode
_written = msgspec.json.Decoder(Written).decode
_page = msgspec.json.Decoder(Page).decode


class Options(msgspec.Struct, frozen=True):
    """What the demonstration is asked to do; see the command's help."""

    trace: Path | None = None
    vms: int = 10_000
    events: int = 100_000
    seconds: float | None = None
    keep: bool = False
    data: Path | None = None
    dashboard: bool = True
    seed: int = 1
    as_json: bool = False
    tls: bool = False


def demo(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="VM trace to replay (.csv or .csv.gz); else one is generated.")
    ] = None,
    vms: Annotated[int, typer.Option(min=30, max=1_000_000, help="How many VMs.")] = 10_000,
    events: Annotated[int, typer.Option(min=0, max=10_000_000, help="How many changes to replay.")] = 100_000,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Replay no longer than this.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster and its dashboard up until Ctrl-C.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Empty directory for the nodes' files; else a temporary one.")
    ] = None,
    dashboard: Annotated[bool, typer.Option(help="Start the dashboard beside the cluster.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 1,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt all links, with certificates made for the run.")] = False,
) -> int:
    """Show what nova does: three regions as real processes, a fleet, a cut, a kill -9, and proof that nothing is lost.

    The exit code is 1 if a promise is broken.

    Example: nova demo --trace bitbrains_cpu.csv.gz
    """
    options = Options(trace, vms, events, seconds, keep, data, dashboard, seed, as_json, tls)
    return asyncio.run(_run(options))


def open_trace(path: Path) -> Trace:
    """Read a trace file, compressed or not. Raises UsageError with file and line."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b" or path.suffix == ".gz"
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="")
            if packed
            else open(path, encoding="utf-8", newline="") as lines
        ):
            return read_trace(lines, path.name, checked=packed)
    except OSError as error:
        raise UsageError(f"trace {path}: {error.strerror or error}; give a readable file to --trace") from None


async def _run(options: Options) -> int:
    trace = open_trace(options.trace) if options.trace is not None else None
    folder, temporary = _folder(options)
    task = asyncio.current_task()
    assert task is not None
    interrupted: list[int] = []

    def interrupt(number: int) -> None:
        interrupted.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt, number)
    # Hundreds of thousands of small values that all stay: the collector would walk them again and again for nothing.
    gc.freeze()
    gc.disable()
    try:
        async with Cluster(folder, tls=options.tls) as cluster:
            run = Demo(options, cluster, trace)
            try:
                report = await run.play()
                run.show.report(report, options)
                if options.keep:
                    run.show.kept(cluster, run.dashboard_url)
                    await asyncio.Event().wait()
            finally:
                run.show.close()
        return 1 if report["broken"] else 0
    except asyncio.CancelledError:
        if not interrupted:
            raise
        return 0 if options.keep and interrupted[0] == signal.SIGINT else 128 + interrupted[0]
    finally:
        gc.enable()
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)


def _folder(options: Options) -> tuple[Path, bool]:
    if options.data is None:
        return Path(tempfile.mkdtemp(prefix="nova-demo-")), True
    try:
        options.data.mkdir(parents=True, exist_ok=True)
        if any(options.data.iterdir()):
            raise UsageError(f"--data {options.data} is not empty; give a new directory, the demo starts from nothing")
    except OSError as error:
        raise UsageError(f"--data {options.data}: {error.strerror}; give a directory that can be written") from None
    return options.data.resolve(), False


class Demo:
    """One run on a cluster that is not started yet."""

    def __init__(self, options: Options, cluster: Cluster, trace: Trace | None, show: Show | None = None) -> None:
        self.options = options
        self.cluster = cluster
        self.chance = random.Random(options.seed)
        self.fleet = Fleet(options.vms, options.events, REGIONS, random.Random(options.seed), trace)
        self.show = show or Show(options)
        self.ledger = Ledger()
        self.broken: list[str] = []
        self.put_ms: list[float] = []
        self.visible_ms: list[float] = []
        self.refused: Counter[str] = Counter()
        self.events_replayed = 0
        self._singles = 0
        self.dashboard_url: str | None = None

    async def play(self) -> dict[str, Any]:
        """Run all phases; the report, with every broken promise in `broken`."""
        begin = time.monotonic()
        report: dict[str, Any] = {
            "nodes": len(REGIONS), "vms": self.options.vms, "events": 0, "trace": self.fleet.source,
            "seed": self.options.seed, "tls": self.options.tls,
        }  # fmt: skip
        with self.show.phase("start three nodes, one a region"):
            await self.cluster.start()
            self._start_dashboard()
        report["create_s"] = await self._create()
        report["replay_s"] = await self._replay()
        report["visible_loaded_ms"], report["put_loaded_ms"] = quantiles(self.visible_ms), quantiles(self.put_ms)
        await self._measure()
        await self._cut()
        report["killed"], report["partitions"], report["unsynced_bytes_cut"] = 1, 1, await self._kill()
        report["convergence_s"] = await self._heal()
        report["converged"] = report["convergence_s"] is not None
        report |= await self._verify()
        report["events"] = self.events_replayed
        report["writes_acked"] = self.ledger.acked
        busy = report["create_s"] + report["replay_s"]
        report["ops_per_s"] = round((self.options.vms + self.events_replayed) / busy) if busy else 0
        report["visible_ms"] = quantiles(self.visible_ms)
        report["put_ms"] = quantiles(self.put_ms)
        report["wall_s"] = round(time.monotonic() - begin, 2)
        if self.refused:
            self.broken += [f"{count} writes were refused: {reason}" for reason, count in self.refused.most_common(5)]
        report["broken"] = self.broken
        return report

    # -- 1 and 2: the fleet and its life --

    async def _create(self) -> float:
        queues: dict[str, list[dict[str, Any]]] = {region: [] for region in REGIONS}
        for state in self.fleet.initial():
            queues[state["region"]].append({"key": "vm/" + state["id"], "value": state, "kind": "vm"})
        begin = time.monotonic()
        with self.show.phase(f"create {self.options.vms:,} VMs", self.options.vms) as step:
            await asyncio.gather(
                *(
                    self._lane(member, chunk, step)
                    for member in self.cluster.members
                    for chunk in _dealt(queues[member.region], LANES)
                )
            )
            await self._settle()
        return round(time.monotonic() - begin, 3)

    async def _replay(self) -> float:
        events = self.fleet.changes()
        away = self.chance
        lanes: dict[tuple[int, int], list[dict[str, Any]]] = {
            (at, lane): [] for at in range(len(REGIONS)) for lane in range(LANES)
        }
        # A VM's changes stay in one lane of a region, in their order; lanes run beside each other.
        for event in events:
            at = event.vm % len(REGIONS)
            if away.random() < AWAY_RATIO:
                at = away.randrange(len(REGIONS))
            lanes[at, event.vm // len(REGIONS) % LANES].append(_put_of(event))
        del events
        deadline = time.monotonic() + self.options.seconds if self.options.seconds else None
        begin = time.monotonic()
        with self.show.phase(f"replay {self.options.events:,} changes on all regions", self.options.events) as step:
            done = asyncio.Event()
            probes = [asyncio.create_task(self._probe(done)), asyncio.create_task(self._single_puts(done))]
            try:
                counts = await asyncio.gather(
                    *(self._lane(self.cluster.members[at], puts, step, deadline) for (at, _), puts in lanes.items())
                )
            finally:
                took = time.monotonic() - begin
                done.set()
                await asyncio.gather(*probes)
            self.events_replayed = sum(counts)
        return round(took, 3)

    async def _measure(self) -> None:
        """The same latencies on nodes that have time: single writes only."""
        with self.show.phase("measure how soon the other regions see a write"):
            await self._settle()
            self.visible_ms, self.put_ms = [], []
            done = asyncio.Event()
            probes = [asyncio.create_task(self._probe(done)), asyncio.create_task(self._single_puts(done))]
            try:
                await asyncio.wait(probes, timeout=CALM_S, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                done.set()
                await asyncio.gather(*probes)

    async def _lane(
        self, member: Member, puts: list[dict[str, Any]], step: Step | None = None, deadline: float | None = None
    ) -> int:
        """Write one list in order, in batches; how many were written."""
        done = 0
        for start in range(0, len(puts), BATCH_PUTS):
            if deadline is not None and time.monotonic() > deadline:
                break
            chunk = puts[start : start + BATCH_PUTS]
            await self._batch(member, chunk)
            done += len(chunk)
            if step is not None:
                step.advance(len(chunk))
        return done

    async def _batch(self, member: Member, puts: list[dict[str, Any]]) -> None:
        answer = await member.client.request("POST", "/v1/batch", encode({"puts": puts}))
        if answer.status >= 400:
            raise problem(member.url, "POST", "/v1/batch", answer)
        for put, result in zip(puts, _results(answer.body).results, strict=True):
            self._acked(member, put["key"], put["value"], result)

    async def _put(self, member: Member, key: str, changes: Changes, merge: bool = True) -> None:
        body = encode({"value": changes, "merge": merge})
        answer = await member.client.request("PUT", key_target(key), body)
        if answer.status >= 400:
            raise problem(member.url, "PUT", key, answer)
        self._acked(member, key, changes, _written(answer.body))

    async def _delete(self, member: Member, key: str) -> None:
        answer = await member.client.request("DELETE", key_target(key))
        if answer.status >= 400:
            raise problem(member.url, "DELETE", key, answer)
        self._acked(member, key, None, _written(answer.body))

    def _acked(self, member: Member, key: str, changes: Changes | None, result: Written) -> None:
        if result.code:
            self.refused[f"{result.code}: {result.error}"] += 1
            return
        if key[:3] != "vm/":
            return
        count = result.clock.get(member.actor, 0)
        if changes is not None and result.dot != (member.actor, count):
            # Nothing of it was new: the key's newest write is another one, and stands for it.
            self.ledger.acked += 1
            return
        self.ledger.add(Acked(key, member.actor, count, result.clock, result.timestamp, changes))

    async def _probe(self, done: asyncio.Event) -> None:
        """How long from sending a write in one region until each other one's watch shows it."""
        begun: dict[str, float] = {}
        since = {state["name"]: state["revision"] for state in await self.cluster.status()}

        async def look(member: Member) -> None:
            with contextlib.suppress(NovaError):
                async for data in member.client.watch("probe/", since[member.name]):
                    key = msgspec.json.decode(data)["key"]
                    if key in begun and not key.startswith(f"probe/{member.name}/"):
                        self.visible_ms.append((time.monotonic() - begun[key]) * 1000)

        watchers = [asyncio.create_task(look(member)) for member in self.cluster.members]
        try:
            number = 0
            while not done.is_set():
                member = self.cluster.members[number % len(REGIONS)]
                key = f"probe/{member.name}/{self._singles}-{number}"
                begun[key] = time.monotonic()
                answer = await member.client.request("PUT", key_target(key), encode({"value": number}), lane=3)
                if answer.status >= 400:
                    del begun[key]
                number += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(done.wait(), 0.03)
            wanted = len(begun) * (len(REGIONS) - 1)
            await eventually(lambda: len(self.visible_ms) >= wanted, 5)
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    async def _single_puts(self, done: asyncio.Event) -> None:
        """Latency of a single durable put, while the replay loads the nodes."""
        number = 0
        while not done.is_set():
            member = self.cluster.members[number % len(REGIONS)]
            vm = self.chance.randrange(self.options.vms)
            self._singles += 1
            begin = time.monotonic()
            await self._put(member, "vm/" + vm_id(vm), {"labels": {f"audit-{self._singles}": member.region}})
            self.put_ms.append((time.monotonic() - begin) * 1000)
            number += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), 0.02)

    async def _settle(self, seconds: float = CONVERGE_S_MAX) -> bool:
        """Wait until all nodes hold the same."""

        async def equal() -> bool:
            states = await self.cluster.status()
            return len({state["digest"] for state in states}) == 1 and all(
                state["clock"] == states[0]["clock"] for state in states
            )

        return await eventually(equal, seconds, 0.01)

    # -- 3: a region is cut off, both sides go on --

    async def _cut(self) -> None:
        near, _, far = self.cluster.members
        count = min(CONFLICTING_VMS_MAX, self.options.vms)
        with self.show.phase(f"cut {far.region} off and change {count} VMs on both sides"):
            await self._settle()
            await self.cluster.cut(far)
            sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
            deletes: list[str] = []
            for vm in range(count):
                key = "vm/" + vm_id(vm)
                here, there = conflicting_changes(vm, self.options.vms)
                sides[0].append({"key": key, "value": here, "merge": True})
                if there is None:
                    deletes.append(key)
                else:
                    sides[1].append({"key": key, "value": there, "merge": True})
            await asyncio.gather(self._lane(near, sides[0]), *(self._delete(far, key) for key in deletes))
            await self._lane(far, sides[1])

    # -- 4: a node dies in the middle of its work --

    async def _kill(self) -> int | None:
        victim = self.cluster.members[1]
        with self.show.phase(f"kill -9 {victim.name} under load, cut its power, start it again") as step:
            count = min(KILL_PUTS, self.options.vms)
            acked = await self._load_until_killed(victim, count)
            cut, why = cut_power(victim)
            if cut is None:
                step.note(f"no power cut: {why}")
            old_actor = victim.actor
            victim.client = victim.new_client(connections=4)
            self.cluster.launch(victim)
            await self.cluster.ready(victim)
            if victim.actor == old_actor:
                self.broken.append(f"{victim.name} came back as {old_actor}: a restart must take a new incarnation")
            held = {entry.key: entry.value for entry in await dump(victim)}
            missing = [key for key, label in acked if label not in (held.get(key) or {}).get("labels", {})]
            if missing:
                self.broken.append(
                    f"{len(missing)} of {len(acked)} acknowledged writes are gone after the kill, e.g. {missing[0]}"
                )
            step.note(f"{len(acked):,} of {count:,} puts were acknowledged before the kill; {len(missing)} are missing")
            # The cut is not over: whoever restarts must not heal it by accident.
            await self.cluster.cut(self.cluster.members[2])
            return cut

    async def _load_until_killed(self, victim: Member, count: int) -> list[tuple[str, str]]:
        """Single puts from 16 clients; the kill comes when a third of them is acknowledged."""
        acked: list[tuple[str, str]] = []
        numbers = iter(range(count))
        client = victim.new_client(connections=16)
        killed = asyncio.Event()

        async def one() -> None:
            for number in numbers:
                key, label = "vm/" + vm_id(number), f"load-{number}"
                changes = {"labels": {label: "x"}}
                try:
                    answer = await client.request("PUT", key_target(key), encode({"value": changes, "merge": True}))
                except UnavailableError:
                    self.ledger.maybe(key, changes)
                    return
                if answer.status >= 400:
                    self.refused[f"{answer.status} under load"] += 1
                    continue
                self._acked(victim, key, changes, _written(answer.body))
                acked.append((key, label))
                if len(acked) >= count // 3 and not killed.is_set():
                    killed.set()
                    self.cluster.kill(victim)

        try:
            await asyncio.gather(*(one() for _ in range(16)))
        finally:
            await client.close()
            await victim.client.close()
        if not killed.is_set():
            self.cluster.kill(victim)
        return acked

    # -- 5 and 6: heal, converge, prove --

    async def _heal(self) -> float | None:
        with self.show.phase("heal, and wait until all nodes hold the same") as step:
            await self.cluster.heal()
            begin = time.monotonic()
            if not await self._settle():
                states = await self.cluster.status()
                digests = ", ".join(f"{state['name']} {state['digest'][:8]}" for state in states)
                self.broken.append(f"the nodes differ {CONVERGE_S_MAX:g} s after the cut was healed: {digests}")
                return None
            took = time.monotonic() - begin
            step.note(f"equal after {took:.2f} s")
            return round(took, 3)

    async def _verify(self) -> dict[str, Any]:
        with self.show.phase("check every acknowledged write against every node") as step:
            expected = self.ledger.expected()
            states = await self.cluster.status()
            digests = {state["name"]: state["digest"] for state in states}
            if len(set(digests.values())) != 1:
                self.broken.append(f"the digests differ: {digests}")
            conflicts, by_type, by_strategy, discarded = await self._conflicts()
            lost = 0
            for member in self.cluster.members:
                verdict = check(self.ledger, expected, await dump(member), discarded)
                lost = max(lost, len(verdict.lost))
                self._complain(member, verdict)
                audit = await member.client.get("/v1/audit/verify")
                if not audit["ok"]:
                    self.broken.append(f"the audit chain of {member.name} does not verify: {audit.get('error')}")
            step.note(f"{self.ledger.acked:,} acknowledged writes on {len(expected):,} VMs, {lost} lost")
            return {
                "writes_lost": lost,
                "conflicts": dict(by_type),
                "resolutions": dict(by_strategy),
                "conflicts_total": len(conflicts),
                "digests": digests,
                "examples": examples(conflicts),
            }

    def _complain(self, member: Member, verdict: Verdict) -> None:
        if verdict.lost:
            self.broken.append(
                f"{member.name}: {len(verdict.lost)} acknowledged writes are lost, e.g. {verdict.lost[0]}"
            )
        if verdict.wrong:
            self.broken.append(f"{member.name}: {len(verdict.wrong)} values are wrong, e.g. {verdict.wrong[0]}")

    async def _conflicts(
        self,
    ) -> tuple[list[dict[str, Any]], Counter[str], Counter[str], set[tuple[str, str, str]]]:
        """Every conflict that any node holds a record of, once; a conflict's id is the same on all nodes."""
        found: dict[str, dict[str, Any]] = {}
        for member in self.cluster.members:
            async for conflict in pages(member.client, "/v1/conflicts", "conflicts"):
                found.setdefault(conflict["id"], conflict)
        by_type: Counter[str] = Counter()
        by_strategy: Counter[str] = Counter()
        discarded: set[tuple[str, str, str]] = set()
        silent = 0
        for conflict in found.values():
            by_type.update(conflict["types"])
            resolution = conflict.get("resolution") or {}
            by_strategy[resolution.get("strategy", "none")] += 1
            silent += not (resolution.get("strategy") and resolution.get("explanation"))
            for gone in resolution.get("discarded", ()):
                discarded.add((conflict["key"], gone["path"], canonical(gone["value"])))
        if not found:
            self.broken.append("no conflict was found, although both sides of the cut changed the same VMs")
        if silent:
            self.broken.append(f"{silent} of {len(found)} conflicts have no resolution or no explanation")
        return list(found.values()), by_type, by_strategy, discarded

    def _start_dashboard(self) -> None:
        """The dashboard beside the cluster, where somebody can look at it."""
        if not self.options.dashboard or (self.options.as_json and not self.options.keep):
            return
        if importlib.util.find_spec("nicegui") is None:
            self.show.line("no dashboard: pip install 'novacron[ui]' brings it")
            return
        port = 8421
        with contextlib.suppress(OSError):
            port = _free_or(port)
        command = [sys.executable, "-m", "nova", "dashboard", "--listen", f"127.0.0.1:{port}"]
        for member in self.cluster.members:
            command += ["--node", member.url]
        environment = {**os.environ, "NOVA_TOKEN": self.cluster.token}
        if self.cluster.certs is not None:
            environment["NOVA_CA"] = str(self.cluster.certs / "ca.pem")
        self.cluster.spawn(command, environment, self.cluster.folder / "dashboard.log")
        self.dashboard_url = f"http://127.0.0.1:{port}"
        self.show.line(f"dashboard: {self.dashboard_url}")


def _free_or(port: int) -> int:
    import socket

    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return free_ports(1)[0]
    return port


def _put_of(event: FleetEvent) -> dict[str, Any]:
    return {"key": "vm/" + vm_id(event.vm), "value": event.changes, "merge": True}


def _dealt(items: Sequence[Any], lanes: int) -> list[list[Any]]:
    return [list(items[lane::lanes]) for lane in range(lanes)]


def conflicting_changes(vm: int, vms: int) -> tuple[Changes, Changes | None]:
    """What the two sides of a cut do to VM `vm` without knowing of each other; None: the far side deletes it."""
    name = vm_id(vm)
    mac = f"52:54:00:{vm >> 16 & 255:02x}:{vm >> 8 & 255:02x}:{vm & 255:02x}"
    match vm % 12:
        case 0:
            return {"power_state": "running", "owner": "near"}, {"power_state": "stopped", "owner": "far"}
        case 1:
            return {"cpu": 8, "memory_mb": 32_768}, {"cpu": 24, "memory_mb": 16_384}
        case 2:
            return (
                {"disks": {"root": _disk(name, "root", 400), "near": _disk(name, "near", 100)}, "name": f"{name}-near"},
                {"disks": {"root": _disk(name, "root", 300), "far": _disk(name, "far", 200)}},
            )
        case 3:  # one MAC, two addresses
            return (
                {"networks": {mac: {"mac": mac, "ip": f"10.200.{vm >> 8 & 255}.{vm & 255}", "network": "fleet"}}},
                {"networks": {mac: {"mac": mac, "ip": f"10.201.{vm >> 8 & 255}.{vm & 255}", "network": "fleet"}}},
            )
        case 4:  # two VMs, one address: this one here, its neighbour there
            return {"networks": _nic(vm, "near", f"10.210.{vm >> 8 & 255}.{vm & 255}"), "owner": "near"}, {
                "owner": "far"
            }
        case 5:
            other = vm - 1
            return {"labels": {"side": "near"}}, {
                "networks": _nic(vm, "far", f"10.210.{other >> 8 & 255}.{other & 255}"),
                "labels": {"side": "far"},
            }
        case 6:
            return (
                {"migration": {"status": "running", "target": "near-host", "epoch": 1_000}},
                {"migration": {"status": "completed", "target": "far-host", "epoch": 1_000}},
            )
        case 7:
            return (
                {"migration": {"status": "running", "target": "near-host", "epoch": 1_000}},
                {"migration": {"status": "failed", "target": "far-host", "epoch": 1_001}},
            )
        case 8:
            return {"tags": {"near": True, "both": True}, "labels": {"tier": "near"}}, {
                "tags": {"far": True, "both": True},
                "labels": {"tier": "far"},
            }
        case 9:  # an update here, a delete there: the update stays
            return {"power_state": "running", "cpu": 6}, None
        case 10:
            return (
                {"snapshots": {"cut": {"id": "cut", "created_ms": 1, "name": "near"}}, "memory_mb": 65_536},
                {"snapshots": {"cut": {"id": "cut", "created_ms": 2, "name": "far"}}},
            )
        case _:  # running at two hosts
            return {"power_state": "running", "host": "near-host"}, {"power_state": "running", "host": "far-host"}


def _disk(vm: str, disk: str, size_gb: int) -> dict[str, Any]:
    return {"id": disk, "size_gb": size_gb, "path": f"/pool/{vm}/{disk}"}


def _nic(vm: int, side: str, ip: str) -> dict[str, Any]:
    mac = f"52:54:{'01' if side == 'near' else '02'}:{vm >> 16 & 255:02x}:{vm >> 8 & 255:02x}:{vm & 255:02x}"
    return {mac: {"mac": mac, "ip": ip, "network": "fleet"}}


async def dump(member: Member) -> list[Held]:
    """Every VM that a node holds."""
    out: list[Held] = []
    after = ""
    while True:
        answer = await member.client.request(
            "GET", f"/v1/keys?prefix=vm/&limit={PAGE}" + (f"&after={after}" if after else "")
        )
        if answer.status >= 400:
            raise problem(member.url, "GET", "/v1/keys", answer)
        page = _page(answer.body)
        out += page.keys
        if page.next is None:
            return out
        after = page.next


async def pages(client: Client, target: str, field: str) -> AsyncIterator[dict[str, Any]]:
    """Every item of a paged answer."""
    after = None
    while True:
        page = await client.get(target, limit=PAGE, after=after)
        for item in page[field]:
            yield item
        after = page.get("next")
        if after is None:
            return


def examples(conflicts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One readable conflict of each of these fields, where both sides wrote it."""
    out: dict[str, dict[str, Any]] = {}
    for conflict in conflicts:
        resolution = conflict.get("resolution") or {}
        for path in conflict["paths"]:
            field = path.lstrip("/").split("/")[0]
            sides = sum(version["values"].get(path) is not None for version in conflict["versions"])
            if field in ("power_state", "disks", "networks", "migration", "cpu") and field not in out and sides > 1:
                out[field] = {
                    "key": conflict["key"],
                    "types": conflict["types"],
                    "path": path,
                    "sides": {
                        version["origin"]: version["values"][path]
                        for version in conflict["versions"]
                        if path in version["values"]
                    },
                    "settled": resolution.get("values", {}).get(path),
                    "strategy": resolution.get("strategy"),
                    "because": next((line for line in resolution.get("explanation", ()) if line.startswith(path)), ""),
                }
                break
    return list(out.values())


def quantiles(values: list[float]) -> dict[str, float] | None:
    """p50 and p99 in milliseconds, None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "p50": round(ordered[len(ordered) // 2], 2),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
        "count": len(ordered),
    }


# --- what people see --------------------------------------------------------------------------------------------------


class Step:
    """One phase on the screen."""

    def __init__(self, show: Show, task: Any) -> None:
        self._show = show
        self._task = task

    def advance(self, count: int) -> None:
        if self._show.progress is not None:
            self._show.progress.advance(self._task, count)

    def note(self, text: str) -> None:
        self._show.line("  " + text)


class Show:
    """Progress on a terminal, lines elsewhere, and the report. With --json stdout is for the report alone."""

    def __init__(self, options: Options, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.console = Console(
            file=stream or (sys.stderr if options.as_json else sys.stdout), highlight=False, soft_wrap=True
        )
        self._quiet = options.as_json and not self.console.is_terminal
        self.progress: Progress | None = None
        if self.console.is_terminal:
            self.progress = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(),
                TimeElapsedColumn(), console=self.console, transient=False, refresh_per_second=5,
            )  # fmt: skip
            self.progress.start()

    def line(self, text: str) -> None:
        if not self._quiet:
            self.console.print(text, markup=False)

    @contextlib.contextmanager
    def phase(self, text: str, total: int | None = None) -> Any:
        begin = time.monotonic()
        progress = self.progress
        task = progress.add_task(text, total=total or 1) if progress is not None else None
        yield Step(self, task)
        if progress is not None and task is not None:
            progress.update(task, completed=total or 1)
            progress.stop_task(task)
        else:
            self.line(f"{text}: {time.monotonic() - begin:.1f} s")

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()

    def report(self, report: dict[str, Any], options: Options) -> None:
        self.close()
        if options.as_json:
            sys.stdout.write(encode(report).decode() + "\n")
            sys.stdout.flush()
            return
        from rich.table import Table

        facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        convergence = report["convergence_s"]
        for name, value in {
            "fleet": f"{report['vms']:,} VMs, {report['events']:,} changes ({report['trace']}, seed {report['seed']})",
            "throughput": f"{report['ops_per_s']:,} durable writes/s, {report['wall_s']:.1f} s in all",
            "single put": _quantile_text(report["put_ms"]),
            "seen in other regions": _quantile_text(report["visible_ms"]) + ", link delays of up to 108 ms included",
            "the same under full load": f"put {_quantile_text(report['put_loaded_ms'])}; "
            f"seen {_quantile_text(report['visible_loaded_ms'])}",
            "conflicts": f"{report['conflicts_total']:,}: {_counts(report['conflicts'])}",
            "settled by": _counts(report["resolutions"]),
            "converged": f"{convergence:.2f} s after healing" if convergence is not None else "no",
            "power cut took": "unknown here" if report["unsynced_bytes_cut"] is None
            else f"{report['unsynced_bytes_cut']:,} unsynced bytes of the killed node",
            "digests": ", ".join(f"{node} {digest[:12]}" for node, digest in report["digests"].items()),
            "acknowledged": f"{report['writes_acked']:,} writes",
            "lost": f"{report['writes_lost']:,}",
        }.items():  # fmt: skip
            facts.add_row(name, value)
        self.console.print()
        self.console.print(facts)
        if report["examples"]:
            self.console.print("\nHow conflicts were settled, for example:", markup=False)
        for example in report["examples"][:3]:
            self.console.print(f"\n  {example['key']}{example['path']}  ({', '.join(example['types'])})", markup=False)
            for origin, value in example["sides"].items():
                self.console.print(f"    {origin:<14}{show(value)}", markup=False)
            self.console.print(f"    {'settled':<14}{show(example['settled'])}  by {example['strategy']}", markup=False)
            if example["because"]:
                self.console.print(f"    {'because':<14}{example['because']}", markup=False)
        self.console.print()
        if report["broken"]:
            self.console.print("Broken promises:", style="bold red")
            for promise in report["broken"]:
                self.console.print(f"  - {promise}", markup=False)
        else:
            self.console.print("Every promise was kept.", style="bold")

    def kept(self, cluster: Cluster, dashboard: str | None) -> None:
        """Where everything is, after --keep."""
        self.console.print()
        for member in cluster.members:
            pid = member.process.pid if member.process is not None else "-"
            self.console.print(f"  {member.name:<14}{member.url}  pid {pid}", markup=False)
        if dashboard:
            self.console.print(f"  {'dashboard':<14}{dashboard}", markup=False)
        self.console.print(f"  {'token':<14}NOVA_TOKEN={cluster.token}", markup=False)
        if cluster.certs is not None:
            self.console.print(f"  {'authority':<14}NOVA_CA={cluster.certs / 'ca.pem'}", markup=False)
        self.console.print(f"  {'files':<14}{cluster.folder}", markup=False)
        self.console.print("Ctrl-C stops all of it.", markup=False)


def _quantile_text(values: dict[str, float] | None) -> str:
    if values is None:
        return "not measured"
    return f"p50 {values['p50']:.1f} ms, p99 {values['p99']:.1f} ms ({values['count']:,} measured)"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])) or "none"
