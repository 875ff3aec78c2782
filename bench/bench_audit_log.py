"""The audit trail made durable: chained and on disk, beside an INSERT of such a row."""

from __future__ import annotations

import sqlite3

import pytest
from bench_audit import COUNT, EVENTS, KEY, blake2b, json_records

from nova.conflict.audit import AuditChain, AuditLog
from nova.storage.catalog import Catalog
from nova.storage.log import FileLog


@pytest.mark.benchmark(group="audit.durable 10,000 at once", min_rounds=5)
@pytest.mark.parametrize("peer", ["nova, log", "nova, log and index", "SQLite, WAL, synchronous=FULL"])
def test_durable(benchmark, tmp_path, peer):
    """Chained and on disk. The index of nova is SQLite as well, and is filled behind the commit."""
    benchmark.extra_info["operations"] = COUNT
    if peer == "nova, log":
        with FileLog(tmp_path / "events") as records:
            chain = AuditChain(key=KEY)

            def append():
                records.append(chain.append_many(EVENTS))
                return records.commit()

            assert benchmark(append) == chain.seq
    elif peer == "nova, log and index":
        with FileLog(tmp_path / "events") as records, Catalog(tmp_path / "catalog.sqlite") as index:
            log = AuditLog(records, index, key=KEY)

            def append():
                log.append_many(EVENTS)
                log.flush()

            benchmark(append)
            assert index.last_indexed() == log.mark.count
    else:
        db = sqlite3.connect(tmp_path / "db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, time, type, conflict, resource, hash, content)")
        for column in ("resource", "conflict", "type", "time"):
            db.execute(f"CREATE INDEX by_{column} ON events ({column}, seq)")

        def append():
            rows = [
                (at, type_, conflict, resource, *made)
                for (type_, at, conflict, resource, _), made in zip(EVENTS, json_records(blake2b, EVENTS), strict=True)
            ]
            db.execute("BEGIN")
            db.executemany("INSERT INTO events VALUES (NULL, ?, ?, ?, ?, ?, ?)", rows)
            db.execute("COMMIT")

        benchmark(append)
        db.close()
