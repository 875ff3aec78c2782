/* csrc/rows.c */
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

static uint64_t seed = 0x9e3779b97f4a7c15u;

void nova_rows_seed(uint64_t value)
{
    seed = value;
}

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
static int reserve(void *list, size_t *room, size_t n, size_t each)
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

static int reserve32(void *list, uint32_t *room, uint32_t n, size_t each)
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
static uint32_t parse(const nova_rows *r, uint32_t at, nova_row *row)
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

void nova_rows_view(const nova_rows *r, uint32_t at, nova_row *row)
{
    uint32_t reference = load32(record(r, at));
    parse(r, at, row);
    const chunk *c = r->chunks[reference >> 6];
    row->who = c->who;
    row->count = c->block << 6 | (reference & 63);
}

static int same_bytes(const uint8_t *a, size_t na, const uint8_t *b, size_t nb)
{
    return na == nb && (!na || !memcmp(a, b, na));
}

static int order_bytes(const uint8_t *a, size_t na, const uint8_t *b, size_t nb)
{
    size_t n = na < nb ? na : nb;
    int order = n ? memcmp(a, b, n) : 0;
    return order ? order : (na > nb) - (na < nb);
}

int nova_rows_outranks(const nova_rows *r, uint32_t a, uint32_t b)
{
    nova_row x, y;
    nova_rows_view(r, a, &x);
    nova_rows_view(r, b, &y);
    if (x.stamp != y.stamp)
        return x.stamp > y.stamp;
    if (x.who != y.who) {
        const writer *v = &r->writers[x.who], *w = &r->writers[y.who];
        return order_bytes((const uint8_t *)v->name, v->nname, (const uint8_t *)w->name, w->nname) > 0;
    }
    int order = order_bytes(x.value, x.nvalue, y.value, y.nvalue);
    return order ? order > 0 : x.count > y.count;
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
        return nova_digest_bytes(p, n, seed ^ in).lo;
    uint64_t a, b = 0;
    if (n >= 8) {
        a = nova_load64le(p);
        b = nova_load64le(p + n - 8);
    } else
        a = nova_load_tail(p, n);
    uint64_t h = fold(a ^ seed, b ^ ((uint64_t)in << 8) ^ n ^ 0xa0761d6478bd642fu);
    return fold(h ^ seed, 0xe7037ed1a0b428dbu);
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

/* The slot of a key. Or, with `room` not NULL, also the slot where it may go; SIZE_MAX if it is not there. */
static size_t seek(const nova_rows *r, uint64_t hash, uint32_t in, const void *leaf, size_t n, size_t *room)
{
    if (room)
        *room = SIZE_MAX;
    if (!r->slots)
        return SIZE_MAX;
    uint8_t tag = hash >> 57;
    size_t groups = r->mask / GROUP, group = hash & groups;
    for (size_t step = 1;; step++) {
        uint64_t word = nova_load64le(r->tags + group * GROUP);
        for (uint64_t hits = matches(word, tag); hits; hits &= hits - 1) {
            size_t slot = group * GROUP + (size_t)__builtin_ctzll(hits) / 8, nhere;
            if (r->tags[slot] != tag)
                continue;
            uint32_t at = r->slots[slot];
            const uint8_t *here = leaf_of(r, at, &nhere);
            if (nhere == n && (!n || !memcmp(here, leaf, n)) && (!r->nested || load32(record(r, at) + 4) == in))
                return slot;
        }
        if (room && *room == SIZE_MAX) {
            uint64_t open = word & HIGHS; /* empty or gone */
            if (open)
                *room = group * GROUP + (size_t)__builtin_ctzll(open) / 8;
        }
        if (empties(word))
            return SIZE_MAX;
        group = (group + step) & groups;
    }
}

/* A slot that probes need not go past is empty again, not gone. */
static void clear_slot(nova_rows *r, size_t slot)
{
    int ends = empties(nova_load64le(r->tags + slot / GROUP * GROUP)) != 0;
    r->tags[slot] = ends ? TAG_EMPTY : TAG_GONE;
    r->filled -= (size_t)ends;
    r->keys--;
}

static void set_slot(nova_rows *r, size_t slot, uint64_t hash, uint32_t at)
{
    if (r->tags[slot] == TAG_EMPTY)
        r->filled++;
    r->tags[slot] = hash >> 57;
    r->slots[slot] = at;
}

/* Room for `more` keys. */
static int grow_table(nova_rows *r, size_t more)
{
    size_t have = r->slots ? r->mask + 1 : 0;
    if (r->filled + more <= have / 8 * 7)
        return 0;
    size_t want = 16;
    while (r->keys + more > want / 8 * 5) /* well below what is full, or churn would soon fill it with tombs again */
        want *= 2;
    if (want > (size_t)1 << 33)
        return NOVA_ROWS_FULL;
    uint8_t *tags = malloc(want);
    uint32_t *slots = malloc(want * sizeof *slots);
    if (!tags || !slots) {
        free(tags);
        free(slots);
        return NOVA_ROWS_NOMEM;
    }
    memset(tags, TAG_EMPTY, want);
    for (size_t i = 0; i < have; i++) {
        if (r->tags[i] & 0x80)
            continue;
        uint64_t hash = hash_of(r, r->slots[i]);
        size_t groups = (want - 1) / GROUP, group = hash & groups;
        uint64_t open;
        for (size_t step = 1; !(open = nova_load64le(tags + group * GROUP) & HIGHS); step++)
            group = (group + step) & groups;
        size_t slot = group * GROUP + (size_t)__builtin_ctzll(open) / 8;
        tags[slot] = hash >> 57;
        slots[slot] = r->slots[i];
    }
    free(r->tags);
    free(r->slots);
    r->tags = tags;
    r->slots = slots;
    r->mask = want - 1;
    r->filled = r->keys;
    return 0;
}

/* ---- lists of chunks ---- */

static size_t seek_block(const writer *w, uint64_t block)
{
    size_t low = 0, high = w->nblocks;
    if (high && w->blocks[high - 1] <= block) /* writers mostly go on where they were */
        return w->blocks[high - 1] < block ? high : high - 1;
    if (high && block >= w->blocks[0] && block - w->blocks[0] < high && w->blocks[block - w->blocks[0]] == block)
        return block - w->blocks[0]; /* and mostly left no block out */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (w->blocks[middle] < block)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static nova_digest row_digest(const nova_rows *r, const nova_row *row)
{
    const uint8_t *path = r->boxes[row->box].path;
    return nova_digest_row(path, r->boxes[row->box].npath, row->leaf, row->nleaf, r->writers[row->who].hash, row->count,
                           row->stamp, row->value, row->nvalue);
}

/* Bring the sum of a chunk, and the total, up to date. */
static void refresh(nova_rows *r, chunk *c)
{
    nova_digest sum = {0, 0};
    size_t i = 0;
    for (uint64_t live = c->live; live; live &= live - 1, i++) {
        nova_row row;
        parse(r, c->at[i], &row);
        row.who = c->who;
        row.count = c->block << 6 | (uint64_t)__builtin_ctzll(live);
        sum = nova_digest_add(sum, row_digest(r, &row));
    }
    r->total = nova_digest_add(nova_digest_sub(r->total, c->sum), sum);
    c->sum = sum;
    c->stale = 0;
}

static void refresh_all(nova_rows *r)
{
    for (uint32_t i = 0; i < r->nstale; i++) {
        chunk *c = r->chunks[r->stale[i]];
        if (c && c->stale)
            refresh(r, c);
    }
    r->nstale = 0;
}

static void mark_stale(nova_rows *r, uint32_t id)
{
    if (r->chunks[id]->stale)
        return;
    if (r->nstale == r->stale_room) /* there is an entry per chunk; more are of chunks that are gone or fresh again */
        refresh_all(r);
    r->chunks[id]->stale = 1;
    r->stale[r->nstale++] = id;
}

nova_digest nova_rows_digest(nova_rows *r)
{
    refresh_all(r);
    return r->total;
}

/* A chunk for `room` rows, not yet in a list. Its number, or 0. */
static uint32_t make_chunk(nova_rows *r, uint32_t who, uint64_t block, unsigned room)
{
    if (!r->nfree) {
        uint32_t first = r->nchunks ? r->nchunks : 1;
        uint32_t before = r->chunk_room;
        if (first >= 1u << 26 || reserve32(&r->chunks, &r->chunk_room, first + 1, sizeof *r->chunks))
            return 0;
        if (r->chunk_room != before || !r->chunks_free) {
            uint32_t *grown = realloc(r->chunks_free, r->chunk_room * sizeof *grown);
            if (!grown)
                return 0;
            r->chunks_free = grown;
        }
        r->chunks[0] = NULL;
        r->chunks[first] = NULL;
        r->nchunks = first + 1;
        r->chunks_free[r->nfree++] = first;
    }
    if (reserve32(&r->stale, &r->stale_room, r->nchunks, sizeof *r->stale))
        return 0;
    chunk *c = malloc(sizeof *c + room * sizeof *c->at);
    if (!c)
        return 0;
    *c = (chunk){.block = block, .who = who, .room = (uint8_t)room};
    uint32_t id = r->chunks_free[--r->nfree];
    r->chunks[id] = c;
    return id;
}

static int reserve_blocks(writer *w, size_t n)
{
    size_t room = w->block_room;
    if (reserve(&w->blocks, &room, n, sizeof *w->blocks))
        return NOVA_ROWS_NOMEM;
    if (room != w->block_room) {
        uint32_t *grown = realloc(w->chunks, room * sizeof *grown);
        if (!grown)
            return NOVA_ROWS_NOMEM;
        w->chunks = grown;
        w->block_room = room;
    }
    return 0;
}

static void close_holes(writer *w)
{
    size_t n = 0;
    for (size_t i = 0; i < w->nblocks; i++)
        if (w->chunks[i]) {
            w->blocks[n] = w->blocks[i];
            w->chunks[n++] = w->chunks[i];
        }
    w->nblocks = n;
    w->holes = 0;
}

/* The chunk for a dot, made if there is none, with room for one more row. 0 without memory. */
static uint32_t chunk_for(nova_rows *r, uint32_t who, uint64_t block)
{
    writer *w = &r->writers[who];
    size_t i = seek_block(w, block);
    uint32_t id;
    if (i == w->nblocks || w->blocks[i] != block) {
        if (reserve_blocks(w, w->nblocks + 1) || !(id = make_chunk(r, who, block, 4)))
            return 0;
        memmove(w->blocks + i + 1, w->blocks + i, (w->nblocks - i) * sizeof *w->blocks);
        memmove(w->chunks + i + 1, w->chunks + i, (w->nblocks - i) * sizeof *w->chunks);
        w->blocks[i] = block;
        w->chunks[i] = id;
        w->nblocks++;
        return id;
    }
    if (!(id = w->chunks[i])) {
        if (!(id = make_chunk(r, who, block, 4)))
            return 0;
        w->chunks[i] = id;
        w->holes--;
        return id;
    }
    chunk *c = r->chunks[id];
    if (bits_in(c->live) == c->room) {
        unsigned room = c->room < 32 ? 2u * c->room : 64;
        chunk *grown = realloc(c, sizeof *c + room * sizeof *c->at);
        if (!grown)
            return 0;
        grown->room = (uint8_t)room;
        r->chunks[id] = grown;
    }
    return id;
}

static inline size_t place(const chunk *c, unsigned lane)
{
    return bits_in(c->live & (((uint64_t)1 << lane) - 1));
}

static void insert_lane(chunk *c, unsigned lane, uint32_t at)
{
    size_t i = place(c, lane), n = bits_in(c->live);
    memmove(c->at + i + 1, c->at + i, (n - i) * sizeof *c->at);
    c->at[i] = at;
    c->live |= (uint64_t)1 << lane;
}

static void remove_lane(nova_rows *r, uint32_t reference)
{
    uint32_t id = reference >> 6;
    unsigned lane = reference & 63;
    chunk *c = r->chunks[id];
    size_t i = place(c, lane), n = bits_in(c->live);
    memmove(c->at + i, c->at + i + 1, (n - i - 1) * sizeof *c->at);
    c->live &= ~((uint64_t)1 << lane);
    if (c->live) {
        mark_stale(r, id);
        return;
    }
    writer *w = &r->writers[c->who];
    size_t at = seek_block(w, c->block);
    w->chunks[at] = 0;
    w->holes++;
    r->total = nova_digest_sub(r->total, c->sum);
    free(c);
    r->chunks[id] = NULL;
    r->chunks_free[r->nfree++] = id;
    if (at + 1 == w->nblocks)
        for (; w->nblocks && !w->chunks[w->nblocks - 1]; w->nblocks--)
            w->holes--;
    else if (w->holes > HOLES_MIN && w->holes > w->nblocks / 2)
        close_holes(w);
}

/* ---- a replica's rows ---- */

nova_rows *nova_rows_new(int type, int rule, int nested)
{
    nova_rows *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->nested = nested;
    r->used = 1;
    if (reserve32(&r->boxes, &r->box_room, 1, sizeof *r->boxes)) {
        free(r);
        return NULL;
    }
    r->boxes[0] = (box){.type = (uint8_t)type, .rule = (uint8_t)rule};
    r->nboxes = 1;
    return r;
}

int nova_rows_expect(nova_rows *r, size_t rows, int bare)
{
    r->bare = bare;
    return bare ? 0 : grow_table(r, rows);
}

void nova_rows_free(nova_rows *r)
{
    if (!r)
        return;
    for (uint32_t i = 1; i < r->nchunks; i++)
        free(r->chunks[i]);
    for (uint32_t i = 0; i < r->nwriters; i++) {
        free(r->writers[i].spans);
        free(r->writers[i].blocks);
        free(r->writers[i].chunks);
    }
    for (uint32_t i = 0; i < r->nboxes; i++)
        free(r->boxes[i].path);
    void *rest[] = {r->arena,   r->tags,  r->slots,      r->chunks,  r->chunks_free, r->stale,
                    r->writers, r->boxes, r->boxes_free, r->emptied, r->log};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++)
        free(rest[i]);
    free(r);
}

static int copy_bytes(void *to, const void *from, size_t n)
{
    if (!n) {
        *(void **)to = NULL;
        return 0;
    }
    void *out = malloc(n);
    if (!out)
        return NOVA_ROWS_NOMEM;
    memcpy(out, from, n);
    *(void **)to = out;
    return 0;
}

nova_rows *nova_rows_copy(const nova_rows *o)
{
    nova_rows *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->nested = o->nested;
    r->total = o->total;
    r->rows = o->rows;
    r->used = o->used;
    r->garbage = o->garbage;
    int bad = copy_bytes(&r->log, o->log, o->nlog * sizeof *o->log);
    r->nlog = r->log_room = o->nlog;
    r->logs = o->logs;
    if (o->arena) { /* with some room, or the first write would copy it again */
        r->room = o->used + o->used / 16;
        if ((r->arena = malloc(4 * r->room)))
            memcpy(r->arena, o->arena, 4 * o->used);
        else
            bad = 1;
    }
    if (o->slots) {
        bad |= copy_bytes(&r->tags, o->tags, o->mask + 1);
        bad |= copy_bytes(&r->slots, o->slots, (o->mask + 1) * sizeof *o->slots);
        r->mask = o->mask;
        r->filled = o->filled;
        r->keys = o->keys;
    }
    r->chunks = o->nchunks ? calloc(o->nchunks, sizeof *r->chunks) : NULL;
    r->chunks_free = o->nchunks ? malloc(o->nchunks * sizeof *r->chunks_free) : NULL;
    r->stale = o->nchunks ? malloc(o->nchunks * sizeof *r->stale) : NULL;
    r->writers = o->nwriters ? calloc(o->nwriters, sizeof *r->writers) : NULL;
    r->boxes = calloc(o->nboxes, sizeof *r->boxes);
    r->boxes_free = malloc(o->nboxes * sizeof *r->boxes_free); /* room for every box */
    if ((o->nchunks && (!r->chunks || !r->chunks_free || !r->stale)) || (o->nwriters && !r->writers) || !r->boxes ||
        !r->boxes_free)
        bad = 1;
    if (bad)
        goto failed;
    r->nboxes_free = o->nboxes_free;
    if (o->nboxes_free)
        memcpy(r->boxes_free, o->boxes_free, o->nboxes_free * sizeof *o->boxes_free);
    r->chunk_room = r->nchunks = o->nchunks;
    r->nfree = o->nfree;
    r->stale_room = o->nchunks;
    if (o->nfree)
        memcpy(r->chunks_free, o->chunks_free, o->nfree * sizeof *r->chunks_free);
    for (uint32_t i = 1; i < o->nchunks; i++) {
        const chunk *c = o->chunks[i];
        if (!c)
            continue;
        size_t n = bits_in(c->live);
        if (!(r->chunks[i] = malloc(sizeof *c + n * sizeof *c->at)))
            goto failed;
        memcpy(r->chunks[i], c, sizeof *c + n * sizeof *c->at);
        r->chunks[i]->room = (uint8_t)n;
        if (c->stale)
            r->stale[r->nstale++] = i;
    }
    r->writer_room = o->nwriters;
    for (; r->nwriters < o->nwriters; r->nwriters++) {
        const writer *w = &o->writers[r->nwriters];
        writer *copy = &r->writers[r->nwriters];
        *copy = *w;
        copy->spans = NULL;
        copy->blocks = NULL;
        copy->chunks = NULL;
        copy->span_room = w->nspans;
        copy->block_room = w->nblocks;
        bad = copy_bytes(&copy->spans, w->spans, w->nspans * sizeof *w->spans);
        bad |= copy_bytes(&copy->blocks, w->blocks, w->nblocks * sizeof *w->blocks);
        bad |= copy_bytes(&copy->chunks, w->chunks, w->nblocks * sizeof *w->chunks);
        if (bad) {
            r->nwriters++;
            goto failed;
        }
    }
    r->box_room = o->nboxes;
    for (; r->nboxes < o->nboxes; r->nboxes++) {
        const box *b = &o->boxes[r->nboxes];
        r->boxes[r->nboxes] = *b;
        if (copy_bytes(&r->boxes[r->nboxes].path, b->path, b->npath))
            goto failed;
    }
    return r;
failed:
    nova_rows_free(r);
    return NULL;
}

/* ---- the log ---- */

void nova_rows_begin_log(nova_rows *r)
{
    r->logs = 1;
    r->nlog = 0;
}

static void log_span(nova_rows *r, uint32_t who, uint64_t first, uint64_t last, int dropped)
{
    if (!r->logs)
        return;
    entry *end = r->nlog ? &r->log[r->nlog - 1] : NULL;
    if (end && end->who == who && end->dropped == (uint32_t)dropped && end->span.last + 1 == first) {
        end->span.last = last;
        return;
    }
    size_t most = LOG_MIN + r->rows / ROWS_PER_ENTRY;
    if (r->nlog >= most) { /* half of it goes: a log may begin anywhere */
        r->nlog = most / 2;
        memmove(r->log, end + 1 - r->nlog, r->nlog * sizeof *r->log);
    }
    if (reserve(&r->log, &r->log_room, r->nlog + 1, sizeof *r->log)) {
        r->nlog = 0; /* it begins behind this entry */
        return;
    }
    r->log[r->nlog++] = (entry){{first, last}, who, (uint32_t)dropped};
}

/* How many of the counts first..last are in these spans. */
static uint64_t count_in(nova_known known, uint64_t first, uint64_t last)
{
    uint64_t n = 0;
    for (size_t i = known.size ? nova_spans_seek(known.at, known.size, first) : 0;
         i < known.size && known.at[i].first <= last; i++)
        n += (known.at[i].last < last ? known.at[i].last : last) -
             (known.at[i].first > first ? known.at[i].first : first) + 1;
    return n;
}

int nova_rows_since(const nova_rows *r, const nova_known *known, size_t *from)
{
    unsigned __int128 news = 0; /* events that they do not know, and that the log has not shown yet */
    for (uint32_t who = 0; who < r->nwriters; who++)
        for (size_t i = 0; i < r->writers[who].nspans; i++) {
            nova_span span = r->writers[who].spans[i];
            news += span.last - span.first + 1 - count_in(known[who], span.first, span.last);
        }
    size_t at = r->nlog;
    while (news && at) {
        const entry *e = &r->log[--at];
        if (!e->dropped)
            news -= e->span.last - e->span.first + 1 - count_in(known[e->who], e->span.first, e->span.last);
    }
    *from = at;
    return r->logs && !news;
}

static int order_dropped(const void *x, const void *y)
{
    const nova_dropped *a = x, *b = y;
    if (a->who != b->who)
        return a->who < b->who ? -1 : 1;
    return (a->span.first > b->span.first) - (a->span.first < b->span.first);
}

nova_dropped *nova_rows_dropped(const nova_rows *r, const nova_known *known, size_t from, size_t *size)
{
    nova_dropped *out = malloc((r->nlog - from + 1) * sizeof *out);
    size_t n = 0, k = 0, room = r->nlog - from + 1;
    for (size_t i = from; out && i < r->nlog; i++) {
        const entry *e = &r->log[i];
        if (!e->dropped)
            continue;
        nova_known theirs = known[e->who];
        for (size_t j = theirs.size ? nova_spans_seek(theirs.at, theirs.size, e->span.first) : 0;
             j < theirs.size && theirs.at[j].first <= e->span.last; j++) {
            nova_span both = {theirs.at[j].first > e->span.first ? theirs.at[j].first : e->span.first,
                              theirs.at[j].last < e->span.last ? theirs.at[j].last : e->span.last};
            if (reserve(&out, &room, n + 1, sizeof *out)) {
                free(out);
                return NULL;
            }
            out[n++] = (nova_dropped){both, e->who};
        }
    }
    if (!out)
        return NULL;
    qsort(out, n, sizeof *out, order_dropped);
    for (size_t i = 0; i < n; i++) {
        if (k && out[k - 1].who == out[i].who && out[k - 1].span.last + 1 == out[i].span.first)
            out[k - 1].span.last = out[i].span.last;
        else
            out[k++] = out[i];
    }
    *size = k;
    return out;
}

/* ---- what is known ---- */

size_t nova_rows_size(const nova_rows *r)
{
    return r->rows;
}

size_t nova_rows_bytes(const nova_rows *r)
{
    size_t n = sizeof *r + 4 * r->room + (r->slots ? 5 * (r->mask + 1) : 0) + 12 * (size_t)r->chunk_room +
               4 * (size_t)r->stale_room + r->writer_room * sizeof(writer) + r->box_room * sizeof(box) +
               r->log_room * sizeof *r->log;
    for (uint32_t i = 1; i < r->nchunks; i++)
        n += r->chunks[i] ? sizeof(chunk) + r->chunks[i]->room * 4u + 8 : 0;
    for (uint32_t i = 0; i < r->nwriters; i++)
        n += r->writers[i].span_room * sizeof(nova_span) + r->writers[i].block_room * 12;
    for (uint32_t i = 0; i < r->nboxes; i++)
        n += r->boxes[i].npath;
    return n;
}

uint32_t nova_rows_writer(nova_rows *r, const char *name, size_t n)
{
    if (r->nwriters == NOVA_WHO_NONE || reserve32(&r->writers, &r->writer_room, r->nwriters + 1, sizeof *r->writers))
        return NOVA_WHO_NONE;
    r->writers[r->nwriters] = (writer){.name = name, .nname = n, .hash = nova_digest_bytes(name, n, 0).lo};
    return r->nwriters++;
}

uint32_t nova_rows_writers(const nova_rows *r)
{
    return r->nwriters;
}

nova_known nova_rows_known(const nova_rows *r, uint32_t who)
{
    return (nova_known){r->writers[who].spans, r->writers[who].nspans};
}

uint64_t nova_rows_last(const nova_rows *r, uint32_t who)
{
    const writer *w = &r->writers[who];
    return w->nspans ? w->spans[w->nspans - 1].last : 0;
}

int nova_rows_learn(nova_rows *r, uint32_t who, const nova_span *spans, size_t n)
{
    writer *w = &r->writers[who];
    if (!n)
        return 0;
    if (w->nspans && n == 1 && w->spans[w->nspans - 1].first <= spans->first &&
        w->spans[w->nspans - 1].last >= spans->first - 1) {
        if (w->spans[w->nspans - 1].last < spans->last) {
            log_span(r, who, w->spans[w->nspans - 1].last + 1, spans->last, 0);
            w->spans[w->nspans - 1].last = spans->last;
        }
        return 0;
    }
    nova_span *out = malloc((w->nspans + n) * sizeof *out);
    if (!out)
        return NOVA_ROWS_NOMEM;
    if (r->logs) {
        size_t news = nova_spans_minus(spans, n, w->spans, w->nspans, out);
        for (size_t i = 0; i < news; i++)
            log_span(r, who, out[i].first, out[i].last, 0);
    }
    w->span_room = w->nspans + n;
    w->nspans = nova_spans_union(w->spans, w->nspans, spans, n, out);
    free(w->spans);
    w->spans = out;
    return 0;
}

int nova_rows_covers(const nova_rows *r, const nova_rows *o, const uint32_t *map)
{
    for (uint32_t i = 0; i < o->nwriters; i++) {
        const writer *theirs = &o->writers[i];
        if (!theirs->nspans)
            continue;
        if (map[i] == NOVA_WHO_NONE)
            return 0;
        const writer *mine = &r->writers[map[i]];
        if (theirs->nspans == 1 && mine->nspans == 1) { /* no gaps on either side: nearly always */
            if (mine->spans->first > theirs->spans->first || mine->spans->last < theirs->spans->last)
                return 0;
        } else if (!nova_spans_cover(mine->spans, mine->nspans, theirs->spans, theirs->nspans))
            return 0;
    }
    return 1;
}

/* ---- writing and dropping rows ---- */

static size_t number_size(uint64_t v)
{
    size_t n = 1;
    for (; v >= 0x80; v >>= 7)
        n++;
    return n;
}

static int grow_arena(nova_rows *r, size_t words)
{
    if (r->used + words > 0xFFFFFFFFu)
        return NOVA_ROWS_FULL;
    if (r->used + words <= r->room)
        return 0;
    size_t room = r->used + words;
    room += room < 1 << 18 ? room : room / 16; /* large blocks grow in place, mostly */
    if (room > 0xFFFFFFFFu)
        room = 0xFFFFFFFFu;
    uint8_t *grown = realloc(r->arena, 4 * room);
    if (!grown)
        return NOVA_ROWS_NOMEM;
    r->arena = grown;
    r->room = room;
    return 0;
}

/* Write a record at the end of the arena, which has room; its flags are set, its neighbours in the box are not. */
static uint32_t write_record(nova_rows *r, uint32_t reference, const nova_row *row, uint8_t flags, uint32_t sibling)
{
    uint32_t at = (uint32_t)r->used;
    uint8_t *start = record(r, at), *p = start;
    store32(p, reference);
    p += 4;
    if (r->nested) {
        store32(p, row->box);
        memset(p + 4, 0, 8);
        p += 12;
    }
    *p++ = flags;
    if (flags & SIBLING) {
        store32(p, sibling);
        p += 4;
    }
    p += nova_put_number(p, row->nleaf);
    if (row->nleaf)
        memcpy(p, row->leaf, row->nleaf);
    p += row->nleaf;
    if (flags & STAMP)
        p += nova_put_number(p, row->stamp);
    if (flags & VALUE) {
        p += nova_put_number(p, row->nvalue);
        memcpy(p, row->value, row->nvalue);
        p += row->nvalue;
    }
    while ((p - start) & 3)
        *p++ = 0;
    r->used = at + (size_t)(p - start) / 4;
    return at;
}

static size_t record_words(const nova_rows *r, const nova_row *row)
{
    size_t n = (r->nested ? 16u : 4u) + 5 + number_size(row->nleaf) + row->nleaf;
    if (row->stamp)
        n += number_size(row->stamp);
    if (row->nvalue)
        n += number_size(row->nvalue) + row->nvalue;
    return (n + 3) / 4;
}

static void link_in_box(nova_rows *r, uint32_t at, uint32_t in)
{
    box *b = &r->boxes[in];
    b->size++;
    if (!r->nested)
        return;
    store32(record(r, at) + 12, b->head);
    if (b->head)
        store32(record(r, b->head) + 8, at);
    b->head = at;
}

static void unlink_from_box(nova_rows *r, uint32_t at, uint32_t in)
{
    box *b = &r->boxes[in];
    b->size--;
    if (!r->nested)
        return;
    uint32_t before = load32(record(r, at) + 8), behind = load32(record(r, at) + 12);
    if (before)
        store32(record(r, before) + 12, behind);
    else
        b->head = behind;
    if (behind)
        store32(record(r, behind) + 8, before);
    if (!b->size && in && !reserve32(&r->emptied, &r->emptied_room, r->nemptied + 1, sizeof *r->emptied))
        r->emptied[r->nemptied++] = in; /* without memory it stays as an empty box, which does not show */
}

/* Free the dead records of a key and return the first living one, or 0. */
static uint32_t sweep_chain(nova_rows *r, uint32_t head)
{
    uint32_t first = 0, last = 0;
    for (uint32_t at = head, next; at; at = next) {
        next = sibling_of(r, at);
        if (*flags_of(r, at) & DEAD) {
            *flags_of(r, at) |= LOOSE;
            continue;
        }
        if (last)
            store32(flags_of(r, last) + 1, at); /* it had a sibling, so it has the word */
        else
            first = at;
        last = at;
    }
    if (last && *flags_of(r, last) & SIBLING)
        store32(flags_of(r, last) + 1, 0);
    return first;
}

static void sweep_slot(nova_rows *r, size_t slot)
{
    uint32_t in = r->nested ? load32(record(r, r->slots[slot]) + 4) : 0, head = sweep_chain(r, r->slots[slot]);
    if (head)
        r->slots[slot] = head;
    else {
        r->boxes[in].keys--;
        clear_slot(r, slot);
    }
}

void nova_rows_sweep(nova_rows *r, uint32_t at)
{
    if (*flags_of(r, at) & LOOSE)
        return;
    size_t n;
    const uint8_t *leaf = leaf_of(r, at, &n);
    uint32_t in = r->nested ? load32(record(r, at) + 4) : 0;
    sweep_slot(r, seek(r, key_hash(in, leaf, n), in, leaf, n, NULL));
}

static void log_drop(nova_rows *r, uint32_t at)
{
    if (!r->logs)
        return;
    uint32_t reference = load32(record(r, at));
    const chunk *c = r->chunks[reference >> 6];
    uint64_t count = c->block << 6 | (reference & 63);
    log_span(r, c->who, count, count, 1);
}

void nova_rows_drop(nova_rows *r, uint32_t at)
{
    nova_row row;
    r->garbage += parse(r, at, &row) - at;
    *flags_of(r, at) |= DEAD;
    log_drop(r, at);
    remove_lane(r, load32(record(r, at)));
    unlink_from_box(r, at, row.box);
    r->rows--;
}

/* Give a row another dot, stamp and value where they are, if they take the same room. 0 if they do not. */
static int renew(nova_rows *r, uint32_t at, const nova_row *row)
{
    nova_row old;
    parse(r, at, &old);
    if (old.nvalue != row->nvalue || !old.stamp != !row->stamp || number_size(old.stamp) != number_size(row->stamp))
        return 0;
    uint32_t id = chunk_for(r, row->who, row->count >> 6);
    if (!id)
        return NOVA_ROWS_NOMEM;
    log_drop(r, at);
    insert_lane(r->chunks[id], row->count & 63, at);
    remove_lane(r, load32(record(r, at)));
    mark_stale(r, id);
    store32(record(r, at), id << 6 | (row->count & 63));
    if (row->nvalue)
        memcpy(r->arena + (old.value - r->arena), row->value, row->nvalue);
    if (row->stamp)
        nova_put_number(r->arena + (old.leaf - r->arena) + old.nleaf, row->stamp);
    return 1;
}

/* Add a row whose key is at `slot`, or if that is SIZE_MAX may go to `room`; the table has room for it. */
static int put_at(nova_rows *r, const nova_row *row, uint64_t hash, size_t slot, size_t room, int replace)
{
    int failed = grow_arena(r, record_words(r, row));
    if (failed)
        return failed;
    if (replace && slot != SIZE_MAX && !sibling_of(r, r->slots[slot]) && (failed = renew(r, r->slots[slot], row)))
        return failed < 0 ? failed : 0;
    uint32_t id = chunk_for(r, row->who, row->count >> 6);
    if (!id)
        return NOVA_ROWS_NOMEM;
    uint32_t head = slot == SIZE_MAX ? 0 : r->slots[slot]; /* not swept: a chain may be a million long */
    uint8_t flags = (head ? SIBLING : 0) | (row->stamp ? STAMP : 0) | (row->nvalue ? VALUE : 0);
    uint32_t at = write_record(r, id << 6 | (row->count & 63), row, flags, head);
    if (slot != SIZE_MAX)
        r->slots[slot] = at;
    else if (!r->bare) {
        set_slot(r, room, hash, at);
        r->keys++;
        r->boxes[row->box].keys++;
    }
    insert_lane(r->chunks[id], row->count & 63, at);
    mark_stale(r, id);
    link_in_box(r, at, row->box);
    r->rows++;
    if (replace && head) {
        for (; head; head = sibling_of(r, head))
            nova_rows_drop(r, head);
        sweep_chain(r, at);
    }
    return 0;
}

static int put(nova_rows *r, const nova_row *row, int replace)
{
    if (r->bare)
        return put_at(r, row, 0, SIZE_MAX, SIZE_MAX, 0);
    uint64_t hash = key_hash(row->box, row->leaf, row->nleaf);
    int failed = grow_table(r, 1);
    if (failed)
        return failed;
    size_t room, slot = seek(r, hash, row->box, row->leaf, row->nleaf, &room);
    return put_at(r, row, hash, slot, room, replace);
}

int nova_rows_put(nova_rows *r, const nova_row *row)
{
    return put(r, row, 0);
}

int nova_rows_replace(nova_rows *r, const nova_row *row)
{
    return put(r, row, 1);
}

int nova_rows_renew(nova_rows *r, uint32_t at, const nova_row *row)
{
    int done = renew(r, at, row);
    if (!done && !(done = put(r, row, 0))) {
        nova_rows_drop(r, at);
        nova_rows_sweep(r, at);
    }
    return done < 0 ? done : 0;
}

int nova_rows_has(const nova_rows *r, uint32_t who, uint64_t count)
{
    const writer *w = &r->writers[who];
    size_t i = seek_block(w, count >> 6);
    if (i == w->nblocks || w->blocks[i] != count >> 6 || !w->chunks[i])
        return 0;
    return r->chunks[w->chunks[i]]->live >> (count & 63) & 1;
}

size_t nova_rows_drop_key(nova_rows *r, uint32_t in, const void *leaf, size_t n)
{
    size_t slot = seek(r, key_hash(in, leaf, n), in, leaf, n, NULL), dropped = 0;
    if (slot == SIZE_MAX)
        return 0;
    for (uint32_t at = r->slots[slot]; at; at = sibling_of(r, at), dropped++)
        nova_rows_drop(r, at);
    sweep_slot(r, slot);
    return dropped;
}

uint32_t nova_rows_find(const nova_rows *r, uint32_t in, const void *leaf, size_t n)
{
    size_t slot = seek(r, key_hash(in, leaf, n), in, leaf, n, NULL);
    return slot == SIZE_MAX ? 0 : r->slots[slot];
}

uint32_t nova_rows_sibling(const nova_rows *r, uint32_t at)
{
    return sibling_of(r, at);
}

uint32_t nova_rows_newest(const nova_rows *r, uint32_t who)
{
    const writer *w = &r->writers[who];
    for (size_t i = w->nblocks; i--;)
        if (w->chunks[i]) {
            const chunk *c = r->chunks[w->chunks[i]];
            return c->at[bits_in(c->live) - 1];
        }
    return 0;
}

/* ---- boxes ---- */

uint32_t nova_rows_box(nova_rows *r, uint32_t parent, int type, int rule, const void *key, size_t n, int make)
{
    /* Its leaf is its type and key; boxes that hold boxes hold no rows, so the two kinds never meet. */
    uint8_t head[11], *leaf, small[256];
    size_t nhead = 1 + nova_put_number(head + 1, n), nleaf = 1 + n;
    head[0] = (uint8_t)type;
    if (nleaf > sizeof small) {
        if (!(leaf = malloc(nleaf)))
            return NOVA_WHO_NONE;
    } else
        leaf = small;
    leaf[0] = (uint8_t)type;
    if (n)
        memcpy(leaf + 1, key, n);
    uint32_t out = NOVA_WHO_NONE, at = nova_rows_find(r, parent, leaf, nleaf);
    if (at)
        out = load32(record(r, at));
    else if (make) {
        nova_row row = {.box = parent, .leaf = leaf, .nleaf = nleaf};
        size_t npath = r->boxes[parent].npath + nhead + n;
        uint8_t *path = malloc(npath);
        uint64_t hash = key_hash(parent, leaf, nleaf);
        size_t room;
        if (!path || grow_table(r, 1) || grow_arena(r, record_words(r, &row)))
            goto failed;
        if (!r->nboxes_free) {
            uint32_t before = r->box_room;
            if (reserve32(&r->boxes, &r->box_room, r->nboxes + 1, sizeof *r->boxes))
                goto failed;
            if (r->box_room != before || !r->boxes_free) {
                uint32_t *grown = realloc(r->boxes_free, r->box_room * sizeof *grown);
                if (!grown)
                    goto failed;
                r->boxes_free = grown;
            }
            r->boxes[r->nboxes] = (box){0};
            r->boxes_free[r->nboxes_free++] = r->nboxes++;
        }
        out = r->boxes_free[--r->nboxes_free];
        if (r->boxes[parent].npath)
            memcpy(path, r->boxes[parent].path, r->boxes[parent].npath);
        memcpy(path + r->boxes[parent].npath, head, nhead);
        if (n)
            memcpy(path + npath - n, key, n);
        seek(r, hash, parent, leaf, nleaf, &room);
        at = write_record(r, out, &row, BOX, 0);
        set_slot(r, room, hash, at);
        r->keys++;
        r->boxes[parent].keys++;
        r->boxes[out] = (box){
            .at = at, .type = (uint8_t)type, .rule = (uint8_t)rule, .path = path, .npath = npath, .key = npath - n};
        link_in_box(r, at, parent);
        path = NULL;
    failed:
        free(path);
    }
    if (leaf != small)
        free(leaf);
    return out;
}

int nova_rows_box_type(const nova_rows *r, uint32_t in)
{
    return r->boxes[in].type;
}

const uint8_t *nova_rows_box_path(const nova_rows *r, uint32_t in, size_t *n)
{
    *n = r->boxes[in].npath;
    return r->boxes[in].path;
}

const uint8_t *nova_rows_box_key(const nova_rows *r, uint32_t in, size_t *n)
{
    *n = r->boxes[in].npath - r->boxes[in].key;
    return r->boxes[in].path + r->boxes[in].key;
}

size_t nova_rows_box_size(const nova_rows *r, uint32_t in)
{
    return r->boxes[in].size;
}

size_t nova_rows_box_keys(const nova_rows *r, uint32_t in)
{
    return r->boxes[in].keys;
}

/* Without boxes: the first row of this chunk list or of a later one. */
static uint32_t first_from(const nova_rows *r, uint32_t who, size_t i)
{
    for (; who < r->nwriters; who++, i = 0)
        for (; i < r->writers[who].nblocks; i++)
            if (r->writers[who].chunks[i])
                return r->chunks[r->writers[who].chunks[i]]->at[0];
    return 0;
}

uint32_t nova_rows_first(const nova_rows *r, uint32_t in)
{
    return r->nested ? r->boxes[in].head : first_from(r, 0, 0);
}

uint32_t nova_rows_next(const nova_rows *r, uint32_t at)
{
    if (r->nested)
        return load32(record(r, at) + 12);
    uint32_t reference = load32(record(r, at));
    const chunk *c = r->chunks[reference >> 6];
    uint64_t above = c->live & ~(((uint64_t)2 << (reference & 63)) - 1);
    if (above && (reference & 63) != 63)
        return c->at[place(c, (unsigned)__builtin_ctzll(above))];
    return first_from(r, c->who, seek_block(&r->writers[c->who], c->block) + 1);
}

uint32_t nova_rows_box_of(const nova_rows *r, uint32_t at)
{
    return load32(record(r, at));
}

/* ---- garbage ---- */

static uint32_t forward(const nova_rows *r, uint32_t at)
{
    return at ? load32(record(r, at)) : 0;
}

/* Rewrite the arena without its dead records. The reference of an old record then tells where the new one is. */
static int rewrite(nova_rows *r)
{
    size_t room = r->used - r->garbage;
    room += room / 4 + 16;
    uint8_t *arena = malloc(4 * room);
    if (!arena)
        return NOVA_ROWS_NOMEM;
    uint32_t used = 1, end;
    nova_row row;
    for (uint32_t at = 1; at < r->used; at = end) {
        end = parse(r, at, &row);
        uint8_t flags = *flags_of(r, at);
        if (flags & DEAD)
            continue;
        uint32_t reference = load32(record(r, at));
        memcpy(arena + 4 * (size_t)used, record(r, at), 4 * (size_t)(end - at));
        if (flags & BOX)
            r->boxes[reference].at = used;
        else {
            chunk *c = r->chunks[reference >> 6];
            c->at[place(c, reference & 63)] = used;
        }
        store32(record(r, at), used);
        used += end - at;
    }
    size_t offset = r->nested ? 16 : 4;
    for (uint32_t old = 1; old < r->used; old = end) {
        end = parse(r, old, &row);
        if (*flags_of(r, old) & DEAD)
            continue;
        uint8_t *copy = arena + 4 * (size_t)forward(r, old);
        if (r->nested) {
            store32(copy + 8, forward(r, load32(copy + 8)));
            store32(copy + 12, forward(r, load32(copy + 12)));
        }
        if (copy[offset] & SIBLING)
            store32(copy + offset + 1, forward(r, load32(copy + offset + 1)));
    }
    for (size_t i = 0; r->slots && i <= r->mask; i++)
        if (!(r->tags[i] & 0x80))
            r->slots[i] = forward(r, r->slots[i]);
    for (uint32_t i = 0; i < r->nboxes; i++)
        r->boxes[i].head = forward(r, r->boxes[i].head);
    free(r->arena);
    r->arena = arena;
    r->used = used;
    r->room = room;
    r->garbage = 0;
    return 0;
}

int nova_rows_tidy(nova_rows *r)
{
    while (r->nemptied) {
        uint32_t in = r->emptied[--r->nemptied];
        box *b = &r->boxes[in];
        if (b->size || !b->at)
            continue;
        uint32_t at = b->at;
        nova_row row;
        r->garbage += parse(r, at, &row) - at;
        *flags_of(r, at) |= DEAD;
        nova_rows_sweep(r, at);
        free(b->path);
        *b = (box){0};
        r->boxes_free[r->nboxes_free++] = in;
        unlink_from_box(r, at, row.box);
    }
    if (4 * r->garbage > GARBAGE_MIN && r->garbage > r->used / 2)
        return rewrite(r);
    return 0;
}

/* ---- joining ---- */

/* Which counts of a block are in these spans. */
static uint64_t known_bits(const nova_span *spans, size_t n, uint64_t block)
{
    uint64_t low = block << 6, high = low | 63, bits = 0;
    if (!n)
        return 0;
    size_t i = 0;
    if (spans->last < low)
        i = nova_spans_seek(spans, n, low);
    for (; i < n && spans[i].first <= high; i++) {
        uint64_t first = spans[i].first > low ? spans[i].first - low : 0;
        uint64_t last = spans[i].last < high ? spans[i].last - low : 63;
        bits |= (~(uint64_t)0 << first) & (~(uint64_t)0 >> (63 - last));
    }
    return bits;
}

static int push_bits(nova_list *list, const chunk *c, uint64_t bits)
{
    for (; bits; bits &= bits - 1) {
        if (list->size == list->room) {
            size_t room = 2 * list->room;
            uint32_t *grown =
                list->at == list->few ? malloc(room * sizeof *grown) : realloc(list->at, room * sizeof *grown);
            if (!grown)
                return NOVA_ROWS_NOMEM;
            if (list->at == list->few)
                memcpy(grown, list->few, sizeof list->few);
            list->at = grown;
            list->room = room;
        }
        list->at[list->size++] = c->at[place(c, (unsigned)__builtin_ctzll(bits))];
    }
    return 0;
}

static int same_row(const nova_rows *r, uint32_t a, const nova_rows *o, uint32_t b)
{
    nova_row x, y;
    parse(r, a, &x);
    parse(o, b, &y);
    return x.stamp == y.stamp && same_bytes(x.leaf, x.nleaf, y.leaf, y.nleaf) &&
           same_bytes(x.value, x.nvalue, y.value, y.nvalue) &&
           same_bytes(r->boxes[x.box].path, r->boxes[x.box].npath, o->boxes[y.box].path, o->boxes[y.box].npath);
}

/* Our box of the same path as theirs, or NOVA_WHO_NONE; ours[] is what is known of it. */
static uint32_t box_in(nova_rows *r, const nova_rows *o, uint32_t theirs, uint32_t *ours, int make)
{
    if (!theirs)
        return 0;
    if (ours[theirs] != NOVA_WHO_NONE)
        return ours[theirs];
    const box *b = &o->boxes[theirs];
    uint32_t parent = box_in(r, o, load32(record(o, b->at) + 4), ours, make);
    if (parent == NOVA_WHO_NONE)
        return NOVA_WHO_NONE;
    return ours[theirs] = nova_rows_box(r, parent, b->type, b->rule, b->path + b->key, b->npath - b->key, make);
}

/* Room to remember, for every box of theirs, which of ours it is; *ours is NULL if there are none. */
static int no_boxes(const nova_rows *o, uint32_t **ours)
{
    *ours = o->nested ? malloc(o->nboxes * sizeof **ours) : NULL;
    if (*ours)
        memset(*ours, 0xff, o->nboxes * sizeof **ours);
    return o->nested && !*ours ? NOVA_ROWS_NOMEM : 0;
}

/* dead: the dots that the sender knows and has no rows of, apart from rows that are here to be seen. */
/* The sum of a chunk without some of its rows. */
static nova_digest less(const nova_rows *r, const chunk *c, uint64_t bits)
{
    nova_digest sum = c->sum;
    for (; bits; bits &= bits - 1) {
        unsigned lane = (unsigned)__builtin_ctzll(bits);
        nova_row row;
        parse(r, c->at[place(c, lane)], &row);
        row.who = c->who;
        row.count = c->block << 6 | lane;
        sum = nova_digest_sub(sum, row_digest(r, &row));
    }
    return sum;
}

/* A merge waits for memory more than it computes, so what it will look at is asked for in time: chunks first, then
 * which records differ, then the records. */
enum { CHUNKS_AHEAD = 36, LANES_AHEAD = 26, RECORDS_AHEAD = 16 };

static inline void fetch_chunk(const nova_rows *r, const writer *w, size_t i)
{
    if (i < w->nblocks)
        __builtin_prefetch(r->chunks[w->chunks[i]]);
}

static void fetch_lanes(const nova_rows *r, const chunk *c, uint64_t lanes, int records)
{
    for (; lanes; lanes &= lanes - 1) {
        const uint32_t *at = &c->at[place(c, (unsigned)__builtin_ctzll(lanes))];
        __builtin_prefetch(records ? (const void *)record(r, *at) : at);
    }
}

/* What is on one side only, of two lists that mostly name the same blocks. */
static void fetch_difference(const nova_rows *r, const writer *mine, size_t i, const nova_rows *o, const writer *theirs,
                             size_t j, int records)
{
    const chunk *a = i < mine->nblocks ? r->chunks[mine->chunks[i]] : NULL;
    const chunk *b = j < theirs->nblocks ? o->chunks[theirs->chunks[j]] : NULL;
    if (a && b && a->block == b->block && a->live == b->live)
        return;
    if (a && (!b || a->block == b->block))
        fetch_lanes(r, a, a->live & ~(b ? b->live : 0), records);
    if (b && (!a || a->block == b->block))
        fetch_lanes(o, b, b->live & ~(a ? a->live : 0), records);
}

static int plan_writer(nova_rows *r, nova_rows *o, uint32_t who, uint32_t me, nova_known dead, nova_plan *plan)
{
    static const writer nobody;
    const writer *theirs = &o->writers[who], *mine = me == NOVA_WHO_NONE ? &nobody : &r->writers[me];
    size_t i = 0, j = 0, next_dead = 0;
    while (i < mine->nblocks || j < theirs->nblocks) {
        int left = j == theirs->nblocks || (i < mine->nblocks && mine->blocks[i] <= theirs->blocks[j]);
        int right = i == mine->nblocks || (j < theirs->nblocks && theirs->blocks[j] <= mine->blocks[i]);
        uint64_t block = left ? mine->blocks[i] : theirs->blocks[j];
        if (left && !right) { /* on to where something may be gone: with a delta that is soon at the end */
            while (next_dead < dead.size && dead.at[next_dead].last < block << 6)
                next_dead++;
            uint64_t target = next_dead < dead.size ? dead.at[next_dead].first >> 6 : UINT64_MAX;
            if (j < theirs->nblocks && theirs->blocks[j] < target)
                target = theirs->blocks[j];
            if (target > block) {
                i = seek_block(mine, target);
                continue;
            }
        }
        fetch_chunk(r, mine, i + CHUNKS_AHEAD);
        fetch_chunk(o, theirs, j + CHUNKS_AHEAD);
        fetch_difference(r, mine, i + LANES_AHEAD, o, theirs, j + LANES_AHEAD, 0);
        fetch_difference(r, mine, i + RECORDS_AHEAD, o, theirs, j + RECORDS_AHEAD, 1);
        chunk *a = left ? r->chunks[mine->chunks[i]] : NULL, *b = right ? o->chunks[theirs->chunks[j]] : NULL;
        i += (size_t)left;
        j += (size_t)right;
        if (a && b) {
            int many = bits_in(a->live & b->live) > FEW; /* few are looked at sooner than hashed */
            if (many && a->stale)
                refresh(r, a);
            if (many && b->stale)
                refresh(o, b);
            uint64_t both = a->live & b->live;
            if (many) { /* what is here and there is equal if the sums are, less what is only here or only there */
                nova_digest x = less(r, a, a->live & ~both), y = less(o, b, b->live & ~both);
                if (x.lo == y.lo && x.hi == y.hi)
                    both = 0;
            }
            for (; both; both &= both - 1) {
                unsigned lane = (unsigned)__builtin_ctzll(both);
                if (!same_row(r, a->at[place(a, lane)], o, b->at[place(b, lane)])) {
                    plan->who = who;
                    plan->count = block << 6 | lane;
                    return NOVA_ROWS_TWICE;
                }
            }
        }
        uint64_t only_a = (a ? a->live : 0) & ~(b ? b->live : 0), only_b = (b ? b->live : 0) & ~(a ? a->live : 0);
        if (only_a) {
            uint64_t gone = only_a & known_bits(dead.at, dead.size, block);
            if (gone && push_bits(&plan->gone, a, gone))
                return NOVA_ROWS_NOMEM;
        }
        if (only_b) {
            uint64_t fresh = only_b & ~known_bits(mine->spans, mine->nspans, block);
            if (fresh && push_bits(&plan->fresh, b, fresh))
                return NOVA_ROWS_NOMEM;
        }
    }
    return 0;
}

/* Keys of records of theirs, looked up step by step before they are needed, each step when memory has had the time to
 * bring what the one before asked for: 0 the record, 1 the tags of its key, 2 the slot, 3 our record, 4 its chunk. */
enum { STEPS = 5, APART = 6, RING = 32 };

typedef struct {
    uint64_t hash;
    size_t slot;
    uint32_t at; /* the record that is perhaps there; 0: none */
} sought;

typedef struct {
    const nova_rows *r, *o;
    const uint32_t *list; /* records of o */
    size_t size;
    const uint32_t *ours; /* which of our boxes theirs are; NULL without boxes */
    sought ring[RING];
} scout;

static void seek_ahead(scout *s, size_t i, int step)
{
    const nova_rows *r = s->r, *o = s->o;
    sought *key = &s->ring[i % RING];
    if (i >= s->size)
        return;
    uint32_t theirs = s->list[i];
    if (step == 0)
        __builtin_prefetch(record(o, theirs));
    else if (step == 1) {
        size_t n;
        const uint8_t *leaf = leaf_of(o, theirs, &n);
        uint32_t in = o->nested ? load32(record(o, theirs) + 4) : 0;
        key->hash = key_hash(in ? s->ours[in] : 0, leaf, n);
        key->slot = (key->hash & (r->mask / GROUP)) * GROUP;
        __builtin_prefetch(r->tags + key->slot);
        if (*flags_of(o, theirs) & BOX)
            __builtin_prefetch(&o->boxes[load32(record(o, theirs))]);
    } else if (step == 2) {
        uint64_t word = nova_load64le(r->tags + key->slot), hits = matches(word, key->hash >> 57);
        uint64_t lanes = hits ? hits : word & HIGHS;
        key->slot += lanes ? (size_t)__builtin_ctzll(lanes) / 8 : 0;
        __builtin_prefetch(r->slots + key->slot);
        if (*flags_of(o, theirs) & BOX)
            __builtin_prefetch(o->boxes[load32(record(o, theirs))].path);
    } else if (step == 3) {
        key->at = r->tags[key->slot] == key->hash >> 57 ? r->slots[key->slot] : 0;
        __builtin_prefetch(record(r, key->at), 1);
    } else if (key->at && !(*flags_of(r, key->at) & BOX)) {
        const char *c = (const char *)chunk_of(r, key->at);
        for (size_t line = 0; line < sizeof(chunk) + 64 * sizeof(uint32_t); line += 64)
            __builtin_prefetch(c + line, 1);
    }
}

/* To be called for each record of the list in turn, before that is looked up; the hash of its key. */
static uint64_t look_ahead(scout *s, size_t i)
{
    for (size_t first = i ? APART * STEPS : 0; first <= APART * STEPS; first++)
        for (int step = 0; step < STEPS; step++)
            if (first >= (size_t)(APART * step))
                seek_ahead(s, i + first - (size_t)(APART * step), step);
    return s->ring[i % RING].hash;
}

/* Find, or make, our boxes for all rows that come. */
static int join_boxes(nova_rows *r, nova_rows *o, const nova_plan *plan, uint32_t *ours)
{
    uint32_t *list = malloc((plan->fresh.size + 1) * sizeof *list), last = 0;
    if (!list)
        return NOVA_ROWS_NOMEM;
    scout s = {.r = r, .o = o, .list = list, .ours = ours};
    for (size_t i = 0; i < plan->fresh.size; i++) {
        uint32_t in = load32(record(o, plan->fresh.at[i]) + 4);
        if (in && in != last)
            list[s.size++] = o->boxes[in].at;
        last = in;
    }
    int failed = 0;
    for (size_t i = 0; !failed && i < s.size; i++) {
        if (r->slots)
            look_ahead(&s, i);
        if (box_in(r, o, load32(record(o, list[i])), ours, 1) == NOVA_WHO_NONE)
            failed = NOVA_ROWS_NOMEM;
    }
    free(list);
    return failed;
}

enum { SIBLINGS_CHECKED = 1024 }; /* a bound on the work that a stranger's stamps can ask for */

static void set_doom(nova_rows *r, const nova_plan *plan, int doomed)
{
    for (size_t i = 0; i < plan->gone.size; i++) {
        if (i + RECORDS_AHEAD < plan->gone.size)
            __builtin_prefetch(record(r, plan->gone.at[i + RECORDS_AHEAD]), 1);
        uint8_t *flags = flags_of(r, plan->gone.at[i]);
        *flags = (uint8_t)(doomed ? *flags | DOOMED : *flags & ~DOOMED);
    }
}

/* Would a row stand beside one of the same writer and stamp? Only a writer with two lives, or a liar, does that. */
static int check_stamp(const nova_rows *r, uint32_t in, const nova_row *row, uint32_t me)
{
    nova_row mine;
    uint32_t left = SIBLINGS_CHECKED;
    for (uint32_t at = nova_rows_find(r, in, row->leaf, row->nleaf); at && left--; at = sibling_of(r, at)) {
        nova_rows_view(r, at, &mine);
        if (mine.stamp != row->stamp || mine.who != me)
            continue;
        if (!(*flags_of(r, at) & DOOMED) || !same_bytes(mine.value, mine.nvalue, row->value, row->nvalue))
            return NOVA_ROWS_STAMPED;
    }
    return 0;
}

typedef struct {
    uint32_t in, me, at; /* our box and writer, their record */
} total;

static int order_totals(const void *a, const void *b)
{
    const total *x = a, *y = b;
    return (x->in > y->in) - (x->in < y->in);
}

/* Would a writer have two totals in one box? Each box is walked once, however many rows come into it. */
static int check_totals(const nova_rows *r, const nova_rows *o, total *totals, size_t n, nova_plan *plan)
{
    uint32_t *seen = calloc((size_t)r->nwriters + 1, sizeof *seen), group = 0;
    if (!seen)
        return NOVA_ROWS_NOMEM;
    int failed = 0;
    qsort(totals, n, sizeof *totals, order_totals);
    for (size_t i = 0; !failed && i < n; i++) {
        uint32_t in = totals[i].in;
        if (!i || totals[i - 1].in != in) {
            group++;
            for (uint32_t at = r->boxes[in].head; at; at = nova_rows_next(r, at))
                if (!(*flags_of(r, at) & DOOMED))
                    seen[chunk_of(r, at)->who] = group;
        }
        if (seen[totals[i].me] == group) {
            nova_row row;
            nova_rows_view(o, totals[i].at, &row);
            plan->who = row.who;
            plan->count = row.count;
            failed = NOVA_ROWS_TWICE;
        }
    }
    free(seen);
    return failed;
}

/* What the types ask of the rows that come. */
static int check_types(nova_rows *r, const nova_rows *o, const uint32_t *map, nova_plan *plan)
{
    uint32_t *ours;
    int failed = no_boxes(o, &ours);
    total *totals = NULL;
    size_t ntotals = 0, room = 0;
    int ahead = plan->fresh.size > FEW && r->boxes[0].rule != NOVA_BOX_TOTALS && !r->nested && r->slots;
    scout s = {.r = r, .o = o, .list = plan->fresh.at, .size = plan->fresh.size};
    set_doom(r, plan, 1);
    for (size_t i = 0; !failed && i < plan->fresh.size; i++) {
        nova_row row;
        if (ahead)
            look_ahead(&s, i);
        nova_rows_view(o, plan->fresh.at[i], &row);
        int rule = o->boxes[row.box].rule;
        uint32_t me = map[row.who], in;
        if (rule == NOVA_BOX_PLAIN || me == NOVA_WHO_NONE)
            continue;
        if ((in = box_in(r, o, row.box, ours, 0)) == NOVA_WHO_NONE)
            continue;
        plan->who = row.who;
        plan->count = row.count;
        plan->stamp = row.stamp;
        if (rule != NOVA_BOX_TOTALS)
            failed = check_stamp(r, in, &row, me);
        else if (!r->nested) { /* all rows are of the one counter, and each writer has at most one */
            uint32_t at = nova_rows_newest(r, me);
            if (at && !(*flags_of(r, at) & DOOMED))
                failed = NOVA_ROWS_TWICE;
        } else if (!(failed = reserve(&totals, &room, ntotals + 1, sizeof *totals)))
            totals[ntotals++] = (total){in, me, plan->fresh.at[i]};
    }
    if (!failed && ntotals)
        failed = check_totals(r, o, totals, ntotals, plan);
    set_doom(r, plan, 0);
    free(totals);
    free(ours);
    return failed;
}

int nova_rows_plan(nova_rows *r, nova_rows *o, const uint32_t *map, const nova_known *kept, nova_plan *plan)
{
    plan->gone.size = plan->fresh.size = 0;
    plan->gone.at = plan->gone.few;
    plan->fresh.at = plan->fresh.few;
    plan->gone.room = plan->fresh.room = sizeof plan->gone.few / sizeof *plan->gone.few;
    for (uint32_t who = 0; who < o->nwriters; who++) {
        const writer *w = &o->writers[who];
        nova_known dead = {w->spans, w->nspans};
        nova_span *cut = NULL;
        if (!w->nspans)
            continue;
        if (kept && kept[who].size) {
            if (!(cut = malloc((w->nspans + kept[who].size) * sizeof *cut)))
                return NOVA_ROWS_NOMEM;
            dead = (nova_known){cut, nova_spans_minus(w->spans, w->nspans, kept[who].at, kept[who].size, cut)};
        }
        int failed = plan_writer(r, o, who, map[who], dead, plan);
        free(cut);
        if (failed)
            return failed;
    }
    if (plan->fresh.size && (r->nested || r->boxes[0].rule != NOVA_BOX_PLAIN))
        return check_types(r, o, map, plan);
    return 0;
}

void nova_plan_free(nova_plan *plan)
{
    if (plan->gone.at != plan->gone.few)
        free(plan->gone.at);
    if (plan->fresh.at != plan->fresh.few)
        free(plan->fresh.at);
}

/* Of the rows of a key only the winner stays. */
static void settle(nova_rows *r, uint32_t in, const uint8_t *leaf, size_t n)
{
    uint32_t head = nova_rows_find(r, in, leaf, n), best = head;
    if (!head || !sibling_of(r, head))
        return;
    for (uint32_t at = sibling_of(r, head); at; at = sibling_of(r, at))
        if (nova_rows_outranks(r, at, best))
            best = at;
    for (uint32_t at = head, next; at; at = next) {
        next = sibling_of(r, at);
        if (at != best)
            nova_rows_drop(r, at);
    }
    sweep_slot(r, seek(r, key_hash(in, leaf, n), in, leaf, n, NULL));
}

/* Entries for the blocks of `fresh` rows of one writer, in one pass: inserting them singly would be quadratic. */
static int merge_blocks(nova_rows *r, uint32_t me, const nova_rows *o, const uint32_t *fresh, size_t n)
{
    writer *w = &r->writers[me];
    size_t more = 0, i = 0;
    uint64_t last = 0;
    for (size_t k = 0; k < n; k++) {
        uint64_t block = chunk_of(o, fresh[k])->block;
        if (k && block == last)
            continue;
        last = block;
        while (i < w->nblocks && w->blocks[i] < block)
            i++;
        more += i == w->nblocks || w->blocks[i] != block;
    }
    if (!more)
        return 0;
    if (reserve_blocks(w, w->nblocks + more))
        return NOVA_ROWS_NOMEM;
    size_t from = w->nblocks, to = from + more;
    w->nblocks = to;
    w->holes += more;
    for (size_t k = n; k--;) {
        uint64_t block = chunk_of(o, fresh[k])->block;
        if (k + 1 < n && block == last)
            continue;
        last = block;
        while (from && w->blocks[from - 1] > block) {
            from--, to--;
            w->blocks[to] = w->blocks[from];
            w->chunks[to] = w->chunks[from];
        }
        if (from && w->blocks[from - 1] == block)
            continue;
        to--;
        w->blocks[to] = block;
        w->chunks[to] = 0;
    }
    return 0;
}

/* Add a row; in the place of the only one of its key if that goes anyhow. The table has room for it. */
static int join_row(nova_rows *r, const nova_row *row, uint64_t hash)
{
    size_t room, slot = seek(r, hash, row->box, row->leaf, row->nleaf, &room);
    uint32_t at = slot == SIZE_MAX ? 0 : r->slots[slot];
    if (at && *flags_of(r, at) & DOOMED && !sibling_of(r, at)) {
        int done = renew(r, at, row);
        if (done > 0)
            *flags_of(r, at) &= (uint8_t)~DOOMED;
        if (done)
            return done < 0 ? done : 0;
    }
    return put_at(r, row, hash, slot, room, 0);
}

/* To the log: the news of one writer, of which some come with rows. Those from *next on are the fresh ones; it is moved
 * behind the last of this writer. */
static void log_rowless(nova_rows *r, const nova_rows *o, uint32_t who, uint32_t me, const nova_span *news, size_t n,
                        const nova_plan *plan, size_t *next)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t first = news[i].first, last = news[i].last;
        int open = 1; /* first..last are not told of yet */
        for (; *next < plan->fresh.size; ++*next) {
            uint32_t reference = load32(record(o, plan->fresh.at[*next]));
            const chunk *c = o->chunks[reference >> 6];
            uint64_t count = c->block << 6 | (reference & 63);
            if (c->who != who || count > last)
                break;
            if (count > first)
                log_span(r, me, first, count - 1, 1);
            open = count < last;
            first = count + 1;
        }
        if (open)
            log_span(r, me, first, last, 1);
    }
}

