"""Protocols that `nova simulate --protocol` and the tests put into a `Group`: what each is made of, and asked of."""

from __future__ import annotations

from typing import Final

from nova.consensus.core import Make
from nova.consensus.pbft import maker as pbft_maker
from nova.consensus.pbft.messages import MESSAGES as PBFT_MESSAGES
from nova.consensus.raft import Raft
from nova.consensus.raft.messages import MESSAGES as RAFT_MESSAGES
from nova.errors import UsageError
from nova.sim.byzantine import dealt, liars_mostly
from nova.sim.group import Subject
from nova.sim.invariants import ChainInvariants, LogInvariants
from nova.sim.invariants_pbft import PBFTInvariants

PROTOCOLS: Final[dict[str, Make]] = {"raft": Raft, "pbft": pbft_maker(dealt)}
"""name -> maker of a core, of every protocol."""

SUBJECTS: Final = {
    "raft": Subject("raft", Raft, RAFT_MESSAGES, LogInvariants),
    "adaptive": Subject("raft", Raft, RAFT_MESSAGES, ChainInvariants, nodes=4, successors={"raft": (Raft, {})}),
    # Small checkpoints, so that a short history has many of them.
    "pbft": Subject(
        "pbft",
        PROTOCOLS["pbft"],
        PBFT_MESSAGES,
        PBFTInvariants,
        nodes=4,
        options={"checkpoint_interval": 20, "window": 60},
        liars=liars_mostly,
    ),
}


def subject_named(name: str) -> Subject:
    """The subject of that name. Raises UsageError that lists the known ones."""
    try:
        return SUBJECTS[name]
    except KeyError:
        raise UsageError(f"protocol {name!r} is unknown; there are {', '.join(SUBJECTS)}") from None
