"""What all benchmarks share: their modules, which clock times them, and what is written down beside the figures."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from texts import versions

from nova.cli.benchmarks import in_turns, machine

HERE = Path(__file__).resolve().parent
lacking: dict[str, str] = {}  # benchmark -> why it was not measured

_PARTS = ("audit", "clock", "conflict", "crdt", "merge", "metrics", "ot", "reconcile", "sequence")
COMPUTE = {f"bench_{part}.py" for part in _PARTS}
"""Files in which nothing waits."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where nothing waits, time is what the process got of the processor: what others take of it is not our figure.

    All that waits, for a disk, a socket or another thread, is timed by the clock on the wall. Reading the CPU clock is
    a system call, 0.7 us where the wall's takes 0.1 us, so a round lasts a millisecond at least: that is under 0.1% of
    it. Rounds that cannot be repeated without setting up anew have to be long enough by themselves. Python's collector
    is off, as in timeit: a million sets that it walks through are in memory because a peer in dicts was made before.
    """
    for item in items:
        if item.path.parent == HERE and item.path.name in COMPUTE:
            given = item.get_closest_marker("benchmark")
            options = {
                "timer": time.process_time,
                "min_time": 0.001,
                "disable_gc": True,
                **(given.kwargs if given else {}),
            }
            item.add_marker(pytest.mark.benchmark(**options), append=False)


@pytest.fixture
def best_of(benchmark: Any) -> Callable[..., Any]:
    """Times `work` on what `setup` makes anew for each round: for about `seconds`, but 3 rounds at least, 30 at most.

    A peer gets its rounds by the same rule as ours. Returns what the last round returned.
    """

    def run(work: Callable[..., Any], setup: Callable[[], tuple[Any, ...]] = tuple, *, seconds: float = 2.0) -> Any:
        rounds = 1
        if benchmark.enabled:
            started = time.perf_counter()
            work(*setup())
            rounds = min(max(3, int(seconds / (time.perf_counter() - started))), 30)
        return benchmark.pedantic(work, setup=lambda: (setup(), {}), rounds=rounds)

    return run


@pytest.fixture(scope="module")
def durable_in_turns(tmp_path_factory):
    """Times work that waits for the disk: all peers in turns, because the disk's mood changes from second to second.

    Called with the makers by name, whom to report and how many operations one call does. The harness times nothing
    then; the figures go into its results as `timing`.
    """
    found = {}

    def report(benchmark, makers, peer, operations):
        if operations not in found:
            with contextlib.ExitStack() as stack:
                works = []
                for make in makers.values():
                    works.append(stack.enter_context(make(tmp_path_factory.mktemp("durable"))))
                found[operations] = dict(
                    zip(makers, in_turns(works, 0.02, operations=operations, rounds=40), strict=True)
                )
        median, spread = found[operations][peer]
        benchmark.extra_info["timing"] = {"median": median, "spread": spread}
        benchmark.pedantic(lambda: None, rounds=1)
        assert median > 0

    return report


def pytest_runtest_logreport(report: Any) -> None:
    """What was not measured is told in the results, with the reason."""
    if report.skipped and isinstance(report.longrepr, tuple):
        lacking[report.nodeid.partition("::")[2]] = report.longrepr[2].removeprefix("Skipped: ")


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["lacking"] = lacking


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """The figures depend on these; the name of the machine is nobody's business."""
    machine_info.clear()
    machine_info.update(machine(), peers=versions())


def pytest_benchmark_update_commit_info(config: Any, commit_info: dict[str, Any]) -> None:
    commit_info.clear()
