/* csrc/sequence.c */
#include "sequence.h"

#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX
#define FAN 32   /* spans of a leaf, children of a node */
#define CHUNK 64 /* entries of a piece of an agent's index */
#define COUNT_MASK NOVA_SEQUENCE_COUNT_MASK
#define GROW(array, size, room, more) nova_runs_grow((void **)&(array), size, &(room), sizeof *(array), more)

typedef struct {
    uint64_t id, left, right;
    uint32_t len, leaf; /* leaf: NONE while the slot is free, and then `len` is the next free one */
    uint8_t gone;
} span;

typedef struct {
    uint32_t parent, n, next, prev;
    uint64_t sum; /* of visible */
    uint32_t slot[FAN];
    uint32_t visible[FAN];
} leaf;

typedef struct {
    uint32_t parent, n, leaves; /* leaves: whether its kids are leaves */
    uint32_t kid[FAN];
    uint64_t sum[FAN];
} node;

typedef struct {
    uint64_t count, start, end;
    nova_mark says;
    uint8_t flags;
} mark;

typedef struct {
    uint32_t n;
    uint32_t slot[CHUNK];
    uint64_t count[CHUNK];
} chunk;

typedef struct {
    uint64_t first; /* of its counts, side by side for the search */
    chunk *at;
} shelf;

typedef struct {
    uint64_t count, target; /* target: the least id */
    uint32_t len;
    uint8_t descending;
} removal;

typedef struct {
    uint64_t count, salt;
    uint64_t removed; /* elements in its removals */
    uint32_t rank;
    shelf *chunks;
    size_t chunks_size, chunks_room, near; /* near: the last that was looked for */
    removal *removals;
    size_t removals_size, removals_room;
    mark *marks;
    size_t marks_size, marks_room;
} agent;

struct nova_sequence {
    span *spans;
    leaf *leaves;
    node *nodes;
    agent *agents;
    size_t spans_size, spans_room, leaves_size, leaves_room, nodes_size, nodes_room, agents_size, agents_room;
    size_t live; /* spans in use */
    uint32_t free_slot, root, head;
    int root_is_leaf, broken, loading; /* loading: elements come when all runs are there */
    /* the place of the last change: span `index` of `at`, which starts at the visible position `start`; `pending` is
     * what its leaf gained and its ancestors do not know yet */
    uint32_t at, index;
    uint64_t start;
    int64_t pending;
    int cursor;
    /* the gap buffer, in elements */
    uint8_t *text;
    unsigned width;
    uint64_t length, gap, room;
    const uint64_t *hashes; /* of what elements stand for; NULL: elements stand for themselves */
    nova_digest digest;
    uint64_t marks, stamp; /* how many, and the highest stamp */
};

/* --- the visible elements --- */

static uint32_t element(const void *p, unsigned width, uint64_t i)
{
    return width == 1 ? ((const uint8_t *)p)[i] : width == 2 ? ((const uint16_t *)p)[i] : ((const uint32_t *)p)[i];
}

static void gap_to(nova_sequence *s, uint64_t pos)
{
    uint64_t w = s->width, hole = s->room - s->length;
    if (pos < s->gap)
        memmove(s->text + (pos + hole) * w, s->text + pos * w, (s->gap - pos) * w);
    else if (pos > s->gap)
        memmove(s->text + s->gap * w, s->text + (s->gap + hole) * w, (pos - s->gap) * w);
    s->gap = pos;
}

/* Make room for n elements, which are below `limit`. */
static int text_room(nova_sequence *s, uint64_t n, uint32_t limit)
{
    unsigned width = s->width == 4 || limit > 256 ? 4 : 1;
    if (width == s->width && s->length + n <= s->room)
        return 0;
    uint64_t room = s->length + n <= s->room ? s->room : 2 * s->room > s->length + n ? 2 * s->room : s->length + n;
    room = room < 64 ? 64 : room;
    uint8_t *fresh = room > SIZE_MAX / width ? NULL : malloc((size_t)room * width);
    if (!fresh)
        return NOVA_SEQUENCE_EMEMORY;
    uint64_t behind = s->length - s->gap, from = s->room - behind, to = room - behind;
    if (width == s->width) {
        if (s->gap)
            memcpy(fresh, s->text, s->gap * width);
        if (behind)
            memcpy(fresh + to * width, s->text + from * width, behind * width);
    } else {
        uint32_t *wide = (uint32_t *)(void *)fresh;
        for (uint64_t i = 0; i < s->gap; i++)
            wide[i] = s->text[i];
        for (uint64_t i = 0; i < behind; i++)
            wide[to + i] = s->text[from + i];
    }
    free(s->text);
    s->text = fresh, s->room = room, s->width = width;
    return 0;
}

static uint32_t text_limit(const void *p, unsigned width, uint64_t n)
{
    uint32_t all = 0;
    if (width > 1)
        for (uint64_t i = 0; i < n; i++)
            all |= element(p, width, i);
    return all < 256 ? 256 : UINT32_MAX;
}

static void text_put(nova_sequence *s, uint64_t pos, const void *p, unsigned width, uint64_t n)
{
    gap_to(s, pos);
    if (s->width == width)
        memcpy(s->text + pos * width, p, n * width);
    else
        for (uint64_t i = 0; i < n; i++) {
            if (s->width == 1)
                s->text[pos + i] = (uint8_t)element(p, width, i);
            else
                ((uint32_t *)(void *)s->text)[pos + i] = element(p, width, i);
        }
    s->gap += n, s->length += n;
}

static uint32_t text_at(const nova_sequence *s, uint64_t pos)
{
    return element(s->text, s->width, pos < s->gap ? pos : pos + s->room - s->length);
}

/* --- digests: of the visible elements and their ids, and of marks --- */

