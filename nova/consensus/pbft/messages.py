"""What PBFT members say to each other.

On the wire there is one message, `Authentic`: a body and the MAC of its sender for its receiver. What has to convince
others than its receiver is signed as well: checkpoints, the votes for a seal, view changes and new views.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final

import msgspec

from nova.consensus.core import Kind
from nova.types import NodeId

DIGEST_BYTES: Final = 32


class Authentic(msgspec.Struct, frozen=True, array_like=True, tag="bA"):
    """A body (`Body`, encoded), and the MAC of it under the key that sender and receiver share."""

    body: bytes
    mac: bytes


# ------------------------------------------------------------------------------------------------ ordering


class Request(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """Somebody wants this ordered: commands, or (NOOP) a barrier for reads, `pack_barriers`."""

    kind: Kind
    data: bytes


class PrePrepare(msgspec.Struct, frozen=True, array_like=True, tag="o"):
    """The primary of `view` puts an entry at a position. `proof`: who asked for it, signed, if it is a seal."""

    view: int
    position: int
    digest: bytes
    kind: Kind
    data: bytes
    proof: tuple[tuple[NodeId, bytes], ...] = ()


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """A backup accepted that."""

    view: int
    position: int
    digest: bytes


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """A member knows that a quorum accepted that, and will know after a crash."""

    view: int
    position: int
    digest: bytes


class SealVote(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """A member wants the epoch to end; `successor` is a packed epoch."""

    successor: bytes
    signature: bytes


# ------------------------------------------------------------------------------------------------ checkpoints


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, tag="k"):
    """A member holds a state of this digest and size at a position. The signature is over `checkpoint_content`."""

    position: int
    digest: bytes
    size: int
    signature: bytes


class Stable(msgspec.Struct, frozen=True, array_like=True, tag="K"):
    """A quorum holds that state: its signatures by member, sorted. Without any: the beginning of the epoch."""

    position: int
    digest: bytes = b""
    size: int = 0
    proof: tuple[tuple[NodeId, bytes], ...] = ()


class StateAsk(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """Send me that state, from this offset on."""

    position: int
    digest: bytes
    offset: int


class StateChunk(msgspec.Struct, frozen=True, array_like=True, tag="T"):
    position: int
    digest: bytes
    offset: int
    data: bytes


# ------------------------------------------------------------------------------------------------ views


class Signed(msgspec.Struct, frozen=True, array_like=True, tag="v"):
    """A `ViewChange` or `NewView`, encoded, and the signature of its author: anybody may pass it on."""

    signer: NodeId
    content: bytes
    signature: bytes


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """At this position the author prepared, or accepted, an entry of this digest: in `view`, and in none later."""

    position: int
    view: int
    digest: bytes


class ViewChange(msgspec.Struct, frozen=True, array_like=True, tag="V"):
    """The author takes part in no view below `view` any more.

    stable    the newest checkpoint that it knows to be stable
    prepared  the paper's P: one claim a position above that
    accepted  the paper's Q: one claim for each position and digest
    """

    view: int
    stable: Stable
    prepared: tuple[Claim, ...]
    accepted: tuple[Claim, ...]


class NewView(msgspec.Struct, frozen=True, array_like=True, tag="N"):
    """`view` begins: what a quorum's view changes leave to be ordered anew, as (position, digest), without a gap."""

    view: int
    view_changes: tuple[Signed, ...]
    chosen: tuple[tuple[int, bytes], ...]


# ------------------------------------------------------------------------------------------------ catching up


class Status(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """Where the sender is: executed up to `position`, stable up to `stable`."""

    view: int
    active: bool
    position: int
    stable: int


class Ordered(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    """These are decided: (position, kind, data). True if f + 1 say so."""

    entries: tuple[tuple[int, Kind, bytes], ...]


class EntryAsk(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    """Send me the entries of these digests."""

    wanted: tuple[tuple[int, bytes], ...]


class Entries(msgspec.Struct, frozen=True, array_like=True, tag="E"):
    """(position, kind, data): their digest is all that speaks for them."""

    entries: tuple[tuple[int, Kind, bytes], ...]


Body = (
    Request | PrePrepare | Prepare | Commit | SealVote | Checkpoint | Stable | StateAsk | StateChunk | Signed | Status
    | Ordered | EntryAsk | Entries
)  # fmt: skip

MESSAGES: Final = (Authentic,)

# ------------------------------------------------------------------------------------------------ bytes

encode = msgspec.msgpack.Encoder().encode
decode_body: Callable[[bytes], Body] = msgspec.msgpack.Decoder(Body).decode
decode_content: Callable[[bytes], ViewChange | NewView] = msgspec.msgpack.Decoder(ViewChange | NewView).decode
decode_barriers = msgspec.msgpack.Decoder(list[tuple[NodeId, int]]).decode


def entry_digest(kind: Kind, data: bytes) -> bytes:
    """What stands for an entry in prepares and commits."""
    return blake2b(data, digest_size=DIGEST_BYTES, person=b"nova pbft %d" % kind).digest()


NULL: Final = entry_digest(Kind.NOOP, b"")
"""The null request: what is ordered where nothing was prepared."""


def state_digest(state: bytes) -> bytes:
    """What stands for a state in checkpoints."""
    return blake2b(state, digest_size=DIGEST_BYTES, person=b"nova pbft state").digest()


def checkpoint_content(epoch: int, position: int, digest: bytes, size: int) -> bytes:
    """What a checkpoint signs."""
    return b"nova pbft checkpoint" + encode((epoch, position, digest, size))


def view_content(epoch: int, content: bytes) -> bytes:
    """What a view change or new view signs."""
    return b"nova pbft view" + encode((epoch, content))


def seal_content(epoch: int, successor: bytes) -> bytes:
    """What a vote for a seal signs."""
    return b"nova pbft seal" + encode((epoch, successor))


def mac_content(epoch: int, sender: NodeId, receiver: NodeId, body: bytes) -> bytes:
    """What a MAC covers: a body cannot be turned round, nor carried into another epoch."""
    return encode((epoch, sender, receiver)) + body
