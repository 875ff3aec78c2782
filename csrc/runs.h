/* csrc/runs.h - the events of a replicated sequence as runs, and runs as bytes.
 *
 * Every inserted and every deleted element, and every mark, is one event: a dot of 16 bits of agent above 48 bits of
 * count, from 0. Consecutive events of one kind are kept as one run, so a document costs by its edits, not by its
 * length.
 *
 * On the wire runs are columns: what each is and how long, what it stands behind, what it stands before. Counts are
 * differences to the one that the same agent had last in that column. Most right origins are not written at all: a run
 * that was typed into another stands before what followed its left origin there, and one typed at the end of another of
 * its agent has the same right origin. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define NOVA_SEQUENCE_ROOT UINT64_MAX /* the origin at either end */
#define NOVA_SEQUENCE_COUNT_BITS 48
#define NOVA_SEQUENCE_COUNT_MASK ((1ull << NOVA_SEQUENCE_COUNT_BITS) - 1)
#define NOVA_SEQUENCE_AGENTS_MAX 32767u

enum {
    NOVA_SEQUENCE_EMEMORY = -1,
    NOVA_SEQUENCE_ECOUNT = -2,  /* an agent's events would be more than 48 bits count */
    NOVA_SEQUENCE_EEVENTS = -3, /* events that name elements nobody inserted, or are in no possible order */
    NOVA_SEQUENCE_EAGENTS = -4, /* too many agents */
    NOVA_SEQUENCE_EBYTES = -5,  /* bytes that do not parse */
    NOVA_SEQUENCE_EGAP = -6,    /* events that begin beyond what is known */
};

enum { NOVA_RUN_INSERT, NOVA_RUN_REMOVE, NOVA_RUN_MARK };

enum {
    NOVA_RUN_GONE = 1,         /* an insertion: its elements were deleted since */
    NOVA_RUN_DESCENDING = 1,   /* a removal: the last element goes first */
    NOVA_RUN_START_BEHIND = 1, /* a mark: it starts behind its left element, not before it */
    NOVA_RUN_END_BEHIND = 2,   /* a mark: it ends behind its right element, not before it */
};

/* `len` events from `dot` on. An insertion stands between left and right: the second's left origin is the first, and so
 * on; the right origin is common. A removal deletes `len` elements from `left` on. A mark is one event, from left to
 * right. */
typedef struct {
    uint64_t dot, left, right;
    uint32_t len;
    uint8_t kind, flags;
} nova_run;

/* What a mark says: a number that its owner gave to name and value, their hash, and when it was made: above all stamps
 * that its writer knew (Lamport 1978). */
typedef struct {
    uint64_t stamp, hash;
    uint32_t value;
} nova_mark;

/* Runs in order of agent and count; the elements of the live insertions, 4 bytes each; and what the runs that are marks
 * say. Zeros are an empty one. */
typedef struct {
    nova_run *at;
    size_t size, room;
    uint32_t *elements;
    size_t elements_size, elements_room;
    nova_mark *marks;
    size_t marks_size, marks_room;
} nova_runs;

static inline uint32_t nova_agent_of(uint64_t id)
{
    return (uint32_t)(id >> NOVA_SEQUENCE_COUNT_BITS);
}

static inline uint64_t nova_count_of(uint64_t id)
{
    return id & NOVA_SEQUENCE_COUNT_MASK;
}

/* Make room for `more` items of `each` bytes; the room doubles. */
int nova_runs_grow(void **at, size_t size, size_t *room, size_t each, size_t more);

void nova_runs_free(nova_runs *runs);

/* Each agent gets another number, agents[agent]. */
void nova_runs_rename(nova_runs *runs, const uint32_t *agents);

/* Runs and marks, without elements, as bytes (malloc'd into *out): rank[agent] is an agent's place on the wire, of
 * `agents` places. */
int nova_runs_write(const nova_runs *runs, const uint32_t *rank, size_t agents, uint8_t **out, size_t *size);

/* And back, all n bytes: agents are places, which have the events first[i] .. last[i] - 1. Every number is within its
 * bounds, but it may be no possible history. */
int nova_runs_read(const uint8_t *p, size_t n, const uint64_t *first, const uint64_t *last, size_t agents,
                   nova_runs *out);
