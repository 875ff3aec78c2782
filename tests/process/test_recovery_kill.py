"""SIGKILL of a store that writes, takes checkpoints and is restored: how long until a copy answers, and what it lacks.

RTO is the time from the beginning of the restore until the copy is open and has answered a read; RPO is what was
acknowledged and is not in the copy. `pytest -s` shows both.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter, time_ns

import pytest
from killed import said_before_kill
from real_nodes import Answer, eventually

from nova.errors import UnavailableError
from nova.storage.unsynced import cut_power
from nova.store import ReplicatedStore, list_checkpoints, restore, verify_audit

pytestmark = pytest.mark.process

WRITER = """
import json, os, sys
from nova.store import ReplicatedStore

store = ReplicatedStore(sys.argv[1], node="a", checkpoint_ms=int(sys.argv[2]))
n = store.get("n").value if "n" in store else 0
while True:
    n += 1
    store.put_many([("n", n), (f"k{n % 500}", {"n": n, "text": "x" * 200})])
    os.write(1, (json.dumps(n) + "\\n").encode())
"""

RESTORER = """
import os, signal, sys
from nova.storage.snapshot import FileSnapshots
from nova.store import restore

if sys.argv[3] == "before the state":
    FileSnapshots.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
restore(sys.argv[1], sys.argv[2], node="b")
os.kill(os.getpid(), signal.SIGKILL)
"""


def cut(folder: Path) -> None:
    try:
        for path in folder.rglob("*.log"):
            cut_power(path)
    except UnavailableError:
        pass  # then it is a kill without a power cut


def test_a_killed_store_is_restored_without_loss_of_what_it_acknowledged(tmp_path, capsys):
    chance = random.Random(21)
    rto_ms, lost = [], []
    for number, checkpoint_ms in enumerate((1, 20, 0, 5)):  # 1: a kill often meets a checkpoint that is being stored
        source, into = tmp_path / "a", tmp_path / f"copy{number}"
        arguments = [str(source), str(checkpoint_ms)]
        newest = int(said_before_kill(WRITER, arguments, chance.randrange(50, 200), chance.random() * 0.02)[-1])
        cut(source)
        started = perf_counter()
        done = restore(source, into, node=f"b{number}")
        with ReplicatedStore(into, node=f"b{number}") as copy:
            n = copy.get("n").value
            rto_ms.append((perf_counter() - started) * 1000)
            lost.append(max(0, newest - n))
            assert n >= newest
            assert copy.get(f"k{n % 500}").value["n"] == n  # a batch is there as a whole
            assert copy.digest == done.rebuilt.digest
        assert all(each.position <= done.rebuilt.end for each in list_checkpoints(source))
        assert verify_audit(source)["ok"]
        assert verify_audit(into)["ok"]
    with ReplicatedStore(tmp_path / "a", node="a") as store:  # the source goes on as if nothing had been
        assert store.get("n").value >= newest
        assert store.checkpoints()
    with capsys.disabled():
        told = ", ".join(f"{each:.1f}" for each in rto_ms)
        print(f"\nRTO {told} ms; RPO {sum(lost)} acknowledged writes lost in {len(rto_ms)} kills")
    assert lost == [0] * len(lost)


def test_a_restore_that_is_killed_leaves_a_whole_copy_or_none(tmp_path):
    with ReplicatedStore(tmp_path / "a", node="a") as store:
        store.put_many((f"k{n}", {"n": n, "text": "x" * 100}) for n in range(1000))
        digest = store.digest
    for moment, there in (("before the state", False), ("after it", True)):
        into = tmp_path / moment
        done = subprocess.run([sys.executable, "-c", RESTORER, tmp_path / "a", into, moment], timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert into.exists() == there
        if not there:
            assert restore(tmp_path / "a", into, node="b").rebuilt.digest == digest
        with ReplicatedStore(into, node="b") as copy:
            assert copy.digest == digest


def test_a_node_takes_checkpoints_while_it_serves_and_its_past_is_restored_after_a_kill(nodes, tmp_path):
    (a,) = nodes.start("a", limits={"checkpoint_ms": 1_000, "checkpoints_kept": 3, "snapshot_log_bytes": 1 << 20})
    a.put("k", "early")
    eventually(lambda: a.call("GET", "/v1/checkpoints")["checkpoints"])
    taken = a.call("POST", "/v1/checkpoints")
    assert (taken["node"], taken["keys"]) == ("a", 1)
    eventually(lambda: time_ms() > taken["time_ms"])
    then = time_ms()
    eventually(lambda: time_ms() > then)
    a.put("k", "late")
    assert a.call("GET", f"/v1/keys/k?at={then}")["value"] == "early"
    assert a.get("k")["value"] == "late"
    with pytest.raises(Answer, match="a time that has passed"):
        a.call("GET", f"/v1/keys/k?at={then + 10**9}")
    with pytest.raises(Answer, match="holds nothing"):
        a.call("GET", f"/v1/keys/none?at={then}")
    figures = a.ask("GET", "/metrics")[1].decode()
    assert 'nova_checkpoints_total{result="ok"}' in figures
    assert "nova_checkpoint_newest_seconds 0" not in figures
    for number in range(12):  # a snapshot is due in between: the log that the checkpoints need has to stay
        a.put(f"bulk/{number}", "x" * 200_000)
    a.kill()
    cut(a.data)
    done = restore(a.data, tmp_path / "then", node="then", cluster="past", at_ms=then)
    assert done.keys == 1
    with ReplicatedStore(tmp_path / "then", node="then", cluster="past") as past:
        assert past.get("k").value == "early"
    assert len(list_checkpoints(a.data)) <= 3
    a.start()
    assert a.call("GET", f"/v1/keys/k?at={then}")["value"] == "early"
    assert a.get("k")["value"] == "late"


def time_ms():
    return time_ns() // 1_000_000
