"""The write-ahead log on real files: what it acknowledged is on disk.

A log is a directory of segments (csrc/log.h has their bytes), preallocated, so that a commit is one pwrite and one
fdatasync that need not grow the file. `append` copies records into a batch; a thread of the log's own checksums,
writes and syncs batches without the GIL. Records that arrive while it waits for the disk share the next sync.

On opening, the end of the newest segment is searched for. Bytes there that are no whole record were torn by a crash
before they were acknowledged, and are cut; unless whole records of a later group commit follow, which prove that they
were durable once and have been damaged since: then the log refuses to open. After an I/O error nothing is retried,
because a failed fsync may have thrown the pages away (Rebello et al. 2020); reopening reads what the disk really holds.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from nova._native import log as native
from nova._native.log import (
    HEADER_BYTES,
    RECORD_BYTES_MAX,
    RECORD_OVERHEAD_BYTES,
    Batch,
    crc32c,
    crc32c_is_hardware,
    crc32c_software,
)
from nova.errors import CorruptionError, LimitError, NovaError, UnavailableError, UsageError

__all__ = [
    "BACKLOG_BYTES_MAX",
    "RECORD_BYTES_MAX",
    "RECORD_OVERHEAD_BYTES",
    "DirectoryLock",
    "FileLog",
    "Recovery",
    "SegmentImage",
    "crc32c",
    "crc32c_is_hardware",
    "crc32c_software",
    "sync_directory",
]

SEGMENT_BYTES_MIN: Final = 4096
SEGMENT_BYTES_MAX: Final = 1 << 30
BACKLOG_BYTES_MAX: Final = 256 << 20
"""Appended but not yet durable bytes that a log holds before it refuses more."""

READ_BYTES: Final = 1 << 20
Done = Callable[[int, BaseException | None], None]

logger = logging.getLogger("nova.storage")


class FileLog:
    """The `Log` seam of nova.storage.base on the files of one directory.

    directory      made if it is missing; locked against a second opener for as long as the log is open
    segment_bytes  size at which a new segment is begun; one `append` always stays in one segment
    raises         UsageError if another process has it open or a newer nova wrote it; CorruptionError if what was
                   durable is damaged; UnavailableError if the disk refuses

    `append` and `sync` are for one thread at a time, or several: both are safe. `done` is called in the log's thread.
    """

    def __init__(self, directory: str | os.PathLike[str], *, segment_bytes: int = 64 << 20) -> None:
        if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
            raise UsageError(
                f"segment_bytes is {segment_bytes}; it lies between {SEGMENT_BYTES_MIN} and {SEGMENT_BYTES_MAX}"
            )
        self.directory = Path(directory)
        self._segment_bytes = segment_bytes
        self.directory.mkdir(parents=True, exist_ok=True)
        self._directory_lock = DirectoryLock(self.directory)
        try:
            self._segments, self.recovered = _open_segments(self.directory, segment_bytes)
        except OSError as error:
            self._directory_lock.release()
            raise _refused(self.directory, error) from error
        except BaseException:
            self._directory_lock.release()
            raise
        newest = self._segments[-1]
        self._lock = threading.Lock()
        self._offset = newest.end  # where in the newest segment the batch will stand
        self._batch = Batch(newest.seed, newest.count)
        self._spare: Batch | None = None
        self._chunks: list[tuple[_Segment, int, Batch]] = []  # full batches, of segments before the newest
        self._backlog_bytes = 0
        self._writing: _Segment = newest  # belongs to the thread
        self._wrote = False
        self._last = self._durable = newest.first + newest.count - 1
        self._error: NovaError | None = None
        self._closed = False
        self._requests: SimpleQueue[Callable[[], None] | Done | None] = SimpleQueue()
        self._removals: SimpleQueue[_Segment] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"nova-log {self.directory}", daemon=True)
        self._thread.start()

    @property
    def first(self) -> int:
        """Position of the oldest record kept; `last + 1` if there is none."""
        return self._segments[0].first

    @property
    def last(self) -> int:
        """Position of the newest record appended."""
        return self._last

    @property
    def durable(self) -> int:
        """Position of the newest record known to be on disk."""
        return self._durable

    @property
    def segments(self) -> int:
        """How many segment files there are."""
        return len(self._segments)

    @property
    def size_bytes(self) -> int:
        """Bytes of records and headers kept, without what is preallocated."""
        with self._lock:
            return sum(segment.end for segment in self._segments[:-1]) + self._offset + len(self._batch)

    def append(self, records: list[bytes]) -> int:
        """Append records; returns the position of the last one. Not durable yet.

        raises  LimitError for a record over RECORD_BYTES_MAX; UnavailableError if BACKLOG_BYTES_MAX wait for the
                disk, or ever after an I/O error
        cost    a copy of the bytes
        """
        total = Batch.measure(records)
        if total > BACKLOG_BYTES_MAX:
            raise LimitError(f"one append of {total} bytes; the limit is {BACKLOG_BYTES_MAX}: split it")
        with self._lock:
            self._must_work()
            if self._backlog_bytes + total > BACKLOG_BYTES_MAX:
                raise UnavailableError(
                    f"{self._backlog_bytes} bytes wait for the disk under {self.directory}; the limit is "
                    f"{BACKLOG_BYTES_MAX}: sync more often or write less"
                )
            end = self._offset + len(self._batch)
            if end + total > self._segment_bytes and self._last >= self._segments[-1].first:
                self._begin_segment(end)
            self._batch.extend(records, total)
            self._backlog_bytes += total
            self._last += len(records)
            return self._last

    def sync(self, done: Done) -> None:
        """Make all that was appended durable, then call `done(durable position, error)` once, in the log's thread."""
        with self._lock:
            self._must_work()
            self._requests.put(done)

    def commit(self) -> int:
        """Wait until all that was appended is durable; returns the durable position."""
        ready = threading.Lock()
        ready.acquire()
        outcome: list[tuple[int, BaseException | None]] = []

        def done(position: int, error: BaseException | None) -> None:
            outcome.append((position, error))
            ready.release()

        self.sync(done)
        ready.acquire()
        position, error = outcome[0]
        if error is not None:
            raise error
        return position

    def replay(self, start: int = 1) -> Iterator[tuple[int, bytes]]:
        """(position, record) pairs from `start` on, oldest first: those that are durable when the first is asked for.

        raises  CorruptionError, with file and offset, when a record is not what was written
        """
        with self._lock:
            segments, durable = list(self._segments), self._durable
        for at, segment in enumerate(segments):
            last = min(durable, segments[at + 1].first - 1 if at + 1 < len(segments) else durable)
            if last >= max(start, segment.first):
                yield from _replay_segment(segment, start, last)

    def truncate_before(self, position: int) -> None:
        """Forget records before `position`, whole segments only; the files go in the log's thread."""
        with self._lock:
            self._must_work()
            while len(self._segments) > 1 and self._segments[1].first <= min(position, self._durable + 1):
                self._removals.put(self._segments.pop(0))
        self._requests.put(self._remove)

    def close(self) -> None:
        """Sync, close the files, release the directory; may be called twice.

        raises  the error of the last sync, if that is what failed
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            failed_before = self._error is not None
        self._requests.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if self._error is not None and not failed_before:
            raise self._error

    def __enter__(self) -> FileLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _must_work(self) -> None:
        if self._error is not None:
            raise type(self._error)(str(self._error)) from self._error
        if self._closed:
            raise UsageError(f"the log {self.directory} is closed")

    def _begin_segment(self, end: int) -> None:
        if len(self._batch):
            self._chunks.append((self._segments[-1], self._offset, self._batch))
        self._segments[-1].end = end
        segment = _Segment(self.directory, int.from_bytes(os.urandom(8), "little"), self._last + 1)
        self._segments.append(segment)
        self._offset = segment.end
        self._batch = Batch(segment.seed, 0)

    # The log's thread from here on.

    def _run(self) -> None:
        running = True
        while running:
            requests = [self._requests.get()]
            while not self._requests.empty():
                requests.append(self._requests.get())
            running = None not in requests
            try:
                if self._error is None:
                    self._write_all(closing=not running)
            except OSError as error:
                self._error = _refused(self.directory, error)
            except BaseException as error:  # the thread must answer whoever waits, whatever happened
                self._error = UnavailableError(f"the log {self.directory} failed: {error!r}")
            for request in requests:
                if request is not None:
                    self._answer(request)
        if self._writing.fd >= 0:
            os.close(self._writing.fd)
            self._writing.fd = -1
        self._directory_lock.release()

    def _answer(self, request: Callable[[], None] | Done) -> None:
        try:
            if request == self._remove:
                self._remove()
            else:
                request(self._durable, self._error)  # type: ignore[call-arg]
        except OSError as error:
            self._error = self._error or _refused(self.directory, error)
        except Exception:
            logger.exception("a callback of the log %s failed", self.directory)

    def _write_all(self, *, closing: bool) -> None:
        with self._lock:
            chunks, self._chunks = self._chunks, []
            target = self._last
            if len(self._batch):
                chunks.append((self._segments[-1], self._offset, self._batch))
                self._offset += len(self._batch)
                fresh, self._spare = self._spare or Batch(0, 0), None
                fresh.restart(self._segments[-1].seed, self._last + 1 - self._segments[-1].first)
                self._batch = fresh
        written = 0
        for segment, offset, batch in chunks:
            if segment is not self._writing:
                self._turn_to(segment)
            batch.write(segment.fd, offset)
            written += len(batch)
            self._wrote = True
        if chunks:
            self._spare = chunks[-1][2]
        with self._lock:
            self._durable = target
            self._backlog_bytes -= written
        if closing and self._wrote:
            batch = Batch(self._writing.seed, target + 1 - self._writing.first)
            batch.mark()
            batch.write(self._writing.fd, self._offset)

    def _turn_to(self, segment: _Segment) -> None:
        """All of the segment before is durable: cut off what it did not use, and make the next one."""
        before = self._writing
        os.ftruncate(before.fd, before.end)
        os.fsync(before.fd)
        os.close(before.fd)
        before.fd = -1
        _create(segment, self._segment_bytes)
        self._writing = segment

    def _remove(self) -> None:
        removed = False
        while not self._removals.empty():
            self._removals.get().path.unlink(missing_ok=True)
            removed = True
        if removed:
            sync_directory(self.directory)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening found: whole records, and what a crash had torn: `dropped_bytes` from `offset` of `file`."""

    records: int
    dropped_bytes: int = 0
    file: str = ""
    offset: int = 0


