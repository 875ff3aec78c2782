"""Runs the benchmarks and writes docs/benchmarks.md.

`python bench/report.py` runs all of them (a few minutes; the machine should have nothing else to do). `--from FILE`,
which may be given again, takes results that `pytest bench --benchmark-json FILE` wrote instead.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nova.cli.benchmarks import machine, seconds

sys.path.insert(0, str(Path(__file__).resolve().parent))

from figures import FIGURES, growth, judged, times

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
PEER_NAMES = ("peer", "who", "wire")
"""Parameters that say who is measured; `nova` is us."""

SECTIONS = {
    "node": "One node over HTTP",
    "cluster": "Three regions",
    "store": "The store in one process",
    "keyspace": "The keyspace kernel",
    "consensus": "A consensus group of three",
    "log": "The log",
    "tls": "TLS 1.3",
    "sync": "Meeting again after a cut",
    "simulator": "The simulator",
    "clock": "Clocks",
    "crdt": "CRDTs",
    "digest": "Digests",
    "conflict": "Conflicts",
    "metrics": "Metrics",
    "transport": "Transport",
    "bulk": "Bulk transfers",
    "shm": "Shared memory",
}

NOTES = {
    "node": "Values of 100 bytes, one request out at a time on each keep-alive connection; the load comes from a "
    "process of its own on the same cores. Every put is on disk before it is answered. etcd is one member, by its JSON "
    "gateway.",
    "cluster": "Three `nova serve` processes and all load generators on the cores of this machine; no emulated delay. "
    "*Visible* counts from before the put is sent until watchers of both other nodes have been told.",
    "store": "SQLite keeps one value for a key and overwrites it. Ours keeps who wrote what and knew what, finds "
    "concurrent writes, feeds watchers, and keeps a digest of the whole; that is what the rows under 1 pay for. A put "
    "whose caller waits for it is the disk's sync and a change of threads.",
    "consensus": "Three processes on loopback and on one disk; commands of 128 bytes, on the disks of two members "
    "before they are answered. Our callers are in the process of the leader; those of PySyncObj in that of any member, "
    "and it answers before its journal is synced. etcd is asked by keep-alive connections to its JSON gateway, so its "
    "figures pay for HTTP and ours do not. All peers take turns, five rounds; the median and the best are shown. *Over "
    "the network* all members are processes, and the callers another one; ours and etcd's gRPC carry all callers on "
    "one connection, where the name does not say otherwise. *Signed* members are simulated, with real signatures: "
    "rates are of virtual time, and beside them stands what a core for each member would bear.",
    "keyspace": "The kernel keeps vector clocks, a digest and the bytes for log and wire; the peer keeps one pointer.",
    "sync": "Per key that differs. Deltas are what a peer gets while the history reaches back; afterwards the rows "
    "that differ are found by set reconciliation. *By state* is the last resort, for when most differs: whole ranges "
    "of keys.",
    "crdt": "The dict-based set has no deltas, bytes or digests, and its `add` does not check what it replaces.",
    "conflict": "The plain merge takes the other side's value where both changed: no rules, no causality, no record, "
    "no explanation.",
    "bulk": "One object of 1 GiB, memory to memory on loopback, all peers in turns; medians, the best beside, and the "
    "CPU time of both ends. Ours frames every chunk, checks it (`crc32c`), hashes it (`blake3`) or authenticates it "
    "(`keyed`), places it and compares digests in the end; iperf3 sends one buffer again and again and drops what it "
    "gets. *x iperf3* is the median over rounds that stood beside each other.",
    "transport": "Two processes on loopback, each measurement in fresh ones, ours and the peers in turns; the same "
    "congestion control on both sides of all. `nova` is the blocking stream without a key, every frame under its CRC; "
    "`keyed` has a MAC on every frame, `loop` runs on uvloop. `c-blocking` is a C program with the same system calls "
    "and nothing else; it, iperf3 and the protocols on uvloop neither frame nor check what they carry. CPU seconds are "
    "those of both processes with their share of the kernel.",
    "shm": "Two processes. The C ring spins, frames nothing and believes whatever it finds; pyzmq does not copy "
    "messages for Python. `python bench/bench_shm.py` lets all of them take turns.",
}
"""What a reader must know to read a section's tables."""

