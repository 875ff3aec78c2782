/* csrc/channel_out.c - what goes out: messages queued by priority, cut into frames, sent without being joined. */
#define _GNU_SOURCE
#include "channel_inner.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { PIECES_BYTES = 65536, CUT_HEAD = NOVA_FRAME_HEADER + NOVA_PIECE_HEADER };

/* ---- the queue ---- */

static void append(nova_channel *c, int lane, nova_item *item)
{
    item->next = NULL;
    if (c->first[lane])
        c->last[lane]->next = item;
    else
        c->first[lane] = item;
    c->last[lane] = item;
}

static int is_full(const nova_channel *c, uint64_t cost)
{
    return c->queue_bytes && c->queue_bytes + cost > c->queue_bytes_max;
}

/* An item whose block has room for one more piece of n bytes. */
static nova_item *with_room(nova_channel *c, int lane, size_t n)
{
    nova_item *item = c->first[lane] ? c->last[lane] : NULL;
    /* A frame never spans two items, so none may hold more than a frame takes. */
    size_t most = c->payload_bytes < PIECES_BYTES ? c->payload_bytes : PIECES_BYTES;
    if (item && !item->whole && item->size + NOVA_PIECE_HEADER + n <= most)
        return item;
    item = c->spare;
    c->spare = NULL;
    if (!item) {
        item = calloc(1, sizeof *item);
        nova_block *block = item ? nova_block_take(PIECES_BYTES) : NULL;
        if (!block) {
            free(item);
            return NULL;
        }
        item->block = block;
        item->data = block->data;
    }
    append(c, lane, item);
    return item;
}

static inline void add_piece(nova_channel *c, nova_item *item, const uint8_t *p, size_t n)
{
    uint8_t *to = item->block->data + item->size;
    put32(to, (uint32_t)n);
    if (n)
        memcpy(to + NOVA_PIECE_HEADER, p, n);
    item->size += NOVA_PIECE_HEADER + n;
    c->queue_bytes += nova_cost(n);
}

static int is_small(const nova_channel *c, size_t n)
{
    return n <= NOVA_SMALL_BYTES && n + NOVA_PIECE_HEADER <= c->payload_bytes;
}

int nova_channel_lend(nova_channel *c, int lane, const uint8_t *p, size_t n, void *owner)
{
    if (is_full(c, nova_cost(n)))
        return NOVA_WAITS;
    nova_item *item = calloc(1, sizeof *item);
    if (!item)
        return NOVA_EMEMORY;
    *item = (nova_item){.owner = owner, .data = p, .size = n, .whole = 1};
    append(c, lane, item);
    c->queue_bytes += nova_cost(n);
    return 0;
}

int nova_channel_copy(nova_channel *c, int lane, const uint8_t *p, size_t n)
{
    if (is_full(c, nova_cost(n)))
        return NOVA_WAITS;
    if (is_small(c, n)) {
        nova_item *item = with_room(c, lane, n);
        if (!item)
            return NOVA_EMEMORY;
        add_piece(c, item, p, n);
        return 0;
    }
    nova_block *block = nova_block_take(n);
    if (!block)
        return NOVA_EMEMORY;
    memcpy(block->data, p, n);
    int code = nova_channel_lend(c, lane, block->data, n, NULL);
    if (code)
        nova_block_drop(block);
    else
        c->last[lane]->block = block;
    return code;
}

int nova_channel_copy_many(nova_channel *c, int lane, const uint8_t *p, const int64_t *offsets, size_t count,
                           size_t *done)
{
    int code = 0;
    for (size_t i = *done; i < count && !code; i += !code, *done = i)
        code = nova_channel_copy(c, lane, p + offsets[i], (size_t)(offsets[i + 1] - offsets[i]));
    return code;
}

/* Its bytes have all left or are in flight. */
static void leave(nova_channel *c, nova_item *item)
{
    item->next = c->leaving;
    c->leaving = item;
}

static void free_item(nova_channel *c, nova_item *item)
{
    if (!item->whole && !c->spare) {
        item->next = NULL;
        item->size = item->sent = 0;
        c->spare = item;
        return;
    }
    nova_block_drop(item->block);
    free(item);
}