/* To the log: what a join learns, then which of these events come without a row: elsewhere they may have one. In that
 * order for all writers, because an event of one may have taken the row of another. */
static void log_join(nova_rows *r, const nova_rows *o, const uint32_t *map, const nova_plan *plan)
{
    size_t next = 0;
    for (int rowless = 0; rowless < 2; rowless++)
        for (uint32_t who = 0; who < o->nwriters; who++) {
            const writer *theirs = &o->writers[who], *mine = &r->writers[map[who]];
            if (!theirs->nspans)
                continue;
            nova_span few[FEW], *news = few;
            if (theirs->nspans + mine->nspans > FEW &&
                !(news = malloc((theirs->nspans + mine->nspans) * sizeof *news))) {
                r->logs = 0; /* it would have to tell of this */
                r->nlog = 0;
                return;
            }
            size_t n = nova_spans_minus(theirs->spans, theirs->nspans, mine->spans, mine->nspans, news);
            if (rowless)
                log_rowless(r, o, who, map[who], news, n, plan, &next);
            else
                for (size_t i = 0; i < n; i++)
                    log_span(r, map[who], news[i].first, news[i].last, 0);
            if (news != few)
                free(news);
        }
}

static int learn_all(nova_rows *r, const nova_rows *o, const uint32_t *map, const nova_plan *plan)
{
    int failed = 0, logs;
    if (r->logs)
        log_join(r, o, map, plan);
    logs = r->logs;
    r->logs = 0; /* it is told */
    for (uint32_t who = 0; !failed && who < o->nwriters; who++)
        if (o->writers[who].nspans)
            failed = nova_rows_learn(r, map[who], o->writers[who].spans, o->writers[who].nspans);
    r->logs = logs;
    return failed;
}

