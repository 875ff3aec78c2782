"""The node: one replica, its peers and its HTTP API on one asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nova._version import __version__
from nova.conflict.healing.checkpoints import Schedule
from nova.errors import CompactedError, LimitError, NovaError, StaleContextError, UnavailableError, UsageError
from nova.metrics import Registry
from nova.runtime import Runtime, seeded, wall_ns
from nova.server.agreement import Agreement
from nova.server.config import NodeConfig, store_config
from nova.server.engines import make_transport
from nova.server.links import Pace
from nova.server.no_group import NoGroup, check_eventual
from nova.server.tls_config import node_tls
from nova.server.upkeep import LIST_MAX, Upkeep
from nova.store.cluster import CODEC, ClusterCore, Notice, Peers
from nova.store.core import Durable
from nova.store.decisions import Decided, Waiting, decide, waiting
from nova.store.directory import Directory
from nova.store.healing import Healing
from nova.store.model import Change, Entry, Put
from nova.store.points import Point, Rollback, chosen, make_point, points, roll_back
from nova.sync.antientropy import AntiEntropyConfig
from nova.sync.gossip import GossipConfig
from nova.sync.membership import Member, MembershipConfig
from nova.sync.retire import RetireConfig
from nova.transport import Identity, Mesh
from nova.transport.tls import Tls

log = logging.getLogger("nova.node")

# `list` below is a method: inside the class, annotations need other names for the type
Puts = list[Put]
Results = list[Entry | Exception]
Entries = list[Entry]
Rows = list[dict[str, Any]]
Names = list[str]
Points = list[Point]
Waits = list[Waiting]

TICK_MS = 100


class Node(Upkeep, NoGroup):
    """Everything behind the HTTP API (its `Backend`). Made by `run`; lives on the running loop.

    Readers never see a write that is not on disk yet: a key that is being committed makes them wait for the commit.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.registry = Registry()
        self.secured = node_tls(config, self.registry)
        self.directory = Directory(
            Path(config.data), node=config.name, cluster=config.cluster, segment_bytes=config.limits.segment_bytes,
            checkpoints_kept=config.limits.checkpoints_kept,
        )  # fmt: skip
        self._started = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._failure: BaseException | None = None
        self._waiters: dict[int, list[asyncio.Future[None]]] = {}
        self._changed = asyncio.Event()
        self._checkpointing = asyncio.Lock()
        self._cut: set[str] = set()
        self.agreement = Agreement(config.name, config.classes)
        self._healings = {}
        try:
            self.replica = self.directory.open(
                region=config.region,
                wall_ns=wall_ns,
                config=store_config(config),
                metrics=self.registry,
            )
        except BaseException:
            self.directory.close()
            raise
        self.pace = Pace(config.sync, self.registry)
        self._schedule = Schedule(config.limits.checkpoint_ms, self.directory.checkpoints.newest())
        self._metrics()

    async def start(self) -> None:
        """Listen for peers, meet the cluster, begin to tick."""
        config = self.config
        random = seeded()
        delays = {region: delay / 1000 for region, delay in config.link_delay_ms.items()}
        identity = Identity(
            node=config.name,
            region=config.region,
            cluster=config.cluster,
            incarnation=self.replica.incarnation,
            address=config.listen,
        )
        self.transport = make_transport(
            config.transport,
            identity,
            key=config.key.encode() if config.key else None,
            tls=self.tls,
            send_delay=(lambda peer: delays.get(peer.region, 0.0)) if delays else None,
        )
        self.mesh = Mesh(
            self.transport,
            identity,
            on_message=self._message,
            on_up=self._peer_up,
            on_down=self._peer_down,
            chance=random,
        )
        self.listen = await self.mesh.listen(config.listen)
        member = Member(
            node=config.name,
            region=config.region,
            address=self.listen,
            incarnation=self.replica.incarnation,
            http=config.http,
            version=__version__,
            classes=tuple(sorted(config.classes.items())),
        )
        self.cluster = ClusterCore(
            self.replica,
            member,
            random=random,
            membership=MembershipConfig(
                tick_ms=TICK_MS,
                probe_ms=config.gossip.probe_ms,
                probe_timeout_ms=config.gossip.probe_timeout_ms,
                suspicion_ms=config.gossip.suspicion_ms,
            ),
            gossip=GossipConfig(
                tick_ms=TICK_MS,
                round_ms=self.pace.round_ms(config.gossip.round_ms),
                push_pull_ms=config.gossip.push_pull_ms,
            ),
            antientropy=AntiEntropyConfig(tick_ms=TICK_MS, period_ms=config.gossip.anti_entropy_ms),
            retire=RetireConfig(tick_ms=TICK_MS),
            witness=self.directory.witness(TICK_MS),
        )
        self.runtime = Runtime(
            self.cluster,
            self.directory.log,
            send=self._send,
            applied=self._applied,
            fatal=self._fatal,
            tick_ms=TICK_MS,
        )
        self.runtime.start()
        for seed in config.join:
            self.mesh.dial(seed)
        self._housekeeper = self._loop.create_task(self._keep_house())

    @property
    def tls(self) -> Tls | None:
        """None: the node is plain."""
        return self.secured.tls if self.secured is not None else None

    def look_at_certificates(self) -> None:
        """Now: somebody says that they have changed."""
        if self.secured is not None:
            self.secured.look(now=True)

    def stopping(self) -> None:
        """Take no more writes, end the watches and the healings."""
        self._stopped.set()
        self._changed.set()
        self.end_healings("this node is stopping; ask another one")

    async def stop(self) -> None:
        """Tell the peers, bring everything to disk, close. Nothing that was acknowledged depends on this."""
        if hasattr(self, "runtime"):
            self._housekeeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._housekeeper
            self.runtime.submit(self.cluster.leave())
            await self.runtime.stop()
            await self.mesh.close()
            await self.transport.close()
            if self._failure is None and self.directory.since_snapshot_bytes > 1 << 20:
                await self._snapshot()
        self.directory.close()

    # -- the API's backend --

    async def put(self, put: Put) -> Entry:
        self._check_writable()
        if self.agreement.differs:
            self.agreement.check(put.key)
        try:
            token, _ = self.replica.put(put)
        except StaleContextError:  # it says what is there, and so waits for the disk like any reader
            await self._durable(self.replica.token_of(put.key))
            raise
        entry = self.replica.get(put.key)
        await self._durable(token)
        return entry

    async def put_many(self, puts: Puts) -> Results:
        self._check_writable()
        results: Results = []
        for number, put in enumerate(puts):
            if number % 500 == 499:  # let heartbeats and other clients through
                await asyncio.sleep(0)
            try:
                if self.agreement.differs:
                    self.agreement.check(put.key)
                self.replica.put(put)
                results.append(self.replica.get(put.key))
            except NovaError as error:
                results.append(error)
        await self._durable(self.replica.newest_token)  # of every write, and of what a refusal tells
        return results

    async def get(self, key: str, consistency: str | None = None) -> Entry:
        if self.agreement.differs:
            self.agreement.check(key)
        check_eventual(consistency)
        token = self.replica.token_of(key)
        try:
            # What it holds now, even if that is nothing; by the time this is on disk there may be newer that is not.
            return self.replica.get(key)
        finally:
            await self._durable(token)

    async def delete(
        self, key: str, context: dict[str, int] | None, conditional: bool, expect: int | None = None
    ) -> Entry:
        if expect is not None:
            raise UsageError(f"{key!r} is eventual and has no version to expect; hand its clock back as context")
        self._check_writable()
        if self.agreement.differs:
            self.agreement.check(key)
        rows = self.replica.space.get(key)
        kind = self.replica.view(rows).kind if rows is not None else ""
        token, write = self.replica.delete(key, context, conditional)
        left = self.replica.space.get(key)
        dot = write.dot
        entry = self.replica.view(left) if left is not None else Entry(
            key, kind, None, write.clock, write.stamp, self.config.name, (dot.actor, dot.count),
            self.replica.space.revision,
        )  # fmt: skip
        await self._durable(token)
        return entry

    async def list(
        self, prefix: str, limit: int, after: str | None, consistency: str | None = None
    ) -> tuple[Entries, str | None]:
        if self.agreement.differs:
            self.agreement.check(prefix)
        check_eventual(consistency)
        entries, following = self.replica.scan(prefix, min(limit, LIST_MAX), after or "")
        await self._durable(self.replica.newest_token)  # of what is shown, and of deletes that let it be missing
        return entries, following

    async def watch(self, since: int | None, prefix: str, kind: str | None = None) -> AsyncIterator[Change | None]:
        if kind not in (None, "eventual"):
            raise UsageError(f"class is {kind!r}; keys of this node are eventual")
        self.agreement.check(prefix)
        seen = self.replica.feed.newest if since is None else since
        if seen > self.replica.space.revision:
            raise UsageError(
                f"since is {seen}, the newest revision of this node is {self.replica.feed.newest}; revisions are a "
                "node's own, and start with /v1/status"
            )
        while not self._stopped.is_set():
            if seen < self.replica.feed.compacted:  # from the start, or because the reader is slower than the writers
                raise CompactedError(
                    f"changes up to revision {self.replica.feed.compacted} are compacted, {seen} was asked for; "
                    "list the keys and watch from the revision of /v1/status",
                    self.replica.feed.compacted,
                )
            changed = self._changed
            changes, newest = self.replica.changes(seen, prefix), self.replica.feed.newest
            # A value may be newer than the change that brought it here, and not on disk yet.
            await self._durable(max((self.replica.token_of(change.key) for change in changes), default=0))
            for change in changes:
                yield change
            seen = max(seen, newest)
            if not changes:
                try:
                    await asyncio.wait_for(changed.wait(), 10)
                except TimeoutError:
                    yield None

    def status(self) -> dict[str, Any]:
        space = self.replica.space
        healthy, _ = self.ready()
        return {
            "name": self.config.name,
            "region": self.config.region,
            "version": __version__,
            "revision": self.replica.feed.newest,
            "digest": self.replica.digest,
            "keys": len(space),
            "peers": len(self.mesh.connected()),
            "healthy": healthy,
            "cluster": self.config.cluster,
            "incarnation": self.replica.incarnation,
            "clock": space.clock,
            "uptime_s": round(time.monotonic() - self._started, 3),
            "conflicts": self.replica.conflicts.total,
            "pending": self.replica.conflicts.pending(),
            "writes_total": space.count(space.actor),
            "rss_bytes": _rss_bytes(),
            "log": {
                "durable": self.directory.log.durable,
                "segments": self.directory.log.segments,
                "bytes": self.directory.log.size_bytes,
            },
            "http": self.config.http,
            "listen": self.listen,
            **({"sync": str(self.pace.sync.mode)} if self.pace.configured else {}),
            **({"tls": self.secured.status()} if self.secured is not None else {}),
        }

    def peers(self) -> Rows:
        out = []
        links = self.mesh.stats()
        for node, member in sorted(self.cluster.membership.members.items()):
            if node == self.config.name:
                continue
            link = links.get(node)
            out.append(
                {
                    "node": node,
                    "region": member.region,
                    "address": member.address,
                    "http": member.http,
                    "state": member.state,
                    "incarnation": member.incarnation,
                    "connected": link.connected if link else False,
                    "rtt_ms": link.rtt_ms if link else None,
                    "lag_ops": self.cluster.lag(node),
                    "sent_bytes": link.sent_bytes if link else 0,
                    "received_bytes": link.received_bytes if link else 0,
                    "queue_bytes": link.queue_bytes if link else 0,
                    "encrypted": self.secured is not None and link is not None and link.connected,
                }
            )
        return out

    async def conflicts(
        self, *, limit: int, after: str | None, type: str | None, strategy: str | None, key: str | None
    ) -> dict[str, Any]:
        page = self.replica.conflicts.page(min(limit, LIST_MAX), after, type, strategy, key)
        await self._durable(self.replica.newest_token)
        return page

    async def why(self, key: str) -> dict[str, Any]:
        story = self.replica.why(key, self.directory.story(key))
        await self._durable(self.replica.newest_token)
        return story

    def points(self, key: str) -> Points:
        return points(self.directory.audit, key)

    async def make_point(self, key: str, note: str) -> str:
        self._check_writable()
        token, point = make_point(self.replica, key, note)
        await self._durable(token)
        return point

    async def rollback(self, key: str, to: str, context: dict[str, int] | None, by: str) -> Rollback:
        self._check_writable()
        self.agreement.check(key)
        event = chosen(self.directory.audit, key, to)
        token, done = roll_back(self.replica, key, event, context, by)
        await self._durable(token)
        return done

    def waiting(self, limit: int) -> Waits:
        return waiting(self.replica, limit)

    async def decide(self, key: str, shown: str, values: dict[str, Any], by: str) -> Decided:
        self._check_writable()
        self.agreement.check(key)
        token, done = decide(self.replica, key, shown, values, by)
        await self._durable(token)
        return done

    def metrics(self) -> bytes:
        return self.registry.render()

    def ready(self) -> tuple[bool, str]:
        if self._failure is not None:
            return False, f"storage failed: {self._failure}"
        if self._stopped.is_set():
            return False, "stopping"
        return True, "ok"

    def chaos_cut(self, peers: Names) -> Names:
        self._cut |= set(peers)
        self.mesh.cut(self._cut)
        return sorted(self._cut)

    def chaos_heal(self) -> Names:
        self._cut.clear()
        self.mesh.heal()
        return []

    # -- the driver's side --

    def _send(self, peer: str, message: Any) -> None:
        try:
            self.mesh.send(peer, CODEC.encode(message))
        except LimitError as error:  # lost, as any message may be; the peer asks again for what it lacks
            log.error("a message for %s is not sent: %s", peer, error)

    def _message(self, peer: str, payload: memoryview) -> None:
        self.runtime.received(peer, CODEC.decode(payload))

    def _peer_up(self, peer: Identity) -> None:
        log.info("peer %s (%s) is connected", peer.node, peer.region)
        self.runtime.submit(
            # As of incarnation 0: what the peer says of itself, a moment later, is more and shall count.
            self.cluster.met(Member(peer.node, 0, region=peer.region, address=peer.address))
        )

    def _peer_down(self, peer: Identity, reason: str) -> None:
        log.info("peer %s is gone: %s", peer.node, reason)
        if not self._stopped.is_set():
            self.runtime.submit(self.cluster.lost(peer.node))

    def _applied(self, event: Any) -> None:
        if isinstance(event, Durable):
            self.replica.applied(event)
            for token in [token for token in self._waiters if token <= event.token]:
                for waiter in self._waiters.pop(token):
                    if not waiter.done():
                        waiter.set_result(None)
            self._changed.set()
            self._changed = asyncio.Event()
            try:
                self.directory.applied(event)
            except NovaError as error:
                self._fatal(error)
        elif isinstance(event, Peers):
            self.mesh.set_peers(event.addresses)
            for line in self.agreement.heard(self.cluster.membership.members):
                log.warning("%s", line)
        elif isinstance(event, Healing):
            if (ended := self._healings.get(event.node)) is not None and not ended.done():
                ended.set_result(event)
        elif isinstance(event, Notice):
            log.log(logging.WARNING if event.bad else logging.INFO, "%s", event.text)

    async def _durable(self, token: int) -> None:
        if token <= self.replica.durable_token:
            return
        if self._failure is not None:  # nobody would wake us
            raise self._not_acknowledged(self._failure)
        waiter = self._loop.create_future()
        self._waiters.setdefault(token, []).append(waiter)
        self.runtime.wake()
        await waiter

    def _check_writable(self) -> None:
        if self._failure is not None:
            raise UnavailableError(f"this node takes no writes: storage failed ({self._failure}); restart it", 10**10)
        if self._stopped.is_set():
            raise UnavailableError("this node is stopping; ask another one")

    def _fatal(self, error: BaseException) -> None:
        if self._failure is not None:
            return
        log.critical("storage failed, no write is taken any more: %s", error)
        self._failure = error
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(self._not_acknowledged(error))
        self._waiters.clear()
        self.end_healings(f"storage failed: {error}; restart the node")

    def _not_acknowledged(self, error: BaseException) -> UnavailableError:
        return UnavailableError(
            f"storage failed: {error}; the newest write of this key is not acknowledged, restart the node", 10**10
        )

    def _look_at_links(self) -> None:
        if self.secured is not None:
            self.secured.look()
        rtts = (link.rtt_ms for link in self.mesh.stats().values() if link.connected)
        if self.pace.configured and (round_ms := self.pace.look(time.monotonic_ns(), rtts)) is not None:
            log.info("the network counts as %s: clocks are told every %d ms", self.pace.sync.mode, round_ms)
            self.cluster.gossip.pace(round_ms)

    def _metrics(self) -> None:
        space, replica = self.replica.space, self.replica
        gauge = self.registry.gauge
        gauge("nova_keys", "Keys that hold a value", function=lambda: len(space))
        gauge("nova_rows", "Live rows of all keys", function=lambda: space.rows_live)
        gauge("nova_revision", "Operations applied, of all writers", function=lambda: space.revision)
        gauge("nova_clock_entries", "Entries of this node's clock: lives of nodes that may still write, and floors",
              function=lambda: len(replica.clock()))  # fmt: skip
        gauge("nova_actors_retired", "Retired actors that rows or the memory of this process still name",
              function=lambda: space.retired_count)  # fmt: skip
        gauge("nova_retirement_blocked_by", "Members whose word is missing before earlier lives of this node retire",
              function=lambda: len(self.cluster.retirement.waits_for()))  # fmt: skip
        gauge("nova_writes_total", "Operations written by this node since it started",
              function=lambda: space.count(space.actor))  # fmt: skip
        gauge("nova_log_durable_position", "Newest log record on disk", function=lambda: self.directory.log.durable)
        gauge("nova_log_since_snapshot_bytes", "Log that a restart replays",
              function=lambda: self.directory.since_snapshot_bytes)  # fmt: skip
        gauge("nova_checkpoint_newest_seconds", "Unix time of the newest checkpoint, 0 if there is none",
              function=lambda: self._schedule.newest_ms / 1000)  # fmt: skip
        self._checkpoint_results = self.registry.counter(
            "nova_checkpoints_total", "Checkpoints that were tried since the node started", ["result"]
        )
        gauge("nova_classes_differ", "Nodes that have other classes of keys than this one",
              function=lambda: len(self.agreement))  # fmt: skip
        gauge("nova_peers_connected", "Peers with a live session", function=lambda: len(self.mesh.connected()))
        gauge("nova_resident_bytes", "Resident memory of the process", function=_rss_bytes)


def _rss_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        return 0


__all__ = ["Node"]
