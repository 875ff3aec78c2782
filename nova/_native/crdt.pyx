"""Delta-state CRDTs over one kind of state. `nova.crdt` holds the faces of this module.

Every type keeps live *rows* (container, leaf, dot, stamp, payload) under one causal context, as ORSWOT does (Bieniusa
et al. 2012): every write and every remove takes a dot; it drops rows that its writer saw and may add one. A row that
one side lacks although its context covers the dot was dropped there. So there are no tombstones, and the state is a
function of the context: who knows the same events holds the same rows, whatever way they came. The rows are the
kernel's (csrc/rows.h); here is what each type means by them. Two types have a denser form while they are what honest
replicas make: a small register is a cell (csrc/cell.h), a counter columns of totals (csrc/totals.h). What does not fit
there becomes rows.

A delta is the sender's whole context, which of its events the asker lacks (`news`), the rows of those, and which other
rows may have to go there (`gone`). All that the asker knew, but for those, is kept: applying a delta is therefore exactly
a merge with the sender, and one that was made for somebody who knew more is refused. What may have to go is, of the dots
that the asker knows, those without a row; or fewer: whoever knows every event up to some moment dropped what the sender
had dropped by then, and a log tells what it dropped since.
"""

import msgspec

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM
from cpython.long cimport PyLong_AsLongLong, PyLong_AsUnsignedLongLong
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.pythread cimport (
    WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_get_thread_ident,
    PyThread_release_lock,
)
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy

from nova._native.digest cimport hash_bytes, nova_digest, nova_digest_add
from nova._native.vclock cimport (
    CausalContext, Spans, as_actor, as_context, context_parts, malformed, nova_left, nova_put_number, nova_reader,
    nova_reader_of, nova_spans_cover, nova_spans_seek, nova_store64le, nova_take, nova_take_byte, nova_take_number, nova_take_size, number, read_context,
    seal, unseal,
)

from nova.errors import CorruptionError, LimitError, UnavailableError, UsageError

DEF U64_MAX = 0xFFFFFFFFFFFFFFFF
DEF KEY_BYTES_MAX = 65536
DEF DEPTH_MAX = 32
DEF ROWS_ALONE = 128                    # work on so many rows takes about 20 us, and others may run meanwhile,
DEF CHUNKED_ALONE = 8192                # and so does a look at whether so many are equal

cdef enum:
    G_COUNTER = 1
    PN_COUNTER = 2
    G_SET = 3
    LWW_REGISTER = 4
    MV_REGISTER = 5
    OR_SET = 6
    LWW_MAP = 7
    OR_MAP = 8
    TWO_P_SET = 9
    ENABLE_WINS_FLAG = 10
    BOUNDED_COUNTER = 11
    NESTED_MAX = 10                     # what may live in a map: all up to here
    TYPES_MAX = 11

cdef bytes STATE_MAGIC = b"NVR\x01"
cdef bytes DELTA_MAGIC = b"NVD\x02"
cdef object encode = msgspec.msgpack.Encoder(order="deterministic").encode
cdef object decode = msgspec.msgpack.Decoder().decode
cdef str WHAT = "CRDT state"

# The interpreter hashes text with a secret of its own; so are our tables.
nova_rows_seed(<uint64_t>hash("the rows of nova.crdt"))


cdef inline int rule_of(int type) noexcept nogil:
    """What the kernel must know of a type."""
    if type == G_COUNTER or type == PN_COUNTER or type == BOUNDED_COUNTER:
        return NOVA_BOX_TOTALS
    return NOVA_BOX_LAST_ONE if type == LWW_REGISTER else NOVA_BOX_LAST if type == LWW_MAP else NOVA_BOX_PLAIN


include "crdt_values.pxi"
include "crdt_store.pxi"
include "crdt_cell.pxi"
include "crdt_totals.pxi"
include "crdt_wire.pxi"


# --- replicas --------------------------------------------------------------------------------------------------------

cdef dict TYPES = {}                    # class -> type number
cdef list CLASSES = [None] * (TYPES_MAX + 1)          # and back


