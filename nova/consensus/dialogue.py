"""What a client and a member of a group say to each other. Streams keep order; some of it leans on that, as it says."""

from __future__ import annotations

from typing import Final

import msgspec

from nova.consensus.sessions import Outcome
from nova.types import NodeId
from nova.wire import Codec

# ------------------------------------------------------------------------------------------------ client to member


class Open(msgspec.Struct, frozen=True, array_like=True, tag="o"):
    """Open a session; `nonce` is 16 bytes that nobody used before."""

    nonce: bytes


class Propose(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """Commands (data, key) of a session, numbered from `first` on without gaps."""

    session: int
    first: int
    commands: list[tuple[bytes, bytes]]


class Query(msgspec.Struct, frozen=True, array_like=True, tag="q"):
    """A read. `position`: a local read waits until this much is applied."""

    id: int
    data: bytes
    consistency: str
    position: int = 0


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """How the member stands."""

    id: int


# ------------------------------------------------------------------------------------------------ member to client


class Standing(msgspec.Struct, frozen=True, array_like=True, tag="S"):
    """First of all, and again when it changes: who leads, and where clients find the members.

    addresses  of the ports for clients, as far as the member was told them
    """

    node: NodeId
    leader: NodeId | None
    epoch: int
    protocol: str
    members: tuple[NodeId, ...]
    addresses: dict[NodeId, str]
    command_bytes_max: int


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="O"):
    """The session that was opened."""

    nonce: bytes
    session: int


class Answers(msgspec.Struct, frozen=True, array_like=True, tag="A"):
    """What became of commands, by number. `position`: where the newest of them stands in the order."""

    session: int
    outcomes: list[tuple[int, Outcome]]
    position: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="R"):
    """The member did not take this command, nor will it take any later one of the session from this stream, until this
    one comes again: so that none takes effect without those before it. `session` 0: it opens none now."""

    session: int
    sequence: int
    code: str
    text: str
    retry_after_ns: int


class Found(msgspec.Struct, frozen=True, array_like=True, tag="F"):
    """What a query found; `code` "" or that of the error that `text` tells."""

    id: int
    data: bytes
    position: int
    code: str = ""
    text: str = ""
    retry_after_ns: int = 0


class MemberStatus(msgspec.Struct, frozen=True, array_like=True, tag="M"):
    """How a member stands, as it tells its clients.

    role         `leader`, `follower`, `candidate`, `learner`, `replica` (no leader in this protocol) or `sealed`
    term         term, ballot or view
    applied      position up to which its machine has applied; `committed`: known to be decided
    connections  of clients; `commands`: of theirs without an answer
    """

    id: int
    node: NodeId
    role: str
    term: int
    leader: NodeId | None
    epoch: int
    protocol: str
    members: tuple[NodeId, ...]
    committed: int
    applied: int
    connections: int
    commands: int


Question = Open | Propose | Query | AskStatus
Reply = Standing | Opened | Answers | Refused | Found | MemberStatus

LINEARIZABLE: Final = "linearizable"
LEASE: Final = "lease"
LOCAL: Final = "local"
CONSISTENCIES: Final = (LINEARIZABLE, LEASE, LOCAL)

BATCH_BYTES: Final = 256 * 1024
"""Of the commands in one message, unless it is a single one."""
MESSAGE_BYTES_MIN: Final = 2 * BATCH_BYTES
"""A port has to take a batch, however small the commands are and so much they weigh besides."""

OVERLOADED: Final = "overloaded"
TOO_LARGE: Final = "limit"


def question_codec() -> Codec[Question]:
    """What members decode."""
    return Codec(Open, Propose, Query, AskStatus)


def reply_codec() -> Codec[Reply]:
    """What clients decode."""
    return Codec(Standing, Opened, Answers, Refused, Found, MemberStatus)


def client_cluster(cluster: str) -> str:
    """The name that both sides of a client's stream give: whoever finds the port of members is told that it is one."""
    return f"{cluster}/clients"
