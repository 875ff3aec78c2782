"""The store inside one process: blocking calls, durable when they return. The library's face."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from nova.conflict.audit import AuditLog, Retention
from nova.conflict.healing.checkpoints import Checkpoint, Schedule
from nova.conflict.policy import Policy
from nova.errors import KeyNotFoundError, PeerError, UnavailableError, UsageError
from nova.runtime import wall_ns
from nova.storage.base import Log
from nova.storage.log import FileLog
from nova.storage.pipeline import Pipeline
from nova.store.checkpoints import KEPT
from nova.store.classes import KeyClass, KeyClasses, merged
from nova.store.core import Durable, Replica, StoreConfig
from nova.store.decisions import Decided, Waiting, decide, waiting
from nova.store.directory import STORY_MAX, Directory
from nova.store.model import Change, Entry, Put
from nova.store.points import Point, Rollback, chosen, make_point, points, roll_back
from nova.store.recovery import as_of
from nova.types import Actor, Outputs

if TYPE_CHECKING:
    from nova.metrics import Registry
    from nova.store.ordered import Ordered
    from nova.store.strong import GroupOptions, Transacted
    from nova.store.strong.commands import Condition, Operation

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
    classes      key prefix -> class (`eventual`, `strong`, `hybrid`), of which the longest prefix of a key decides; all
                 but eventual need a directory
    peers        of a group of strong keys: name -> HOST:PORT of every member, this store included; none: it is the only
                 one, and listens nowhere
    regions      of hybrid keys: region -> (name -> HOST:PORT) of all members; none: this store is all of its region,
                 and there is no other
    key          that peers prove to each other, 32 bytes or more; None only on loopback
    group, region_group  further options of these two
    metrics      where `nova_consensus_*` of both groups go
    raises       UsageError if the directory is in use or belongs to another node or a newer release, or if a group
                 can't be; CorruptionError if its log is damaged

    Calls return when their writes are on disk: those of strong and hybrid keys on the disks of a majority. What is
    eventual is not for use from several threads at once; strong and hybrid keys are. Theirs raise UnavailableError if
    there is no majority, and UnknownOutcomeError if nobody knows what became of a change: it was made once or not at
    all, perhaps later. Such a store owns a thread, so open it behind a `fork`, and close it.

    A cluster of these, with transport, membership and an HTTP API, is `nova serve`; the eventual keys of two in one
    program meet through `sync_with`.
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
        classes: Mapping[str, str] | None = None,
        peers: Mapping[str, str] | None = None,
        regions: Mapping[str, Mapping[str, str]] | None = None,
        key: bytes | None = None,
        group: GroupOptions | None = None,
        region_group: GroupOptions | None = None,
        metrics: Registry | None = None,
    ) -> None:
        self.classes = KeyClasses(classes)
        ordered = any(self.classes.uses(kind) for kind in (KeyClass.STRONG, KeyClass.HYBRID))
        if ordered and data is None:
            raise UsageError(
                f"classes are {self.classes.plain()}, and a store in memory has no log that could order anything; open "
                "it with a directory: ReplicatedStore(data=...)"
            )
        for name, given, kind in (("peers", peers, KeyClass.STRONG), ("regions", regions, KeyClass.HYBRID)):
            if given and not self.classes.uses(kind):
                raise UsageError(f"{name} are given, and no prefix is {kind}; name one in classes")
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
        self._ordered: Ordered | None = None
        if ordered:
            assert data is not None
            try:
                self._ordered = _ordered(
                    Path(data), self.classes, node=node, region=region, cluster=cluster, peers=peers or {},
                    regions=regions or {}, key=key, group=group, region_group=region_group, config=config,
                    metrics=metrics,
                )  # fmt: skip
            except BaseException:
                self.close()
                raise

    def put(
        self,
        key: str,
        value: Any,
        *,
        kind: str | None = None,
        merge: bool = False,
        context: dict[str, int] | None = None,
        conditional: bool = False,
        expect: int | None = None,
    ) -> Entry:
        """Write a key and return what it holds then; see `nova.store.Put` for the arguments. One fsync.

        raises  StaleContextError if a strong or hybrid key has another version than `expect`; or for `conditional`
        """
        put = Put(key, value, kind, merge, context, conditional, expect)
        if (ordered := self._of(key)) is not None:
            return ordered.put(put)
        self.replica.put(put)
        self._commit()
        return self.replica.get(key)

    def put_many(self, puts: Iterable[Put | tuple[str, Any]]) -> int:
        """Write many keys with one fsync; returns how many. All are checked and applied in order; the first wrong one
        raises, and those before it are kept.

        Strong and hybrid keys among them are written when all others are durable, at once but for those of one key,
        which keep their order; if one is refused, the others are tried all the same.
        """
        count = 0
        later: list[Put] = []
        try:
            for item in puts:
                put = item if isinstance(item, Put) else Put(item[0], item[1])
                if self._of(put.key) is not None:
                    later.append(put)
                else:
                    self.replica.put(put)
                count += 1
        finally:
            self._commit()
        if later:
            assert self._ordered is not None
            self._ordered.put_many(later)
        return count

    def get(self, key: str, *, consistency: str | None = None) -> Entry:
        """What a key holds. Raises KeyNotFoundError.

        consistency  of strong and hybrid keys: `linearizable` (None, but for what other regions own), `lease` or
                     `local`; see `nova.store.strong.StrongKeys.get`
        """
        if (ordered := self._of(key)) is not None:
            return ordered.get(key, consistency)
        _check_local(consistency)
        return self.replica.get(key)

    def delete(
        self,
        key: str,
        *,
        context: dict[str, int] | None = None,
        conditional: bool = False,
        expect: int | None = None,
    ) -> None:
        """Remove a key; concurrent writes that `context` does not know survive. Raises KeyNotFoundError.

        expect  of a strong or hybrid key: the version that it has to have
        """
        if (ordered := self._of(key)) is not None:
            ordered.delete(key, context, conditional, expect)
            return
        if expect is not None:
            raise UsageError(f"{key!r} is eventual and has no version to expect; hand its clock back as context")
        self.replica.delete(key, context, conditional)
        self._commit()

    def transact(self, key: str, conditions: Sequence[Condition], operations: Sequence[Operation]) -> Transacted:
        """Carry out operations on one strong or hybrid key if all conditions hold: all of them or none, and nothing in
        between; both are of `nova.store.strong`.

        raises  StaleContextError for a condition that does not hold, UsageError for an operation that can't be
        """
        if (ordered := self._of(key)) is None:
            raise UsageError(f"{key!r} is eventual; transactions are for keys of class strong or hybrid")
        return ordered.transact(key, conditions, operations)

    def scan(
        self, prefix: str = "", limit: int = 100, after: str = "", *, consistency: str | None = None
    ) -> tuple[list[Entry], str | None]:
        """A page of entries in order of key, and the key after which the next page starts, None at the end.

        consistency  of the strong and hybrid keys among them, as `get`
        """
        below = self.classes.below(prefix)
        if below == {KeyClass.EVENTUAL}:
            _check_local(consistency)
            return self.replica.scan(prefix, limit, after)
        assert self._ordered is not None
        pages: list[tuple[list[Entry], str | None]] = []
        for kind in sorted(below):
            if kind is KeyClass.EVENTUAL:
                found, more = self.replica.scan(prefix, limit, after)
                pages.append(([entry for entry in found if self.classes.of(entry.key) is kind], more))
            else:
                pages += self._ordered.pages(kind, prefix, limit, after, consistency)
        return merged(pages, limit)

    def changes(self, since: int = 0, prefix: str = "", *, kind: str | None = None) -> list[Change]:
        """What changed after a revision: of eventual keys each once, of strong and hybrid ones every change.

        kind    the class, where there may be keys of several below the prefix: their revisions are numbered apart
        raises  CompactedError if it is too long ago
        """
        chosen = self.classes.watched(prefix, kind)
        if chosen is KeyClass.EVENTUAL:
            found = self.replica.changes(since, prefix)
            return [change for change in found if self.classes.of(change.key) is chosen] if self.classes else found
        return self._group(chosen).changes(chosen, since, prefix)

    def watch(
        self,
        prefix: str = "",
        since: int | None = None,
        *,
        kind: str | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Change]:
        """Every change of strong keys, or of the hybrid ones of one region, behind a revision (None: from now on), in
        order and without gaps, as it is applied here.

        kind       the class, as `changes`
        timeout_s  end when none has come for so long; None: wait for ever
        raises     CompactedError if it is too long ago, UsageError for a revision that no change has, UnavailableError
                   when the member stops. UsageError for eventual keys: they change by calls on this store alone
        """
        chosen = self.classes.watched(prefix, kind)
        if chosen is KeyClass.EVENTUAL:
            raise UsageError(
                f"keys below {prefix!r} are eventual, and change only when this store is told to: ask changes({since})"
            )
        return self._group(chosen).watch(chosen, since, prefix, timeout_s)

    def conflicts(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest conflicts, with what was settled and what was discarded."""
        conflicts: list[dict[str, Any]] = self.replica.conflicts.page(limit)["conflicts"]
        return conflicts

    def why(self, key: str) -> dict[str, Any]:
        """Why a key holds what it holds; `text` says it in sentences."""
        if (ordered := self._of(key)) is not None:
            return ordered.why(key)
        return self.replica.why(key, self.audit.latest(STORY_MAX, resource=key))

    def point(self, key: str, note: str = "") -> str:
        """Keep what a key holds now as a rollback point; its id. One fsync. Raises KeyNotFoundError."""
        self.classes.only_eventual(key, "has no rollback points")
        _, point = make_point(self.replica, key, note)
        self._commit()
        return point

    def points(self, key: str) -> list[Point]:
        """The newest rollback points of a key that were made here, at most 100, oldest first."""
        self.classes.only_eventual(key, "has no rollback points")
        return points(self.audit, key)

    def rollback(self, key: str, to: str, *, context: Mapping[str, int] | None = None, by: str = "") -> Rollback:
        """Bring a key back to a point, by a new write that dominates what `context` (None: what is here) knows.

        to      id of a point of this key, or the beginning of it
        raises  KeyNotFoundError if there is no such point; see `nova.store.points.roll_back`
        """
        self.classes.only_eventual(key, "has no rollback points")
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
        self.classes.only_eventual(key, "never has conflicts to decide")
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
        return len(self.replica.space) + (0 if self._ordered is None else len(self._ordered))

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str) or (ordered := self._of(key)) is None:
            return isinstance(key, str) and self.replica.space.get(key) is not None
        try:
            ordered.get(key, None)
        except KeyNotFoundError:
            return False
        return True

    # -- the group of the strong keys --

    def consensus(self) -> dict[str, Any]:
        """How the group of the strong keys stands, as this member sees it: leader, members, epochs, revision."""
        return self._group(KeyClass.STRONG).status()

    def consensus_add(self, node: str, address: str | None = None, *, learner: bool = False) -> None:
        """Let another store, that has been opened, learn what there is, and then vote. Ask the leader.

        address    its HOST:PORT, if it is new
        raises     NotLeaderError with who leads; see `nova.store.strong.StrongMember.add`
        """
        ordered = self._group(KeyClass.STRONG)
        ordered.run(ordered.member.add(node, address, learner=learner))

    def consensus_remove(self, node: str) -> None:
        """Take a member out. Ask the leader; it may be the leader itself."""
        ordered = self._group(KeyClass.STRONG)
        ordered.run(ordered.member.remove(node))

    def consensus_transfer(self, node: str) -> None:
        """Hand leadership to a voter. Ask the leader."""
        ordered = self._group(KeyClass.STRONG)
        ordered.run(ordered.member.transfer(node))

    def consensus_switch(
        self, protocol: str, members: Sequence[str] = (), addresses: Mapping[str, str] | None = None
    ) -> None:
        """Go on with another protocol (raft, paxos, epaxos), or among others, while keys are read and written."""
        ordered = self._group(KeyClass.STRONG)
        ordered.run(ordered.member.switch(protocol, members, addresses))

    # -- the group of the hybrid keys --

    def regions(self) -> dict[str, Any]:
        """How the keys of all regions stand here: the leader of the own one, members and revisions by region."""
        return self._group(KeyClass.HYBRID).region_status()

    def region_add(self, node: str, address: str | None, region: str) -> None:
        """Let another store, that has been opened, keep hybrid keys and vote in a region; ask any member.

        See `nova.store.strong.RegionMember.add`.
        """
        ordered = self._group(KeyClass.HYBRID)
        ordered.run(ordered.region_member.add(node, address, region))

    def region_remove(self, node: str, region: str) -> None:
        """Take a member of a region out; ask any member."""
        ordered = self._group(KeyClass.HYBRID)
        ordered.run(ordered.region_member.remove(node, region))

    def _of(self, key: str) -> Ordered | None:
        """What has this key, if its class is not eventual."""
        return self._ordered if self._ordered is not None and self._ordered.has(key) else None

    def _group(self, kind: KeyClass) -> Ordered:
        if self._ordered is None or not self.classes.uses(kind):
            raise UsageError(f"this store has no {kind} keys; give it classes: {{PREFIX: {str(kind)!r}}}")
        return self._ordered

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
        """What this store held of eventual keys at a time, Unix milliseconds, as a store in memory under another name.

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
        try:
            if self._ordered is not None:
                self._ordered.close()
        finally:
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


def _check_local(consistency: str | None) -> None:
    """Eventual keys are read where the question comes. Raises UsageError."""
    if consistency not in (None, "local"):
        raise UsageError(f"consistency is {consistency!r}, but the key is eventual and read locally; leave it out")


def _ordered(data: Path, classes: KeyClasses, *, group: Any, region_group: Any, **given: Any) -> Ordered:
    """Loaded on use: most stores have no group, and the engine costs a start."""
    from nova.store.ordered import Ordered
    from nova.store.strong import GroupOptions

    return Ordered(data, classes, group=group or GroupOptions(), region_group=region_group or GroupOptions(), **given)
