"""The chain of epochs: how one protocol ends and the next begins, while commands go on being answered.

An epoch is ended from within: a seal that names the successor is decided like any entry, and what the old protocol
orders behind the first seal is void. Who has applied everything up to the seal holds the *prefix* of the new epoch,
and everybody who does computes the same digest of it.

- Who passes the seal begins the new epoch at once and tells all others (`Sealed`). Who hears of it begins the new
  epoch at once, too: it votes and stores there, and keeps what the new epoch decides until it has the prefix.
- The prefix comes from whichever is first: the old core, which lives on until then and can still finish the old epoch
  among those who lack the prefix; the sealed state of a member that has it (`Fetch`, `Piece`), checked by its digest;
  or a later state that the new protocol installs by itself.
- Messages carry the number of their epoch. One of an epoch that has ended here is answered with `Sealed`, so it can't
  count anywhere, and its sender learns where the group is.
- An epoch is *settled* when a quorum of the members before and a quorum of its own hold its prefix on disk. Only a
  settled epoch may be sealed. So no epoch rests on a prefix that fewer hold than the old protocol would have asked
  for, and at most the newest epochs are alive anywhere.
- A notice of an epoch that PBFT ordered counts when f+1 members of it say the same: one of them tells the truth.

A crash anywhere leaves either the old epoch, whose log is there until a checkpoint behind the seal is on disk, or the
new one, or both; in each case the rules above go on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final, Protocol, cast

import msgspec

from nova.consensus.core import (
    Committed,
    ConvergentCore,
    Core,
    Entry,
    Epoch,
    Fatal,
    Installed,
    Kind,
    Make,
    NotLeaderError,
    Persisted,
    ReadLost,
    ReadReady,
    Snapshot,
    StateCore,
    StateWanted,
    is_convergent,
    unpack_epoch,
)
from nova.consensus.frontier import Frontier
from nova.consensus.notices import CONTROL, Fetch, Holds, Piece, Sealed, Switch, Which
from nova.consensus.outside import Outside
from nova.errors import CorruptionError, PeerError, UnavailableError, UsageError
from nova.types import NodeId, Outputs, Random

NOTICE_TICKS: Final = 5
"""Between two notices to members that have not said that they hold the prefix."""
CHUNK_BYTES: Final = 256 * 1024
PREFIX_BYTES_MAX: Final = 1 << 32
AHEAD_MAX: Final = 1_024
"""Frames of the next epoch that are kept until it begins here; more are lost, as frames may be."""
_BEGIN: Final = b"\0"
"""First byte of a record that begins an epoch; that of a core's record says which epoch it is of."""

Frame = tuple[int, Any]
"""(number of the epoch, message): what members send each other."""


class Written(msgspec.Struct, frozen=True):
    """Event: the records of the core of this epoch are durable up to its `token`."""

    number: int
    token: int


class Switched(msgspec.Struct, frozen=True):
    """Event: this epoch has begun here."""

    epoch: Epoch


class Owner(Protocol):
    """Who applies what the chain decides."""

    applied_position: int

    def ended(self, position: int) -> int:
        """A seal at this position was applied: the position that all before it, and nothing else, ends at."""

    def state(self) -> bytes:
        """All that was applied; equal states give equal bytes."""

    def install(self, snapshot: Snapshot, start: int) -> None:
        """Replace the state by one of the epoch that begins at `start`, or of the seal before it."""

    def apply(self, entries: Sequence[Entry]) -> list[Any]:
        """Apply these; events for the driver."""

    def heed(self, event: ReadReady | ReadLost | Fatal) -> list[Any]:
        """What else the newest core told; events for the driver."""

    def began(self) -> list[Any]:
        """A new epoch takes proposals; what was asked of the one before has to be asked again."""

    def reached(self, core: Core) -> None:
        """What is applied from here on is told by this core."""


class Prefix(msgspec.Struct, frozen=True, array_like=True):
    """What a member that lacks it may fetch: the state before the start of an epoch."""

    number: int
    state: bytes


class Saved(msgspec.Struct, frozen=True, array_like=True):
    """A chain at rest, as a checkpoint keeps it. `prefix`: while some member has not said that it holds it."""

    epoch: Epoch
    digest: bytes
    snapshot: Snapshot
    prefix: Prefix | None = None


