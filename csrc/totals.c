/* csrc/totals.c */
#include "totals.h"
#include "bytes.h"
#include <stdlib.h>

enum { LANES = 64, AHEAD = 8, FEW = 8 };

/* Writers whose numbers share their upper 26 bits; rows[] has an entry per set bit of `live`, in order. */
typedef struct nova_totals_page {
    uint64_t live;
    nova_digest sum; /* of the rows, unless stale */
    uint32_t refs, number;
    uint8_t room, stale;
    nova_total rows[];
} page;

struct nova_totals {
    page **pages; /* ascending by number */
    uint32_t npages, room;
    int kinds;
    size_t size;
};

/* ---- numbers of writers ---- */

static struct {
    uint64_t
        *hashes[26]; /* of 64 numbers, the next 64, 128 .. : they never move, so whoever digests a page that names a
                             number may read its hash while others get new ones */
    uint32_t *uses, *open, *idle; /* `open` numbers are nobody's; those of `idle` were, and may be in use again */
    uint32_t size, room, nopen, nidle, idle_room;
} ids;

static inline unsigned part_of(uint32_t id)
{
    return id < LANES ? 0 : 26 - (unsigned)__builtin_clz(id);
}

static inline uint64_t *hash_of(uint32_t id)
{
    unsigned part = part_of(id);
    return &ids.hashes[part][part ? id - (LANES / 2u << part) : id];
}

static int grow_ids(void)
{
    uint32_t room = ids.room ? 2 * ids.room : LANES;
    if (room >= NOVA_ID_NONE / 2)
        return NOVA_TOTALS_NOMEM;
    uint64_t **hashes = &ids.hashes[part_of(ids.room)];
    if (!*hashes) /* else it was had before, and then memory ran out */
        *hashes = malloc((room - ids.room) * sizeof **hashes);
    uint32_t *uses = realloc(ids.uses, room * sizeof *uses);
    if (uses)
        ids.uses = uses;
    uint32_t *open = realloc(ids.open, room * sizeof *open);
    if (open)
        ids.open = open;
    uint32_t *idle = realloc(ids.idle, room * sizeof *idle); /* a number is in it once at most: see nova_ids_drop */
    if (idle)
        ids.idle = idle;
    if (!*hashes || !uses || !open || !idle)
        return NOVA_TOTALS_NOMEM;
    ids.room = room;
    return 0;
}

#define IDLE 0x80000000u /* in uses[]: it is in the list */

static void settle_idle(uint32_t id)
{
    if (ids.uses[id])
        return;
    ids.uses[id] = IDLE;
    ids.idle[ids.nidle++] = id;
}

uint32_t nova_ids_take(uint64_t name_hash)
{
    uint32_t id;
    if (!ids.nopen && ids.size == ids.room && grow_ids())
        return NOVA_ID_NONE;
    id = ids.nopen ? ids.open[--ids.nopen] : ids.size++;
    *hash_of(id) = name_hash;
    ids.uses[id] = 0;
    settle_idle(id); /* until something holds it */
    return id;
}

void nova_ids_hold(uint32_t id)
{
    ids.uses[id]++;
}

void nova_ids_drop(uint32_t id)
{
    ids.uses[id]--;
    settle_idle(id);
}

uint32_t nova_ids_idle(void)
{
    while (ids.nidle) {
        uint32_t id = ids.idle[--ids.nidle];
        ids.uses[id] &= ~IDLE;
        if (!ids.uses[id]) {
            ids.open[ids.nopen++] = id;
            return id;
        }
    }
    return NOVA_ID_NONE;
}

/* ---- pages ---- */

static inline unsigned bits_in(uint64_t v)
{
    return (unsigned)__builtin_popcountll(v);
}

static inline unsigned place(const page *p, unsigned lane)
{
    return bits_in(p->live & (((uint64_t)1 << lane) - 1));
}

static inline nova_total *row_of(page *p, unsigned lane)
{
    return &p->rows[place(p, lane)];
}

static inline uint32_t id_of(const page *p, unsigned lane)
{
    return p->number << 6 | lane;
}

static page *new_page(uint32_t number, unsigned room)
{
    page *p = malloc(sizeof *p + room * sizeof *p->rows);
    if (p)
        *p = (page){.refs = 1, .number = number, .room = (uint8_t)room, .stale = 1};
    return p;
}