int nova_rows_join(nova_rows *r, nova_rows *o, const uint32_t *map, const nova_plan *plan)
{
    uint32_t *ours;
    int failed = no_boxes(o, &ours);
    size_t words = 0;
    nova_row row;
    for (size_t i = 0; i < plan->fresh.size; i++) {
        uint32_t at = plan->fresh.at[i];
        if (i + RING < plan->fresh.size)
            __builtin_prefetch(record(o, plan->fresh.at[i + RING]));
        words += parse(o, at, &row) - at + 2;
    }
    if (!failed && o->nested)
        failed = join_boxes(r, o, plan, ours);
    if (!failed && !(failed = grow_table(r, plan->fresh.size)))
        failed = grow_arena(r, words);
    for (size_t i = 0, end; !failed && plan->fresh.size > FEW && i < plan->fresh.size; i = end) {
        uint32_t who = chunk_of(o, plan->fresh.at[i])->who;
        for (end = i + 1; end < plan->fresh.size && chunk_of(o, plan->fresh.at[end])->who == who;)
            end++;
        failed = merge_blocks(r, map[who], o, plan->fresh.at + i, end - i);
    }
    if (failed) {
        free(ours);
        return failed;
    }
    int ones = 0, ahead = plan->fresh.size > FEW;
    scout s = {.r = r, .o = o, .list = plan->fresh.at, .size = plan->fresh.size, .ours = ours};
    set_doom(r, plan, 1);
    /* First what is known, then what that makes of the rows: the log wants it so. */
    if (!failed)
        failed = learn_all(r, o, map, plan);
    for (size_t i = 0; !failed && i < plan->fresh.size; i++) {
        uint64_t hash = ahead ? look_ahead(&s, i) : 0;
        nova_rows_view(o, plan->fresh.at[i], &row);
        ones |= o->boxes[row.box].rule == NOVA_BOX_LAST_ONE;
        row.who = map[row.who];
        row.box = box_in(r, o, row.box, ours, 1);
        if (row.box == NOVA_WHO_NONE)
            failed = NOVA_ROWS_NOMEM;
        else
            failed = join_row(r, &row, ahead ? hash : key_hash(row.box, row.leaf, row.nleaf));
    }
    for (size_t i = 0; i < plan->gone.size; i++)
        if (*flags_of(r, plan->gone.at[i]) & DOOMED)
            nova_rows_drop(r, plan->gone.at[i]);
    for (size_t i = 0; i < plan->gone.size; i++)
        if (*flags_of(r, plan->gone.at[i]) & DOOMED)
            nova_rows_sweep(r, plan->gone.at[i]);
    for (size_t i = 0; !failed && ones && i < plan->fresh.size; i++) {
        parse(o, plan->fresh.at[i], &row);
        if (o->boxes[row.box].rule == NOVA_BOX_LAST_ONE)
            settle(r, box_in(r, o, row.box, ours, 1), row.leaf, row.nleaf);
    }
    free(ours);
    return failed ? failed : nova_rows_tidy(r);
}

