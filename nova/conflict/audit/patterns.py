"""What comes back: conflicts that recur by resource, path, pair of writers or hour, counted in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from math import sqrt
from typing import Any, Final, Generic, TypeVar

import msgspec

from nova.errors import UsageError

Item = TypeVar("Item")

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
_PAIRS_MAX: Final = 16


class Hitter(msgspec.Struct, Generic[Item], frozen=True):
    """An item and its count: the true one lies between `count - error` and `count`."""

    item: Item
    count: int
    error: int

    @property
    def least(self) -> int:
        """How often it came at the very least."""
        return self.count - self.error


class SpaceSaving(Generic[Item]):
    """The most frequent items of a stream in the memory of `capacity` counters (Metwally, Agrawal & El Abbadi 2005).

    An item that has no counter takes over the smallest one, with its count as possible error. After n items no count
    is wrong by more than n / capacity (`error_max` says by how much at most), none is too low, and every item that came
    more often than that has a counter. Items with equal counts are kept together, so that each step is O(1).
    """

    __slots__ = ("_buckets", "_counts", "_errors", "_least", "capacity", "total")

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise UsageError(f"a capacity of {capacity} counters; at least 1 is needed")
        self.capacity = capacity
        self.total = 0
        self._counts: dict[Item, int] = {}
        self._errors: dict[Item, int] = {}
        self._buckets: dict[int, dict[Item, None]] = {}
        self._least = 0  # the smallest count there is

    def add(self, item: Item) -> int:
        """Count one occurrence; the item's new count."""
        self.total += 1
        count = self._counts.get(item)
        if count is None:
            count = 0
            if len(self._counts) == self.capacity:
                count = self._least
                victim = next(iter(self._buckets[count]))
                self._leave(victim, count)
                del self._counts[victim], self._errors[victim]
            else:
                self._least = 1
            self._errors[item] = count
        else:
            self._leave(item, count)
        self._counts[item] = count + 1
        self._buckets.setdefault(count + 1, {})[item] = None
        return count + 1

    def _leave(self, item: Item, count: int) -> None:
        bucket = self._buckets[count]
        del bucket[item]
        if not bucket:
            del self._buckets[count]
            if self._least == count:
                self._least += 1  # where the item goes, or the one that takes over from it

    def of(self, item: Item) -> Hitter[Item]:
        """The count of one item; one without a counter may have come as often as `error_max`."""
        if item in self._counts:
            return Hitter(item, self._counts[item], self._errors[item])
        return Hitter(item, self.error_max, self.error_max)

    @property
    def error_max(self) -> int:
        """No count is too high by more, and no item without a counter came more often: <= total / capacity."""
        return self._least if len(self._counts) == self.capacity else 0

    def top(self, count: int) -> list[Hitter[Item]]:
        """The greatest counts, falling; of equal ones those that are surest first."""
        ranked = sorted(self, key=lambda hitter: (-hitter.count, hitter.error))
        return ranked[:count]

    def __iter__(self) -> Iterator[Hitter[Item]]:
        return (Hitter(item, count, self._errors[item]) for item, count in self._counts.items())

    def __len__(self) -> int:
        return len(self._counts)


class Pattern(msgspec.Struct, frozen=True):
    """Something that recurs.

    kind          `resource`, `path`, `writers` or `hour`
    subject       the resource, the path, "a & b", or the hour of the day in UTC
    count, error  how often in the last one to two windows; the true count lies between count - error and count
    """

    kind: str
    subject: str
    count: int
    error: int


class PatternDetector:
    """Watches detections go by and says what recurs.

    threshold  how often something has to come for certain (count - error) to be a pattern
    window_ms  counts are of the last one to two windows: there are two generations, and the older one is forgotten
    capacity   counters of each kind and generation

    An hour of the day is a pattern if it has `threshold` conflicts and more than three standard deviations (of a
    Poisson distribution) over the mean of all hours; hours are counted for as long as the detector lives.
    """

    KINDS: Final = ("resource", "path", "writers")

    def __init__(self, *, threshold: int = 5, window_ms: int = DAY_MS, capacity: int = 256) -> None:
        if threshold < 2 or window_ms < 1:
            raise UsageError(f"threshold {threshold} and window_ms {window_ms}; give at least 2 and 1")
        self.threshold, self.window_ms, self.capacity = threshold, window_ms, capacity
        self.hours = [0] * 24
        self._now = self._fresh()
        self._before = self._fresh()
        self._window = 0
        self._told: set[tuple[str, str]] = set()

    def _fresh(self) -> dict[str, SpaceSaving[str]]:
        return {kind: SpaceSaving(self.capacity) for kind in self.KINDS}

    def observe(self, time_ms: int, resource_id: str, body: Mapping[str, Any]) -> list[Pattern]:
        """Take the body of a `detect` event; what became a pattern by it, each told once in a window."""
        self._turn(time_ms)
        found = []
        for kind, subject in _subjects(resource_id, body):
            self._now[kind].add(subject)
            pattern = self._count(kind, subject)
            if pattern.count - pattern.error >= self.threshold and self._news(kind, subject):
                found.append(pattern)
        hour = time_ms // HOUR_MS % 24
        self.hours[hour] += 1
        if self._peak(hour) and self._news("hour", str(hour)):
            found.append(Pattern("hour", str(hour), self.hours[hour], 0))
        return found

    def patterns(self) -> list[Pattern]:
        """All that recurs now, the most frequent first."""
        found = [
            pattern
            for kind in self.KINDS
            for subject in {hitter.item for part in (self._now, self._before) for hitter in part[kind]}
            if (pattern := self._count(kind, subject)).count - pattern.error >= self.threshold
        ]
        found += [Pattern("hour", str(hour), self.hours[hour], 0) for hour in range(24) if self._peak(hour)]
        return sorted(found, key=lambda pattern: (-pattern.count, pattern.kind, pattern.subject))

    def hotspots(self, count: int = 10) -> list[Pattern]:
        """The resources with the most conflicts, pattern or not."""
        subjects = {hitter.item for part in (self._now, self._before) for hitter in part["resource"]}
        ranked = sorted((self._count("resource", subject) for subject in subjects), key=lambda p: (-p.count, p.subject))
        return ranked[:count]

    def _count(self, kind: str, subject: str) -> Pattern:
        now, before = self._now[kind].of(subject), self._before[kind].of(subject)
        return Pattern(kind, subject, now.count + before.count, now.error + before.error)

    def _peak(self, hour: int) -> bool:
        mean = sum(self.hours) / 24
        return self.hours[hour] >= self.threshold and self.hours[hour] > mean + 3 * sqrt(mean)

    def _news(self, kind: str, subject: str) -> bool:
        if (kind, subject) in self._told:
            return False
        self._told.add((kind, subject))  # at most one for every `threshold` events of a window
        return True

    def _turn(self, time_ms: int) -> None:
        window = time_ms // self.window_ms
        if window > self._window:  # a clock that stepped back counts to the window that is open
            self._before = self._now if window == self._window + 1 else self._fresh()
            self._now = self._fresh()
            self._window = window
            self._told.clear()


def _subjects(resource_id: str, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "resource", resource_id
    kind = body.get("kind", "")
    for path in _list(body.get("paths"))[:_PAIRS_MAX]:
        yield "path", f"{kind}:{path}"
    versions = [version for version in _list(body.get("versions")) if isinstance(version, Mapping)]
    origins = sorted({str(version.get("origin")) for version in versions})
    for pair in list(combinations(origins, 2))[:_PAIRS_MAX]:
        yield "writers", " & ".join(pair)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
