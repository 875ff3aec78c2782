"""Where the bytes of a bulk transfer come from and where they go."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import stat
from pathlib import Path
from typing import Protocol

from nova._native.bulk import Board
from nova.errors import LimitError, UnavailableError, UsageError
from nova.transport.bulk_journal import Journal, Plan, sync_folder
from nova.types import Buffer

logger = logging.getLogger("nova.transport")

SourceLike = str | os.PathLike[str] | tuple[int, int, int] | Buffer
"""A path; (descriptor, offset, size); or a contiguous buffer."""
PlaceLike = str | os.PathLike[str] | tuple[int, int, int] | Buffer | None
"""A path; (descriptor, offset, size at most); a writable buffer; None: new memory."""

FREE_BYTES_MIN = 16 * 1024 * 1024


def flat(data: Buffer) -> memoryview:
    """A buffer as plain bytes, without a copy. Raises UsageError if its memory is not in one piece."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise UsageError(f"a buffer of shape {view.shape} with gaps; pass a contiguous one (numpy.ascontiguousarray)")
    # A cast cannot do this for an array of 0 bytes, nor for elements of other formats in many dimensions.
    return memoryview(b"") if not view.nbytes else view.cast("B")


class Source:
    """An object to send: a path, (descriptor, offset, size), or any buffer, which must not change meanwhile."""

    def __init__(self, what: SourceLike) -> None:
        self.memory: memoryview | None = None
        self.file, self.base, self.name = -1, 0, ""
        self._own = False
        self._mark = b""
        if isinstance(what, str | os.PathLike):
            path = Path(what)
            self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._own = True
            info = os.fstat(self.file)
            if not stat.S_ISREG(info.st_mode):
                self.close()
                raise UsageError(f"{path} is no regular file; pass (descriptor, offset, size) for a device")
            self.size, self.name = info.st_size, path.name
            self._mark = f"{path.resolve()}\0{info.st_ino}\0{info.st_size}\0{info.st_mtime_ns}".encode()
        elif isinstance(what, tuple):
            self.file, self.base, self.size = what
            if self.base < 0 or self.size < 0 or self.base + self.size > 2**63 - 1:
                raise UsageError(f"a range of {self.size} bytes at {self.base}; both are from 0 to 2^63 - 1")
            try:
                os.fstat(self.file)
            except OSError:
                raise UsageError(f"{self.file} is no open descriptor") from None
        else:
            self.memory = flat(what)
            self.size = self.memory.nbytes

    def transfer_id(self, identity: str) -> int:
        """Equal for the same state of the same file, so that a new process goes on; else by chance."""
        seed = identity.encode() + b"\0" + self._mark if self._mark else os.urandom(32)
        return int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big") >> 1

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        if self._own and self.file >= 0:
            os.close(self.file)
        self._own, self.file = False, -1
        self.memory = None


class Place(Protocol):
    """Where a received object goes. All calls come from one thread."""

    def prepare(self, plan: Plan) -> Board:
        """Make room, and mark what is there already. Raises UsageError, LimitError, UnavailableError."""

    def checkpoint(self, board: Board) -> None:
        """Make durable what was placed, as far as this place can."""

    def finish(self, board: Board) -> None:
        """All is there and verified: put it under its name."""

    def discard(self) -> None:
        """Nothing of it can be believed: begin anew next time."""

    def close(self, *, whole: bool) -> None:
        """Let go of everything; what is not whole stays, to be gone on with. May be called twice."""


