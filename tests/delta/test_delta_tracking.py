"""Dirty pages: every write is told once, by every way that works here; and deltas made of what was told are right."""

from __future__ import annotations

import mmap
import os
import random
from array import array

import pytest

from nova.delta import DeltaDecoder
from nova.delta.tracking import DirtyTracker, MemoryDeltas
from nova.errors import UsageError

PAGE = mmap.PAGESIZE


@pytest.fixture(params=["scan", "soft-dirty"])
def way(request):
    """A way that works here."""
    try:
        DirtyTracker(mmap.mmap(-1, PAGE), by=request.param).close()
    except UsageError as error:
        pytest.skip(str(error))
    return request.param


def pages(ranges) -> set[int]:
    pairs = ranges.tolist()
    return {
        page
        for begin, size in zip(pairs[::2], pairs[1::2], strict=True)
        for page in range(begin // PAGE, -(-(begin + size) // PAGE))
    }


def test_every_write_is_told_once(way):
    rng = random.Random(1)
    memory = mmap.mmap(-1, 300 * PAGE)
    memory[:] = rng.randbytes(300 * PAGE)
    with DirtyTracker(memory, by=way) as tracker:
        assert tracker.by == way
        assert pages(tracker.take()) == set()
        for _ in range(5):
            written = set(rng.sample(range(300), 20)) | {0, 299}
            for page in written:
                memory[page * PAGE + rng.randrange(PAGE)] = rng.randrange(256)
            assert pages(tracker.take()) == written
            assert pages(tracker.take()) == set()


def test_what_the_kernel_writes_and_pages_never_touched_are_told_too(way):
    memory = mmap.mmap(-1, 64 * PAGE)
    with DirtyTracker(memory, by=way) as tracker:
        tracker.take()
        memory[9 * PAGE] = 1
        read, write = os.pipe()
        os.write(write, b"from the kernel")
        os.readv(read, [memoryview(memory)[20 * PAGE : 20 * PAGE + 15]])
        os.close(read)
        os.close(write)
        assert {9, 20} <= pages(tracker.take())
        assert memory[20 * PAGE : 20 * PAGE + 4] == b"from"


def test_more_regions_than_one_call_tells(way, monkeypatch):
    monkeypatch.setattr("nova.delta.tracking._REGIONS", 4)
    memory = mmap.mmap(-1, 100 * PAGE)
    memory[:] = b"x" * (100 * PAGE)
    with DirtyTracker(memory, by=way) as tracker:
        for page in range(0, 100, 3):
            memory[page * PAGE] = 1
        assert pages(tracker.take()) == set(range(0, 100, 3))


def test_memory_that_is_not_aligned_is_told_within_its_ends(way):
    whole = mmap.mmap(-1, 10 * PAGE)
    part = memoryview(whole)[PAGE + 100 : 5 * PAGE + 7]
    with DirtyTracker(part, by=way) as tracker:
        tracker.take()
        part[0] = part[-1] = 1
        whole[9 * PAGE] = 1
        assert tracker.take().tolist() == [0, PAGE - 100, 4 * PAGE - 100, 7]


def test_a_tracker_says_what_it_cannot(way):
    memory = mmap.mmap(-1, PAGE)
    with pytest.raises(UsageError, match="writable"):
        DirtyTracker(b"fixed")
    tracker = DirtyTracker(memory, by=way)
    tracker.close()
    tracker.close()
    with pytest.raises(UsageError, match="closed"):
        tracker.take()
    tracker = DirtyTracker(memory, by=way)
    child = os.fork()
    if not child:
        try:
            tracker.take()
        except UsageError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    tracker.close()


def test_where_the_kernel_refuses_the_next_way_is_taken_and_the_cause_is_told(monkeypatch):
    memory = mmap.mmap(-1, 4 * PAGE)
    monkeypatch.setattr("nova.delta.tracking._USERFAULTFD", {})
    with pytest.raises(UsageError, match=r"cannot be told by scan here .*userfaultfd"):
        DirtyTracker(memory, by="scan")
    with DirtyTracker(memory) as tracker:
        assert tracker.by in ("soft-dirty", "none")
        assert "userfaultfd" in tracker.why
    monkeypatch.setattr(DirtyTracker, "_begin_soft_dirty", refuse)
    with DirtyTracker(memory) as tracker:
        assert (tracker.by, tracker.take()) == ("none", None)
        assert tracker.why.endswith("soft-dirty: not here")


def refuse(self) -> None:
    raise OSError(1, "not here")


@pytest.mark.parametrize("by", [None, "none"])
def test_deltas_of_memory_follow_it(by):
    rng = random.Random(2)
    memory = mmap.mmap(-1, 200 * PAGE)
    memory[:] = rng.randbytes(200 * PAGE)
    room = bytearray(memory)
    decoder = DeltaDecoder(room)
    with MemoryDeltas(memory, by=by) as deltas:
        for count in (3, 0, 10, 190, 1):
            for page in rng.sample(range(200), count):
                memory[page * PAGE + 9 : page * PAGE + 20] = rng.randbytes(11)
            decoder.apply(deltas.take())
            assert room == memory[:]
            assert decoder.identity == deltas.identity
            if deltas.tracker.by == "none" or count == 190:
                assert deltas.how == "compare"
            else:
                assert deltas.how == "dirty"


def test_soft_dirty_marks_become_ranges(monkeypatch):
    """How marks are read, on a kernel that has none: the entries are made up, the memory is real."""
    entries = array("Q", [0, 1 << 55, 1 << 55 | 1 << 63, 1 << 63, 1 << 55])
    cleared = []
    monkeypatch.setattr("nova.delta.tracking._USERFAULTFD", {})
    monkeypatch.setattr(
        DirtyTracker, "_begin_soft_dirty", lambda self: setattr(self, "_pagemap", os.open("/dev/null", os.O_RDONLY))
    )
    monkeypatch.setattr(DirtyTracker, "_clear", lambda self: cleared.append(1))
    monkeypatch.setattr(DirtyTracker, "_entries", lambda self, address, count: entries[:count])
    with DirtyTracker(mmap.mmap(-1, 5 * PAGE)) as tracker:
        assert tracker.by == "soft-dirty"
        assert tracker.take().tolist() == [PAGE, 2 * PAGE, 4 * PAGE, PAGE]
        entries = array("Q", [0] * 5)
        assert tracker.take().tolist() == []
        assert cleared == [1, 1]
