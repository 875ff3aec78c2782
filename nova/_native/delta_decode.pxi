# nova/_native/delta_decode.pxi - from bytes that nobody vouches for to an image


cdef int unpack(Workspace work, uint8_t method, const uint8_t *stored, size_t stored_bytes, const uint8_t *prefix,
                size_t prefix_bytes, uint8_t *room, size_t n, const uint8_t **out) noexcept nogil:
    """One stream of a frame: where it stands in the delta, or in `room`."""
    if method == NOVA_STORED:
        out[0] = stored
        return 0
    if work.decompressor == NULL:
        if not nova_zstd_version():
            return E_NO_ZSTD
        work.decompressor = nova_zstd_decompressor()
        if work.decompressor == NULL:
            return E_MEMORY
    out[0] = room
    if not nova_zstd_decompress(work.decompressor, prefix if method == NOVA_PREFIXED else NULL, prefix_bytes, stored,
                                stored_bytes, room, n):
        return E_ZSTD
    return 0


cdef int stage_for(nova_delta_reader *r, uint64_t pages) noexcept nogil:
    cdef size_t room = max(2 * r.stage_room, <size_t>pages)
    cdef void *grown
    if pages <= r.stage_room:
        return 0
    grown = realloc(r.stage, room * NOVA_PAGE)
    if grown == NULL:
        return E_MEMORY
    r.stage = <uint8_t *>grown
    grown = realloc(r.staged, room * sizeof(nova_fresh_page))
    if grown == NULL:
        return E_MEMORY
    r.staged = <nova_fresh_page *>grown
    r.stage_room = room
    return 0


cdef int read_all(Workspace work, const nova_delta_span *span, nova_delta_reader *r) noexcept nogil:
    """Apply the frames of a span: into r.out, or staged."""
    cdef nova_delta_reader dry = r[0]
    cdef nova_delta_frame f
    cdef const uint8_t *tokens
    cdef const uint8_t *literals
    cdef size_t at = 0
    cdef int code
    nova_delta_read_begin(r)
    while at < span.frames_bytes:
        code = nova_delta_read_frame(span, &at, &f)
        if code == 0:
            code = unpack(work, f.methods & 3, f.tokens, f.tokens_stored, NULL, 0, work.tokens, f.tokens_raw, &tokens)
        if code == 0:
            code = unpack(work, f.methods >> 2 & 3, f.literals, f.literals_stored, r.base.bytes + f.prefix_at,
                          f.prefix_bytes, work.literals, f.literals_raw, &literals)
        if code == 0:
            code = nova_delta_check(&dry, tokens, f.tokens_raw, literals, f.literals_raw, f.pages)
        if code == 0 and r.out == NULL:
            code = stage_for(r, dry.touched)
        if code == 0:
            code = nova_delta_apply(r, tokens, f.tokens_raw, literals, f.literals_raw, f.pages)
        if code:
            return code
    return nova_delta_read_end(r)


cdef list spans_of(const uint8_t *bytes, size_t n):
    """(where it begins, base size, size) of every span; they are whole and in order."""
    cdef nova_delta_span span
    cdef list found = []
    cdef size_t at = 0
    cdef bint last = False
    while not last:
        refuse(nova_delta_read_span(bytes + at, n - at, &span))
        if span.number != <uint64_t>len(found):
            raise CorruptionError(f"span {span.number} of this delta stands where span {len(found)} belongs")
        if span.size > IMAGE_BYTES_MAX or span.base_size > IMAGE_BYTES_MAX:
            raise LimitError(f"a delta from {span.base_size} to {span.size} bytes; the limit of a span is {IMAGE_BYTES_MAX}")
        last = span.flags & NOVA_DELTA_LAST
        found.append((at, span.base_size, span.size))
        at += span.bytes
    if at != n:
        raise CorruptionError(f"{n - at} bytes stand behind the end of this delta")
    return found


cdef int right_base(const digest_table *digests, const nova_delta_span *span) except -1:
    cdef bytes have = identity_bytes(&digests.sum, span.base_size)
    if memcmp(PyBytes_AS_STRING(have), span.base_identity, 16):
        raise UsageError(f"this delta is for the base {span.base_identity[:16].hex()}, this one is {have.hex()}; fetch the base it was made from")
    return 0


cdef int right_image(const nova_delta_reader *r, const nova_delta_span *span) except -1:
    cdef bytes made = identity_bytes(&r.sum, span.size)
    if memcmp(PyBytes_AS_STRING(made), span.identity, 16):
        raise CorruptionError(f"this delta gives the image {made.hex()} and promises {span.identity[:16].hex()}; it was not made by an honest encoder, or its base changed meanwhile")
    return 0


