# nova/_native/log.pyx - owner of write-ahead batches; csrc/log.h has the format
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from nova.errors import LimitError, UsageError

cdef extern from "log.h" nogil:
    enum:
        NOVA_LOG_HEADER
        NOVA_LOG_RECORD
        NOVA_LOG_VERSION
        NOVA_LOG_PAYLOAD_MAX
        NOVA_LOG_DATA
        NOVA_LOG_MARK
        NOVA_LOG_FIRST
        NOVA_LOG_WHOLE
        NOVA_LOG_SHORT
        NOVA_LOG_E_MAGIC
        NOVA_LOG_E_VERSION
        NOVA_LOG_E_SHORT
    ctypedef struct nova_log_record:
        const uint8_t *payload
        uint32_t length
        uint32_t index
        uint8_t type
    uint32_t nova_crc32c(uint32_t crc, const void *bytes, size_t size)
    uint32_t nova_crc32c_software(uint32_t crc, const void *bytes, size_t size)
    int nova_crc32c_is_hardware()
    uint32_t nova_log_seed(uint64_t id, uint64_t first)
    void nova_log_header_write(uint8_t *out, uint64_t id, uint64_t first)
    int nova_log_header_read(const uint8_t *bytes, size_t size, uint32_t *version, uint64_t *id, uint64_t *first)
    size_t nova_log_put(uint8_t *out, uint32_t index, uint8_t type, const void *payload, uint32_t length)
    void nova_log_seal(uint8_t *bytes, size_t size, uint32_t seed)
    int nova_log_read(const uint8_t *bytes, size_t size, size_t at, uint32_t seed, uint32_t index,
                      nova_log_record *out)
    int nova_log_find(const uint8_t *bytes, size_t size, size_t at, uint32_t seed, uint32_t index, size_t *any,
                      size_t *opening)
    int nova_log_sector_lost(const uint8_t *bytes, size_t start, size_t stop, uint64_t base)
    size_t nova_log_extent(const uint8_t *bytes, size_t size)

cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int fd, const void *buf, size_t count, long long offset)
    int fdatasync(int fd)

HEADER_BYTES = NOVA_LOG_HEADER
RECORD_OVERHEAD_BYTES = NOVA_LOG_RECORD
RECORD_BYTES_MAX = NOVA_LOG_PAYLOAD_MAX
VERSION = NOVA_LOG_VERSION
WHOLE, SHORT, BAD = 0, 1, 2

cdef size_t KEEP_BYTES = 4 << 20     # an emptied batch gives back what it holds over this


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0):
    """CRC32C of `data`, continuing from `crc`."""
    cdef size_t size = data.shape[0]
    if size == 0:
        return crc
    with nogil:
        crc = nova_crc32c(crc, &data[0], size)
    return crc


def crc32c_software(const uint8_t[::1] data not None, uint32_t crc=0):
    """The same without the processor's instruction: what processors that lack it run."""
    return nova_crc32c_software(crc, &data[0], data.shape[0]) if data.shape[0] else crc


def crc32c_is_hardware():
    """Whether `crc32c` runs on the processor's instruction."""
    return bool(nova_crc32c_is_hardware())


def segment_seed(uint64_t id, uint64_t first):
    """What the checksums of this segment's records start from."""
    return nova_log_seed(id, first)


def pack_header(uint64_t id, uint64_t first):
    """The first bytes of a segment."""
    cdef uint8_t out[64]
    nova_log_header_write(out, id, first)
    return PyBytes_FromStringAndSize(<char *>out, NOVA_LOG_HEADER)


def unpack_header(bytes data not None):
    """(version, id, first) of a segment header; version is negative, -1 - version, if the rest fails its checksum, and
    None if these bytes never were a header."""
    cdef uint32_t version = 0
    cdef uint64_t id = 0, first = 0
    cdef int error = nova_log_header_read(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &version,
                                          &id, &first)
    if error == 0:
        return version, id, first
    if error == NOVA_LOG_E_VERSION:
        return version, 0, 0
    if error == NOVA_LOG_E_MAGIC or error == NOVA_LOG_E_SHORT:
        return None
    return -1 - <long long>version, 0, 0


