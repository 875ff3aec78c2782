/* csrc/shm.h - two byte rings, one a direction, in memory that another process shares and may write at any time.
 *
 *      0  side of the initiator:  head at 0, tail at 128, bell at 256       a position is a count of all bytes ever
 *    512  side of the responder:  the same                                  put (head) or taken (tail), and wraps
 *   4096  ring of the initiator's bytes, then ring of the responder's       ring_bytes each, a power of two
 *
 * A ring has one producer, who alone writes its head and bytes, and one consumer, who alone writes its tail (Lamport
 * 1983). The memory proves nothing: an end keeps its own positions to itself, reads each of the other's once, believes
 * it only if it lies between what it was and what the ring can hold, and copies bytes out before anybody looks at them.
 *
 * Sleeping: who finds nothing to do writes into its bell what it waits for, and looks once more; who publishes a
 * position looks at the other's bell afterwards. Both are a store and then a load of another word, all sequentially
 * consistent, so at least one of the two sees the other (Dekker 1965) and no wake-up is lost. */
#pragma once
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
    NOVA_SHM_PAGE = 4096,
    NOVA_SHM_RING_MIN = 4096,
    NOVA_SHM_HUGE = 2 << 20, /* rings of this size and more begin at a multiple of it */
};

/* What may be waited for, and what a bell says: the sleeper is woken by the futex that the bell is or, shifted by
 * NOVA_SHM_SOCKET, by a byte on the socket. Threads of one end sleep on one bell, each for its own bits. */
enum {
    NOVA_SHM_DATA = 1, /* bytes have come */
    NOVA_SHM_ROOM = 2, /* half of my ring is free */
    NOVA_SHM_BOTH = 3,
    NOVA_SHM_SOCKET = 2,
};

enum { NOVA_SHM_EHEAD = -1, NOVA_SHM_ETAIL = -2 };

typedef struct {
    _Alignas(128) _Atomic uint64_t head;
    _Alignas(128) _Atomic uint64_t tail;
    _Alignas(128) _Atomic uint32_t bell;
} nova_shm_side;

/* One end. Everything but what the pointers lead to is private. One thread may be in the functions that take bytes in
 * and one in those that put them out at the same time. */
typedef struct {
    nova_shm_side *own, *peer;
    uint8_t *out_ring;
    const uint8_t *in_ring;
    uint64_t ring_bytes;
    struct nova_shm_half {
        _Alignas(64) uint64_t at; /* ours (head, tail), never read back from the shared memory */
        uint64_t peer_at;         /* the last of the other's that we believed */
        uint64_t bad;             /* what we did not believe, counted from our position */
        int error;                /* sticks */
    } out, in;
} nova_shm;

/* Bytes that both rings and what goes before them take; 0 if there is no such ring. */
size_t nova_shm_map_bytes(size_t ring_bytes);

/* An end on mapped memory. side: 0 initiator, 1 responder. start: where all positions begin, 0 but for tests. */
void nova_shm_begin(nova_shm *s, void *map, size_t ring_bytes, int side, uint64_t start);

/* ---- out ---- */

/* Where up to `most` bytes may be put now: parts, 0 if the ring is full, or NOVA_SHM_ETAIL. */
int nova_shm_room(nova_shm *s, size_t most, struct iovec parts[2]);

/* n bytes stand there: the consumer may have them. Returns how it asked to be woken for them, or 0. */
uint32_t nova_shm_put(nova_shm *s, size_t n);

/* Copy in what fits, in one go. Bytes, or an error; *bell is what nova_shm_put returns. */
int64_t nova_shm_write(nova_shm *s, const struct iovec *from, int count, uint32_t *bell);

/* ---- in ---- */

/* Where up to `most` of the bytes that have come stand: parts, 0 if there are none, or NOVA_SHM_EHEAD. They may change
 * while they are looked at: copy first. */
int nova_shm_here(nova_shm *s, size_t most, struct iovec parts[2]);

/* n of them are used up. Returns as nova_shm_put. */
uint32_t nova_shm_took(nova_shm *s, size_t n);

/* Copy out up to n. Bytes, or an error. */
int64_t nova_shm_read(nova_shm *s, void *p, size_t n, uint32_t *bell);

/* ---- sleeping ---- */

/* Is something of `wants` there? 1, 0 or an error. */
int nova_shm_ready(nova_shm *s, uint32_t wants);

/* Look for it again and again until `ns` have passed, without sleeping. */
int nova_shm_spin(nova_shm *s, uint32_t wants, uint64_t ns);

/* Have the bell rung for `wants`, by the socket or by the futex. As nova_shm_ready; but for 0 the bell is off again. */
int nova_shm_arm(nova_shm *s, uint32_t wants, int by_socket);

/* Sleep on our bell, armed for `wants` by the futex, until it is rung or `ns` have passed; the bell is off then. 1 if a
 * signal came. */
int nova_shm_sleep(nova_shm *s, uint32_t wants, uint64_t ns);

/* Wake the other end as its bell said; `fd` is our end of the socket. Never blocks. */
void nova_shm_ring(nova_shm *s, uint32_t bell, int fd);

/* Wake whoever sleeps on either bell's futex: this end is about to go. */
void nova_shm_wake_all(nova_shm *s);

/* Counts the forks behind us: what was mapped at another count belongs to a parent. */
unsigned nova_shm_forks(void);
