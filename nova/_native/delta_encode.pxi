# nova/_native/delta_encode.pxi - from two images, or an image and digests, to bytes


cdef int append(Workspace work, const void *bytes, size_t n) noexcept nogil:
    cdef size_t room = work.body_room
    cdef uint8_t *grown
    if n > room - work.body_used:
        room = 2 * (work.body_used + n) + 4096
        grown = <uint8_t *>realloc(work.body, room)
        if grown == NULL:
            return E_MEMORY
        work.body, work.body_room = grown, room
    memcpy(work.body + work.body_used, bytes, n)
    work.body_used += n
    return 0


cdef void choose_prefix(const nova_delta_writer *w, uint64_t pages, int level, nova_delta_frame *f) noexcept nogil:
    """Which part of the base the literals may repeat. Reading it takes longer than all else, so at low levels there is
    one only where whole pages are among the literals, enough to pay for it, and it is what lies around them."""
    cdef size_t middle = (w.frame_first + pages // 2) * NOVA_PAGE
    cdef size_t begin = w.frame_first * NOVA_PAGE, end = (w.frame_first + pages) * NOVA_PAGE + REACH
    f.prefix_at = f.prefix_bytes = 0
    if w.base.bytes == NULL or w.base.size == 0:
        return
    if level >= LEVEL_WHOLE and w.literals_used * 64 > min(<size_t>NOVA_DELTA_PREFIX, w.base.size):
        begin = middle - NOVA_DELTA_PREFIX // 2 if middle > NOVA_DELTA_PREFIX // 2 else 0
        begin = min(begin, w.base.size - NOVA_DELTA_PREFIX if w.base.size > NOVA_DELTA_PREFIX else 0)
        f.prefix_at, f.prefix_bytes = begin, min(<size_t>NOVA_DELTA_PREFIX, w.base.size - begin)
        return
    begin = begin - REACH if begin > REACH else 0
    end = min(end, w.base.size)
    if w.raw_in_frame < 2 or begin >= end or end - begin > NOVA_DELTA_PREFIX:
        return
    if w.raw_in_frame * <size_t>NOVA_PAGE * 8 < end - begin and end - begin > 1 << 20:
        return
    f.prefix_at, f.prefix_bytes = begin, end - begin


cdef int put_frame(Workspace work, nova_delta_writer *w, int level, bint last) noexcept nogil:
    """Take the writer's frame away: compress both streams where that makes them smaller."""
    cdef nova_delta_frame f
    cdef uint8_t head[NOVA_DELTA_FRAME_HEAD]
    cdef size_t packed = 0, other = 0
    f.pages = nova_delta_cut(w, last)
    if f.pages == 0:
        return 0
    f.methods = 0
    f.tokens_raw, f.literals_raw = w.tokens_used, w.literals_used
    f.tokens, f.tokens_stored = w.tokens, w.tokens_used
    f.literals, f.literals_stored = w.literals, w.literals_used
    if level and w.tokens_used > PACK_MIN:
        packed = nova_zstd_compress(work.compressor, level, NULL, 0, w.tokens, w.tokens_used, work.packed,
                                    w.tokens_used - 1)
        if packed:
            f.tokens, f.tokens_stored = work.packed, packed
            f.methods |= NOVA_ZSTD
    cdef uint8_t *to = work.packed + packed
    if level and w.literals_used > PACK_MIN:
        choose_prefix(w, f.pages, level, &f)
        packed = nova_zstd_compress(work.compressor, level, NULL, 0, w.literals, w.literals_used, to,
                                    w.literals_used - 1)
        if packed:
            f.literals, f.literals_stored = to, packed
            f.methods |= NOVA_ZSTD << 2
        if f.prefix_bytes and (packed or level >= LEVEL_WHOLE):
            # What has no likeness to itself has seldom one to the base that pieces would not have found. Where it pays it pays much; the better of both goes out.
            other = nova_zstd_compress(work.compressor, level, w.base.bytes + f.prefix_at, f.prefix_bytes, w.literals,
                                       w.literals_used, to + packed, (packed if packed else w.literals_used) - 1)
            if other:
                f.literals, f.literals_stored = to + packed, other
                f.methods = <uint8_t>((f.methods & ~(3 << 2)) | NOVA_PREFIXED << 2)
    cdef size_t n = nova_delta_put_frame(head, &f)
    if append(work, head, n) or append(work, f.tokens, f.tokens_stored) or append(work, f.literals, f.literals_stored):
        return E_MEMORY
    return 0


cdef int make_index(Workspace work, nova_delta_writer *w) noexcept nogil:
    """The base's pages by digest: made when the first page comes that might be one of them."""
    cdef size_t pages = nova_pages_in(w.base.size), slots = 16
    while slots < 2 * pages:
        slots *= 2
    if slots > work.index_slots:
        free(work.index)
        work.index = <uint32_t *>malloc(slots * sizeof(uint32_t))
        work.index_slots = slots if work.index != NULL else 0
        work.index_made = False
        if work.index == NULL:
            return E_MEMORY
    if not work.index_made:
        nova_delta_index(w.digests, pages, work.index, work.index_slots)
        work.index_made = True
        work.index_stale = 0
    w.index, w.index_slots = work.index, work.index_slots
    return 0


cdef int make_blocks(Workspace work, nova_delta_writer *w) noexcept nogil:
    """The base's blocks by their hashes: made when many pages may be pieced together of them."""
    if work.blocks == NULL:
        work.blocks = <uint32_t *>malloc(sizeof(uint32_t) << NOVA_DELTA_BLOCK_BITS)
        work.blocks_made = False
        if work.blocks == NULL:
            return E_MEMORY
    if not work.blocks_made:
        nova_delta_index_blocks(&w.base, work.blocks)
        work.blocks_made = True
    w.blocks = work.blocks
    return 0


cdef int write_all(Workspace work, nova_delta_writer *w, int level) noexcept nogil:
    cdef int said
    cdef nova_delta_writer afresh
    nova_delta_begin(w)
    afresh = w[0]
    while True:
        said = nova_delta_write(w)
        if said < 0:
            return said
        if said == NOVA_WRITE_INDEX:
            if make_index(work, w):
                return E_MEMORY
            continue
        if said == NOVA_WRITE_BLOCKS:
            if make_blocks(work, w):
                return E_MEMORY
            if work.body_used == 0:
                # Nothing has gone out yet, so the pages that made it ask get their pieces, too.
                afresh.blocks, afresh.index, afresh.index_slots = w.blocks, w.index, w.index_slots
                w[0] = afresh
                memset(work.seen, 0, NOVA_SEEN * sizeof(nova_seen_page))
            continue
        if put_frame(work, w, level, said == NOVA_WRITE_END):
            return E_MEMORY
        if said == NOVA_WRITE_END:
            return 0
        nova_delta_next(w)


cdef bytes span_of(Workspace work, const nova_image *base, nova_digest base_sum, const nova_delta_writer *w,
                   bint last, uint64_t number):
    cdef nova_delta_span span
    cdef uint8_t head[NOVA_DELTA_FRAME_HEAD]
    cdef uint8_t *at
    cdef uint32_t crc
    cdef size_t n
    cdef int i
    memset(&span, 0, sizeof(span))
    span.flags = NOVA_DELTA_LAST if last else 0
    span.number, span.base_size, span.size, span.frames_bytes = number, base.size, w.image.size, work.body_used
    n = nova_delta_put_head(head, &span)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, n + work.body_used + NOVA_DELTA_TAIL)
    at = <uint8_t *>PyBytes_AS_STRING(out)
    memcpy(at, head, n)
    if work.body_used:
        memcpy(at + n, work.body, work.body_used)
    n += work.body_used
    nova_delta_put_tail(at + n, nova_image_identity(base_sum, base.size), nova_image_identity(w.sum, w.image.size))
    n += NOVA_DELTA_TAIL - 4
    crc = nova_crc32c(0, at, n)
    for i in range(4):
        at[n + i] = <uint8_t>(crc >> 8 * i)
    return out


