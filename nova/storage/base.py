"""The storage seam: what a log and a snapshot store promise, on real files or on a simulated disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol


class Log(Protocol):
    """Append-only records; a record is acknowledged only when it would survive the loss of power.

    Positions count records from 1 and never go back. `append` buffers; `sync` makes everything appended so far
    durable and then calls `done(position)` with the last durable position. Where `done` runs is the driver's
    business: the real log calls it in its own thread, the simulated one when its virtual disk is ready.
    """

    @property
    def first(self) -> int:
        """Position of the oldest record kept; `last + 1` if there is none."""

    @property
    def last(self) -> int:
        """Position of the newest record appended, 0 if there never was one."""

    @property
    def durable(self) -> int:
        """Position of the newest record known to be on disk."""

    def append(self, records: list[bytes]) -> int:
        """Append records; returns the position of the last one. Not durable yet."""

    def sync(self, done: Callable[[int, BaseException | None], None]) -> None:
        """Start making all appended records durable; calls `done(durable position, error)` once, when they are.

        After the first error the log refuses all further work: a failed fsync may have thrown pages away.
        """

    def replay(self, start: int = 1) -> Iterator[tuple[int, bytes]]:
        """(position, record) pairs from `start` on, oldest first."""

    def truncate_before(self, position: int) -> None:
        """Records before `position` may be forgotten (whole segments only)."""

    def close(self) -> None:
        """Sync, close the files; may be called twice."""


class Snapshots(Protocol):
    """Whole states, each written completely or not at all."""

    def save(self, position: int, state: bytes) -> None:
        """Store `state`, which covers the log up to `position`, durably; then drop older ones but one."""

    def load(self) -> tuple[int, bytes] | None:
        """The newest whole snapshot as (position, state), or None. A damaged one is passed over for the one before
        it; if there are snapshots but none is whole, CorruptionError."""
