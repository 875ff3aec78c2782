/* csrc/clockbatch.c */
#include "clockbatch.h"

#include <string.h>

#include "simd.h"
#include "vclock.h"

typedef uint16_t lanes2 __attribute__((vector_size(64)));
typedef uint32_t lanes4 __attribute__((vector_size(64)));
typedef uint64_t lanes8 __attribute__((vector_size(64)));
typedef int16_t truth2 __attribute__((vector_size(64)));
typedef int32_t truth4 __attribute__((vector_size(64)));
typedef int64_t truth8 __attribute__((vector_size(64)));

enum { COLUMNS_AT_ONCE = 4096 };

uint64_t nova_batch_get(const nova_clock_batch *b, size_t row, size_t column)
{
    size_t lanes = nova_batch_lanes(b->width);
    size_t at = (row / lanes * b->columns + column) * lanes + row % lanes;
    uint64_t rest = b->width == 2   ? ((uint16_t *)b->blocks)[at]
                    : b->width == 4 ? ((uint32_t *)b->blocks)[at]
                                    : ((uint64_t *)b->blocks)[at];
    return b->base[column] + rest;
}

void nova_batch_set(const nova_clock_batch *b, size_t row, size_t column, uint64_t count)
{
    size_t lanes = nova_batch_lanes(b->width);
    size_t at = (row / lanes * b->columns + column) * lanes + row % lanes;
    uint64_t rest = count - b->base[column];
    if (b->width == 2)
        ((uint16_t *)b->blocks)[at] = (uint16_t)rest;
    else if (b->width == 4)
        ((uint32_t *)b->blocks)[at] = (uint32_t)rest;
    else
        ((uint64_t *)b->blocks)[at] = rest;
}