/* ---- in order ---- */

typedef struct {
    uint64_t head, more; /* the first 16 bytes of the leaf, so that most pairs are told apart by them */
    uint32_t box, at;
} item;

typedef struct {
    const nova_rows *r;
    const uint32_t *rank;
} sorting;

static uint64_t head_of(const uint8_t *p, size_t n)
{
    uint64_t v = nova_load_tail(p, n < 8 ? n : 8);
    return __builtin_bswap64(v);
}

static int order_items(const sorting *s, const item *a, const item *b)
{
    if (a->box != b->box)
        return a->box < b->box ? -1 : 1;
    if (a->head != b->head)
        return a->head < b->head ? -1 : 1;
    if (a->more != b->more)
        return a->more < b->more ? -1 : 1;
    size_t na, nb;
    const uint8_t *p = leaf_of(s->r, a->at, &na), *q = leaf_of(s->r, b->at, &nb);
    int order = order_bytes(p, na, q, nb);
    if (order || !s->rank)
        return order;
    const chunk *c = chunk_of(s->r, a->at), *d = chunk_of(s->r, b->at);
    if (c->who != d->who)
        return s->rank[c->who] < s->rank[d->who] ? -1 : 1;
    if (c->block != d->block)
        return c->block < d->block ? -1 : 1;
    return (int)(load32(record(s->r, a->at)) & 63) - (int)(load32(record(s->r, b->at)) & 63);
}

