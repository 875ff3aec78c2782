"""The data directory of one node: its log, snapshots, audit archive and catalogue, opened and recovered together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

from nova.conflict.audit import AuditEvent, AuditLog, ChainMark, Verdict, verify_kept
from nova.conflict.audit.log import ANCHOR, HEAD
from nova.conflict.metrics import ConflictMetrics
from nova.errors import CorruptionError, UsageError
from nova.metrics import Registry
from nova.storage.catalog import Catalog
from nova.storage.log import FileLog
from nova.storage.snapshot import FileSnapshots
from nova.store.checkpoints import KEPT, Checkpoints
from nova.store.core import Durable, Replica, StoreConfig
from nova.store.witness import Witness

STORY_MAX: Final = 200
"""How many events `why` tells."""


class Directory:
    """Opens a data directory for one node and brings its replica back.

    Layout: `log/` records since the snapshot, `snapshots/`, `checkpoints/`, `audit/` the archive of the audit chain,
    `catalog.sqlite`.
    An audit event is first a record of the log, in the same sync as the operation that caused it, and is then copied
    to the archive; what a crash kept from being copied is copied at the next start.
    """

    def __init__(
        self,
        path: Path,
        *,
        node: str,
        cluster: str = "nova",
        segment_bytes: int = 64 * 1024 * 1024,
        checkpoints_kept: int = KEPT,
    ) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.log = FileLog(path / "log", segment_bytes=segment_bytes)
        try:
            self.catalog = Catalog(path / "catalog.sqlite")
            self.catalog.claim(node, cluster)
            self.snapshots = FileSnapshots(path / "snapshots")
            self.checkpoints = Checkpoints(path, kept=checkpoints_kept)
            self.archive = FileLog(path / "audit", segment_bytes=segment_bytes)
        except BaseException:
            self.log.close()
            raise
        self.node = node
        self._snapshot_position = 0
        self._since_snapshot_bytes = 0
        self.audit: AuditLog

    def open(
        self,
        *,
        region: str,
        wall_ns: Callable[[], int],
        config: StoreConfig,
        metrics: Registry | None = None,
    ) -> Replica:
        """The replica as it was when the last acknowledged write returned, under a new incarnation.

        Counted as a recovery of type `restart`, but for the first time.

        raises  CorruptionError if the log or every snapshot is damaged
        """
        incarnation = self.catalog.next_incarnation()
        replica = Replica(
            self.node, region=region, incarnation=incarnation, wall_ns=wall_ns, config=config, metrics=metrics
        )
        with counted(replica.conflicts.metrics if incarnation > 1 else None, "restart"):
            self._bring_back(replica, config)
        return replica

    def _bring_back(self, replica: Replica, config: StoreConfig) -> None:
        self.audit = self._open_audit(replica, config)
        archived = self.audit.mark.count
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
                self.audit.add([record[1:]])
        # Events that were archived but whose log records are gone are known; those before the snapshot, too.
        self.audit.flush()
        replica.recovered()

    def applied(self, event: Durable) -> None:
        """Copy the audit events of a durable commit to the archive."""
        if event.batch is not None:
            self._since_snapshot_bytes += len(event.batch)
        if event.audit:
            self.audit.add(event.audit)

    @property
    def since_snapshot_bytes(self) -> int:
        """How much log a restart would replay."""
        return self._since_snapshot_bytes

    def save_snapshot(self, position: int, state: bytes) -> None:
        """Store a snapshot that covers the log up to `position`, durably. Blocks."""
        self.snapshots.save(position, state)
        self._snapshot_position = position

    def trim(self, position: int, covered_bytes: int) -> None:
        """Forget log records that a stored snapshot covers and no checkpoint needs; their audit events are archived."""
        self.audit.flush()
        needed = self.checkpoints.oldest_position
        self.log.truncate_before(1 + (position if needed is None else min(position, needed)))
        self._since_snapshot_bytes -= covered_bytes

    def story(self, key: str) -> list[AuditEvent]:
        """The newest audit events about a key, oldest first."""
        return self.audit.latest(STORY_MAX, resource=key)

    def index(self) -> None:
        """Bring the index of the audit archive up to date; called now and then, and before it is asked."""
        self.audit.flush()

    def witness(self, tick_ms: int) -> Witness:
        """What keeps heads of audit trails, those of peers here and ours there."""
        return Witness(self.catalog.trail(), lambda: self.audit.mark, self._hash_at, self.catalog, tick_ms=tick_ms)

    def _hash_at(self, count: int) -> bytes | None:
        if not self.audit.anchor.count < count <= self.archive.last:
            return self.audit.anchor.hash if count == self.audit.anchor.count else None
        return bytes(next(self.archive.replay(count))[1][4:36])

    def check(self, head: str | None = None, held: Iterable[ChainMark] = ()) -> Callable[[], dict[str, Any]]:
        """A call that verifies the archive as it is now, and may run in another thread; see `verify_audit`.

        held  heads that peers hold; what retention dropped since is passed over
        """
        self.audit.flush()
        heads = [self.audit.stored_head(), *([ChainMark.parse(head)] if head else [])]
        heads += [mark for mark in held if mark.count >= self.audit.anchor.count]
        archive, anchor, upto, key = self.archive, self.audit.anchor, self.archive.durable, self._audit_key
        return lambda: _told(verify_kept(archive.replay, anchor, heads, key=key, upto=upto))

    def close(self) -> None:
        """Sync and close everything; may be called twice."""
        try:
            if hasattr(self, "audit"):
                self.audit.flush()
        finally:
            self.log.close()
            self.archive.close()
            self.catalog.close()

    def _open_audit(self, replica: Replica, config: StoreConfig) -> AuditLog:
        """The archive, whose events the replica is told of."""
        told = replica.conflicts.metrics.pattern_noticed
        self._audit_key = config.audit_key
        audit = AuditLog(self.archive, self.catalog, key=config.audit_key, found=lambda pattern: told(pattern.kind))
        replica.conflicts.chain.go_on(audit.anchor.hash, audit.anchor.count)
        for _, record in self.archive.replay(audit.anchor.count + 1):
            replica.conflicts.replayed(record)
        return audit


@contextmanager
def counted(metrics: ConflictMetrics | None, type: str) -> Iterator[None]:
    """Count what happens inside as one attempt to recover, with its result and how long it took; None: do not."""
    started, result = perf_counter_ns(), "failed"
    try:
        yield
        result = "ok"
    finally:
        if metrics is not None:
            metrics.recovered(type, result, (perf_counter_ns() - started) / 1e6)


def verify_audit(path: str | Path, head: str | None = None, key: bytes = b"") -> dict[str, Any]:
    """Check the audit chain of a data directory whose node is stopped: every event, its order, and the head.

    head    COUNT:HASH as it was kept elsewhere: without it, whoever can change all files can cut the tail unseen
    key     the audit key, if the node has one
    raises  UsageError if there is no such directory or its node is running
    """
    path = Path(path)
    if not (path / "audit").is_dir():
        raise UsageError(f"{path} holds no audit archive; name the --data directory of a node")
    heads = [ChainMark.parse(head)] if head else []
    with Catalog(path / "catalog.sqlite") as catalog:
        try:
            heads += [ChainMark.unseal(text, key)] if (text := catalog.get(HEAD)) else []
            anchor = ChainMark.parse(catalog.get(ANCHOR) or str(ChainMark()))
            with FileLog(path / "audit") as archive:
                return _told(verify_kept(archive.replay, anchor, heads, key=key))
        except CorruptionError as error:
            return {"ok": False, "events": 0, "head": "", "error": str(error)}


def _told(verdict: Verdict) -> dict[str, Any]:
    out: dict[str, Any] = {"ok": verdict.ok, "events": verdict.events, "head": verdict.head.hash.hex()}
    if verdict.error:
        out["error"] = verdict.error
    return out


__all__ = ["Directory", "counted", "verify_audit"]
