from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nova._native.digest cimport nova_digest
from nova._native.vclock cimport CausalContext, nova_span


cdef extern from "crdt.h" nogil:
    enum:
        NOVA_VALUE_MAPS
    int nova_value_check(uint8_t *p, size_t n, int mend)
    bint nova_is_utf8(const uint8_t *p, size_t n)


cdef extern from "rows.h" nogil:
    enum:
        NOVA_ROWS_NOMEM
        NOVA_ROWS_FULL
        NOVA_ROWS_TWICE
        NOVA_ROWS_STAMPED
        NOVA_WHO_NONE
        NOVA_BOX_PLAIN
        NOVA_BOX_LAST
        NOVA_BOX_LAST_ONE
        NOVA_BOX_TOTALS
    ctypedef struct nova_rows:
        pass
    ctypedef struct nova_row:
        uint32_t box
        uint32_t who
        uint64_t count
        uint64_t stamp
        const uint8_t *leaf
        const uint8_t *value
        size_t nleaf
        size_t nvalue
    ctypedef struct nova_known:
        const nova_span *at
        size_t size
    ctypedef struct nova_plan:
        uint32_t who
        uint64_t count
        uint64_t stamp
    void nova_rows_seed(uint64_t seed)
    nova_rows *nova_rows_new(int type, int rule, int nested)
    int nova_rows_expect(nova_rows *r, size_t rows, int bare)
    void nova_rows_free(nova_rows *r)
    nova_rows *nova_rows_copy(const nova_rows *r)
    size_t nova_rows_size(const nova_rows *r)
    size_t nova_rows_bytes(const nova_rows *r)
    uint32_t nova_rows_writer(nova_rows *r, const char *name, size_t n)
    uint32_t nova_rows_writers(const nova_rows *r)
    nova_known nova_rows_known(const nova_rows *r, uint32_t who)
    uint64_t nova_rows_last(const nova_rows *r, uint32_t who)
    int nova_rows_learn(nova_rows *r, uint32_t who, const nova_span *spans, size_t n)
    bint nova_rows_covers(const nova_rows *r, const nova_rows *o, const uint32_t *map)
    uint32_t nova_rows_box(nova_rows *r, uint32_t parent, int type, int rule, const void *key, size_t n, int make)
    int nova_rows_box_type(const nova_rows *r, uint32_t box)
    const uint8_t *nova_rows_box_key(const nova_rows *r, uint32_t box, size_t *n)
    size_t nova_rows_box_size(const nova_rows *r, uint32_t box)
    size_t nova_rows_box_keys(const nova_rows *r, uint32_t box)
    uint32_t nova_rows_first(const nova_rows *r, uint32_t box)
    uint32_t nova_rows_next(const nova_rows *r, uint32_t at)
    uint32_t nova_rows_box_of(const nova_rows *r, uint32_t at)
    uint32_t nova_rows_find(const nova_rows *r, uint32_t box, const void *leaf, size_t n)
    uint32_t nova_rows_sibling(const nova_rows *r, uint32_t at)
    uint32_t nova_rows_newest(const nova_rows *r, uint32_t who)
    void nova_rows_view(const nova_rows *r, uint32_t at, nova_row *row)
    bint nova_rows_outranks(const nova_rows *r, uint32_t a, uint32_t b)
    bint nova_rows_has(const nova_rows *r, uint32_t who, uint64_t count)
    int nova_rows_put(nova_rows *r, const nova_row *row)
    int nova_rows_renew(nova_rows *r, uint32_t at, const nova_row *row)
    int nova_rows_replace(nova_rows *r, const nova_row *row)
    void nova_rows_drop(nova_rows *r, uint32_t at)
    void nova_rows_sweep(nova_rows *r, uint32_t at)
    size_t nova_rows_drop_key(nova_rows *r, uint32_t box, const void *leaf, size_t n)
    int nova_rows_tidy(nova_rows *r)
    nova_digest nova_rows_digest(nova_rows *r)
    void nova_rows_begin_log(nova_rows *r)
    bint nova_rows_since(const nova_rows *r, const nova_known *known, size_t *from_)
    ctypedef struct nova_dropped:
        nova_span span
        uint32_t who
    nova_dropped *nova_rows_dropped(const nova_rows *r, const nova_known *known, size_t from_, size_t *size)
    int nova_rows_plan(nova_rows *r, nova_rows *o, const uint32_t *map, const nova_known *kept, nova_plan *plan)
    int nova_rows_join(nova_rows *r, nova_rows *o, const uint32_t *map, const nova_plan *plan)
    void nova_plan_free(nova_plan *plan)
    uint8_t *nova_rows_wire(const nova_rows *r, const nova_known *known, const uint32_t *rank, size_t *rows, size_t *size)
    nova_span *nova_rows_kept(const nova_rows *r, uint32_t who, nova_known known, size_t *size)
    uint32_t *nova_rows_sorted(const nova_rows *r, uint32_t box, size_t *size)


cdef extern from "cell.h" nogil:
    enum:
        NOVA_CELL_WRITERS
        NOVA_CELL_ROWS
        NOVA_CELL_VALUE
        NOVA_CELL_SAME
        NOVA_CELL_CHANGED
    ctypedef struct nova_cell_writer:
        const char *name
        void *owner
        size_t nname
        uint64_t last
    ctypedef struct nova_cell_row:
        uint64_t count
        uint64_t stamp
        uint8_t who
        uint8_t size
        uint8_t value[1]                # NOVA_CELL_VALUE of them
    ctypedef struct nova_cell:
        uint8_t nwriters
        uint8_t nrows
        uint8_t me
        uint8_t last_one
        nova_cell_row rows[1]
        nova_cell_writer writers[1]
    int nova_cell_merge(nova_cell *c, const nova_cell *o)


