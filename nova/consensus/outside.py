"""A core for who is no member: it orders nothing, and knows who does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import msgspec

from nova.consensus.core import Epoch, Kind, NotLeaderError, Snapshot, Status
from nova.types import NodeId, Outputs

PATIENCE_TICKS: Final = 50


class Outside:
    """In place of a core where this node is no member of the epoch: it hands commands on to those who are."""

    ordered: ClassVar[bool] = True
    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = ()

    def __init__(self, node: NodeId, epoch: Epoch) -> None:
        self.node, self.epoch = node, epoch
        self._ticks = 0

    @property
    def leader(self) -> NodeId | None:
        """A member; another one after a while, since some may be down."""
        members = self.epoch.members
        return members[self._ticks // (PATIENCE_TICKS) % len(members)]

    @property
    def status(self) -> Status:
        start = self.epoch.start - 1
        return Status(self.node, self.epoch.protocol, "outside", 0, self.leader, start, start, self.epoch.members)

    def step(self, sender: NodeId, message: Any) -> Outputs:
        return Outputs()

    def tick(self) -> Outputs:
        self._ticks += 1
        return Outputs()

    def lead(self) -> Outputs:
        return Outputs()

    def propose(self, entries: Sequence[tuple[Kind, bytes]]) -> Outputs:
        raise NotLeaderError(self.node, self.leader)

    def read(self, id: int) -> Outputs:
        raise NotLeaderError(self.node, self.leader)

    def seal(self, successor: Epoch) -> Outputs:
        raise NotLeaderError(self.node, self.leader)

    def advance(self, token: int) -> Outputs:
        return Outputs()

    def replay(self, record: bytes) -> None:
        pass

    def recovered(self) -> Outputs:
        return Outputs()

    def snapshot(self, position: int, state: bytes) -> Snapshot:
        return Snapshot(position, 0, b"", state)

    def compact(self, snapshot: Snapshot) -> list[bytes]:
        return []

    def restore(self, snapshot: Snapshot) -> None:
        pass