static uint64_t fold(uint64_t x, uint64_t y)
{
    unsigned __int128 p = (unsigned __int128)x * y;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static nova_digest event_digest(uint64_t salt, uint64_t count, uint64_t value)
{
    uint64_t a = salt ^ (count + 1) * 0x9e3779b97f4a7c15u, b = value + 0x6a09e667f3bcc909u;
    a += fold(b ^ 0x3c6ef372fe94f82bu, a | 1);
    b += fold(a ^ 0xa54ff53a5f1d36f1u, 0x510e527fade682d1u);
    a += fold(b ^ 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu);
    return (nova_digest){a, b};
}

/* The elements from `pos` on are those of `id` on: take them in (or out). */
static void digest_elements(nova_sequence *s, uint64_t id, uint64_t pos, uint64_t n, int out)
{
    uint64_t salt = s->agents[nova_agent_of(id)].salt, count = nova_count_of(id);
    for (uint64_t i = 0; i < n; i++) {
        uint32_t value = text_at(s, pos + i);
        nova_digest d = event_digest(salt, count + i, s->hashes ? s->hashes[value] : value);
        s->digest = out ? nova_digest_sub(s->digest, d) : nova_digest_add(s->digest, d);
    }
}

static void text_cut(nova_sequence *s, uint64_t pos, uint64_t n)
{
    gap_to(s, pos);
    s->length -= n; /* what stood behind the gap joins it */
}

/* --- the tree of spans --- */

static uint32_t kid_index(const node *p, uint32_t kid)
{
    uint32_t i = 0;
    while (p->kid[i] != kid)
        i++;
    return i;
}

static void climb(nova_sequence *s, uint32_t at, int64_t gained)
{
    uint32_t kid = at, up = s->leaves[at].parent;
    while (up != NONE) {
        node *p = &s->nodes[up];
        p->sum[kid_index(p, kid)] += (uint64_t)gained;
        kid = up, up = p->parent;
    }
}

static void settle(nova_sequence *s)
{
    if (s->pending) {
        climb(s, s->at, s->pending);
        s->pending = 0;
    }
}

static void gain(nova_sequence *s, uint32_t at, int64_t n)
{
    s->leaves[at].sum += (uint64_t)n;
    if (s->cursor && s->at == at)
        s->pending += n;
    else
        climb(s, at, n);
}

static void forget_cursor(nova_sequence *s)
{
    settle(s);
    s->cursor = 0;
}

static int new_node(nova_sequence *s, uint32_t *out, uint32_t leaves)
{
    if (s->nodes_size >= NONE || GROW(s->nodes, s->nodes_size, s->nodes_room, 1))
        return NOVA_SEQUENCE_EMEMORY;
    *out = (uint32_t)s->nodes_size++;
    s->nodes[*out].n = 0, s->nodes[*out].leaves = leaves, s->nodes[*out].parent = NONE;
    return 0;
}

static uint32_t *parent_of(nova_sequence *s, uint32_t at, int is_leaf)
{
    return is_leaf ? &s->leaves[at].parent : &s->nodes[at].parent;
}

/* `fresh` came out of `old` and stands right behind it; it took `moved` visible elements along. */
static int hang(nova_sequence *s, uint32_t old, uint32_t fresh, uint64_t moved, int is_leaf)
{
    for (;;) {
        uint32_t up = *parent_of(s, old, is_leaf);
        if (up == NONE) {
            uint64_t total = 0;
            if (is_leaf)
                total = s->leaves[old].sum;
            else
                for (uint32_t i = 0; i < s->nodes[old].n; i++)
                    total += s->nodes[old].sum[i];
            if (new_node(s, &up, (uint32_t)is_leaf))
                return NOVA_SEQUENCE_EMEMORY;
            node *root = &s->nodes[up];
            root->n = 2;
            root->kid[0] = old, root->sum[0] = total;
            root->kid[1] = fresh, root->sum[1] = moved;
            *parent_of(s, old, is_leaf) = *parent_of(s, fresh, is_leaf) = up;
            s->root = up, s->root_is_leaf = 0;
            return 0;
        }
        node *p = &s->nodes[up];
        uint32_t split = NONE, i = kid_index(p, old) + 1;
        uint64_t taken = 0;
        p->sum[i - 1] -= moved;
        if (p->n == FAN) {
            if (new_node(s, &split, p->leaves))
                return NOVA_SEQUENCE_EMEMORY;
            p = &s->nodes[up];
            node *q = &s->nodes[split];
            q->n = FAN / 2, p->n = FAN / 2, q->parent = p->parent;
            memcpy(q->kid, p->kid + FAN / 2, sizeof(uint32_t) * FAN / 2);
            memcpy(q->sum, p->sum + FAN / 2, sizeof(uint64_t) * FAN / 2);
            for (uint32_t k = 0; k < q->n; k++)
                *parent_of(s, q->kid[k], is_leaf) = split;
        }
        uint32_t into = up;
        if (split != NONE && i > FAN / 2)
            into = split, i -= FAN / 2;
        node *t = &s->nodes[into];
        memmove(t->kid + i + 1, t->kid + i, (t->n - i) * sizeof *t->kid);
        memmove(t->sum + i + 1, t->sum + i, (t->n - i) * sizeof *t->sum);
        t->kid[i] = fresh, t->sum[i] = moved, t->n++;
        *parent_of(s, fresh, is_leaf) = into;
        if (split == NONE)
            return 0;
        for (uint32_t k = 0; k < s->nodes[split].n; k++)
            taken += s->nodes[split].sum[k];
        old = up, fresh = split, moved = taken, is_leaf = 0;
    }
}

/* Put a slot, of 0 visible elements so far, at an index of a leaf; *at and *index become where it then is. What stood
 * at *index - 1 stays in the same leaf. */
static int put_slot(nova_sequence *s, uint32_t *at, uint32_t *index, uint32_t slot)
{
    if (s->leaves[*at].n == FAN) {
        forget_cursor(s);
        if (s->leaves_size >= NONE || GROW(s->leaves, s->leaves_size, s->leaves_room, 1))
            return NOVA_SEQUENCE_EMEMORY;
        uint32_t fresh = (uint32_t)s->leaves_size++;
        leaf *a = &s->leaves[*at], *b = &s->leaves[fresh];
        b->n = a->n = FAN / 2, b->next = a->next, b->prev = *at, b->sum = 0, b->parent = NONE;
        if (a->next != NONE)
            s->leaves[a->next].prev = fresh;
        a->next = fresh;
        memcpy(b->slot, a->slot + FAN / 2, sizeof(uint32_t) * FAN / 2);
        memcpy(b->visible, a->visible + FAN / 2, sizeof(uint32_t) * FAN / 2);
        for (uint32_t i = 0; i < b->n; i++) {
            b->sum += b->visible[i];
            s->spans[b->slot[i]].leaf = fresh;
        }
        a->sum -= b->sum;
        if (hang(s, *at, fresh, b->sum, 1))
            return NOVA_SEQUENCE_EMEMORY;
        if (*index > FAN / 2)
            *at = fresh, *index -= FAN / 2;
    }
    leaf *l = &s->leaves[*at];
    memmove(l->slot + *index + 1, l->slot + *index, (l->n - *index) * sizeof *l->slot);
    memmove(l->visible + *index + 1, l->visible + *index, (l->n - *index) * sizeof *l->visible);
    l->slot[*index] = slot, l->visible[*index] = 0, l->n++;
    s->spans[slot].leaf = *at;
    if (s->cursor && s->at == *at && s->index >= *index)
        forget_cursor(s);
    return 0;
}

static uint32_t index_in_leaf(const nova_sequence *s, uint32_t slot)
{
    const leaf *l = &s->leaves[s->spans[slot].leaf];
    uint32_t i = 0;
    while (l->slot[i] != slot)
        i++;
    return i;
}

static uint32_t next_slot(const nova_sequence *s, uint32_t at, uint32_t index)
{
    const leaf *l = &s->leaves[at];
    if (index + 1 < l->n)
        return l->slot[index + 1];
    return l->next == NONE ? NONE : s->leaves[l->next].slot[0];
}

static uint64_t visible_before(nova_sequence *s, uint32_t at, uint32_t index)
{
    uint64_t out = 0;
    settle(s);
    for (uint32_t i = 0; i < index; i++)
        out += s->leaves[at].visible[i];
    for (uint32_t kid = at, up = s->leaves[at].parent; up != NONE; kid = up, up = s->nodes[up].parent) {
        const node *p = &s->nodes[up];
        for (uint32_t i = 0; p->kid[i] != kid; i++)
            out += p->sum[i];
    }
    return out;
}

/* Set the cursor on the span of the visible element at pos < length; returns its offset there. */
static uint32_t seek(nova_sequence *s, uint64_t pos)
{
    if (s->cursor) {
        const leaf *l = &s->leaves[s->at];
        uint64_t start = s->start;
        uint32_t i = s->index;
        while (i < l->n && pos >= start + l->visible[i])
            start += l->visible[i++];
        while (i > 0 && pos < start)
            start -= l->visible[--i];
        if (i < l->n && pos >= start) {
            s->index = i, s->start = start;
            return (uint32_t)(pos - start);
        }
    }
    forget_cursor(s);
    uint64_t left = pos;
    uint32_t at = s->root;
    if (!s->root_is_leaf)
        for (;;) {
            const node *p = &s->nodes[at];
            uint32_t i = 0;
            while (left >= p->sum[i])
                left -= p->sum[i++];
            at = p->kid[i];
            if (p->leaves)
                break;
        }
    const leaf *l = &s->leaves[at];
    uint32_t i = 0;
    while (left >= l->visible[i])
        left -= l->visible[i++];
    s->at = at, s->index = i, s->start = pos - left, s->cursor = 1;
    return (uint32_t)left;
}

/* How the places of two elements stand, -1, 0 or 1. */
static int compare_places(const nova_sequence *s, uint32_t a, uint64_t ida, uint32_t b, uint64_t idb)
{
    if (a == b)
        return ida < idb ? -1 : ida > idb;
    uint32_t x = s->spans[a].leaf, y = s->spans[b].leaf;
    if (x == y)
        return index_in_leaf(s, a) < index_in_leaf(s, b) ? -1 : 1;
    uint32_t px = s->leaves[x].parent, py = s->leaves[y].parent;
    while (px != py) {
        x = px, y = py;
        px = s->nodes[x].parent, py = s->nodes[y].parent;
    }
    return kid_index(&s->nodes[px], x) < kid_index(&s->nodes[px], y) ? -1 : 1;
}

/* --- the index of an agent --- */

static size_t chunk_for(agent *a, uint64_t count)
{
    size_t low = 0, high = a->chunks_size;
    if (a->near < high && a->chunks[a->near].first <= count &&
        (a->near + 1 == high || count < a->chunks[a->near + 1].first)) /* whoever edits stays for a while */
        return a->near;
    while (high - low > 1) {
        size_t mid = (low + high) / 2;
        if (a->chunks[mid].first <= count)
            low = mid;
        else
            high = mid;
    }
    return a->near = low;
}

/* Index of the last entry whose count is not above, or -1. */
static int entry_for(const chunk *c, uint64_t count)
{
    uint32_t low = 0, high = c->n;
    if (high && c->count[high - 1] <= count)
        return (int)high - 1;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (c->count[mid] <= count)
            low = mid + 1;
        else
            high = mid;
    }
    return (int)low - 1;
}

