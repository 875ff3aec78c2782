"""What an operator sets of an engine, and what it shows."""

from __future__ import annotations

from typing import Any

import msgspec

from nova.consensus.core import Epoch, Status
from nova.errors import UsageError
from nova.types import NodeId


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator may set; the same at all members for `tick_ms` and `protocol`.

    tick_ms             length of a tick: an election takes some tens of them
    timeout_ms          a command or read without an answer for so long fails
    close_ms            what is under way may take so long when the engine closes
    calls_max           commands, and as many reads, that wait for an answer in this process
    entry_bytes_max     of a command, and of a batch
    retry_ticks         after as many without an answer, a command is sent again: it takes effect once
    checkpoint_entries  entries after which a snapshot is made and the log before it dropped; or
    checkpoint_bytes    so many bytes of log
    segment_bytes       of a file of the log, laid out ahead
    protocol            options of the protocol (`nova.consensus.raft.RaftOptions`)
    """

    tick_ms: int = 20
    timeout_ms: int = 10_000
    close_ms: int = 5_000
    calls_max: int = 65_536
    entry_bytes_max: int = 256 * 1024
    retry_ticks: int = 20
    checkpoint_entries: int = 100_000
    checkpoint_bytes: int = 256 << 20
    segment_bytes: int = 64 << 20
    protocol: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UsageError(f"{name} is {value}; give 1 or more")


class EngineStatus(msgspec.Struct, frozen=True):
    """How a member stands.

    core        as its protocol sees it
    epoch       the newest one that began here
    settled     a quorum holds all before it on disk: it may be sealed
    applied     position up to which the machine has applied
    checkpoint  record of the log up to which a snapshot covers it
    calls       commands of this process without an answer; `reads`: reads
    peers       members with a live stream
    failure     why it has stopped for good; None: it has not
    """

    core: Status
    epoch: Epoch
    settled: bool
    applied: int
    checkpoint: int
    calls: int
    reads: int
    peers: tuple[NodeId, ...]
    failure: str | None