static void drop_page(page *p)
{
    if (--p->refs)
        return;
    for (uint64_t live = p->live; live; live &= live - 1)
        nova_ids_drop(id_of(p, (unsigned)__builtin_ctzll(live)));
    free(p);
}

static void append(page *p, unsigned lane, const nova_total *row)
{
    p->rows[bits_in(p->live)] = *row;
    p->live |= (uint64_t)1 << lane;
}

/* Let a new page count as one that names its writers. */
static void hold_writers(const page *p)
{
    for (uint64_t live = p->live; live; live &= live - 1)
        nova_ids_hold(id_of(p, (unsigned)__builtin_ctzll(live)));
}

/* A page that is only ours, with room for one more row: *p, or in its place one more like it. */
static int own_page(page **p, unsigned more)
{
    page *old = *p;
    unsigned n = bits_in(old->live), room = old->room;
    if (old->refs == 1 && n + more <= room)
        return 0;
    if (n + more > room)
        room = room < 32 ? 2 * room : LANES;
    if (old->refs == 1) {
        page *grown = realloc(old, sizeof *old + room * sizeof *old->rows);
        if (!grown)
            return NOVA_TOTALS_NOMEM;
        grown->room = (uint8_t)room;
        *p = grown;
        return 0;
    }
    page *copy = new_page(old->number, room);
    if (!copy)
        return NOVA_TOTALS_NOMEM;
    const nova_total *row = old->rows;
    for (uint64_t live = old->live; live; live &= live - 1)
        append(copy, (unsigned)__builtin_ctzll(live), row++);
    hold_writers(copy);
    drop_page(old);
    *p = copy;
    return 0;
}

