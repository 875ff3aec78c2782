"""Protocols that `nova simulate --protocol` and the tests put into a `Group`: what each is made of, and asked of."""

from __future__ import annotations

from typing import Final

from nova.consensus.epaxos import EPaxos
from nova.consensus.raft import Raft
from nova.consensus.raft.messages import MESSAGES as RAFT_MESSAGES
from nova.errors import UsageError
from nova.sim.group import Subject
from nova.sim.invariants import LogInvariants
from nova.sim.invariants_epaxos import EPaxosInvariants

SUBJECTS: Final = {
    "raft": Subject("raft", Raft, RAFT_MESSAGES, LogInvariants),
    "epaxos": Subject("epaxos", EPaxos, EPaxos.messages, EPaxosInvariants, options={"trailing": 50}),
}


def subject_named(name: str) -> Subject:
    """The subject of that name. Raises UsageError that lists the known ones."""
    try:
        return SUBJECTS[name]
    except KeyError:
        raise UsageError(f"protocol {name!r} is unknown; there are {', '.join(SUBJECTS)}") from None
