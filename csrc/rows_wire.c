/* csrc/rows_wire.c */
#include "rows_inner.h"

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
            i = nova_rows_seek_block(&r->writers[who], known[who].at->last >> 6);
        for (; i < r->writers[who].nblocks; i++) {
            const chunk *c = r->chunks[r->writers[who].chunks[i]];
            uint64_t bits = c ? c->live : 0;
            if (bits && known)
                bits &= ~nova_rows_known_bits(known[who].at, known[who].size, c->block);
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
        uint64_t bits = c ? c->live & nova_rows_known_bits(known.at, known.size, c->block) : 0;
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