cdef int checked_level(Workspace work, int level) except -1:
    """The level to use: 0 where there is no libzstd."""
    if level < 0 or level > 19:
        raise UsageError(f"level is {level}; it is 0 (streams as they are) or one of zstd's, 1 to {LEVEL_MAX}")
    if level and work.compressor == NULL and nova_zstd_version():
        work.compressor = nova_zstd_compressor()
        if work.compressor == NULL:
            raise MemoryError
    return level if work.compressor != NULL else 0


def encode_span(base, new, *, int level=1, uint64_t number=0, bint last=True):
    """One span of a delta: what `encode` makes, for a part of a longer image. Raises UsageError, LimitError."""
    cdef Workspace work = Workspace.__new__(Workspace)
    cdef Py_buffer base_view, new_view
    cdef nova_delta_writer w
    cdef digest_table digests
    cdef int code
    memset(&w, 0, sizeof(w))
    memset(&digests, 0, sizeof(digests))
    work.prepare(True)
    level = checked_level(work, level)
    PyObject_GetBuffer(base, &base_view, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(new, &new_view, PyBUF_SIMPLE)
        try:
            w.base.bytes, w.base.size = <const uint8_t *>base_view.buf, base_view.len
            w.image.bytes, w.image.size = <const uint8_t *>new_view.buf, new_view.len
            if w.image.size > IMAGE_BYTES_MAX:
                raise LimitError(f"an image of {w.image.size} bytes; the limit is {IMAGE_BYTES_MAX}: encode it in parts")
            if w.base.bytes == NULL:
                w.base.bytes = <const uint8_t *>b""
            take_digests(&digests, &w.base)
            w.digests, w.sum = digests.pages, digests.sum
            w.how = NOVA_BY_DIGEST if w.base.size >= HASH_FROM else NOVA_BY_COMPARE
            w.tokens, w.literals, w.seen = work.tokens, work.literals, work.seen
            with nogil:
                code = write_all(work, &w, level)
            refuse(code)
            return span_of(work, &w.base, digests.sum, &w, last, number)
        finally:
            PyBuffer_Release(&new_view)
    finally:
        free(digests.pages)
        PyBuffer_Release(&base_view)


def encode(base, new, *, int level=1):
    """The delta that makes `new` of `base`.

    base, new  bytes-like; any sizes, read in place
    level      0: streams as they are; 1 to 19: zstd's, where libzstd is here (else 0). From 5 on literals are looked up
               in all of the base (64 MiB of it), which makes them smaller and takes much longer
    raises     UsageError, LimitError (over 8 TiB)
    cost       both are read once, the base twice while it fits the caches; a DeltaEncoder reads it when it is made

    Releases the interpreter lock.
    """
    return encode_span(base, new, level=level)


cdef nova_page_range *ranges_of(object dirty, size_t image_bytes, size_t *count) except? NULL:
    """Byte ranges as ranges of pages; UsageError for those that are not in order or not within the image."""
    cdef const uint64_t[::1] pairs
    cdef size_t i, n, begin, size, first, end, last_end = 0
    cdef nova_page_range *out
    try:
        pairs = dirty
    except (TypeError, ValueError):
        from array import array

        pairs = array("Q", [number for pair in dirty for number in pair] or [0, 0])
    n = pairs.shape[0] // 2
    if pairs.shape[0] % 2:
        raise UsageError(f"dirty has {pairs.shape[0]} numbers; they are pairs of first byte and bytes")
    out = <nova_page_range *>malloc((n or 1) * sizeof(nova_page_range))
    if out == NULL:
        raise MemoryError
    count[0] = 0
    for i in range(n):
        begin, size = pairs[2 * i], pairs[2 * i + 1]
        if begin > image_bytes or size > image_bytes - begin:
            free(out)
            raise UsageError(f"dirty range {i}, {size} bytes from {begin} on, is not within the {image_bytes} bytes of the image")
        if size == 0:
            continue
        first, end = begin // NOVA_PAGE, nova_pages_in(begin + size)
        if count[0] and first < last_end:
            if begin < last_end * NOVA_PAGE - NOVA_PAGE:
                free(out)
                raise UsageError(f"dirty range {i} begins at {begin}, before the one before it ends; give them in order and apart")
            first = last_end         # both have a part of one page
            if first >= end:
                continue
        if count[0] and first == last_end:
            out[count[0] - 1].count += end - first
        else:
            out[count[0]].first, out[count[0]].count = first, end - first
            count[0] += 1
        last_end = end
    return out


cdef uint8_t *large(size_t size) except NULL:
    """Memory for a copy of an image, in huge pages where there are some: dirty pages lie far from each other, and looking
    up where each one is would take longer than reading it."""
    cdef void *out = NULL
    if posix_memalign(&out, HUGE if size >= HUGE else 64, size or 1):
        raise MemoryError
    if size >= HUGE:
        madvise(out, size // HUGE * HUGE, MADV_HUGEPAGE)
    return <uint8_t *>out


cdef class DeltaEncoder:
    """Deltas from one base: keeps a digest for each of its pages, 16 bytes for 4096.

    base    bytes-like
    hold    "base": the base is read where a page differs; it must not change meanwhile. "digests": only they are kept,
            so that pages which differ go out whole; the base may change or go
    follow  each `encode` makes what it was given the base of the next one; with hold="base" the encoder then has a copy
            of its own
    level   as of `encode`
    raises  UsageError, LimitError

    `pages_by_kind` and `how` tell of the last `encode` what it found and how it looked. One thread at a time.
    """

    def __init__(self, base, *, str hold not None="base", bint follow=False, int level=1):
        if self.held or self.digests.pages != NULL:
            raise UsageError("this encoder is made already; make another one")
        if hold not in ("base", "digests"):
            raise UsageError(f'hold is {hold!r}; it is "base" or "digests"')
        self.work = Workspace.__new__(Workspace)
        self.work.prepare(True)
        self.level = checked_level(self.work, level)
        self.hold, self.follow = hold, follow
        self.pages_by_kind, self.how = {}, ""
        PyObject_GetBuffer(base, &self.base_view, PyBUF_SIMPLE)
        self.held = True
        self.base.bytes, self.base.size = <const uint8_t *>self.base_view.buf, self.base_view.len
        if self.base.bytes == NULL:
            self.base.bytes = <const uint8_t *>b""
        take_digests(&self.digests, &self.base)
        if hold == "base" and not follow:
            return
        if hold == "base":
            self.own_room = max(self.base.size, 1)
            self.own = large(self.own_room)
            memcpy(self.own, self.base.bytes, self.base.size)
        self.base.bytes = self.own
        PyBuffer_Release(&self.base_view)
        self.held = False

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.base_view)
        free(self.own)
        free(self.digests.pages)
        free(self.fresh)

    @property
    def base_bytes(self):
        """Size of the base."""
        return self.base.size

    @property
    def identity(self):
        """16 bytes: of the base, as the function `identity` says them."""
        return identity_bytes(&self.digests.sum, self.base.size)

    @property
    def nbytes(self):
        """Memory that the encoder holds, without a base that is not its own."""
        return (self.digests.room * DIGEST_BYTES + self.own_room + self.work.body_room + 4 * self.work.index_slots
                + self.fresh_room * sizeof(nova_fresh_page) + NOVA_DELTA_TOKENS + 3 * <size_t>NOVA_DELTA_LITERALS
                + NOVA_SEEN * sizeof(nova_seen_page))

    def encode(self, new, *, str how=None, dirty=None):
        """The delta that makes `new` of the base.

        how    "compare" reads both images, "hash" reads the new one and its digests, "dirty" only what `dirty` names.
               None chooses: dirty if that is given, hash without the base's bytes or from 16 MiB on, where two images are
               in no cache, else compare
        dirty  for "dirty": where `new` may differ, in ascending order: pairs (first byte, bytes), or a buffer of uint64
               with two for each. What is not named is taken for unchanged
        raises UsageError; LimitError

        Releases the interpreter lock.
        """
        cdef nova_delta_writer w
        cdef Py_buffer view
        cdef nova_page_range *ranges = NULL
        cdef nova_digest base_sum = self.digests.sum
        cdef nova_image base = self.base
        cdef int code
        cdef bytes out
        if how is None:
            how = "dirty" if dirty is not None else "hash" if self.base.bytes == NULL or self.base.size >= HASH_FROM else "compare"
        if how not in ("compare", "hash", "dirty"):
            raise UsageError(f'how is {how!r}; it is "compare", "hash" or "dirty"')
        if (how == "dirty") != (dirty is not None):
            raise UsageError('dirty ranges go with how="dirty", and only with that')
        if how == "compare" and self.base.bytes == NULL:
            raise UsageError('this encoder holds digests and not the base; use how="hash"')
        if self.busy:
            raise UsageError("this encoder is at work in another thread; give each thread one of its own")
        memset(&w, 0, sizeof(w))
        PyObject_GetBuffer(new, &view, PyBUF_SIMPLE)
        self.busy = True
        try:
            w.image.bytes, w.image.size = <const uint8_t *>view.buf, view.len
            if w.image.size > IMAGE_BYTES_MAX:
                raise LimitError(f"an image of {w.image.size} bytes; the limit is {IMAGE_BYTES_MAX}: encode it in parts")
            self.work.prepare(True)
            w.base, w.digests, w.sum = self.base, self.digests.pages, self.digests.sum
            w.base_is_own = self.own != NULL
            w.how = NOVA_BY_COMPARE if how == "compare" else NOVA_BY_DIGEST if how == "hash" else NOVA_BY_RANGES
            if dirty is not None:
                ranges = ranges_of(dirty, w.image.size, &w.ranges_count)
                w.ranges = ranges
            w.tokens, w.literals, w.seen = self.work.tokens, self.work.literals, self.work.seen
            if self.follow:
                self.room_for_fresh(nova_pages_in(w.image.size))
                w.fresh = self.fresh
            with nogil:
                code = write_all(self.work, &w, self.level)
            refuse(code)
            out = span_of(self.work, &base, base_sum, &w, True, 0)
            if self.follow:
                self.moved_to(&w.image, &w)
            self.pages_by_kind = {KINDS[i]: w.pages_of[i] for i in range(NOVA_KINDS)}
            self.how = how
            return out
        finally:
            self.busy = False
            free(ranges)
            PyBuffer_Release(&view)

    cdef int room_for_fresh(self, size_t pages) except -1:
        if pages <= self.fresh_room:
            return 0
        free(self.fresh)
        self.fresh_room = 0
        self.fresh = <nova_fresh_page *>malloc(pages * sizeof(nova_fresh_page))
        if self.fresh == NULL:
            raise MemoryError
        self.fresh_room = pages
        return 0

    cdef int moved_to(self, const nova_image *image, const nova_delta_writer *w) except -1:
        """The image is the base now: take over the pages that differ."""
        cdef size_t i, page, begin, n, known = nova_pages_in(self.base.size), pages = nova_pages_in(image.size)
        cdef uint8_t *grown
        cdef uint8_t zeros[NOVA_PAGE]
        cdef nova_digest zero
        room_for(&self.digests, pages)
        if self.own != NULL and image.size > self.own_room:
            grown = large(image.size)
            memcpy(grown, self.own, self.base.size)
            free(self.own)
            self.own, self.own_room = grown, image.size
        if self.own != NULL:
            if image.size > self.base.size:
                memset(self.own + self.base.size, 0, image.size - self.base.size)
            self.base.bytes = self.own
        if pages > known:
            memset(zeros, 0, NOVA_PAGE)
            zero = nova_page_digest(zeros)
            for page in range(known, pages):
                self.digests.pages[page] = zero
        for i in range(w.fresh_count):
            page = w.fresh[i].page
            self.digests.pages[page] = w.fresh[i].digest
            if self.own != NULL:
                begin = page * NOVA_PAGE
                n = min(<size_t>NOVA_PAGE, image.size - begin)
                memcpy(self.own + begin, image.bytes + begin, n)
        self.base.size = image.size
        self.digests.sum = w.sum
        # What was there before is no longer found, which costs slots: a new index before they run out.
        self.work.index_stale += w.fresh_count + (pages - known if pages > known else 0)
        if pages < known or self.work.index_stale + pages > self.work.index_slots // 4 * 3:
            self.work.index_made = False
        elif self.work.index_made:
            nova_delta_index_more(self.digests.pages, w.fresh, w.fresh_count, self.work.index, self.work.index_slots)
        if w.fresh_count or pages != known:
            self.work.blocks_made = False
        return 0

    def __repr__(self):
        return f"DeltaEncoder({self.base.size} bytes, hold={self.hold!r}, follow={self.follow})"
