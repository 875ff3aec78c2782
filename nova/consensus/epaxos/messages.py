"""What EPaxos members say to each other. An instance is named by the index of its owner among the members and a number.

`deps` holds, for each member, the number up to which its interfering instances come before (see instances.py).
"""

from __future__ import annotations

import msgspec

from nova.consensus.epaxos.instances import Id, Value


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Most messages are about one instance."""

    id: Id


class PreAccept(Message, frozen=True, array_like=True, tag="ep"):
    """The owner proposes, at ballot 0: these attributes, or what you know beyond them."""

    value: Value


class PreAcceptReply(Message, frozen=True, array_like=True, tag="eP"):
    deps: tuple[int, ...]
    seq: int


class Accept(Message, frozen=True, array_like=True, tag="ea"):
    ballot: int
    value: Value


class AcceptReply(Message, frozen=True, array_like=True, tag="eA"):
    ballot: int


class Commit(Message, frozen=True, array_like=True, tag="ec"):
    value: Value


class Refused(Message, frozen=True, array_like=True, tag="en"):
    """A higher ballot is promised."""

    ballot: int


class Recover(Message, frozen=True, array_like=True, tag="er"):
    ballot: int


class RecoverReply(Message, frozen=True, array_like=True, tag="eR"):
    """`accepted`: the ballot under which `value` was accepted, whatever was promised since. `init`: what the owner
    proposed, or what was validated."""

    ballot: int
    accepted: int
    status: int
    value: Value | None
    init: Value | None


class Validate(Message, frozen=True, array_like=True, tag="ev"):
    ballot: int
    value: Value


class ValidateReply(Message, frozen=True, array_like=True, tag="eV"):
    """Interfering instances that may stand against it: (owner, number, whether it is committed)."""

    ballot: int
    conflicts: tuple[tuple[int, int, bool], ...]


class Waiting(Message, frozen=True, array_like=True, tag="ew"):
    """The recovery of this instance waits; `count` members besides its owner pre-accepted it as proposed."""

    count: int


class Gone(Message, frozen=True, array_like=True, tag="eg"):
    """It was executed here, and is part of a snapshot now."""


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="eb"):
    """Of each member's instances: executed and durable here up to this, known up to that."""

    executed: tuple[int, ...]
    known: tuple[int, ...]


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag="ef"):
    """Are these committed?"""

    ids: tuple[Id, ...]


class SnapshotAsk(msgspec.Struct, frozen=True, array_like=True, tag="es"):
    """A snapshot that holds all of `executed` (packed); from `offset` on, if it is still the one named `name`."""

    executed: bytes
    name: tuple[int, int]
    offset: int


class SnapshotChunk(msgspec.Struct, frozen=True, array_like=True, tag="eS"):
    name: tuple[int, int]
    offset: int
    total: int
    data: bytes


MESSAGES = (
    PreAccept, PreAcceptReply, Accept, AcceptReply, Commit, Refused, Recover, RecoverReply, Validate, ValidateReply,
    Waiting, Gone, Beat, Fetch, SnapshotAsk, SnapshotChunk,
)  # fmt: skip
AnyMessage = (
    PreAccept | PreAcceptReply | Accept | AcceptReply | Commit | Refused | Recover | RecoverReply | Validate
    | ValidateReply | Waiting | Gone | Beat | Fetch | SnapshotAsk | SnapshotChunk
)  # fmt: skip
