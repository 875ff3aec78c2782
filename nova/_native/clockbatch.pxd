from libc.stdint cimport int8_t, uint64_t


cdef extern from "clockbatch.h" nogil:
    ctypedef struct nova_clock_batch:
        void *blocks
        const uint64_t *base
        size_t rows
        size_t columns
        unsigned width
    size_t nova_batch_lanes(unsigned width)
    size_t nova_batch_bytes(size_t rows, size_t columns, unsigned width)
    uint64_t nova_batch_get(const nova_clock_batch *b, size_t row, size_t column)
    void nova_batch_set(const nova_clock_batch *b, size_t row, size_t column, uint64_t count)
    void nova_batch_compare(const nova_clock_batch *b, size_t first, size_t last, const uint64_t *counts, bint more,
                            bint turned, int8_t *out)
    void nova_batch_compare_pairs(const nova_clock_batch *a, const nova_clock_batch *b, int8_t *out)
    void nova_batch_fold(const nova_clock_batch *b, bint least, uint64_t *out)
    void nova_batch_merge_pairs(const nova_clock_batch *a, const nova_clock_batch *b, const nova_clock_batch *out)
    void nova_batch_copy(const nova_clock_batch *src, const nova_clock_batch *to)
