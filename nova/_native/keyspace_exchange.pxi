# How replicas meet: whole states, answers to a summary, and joining either. Part of keyspace.pyx.

cdef bytes state_of(Keyspace self, bytes summary):
    cdef Cursor c
    cdef const uint8_t *base = NULL
    cdef size_t base_size = 0
    cdef Bytes out, body
    cdef uint8_t wanted[LEAVES]
    cdef uint32_t i
    cdef nova_digest theirs
    cdef Entry entry
    cdef list picked
    if self.batch_size:
        raise UsageError("a batch is open; close it before taking the state")
    memset(wanted, 1, LEAVES)
    if summary is not None:
        c.at = <const uint8_t *>PyBytes_AS_STRING(summary)
        c.end = c.at + PyBytes_GET_SIZE(summary)
        check_magic(&c, SUMMARY_MAGIC, "summary")
        base = c.at
        get_clock(&c)
        base_size = c.at - base
        if <size_t>(c.end - c.at) != sizeof(self.leaves):
            raise malformed(f"{c.end - c.at} bytes of range digests, {sizeof(self.leaves)} expected")
        for i in range(LEAVES):
            memcpy(&theirs, c.at + i * sizeof(theirs), sizeof(theirs))
            wanted[i] = theirs.lo != self.leaves[i].lo or theirs.hi != self.leaves[i].hi
    memset(&out, 0, sizeof(out))
    memset(&body, 0, sizeof(body))
    picked = []
    for item in self.entries_in(wanted):
        entry = <Entry>item
        picked.append((entry.key, [row for _, siblings in entry.live() for row in siblings]))
    try:
        put_entries(self, &body, picked)
        put_head(self, &out, STATE_MAGIC)
        if base == NULL:
            put_number(&out, 0)
        else:
            put_raw(&out, base, base_size)
        for i in range(0, LEAVES, 8):
            put_byte(&out, wanted[i] | wanted[i + 1] << 1 | wanted[i + 2] << 2 | wanted[i + 3] << 3
                     | wanted[i + 4] << 4 | wanted[i + 5] << 5 | wanted[i + 6] << 6 | wanted[i + 7] << 7)
        put_raw(&out, body.at, body.size)
        return PyBytes_FromStringAndSize(<const char *>out.at, out.size)
    finally:
        self.clear_table()
        free(out.at)
        free(body.at)


cdef int put_head(Keyspace self, Bytes *out, bytes magic) except -1:
    """The beginning of a state or difference whose entries have been written: clock and stamp."""
    put_raw(out, PyBytes_AS_STRING(magic), 4)
    # The clock, and behind it with count 0 the retired whom the rows name.
    put_number(out, len(self.table))
    for index in self.table:
        put_text(out, self.actors[index])
        put_number(out, self.counts[<uint32_t>index] if self.told(<uint32_t>index) else 0)
    put_raw(out, &self.stamp_max, 8)
    return 0


cdef int put_entries(Keyspace self, Bytes *out, list picked) except -1:
    """(key, rows) pairs, each write once; the table of actors begins with those that the clock names."""
    cdef Row row
    cdef Write write
    cdef list writes
    cdef dict numbers
    cdef uint32_t i
    for i in range(len(self.actors)):
        if self.told(i):
            self.refer(i)
    put_number(out, len(picked))
    for key, rows in picked:
        put_text(out, key)
        numbers = {}
        writes = []
        for item in rows:
            row = <Row>item
            if row.write.packed not in numbers:
                numbers[row.write.packed] = len(writes)
                writes.append(row.write)
        put_number(out, len(writes))
        for item in writes:
            write = <Write>item
            put_number(out, self.refer(<uint32_t>(write.packed >> COUNT_BITS)))
            put_number(out, write.packed & COUNT_MASK)
            put_raw(out, &write.stamp, 8)
            put_byte(out, write.kind)
            self.put_context(out, &write.context)
        put_number(out, len(rows))
        for item in rows:
            row = <Row>item
            put_number(out, numbers[row.write.packed])
            put_text(out, row.path)
            put_bytes(out, row.value)
    return 0


cdef object answer_to(Keyspace self, bytes summary):
    cdef Cursor c
    if summary[:4] != SKETCH_MAGIC:
        return state_of(self, summary)
    if self.batch_size:
        raise UsageError("a batch is open; close it before answering")
    c.at = <const uint8_t *>PyBytes_AS_STRING(summary)
    c.end = c.at + PyBytes_GET_SIZE(summary)
    check_magic(&c, SKETCH_MAGIC, "summary")
    return difference(self, &c)


