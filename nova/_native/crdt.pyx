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


# --- values ----------------------------------------------------------------------------------------------------------

cdef struct Packed:
    const uint8_t *at
    size_t size


cdef uint8_t *scratch = NULL            # of the value packed last, until another one is
cdef size_t scratch_room = 0


cdef bytes pack_checked(object value, int *found):
    """A value in its one spelling, and what `nova_value_check` found."""
    cdef bytes out
    try:
        out = encode(value)
    except (TypeError, ValueError, OverflowError, UnicodeError, NotImplementedError) as error:
        raise UsageError(f"a value of type {type(value).__name__} cannot be kept ({error}); use JSON-like values and bytes") \
            from None
    except RecursionError:
        raise LimitError(f"a value of type {type(value).__name__} is nested too deep or holds itself; the limit is 64") \
            from None
    found[0] = nova_value_check(<uint8_t *>PyBytes_AS_STRING(out), PyBytes_GET_SIZE(out), True)  # `out` is still ours
    if found[0] == -2:
        raise LimitError(f"a value of type {type(value).__name__} is nested too deep; the limit is 64 levels")
    if found[0] < 0:
        raise UsageError(f"a value of type {type(value).__name__} cannot be kept; use JSON-like values and bytes")
    return out


cdef bytes pack(object value):
    cdef int found
    return pack_checked(value, &found)


cdef inline size_t put_header(uint8_t *out, size_t size) noexcept:
    """How a MessagePack str of this size begins."""
    cdef int i, width
    if size < 32:
        out[0] = 0xA0 | <uint8_t>size
        return 1
    width = 1 if size < 0x100 else 2 if size < 0x10000 else 4
    out[0] = 0xD9 + (width >> 1)
    for i in range(width):
        out[1 + i] = <uint8_t>(size >> (8 * (width - 1 - i)))
    return 1 + width


cdef inline size_t put_integer(uint8_t *out, int64_t value) noexcept:
    """A MessagePack integer in its shortest form."""
    cdef int i, width, kind
    if -32 <= value < 128:
        out[0] = <uint8_t>value
        return 1
    if value >= 0:
        kind = 0 if value < 0x100 else 1 if value < 0x10000 else 2 if value < 0x100000000 else 3
        out[0] = 0xCC + kind
    else:
        kind = 0 if value >= -0x80 else 1 if value >= -0x8000 else 2 if value >= -<int64_t>0x80000000 else 3
        out[0] = 0xD0 + kind
    width = 1 << kind
    for i in range(width):
        out[1 + i] = <uint8_t>(<uint64_t>value >> (8 * (width - 1 - i)))
    return 1 + width


cdef int need_scratch(size_t size) except -1:
    global scratch, scratch_room
    cdef uint8_t *grown
    if size > scratch_room:
        grown = <uint8_t *>PyMem_Realloc(scratch, size + 64)
        if grown == NULL:
            raise MemoryError
        scratch, scratch_room = grown, size + 64
    return 0


cdef object pack_value(Replica self, object value, Packed *out, bint element):
    """A value in its one spelling, for a replica. What is returned must live as long as `out` is read, and nothing else
    be packed meanwhile: either no code of others ran and the replica's store is settled still, or `out` is not in the
    scratch space. An element of a set must be hashable."""
    cdef const char *text
    cdef Py_ssize_t size
    cdef size_t head
    cdef int found
    cdef bytes packed
    if self.store is not None:
        settled(self.store)
    if type(value) is str:
        try:
            text = PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError as error:
            raise UsageError(f"a value of type str cannot be kept ({error}); use JSON-like values and bytes") from None
        if size < 0x10000:
            need_scratch(size + 8)
            head = put_header(scratch, size)
            memcpy(scratch + head, text, size)
            out.at, out.size = scratch, head + size
            return None
    elif type(value) is int and -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF:
        need_scratch(16)
        out.at, out.size = scratch, put_integer(scratch, PyLong_AsLongLong(value))
        return None
    packed = pack_checked(value, &found)
    if element and found & NOVA_VALUE_MAPS:
        raise UsageError(f"an element of type {type(value).__name__} holds a mapping; elements must be hashable")
    out.at, out.size = <const uint8_t *>PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed)
    return packed


cdef inline object pack_element(Replica self, object value, Packed *out):
    return pack_value(self, value, out, True)


cdef int pack_key(object key, Packed *out) except -1:
    """The UTF-8 of a key; it lives as long as the key."""
    cdef Py_ssize_t size
    if not isinstance(key, str):
        raise UsageError(f"key {key!r} is a {type(key).__name__}; keys are str")
    try:
        out.at = <const uint8_t *>PyUnicode_AsUTF8AndSize(key, &size)
    except UnicodeEncodeError:
        raise UsageError(f"key {key!r} holds a lone surrogate; use valid Unicode") from None
    if size > KEY_BYTES_MAX:
        raise LimitError(f"a key of {size} bytes; the limit is {KEY_BYTES_MAX}; use a shorter one")
    out.size = size
    return 0


cdef bint in_order(const uint8_t *at, size_t size) noexcept with gil:
    """Are the keys of the mappings in a value in their order?"""
    try:
        packed = PyBytes_FromStringAndSize(<const char *>at, size)
        return encode(decode(packed)) == packed
    except Exception:                   # whatever it is, it is not what we would have written
        return False


cdef object unpack(const uint8_t *at, size_t size):
    return decode(PyBytes_FromStringAndSize(<const char *>at, size))


cdef object frozen(object value):
    """An element of a set as a hashable value: lists become tuples."""
    return tuple([frozen(item) for item in value]) if type(value) is list else value


cdef str text_of(const uint8_t *at, size_t size):
    return at[:size].decode("utf-8")


cdef uint64_t as_amount(object amount) except 0:
    if type(amount) is int and 1 <= amount <= 0x3FFFFFFF:
        return amount
    if isinstance(amount, bool) or not isinstance(amount, int):
        raise UsageError(f"amount {amount!r} is a {type(amount).__name__}; amounts are int")
    if not 1 <= amount <= U64_MAX:
        raise UsageError(f"amount {amount} is out of range; it is from 1 to 2**64 - 1 (a PNCounter also has decrement)")
    return amount


cdef uint64_t as_stamp(object stamp) except? U64_MAX:
    if type(stamp) is int:
        try:
            return PyLong_AsUnsignedLongLong(stamp)
        except OverflowError:
            pass
    if isinstance(stamp, bool) or not isinstance(stamp, int) or not 0 <= stamp <= U64_MAX:
        raise UsageError(f"stamp {stamp!r} is none; pass an int from HybridLogicalClock.tick")
    return stamp


cdef uint64_t plus(uint64_t total, uint64_t amount, str actor) except? U64_MAX:
    if amount > UINT64_MAX - total:
        raise UsageError(f"the total of actor {actor!r}, {total}, plus {amount} is over 2**64 - 1; go on under a new actor")
    return total + amount


# --- state -----------------------------------------------------------------------------------------------------------

cdef enum:
    BESIDE = 0
    INSTEAD = 0xFFFFFFFF

cdef uint64_t stores_made = 0


cdef object failure(int code):
    if code == NOVA_ROWS_FULL:
        return LimitError("a replica holds 16 GiB of rows, and that is the limit; split it by key")
    return MemoryError()


cdef object writing(object actor):
    """Who writes in a replica, None for nobody."""
    if actor is None:
        return None
    if not isinstance(actor, str) or not actor:
        raise UsageError(f"actor {actor!r} is none; an actor is a str, new at every start: name~incarnation")
    return as_actor(actor)


cdef uint64_t after(uint64_t last, object actor) except 0:
    """The number of an actor's next event."""
    if actor is None:
        raise UsageError("this replica has no actor and only reads; write on one that was made with actor=")
    if last == UINT64_MAX:
        raise UsageError(f"count of actor {actor!r} is 2**64 - 1, the last one; go on under a new actor")
    return last + 1


# Who works on a store without the interpreter lock, or must not be disturbed by code that garbage collection runs,
# claims it. Everybody else calls `settled` after the last moment at which another thread may have run, and then does not
# give one that chance: no object that is collected is made before the rows are left alone again.

cdef inline int settled(Store store) except -1:
    """Wait until no other thread has claimed a store."""
    if store.claims:
        wait_for(store)
    return 0


cdef int wait_for(Store store) except -1:
    store.waiting += 1
    while store.claims and store.owner != PyThread_get_thread_ident():
        with nogil:
            PyThread_acquire_lock(store.lock, WAIT_LOCK)
            PyThread_release_lock(store.lock)
    store.waiting -= 1
    return 0


cdef int both_settled(Store one, Store other) except -1:
    one.waiting += 1
    while one.claims and one.owner != PyThread_get_thread_ident() \
            or other.claims and other.owner != PyThread_get_thread_ident():
        wait_for(one)
        wait_for(other)
    one.waiting -= 1
    return 0


