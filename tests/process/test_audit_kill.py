"""SIGKILL, and the loss of what was not synced, in the middle of resolution, rollback and export: nothing acknowledged
is missing from the audit trail, it verifies from the head that was acknowledged, and a file is whole or not there."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from killed import said_before_kill

from nova.cli.audit import write_whole
from nova.conflict.audit import AuditLog, ChainMark, import_lines, verify
from nova.errors import UnavailableError
from nova.storage.catalog import Catalog
from nova.storage.log import FileLog
from nova.storage.unsynced import cut_power
from nova.store import ReplicatedStore, verify_audit

pytestmark = pytest.mark.process

LOG = """
import json, os, sys
from nova.conflict.audit import AuditLog
from nova.storage.catalog import Catalog
from nova.storage.log import FileLog

log = AuditLog(FileLog(sys.argv[1] + "/events", segment_bytes=64 << 10), Catalog(sys.argv[1] + "/catalog.sqlite"))
while True:
    for type in ("detect", "vote", "resolve", "rollback", "escalate", "decision"):
        log.append(type, log.mark.count, f"c{log.mark.count}", "vm/1", {"paths": ["/cpu"], "x": "y" * 200})
    if log.mark.count % 4 and not sys.argv[2:]:
        log.flush()
    os.write(1, (json.dumps(str(log.commit())) + "\\n").encode())
    if sys.argv[2:]:
        sys.stdin.read()
"""

STORE = """
import json, os, sys
from nova.store import ReplicatedStore

here, there = ReplicatedStore(sys.argv[1] + "/d", node="a"), ReplicatedStore(node=f"b{os.getpid()}")
there.sync_with(here)
if "vm/1" not in here:
    here.put("vm/1", {"id": "v", "cpu": 1}, kind="vm")
n = 0
while True:
    n += 1
    point = here.point("vm/1")
    there.sync_with(here)
    here.put("vm/1", {"cpu": 2 * n}, merge=True)
    there.put("vm/1", {"cpu": 3 * n}, merge=True)
    here.sync_with(there)
    conflict = here.conflicts(1)[0]["id"]
    done = here.rollback("vm/1", point)
    clock = here.get("vm/1").clock
    said = {"point": point, "conflict": conflict, "undo": done.undo, "clock": clock, "head": str(here.audit.mark)}
    os.write(1, (json.dumps(said) + "\\n").encode())
"""

EXPORT = """
import json, os, sys
from pathlib import Path
from nova.cli.audit import write_whole
from nova.conflict.audit import AuditLog
from nova.storage.catalog import Catalog
from nova.storage.log import FileLog

folder = Path(sys.argv[1])
log = AuditLog(FileLog(folder / "events"), Catalog(folder / "catalog.sqlite"))
while True:
    log.append("fail", 1, "c", "r", {"x": "y" * 100})
    log.commit()
    count = write_whole(folder / "trail.jsonl", (line.encode() + b"\\n" for line in log.export()))
    os.write(1, (json.dumps(count) + "\\n").encode())
"""


def heard(program: str, arguments: list[str], lines_min: int, delay_s: float = 0) -> list[Any]:
    return [json.loads(line) for line in said_before_kill(program, arguments, lines_min, delay_s)]


def catalog_of(folder: Path) -> Catalog:
    return Catalog(folder / "catalog.sqlite")


def cut(folder: Path) -> None:
    try:
        for path in folder.rglob("*.log"):
            cut_power(path)
    except UnavailableError:
        pass  # then it is a kill without a power cut


def test_no_acknowledged_event_is_lost_by_kill_and_power_cut(tmp_path):
    chance = random.Random(11)
    head = ChainMark()
    for _ in range(6):
        said = heard(LOG, [str(tmp_path)], chance.randrange(1, 30), chance.random() * 0.01)
        head = ChainMark.parse(said[-1])
        cut(tmp_path / "events")
        with (
            FileLog(tmp_path / "events", segment_bytes=64 << 10) as records,
            catalog_of(tmp_path) as index,
        ):
            log = AuditLog(records, index)
            assert log.mark.count >= head.count
            verdict = log.verify(head)
            assert verdict.ok, verdict
            assert [event.seq for event in log.events()] == list(range(1, log.mark.count + 1))


def test_what_was_killed_right_behind_its_answer_is_there(tmp_path):
    """The moment at which nothing but the commit that was answered can have written anything."""
    said = heard(LOG, [str(tmp_path), "once"], 1)
    cut(tmp_path / "events")
    with FileLog(tmp_path / "events", segment_bytes=64 << 10) as records, catalog_of(tmp_path) as index:
        assert str(AuditLog(records, index).mark) == said[0]


def test_a_store_killed_while_it_settles_and_rolls_back_keeps_what_it_acknowledged(tmp_path):
    chance = random.Random(12)
    for _ in range(4):
        said = heard(STORE, [str(tmp_path)], chance.randrange(1, 12), chance.random() * 0.02)
        cut(tmp_path / "d" / "log")
        cut(tmp_path / "d" / "audit")
        with ReplicatedStore(tmp_path / "d", node="a") as store:
            events = list(store.audit.events())
            kinds = ("detect", "resolve", "point", "rollback")
            of_type = {kind: {event.conflict_id for event in events if event.type == kind} for kind in kinds}
            for round in said:
                assert round["conflict"] in of_type["detect"] & of_type["resolve"]
                assert {round["point"], round["undo"]} <= of_type["point"]
                assert round["point"] in of_type["rollback"]
            entry = store.get("vm/1")
            assert all(entry.clock.get(actor, 0) >= count for actor, count in said[-1]["clock"].items())
            assert store.audit.verify(ChainMark.parse(said[-1]["head"])).ok
            assert "rolled back" in store.why("vm/1")["text"]
        verdict = verify_audit(tmp_path / "d", said[-1]["head"])
        assert verdict["ok"], verdict


def test_an_export_that_was_killed_is_whole_or_not_there_and_the_trail_is_as_it_was(tmp_path):
    with FileLog(tmp_path / "events") as records, catalog_of(tmp_path) as index:
        log = AuditLog(records, index)
        log.append_many([("fail", n, f"c{n}", "r", {"x": "y" * 100}) for n in range(3000)])
        log.commit()
    chance = random.Random(13)
    acknowledged = 3000
    for _ in range(5):
        acknowledged = max(
            acknowledged, *heard(EXPORT, [str(tmp_path)], chance.randrange(1, 4), chance.random() * 0.05)
        )
        with (tmp_path / "trail.jsonl").open("rb") as file:
            verdict = verify(import_lines(file))
        assert verdict.ok
        assert verdict.events >= acknowledged, "the file of the last answer, or a newer one"
        with FileLog(tmp_path / "events") as records, catalog_of(tmp_path) as index:
            log = AuditLog(records, index)
            assert log.mark.count >= acknowledged
            assert log.verify(verdict.head).ok


def test_a_file_that_cannot_be_finished_leaves_the_one_before(tmp_path):
    path = tmp_path / "trail.jsonl"
    write_whole(path, [b"one\n"])

    def breaks_off():
        yield b"two\n"
        raise UnavailableError("the node is gone")

    with pytest.raises(UnavailableError):
        write_whole(path, breaks_off())
    assert path.read_bytes() == b"one\n"
    assert [file.name for file in tmp_path.iterdir()] == ["trail.jsonl"]
