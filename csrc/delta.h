/* csrc/delta.h - what makes one image of memory out of another: page tokens, and the bytes that they ask for.
 *
 * A delta is one span or several, one behind the other; each makes the next part of the image from the next part of the
 * base. All numbers are LEB128 in their shortest form where no width is given; fixed widths are little-endian.
 *
 *   span     "NVZ" 1 | flags u8 | number | base size | size | bytes of frames | frames | base identity 16 |
 *            identity 16 | CRC32C of all before it, u32
 *            flags: 1 the last span
 *   frame    methods u8 | pages | tokens raw | tokens stored | literals raw | literals stored |
 *            if the literals have a prefix: its first byte and its length in the base of the span |
 *            tokens | literals
 *            methods: tokens (0 stored, 1 zstd) | literals (0 stored, 1 zstd, 2 zstd with prefix) << 2
 *   token    kind | (n - 1) << 3, n pages; 31 in the upper bits: n - 32 follows as a number
 *   SAME     as in the base
 *   ZERO     zeros
 *   COPY     pages of the base from elsewhere: zigzag number, the distance to where the last COPY ended; the first one
 *            counts from the page that it makes
 *   AGAIN    pages of the new image: how many pages before this one, which may be one of this token
 *   RAW      4096 literals each
 *   RUNS     each page: number of runs - 1, and for each bytes since the last one's end, length - 1; literals
 *   BITMAP   each page: which lines, u64, and for each which bytes, u64; literals
 *   PIECES   each page: number of pieces - 1, and for each so many literals, then length - 1 and zigzag number: bytes of
 *            the base from where they stand in the image plus a shift, which is the last piece's shift (0 to begin with)
 *            plus this number; behind the last piece literals to the end of the page
 *
 * Behind the tokens of the last frame all pages are SAME. Both images count as whole pages, with zeros behind their end.
 * Tokens and literals of one frame never take more than NOVA_DELTA_TOKENS and NOVA_DELTA_LITERALS. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "page.h"

enum {
    NOVA_DELTA_VERSION = 1,
    NOVA_DELTA_LAST = 1,
    NOVA_DELTA_TOKENS = 1 << 20,
    NOVA_DELTA_LITERALS = 4 << 20,
    NOVA_DELTA_TAIL = 36,       /* bytes behind the frames of a span */
    NOVA_DELTA_FRAME_HEAD = 64, /* room for what stands before the tokens of a frame */
    NOVA_DELTA_PREFIX = 64 << 20,
    NOVA_DELTA_BLOCK_BITS = 22, /* of the table of blocks: 16 MiB */
    NOVA_DELTA_PIECES_MAX = 48  /* of one page */
};

typedef enum {
    NOVA_SAME,
    NOVA_ZERO,
    NOVA_COPY,
    NOVA_AGAIN,
    NOVA_RAW,
    NOVA_RUNS,
    NOVA_BITMAP,
    NOVA_PIECES,
    NOVA_KINDS
} nova_delta_kind;

enum { NOVA_STORED, NOVA_ZSTD, NOVA_PREFIXED };

/* ---- spans and frames ---- */

typedef struct {
    uint8_t flags;
    uint64_t number, base_size, size;
    const uint8_t *frames;
    size_t frames_bytes;
    uint8_t base_identity[16], identity[16];
    size_t bytes; /* of all of it */
} nova_delta_span;

typedef struct {
    uint8_t methods;
    uint64_t pages, tokens_raw, literals_raw, prefix_at, prefix_bytes;
    const uint8_t *tokens, *literals;
    size_t tokens_stored, literals_stored;
} nova_delta_frame;

enum {
    NOVA_DELTA_OK = 0,
    NOVA_DELTA_E_MAGIC = -1,   /* no delta */
    NOVA_DELTA_E_VERSION = -2, /* of another version */
    NOVA_DELTA_E_SHORT = -3,   /* cut, or a size in it is not true */
    NOVA_DELTA_E_CHECKSUM = -4,
    NOVA_DELTA_E_FRAME = -5, /* a frame's head cannot be */
    NOVA_DELTA_E_TOKEN = -6, /* a token cannot be */
    NOVA_DELTA_E_BASE = -7,  /* the base has changed since its digests were taken */
    NOVA_DELTA_E_ROOM = -8
};

/* The span at the beginning of bytes; its checksum is right. */
int nova_delta_read_span(const uint8_t *bytes, size_t n, nova_delta_span *out);
/* The frame at *at of a span, which it moves behind it. Sizes are within their limits and within the span. */
int nova_delta_read_frame(const nova_delta_span *span, size_t *at, nova_delta_frame *out);

/* What stands before the frames; out has room for NOVA_DELTA_FRAME_HEAD. Returns its length. */
size_t nova_delta_put_head(uint8_t *out, const nova_delta_span *span);
/* NOVA_DELTA_TAIL bytes, all but the checksum, which goes over all that stands before it. */
void nova_delta_put_tail(uint8_t *out, nova_digest base_identity, nova_digest identity);
size_t nova_delta_put_frame(uint8_t *out, const nova_delta_frame *frame);

/* ---- writing ---- */

typedef struct {
    uint64_t first, count; /* pages */
} nova_page_range;

typedef struct {
    uint64_t page;
    nova_digest digest;
} nova_fresh_page;

typedef struct {
    uint64_t low, page; /* page + 1; 0: free */
} nova_seen_page;

enum { NOVA_BY_COMPARE, NOVA_BY_DIGEST, NOVA_BY_RANGES };
enum { NOVA_WRITE_END, NOVA_WRITE_FULL, NOVA_WRITE_INDEX, NOVA_WRITE_BLOCKS };

