"""Durable appends beside their bound (bare pwrite + fdatasync of the same bytes) and beside SQLite.

Each call makes `records` records of 100 bytes durable (`operations` of the report).
"""

import contextlib
import sqlite3

import pytest

from nova.cli.benchmarks import bare_commits, log_commits
from nova.storage.log import FileLog, crc32c, crc32c_software

RECORD = bytes(range(100))


def sqlite_commits(records):
    @contextlib.contextmanager
    def maker(folder):
        db = sqlite3.connect(folder / "db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE log (position INTEGER PRIMARY KEY, record BLOB)")
        rows = [(record,) for record in records]

        def commit():
            db.execute("BEGIN")
            db.executemany("INSERT INTO log (record) VALUES (?)", rows)
            db.execute("COMMIT")
            return len(rows)

        yield commit
        db.close()

    return maker


PEERS = {"nova": log_commits, "bare pwrite + fdatasync": bare_commits, "SQLite, WAL, synchronous=FULL": sqlite_commits}


@pytest.mark.parametrize("records", [1, 10, 100, 1000])
@pytest.mark.parametrize("peer", list(PEERS))
def test_make_records_durable(benchmark, durable_in_turns, peer, records):
    benchmark.group = f"log.durable record of 100 bytes, {records:,} in a commit"
    durable_in_turns(benchmark, {name: make([RECORD] * records) for name, make in PEERS.items()}, peer, records)


@pytest.mark.benchmark(group="log.append, 1,000 records, without the disk", max_time=0.5)
def test_append_alone(benchmark, tmp_path):
    benchmark.extra_info["operations"] = 1000
    log = FileLog(tmp_path)
    records = [RECORD] * 1000
    try:
        benchmark.pedantic(lambda: log.append(records), setup=lambda: log.commit() and None, rounds=200)
    finally:
        log.close()


@pytest.mark.benchmark(group="log.replay of a record", min_rounds=3, max_time=0.5)
def test_replay(benchmark, tmp_path):
    benchmark.extra_info["operations"] = 100_000
    with FileLog(tmp_path) as log:
        log.append([RECORD] * 100_000)
        log.commit()
        assert benchmark(lambda: sum(1 for _ in log.replay())) == 100_000


@pytest.mark.parametrize("peer", ["nova", "table in C"])
@pytest.mark.benchmark(group="log.crc32c of 64 KiB", max_time=0.5)
def test_checksum(benchmark, peer):
    function = crc32c if peer == "nova" else crc32c_software
    data = bytes(range(256)) * 256
    assert benchmark(function, data) == crc32c_software(data)
