/* csrc/uring_epoll.c - the driver on epoll: edge-triggered, reading and writing by the driving thread.
 * It does what uring.c does wherever the kernel or the container forbids io_uring. See uring_inner.h. */
#define _GNU_SOURCE
#include "uring_inner.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { EVENTS = 64, READS_MAX = 16, WRITES_MAX = 16, ACCEPTS_MAX = 64 };
enum { IS_CONN = 0, IS_LISTENER = 1, IS_WAKE = 2, IS_MASK = 3 };

typedef struct {
    int fd;
    uint32_t *pool; /* buffers that are free, e->buffers_free of them */
    struct epoll_event events[EVENTS];
} nova_poll;

static int watch(nova_engine *e, int fd, uint32_t events, void *subject, unsigned what)
{
    nova_poll *p = e->state;
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)(uintptr_t)subject | what};
    return NOVA_COUNTED(e, epoll_ctl(p->fd, EPOLL_CTL_ADD, fd, &event)) ? -errno : 0;
}

static void epoll_close(nova_engine *e)
{
    nova_poll *p = e->state;
    if (!p)
        return;
    if (p->fd >= 0)
        close(p->fd);
    free(p->pool);
    free(p);
    e->state = NULL;
}

static int epoll_open(nova_engine *e, char *cause, size_t cause_bytes)
{
    nova_poll *p = e->state = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    p->fd = epoll_create1(EPOLL_CLOEXEC);
    p->pool = malloc(e->options.buffers * sizeof *p->pool);
    int status = p->fd < 0 ? -errno : p->pool ? watch(e, e->wake_fd, EPOLLIN, NULL, IS_WAKE) : -ENOMEM;
    if (status < 0) {
        snprintf(cause, cause_bytes, "epoll: %s", strerror(-status));
        epoll_close(e);
        return status;
    }
    for (uint32_t i = 0; i < e->options.buffers; i++)
        p->pool[i] = i;
    return 0;
}

static int epoll_pin(nova_engine *e, uint32_t number, const nova_region *region)
{
    return 0; /* nothing to gain: the kernel copies */
}

static void epoll_attach(nova_engine *e, nova_conn *c)
{
    if (c->phase == NOVA_DIALLING)
        return; /* an unconnected socket would report a hang-up */
    if (watch(e, c->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, c, IS_CONN) < 0)
        nova_engine_hung_up(e, c, ENOMEM);
    c->writable = true;
}

static void epoll_detach(nova_engine *e, nova_conn *c)
{
    /* Closing does it, but for a copy of the descriptor in a child. */
    NOVA_COUNTED(e, epoll_ctl(((nova_poll *)e->state)->fd, EPOLL_CTL_DEL, c->fd, NULL));
}

static void epoll_refill(nova_engine *e, uint32_t buffer)
{
    ((nova_poll *)e->state)->pool[e->buffers_free] = buffer;
}

static int epoll_listen(nova_engine *e, nova_listener *l)
{
    if (!l->armed) {
        int status = watch(e, l->fd, EPOLLIN, l, IS_LISTENER);
        if (status < 0)
            return status;
    }
    l->armed = true;
    return 0;
}

static void epoll_unlisten(nova_engine *e, nova_listener *l)
{
    nova_poll *p = e->state;
    epoll_ctl(p->fd, EPOLL_CTL_DEL, l->fd, NULL);
    shutdown(l->fd, SHUT_RDWR);
    close(l->fd);
    l->used = false;
}

