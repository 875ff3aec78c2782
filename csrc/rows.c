/* csrc/rows.c */
#include "rows_inner.h"

uint64_t nova_rows_hash_seed = 0x9e3779b97f4a7c15u;

void nova_rows_seed(uint64_t value)
{
    nova_rows_hash_seed = value;
}

void nova_rows_view(const nova_rows *r, uint32_t at, nova_row *row)
{
    uint32_t reference = load32(record(r, at));
    parse(r, at, row);
    const chunk *c = r->chunks[reference >> 6];
    row->who = c->who;
    row->count = c->block << 6 | (reference & 63);
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

size_t nova_rows_seek(const nova_rows *r, uint64_t hash, uint32_t in, const void *leaf, size_t n, size_t *room)
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
int nova_rows_grow_table(nova_rows *r, size_t more)
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

size_t nova_rows_seek_block(const writer *w, uint64_t block)
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

nova_digest nova_rows_digest_of(const nova_rows *r, const nova_row *row)
{
    const uint8_t *path = r->boxes[row->box].path;
    return nova_digest_row(path, r->boxes[row->box].npath, row->leaf, row->nleaf, r->writers[row->who].hash, row->count,
                           row->stamp, row->value, row->nvalue);
}

void nova_rows_refresh(nova_rows *r, chunk *c)
{
    nova_digest sum = {0, 0};
    size_t i = 0;
    for (uint64_t live = c->live; live; live &= live - 1, i++) {
        nova_row row;
        parse(r, c->at[i], &row);
        row.who = c->who;
        row.count = c->block << 6 | (uint64_t)__builtin_ctzll(live);
        sum = nova_digest_add(sum, nova_rows_digest_of(r, &row));
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
            nova_rows_refresh(r, c);
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

int nova_rows_reserve_blocks(writer *w, size_t n)
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
    size_t i = nova_rows_seek_block(w, block);
    uint32_t id;
    if (i == w->nblocks || w->blocks[i] != block) {
        if (nova_rows_reserve_blocks(w, w->nblocks + 1) || !(id = make_chunk(r, who, block, 4)))
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
    size_t at = nova_rows_seek_block(w, c->block);
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

uint64_t nova_rows_known_bits(const nova_span *spans, size_t n, uint64_t block)
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
    return bare ? 0 : nova_rows_grow_table(r, rows);
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
            log_write(r, who, w->spans[w->nspans - 1].last + 1, spans->last, 0);
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
            nova_rows_log_span(r, who, out[i].first, out[i].last, 0);
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

int nova_rows_grow_arena(nova_rows *r, size_t words)
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

void nova_rows_sweep_slot(nova_rows *r, size_t slot)
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
    nova_rows_sweep_slot(r, nova_rows_seek(r, key_hash(in, leaf, n), in, leaf, n, NULL));
}

static void log_drop(nova_rows *r, uint32_t at)
{
    if (!r->logs)
        return;
    uint32_t reference = load32(record(r, at));
    const chunk *c = r->chunks[reference >> 6];
    uint64_t count = c->block << 6 | (reference & 63);
    log_write(r, c->who, count, count, 1);
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

int nova_rows_renew_here(nova_rows *r, uint32_t at, const nova_row *row)
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

int nova_rows_put_at(nova_rows *r, const nova_row *row, uint64_t hash, size_t slot, size_t room, int replace)
{
    int failed = nova_rows_grow_arena(r, record_words(r, row));
    if (failed)
        return failed;
    if (replace && slot != SIZE_MAX && !sibling_of(r, r->slots[slot]) &&
        (failed = nova_rows_renew_here(r, r->slots[slot], row)))
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
        return nova_rows_put_at(r, row, 0, SIZE_MAX, SIZE_MAX, 0);
    uint64_t hash = key_hash(row->box, row->leaf, row->nleaf);
    int failed = nova_rows_grow_table(r, 1);
    if (failed)
        return failed;
    size_t room, slot = nova_rows_seek(r, hash, row->box, row->leaf, row->nleaf, &room);
    return nova_rows_put_at(r, row, hash, slot, room, replace);
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
    int done = nova_rows_renew_here(r, at, row);
    if (!done && !(done = put(r, row, 0))) {
        nova_rows_drop(r, at);
        nova_rows_sweep(r, at);
    }
    return done < 0 ? done : 0;
}

int nova_rows_has(const nova_rows *r, uint32_t who, uint64_t count)
{
    const writer *w = &r->writers[who];
    size_t i = nova_rows_seek_block(w, count >> 6);
    if (i == w->nblocks || w->blocks[i] != count >> 6 || !w->chunks[i])
        return 0;
    return r->chunks[w->chunks[i]]->live >> (count & 63) & 1;
}

size_t nova_rows_drop_key(nova_rows *r, uint32_t in, const void *leaf, size_t n)
{
    size_t slot = nova_rows_seek(r, key_hash(in, leaf, n), in, leaf, n, NULL), dropped = 0;
    if (slot == SIZE_MAX)
        return 0;
    for (uint32_t at = r->slots[slot]; at; at = sibling_of(r, at), dropped++)
        nova_rows_drop(r, at);
    nova_rows_sweep_slot(r, slot);
    return dropped;
}

uint32_t nova_rows_find(const nova_rows *r, uint32_t in, const void *leaf, size_t n)
{
    size_t slot = nova_rows_seek(r, key_hash(in, leaf, n), in, leaf, n, NULL);
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
        if (!path || nova_rows_grow_table(r, 1) || nova_rows_grow_arena(r, record_words(r, &row)))
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
        nova_rows_seek(r, hash, parent, leaf, nleaf, &room);
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
    return first_from(r, c->who, nova_rows_seek_block(&r->writers[c->who], c->block) + 1);
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
