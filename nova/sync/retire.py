"""How clocks stay as small as the cluster, although every start of a node takes a new actor.

A node that starts as ``n~5`` will never write as ``n~1`` .. ``n~4`` again. Once all that those ever wrote is
everywhere, a clock need not count them one by one: it says ``n~ -> 4`` and ``n~+ -> 831``, *the incarnations of n up to
4 are complete here, 831 operations in all*. The two entries are the node's floor. They stand in the clock like any
others, grow only, and merge by maximum; so they travel wherever a clock does: in gossip, in what a batch depends on, in
summaries and states, in snapshots. What is kept for a retired actor is nothing but its share of these two numbers, and
its name where a live row bears its dot or was written on top of it. Metadata are O(nodes + rows), not O(starts).

Why that is safe. A floor is another notation for the counts that it replaces: it stands for the same set of dots.

1. Only n itself, as ``n~m``, raises its own floor, to m - 1, and it has all that its earlier lives ever told anyone:
   nothing leaves a node before its own log holds it. So the total is final, and every replica's counts of ``n~i`` are
   at most the final ones.
2. A replica takes a floor (k, total) over only if its own counts of the incarnations up to k sum up to `total`. Counts
   have no gaps and none can exceed its final one, so equal sums mean equal counts: all is applied here. Or it joins a
   whole state of a replica that has the floor, and thereby holds what that one holds.
3. Hence "an incarnation at or below the floor" means "every dot of it is known", as a count that covers it did. A row
   with such a dot that is missing was removed and never comes back; a batch of it is a duplicate; an operation that
   depends on the floor waits like for any other dependency. Rows keep the dots of the retired and stay addressable.

So nobody needs to be fenced for fear of the forgotten: a member that was away for a year compares its old counts with
a floor and either has all of it (and takes the floor over), or is behind and gets a state. Its own unseen writes are
under its own actor, which nobody else can retire. Whoever runs from an *old copy* of a disk is told so (PeerError): its
incarnation is at or below a floor, or there are more operations below a floor than the floor counts.

The two phases are for cost and not for safety. Agree: n waits until each member of the present view has told, in the
clocks of gossip, which name only what is on its disk, that it has exactly what the earlier lives of n wrote. Members
that cannot be reached and have not told it block, until they have been dead for so long that they will be given a state
anyway; each change of the view begins the wait anew. Forget: n puts the floor into its log, and then into its clock;
others follow as they hear of it. Done without asking, it would work, but all that lack a little of the old batches,
which leave the histories with their actors, would need whole states. A crash between the phases forgets nothing that
was not agreed: the next life of n starts over and retires that one, too.

A node that is gone for good keeps one floor and one count: as many entries as it would have otherwise, so there is
nothing to gain by retiring it.

Deviation: two-phase pruning as in Almeida, Shoker, Baquero (2018) needs causal stability of each dot under a fixed
membership; here stability is asked for whole actors and the total makes it checkable afterwards, by anyone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import Protocol

import msgspec

from nova.errors import ConfigError
from nova.types import Actor, Clock, NodeId, Outputs

ALL = (1 << 48) - 1
"""The count of a retired actor: as much as there can be."""

FLOOR, TOTAL = "~", "~+"
"""What follows the name of a node in the two entries of its floor."""


def life_of(actor: Actor) -> tuple[NodeId, int] | None:
    """(node, incarnation) of an actor; None for what is not one life of a node, entries of floors among them."""
    node, tilde, life = actor.rpartition("~")
    return (node, int(life)) if tilde and life.isascii() and life.isdigit() and len(life) <= 15 else None


def count_of(clock: Clock, actor: Actor) -> int:
    """What a clock knows of an actor: its count, 0 if there is none, `ALL` if it is at or below its node's floor."""
    count = clock.get(actor)
    if count is not None:
        return count
    life = life_of(actor)
    return ALL if life is not None and life[1] <= clock.get(life[0] + FLOOR, -1) else 0


def floors(clock: Clock) -> Iterator[tuple[NodeId, int, int]]:
    """(node, incarnation, operations up to it) of each floor in a clock."""
    for entry, upto in clock.items():
        if entry.endswith(FLOOR):
            yield entry[:-1], upto, clock.get(entry + "+", 0)


def operations(clock: Clock, node: NodeId, upto: int) -> int:
    """How many operations of a node's incarnations up to `upto` a clock knows."""
    known = clock.get(node + TOTAL, 0)
    for actor, count in clock.items():
        life = life_of(actor)
        if life is not None and life[0] == node and clock.get(node + FLOOR, -1) < life[1] <= upto:
            known += count
    return known


