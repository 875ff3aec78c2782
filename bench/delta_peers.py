"""What else makes a delta of two images: peers of the delta benchmarks, each a pair of functions on bytes.

zstd's C API is called through ctypes with the base as a prefix and long-distance matching, which is what `--patch-from`
does; python-zstandard's dictionaries are not that. XBZRLE is the encoding of QEMU's live migration, written here after
its documentation in plain C, and compiled when a benchmark asks for it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

WINDOW_LOG, LONG_DISTANCE, LEVEL, WINDOW_LOG_MAX = 101, 160, 100, 100

XBZRLE = r"""
#include <stddef.h>
#include <stdint.h>
#include <string.h>
static size_t number(uint8_t *out, uint32_t n)
{
    size_t used = 0;
    for (; n >= 128; n >>= 7)
        out[used++] = n | 128;
    out[used++] = n;
    return used;
}
/* Of each page: u16 length (0: equal, 65535: as it is), then zero run, other run, bytes, again and again. */
size_t xbzrle(const uint8_t *old, const uint8_t *new, size_t pages, uint8_t *out)
{
    size_t used = 0;
    for (size_t p = 0; p < pages; p++, old += 4096, new += 4096) {
        size_t at = used + 2, i = 0, zeros = 0;
        int whole = 0;
        while (i < 4096 && !whole) {
            size_t begin = i;
            if (!(i & 7)) {
                uint64_t x, y;
                while (i < 4096 && (memcpy(&x, old + i, 8), memcpy(&y, new + i, 8), x == y))
                    i += 8;
            }
            while (i < 4096 && old[i] == new[i])
                i++;
            zeros = i - begin;
            if (i == 4096)
                break;
            size_t first = i;
            while (i < 4096 && old[i] != new[i])
                i++;
            if (at - used + 8 + i - first > 4096) {
                whole = 1;
                break;
            }
            at += number(out + at, zeros);
            at += number(out + at, i - first);
            memcpy(out + at, new + first, i - first);
            at += i - first;
        }
        size_t length = at - used - 2;
        if (whole) {
            memcpy(out + used + 2, new, 4096);
            at = used + 2 + 4096;
            length = 65535;
        }
        out[used] = length & 255, out[used + 1] = length >> 8;
        used = at;
    }
    return used;
}
"""


@functools.cache
def zstd() -> ctypes.CDLL | None:
    """The system's library; None: it is not here."""
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError:
        return None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.ZSTD_createCCtx.restype = library.ZSTD_createDCtx.restype = pointer
    for name in ("ZSTD_freeCCtx", "ZSTD_freeDCtx"):
        getattr(library, name).argtypes = [pointer]
    for name in ("ZSTD_CCtx_setParameter", "ZSTD_DCtx_setParameter"):
        getattr(library, name).argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    for name in ("ZSTD_CCtx_refPrefix", "ZSTD_DCtx_refPrefix"):
        getattr(library, name).argtypes = [pointer, pointer, size]
    for name in ("ZSTD_compress2", "ZSTD_decompressDCtx"):
        getattr(library, name).argtypes = [pointer, pointer, size, pointer, size]
        getattr(library, name).restype = size
    library.ZSTD_compressBound.argtypes = [size]
    library.ZSTD_compressBound.restype = size
    library.ZSTD_isError.argtypes = [size]
    return library


def address(data: bytes | np.ndarray) -> ctypes.c_void_p:
    array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    return ctypes.c_void_p(array.ctypes.data)


