"""Who has to agree. Two quorums that decide about the same thing must share a member; that is checked when one is made.

Every strategy answers two questions: whether a set of members is a quorum, and up to which position a quorum has
stored a log. `phase1` elects (prepares, votes), `phase2` commits; in all but `Flexible` they are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from nova.errors import UsageError
from nova.types import NodeId


class Quorum(Protocol):
    """A strategy over the members that it was made for."""

    members: tuple[NodeId, ...]

    def phase1(self, who: Collection[NodeId]) -> bool:
        """These may elect a leader: they share a member with every commit."""

    def phase2(self, who: Collection[NodeId]) -> bool:
        """These may commit."""

    def committed(self, stored: Mapping[NodeId, int]) -> int:
        """The highest position that a commit quorum has stored; who is absent stored nothing."""


class Majority:
    """More than half."""

    def __init__(self, members: Collection[NodeId]) -> None:
        self.members = _named(members)
        self._needed = len(self.members) // 2 + 1

    def phase1(self, who: Collection[NodeId]) -> bool:
        count = 0
        for member in self.members:
            count += member in who
        return count >= self._needed

    phase2 = phase1

    def committed(self, stored: Mapping[NodeId, int]) -> int:
        positions = [stored.get(member, 0) for member in self.members]
        positions.sort(reverse=True)
        return positions[self._needed - 1]


def _named(members: Collection[NodeId]) -> tuple[NodeId, ...]:
    named = tuple(sorted(members))
    if not named or len(set(named)) < len(named):
        raise UsageError(f"the members of a quorum are {list(members)}; name at least 1, and each once")
    return named
