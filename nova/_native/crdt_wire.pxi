# States and deltas in bytes. What is read comes from strangers: each row is checked before it is let in. Part of crdt.pyx.

cdef list wire_parts(Store store, CausalContext context, const nova_known *known):
    """How many rows, and the rows, that nobody who has `known` holds. The store is claimed."""
    cdef size_t rows = 0, size = 0, n = len(store.names)
    cdef uint32_t *rank = <uint32_t *>PyMem_Malloc((n + 1) * sizeof(uint32_t))
    cdef uint8_t *raw
    cdef uint32_t i = 0
    if rank == NULL:
        raise MemoryError
    try:
        for actor in sorted(context.actors):
            rank[<uint32_t>store.numbers[actor]] = i
            i += 1
        with nogil:
            raw = nova_rows_wire(store.rows, known, rank, &rows, &size)
    finally:
        PyMem_Free(rank)
    if raw == NULL:
        raise MemoryError
    try:
        return [number(rows), PyBytes_FromStringAndSize(<const char *>raw, size)]
    finally:
        free(raw)


cdef nova_known *known_of(Store store, CausalContext context) except NULL:
    """The spans of a context per writer of a store; the caller frees the array, the context keeps the spans."""
    cdef size_t n = len(store.names), i
    cdef nova_known *out = <nova_known *>PyMem_Malloc((n + 1) * sizeof(nova_known))
    cdef Spans spans
    if out == NULL:
        raise MemoryError
    for i in range(n):
        out[i].at, out[i].size = NULL, 0
        found = context.actors.get(store.names[i])
        if found is not None:
            spans = <Spans>found
            out[i].at, out[i].size = spans.at, spans.size
    return out


cdef CausalContext minus(CausalContext one, CausalContext other):
    """The events of one context that another does not know."""
    cdef CausalContext out = CausalContext()
    cdef Spans spans, less
    for actor, item in one.actors.items():
        spans = <Spans>item
        found = other.actors.get(actor)
        if found is not None:
            less = <Spans>found
            spans = spans.copy()
            spans.cut(less.at, less.size)
        if spans.size:
            out.actors[actor] = spans
    return out


cdef CausalContext gone_of(Store store, CausalContext base, const nova_known *known):
    """Of the dots `base`, which somebody knows who knows `known`, those whose rows may have to go there."""
    cdef CausalContext out
    cdef nova_dropped *dropped
    cdef Spans spans
    cdef size_t since = 0, n = 0, i
    if not nova_rows_since(store.rows, known, &since):
        return minus(base, kept_of(store, known))
    out = CausalContext()
    dropped = nova_rows_dropped(store.rows, known, since, &n)
    if dropped == NULL:
        raise MemoryError
    try:
        for i in range(n):
            if i == 0 or dropped[i].who != dropped[i - 1].who:
                spans = Spans.__new__(Spans)
                out.actors[store.names[dropped[i].who]] = spans
            spans.join(&dropped[i].span, 1)
    finally:
        free(dropped)
    return out


cdef list news_parts(CausalContext context, CausalContext base, CausalContext gone):
    """The events of a context beside `base`, and what may have to go of that; or in short that there is no base."""
    if not base.actors:
        return [b"\x00"]
    return [b"\x01", *context_parts(minus(context, base)), *context_parts(gone)]


cdef CausalContext kept_of(Store store, const nova_known *known):
    """The dots of our rows that somebody who has `known` holds."""
    cdef CausalContext out = CausalContext()
    cdef nova_span *raw
    cdef Spans spans
    cdef size_t n = 0
    cdef uint32_t who
    for who in range(nova_rows_writers(store.rows)):
        if not known[who].size:
            continue
        raw = nova_rows_kept(store.rows, who, known[who], &n)
        if raw == NULL:
            raise MemoryError
        try:
            if n:
                spans = Spans.__new__(Spans)
                spans.join(raw, n)
                out.actors[store.names[who]] = spans
        finally:
            free(raw)
    return out