cdef int claim(Store store) except -1:
    """Have a settled store for this thread alone, until as many calls of `release`."""
    if store.lock == NULL:
        store.lock = PyThread_allocate_lock()
        if store.lock == NULL:
            raise MemoryError
    if not store.claims:
        PyThread_acquire_lock(store.lock, WAIT_LOCK)    # who waits for it holds it for no longer than a moment
        store.owner = PyThread_get_thread_ident()
    store.claims += 1
    return 0


cdef int release(Store store) except -1:
    store.claims -= 1
    if not store.claims:
        PyThread_release_lock(store.lock)
    return 0


cdef class Store:
    def __cinit__(self, int type, actor=None):
        global stores_made
        self.type = type
        self.actor = writing(actor)
        self.me = NOVA_WHO_NONE
        self.numbers, self.names = {}, []
        stores_made += 1
        self.serial = stores_made
        self.rows = nova_rows_new(type, rule_of(type), type == OR_MAP)
        if self.rows == NULL:
            raise MemoryError

    def __dealloc__(self):
        nova_rows_free(self.rows)
        PyMem_Free(self.map)
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef uint32_t writer(self, str name) except? 0xFFFFFFFF:
        """The number of a writer, a new one if need be."""
        cdef Py_ssize_t size
        cdef const char *text
        cdef uint32_t who
        found = self.numbers.get(name)
        if found is not None:
            return found
        text = PyUnicode_AsUTF8AndSize(name, &size)
        self.names.append(name)
        who = nova_rows_writer(self.rows, text, size)
        if who == NOVA_WHO_NONE:
            self.names.pop()
            raise MemoryError
        self.numbers[name] = who
        if name == self.actor:
            self.me = who
        return who

    cdef int learn(self, uint32_t who, const nova_span *spans, size_t n) except -1:
        if nova_rows_learn(self.rows, who, spans, n):
            raise MemoryError
        self.version += 1
        return 0

    cdef uint64_t take_dot(self) except 0:
        """The next event of our actor, which is then known."""
        cdef nova_span span
        settled(self)
        if self.broken:
            raise MemoryError("memory ran out while this replica joined another; make it again from bytes or a peer")
        if self.me == NOVA_WHO_NONE and self.actor is not None:
            self.writer(self.actor)
        span.first = after(0 if self.me == NOVA_WHO_NONE else nova_rows_last(self.rows, self.me), self.actor)
        span.last = span.first
        self.learn(self.me, &span, 1)
        return span.first

    cdef int add(self, nova_row *row, uint32_t how) except -1:
        """Add a row: BESIDE those of its key, INSTEAD of all of them, or in the place of the one at `how`."""
        cdef int failed
        if how == INSTEAD:
            failed = nova_rows_replace(self.rows, row)
        elif how == BESIDE:
            failed = nova_rows_put(self.rows, row)
        else:
            failed = nova_rows_renew(self.rows, how, row)
        if failed:
            raise failure(failed)
        return 0

    cdef const uint32_t *map_from(self, Store other, bint make) except? NULL:
        """For every writer of `other` its number here. Those unknown here have none, or get one with `make`."""
        cdef size_t n = nova_rows_writers(other.rows), mine = len(self.names), i
        cdef void *grown
        if self.map_of == other.serial and self.map_size == n and self.map_of_mine == nova_rows_writers(self.rows) \
                and (self.map_whole or not make):
            return self.map
        grown = PyMem_Realloc(self.map, (n + 1) * sizeof(uint32_t))
        if grown == NULL:
            raise MemoryError
        self.map = <uint32_t *>grown
        self.map_of = 0
        self.map_whole = True
        for i in range(n):
            if i < mine and PyList_GET_ITEM(self.names, i) is PyList_GET_ITEM(other.names, i):
                self.map[i] = i                     # copies of one replica number alike
                continue
            found = self.numbers.get(other.names[i])
            if found is not None:
                self.map[i] = found
            elif make:
                self.map[i] = self.writer(other.names[i])
            else:
                self.map[i] = NOVA_WHO_NONE
                self.map_whole = False
        self.map_of, self.map_size, self.map_of_mine = other.serial, n, nova_rows_writers(self.rows)
        return self.map

    cdef bint covers(self, Store other) except -1:
        """Is everything known here that `other` knows?"""
        if self.seen == other.serial and self.seen_version == other.version:
            return True
        if not nova_rows_covers(self.rows, other.rows, self.map_from(other, False)):
            return False
        self.seen, self.seen_version = other.serial, other.version
        return True

    cdef int join(self, Store other, const nova_known *kept) except -1:
        """Merge with a sender who knows and holds what `other` does, and the rows of the dots `kept`. All or nothing.
        Both are settled."""
        cdef nova_plan plan
        cdef uint64_t theirs, ours
        cdef int failed
        if self.broken or other.broken:
            raise MemoryError("memory ran out while this replica joined another; make it again from bytes or a peer")
        if self.actor is not None:
            found = other.numbers.get(self.actor)
            if found is not None:
                theirs = nova_rows_last(other.rows, found)
                ours = 0 if self.me == NOVA_WHO_NONE else nova_rows_last(self.rows, self.me)
                if theirs > ours:
                    raise CorruptionError(
                        f"actor {self.actor!r} wrote event {theirs} elsewhere, this replica is at {ours}: "
                        "two replicas share an actor; give each start, copy and restore its own")
        cdef bint alone = nova_rows_size(other.rows) > ROWS_ALONE \
            or (kept == NULL and nova_rows_size(self.rows) > CHUNKED_ALONE)
        cdef const uint32_t *map = self.map_from(other, False)
        if alone:
            claim(self)
            try:
                claim(other)
            except MemoryError:
                release(self)
                raise
            with nogil:
                failed = nova_rows_plan(self.rows, other.rows, map, kept, &plan)
        else:
            failed = nova_rows_plan(self.rows, other.rows, map, kept, &plan)
        try:
            if failed == NOVA_ROWS_TWICE:
                raise CorruptionError(
                    f"event {plan.count} of actor {other.names[plan.who]!r} is two different writes: two replicas share an "
                    "actor; give each start, copy and restore its own")
            if failed == NOVA_ROWS_STAMPED:
                raise CorruptionError(
                    f"actor {other.names[plan.who]!r} gave stamp {plan.stamp} to two values; stamps of one actor must rise")
            if failed:
                raise failure(failed)
            map = self.map_from(other, True)
            if alone:
                with nogil:
                    failed = nova_rows_join(self.rows, other.rows, map, &plan)
            else:
                failed = nova_rows_join(self.rows, other.rows, map, &plan)
            self.version += 1
            if failed:
                self.broken = failed == NOVA_ROWS_NOMEM
                raise failure(failed)
        finally:
            nova_plan_free(&plan)
            if alone:
                release(other)
                release(self)
        return 0

    def known(self):
        """A CausalContext of its own."""
        cdef CausalContext out = CausalContext()
        cdef nova_known known
        cdef Spans spans
        cdef uint32_t who
        settled(self)
        for who in range(nova_rows_writers(self.rows)):
            known = nova_rows_known(self.rows, who)
            if known.size:
                spans = Spans.__new__(Spans)
                spans.join(known.at, known.size)
                out.actors[self.names[who]] = spans
        return out

    def copy(self, actor):
        """A store of the same rows under another actor."""
        cdef Store out = Store(self.type, actor)
        cdef nova_rows *rows
        if self.broken:
            raise MemoryError("memory ran out while this replica joined another; make it again from bytes or a peer")
        settled(self)
        claim(self)
        try:
            with nogil:
                rows = nova_rows_copy(self.rows)
            if rows == NULL:
                raise MemoryError
            nova_rows_free(out.rows)
            out.rows = rows
            out.names, out.numbers = list(self.names), dict(self.numbers)
        finally:
            release(self)
        return out


