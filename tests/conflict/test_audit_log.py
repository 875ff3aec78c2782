"""The audit log: what is appended is found again by any index, after any restart, until retention or erasure."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.conflict.audit import ERASED, AuditChain, AuditLog, ChainMark, Retention, decode_event, verify
from nova.conflict.audit.log import ANCHOR, HEAD, MemoryIndex, MemoryRecords
from nova.errors import CorruptionError, NovaError, UsageError
from nova.storage.catalog import Catalog
from nova.storage.log import FileLog
from nova.storage.subjects import SubjectKeys

TYPES = ("detect", "resolve", "fail", "escalate", "rollback", "vote", "decision")
KEY = b"the audit key"


class Files:
    """A log on real files, which can be closed and opened again."""

    def __init__(self, folder, **options):
        self.folder, self.options = folder, options
        self.open()

    def open(self):
        self.records = FileLog(self.folder / "events", segment_bytes=4096)
        self.index = Catalog(self.folder / "catalog.sqlite")
        try:
            self.log = AuditLog(self.records, self.index, **self.options)
        except BaseException:
            self.close()
            raise
        return self.log

    def close(self):
        self.records.close()
        self.index.close()


@pytest.fixture
def files(tmp_path):
    made = Files(tmp_path)
    yield made
    made.close()


def fill(log, count, seed=1):
    """Events of few resources, conflicts and types, at times that mostly rise; what was appended."""
    chance = random.Random(seed)
    made = []
    for n in range(count):
        event = (
            chance.choice(TYPES), 1000 * n + chance.randrange(-3000, 3000), f"c{chance.randrange(9)}",
            f"vm/{chance.randrange(7)}", {"n": n},
        )  # fmt: skip
        assert log.append(*event) == n + 1
        made.append(event)
    return made


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_every_query_finds_what_a_scan_finds_before_and_after_a_restart(kind, tmp_path):
    files = Files(tmp_path) if kind == "files" else None
    log = files.log if files else AuditLog()
    made = fill(log, 2500)
    chance = random.Random(2)
    queries = [{}] + [
        {
            name: value
            for name, value in (
                ("type", chance.choice(TYPES)),
                ("conflict", f"c{chance.randrange(10)}"),
                ("resource", f"vm/{chance.randrange(8)}"),
                ("since_ms", chance.randrange(2_500_000)),
                ("until_ms", chance.randrange(2_500_000)),
                ("after", chance.randrange(2500)),
            )
            if chance.random() < 0.4
        }
        for _ in range(40)
    ]
    for again in range(2 if files else 1):
        for query in queries:
            expected = [
                n
                for n, (type_, at, conflict, resource, _) in enumerate(made)
                if query.get("type", type_) == type_
                and query.get("conflict", conflict) == conflict
                and query.get("resource", resource) == resource
                and query.get("since_ms", at) <= at < query.get("until_ms", at + 1)
                and n >= query.get("after", 0)
            ]
            assert [event.body["n"] for event in log.events(**query)] == expected
            assert [event.body["n"] for event in log.latest(7, **query)] == expected[-7:]
        assert log.verify().ok
        counts = log.statistics()
        assert (counts.events, sum(counts.by_type.values())) == (2500, 2500)
        assert (counts.first_ms, counts.last_ms) == (min(e[1] for e in made), max(e[1] for e in made))
        if files and not again:
            mark = log.mark
            files.close()
            log = files.open()
            assert log.mark == mark
    if files:
        files.close()


def test_queries_read_a_page_at_a_time():
    asked = []

    class Watched(MemoryIndex):
        def events(self, query, **order):
            asked.append(query.limit)
            return super().events(query, **order)

    log = AuditLog(index=Watched())
    fill(log, 2500)
    events = log.events()
    next(events)
    assert asked == [1000]
    assert sum(1 for _ in events) == 2499
    assert asked == [1000] * 3


def test_an_index_that_was_lost_is_filled_again(files):
    fill(files.log, 50)
    files.log.flush()
    before = [event.seq for event in files.log.events(resource="vm/3")]
    files.close()
    for path in files.folder.glob("catalog.sqlite*"):
        path.unlink()
    assert [event.seq for event in files.open().events(resource="vm/3")] == before
    assert files.log.verify().ok


def test_a_log_that_lost_its_end_is_not_taken_up_again(files):
    fill(files.log, 50)
    files.log.flush()
    files.close()
    records = FileLog(files.folder / "events", segment_bytes=4096)
    kept = [record for _, record in records.replay()][:40]
    records.close()
    for path in (files.folder / "events").glob("*.log"):
        path.unlink()
    with FileLog(files.folder / "events", segment_bytes=4096) as shorter:
        shorter.append(kept)
        shorter.commit()
    with pytest.raises(CorruptionError, match="ends at record 40, it once reached 50: its tail was cut off"):
        files.open()


def test_a_head_that_was_changed_in_the_index_is_found_by_its_seal(tmp_path):
    files = Files(tmp_path, key=KEY)
    fill(files.log, 5)
    files.log.flush()
    files.index.set(HEAD, str(files.log.mark))
    with pytest.raises(CorruptionError, match="the seal of the head 5 does not fit"):
        files.log.verify()
    files.close()
    with pytest.raises(CorruptionError, match="does not fit"):
        files.open()


def test_a_head_kept_elsewhere_finds_a_tail_cut_with_the_stored_head():
    log = AuditLog()
    fill(log, 20)
    log.flush()
    elsewhere = log.mark
    records = [record for _, record in log.records.replay()]
    shorter = MemoryRecords()
    shorter.append(records[:15])
    cut = AuditLog(shorter)
    assert cut.verify().ok, "nothing in these files can tell"
    assert "once reached 20: its tail was cut off" in (cut.verify(elsewhere).error or "")
    early = decode_event(records[9])
    assert cut.verify(ChainMark(10, early.hash)).ok, "an older head of the same chain"
    assert "made anew" in (cut.verify(ChainMark(10, elsewhere.hash)).error or "")
    assert log.verify(elsewhere).ok


def test_records_chained_elsewhere_are_taken_only_where_they_follow():
    chain, log = AuditChain(), AuditLog()
    records = [chain.append("fail", n, "c", "r", {}) for n in range(5)]
    log.add(records[:2])
    for wrong in ([records[3]], [records[2][:-1] + b"x"], [records[0]]):
        with pytest.raises(CorruptionError, match="nothing was taken"):
            log.add(wrong)
    log.add(records[2:])
    assert log.mark == chain.mark
    assert [event.seq for event in log.events()] == [1, 2, 3, 4, 5]


# -- export


def test_an_export_makes_the_same_log_again(files):
    fill(files.log, 1500)
    lines = list(files.log.export())
    copy = AuditLog()
    assert copy.take_export(lines) == 1500
    assert copy.mark == files.log.mark
    assert list(copy.export()) == lines
    with pytest.raises(CorruptionError, match="nothing was taken"):
        copy.take_export(lines[3:4])
    files.log.retain(Retention(events_max=5), 0)
    with pytest.raises(UsageError, match="begins with event 1496"):
        AuditLog().take_export(files.log.export())


# -- retention


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=60),
    st.integers(0, 120) | st.none(),
    st.integers(0, 70) | st.none(),
)
def test_retention_drops_the_beginning_that_outlived_all_limits(times, age, most):
    log = AuditLog()
    for n, at in enumerate(times):
        log.append("fail", at, f"c{n}", "r", {})
    log.flush()
    head = log.mark
    dropped = log.retain(Retention(age, most), 100)
    keep_from = 0
    if most is not None:
        keep_from = max(keep_from, len(times) - most)
    if age is not None:
        young = [n for n, at in enumerate(times) if at >= 100 - age and n >= keep_from]
        keep_from = young[0] if young else len(times)
    assert dropped == keep_from
    kept = list(log.events())
    assert [event.conflict_id for event in kept if event.type == "fail"] == [
        f"c{n}" for n in range(keep_from, len(times))
    ]
    assert bool(dropped) == any(event.type == "retain" for event in kept)
    assert log.verify().ok
    assert log.verify(head).ok, "the head from before is still a place of the chain"


def test_what_retention_left_is_verified_again_after_a_restart_and_the_space_is_freed(files):
    fill(files.log, 400)
    assert files.records.first == 1
    assert files.log.retain(Retention(events_max=100), 0) == 300
    files.log.append("fail", 1, "c", "r", {})
    mark = files.log.mark
    files.close()
    log = files.open()
    assert (log.anchor.count, log.mark) == (300, mark)
    assert log.verify().events == 102
    assert 1 < files.records.first <= 301, "whole segments"
    assert next(log.events()).seq == 301


def test_a_beginning_that_was_cut_with_its_anchor_moved_is_found(files):
    fill(files.log, 30)
    files.log.flush()
    tenth = list(files.log.events())[9]
    files.index.set(ANCHOR, str(ChainMark(10, tenth.hash)))
    files.close()
    log = files.open()
    assert "no event vouches for the anchor, 10: the beginning was cut off" in (log.verify().error or "")
    with pytest.raises(UsageError, match="no retain event vouches"):
        log.drop(ChainMark(12, bytes(32)))


def test_a_crash_between_anchor_and_truncation_loses_nothing(files):
    fill(files.log, 300)

    class Crash(Exception):
        pass

    def crash(upto):
        raise Crash

    files.index.forget_events = crash  # type: ignore[method-assign]
    with pytest.raises(Crash):
        files.log.retain(Retention(events_max=20), 0)
    files.close()
    log = files.open()
    assert (log.anchor.count, next(log.events()).seq) == (280, 281)
    assert log.verify().ok


def test_limits_that_are_none_are_refused():
    with pytest.raises(UsageError, match="events_max is -1"):
        Retention(events_max=-1)


# -- erasure


@pytest.fixture
def vault(tmp_path):
    pytest.importorskip("cryptography")
    with SubjectKeys(tmp_path / "subjects") as keys:
        yield keys


def test_erasing_a_subject_makes_his_data_unreadable_and_leaves_the_chain_whole(vault):
    log = AuditLog(vault=vault, key=KEY)
    body = {"value": {"user": "ann", "cpu": 4}, "list": [{"mail": "a@x"}, {"mail": "b@x"}]}
    personal = {"/value/user": "subject-1", "/list/1/mail": "subject-2"}
    log.append("decision", 1, "c1", "vm/1", body, personal=personal)
    lines = list(log.export())
    assert not any("ann" in line or "b@x" in line for line in lines)
    (event,) = log.events()
    assert event.body["value"]["cpu"] == 4
    assert log.reveal(event) == body
    assert log.erase("subject-1", 2)
    assert not log.erase("subject-1", 3)
    revealed = log.reveal(event)
    assert revealed["value"] == {"user": ERASED, "cpu": 4}
    assert revealed["list"][1] == {"mail": "b@x"}
    assert log.verify().ok
    assert [event.type for event in log.events()] == ["decision", "erase"]
    again = AuditLog(vault=vault, key=KEY)
    again.take_export(lines)
    assert again.reveal(next(again.events()))["value"]["user"] == ERASED, "nor in any copy"


def test_what_was_sealed_for_one_place_does_not_open_at_another(vault):
    log = AuditLog(vault=vault)
    log.append("decision", 1, "c1", "vm/1", {"a": "x", "b": "y"}, personal={"/a": "s", "/b": "s"})
    (event,) = log.events()
    swapped = {"a": event.body["b"], "b": event.body["a"]}
    log.append("decision", 1, "c1", "vm/1", swapped)
    with pytest.raises(CorruptionError, match="belongs to another place"):
        log.reveal(list(log.events())[1])
    log.append("decision", 1, "c2", "vm/1", event.body)
    with pytest.raises(CorruptionError, match="belongs to another place"):
        log.reveal(list(log.events())[2])


def test_sealing_what_is_not_there_or_without_a_vault_is_refused(vault):
    log = AuditLog(vault=vault)
    for pointer in ("/x", "", "a", "/list/7", "/list/01", "/a/b"):
        with pytest.raises(UsageError, match="there is nothing at"):
            log.append("fail", 1, "c", "r", {"a": 1, "list": [1, 2]}, personal={pointer: "s"})
    with pytest.raises(UsageError, match="no vault"):
        AuditLog().append("fail", 1, "c", "r", {"a": 1}, personal={"/a": "s"})
    assert log.mark.count == 0


def test_keys_outlive_a_restart_and_destroyed_ones_leave_no_byte(tmp_path):
    pytest.importorskip("cryptography")
    with SubjectKeys(tmp_path / "k") as keys:
        sealed = {name: keys.seal(name, b"data of " + name.encode(), b"here") for name in ("ann", "bob", "eve")}
        with pytest.raises(UsageError, match="in use by process"):
            SubjectKeys(tmp_path / "k")
    with SubjectKeys(tmp_path / "k") as keys:
        assert keys.open(*sealed["bob"], b"here") == b"data of bob"
        assert keys.seal("bob", b"", b"")[0] == sealed["bob"][0], "one key for a subject"
        key = keys._keys[sealed["ann"][0]]
        assert key in (tmp_path / "k" / "keys").read_bytes()
        assert keys.destroy("ann") == sealed["ann"][0]
        assert keys.destroy("ann") is None
        data = (tmp_path / "k" / "keys").read_bytes()
        assert key not in data
        assert b"ann" not in data
    with SubjectKeys(tmp_path / "k") as keys:
        assert len(keys) == 2
        assert "ann" not in keys
        assert keys.open(*sealed["ann"], b"here") is None
        assert keys.seal("ann", b"", b"")[0] != sealed["ann"][0], "a new key, which opens nothing old"
        with pytest.raises(NovaError, match="1 to 400"):
            keys.seal("x" * 401, b"", b"")
    data = bytearray((tmp_path / "k" / "keys").read_bytes())
    data[600] ^= 1
    (tmp_path / "k" / "keys").write_bytes(data)
    with pytest.raises(CorruptionError, match="offset 512"):
        SubjectKeys(tmp_path / "k")


def test_a_log_keeps_its_promise_under_a_key():
    log = AuditLog(key=KEY)
    fill(log, 10)
    log.flush()
    records = [record for _, record in log.records.replay()]
    assert verify(records, key=KEY).ok
    assert not verify(records).ok
    assert ChainMark.unseal(log.sealed_mark, KEY) == log.mark
