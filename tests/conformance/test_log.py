"""One suite for the Log and Snapshots seams: what was acknowledged survives a crash at every write."""

import random
import shutil
import threading
from pathlib import Path

import pytest

from nova.errors import CorruptionError, UnavailableError, UsageError
from nova.sim.disk import SimDisk
from nova.storage.log import HEADER_BYTES, RECORD_OVERHEAD_BYTES, FileLog
from nova.storage.snapshot import FileSnapshots


class RealPlace:
    """Logs on real files; a crash copies the directory as it stands and opens the copy."""

    def __init__(self, path):
        self.path = path
        self.life = 0
        self.opened = []

    def open(self):
        log = FileLog(self.path / f"life{self.life}", segment_bytes=4096)
        self.opened.append(log)
        return log

    def sync(self, log):
        answers, ready = [], threading.Event()
        log.sync(lambda position, error: (answers.append((position, error)), ready.set()))
        assert ready.wait(10)
        return answers[0]

    def crash(self):
        before = self.path / f"life{self.life}"
        self.life += 1
        shutil.copytree(before, self.path / f"life{self.life}")

    def snapshots(self):
        return FileSnapshots(self.path / "snapshots")

    def damage_newest_snapshot(self):
        newest = max((self.path / "snapshots").glob("*.snap"))
        data = bytearray(newest.read_bytes())
        data[-1] ^= 1
        newest.write_bytes(data)

    def close(self):
        for log in self.opened:
            log.close()


class SimPlace:
    """Logs on a simulated disk; virtual time runs when a sync is waited for."""

    def __init__(self, seed=1):
        self.agenda = []
        self.disk = SimDisk(random.Random(seed), lambda delay_ns, action: self.agenda.append(action))

    def open(self):
        return self.disk.log()

    def sync(self, log):
        answers = []
        log.sync(lambda position, error: answers.append((position, error)))
        while self.agenda:
            self.agenda.pop(0)()
        return answers[0]

    def crash(self):
        self.disk.crash()

    def snapshots(self):
        return self.disk.snapshots()

    def damage_newest_snapshot(self):
        self.disk.snapshots().damage_newest()

    def close(self):
        pass


@pytest.fixture(params=["files", "sim"])
def place(request, tmp_path):
    place = RealPlace(tmp_path) if request.param == "files" else SimPlace()
    yield place
    place.close()


def test_positions_count_from_one_and_never_go_back(place):
    log = place.open()
    assert (log.first, log.last, log.durable) == (1, 0, 0)
    assert log.append([b"a", b"b"]) == 2
    assert log.append([]) == 2
    assert log.append([b"c"]) == 3
    assert (log.first, log.last, log.durable) == (1, 3, 0)
    assert place.sync(log) == (3, None)
    assert log.durable == 3
    log.close()
    again = place.open()
    assert (again.first, again.last, again.durable) == (1, 3, 3)
    assert again.append([b"d"]) == 4


def test_replay_gives_back_what_was_appended_from_any_start(place):
    log = place.open()
    records = [bytes([n]) * (n * 7 % 300) for n in range(200)]
    for at in range(0, 200, 9):
        log.append(records[at : at + 9])
        place.sync(log)
    expected = list(enumerate(records, 1))
    assert list(log.replay()) == expected
    assert list(log.replay(77)) == expected[76:]
    assert list(log.replay(201)) == []
    log.close()
    assert list(place.open().replay()) == expected


def test_replay_shows_only_what_is_durable(place):
    log = place.open()
    log.append([b"kept"])
    place.sync(log)
    log.append([b"in memory"])
    assert list(log.replay()) == [(1, b"kept")]


def test_every_acknowledged_record_survives_a_crash_after_every_sync(place):
    acknowledged = []
    for life in range(12):
        log = place.open()
        assert [record for _, record in log.replay()][: len(acknowledged)] == acknowledged
        kept = [record for _, record in log.replay()]
        records = [b"%d-%d" % (life, n) * 20 for n in range(life * 3 + 1)]
        log.append(records)
        position, error = place.sync(log)
        assert error is None
        assert position == log.last == len(kept) + len(records)
        acknowledged = kept + records
        log.append([b"never acknowledged" * 50] * 4)
        place.crash()