/* The slot that holds an element, or NONE. */
static uint32_t slot_of(const nova_sequence *s, uint64_t id)
{
    if (nova_agent_of(id) >= s->agents_size)
        return NONE;
    agent *a = &s->agents[nova_agent_of(id)];
    if (!a->chunks_size)
        return NONE;
    const chunk *c = a->chunks[chunk_for(a, nova_count_of(id))].at;
    int i = entry_for(c, nova_count_of(id));
    if (i < 0 || id - s->spans[c->slot[i]].id >= s->spans[c->slot[i]].len)
        return NONE;
    return c->slot[i];
}

static int index_put(nova_sequence *s, uint64_t id, uint32_t slot)
{
    agent *a = &s->agents[nova_agent_of(id)];
    uint64_t count = nova_count_of(id);
    size_t k = a->chunks_size ? chunk_for(a, count) : 0;
    chunk *c = a->chunks_size ? a->chunks[k].at : NULL;
    if (!c || c->n == CHUNK) {
        chunk *fresh = malloc(sizeof *fresh);
        if (!fresh || GROW(a->chunks, a->chunks_size, a->chunks_room, 1)) {
            free(fresh);
            return NOVA_SEQUENCE_EMEMORY;
        }
        fresh->n = 0;
        if (!c) {
            a->chunks[a->chunks_size++] = (shelf){count, c = fresh};
        } else {
            uint32_t keep = count > c->count[CHUNK - 1] && k + 1 == a->chunks_size ? CHUNK : CHUNK / 2;
            fresh->n = CHUNK - keep;
            memcpy(fresh->slot, c->slot + keep, fresh->n * sizeof *c->slot);
            memcpy(fresh->count, c->count + keep, fresh->n * sizeof *c->count);
            c->n = keep;
            memmove(a->chunks + k + 2, a->chunks + k + 1, (a->chunks_size - k - 1) * sizeof *a->chunks);
            a->chunks[k + 1] = (shelf){fresh->n ? fresh->count[0] : count, fresh}, a->chunks_size++;
            if (count >= a->chunks[k + 1].first)
                c = fresh;
        }
    }
    uint32_t i = (uint32_t)(entry_for(c, count) + 1);
    memmove(c->slot + i + 1, c->slot + i, (c->n - i) * sizeof *c->slot);
    memmove(c->count + i + 1, c->count + i, (c->n - i) * sizeof *c->count);
    c->slot[i] = slot, c->count[i] = count, c->n++;
    a->chunks[k].first = a->chunks[k].at->count[0];
    return 0;
}

static void index_cut(nova_sequence *s, uint64_t id)
{
    agent *a = &s->agents[nova_agent_of(id)];
    size_t k = chunk_for(a, nova_count_of(id));
    chunk *c = a->chunks[k].at;
    uint32_t i = (uint32_t)entry_for(c, nova_count_of(id));
    memmove(c->slot + i, c->slot + i + 1, (c->n - i - 1) * sizeof *c->slot);
    memmove(c->count + i, c->count + i + 1, (c->n - i - 1) * sizeof *c->count);
    a->chunks[k].first = c->count[0];
    if (!--c->n) {
        free(c);
        memmove(a->chunks + k, a->chunks + k + 1, (a->chunks_size - k - 1) * sizeof *a->chunks);
        a->chunks_size--;
    }
}

/* --- spans --- */

static int new_span(nova_sequence *s, uint64_t id, uint64_t left, uint64_t right, uint32_t len, int gone, uint32_t *out)
{
    uint32_t slot = s->free_slot;
    if (slot != NONE) {
        s->free_slot = s->spans[slot].len;
    } else {
        if (s->spans_size >= NONE || GROW(s->spans, s->spans_size, s->spans_room, 1))
            return NOVA_SEQUENCE_EMEMORY;
        slot = (uint32_t)s->spans_size++;
    }
    s->spans[slot] = (span){id, left, right, len, NONE, (uint8_t)gone};
    s->live++;
    *out = slot;
    return index_put(s, id, slot);
}

/* Cut the span at *at, *index after `keep` elements; *at, *index become where the second part is. */
static int split(nova_sequence *s, uint32_t *at, uint32_t *index, uint32_t keep)
{
    uint32_t slot = s->leaves[*at].slot[*index], fresh;
    span a = s->spans[slot];
    if (new_span(s, a.id + keep, a.id + keep - 1, a.right, a.len - keep, a.gone, &fresh))
        return NOVA_SEQUENCE_EMEMORY;
    s->spans[slot].len = keep;
    ++*index;
    if (put_slot(s, at, index, fresh))
        return NOVA_SEQUENCE_EMEMORY;
    leaf *l = &s->leaves[*at];
    if (!a.gone)
        l->visible[*index - 1] = keep, l->visible[*index] = a.len - keep;
    return 0;
}

static int joins(const span *a, const span *b)
{
    return a->id + a->len == b->id && b->left == b->id - 1 && a->right == b->right && a->gone == b->gone &&
           (uint64_t)a->len + b->len < NONE;
}

/* The deleted span behind `index` in the same leaf becomes a part of that one, if they are one run. */
static void join_next(nova_sequence *s, uint32_t at, uint32_t index)
{
    leaf *l = &s->leaves[at];
    if (index + 1 >= l->n || l->visible[index] || l->visible[index + 1])
        return;
    uint32_t a = l->slot[index], b = l->slot[index + 1];
    if (!joins(&s->spans[a], &s->spans[b]))
        return;
    s->spans[a].len += s->spans[b].len;
    index_cut(s, s->spans[b].id);
    s->spans[b].leaf = NONE, s->spans[b].len = s->free_slot, s->free_slot = b;
    s->live--;
    l->n--;
    memmove(l->slot + index + 1, l->slot + index + 2, (l->n - index - 1) * sizeof *l->slot);
    memmove(l->visible + index + 1, l->visible + index + 2, (l->n - index - 1) * sizeof *l->visible);
    if (s->cursor && s->at == at && s->index > index)
        forget_cursor(s);
}

