"""Many vector clocks as one array. `nova.clock` is the face of this module."""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from nova._native.vclock cimport ActorSet, VectorClock, actor_name, actor_set, as_actor, clock_of

from nova._native.vclock import _actor_key
from nova.errors import LimitError, UsageError

DEF U64_MAX = 0xFFFFFFFFFFFFFFFF
DEF BYTES_MAX = 1 << 34
DEF ALONE = 16384                       # counts below this are compared before the GIL could be given and taken

cdef object numpy = None                # imported when the first array is asked for


cdef object arrays():
    global numpy
    if numpy is None:
        import numpy as found
        numpy = found
    return numpy


cdef inline unsigned width_for(uint64_t spread) noexcept:
    return 2 if spread < 0x10000 else 4 if spread < 0x100000000 else 8


# The bytes of a result: a new array, or what the caller gave.
cdef class Out:
    cdef Py_buffer view
    cdef bint held
    cdef object array
    cdef int8_t *at

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef Out out_of(object out, tuple shape):
    cdef Out self = Out.__new__(Out)
    cdef Py_ssize_t size = 1
    for n in shape:
        size *= n
    if out is None:
        out = arrays().empty(shape, "i1")
    try:
        PyObject_GetBuffer(out, &self.view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE | PyBUF_FORMAT)
    except (TypeError, BufferError, ValueError) as error:
        raise UsageError(f"out cannot be written ({error}); pass a contiguous, writable array of int8") from None
    self.held = True
    if self.view.itemsize != 1 or self.view.len != size or self.view.format == NULL or self.view.format[0] != b"b":
        raise UsageError(f"out holds {self.view.len // max(self.view.itemsize, 1)} items of {self.view.itemsize} bytes; "
                         f"pass an array of int8 of shape {shape}")
    self.array = out
    self.at = <int8_t *>self.view.buf
    return self


