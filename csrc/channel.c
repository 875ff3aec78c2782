/* csrc/channel.c - what comes in; channel_out.c has what goes out. */
#define _GNU_SOURCE
#include "channel_inner.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { HEAD, TRACE, CONTROL, PIECE, INTO, TAIL };

static unsigned forks;

static void forked(void)
{
    forks++;
}

__attribute__((constructor)) static void prepare(void)
{
    pthread_atfork(NULL, NULL, forked);
}

unsigned nova_fork_count(void)
{
    return forks;
}

void nova_channel_begin(nova_channel *c)
{
    memset(c, 0, sizeof *c);
    c->lanes = 1;
    c->cut_lane = -1;
}

void nova_channel_end(nova_channel *c)
{
    nova_message message;
    int holds;
    c->ready = c->count;
    while (nova_channel_take(c, &message, &holds))
        if (holds)
            nova_block_drop(message.block);
    free(c->messages);
    c->messages = NULL;
    c->taken = c->ready = c->count = c->room = 0;
    for (int lane = 0; lane < NOVA_LANES; lane++) {
        nova_block_drop(c->assembly[lane].block);
        c->assembly[lane].block = NULL;
    }
    nova_channel_drop(c);
    nova_block_drop(c->slab);
    c->slab = NULL;
    if (c->spare)
        nova_channel_free_items(c->spare);
    c->spare = NULL;
}

/* ---- frames and their MAC ---- */

/* In constant time: how many bytes agree tells nobody anything. */
static int mac_fits(nova_mac *m, const uint8_t *given)
{
    uint8_t own[NOVA_FRAME_MAC], wrong = 0;
    mac_end(m, own);
    for (int i = 0; i < NOVA_FRAME_MAC; i++)
        wrong |= own[i] ^ given[i];
    return !wrong;
}

/* Bytes of the body that are not the MAC itself have been understood. */
static inline void absorb(nova_channel *c, const uint8_t *p, size_t n)
{
    if (!n)
        return;
    c->crc = nova_frame_crc32c(c->crc, p, n);
    if (c->mac_in.kind)
        mac_add(&c->mac_in, p, n);
}

/* ---- messages ---- */

static int push(nova_channel *c, const uint8_t *at, size_t size, nova_block *block)
{
    if (c->count == c->room) {
        if (c->taken > c->room / 2) {
            memmove(c->messages, c->messages + c->taken, (c->count - c->taken) * sizeof *c->messages);
            c->ready -= c->taken, c->count -= c->taken, c->taken = 0;
        } else {
            size_t room = c->room ? 2 * c->room : 64;
            nova_message *more = realloc(c->messages, room * sizeof *more);
            if (!more)
                return NOVA_EMEMORY;
            c->messages = more;
            c->room = room;
        }
    }
    if (c->taken == c->count || c->messages[c->count - 1].block != block)
        nova_block_hold(block); /* once for a run of neighbours */
    c->messages[c->count++] = (nova_message){at, size, block};
    return 0;
}

int nova_channel_take(nova_channel *c, nova_message *out, int *holds)
{
    if (c->taken == c->ready)
        return 0;
    *out = c->messages[c->taken++];
    *holds = c->taken == c->count || c->messages[c->taken].block != out->block;
    if (c->taken == c->count)
        c->taken = c->ready = c->count = 0;
    return 1;
}

/* ---- credit ---- */

static void grant(nova_channel *c)
{
    uint64_t limit = c->consumed + c->credit_bytes;
    if (c->taken == c->ready) /* a message that is larger than the credit slides the window */
        for (uint32_t lane = 0; lane < c->lanes; lane++)
            limit += c->assembly[lane].cost;
    if (limit > c->granted && limit - c->granted >= c->credit_bytes / 4) {
        c->granted = limit;
        __atomic_store_n(&c->grant, limit, __ATOMIC_RELEASE);
    }
}

void nova_channel_consumed(nova_channel *c, uint64_t cost)
{
    c->consumed += cost;
    grant(c);
}

/* ---- frames ---- */