/* One body a width: `WIDTH` bytes a count. The accumulators say which lanes are below and above. */
#define COMPARE_BODY(WIDTH)                                                                                           \
    static inline NOVA_INLINE void compare##WIDTH(const nova_clock_batch *b, size_t first, size_t last,               \
                                                  const uint32_t *columns, const uint64_t *rest, size_t n, int flags, \
                                                  int turned, int8_t *out)                                            \
    {                                                                                                                 \
        enum { LANES = 64 / WIDTH };                                                                                  \
        for (size_t row = first; row < last; row += LANES) {                                                          \
            const lanes##WIDTH *block = (const lanes##WIDTH *)b->blocks + row / LANES * b->columns;                   \
            truth##WIDTH below = {0}, above = {0};                                                                    \
            for (size_t i = 0; i < n; i++) {                                                                          \
                lanes##WIDTH counts = block[columns[i]];                                                              \
                lanes##WIDTH query = (lanes##WIDTH){0} + (count##WIDTH)rest[i];                                       \
                below |= counts < query;                                                                              \
                above |= counts > query;                                                                              \
            }                                                                                                         \
            truth##WIDTH order = turned ? (above & 1) | (below & 2) : (below & 1) | (above & 2);                      \
            order |= (truth##WIDTH){0} + (flag##WIDTH)flags;                                                          \
            size_t many = last - row < LANES ? last - row : LANES;                                                    \
            if (many == LANES)                                                                                        \
                for (size_t lane = 0; lane < LANES; lane++)                                                           \
                    out[row - first + lane] = (int8_t)order[lane];                                                    \
            else                                                                                                      \
                for (size_t lane = 0; lane < many; lane++)                                                            \
                    out[row - first + lane] = (int8_t)order[lane];                                                    \
        }                                                                                                             \
    }                                                                                                                 \
    static inline NOVA_INLINE void pairs##WIDTH(const nova_clock_batch *a, const nova_clock_batch *b, int8_t *out)    \
    {                                                                                                                 \
        enum { LANES = 64 / WIDTH };                                                                                  \
        for (size_t row = 0; row < a->rows; row += LANES) {                                                           \
            const lanes##WIDTH *x = (const lanes##WIDTH *)a->blocks + row / LANES * a->columns;                       \
            const lanes##WIDTH *y = (const lanes##WIDTH *)b->blocks + row / LANES * a->columns;                       \
            truth##WIDTH below = {0}, above = {0};                                                                    \
            for (size_t i = 0; i < a->columns; i++) {                                                                 \
                below |= x[i] < y[i];                                                                                 \
                above |= x[i] > y[i];                                                                                 \
            }                                                                                                         \
            truth##WIDTH order = (below & 1) | (above & 2);                                                           \
            for (size_t lane = 0; lane < LANES && row + lane < a->rows; lane++)                                       \
                out[row + lane] = (int8_t)order[lane];                                                                \
        }                                                                                                             \
    }                                                                                                                 \
    static inline NOVA_INLINE void join##WIDTH(const nova_clock_batch *a, const nova_clock_batch *b,                  \
                                               const nova_clock_batch *out)                                           \
    {                                                                                                                 \
        const lanes##WIDTH *x = (const lanes##WIDTH *)a->blocks, *y = (const lanes##WIDTH *)b->blocks;                \
        lanes##WIDTH *to = (lanes##WIDTH *)out->blocks;                                                               \
        size_t n = nova_batch_bytes(a->rows, a->columns, WIDTH) / 64;                                                 \
        for (size_t i = 0; i < n; i++) {                                                                              \
            truth##WIDTH mine = x[i] > y[i];                                                                          \
            to[i] = (x[i] & (lanes##WIDTH)mine) | (y[i] & ~(lanes##WIDTH)mine);                                       \
        }                                                                                                             \
    }                                                                                                                 \
    static inline NOVA_INLINE void fold##WIDTH(const nova_clock_batch *b, int least, uint64_t *out)                   \
    {                                                                                                                 \
        enum { LANES = 64 / WIDTH };                                                                                  \
        const lanes##WIDTH *blocks = (const lanes##WIDTH *)b->blocks;                                                 \
        size_t whole = b->rows / LANES;                                                                               \
        for (size_t i = 0; i < b->columns; i++) {                                                                     \
            lanes##WIDTH best = (lanes##WIDTH){0} + (count##WIDTH)(least ? -1 : 0);                                   \
            for (size_t k = 0; k < whole; k++) {                                                                      \
                lanes##WIDTH counts = blocks[k * b->columns + i];                                                     \
                truth##WIDTH take = least ? counts < best : counts > best;                                            \
                best = (counts & (lanes##WIDTH)take) | (best & ~(lanes##WIDTH)take);                                  \
            }                                                                                                         \
            count##WIDTH found = (count##WIDTH)(least ? -1 : 0);                                                      \
            for (size_t lane = 0; lane < LANES; lane++)                                                               \
                if (least ? best[lane] < found : best[lane] > found)                                                  \
                    found = best[lane];                                                                               \
            for (size_t lane = 0; lane < b->rows - whole * LANES; lane++) {                                           \
                count##WIDTH count = blocks[whole * b->columns + i][lane];                                            \
                if (least ? count < found : count > found)                                                            \
                    found = count;                                                                                    \
            }                                                                                                         \
            out[i] = b->base[i] + found;                                                                              \
        }                                                                                                             \
    }

typedef uint16_t count2;
typedef uint32_t count4;
typedef uint64_t count8;
typedef int16_t flag2;
typedef int32_t flag4;
typedef int64_t flag8;

COMPARE_BODY(2)
COMPARE_BODY(4)
COMPARE_BODY(8)

/* The same for each instruction set. */
#define FOR_TARGET(NAME, TARGET)                                                                                      \
    TARGET static void compare_##NAME(const nova_clock_batch *b, size_t first, size_t last, const uint32_t *columns,  \
                                      const uint64_t *rest, size_t n, int flags, int turned, int8_t *out)             \
    {                                                                                                                 \
        if (b->width == 2)                                                                                            \
            compare2(b, first, last, columns, rest, n, flags, turned, out);                                           \
        else if (b->width == 4)                                                                                       \
            compare4(b, first, last, columns, rest, n, flags, turned, out);                                           \
        else                                                                                                          \
            compare8(b, first, last, columns, rest, n, flags, turned, out);                                           \
    }                                                                                                                 \
    TARGET static void pairs_##NAME(const nova_clock_batch *a, const nova_clock_batch *b, int8_t *out)                \
    {                                                                                                                 \
        if (a->width == 2)                                                                                            \
            pairs2(a, b, out);                                                                                        \
        else if (a->width == 4)                                                                                       \
            pairs4(a, b, out);                                                                                        \
        else                                                                                                          \
            pairs8(a, b, out);                                                                                        \
    }                                                                                                                 \
    TARGET static void join_##NAME(const nova_clock_batch *a, const nova_clock_batch *b, const nova_clock_batch *out) \
    {                                                                                                                 \
        if (a->width == 2)                                                                                            \
            join2(a, b, out);                                                                                         \
        else if (a->width == 4)                                                                                       \
            join4(a, b, out);                                                                                         \
        else                                                                                                          \
            join8(a, b, out);                                                                                         \
    }                                                                                                                 \
    TARGET static void fold_##NAME(const nova_clock_batch *b, int least, uint64_t *out)                               \
    {                                                                                                                 \
        if (b->width == 2)                                                                                            \
            fold2(b, least, out);                                                                                     \
        else if (b->width == 4)                                                                                       \
            fold4(b, least, out);                                                                                     \
        else                                                                                                          \
            fold8(b, least, out);                                                                                     \
    }

FOR_TARGET(plain, )
FOR_TARGET(avx2, NOVA_TARGET_AVX2)
FOR_TARGET(avx512, NOVA_TARGET_AVX512)

void nova_batch_compare(const nova_clock_batch *b, size_t first, size_t last, const uint64_t *counts, int more,
                        int turned, int8_t *out)
{
    /* A column in which all rows are on one side of the clock says so for all of them and is not looked at. */
    uint32_t columns[COLUMNS_AT_ONCE];
    uint64_t rest[COLUMNS_AT_ONCE];
    uint64_t most = b->width == 8 ? UINT64_MAX : (1ull << 8 * b->width) - 1;
    int before = more, after = 0;
    size_t n = 0, column = 0;
    int begun = 0;
    do {
        for (n = 0; column < b->columns && n < COLUMNS_AT_ONCE; column++) {
            if (counts[column] < b->base[column])
                after = 1;
            else if (counts[column] - b->base[column] > most)
                before = 1;
            else
                columns[n] = (uint32_t)column, rest[n++] = counts[column] - b->base[column];
        }
        int flags = turned ? after | before << 1 : before | after << 1;
        if (flags == NOVA_CONCURRENT) {
            memset(out, NOVA_CONCURRENT, last - first);
            return;
        }
        int8_t piece[1024];
        for (size_t row = first; row < last; row += sizeof piece) {
            size_t end = last - row < sizeof piece ? last : row + sizeof piece;
            int8_t *to = begun ? piece : out + (row - first);
            if (nova_has_avx512())
                compare_avx512(b, row, end, columns, rest, n, flags, turned, to);
            else if (nova_has_avx2())
                compare_avx2(b, row, end, columns, rest, n, flags, turned, to);
            else
                compare_plain(b, row, end, columns, rest, n, flags, turned, to);
            for (size_t i = 0; begun && i < end - row; i++)
                out[row - first + i] |= piece[i];
        }
        begun = 1;
    } while (column < b->columns);
}

void nova_batch_compare_pairs(const nova_clock_batch *a, const nova_clock_batch *b, int8_t *out)
{
    if (nova_has_avx512())
        pairs_avx512(a, b, out);
    else if (nova_has_avx2())
        pairs_avx2(a, b, out);
    else
        pairs_plain(a, b, out);
}

void nova_batch_merge_pairs(const nova_clock_batch *a, const nova_clock_batch *b, const nova_clock_batch *out)
{
    if (nova_has_avx512())
        join_avx512(a, b, out);
    else if (nova_has_avx2())
        join_avx2(a, b, out);
    else
        join_plain(a, b, out);
}

void nova_batch_copy(const nova_clock_batch *from, const nova_clock_batch *to)
{
    for (size_t row = 0; row < from->rows; row++)
        for (size_t column = 0; column < from->columns; column++)
            nova_batch_set(to, row, column, nova_batch_get(from, row, column));
}

void nova_batch_fold(const nova_clock_batch *b, int least, uint64_t *out)
{
    if (nova_has_avx512())
        fold_avx512(b, least, out);
    else if (nova_has_avx2())
        fold_avx2(b, least, out);
    else
        fold_plain(b, least, out);
}
