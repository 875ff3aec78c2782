/* tests/transport/shm_ring.c - the rings under two threads or two processes, and step by step where it must be.
 *
 * usage: shm_ring threads|processes BYTES | threads TIMES at-once | last-look
 * Exit status 0, or a line that tells what does not hold. Built by test_shm_ring.py, also with ThreadSanitizer. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shm.h"

enum { RING = 4096, LONG_NS = 2000000000 };

#define REQUIRE(fact)                                                                 \
    do {                                                                              \
        if (!(fact)) {                                                                \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #fact); \
            _exit(1);                                                                 \
        }                                                                             \
    } while (0)

static void *map;
static uint64_t bytes;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint32_t next(uint32_t *x)
{
    *x ^= *x << 13, *x ^= *x >> 17, *x ^= *x << 5;
    return *x;
}

/* The byte at a position of a direction. */
static uint8_t byte_at(uint64_t at, int side)
{
    return (uint8_t)((at * 2654435761u >> 13) + (uint64_t)side * 101);
}

/* Sleep until `wants` is there. A wake-up that was lost shows as a sleep to its end. */
static void await(nova_shm *s, uint32_t wants)
{
    for (;;) {
        int ready = nova_shm_arm(s, wants, 0);
        REQUIRE(ready >= 0);
        if (ready)
            return;
        uint64_t began = now_ns();
        nova_shm_sleep(s, wants, LONG_NS);
        REQUIRE(now_ns() - began < LONG_NS);
    }
}

/* Send and receive `bytes` each way, in pieces of all sizes, checking every one. */
static void both_ways(int side)
{
    nova_shm s;
    uint32_t x = 12345 + (uint32_t)side, bell;
    uint64_t sent = 0, got = 0, start = (uint64_t)0 - 5000;
    uint8_t buffer[3 * RING];
    nova_shm_begin(&s, map, RING, side, start);
    while (sent < bytes || got < bytes) {
        int64_t n = 0, m = 0;
        size_t size = next(&x) % (next(&x) % 4 ? 300 : RING + 100) + 1;
        if (sent < bytes) {
            size = size < bytes - sent ? size : (size_t)(bytes - sent);
            for (size_t i = 0; i < size; i++)
                buffer[i] = byte_at(sent + i, side);
            struct iovec from[2] = {{buffer, size / 3}, {buffer + size / 3, size - size / 3}};
            n = nova_shm_write(&s, from, 2, &bell);
            REQUIRE(n >= 0);
            nova_shm_ring(&s, bell, -1);
            sent += (uint64_t)n;
        }
        if (got < bytes) {
            m = nova_shm_read(&s, buffer, next(&x) % sizeof buffer + 1, &bell);
            REQUIRE(m >= 0);
            nova_shm_ring(&s, bell, -1);
            for (int64_t i = 0; i < m; i++)
                REQUIRE(buffer[i] == byte_at(got + (uint64_t)i, !side));
            got += (uint64_t)m;
        }
        if (n == 0 && m == 0)
            await(&s, (sent < bytes ? NOVA_SHM_ROOM : 0) | (got < bytes ? NOVA_SHM_DATA : 0));
    }
}

static atomic_uint arrived;

/* Wait until both threads are here, for the `times`-th time. */
static void meet(unsigned times)
{
    atomic_fetch_add(&arrived, 1);
    for (int i = 0; atomic_load(&arrived) < 2 * times; i++)
        if (i > 1000)
            sched_yield();
}

/* One end publishes in the very moment in which the other goes to sleep, `bytes` times: the one sees the bell, or the
 * other sees what has come. */
static void at_once(int side)
{
    static atomic_int rung, seen;
    nova_shm s;
    uint8_t buffer[RING] = {0};
    struct iovec full = {buffer, RING};
    uint32_t bell;
    unsigned met = 0;
    nova_shm_begin(&s, map, RING, side, (uint64_t)0 - 5000);
    for (uint64_t i = 0; i < bytes; i++) {
        int room = i & 1; /* side 0 puts bytes, side 1 waits for them; or side 0 makes room, for which side 1 waits */
        if (side && room)
            REQUIRE(nova_shm_write(&s, &full, 1, &bell) == RING);
        full.iov_len = room ? RING : 1;
        meet(++met);
        for (volatile uint64_t wait = side ? i / 2 % 64 : 32; wait; wait--)
            ;
        if (side)
            atomic_store(&seen, nova_shm_arm(&s, room ? NOVA_SHM_ROOM : NOVA_SHM_DATA, 0));
        else if (room)
            REQUIRE(nova_shm_read(&s, buffer, RING, &bell) == RING);
        else
            REQUIRE(nova_shm_write(&s, &full, 1, &bell) == 1);
        if (!side)
            atomic_store(&rung, bell != 0);
        meet(++met);
        REQUIRE(atomic_load(&rung) || atomic_load(&seen) == 1);
        if (side && !room)
            REQUIRE(nova_shm_read(&s, buffer, RING, &bell) == 1);
        full.iov_len = RING;
        meet(++met);
    }
}

