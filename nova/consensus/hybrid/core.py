"""One Raft group for each region, and causal delivery of what they commit at every member of every region.

What a region commits is a stream (nova.consensus.eventual.streams): position p of its log is dot p. So a command is
safe when a majority of its region has it, and no other region is waited for. Members of the region tell it in the order
of their log; all others get it as eventual groups do, behind everything that its proposer had told.

- Inside a region this is Raft: commands are linearizable, and a read asks the region's leader and is answered when its
  own member has told that much. That is a guarantee for keys that one region owns: which only its members write, and
  where who needs the newest value asks. Concurrent commands of different regions come in any order, so the machine has
  to be convergent.
- A dot of another region is told when a majority of the own region has it on disk: what a region commits may depend on
  it, and must not be lost to it when a member dies or the other region is cut off.
- The epoch ends by seals inside the regions. The first region, by name, decides the successor: its Raft has one first
  seal. Whoever leads another region and has seen that seal proposes the same there. What a log holds behind its first
  seal is void. A member that told everything before all of these seals tells the end: all have told the same then.
  So a majority of every region has to be up, for what a region acknowledged is nowhere else for sure.
- The log of a region is cut where it was told, with an empty state of its own: what it held is in the streams, or in
  the snapshot of the member. Who gets an empty snapshot fetches these from the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final

import msgspec

from nova.consensus.core import (
    Committed,
    Entry,
    Epoch,
    Fatal,
    Homes,
    Installed,
    Kind,
    NotLeaderError,
    OverloadedError,
    Persisted,
    ReadLost,
    ReadReady,
    SealedError,
    Snapshot,
    Status,
    checked_members,
    unpack_epoch,
)
from nova.consensus.eventual.messages import SPREAD_MESSAGES, Marks, Push, SpreadMessage
from nova.consensus.eventual.options import options_of
from nova.consensus.eventual.spread import Spread
from nova.consensus.eventual.streams import Dot, Vector
from nova.consensus.hybrid.options import HybridOptions, regions_of
from nova.consensus.quorum import Majority
from nova.consensus.raft import Raft
from nova.consensus.raft.messages import MESSAGES as RAFT_MESSAGES
from nova.errors import CorruptionError, PeerError, UnavailableError, UsageError
from nova.types import NodeId, Outputs, Random

INNER: Final = b"R"
"""First byte of a record: one of the region's Raft."""


