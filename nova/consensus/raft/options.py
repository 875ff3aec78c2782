"""What an epoch may say about Raft."""

from __future__ import annotations

import msgspec

from nova.errors import UsageError


class RaftOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an epoch may say about Raft.

    election_ticks        T: real timeouts are drawn from [T, 2T)
    heartbeat_ticks       a leader's silence
    append_bytes_max      of the entries in one message
    flying_count_max      appends under way to one follower, and flying_bytes_max
    uncommitted_bytes_max proposed and not committed; beyond it proposals are refused
    trailing              entries kept in memory behind a snapshot, so that those a little behind need no snapshot
    chunk_bytes           of a snapshot
    reads_max             reads that wait for a leader's round
    lease_reads           answer reads by lease; needs `check_quorum`
    tick_ns, drift_ratio  length of a tick and how much clocks may disagree: what a lease is worth
    """

    election_ticks: int = 10
    heartbeat_ticks: int = 1
    append_bytes_max: int = 1 << 20
    append_entries_max: int = 4096
    flying_count_max: int = 64
    flying_bytes_max: int = 8 << 20
    uncommitted_bytes_max: int = 64 << 20
    trailing: int = 1_000
    chunk_bytes: int = 256 << 10
    reads_max: int = 100_000
    check_quorum: bool = True
    lease_reads: bool = False
    tick_ns: int = 10_000_000
    drift_ratio: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.heartbeat_ticks < self.election_ticks:
            raise UsageError(
                f"heartbeat_ticks is {self.heartbeat_ticks} and election_ticks {self.election_ticks}; a leader has to "
                "be heard several times within an election timeout"
            )
        if self.lease_reads and not self.check_quorum:
            raise UsageError("lease_reads needs check_quorum: a leader that never steps down has no lease to end")
        for name in ("append_bytes_max", "append_entries_max", "flying_count_max", "flying_bytes_max", "chunk_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give 1 or more")
