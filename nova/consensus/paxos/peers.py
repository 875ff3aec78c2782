"""What a leader knows of one acceptor, and how much it may have under way to it."""

from __future__ import annotations

from collections import deque


class Peer:
    """Where an acceptor is.

    matched  accepted and durable there up to this slot, under the leader's ballot
    next     the next slot to send
    active   heard of since the last look (check-quorum)
    """

    __slots__ = ("active", "flying", "flying_bytes", "matched", "next", "rewound")

    def __init__(self, first: int) -> None:
        self.matched = first - 1
        self.next = first
        self.active = True
        self.flying: deque[tuple[int, int]] = deque()  # (last slot, bytes) of accepts without an answer
        self.flying_bytes = 0
        self.rewound = 0

    def full(self, count_max: int, bytes_max: int) -> bool:
        """No more may be sent now."""
        return len(self.flying) >= count_max or self.flying_bytes >= bytes_max

    def sent(self, last: int, size: int) -> None:
        """An accept for slots up to `last` left."""
        self.next = last + 1
        self.flying.append((last, size))
        self.flying_bytes += size

    def accepted(self, upto: int) -> None:
        """Durable there up to this slot."""
        while self.flying and self.flying[0][0] <= upto:
            self.flying_bytes -= self.flying.popleft()[1]
        self.matched = max(self.matched, upto)
        self.next = max(self.next, upto + 1)

    def rewind(self, missing: int, answered: int, round: int) -> None:
        """It says, to a heartbeat of round `answered`, that it lacks a slot: send again from there, once a round trip.

        round  the newest one: answers to those up to it know nothing of what is sent now
        """
        if answered > self.rewound and self.matched < missing < self.next:
            self.next, self.rewound = missing, round
            self.flying.clear()
            self.flying_bytes = 0
