from libc.stdint cimport uint8_t, uint64_t

from nova._native.digest cimport nova_digest
from nova._native.vclock cimport CausalContext


cdef extern from "crdt.h" nogil:
    int nova_value_check(uint8_t *p, size_t n, int mend)


# One live value: where it is, which write put it there, what it is.
cdef class Row:
    cdef Node node
    cdef bytes leaf
    cdef str actor
    cdef uint64_t count
    cdef uint64_t stamp
    cdef bytes payload


# One container: the root, or a value nested in a map. Rows by leaf, nested containers by (type, key).
cdef class Node:
    cdef Node parent
    cdef int type
    cdef str key
    cdef bytes path
    cdef tuple steps
    cdef dict leaves
    cdef dict kids


# All rows of a replica under one context.
cdef class Store:
    cdef str actor
    cdef CausalContext context
    cdef Node root
    cdef dict live
    cdef dict hashes
    cdef nova_digest total
    cdef Node find(self, tuple steps)
    cdef Node reach(self, tuple steps)
    cdef nova_digest hash(self, Row row) except *
    cdef int put(self, Node node, bytes leaf, str actor, uint64_t count, uint64_t stamp, bytes payload) except -1
    cdef int drop(self, Row row) except -1
    cdef uint64_t take_dot(self) except 0
    cdef int write(self, tuple steps, bytes leaf, uint64_t stamp, bytes payload, list superseded) except -1
    cdef int join(self, CausalContext context, CausalContext kept, list rows) except -1


cdef class Replica:
    cdef Store store
    cdef tuple steps
    cdef list rows(self, bytes leaf)
    cdef int check_root(self) except -1
