"""The life of a fleet of virtual machines as a stream of changes: replayed from public traces, or generated.

Traces (comma-separated with a header, which names the format):

    id,t,duration,cpu_count,cpu_mhz                 CPU samples of VMs (Shen, van Beek, Iosup, CCGrid 2015: Bitbrains)
    id,submit_s,run_s,cpu_count                     jobs of a batch cluster (SURF Lisa, OpenDC traces)
    workflow_id,id,ts_submit,runtime,...,parents    tasks of workflows (Shell, Workflow Trace Archive)
    TIMESTAMP,ContextTokens,GeneratedTokens         requests to an inference service (Patel et al., ISCA 2024: Azure)

A trace is turned into *series*, one per source VM, queue, workflow or server, each a list of changes in time:

- samples: `cpu_mhz` goes to the metrics; a sample of 0 MHz stops the VM, the next one above 0 starts it; another
  `cpu_count` resizes it.
- jobs: job i waits in queue i mod 1024 until the one before it has ended (first come, first served); its start sets the
  VM running with the job's cores, its end stops it.
- workflows: a task labels the VM and sets it running, its end stops it.
- requests: request i goes to server i mod 64, as metrics.

Replay rule: VM v replays series v mod S as population v div S. Population 0 begins with the first record, every other
one with a record drawn with the seed; a series that ends begins again behind its end. So any trace gives any number of
VMs and events. All times begin at 0 and are compressed or stretched by nobody: whoever replays chooses the pace.

What the traces lack is added with the same seed: the home region (VM v lives in region v mod R), host, addresses (one
/12 numbered through), memory, and lifecycle events: 2% of the changes also attach a disk, 1% begin or end a migration,
1% set a label, 1% take a snapshot.

The generator stands in where there is no trace. Its shapes are published ones: cores are powers of two, four in five
VMs with one or two cores, lifetimes heavy-tailed (here lognormal: half of them end within half an hour, a few per cent
live for days and take most of the core hours), utilisation low on average and spread like a Beta distribution over the
VMs (Cortez et al., Resource Central, SOSP 2017, figures 1-5), and strongly correlated from one 5-minute sample to the
next, with rare bursts (Shen et al., CCGrid 2015).
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from nova.errors import UsageError
from nova.types import Random

Changes = dict[str, Any]
"""Fields of VMState that change, in the form of a merge write: members of collections by id, null removes."""

JOB_QUEUES: Final = 1024
SERVERS: Final = 64
SAMPLE_MS: Final = 300_000
CORE_SHARES: Final = ((1, 0.53), (2, 0.81), (4, 0.93), (8, 0.975), (16, 0.993), (32, 1.0))
"""Cores, cumulated share of VMs. After Cortez et al. 2017, figure 2."""
MHZ_PER_CORE: Final = 2600.0


class FleetEvent(msgspec.Struct, frozen=True, gc=False):
    """One change of one VM. `vm` is its number, `time_ms` counts from the start of the replay."""

    time_ms: int
    vm: int
    changes: Changes


class Step(NamedTuple):
    """One change of a series: when, and what."""

    time_ms: int
    changes: Changes


class Trace(NamedTuple):
    """What a trace file says: its format, and one list of steps per source of load."""

    format: str
    series: list[list[Step]]
    records: int


def vm_id(vm: int) -> str:
    """Name of VM number `vm`; its key is `vm/` and this."""
    return f"vm-{vm:06d}"


# --- traces ---------------------------------------------------------------------------------------------------------


def read_trace(lines: Iterable[str], name: str, *, checked: bool = False) -> Trace:
    """Series of a trace in any known format.

    lines   of the file, in order; the iterator may raise EOFError or OSError where compressed data is cut or broken
    name    of the file, for messages
    checked whoever hands out the lines knows that the file is whole (gzip ends with a checksum): its last line may then
            lack its end, which otherwise is taken for a cut
    raises  UsageError with file and line: unknown header, wrong number of fields, a value that is no number, a file
            that is cut in the middle
    """
    source = _Source(lines, name, checked)
    header = source.header()
    for columns, format_name, read in _FORMATS:
        if header == columns:
            series = [steps for steps in read(source) if steps]
            if not series:
                raise UsageError(f"{name}: the trace holds no records; give a file with at least one")
            return Trace(format_name, series, source.records)
    known = "; ".join(",".join(columns) for columns, _, _ in _FORMATS)
    raise UsageError(f"{name}, line 1: header {','.join(header)[:80]!r} is of no known trace; known are {known}")


class _Source:
    """Rows of a comma-separated file, each with the right number of fields, or an error that says where."""

    def __init__(self, lines: Iterable[str], name: str, checked: bool) -> None:
        self.name = name
        self._checked_whole = checked
        self.line = 0
        self.records = 0
        self._lines = iter(lines)
        self._ended = True
        self._columns: tuple[str, ...] = ()

    def header(self) -> tuple[str, ...]:
        for row in csv.reader(self._text()):
            self._columns = tuple(row)
            return self._columns
        raise UsageError(f"{self.name}: the file is empty; give a trace with a header line")

    def rows(self) -> Iterator[list[str]]:
        width = len(self._columns)
        for row in csv.reader(self._text()):
            if not self._ended and not self._checked_whole:
                raise self.error(
                    "the last line has no end, as if the file was cut; get it again, or end it with a line break"
                )
            if len(row) != width:
                raise self.error(f"{len(row)} fields, {width} expected; the file is cut or damaged, get it again")
            self.records += 1
            yield row

    def number(self, text: str, column: int) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < 1e15:
            raise self.error(f"{self._columns[column]} is {text[:40]!r}; a number from 0 is expected")
        return value

    def error(self, what: str) -> UsageError:
        return UsageError(f"{self.name}, line {self.line}: {what}")

    def _text(self) -> Iterator[str]:
        while True:
            try:
                line = next(self._lines, None)
            except (EOFError, OSError, UnicodeDecodeError) as error:
                self.line += 1
                raise self.error(f"{error}; the file is cut or damaged, get it again") from None
            if line is None:
                return
            self.line += 1
            self._ended = line.endswith("\n")
            if "\0" in line:
                raise self.error("a zero byte; this is no text file")
            yield line


def _bitbrains(source: _Source) -> Iterator[list[Step]]:
    series: dict[str, list[Step]] = {}
    before: dict[str, tuple[int, bool]] = {}
    for row in source.rows():
        vm = row[0]
        time_ms, cores, mhz = (
            int(source.number(row[1], 1) * 1000),
            int(source.number(row[3], 3)),
            source.number(row[4], 4),
        )
        cores = min(max(cores, 1), 4096)
        changes: Changes = {"metrics": {"cpu_mhz": mhz}}
        last = before.get(vm)
        if last is None or last[0] != cores:
            changes["cpu"] = cores
        if last is None or last[1] != (mhz > 0):
            changes["power_state"] = "running" if mhz > 0 else "stopped"
        before[vm] = (cores, mhz > 0)
        series.setdefault(vm, []).append(Step(time_ms, changes))
    return iter(series.values())


def _surf(source: _Source) -> Iterator[list[Step]]:
    queues: list[list[Step]] = [[] for _ in range(JOB_QUEUES)]
    for index, row in enumerate(source.rows()):
        queue = queues[index % JOB_QUEUES]
        submit, run, cores = (source.number(row[column], column) for column in (1, 2, 3))
        start = max(int(submit * 1000), queue[-1].time_ms if queue else 0)
        queue.append(
            Step(start, {"power_state": "running", "cpu": min(max(int(cores), 1), 4096), "labels": {"job": row[0]}})
        )
        queue.append(Step(start + int(run * 1000), {"power_state": "stopped", "metrics": {"run_s": run}}))
    return iter(queues)


def _shell(source: _Source) -> Iterator[list[Step]]:
    flows: dict[str, list[Step]] = {}
    for row in source.rows():
        submit, runtime = int(source.number(row[2], 2)), int(source.number(row[3], 3))
        cores = min(max(math.ceil(source.number(row[4], 4)), 1), 4096)
        steps = flows.setdefault(row[0], [])
        steps.append(Step(submit, {"power_state": "running", "cpu": cores, "labels": {"task": row[1]}}))
        steps.append(Step(submit + runtime, {"power_state": "stopped", "metrics": {"runtime_ms": float(runtime)}}))
    for steps in flows.values():
        steps.sort(key=_by_time)
    return iter(flows.values())


def _azure(source: _Source) -> Iterator[list[Step]]:
    servers: list[list[Step]] = [[] for _ in range(SERVERS)]
    for index, row in enumerate(source.rows()):
        date, _, clock = row[0].partition(" ")
        parts = clock.split(":")
        if len(date) != 10 or len(parts) != 3:
            raise source.error(f"TIMESTAMP is {row[0][:40]!r}; a time such as 2023-11-16 18:17:03.979 is expected")
        hours, minutes, seconds = (source.number(part, 0) for part in parts)
        tokens = {"context_tokens": source.number(row[1], 1), "generated_tokens": source.number(row[2], 2)}
        time_ms = int(source.number(date[8:], 0)) * 86_400_000 + int((hours * 3600 + minutes * 60 + seconds) * 1000)
        servers[index % SERVERS].append(Step(time_ms, {"metrics": tokens}))
    return iter(servers)


_FORMATS: Final = (
    (("id", "t", "duration", "cpu_count", "cpu_mhz"), "bitbrains", _bitbrains),
    (("id", "submit_s", "run_s", "cpu_count"), "surf", _surf),
    (("workflow_id", "id", "ts_submit", "runtime", "resource_amount_requested", "parents"), "shell", _shell),
    (("TIMESTAMP", "ContextTokens", "GeneratedTokens"), "azure-llm", _azure),
)


# --- the fleet ------------------------------------------------------------------------------------------------------


class Fleet:
    """So many VMs with so many changes, the same for the same arguments and seed.

    vms, events  how many
    regions      names; VM v is at home in regions[v mod R]
    chance       seeded generator
    trace        what to replay; None: generate
    """

    def __init__(
        self, vms: int, events: int, regions: Sequence[str], chance: Random, trace: Trace | None = None
    ) -> None:
        if vms < 1 or events < 0:
            raise UsageError(f"{vms} VMs and {events} events; at least 1 VM and 0 events are needed")
        if vms > 1_000_000:
            raise UsageError(f"{vms} VMs are over the limit of 1000000; the addresses of the fleet end there")
        if not regions:
            raise UsageError("a fleet needs at least 1 region")
        self.vms, self.events, self.regions = vms, events, tuple(regions)
        self._chance = chance
        self._trace = trace

    @property
    def source(self) -> str:
        """Where the changes come from, in a word: the trace's format or `generator`."""
        return self._trace.format if self._trace is not None else "generator"

    def initial(self) -> Iterator[dict[str, Any]]:
        """Every VM's first state, in order of its number: a whole VMState in its plain form."""
        chance = self._chance
        for vm in range(self.vms):
            region = self.regions[vm % len(self.regions)]
            cores = draw_cores(chance)
            address = vm + 1
            yield {
                "id": vm_id(vm),
                "name": f"{region}-{vm}",
                "power_state": "stopped",
                "cpu": cores,
                "memory_mb": cores * (2048 << chance.randrange(3)),
                "host": f"{region}-host-{chance.randrange(max(1, self.vms // 20))}",
                "region": region,
                "networks": [
                    {
                        "mac": f"52:54:00:{vm >> 16 & 255:02x}:{vm >> 8 & 255:02x}:{vm & 255:02x}",
                        "ip": f"10.{address >> 16 & 15}.{address >> 8 & 255}.{address & 255}",
                        "network": "fleet",
                    }
                ],
                "disks": [{"id": "root", "size_gb": 20 << chance.randrange(4), "path": f"/pool/{vm_id(vm)}/root"}],
                "tags": ["prod" if chance.random() < 0.6 else "test"],
                "labels": {"tier": str(chance.randrange(3))},
                "owner": f"team-{chance.randrange(40)}",
            }

    def changes(self) -> list[FleetEvent]:
        """Exactly `events` changes in order of time. O(n log n); holds them all."""
        per_vm, more = divmod(self.events, self.vms)
        out: list[FleetEvent] = []
        for vm in range(self.vms):
            count = per_vm + (vm < more)
            if count:
                steps = self._replayed(vm, count) if self._trace is not None else self._generated(count)
                out += self._with_lifecycle(vm, steps)
        out.sort(key=_by_time)
        return out

    def _replayed(self, vm: int, count: int) -> Iterator[Step]:
        assert self._trace is not None
        series = self._trace.series[vm % len(self._trace.series)]
        at = self._chance.randrange(len(series)) if vm >= len(self._trace.series) else 0
        begin = series[at].time_ms
        lap = series[-1].time_ms - series[0].time_ms + SAMPLE_MS
        laps = 0
        for _ in range(count):
            step = series[at]
            yield Step(step.time_ms - begin + laps * lap, step.changes)
            at += 1
            if at == len(series):
                at, laps = 0, laps + 1

    def _generated(self, count: int) -> Iterator[Step]:
        chance = self._chance
        time_ms = chance.randrange(SAMPLE_MS)
        cores = draw_cores(chance)
        mean = draw_utilisation(chance)
        ends_ms = time_ms + draw_lifetime_ms(chance)
        load, on = mean, False
        for _ in range(count):
            if not on:
                on = True
                changes: Changes = {"power_state": "running", "cpu": cores}
            elif time_ms >= ends_ms:
                on = False
                ends_ms = time_ms + SAMPLE_MS + draw_lifetime_ms(chance)
                changes = {"power_state": "stopped"}
            else:
                burst = chance.random() < 0.02
                load = 0.95 if burst else min(max(0.8 * load + 0.2 * mean + 0.03 * normal(chance), 0.0), 1.0)
                changes = {"metrics": {"cpu_mhz": round(load * cores * MHZ_PER_CORE, 2)}}
                if burst and cores < 32 and chance.random() < 0.3:
                    cores *= 2
                    changes["cpu"] = cores
            yield Step(time_ms, changes)
            time_ms += SAMPLE_MS

    def _with_lifecycle(self, vm: int, steps: Iterator[Step]) -> Iterator[FleetEvent]:
        chance = self._chance
        disks = snapshots = epoch = 0
        moving: str | None = None
        for time_ms, changes in steps:
            dice = chance.random()
            if dice < 0.05:
                changes = dict(changes)
                if dice < 0.02:
                    disks += 1
                    disk = f"data{disks}"
                    changes["disks"] = {
                        disk: {"id": disk, "size_gb": 50 << chance.randrange(4), "path": f"/pool/{vm_id(vm)}/{disk}"}
                    }
                elif dice < 0.03:
                    if moving is None:
                        epoch += 1
                        moving = (
                            f"{self.regions[vm % len(self.regions)]}-host-{chance.randrange(max(1, self.vms // 20))}"
                        )
                        changes["migration"] = {"status": "running", "target": moving, "epoch": epoch}
                    else:
                        changes["migration"] = {"status": "completed", "target": moving, "epoch": epoch}
                        changes["host"], moving = moving, None
                elif dice < 0.04:
                    changes["labels"] = {**changes.get("labels", {}), "revision": str(time_ms)}
                else:
                    snapshots += 1
                    name = f"s{snapshots}"
                    parent = {"parent": f"s{snapshots - 1}"} if snapshots > 1 else {}
                    changes["snapshots"] = {name: {"id": name, "created_ms": time_ms, **parent}}
            yield FleetEvent(time_ms, vm, changes)


def _by_time(item: Any) -> int:
    return item.time_ms  # type: ignore[no-any-return]


# --- distributions --------------------------------------------------------------------------------------------------


def normal(chance: Random) -> float:
    """Standard normal (Box and Muller 1958)."""
    return math.sqrt(-2.0 * math.log(1.0 - chance.random())) * math.cos(2.0 * math.pi * chance.random())


def draw_cores(chance: Random) -> int:
    """Cores of a new VM: a power of two."""
    shares = [share for _, share in CORE_SHARES]
    return CORE_SHARES[min(bisect_right(shares, chance.random()), len(CORE_SHARES) - 1)][0]


def draw_lifetime_ms(chance: Random) -> int:
    """Lognormal with a median of 30 minutes and sigma 2.2: 4% live longer than a day."""
    return int(1_800_000 * math.exp(2.2 * normal(chance)))


def draw_utilisation(chance: Random) -> float:
    """Mean CPU utilisation of a VM: Beta(1, 4), mean 0.2, by inversion."""
    return 1.0 - (1.0 - chance.random()) ** 0.25  # type: ignore[no-any-return]
