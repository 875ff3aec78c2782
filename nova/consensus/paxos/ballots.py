"""Ballots: (round, node) pairs in one number, so that they compare as numbers and stand in an entry's `term`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nova.types import NodeId

ROUND_MAX: Final = 1 << 40
"""What a peer may name: at one campaign a microsecond it takes 12 days."""


class Ballots:
    """The ballots of an epoch's members, who are sorted and never change in it. 0 is before every ballot.

    A ballot is round * members + index of its node: ordered by round, then by node, and nobody else can make it.
    """

    def __init__(self, members: Sequence[NodeId]) -> None:
        self._members = tuple(members)
        self._index = {member: index for index, member in enumerate(self._members)}

    def make(self, round: int, node: NodeId) -> int:
        """The ballot of a member in a round, from 1 on."""
        assert round >= 1, round
        return round * len(self._members) + self._index[node]

    def round(self, ballot: int) -> int:
        """Its round; 0 if it is none."""
        return ballot // len(self._members)

    def owner(self, ballot: int) -> NodeId | None:
        """Who alone may use it; None for what is no ballot."""
        if not 1 <= self.round(ballot) <= ROUND_MAX:
            return None
        return self._members[ballot % len(self._members)]