# --- small registers -------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc                           # it holds nothing but names
cdef class Cell:
    def __cinit__(self, int type, actor=None):
        self.type = type
        self.actor = writing(actor)
        self.state.nwriters = self.state.nrows = 0
        self.state.me = NOVA_CELL_WRITERS
        self.state.last_one = type == LWW_REGISTER
        if self.actor is not None:
            self.state.me = 0
            self.writer(<str>self.actor, 0)

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.state.nwriters):
            Py_DECREF(<object>self.state.writers[i].owner)

    cdef int writer(self, str name, uint64_t last) except -1:
        """One more writer; there is room."""
        cdef nova_cell_writer *w = &self.state.writers[self.state.nwriters]
        cdef Py_ssize_t size
        w.name = PyUnicode_AsUTF8AndSize(name, &size)
        w.nname, w.last, w.owner = size, last, <void *>name
        Py_INCREF(name)
        self.state.nwriters += 1
        return 0

    cdef uint64_t take_dot(self) except 0:
        cdef nova_cell_writer *w = &self.state.writers[self.state.me] if self.actor is not None else NULL
        cdef uint64_t count = after(0 if w == NULL else w.last, self.actor)
        w.last = count
        return count

    cdef Store rows(self):
        """The same as rows, in a store of its own."""
        cdef Store out = Store(self.type, self.actor)
        cdef nova_cell_writer *w
        cdef nova_cell_row *from_
        cdef nova_span span
        cdef nova_row row
        cdef uint32_t who
        cdef size_t i, j
        span.first = 1
        for i in range(self.state.nwriters):
            w = &self.state.writers[i]
            span.last = w.last
            if w.last:
                who = out.writer(<str>w.owner)
                out.learn(who, &span, 1)
                for j in range(self.state.nrows):
                    from_ = &self.state.rows[j]
                    if from_.who == i:
                        row.box, row.who, row.count, row.stamp = 0, who, from_.count, from_.stamp
                        row.leaf, row.nleaf, row.value, row.nvalue = NULL, 0, from_.value, from_.size
                        out.add(&row, BESIDE)
        return out

    cdef Cell copy(self, object actor):
        """A cell of the same rows under another actor, None if that is one writer too many."""
        cdef Cell out = Cell.__new__(Cell, self.type)
        cdef str name = writing(actor)
        cdef size_t i
        out.state = self.state
        for i in range(out.state.nwriters):
            Py_INCREF(<object>out.state.writers[i].owner)
        out.state.me = NOVA_CELL_WRITERS
        return out if name is None or hire(out, name) else None


cdef bint hire(Cell cell, str name) except -1:
    """Let somebody write in a cell, if there is room."""
    cdef size_t i
    for i in range(cell.state.nwriters):
        if <str>cell.state.writers[i].owner == name:
            break
    else:
        if cell.state.nwriters == NOVA_CELL_WRITERS:
            return False
        i = cell.state.nwriters
        cell.writer(name, 0)
    cell.state.me = i
    cell.actor = name
    return True


cdef Cell cell_of(Store store):
    """The cell for a register that has all its rows in a store, None if it does not fit."""
    cdef size_t n = nova_rows_writers(store.rows), i
    cdef Cell out
    cdef nova_known known
    cdef nova_row row
    cdef nova_cell_row *to
    cdef uint32_t at
    if n > NOVA_CELL_WRITERS or store.broken:
        return None
    out = Cell.__new__(Cell, store.type)
    for i in range(n):
        known = nova_rows_known(store.rows, i)
        if known.size > 1 or (known.size and known.at[0].first != 1):
            return None
        out.writer(<str>store.names[i], known.at[0].last if known.size else 0)
    at = nova_rows_find(store.rows, 0, NULL, 0)
    while at:
        nova_rows_view(store.rows, at, &row)
        if out.state.nrows == NOVA_CELL_ROWS or row.nvalue > NOVA_CELL_VALUE:
            return None
        to = &out.state.rows[out.state.nrows]
        to.who, to.count, to.stamp, to.size = row.who, row.count, row.stamp, row.nvalue
        memcpy(to.value, row.value, row.nvalue)
        out.state.nrows += 1
        at = nova_rows_sibling(store.rows, at)
    return out if store.actor is None or hire(out, <str>store.actor) else None


# --- counters as columns ---------------------------------------------------------------------------------------------

cdef dict IDS = {}                      # name -> number of a writer of a counter, as long as one counts it
cdef list NAMES = []                    # and back


cdef uint32_t id_of(str name) except? 0xFFFFFFFF:
    """The number of a writer. The caller holds it before it calls `forget`."""
    cdef Py_ssize_t size
    cdef const char *text
    cdef uint32_t id
    found = IDS.get(name)
    if found is not None:
        return found
    text = PyUnicode_AsUTF8AndSize(name, &size)
    id = nova_ids_take(hash_bytes(text, size, 0).lo)
    if id == NOVA_ID_NONE:
        raise MemoryError
    if id == <size_t>len(NAMES):
        NAMES.append(name)
    NAMES[id] = name
    IDS[name] = id
    return id


cdef int forget() except -1:
    """Give back the numbers that no counter names any more."""
    cdef uint32_t id = nova_ids_idle()
    while id != NOVA_ID_NONE:
        IDS.pop(NAMES[id], None)
        NAMES[id] = None
        id = nova_ids_idle()
    return 0


@cython.final
@cython.no_gc                           # it holds nothing but a name
cdef class Totals:
    def __cinit__(self):
        self.me = NOVA_ID_NONE

    def __dealloc__(self):
        if self.me != NOVA_ID_NONE:
            nova_ids_drop(self.me)
        nova_totals_free(self.totals)
        forget()

    cdef int begin(self, int type, object actor) except -1:
        """A counter under an actor; its totals are the caller's business."""
        global stores_made
        self.type, self.actor = type, writing(actor)
        stores_made += 1
        self.serial = stores_made
        if self.actor is not None:
            self.me = id_of(<str>self.actor)
            nova_ids_hold(self.me)
        return 0

    cdef int count(self, uint64_t more, uint64_t less) except -1:
        """One event that adds to our totals."""
        cdef nova_total total
        total.last = total.up = total.down = 0
        if self.me != NOVA_ID_NONE:
            total = nova_totals_get(self.totals, self.me)
        total.up = plus(total.up, more, self.actor)
        total.down = plus(total.down, less, self.actor)
        total.last = after(total.last, self.actor)
        if nova_totals_set(self.totals, self.me, total):
            raise MemoryError
        self.version += 1
        return 0

    cdef object value(self):
        cdef uint64_t up[2]
        cdef uint64_t down[2]
        nova_totals_sum(self.totals, up, down)
        if up[1] | down[1]:
            return ((<object>up[1] << 64) | up[0]) - ((<object>down[1] << 64) | down[0])
        return <object>up[0] - down[0] if down[0] else up[0]

    cdef bint merge(self, Totals other) except -1:
        """False: rows have to do it, because there is something to be told apart."""
        cdef int done
        if self.seen == other.serial and self.seen_version == other.version:
            return True
        done = nova_totals_merge(self.totals, other.totals, self.me)
        if done == NOVA_TOTALS_TWICE or done == NOVA_TOTALS_OURS:
            return False
        if done < 0:
            raise MemoryError
        if done != NOVA_TOTALS_SAME:
            self.version += 1
        self.seen, self.seen_version = other.serial, other.version
        return True

    cdef Store rows(self):
        """The same as rows, in a store of its own."""
        cdef Store out = Store(self.type, self.actor)
        cdef uint8_t raw[20]
        cdef nova_total total
        cdef nova_span span
        cdef nova_row row
        cdef uint32_t id = 0
        row.box, row.stamp, row.leaf, row.nleaf, row.value = 0, 0, NULL, 0, raw
        while nova_totals_next(self.totals, &id, &total):
            span.first, span.last = 1, total.last
            row.who, row.count = out.writer(<str>NAMES[id]), total.last
            row.nvalue = nova_totals_value(self.totals, &total, raw)
            out.learn(row.who, &span, 1)
            out.add(&row, BESIDE)
            id += 1
        return out

    cdef Totals copy(self, object actor):
        cdef Totals out = Totals.__new__(Totals)
        out.begin(self.type, actor)
        out.totals = nova_totals_copy(self.totals)
        if out.totals == NULL:
            raise MemoryError
        return out


cdef Totals no_totals(int type, object actor):
    cdef Totals out = Totals.__new__(Totals)
    out.begin(type, actor)
    out.totals = nova_totals_new(1 if type == G_COUNTER else 2)
    if out.totals == NULL:
        raise MemoryError
    return out


cdef Totals totals_of(Store store, const nova_known *kept):
    """The columns of a counter that has all its rows in a store, None if it is not an honest one. Of the writers whose
    row is kept by somebody else it tells nothing."""
    cdef Totals out = no_totals(store.type, store.actor)
    cdef uint32_t who, at
    cdef size_t rows = 0
    cdef nova_known known
    cdef nova_total total
    cdef nova_row row
    for who in range(nova_rows_writers(store.rows)):
        known = nova_rows_known(store.rows, who)
        if not known.size:
            continue
        if known.size > 1 or known.at[0].first != 1:
            return None
        at = nova_rows_newest(store.rows, who)
        if kept != NULL and kept[who].size:             # its row, which is not here
            if at or kept[who].at[kept[who].size - 1].last != known.at[0].last:
                return None
            continue
        if not at:
            return None
        nova_rows_view(store.rows, at, &row)
        if row.count != known.at[0].last:
            return None
        total.last = row.count
        totals(&row, store.type, &total.up, &total.down)
        if nova_totals_set(out.totals, id_of(<str>store.names[who]), total):
            raise MemoryError
        rows += 1
    return out if rows == nova_rows_size(store.rows) else None


cdef CausalContext known_in(Totals counter):
    cdef CausalContext out = CausalContext()
    cdef nova_total total
    cdef nova_span span
    cdef uint32_t id = 0
    cdef Spans spans
    while nova_totals_next(counter.totals, &id, &total):
        span.first, span.last = 1, total.last
        spans = Spans.__new__(Spans)
        spans.join(&span, 1)
        out.actors[NAMES[id]] = spans
        id += 1
    return out


