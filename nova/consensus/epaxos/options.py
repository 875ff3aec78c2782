"""What an epoch may say about EPaxos."""

from __future__ import annotations

import msgspec

from nova.errors import UsageError


class EPaxosOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an epoch may say about EPaxos. Times are ticks.

    resend_ticks     an unanswered message of a coordinator is sent again; it no longer waits for a fast quorum then
    recovery_ticks   R: what has not committed is recovered after [R, 2R), then after twice as long, up to 16 times
    beat_ticks       how often members tell each other what they executed
    window           instances of one member from the first that is not executed; what lies beyond is not taken
    proposals_max    own proposals that have not committed; beyond it proposals are refused
    chain_max        committed instances that wait for others to commit; beyond it proposals are refused, so that a
                     chain of commands on one hot key comes to an end
    trailing         executed instances kept for members a little behind, so that those need no snapshot
    keys_max         keys whose newest commands are remembered one by one; the oldest are then folded into one mark
    reads_max        reads that wait
    fetch_max        instances asked for in one message
    chunk_bytes      of a snapshot
    """

    resend_ticks: int = 4
    recovery_ticks: int = 20
    beat_ticks: int = 10
    window: int = 65_536
    proposals_max: int = 4_096
    chain_max: int = 256
    trailing: int = 1_000
    keys_max: int = 1_000_000
    reads_max: int = 100_000
    fetch_max: int = 512
    chunk_bytes: int = 256 << 10

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < (0 if name == "trailing" else 1):
                raise UsageError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.resend_ticks >= self.recovery_ticks:
            raise UsageError(
                f"resend_ticks is {self.resend_ticks} and recovery_ticks {self.recovery_ticks}; a coordinator has to "
                "repeat itself before others take over"
            )
