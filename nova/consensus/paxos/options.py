"""What an epoch may say about Multi-Paxos."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nova.consensus.core import Epoch
from nova.consensus.quorum import Flexible, Majority, Quorum
from nova.errors import UsageError
from nova.types import NodeId


class PaxosOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an epoch may say about Multi-Paxos.

    phase1, phase2        members that make a leader, and that decide; majorities unless one is given. The other one
                          is then as small as it may be
    election_ticks        T: real timeouts are drawn from [T, 2T), and from up to 2^backoff_doublings times as much
                          after campaigns that came to nothing
    heartbeat_ticks       a leader's silence
    learn_ticks           who waits so long for decided slots asks again
    append_bytes_max      of the entries in one message or record, and append_entries_max
    flying_count_max      accepts under way to one member, and flying_bytes_max
    open_bytes_max        proposed and not decided; beyond it proposals are refused
    open_slots_max        slots that may be accepted behind the decided ones: what a member keeps for others
    held_count_max        answers that wait for the disk; more are lost, and asked for again
    trailing              slots kept in memory behind a snapshot, so that those a little behind need no snapshot
    chunk_bytes           of a snapshot; one of more than snapshot_bytes_max is not taken
    reads_max             reads that wait for a leader's round
    lease_reads           answer reads by lease
    tick_ns, drift_ratio  length of a tick and how much clocks may disagree: what a lease is worth
    """

    phase1: int | None = None
    phase2: int | None = None
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    learn_ticks: int = 5
    backoff_doublings: int = 3
    append_bytes_max: int = 1 << 20
    append_entries_max: int = 4096
    flying_count_max: int = 64
    flying_bytes_max: int = 8 << 20
    open_bytes_max: int = 64 << 20
    open_slots_max: int = 65_536
    held_count_max: int = 10_000
    trailing: int = 1_000
    chunk_bytes: int = 256 << 10
    snapshot_bytes_max: int = 4 << 30
    reads_max: int = 100_000
    lease_reads: bool = False
    tick_ns: int = 10_000_000
    drift_ratio: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.heartbeat_ticks < self.election_ticks:
            raise UsageError(
                f"heartbeat_ticks is {self.heartbeat_ticks} and election_ticks {self.election_ticks}; a leader has to "
                "be heard several times within an election timeout"
            )
        if not 0 <= self.drift_ratio < 1:
            raise UsageError(f"drift_ratio is {self.drift_ratio}; give a number from 0 to below 1")
        for name in (
            "learn_ticks", "append_bytes_max", "append_entries_max", "flying_count_max", "flying_bytes_max",
            "open_bytes_max", "open_slots_max", "held_count_max", "chunk_bytes", "snapshot_bytes_max", "reads_max",
            "tick_ns",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("trailing", "backoff_doublings"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give 0 or more")

    def quorum(self, members: Sequence[NodeId]) -> Quorum:
        """Who has to agree. Raises UsageError for phases that need not meet."""
        if self.phase1 is None and self.phase2 is None:
            return Majority(members)
        least = len(members) + 1
        phase1 = self.phase1 if self.phase1 is not None else least - (self.phase2 or 0)
        phase2 = self.phase2 if self.phase2 is not None else least - phase1
        return Flexible(members, phase1=phase1, phase2=phase2)


def paxos_options(epoch: Epoch) -> PaxosOptions:
    """The options of an epoch. Raises UsageError."""
    try:
        return msgspec.convert(epoch.options, PaxosOptions)
    except msgspec.ValidationError as error:
        raise UsageError(f"the options of epoch {epoch.number} do not fit paxos: {error}") from None
