from libc.stdint cimport uint32_t, uint64_t

from nova._native.digest cimport nova_digest


cdef extern from "sketch.h" nogil:
    enum: NOVA_SKETCH_WORDS
    enum: NOVA_CELL_WIRE
    enum: NOVA_CELLS_MAX
    ctypedef struct nova_cell:
        uint64_t ids
        uint32_t checks
        uint32_t count
    void nova_sketch_toggle(uint64_t *words, uint64_t id)
    int nova_sketch_decode(const uint64_t *words, uint64_t *ids)
    void nova_cells_toggle(nova_cell *cells, size_t n, uint64_t seed, uint64_t id, uint32_t weight)
    int nova_cells_decode(nova_cell *cells, size_t n, uint64_t seed, uint32_t *stack, uint64_t *out, size_t *plus,
                          size_t *minus)


cdef class Reconciler:
    cdef readonly uint64_t seed
    cdef size_t room                    # cells that are kept
    cdef uint64_t size
    cdef nova_digest total              # of the ids' digests
    cdef uint64_t words[10]
    cdef nova_cell *table
    cdef void toggle(self, uint64_t id, uint32_t weight) noexcept nogil
    cdef nova_digest digest_of(self, uint64_t id) noexcept nogil
    cdef int check_stock(self, uint64_t n, uint32_t weight) except -1
    cdef void join(self, Reconciler news) noexcept
    cdef object many(self, object ids, uint32_t weight)
    cdef object by_sketch(self, const uint64_t *words, nova_digest total)
    cdef object by_cells(self, nova_cell *cells, size_t n, nova_digest total)
