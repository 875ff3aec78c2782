/* csrc/bulk.c - plans, frames and boards; the loops are in csrc/bulk_io.c */
#define _GNU_SOURCE
#include "bulk.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "blake3.h"
#include "frame.h"

enum { OF_OFFSET = 32, OF_TRANSFER = 24, OF_CRC = 20 };

static inline uint64_t get64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v = v << 8 | p[i];
    return v;
}

static inline void put64(uint8_t *p, uint64_t v)
{
    for (int i = 7; i >= 0; i--, v >>= 8)
        p[i] = (uint8_t)v;
}

static inline void put32(uint8_t *p, uint32_t v)
{
    for (int i = 3; i >= 0; i--, v >>= 8)
        p[i] = (uint8_t)v;
}

uint64_t nova_bulk_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

size_t nova_bulk_size(const nova_bulk_plan *plan, uint32_t chunk)
{
    uint64_t left = plan->bytes - (uint64_t)chunk * plan->chunk_bytes;
    return left < plan->chunk_bytes ? (size_t)left : plan->chunk_bytes;
}

/* ---- checksums ---- */

/* A word is a polynomial whose x^0 stands in bit 31, as in the checksum itself. */
static uint32_t product(uint32_t a, uint32_t b)
{
    uint32_t sum = 0;
    for (; a; a <<= 1) {
        if (a >> 31)
            sum ^= b;
        b = b >> 1 ^ (b & 1 ? 0x82f63b78u : 0);
    }
    return sum;
}

uint32_t nova_bulk_crc_power(uint64_t n)
{
    uint32_t power = 1u << 31, square = 1u << 23; /* x^0, x^8 */
    for (; n; n >>= 1) {
        if (n & 1)
            power = product(power, square);
        square = product(square, square);
    }
    return power;
}

uint32_t nova_bulk_crc_join(uint32_t a, uint32_t b, uint32_t power)
{
    return product(a, power) ^ b;
}

uint32_t nova_bulk_sum(const nova_bulk_plan *plan, const uint8_t *p, size_t n, uint8_t *sum)
{
    uint32_t crc = nova_frame_crc32c(0, p, n);
    if (plan->digest == NOVA_BULK_BLAKE3) {
        nova_blake3_mode mode = nova_blake3_plain();
        nova_blake3(&mode, p, n, sum);
    } else {
        memset(sum, 0, NOVA_BULK_SUM);
        put32(sum, crc);
    }
    return crc;
}

void nova_bulk_root(const nova_bulk *b, uint8_t *out)
{
    /* The sums are hashed apart from the plan, so that neither has to stand before the other in memory. */
    uint8_t parts[24 + NOVA_BLAKE3_BYTES];
    nova_blake3_mode mode = nova_blake3_plain();
    put64(parts, b->plan.bytes);
    put64(parts + 8, b->plan.chunk_bytes);
    put64(parts + 16, (uint64_t)b->plan.digest);
    nova_blake3(&mode, b->sums, (size_t)b->plan.chunks * NOVA_BULK_SUM, parts + 24);
    nova_blake3(&mode, parts, sizeof parts, out);
}

/* ---- frames ---- */

int nova_bulk_read(const nova_bulk_plan *plan, const uint8_t *head, int keyed, uint64_t sequence, uint32_t *chunk)
{
    nova_frame frame;
    size_t around = NOVA_BULK_HEAD - NOVA_FRAME_HEADER + (keyed ? NOVA_BULK_MAC : 0);
    int code = nova_frame_read(head, around + plan->chunk_bytes, &frame);
    if (code)
        return code;
    if (frame.flags != (keyed ? NOVA_FLAG_MAC : 0))
        return NOVA_EFLAGS;
    if (frame.type != NOVA_BULK_CHUNK)
        return NOVA_BULK_ETYPE;
    if (frame.sequence != sequence || frame.stream)
        return NOVA_BULK_ESEQUENCE;
    if (frame.length <= around)
        return NOVA_BULK_ELENGTH;
    if (get64(head + OF_TRANSFER) != plan->transfer)
        return NOVA_BULK_ETRANSFER;
    uint64_t offset = get64(head + OF_OFFSET);
    if (offset >= plan->bytes || offset % plan->chunk_bytes)
        return NOVA_BULK_EOFFSET;
    uint32_t found = (uint32_t)(offset / plan->chunk_bytes);
    if (frame.length - around != nova_bulk_size(plan, found))
        return NOVA_BULK_ELENGTH;
    *chunk = found;
    return 0;
}

void nova_bulk_write(const nova_bulk_plan *plan, uint8_t *head, int keyed, uint64_t sequence, uint32_t chunk)
{
    nova_frame frame = {.type = NOVA_BULK_CHUNK, .flags = keyed ? NOVA_FLAG_MAC : 0, .sequence = sequence};
    frame.length = (uint32_t)(NOVA_BULK_HEAD - NOVA_FRAME_HEADER + nova_bulk_size(plan, chunk));
    if (keyed)
        frame.length += NOVA_BULK_MAC;
    nova_frame_write_signed(head, &frame);
    put32(head + OF_CRC, 0);
    put64(head + OF_TRANSFER, plan->transfer);
    put64(head + OF_OFFSET, (uint64_t)chunk * plan->chunk_bytes);
}