cdef list total_parts(Totals counter, CausalContext context, CausalContext theirs, CausalContext gone):
    """As wire_parts, of a counter that knows `context`. Of the dots that `theirs` knows, those without a row go to `gone`,
    but for those of writers whose row it knows: it dropped them too."""
    cdef bytearray out = bytearray()
    cdef uint8_t raw[64]                # of one row: six numbers, of which three may be long, and its value
    cdef size_t n, size
    cdef uint64_t rows = 0, rank = 0
    cdef nova_total total
    cdef nova_span later
    cdef Spans spans
    cdef str name
    for name in sorted(context.actors):
        total = nova_totals_get(counter.totals, IDS[name])
        if theirs is None or not theirs.has(name, total.last):
            if theirs is not None and name in theirs.actors:
                spans = (<Spans>theirs.actors[name]).copy()
                later.first, later.last = total.last, UINT64_MAX
                spans.cut(&later, 1)
                if spans.size:
                    gone.actors[name] = spans
            raw[0] = raw[1] = 0                         # no maps, no leaf
            n = 2 + nova_put_number(raw + 2, rank)
            n += nova_put_number(raw + n, total.last)
            raw[n] = 0                                  # no stamp
            size = nova_totals_value(counter.totals, &total, raw + n + 2)
            raw[n + 1] = <uint8_t>size
            out += raw[:n + 2 + size]
            rows += 1
        rank += 1
    return [number(rows), bytes(out)]


# --- bytes -----------------------------------------------------------------------------------------------------------

cdef list wire_parts(Store store, CausalContext context, const nova_known *known):
    """How many rows, and the rows, that nobody who has `known` holds. The store is claimed."""
    cdef size_t rows = 0, size = 0, n = len(store.names)
    cdef uint32_t *rank = <uint32_t *>PyMem_Malloc((n + 1) * sizeof(uint32_t))
    cdef uint8_t *raw
    cdef uint32_t i = 0
    if rank == NULL:
        raise MemoryError
    try:
        for actor in sorted(context.actors):
            rank[<uint32_t>store.numbers[actor]] = i
            i += 1
        with nogil:
            raw = nova_rows_wire(store.rows, known, rank, &rows, &size)
    finally:
        PyMem_Free(rank)
    if raw == NULL:
        raise MemoryError
    try:
        return [number(rows), PyBytes_FromStringAndSize(<const char *>raw, size)]
    finally:
        free(raw)


cdef nova_known *known_of(Store store, CausalContext context) except NULL:
    """The spans of a context per writer of a store; the caller frees the array, the context keeps the spans."""
    cdef size_t n = len(store.names), i
    cdef nova_known *out = <nova_known *>PyMem_Malloc((n + 1) * sizeof(nova_known))
    cdef Spans spans
    if out == NULL:
        raise MemoryError
    for i in range(n):
        out[i].at, out[i].size = NULL, 0
        found = context.actors.get(store.names[i])
        if found is not None:
            spans = <Spans>found
            out[i].at, out[i].size = spans.at, spans.size
    return out


cdef CausalContext minus(CausalContext one, CausalContext other):
    """The events of one context that another does not know."""
    cdef CausalContext out = CausalContext()
    cdef Spans spans, less
    for actor, item in one.actors.items():
        spans = <Spans>item
        found = other.actors.get(actor)
        if found is not None:
            less = <Spans>found
            spans = spans.copy()
            spans.cut(less.at, less.size)
        if spans.size:
            out.actors[actor] = spans
    return out


cdef CausalContext gone_of(Store store, CausalContext base, const nova_known *known):
    """Of the dots `base`, which somebody knows who knows `known`, those whose rows may have to go there."""
    cdef CausalContext out
    cdef nova_dropped *dropped
    cdef Spans spans
    cdef size_t since = 0, n = 0, i
    if not nova_rows_since(store.rows, known, &since):
        return minus(base, kept_of(store, known))
    out = CausalContext()
    dropped = nova_rows_dropped(store.rows, known, since, &n)
    if dropped == NULL:
        raise MemoryError
    try:
        for i in range(n):
            if i == 0 or dropped[i].who != dropped[i - 1].who:
                spans = Spans.__new__(Spans)
                out.actors[store.names[dropped[i].who]] = spans
            spans.join(&dropped[i].span, 1)
    finally:
        free(dropped)
    return out


cdef list news_parts(CausalContext context, CausalContext base, CausalContext gone):
    """The events of a context beside `base`, and what may have to go of that; or in short that there is no base."""
    if not base.actors:
        return [b"\x00"]
    return [b"\x01", *context_parts(minus(context, base)), *context_parts(gone)]


cdef CausalContext kept_of(Store store, const nova_known *known):
    """The dots of our rows that somebody who has `known` holds."""
    cdef CausalContext out = CausalContext()
    cdef nova_span *raw
    cdef Spans spans
    cdef size_t n = 0
    cdef uint32_t who
    for who in range(nova_rows_writers(store.rows)):
        if not known[who].size:
            continue
        raw = nova_rows_kept(store.rows, who, known[who], &n)
        if raw == NULL:
            raise MemoryError
        try:
            if n:
                spans = Spans.__new__(Spans)
                spans.join(raw, n)
                out.actors[store.names[who]] = spans
        finally:
            free(raw)
    return out


cdef enum Fault:
    FAULT_MEMORY = 1
    FAULT_FULL
    FAULT_CUT
    FAULT_DEPTH
    FAULT_KEY_SIZE
    FAULT_KEY_TEXT
    FAULT_INSIDE
    FAULT_ROW
    FAULT_FIT
    FAULT_ORDER
    FAULT_TWO_ROWS
    FAULT_TWO_VALUES
    FAULT_TOTAL
    FAULT_TWO_TOTALS
    FAULT_MAPPING
    FAULT_VALUE
    FAULT_ELEMENT
    FAULT_FLAG
    FAULT_ACCOUNT
    FAULT_TWO_ACCOUNTS
    FAULT_NO_TYPE
    FAULT_KEYS
    FAULT_STAMP
    FAULT_STAMPS


# How far the rows of a state or delta are read. It is done without the interpreter, so what is wrong is a number first.
cdef struct Reading:
    nova_reader *r
    nova_rows *rows                     # its writers are numbered as on the wire
    const nova_known *kept              # NULL: all is here
    uint64_t writers
    void *names                         # list[str]
    void *stamps                        # set[int]: of the rows of one actor at one key, where they are more than one
    bint stamped                        # it is not empty
    bint any                            # a row was read; it is the one in `path`, `npath`, `row`
    const uint8_t *path
    size_t npath
    nova_row row
    nova_row next                       # the one that is being read
    int outer                           # the type of its container,
    int inner                           # and of that which is in there,
    size_t nkey                         # and how long the key of that is


cdef object fault_of(Reading *reading, int fault):
    """The error for a fault."""
    cdef nova_row *row = &reading.next
    cdef str actor = None
    if fault == FAULT_MEMORY or fault == FAULT_FULL:
        return failure(NOVA_ROWS_FULL if fault == FAULT_FULL else NOVA_ROWS_NOMEM)
    if row.who < reading.writers:
        actor = (<list>reading.names)[row.who]
    return malformed(WHAT, {
        FAULT_CUT: "it is cut",
        FAULT_DEPTH: f"a row is cut or nested deeper than {DEPTH_MAX} maps",
        FAULT_KEY_SIZE: f"a key of {reading.nkey} bytes, the limit is {KEY_BYTES_MAX}",
        FAULT_KEY_TEXT: "a key is not UTF-8",
        FAULT_INSIDE: f"type {reading.inner} inside type {reading.outer}",
        FAULT_ROW: "a row is cut or names an unknown actor",
        FAULT_FIT: f"its context and event {row.count} of actor {actor!r} do not fit",
        FAULT_ORDER: "its rows are out of order",
        FAULT_TWO_ROWS: f"event {row.count} of actor {actor!r} has two rows",
        FAULT_TWO_VALUES: "a last-writer-wins register has two values",
        FAULT_TOTAL: "the total of a counter is no total",
        FAULT_TWO_TOTALS: f"actor {actor!r} has two totals in one counter",
        FAULT_MAPPING: "an element of a set holds a mapping",
        FAULT_VALUE: f"a value of {row.nvalue if row.nvalue else row.nleaf} bytes is not canonical MessagePack",
        FAULT_ELEMENT: "an element of a set has a value",
        FAULT_FLAG: "a flag has a value",
        FAULT_ACCOUNT: f"the account of actor {actor!r} is no account",
        FAULT_TWO_ACCOUNTS: f"actor {actor!r} has two accounts in one counter",
        FAULT_NO_TYPE: "a map holds a value without a type",
        FAULT_KEYS: f"type {reading.outer} has no keys",
        FAULT_STAMP: f"actor {actor!r} gave stamp {row.stamp} to two values of one key",
        FAULT_STAMPS: f"type {reading.outer} has no stamps",
    }[fault])


