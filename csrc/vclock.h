/* csrc/vclock.h - order and merge vector clocks (Fidge 1988, Mattern 1989); sets of dots as spans.
 *
 * A clock is two columns of equal length: local actor ids, strictly ascending, and their counts, all > 0. An absent
 * actor counts 0. Columns rather than pairs, because two clocks mostly name the same actors, and then the order of
 * the counts alone decides, four at a time. Arguments are borrowed. Nothing here allocates or fails. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* Bit 0: b knows an event that a does not. Bit 1: a knows one that b does not. */
typedef enum { NOVA_EQUAL, NOVA_BEFORE, NOVA_AFTER, NOVA_CONCURRENT } nova_order;

typedef struct {
    const uint32_t *actors;
    const uint64_t *counts;
    size_t size;
} nova_clock;

/* How a stands to b. O(na + nb), less for a concurrent pair or if both have one column of actors. */
nova_order nova_vclock_compare(nova_clock a, nova_clock b);

/* The same of two columns of n counts of the same actors. Fastest where both are aligned to 64 bytes. */
nova_order nova_counts_compare(const uint64_t *a, const uint64_t *b, size_t n);

/* Least upper bound of a and b. The outputs have room for na + nb items; returns how many they got. */
size_t nova_vclock_merge(nova_clock a, nova_clock b, uint32_t *actors, uint64_t *counts);

/* Index of an actor in ids, or n if it is absent. O(log n). */
size_t nova_vclock_find(const uint32_t *ids, size_t n, uint32_t actor);

/* The events of one actor that are known: ascending spans first..last (both in), never touching each other. */
typedef struct {
    uint64_t first, last;
} nova_span;

/* Index of the first span whose last >= count; n if there is none. */
size_t nova_spans_seek(const nova_span *spans, size_t n, uint64_t count);

/* Union of a and b. out has room for na + nb spans; returns how many it got. */
size_t nova_spans_union(const nova_span *a, size_t na, const nova_span *b, size_t nb, nova_span *out);

/* a without b. out has room for na + nb spans; returns how many it got. */
size_t nova_spans_minus(const nova_span *a, size_t na, const nova_span *b, size_t nb, nova_span *out);

/* Whether all of b is in a. */
int nova_spans_cover(const nova_span *a, size_t na, const nova_span *b, size_t nb);