cdef object difference(Keyspace self, Cursor *c):
    """The rows that the asker lacks, and the ids of those that this side lacks, of which the asker removes what our
    clock covers: exactly what the whole state would do there."""
    cdef Bytes out, body
    cdef const uint8_t *base = c.at
    cdef size_t base_size
    cdef uint64_t *known = NULL
    cdef uint64_t i, id, rows
    cdef nova_digest expected
    cdef Reconciler own
    cdef Entry entry
    cdef Row row
    cdef dict picked = {}, floors
    cdef list places = []
    names, counts = get_clock(c)
    base_size = c.at - base
    rows = get_number(c)
    piece = PyBytes_FromStringAndSize(<const char *>c.at, c.end - c.at)
    own = self.current()
    try:
        found = own.decode(piece)
    except (CorruptionError, UsageError) as error:
        raise malformed(f"a summary of rows ({error})") from None
    if found is None:
        return wider(self, names, counts, rows, (len(piece) - 18) // 13)
    floors = floors_of(names, counts)
    memset(&out, 0, sizeof(out))
    memset(&body, 0, sizeof(body))
    known = <uint64_t *>calloc(len(self.actors) + 1, sizeof(uint64_t))
    if known == NULL:
        raise MemoryError
    try:
        for i in range(<uint64_t>len(names)):
            index = self.indexes.get(names[i])
            if index is not None:
                known[<uint32_t>index] = counts[i]
        for i in range(<uint64_t>len(self.actors)):
            life = self.lives[i]
            if life is not None and life[1] >= 0 and life[0] in floors and life[1] <= floors[life[0]][0]:
                known[i] = RETIRED
        expected = own.total
        held = self.rows_with(found.here)
        if len(held) != len(found.here):
            return 0
        for id, item, each in held:
            entry, row = <Entry>item, <Row>each
            if known[row.write.packed >> COUNT_BITS] < row.write.packed & COUNT_MASK:
                picked.setdefault(entry.key, []).append(row)
            else:
                # The asker removed it, or holds something else there, which must not be taken for removed here.
                places.append(self.place_of(entry.key, row))
                expected = nova_digest_sub(expected, own.digest_of(id))
        put_entries(self, &body, list(picked.items()))
        put_head(self, &out, DIFFERENCE_MAGIC)
        put_raw(&out, base, base_size)
        put_raw(&out, PyBytes_AS_STRING(piece) + 2, 16)
        put_raw(&out, &expected, 16)
        for numbers in (found.there, places):
            put_number(&out, len(numbers))
            for item in numbers:
                id = item
                put_raw(&out, &id, 8)
        put_raw(&out, body.at, body.size)
        return PyBytes_FromStringAndSize(<const char *>out.at, out.size)
    finally:
        self.clear_table()
        free(body.at)
        free(out.at)
        free(known)


cdef object wider(Keyspace self, list names, list counts, uint64_t rows, uint64_t tried):
    """How many cells to ask with after so many did not reveal it. Four times as many, or what the sizes of both sets
    say is the least, or what the operations that either side lacks would take; 0 if that is no better than rows."""
    cdef uint64_t least = max(rows, self.rows_live) - min(rows, self.rows_live)
    theirs = dict(zip(names, counts, strict=True))
    beyond = 0
    mine = self.clock
    for actor in theirs.keys() | mine.keys():
        beyond += abs(theirs.get(actor, 0) - mine.get(actor, 0))
    cells = max(CELLS_MIN, 4 * tried, Reconciler.cells_for(least))
    guess = Reconciler.cells_for(2 * beyond)
    if guess <= CELLS_MAX:
        cells = max(cells, guess)
    return cells if cells <= CELLS_MAX and cells < max(rows, self.rows_live) else 0


cdef list join_state(Keyspace self, bytes state):
    cdef Cursor c
    cdef uint64_t i, j, n, ref, count, stamp_max, theirs_size
    cdef uint64_t *theirs = NULL
    cdef uint64_t *base = NULL
    cdef bint covered
    cdef uint32_t *table = NULL
    cdef const uint8_t *bits
    cdef Entry entry, last = None
    cdef Write write
    cdef Row row, head, kept, following
    cdef list parsed = [], rows, writes, changed = [], struck = []
    cdef dict present, by_path, floors, base_floors
    cdef set contended
    cdef bint touched, whole, moved = False, late = False
    cdef uint8_t wanted[LEAVES]
    cdef uint8_t nothing[128]
    cdef nova_digest before, expected
    cdef uint64_t id
    cdef Reconciler sums
    cdef set doomed = set(), gone = set(), places = set()
    cdef size_t mark = len(self.actors)
    cdef bint taken = False
    if self.batch_size:
        raise UsageError("a batch is open; close it before joining a state")
    c.at = <const uint8_t *>PyBytes_AS_STRING(state)
    c.end = c.at + PyBytes_GET_SIZE(state)
    whole = state[:3] != DIFFERENCE_MAGIC[:3]
    check_magic(&c, STATE_MAGIC if whole else DIFFERENCE_MAGIC, "state")
    names, counts = get_clock(&c)
    n = len(names)
    for i in range(n):
        if names[i] == self.actor and counts[i] > self.counts[self.own]:
            raise PeerError(f"somebody else writes as {self.actor}: a state knows event {counts[i]}, we wrote "
                            f"{self.counts[self.own]}; two nodes share a name or a copied data directory")
    floors = floors_of(names, counts)
    for node, (upto, total) in floors.items():
        if upto > self.floors.get(node, 0):
            self.check_own(node, upto)
            if self.operations(node, upto) > total:
                raise PeerError(f"a state says that {node} wrote {total} operations up to its incarnation {upto}, but "
                                f"{self.operations(node, upto)} are here; {node} ran from an old copy of its disk: "
                                "stop it and start it with an empty data directory under another name")
    need(&c, 8)
    memcpy(&stamp_max, c.at, 8)
    c.at += 8
    base_names, base_counts = get_clock(&c)
    base_floors = floors_of(base_names, base_counts)
    if whole:
        need(&c, LEAVES // 8)
        bits = c.at
        c.at += LEAVES // 8
    else:
        memset(nothing, 0, sizeof(nothing))
        bits = nothing
        need(&c, 32)
        memcpy(&before, c.at, 16)
        memcpy(&expected, c.at + 16, 16)
        c.at += 32
        gone, places = get_ids(&c), get_ids(&c)
        for i in range(<uint64_t>len(base_names)):
            if self.known_of(base_names[i]) < <uint64_t>base_counts[i]:
                return None             # it answers somebody who knew more than we do
    table = <uint32_t *>malloc((n + 1) * sizeof(uint32_t))
    if table == NULL:
        raise MemoryError
    try:
        for i in range(n):
            table[i] = self.intern(names[i])
        theirs_size = len(self.actors)
        theirs = <uint64_t *>calloc(theirs_size + 1, sizeof(uint64_t))
        if theirs == NULL:
            raise MemoryError
        for i in range(n):
            theirs[table[i]] = counts[i]
        base = <uint64_t *>calloc(theirs_size + 1, sizeof(uint64_t))
        if base == NULL:
            raise MemoryError
        for i in range(<uint64_t>len(base_names)):
            found = self.indexes.get(base_names[i])
            if found is not None and <uint32_t>found < theirs_size:
                base[<uint32_t>found] = base_counts[i]
        # Whoever retired an actor knows all of its dots.
        for i in range(theirs_size):
            life = self.lives[i]
            if life is not None and life[1] >= 0:
                if life[0] in floors and life[1] <= floors[life[0]][0]:
                    theirs[i] = RETIRED
                if life[0] in base_floors and life[1] <= base_floors[life[0]][0]:
                    base[i] = RETIRED
        for i in range(get_size(&c)):
            key = get_text(&c)
            writes = []
            for j in range(get_size(&c)):
                write = Write.__new__(Write)
                write.space = self
                ref = get_number(&c)
                count = get_number(&c)
                if ref >= n or count == 0 or count > COUNT_MASK or count > theirs[table[ref]]:
                    raise malformed(f"a row of {key!r} has a dot that the state's own clock does not cover")
                write.packed = <uint64_t>table[ref] << COUNT_BITS | count
                need(&c, 9)
                memcpy(&write.stamp, c.at, 8)
                write.kind = c.at[8]
                c.at += 9
                get_dots(&c, table, n, &write.context)
                writes.append(write)
            # One event that is two writes has one of their stamps here and the other where this state goes next.
            if len(writes) > 1 and len({(<Write>item).packed for item in writes}) != len(writes):
                raise malformed(f"{key!r} names one event as two writes")
            rows = []
            for j in range(get_size(&c)):
                ref = get_number(&c)
                if ref >= <uint64_t>len(writes):
                    raise malformed(f"a row of {key!r} names write {ref} of {len(writes)}")
                row = Row.__new__(Row)
                row.write = <Write>writes[ref]
                row.path = get_text(&c)
                row.value = get_bytes(&c)
                rows.append(row)
            if not rows:
                raise malformed(f"{key!r} has no rows")
            # A row twice would count twice in the digest, which then never agrees with anybody's.
            if len(rows) > 1 and len({((<Row>item).path, (<Row>item).write.packed) for item in rows}) != len(rows):
                raise malformed(f"{key!r} has a row twice")
            parsed.append((key, rows))
        if c.at != c.end:
            raise malformed(f"{c.end - c.at} bytes too many")

        for i in range(len(self.actors)):
            count = base[i] if i < theirs_size else 0
            moved = moved or self.counts[i] != count
            late = late or (i < theirs_size and self.counts[i] > count and theirs[i] > count)
        if not whole:
            # Their rows in place of those which they lack must make of the set that we asked with theirs.
            sums = Reconciler(cells=16)
            for item in gone:
                before = nova_digest_sub(before, sums.digest_of(item))
            for key, rows in parsed:
                for item in rows:
                    id = id_of(leaf_of(key), self.digest_of(key, <Row>item))
                    before = nova_digest_add(before, sums.digest_of(id))
            if before.lo != expected.lo or before.hi != expected.hi:
                return None
            held = self.rows_with(gone)
            if not moved and len(held) != len(gone):
                return None
            for _, item, each in held:
                entry = <Entry>item
                if self.place_of(entry.key, <Row>each) not in places:
                    doomed.add(each)
                    if last is not entry:
                        last = entry
                        struck.append(entry)

        remote = dict(parsed)
        if len(remote) != len(parsed):
            raise malformed("a key twice")
        taken = True
        # Ours that they may have removed: in the ranges that the state covers (or among the rows that they said they
        # lack), all that their clock knows and they have not; in the others, which were equal when we asked, what has
        # arrived here since then and they knew.
        for i in range(LEAVES):
            wanted[i] = late or bits[i >> 3] >> (i & 7) & 1
        for item in self.entries_in(wanted) if whole or late else struck:
            entry = <Entry>item
            key = entry.key
            covered = bits[entry.leaf >> 3] >> (entry.leaf & 7) & 1
            there = remote.get(key)
            present = {}
            if there is not None:
                for item_row in there:
                    row = <Row>item_row
                    present[(row.path, row.write.packed)] = row
            touched = False
            for path in entry.paths():
                head = entry.root if path == "" else <Row>entry.rows[path]
                kept = None
                row = head
                while row is not None:
                    following = row.next
                    if (path, row.write.packed) not in present and \
                            theirs[row.write.packed >> COUNT_BITS] >= row.write.packed & COUNT_MASK and \
                            (covered or row in doomed or base[row.write.packed >> COUNT_BITS] < row.write.packed & COUNT_MASK):
                        self.count_row(entry, row, False)
                        touched = True
                    else:
                        row.next = kept
                        kept = row
                    row = following
                if path == "":
                    entry.root = kept
                elif kept is None:
                    del entry.rows[path]
                else:
                    entry.rows[path] = kept
            if touched and entry.mixed and (entry.root is not None or entry.rows):
                self.settle_kind(entry)
            if touched and there is None:
                if entry.root is None and not entry.rows:
                    self.forget(entry)
                    changed.append((key, None, False))
                else:
                    changed.append((key, None, True))
            elif touched:
                changed.append((key, None, True))
        # Theirs that we have neither seen nor removed.
        seen = {key: i for i, (key, _, _) in enumerate(changed)}
        for key, rows in parsed:
            fresh = []
            for item_row in rows:
                row = <Row>item_row
                if self.counts[row.write.packed >> COUNT_BITS] < row.write.packed & COUNT_MASK:
                    fresh.append(row)
            if not fresh:
                found = self.entries.get(key)
                if found is not None:
                    entry = <Entry>found
                    if entry.root is None and not entry.rows:
                        self.forget(entry)
                        changed[seen[key]] = (key, None, False)
                continue
            entry = self.entry_for(key, (<Row>fresh[0]).write.kind)
            self.graves.pop(key, None)
            contended = set()
            for item_row in fresh:
                row = <Row>item_row
                if row.write.kind != entry.kind:
                    entry.mixed = True
                if row.path == "":
                    row.next = entry.root
                    entry.root = row
                else:
                    if entry.rows is None:
                        entry.rows = {}
                    row.next = <Row>entry.rows.get(row.path) if row.path in entry.rows else None
                    entry.rows[row.path] = row
                self.count_row(entry, row, True)
                following = row.next
                while following is not None:
                    if following.value != row.value or following.write.kind != row.write.kind:
                        contended.add(row.path)
                    following = following.next
            self.settle_kind(entry)
            item = (key, sorted(contended) or None, True)
            if key in seen:
                changed[seen[key]] = item
            else:
                changed.append(item)
        for i in range(n):
            life = self.lives[table[i]]
            if counts[i] > self.counts[table[i]] and (life is None or life[1] >= 0):
                self.counts[table[i]] = counts[i]
        for node, (upto, total) in floors.items():
            if upto > self.floors.get(node, 0):
                self.raise_floor(node, upto, total)
        if stamp_max > self.stamp_max:
            self.stamp_max = stamp_max
        self.revision = 0
        for i in range(len(self.actors)):
            life = self.lives[i]
            if self.told(i) and (life is None or life[1] != FLOOR):
                self.revision += self.counts[i]
        # Each changed key had at least one operation that was not known here: there is a revision for each.
        for i, (key, _, alive) in enumerate(changed):
            if alive:
                (<Entry>self.entries[key]).revision = self.revision - len(changed) + 1 + i
        return changed
    finally:
        if not taken:
            self.forget_from(mark)
        free(table)
        free(theirs)
        free(base)


cdef dict floors_of(list names, list counts):
    """node -> (incarnation, operations) that a clock says are complete."""
    cdef dict out = {}, told = dict(zip(names, counts))
    for name, count in told.items():
        life = life_of(name)
        if life is not None and life[1] == FLOOR and count:
            out[life[0]] = count, told.get(f"{life[0]}~+", 0)
    return out


cdef tuple get_clock(Cursor *c):
    """(actors, counts) of a clock."""
    cdef uint64_t count
    cdef list names = [], counts = []
    for _ in range(get_size(c)):
        name = get_text(c)
        count = get_number(c)
        if count >= COUNT_MASK:
            raise malformed(f"count {count} of {name} is over the 2^48 - 2 that an actor can have")
        names.append(name)
        counts.append(count)
    if len(set(names)) != len(names):
        raise malformed("an actor twice in a clock")
    return names, counts


cdef set get_ids(Cursor *c):
    cdef uint64_t i, id, n = get_number(c)
    cdef set out = set()
    if n > <uint64_t>(c.end - c.at) // 8:
        raise malformed(f"{n} ids of rows announced, {c.end - c.at} bytes left")
    for i in range(n):
        memcpy(&id, c.at, 8)
        c.at += 8
        out.add(id)
    if <uint64_t>len(out) != n:
        raise malformed("an id of a row is in it twice")
    return out


cdef int get_dots(Cursor *c, uint32_t *table, uint64_t size, Dots *out) except -1:
    cdef uint64_t n = get_size(c), i, ref, count
    if n > WRITERS_MAX:
        raise malformed(f"{n} writers of one key; the limit is {WRITERS_MAX}")
    for i in range(n):
        ref = get_number(c)
        count = get_number(c)
        if ref >= size or count == 0 or count > COUNT_MASK:
            raise malformed(f"a clock names actor {ref} of {size} with count {count}")
        learn(out, <uint64_t>table[ref] << COUNT_BITS | count)
    return 0


cdef int check_magic(Cursor *c, bytes magic, str what) except -1:
    need(c, 4)
    if c.at[0] != b"N" or c.at[1] != b"V" or c.at[2] != <uint8_t>magic[2]:
        raise malformed(f"this is no {what}")
    if c.at[3] != <uint8_t>magic[3]:
        raise PeerError(f"a {what} of version {c.at[3]}; this release reads version {magic[3]}; upgrade this node")
    c.at += 4
    return 0
