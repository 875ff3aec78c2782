"""The slots of one member: what it accepted, or learned, in each, from the compacted ones on. There may be holes."""

from __future__ import annotations

from collections.abc import Iterator

from nova.consensus.core import Entry

ENTRY_BYTES = 16
"""What an entry takes on the wire beyond its data, about."""


class Slots:
    """`offset` is the compacted slot before them, `offset_term` its ballot; `last` the highest that holds something."""

    def __init__(self, offset: int = 0, offset_term: int = 0) -> None:
        self.offset, self.offset_term = offset, offset_term
        self.entries: dict[int, Entry] = {}
        self.last = offset

    def get(self, slot: int) -> Entry | None:
        """What it holds; None if nothing, or if it is compacted."""
        return self.entries.get(slot)

    def term(self, slot: int) -> int | None:
        """The ballot under which it was accepted; None if it was not, or is compacted."""
        entry = self.entries.get(slot)
        if entry is not None:
            return entry.term
        return self.offset_term if slot == self.offset else None

    def put(self, entry: Entry) -> bool:
        """Put an entry into its slot; whether that changed it. What was accepted under a higher ballot stays."""
        held = self.entries.get(entry.position)
        if entry.position <= self.offset or (held is not None and held.term >= entry.term):
            return False
        self.entries[entry.position] = entry
        self.last = max(self.last, entry.position)
        return True

    def between(self, after: int, upto: int) -> tuple[Entry, ...]:
        """The entries behind `after` up to and with `upto`: all are there."""
        return tuple(self.entries[slot] for slot in range(after + 1, upto + 1))

    def slice(self, first: int, upto: int, count_max: int, bytes_max: int) -> tuple[Entry, ...]:
        """Consecutive entries from `first` on, up to `upto` or a hole: at least one if there is one."""
        out: list[Entry] = []
        size = 0
        for slot in range(first, min(upto, first + count_max - 1) + 1):
            entry = self.entries.get(slot)
            if entry is None:
                break
            size += len(entry.data) + ENTRY_BYTES
            if out and size > bytes_max:
                break
            out.append(entry)
        return tuple(out)

    def page(self, first: int, count_max: int, bytes_max: int) -> tuple[tuple[Entry, ...], int]:
        """Entries from `first` on, holes left out, and the slot of the next one that did not fit; 0 if all did."""
        out: list[Entry] = []
        size = 0
        for entry in self.held(first):
            size += len(entry.data) + ENTRY_BYTES
            if out and (len(out) >= count_max or size > bytes_max):
                return tuple(out), entry.position
            out.append(entry)
        return tuple(out), 0

    def held(self, first: int) -> Iterator[Entry]:
        """What slots from `first` on hold, in their order."""
        for slot in range(max(first, self.offset + 1), self.last + 1):
            entry = self.entries.get(slot)
            if entry is not None:
                yield entry

    def compact(self, slot: int) -> None:
        """Forget slots up to this one, which is there."""
        term = self.term(slot)
        if term is not None and slot > self.offset:
            self.skip(slot, term)

    def skip(self, slot: int, term: int) -> None:
        """Begin behind a snapshot. What was accepted behind it stays: the promise to remember it does not end."""
        if slot - self.offset < len(self.entries):
            for number in range(self.offset + 1, slot + 1):
                self.entries.pop(number, None)
        else:
            self.entries = {number: entry for number, entry in self.entries.items() if number > slot}
        self.offset, self.offset_term = slot, term
        self.last = max(self.last, slot)
