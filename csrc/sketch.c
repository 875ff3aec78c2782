/* csrc/sketch.c */
#include "sketch.h"

#include <string.h>

#include "simd.h"

enum { T = NOVA_SKETCH_WORDS };

/* --- GF(2^64) ------------------------------------------------------------------------------------------------------ */

typedef struct {
    uint64_t lo, hi;
} wide;

/* x^64 = x^4 + x^3 + x + 1, so the upper half comes back as four shifted copies, and what they push out once more. */
static inline NOVA_INLINE uint64_t reduce(wide p)
{
    uint64_t over = p.hi >> 63 ^ p.hi >> 61 ^ p.hi >> 60;
    p.hi ^= over;
    return p.lo ^ p.hi ^ p.hi << 1 ^ p.hi << 3 ^ p.hi << 4;
}

static inline NOVA_INLINE wide times_plain(uint64_t a, uint64_t b)
{
    wide table[16] = {{0, 0}, {a, 0}}, p = {0, 0}; /* four bits of b at a time */
    for (unsigned i = 2; i < 16; i += 2) {
        table[i].hi = table[i / 2].hi << 1 | table[i / 2].lo >> 63;
        table[i].lo = table[i / 2].lo << 1;
        table[i + 1].hi = table[i].hi;
        table[i + 1].lo = table[i].lo ^ a;
    }
    for (int shift = 60; shift >= 0; shift -= 4) {
        wide part = table[b >> shift & 15];
        p.hi = (p.hi << 4 | p.lo >> 60) ^ part.hi;
        p.lo = p.lo << 4 ^ part.lo;
    }
    return p;
}

#ifdef NOVA_HAS_INTRINSICS
NOVA_TARGET_CLMUL static inline NOVA_INLINE wide times_clmul(uint64_t a, uint64_t b)
{
    __m128i p = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)a), _mm_cvtsi64_si128((long long)b), 0);
    wide out = {(uint64_t)_mm_cvtsi128_si64(p), (uint64_t)_mm_extract_epi64(p, 1)};
    return out;
}
#else
#define times_clmul times_plain
#endif

#define TIMES(a, b) reduce(times((a), (b)))
typedef wide (*product)(uint64_t, uint64_t);

/* Bodies take the product as an argument that each caller fixes, so it is inlined. */
static inline NOVA_INLINE void toggle(product times, uint64_t words[T], uint64_t x)
{
    uint64_t x2 = TIMES(x, x), x4 = TIMES(x2, x2), x8 = TIMES(x4, x4);
    uint64_t power[4] = {x, TIMES(x2, x), TIMES(x4, x), 0};
    power[3] = TIMES(x4, power[1]);
    for (unsigned i = 0; i < T; i++) { /* four chains, so that no product waits for the one before it */
        words[i] ^= power[i & 3];
        power[i & 3] = TIMES(power[i & 3], x8);
    }
}

/* a^(2^64 - 2): the inverse of a != 0. */
static inline NOVA_INLINE uint64_t inverse(product times, uint64_t a)
{
    uint64_t run = a, power = a; /* run = a^(2^k - 1); 63 = 2 (2 (2 (2 (2 + 1) + 1) + 1) + 1) + 1 */
    for (unsigned k = 1; k < 63; k = 2 * k + 1) {
        power = run;
        for (unsigned i = 0; i < k; i++)
            power = TIMES(power, power);
        run = TIMES(power, run);
        run = TIMES(TIMES(run, run), a);
    }
    return TIMES(run, run);
}

/* Polynomials: coefficients from the lowest; the degree beside them. */

/* a mod b, both destroyed but for scale: returns the degree of what is left in a, -1 for nothing. b[db] != 0. */
static inline NOVA_INLINE int remainder_of(product times, uint64_t *a, int da, const uint64_t *b, int db)
{
    for (; da >= db; da--) {
        uint64_t top = a[da];
        if (!top)
            continue;
        for (int i = 0; i < da; i++)
            a[i] = TIMES(a[i], b[db]);
        for (int i = 0; i < db; i++)
            a[da - db + i] ^= TIMES(top, b[i]);
        a[da] = 0;
    }
    while (da >= 0 && !a[da])
        da--;
    return da;
}

