# A small register in one piece of memory (csrc/cell.h), and when it becomes rows or is one again. Part of crdt.pyx.

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