cdef int compare(const uint8_t *a, size_t na, const uint8_t *b, size_t nb) noexcept nogil:
    cdef size_t n = na if na < nb else nb
    cdef int order = memcmp(a, b, n) if n else 0
    return order if order else (1 if na > nb else 0) - (1 if na < nb else 0)


cdef int take_field(nova_reader *r, const uint8_t **at, size_t *size) noexcept nogil:
    size[0] = nova_take_number(r)
    at[0] = nova_take(r, size[0])
    return FAULT_CUT if at[0] == NULL else 0


cdef int check_key(Reading *reading, const uint8_t *at, size_t size) noexcept nogil:
    reading.nkey = size
    if size > KEY_BYTES_MAX:
        return FAULT_KEY_SIZE
    return 0 if nova_is_utf8(at, size) else FAULT_KEY_TEXT


cdef int check_value(const uint8_t *at, size_t size, bint element) noexcept nogil:
    """Is this the one spelling of a value, or of an element of a set?"""
    cdef int found = nova_value_check(<uint8_t *>at, size, False)
    if found == NOVA_VALUE_MAPS and element:
        return FAULT_MAPPING
    return 0 if found == 0 or (found == NOVA_VALUE_MAPS and in_order(at, size)) else FAULT_VALUE


cdef bint is_account(Reading *reading) noexcept with gil:
    try:
        check_account(unpack(reading.next.value, reading.next.nvalue), (<list>reading.names)[reading.next.who])
    except Exception:
        return False
    return True


cdef bint is_stamped(Reading *reading) noexcept with gil:
    """Was the stamp of this row that of another one of the same key and actor? They are few, but for liars."""
    cdef set stamps = <set>reading.stamps
    try:
        if not reading.stamped:
            stamps.clear()
            stamps.add(reading.row.stamp)
            reading.stamped = True
        if reading.next.stamp in stamps:
            return True
        stamps.add(reading.next.stamp)
    except MemoryError:
        return True
    return False


cdef int check_row(Reading *reading, int type, bint same_key) noexcept nogil:
    """What the type of the row's container allows. same_key: the row before is of the same key and actor."""
    cdef nova_row *row = &reading.next
    cdef nova_reader r
    cdef int numbers, fault = 0
    cdef uint64_t sum = 0
    reading.outer = type
    if type == G_COUNTER or type == PN_COUNTER:
        r = nova_reader_of(row.value, row.nvalue)
        for numbers in range(type):                     # one number, or plus and minus
            sum |= nova_take_number(&r)
        if not r.ok or nova_left(&r) or not sum:
            return FAULT_TOTAL
        if same_key:
            return FAULT_TWO_TOTALS
    elif type == G_SET or type == OR_SET or type == TWO_P_SET:
        fault = check_value(row.leaf, row.nleaf, True)
        if not fault and row.nvalue and (type != TWO_P_SET or row.nvalue != 1 or row.value[0] != REMOVED):
            fault = FAULT_ELEMENT
    elif type == ENABLE_WINS_FLAG:
        if row.nvalue:
            return FAULT_FLAG
    elif type == BOUNDED_COUNTER:
        fault = check_value(row.value, row.nvalue, False)
        if not fault and not is_account(reading):
            fault = FAULT_ACCOUNT
        if not fault and same_key:
            fault = FAULT_TWO_ACCOUNTS
    elif type == OR_MAP:
        return FAULT_NO_TYPE
    else:
        fault = check_value(row.value, row.nvalue, False)
    if fault:
        return fault
    if type == LWW_MAP:
        fault = check_key(reading, row.leaf, row.nleaf)
        if fault:
            return fault
        if not same_key:
            reading.stamped = False
        elif is_stamped(reading):
            return FAULT_STAMP
        return 0
    if row.nleaf and type != G_SET and type != OR_SET and type != TWO_P_SET:
        return FAULT_KEYS
    return FAULT_STAMPS if row.stamp and type != LWW_REGISTER else 0


cdef int read_row(Reading *reading, int type) noexcept nogil:
    """The next row; 0 or a fault."""
    cdef nova_reader *r = reading.r
    cdef uint64_t depth = nova_take_number(r), j, who
    cdef nova_row *row = &reading.next
    cdef nova_row *before = &reading.row
    cdef const uint8_t *path
    cdef const uint8_t *key
    cdef size_t nkey = 0, npath
    cdef int fault, order = -1
    cdef bint same_box = False
    row.box, row.who = 0, NOVA_WHO_NONE
    if not r.ok or depth > DEPTH_MAX:
        return FAULT_DEPTH
    path = r.at
    for j in range(depth):
        reading.outer, reading.inner = type, nova_take_byte(r)
        fault = take_field(r, &key, &nkey)
        if not fault:
            fault = check_key(reading, key, nkey)
        if not fault and (type != OR_MAP or not G_COUNTER <= reading.inner <= NESTED_MAX):
            fault = FAULT_INSIDE
        if fault:
            return fault
        type = reading.inner
        row.box = nova_rows_box(reading.rows, row.box, type, rule_of(type), key, nkey, True)
        if row.box == NOVA_WHO_NONE:
            return FAULT_MEMORY
    npath = r.at - path
    if take_field(r, &row.leaf, &row.nleaf):
        return FAULT_CUT
    who = nova_take_number(r)
    row.count = nova_take_number(r)
    row.stamp = nova_take_number(r)
    if take_field(r, &row.value, &row.nvalue):
        return FAULT_CUT
    if who >= reading.writers:
        return FAULT_ROW
    row.who = who
    if not has_count(nova_rows_known(reading.rows, row.who), row.count) \
            or (reading.kept != NULL and has_count(reading.kept[row.who], row.count)):
        return FAULT_FIT
    if reading.any:
        order = compare(reading.path, reading.npath, path, npath)
        same_box = order == 0
        if order == 0:
            order = compare(before.leaf, before.nleaf, row.leaf, row.nleaf)
        if order == 0 and before.who != row.who:
            order = -1 if before.who < row.who else 1
        elif order == 0 and before.count >= row.count:
            order = 1
    if order > 0:
        return FAULT_ORDER
    if nova_rows_has(reading.rows, row.who, row.count):
        return FAULT_TWO_ROWS
    if same_box and type == LWW_REGISTER:
        return FAULT_TWO_VALUES
    fault = check_row(reading, type, order == 0)
    if fault:
        return fault
    fault = nova_rows_put(reading.rows, row)
    if fault:
        return FAULT_FULL if fault == NOVA_ROWS_FULL else FAULT_MEMORY
    reading.any, reading.path, reading.npath, reading.row = True, path, npath, row[0]
    return 0


cdef int read_all(Reading *reading, int type, uint64_t n) noexcept nogil:
    cdef int fault = 0
    while n and not fault:
        fault = read_row(reading, type)
        n -= 1
    return fault


cdef bint has_count(nova_known known, uint64_t count) noexcept nogil:
    cdef size_t i
    if known.size and known.at[0].first <= count <= known.at[0].last:
        return True
    i = nova_spans_seek(known.at, known.size, count)
    return i < known.size and known.at[i].first <= count


cdef Store read_rows(nova_reader *r, int type, CausalContext context, CausalContext kept, object actor):
    """A store of a context and the rows that follow; with `kept`, of a delta, it is only good to be joined."""
    cdef uint64_t n = nova_take_size(r, 6)
    cdef Store out = Store(type, actor)
    cdef nova_known *keeping = NULL
    cdef Reading reading
    cdef Spans spans
    cdef set stamps = set()
    cdef str name
    cdef int fault
    for name in sorted(context.actors):
        spans = <Spans>context.actors[name]
        out.learn(out.writer(name), spans.at, spans.size)
    if nova_rows_expect(out.rows, n, kept is not None):
        raise MemoryError
    try:
        if kept is not None:
            keeping = known_of(out, kept)
        reading.r, reading.rows, reading.kept, reading.writers = r, out.rows, keeping, len(out.names)
        reading.names, reading.stamps, reading.stamped, reading.any = <void *>out.names, <void *>stamps, False, False
        if n > ROWS_ALONE:              # nobody else knows of this store
            with nogil:
                fault = read_all(&reading, type, n)
        else:
            fault = read_all(&reading, type, n)
        if fault:
            raise fault_of(&reading, fault)
    finally:
        PyMem_Free(keeping)
    if not r.ok or nova_left(r):
        raise malformed(WHAT, "its length is wrong")
    if kept is None:
        nova_rows_begin_log(out.rows)
    return out


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


# --- counters --------------------------------------------------------------------------------------------------------

cdef uint32_t own_row(Replica self) except? 0xFFFFFFFF:
    """Our row of a type that has one for each actor."""
    cdef Store store = self.store
    cdef uint32_t at
    cdef nova_row row
    settled(store)
    if store.me == NOVA_WHO_NONE:
        return 0
    if not self.steps:
        return nova_rows_newest(store.rows, store.me)
    at = first_at(self, NO_LEAF)
    while at:
        nova_rows_view(store.rows, at, &row)
        if row.who == store.me:
            return at
        at = nova_rows_sibling(store.rows, at)
    return 0