/* Greatest common divisor, monic, into out; returns its degree. b is not 0. */
static inline NOVA_INLINE int divisor(product times, const uint64_t *a, int da, const uint64_t *b, int db,
                                      uint64_t *out)
{
    uint64_t x[T + 1] = {0}, y[T + 1] = {0};
    uint64_t *p = x, *q = y;
    memcpy(x, a, (size_t)(da + 1) * sizeof *x);
    memcpy(y, b, (size_t)(db + 1) * sizeof *y);
    while (db >= 0) {
        int rest = remainder_of(times, p, da, q, db);
        uint64_t *swap = p;
        p = q, q = swap;
        da = db, db = rest;
    }
    uint64_t scale = inverse(times, p[da]);
    for (int i = 0; i < da; i++)
        out[i] = TIMES(p[i], scale);
    out[da] = 1;
    return da;
}

/* a / b for monic b that divides monic a. */
static inline NOVA_INLINE void quotient(product times, const uint64_t *a, int da, const uint64_t *b, int db,
                                        uint64_t *out)
{
    uint64_t rest[T + 1];
    memcpy(rest, a, (size_t)(da + 1) * sizeof *rest);
    for (int k = da - db; k >= 0; k--) {
        out[k] = rest[k + db];
        for (int i = 0; i < db; i++)
            rest[k + i] ^= TIMES(out[k], b[i]);
    }
}

/* The roots of a monic polynomial of degree n > 0, or -1 if it has not n of them, all different. */
static inline NOVA_INLINE int roots(product times, const uint64_t *f, int n, uint64_t *out)
{
    uint64_t even[T][T];   /* x^(2i) mod f */
    uint64_t power[64][T]; /* x^(2^i) mod f */
    uint64_t parts[T][T + 1];
    int degrees[T], count = 1, done = 0;
    if (n == 1) {
        out[0] = f[0];
        return 1;
    }
    uint64_t at[T] = {1};
    for (int i = 0; i < 2 * n - 1; i++) { /* at = x^i mod f */
        if (i % 2 == 0)
            memcpy(even[i / 2], at, sizeof at);
        uint64_t top = at[n - 1];
        for (int k = n - 1; k > 0; k--)
            at[k] = at[k - 1] ^ TIMES(top, f[k]);
        at[0] = TIMES(top, f[0]);
    }
    memset(power, 0, sizeof power);
    power[0][1] = 1;
    for (int i = 0; i < 64; i++) {
        uint64_t next[T] = {0};
        for (int k = 0; k < n; k++) {
            uint64_t square = TIMES(power[i][k], power[i][k]);
            if (2 * k < n) {
                next[2 * k] ^= square;
            } else {
                for (int j = 0; j < n; j++)
                    next[j] ^= TIMES(square, even[k][j]);
            }
        }
        if (i < 63) {
            memcpy(power[i + 1], next, sizeof next);
            continue;
        }
        /* x^(2^64) = x mod f exactly if all roots are in the field and differ. */
        next[1] ^= 1;
        for (int k = 0; k < n; k++)
            if (next[k])
                return -1;
    }
    memcpy(parts[0], f, (size_t)(n + 1) * sizeof *f);
    degrees[0] = n;
    /* Two roots differ in the trace of at least one element of a basis times them. */
    for (int bit = 0; bit < 64 && count < n; bit++) {
        uint64_t trace[T] = {0}, factor = 1ull << bit;
        for (int i = 0; i < 64; i++) {
            for (int k = 0; k < n; k++)
                trace[k] ^= TIMES(factor, power[i][k]);
            factor = TIMES(factor, factor);
        }
        for (int part = 0, parts_now = count; part < parts_now; part++) {
            if (degrees[part] == 1)
                continue;
            uint64_t rest[T + 1] = {0}, common[T + 1], other[T + 1];
            int high = n - 1;
            memcpy(rest, trace, sizeof trace);
            while (high >= 0 && !rest[high])
                high--;
            high = remainder_of(times, rest, high, parts[part], degrees[part]);
            if (high < 0)
                continue;
            int degree = divisor(times, parts[part], degrees[part], rest, high, common);
            if (degree == 0 || degree == degrees[part])
                continue;
            quotient(times, parts[part], degrees[part], common, degree, other);
            memcpy(parts[count], other, sizeof other);
            degrees[count++] = degrees[part] - degree;
            memcpy(parts[part], common, sizeof common);
            degrees[part] = degree;
        }
    }
    for (int part = 0; part < count; part++)
        if (degrees[part] == 1)
            out[done++] = parts[part][0];
    return done == n ? n : -1;
}

