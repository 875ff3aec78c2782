/* csrc/pool.h - blocks of memory that are counted and come back: what messages lie in, from the socket to the reader.
 *
 * A block's size is a power of two. Blocks that nobody holds wait in one pool of the process, up to NOVA_POOL_BYTES_MAX
 * of them together, so that a stream of large messages does not fault fresh pages in for each. Every thread may take and
 * drop; the pool has a lock, counts are atomic. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { NOVA_BLOCK_BYTES_MIN = 4096 };
#define NOVA_POOL_BYTES_MAX ((size_t)64 << 20)

typedef struct nova_block {
    struct nova_block *next; /* in the pool */
    size_t room;
    unsigned references;
    uint8_t *data; /* 64-byte aligned */
} nova_block;

/* A block of at least n bytes, held once; NULL: no memory. */
nova_block *nova_block_take(size_t n);

/* Hold it once more. */
void nova_block_hold(nova_block *b);

/* Hold it no more; the last one gives it back. NULL is nothing. */
void nova_block_drop(nova_block *b);

/* Is the caller the only one who holds it? */
int nova_block_is_single(const nova_block *b);

/* Bytes that wait in the pool, and bytes that somebody holds. */
void nova_pool_count(size_t *waiting, size_t *held);
