/* csrc/rows_inner.h - how rows lie in memory; for the files of rows.h only.
 *
 * rows.c       the table, the arena and the lists of chunks: rows, boxes, garbage
 * rows_log.c   what was learned and dropped
 * rows_join.c  merging
 * rows_wire.c  all rows in an order */
#pragma once
#include "rows.h"
#include <stdlib.h>

/* ---- the shape of memory ---- */

enum {
    DEAD = 1,    /* dropped */
    LOOSE = 2,   /* dropped, and nothing points here any more */
    SIBLING = 4, /* has a word that names the next record of the same key */
    STAMP = 8,
    VALUE = 16,
    DOOMED = 64, /* in the middle of a join: to be dropped */
    BOX = 32,    /* not a row but a box; its reference is the box's number */
};

enum { GROUP = 8, TAG_EMPTY = 0x80, TAG_GONE = 0xfe, GARBAGE_MIN = 1 << 14, HOLES_MIN = 32, FEW = 8 };

/* Rows of one writer whose counts share their upper 58 bits. The count of row `lane` is block << 6 | lane; at[] has an
 * entry per set bit of `live`, in order. */
typedef struct {
    uint64_t block, live;
    nova_digest sum; /* of the rows as they were when `stale` was 0 */
    uint32_t who;
    uint8_t room, stale;
    uint32_t at[];
} chunk;

typedef struct {
    nova_span *spans;
    size_t nspans, span_room;
    uint64_t *blocks; /* ascending; of holes too */
    uint32_t *chunks; /* where the chunk is; 0: a hole */
    size_t nblocks, block_room, holes;
    const char *name;
    size_t nname;
    uint64_t hash;
} writer;

typedef struct {
    uint32_t at;               /* its record; 0 for the root and for a free number */
    uint32_t head, size, keys; /* first record, records, keys among them */
    uint8_t type, rule;
    uint8_t *path;
    size_t npath, key; /* path[key..] is its key */
} box;

/* What was learned; or dropped, or learned without a row. Drops stand behind the events that caused them. */
typedef struct {
    nova_span span;
    uint32_t who, dropped;
} entry;

enum { LOG_MIN = 128, ROWS_PER_ENTRY = 16 };

struct nova_rows {
    entry *log; /* the oldest first */
    size_t nlog, log_room;
    int logs;
    int bare;       /* rows are not found by their keys: they are here to be joined to others */
    uint8_t *arena; /* in words of 4 bytes; word 0 is no record */
    size_t used, room, garbage;
    uint8_t *tags; /* of the table: 7 bits of a hash, or empty, or gone */
    uint32_t *slots;
    size_t mask, filled, keys; /* slots less one; not empty; of living keys */
    chunk **chunks;            /* [0] is never one */
    uint32_t nchunks, chunk_room, *chunks_free, nfree;
    uint32_t *stale, nstale, stale_room;
    writer *writers;
    uint32_t nwriters, writer_room;
    box *boxes;
    uint32_t nboxes, box_room, *boxes_free, nboxes_free;
    uint32_t *emptied, nemptied, emptied_room; /* boxes to look at in tidy */
    nova_digest total;
    size_t rows;
    int nested;
};

extern uint64_t nova_rows_hash_seed;

/* Bits set in v. The instruction for it is younger than the processors that wheels must run on. */
static inline unsigned bits_in(uint64_t v)
{
    v -= v >> 1 & 0x5555555555555555u;
    v = (v & 0x3333333333333333u) + (v >> 2 & 0x3333333333333333u);
    v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (unsigned)(v * 0x0101010101010101u >> 56);
}

static inline uint32_t load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline void store32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, 4);
}

/* Room for n items of `each` bytes in a list that grows by half again. */
static inline int reserve(void *list, size_t *room, size_t n, size_t each)
{
    if (n <= *room)
        return 0;
    size_t more = n < 8 ? 8 : n + n / 2;
    void *grown = realloc(*(void **)list, more * each);
    if (!grown)
        return NOVA_ROWS_NOMEM;
    *(void **)list = grown;
    *room = more;
    return 0;
}

