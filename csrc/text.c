#include "text.h"

#include <string.h>

#define COST_MIN 256
#define OCCURRENCES_MAX 1024
#define WINDOW 100
#define FAR ((int64_t)1 << 60)

typedef struct {
    int64_t a0, a1, b0, b1;
    int exact; /* search to the end, whatever it costs */
} box;

typedef struct {
    const uint32_t *a, *b;
    int64_t *forward, *backward; /* the furthest row of each diagonal; diagonal 0 is in the middle */
    int64_t cost_max;
} search;

/* A power of two near the square root of n, from above. */
static int64_t rough_root(size_t n)
{
    int64_t root = 1;
    for (; n > 0; n >>= 2)
        root <<= 1;
    return root;
}

static size_t rounded(size_t bytes)
{
    return (bytes + 15) & ~(size_t)15;
}

size_t nova_text_scratch_bytes(size_t na, size_t nb, size_t distinct)
{
    size_t n = na + nb;
    return rounded(distinct * 4) + rounded(n) + 2 * rounded(n * 4) + 2 * rounded((n + 8) * 8) + (n + 4) * sizeof(box);
}

static void *carve(uint8_t **at, size_t bytes)
{
    void *out = *at;
    *at += rounded(bytes);
    return out;
}

/* Whether a frequent element stands in a run of which more than three quarters have no partner at all. */
static int drowned(const uint8_t *weight, int64_t at, int64_t n)
{
    int64_t lone = 0, frequent = 0;
    for (int step = -1; step <= 1; step += 2) {
        int64_t here = 0, i = at + step;
        int64_t end = step < 0 ? (at - WINDOW > 0 ? at - WINDOW : 0) - 1 : (at + WINDOW < n ? at + WINDOW + 1 : n);
        for (; i != end && weight[i] != 1; i += step) {
            if (weight[i] == 0)
                here++;
            else
                frequent++;
        }
        if (here == 0)
            return 0;
        lone += here;
    }
    return (frequent + 2) * 4 < frequent + 2 + lone;
}

/* Which elements of a[start, end) take part in the search, into kept; the others are flagged. Returns how many. */
static size_t candidates(const uint32_t *a, size_t na, const uint32_t *b, size_t nb, size_t start, size_t end,
                         uint32_t *counts, size_t distinct, uint8_t *weight, uint32_t *kept, uint8_t *gone)
{
    size_t n = 0;
    int64_t often = rough_root(na);
    if (often > OCCURRENCES_MAX)
        often = OCCURRENCES_MAX;
    memset(counts, 0, distinct * sizeof *counts);
    for (size_t j = 0; j < nb; j++)
        counts[b[j]]++;
    for (size_t i = start; i < end; i++) {
        uint32_t found = counts[a[i]];
        weight[i - start] = found == 0 ? 0 : found >= often ? 2 : 1;
    }
    for (size_t i = start; i < end; i++) {
        uint8_t kind = weight[i - start];
        if (kind == 1 || (kind == 2 && !drowned(weight, (int64_t)(i - start), (int64_t)(end - start))))
            kept[n++] = (uint32_t)i;
        else
            gone[i] = 1;
    }
    return n;
}

/* The cost is at its limit: the point that is furthest from its corner. */
static void furthest(const search *s, const box *in, const int64_t f[2], const int64_t b[2], int64_t *i, int64_t *j,
                     int *low, int *high)
{
    int64_t reached = -1, at = in->a0, left = FAR, back = in->a1;
    for (int64_t d = f[1]; d >= f[0]; d -= 2) {
        int64_t row = s->forward[d] < in->a1 ? s->forward[d] : in->a1;
        if (row - d > in->b1)
            row = in->b1 + d;
        if (2 * row - d > reached)
            reached = 2 * row - d, at = row;
    }
    for (int64_t d = b[1]; d >= b[0]; d -= 2) {
        int64_t row = s->backward[d] > in->a0 ? s->backward[d] : in->a0;
        if (row - d < in->b0)
            row = in->b0 + d;
        if (2 * row - d < left)
            left = 2 * row - d, back = row;
    }
    *low = in->a1 + in->b1 - left < reached - (in->a0 + in->b0);
    *high = !*low;
    *i = *low ? at : back;
    *j = *low ? reached - at : left - back;
}

