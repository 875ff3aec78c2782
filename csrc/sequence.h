/* csrc/sequence.h - a replicated text: runs of code points in one total order that all replicas agree on.
 *
 * The order is FugueMax (Weidner, Kleppmann 2023), which equals the order of Yjs with its one anomaly mended: each
 * element names its left origin (what stood before it when it was inserted) and its right origin (what stood behind
 * it). Runs that were typed one behind the other, or one before the other, never interleave.
 *
 * Every inserted and every deleted element is one event: a dot of 16 bits of agent (a number that is local to the
 * sequence; the owner keeps the names) above 48 bits of count, from 0. Runs of events are kept as one: a span is
 * consecutive elements of one agent that follow each other, a removal consecutive deletions of consecutive elements.
 * Spans stand in the leaves of a B-tree that counts what is visible; each agent has an index from count to span. The
 * visible elements stand in one gap buffer of 1 byte an element while all are below 256, of 4 bytes after that.
 *
 * A call that can fail returns a negative NOVA_SEQUENCE_E... After NOVA_SEQUENCE_EMEMORY from a call that changes the
 * sequence it is broken: only nova_sequence_free may follow. After any other error it is as it was. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "digest.h"

#define NOVA_SEQUENCE_ROOT UINT64_MAX /* the origin at either end */
#define NOVA_SEQUENCE_COUNT_BITS 48
#define NOVA_SEQUENCE_AGENTS_MAX 65535u

enum {
    NOVA_SEQUENCE_EMEMORY = -1,
    NOVA_SEQUENCE_ECOUNT = -2,  /* an agent's events would be more than 48 bits count */
    NOVA_SEQUENCE_EEVENTS = -3, /* events that name elements nobody inserted, or are in no possible order */
    NOVA_SEQUENCE_EAGENTS = -4, /* too many agents */
    NOVA_SEQUENCE_EBYTES = -5,  /* bytes that do not parse */
    NOVA_SEQUENCE_EGAP = -6,    /* events that begin beyond what is known */
};

typedef struct nova_sequence nova_sequence;

/* `len` events from `dot` on. An insertion of elements, deleted since if `gone`, between left and right: the second's
 * left origin is the first, and so on; the right origin is common. A removal deletes `len` elements from `left` on, in
 * descending order if `gone`. */
typedef struct {
    uint64_t dot, left, right;
    uint32_t len;
    uint8_t removal, gone;
} nova_sequence_run;

/* Runs in order of agent and count, and the elements of the live insertions, 4 bytes each. Zeros are an empty one. */
typedef struct {
    nova_sequence_run *at;
    size_t size, room;
    uint32_t *elements;
    size_t elements_size, elements_room;
} nova_sequence_runs;

void nova_sequence_runs_free(nova_sequence_runs *runs);

nova_sequence *nova_sequence_new(void);
void nova_sequence_free(nova_sequence *s);
int nova_sequence_broken(const nova_sequence *s);

/* A new agent's number, or an error. `salt` stands for its name in digests. */
int nova_sequence_add_agent(nova_sequence *s, uint64_t salt);
/* Forget the agents from number `first` on, none of which has events. */
void nova_sequence_forget_agents(nova_sequence *s, uint32_t first);
/* Where the agent's name stands among all names: it settles ties. To be set for all after one was added. */
void nova_sequence_rank(nova_sequence *s, uint32_t agent, uint32_t rank);
uint64_t nova_sequence_count(const nova_sequence *s, uint32_t agent);
uint64_t nova_sequence_length(const nova_sequence *s);
size_t nova_sequence_spans(const nova_sequence *s);
size_t nova_sequence_memory(const nova_sequence *s);

/* Insert n elements of `width` (1, 2 or 4) bytes before position pos <= length: n events of the agent. */
int nova_sequence_insert(nova_sequence *s, uint32_t agent, uint64_t pos, const void *elements, unsigned width,
                         uint64_t n);

/* Delete n elements from pos on, pos + n <= length: n events of the agent. */
int nova_sequence_delete(nova_sequence *s, uint32_t agent, uint64_t pos, uint64_t n);

/* The visible elements, in one piece: the gap moves to the end. Valid until the next change. */
const void *nova_sequence_view(nova_sequence *s, unsigned *width);

/* The events of order[0..n-1] from known[agent] on, agent by agent. */
int nova_sequence_since(nova_sequence *s, const uint64_t *known, const uint32_t *order, size_t n,
                        nova_sequence_runs *out);

/* Apply runs; events that are known are passed over. O(runs log size), more where many inserted at one place at once. */
int nova_sequence_apply(nova_sequence *s, const nova_sequence_runs *runs);

/* Sum of the digests of the visible elements. Kept up by every change. */
nova_digest nova_sequence_digest(const nova_sequence *s);

/* Runs as bytes (malloc'd into *out): rank[agent] is the agent's place on the wire. And back: agents are then places,
 * which have the events first[i] .. last[i] - 1. What is read has sound bounds, but may be no possible history. */
int nova_sequence_runs_write(const nova_sequence_runs *runs, const uint32_t *rank, uint8_t **out, size_t *size);
int nova_sequence_runs_read(const uint8_t *p, size_t n, const uint64_t *first, const uint64_t *last, size_t agents,
                            nova_sequence_runs *out);

/* Every invariant, O(n log n): 0, or the line of sequence.c that found one broken. For tests. */
int nova_sequence_check(nova_sequence *s);
