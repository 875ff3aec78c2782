from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from nova._native.digest cimport nova_digest


cdef extern from "page.h" nogil:
    enum:
        NOVA_PAGE
    ctypedef struct nova_image:
        const uint8_t *bytes
        size_t size
    size_t nova_pages_in(uint64_t size)
    size_t nova_pages_same(const uint8_t *a, const uint8_t *b, size_t n)
    nova_digest nova_page_digest(const uint8_t *page)
    nova_digest nova_page_share(nova_digest page, uint64_t index)
    nova_digest nova_image_identity(nova_digest total, uint64_t size)
    void nova_image_digests(const nova_image *image, nova_digest *digests, nova_digest *total)

cdef extern from "entropy.h" nogil:
    ctypedef struct nova_zstd_cctx:
        pass
    ctypedef struct nova_zstd_dctx:
        pass
    enum:
        NOVA_ZSTD_FUNCTIONS
    const char *const nova_zstd_names[14]
    void nova_zstd_bind(void **functions)
    unsigned nova_zstd_version()
    nova_zstd_cctx *nova_zstd_compressor()
    nova_zstd_dctx *nova_zstd_decompressor()
    void nova_zstd_compressor_free(nova_zstd_cctx *c)
    void nova_zstd_decompressor_free(nova_zstd_dctx *d)
    size_t nova_zstd_compress(nova_zstd_cctx *c, int level, const void *prefix, size_t prefix_bytes,
                              const void *bytes, size_t n, void *out, size_t room)
    int nova_zstd_decompress(nova_zstd_dctx *d, const void *prefix, size_t prefix_bytes, const void *bytes,
                             size_t stored, void *out, size_t n)

