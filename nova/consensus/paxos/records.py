"""What a member writes: the first byte of a record says which kind it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from nova.consensus.core import Entry
from nova.consensus.paxos.slots import ENTRY_BYTES
from nova.errors import CorruptionError

ACCEPTED: Final = b"A"
"""Entries that were accepted under the promised ballot; also a promise alone, without entries."""
LEARNED: Final = b"L"
"""Entries that were decided before they came here, or that are written once more behind a snapshot: no votes."""
SNAPSHOT: Final = b"S"
"""A piece of an installed snapshot."""


class Record(NamedTuple):
    """`committed`: slots up to it were decided when this was written, and stand in it or in records before it."""

    promised: int
    committed: int
    entries: list[Entry]


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Record).decode


def written(
    parts: Sequence[tuple[bytes, Sequence[Entry]]], promised: int, committed: int, bytes_max: int
) -> list[bytes]:
    """Records of these entries by tag, of about `bytes_max` each; one at least for each tag.

    Only the last one claims what is committed: a crash may leave a beginning of them.
    """
    bodies: list[tuple[bytes, list[Entry]]] = []
    for tag, entries in parts:
        body: list[Entry] = []
        bodies.append((tag, body))
        size = 0
        for entry in entries:
            size += len(entry.data) + ENTRY_BYTES
            if body and size > bytes_max:
                body, size = [], len(entry.data) + ENTRY_BYTES
                bodies.append((tag, body))
            body.append(entry)
    claims = [0] * (len(bodies) - 1) + [committed]
    return [tag + _pack(Record(promised, claim, body)) for (tag, body), claim in zip(bodies, claims, strict=True)]


def read(record: bytes) -> Record:
    """The body of an ACCEPTED or LEARNED record. Raises msgspec.MsgspecError, ValueError."""
    return _unpack(memoryview(record)[1:])


_unpack_sealed = msgspec.msgpack.Decoder(int | None).decode


def write_sealed(sealed: int | None) -> bytes:
    """What a snapshot holds of the core: where the epoch ended, if it did before."""
    return _pack(sealed)


def read_sealed(data: bytes) -> int | None:
    """Raises CorruptionError."""
    try:
        sealed: int | None = _unpack_sealed(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptionError(f"a snapshot does not say where its epoch ended: {error}") from None
    return sealed
