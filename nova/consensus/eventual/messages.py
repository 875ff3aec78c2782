"""What members of an eventual group say to each other. Vectors have a number for each stream (streams.py)."""

from __future__ import annotations

import msgspec

from nova.consensus.eventual.streams import Dot, Vector


class Push(msgspec.Struct, frozen=True, array_like=True, tag="yp"):
    """Dots, each on the disk of who proposed it. `more`: there are others that you asked for."""

    dots: tuple[Dot, ...]
    more: bool = False


class Marks(msgspec.Struct, frozen=True, array_like=True, tag="ym"):
    """`have`: on my disk. `safe`: known to have copies enough."""

    have: Vector
    safe: Vector


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag="yf"):
    """I have so much; send what is beyond, up to `until` (empty: all)."""

    have: Vector
    until: Vector = ()


class Gone(msgspec.Struct, frozen=True, array_like=True, tag="yg"):
    """What you ask for is forgotten here, and part of a snapshot."""


class SnapshotAsk(msgspec.Struct, frozen=True, array_like=True, tag="ys"):
    """A snapshot that holds all of `base`; from `offset` on, if it is still the one named `name`."""

    base: Vector
    name: tuple[int, int]
    offset: int


class SnapshotChunk(msgspec.Struct, frozen=True, array_like=True, tag="yS"):
    name: tuple[int, int]
    offset: int
    total: int
    data: bytes


class Value(msgspec.Struct, frozen=True, array_like=True):
    """How an epoch may end: everything up to `vector`, nothing else, and then `successor` (`pack_epoch`: bytes are
    what members compare)."""

    vector: Vector
    successor: bytes


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag="yr"):
    """Freeze, and promise this ballot. Whoever takes over goes on with `successor`."""

    ballot: int
    successor: bytes


class Promise(msgspec.Struct, frozen=True, array_like=True, tag="yR"):
    """I am frozen at this vector. `accepted`: the ballot under which I accepted `value`, 0 for none."""

    ballot: int
    frozen: Vector
    accepted: int
    value: Value | None


class Accept(msgspec.Struct, frozen=True, array_like=True, tag="ya"):
    ballot: int
    value: Value


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="yA"):
    ballot: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="yn"):
    """A higher ballot is promised."""

    ballot: int


class Decided(msgspec.Struct, frozen=True, array_like=True, tag="yd"):
    value: Value


SPREAD_MESSAGES = (Push, Marks, Fetch, Gone, SnapshotAsk, SnapshotChunk)
MESSAGES = (*SPREAD_MESSAGES, Prepare, Promise, Accept, Accepted, Refused, Decided)
SpreadMessage = Push | Marks | Fetch | Gone | SnapshotAsk | SnapshotChunk
AnyMessage = SpreadMessage | Prepare | Promise | Accept | Accepted | Refused | Decided