cdef class Replica:
    """What all types share: merge, deltas, bytes, digest. A nested one writes through the map that holds it."""

    def __init__(self, actor=None):
        if self.steps is not None:
            raise UsageError(f"this {type(self).__name__} is made already; make a new one")
        cdef int kind = type_of(type(self))
        if kind == LWW_REGISTER or kind == MV_REGISTER:
            self.cell = Cell(kind, actor)
        elif kind == G_COUNTER or kind == PN_COUNTER:
            self.totals = no_totals(kind, actor)
        else:
            self.store = Store(kind, actor)
            nova_rows_begin_log(self.store.rows)
        self.steps = ()

    cdef int kind(self) noexcept:
        """The type of our root."""
        return self.store.type if self.store is not None else self.cell.type if self.cell is not None else self.totals.type

    cdef CausalContext known(self):
        return known_in(self.totals) if self.totals is not None else self.rows().known()

    cdef Store rows(self):
        """Our rows, settled, to read."""
        if self.store is not None:
            settled(self.store)
            return self.store
        return self.cell.rows() if self.cell is not None else self.totals.rows()

    cdef Store grow(self):
        """From now on we are rows."""
        if self.store is None:
            self.store = self.rows()
            nova_rows_begin_log(self.store.rows)
            self.cell, self.totals = None, None
        return self.store

    cdef int shrink(self) except -1:
        """From now on we are a cell or columns, if we can be."""
        cdef Store store = self.store
        if store is None or store.claims or store.waiting:
            return 0
        if store.type == LWW_REGISTER or store.type == MV_REGISTER:
            self.cell = cell_of(store)
        elif (store.type == G_COUNTER or store.type == PN_COUNTER) and not store.broken:
            self.totals = totals_of(store, NULL)
        if self.cell is not None or self.totals is not None:
            self.store = None
        return 0

    cdef uint32_t box(self, bint make) except? 0xFFFFFFFF:
        """Our container in the store, which is settled then; NOVA_WHO_NONE if it is not there."""
        cdef uint32_t out = 0
        cdef Packed key
        settled(self.store)
        for kind, name in self.steps:
            pack_key(name, &key)
            out = nova_rows_box(self.store.rows, out, kind, rule_of(kind), key.at, key.size, make)
            if out == NOVA_WHO_NONE:
                if make:
                    raise MemoryError
                break
        return out

    cdef int check_root(self) except -1:
        if self.steps:
            raise UsageError(f"this {type(self).__name__} lives in a map under {self.steps[len(self.steps) - 1][1]!r}; call this on the map")
        return 0

    @property
    def actor(self):
        """Who writes here; None: nobody, this replica reads and merges."""
        if self.store is not None:
            return self.store.actor
        return self.cell.actor if self.cell is not None else self.totals.actor

    @property
    def context(self):
        """A copy of the events known here; `delta_since` on another replica takes it."""
        return self.known()

    @property
    def nbytes(self):
        """Bytes of memory that the state takes, the names of its actors aside."""
        if self.store is not None:
            return nova_rows_bytes(self.rows().rows)
        return sizeof(nova_cell) if self.cell is not None else nova_totals_bytes(self.totals.totals)

    def merge(self, Replica other not None):
        """Learn all that `other` knows; returns self. Linear in what both hold, and at once if nothing is new.

        raises   UsageError for another type; CorruptionError if one event is two writes; the state is then as before
        """
        cdef Store mine, theirs
        if self.cell is not None and other.cell is not None and self.cell.type == other.cell.type:
            if merge_cells(self.cell, other.cell):
                return self
        elif self.totals is not None and other.totals is not None and self.totals.type == other.totals.type:
            if self is other or self.totals.merge(other.totals):
                return self
        if self.steps or other.steps:
            self.check_root()
            other.check_root()
        if self.kind() != other.kind():
            raise UsageError(f"a {type(other).__name__} cannot merge into a {type(self).__name__}; merge equal types")
        theirs = other.rows()
        mine = self.grow()
        try:
            both_settled(mine, theirs)
            if mine is not theirs and not mine.covers(theirs):
                mine.join(theirs, NULL)
        finally:
            self.shrink()
        return self

    def delta_since(self, context=None):
        """What somebody who knows `context` (a context, clock or mapping) lacks, as bytes for `apply_delta`."""
        self.check_root()
        cdef CausalContext theirs = as_context(context), ours, base, gone = CausalContext()
        cdef Totals counter
        cdef Store store
        cdef nova_known *known
        if self.totals is not None:
            counter = self.totals.copy(None)            # which nobody counts on
            ours = known_in(counter)
            rows = total_parts(counter, ours, theirs, gone)
            base = minus(ours, minus(ours, theirs))
        else:
            store = self.rows()
            claim(store)
            try:
                known = known_of(store, theirs)
                try:
                    ours = store.known()
                    base = minus(ours, minus(ours, theirs))
                    if base.actors:
                        gone = gone_of(store, base, known)
                    rows = wire_parts(store, ours, known)
                finally:
                    PyMem_Free(known)
            finally:
                release(store)
        return seal(DELTA_MAGIC, [bytes([self.kind()]), *context_parts(ours), *news_parts(ours, base, gone), *rows])

    def apply_delta(self, data):
        """Learn what a delta holds, exactly as by merging with its sender; twice or late does no harm. Returns self.

        raises   CorruptionError for bytes that are no delta of this type; UsageError if it was made for a context
                 that knew more than this replica; the state is then as before
        """
        cdef nova_reader r
        cdef CausalContext context, news, gone, kept, base = CausalContext()
        cdef nova_known *keeping
        cdef Store theirs, mine
        cdef Totals totals
        cdef int kind, long_
        self.check_root()
        kind = self.kind()
        unseal(data, DELTA_MAGIC, "CRDT delta", &r)
        check_type(&r, kind)
        context = read_context(&r)
        kept = base
        long_ = nova_take_byte(&r)
        if long_:
            news = read_context(&r)
            gone = read_context(&r)
            base = minus(context, news)
            kept = minus(base, gone)
            if long_ != 1 or not base.actors or not context.covers_c(news) or not base.covers_c(gone):
                raise malformed("CRDT delta", "its news, or what may have to go, do not fit its context")
        theirs = read_rows(&r, kind, context, kept, None)
        keeping = known_of(theirs, kept)
        try:
            if self.totals is not None:
                totals = totals_of(theirs, keeping)
                check_base_in(self.totals, base)
                if totals is not None and self.totals.merge(totals):
                    return self
            mine = self.grow()
            settled(mine)
            claim(mine)
            try:
                for actor, spans in base.actors.items():
                    found = mine.numbers.get(actor)
                    if found is None or not covers_spans(nova_rows_known(mine.rows, found), <Spans>spans):
                        raise knew_more()
                if not mine.covers(theirs):
                    mine.join(theirs, keeping)
            finally:
                release(mine)
        finally:
            PyMem_Free(keeping)
            self.shrink()
        return self

    def to_bytes(self):
        """The state in canonical bytes: replicas that know the same events give the same."""
        self.check_root()
        cdef CausalContext context
        cdef Totals counter
        cdef Store store
        if self.totals is not None:
            counter = self.totals.copy(None)
            context = known_in(counter)
            rows = total_parts(counter, context, None, None)
        else:
            store = self.rows()
            claim(store)
            try:
                context = store.known()
                rows = wire_parts(store, context, NULL)
            finally:
                release(store)
        return seal(STATE_MAGIC, [bytes([self.kind()]), *context_parts(context), *rows])

    @classmethod
    def from_bytes(cls, data, *, actor=None):
        """Read what `to_bytes` wrote.

        actor    who goes on writing here; it must be a new one, because somebody else may hold what the old one wrote
                 since; without it the replica reads and merges only
        raises   CorruptionError for anything that is no state of this type
        """
        cdef nova_reader r
        cdef CausalContext context
        cdef Replica out = cls(actor)
        cdef int kind = out.kind()
        unseal(data, STATE_MAGIC, WHAT, &r)
        check_type(&r, kind)
        context = read_context(&r)
        if out.actor is not None and out.actor in context.actors:
            raise not_new(out.actor)
        out.store = read_rows(&r, kind, context, None, actor)
        out.cell, out.totals = None, None
        out.shrink()
        return out

    def fork(self, actor):
        """A replica that goes its own way under a new actor (None: it only reads and merges)."""
        self.check_root()
        cdef Replica out = type(self)(actor)
        check_newcomer(out.actor, self)
        if self.cell is not None:
            out.cell = self.cell.copy(actor)
            out.store = self.cell.rows().copy(actor) if out.cell is None else None
        elif self.totals is not None:
            out.totals = self.totals.copy(actor)
        else:
            out.store, out.cell, out.totals = self.store.copy(actor), None, None
        return out

    def digest(self):
        """16 bytes, equal exactly if the states are. Costs what was written since the last call, and O(actors)."""
        cdef bytes body
        cdef char raw[16]
        cdef nova_digest d
        cdef Totals counter
        cdef Store store
        self.check_root()
        if self.totals is not None:
            counter = self.totals.copy(None)
            body = b"".join(context_parts(known_in(counter)))
            d = nova_totals_digest(counter.totals)
        else:
            store = self.rows()
            claim(store)
            try:
                body = b"".join(context_parts(store.known()))
                with nogil:
                    d = nova_rows_digest(store.rows)
            finally:
                release(store)
        d = nova_digest_add(d, hash_bytes(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), self.kind()))
        nova_store64le(raw, d.lo)
        nova_store64le(raw + 8, d.hi)
        return PyBytes_FromStringAndSize(raw, 16)

    def __eq__(self, other):
        if not isinstance(other, Replica):
            return NotImplemented
        if self.steps or (<Replica>other).steps:
            return self is other
        return self.to_bytes() == other.to_bytes()

    __hash__ = None

    def __reduce__(self):
        self.check_root()
        return type(self).from_bytes, (self.to_bytes(),)

    def __repr__(self):
        return f"{type(self).__name__}(actor={self.actor!r}, value={self.value!r})"