/* Nothing is in flight: what has left is gone. Owners have to be given back by who lent them. */
static void settle(nova_channel *c)
{
    while (c->leaving) {
        nova_item *item = c->leaving;
        c->leaving = item->next;
        if (item->owner) {
            item->next = c->gone;
            c->gone = item;
        } else {
            free_item(c, item);
        }
    }
}

nova_item *nova_channel_gone(nova_channel *c)
{
    if (c->flight_at == c->flight_count)
        settle(c);
    nova_item *gone = c->gone;
    c->gone = NULL;
    return gone;
}

void nova_channel_free_items(nova_item *items)
{
    while (items) {
        nova_item *next = items->next;
        nova_block_drop(items->block);
        free(items);
        items = next;
    }
}

static int reclaim(nova_channel *c, nova_item *item)
{
    nova_block *block = nova_block_take(item->size ? item->size : 1);
    if (!block)
        return NOVA_EMEMORY;
    memcpy(block->data, item->data, item->size);
    for (size_t i = c->flight_at; i < c->flight_count; i++) {
        const uint8_t *at = c->flight[i].iov_base;
        if (at >= item->data && at < item->data + item->size)
            c->flight[i].iov_base = block->data + (at - item->data);
    }
    item->data = block->data;
    item->block = block;
    item->owner = NULL;
    return 0;
}

int nova_channel_reclaim(nova_channel *c, void *owner)
{
    for (nova_item *item = c->leaving; item; item = item->next)
        if (item->owner == owner)
            return reclaim(c, item);
    for (int lane = 0; lane < NOVA_LANES; lane++)
        for (nova_item *item = c->first[lane]; item; item = item->next)
            if (item->owner == owner)
                return reclaim(c, item);
    return 0;
}

void nova_channel_close(nova_channel *c, const uint8_t *reason, size_t n, int discard)
{
    for (int lane = 0; lane < NOVA_LANES && discard; lane++)
        while (c->first[lane]) {
            nova_item *item = c->first[lane];
            c->first[lane] = item->next;
            leave(c, item);
        }
    if (discard)
        c->queue_bytes = 0;
    if (c->closing)
        return;
    c->closing = c->expects_goodbye = 1;
    c->goodbye_bytes = n < NOVA_REASON_BYTES_MAX ? n : NOVA_REASON_BYTES_MAX;
    if (c->goodbye_bytes)
        memcpy(c->goodbye + NOVA_FRAME_HEADER, reason, c->goodbye_bytes);
}

void nova_channel_drop(nova_channel *c)
{
    nova_channel_close(c, NULL, 0, 1);
    c->flight_at = c->flight_count = 0;
    settle(c);
}

/* ---- frames ---- */

int nova_channel_has_control(const nova_channel *c)
{
    return __atomic_load_n(&c->grant, __ATOMIC_ACQUIRE) > c->announced || c->ping_ns ||
           __atomic_load_n(&c->pongs_in, __ATOMIC_ACQUIRE) != c->pongs_out;
}

static int has_data(const nova_channel *c)
{
    for (int lane = 0; lane < NOVA_LANES; lane++)
        if (c->first[lane])
            return 1;
    return 0;
}

int nova_channel_has_output(const nova_channel *c)
{
    return !c->done && (c->flight_at < c->flight_count || nova_channel_has_control(c) || has_data(c) || c->closing);
}

