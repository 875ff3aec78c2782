# cython: autotestdict=False
"""Deltas between images of memory: owner of the kernels in csrc/delta.h. `nova.delta` is its face."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, getenv, malloc, realloc
from libc.string cimport memcmp, memcpy, memset, strcmp

from nova._native.digest cimport nova_digest, nova_digest_sub

from nova.errors import CorruptionError, LimitError, UsageError

cdef extern from "bytes.h" nogil:
    void nova_store64le(void *p, uint64_t v)

cdef extern from "<sys/mman.h>" nogil:
    enum:
        MADV_HUGEPAGE
    int madvise(void *address, size_t size, int advice)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **out, size_t alignment, size_t size)

PAGE_BYTES = NOVA_PAGE
VERSION = NOVA_DELTA_VERSION
KINDS = ("same", "zero", "copy", "again", "raw", "runs", "bitmap", "pieces")
LEVEL_MAX = 19

cdef enum:
    PACK_MIN = 48                # a shorter stream gains nothing that its frame does not cost
    REACH = 4 << 20              # how far around its pages a frame looks for literals in the base
    LEVEL_WHOLE = 5              # from here on the whole base is looked through for literals
    HASH_FROM = 16 << 20         # two images of this size are in no cache, and one stream is read faster than two
    HUGE = 2 << 20
    E_MEMORY = -100
    E_NO_ZSTD = -101
    E_ZSTD = -102

cdef size_t IMAGE_BYTES_MAX = <size_t>1 << 43       # pages are counted in 32 bits
cdef size_t DIGEST_BYTES = sizeof(nova_digest)


cdef bint zstd_sought = False


cdef int find_zstd() except -1:
    """Load the system's libzstd if it is there; NOVA_ZSTD=off in the environment keeps from it."""
    global zstd_sought
    cdef void *functions[NOVA_ZSTD_FUNCTIONS]
    cdef const char *wish = getenv("NOVA_ZSTD")
    cdef size_t address
    cdef int i
    if zstd_sought:
        return 0
    if wish != NULL and not strcmp(wish, "off"):
        zstd_sought = True
        return 0
    import ctypes

    try:
        library = ctypes.CDLL("libzstd.so.1")
        for i in range(NOVA_ZSTD_FUNCTIONS):
            found = getattr(library, nova_zstd_names[i].decode())
            address = ctypes.cast(found, ctypes.c_void_p).value
            functions[i] = <void *>address
        nova_zstd_bind(functions)
    except (OSError, AttributeError):    # not here, or older than 1.4
        pass
    zstd_sought = True      # behind it: threads that meet here find the same functions, and none goes on without
    return 0


def zstd_version():
    """The version of the system's libzstd, as "1.5.6"; None: it is not here, and streams are stored as they are."""
    find_zstd()
    cdef unsigned number = nova_zstd_version()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else None


cdef class Workspace:
    """What one encoder or decoder works with at a time: streams of a frame, zstd's contexts, the frames made so far."""

    def __dealloc__(self):
        free(self.tokens)
        free(self.literals)
        free(self.packed)
        free(self.seen)
        free(self.body)
        free(self.index)
        free(self.blocks)
        nova_zstd_compressor_free(self.compressor)
        nova_zstd_decompressor_free(self.decompressor)

    cdef int prepare(self, bint writing) except -1:
        find_zstd()
        if self.tokens == NULL:
            self.tokens = <uint8_t *>malloc(NOVA_DELTA_TOKENS)
        if self.literals == NULL:
            self.literals = <uint8_t *>malloc(NOVA_DELTA_LITERALS)
        if self.tokens == NULL or self.literals == NULL:
            raise MemoryError
        if not writing:
            return 0
        if self.packed == NULL:
            self.packed = <uint8_t *>malloc(2 * <size_t>NOVA_DELTA_LITERALS)
        if self.seen == NULL:
            self.seen = <nova_seen_page *>malloc(NOVA_SEEN * sizeof(nova_seen_page))
        if self.packed == NULL or self.seen == NULL:
            raise MemoryError
        memset(self.seen, 0, NOVA_SEEN * sizeof(nova_seen_page))
        self.body_used = 0
        return 0


