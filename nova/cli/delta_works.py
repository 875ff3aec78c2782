"""What `nova bench delta` times: encoding and decoding images, and what one would do with what every machine has."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import zlib
from collections.abc import Callable

import numpy as np

from nova.delta import PAGE_BYTES, DeltaDecoder, DeltaEncoder, decode, encode, identity
from nova.delta.tracking import MemoryDeltas

Work = Callable[[], object]
SMALL, LARGE = 1 << 20, 64 << 20


@functools.cache
def images(size: int, share: float) -> tuple[memoryview, memoryview]:
    """An image, and the same with 8 bytes changed in such a share of its pages; at least one."""
    rng = np.random.default_rng(7)
    base = rng.integers(0, 256, size, dtype=np.uint8)
    new = base.copy()
    pages = size // PAGE_BYTES
    for page in rng.choice(pages, max(1, int(pages * share)), replace=False):
        at = page * PAGE_BYTES + int(rng.integers(0, PAGE_BYTES - 8))
        new[at : at + 8] ^= 0x5A
    return base.data, new.data


def encodes(size: int, how: str) -> Work:
    """Deltas from one base, 1% of the pages changed."""
    base, new = images(size, 0.01)
    encoder = DeltaEncoder(base)
    return lambda: encoder.encode(new, how=how)  # type: ignore[arg-type]


def encodes_once(size: int) -> Work:
    base, new = images(size, 0.01)
    return lambda: encode(base, new)


def memcmps(size: int) -> Work:
    """libc's memcmp of two equal images: the least that comparing costs."""
    base = np.asarray(images(size, 0.01)[0])
    same = base.copy()
    memcmp = ctypes.CDLL(None).memcmp
    a, b, n = ctypes.c_void_p(base.ctypes.data), ctypes.c_void_p(same.ctypes.data), ctypes.c_size_t(size)

    def work() -> bool:
        assert len(base) == len(same)  # and both alive
        return not memcmp(a, b, n)

    return work


def xors(size: int) -> Work:
    """What one writes in a hurry: XOR of the images, and zlib at its fastest."""
    base, new = images(size, 0.01)
    return lambda: zlib.compress(np.bitwise_xor(base, new).data, 1)


def decodes(size: int) -> Work:
    base, new = images(size, 0.01)
    delta = encode(base, new)
    return lambda: len(decode(base, delta)) == size


def applies(size: int) -> Work:
    """Deltas there and back, in place."""
    base, new = images(size, 0.01)
    decoder, turns = DeltaDecoder(bytearray(base)), (encode(base, new), encode(new, base))

    def work() -> bool:
        return decoder.apply(turns[0]) == decoder.apply(turns[1]) == size

    return work


def xors_in_place(size: int) -> Work:
    """XORs there and back."""
    base, new = images(size, 0.01)
    image, difference = np.array(base), np.bitwise_xor(base, new)

    def work() -> bool:
        for _ in range(2):
            np.bitwise_xor(image, difference, out=image)
        return bool(image[0] == base[0])

    return work


def identifies(size: int) -> Work:
    base, _ = images(size, 0.01)
    return lambda: identity(base)


def blake2bs(size: int) -> Work:
    base, _ = images(size, 0.01)
    return lambda: hashlib.blake2b(base, digest_size=16).digest()


def snapshots(size: int, *, dirty: bool) -> Work:
    """Incremental snapshots of memory of which 0.4% of the pages are written to in between, outside the timed part."""
    memory = mmap.mmap(-1, size)
    rng = np.random.default_rng(7)
    memory[:] = rng.bytes(size)
    pages = size // PAGE_BYTES

    class Snapshot:
        def __init__(self) -> None:
            self.deltas = MemoryDeltas(memory, by=None if dirty else "none")

        def prepare(self) -> None:
            for page in rng.choice(pages, max(1, pages * 4 // 1000), replace=False).tolist():
                memory[page * PAGE_BYTES + 8 : page * PAGE_BYTES + 16] = rng.bytes(8)

        def __call__(self) -> object:
            return self.deltas.take()

    return Snapshot()
