/* csrc/uring_face.c - the callers' half of the engine. See uring.h; uring_engine.c is the other half. */
#define _GNU_SOURCE
#include "uring_inner.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- fork ---- */

/* A child has a copy of the engine, but not its thread, and shares its ring: whatever it did would be done to the
 * parent's connections. Comparing a count costs less than asking for the process id. */
static atomic_uint forks;
static pthread_once_t forks_once = PTHREAD_ONCE_INIT;

static void forked(void)
{
    atomic_fetch_add(&forks, 1);
}

static void count_forks(void)
{
    pthread_atfork(NULL, NULL, forked);
}

bool nova_engine_is_child(const nova_engine *e)
{
    return e->forks != atomic_load(&forks);
}

bool nova_engine_is_owner(const nova_engine *e)
{
    return !e->threaded && pthread_equal(e->owner, pthread_self());
}

/* ---- life ---- */

static const nova_driver *driver_of(uint32_t engine)
{
    return engine == NOVA_ENGINE_URING ? &nova_uring_driver : engine == NOVA_ENGINE_EPOLL ? &nova_epoll_driver : NULL;
}

static bool is_power(uint32_t n)
{
    return n && !(n & (n - 1));
}

static int check(const nova_engine_options *o, char *cause, size_t cause_bytes)
{
    const char *wrong = NULL;
    if (!driver_of(o->engine))
        wrong = "engine is neither io_uring nor epoll";
    else if (!is_power(o->submissions) || !is_power(o->completions) || o->completions > 1u << 16 ||
             o->submissions > o->completions)
        wrong = "submissions and completions are powers of two, and at most 65536 completions";
    else if (!is_power(o->buffers) || o->buffers > 1u << 15)
        wrong = "buffers is a power of two, at most 32768";
    else if (o->buffer_bytes < 64 || o->buffer_bytes > 1u << 22)
        wrong = "buffer_bytes is from 64 to 4194304";
    else if (!o->connections_max || o->connections_max > 1u << 16)
        wrong = "connections_max is from 1 to 65536";
    if (wrong)
        snprintf(cause, cause_bytes, "%s", wrong);
    return wrong ? -EINVAL : 0;
}

static void dispose(nova_engine *e)
{
    for (uint32_t slot = 0; e->conns && slot < e->options.connections_max; slot++)
        if (e->conns[slot] && !e->kept) {
            nova_conn *c = e->conns[slot];
            if (c->handle && c->fd >= 0)
                close(c->fd);
            free(c);
        }
    while (e->spare) {
        nova_segment *s = e->spare;
        e->spare = s->next;
        free(s);
    }
    if (e->wake_fd >= 0)
        close(e->wake_fd);
    if (e->event_fd >= 0)
        close(e->event_fd);
    if (e->pool && !e->kept)
        munmap(e->pool, e->options.buffers * e->stride);
    free(e->conns);
    free(e->free_slots);
    free(e->ready);
    free(e->notices);
    free(e->local);
    free(e->returned);
    free(e->lent);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->answered);
    free(e);
}

static nova_engine *make(const nova_engine_options *o)
{
    nova_engine *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->options = *o;
    e->driver = driver_of(o->engine);
    e->forks = atomic_load(&forks);
    e->threaded = !(o->flags & NOVA_ENGINE_DRIVEN);
    e->commands_end = &e->commands;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->answered, NULL);
    e->wake_fd = eventfd(0, EFD_CLOEXEC);
    e->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    e->conns = calloc(o->connections_max, sizeof *e->conns);
    e->free_slots = malloc(o->connections_max * sizeof *e->free_slots);
    e->returned = malloc(o->buffers * sizeof *e->returned);
    e->lent = calloc(o->buffers, 1);
    e->stride = (o->buffer_bytes + 63u) / 64 * 64 + 64;
    void *pool = mmap(NULL, o->buffers * e->stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    e->pool = pool == MAP_FAILED ? NULL : pool;
    e->buffers_free = o->buffers;
    if (e->wake_fd < 0 || e->event_fd < 0 || !e->conns || !e->free_slots || !e->returned || !e->lent || !e->pool) {
        dispose(e);
        return NULL;
    }
    for (uint32_t i = 0; i < o->connections_max; i++)
        e->free_slots[e->free_count++] = o->connections_max - 1 - i;
    return e;
}