cdef bint merge_cells(Cell mine, Cell theirs) noexcept:
    """False: rows have to do it."""
    cdef size_t n = mine.state.nwriters
    cdef int done = nova_cell_merge(&mine.state, &theirs.state)
    while n < mine.state.nwriters:
        Py_INCREF(<object>mine.state.writers[n].owner)
        n += 1
    return done == NOVA_CELL_SAME or done == NOVA_CELL_CHANGED


cdef int type_of(object cls) except -1:
    for base in cls.__mro__:
        found = TYPES.get(base)
        if found is not None:
            return found
    raise UsageError(f"{cls.__name__} is no CRDT type; use one of nova.crdt")


cdef int check_type(nova_reader *r, int type) except -1:
    cdef int found = nova_take_byte(r)
    if found != type:
        raise CorruptionError(f"bytes of CRDT type {found}, expected {type}; read them with the class that wrote them")
    return 0


cdef object not_new(object actor):
    return UsageError(f"actor {actor!r} already wrote here; restore and fork under a new one, as name~incarnation")


cdef bint knows_of(Replica self, str actor) except -1:
    """Are events of an actor known here?"""
    cdef size_t i
    if self.cell is not None:
        for i in range(self.cell.state.nwriters):
            if self.cell.state.writers[i].last and <str>self.cell.state.writers[i].owner == actor:
                return True
        return False
    if self.totals is not None:
        found = IDS.get(actor)
        return found is not None and nova_totals_get(self.totals.totals, found).last > 0
    settled(self.store)
    found = self.store.numbers.get(actor)
    return found is not None and nova_rows_last(self.store.rows, found) > 0


