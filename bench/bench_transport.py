"""Streams between two processes, beside a C program with blocking sockets, iperf3, ZeroMQ and protocols on uvloop.

Ours and the peers take turns, each measurement in processes of its own (wire.py), all with the same congestion control.
Throughput and round trips are figures of the wall's clock; CPU seconds are those of both processes, kernel included.
"""

import os
import statistics
import subprocess
import sys

import pytest
from wire import HERE, KINDS, lacks

ROUNDS = int(os.environ.get("NOVA_BENCH_ROUNDS", "5"))

# name -> kind, messages in a round, bytes of each
CASES = {
    "one stream, messages of 256 KiB": ("bulk", 16_384, 256 * 1024),
    "one stream, messages of 1 MiB": ("bulk", 4_096, 1024 * 1024),
    "messages of 64 B, by batch": ("slab", 4_000_000, 64),
    "messages of 64 B, an object each": ("objects", 500_000, 64),
    "round trip of 64 B": ("trips", 20_000, 64),
    "round trip of 64 B on the loop": ("loop trips", 10_000, 64),
}
FEWER = {"pyzmq": {"slab": 500_000}, "nova-keyed": {"bulk": 1_024, "slab": 1_000_000}}
"""Where the usual number would take too long."""


def measure(kind, peer, count, size):
    done = subprocess.run(
        [sys.executable, HERE / "wire.py", kind, peer, str(count), str(size)],
        check=True, capture_output=True, text=True, timeout=300, cwd=HERE.parent,
    )  # fmt: skip
    wall, cpu = map(float, done.stdout.split())
    return wall / count, cpu / count


@pytest.fixture(scope="module")
def turns():
    """Called with a case: peer -> its rounds, (wall, CPU) seconds of a message each; all took turns."""
    found = {}

    def run(name, rounds, shrink):
        if name not in found:
            kind, count, size = CASES[name]
            peers = {peer: FEWER.get(peer, {}).get(kind, count) for peer in KINDS[kind] if not lacks(peer)}
            found[name] = {peer: [] for peer in peers}
            for _ in range(rounds):
                for peer, of in peers.items():
                    found[name][peer].append(measure(kind, peer, max(10, of // shrink), size))
        return found[name]

    return run


@pytest.mark.parametrize(("name", "peer"), [(name, peer) for name, case in CASES.items() for peer in KINDS[case[0]]])
def test_two_processes(benchmark, turns, name, peer):
    if missing := lacks(peer):
        pytest.skip(f"peer {peer}: {missing}")
    kind, _, size = CASES[name]
    runs = turns(name, ROUNDS, 1) if benchmark.enabled else turns(name, 1, 200)
    walls, cpus = [wall for wall, _ in runs[peer]], [cpu for _, cpu in runs[peer]]
    wall = statistics.median(walls)
    if kind == "bulk":
        figures = {
            "gbit_per_s": round(size * 8 / wall / 1e9, 2),
            "best_gbit_per_s": round(size * 8 / min(walls) / 1e9, 2),
            "cpu_s_per_gb": round(statistics.median(cpus) / size * 1e9, 3),
        }
    elif "trip" in kind:
        figures = {"us": round(wall * 1e6, 2), "best_us": round(min(walls) * 1e6, 2)}
        figures["cpu_us"] = round(statistics.median(cpus) * 1e6, 2)
    else:
        figures = {"m_per_s": round(1e-6 / wall, 3), "best_m_per_s": round(1e-6 / min(walls), 3)}
        figures["cpu_ns"] = round(statistics.median(cpus) * 1e9, 1)
    benchmark.group = f"transport.{name}"
    benchmark.extra_info["figures"] = figures
    benchmark.pedantic(lambda: None, rounds=1)
    assert wall > 0
