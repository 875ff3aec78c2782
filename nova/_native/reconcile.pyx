"""What differs between two sets of ids, from bytes in proportion to the difference. `nova.digest` is its face."""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsUnsignedLongLong
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from nova._native.digest cimport hash_bytes, nova_digest, nova_digest_add, nova_digest_sub
from nova._native.vclock cimport (
    malformed, nova_left, nova_load64le, nova_reader, nova_reader_of, nova_store64le, nova_take, nova_take_byte,
    nova_take_number, number,
)

from nova.errors import LimitError, UsageError
from nova.types import Difference

DEF U64_MAX = 0xFFFFFFFFFFFFFFFF
DEF SKETCH_TAG = 0x51                   # kind and version in a byte
DEF CELLS_TAG = 0x61
DEF ALONE = 1024                        # so many ids are worth a summary of their own
DEF HEAD = 18                           # tag, a byte of the seed, the sum
cdef str WHAT = "set summary"


cdef uint64_t as_id(object id) except 0:
    cdef uint64_t out
    if type(id) is int:
        try:
            out = PyLong_AsUnsignedLongLong(id)
            if out:
                return out
        except OverflowError:
            pass
    if isinstance(id, bool) or not isinstance(id, int):
        raise UsageError(f"id {id!r} is a {type(id).__name__}; ids are int")
    if not 1 <= id <= U64_MAX:
        raise UsageError(f"id {id} is out of range; ids are from 1 to 2**64 - 1")
    return id


cdef uint8_t seed_byte(uint64_t seed) noexcept:
    return <uint8_t>hash_bytes(&seed, 8, 0x51).lo