cdef class Batch:
    """Records of one segment on their way to disk: `extend` copies them in, `write` checksums, writes and syncs."""

    def __cinit__(self, uint32_t seed, uint32_t index):
        self.bytes = NULL
        self.used = self.room = 0
        self.restart(seed, index)

    def __dealloc__(self):
        free(self.bytes)

    def __len__(self):
        return self.used

    def restart(self, uint32_t seed, uint32_t index):
        """Empty the batch; its next record is number `index` of the segment that has `seed`."""
        if self.room > KEEP_BYTES:
            free(self.bytes)
            self.bytes = NULL
            self.room = 0
        self.used = 0
        self.count = 0
        self.seed = seed
        self.index = index
        self.sealed = False

    cdef int reserve(self, size_t more) except -1:
        cdef size_t room = self.room * 2 if self.room else 4096
        cdef uint8_t *grown
        if self.room - self.used >= more:
            return 0
        if room < self.used + more:
            room = self.used + more
        grown = <uint8_t *>realloc(self.bytes, room)
        if grown == NULL:
            raise MemoryError
        self.bytes = grown
        self.room = room
        return 0

    @staticmethod
    def measure(list records not None):
        """Bytes that these records take in a segment; UsageError or LimitError for a record that cannot be stored."""
        cdef size_t total = 0
        cdef Py_ssize_t size
        for record in records:
            if not PyBytes_CheckExact(record):
                raise UsageError(f"a record is {type(record).__name__}; records are bytes")
            size = PyBytes_GET_SIZE(record)
            if size > <Py_ssize_t>NOVA_LOG_PAYLOAD_MAX:
                raise LimitError(f"a record has {size} bytes; the limit is {NOVA_LOG_PAYLOAD_MAX}: split it")
            total += NOVA_LOG_RECORD + <size_t>size
        return total

    def extend(self, list records not None, size_t total):
        """Copy in `records`, which `measure` found to take `total` bytes."""
        cdef uint8_t *out
        cdef size_t left = total
        cdef size_t size
        self.reserve(total)
        out = self.bytes + self.used
        for record in records:
            size = <size_t>PyBytes_GET_SIZE(record)
            if size + NOVA_LOG_RECORD > left:
                raise UsageError("records changed between measure and extend")
            left -= size + NOVA_LOG_RECORD
            out += nova_log_put(out, self.index, NOVA_LOG_DATA | (0 if self.count else NOVA_LOG_FIRST),
                                PyBytes_AS_STRING(record), <uint32_t>size)
            self.index += 1
            self.count += 1
        self.used = out - self.bytes

    def mark(self):
        """Add a mark: whoever finds it whole knows that everything before it was durable."""
        self.reserve(NOVA_LOG_RECORD)
        self.used += nova_log_put(self.bytes + self.used, self.index, NOVA_LOG_MARK | NOVA_LOG_FIRST, NULL, 0)

    def sealed_bytes(self):
        """The bytes as they would stand on disk."""
        nova_log_seal(self.bytes, self.used, self.seed)
        return PyBytes_FromStringAndSize(<char *>self.bytes, self.used)

    def write(self, int fd, long long offset):
        """Checksum everything, write it at `offset` and wait until it is on disk, all without the GIL.

        raises  OSError; then nothing is known about these bytes, nor ever will be
        """
        cdef size_t done = 0
        cdef ssize_t n = 0
        cdef int error = 0
        with nogil:
            nova_log_seal(self.bytes, self.used, self.seed)
            while done < self.used:
                n = pwrite(fd, self.bytes + done, self.used - done, offset + <long long>done)
                if n < 0:
                    error = errno
                    if error == EINTR:
                        error = 0
                        continue
                    break
                done += <size_t>n
            if error == 0 and fdatasync(fd) != 0:
                error = errno
        if error:
            raise OSError(error, os.strerror(error))


def check(const uint8_t[::1] data not None, size_t at, uint32_t seed, uint32_t index):
    """Walk whole records from `at` on: (offset after the last, index of the next, state of what stands there)."""
    cdef size_t size = data.shape[0]
    cdef const uint8_t *bytes = &data[0] if size else NULL
    cdef nova_log_record record
    cdef int state
    with nogil:
        while True:
            state = nova_log_read(bytes, size, at, seed, index, &record)
            if state != NOVA_LOG_WHOLE:
                break
            at += NOVA_LOG_RECORD + record.length
            index += (record.type & 0x7f) == NOVA_LOG_DATA
    return at, index, state


def read(const uint8_t[::1] data not None, size_t at, uint32_t seed, uint32_t index):
    """The payloads of the whole records from `at` on, and then what `check` returns."""
    cdef size_t size = data.shape[0]
    cdef const uint8_t *bytes = &data[0] if size else NULL
    cdef nova_log_record record
    cdef int state
    cdef list out = []
    while True:
        state = nova_log_read(bytes, size, at, seed, index, &record)
        if state != NOVA_LOG_WHOLE:
            return out, at, index, state
        at += NOVA_LOG_RECORD + record.length
        if (record.type & 0x7f) == NOVA_LOG_DATA:
            out.append(PyBytes_FromStringAndSize(<const char *>record.payload, record.length))
            index += 1


def length_at(const uint8_t[::1] data not None, size_t at):
    """Bytes that the record at `at` claims to take, or 0 if its head is not there."""
    cdef size_t size = data.shape[0]
    if at > size or size - at < NOVA_LOG_RECORD:
        return 0
    return NOVA_LOG_RECORD + (<size_t>data[at + 8] | <size_t>data[at + 9] << 8 | <size_t>data[at + 10] << 16
                              | <size_t>data[at + 11] << 24)


def judge(const uint8_t[::1] data not None, size_t at, uint32_t seed, uint32_t index, uint64_t base):
    """What the bytes from `at` on, which are no record, mean: "torn" by a crash before they were acknowledged, or
    "damaged" since. `base` is the offset of data[0] in its file; returns (verdict, bytes up to the last non-zero).

    Whole records further on tell: one that opens a later group commit proves that these bytes were once durable;
    one of the same group commit leaves the benefit of the doubt only if a whole sector in between is missing.
    """
    cdef size_t size = data.shape[0]
    cdef size_t later = 0, opening = 0, extent = 0
    cdef const uint8_t *bytes = &data[0] if size else NULL
    cdef int lost = 0, given_up = 0
    if at >= size:
        return "torn", 0
    with nogil:
        given_up = nova_log_find(bytes, size, at + 1, seed, index, &later, &opening)
        if given_up == 0 and opening == <size_t>-1 and later != <size_t>-1:
            lost = nova_log_sector_lost(bytes, at, later, base)
        extent = nova_log_extent(bytes, size)
    extent = extent - at if extent > at else 0
    if given_up or opening != <size_t>-1 or (later != <size_t>-1 and not lost):
        return "damaged", extent
    return "torn", extent
