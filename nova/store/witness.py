"""Peers keep the head of each other's audit trail: a hash chain does not see that its end was cut off.

A node asks each peer what it holds of this node's trail, and compares: the trail has to reach that far, and to have
that hash there. Only then it tells the peer its present head, and again as the trail grows. So whoever cuts the end of
a trail on one disk is found out at the next meeting, and the peer keeps the head that shows it: a node whose trail does
not fit tells no new one. Heads are told of what is durable, so a crash accuses nobody.

A trail has an id of its own, made with its data directory: a node that begins anew under its old name has another one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

import msgspec

from nova.conflict.audit import ChainMark
from nova.errors import PeerError, UsageError
from nova.types import NodeId, Outputs

ROUND_MS: Final = 5_000
TRAIL_MAX: Final = 64


class HeadAsk(msgspec.Struct, frozen=True, array_like=True, tag="wa"):
    """What do you hold of my trail?"""

    trail: str


class HeadHeld(msgspec.Struct, frozen=True, array_like=True, tag="wh"):
    """The head of your trail that I hold, COUNT:HASH; "" for none. `others`: I hold one of another trail of yours."""

    trail: str
    head: str
    others: bool = False


class HeadTold(msgspec.Struct, frozen=True, array_like=True, tag="wt"):
    """The head of my trail. It is on my disk."""

    trail: str
    head: str


WITNESS_MESSAGES: Final = (HeadAsk, HeadHeld, HeadTold)


class Kept(Protocol):
    """Where heads of peers are kept durably: node and trail -> COUNT:HASH."""

    def held(self, node: NodeId) -> dict[str, str]: ...
    def keep(self, node: NodeId, trail: str, head: str) -> None: ...


class Witness:
    """A node's part: it tells its head, and keeps those of its peers.

    trail   id of this node's trail
    head    its durable head
    hash_at the hash of a record of it, by count; None if retention dropped it
    kept    where heads of peers are kept
    """

    def __init__(
        self,
        trail: str,
        head: Callable[[], ChainMark],
        hash_at: Callable[[int], bytes | None],
        kept: Kept,
        *,
        tick_ms: int = 100,
    ) -> None:
        self.trail, self._head, self._hash_at, self._kept = trail, head, hash_at, kept
        self._tick_ms, self._age_ms = tick_ms, 0
        self.heads: dict[NodeId, ChainMark] = {}
        """What peers were heard to hold of this trail."""
        self.accused: dict[NodeId, str] = {}
        """Peers whose head this trail does not fit, and why."""
        self._told: dict[NodeId, int] = {}  # peers that were asked and agreed: the count that they were told
        self._news: list[str] = []

    def met(self, peer: NodeId) -> Outputs:
        """There is a session with this peer now."""
        self._told.pop(peer, None)
        return Outputs(send=[(peer, HeadAsk(self.trail))])

    def tick(self, live: Collection[NodeId]) -> Outputs:
        """Let a tick pass; every five seconds, tell the head where it is news, and ask who has not answered."""
        out = Outputs()
        self._age_ms += self._tick_ms
        if self._age_ms < ROUND_MS:
            return out
        self._age_ms = 0
        head = self._head()
        for peer in sorted(live):
            if peer not in self._told:
                out.send.append((peer, HeadAsk(self.trail)))
            elif head.count > self._told[peer]:
                self._told[peer] = head.count
                out.send.append((peer, HeadTold(self.trail, str(head))))
        return out

    def step(self, sender: NodeId, message: Any) -> Outputs:
        """Take a message. Raises PeerError for a head that is none."""
        match message:
            case HeadAsk(trail):
                held = self._kept.held(sender)
                return Outputs(send=[(sender, HeadHeld(trail, held.get(trail, ""), bool(held.keys() - {trail})))])
            case HeadHeld(trail, head, _) if trail == self.trail:
                self._compare(sender, _mark(sender, head) if head else ChainMark())
            case HeadTold(trail, head):
                if len(trail) > TRAIL_MAX or not trail.isalnum():
                    raise PeerError(
                        f"{sender} names its trail {trail[:80]!r}; give at most {TRAIL_MAX} letters and digits"
                    )
                mark, before = _mark(sender, head), self._kept.held(sender).get(trail, "")
                if not before or mark.count > _mark(sender, before).count:
                    self._kept.keep(sender, trail, str(mark))
        return Outputs()

    def news(self) -> list[str]:
        """What an operator should read, once."""
        news, self._news = self._news, []
        return news

    def _compare(self, peer: NodeId, held: ChainMark) -> None:
        head = self._head()
        wrong = ""
        if held.count > head.count:
            wrong = f"this trail ends at record {head.count}, and once reached {held.count}: its end was cut off"
        elif held.count and (hash := self._hash_at(held.count)) is not None and hash != held.hash:
            wrong = f"record {held.count} of this trail is another one now: the trail was made anew"
        if held.count:
            self.heads[peer] = held
        if wrong:
            if self.accused.get(peer) != wrong:
                self._news.append(f"{peer} holds a head of the audit trail that does not fit: {wrong}")
            self.accused[peer] = wrong
            self._told.pop(peer, None)  # it is asked again, and told nothing
            return
        self.accused.pop(peer, None)
        self._told[peer] = held.count


def _mark(sender: NodeId, head: str) -> ChainMark:
    try:
        return ChainMark.parse(head)
    except UsageError as error:
        raise PeerError(f"{sender} sent a head of an audit trail that is none: {error}") from None


__all__ = ["WITNESS_MESSAGES", "HeadAsk", "HeadHeld", "HeadTold", "Kept", "Witness"]