class Hybrid(Spread):
    """A member; see `nova.consensus.core.Core`."""

    ordered: ClassVar[bool] = False
    convergent: ClassVar[bool] = True
    learners: ClassVar[bool] = False
    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = (*RAFT_MESSAGES, *SPREAD_MESSAGES)
    options: HybridOptions

    def __init__(self, node: NodeId, epoch: Epoch, random: Random, now_ns: Callable[[], int]) -> None:
        self.options = options_of(epoch, HybridOptions)
        members = checked_members(node, epoch)
        self.regions = regions_of(members, self.options)
        super().__init__(node, epoch, len(self.regions), random, now_ns)
        names = list(self.regions)
        self.region = self.options.regions[node]
        self._mine = names.index(self.region)
        self._mates = frozenset(self.regions[self.region]) - {node}
        self._majorities = [Majority(self.regions[name]) for name in names]
        self._stable = [0] * len(names)  # on the disks of a majority of this region
        self._ends: dict[int, int] = {}  # stream -> number of its first seal
        self._successor = b""
        inner = Epoch(epoch.number, "raft", self.regions[self.region], options=self.options.inner_options)
        self.inner = Raft(node, inner, random, now_ns)
        self._inner_tokens: deque[tuple[int, int]] = deque()
        self._asked_reads: dict[int, Vector] = {}

    # -- what others see --

    @property
    def homes(self) -> Homes:
        """The regions, as streams."""
        return Homes(self.epoch.start, self.streams.count, self._mine)

    @property
    def leader(self) -> NodeId | None:
        """Of this region."""
        return self.inner.leader

    @property
    def ending(self) -> bool:
        """The own region takes nothing more."""
        return self._mine in self._ends

    @property
    def status(self) -> Status:
        inner = self.inner.status
        return Status(
            self.node,
            "hybrid",
            "sealed" if self.ending else inner.role,
            inner.term,
            inner.leader,
            sum(self.streams.delivered),
            max(self._position(self._mine, self.inner.log.last), self._last_position(self.streams.received)),
            self.members,
            {peer: sum(self._have[peer]) for peer in self._peers},
        )

    # -- inputs --

    def step(self, sender: NodeId, message: Any) -> Outputs:
        """Take a message."""
        if sender not in self._heard:
            raise PeerError(f"{sender} is no peer of {self.node}; members are {list(self.members)}")
        out = Outputs()
        if isinstance(message, SPREAD_MESSAGES):
            self._heard[sender] = self._now
            spread: SpreadMessage = message
            self._on_spread(sender, spread, out)
        elif sender not in self._mates:
            raise PeerError(
                f"{sender} of another region sent a {type(message).__name__}; regions have logs of their own"
            )
        else:
            self._heard[sender] = self._now
            self._do(self.inner.step(sender, message), out)
        return self._done(out)

    def tick(self) -> Outputs:
        """Let a tick pass."""
        out = Outputs()
        self._now += 1
        self._do(self.inner.tick(), out)
        if self._now % self.options.beat_ticks == 0:
            self._beat(out)
        self._tick_pull(out)
        if self._successor and not self.ending and self.inner.leader == self.node:
            with suppress(UnavailableError):  # it is proposed already, or another one leads by now
                self._do(self.inner.seal(unpack_epoch(self._successor)), out)
        return self._done(out)

    def lead(self) -> Outputs:
        """Campaign in this region at once, if nobody can lead it yet; the other regions elect theirs."""
        out = Outputs()
        self._do(self.inner.lead(), out)
        return self._done(out)

    def propose(self, entries: Sequence[tuple[Kind, bytes]]) -> Outputs:
        """Propose these in this region, in order."""
        if self.ending:
            raise SealedError(f"epoch {self.epoch.number} ends; its successor takes proposals", 50_000_000)
        streams, mine, keep = self.streams, self._mine, self.options.retained_max
        if streams.delivered[mine] - streams.forgotten[mine] >= keep and self.inner.leader == self.node:
            arrived = dict(zip(self.regions, self._arrived(mine), strict=True))
            kept = streams.delivered[mine] - min(arrived.values())
            if kept >= keep:
                away = [name for name, number in arrived.items() if number == min(arrived.values())]
                raise OverloadedError(
                    f"{kept} commands of region {self.region} are kept for {', '.join(away)}; the limit is {keep}: "
                    "bring a majority there back, or raise `retained_max`",
                    1_000_000_000,
                )
        # All that this member told is before it: whoever proposed may have seen that.
        deps = tuple(streams.delivered)
        out = Outputs()
        self._do(self.inner.propose([(kind, _pack((deps, data))) for kind, data in entries]), out)
        return self._done(out)

    def read(self, id: int, after: Vector = ()) -> Outputs:
        """Read what is committed in this region, and all of this vector: linearizable for keys that the region owns.

        Raises NotLeaderError while no leader of the region is known.
        """
        out = Outputs()
        if after and len(after) != self.streams.count:
            raise UsageError(f"a read behind {list(after)}; epoch {self.epoch.number} has {self.streams.count} streams")
        while len(self._asked_reads) >= self.options.reads_max:  # nobody answered the oldest: it is asked again
            self._asked_reads.pop(next(iter(self._asked_reads)))
        self._asked_reads[id] = after
        try:
            self._do(self.inner.read(id), out)
        except BaseException:
            self._asked_reads.pop(id, None)
            raise
        return self._done(out)

    def seal(self, successor: Epoch) -> Outputs:
        """Propose the end of this epoch in the first region, which decides the successor.

        Raises as `Core.seal`; NotLeaderError names whom to ask, UnavailableError a region without a majority.
        """
        if successor.number != self.epoch.number + 1:
            raise UsageError(f"epoch {successor.number} can't follow epoch {self.epoch.number}")
        checked_members(self.node, successor)
        if self._successor:
            raise SealedError(f"epoch {self.epoch.number} ends already; its successor takes proposals", 50_000_000)
        alive = self._alive()
        for name, majority in zip(self.regions, self._majorities, strict=True):
            if not majority.phase2(alive):
                here = [member for member in self.regions[name] if member in alive]
                raise UnavailableError(
                    f"of region {name} only {here or 'nobody'} was heard of late; a majority of every region has to be "
                    f"up before epoch {self.epoch.number} can end",
                    500_000_000,
                )
        if self._mine:
            first = [member for member in next(iter(self.regions.values())) if member in alive]
            raise NotLeaderError(self.node, first[self._now % len(first)])
        out = Outputs()
        self._do(self.inner.seal(successor), out)
        return self._done(out)

    def advance(self, token: int) -> Outputs:
        """Everything up to this token is durable."""
        out = Outputs()
        self._durable_now(token, out)
        while self._inner_tokens and self._inner_tokens[0][0] <= token:
            self._do(self.inner.advance(self._inner_tokens.popleft()[1]), out)
        return self._done(out)

    def recovered(self) -> Outputs:
        """The log is at its end."""
        out = Outputs()
        self._recover(out)
        self._reached(range(self.streams.count), out)
        self._do(self.inner.recovered(), out)
        return self._done(out)

    # -- the region's log --

    def _do(self, inner: Outputs, out: Outputs) -> None:
        """What the region's Raft wants done."""
        self._flush(out)
        out.persist += [INNER + record for record in inner.persist]
        out.send += inner.send
        out.early += inner.early
        for event in inner.apply:
            match event:
                case Persisted(token):
                    self._inner_tokens.append((self._token + 1, token))
                case Committed(entries):
                    self._ordered(entries, out)
                case ReadReady(ids, position):
                    for id in ids:
                        after = self._asked_reads.pop(id, None)
                        if after is not None:
                            self._read(id, self._behind(after, position), out)
                case ReadLost(ids, _):
                    for id in ids:
                        self._asked_reads.pop(id, None)
                    out.apply.append(event)
                case Fatal():
                    out.apply.append(event)
                case Installed():
                    pass  # it is empty: what it stands for comes from who has it

    def _behind(self, after: Vector, position: int) -> Vector:
        vector = list(after or (0,) * self.streams.count)
        vector[self._mine] = max(vector[self._mine], position)
        return tuple(vector)

    def _ordered(self, entries: Iterable[Entry], out: Outputs) -> None:
        """The region committed these. They are on disks of a majority, and in the own log: no further record is due."""
        fresh = []
        for entry in entries:
            if self.ending and entry.position > self._ends[self._mine]:
                break
            deps: Vector = ()
            data = b""
            if entry.kind is Kind.COMMANDS:
                deps, data = self._unpacked(entry)
            elif entry.kind is Kind.SEAL:
                data = entry.data
            dot = Dot(self._mine, entry.position, deps, entry.kind, data)
            if self.streams.take(dot):
                self._taken(dot)
                fresh.append(dot)
        if fresh:
            self._durable[self._mine] = self.streams.received[self._mine]
            self._have[self.node][self._mine] = self.streams.received[self._mine]
            if self.inner.leader == self.node:
                push = Push(tuple(fresh))
                out.early += [(peer, push) for peer in self._peers if peer not in self._mates]

    def _unpacked(self, entry: Entry) -> tuple[Vector, bytes]:
        try:
            return _unpack(entry.data)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(
                f"position {entry.position} of region {self.region} holds no command: {error}"
            ) from None

    def _taken(self, dot: Dot) -> None:
        if dot.kind is Kind.SEAL and dot.owner not in self._ends:
            self._ends[dot.owner] = dot.number
            if dot.owner == 0:
                self._successor = dot.data

    # -- the streams --

    def _bounds(self) -> list[int]:
        bounds = list(self._stable)
        bounds[self._mine] = self.streams.received[self._mine]
        return bounds

    def _until(self) -> Vector | None:
        return None

    def _limit(self, owner: int) -> int:
        return self._ends.get(owner, super()._limit(owner))

    def _reached(self, owners: Iterable[int], out: Outputs) -> None:
        """Tell the region what is here of others."""
        mine = self._have[self.node]
        for owner in owners:
            mine[owner] = max(mine[owner], self._durable[owner])
            self._count(owner)
        marks = self._marks()
        out.send += [(peer, marks) for peer in sorted(self._mates)]

    def _count(self, owner: int) -> None:
        stored = {member: have[owner] for member, have in self._have.items()}
        self._stable[owner] = max(self._stable[owner], self._majorities[self._mine].committed(stored))

    def _marked(self, sender: NodeId, message: Marks, out: Outputs) -> None:
        if sender in self._mates:
            for owner in range(self.streams.count):
                if message.have[owner] > self._stable[owner]:
                    self._count(owner)

    def _droppable(self) -> Vector | None:
        """What a majority of every region has: a region that is away as a whole is waited for."""
        return tuple(min(self._arrived(owner)) for owner in range(self.streams.count))

    def _arrived(self, owner: int) -> list[int]:
        """Up to where a majority of each region has this stream on disk: its own one has all that there is."""
        stored = {member: have[owner] for member, have in self._have.items()}
        return [
            self.streams.received[owner] if region == owner else majority.committed(stored)
            for region, majority in enumerate(self._majorities)
        ]

    def _ended(self) -> Entry | None:
        if len(self._ends) < self.streams.count or not self._successor:
            return None
        if any(self.streams.delivered[owner] < number for owner, number in self._ends.items()):
            return None
        position = self.epoch.start + max(self._ends.values()) * self.streams.count
        return Entry(position, 0, Kind.SEAL, self._successor)

    # -- snapshots and records --

    def _extra(self) -> bytes:
        log, told = self.inner.log, self.streams.delivered[self._mine]
        inner = self.inner.snapshot(max(min(told, self.inner.committed), log.offset), b"")
        return _pack((sorted(self._ends.items()), self._successor, inner))

    def _restore_extra(self, extra: bytes) -> None:
        self.inner.restore(self._adopted(extra))

    def _adopt_extra(self, extra: bytes) -> None:
        self._adopted(extra)

    def _adopted(self, extra: bytes) -> Snapshot:
        try:
            ends, successor, inner = _unpack_extra(extra)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"a snapshot of {self.node} has no regions: {error}") from None
        self._ends.update(ends)
        self._successor = self._successor or successor
        return inner

    def compact(self, snapshot: Snapshot) -> list[bytes]:
        """What the snapshot covers need not be replayed; what others may lack, or is not delivered, is kept."""
        self._inner_snapshot = self._adopted(self._unpack_core(snapshot)[2])
        return super().compact(snapshot)

    def _records(self) -> list[bytes]:
        return [INNER + record for record in self.inner.compact(self._inner_snapshot)]

    def _replay(self, tag: bytes, data: bytes) -> None:
        if tag != INNER:
            super()._replay(tag, data)
        self.inner.replay(data)

    # -- outputs --

    def _done(self, out: Outputs) -> Outputs:
        if not any(isinstance(event, Fatal) for event in out.apply):
            self._deliver(out)
        return self._finished(out)


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[Vector, bytes]).decode
_unpack_extra = msgspec.msgpack.Decoder(tuple[list[tuple[int, int]], bytes, Snapshot]).decode

__all__ = ["Hybrid"]
