import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.errors import CorruptionError, LimitError, UnavailableError, UsageError
from nova.storage.log import (
    BACKLOG_BYTES_MAX,
    RECORD_BYTES_MAX,
    FileLog,
    crc32c,
    crc32c_software,
)


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_the_checksum_is_the_same_with_and_without_the_instruction(data, start):
    assert crc32c(data, start) == crc32c_software(data, start)


def test_the_checksum_is_crc32c_of_rfc_3720():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(b"") == 0
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283


@given(st.lists(st.lists(st.binary(max_size=3000), max_size=8), max_size=8))
def test_any_records_come_back(tmp_path_factory, batches):
    directory = tmp_path_factory.mktemp("log")
    records = [record for batch in batches for record in batch]
    with FileLog(directory, segment_bytes=4096) as log:
        for batch in batches:
            log.append(batch)
        assert log.commit() == len(records)
        assert [record for _, record in log.replay()] == records
    with FileLog(directory, segment_bytes=4096) as log:
        assert [record for _, record in log.replay()] == records


def test_a_record_larger_than_a_segment_has_one_to_itself(tmp_path):
    big = os.urandom(3 << 20)
    with FileLog(tmp_path, segment_bytes=4096) as log:
        log.append([b"small"])
        log.append([big])
        log.append([b"after"])
        log.commit()
        assert log.segments == 3
    with FileLog(tmp_path, segment_bytes=4096) as log:
        assert list(log.replay()) == [(1, b"small"), (2, big), (3, b"after")]


def test_records_that_cannot_be_stored_are_refused_and_change_nothing(tmp_path):
    with FileLog(tmp_path, segment_bytes=4096) as log:
        with pytest.raises(LimitError, match=str(RECORD_BYTES_MAX)):
            log.append([b"fine", bytes(RECORD_BYTES_MAX + 1)])
        with pytest.raises(UsageError, match="str"):
            log.append([b"fine", "text"])
        piece = bytes(RECORD_BYTES_MAX)
        with pytest.raises(LimitError, match=str(BACKLOG_BYTES_MAX)):
            log.append([piece] * 4)
        assert log.append([b"fine"]) == 1
        log.commit()
        assert list(log.replay()) == [(1, b"fine")]


def test_what_the_disk_has_not_taken_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("nova.storage.log.BACKLOG_BYTES_MAX", 1000)
    with FileLog(tmp_path) as log:
        log.append([bytes(900)])
        with pytest.raises(UnavailableError, match="wait for the disk"):
            log.append([bytes(900)])
        log.commit()
        assert log.append([bytes(900)]) == 2


def test_many_threads_commit_together_and_each_learns_of_its_own_record(tmp_path):
    with FileLog(tmp_path, segment_bytes=1 << 16) as log:

        def work():
            for _ in range(50):
                position = log.append([b"x" * 100])
                assert log.commit() >= position

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.durable == log.last == 400
        assert len(list(log.replay())) == 400


def test_a_callback_that_fails_does_not_stop_the_log(tmp_path, caplog):
    with FileLog(tmp_path) as log:
        log.append([b"a"])
        log.sync(lambda position, error: 1 / 0)
        log.append([b"b"])
        assert log.commit() == 2
    assert "callback" in caplog.text


def test_a_damaged_middle_segment_is_named(tmp_path):
    with FileLog(tmp_path, segment_bytes=4096) as log:
        for _ in range(40):
            log.append([b"m" * 400])
            log.commit()
        assert log.segments > 3
    middle = sorted(tmp_path.glob("*.log"))[1]
    data = bytearray(middle.read_bytes())
    data[1000] ^= 4
    middle.write_bytes(data)
    with pytest.raises(CorruptionError, match=middle.name + ": offset"):
        FileLog(tmp_path)
    middle.unlink()
    with pytest.raises(CorruptionError, match="begins at"):
        FileLog(tmp_path)


def test_a_segment_of_a_newer_version_is_refused_with_the_mend(tmp_path):
    FileLog(tmp_path).close()
    path = next(tmp_path.glob("*.log"))
    data = bytearray(path.read_bytes()[:64])
    data[8] = 2
    data[60:] = crc32c(data[:60]).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"version 2.*newer nova"):
        FileLog(tmp_path)
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match="offset 0"):
        FileLog(tmp_path)


def test_a_refused_opening_lets_the_next_one_in(tmp_path):
    FileLog(tmp_path).close()
    path = next(tmp_path.glob("*.log"))
    whole = path.read_bytes()
    path.write_bytes(b"rubbish")
    with pytest.raises(CorruptionError):
        FileLog(tmp_path)
    path.write_bytes(whole)
    FileLog(tmp_path).close()


def test_an_unfinished_segment_file_is_swept_away(tmp_path):
    (tmp_path / f"{1:020d}.tmp").write_bytes(b"half")
    with FileLog(tmp_path) as log:
        log.append([b"x"])
        log.commit()
    assert not list(tmp_path.glob("*.tmp"))


FULL_DISK = """
import resource, signal, sys
from nova.errors import UnavailableError
from nova.storage.log import FileLog

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = FileLog(sys.argv[1], segment_bytes=65536)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
durable = 0
try:
    while True:
        log.append([b"r" * 1000] * 10)
        durable = log.commit()
        if durable == 100:
            log.append([b"r" * 1000] * 300)
except UnavailableError as error:
    assert "stopped" in str(error), error
for refuse in (lambda: log.append([b"x"]), lambda: log.sync(print), log.commit):
    try:
        refuse()
    except UnavailableError:
        continue
    raise SystemExit("worked after an error")
log.close()
print(durable)
"""


def test_a_disk_that_refuses_stops_the_log_and_takes_nothing_acknowledged(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 100
    with FileLog(tmp_path, segment_bytes=65536) as log:
        assert log.last >= int(done.stdout)
        assert all(record == b"r" * 1000 for _, record in log.replay())


def test_an_error_of_the_disk_is_told_to_whoever_waits(tmp_path):
    log = FileLog(tmp_path, segment_bytes=4096)
    log.append([b"kept"])
    log.commit()
    os.close(log._writing.fd)
    log._writing.fd = os.open(os.devnull, os.O_RDONLY)
    log.append([b"lost"])
    answers = []
    ready = threading.Event()
    log.sync(lambda position, error: (answers.append((position, error)), ready.set()))
    assert ready.wait(10)
    position, error = answers[0]
    assert position == 1
    assert isinstance(error, UnavailableError)
    with pytest.raises(UnavailableError):
        log.append([b"x"])
    log.close()
    with FileLog(tmp_path) as again:
        assert list(again.replay()) == [(1, b"kept")]


def test_a_log_leaves_no_file_open(tmp_path):
    FileLog(tmp_path).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with FileLog(tmp_path, segment_bytes=4096) as log:
            log.append([b"x" * 3000] * 5)
            log.append([b"x" * 3000] * 5)
            list(log.replay())
    assert len(os.listdir("/proc/self/fd")) == before
