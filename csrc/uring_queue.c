/* csrc/uring_queue.c - what waits to be sent on a connection, and what waits to be told. See uring_inner.h. */
#define _GNU_SOURCE
#include "uring_inner.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SPARE_MAX = 1024 };

int nova_events_put(nova_event **events, size_t *at, size_t *count, size_t *room, const nova_event *more, size_t n)
{
    if (*at == *count)
        *at = *count = 0;
    if (*at && *count + n > *room) {
        memmove(*events, *events + *at, (*count - *at) * sizeof **events);
        *count -= *at, *at = 0;
    }
    if (*count + n > *room) {
        size_t wanted = (*count + n) * 2;
        nova_event *grown = realloc(*events, wanted * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        *events = grown, *room = wanted;
    }
    memcpy(*events + *count, more, n * sizeof *more);
    *count += n;
    return 0;
}

void nova_engine_ring(nova_engine *e, int fd)
{
    uint64_t one = 1;
    ssize_t written;
    do
        written = NOVA_COUNTED(e, write(fd, &one, sizeof one));
    while (written < 0 && errno == EINTR);
}

/* ---- segments ---- */

void nova_segment_release(nova_engine *e, nova_segment *s)
{
    if (s->token)
        nova_engine_say(e, &(nova_event){.kind = NOVA_SENT, .token = s->token});
    if (s->standard && e->spare_count < SPARE_MAX) {
        s->next = e->spare;
        e->spare = s;
        e->spare_count++;
    } else {
        free(s);
    }
}

static void segment_over(nova_engine *e, nova_segment *s)
{
    s->over = true;
    if (!s->holds)
        nova_segment_release(e, s);
}

void nova_queue_append(nova_engine *e, nova_conn *c, nova_segment *s)
{
    s->next = NULL;
    s->conn = c;
    if (c->last)
        c->last->next = s;
    else
        c->first = s;
    c->last = s;
    nova_engine_dirty(e, c);
}

/* Small sends share a segment, so that they leave with one system call and need one entry of the gather. */
int nova_queue_copy(nova_engine *e, nova_conn *c, const uint8_t *bytes, size_t n)
{
    nova_segment *s = c->last;
    if (s && s->room && s->room - (size_t)(s->bytes + s->length - s->own) >= n) {
        memcpy((uint8_t *)s->bytes + s->length, bytes, n);
        s->length += n;
        nova_engine_dirty(e, c);
        return 0;
    }
    size_t room = NOVA_SEGMENT_BYTES - sizeof *s;
    if (n <= room && e->spare) {
        s = e->spare;
        e->spare = s->next;
        e->spare_count--;
    } else {
        s = malloc(sizeof *s + (n > room ? n : room));
        if (!s)
            return -ENOMEM;
    }
    *s = (nova_segment){.room = n > room ? n : room, .standard = n <= room};
    s->bytes = s->own;
    s->length = n;
    memcpy(s->own, bytes, n);
    nova_queue_append(e, c, s);
    return 0;
}

void nova_queue_drop(nova_engine *e, nova_conn *c)
{
    while (c->first) {
        nova_segment *s = c->first;
        c->first = s->next;
        segment_over(e, s);
    }
    c->last = NULL;
}

void nova_engine_took(nova_engine *e, nova_conn *c, size_t n)
{
    size_t before = atomic_fetch_sub(&c->queued, n), low = e->options.queue_bytes_low;
    e->stats.sent_bytes += n;
    while (n) {
        nova_segment *s = c->first;
        size_t part = s->length - s->sent < n ? s->length - s->sent : n;
        s->sent += part;
        n -= part;
        if (s->sent < s->length)
            break;
        c->first = s->next;
        if (!c->first)
            c->last = NULL;
        segment_over(e, s);
    }
    if (before > low && atomic_load(&c->queued) <= low)
        nova_engine_say(e, &(nova_event){.kind = NOVA_DRAINED, .connection = c->handle});
}

size_t nova_engine_gather(nova_conn *c, size_t apart_from)
{
    size_t bytes = 0, count = 0;
    for (nova_segment *s = c->first; s && count < NOVA_GATHER_MAX; s = s->next) {
        if (count && s->token && s->length - s->sent >= apart_from)
            break;
        c->gather[count++] = (struct iovec){(void *)(s->bytes + s->sent), s->length - s->sent};
        bytes += s->length - s->sent;
    }
    c->message = (struct msghdr){.msg_iov = c->gather, .msg_iovlen = count};
    return bytes;
}