void nova_bulk_mac(const uint8_t *head, const uint8_t *sum, const uint8_t *key, uint8_t *mac)
{
    uint8_t signed_bytes[NOVA_FRAME_SIGNED + 16 + NOVA_BULK_SUM], hash[NOVA_BLAKE3_BYTES];
    nova_blake3_mode mode = nova_blake3_keyed(key);
    memcpy(signed_bytes, head, NOVA_FRAME_SIGNED);
    memcpy(signed_bytes + NOVA_FRAME_SIGNED, head + NOVA_FRAME_HEADER, 16);
    memcpy(signed_bytes + NOVA_FRAME_SIGNED + 16, sum, NOVA_BULK_SUM);
    nova_blake3(&mode, signed_bytes, sizeof signed_bytes, hash);
    memcpy(mac, hash, NOVA_BULK_MAC);
}

uint32_t nova_bulk_frame_crc(const uint8_t *head, uint32_t crc, uint32_t power, const uint8_t *mac)
{
    uint32_t whole = nova_frame_crc32c(0, head, NOVA_FRAME_SIGNED);
    whole = nova_frame_crc32c(whole, head + NOVA_FRAME_HEADER, NOVA_BULK_HEAD - NOVA_FRAME_HEADER);
    whole = nova_bulk_crc_join(whole, crc, power);
    return mac ? nova_frame_crc32c(whole, mac, NOVA_BULK_MAC) : whole;
}

static const uint8_t NOTHING[NOVA_BULK_SUM]; /* the sum of the bytes that an acknowledgement does not have */

size_t nova_bulk_write_ack(const nova_bulk_plan *plan, uint8_t *frame, const uint8_t *key, uint64_t sequence,
                           uint64_t count)
{
    nova_frame header = {.type = NOVA_BULK_ACK, .flags = key ? NOVA_FLAG_MAC : 0, .sequence = sequence};
    header.length = NOVA_BULK_HEAD - NOVA_FRAME_HEADER + (key ? NOVA_BULK_MAC : 0);
    nova_frame_write_signed(frame, &header);
    put64(frame + OF_TRANSFER, plan->transfer);
    put64(frame + OF_OFFSET, count);
    if (key)
        nova_bulk_mac(frame, NOTHING, key, frame + NOVA_BULK_HEAD);
    nova_frame_write(frame, &header);
    return NOVA_FRAME_HEADER + header.length;
}

int nova_bulk_read_ack(const nova_bulk_plan *plan, const uint8_t *frame, const uint8_t *key, uint64_t sequence,
                       uint64_t *count)
{
    nova_frame header;
    uint8_t mac[NOVA_BULK_MAC], differs = 0;
    size_t length = NOVA_BULK_HEAD - NOVA_FRAME_HEADER + (key ? NOVA_BULK_MAC : 0);
    int code = nova_frame_read(frame, length, &header);
    if (code)
        return code;
    if (header.flags != (key ? NOVA_FLAG_MAC : 0))
        return NOVA_EFLAGS;
    if (header.type != NOVA_BULK_ACK)
        return NOVA_BULK_ETYPE;
    if (header.length != length)
        return NOVA_BULK_ELENGTH;
    if (header.sequence != sequence || header.stream)
        return NOVA_BULK_ESEQUENCE;
    if (!nova_frame_checks(frame, frame + NOVA_FRAME_HEADER, length))
        return NOVA_BULK_ECRC;
    if (key) {
        nova_bulk_mac(frame, NOTHING, key, mac);
        for (int i = 0; i < NOVA_BULK_MAC; i++)
            differs |= (uint8_t)(mac[i] ^ frame[NOVA_BULK_HEAD + i]);
        if (differs)
            return NOVA_BULK_EMAC;
    }
    if (get64(frame + OF_TRANSFER) != plan->transfer)
        return NOVA_BULK_ETRANSFER;
    *count = get64(frame + OF_OFFSET);
    return 0;
}

/* ---- boards ---- */

void nova_bulk_init(nova_bulk *b)
{
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->change, &clock);
    pthread_condattr_destroy(&clock);
}

void nova_bulk_free(nova_bulk *b)
{
    pthread_cond_destroy(&b->change);
    pthread_mutex_destroy(&b->lock);
}

void nova_bulk_mark(nova_bulk *b, uint32_t chunk)
{
    pthread_mutex_lock(&b->lock);
    if (chunk < b->plan.chunks && b->state[chunk] == NOVA_BULK_TODO) {
        b->state[chunk] = NOVA_BULK_DONE;
        b->done++;
        b->done_bytes += nova_bulk_size(&b->plan, chunk);
    }
    pthread_mutex_unlock(&b->lock);
}