static void accept_all(nova_engine *e, nova_listener *l)
{
    for (int i = 0; i < ACCEPTS_MAX && !l->dead; i++) {
        int fd = NOVA_COUNTED(e, accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (fd >= 0) {
            nova_engine_accepted(e, l, fd);
            continue;
        }
        if (errno == EAGAIN)
            return;
        if (errno == ECONNABORTED || errno == EINTR)
            continue;
        /* Out of descriptors, say. Level-triggered, it would be reported without end: look away for a while. */
        int error = errno;
        epoll_ctl(((nova_poll *)e->state)->fd, EPOLL_CTL_DEL, l->fd, NULL);
        l->armed = false;
        nova_engine_accept_failed(e, l, error);
        return;
    }
}

static void dial(nova_engine *e, nova_conn *c)
{
    c->dialled = true;
    int status = NOVA_COUNTED(e, connect(c->fd, (struct sockaddr *)&c->address, c->address_bytes));
    if (status && errno != EINPROGRESS) {
        nova_engine_connected(e, c, errno);
        return;
    }
    if (watch(e, c->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, c, IS_CONN) < 0)
        nova_engine_connected(e, c, ENOMEM);
}

static int read_some(nova_engine *e, nova_conn *c)
{
    nova_poll *p = e->state;
    for (int i = 0; i < READS_MAX; i++) {
        if (!e->buffers_free) {
            nova_engine_starves(e, c);
            return 0;
        }
        uint32_t buffer = p->pool[e->buffers_free - 1], room = e->options.buffer_bytes;
        ssize_t n = NOVA_COUNTED(e, recv(c->fd, nova_engine_buffer(e, buffer), room, 0));
        if (n > 0) {
            nova_engine_received(e, c, buffer, (uint32_t)n);
            if ((uint32_t)n < room && !c->hung) { /* that was all; an end behind it would have been reported */
                c->readable = false;
                return 0;
            }
        } else if (n == 0) {
            c->readable = false;
            nova_engine_hung_up(e, c, 0);
            return 0;
        } else if (errno == EAGAIN) {
            c->readable = false;
            return 0;
        } else if (errno != EINTR) {
            c->readable = false;
            nova_engine_hung_up(e, c, errno);
            return 0;
        }
    }
    return -EAGAIN; /* the others' turn */
}

static int write_some(nova_engine *e, nova_conn *c)
{
    for (int i = 0; i < WRITES_MAX && c->first; i++) {
        size_t bytes = nova_engine_gather(c, SIZE_MAX);
        ssize_t n;
        if (c->message.msg_iovlen == 1)
            n = NOVA_COUNTED(e, send(c->fd, c->gather[0].iov_base, c->gather[0].iov_len, MSG_NOSIGNAL));
        else
            n = NOVA_COUNTED(e, sendmsg(c->fd, &c->message, MSG_NOSIGNAL));
        e->stats.sends++;
        if (n >= 0) {
            nova_engine_took(e, c, (size_t)n);
            if ((size_t)n < bytes) {
                e->stats.sends_short++;
                c->writable = false; /* a full socket reports when it has room again */
                return 0;
            }
        } else if (errno == EAGAIN) {
            c->writable = false;
            return 0;
        } else if (errno != EINTR) {
            nova_engine_hung_up(e, c, errno);
            return 0;
        }
    }
    return c->first ? -EAGAIN : 0;
}

static int epoll_arm(nova_engine *e, nova_conn *c)
{
    if (c->phase == NOVA_DIALLING && !c->dialled)
        dial(e, c);
    int more = 0;
    if ((c->phase == NOVA_OPEN || c->phase == NOVA_LEAVING) && c->first && c->writable)
        more = write_some(e, c);
    if ((c->phase == NOVA_OPEN || c->phase == NOVA_LEAVING) && c->readable && !c->ended && !c->starving &&
        read_some(e, c) < 0)
        more = -EAGAIN;
    return more;
}

static void edge(nova_engine *e, nova_conn *c, uint32_t events)
{
    if (c->phase == NOVA_DIALLING) {
        int error = 0;
        socklen_t size = sizeof error;
        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
            return;
        NOVA_COUNTED(e, getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size));
        nova_engine_connected(e, c, error);
    }
    c->writable |= (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0;
    c->readable |= (events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP)) != 0;
    c->hung |= (events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP)) != 0;
    nova_engine_dirty(e, c);
}

static int epoll_wait_some(nova_engine *e, int64_t timeout_ns)
{
    nova_poll *p = e->state;
    int64_t ms = timeout_ns < 0 ? -1 : (timeout_ns + 999999) / 1000000;
    int count = NOVA_COUNTED(e, epoll_wait(p->fd, p->events, EVENTS, ms > INT_MAX ? INT_MAX : (int)ms));
    if (count < 0)
        return errno == EINTR ? 0 : -errno;
    for (int i = 0; i < count; i++) {
        uint64_t data = p->events[i].data.u64;
        void *subject = (void *)(uintptr_t)(data & ~(uint64_t)IS_MASK);
        switch (data & IS_MASK) {
        case IS_CONN:
            edge(e, subject, p->events[i].events);
            break;
        case IS_LISTENER:
            accept_all(e, subject);
            break;
        default: {
            uint64_t value;
            if (NOVA_COUNTED(e, read(e->wake_fd, &value, sizeof value)) == sizeof value)
                e->stats.wakes++;
        }
        }
    }
    return 0;
}

static bool epoll_pending(nova_engine *e)
{
    return false;
}

static int epoll_poll_fd(nova_engine *e)
{
    return ((nova_poll *)e->state)->fd;
}

const nova_driver nova_epoll_driver = {
    .name = "epoll",
    .open = epoll_open,
    .close = epoll_close,
    .arm = epoll_arm,
    .listen = epoll_listen,
    .unlisten = epoll_unlisten,
    .attach = epoll_attach,
    .detach = epoll_detach,
    .refill = epoll_refill,
    .wait = epoll_wait_some,
    .pending = epoll_pending,
    .poll_fd = epoll_poll_fd,
    .pin = epoll_pin,
};