/* Move the beginning of a span: `by` elements leave the one before it, or join that. */
static void move_start(nova_sequence *s, uint32_t slot, int64_t by)
{
    span *p = &s->spans[slot];
    agent *a = &s->agents[nova_agent_of(p->id)];
    shelf *k = &a->chunks[chunk_for(a, nova_count_of(p->id))];
    int i = entry_for(k->at, nova_count_of(p->id));
    k->at->count[i] += (uint64_t)by, k->first = k->at->count[0];
    p->id += (uint64_t)by, p->left = p->id - 1, p->len -= (uint32_t)by;
}

/* Mark n elements of the span at *at, *index, from `offset` on, as deleted. */
static int kill(nova_sequence *s, uint32_t at, uint32_t index, uint32_t offset, uint32_t n)
{
    leaf *l = &s->leaves[at];
    span *here = &s->spans[l->slot[index]];
    /* Whoever deletes character by character moves the border between what is there and what is gone. */
    if (n < here->len) {
        int first = !offset && index && !l->visible[index - 1],
            last = offset + n == here->len && index + 1 < l->n && !l->visible[index + 1];
        here->gone = 1;
        if (first && joins(&s->spans[l->slot[index - 1]], here))
            s->spans[l->slot[index - 1]].len += n, move_start(s, l->slot[index], n);
        else if (last && joins(here, &s->spans[l->slot[index + 1]]))
            here->len -= n, move_start(s, l->slot[index + 1], -(int64_t)n);
        else
            first = last = 0;
        here->gone = 0;
        if (first || last) {
            l->visible[index] -= n;
            gain(s, at, -(int64_t)n);
            return 0;
        }
    }
    if (offset && split(s, &at, &index, offset))
        return NOVA_SEQUENCE_EMEMORY;
    uint32_t slot = s->leaves[at].slot[index];
    if (n < s->spans[slot].len) {
        uint32_t at2 = at, index2 = index;
        if (split(s, &at2, &index2, n))
            return NOVA_SEQUENCE_EMEMORY;
        at = at2, index = index2 - 1;
    }
    s->spans[slot].gone = 1;
    s->leaves[at].visible[index] = 0;
    gain(s, at, -(int64_t)n);
    join_next(s, at, index);
    if (index)
        join_next(s, at, index - 1);
    return 0;
}

/* Put a new run before index *index of leaf *at; at and index become where it is. */
static int put_span(nova_sequence *s, uint32_t *at, uint32_t *index, const nova_run *r)
{
    uint32_t slot;
    if (new_span(s, r->dot, r->left, r->right, r->len, r->flags, &slot) || put_slot(s, at, index, slot))
        return NOVA_SEQUENCE_EMEMORY;
    if (!r->flags) {
        s->leaves[*at].visible[*index] = r->len;
        gain(s, *at, r->len);
    }
    return 0;
}

/* Log deletions. Runs are the same however the events came: each event joins the last run if it can. */
static int log_removal(nova_sequence *s, uint32_t who, uint64_t target, uint32_t len, int descending)
{
    agent *a = &s->agents[who];
    a->removed += len;
    while (len) {
        removal *e = a->removals_size ? &a->removals[a->removals_size - 1] : NULL;
        uint64_t first = descending ? target + len - 1 : target;
        uint32_t taken = 1;
        if (e && e->count + e->len == a->count && e->len < NONE - len) {
            if ((e->len == 1 || !e->descending) && first == e->target + e->len) {
                taken = descending ? 1 : len;
                e->len += taken, e->descending = 0;
            } else if ((e->len == 1 || e->descending) && first + 1 == e->target) {
                taken = descending || len == 1 ? len : 1;
                e->target -= taken, e->len += taken, e->descending = 1;
            } else {
                e = NULL;
            }
        } else {
            e = NULL;
        }
        if (!e) {
            if (GROW(a->removals, a->removals_size, a->removals_room, 1))
                return NOVA_SEQUENCE_EMEMORY;
            taken = len;
            a->removals[a->removals_size++] = (removal){a->count, target, len, (uint8_t)(descending && len > 1)};
        }
        a->count += taken;
        if (!descending)
            target += taken;
        len -= taken;
    }
    return 0;
}

/* --- the face --- */

nova_sequence *nova_sequence_new(void)
{
    nova_sequence *s = calloc(1, sizeof *s);
    if (!s || GROW(s->leaves, 0, s->leaves_room, 1)) {
        free(s);
        return NULL;
    }
    memset(&s->leaves[0], 0, sizeof s->leaves[0]);
    s->leaves[0].parent = s->leaves[0].next = s->leaves[0].prev = NONE;
    s->leaves_size = 1, s->root_is_leaf = 1, s->free_slot = NONE, s->width = 1;
    return s;
}

void nova_sequence_free(nova_sequence *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->agents_size; i++) {
        for (size_t k = 0; k < s->agents[i].chunks_size; k++)
            free(s->agents[i].chunks[k].at);
        free(s->agents[i].chunks);
        free(s->agents[i].removals);
        free(s->agents[i].marks);
    }
    free(s->agents), free(s->spans), free(s->leaves), free(s->nodes), free(s->text);
    free(s);
}

int nova_sequence_broken(const nova_sequence *s)
{
    return s->broken;
}

int nova_sequence_add_agent(nova_sequence *s, uint64_t salt)
{
    if (s->agents_size >= NOVA_SEQUENCE_AGENTS_MAX)
        return NOVA_SEQUENCE_EAGENTS;
    if (GROW(s->agents, s->agents_size, s->agents_room, 1))
        return NOVA_SEQUENCE_EMEMORY;
    memset(&s->agents[s->agents_size], 0, sizeof(agent));
    s->agents[s->agents_size].salt = salt;
    return (int)s->agents_size++;
}

void nova_sequence_forget_agents(nova_sequence *s, uint32_t first)
{
    if (first < s->agents_size)
        s->agents_size = first;
}

void nova_sequence_rank(nova_sequence *s, uint32_t who, uint32_t rank)
{
    s->agents[who].rank = rank;
}

uint64_t nova_sequence_count(const nova_sequence *s, uint32_t who)
{
    return s->agents[who].count;
}

uint64_t nova_sequence_length(const nova_sequence *s)
{
    return s->length;
}

size_t nova_sequence_spans(const nova_sequence *s)
{
    return s->live;
}

size_t nova_sequence_memory(const nova_sequence *s)
{
    size_t out = sizeof *s + s->spans_room * sizeof *s->spans + s->leaves_room * sizeof *s->leaves +
                 s->nodes_room * sizeof *s->nodes + s->agents_room * sizeof *s->agents + s->room * s->width;
    for (size_t i = 0; i < s->agents_size; i++)
        out += s->agents[i].chunks_size * sizeof(chunk) + s->agents[i].chunks_room * sizeof(shelf) +
               s->agents[i].removals_room * sizeof(removal) + s->agents[i].marks_room * sizeof(mark);
    return out;
}

void nova_sequence_stand_for(nova_sequence *s, const uint64_t *hashes)
{
    s->hashes = hashes;
}

nova_digest nova_sequence_digest(const nova_sequence *s)
{
    return s->digest;
}

const void *nova_sequence_view(nova_sequence *s, unsigned *width)
{
    gap_to(s, s->length);
    *width = s->width;
    return s->text;
}