cdef extern from "delta.h" nogil:
    enum:
        NOVA_DELTA_VERSION
        NOVA_DELTA_LAST
        NOVA_DELTA_TOKENS
        NOVA_DELTA_LITERALS
        NOVA_DELTA_TAIL
        NOVA_DELTA_FRAME_HEAD
        NOVA_DELTA_PREFIX
        NOVA_KINDS
        NOVA_STORED
        NOVA_ZSTD
        NOVA_PREFIXED
        NOVA_DELTA_E_MAGIC
        NOVA_DELTA_E_VERSION
        NOVA_DELTA_E_SHORT
        NOVA_DELTA_E_CHECKSUM
        NOVA_DELTA_E_FRAME
        NOVA_DELTA_E_TOKEN
        NOVA_DELTA_E_BASE
        NOVA_DELTA_E_ROOM
        NOVA_BY_COMPARE
        NOVA_BY_DIGEST
        NOVA_BY_RANGES
        NOVA_WRITE_END
        NOVA_WRITE_FULL
        NOVA_WRITE_INDEX
        NOVA_WRITE_BLOCKS
        NOVA_DELTA_BLOCK_BITS
        NOVA_SEEN
    ctypedef struct nova_delta_span:
        uint8_t flags
        uint64_t number, base_size, size
        const uint8_t *frames
        size_t frames_bytes
        uint8_t base_identity[16]
        uint8_t identity[16]
        size_t bytes
    ctypedef struct nova_delta_frame:
        uint8_t methods
        uint64_t pages, tokens_raw, literals_raw, prefix_at, prefix_bytes
        const uint8_t *tokens
        const uint8_t *literals
        size_t tokens_stored, literals_stored
    ctypedef struct nova_page_range:
        uint64_t first, count
    ctypedef struct nova_fresh_page:
        uint64_t page
        nova_digest digest
    ctypedef struct nova_seen_page:
        uint64_t low, page
    ctypedef struct nova_delta_writer:
        nova_image base, image
        const nova_digest *digests
        nova_digest sum
        int base_is_own
        int how
        const nova_page_range *ranges
        size_t ranges_count
        const uint32_t *index
        size_t index_slots
        int no_index
        const uint32_t *blocks
        int no_blocks
        nova_seen_page *seen
        nova_fresh_page *fresh
        size_t fresh_count
        uint8_t *tokens
        uint8_t *literals
        size_t tokens_used, literals_used
        size_t page, range, frame_first, raw_in_frame
        uint64_t pages_of[8]
    ctypedef struct nova_delta_reader:
        nova_image base
        const nova_digest *digests
        uint64_t size
        nova_digest sum
        uint8_t *out
        uint8_t *stage
        nova_fresh_page *staged
        size_t stage_room, stage_used
        size_t page
        uint64_t pages_of[8]
        uint64_t touched
    int nova_delta_read_span(const uint8_t *bytes, size_t n, nova_delta_span *out)
    int nova_delta_read_frame(const nova_delta_span *span, size_t *at, nova_delta_frame *out)
    size_t nova_delta_put_head(uint8_t *out, const nova_delta_span *span)
    void nova_delta_put_tail(uint8_t *out, nova_digest base_identity, nova_digest identity)
    size_t nova_delta_put_frame(uint8_t *out, const nova_delta_frame *frame)
    void nova_delta_begin(nova_delta_writer *w)
    int nova_delta_write(nova_delta_writer *w)
    uint64_t nova_delta_cut(nova_delta_writer *w, int last)
    void nova_delta_next(nova_delta_writer *w)
    void nova_delta_index(const nova_digest *digests, size_t pages, uint32_t *index, size_t slots)
    void nova_delta_index_blocks(const nova_image *base, uint32_t *blocks)
    void nova_delta_index_more(const nova_digest *digests, const nova_fresh_page *fresh, size_t n, uint32_t *index,
                               size_t slots)
    void nova_delta_read_begin(nova_delta_reader *r)
    int nova_delta_check(nova_delta_reader *r, const uint8_t *tokens, size_t tokens_bytes, const uint8_t *literals,
                         size_t literals_bytes, uint64_t pages)
    int nova_delta_apply(nova_delta_reader *r, const uint8_t *tokens, size_t tokens_bytes, const uint8_t *literals,
                         size_t literals_bytes, uint64_t pages)
    int nova_delta_read_end(nova_delta_reader *r)
    void nova_delta_commit(const nova_delta_reader *r, uint8_t *image)

cdef extern from "log.h" nogil:
    uint32_t nova_crc32c(uint32_t crc, const void *bytes, size_t size)


cdef struct digest_table:
    nova_digest *pages
    size_t room
    nova_digest sum


cdef class Workspace:
    cdef uint8_t *tokens
    cdef uint8_t *literals
    cdef uint8_t *packed
    cdef nova_seen_page *seen
    cdef nova_zstd_cctx *compressor
    cdef nova_zstd_dctx *decompressor
    cdef uint8_t *body
    cdef size_t body_used, body_room
    cdef uint32_t *index
    cdef size_t index_slots
    cdef size_t index_stale
    cdef bint index_made
    cdef uint32_t *blocks
    cdef bint blocks_made
    cdef int prepare(self, bint writing) except -1


cdef class DeltaEncoder:
    cdef Py_buffer base_view
    cdef bint held
    cdef nova_image base
    cdef uint8_t *own
    cdef size_t own_room
    cdef digest_table digests
    cdef Workspace work
    cdef nova_fresh_page *fresh
    cdef size_t fresh_room
    cdef bint busy
    cdef readonly bint follow
    cdef readonly str hold
    cdef readonly int level
    cdef readonly dict pages_by_kind
    cdef readonly str how
    cdef int room_for_fresh(self, size_t pages) except -1
    cdef int moved_to(self, const nova_image *image, const nova_delta_writer *w) except -1


cdef class DeltaDecoder:
    cdef Py_buffer view
    cdef bint held
    cdef nova_image image
    cdef digest_table digests
    cdef Workspace work
    cdef bint busy