static void (*work)(int side);

static void *other(void *unused)
{
    (void)unused;
    work(1);
    return NULL;
}

static void begin(nova_shm *one, nova_shm *two)
{
    nova_shm_begin(one, map, RING, 0, 0);
    nova_shm_begin(two, map, RING, 1, 0);
}

/* The wake-up comes between the last look and the sleep: the sleep must end at once. */
static void last_look(void)
{
    nova_shm one, two;
    struct iovec some = {"x", 1};
    uint32_t bell;
    begin(&one, &two);
    REQUIRE(nova_shm_arm(&one, NOVA_SHM_DATA, 0) == 0);
    REQUIRE(nova_shm_write(&two, &some, 1, &bell) == 1);
    REQUIRE(bell == NOVA_SHM_DATA);
    nova_shm_ring(&two, bell, -1);
    uint64_t began = now_ns();
    nova_shm_sleep(&one, NOVA_SHM_DATA, LONG_NS);
    REQUIRE(now_ns() - began < LONG_NS / 2);
    REQUIRE(nova_shm_arm(&one, NOVA_SHM_DATA, 0) == 1);
    REQUIRE(atomic_load(&one.own->bell) == 0);
    /* And what came before the bell was on needs none. */
    REQUIRE(nova_shm_write(&two, &some, 1, &bell) == 1);
    REQUIRE(bell == 0);
    /* One thread's wake-up takes nothing from the other's. */
    char all[RING];
    struct iovec full = {all, sizeof all};
    memset(all, 1, sizeof all);
    begin(&one, &two);
    atomic_store(&one.own->head, 0), atomic_store(&one.peer->head, 0);
    atomic_store(&one.own->tail, 0), atomic_store(&one.peer->tail, 0);
    REQUIRE(nova_shm_write(&one, &full, 1, &bell) == RING);
    REQUIRE(nova_shm_arm(&one, NOVA_SHM_ROOM, 0) == 0);
    REQUIRE(nova_shm_arm(&one, NOVA_SHM_DATA, 1) == 0);
    REQUIRE(nova_shm_write(&two, &some, 1, &bell) == 1);
    REQUIRE(bell == NOVA_SHM_DATA << NOVA_SHM_SOCKET);
    REQUIRE(atomic_load(&one.own->bell) == NOVA_SHM_ROOM);
    REQUIRE(nova_shm_read(&two, all, RING / 2 - 1, &bell) == RING / 2 - 1);
    REQUIRE(bell == 0); /* not for less than half a ring */
    REQUIRE(nova_shm_read(&two, all, 1, &bell) == 1);
    REQUIRE(bell == NOVA_SHM_ROOM);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    bytes = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    map = mmap(NULL, nova_shm_map_bytes(RING), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(map != MAP_FAILED);
    uint64_t start = (uint64_t)0 - 5000;
    if (!strcmp(what, "last-look")) {
        last_look();
        return 0;
    }
    nova_shm_side *sides[2] = {map, (nova_shm_side *)((uint8_t *)map + 512)};
    for (int i = 0; i < 2; i++)
        atomic_store(&sides[i]->head, start), atomic_store(&sides[i]->tail, start);
    work = argc > 3 && !strcmp(argv[3], "at-once") ? at_once : both_ways;
    if (!strcmp(what, "threads")) {
        pthread_t thread;
        REQUIRE(!pthread_create(&thread, NULL, other, NULL));
        work(0);
        REQUIRE(!pthread_join(thread, NULL));
        return 0;
    }
    if (!strcmp(what, "processes")) {
        pid_t child = fork();
        REQUIRE(child >= 0);
        work(child ? 0 : 1);
        if (!child)
            _exit(0);
        int status;
        REQUIRE(waitpid(child, &status, 0) == child && status == 0);
        return 0;
    }
    fprintf(stderr, "usage: shm_ring threads|processes BYTES | threads TIMES at-once | last-look\n");
    return 2;
}