cdef enum Fault:
    FAULT_MEMORY = 1
    FAULT_FULL
    FAULT_CUT
    FAULT_DEPTH
    FAULT_KEY_SIZE
    FAULT_KEY_TEXT
    FAULT_INSIDE
    FAULT_ROW
    FAULT_FIT
    FAULT_ORDER
    FAULT_TWO_ROWS
    FAULT_TWO_VALUES
    FAULT_TOTAL
    FAULT_TWO_TOTALS
    FAULT_MAPPING
    FAULT_VALUE
    FAULT_ELEMENT
    FAULT_FLAG
    FAULT_ACCOUNT
    FAULT_TWO_ACCOUNTS
    FAULT_NO_TYPE
    FAULT_KEYS
    FAULT_STAMP
    FAULT_STAMPS


# How far the rows of a state or delta are read. It is done without the interpreter, so what is wrong is a number first.
cdef struct Reading:
    nova_reader *r
    nova_rows *rows                     # its writers are numbered as on the wire
    const nova_known *kept              # NULL: all is here
    uint64_t writers
    void *names                         # list[str]
    void *stamps                        # set[int]: of the rows of one actor at one key, where they are more than one
    bint stamped                        # it is not empty
    bint any                            # a row was read; it is the one in `path`, `npath`, `row`
    const uint8_t *path
    size_t npath
    nova_row row
    nova_row next                       # the one that is being read
    int outer                           # the type of its container,
    int inner                           # and of that which is in there,
    size_t nkey                         # and how long the key of that is


cdef object fault_of(Reading *reading, int fault):
    """The error for a fault."""
    cdef nova_row *row = &reading.next
    cdef str actor = None
    if fault == FAULT_MEMORY or fault == FAULT_FULL:
        return failure(NOVA_ROWS_FULL if fault == FAULT_FULL else NOVA_ROWS_NOMEM)
    if row.who < reading.writers:
        actor = (<list>reading.names)[row.who]
    return malformed(WHAT, {
        FAULT_CUT: "it is cut",
        FAULT_DEPTH: f"a row is cut or nested deeper than {DEPTH_MAX} maps",
        FAULT_KEY_SIZE: f"a key of {reading.nkey} bytes, the limit is {KEY_BYTES_MAX}",
        FAULT_KEY_TEXT: "a key is not UTF-8",
        FAULT_INSIDE: f"type {reading.inner} inside type {reading.outer}",
        FAULT_ROW: "a row is cut or names an unknown actor",
        FAULT_FIT: f"its context and event {row.count} of actor {actor!r} do not fit",
        FAULT_ORDER: "its rows are out of order",
        FAULT_TWO_ROWS: f"event {row.count} of actor {actor!r} has two rows",
        FAULT_TWO_VALUES: "a last-writer-wins register has two values",
        FAULT_TOTAL: "the total of a counter is no total",
        FAULT_TWO_TOTALS: f"actor {actor!r} has two totals in one counter",
        FAULT_MAPPING: "an element of a set holds a mapping",
        FAULT_VALUE: f"a value of {row.nvalue if row.nvalue else row.nleaf} bytes is not canonical MessagePack",
        FAULT_ELEMENT: "an element of a set has a value",
        FAULT_FLAG: "a flag has a value",
        FAULT_ACCOUNT: f"the account of actor {actor!r} is no account",
        FAULT_TWO_ACCOUNTS: f"actor {actor!r} has two accounts in one counter",
        FAULT_NO_TYPE: "a map holds a value without a type",
        FAULT_KEYS: f"type {reading.outer} has no keys",
        FAULT_STAMP: f"actor {actor!r} gave stamp {row.stamp} to two values of one key",
        FAULT_STAMPS: f"type {reading.outer} has no stamps",
    }[fault])


cdef int compare(const uint8_t *a, size_t na, const uint8_t *b, size_t nb) noexcept nogil:
    cdef size_t n = na if na < nb else nb
    cdef int order = memcmp(a, b, n) if n else 0
    return order if order else (1 if na > nb else 0) - (1 if na < nb else 0)


cdef int take_field(nova_reader *r, const uint8_t **at, size_t *size) noexcept nogil:
    size[0] = nova_take_number(r)
    at[0] = nova_take(r, size[0])
    return FAULT_CUT if at[0] == NULL else 0


