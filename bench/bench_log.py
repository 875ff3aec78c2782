"""Durable appends beside their bound (bare pwrite + fdatasync of the same bytes) and beside SQLite.

Each call makes `records` records of 100 bytes durable; divide by it for the cost of one.
"""

import os
import sqlite3

import pytest

from nova.storage.log import RECORD_OVERHEAD_BYTES, FileLog, crc32c, crc32c_software

RECORD = bytes(range(100))
FILE_BYTES = 64 << 20


def nova_log(directory, records):
    log = FileLog(directory / "log")

    def commit():
        log.append(records)
        return log.commit()

    return commit, log.close


def bare_disk(directory, records):
    fd = os.open(directory / "bare", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, FILE_BYTES)
    os.fsync(fd)
    data = b"".join(records) + bytes(RECORD_OVERHEAD_BYTES * len(records))
    offset = 0

    def commit():
        nonlocal offset
        if offset + len(data) > FILE_BYTES:
            os.ftruncate(fd, 0)  # written blocks would be cheaper to sync than fresh ones: stay like a log
            os.posix_fallocate(fd, 0, FILE_BYTES)
            offset = 0
        os.pwrite(fd, data, offset)
        os.fdatasync(fd)
        offset += len(data)
        return offset

    return commit, lambda: os.close(fd)


def sqlite(directory, records):
    db = sqlite3.connect(directory / "db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE log (position INTEGER PRIMARY KEY, record BLOB)")
    rows = [(record,) for record in records]

    def commit():
        db.execute("BEGIN")
        db.executemany("INSERT INTO log (record) VALUES (?)", rows)
        db.execute("COMMIT")
        return len(rows)

    return commit, db.close


@pytest.mark.parametrize("records", [1, 10, 100, 1000])
@pytest.mark.parametrize("peer", [nova_log, bare_disk, sqlite])
@pytest.mark.benchmark(group="log.commit", max_time=0.5, min_rounds=20)
def test_make_records_durable(benchmark, tmp_path, peer, records):
    benchmark.group = f"log.commit of {records}"
    commit, close = peer(tmp_path, [RECORD] * records)
    try:
        assert benchmark(commit) > 0
    finally:
        close()


@pytest.mark.benchmark(group="log.append of 1000, without the disk", max_time=0.5)
def test_append_alone(benchmark, tmp_path):
    log = FileLog(tmp_path)
    records = [RECORD] * 1000
    try:
        benchmark.pedantic(lambda: log.append(records), setup=lambda: log.commit() and None, rounds=200)
    finally:
        log.close()


@pytest.mark.benchmark(group="log.replay of 100,000", min_rounds=3, max_time=0.5)
def test_replay(benchmark, tmp_path):
    with FileLog(tmp_path) as log:
        log.append([RECORD] * 100_000)
        log.commit()
        assert benchmark(lambda: sum(1 for _ in log.replay())) == 100_000


@pytest.mark.parametrize("function", [crc32c, crc32c_software])
@pytest.mark.benchmark(group="log.crc32c of 64 KiB", max_time=0.5)
def test_checksum(benchmark, function):
    data = bytes(range(256)) * 256
    assert benchmark(function, data) == crc32c_software(data)
