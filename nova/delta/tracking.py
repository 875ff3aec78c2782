"""Which pages of its own memory a process has written to: so that a snapshot need not look at the others.

Three ways, the best one that works here is taken, and `DirtyTracker.why` says what stood in the way of better ones:

scan        PAGEMAP_SCAN with asynchronous write protection (Linux 6.7). The kernel marks a page at its first write, and
            one call tells and clears the marks of a whole range, page by page without a gap in between
soft-dirty  a mark in each page table entry, since Linux 3.11 where it is configured. Cleared for the whole process, so
            one tracker at a time, and nobody may write between the reading and the clearing
none        nothing is known; all pages have to be read
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
from array import array
from typing import TYPE_CHECKING, Final, Literal

from nova._native.delta import ranges_within
from nova.delta import DeltaEncoder
from nova.errors import UsageError

if TYPE_CHECKING:
    from nova.types import Buffer

Way = Literal["scan", "soft-dirty", "none"]

# linux/fs.h, linux/userfaultfd.h
_PAGEMAP_SCAN: Final = 0xC0606610
_SCAN_ARGUMENTS = struct.Struct("<12Q")
_SCAN_MATCHING, _SCAN_CHECK = 1, 2
_WRITTEN: Final = 1 << 1
_REGION_WORDS: Final = 3
_USERFAULTFD: Final = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY: Final = 1
_UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
_UFFD_API, _WP_UNPOPULATED, _WP_ASYNC = 0xAA, 1 << 13, 1 << 15
_REGISTER_WP: Final = 2
_SOFT_DIRTY: Final = 1 << 55
_REGIONS: Final = 4096
"""Regions that one call of the kernel tells."""


class DirtyTracker:
    """Tells which pages of some memory were written to since it was made, and since the last `take`.

    memory  writable, bytes-like; a mapping of its own is best (mmap), since pages at its ends count for it as a whole
    by      the way; None: the best one that works
    raises  UsageError if the way asked for does not work here

    Belongs to the process that made it: a child of fork has to make its own. `close` may be called twice.
    """

    def __init__(self, memory: Buffer, *, by: Way | None = None) -> None:
        self._view = memoryview(memory).cast("B")
        if self._view.readonly:
            raise UsageError("memory that cannot be written to does not get dirty; give a writable buffer")
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._view)) if len(self._view) else 0
        self._first = self._start // mmap.PAGESIZE * mmap.PAGESIZE
        self._end = -(-(self._start + len(self._view)) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._pid = os.getpid()
        self._fault = self._pagemap = -1
        lacking = []
        for way, begin in (("scan", self._begin_scan), ("soft-dirty", self._begin_soft_dirty)):
            if by not in (None, way):
                continue
            try:
                begin()
            except OSError as error:
                self.close()
                lacking.append(f"{way}: {error.strerror or error}")
            else:
                self.by: Way = "scan" if way == "scan" else "soft-dirty"
                break
        else:
            if by not in (None, "none"):
                raise UsageError(f"dirty pages cannot be told by {by} here ({'; '.join(lacking)}); leave `by` out")
            self.by = "none"
        self.why = "; ".join(lacking)

    def take(self) -> memoryview | None:
        """What was written to since the last call: uint64s, first byte and bytes of each range, ascending.

        Whole pages, cut at the ends of the memory. None if nothing is known. Raises UsageError if it is closed.
        """
        if self.by == "none":
            return None
        if self._pagemap < 0:
            raise UsageError("this tracker is closed; make another one")
        if os.getpid() != self._pid:
            raise UsageError(
                f"this tracker belongs to process {self._pid}, this one is {os.getpid()}; make another one"
            )
        if not len(self._view):
            return memoryview(array("Q"))
        return self._scan() if self.by == "scan" else self._soft_dirty()

    def close(self) -> None:
        """Let the memory be. May be called twice."""
        for fd in (self._fault, self._pagemap):
            if fd >= 0:
                os.close(fd)
        self._fault = self._pagemap = -1

    def __enter__(self) -> DirtyTracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- PAGEMAP_SCAN ---

    def _begin_scan(self) -> None:
        number = _USERFAULTFD.get(platform.machine())
        if number is None:
            raise OSError(None, f"the number of userfaultfd on {platform.machine()} is not known")
        libc = ctypes.CDLL(None, use_errno=True)
        # Only faults of this process itself: what needs no privilege. A kernel that writes for it, as read(2) does, is
        # seen all the same: asynchronous protection is resolved without anybody being asked.
        self._fault = libc.syscall(ctypes.c_long(number), ctypes.c_long(os.O_CLOEXEC | _USER_MODE_ONLY))
        if self._fault < 0:
            raise OSError(ctypes.get_errno(), f"userfaultfd: {os.strerror(ctypes.get_errno())}")
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        fcntl.ioctl(self._fault, _UFFDIO_API, struct.pack("<3Q", _UFFD_API, _WP_ASYNC | _WP_UNPOPULATED, 0))
        if self._end > self._first:
            # Transparent huge pages would make one write dirty two megabytes.
            libc.madvise(
                ctypes.c_void_p(self._first),
                ctypes.c_size_t(self._end - self._first),
                ctypes.c_int(mmap.MADV_NOHUGEPAGE),
            )
            register = struct.pack("<4Q", self._first, self._end - self._first, _REGISTER_WP, 0)
            fcntl.ioctl(self._fault, _UFFDIO_REGISTER, register)
        self._regions = (ctypes.c_uint64 * (_REGIONS * _REGION_WORDS))()
        self._arguments = bytearray(_SCAN_ARGUMENTS.size)
        self._scan()

    def _scan(self) -> memoryview:
        at, found = self._first, bytearray()
        while at < self._end:
            _SCAN_ARGUMENTS.pack_into(
                self._arguments, 0, _SCAN_ARGUMENTS.size, _SCAN_MATCHING | _SCAN_CHECK, at, self._end, 0,
                ctypes.addressof(self._regions), _REGIONS, 0, 0, _WRITTEN, 0, _WRITTEN,
            )  # fmt: skip
            count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, self._arguments)
            at = _SCAN_ARGUMENTS.unpack(self._arguments)[4]
            found += ranges_within(self._regions, count, self._start, len(self._view))
        return memoryview(found).cast("Q")

    # --- soft-dirty ---

    def _begin_soft_dirty(self) -> None:
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        # Kernels that were built without it take the clearing and mark nothing.
        with mmap.mmap(-1, mmap.PAGESIZE) as probe:
            probe[0] = 1
            address = ctypes.addressof(ctypes.c_char.from_buffer(probe))
            self._clear()
            clean = self._entries(address, 1)[0] & _SOFT_DIRTY
            probe[0] = 2
            if clean or not self._entries(address, 1)[0] & _SOFT_DIRTY:
                raise OSError(None, "this kernel does not mark soft-dirty pages")

    def _clear(self) -> None:
        with open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(b"4")

    def _entries(self, address: int, count: int) -> array[int]:
        return array("Q", os.pread(self._pagemap, 8 * count, address // mmap.PAGESIZE * 8))

    def _soft_dirty(self) -> memoryview:
        entries = self._entries(self._first, (self._end - self._first) // mmap.PAGESIZE)
        self._clear()
        regions = array("Q")
        for i, entry in enumerate(entries):
            if entry & _SOFT_DIRTY:
                begin = self._first + i * mmap.PAGESIZE
                regions.extend((begin, begin + mmap.PAGESIZE, 0))
        count = len(regions) // _REGION_WORDS
        return memoryview(ranges_within(regions or array("Q", [0]), count, self._start, len(self._view))).cast("Q")


def _dirty_bytes(dirty: memoryview) -> int:
    return sum(dirty.tolist()[1::2])


class MemoryDeltas:
    """Delta after delta of one piece of memory, each from where the last one ended: incremental snapshots.

    memory  writable, bytes-like
    by      how dirty pages are told, as of `DirtyTracker`
    level   as of `nova.delta.encode`
    raises  UsageError

    Keeps a copy of the memory, and looks only where it was written to, as long as that is known and not nearly
    everywhere; else it compares, or hashes what is too large for the caches. `how` says what the last one did. Nobody
    writes to the memory while `take` runs.
    """

    def __init__(self, memory: Buffer, *, by: Way | None = None, level: int = 1) -> None:
        self._memory = memoryview(memory).cast("B")
        self.tracker = DirtyTracker(memory, by=by)
        self._encoder = DeltaEncoder(self._memory, follow=True, level=level)

    @property
    def identity(self) -> bytes:
        """16 bytes: of the state that the next delta begins from."""
        return self._encoder.identity

    @property
    def how(self) -> str:
        """How the last delta was found: "dirty", "compare" or "hash"; empty before the first one."""
        return self._encoder.how

    def take(self) -> bytes:
        """The delta from the last state, or the first one, to this."""
        dirty = self.tracker.take()
        if dirty is None or 2 * _dirty_bytes(dirty) > len(self._memory):
            return self._encoder.encode(self._memory)
        return self._encoder.encode(self._memory, dirty=dirty)

    def close(self) -> None:
        """Let the memory be. May be called twice."""
        self.tracker.close()

    def __enter__(self) -> MemoryDeltas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
