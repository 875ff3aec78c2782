"""`nova bench` measures what it says, and the benchmarks and their report go through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nova.cli import benchmarks
from nova.cli.benchmarks import CASES, PARTS, Peer, SqliteStore, figure, measure

ROOT = Path(__file__).parents[2]


def spin(seconds: float) -> Any:
    """Makes work that takes so long."""

    def work() -> bool:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return True

    return benchmarks.simple(lambda: work)


PAIRS = [(case, peer) for case in CASES for peer in case.peers]


@pytest.mark.parametrize(
    ("case", "peer"), PAIRS, ids=[f"{case.part}: {case.name}, {peer.name}" for case, peer in PAIRS]
)
def test_ours_and_the_peer_do_their_work(case: Any, peer: Any, tmp_path: Path) -> None:
    if not peer.installed:
        pytest.skip(f"peer {peer.library} is not installed: pip install 'novacron[bench]'")
    with case.ours(tmp_path) as ours, peer.maker(tmp_path) as theirs:
        for work in (ours, theirs, ours, theirs):
            getattr(work, "prepare", lambda: None)()
            assert work()


def test_all_peers_that_are_installed_are_measured_and_the_others_left_out() -> None:
    case = CASES[0]._replace(
        ours=spin(0.0005),
        peer=spin(0.002),
        others=(Peer("json", spin(0.008), "json"), Peer("nothing", spin(0), "no_such_library")),
    )
    first, second = measure(case, 0.001)
    assert (first.peer_name, second.peer_name) == (case.peer_name, "json")
    assert first.ours == second.ours
    assert 1 < first.ratio < second.ratio


def test_the_command_prints_a_table_and_json(nova: Any) -> None:
    found = json.loads(nova("bench", "digest", "--quick", "--json").stdout)
    assert found["machine"].keys() >= {"cpu", "cores", "kernel", "python", "compiler", "nova"}
    cases = [case for case in CASES if case.part == "digest"]
    expected = [(case.name, peer.name) for case in cases for peer in case.peers if peer.installed]
    assert [(row["case"], row["peer"]) for row in found["cases"]] == expected
    missing = {peer.library for case in cases for peer in case.others if not peer.installed}
    assert found["not_installed"] == sorted(missing)
    for row in found["cases"]:
        assert 0 < row["seconds"] < 0.01
        assert row["ratio"] == pytest.approx(row["peer_seconds"] / row["seconds"])
        assert row["per_s"] == pytest.approx(1 / row["seconds"])
    lines = nova("bench", "digest", "--quick").stdout.splitlines()
    assert lines[0].split() == ["PART", "CASE", "NOVA", "SPREAD", "PER", "S", "PEER", "TAKES", "RATIO"]
    assert [line.startswith("digest ") for line in lines].count(True) == len(expected)
    assert "cores" in lines[1 + len(expected)]
    assert lines[2 + len(expected) :] == [f"not installed, so not measured: {name}" for name in missing]


def test_a_part_that_is_none_is_refused_with_the_list(nova: Any) -> None:
    done = nova("bench", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nonsense" in done.stderr
    assert all(part in done.stderr for part in PARTS)


def test_a_case_that_does_nothing_is_no_figure() -> None:
    lazy = CASES[0]._replace(ours=benchmarks.simple(lambda: lambda: None))
    with pytest.raises(AssertionError, match="did not do its work"):
        measure(lazy, 0.001)


def test_slower_work_takes_longer_and_is_counted_per_operation() -> None:
    (result,) = measure(CASES[0]._replace(ours=spin(0.0005), peer=spin(0.002), operations=10), 0.001)
    assert result.ours.median_s >= 0.00005
    assert result.peer.median_s >= 0.0002
    assert result.ratio > 1


def test_a_figure_is_the_median_with_half_the_interquartile_range() -> None:
    assert figure([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == (4.0, 2.0)


def test_sqlite_is_as_durable_as_it_can_be_and_every_pass_writes_news(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    assert store.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store.db.execute("PRAGMA synchronous").fetchone() == (2,)
    batches = benchmarks.Batches(benchmarks.KEYS, text=True)
    first, second = batches.take(), batches.take()
    assert all(a[0] == b[0] and a[1] != b[1] for a, b in zip(first, second, strict=True))
    store.close()


@pytest.mark.process
def test_the_report_is_made_of_results(tmp_path: Path) -> None:
    """Runs a few real benchmarks, then the report from their file: it names peers, machine and what is missing."""
    results = tmp_path / "results.json"
    # A worker of pytest-xdist would not time anything.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run(
        [sys.executable, "-m", "pytest", "bench/bench_metrics.py", "bench/bench_clock.py", "bench/bench_store.py",
         "-p", "no:cacheprovider", "-q", "-o", "python_files=bench_*.py", "-k", "increment or 256 or hlc or keyspace",
         "--benchmark-max-time=0.01", f"--benchmark-json={results}"],
        cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    found = json.loads(results.read_text())
    timers = {row["fullname"].partition("::")[0]: row["options"]["timer"] for row in found["benchmarks"]}
    assert timers == {
        "bench/bench_metrics.py": "process_time",
        "bench/bench_clock.py": "process_time",
        "bench/bench_store.py": "perf_counter",  # there, some of it waits
    }
    found["lacking"] = {"test_or_set_add[loro]": "peer loro is not installed"}
    results.write_text(json.dumps(found))
    page = tmp_path / "benchmarks.md"
    subprocess.run(
        [sys.executable, "bench/report.py", "--from", str(results), "--out", str(page)],
        cwd=ROOT, env=environment, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    text = page.read_text()
    assert "| counter, one increment |" in text
    assert "prometheus_client" in text
    assert "- peer loro is not installed" in text
    assert "| `a < b`, 256 actors | 50 ns | **" in text
    assert "Times are CPU time." in text
    assert "processor" in text
    assert "node" not in found["machine_info"], "the name of the machine is nobody's business"
    assert str(ROOT) not in text
