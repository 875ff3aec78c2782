/* bench/ring.c - what C makes of a ring in shared memory: 64 bytes there and back between two processes that spin.
 *
 * usage: ring ROUNDS [CPU CPU]   prints nanoseconds a round trip: the best, and the median, of batches of 300
 * No frames, no checksum, no credit, no other process that is not believed: the bound, not a peer that does the same. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RING = 1 << 20, MESSAGE = 64, BATCH = 300, BATCHES_MAX = 100000 };

typedef struct {
    _Alignas(128) _Atomic uint64_t head;
    _Alignas(128) _Atomic uint64_t tail;
    _Alignas(128) uint8_t bytes[RING];
} ring;

static void put(ring *r, uint64_t *head, const uint8_t *message)
{
    memcpy(r->bytes + (*head & (RING - 1)), message, MESSAGE);
    *head += MESSAGE;
    atomic_store_explicit(&r->head, *head, memory_order_release);
}

static void get(ring *r, uint64_t *tail, uint8_t *message)
{
    while (atomic_load_explicit(&r->head, memory_order_acquire) == *tail)
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        ;
#endif
    memcpy(message, r->bytes + (*tail & (RING - 1)), MESSAGE);
    *tail += MESSAGE;
    atomic_store_explicit(&r->tail, *tail, memory_order_release);
}

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void stay_on(const char *cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)atoi(cpu), &set);
    sched_setaffinity(0, sizeof set, &set);
}

static int order(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static double took[BATCHES_MAX];
    int batches = argc > 1 ? atoi(argv[1]) / BATCH : 100;
    if (batches < 1 || batches > BATCHES_MAX) {
        fprintf(stderr, "usage: ring ROUNDS [CPU CPU], with %d to %d rounds\n", BATCH, BATCH * BATCHES_MAX);
        return 2;
    }
    ring *rings = mmap(NULL, 2 * sizeof(ring), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (rings == MAP_FAILED)
        return 1;
    memset(rings, 0, 2 * sizeof(ring));
    uint8_t message[MESSAGE] = {1};
    uint64_t head = 0, tail = 0;
    pid_t child = fork();
    if (child == 0) {
        if (argc > 3)
            stay_on(argv[3]);
        for (int i = 0; i < batches * BATCH; i++)
            get(&rings[0], &tail, message), put(&rings[1], &head, message);
        _exit(0);
    }
    if (argc > 3)
        stay_on(argv[2]);
    for (int b = 0; b < batches; b++) {
        double began = now_ns();
        for (int i = 0; i < BATCH; i++)
            put(&rings[0], &head, message), get(&rings[1], &tail, message);
        took[b] = (now_ns() - began) / BATCH;
    }
    waitpid(child, NULL, 0);
    qsort(took, (size_t)batches, sizeof *took, order);
    printf("%.1f %.1f\n", took[0], took[batches / 2]);
    return 0;
}
