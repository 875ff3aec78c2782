"""Protocols that `nova simulate --protocol` and the tests put into a `Group`: what each is made of, and asked of."""

from __future__ import annotations

from typing import Any, Final

from nova.consensus.raft import Raft
from nova.consensus.raft.messages import MESSAGES as RAFT_MESSAGES
from nova.errors import UsageError
from nova.sim.faults import OPERATIONS
from nova.sim.group import Subject
from nova.sim.invariants import LogInvariants

RAFT_VARIANTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"lease_reads": True, "trailing": 10},
    {"append_entries_max": 3, "flying_count_max": 4, "trailing": 5, "chunk_bytes": 200},
    {"append_entries_max": 1, "flying_count_max": 2, "trailing": 0, "chunk_bytes": 1_000},
)

SUBJECTS: Final = {
    "raft": Subject(
        "raft", Raft, RAFT_MESSAGES, LogInvariants, variants=RAFT_VARIANTS, operations=OPERATIONS, calm=True
    ),
}


def subject_named(name: str) -> Subject:
    """The subject of that name. Raises UsageError that lists the known ones."""
    try:
        return SUBJECTS[name]
    except KeyError:
        raise UsageError(f"protocol {name!r} is unknown; there are {', '.join(SUBJECTS)}") from None