cdef int check_key(Reading *reading, const uint8_t *at, size_t size) noexcept nogil:
    reading.nkey = size
    if size > KEY_BYTES_MAX:
        return FAULT_KEY_SIZE
    return 0 if nova_is_utf8(at, size) else FAULT_KEY_TEXT


cdef int check_value(const uint8_t *at, size_t size, bint element) noexcept nogil:
    """Is this the one spelling of a value, or of an element of a set?"""
    cdef int found = nova_value_check(<uint8_t *>at, size, False)
    if found == NOVA_VALUE_MAPS and element:
        return FAULT_MAPPING
    return 0 if found == 0 or (found == NOVA_VALUE_MAPS and in_order(at, size)) else FAULT_VALUE


cdef bint is_account(Reading *reading) noexcept with gil:
    try:
        check_account(unpack(reading.next.value, reading.next.nvalue), (<list>reading.names)[reading.next.who])
    except Exception:
        return False
    return True


cdef bint is_stamped(Reading *reading) noexcept with gil:
    """Was the stamp of this row that of another one of the same key and actor? They are few, but for liars."""
    cdef set stamps = <set>reading.stamps
    try:
        if not reading.stamped:
            stamps.clear()
            stamps.add(reading.row.stamp)
            reading.stamped = True
        if reading.next.stamp in stamps:
            return True
        stamps.add(reading.next.stamp)
    except MemoryError:
        return True
    return False


cdef int check_row(Reading *reading, int type, bint same_key) noexcept nogil:
    """What the type of the row's container allows. same_key: the row before is of the same key and actor."""
    cdef nova_row *row = &reading.next
    cdef nova_reader r
    cdef int numbers, fault = 0
    cdef uint64_t sum = 0
    reading.outer = type
    if type == G_COUNTER or type == PN_COUNTER:
        r = nova_reader_of(row.value, row.nvalue)
        for numbers in range(type):                     # one number, or plus and minus
            sum |= nova_take_number(&r)
        if not r.ok or nova_left(&r) or not sum:
            return FAULT_TOTAL
        if same_key:
            return FAULT_TWO_TOTALS
    elif type == G_SET or type == OR_SET or type == TWO_P_SET:
        fault = check_value(row.leaf, row.nleaf, True)
        if not fault and row.nvalue and (type != TWO_P_SET or row.nvalue != 1 or row.value[0] != REMOVED):
            fault = FAULT_ELEMENT
    elif type == ENABLE_WINS_FLAG:
        if row.nvalue:
            return FAULT_FLAG
    elif type == BOUNDED_COUNTER:
        fault = check_value(row.value, row.nvalue, False)
        if not fault and not is_account(reading):
            fault = FAULT_ACCOUNT
        if not fault and same_key:
            fault = FAULT_TWO_ACCOUNTS
    elif type == OR_MAP:
        return FAULT_NO_TYPE
    else:
        fault = check_value(row.value, row.nvalue, False)
    if fault:
        return fault
    if type == LWW_MAP:
        fault = check_key(reading, row.leaf, row.nleaf)
        if fault:
            return fault
        if not same_key:
            reading.stamped = False
        elif is_stamped(reading):
            return FAULT_STAMP
        return 0
    if row.nleaf and type != G_SET and type != OR_SET and type != TWO_P_SET:
        return FAULT_KEYS
    return FAULT_STAMPS if row.stamp and type != LWW_REGISTER else 0


