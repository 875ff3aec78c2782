"""Reads that were forwarded to the leader."""

from __future__ import annotations

from collections.abc import Iterable

from nova.consensus.core import ReadLost
from nova.consensus.paxos.messages import ReadIndex
from nova.types import NodeId, Outputs, Random


class Asked:
    """Numbers on the wire are this life's own, so that an answer to an earlier one is not taken for a new one's."""

    def __init__(self, random: Random, count_max: int) -> None:
        self._number = random.randrange(1 << 48)
        self._count_max = count_max
        self._ids: dict[int, int] = {}

    def ask(self, leader: NodeId, id: int, out: Outputs) -> None:
        """Forward a read; beyond `count_max` the oldest one is given up."""
        self._number += 1
        self._ids[self._number] = id
        if len(self._ids) > self._count_max:
            out.apply.append(ReadLost((self._ids.pop(next(iter(self._ids))),), leader))
        out.early.append((leader, ReadIndex(0, (self._number,))))

    def answered(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """The ids of those that wait."""
        return tuple(self._ids.pop(number) for number in numbers if number in self._ids)

    def lose(self, out: Outputs) -> None:
        """There is another leader, or none."""
        if self._ids:
            out.apply.append(ReadLost(tuple(self._ids.values()), None))
            self._ids.clear()
