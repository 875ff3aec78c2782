"""A snapshot on its way: pieces from a leader, and pieces as records of the log."""

from __future__ import annotations

from typing import Final

import msgspec

from nova.consensus.core import Snapshot
from nova.errors import CorruptionError

PIECE_BYTES: Final = 1 << 20
"""Of a snapshot in one record of the log."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Snapshot).decode
_unpack_piece = msgspec.msgpack.Decoder(tuple[int, int, bytes]).decode


def pack_snapshot(snapshot: Snapshot) -> bytes:
    """As it travels."""
    return _pack(snapshot)


def unpack_snapshot(data: bytes) -> Snapshot:
    """Raises CorruptionError."""
    try:
        return _unpack(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptionError(f"a snapshot of {len(data)} bytes is none: {error}") from None


def pieces(data: bytes) -> list[bytes]:
    """A packed snapshot as the bodies of records."""
    parts = [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]
    return [_pack((number, len(parts), part)) for number, part in enumerate(parts)]


class Pieces:
    """Records back to a snapshot; what a crash left incomplete is forgotten when another one begins."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def take(self, record: bytes) -> Snapshot | None:
        """The next record; the snapshot when it was the last one of it. Raises CorruptionError."""
        try:
            number, count, part = _unpack_piece(record)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"a piece of a snapshot of {len(record)} bytes is none: {error}") from None
        self._parts = [*self._parts[:number], part]
        if len(self._parts) == count == number + 1:
            whole, self._parts = b"".join(self._parts), []
            return unpack_snapshot(whole)
        return None


class Incoming:
    """A snapshot as a leader sends it, chunk behind chunk."""

    def __init__(self, position: int, term: int, total: int) -> None:
        self.name = (position, term, total)
        self.data = bytearray()

    def take(self, offset: int, data: bytes) -> bool:
        """A chunk; whether all is here. One that does not follow what is here changes nothing."""
        if offset == len(self.data) and len(self.data) + len(data) <= self.name[2]:
            self.data += data
        return len(self.data) >= self.name[2]