cdef int check_newcomer(object actor, Replica self) except -1:
    if actor is not None and knows_of(self, actor):
        raise not_new(actor)
    return 0


cdef object knew_more():
    return UsageError("this delta was made for a replica that knew more; ask its sender for delta_since(ours.context)")


cdef int check_base_in(Totals counter, CausalContext base) except -1:
    """Does a counter know what its sender took it to know?"""
    cdef Spans spans
    for actor, item in base.actors.items():
        spans = <Spans>item
        found = IDS.get(actor)
        if found is None or nova_totals_get(counter.totals, found).last < spans.at[spans.size - 1].last:
            raise knew_more()
    return 0


cdef bint covers_spans(nova_known known, Spans spans) noexcept:
    return nova_spans_cover(known.at, known.size, spans.at, spans.size)


# --- what types do with rows -----------------------------------------------------------------------------------------

cdef Packed NO_LEAF
NO_LEAF.at, NO_LEAF.size = NULL, 0


cdef uint32_t first_at(Replica self, Packed leaf) except? 0xFFFFFFFF:
    """A row at a leaf, 0 if there is none; the others are its siblings."""
    cdef uint32_t box = self.box(False)
    return 0 if box == NOVA_WHO_NONE else nova_rows_find(self.store.rows, box, leaf.at, leaf.size)


