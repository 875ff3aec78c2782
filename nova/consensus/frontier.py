"""What a session has seen, as it carries it from member to member (Terry et al. 1994)."""

from __future__ import annotations

import msgspec

from nova.consensus.eventual.streams import joined
from nova.errors import UsageError


class Frontier(msgspec.Struct, frozen=True, array_like=True):
    """Everything of the epochs before `epoch`, and of that epoch what `vector` says; of one with an order, nothing: its
    reads are linearizable anyway."""

    epoch: int = 0
    vector: tuple[int, ...] = ()

    def join(self, other: Frontier) -> Frontier:
        """What either has seen."""
        if self.epoch != other.epoch:
            return max(self, other, key=lambda frontier: frontier.epoch)
        if not self.vector or not other.vector:
            return self if self.vector else other
        return Frontier(self.epoch, joined((self.vector, other.vector)))

    def pack(self) -> bytes:
        """As a session keeps it."""
        return _pack(self)


def unpack_frontier(data: bytes) -> Frontier:
    """What `Frontier.pack` gave. Raises UsageError."""
    try:
        return _unpack(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"a frontier of {len(data)} bytes is none: {error}; give what a member told") from None


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Frontier).decode

__all__ = ["Frontier", "unpack_frontier"]