def test_truncation_forgets_old_records_only(place):
    log = place.open()
    for n in range(60):
        log.append([b"%03d" % n * 100])
        place.sync(log)
    log.truncate_before(41)
    assert 1 < log.first <= 41
    assert [position for position, _ in log.replay()] == list(range(log.first, 61))
    place.sync(log)
    first = log.first
    log.close()
    again = place.open()
    assert (again.first, again.last) == (first, 60)
    again.truncate_before(10**9)
    assert again.append([b"next"]) == 61


def test_a_closed_log_refuses_work_and_closes_twice(place):
    log = place.open()
    log.append([b"synced by close"])
    log.close()
    log.close()
    with pytest.raises(UsageError):
        log.append([b"x"])
    with pytest.raises(UsageError):
        log.sync(lambda position, error: None)
    assert list(place.open().replay()) == [(1, b"synced by close")]


def test_a_log_has_one_opener(place):
    log = place.open()
    with pytest.raises(UsageError, match="in use"):
        place.open()
    log.close()


def test_a_snapshot_store_gives_the_newest_and_falls_back_to_the_one_before(place):
    snapshots = place.snapshots()
    assert snapshots.load() is None
    for position in (3, 9, 27):
        snapshots.save(position, b"state %d" % position)
    assert place.snapshots().load() == (27, b"state 27")
    place.damage_newest_snapshot()
    assert place.snapshots().load() == (9, b"state 9")
    snapshots.save(27, b"again")
    place.damage_newest_snapshot()
    snapshots.save(30, b"thirty")
    place.damage_newest_snapshot()
    with pytest.raises(CorruptionError):
        place.snapshots().load()


@pytest.mark.parametrize("seed", range(150))
def test_the_simulated_disk_tears_only_what_was_not_acknowledged(seed):
    choose = random.Random(seed)
    place = SimPlace(seed)
    acknowledged = []
    for _ in range(6):
        log = place.open()
        kept = [record for _, record in log.replay()]
        assert kept[: len(acknowledged)] == acknowledged
        sent = kept
        for _ in range(choose.randrange(1, 5)):
            sent = [*sent, *(choose.randbytes(choose.randrange(900)) for _ in range(choose.randrange(1, 6)))]
            log.append(sent[log.last :])
            if choose.random() < 0.6:
                assert place.sync(log)[1] is None
                acknowledged = list(sent)
        assert all(a == b for a, b in zip(sent, acknowledged, strict=False))
        if choose.random() < 0.5:
            log.sync(lambda position, error: pytest.fail("a sync was answered after the crash"))
        acknowledged = [record for _, record in log.replay()]
        place.crash()
        place.agenda.clear() if choose.random() < 0.5 else [action() for action in place.agenda]
        place.agenda.clear()


def test_one_seed_makes_one_history_on_the_simulated_disk():
    def history(seed):
        place = SimPlace(seed)
        out = []
        for _ in range(20):
            log = place.open()
            log.append([b"x" * 700] * 5)
            place.sync(log)
            log.append([b"y" * 700] * 5)
            place.crash()
            out.append(len(place.disk._files["log"].image))
        return out

    assert history(5) == history(5) != history(6)


def test_a_failed_sync_on_the_simulated_disk_stops_the_log():
    place = SimPlace()
    log = place.open()
    log.append([b"a"])
    place.disk.fail(OSError(5, "Input/output error"))
    position, error = place.sync(log)
    assert position == 0
    assert isinstance(error, OSError)
    with pytest.raises(UnavailableError):
        log.append([b"b"])


# What only real bytes can show.


def make_segment(path: Path, commits: list[list[bytes]], *, crashed: bool = True) -> bytes:
    """The bytes of a one-segment log of these group commits, as a crash (no closing mark) or a close leaves them."""
    log = FileLog(path / "made", segment_bytes=8192)
    for records in commits:
        log.append(records)
        log.commit()
    if crashed:
        data = (path / "made" / f"{1:020d}.log").read_bytes()
        log.close()
    else:
        log.close()
        data = (path / "made" / f"{1:020d}.log").read_bytes()
    return data