cdef size_t right_sizes(list spans, uint64_t base_bytes, uint64_t size_max) except? 0:
    """Bytes of the image; raises where that or the base has another size than it should."""
    cdef object base_size = 0, size = 0
    for _, base_part, part in spans:
        base_size += base_part
        size += part
    if base_size != base_bytes:
        raise UsageError(f"this delta is for a base of {base_size} bytes, this one has {base_bytes}; fetch the base it was made from")
    if size > size_max:
        raise LimitError(f"this delta makes an image of {size} bytes; the limit is {size_max}: raise size_max if that is meant")
    return size


cdef bytes room_for_image(size_t size):
    """A result to be filled in, in huge pages where there are some: else the kernel's part of it takes longest."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
    cdef size_t begin = <size_t>PyBytes_AS_STRING(out), first = (begin + HUGE - 1) // HUGE * HUGE
    cdef size_t end = (begin + size) // HUGE * HUGE
    if end > first:
        madvise(<void *>first, end - first, MADV_HUGEPAGE)
    return out


def span_places(delta):
    """(begin, end, bytes of its base, bytes of its image) of every span. Raises CorruptionError, LimitError."""
    cdef Py_buffer view
    PyObject_GetBuffer(delta, &view, PyBUF_SIMPLE)
    try:
        found = spans_of(<const uint8_t *>view.buf, view.len)
        ends = [begin for begin, _, _ in found[1:]] + [view.len]
        return [(begin, end, base, size) for (begin, base, size), end in zip(found, ends)]
    finally:
        PyBuffer_Release(&view)


def decode_span(base, delta):
    """What one span, whichever it is, makes of its part of the base. Raises as `decode` does."""
    cdef Py_buffer base_view, delta_view
    cdef Workspace work = Workspace.__new__(Workspace)
    cdef nova_delta_reader r
    cdef nova_delta_span span
    cdef digest_table digests
    cdef bytes out
    memset(&digests, 0, sizeof(digests))
    work.prepare(False)
    PyObject_GetBuffer(base, &base_view, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(delta, &delta_view, PyBUF_SIMPLE)
        try:
            refuse(nova_delta_read_span(<const uint8_t *>delta_view.buf, delta_view.len, &span))
            right_sizes([(0, span.base_size, span.size)], base_view.len, IMAGE_BYTES_MAX)
            out = room_for_image(span.size)
            make(work, &span, <const uint8_t *>base_view.buf, &digests, &r, <uint8_t *>PyBytes_AS_STRING(out))
            return out
        finally:
            PyBuffer_Release(&delta_view)
    finally:
        free(digests.pages)
        PyBuffer_Release(&base_view)


cdef int make(Workspace work, const nova_delta_span *span, const uint8_t *base, digest_table *digests,
              nova_delta_reader *r, uint8_t *out) except -1:
    """The image of one span; out == NULL: staged in r."""
    cdef int code
    memset(r, 0, sizeof(nova_delta_reader))
    r.base.bytes, r.base.size = base, span.base_size
    take_digests(digests, &r.base)
    right_base(digests, span)
    r.digests, r.sum, r.size, r.out = digests.pages, digests.sum, span.size, out
    with nogil:
        code = read_all(work, span, r)
    refuse(code)
    return right_image(r, span)


def decode(base, delta, *, uint64_t size_max=1 << 34):
    """What `encode` was given as `new`.

    base      bytes-like: what `encode` was given
    delta     bytes-like, from anybody
    size_max  more bytes than this are not made
    raises    UsageError for another base than the delta's; LimitError; CorruptionError for bytes that are no whole delta
    cost      the base is read twice, the image written once

    Every result has the digest that the encoder promised. Releases the interpreter lock.
    """
    cdef Py_buffer base_view, delta_view
    cdef Workspace work = Workspace.__new__(Workspace)
    cdef nova_delta_reader r
    cdef nova_delta_span span
    cdef digest_table digests
    cdef const uint8_t *raw
    cdef bytes out
    cdef size_t base_at = 0, at = 0
    memset(&digests, 0, sizeof(digests))
    work.prepare(False)
    PyObject_GetBuffer(base, &base_view, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(delta, &delta_view, PyBUF_SIMPLE)
        try:
            raw = <const uint8_t *>delta_view.buf
            spans = spans_of(raw, delta_view.len)
            out = room_for_image(right_sizes(spans, base_view.len, size_max))
            for begin, _, _ in spans:
                refuse(nova_delta_read_span(raw + <size_t>begin, delta_view.len - <size_t>begin, &span))
                make(work, &span, <const uint8_t *>base_view.buf + base_at, &digests, &r,
                     <uint8_t *>PyBytes_AS_STRING(out) + at)
                base_at += span.base_size
                at += span.size
            return out
        finally:
            PyBuffer_Release(&delta_view)
    finally:
        free(digests.pages)
        PyBuffer_Release(&base_view)


cdef class Stage:
    """The pages of one span, made and not yet put in their places."""

    cdef nova_delta_reader r
    cdef uint8_t *image

    def __dealloc__(self):
        free(self.r.stage)
        free(self.r.staged)


def decode_into(image, delta, *, base_bytes=None):
    """Make of the base in a buffer what `encode` was given as `new`, in place; returns its size.

    image       writable, bytes-like: the base, with room behind it if the new image is longer
    delta       as of `decode`
    base_bytes  how many bytes of `image` are the base; None: all
    raises      as `decode`, and then `image` is untouched
    cost        the base is read once; only pages that differ are written. A DeltaDecoder does not read it either

    Pages that differ are made in memory of their own first. Releases the interpreter lock.
    """
    cdef Py_buffer view, delta_view
    cdef Workspace work = Workspace.__new__(Workspace)
    cdef nova_delta_span span
    cdef digest_table digests
    cdef const uint8_t *raw
    cdef Stage stage
    cdef list stages = []
    cdef size_t base_at = 0, at = 0
    memset(&digests, 0, sizeof(digests))
    work.prepare(False)
    PyObject_GetBuffer(image, &view, PyBUF_WRITABLE)
    try:
        PyObject_GetBuffer(delta, &delta_view, PyBUF_SIMPLE)
        try:
            if base_bytes is None:
                base_bytes = view.len
            if not 0 <= base_bytes <= view.len:
                raise UsageError(f"base_bytes is {base_bytes}; the buffer has {view.len} bytes")
            raw = <const uint8_t *>delta_view.buf
            spans = spans_of(raw, delta_view.len)
            right_sizes(spans, base_bytes, view.len)
            for begin, _, _ in spans:
                refuse(nova_delta_read_span(raw + <size_t>begin, delta_view.len - <size_t>begin, &span))
                if span.base_size and base_at != at:
                    raise UsageError(f"span {span.number} of this delta moves bytes from {base_at} to {at}, which cannot be done in place; use decode")
                stage = Stage.__new__(Stage)
                stages.append(stage)
                stage.image = <uint8_t *>view.buf + at
                make(work, &span, stage.image, &digests, &stage.r, NULL)
                base_at += span.base_size
                at += span.size
            for stage in stages:
                nova_delta_commit(&stage.r, stage.image)
            return at
        finally:
            PyBuffer_Release(&delta_view)
    finally:
        free(digests.pages)
        PyBuffer_Release(&view)


cdef class DeltaDecoder:
    """Keeps an image in a buffer up to date by deltas: knows the digests of its pages, so only what differs is touched.

    image       writable, bytes-like; it belongs to the decoder until `close`, and nobody else writes to it
    base_bytes  how many bytes of it are the image to begin with; None: all. More room lets it grow
    raises      UsageError; LimitError

    One thread at a time.
    """

    def __init__(self, image, *, base_bytes=None):
        if self.held:
            raise UsageError("this decoder is made already; make another one")
        self.work = Workspace.__new__(Workspace)
        self.work.prepare(False)
        PyObject_GetBuffer(image, &self.view, PyBUF_WRITABLE)
        self.held = True
        if base_bytes is None:
            base_bytes = self.view.len
        if not 0 <= base_bytes <= self.view.len:
            raise UsageError(f"base_bytes is {base_bytes}; the buffer has {self.view.len} bytes")
        self.image.bytes, self.image.size = <const uint8_t *>self.view.buf, base_bytes
        take_digests(&self.digests, &self.image)

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)
        free(self.digests.pages)

    def close(self):
        """Give the buffer back. May be called twice."""
        if self.busy:
            raise UsageError("this decoder is at work in another thread")
        if self.held:
            self.held = False
            PyBuffer_Release(&self.view)

    @property
    def size(self):
        """Bytes of the image now."""
        return self.image.size

    @property
    def identity(self):
        """16 bytes: of the image, as the function `identity` says them."""
        return identity_bytes(&self.digests.sum, self.image.size)

    def apply(self, delta):
        """Make of the image what the delta's encoder was given as `new`; returns its size.

        raises  UsageError if the delta is for another image, or the image was changed by somebody else; LimitError if it
                does not fit the buffer; CorruptionError; the image is untouched then
        cost    pages that differ are made, hashed and written; the others are not even read
        """
        cdef Py_buffer delta_view
        cdef nova_delta_span span
        cdef Stage stage = Stage.__new__(Stage)
        cdef size_t i, known = nova_pages_in(self.image.size), pages
        cdef uint8_t zeros[NOVA_PAGE]
        cdef nova_digest zero
        cdef int code
        if not self.held:
            raise UsageError("this decoder is closed; make another one")
        if self.busy:
            raise UsageError("this decoder is at work in another thread; give each thread one of its own")
        PyObject_GetBuffer(delta, &delta_view, PyBUF_SIMPLE)
        self.busy = True
        try:
            spans = spans_of(<const uint8_t *>delta_view.buf, delta_view.len)
            if len(spans) != 1:
                raise UsageError(f"a delta of {len(spans)} spans; a DeltaDecoder takes those of a DeltaEncoder, decode_into takes all")
            right_sizes(spans, self.image.size, self.view.len)
            refuse(nova_delta_read_span(<const uint8_t *>delta_view.buf, delta_view.len, &span))
            right_base(&self.digests, &span)
            stage.r.base, stage.r.digests, stage.r.sum = self.image, self.digests.pages, self.digests.sum
            stage.r.size = span.size
            pages = nova_pages_in(span.size)
            room_for(&self.digests, pages)
            stage.r.digests = self.digests.pages
            with nogil:
                code = read_all(self.work, &span, &stage.r)
            refuse(code)
            right_image(&stage.r, &span)
            with nogil:
                nova_delta_commit(&stage.r, <uint8_t *>self.view.buf)
            if pages > known:
                memset(zeros, 0, NOVA_PAGE)
                zero = nova_page_digest(zeros)
                for i in range(known, pages):
                    self.digests.pages[i] = zero
            for i in range(stage.r.stage_used):
                self.digests.pages[stage.r.staged[i].page] = stage.r.staged[i].digest
            self.digests.sum = stage.r.sum
            self.image.size = span.size
            return span.size
        finally:
            self.busy = False
            PyBuffer_Release(&delta_view)

    def __repr__(self):
        return f"DeltaDecoder({self.image.size} bytes)"


def scan(delta):
    """What is in a delta, span by span, without its base: a dict for each. Raises as `decode` does."""
    cdef Py_buffer view
    cdef Workspace work = Workspace.__new__(Workspace)
    cdef nova_delta_span span
    cdef nova_delta_frame f
    cdef nova_delta_reader dry
    cdef const uint8_t *tokens
    cdef size_t at
    cdef list found = []
    work.prepare(False)
    PyObject_GetBuffer(delta, &view, PyBUF_SIMPLE)
    try:
        for begin, _, _ in spans_of(<const uint8_t *>view.buf, view.len):
            refuse(nova_delta_read_span(<const uint8_t *>view.buf + <size_t>begin, view.len - <size_t>begin, &span))
            memset(&dry, 0, sizeof(dry))
            dry.base.size, dry.size = span.base_size, span.size
            at, frames, streams = 0, 0, [0, 0, 0, 0]
            while at < span.frames_bytes:
                refuse(nova_delta_read_frame(&span, &at, &f))
                refuse(unpack(work, f.methods & 3, f.tokens, f.tokens_stored, NULL, 0, work.tokens, f.tokens_raw, &tokens))
                refuse(nova_delta_check(&dry, tokens, f.tokens_raw, work.literals, f.literals_raw, f.pages))
                frames += 1
                for i, size in enumerate((f.tokens_raw, f.tokens_stored, f.literals_raw, f.literals_stored)):
                    streams[i] += size
            kinds = {KINDS[i]: dry.pages_of[i] for i in range(NOVA_KINDS)}
            kinds["same"] += nova_pages_in(span.size) - dry.page
            found.append({
                "base_bytes": span.base_size, "image_bytes": span.size, "delta_bytes": span.bytes, "frames": frames,
                "pages": kinds, "tokens_raw": streams[0], "tokens_stored": streams[1], "literals_raw": streams[2],
                "literals_stored": streams[3], "base_identity": span.base_identity[:16].hex(),
                "identity": span.identity[:16].hex(),
            })
        return found
    finally:
        PyBuffer_Release(&view)
