"""Deltas with many processors, and of files of any size: an image is cut into spans, each a delta of its own.

Spans are made by threads, which do not hold the interpreter lock, and go out in order; at most two for each worker are
in memory at a time, so memory is bounded whatever the files' sizes. Pages that moved from one span to another are not
found. A span is made from the part of the base that begins where it begins; the last one has all of the base that is
left.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from nova.delta import PAGE_BYTES, DeltaStat, decode_span, encode_span, span_places, stat
from nova.errors import LimitError, UnavailableError, UsageError

if TYPE_CHECKING:
    from nova.types import Buffer

SPAN_BYTES = 64 << 20
FILE_BYTES_MAX = 1 << 40


def encode_spans(
    base: Buffer, new: Buffer, *, level: int = 1, span_bytes: int = SPAN_BYTES, workers: int | None = None
) -> Iterator[bytes]:
    """The spans of the delta that makes `new` of `base`, in order; joined they are what `decode` takes.

    span_bytes  of the image; a multiple of a page
    workers     threads; None: as many as there are processors
    raises      UsageError
    """
    if span_bytes < PAGE_BYTES or span_bytes % PAGE_BYTES:
        raise UsageError(f"span_bytes is {span_bytes}; a span has whole pages, so a multiple of {PAGE_BYTES} bytes")
    old, image = memoryview(base).cast("B"), memoryview(new).cast("B")
    starts = list(range(0, max(len(image), 1), span_bytes))

    def span(number: int) -> bytes:
        begin, last = starts[number], number == len(starts) - 1
        end = begin + span_bytes
        return encode_span(
            old[begin:] if last else old[begin:end], image[begin:end], level=level, number=number, last=last
        )

    return _in_order(span, range(len(starts)), workers)


def decode_spans(
    base: Buffer, delta: Buffer, *, size_max: int = FILE_BYTES_MAX, workers: int | None = None
) -> Iterator[bytes]:
    """The parts of the image that a delta makes of its base, in order. Raises as `nova.delta.decode` does, at once for
    sizes, and for what is wrong with a span when its turn comes."""
    old, raw = memoryview(base).cast("B"), memoryview(delta).cast("B")
    places = span_places(raw)
    need = sum(base_bytes for _, _, base_bytes, _ in places)
    size = sum(image_bytes for *_, image_bytes in places)
    if need != len(old):
        raise UsageError(
            f"this delta is for a base of {need} bytes, this one has {len(old)}; fetch the base it was made from"
        )
    if size > size_max:
        raise LimitError(
            f"this delta makes an image of {size} bytes; the limit is {size_max}: raise size_max if that is meant"
        )
    starts = [0]
    for _, _, base_bytes, _ in places:
        starts.append(starts[-1] + base_bytes)

    def part(number: int) -> bytes:
        begin, end, base_bytes, _ = places[number]
        return decode_span(old[starts[number] : starts[number] + base_bytes], raw[begin:end])

    return _in_order(part, range(len(places)), workers)


def _in_order(work: Callable[[int], bytes], numbers: Iterable[int], workers: int | None) -> Iterator[bytes]:
    """What the work gives for each number; a few of them are done ahead."""
    count = workers if workers is not None else len(os.sched_getaffinity(0))
    if count < 1:
        raise UsageError(f"workers is {count}; give 1 or more")
    return map(work, numbers) if count == 1 else _ahead(work, numbers, count)


def _ahead(work: Callable[[int], bytes], numbers: Iterable[int], count: int) -> Iterator[bytes]:
    with ThreadPoolExecutor(count, thread_name_prefix="nova-delta") as pool:
        waiting: deque[Future[bytes]] = deque()
        try:
            for number in numbers:
                if len(waiting) == 2 * count:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, number))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def encode_file(
    base: str | os.PathLike[str],
    new: str | os.PathLike[str],
    delta: str | os.PathLike[str],
    *,
    level: int = 1,
    workers: int | None = None,
) -> int:
    """Write the delta that makes file `new` of file `base`; its bytes. It has its name when it is whole and on disk.

    raises  UsageError if a file cannot be read; UnavailableError if the disk refuses
    """
    with _mapped(base) as old, _mapped(new) as image:
        return _write(delta, encode_spans(old, image, level=level, workers=workers))


def decode_file(
    base: str | os.PathLike[str],
    delta: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    size_max: int = FILE_BYTES_MAX,
    workers: int | None = None,
) -> int:
    """Write what a delta makes of file `base`; its bytes. It has its name when it is whole and on disk.

    raises  as `nova.delta.decode`; UnavailableError if the disk refuses
    """
    with _mapped(base) as old, _mapped(delta) as raw:
        return _write(new, decode_spans(old, raw, size_max=size_max, workers=workers))


def stat_file(delta: str | os.PathLike[str]) -> DeltaStat:
    """Look into a delta in a file. Raises as `nova.delta.stat`."""
    with _mapped(delta) as raw:
        return stat(raw)


@contextlib.contextmanager
def _mapped(path: str | os.PathLike[str]) -> Iterator[memoryview]:
    """A file's bytes, read when they are looked at."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                yield memoryview(b"")
                return
            whole = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UsageError(f"{os.fspath(path)}: {error.strerror}") from None
    # Not closed here: after an error a traceback may still hold a part of it. It goes with the last view of it.
    yield memoryview(whole)


def _write(path: str | os.PathLike[str], parts: Iterator[bytes]) -> int:
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    size = 0
    try:
        with open(temporary, "xb", buffering=0) as file:
            for part in parts:
                view = memoryview(part)
                size += len(view)
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
        os.rename(temporary, target)
    except OSError as error:
        raise UnavailableError(f"{target} could not be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return size