def reopen(path: Path, data: bytes) -> tuple[list[bytes], int]:
    directory = path / "reopened"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / f"{1:020d}.log").write_bytes(data)
    log = FileLog(directory, segment_bytes=4096)
    try:
        return [record for _, record in log.replay()], log.recovered.dropped_bytes
    finally:
        log.close()


COMMITS = [[b"first", b"second" * 9], [b"third" * 4], [b"last one", b"of all " * 5]]
ALL = [record for records in COMMITS for record in records]


def end_of(count: int) -> int:
    return HEADER_BYTES + sum(RECORD_OVERHEAD_BYTES + len(record) for record in ALL[:count])


def test_a_file_cut_at_any_byte_keeps_exactly_the_whole_records(tmp_path):
    data = make_segment(tmp_path, COMMITS)
    for cut in range(HEADER_BYTES, end_of(5) + 1):
        whole = sum(end_of(n) <= cut for n in range(1, 6))
        torn = data[end_of(whole) : cut].rstrip(b"\0")
        assert reopen(tmp_path, data[:cut]) == (ALL[:whole], len(torn))
        assert reopen(tmp_path, data[:cut] + bytes(700)) == (ALL[:whole], len(torn))


def test_a_flipped_bit_in_the_last_record_cuts_it_and_anywhere_else_is_corruption_with_file_and_offset(tmp_path):
    data = make_segment(tmp_path, COMMITS)
    for at in range(HEADER_BYTES, end_of(5)):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        whole = sum(end_of(n) <= at for n in range(1, 6))
        if whole == 4:
            assert reopen(tmp_path, bytes(broken))[0] == ALL[:4]
        else:
            with pytest.raises(CorruptionError, match=rf"{1:020d}\.log: offset {end_of(whole)}: record {whole + 1} "):
                reopen(tmp_path, bytes(broken))


def test_after_a_clean_close_even_the_last_record_is_proved_durable(tmp_path):
    data = make_segment(tmp_path, COMMITS, crashed=False)
    assert reopen(tmp_path, data) == (ALL, 0)
    for at in range(end_of(4), end_of(5)):
        broken = bytearray(data)
        broken[at] ^= 0x10
        with pytest.raises(CorruptionError):
            reopen(tmp_path, bytes(broken))


def test_a_sector_that_never_arrived_tears_the_last_commit_but_damages_an_earlier_one(tmp_path):
    data = bytearray(make_segment(tmp_path, [[b"a" * 300], [b"b" * 400, b"c" * 900, b"d" * 50]]))
    data[512:1024] = bytes(512)
    assert reopen(tmp_path, bytes(data))[0] == [b"a" * 300]
    shutil.rmtree(tmp_path / "made")
    data = bytearray(make_segment(tmp_path, [[b"a" * 300], [b"b" * 400, b"c" * 900, b"d" * 50], [b"e"]]))
    data[512:1024] = bytes(512)
    with pytest.raises(CorruptionError):
        reopen(tmp_path, bytes(data))


def test_records_of_another_segment_or_place_never_pass(tmp_path):
    data = make_segment(tmp_path, COMMITS)
    shutil.rmtree(tmp_path / "made")
    other = make_segment(tmp_path, COMMITS)
    assert data[HEADER_BYTES : end_of(5)] != other[HEADER_BYTES : end_of(5)]
    mixed = data[: end_of(3)] + other[end_of(3) :]
    assert reopen(tmp_path, mixed)[0] == ALL[:3]
    repeated = data[: end_of(5)] + data[end_of(3) : end_of(5)]
    assert reopen(tmp_path, repeated)[0] == ALL


def test_the_log_grows_again_where_a_tail_was_cut(tmp_path):
    data = make_segment(tmp_path, COMMITS)
    directory = tmp_path / "cut"
    directory.mkdir()
    (directory / f"{1:020d}.log").write_bytes(data[: end_of(5) - 3] + b"\0\0rubbish")
    with FileLog(directory, segment_bytes=8192) as log:
        assert log.recovered.dropped_bytes > 0
        assert log.recovered.offset == end_of(4)
        assert log.append([b"new"]) == 5
        log.commit()
    with FileLog(directory) as log:
        assert [record for _, record in log.replay()] == [*ALL[:4], b"new"]
        assert log.recovered.dropped_bytes == 0
