import sqlite3

import pytest

from nova.conflict.audit import AuditQuery
from nova.errors import CorruptionError, LimitError, UnavailableError, UsageError
from nova.storage.catalog import Catalog, EventRow


def test_incarnations_rise_over_every_start(tmp_path):
    seen = []
    for _ in range(3):
        with Catalog(tmp_path / "catalog.db") as catalog:
            seen += [catalog.next_incarnation(), catalog.next_incarnation()]
    assert seen == [1, 2, 3, 4, 5, 6]


def test_a_directory_belongs_to_the_node_that_claimed_it(tmp_path):
    with Catalog(tmp_path / "catalog.db") as catalog:
        assert catalog.identity() is None
        catalog.claim("a", "prod")
        catalog.claim("a", "prod")
    with Catalog(tmp_path / "catalog.db") as catalog:
        assert catalog.identity() == ("a", "prod")
        with pytest.raises(UsageError, match="belongs to node 'a' of cluster 'prod'"):
            catalog.claim("b", "prod")
        with pytest.raises(UsageError):
            catalog.claim("a", "test")


def test_settings_are_kept_and_the_catalogues_own_are_protected(tmp_path):
    with Catalog(tmp_path / "catalog.db") as catalog:
        catalog.set("region", "eu")
        catalog.set("region", "us")
        with pytest.raises(UsageError):
            catalog.set("incarnation", "0")
    with Catalog(tmp_path / "catalog.db") as catalog:
        assert catalog.get("region") == "us"
        assert catalog.get("absent", "default") == "default"


def test_events_are_found_by_what_they_are_about(tmp_path):
    rows = [EventRow(n, n * 10, "ab"[n % 2], f"c{n % 3}", f"vm/{n % 4}", b"body %d" % n) for n in range(1, 101)]
    with Catalog(tmp_path / "catalog.db") as catalog:
        assert catalog.last_indexed() == 0
        catalog.index_events(rows[:60])
        catalog.index_events(rows[40:])
        assert catalog.last_indexed() == 100
        assert catalog.events(AuditQuery(limit=1000)) == rows
        assert catalog.events(AuditQuery(after=90, limit=3)) == rows[90:93]
        assert catalog.events(AuditQuery(resource="vm/2", type="a", conflict="c1")) == [
            row for row in rows if (row.resource_id, row.type, row.conflict_id) == ("vm/2", "a", "c1")
        ]
        with pytest.raises(LimitError):
            catalog.events(AuditQuery(limit=0))


def test_a_newer_version_and_another_programs_database_are_refused(tmp_path):
    with Catalog(tmp_path / "catalog.db"):
        pass
    db = sqlite3.connect(tmp_path / "catalog.db")
    db.execute("PRAGMA user_version=3")
    db.close()
    with pytest.raises(UsageError, match="version 3"):
        Catalog(tmp_path / "catalog.db")
    db = sqlite3.connect(tmp_path / "other.db")
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(UsageError, match="another program"):
        Catalog(tmp_path / "other.db")


def test_a_catalogue_of_version_1_is_taken_over(tmp_path):
    with Catalog(tmp_path / "catalog.db") as catalog:
        catalog.index_events([(1, 10, "detect", "c", "r", b"x"), (2, 20, "fail", "c", "r", b"y")])
    db = sqlite3.connect(tmp_path / "catalog.db")
    db.executescript("DROP INDEX events_by_time; PRAGMA user_version=1;")
    db.close()
    with Catalog(tmp_path / "catalog.db") as catalog:
        assert [row.seq for row in catalog.events(AuditQuery(since_ms=15))] == [2]
        assert catalog.event_counts() == [("detect", 1, 10, 10), ("fail", 1, 20, 20)]
        catalog.forget_events(1)
        assert catalog.events(AuditQuery(until_ms=15)) == []
    db = sqlite3.connect(tmp_path / "catalog.db")
    assert db.execute("PRAGMA user_version").fetchone()[0] == 2
    assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'events_by_time'").fetchone()[0] == 1
    db.close()


def test_a_file_that_is_no_database_is_corruption(tmp_path):
    (tmp_path / "catalog.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(CorruptionError):
        Catalog(tmp_path / "catalog.db")


def test_a_closed_catalogue_refuses_work_and_closes_twice(tmp_path):
    catalog = Catalog(tmp_path / "catalog.db")
    catalog.close()
    catalog.close()
    with pytest.raises(UsageError, match="closed"):
        catalog.get("x")


def test_a_catalogue_that_another_holds_is_unavailable(tmp_path):
    with Catalog(tmp_path / "catalog.db") as catalog:
        catalog._db.execute("PRAGMA busy_timeout=0")
        other = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked"):
            catalog.set("x", "y")
        other.execute("ROLLBACK")
        other.close()
        catalog.set("x", "y")
