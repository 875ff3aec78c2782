"""The data directory of one member of a group: its log, its snapshots, whose it is and how its group began."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from nova.consensus.core import Epoch
from nova.consensus.replicated import Checkpoint, ReplicatedMachine
from nova.errors import CorruptionError, UsageError
from nova.storage.catalog import Catalog
from nova.storage.log import FileLog
from nova.storage.snapshot import FileSnapshots
from nova.types import NodeId, Outputs

GENESIS: Final = "genesis"


class MemberDirectory:
    """Opens a directory for one member; blocks.

    Layout: `log/` records since the snapshots, `snapshots/` the newest two, `catalog.sqlite` whose it all is.

    genesis      the epoch that the group begins with. A directory keeps the one that it was made with: the log is a
                 history of changes to it, so another one is refused
    any_members  its members are only for a directory that is new
    raises       UsageError if it belongs to another member or group, or another process has it open; CorruptionError if
                 what was durable is damaged, with file and offset
    """

    def __init__(
        self, path: Path, *, node: NodeId, cluster: str, genesis: Epoch, any_members: bool = False, segment_bytes: int
    ) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.log = FileLog(path / "log", segment_bytes=segment_bytes)
        self.catalog: Catalog | None = None
        try:
            self.catalog = Catalog(path / "catalog.sqlite")
            self.catalog.claim(node, cluster)
            self.genesis = self._begun(genesis, any_members)
            self.incarnation = self.catalog.next_incarnation()
            self.snapshots = FileSnapshots(path / "snapshots")
        except BaseException:
            self.close()
            raise
        self.covered = 0
        """Position up to which the newest snapshot covers the log."""

    def _begun(self, genesis: Epoch, any_members: bool) -> Epoch:
        assert self.catalog is not None
        told = self.catalog.get(GENESIS)
        if told is None:
            if self.log.last or any((self.path / "snapshots").glob("*.snap")):
                raise CorruptionError(
                    f"{self.path} holds a log or a snapshot, but not how its group began: catalog.sqlite is missing or "
                    "another one; restore it, or begin with an empty directory"
                )
            self.catalog.set(GENESIS, msgspec.json.encode(genesis).decode())
            return genesis
        try:
            begun = msgspec.json.decode(told, type=Epoch)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"{self.path / 'catalog.sqlite'} says {told[:80]!r} of its group: {error}") from None
        for name in ("protocol", "options", *(() if any_members else ("members",))):
            if getattr(begun, name) != getattr(genesis, name):
                raise UsageError(
                    f"the group of {self.path} began with {name} {getattr(begun, name)!r}, not "
                    f"{getattr(genesis, name)!r}; give what it began with, its log says what was changed since"
                )
        # Others that are as new as this one was, and are told of all these, would make a group of their own.
        if any_members and len(begun.members) == 1 and genesis.members != begun.members:
            raise UsageError(
                f"the group of {self.path} began with {begun.members[0]} alone, and now is told of "
                f"{', '.join(genesis.members)}: name {begun.members[0]} as the founder, here and at all others, and "
                "add them one by one"
            )
        return begun

    def recover(self, replica: ReplicatedMachine) -> Outputs:
        """Bring a member back to what it promised; what it then wants done. Raises CorruptionError."""
        start = 1
        found = self.snapshots.load()
        if found is not None:
            self.covered, state = found
            replica.restore(state)
            start = self.covered + 1
        if self.log.first > start:
            raise CorruptionError(
                f"the log in {self.path / 'log'} begins at record {self.log.first}, and the newest whole snapshot ends "
                f"at {start - 1}: restore what is missing, or begin with an empty directory as a new member"
            )
        if self.log.last < start - 1:
            raise CorruptionError(
                f"the log in {self.path / 'log'} ends at record {self.log.last}, and the snapshot covers {start - 1}: "
                "files of the log are missing; restore them, or begin with an empty directory as a new member"
            )
        for _, record in self.log.replay(start):
            replica.replay(record)
        return replica.recovered()

    def save(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint whose log is durable; then drop the log that no kept snapshot needs. Blocks.

        Raises UnavailableError if the disk refuses: nothing is lost, the log stays.
        """
        self.snapshots.save(checkpoint.position, checkpoint.state)
        self.covered = checkpoint.position
        # As far as the oldest of them: if the newest should prove damaged, that one and the log behind it are enough.
        kept = self.snapshots.positions()
        if len(kept) >= self.snapshots.kept:
            self.log.truncate_before(kept[0] + 1)

    def close(self) -> None:
        """Sync and close. May be called twice. Raises what the last sync raises."""
        try:
            if self.catalog is not None:
                self.catalog.close()
        finally:
            self.log.close()
