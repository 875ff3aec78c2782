from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef class Batch:
    cdef uint8_t *bytes
    cdef size_t used, room
    cdef readonly Py_ssize_t count
    cdef uint32_t index
    cdef uint32_t seed
    cdef bint sealed
    cdef int reserve(self, size_t more) except -1
