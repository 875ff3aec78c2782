"""Protocols that `nova simulate --protocol` and the tests put into a `Group`: what each is made of, and asked of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nova.consensus.epaxos import EPaxos
from nova.consensus.epaxos.messages import MESSAGES as EPAXOS_MESSAGES
from nova.consensus.eventual import Eventual
from nova.consensus.eventual.messages import MESSAGES as EVENTUAL_MESSAGES
from nova.consensus.hybrid import Hybrid
from nova.consensus.paxos import Paxos
from nova.consensus.paxos.messages import MESSAGES as PAXOS_MESSAGES
from nova.consensus.pbft.messages import MESSAGES as PBFT_MESSAGES
from nova.consensus.protocols import all_messages, protocols
from nova.consensus.raft import Raft
from nova.consensus.raft.messages import MESSAGES as RAFT_MESSAGES
from nova.errors import UsageError
from nova.sim.byzantine import dealt, liars_mostly
from nova.sim.faults import OPERATIONS
from nova.sim.group import Subject
from nova.sim.invariants import ChainInvariants, LogInvariants
from nova.sim.invariants_epaxos import EPaxosInvariants
from nova.sim.invariants_eventual import EventualInvariants
from nova.sim.invariants_hybrid import HybridInvariants
from nova.sim.invariants_paxos import PaxosInvariants
from nova.sim.invariants_pbft import PBFTInvariants
from nova.types import NodeId, Random

PROTOCOLS: Final = protocols(dealt)
"""name -> maker of a core, of every protocol."""

CONVERGENT: Final = frozenset(("eventual", "hybrid"))
"""Those whose members apply concurrent commands in different orders: their machine has to be convergent."""

ALL_MESSAGES: Final = all_messages()

# Small windows and checkpoints, so that a short history has many, and members that were away need snapshots.
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "raft": {},
    "paxos": {"trailing": 20},
    "epaxos": {"trailing": 50},
    "pbft": {"checkpoint_interval": 20, "window": 60},
    "eventual": {"retained_max": 20},
    "hybrid": {"retained_max": 50, "inner_options": {"trailing": 10}},
}


def placed(protocol: str, members: Sequence[NodeId], random: Random) -> dict[str, Any]:
    """For `hybrid`: one to three regions, a member each at least."""
    if protocol != "hybrid":
        return {}
    count = 1 + random.randrange(min(3, len(members)))
    return {"regions": {member: "abc"[place % count] for place, member in enumerate(members)}}


RAFT_VARIANTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"lease_reads": True, "trailing": 10},
    {"append_entries_max": 3, "flying_count_max": 4, "trailing": 5, "chunk_bytes": 200},
    {"append_entries_max": 1, "flying_count_max": 2, "trailing": 0, "chunk_bytes": 1_000},
)

EVENTUAL_VARIANTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"w": 1},
    {"w": 3, "push_bytes_max": 100},
    {"retained_max": 3, "window": 30, "chunk_bytes": 300},
)

SUBJECTS: Final = {
    "raft": Subject(
        "raft", Raft, RAFT_MESSAGES, LogInvariants, variants=RAFT_VARIANTS, operations=OPERATIONS, calm=True
    ),
    "paxos": Subject("paxos", Paxos, PAXOS_MESSAGES, PaxosInvariants, options=_OPTIONS["paxos"]),
    "epaxos": Subject("epaxos", EPaxos, EPAXOS_MESSAGES, EPaxosInvariants, options=_OPTIONS["epaxos"]),
    "pbft": Subject(
        "pbft", PROTOCOLS["pbft"], PBFT_MESSAGES, PBFTInvariants, nodes=4, options=_OPTIONS["pbft"], liars=liars_mostly
    ),
    "eventual": Subject(
        "eventual",
        Eventual,
        EVENTUAL_MESSAGES,
        EventualInvariants,
        options=_OPTIONS["eventual"],
        variants=EVENTUAL_VARIANTS,
        convergent=True,
    ),
    "hybrid": Subject(
        "hybrid",
        Hybrid,
        Hybrid.messages,
        HybridInvariants,
        nodes=5,
        options=_OPTIONS["hybrid"],
        variants=({}, {"push_bytes_max": 100}, {"retained_max": 5, "chunk_bytes": 300, "window": 40}),
        convergent=True,
        place=placed,
    ),
    "adaptive": Subject(
        "raft",
        Raft,
        ALL_MESSAGES,
        ChainInvariants,
        nodes=4,
        # One operator asks one member at a time.
        successors={
            name: (make, _OPTIONS[name] | ({"seal_votes": 1} if name == "pbft" else {}))
            for name, make in PROTOCOLS.items()
            if name not in CONVERGENT
        },
    ),
    "convergent": Subject(
        "eventual",
        Eventual,
        ALL_MESSAGES,
        ChainInvariants,
        nodes=4,
        options=_OPTIONS["eventual"],
        convergent=True,
        place=placed,
        successors={
            name: (make, _OPTIONS[name] | ({"seal_votes": 1} if name == "pbft" else {}))
            for name, make in PROTOCOLS.items()
        },
    ),
}


def subject_named(name: str) -> Subject:
    """The subject of that name. Raises UsageError that lists the known ones."""
    try:
        return SUBJECTS[name]
    except KeyError:
        raise UsageError(f"protocol {name!r} is unknown; there are {', '.join(SUBJECTS)}") from None
