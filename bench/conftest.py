"""What all benchmarks share: where `load` and `peers` are found, and what is written down beside the figures."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from nova.cli.benchmarks import in_turns, machine

skipped: list[str] = []


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
        skipped.append(report.longrepr[2].removeprefix("Skipped: "))


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["skipped"] = skipped


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """The figures depend on these; the name of the machine is nobody's business."""
    machine_info.clear()
    machine_info.update(machine())


def pytest_benchmark_update_commit_info(config: Any, commit_info: dict[str, Any]) -> None:
    commit_info.clear()
