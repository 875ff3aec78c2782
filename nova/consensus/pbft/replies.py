"""What a client needs that trusts no single member: f + 1 equal replies hold one of a correct member."""

from __future__ import annotations

from nova.errors import UsageError
from nova.types import NodeId


class Replies:
    """The replies to one request (Castro & Liskov 1999, 4.1).

    f       members that may lie
    raises  UsageError for f below 0
    """

    def __init__(self, f: int) -> None:
        if f < 0:
            raise UsageError(f"f is {f}; no fewer than 0 members lie")
        self._needed = f + 1
        self._replies: dict[NodeId, bytes] = {}
        self.accepted: bytes | None = None

    def add(self, member: NodeId, reply: bytes) -> bytes | None:
        """A reply came; the accepted one once f + 1 members gave it. The last word of a member counts, and counts once:
        asked again, it may have got further."""
        self._replies[member] = reply
        if self.accepted is None and sum(other == reply for other in self._replies.values()) >= self._needed:
            self.accepted = reply
        return self.accepted
