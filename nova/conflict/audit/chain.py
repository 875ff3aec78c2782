"""The chain: every event of the audit trail, in an order nobody can rewrite.

Each record holds the hash of the one before it, so that a changed byte, a record taken out or two exchanged break the
chain from there on (Haber & Stornetta 1991). What a chain cannot see by itself is a tail that was cut off: for that,
`verify` is given the mark (count and hash) of the newest record, which is kept somewhere else, sealed if need be.
Retention moves the anchor: the mark of the last record dropped is where the rest is verified from.

Without a key, whoever can write the file can also make up a new chain; with one (up to 64 bytes, kept elsewhere) only
its holder can. This module makes and reads bytes; where they are stored is the caller's business.

A record: 4 bytes magic and version, 32 bytes hash, 32 bytes hash of the record before, then the content: canonical
MessagePack of [seq, time_ms, type, conflict_id, resource_id, body]. With C and L the BLAKE3 hashes keyed for contents
and for links, hash = L(hash before || C(content)). The links are one block each, and all that is long can be hashed
side by side.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from hmac import compare_digest
from itertools import islice
from typing import Any, Final

import msgspec

from nova._native.audit import ALTERED, MAGIC, MALFORMED, UNLINKED, WHOLE, Chain, blake3, blake3_derive
from nova.conflict.detect import MISSING, canonical
from nova.errors import CorruptionError, UsageError

GENESIS: Final = bytes(32)
"""What the first record names as its predecessor's hash."""
TYPES: Final = frozenset(
    ("detect", "resolve", "fail", "escalate", "rollback", "vote", "decision", "point", "retain", "erase")
)
"""What an event can be: a conflict was found, settled, not settled, handed on; a resource was rolled back; votes were
counted; somebody decided; a state was kept to return to; old events were dropped; a subject's key was destroyed."""

Event = tuple[str, int, str, str, Mapping[str, Any]]
"""(type, time_ms, conflict_id, resource_id, body) of an event that is to be appended."""

_BATCH: Final = 1024
_HASH_END: Final = len(MAGIC) + 32
_PREVIOUS_END: Final = _HASH_END + 32
_SEAL: Final = "nova audit 2: seal of a head"


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

    def __str__(self) -> str:
        return f"{self.count}:{self.hash.hex()}"

    @staticmethod
    def parse(text: str) -> ChainMark:
        """Read what `str` or `seal` wrote, without looking at a seal. Raises UsageError."""
        count, _, rest = text.partition(":")
        try:
            mark = ChainMark(int(count), bytes.fromhex(rest.partition(":")[0]))
        except ValueError:
            mark = ChainMark(-1)
        if mark.count < 0 or len(mark.hash) != 32:
            raise UsageError(f"{text[:80]!r} is no mark of a chain; give COUNT:HASH as `nova audit head` prints it")
        return mark

    def seal(self, key: bytes) -> str:
        """COUNT:HASH:SEAL, for keeping where others can write; the seal is a MAC that takes the key to make."""
        return f"{self}:{self._mac(key)}"

    @staticmethod
    def unseal(text: str, key: bytes) -> ChainMark:
        """Read what `seal` wrote. Raises CorruptionError if somebody without the key made or changed it."""
        mark = ChainMark.parse(text)
        if not compare_digest(text.encode(), mark.seal(key).encode()):
            raise CorruptionError(
                f"the seal of the head {mark.count} does not fit: it was changed, or the key is another; "
                "use the copy of the head that you keep elsewhere"
            )
        return mark

    def _mac(self, key: bytes) -> str:
        return blake3(str(self).encode(), blake3_derive(_SEAL, key)).hex()


class Verdict(msgspec.Struct, frozen=True):
    """What `verify` found: `events` good records up to `head`; `error` says what is wrong behind them."""

    ok: bool
    events: int
    head: ChainMark
    error: str | None = None


