"""The hash chain of the audit trail, and the hash. `nova.conflict.audit` is its face and describes a record."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from nova.errors import LimitError, UsageError

cdef enum:
    HASH = 32
    GROUP = 256         # records that are checked at a time: their hashes run side by side
    HASH_AT = 4
    PREVIOUS_AT = 36
    CONTENT_AT = 68
    FIELDS = 6
    PREFIX_BYTES_MAX = 1 + 9 + 9 + 3 * 5

WHOLE, MALFORMED, ALTERED, UNLINKED, MISNUMBERED = range(5)
MAGIC = b"NAU\x02"

cdef char *CONTENT_PURPOSE = b"nova audit 2: content of a record"
cdef char *LINK_PURPOSE = b"nova audit 2: link of a chain"


def blake3(data, bytes key=None):
    """BLAKE3 of a bytes-like object, 32 bytes; with a key of 32 bytes the keyed hash. Raises UsageError for another."""
    cdef nova_blake3_mode mode = nova_blake3_plain()
    if key is not None:
        if PyBytes_GET_SIZE(key) != HASH:
            raise UsageError(f"a key of {PyBytes_GET_SIZE(key)} bytes; BLAKE3 takes {HASH}")
        mode = nova_blake3_keyed(<uint8_t *>PyBytes_AS_STRING(key))
    return hashed(&mode, data)


def blake3_derive(str context not None, material):
    """A key of 32 bytes for the purpose that `context` names, from key material (BLAKE3's derive_key)."""
    cdef Py_ssize_t size
    cdef const char *text = PyUnicode_AsUTF8AndSize(context, &size)
    cdef nova_blake3_mode mode = nova_blake3_derive(text, size)
    return hashed(&mode, material)


cdef bytes hashed(const nova_blake3_mode *mode, object data):
    cdef Py_buffer view
    cdef bytes out = PyBytes_FromStringAndSize(NULL, HASH)
    cdef uint8_t *into = <uint8_t *>PyBytes_AS_STRING(out)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    with nogil:
        nova_blake3(mode, view.buf, view.len, into)
    PyBuffer_Release(&view)
    return out


cdef inline uint8_t *put_big(uint8_t *at, uint64_t value, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        at[i] = <uint8_t>(value >> (8 * (count - 1 - i)))
    return at + count


cdef inline uint8_t *put_uint(uint8_t *at, uint64_t value) noexcept nogil:
    """An integer as MessagePack has it, in its shortest form."""
    if value < 0x80:
        at[0] = <uint8_t>value
        return at + 1
    if value <= 0xFF:
        at[0] = 0xCC
        return put_big(at + 1, value, 1)
    if value <= 0xFFFF:
        at[0] = 0xCD
        return put_big(at + 1, value, 2)
    if value >> 32 == 0:
        at[0] = 0xCE
        return put_big(at + 1, value, 4)
    at[0] = 0xCF
    return put_big(at + 1, value, 8)


cdef inline uint8_t *put_int(uint8_t *at, int64_t value) noexcept nogil:
    if value >= 0:
        return put_uint(at, <uint64_t>value)
    if value >= -32:
        at[0] = <uint8_t>value
        return at + 1
    if value >= -128:
        at[0] = 0xD0
        return put_big(at + 1, <uint64_t>value, 1)
    if value >= -32768:
        at[0] = 0xD1
        return put_big(at + 1, <uint64_t>value, 2)
    if value >= -(<int64_t>1 << 31):
        at[0] = 0xD2
        return put_big(at + 1, <uint64_t>value, 4)
    at[0] = 0xD3
    return put_big(at + 1, <uint64_t>value, 8)


cdef inline uint8_t *put_text(uint8_t *at, const char *text, size_t size) noexcept nogil:
    if size < 32:
        at[0] = <uint8_t>(0xA0 | size)
        at += 1
    elif size <= 0xFF:
        at[0] = 0xD9
        at = put_big(at + 1, size, 1)
    elif size <= 0xFFFF:
        at[0] = 0xDA
        at = put_big(at + 1, size, 2)
    else:
        at[0] = 0xDB
        at = put_big(at + 1, size, 4)
    memcpy(at, text, size)
    return at + size


cdef inline bint number_of(const uint8_t *at, size_t size, uint64_t *seq) noexcept nogil:
    """The number that a record calls itself; whether it has one."""
    cdef size_t count, i
    if size < 2 or at[0] != (0x90 | FIELDS):
        return False
    if at[1] < 0x80:
        seq[0] = at[1]
        return True
    if at[1] < 0xCC or at[1] > 0xCF:
        return False
    count = <size_t>1 << (at[1] - 0xCC)
    if size < 2 + count:
        return False
    seq[0] = 0
    for i in range(count):
        seq[0] = seq[0] << 8 | at[2 + i]
    return True


cdef bytes record_of(uint64_t seq, str type, int64_t time_ms, str conflict_id, str resource_id, bytes body):
    """A record but for its two hashes."""
    cdef Py_ssize_t kind_size, conflict_size, resource_size
    cdef const char *kind = PyUnicode_AsUTF8AndSize(type, &kind_size)
    cdef const char *conflict = PyUnicode_AsUTF8AndSize(conflict_id, &conflict_size)
    cdef const char *resource = PyUnicode_AsUTF8AndSize(resource_id, &resource_size)
    cdef uint8_t fixed[1 + 9 + 9]
    cdef uint8_t *at = fixed
    cdef uint8_t *start
    cdef bytes out
    if kind_size + conflict_size + resource_size > 0xFFFF:
        raise LimitError(
            f"the ids of an audit event take {kind_size + conflict_size + resource_size} bytes; the limit is {0xFFFF}"
        )
    at[0] = 0x90 | FIELDS
    at = put_int(put_uint(at + 1, seq), time_ms)
    out = PyBytes_FromStringAndSize(
        NULL,
        CONTENT_AT + (at - fixed) + text_bytes(kind_size) + text_bytes(conflict_size) + text_bytes(resource_size)
        + PyBytes_GET_SIZE(body),
    )
    start = <uint8_t *>PyBytes_AS_STRING(out)
    memcpy(start, PyBytes_AS_STRING(MAGIC), HASH_AT)
    memcpy(start + CONTENT_AT, fixed, at - fixed)
    at = start + CONTENT_AT + (at - fixed)
    at = put_text(at, kind, kind_size)
    at = put_text(at, conflict, conflict_size)
    at = put_text(at, resource, resource_size)
    memcpy(at, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    return out


cdef inline Py_ssize_t text_bytes(Py_ssize_t size) noexcept nogil:
    return size + (1 if size < 32 else 2 if size <= 0xFF else 3 if size <= 0xFFFF else 5)


cdef class Chain:
    """The end of a chain: its newest hash and number. A record's hash covers the hash of its content and the hash before.

    head, seq  as of the newest record
    key        up to 64 bytes; a key for contents and one for links are derived from it
    """

    def __init__(self, bytes head not None, object seq=0, *, bytes key not None=b""):
        if PyBytes_GET_SIZE(key) > 64:
            raise UsageError(f"the audit key has {PyBytes_GET_SIZE(key)} bytes; give at most 64")
        self.content_mode = purpose(CONTENT_PURPOSE, key)
        self.link_mode = purpose(LINK_PURPOSE, key)
        self.go_on(head, seq)

    @property
    def head(self):
        """Hash of the newest record."""
        return PyBytes_FromStringAndSize(<char *>self.last, HASH)

    def go_on(self, bytes head not None, object seq):
        """Continue from another place. Raises UsageError if it cannot be one."""
        if PyBytes_GET_SIZE(head) != HASH or not 0 <= seq < 1 << 63:
            raise UsageError(
                f"a chain goes on from {HASH} bytes of hash and a count from 0, not {PyBytes_GET_SIZE(head)} and {seq}"
            )
        memcpy(self.last, PyBytes_AS_STRING(head), HASH)
        self.seq = seq

    def link(self, str type not None, int64_t time_ms, str conflict_id not None, str resource_id not None,
             bytes body not None):
        """The next record, around a body that is MessagePack."""
        cdef bytes out = record_of(self.seq + 1, type, time_ms, conflict_id, resource_id, body)
        cdef uint8_t *start = <uint8_t *>PyBytes_AS_STRING(out)
        cdef uint8_t pair[2 * HASH]
        nova_blake3(&self.content_mode, start + CONTENT_AT, PyBytes_GET_SIZE(out) - CONTENT_AT, pair + HASH)
        memcpy(pair, self.last, HASH)
        nova_blake3(&self.link_mode, pair, 2 * HASH, self.last)
        memcpy(start + HASH_AT, self.last, HASH)
        memcpy(start + PREVIOUS_AT, pair, HASH)
        self.seq += 1
        return out

    def link_many(self, events not None):
        """The next records, of (type, time_ms, conflict_id, resource_id, body). All of them, or none if one is wrong."""
        cdef list out = []
        cdef uint64_t seq = self.seq
        cdef uint8_t last[HASH]
        cdef uint8_t pair[2 * HASH]
        cdef uint8_t contents[GROUP * HASH]
        cdef const uint8_t *at[GROUP]
        cdef size_t sizes[GROUP]
        cdef size_t held = 0, i, first
        cdef uint8_t *start
        cdef bytes record
        memcpy(last, self.last, HASH)
        for type, time_ms, conflict_id, resource_id, body in events:
            seq += 1
            out.append(record_of(seq, type, time_ms, conflict_id, resource_id, body))
        for first in range(0, len(out), GROUP):
            held = min(<size_t>GROUP, len(out) - first)
            for i in range(held):
                record = <bytes>out[first + i]
                at[i] = <const uint8_t *>PyBytes_AS_STRING(record) + CONTENT_AT
                sizes[i] = PyBytes_GET_SIZE(record) - CONTENT_AT
            nova_blake3_many(&self.content_mode, at, sizes, held, contents)
            for i in range(held):
                start = <uint8_t *>PyBytes_AS_STRING(<bytes>out[first + i])
                memcpy(pair, last, HASH)
                memcpy(pair + HASH, contents + HASH * i, HASH)
                nova_blake3(&self.link_mode, pair, 2 * HASH, last)
                memcpy(start + HASH_AT, last, HASH)
                memcpy(start + PREVIOUS_AT, pair, HASH)
        memcpy(self.last, last, HASH)
        self.seq = seq
        return out

    def check(self, records not None, uint64_t seq, bytes last not None):
        """Check records that shall follow record `seq` with hash `last`: (how many do, what is wrong then, hash of the
        last good one)."""
        cdef tuple held = tuple(records)
        cdef const uint8_t *at[GROUP]
        cdef const uint8_t *pairs_at[GROUP]
        cdef size_t sizes[GROUP]
        cdef size_t pair_sizes[GROUP]
        cdef uint8_t contents[GROUP * HASH]
        cdef uint8_t pairs[GROUP * 2 * HASH]
        cdef uint8_t hashes[GROUP * HASH]
        cdef uint8_t before[HASH]
        cdef size_t first, count, i, good = 0, total = len(held)
        cdef uint64_t number = 0
        cdef int fault = 0
        if PyBytes_GET_SIZE(last) != HASH:
            raise UsageError(f"a hash of {PyBytes_GET_SIZE(last)} bytes; it has {HASH}")
        memcpy(before, PyBytes_AS_STRING(last), HASH)
        for first in range(0, total, GROUP):
            count = 0
            for i in range(first, min(total, first + GROUP)):
                record = held[i]
                if (not PyBytes_CheckExact(record) or PyBytes_GET_SIZE(record) <= CONTENT_AT
                        or memcmp(PyBytes_AS_STRING(record), PyBytes_AS_STRING(MAGIC), HASH_AT)):
                    fault = MALFORMED
                    break
                at[count] = <const uint8_t *>PyBytes_AS_STRING(record) + CONTENT_AT
                sizes[count] = PyBytes_GET_SIZE(record) - CONTENT_AT
                count += 1
            with nogil:
                nova_blake3_many(&self.content_mode, at, sizes, count, contents)
                for i in range(count):
                    memcpy(pairs + 2 * HASH * i, at[i] - HASH, HASH)
                    memcpy(pairs + 2 * HASH * i + HASH, contents + HASH * i, HASH)
                    pairs_at[i] = pairs + 2 * HASH * i
                    pair_sizes[i] = 2 * HASH
                nova_blake3_many(&self.link_mode, pairs_at, pair_sizes, count, hashes)
                for i in range(count):
                    if memcmp(hashes + HASH * i, at[i] - 2 * HASH, HASH):
                        fault = 2
                    elif memcmp(before, at[i] - HASH, HASH):
                        fault = 3
                    elif not number_of(at[i], sizes[i], &number) or number != seq + 1:
                        fault = 4
                    else:
                        memcpy(before, hashes + HASH * i, HASH)
                        seq += 1
                        good += 1
                        continue
                    break
            if fault:
                break
        return good, fault, PyBytes_FromStringAndSize(<char *>before, HASH)


cdef nova_blake3_mode purpose(char *name, bytes key):
    cdef uint8_t derived[HASH]
    cdef nova_blake3_mode mode = nova_blake3_derive(name, len(name))
    nova_blake3(&mode, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), derived)
    return nova_blake3_keyed(derived)
