"""Phase 1 of one proposer: who promised, and what is to be proposed for the slots that are open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nova.consensus.core import Entry, Kind
from nova.types import NodeId


class Campaign:
    """`probe`: nobody promises yet, they say whether they would."""

    def __init__(self, ballot: int, *, probe: bool) -> None:
        self.ballot, self.probe = ballot, probe
        self.promised: set[NodeId] = set()
        self._found: dict[int, Entry] = {}

    def heard(self, entries: Iterable[Entry]) -> Entry | None:
        """Take what somebody accepted; an entry if its ballot is known with another value, which cannot be.

        Of each slot the value of the highest ballot counts: whatever may have been decided before is that.
        """
        for entry in entries:
            known = self._found.get(entry.position)
            if known is None or entry.term > known.term:
                self._found[entry.position] = entry
            elif entry.term == known.term and (entry.kind, entry.data) != (known.kind, known.data):
                return entry
        return None

    def values(self, first: int) -> Sequence[tuple[Kind, bytes]]:
        """What to propose for the slots from `first` on: what was found, and no-ops where nothing was.

        Behind a seal nothing: what stands there is void, whether it is decided or not.
        """
        out: list[tuple[Kind, bytes]] = []
        for slot in range(first, max(self._found, default=0) + 1):
            entry = self._found.get(slot)
            out.append((Kind.NOOP, b"") if entry is None else (entry.kind, entry.data))
            if entry is not None and entry.kind == Kind.SEAL:
                break
        return out