static int begin_frame(nova_channel *c, const uint8_t *p)
{
    nova_frame *f = &c->frame;
    int code = nova_frame_read(p, c->frame_bytes_max, f);
    memcpy(c->head, p, NOVA_FRAME_HEADER);
    if (code)
        return code;
    int keyed = c->mac_in.kind != NOVA_MAC_NONE;
    if (keyed != !!(f->flags & NOVA_FLAG_MAC))
        return keyed ? NOVA_EMAC : NOVA_EFLAGS;
    if (f->sequence != c->sequence_in || f->stream >= (f->type == NOVA_FRAME_DATA ? c->lanes : 1))
        return NOVA_EORDER;
    if (c->peer_done)
        return NOVA_EAFTER;
    c->left = f->length - (keyed ? NOVA_FRAME_MAC : 0);
    c->more = c->pieces = 0;
    size_t payload = c->left - (f->flags & NOVA_FLAG_TRACE ? NOVA_FRAME_TRACE : 0);
    if (f->type >= NOVA_FRAME_CREDIT && f->type <= NOVA_FRAME_PONG) {
        c->bad = payload;
        if (payload != 8)
            return NOVA_ENUMBER;
    } else if (f->type == NOVA_FRAME_GOODBYE) {
        c->bad = payload;
        if (payload > NOVA_GOODBYE_BYTES_MAX)
            return NOVA_EGOODBYE;
    } else if (f->type != NOVA_FRAME_DATA) {
        return NOVA_ETYPE;
    }
    c->crc = nova_frame_crc32c(0, p, NOVA_FRAME_SIGNED);
    if (keyed)
        mac_begin(&c->mac_in, p, c->left);
    c->state = f->flags & NOVA_FLAG_TRACE ? TRACE : f->type == NOVA_FRAME_DATA ? PIECE : CONTROL;
    return 0;
}

/* The frame is whole and was made by the peer: what it says counts now. */
static int end_frame(nova_channel *c, uint64_t now_ns)
{
    uint64_t number = c->control_bytes == 8 ? get64(c->control) : 0;
    c->sequence_in++;
    c->state = HEAD;
    switch (c->frame.type) {
    case NOVA_FRAME_DATA:
        c->ready = c->count;
        grant(c);
        break;
    case NOVA_FRAME_CREDIT: /* credit never shrinks */
        if (number > c->may_send)
            __atomic_store_n(&c->may_send, number, __ATOMIC_RELEASE);
        break;
    case NOVA_FRAME_PING: {
        unsigned in = c->pongs_in;
        if (in - __atomic_load_n(&c->pongs_out, __ATOMIC_ACQUIRE) >= NOVA_PONGS)
            return NOVA_EPONGS;
        c->pongs[in % NOVA_PONGS] = number;
        __atomic_store_n(&c->pongs_in, in + 1, __ATOMIC_RELEASE);
        break;
    }
    case NOVA_FRAME_PONG:
        if (number <= now_ns) {
            /* Queues and busy loops only ever add to a round trip: down at once, up by an eighth (RFC 6298). */
            uint64_t sample = now_ns - number ? now_ns - number : 1, known = c->rtt_ns ? c->rtt_ns : sample;
            c->rtt_ns = sample < known ? sample : known + (sample - known) / 8;
        }
        break;
    case NOVA_FRAME_GOODBYE:
        for (uint32_t lane = 0; lane < c->lanes; lane++)
            if (c->assembly[lane].block && !c->expects_goodbye)
                return NOVA_EMIDDLE;
        memcpy(c->reason, c->control, c->control_bytes);
        c->reason_bytes = c->control_bytes;
        __atomic_store_n(&c->peer_done, 1, __ATOMIC_RELEASE);
        break;
    }
    return 0;
}

/* The piece that goes into a block of its own has all its bytes. */
static int end_piece(nova_channel *c)
{
    nova_assembly *a = &c->assembly[c->frame.stream];
    c->state = PIECE;
    c->after_large = a->filled >= NOVA_LARGE_BYTES;
    if (c->more)
        return 0;
    int code = push(c, a->block->data, a->filled, a->block);
    if (code)
        return code;
    c->consumed += a->cost - nova_cost(a->filled); /* what being cut has cost on top */
    c->hint = a->filled;
    nova_block_drop(a->block); /* the message holds it now */
    *a = (nova_assembly){0};
    return 0;
}

/* Room for n more bytes behind what the assembly has. How long a message gets is not known when its first piece comes,
 * so the last large one is taken for a pattern; without that a block doubles. */
static int widen(nova_channel *c, nova_assembly *a, size_t n, int more)
{
    size_t need = a->filled + n;
    if (a->block && a->block->room >= need)
        return 0;
    size_t want = a->block ? 2 * need : more && c->hint > need ? c->hint : need;
    if (want > c->message_bytes_max)
        want = c->message_bytes_max > need ? c->message_bytes_max : need;
    nova_block *block = nova_block_take(want ? want : 1);
    if (!block)
        return NOVA_EMEMORY;
    if (a->block)
        memcpy(block->data, a->block->data, a->filled);
    nova_block_drop(a->block);
    a->block = block;
    return 0;
}

