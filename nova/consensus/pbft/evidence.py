"""What was seen that no correct member does, or that nobody may say: counted, never acted upon alone.

A network that damages messages, a peer with old keys and a thief look alike from here, so a count is a reason to look,
not a verdict. The table has one cell for each member and kind, and one row for all strangers.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from nova.types import NodeId

STRANGERS = ""
"""The row of those who are no members."""


class Wrong(Enum):
    """Kinds of evidence. Two prove nothing, since correct members give cause for them as well: STALE, a message of an
    older view, and WINDOW, a position out of reach for one that is behind."""

    OUTSIDER = "outsider"
    AUTHENTICATOR = "authenticator"
    MALFORMED = "malformed"
    STALE = "stale"
    NOT_PRIMARY = "not primary"
    WINDOW = "window"
    DIGEST = "digest"
    EQUIVOCATION = "equivocation"
    CONTENT = "content"
    SIGNATURE = "signature"
    NEW_VIEW = "new view"
    STATE = "state"


class Evidence:
    """Counts by member and kind."""

    def __init__(self, members: Collection[NodeId]) -> None:
        self._members = frozenset(members)
        self.counts: dict[tuple[NodeId, Wrong], int] = {}

    def count(self, who: NodeId, wrong: Wrong) -> None:
        """Once more."""
        row = who if who in self._members else STRANGERS
        self.counts[row, wrong] = self.counts.get((row, wrong), 0) + 1

    def of(self, who: NodeId, wrong: Wrong | None = None) -> int:
        """How often; without `wrong` every kind that is held against one."""
        if wrong is not None:
            return self.counts.get((who, wrong), 0)
        return sum(
            n for (row, kind), n in self.counts.items() if row == who and kind not in (Wrong.STALE, Wrong.WINDOW)
        )
