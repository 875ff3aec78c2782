"""The protocols that an epoch can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from nova.consensus.core import Core, Epoch
from nova.consensus.raft import Raft
from nova.errors import UsageError
from nova.types import NodeId, Random


class Maker(Protocol):
    """Makes cores of one protocol (`nova.consensus.core.Make`); the class of a core is one."""

    @property
    def messages(self) -> tuple[type[msgspec.Struct], ...]:
        """What they send each other."""

    def __call__(self, node: NodeId, epoch: Epoch, random: Random, now_ns: Callable[[], int], /) -> Core: ...


PROTOCOLS: Final[Mapping[str, Maker]] = {
    "raft": Raft,
}
"""Name, as an `Epoch` has it -> maker."""


def protocol_named(name: str) -> Maker:
    """The maker of that name. Raises UsageError that lists the known ones."""
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise UsageError(f"protocol {name!r} is unknown; there are {', '.join(sorted(PROTOCOLS))}") from None


def all_messages() -> tuple[type[msgspec.Struct], ...]:
    """What members may send each other, whatever the epoch: a member is reached by frames of other epochs, too."""
    return tuple(dict.fromkeys(message for core in PROTOCOLS.values() for message in core.messages))
