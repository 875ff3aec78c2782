"""The checkpoints of a data directory, as files; nova.conflict.healing.checkpoints says what they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nova.conflict.healing.checkpoints import HEAD_BYTES_MAX, Checkpoint, pack, unpack
from nova.errors import CorruptionError
from nova.storage.snapshot import FileSnapshots
from nova.store.core import Replica

KEPT: Final = 8
FOLDER: Final = "checkpoints"
"""Where they lie in a data directory."""


class Checkpoints:
    """The checkpoints of one data directory, oldest first; the newest `kept` stay."""

    def __init__(self, data: Path, *, kept: int = KEPT) -> None:
        self._files = FileSnapshots(data / FOLDER, kept=kept)

    def take(self, replica: Replica, position: int, now_ms: int) -> Checkpoint:
        """Store the whole state, which covers the log up to `position`, durably. Blocks.

        The caller has just handed everything over to the log, and waited for it: see `Replica.snapshot`.
        """
        checkpoint, data = self.packed(replica, position, now_ms)
        self.store(checkpoint, data)
        return checkpoint

    def packed(self, replica: Replica, position: int, now_ms: int) -> tuple[Checkpoint, bytes]:
        """The state of now as a checkpoint, for `store`, which may run in another thread."""
        space = replica.space
        checkpoint = Checkpoint(
            position, now_ms, space.stamp_max, replica.node, replica.incarnation, len(space), replica.digest
        )
        return checkpoint, pack(checkpoint, replica.snapshot())

    def store(self, checkpoint: Checkpoint, data: bytes) -> None:
        """Store what `packed` made, durably. Blocks."""
        self._files.save(checkpoint.position, data)

    def known(self) -> list[Checkpoint]:
        """What there is, oldest first; whether it is whole, `load` finds out."""
        return [self._known_at(position) for position in self._files.positions()]

    def newest(self) -> Checkpoint | None:
        """The newest one; None if there is none or it cannot be read, so that another one is due."""
        positions = self._files.positions()
        try:
            return self._known_at(positions[-1]) if positions else None
        except CorruptionError:
            return None

    def load(self, position: int) -> tuple[Checkpoint, bytes]:
        """One of them with its state. Raises CorruptionError if it is damaged, UsageError if it is not there."""
        return unpack(self._files.load_at(position))

    def _known_at(self, position: int) -> Checkpoint:
        try:
            return unpack(self._files.begin_at(position, HEAD_BYTES_MAX))[0]
        except CorruptionError as error:
            raise CorruptionError(f"{self._files.directory}, position {position}: {error}") from None

    @property
    def oldest_position(self) -> int | None:
        """Records behind it are still needed; None if there is no checkpoint."""
        positions = self._files.positions()
        return positions[0] if positions else None
