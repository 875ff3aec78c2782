"""Commands that take effect at every member, in causal order, when W members have them on disk.

Every member takes proposals. One is a *dot* (streams.py): written here, pushed to all, and *safe* when W members have
it on disk. A safe dot is delivered behind all that its proposer had delivered, and behind the earlier dots of that
proposer; dots that do not depend on each other come in any order, and members tell them in different ones. So the
machine has to be convergent: concurrent commands commute. What comes at the end of the epoch compares what members
hold, and stops a group whose machine is not.

- Nothing is delivered before it is safe: what was seen anywhere is in the epoch's end (sealing.py), and nothing that
  was seen has to be taken back. With `w` 1 that is the own disk, and no other member is waited for.
- A read is answered from the state here, or waits until a vector is delivered that its session carries: so a session
  that goes from member to member reads what it wrote, and never goes back (Terry et al. 1994). It is not linearizable.
- That a dot is safe is told by its proposer, which counts the acknowledgements; and whoever hears what members have
  counts by itself, so that nothing hangs on a proposer that is gone.
- What a command is accepted by at its proposer, all others accept as well: they have delivered the same before it. So
  sessions need no order (`Sessions`): what their proposer knows of them, everybody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import msgspec

from nova.consensus.core import Epoch, Fatal, Kind, OverloadedError, SealedError, Status
from nova.consensus.eventual.messages import MESSAGES, SPREAD_MESSAGES, AnyMessage, Decided, Marks, Push
from nova.consensus.eventual.options import EventualOptions, options_of
from nova.consensus.eventual.sealing import Sealing
from nova.consensus.eventual.streams import Dot, Vector
from nova.errors import PeerError
from nova.types import NodeId, Outputs, Random


class Eventual(Sealing):
    """A member; see `nova.consensus.core.Core`."""

    ordered: ClassVar[bool] = False
    convergent: ClassVar[bool] = True
    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = MESSAGES

    def __init__(self, node: NodeId, epoch: Epoch, random: Random, now_ns: Callable[[], int]) -> None:
        self.options = options_of(epoch, EventualOptions)
        super().__init__(node, epoch, random, now_ns)
        self._me = self.members.index(node)
        self._copied = [0] * len(self.members)  # known to have W copies
        self._told = 0

    # -- what others see --

    @property
    def leader(self) -> NodeId | None:
        """Every member proposes."""
        return self.node

    @property
    def status(self) -> Status:
        return Status(
            self.node,
            "eventual",
            "sealed" if self.frozen else "replica",
            self._seal.promised,
            self.node,
            sum(self.streams.delivered),
            self._last_position(self.streams.received),
            self.members,
            {peer: sum(self._have[peer]) for peer in self._peers},
        )

    # -- inputs --

    def step(self, sender: NodeId, message: AnyMessage) -> Outputs:
        """Take a message."""
        if sender not in self._heard:
            raise PeerError(f"{sender} is no peer of {self.node}; members are {list(self.members)}")
        self._heard[sender] = self._now
        out = Outputs()
        if isinstance(message, SPREAD_MESSAGES):
            self._on_spread(sender, message, out)
        else:
            self._on_seal(sender, message, out)
        return self._done(out)

    def tick(self) -> Outputs:
        """Let a tick pass."""
        out = Outputs()
        self._now += 1
        if self._now % self.options.beat_ticks == 0 and not self.sealed:
            self._beat(out)
        self._tick_pull(out)
        self._tick_seal(out)
        return self._done(out)

    def lead(self) -> Outputs:
        """Nobody leads here."""
        return Outputs()

    def propose(self, entries: Sequence[tuple[Kind, bytes]]) -> Outputs:
        """Propose these, in order."""
        if self.frozen:
            raise SealedError(f"epoch {self.epoch.number} ends; its successor takes proposals", 50_000_000)
        options, streams, me = self.options, self.streams, self._me
        unsafe = streams.received[me] - self._copied[me]
        if unsafe + len(entries) > options.proposals_max:
            raise OverloadedError(
                f"{unsafe} proposals have no {self.w} copies yet, {len(entries)} more are too many; the limit is "
                f"{options.proposals_max}: try again when some have"
            )
        kept = streams.delivered[me] - streams.forgotten[me]
        if self._droppable() is None and kept >= options.retained_max:
            self._forget()
            kept = streams.delivered[me] - streams.forgotten[me]
            if kept >= options.retained_max:
                away = [peer for peer in self._peers if self._have[peer][me] < streams.forgotten[me] + 1]
                raise OverloadedError(
                    f"{kept} commands of {self.node} are kept for {', '.join(away)}; the limit is "
                    f"{options.retained_max}, and with w {self.w} none may be dropped: bring them back, or raise "
                    "`retained_max`",
                    1_000_000_000,
                )
        out = Outputs()
        # All that this member told is before it: whoever proposed may have seen that.
        deps = tuple(streams.delivered)
        dots = []
        for kind, data in entries:
            dot = Dot(me, streams.received[me] + 1, deps, kind, data)
            streams.take(dot)
            self._fresh.append(dot)
            dots.append(dot)
        push = Push(tuple(dots))
        out.send += [(peer, push) for peer in self._peers]
        return self._done(out)

    def read(self, id: int, after: Vector = ()) -> Outputs:
        """Read here, when all of this vector is delivered: what a session saw elsewhere (`frontier`).

        Raises UsageError for a vector of other members.
        """
        out = Outputs()
        self._read(id, after, out)
        return self._done(out)

    def advance(self, token: int) -> Outputs:
        """Everything up to this token is durable."""
        out = Outputs()
        self._durable_now(token, out)
        self._own_words(out)
        return self._done(out)

    def recovered(self) -> Outputs:
        """The log is at its end."""
        out = Outputs()
        self._recover(out)
        for owner, number in enumerate(self.streams.delivered):
            self._copied[owner] = max(self._copied[owner], number)
        self._reached(range(len(self.members)), out)
        return self._done(out)

    # -- copies --

    def _reached(self, owners: Iterable[int], out: Outputs) -> None:
        """Tell the proposers what is here. What a frozen member takes to complete the end is no copy that counts."""
        cap, mine = self._seal.frozen, self._have[self.node]
        told = set()
        for owner in owners:
            number = self._durable[owner] if cap is None else min(self._durable[owner], cap[owner])
            if number > mine[owner]:
                mine[owner] = number
                self._count(owner)
                told.add(owner)
        marks = self._marks()
        out.send += [(self.members[owner], marks) for owner in sorted(told) if owner != self._me]

    def _count(self, owner: int) -> None:
        stored = {member: have[owner] for member, have in self._have.items()}
        self._copied[owner] = max(self._copied[owner], self.quorum.committed(stored))

    def _marked(self, sender: NodeId, message: Marks, out: Outputs) -> None:
        if self._seal.decided and self._seal.value is not None:
            self._promise(sender, Decided(self._seal.value))  # who has ended beats no more
        for owner in range(len(self.members)):
            # Somebody else's count; and what depends on a dot was proposed by who had delivered that.
            if message.safe[owner] > self._copied[owner]:
                self._copied[owner] = message.safe[owner]
            if message.have[owner] > self._copied[owner]:
                self._count(owner)

    def _bounds(self) -> list[int]:
        if self._seal.decided and self._seal.value is not None:
            return list(self._seal.value.vector)
        return self._copied

    def _safe(self) -> Vector:
        return tuple(self._copied)

    def _droppable(self) -> Vector | None:
        return tuple(self.streams.delivered) if 2 * self.w > len(self.members) else None

    # -- outputs --

    def _done(self, out: Outputs) -> Outputs:
        if self.frozen and not self._seal.decided:
            self._accept(out)
        if not any(isinstance(event, Fatal) for event in out.apply):
            self._deliver(out)
            if self._copied[self._me] > self._told:
                self._told = self._copied[self._me]
                marks: Any = self._marks()
                out.early += [(peer, marks) for peer in self._peers]
        return self._finished(out)


__all__ = ["Eventual"]