cdef int tidy(Replica self) except -1:
    if nova_rows_tidy(self.store.rows):
        raise MemoryError               # of garbage only: the state is whole, and the next call tries again
    return 0


cdef int write_row(Replica self, Packed leaf, uint64_t stamp, Packed value, uint32_t how) except -1:
    """One event that adds a row; `how` as for Store.add. `tidy` must follow."""
    cdef nova_row row
    row.count = self.store.take_dot()
    row.who = self.store.me
    row.box = self.box(True) if self.steps else 0
    row.leaf, row.nleaf, row.stamp, row.value, row.nvalue = leaf.at, leaf.size, stamp, value.at, value.size
    self.store.add(&row, how)
    return 0


cdef bint remove_leaf(Replica self, Packed leaf) except -1:
    """One event that takes all rows at a leaf, or none if there are none."""
    cdef uint32_t box = self.box(False)
    if box == NOVA_WHO_NONE or not nova_rows_find(self.store.rows, box, leaf.at, leaf.size):
        return False
    self.store.take_dot()
    nova_rows_drop_key(self.store.rows, box, leaf.at, leaf.size)
    tidy(self)
    return True


cdef struct Found:
    uint32_t *at
    size_t size
    size_t room


cdef int push(Found *found, uint32_t at) except -1:
    cdef void *grown
    if found.size == found.room:
        grown = PyMem_Realloc(found.at, (2 * found.room + 8) * sizeof(uint32_t))
        if grown == NULL:
            raise MemoryError
        found.at, found.room = <uint32_t *>grown, 2 * found.room + 8
    found.at[found.size] = at
    found.size += 1
    return 0


cdef int below(Store store, uint32_t box, Found *found) except -1:
    """All rows in a container and in those nested in it."""
    cdef uint32_t at = nova_rows_first(store.rows, box)
    cdef bint boxes = nova_rows_box_type(store.rows, box) == OR_MAP
    while at:
        if boxes:
            below(store, nova_rows_box_of(store.rows, at), found)
        else:
            push(found, at)
        at = nova_rows_next(store.rows, at)
    return 0


cdef int drop_all(Store store, Found *found) except -1:
    cdef size_t i
    for i in range(found.size):
        nova_rows_drop(store.rows, found.at[i])
    for i in range(found.size):
        nova_rows_sweep(store.rows, found.at[i])
    return 0


cdef object payloads(Replica self, Packed leaf):
    """(number of the actor, payload) of the rows at a leaf."""
    cdef list who = [], values = []
    cdef uint32_t at = first_at(self, leaf)
    cdef nova_row row
    while at:
        nova_rows_view(self.store.rows, at, &row)
        who.append(row.who)
        values.append(PyBytes_FromStringAndSize(<const char *>row.value, row.nvalue))
        at = nova_rows_sibling(self.store.rows, at)
    return list(zip(who, values))


include "crdt_counters.pxi"
include "crdt_registers.pxi"
include "crdt_sets.pxi"
include "crdt_maps.pxi"

for _number, _class in enumerate((GCounter, PNCounter, GSet, LWWRegister, MVRegister, ORSet, LWWMap, ORMap, TwoPSet,
                                  EnableWinsFlag, BoundedCounter), 1):
    TYPES[_class] = _number
    CLASSES[_number] = _class
