"""What members tell each other about epochs, beside the messages of the protocols."""

from __future__ import annotations

from typing import Final

import msgspec

from nova.consensus.core import Epoch


class Sealed(msgspec.Struct, frozen=True, array_like=True, tag="cS"):
    """`epoch` has begun; the state before its start has this digest."""

    epoch: Epoch
    digest: bytes


class Which(msgspec.Struct, frozen=True, array_like=True, tag="cW"):
    """You speak of an epoch that I don't know; mine is the one of the frame."""


class Holds(msgspec.Struct, frozen=True, array_like=True, tag="cH"):
    """The prefix of epoch `number` is on my disk."""

    number: int


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag="cF"):
    """Send the prefix of epoch `number`, or of a later one, from this offset on."""

    number: int
    offset: int


class Piece(msgspec.Struct, frozen=True, array_like=True, tag="cP"):
    """A part of the prefix of epoch `number`."""

    number: int
    offset: int
    total: int
    data: bytes


class Switch(msgspec.Struct, frozen=True, array_like=True, tag="cC"):
    """Whoever can: seal this epoch, with that successor."""

    successor: Epoch


CONTROL: Final = (Sealed, Which, Holds, Fetch, Piece, Switch)
