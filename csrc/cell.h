/* csrc/cell.h - a register of few writers and few short values, in one piece of memory.
 *
 * Most registers have one value, or two siblings for a moment, and a handful of writers. Such a one is a cell: what
 * csrc/rows.h keeps in lists, an arena and a table lies here in fixed places, and merging follows no pointers. A cell
 * is only for what honest replicas make: of each writer it knows the events 1..last, without a gap. What does not fit
 * is for rows, and so is whatever looks wrong: there it is told apart and named.
 *
 * Nothing here allocates. Names are borrowed; `owner` is whatever keeps one alive. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum {
    NOVA_CELL_WRITERS = 6,
    NOVA_CELL_ROWS = 4,
    NOVA_CELL_VALUE = 46, /* bytes */

    NOVA_CELL_SAME = 0,    /* nothing new */
    NOVA_CELL_CHANGED = 1, /* merged */
    NOVA_CELL_ROWS_DO = 2, /* does not fit, or is suspicious: nothing is changed, let rows do it */
};

typedef struct {
    const char *name;
    void *owner;
    size_t nname;
    uint64_t last; /* its events 1..last are known */
} nova_cell_writer;

typedef struct {
    uint64_t count, stamp;
    uint8_t who, size;
    uint8_t value[NOVA_CELL_VALUE];
} nova_cell_row;

typedef struct {
    uint8_t nwriters, nrows, me; /* me: the writer who writes here, NOVA_CELL_WRITERS if there is none */
    uint8_t last_one;            /* of concurrent rows only the one that outranks the others lives */
    nova_cell_row rows[NOVA_CELL_ROWS];
    nova_cell_writer writers[NOVA_CELL_WRITERS];
} nova_cell;

/* Learn all that o knows. New writers are behind those that were there: the caller takes hold of their owners. */
int nova_cell_merge(nova_cell *c, const nova_cell *o);

/* Does a outrank b? By stamp, then writer, then bytes, then count: as nova_rows_outranks. Both are rows of c. */
int nova_cell_outranks(const nova_cell *c, const nova_cell_row *a, const nova_cell_row *b);