class SegmentImage:
    """One segment as bytes in memory: the same format and the same judgement as on disk, for `nova.sim.disk`."""

    __slots__ = ("_seed",)

    def __init__(self, id: int) -> None:
        self._seed = native.segment_seed(id, 1)

    def pack(self, records: list[bytes], index: int) -> bytes:
        """One group commit as it would be written; `index` records stand before it."""
        batch = Batch(self._seed, index)
        batch.extend(records, Batch.measure(records))
        return batch.sealed_bytes()

    def unpack(self, image: bytes, index: int = 0) -> tuple[list[bytes], int]:
        """(whole records, bytes that they take); CorruptionError if what follows them was durable once."""
        records, end, count, _ = native.read(image, 0, self._seed, index)
        verdict, _ = native.judge(image, end, self._seed, count, 0)
        if verdict == "damaged":
            raise CorruptionError(f"simulated log: offset {end}: record {count + 1} is damaged, later ones are not")
        return records, end


class DirectoryLock:
    """Exclusive use of a directory, until `release` or the end of the process, however it ends."""

    def __init__(self, directory: Path) -> None:
        path = directory / "LOCK"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise UsageError(
                f"data directory {directory} is in use by process {holder}; stop that one or choose another directory"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others in; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: without this a crash may take back a file that was synced."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Segment:
    """One file. `end` is the offset after its last record (when it is the newest: when it was opened)."""

    __slots__ = ("count", "end", "fd", "first", "id", "path", "seed")

    def __init__(self, directory: Path, id: int, first: int) -> None:
        self.path = directory / f"{first:020d}.log"
        self.id = id
        self.first = first
        self.seed = native.segment_seed(id, first)
        self.end = HEADER_BYTES
        self.count = 0
        self.fd = -1


def _create(segment: _Segment, size: int) -> None:
    """Make the file whole under another name first: a segment that has its name has its header."""
    temporary = segment.path.with_suffix(".tmp")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(fd, 0, size)
        os.pwrite(fd, native.pack_header(segment.id, segment.first), 0)
        os.fsync(fd)
        os.rename(temporary, segment.path)
        sync_directory(segment.path.parent)
    except BaseException:
        os.close(fd)
        raise
    segment.fd = fd


def _open_segments(directory: Path, segment_bytes: int) -> tuple[list[_Segment], Recovery]:
    for leftover in directory.glob("*.tmp"):
        leftover.unlink()
    paths = sorted(directory.glob("*.log"))
    if not paths:
        segment = _Segment(directory, int.from_bytes(os.urandom(8), "little"), 1)
        _create(segment, segment_bytes)
        return [segment], Recovery(0)
    segments: list[_Segment] = []
    for path in paths:
        segment = _read_header(path)
        if segments and segment.first != segments[-1].first + segments[-1].count:
            raise CorruptionError(
                f"{segments[-1].path}: offset {segments[-1].end}: records end at position "
                f"{segments[-1].first + segments[-1].count - 1}, but the next file, {path.name}, begins at "
                f"{segment.first}; restore the directory from a replica"
            )
        _check_segment(segment, newest=path is paths[-1])
        segments.append(segment)
    recovered = _cut_torn_tail(segments[-1], segment_bytes, sum(segment.count for segment in segments))
    return segments, recovered


def _read_header(path: Path) -> _Segment:
    with open(path, "rb") as file:
        found = native.unpack_header(file.read(HEADER_BYTES))
    if found is None or found[0] < 0:
        raise CorruptionError(f"{path}: offset 0: this is not a whole log segment header; restore it from a replica")
    version, id, first = found
    if version != native.VERSION:
        raise UsageError(
            f"{path} has log format version {version}; this nova reads version {native.VERSION}: use a newer nova"
        )
    segment = _Segment(path.parent, id, first)
    if segment.path != path:
        raise CorruptionError(f"{path}: offset 24: the header says {segment.path.name}: the file was renamed")
    return segment


def _check_segment(segment: _Segment, *, newest: bool) -> None:
    """Find the end of the whole records. Only the newest segment may have anything but zeros behind it."""
    fd = os.open(segment.path, (os.O_RDWR if newest else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        if newest:
            # What a crashed process left in the cache goes to disk, and what is read then comes from there.
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        want = READ_BYTES
        while True:
            data = os.pread(fd, want, segment.end)
            used, segment.count, state = native.check(data, 0, segment.seed, segment.count)
            segment.end += used
            if state == native.BAD or len(data) < want:
                break
            want = max(READ_BYTES, native.length_at(data, used))
        if not newest:
            rest = os.pread(fd, _data_end(fd, segment.end) - segment.end, segment.end)
            if rest.count(0) != len(rest):
                raise _damaged(segment)
    except BaseException:
        os.close(fd)
        raise
    if newest:
        segment.fd = fd
    else:
        os.close(fd)


def _cut_torn_tail(segment: _Segment, segment_bytes: int, records: int) -> Recovery:
    fd, end = segment.fd, segment.end
    try:
        tail = os.pread(fd, _data_end(fd, end) - end, end)
        verdict, dropped = native.judge(tail, 0, segment.seed, segment.count, end)
        if verdict == "damaged":
            raise _damaged(segment)
        if dropped:
            logger.warning("cut %d torn bytes from offset %d of %s", dropped, end, segment.path)
            os.ftruncate(fd, end)
        if dropped or os.fstat(fd).st_size < segment_bytes:
            os.posix_fallocate(fd, 0, max(segment_bytes, end))
            os.fsync(fd)
    except BaseException:
        os.close(fd)
        segment.fd = -1
        raise
    return Recovery(records, dropped, str(segment.path) if dropped else "", end if dropped else 0)


def _data_end(fd: int, start: int) -> int:
    """The end of the last written extent at or after `start`: preallocated space that was never used is not read."""
    size, end, at = os.fstat(fd).st_size, start, start
    while at < size:
        try:
            at = end = os.lseek(fd, os.lseek(fd, at, os.SEEK_DATA), os.SEEK_HOLE)
        except OSError as error:
            return end if error.errno == errno.ENXIO else max(size, start)
    return end


def _damaged(segment: _Segment) -> CorruptionError:
    return CorruptionError(
        f"{segment.path}: offset {segment.end}: record {segment.first + segment.count} is damaged, but bytes that were "
        "written after it was durable are there; restore this file from a replica or a backup"
    )


def _replay_segment(segment: _Segment, start: int, last: int) -> Iterator[tuple[int, bytes]]:
    index, at, want = 0, HEADER_BYTES, READ_BYTES
    with open(segment.path, "rb", buffering=0) as file:
        while segment.first + index <= last:
            data = os.pread(file.fileno(), want, at)
            records, used, after, state = native.read(data, 0, segment.seed, index)
            for position, record in enumerate(records, segment.first + index):
                if start <= position <= last:
                    yield position, record
            at += used
            index = after
            if segment.first + index <= last and (state == native.BAD or len(data) < want):
                raise CorruptionError(f"{segment.path}: offset {at}: record {segment.first + index} is damaged")
            want = max(READ_BYTES, native.length_at(data, used))


def _refused(directory: Path, error: OSError) -> UnavailableError:
    mend = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the disk"
    return UnavailableError(
        f"the log {directory} stopped: {error.strerror or error}; what was acknowledged is safe, what was not may be "
        f"lost: {mend}, then open the log again"
    )
