/* csrc/sequence_tree.c - where the elements and the spans of a sequence lie. */
#include "sequence_inner.h"

/* --- the visible elements --- */

void nova_elements_gap_to(nova_sequence *s, uint64_t pos)
{
    uint64_t w = s->width, hole = s->room - s->length;
    if (pos < s->gap)
        memmove(s->text + (pos + hole) * w, s->text + pos * w, (s->gap - pos) * w);
    else if (pos > s->gap)
        memmove(s->text + s->gap * w, s->text + (s->gap + hole) * w, (pos - s->gap) * w);
    s->gap = pos;
}

int nova_elements_reserve(nova_sequence *s, uint64_t n, uint32_t limit)
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

uint32_t nova_elements_limit(const void *p, unsigned width, uint64_t n)
{
    uint32_t all = 0;
    if (width > 1)
        for (uint64_t i = 0; i < n; i++)
            all |= element(p, width, i);
    return all < 256 ? 256 : UINT32_MAX;
}

void nova_elements_put(nova_sequence *s, uint64_t pos, const void *p, unsigned width, uint64_t n)
{
    nova_elements_gap_to(s, pos);
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

void nova_elements_cut(nova_sequence *s, uint64_t pos, uint64_t n)
{
    nova_elements_gap_to(s, pos);
    s->length -= n; /* what stood behind the gap joins it */
}

/* --- digests: of the visible elements and their ids, and of marks --- */

void nova_elements_digest(nova_sequence *s, uint64_t id, uint64_t pos, uint64_t n, int out)
{
    uint64_t salt = s->agents[nova_agent_of(id)].salt, count = nova_count_of(id);
    for (uint64_t i = 0; i < n; i++) {
        uint32_t value = text_at(s, pos + i);
        nova_digest d = event_digest(salt, count + i, s->hashes ? s->hashes[value] : value);
        s->digest = out ? nova_digest_sub(s->digest, d) : nova_digest_add(s->digest, d);
    }
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

void nova_spans_settle(nova_sequence *s)
{
    if (s->pending) {
        climb(s, s->at, s->pending);
        s->pending = 0;
    }
}

void nova_spans_gain(nova_sequence *s, uint32_t at, int64_t n)
{
    s->leaves[at].sum += (uint64_t)n;
    if (s->cursor && s->at == at)
        s->pending += n;
    else
        climb(s, at, n);
}

void nova_spans_forget_cursor(nova_sequence *s)
{
    nova_spans_settle(s);
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
        nova_spans_forget_cursor(s);
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
        nova_spans_forget_cursor(s);
    return 0;
}

uint64_t nova_spans_visible_before(nova_sequence *s, uint32_t at, uint32_t index)
{
    uint64_t out = 0;
    nova_spans_settle(s);
    for (uint32_t i = 0; i < index; i++)
        out += s->leaves[at].visible[i];
    for (uint32_t kid = at, up = s->leaves[at].parent; up != NONE; kid = up, up = s->nodes[up].parent) {
        const node *p = &s->nodes[up];
        for (uint32_t i = 0; p->kid[i] != kid; i++)
            out += p->sum[i];
    }
    return out;
}

uint32_t nova_spans_seek(nova_sequence *s, uint64_t pos)
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
    nova_spans_forget_cursor(s);
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

int nova_spans_compare(const nova_sequence *s, uint32_t a, uint64_t ida, uint32_t b, uint64_t idb)
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

int nova_spans_compare_left(const nova_sequence *s, uint64_t a, uint32_t b, uint64_t idb)
{
    if (a == idb)
        return 0;
    if (a == NOVA_SEQUENCE_ROOT)
        return -1;
    return idb == NOVA_SEQUENCE_ROOT ? 1 : nova_spans_compare(s, nova_spans_slot_of(s, a), a, b, idb);
}

/* --- the index of an agent --- */

size_t nova_spans_chunk_for(agent *a, uint64_t count)
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

int nova_spans_entry_for(const chunk *c, uint64_t count)
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

uint32_t nova_spans_slot_of(const nova_sequence *s, uint64_t id)
{
    if (nova_agent_of(id) >= s->agents_size)
        return NONE;
    agent *a = &s->agents[nova_agent_of(id)];
    if (!a->chunks_size)
        return NONE;
    const chunk *c = a->chunks[nova_spans_chunk_for(a, nova_count_of(id))].at;
    int i = nova_spans_entry_for(c, nova_count_of(id));
    if (i < 0 || id - s->spans[c->slot[i]].id >= s->spans[c->slot[i]].len)
        return NONE;
    return c->slot[i];
}

static int index_put(nova_sequence *s, uint64_t id, uint32_t slot)
{
    agent *a = &s->agents[nova_agent_of(id)];
    uint64_t count = nova_count_of(id);
    size_t k = a->chunks_size ? nova_spans_chunk_for(a, count) : 0;
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
    uint32_t i = (uint32_t)(nova_spans_entry_for(c, count) + 1);
    memmove(c->slot + i + 1, c->slot + i, (c->n - i) * sizeof *c->slot);
    memmove(c->count + i + 1, c->count + i, (c->n - i) * sizeof *c->count);
    c->slot[i] = slot, c->count[i] = count, c->n++;
    a->chunks[k].first = a->chunks[k].at->count[0];
    return 0;
}

static void index_cut(nova_sequence *s, uint64_t id)
{
    agent *a = &s->agents[nova_agent_of(id)];
    size_t k = nova_spans_chunk_for(a, nova_count_of(id));
    chunk *c = a->chunks[k].at;
    uint32_t i = (uint32_t)nova_spans_entry_for(c, nova_count_of(id));
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

int nova_spans_split(nova_sequence *s, uint32_t *at, uint32_t *index, uint32_t keep)
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
        nova_spans_forget_cursor(s);
}

/* Move the beginning of a span: `by` elements leave the one before it, or join that. */
static void move_start(nova_sequence *s, uint32_t slot, int64_t by)
{
    span *p = &s->spans[slot];
    agent *a = &s->agents[nova_agent_of(p->id)];
    shelf *k = &a->chunks[nova_spans_chunk_for(a, nova_count_of(p->id))];
    int i = nova_spans_entry_for(k->at, nova_count_of(p->id));
    k->at->count[i] += (uint64_t)by, k->first = k->at->count[0];
    p->id += (uint64_t)by, p->left = p->id - 1, p->len -= (uint32_t)by;
}

int nova_spans_kill(nova_sequence *s, uint32_t at, uint32_t index, uint32_t offset, uint32_t n)
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
            nova_spans_gain(s, at, -(int64_t)n);
            return 0;
        }
    }
    if (offset && nova_spans_split(s, &at, &index, offset))
        return NOVA_SEQUENCE_EMEMORY;
    uint32_t slot = s->leaves[at].slot[index];
    if (n < s->spans[slot].len) {
        uint32_t at2 = at, index2 = index;
        if (nova_spans_split(s, &at2, &index2, n))
            return NOVA_SEQUENCE_EMEMORY;
        at = at2, index = index2 - 1;
    }
    s->spans[slot].gone = 1;
    s->leaves[at].visible[index] = 0;
    nova_spans_gain(s, at, -(int64_t)n);
    join_next(s, at, index);
    if (index)
        join_next(s, at, index - 1);
    return 0;
}

int nova_spans_put(nova_sequence *s, uint32_t *at, uint32_t *index, const nova_run *r)
{
    uint32_t slot;
    if (new_span(s, r->dot, r->left, r->right, r->len, r->flags, &slot) || put_slot(s, at, index, slot))
        return NOVA_SEQUENCE_EMEMORY;
    if (!r->flags) {
        s->leaves[*at].visible[*index] = r->len;
        nova_spans_gain(s, *at, r->len);
    }
    return 0;
}