INTRODUCTION = """\
# Benchmarks

Written by `python bench/report.py`, which runs everything in `bench/`; not edited by hand. `nova bench` measures a part
of it anywhere. Figures are of the machine below and of nothing else: compare within a row, not with other pages.

Each timing is the median of its rounds, with half the interquartile range as its spread; in the table that holds
clocks, CRDTs and digests to their figures it is the best of them. Where nothing waits, time is CPU time, and the
section says so: what others take of the processor is not counted. Where a disk, a socket or another thread is waited
for, it is time on the wall. *x faster* says how many times longer the peer takes for the same work: under 1, the peer
is faster. Peers run in the same process, one of their own beside it, or on the same disk, with the same durability;
what they lack of ours is said with each table.
"""


HELD = """\
The next table holds the clocks, CRDTs and digests to what they promised, reached or not. Each figure is the best of its
rounds, ours and the peers' alike, in CPU time of the process that does the work. Rounds go on for as long for one as
for the other, so slow work has fewer to be best of: a merge of dicts that takes seconds has three, ours up to thirty;
Node has ten. Work of less than a millisecond is repeated until a round takes one, because the CPU clock is read by a
system call, but for what needs new inputs each time. Python's garbage collector is off. *x* says how many times as much
the peer takes.

`dict` is a dozen lines of plain Python that do the same merge without deltas, bytes or digests. Both sides of a full
merge had told their digest before it, where the row does not say otherwise; then the rows written since are hashed in
it, too. The text peers: loro and pycrdt are compiled for Python. diamond-types and automerge have no text in a package
for Python, so they run through Node, compiled to WebAssembly, and automerge without the proxies of its documents;
Node's threads that compile and collect are counted. When documents are merged, peers apply what the other wrote,
encoded beforehand, while ours find that for themselves. The peer of the digest is one call of XXH3, the hash alone. The
plots are of an OR-Set, but for the last.
"""


class Row:
    """Ours and the peers of one case."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ours: dict[str, Any] | None = None
        self.peers: list[tuple[str, dict[str, Any]]] = []


def run(arguments: list[str]) -> dict[str, Any]:
    """All benchmarks in one pytest; raises SystemExit with its output if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [
            sys.executable, "-m", "pytest", str(HERE), "-q", "-o", "python_files=bench_*.py", "--timeout=0",
            "--benchmark-max-time=0.4", "--benchmark-columns=median,iqr,rounds", f"--benchmark-json={results}",
            *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"{done.stdout}\nbenchmarks failed; {PAGE.name} is as it was")
        found: dict[str, Any] = json.loads(results.read_text())
        return found


