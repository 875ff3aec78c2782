/* csrc/uring_engine.c - the driving half of the engine: connections, queues, turns, the thread. See uring_inner.h. */
#define _GNU_SOURCE
#include "uring_inner.h"
#include <errno.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ACCEPT_AGAIN_NS = 100000000, FINISH_NS = 10000000, FINISH_TURNS = 100 };

/* ---- events ---- */

void nova_engine_say(nova_engine *e, const nova_event *event)
{
    size_t at = 0;
    if (nova_events_put(&e->local, &at, &e->local_count, &e->local_room, event, 1))
        e->error = ENOMEM; /* an event that is lost may be a buffer that is lost: the engine ends */
}

/* Hand the events of this turn to the callers. */
static void publish(nova_engine *e)
{
    if (!e->local_count)
        return;
    bool wake = false;
    pthread_mutex_lock(&e->lock);
    for (size_t i = 0; i < e->local_count; i++)
        if (e->local[i].kind == NOVA_RECEIVED)
            e->lent[e->local[i].buffer] = 1;
    if (nova_events_put(&e->ready, &e->ready_at, &e->ready_count, &e->ready_room, e->local, e->local_count))
        e->error = ENOMEM;
    if (e->threaded && !e->signalled)
        e->signalled = wake = true;
    pthread_mutex_unlock(&e->lock);
    e->local_count = 0;
    if (wake)
        nova_engine_ring(e, e->event_fd);
}

static void die(nova_engine *e, nova_conn *c, int result, bool reset);

/* Whoever is sent to but does not read may not use up our memory. */
static bool overfull(nova_engine *e, nova_conn *c)
{
    if (!e->options.queue_bytes_max || atomic_load(&c->queued) <= e->options.queue_bytes_max)
        return false;
    die(e, c, ENOBUFS, true);
    return true;
}

/* Also when the other side has ended: what was asked for before its caller heard of that still leaves. */
static bool takes(const nova_conn *c)
{
    return c->phase <= NOVA_OPEN || (c->phase == NOVA_LEAVING && c->ended);
}

int nova_engine_queue_copy(nova_engine *e, nova_conn *c, const uint8_t *bytes, size_t n)
{
    if (!n || !takes(c))
        return -EPIPE;
    int status = nova_queue_copy(e, c, bytes, n);
    if (status == 0)
        atomic_fetch_add(&c->queued, n);
    overfull(e, c);
    return status;
}

/* ---- connections ---- */

nova_conn *nova_engine_place(nova_engine *e)
{
    if (!e->free_count)
        return NULL;
    uint32_t slot = e->free_slots[e->free_count - 1];
    nova_conn *c = e->conns[slot];
    if (!c) {
        c = calloc(1, sizeof *c);
        if (!c)
            return NULL;
        c->slot = slot;
        e->conns[slot] = c;
    }
    e->free_count--;
    uint32_t life = c->life + 1;
    memset(c, 0, offsetof(nova_conn, message));
    c->slot = slot;
    c->life = life & 0xffff ? life : life + 1; /* a handle is never 0 */
    c->fd = -1;
    c->zerocopy = true;
    atomic_store(&c->handle, c->life << 16 | slot);
    return c;
}

nova_conn *nova_engine_find(nova_engine *e, uint32_t handle)
{
    uint32_t slot = handle & 0xffff;
    nova_conn *c = slot < e->options.connections_max ? e->conns[slot] : NULL;
    return c && handle && atomic_load(&c->handle) == handle ? c : NULL;
}

void nova_engine_dirty(nova_engine *e, nova_conn *c)
{
    if (!c->dirty) {
        c->dirty = true;
        c->next_dirty = e->dirty;
        e->dirty = c;
    }
}

void nova_engine_starves(nova_engine *e, nova_conn *c)
{
    e->stats.no_buffers++;
    if (!c->starving) {
        c->starving = true;
        c->next_starving = e->starving;
        e->starving = c;
    }
}

static void die(nova_engine *e, nova_conn *c, int result, bool reset)
{
    if (c->phase >= NOVA_DYING)
        return;
    c->phase = NOVA_DYING;
    c->result = result;
    c->reset = reset;
    nova_engine_dirty(e, c);
}

static void vacate(nova_engine *e, nova_conn *c)
{
    c->phase = NOVA_FREE;
    e->living--;
    pthread_mutex_lock(&e->lock);
    e->free_slots[e->free_count++] = c->slot;
    pthread_mutex_unlock(&e->lock);
}

/* The kernel works on nothing of it any more, but may hold memory of zero-copy sends: that ends when the socket has
 * been closed and its queue is gone or acknowledged. */