static int start(nova_engine *e, char *cause, size_t cause_bytes)
{
    if (!e->threaded) {
        e->owner = pthread_self();
        return e->driver->open(e, cause, cause_bytes);
    }
    sigset_t all, before; /* signals are for the threads of the program */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int status = -pthread_create(&e->owner, NULL, nova_engine_thread, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (status < 0) {
        snprintf(cause, cause_bytes, "no thread for the engine: %s", strerror(-status));
        return status;
    }
    pthread_setname_np(e->owner, "nova-engine");
    pthread_mutex_lock(&e->lock);
    while (!e->opened)
        pthread_cond_wait(&e->answered, &e->lock);
    status = -e->error;
    pthread_mutex_unlock(&e->lock);
    if (status < 0) {
        pthread_join(e->owner, NULL);
        snprintf(cause, cause_bytes, "%s", e->cause);
    }
    return status;
}

nova_engine *nova_engine_open(const nova_engine_options *options, int *error, char *cause, size_t cause_bytes)
{
    pthread_once(&forks_once, count_forks);
    cause[0] = '\0';
    *error = check(options, cause, cause_bytes);
    if (*error)
        return NULL;
    nova_engine *e = make(options);
    if (!e) {
        *error = -(errno ? errno : ENOMEM);
        snprintf(cause, cause_bytes, "%u buffers of %u bytes: %s", options->buffers, options->buffer_bytes,
                 strerror(-*error));
        return NULL;
    }
    *error = start(e, cause, cause_bytes);
    if (*error < 0) {
        if (!cause[0])
            snprintf(cause, cause_bytes, "%s", strerror(-*error));
        dispose(e);
        return NULL;
    }
    return e;
}

int nova_engine_probe(uint32_t engine, char *cause, size_t cause_bytes)
{
    nova_engine_options least = {.engine = engine,
                                 .flags = NOVA_ENGINE_DRIVEN,
                                 .submissions = 2,
                                 .completions = 4,
                                 .buffers = 1,
                                 .buffer_bytes = 64,
                                 .connections_max = 1};
    int error;
    nova_engine *e = nova_engine_open(&least, &error, cause, cause_bytes);
    if (!e)
        return error;
    nova_engine_close(e);
    nova_engine_free(e);
    return 0;
}

int nova_engine_fail(nova_engine *e, int error)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    pthread_mutex_lock(&e->lock);
    bool wake = e->asleep;
    e->stopping = true;
    if (error)
        e->error = error;
    e->asleep = false;
    pthread_mutex_unlock(&e->lock);
    if (wake)
        nova_engine_ring(e, e->wake_fd);
    return 0;
}

int nova_engine_close(nova_engine *e)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    if (!e->threaded && !nova_engine_is_owner(e))
        return NOVA_ENGINE_E_THREAD;
    if (e->closed)
        return e->kept;
    e->closed = true;
    if (e->threaded) {
        nova_engine_fail(e, 0);
        pthread_join(e->owner, NULL);
    } else if (!e->ended) {
        nova_engine_finish(e);
    }
    return e->kept;
}

void nova_engine_free(nova_engine *e)
{
    if (!nova_engine_is_child(e)) {
        dispose(e);
        return;
    }
    /* The mutex may be held by a thread that is not here, so only descriptors are closed: the parent's hang-ups would
     * not reach the other side while this copy is open. */
    for (uint32_t slot = 0; slot < e->options.connections_max; slot++)
        if (e->conns[slot] && e->conns[slot]->handle && e->conns[slot]->fd >= 0)
            close(e->conns[slot]->fd);
    close(e->wake_fd);
    close(e->event_fd);
}

/* ---- asking for something ---- */

/* Under the lock. */
void nova_engine_push(nova_engine *e, nova_command *command)
{
    command->next = NULL;
    *e->commands_end = command;
    e->commands_end = &command->next;
}

