"""Which chunks of an object are safely on disk: a small file that only grows, written after the data it tells of.

    16 bytes  magic "NBJ", version, then CRC32C of the plan, u32, and 8 zero bytes
    32 bytes  the plan: transfer, size, chunk size, digest, u64 each
    batches   count, u32; CRC32C of the records, u32; records of 36 bytes: chunk, u32, and its sum

All numbers are little-endian. Whoever writes syncs the data first, then appends a batch, then syncs the journal: a
chunk that the journal names is on disk, whenever the machine stops. A batch that is torn or does not fit its checksum
ends the journal, for it was never synced; what stands before it counts.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import NamedTuple

from nova._native.bulk import RECORD_BYTES
from nova._native.frame import crc32c
from nova.errors import UsageError

MAGIC = b"NBJ\x01"
HEAD = struct.Struct("<4sI8x")
PLAN = struct.Struct("<QQQQ")
BATCH = struct.Struct("<II")


class Plan(NamedTuple):
    """What must be equal for a transfer to go on: another transfer, size or grid is another object."""

    transfer: int
    size: int
    chunk_bytes: int
    digest: int


def read(data: bytes) -> tuple[Plan | None, bytes, int]:
    """(plan, records, bytes that count) of a journal; the plan is None if not even that is whole."""
    start = HEAD.size + PLAN.size
    if len(data) < start:
        return None, b"", 0
    magic, crc = HEAD.unpack_from(data)
    if magic != MAGIC or crc != crc32c(data[HEAD.size : start]):
        return None, b"", 0
    at, parts = start, []
    while at + BATCH.size <= len(data):
        count, crc = BATCH.unpack_from(data, at)
        end = at + BATCH.size + count * RECORD_BYTES
        records = data[at + BATCH.size : end]
        if not count or end > len(data) or crc != crc32c(records):
            break
        parts.append(records)
        at = end
    return Plan(*PLAN.unpack_from(data, HEAD.size)), b"".join(parts), at


class Journal:
    """The journal of one destination, locked while it is open.

    raises  UsageError if another transfer has it open
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise UsageError(f"{path} is in use: another transfer writes to this destination; wait for it") from None

    def recover(self, plan: Plan) -> bytes | None:
        """The records of what is on disk of this very object; None if the journal tells of none or of another one."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        found, records, whole = read(data)
        if found != plan:
            return None
        os.ftruncate(self._fd, whole)
        os.lseek(self._fd, whole, os.SEEK_SET)
        return records

    def begin(self, plan: Plan) -> None:
        """Forget what was there; durable when it returns."""
        packed = PLAN.pack(*plan)
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._write(HEAD.pack(MAGIC, crc32c(packed)) + packed)
        sync_folder(self.path.parent)

    def append(self, records: bytes) -> None:
        """Durable when it returns. The data that the records tell of must be so already."""
        self._write(BATCH.pack(len(records) // RECORD_BYTES, crc32c(records)) + records)

    def close(self, *, remove: bool = False) -> None:
        """May be called twice."""
        if self._fd >= 0:
            if remove:
                self.path.unlink(missing_ok=True)  # while it is locked, so that it is nobody else's
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        os.fdatasync(self._fd)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
