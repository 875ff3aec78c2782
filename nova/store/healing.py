"""Two running nodes are brought together now, because somebody asks: exchange what differs, and see that it is equal.

Nodes do this by themselves every so often; here it begins at once, in both directions, it is counted what went over the
wire, and it ends with a comparison that the peer has answered: equal clocks and equal digests of the whole states, at
one instant of each. While others go on to write, that may never be seen; then it is told at least whether each side has
what the other one had at the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final

import msgspec

from nova.errors import UnavailableError
from nova.sync.antientropy import ANTIENTROPY_MESSAGES, AntiEntropy, Compare, Compared, Invite, Part
from nova.sync.retire import lacking
from nova.types import Clock, NodeId, Outputs

LOOK_MS: Final = 300
"""How long an exchange is left alone before the states are compared again."""

DOUBT_MS: Final = 2_000
"""The same where both know the same and differ: anti-entropy looks again by itself, and is not to be hurried."""

_encode = msgspec.msgpack.encode


class Healing(msgspec.Struct, frozen=True):
    """Event: how it ended.

    equal        equal clocks and digests were seen
    exchanged    whether they differed at the beginning
    caught_up    each side has what the other one had at the beginning
    why          if not equal: why it ended all the same
    messages, sent_bytes, received_bytes, state_bytes  of the exchange; the last are parts of states, either way
    before, after  digests of the states of this node and the peer, as they are compared; "" if there was no answer
    """

    node: NodeId
    equal: bool
    exchanged: bool
    caught_up: bool
    why: str
    messages: int
    sent_bytes: int
    received_bytes: int
    state_bytes: int
    before: tuple[str, str]
    after: tuple[str, str]


@dataclass(slots=True)
class _Attempt:
    end: int
    next_look: int
    messages: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    state_bytes: int = 0
    before: tuple[str, str] = ("", "")
    after: tuple[str, str] = ("", "")
    clocks: tuple[Clock, Clock] | None = None
    """What each side knew at the beginning, this one first."""
    latest: tuple[Clock, Clock] = field(default_factory=lambda: ({}, {}))


class Healer:
    """The attempts of one node, at most one with each peer. `AntiEntropy` does the exchange."""

    def __init__(self, antientropy: AntiEntropy, *, tick_ms: int) -> None:
        self._antientropy = antientropy
        self._tick_ms = tick_ms
        self._now = 0
        self._attempts: dict[NodeId, _Attempt] = {}

    def start(self, node: NodeId, timeout_ms: int) -> Outputs:
        """Begin; the event `Healing` ends it. Raises UnavailableError if this peer is being healed already."""
        if node in self._attempts:
            raise UnavailableError(f"{node} is being healed already; wait for the end of that", 10**9)
        self._attempts[node] = _Attempt(self._now + self._ticks(timeout_ms), self._now + self._ticks(LOOK_MS))
        return Outputs(send=[(node, self._question())])

    def tick(self) -> Outputs:
        """Let one tick pass."""
        self._now += 1
        out = Outputs()
        for node, attempt in list(self._attempts.items()):
            if self._now >= attempt.end:
                out.apply.append(self._ended(node, equal=False, why=_unequal(attempt)))
            elif self._now >= attempt.next_look:
                attempt.next_look = self._now + self._ticks(LOOK_MS)
                out.send.append((node, self._question()))
        return out

    def took(self, sender: NodeId, message: Any) -> Outputs:
        """Anti-entropy has taken this message."""
        attempt = self._attempts.get(sender)
        if attempt is None:
            return Outputs()
        attempt.messages += 1
        attempt.received_bytes += len(_encode(message))
        if isinstance(message, Part):
            attempt.state_bytes += len(message.data)
        return self._compared(sender, attempt, message) if isinstance(message, Compared) else Outputs()

    def sends(self, outputs: Outputs) -> None:
        """Count what is sent."""
        for node, message in outputs.send if self._attempts else ():
            attempt = self._attempts.get(node)
            if attempt is not None and isinstance(message, ANTIENTROPY_MESSAGES):
                attempt.messages += 1
                attempt.sent_bytes += len(_encode(message))
                if isinstance(message, Part):
                    attempt.state_bytes += len(message.data)

    def failed(self, node: NodeId, why: str) -> Outputs:
        """It cannot go on with this peer."""
        return Outputs(apply=[self._ended(node, equal=False, why=why)] if node in self._attempts else [])

    def _compared(self, node: NodeId, attempt: _Attempt, theirs: Compared) -> Outputs:
        mine = self._antientropy.comparison()
        attempt.after = (mine.digest.hex(), theirs.digest.hex())
        attempt.latest = (mine.clock, theirs.clock)
        if attempt.clocks is None:
            attempt.clocks, attempt.before = attempt.latest, attempt.after
        if (mine.clock, mine.digest) == (theirs.clock, theirs.digest):
            return Outputs(apply=[self._ended(node, equal=True, why="")])
        if mine.clock == theirs.clock:
            attempt.next_look = self._now + self._ticks(DOUBT_MS)
        out = Outputs()
        if lacking(mine.clock, theirs.clock):
            out.extend(self._antientropy.sync(node))
        if lacking(theirs.clock, mine.clock):
            out.send.append((node, Invite()))
        return out

    def _ended(self, node: NodeId, *, equal: bool, why: str) -> Healing:
        done = self._attempts.pop(node)
        return Healing(
            node,
            equal,
            done.before[0] != done.before[1] or (done.clocks is not None and done.clocks[0] != done.clocks[1]),
            equal or _caught_up(done),
            why,
            done.messages,
            done.sent_bytes,
            done.received_bytes,
            done.state_bytes,
            done.before,
            done.after,
        )

    def _question(self) -> Compare:
        return msgspec.structs.replace(self._antientropy.comparison(), asked=True)

    def _ticks(self, ms: int) -> int:
        return max(1, ceil(ms / self._tick_ms))


def _caught_up(attempt: _Attempt) -> bool:
    if attempt.clocks is None:
        return False
    (mine, theirs), (mine_now, theirs_now) = attempt.clocks, attempt.latest
    return not lacking(mine_now, theirs) and not lacking(theirs_now, mine)


def _unequal(attempt: _Attempt) -> str:
    if attempt.clocks is None:
        return "the peer did not answer in time; look at the link, or give it longer"
    if _caught_up(attempt):
        return "each side has what the other one had at the beginning, but writes go on and equal states were not seen"
    return "the exchange was not complete in time; give it longer"


__all__ = ["Healer", "Healing"]
