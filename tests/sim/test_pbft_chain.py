"""Groups that go from Raft to PBFT and back, while everything else fails."""

from __future__ import annotations

import msgspec

from nova.sim.group import Group
from nova.sim.invariants import ChainInvariants
from nova.sim.subjects import SUBJECTS

RAFT, PBFT = SUBJECTS["raft"], SUBJECTS["pbft"]
OPTIONS = {**PBFT.options, "seal_votes": 1}  # one operator asks one member
SUCCESSORS = {"raft": (RAFT.make, {}), "pbft": (PBFT.make, OPTIONS)}
SUBJECT = msgspec.structs.replace(
    PBFT,
    messages=(*RAFT.messages, *PBFT.messages),
    invariants=ChainInvariants,
    nodes=5,
    options=OPTIONS,
    successors=SUCCESSORS,
    liars=None,
)


def test_nothing_is_lost_between_protocols():
    switched = 0
    for seed in range(60):
        first = msgspec.structs.replace(SUBJECT, name="raft", make=RAFT.make, options={}) if seed % 2 else SUBJECT
        group = Group(first, seed, faults=6, clients=3, seconds=2)
        assert group.run() == []
        assert not group.refused
        switched += max(group.epochs)
    assert switched > 60
