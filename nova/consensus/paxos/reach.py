"""How far one acceptor accepted what the leader of the promised ballot proposed: in memory, and on disk."""

from __future__ import annotations

from collections import deque

from nova.consensus.paxos.slots import Slots


class Reach:
    """`upto` and `durable` are slots without a hole before them, from the leader's first one on; 0 before its first
    word. What is known to be decided is as good as accepted."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.ballot = 0
        self.upto = self.durable = 0
        self._begun = False
        self._syncing: deque[tuple[int, int, int]] = deque()  # (token, ballot, upto)

    def promise(self, ballot: int) -> None:
        """Nothing is accepted under this ballot yet, or nothing is known of it."""
        self.ballot = ballot
        self.upto = self.durable = 0
        self._begun = False

    def begin(self, first: int) -> None:
        """The ballot's leader proposes from this slot on; it says so each time."""
        if not self._begun:
            self._begun = True
            self.upto = first - 1

    def extend(self, committed: int) -> None:
        """Look how far it is now."""
        if self._begun:
            upto = max(self.upto, committed)
            while self._slots.term(upto + 1) == self.ballot:
                upto += 1
            self.upto = upto

    def syncing(self, token: int) -> None:
        """All that is accepted now is on disk when this token is."""
        self._syncing.append((token, self.ballot, self.upto))

    def synced(self, token: int) -> None:
        """Everything up to that token is on disk."""
        while self._syncing and self._syncing[0][0] <= token:
            _, ballot, upto = self._syncing.popleft()
            if ballot == self.ballot:
                self.durable = max(self.durable, upto)

    def settle(self) -> None:
        """Nothing waits for the disk."""
        self.durable = self.upto