def read(paths: Iterable[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"benchmarks": [], "lacking": {}, "machine_info": {}, "datetime": ""}
    for path in paths:
        found = json.loads(Path(path).read_text())
        out["benchmarks"] += found["benchmarks"]
        out["lacking"].update(found.get("lacking", {}))
        out["machine_info"] = found["machine_info"]
        out["datetime"] = max(out["datetime"], found["datetime"])
    return out


def rows_of(results: dict[str, Any]) -> dict[str, dict[str, list[Row]]]:
    """section -> group -> rows."""
    rows: dict[tuple[str, str, str], Row] = {}
    functions: dict[str, set[str]] = {}
    for benchmark in results["benchmarks"]:
        functions.setdefault(benchmark["group"], set()).add(benchmark["name"].partition("[")[0])
    out: dict[str, dict[str, list[Row]]] = {section: {} for section in SECTIONS}
    for benchmark in results["benchmarks"]:
        section, _, title = (benchmark["group"] or benchmark["name"]).partition(".")
        title = title or benchmark["name"].partition("[")[0].removeprefix("test_").replace("_", " ")
        params = benchmark["params"] or {}
        peer = str(next((params[name] for name in PEER_NAMES if name in params), "nova"))
        label = f"{title}{case_of(benchmark, title, len(functions[benchmark['group']]) == 1)}"
        if peer.startswith("nova-"):
            label, peer = f"{label} ({peer.removeprefix('nova-')})", "nova"
        row = rows.get((section, title, label))
        if row is None:
            row = rows[section, title, label] = Row(label)
            out.setdefault(section, {}).setdefault(title, []).append(row)
        if peer == "nova":
            row.ours = benchmark
        else:
            row.peers.append((peer, benchmark))
    for groups in out.values():
        for group in groups.values():
            shared = next((row for row in group if row.peers), None)
            for row in group:  # variants of ours stand beside the same peers
                if shared is not None and not row.peers and row.name.startswith(shared.name):
                    row.peers = shared.peers
    return out


def case_of(benchmark: dict[str, Any], title: str, lone: bool) -> str:
    """What a benchmark says beyond its group's title: its own name, where there are several, and its parameters."""
    said = title.replace(",", "")
    parts = [] if lone else [benchmark["name"].partition("[")[0].removeprefix("test_").replace("_", " ")]
    for name, value in (benchmark["params"] or {}).items():
        if name in PEER_NAMES or str(value).replace(",", "") in said:
            continue
        noun = name.removesuffix("s") if value == 1 else name
        parts.append(f"{value:,} {noun}" if isinstance(value, int) else str(value))
    return f": {', '.join(parts)}" if parts else ""


def timing(benchmark: dict[str, Any]) -> tuple[float, float]:
    """(median, spread) per operation, seconds."""
    if (timed := benchmark["extra_info"].get("timing")) is not None:  # measured in turns with its peers
        return timed["median"], timed["spread"]
    operations = benchmark["extra_info"].get("operations", 1)
    stats = benchmark["stats"]
    return stats["median"] / operations, stats["iqr"] / 2 / operations


def by_processor(benchmark: dict[str, Any]) -> bool:
    """Is its time that of the CPU?"""
    return bool(benchmark.get("options", {}).get("timer") == "process_time")


def table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def timings(groups: dict[str, list[Row]]) -> str:
    lines = []
    for group in groups.values():
        for row in group:
            if row.ours is None or "figures" in row.ours["extra_info"]:
                continue
            ours, spread = timing(row.ours)
            line = [row.name, seconds(ours), f"±{spread / ours:.0%}", f"{1 / ours:,.0f}"]
            if not row.peers:
                lines.append([*line, "", "", ""])
            for peer, benchmark in row.peers:
                theirs, peer_spread = timing(benchmark)
                lines.append([*line, peer, f"{seconds(theirs)} ±{peer_spread / theirs:.0%}", times(theirs / ours)])
                line = ["", "", "", ""]
    if not lines:
        return ""
    return table(["one operation", "nova", "spread", "per second", "peer", "the peer takes", "x faster"], lines)


HEADS = {
    "per_s": "per second", "spread": "spread", "p50_ms": "p50 ms", "p99_ms": "p99 ms",
    "node_cpu_cores": "cores busy: server", "load_cpu_cores": "load generator", "start_ms": "ms", "rss_mb": "RSS, MB",
    "least_ms": "least, ms", "cpu_percent": "CPU, %", "acknowledged_p50_ms": "acknowledged p50 ms",
    "acknowledged_p99_ms": "acknowledged p99 ms", "wall_s": "wall, s", "convergence_s": "converged after, s",
    "gbit_per_s": "Gbit/s", "best_gbit_per_s": "best round, Gbit/s", "cpu_s_per_gb": "CPU s/GB",
    "us": "us", "best_us": "best round, us", "cpu_us": "CPU, us",
    "m_per_s": "million per second", "best_m_per_s": "best round", "cpu_ns": "CPU ns each",
    "ops_per_s": "operations per second", "best_per_s": "best round, per second", "x_iperf3": "x iperf3",
}  # fmt: skip


def figures(groups: dict[str, list[Row]]) -> str:
    """One table for each set of columns."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for group in groups.values():
        for row in group:
            both = [("nova", row.ours)] if row.ours else []
            for peer, benchmark in [*both, *row.peers]:
                assert benchmark is not None
                found = benchmark["extra_info"].get("figures")
                if found is None:
                    continue
                name = row.name if not row.peers else f"{row.name}: {peer}"
                cells = [shown(key, value) for key, value in found.items()]
                tables.setdefault(tuple(found), []).append([name, *cells])
    return "\n".join(
        table(["", *(HEADS.get(key, key.replace("_", " ")) for key in keys)], lines) for keys, lines in tables.items()
    )


def shown(key: str, value: float) -> str:
    if key == "spread":
        return f"±{value:.0%}"
    if isinstance(value, float) and value != int(value):
        return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,.0f}"


def targets(results: dict[str, Any]) -> str:
    """The figures that this release promised, and what they came to."""
    by_name = {benchmark["name"]: benchmark for benchmark in results["benchmarks"]}

    def figure(name: str) -> dict[str, Any]:
        found = by_name.get(name)
        return {} if found is None else found["extra_info"].get("figures", {})

    lines: list[list[str]] = []

    def line(what: str, target: str, measured: str, met: bool, bound: str) -> None:
        lines.append([what, target, f"**{measured}**{'' if met else ' (missed)'}", bound])

    if demo := figure("test_the_demo"):
        line(
            f"`nova demo`: {demo['vms']:,} VMs, {demo['events']:,} events, 3 regions", "under 60 s",
            f"{demo['wall_s']:.1f} s", demo["wall_s"] < 60,
            "processor: three nodes apply every write, and the demo checks them, on the cores of this machine",
        )  # fmt: skip
        line(
            "the demo: all equal again after the cut healed", "under 1 s", f"{demo['convergence_s']:.2f} s",
            demo["convergence_s"] < 1, "the mesh's redial, then the exchange of what was missed",
        )  # fmt: skip
        line("the demo: acknowledged writes lost", "0", f"{demo['writes_lost']}", not demo["writes_lost"], "")
    if http := figure("test_durable_puts_over_http[nova-64]"):
        line(
            "one node, durable puts over HTTP, 64 clients", "5,000/s", f"{http['per_s']:,.0f}/s", http["per_s"] >= 5000,
            ("the node's one event loop, two thirds of it in HTTP" if http["node_cpu_cores"] > 0.8
             else "waiting: for the disk, or for a core that others had")
            + f": {http['node_cpu_cores']:.2f} cores busy, the generator {http['load_cpu_cores']:.2f}",
        )  # fmt: skip
    if (puts := by_name.get("test_durable_puts[nova-1000]")) is not None:
        per_s = 1 / timing(puts)[0]
        line(
            "in process, durable puts, 1,000 in a commit", "100,000/s", f"{per_s:,.0f}/s", per_s >= 100_000,
            "one thread of Python above the kernels; the disk takes a tenth",
        )  # fmt: skip
    for name in ("no load", "1,000 puts/s on each node"):
        if seen := figure(f"test_update_visible_in_the_other_regions[{name}]"):
            line(
                f"update visible in the other two regions, loopback, {name}", "p99 under 300 ms",
                f"p50 {seen['p50_ms']:.1f} ms, p99 {seen['p99_ms']:.1f} ms", seen["p99_ms"] < 300,
                "a sync of the writer's log, then one of each reader's; under load the cores of this machine",
            )  # fmt: skip
    if idle := figure("test_idle_nodes"):
        line("idle node of three", "under 1% CPU", f"{idle['cpu_percent']:.2f}%", idle["cpu_percent"] < 1, "ticks")
        line(
            "idle node of three", "under 80 MB", f"{idle['rss_mb']:.0f} MB", idle["rss_mb"] < 80, "Python and libraries"
        )
    for streams in (1, 4, 8, 32):
        moved = figure(f"test_bulk_transfer[{streams}-nova-crc32c]")
        if "x_iperf3" in moved:
            line(
                f"bulk transfer, {streams} stream{'s' * (streams > 1)}, framed and checksummed", "0.95 x iperf3",
                f"{moved['x_iperf3']:.2f} x, {moved['gbit_per_s']:.1f} Gbit/s", moved["x_iperf3"] >= 0.95,
                "memory: an object that is read and placed, where iperf3 stays in the caches",
            )  # fmt: skip
    if start := figure("test_import[nova]"):
        line("`import nova`, least of 10", "under 50 ms", f"{start['least_ms']:.1f} ms", start["least_ms"] < 50,
             "names are imported when first used")  # fmt: skip
    return table(["what", "target", "measured", "what bounds it"], lines).replace("---:", "---") if lines else ""


def noise_of(results: dict[str, Any]) -> str:
    """How far rounds of one and the same benchmark lie apart, over all of them."""
    spreads = sorted(
        benchmark["stats"]["iqr"] / 2 / benchmark["stats"]["median"]
        for benchmark in results["benchmarks"]
        if "figures" not in benchmark["extra_info"] and benchmark["stats"]["rounds"] >= 5
    )
    if not spreads:
        return ""
    half, most = spreads[len(spreads) // 2], spreads[int(len(spreads) * 0.9)]
    return f"Half of the timings spread less than ±{half:.1%}, nine in ten less than ±{most:.0%} around their median."


def page(results: dict[str, Any]) -> str:
    facts = {**machine(), **results["machine_info"]}
    sections = rows_of(results)
    parts = [
        INTRODUCTION,
        "## The machine\n",
        table(
            ["", ""],
            [
                ["processor", str(facts["cpu"])],
                ["cores", str(facts["cores"])],
                ["kernel", str(facts["kernel"])],
                ["Python", str(facts["python"])],
                ["compiler of the native modules", str(facts["compiler"])],
                ["nova", str(facts["nova"])],
                ["peers", ", ".join(f"{name} {version}" for name, version in facts.get("peers", {}).items()) or "none"],
                ["measured on", results["datetime"][:10]],
            ],
        ).replace("| ---: |", "| --- |"),
        noise_of(results) + "\n",
        "## Promised and measured\n",
        targets(results),
    ]
    by_name = {benchmark["name"]: benchmark for benchmark in results["benchmarks"]}
    lacking = results.get("lacking", {})
    lines = [line for one in FIGURES if (line := judged(one, by_name, lacking)) is not None]
    if lines:
        heads = [
            "clocks, CRDTs, digests",
            "target",
            "measured",
            "peers, and how many times longer they take",
            "what bounds it",
        ]
        parts += [HELD, table(heads, lines).replace("---:", "---"),
                  *(f"![{name}](images/{name})\n" for name in growth(by_name))]  # fmt: skip
    for section, groups in sections.items():
        tables = [text for text in (figures(groups), timings(groups)) if text]
        if tables:
            said = [NOTES[section]] if section in NOTES else []
            if all(by_processor(row.ours) for group in groups.values() for row in group if row.ours):
                said.append("Times are CPU time.")
            note = [f"{' '.join(said)}\n"] if said else []
            parts += [f"## {SECTIONS.get(section, section)}\n", *note, *tables]
    missing = sorted(set(lacking.values()))
    if missing:
        parts += ["## Not measured here\n", "".join(f"- {reason}\n" for reason in missing)]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="files", action="append", metavar="FILE", help="results of pytest-benchmark")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments, rest = parser.parse_known_args()
    started = time.monotonic()
    results = read(arguments.files) if arguments.files else run(rest)
    results["datetime"] = results["datetime"] or datetime.date.today().isoformat()
    arguments.out.write_text(page(results))
    plots = growth({benchmark["name"]: benchmark for benchmark in results["benchmarks"]})
    if plots:
        (arguments.out.parent / "images").mkdir(exist_ok=True)
    for name, text in plots.items():
        (arguments.out.parent / "images" / name).write_text(text)
    count = len(results["benchmarks"])
    print(f"{count} benchmarks in {time.monotonic() - started:.0f} s -> {arguments.out}")


if __name__ == "__main__":
    main()