/* Let go of the lock, and wake the driver if it sleeps. */
void nova_engine_unlock(nova_engine *e)
{
    bool wake =
        e->asleep || !(e->threaded || nova_engine_is_owner(e)); /* a driven engine may sleep in its caller's poll */
    e->asleep = false;                                          /* one ring is enough */
    pthread_mutex_unlock(&e->lock);
    if (wake)
        nova_engine_ring(e, e->wake_fd);
}

/* Takes the lock if the connection is there and the engine lives. */
static int enter(nova_engine *e, uint32_t connection)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    pthread_mutex_lock(&e->lock);
    int status = e->stopping ? NOVA_ENGINE_E_ENDED : nova_engine_find(e, connection) ? 0 : NOVA_ENGINE_E_GONE;
    if (status)
        pthread_mutex_unlock(&e->lock);
    return status;
}

static int tell(nova_engine *e, uint32_t connection, nova_order_kind kind)
{
    nova_command *command = malloc(sizeof *command);
    if (!command)
        return -ENOMEM;
    *command = (nova_command){.kind = kind, .connection = connection};
    int status = enter(e, connection);
    if (status) {
        free(command);
        return status;
    }
    nova_engine_push(e, command);
    nova_engine_unlock(e);
    return 0;
}

int nova_engine_shut(nova_engine *e, uint32_t connection)
{
    return tell(e, connection, NOVA_DO_SHUT);
}

int nova_engine_abort(nova_engine *e, uint32_t connection)
{
    return tell(e, connection, NOVA_DO_ABORT);
}

static int call(nova_engine *e, nova_call *order)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    if (nova_engine_is_owner(e)) {
        if (e->ended)
            return NOVA_ENGINE_E_ENDED;
        nova_engine_apply(e, &order->head);
        return order->result;
    }
    pthread_mutex_lock(&e->lock);
    if (e->stopping) {
        pthread_mutex_unlock(&e->lock);
        return NOVA_ENGINE_E_ENDED;
    }
    nova_engine_push(e, &order->head);
    nova_engine_unlock(e);
    pthread_mutex_lock(&e->lock);
    while (!order->done)
        pthread_cond_wait(&e->answered, &e->lock);
    pthread_mutex_unlock(&e->lock);
    return order->result;
}

int nova_engine_listen(nova_engine *e, int fd)
{
    return call(e, &(nova_call){.head.kind = NOVA_DO_LISTEN, .argument = fd});
}

int nova_engine_unlisten(nova_engine *e, int listener)
{
    return call(e, &(nova_call){.head.kind = NOVA_DO_UNLISTEN, .argument = listener});
}

int nova_engine_register(nova_engine *e, const void *bytes, size_t length)
{
    if (!length)
        return -EINVAL;
    return call(e, &(nova_call){.head.kind = NOVA_DO_REGISTER, .bytes = bytes, .length = length});
}

