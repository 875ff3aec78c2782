/* csrc/clockbatch.h - many vector clocks over the same actors, compared without a branch an actor.
 *
 * Counts lie in blocks of 64 bytes times actors: the counts of actor 0 of 8, 16 or 32 clocks, then those of actor 1, and
 * so on. One vector instruction therefore looks at one actor of a whole block, and no sum across lanes is ever needed.
 * A column holds count - base, base being the least count of its actor, in 16, 32 or 64 bits, whichever is enough for
 * all: clocks of one fleet are near each other, and a scan of many is bound by the memory that it reads.
 * Rows beyond the last one, which fill its block, are zeros. Nothing here allocates or fails. */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct {
    void *blocks;         /* 64-byte aligned */
    const uint64_t *base; /* per column */
    size_t rows, columns;
    unsigned width; /* bytes a count: 2, 4 or 8 */
} nova_clock_batch;

static inline size_t nova_batch_lanes(unsigned width)
{
    return 64 / width;
}

/* Bytes that the blocks of so many rows take. */
static inline size_t nova_batch_bytes(size_t rows, size_t columns, unsigned width)
{
    size_t lanes = nova_batch_lanes(width);
    return (rows + lanes - 1) / lanes * 64 * columns;
}

/* Count of one row and column. */
uint64_t nova_batch_get(const nova_clock_batch *b, size_t row, size_t column);
/* Set it; count - base must fit the width. */
void nova_batch_set(const nova_clock_batch *b, size_t row, size_t column, uint64_t count);

/* How each of rows first..last-1 stands to one clock, as nova_order in a byte each; first is a multiple of the lanes.
 * `counts` is the clock's count per column; `more` says that it also knows actors that no row knows. With `turned` set
 * the answer is how the clock stands to the row. */
void nova_batch_compare(const nova_clock_batch *b, size_t first, size_t last, const uint64_t *counts, int more,
                        int turned, int8_t *out);

/* How each row of a stands to the same row of b; both have the same rows, columns, width and bases. */
void nova_batch_compare_pairs(const nova_clock_batch *a, const nova_clock_batch *b, int8_t *out);

/* The least clock that covers both, row by row; all three have the same rows, columns, width and bases. */
void nova_batch_merge_pairs(const nova_clock_batch *a, const nova_clock_batch *b, const nova_clock_batch *out);

/* Copy counts to a batch of as many rows and columns with other bases or another width, which all counts fit. */
void nova_batch_copy(const nova_clock_batch *from, const nova_clock_batch *to);

/* Greatest, or with `least` the least, count per column. rows > 0. */
void nova_batch_fold(const nova_clock_batch *b, int least, uint64_t *out);
