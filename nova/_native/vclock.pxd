from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "vclock.h" nogil:
    ctypedef int nova_order
    ctypedef struct nova_clock:
        const uint32_t *actors
        const uint64_t *counts
        size_t size
    ctypedef struct nova_span:
        uint64_t first
        uint64_t last
    nova_order nova_vclock_compare(nova_clock a, nova_clock b)
    nova_order nova_counts_compare(const uint64_t *a, const uint64_t *b, size_t n)
    size_t nova_vclock_merge(nova_clock a, nova_clock b, uint32_t *actors, uint64_t *counts)
    size_t nova_vclock_find(const uint32_t *ids, size_t n, uint32_t actor)
    size_t nova_spans_seek(const nova_span *spans, size_t n, uint64_t count)
    size_t nova_spans_union(const nova_span *a, size_t na, const nova_span *b, size_t nb, nova_span *out)
    size_t nova_spans_minus(const nova_span *a, size_t na, const nova_span *b, size_t nb, nova_span *out)
    bint nova_spans_cover(const nova_span *a, size_t na, const nova_span *b, size_t nb)


# Which actors a clock names, as ascending local ids; shared by all clocks derived from one another.
cdef class ActorSet:
    cdef uint32_t *ids
    cdef size_t size


cdef class VectorClock:
    cdef ActorSet actors
    cdef uint64_t *counts           # aligned to 64 bytes where they are many
    cdef Py_hash_t hashed


cdef class DottedVersionVector:
    cdef VectorClock past
    cdef VectorClock whole          # vector and dot as one, where there is no gap between them
    cdef object actor               # of the dot; None: there is none
    cdef uint64_t count
    cdef bint within(self, DottedVersionVector other)
    cdef uint64_t ceiling(self, actor)


cdef class HybridLogicalClock:
    cdef uint64_t last_stamp
    cdef readonly uint64_t drift_ms_max
    cdef uint64_t tick_c(self, int64_t wall_ns) except? 0
    cdef uint64_t receive_c(self, uint64_t stamp, int64_t wall_ns) except? 0


# The known events of one actor. Owns its spans.
cdef class Spans:
    cdef nova_span *at
    cdef size_t size
    cdef bint has(self, uint64_t count) noexcept
    cdef int join(self, const nova_span *other, size_t size) except -1
    cdef int cut(self, const nova_span *other, size_t size) except -1
    cdef Spans copy(self)


cdef class CausalContext:
    cdef dict actors                # str -> Spans, never empty
    cdef bint has(self, str actor, uint64_t count)
    cdef uint64_t last(self, str actor)
    cdef int learn(self, str actor, uint64_t first, uint64_t last) except -1
    cdef int join(self, CausalContext other) except -1
    cdef bint covers_c(self, CausalContext other)
    cdef CausalContext clone(self)


# Bytes that carry magic, version and check sum; for the other native modules.
cdef extern from "bytes.h" nogil:
    ctypedef struct nova_reader:
        const uint8_t *at
        const uint8_t *end
        int ok
    nova_reader nova_reader_of(const void *p, size_t n)
    size_t nova_left(const nova_reader *r)
    const uint8_t *nova_take(nova_reader *r, uint64_t n)
    uint8_t nova_take_byte(nova_reader *r)
    uint64_t nova_take_number(nova_reader *r)
    uint64_t nova_take_size(nova_reader *r, size_t each)
    size_t nova_put_number(uint8_t *out, uint64_t value)
    uint64_t nova_load64le(const void *p)
    void nova_store64le(void *p, uint64_t v)

cdef bytes number(uint64_t value)
cdef bytes seal(bytes magic, list parts)
cdef int unseal(object data, bytes magic, str what, nova_reader *r) except -1
cdef object malformed(str what, str why)
cdef list context_parts(CausalContext context)
cdef CausalContext read_context(nova_reader *r)
cdef object as_actor(object actor)
cdef CausalContext as_context(object context)
cdef object actor_name(uint32_t id)
cdef ActorSet actor_set(const uint32_t *ids, size_t size)
cdef VectorClock clock_of(ActorSet actors, const uint64_t *counts)