static void bury(nova_engine *e, nova_conn *c)
{
    uint32_t handle = c->handle;
    if (c->fd >= 0) {
        e->driver->detach(e, c);
        if (c->reset)
            setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
        NOVA_COUNTED(e, close(c->fd));
        c->fd = -1;
    }
    nova_queue_drop(e, c);
    atomic_store(&c->handle, 0);
    nova_engine_say(e, &(nova_event){.kind = NOVA_CLOSED, .connection = handle, .result = c->result});
    c->phase = NOVA_LINGERING;
    if (!c->notices && !c->starving)
        vacate(e, c);
}

void nova_engine_gave_back(nova_engine *e, nova_segment *s)
{
    nova_conn *c = s->conn;
    s->holds--;
    c->notices--;
    e->notices_due--;
    if (s->over && !s->holds)
        nova_segment_release(e, s);
    if (c->phase == NOVA_LINGERING && !c->notices && !c->starving)
        vacate(e, c);
}

void nova_engine_hung_up(nova_engine *e, nova_conn *c, int error)
{
    if (error) {
        die(e, c, error, false);
    } else {
        c->ended = true;
        if (c->phase == NOVA_OPEN)
            c->phase = NOVA_LEAVING; /* what we still have for it may be what it waits for */
        nova_engine_dirty(e, c);
    }
}

void nova_engine_connected(nova_engine *e, nova_conn *c, int error)
{
    if (c->phase != NOVA_DIALLING)
        return;
    if (error) {
        die(e, c, error, false);
        return;
    }
    c->phase = NOVA_OPEN;
    nova_engine_say(e, &(nova_event){.kind = NOVA_CONNECTED, .connection = c->handle});
    nova_engine_dirty(e, c);
}

void nova_engine_accept_failed(nova_engine *e, nova_listener *l, int error)
{
    e->accept_later = true;
    nova_engine_say(e, &(nova_event){.kind = NOVA_FAILED, .listener = l->number, .result = error});
}

void nova_engine_accepted(nova_engine *e, nova_listener *l, int fd)
{
    pthread_mutex_lock(&e->lock);
    nova_conn *c = l->dead ? NULL : nova_engine_place(e);
    pthread_mutex_unlock(&e->lock);
    if (!c) {
        NOVA_COUNTED(e, close(fd));
        if (!l->dead)
            nova_engine_say(e, &(nova_event){.kind = NOVA_FAILED, .listener = l->number, .result = ENOBUFS});
        return;
    }
    e->living++;
    c->fd = fd;
    c->phase = NOVA_OPEN;
    c->address_bytes = sizeof c->address;
    if (NOVA_COUNTED(e, getpeername(fd, (struct sockaddr *)&c->address, &c->address_bytes)))
        c->address_bytes = 0; /* it has hung up already; reading tells */
    NOVA_COUNTED(e, setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)));
    e->driver->attach(e, c);
    nova_engine_say(e, &(nova_event){.kind = NOVA_ACCEPTED, .connection = c->handle, .listener = l->number});
    nova_engine_dirty(e, c);
}

uint8_t *nova_engine_buffer(nova_engine *e, uint32_t buffer)
{
    return e->pool + buffer * e->stride;
}

static void give_back(nova_engine *e, uint32_t buffer)
{
    e->driver->refill(e, buffer);
    e->buffers_free++;
}

void nova_engine_received(nova_engine *e, nova_conn *c, uint32_t buffer, uint32_t n)
{
    e->buffers_free--;
    if (c->phase != NOVA_OPEN || !n) {
        give_back(e, buffer);
        return;
    }
    e->stats.received++;
    e->stats.received_bytes += n;
    nova_engine_say(e, &(nova_event){.kind = NOVA_RECEIVED,
                                     .connection = c->handle,
                                     .buffer = buffer,
                                     .length = n,
                                     .bytes = nova_engine_buffer(e, buffer)});
}

/* ---- commands ---- */

static void apply_send(nova_engine *e, nova_segment *s)
{
    nova_conn *c = nova_engine_find(e, s->head.connection);
    if (!c || !takes(c) || overfull(e, c)) {
        nova_segment_release(e, s);
    } else if (s->room && s->length <= NOVA_SEGMENT_BYTES / 4 && nova_queue_copy(e, c, s->bytes, s->length) == 0) {
        free(s);
    } else {
        nova_queue_append(e, c, s);
    }
}

static void apply_listen(nova_engine *e, nova_call *call)
{
    for (uint32_t i = 0; i < NOVA_LISTENERS_MAX; i++) {
        nova_listener *l = &e->listeners[i];
        if (l->used)
            continue;
        *l = (nova_listener){.fd = call->argument, .used = true, .number = i + 1};
        call->result = e->driver->listen(e, l);
        if (call->result < 0)
            l->used = false;
        else
            call->result = (int)l->number;
        return;
    }
    call->result = NOVA_ENGINE_E_FULL;
}