def compressed(data: bytes | np.ndarray, prefix: bytes | None = None, level: int = 1) -> bytes:
    """One zstd frame; with a prefix as `--patch-from` makes it."""
    library = zstd()
    assert library
    context = library.ZSTD_createCCtx()
    try:
        library.ZSTD_CCtx_setParameter(context, LEVEL, level)
        if prefix is not None:
            library.ZSTD_CCtx_setParameter(context, WINDOW_LOG, max(10, (len(prefix) + len(data)).bit_length()))
            library.ZSTD_CCtx_setParameter(context, LONG_DISTANCE, 1)
            library.ZSTD_CCtx_refPrefix(context, address(prefix), len(prefix))
        room = library.ZSTD_compressBound(len(data))
        out = np.empty(room, np.uint8)
        size = library.ZSTD_compress2(context, address(out), room, address(data), len(data))
        assert not library.ZSTD_isError(size)
        return out[:size].tobytes()
    finally:
        library.ZSTD_freeCCtx(context)


def decompressed(packed: bytes, size: int, prefix: bytes | None = None) -> np.ndarray:
    library = zstd()
    assert library
    context = library.ZSTD_createDCtx()
    try:
        library.ZSTD_DCtx_setParameter(context, WINDOW_LOG_MAX, 31)
        if prefix is not None:
            library.ZSTD_DCtx_refPrefix(context, address(prefix), len(prefix))
        out = np.empty(size, np.uint8)
        assert library.ZSTD_decompressDCtx(context, address(out), size, address(packed), len(packed)) == size
        return out
    finally:
        library.ZSTD_freeDCtx(context)


def patch_from(base: bytes, new: bytes) -> bytes:
    return compressed(new, base)


def xor_and_zstd(base: bytes, new: bytes) -> bytes:
    """The images XORed by NumPy, and zstd at level 1; what is longer on one side stands against zeros."""
    if len(base) == len(new):
        return compressed(np.bitwise_xor(np.frombuffer(base, np.uint8), np.frombuffer(new, np.uint8)))
    old = np.zeros(len(new), np.uint8)
    part = np.frombuffer(base[: len(new)], np.uint8)
    old[: len(part)] = part
    return compressed(np.bitwise_xor(old, np.frombuffer(new, np.uint8)))


@functools.cache
def xbzrle_kernel() -> Callable[[bytes, bytes], bytes] | None:
    """None: there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="nova-xbzrle-"))
    try:
        (folder / "x.c").write_text(XBZRLE)
        subprocess.run(
            [compiler, "-O2", "-fno-tree-vectorize", "-shared", "-fPIC", "-o", folder / "x.so", folder / "x.c"],
            check=True,
        )
        kernel = ctypes.CDLL(str(folder / "x.so")).xbzrle
    finally:
        shutil.rmtree(folder)
    kernel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    kernel.restype = ctypes.c_size_t
    room = np.empty(0, np.uint8)

    def encode(base: bytes, new: bytes) -> bytes:
        nonlocal room
        pages = -(-len(new) // 4096)
        if len(room) < pages * 4104:
            room = np.empty(pages * 4104, np.uint8)
        old = base[: len(new)].ljust(pages * 4096, b"\0") if len(base) < len(new) or len(new) % 4096 else base
        padded = new.ljust(pages * 4096, b"\0") if len(new) % 4096 else new
        return room[: kernel(address(old), address(padded), pages, address(room))].tobytes()

    return encode


def xdelta3(base: bytes, new: bytes, level: int = 1) -> bytes:
    """The program, on files in memory where /dev/shm is; starting it and writing the files is in its time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        before, after, out = (Path(folder, name) for name in ("before", "after", "out"))
        before.write_bytes(base)
        after.write_bytes(new)
        window = max(1 << 20, len(base))
        command = ["xdelta3", "-e", f"-{level}", "-A", "-B", str(window), "-s", before, after, out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return out.read_bytes()


def peers() -> dict[str, Callable[[bytes, bytes], bytes]]:
    """Those that are here, by name."""
    found: dict[str, Callable[[bytes, bytes], bytes]] = {}
    if zstd() is not None:
        found |= {"zstd -1 --patch-from": patch_from, "numpy xor + zstd -1": xor_and_zstd}
    kernel = xbzrle_kernel()
    if kernel is not None:
        found["scalar XBZRLE"] = kernel
    if shutil.which("xdelta3"):
        found["xdelta3 -1"] = xdelta3
    return found
