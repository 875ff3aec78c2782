/* csrc/sequence_inner.h - how a sequence lies in memory; for the files of sequence.h only.
 *
 * sequence.c       the face: edits, marks, logs
 * sequence_tree.c  the gap buffer of elements, the tree of spans, the index of each agent
 * sequence_join.c  events since a context, and how they are taken in */
#pragma once
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

static inline uint32_t element(const void *p, unsigned width, uint64_t i)
{
    return width == 1 ? ((const uint8_t *)p)[i] : width == 2 ? ((const uint16_t *)p)[i] : ((const uint32_t *)p)[i];
}

static inline uint32_t text_at(const nova_sequence *s, uint64_t pos)
{
    return element(s->text, s->width, pos < s->gap ? pos : pos + s->room - s->length);
}

static inline uint64_t fold(uint64_t x, uint64_t y)
{
    unsigned __int128 p = (unsigned __int128)x * y;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static inline nova_digest event_digest(uint64_t salt, uint64_t count, uint64_t value)
{
    uint64_t a = salt ^ (count + 1) * 0x9e3779b97f4a7c15u, b = value + 0x6a09e667f3bcc909u;
    a += fold(b ^ 0x3c6ef372fe94f82bu, a | 1);
    b += fold(a ^ 0xa54ff53a5f1d36f1u, 0x510e527fade682d1u);
    a += fold(b ^ 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu);
    return (nova_digest){a, b};
}

static inline uint32_t index_in_leaf(const nova_sequence *s, uint32_t slot)
{
    const leaf *l = &s->leaves[s->spans[slot].leaf];
    uint32_t i = 0;
    while (l->slot[i] != slot)
        i++;
    return i;
}

static inline uint32_t next_slot(const nova_sequence *s, uint32_t at, uint32_t index)
{
    const leaf *l = &s->leaves[at];
    if (index + 1 < l->n)
        return l->slot[index + 1];
    return l->next == NONE ? NONE : s->leaves[l->next].slot[0];
}

static inline int joins(const span *a, const span *b)
{
    return a->id + a->len == b->id && b->left == b->id - 1 && a->right == b->right && a->gone == b->gone &&
           (uint64_t)a->len + b->len < NONE;
}

/* The left origin of the element at an offset of a span. */
static inline uint64_t left_of(const span *p, uint64_t id)
{
    return id == p->id ? p->left : id - 1;
}

/* --- sequence_tree.c --- */

void nova_elements_gap_to(nova_sequence *s, uint64_t pos);
/* Make room for n elements, which are below `limit`. */
int nova_elements_reserve(nova_sequence *s, uint64_t n, uint32_t limit);
uint32_t nova_elements_limit(const void *p, unsigned width, uint64_t n);
void nova_elements_put(nova_sequence *s, uint64_t pos, const void *p, unsigned width, uint64_t n);
void nova_elements_cut(nova_sequence *s, uint64_t pos, uint64_t n);
/* The elements from `pos` on are those of `id` on: take them in (or out). */
void nova_elements_digest(nova_sequence *s, uint64_t id, uint64_t pos, uint64_t n, int out);
void nova_spans_settle(nova_sequence *s);
void nova_spans_gain(nova_sequence *s, uint32_t at, int64_t n);
void nova_spans_forget_cursor(nova_sequence *s);
uint64_t nova_spans_visible_before(nova_sequence *s, uint32_t at, uint32_t index);
/* Set the cursor on the span of the visible element at pos < length; returns its offset there. */
uint32_t nova_spans_seek(nova_sequence *s, uint64_t pos);
/* How the places of two elements stand, -1, 0 or 1. */
int nova_spans_compare(const nova_sequence *s, uint32_t a, uint64_t ida, uint32_t b, uint64_t idb);
/* How the place of an element, or of the root, which stands before all, is to that of the element in slot b. */
int nova_spans_compare_left(const nova_sequence *s, uint64_t a, uint32_t b, uint64_t idb);
size_t nova_spans_chunk_for(agent *a, uint64_t count);
/* Index of the last entry whose count is not above, or -1. */
int nova_spans_entry_for(const chunk *c, uint64_t count);
/* The slot that holds an element, or NONE. */
uint32_t nova_spans_slot_of(const nova_sequence *s, uint64_t id);
/* Cut the span at *at, *index after `keep` elements; *at, *index become where the second part is. */
int nova_spans_split(nova_sequence *s, uint32_t *at, uint32_t *index, uint32_t keep);
/* Mark n elements of the span at *at, *index, from `offset` on, as deleted. */
int nova_spans_kill(nova_sequence *s, uint32_t at, uint32_t index, uint32_t offset, uint32_t n);
/* Put a new run before index *index of leaf *at; at and index become where it is. */
int nova_spans_put(nova_sequence *s, uint32_t *at, uint32_t *index, const nova_run *r);

/* --- sequence.c --- */

/* Log deletions. Runs are the same however the events came: each event joins the last run if it can. */
int nova_sequence_log_removal(nova_sequence *s, uint32_t who, uint64_t target, uint32_t len, int descending);
int nova_sequence_log_mark(nova_sequence *s, uint32_t who, const nova_run *r, const nova_mark *says);
