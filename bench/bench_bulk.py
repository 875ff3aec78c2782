"""Bulk transfers over 1 to 32 streams on loopback beside iperf3 -P: memory to memory, all peers in turns.

Ours frames, checksums or hashes every chunk, places it in one object of memory and compares digests in the end; iperf3
sends one buffer again and again and drops what it receives. Both are given the same congestion control.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from peers import free_port

from nova.transport.bulk import BulkListener, bulk_recv, bulk_send

ROUNDS = 7
SIZE = 1 << 30
SIZE_UNTIMED = 1 << 26
KEY = bytes(32)
STREAMS = (1, 4, 8, 32)


def congestion():
    known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
    names = known.read_text().split() if known.exists() else []
    return "cubic" if "cubic" in names else None


class Nova:
    def __init__(self, size, key, digest):
        self.key, self.digest = key, digest
        self.source = np.random.default_rng(1).integers(0, 256, size, np.uint8)
        self.into = np.ones(size, np.uint8)  # its pages are there: they are not what is measured

    def move(self, streams):
        with ThreadPoolExecutor(1) as pool, BulkListener(key=self.key) as listener:
            got = pool.submit(bulk_recv, listener, self.into)
            cpu_s = time.process_time()
            options = {"key": self.key, "digest": self.digest, "congestion": congestion()}
            sent = bulk_send(self.source, listener.address, streams=streams, **options)
            assert got.result().root == sent.root
            return self.source.nbytes / sent.seconds, (time.process_time() - cpu_s) / self.source.nbytes


class Iperf3:
    def __init__(self, size):
        self.size = size

    def move(self, streams):
        port = str(free_port())
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = ["iperf3", "-s", "-1", "-p", port, "-B", "127.0.0.1", "--forceflush"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while "listening" not in (line := server.stdout.readline()):
            assert line, "iperf3 does not listen"
        options = ["-P", str(streams), "-n", str(self.size), "-l", "256K", "-J"]
        if congestion():
            options += ["-C", congestion()]
        command = ["iperf3", "-c", "127.0.0.1", "-p", port, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        server.communicate(timeout=30)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        end = json.loads(done.stdout)["end"]["sum_received"]
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return end["bytes"] / end["seconds"], cpu_s / end["bytes"]


@pytest.fixture(scope="module")
def moves(request):
    """Called with a number of streams: peer -> (bytes/s, CPU s per byte) of each round; all take turns."""
    timed = not request.config.getoption("benchmark_disable")
    size = SIZE if timed else SIZE_UNTIMED
    peers = {"nova-crc32c": Nova(size, None, "crc32c"), "nova-blake3": Nova(size, None, "blake3"),
             "nova-keyed": Nova(size, KEY, "blake3")}  # fmt: skip
    if shutil.which("iperf3"):
        peers["iperf3"] = Iperf3(size)
    found = {}

    def of(streams):
        if streams not in found:
            rounds = [{name: peer.move(streams) for name, peer in peers.items()} for _ in range(ROUNDS if timed else 1)]
            found[streams] = {name: [one[name] for one in rounds] for name in peers}
        return found[streams]

    return of


@pytest.mark.parametrize("peer", ["nova-crc32c", "nova-blake3", "nova-keyed", "iperf3"])
@pytest.mark.parametrize("streams", STREAMS)
def test_bulk_transfer(benchmark, moves, streams, peer):
    runs = moves(streams)
    if peer not in runs:
        pytest.skip("iperf3 is not installed: apt install iperf3")
    speeds = [speed for speed, _ in runs[peer]]
    figures = {
        "gbit_per_s": round(statistics.median(speeds) * 8e-9, 1),
        "best_gbit_per_s": round(max(speeds) * 8e-9, 1),
        "cpu_s_per_gb": round(statistics.median(cpu for _, cpu in runs[peer]) * 1e9, 3),
    }
    if "iperf3" in runs:
        # Of rounds that stood beside each other: what the machine does meanwhile is in both.
        pairs = zip(speeds, (speed for speed, _ in runs["iperf3"]), strict=True)
        figures["x_iperf3"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 2)
    benchmark.group = f"bulk.{streams} stream{'s' * (streams > 1)}"
    benchmark.extra_info["figures"] = figures
    benchmark.pedantic(lambda: None, rounds=1)
    assert figures["gbit_per_s"] > 0