cdef int replace_own(Replica self, uint32_t own, Packed value) except -1:
    """One event that puts a row in the place of our own."""
    write_row(self, NO_LEAF, 0, value, own if own else BESIDE)
    return tidy(self)


cdef int totals(nova_row *row, int type, uint64_t *up, uint64_t *down) noexcept:
    cdef nova_reader r = nova_reader_of(row.value, row.nvalue)
    up[0] = nova_take_number(&r)
    down[0] = nova_take_number(&r) if type == PN_COUNTER else 0
    return 0


cdef int count_on(Replica self, int type, uint64_t more, uint64_t less) except -1:
    """Replace our own total by a new one."""
    if self.totals is not None:
        return self.totals.count(more, less)
    cdef uint64_t up = 0, down = 0
    cdef uint32_t own = own_row(self)
    cdef nova_row row
    cdef uint8_t raw[20]
    cdef Packed value
    if own:
        nova_rows_view(self.store.rows, own, &row)
        totals(&row, type, &up, &down)
    up = plus(up, more, self.store.actor)
    down = plus(down, less, self.store.actor)
    value.at = raw
    value.size = nova_put_number(raw, up)
    if type == PN_COUNTER:
        value.size += nova_put_number(raw + value.size, down)
    return replace_own(self, own, value)


cdef object sum_of(Replica self, int type):
    if self.totals is not None:
        return self.totals.value()
    cdef uint64_t up, down
    cdef uint32_t at = first_at(self, NO_LEAF)
    cdef nova_row row
    cdef object out = 0
    while at:
        nova_rows_view(self.store.rows, at, &row)
        totals(&row, type, &up, &down)
        out = out + up - down
        at = nova_rows_sibling(self.store.rows, at)
    return out


cdef class GCounter(Replica):
    """A counter that only grows: a total per actor, the value is their sum."""

    def increment(self, amount=1):
        """Count on by 1 to 2**64 - 1. A total of an actor over 64 bits is refused, never wrapped."""
        count_on(self, G_COUNTER, as_amount(amount), 0)

    @property
    def value(self):
        return sum_of(self, G_COUNTER)


cdef class PNCounter(Replica):
    """A counter that goes both ways: two totals per actor.

    In a map, removing its key drops the totals that were seen; an actor that counts on meanwhile keeps its whole total.
    """

    def increment(self, amount=1):
        """Count up by 1 to 2**64 - 1."""
        count_on(self, PN_COUNTER, as_amount(amount), 0)

    def decrement(self, amount=1):
        """Count down by 1 to 2**64 - 1."""
        count_on(self, PN_COUNTER, 0, as_amount(amount))

    @property
    def value(self):
        return sum_of(self, PN_COUNTER)


# --- registers -------------------------------------------------------------------------------------------------------

cdef uint32_t winner(Store store, uint32_t at) noexcept:
    """Of the rows at a leaf, beginning with `at`, the one that outranks all others."""
    cdef uint32_t best = at
    while at:
        if at != best and nova_rows_outranks(store.rows, at, best):
            best = at
        at = nova_rows_sibling(store.rows, at)
    return best


cdef object value_at(Replica self, Packed leaf, object default):
    if self.cell is not None:
        return unpack(self.cell.state.rows[0].value, self.cell.state.rows[0].size) if self.cell.state.nrows else default
    cdef uint32_t at = winner(self.store, first_at(self, leaf))
    cdef nova_row row
    if not at:
        return default
    nova_rows_view(self.store.rows, at, &row)
    return unpack(row.value, row.nvalue)


cdef object stamp_at(Replica self, Packed leaf):
    if self.cell is not None:
        return self.cell.state.rows[0].stamp if self.cell.state.nrows else 0
    cdef uint32_t at = winner(self.store, first_at(self, leaf))
    cdef nova_row row
    if not at:
        return 0
    nova_rows_view(self.store.rows, at, &row)
    return row.stamp


cdef object stamped_twice(uint64_t stamp, object actor):
    return UsageError(f"stamp {stamp} of actor {actor!r} has another value already; take a new one from the clock")


cdef int write_in(Cell cell, Packed packed, uint64_t stamp) except -1:
    """One event that puts a row in the place of all."""
    cdef nova_cell_row *row = &cell.state.rows[0]
    row.count = cell.take_dot()
    row.who, row.stamp, row.size = cell.state.me, stamp, packed.size
    memcpy(row.value, packed.at, packed.size)
    cell.state.nrows = 1
    return 0


cdef bint write_last_in(Cell cell, Packed packed, uint64_t stamp) except -1:
    """As write_last, in a cell: it has one row at most."""
    cdef const nova_cell_row *row = &cell.state.rows[0]
    cdef bint wins = True
    if cell.state.nrows:
        if row.stamp != stamp:
            wins = row.stamp < stamp
        elif row.who != cell.state.me:
            wins = <str>cell.state.writers[row.who].owner < (cell.actor or "")
        elif compare(row.value, row.size, packed.at, packed.size):
            raise stamped_twice(stamp, cell.actor)
    if wins:
        write_in(cell, packed, stamp)
    else:
        cell.take_dot()
    return wins


cdef bint write_last(Replica self, Packed leaf, object value, object stamp) except -1:
    """A last-writer-wins write: it drops the rows it outranks, and is itself dropped if one outranks it."""
    cdef Packed packed
    cdef uint64_t at_stamp = as_stamp(stamp)
    hold = pack_value(self, value, &packed, False)
    if self.cell is not None and packed.size <= NOVA_CELL_VALUE:
        return write_last_in(self.cell, packed, at_stamp)
    cdef Store store = self.grow()
    cdef uint32_t at = first_at(self, leaf)
    cdef nova_row row
    cdef Found beaten = Found(NULL, 0, 0)
    cdef bint wins = True
    cdef int order
    try:
        while at:
            nova_rows_view(store.rows, at, &row)
            order = 0
            if row.stamp != at_stamp:
                order = -1 if row.stamp < at_stamp else 1
            elif row.who != store.me:
                order = -1 if store.names[row.who] < (store.actor or "") else 1
            elif compare(row.value, row.nvalue, packed.at, packed.size):
                raise stamped_twice(at_stamp, store.actor)
            if order > 0:
                wins = False
            else:
                push(&beaten, at)
            at = nova_rows_sibling(store.rows, at)
        if wins:
            write_row(self, leaf, at_stamp, packed, INSTEAD)
        else:
            store.take_dot()
            drop_all(store, &beaten)
        tidy(self)
    finally:
        PyMem_Free(beaten.at)
    return wins


cdef class LWWRegister(Replica):
    """One value: the write with the greatest (stamp, actor, bytes) stays."""

    def set(self, value, stamp):
        """Write a value at a stamp of a HybridLogicalClock. False: the present value has a greater stamp and stays."""
        return write_last(self, NO_LEAF, value, stamp)

    @property
    def value(self):
        """The value, None if there is none."""
        return value_at(self, NO_LEAF, None)

    @property
    def stamp(self):
        """The stamp of the value, 0 if there is none."""
        return stamp_at(self, NO_LEAF)


cdef class MVRegister(Replica):
    """Every value that no later write has seen: a write replaces exactly what its writer read."""

    def set(self, value):
        """Write a value over all that are here now."""
        cdef Packed packed
        hold = pack_value(self, value, &packed, False)
        if self.cell is not None and packed.size <= NOVA_CELL_VALUE:
            write_in(self.cell, packed, 0)
            return
        self.grow()
        write_row(self, NO_LEAF, 0, packed, INSTEAD)
        tidy(self)

    @property
    def value(self):
        """The concurrent values, equal ones once, in order of their bytes."""
        cdef const nova_cell_row *row
        cdef size_t i
        cdef list found = []
        if self.cell is None:
            found = [packed for _, packed in payloads(self, NO_LEAF)]
        else:
            for i in range(self.cell.state.nrows):
                row = &self.cell.state.rows[i]
                found.append(PyBytes_FromStringAndSize(<const char *>row.value, row.size))
        return [decode(packed) for packed in sorted(set(found))]


# --- sets ------------------------------------------------------------------------------------------------------------

cdef enum:
    REMOVED = 1                         # payload of a removed element of a two-phase set


cdef list elements(Replica self, bint removed):
    """What is in a set, in order of its bytes; of a two-phase set, if `removed`, without what was removed."""
    cdef list out = []
    cdef uint32_t box = self.box(False)
    cdef size_t n = 0, i
    cdef uint32_t *sorted_
    cdef nova_row row, before
    cdef bint gone = False
    if box == NOVA_WHO_NONE:
        return out
    sorted_ = nova_rows_sorted(self.store.rows, box, &n)
    if sorted_ == NULL:
        raise MemoryError
    try:
        for i in range(n):
            nova_rows_view(self.store.rows, sorted_[i], &row)
            if i and not compare(before.leaf, before.nleaf, row.leaf, row.nleaf):
                if removed and row.nvalue and not gone:
                    out.pop()
                    gone = True
                continue
            before = row
            gone = removed and row.nvalue
            if not gone:
                out.append(PyBytes_FromStringAndSize(<const char *>row.leaf, row.nleaf))
    finally:
        free(sorted_)
    return [frozen(decode(packed)) for packed in out]


