from libc.stdint cimport uint64_t


cdef extern from "digest.h" nogil:
    ctypedef struct nova_digest:
        uint64_t lo
        uint64_t hi
    nova_digest nova_digest_bytes(const void *p, size_t n, uint64_t seed)
    nova_digest nova_digest_row(const void *key, size_t nkey, const void *path, size_t npath, uint64_t actor_hash,
                                uint64_t count, uint64_t stamp, const void *value, size_t nvalue)
    nova_digest nova_digest_add(nova_digest a, nova_digest b)
    nova_digest nova_digest_sub(nova_digest a, nova_digest b)

# The same for other native modules, which then need not link the kernel.
cdef nova_digest hash_bytes(const void *p, size_t n, uint64_t seed) noexcept nogil
cdef nova_digest hash_row(const void *key, size_t nkey, const void *path, size_t npath, uint64_t actor_hash,
                          uint64_t count, uint64_t stamp, const void *value, size_t nvalue) noexcept nogil


cdef class SetDigest:
    cdef nova_digest total
    cdef readonly uint64_t seed
