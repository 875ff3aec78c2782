"""Points to come back to: any time that the log reaches, under a new identity; and two stores made equal again."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova.conflict.healing.checkpoints import Checkpoint, Schedule, rebuild, stamp_limit, unpack
from nova.conflict.metrics import ConflictMetrics, Hooks
from nova.errors import CorruptionError, KeyNotFoundError, UnavailableError, UsageError
from nova.metrics import Registry
from nova.storage.log import FileLog
from nova.storage.snapshot import FileSnapshots
from nova.store import ReplicatedStore, heal, list_checkpoints, restore, take_checkpoint, verify_audit
from nova.store import embedded as embedded_module
from nova.store.checkpoints import Checkpoints
from nova.store.core import StoreConfig
from nova.store.recovery import as_of, held_at


class Time:
    """The wall clock of a test."""

    def __init__(self, monkeypatch):
        self.ms = 1_000_000
        monkeypatch.setattr(embedded_module, "wall_ns", lambda: self.ms * 1_000_000)


@pytest.fixture
def clock(monkeypatch):
    return Time(monkeypatch)


def contents_of(replica):
    return {entry.key: entry.value for entry in replica.scan("", 10_000)[0]}


def contents(store):
    return contents_of(store.replica)


def filled(path, clock, checkpoints=(), count=12, **options):
    """A store that wrote `count` times, 1000 ms apart, and what it held at each time."""
    held = {}
    with ReplicatedStore(path, node="a", **options) as store:
        for number in range(count):
            clock.ms += 1000
            if number % 5 == 4:
                store.delete(f"k{number % 3}")
            else:
                store.put(f"k{number % 3}", {"n": number, "pad": "x" * 200})
            if number in checkpoints:
                store.checkpoint()
            held[clock.ms] = contents(store)
    return held


@pytest.mark.parametrize("checkpoints", [(), (0,), (3, 8), range(12)])
def test_the_state_as_of_any_time_is_what_was_there_then(tmp_path, clock, checkpoints):
    held = filled(tmp_path / "a", clock, checkpoints)
    with ReplicatedStore(tmp_path / "a", node="a") as store:
        for at_ms, expected in held.items():
            assert contents(store.as_of(at_ms)) == expected
            assert contents(store.as_of(at_ms + 999)) == expected
        assert contents(store.as_of(1_000_000)) == {}
        assert contents(store) == expected


def test_a_time_before_what_is_kept_is_refused_and_says_from_when_on(tmp_path, clock):
    held = filled(tmp_path / "a", clock, (8,))
    times = sorted(held)
    checkpoints = Checkpoints(tmp_path / "a")
    assert checkpoints.oldest_position == 9
    with FileLog(tmp_path / "a" / "log") as log:
        cut = Cut([(position, record) for position, record in log.replay() if position > 8])
    found, done = as_of(cut, checkpoints, None, "b", times[9])
    assert contents_of(found) == held[times[9]]
    assert (done.start, done.passed_over) == (9, 2)
    with pytest.raises(UnavailableError, match=rf"the oldest time is {times[8]} ms"):
        as_of(cut, checkpoints, None, "b", times[7])
    with pytest.raises(CorruptionError, match="log files are missing"):
        as_of(Cut([(1, b"")]), checkpoints, None, "b", times[9])


class Cut:
    """A log of which only some records are left."""

    def __init__(self, records):
        self.records, self.first, self.last = records, records[0][0], records[-1][0]

    def replay(self, start=1):
        return iter([(at, record) for at, record in self.records if at >= start])


def test_the_log_is_kept_from_the_oldest_checkpoint_on(tmp_path, clock):
    options = {"checkpoints_kept": 2}
    with ReplicatedStore(tmp_path, node="a", **options) as store:
        directory = store._directory
        directory.log._segment_bytes = 4096
        for number in range(60):
            clock.ms += 1000
            store.put(f"k{number % 7}", "x" * 500)
            if number % 10 == 9:
                store.checkpoint()
                directory.save_snapshot(directory.log.last, store.replica.snapshot())
                directory.trim(directory.log.last, 0)
        oldest = store.checkpoints()[0]
        assert [c.position for c in store.checkpoints()] == [50, 60]
        assert 1 < directory.log.first <= oldest.position + 1
        assert len(store.as_of(oldest.time_ms + 5000)) == 7


def test_a_checkpoint_is_due_by_time_and_only_if_something_was_written(tmp_path, clock):
    with ReplicatedStore(tmp_path, node="a", checkpoint_ms=3000) as store:
        for _ in range(9):
            clock.ms += 1000
            store.put("k", clock.ms)
        assert [c.time_ms - 1_000_000 for c in store.checkpoints()] == [1000, 4000, 7000]
    with ReplicatedStore(tmp_path, node="a", checkpoint_ms=3000) as store:  # goes on where it was
        clock.ms += 500
        store.put("k", 0)
        assert len(store.checkpoints()) == 3
    quiet = Schedule(1000, Checkpoint(5, 0, 0, "a", 1, 0, ""))
    assert not quiet.due(10_000, 5)
    assert quiet.due(10_000, 6)
    assert Schedule(1000, Checkpoint(5, 9_000, 0, "a", 1, 0, "")).due(1_000, 6)  # the clock was set back
    assert not Schedule(0).due(10_000, 6)


def test_a_checkpoint_that_cannot_be_stored_is_no_failure_of_the_write(tmp_path, clock, monkeypatch, caplog):
    tried = []

    def refused(*_):
        tried.append(clock.ms)
        raise UnavailableError("the disk is full")

    with ReplicatedStore(tmp_path, node="a", checkpoint_ms=3000) as store:
        with monkeypatch.context() as patch:
            patch.setattr(FileSnapshots, "save", refused)
            for _ in range(6):
                clock.ms += 1000
                store.put("k", clock.ms)
            with pytest.raises(UnavailableError, match="the disk is full"):
                store.checkpoint()
        assert [ms - 1_000_000 for ms in tried] == [1000, 4000, 6000]
        assert "no checkpoint: the disk is full" in caplog.text
        clock.ms += 1000
        store.put("k", 7)
        assert [each.time_ms - 1_000_000 for each in store.checkpoints()] == [7000]


def test_a_store_opens_beside_a_checkpoint_that_cannot_be_read_and_takes_another(tmp_path, clock):
    filled(tmp_path, clock, (4,))
    (file,) = (tmp_path / "checkpoints").glob("*.snap")
    file.write_bytes(file.read_bytes()[:60])
    with ReplicatedStore(tmp_path, node="a", checkpoint_ms=3_600_000) as store:
        with pytest.raises(CorruptionError, match=r"position 5: .* delete it to use another one"):
            store.checkpoints()
        store.put("k", 1)
        file.unlink()
        assert [each.position for each in store.checkpoints()] == [13]
        assert contents(store.as_of(clock.ms)) == contents(store)


def test_a_restored_node_takes_a_new_identity(tmp_path, clock):
    held = filled(tmp_path / "a", clock, (4,))
    times = sorted(held)
    with pytest.raises(UsageError, match="belongs to node 'a'; give the copy a name of its own"):
        restore(tmp_path / "a", tmp_path / "b", node="a")
    done = restore(tmp_path / "a", tmp_path / "b", node="b", at_ms=times[6])
    assert (done.source, done.node, done.rebuilt.start, done.rebuilt.taken) == ("a", "b", 5, 2)
    with ReplicatedStore(tmp_path / "a", node="a") as first, ReplicatedStore(tmp_path / "b", node="b") as copy:
        assert contents(copy) == held[times[6]]
        copy.put("new", 1)
        assert copy.get("new").dot[0].startswith("b~")
        assert contents(first) == held[times[-1]]
        heal(first, copy)  # two nodes now: what either wrote is known to both
        assert contents(first) == contents(copy) == {**held[times[-1]], "new": 1}
    with pytest.raises(UsageError, match="needs a name of its own that never wrote here"):
        restore(tmp_path / "a", tmp_path / "c", node="b")
    with pytest.raises(UsageError, match="is not empty"):
        restore(tmp_path / "a", tmp_path / "b", node="c")
    with pytest.raises(UsageError, match="holds no log"):
        restore(tmp_path / "none", tmp_path / "d", node="c")
    with ReplicatedStore(tmp_path / "a", node="a"), pytest.raises(UsageError, match="in use by process"):
        restore(tmp_path / "a", tmp_path / "d", node="c")


def test_a_damaged_checkpoint_or_a_gap_is_never_passed_over(tmp_path, clock):
    held = filled(tmp_path / "a", clock, (4,))
    (file,) = (tmp_path / "a" / "checkpoints").glob("*.snap")
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with ReplicatedStore(tmp_path / "a", node="a") as store, pytest.raises(CorruptionError, match="checksum"):
        store.as_of(max(held))
    with pytest.raises(CorruptionError, match="cannot be read"):
        unpack(b"\x05\x00\xff\xff")

    class Target:
        digest = "d"

        def restore(self, state):
            pass

        def replay(self, record):
            pass

    point = Checkpoint(2, 0, 0, "a", 1, 0, "d")
    assert rebuild(Target(), (point, b""), [(2, b""), (3, b""), (4, b"")], digest="d").taken == 2
    with pytest.raises(CorruptionError, match="record 4 is missing, 5 follows 3"):
        rebuild(Target(), (point, b""), [(3, b""), (5, b"")])
    with pytest.raises(CorruptionError, match="has digest d, not e; use another"):
        rebuild(Target(), (Checkpoint(2, 0, 0, "a", 1, 0, "e"), b""), [])
    with pytest.raises(CorruptionError, match="after record 3 the state has digest d, not e"):
        rebuild(Target(), None, [(1, b""), (2, b""), (3, b"")], digest="e")
    with pytest.raises(UsageError, match="give Unix milliseconds"):
        stamp_limit(-1)


def test_a_record_that_lacks_its_cause_is_damage_unless_the_cause_is_newer(tmp_path, clock):
    with ReplicatedStore(tmp_path / "a", node="a") as store:
        for number in range(4):
            clock.ms += 1000
            store.put("k", number)
    with FileLog(tmp_path / "a" / "log") as log:
        records = [record for _, record in log.replay()]
    gap = Cut(list(enumerate([records[0], *records[2:]], 1)))  # one is gone, and the numbers hide it
    nothing = Checkpoints(tmp_path / "none")
    for at_ms in (clock.ms, None):
        with pytest.raises(CorruptionError, match="without what it depends on"):
            as_of(gap, nothing, None, "b", at_ms)
    _, done = as_of(Cut(list(enumerate(records, 1))), nothing, None, "b", clock.ms - 3000)
    assert (done.taken, done.passed_over) == (1, 3)
    with pytest.raises(CorruptionError, match="a newer release wrote it"):
        as_of(Cut([(1, b"\xf0")]), nothing, None, "b", clock.ms)


def test_a_flipped_byte_in_the_log_stops_a_restore_and_nothing_is_made(tmp_path, clock):
    filled(tmp_path / "a", clock)
    (segment,) = (tmp_path / "a" / "log").glob("*.log")
    data = bytearray(segment.read_bytes())
    data[data.index(b"xxxx")] ^= 1
    segment.write_bytes(data)
    with pytest.raises(CorruptionError, match="damaged"):
        restore(tmp_path / "a", tmp_path / "b", node="b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_restore_says_what_it_found_or_makes_nothing(tmp_path, clock, monkeypatch):
    filled(tmp_path / "a", clock, (4,))
    with ReplicatedStore(tmp_path / "a", node="a") as store:
        digest = store.digest
    registry = Registry()
    metrics = ConflictMetrics(registry, Hooks(lambda: 0))
    with pytest.raises(CorruptionError, match=f"has digest {digest}, not 00"):
        restore(tmp_path / "a", tmp_path / "b", node="b", digest="00", metrics=metrics)
    monkeypatch.setattr(FileSnapshots, "save", lambda *_: (_ for _ in ()).throw(UnavailableError("the disk is full")))
    with pytest.raises(UnavailableError, match="the disk is full"):
        restore(tmp_path / "a", tmp_path / "b", node="b", metrics=metrics)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    monkeypatch.undo()
    done = restore(tmp_path / "a", tmp_path / "b", node="b", digest=digest, metrics=metrics)
    assert done.rebuilt.digest == digest
    text = registry.render().decode()
    assert 'dwcp_recovery_attempts_total{type="restore",result="failed"} 2' in text
    assert 'dwcp_recovery_attempts_total{type="restore",result="ok"} 1' in text
    assert 'dwcp_recovery_latency_ms_count{type="restore"} 3' in text


def test_a_stopped_node_is_checkpointed_and_starts_again_as_it_was(tmp_path, clock):
    held = filled(tmp_path / "a", clock, (2,))
    made = take_checkpoint(tmp_path / "a", clock.ms, kept=2)
    assert (made.node, made.position, made.time_ms) == ("a", 12, clock.ms)
    assert [each.position for each in list_checkpoints(tmp_path / "a")] == [3, 12]
    with ReplicatedStore(tmp_path / "a", node="a") as store:
        assert store.digest == made.digest
        clock.ms += 1000
        store.put("later", 1)
        assert contents(store.as_of(clock.ms - 1000)) == held[max(held)]
        with pytest.raises(UsageError, match="in use by process"):
            take_checkpoint(tmp_path / "a", clock.ms)
    with pytest.raises(UsageError, match="holds no log"):
        list_checkpoints(tmp_path / "b")


def test_the_audit_trail_goes_on_over_checkpoints_and_stays_with_the_source(tmp_path, clock):
    with (
        ReplicatedStore(tmp_path / "a", node="a") as store,
        ReplicatedStore(node="far") as far,
    ):
        store._directory.log._segment_bytes = 4096
        for number in range(12):
            clock.ms += 1000
            store.put("vm/1", {"id": "v", "cpu": number + 1, "labels": {"x": "y" * 300}}, kind="vm")
            far.put("vm/1", {"cpu": 100 + number}, kind="vm", merge=True)
            heal(store, far)
            if number % 4 == 3:
                store.checkpoint()
                store._directory.save_snapshot(store._directory.log.last, store.replica.snapshot())
                store._directory.trim(store._directory.log.last, 0)
        head, count = str(store.audit.mark), store.audit.mark.count
        assert count > 12
    done = restore(tmp_path / "a", tmp_path / "b", node="b")
    with ReplicatedStore(tmp_path / "b", node="b") as copy, ReplicatedStore(node="away") as away:
        assert copy.digest == done.rebuilt.digest
        assert copy.audit.mark.count == 0
        heal(copy, away)
        copy.put("vm/1", {"cpu": 7}, merge=True)
        away.put("vm/1", {"cpu": 8}, merge=True)
        heal(copy, away)
        assert {"detect", "resolve"} <= {event.type for event in copy.audit.events()}
    assert verify_audit(tmp_path / "b")["ok"]
    with ReplicatedStore(tmp_path / "a", node="a"):
        pass
    verdict = verify_audit(tmp_path / "a", head)
    assert (verdict["ok"], verdict["events"]) == (True, count)


def test_a_store_in_memory_has_no_checkpoints():
    for call in (lambda s: s.checkpoint(), lambda s: s.checkpoints(), lambda s: s.as_of(0)):
        with ReplicatedStore() as store, pytest.raises(UsageError, match="lives in memory"):
            call(store)


# -- several writers


actions = st.lists(
    st.tuples(st.sampled_from(["a", "b", "sync", "heal", "point"]), st.sampled_from("xyz"), st.integers(0, 9)),
    max_size=14,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(actions, st.data())
def test_a_cut_holds_every_cause_of_what_it_holds(tmp_path_factory, clock, steps, data):
    """Writes of two nodes, exchanged as batches and as joined states: no key as of T has a write after T, and what a
    write in it had seen is in it."""
    times = [clock.ms]
    with (
        TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as folder,  # a log is laid out ahead: none may stay
        ReplicatedStore(f"{folder}/a", node="a") as a,
        ReplicatedStore(f"{folder}/b", node="b") as b,
    ):
        for what, key, value in steps:
            clock.ms += 1000
            times.append(clock.ms)
            if what == "sync":
                a.sync_with(b)
            elif what == "heal":
                heal(a, b)
            elif what == "point":
                a.checkpoint()
            else:
                (a if what == "a" else b).put(key, value)
        at_ms = data.draw(st.sampled_from(times))
        past, limit = a.as_of(at_ms), stamp_limit(at_ms)
        known = past.replica.space.clock
        for rows in past.replica.space.entries.values():
            for _, items in rows.live():
                for row in items:
                    assert row.write.stamp <= limit
                    assert all(known.get(actor, 0) >= count for actor, count in row.write.context.items())
        assert contents(a.as_of(max(times))) == contents(a)


# -- partitions


def pair(tmp_path):
    return ReplicatedStore(tmp_path / "l", node="left"), ReplicatedStore(tmp_path / "r", node="right")


def test_a_heal_sends_only_what_differs_and_a_second_one_nothing(tmp_path):
    left, right = pair(tmp_path)
    with left, right:
        left.put_many((f"k{i}", {"n": i, "text": "x" * 100}) for i in range(2_000))
        first = heal(left, right)
        assert first.exchanged
        whole = len(left.replica.snapshot())
        left.put("l", 1)
        right.put("r", 2)
        left.put("both", "left")
        right.put("both", "right")
        second = heal(left, right)
        assert contents(left) == contents(right)
        assert second.sent_bytes < whole / 50
        assert left.get("both").conflict == right.get("both").conflict is not None
        third = heal(left, right)
        assert (third.exchanged, third.messages, third.sent_bytes) == (False, 0, 0)
        assert third.digest == second.digest == left.digest
    with ReplicatedStore(tmp_path / "l", node="left") as left, ReplicatedStore(tmp_path / "r", node="right") as right:
        assert left.digest == right.digest == second.digest  # what was joined was durable


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from("pqr"), st.integers(0, 5) | st.none()), max_size=12),
)
def test_healing_is_commutative_whatever_was_written(steps):
    digests = []
    for order in (0, 1):
        stores = ReplicatedStore(node="l"), ReplicatedStore(node="r")
        for side, key, value in steps:
            store = stores[side]
            if value is not None:
                store.put(key, value)
            elif key in store:
                store.delete(key)
        done = heal(*stores[:: 1 if order == 0 else -1])
        digests.append(stores[0].digest)
        assert stores[0].digest == stores[1].digest == done.digest
        assert contents(stores[0]) == contents(stores[1])
        assert not heal(*stores).exchanged


def test_two_of_one_name_are_not_healed_and_divergence_is_told(tmp_path):
    with pytest.raises(UsageError, match="takes a name of its own"):
        heal(ReplicatedStore(node="x"), ReplicatedStore(node="x"))
    left, right = ReplicatedStore(node="x"), ReplicatedStore(node="y")
    for store, value in ((left, 1), (right, 2)):  # a clone that kept its identity gave one dot to two writes
        clone = ReplicatedStore(node="z")
        clone.put("k", value)
        heal(clone, store)
    with pytest.raises(CorruptionError, match="know the same and hold other states"):
        heal(left, right)


def test_key_as_of_each_time_is_what_it_held_beside_the_node_that_writes_on(tmp_path, clock):
    with ReplicatedStore(tmp_path / "a", node="a") as store:
        files = store._on_disk()

        def held(at_ms):
            return held_at(files.log, files.checkpoints, files.snapshots, "k", at_ms, StoreConfig()).value

        times = []
        for number in range(6):
            clock.ms += 1000
            store.put("k", number)
            times.append(clock.ms)
            if number == 3:
                store.checkpoint()
        clock.ms += 1000
        store.delete("k")
        assert [held(at) for at in times] == list(range(6))
        for at in (times[0] - 1, clock.ms):
            with pytest.raises(KeyNotFoundError):
                held(at)


def test_the_past_is_settled_by_the_rules_of_the_store(tmp_path, clock):
    options = {"strategies": {"x/": "multi_value"}}
    other = ReplicatedStore(node="b", **options)
    other.put("x/1", "theirs")
    with ReplicatedStore(tmp_path / "a", node="a", **options) as store:
        store.put("x/1", "mine")
        heal(store, other)
        now = store.get("x/1")
        clock.ms += 1000
        then, key = clock.ms, store.as_of(clock.ms).get("x/1")
        assert (key.value, key.strategy) == (now.value, now.strategy) == (now.value, "multi_value")
        files = store._on_disk()
        past = held_at(files.log, files.checkpoints, files.snapshots, "x/1", then, store.replica.config)
        assert (past.value, past.strategy) == (now.value, "multi_value")
