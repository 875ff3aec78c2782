"""Coming back: a data directory as of a time under a new identity, and two stores that went apart made equal again."""

from __future__ import annotations

import os
import shutil
from collections import deque
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from nova.conflict.healing.checkpoints import Checkpoint, Rebuilt, reachable, rebuild, stamp_limit
from nova.conflict.metrics import ConflictMetrics
from nova.crdt.keyspace import Keyspace, batch_head
from nova.errors import CorruptionError, PeerError, UsageError
from nova.storage.base import Log
from nova.storage.catalog import Catalog, Identity
from nova.storage.log import FileLog, sync_directory
from nova.storage.snapshot import FileSnapshots
from nova.store.checkpoints import KEPT, Checkpoints
from nova.store.core import AUDIT, BATCH, RETIRED, STATE, Replica, StoreConfig, node_of
from nova.store.directory import Directory, counted
from nova.store.model import Entry
from nova.sync.antientropy import AntiEntropy, AntiEntropyConfig, Joined
from nova.types import NodeId, Outputs


def as_of(
    log: Log, checkpoints: Checkpoints, snapshots: FileSnapshots | None, node: str, at_ms: int | None
) -> tuple[Replica, Rebuilt]:
    """The state as of a time (None: the newest) under a new identity, built from a checkpoint and the log behind it.

    Batches of writes are taken whole, by the newest stamp in them. So are states that were joined from a peer: their
    parts have one record.

    raises  UnavailableError if the log does not reach back that far; CorruptionError if a checkpoint or a record is
            not what was written; UsageError if writes of `node` are in there already
    """
    replica, done = _built(log, checkpoints, snapshots, node, at_ms)
    if any(node_of(actor) == node for actor in replica.space.clock):
        raise UsageError(f"node {node!r} wrote into this state; a copy needs a name of its own that never wrote here")
    replica.recovered()
    for key, rows in replica.space.entries.items():
        replica.conflicts.index(key, rows)
    return replica, done


def held_at(
    log: Log, checkpoints: Checkpoints, snapshots: FileSnapshots, key: str, at_ms: int, config: StoreConfig
) -> Entry:
    """What a key held at a time, settled as `config` says now; may run beside the node whose log this is.

    raises  KeyNotFoundError if it held nothing; UnavailableError if the log and the checkpoints do not reach back
    cost    that of a restart at that time: a state, and the records behind it, and memory for both; not the key alone
    """
    replica, _ = _built(log, checkpoints, snapshots, "past", at_ms, config)
    return replica.get(key)


def _built(
    log: Log,
    checkpoints: Checkpoints,
    snapshots: FileSnapshots | None,
    node: str,
    at_ms: int | None,
    config: StoreConfig | None = None,
) -> tuple[Replica, Rebuilt]:
    limit = (1 << 64) - 1 if at_ms is None else stamp_limit(at_ms)
    known = checkpoints.known()
    found = snapshots.load() if snapshots is not None else None
    if found is not None:
        replica = _empty(node)
        replica.restore(found[1])
        known.append(Checkpoint(found[0], 0, replica.space.stamp_max, node, 0, len(replica.space), replica.digest))
    start = reachable(log.first, known, limit)
    loaded = None
    if start is not None:
        loaded = (start, found[1]) if found is not None and start is known[-1] else checkpoints.load(start.position)
        if log.last < start.position:
            raise CorruptionError(
                f"the log ends at record {log.last}, but a checkpoint covers {start.position}: log files are missing; "
                "put them back, or restore from a replica"
            )
    past = _Past(_empty(node, config), limit)
    records = log.replay(1 if start is None else start.position + 1)
    return past.replica, rebuild(past, loaded, records, take=None if at_ms is None else past.take)