static inline int reserve32(void *list, uint32_t *room, uint32_t n, size_t each)
{
    size_t wide = *room;
    int failed = reserve(list, &wide, n, each);
    *room = (uint32_t)wide;
    return failed;
}

/* ---- records ----
 *
 * A record: reference (chunk << 6 | lane, or box), with boxes also [box, before, behind], flags, with SIBLING the next
 * record of the key, length and bytes of the leaf, with STAMP a number, with VALUE a length and bytes. */

static inline uint8_t *record(const nova_rows *r, uint32_t at)
{
    return r->arena + 4 * (size_t)at;
}

static inline uint8_t *flags_of(const nova_rows *r, uint32_t at)
{
    return record(r, at) + (r->nested ? 16 : 4);
}

/* Numbers in the arena are our own: no bounds to check. */
static inline const uint8_t *take_number(const uint8_t *p, uint64_t *value)
{
    uint64_t v = *p & 0x7f;
    for (unsigned shift = 7; *p++ >= 0x80; shift += 7)
        v |= (uint64_t)(*p & 0x7f) << shift;
    *value = v;
    return p;
}

static inline const uint8_t *leaf_of(const nova_rows *r, uint32_t at, size_t *n)
{
    const uint8_t *p = flags_of(r, at);
    uint64_t size;
    p = take_number(p + (*p & SIBLING ? 5 : 1), &size);
    *n = size;
    return p;
}

/* Parse; returns where the record ends, in words. */
static inline uint32_t parse(const nova_rows *r, uint32_t at, nova_row *row)
{
    const uint8_t *start = record(r, at), *p = flags_of(r, at);
    uint8_t flags = *p;
    uint64_t n;
    row->box = r->nested ? load32(start + 4) : 0;
    p = take_number(p + (flags & SIBLING ? 5 : 1), &n);
    row->leaf = p;
    row->nleaf = n;
    p += n;
    row->stamp = 0;
    if (flags & STAMP)
        p = take_number(p, &row->stamp);
    n = 0;
    if (flags & VALUE)
        p = take_number(p, &n);
    row->value = p;
    row->nvalue = n;
    return at + (uint32_t)(((size_t)(p + n - start) + 3) / 4);
}

static inline uint32_t sibling_of(const nova_rows *r, uint32_t at)
{
    const uint8_t *p = flags_of(r, at);
    return *p & SIBLING ? load32(p + 1) : 0;
}

static inline chunk *chunk_of(const nova_rows *r, uint32_t at)
{
    return r->chunks[load32(record(r, at)) >> 6];
}

static inline int same_bytes(const uint8_t *a, size_t na, const uint8_t *b, size_t nb)
{
    return na == nb && (!na || !memcmp(a, b, na));
}

static inline int order_bytes(const uint8_t *a, size_t na, const uint8_t *b, size_t nb)
{
    size_t n = na < nb ? na : nb;
    int order = n ? memcmp(a, b, n) : 0;
    return order ? order : (na > nb) - (na < nb);
}

/* ---- the table of keys ---- */

