/* csrc/sequence.h - a replicated text: runs of code points in one total order that all replicas agree on.
 *
 * The order is FugueMax (Weidner, Kleppmann 2023), which equals the order of Yjs with its one anomaly mended: each
 * element names its left origin (what stood before it when it was inserted) and its right origin (what stood behind
 * it). Runs that were typed one behind the other, or one before the other, never interleave.
 *
 * Events are kept as runs (csrc/runs.h); agents are numbers that are local to the sequence; the owner keeps the names. A
 * span is an inserted run: spans stand in the leaves of a B-tree that counts what is visible, and each agent has an index
 * from count to span and logs of its removals and marks. The visible elements stand in one gap buffer of 1 byte an
 * element while all are below 256, of 4 bytes after that.
 *
 * Marks give a name and a value to a range whose ends hold on to elements (Litt et al. 2022, "Peritext"); where several
 * of one name cover an element, the one with the highest stamp counts.
 *
 * A call that can fail returns a negative NOVA_SEQUENCE_E... After NOVA_SEQUENCE_EMEMORY from a call that changes the
 * sequence it is broken: only nova_sequence_free may follow. After any other error it is as it was. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "digest.h"
#include "runs.h"

typedef struct nova_sequence nova_sequence;

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

/* Elements are numbers for something whose hashes these are; borrowed until the next such call. */
void nova_sequence_stand_for(nova_sequence *s, const uint64_t *hashes);
/* Give each visible element another number, below the old one or equal to it: fresh[old]. */
void nova_sequence_renumber(nova_sequence *s, const uint32_t *fresh);

/* Mark n > 0 elements from pos on, pos + n <= length: one event of the agent. What is inserted at an end that expands
 * is marked, too. `value` and `hash` are the owner's for name and value. */
enum { NOVA_EXPAND_BEFORE = 1, NOVA_EXPAND_AFTER = 2 };
int nova_sequence_mark(nova_sequence *s, uint32_t agent, uint64_t pos, uint64_t n, unsigned expand, uint32_t value,
                       uint64_t hash);

/* What is marked now: from start up to, not including, end. Of two marks the later has the higher stamp, then rank. */
typedef struct {
    uint64_t start, end, stamp;
    uint32_t rank, value;
} nova_marked;

size_t nova_sequence_marks(const nova_sequence *s);
/* All marks, in no order; `out` has room for nova_sequence_marks of them. O(marks log size). */
void nova_sequence_marked(nova_sequence *s, nova_marked *out);

/* The events of order[0..n-1] from known[agent] on, agent by agent; without elements if so wished. */
int nova_sequence_since(nova_sequence *s, const uint64_t *known, const uint32_t *order, size_t n, int elements,
                        nova_runs *out);

/* Apply runs; events that are known are passed over. O(runs log size), more where many inserted at one place at once. */
int nova_sequence_apply(nova_sequence *s, const nova_runs *runs);

/* Apply all runs of a whole state, whose elements are not in them but here, in the order of the text, to an empty
 * sequence. After an error it is broken. */
int nova_sequence_load(nova_sequence *s, const nova_runs *runs, const void *elements, unsigned width, uint64_t n);

/* Sum of the digests of the visible elements and of the marks. Kept up by every change. */
nova_digest nova_sequence_digest(const nova_sequence *s);

/* Every invariant, O(n log n): 0, or the line of sequence.c that found one broken. For tests. */
int nova_sequence_check(nova_sequence *s);
