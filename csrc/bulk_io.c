/* csrc/bulk_io.c - the loops of csrc/bulk.h */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bulk.h"
#include "frame.h"

static int broken(nova_bulk_stream *s, int code)
{
    s->cause = errno;
    return code;
}

/* Write all of it. The array is used up. */
static int write_all(nova_bulk_stream *s, struct iovec *part, int count)
{
    while (count) {
        struct msghdr message = {.msg_iov = part, .msg_iovlen = (size_t)count};
        ssize_t left = sendmsg(s->fd, &message, MSG_NOSIGNAL);
        if (left < 0) {
            if (errno == EINTR)
                continue;
            return broken(s, NOVA_BULK_ESOCKET);
        }
        for (; count && (size_t)left >= part->iov_len; part++, count--)
            left -= (ssize_t)part->iov_len;
        if (count) {
            part->iov_base = (uint8_t *)part->iov_base + left;
            part->iov_len -= (size_t)left;
        }
    }
    return 0;
}

/* Read all of it. */
static int read_all(nova_bulk_stream *s, uint8_t *into, size_t n)
{
    while (n) {
        ssize_t got = recv(s->fd, into, n, MSG_WAITALL);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return broken(s, NOVA_BULK_ESOCKET);
        }
        if (got == 0)
            return NOVA_BULK_EHANGUP;
        into += got;
        n -= (size_t)got;
    }
    return 0;
}

/* ---- sending ---- */

/* The next chunk to send, or NOVA_BULK_NONE. Chunks that came back go first: others wait behind them. */
static uint32_t take(nova_bulk *b)
{
    while (b->listed) {
        uint32_t chunk = b->list[--b->listed];
        if (b->state[chunk] == NOVA_BULK_TODO) {
            b->state[chunk] = NOVA_BULK_TAKEN;
            return chunk;
        }
    }
    for (; b->cursor < b->plan.chunks; b->cursor++)
        if (b->state[b->cursor] == NOVA_BULK_TODO) {
            b->state[b->cursor] = NOVA_BULK_TAKEN;
            return b->cursor++;
        }
    return NOVA_BULK_NONE;
}

static void give_back(nova_bulk *b, uint32_t chunk)
{
    if (b->state[chunk] == NOVA_BULK_TAKEN) {
        b->state[chunk] = NOVA_BULK_TODO;
        b->list[b->listed++] = chunk;
    }
}

/* Until the pace allows n more bytes. The lock is held, and let go while waiting. */
static void keep_pace(nova_bulk *b, nova_bulk_stream *s, size_t n)
{
    if (!b->pace_bytes_s)
        return;
    uint64_t now = nova_bulk_now_ns(), turn_ns = (uint64_t)((double)n * 1e9 / (double)b->pace_bytes_s);
    uint64_t due = b->pace_due_ns > now ? b->pace_due_ns : now; /* time that nobody used is not made up for */
    b->pace_due_ns = due + turn_ns;
    struct timespec until = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)};
    while (!b->closed && !s->cut && nova_bulk_now_ns() < due)
        pthread_cond_timedwait(&b->change, &b->lock, &until);
}

static int send_chunk(nova_bulk *b, nova_bulk_stream *s, uint32_t chunk)
{
    const nova_bulk_plan *plan = &b->plan;
    uint8_t head[NOVA_BULK_HEAD], mac[NOVA_BULK_MAC], *sum = b->sums + (size_t)chunk * NOVA_BULK_SUM;
    size_t n = nova_bulk_size(plan, chunk);
    const uint8_t *bytes = nova_bulk_source(b, chunk, s->scratch);
    if (!bytes)
        return errno ? broken(s, NOVA_BULK_EFILE) : NOVA_BULK_ESHORT;
    uint32_t crc = nova_bulk_sum(plan, bytes, n, sum);
    uint32_t power = n == plan->chunk_bytes ? s->power : nova_bulk_crc_power(n);
    nova_bulk_write(plan, head, s->keyed, s->sequence_out++, chunk);
    if (s->keyed)
        nova_bulk_mac(head, sum, s->key_out, mac);
    uint32_t whole = nova_bulk_frame_crc(head, crc, power, s->keyed ? mac : NULL);
    for (int i = 0; i < 4; i++)
        head[20 + i] = (uint8_t)(whole >> (24 - 8 * i));
    struct iovec parts[3] = {{head, sizeof head}, {(void *)bytes, n}, {mac, sizeof mac}};
    return write_all(s, parts, s->keyed ? 3 : 2);
}