def lacking(known: Clock, clock: Clock) -> dict[Actor, int]:
    """The entries of a clock that say more than `known`. A floor says nothing new to who has all that is below it."""
    out = {}
    for actor, count in clock.items():
        if count <= known.get(actor, 0) or actor.endswith(TOTAL) or count <= count_of(known, actor):
            continue
        if actor.endswith(FLOOR) and operations(known, actor[:-1], count) == clock.get(actor + "+", 0):
            continue
        out[actor] = count
    return out


def tidy(clock: dict[Actor, int]) -> list[Actor]:
    """Drop from a clock, and return, the actors that its own floors cover."""
    gone = []
    if any(entry.endswith(FLOOR) for entry in clock):
        for actor in clock:
            life = life_of(actor)
            if life is not None and life[1] <= clock.get(life[0] + FLOOR, -1):
                gone.append(actor)
        for actor in gone:
            del clock[actor]
    return gone


class Replica(Protocol):
    """What retirement needs of the state; the store implements it."""

    def clock(self) -> Clock:
        """What is durable here."""

    def retire(self, node: NodeId, upto: int, total: int) -> Outputs:
        """Raise a floor, durably, if all `total` operations below it are applied here. Empty if they are not, or if
        it is raised already. Raises PeerError if this replica's own actor is below it."""


class RetireConfig(msgspec.Struct, frozen=True):
    """Times are milliseconds and count in whole ticks.

    settle_ms  how long the view must stay as it is before the first look
    check_ms   time between looks
    away_ms    how long a member that is dead is waited for
    """

    tick_ms: int = 100
    settle_ms: int = 10_000
    check_ms: int = 1_000
    away_ms: int = 3_600_000

    def __post_init__(self) -> None:
        if self.tick_ms < 1:
            raise ConfigError(f"retirement wants tick_ms of at least 1, got {self.tick_ms}")

    def ticks(self, ms: int) -> int:
        """At least one tick."""
        return max(1, ceil(ms / self.tick_ms))


class Retirement:
    """Retires the earlier lives of one node. The driver deals a `tick` every `config.tick_ms`.

    clock_of  the newest clock that a peer is known to have on its disk, empty if it told none yet
    """

    def __init__(
        self,
        node: NodeId,
        incarnation: int,
        replica: Replica,
        *,
        clock_of: Callable[[NodeId], Clock],
        config: RetireConfig | None = None,
    ) -> None:
        self._node, self._incarnation = node, incarnation
        self._replica = replica
        self._clock_of = clock_of
        self._config = config or RetireConfig()
        self._members: dict[NodeId, int | None] = {}  # since which tick it is dead
        self._now = 0
        self._next = self._config.ticks(self._config.settle_ms)

    def set_members(self, members: Mapping[NodeId, bool]) -> None:
        """The present view: all who belong to the cluster, and whether they are alive."""
        before = self._members
        self._members = {
            node: None if alive else before.get(node) or self._now
            for node, alive in members.items()
            if node != self._node
        }
        if self._members.keys() != before.keys():
            self._next = self._now + self._config.ticks(self._config.settle_ms)

    @property
    def earlier(self) -> dict[Actor, int]:
        """The earlier lives of this node that still have a place of their own in its clock."""
        return {
            actor: count
            for actor, count in self._replica.clock().items()
            if (life := life_of(actor)) is not None and life[0] == self._node and life[1] < self._incarnation
        }

    def waits_for(self) -> list[NodeId]:
        """The members that did not yet tell that they have exactly what the earlier lives wrote: they block."""
        earlier = self.earlier
        patience = self._config.ticks(self._config.away_ms)
        return sorted(
            member
            for member, dead_since in self._members.items()
            if (dead_since is None or self._now - dead_since < patience)
            and not _holds_exactly(self._clock_of(member), earlier)
        )

    def tick(self) -> Outputs:
        """Let one tick pass."""
        self._now += 1
        if self._now < self._next:
            return Outputs()
        self._next = self._now + self._config.ticks(self._config.check_ms)
        earlier = self.earlier
        if not earlier or self.waits_for():
            return Outputs()
        total = self._replica.clock().get(self._node + TOTAL, 0) + sum(earlier.values())
        return self._replica.retire(self._node, self._incarnation - 1, total)


def _holds_exactly(clock: Clock, earlier: Mapping[Actor, int]) -> bool:
    # More than we have is possible after a disk was put back to an older state: then gossip brings it first.
    return all(count_of(clock, actor) == count for actor, count in earlier.items())
