from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "digest.h" nogil:
    ctypedef struct nova_digest:
        uint64_t lo
        uint64_t hi
    nova_digest nova_digest_bytes(const void *p, size_t n, uint64_t seed)
    nova_digest nova_digest_row(const void *key, size_t nkey, const void *path, size_t npath, uint64_t actor_hash,
                                uint64_t count, uint64_t stamp, const void *value, size_t nvalue)
    nova_digest nova_digest_add(nova_digest a, nova_digest b)
    nova_digest nova_digest_sub(nova_digest a, nova_digest b)


# Growable bytes; freed by whoever holds it.
cdef struct Bytes:
    uint8_t *at
    size_t size
    size_t room


cdef struct Cursor:
    const uint8_t *at
    const uint8_t *end


# A clock on one key: packed dots, at most one an actor, in no order (keys have few writers).
cdef struct Dots:
    uint64_t *at
    uint32_t size


cdef class Keyspace


cdef class Write:
    cdef readonly Keyspace space
    cdef uint64_t packed
    cdef readonly uint64_t stamp
    cdef Dots context
    cdef readonly uint8_t kind


cdef class Row:
    cdef readonly str path
    cdef readonly bytes value
    cdef readonly Write write
    cdef Row next


cdef class Entry:
    cdef readonly str key
    cdef Row root
    cdef dict rows
    cdef dict drops
    cdef Keyspace space
    cdef readonly uint64_t revision
    cdef readonly uint8_t kind
    cdef bint mixed
    cdef uint16_t leaf


cdef class Keyspace:
    cdef readonly str actor
    cdef uint32_t own
    cdef readonly list actors
    cdef dict indexes
    cdef uint64_t *counts
    cdef uint64_t *hashes
    cdef uint16_t *refs
    cdef uint32_t room
    cdef readonly dict entries
    cdef dict graves
    cdef readonly uint64_t revision
    cdef readonly uint64_t rows_live
    cdef uint64_t stamp_max
    cdef nova_digest total
    cdef nova_digest leaves[1024]
    cdef Bytes body
    cdef list table
    cdef uint64_t batch_first
    cdef uint64_t batch_size
    cdef uint32_t intern(self, str actor) except *
    cdef int forget_from(self, size_t first) except -1
    cdef int learn_touched(self, Dots *context, Entry entry, list puts, list drops, bint clear) except -1
    cdef uint16_t refer(self, uint32_t index) except *
    cdef int put_context(self, Dots *context) except -1
    cdef object supersede(self, Entry entry, Row head, Dots *context, Write write)
    cdef int put_clock(self, Bytes *out) except -1
    cdef void count_row(self, Entry entry, Row row, bint added)
    cdef tuple apply(self, str key, Write write, bint clear, list puts, list drops)
    cdef Entry entry_for(self, str key, uint8_t kind)
    cdef int settle_kind(self, Entry entry) except -1
