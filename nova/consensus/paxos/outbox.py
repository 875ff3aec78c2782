"""What a member is to write, and what may not leave before it is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from nova.consensus.core import Entry, Persisted
from nova.consensus.paxos import records
from nova.consensus.paxos.messages import Message
from nova.types import NodeId, Outputs


class Outbox:
    """Gathers the records and promises of one call, and closes its `Outputs`.

    token, durable  of the newest records, and of those that are on disk
    promise_token   of the record that holds the promised ballot
    """

    def __init__(self, bytes_max: int, held_count_max: int) -> None:
        self._bytes_max, self._held_count_max = bytes_max, held_count_max
        self.accepted: list[Entry] = []
        self.learned: list[Entry] = []
        self.token = self.durable = self.promise_token = 0
        self.promised = 0
        self._sealed: int | None = None
        self._promises: list[tuple[NodeId, Message]] = []
        self.held: deque[tuple[int, NodeId, Message]] = deque()

    def recovered(self, promised: int, sealed: int | None) -> None:
        """So much is on disk."""
        self.promised, self._sealed = promised, sealed

    def promise(self, peer: NodeId, message: Message) -> None:
        """Send what must not be known before all that it rests on is durable."""
        self._promises.append((peer, message))

    def settled(self, promised: int) -> bool:
        """This promise is on disk."""
        return promised == self.promised and self.promise_token <= self.durable

    def close(self, out: Outputs, promised: int, committed: int, sealed: int | None) -> bool:
        """Put the records into `out`, and what was promised behind them; whether there are any."""
        parts: list[tuple[bytes, Sequence[Entry]]] = [(records.LEARNED, self.learned)] if self.learned else []
        # Behind a seal no record would ever come to tell that it is decided: that is written for its own sake.
        if self.accepted or promised != self.promised or sealed != self._sealed:
            parts.append((records.ACCEPTED, self.accepted))
        if parts:
            out.persist += records.written(parts, promised, committed, self._bytes_max)
            self.learned, self.accepted, self._sealed = [], [], sealed
        writes = bool(out.persist)
        if writes:
            self.token += 1
            if promised != self.promised:
                self.promised, self.promise_token = promised, self.token
            out.apply.insert(0, Persisted(self.token))
            out.send += self._promises
        elif self.token > self.durable:
            room = self._held_count_max - len(self.held)
            self.held += [(self.token, peer, message) for peer, message in self._promises[:room]]
        else:
            out.send += self._promises
        self._promises.clear()
        return writes

    def advance(self, token: int, out: Outputs) -> None:
        """Everything up to this token is durable: what waited for it leaves."""
        self.durable = max(self.durable, token)
        while self.held and self.held[0][0] <= self.durable:
            _, peer, message = self.held.popleft()
            out.send.append((peer, message))
