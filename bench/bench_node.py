"""Real `nova serve` processes on loopback, loaded by a process of its own. Nothing is emulated: no delays, no loss.

`node_cpu_cores` and `load_cpu_cores` are the processor time that node and generator took per second of the run: near 1
for a node says that its one event loop is the bound, for the generator that the figure is the generator's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peers import etcd, free_port, generator, nova_node, running, under_load

from nova.client import Client

ROOT = Path(__file__).parent.parent
SECONDS = 1.5
ROUNDS = 3


def median_of(runs, *, digits=2):
    """Each figure's median over some runs, and how far the rates were apart."""
    figures = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    rates = [run["per_s"] for run in runs]
    figures["spread"] = (max(rates) - min(rates)) / 2 / figures["per_s"]
    kept = ("per_s", "spread", "p50_ms", "p99_ms", "node_cpu_cores", "load_cpu_cores")
    return {name: round(figures[name], 0 if name == "per_s" else digits) for name in kept}


def record(benchmark, group, figures):
    """Put figures that the harness cannot time into its results."""
    benchmark.group = group
    benchmark.extra_info["figures"] = figures
    benchmark.pedantic(lambda: None, rounds=1)


def quantile(values, ratio):
    return sorted(values)[min(len(values) - 1, int(len(values) * ratio))]


# --- one node ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """name -> a running server, started when first asked for."""
    with contextlib.ExitStack() as stack:
        found = {}

        def server(name):
            if name not in found:
                folder = tmp_path_factory.mktemp(name)
                process = nova_node(folder, "a") if name == "nova" else etcd(folder)
                found[name] = process and stack.enter_context(running(process))
            return found[name]

        yield server


@pytest.mark.parametrize("clients", [1, 16, 64])
@pytest.mark.parametrize("peer", ["nova", "etcd JSON gateway"])
def test_durable_puts_over_http(benchmark, servers, peer, clients):
    server = servers(peer)
    if server is None:
        pytest.skip("peer etcd is not installed: apt install etcd-server")
    op = "put" if peer == "nova" else "etcd"
    runs = [under_load(server, op=op, clients=clients, seconds=SECONDS) for _ in range(ROUNDS)]
    record(benchmark, f"node.durable puts over HTTP, {clients} client{'s' * (clients > 1)}", median_of(runs))
    assert runs[0]["per_s"] > 50


@pytest.mark.parametrize("puts", [10, 100, 1000])
def test_batches_over_http(benchmark, servers, puts):
    server = servers("nova")
    runs = [under_load(server, op="batch", clients=4, batch=puts, seconds=SECONDS) for _ in range(ROUNDS)]
    record(benchmark, "node.durable puts through /v1/batch, 4 clients", median_of(runs))
    assert runs[0]["per_s"] > 1000


@pytest.mark.parametrize("clients", [1, 64])
def test_gets_over_http(benchmark, servers, clients):
    server = servers("nova")
    under_load(server, op="batch", clients=1, batch=1000, seconds=0.5)
    runs = [under_load(server, op="get", clients=clients, seconds=SECONDS) for _ in range(ROUNDS)]
    record(benchmark, "node.gets over HTTP", median_of(runs))
    assert runs[0]["per_s"] > 1000


# --- start ------------------------------------------------------------------------------------------------------------


def test_start_up(benchmark, tmp_path):
    took = []
    for number in range(3):
        with running(nova_node(tmp_path, f"n{number}")) as node:
            took.append(node.start_s)
            rss = node.rss_mb
    figures = {"start_ms": round(statistics.median(took) * 1e3), "rss_mb": round(rss, 1)}
    record(benchmark, "node.start until /readyz answers", figures)


def test_start_after_sigkill_with_100_000_puts_in_the_log(benchmark, tmp_path):
    with running(nova_node(tmp_path, "a")) as node:
        for start in range(0, 100_000, 5_000):
            puts = [{"key": f"key/{n}", "value": "v" * 100} for n in range(start, start + 5_000)]
            node.ask("POST", "/v1/batch", {"puts": puts})
        node.stop(signal.SIGKILL)
    with running(nova_node(tmp_path, "a")) as node:
        assert node.ask("GET", "/v1/status")["keys"] == 100_000
        figures = {"start_ms": round(node.start_s * 1e3), "rss_mb": round(node.rss_mb, 1)}
    record(benchmark, "node.start until /readyz answers", figures)


@pytest.mark.parametrize("what", ["nova", "nova, every name used", "msgspec"])
def test_import(benchmark, what):
    line = "import msgspec" if what == "msgspec" else "import nova"
    more = "; [getattr(nova, name) for name in nova.__all__]" if "every" in what else ""
    program = f"import time; t = time.perf_counter(); {line}{more}; print(time.perf_counter() - t)"
    took = [
        float(subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True).stdout)
        for _ in range(10)
    ]
    figures = {"least_ms": round(min(took) * 1e3, 1), "p50_ms": round(statistics.median(took) * 1e3, 1)}
    record(benchmark, f"node.import {what}, 10 processes", figures)


