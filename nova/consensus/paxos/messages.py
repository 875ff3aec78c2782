"""What Multi-Paxos members say to each other. A slot is the position of an entry; `entry.term` is a ballot."""

from __future__ import annotations

import msgspec

from nova.consensus.core import Entry


class Message(msgspec.Struct, frozen=True, array_like=True):
    """`ballot`: the one that this is about; 0 where none is meant."""

    ballot: int


class Prepare(Message, frozen=True, array_like=True, tag="xp"):
    """Phase 1a, for every slot from `first` on. `probe`: would you promise? Nothing changes by it."""

    first: int
    probe: bool = False


class Promise(Message, frozen=True, array_like=True, tag="xP"):
    """Phase 1b: what was accepted from slot `first` on.

    committed  slots up to it are decided here: so are the entries for them
    compacted  slots up to it are in a snapshot only
    following  the slot to ask from for the rest; 0 if this was the end
    """

    first: int
    committed: int
    compacted: int
    entries: tuple[Entry, ...] = ()
    following: int = 0
    probe: bool = False


class Accept(Message, frozen=True, array_like=True, tag="xa"):
    """Phase 2a for consecutive slots. `first`: the leader's first slot under its ballot."""

    first: int
    committed: int
    entries: tuple[Entry, ...]


class Accepted(Message, frozen=True, array_like=True, tag="xA"):
    """Phase 2b: every slot of the leader up to this one is accepted under its ballot, or known to be decided."""

    upto: int


class Refused(Message, frozen=True, array_like=True, tag="xr"):
    """`ballot` comes too late: `promised` was promised."""

    promised: int


class Heartbeat(Message, frozen=True, array_like=True, tag="xh"):
    """`sent`: slots up to it were sent to you."""

    round: int
    first: int
    committed: int
    sent: int


class HeartbeatReply(Message, frozen=True, array_like=True, tag="xH"):
    """`upto`: as `Accepted`. `missing`: the first slot that was sent and is not here; 0 if all are."""

    round: int
    upto: int
    missing: int = 0


class Learn(Message, frozen=True, array_like=True, tag="xl"):
    """Tell me what was decided from slot `first` on. The rest: the snapshot that I have a beginning of."""

    first: int
    position: int = 0
    position_term: int = 0
    total: int = 0
    offset: int = 0


class Learned(Message, frozen=True, array_like=True, tag="xL"):
    """Decided entries, consecutive; slots up to `committed` are decided here."""

    committed: int
    entries: tuple[Entry, ...]


class SnapshotChunk(Message, frozen=True, array_like=True, tag="xs"):
    """A piece of a snapshot of `total` bytes that covers `position`, whose ballot was `position_term`."""

    position: int
    position_term: int
    offset: int
    total: int
    data: bytes


class ReadIndex(Message, frozen=True, array_like=True, tag="xi"):
    ids: tuple[int, ...]


class ReadIndexReply(Message, frozen=True, array_like=True, tag="xI"):
    ids: tuple[int, ...]
    position: int


MESSAGES = (
    Prepare, Promise, Accept, Accepted, Refused, Heartbeat, HeartbeatReply, Learn, Learned, SnapshotChunk,
    ReadIndex, ReadIndexReply,
)  # fmt: skip
