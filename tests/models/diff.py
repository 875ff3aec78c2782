"""The slow, obvious form of csrc/text.c: where two sequences differ, aligned as git aligns them."""

from __future__ import annotations

from collections.abc import Sequence

COST_MIN = 256
FAR = 1 << 60
OCCURRENCES_MAX = 1024
WINDOW = 100


def hunks(a, b):
    """(a start, a count, b start, b count) of every change, in ascending order."""
    gone, come = _differences(a, b)
    _settle(a, gone, come)
    _settle(b, come, gone)
    found = []
    i = j = 0
    while i < len(a) or j < len(b):
        if gone[i] or come[j]:
            i0, j0 = i, j
            while gone[i]:
                i += 1
            while come[j]:
                j += 1
            found.append((i0, i - i0, j0, j - j0))
        else:
            i += 1
            j += 1
    return found


def _differences(a: Sequence[int], b: Sequence[int]) -> tuple[bytearray, bytearray]:
    """One flag an element, set where it has no partner, and a clear one behind the last."""
    gone, come = bytearray(len(a) + 1), bytearray(len(b) + 1)
    start, end = 0, min(len(a), len(b))
    while start < end and a[start] == b[start]:
        start += 1
    tail = 0
    while tail < end - start and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    left = _candidates(a, b, start, len(a) - tail, gone)
    right = _candidates(b, a, start, len(b) - tail, come)
    _search([a[i] for i in left], [b[j] for j in right], left, right, gone, come)
    return gone, come


def _candidates(a: Sequence[int], b: Sequence[int], start: int, end: int, gone: bytearray) -> list[int]:
    """Which elements of a[start:end] take part in the search. The others are flagged: those that `b` has not, and, in
    the company of such, those that it has so often that they would pair by accident."""
    counts: dict[int, int] = {}
    for item in b:
        counts[item] = counts.get(item, 0) + 1
    often = min(_rough_root(len(a)), OCCURRENCES_MAX)
    weight = [0 if (n := counts.get(item, 0)) == 0 else 2 if n >= often else 1 for item in a[start:end]]
    kept = []
    for i, kind in enumerate(weight):
        if kind == 1 or (kind == 2 and not _drowned(weight, i)):
            kept.append(start + i)
        else:
            gone[start + i] = 1
    return kept


def _drowned(weight: Sequence[int], at: int) -> bool:
    """Whether a frequent element stands in a run of which more than three quarters have no partner at all."""
    lone = frequent = 0
    for step in (-1, 1):
        here = 0
        i = at + step
        end = max(at - WINDOW - 1, -1) if step < 0 else min(at + WINDOW + 1, len(weight))
        while i != end and weight[i] != 1:
            if weight[i] == 0:
                here += 1
            else:
                frequent += 1
            i += step
        if here == 0:
            return False
        lone += here
    return (frequent + 2) * 4 < frequent + 2 + lone


def _rough_root(n: int) -> int:
    """A power of two near the square root of n, from above."""
    root = 1
    while n > 0:
        root <<= 1
        n >>= 2
    return root


def _search(
    a: Sequence[int],
    b: Sequence[int],
    left: Sequence[int],
    right: Sequence[int],
    gone: bytearray,
    come: bytearray,
) -> None:
    """Flag what is not on a longest common subsequence. `left` and `right` say where elements stand in the flags."""
    cost_max = max(_rough_root(len(a) + len(b) + 3), COST_MIN)
    size = len(a) + len(b) + 3
    forward, backward = [0] * size, [0] * size  # furthest row of each diagonal; negative diagonals count from the end
    boxes = [(0, len(a), 0, len(b), False)]
    while boxes:
        a0, a1, b0, b1, exact = boxes.pop()
        while a0 < a1 and b0 < b1 and a[a0] == b[b0]:
            a0 += 1
            b0 += 1
        while a0 < a1 and b0 < b1 and a[a1 - 1] == b[b1 - 1]:
            a1 -= 1
            b1 -= 1
        if a0 == a1:
            for j in range(b0, b1):
                come[right[j]] = 1
        elif b0 == b1:
            for i in range(a0, a1):
                gone[left[i]] = 1
        else:
            i, j, low, high = _middle(a, b, (a0, a1, b0, b1), forward, backward, FAR if exact else cost_max)
            boxes.append((a0, i, b0, j, low))
            boxes.append((i, a1, j, b1, high))


