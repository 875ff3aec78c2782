"""What is asked of the machine of strong keys, what it answers, and how both look as bytes.

Values are JSON in its one deterministic form (`packed`), which the machine compares by the byte.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import msgspec

from nova.errors import UsageError

CONDITIONS_MAX: Final = 64
OPERATIONS_MAX: Final = 64
LIST_MAX: Final = 1_000
LIST_BYTES_MAX: Final = 16 << 20
"""Of the values of one page; a page has at least one entry."""


class Held(msgspec.Struct, frozen=True, array_like=True):
    """What a key holds.

    value    JSON
    version  revision of the machine when it was last changed: unique over all keys and times, so a key that was deleted
             and made again never has a version that it had before
    time_ms  wall clock of the node that asked for the change, since 1970; for people, nothing is decided by it
    origin   that node
    """

    value: bytes
    version: int
    time_ms: int
    origin: str


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One item of the feed; `held` None: the key was deleted, by `origin` at `time_ms`."""

    revision: int
    key: str
    held: Held | None
    time_ms: int
    origin: str


# ------------------------------------------------------------------------------------------------ conditions


class VersionIs(msgspec.Struct, frozen=True, array_like=True, tag="v"):
    """The key has this version; 0: it holds nothing."""

    version: int


class ValueIs(msgspec.Struct, frozen=True, array_like=True, tag="="):
    """The key holds exactly this."""

    value: bytes


class Exists(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    """The key holds something."""


Condition = VersionIs | ValueIs | Exists


# ------------------------------------------------------------------------------------------------ operations


class Write(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    """Hold this from now on."""

    value: bytes


class Remove(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    """Hold nothing from now on."""


class Add(msgspec.Struct, frozen=True, array_like=True, tag="+"):
    """Add a number to the one that the key holds, 0 if it holds nothing."""

    amount: int | float


class Read(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """Tell what the key holds at this place of the transaction."""


Operation = Write | Remove | Add | Read


# ------------------------------------------------------------------------------------------------ commands and queries


class Transact(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Carry the operations out, in order, if all conditions hold: all of them or none. The tag is the format's version.

    bytes_max  refuse what would make the whole state larger. It travels with the command, so that members which are
               configured differently still decide alike
    """

    key: str
    conditions: tuple[Condition, ...]
    operations: tuple[Operation, ...]
    origin: str
    time_ms: int
    bytes_max: int


class Verdict(IntEnum):
    """What became of a transaction."""

    DONE = 0
    STALE = 1  # a condition does not hold
    REFUSED = 2  # an operation can't be carried out


class Told(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a command.

    revision  of the machine behind it
    held      what the key holds then
    failed    STALE: index of the first condition that does not hold; REFUSED: index of the operation, -1: all of it
    results   DONE: what the key held behind each operation, None for nothing
    reason    REFUSED: why
    """

    verdict: Verdict
    revision: int
    held: Held | None
    failed: int = -1
    results: tuple[bytes | None, ...] = ()
    reason: str = ""


class Get(msgspec.Struct, frozen=True, array_like=True, tag="get"):
    """Query: what a key holds; the answer is `Held` or nil."""

    key: str


class Page(msgspec.Struct, frozen=True, array_like=True, tag="page"):
    """Query: keys in order behind `after`; the answer is a `Listed`."""

    prefix: str
    after: str
    limit: int


class Listed(msgspec.Struct, frozen=True, array_like=True):
    """A page; `more`: there are further keys behind the last one."""

    revision: int
    items: tuple[tuple[str, Held], ...]
    more: bool


pack: Any = msgspec.msgpack.Encoder(order="deterministic").encode
unpack_command = msgspec.msgpack.Decoder(Transact).decode
unpack_told = msgspec.msgpack.Decoder(Told).decode
unpack_query = msgspec.msgpack.Decoder(Get | Page).decode
unpack_held = msgspec.msgpack.Decoder(Held | None).decode
unpack_listed = msgspec.msgpack.Decoder(Listed).decode

_packed = msgspec.json.Encoder(order="deterministic").encode
unpacked: Any = msgspec.json.Decoder().decode
"""The value of `packed` bytes."""


def packed(value: Any) -> bytes:
    """A JSON value as the bytes that stand for it: equal values give equal bytes, though 1 and 1.0 differ.

    raises  UsageError for what is no JSON
    """
    try:
        return _packed(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"the value cannot be stored: {error}; values are JSON") from None
