/* csrc/shm.c */
#define _GNU_SOURCE
#include "shm.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The only ways to words that the other process writes. tests/fuzz/targets/shm.c lets each look find something else. */
#ifndef NOVA_SHM_LOOK
#define NOVA_SHM_LOOK(word) atomic_load(word)
#define NOVA_SHM_TAKE(word, bits) atomic_fetch_and(word, ~(uint32_t)(bits))
#endif

_Static_assert(sizeof(nova_shm_side) <= 512, "two sides fit where the layout has them");

enum { SIDE_BYTES = 512 };

static size_t rings_at(size_t ring_bytes)
{
    return ring_bytes >= NOVA_SHM_HUGE ? NOVA_SHM_HUGE : NOVA_SHM_PAGE;
}

size_t nova_shm_map_bytes(size_t ring_bytes)
{
    if (ring_bytes < NOVA_SHM_RING_MIN || ring_bytes & (ring_bytes - 1) || ring_bytes > (size_t)1 << 40)
        return 0;
    return rings_at(ring_bytes) + 2 * ring_bytes;
}

void nova_shm_begin(nova_shm *s, void *map, size_t ring_bytes, int side, uint64_t start)
{
    uint8_t *base = map;
    uint8_t *rings = base + rings_at(ring_bytes);
    memset(s, 0, sizeof *s);
    s->own = (nova_shm_side *)(base + (side ? SIDE_BYTES : 0));
    s->peer = (nova_shm_side *)(base + (side ? 0 : SIDE_BYTES));
    s->out_ring = rings + (side ? ring_bytes : 0);
    s->in_ring = rings + (side ? 0 : ring_bytes);
    s->ring_bytes = ring_bytes;
    s->out.at = s->out.peer_at = s->in.at = s->in.peer_at = start;
}

static int refuse(struct nova_shm_half *half, int error, uint64_t bad)
{
    half->bad = bad;
    return half->error = error;
}

/* How far has the other end put bytes? Not behind what it said before, nor further than the ring is long. */
static int look_in(nova_shm *s)
{
    struct nova_shm_half *in = &s->in;
    if (in->error)
        return in->error;
    uint64_t head = NOVA_SHM_LOOK(&s->peer->head), here = head - in->at;
    if (here > s->ring_bytes || here < in->peer_at - in->at)
        return refuse(in, NOVA_SHM_EHEAD, here);
    in->peer_at = head;
    return 0;
}

/* How far has it taken what we put? Not behind what it said before, nor further than we are. */
static int look_out(nova_shm *s)
{
    struct nova_shm_half *out = &s->out;
    if (out->error)
        return out->error;
    uint64_t tail = NOVA_SHM_LOOK(&s->peer->tail), held = out->at - tail;
    if (held > out->at - out->peer_at)
        return refuse(out, NOVA_SHM_ETAIL, held);
    out->peer_at = tail;
    return 0;
}

static int parts_of(uint8_t *ring, uint64_t ring_bytes, uint64_t from, uint64_t n, struct iovec parts[2])
{
    uint64_t at = from & (ring_bytes - 1), first = n < ring_bytes - at ? n : ring_bytes - at;
    if (n == 0)
        return 0;
    parts[0] = (struct iovec){ring + at, first};
    parts[1] = (struct iovec){ring, n - first};
    return n == first ? 1 : 2;
}

/* The other end's bell, if it is on for `what`. Whoever rings takes it off: one wake-up is enough. */
static uint32_t answer(nova_shm *s, uint32_t what)
{
    what |= what << NOVA_SHM_SOCKET;
    if (!(NOVA_SHM_LOOK(&s->peer->bell) & what))
        return 0;
    return NOVA_SHM_TAKE(&s->peer->bell, what) & what;
}

/* ---- out ---- */

int nova_shm_room(nova_shm *s, size_t most, struct iovec parts[2])
{
    uint64_t room = s->ring_bytes - (s->out.at - s->out.peer_at);
    if (room < most) {
        if (look_out(s))
            return s->out.error;
        room = s->ring_bytes - (s->out.at - s->out.peer_at);
    }
    return parts_of(s->out_ring, s->ring_bytes, s->out.at, room < most ? room : most, parts);
}

uint32_t nova_shm_put(nova_shm *s, size_t n)
{
    s->out.at += n;
    atomic_store(&s->own->head, s->out.at);
    return answer(s, NOVA_SHM_DATA);
}

