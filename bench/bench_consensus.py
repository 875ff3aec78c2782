"""A consensus group of three on loopback and real disks, beside etcd and PySyncObj; three cores in memory.

Ours and the peers run side by side and take turns. What each of them does for a command, and what it leaves out, is
said in docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from peers import etcd_group, under_load

from nova.cli.consensus_works import Cores, Group, SyncObjects

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "process"))

ROUNDS = 5
SECONDS = 1.0


def quantile(values, ratio):
    return sorted(values)[min(len(values) - 1, int(len(values) * ratio))]


def record(benchmark, group, figures):
    """Put figures that the harness cannot time into its results."""
    benchmark.group = group
    benchmark.extra_info["figures"] = figures
    benchmark.pedantic(lambda: None, rounds=1)


def timed(ask, callers):
    """Closed-loop questions for about SECONDS: the figures of one round."""
    each = 2
    while True:
        began = time.perf_counter()
        took = ask(callers, each)
        wall = time.perf_counter() - began
        if wall > SECONDS / 2 or each > 100_000:
            return {
                "per_s": len(took) / wall, "p50_ms": quantile(took, 0.5) * 1e3, "p99_ms": quantile(took, 0.99) * 1e3
            }  # fmt: skip
        each = max(each * 2, int(each * SECONDS / wall))


@pytest.fixture(scope="module")
def commits(tmp_path_factory):
    """Called with the number of callers: peer -> its rounds; all take turns."""
    found = {}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(Group(tmp_path_factory.mktemp("nova")))
        peers = {"nova": lambda callers: timed(ours.commits, callers)}
        if find_spec("pysyncobj") is not None:
            objects = stack.enter_context(SyncObjects(tmp_path_factory.mktemp("pysyncobj")))
            peers["PySyncObj"] = lambda callers: timed(objects.commits, callers)
        nodes = etcd_group(tmp_path_factory.mktemp("etcd"))
        if nodes is not None:
            for node in nodes:
                stack.callback(node.stop)
            peers["etcd JSON gateway"] = lambda callers: under_load(
                nodes[0], op="etcd", clients=callers, value_bytes=128, seconds=SECONDS
            )

        def run(callers):
            if callers not in found:
                found[callers] = {name: [] for name in peers}
                for _ in range(ROUNDS):
                    for name, peer in peers.items():
                        found[callers][name].append(peer(callers))
            return found[callers]

        yield run


@pytest.mark.parametrize("callers", [1, 64, 256])
@pytest.mark.parametrize("peer", ["nova", "etcd JSON gateway", "PySyncObj"])
def test_durable_commits(benchmark, commits, peer, callers):
    runs = commits(callers).get(peer)
    if runs is None:
        lacking = "apt install etcd-server" if "etcd" in peer else "pip install pysyncobj"
        pytest.skip(f"peer {peer.partition(' ')[0]} is not installed: {lacking}")
    figures = {name: statistics.median(run[name] for run in runs) for name in ("per_s", "p50_ms", "p99_ms")}
    rates = [run["per_s"] for run in runs]
    figures = {
        "per_s": round(figures["per_s"]),
        "spread": round((max(rates) - min(rates)) / 2 / figures["per_s"], 2),
        "best_per_s": round(max(rates)),
        "p50_ms": round(figures["p50_ms"], 2),
        "p99_ms": round(figures["p99_ms"], 2),
    }
    record(benchmark, f"consensus.durable commits, {callers} caller{'s' * (callers > 1)}", figures)
    assert figures["per_s"] > 1


@pytest.mark.parametrize("callers", [1, 64])
@pytest.mark.parametrize("way", ["round of heartbeats", "lease"])
def test_linearizable_reads(benchmark, tmp_path, way, callers):
    with Group(tmp_path, lease_reads=way == "lease") as group:
        group.commits(1, 1)
        runs = [timed(group.reads, callers) for _ in range(3)]
    figures = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    record(benchmark, "consensus.linearizable reads at the leader", figures)
    assert figures["per_s"] > 100


@pytest.mark.benchmark(group="consensus.three cores in memory, a commit of one command", max_time=1)
def test_commits_in_memory(benchmark):
    benchmark.extra_info["operations"] = 500
    cores = Cores()
    assert benchmark(cores.commit, 500) == 500


def test_a_killed_leader(benchmark, tmp_path):
    from consensus_group import Group as Processes
    from test_consensus_process import commits as until_committed

    took = []

    async def scenario():
        async with Processes(tmp_path) as group:
            for _ in range(20):
                leader = await group.leader()
                await group.append(leader, "k0")
                survivor = next(member for member in group.members.values() if member is not leader)
                await leader.kill()
                took.append(await until_committed(group, survivor))
                await leader.start()
            await group.settle()

    asyncio.run(scenario())
    figures = {
        "p50_ms": round(quantile(took, 0.5) * 1e3), "p99_ms": round(quantile(took, 0.99) * 1e3),
        "least_ms": round(min(took) * 1e3),
    }  # fmt: skip
    record(benchmark, "consensus.leader killed, to the first new commit, 20 times", figures)