/* Merge sort, because a stranger may choose what is sorted. `other` is as long as `items`; returns the sorted one. */
static item *sort_items(const sorting *s, item *items, item *other, size_t n)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t low = 0; low < n; low += 2 * width) {
            size_t middle = low + width < n ? low + width : n, high = low + 2 * width < n ? low + 2 * width : n;
            size_t i = low, j = middle, out = low;
            if (middle == high || order_items(s, &items[middle - 1], &items[middle]) <= 0) {
                memcpy(other + low, items + low, (high - low) * sizeof *items);
                continue;
            }
            while (i < middle && j < high)
                other[out++] = order_items(s, &items[i], &items[j]) <= 0 ? items[i++] : items[j++];
            memcpy(other + out, items + i, (middle - i) * sizeof *items);
            memcpy(other + out + (middle - i), items + j, (high - j) * sizeof *items);
        }
        item *swap = items;
        items = other;
        other = swap;
    }
    return items;
}

static void fill_item(const nova_rows *r, uint32_t at, uint32_t box_rank, item *out)
{
    size_t n;
    const uint8_t *leaf = leaf_of(r, at, &n);
    *out = (item){head_of(leaf, n), n > 8 ? head_of(leaf + 8, n - 8) : 0, box_rank, at};
}

typedef struct {
    const uint8_t *path;
    size_t n;
    uint32_t in;
} placed;