class AuditChain(Chain):
    """The end that grows.

    head, seq  hash and number of the newest record, as `mark` told them; the defaults begin a new chain
    key        secret of up to 64 bytes that hashes depend on; b"" for none
    """

    __slots__ = ()

    def __init__(self, head: bytes = GENESIS, seq: int = 0, *, key: bytes = b"") -> None:
        super().__init__(head, seq, key=key)

    @property
    def mark(self) -> ChainMark:
        """Where the chain ends now: keep it away from the log, and `verify` finds a cut tail."""
        return ChainMark(self.seq, self.head)

    def append(self, type: str, time_ms: int, conflict_id: str, resource_id: str, body: Mapping[str, Any]) -> bytes:
        """The next record. Raises UsageError, and leaves the chain as it was, for a type that there is not."""
        if type not in TYPES:
            raise _unknown(type)
        try:
            return self.link(type, time_ms, conflict_id, resource_id, encoded(body))
        except UnicodeEncodeError as error:
            raise _surrogate(error) from None

    def append_many(self, events: Iterable[Event]) -> list[bytes]:
        """The next records: all of them or, if one is wrong, none. Their contents are hashed side by side."""
        ready = [(kind, at, conflict, resource, encoded(body)) for kind, at, conflict, resource, body in events]
        if not TYPES.issuperset(kinds := {event[0] for event in ready}):
            raise _unknown(min(kinds - TYPES))
        try:
            return self.link_many(ready)
        except UnicodeEncodeError as error:
            raise _surrogate(error) from None

    def resume(self, event: AuditEvent) -> None:
        """Go on behind `event`, the next one that a restarted owner read back. Raises CorruptionError on a gap."""
        if event.seq != self.seq + 1 or event.previous != self.head:
            raise CorruptionError(
                f"audit event {event.seq} does not follow event {self.seq}: records were removed or exchanged; "
                "restore the log from another replica"
            )
        self.go_on(event.hash, event.seq)


def encoded(body: Any) -> bytes:
    """A value as a record holds it: canonical MessagePack, or what names its type."""
    try:
        return _ENCODE(body)
    except (OverflowError, TypeError):  # integers over 64 bits, keys that are no text
        return _ENCODE({"$": "canonical", "bytes": canonical(body)})


def _surrogate(error: UnicodeEncodeError) -> UsageError:
    return UsageError(f"an id of an audit event holds half of a surrogate pair: {error.object!r}; ids are UTF-8 text")


def _unknown(type: str) -> UsageError:
    return UsageError(f"audit type {type!r} is unknown; use one of {', '.join(sorted(TYPES))}")


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
    cost    about 0.1 us for a record of 200 bytes; memory for a thousand records
    """
    at = anchor or ChainMark()
    chain, count, last = Chain(GENESIS, key=key), at.count, at.hash
    rest = iter(records)
    while batch := list(islice(rest, _BATCH)):
        good, fault, last = chain.check(batch, count, last)
        count += good
        if fault != WHOLE:
            return Verdict(False, count - at.count, ChainMark(count, last), _fault(fault, count + 1, batch[good]))
    mark = ChainMark(count, last)
    error = None
    if head is not None and mark != head:
        if count < head.count:
            error = f"the chain ends at record {count}, it once reached {head.count}: its tail was cut off"
        elif count > head.count:
            error = f"the chain has {count} records, its head names {head.count}: the head is old"
        else:
            error = f"record {count} has another hash than the head says: the chain was made anew"
    return Verdict(error is None, count - at.count, mark, error)


def _fault(fault: int, number: int, record: bytes) -> str:
    if fault == MALFORMED:
        begin = bytes(record[: len(MAGIC)])
        return f"record {number} of {len(record)} bytes begins {begin.hex()!r}, not {MAGIC.hex()!r}: it is no record"
    if fault == ALTERED:
        return f"record {number} does not match its hash: its bytes were changed, or the key is another"
    if fault == UNLINKED:
        return f"record {number} does not follow record {number - 1}: records were removed, added or exchanged"
    try:
        seq = decode_event(record).seq
    except CorruptionError as problem:
        return f"record {number}: {problem}"
    return f"record {number} calls itself {seq}: records were removed, added or exchanged"


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
