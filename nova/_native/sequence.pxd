from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from nova._native.digest cimport nova_digest
from nova._native.vclock cimport nova_reader


cdef extern from "runs.h" nogil:
    ctypedef struct nova_run:
        uint64_t dot
        uint64_t left
        uint64_t right
    ctypedef struct nova_mark:
        uint64_t stamp
        uint64_t hash
        uint32_t value
    ctypedef struct nova_runs:
        nova_run *at
        size_t size
        uint32_t *elements
        size_t elements_size
        size_t elements_room
        nova_mark *marks
        size_t marks_size
    enum:
        NOVA_SEQUENCE_EMEMORY
        NOVA_SEQUENCE_ECOUNT
        NOVA_SEQUENCE_EEVENTS
        NOVA_SEQUENCE_EAGENTS
        NOVA_SEQUENCE_EGAP
        NOVA_SEQUENCE_EBYTES
        NOVA_SEQUENCE_AGENTS_MAX
    uint64_t NOVA_SEQUENCE_ROOT
    uint64_t NOVA_SEQUENCE_COUNT_MASK
    int nova_runs_grow(void **at, size_t size, size_t *room, size_t each, size_t more)
    void nova_runs_free(nova_runs *runs)
    void nova_runs_rename(nova_runs *runs, const uint32_t *agents)
    int nova_runs_write(const nova_runs *runs, const uint32_t *rank, size_t agents, uint8_t **out, size_t *size)
    int nova_runs_read(const uint8_t *p, size_t n, const uint64_t *first, const uint64_t *last, size_t agents,
                       nova_runs *out)


cdef extern from "sequence.h" nogil:
    ctypedef struct nova_sequence:
        pass
    ctypedef struct nova_marked:
        uint64_t start
        uint64_t end
        uint32_t value
    unsigned NOVA_EXPAND_BEFORE
    unsigned NOVA_EXPAND_AFTER
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
    void nova_sequence_stand_for(nova_sequence *s, const uint64_t *hashes)
    void nova_sequence_renumber(nova_sequence *s, const uint32_t *fresh)
    int nova_sequence_mark(nova_sequence *s, uint32_t agent, uint64_t pos, uint64_t n, unsigned expand, uint32_t value,
                           uint64_t hash)
    size_t nova_sequence_marks(const nova_sequence *s)
    void nova_sequence_marked(nova_sequence *s, nova_marked *out)
    int nova_sequence_since(nova_sequence *s, const uint64_t *known, const uint32_t *order, size_t n, int elements,
                            nova_runs *out)
    int nova_sequence_apply(nova_sequence *s, const nova_runs *runs)
    int nova_sequence_load(nova_sequence *s, const nova_runs *runs, const void *elements, unsigned width, uint64_t n)
    nova_digest nova_sequence_digest(const nova_sequence *s)
    int nova_sequence_check(nova_sequence *s)


cdef extern from "marks.h" nogil:
    ctypedef struct nova_painted:
        uint64_t start
        uint64_t end
        uint32_t name
        uint32_t value
    int nova_marks_paint(const nova_marked *marks, size_t n, const uint32_t *name_of, nova_painted *out, size_t *size)


cdef extern from "pack.h" nogil:
    int NOVA_PACK_GAIN_MAX
    size_t nova_pack(const uint8_t *at, size_t n, uint8_t *out)
    int nova_unpack(const uint8_t *at, size_t n, uint8_t *out, size_t room)


cdef class Sequence:
    cdef nova_sequence *events
    cdef readonly str actor
    cdef bytes state_magic
    cdef bytes delta_magic
    cdef str whole              # what it is, for messages, and of what
    cdef str unit
    cdef uint32_t own
    cdef list names             # agent number -> actor
    cdef dict numbers           # and back
    # A state that was read, as far as its elements; its history is read when it is needed.
    cdef bytes unread           # the whole of it, None if there is none
    cdef size_t unread_from     # where its runs begin
    cdef list unread_names
    cdef list unread_lasts
    cdef object unread_elements
    cdef str refused            # why its history was refused
    cdef uint32_t agent(self, str name) except? 0xFFFFFFFF
    cdef int rank(self) except -1
    cdef int ready(self) except -1
    cdef int writable(self) except -1
    cdef int read_history(self) except -1
    cdef int check_range(self, int64_t pos, int64_t n) except -1
    cdef list known_names(self)
    cdef int since(self, dict known, list names, bint elements, nova_runs *out) except -1
    cdef int learn(self, nova_runs *runs, list names, list lasts, object whole) except -1
    cdef bytes runs_bytes(self, nova_runs *runs, list names)
    cdef int read_runs(self, nova_reader *r, list firsts, list lasts, nova_runs *runs) except -1
    # what elements and marks are is the type's
    cdef list whole_bytes(self)
    cdef object read_whole(self, nova_reader *r)
    cdef int load(self, nova_runs *runs, object whole) except -1
    cdef list elements_bytes(self, nova_runs *runs)
    cdef int read_elements(self, nova_reader *r, nova_runs *runs) except -1
    cdef list marks_bytes(self, nova_runs *runs)
    cdef list read_says(self, nova_reader *r)
    cdef uint32_t say(self, bytes raw) except? 0xFFFFFFFF
    cdef int adopt(self, Sequence other, nova_runs *runs) except -1
    cdef int settle(self, bint kept) except -1


cdef struct patch:
    int64_t pos
    int64_t deleted
    int64_t inserted
    unsigned kind               # bytes of a code point of `data`
    const void *data


cdef class RGA(Sequence):
    cdef list says              # number of a mark's name and value -> its bytes
    cdef dict says_numbers      # and back
    cdef int put(self, uint64_t pos, const void *text, unsigned kind, uint64_t n) except -1
    cdef int cut(self, uint64_t pos, uint64_t n) except -1
    cdef Py_ssize_t says_kept   # so many came with events that were kept
    cdef int read_patches(self, list patches, patch *at) except -1
    cdef int read_rows(self, const int64_t[:, ::1] rows, object text, patch *at) except -1
    cdef int put_mark(self, int64_t pos, int64_t n, object name, object value, str expand) except -1


cdef class RGAList(Sequence):
    cdef list values            # number of an element -> its bytes
    cdef uint64_t *hashes       # and their hashes
    cdef size_t hashes_room
    cdef uint32_t number_of(self, bytes raw) except? 0xFFFFFFFF
    cdef int edit(self, uint64_t pos, uint64_t n, list raws) except -1
    cdef list raws(self)