static void acknowledged(nova_bulk *b, nova_bulk_stream *s, uint64_t count)
{
    pthread_mutex_lock(&b->lock);
    s->heard_ns = nova_bulk_now_ns();
    for (; s->acked < count; s->acked++) {
        uint32_t chunk = s->ring[s->first];
        s->first = (s->first + 1) % NOVA_BULK_WINDOW;
        s->waiting--;
        if (b->state[chunk] != NOVA_BULK_DONE) {
            b->state[chunk] = NOVA_BULK_DONE;
            b->done++;
            b->done_bytes += nova_bulk_size(&b->plan, chunk);
        }
        s->moved_bytes += nova_bulk_size(&b->plan, chunk);
    }
    if (b->done == b->plan.chunks) {
        b->events++;
        pthread_cond_broadcast(&b->change);
    }
    pthread_mutex_unlock(&b->lock);
}

/* Take in what acknowledgements have come; with `wait_ms`, wait so long for the first. */
static int read_acks(nova_bulk *b, nova_bulk_stream *s, int wait_ms)
{
    size_t size = NOVA_BULK_HEAD + (s->keyed ? NOVA_BULK_MAC : 0);
    if (wait_ms) {
        struct pollfd one = {s->fd, POLLIN, 0};
        if (poll(&one, 1, wait_ms) == 0)
            return 0;
    }
    for (;;) {
        ssize_t got = recv(s->fd, s->inbox + s->held, sizeof s->inbox - s->held, MSG_DONTWAIT);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : broken(s, NOVA_BULK_ESOCKET);
        }
        if (got == 0)
            return NOVA_BULK_EHANGUP;
        s->held += (uint32_t)got;
        size_t at = 0;
        for (; s->held - at >= size; at += size) {
            uint64_t count;
            int code = nova_bulk_read_ack(&b->plan, s->inbox + at, s->keyed ? s->key_in : NULL, s->sequence_in, &count);
            if (code)
                return code;
            s->sequence_in++;
            if (count < s->acked || count - s->acked > s->waiting)
                return NOVA_BULK_EACK;
            acknowledged(b, s, count);
        }
        memmove(s->inbox, s->inbox + at, s->held - at);
        s->held -= (uint32_t)at;
    }
}

/* Whoever cuts or closes afterwards finds the stream on the list, and ends it by its socket. */
static int enter(nova_bulk *b, nova_bulk_stream *s)
{
    s->power = nova_bulk_crc_power(b->plan.chunk_bytes);
    s->claimed = NOVA_BULK_NONE;
    pthread_mutex_lock(&b->lock);
    s->heard_ns = nova_bulk_now_ns();
    s->next = b->streams;
    b->streams = s;
    int code = b->closed || s->cut ? NOVA_BULK_ECUT : 0;
    pthread_mutex_unlock(&b->lock);
    return code;
}

/* How the loop ended, seen from here. The lock is held: once it is let go the stream may be freed. */
static int leave(nova_bulk *b, nova_bulk_stream *s, int code)
{
    int lost = code == NOVA_BULK_EHANGUP || code == NOVA_BULK_ESOCKET;
    nova_bulk_stream **at = &b->streams;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    b->events++;
    pthread_cond_broadcast(&b->change);
    if (s->cut || b->closed)
        return !code || lost ? NOVA_BULK_ECUT : code;
    return lost && b->done == b->plan.chunks ? 0 : code; /* who has all may close first */
}

