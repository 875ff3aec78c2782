/* csrc/marks.h - which of many overlapping marks counts where.
 *
 * Of the marks of one name that cover an element the one with the highest stamp counts, then the one of the highest
 * rank. The latest mark paints first, and what is painted is passed over from then on (a disjoint-set forest of
 * stretches), so the cost is that of sorting, however marks overlap. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "sequence.h"

/* From start up to, not including, end the name has this value. */
typedef struct {
    uint64_t start, end;
    uint32_t name, value;
} nova_painted;

/* Paint n marks. name_of[value] is a mark's name. out has room for 2n stretches: they become those
 * of all names, ascending by name and start, without overlap within a name; *size tells how many. 0, or
 * NOVA_SEQUENCE_EMEMORY. O(n log n). */
int nova_marks_paint(const nova_marked *marks, size_t n, const uint32_t *name_of, nova_painted *out, size_t *size);
