"""The store inside one process: blocking calls, durable when they return. The library's face."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from nova.conflict.audit import AuditLog, Retention
from nova.conflict.healing.checkpoints import Checkpoint, Schedule
from nova.conflict.policy import Policy
from nova.errors import PeerError, UnavailableError, UsageError
from nova.runtime import wall_ns
from nova.storage.base import Log
from nova.storage.log import FileLog
from nova.storage.pipeline import Pipeline
from nova.store.checkpoints import KEPT
from nova.store.core import Durable, Replica, StoreConfig
from nova.store.decisions import Decided, Waiting, decide, waiting
from nova.store.directory import STORY_MAX, Directory
from nova.store.model import Change, Entry, Put
from nova.store.points import Point, Rollback, chosen, make_point, points, roll_back
from nova.store.recovery import as_of
from nova.types import Actor, Outputs

logger = logging.getLogger("nova.store")

MEMORY_EVENTS: Final = 20_000
"""At least so many audit events a store without a directory keeps, and at most twice as many."""


class _Nowhere:
    """The log of a store that lives in memory only: whatever is appended is as durable as the store itself."""

    def __init__(self) -> None:
        self.first, self.last = 1, 0

    @property
    def durable(self) -> int:
        return self.last

    def append(self, records: list[bytes]) -> int:
        self.last += len(records)
        return self.last

    def sync(self, done: Any) -> None:
        done(self.last, None)

    def replay(self, start: int = 1) -> Iterator[tuple[int, bytes]]:
        return iter(())

    def truncate_before(self, position: int) -> None:
        pass

    def close(self) -> None:
        pass


class _Blocking:
    """A log whose `sync` returns when the disk has answered."""

    def __init__(self, log: FileLog) -> None:
        self._log = log

    @property
    def first(self) -> int:
        return self._log.first

    @property
    def last(self) -> int:
        return self._log.last

    @property
    def durable(self) -> int:
        return self._log.durable

    def append(self, records: list[bytes]) -> int:
        return self._log.append(records)

    def sync(self, done: Callable[[int, BaseException | None], None]) -> None:
        done(self._log.commit(), None)

    def replay(self, start: int = 1) -> Iterator[tuple[int, bytes]]:
        return self._log.replay(start)

    def truncate_before(self, position: int) -> None:
        self._log.truncate_before(position)

    def close(self) -> None:
        self._log.close()


class ReplicatedStore:
    """A replica of the store: typed keys, every conflict settled the same way on all replicas, and explained.

    data         directory of its log and snapshots; None: in memory only
    node         its name; every replica needs another one
    cluster      of the data directory: it belongs to a node of one cluster, for good
    kinds        key prefix -> kind (`register`, `vm`, `map`, `set`, `counter`)
    strategies   key prefix -> strategy for conflicts (`lww`, `multi_value`, `semantic`, ...)
    policies     key prefix -> policy for conflicts (`nova.conflict.policy`)
    checkpoint_ms, checkpoints_kept  how often a write is followed by a checkpoint, 0: only `checkpoint` makes one; and
                 how many are kept. The log is kept from the oldest one on
    raises       UsageError if the directory is in use or belongs to another node or a newer release;
                 CorruptionError if its log is damaged

    Its keys are eventual: strong ones need a group (`nova.store.strong`, or the classes of `nova serve`).
    Calls return when their writes are on disk. Not for use from several threads at once. A cluster of these, with
    transport, membership and an HTTP API, is `nova serve`; two of them in one program meet through `sync_with`.
    """

    def __init__(
        self,
        data: str | Path | None = None,
        *,
        node: str = "local",
        region: str = "local",
        cluster: str = "nova",
        kinds: Mapping[str, str] | None = None,
        strategies: Mapping[str, str] | None = None,
        policies: Mapping[str, Policy] | None = None,
        config: StoreConfig | None = None,
        checkpoint_ms: int = 0,
        checkpoints_kept: int = KEPT,
    ) -> None:
        config = config or StoreConfig(
            kinds=dict(kinds or {}), strategies=dict(strategies or {}), policies=dict(policies or {})
        )
        self._directory: Directory | None = None
        self.audit: AuditLog
        self._schedule = Schedule(checkpoint_ms)
        log: Log = _Nowhere()
        if data is None:
            self.replica = Replica(node, region=region, wall_ns=wall_ns, config=config)
            self.audit = AuditLog(key=config.audit_key)
        else:
            self._directory = Directory(Path(data), node=node, cluster=cluster, checkpoints_kept=checkpoints_kept)
            try:
                self.replica = self._directory.open(region=region, wall_ns=wall_ns, config=config)
            except BaseException:
                self._directory.close()
                raise
            log = _Blocking(self._directory.log)
            self.audit = self._directory.audit
            self._schedule = Schedule(checkpoint_ms, self._directory.checkpoints.newest())
        self._pipeline = Pipeline(log, send=lambda peer, message: None, apply=self._applied)

    def put(
        self,
        key: str,
        value: Any,
        *,
        kind: str | None = None,
        merge: bool = False,
        context: dict[str, int] | None = None,
        conditional: bool = False,
    ) -> Entry:
        """Write a key and return what it holds then; see `nova.store.Put` for the arguments. One fsync."""
        self.replica.put(Put(key, value, kind, merge, context, conditional))
        self._commit()
        return self.replica.get(key)

    def put_many(self, puts: Iterable[Put | tuple[str, Any]]) -> int:
        """Write many keys with one fsync; returns how many. All are checked and applied in order; the first wrong one
        raises, and those before it are kept."""
        count = 0
        try:
            for item in puts:
                self.replica.put(item if isinstance(item, Put) else Put(item[0], item[1]))
                count += 1
        finally:
            self._commit()
        return count

    def get(self, key: str) -> Entry:
        """What a key holds. Raises KeyNotFoundError."""
        return self.replica.get(key)

    def delete(self, key: str, *, context: dict[str, int] | None = None, conditional: bool = False) -> None:
        """Remove a key; concurrent writes that `context` does not know survive. Raises KeyNotFoundError."""
        self.replica.delete(key, context, conditional)
        self._commit()

    def scan(self, prefix: str = "", limit: int = 100, after: str = "") -> tuple[list[Entry], str | None]:
        """A page of entries in order of key, and the key after which the next page starts, None at the end."""
        return self.replica.scan(prefix, limit, after)

    def changes(self, since: int = 0, prefix: str = "") -> list[Change]:
        """What changed after a revision, each key once."""
        return self.replica.changes(since, prefix)

    def conflicts(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest conflicts, with what was settled and what was discarded."""
        conflicts: list[dict[str, Any]] = self.replica.conflicts.page(limit)["conflicts"]
        return conflicts

    def why(self, key: str) -> dict[str, Any]:
        """Why a key holds what it holds; `text` says it in sentences."""
        return self.replica.why(key, self.audit.latest(STORY_MAX, resource=key))

    def point(self, key: str, note: str = "") -> str:
        """Keep what a key holds now as a rollback point; its id. One fsync. Raises KeyNotFoundError."""
        _, point = make_point(self.replica, key, note)
        self._commit()
        return point

    def points(self, key: str) -> list[Point]:
        """The newest rollback points of a key that were made here, at most 100, oldest first."""
        return points(self.audit, key)

    def rollback(self, key: str, to: str, *, context: Mapping[str, int] | None = None, by: str = "") -> Rollback:
        """Bring a key back to a point, by a new write that dominates what `context` (None: what is here) knows.

        to      id of a point of this key, or the beginning of it
        raises  KeyNotFoundError if there is no such point; see `nova.store.points.roll_back`
        """
        event = chosen(self.audit, key, to)
        _, done = roll_back(self.replica, key, event, context, by)
        self._commit()
        return done

    def waiting(self, limit: int = 100) -> list[Waiting]:
        """Conflicts that wait for a decision, oldest first."""
        return waiting(self.replica, limit)

    def decide(self, key: str, shown: str, values: Mapping[str, Any], *, by: str = "") -> Decided:
        """Settle what waits; refused (StaleContextError) if the candidates are not those that were shown. One fsync.

        See `nova.store.decisions.decide`.
        """
        _, done = decide(self.replica, key, shown, values, by)
        self._commit()
        return done

    @property
    def clock(self) -> dict[Actor, int]:
        """What this replica knows: actor -> its newest event."""
        return self.replica.clock()

    @property
    def digest(self) -> str:
        """128 bits over the whole state in hex: equal on replicas that hold the same."""
        return self.replica.digest

    def __len__(self) -> int:
        return len(self.replica.space)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.replica.space.get(key) is not None

    def delta_since(self, clock: Mapping[Actor, int]) -> list[bytes]:
        """What a replica that knows `clock` lacks, oldest first: batches for `apply_delta`, or one whole state."""
        batches = self.replica.batches_since(clock, 1 << 62)
        return [self.replica.snapshot()] if batches is None else batches

    def apply_delta(self, delta: bytes) -> None:
        """Take one item of another replica's `delta_since`. Raises PeerError if it is malformed or out of order."""
        if delta[:3] in (b"NVS", b"NVD"):
            outputs: Outputs | None = self.replica.join(delta)
        else:
            outputs = self.replica.receive(delta)
        if outputs is None:
            raise PeerError("this delta depends on events that are not here; ask with the present clock again")
        self.submit(outputs)

    def submit(self, outputs: Outputs) -> None:
        """Make durable what the replica wants done."""
        if outputs:
            self._pipeline.submit(outputs)
            self._pipeline.flush()
            if self._pipeline.error is not None:
                raise self._pipeline.error

    def sync_with(self, other: ReplicatedStore) -> None:
        """Exchange what either side lacks; afterwards both hold the same."""
        for delta in other.delta_since(self.clock):
            self.apply_delta(delta)
        for delta in self.delta_since(other.clock):
            other.apply_delta(delta)

    def checkpoint(self) -> Checkpoint:
        """Store the whole state as a point to come back to, durably. Raises UsageError for a store in memory."""
        directory = self._on_disk()
        self.submit(self.replica.turn())
        made = directory.checkpoints.take(self.replica, directory.log.durable, self.replica.now_ms())
        self._schedule.taken(made)
        return made

    def checkpoints(self) -> list[Checkpoint]:
        """The points that are kept, oldest first. Raises UsageError for a store in memory."""
        return self._on_disk().checkpoints.known()

    def as_of(self, at_ms: int, node: str = "past") -> ReplicatedStore:
        """What this store held at a time, Unix milliseconds, as a store in memory under another name.

        raises  UnavailableError if the log and the checkpoints do not reach back that far
        """
        directory = self._on_disk()
        found, _ = as_of(directory.log, directory.checkpoints, directory.snapshots, node, at_ms)
        past = ReplicatedStore(node=node, region=self.replica.region, config=self.replica.config)
        past.replica.restore(found.snapshot())
        return past

    def _on_disk(self) -> Directory:
        if self._directory is None:
            raise UsageError("this store lives in memory; open it with a directory: ReplicatedStore(data=...)")
        return self._directory

    def close(self) -> None:
        """Sync and close the files; may be called twice."""
        if self._directory is not None:
            self._directory.close()

    def __enter__(self) -> ReplicatedStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def retain(self, policy: Retention) -> int:
        """Drop audit events that a policy does not keep, oldest first; how many. Points among them go, too."""
        anchor = self.audit.outlived(policy, self.replica.now_ms())
        if anchor is None:
            return 0
        dropped = anchor.count - self.audit.anchor.count
        body = {"anchor": str(anchor), "dropped": dropped}
        self.replica.note("retain", "", "", body, self.replica.now_ms())
        self.submit(self.replica.turn())
        self.audit.drop(anchor)
        return dropped

    def _commit(self) -> None:
        self.submit(self.replica.turn())
        if self._directory is None:
            if self.audit.mark.count - self.audit.anchor.count > 2 * MEMORY_EVENTS:
                self.retain(Retention(events_max=MEMORY_EVENTS))
        elif self._schedule.due(self.replica.now_ms(), self._directory.log.last):
            try:
                self.checkpoint()
            except UnavailableError as error:  # the write is durable, and its caller must not hear otherwise
                self._schedule.failed(self.replica.now_ms())
                logger.warning("no checkpoint: %s", error)

    def _applied(self, event: Durable) -> None:
        self.replica.applied(event)
        if self._directory is not None:
            self._directory.applied(event)
        elif event.audit:
            self.audit.add(event.audit)