/* Header, checksum and MAC around a body: `prefix` bytes of it stand behind the header in head, n at p. */
static int seal(nova_channel *c, uint8_t *head, int type, uint32_t stream, size_t prefix, const uint8_t *p, size_t n,
                uint8_t *mac, struct iovec parts[3])
{
    int keyed = c->mac_out.kind != NOVA_MAC_NONE, count = 0;
    nova_frame frame = {.type = (uint8_t)type,
                        .flags = keyed ? NOVA_FLAG_MAC : 0,
                        .length = (uint32_t)(prefix + n + (keyed ? NOVA_FRAME_MAC : 0)),
                        .stream = stream,
                        .sequence = c->sequence_out++};
    nova_frame_write_signed(head, &frame);
    uint32_t crc = nova_frame_crc32c(0, head, NOVA_FRAME_SIGNED);
    crc = nova_frame_crc32c(crc, head + NOVA_FRAME_HEADER, prefix);
    crc = nova_frame_crc32c(crc, p, n);
    parts[count++] = (struct iovec){head, NOVA_FRAME_HEADER + prefix};
    if (n)
        parts[count++] = (struct iovec){(void *)(uintptr_t)p, n};
    if (keyed) {
        mac_begin(&c->mac_out, head, prefix + n);
        if (prefix)
            mac_add(&c->mac_out, head + NOVA_FRAME_HEADER, prefix);
        if (n)
            mac_add(&c->mac_out, p, n);
        mac_end(&c->mac_out, mac);
        crc = nova_frame_crc32c(crc, mac, NOVA_FRAME_MAC);
        if (!n && mac == head + NOVA_FRAME_HEADER + prefix)
            parts[0].iov_len += NOVA_FRAME_MAC;
        else
            parts[count++] = (struct iovec){mac, NOVA_FRAME_MAC};
    }
    put32(head + 20, crc);
    c->sent_bytes += NOVA_FRAME_HEADER + frame.length;
    return count;
}

static int number(nova_channel *c, uint8_t *head, int type, uint64_t value, struct iovec parts[3])
{
    put64(head + NOVA_FRAME_HEADER, value);
    return seal(c, head, type, 0, 8, NULL, 0, head + NOVA_FRAME_HEADER + 8, parts);
}

static void pop(nova_channel *c, int lane)
{
    nova_item *item = c->first[lane];
    c->first[lane] = item->next;
    leave(c, item);
}

/* As many whole pieces as frame and credit take. */
static int frame_of_pieces(nova_channel *c, uint8_t *head, int lane, uint64_t credit, struct iovec parts[3])
{
    nova_item *item = c->first[lane];
    size_t from = item->sent, to = from;
    uint64_t charged = 0;
    while (to < item->size) {
        size_t piece = get32(item->data + to);
        if (charged + nova_cost(piece) > credit)
            break;
        charged += nova_cost(piece);
        to += NOVA_PIECE_HEADER + piece;
    }
    if (to == from)
        return 0;
    item->sent = to;
    c->data_out += charged;
    c->queue_bytes -= charged;
    if (to == item->size)
        pop(c, lane);
    return seal(c, head, NOVA_FRAME_DATA, (uint32_t)lane % c->lanes, 0, item->data + from, to - from,
                head + CUT_HEAD + 4, parts);
}

/* As much of one message as frame and credit take. */
static int frame_of_message(nova_channel *c, uint8_t *head, int lane, uint64_t credit, struct iovec parts[3])
{
    nova_item *item = c->first[lane];
    size_t from = item->sent, left = item->size - from, take = left;
    if (credit < NOVA_PIECE_MIN && credit < nova_cost(left))
        return 0;
    if (take + NOVA_PIECE_HEADER > c->payload_bytes)
        take = c->payload_bytes - NOVA_PIECE_HEADER;
    if (nova_cost(take) > credit)
        take = (size_t)credit - NOVA_PIECE_HEADER;
    int more = take < left;
    put32(head + NOVA_FRAME_HEADER, (uint32_t)take | (more ? 0x80000000u : 0));
    item->sent += take;
    c->data_out += nova_cost(take);
    c->queue_bytes -= more ? take : nova_cost(item->size) - from;
    c->cut_lane = more ? lane : -1;
    if (!more)
        pop(c, lane);
    return seal(c, head, NOVA_FRAME_DATA, (uint32_t)lane % c->lanes, NOVA_PIECE_HEADER, item->data + from, take,
                head + CUT_HEAD + 4, parts);
}

