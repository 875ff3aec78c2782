"""What Raft members say to each other. Positions are log indices; `round` numbers rounds of a leader's heartbeats."""

from __future__ import annotations

import msgspec

from nova.consensus.core import Entry


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Every message carries the term of its sender."""

    term: int


class Vote(Message, frozen=True, array_like=True, tag="rv"):
    """`pre`: would you vote for me in `term`? Nobody's term changes. `forced`: the leader itself asked for this."""

    last: int
    last_term: int
    pre: bool = False
    forced: bool = False


class VoteReply(Message, frozen=True, array_like=True, tag="rV"):
    granted: bool
    pre: bool = False


class Append(Message, frozen=True, array_like=True, tag="ra"):
    """Entries behind (previous, previous_term)."""

    previous: int
    previous_term: int
    committed: int
    entries: tuple[Entry, ...]


class AppendReply(Message, frozen=True, array_like=True, tag="rA"):
    """`matched`: durable here up to this. Or, `rejected` (the `previous` that did not fit): where the logs may meet."""

    matched: int
    rejected: int = 0
    hint: int = 0
    hint_term: int = 0


class Heartbeat(Message, frozen=True, array_like=True, tag="rh"):
    round: int
    committed: int


class HeartbeatReply(Message, frozen=True, array_like=True, tag="rH"):
    round: int


class SnapshotChunk(Message, frozen=True, array_like=True, tag="rs"):
    """A piece of a snapshot of `total` bytes that covers `position`, whose term was `position_term`."""

    position: int
    position_term: int
    offset: int
    total: int
    data: bytes


class SnapshotReply(Message, frozen=True, array_like=True, tag="rS"):
    """So much of that snapshot is here."""

    position: int
    offset: int


class TimeoutNow(Message, frozen=True, array_like=True, tag="rt"):
    """Campaign at once: leadership is handed to you."""


class ReadIndex(Message, frozen=True, array_like=True, tag="ri"):
    ids: tuple[int, ...]


class ReadIndexReply(Message, frozen=True, array_like=True, tag="rI"):
    ids: tuple[int, ...]
    position: int


MESSAGES = (
    Vote, VoteReply, Append, AppendReply, Heartbeat, HeartbeatReply, SnapshotChunk, SnapshotReply, TimeoutNow,
    ReadIndex, ReadIndexReply,
)  # fmt: skip
