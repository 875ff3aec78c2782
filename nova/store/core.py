"""A replica as a state machine: writes and messages in, records, messages and events out. It does no I/O.

The same object runs on the network (`nova.runtime`), alone in a process (`ReplicatedStore`) and in `nova.sim`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from nova.clock import HybridLogicalClock
from nova.conflict import vm
from nova.conflict.audit import AuditEvent
from nova.conflict.detect import MISSING
from nova.conflict.policy import Policy
from nova.conflict.semantics import SemanticRule
from nova.crdt.keyspace import Entry as Rows
from nova.crdt.keyspace import Keyspace, Row, Write, batch_head
from nova.errors import CorruptionError, KeyNotFoundError, LimitError, StaleContextError, UnavailableError, UsageError
from nova.metrics import Registry
from nova.store.conflicts import VM, Conflicts
from nova.store.history import Feed, History
from nova.store.invariants import StoreInvariant
from nova.store.kinds import BY_CODE, KINDS, Kind, kind_named
from nova.store.model import Change, Entry, Put, Sibling
from nova.sync.retire import ALL, FLOOR, TOTAL, floors, tidy
from nova.types import Actor, NodeId, Outputs, Region

BATCH, STATE, AUDIT, RETIRED = b"\x01", b"\x02", b"\x03", b"\x04"
"""First byte of a log record: operations of one actor, a joined state, an event of the audit chain, a raised floor."""

REGISTER = KINDS["register"].code

_pack = msgspec.msgpack.Encoder(order="deterministic").encode
_unpack = msgspec.msgpack.Decoder().decode


_PLACING = frozenset(("/power_state", *vm.PLACES))


class StoreConfig(msgspec.Struct, frozen=True):
    """What a store is told about its keys and its limits.

    kinds       prefix -> kind of the keys below it; the longest prefix wins
    strategies  prefix -> strategy for their conflicts; else the kind's: `semantic` for vm, `lww` for the others
    policies    prefix -> policy, beside `strategies`: of both the longest prefix decides, of equal ones the strategy
    voters      whom the strategy `consensus_vote` asks (a policy names its own); a majority of all of them decides
    vote_timeout_ms  after as long without a majority `vote_otherwise` decides; 0: they are waited for
    vote_otherwise  the strategy for a tie or a time-out; what it gives is shown meanwhile. `manual`: somebody decides
    escalate    who is told of a conflict that waits for somebody: one after the other, each `escalate_ms` later
    invariants  truths about many keys, checked as they change; see nova.store.invariants
    semantics   rules about parts of one key; see nova.store.semantics
    audit_key   up to 64 bytes that the hashes of the audit chain depend on; b"" for none
    """

    kinds: dict[str, str] = {}
    strategies: dict[str, str] = {}
    policies: dict[str, Policy] = {}
    key_bytes_max: int = 1024
    value_bytes_max: int = 256 * 1024
    history_bytes: int = 64 * 1024 * 1024
    feed_count: int = 65_536
    conflicts_count: int = 10_000
    siblings_max: int = 64
    drift_ms_max: int = 60_000
    audit_key: bytes = b""
    invariants: tuple[StoreInvariant, ...] = ()
    semantics: tuple[SemanticRule, ...] = ()
    voters: tuple[str, ...] = ()
    vote_timeout_ms: int = 10_000
    vote_otherwise: str = "lww"
    escalate: tuple[str, ...] = ()
    escalate_ms: int = 3_600_000


class Durable(msgspec.Struct, frozen=True):
    """Event: what this token stands for is on disk. Whoever waits for a write with this token may be answered."""

    token: int
    clock: dict[Actor, int]
    changes: list[tuple[int, str]]
    batch: bytes | None
    audit: list[bytes]


class Replica:
    """Rows, clock, history, conflicts: everything about the state, nothing about who else is out there.

    It is the `Replica` that gossip and anti-entropy are given (see nova.sync.gossip).
    """

    def __init__(
        self,
        node: NodeId,
        *,
        region: Region = "local",
        incarnation: int = 1,
        wall_ns: Callable[[], int],
        config: StoreConfig | None = None,
        metrics: Registry | None = None,
        published: Callable[[bytes], Outputs] | None = None,
    ) -> None:
        self.config = config or StoreConfig()
        self.node, self.region, self.incarnation = node, region, incarnation
        self.space = Keyspace(f"{node}~{incarnation}")
        self.hlc = HybridLogicalClock(drift_ms_max=self.config.drift_ms_max)
        self.published = published or (lambda batch: Outputs())
        self._wall_ns = wall_ns
        self._history = History(self.config.history_bytes)
        self.feed = Feed(self.config.feed_count)
        self.conflicts = Conflicts(self, metrics or Registry())
        self._declared = bool(self.config.invariants or self.config.semantics)
        self._durable: dict[Actor, int] = {}
        self._durable_cache: dict[Actor, int] | None = None
        self._token = 0
        self.durable_token = 0
        self._dirty: dict[str, int] = {}
        self._open_changes: list[tuple[int, str]] = []
        self._open_audit: list[bytes] = []
        self._closed = Outputs()
        self._sorted: list[str] = []
        self._unsorted = True
        self._prefix_kinds = sorted(self.config.kinds.items(), key=lambda item: -len(item[0]))
        for _, name in self._prefix_kinds:
            kind_named(name)

    def wall_ns(self) -> int:
        """Wall clock, nanoseconds."""
        return self._wall_ns()

    def now_ms(self) -> int:
        """Wall clock, milliseconds."""
        return self._wall_ns() // 1_000_000

    # -- writing --

    def put(self, request: Put) -> tuple[int, Write]:
        """Apply one write; (token, write). Nobody may be told before the event Durable of that token or a later one."""
        key = self._checked_key(request.key)
        rows = self.space.get(key)
        kind = self._kind_for(key, rows, request.kind)
        self._check_condition(key, rows, request)
        if request.expect is not None:
            raise UsageError(f"{key!r} is eventual and has no version to expect; hand its clock back as context")
        self.check_frozen(key)
        leaves: dict[str, Any]
        drops: list[str] = []
        if not request.merge and kind.code == REGISTER and (rows is None or rows.single is not None):
            leaves = {"": request.value}  # by far the most common write
        elif request.merge:
            leaves, drops = self._patch(kind, rows, request.value)
            if not leaves and not drops and rows is None:
                raise UsageError(f"nothing to write: key {key!r} holds nothing and the change is empty")
        else:
            leaves = kind.split(request.value)
            if rows is not None:
                drops = [path for path in rows.paths() if path not in leaves]
                if request.context is None and len(leaves) > 1:
                    leaves = self._changed(rows, leaves)
        if kind.code == VM and rows is not None and not _PLACING.isdisjoint(leaves):
            leaves |= vm.placed(leaves, drops, self._seen(rows, request.context))
        if self._declared and self.conflicts.rules.concerns(key):
            self._check_rules(key, kind, rows, request.context, leaves, drops)
        if not leaves:
            if not drops and rows is not None:
                return self.token_of(key), rows.newest()  # a change of nothing
            leaves = {"": None}  # a mark that something was removed, so that the key's clock knows of it
        try:
            puts = [(path, _pack(leaf)) for path, leaf in leaves.items()]
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"the value of {key!r} cannot be stored: {error}; values are JSON, integers have at most 64 bits"
            ) from None
        size = len(puts[0][1]) if len(puts) == 1 else sum([len(value) for _, value in puts])
        if size > self.config.value_bytes_max:
            raise LimitError(
                f"the value of {key!r} takes {size} bytes; the limit is {self.config.value_bytes_max}; "
                "split it over several keys or raise limits.value_bytes_max"
            )
        if request.context is not None and rows is not None:
            self._check_siblings(rows, puts, request.context)
        return self._write(key, kind.code, puts, drops, False, request.context)

    def check_frozen(self, key: str) -> None:
        """A policy may freeze what is in conflict. What other nodes wrote before they heard of it still comes in."""
        if self.config.policies and (record := self.conflicts.frozen(key)) is not None:
            raise UnavailableError(
                f"{key!r} is frozen by conflict {record['id']} until somebody decides it; nova conflicts shows it"
            )

    def _check_siblings(self, rows: Rows, puts: list[tuple[str, bytes]], context: Mapping[str, int]) -> None:
        """One who never hands back the clock that he read would let siblings, and the cost of each read, grow."""
        for path, _ in puts:
            unseen = sum(1 for row in rows.at(path) if context.get(row.write.dot.actor, 0) < row.write.dot.count)
            if unseen >= self.config.siblings_max:
                raise LimitError(
                    f"{rows.key!r} has {unseen} concurrent values{' at ' + path if path else ''} that the context does "
                    f"not know; the limit is {self.config.siblings_max}; read it and write with the clock that was read"
                )

    def delete(
        self, key: str, context: Mapping[str, int] | None = None, conditional: bool = False
    ) -> tuple[int, Write]:
        """Remove what the context knows of a key; concurrent writes that it does not know survive."""
        key = self._checked_key(key)
        rows = self.space.get(key)
        if rows is None:
            raise KeyNotFoundError(f"key {key!r} holds nothing; nothing to delete")
        self._check_condition(key, rows, Put(key, None, context=dict(context or {}), conditional=conditional))
        self.check_frozen(key)
        return self._write(key, rows.kind, [], [], True, context)

    def _write(
        self,
        key: str,
        kind: int,
        puts: list[tuple[str, bytes]],
        drops: list[str],
        clear: bool,
        context: Mapping[str, int] | None,
    ) -> tuple[int, Write]:
        known = len(self.space)
        if context is not None:
            for actor, count in context.items():
                if not 0 <= count < 1 << 48:
                    raise UsageError(f"the context counts {count} events of {actor!r}; counts are 0 to 2^48 - 1")
        try:
            effect = self.space.write(key, kind, puts, drops, clear, context, self.hlc.tick(self._wall_ns()))
        except UnicodeEncodeError:
            raise UsageError(
                f"a name in the value of {key!r} holds half of a surrogate pair; names are UTF-8"
            ) from None
        if len(self.space) != known:
            self._unsorted = True
        self._open_changes.append((self.space.revision, key))
        self._dirty[key] = self._token + 1
        if effect[2] or effect[3] or kind == VM or (self._declared and self.conflicts.declares(key)):
            self._open_audit += self.conflicts.examine([effect])
        return self._token + 1, effect[1]

    def write_back(
        self, key: str, kind: int, puts: list[tuple[str, bytes]], drops: list[str], context: Mapping[str, int]
    ) -> None:
        """Write leaves as they were once (see nova.store.points): they keep the limits that they were written under."""
        rows = self.space.get(key)
        if kind == VM and rows is not None and any(path in _PLACING for path, _ in puts):
            leaves = {path: _unpack(leaf) for path, leaf in puts}
            told = vm.placed(leaves, drops, self._seen(rows, context))
            puts = [*puts, *((path, _pack(leaf)) for path, leaf in told.items())]
        self._write(key, kind, puts, drops, False, context)

    def note(self, type: str, conflict_id: str, key: str, body: Mapping[str, Any], time_ms: int) -> int:
        """Put an event into the audit chain; the token with which it is durable."""
        self._open_audit += self.conflicts.note(type, conflict_id, key, body, time_ms)
        return self._token + 1

    def examine_again(self, key: str) -> None:
        """Record what is contended about a key now, if that is not on record."""
        self._open_audit += self.conflicts.examine_keys([(key, True, False)])

    def turn(self) -> Outputs:
        """Everything written since the last turn, as one batch: persist it, then send it, then answer the writers."""
        self._close()
        return self._after_own(Outputs())

    def _close(self) -> None:
        """End the open batch. Also before anything of others is applied: the log holds operations in causal order."""
        closed = self.space.close_batch()
        if closed is not None:
            _, last, batch = closed
            outputs = self._record(BATCH, batch, {self.space.actor: last}, self._open_changes, batch, self._open_audit)
            outputs.send = self.published(batch).send
            self._closed.extend(outputs)
            self._open_changes, self._open_audit = [], []
        elif self._open_audit:
            self._closed.extend(self._record(b"", b"", {}, [], None, self._open_audit))
            self._open_audit = []

    def _after_own(self, outputs: Outputs) -> Outputs:
        own, self._closed = self._closed, Outputs()
        own.extend(outputs)
        return own

    def _record(
        self,
        tag: bytes,
        data: bytes,
        clock: dict[Actor, int],
        changes: list[tuple[int, str]],
        batch: bytes | None,
        audit: list[bytes],
    ) -> Outputs:
        self._token += 1
        for _, key in changes:
            self._dirty[key] = self._token
        # The audit first: if a crash leaves only the beginning of this, an event may be there whose operation is not
        # (it comes again, and makes the same event), but never an operation whose conflict nobody recorded.
        persist = [AUDIT + event for event in audit]
        if tag:
            persist.append(tag + data)
        return Outputs(persist=persist, apply=[Durable(self._token, clock, changes, batch, audit)])

    def applied(self, event: Durable) -> None:
        """The driver says that an event's records are on disk."""
        self.durable_token = event.token
        for actor, count in event.clock.items():
            if count > self._durable.get(actor, 0):
                self._durable[actor] = count
        self._durable_cache = None
        if event.batch is not None:
            head = batch_head(event.batch)
            self._history.add(head.origin, head.first, head.last, event.batch)
        else:
            self._history.skip(event.clock)
            self._history.forget(tidy(self._durable))
        for revision, key in event.changes:
            self.feed.add(revision, key)
            if self._dirty.get(key, 0) <= event.token:
                self._dirty.pop(key, None)

    @property
    def settled(self) -> bool:
        """Everything applied here was handed to the driver: a snapshot now covers the log up to its last record."""
        return not self.space.open_bytes and not self._closed

    @property
    def newest_token(self) -> int:
        """When this one is durable, everything that was written or received up to now is."""
        return self._token + 1 if self._open_changes or self._open_audit else self._token

    @property
    def next_token(self) -> int:
        """When this one is durable, what is being written or examined right now is."""
        return self._token + 1

    def token_of(self, key: str) -> int:
        """The token that a reader of this key must wait for: 0 if what it holds is durable."""
        return self._dirty.get(key, 0)

    # -- reading --

    def get(self, key: str) -> Entry:
        """What a key holds. Raises KeyNotFoundError."""
        rows = self.space.get(key)
        if rows is None:
            raise KeyNotFoundError(f"key {key!r} holds nothing")
        return self.view(rows)

    def view(self, rows: Rows) -> Entry:
        """The value of an entry, settled where its rows are concurrent."""
        single = rows.single
        if single is not None:
            kind, write = BY_CODE[rows.kind], single.write
            value, dot = _unpack(single.value), write.dot
            return Entry(
                rows.key, kind.name, value if kind.code == REGISTER else kind.join({"": value}), rows.clock,
                write.stamp, node_of(dot.actor), dot, rows.revision,
            )  # fmt: skip
        leaves, contended = self.parts(rows)
        newest = rows.newest()
        siblings: list[Sibling] = []
        conflict = strategy = None
        if contended:
            found, resolution = self.conflicts.settle(rows, contended)
            leaves |= {path: value for path, value in resolution.settled.items() if value is not MISSING}
            conflict, strategy = found.id, resolution.strategy
            siblings = [
                Sibling(path, _unpack(row.value), row.write.clock, row.write.stamp, node_of(row.write.actor))
                for path, items in contended.items()
                for row in items
            ]
        dot = newest.dot
        return Entry(
            rows.key, BY_CODE[rows.kind].name, BY_CODE[rows.kind].join(leaves), rows.clock, newest.stamp,
            node_of(dot.actor), (dot.actor, dot.count), rows.revision, siblings, conflict, strategy,
        )  # fmt: skip

    def scan(self, prefix: str = "", limit: int = 100, after: str = "") -> tuple[list[Entry], str | None]:
        """Entries in order of key, and the key to go on after, or None at the end."""
        keys = self.keys()
        start = bisect_left(keys, max(prefix, after))
        out: list[Entry] = []
        for index in range(start, len(keys)):
            key = keys[index]
            if not key.startswith(prefix):
                break
            if key == after:
                continue
            if len(out) == limit:
                return out, out[-1].key
            rows = self.space.get(key)
            assert rows is not None
            out.append(self.view(rows))
        return out, None

    def keys(self) -> list[str]:
        """All keys in order. O(n) after a change of the set of keys, else O(1)."""
        if self._unsorted:
            self._sorted = sorted(self.space.entries)
            self._unsorted = False
        return self._sorted

    def changes(self, since: int, prefix: str = "") -> list[Change]:
        """The change feed after a revision, each key once at its newest. Asks nothing about what is compacted."""
        out = []
        for revision, key in self.feed.since(since):
            if not key.startswith(prefix):
                continue
            rows = self.space.get(key)
            if rows is None:
                out.append(Change(revision, key, "", True, None, {}, 0, ""))
            else:
                entry = self.view(rows)
                out.append(
                    Change(revision, key, entry.kind, False, entry.value, entry.clock, entry.timestamp, entry.origin)
                )
        return out

    def parts(self, rows: Rows) -> tuple[dict[str, Any], dict[str, list[Row]]]:
        """Leaves that are settled by themselves, and the rows of those that are not."""
        leaves: dict[str, Any] = {}
        contended: dict[str, list[Row]] = {}
        for path, items in rows.live():
            if len(items) == 1 or all(row.value == items[0].value for row in items):
                leaves[path] = _unpack(items[-1].value)
            else:
                contended[path] = items
        return leaves, contended

    def _patch(self, kind: Kind, rows: Rows | None, value: Any) -> tuple[dict[str, Any], list[str]]:
        if rows is None:
            return kind.patch(value, {}, self.space.actor)
        current, contended = self.parts(rows)
        if not contended:
            return kind.patch(value, current, self.space.actor)
        _, resolution = self.conflicts.settle(rows, contended)
        current |= {path: leaf for path, leaf in resolution.settled.items() if leaf is not MISSING}
        return kind.patch(value, current, self.space.actor)

    def _check_rules(
        self,
        key: str,
        kind: Kind,
        rows: Rows | None,
        context: Mapping[str, int] | None,
        leaves: Mapping[str, Any],
        drops: Collection[str],
    ) -> None:
        seen = {} if rows is None else self._seen(rows, context)
        if rows is not None and (contended := self.parts(rows)[1]):
            _, resolution = self.conflicts.settle(rows, contended)
            seen |= {path: leaf for path, leaf in resolution.settled.items() if leaf is not MISSING}
        after = {path: leaf for path, leaf in (seen | dict(leaves)).items() if path not in drops}
        self.conflicts.rules.check(key, kind.join(seen), kind.join(after))

    def _seen(self, rows: Rows, context: Mapping[str, int] | None) -> dict[str, Any]:
        """The uncontended leaves that a writer with this context knows."""
        leaves, _ = self.parts(rows)
        if context is None:
            return leaves
        return {
            path: leaf
            for path, leaf in leaves.items()
            if all(context.get(row.write.dot.actor, 0) >= row.write.dot.count for row in rows.at(path))
        }

    def _changed(self, rows: Rows, leaves: dict[str, Any]) -> dict[str, Any]:
        """The leaves of a whole write that say something new: one who repeats what stands there is no writer of it."""
        current, _ = self.parts(rows)
        changed = {
            path: leaf for path, leaf in leaves.items() if path not in current or _pack(current[path]) != _pack(leaf)
        }
        return changed or leaves

    def _kind_for(self, key: str, rows: Rows | None, wanted: str | None) -> Kind:
        if rows is not None:
            kind = BY_CODE[rows.kind]
            if wanted is not None and wanted != kind.name:
                kind_named(wanted)
                raise UsageError(f"key {key!r} holds a {kind.name}, not a {wanted}; delete it first or use another key")
            return kind
        if wanted is None:
            wanted = next((kind for prefix, kind in self._prefix_kinds if key.startswith(prefix)), "register")
        return kind_named(wanted)

    def _checked_key(self, key: str) -> str:
        try:
            size = len(key) if key.isascii() else len(key.encode())
        except UnicodeEncodeError:
            raise UsageError(f"key {key!r} holds half of a surrogate pair; keys are UTF-8 text") from None
        if not 0 < size <= self.config.key_bytes_max:
            raise LimitError(f"a key of {size} bytes; keys have 1 to {self.config.key_bytes_max} bytes of UTF-8")
        return key

    def _check_condition(self, key: str, rows: Rows | None, request: Put) -> None:
        if not request.conditional:
            return
        present = rows.clock if rows is not None else {}
        if present != (request.context or {}):
            current = self.view(rows) if rows is not None else None
            raise StaleContextError(
                f"key {key!r} changed since it was read: its clock is {present}, the context says "
                f"{request.context or {}}; read it again, decide, and put with the new clock",
                current,
            )

    # -- what gossip and anti-entropy ask for --

    def clock(self) -> dict[Actor, int]:
        """What is durable here: the only clock that others are told."""
        if self._durable_cache is None:
            self._durable_cache = dict(self._durable)
        return self._durable_cache

    def batches_since(self, clock: Mapping[Actor, int], limit_bytes: int) -> list[bytes] | None:
        return self._history.since(clock, self._durable, limit_bytes)

    def receive(self, batch: bytes) -> Outputs | None:
        """Apply a batch of a peer. None: something that it depends on is missing. Raises PeerError."""
        limit = (self._wall_ns() // 1_000_000 + self.config.drift_ms_max) << 16
        before = len(self.space)
        self._close()
        effects = self.space.receive(batch, limit)
        if effects is None and self._take_over(batch_head(batch).deps):
            effects = self.space.receive(batch, limit)
        if effects is None:
            return None
        if not effects:
            return Outputs()
        # One batch can remove a key and create another.
        if len(self.space) != before or not all(effect[4] for effect in effects):
            self._unsorted = True
        self.hlc.receive(self.space.stamp_max, self._wall_ns())
        head = batch_head(batch)
        audit = self.conflicts.examine(effects)
        first = self.space.revision - len(effects) + 1
        changes = [(first + index, effect[0]) for index, effect in enumerate(effects)]
        return self._after_own(self._record(BATCH, batch, {head.origin: head.last}, changes, batch, audit))

    def retire(self, node: NodeId, upto: int, total: int) -> Outputs:
        """Take the earlier lives of a node out of the clock; see nova.sync.retire. Empty if there is nothing to do.

        raises  PeerError if this replica itself is such a life: it runs from an old copy of a disk
        """
        if upto <= self.space.count(node + FLOOR) or self.space.operations(node, upto) != total:
            return Outputs()
        self._close()
        if not self.space.retire(node, upto, total):
            return Outputs()
        clock = {node + FLOOR: upto, node + TOTAL: total} if total else {node + FLOOR: upto}
        return self._after_own(self._record(RETIRED, _pack([node, upto, total]), clock, [], None, []))

    def _take_over(self, deps: Iterable[tuple[Actor, int]]) -> bool:
        """Raise the floors that a batch depends on, as far as all below them is here; whether there was one."""
        raised = Outputs()
        for node, upto, total in floors(dict(deps)):
            raised.extend(self.retire(node, upto, total))
        self._closed.extend(raised)  # leaves with the batch, or with the next turn
        return bool(raised)

    def leaf_digests(self) -> bytes:
        return self.space.leaf_digests()

    def summary(self, cells: int | None = None) -> bytes:
        return self.space.summary(cells)

    def state_for(self, summary: bytes) -> bytes | int:
        self._close()
        return self.space.answer(summary)

    def join(self, state: bytes) -> Outputs | None:
        """Merge the state of a peer, or how it differs. None: that does not fit, nothing changed. Raises PeerError."""
        self._close()
        known = self.space.clock
        changed = self.space.join(state)
        if changed is None:
            return None
        if not changed and self.space.clock == known:
            return self._after_own(Outputs())
        self._unsorted = True
        self.hlc.receive(self.space.stamp_max, self._wall_ns())
        audit = self.conflicts.examine_keys(changed)
        changes = self._revised([key for key, _, _ in changed])
        return self._after_own(self._record(STATE, state, self.space.clock, changes, None, audit))

    def _revised(self, keys: list[str]) -> list[tuple[int, str]]:
        """(revision, key) of what was changed just now: one each, so that a feed can be left and taken up in between.

        There are enough: each changed key had at least one operation that was not known here.
        """
        first = self.space.revision - len(keys) + 1
        return [(first + index, key) for index, key in enumerate(keys)]

    @property
    def digest(self) -> str:
        return self.space.digest.hex()

    # -- recovery --

    def snapshot(self) -> bytes:
        """The whole state, for `restore`. Raises UsageError while a batch is open: call it right after `turn`."""
        return self.space.state()

    def restore(self, state: bytes) -> None:
        """Start from a snapshot."""
        self.space.join(state)
        for key, rows in self.space.entries.items():
            self.conflicts.index(key, rows)
        self.feed.compacted = self.feed.newest = self.space.revision
        self.recovered()

    def replay(self, record: bytes) -> AuditEvent | None:
        """Take one record of the log, oldest first; an audit event is handed back for the archive."""
        tag, data = record[:1], record[1:]
        if tag == BATCH:
            effects = self.space.receive(data)
            if effects is None:
                head = batch_head(data)
                raise CorruptionError(
                    f"the log holds {head.origin} {head.first}..{head.last} without what it depends on; "
                    "restore this node from a peer: move its data directory away and start it with --join"
                )
            head = batch_head(data)
            self._history.add(head.origin, head.first, head.last, data)
            first = self.space.revision - len(effects) + 1
            for index, effect in enumerate(effects):
                self.feed.add(first + index, effect[0])
                self.conflicts.index(effect[0], self.space.get(effect[0]))
        elif tag == STATE:
            changed = self.space.join(data)
            if changed is None:
                raise CorruptionError(
                    "the log holds a difference that does not fit what is before it; "
                    "restore this node from a peer: move its data directory away and start it with --join"
                )
            for revision, key in self._revised([key for key, _, _ in changed]):
                self.feed.add(revision, key)
                self.conflicts.index(key, self.space.get(key))
            self._history.skip(self.space.clock)
        elif tag == RETIRED:
            node, upto, total = _unpack(data)
            if not self.space.retire(node, upto, total) and self.space.count(node + FLOOR) < upto:
                raise CorruptionError(
                    f"the log retires the incarnations of {node} up to {upto} after {total} operations, but "
                    f"{self.space.operations(node, upto)} are here; restore this node from a peer: move its data "
                    "directory away and start it with --join"
                )
            self._history.forget(actor for actor in self.space.actors if self.space.count(actor) == ALL)
        elif tag == AUDIT:
            return self.conflicts.replayed(data)
        else:
            raise CorruptionError(
                f"the log holds a record of type {tag!r}; a newer release wrote it: upgrade this node"
            )
        return None

    def recovered(self) -> None:
        """The log is at its end: what was replayed is durable."""
        self._durable = self.space.clock
        self._durable_cache = None
        self._unsorted = True
        self.hlc = HybridLogicalClock(drift_ms_max=self.config.drift_ms_max, last=self.space.stamp_max)
        if not self._history.size_bytes:
            self._history.skip(self.space.clock)

    def why(self, key: str, events: Sequence[AuditEvent] = ()) -> dict[str, Any]:
        """Why a key holds what it holds: its writes, its conflicts, what was discarded and by which rule."""
        return self.conflicts.why(key, events)


def node_of(actor: Actor) -> NodeId:
    """The node behind an actor."""
    return actor.rpartition("~")[0] or actor