int nova_bulk_send(nova_bulk *b, nova_bulk_stream *s)
{
    int code = enter(b, s);
    uint32_t chunk = NOVA_BULK_NONE;
    pthread_mutex_lock(&b->lock);
    while (!code) {
        if (b->closed || s->cut) {
            code = NOVA_BULK_ECUT;
            break;
        }
        if (b->done == b->plan.chunks)
            break;
        chunk = !s->leave && s->waiting < NOVA_BULK_WINDOW ? take(b) : NOVA_BULK_NONE;
        if (chunk != NOVA_BULK_NONE) {
            keep_pace(b, s, nova_bulk_size(&b->plan, chunk));
            uint32_t last = (s->first + s->waiting++) % NOVA_BULK_WINDOW;
            s->ring[last] = chunk;
            s->ring_ns[last] = nova_bulk_now_ns();
            int look = s->waiting >= NOVA_BULK_ACK_EVERY;
            pthread_mutex_unlock(&b->lock);
            code = send_chunk(b, s, chunk);
            if (!code && look)
                code = read_acks(b, s, 0);
            pthread_mutex_lock(&b->lock);
        } else if (s->waiting) {
            pthread_mutex_unlock(&b->lock);
            code = read_acks(b, s, NOVA_BULK_PATIENCE_MS); /* what others give back is looked for in between */
            pthread_mutex_lock(&b->lock);
        } else if (s->leave) {
            break;
        } else {
            pthread_cond_wait(&b->change, &b->lock);
        }
    }
    for (; s->waiting; s->waiting--, s->first = (s->first + 1) % NOVA_BULK_WINDOW)
        give_back(b, s->ring[s->first]);
    code = leave(b, s, code);
    pthread_mutex_unlock(&b->lock);
    return code;
}

/* ---- receiving ---- */

/* Make this stream the one that places the chunk; *have: it is in place already. */
static int claim(nova_bulk *b, nova_bulk_stream *s, uint32_t chunk, int *have)
{
    int code = 0;
    pthread_mutex_lock(&b->lock);
    for (;;) {
        if (b->closed || s->cut) {
            code = NOVA_BULK_ECUT;
            break;
        }
        *have = b->state[chunk] == NOVA_BULK_DONE;
        if (*have)
            break;
        if (b->state[chunk] == NOVA_BULK_TODO) {
            b->state[chunk] = NOVA_BULK_TAKEN;
            s->claimed = chunk;
            break;
        }
        /* The sender has given the stream up on which this chunk came first. Two must not write one place. */
        for (nova_bulk_stream *other = b->streams; other; other = other->next)
            if (other->claimed == chunk) {
                other->cut = 1;
                shutdown(other->fd, SHUT_RDWR);
            }
        pthread_cond_wait(&b->change, &b->lock);
    }
    pthread_mutex_unlock(&b->lock);
    return code;
}

static int write_file(nova_bulk *b, nova_bulk_stream *s, const uint8_t *p, size_t n, uint64_t offset)
{
    while (n) {
        ssize_t put = pwrite(b->file, p, n, (off_t)(b->base + offset));
        if (put < 0) {
            if (errno == EINTR)
                continue;
            return broken(s, NOVA_BULK_EFILE);
        }
        p += put;
        n -= (size_t)put;
        offset += (uint64_t)put;
    }
    return 0;
}

static int send_ack(nova_bulk *b, nova_bulk_stream *s)
{
    uint8_t frame[NOVA_BULK_HEAD + NOVA_BULK_MAC];
    if (!s->unacked)
        return 0;
    s->unacked = 0;
    size_t n = nova_bulk_write_ack(&b->plan, frame, s->keyed ? s->key_out : NULL, s->sequence_out++, s->placed);
    struct iovec part = {frame, n};
    return write_all(s, &part, 1);
}

