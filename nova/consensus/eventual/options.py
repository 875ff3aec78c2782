"""What an epoch may say about `eventual`."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from nova.consensus.core import Epoch
from nova.errors import UsageError

Options = TypeVar("Options")


class SpreadOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How dots spread. Times are ticks.

    beat_ticks     how often members tell each other what they have; what is missing for so long is asked for
    resend_ticks   what has no answer is sent again
    silent_ticks   a member that said nothing for so long is taken to be away
    seal_ticks     P: an end of the epoch that stands still for [P, 2P) is taken over
    window         dots of one stream that are not delivered; what lies beyond is not taken
    retained_max   dots of one stream, delivered and not known to be everywhere, that are kept for whoever lacks them
    reads_max      reads that wait
    push_bytes_max of dots in one message
    chunk_bytes    of a snapshot
    """

    beat_ticks: int = 5
    resend_ticks: int = 4
    silent_ticks: int = 50
    seal_ticks: int = 20
    window: int = 8_192
    retained_max: int = 10_000
    reads_max: int = 100_000
    push_bytes_max: int = 1 << 20
    chunk_bytes: int = 256 << 10

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UsageError(f"{name} is {value}; give 1 or more")


class EventualOptions(SpreadOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an epoch may say about `eventual`, besides `SpreadOptions`.

    w              members that have to have a command on disk before it is answered: 1 to all; None: a majority
    proposals_max  own proposals that have no W copies; beyond it proposals are refused
    """

    w: int | None = None
    proposals_max: int = 1_024


def options_of(epoch: Epoch, kind: type[Options]) -> Options:
    """The options of an epoch. Raises UsageError that says which does not fit."""
    try:
        return msgspec.convert(epoch.options, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"the options of epoch {epoch.number} do not fit {epoch.protocol}: {error}") from None


__all__ = ["EventualOptions", "SpreadOptions", "options_of"]