/* One piece header stands at p. Sets *used to what was taken: 0 if the message is not whole yet and will stay here. */
static int begin_piece(nova_channel *c, const uint8_t *p, size_t n, size_t *used)
{
    nova_assembly *a = &c->assembly[c->frame.stream];
    size_t size = get32(p) & 0x7fffffff;
    int more = p[0] >> 7;
    *used = 0;
    if (size > c->left - NOVA_PIECE_HEADER) {
        c->bad = size;
        return NOVA_EPIECE;
    }
    if (more && !size)
        return NOVA_EHOLLOW;
    if (a->filled + size > c->message_bytes_max) {
        c->bad = a->filled + size;
        return NOVA_EMESSAGE;
    }
    uint64_t cost = nova_cost(size);
    if (c->arrived + cost > c->granted) {
        c->bad = c->arrived + cost - c->granted;
        return NOVA_ECREDIT;
    }
    int code = 0, inside = !a->block && !more && size < NOVA_LARGE_BYTES;
    if (inside) {
        if (n < NOVA_PIECE_HEADER + size)
            return 0;
        code = push(c, p + NOVA_PIECE_HEADER, size, c->slab);
        c->after_large = 0;
        *used = NOVA_PIECE_HEADER + size;
    } else {
        code = widen(c, a, size, more);
        a->cost += code ? 0 : cost;
        c->piece_left = size;
        c->state = INTO;
        *used = NOVA_PIECE_HEADER;
    }
    c->arrived += code ? 0 : cost;
    c->left -= NOVA_PIECE_HEADER + size;
    c->more = more;
    c->pieces++;
    return code;
}

/* Understand what stands in the slab. What is not whole stays there, and is never more than a small message. */
static int parse(nova_channel *c, uint64_t now_ns)
{
    const uint8_t *p = c->slab->data + c->slab_at, *end = c->slab->data + c->slab_end, *seen = p;
    int code = 0;
    for (;;) {
        size_t n = (size_t)(end - p), used;
        switch (c->state) {
        case HEAD:
            if (n && *p != 'N')
                code = NOVA_EFIRST, memcpy(c->head, p, n < 4 ? n : 4), c->bad = n < 4 ? n : 4;
            if (code || n < NOVA_FRAME_HEADER)
                goto out;
            if ((code = begin_frame(c, p)))
                goto out;
            p += NOVA_FRAME_HEADER;
            seen = p;
            continue;
        case TRACE:
            if (n < NOVA_FRAME_TRACE)
                goto out;
            p += NOVA_FRAME_TRACE;
            c->left -= NOVA_FRAME_TRACE;
            c->state = c->frame.type == NOVA_FRAME_DATA ? PIECE : CONTROL;
            continue;
        case CONTROL:
            if (n < c->left)
                goto out;
            c->control_bytes = c->left < NOVA_REASON_BYTES_MAX ? c->left : NOVA_REASON_BYTES_MAX;
            memcpy(c->control, p, c->control_bytes);
            p += c->left;
            c->left = 0;
            c->state = TAIL;
            continue;
        case PIECE:
            if (!c->left) {
                code = c->pieces ? 0 : NOVA_ENONE;
                c->state = TAIL;
            } else if (c->more) {
                code = NOVA_EPIECES;
            } else if (c->left < NOVA_PIECE_HEADER) {
                code = NOVA_ERAGGED;
                c->bad = c->left;
            } else {
                if (n < NOVA_PIECE_HEADER)
                    goto out;
                code = begin_piece(c, p, n, &used);
                if (!code && !used)
                    goto out;
                p += used;
            }
            if (code)
                goto out;
            continue;
        case INTO: {
            nova_assembly *a = &c->assembly[c->frame.stream];
            size_t take = n < c->piece_left ? n : c->piece_left;
            if (take)
                memcpy(a->block->data + a->filled, p, take);
            a->filled += take;
            c->piece_left -= take;
            p += take;
            if (c->piece_left)
                goto out;
            if ((code = end_piece(c)))
                goto out;
            continue;
        }
        case TAIL: {
            int keyed = c->mac_in.kind != NOVA_MAC_NONE;
            if (n < (keyed ? NOVA_FRAME_MAC : 0u))
                goto out;
            absorb(c, seen, (size_t)(p - seen));
            if (keyed) {
                c->crc = nova_frame_crc32c(c->crc, p, NOVA_FRAME_MAC);
                if (c->crc == c->frame.crc && !mac_fits(&c->mac_in, p))
                    code = NOVA_EMAC;
                p += NOVA_FRAME_MAC;
            }
            seen = p;
            if (c->crc != c->frame.crc)
                code = NOVA_ECRC;
            if (code || (code = end_frame(c, now_ns)))
                goto out;
            continue;
        }
        }
    }
out:
    if (c->state != HEAD && !code)
        absorb(c, seen, (size_t)(p - seen));
    c->slab_at = (size_t)(p - c->slab->data);
    return code;
}

