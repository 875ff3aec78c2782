"""The log of one member: entries in memory from the compacted position on, and which of them are durable."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from nova._native.raft import LogState
from nova.consensus.core import Entry
from nova.errors import CorruptionError


class EntryLog(LogState):
    """Entries `first` .. `last`; `offset` is the compacted position before them, `offset_term` its term."""

    def __init__(self, offset: int = 0, offset_term: int = 0) -> None:
        self.offset, self.offset_term = offset, offset_term
        self.entries: list[Entry] = []
        self.durable = offset
        self._syncing: deque[tuple[int, int]] = deque()  # (token, position)

    @property
    def last(self) -> int:
        return self.offset + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.offset_term

    def term(self, position: int) -> int | None:
        """The term of a position; None if it is compacted or not there."""
        if position == self.offset:
            return self.offset_term
        if self.offset < position <= self.last:
            return self.entries[position - self.offset - 1].term
        return None

    def matches(self, position: int, term: int) -> bool:
        """An entry of this term stands there."""
        return self.term(position) == term

    def up_to_date(self, last: int, last_term: int) -> bool:
        """A log that ends there is at least as new as this one (Raft 5.4.1)."""
        return (last_term, last) >= (self.last_term, self.last)

    def slice(self, first: int, count_max: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries from `first` on: at least one if there is one."""
        out: list[Entry] = []
        size = 0
        start = first - self.offset - 1
        for entry in self.entries[start : start + count_max]:
            size += len(entry.data) + 16
            if out and size > bytes_max:
                break
            out.append(entry)
        return tuple(out)

    def between(self, after: int, upto: int) -> tuple[Entry, ...]:
        """Entries behind `after` up to and with `upto`."""
        return tuple(self.entries[after - self.offset : upto - self.offset])

    def conflict(self, entries: Sequence[Entry]) -> int | None:
        """Position of the first of these (consecutive) entries that is not in the log like this; None if all are."""
        for entry in entries:
            if not self.matches(entry.position, entry.term):
                return entry.position
        return None

    def last_at_most(self, position: int, term: int) -> int:
        """The highest position up to `position` whose term is at most `term`, or the compacted one."""
        position = min(position, self.last)
        while position > self.offset and (self.term(position) or 0) > term:
            position -= 1
        return position

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at their positions; what stood there, and behind, goes."""
        first = entries[0].position
        if not self.offset < first <= self.last + 1:
            raise CorruptionError(f"an entry for position {first} does not fit behind {self.offset}..{self.last}")
        if first <= self.last:
            del self.entries[first - self.offset - 1 :]
            self.durable = min(self.durable, first - 1)
            # A sync that is still under way writes what stood there: it says nothing about what stands there now.
            self._syncing = deque((token, min(position, first - 1)) for token, position in self._syncing)
        self.entries += entries

    def syncing(self, token: int) -> None:
        """All that is in the log now is durable when this token is."""
        self._syncing.append((token, self.last))

    def synced(self, token: int) -> None:
        """That token is durable."""
        while self._syncing and self._syncing[0][0] <= token:
            self.durable = max(self.durable, self._syncing.popleft()[1])

    def compact(self, position: int) -> None:
        """Forget entries up to a position that is in the log."""
        term = self.term(position)
        if term is None or position <= self.offset:
            return
        del self.entries[: position - self.offset]
        self.offset, self.offset_term = position, term
        self.durable = max(self.durable, position)

    def reset(self, position: int, term: int) -> None:
        """Begin anew behind a snapshot."""
        self.entries.clear()
        self._syncing.clear()
        self.offset = self.durable = position
        self.offset_term = term
