"""A leader's rounds of heartbeats, by number, and what they vouch for: reads that were asked before, and a lease."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from nova.types import NodeId

ROUNDS_TIMED: Final = 1_000
"""Rounds whose time of sending is kept: answers to older ones give no lease."""


class Read(NamedTuple):
    """Reads that one asked at once: they are answered after this round. `position`: the commit when they came."""

    round: int
    asker: NodeId
    ids: tuple[int, ...]
    position: int


class Rounds:
    """Numbers never go back in a life: what was sent by an earlier leadership cannot vouch for a later one."""

    def __init__(self) -> None:
        self.number = 0
        self.lease_until_ns = 0
        self._sent_ns: dict[int, int] = {}
        self._heard: dict[NodeId, int] = {}
        self._reads: deque[Read] = deque()

    def __len__(self) -> int:
        return len(self._reads)

    def lead(self) -> None:
        """A leadership begins: nobody has answered it yet."""
        self._heard.clear()
        self.lease_until_ns = 0

    def begin(self, now_ns: int | None) -> int:
        """The next round leaves now."""
        self.number += 1
        if now_ns is not None:
            self._sent_ns[self.number] = now_ns
            self._sent_ns.pop(self.number - ROUNDS_TIMED, None)
        return self.number

    def heard(self, peer: NodeId, round: int) -> None:
        """A peer answered a round."""
        self._heard[peer] = max(round, self._heard.get(peer, 0))

    def ask(self, asker: NodeId, ids: tuple[int, ...], position: int) -> bool:
        """Queue a read behind the next round: only one that begins after it was asked can vouch for it. Whether that is
        to begin now: else one is under way, and the next gathers what is asked meanwhile."""
        flying = bool(self._reads) and self._reads[0].round <= self.number
        first = not self._reads or self._reads[-1].round <= self.number
        self._reads.append(Read(self.number + 1, asker, ids, position))
        return first and not flying

    def confirmed(self, node: NodeId, quorum: Callable[[Collection[NodeId]], bool]) -> int:
        """The newest round that a quorum, with the leader itself, has answered; 0 if none."""
        if quorum([node]):
            return self.number
        for round in sorted(set(self._heard.values()), reverse=True):
            if quorum([node, *(peer for peer, heard in self._heard.items() if heard >= round)]):
                return round
        return 0

    def lease(self, confirmed: int, length_ns: int) -> None:
        """That round was answered: until so long after it was sent nobody else was elected."""
        if confirmed in self._sent_ns:
            self.lease_until_ns = max(self.lease_until_ns, self._sent_ns[confirmed] + length_ns)

    def answered(self, confirmed: int) -> list[Read]:
        """The reads that this round vouches for."""
        out = []
        while self._reads and self._reads[0].round <= confirmed:
            out.append(self._reads.popleft())
        return out

    @property
    def wanted(self) -> bool:
        """Reads wait for a round that has not begun."""
        return bool(self._reads) and self._reads[0].round > self.number

    def lose(self) -> list[Read]:
        """Leadership is over: what waited."""
        out = list(self._reads)
        self._reads.clear()
        return out