cdef class SetReplica(Replica):
    """Elements are scalars or nested lists of them (given back as tuples); 1, 1.0 and True are three elements."""

    def __contains__(self, element):
        cdef Packed leaf
        hold = pack_element(self, element, &leaf)
        if self.steps:
            return first_at(self, leaf) != 0
        settled(self.store)
        return nova_rows_find(self.store.rows, 0, leaf.at, leaf.size) != 0

    def contains_many(self, elements):
        """Whether each of the elements is in, in their order, as an array of bool.

        elements   an iterable, or a one-dimensional array of integers of 64 bits
        """
        cdef Packed leaf
        cdef uint32_t box
        cdef bytes out
        cdef char *flags
        cdef Py_ssize_t i, n
        cdef const int64_t[:] view
        import numpy
        view = as_integers(elements)
        if view is not None:
            n = view.shape[0]
            out = PyBytes_FromStringAndSize(NULL, n)
            flags = PyBytes_AS_STRING(out)
            box = self.box(False)
            if box == NOVA_WHO_NONE:
                return numpy.zeros(n, bool)
            need_scratch(16)
            leaf.at = scratch
            for i in range(n):
                leaf.size = put_integer(scratch, view[i])
                flags[i] = self.holds(nova_rows_find(self.store.rows, box, leaf.at, leaf.size))
        else:
            elements = elements if isinstance(elements, (list, tuple)) else list(elements)
            n = len(elements)
            out = PyBytes_FromStringAndSize(NULL, n)
            flags = PyBytes_AS_STRING(out)
            for i in range(n):
                hold = pack_element(self, elements[i], &leaf)
                # Packing may run code of others, which may write here.
                box = self.box(False)
                flags[i] = box != NOVA_WHO_NONE and self.holds(nova_rows_find(self.store.rows, box, leaf.at, leaf.size))
        return numpy.frombuffer(out, bool)

    cdef bint holds(self, uint32_t at):
        """Is an element in whose rows begin with this one?"""
        return at != 0

    def __len__(self):
        cdef uint32_t box = self.box(False)
        return 0 if box == NOVA_WHO_NONE else nova_rows_box_keys(self.store.rows, box)

    def __iter__(self):
        return iter(elements(self, False))

    @property
    def value(self):
        """A frozenset. Python takes 1, 1.0 and True for one; iterate to see each."""
        return frozenset(self)


cdef object as_integers(object elements):
    """A buffer of 64-bit integers as it is, or None for anything else."""
    if isinstance(elements, (list, tuple, set, frozenset)):
        return None
    try:
        view = memoryview(elements)
    except TypeError:
        return None
    if view.ndim == 1 and view.itemsize == 8 and view.format in ("l", "q"):
        return view
    return None


cdef int add_all(Replica self, object elements, bint again) except -1:
    """Add elements; with `again` also those that are here."""
    cdef Packed leaf
    cdef Py_ssize_t i
    cdef const int64_t[:] view = as_integers(elements)
    if view is None:
        for element in elements:
            hold = pack_element(self, element, &leaf)
            if again or not first_at(self, leaf):
                write_row(self, leaf, 0, NO_LEAF, INSTEAD if again else BESIDE)
                tidy(self)
        return 0
    settled(self.store)                 # it stays so to the end: nothing here lets others run
    need_scratch(16)
    leaf.at = scratch
    for i in range(view.shape[0]):
        leaf.size = put_integer(scratch, view[i])
        if again or not first_at(self, leaf):
            write_row(self, leaf, 0, NO_LEAF, INSTEAD if again else BESIDE)
            tidy(self)
    return 0


cdef class GSet(SetReplica):
    """A set that only grows."""

    def add(self, element):
        """Add an element; nothing happens if it is here."""
        cdef Packed leaf
        hold = pack_element(self, element, &leaf)
        if not first_at(self, leaf):
            write_row(self, leaf, 0, NO_LEAF, BESIDE)
            tidy(self)

    def add_many(self, elements):
        """Add each of the elements: an iterable, or a one-dimensional array of integers of 64 bits."""
        add_all(self, elements, False)


cdef class ORSet(SetReplica):
    """A set where a remove takes exactly the adds that it has seen, so a concurrent add wins."""

    def add(self, element):
        """Add an element, again if it is here: so it outlives a concurrent remove."""
        cdef Packed leaf
        hold = pack_element(self, element, &leaf)
        write_row(self, leaf, 0, NO_LEAF, INSTEAD)
        tidy(self)

    def add_many(self, elements):
        """Add each of the elements: an iterable, or a one-dimensional array of integers of 64 bits."""
        add_all(self, elements, True)

    def remove(self, element):
        """Remove an element. False: it is not here, nothing happened."""
        cdef Packed leaf
        hold = pack_element(self, element, &leaf)
        return remove_leaf(self, leaf)

    def remove_many(self, elements):
        """Remove those of the elements that are here, as one event; how many were."""
        cdef Packed leaf
        cdef uint32_t at
        cdef Found found = Found(NULL, 0, 0)
        cdef size_t removed = 0
        cdef list packed = []
        for element in elements:
            hold = pack_element(self, element, &leaf)
            packed.append(PyBytes_FromStringAndSize(<const char *>leaf.at, leaf.size))
        cdef uint32_t box = self.box(False)
        if box == NOVA_WHO_NONE:
            return 0
        for hold in packed:
            leaf.at, leaf.size = <const uint8_t *>PyBytes_AS_STRING(hold), PyBytes_GET_SIZE(hold)
            if nova_rows_find(self.store.rows, box, leaf.at, leaf.size):
                if not removed:
                    self.store.take_dot()
                nova_rows_drop_key(self.store.rows, box, leaf.at, leaf.size)
                removed += 1
        tidy(self)
        return removed

    def clear(self):
        """Remove all elements that are here, as one event."""
        cdef uint32_t box = self.box(False)
        cdef Found found = Found(NULL, 0, 0)
        if box == NOVA_WHO_NONE or not nova_rows_box_size(self.store.rows, box):
            return
        self.store.take_dot()
        try:
            below(self.store, box, &found)
            drop_all(self.store, &found)
        finally:
            PyMem_Free(found.at)
        tidy(self)


cdef class TwoPSet(SetReplica):
    """A set where a removed element never comes back, on any replica (2P-Set; Shapiro et al. 2011).

    A removal stays as a mark of its element for good, so it beats adds made at the same time, and later.
    """

    cdef bint holds(self, uint32_t at):
        cdef nova_row row
        if not at:
            return False
        while at:
            nova_rows_view(self.store.rows, at, &row)
            if row.nvalue:
                return False
            at = nova_rows_sibling(self.store.rows, at)
        return True

    def add(self, element):
        """Add an element; nothing happens if it is here. False: it was removed, and stays so."""
        cdef Packed leaf
        hold = pack_element(self, element, &leaf)
        cdef uint32_t at = first_at(self, leaf)
        if not at:
            write_row(self, leaf, 0, NO_LEAF, BESIDE)
            tidy(self)
            return True
        return self.holds(at)

    def remove(self, element):
        """Remove an element for good. False: it is not here, nothing happened."""
        cdef Packed leaf, mark
        cdef uint8_t raw = REMOVED
        hold = pack_element(self, element, &leaf)
        if not self.holds(first_at(self, leaf)):
            return False
        mark.at, mark.size = &raw, 1
        write_row(self, leaf, 0, mark, INSTEAD)
        tidy(self)
        return True

    def __contains__(self, element):
        cdef Packed leaf
        hold = pack_element(self, element, &leaf)
        return self.holds(first_at(self, leaf))

    def __len__(self):
        return len(elements(self, True))

    def __iter__(self):
        return iter(elements(self, True))


cdef class EnableWinsFlag(Replica):
    """On or off; of an enable and a disable that did not see each other, the enable wins."""

    def enable(self):
        """Switch on, again if it is on: so it outlives a concurrent disable."""
        write_row(self, NO_LEAF, 0, NO_LEAF, INSTEAD)
        tidy(self)

    def disable(self):
        """Switch off what is seen. False: it is off, nothing happened."""
        return remove_leaf(self, NO_LEAF)

    @property
    def value(self):
        return first_at(self, NO_LEAF) != 0

    def __bool__(self):
        return self.value


# --- bounded counters ------------------------------------------------------------------------------------------------

