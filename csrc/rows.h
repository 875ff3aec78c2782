/* csrc/rows.h - the live rows of a replica under one causal context: what every CRDT but the sequence is made of.
 *
 * A row is (box, leaf, dot, stamp, value): which container, which key or element in it, which write put it there. The
 * dot is (who, count); `who` numbers the writers of this replica. A row that one side lacks although its context knows
 * the dot was dropped there (ORSWOT; Bieniusa et al. 2012), so there are no tombstones.
 *
 * Layout. Rows of one writer lie in chunks of 64 neighbouring counts: a mask of the living, a 128-bit sum of their
 * digests, and, packed, where each one's record is. Merging is a pass over two ascending lists of chunks: equal sums
 * are equal rows, and of others the masks tell what is new and what is gone. Records lie one behind the other in an
 * arena; a table of (box, leaf) finds the first record of a key, and siblings hang on it. Nothing is kept per dead row:
 * an arena that is half garbage is rewritten.
 *
 * An `at` names a record until the next call of nova_rows_tidy; 0 is none. Nothing here is safe to call from two
 * threads at once. */
#pragma once
#include "bytes.h"
#include "digest.h"
#include "vclock.h"

enum {
    NOVA_ROWS_NOMEM = -1,
    NOVA_ROWS_FULL = -2,    /* over 2^32 - 1 records, or 16 GiB of them */
    NOVA_ROWS_TWICE = -3,   /* one event is two different writes */
    NOVA_ROWS_STAMPED = -4, /* one stamp of one writer has two values */
    NOVA_WHO_NONE = 0xFFFFFFFF,
};

/* What the container types mean for the rows in them. The rest of a type is its face's business. */
enum {
    NOVA_BOX_PLAIN,
    NOVA_BOX_LAST,     /* stamps decide */
    NOVA_BOX_LAST_ONE, /* and only the winner lives */
    NOVA_BOX_TOTALS,   /* one row a writer */
};

typedef struct nova_rows nova_rows;

typedef struct {
    uint32_t box, who;
    uint64_t count, stamp;
    const uint8_t *leaf, *value;
    size_t nleaf, nvalue;
} nova_row; /* borrowed from the arena: as long as an `at` */

typedef struct {
    const nova_span *at;
    size_t size;
} nova_known;

typedef struct {
    uint32_t *at, few[8];
    size_t size, room;
} nova_list;

/* What a join will do; made by nova_rows_plan. It must stay where it is. */
typedef struct {
    nova_list gone, fresh; /* records of ours; records of theirs */
    uint32_t who;          /* after an error: whose event (number on their side), */
    uint64_t count, stamp;
} nova_plan;

/* The first call may set where hash tables begin, so that strangers cannot choose keys that collide. */
void nova_rows_seed(uint64_t seed);

/* rule: what the root type does. nested: whether it has boxes. NULL: no memory. */
nova_rows *nova_rows_new(int type, int rule, int nested);
/* Before the first row: how many will come. bare: they will only be joined to others, so they are not found by their
 * keys, and those of one key do not know of each other. */
int nova_rows_expect(nova_rows *r, size_t rows, int bare);
void nova_rows_free(nova_rows *r);
nova_rows *nova_rows_copy(const nova_rows *r);
size_t nova_rows_size(const nova_rows *r);
size_t nova_rows_bytes(const nova_rows *r); /* of memory */

/* -- writers and what is known of them -- */

/* A new writer; `name` is UTF-8 and must outlive r. Its number, or NOVA_WHO_NONE without memory. */
uint32_t nova_rows_writer(nova_rows *r, const char *name, size_t n);
uint32_t nova_rows_writers(const nova_rows *r);
nova_known nova_rows_known(const nova_rows *r, uint32_t who);
uint64_t nova_rows_last(const nova_rows *r, uint32_t who);
int nova_rows_learn(nova_rows *r, uint32_t who, const nova_span *spans, size_t n);
/* Does r know all that o knows? map[who of o] is who of r or NOVA_WHO_NONE. */
int nova_rows_covers(const nova_rows *r, const nova_rows *o, const uint32_t *map);

/* -- boxes: the containers of a nested type. 0 is the root -- */

/* The box of this type under a key of `parent`; with make it is made if it is not there. NOVA_WHO_NONE: there is
 * none. */
