from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from nova._native.digest cimport nova_digest


cdef extern from "sequence.h" nogil:
    ctypedef struct nova_sequence:
        pass
    ctypedef struct nova_sequence_run:
        uint64_t dot
        uint64_t left
        uint64_t right
        uint32_t len
        uint8_t removal
        uint8_t gone
    ctypedef struct nova_sequence_runs:
        nova_sequence_run *at
        size_t size
    enum:
        NOVA_SEQUENCE_EMEMORY
        NOVA_SEQUENCE_ECOUNT
        NOVA_SEQUENCE_EEVENTS
        NOVA_SEQUENCE_EAGENTS
        NOVA_SEQUENCE_EGAP
    void nova_sequence_runs_free(nova_sequence_runs *runs)
    nova_sequence *nova_sequence_new()
    void nova_sequence_free(nova_sequence *s)
    bint nova_sequence_broken(const nova_sequence *s)
    int nova_sequence_add_agent(nova_sequence *s, uint64_t salt)
    void nova_sequence_forget_agents(nova_sequence *s, uint32_t first)
    void nova_sequence_rank(nova_sequence *s, uint32_t agent, uint32_t rank)
    uint64_t nova_sequence_count(const nova_sequence *s, uint32_t agent)
    uint64_t nova_sequence_length(const nova_sequence *s)
    size_t nova_sequence_spans(const nova_sequence *s)
    size_t nova_sequence_memory(const nova_sequence *s)
    int nova_sequence_insert(nova_sequence *s, uint32_t agent, uint64_t pos, const void *elements, unsigned width, uint64_t n)
    int nova_sequence_delete(nova_sequence *s, uint32_t agent, uint64_t pos, uint64_t n)
    const void *nova_sequence_view(nova_sequence *s, unsigned *width)
    int nova_sequence_since(nova_sequence *s, const uint64_t *known, const uint32_t *order, size_t n,
                            nova_sequence_runs *out)
    int nova_sequence_apply(nova_sequence *s, const nova_sequence_runs *runs)
    nova_digest nova_sequence_digest(const nova_sequence *s)
    int nova_sequence_runs_write(const nova_sequence_runs *runs, const uint32_t *rank, uint8_t **out, size_t *size)
    int nova_sequence_runs_read(const uint8_t *p, size_t n, const uint64_t *first, const uint64_t *last, size_t agents,
                                nova_sequence_runs *out)
    int nova_sequence_check(nova_sequence *s)
    uint64_t NOVA_SEQUENCE_ROOT


cdef class RGA:
    cdef nova_sequence *events
    cdef readonly str actor
    cdef uint32_t own
    cdef list names             # agent number -> actor
    cdef dict numbers           # and back
    cdef uint32_t agent(self, str name) except? 0xFFFFFFFF
    cdef int rank(self) except -1
    cdef int ready(self) except -1
    cdef int put(self, uint64_t pos, str text) except -1
    cdef int cut(self, uint64_t pos, uint64_t n) except -1
    cdef list known_names(self)
    cdef bytes runs_bytes(self, nova_sequence_runs *runs, list names)
    cdef int learn(self, nova_sequence_runs *runs, list names, list lasts) except -1
    cdef int since(self, dict known, list names, nova_sequence_runs *out) except -1
