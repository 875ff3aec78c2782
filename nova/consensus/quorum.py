"""Who has to agree. Two quorums that decide about the same thing must share a member; that is checked when one is made.

Every strategy answers two questions: whether a set of members is a quorum, and up to which position a quorum has
stored a log. `phase1` elects (prepares, votes), `phase2` commits; in all but `Flexible` they are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fractions import Fraction
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


class _Quorum:
    """What all strategies share: both phases alike unless they say otherwise, and the search for a commit."""

    def __init__(self, members: Collection[NodeId]) -> None:
        self.members = _named(members)

    def phase1(self, who: Collection[NodeId]) -> bool:
        return self.phase2(who)

    def phase2(self, who: Collection[NodeId]) -> bool:
        raise NotImplementedError

    def committed(self, stored: Mapping[NodeId, int]) -> int:
        for position in sorted({stored.get(member, 0) for member in self.members}, reverse=True):
            if self.phase2([member for member in self.members if stored.get(member, 0) >= position]):
                return position
        return 0

    def _count(self, who: Collection[NodeId]) -> int:
        count = 0
        for member in self.members:
            count += member in who
        return count


class Majority(_Quorum):
    """More than half."""

    def __init__(self, members: Collection[NodeId]) -> None:
        super().__init__(members)
        self._needed = len(self.members) // 2 + 1

    def phase2(self, who: Collection[NodeId]) -> bool:
        return self._count(who) >= self._needed

    def committed(self, stored: Mapping[NodeId, int]) -> int:
        positions = [stored.get(member, 0) for member in self.members]
        positions.sort(reverse=True)
        return positions[self._needed - 1]


class Flexible(_Quorum):
    """Any `phase1` members elect, any `phase2` commit (Howard, Malkhi & Spiegelman 2016).

    Small commit quorums are fast and survive less: with `phase2` members gone nobody may be elected any more.
    raises  UsageError if an election could miss a commit: phase1 + phase2 has to be greater than the number of members
    """

    def __init__(self, members: Collection[NodeId], *, phase1: int, phase2: int) -> None:
        super().__init__(members)
        count = len(self.members)
        if not (1 <= phase1 <= count and 1 <= phase2 <= count and phase1 + phase2 > count):
            raise UsageError(
                f"quorums of {phase1} and {phase2} of {count} members need not meet; both lie between 1 and {count}, "
                f"and their sum is {count + 1} or more"
            )
        self._needed = phase1, phase2

    def phase1(self, who: Collection[NodeId]) -> bool:
        return self._count(who) >= self._needed[0]

    def phase2(self, who: Collection[NodeId]) -> bool:
        return self._count(who) >= self._needed[1]

    def committed(self, stored: Mapping[NodeId, int]) -> int:
        positions = sorted((stored.get(member, 0) for member in self.members), reverse=True)
        return positions[self._needed[1] - 1]


class All(Flexible):
    """All commit, so anyone may be elected: nothing is lost while one lives, and one that is gone stops it."""

    def __init__(self, members: Collection[NodeId]) -> None:
        super().__init__(members, phase1=1, phase2=len(_named(members)))


class One(Flexible):
    """One commits, so all have to be heard before somebody is elected: as fast, and as fragile, as that."""

    def __init__(self, members: Collection[NodeId]) -> None:
        super().__init__(members, phase1=len(_named(members)), phase2=1)


class Weighted(_Quorum):
    """More than half of all weight (Gifford 1979).

    raises  UsageError for weights that are not finite numbers from 0, or all 0
    """

    def __init__(self, weights: Mapping[NodeId, float]) -> None:
        super().__init__(weights.keys())
        for member, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise UsageError(f"{member} has weight {weight}; give a number from 0")
        if not any(weights.values()):
            raise UsageError("no member has any weight; give at least one a number above 0")
        self._weights = {
            member: Fraction(weights[member]) for member in self.members
        }  # exact: halves are decided by it
        self._half = sum(self._weights.values(), Fraction()) / 2

    def phase2(self, who: Collection[NodeId]) -> bool:
        return sum((self._weights[m] for m in self.members if m in who), Fraction()) > self._half


class Grid(_Quorum):
    """A majority of the regions, each by a majority of its members (Kumar 1991).

    Of three regions of three, four members may do, and a whole region may be gone.

    regions  name -> its members
    raises   UsageError if a member is in two regions, or a region is empty
    """

    def __init__(self, regions: Mapping[str, Collection[NodeId]]) -> None:
        super().__init__([member for members in regions.values() for member in members])
        self._regions = [Majority(members) for members in regions.values()]

    def phase2(self, who: Collection[NodeId]) -> bool:
        return 2 * sum(region.phase2(who) for region in self._regions) > len(self._regions)


def _named(members: Collection[NodeId]) -> tuple[NodeId, ...]:
    named = tuple(sorted(members))
    if not named or len(set(named)) < len(named):
        raise UsageError(f"the members of a quorum are {list(members)}; name at least 1, and each once")
    return named


__all__ = ["All", "Flexible", "Grid", "Majority", "One", "Quorum", "Weighted"]