int nova_sequence_insert(nova_sequence *s, uint32_t who, uint64_t pos, const void *elements, unsigned width, uint64_t n)
{
    agent *a = &s->agents[who];
    nova_run run = {(uint64_t)who << NOVA_SEQUENCE_COUNT_BITS | a->count,
                    NOVA_SEQUENCE_ROOT,
                    NOVA_SEQUENCE_ROOT,
                    (uint32_t)n,
                    NOVA_RUN_INSERT,
                    0};
    uint32_t at = s->head, index = 0;
    if (!n)
        return 0;
    if (n > COUNT_MASK - a->count || n >= NONE)
        return NOVA_SEQUENCE_ECOUNT;
    if (text_room(s, n, text_limit(elements, width, n)))
        return NOVA_SEQUENCE_EMEMORY;
    if (pos == 0) {
        forget_cursor(s);
        if (s->leaves[at].n)
            run.right = s->spans[s->leaves[at].slot[0]].id;
    } else {
        uint32_t offset = seek(s, pos - 1);
        at = s->at, index = s->index;
        span *before = &s->spans[s->leaves[at].slot[index]];
        run.left = before->id + offset;
        if (offset + 1 < before->len) {
            run.right = run.left + 1;
            if (split(s, &at, &index, offset + 1))
                goto broken;
        } else {
            uint32_t next = next_slot(s, at, index++);
            run.right = next == NONE ? NOVA_SEQUENCE_ROOT : s->spans[next].id;
            if (run.left + 1 == run.dot && before->right == run.right && before->len < NONE - n) {
                before->len += run.len;
                s->leaves[at].visible[index - 1] += run.len;
                gain(s, at, run.len);
                goto done;
            }
        }
    }
    if (put_span(s, &at, &index, &run))
        goto broken;
    forget_cursor(s);
    s->cursor = 1, s->at = at, s->index = index, s->start = pos;
done:
    a->count += n;
    text_put(s, pos, elements, width, n);
    digest_elements(s, run.dot, pos, n, 0);
    return 0;
broken:
    s->broken = 1;
    return NOVA_SEQUENCE_EMEMORY;
}

int nova_sequence_delete(nova_sequence *s, uint32_t who, uint64_t pos, uint64_t n)
{
    if (n > COUNT_MASK - s->agents[who].count)
        return NOVA_SEQUENCE_ECOUNT;
    for (uint64_t left = n; left;) {
        uint32_t offset = seek(s, pos), at = s->at, index = s->index;
        const span *here = &s->spans[s->leaves[at].slot[index]];
        uint32_t k = here->len - offset < left ? here->len - offset : (uint32_t)left;
        uint64_t id = here->id + offset;
        digest_elements(s, id, pos, k, 1);
        text_cut(s, pos, k);
        if (kill(s, at, index, offset, k) || log_removal(s, who, id, k, 0)) {
            s->broken = 1;
            return NOVA_SEQUENCE_EMEMORY;
        }
        left -= k;
    }
    return 0;
}

void nova_sequence_renumber(nova_sequence *s, const uint32_t *fresh)
{
    gap_to(s, s->length);
    for (uint64_t i = 0; i < s->length; i++) {
        uint32_t value = fresh[text_at(s, i)];
        if (s->width == 1)
            s->text[i] = (uint8_t)value;
        else
            ((uint32_t *)(void *)s->text)[i] = value;
    }
}

/* --- exchange --- */

static int run_put(nova_runs *out, nova_run run)
{
    if (out->size && run.kind == NOVA_RUN_INSERT) {
        nova_run *last = &out->at[out->size - 1];
        if (last->kind == NOVA_RUN_INSERT && last->dot + last->len == run.dot && run.left == run.dot - 1 &&
            last->right == run.right && last->flags == run.flags && (uint64_t)last->len + run.len < NONE) {
            last->len += run.len;
            return 0;
        }
    }
    if (GROW(out->at, out->size, out->room, 1))
        return NOVA_SEQUENCE_EMEMORY;
    out->at[out->size++] = run;
    return 0;
}

/* The elements of a live span from `skip` on. */
static int copy_elements(nova_sequence *s, const span *p, uint32_t skip, nova_runs *out)
{
    uint64_t pos = visible_before(s, p->leaf, index_in_leaf(s, (uint32_t)(p - s->spans))) + skip;
    if (GROW(out->elements, out->elements_size, out->elements_room, p->len - skip))
        return NOVA_SEQUENCE_EMEMORY;
    for (uint32_t j = 0; j < p->len - skip; j++)
        out->elements[out->elements_size++] = text_at(s, pos + j);
    return 0;
}