def _middle(
    a: Sequence[int],
    b: Sequence[int],
    box: tuple[int, int, int, int],
    forward: list[int],
    backward: list[int],
    cost_max: int,
) -> tuple[int, int, bool, bool]:
    """A point on a shortest path through the box, found from both corners at once, and whether each half of it is to
    be searched to the end."""
    a0, a1, b0, b1 = box
    least, most = a0 - b1, a1 - b0
    f_mid, b_mid = a0 - b0, a1 - b1
    odd = (f_mid - b_mid) & 1
    f_min = f_max = f_mid
    b_min = b_max = b_mid
    forward[f_mid] = a0
    backward[b_mid] = a1
    cost = 0
    while True:
        cost += 1
        if f_min > least:
            f_min -= 1
            forward[f_min - 1] = -1
        else:
            f_min += 1
        if f_max < most:
            f_max += 1
            forward[f_max + 1] = -1
        else:
            f_max -= 1
        for d in range(f_max, f_min - 1, -2):
            i = forward[d - 1] + 1 if forward[d - 1] >= forward[d + 1] else forward[d + 1]
            j = i - d
            while i < a1 and j < b1 and a[i] == b[j]:
                i += 1
                j += 1
            forward[d] = i
            if odd and b_min <= d <= b_max and backward[d] <= i:
                return i, j, True, True
        if b_min > least:
            b_min -= 1
            backward[b_min - 1] = FAR
        else:
            b_min += 1
        if b_max < most:
            b_max += 1
            backward[b_max + 1] = FAR
        else:
            b_max -= 1
        for d in range(b_max, b_min - 1, -2):
            i = backward[d - 1] if backward[d - 1] < backward[d + 1] else backward[d + 1] - 1
            j = i - d
            while i > a0 and j > b0 and a[i - 1] == b[j - 1]:
                i -= 1
                j -= 1
            backward[d] = i
            if not odd and f_min <= d <= f_max and i <= forward[d]:
                return i, j, True, True
        if cost >= cost_max:
            return _furthest(box, (f_min, f_max), (b_min, b_max), forward, backward)


def _furthest(
    box: tuple[int, int, int, int],
    f_range: tuple[int, int],
    b_range: tuple[int, int],
    forward: list[int],
    backward: list[int],
) -> tuple[int, int, bool, bool]:
    a0, a1, b0, b1 = box
    reached, at = -1, a0
    for d in range(f_range[1], f_range[0] - 1, -2):
        i = min(forward[d], a1)
        if i - d > b1:
            i = b1 + d
        if 2 * i - d > reached:
            reached, at = 2 * i - d, i
    left, back = FAR, a1
    for d in range(b_range[1], b_range[0] - 1, -2):
        i = max(backward[d], a0)
        if i - d < b0:
            i = b0 + d
        if 2 * i - d < left:
            left, back = 2 * i - d, i
    if a1 + b1 - left < reached - (a0 + b0):
        return at, reached - at, True, False
    return back, left - back, False, True


class _Group:
    """A run of flagged elements, maybe empty, between two that are not. Groups of both sides stand in pairs."""

    __slots__ = ("end", "flags", "start")

    def __init__(self, flags: bytearray) -> None:
        self.flags = flags
        self.start = self.end = 0
        while flags[self.end]:
            self.end += 1

    def next(self) -> bool:
        if self.end == len(self.flags) - 1:
            return False
        self.start = self.end = self.end + 1
        while self.flags[self.end]:
            self.end += 1
        return True

    def previous(self) -> None:
        self.start = self.end = self.start - 1
        while self.start and self.flags[self.start - 1]:
            self.start -= 1

    def up(self, items: Sequence[int]) -> bool:
        """Move one place up if the element above equals the last one; swallows a run that it then touches."""
        if not self.start or items[self.start - 1] != items[self.end - 1]:
            return False
        self.start -= 1
        self.end -= 1
        self.flags[self.start], self.flags[self.end] = 1, 0
        while self.start and self.flags[self.start - 1]:
            self.start -= 1
        return True

    def down(self, items: Sequence[int]) -> bool:
        if self.end == len(items) or items[self.start] != items[self.end]:
            return False
        self.flags[self.start], self.flags[self.end] = 0, 1
        self.start += 1
        self.end += 1
        while self.flags[self.end]:
            self.end += 1
        return True


def _settle(items: Sequence[int], flags: bytearray, others: bytearray) -> None:
    """Move every run that could stand elsewhere: next to a change of the other side if it can, else down."""
    group, other = _Group(flags), _Group(others)
    while True:
        if group.end > group.start:
            facing = top = -1
            count = -1
            while count != group.end - group.start:  # it grew: the run that it met may open new places
                count = group.end - group.start
                facing = -1
                while group.up(items):
                    other.previous()
                top = group.end
                if other.end > other.start:
                    facing = group.end
                while group.down(items):
                    other.next()
                    if other.end > other.start:
                        facing = group.end
            if group.end != top and facing != -1:
                while other.end == other.start:
                    group.up(items)
                    other.previous()
        if not group.next():
            return
        other.next()