class Link:
    """An epoch that lives here: its core, and what it decided while its prefix is missing."""

    __slots__ = ("core", "digest", "epoch", "held")

    def __init__(self, epoch: Epoch, core: Core, digest: bytes) -> None:
        self.epoch, self.core, self.digest = epoch, core, digest
        self.held: list[Entry | StateWanted] = []


class Chain:
    """The epochs that live at one member, oldest first; mostly one.

    owner      applies
    protocols  name -> maker of a core
    """

    def __init__(
        self,
        node: NodeId,
        epoch: Epoch,
        owner: Owner,
        *,
        protocols: Mapping[str, Make],
        random: Random,
        now_ns: Callable[[], int],
    ) -> None:
        self.node, self._owner = node, owner
        self._protocols, self._random, self._now_ns = protocols, random, now_ns
        self._links = [Link(epoch, self._make(epoch), b"")]
        self._sealing = 0  # the token of the newest seal of ours
        self._ahead: list[tuple[NodeId, Frame]] = []
        self._rest()

    def _rest(self) -> None:
        self._prefix: Prefix | None = None
        self._saving = False
        self._holders: set[NodeId] = set()
        self._claims: dict[NodeId, Sealed] = {}
        self._arriving = bytearray()
        self._arriving_name = (0, 0)  # (number, total)
        self._arrived = -1  # bytes at the last look
        self._source = 0
        self._ticks, self._notice, self._pause = 0, NOTICE_TICKS, NOTICE_TICKS
        self._told: set[NodeId] = set()

    # -- what there is --

    @property
    def epoch(self) -> Epoch:
        """The newest one."""
        return self._links[-1].epoch

    @property
    def core(self) -> Core:
        """That takes proposals: the core of the newest epoch."""
        return self._links[-1].core

    @property
    def whole(self) -> bool:
        """The prefix of the newest epoch is applied here."""
        return len(self._links) == 1

    @property
    def settled(self) -> bool:
        """A quorum of the members before and one of this epoch hold its prefix on disk."""
        epoch = self.epoch
        if not epoch.number:
            return True
        before, now = _enough(epoch.former_protocol, epoch.former), _enough(epoch.protocol, epoch.members)
        return (
            len(self._holders.intersection(epoch.former)) >= before
            and len(self._holders.intersection(epoch.members)) >= now
        )

    @property
    def owed(self) -> bool:
        """A checkpoint is due: the prefix is here, and is neither on disk nor on its way there."""
        return bool(self.epoch.number) and self.whole and not self._saving and self.node not in self._holders

    def _make(self, epoch: Epoch) -> Core:
        make = self._maker(epoch.protocol)
        # Who is to join a group that has no learners waits outside from the beginning.
        if self.node not in epoch.members and (epoch.number or not getattr(make, "learners", True)):
            return Outside(self.node, epoch)
        return make(self.node, epoch, self._random, self._now_ns)

    def _maker(self, protocol: str) -> Make:
        try:
            return self._protocols[protocol]
        except KeyError:
            known = ", ".join(sorted(self._protocols))
            raise UsageError(f"protocol {protocol!r} is unknown; there are {known}") from None

    def _link(self, number: int) -> Link | None:
        return next((link for link in self._links if link.epoch.number == number), None)

    def _others(self) -> list[NodeId]:
        return sorted({*self.epoch.former, *self.epoch.members} - {self.node})

    # -- the newest core --

    def propose(self, entries: Sequence[tuple[Kind, bytes]]) -> Outputs:
        """Propose in the newest epoch; raises as `Core.propose`."""
        return self._framed(self._links[-1], self.core.propose(entries))

    def read(self, id: int, after: Frontier | None = None) -> Outputs:
        """Read in the newest epoch, what a session has seen included; raises as `Core.read`, and UnavailableError if it
        has seen an epoch of which nothing is known here."""
        if after is not None and after.epoch > self.epoch.number:
            raise UnavailableError(
                f"{self.node} is in epoch {self.epoch.number} and has not heard of epoch {after.epoch}; try again",
                50_000_000,
            )
        if after is None or after.epoch < self.epoch.number or not is_convergent(self.core):
            return self._framed(self._links[-1], self.core.read(id))
        core = cast(ConvergentCore, self.core)
        return self._framed(self._links[-1], core.read(id, after.vector))

    @property
    def frontier(self) -> Frontier:
        """What a session has seen that was served here just now."""
        core = self.core
        return Frontier(self.epoch.number, cast(ConvergentCore, core).frontier if is_convergent(core) else ())

    def core_does(self, out: Outputs) -> Outputs:
        """What the newest core wants done about a call of its own."""
        return self._framed(self._links[-1], out)

    def switch(self, successor: Epoch) -> Outputs:
        """Seal the newest epoch, or ask the leader to. `Switched` follows, to this epoch or to another that was first.

        Raises UsageError for an epoch that cannot be, UnavailableError while the present one is not settled or nobody
        leads it; then nothing was proposed.
        """
        if successor.number != self.epoch.number + 1:
            raise UsageError(f"epoch {successor.number} can't follow epoch {self.epoch.number}")
        if not successor.members:
            raise UsageError(f"epoch {successor.number} has no members; name those who vote")
        # What could not start is refused before the seal: the old protocol never stops for it.
        begun = self._maker(successor.protocol)(successor.members[0], successor, self._random, self._now_ns)
        if not self.settled:
            raise UnavailableError(
                f"epoch {self.epoch.number} is not settled: {sorted(self._holders)} are known to hold its prefix on "
                f"disk, which has to be a quorum of the members before and of now; try again",
                100_000_000,
            )
        token = 0
        if self.node in successor.members and getattr(begun, "begins_led", False) and self._may_name():
            # Who seals goes on leading: members know it from the seal, and nobody waits for an election.
            token = 1 + self._random.randrange(1 << 62)
            successor = msgspec.structs.replace(successor, first=self.node, token=token)
        try:
            out = self._framed(self._links[-1], self.core.seal(successor))
            self._sealing = token or self._sealing
            return out
        except NotLeaderError as error:
            if error.leader in (None, self.node):
                raise
            return Outputs(early=[(error.leader, (self.epoch.number, Switch(successor)))])

    def _may_name(self) -> bool:
        """Whether one member's seal is what is decided: not one that several have to ask for in the same words."""
        return self.epoch.protocol != "pbft" and not is_convergent(self.core)

    # -- the driver's side --

    def step(self, sender: NodeId, frame: Frame) -> Outputs:
        """Take a frame of a peer."""
        number, message = frame
        if isinstance(message, CONTROL):
            return self._control(sender, number, message)
        link = self._link(number)
        out = Outputs()
        if link is not None:
            if not isinstance(message, link.core.messages):
                kind = type(message).__name__
                raise PeerError(f"{sender} sent a {kind}; {link.epoch.protocol} knows no such message")
            out = self._framed(link, link.core.step(sender, message))
        elif number > self.epoch.number:
            if number == self.epoch.number + 1 and len(self._ahead) < AHEAD_MAX:
                # Who told it heard of the seal before us. Lost, it would come again after a timeout.
                self._ahead.append((sender, frame))
            if sender not in self._told:
                self._told.add(sender)
                out.early.append((sender, (self.epoch.number, Which())))
        if number < self.epoch.number:
            self._tell(sender, out)
        return out

    def tick(self) -> Outputs:
        """Let a tick pass for all that lives."""
        out = Outputs()
        self._told.clear()
        for link in list(self._links):
            if link in self._links:
                out.extend(self._framed(link, link.core.tick()))
        if self.epoch.number:
            self._ticks += 1
            if not self.whole and self._ticks % NOTICE_TICKS == 0:
                self._fetch(out)
            if self._ticks >= self._notice:
                self._pause = min(2 * self._pause, 32 * NOTICE_TICKS)
                self._notice = self._ticks + self._pause
                self._notify(out)
        return out

    def advance(self, written: Written) -> Outputs:
        """Records of a core are durable."""
        link = self._link(written.number)
        return Outputs() if link is None else self._framed(link, link.core.advance(written.token))

    # -- from one epoch to the next --

    def _framed(self, link: Link, out: Outputs) -> Outputs:
        number = link.epoch.number
        if out.persist:
            tag = _tag(number)
            out.persist = [tag + record for record in out.persist]
        if out.send:
            out.send = [(peer, (number, message)) for peer, message in out.send]
        if out.early:
            out.early = [(peer, (number, message)) for peer, message in out.early]
        events, out.apply = out.apply, []
        for event in events:
            self._event(link, event, out)
        return out

    def _event(self, link: Link, event: Any, out: Outputs) -> None:
        """What is decided is decided, whatever our own disk still writes: only `Persisted` waits for it."""
        match event:
            case Persisted(token):
                out.apply.append(Written(link.epoch.number, token))
            case Committed(entries):
                number = link.epoch.number
                out.apply.append(Committed(entries, number) if number else event)
                self._apply(link, entries, out)
            case StateWanted():
                out.apply.append(event)
                if link.held:
                    link.held.append(event)  # due when what it stands behind is applied
                else:
                    self._hand_over(link, event, out)
            case Installed(snapshot):
                out.apply.append(event)
                # Without one order a position says nothing about what a state holds; the core knows.
                newer = not link.core.ordered or snapshot.position > self._owner.applied_position
                if link in self._links and newer:
                    first = link is self._links[0]
                    self._owner.reached(link.core)
                    if not link.core.ordered:
                        link.held.clear()  # what the state lacks of it is told again
                    self._owner.install(snapshot, link.epoch.start)
                    if not first:
                        self._reach(link, None, out)
            case Fatal():
                out.apply.append(event)
                out.apply += self._owner.heed(event)
            case _ if link is self._links[-1]:
                out.apply.append(event)
                out.apply += self._owner.heed(event)

    def _apply(self, link: Link, entries: Sequence[Entry], out: Outputs) -> None:
        if link not in self._links:
            return  # behind the seal
        if link is not self._links[0]:
            link.held += entries
            return
        for place, entry in enumerate(entries):
            if entry.kind == Kind.SEAL:
                out.apply += self._owner.apply(entries[: place + 1])
                self._ended(link, entry, out)
                return
        out.apply += self._owner.apply(entries)

    def _hand_over(self, link: Link, wanted: StateWanted, out: Outputs) -> None:
        """Give a core the state of just this place among what it told."""
        if link in self._links and wanted.position == self._owner.applied_position:
            core = cast(StateCore, link.core)
            out.extend(self._framed(link, core.checkpointed(wanted.position, self._owner.state())))

    def _ended(self, link: Link, entry: Entry, out: Outputs) -> None:
        """The first seal of the oldest epoch was applied."""
        status = link.core.status
        epoch = msgspec.structs.replace(
            unpack_epoch(entry.data),
            start=self._owner.ended(entry.position) + 1,
            former=status.members,
            former_protocol=link.epoch.protocol,
        )
        self._announce(link, entry.position, out)
        state = self._owner.state()
        digest = _digest(state)
        if self.whole:
            first = link.core.leader if link.core.ordered else None
            if first not in epoch.members:
                first = epoch.members[0]
            self._begin(epoch, digest, out, leads=first == self.node)
        heir = self._links[1]
        if heir.epoch != epoch or heir.digest != digest:
            self._event(
                link, Fatal(f"epoch {heir.epoch.number} was told as {heir.epoch}; here its seal gives {epoch}"), out
            )
        self._reach(heir, state, out)

    def _begin(self, epoch: Epoch, digest: bytes, out: Outputs, *, leads: bool = False) -> None:
        """Let an epoch begin here, with its prefix or before that comes."""
        link = Link(epoch, self._make(epoch), digest)
        self._append(link)
        out.persist.append(_BEGIN + _pack((epoch, digest)))
        out.apply.append(Switched(epoch))
        self._notify(out)  # before anything of the epoch: who does not know it would not take that
        if epoch.first:
            leads = epoch.token == self._sealing
        if leads:
            out.extend(self._framed(link, link.core.lead()))
        out.apply += self._owner.began()
        ahead, self._ahead = self._ahead, []
        for sender, frame in ahead:
            with suppress(PeerError):  # the stream that brought it may be another one by now
                out.extend(self.step(sender, frame))

    def _announce(self, link: Link, position: int, out: Outputs) -> None:
        """A leader that knows the seal decided lets the others know: their callers wait, and we take no more steps in
        that epoch."""
        tell = getattr(link.core, "tell", None)
        if tell is None or link.core.leader != self.node:
            return
        for peer in link.core.status.members:
            if peer != self.node:
                out.extend(self._framed(link, tell(peer, position)))

    def _append(self, link: Link) -> None:
        # The epoch before was settled when it was sealed: a quorum has its prefix, which older logs could have given.
        before = self._links[-1]
        if link.epoch.number > before.epoch.number + 1:
            self._links = [self._nothing(link)]
        elif len(self._links) > 1:
            self._links = [self._nothing(link), before]
        self._links.append(link)
        self._rest()

    def _nothing(self, link: Link) -> Link:
        """In place of epochs whose prefix others hold."""
        epoch = msgspec.structs.replace(link.epoch, number=-1)
        return Link(epoch, Outside(self.node, epoch), b"")

    def _reach(self, link: Link, state: bytes | None, out: Outputs) -> None:
        """All before this epoch is applied: the cores before it are done, and what it decided meanwhile is due."""
        del self._links[: self._links.index(link)]
        if state is not None:
            self._prefix = Prefix(link.epoch.number, state)
        self._arriving = bytearray()
        self._owner.reached(link.core)
        held, link.held = link.held, []
        entries: list[Entry] = []
        for each in held:
            if isinstance(each, StateWanted):
                self._apply(link, entries, out)
                entries = []
                self._hand_over(link, each, out)
            else:
                entries.append(each)
        self._apply(link, entries, out)  # with nothing held, too: reads may have waited for the prefix

    # -- what members tell each other about it --

    def _tell(self, peer: NodeId, out: Outputs) -> None:
        if peer not in self._told:
            self._told.add(peer)
            out.early.append((peer, (self.epoch.number, Sealed(self.epoch, self._links[-1].digest))))

    def _notify(self, out: Outputs) -> None:
        for peer in self._others():
            if peer not in self._holders:
                self._tell(peer, out)

    def _control(self, sender: NodeId, number: int, message: Any) -> Outputs:
        out = Outputs()
        match message:
            case Sealed():
                self._sealed(sender, message, out)
            case Which() if number < self.epoch.number:
                self._tell(sender, out)
            case Holds(at) if at == self.epoch.number:
                self._holders.add(sender)
                self._forget_prefix()
            case Fetch(at, offset):
                prefix = self._prefix
                if prefix is not None and prefix.number >= at and 0 <= offset < len(prefix.state):
                    part = prefix.state[offset : offset + CHUNK_BYTES]
                    out.early.append((sender, (number, Piece(prefix.number, offset, len(prefix.state), part))))
            case Piece():
                self._piece(sender, message, out)
            case Switch(successor) if self.epoch.protocol != "pbft":  # one that may lie must not speak for us
                with suppress(UsageError, UnavailableError):  # who asked sees that nothing happens
                    out = self.switch(successor)
        return out

    def _sealed(self, sender: NodeId, message: Sealed, out: Outputs) -> None:
        newest = self._links[-1]
        if message.epoch.number < newest.epoch.number:
            self._tell(sender, out)
        elif message.epoch.number == newest.epoch.number:
            if (message.epoch, message.digest) != (newest.epoch, newest.digest):
                if newest.epoch.former_protocol != "pbft":
                    reason = (
                        f"{sender} has another beginning of epoch {newest.epoch.number} than is here: one disk lies"
                    )
                    self._event(newest, Fatal(reason), out)
            elif self.node in self._holders:
                out.early.append((sender, (newest.epoch.number, Holds(newest.epoch.number))))
        elif self._believed(sender, message):
            try:
                self._begin(message.epoch, message.digest, out)
            except UsageError as error:
                raise PeerError(f"{sender} tells of an epoch that can't begin here: {error}") from None

    def _believed(self, sender: NodeId, message: Sealed) -> bool:
        """Whether a notice counts: of an epoch with members that may lie, some honest one has to say so."""
        if self.epoch.protocol != "pbft":
            return True
        if sender not in self.epoch.members:
            return False
        self._claims[sender] = message
        alike = sum(claim == message for claim in self._claims.values())
        return alike > (len(self.epoch.members) - 1) // 3

    def _fetch(self, out: Outputs) -> None:
        """Ask for the prefix that is missing: of the oldest epoch that lacks it, or any later one."""
        sources = self._others()
        if len(self._arriving) == self._arrived:
            self._source += 1  # who was asked has nothing to say
        self._arrived = len(self._arriving)
        if sources:
            wanted = Fetch(self._links[1].epoch.number, len(self._arriving))
            out.early.append((sources[self._source % len(sources)], (self.epoch.number, wanted)))

    def _piece(self, sender: NodeId, message: Piece, out: Outputs) -> None:
        link = self._link(message.number)
        if self.whole or link is None or link is self._links[0] or not 0 < message.total <= PREFIX_BYTES_MAX:
            return
        name = (message.number, message.total)
        if name != self._arriving_name:
            self._arriving_name, self._arriving = name, bytearray()
        if message.offset != len(self._arriving) or message.offset + len(message.data) > message.total:
            return
        self._arriving += message.data
        if len(self._arriving) < message.total:
            out.early.append((sender, (self.epoch.number, Fetch(message.number, len(self._arriving)))))
            return
        state, self._arriving = bytes(self._arriving), bytearray()
        if _digest(state) != link.digest:
            return  # another member will be asked
        self._owner.install(Snapshot(link.epoch.start - 1, 0, b"", state), link.epoch.start)
        self._reach(link, state, out)

    def _forget_prefix(self) -> None:
        if self._holders.issuperset(self._others()) and self.node in self._holders:
            self._prefix = None

    # -- what is on disk --

    def save(self, snapshot: Snapshot) -> bytes:
        """The state of a checkpoint; `saved` when it is on disk. Only while the chain is `whole`."""
        self._saving = True
        link = self._links[0]
        return _pack(Saved(link.epoch, link.digest, snapshot, self._prefix))

    def saved(self, number: int) -> Outputs:
        """What `save` gave in epoch `number` is on disk."""
        if number != self.epoch.number:
            return Outputs()
        self._saving = False
        first = self.node not in self._holders
        self._holders.add(self.node)
        self._forget_prefix()
        others = self._others() if first and number else []
        return Outputs(early=[(peer, (number, Holds(number))) for peer in others])

    def not_saved(self) -> None:
        """What `save` gave did not reach the disk: it is owed again."""
        self._saving = False

    def compact(self, snapshot: Snapshot) -> list[bytes]:
        """Let the core forget; the records with which the log begins behind the snapshot."""
        tag = _tag(self.epoch.number)
        return [tag + record for record in self.core.compact(snapshot)]

    def restore(self, state: bytes) -> Snapshot:
        """Start from what `save` gave, before `replay`; the snapshot to install. Raises CorruptionError."""
        try:
            saved = _unpack_saved(state)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"the snapshot of {self.node} is none: {error}") from None
        core = self._make(saved.epoch)
        core.restore(saved.snapshot)
        self._links = [Link(saved.epoch, core, saved.digest)]
        self._rest()
        self._prefix = saved.prefix
        self._holders.add(self.node)
        return saved.snapshot

    def replay(self, record: bytes) -> None:
        """Take a record of the log back, oldest first. Raises CorruptionError."""
        if record[:1] == _BEGIN:
            try:
                epoch, digest = _unpack_begin(record[1:])
            except (msgspec.MsgspecError, ValueError) as error:
                raise CorruptionError(f"a record of {self.node} begins no epoch: {error}") from None
            self._append(Link(epoch, self._make(epoch), digest))
            return
        for link in self._links:
            if _tag(link.epoch.number) == record[:1]:
                link.core.replay(record[1:])
                return
        raise CorruptionError(f"the log of {self.node} holds a record of an epoch that did not begin: {record[:1]!r}")

    def recovered(self) -> Outputs:
        """The log is at its end."""
        out = Outputs()
        for link in list(self._links):
            if link in self._links:
                out.extend(self._framed(link, link.core.recovered()))
        return out


def _tag(number: int) -> bytes:
    return bytes((1 + number % 255,))


def _digest(state: bytes) -> bytes:
    return blake2b(state, digest_size=32).digest()


def _enough(protocol: str, members: Sequence[NodeId]) -> int:
    """How many of them are a quorum of crash faults; of PBFT, one with enough that do not lie."""
    count = len(members)
    return count - (count - 1) // 3 if protocol == "pbft" else count // 2 + 1


_pack = msgspec.msgpack.Encoder(order="deterministic").encode
_unpack_saved = msgspec.msgpack.Decoder(Saved).decode
_unpack_begin = msgspec.msgpack.Decoder(tuple[Epoch, bytes]).decode
