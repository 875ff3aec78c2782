"""The catalogue: who this data directory belongs to, small settings, and an index over the audit trail, in SQLite.

The log holds the truth; the index can be thrown away and filled again from it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nova.errors import CorruptionError, LimitError, UnavailableError, UsageError

if TYPE_CHECKING:
    from nova.conflict.audit import AuditQuery

VERSION: Final = 2
APPLICATION_ID: Final = 0x4E4F5641  # "NOVA"
EVENTS_MAX: Final = 10_000
TRAILS_MAX: Final = 64

_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, type TEXT NOT NULL,
    conflict_id TEXT NOT NULL, resource_id TEXT NOT NULL, body BLOB NOT NULL
);
CREATE INDEX events_by_resource ON events (resource_id, seq);
CREATE INDEX events_by_conflict ON events (conflict_id, seq);
CREATE INDEX events_by_type ON events (type, seq);
CREATE INDEX events_by_time ON events (time_ms, seq);
"""
_UPGRADE = "CREATE INDEX IF NOT EXISTS events_by_time ON events (time_ms, seq);"  # from version 1


class EventRow(NamedTuple):
    """One audit event as indexed: `seq` is its number in the hash chain, `body` its exact bytes there."""

    seq: int
    time_ms: int
    type: str
    conflict_id: str
    resource_id: str
    body: bytes


class Identity(NamedTuple):
    """Whose directory this is."""

    node: str
    cluster: str


class Catalog:
    """The catalogue file of one data directory, made if it is missing. For use from one thread.

    raises  UsageError if a newer nova wrote it; CorruptionError if SQLite finds it damaged; UnavailableError if
            another process writes to it or the disk refuses
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._closed = False
        self._db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0, check_same_thread=False)
        try:
            self._open()
        except sqlite3.Error as error:
            self._db.close()
            raise self._refused(error) from error
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise UsageError(
                f"{self.path} has catalogue version {version}; this nova reads up to {VERSION}: use a newer nova"
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        if version == 0:
            if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise UsageError(f"{self.path} is a database of another program; choose another directory")
            self._db.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA}"
                f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION}; COMMIT;"
            )
        elif version == 1:
            self._db.executescript(f"BEGIN IMMEDIATE; {_UPGRADE} PRAGMA user_version={VERSION}; COMMIT;")

    def identity(self) -> Identity | None:
        """Whose directory this is, or None if nobody claimed it yet."""
        node, cluster = self.get("node"), self.get("cluster")
        return None if node is None or cluster is None else Identity(node, cluster)

    def claim(self, node: str, cluster: str) -> None:
        """Bind the directory to this node of this cluster, for good.

        raises  UsageError if it belongs to another
        """
        owner = self.identity()
        if owner is None:
            self._write([("node", node), ("cluster", cluster)])
        elif owner != (node, cluster):
            raise UsageError(
                f"{self.path.parent} belongs to node {owner.node!r} of cluster {owner.cluster!r}, not to {node!r} of "
                f"{cluster!r}; choose another data directory or the right name"
            )

    def trail(self) -> str:
        """The id of the audit trail of this directory, made at the first call and kept."""
        found = self.get("trail")
        if found is None:
            found = os.urandom(8).hex()
            self._write([("trail", found)])
        return found

    def held(self, node: str) -> dict[str, str]:
        """Heads of another node's audit trails that are kept here: trail -> COUNT:HASH."""
        rows = self._run(
            "SELECT name, value FROM settings WHERE name >= ? AND name < ?", (f"head/{node}/", f"head/{node}0")
        )
        return {str(name).rpartition("/")[2]: str(value) for name, value in rows.fetchall()}

    def keep(self, node: str, trail: str, head: str) -> None:
        """Keep the head of another node's trail, durably; of one node at most TRAILS_MAX trails are kept."""
        known = self.held(node)
        if trail not in known and len(known) >= TRAILS_MAX:
            return  # a node that begins anew that often is not to fill this disk
        self._write([(f"head/{node}/{trail}", head)])

    def next_incarnation(self) -> int:
        """A number greater than any that this call returned before, durable before it returns. The first is 1."""
        incarnation = int(self.get("incarnation") or 0) + 1
        self._write([("incarnation", str(incarnation))])
        return incarnation

    def get(self, name: str, default: str | None = None) -> str | None:
        """A small setting, or `default`."""
        row = self._run("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return default if row is None else str(row[0])

    def set(self, name: str, value: str) -> None:
        """Store a small setting, durable when this returns."""
        if name in ("node", "cluster", "incarnation"):
            raise UsageError(f"the setting {name!r} is kept by claim() and next_incarnation(); choose another name")
        self._write([(name, value)])

    def index_events(self, events: Iterable[EventRow | tuple[int, int, str, str, str, bytes]]) -> None:
        """Index audit events in one transaction; those that are there already are left as they are."""
        self._many("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?)", list(events))

    def events(self, query: AuditQuery, *, newest: bool = False) -> list[EventRow]:
        """The events that a query asks for; `newest`: the newest of them, in the same order, oldest first."""
        if not 1 <= query.limit <= EVENTS_MAX:
            raise LimitError(f"limit is {query.limit}; it lies between 1 and {EVENTS_MAX}")
        where: list[str] = ["seq > ?"]
        values: list[str | int] = [query.after]
        for condition, value in (
            ("resource_id = ?", query.resource),
            ("conflict_id = ?", query.conflict),
            ("type = ?", query.type),
            ("time_ms >= ?", query.since_ms),
            ("time_ms < ?", query.until_ms),
        ):
            if value is not None:
                where.append(condition)
                values.append(value)
        order = "DESC" if newest else "ASC"
        rows = self._run(
            f"SELECT * FROM events WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT ?", (*values, query.limit)
        ).fetchall()
        return [EventRow(*row) for row in (reversed(rows) if newest else rows)]

    def last_indexed(self) -> int:
        """The greatest seq in the index, 0 if it is empty."""
        return int(self._run("SELECT coalesce(max(seq), 0) FROM events", ()).fetchone()[0])

    def event_counts(self) -> list[tuple[str, int, int, int]]:
        """(type, how many, least time_ms, greatest time_ms) of each type of event."""
        return self._run("SELECT type, count(*), min(time_ms), max(time_ms) FROM events GROUP BY type", ()).fetchall()

    def forget_events(self, upto: int) -> None:
        """Take events up to a number out of the index."""
        self._many("DELETE FROM events WHERE seq <= ?", [(upto,)])

    def close(self) -> None:
        """Close the file; may be called twice."""
        if not self._closed:
            self._closed = True
            self._db.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, settings: list[tuple[str, str]]) -> None:
        self._many("INSERT OR REPLACE INTO settings VALUES (?, ?)", settings)

    def _many(self, statement: str, rows: list[Any]) -> None:
        self._run("BEGIN IMMEDIATE", ())
        try:
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._refused(error) from error

    def _run(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        if self._closed:
            raise UsageError(f"the catalogue {self.path} is closed")
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def _refused(self, error: sqlite3.Error) -> Exception:
        if isinstance(error, (sqlite3.OperationalError, sqlite3.ProgrammingError)):
            return UnavailableError(f"the catalogue {self.path} failed: {error}; check the disk and who else uses it")
        if isinstance(error, sqlite3.DatabaseError):
            return CorruptionError(f"the catalogue {self.path} is damaged: {error}; restore it from a backup")
        return UnavailableError(f"the catalogue {self.path} failed: {error}; check the disk")