int nova_channel_frame(nova_channel *c, uint8_t *head, int data, struct iovec parts[3])
{
    if (c->done)
        return 0;
    if (__atomic_load_n(&c->pongs_in, __ATOMIC_ACQUIRE) != c->pongs_out) {
        uint64_t value = c->pongs[c->pongs_out % NOVA_PONGS];
        __atomic_store_n(&c->pongs_out, c->pongs_out + 1, __ATOMIC_RELEASE);
        return number(c, head, NOVA_FRAME_PONG, value, parts);
    }
    uint64_t granted = __atomic_load_n(&c->grant, __ATOMIC_ACQUIRE);
    if (granted > c->announced) {
        c->announced = granted;
        return number(c, head, NOVA_FRAME_CREDIT, granted, parts);
    }
    if (c->ping_ns) {
        uint64_t value = c->ping_ns;
        c->ping_ns = 0;
        return number(c, head, NOVA_FRAME_PING, value, parts);
    }
    if (!data)
        return 0;
    /* A peer that knows no lanes gets a message to its end before the next begins. */
    int lane = c->lanes == 1 && c->cut_lane >= 0 ? c->cut_lane : NOVA_LANES - 1;
    while (lane > 0 && !c->first[lane])
        lane--;
    if (c->first[lane]) {
        if (__atomic_load_n(&c->peer_done, __ATOMIC_ACQUIRE))
            return 0;
        uint64_t credit = __atomic_load_n(&c->may_send, __ATOMIC_ACQUIRE) - c->data_out;
        return c->first[lane]->whole ? frame_of_message(c, head, lane, credit, parts)
                                     : frame_of_pieces(c, head, lane, credit, parts);
    }
    if (c->closing) {
        c->done = 1;
        return seal(c, c->goodbye, NOVA_FRAME_GOODBYE, 0, c->goodbye_bytes, NULL, 0,
                    c->goodbye + NOVA_FRAME_HEADER + c->goodbye_bytes, parts);
    }
    return 0;
}

/* ---- a socket ---- */

static void take_off(nova_channel *c, int data)
{
    size_t bytes = 0;
    settle(c);
    c->flight_at = c->flight_count = 0;
    for (int i = 0; i < NOVA_FLIGHT_FRAMES && bytes < NOVA_FLIGHT_BYTES; i++) {
        int count = nova_channel_frame(c, c->heads[i], data, c->flight + c->flight_count);
        if (!count)
            break;
        for (int part = 0; part < count; part++)
            bytes += c->flight[c->flight_count++].iov_len;
    }
    if (c->flight_count < 2 || bytes > sizeof c->together)
        return;
    /* Copying little is quicker than what the kernel does about two places instead of one. */
    uint8_t *to = c->together;
    for (size_t i = 0; i < c->flight_count; i++) {
        memcpy(to, c->flight[i].iov_base, c->flight[i].iov_len);
        to += c->flight[i].iov_len;
    }
    c->flight[0] = (struct iovec){c->together, bytes};
    c->flight_count = 1;
}

int nova_channel_write(nova_channel *c, int fd, int flags, int data)
{
    for (;;) {
        if (c->flight_at == c->flight_count) {
            take_off(c, data);
            if (!c->flight_count)
                return 0;
        }
        struct msghdr message = {.msg_iov = c->flight + c->flight_at, .msg_iovlen = c->flight_count - c->flight_at};
        ssize_t n = message.msg_iovlen == 1
                        ? send(fd, message.msg_iov->iov_base, message.msg_iov->iov_len, flags | MSG_NOSIGNAL)
                        : sendmsg(fd, &message, flags | MSG_NOSIGNAL);
        c->calls++;
        if (n < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ENOBUFS)
                return NOVA_WAITS;
            c->system = errno;
            return NOVA_ESYSTEM;
        }
        /* The kernel may take less than it was given, in the middle of any part. */
        while (c->flight_at < c->flight_count && (size_t)n >= c->flight[c->flight_at].iov_len)
            n -= (ssize_t)c->flight[c->flight_at++].iov_len;
        if (n) {
            c->flight[c->flight_at].iov_base = (uint8_t *)c->flight[c->flight_at].iov_base + n;
            c->flight[c->flight_at].iov_len -= (size_t)n;
        }
    }
}