cdef class Reconciler:
    """A summary of a set of 64-bit ids, kept up with each change, from which two sides find what differs.

    `encode()` gives 98 bytes that reveal up to 10 differences, `encode(cells=n)` n cells of 13 bytes that reveal about
    n / 1.25 of them (n / 1.9 if they are few); more cells can follow until they are enough. Neither looks at the set, nor
    does `decode`. A result is checked against the 128-bit sum of both sets before it is given, so it is right but for a
    chance of 2^-64; but whoever knows the seed can make ids that the cells cannot tell apart (which is then noticed).
    After PinSketch (Dodis et al. 2008) and rateless tables (Yang et al. 2024); csrc/sketch.h says what is our own.
    """

    def __cinit__(self, *args, **kwargs):
        memset(self.words, 0, sizeof(self.words))
        self.total.lo = self.total.hi = 0

    def __init__(self, ids=(), *, uint64_t seed=0, cells=2048):
        if isinstance(cells, bool) or not isinstance(cells, int) or not 16 <= cells <= NOVA_CELLS_MAX:
            raise UsageError(f"cells is {cells!r}; it is an int from 16 to {NOVA_CELLS_MAX}")
        if self.table != NULL:
            raise UsageError("this Reconciler has begun; make a new one")
        self.seed, self.room = seed, cells
        self.table = <nova_cell *>PyMem_Malloc(self.room * sizeof(nova_cell))
        if self.table == NULL:
            raise MemoryError
        memset(self.table, 0, self.room * sizeof(nova_cell))
        self.add_many(ids)

    def __dealloc__(self):
        PyMem_Free(self.table)

    cdef nova_digest digest_of(self, uint64_t id) noexcept nogil:
        cdef char raw[8]
        nova_store64le(raw, id)
        return hash_bytes(raw, 8, self.seed)

    cdef void toggle(self, uint64_t id, uint32_t weight) noexcept nogil:
        nova_sketch_toggle(self.words, id)
        nova_cells_toggle(self.table, self.room, self.seed, id, weight)
        if weight == 1:
            self.total = nova_digest_add(self.total, self.digest_of(id))
            self.size += 1
        else:
            self.size -= 1
            self.total = nova_digest_sub(self.total, self.digest_of(id))

    def add(self, id):
        """Take in an id from 1 to 2**64 - 1, which must not be in."""
        self.toggle(as_id(id), 1)

    def remove(self, id):
        """Take out an id, which must be in (the summary cannot tell)."""
        cdef uint64_t gone = as_id(id)
        self.check_stock(1, <uint32_t>-1)
        self.toggle(gone, <uint32_t>-1)

    cdef int check_stock(self, uint64_t n, uint32_t weight) except -1:
        if weight != 1 and n > self.size:
            raise UsageError(f"{n} ids to remove of {self.size}; only what is in can be taken out")
        return 0

    cdef void join(self, Reconciler news) noexcept:
        """Take in what came and went in another one of as many cells: summaries are linear."""
        cdef size_t i
        for i in range(NOVA_SKETCH_WORDS):
            self.words[i] ^= news.words[i]
        for i in range(self.room):
            self.table[i].ids ^= news.table[i].ids
            self.table[i].checks ^= news.table[i].checks
            self.table[i].count += news.table[i].count
        self.total = nova_digest_add(self.total, news.total)
        self.size += news.size

    cdef object many(self, object ids, uint32_t weight):
        cdef Py_buffer view
        cdef const uint64_t *at
        cdef Py_ssize_t i, n
        cdef bint zero = False
        cdef Reconciler news
        if not PyObject_CheckBuffer(ids):
            checked = [as_id(id) for id in ids]
            self.check_stock(len(checked), weight)
            for id in checked:
                self.toggle(id, weight)
            return
        try:
            PyObject_GetBuffer(ids, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        except (BufferError, ValueError) as error:
            raise UsageError(f"ids cannot be read ({error}); pass a contiguous array of uint64") from None
        try:
            if view.itemsize != 8 or view.format == NULL or view.format[0] not in (b"Q", b"L") or view.format[1] != 0:
                raise UsageError(f"ids are items of {view.itemsize} bytes; pass an array of uint64 in this machine's order")
            n, at = view.len // 8, <const uint64_t *>view.buf
            # Many are summarized apart, without the GIL, and joined under it: other threads may change this one meanwhile.
            for i in range(n):
                zero = zero or at[i] == 0
            if zero:
                raise UsageError("id 0 is out of range; ids are from 1 to 2**64 - 1")
            if n < ALONE:
                self.check_stock(n, weight)
                for i in range(n):
                    self.toggle(at[i], weight)
                return
            news = Reconciler(seed=self.seed, cells=self.room)
            with nogil:
                for i in range(n):
                    news.toggle(at[i], weight)
            self.check_stock(n, weight)
            self.join(news)
        finally:
            PyBuffer_Release(&view)

    def add_many(self, ids):
        """Take in ids, from an array of uint64 or any iterable of int; all or, if one is refused, none."""
        self.many(ids, 1)

    def remove_many(self, ids):
        """Take out ids, as `add_many`."""
        self.many(ids, <uint32_t>-1)

    def __len__(self):
        return self.size

    @property
    def cells(self):
        """How many cells are kept: about 1.25 times the differences that can be found."""
        return self.room

    @staticmethod
    def cells_for(differences):
        """How many cells reveal so many differences, ninety-nine times of a hundred."""
        if isinstance(differences, bool) or not isinstance(differences, int) or differences < 0:
            raise UsageError(f"differences is {differences!r}; it is an int from 0")
        return 32 + 5 * differences // 4 + min(differences, 120) // 2

    def digest(self):
        """16 bytes, equal exactly if the sets and seeds are, but for a chance of 2^-128."""
        cdef char raw[16]
        nova_store64le(raw, self.total.lo)
        nova_store64le(raw + 8, self.total.hi)
        return PyBytes_FromStringAndSize(raw, 16)

    def encode(self, cells=0, start=0):
        """The sketch (98 bytes), or `cells` cells from cell `start` on, for a peer's `decode`."""
        cdef bytes out
        cdef uint8_t head[HEAD]
        cdef char *at
        cdef size_t i, n, first
        for what, given in (("cells", cells), ("start", start)):
            if isinstance(given, bool) or not isinstance(given, int) or given < 0:
                raise UsageError(f"{what} is {given!r}; it is an int from 0")
        if start + cells > self.room:
            raise LimitError(f"cells {start} to {start + cells} of a Reconciler that keeps {self.room}; "
                             "make it with more, or compare parts of the set")
        head[0] = CELLS_TAG if cells else SKETCH_TAG
        head[1] = seed_byte(self.seed)
        nova_store64le(head + 2, self.total.lo)
        nova_store64le(head + 10, self.total.hi)
        if not cells:
            out = PyBytes_FromStringAndSize(NULL, HEAD + 8 * NOVA_SKETCH_WORDS)
            at = PyBytes_AS_STRING(out)
            memcpy(at, head, HEAD)
            for i in range(NOVA_SKETCH_WORDS):
                nova_store64le(at + HEAD + 8 * i, self.words[i])
            return out
        n, first = cells, start
        out = PyBytes_FromStringAndSize(NULL, NOVA_CELL_WIRE * n)
        at = PyBytes_AS_STRING(out)
        for i in range(n):
            nova_store64le(at + 8 * i, self.table[first + i].ids)
        for i in range(n):
            store32(at + 8 * n + 4 * i, self.table[first + i].checks)
        for i in range(n):
            at[12 * n + i] = <char>(self.table[first + i].count & 255)
        return PyBytes_FromStringAndSize(<char *>head, HEAD) + number(first) + number(n) + out

    def decode(self, *pieces):
        """What differs from the set whose `encode` gave these bytes: a sketch, or cells from cell 0 on in order.

        returns  Difference(here, there), sorted ids that only this or only that set has; None if there are more
                 differences than the bytes reveal: ask for (more) cells
        raises   CorruptionError for other bytes; UsageError for another seed or pieces that do not follow one another
        """
        cdef nova_reader r
        cdef nova_digest total, first_total
        cdef uint64_t words[10]
        cdef uint64_t begins, n
        cdef size_t have = 0, i, take
        cdef nova_cell *cells = NULL
        cdef const uint8_t *at
        cdef uint8_t tag, other
        if not pieces:
            raise UsageError("nothing to decode; pass what encode of the other side returned")
        first_total.lo = first_total.hi = 0
        try:
            for index, piece in enumerate(pieces):
                if type(piece) is not bytes:
                    raise UsageError(f"a {WHAT} is read from bytes, got {type(piece).__name__}; pass what encode returned")
                r = nova_reader_of(PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
                tag, other = nova_take_byte(&r), nova_take_byte(&r)
                at = nova_take(&r, 16)
                if at == NULL or tag not in (SKETCH_TAG, CELLS_TAG):
                    raise malformed(WHAT, f"{len(piece)} bytes with tag {tag} are none")
                total.lo, total.hi = nova_load64le(at), nova_load64le(at + 8)
                if other != seed_byte(self.seed):
                    raise UsageError(f"a {WHAT} under another seed than {self.seed}; both sides must use one")
                if index and (total.lo != first_total.lo or total.hi != first_total.hi):
                    raise UsageError("the other set changed between its pieces; ask for all of them again")
                first_total = total
                if tag == SKETCH_TAG:
                    if len(pieces) > 1:
                        raise UsageError("a sketch is decoded alone; pass cells without it")
                    at = nova_take(&r, 8 * NOVA_SKETCH_WORDS)
                    if at == NULL or nova_left(&r):
                        raise malformed(WHAT, "its length is wrong")
                    for i in range(NOVA_SKETCH_WORDS):
                        words[i] = self.words[i] ^ nova_load64le(at + 8 * i)
                    return self.by_sketch(words, total)
                begins, n = nova_take_number(&r), nova_take_number(&r)
                if not r.ok or n == 0 or n > NOVA_CELLS_MAX or begins > NOVA_CELLS_MAX or nova_left(&r) != NOVA_CELL_WIRE * n:
                    raise malformed(WHAT, "its length is wrong")
                if begins != have and not (have == self.room and begins > have):
                    raise UsageError(f"cells from {begins} on after {have} cells; pass all pieces in order")
                if cells == NULL:
                    cells = <nova_cell *>PyMem_Malloc(self.room * sizeof(nova_cell))
                    if cells == NULL:
                        raise MemoryError
                take = min(<size_t>n, self.room - have)        # what we keep no cells for tells us nothing
                at = nova_take(&r, NOVA_CELL_WIRE * n)
                for i in range(take):
                    cells[have + i].ids = self.table[have + i].ids ^ nova_load64le(at + 8 * i)
                    cells[have + i].checks = self.table[have + i].checks ^ load32(at + 8 * n + 4 * i)
                    cells[have + i].count = self.table[have + i].count - at[12 * n + i]
                have += take
            return self.by_cells(cells, have, total)
        finally:
            PyMem_Free(cells)

    cdef object by_sketch(self, const uint64_t *words, nova_digest total):
        """The sketch tells which ids differ; the sums tell on which side each is, and that there are no others."""
        cdef uint64_t ids[10]
        cdef nova_digest twice[10]
        cdef nova_digest sum = nova_digest_sub(self.total, total), d
        cdef int n = nova_sketch_decode(words, ids), i
        cdef uint32_t ours = 0, step
        if n < 0:
            return None
        # `sum` must be the digests of our ids minus those of theirs. Begin with all theirs, and walk a Gray code.
        for i in range(n):
            d = self.digest_of(ids[i])
            twice[i] = nova_digest_add(d, d)
            sum = nova_digest_add(sum, d)
        step = 0
        while sum.lo or sum.hi:
            step += 1
            if step == (<uint32_t>1) << n:
                return None
            i = 0
            while not step >> i & 1:
                i += 1
            ours ^= (<uint32_t>1) << i
            if ours >> i & 1:
                sum = nova_digest_sub(sum, twice[i])
            else:
                sum = nova_digest_add(sum, twice[i])
        return Difference(sorted([ids[i] for i in range(n) if ours >> i & 1]),
                          sorted([ids[i] for i in range(n) if not ours >> i & 1]))

    cdef object by_cells(self, nova_cell *cells, size_t n, nova_digest total):
        cdef uint64_t *out = <uint64_t *>PyMem_Malloc(n * sizeof(uint64_t))
        cdef uint32_t *stack = <uint32_t *>PyMem_Malloc(n * sizeof(uint32_t))
        cdef size_t plus = 0, minus = 0, i
        cdef nova_digest sum = nova_digest_sub(self.total, total)
        cdef int whole
        try:
            if out == NULL or stack == NULL:
                raise MemoryError
            with nogil:
                whole = nova_cells_decode(cells, n, self.seed, stack, out, &plus, &minus)
                for i in range(plus):
                    sum = nova_digest_sub(sum, self.digest_of(out[i]))
                for i in range(n - minus, n):
                    sum = nova_digest_add(sum, self.digest_of(out[i]))
            if not whole or sum.lo or sum.hi:
                return None
            return Difference(sorted([out[i] for i in range(plus)]), sorted([out[i] for i in range(n - minus, n)]))
        finally:
            PyMem_Free(out)
            PyMem_Free(stack)

    def difference(self, Reconciler other not None):
        """What differs from another Reconciler of this process: Difference(here, there).

        raises   LimitError if there are more differences than the cells of either reveal
        """
        out = self.decode(other.encode())
        n = min(self.room, other.room)
        size = 64
        while out is None:
            out = self.decode(other.encode(cells=min(size, n)))
            if out is None and size >= n:
                raise LimitError(f"the sets differ in more ids than {n} cells reveal; make both with more cells")
            size *= 4
        return out

    def __repr__(self):
        return f"<Reconciler: {self.size} ids, {self.room} cells>"


cdef inline void store32(char *at, uint32_t value) noexcept:
    cdef int i
    for i in range(4):
        at[i] = <char>(value >> 8 * i & 255)


cdef inline uint32_t load32(const uint8_t *at) noexcept:
    return at[0] | <uint32_t>at[1] << 8 | <uint32_t>at[2] << 16 | <uint32_t>at[3] << 24
