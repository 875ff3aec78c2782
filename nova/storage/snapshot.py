"""Snapshots as files: written under another name, synced, renamed; so a name means a whole file.

A file is "NOVASNAP" | version u32 | 0 u32 | position u64 | size u64 | BLAKE2b-256 of all of that and the state | state.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final

from nova.errors import CorruptionError, UnavailableError, UsageError
from nova.storage.log import sync_directory

MAGIC: Final = b"NOVASNAP"
VERSION: Final = 1
KEPT: Final = 2

_HEAD = struct.Struct("<8sIIQQ")
_DIGEST_BYTES = 32

logger = logging.getLogger("nova.storage")


class FileSnapshots:
    """The `Snapshots` seam of nova.storage.base in one directory, made if it is missing. Keeps the newest `kept`."""

    def __init__(self, directory: str | os.PathLike[str], *, kept: int = KEPT) -> None:
        if kept < 1:
            raise UsageError(f"kept is {kept}; give 1 or more")
        self.directory = Path(directory)
        self.kept = kept
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob("*.tmp"):
            leftover.unlink()

    def save(self, position: int, state: bytes) -> None:
        """Store `state`, which covers the log up to `position`, durably; then drop the oldest over `kept`.

        raises  UnavailableError if the disk refuses; what was saved before is untouched
        """
        if position < 0:
            raise UsageError(f"the position of a snapshot is {position}; positions start at 0")
        path = self.directory / f"{position:020d}.snap"
        temporary = path.with_suffix(".tmp")
        head = _HEAD.pack(MAGIC, VERSION, 0, position, len(state))
        try:
            with open(temporary, "wb") as file:
                file.write(head)
                file.write(_digest(head, state))
                file.write(state)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
            sync_directory(self.directory)
            for old in self._paths()[self.kept :]:
                old.unlink()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            mend = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the disk"
            raise UnavailableError(f"{path} could not be saved: {error.strerror}; {mend}") from error

    def load(self) -> tuple[int, bytes] | None:
        """The newest whole snapshot as (position, state), or None if there is none.

        raises  CorruptionError if there are some but none is whole; UsageError if a newer nova wrote the newest
        """
        damaged = []
        for path in self._paths():
            try:
                return _read(path)
            except CorruptionError as error:
                logger.warning("%s; trying the one before", error)
                damaged.append(str(error))
        if damaged:
            raise CorruptionError(f"no snapshot is whole: {'; '.join(damaged)}; restore one from a replica")
        return None

    def positions(self) -> list[int]:
        """Positions of what is stored, oldest first; says nothing about whether it is whole."""
        return sorted(int(path.stem) for path in self._paths())

    def load_at(self, position: int) -> bytes:
        """The state stored for this very position. Raises UsageError if there is none, CorruptionError if damaged."""
        return _read(self._path(position))[1]

    def begin_at(self, position: int, size: int) -> bytes:
        """Up to `size` bytes of the beginning of a state, unchecked: for a list of many."""
        with open(self._path(position), "rb") as file:
            file.seek(_HEAD.size + _DIGEST_BYTES)
            return file.read(size)

    def _path(self, position: int) -> Path:
        path = self.directory / f"{position:020d}.snap"
        if not path.exists():
            raise UsageError(f"{self.directory} holds nothing for position {position}; there are {self.positions()}")
        return path

    def _paths(self) -> list[Path]:
        return sorted(self.directory.glob("*.snap"), reverse=True)


def _digest(head: bytes, state: bytes) -> bytes:
    digest = blake2b(head, digest_size=_DIGEST_BYTES)
    digest.update(state)
    return digest.digest()


def _read(path: Path) -> tuple[int, bytes]:
    data = path.read_bytes()
    start = _HEAD.size + _DIGEST_BYTES
    if len(data) < start or data[:8] != MAGIC:
        raise CorruptionError(f"{path}: offset 0: this is not a snapshot")
    _, version, _, position, size = _HEAD.unpack_from(data)
    head, state = data[: _HEAD.size], data[start:]
    if len(state) != size or _digest(head, state) != data[_HEAD.size : start]:
        raise CorruptionError(f"{path}: offset {start}: the content does not match its checksum")
    if version != VERSION:
        raise UsageError(
            f"{path} has snapshot format version {version}; this nova reads version {VERSION}: use a newer nova"
        )
    return position, state
