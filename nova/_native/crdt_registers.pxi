# Registers: of the last writer, and of all concurrent writers. Part of crdt.pyx.

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
