"""The state machine of strong keys: a map from keys to JSON values, every change of which has a number.

It is deterministic, knows no clock, and never raises over a command: whatever comes through the log is answered, alike
at every member. Commands have to come in one order for all keys (under EPaxos: all under one key), since versions are
numbers of that order. At most once is the engine's doing (`nova.consensus.sessions`).

What it keeps is bounded: keys and values by the `bytes_max` of the commands, the feed by count and by bytes. The feed
is not part of the state: it begins anew with a snapshot, and `compacted` says where.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NoReturn

import msgspec

from nova.consensus.core import Command
from nova.errors import CompactedError, CorruptionError, UsageError
from nova.store.strong.commands import (
    CONDITIONS_MAX,
    LIST_BYTES_MAX,
    LIST_MAX,
    OPERATIONS_MAX,
    Add,
    Change,
    Condition,
    Exists,
    Get,
    Held,
    Listed,
    Operation,
    Read,
    Remove,
    Told,
    Transact,
    ValueIs,
    Verdict,
    VersionIs,
    Write,
    pack,
    packed,
    unpack_command,
    unpack_query,
    unpacked,
)

FEED_MAX: Final = 65_536
FEED_BYTES_MAX: Final = 32 << 20
ENTRY_BYTES: Final = 64
"""What an entry counts for beside its key and value."""
STATE_VERSION: Final = 1
INTEGER_MAX: Final = (1 << 63) - 1
_MASK: Final = (1 << 128) - 1


class StrongMachine:
    """The machine; see `nova.consensus.sessions.Machine`.

    feed_max, feed_bytes_max  changes that can be watched, by count and by bytes of keys and values
    """

    def __init__(self, *, feed_max: int = FEED_MAX, feed_bytes_max: int = FEED_BYTES_MAX) -> None:
        self._feed_max, self._feed_bytes_max = feed_max, feed_bytes_max
        self.revision = 0
        """Changes so far."""
        self.bytes = 0
        """Size of the state, as `bytes_max` counts."""
        self.asked = self.stale = 0
        """Transactions since this machine was made, and those whose conditions did not hold; not part of the state."""
        self._held: dict[str, Held] = {}
        self._keys: list[str] = []
        self._digest = 0
        self._feed: deque[Change] = deque()  # one for each revision behind `compacted`, without gaps
        self._feed_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def digest(self) -> str:
        """Equal where equal keys hold equal values at equal versions."""
        return f"{self._digest:032x}"

    # -- commands --

    def apply(self, commands: Sequence[Command]) -> list[bytes]:
        """Apply in order; a packed `Told` for each."""
        return [pack(self._told(command.data)) for command in commands]

    def _told(self, data: bytes) -> Told:
        try:
            asked = unpack_command(data)
        except (msgspec.MsgspecError, ValueError) as error:
            return Told(Verdict.REFUSED, self.revision, None, reason=f"no command of strong keys: {error}")
        self.asked += 1
        before = self._held.get(asked.key)
        if not asked.key or len(asked.conditions) > CONDITIONS_MAX or len(asked.operations) > OPERATIONS_MAX:
            reason = (
                f"a key of {len(asked.key)} characters, {len(asked.conditions)} conditions and "
                f"{len(asked.operations)} operations; a key has 1 or more, and the limits are {CONDITIONS_MAX} and "
                f"{OPERATIONS_MAX}"
            )
            return Told(Verdict.REFUSED, self.revision, before, reason=reason)
        for index, condition in enumerate(asked.conditions):
            if not _holds(condition, before):
                self.stale += 1
                return Told(Verdict.STALE, self.revision, before, index)
        value = None if before is None else before.value
        changes = False
        results: list[bytes | None] = []
        for index, operation in enumerate(asked.operations):
            try:
                value = _carried_out(operation, value)
            except (UsageError, msgspec.MsgspecError, ValueError, OverflowError) as error:
                return Told(Verdict.REFUSED, self.revision, before, index, reason=str(error))
            changes = changes or not isinstance(operation, Read)
            results.append(value)
        if changes and not (before is None and value is None):
            grown = self.bytes + _size(asked.key, value) - _size(asked.key, None if before is None else before.value)
            # What makes it smaller is done however full it is: else nobody could make room.
            if grown > asked.bytes_max and grown > self.bytes:
                reason = (
                    f"strong keys would take {grown} bytes; the limit is {asked.bytes_max}: delete some, or raise "
                    "consensus.bytes_max (for the keys of a region: hybrid.bytes_max)"
                )
                return Told(Verdict.REFUSED, self.revision, before, reason=reason)
            self.bytes = grown
            self._change(asked, before, value)
        return Told(Verdict.DONE, self.revision, self._held.get(asked.key), results=tuple(results))

    def _change(self, asked: Transact, before: Held | None, value: bytes | None) -> None:
        key = asked.key
        self.revision += 1
        held = None if value is None else Held(value, self.revision, asked.time_ms, asked.origin)
        self._digest = (self._digest - _hash(key, before) + _hash(key, held)) & _MASK
        if held is not None:
            if before is None:
                insort(self._keys, key)
            self._held[key] = held
        else:
            del self._keys[bisect_left(self._keys, key)]
            del self._held[key]
        self._feed.append(Change(self.revision, key, held, asked.time_ms, asked.origin))
        self._feed_bytes += _size(key, value)
        while len(self._feed) > self._feed_max or (self._feed_bytes > self._feed_bytes_max and len(self._feed) > 1):
            gone = self._feed.popleft()
            self._feed_bytes -= _size(gone.key, None if gone.held is None else gone.held.value)

    # -- queries --

    def read(self, query: bytes) -> bytes:
        """Answer a packed `Get` or `Page`. Raises UsageError for anything else."""
        try:
            asked = unpack_query(query)
        except (msgspec.MsgspecError, ValueError) as error:
            raise UsageError(f"no query of strong keys: {error}") from None
        if isinstance(asked, Get):
            return pack(self._held.get(asked.key))  # type: ignore[no-any-return]
        return pack(self.page(asked.prefix, asked.after, asked.limit))  # type: ignore[no-any-return]

    def get(self, key: str) -> Held | None:
        """What a key holds here."""
        return self._held.get(key)

    def page(self, prefix: str, after: str, limit: int) -> Listed:
        """Up to `limit` (1 to 1,000) keys that begin with `prefix`, in order, behind `after`; "": from the start."""
        if not 1 <= limit <= LIST_MAX:
            raise UsageError(f"limit is {limit}; ask for 1 to {LIST_MAX} keys")
        keys = self._keys
        start = max(bisect_left(keys, prefix), bisect_right(keys, after) if after else 0)
        items: list[tuple[str, Held]] = []
        size = 0
        for index in range(start, len(keys)):
            key = keys[index]
            if not key.startswith(prefix):
                break
            held = self._held[key]
            size += _size(key, held.value)
            if len(items) == limit or (items and size > LIST_BYTES_MAX):
                return Listed(self.revision, tuple(items), True)
            items.append((key, held))
        return Listed(self.revision, tuple(items), False)

    # -- feed --

    @property
    def compacted(self) -> int:
        """Changes up to this revision are forgotten."""
        return self.revision - len(self._feed)

    def changes(self, since: int, prefix: str = "", limit: int = LIST_MAX) -> tuple[list[Change], int]:
        """Changes behind a revision, of `limit` revisions at most, and the revision to go on from.

        raises  CompactedError if some of them are forgotten
        """
        if since < self.compacted:
            raise CompactedError(
                f"changes of strong keys up to revision {self.compacted} are compacted, {since} was asked for; list "
                "the keys and watch from the revision of /v1/consensus, or of the region in /v1/status",
                self.compacted,
            )
        upto = min(self.revision, since + limit)
        found = (self._feed[at - self.compacted - 1] for at in range(since + 1, upto + 1))
        return [change for change in found if change.key.startswith(prefix)], max(since, upto)

    # -- snapshots --

    def snapshot(self) -> bytes:
        """The whole state; equal states give equal bytes."""
        return pack((STATE_VERSION, self.revision, [(key, self._held[key]) for key in self._keys]))  # type: ignore[no-any-return]

    def restore(self, data: bytes) -> None:
        """Replace the state. Raises CorruptionError."""
        try:
            version, revision, items = _unpack_state(data)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"a state of {len(data)} bytes holds no strong keys: {error}") from None
        if version != STATE_VERSION:
            raise CorruptionError(
                f"the state of strong keys has format {version}, this release reads {STATE_VERSION}: upgrade this node"
            )
        if revision != self.revision:
            self._feed.clear()
            self._feed_bytes = 0
        self.revision = revision
        self._held = dict(items)
        self._keys = sorted(self._held)
        self.bytes = sum(_size(key, held.value) for key, held in items)
        self._digest = sum(_hash(key, held) for key, held in items) & _MASK


_unpack_state = msgspec.msgpack.Decoder(tuple[int, int, list[tuple[str, Held]]]).decode


def _holds(condition: Condition, held: Held | None) -> bool:
    match condition:
        case VersionIs(version):
            return version == (0 if held is None else held.version)
        case ValueIs(value):
            return held is not None and held.value == value
        case Exists():
            return held is not None


def _carried_out(operation: Operation, value: bytes | None) -> bytes | None:
    """What the key holds behind it. Raises UsageError."""
    match operation:
        case Write(new):
            return new
        case Remove():
            return None
        case Add(amount):
            return _sum(value, amount)
        case Read():
            return value


def _sum(value: bytes | None, amount: int | float) -> bytes:
    number = 0 if value is None else unpacked(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UsageError("add needs a number; the key holds something else")
    total = number + amount
    if isinstance(total, float) and not math.isfinite(total):
        _too_large(total)
    if isinstance(total, int) and not -INTEGER_MAX <= total <= INTEGER_MAX:
        _too_large(total)
    return packed(total)


def _too_large(total: float) -> NoReturn:
    raise UsageError(f"the sum would be {total}; integers lie within 63 bits, other numbers are finite")


def _size(key: str, value: bytes | None) -> int:
    return 0 if value is None else len(key.encode()) + len(value) + ENTRY_BYTES


def _hash(key: str, held: Held | None) -> int:
    if held is None:
        return 0
    return int.from_bytes(blake2b(pack((key, held.value, held.version)), digest_size=16).digest(), "big")


__all__ = ["StrongMachine"]