/* A point on a shortest path through a box, found from both corners at once, and whether each half is to be searched
 * to the end. */
static void middle(const search *s, const box *in, int64_t *out_i, int64_t *out_j, int *low, int *high)
{
    const int64_t a0 = in->a0, a1 = in->a1, b0 = in->b0, b1 = in->b1;
    const int64_t least = a0 - b1, most = a1 - b0, f_mid = a0 - b0, b_mid = a1 - b1;
    int64_t *forward = s->forward, *backward = s->backward;
    const int odd = (f_mid - b_mid) & 1;
    int64_t f[2] = {f_mid, f_mid}, b[2] = {b_mid, b_mid};
    forward[f_mid] = a0;
    backward[b_mid] = a1;
    *low = *high = 1;
    for (int64_t cost = 1;; cost++) {
        if (f[0] > least)
            forward[--f[0] - 1] = -1;
        else
            f[0]++;
        if (f[1] < most)
            forward[++f[1] + 1] = -1;
        else
            f[1]--;
        for (int64_t d = f[1]; d >= f[0]; d -= 2) {
            int64_t i = forward[d - 1] >= forward[d + 1] ? forward[d - 1] + 1 : forward[d + 1], j = i - d;
            while (i < a1 && j < b1 && s->a[i] == s->b[j])
                i++, j++;
            forward[d] = i;
            if (odd && b[0] <= d && d <= b[1] && backward[d] <= i) {
                *out_i = i, *out_j = j;
                return;
            }
        }
        if (b[0] > least)
            backward[--b[0] - 1] = FAR;
        else
            b[0]++;
        if (b[1] < most)
            backward[++b[1] + 1] = FAR;
        else
            b[1]--;
        for (int64_t d = b[1]; d >= b[0]; d -= 2) {
            int64_t i = backward[d - 1] < backward[d + 1] ? backward[d - 1] : backward[d + 1] - 1, j = i - d;
            while (i > a0 && j > b0 && s->a[i - 1] == s->b[j - 1])
                i--, j--;
            backward[d] = i;
            if (!odd && f[0] <= d && d <= f[1] && i <= forward[d]) {
                *out_i = i, *out_j = j;
                return;
            }
        }
        if (!in->exact && cost >= s->cost_max) {
            furthest(s, in, f, b, out_i, out_j, low, high);
            return;
        }
    }
}

static void flag(uint8_t *flags, const uint32_t *places, int64_t from, int64_t to)
{
    for (; from < to; from++)
        flags[places[from]] = 1;
}

/* A run of flagged elements, maybe empty, between two that are not. */
typedef struct {
    uint8_t *flags;
    int64_t start, end, size;
} group;

static group first_group(uint8_t *flags, size_t size)
{
    group g = {flags, 0, 0, (int64_t)size};
    while (flags[g.end])
        g.end++;
    return g;
}

static int next_group(group *g)
{
    if (g->end == g->size)
        return 0;
    g->start = g->end = g->end + 1;
    while (g->flags[g->end])
        g->end++;
    return 1;
}

static void previous_group(group *g)
{
    g->start = g->end = g->start - 1;
    while (g->start && g->flags[g->start - 1])
        g->start--;
}

/* Move a run one place if the element that it meets equals the one that it leaves; it swallows a run that it then
 * touches. */
static int move_up(group *g, const uint32_t *items)
{
    if (!g->start || items[g->start - 1] != items[g->end - 1])
        return 0;
    g->flags[--g->start] = 1;
    g->flags[--g->end] = 0;
    while (g->start && g->flags[g->start - 1])
        g->start--;
    return 1;
}

