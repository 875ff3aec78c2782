# What lives under one key: writes, the rows that they left, and what their writers knew. Part of keyspace.pyx.

cdef tuple life_of(str actor):
    """(node, incarnation) of "node~incarnation"; (node, FLOOR) of "node~", (node, TOTAL) of "node~+"; else None."""
    node, tilde, life = actor.rpartition("~")
    if not tilde:
        return None
    if not life:
        return node, FLOOR
    if life == "+":
        return node, TOTAL
    if life.isascii() and life.isdigit() and len(life) <= 15:
        return node, int(life)
    return None


cdef inline bint knows(Dots *clock, uint64_t packed) noexcept nogil:
    cdef uint32_t i
    for i in range(clock.size):
        if clock.at[i] >> COUNT_BITS == packed >> COUNT_BITS:
            return clock.at[i] >= packed
    return False


cdef int learn(Dots *clock, uint64_t packed) except -1:
    cdef uint32_t i
    cdef uint64_t *at
    for i in range(clock.size):
        if clock.at[i] >> COUNT_BITS == packed >> COUNT_BITS:
            if clock.at[i] < packed:
                clock.at[i] = packed
            return 0
    at = <uint64_t *>realloc(clock.at, (clock.size + 1) * sizeof(uint64_t))
    if at == NULL:
        raise MemoryError
    at[clock.size] = packed
    clock.at = at
    clock.size += 1
    return 0


@cython.final
cdef class Write:
    """One operation on one key: its dot, its stamp, and which other operations on that key its writer had seen."""

    def __dealloc__(self):
        free(self.context.at)

    @property
    def dot(self):
        return Dot(self.space.actors[self.packed >> COUNT_BITS], self.packed & COUNT_MASK)

    @property
    def actor(self):
        return self.space.actors[self.packed >> COUNT_BITS]

    @property
    def context(self):
        """What the writer knew at the paths that it wrote, itself not included: actor -> count."""
        return clock_dict(self.space, &self.context)

    @property
    def clock(self):
        """What the writer knew, itself included: actor -> count."""
        cdef dict out = clock_dict(self.space, &self.context)
        out[self.actor] = self.packed & COUNT_MASK
        return out

    def knows(self, Write other not None):
        """Did this writer see `other`, or is it the same write?"""
        return self.packed == other.packed or knows(&self.context, other.packed)

    def __repr__(self):
        return f"Write({self.actor}:{self.packed & COUNT_MASK} at {self.stamp})"


cdef dict clock_dict(Keyspace space, Dots *clock):
    cdef uint32_t i
    cdef dict out = {}
    for i in range(clock.size):
        out[space.actors[clock.at[i] >> COUNT_BITS]] = clock.at[i] & COUNT_MASK
    return out


@cython.final
@cython.trashcan(True)  # a chain of a million siblings must not be freed by a million nested calls
cdef class Row:
    """A live value at one path of one key, and the write that put it there."""


@cython.final
cdef class Entry:
    """What is alive under one key: rows by path. More than one row at a path: their writers did not see each other."""

    @property
    def clock(self):
        """What the live rows and their writers know: actor -> count. A function of the rows, so replicas agree on it."""
        cdef Dots clock
        clock.at, clock.size = NULL, 0
        try:
            learn_chain(&clock, self.root)
            if self.rows:
                for head in self.rows.values():
                    learn_chain(&clock, <Row>head)
            return clock_dict(self.space, &clock)
        finally:
            free(clock.at)

    @property
    def single(self):
        """The only row, if the key has just one and it is at the path "", else None."""
        if self.root is not None and self.root.next is None and not self.rows:
            return self.root
        return None

    def live(self):
        """(path, rows) pairs; rows in order of (stamp, actor), the newest last."""
        cdef list out = []
        if self.root is not None:
            out.append(("", chain(self.root)))
        if self.rows:
            for path, head in self.rows.items():
                out.append((path, chain(<Row>head)))
        return out

    def paths(self):
        """The paths that have a live row."""
        cdef list out = list(self.rows) if self.rows else []
        if self.root is not None:
            out.append("")
        return out

    def at(self, str path not None):
        """The rows at one path, newest last."""
        head = self.root if path == "" else (self.rows.get(path) if self.rows else None)
        return chain(<Row>head) if head is not None else []

    def newest(self):
        """The write with the greatest (stamp, actor) among the live rows."""
        cdef Write best = None
        cdef Row row
        for _, rows in self.live():
            for item in rows:
                row = <Row>item
                if best is None or newer(row.write, best):
                    best = row.write
        return best


cdef int learn_write(Dots *clock, Write write) except -1:
    cdef uint32_t i
    for i in range(write.context.size):
        learn(clock, write.context.at[i])
    return learn(clock, write.packed)


cdef int learn_chain(Dots *clock, Row head) except -1:
    cdef Row row = head
    while row is not None:
        learn_write(clock, row.write)
        row = row.next
    return 0


cdef bint newer(Write a, Write b):
    if a.stamp != b.stamp:
        return a.stamp > b.stamp
    if a.packed >> COUNT_BITS == b.packed >> COUNT_BITS:
        return a.packed > b.packed
    return a.actor > b.actor


cdef list chain(Row head):
    cdef list out = []
    cdef Row row = head
    while row is not None:
        out.append(row)
        row = row.next
    if len(out) > 1:
        out.sort(key=_order_of)
    return out


def _order_of(Row row not None):
    return row.write.stamp, row.write.actor, row.write.packed & COUNT_MASK


cdef list rows_of(Entry entry):
    """All rows of an entry, in no order."""
    cdef list out = []
    cdef Row row = entry.root
    while row is not None:
        out.append(row)
        row = row.next
    if entry.rows:
        for head in entry.rows.values():
            row = <Row>head
            while row is not None:
                out.append(row)
                row = row.next
    return out