void nova_bulk_reset(nova_bulk *b)
{
    pthread_mutex_lock(&b->lock);
    memset(b->state, NOVA_BULK_TODO, b->plan.chunks);
    b->listed = b->cursor = b->done = 0;
    b->done_bytes = 0;
    pthread_mutex_unlock(&b->lock);
}

static void let_go(nova_bulk *b)
{
    b->events++;
    pthread_cond_broadcast(&b->change);
}

void nova_bulk_close(nova_bulk *b)
{
    pthread_mutex_lock(&b->lock);
    b->closed = 1;
    for (nova_bulk_stream *s = b->streams; s; s = s->next)
        shutdown(s->fd, SHUT_RDWR);
    let_go(b);
    pthread_mutex_unlock(&b->lock);
}

void nova_bulk_cut(nova_bulk *b, nova_bulk_stream *s)
{
    pthread_mutex_lock(&b->lock);
    s->cut = 1;
    /* Only while its loop runs does the number surely belong to this stream. */
    for (nova_bulk_stream *other = b->streams; other; other = other->next)
        if (other == s)
            shutdown(s->fd, SHUT_RDWR);
    let_go(b);
    pthread_mutex_unlock(&b->lock);
}

void nova_bulk_leave(nova_bulk *b, nova_bulk_stream *s)
{
    pthread_mutex_lock(&b->lock);
    s->leave = 1;
    let_go(b);
    pthread_mutex_unlock(&b->lock);
}

uint32_t nova_bulk_fresh(nova_bulk *b, uint32_t *out, uint32_t room)
{
    pthread_mutex_lock(&b->lock);
    uint32_t n = b->listed < room ? b->listed : room;
    memcpy(out, b->list + b->listed - n, n * sizeof *out);
    b->listed -= n;
    pthread_mutex_unlock(&b->lock);
    return n;
}

void nova_bulk_poke(nova_bulk *b)
{
    pthread_mutex_lock(&b->lock);
    let_go(b);
    pthread_mutex_unlock(&b->lock);
}

uint64_t nova_bulk_wait(nova_bulk *b, uint64_t events, uint64_t timeout_ns)
{
    uint64_t until = nova_bulk_now_ns() + timeout_ns;
    struct timespec t = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
    pthread_mutex_lock(&b->lock);
    while (b->events == events)
        if (pthread_cond_timedwait(&b->change, &b->lock, &t) == ETIMEDOUT)
            break;
    events = b->events;
    pthread_mutex_unlock(&b->lock);
    return events;
}

uint64_t nova_bulk_oldest_ns(nova_bulk *b, nova_bulk_stream *s)
{
    pthread_mutex_lock(&b->lock);
    uint64_t oldest = s->waiting ? s->ring_ns[s->first] : 0;
    pthread_mutex_unlock(&b->lock);
    return oldest;
}

const uint8_t *nova_bulk_source(const nova_bulk *b, uint32_t chunk, uint8_t *into)
{
    uint64_t offset = (uint64_t)chunk * b->plan.chunk_bytes;
    size_t n = nova_bulk_size(&b->plan, chunk), have = 0;
    if (b->memory)
        return b->memory + offset;
    while (have < n) {
        ssize_t got = pread(b->file, into + have, n - have, (off_t)(b->base + offset + have));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            if (got == 0)
                errno = 0;
            return NULL;
        }
        have += (size_t)got;
    }
    return into;
}

int nova_bulk_check(const nova_bulk *b, uint32_t chunk, uint8_t *scratch)
{
    uint8_t sum[NOVA_BULK_SUM];
    const uint8_t *bytes = nova_bulk_source(b, chunk, scratch);
    if (!bytes)
        return errno ? NOVA_BULK_EFILE : NOVA_BULK_ESHORT;
    nova_bulk_sum(&b->plan, bytes, nova_bulk_size(&b->plan, chunk), sum);
    return !memcmp(sum, b->sums + (size_t)chunk * NOVA_BULK_SUM, NOVA_BULK_SUM);
}

int nova_bulk_fill(nova_bulk *b, uint8_t *scratch)
{
    static const uint8_t unknown[NOVA_BULK_SUM];
    for (uint32_t chunk = 0; chunk < b->plan.chunks; chunk++) {
        uint8_t *sum = b->sums + (size_t)chunk * NOVA_BULK_SUM;
        if (memcmp(sum, unknown, NOVA_BULK_SUM))
            continue;
        const uint8_t *bytes = nova_bulk_source(b, chunk, scratch);
        if (!bytes)
            return errno ? NOVA_BULK_EFILE : NOVA_BULK_ESHORT;
        nova_bulk_sum(&b->plan, bytes, nova_bulk_size(&b->plan, chunk), sum);
    }
    return 0;
}
