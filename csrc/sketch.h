/* csrc/sketch.h - what differs between two sets of 64-bit ids, from bytes in proportion to the difference.
 *
 * Two summaries, each maintained per write and each linear: summaries of two sets, combined, summarize their symmetric
 * difference, whatever the sets have in common.
 *
 * The sketch is the odd power sums of the ids in GF(2^64) = GF(2)[x] / (x^64 + x^4 + x^3 + x + 1), as in PinSketch (Dodis,
 * Ostrovsky, Reyzin, Smith 2008): 8 bytes a difference, the least that there can be. Berlekamp and Massey find the
 * polynomial whose roots are the ids; Berlekamp's trace algorithm splits it. Decoding is quadratic, so it is kept small.
 *
 * Cells are a rateless invertible Bloom lookup table (Yang, Gilad, Alizadeh 2024): any prefix of the cells is a table, so
 * the sender goes on until the receiver has enough. Block b covers cells 2^(b-1) .. 2^b - 1. A quarter of the ids is in
 * one cell of each quarter of a block; of the others each is in one cell of a block, three times of four. Such mixed
 * degrees need fewer cells than equal ones (bench_reconcile.py tells how many). All by integers: machines agree. A
 * quarter of a block is chosen from by 16 bits, which is why there are not more than NOVA_CELLS_MAX cells. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { NOVA_SKETCH_WORDS = 10, NOVA_CELL_WIRE = 13, NOVA_CELLS_MAX = 1 << 19 };

/* Put an id, which is not 0, in or take it out: the same. */
void nova_sketch_toggle(uint64_t words[NOVA_SKETCH_WORDS], uint64_t id);

/* The ids of a sketch, at most NOVA_SKETCH_WORDS; returns how many, or -1 if there are more (or it is no sketch). */
int nova_sketch_decode(const uint64_t words[NOVA_SKETCH_WORDS], uint64_t ids[NOVA_SKETCH_WORDS]);

/* The ids that are in it xored, their check sums xored, and how many they are (on one side minus on the other). */
typedef struct {
    uint64_t ids;
    uint32_t checks;
    uint32_t count; /* wraps; on the wire its low 8 bits */
} nova_cell;

/* Put an id in the first n cells (weight 1) or take it out (-1). */
void nova_cells_toggle(nova_cell *cells, size_t n, uint64_t seed, uint64_t id, uint32_t weight);

/* Take the cells apart, destroying them. The ids of weight 1 fill `out` from its front, those of weight -1 from its end;
 * it has room for n, as has `stack`. Of counts the low 8 bits are looked at. 1: nothing is left; 0: more cells are needed.
 * O(n log n), whatever the bytes. */
int nova_cells_decode(nova_cell *cells, size_t n, uint64_t seed, uint32_t *stack, uint64_t *out, size_t *plus,
                      size_t *minus);
