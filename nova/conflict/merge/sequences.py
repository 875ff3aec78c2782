"""Two and three sequences of numbers: where they differ, and how both changes go together.

Two sequences are compared by the divide-and-conquer form of Myers' algorithm (1986), three by the diff3 algorithm
(Khanna, Kunal & Pierce 2007). Ambiguous alignments are settled as git settles them, since that is what people and
tools expect: lines without a partner are set aside before the search, a run of changes that could stand in several
places moves as far down as it goes or to where the other side changed too, and changes that touch are one region.

Whoever calls numbers his elements first: equal elements, equal numbers (`numbered`). Cost: O((n + m) d) for d
differences, and never more than O((n + m) * max(256, sqrt(n + m))): past that the longest diagonal found so far is
taken, which is a good alignment, no longer the shortest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from nova._native.merge import hunks as native_hunks


class Hunk(NamedTuple):
    """a[a_start : a_start + a_count] became b[b_start : b_start + b_count]."""

    a_start: int
    a_count: int
    b_start: int
    b_count: int


class Side(IntEnum):
    """Whose change a region holds."""

    CONFLICT = 0
    LOCAL = 1
    REMOTE = 2
    BOTH = 4


class Region(NamedTuple):
    """A stretch of three sequences in which at least one side differs from the base: starts and counts."""

    side: Side
    base: tuple[int, int]
    local: tuple[int, int]
    remote: tuple[int, int]


def numbered(key: Callable[[Any], Hashable], *sequences: Iterable[Any]) -> list[list[int]]:
    """The sequences with every element replaced by a number; elements of equal key get equal numbers."""
    numbers: dict[Hashable, int] = {}
    return [[numbers.setdefault(key(item), len(numbers)) for item in sequence] for sequence in sequences]


# ------------------------------------------------------------------------------------------------ two


def hunks(a: Sequence[int], b: Sequence[int]) -> list[Hunk]:
    """What has to change in `a` to make `b`, in ascending order; no two hunks touch."""
    return [Hunk(*each) for each in native_hunks(a, b)]


# ------------------------------------------------------------------------------------------------ three


def regions(base: Sequence[int], local: Sequence[int], remote: Sequence[int], *, refine: bool = False) -> list[Region]:
    """Where two descendants of `base` differ from it, in ascending order.

    refine  look into conflicts again: what both sides have in common is none, and conflicts at most three elements
            apart become one. The base part of a refined conflict is then that of the whole
    """
    merged = _Regions()
    left, right = hunks(base, local), hunks(base, remote)
    x = y = 0
    while x < len(left) and y < len(right):
        one, two = left[x], right[y]
        if one.a_start + one.a_count < two.a_start:
            merged.only_local(one, two.b_start - two.a_start)
            x += 1
            continue
        if two.a_start + two.a_count < one.a_start:
            merged.only_remote(two, one.b_start - one.a_start)
            y += 1
            continue
        if one[:2] != two[:2] or _part(local, one) != _part(remote, two):
            merged.both(one, two)
        one_end, two_end = one.a_start + one.a_count, two.a_start + two.a_count
        x += one_end <= two_end
        y += two_end <= one_end
    for one in left[x:]:
        merged.only_local(one, len(remote) - len(base))
    for two in right[y:]:
        merged.only_remote(two, len(local) - len(base))
    found = [Region(Side(side), (i0, n0), (i1, n1), (i2, n2)) for side, i0, n0, i1, n1, i2, n2 in merged.found]
    return _refined(found, local, remote) if refine else found


def _part(items: Sequence[int], hunk: Hunk) -> Sequence[int]:
    return items[hunk.b_start : hunk.b_start + hunk.b_count]


class _Regions:
    """Regions under construction, as [side, base start and count, local ..., remote ...]."""

    def __init__(self) -> None:
        self.found: list[list[int]] = []

    def only_local(self, one: Hunk, shift: int) -> None:
        self._add(Side.LOCAL, one.a_start, one.a_count, one.b_start, one.b_count, one.a_start + shift, one.a_count)

    def only_remote(self, two: Hunk, shift: int) -> None:
        self._add(Side.REMOTE, two.a_start, two.a_count, two.a_start + shift, two.a_count, two.b_start, two.b_count)

    def both(self, one: Hunk, two: Hunk) -> None:
        start = min(one.a_start, two.a_start)
        end = max(one.a_start + one.a_count, two.a_start + two.a_count)
        spans = []
        for hunk in (one, two):  # the other side's excess over this hunk stands in it unchanged
            first = hunk.b_start - (hunk.a_start - start)
            last = hunk.b_start + hunk.b_count + end - hunk.a_start - hunk.a_count
            spans += [first, last - first]
        self._add(Side.CONFLICT, start, end - start, *spans)

    def _add(self, side: int, *spans: int) -> None:
        if self.found:
            last = self.found[-1]
            if spans[2] <= last[3] + last[4] or spans[4] <= last[5] + last[6]:  # they touch
                if last[0] != side:
                    last[0] = Side.CONFLICT
                for i in (0, 2, 4):
                    last[i + 2] = spans[i] + spans[i + 1] - last[i + 1]
                return
        self.found.append([side, *spans])


def _refined(found: Iterable[Region], local: Sequence[int], remote: Sequence[int]) -> list[Region]:
    out: list[Region] = []
    for region in found:
        (i1, n1), (i2, n2) = region.local, region.remote
        if region.side != Side.CONFLICT or not n1 or not n2:
            out.append(region)
            continue
        inner = hunks(local[i1 : i1 + n1], remote[i2 : i2 + n2])
        if not inner:
            out.append(region._replace(side=Side.BOTH))
        for a_start, a_count, b_start, b_count in inner:
            span = (i1 + a_start, a_count), (i2 + b_start, b_count)
            out.append(Region(Side.CONFLICT, region.base, *span))
    joined: list[Region] = []
    for region in out:
        if joined and joined[-1].side == region.side == Side.CONFLICT:
            last = joined[-1]
            if region.local[0] - last.local[0] - last.local[1] <= 3:
                joined[-1] = Region(
                    Side.CONFLICT,
                    _span(last.base, region.base),
                    _span(last.local, region.local),
                    _span(last.remote, region.remote),
                )
                continue
        joined.append(region)
    return joined


def _span(first: tuple[int, int], last: tuple[int, int]) -> tuple[int, int]:
    return first[0], max(last[0] + last[1], first[0] + first[1]) - first[0]