/* Where the page of this number is, or belongs. */
static uint32_t seek_page(const nova_totals *t, uint32_t number)
{
    uint32_t low = 0, high = t->npages;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (t->pages[middle]->number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int reserve_pages(nova_totals *t, uint32_t n)
{
    if (n <= t->room)
        return 0;
    uint32_t room = n < 4 ? 4 : n + n / 2;
    page **grown = realloc(t->pages, room * sizeof *grown);
    if (!grown)
        return NOVA_TOTALS_NOMEM;
    t->pages = grown;
    t->room = room;
    return 0;
}

/* ---- counters ---- */

nova_totals *nova_totals_new(int kinds)
{
    nova_totals *t = calloc(1, sizeof *t);
    if (t)
        t->kinds = kinds;
    return t;
}

void nova_totals_free(nova_totals *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; i < t->npages; i++)
        drop_page(t->pages[i]);
    free(t->pages);
    free(t);
}

nova_totals *nova_totals_copy(const nova_totals *o)
{
    nova_totals *t = nova_totals_new(o->kinds);
    if (!t || reserve_pages(t, o->npages)) {
        free(t);
        return NULL;
    }
    for (uint32_t i = 0; i < o->npages; i++) {
        t->pages[i] = o->pages[i];
        t->pages[i]->refs++;
    }
    t->npages = o->npages;
    t->size = o->size;
    return t;
}

size_t nova_totals_size(const nova_totals *t)
{
    return t->size;
}

size_t nova_totals_bytes(const nova_totals *t)
{
    size_t n = sizeof *t + t->room * sizeof *t->pages;
    for (uint32_t i = 0; i < t->npages; i++)
        n += sizeof(page) + t->pages[i]->room * sizeof(nova_total) + 8;
    return n;
}

nova_total nova_totals_get(const nova_totals *t, uint32_t id)
{
    uint32_t i = seek_page(t, id >> 6);
    if (i == t->npages || t->pages[i]->number != id >> 6 || !(t->pages[i]->live >> (id & 63) & 1))
        return (nova_total){0, 0, 0};
    return *row_of(t->pages[i], id & 63);
}

int nova_totals_set(nova_totals *t, uint32_t id, nova_total total)
{
    uint32_t i = seek_page(t, id >> 6);
    unsigned lane = id & 63;
    if (i == t->npages || t->pages[i]->number != id >> 6) {
        page *p;
        if (reserve_pages(t, t->npages + 1) || !(p = new_page(id >> 6, 1)))
            return NOVA_TOTALS_NOMEM;
        memmove(t->pages + i + 1, t->pages + i, (t->npages - i) * sizeof *t->pages);
        t->pages[i] = p;
        t->npages++;
    }
    int there = t->pages[i]->live >> lane & 1;
    if (own_page(&t->pages[i], !there))
        return NOVA_TOTALS_NOMEM;
    page *p = t->pages[i];
    if (!there) {
        unsigned at = place(p, lane);
        memmove(p->rows + at + 1, p->rows + at, (bits_in(p->live) - at) * sizeof *p->rows);
        p->live |= (uint64_t)1 << lane;
        nova_ids_hold(id);
        t->size++;
    }
    *row_of(p, lane) = total;
    p->stale = 1;
    return 0;
}

int nova_totals_next(const nova_totals *t, uint32_t *id, nova_total *total)
{
    for (uint32_t i = seek_page(t, *id >> 6); i < t->npages; i++) {
        page *p = t->pages[i];
        uint64_t live = p->number == *id >> 6 ? p->live >> (*id & 63) << (*id & 63) : p->live;
        if (!live)
            continue;
        unsigned lane = (unsigned)__builtin_ctzll(live);
        *id = id_of(p, lane);
        *total = *row_of(p, lane);
        return 1;
    }
    return 0;
}

void nova_totals_sum(const nova_totals *t, uint64_t up[2], uint64_t down[2])
{
    unsigned __int128 ups = 0, downs = 0;
    for (uint32_t i = 0; i < t->npages; i++)
        for (unsigned k = 0, n = bits_in(t->pages[i]->live); k < n; k++) {
            ups += t->pages[i]->rows[k].up;
            downs += t->pages[i]->rows[k].down;
        }
    up[0] = (uint64_t)ups, up[1] = (uint64_t)(ups >> 64);
    down[0] = (uint64_t)downs, down[1] = (uint64_t)(downs >> 64);
}

size_t nova_totals_value(const nova_totals *t, const nova_total *total, uint8_t *out)
{
    size_t n = nova_put_number(out, total->up);
    return t->kinds == 1 ? n : n + nova_put_number(out + n, total->down);
}

/* The sum of a page, which another thread may find out at the same time: both write the same. */
static nova_digest sum_of(const nova_totals *t, page *p)
{
    nova_digest sum = {0, 0};
    if (!__atomic_load_n(&p->stale, __ATOMIC_ACQUIRE)) {
        sum.lo = __atomic_load_n(&p->sum.lo, __ATOMIC_RELAXED);
        sum.hi = __atomic_load_n(&p->sum.hi, __ATOMIC_RELAXED);
        return sum;
    }
    const nova_total *row = p->rows;
    uint8_t value[20];
    for (uint64_t live = p->live; live; live &= live - 1, row++) {
        uint64_t name = *hash_of(id_of(p, (unsigned)__builtin_ctzll(live)));
        size_t n = nova_totals_value(t, row, value);
        sum = nova_digest_add(sum, nova_digest_row(NULL, 0, NULL, 0, name, row->last, 0, value, n));
    }
    __atomic_store_n(&p->sum.lo, sum.lo, __ATOMIC_RELAXED);
    __atomic_store_n(&p->sum.hi, sum.hi, __ATOMIC_RELAXED);
    __atomic_store_n(&p->stale, 0, __ATOMIC_RELEASE);
    return sum;
}

nova_digest nova_totals_digest(nova_totals *t)
{
    nova_digest out = {0, 0};
    for (uint32_t i = 0; i < t->npages; i++)
        out = nova_digest_add(out, sum_of(t, t->pages[i]));
    return out;
}

/* ---- merging ---- */

enum { NEWS = 1, OLDS = 2 }; /* theirs knows more of a writer; ours does */

/* How a page of theirs stands to ours, which may be NULL, or an error. */
static int compare(const nova_totals *t, page *a, page *b, uint32_t me)
{
    if (a && a->live == b->live && bits_in(a->live) > FEW) {
        nova_digest x = sum_of(t, a), y = sum_of(t, b);
        if (x.lo == y.lo && x.hi == y.hi)
            return 0;
    }
    uint64_t mine = a ? a->live : 0;
    int out = mine & ~b->live ? OLDS : 0;
    const nova_total *row = b->rows;
    for (uint64_t live = b->live; live; live &= live - 1, row++) {
        unsigned lane = (unsigned)__builtin_ctzll(live);
        const nova_total none = {0, 0, 0}, *ours = mine >> lane & 1 ? row_of(a, lane) : &none;
        if (row->last < ours->last)
            out |= OLDS;
        else if (row->last > ours->last) {
            if (id_of(b, lane) == me)
                return NOVA_TOTALS_OURS;
            out |= NEWS;
        } else if (row->up != ours->up || row->down != ours->down)
            return NOVA_TOTALS_TWICE;
    }
    return out;
}

/* A page of what either knows; it names nobody yet. */
static page *union_of(page *a, page *b)
{
    page *p = new_page(a->number, bits_in(a->live | b->live));
    if (!p)
        return NULL;
    for (uint64_t live = a->live | b->live; live; live &= live - 1) {
        unsigned lane = (unsigned)__builtin_ctzll(live);
        const nova_total *x = a->live >> lane & 1 ? row_of(a, lane) : NULL;
        const nova_total *y = b->live >> lane & 1 ? row_of(b, lane) : NULL;
        append(p, lane, !x || (y && y->last > x->last) ? y : x);
    }
    return p;
}

static int push_page(nova_totals_plan *plan, page *p, int ours)
{
    if (plan->size == plan->room) {
        uint32_t room = plan->room ? 2 * plan->room : 8;
        nova_totals_news *grown = realloc(plan->news, room * sizeof *grown);
        if (!grown)
            return NOVA_TOTALS_NOMEM;
        plan->news = grown;
        plan->room = room;
    }
    plan->news[plan->size++] = (nova_totals_news){p, ours};
    return 0;
}

int nova_totals_find_news(nova_totals *t, nova_totals *o, uint32_t me, nova_totals_plan *plan)
{
    *plan = (nova_totals_plan){NULL, 0, 0, 0};
    for (uint32_t i = 0, j = 0; j < o->npages; j++) {
        page *a = NULL, *b = o->pages[j];
        if (i < t->npages && t->pages[i] == b) { /* copies of one counter share nearly all */
            i++;
            continue;
        }
        while (i < t->npages && t->pages[i]->number < b->number)
            i++;
        if (i < t->npages && t->pages[i]->number == b->number)
            a = t->pages[i];
        if (j + AHEAD < o->npages && i + AHEAD < t->npages) {
            __builtin_prefetch(t->pages[i + AHEAD]);
            __builtin_prefetch(o->pages[j + AHEAD]);
        }
        int how = compare(t, a, b, me);
        if (how < 0)
            return how;
        if (!(how & NEWS))
            continue;
        page *p = how & OLDS ? union_of(a, b) : b;
        if (!p)
            return NOVA_TOTALS_NOMEM;
        if (push_page(plan, p, p != b)) {
            if (p != b)
                free(p);
            return NOVA_TOTALS_NOMEM;
        }
        plan->added += !a;
    }
    return plan->size ? NOVA_TOTALS_CHANGED : NOVA_TOTALS_SAME;
}

void nova_totals_plan_free(nova_totals_plan *plan)
{
    for (uint32_t k = 0; k < plan->size; k++)
        if (plan->news[k].made)
            free(plan->news[k].page);
    free(plan->news);
    *plan = (nova_totals_plan){NULL, 0, 0, 0};
}

int nova_totals_take_news(nova_totals *t, nova_totals_plan *plan)
{
    if (reserve_pages(t, t->npages + plan->added))
        return NOVA_TOTALS_NOMEM;
    uint32_t from = t->npages, to = from + plan->added; /* from behind, so that nothing is moved twice */
    t->npages = to;
    for (uint32_t k = plan->size; k--;) {
        page *p = plan->news[k].page;
        if (plan->news[k].made)
            hold_writers(p);
        else
            p->refs++;
        while (from && t->pages[from - 1]->number > p->number)
            t->pages[--to] = t->pages[--from];
        t->size += bits_in(p->live);
        if (from && t->pages[from - 1]->number == p->number) {
            t->size -= bits_in(t->pages[--from]->live);
            drop_page(t->pages[from]);
        }
        t->pages[--to] = p;
    }
    plan->size = 0; /* its pages are t's */
    return 0;
}