static void apply_unlisten(nova_engine *e, nova_call *call)
{
    uint32_t i = (uint32_t)call->argument - 1;
    call->result = NOVA_ENGINE_E_GONE;
    if (i < NOVA_LISTENERS_MAX && e->listeners[i].used && !e->listeners[i].dead) {
        e->listeners[i].dead = true;
        e->driver->unlisten(e, &e->listeners[i]);
        call->result = 0;
    }
}

static void apply_register(nova_engine *e, nova_call *call)
{
    if (e->regions_count == NOVA_REGIONS_MAX) {
        call->result = NOVA_ENGINE_E_FULL;
        return;
    }
    nova_region region = {call->bytes, call->length};
    call->result = e->driver->pin(e, e->regions_count, &region);
    if (call->result >= 0)
        e->regions[e->regions_count++] = region;
}

void nova_engine_apply(nova_engine *e, nova_command *command)
{
    nova_conn *c = nova_engine_find(e, command->connection);
    switch (command->kind) {
    case NOVA_DO_SEND:
        apply_send(e, (nova_segment *)command);
        return;
    case NOVA_DO_BATCH: {
        nova_batch *b = (nova_batch *)command;
        for (int i = 0; i < b->count; i++)
            if ((c = nova_engine_find(e, b->connections[i])) != NULL)
                nova_engine_queue_copy(e, c, b->slab + b->offsets[i], b->offsets[i + 1] - b->offsets[i]);
        free(b);
        return;
    }
    case NOVA_DO_DIAL:
        if (c) {
            e->living++;
            c->phase = NOVA_DIALLING;
            e->driver->attach(e, c);
            nova_engine_dirty(e, c);
        }
        free(command);
        return;
    case NOVA_DO_SHUT:
        if (c && c->phase == NOVA_DIALLING)
            die(e, c, 0, false);
        if (c && c->phase == NOVA_OPEN) {
            c->phase = NOVA_LEAVING;
            nova_engine_dirty(e, c);
        }
        free(command);
        return;
    case NOVA_DO_ABORT:
        if (c)
            die(e, c, ECONNABORTED, true);
        free(command);
        return;
    case NOVA_DO_LISTEN:
        apply_listen(e, (nova_call *)command);
        return;
    case NOVA_DO_UNLISTEN:
        apply_unlisten(e, (nova_call *)command);
        return;
    case NOVA_DO_REGISTER:
        apply_register(e, (nova_call *)command);
        return;
    }
}

static bool is_call(const nova_command *command)
{
    return command->kind >= NOVA_DO_LISTEN;
}

static nova_command *take_commands(nova_engine *e)
{
    nova_command *first = e->commands;
    e->commands = NULL;
    e->commands_end = &e->commands;
    return first;
}

/* Take in what callers asked for and the buffers that they gave back. */
static void take(nova_engine *e)
{
    pthread_mutex_lock(&e->lock);
    nova_command *command = take_commands(e);
    uint32_t returned = e->returned_count;
    e->returned_count = 0;
    for (uint32_t i = 0; i < returned; i++)
        give_back(e, e->returned[i]);
    pthread_mutex_unlock(&e->lock);
    if (returned) {
        /* Whoever found the pool empty had its receive ended by that, silently: order it anew. */
        for (nova_conn *c = e->starving, *next; c; c = next) {
            next = c->next_starving;
            c->starving = false;
            if (c->phase == NOVA_LINGERING && !c->notices)
                vacate(e, c);
            else
                nova_engine_dirty(e, c);
        }
        e->starving = NULL;
    }
    bool answered = false;
    while (command) {
        nova_command *next = command->next;
        bool call = is_call(command);
        nova_engine_apply(e, command);
        if (call) {
            pthread_mutex_lock(&e->lock);
            ((nova_call *)command)->done = answered = true;
            pthread_mutex_unlock(&e->lock);
        }
        command = next;
    }
    if (answered)
        pthread_cond_broadcast(&e->answered);
}

/* ---- turns ---- */

/* Let the state of every marked connection lead to orders. `informed`: all that callers have asked for is known, so an
 * empty queue is one; a connection that was sent to before its other side ended is not closed too soon. */
