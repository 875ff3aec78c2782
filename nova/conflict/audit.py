"""The audit chain: every detection, resolution, failure, escalation and rollback, in an order nobody can rewrite.

Each record holds the hash of the one before it, so that a changed byte, a record taken out or two exchanged break the
chain from there on (Haber & Stornetta 1991). What a chain cannot see by itself is a tail that was cut off: for that,
`verify` is given the mark (count and hash) of the newest record, which the owner of the log keeps somewhere else.
Retention moves the anchor: the mark of the last record dropped is where the rest is verified from.

Without a key, whoever can write the file can also make up a new chain; with one (up to 64 bytes, kept elsewhere) only
its holder can. This module makes and reads bytes; where they are stored is the caller's business.

A record: 4 bytes magic and version, 32 bytes hash, 32 bytes hash of the record before, then canonical MessagePack of
[seq, time_ms, type, conflict_id, resource_id, body]. The hash is BLAKE2b-256 over everything behind it.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Final

import msgspec

from nova.conflict.detect import MISSING, Conflict, canonical
from nova.conflict.strategies import Resolution, show
from nova.errors import CorruptionError, UsageError

MAGIC: Final = b"NAU\x01"
GENESIS: Final = bytes(32)
"""What the first record names as its predecessor's hash."""
TYPES: Final = frozenset(("detect", "resolve", "fail", "escalate", "rollback"))

_HASH_END: Final = len(MAGIC) + 32
_PREVIOUS_END: Final = _HASH_END + 32
_PERSON: Final = b"nova.audit.1"


def _hook(value: Any) -> Any:
    """Values that MessagePack has no word for keep their type's name and their canonical bytes."""
    if value is MISSING:
        return {"$": "missing"}
    return {"$": type(value).__name__, "bytes": canonical(value)}


_ENCODE: Final = msgspec.msgpack.Encoder(order="deterministic", enc_hook=_hook).encode
_DECODE: Final = msgspec.msgpack.Decoder(tuple[int, int, str, str, str, dict[str, Any]]).decode


class AuditEvent(msgspec.Struct, frozen=True):
    """One record, read back. `seq` counts from 1 without a gap."""

    seq: int
    time_ms: int
    type: str
    conflict_id: str
    resource_id: str
    body: dict[str, Any]
    previous: bytes
    hash: bytes


class ChainMark(msgspec.Struct, frozen=True):
    """A place in a chain: how many records there are up to it, and the hash of the last of them."""

    count: int = 0
    hash: bytes = GENESIS


class Verdict(msgspec.Struct, frozen=True):
    """What `verify` found: `events` good records up to `head`; `error` says what is wrong behind them."""

    ok: bool
    events: int
    head: ChainMark
    error: str | None = None


def _digest(key: bytes) -> Any:
    if len(key) > 64:
        raise UsageError(f"the audit key has {len(key)} bytes; give at most 64")
    return blake2b(digest_size=32, key=key, person=_PERSON)


class AuditChain:
    """The end that grows.

    head, seq  hash and number of the newest record, as `mark` told them; the defaults begin a new chain
    key        secret that hashes depend on; b"" for none
    """

    __slots__ = ("_start", "head", "seq")

    def __init__(self, head: bytes = GENESIS, seq: int = 0, *, key: bytes = b"") -> None:
        if len(head) != 32 or seq < 0:
            raise UsageError(f"a chain goes on from 32 bytes of hash and a count from 0, not {len(head)} and {seq}")
        self.head = head
        self.seq = seq
        self._start = _digest(key)

    @property
    def mark(self) -> ChainMark:
        """Where the chain ends now: keep it away from the log, and `verify` finds a cut tail."""
        return ChainMark(self.seq, self.head)

    def append(self, type: str, time_ms: int, conflict_id: str, resource_id: str, body: Mapping[str, Any]) -> bytes:
        """The next record. Raises UsageError, and leaves the chain as it was, for a type that there is not."""
        if type not in TYPES:
            raise UsageError(f"audit type {type!r} is unknown; use one of {', '.join(sorted(TYPES))}")
        event = (self.seq + 1, time_ms, type, conflict_id, resource_id, body)
        try:
            payload = self.head + _ENCODE(event)
        except (OverflowError, TypeError):  # integers over 64 bits, keys that are no text
            payload = self.head + _ENCODE((*event[:5], {"$": "canonical", "bytes": canonical(body)}))
        digest = self._start.copy()
        digest.update(payload)
        self.head = digest.digest()
        self.seq += 1
        return MAGIC + self.head + payload

    def resume(self, event: AuditEvent) -> None:
        """Go on behind `event`, the next one that a restarted owner read back. Raises CorruptionError on a gap."""
        if event.seq != self.seq + 1 or event.previous != self.head:
            raise CorruptionError(
                f"audit event {event.seq} does not follow event {self.seq}: records were removed or exchanged; "
                "restore the log from another replica"
            )
        self.seq, self.head = event.seq, event.hash