cdef int check_account(object account, str actor) except -1:
    """[added, taken, {to: given}]: what one actor did, all of it positive."""
    if (type(account) is not list or len(account) != 3 or type(account[2]) is not dict
            or type(account[0]) is not int or type(account[1]) is not int or account[0] < 0 or account[1] < 0
            or not all([type(to) is str and to and to != actor and type(given) is int and given > 0
                        for to, given in (<dict>account[2]).items()])):
        raise malformed(WHAT, f"the account of actor {actor!r} is no account")
    return 0


cdef class BoundedCounter(Replica):
    """A counter that never goes below 0, however replicas are cut off (escrow; Balegas et al. 2015).

    Each actor holds rights: what it added, plus what others gave it, less what it took and gave away. It takes only
    what it has rights for, so no replica needs to ask another, and the sum over all cannot be overdrawn.
    """

    cdef dict accounts(self):
        return {self.store.names[who]: decode(payload) for who, payload in payloads(self, NO_LEAF)}

    cdef int settle(self, list account) except -1:
        """Replace our own account by a new one."""
        cdef bytes payload
        cdef Packed packed
        for total in (account[0], account[1], *account[2].values()):
            if total > U64_MAX:
                raise UsageError(f"a total of actor {self.store.actor!r} would be over 2**64 - 1; go on under a new actor")
        payload = pack(account)
        packed.at, packed.size = <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload)
        return replace_own(self, own_row(self), packed)

    def rights_of(self, actor):
        """How much an actor may take, as far as is known here."""
        cdef dict accounts = self.accounts()
        added, taken, given = accounts.get(actor, (0, 0, {}))
        return added - taken - sum(given.values()) + sum([other[2].get(actor, 0) for other in accounts.values()])

    @property
    def rights(self):
        """How much this replica may take now."""
        return self.rights_of(self.store.actor) if self.store.actor is not None else 0

    cdef list spend(self, object amount, str what):
        """Our account, after rights for the amount were found."""
        cdef object more = as_amount(amount), rights = self.rights
        if self.store.actor is not None and more > rights:
            raise UnavailableError(
                f"{what} {amount} needs as many rights; actor {self.store.actor!r} holds {rights}: "
                "wait for a transfer from a replica that has some")
        return list(self.accounts().get(self.store.actor, (0, 0, {})))

    def increment(self, amount=1):
        """Add 1 to 2**64 - 1, and hold the rights for it."""
        cdef object more = as_amount(amount)
        account = self.accounts().get(self.store.actor, [0, 0, {}])
        account[0] += more
        self.settle(account)

    def decrement(self, amount=1):
        """Take from the counter. raises UnavailableError, which names the rights held here, if they are too few."""
        account = self.spend(amount, "decrement by")
        account[1] += amount
        self.settle(account)

    def transfer(self, to, amount):
        """Give rights to another actor, who can use them when it has heard. raises UnavailableError as decrement does."""
        if not isinstance(to, str) or not to or to == self.store.actor:
            raise UsageError(f"rights cannot go to {to!r}; name another actor")
        to = as_actor(to)
        account = self.spend(amount, "transfer of")
        account[2] = {**account[2], to: account[2].get(to, 0) + amount}
        self.settle(account)

    @property
    def value(self):
        return sum([added - taken for added, taken, _ in self.accounts().values()])


# --- maps ------------------------------------------------------------------------------------------------------------

cdef list keys_of(Replica self):
    """The keys of a map of values, sorted by their bytes."""
    cdef list out = []
    cdef uint32_t box = self.box(False)
    cdef size_t n = 0, i
    cdef uint32_t *sorted_
    cdef nova_row row, before
    if box == NOVA_WHO_NONE:
        return out
    sorted_ = nova_rows_sorted(self.store.rows, box, &n)
    if sorted_ == NULL:
        raise MemoryError
    try:
        for i in range(n):
            nova_rows_view(self.store.rows, sorted_[i], &row)
            if i == 0 or compare(before.leaf, before.nleaf, row.leaf, row.nleaf):
                out.append(text_of(row.leaf, row.nleaf))
            before = row
    finally:
        free(sorted_)
    return out


cdef class LWWMap(Replica):
    """Keys to values; of concurrent writes to a key the greatest (stamp, actor, bytes) shows, and a remove takes what it saw."""

    def set(self, key, value, stamp):
        """Write a key at a stamp of a HybridLogicalClock. False: its present value has a greater stamp and stays."""
        cdef Packed leaf
        pack_key(key, &leaf)
        return write_last(self, leaf, value, stamp)

    def set_many(self, values, stamp):
        """Write each key of a mapping at one stamp; how many of the writes show."""
        cdef object written = 0
        for key, value in dict(values).items():
            written += self.set(key, value, stamp)
        return written

    def remove(self, key):
        """Remove a key; a concurrent write to it stays. False: it is not here, nothing happened."""
        cdef Packed leaf
        pack_key(key, &leaf)
        return remove_leaf(self, leaf)

    def get(self, key, default=None):
        """The value under a key."""
        cdef Packed leaf
        pack_key(key, &leaf)
        return value_at(self, leaf, default)

    def stamp(self, key):
        """The stamp of the value under a key, 0 if there is none."""
        cdef Packed leaf
        pack_key(key, &leaf)
        return stamp_at(self, leaf)

    def __contains__(self, key):
        cdef Packed leaf
        pack_key(key, &leaf)
        return first_at(self, leaf) != 0

    def __len__(self):
        cdef uint32_t box = self.box(False)
        return 0 if box == NOVA_WHO_NONE else nova_rows_box_keys(self.store.rows, box)

    def __iter__(self):
        return iter(keys_of(self))

    @property
    def value(self):
        """A dict in order of its keys."""
        return {key: self.get(key) for key in keys_of(self)}


cdef class ORMap(Replica):
    """Keys to CRDTs of any type, maps among them, all under one context.

    The type is part of the key. A key is there while something lives in it; removing it drops what was seen, so a
    concurrent update keeps the key, without the part that was seen.
    """

    def at(self, key, kind):
        """The CRDT of class `kind` under a key, empty if there is none; writing to it writes here."""
        cdef Replica out
        cdef Packed packed
        found = TYPES.get(kind)
        if found is None:
            raise UsageError(f"{kind!r} is no CRDT class; use one of nova.crdt")
        if found > NESTED_MAX:
            raise UsageError(f"a {kind.__name__} cannot live in a map: removing its key would forge rights; keep it beside the map")
        pack_key(key, &packed)
        if len(self.steps) == DEPTH_MAX:
            raise LimitError(f"{key!r} would be nested in {DEPTH_MAX + 1} maps; the limit is {DEPTH_MAX}; use a flatter shape")
        out = kind.__new__(kind)
        out.store = self.store
        out.steps = self.steps + ((found, str.__str__(key)),)
        return out

    cdef list boxes(self, object key):
        """The non-empty containers under a key in the order of their types: a type, its box, and so on."""
        cdef list out = []
        cdef Packed packed
        cdef uint32_t here = self.box(False), box
        cdef int type
        pack_key(key, &packed)
        if here != NOVA_WHO_NONE:
            for type in range(1, NESTED_MAX + 1):
                box = nova_rows_box(self.store.rows, here, type, 0, packed.at, packed.size, False)
                if box != NOVA_WHO_NONE and nova_rows_box_size(self.store.rows, box):
                    out.append(type)
                    out.append(box)
        return out

    def types(self, key):
        """The classes that live under a key, in their fixed order."""
        return [CLASSES[type] for type in self.boxes(key)[::2]]

    def remove(self, key):
        """Remove what is seen under a key, of all types. False: there is nothing."""
        cdef Found found = Found(NULL, 0, 0)
        cdef list boxes = self.boxes(key)
        cdef size_t i
        if not boxes:
            return False
        self.store.take_dot()
        try:
            for i in range(1, len(boxes), 2):
                below(self.store, boxes[i], &found)
            drop_all(self.store, &found)
        finally:
            PyMem_Free(found.at)
        tidy(self)
        return True

    cdef list keys(self):
        cdef set out = set()
        cdef uint32_t here = self.box(False), at, box
        cdef size_t n
        cdef const uint8_t *key
        if here == NOVA_WHO_NONE:
            return []
        at = nova_rows_first(self.store.rows, here)
        while at:
            box = nova_rows_box_of(self.store.rows, at)
            if nova_rows_box_size(self.store.rows, box):
                key = nova_rows_box_key(self.store.rows, box, &n)
                out.add(text_of(key, n))
            at = nova_rows_next(self.store.rows, at)
        return sorted(out)

    def __contains__(self, key):
        return bool(self.boxes(key))

    def __iter__(self):
        return iter(self.keys())

    def __len__(self):
        return len(self.keys())

    @property
    def value(self):
        """A dict in order of its keys; of several types under one key the first of `types` shows."""
        return {key: self.at(key, self.types(key)[0]).value for key in self.keys()}


for _number, _class in enumerate((GCounter, PNCounter, GSet, LWWRegister, MVRegister, ORSet, LWWMap, ORMap, TwoPSet,
                                  EnableWinsFlag, BoundedCounter), 1):
    TYPES[_class] = _number
    CLASSES[_number] = _class