enum { NOVA_SEEN = 1 << 12 };

typedef struct {
    /* What it works on: borrowed. base.bytes is NULL where only digests are kept. */
    nova_image base, image;
    const nova_digest *digests; /* of the pages of the base */
    nova_digest sum;            /* of the base to begin with; in the end of the image */
    int base_is_own;            /* nobody else can have changed it: its pages need not be hashed again */
    int how;
    const nova_page_range *ranges; /* BY_RANGES: ascending, apart from each other, within the image */
    size_t ranges_count;
    /* Where pages of the base are found by digest: a table of page + 1, 0 free; index_slots is a power of two. NULL: the
     * writer stops with NOVA_WRITE_INDEX when it wants one, unless no_index is set. */
    const uint32_t *index;
    size_t index_slots;
    int no_index;
    /* Where blocks of the base are found: a table of 1 << NOVA_DELTA_BLOCK_BITS. NULL: it stops with NOVA_WRITE_BLOCKS when
     * enough pages could use one, unless no_blocks is set. */
    const uint32_t *blocks;
    int no_blocks;
    nova_seen_page *seen; /* NOVA_SEEN of them, zeros to begin with */
    /* Pages that differ, in order, if not NULL: room for those of the image. */
    nova_fresh_page *fresh;
    size_t fresh_count;
    /* Where it writes: room for NOVA_DELTA_TOKENS and NOVA_DELTA_LITERALS. */
    uint8_t *tokens, *literals;
    size_t tokens_used, literals_used;
    /* Where it is. */
    size_t page, range, frame_first, raw_in_frame;
    uint64_t pages_of[NOVA_KINDS];
    /* The last token, not written yet. */
    nova_delta_kind pending;
    uint64_t pending_count, pending_from, copy_next;
    size_t head_at; /* of RUNS, BITMAP and PIECES, whose bodies follow: where the token stands */
    int64_t shift;
    uint64_t heavy, tried, won; /* pages that pieces might serve, were tried on, and served */
} nova_delta_writer;

/* Fields as above are set, the rest zeros. Takes the pages of the base that the image lacks out of the sum. */
void nova_delta_begin(nova_delta_writer *w);
/* Go on: NOVA_WRITE_END, NOVA_WRITE_FULL (a frame is to be taken away), NOVA_WRITE_INDEX, or NOVA_DELTA_E_BASE. */
int nova_delta_write(nova_delta_writer *w);
/* Finish the present frame; returns how many pages it covers, without SAME ones at its end if it is the last one. */
uint64_t nova_delta_cut(nova_delta_writer *w, int last);
/* Empty it for the next one. */
void nova_delta_next(nova_delta_writer *w);

typedef struct {
    uint16_t literals, length;
    int64_t shift;
} nova_piece;

/* How far from each other the blocks are that a table has of a base of this size. */
size_t nova_delta_stride(size_t size);
void nova_delta_index_blocks(const nova_image *base, uint32_t *blocks);
/* Pieces of the base that make up a page of the image, which begins at `begin`; *literals: bytes that no piece covers. */
size_t nova_delta_pieces(const nova_image *base, const uint32_t *blocks, const uint8_t *page, uint64_t begin,
                         int64_t shift, nova_piece *pieces, size_t room, size_t *literals);

/* Fill an index: slots is a power of two, at least twice the pages. */
void nova_delta_index(const nova_digest *digests, size_t pages, uint32_t *index, size_t slots);
/* Add pages whose digests are new; those that the index has under their old digest are found no more. */
void nova_delta_index_more(const nova_digest *digests, const nova_fresh_page *fresh, size_t n, uint32_t *index,
                           size_t slots);

/* ---- reading ---- */

typedef struct {
    nova_image base;
    const nova_digest *digests; /* of the pages of the base */
    uint64_t size;              /* of the image */
    nova_digest sum;            /* as in the writer */
    /* One of both: the whole image, with room for whole pages but for the last one, or only pages that differ. */
    uint8_t *out;
    uint8_t *stage;
    nova_fresh_page *staged;
    size_t stage_room, stage_used;
    size_t page;
    uint64_t copy_next;
    int copied;
    int64_t shift;
    uint64_t pages_of[NOVA_KINDS];
    uint64_t touched; /* of a dry run: pages that are not SAME */
} nova_delta_reader;

void nova_delta_read_begin(nova_delta_reader *r);
/* Look through the tokens of a frame: every one is within its bounds, and they use all tokens and all literals. Counts
 * pages_of and touched, moves on, writes nothing. Neither images nor digests are looked at, only sizes. */
int nova_delta_check(nova_delta_reader *r, const uint8_t *tokens, size_t tokens_bytes, const uint8_t *literals,
                     size_t literals_bytes, uint64_t pages);
/* Apply a frame: 0, NOVA_DELTA_E_BASE, NOVA_DELTA_E_ROOM if `stage` is full, or NOVA_DELTA_E_TOKEN, which
 * nova_delta_check would have said but for a last page that is cut and is said to be the same. */
int nova_delta_apply(nova_delta_reader *r, const uint8_t *tokens, size_t tokens_bytes, const uint8_t *literals,
                     size_t literals_bytes, uint64_t pages);
/* What is behind the last frame: SAME. 0, or NOVA_DELTA_E_TOKEN if the last page is cut and so not the same. */
int nova_delta_read_end(nova_delta_reader *r);
/* Put staged pages into the image that begins at `image`, which has room for r->size. */
void nova_delta_commit(const nova_delta_reader *r, uint8_t *image);
