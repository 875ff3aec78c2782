"""The recent batches of every actor, so that a peer that missed some gets exactly those."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping
from operator import attrgetter

from nova.sync.retire import FLOOR, TOTAL, count_of, operations
from nova.types import Actor


class _Held:
    __slots__ = ("data", "first", "last", "order", "origin")

    def __init__(self, order: int, origin: Actor, first: int, last: int, data: bytes) -> None:
        self.order, self.origin, self.first, self.last, self.data = order, origin, first, last, data


_last = attrgetter("last")


class History:
    """Batches in the order in which they became durable here, which is a causal order; the oldest make room.

    bytes_max  how much is kept; what is forgotten is served as state instead (see sync.antientropy)
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._order = 0
        self._all: deque[_Held] = deque()
        self._by_actor: dict[Actor, list[_Held]] = {}
        self._floor: dict[Actor, int] = {}

    @property
    def size_bytes(self) -> int:
        """What the held batches take."""
        return self._bytes

    def add(self, origin: Actor, first: int, last: int, data: bytes) -> None:
        """Remember a durable batch."""
        held = _Held(self._order, origin, first, last, data)
        self._order += 1
        self._all.append(held)
        self._by_actor.setdefault(origin, []).append(held)
        self._floor.setdefault(origin, first - 1)
        self._bytes += len(data)
        while self._bytes > self._bytes_max and len(self._all) > 1:
            oldest = self._all.popleft()
            self._bytes -= len(oldest.data)
            mine = self._by_actor[oldest.origin]
            # Of one actor the oldest is always first; a list because look-ups bisect it.
            del mine[0]
            self._floor[oldest.origin] = oldest.last

    def skip(self, clock: Mapping[Actor, int]) -> None:
        """A state was joined: up to `clock` there are no batches to serve, unless they are here already."""
        for actor, count in clock.items():
            held = self._by_actor.get(actor)
            if not held or held[-1].last < count:
                for batch in held or ():
                    self._bytes -= len(batch.data)
                    batch.data = b""
                self._by_actor[actor] = []
                self._floor[actor] = count
        self._all = deque(batch for batch in self._all if batch.data)

    def forget(self, actors: Iterable[Actor]) -> None:
        """Actors retired: whoever lacks something of them needs a state."""
        for actor in actors:
            for batch in self._by_actor.pop(actor, ()):
                self._bytes -= len(batch.data)
                batch.data = b""
            self._floor.pop(actor, None)
        self._all = deque(batch for batch in self._all if batch.data)

    def since(self, known: Mapping[Actor, int], mine: Mapping[Actor, int], limit_bytes: int) -> list[bytes] | None:
        """What somebody who knows `known` lacks of `mine`, oldest first, about `limit_bytes`; None: it is not held."""
        lacking: list[_Held] = []
        for actor, count in mine.items():
            have = count_of(known, actor)
            if have >= count or actor.endswith(TOTAL):
                continue
            if actor.endswith(FLOOR) and operations(known, actor[:-1], count) == mine.get(actor + "+", 0):
                continue  # has all of it, and only has to hear that it is all
            if have < self._floor.get(actor, count):
                return None
            held = self._by_actor[actor]
            size = 0
            for index in range(bisect_right(held, have, key=_last), len(held)):
                lacking.append(held[index])
                size += len(held[index].data)
                if size >= limit_bytes:
                    break
        lacking.sort(key=attrgetter("order"))
        out: list[bytes] = []
        size = 0
        for batch in lacking:
            if out and size + len(batch.data) > limit_bytes:
                break
            out.append(batch.data)
            size += len(batch.data)
        return out


class Feed:
    """The change feed: (revision, key) of the newest changes, oldest first, in bounded memory."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._items: deque[tuple[int, str]] = deque()
        self.compacted = 0
        self.newest = 0

    def add(self, revision: int, key: str) -> None:
        self.newest = max(self.newest, revision)
        self._items.append((revision, key))
        if len(self._items) > self._count_max:
            self.compacted = self._items.popleft()[0]

    def since(self, revision: int) -> list[tuple[int, str]]:
        """Changes after `revision`, oldest first; each key once, at its newest change."""
        newest: dict[str, int] = {}
        for number, key in reversed(self._items):
            if number <= revision:
                break
            newest.setdefault(key, number)
        return sorted((number, key) for key, number in newest.items())
