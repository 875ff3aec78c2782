"""`nova demo` as a user runs it: it keeps its promises, and it says so, loudly, when the code under it does not."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from real_nodes import with_change

from nova.errors import UnavailableError
from nova.storage.unsynced import unsynced_ranges

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
SMALL = ("--vms", "300", "--events", "3000")

BROKEN_POWER_RULE = """
import nova.conflict.vm as vm
vm.POWER_RANK.update(stopped=3, running=0)  # "running ranks highest" turned round
"""

NO_SYNC = """
int fdatasync(int fd) { (void)fd; return 0; }
"""

FORGETFUL_LOG = """
import nova.storage.log as log

class Forgetful(log.FileLog):
    '''Acknowledges at once, and writes when it likes: every eighth time.'''

    calls = 0

    def sync(self, done):
        self.calls += 1
        if self.calls % 8 == 0:
            super().sync(done)
        else:
            done(self.last, None)

log.FileLog = Forgetful
"""


def demo(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run it in a process of its own; exit code, stdout, stderr. Its nodes end with it."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("NOVA_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "nova", "demo", "--json", "--no-dashboard", "--data", str(folder / "demo"), *arguments],
        env=settings | environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, said = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, out, said


def kept(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run it, hold it to its promises; its report."""
    code, out, said = demo(folder, *arguments)
    assert code == 0, out + said
    report: dict[str, Any] = json.loads(out)
    assert report["broken"] == []
    assert report["writes_lost"] == 0
    assert report["writes_acked"] > report["vms"] + report["events"]
    assert report["converged"]
    assert len(report["digests"]) == report["nodes"] == 3
    assert len(set(report["digests"].values())) == 1
    assert sum(report["conflicts"].values()) > 0
    assert report["resolutions"]
    assert (report["killed"], report["partitions"]) == (1, 1)
    return report


def broken(folder: Path, **environment: str) -> str:
    """Run it over broken code: it must fail; what it found, or how it ended."""
    code, out, said = demo(folder, "--vms", "300", "--events", "0", **environment)
    assert code != 0, out
    return "\n".join(json.loads(out)["broken"]) if out else said


def test_the_demo_keeps_every_promise(tmp_path):
    report = kept(tmp_path, *SMALL)
    assert report["vms"] == 300
    assert report["events"] == 3_000
    print(f"converged in {report['convergence_s']} s, {report['wall_s']} s in all")


def test_the_demo_keeps_every_promise_on_a_public_trace(tmp_path, public_data):
    trace = public_data / "vm-traces" / "bitbrains_cpu.csv.gz"
    if not trace.exists():
        pytest.skip(f"{trace.name} is not among the public data")
    report = kept(tmp_path, *SMALL, "--trace", str(trace))
    assert "bitbrains" in report["trace"]


@pytest.mark.parametrize("kind", ["compressed", "plain"])
def test_a_trace_cut_in_the_middle_gives_one_clear_line(tmp_path, kind):
    rows = "id,t,duration,cpu_count,cpu_mhz\n" + "".join(
        f"{vm},{1377787392 + 300 * step},300000,1,{step % 97 + 0.25}\n" for vm in range(40) for step in range(200)
    )
    whole = gzip.compress(rows.encode()) if kind == "compressed" else rows.encode()
    trace = tmp_path / ("cut.csv.gz" if kind == "compressed" else "cut.csv")
    trace.write_bytes(whole[: len(whole) // 2 + 1].rpartition(b",")[0] if kind == "plain" else whole[: len(whole) // 2])
    code, out, said = demo(tmp_path, *SMALL, "--trace", str(trace))
    assert (code, out) == (2, "")
    assert said.startswith("nova: ")
    assert said.count("\n") == 1
    assert trace.name in said
    assert not (tmp_path / "demo").exists() or not any((tmp_path / "demo").iterdir())


def test_the_demo_fails_when_the_merge_is_broken(tmp_path):
    said = broken(tmp_path, **with_change(tmp_path, BROKEN_POWER_RULE))
    print(said)
    assert "power_state" in said


def test_the_demo_fails_when_a_log_acknowledges_before_it_writes(tmp_path):
    said = broken(tmp_path, **with_change(tmp_path, FORGETFUL_LOG))
    print(said)
    # Peers may already hold every write of the killed node and give them back; its audit chain only it had.
    assert "acknowledged writes are gone" in said or "are lost" in said or "does not verify" in said


def test_the_demo_fails_when_the_disk_is_never_synced(tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a library without fsync; install gcc")
    probe = tmp_path / "probe"
    probe.write_bytes(b"x")
    try:
        unsynced_ranges(probe)
    except UnavailableError as error:
        pytest.skip(str(error))
    source, library = tmp_path / "nosync.c", tmp_path / "nosync.so"
    source.write_text(NO_SYNC)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    said = broken(tmp_path, LD_PRELOAD=str(library))
    print(said)
    assert "acknowledged writes are gone" in said or "are lost" in said or "ended while it started" in said
