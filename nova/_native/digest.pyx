"""128-bit digests of small things and of sets of them. `nova.digest` is its face."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from nova.errors import UsageError


cdef extern from "bytes.h" nogil:
    uint64_t nova_load64le(const void *p)
    void nova_store64le(void *p, uint64_t v)


cdef nova_digest hash_bytes(const void *p, size_t n, uint64_t seed) noexcept nogil:
    return nova_digest_bytes(p, n, seed)


cdef nova_digest hash_row(const void *key, size_t nkey, const void *path, size_t npath, uint64_t actor_hash,
                          uint64_t count, uint64_t stamp, const void *value, size_t nvalue) noexcept nogil:
    return nova_digest_row(key, nkey, path, npath, actor_hash, count, stamp, value, nvalue)


cdef int digest_of(object data, uint64_t seed, nova_digest *out) except -1:
    cdef Py_buffer view
    if PyBytes_CheckExact(data):
        out[0] = nova_digest_bytes(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), seed)
        return 0
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    out[0] = nova_digest_bytes(view.buf, view.len, seed)
    PyBuffer_Release(&view)
    return 0


cdef bytes pack(nova_digest d):
    cdef char raw[16]
    nova_store64le(raw, d.lo)
    nova_store64le(raw + 8, d.hi)
    return PyBytes_FromStringAndSize(raw, 16)


def digest128(data, uint64_t seed=0):
    """The keyed 128-bit digest of one bytes-like object, little-endian. No signature: the seed's owner can collide it."""
    cdef nova_digest out
    digest_of(data, seed, &out)
    return pack(out)


cdef class SetDigest:
    """The digest of a set of bytes that comes and goes: a sum, so order does not matter and `remove` undoes `add`.

    It counts: a member added twice is in it twice. Two sets with equal digests are equal but for a chance of 2^-128.
    """

    def __init__(self, members=(), *, uint64_t seed=0):
        self.total.lo = self.total.hi = 0
        self.seed = seed
        for member in members:
            self.add(member)

    def add(self, data):
        """Take one member in."""
        cdef nova_digest member
        digest_of(data, self.seed, &member)
        self.total = nova_digest_add(self.total, member)

    def remove(self, data):
        """Take one member out; it must be in (the digest cannot tell)."""
        cdef nova_digest member
        digest_of(data, self.seed, &member)
        self.total = nova_digest_sub(self.total, member)

    def update(self, SetDigest other not None):
        """Take in all members of another digest under the same seed."""
        if other.seed != self.seed:
            raise UsageError(f"a digest under seed {other.seed} cannot join one under {self.seed}; use one seed for both")
        self.total = nova_digest_add(self.total, other.total)

    def to_bytes(self):
        """16 bytes, little-endian."""
        return pack(self.total)

    @staticmethod
    def from_bytes(bytes data not None, *, uint64_t seed=0):
        """Read what `to_bytes` wrote under the same seed."""
        cdef SetDigest out = SetDigest.__new__(SetDigest)
        if PyBytes_GET_SIZE(data) != 16:
            raise UsageError(f"a set digest of {len(data)} bytes; it has 16; pass what to_bytes returned")
        out.seed = seed
        out.total.lo = nova_load64le(PyBytes_AS_STRING(data))
        out.total.hi = nova_load64le(PyBytes_AS_STRING(data) + 8)
        return out

    def hex(self):
        """32 hexadecimal digits of `to_bytes`."""
        return pack(self.total).hex()

    def __eq__(self, other):
        if not isinstance(other, SetDigest):
            return NotImplemented
        return (self.total.lo == (<SetDigest>other).total.lo and self.total.hi == (<SetDigest>other).total.hi
                and self.seed == (<SetDigest>other).seed)

    __hash__ = None

    def __repr__(self):
        return f"SetDigest({self.hex()})"
