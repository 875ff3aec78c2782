"""A whole node in one dictionary: enough of nova.server.api.Backend to try the HTTP face on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import uvloop

from nova.conflict.audit import AuditQuery
from nova.conflict.healing.checkpoints import Checkpoint
from nova.consensus.core import NotLeaderError
from nova.errors import (
    CompactedError,
    CorruptionError,
    KeyNotFoundError,
    StaleContextError,
    UnavailableError,
    UsageError,
)
from nova.server.api import make_app
from nova.server.config import NodeConfig
from nova.server.models import HealReport
from nova.server.serving import bind, make_server
from nova.store.decisions import Candidate, Decided, Waiting
from nova.store.model import Change, Entry, Put, StrongEntry
from nova.store.strong import Transacted

KEEP_ALIVE_S = 0.2


class MemoryBackend:
    def __init__(self, oldest: int = 0) -> None:
        self.entries: dict[str, Entry] = {}
        self.changes: list[Change] = []
        self.oldest = oldest
        self.cut: list[str] = []
        self.asked: list[Any] = []
        self.leader = "n1"
        self.voters = ["n1", "n2"]
        self.protocol = "raft"
        self.taken: Sequence[Checkpoint] = ()
        self.is_ready = True
        self.open_watches = 0
        self.changed = asyncio.Condition()

    async def put(self, put: Put) -> Entry:
        if put.key == "broken":
            raise CorruptionError("the secret inside")
        if put.key == "busy":
            raise UnavailableError("the log is full; try again", retry_after_ns=2_500_000_000)
        if put.kind not in (None, "register", "vm"):
            raise UsageError(f"kind {put.kind!r} is unknown; use register or vm")
        current = self.entries.get(put.key)
        clock = current.clock if current else {}
        if put.conditional and (put.context or {}) != clock:
            raise StaleContextError(f"{put.key} has moved on; read it again", current)
        if put.expect is not None:
            have = current.revision if current else 0
            if put.expect != have:
                raise StaleContextError(f"{put.key!r} is at version {have}, expected version {put.expect}", current)
        return await self._write(put.key, put.kind or "register", put.value, deleted=False)

    async def transact(self, key: str, conditions: Sequence[Any], operations: Sequence[Any]) -> Transacted:
        self.asked.append((key, list(conditions), list(operations)))
        if key == "stale":
            raise StaleContextError("condition 1 does not hold", self.entries.get(key))
        entry = StrongEntry(key, "register", 1, {}, 7 << 16, "n1", ("n1", 3), 3, version=3)
        return Transacted(entry, [None, {"a": 1}], 3)

    def consensus(self) -> dict[str, Any]:
        members = [
            {
                "node": node, "address": f"127.0.0.1:{number}", "role": "voter", "leads": node == self.leader,
                "connected": True, "position": 7, "lag": number,
            }
            for number, node in enumerate(self.voters)
        ]  # fmt: skip
        epoch = {"number": 1, "protocol": self.protocol, "members": self.voters, "start": 5, "former": "paxos"}
        return {
            "node": "n1", "protocol": self.protocol, "role": "leader", "leader": self.leader, "leader_http": "",
            "term": 4, "epoch": 1, "epochs": [epoch], "settled": True, "members": members, "committed": 7, "applied": 7,
            "revision": 3, "compacted": 0, "keys": 2, "bytes": 150, "bytes_max": 1000, "digest": "ab" * 16,
            "classes": {"cfg/": "strong"}, "failure": None, "adaptive": None,
        }  # fmt: skip

    def _lead(self) -> None:
        if self.leader != "n1":
            raise NotLeaderError("n1", self.leader)

    async def consensus_add(self, node: str, address: str | None, learner: bool) -> dict[str, Any]:
        self._lead()
        if not address:
            raise UsageError(f"{node} is not known here; give the HOST:PORT of its consensus.listen")
        self.voters.append(node)
        return self.consensus()

    async def consensus_remove(self, node: str) -> dict[str, Any]:
        self._lead()
        self.voters.remove(node)
        return self.consensus()

    async def region_add(self, node: str, address: str | None, region: str) -> dict[str, Any]:
        return self._regions([*self.voters, node], region)

    async def region_remove(self, node: str, region: str) -> dict[str, Any]:
        return self._regions([voter for voter in self.voters if voter != node], region)

    def _regions(self, members: Sequence[str], region: str) -> dict[str, Any]:
        owned = {
            "members": members, "revision": 3, "compacted": 0, "keys": 2, "bytes": 150, "digest": "ab" * 16,
        }  # fmt: skip
        return {
            "region": region, "leader": "n1", "digest": "ab" * 16, "connected": [], "regions": {region: owned},
            "failure": None,
        }  # fmt: skip

    async def consensus_transfer(self, node: str) -> dict[str, Any]:
        self._lead()
        self.leader = node
        return self.consensus()

    async def consensus_switch(self, protocol: str, members: Sequence[str], addresses: dict[str, str]) -> Any:
        if protocol not in ("raft", "paxos"):
            raise UsageError(f"protocol {protocol!r} is unknown; there are paxos, raft")
        self.protocol, self.voters = protocol, list(members) or self.voters
        return self.consensus()

    async def _write(self, key: str, kind: str, value: Any, *, deleted: bool) -> Entry:
        revision = len(self.changes) + 1
        stamp = int(time.time() * 1000) << 16 | 7
        entry = Entry(key, kind, value, {"n1~1": revision}, stamp, "n1", ("n1~1", revision), revision)
        if deleted:
            self.entries.pop(key)
        else:
            self.entries[key] = entry
        self.changes.append(Change(revision, key, kind, deleted, value, entry.clock, stamp, "n1"))
        async with self.changed:
            self.changed.notify_all()
        return entry

    async def put_many(self, puts: list[Put]) -> list[Entry | Exception]:
        results: list[Entry | Exception] = []
        for put in puts:
            try:
                results.append(await self.put(put))
            except Exception as error:
                results.append(error)
        return results

    async def get(self, key: str, consistency: str | None = None) -> Entry:
        if consistency not in (None, "linearizable", "lease", "local"):
            raise UsageError(f"consistency is {consistency!r}; use one of linearizable, lease, local")
        self.asked.append(("get", key, consistency))
        if key not in self.entries:
            raise KeyNotFoundError(f"{key!r} holds nothing; nova list shows the keys")
        return self.entries[key]

    async def delete(
        self, key: str, context: dict[str, int] | None, conditional: bool, expect: int | None = None
    ) -> Entry:
        current = await self.get(key)
        self.asked.append(("delete", key, expect))
        if conditional and context != current.clock:
            raise StaleContextError(f"{key} has moved on; read it again", current)
        return await self._write(key, current.kind, None, deleted=True)

    async def list(
        self, prefix: str, limit: int, after: str | None, consistency: str | None = None
    ) -> tuple[list[Entry], str | None]:
        self.asked.append(("list", prefix, consistency))
        keys = sorted(key for key in self.entries if key.startswith(prefix) and (after is None or key > after))
        page = keys[:limit]
        return [self.entries[key] for key in page], page[-1] if len(keys) > limit else None

    async def watch(self, since: int | None, prefix: str, kind: str | None = None) -> AsyncIterator[Change | None]:
        self.asked.append(("watch", prefix, kind))
        if since is not None and since < self.oldest:
            raise CompactedError(f"changes up to {self.oldest} are forgotten; list the keys again", self.oldest)
        at = len(self.changes) if since is None else since
        self.open_watches += 1
        try:
            while True:
                for change in self.changes[at:]:
                    at = change.revision
                    if change.key.startswith(prefix):
                        yield change
                try:
                    async with self.changed, asyncio.timeout(KEEP_ALIVE_S):
                        await self.changed.wait_for(lambda seen=at: len(self.changes) > seen)
                except TimeoutError:
                    yield None
        finally:
            self.open_watches -= 1

    def status(self) -> dict[str, Any]:
        return {
            "name": "n1", "region": "here", "version": "0", "revision": len(self.changes), "digest": "ab" * 16,
            "keys": len(self.entries), "peers": 1, "healthy": True, "cluster": "nova", "incarnation": 1,
            "clock": {"n1~1": len(self.changes)}, "uptime_s": 1.5, "conflicts": 1, "pending": 0,
            "writes_total": len(self.changes), "rss_bytes": 50_000_000,
            "log": {"bytes": 1, "segments": 1, "durable": 1}, "http": "", "listen": "",
        }  # fmt: skip

    def peers(self) -> list[dict[str, Any]]:
        return [
            {
                "node": "n2", "region": "there", "address": "127.0.0.1:1", "state": "alive", "incarnation": 2,
                "connected": True, "rtt_ms": 80.5, "lag_ops": 0, "sent_bytes": 10, "received_bytes": 20,
                "queue_bytes": 0, "encrypted": False,
            }
        ]  # fmt: skip

    async def conflicts(self, **filters: Any) -> dict[str, Any]:
        conflict = {
            "id": "c1", "key": "vm/1", "kind": "vm", "types": ["concurrent_update"], "severity": "low", "complexity": 1,
            "paths": ["cpus"],
            "versions": [{"origin": "n1", "timestamp": 1, "time_ms": 0, "clock": {"n1~1": 1}, "values": {"cpus": 4}}],
            "resolution": {
                "strategy": "semantic", "values": {"cpus": 8}, "explanation": ["the larger one fits"],
                "discarded": [{"path": "cpus", "value": 4, "origin": "n1", "reason": "smaller"}], "confidence": 1.0,
            },
            "detected_ms": 1_700_000_000_000, "status": "resolved",
        }  # fmt: skip
        wanted = filters["key"] in (None, "vm/1") and filters["type"] in (None, "concurrent_update")
        return {
            "conflicts": [conflict] if wanted else [], "total": 1, "by_type": {"concurrent_update": 1},
            "by_strategy": {"semantic": 1}, "next": None,
        }  # fmt: skip

    async def why(self, key: str) -> dict[str, Any]:
        if key not in self.entries:
            raise KeyNotFoundError(f"{key!r} holds nothing; nova list shows the keys")
        entry = self.entries[key]
        write = {
            "path": "", "value": entry.value, "origin": "n1", "dot": entry.dot,
            "timestamp": entry.timestamp, "time_ms": 1,
        }  # fmt: skip
        return {
            "key": key, "kind": entry.kind, "value": entry.value, "writes": [write], "conflicts": [],
            "text": f"{key} was written once, by n1.",
        }  # fmt: skip

    def audit(self, query: AuditQuery) -> dict[str, Any]:
        return {"events": [{"seq": 1, "type": "resolved", "resource": "vm/1", "asked": query}], "next": None}

    async def audit_verify(self, head: str | None) -> dict[str, Any]:
        return {"ok": head != "9:00", "events": 1, "head": "00ff"}

    def checkpoints(self) -> Sequence[Checkpoint]:
        return self.taken

    async def checkpoint(self) -> Checkpoint:
        self.taken = [*self.taken, Checkpoint(1, 2, 3, "n1", 1, 4, "00")]
        return self.taken[-1]

    async def past(self, key: str, at_ms: int) -> Entry:
        if at_ms < 1_000:
            raise UnavailableError("the log starts later")
        return await self.get(key)

    async def heal(self, peer: str, timeout_ms: int) -> HealReport:
        digests = ("00", "ff"), ("ff", "ff")
        return HealReport(peer, timeout_ms > 500, True, True, "", 4, 10, 20, 5, *digests, conflicts=1, took_ms=2.5)

    def audit_witnesses(self) -> dict[str, Any]:
        return {"trail": "t", "held_by": {}, "accused_by": {}, "holds": {}}

    def audit_statistics(self, top: int) -> Any:
        hot = [{"kind": "resource", "subject": "vm/1", "count": 7, "error": 1}][:top]
        return {
            "events": 1, "by_type": {"resolved": 1}, "first_ms": 1, "last_ms": 1, "anchor": "0:00", "head": "1:00ff",
            "patterns": [], "hotspots": hot,
        }  # fmt: skip

    async def audit_export(self) -> AsyncIterator[bytes]:
        yield b'{"seq":1}\n'
        yield b'{"seq":2}\n'

    async def audit_retain(self, policy: Any) -> int:
        return policy.events_max or 0

    def points(self, key: str) -> list[Any]:
        return [{"id": "p1", "time_ms": 1, "note": "first", "value": key}]

    async def make_point(self, key: str, note: str) -> str:
        if key not in self.entries:
            raise KeyNotFoundError(f"{key!r} holds nothing; nova list shows the keys")
        return "p2" + note

    async def rollback(self, key: str, to: str, context: dict[str, int] | None, by: str) -> Any:
        if to == "none":
            raise KeyNotFoundError(f"there is no point {to!r} of {key!r}")
        kept = [{"path": "/x", "value": 1, "origin": "n2"}] if context else []
        return {"point": to, "undo": "p3", "restored": {"/a": by}, "removed": [], "kept": kept, "discarded": []}

    def waiting(self, limit: int) -> list[Waiting]:
        one = Candidate("/cpus", 4, "n1", 1), Candidate("/cpus", 8, "n2", 2)
        return [Waiting("c1", "s1", "vm/1", "vm", 1, "two writers met", list(one), {"/cpus": 4}, [])][:limit]

    async def decide(self, key: str, shown: str, values: dict[str, Any], by: str) -> Decided:
        if shown != "s1":
            raise StaleContextError(f"stale decision: siblings changed; {key!r} is now s1", self.waiting(1)[0])
        gone = {"path": "/cpus", "value": 4, "origin": "n1", "reason": f"{by} decided otherwise"}
        return Decided("c1", key, values, [gone])

    def metrics(self) -> bytes:
        return b"nova_keys %d\n" % len(self.entries)

    def ready(self) -> tuple[bool, str]:
        return self.is_ready, "serving" if self.is_ready else "replaying the log"

    def chaos_cut(self, peers: list[str]) -> list[str]:
        self.cut = sorted({*self.cut, *peers})
        return self.cut

    def chaos_heal(self) -> list[str]:
        self.cut = []
        return self.cut


class Running:
    """A node on a real port, in a thread of its own."""

    def __init__(self, backend: MemoryBackend, config: NodeConfig, *, shortcut: bool = True) -> None:
        self.backend = backend
        self.config = config
        self._sock = bind(config.http)
        self.port: int = self._sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = make_server(make_app(backend, config, shortcut=shortcut))
        self._thread = threading.Thread(
            target=lambda: uvloop.run(self._server.serve(sockets=[self._sock])), daemon=True
        )

    def start(self) -> None:
        self._thread.start()
        eventually(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._sock.close()
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running(*, shortcut: bool = True, oldest: int = 0, **settings: Any) -> Iterator[Running]:
    config = NodeConfig(**{"name": "n1", "http": "127.0.0.1:0", **settings})
    node = Running(MemoryBackend(oldest), config, shortcut=shortcut)
    node.start()
    try:
        yield node
    finally:
        node.stop()


def eventually(condition: Any, seconds: float = 5.0) -> None:
    """Wait until `condition()` holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
