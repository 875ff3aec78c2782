from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "blake3.h" nogil:
    ctypedef struct nova_blake3_mode:
        uint32_t words[8]
        uint32_t flags
    nova_blake3_mode nova_blake3_plain()
    nova_blake3_mode nova_blake3_keyed(const uint8_t *key)
    nova_blake3_mode nova_blake3_derive(const void *context, size_t n)
    void nova_blake3(const nova_blake3_mode *mode, const void *p, size_t n, uint8_t *out)
    void nova_blake3_many(const nova_blake3_mode *mode, const uint8_t *const *p, const size_t *n, size_t count,
                          uint8_t *out)


cdef class Chain:
    cdef nova_blake3_mode content_mode, link_mode
    cdef uint8_t last[32]
    cdef readonly uint64_t seq