cdef int take_digests(digest_table *digests, const nova_image *image) except -1:
    """The digests of all pages. Takes the time of reading the image once."""
    cdef size_t pages = nova_pages_in(image.size)
    if image.size > IMAGE_BYTES_MAX:
        raise LimitError(f"an image of {image.size} bytes; the limit is {IMAGE_BYTES_MAX}: encode it in parts")
    room_for(digests, pages)
    with nogil:
        nova_image_digests(image, digests.pages, &digests.sum)
    return 0


cdef int room_for(digest_table *digests, size_t pages) except -1:
    cdef nova_digest *grown
    if pages > digests.room:
        grown = <nova_digest *>realloc(digests.pages, pages * DIGEST_BYTES)
        if grown == NULL:
            raise MemoryError
        digests.pages = grown
        digests.room = pages
    return 0


cdef bytes identity_bytes(const nova_digest *total, uint64_t size):
    cdef nova_digest identity = nova_image_identity(total[0], size)
    cdef char raw[16]
    nova_store64le(raw, identity.lo)
    nova_store64le(raw + 8, identity.hi)
    return PyBytes_FromStringAndSize(raw, 16)


def identity(image):
    """16 bytes that tell one image from another: the digest of its pages and its size."""
    cdef Py_buffer view
    cdef digest_table digests
    cdef nova_image pages
    memset(&digests, 0, sizeof(digests))
    PyObject_GetBuffer(image, &view, PyBUF_SIMPLE)
    try:
        pages.bytes, pages.size = <const uint8_t *>view.buf, view.len
        take_digests(&digests, &pages)
        return identity_bytes(&digests.sum, pages.size)
    finally:
        free(digests.pages)
        PyBuffer_Release(&view)


def ranges_within(const uint64_t[::1] regions not None, size_t count, uint64_t start, uint64_t size):
    """Regions of addresses (begin, end, anything) as pairs (first byte, bytes) within memory that begins at `start`: 16
    bytes each. Regions that touch become one."""
    cdef size_t i, n = 0
    cdef uint64_t begin, end, last = 0
    cdef bytearray out
    cdef uint64_t *pairs
    if 3 * count > <size_t>regions.shape[0]:
        raise UsageError(f"{count} regions in {regions.shape[0]} words; each takes 3")
    out = bytearray(16 * count)
    pairs = <uint64_t *>PyByteArray_AS_STRING(out)
    for i in range(count):
        begin, end = regions[3 * i], regions[3 * i + 1]
        begin, end = (begin - start if begin > start else 0), (end - start if end > start else 0)
        end = min(end, size)
        if begin >= end:
            continue
        if n and last == begin:
            pairs[2 * n - 1] += end - begin
        else:
            pairs[2 * n], pairs[2 * n + 1] = begin, end - begin
            n += 1
        last = end
    del out[16 * n:]
    return out


cdef int refuse(int code) except -1:
    """Raise for what a kernel said."""
    if code == 0:
        return 0
    if code == E_MEMORY:
        raise MemoryError
    if code == E_NO_ZSTD:
        raise UsageError("this delta is compressed with zstd and libzstd.so.1 is not here; install it (Debian: apt install libzstd1) or encode with level=0")
    if code == NOVA_DELTA_E_BASE:
        raise UsageError("the image has changed since its digests were taken; make a new encoder or decoder for it")
    if code == NOVA_DELTA_E_MAGIC:
        raise CorruptionError("these bytes are no delta: they do not begin with NVZ")
    if code == NOVA_DELTA_E_VERSION:
        raise UsageError(f"this delta has another format than version {NOVA_DELTA_VERSION}, which this nova reads: use a newer nova")
    if code == NOVA_DELTA_E_SHORT:
        raise CorruptionError("this delta is cut, or a size in its head is wrong; fetch it again")
    if code == NOVA_DELTA_E_CHECKSUM:
        raise CorruptionError("the checksum of this delta is wrong; fetch it again")
    if code == NOVA_DELTA_E_FRAME:
        raise CorruptionError("a frame of this delta says sizes that cannot be")
    if code == E_ZSTD:
        raise CorruptionError("a compressed stream of this delta does not give the bytes that it should")
    raise CorruptionError("a token of this delta cannot be")


include "delta_encode.pxi"
include "delta_decode.pxi"
