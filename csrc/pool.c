/* csrc/pool.c */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <stdlib.h>

enum { CLASSES = 48, ALIGNMENT = 64 };

static struct {
    pthread_mutex_t lock;
    nova_block *free[CLASSES];
    size_t waiting, held;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* A child inherits what its parent's threads held at the moment of the fork: it begins with a lock of its own, and
 * with no blocks that a half-done move may have left in disorder. */
static void after_fork(void)
{
    pthread_mutex_init(&pool.lock, NULL);
    for (int i = 0; i < CLASSES; i++)
        pool.free[i] = NULL;
    pool.waiting = 0;
}

__attribute__((constructor)) static void prepare(void)
{
    pthread_atfork(NULL, NULL, after_fork);
}

static int class_of(size_t n)
{
    int at = 0;
    for (size_t size = NOVA_BLOCK_BYTES_MIN; size < n && at < CLASSES - 1; size <<= 1)
        at++;
    return at;
}

nova_block *nova_block_take(size_t n)
{
    if (n > (size_t)1 << 40)
        return NULL;
    int at = class_of(n);
    size_t room = (size_t)NOVA_BLOCK_BYTES_MIN << at;
    pthread_mutex_lock(&pool.lock);
    nova_block *b = pool.free[at];
    if (b) {
        pool.free[at] = b->next;
        pool.waiting -= room;
    }
    pool.held += room;
    pthread_mutex_unlock(&pool.lock);
    if (!b) {
        void *memory = NULL;
        b = malloc(sizeof *b);
        if (!b || posix_memalign(&memory, ALIGNMENT, room)) {
            free(b);
            pthread_mutex_lock(&pool.lock);
            pool.held -= room;
            pthread_mutex_unlock(&pool.lock);
            return NULL;
        }
        b->data = memory;
        b->room = room;
    }
    b->next = NULL;
    __atomic_store_n(&b->references, 1, __ATOMIC_RELAXED);
    return b;
}

void nova_block_hold(nova_block *b)
{
    __atomic_add_fetch(&b->references, 1, __ATOMIC_RELAXED);
}

int nova_block_is_single(const nova_block *b)
{
    return __atomic_load_n(&b->references, __ATOMIC_ACQUIRE) == 1;
}

void nova_block_drop(nova_block *b)
{
    if (!b || __atomic_sub_fetch(&b->references, 1, __ATOMIC_ACQ_REL))
        return;
    int at = class_of(b->room), keep;
    pthread_mutex_lock(&pool.lock);
    pool.held -= b->room;
    keep = pool.waiting + b->room <= NOVA_POOL_BYTES_MAX;
    if (keep) {
        b->next = pool.free[at];
        pool.free[at] = b;
        pool.waiting += b->room;
    }
    pthread_mutex_unlock(&pool.lock);
    if (!keep) {
        free(b->data);
        free(b);
    }
}

void nova_pool_count(size_t *waiting, size_t *held)
{
    pthread_mutex_lock(&pool.lock);
    *waiting = pool.waiting;
    *held = pool.held;
    pthread_mutex_unlock(&pool.lock);
}
