/* csrc/totals.h - counters of many writers: for each its events, and how much it counted up and down, as columns.
 *
 * An honest replica knows the events 1..last of a writer and holds the totals as of the last one, so three numbers are
 * all there is to know of it. Writers have numbers that hold for the whole process; pages of 64 neighbouring numbers
 * are shared between copies until one writes (copy on write), and have a 128-bit sum. Merging is a pass over two
 * ascending lists of pages: the same page, or an equal sum, is skipped, and a page that knows more takes the place of
 * ours. What a counter holds that is not honest is for csrc/rows.h.
 *
 * Numbers are counted as long as a page or a `hold` names them. Nothing here is safe to call from two threads at once,
 * not even for different counters, but for nova_totals_digest and nova_totals_find_news: they may run beside anything
 * that leaves their own counters as they are. */
#pragma once
#include "digest.h"
#include <stddef.h>
#include <stdint.h>

enum {
    NOVA_TOTALS_NOMEM = -1,
    NOVA_TOTALS_TWICE = -2, /* one event is two different writes */
    NOVA_TOTALS_OURS = -3,  /* somebody else writes under our name */
    NOVA_TOTALS_SAME = 0,
    NOVA_TOTALS_CHANGED = 1,
    NOVA_ID_NONE = 0xFFFFFFFF,
};

typedef struct {
    uint64_t last, up, down;
} nova_total;

typedef struct nova_totals nova_totals;

/* A number for a writer whose name has this digest; it is free again unless it is held. NOVA_ID_NONE: no memory. */
uint32_t nova_ids_take(uint64_t name_hash);
void nova_ids_hold(uint32_t id);
void nova_ids_drop(uint32_t id);
/* A number that nothing names any more: it is free now. NOVA_ID_NONE: there is none. */
uint32_t nova_ids_idle(void);

/* kinds: how many of up and down this counter has. NULL: no memory. */
nova_totals *nova_totals_new(int kinds);
void nova_totals_free(nova_totals *t);
nova_totals *nova_totals_copy(const nova_totals *t); /* O(pages) */
size_t nova_totals_size(const nova_totals *t);       /* writers */
size_t nova_totals_bytes(const nova_totals *t);      /* of memory; what is shared counts in full */

/* What is known of a writer; {0} if nothing is. */
nova_total nova_totals_get(const nova_totals *t, uint32_t id);
int nova_totals_set(nova_totals *t, uint32_t id, nova_total total);
/* The writers in the order of their numbers: start with *id = 0; 0 when there are no more, else go on with *id + 1. */
int nova_totals_next(const nova_totals *t, uint32_t *id, nova_total *total);

/* The sums of all ups and of all downs, as two halves each. */
void nova_totals_sum(const nova_totals *t, uint64_t up[2], uint64_t down[2]);

/* The bytes of a row: its totals as numbers. out has room for 20; how many it got. */
size_t nova_totals_value(const nova_totals *t, const nova_total *total, uint8_t *out);
/* The digest of all rows, as nova_rows_digest has it. */
nova_digest nova_totals_digest(nova_totals *t);

/* Pages that will take the places of ours, ascending. `made`: not one of theirs but of what either side knows. */
typedef struct {
    struct nova_totals_page *page;
    int made;
} nova_totals_news;

typedef struct {
    nova_totals_news *news;
    uint32_t size, room, added; /* added: pages of which we have none */
} nova_totals_plan;

/* What o knows and t does not. me: the writer who writes here, or NOVA_ID_NONE. NOVA_TOTALS_SAME, NOVA_TOTALS_CHANGED or
 * an error. Changes nothing but sums. Free the plan in any case. */
int nova_totals_find_news(nova_totals *t, nova_totals *o, uint32_t me, nova_totals_plan *plan);
/* Learn it; o and t are as they were then. After an error nothing is changed. */
int nova_totals_take_news(nova_totals *t, nova_totals_plan *plan);
void nova_totals_plan_free(nova_totals_plan *plan);
