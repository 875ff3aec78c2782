"""What a power cut would take: the pages of a file that the kernel has not written yet.

SIGKILL alone proves nothing about fsync: the page cache survives the process. `cut_power` puts each unsynced page back
to what the disk holds, so that killing a process and then cutting its files shows what a power cut at the moment of
the kill would have left (up to the drive's own cache, and to what the kernel wrote back on its own meanwhile).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from typing import Final

from nova.errors import UnavailableError

_CACHESTAT: Final = 451  # the same number on every architecture
_PAGE: Final = mmap.PAGESIZE
_FS_IOC_FIEMAP: Final = 0xC020660B
_FIEMAP = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_EXTENTS: Final = 256
_EXTENT_LAST, _EXTENT_DELAYED, _EXTENT_UNWRITTEN = 0x1, 0x4, 0x800
_EXTENT_OPAQUE = 0x8 | 0x80 | 0x100 | 0x200 | 0x400  # encoded, encrypted, not aligned, inline, packed tail

_libc = ctypes.CDLL(None, use_errno=True)


def unsynced_ranges(path: str | os.PathLike[str]) -> list[tuple[int, int]]:
    """(offset, length) of the runs of pages that are dirty or being written; a length stops at the end of the file.

    raises  UnavailableError where the kernel (Linux before 6.5) or the file system cannot tell
    cost    one system call, and for each run about log2(pages) more
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _unsynced(fd)
    finally:
        os.close(fd)


def cut_power(path: str | os.PathLike[str]) -> int:
    """Put the unsynced pages of the file back to what the disk holds; returns how many bytes changed.

    A page that never was written becomes zeros, or is cut off where no block was allocated up to the end of the file.
    A page that is on disk in an older state keeps its present bytes, because its old ones cannot be read past the
    cache: for a file that only grows, these are the pages in which the last sync ended.

    raises  UnavailableError where the kernel or the file system cannot tell
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        ranges = _unsynced(fd)
        if not ranges:
            return 0
        size = os.fstat(fd).st_size
        extents = _extents(fd)
        changes: list[tuple[int, bytes]] = []
        end = size
        for offset, length in ranges:
            for start in range(offset, offset + length, _PAGE):
                written, allocated = _place(extents, start)
                if not allocated and offset + length >= size:
                    end = min(end, start)
                    break
                if not written:
                    changes.append((start, bytes(min(_PAGE, size - start))))
        changed = max(0, size - end)
        for start, data in changes:
            if start < end:
                now = os.pread(fd, len(data), start)
                changed += sum(a != b for a, b in zip(now, data, strict=False)) if now != data else 0
                os.pwrite(fd, data, start)
        if end < size:
            os.ftruncate(fd, end)
        os.fsync(fd)
        return changed
    finally:
        os.close(fd)


def _unsynced(fd: int) -> list[tuple[int, int]]:
    size = os.fstat(fd).st_size
    pages = -(-size // _PAGE)
    runs: list[list[int]] = []

    def split(start: int, count: int) -> None:
        dirty = _dirty_pages(fd, start, count)
        if dirty == 0:
            return
        if dirty == count:
            if runs and runs[-1][0] + runs[-1][1] == start:
                runs[-1][1] += count
            else:
                runs.append([start, count])
            return
        half = count // 2
        split(start, half)
        split(start + half, count - half)

    if pages:
        split(0, pages)
    return [(start * _PAGE, min(count * _PAGE, size - start * _PAGE)) for start, count in runs]


def _dirty_pages(fd: int, start: int, count: int) -> int:
    span = (ctypes.c_uint64 * 2)(start * _PAGE, count * _PAGE)
    result = (ctypes.c_uint64 * 5)()
    if _libc.syscall(_CACHESTAT, fd, ctypes.byref(span), ctypes.byref(result), 0) != 0:
        error = ctypes.get_errno()
        reason = {
            errno.ENOSYS: "this kernel lacks cachestat; Linux 6.5 and later have it",
            errno.EOPNOTSUPP: "the file system of this file does not support cachestat; use one on a local disk",
            errno.EPERM: "cachestat is forbidden here; allow it in the sandbox's system call filter",
        }.get(error, os.strerror(error))
        raise UnavailableError(f"cannot tell which pages are unsynced: {reason}")
    return min(count, result[1] + result[2])


def _extents(fd: int) -> list[tuple[int, int, int]]:
    """(offset, length, flags) of every extent, without making the file system write anything."""
    out: list[tuple[int, int, int]] = []
    start = 0
    while True:
        buffer = bytearray(_FIEMAP.size + _EXTENTS * _EXTENT.size)
        _FIEMAP.pack_into(buffer, 0, start, (1 << 64) - 1 - start, 0, 0, _EXTENTS, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        except OSError as error:
            raise UnavailableError(
                f"cannot tell what the disk holds: the file system lacks FIEMAP ({error.strerror}); use ext4 or XFS"
            ) from error
        found = _FIEMAP.unpack_from(buffer)[3]
        for at in range(found):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _FIEMAP.size + at * _EXTENT.size)
            if flags & _EXTENT_OPAQUE:
                raise UnavailableError(
                    "cannot tell what the disk holds: the file is encoded or inline; use plain ext4 or XFS"
                )
            out.append((logical, length, flags))
        if not found or out[-1][2] & _EXTENT_LAST:
            return out
        start = out[-1][0] + out[-1][1]


def _place(extents: list[tuple[int, int, int]], offset: int) -> tuple[bool, bool]:
    """(whether the disk has content for this offset, whether it has a block for it)."""
    for logical, length, flags in extents:
        if logical <= offset < logical + length:
            allocated = not flags & _EXTENT_DELAYED
            return allocated and not flags & _EXTENT_UNWRITTEN, allocated
    return False, False
