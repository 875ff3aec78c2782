"""How a node keeps its past, audit trail, snapshots and checkpoints, and comes together with others."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from itertools import count, islice
from time import perf_counter_ns
from typing import Any, Final

import msgspec

from nova.conflict.audit import AuditQuery, AuditStatistics, Retention
from nova.conflict.healing.checkpoints import Checkpoint, Schedule
from nova.errors import NovaError, UnavailableError, UsageError
from nova.metrics import Counter
from nova.runtime import Runtime
from nova.server.config import NodeConfig
from nova.server.models import HealReport
from nova.store.cluster import ClusterCore
from nova.store.core import Replica
from nova.store.directory import Directory
from nova.store.healing import Healing
from nova.store.model import Entry
from nova.store.recovery import held_at

log = logging.getLogger("nova.node")

Checkpoints = list[Checkpoint]

LIST_MAX: Final = 1_000
EXPORT_LINES: Final = 200
DAY_MS: Final = 86_400_000
RETAIN_SECONDS: Final = 60
RETAIN_EVENTS_MIN: Final = 16
KEEP_ALL: Final = Retention()


class Upkeep(ABC):
    """The part of a node (`nova.server.node.Node`) that looks after what was."""

    config: NodeConfig
    directory: Directory
    replica: Replica
    runtime: Runtime
    cluster: ClusterCore
    _loop: asyncio.AbstractEventLoop
    _stopped: asyncio.Event
    _failure: BaseException | None
    _schedule: Schedule
    _checkpointing: asyncio.Lock
    _checkpoint_results: Counter
    _healings: dict[str, asyncio.Future[Healing]]

    @abstractmethod
    async def _durable(self, token: int) -> None: ...

    @abstractmethod
    def _look_at_links(self) -> None: ...

    @abstractmethod
    def _check_writable(self) -> None: ...

    @abstractmethod
    def _fatal(self, error: BaseException) -> None: ...

    def audit(self, query: AuditQuery) -> dict[str, Any]:
        limit = min(query.limit, LIST_MAX)
        events = self.directory.audit.page(msgspec.structs.replace(query, limit=limit + 1))
        page = [
            {
                "seq": event.seq,
                "time_ms": event.time_ms,
                "type": event.type,
                "conflict_id": event.conflict_id,
                "resource_id": event.resource_id,
                "body": event.body,
                "hash": event.hash.hex(),
            }
            for event in events[:limit]
        ]
        return {"events": page, "next": str(events[limit - 1].seq) if len(events) > limit else None}

    async def audit_verify(self, head: str | None) -> dict[str, Any]:
        witness = self.cluster.witness
        return await asyncio.to_thread(self.directory.check(head, witness.heads.values() if witness else ()))

    def audit_witnesses(self) -> dict[str, Any]:
        witness, catalog = self.cluster.witness, self.directory.catalog
        assert witness is not None
        peers = (node for node in self.cluster.membership.members if node != self.config.name)
        return {
            "trail": witness.trail,
            "held_by": {peer: str(mark) for peer, mark in sorted(witness.heads.items())},
            "accused_by": dict(sorted(witness.accused.items())),
            "holds": {node: sorted(held.values()) for node in sorted(peers) if (held := catalog.held(node))},
        }

    def audit_statistics(self, top: int) -> AuditStatistics:
        return self.directory.audit.statistics(top)

    async def audit_export(self) -> AsyncIterator[bytes]:
        self.directory.index()
        lines = self.directory.audit.export()
        while some := await asyncio.to_thread(lambda: list(islice(lines, EXPORT_LINES))):
            yield "".join(line + "\n" for line in some).encode()

    async def audit_retain(self, policy: Retention, least: int = 1) -> int:
        self._check_writable()
        anchor = self.directory.audit.outlived(policy, self.replica.now_ms(), least)
        if anchor is None:
            return 0
        dropped = anchor.count - self.directory.audit.anchor.count
        body = {"anchor": str(anchor), "dropped": dropped}
        await self._durable(self.replica.note("retain", "", "", body, self.replica.now_ms()))
        self.directory.audit.drop(anchor)
        return dropped

    def checkpoints(self) -> Checkpoints:
        return self.directory.checkpoints.known()

    async def checkpoint(self) -> Checkpoint:
        self._check_writable()
        result = "failed"
        try:
            made = await self._checkpoint_now()
            result = "ok"
        finally:
            self._checkpoint_results.labels(result).inc()
        return made

    async def _checkpoint_now(self) -> Checkpoint:
        async with self._checkpointing:  # one after the other: they are of one order
            # Right after a turn: what it holds and what the log holds up to its last record are the same.
            self.runtime.submit(self.cluster.turn())
            position, now = self.directory.log.last, self.replica.now_ms()
            made, data = self.directory.checkpoints.packed(self.replica, position, now)
            await self._durable(self.replica.newest_token)
            await asyncio.to_thread(self.directory.checkpoints.store, made, data)
            self._schedule.taken(made)
            return made

    async def past(self, key: str, at_ms: int) -> Entry:
        """What a key held at a time. Builds the whole state of that time again, in another thread, one at a time."""
        now = self.replica.now_ms()
        if at_ms > now:
            raise UsageError(f"at is {at_ms}, {at_ms - now} ms from now; give a time that has passed")
        async with self._checkpointing:  # the log is not shortened meanwhile
            await self._durable(self.replica.newest_token)
            directory = self.directory
            return await asyncio.to_thread(
                held_at, directory.log, directory.checkpoints, directory.snapshots, key, at_ms, self.replica.config
            )

    async def heal(self, peer: str, timeout_ms: int) -> HealReport:
        """Exchange with a peer now, until both hold the same or the time is over."""
        self._check_writable()
        started, conflicts = perf_counter_ns(), self.replica.conflicts.total
        outputs = self.cluster.heal(peer, timeout_ms)
        ended = self._healings[peer] = self._loop.create_future()
        self.runtime.submit(outputs)
        try:
            done = await ended
        finally:
            self._healings.pop(peer, None)
        took_ms = (perf_counter_ns() - started) / 1e6
        self.replica.conflicts.metrics.recovered("heal", "ok" if done.equal else "failed", took_ms)
        await self._durable(self.replica.newest_token)
        found = self.replica.conflicts.total - conflicts
        return HealReport(**msgspec.structs.asdict(done), conflicts=found, took_ms=round(took_ms, 3))

    def end_healings(self, why: str) -> None:
        """No more messages come: whoever waits for one is told."""
        for ended in self._healings.values():
            if not ended.done():
                ended.set_exception(UnavailableError(why, 10**9))

    async def _keep_house(self) -> None:
        """Snapshots when the log has grown, the index of the audit archive, and that it does not grow for ever."""
        limits = self.config.limits
        retention = Retention(limits.audit_days * DAY_MS or None, limits.audit_events or None)
        for second in count(1):
            if self._failure is not None:
                break
            await asyncio.sleep(1)
            try:
                self._look_at_links()
                self.directory.index()
                if self.directory.since_snapshot_bytes > self.config.limits.snapshot_log_bytes:
                    await self._snapshot()
                if self._schedule.due(self.replica.now_ms(), self.directory.log.last):
                    await self._checkpoint_due()
                if second % RETAIN_SECONDS == 0 and retention != KEEP_ALL and not self._stopped.is_set():
                    # Each time adds an event, so that a little has to come together first.
                    audit = self.directory.audit
                    held = audit.mark.count - audit.anchor.count
                    dropped = await self.audit_retain(retention, max(RETAIN_EVENTS_MIN, held // 64))
                    if dropped:
                        log.info("retention dropped %d audit events", dropped)
            except (NovaError, OSError) as error:
                self._fatal(error)

    async def _checkpoint_due(self) -> None:
        try:
            made = await self.checkpoint()
        except (NovaError, OSError) as error:  # the writes behind it are durable all the same
            self._schedule.failed(self.replica.now_ms())
            log.error("no checkpoint, the next try is an interval from now: %s", error)
        else:
            log.info("checkpoint of %d keys, up to record %d", made.keys, made.position)

    async def _snapshot(self) -> None:
        async with self._checkpointing:  # it trims the log, which a checkpoint that is being stored will need
            await self._snapshot_now()

    async def _snapshot_now(self) -> None:
        # Right after a turn: what the snapshot holds and what the log holds up to its last record are the same.
        self.runtime.submit(self.cluster.turn())
        position, state = self.directory.log.last, self.replica.snapshot()
        covered_bytes = self.directory.since_snapshot_bytes
        # A snapshot ahead of the log would hide the records that a restarted node writes at the same positions.
        await self._durable(self.replica.newest_token)
        self.directory.index()
        try:
            await asyncio.to_thread(self.directory.save_snapshot, position, state)
        except (NovaError, OSError) as error:
            log.error("snapshot failed, the log is kept: %s", error)
            return
        self.directory.trim(position, covered_bytes)
        log.info("snapshot of %d keys, %d bytes, up to record %d", len(self.replica.space), len(state), position)
