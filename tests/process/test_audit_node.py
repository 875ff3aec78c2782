"""The audit trail of real nodes, from the command line: a VM goes through a partition and a rollback, and a restart."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from real_nodes import ROOT, TOKEN, Node, Nodes, converge, eventually, meet, with_change

from nova.conflict.audit import ChainMark
from nova.storage.catalog import Catalog
from nova.storage.log import FileLog

pytestmark = pytest.mark.process

VM = {"id": "vm-7", "power_state": "running", "cpu": 2}


def nova(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("NOVA_")}
    mine |= {"NOVA_NODE": f"http://{node.http}", "NOVA_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "nova", *arguments],
        env=mine,
        cwd=node.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def told(node: Node, *arguments: str) -> Any:
    done = nova(node, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_why_tells_of_partition_and_rollback_and_the_trail_verifies_after_kill_and_restart(nodes: Nodes) -> None:
    key_file = nodes._folder / "audit.key"
    key_file.write_text("k" * 64)
    a, b = nodes.start("a", "b", flags=("--audit-key-file", str(key_file)))
    a.put("vm/7", VM, kind="vm")
    point = nova(a, "points", "save", "vm/7", "--note", "before the upgrade").stdout.strip()
    converge(a, b)
    a.cut(b)
    a.put("vm/7", {"cpu": 4}, merge=True)
    b.put("vm/7", {"cpu": 8}, merge=True)
    a.heal()
    b.heal()
    converge(a, b)
    assert a.get("vm/7")["value"]["cpu"] == 8  # type: ignore[index]
    seen = a.get("vm/7")["clock"]  # type: ignore[index]
    b.put("vm/7", {"labels": {"late": "1"}}, merge=True)
    converge(a, b)

    done = told(a, "rollback", "vm/7", "--to", point, "--context", json.dumps(seen), "--by", "ann")
    assert done["restored"] == {"/cpu": 2}
    assert [(kept["path"], kept["origin"]) for kept in done["kept"]] == [("/labels/late", "b")]
    converge(a, b)
    assert b.get("vm/7")["value"] == {**VM, "labels": {"late": "1"}}  # type: ignore[index]

    story = nova(a, "why", "vm/7").stdout
    for words in (
        f"was kept as point {point} (before the upgrade)",
        "concurrent_update",
        "  b wrote /cpu = 8",
        "was settled by semantic",
        f"vm/7 was rolled back to {point} by ann; 1 write that came meanwhile stays",
        "  discarded: 8 of b at /cpu",
        '  kept: "1" of b at /labels/late',
    ):
        assert words in story, story
    events = a.call("GET", "/v1/audit?resource=vm/7")["events"]
    assert [event["type"] for event in events] == ["point", "detect", "resolve", "point", "rollback"]
    assert b'dwcp_conflict_events_logged_total{event_type="rollback"} 1' in a.ask("GET", "/metrics")[1]

    stats = a.call("GET", "/v1/audit/statistics")
    head = stats["head"]
    assert (stats["by_type"]["rollback"], stats["hotspots"][0]["subject"]) == (1, "vm/7")
    assert nova(a, "audit", "export", "trail.jsonl").stdout == "5 events written to trail.jsonl\n"
    check = ("audit", "verify", "--export", "trail.jsonl", "--head", head)
    assert nova(a, *check, "--key-file", str(key_file)).returncode == 0
    assert "the key is another" in nova(a, *check).stdout

    a.kill()
    offline = nova(a, "audit", "verify", "--data", str(a.data), "--head", head, "--key-file", str(key_file))
    assert offline.returncode == 0, offline.stdout
    a.start()
    meet(a, b)
    assert a.call("GET", f"/v1/audit/verify?head={head}")["ok"]
    assert a.call("POST", "/v1/audit/retain", {"events_max": 1}) == {"dropped": 4}
    a.kill()
    a.start()
    verdict = a.call("GET", "/v1/audit/verify")
    assert (verdict["ok"], verdict["events"]) == (True, 2)


def test_a_node_keeps_no_more_of_its_trail_than_it_is_told(nodes: Nodes) -> None:
    hurry = with_change(nodes._folder, "import nova.server.upkeep; nova.server.upkeep.RETAIN_SECONDS = 1")
    (a,) = nodes.start("a", limits={"audit_events": 10}, environment=hurry)
    a.put("k", 1)
    for _ in range(40):
        a.call("POST", "/v1/points/k", {})
    eventually(lambda: a.call("GET", "/v1/audit/statistics")["events"] <= 27, 20, "nothing was dropped")
    assert "retain" in a.call("GET", "/v1/audit/statistics")["by_type"]
    assert a.call("GET", "/v1/audit/verify")["ok"]


def test_a_node_whose_trail_lost_its_end_does_not_start(nodes: Nodes, tmp_path: Path) -> None:
    (a,) = nodes.start("a")
    for n in range(3):
        a.put(f"k{n}", n)
        a.call("POST", f"/v1/points/k{n}", {})
    assert a.stop() == 0
    (segment,) = (a.data / "audit").glob("*.log")
    data = segment.read_bytes()
    third = data.index(b"k2") - 120
    segment.write_bytes(data[:third] + bytes(len(data) - third))
    verdict = nova(a, "audit", "verify", "--data", str(a.data))
    assert verdict.returncode == 1
    assert "its tail was cut off" in verdict.stdout
    a.launch()
    assert a.wait() != 0
    assert "its tail was cut off" in a.words()


def test_peers_find_out_that_the_end_of_a_trail_was_cut_though_nothing_on_its_disk_shows_it(nodes: Nodes) -> None:
    hurry = with_change(nodes._folder, "import nova.store.witness; nova.store.witness.ROUND_MS = 300")
    a, b = nodes.start("a", "b", environment=hurry)
    meet(a, b)
    for number in range(3):
        for part in range(3):
            a.put(f"k{number}/{part}", "x" * 200_000)
        a.call("POST", f"/v1/points/k{number}/0", {})

    def kept_by_b() -> str:
        with Catalog(b.data / "catalog.sqlite") as catalog:
            return next(iter(catalog.held("a").values()), "")

    eventually(lambda: kept_by_b().startswith("3:"))
    assert told(a, "audit", "verify")["ok"]
    a.kill()
    a.start()  # a crash accuses nobody
    meet(a, b)
    eventually(lambda: a.call("GET", "/v1/audit/witnesses")["held_by"] == {"b": kept_by_b()})
    assert told(a, "audit", "verify")["ok"]
    assert b.call("GET", "/v1/audit/witnesses")["holds"] == {"a": [kept_by_b()]}

    assert a.stop() == 0  # with a snapshot: its log has no say in the trail any more
    with FileLog(a.data / "audit") as archive:
        records = [bytes(record) for _, record in archive.replay()]
    with Catalog(a.data / "catalog.sqlite") as catalog:
        catalog.set("audit_head", ChainMark(2, records[1][4:36]).seal(b""))
    with contextlib.closing(sqlite3.connect(a.data / "catalog.sqlite")) as index, index:
        index.execute("DELETE FROM events WHERE seq > 2")
    shutil.rmtree(a.data / "audit")
    with FileLog(a.data / "audit") as archive:
        archive.append(records[:2])
        archive.commit()
    assert nova(a, "audit", "verify", "--data", str(a.data)).returncode == 0  # alone, nobody can see it
    a.start()
    meet(a, b)
    eventually(lambda: a.call("GET", "/v1/audit/witnesses")["held_by"])
    verdict = nova(a, "audit", "verify")
    assert verdict.returncode == 1
    assert "its tail was cut off" in verdict.stdout
    a.call("POST", "/v1/points/k0/0", {})
    a.call("POST", "/v1/points/k0/0", {})  # longer than it was: and still another one
    eventually(lambda: a.call("GET", "/v1/audit/statistics")["events"] == 4)
    eventually(lambda: "does not fit" in a.words())
    verdict = nova(a, "audit", "verify")
    assert verdict.returncode == 1
    assert "another hash" in verdict.stdout
    assert kept_by_b().startswith("3:")  # what shows it stays
