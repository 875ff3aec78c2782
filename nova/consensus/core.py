"""The shape that all protocols share: commands in, what to persist, send and apply out.

A core is one member's half of one protocol in one epoch. It owns no socket, file, thread, clock or chance: the driver
hands in ticks, a monotonic clock that it may read, and a seeded generator. Everything that it wants done comes back as
`Outputs`:

  persist  records of the core's own making; after a crash the driver replays those that were synced, oldest first
  early    messages that promise nothing about these records: they leave at once, while the disk is busy
  send     messages that do (votes, promises, acknowledgements): they leave after the records are durable
  apply    the events below, in this order with the sends of the same Outputs

What has become durable is told to the core by `advance`: a core that persists adds a `Persisted(token)` of its own
choosing to `apply`, and the driver hands that token back. So a leader's own sync overlaps the replication, and it
counts itself only when its disk does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import msgspec

from nova.errors import CorruptionError, UnavailableError, UsageError
from nova.types import NodeId, Outputs, Random

# ------------------------------------------------------------------------------------------------ commands


class Command(msgspec.Struct, frozen=True, array_like=True):
    """What a client wants applied.

    session   who asks (see nova.consensus.sessions); 0 stands for nobody: such a command is applied as often as it is
              chosen, so it is never proposed twice
    sequence  its number in the session, from 1
    data      opaque to consensus
    key       commands with different keys commute, b"" with none: only EPaxos and per-key readers look at it
    """

    session: int
    sequence: int
    data: bytes
    key: bytes = b""


class Kind(IntEnum):
    """What an entry holds."""

    COMMANDS = 0
    NOOP = 1
    MEMBERS = 2
    SEAL = 3


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One decided, or proposed, position.

    position  from 1; in an epoch that does not begin the chain, from the sealed position on. Protocols without a total
              order (`Core.ordered` False) give each instance one of its own, and apply in the order of `Committed`
    term      term, ballot or view under which it was made
    data      encoded once: the same bytes go to the wire and to the log. COMMANDS: `pack(commands)`
    """

    position: int
    term: int
    kind: Kind
    data: bytes


_pack = msgspec.msgpack.Encoder().encode
_unpack_commands = msgspec.msgpack.Decoder(list[Command]).decode


def pack(commands: Sequence[Command]) -> bytes:
    """The data of an entry that holds these commands."""
    return _pack(commands)


