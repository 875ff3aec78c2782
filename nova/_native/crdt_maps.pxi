# Maps: of values of the last writer, and of CRDTs. Part of crdt.pyx.

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
