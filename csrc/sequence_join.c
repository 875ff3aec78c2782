/* csrc/sequence_join.c - what replicas tell each other: events since a context, and how they are taken in. */
#include "sequence_inner.h"

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
    uint64_t pos = nova_spans_visible_before(s, p->leaf, index_in_leaf(s, (uint32_t)(p - s->spans))) + skip;
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
        size_t low = 0, high = a->removals_size, k = a->chunks_size ? nova_spans_chunk_for(a, from) : 0,
               m = mark_for(a, from);
        while (low < high) { /* the first removal that ends beyond `from` */
            size_t mid = (low + high) / 2;
            if (a->removals[mid].count + a->removals[mid].len <= from)
                low = mid + 1;
            else
                high = mid;
        }
        uint32_t i = 0;
        if (a->chunks_size) {
            int e = nova_spans_entry_for(a->chunks[k].at, from);
            i = e < 0 ? 0 : (uint32_t)e;
        }
        for (uint64_t at = from; at < a->count;) {
            const span *p = NULL;
            while (k < a->chunks_size && !p) {
                if (i >= a->chunks[k].at->n)
                    k++, i = 0;
                else if (nova_count_of(s->spans[a->chunks[k].at->slot[i]].id) +
                             s->spans[a->chunks[k].at->slot[i]].len <=
                         at)
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
        uint32_t slot = nova_spans_slot_of(p->s, id);
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

/* Insert a run where the tree of the paper has it. A node is the left child of its right origin if that one descends
 * from its left origin, else the right child of its left origin. In honest work, where the right origin is what stood
 * next to the left one, it descends from it just if the two have the same left origin as parent to the left, which is
 * what the origin `left` of every span here names. Made-up origins are given a place by the same rule, so that it does
 * not depend on what came first: a right origin that does not stand behind the left one counts as the end, and a left
 * one that is before the left origin of the right one counts as that. An element stands between its origins then, and
 * what descends from the left one can be told by left origins alone: the scan below passes over it. */
static int integrate(nova_sequence *s, nova_run *r, const uint32_t *elements)
{
    uint32_t cur, offset, left_slot,
        right_slot = r->right == NOVA_SEQUENCE_ROOT ? NONE : nova_spans_slot_of(s, r->right), at, index;
    for (int again = 1;;) {
        offset = 0, left_slot = NONE, cur = s->leaves[s->head].n ? s->leaves[s->head].slot[0] : NONE;
        if (r->left != NOVA_SEQUENCE_ROOT) {
            cur = left_slot = nova_spans_slot_of(s, r->left);
            offset = (uint32_t)(r->left - s->spans[cur].id) + 1;
            if (offset == s->spans[cur].len)
                cur = next_slot(s, s->spans[cur].leaf, index_in_leaf(s, cur)), offset = 0;
        }
        if (!again || right_slot == NONE || (cur == right_slot && s->spans[cur].id + offset == r->right))
            break;
        again = 0;
        if (left_slot != NONE && nova_spans_compare(s, left_slot, r->left, right_slot, r->right) >= 0) {
            r->right = NOVA_SEQUENCE_ROOT, right_slot = NONE;
            break;
        }
        uint64_t above = left_of(&s->spans[right_slot], r->right);
        if (nova_spans_compare_left(s, above, left_slot, r->left) <= 0)
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
        int order = nova_spans_compare_left(s, left_of(o, id), left_slot, r->left);
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
                scanning = nova_spans_compare(s, nova_spans_slot_of(s, o->right), o->right, right_slot, r->right) < 0;
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
        if (dest_offset && nova_spans_split(s, &at, &index, dest_offset))
            return NOVA_SEQUENCE_EMEMORY;
    }
    uint64_t pos = r->flags || s->loading ? 0 : nova_spans_visible_before(s, at, index);
    if (index &&
        joins(&s->spans[s->leaves[at].slot[index - 1]], &(span){r->dot, r->left, r->right, r->len, NONE, r->flags})) {
        s->spans[s->leaves[at].slot[--index]].len += r->len;
        if (!r->flags) {
            s->leaves[at].visible[index] += r->len;
            nova_spans_gain(s, at, r->len);
        }
    } else if (nova_spans_put(s, &at, &index, r)) {
        return NOVA_SEQUENCE_EMEMORY;
    }
    nova_spans_forget_cursor(s);
    if (!r->flags && !s->loading) {
        nova_elements_put(s, pos, elements, 4, r->len);
        nova_elements_digest(s, r->dot, pos, r->len, 0);
    }
    return 0;
}

static int remove_range(nova_sequence *s, uint64_t id, uint64_t len)
{
    while (len) {
        uint32_t slot = nova_spans_slot_of(s, id), offset = (uint32_t)(id - s->spans[slot].id);
        uint32_t rest = s->spans[slot].len - offset, k = rest < len ? rest : (uint32_t)len;
        if (!s->spans[slot].gone) {
            if (s->loading) /* a state says what is gone; this one says two things */
                return NOVA_SEQUENCE_EEVENTS;
            uint32_t at = s->spans[slot].leaf, index = index_in_leaf(s, slot);
            uint64_t pos = nova_spans_visible_before(s, at, index) + offset;
            nova_elements_digest(s, id, pos, k, 1);
            nova_elements_cut(s, pos, k);
            nova_spans_forget_cursor(s);
            if (nova_spans_kill(s, at, index, offset, k))
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
        return !skip || nova_spans_slot_of(p->s, r->dot + skip - 1) != NONE ? 1 : NOVA_SEQUENCE_EEVENTS;
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
        return nova_sequence_log_mark(s, who, &r, says);
    if (r.kind == NOVA_RUN_REMOVE) {
        if (!r.flags)
            r.left += skip;
        int failed = remove_range(s, r.left, r.len);
        return failed ? failed : nova_sequence_log_removal(s, who, r.left, r.len, r.flags);
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
    if (!s->loading && nova_elements_reserve(s, room, nova_elements_limit(runs->elements, 4, runs->elements_size))) {
        result = NOVA_SEQUENCE_EMEMORY;
        goto end;
    }
    nova_spans_forget_cursor(s);
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
    if (!code && nova_elements_reserve(s, n, nova_elements_limit(elements, width, n)))
        code = NOVA_SEQUENCE_EMEMORY;
    if (code) {
        s->broken = 1;
        return code;
    }
    if (n)
        nova_elements_put(s, 0, elements, width, n);
    uint64_t pos = 0;
    for (uint32_t at = s->head; at != NONE; at = s->leaves[at].next)
        for (uint32_t i = 0; i < s->leaves[at].n; pos += s->leaves[at].visible[i++])
            nova_elements_digest(s, s->spans[s->leaves[at].slot[i]].id, pos, s->leaves[at].visible[i], 0);
    return 0;
}
