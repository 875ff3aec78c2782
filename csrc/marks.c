/* csrc/marks.c */
#include "marks.h"

#include <stdlib.h>

typedef struct {
    nova_marked mark;
    uint32_t name;
} named;

/* By name, the latest first. */
static int by_name(const void *x, const void *y)
{
    const named *a = x, *b = y;
    if (a->name != b->name)
        return a->name < b->name ? -1 : 1;
    if (a->mark.stamp != b->mark.stamp)
        return a->mark.stamp > b->mark.stamp ? -1 : 1;
    return a->mark.rank > b->mark.rank ? -1 : a->mark.rank < b->mark.rank;
}

static int by_place(const void *x, const void *y)
{
    uint64_t a = *(const uint64_t *)x, b = *(const uint64_t *)y;
    return a < b ? -1 : a > b;
}

static size_t place_of(const uint64_t *edges, size_t n, uint64_t edge)
{
    size_t low = 0, high = n;
    while (high - low > 1) {
        size_t mid = (low + high) / 2;
        if (edges[mid] <= edge)
            low = mid;
        else
            high = mid;
    }
    return low;
}

/* The first stretch from `at` on that is not painted. */
static size_t free_from(size_t *next, size_t at)
{
    size_t end = at;
    while (next[end] != end)
        end = next[end];
    while (next[at] != end) {
        size_t step = next[at];
        next[at] = end, at = step;
    }
    return end;
}

/* The marks of one name: edges, next and value have room for 2n + 1. Returns the stretches put out. */
static size_t paint(const named *marks, size_t n, uint64_t *edges, size_t *next, uint32_t *value, nova_painted *out)
{
    size_t cuts = 0, size = 0;
    for (size_t i = 0; i < n; i++)
        edges[cuts++] = marks[i].mark.start, edges[cuts++] = marks[i].mark.end;
    qsort(edges, cuts, sizeof *edges, by_place);
    size_t unique = 0;
    for (size_t i = 0; i < cuts; i++)
        if (!unique || edges[unique - 1] != edges[i])
            edges[unique++] = edges[i];
    for (size_t i = 0; i <= unique; i++)
        next[i] = i, value[i] = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        size_t end = place_of(edges, unique, marks[i].mark.end), at = place_of(edges, unique, marks[i].mark.start);
        for (at = free_from(next, at); at < end; at = free_from(next, at))
            value[at] = marks[i].mark.value, next[at] = at + 1;
    }
    for (size_t i = 0; i + 1 < unique; i++) {
        if (value[i] == UINT32_MAX)
            continue;
        if (size && out[size - 1].end == edges[i] && out[size - 1].value == value[i])
            out[size - 1].end = edges[i + 1];
        else
            out[size++] = (nova_painted){edges[i], edges[i + 1], marks[0].name, value[i]};
    }
    return size;
}

int nova_marks_paint(const nova_marked *marks, size_t n, const uint32_t *name_of, nova_painted *out, size_t *size)
{
    size_t kept = 0;
    *size = 0;
    if (!n)
        return 0;
    named *all = malloc(n * sizeof *all);
    uint64_t *edges = malloc((2 * n + 1) * sizeof *edges);
    size_t *next = malloc((2 * n + 1) * sizeof *next);
    uint32_t *value = malloc((2 * n + 1) * sizeof *value);
    int code = all && edges && next && value ? 0 : NOVA_SEQUENCE_EMEMORY;
    if (!code) {
        for (size_t i = 0; i < n; i++)
            if (marks[i].start < marks[i].end) /* what it covered is deleted, or its ends were never in order */
                all[kept++] = (named){marks[i], name_of[marks[i].value]};
        qsort(all, kept, sizeof *all, by_name);
        for (size_t i = 0, end; i < kept; i = end) {
            for (end = i + 1; end < kept && all[end].name == all[i].name;)
                end++;
            *size += paint(all + i, end - i, edges, next, value, out + *size);
        }
    }
    free(all), free(edges), free(next), free(value);
    return code;
}
