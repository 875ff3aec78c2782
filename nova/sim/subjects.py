"""Protocols that `nova simulate --protocol` and the tests put into a `Group`: what each is made of, and asked of."""

from __future__ import annotations

from typing import Final

from nova.consensus.core import Make
from nova.consensus.epaxos import EPaxos
from nova.consensus.epaxos.messages import MESSAGES as EPAXOS_MESSAGES
from nova.consensus.paxos import Paxos
from nova.consensus.paxos.messages import MESSAGES as PAXOS_MESSAGES
from nova.consensus.raft import Raft
from nova.consensus.raft.messages import MESSAGES as RAFT_MESSAGES
from nova.errors import UsageError
from nova.sim.group import Subject
from nova.sim.invariants import ChainInvariants, LogInvariants
from nova.sim.invariants_epaxos import EPaxosInvariants
from nova.sim.invariants_paxos import PaxosInvariants

PROTOCOLS: Final[dict[str, Make]] = {"raft": Raft, "paxos": Paxos, "epaxos": EPaxos}
"""name -> maker of a core, of every protocol."""

SUBJECTS: Final = {
    "raft": Subject("raft", Raft, RAFT_MESSAGES, LogInvariants),
    # Few slots stay in memory behind a checkpoint, so that members that were away need snapshots.
    "paxos": Subject("paxos", Paxos, PAXOS_MESSAGES, PaxosInvariants, options={"trailing": 20}),
    "epaxos": Subject("epaxos", EPaxos, EPAXOS_MESSAGES, EPaxosInvariants, options={"trailing": 50}),
    "adaptive": Subject(
        "raft",
        Raft,
        (*RAFT_MESSAGES, *PAXOS_MESSAGES, *EPAXOS_MESSAGES),
        ChainInvariants,
        nodes=4,
        successors={"raft": (Raft, {}), "paxos": (Paxos, {"trailing": 20}), "epaxos": (EPaxos, {"trailing": 50})},
    ),
}


def subject_named(name: str) -> Subject:
    """The subject of that name. Raises UsageError that lists the known ones."""
    try:
        return SUBJECTS[name]
    except KeyError:
        raise UsageError(f"protocol {name!r} is unknown; there are {', '.join(SUBJECTS)}") from None