static int order_paths(const void *x, const void *y)
{
    const placed *a = x, *b = y;
    return order_bytes(a->path, a->n, b->path, b->n);
}

uint32_t *nova_rows_sorted(const nova_rows *r, uint32_t in, size_t *size)
{
    size_t n = r->boxes[in].size, k = 0;
    item *items = malloc((2 * n + 1) * sizeof *items);
    uint32_t *out = malloc((n + 1) * sizeof *out);
    if (items && out) {
        for (uint32_t at = nova_rows_first(r, in); at; at = nova_rows_next(r, at))
            fill_item(r, at, 0, &items[k++]);
        sorting s = {r, NULL};
        const item *sorted = sort_items(&s, items, items + n, n);
        for (size_t i = 0; i < n; i++)
            out[i] = sorted[i].at;
        *size = n;
    } else {
        free(out);
        out = NULL;
    }
    free(items);
    return out;
}

typedef struct {
    uint8_t *at;
    size_t size, room;
} bytes_out;

static uint8_t *more_bytes(bytes_out *out, size_t n)
{
    return reserve(&out->at, &out->room, out->size + n, 1) ? NULL : out->at + out->size;
}

uint8_t *nova_rows_wire(const nova_rows *r, const nova_known *known, const uint32_t *rank, size_t *rows, size_t *size)
{
    bytes_out out = {NULL, 0, 0};
    item *items = NULL;
    size_t n = 0, item_room = 0;
    placed *order = malloc(r->nboxes * sizeof *order);
    uint32_t *ranks = malloc(r->nboxes * sizeof *ranks);
    uint8_t *depths = malloc(r->nboxes);
    int failed = !order || !ranks || !depths || !more_bytes(&out, 1);
    if (failed)
        goto done;
    for (uint32_t i = 0; i < r->nboxes; i++)
        order[i] = (placed){r->boxes[i].path, r->boxes[i].npath, i};
    qsort(order, r->nboxes, sizeof *order, order_paths);
    for (uint32_t i = 0; i < r->nboxes; i++)
        ranks[order[i].in] = i;
    for (uint32_t i = 0; i < r->nboxes; i++) {
        depths[i] = 0;
        for (uint32_t in = i; r->boxes[in].at; in = load32(record(r, r->boxes[in].at) + 4))
            depths[i]++;
    }
    for (uint32_t who = 0; who < r->nwriters; who++) {
        size_t i = 0; /* what is known is mostly all up to some count */
        if (known && known[who].size && known[who].at->first == 1)
            i = seek_block(&r->writers[who], known[who].at->last >> 6);
        for (; i < r->writers[who].nblocks; i++) {
            const chunk *c = r->chunks[r->writers[who].chunks[i]];
            uint64_t bits = c ? c->live : 0;
            if (bits && known)
                bits &= ~known_bits(known[who].at, known[who].size, c->block);
            for (; bits; bits &= bits - 1) {
                if ((failed = reserve(&items, &item_room, n + 1, sizeof *items)))
                    goto done;
                uint32_t at = c->at[place(c, (unsigned)__builtin_ctzll(bits))];
                fill_item(r, at, r->nested ? ranks[load32(record(r, at) + 4)] : 0, &items[n++]);
            }
        }
    }
    item *other = malloc((n + 1) * sizeof *other);
    if ((failed = !other))
        goto done;
    sorting s = {r, rank};
    const item *sorted = n ? sort_items(&s, items, other, n) : NULL;
    for (size_t i = 0; i < n; i++) {
        nova_row row;
        nova_rows_view(r, sorted[i].at, &row);
        const box *b = &r->boxes[row.box];
        uint8_t *start = more_bytes(&out, b->npath + row.nleaf + row.nvalue + 56), *p = start;
        if (!start) {
            failed = 1;
            break;
        }
        p += nova_put_number(p, depths[row.box]);
        if (b->npath)
            memcpy(p, b->path, b->npath);
        p += b->npath;
        p += nova_put_number(p, row.nleaf);
        if (row.nleaf)
            memcpy(p, row.leaf, row.nleaf);
        p += row.nleaf;
        p += nova_put_number(p, rank[row.who]);
        p += nova_put_number(p, row.count);
        p += nova_put_number(p, row.stamp);
        p += nova_put_number(p, row.nvalue);
        if (row.nvalue)
            memcpy(p, row.value, row.nvalue);
        p += row.nvalue;
        out.size += (size_t)(p - start);
    }
    free(other);
done:
    free(order);
    free(ranks);
    free(depths);
    free(items);
    *rows = n;
    *size = out.size;
    if (failed) {
        free(out.at);
        return NULL;
    }
    return out.at;
}

nova_span *nova_rows_kept(const nova_rows *r, uint32_t who, nova_known known, size_t *size)
{
    const writer *w = &r->writers[who];
    nova_span *out = NULL;
    size_t n = 0, room = 0;
    if (reserve(&out, &room, 1, sizeof *out))
        return NULL;
    for (size_t i = 0; i < w->nblocks; i++) {
        const chunk *c = r->chunks[w->chunks[i]];
        uint64_t bits = c ? c->live & known_bits(known.at, known.size, c->block) : 0;
        while (bits) {
            unsigned first = (unsigned)__builtin_ctzll(bits);
            uint64_t rest = ~(bits >> first);
            unsigned length = rest ? (unsigned)__builtin_ctzll(rest) : 64;
            if (length > 64 - first)
                length = 64 - first;
            uint64_t low = c->block << 6 | first, high = low + length - 1;
            if (n && out[n - 1].last + 1 == low)
                out[n - 1].last = high;
            else {
                if (reserve(&out, &room, n + 1, sizeof *out)) {
                    free(out);
                    return NULL;
                }
                out[n++] = (nova_span){low, high};
            }
            bits = first + length == 64 ? 0 : bits & (~(uint64_t)0 << (first + length));
        }
    }
    *size = n;
    return out;
}
