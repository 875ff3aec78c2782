/* csrc/cell.c */
#include "cell.h"
#include <string.h>

static int same_name(const nova_cell_writer *a, const nova_cell_writer *b)
{
    return a->name == b->name || (a->nname == b->nname && !memcmp(a->name, b->name, a->nname));
}

static int order_bytes(const void *a, size_t na, const void *b, size_t nb)
{
    int order = memcmp(a, b, na < nb ? na : nb);
    return order ? order : (na > nb) - (na < nb);
}

static int same_value(const nova_cell_row *a, const nova_cell_row *b)
{
    return a->stamp == b->stamp && a->size == b->size && !memcmp(a->value, b->value, a->size);
}

int nova_cell_outranks(const nova_cell *c, const nova_cell_row *a, const nova_cell_row *b)
{
    if (a->stamp != b->stamp)
        return a->stamp > b->stamp;
    if (a->who != b->who) {
        const nova_cell_writer *v = &c->writers[a->who], *w = &c->writers[b->who];
        return order_bytes(v->name, v->nname, w->name, w->nname) > 0;
    }
    int order = order_bytes(a->value, a->size, b->value, b->size);
    return order ? order > 0 : a->count > b->count;
}

static const nova_cell_row *find_row(const nova_cell *c, unsigned who, uint64_t count)
{
    for (unsigned i = 0; i < c->nrows; i++)
        if (c->rows[i].who == who && c->rows[i].count == count)
            return &c->rows[i];
    return NULL;
}

/* Which writer of c each one of o is; those unknown there get the next numbers. Returns how many writers there are
 * then, or 0 if there is nothing new. */
static unsigned map_writers(const nova_cell *c, const nova_cell *o, uint8_t *ours, uint8_t *theirs)
{
    unsigned n = c->nwriters, news = 0;
    memset(theirs, NOVA_CELL_WRITERS, NOVA_CELL_WRITERS);
    for (unsigned j = 0; j < o->nwriters; j++) {
        unsigned i = 0;
        if (!o->writers[j].last) {
            ours[j] = NOVA_CELL_WRITERS; /* it is there to write and has not yet */
            continue;
        }
        while (i < c->nwriters && !same_name(&c->writers[i], &o->writers[j]))
            i++;
        if (i == c->nwriters) {
            ours[j] = (uint8_t)n++;
            news = 1;
            continue;
        }
        ours[j] = (uint8_t)i;
        theirs[i] = (uint8_t)j;
        news |= o->writers[j].last > c->writers[i].last;
    }
    return news ? n : 0;
}

int nova_cell_merge(nova_cell *c, const nova_cell *o)
{
    uint8_t ours[NOVA_CELL_WRITERS], theirs[NOVA_CELL_WRITERS]; /* numbers of writers here and there */
    const nova_cell_row *kept[2 * NOVA_CELL_ROWS];
    unsigned n = map_writers(c, o, ours, theirs), nkept = 0, mine;
    if (!n)
        return NOVA_CELL_SAME;
    if (n > NOVA_CELL_WRITERS)
        return NOVA_CELL_ROWS_DO;
    if (c->me < NOVA_CELL_WRITERS && theirs[c->me] < NOVA_CELL_WRITERS &&
        o->writers[theirs[c->me]].last > c->writers[c->me].last)
        return NOVA_CELL_ROWS_DO; /* somebody else writes under our name */
    for (unsigned i = 0; i < c->nrows; i++) {
        const nova_cell_row *row = &c->rows[i], *other;
        unsigned j = theirs[row->who];
        if (j < NOVA_CELL_WRITERS && row->count <= o->writers[j].last) {
            if (!(other = find_row(o, j, row->count)))
                continue; /* dropped there */
            if (!same_value(row, other))
                return NOVA_CELL_ROWS_DO;
        }
        kept[nkept++] = row;
    }
    mine = nkept;
    for (unsigned j = 0; j < o->nrows; j++) {
        const nova_cell_row *row = &o->rows[j];
        unsigned who = ours[row->who];
        if (who < c->nwriters && row->count <= c->writers[who].last)
            continue; /* here, or dropped here */
        for (unsigned i = 0; c->last_one && i < c->nrows; i++)
            if (c->rows[i].who == who && c->rows[i].stamp == row->stamp)
                return NOVA_CELL_ROWS_DO; /* one stamp twice */
        kept[nkept++] = row;
    }
    if (nkept > NOVA_CELL_ROWS)
        return NOVA_CELL_ROWS_DO;

    for (unsigned i = 0; i < mine; i++)
        if (kept[i] != &c->rows[i])
            c->rows[i] = *kept[i]; /* forwards only: what is overwritten is not kept */
    for (unsigned i = mine; i < nkept; i++) {
        c->rows[i] = *kept[i];
        c->rows[i].who = ours[kept[i]->who];
    }
    for (unsigned j = 0; j < o->nwriters; j++) {
        nova_cell_writer *w = &c->writers[ours[j]];
        if (ours[j] == NOVA_CELL_WRITERS)
            continue;
        if (ours[j] >= c->nwriters)
            *w = o->writers[j];
        else if (w->last < o->writers[j].last)
            w->last = o->writers[j].last;
    }
    c->nwriters = (uint8_t)n;
    c->nrows = (uint8_t)nkept;
    if (c->last_one && nkept > 1) {
        unsigned best = 0;
        for (unsigned i = 1; i < nkept; i++)
            if (nova_cell_outranks(c, &c->rows[i], &c->rows[best]))
                best = i;
        if (best)
            c->rows[0] = c->rows[best];
        c->nrows = 1;
    }
    return NOVA_CELL_CHANGED;
}