class _Past:
    """Builds a state from what holds nothing over a stamp."""

    def __init__(self, replica: Replica, limit: int) -> None:
        self.replica = replica
        self._limit = limit
        self._passed_over = False

    @property
    def digest(self) -> str:
        return self.replica.digest

    def restore(self, state: bytes) -> None:
        self.replica.restore(state)

    def replay(self, record: bytes) -> None:
        if record[:1] != AUDIT:  # the copy has a trail of its own
            self.replica.replay(record)

    def take(self, record: bytes) -> bool:
        """Take a record unless it holds what is newer, or depends on such. Raises CorruptionError."""
        if self._takes(record[:1], record[1:]):
            return True
        self._passed_over = True
        return False

    def _takes(self, tag: bytes, data: bytes) -> bool:
        space = self.replica.space
        if tag == BATCH:
            try:
                if space.receive(data, self._limit) is not None:
                    return True
            except PeerError:  # a newer stamp: what the log gave is whole
                return False
            return self._lacks(f"a batch of {batch_head(data).origin}")
        if tag == STATE:
            before = space.state()
            if space.join(data) is None:
                return self._lacks("a difference")
            if space.stamp_max > self._limit:
                self.replica.space = Keyspace(space.actor)
                self.replica.space.join(before)
                return False
        elif tag == RETIRED:
            space.retire(*msgspec.msgpack.decode(data))
        elif tag != AUDIT:
            raise CorruptionError(
                f"the log holds a record of type {tag!r}; a newer release wrote it: upgrade this node"
            )
        return True

    def _lacks(self, what: str) -> bool:
        """It depends on what was passed over; where nothing was, the log or the checkpoint has lost something."""
        if self._passed_over:
            return False
        raise CorruptionError(f"the log holds {what} without what it depends on; restore from a replica")


def _empty(node: str, config: StoreConfig | None = None) -> Replica:
    """What a state is built in. No incarnation 0 ever writes, so whatever is in the state, others wrote it."""
    return Replica(node, incarnation=0, wall_ns=lambda: 0, config=config)


class Restored(msgspec.Struct, frozen=True):
    """A data directory was made of another one.

    source      the node that it came from
    torn_bytes  what a crash had left at the end of the source's log: never acknowledged, and dropped
    """

    node: str
    cluster: str
    source: str
    keys: int
    torn_bytes: int
    rebuilt: Rebuilt


def restore(
    source: str | Path,
    into: str | Path,
    *,
    node: str,
    cluster: str | None = None,
    at_ms: int | None = None,
    digest: str = "",
    metrics: ConflictMetrics | None = None,
) -> Restored:
    """Make a data directory for a new node with the state of another one's, as of a time.

    The source is only read, but for what a crash had left half-written at the end of its log. `into` appears when it is
    complete and durable, or not at all. The copy begins an audit trail of its own; that of the source stays with it.

    node     the new one's name: its writes must never be taken for those of the node that it is a copy of
    cluster  None: the source's. A node of the same cluster hears of all that happened since; for the past give another
    at_ms    Unix time; None: the newest state
    digest   what the state must have, hex; "" if nobody knows
    metrics  where the attempt and its time are counted, as type `restore`
    raises   UsageError if the source is no data directory or in use, `into` is not empty, or the name is not new;
             CorruptionError if the state has another digest; else as `as_of`
    """
    with counted(metrics, "restore"):
        return _restore(Path(source), Path(into), node, cluster, at_ms, digest)


def _restore(source: Path, into: Path, node: str, cluster: str | None, at_ms: int | None, digest: str) -> Restored:
    owner = _owner(source)
    if into.exists() and not (into.is_dir() and not any(into.iterdir())):
        raise UsageError(f"{into} is not empty; name a directory that is not there yet")
    if owner.node == node:
        raise UsageError(f"{source} belongs to node {node!r}; give the copy a name of its own")
    with FileLog(source / "log") as log:
        replica, rebuilt = as_of(log, Checkpoints(source), FileSnapshots(source / "snapshots"), node, at_ms)
        torn_bytes = log.recovered.dropped_bytes
    if digest and rebuilt.digest != digest:
        raise CorruptionError(f"the state has digest {rebuilt.digest}, not {digest}; give another time, or source")
    # Under another name first: a directory that holds an identity but not yet the state would start as an empty node.
    part = into.with_name(f"{into.name}.part-{os.getpid()}")
    if part.exists():
        raise UsageError(f"{part} is what a restore left that was killed; delete it")
    made = Directory(part, node=node, cluster=cluster or owner.cluster)
    try:
        made.save_snapshot(0, replica.snapshot())
        made.close()
        sync_directory(part)
        part.rename(into)
        sync_directory(into.parent)
    except BaseException:
        made.close()
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Restored(node, cluster or owner.cluster, owner.node, len(replica.space), torn_bytes, rebuilt)