/* The head of the next frame; what is placed is acknowledged before the stream waits. *ended: there is none. */
static int next_head(nova_bulk *b, nova_bulk_stream *s, uint8_t *head, int *ended)
{
    ssize_t got = recv(s->fd, head, NOVA_BULK_HEAD, MSG_DONTWAIT);
    while (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        int code = send_ack(b, s);
        if (code)
            return code;
        got = recv(s->fd, head, NOVA_BULK_HEAD, MSG_WAITALL);
    }
    if (got < 0)
        return broken(s, NOVA_BULK_ESOCKET);
    *ended = got == 0;
    return got == 0 ? 0 : read_all(s, head + got, NOVA_BULK_HEAD - (size_t)got);
}

/* One chunk, to its place. */
static int place(nova_bulk *b, nova_bulk_stream *s, const uint8_t *head, uint32_t chunk, int have)
{
    const nova_bulk_plan *plan = &b->plan;
    uint64_t offset = (uint64_t)chunk * plan->chunk_bytes;
    size_t n = nova_bulk_size(plan, chunk);
    uint8_t *into = have || !b->memory ? s->scratch : b->memory + offset;
    uint8_t sum[NOVA_BULK_SUM], mac[NOVA_BULK_MAC], expected[NOVA_BULK_MAC], differs = 0;
    int code = read_all(s, into, n);
    if (!code && s->keyed)
        code = read_all(s, mac, sizeof mac);
    if (code)
        return code;
    uint32_t crc = nova_bulk_sum(plan, into, n, sum);
    uint32_t power = n == plan->chunk_bytes ? s->power : nova_bulk_crc_power(n);
    uint32_t whole = nova_bulk_frame_crc(head, crc, power, s->keyed ? mac : NULL);
    for (int i = 0; i < 4; i++)
        differs |= (uint8_t)(head[20 + i] ^ (uint8_t)(whole >> (24 - 8 * i)));
    if (differs)
        return NOVA_BULK_ECRC;
    if (s->keyed) {
        nova_bulk_mac(head, sum, s->key_in, expected);
        for (int i = 0; i < NOVA_BULK_MAC; i++)
            differs |= (uint8_t)(mac[i] ^ expected[i]);
        if (differs)
            return NOVA_BULK_EMAC;
    }
    uint8_t *known = b->sums + (size_t)chunk * NOVA_BULK_SUM;
    if (have)
        return memcmp(known, sum, NOVA_BULK_SUM) ? NOVA_BULK_EOTHER : 0;
    if (!b->memory && (code = write_file(b, s, into, n, offset)))
        return code;
    memcpy(known, sum, NOVA_BULK_SUM); /* nobody reads it before the chunk is done */
    return 0;
}

int nova_bulk_receive(nova_bulk *b, nova_bulk_stream *s)
{
    uint8_t head[NOVA_BULK_HEAD];
    int code = enter(b, s), ended = 0, have = 0;
    while (!code) {
        uint32_t chunk;
        code = next_head(b, s, head, &ended);
        if (code || ended)
            break;
        if ((code = nova_bulk_read(&b->plan, head, s->keyed, s->sequence_in++, &chunk)))
            break;
        if ((code = claim(b, s, chunk, &have)))
            break;
        code = place(b, s, head, chunk, have);
        pthread_mutex_lock(&b->lock);
        s->claimed = NOVA_BULK_NONE;
        if (!have) {
            b->state[chunk] = code ? NOVA_BULK_TODO : NOVA_BULK_DONE;
            if (!code) {
                b->list[b->listed++] = chunk;
                b->done++;
                b->done_bytes += nova_bulk_size(&b->plan, chunk);
            }
            if (b->done == b->plan.chunks)
                b->events++;
            if (code || b->done == b->plan.chunks)
                pthread_cond_broadcast(&b->change);
        }
        if (!code) {
            s->moved_bytes += nova_bulk_size(&b->plan, chunk);
            s->heard_ns = nova_bulk_now_ns();
        }
        pthread_mutex_unlock(&b->lock);
        if (code)
            break;
        s->placed++;
        if (++s->unacked >= NOVA_BULK_ACK_EVERY && (code = send_ack(b, s)))
            break;
    }
    pthread_mutex_lock(&b->lock);
    code = leave(b, s, code);
    pthread_mutex_unlock(&b->lock);
    return code;
}