static int move_down(group *g, const uint32_t *items)
{
    if (g->end == g->size || items[g->start] != items[g->end])
        return 0;
    g->flags[g->start++] = 0;
    g->flags[g->end++] = 1;
    while (g->flags[g->end])
        g->end++;
    return 1;
}

/* Move every run that could stand elsewhere: next to a change of the other side if it can, else down. */
static void settle(const uint32_t *items, size_t n, uint8_t *flags, uint8_t *others, size_t n_others)
{
    group g = first_group(flags, n), other = first_group(others, n_others);
    for (;;) {
        if (g.end > g.start) {
            int64_t facing, top, size;
            do { /* it may grow: the run that it met may open new places */
                size = g.end - g.start;
                while (move_up(&g, items))
                    previous_group(&other);
                top = g.end;
                facing = other.end > other.start ? g.end : -1;
                while (move_down(&g, items)) {
                    next_group(&other);
                    if (other.end > other.start)
                        facing = g.end;
                }
            } while (size != g.end - g.start);
            if (g.end != top && facing != -1)
                while (other.end == other.start) {
                    move_up(&g, items);
                    previous_group(&other);
                }
        }
        if (!next_group(&g))
            return;
        next_group(&other);
    }
}

void nova_text_diff(const uint32_t *a, size_t na, const uint32_t *b, size_t nb, size_t distinct, uint8_t *gone,
                    uint8_t *come, void *scratch)
{
    uint8_t *at = scratch;
    size_t n = na + nb, start = 0, tail = 0, shorter = na < nb ? na : nb;
    uint32_t *counts = carve(&at, distinct * 4);
    uint8_t *weight = carve(&at, n);
    uint32_t *places = carve(&at, n * 4), *reduced = carve(&at, n * 4);
    int64_t *rows = carve(&at, (n + 8) * 8), *more_rows = carve(&at, (n + 8) * 8);
    box *boxes = (box *)at;

    memset(gone, 0, na + 1);
    memset(come, 0, nb + 1);
    while (start < shorter && a[start] == b[start])
        start++;
    while (tail < shorter - start && a[na - 1 - tail] == b[nb - 1 - tail])
        tail++;
    size_t ra = candidates(a, na, b, nb, start, na - tail, counts, distinct, weight, places, gone);
    size_t rb = candidates(b, nb, a, na, start, nb - tail, counts, distinct, weight, places + ra, come);
    const uint32_t *left = places, *right = places + ra;
    for (size_t i = 0; i < ra; i++)
        reduced[i] = a[left[i]];
    for (size_t j = 0; j < rb; j++)
        reduced[ra + j] = b[right[j]];

    search s = {reduced, reduced + ra, rows + rb + 3, more_rows + rb + 3, rough_root(ra + rb + 3)};
    if (s.cost_max < COST_MIN)
        s.cost_max = COST_MIN;
    size_t open = 0;
    boxes[open++] = (box){0, (int64_t)ra, 0, (int64_t)rb, 0};
    while (open) {
        box in = boxes[--open];
        while (in.a0 < in.a1 && in.b0 < in.b1 && s.a[in.a0] == s.b[in.b0])
            in.a0++, in.b0++;
        while (in.a0 < in.a1 && in.b0 < in.b1 && s.a[in.a1 - 1] == s.b[in.b1 - 1])
            in.a1--, in.b1--;
        if (in.a0 == in.a1) {
            flag(come, right, in.b0, in.b1);
        } else if (in.b0 == in.b1) {
            flag(gone, left, in.a0, in.a1);
        } else {
            int64_t i, j;
            int low, high;
            middle(&s, &in, &i, &j, &low, &high);
            /* Boxes that are open do not overlap, and an empty one is not kept: there are never more than elements. */
            if (i > in.a0 || j > in.b0)
                boxes[open++] = (box){in.a0, i, in.b0, j, low};
            if (i < in.a1 || j < in.b1)
                boxes[open++] = (box){i, in.a1, j, in.b1, high};
        }
    }
    settle(a, na, gone, come, nb);
    settle(b, nb, come, gone, na);
}
