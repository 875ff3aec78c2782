"""The audit log: the chain over storage that is given to it, with an index, retention, erasure and statistics."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from nova.conflict.audit.bodies import events_of
from nova.conflict.audit.chain import (
    AuditChain,
    AuditEvent,
    ChainMark,
    Event,
    Verdict,
    decode_event,
    export_lines,
    import_lines,
    verify,
)
from nova.conflict.audit.patterns import Pattern, PatternDetector
from nova.conflict.audit.query import AuditQuery
from nova.conflict.audit.retention import Retention, Vault, reveal_fields, seal_fields
from nova.conflict.detect import Conflict
from nova.conflict.strategies import Resolution
from nova.errors import CorruptionError, UsageError

HEAD: Final = "audit_head"
ANCHOR: Final = "audit_anchor"
PAGE: Final = 1000
UNINDEXED_MAX: Final = 1000
WATCHED: Final = 10_000
"""How many of the newest events a log that is opened again looks through for what recurs."""


class IndexRow(NamedTuple):
    """An event as the index holds it; `body` is the whole record."""

    seq: int
    time_ms: int
    type: str
    conflict_id: str
    resource_id: str
    body: bytes


class Records(Protocol):
    """Where records are: a log that counts them from 1 (`nova.storage.log.FileLog` is one)."""

    @property
    def last(self) -> int: ...
    def append(self, records: list[bytes]) -> int: ...
    def commit(self) -> int: ...
    def replay(self, start: int = 1) -> Iterator[tuple[int, bytes]]: ...
    def truncate_before(self, position: int) -> None: ...


class Index(Protocol):
    """Where events are looked up, and small settings are (`nova.storage.catalog.Catalog` is one)."""

    def get(self, name: str, default: str | None = None) -> str | None: ...
    def set(self, name: str, value: str) -> None: ...
    def index_events(self, events: Iterable[IndexRow]) -> None: ...
    def events(self, query: AuditQuery, *, newest: bool = False) -> list[Any]: ...
    def last_indexed(self) -> int: ...
    def event_counts(self) -> list[tuple[str, int, int, int]]:
        """(type, how many, least time_ms, greatest time_ms) of each type."""

    def forget_events(self, upto: int) -> None: ...


class AuditStatistics(msgspec.Struct, frozen=True):
    """The trail in numbers: events kept, by type, their times, where it begins and ends, what recurs."""

    events: int
    by_type: dict[str, int]
    first_ms: int | None
    last_ms: int | None
    anchor: str
    head: str
    patterns: list[Pattern]
    hotspots: list[Pattern]


class AuditLog:
    """Events of detection, resolution, failure, escalation, votes, decisions and rollbacks, for good.

    records   where they are; None: in memory
    index     where they are looked up; None: in memory. It can be thrown away and is filled again from the records
    key       secret of up to 64 bytes that hashes depend on, and the seal of the head
    vault     keeps the keys of subjects, for `append(personal=...)`, `reveal` and `erase`
    patterns  what recurs is watched by it
    found     is called with what became a pattern
    raises    CorruptionError if records are missing that were there once, or do not follow each other

    `append` puts events in order; they are on disk when `commit` returns. One owner, one thread.
    """

    def __init__(
        self,
        records: Records | None = None,
        index: Index | None = None,
        *,
        key: bytes = b"",
        vault: Vault | None = None,
        patterns: PatternDetector | None = None,
        found: Callable[[Pattern], None] | None = None,
    ) -> None:
        self.records = MemoryRecords() if records is None else records
        self.index = MemoryIndex() if index is None else index
        self.patterns = patterns or PatternDetector()
        self._key = key
        self._vault = vault
        self._found = found
        self._chain = AuditChain(key=key)
        self._unindexed: list[IndexRow] = []
        self._recover()

    def _recover(self) -> None:
        text = self.index.get(ANCHOR)
        self.anchor = ChainMark.parse(text) if text else ChainMark()
        indexed = self.index.last_indexed()
        known = max(self.stored_head().count, indexed)
        if self.records.last < known:
            raise CorruptionError(
                f"the audit log ends at record {self.records.last}, it once reached {known}: its tail was cut off; "
                "restore its files from a backup"
            )
        self.index.forget_events(self.anchor.count)  # a crash may have come before this
        start = max(self.anchor.count, min(indexed, self.records.last - WATCHED))
        self._chain.go_on(self.anchor.hash, self.anchor.count)
        for position, record in self.records.replay(max(start, self.anchor.count + 1)):
            event = decode_event(record)
            if position == start:
                self._chain.go_on(event.hash, position)
                continue
            self._chain.resume(event)
            if position > indexed:
                self._note(_row(event, record), event.body)
            else:
                self._watch(_row(event, record), event.body)

    # -- writing --

    @property
    def mark(self) -> ChainMark:
        """Where the chain ends. Keep it elsewhere: whoever has an older copy of the files cannot hide it then."""
        return self._chain.mark

    @property
    def sealed_mark(self) -> str:
        """The mark with a seal under the key, for keeping where others can write."""
        return self._chain.mark.seal(self._key)

    def append(
        self,
        type: str,
        time_ms: int,
        conflict_id: str,
        resource_id: str,
        body: Mapping[str, Any],
        *,
        personal: Mapping[str, str] | None = None,
    ) -> int:
        """The next event; its number. Not durable before `commit`.

        personal  JSON pointers into the body -> the subject whose data is there; it is sealed under the subject's key
        raises    UsageError for a type that there is not, a pointer that names nothing, or without a vault
        """
        if personal:
            body = seal_fields(body, personal, self._the_vault(), _context(type, conflict_id, resource_id))
        record = self._chain.append(type, time_ms, conflict_id, resource_id, body)
        self.records.append([record])
        self._note(IndexRow(self._chain.seq, time_ms, type, conflict_id, resource_id, record), body)
        return self._chain.seq

    def append_many(self, events: Iterable[Event]) -> int:
        """The next events, all or, if one is wrong, none; the number of the last."""
        events = list(events)
        seq = self._chain.seq
        records = self._chain.append_many(events)
        self.records.append(records)
        for (type, time_ms, conflict_id, resource_id, body), record in zip(events, records, strict=True):
            seq += 1
            self._note(IndexRow(seq, time_ms, type, conflict_id, resource_id, record), body)
        return seq

    def settled(self, conflict: Conflict, outcome: Resolution | BaseException, time_ms: int) -> int:
        """The events of a conflict and of what became of it, see `events_of`; the number of the last."""
        return self.append_many(events_of(conflict, outcome, time_ms))

    def add(self, records: list[bytes]) -> None:
        """Take records that were chained elsewhere. Raises CorruptionError, and takes none, if they do not follow."""
        mark = self._chain.mark
        verdict = verify(records, anchor=mark, key=self._key)
        if not verdict.ok:
            raise CorruptionError(f"{verdict.error}; nothing was taken")
        events = [decode_event(record) for record in records]
        self._chain.go_on(verdict.head.hash, verdict.head.count)
        self.records.append(records)
        for event, record in zip(events, records, strict=True):
            self._note(_row(event, record), event.body)

    def commit(self) -> ChainMark:
        """Make all events durable; the mark that they reach."""
        self.records.commit()
        return self._chain.mark

    def flush(self) -> None:
        """Commit, then bring the index and the stored head up to date."""
        if self._unindexed:
            self.records.commit()
            self.index.index_events(self._unindexed)
            newest = self._unindexed[-1]
            self.index.set(HEAD, ChainMark(newest.seq, newest.body[4:36]).seal(self._key))
            self._unindexed = []

    def _note(self, row: IndexRow, body: Mapping[str, Any]) -> None:
        """An event that is appended: to be indexed, and watched."""
        self._unindexed.append(row)
        self._watch(row, body)
        if len(self._unindexed) >= UNINDEXED_MAX:
            self.flush()

    def _watch(self, row: IndexRow, body: Mapping[str, Any]) -> None:
        if row.type == "detect":
            for pattern in self.patterns.observe(row.time_ms, row.resource_id, body):
                if self._found is not None:
                    self._found(pattern)

    # -- reading --

    def events(
        self,
        *,
        resource: str | None = None,
        conflict: str | None = None,
        type: str | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        after: int = 0,
    ) -> Iterator[AuditEvent]:
        """Events that match everything given, oldest first, read a page of a thousand at a time.

        since_ms, until_ms  times from .. to before
        """
        while True:
            page = self.page(AuditQuery(resource, conflict, type, since_ms, until_ms, after, PAGE))
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1].seq

    def page(self, query: AuditQuery) -> list[AuditEvent]:
        """At most `query.limit` events."""
        self.flush()
        return [decode_event(row.body) for row in self.index.events(query)]

    def latest(self, count: int, **query: Any) -> list[AuditEvent]:
        """The newest `count` events that match a query as for `events`, oldest first."""
        self.flush()
        return [decode_event(row.body) for row in self.index.events(AuditQuery(**query, limit=count), newest=True)]

    def stored_head(self) -> ChainMark:
        """The head as of the last `flush`. Raises CorruptionError if its seal does not fit."""
        text = self.index.get(HEAD)
        return ChainMark.unseal(text, self._key) if text else ChainMark()

    def verify(self, head: ChainMark | None = None) -> Verdict:
        """Check every record that is kept, and that the chain goes through its stored head and one kept elsewhere."""
        self.flush()
        heads = [mark for mark in (self.stored_head(), head) if mark is not None]
        return verify_kept(self.records.replay, self.anchor, heads, key=self._key)

    def export(self) -> Iterator[str]:
        """The trail as JSON Lines, see `export_lines`."""
        self.flush()
        return export_lines(record for _, record in self.records.replay(self.anchor.count + 1))

    def take_export(self, lines: Iterable[str | bytes]) -> int:
        """Take the lines of an export that goes on where this log ends.

        returns  how many events were taken
        raises   CorruptionError for a line that was changed or does not follow: of the lines before, whole thousands
                 are taken; UsageError if the export does not begin with the first event
        """
        count, batch = 0, []
        for record in import_lines(lines):
            if not count and not self._chain.seq and (first := decode_event(record).seq) > 1:
                raise UsageError(
                    f"the export begins with event {first}: retention had dropped what is before it. It can be "
                    "verified (nova audit verify --export) and read, but not be made a log again"
                )
            batch.append(record)
            count += 1
            if len(batch) == UNINDEXED_MAX:
                self.add(batch)
                batch = []
        self.add(batch)
        self.flush()
        return count

    def statistics(self, top: int = 10) -> AuditStatistics:
        """The trail in numbers."""
        self.flush()
        counts = self.index.event_counts()
        return AuditStatistics(
            sum(count for _, count, _, _ in counts),
            {type: count for type, count, _, _ in counts},
            min((first for _, _, first, _ in counts), default=None),
            max((last for _, _, _, last in counts), default=None),
            str(self.anchor),
            str(self._chain.mark),
            self.patterns.patterns()[:top],
            self.patterns.hotspots(top),
        )

    # -- forgetting --

    def retain(self, policy: Retention, now_ms: int) -> int:
        """Drop what the policy does not keep; how many events. The new anchor is itself an event of the chain.

        Durable when it returns. The space is freed in whole segments of the log.
        """
        anchor = self.outlived(policy, now_ms)
        if anchor is None:
            return 0
        dropped = anchor.count - self.anchor.count
        self.append("retain", now_ms, "", "", {"anchor": str(anchor), "dropped": dropped})
        self.drop(anchor)
        return dropped

    def outlived(self, policy: Retention, now_ms: int, least: int = 1) -> ChainMark | None:
        """The anchor that a policy asks for, None if fewer than `least` events would go.

        An owner who chains elsewhere puts a `retain` event with this anchor into the chain before he calls `drop`.
        """
        self.flush()
        cut = self.anchor.count
        if policy.events_max is not None:
            cut = max(cut, self._chain.seq - policy.events_max)
        if policy.age_ms_max is not None:
            kept = self.index.events(AuditQuery(since_ms=now_ms - policy.age_ms_max, after=cut, limit=1))
            cut = max(cut, kept[0].seq - 1 if kept else self._chain.seq)
        if cut - self.anchor.count < max(least, 1):
            return None
        (row,) = self.index.events(AuditQuery(after=cut - 1, limit=1))
        return ChainMark(cut, decode_event(row.body).hash)

    def drop(self, anchor: ChainMark) -> None:
        """Forget the events up to an anchor that an event of the chain vouches for. Raises UsageError if none does."""
        self.flush()
        if anchor.count <= self.anchor.count:
            return  # somebody else dropped more meanwhile
        newest = self.index.events(AuditQuery(type="retain", after=anchor.count, limit=PAGE))
        if not any(decode_event(row.body).body.get("anchor") == str(anchor) for row in newest):
            raise UsageError(f"no retain event vouches for the anchor {anchor}; append one first")
        # The anchor first: if a crash comes now, what is before it is left over, and goes at the next start.
        self.index.set(ANCHOR, str(anchor))
        self.anchor = anchor
        self.index.forget_events(anchor.count)
        self.records.truncate_before(anchor.count + 1)

    def erase(self, subject: str, time_ms: int) -> bool:
        """Destroy a subject's key: what was sealed for it cannot be read again, here or in any export; the chain holds.

        Durable when it returns. False if there is no such key.
        """
        key_id = self._the_vault().destroy(subject)
        if key_id is None:
            return False
        self.append("erase", time_ms, "", "", {"key": key_id})
        self.flush()
        return True

    def reveal(self, event: AuditEvent) -> dict[str, Any]:
        """The body of an event with what was sealed in clear, or ERASED where the key is gone."""
        context = _context(event.type, event.conflict_id, event.resource_id)
        return reveal_fields(event.body, self._the_vault(), context)

    def _the_vault(self) -> Vault:
        if self._vault is None:
            raise UsageError("this audit log has no vault; open it with one (nova.storage.subjects) to seal or erase")
        return self._vault


def verify_kept(
    replay: Callable[[int], Iterator[tuple[int, bytes]]],
    anchor: ChainMark,
    heads: Iterable[ChainMark] = (),
    *,
    key: bytes = b"",
    upto: int | None = None,
) -> Verdict:
    """Check what a log holds behind its anchor.

    replay  (position, record) pairs from a position on
    heads   marks that were kept away from the records: each has to be a place of this chain. Records may follow: a
            crash can come between a record and the note of it
    upto    look at no record behind this one: the log grows meanwhile

    An anchor has to be vouched for by a `retain` event behind it, else whoever cuts the beginning only moves it.
    """
    vouched = not anchor.count
    name = str(anchor).encode()
    places = {mark.count: mark.hash for mark in (ChainMark(), anchor)}
    wanted = list(heads)
    counts = {mark.count for mark in wanted}

    def kept() -> Iterator[bytes]:
        nonlocal vouched
        for position, record in replay(anchor.count + 1):
            if upto is not None and position > upto:
                break
            vouched = vouched or (b"retain" in record and name in record)
            if position in counts:
                places[position] = bytes(record[4:36])
            yield record

    verdict = verify(kept(), anchor=anchor, key=key)
    if not verdict.ok:
        return verdict
    error = None if vouched else f"no event vouches for the anchor, {anchor.count}: the beginning was cut off"
    for mark in wanted:
        if mark.count > verdict.head.count:
            error = f"the chain ends at record {verdict.head.count}, it once reached {mark.count}: its tail was cut off"
        elif mark.count not in places:
            error = f"record {mark.count} was dropped by retention: this head is too old to compare; give a newer one"
        elif places[mark.count] != mark.hash:
            error = f"record {mark.count} has another hash than the head says: the chain was made anew"
    return verdict if error is None else Verdict(False, verdict.events, verdict.head, error)


def _row(event: AuditEvent, record: bytes) -> IndexRow:
    return IndexRow(event.seq, event.time_ms, event.type, event.conflict_id, event.resource_id, record)


def _context(type: str, conflict_id: str, resource_id: str) -> str:
    return f"{type}\0{conflict_id}\0{resource_id}"


# ------------------------------------------------------------------------------------------------ in memory


class MemoryRecords:
    """Records of a log that lives as long as the process."""

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._first = 1

    @property
    def last(self) -> int:
        return self._first + len(self._records) - 1

    def append(self, records: list[bytes]) -> int:
        self._records += records
        return self.last

    def commit(self) -> int:
        return self.last

    def replay(self, start: int = 1) -> Iterator[tuple[int, bytes]]:
        at = max(start, self._first) - self._first
        return iter(list(enumerate(self._records[at:], self._first + at)))

    def truncate_before(self, position: int) -> None:
        drop = max(0, min(position - self._first, len(self._records)))
        del self._records[:drop]
        self._first += drop


class MemoryIndex:
    """An index of lists of numbers, for logs in memory."""

    def __init__(self) -> None:
        self._settings: dict[str, str] = {}
        self._rows: dict[int, IndexRow] = {}
        self._all: list[int] = []
        self._by: dict[tuple[str, str], list[int]] = {}

    def get(self, name: str, default: str | None = None) -> str | None:
        return self._settings.get(name, default)

    def set(self, name: str, value: str) -> None:
        self._settings[name] = value

    def index_events(self, events: Iterable[IndexRow]) -> None:
        for row in events:
            self._rows[row.seq] = row
            self._all.append(row.seq)
            for field in ("resource_id", "conflict_id", "type"):
                self._by.setdefault((field, getattr(row, field)), []).append(row.seq)

    def events(self, query: AuditQuery, *, newest: bool = False) -> list[IndexRow]:
        wanted = {"resource_id": query.resource, "conflict_id": query.conflict, "type": query.type}
        lists = [self._by.get((field, value), []) for field, value in wanted.items() if value is not None]
        shortest = min(lists or [self._all], key=len)
        found: list[IndexRow] = []
        places = range(bisect_right(shortest, query.after), len(shortest))
        for at in reversed(places) if newest else places:
            row = self._rows[shortest[at]]
            if (
                all(value is None or getattr(row, field) == value for field, value in wanted.items())
                and (query.since_ms is None or row.time_ms >= query.since_ms)
                and (query.until_ms is None or row.time_ms < query.until_ms)
            ):
                found.append(row)
                if len(found) == query.limit:
                    break
        return found[::-1] if newest else found

    def last_indexed(self) -> int:
        return self._all[-1] if self._all else 0

    def event_counts(self) -> list[tuple[str, int, int, int]]:
        times: dict[str, list[int]] = {}
        for row in self._rows.values():
            times.setdefault(row.type, []).append(row.time_ms)
        return [(type, len(at), min(at), max(at)) for type, at in times.items()]

    def forget_events(self, upto: int) -> None:
        for seq in self._all[: bisect_right(self._all, upto)]:
            del self._rows[seq]
        for numbers in (self._all, *self._by.values()):
            del numbers[: bisect_left(numbers, upto + 1)]