static inline uint64_t fold(uint64_t x, uint64_t y)
{
    unsigned __int128 p = (unsigned __int128)x * y;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static inline uint64_t key_hash(uint32_t in, const void *leaf, size_t n)
{
    const uint8_t *p = leaf;
    if (n > 16)
        return nova_digest_bytes(p, n, nova_rows_hash_seed ^ in).lo;
    uint64_t a, b = 0;
    if (n >= 8) {
        a = nova_load64le(p);
        b = nova_load64le(p + n - 8);
    } else
        a = nova_load_tail(p, n);
    uint64_t h = fold(a ^ nova_rows_hash_seed, b ^ ((uint64_t)in << 8) ^ n ^ 0xa0761d6478bd642fu);
    return fold(h ^ nova_rows_hash_seed, 0xe7037ed1a0b428dbu);
}

static inline uint64_t hash_of(const nova_rows *r, uint32_t at)
{
    size_t n;
    const uint8_t *leaf = leaf_of(r, at, &n);
    return key_hash(r->nested ? load32(record(r, at) + 4) : 0, leaf, n);
}

#define ONES 0x0101010101010101u
#define HIGHS 0x8080808080808080u

/* Bytes of `word` that equal `byte`: their high bits; also, rarely, a byte right above one that does. */
static inline uint64_t matches(uint64_t word, uint8_t byte)
{
    uint64_t x = word ^ ONES * byte;
    return (x - ONES) & ~x & HIGHS;
}

/* Bytes that are TAG_EMPTY: alone of all tags it has bit 7 without bit 1. */
static inline uint64_t empties(uint64_t word)
{
    return word & ~(word << 6) & HIGHS;
}

/* ---- chunks ---- */

static inline size_t place(const chunk *c, unsigned lane)
{
    return bits_in(c->live & (((uint64_t)1 << lane) - 1));
}

/* ---- of rows.c, for the others ---- */

/* The slot of a key. Or, with `room` not NULL, also the slot where it may go; SIZE_MAX if it is not there. */
size_t nova_rows_seek(const nova_rows *r, uint64_t hash, uint32_t in, const void *leaf, size_t n, size_t *room);
/* Room for `more` keys; for `words` of records; for n blocks of a writer. */
int nova_rows_grow_table(nova_rows *r, size_t more);
int nova_rows_grow_arena(nova_rows *r, size_t words);
int nova_rows_reserve_blocks(writer *w, size_t n);
/* Where a block of a writer is, or belongs. */
size_t nova_rows_seek_block(const writer *w, uint64_t block);
nova_digest nova_rows_digest_of(const nova_rows *r, const nova_row *row);
/* Bring the sum of a chunk, and the total, up to date. */
void nova_rows_refresh(nova_rows *r, chunk *c);
/* Give a row another dot, stamp and value where they are, if they take the same room. 0 if they do not. */
int nova_rows_renew_here(nova_rows *r, uint32_t at, const nova_row *row);
/* Add a row whose key is at `slot`, or if that is SIZE_MAX may go to `room`; the table has room for it. */
int nova_rows_put_at(nova_rows *r, const nova_row *row, uint64_t hash, size_t slot, size_t room, int replace);
/* Free the dead records of the key in a slot. */
void nova_rows_sweep_slot(nova_rows *r, size_t slot);
/* Which counts of a block are in these spans. */
uint64_t nova_rows_known_bits(const nova_span *spans, size_t n, uint64_t block);

/* ---- of rows_log.c ---- */

void nova_rows_log_span(nova_rows *r, uint32_t who, uint64_t first, uint64_t last, int dropped);
/* The same, where it is called for every write: mostly there is room, and nothing to join it to. */
static inline void log_write(nova_rows *r, uint32_t who, uint64_t first, uint64_t last, uint32_t dropped)
{
    if (!r->logs)
        return;
    entry *end = r->log + r->nlog;
    if (r->nlog && r->nlog < r->log_room && r->nlog < LOG_MIN + r->rows / ROWS_PER_ENTRY &&
        (end[-1].dropped != dropped || end[-1].who != who)) {
        *end = (entry){{first, last}, who, dropped};
        r->nlog++;
    } else
        nova_rows_log_span(r, who, first, last, (int)dropped);
}

/* What a join learns, then which of these events come without a row: elsewhere they may have one. In that order for all
 * writers, because an event of one may have taken the row of another. */
void nova_rows_log_join(nova_rows *r, const nova_rows *o, const uint32_t *map, const nova_plan *plan);