static inline NOVA_INLINE int decode(product times, const uint64_t words[T], uint64_t ids[T])
{
    uint64_t
        sums[2 * T]; /* sums[i]: of the (i + 1)-th powers; in characteristic 2 those of 2k are squares of those of k */
    uint64_t now[T + 2] = {1}, before[T + 2] = {1}, keep[T + 2];
    int length = 0, since = 1;
    uint64_t last = 1;
    int any = 0;
    for (int i = 0; i < 2 * T; i++) {
        sums[i] = i % 2 ? TIMES(sums[i / 2], sums[i / 2]) : words[i / 2];
        any |= sums[i] != 0;
    }
    if (!any)
        return 0;
    /* Berlekamp and Massey: the shortest recurrence that the sums follow. */
    for (int i = 0; i < 2 * T; i++) {
        uint64_t wrong = sums[i];
        for (int k = 1; k <= length && k <= i; k++)
            wrong ^= TIMES(now[k], sums[i - k]);
        if (!wrong) {
            since++;
            continue;
        }
        uint64_t scale = TIMES(wrong, inverse(times, last));
        memcpy(keep, now, sizeof keep);
        for (int k = 0; k + since <= T + 1; k++)
            now[k + since] ^= TIMES(scale, before[k]);
        if (2 * length <= i) {
            length = i + 1 - length;
            memcpy(before, keep, sizeof before);
            last = wrong;
            since = 1;
        } else {
            since++;
        }
        if (length > T)
            return -1;
    }
    uint64_t f[T + 1] = {0}; /* reversed, so that the ids themselves are the roots */
    for (int k = 0; k <= length; k++)
        f[length - k] = now[k];
    if (!f[0])
        return -1; /* an id is not 0 */
    return roots(times, f, length, ids);
}

NOVA_TARGET_CLMUL static void toggle_clmul(uint64_t words[T], uint64_t id)
{
    toggle(times_clmul, words, id);
}

NOVA_TARGET_CLMUL static int decode_clmul(const uint64_t words[T], uint64_t ids[T])
{
    return decode(times_clmul, words, ids);
}

void nova_sketch_toggle(uint64_t words[T], uint64_t id)
{
    if (nova_has_clmul())
        toggle_clmul(words, id);
    else
        toggle(times_plain, words, id);
}

int nova_sketch_decode(const uint64_t words[T], uint64_t ids[T])
{
    return nova_has_clmul() ? decode_clmul(words, ids) : decode(times_plain, words, ids);
}

/* --- cells --------------------------------------------------------------------------------------------------------- */

static inline uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u; /* an odd constant of even density, two rounds and a fold */
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

static inline uint32_t check_of(uint64_t hash)
{
    return (uint32_t)(mix(hash ^ 0xa54ff53a5f1d36f1u) >> 32);
}

#define STEP 0x9e3779b97f4a7c15u

static inline int is_in_many(uint64_t hash)
{
    return (hash & 255) < 64;
}

static inline int is_in_block(uint64_t r)
{
    return (r & 255) < 192;
}

/* Nearly 2^u - 1 of the upper half u, so that the front of a block is as dense as a prefix needs it. */
static inline uint64_t cell_in_block(uint64_t size, uint64_t r)
{
    uint64_t u = r >> 32;
    u = (u * (2813203578u + (1481763717u * u >> 32))) >> 32;
    return size * u >> 32;
}

