# A replica's rows (csrc/rows.h) with the names of their writers, and which thread has them for itself. Part of crdt.pyx.

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
