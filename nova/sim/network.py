"""A network that delays, loses, duplicates, reorders and cuts, as the seed decides."""

from __future__ import annotations

from math import log

import msgspec

from nova.errors import ConfigError
from nova.types import NodeId, Random


class Link(msgspec.Struct, frozen=True):
    """One direction between two nodes: at least `delay_ns_min`, and an exponential tail of mean `jitter_ns_mean`.

    Messages of one link keep their order, as on a stream, but for a share of `reorder_ratio`.
    """

    delay_ns_min: int = 100_000
    jitter_ns_mean: int = 100_000
    loss_ratio: float = 0.0
    duplicate_ratio: float = 0.0
    reorder_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.delay_ns_min < 0 or self.jitter_ns_mean < 0:
            raise ConfigError(f"a link delays {self.delay_ns_min} + {self.jitter_ns_mean} ns; delays start at 0")
        for name in ("loss_ratio", "duplicate_ratio", "reorder_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} of a link is {getattr(self, name)}; a ratio is 0 to 1")


LAN = Link()
WAN = Link(delay_ns_min=40_000_000, jitter_ns_mean=5_000_000)


class Network:
    """Decides when, and whether, each message arrives.

    links    (source, target) -> the link if it is another than `link`
    """

    def __init__(
        self, random: Random, link: Link = LAN, links: dict[tuple[NodeId, NodeId], Link] | None = None
    ) -> None:
        self._random = random
        self.link = link
        self.links = dict(links or {})
        self.loss_ratio = 0.0
        """Loss on every link, besides the link's own; so are the next two."""
        self.duplicate_ratio = 0.0
        self.reorder_ratio = 0.0
        self.cuts: set[tuple[NodeId, NodeId]] = set()
        self.slow_ns: dict[NodeId, int] = {}
        """Nodes that take this long to read what arrives."""
        self._last: dict[tuple[NodeId, NodeId], int] = {}

    def arrivals(self, now: int, source: NodeId, target: NodeId) -> tuple[int, ...]:
        """Instants at which a message sent now is delivered: none, one or two."""
        pair = (source, target)
        if pair in self.cuts:
            return ()
        link = self.links.get(pair, self.link) if self.links else self.link
        chance = self._random.random
        loss = link.loss_ratio + self.loss_ratio
        if loss and chance() < loss:
            return ()
        at = now + link.delay_ns_min - int(log(1.0 - chance()) * link.jitter_ns_mean)
        if self.slow_ns:
            at += self.slow_ns.get(target, 0)
        reorder = link.reorder_ratio + self.reorder_ratio
        if not (reorder and chance() < reorder):
            at = max(at, self._last.get(pair, 0))
            self._last[pair] = at
        duplicate = link.duplicate_ratio + self.duplicate_ratio
        if duplicate and chance() < duplicate:
            return at, at - int(log(1.0 - chance()) * link.jitter_ns_mean)
        return (at,)

    def open(self, source: NodeId, target: NodeId) -> bool:
        """Messages may pass in this direction."""
        return (source, target) not in self.cuts

    def cut(self, source: NodeId, target: NodeId) -> None:
        """Nothing more arrives in this one direction."""
        self.cuts.add((source, target))

    def partition(self, *groups: set[NodeId]) -> None:
        """Nothing passes between the groups, in no direction."""
        for a in groups:
            for b in groups:
                if a is not b:
                    self.cuts |= {(x, y) for x in a for y in b}

    def heal(self) -> None:
        """Undo all cuts and slowness, and what bursts added to the links' own faults."""
        self.cuts.clear()
        self.slow_ns.clear()
        self.loss_ratio = self.duplicate_ratio = self.reorder_ratio = 0.0