uint32_t nova_rows_box(nova_rows *r, uint32_t parent, int type, int rule, const void *key, size_t n, int make);
int nova_rows_box_type(const nova_rows *r, uint32_t box);
const uint8_t *nova_rows_box_path(const nova_rows *r, uint32_t box, size_t *n);
const uint8_t *nova_rows_box_key(const nova_rows *r, uint32_t box, size_t *n);
size_t nova_rows_box_size(const nova_rows *r, uint32_t box); /* its rows, or if it is a map, its boxes; */
size_t nova_rows_box_keys(const nova_rows *r, uint32_t box); /* siblings counted once */
/* Walk a box's records: of rows, or of the boxes in it (nova_rows_box_of). */
uint32_t nova_rows_first(const nova_rows *r, uint32_t box);
uint32_t nova_rows_next(const nova_rows *r, uint32_t at);
uint32_t nova_rows_box_of(const nova_rows *r, uint32_t at);

/* -- rows -- */

uint32_t nova_rows_find(const nova_rows *r, uint32_t box, const void *leaf, size_t n);
uint32_t nova_rows_sibling(const nova_rows *r, uint32_t at);
uint32_t nova_rows_newest(const nova_rows *r, uint32_t who); /* the live row of this writer with the highest count */
void nova_rows_view(const nova_rows *r, uint32_t at, nova_row *row);
/* Does a outrank b? By stamp, then writer, then bytes, then count (the same writer wrote the same again). */
int nova_rows_outranks(const nova_rows *r, uint32_t a, uint32_t b);

/* Add a row beside those of its key, or in their place. 0 or an error; then nothing is changed. */
int nova_rows_put(nova_rows *r, const nova_row *row);
int nova_rows_replace(nova_rows *r, const nova_row *row);
/* Put a row in the place of one of its key. */
int nova_rows_renew(nova_rows *r, uint32_t at, const nova_row *row);
int nova_rows_has(const nova_rows *r, uint32_t who, uint64_t count);
/* Take a row out. nova_rows_sweep must follow, with any row of the same key that was dropped. */
void nova_rows_drop(nova_rows *r, uint32_t at);
void nova_rows_sweep(nova_rows *r, uint32_t at);
/* Drop all rows of a key and of no other; how many. */
size_t nova_rows_drop_key(nova_rows *r, uint32_t box, const void *leaf, size_t n);
/* Empty boxes go, and garbage if it is much. Every `at` ends here. */
int nova_rows_tidy(nova_rows *r);

/* -- all rows at once -- */

/* The digest of all rows: O(chunks written since the last call). */
nova_digest nova_rows_digest(nova_rows *r);

/* Keep a log from now on of which events are learned and which rows dropped, so that nova_rows_since can tell. To be
 * called while nothing that will be learned was learned already: after all that r is made of is there. The log holds the
 * latest entries, in number about a sixteenth of the rows. */
void nova_rows_begin_log(nova_rows *r);
/* Where in the log somebody stands who knows `known` (per writer of r): each drop of an entry before is known there. 0 if
 * it does not reach so far. */
int nova_rows_since(const nova_rows *r, const nova_known *known, size_t *from);
typedef struct {
    nova_span span;
    uint32_t who;
} nova_dropped;
/* What was dropped since, of the dots in `known`, by writer and ascending. Malloced; NULL: no memory. */
nova_dropped *nova_rows_dropped(const nova_rows *r, const nova_known *known, size_t from, size_t *size);

/* Plan to join a sender who knows `o`'s context and holds its rows and those of the dots `kept` (per writer of o; may
 * be NULL). Changes nothing but sums. 0, or an error whose event is in the plan. Free it in either case. */
int nova_rows_plan(nova_rows *r, nova_rows *o, const uint32_t *map, const nova_known *kept, nova_plan *plan);
/* Do it. map must be complete now. NOVA_ROWS_NOMEM leaves r unfit for further use. */
int nova_rows_join(nova_rows *r, nova_rows *o, const uint32_t *map, const nova_plan *plan);
void nova_plan_free(nova_plan *plan);

/* The rows that nobody who knows `known` (per writer of r; may be NULL) has, in the order of the wire: by path, leaf,
 * writer, count. rank[who] is a writer's place on the wire. Malloced bytes, which the caller frees; NULL: no memory. */
uint8_t *nova_rows_wire(const nova_rows *r, const nova_known *known, const uint32_t *rank, size_t *rows, size_t *size);
/* The dots of the rows that somebody who knows `known` has, as spans of one writer. Malloced; NULL: no memory. */
nova_span *nova_rows_kept(const nova_rows *r, uint32_t who, nova_known known, size_t *size);
/* All rows of the root, or of one box, in the order of their leaves, siblings together. Malloced; NULL: no memory. */
uint32_t *nova_rows_sorted(const nova_rows *r, uint32_t box, size_t *size);