def unpack(data: bytes) -> list[Command]:
    """The commands of an entry. Raises CorruptionError."""
    try:
        return _unpack_commands(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptionError(f"an entry of {len(data)} bytes does not hold commands: {error}") from None


class Epoch(msgspec.Struct, frozen=True, array_like=True):
    """One link of the chain: which protocol orders, among whom, from which position on.

    number    0, 1, 2 ...; each is ended by one seal that names its successor
    protocol  `raft`, `paxos`, `epaxos`, `pbft`, `eventual`, `hybrid`
    members   those who vote at the start of the epoch, sorted
    start     position of its first entry; the seal before it decides that
    options   of the protocol; plain values
    former    members and protocol of the epoch before, filled in with `start`
    first     who leads from the start: every member begins as if it had voted for that one already, so nobody needs
              to be asked; "" where whoever can is elected
    token     drawn at random by `first` for its seal: so it knows that the seal is its own, of this life, and that no
              earlier life of it has led this epoch
    """

    number: int
    protocol: str
    members: tuple[NodeId, ...]
    start: int = 1
    options: dict[str, Any] = {}
    former: tuple[NodeId, ...] = ()
    former_protocol: str = ""
    first: NodeId = ""
    token: int = 0


# ------------------------------------------------------------------------------------------------ events


class Persisted(msgspec.Struct, frozen=True):
    """The records of these Outputs are durable: hand `token` to `advance`."""

    token: int


class Committed(msgspec.Struct, frozen=True):
    """These entries are decided for ever, in this order; each is told once per life of a core, from `compact`ed on.

    epoch  which one decided them; the chain fills it in
    """

    entries: tuple[Entry, ...]
    epoch: int = 0


class ReadReady(msgspec.Struct, frozen=True):
    """The reads with these ids may be answered from any state that holds everything up to `position`."""

    ids: tuple[int, ...]
    position: int


class ReadLost(msgspec.Struct, frozen=True):
    """Nothing is known about these reads (the leader changed): ask again. `leader` None if unknown."""

    ids: tuple[int, ...]
    leader: NodeId | None


class Installed(msgspec.Struct, frozen=True):
    """A whole state came from a peer in place of the entries up to its position, and is durable: restore it."""

    snapshot: Snapshot


class StateWanted(msgspec.Struct, frozen=True):
    """Hand the state at exactly this position, all that was told before and nothing after, to `checkpointed`, now.

    Only of cores that agree on states and not on entries alone (PBFT): no other one has that method.
    """

    position: int


class Fatal(msgspec.Struct, frozen=True):
    """The impossible was seen; the member must stop, change nothing and say `reason`."""

    reason: str


Event = Persisted | Committed | ReadReady | ReadLost | Installed | StateWanted | Fatal


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """A state that covers every entry up to `position`, whose term was `term`.

    core   what the core needs to go on from there (members, ...), of its own making
    state  the machine and its sessions
    """

    position: int
    term: int
    core: bytes
    state: bytes


# ------------------------------------------------------------------------------------------------ refusals


class NotLeaderError(UnavailableError):
    """Only the leader takes this; `leader` is who that is, None while nobody is known to be. Nothing was proposed."""

    code = "not_leader"

    def __init__(self, node: NodeId, leader: NodeId | None) -> None:
        where = f"ask {leader}" if leader else "no leader is known: try again after an election"
        super().__init__(f"{node} does not lead; {where}", 50_000_000)
        self.leader = leader


class OverloadedError(UnavailableError):
    """More is proposed than commits. Nothing was proposed; try again after `retry_after_ns`."""

    code = "overloaded"


class SealedError(UnavailableError):
    """The epoch has ended, or ends: nothing was proposed. Its successor takes proposals."""

    code = "sealed"


class UnknownOutcomeError(UnavailableError):
    """No answer came: the command may have been applied, may still be, or never; once at most."""

    code = "unknown_outcome"


class SessionExpiredError(UnknownOutcomeError):
    """The group forgot the session before the answer came: the command may have been applied, and is not any more."""

    code = "session_expired"


# ------------------------------------------------------------------------------------------------ cores


class Status(msgspec.Struct, frozen=True):
    """How a member sees itself.

    role    `leader`, `follower`, `candidate`, `learner`, `replica` (no leader in this protocol) or `sealed`
    term    term, ballot or view
    peers   for a leader: peer -> position known to be stored there
    """

    node: NodeId
    protocol: str
    role: str
    term: int
    leader: NodeId | None
    committed: int
    last: int
    members: tuple[NodeId, ...]
    peers: dict[NodeId, int] = {}


class Core(Protocol):
    """One member of one protocol. No method blocks; each returns what to do about it.

    ordered   positions form one total order, told in order by `Committed`

    A core may have a flag `snapshot_wanted`: a peer needs a newer snapshot than the last one, so make one soon. One
    whose epochs may name who is `first` to lead has a flag `begins_led`.
    """

    ordered: ClassVar[bool]
    messages: ClassVar[tuple[type[msgspec.Struct], ...]]

    def step(self, sender: NodeId, message: Any) -> Outputs:
        """Take a message. What is hostile or old changes nothing; PeerError for what no member can have sent."""

    def tick(self) -> Outputs:
        """Let one tick of time pass."""

    def propose(self, entries: Sequence[tuple[Kind, bytes]]) -> Outputs:
        """Propose these, in order. Raises NotLeaderError, OverloadedError or SealedError; then none was proposed."""

    def read(self, id: int) -> Outputs:
        """Ask for a position whose state is linearizable for a read that begins now: ReadReady or ReadLost follows.

        Raises NotLeaderError where only a leader can tell and none is known.
        """

    def advance(self, token: int) -> Outputs:
        """Everything up to this token of `Persisted` is durable."""

    def lead(self) -> Outputs:
        """Try to lead at once, at the start of an epoch: for one member, if nobody can lead yet; or for the one that is
        `first`, which leads without asking, and only if it never did in any life."""

    def seal(self, successor: Epoch) -> Outputs:
        """End this epoch with an entry of kind SEAL that holds `successor` (`pack_epoch`); whatever is ordered behind
        the first seal is void. Raises as `propose`, and UsageError for a successor that cannot be."""

    def replay(self, record: bytes) -> None:
        """Take a record back after a restart, oldest first, before anything else. Raises CorruptionError."""

    def recovered(self) -> Outputs:
        """The log is at its end. What is known to be committed is told (again) by `Committed`."""

    def snapshot(self, position: int, state: bytes) -> Snapshot:
        """What to keep in place of the entries up to an applied position; the core may send it to peers. It may cover
        less than that, if the records of `compact` hold the rest."""

    def compact(self, snapshot: Snapshot) -> list[bytes]:
        """Forget the entries that a durable snapshot covers; the records with which recovery behind it begins."""

    def restore(self, snapshot: Snapshot) -> None:
        """Start from a snapshot, before `replay`."""

    @property
    def leader(self) -> NodeId | None:
        """Where proposals go: a node, or None while nobody knows. Itself where every member proposes."""

    @property
    def status(self) -> Status:
        """For operators and tests."""


class StateCore(Core, Protocol):
    """A core that tells `StateWanted`."""

    def checkpointed(self, position: int, state: bytes) -> Outputs:
        """The state at a position for which it asked."""


class ConvergentCore(Core, Protocol):
    """A core whose members tell concurrent commands in different orders: `convergent` is True, and `ordered` False.

    A read holds all that was told where it is asked, and what its session saw elsewhere; it is not linearizable.
    """

    convergent: ClassVar[bool]

    @property
    def frontier(self) -> tuple[int, ...]:
        """All that was told here."""

    def read(self, id: int, after: tuple[int, ...] = ()) -> Outputs:
        """Ask for a state that holds all of `after`: ReadReady or ReadLost follows."""


class Homes(NamedTuple):
    """The streams of an epoch, each told in one order everywhere, and proposed into by members of its own.

    start  of the epoch: position p is of stream (p - start) % streams
    own    that of this member
    """

    start: int
    streams: int
    own: int

    def stream(self, position: int) -> int:
        """That which a position of this epoch is of."""
        return (position - self.start) % self.streams


def homes_of(core: Core) -> Homes | None:
    """The streams of a core whose members are convergent, if each has one order and several members; None: not so."""
    homes: Homes | None = getattr(core, "homes", None)
    return homes


def is_convergent(core: Core) -> bool:
    """Whether members may apply concurrent commands in different orders: then the machine has to be convergent."""
    return bool(getattr(core, "convergent", False))


@runtime_checkable
class Reconfigurable(Protocol):
    """What a core can do besides, if it has a leader and its members can change within an epoch."""

    @property
    def changing(self) -> bool:
        """A change of members is under way: proposed and not committed to its end."""

    def change(self, voters: Iterable[NodeId], learners: Iterable[NodeId] = ()) -> Outputs:
        """Change the members. Raises NotLeaderError, SealedError, UsageError."""

    def transfer(self, target: NodeId) -> Outputs:
        """Hand leadership to a voter. Raises NotLeaderError, UsageError."""


Make = Callable[[NodeId, Epoch, Random, Callable[[], int]], Core]
"""(node, epoch, random, monotonic clock in ns) -> a core; how a protocol is registered."""


def pack_epoch(epoch: Epoch) -> bytes:
    """The data of a SEAL."""
    return _pack(epoch)


_unpack_epoch = msgspec.msgpack.Decoder(Epoch).decode


def unpack_epoch(data: bytes) -> Epoch:
    """The successor that a seal names. Raises CorruptionError."""
    try:
        return _unpack_epoch(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptionError(f"a seal of {len(data)} bytes names no epoch: {error}") from None


def checked_members(node: NodeId, epoch: Epoch, least: int = 1) -> tuple[NodeId, ...]:
    """The members of an epoch, if they can make one. Raises UsageError."""
    members = epoch.members
    if len(set(members)) != len(members) or tuple(sorted(members)) != members:
        raise UsageError(f"the members of epoch {epoch.number} are {list(members)}; name each once, sorted")
    if len(members) < least:
        raise UsageError(f"{epoch.protocol} needs at least {least} members; epoch {epoch.number} has {len(members)}")
    if not node:
        raise UsageError("a member needs a name")
    if epoch.first and epoch.first not in members:
        raise UsageError(f"{epoch.first} is to lead epoch {epoch.number} first and is none of {list(members)}")
    return members
