from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from nova._native.digest cimport nova_digest
from nova._native.reconcile cimport Reconciler


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
    cdef nova_digest digest         # once it is counted


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
    cdef void *before               # in its key range, not owned
    cdef void *after


cdef class Keyspace:
    cdef readonly str actor
    cdef uint32_t own
    cdef readonly list actors
    cdef list lives  # by actor: its node and incarnation, see life_of
    cdef dict floors  # node -> the incarnation up to which its actors are retired
    cdef dict indexes
    cdef uint64_t *counts
    cdef uint64_t *hashes
    cdef uint16_t *refs
    cdef uint32_t room
    cdef dict entries
    cdef dict graves
    cdef readonly uint64_t revision
    cdef readonly uint64_t rows_live
    cdef uint64_t stamp_max
    cdef nova_digest total
    cdef nova_digest leaves[1024]
    cdef void *heads[1024]          # first entry of each key range
    cdef Reconciler differ          # the set of rows as it was before `notes`, or None
    cdef uint64_t *notes            # ids that came (top bit set) and went since then
    cdef size_t noted
    cdef size_t notes_room
    cdef Bytes body
    cdef list table
    cdef uint64_t batch_first
    cdef uint64_t batch_size
    cdef uint32_t intern(self, str actor) except *
    cdef uint64_t known_of(self, str actor) except? 0xDEADBEEF
    cdef bint is_retired(self, str actor) except *
    cdef bint told(self, uint32_t index) noexcept
    cdef int check_own(self, str node, uint64_t upto) except -1
    cdef int raise_floor(self, str node, uint64_t upto, uint64_t total) except -1
    cdef int learn_told(self, Dots *context, Write write) except -1
    cdef set writers_of(self, str key)
    cdef int forget_from(self, size_t first) except -1
    cdef int learn_touched(self, Dots *context, Entry entry, list puts, list drops, bint clear) except -1
    cdef uint16_t refer(self, uint32_t index) except *
    cdef int put_context(self, Bytes *out, Dots *context) except -1
    cdef void clear_table(self)
    cdef object supersede(self, Entry entry, Row head, Dots *context, Write write)
    cdef int put_clock(self, Bytes *out) except -1
    cdef Reconciler current(self)
    cdef nova_digest digest_of(self, str key, Row row) except *
    cdef uint64_t place_of(self, str key, Row row) except *
    cdef int count_row(self, Entry entry, Row row, bint added) except -1
    cdef int forget(self, Entry entry) except -1
    cdef list entries_in(self, const uint8_t *wanted)
    cdef list rows_with(self, object ids)
    cdef int pick(self, list out, const uint64_t *filter, set ids, Entry entry, Row head) except -1
    cdef tuple apply(self, str key, Write write, bint clear, list puts, list drops)
    cdef Entry entry_for(self, str key, uint8_t kind)
    cdef int settle_kind(self, Entry entry) except -1