# --- three regions ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    """Three nodes of one cluster, each in a region of its own."""
    folder = tmp_path_factory.mktemp("regions")
    listen = f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(running(nova_node(folder, "a", "us-east", listen=listen)))]
        for name, region in (("b", "eu-west"), ("c", "ap-south")):
            nodes.append(stack.enter_context(running(nova_node(folder, name, region, join=listen))))
        deadline = time.monotonic() + 20
        while any(node.ask("GET", "/v1/status")["peers"] < 2 for node in nodes):
            assert time.monotonic() < deadline, "the three nodes did not find each other"
            time.sleep(0.02)
        yield nodes


def test_idle_nodes(benchmark, regions):
    time.sleep(2)
    before, started = [node.cpu_s for node in regions], time.perf_counter()
    time.sleep(10)
    wall = time.perf_counter() - started
    percent = [(node.cpu_s - cpu) / wall * 100 for node, cpu in zip(regions, before, strict=True)]
    figures = {"cpu_percent": round(max(percent), 2), "rss_mb": round(max(node.rss_mb for node in regions), 1)}
    record(benchmark, "cluster.idle node of three, over 10 s", figures)


async def visible_ms(regions, probes):
    """Milliseconds from before a put is sent to one node until the others' watchers have been told."""
    clients = [Client(node.url) for node in regions]
    seen: dict[tuple[int, int], float] = {}
    changed = asyncio.Event()
    session = os.urandom(4).hex()

    async def watch(number):
        async for change in clients[number].watch(f"probe/{session}/"):
            seen[number, json.loads(change)["value"]] = time.perf_counter()
            changed.set()

    watchers = [asyncio.create_task(watch(number)) for number in (1, 2)]
    took: list[float] = []
    acknowledged: list[float] = []
    try:
        for probe in range(-3, probes):  # the first are for the watchers to be there
            started = time.perf_counter()
            await clients[0].call("PUT", f"/v1/keys/probe/{session}/{probe}", {"value": probe})
            answered = time.perf_counter()
            deadline = started + (0.5 if probe < 0 else 10)
            while not {(1, probe), (2, probe)} <= seen.keys() and time.perf_counter() < deadline:
                changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), 0.5)
            if probe >= 0:
                assert {(1, probe), (2, probe)} <= seen.keys(), f"probe {probe} did not arrive in 10 s"
                took += [(seen[number, probe] - started) * 1e3 for number in (1, 2)]
                acknowledged.append((answered - started) * 1e3)
            await asyncio.sleep(0.005)
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        for client in clients:
            await client.close()
    return took, acknowledged


@pytest.mark.parametrize("load", ["no load", "1,000 puts/s on one node", "1,000 puts/s on each node"])
def test_update_visible_in_the_other_regions(benchmark, regions, load):
    loaded = 0 if load.startswith("no") else 1 if "one" in load else 3
    loads = [
        subprocess.Popen(generator(node.url, clients=16, seconds=60, rate=1_000), stdout=subprocess.DEVNULL)
        for node in regions[:loaded]
    ]
    try:
        time.sleep(1 if loaded else 0)
        took, acknowledged = asyncio.run(visible_ms(regions, 200))
    finally:
        for process in loads:
            process.kill()
            process.wait()
    figures = {
        "p50_ms": round(statistics.median(took), 2),
        "p99_ms": round(quantile(took, 0.99), 2),
        "acknowledged_p50_ms": round(statistics.median(acknowledged), 2),
        "acknowledged_p99_ms": round(quantile(acknowledged, 0.99), 2),
    }
    record(benchmark, "cluster.update visible in the other two regions, loopback", figures)


def test_the_demo(benchmark, tmp_path):
    command = [sys.executable, "-m", "nova", "demo", "--json", "--no-dashboard", "--data", str(tmp_path / "demo")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NOVA_")}
    done = subprocess.run(
        command, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["writes_lost"] == 0
    assert found["converged"]
    names = ("vms", "events", "writes_acked", "writes_lost", "wall_s", "ops_per_s", "convergence_s")
    record(benchmark, "cluster.the demo: three regions, a cut, a kill -9", {name: found[name] for name in names})


def test_three_nodes_agree_after_the_load(regions):
    deadline = time.monotonic() + 20
    while len({node.ask("GET", "/v1/status")["digest"] for node in regions}) > 1:
        assert time.monotonic() < deadline, "the nodes do not agree"
        time.sleep(0.05)
