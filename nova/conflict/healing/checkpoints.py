"""Points to come back to: when to take one, which to start from, which to drop; and building a state again from one.

A checkpoint is a whole state and the position of the log that it covers. The state as of a time T is the newest
checkpoint that holds nothing newer, and then the records behind it that hold nothing newer. Times are hybrid logical
clocks: what a write depends on has a smaller stamp, so what is cut at one stamp never lacks a cause (Kulkarni et al.
2014).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

from nova.errors import CorruptionError, UnavailableError, UsageError
from nova.types import NodeId

STAMP_LOGICAL_BITS: Final = 16
"""Bits of the counter below the milliseconds of a hybrid logical clock."""


def stamp_limit(at_ms: int) -> int:
    """The greatest stamp of a write that was made at `at_ms`, Unix time, or before."""
    if not 0 <= at_ms < 1 << 47:
        raise UsageError(f"the time is {at_ms} ms; give Unix milliseconds")
    return (at_ms + 1 << STAMP_LOGICAL_BITS) - 1


def time_ms(text: str, name: str) -> int:
    """Unix milliseconds, or a time with its zone as in RFC 3339. Raises UsageError that calls it `name`."""
    if text.isascii() and text.isdecimal() and len(text) <= 15:
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise UsageError(
            f"{name} is {text[:80]!r}; give Unix milliseconds, or a time with its zone: 2026-01-31T12:00:00Z"
        )
    return round(at.timestamp() * 1000)


class Checkpoint(msgspec.Struct, frozen=True):
    """What is known of a checkpoint.

    position  of the newest record of the log that it holds
    time_ms   when it was taken, Unix time
    stamp     hybrid logical clock of the newest write that it holds
    digest    of the state, hex
    """

    position: int
    time_ms: int
    stamp: int
    node: NodeId
    incarnation: int
    keys: int
    digest: str


class Schedule:
    """When the next checkpoint is due.

    interval_ms  0: never by itself
    """

    __slots__ = ("_position", "_time_ms", "interval_ms", "newest_ms")

    def __init__(self, interval_ms: int, newest: Checkpoint | None = None) -> None:
        if interval_ms < 0:
            raise UsageError(f"interval_ms is {interval_ms}; give 0 for none, or more")
        self.interval_ms = interval_ms
        self._position: int = newest.position if newest is not None else 0
        self._time_ms: int | None = newest.time_ms if newest is not None else None
        self.newest_ms = self._time_ms or 0
        """When the newest one was taken, 0 if there is none."""

    def due(self, now_ms: int, position: int) -> bool:
        """Whether one should be taken now: at once if there is none, never where the log is no longer than at the last.

        A clock that was set back does not put it off for longer than an interval.
        """
        if self.interval_ms == 0 or position <= self._position:
            return False
        return self._time_ms is None or not 0 <= now_ms - self._time_ms < self.interval_ms

    def taken(self, checkpoint: Checkpoint) -> None:
        """One was taken, on demand or because it was due."""
        self._position, self._time_ms = checkpoint.position, checkpoint.time_ms
        self.newest_ms = checkpoint.time_ms

    def failed(self, now_ms: int) -> None:
        """One could not be stored: the next is due an interval from now, not at once."""
        self._time_ms = now_ms


def newest_before(checkpoints: Iterable[Checkpoint], limit: int) -> Checkpoint | None:
    """The newest one that holds no write over the stamp `limit`."""
    return max((c for c in checkpoints if c.stamp <= limit), key=lambda c: c.position, default=None)


# ------------------------------------------------------------------------------------------------ bytes

_HEAD_BYTES: Final = 2
HEAD_BYTES_MAX: Final = _HEAD_BYTES + (1 << 16)


def pack(checkpoint: Checkpoint, state: bytes) -> bytes:
    """One piece of bytes for a store of snapshots, which adds checksum and version."""
    head = msgspec.msgpack.encode(checkpoint)
    return len(head).to_bytes(_HEAD_BYTES, "little") + head + state


def unpack(data: bytes) -> tuple[Checkpoint, bytes]:
    """What was packed; given only the beginning of it, what is known. Raises CorruptionError."""
    end = _HEAD_BYTES + int.from_bytes(data[:_HEAD_BYTES], "little")
    try:
        return msgspec.msgpack.decode(data[_HEAD_BYTES:end], type=Checkpoint), data[end:]
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CorruptionError(
            f"a checkpoint of {len(data)} bytes cannot be read: {error}; delete it to use another one"
        ) from None


# ------------------------------------------------------------------------------------------------ building again


class Target(Protocol):
    """What a state is built in: empty at first."""

    @property
    def digest(self) -> str: ...
    def restore(self, state: bytes) -> None: ...
    def replay(self, record: bytes) -> Any: ...


class Rebuilt(msgspec.Struct, frozen=True):
    """What was done. `taken` and `passed_over` count records; what was passed over is newer than was asked for."""

    start: int
    end: int
    taken: int
    passed_over: int
    digest: str


def rebuild(
    target: Target,
    checkpoint: tuple[Checkpoint, bytes] | None,
    records: Iterable[tuple[int, bytes]],
    *,
    take: Callable[[bytes], bool] | None = None,
    digest: str = "",
) -> Rebuilt:
    """Build a state again: from a checkpoint, or from nothing, by the records behind it.

    records  (position, record), oldest first; those that the checkpoint holds are passed over
    take     takes a record, or says False: newer than what is asked for. None: all are taken
    digest   what the state must have in the end; "" if nobody knows
    raises   CorruptionError if the checkpoint is not what it says, a record is missing, or the state is another in the
             end: no gap is ever skipped. Whatever `records` or the target raise passes through
    """
    start = 0
    if checkpoint is not None:
        known, state = checkpoint
        target.restore(state)
        if target.digest != known.digest:
            raise CorruptionError(
                f"the checkpoint at record {known.position} has digest {target.digest}, not {known.digest}; use another"
            )
        start = known.position
    position, taken, passed_over = start, 0, 0
    for at, record in records:
        if at <= start:
            continue
        if at != position + 1:
            raise CorruptionError(f"record {position + 1} is missing, {at} follows {position}; use a later checkpoint")
        position = at
        if take is None:
            target.replay(record)
            taken += 1
        elif take(record):
            taken += 1
        else:
            passed_over += 1
    if digest and target.digest != digest:
        raise CorruptionError(
            f"after record {position} the state has digest {target.digest}, not {digest}: the log or a checkpoint is "
            "not what was written; restore from a replica"
        )
    return Rebuilt(start, position, taken, passed_over, target.digest)


def reachable(first: int, checkpoints: Sequence[Checkpoint], limit: int) -> Checkpoint | None:
    """Where to start for the stamp `limit`, in a log whose oldest record is `first`; None: at the beginning of the log.

    raises  UnavailableError if the log does not reach back that far any more
    """
    chosen = newest_before(checkpoints, limit)
    start = 0 if chosen is None else chosen.position
    if first > start + 1:
        times = [c.stamp >> STAMP_LOGICAL_BITS for c in checkpoints if first <= c.position + 1]
        oldest = f"the oldest time is {min(times)} ms" if times else "there is no checkpoint that reaches"
        raise UnavailableError(
            f"the log starts at record {first}, and {limit >> STAMP_LOGICAL_BITS} ms is before that; {oldest}: take "
            "checkpoints more often, or keep more of them"
        )
    return chosen