def decode_event(record: bytes) -> AuditEvent:
    """Take a record apart. Raises CorruptionError if it is none; says nothing about the chain, `verify` does."""
    if len(record) <= _PREVIOUS_END or record[: len(MAGIC)] != MAGIC:
        raise CorruptionError(
            f"audit record of {len(record)} bytes begins {bytes(record[:4]).hex()!r}, not {MAGIC.hex()!r}; "
            "restore the log from another replica"
        )
    try:
        seq, time_ms, type_, conflict_id, resource_id, body = _DECODE(memoryview(record)[_PREVIOUS_END:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"audit record cannot be read: {error}; restore the log from another replica") from None
    previous, digest = bytes(record[_HASH_END:_PREVIOUS_END]), bytes(record[len(MAGIC) : _HASH_END])
    return AuditEvent(seq, time_ms, type_, conflict_id, resource_id, body, previous, digest)


def verify(
    records: Iterable[bytes],
    head: ChainMark | None = None,
    *,
    anchor: ChainMark | None = None,
    key: bytes = b"",
) -> Verdict:
    """Check a chain from its first record, or from `anchor`, to its end.

    head    the mark kept elsewhere: the chain must reach exactly that far; None: a cut tail cannot be noticed
    anchor  mark of the last record dropped by retention
    cost    about 1 us a record
    """
    at = anchor or ChainMark()
    start, count, last = _digest(key), at.count, at.hash
    first = count
    for record in records:
        number = count + 1
        digest = start.copy()
        digest.update(memoryview(record)[_HASH_END:])
        found = digest.digest()
        error = None
        if not hmac.compare_digest(found, bytes(record[len(MAGIC) : _HASH_END])):
            error = f"record {number} does not match its hash: its bytes were changed, or the key is another"
        elif record[_HASH_END:_PREVIOUS_END] != last:
            error = f"record {number} does not follow record {count}: records were removed, added or exchanged"
        else:
            try:
                seq = decode_event(record).seq
            except CorruptionError as problem:
                error = f"record {number}: {problem}"
            else:
                if seq != number:
                    error = f"record {number} calls itself {seq}: records were removed, added or exchanged"
        if error is not None:
            return Verdict(False, count - first, ChainMark(count, last), error)
        count, last = number, found
    mark = ChainMark(count, last)
    if head is not None and mark != head:
        if count < head.count:
            error = f"the chain ends at record {count}, it once reached {head.count}: its tail was cut off"
        elif count > head.count:
            error = f"the chain has {count} records, its head names {head.count}: the head is old"
        else:
            error = f"record {count} has another hash than the head says: the chain was made anew"
        return Verdict(False, count - first, mark, error)
    return Verdict(True, count - first, mark)


# ------------------------------------------------------------------------------------------------ export


def export_lines(records: Iterable[bytes]) -> Iterator[str]:
    """JSON Lines: the event in readable fields, and the record itself, which is what `import_lines` goes by."""
    for record in records:
        yield _line(record)


def _line(record: bytes) -> str:
    event = msgspec.to_builtins(decode_event(record), builtin_types=(bytes,))
    event["previous"], event["hash"] = event["previous"].hex(), event["hash"].hex()
    event["record"] = b64encode(record).decode()
    return msgspec.json.encode(event).decode()


def import_lines(lines: Iterable[str | bytes]) -> Iterator[bytes]:
    """The records of an export. Raises CorruptionError with the line number if a line was changed or is none."""
    for number, line in enumerate(lines, 1):
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
        if not text.strip():
            continue
        try:
            record = b64decode(msgspec.json.decode(text)["record"], validate=True)
            whole = _line(record)
        except (CorruptionError, ValueError, TypeError, KeyError) as error:
            raise CorruptionError(f"line {number} is no audit event: {error}; export the log again") from None
        if msgspec.json.decode(whole) != msgspec.json.decode(text):
            raise CorruptionError(f"line {number} was changed: its fields are not those of its record; export again")
        yield record


# ------------------------------------------------------------------------------------------------ bodies


def detect_body(conflict: Conflict) -> dict[str, Any]:
    """A conflict as the body of a `detect` event, and as the API shows it.

    Missing values are named, never shown as null.
    """
    versions = []
    for version in conflict.versions:
        values = conflict.values_of(version)
        shown: dict[str, Any] = {
            "origin": version.origin,
            "timestamp": version.timestamp,
            "time_ms": version.timestamp >> 16,
            "clock": version.clock.to_dict(),
            "values": {path: value for path, value in values.items() if value is not MISSING},
        }
        if len(shown["values"]) < len(values):
            shown["missing"] = sorted(path for path, value in values.items() if value is MISSING)
        versions.append(shown)
    body: dict[str, Any] = {
        "kind": conflict.kind,
        "types": [str(type_) for type_ in conflict.types],
        "severity": conflict.severity.label,
        "complexity": conflict.complexity,
        "paths": list(conflict.paths),
        "versions": versions,
        "auto_resolvable": conflict.auto_resolvable,
        "reason": conflict.reason,
    }
    if conflict.contentions:
        body["contentions"] = [{"resource": c.resource, "owners": list(c.owners)} for c in conflict.contentions]
    if conflict.broken:
        body["broken"] = [list(pair) for pair in conflict.broken]
    return body


def resolve_body(resolution: Resolution) -> dict[str, Any]:
    """A resolution as the body of a `resolve` event, and as the API shows it."""
    settled = resolution.settled
    body: dict[str, Any] = {
        "strategy": resolution.strategy,
        "values": {path: value for path, value in settled.items() if value is not MISSING},
        "explanation": list(resolution.explanation),
        "discarded": [
            {
                "path": lost.path,
                "value": None if lost.value is MISSING else lost.value,
                "origin": lost.origin,
                "reason": lost.reason,
            }
            for lost in resolution.discarded
        ],
        "confidence": resolution.confidence,
        "pending": resolution.pending,
    }
    removed = sorted(path for path, value in settled.items() if value is MISSING)
    if removed:
        body["removed"] = removed
    if resolution.alarms:
        body["alarms"] = list(resolution.alarms)
    return body


# ------------------------------------------------------------------------------------------------ words for people


def when(time_ms: int) -> str:
    """Unix milliseconds as ISO 8601 in UTC; numbers no calendar holds stay numbers."""
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    except OverflowError:
        return f"{time_ms} ms"
    return moment.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def describe(event: AuditEvent) -> str:
    """An event in one sentence."""
    body: Mapping[str, Any] = event.body
    about = event.resource_id
    match event.type:
        case "detect":
            writers = _listed(sorted({str(version.get("origin")) for version in _maps(body.get("versions"))}))
            claims = [str(claim.get("resource")) for claim in _maps(body.get("contentions"))]
            paths = [path for path in _texts(body.get("paths")) if path]
            text = f"conflict {event.conflict_id[:8]} on {about}: {_listed(_texts(body.get('types')))}"
            text += f", severity {body['severity']}" if "severity" in body else ""
            text += f", at {_listed(paths)}" if paths else ""
            text += f", over {_listed(claims)}" if claims else ""
            text += f", between {writers}" if writers else ""
        case "resolve":
            body = _resolution(body)
            lost = len(_maps(body.get("discarded")))
            text = f"conflict {event.conflict_id[:8]} on {about} was settled by {body.get('strategy', 'a strategy')}"
            text += f"; {lost} value{'s' if lost != 1 else ''} discarded"
            text += "; pending, somebody has to look" if body.get("pending") else ""
        case "fail":
            text = f"conflict {event.conflict_id[:8]} on {about} could not be settled: {body.get('error', 'no reason')}"
        case "escalate":
            text = f"conflict {event.conflict_id[:8]} on {about} was escalated: {body.get('reason', 'no reason given')}"
        case _:
            text = f"{about} was rolled back to {body.get('to', 'an earlier state')}"
    return f"{when(event.time_ms)} {text}"


def explain(
    resource_id: str,
    value: Any,
    writes: Sequence[Mapping[str, Any]],
    events: Iterable[AuditEvent | Mapping[str, Any]],
) -> str:
    """Why a resource holds what it holds, in plain sentences: its writes, its conflicts, the rules, what was discarded.

    writes  the live rows: mappings with path, value, origin, timestamp or time_ms
    events  audit events, or conflict records as the API shows them, of other resources too: those are passed over
    """
    lines = [f"{resource_id} holds {show(value)}."]
    rows = sorted(writes, key=lambda row: (row.get("timestamp", 0), str(row.get("path", "")), str(row.get("origin"))))
    writers = Counter(row.get("path", "") for row in rows)
    if not rows:
        lines.append("No write of it is live.")
    for row in rows:
        path = row.get("path", "")
        beside = ", concurrently with another write of it" if writers[path] > 1 else ""
        at = when(row.get("time_ms", row.get("timestamp", 0) >> 16))
        lines.append(
            f"{path or 'The value'} was set to {show(row.get('value'))} by {row.get('origin')} at {at}{beside}."
        )
    told = False
    for item in events:
        for event in (item,) if isinstance(item, AuditEvent) else _as_events(item):
            if event.resource_id == resource_id or resource_id in _owners(event.body):
                told = True
                lines += [f"{describe(event)}.", *_details(event)]
    if not told:
        lines.append("No conflict of it is on record.")
    return "\n".join(lines)


def _as_events(record: Mapping[str, Any]) -> Iterator[AuditEvent]:
    """The two events that a conflict record of the API was put together from."""
    for type_ in ("detect", "resolve") if _map(record.get("resolution")) else ("detect",):
        yield AuditEvent(
            0, record.get("detected_ms", 0), type_, str(record.get("id", "")), str(record.get("key", "")),
            dict(record), GENESIS, GENESIS,
        )  # fmt: skip


def _owners(body: Mapping[str, Any]) -> set[str]:
    return {owner for claim in _maps(body.get("contentions")) for owner in _texts(claim.get("owners"))}


def _details(event: AuditEvent) -> Iterator[str]:
    if event.type == "detect":
        for version in _maps(event.body.get("versions")):
            for path, value in sorted(_map(version.get("values")).items()):
                yield f"  {version.get('origin')} wrote {path or 'the value'} = {show(value)}"
            for path in _texts(version.get("missing")):
                yield f"  {version.get('origin')} removed {path or 'it'}"
    elif event.type == "resolve":
        resolution = _resolution(event.body)
        for sentence in _texts(resolution.get("explanation")):
            yield f"  {sentence}"
        for lost in _maps(resolution.get("discarded")):
            where = lost.get("path") or "the value"
            yield f"  discarded: {show(lost.get('value'))} of {lost.get('origin')} at {where}: {lost.get('reason')}"


def _resolution(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The resolution in a body, which may be one or hold one."""
    return _map(body.get("resolution", body))


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []
