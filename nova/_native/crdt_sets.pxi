# Sets: that only grow, that observe what they remove, of two phases; and the flag, which is a set of one. Part of crdt.pyx.

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