/* The first mark of an agent from a count on. */
static size_t mark_for(const agent *a, uint64_t count)
{
    size_t low = 0, high = a->marks_size;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (a->marks[mid].count < count)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

int nova_sequence_since(nova_sequence *s, const uint64_t *known, const uint32_t *order, size_t n, int elements,
                        nova_runs *out)
{
    for (size_t place = 0; place < n; place++) {
        uint32_t who = order[place];
        agent *a = &s->agents[who];
        uint64_t from = known[who], base = (uint64_t)who << NOVA_SEQUENCE_COUNT_BITS;
        if (from >= a->count)
            continue;
        size_t low = 0, high = a->removals_size, k = a->chunks_size ? chunk_for(a, from) : 0, m = mark_for(a, from);
        while (low < high) { /* the first removal that ends beyond `from` */
            size_t mid = (low + high) / 2;
            if (a->removals[mid].count + a->removals[mid].len <= from)
                low = mid + 1;
            else
                high = mid;
        }
        uint32_t i = 0;
        if (a->chunks_size) {
            int e = entry_for(a->chunks[k].at, from);
            i = e < 0 ? 0 : (uint32_t)e;
        }
        for (uint64_t at = from; at < a->count;) {
            const span *p = NULL;
            while (k < a->chunks_size && !p) {
                if (i >= a->chunks[k].at->n)
                    k++, i = 0;
                else if (nova_count_of(s->spans[a->chunks[k].at->slot[i]].id) + s->spans[a->chunks[k].at->slot[i]].len <= at)
                    i++;
                else
                    p = &s->spans[a->chunks[k].at->slot[i]];
            }
            if (p && nova_count_of(p->id) <= at) {
                uint32_t skip = (uint32_t)(at - nova_count_of(p->id)), len = p->len - skip;
                nova_run run = {base | at, skip ? (base | at) - 1 : p->left, p->right, len, NOVA_RUN_INSERT, p->gone};
                if (run_put(out, run) || (elements && !p->gone && copy_elements(s, p, skip, out)))
                    return NOVA_SEQUENCE_EMEMORY;
                at += len;
            } else if (low < a->removals_size && a->removals[low].count <= at) {
                const removal *r = &a->removals[low++];
                uint32_t skip = (uint32_t)(at - r->count);
                nova_run run = {base | at,          r->descending ? r->target : r->target + skip,
                                NOVA_SEQUENCE_ROOT, r->len - skip,
                                NOVA_RUN_REMOVE,    r->len - skip > 1 ? r->descending : (uint8_t)0};
                if (run_put(out, run))
                    return NOVA_SEQUENCE_EMEMORY;
                at += run.len;
            } else {
                const mark *say = &a->marks[m++];
                nova_run run = {base | at, say->start, say->end, 1, NOVA_RUN_MARK, say->flags};
                if (GROW(out->marks, out->marks_size, out->marks_room, 1) || run_put(out, run))
                    return NOVA_SEQUENCE_EMEMORY;
                out->marks[out->marks_size++] = say->says;
                at++;
            }
        }
    }
    return 0;
}

typedef struct {
    const nova_sequence *s;
    const nova_runs *runs;
    size_t *first, *next, *end; /* of each agent: its runs, and how far they are in order */
    uint64_t *known, *stamp;    /* of each agent: events and highest stamp, as far as they are in order */
} plan;

/* Is every element of id .. id + len - 1 inserted by what is known so far? */
static int inserted(const plan *p, uint64_t id, uint64_t len)
{
    if (id == NOVA_SEQUENCE_ROOT)
        return 1;
    uint32_t who = nova_agent_of(id);
    if (who >= p->s->agents_size || nova_count_of(id) + len > p->known[who])
        return 0;
    while (len) {
        uint32_t slot = slot_of(p->s, id);
        uint64_t end;
        if (slot != NONE) {
            end = p->s->spans[slot].id + p->s->spans[slot].len;
        } else if (nova_count_of(id) < p->s->agents[who].count) { /* whatever the runs say that it was */
            return 0;
        } else {
            size_t low = p->first[who], high = p->end[who];
            while (low < high) { /* the first run that ends beyond id */
                size_t mid = (low + high) / 2;
                if (p->runs->at[mid].dot + p->runs->at[mid].len <= id)
                    low = mid + 1;
                else
                    high = mid;
            }
            if (low == p->end[who] || p->runs->at[low].kind != NOVA_RUN_INSERT || p->runs->at[low].dot > id)
                return 0;
            end = p->runs->at[low].dot + p->runs->at[low].len;
        }
        uint64_t step = end - id < len ? end - id : len;
        id += step, len -= step;
    }
    return 1;
}

/* The left origin of the element at an offset of a span. */
static uint64_t left_of(const span *p, uint64_t id)
{
    return id == p->id ? p->left : id - 1;
}

/* How the place of an element, or of the root, which stands before all, is to that of the element in slot b. */
static int compare_left(const nova_sequence *s, uint64_t a, uint32_t b, uint64_t idb)
{
    if (a == idb)
        return 0;
    if (a == NOVA_SEQUENCE_ROOT)
        return -1;
    return idb == NOVA_SEQUENCE_ROOT ? 1 : compare_places(s, slot_of(s, a), a, b, idb);
}

/* Insert a run where the tree of the paper has it. A node is the left child of its right origin if that one descends
 * from its left origin, else the right child of its left origin. In honest work, where the right origin is what stood
 * next to the left one, it descends from it just if the two have the same left origin as parent to the left, which is
 * what the origin `left` of every span here names. Made-up origins are given a place by the same rule, so that it does
 * not depend on what came first: a right origin that does not stand behind the left one counts as the end, and a left
 * one that is before the left origin of the right one counts as that. An element stands between its origins then, and
 * what descends from the left one can be told by left origins alone: the scan below passes over it. */
static int integrate(nova_sequence *s, nova_run *r, const uint32_t *elements)
{
    uint32_t cur, offset, left_slot, right_slot = r->right == NOVA_SEQUENCE_ROOT ? NONE : slot_of(s, r->right), at, index;
    for (int again = 1;;) {
        offset = 0, left_slot = NONE, cur = s->leaves[s->head].n ? s->leaves[s->head].slot[0] : NONE;
        if (r->left != NOVA_SEQUENCE_ROOT) {
            cur = left_slot = slot_of(s, r->left);
            offset = (uint32_t)(r->left - s->spans[cur].id) + 1;
            if (offset == s->spans[cur].len)
                cur = next_slot(s, s->spans[cur].leaf, index_in_leaf(s, cur)), offset = 0;
        }
        if (!again || right_slot == NONE || (cur == right_slot && s->spans[cur].id + offset == r->right))
            break;
        again = 0;
        if (left_slot != NONE && compare_places(s, left_slot, r->left, right_slot, r->right) >= 0) {
            r->right = NOVA_SEQUENCE_ROOT, right_slot = NONE;
            break;
        }
        uint64_t above = left_of(&s->spans[right_slot], r->right);
        if (compare_left(s, above, left_slot, r->left) <= 0)
            break;
        r->left = above;
    }
    uint32_t dest = cur, dest_offset = offset;
    for (int scanning = 0;;) {
        if (!scanning)
            dest = cur, dest_offset = offset;
        if (cur == NONE)
            break;
        const span *o = &s->spans[cur];
        uint64_t id = o->id + offset;
        if (id == r->right)
            break;
        int order = compare_left(s, left_of(o, id), left_slot, r->left);
        if (order < 0) /* the end of what descends from the left origin */
            break;
        if (order == 0) {
            if (o->right == r->right) {
                uint32_t mine = s->agents[nova_agent_of(r->dot)].rank, theirs = s->agents[nova_agent_of(id)].rank;
                if (mine < theirs || (mine == theirs && r->dot < id))
                    break;
                scanning = 0;
            } else if (o->right == NOVA_SEQUENCE_ROOT) {
                scanning = 0;
            } else if (r->right == NOVA_SEQUENCE_ROOT) {
                scanning = 1;
            } else {
                scanning = compare_places(s, slot_of(s, o->right), o->right, right_slot, r->right) < 0;
            }
        }
        cur = next_slot(s, o->leaf, index_in_leaf(s, cur)), offset = 0;
    }
    if (dest == NONE) {
        at = s->head;
        if (left_slot != NONE)
            at = s->spans[left_slot].leaf;
        while (s->leaves[at].next != NONE)
            at = s->leaves[at].next;
        index = s->leaves[at].n;
    } else {
        at = s->spans[dest].leaf, index = index_in_leaf(s, dest);
        if (dest_offset && split(s, &at, &index, dest_offset))
            return NOVA_SEQUENCE_EMEMORY;
    }
    uint64_t pos = r->flags || s->loading ? 0 : visible_before(s, at, index);
    if (index &&
        joins(&s->spans[s->leaves[at].slot[index - 1]], &(span){r->dot, r->left, r->right, r->len, NONE, r->flags})) {
        s->spans[s->leaves[at].slot[--index]].len += r->len;
        if (!r->flags) {
            s->leaves[at].visible[index] += r->len;
            gain(s, at, r->len);
        }
    } else if (put_span(s, &at, &index, r)) {
        return NOVA_SEQUENCE_EMEMORY;
    }
    forget_cursor(s);
    if (!r->flags && !s->loading) {
        text_put(s, pos, elements, 4, r->len);
        digest_elements(s, r->dot, pos, r->len, 0);
    }
    return 0;
}

static int remove_range(nova_sequence *s, uint64_t id, uint64_t len)
{
    while (len) {
        uint32_t slot = slot_of(s, id), offset = (uint32_t)(id - s->spans[slot].id);
        uint32_t rest = s->spans[slot].len - offset, k = rest < len ? rest : (uint32_t)len;
        if (!s->spans[slot].gone) {
            if (s->loading) /* a state says what is gone; this one says two things */
                return NOVA_SEQUENCE_EEVENTS;
            uint32_t at = s->spans[slot].leaf, index = index_in_leaf(s, slot);
            uint64_t pos = visible_before(s, at, index) + offset;
            digest_elements(s, id, pos, k, 1);
            text_cut(s, pos, k);
            forget_cursor(s);
            if (kill(s, at, index, offset, k))
                return NOVA_SEQUENCE_EMEMORY;
        }
        id += k, len -= k;
    }
    return 0;
}

/* How many events of a run are new. */
static uint64_t unknown(const nova_sequence *s, const nova_run *r)
{
    uint64_t known = s->agents[nova_agent_of(r->dot)].count, end = nova_count_of(r->dot) + r->len;
    return end <= known ? 0 : end - known < r->len ? end - known : r->len;
}

static int log_mark(nova_sequence *s, uint32_t who, const nova_run *r, const nova_mark *says)
{
    agent *a = &s->agents[who];
    if (GROW(a->marks, a->marks_size, a->marks_room, 1))
        return NOVA_SEQUENCE_EMEMORY;
    a->marks[a->marks_size++] = (mark){a->count, r->left, r->right, *says, r->flags};
    s->digest = nova_digest_add(s->digest, event_digest(a->salt, a->count, says->hash ^ says->stamp << 32));
    s->marks++, a->count++;
    if (says->stamp > s->stamp)
        s->stamp = says->stamp;
    return 0;
}

/* Does each run go on where the one before it ends, and is there an element for each live one? place[i] becomes where
 * the elements of an insertion, or what a mark says, are. */
static int check_runs(plan *p, uint64_t *place, uint64_t *fresh_marks)
{
    const nova_runs *runs = p->runs;
    uint64_t elements = 0, marks = 0;
    for (size_t i = 0; i < runs->size; i++) {
        const nova_run *r = &runs->at[i];
        uint32_t who = nova_agent_of(r->dot);
        if (who >= p->s->agents_size || !r->len || r->len > COUNT_MASK - nova_count_of(r->dot))
            return NOVA_SEQUENCE_EEVENTS;
        place[i] = r->kind == NOVA_RUN_MARK ? marks : elements;
        if (r->kind == NOVA_RUN_INSERT && !r->flags)
            elements += r->len;
        if (r->kind == NOVA_RUN_MARK) {
            if (r->len > 1 || ++marks > runs->marks_size)
                return NOVA_SEQUENCE_EEVENTS;
            *fresh_marks += nova_count_of(r->dot) >= p->known[who];
        }
        if (p->end[who] == 0) {
            p->first[who] = p->next[who] = i;
            if (nova_count_of(r->dot) > p->known[who])
                return NOVA_SEQUENCE_EGAP;
        } else if (p->end[who] != i || runs->at[i - 1].dot + runs->at[i - 1].len != r->dot) {
            return NOVA_SEQUENCE_EEVENTS;
        }
        p->end[who] = i + 1;
    }
    return (elements == runs->elements_size || p->s->loading) && marks == runs->marks_size ? 0 : NOVA_SEQUENCE_EEVENTS;
}

/* Can this run follow what is in order so far? 1, 0, or an error if it never can. */
static int follows(plan *p, const nova_run *r, const nova_mark *says, uint64_t marks)
{
    uint32_t who = nova_agent_of(r->dot);
    uint64_t skip = p->known[who] - nova_count_of(r->dot);
    if (r->kind == NOVA_RUN_REMOVE) {
        if (r->left == NOVA_SEQUENCE_ROOT)
            return NOVA_SEQUENCE_EEVENTS;
        return inserted(p, r->left, r->len);
    }
    if ((!skip && !inserted(p, r->left, 1)) || !inserted(p, r->right, 1))
        return 0;
    if (r->kind == NOVA_RUN_INSERT) /* what goes on a run that is none here never can */
        return !skip || slot_of(p->s, r->dot + skip - 1) != NONE ? 1 : NOVA_SEQUENCE_EEVENTS;
    /* An honest stamp is one above what its writer knew, so no stamp is above the number of marks. */
    if (says->stamp <= p->stamp[who] || says->stamp > marks)
        return NOVA_SEQUENCE_EEVENTS;
    p->stamp[who] = says->stamp;
    return 1;
}

/* An order in which each run finds what it names: indexes of the runs with news. Nothing is changed before it is found. */
static int find_order(plan *p, const uint64_t *place, uint64_t marks, size_t *order, size_t *fresh)
{
    size_t done = 0;
    for (int progress = 1; progress && done < p->runs->size;) {
        progress = 0;
        for (size_t who = 0; who < p->s->agents_size; who++)
            while (p->next[who] < p->end[who]) {
                const nova_run *r = &p->runs->at[p->next[who]];
                uint64_t end = nova_count_of(r->dot) + r->len;
                if (end > p->known[who]) {
                    const nova_mark *says = r->kind == NOVA_RUN_MARK ? &p->runs->marks[place[p->next[who]]] : NULL;
                    int can = follows(p, r, says, marks);
                    if (can < 0)
                        return can;
                    if (!can)
                        break;
                    p->known[who] = end;
                    order[(*fresh)++] = p->next[who];
                }
                p->next[who]++, done++, progress = 1;
            }
    }
    return done < p->runs->size ? NOVA_SEQUENCE_EEVENTS : 0;
}

/* Nobody deletes an element twice. A stranger who did would make each of a few bytes a pass over the whole text. */
static int check_removals(const plan *p, const size_t *order, size_t fresh)
{
    const nova_sequence *s = p->s;
    const nova_runs *runs = p->runs;
    uint64_t elements = 0;
    for (size_t i = 0; i < s->agents_size; i++)
        elements += s->agents[i].count - s->agents[i].removed - s->agents[i].marks_size;
    for (size_t i = 0; i < fresh; i++)
        if (runs->at[order[i]].kind == NOVA_RUN_INSERT)
            elements += unknown(s, &runs->at[order[i]]);
    for (size_t who = 0; who < s->agents_size; who++) {
        uint64_t removed = s->agents[who].removed;
        for (size_t i = p->first[who]; i < p->end[who]; i++)
            if (runs->at[i].kind == NOVA_RUN_REMOVE)
                removed += unknown(s, &runs->at[i]);
        if (removed > elements)
            return NOVA_SEQUENCE_EEVENTS;
    }
    return 0;
}

/* Take in a run whose turn it is. */
static int take_run(nova_sequence *s, nova_run r, const uint32_t *elements, const nova_mark *says)
{
    uint32_t who = nova_agent_of(r.dot), skip = (uint32_t)(s->agents[who].count - nova_count_of(r.dot));
    r.dot += skip, r.len -= skip;
    if (r.kind == NOVA_RUN_MARK)
        return log_mark(s, who, &r, says);
    if (r.kind == NOVA_RUN_REMOVE) {
        if (!r.flags)
            r.left += skip;
        int failed = remove_range(s, r.left, r.len);
        return failed ? failed : log_removal(s, who, r.left, r.len, r.flags);
    }
    if (skip)
        r.left = r.dot - 1, elements = elements ? elements + skip : NULL;
    if (integrate(s, &r, elements))
        return NOVA_SEQUENCE_EMEMORY;
    s->agents[who].count += r.len;
    return 0;
}

int nova_sequence_apply(nova_sequence *s, const nova_runs *runs)
{
    size_t agents = s->agents_size, n = runs->size, fresh = 0;
    uint64_t marks = s->marks, room = 0;
    int result = NOVA_SEQUENCE_EMEMORY;
    plan p = {s, runs, NULL, NULL, NULL, NULL, NULL};
    size_t *order = malloc((n + 1) * sizeof *order);
    uint64_t *place = malloc((n + 1) * sizeof *place);
    p.first = calloc(3 * agents + 1, sizeof *p.first);
    p.known = malloc((2 * agents + 1) * sizeof *p.known);
    if (!order || !place || !p.first || !p.known)
        goto end;
    p.next = p.first + agents, p.end = p.next + agents, p.stamp = p.known + agents;
    for (size_t i = 0; i < agents; i++) {
        const agent *a = &s->agents[i];
        p.known[i] = a->count;
        p.stamp[i] = a->marks_size ? a->marks[a->marks_size - 1].says.stamp : 0;
    }
    if ((result = check_runs(&p, place, &marks)) || (result = find_order(&p, place, marks, order, &fresh)) ||
        (result = check_removals(&p, order, fresh)))
        goto end;
    for (size_t i = 0; i < fresh; i++)
        if (runs->at[order[i]].kind == NOVA_RUN_INSERT && !runs->at[order[i]].flags)
            room += runs->at[order[i]].len;
    if (!s->loading && text_room(s, room, text_limit(runs->elements, 4, runs->elements_size))) {
        result = NOVA_SEQUENCE_EMEMORY;
        goto end;
    }
    forget_cursor(s);
    for (size_t i = 0; i < fresh && !result; i++) {
        const nova_run *r = &runs->at[order[i]];
        int marked = r->kind == NOVA_RUN_MARK, live = r->kind == NOVA_RUN_INSERT && !r->flags && !s->loading;
        result = take_run(s, *r, live ? &runs->elements[place[order[i]]] : NULL,
                          marked ? &runs->marks[place[order[i]]] : NULL);
    }
    s->broken |= result != 0;
end:
    free(order), free(place), free(p.first), free(p.known);
    return result;
}

static uint64_t total_of(nova_sequence *s)
{
    uint64_t out = 0;
    for (uint32_t at = s->head; at != NONE; at = s->leaves[at].next)
        out += s->leaves[at].sum;
    return out;
}

int nova_sequence_load(nova_sequence *s, const nova_runs *runs, const void *elements, unsigned width, uint64_t n)
{
    s->loading = 1;
    int code = nova_sequence_apply(s, runs);
    s->loading = 0;
    if (!code && total_of(s) != n)
        code = NOVA_SEQUENCE_EEVENTS;
    if (!code && text_room(s, n, text_limit(elements, width, n)))
        code = NOVA_SEQUENCE_EMEMORY;
    if (code) {
        s->broken = 1;
        return code;
    }
    if (n)
        text_put(s, 0, elements, width, n);
    uint64_t pos = 0;
    for (uint32_t at = s->head; at != NONE; at = s->leaves[at].next)
        for (uint32_t i = 0; i < s->leaves[at].n; pos += s->leaves[at].visible[i++])
            digest_elements(s, s->spans[s->leaves[at].slot[i]].id, pos, s->leaves[at].visible[i], 0);
    return 0;
}

/* --- marks --- */

/* The element that is visible at a position. */
static uint64_t id_at(nova_sequence *s, uint64_t pos)
{
    uint32_t offset = seek(s, pos);
    return s->spans[s->leaves[s->at].slot[s->index]].id + offset;
}

int nova_sequence_mark(nova_sequence *s, uint32_t who, uint64_t pos, uint64_t n, unsigned expand, uint32_t value,
                       uint64_t hash)
{
    nova_run run = {0, NOVA_SEQUENCE_ROOT, NOVA_SEQUENCE_ROOT, 1, NOVA_RUN_MARK, 0};
    nova_mark says = {s->stamp + 1, hash, value};
    if (s->agents[who].count == COUNT_MASK)
        return NOVA_SEQUENCE_ECOUNT;
    if (!(expand & NOVA_EXPAND_BEFORE))
        run.left = id_at(s, pos);
    else if (pos)
        run.left = id_at(s, pos - 1), run.flags |= NOVA_RUN_START_BEHIND;
    if (!(expand & NOVA_EXPAND_AFTER))
        run.right = id_at(s, pos + n - 1), run.flags |= NOVA_RUN_END_BEHIND;
    else if (pos + n < s->length)
        run.right = id_at(s, pos + n);
    return log_mark(s, who, &run, &says); /* fails before anything is changed */
}

size_t nova_sequence_marks(const nova_sequence *s)
{
    return (size_t)s->marks;
}

/* Where an element is, or would be, and one further if `behind`. */
static uint64_t edge(nova_sequence *s, uint64_t id, int behind)
{
    uint32_t slot = slot_of(s, id);
    const span *p = &s->spans[slot];
    uint64_t out = visible_before(s, p->leaf, index_in_leaf(s, slot));
    return p->gone ? out : out + (id - p->id) + (behind ? 1 : 0);
}

void nova_sequence_marked(nova_sequence *s, nova_marked *out)
{
    for (size_t who = 0; who < s->agents_size; who++) {
        const agent *a = &s->agents[who];
        for (size_t i = 0; i < a->marks_size; i++, out++) {
            const mark *m = &a->marks[i];
            out->start = m->start == NOVA_SEQUENCE_ROOT ? 0 : edge(s, m->start, m->flags & NOVA_RUN_START_BEHIND);
            out->end = m->end == NOVA_SEQUENCE_ROOT ? s->length : edge(s, m->end, m->flags & NOVA_RUN_END_BEHIND);
            out->stamp = m->says.stamp, out->rank = a->rank, out->value = m->says.value;
        }
    }
}

/* --- for tests --- */

#define HOLDS(fact)          \
    do {                     \
        if (!(fact))         \
            return __LINE__; \
    } while (0)

int nova_sequence_check(nova_sequence *s)
{
    uint64_t visible = 0, marks = 0;
    size_t live = 0, entries = 0;
    uint32_t last = NONE;
    nova_digest digest = {0, 0};
    settle(s);
    for (uint32_t at = s->head; at != NONE; last = at, at = s->leaves[at].next) {
        const leaf *l = &s->leaves[at];
        uint64_t sum = 0;
        HOLDS(l->prev == last && (l->n || s->root_is_leaf));
        for (uint32_t i = 0; i < l->n; i++, live++) {
            const span *p = &s->spans[l->slot[i]];
            HOLDS(p->leaf == at && p->len && l->visible[i] == (p->gone ? 0 : p->len));
            HOLDS(slot_of(s, p->id) == l->slot[i] && slot_of(s, p->id + p->len - 1) == l->slot[i]);
            HOLDS(nova_count_of(p->id) + p->len <= s->agents[nova_agent_of(p->id)].count);
            HOLDS(visible_before(s, at, i) == visible + sum);
            if (p->left != NOVA_SEQUENCE_ROOT)
                HOLDS(compare_places(s, slot_of(s, p->left), p->left, l->slot[i], p->id) < 0);
            if (p->right != NOVA_SEQUENCE_ROOT) {
                uint32_t next = slot_of(s, p->right);
                HOLDS(compare_places(s, next, p->right, l->slot[i], p->id) > 0);
                HOLDS(compare_left(s, left_of(&s->spans[next], p->right),
                                   p->left == NOVA_SEQUENCE_ROOT ? NONE : slot_of(s, p->left), p->left) <= 0);
            }
            for (uint32_t k = 0; k < l->visible[i]; k++) {
                uint32_t value = text_at(s, visible + sum + k);
                digest =
                    nova_digest_add(digest, event_digest(s->agents[nova_agent_of(p->id)].salt, nova_count_of(p->id) + k,
                                                         s->hashes ? s->hashes[value] : value));
            }
            sum += l->visible[i];
        }
        HOLDS(l->sum == sum);
        visible += sum;
    }
    HOLDS(visible == s->length && live == s->live);
    for (uint32_t who = 0; who < s->agents_size; who++) {
        const agent *a = &s->agents[who];
        uint64_t events = a->marks_size, removed = 0;
        for (size_t k = 0; k < a->chunks_size; k++)
            for (uint32_t i = 0; i < a->chunks[k].at->n; i++, entries++)
                events += s->spans[a->chunks[k].at->slot[i]].len;
        for (size_t i = 0; i < a->removals_size; i++)
            removed += a->removals[i].len;
        HOLDS(events + removed == a->count && removed == a->removed);
        for (size_t i = 0; i < a->marks_size; i++, marks++) {
            const nova_mark *says = &a->marks[i].says;
            HOLDS(says->stamp <= s->stamp && (!i || says->stamp > a->marks[i - 1].says.stamp));
            digest = nova_digest_add(digest, event_digest(a->salt, a->marks[i].count, says->hash ^ says->stamp << 32));
        }
    }
    HOLDS(entries == s->live);
    HOLDS(marks == s->marks);
    HOLDS(digest.lo == s->digest.lo && digest.hi == s->digest.hi);
    return 0;
}
