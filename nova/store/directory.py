"""The data directory of one node: its log, snapshots, audit archive and catalogue, opened and recovered together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nova.conflict.audit import AuditEvent, ChainMark, decode_event, verify
from nova.errors import CorruptionError, UsageError
from nova.metrics import Registry
from nova.storage.catalog import Catalog, EventRow
from nova.storage.log import FileLog
from nova.storage.snapshot import FileSnapshots
from nova.store.core import Durable, Replica, StoreConfig


class Directory:
    """Opens a data directory for one node and brings its replica back.

    Layout: `log/` records since the snapshot, `snapshots/`, `audit/` the archive of the audit chain, `catalog.sqlite`.
    An audit event is first a record of the log, in the same sync as the operation that caused it, and is then copied
    to the archive; what a crash kept from being copied is copied at the next start.
    """

    def __init__(self, path: Path, *, node: str, cluster: str = "nova", segment_bytes: int = 64 * 1024 * 1024) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.log = FileLog(path / "log", segment_bytes=segment_bytes)
        try:
            self.catalog = Catalog(path / "catalog.sqlite")
            self.catalog.claim(node, cluster)
            self.snapshots = FileSnapshots(path / "snapshots")
            self.archive = FileLog(path / "audit", segment_bytes=segment_bytes)
        except BaseException:
            self.log.close()
            raise
        self.node = node
        self._snapshot_position = 0
        self._since_snapshot_bytes = 0
        self._unindexed: list[EventRow] = []
        self._head = ""

    def open(
        self,
        *,
        region: str,
        wall_ns: Callable[[], int],
        config: StoreConfig,
        metrics: Registry | None = None,
    ) -> Replica:
        """The replica as it was when the last acknowledged write returned, under a new incarnation.

        raises  CorruptionError if the log or every snapshot is damaged
        """
        incarnation = self.catalog.next_incarnation()
        replica = Replica(
            self.node, region=region, incarnation=incarnation, wall_ns=wall_ns, config=config, metrics=metrics
        )
        archived = self._load_archive(replica)
        start = 1
        found = self.snapshots.load()
        if found is not None:
            position, state = found
            replica.restore(state)
            start = position + 1
            self._snapshot_position = position
        if self.log.first > start:
            raise CorruptionError(
                f"the log in {self.path / 'log'} starts at record {self.log.first} but the snapshot ends at "
                f"{start - 1}; move the directory away and start this node with --join to copy from a peer"
            )
        if self.log.last < start - 1:
            raise CorruptionError(
                f"the log in {self.path / 'log'} ends at record {self.log.last} but the snapshot covers {start - 1}: "
                "log files are missing; restore them, or move the directory away and start this node with --join"
            )
        for _, record in self.log.replay(start):
            self._since_snapshot_bytes += len(record)
            event = replica.replay(record)
            if event is not None and event.seq > archived:
                self._archive([record[1:]])
        # Events that were archived but whose log records are gone are known; those before the snapshot, too.
        self._flush_archive()
        replica.recovered()
        return replica

    def applied(self, event: Durable) -> None:
        """Copy the audit events of a durable commit to the archive."""
        if event.batch is not None:
            self._since_snapshot_bytes += len(event.batch)
        if event.audit:
            self._archive(event.audit)

    @property
    def since_snapshot_bytes(self) -> int:
        """How much log a restart would replay."""
        return self._since_snapshot_bytes

    def save_snapshot(self, position: int, state: bytes) -> None:
        """Store a snapshot that covers the log up to `position`, durably. Blocks."""
        self.snapshots.save(position, state)
        self._snapshot_position = position

    def trim(self, position: int, covered_bytes: int) -> None:
        """Forget log records that a stored snapshot covers and whose audit events are archived."""
        self._flush_archive()
        self.log.truncate_before(position + 1)
        self._since_snapshot_bytes -= covered_bytes

    def events(self, **query: Any) -> list[AuditEvent]:
        """Audit events by resource, conflict, type and position; see Catalog.events."""
        self._flush_archive()
        return [decode_event(row.body) for row in self.catalog.events(**query)]

    def index(self) -> None:
        """Bring the index of the audit archive up to date; called now and then, and before it is asked."""
        self._flush_archive()

    def close(self) -> None:
        """Sync and close everything; may be called twice."""
        try:
            self._flush_archive()
        finally:
            self.log.close()
            self.archive.close()
            self.catalog.close()

    def _load_archive(self, replica: Replica) -> int:
        """Give the archived events to the replica, and to the index those that it lacks; the newest event's number."""
        indexed = self.catalog.last_indexed()
        known = _mark(self.catalog.get("audit_head")).count
        last = 0
        for _, record in self.archive.replay(1):
            event = replica.conflicts.replayed(record)
            last = event.seq
            if last > indexed:
                self._note(record)
            elif last > known:  # a crash came between the index and the head
                self._head = f"{last}:{event.hash.hex()}"
        if self._head and not self._unindexed:
            self.catalog.set("audit_head", self._head)
        return last

    def _archive(self, records: list[bytes]) -> None:
        self.archive.append(records)
        for record in records:
            self._note(record)
        if len(self._unindexed) >= 1_000:
            self._flush_archive()

    def _note(self, record: bytes) -> None:
        event = decode_event(record)
        self._unindexed.append(
            EventRow(event.seq, event.time_ms, event.type, event.conflict_id, event.resource_id, record)
        )
        self._head = f"{event.seq}:{event.hash.hex()}"

    def _flush_archive(self) -> None:
        if not self._unindexed:
            return
        self.archive.commit()
        self.catalog.index_events(self._unindexed)
        self.catalog.set("audit_head", self._head)
        self._unindexed = []


def verify_audit(path: str | Path) -> dict[str, Any]:
    """Check the audit chain of a data directory whose node is stopped: every event, its order, and the head.

    raises  UsageError if there is no such directory or its node is running
    """
    path = Path(path)
    if not (path / "audit").is_dir():
        raise UsageError(f"{path} holds no audit archive; name the --data directory of a node")
    with Catalog(path / "catalog.sqlite") as catalog:
        try:
            archive = FileLog(path / "audit")
        except CorruptionError as error:
            return {"ok": False, "events": 0, "head": "", "error": str(error)}
        with archive:
            return verdict_of(archive, catalog.get("audit_head"))


def verdict_of(archive: FileLog, head: str | None, length: int | None = None) -> dict[str, Any]:
    """The verdict on an archive: `ok`, `events`, `head`, and `error` if it is not.

    length  how many records there were when `head` was read, of an archive that grows meanwhile
    """
    verdict = verify(_records(archive, length), _mark(head) if head else None)
    out: dict[str, Any] = {"ok": verdict.ok, "events": verdict.events, "head": verdict.head.hash.hex()}
    if verdict.error:
        out["error"] = verdict.error
    return out


def _records(archive: FileLog, length: int | None) -> Iterator[bytes]:
    for position, record in archive.replay(1):
        if length is not None and position > length:
            break
        yield record


def _mark(head: str | None) -> ChainMark:
    if not head:
        return ChainMark()
    count, _, digest = head.partition(":")
    return ChainMark(int(count), bytes.fromhex(digest))


__all__ = ["Directory", "verdict_of", "verify_audit"]
