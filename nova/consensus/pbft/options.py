"""What an epoch may say about PBFT."""

from __future__ import annotations

import msgspec

from nova.errors import UsageError


class PBFTOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an epoch may say about PBFT.

    checkpoint_interval   K: entries between two checkpoints; each costs a digest of the whole state
    window                entries above the low mark that may be under way; at least 2 K, or members wait for each other
    request_ticks         a request that is not executed after as many is told to every member, and again and again
    view_ticks            T: a request that is not executed after as many ends the view; doubles with each failed view
    doublings_max         how often it doubles
    status_ticks          between two tellings of what a member has, while it waits for something
    entry_bytes_max       of one entry
    requests_max          requests that wait here to be executed, of each member that told of them
    requests_bytes_max    and their bytes
    reads_max             reads that wait here
    resend_count_max      entries or votes that one status brings back
    resend_bytes_max      bytes of entries that one status brings back
    held_count_max        messages that wait for the disk; beyond it nothing is told again that was told before
    digests_max           digests of one position, over all views, that a member remembers to have accepted
    checkpoints_max       positions above the low mark for which a member's checkpoints are kept
    chunk_bytes           of a state that is transferred
    state_bytes_max       of a state that is transferred
    seal_votes            members that have to ask for the end of the epoch; 0: f + 1, so that one is correct
    """

    checkpoint_interval: int = 100
    window: int = 200
    request_ticks: int = 20
    view_ticks: int = 50
    doublings_max: int = 10
    status_ticks: int = 5
    entry_bytes_max: int = 1 << 20
    requests_max: int = 4_096
    requests_bytes_max: int = 64 << 20
    reads_max: int = 100_000
    resend_count_max: int = 64
    resend_bytes_max: int = 1 << 20
    held_count_max: int = 65_536
    digests_max: int = 8
    checkpoints_max: int = 4
    chunk_bytes: int = 256 << 10
    state_bytes_max: int = 1 << 30
    seal_votes: int = 0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            least = 0 if name in ("doublings_max", "seal_votes") else 1
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; give {least} or more")
        if self.window < 2 * self.checkpoint_interval:
            raise UsageError(
                f"window is {self.window} and checkpoint_interval {self.checkpoint_interval}; a window of less than "
                "two intervals is full while a checkpoint becomes stable"
            )
        if self.request_ticks >= self.view_ticks:
            raise UsageError(
                f"request_ticks is {self.request_ticks} and view_ticks {self.view_ticks}; all have to hear of a "
                "request before one of them gives the primary up"
            )