/* ---- where bytes go ---- */

/* A slab with room behind slab_end: the same one if it has, else a new one, to which the little that is not understood
 * yet moves. */
static int make_room(nova_channel *c, size_t least)
{
    size_t rest = c->slab_end - c->slab_at;
    if (c->slab && !rest && nova_block_is_single(c->slab))
        c->slab_at = c->slab_end = 0; /* no message lies in it any more */
    if (c->slab && c->slab->room - c->slab_end >= least)
        return 0;
    nova_block *fresh = nova_block_take(NOVA_SLAB_BYTES);
    if (!fresh)
        return NOVA_EMEMORY;
    if (rest)
        memcpy(fresh->data, c->slab->data + c->slab_at, rest);
    nova_block_drop(c->slab);
    c->slab = fresh;
    c->slab_at = 0;
    c->slab_end = rest;
    return 0;
}

/* Room that is worth a read. What stands in the slab unfinished is less than a large message, so there always is. */
static size_t worth(const nova_channel *c)
{
    size_t rest = c->slab_end - c->slab_at;
    size_t least = NOVA_LARGE_BYTES + NOVA_PIECE_HEADER + NOVA_FRAME_MAC;
    return rest < least ? least - rest : NOVA_AHEAD_BYTES;
}

int nova_channel_where(nova_channel *c, struct iovec where[2])
{
    int count = 0;
    if (c->state == INTO && c->piece_left) {
        nova_assembly *a = &c->assembly[c->frame.stream];
        if (make_room(c, NOVA_AHEAD_BYTES))
            return NOVA_EMEMORY;
        where[count++] = (struct iovec){a->block->data + a->filled, c->piece_left};
        where[count++] = (struct iovec){c->slab->data + c->slab_end, NOVA_AHEAD_BYTES};
        return count;
    }
    if (make_room(c, worth(c)))
        return NOVA_EMEMORY;
    where[count++] = (struct iovec){c->slab->data + c->slab_end, c->slab->room - c->slab_end};
    /* Behind one large piece only the headers of the next are read here: it goes into its own block, without the detour
     * through the slab. */
    if (c->after_large && c->slab_end - c->slab_at < NOVA_AHEAD_BYTES)
        where[0].iov_len = NOVA_AHEAD_BYTES;
    return count;
}

int nova_channel_arrived(nova_channel *c, size_t n, uint64_t now_ns)
{
    c->received_bytes += n;
    c->heard_ns = now_ns;
    if (c->state == INTO && c->piece_left) {
        nova_assembly *a = &c->assembly[c->frame.stream];
        size_t take = n < c->piece_left ? n : c->piece_left;
        absorb(c, a->block->data + a->filled, take);
        a->filled += take;
        c->piece_left -= take;
        n -= take;
        int code = c->piece_left ? 0 : end_piece(c);
        if (code || c->piece_left)
            return code;
    }
    c->slab_end += n;
    return parse(c, now_ns);
}

int nova_channel_feed(nova_channel *c, const uint8_t *p, size_t n, uint64_t now_ns)
{
    int code = 0;
    while (n && !code) {
        struct iovec where[2];
        code = nova_channel_where(c, where);
        if (code < 0)
            return code;
        size_t take = n < where[0].iov_len ? n : where[0].iov_len;
        memcpy(where[0].iov_base, p, take);
        p += take;
        n -= take;
        code = nova_channel_arrived(c, take, now_ns);
    }
    return code;
}

int nova_channel_read(nova_channel *c, int fd, int flags, uint64_t (*now_ns)(void), size_t *got)
{
    struct iovec where[2];
    int count = nova_channel_where(c, where);
    *got = 0;
    if (count < 0)
        return count;
    ssize_t n;
    c->calls++;
    if (count == 1) {
        n = recv(fd, where[0].iov_base, where[0].iov_len, flags);
    } else {
        struct msghdr message = {.msg_iov = where, .msg_iovlen = (size_t)count};
        n = recvmsg(fd, &message, flags);
    }
    if (n > 0) {
        *got = (size_t)n;
        return nova_channel_arrived(c, (size_t)n, now_ns());
    }
    if (!n)
        return NOVA_EEND;
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
        return NOVA_WAITS;
    c->system = errno;
    return NOVA_ESYSTEM;
}
