/* csrc/sequence.c - the face: edits, marks, and what is logged of them. */
#include "sequence_inner.h"

int nova_sequence_log_removal(nova_sequence *s, uint32_t who, uint64_t target, uint32_t len, int descending)
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

int nova_sequence_log_mark(nova_sequence *s, uint32_t who, const nova_run *r, const nova_mark *says)
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
    nova_elements_gap_to(s, s->length);
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
    if (nova_elements_reserve(s, n, nova_elements_limit(elements, width, n)))
        return NOVA_SEQUENCE_EMEMORY;
    if (pos == 0) {
        nova_spans_forget_cursor(s);
        if (s->leaves[at].n)
            run.right = s->spans[s->leaves[at].slot[0]].id;
    } else {
        uint32_t offset = nova_spans_seek(s, pos - 1);
        at = s->at, index = s->index;
        span *before = &s->spans[s->leaves[at].slot[index]];
        run.left = before->id + offset;
        if (offset + 1 < before->len) {
            run.right = run.left + 1;
            if (nova_spans_split(s, &at, &index, offset + 1))
                goto broken;
        } else {
            uint32_t next = next_slot(s, at, index++);
            run.right = next == NONE ? NOVA_SEQUENCE_ROOT : s->spans[next].id;
            if (run.left + 1 == run.dot && before->right == run.right && before->len < NONE - n) {
                before->len += run.len;
                s->leaves[at].visible[index - 1] += run.len;
                nova_spans_gain(s, at, run.len);
                goto done;
            }
        }
    }
    if (nova_spans_put(s, &at, &index, &run))
        goto broken;
    nova_spans_forget_cursor(s);
    s->cursor = 1, s->at = at, s->index = index, s->start = pos;
done:
    a->count += n;
    nova_elements_put(s, pos, elements, width, n);
    nova_elements_digest(s, run.dot, pos, n, 0);
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
        uint32_t offset = nova_spans_seek(s, pos), at = s->at, index = s->index;
        const span *here = &s->spans[s->leaves[at].slot[index]];
        uint32_t k = here->len - offset < left ? here->len - offset : (uint32_t)left;
        uint64_t id = here->id + offset;
        nova_elements_digest(s, id, pos, k, 1);
        nova_elements_cut(s, pos, k);
        if (nova_spans_kill(s, at, index, offset, k) || nova_sequence_log_removal(s, who, id, k, 0)) {
            s->broken = 1;
            return NOVA_SEQUENCE_EMEMORY;
        }
        left -= k;
    }
    return 0;
}

void nova_sequence_renumber(nova_sequence *s, const uint32_t *fresh)
{
    nova_elements_gap_to(s, s->length);
    for (uint64_t i = 0; i < s->length; i++) {
        uint32_t value = fresh[text_at(s, i)];
        if (s->width == 1)
            s->text[i] = (uint8_t)value;
        else
            ((uint32_t *)(void *)s->text)[i] = value;
    }
}

/* --- marks --- */

/* The element that is visible at a position. */
static uint64_t id_at(nova_sequence *s, uint64_t pos)
{
    uint32_t offset = nova_spans_seek(s, pos);
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
    return nova_sequence_log_mark(s, who, &run, &says); /* fails before anything is changed */
}

size_t nova_sequence_marks(const nova_sequence *s)
{
    return (size_t)s->marks;
}

/* Where an element is, or would be, and one further if `behind`. */
static uint64_t edge(nova_sequence *s, uint64_t id, int behind)
{
    uint32_t slot = nova_spans_slot_of(s, id);
    const span *p = &s->spans[slot];
    uint64_t out = nova_spans_visible_before(s, p->leaf, index_in_leaf(s, slot));
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
    nova_spans_settle(s);
    for (uint32_t at = s->head; at != NONE; last = at, at = s->leaves[at].next) {
        const leaf *l = &s->leaves[at];
        uint64_t sum = 0;
        HOLDS(l->prev == last && (l->n || s->root_is_leaf));
        for (uint32_t i = 0; i < l->n; i++, live++) {
            const span *p = &s->spans[l->slot[i]];
            HOLDS(p->leaf == at && p->len && l->visible[i] == (p->gone ? 0 : p->len));
            HOLDS(nova_spans_slot_of(s, p->id) == l->slot[i] &&
                  nova_spans_slot_of(s, p->id + p->len - 1) == l->slot[i]);
            HOLDS(nova_count_of(p->id) + p->len <= s->agents[nova_agent_of(p->id)].count);
            HOLDS(nova_spans_visible_before(s, at, i) == visible + sum);
            if (p->left != NOVA_SEQUENCE_ROOT)
                HOLDS(nova_spans_compare(s, nova_spans_slot_of(s, p->left), p->left, l->slot[i], p->id) < 0);
            if (p->right != NOVA_SEQUENCE_ROOT) {
                uint32_t next = nova_spans_slot_of(s, p->right);
                HOLDS(nova_spans_compare(s, next, p->right, l->slot[i], p->id) > 0);
                HOLDS(nova_spans_compare_left(s, left_of(&s->spans[next], p->right),
                                              p->left == NOVA_SEQUENCE_ROOT ? NONE : nova_spans_slot_of(s, p->left),
                                              p->left) <= 0);
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
