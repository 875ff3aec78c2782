/* csrc/uring_batch.c - engines that their caller drives, and bytes of many connections at a time. See uring.h. */
#define _GNU_SOURCE
#include "uring_inner.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int nova_engine_turn(nova_engine *e, int64_t timeout_ns)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    if (!nova_engine_is_owner(e))
        return NOVA_ENGINE_E_THREAD;
    if (e->ended)
        return NOVA_ENGINE_E_ENDED;
    int status = nova_engine_step(e, timeout_ns);
    if (status)
        nova_engine_finish(e);
    return status;
}

int nova_engine_pending(nova_engine *e)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    if (!nova_engine_is_owner(e))
        return NOVA_ENGINE_E_THREAD;
    if (e->ended)
        return 0;
    pthread_mutex_lock(&e->lock);
    bool pending = e->commands || e->stopping || (e->returned_count && e->starving);
    pthread_mutex_unlock(&e->lock);
    return pending || e->dirty || e->driver->pending(e);
}

int nova_engine_poll_fd(nova_engine *e)
{
    return e->ended ? NOVA_ENGINE_E_ENDED : e->driver->poll_fd(e);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Copy what is ready into the slab and give the buffers back; what else happened is put aside. */
static int collect(nova_engine *e, uint8_t *slab, size_t slab_bytes, uint64_t *offsets, uint32_t *connections, int max)
{
    int n = 0, status = 0;
    offsets[0] = 0;
    pthread_mutex_lock(&e->lock);
    while (e->ready_at < e->ready_count && n < max && !status) {
        const nova_event *event = &e->ready[e->ready_at];
        if (event->kind == NOVA_RECEIVED) {
            if (event->length > slab_bytes - offsets[n])
                break;
            memcpy(slab + offsets[n], event->bytes, event->length);
            connections[n] = event->connection;
            offsets[n + 1] = offsets[n] + event->length;
            n++;
            nova_engine_give(e, event->buffer);
        } else {
            status = nova_events_put(&e->notices, &e->notices_at, &e->notices_count, &e->notices_room, event, 1);
        }
        e->ready_at += !status;
    }
    bool noticed = e->notices_at < e->notices_count;
    if (e->hungry)
        nova_engine_unlock(e);
    else
        pthread_mutex_unlock(&e->lock);
    return status ? status : n ? n : noticed ? 0 : -EAGAIN;
}

int nova_engine_recv_batch(nova_engine *e, uint8_t *slab, size_t slab_bytes, uint64_t *offsets, uint32_t *connections,
                           int max, int64_t timeout_ns)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    if (max < 1 || slab_bytes < e->options.buffer_bytes)
        return -EINVAL;
    if (!nova_engine_is_owner(e))
        return NOVA_ENGINE_E_THREAD;
    int64_t end = timeout_ns > 0 ? now_ns() + timeout_ns : 0;
    for (;;) {
        int n = collect(e, slab, slab_bytes, offsets, connections, max);
        if (n != -EAGAIN)
            return n; /* 0: other events wait */
        int status = nova_engine_turn(e, timeout_ns);
        if (status)
            return status;
        n = collect(e, slab, slab_bytes, offsets, connections, max);
        if (n != -EAGAIN)
            return n;
        if (timeout_ns >= 0 && (timeout_ns = end - now_ns()) <= 0)
            return 0;
    }
}

static int queue_batch(nova_engine *e, const uint8_t *slab, const uint64_t *offsets, const uint32_t *connections,
                       int count)
{
    int queued = 0;
    for (int i = 0; i < count; i++) {
        nova_conn *c = nova_engine_find(e, connections[i]);
        if (c && nova_engine_queue_copy(e, c, slab + offsets[i], offsets[i + 1] - offsets[i]) == 0)
            queued++;
    }
    return queued;
}

int nova_engine_send_batch(nova_engine *e, const uint8_t *slab, size_t slab_bytes, const uint64_t *offsets,
                           const uint32_t *connections, int count)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    if (count < 0)
        return -EINVAL;
    for (int i = 0; i < count; i++)
        if (offsets[i] > offsets[i + 1] || offsets[i + 1] > slab_bytes)
            return -EINVAL;
    if (nova_engine_is_owner(e))
        return e->ended ? NOVA_ENGINE_E_ENDED : queue_batch(e, slab, offsets, connections, count);
    size_t bytes = offsets[count] - offsets[0], heads = (size_t)count * (sizeof *offsets + sizeof *connections);
    nova_batch *b = malloc(sizeof *b + sizeof *offsets + heads + bytes);
    if (!b)
        return -ENOMEM;
    uint64_t *own_offsets = (uint64_t *)(b + 1);
    uint32_t *own_connections = (uint32_t *)(own_offsets + count + 1);
    uint8_t *own_slab = (uint8_t *)(own_connections + count);
    for (int i = 0; i <= count; i++)
        own_offsets[i] = offsets[i] - offsets[0];
    memcpy(own_connections, connections, (size_t)count * sizeof *connections);
    memcpy(own_slab, slab + offsets[0], bytes);
    *b = (nova_batch){.head.kind = NOVA_DO_BATCH,
                      .count = count,
                      .offsets = own_offsets,
                      .connections = own_connections,
                      .slab = own_slab};
    pthread_mutex_lock(&e->lock);
    if (e->stopping) {
        pthread_mutex_unlock(&e->lock);
        free(b);
        return NOVA_ENGINE_E_ENDED;
    }
    int there = 0;
    for (int i = 0; i < count; i++)
        there += nova_engine_find(e, connections[i]) != NULL;
    nova_engine_push(e, &b->head);
    nova_engine_unlock(e);
    return there;
}