int64_t nova_engine_connect(nova_engine *e, const char *host, uint16_t port)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    char service[8];
    snprintf(service, sizeof service, "%u", port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *found;
    if (getaddrinfo(host, service, &hints, &found))
        return -EINVAL;
    /* io_uring waits by itself; epoll must not wait in a call. */
    int extra = SOCK_CLOEXEC | (e->options.engine == NOVA_ENGINE_EPOLL ? SOCK_NONBLOCK : 0);
    int fd = socket(found->ai_family, SOCK_STREAM | extra, 0);
    nova_command *dial = fd < 0 ? NULL : malloc(sizeof *dial);
    if (!dial) {
        int error = fd < 0 ? errno : ENOMEM;
        freeaddrinfo(found);
        return -error;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    pthread_mutex_lock(&e->lock);
    nova_conn *c = e->stopping ? NULL : nova_engine_place(e);
    if (!c) {
        int64_t status = e->stopping ? NOVA_ENGINE_E_ENDED : NOVA_ENGINE_E_FULL;
        pthread_mutex_unlock(&e->lock);
        close(fd);
        free(dial);
        freeaddrinfo(found);
        return status;
    }
    c->fd = fd;
    memcpy(&c->address, found->ai_addr, found->ai_addrlen);
    c->address_bytes = found->ai_addrlen;
    uint32_t handle = c->handle;
    *dial = (nova_command){.kind = NOVA_DO_DIAL, .connection = handle};
    nova_engine_push(e, dial);
    nova_engine_unlock(e);
    freeaddrinfo(found);
    return handle;
}

int nova_engine_peer(nova_engine *e, uint32_t connection, char *out, size_t out_bytes)
{
    int status = enter(e, connection);
    if (status)
        return status;
    nova_conn *c = nova_engine_find(e, connection);
    struct sockaddr_storage address = c->address;
    socklen_t bytes = c->address_bytes;
    pthread_mutex_unlock(&e->lock);
    char host[64], port[8];
    if (!bytes || getnameinfo((struct sockaddr *)&address, bytes, host, sizeof host, port, sizeof port,
                              NI_NUMERICHOST | NI_NUMERICSERV))
        return -ENOTCONN;
    snprintf(out, out_bytes, "%s %s", host, port);
    return 0;
}

int64_t nova_engine_send(nova_engine *e, uint32_t connection, const void *bytes, size_t length, uint64_t token)
{
    if (!length)
        return -EINVAL;
    nova_segment *s = malloc(sizeof *s + (token ? 0 : length));
    if (!s)
        return -ENOMEM;
    *s = (nova_segment){.head = {.kind = NOVA_DO_SEND, .connection = connection},
                        .bytes = bytes,
                        .length = length,
                        .token = token,
                        .room = token ? 0 : (uint32_t)length};
    if (!token) {
        memcpy(s->own, bytes, length);
        s->bytes = s->own;
    }
    int status = enter(e, connection);
    if (status) {
        free(s);
        return status;
    }
    size_t queued = atomic_fetch_add(&nova_engine_find(e, connection)->queued, length) + length;
    nova_engine_push(e, &s->head);
    nova_engine_unlock(e);
    return (int64_t)queued;
}

/* ---- taking what happened ---- */

static int take_events(nova_event *from, size_t *at, size_t count, nova_event *out, int max)
{
    size_t n = count - *at < (size_t)max ? count - *at : (size_t)max;
    if (n)
        memcpy(out, from + *at, n * sizeof *out);
    *at += n;
    return (int)n;
}

int nova_engine_events(nova_engine *e, nova_event *out, int max)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    pthread_mutex_lock(&e->lock);
    int n = take_events(e->notices, &e->notices_at, e->notices_count, out, max);
    n += take_events(e->ready, &e->ready_at, e->ready_count, out + n, max - n);
    if (e->threaded && e->ready_at == e->ready_count && (e->signalled || !n)) {
        /* Whoever adds an event after this look raises the descriptor again; one before it has been taken. */
        uint64_t value;
        e->stats.syscalls++;
        if (read(e->event_fd, &value, sizeof value) == sizeof value || errno == EAGAIN)
            e->signalled = false;
    }
    pthread_mutex_unlock(&e->lock);
    return n;
}

int nova_engine_notices(nova_engine *e, nova_event *out, int max)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    pthread_mutex_lock(&e->lock);
    int n = take_events(e->notices, &e->notices_at, e->notices_count, out, max);
    pthread_mutex_unlock(&e->lock);
    return n;
}

int nova_engine_wake_fd(nova_engine *e)
{
    return e->event_fd;
}

/* Under the lock. */
int nova_engine_give(nova_engine *e, uint32_t buffer)
{
    if (buffer >= e->options.buffers || !e->lent[buffer])
        return NOVA_ENGINE_E_LENT;
    e->lent[buffer] = 0;
    e->returned[e->returned_count++] = buffer;
    return 0;
}

int nova_engine_release(nova_engine *e, const uint32_t *buffers, int count)
{
    if (nova_engine_is_child(e))
        return NOVA_ENGINE_E_FORKED;
    int status = 0;
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < count; i++)
        if (nova_engine_give(e, buffers[i]))
            status = NOVA_ENGINE_E_LENT;
    if (e->hungry || !(e->threaded || nova_engine_is_owner(e)))
        nova_engine_unlock(e);
    else
        pthread_mutex_unlock(&e->lock);
    return status;
}

void nova_engine_stats_read(nova_engine *e, nova_engine_stats *out)
{
    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    out->zerocopy_pending = e->notices_due;
    out->buffers_free = e->buffers_free;
    out->connections = e->options.connections_max - e->free_count;
    pthread_mutex_unlock(&e->lock);
}
