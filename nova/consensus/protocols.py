"""The protocols that an epoch can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from nova.consensus.core import Epoch, Make
from nova.consensus.epaxos import EPaxos
from nova.consensus.epaxos.messages import MESSAGES as EPAXOS_MESSAGES
from nova.consensus.eventual import Eventual
from nova.consensus.eventual.messages import MESSAGES as EVENTUAL_MESSAGES
from nova.consensus.hybrid import Hybrid
from nova.consensus.paxos import Paxos
from nova.consensus.paxos.messages import MESSAGES as PAXOS_MESSAGES
from nova.consensus.pbft import maker as pbft_maker
from nova.consensus.pbft.auth import Authenticator
from nova.consensus.pbft.messages import MESSAGES as PBFT_MESSAGES
from nova.consensus.raft import Raft
from nova.consensus.raft.messages import MESSAGES as RAFT_MESSAGES
from nova.errors import UsageError
from nova.types import NodeId

CRASH_FAULTS: Final[Mapping[str, Make]] = {
    "raft": Raft,
    "paxos": Paxos,
    "epaxos": EPaxos,
    "eventual": Eventual,
    "hybrid": Hybrid,
}
"""Name, as an `Epoch` has it -> maker, of those that bear crashes and no lies."""


def protocols(keys: Callable[[NodeId, Epoch], Authenticator] | None = None) -> dict[str, Make]:
    """All that can run: PBFT with the keys of its members, and without any not at all."""
    return dict(CRASH_FAULTS) if keys is None else {**CRASH_FAULTS, "pbft": pbft_maker(keys)}


def protocol_named(name: str, known: Mapping[str, Make]) -> Make:
    """The maker of that name. Raises UsageError that lists the known ones."""
    try:
        return known[name]
    except KeyError:
        why = "; it needs `keys`" if name == "pbft" else ""
        raise UsageError(f"protocol {name!r} is unknown; there are {', '.join(sorted(known))}{why}") from None


def all_messages() -> tuple[type[msgspec.Struct], ...]:
    """What members may send each other, whatever the epoch: a member is reached by frames of other epochs, too.

    Those of `hybrid` are Raft's, and some of `eventual`.
    """
    return (*RAFT_MESSAGES, *PAXOS_MESSAGES, *EPAXOS_MESSAGES, *PBFT_MESSAGES, *EVENTUAL_MESSAGES)