def take_checkpoint(data: str | Path, now_ms: int, *, kept: int = KEPT) -> Checkpoint:
    """A checkpoint of the newest state of a node that is stopped; see `ReplicatedStore.checkpoint` for one that runs.

    raises  UsageError if this is no data directory or in use; else as `as_of`
    """
    path = Path(data)
    owner = _owner(path)
    with FileLog(path / "log") as log:
        checkpoints = Checkpoints(path, kept=kept)
        replica, _ = _built(log, checkpoints, FileSnapshots(path / "snapshots"), owner.node, None)
        return checkpoints.take(replica, log.last, now_ms)


def list_checkpoints(data: str | Path) -> list[Checkpoint]:
    """The checkpoints of a data directory, oldest first. Raises UsageError if it is none."""
    _owner(Path(data))
    return Checkpoints(Path(data)).known()


def owner_of(data: str | Path) -> Identity:
    """Whose data directory this is. Raises UsageError if it is none."""
    return _owner(Path(data))


def _owner(data: Path) -> Identity:
    if not (data / "log").is_dir() or not (data / "catalog.sqlite").is_file():
        raise UsageError(f"{data} holds no log; name the data directory of a node that is stopped")
    with Catalog(data / "catalog.sqlite") as catalog:
        owner = catalog.identity()
    if owner is None:
        raise UsageError(f"{data} belongs to no node: it was never used; name another data directory")
    return owner


# ------------------------------------------------------------------------------------------------ partitions


class Healed(msgspec.Struct, frozen=True):
    """Two replicas hold the same again.

    exchanged    whether they differed at all
    messages     how many went either way, and the bytes of all of them
    state_bytes  of these, parts of a state: only what one side lacked
    digest       of both states, hex
    """

    exchanged: bool
    messages: int
    sent_bytes: int
    state_bytes: int
    digest: str


def heal(left: Any, right: Any) -> Healed:
    """Bring two stores together after a partition: compare digests, send what differs, join, and compare again.

    Conflicts that come to light are settled and recorded by each store, alike. A second heal changes nothing.

    left, right  ReplicatedStore of different nodes, each with what it wrote
    raises       UsageError if both are one node; CorruptionError if the states differ though both know the same
    cost         what differs, plus a sketch of the rest; see nova.sync.antientropy

    Counted as a recovery of type `heal` in the metrics of `left`.
    """
    with counted(left.replica.conflicts.metrics, "heal"):
        return _heal(left, right)


def _heal(left: Any, right: Any) -> Healed:
    names = (left.replica.node, right.replica.node)
    if names[0] == names[1]:
        raise UsageError(f"both stores are node {names[0]!r}; a copy of a store takes a name of its own")
    stores = dict(zip(names, (left, right), strict=True))
    cores = {}
    for name, other in (names, names[::-1]):
        cores[name] = AntiEntropy(name, stores[name].replica, config=AntiEntropyConfig(), random=Random(0))
        cores[name].set_peers([other])
    queue: deque[tuple[NodeId, NodeId, Any]] = deque()
    messages = sent_bytes = state_bytes = 0

    def take(name: NodeId, outputs: Outputs) -> None:
        nonlocal messages, sent_bytes, state_bytes
        for event in outputs.apply:
            if isinstance(event, Joined):
                state_bytes += event.bytes
        for peer, message in outputs.send:
            messages += 1
            sent_bytes += len(msgspec.msgpack.encode(message))
            queue.append((name, peer, message))
        outputs.send = []
        outputs.apply = [event for event in outputs.apply if not isinstance(event, Joined)]
        stores[name].submit(outputs)

    exchanged = left.digest != right.digest or left.clock != right.clock
    if exchanged:
        for name in names:
            take(name, cores[name].sync(names[1 - names.index(name)]))
            while queue:
                sender, peer, message = queue.popleft()
                take(peer, cores[peer].step(sender, message))
    if left.digest != right.digest or left.clock != right.clock:
        raise CorruptionError(
            f"{names[0]} and {names[1]} know the same and hold other states, {left.digest} and {right.digest}: memory, "
            "disk or program of one of them is at fault; restore it from a third"
        )
    return Healed(exchanged, messages, sent_bytes, state_bytes, left.digest)