cdef int read_row(Reading *reading, int type) noexcept nogil:
    """The next row; 0 or a fault."""
    cdef nova_reader *r = reading.r
    cdef uint64_t depth = nova_take_number(r), j, who
    cdef nova_row *row = &reading.next
    cdef nova_row *before = &reading.row
    cdef const uint8_t *path
    cdef const uint8_t *key
    cdef size_t nkey = 0, npath
    cdef int fault, order = -1
    cdef bint same_box = False
    row.box, row.who = 0, NOVA_WHO_NONE
    if not r.ok or depth > DEPTH_MAX:
        return FAULT_DEPTH
    path = r.at
    for j in range(depth):
        reading.outer, reading.inner = type, nova_take_byte(r)
        fault = take_field(r, &key, &nkey)
        if not fault:
            fault = check_key(reading, key, nkey)
        if not fault and (type != OR_MAP or not G_COUNTER <= reading.inner <= NESTED_MAX):
            fault = FAULT_INSIDE
        if fault:
            return fault
        type = reading.inner
        row.box = nova_rows_box(reading.rows, row.box, type, rule_of(type), key, nkey, True)
        if row.box == NOVA_WHO_NONE:
            return FAULT_MEMORY
    npath = r.at - path
    if take_field(r, &row.leaf, &row.nleaf):
        return FAULT_CUT
    who = nova_take_number(r)
    row.count = nova_take_number(r)
    row.stamp = nova_take_number(r)
    if take_field(r, &row.value, &row.nvalue):
        return FAULT_CUT
    if who >= reading.writers:
        return FAULT_ROW
    row.who = who
    if not has_count(nova_rows_known(reading.rows, row.who), row.count) \
            or (reading.kept != NULL and has_count(reading.kept[row.who], row.count)):
        return FAULT_FIT
    if reading.any:
        order = compare(reading.path, reading.npath, path, npath)
        same_box = order == 0
        if order == 0:
            order = compare(before.leaf, before.nleaf, row.leaf, row.nleaf)
        if order == 0 and before.who != row.who:
            order = -1 if before.who < row.who else 1
        elif order == 0 and before.count >= row.count:
            order = 1
    if order > 0:
        return FAULT_ORDER
    if nova_rows_has(reading.rows, row.who, row.count):
        return FAULT_TWO_ROWS
    if same_box and type == LWW_REGISTER:
        return FAULT_TWO_VALUES
    fault = check_row(reading, type, order == 0)
    if fault:
        return fault
    fault = nova_rows_put(reading.rows, row)
    if fault:
        return FAULT_FULL if fault == NOVA_ROWS_FULL else FAULT_MEMORY
    reading.any, reading.path, reading.npath, reading.row = True, path, npath, row[0]
    return 0


cdef int read_all(Reading *reading, int type, uint64_t n) noexcept nogil:
    cdef int fault = 0
    while n and not fault:
        fault = read_row(reading, type)
        n -= 1
    return fault


cdef bint has_count(nova_known known, uint64_t count) noexcept nogil:
    cdef size_t i
    if known.size and known.at[0].first <= count <= known.at[0].last:
        return True
    i = nova_spans_seek(known.at, known.size, count)
    return i < known.size and known.at[i].first <= count


cdef Store read_rows(nova_reader *r, int type, CausalContext context, CausalContext kept, object actor):
    """A store of a context and the rows that follow; with `kept`, of a delta, it is only good to be joined."""
    cdef uint64_t n = nova_take_size(r, 6)
    cdef Store out = Store(type, actor)
    cdef nova_known *keeping = NULL
    cdef Reading reading
    cdef Spans spans
    cdef set stamps = set()
    cdef str name
    cdef int fault
    for name in sorted(context.actors):
        spans = <Spans>context.actors[name]
        out.learn(out.writer(name), spans.at, spans.size)
    if nova_rows_expect(out.rows, n, kept is not None):
        raise MemoryError
    try:
        if kept is not None:
            keeping = known_of(out, kept)
        reading.r, reading.rows, reading.kept, reading.writers = r, out.rows, keeping, len(out.names)
        reading.names, reading.stamps, reading.stamped, reading.any = <void *>out.names, <void *>stamps, False, False
        if n > ROWS_ALONE:              # nobody else knows of this store
            with nogil:
                fault = read_all(&reading, type, n)
        else:
            fault = read_all(&reading, type, n)
        if fault:
            raise fault_of(&reading, fault)
    finally:
        PyMem_Free(keeping)
    if not r.ok or nova_left(r):
        raise malformed(WHAT, "its length is wrong")
    if kept is None:
        nova_rows_begin_log(out.rows)
    return out