cdef class ClockBatch:
    """Many vector clocks as one array: rows are clocks, columns the actors that any of them knows. Immutable.

    Comparing costs about 1 ns a clock of 16 actors, and no Python object each. A column holds 16, 32 or 64 bits,
    whichever is enough for the differences between its counts; memory is rows x actors, whether a clock knows an actor
    or not, so clocks that share hardly an actor are better kept apart. `int8` results are the values of `Order`.
    """

    cdef nova_clock_batch batch
    cdef uint64_t *bases
    cdef void *memory
    cdef tuple names                    # actor of each column, canonical order
    cdef ActorSet known                 # the same as ids, ascending
    cdef uint32_t *column_of            # column of each of `known`

    def __init__(self, *args):
        raise UsageError("a ClockBatch is made by ClockBatch.from_clocks or ClockBatch.from_array")

    def __dealloc__(self):
        PyMem_Free(self.bases)
        PyMem_Free(self.column_of)
        free(self.memory)

    cdef int shape(self, ActorSet known, size_t rows) except -1:
        """Take these actors as columns; bases are left at 0."""
        cdef size_t i, n = known.size
        self.known = known
        self.batch.rows, self.batch.columns = rows, n
        self.check_size(2)
        self.bases = <uint64_t *>PyMem_Malloc((n + 1) * sizeof(uint64_t))
        self.column_of = <uint32_t *>PyMem_Malloc((n + 1) * sizeof(uint32_t))
        if self.bases == NULL or self.column_of == NULL:
            raise MemoryError
        memset(self.bases, 0, (n + 1) * sizeof(uint64_t))
        self.batch.base = self.bases
        order = sorted([(_actor_key(actor_name(known.ids[i])), i) for i in range(n)])
        self.names = tuple([key[1] for key, _ in order])
        for column, (_, i) in enumerate(order):
            self.column_of[i] = column
        return 0

    cdef int check_size(self, unsigned width) except -1:
        if <double>self.batch.rows * self.batch.columns * width > BYTES_MAX:
            raise LimitError(f"{self.batch.rows} clocks of {self.batch.columns} actors need over {BYTES_MAX} bytes as one "
                             "array, the limit; make several batches of clocks that share actors")
        return 0

    cdef int reserve(self, unsigned width) except -1:
        """Zeroed blocks for the shape at this width."""
        cdef size_t size = nova_batch_bytes(self.batch.rows, self.batch.columns, width)
        self.check_size(width)
        free(self.memory)
        self.memory = calloc(size + 64, 1)
        if self.memory == NULL:
            raise MemoryError
        self.batch.blocks = <void *>((<uintptr_t>self.memory + 63) & ~<uintptr_t>63)
        self.batch.width = width
        return 0

    cdef int spread(self, const uint64_t *low, const uint64_t *high) except -1:
        """Set the bases and reserve what the greatest difference needs."""
        cdef uint64_t most = 0
        cdef size_t i
        for i in range(self.batch.columns):
            self.bases[i] = low[i]
            if high[i] - low[i] > most:
                most = high[i] - low[i]
        return self.reserve(width_for(most))

    @staticmethod
    def from_clocks(clocks):
        """The batch of these VectorClocks, in their order. O(clocks x actors)."""
        cdef list rows = list(clocks)
        cdef ClockBatch out = ClockBatch.__new__(ClockBatch)
        cdef VectorClock clock
        cdef ActorSet first = None
        cdef set ids = None
        cdef size_t i, j, n, m = len(rows)
        cdef uint32_t *flat
        cdef uint64_t *edges
        cdef uint64_t *row
        for item in rows:
            if not isinstance(item, VectorClock):
                raise UsageError(f"{item!r} is a {type(item).__name__}; a batch is made of VectorClock objects")
            clock = <VectorClock>item
            if clock.actors is first:
                continue
            if first is None and ids is None:
                first = clock.actors
                continue
            if ids is None:
                ids = set()
                for i in range(first.size):
                    ids.add(first.ids[i])
            first = clock.actors
            for i in range(first.size):
                ids.add(first.ids[i])
        if ids is not None:
            flat = <uint32_t *>PyMem_Malloc((len(ids) + 1) * sizeof(uint32_t))
            if flat == NULL:
                raise MemoryError
            try:
                for i, id in enumerate(sorted(ids)):
                    flat[i] = id
                first = actor_set(flat, len(ids))
            finally:
                PyMem_Free(flat)
        elif first is None:
            first = actor_set(NULL, 0)
        out.shape(first, m)
        n = first.size
        edges = <uint64_t *>PyMem_Malloc((3 * n + 1) * sizeof(uint64_t))     # least, greatest, one row
        if edges == NULL:
            raise MemoryError
        try:
            row = edges + 2 * n
            for i in range(n):
                edges[i], edges[n + i] = U64_MAX if m else 0, 0
            for item in rows:
                out.lay_out(<VectorClock>item, row)
                for i in range(n):
                    edges[i] = min(edges[i], row[i])
                    edges[n + i] = max(edges[n + i], row[i])
            out.spread(edges, edges + n)
            for j in range(m):
                out.lay_out(<VectorClock>rows[j], row)
                for i in range(n):
                    nova_batch_set(&out.batch, j, i, row[i])
        finally:
            PyMem_Free(edges)
        return out

    @staticmethod
    def from_array(actors, counts):
        """The batch of a (clocks, actors) array of unsigned counts; 0 means that the actor is unknown."""
        cdef ClockBatch out = ClockBatch.__new__(ClockBatch)
        cdef const uint64_t *at
        cdef Py_buffer view
        cdef size_t i, j, m, n
        np = arrays()
        given = np.asarray(counts)
        names = [as_actor(actor) for actor in actors]
        if len(set(names)) != len(names):
            raise UsageError("an actor is named twice; each column needs its own")
        if given.ndim != 2 or given.shape[1] != len(names):
            raise UsageError(f"counts of shape {given.shape} for {len(names)} actors; pass (clocks, {len(names)})")
        if given.dtype.kind not in "ui" or (given.dtype.kind == "i" and given.size and given.min() < 0):
            raise UsageError(f"counts of type {given.dtype} hold what is no count; pass integers from 0 to 2**64 - 1")
        clock = VectorClock({name: 1 for name in names})
        out.shape((<VectorClock>clock).actors, given.shape[0])
        m, n = out.batch.rows, out.batch.columns
        at_name = {name: i for i, name in enumerate(names)}
        table = np.ascontiguousarray(given[:, [at_name[name] for name in out.names]], dtype=np.uint64)
        if m and n:
            low, high = table.min(axis=0), table.max(axis=0)
            PyObject_GetBuffer(low, &view, PyBUF_C_CONTIGUOUS)
            for i in range(n):
                out.bases[i] = (<uint64_t *>view.buf)[i]
            PyBuffer_Release(&view)
            out.reserve(width_for(int((high - low).max())))
            PyObject_GetBuffer(table, &view, PyBUF_C_CONTIGUOUS)
            at = <const uint64_t *>view.buf
            with nogil:
                for j in range(m):
                    for i in range(n):
                        nova_batch_set(&out.batch, j, i, at[j * n + i])
            PyBuffer_Release(&view)
        else:
            out.reserve(2)
        return out

    @property
    def actors(self):
        """The actor of each column: int, bytes, str, each ascending."""
        return self.names

    @property
    def counts(self):
        """A copy as a (clocks, actors) array of uint64."""
        cdef Py_buffer view
        cdef uint64_t *at
        cdef size_t i, j
        out = arrays().empty((self.batch.rows, self.batch.columns), "u8")
        if self.batch.rows and self.batch.columns:
            PyObject_GetBuffer(out, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
            at = <uint64_t *>view.buf
            with nogil:
                for j in range(self.batch.rows):
                    for i in range(self.batch.columns):
                        at[j * self.batch.columns + i] = nova_batch_get(&self.batch, j, i)
            PyBuffer_Release(&view)
        return out

    @property
    def nbytes(self):
        """Bytes that the counts take."""
        return nova_batch_bytes(self.batch.rows, self.batch.columns, self.batch.width)

    def __len__(self):
        return self.batch.rows

    cdef VectorClock clock(self, const uint64_t *by_column):
        """The clock of these counts, by column."""
        cdef uint64_t *counts = <uint64_t *>PyMem_Malloc((self.known.size + 1) * sizeof(uint64_t))
        cdef size_t i
        if counts == NULL:
            raise MemoryError
        try:
            for i in range(self.known.size):
                counts[i] = by_column[self.column_of[i]]
            return clock_of(self.known, counts)
        finally:
            PyMem_Free(counts)

    def __getitem__(self, index):
        """One clock."""
        cdef uint64_t *counts
        cdef size_t i
        cdef Py_ssize_t at
        if isinstance(index, bool) or not isinstance(index, int):
            raise UsageError(f"index {index!r} is a {type(index).__name__}; a batch is indexed by int")
        if not -<Py_ssize_t>self.batch.rows <= index < self.batch.rows:
            raise IndexError(f"clock {index} of a batch of {self.batch.rows}")
        at = index
        if at < 0:
            at += self.batch.rows
        counts = <uint64_t *>PyMem_Malloc((self.batch.columns + 1) * sizeof(uint64_t))
        if counts == NULL:
            raise MemoryError
        try:
            for i in range(self.batch.columns):
                counts[i] = nova_batch_get(&self.batch, at, i)
            return self.clock(counts)
        finally:
            PyMem_Free(counts)

    cdef bint lay_out(self, VectorClock clock, uint64_t *counts):
        """Set a clock's counts by column; does it know actors beyond them?"""
        cdef size_t i, k = 0, seen = 0
        for i in range(self.known.size):
            while k < clock.actors.size and clock.actors.ids[k] < self.known.ids[i]:
                k += 1
            if k < clock.actors.size and clock.actors.ids[k] == self.known.ids[i]:
                counts[self.column_of[i]] = clock.counts[k]
                seen += 1
                k += 1
            else:
                counts[self.column_of[i]] = 0
        return seen < clock.actors.size

    def compare(self, VectorClock clock not None, out=None):
        """How each clock of the batch stands to `clock`: int8 of shape (len,), values of Order. O(clocks x actors)."""
        cdef Out result = out_of(out, (self.batch.rows,))
        cdef uint64_t near[64]
        cdef uint64_t *counts = near
        cdef bint more
        if self.batch.columns > 64:
            counts = <uint64_t *>PyMem_Malloc(self.batch.columns * sizeof(uint64_t))
            if counts == NULL:
                raise MemoryError
        more = self.lay_out(clock, counts)
        if self.batch.rows * (self.batch.columns + 1) < ALONE:
            nova_batch_compare(&self.batch, 0, self.batch.rows, counts, more, False, result.at)
        else:
            with nogil:
                nova_batch_compare(&self.batch, 0, self.batch.rows, counts, more, False, result.at)
        if counts != near:
            PyMem_Free(counts)
        return result.array

    def compare_pairs(self, ClockBatch other not None, out=None):
        """How each clock stands to that of the same row in `other`: int8 of shape (len,), values of Order."""
        cdef Out result
        cdef ClockBatch a, b
        if other.batch.rows != self.batch.rows:
            raise UsageError(f"a batch of {self.batch.rows} clocks in pairs with one of {other.batch.rows}; both must be equally long")
        result = out_of(out, (self.batch.rows,))
        a, b = in_common(self, other)
        with nogil:
            nova_batch_compare_pairs(&a.batch, &b.batch, result.at)
        return result.array

    def merge_pairs(self, ClockBatch other not None):
        """The least clock that covers each clock and that of the same row in `other`, as a batch."""
        cdef ClockBatch a, b, out = ClockBatch.__new__(ClockBatch)
        cdef size_t i
        if other.batch.rows != self.batch.rows:
            raise UsageError(f"a batch of {self.batch.rows} clocks in pairs with one of {other.batch.rows}; both must be equally long")
        a, b = in_common(self, other)
        out.shape(a.known, a.batch.rows)
        for i in range(a.batch.columns):
            out.bases[i] = a.bases[i]
        out.reserve(a.batch.width)
        with nogil:
            nova_batch_merge_pairs(&a.batch, &b.batch, &out.batch)
        return out

    def compare_all(self, ClockBatch other not None, out=None):
        """How each clock stands to each of `other`: int8 of shape (len(self), len(other)), values of Order."""
        cdef Out result = out_of(out, (self.batch.rows, other.batch.rows))
        cdef ClockBatch b = other
        cdef size_t i, k, end, tile, columns, wide = other.batch.rows
        cdef uint64_t *queries
        cdef bint more
        if not self.batch.rows or not wide:
            return result.array
        # Ours are the queries, so that a row of the result is written in one piece.
        columns = b.batch.columns
        queries = <uint64_t *>PyMem_Malloc((columns + 1) * self.batch.rows * sizeof(uint64_t))
        if queries == NULL:
            raise MemoryError
        try:
            for i in range(self.batch.rows):
                queries[(columns + 1) * i + columns] = b.lay_out(self[i], queries + (columns + 1) * i)
            # As many clocks of `other` at a time as stay in the first cache.
            tile = max(1024, 16384 // (columns * b.batch.width + 1) // 1024 * 1024)
            with nogil:
                k = 0
                while k < wide:
                    end = min(k + tile, wide)
                    for i in range(self.batch.rows):
                        nova_batch_compare(&b.batch, k, end, queries + (columns + 1) * i,
                                           queries[(columns + 1) * i + columns] != 0, True, result.at + i * wide + k)
                    k = end
        finally:
            PyMem_Free(queries)
        return result.array

    cdef VectorClock fold(self, bint least):
        cdef uint64_t *counts
        if not self.batch.rows:
            return VectorClock()
        counts = <uint64_t *>PyMem_Malloc((self.batch.columns + 1) * sizeof(uint64_t))
        if counts == NULL:
            raise MemoryError
        try:
            with nogil:
                nova_batch_fold(&self.batch, least, counts)
            return self.clock(counts)
        finally:
            PyMem_Free(counts)

    def merge_all(self):
        """Least upper bound: what any of the clocks knows."""
        return self.fold(False)

    def meet_all(self):
        """Greatest lower bound: what all of the clocks know (an empty batch: nothing). What it covers is causally stable."""
        return self.fold(True)

    def __reduce__(self):
        return _restore, (self.names, self.counts)

    def __repr__(self):
        return f"<ClockBatch: {self.batch.rows} clocks of {self.batch.columns} actors, {8 * self.batch.width} bits each>"


def _restore(names, counts):
    return ClockBatch.from_array(names, counts)


cdef tuple in_common(ClockBatch a, ClockBatch b):
    """The two over the same columns, bases and width."""
    cdef size_t i
    cdef bint same = a.names == b.names and a.batch.width == b.batch.width
    for i in range(a.batch.columns if same else 0):
        same = same and a.bases[i] == b.bases[i]
    if same:
        return a, b
    if a.names == b.names and a.batch.rows and b.batch.rows:
        return rebased(a, b)
    np = arrays()
    names = sorted(set(a.names) | set(b.names), key=_actor_key)
    at = {name: i for i, name in enumerate(names)}
    out = []
    for batch in (a, b):
        table = np.zeros((len(batch), len(names)), "u8")
        table[:, [at[name] for name in batch.actors]] = batch.counts
        out.append(table)
    both = ClockBatch.from_array(names, np.concatenate(out))
    return rows_of(both, 0, len(a)), rows_of(both, len(a), len(a) + len(b))


cdef tuple rebased(ClockBatch a, ClockBatch b):
    """The two, of the same columns, with common bases and the width that these need."""
    cdef ClockBatch x = ClockBatch.__new__(ClockBatch), y = ClockBatch.__new__(ClockBatch)
    cdef size_t i, n = a.batch.columns
    cdef uint64_t *edges = <uint64_t *>PyMem_Malloc((3 * n + 1) * sizeof(uint64_t))     # least, greatest, the other's
    if edges == NULL:
        raise MemoryError
    try:
        with nogil:
            nova_batch_fold(&a.batch, False, edges + n)
            nova_batch_fold(&b.batch, False, edges + 2 * n)
        for i in range(n):
            edges[i] = min(a.bases[i], b.bases[i])
            edges[n + i] = max(edges[n + i], edges[2 * n + i])
        x.shape(a.known, a.batch.rows)
        x.spread(edges, edges + n)
        y.shape(b.known, b.batch.rows)
        y.spread(edges, edges + n)
    finally:
        PyMem_Free(edges)
    with nogil:
        nova_batch_copy(&a.batch, &x.batch)
        nova_batch_copy(&b.batch, &y.batch)
    return x, y


cdef ClockBatch rows_of(ClockBatch batch, size_t first, size_t last):
    cdef ClockBatch out = ClockBatch.__new__(ClockBatch)
    cdef size_t i, j
    out.shape(batch.known, last - first)
    for i in range(batch.batch.columns):
        out.bases[i] = batch.bases[i]
    out.reserve(batch.batch.width)
    for j in range(first, last):
        for i in range(batch.batch.columns):
            nova_batch_set(&out.batch, j - first, i, nova_batch_get(&batch.batch, j, i))
    return out