cdef extern from "totals.h" nogil:
    enum:
        NOVA_TOTALS_TWICE
        NOVA_TOTALS_OURS
        NOVA_TOTALS_NOMEM
        NOVA_TOTALS_SAME
        NOVA_TOTALS_CHANGED
        NOVA_ID_NONE
    ctypedef struct nova_total:
        uint64_t last
        uint64_t up
        uint64_t down
    ctypedef struct nova_totals:
        pass
    uint32_t nova_ids_take(uint64_t name_hash)
    void nova_ids_hold(uint32_t id)
    void nova_ids_drop(uint32_t id)
    uint32_t nova_ids_idle()
    nova_totals *nova_totals_new(int kinds)
    void nova_totals_free(nova_totals *t)
    nova_totals *nova_totals_copy(const nova_totals *t)
    size_t nova_totals_size(const nova_totals *t)
    size_t nova_totals_bytes(const nova_totals *t)
    nova_total nova_totals_get(const nova_totals *t, uint32_t id)
    int nova_totals_set(nova_totals *t, uint32_t id, nova_total total)
    int nova_totals_next(const nova_totals *t, uint32_t *id, nova_total *total)
    void nova_totals_sum(const nova_totals *t, uint64_t *up, uint64_t *down)
    size_t nova_totals_value(const nova_totals *t, const nova_total *total, uint8_t *out)
    nova_digest nova_totals_digest(nova_totals *t)
    ctypedef struct nova_totals_plan:
        pass
    int nova_totals_find_news(nova_totals *t, nova_totals *o, uint32_t me, nova_totals_plan *plan)
    int nova_totals_take_news(nova_totals *t, nova_totals_plan *plan)
    void nova_totals_plan_free(nova_totals_plan *plan)


# The kernel's rows, and the names of their writers.
cdef bytes pack(object value)
cdef int check_value(const uint8_t *at, size_t size, bint element) noexcept nogil


# What a thread may have for itself.
cdef class Claimed:
    cdef size_t claims              # of the thread that has it
    cdef unsigned long owner        # that thread
    cdef PyThread_type_lock lock    # held as long as there are claims; made by the first one
    cdef size_t waiting             # threads that will go on with it


cdef class Store(Claimed):          # as long as threads wait for it a replica must not take another form
    cdef nova_rows *rows
    cdef int type
    cdef object actor               # str, or None: nobody writes here
    cdef uint32_t me                # its number, if it wrote or was heard of
    cdef dict numbers               # str -> number of a writer
    cdef list names                 # and back; they own the bytes that the kernel points to
    cdef uint64_t serial            # which store this is; a copy is another one
    cdef uint64_t version           # goes up when something is learned
    cdef bint broken                # memory ran out in the middle of a join
    cdef uint32_t *map              # numbers of another store's writers here
    cdef bint map_whole             # all of them have one
    cdef size_t map_size
    cdef size_t map_of_mine
    cdef uint64_t map_of
    cdef uint64_t seen              # a store that held nothing new at `seen_version`
    cdef uint64_t seen_version
    cdef uint32_t writer(self, str name) except? 0xFFFFFFFF
    cdef int learn(self, uint32_t who, const nova_span *spans, size_t n) except -1
    cdef uint64_t take_dot(self) except 0
    cdef const uint32_t *map_from(self, Store other, bint make) except? NULL
    cdef bint covers(self, Store other) except -1
    cdef int join(self, Store other, const nova_known *kept) except -1
    cdef int add(self, nova_row *row, uint32_t how) except -1


# A register that is small and honest. It holds the names of its writers.
cdef class Cell:
    cdef int type
    cdef object actor
    cdef nova_cell state
    cdef int writer(self, str name, uint64_t last) except -1
    cdef uint64_t take_dot(self) except 0
    cdef Store rows(self)
    cdef Cell copy(self, object actor)


# A counter that is honest. Its writers are numbered for the whole process.
cdef class Totals(Claimed):
    cdef int type
    cdef object actor
    cdef nova_totals *totals
    cdef uint32_t me                # the number of our actor, which we hold
    cdef uint64_t serial            # as in Store
    cdef uint64_t version
    cdef uint64_t seen
    cdef uint64_t seen_version
    cdef int begin(self, int type, object actor) except -1
    cdef int count(self, uint64_t more, uint64_t less) except -1
    cdef object value(self)
    cdef bint merge(self, Totals other) except -1
    cdef Store rows(self)
    cdef Totals copy(self, object actor)


# A root has its state as rows in `store`, or in `cell` or `totals`, and then `store` is None. One that is nested has
# its root's.
cdef class Replica:
    cdef Store store
    cdef Cell cell
    cdef Totals totals
    cdef tuple steps                # (type, key) from the root; empty: this is the root
    cdef uint32_t box(self, bint make) except? 0xFFFFFFFF
    cdef int check_root(self) except -1
    cdef int kind(self) noexcept
    cdef CausalContext known(self)
    cdef Store rows(self)
    cdef Store grow(self)
    cdef int shrink(self) except -1
