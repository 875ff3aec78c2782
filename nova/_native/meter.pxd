from libc.stdint cimport int32_t, uint64_t


cdef class Cell:
    cdef double amount
    cdef readonly object function


cdef class Distribution:
    cdef double *limits
    cdef uint64_t *counts
    cdef size_t n
    cdef uint64_t *bins
    cdef size_t size
    cdef int32_t low
    cdef uint64_t zeros, total
    cdef double added
    cdef int admit(self, int32_t low, int32_t high) except -1