static void arm_dirty(nova_engine *e, bool informed)
{
    nova_conn *c = e->dirty, *next, *again = NULL;
    e->dirty = NULL;
    for (; c; c = next) {
        next = c->next_dirty;
        c->dirty = false;
        if (c->phase == NOVA_FREE || c->phase == NOVA_LINGERING)
            continue;
        int status = e->driver->arm(e, c);
        if (c->phase == NOVA_LEAVING && !c->first && !c->sending) {
            if (informed)
                die(e, c, 0, false);
            else
                nova_engine_dirty(e, c);
        }
        /* Marked once more, it is on the new list: a place that is free must be on none. */
        if (c->phase == NOVA_DYING && !c->operations && !c->dirty) {
            bury(e, c);
            continue;
        }
        if (status == -EAGAIN && !c->dirty) {
            c->dirty = true;
            c->next_dirty = again;
            again = c;
        }
    }
    while (again) { /* those marked meanwhile stay, these join them */
        next = again->next_dirty;
        again->next_dirty = e->dirty;
        e->dirty = again;
        again = next;
    }
}

int nova_engine_step(nova_engine *e, int64_t timeout_ns)
{
    e->stats.turns++;
    take(e);
    arm_dirty(e, true);
    if (e->threaded)
        publish(e); /* before sleeping; a driven engine returns instead */
    if (e->accept_later) {
        e->accept_later = false;
        for (uint32_t i = 0; i < NOVA_LISTENERS_MAX; i++)
            if (e->listeners[i].used && !e->listeners[i].dead && !e->listeners[i].armed)
                e->accept_later |= e->driver->listen(e, &e->listeners[i]) < 0;
        if (timeout_ns < 0 || timeout_ns > ACCEPT_AGAIN_NS)
            timeout_ns = ACCEPT_AGAIN_NS;
    }
    if (e->dirty || e->local_count)
        timeout_ns = 0;
    if (timeout_ns) {
        /* Whoever adds a command after this look finds `asleep` and rings; one before it is seen here. */
        pthread_mutex_lock(&e->lock);
        if (e->commands || e->stopping || (e->returned_count && e->starving))
            timeout_ns = 0;
        else
            e->asleep = true, e->hungry = e->starving != NULL;
        pthread_mutex_unlock(&e->lock);
    }
    int status = e->driver->wait(e, timeout_ns);
    pthread_mutex_lock(&e->lock);
    e->asleep = false;
    bool stopping = e->stopping;
    pthread_mutex_unlock(&e->lock);
    arm_dirty(e, false);
    publish(e);
    if (status < 0 && !e->error)
        e->error = -status;
    return e->error || stopping ? NOVA_ENGINE_E_ENDED : 0;
}

/* End every connection; the memory that the kernel works on stays untouched until it says so. */
void nova_engine_finish(nova_engine *e)
{
    int error = e->error;
    e->error = 0;
    pthread_mutex_lock(&e->lock);
    e->stopping = true; /* from now on callers are refused, but for giving buffers back */
    pthread_mutex_unlock(&e->lock);
    take(e);
    for (nova_conn *c = e->starving; c; c = c->next_starving)
        c->starving = false;
    e->starving = NULL;
    for (uint32_t i = 0; i < NOVA_LISTENERS_MAX; i++)
        if (e->listeners[i].used && !e->listeners[i].dead) {
            e->listeners[i].dead = true;
            e->driver->unlisten(e, &e->listeners[i]);
        }
    for (uint32_t slot = 0; slot < e->options.connections_max; slot++)
        if (e->conns[slot] && e->conns[slot]->handle)
            die(e, e->conns[slot], error ? error : ECONNABORTED, true);
    int status = 0;
    for (int turn = 0; turn < FINISH_TURNS && status >= 0; turn++) {
        take(e);
        arm_dirty(e, true);
        bool busy = e->living > 0;
        for (uint32_t i = 0; i < NOVA_LISTENERS_MAX; i++)
            busy |= e->listeners[i].used;
        if (!busy)
            break;
        status = e->driver->wait(e, FINISH_NS);
    }
    e->kept = e->living > 0; /* then the kernel may still write into the pool: it is never freed */
    e->driver->close(e);
    pthread_mutex_lock(&e->lock);
    e->ended = true;
    pthread_mutex_unlock(&e->lock);
    if (error)
        nova_engine_say(e, &(nova_event){.kind = NOVA_FAILED, .result = error});
    publish(e);
}

void *nova_engine_thread(void *engine)
{
    nova_engine *e = engine;
    char cause[160] = "";
    int status = e->driver->open(e, cause, sizeof cause);
    pthread_mutex_lock(&e->lock);
    e->error = status < 0 ? -status : 0;
    memcpy(e->cause, cause, sizeof cause);
    e->opened = true;
    pthread_cond_broadcast(&e->answered);
    pthread_mutex_unlock(&e->lock);
    if (status < 0)
        return NULL;
    while (nova_engine_step(e, -1) == 0)
        ;
    nova_engine_finish(e);
    return NULL;
}
