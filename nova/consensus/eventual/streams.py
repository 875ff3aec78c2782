"""Streams of dots, and their delivery in causal order (Birman, Schiper & Stephenson 1991; dots: Almeida et al. 2014).

Each stream has one origin, which numbers its dots from 1. A dot names, for each stream, up to where its proposer had
delivered: all that comes before it. A member takes each stream without gaps, so that one number a stream, a *vector*,
says what it has; and it delivers a dot behind what that depends on and behind the earlier ones of its own stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from nova.consensus.core import Kind

Vector = tuple[int, ...]
"""For each stream: the number of the last of its dots."""


class Dot(msgspec.Struct, frozen=True, array_like=True):
    """One proposal.

    owner   index of its stream
    number  from 1, without gaps
    deps    what its proposer had delivered; empty: nothing
    """

    owner: int
    number: int
    deps: Vector
    kind: Kind
    data: bytes


def covers(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether one vector has all that the other has."""
    return all(mine >= theirs for mine, theirs in zip(one, other, strict=True))


def joined(vectors: Iterable[Sequence[int]]) -> Vector:
    """What any of these has; there is at least one."""
    return tuple(max(numbers) for numbers in zip(*vectors, strict=True))


class Streams:
    """What one member has of all streams.

    received   each stream without gaps up to here
    delivered  told, in causal order, up to here
    forgotten  dropped up to here: a snapshot holds what they did
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.received = [0] * count
        self.delivered = [0] * count
        self.forgotten = [0] * count
        self._dots: list[list[Dot]] = [[] for _ in range(count)]
        self._order: list[Dot] = []  # those delivered that are still here, as they were delivered

    @property
    def retained(self) -> int:
        """Dots in memory."""
        return sum(map(len, self._dots))

    def get(self, owner: int, number: int) -> Dot:
        """A dot that was received and not forgotten."""
        return self._dots[owner][number - self.forgotten[owner] - 1]

    def take(self, dot: Dot) -> bool:
        """Take the next dot of its stream; whether it was that."""
        if dot.number != self.received[dot.owner] + 1:
            return False
        self._dots[dot.owner].append(dot)
        self.received[dot.owner] = dot.number
        return True

    def after(self, have: Sequence[int], until: Sequence[int], bytes_max: int) -> tuple[list[Dot], bool]:
        """Dots that somebody lacks who has so much, at least one if there is any; whether there are more."""
        found: list[Dot] = []
        size = 0
        for owner in range(self.count):
            first = max(have[owner], self.forgotten[owner])
            last = min(self.received[owner], until[owner])
            for number in range(first + 1, last + 1):
                dot = self.get(owner, number)
                size += len(dot.data) + 16
                if found and size > bytes_max:
                    return found, True
                found.append(dot)
        return found, False

    def every(self) -> list[Dot]:
        """All dots that are here."""
        return [dot for dots in self._dots for dot in dots]

    def deliver(self, bounds: Sequence[int]) -> list[Dot]:
        """Deliver what may be: up to these bounds, each dot behind what it depends on. In the order of delivery."""
        found: list[Dot] = []
        delivered = self.delivered
        again = True
        while again:
            again = False
            for owner in range(self.count):
                last = min(self.received[owner], bounds[owner])
                while delivered[owner] < last:
                    dot = self.get(owner, delivered[owner] + 1)
                    if dot.deps and not covers(delivered, dot.deps):
                        break
                    delivered[owner] += 1
                    found.append(dot)
                    again = True
        self._order += found
        return found

    def forget(self, until: Sequence[int]) -> None:
        """Drop dots that were delivered and that nobody will ask for, or that a snapshot will stand for."""
        for owner in range(self.count):
            last = min(until[owner], self.delivered[owner])
            if last > self.forgotten[owner]:
                del self._dots[owner][: last - self.forgotten[owner]]
                self.forgotten[owner] = last
        self._order = [dot for dot in self._order if dot.number > self.forgotten[dot.owner]]

    def adopt(self, vector: Sequence[int]) -> list[Dot]:
        """Rest on a state that holds so much, all that was forgotten here included. What was delivered beyond it is to
        be applied again on top: in this order, which is causal."""
        assert covers(vector, self.forgotten), f"{list(vector)} lacks something of {self.forgotten}"
        again = [dot for dot in self._order if dot.number > vector[dot.owner]]
        for owner, last in enumerate(vector):
            self._dots[owner] = [dot for dot in self._dots[owner] if dot.number > last]
            self.forgotten[owner] = last
            self.received[owner] = max(self.received[owner], last)
            self.delivered[owner] = max(self.delivered[owner], last)
        self._order = list(again)
        return again

    def restore(self, delivered: Sequence[int], forgotten: Sequence[int]) -> None:
        """Begin where a snapshot of this member stands; what it retained is to be taken again."""
        self.delivered, self.forgotten = list(delivered), list(forgotten)
        self.received = list(forgotten)
        self._dots = [[] for _ in range(self.count)]
        self._order = []


__all__ = ["Dot", "Streams", "Vector", "covers", "joined"]
