/* csrc/rows_join.c */
#include "rows_inner.h"

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
        sum = nova_digest_sub(sum, nova_rows_digest_of(r, &row));
    }
    return sum;
}

/* ---- chunks that were never hashed ----
 *
 * Copies of one replica hold what neither has touched since as the same bytes at the same places. To compare those is a
 * tenth of hashing them, so it is tried before a chunk is hashed; and if only one side was, its sum is the other's too. */

enum { LOOKED_AT = 2, TWIN_WORDS = 1 << 13 }; /* `stale`: and compared once; from the second time on a sum pays */

/* Are the rows of these lanes, which both have, the same bytes at the same places? */
static int are_twins(const nova_rows *r, const chunk *a, const nova_rows *o, const chunk *b, uint64_t both)
{
    if (r->nested || o->nested) /* numbers of boxes differ */
        return 0;
    for (uint64_t apart = a->live ^ b->live; both;) {
        unsigned lane = (unsigned)__builtin_ctzll(both);
        uint64_t end = apart >> lane << lane, run = end ? both & ((end & -end) - 1) : both; /* none apart in between */
        const uint32_t *at = &a->at[place(a, lane)];
        size_t n = bits_in(run);
        int rising = 1;
        both &= ~run;
        for (size_t k = 1; k < n; k++)
            rising &= at[k - 1] < at[k];
        if (!rising || memcmp(at, &b->at[place(b, lane)], n * sizeof *at))
            return 0;
        nova_row last;
        size_t words = parse(r, at[n - 1], &last) - at[0];
        if (words > TWIN_WORDS || at[0] + words > o->used || memcmp(record(r, at[0]), record(o, at[0]), 4 * words))
            return 0;
    }
    return 1;
}

static void set_sum(nova_rows *r, chunk *c, nova_digest sum)
{
    r->total = nova_digest_add(nova_digest_sub(r->total, c->sum), sum);
    c->sum = sum;
    c->stale = 0;
}

/* The sum of a chunk whose rows of the lanes `both` are those of another one that was summed. */
static void sum_by(nova_rows *r, chunk *c, const nova_rows *o, const chunk *summed, uint64_t both)
{
    nova_digest none = c->sum, own = nova_digest_sub(none, less(r, c, c->live & ~both));
    set_sum(r, c, nova_digest_add(less(o, summed, summed->live & ~both), own));
}

/* Twins of which one at least was not summed since it was written to. */
static void sum_twins(nova_rows *r, chunk *a, nova_rows *o, chunk *b, uint64_t both)
{
    if (a->stale && b->stale) {
        if (a->stale != LOOKED_AT || b->stale != LOOKED_AT) {
            a->stale = b->stale = LOOKED_AT;
            return;
        }
        nova_rows_refresh(r, a);
    }
    if (a->stale)
        sum_by(r, a, o, b, both);
    else
        sum_by(o, b, r, a, both);
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

/* dead: the dots that the sender knows and has no rows of, apart from rows that are here to be seen. */
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
                i = nova_rows_seek_block(mine, target);
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
            uint64_t both = a->live & b->live;
            if (many && (a->stale || b->stale) && are_twins(r, a, o, b, both)) {
                sum_twins(r, a, o, b, both);
                both = 0;
                many = 0;
            }
            if (many && a->stale)
                nova_rows_refresh(r, a);
            if (many && b->stale)
                nova_rows_refresh(o, b);
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
            uint64_t gone = only_a & nova_rows_known_bits(dead.at, dead.size, block);
            if (gone && push_bits(&plan->gone, a, gone))
                return NOVA_ROWS_NOMEM;
        }
        if (only_b) {
            uint64_t fresh = only_b & ~nova_rows_known_bits(mine->spans, mine->nspans, block);
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
    nova_rows_sweep_slot(r, nova_rows_seek(r, key_hash(in, leaf, n), in, leaf, n, NULL));
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
    if (nova_rows_reserve_blocks(w, w->nblocks + more))
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
    size_t room, slot = nova_rows_seek(r, hash, row->box, row->leaf, row->nleaf, &room);
    uint32_t at = slot == SIZE_MAX ? 0 : r->slots[slot];
    if (at && *flags_of(r, at) & DOOMED && !sibling_of(r, at)) {
        int done = nova_rows_renew_here(r, at, row);
        if (done > 0)
            *flags_of(r, at) &= (uint8_t)~DOOMED;
        if (done)
            return done < 0 ? done : 0;
    }
    return nova_rows_put_at(r, row, hash, slot, room, 0);
}

static int learn_all(nova_rows *r, const nova_rows *o, const uint32_t *map, const nova_plan *plan)
{
    int failed = 0, logs;
    if (r->logs)
        nova_rows_log_join(r, o, map, plan);
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
    if (!failed && !(failed = nova_rows_grow_table(r, plan->fresh.size)))
        failed = nova_rows_grow_arena(r, words);
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
