"""How an epoch without any order ends at one vector: frozen reports, and one Paxos decision about what joins them.

A member that is asked to *freezes*: it takes nothing more, and reports what it has. A command that was answered has W
copies, so every N - W + 1 frozen reports hold it (any W and any N - W + 1 members meet), and nothing can get W copies
any more that is not in them. What these reports join to is proposed as the end, together with the successor.

Two members may join different reports, so the members agree on one value by single-decree Paxos (Lamport 1998), of
which the freezing is the first phase: a promise carries the report and what was accepted before, its quorum is N - W +
1 members and a majority, and a majority accepts. Who accepts has to have all dots of the value on disk: so a value that
is decided can be completed without whoever reported them. Whoever is frozen and hears nothing takes over; a value that
may have been decided is what it finds and goes on with. So a crash at any point leaves one successor.

The value holds what every delivered dot depends on: its proposer had delivered that, so it had W copies before.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final

import msgspec

from nova.consensus.core import Entry, Epoch, Kind, SealedError, checked_members, pack_epoch
from nova.consensus.eventual.messages import Accept, Accepted, Decided, Prepare, Promise, Refused, Value
from nova.consensus.eventual.options import EventualOptions
from nova.consensus.eventual.spread import Spread
from nova.consensus.eventual.streams import Vector, covers, joined
from nova.consensus.quorum import Flexible, Majority
from nova.errors import PeerError, UnavailableError, UsageError
from nova.types import NodeId, Outputs, Random

SEAL: Final = b"Z"
"""First byte of a record: all that a member has to remember about the end."""


def reports_needed(members: int, w: int) -> int:
    """Frozen reports that end an epoch: among them is a holder of each command with `w` copies, and a majority.

    Raises UsageError for a w that is not from 1 to all members.
    """
    if not 1 <= w <= members:
        raise UsageError(f"w is {w}; it is from 1 to the {members} members")
    return max(members - w + 1, members // 2 + 1)


class Remembered(msgspec.Struct, array_like=True):
    """What a member may not forget. `frozen` None: it is not; `accepted` 0: nothing."""

    promised: int = 0
    frozen: Vector | None = None
    wish: bytes | None = None
    accepted: int = 0
    value: Value | None = None
    decided: bool = False


class Campaign:
    """One attempt to end the epoch, by its proposer."""

    __slots__ = ("accepted", "age", "ballot", "promises", "successor", "value")

    def __init__(self, ballot: int, successor: bytes) -> None:
        self.ballot, self.successor = ballot, successor
        self.promises: dict[NodeId, Promise] = {}
        self.value: Value | None = None
        self.accepted: set[NodeId] = set()
        self.age = 0


class Sealing(Spread):
    """The part of a member that ends the epoch."""

    options: EventualOptions

    def __init__(self, node: NodeId, epoch: Epoch, random: Random, now_ns: Callable[[], int]) -> None:
        super().__init__(node, epoch, len(epoch.members), random, now_ns)
        count = len(self.members)
        self.w = count // 2 + 1 if self.options.w is None else self.options.w
        self.reports = reports_needed(count, self.w)
        # Refuses quorums that need not meet: those who report, and those who have a copy.
        self.quorum = Flexible(self.members, phase1=self.reports, phase2=self.w)
        self._majority = Majority(self.members)
        self._seal = Remembered()
        self._campaign: Campaign | None = None
        self._pending: tuple[NodeId, Accept] | None = None
        self._own: list[tuple[int, Any]] = []  # (token, what this member told itself): counted when durable
        self._patience = 0

    # -- what it means --

    @property
    def frozen(self) -> bool:
        """It takes nothing more."""
        return self._seal.frozen is not None

    def _until(self) -> Vector | None:
        """A frozen member takes what the value lacks here, and nothing else."""
        seal = self._seal
        if seal.frozen is None:
            return None
        values = [seal.value]
        if self._campaign is not None:
            values.append(self._campaign.value)
        if self._pending is not None:
            values.append(self._pending[1].value)
        known = [value.vector for value in values if value is not None]
        return joined([*known, self.streams.received])

    def _ended(self) -> Entry | None:
        seal = self._seal
        if not seal.decided or seal.value is None or not covers(self.streams.delivered, seal.value.vector):
            return None
        position = self.epoch.start + max(seal.value.vector) * self.streams.count
        return Entry(position, 0, Kind.SEAL, seal.value.successor)

    # -- whoever ends it --

    def seal(self, successor: Epoch) -> Outputs:
        """Begin to end this epoch: freeze who can be reached. See `Core.seal`.

        Raises UnavailableError while fewer are heard than have to report: they would freeze, and nothing could end.
        """
        if successor.number != self.epoch.number + 1:
            raise UsageError(f"epoch {successor.number} can't follow epoch {self.epoch.number}")
        checked_members(self.node, successor)
        if self.frozen:
            raise SealedError(f"epoch {self.epoch.number} ends already; its successor takes proposals", 50_000_000)
        alive = self._alive()
        if not self.quorum.phase1(alive):
            raise UnavailableError(
                f"{len(alive)} of {len(self.members)} members were heard of late ({', '.join(alive)}); with w {self.w} "
                f"{self.reports} have to report before epoch {self.epoch.number} can end: try again when they are up",
                500_000_000,
            )
        out = Outputs()
        self._begin(pack_epoch(successor), out)
        return self._done(out)

    def _begin(self, successor: bytes, out: Outputs) -> None:
        count = len(self.members)
        ballot = (self._seal.promised // count + 1) * count + self.members.index(self.node)
        self._campaign = Campaign(ballot, successor)
        self._freeze(ballot, successor, out)
        self._own.append((self._token + 1, self._report(ballot)))
        message = Prepare(ballot, successor)
        out.send += [(peer, message) for peer in self._peers]
        self._rearm()

    def _rearm(self) -> None:
        self._patience = self.options.seal_ticks + self._random.randrange(self.options.seal_ticks)

    def _freeze(self, ballot: int, successor: bytes, out: Outputs) -> None:
        seal = self._seal
        seal.promised = ballot
        if seal.frozen is None:
            seal.frozen, seal.wish = tuple(self.streams.received), successor
        if self._campaign is not None and self._campaign.ballot < ballot:
            self._campaign = None
        self._remember(out)
        self._rearm()

    def _remember(self, out: Outputs) -> None:
        self._flush(out)
        out.persist.append(SEAL + _pack(self._seal))

    def _report(self, ballot: int) -> Promise:
        seal = self._seal
        assert seal.frozen is not None
        return Promise(ballot, seal.frozen, seal.accepted, seal.value if seal.accepted else None)

    def _tick_seal(self, out: Outputs) -> None:
        seal = self._seal
        if seal.frozen is None or self.sealed:
            return
        resend = self._now % self.options.resend_ticks == 0
        if seal.decided:
            if resend:
                self._complete(out)
            return
        self._patience -= 1
        if self._patience <= 0:
            assert seal.wish is not None
            self._begin(seal.wish, out)
        elif resend and self._campaign is not None:
            self._insist(self._campaign, out)
        elif resend and self._pending is not None:
            self._complete(out)

    def _insist(self, campaign: Campaign, out: Outputs) -> None:
        if campaign.value is None:
            prepare = Prepare(campaign.ballot, campaign.successor)
            self._promises += [(peer, prepare) for peer in self._peers if peer not in campaign.promises]
        elif self._seal.accepted == campaign.ballot:
            accept = Accept(campaign.ballot, campaign.value)
            self._promises += [(peer, accept) for peer in self._peers if peer not in campaign.accepted]
        else:
            self._complete(out)

    def _complete(self, out: Outputs) -> None:
        """Ask for dots of the value that are missing here: its proposer, then others, who may have them as well."""
        until = self._until()
        if self._pull is not None or until is None or covers(self.streams.received, until) or not self._peers:
            return
        self._source += 1
        self._fetch(self._peers[self._source % len(self._peers)], out)

    # -- the messages --

    def _on_seal(self, sender: NodeId, message: Any, out: Outputs) -> None:
        if self._seal.decided and isinstance(message, Prepare | Promise | Accept | Accepted):
            assert self._seal.value is not None
            self._promise(sender, Decided(self._seal.value))
            return
        match message:
            case Prepare(ballot, successor):
                if not self._outdated(sender, ballot):
                    if ballot != self._seal.promised:
                        self._freeze(ballot, successor, out)
                    self._promise(sender, self._report(ballot))
            case Promise():
                self._promised(sender, message, out)
            case Accept(ballot, value):
                self._vector(sender, value.vector)
                if not self._outdated(sender, ballot):
                    if ballot != self._seal.promised:
                        self._freeze(ballot, value.successor, out)
                    self._pending = (sender, message)
                    self._rearm()
            case Accepted(ballot):
                self._counted(sender, ballot, out)
            case Refused(ballot):
                if self._campaign is not None and ballot > self._campaign.ballot:
                    self._campaign = None
                    self._seal.promised = max(self._seal.promised, ballot)
                    self._remember(out)
                    self._rearm()
            case Decided(value):
                self._vector(sender, value.vector)
                self._decide(value, out)

    def _outdated(self, sender: NodeId, ballot: int) -> bool:
        if ballot % len(self.members) != self.members.index(sender):
            raise PeerError(f"{sender} uses ballot {ballot}, which is {self.members[ballot % len(self.members)]}'s")
        if ballot >= self._seal.promised:
            return False
        self._promise(sender, Refused(self._seal.promised))
        return True

    def _promised(self, sender: NodeId, message: Promise, out: Outputs) -> None:
        self._vector(sender, message.frozen)
        campaign = self._campaign
        if campaign is None or message.ballot != campaign.ballot or campaign.value is not None:
            return
        campaign.promises[sender] = message
        if not self.quorum.phase1(campaign.promises):
            return
        accepted = max(campaign.promises.values(), key=lambda promise: promise.accepted)
        if accepted.accepted and accepted.value is not None:
            campaign.value = accepted.value
        else:
            vector = joined([promise.frozen for promise in campaign.promises.values()])
            campaign.value = Value(vector, campaign.successor)
        if not covers(self.streams.received, campaign.value.vector):
            lacking = [
                peer
                for peer, promise in campaign.promises.items()
                if peer != self.node and not covers(self.streams.received, promise.frozen)
            ]
            for peer in lacking:
                self._fetch(peer, out)

    def _accept(self, out: Outputs) -> None:
        """Accept what all dots are here for: first our own value, then another's."""
        seal, campaign = self._seal, self._campaign
        received = self.streams.received
        value = campaign.value if campaign is not None and seal.accepted != campaign.ballot else None
        if campaign is not None and value is not None and covers(received, value.vector):
            seal.accepted, seal.value = campaign.ballot, value
            self._remember(out)
            self._own.append((self._token + 1, Accepted(campaign.ballot)))
            accept = Accept(campaign.ballot, value)
            out.send += [(peer, accept) for peer in self._peers]
        if self._pending is not None:
            sender, message = self._pending
            if message.ballot < seal.promised:
                self._pending = None
            elif covers(received, message.value.vector):
                self._pending = None
                if seal.accepted != message.ballot:
                    seal.accepted, seal.value = message.ballot, message.value
                    self._remember(out)
                self._promise(sender, Accepted(message.ballot))
            elif self._pull is None and self._now - self._asked >= self.options.resend_ticks:
                self._fetch(sender, out)

    def _counted(self, sender: NodeId, ballot: int, out: Outputs) -> None:
        campaign = self._campaign
        if campaign is None or ballot != campaign.ballot or campaign.value is None:
            return
        campaign.accepted.add(sender)
        if self._majority.phase2(campaign.accepted):
            decided = Decided(campaign.value)
            out.early += [(peer, decided) for peer in self._peers]
            self._decide(campaign.value, out)

    def _decide(self, value: Value, out: Outputs) -> None:
        seal = self._seal
        if seal.decided:
            if seal.value != value:
                self._fail(f"epoch {self.epoch.number} ends at {seal.value} here and is told to end at {value}", out)
            return
        if not covers(value.vector, self.streams.delivered):
            self._fail(
                f"epoch {self.epoch.number} is to end at {list(value.vector)}, and {self.streams.delivered} is "
                f"delivered here: a command with {self.w} copies would be lost",
                out,
            )
            return
        if seal.frozen is None:
            seal.frozen, seal.wish = tuple(self.streams.received), value.successor
        seal.value, seal.decided = value, True
        self._campaign = self._pending = None
        self._remember(out)
        self._complete(out)

    def _own_words(self, out: Outputs) -> None:
        """What this member promised or accepted by itself counts when it is durable."""
        while self._own and self._own[0][0] <= self._durable_token:
            message = self._own.pop(0)[1]
            if isinstance(message, Promise):
                self._promised(self.node, message, out)
            else:
                self._counted(self.node, message.ballot, out)

    # -- records --

    def _records(self) -> list[bytes]:
        return [SEAL + _pack(self._seal)] if self._seal.promised or self._seal.decided else []

    def _replay(self, tag: bytes, data: bytes) -> None:
        if tag != SEAL:
            super()._replay(tag, data)
        self._seal = _unpack_seal(data)
        self._rearm()

    @abstractmethod
    def _done(self, out: Outputs) -> Outputs:
        """What follows from what changed, added to `out`."""


_pack = msgspec.msgpack.Encoder().encode
_unpack_seal = msgspec.msgpack.Decoder(Remembered).decode

__all__ = ["Sealing", "reports_needed"]