/* Every cell below n of the id with this hash. */
#define FOR_CELLS(hash, n, cell, body)                                                                \
    do {                                                                                              \
        int in_many = is_in_many(hash);                                                               \
        uint64_t step_ = (hash);                                                                      \
        size_t cell = 0;                                                                              \
        body;                                                                                         \
        for (uint64_t size_ = 1; size_ < (n); size_ *= 2) {                                           \
            uint64_t r_ = mix(step_ += STEP);                                                         \
            if (in_many && size_ <= 4) {                                                              \
                for (cell = size_; cell < 2 * size_ && cell < (n); cell++)                            \
                    body;                                                                             \
            } else if (in_many) {                                                                     \
                for (unsigned q_ = 0; q_ < 4; q_++) {                                                 \
                    cell = size_ + q_ * (size_ / 4) + ((size_ / 4 * (r_ >> 16 * q_ & 0xffff)) >> 16); \
                    if (cell < (n))                                                                   \
                        body;                                                                         \
                }                                                                                     \
            } else if (is_in_block(r_)) {                                                             \
                cell = size_ + cell_in_block(size_, r_);                                              \
                if (cell < (n))                                                                       \
                    body;                                                                             \
            }                                                                                         \
        }                                                                                             \
    } while (0)

static inline void toggle_cell(nova_cell *cell, uint64_t id, uint32_t check, uint32_t weight)
{
    cell->ids ^= id;
    cell->checks ^= check;
    cell->count += weight;
}

void nova_cells_toggle(nova_cell *cells, size_t n, uint64_t seed, uint64_t id, uint32_t weight)
{
    uint64_t hash = mix(id ^ mix(seed + 0x6a09e667f3bcc909u)), step = hash;
    uint32_t check = check_of(hash);
    if (!n)
        return;
    if (is_in_many(hash)) {
        FOR_CELLS(hash, n, cell, toggle_cell(&cells[cell], id, check, weight));
        return;
    }
    toggle_cell(&cells[0], id, check, weight);
    for (uint64_t size = 1; size < n; size *= 2) { /* whether it is in a block is chance: computed, not guessed */
        uint64_t r = mix(step += STEP), cell = size + cell_in_block(size, r),
                 in = -(uint64_t)(is_in_block(r) && cell < n);
        toggle_cell(&cells[cell & in], id & in, check & (uint32_t)in, weight & (uint32_t)in);
    }
}

/* While cells are taken apart, bit 8 of a count says that the cell waits on the stack. */
enum { COUNT = 255, WAITS = 256 };

/* 1 or -1 if exactly one id is in the cell, which a check sum vouches for, else 0. */
static inline int alone(const nova_cell *cell, uint64_t salt, uint64_t *hash)
{
    unsigned count = cell->count & COUNT;
    if ((count != 1 && count != COUNT) || !cell->ids)
        return 0;
    *hash = mix(cell->ids ^ salt);
    return check_of(*hash) == cell->checks ? (count == 1 ? 1 : -1) : 0;
}

int nova_cells_decode(nova_cell *cells, size_t n, uint64_t seed, uint32_t *stack, uint64_t *out, size_t *plus,
                      size_t *minus)
{
    uint64_t salt = mix(seed + 0x6a09e667f3bcc909u), hash;
    size_t depth = 0;
    *plus = *minus = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned count = cells[i].count & COUNT;
        cells[i].count = count;
        if (count == 1 || count == COUNT) {
            cells[i].count |= WAITS;
            stack[depth++] = (uint32_t)i;
        }
    }
    while (depth) {
        nova_cell *top = &cells[stack[--depth]];
        top->count &= COUNT;
        int side = alone(top, salt, &hash);
        if (!side)
            continue;
        if (*plus + *minus == n)
            return 0; /* more ids than cells: nobody's set */
        uint64_t id = top->ids;
        uint32_t check = top->checks;
        if (side > 0)
            out[(*plus)++] = id;
        else
            out[n - ++*minus] = id;
        FOR_CELLS(hash, n, cell, {
            unsigned left = (cells[cell].count - (unsigned)side) & COUNT;
            unsigned waits = cells[cell].count & WAITS;
            cells[cell].ids ^= id;
            cells[cell].checks ^= check;
            if ((left == 1 || left == COUNT) && !waits) {
                waits = WAITS;
                stack[depth++] = (uint32_t)cell;
            }
            cells[cell].count = left | waits;
        });
    }
    for (size_t i = 0; i < n; i++)
        if (cells[i].ids || cells[i].checks || cells[i].count)
            return 0;
    return 1;
}
