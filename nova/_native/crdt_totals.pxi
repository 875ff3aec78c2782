# A counter as columns of totals (csrc/totals.h), and when it becomes rows or is one again. Part of crdt.pyx.

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