int64_t nova_shm_write(nova_shm *s, const struct iovec *from, int count, uint32_t *bell)
{
    struct iovec parts[2] = {{NULL, 0}, {NULL, 0}};
    size_t whole = 0, done = 0;
    for (int i = 0; i < count; i++)
        whole += from[i].iov_len;
    *bell = 0;
    int found = nova_shm_room(s, whole, parts), part = 0;
    if (found <= 0)
        return found;
    for (int i = 0; i < count && part < found; i++) {
        const uint8_t *p = from[i].iov_base;
        size_t left = from[i].iov_len;
        while (left && part < found) {
            size_t n = left < parts[part].iov_len ? left : parts[part].iov_len;
            memcpy(parts[part].iov_base, p, n);
            p += n, left -= n, done += n;
            parts[part].iov_base = (uint8_t *)parts[part].iov_base + n;
            parts[part].iov_len -= n;
            part += parts[part].iov_len == 0;
        }
    }
    *bell = nova_shm_put(s, done);
    return (int64_t)done;
}

/* ---- in ---- */

int nova_shm_here(nova_shm *s, size_t most, struct iovec parts[2])
{
    uint64_t here = s->in.peer_at - s->in.at;
    if (here < most) {
        if (look_in(s))
            return s->in.error;
        here = s->in.peer_at - s->in.at;
    }
    return parts_of((uint8_t *)s->in_ring, s->ring_bytes, s->in.at, here < most ? here : most, parts);
}

uint32_t nova_shm_took(nova_shm *s, size_t n)
{
    s->in.at += n;
    atomic_store(&s->own->tail, s->in.at);
    /* Half a ring at a time: to wake a producer for every few bytes costs more than it brings. We take until nothing is
     * left, so half is free in the end. */
    if (s->in.peer_at - s->in.at > s->ring_bytes / 2)
        return 0;
    return answer(s, NOVA_SHM_ROOM);
}

int64_t nova_shm_read(nova_shm *s, void *p, size_t n, uint32_t *bell)
{
    struct iovec parts[2];
    int count = nova_shm_here(s, n, parts);
    *bell = 0;
    if (count <= 0)
        return count;
    memcpy(p, parts[0].iov_base, parts[0].iov_len);
    n = parts[0].iov_len;
    if (count == 2) {
        memcpy((uint8_t *)p + n, parts[1].iov_base, parts[1].iov_len);
        n += parts[1].iov_len;
    }
    *bell = nova_shm_took(s, n);
    return (int64_t)n;
}

/* ---- sleeping ---- */

int nova_shm_ready(nova_shm *s, uint32_t wants)
{
    if (wants & NOVA_SHM_DATA) {
        if (s->in.peer_at == s->in.at && look_in(s))
            return s->in.error;
        if (s->in.peer_at != s->in.at)
            return 1;
    }
    if (wants & NOVA_SHM_ROOM) {
        if (look_out(s))
            return s->out.error;
        if (s->out.at - s->out.peer_at <= s->ring_bytes / 2)
            return 1;
    }
    return 0;
}

int nova_shm_arm(nova_shm *s, uint32_t wants, int by_socket)
{
    uint32_t bits = by_socket ? wants << NOVA_SHM_SOCKET : wants;
    atomic_fetch_or(&s->own->bell, bits);
    int ready = nova_shm_ready(s, wants);
    if (ready)
        atomic_fetch_and(&s->own->bell, ~bits);
    return ready;
}

int nova_shm_sleep(nova_shm *s, uint32_t wants, uint64_t ns)
{
    struct timespec left = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    uint32_t bell = NOVA_SHM_LOOK(&s->own->bell);
    int signalled = 0;
    if ((bell & wants) == wants)
        signalled = syscall(SYS_futex, &s->own->bell, FUTEX_WAIT, bell, &left, NULL, 0) < 0 && errno == EINTR;
    atomic_fetch_and(&s->own->bell, ~wants);
    return signalled;
}

void nova_shm_ring(nova_shm *s, uint32_t bell, int fd)
{
    if (bell & NOVA_SHM_BOTH)
        syscall(SYS_futex, &s->peer->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    /* A full socket is full of wake-ups that nobody has read, and a broken one is found out by who reads it. */
    if (bell >> NOVA_SHM_SOCKET & NOVA_SHM_BOTH)
        send(fd, "!", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void nova_shm_wake_all(nova_shm *s)
{
    for (int i = 0; i < 2; i++) {
        nova_shm_side *side = i ? s->own : s->peer;
        atomic_fetch_and(&side->bell, ~(uint32_t)NOVA_SHM_BOTH);
        syscall(SYS_futex, &side->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
}

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static inline void pause_a_little(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

int nova_shm_spin(nova_shm *s, uint32_t wants, uint64_t ns)
{
    uint64_t until = 0;
    for (;;) {
        for (int i = 0; i < 8; i++) {
            int ready = nova_shm_ready(s, wants);
            if (ready)
                return ready;
            pause_a_little();
        }
        uint64_t now = monotonic_ns();
        if (until == 0)
            until = now + ns;
        else if (now >= until)
            return 0;
    }
}

static atomic_uint forks;

static void forked(void)
{
    atomic_fetch_add(&forks, 1);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, forked);
}

unsigned nova_shm_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    return atomic_load(&forks);
}