class MemoryPlace:
    """Into a writable buffer of the caller's, or new memory. Nothing survives the process."""

    def __init__(self, into: Buffer | None, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._into = None if into is None else flat(into)
        if self._into is not None and self._into.nbytes and self._into.readonly:
            raise UsageError("a read-only buffer cannot receive; pass a bytearray or a writable array")
        self.data: memoryview | None = None

    def prepare(self, plan: Plan) -> Board:
        size = plan.size
        if self._into is None:
            if size > self._bytes_max:
                raise LimitError(
                    f"object of {size} bytes is over the limit of {self._bytes_max} for new memory; receive into a "
                    f"file, or raise memory_bytes_max"
                )
            self.data = memoryview(mmap.mmap(-1, size)) if size else memoryview(b"")
        elif size > self._into.nbytes:
            raise LimitError(
                f"object of {size} bytes does not fit into a buffer of {self._into.nbytes}; pass a larger one"
            )
        else:
            self.data = self._into[:size]
        return Board(*plan, receiving=True, memory=self.data)

    def checkpoint(self, board: Board) -> None:
        board.fresh()

    def finish(self, board: Board) -> None:
        pass

    def discard(self) -> None:
        self.data = None

    def close(self, *, whole: bool) -> None:
        if not whole:
            self.data = None
        self._into = None


class RangePlace:
    """Into a descriptor, from an offset on: a device or a part of a file. Without a journal of its own."""

    def __init__(self, file: int, base: int, size_max: int, journal: Path | None = None) -> None:
        if base < 0 or size_max < 0:
            raise UsageError(f"a range of {size_max} bytes at {base}; both are 0 or more")
        self._file, self._base, self._size_max = file, base, size_max
        self._journal = Journal(journal) if journal is not None else None

    def prepare(self, plan: Plan) -> Board:
        if plan.size > self._size_max:
            raise LimitError(f"object of {plan.size} bytes does not fit into a range of {self._size_max}")
        board = Board(*plan, receiving=True, file=self._file, base=self._base)
        go_on(self._journal, plan, board)
        return board

    def checkpoint(self, board: Board) -> None:
        keep(self._journal, self._file, board)

    def finish(self, board: Board) -> None:
        os.fsync(self._file)

    def discard(self) -> None:
        if self._journal is not None:
            self._journal.close(remove=True)
            self._journal = None

    def close(self, *, whole: bool) -> None:
        if self._journal is not None:
            self._journal.close(remove=whole)


class FilePlace:
    """Into a file, which gets its name only when it is whole. Beside it, until then, NAME.part and NAME.journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name the file that the object becomes")
        if not path.parent.is_dir():
            raise UsageError(f"the folder {path.parent} does not exist; make it first")
        self._journal = Journal(path.with_name(path.name + ".journal"))
        try:
            self._file = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except BaseException:
            self._journal.close()
            raise

    def prepare(self, plan: Plan) -> Board:
        there = os.fstat(self._file)
        free = os.statvfs(self.path.parent)
        free_bytes = free.f_bavail * free.f_frsize + there.st_blocks * 512
        if plan.size + FREE_BYTES_MIN > free_bytes:
            raise UnavailableError(
                f"object of {plan.size} bytes, and {free_bytes} bytes free at {self.path.parent}; make room, try again"
            )
        if there.st_size != plan.size:
            os.ftruncate(self._file, 0)
            os.ftruncate(self._file, plan.size)
        board = Board(*plan, receiving=True, file=self._file)
        go_on(self._journal, plan, board)
        return board

    def checkpoint(self, board: Board) -> None:
        keep(self._journal, self._file, board)

    def finish(self, board: Board) -> None:
        os.fsync(self._file)
        os.replace(self.part, self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.close(whole=True)

    def close(self, *, whole: bool) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._journal.close(remove=whole)


def go_on(journal: Journal | None, plan: Plan, board: Board) -> None:
    """Mark what the journal tells of, after reading it back: a disk may have lost what it said it had."""
    if journal is None:
        return
    records = journal.recover(plan)
    if records is None:
        journal.begin(plan)
    elif records:
        count = board.recall(records)
        logger.info("going on with transfer %016x: %s of %s chunks are here", plan.transfer, count, board.chunks)


def keep(journal: Journal | None, file: int, board: Board) -> None:
    """Data before journal: what a journal names is on disk."""
    records = board.fresh()
    if journal is not None and records:
        os.fdatasync(file)
        journal.append(records)


def place_of(into: PlaceLike, *, journal: Path | None, memory_bytes_max: int) -> Place:
    """The place that `into` of `bulk_recv` means. Raises UsageError."""
    if isinstance(into, str | os.PathLike):
        return FilePlace(Path(into))
    if isinstance(into, tuple):
        file, base, size = into
        return RangePlace(file, base, size, journal)
    return MemoryPlace(into, memory_bytes_max)
