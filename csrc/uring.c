/* csrc/uring.c - the driver on io_uring: one ring, owned by the driving thread. See uring_inner.h.
 *
 * Built against liburing 2.3; flags that are newer stand here by number, and are tried before they are relied on.
 * The low bits of user_data say what completed, the others point to the connection, listener or segment. */
#define _GNU_SOURCE
#include "uring_inner.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#ifdef NOVA_LIBURING
#include <liburing.h>

enum { OP_WAKE, OP_ACCEPT, OP_DIAL, OP_RECEIVE, OP_SEND, OP_ZEROCOPY, OP_CANCEL, OP_MASK = 7 };
enum { POOL_GROUP = 0, ROUNDS_MAX = 4, RUN_MAX = 20, RUN_MANY = 256 };

#define SETUP_SUBMIT_ALL (1u << 7)     /* 5.18 */
#define SETUP_COOP_TASKRUN (1u << 8)   /* 5.19 */
#define SETUP_TASKRUN_FLAG (1u << 9)   /* 5.19: completions that wait for a call are told of in a flag */
#define SETUP_SINGLE_ISSUER (1u << 12) /* 6.0 */
#define SETUP_DEFER_TASKRUN (1u << 13) /* 6.1 */
#define ZEROCOPY_REPORT (1u << 3)      /* 6.2: the notification tells whether the kernel copied */
#define ZEROCOPY_FIXED (1u << 2)
#define ZEROCOPY_COPIED (1u << 31)
#define RECEIVE_MULTISHOT (1u << 1) /* 6.0 */
#define SQ_TASKRUN (1u << 2)

typedef struct {
    struct io_uring ring;
    struct io_uring_buf_ring *pool;
    size_t pool_bytes;
    bool deferred, multishot, fixed_files, zerocopy, report, regions;
    bool wake_armed, polled;
    uint64_t wake_value;
} nova_ring;

static uint64_t tag(void *pointer, unsigned op)
{
    return (uint64_t)(uintptr_t)pointer | op;
}

/* NULL when the kernel takes no more now. */
static struct io_uring_sqe *order(nova_engine *e)
{
    nova_ring *u = e->state;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe) {
        NOVA_COUNTED(e, io_uring_submit(&u->ring));
        sqe = io_uring_get_sqe(&u->ring);
    }
    return sqe;
}

static void aim(nova_conn *c, struct io_uring_sqe *sqe)
{
    if (c->fixed) {
        sqe->fd = (int)c->slot;
        sqe->flags |= IOSQE_FIXED_FILE;
    }
}

/* ---- opening ---- */

static int lacks(char *cause, size_t cause_bytes, const char *what, const char *since)
{
    struct utsname name = {0};
    uname(&name);
    snprintf(cause, cause_bytes, "kernel %s has no %s (Linux %s has)", name.release, what, since);
    return NOVA_ENGINE_E_KERNEL;
}

static int open_ring(nova_engine *e, char *cause, size_t cause_bytes)
{
    nova_ring *u = e->state;
    const unsigned base = IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE;
    const unsigned wanted[] = {base | SETUP_SUBMIT_ALL | SETUP_TASKRUN_FLAG | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN,
                               base | SETUP_SUBMIT_ALL | SETUP_TASKRUN_FLAG | SETUP_COOP_TASKRUN, base};
    int status = -EINVAL;
    for (int i = e->options.flags & NOVA_ENGINE_NO_DEFER ? 1 : 0; status == -EINVAL && i < 3; i++) {
        struct io_uring_params p = {.flags = wanted[i], .cq_entries = e->options.completions};
        status = io_uring_queue_init_params(e->options.submissions, &u->ring, &p);
        u->deferred = wanted[i] & SETUP_DEFER_TASKRUN;
    }
    if (status == -EPERM)
        snprintf(cause, cause_bytes,
                 "io_uring is forbidden here (EPERM): sysctl kernel.io_uring_disabled=0, or allow it in the "
                 "container's seccomp profile");
    else if (status == -ENOSYS)
        lacks(cause, cause_bytes, "io_uring, or forbids it (ENOSYS)", "5.19");
    else if (status == -ENOMEM) {
        struct rlimit limit = {0};
        getrlimit(RLIMIT_MEMLOCK, &limit);
        snprintf(cause, cause_bytes, "a ring of %u entries needs more locked memory than %llu bytes: raise ulimit -l",
                 e->options.submissions, (unsigned long long)limit.rlim_cur);
    } else if (status < 0)
        snprintf(cause, cause_bytes, "io_uring_setup: %s", strerror(-status));
    return status;
}

static int open_pool(nova_engine *e, char *cause, size_t cause_bytes)
{
    nova_ring *u = e->state;
    u->pool_bytes = e->options.buffers * sizeof(struct io_uring_buf);
    void *memory = NULL;
    if (posix_memalign(&memory, (size_t)sysconf(_SC_PAGESIZE), u->pool_bytes))
        return -ENOMEM;
    u->pool = memory;
    struct io_uring_buf_reg reg = {
        .ring_addr = (uint64_t)(uintptr_t)memory, .ring_entries = e->options.buffers, .bgid = POOL_GROUP};
    int status = io_uring_register_buf_ring(&u->ring, &reg, 0);
    if (status == -EINVAL)
        return lacks(cause, cause_bytes, "provided buffer rings", "5.19");
    if (status < 0) {
        snprintf(cause, cause_bytes, "registering %u receive buffers: %s", e->options.buffers, strerror(-status));
        return status;
    }
    io_uring_buf_ring_init(u->pool);
    for (uint32_t i = 0; i < e->options.buffers; i++)
        io_uring_buf_ring_add(u->pool, nova_engine_buffer(e, i), e->options.buffer_bytes, (unsigned short)i,
                              io_uring_buf_ring_mask(e->options.buffers), (int)i);
    io_uring_buf_ring_advance(u->pool, (int)e->options.buffers);
    return 0;
}

static void uring_close(nova_engine *e)
{
    nova_ring *u = e->state;
    if (!u)
        return;
    io_uring_queue_exit(&u->ring);
    if (!e->kept)
        free(u->pool);
    free(u);
    e->state = NULL;
}

static int uring_open(nova_engine *e, char *cause, size_t cause_bytes)
{
    nova_ring *u = e->state = calloc(1, sizeof *u);
    if (!u)
        return -ENOMEM;
    int status = open_ring(e, cause, cause_bytes);
    if (status < 0) {
        free(u);
        e->state = NULL;
        return status;
    }
    status = open_pool(e, cause, cause_bytes);
    if (status < 0) {
        uring_close(e);
        return status;
    }
    uint32_t flags = e->options.flags;
    struct io_uring_probe *probe = io_uring_get_probe_ring(&u->ring);
    u->zerocopy = u->report =
        probe && io_uring_opcode_supported(probe, IORING_OP_SEND_ZC) && !(flags & NOVA_ENGINE_NO_ZEROCOPY);
    io_uring_free_probe(probe);
    u->multishot = !(flags & NOVA_ENGINE_NO_MULTISHOT);
    u->fixed_files = !(flags & NOVA_ENGINE_NO_FIXED_FILES) &&
                     io_uring_register_files_sparse(&u->ring, e->options.connections_max) == 0;
    e->stats.deferred = u->deferred;
    e->stats.fixed_files = u->fixed_files;
    e->stats.multishot = u->multishot;
    e->stats.zerocopy_on = u->zerocopy;
    return 0;
}

static int uring_pin(nova_engine *e, uint32_t number, const nova_region *region)
{
    nova_ring *u = e->state;
    if (!u->regions && io_uring_register_buffers_sparse(&u->ring, NOVA_REGIONS_MAX) < 0)
        return NOVA_ENGINE_E_KERNEL;
    u->regions = true;
    struct iovec vector = {(void *)region->bytes, region->length};
    uint64_t no_tag = 0;
    int status = io_uring_register_buffers_update_tag(&u->ring, number, &vector, (const __u64 *)&no_tag, 1);
    return status < 0 ? status : 0;
}

/* ---- orders ---- */

static void uring_attach(nova_engine *e, nova_conn *c)
{
    nova_ring *u = e->state;
    c->fixed = u->fixed_files && NOVA_COUNTED(e, io_uring_register_files_update(&u->ring, c->slot, &c->fd, 1)) == 1;
}

static void uring_detach(nova_engine *e, nova_conn *c)
{
    nova_ring *u = e->state;
    int none = -1;
    if (c->fixed) {
        NOVA_COUNTED(e, io_uring_register_files_update(&u->ring, c->slot, &none, 1));
        /* Kernels before 6.4 keep the file for as long as any request of that time is under way, on whatever connection:
         * the peer would hear nothing from close(). */
        if (c->reset)
            connect(c->fd, &(struct sockaddr){.sa_family = AF_UNSPEC}, sizeof(struct sockaddr));
        else
            shutdown(c->fd, SHUT_RDWR);
    }
    c->fixed = false;
}

static void uring_refill(nova_engine *e, uint32_t buffer)
{
    nova_ring *u = e->state;
    io_uring_buf_ring_add(u->pool, nova_engine_buffer(e, buffer), e->options.buffer_bytes, (unsigned short)buffer,
                          io_uring_buf_ring_mask(e->options.buffers), 0);
    io_uring_buf_ring_advance(u->pool, 1);
}

static int uring_listen(nova_engine *e, nova_listener *l)
{
    struct io_uring_sqe *sqe = order(e);
    if (!sqe)
        return -EBUSY;
    io_uring_prep_multishot_accept(sqe, l->fd, NULL, NULL, SOCK_CLOEXEC);
    io_uring_sqe_set_data64(sqe, tag(l, OP_ACCEPT));
    l->armed = true;
    return 0;
}

static bool cancel(nova_engine *e, uint64_t what)
{
    struct io_uring_sqe *sqe = order(e);
    if (!sqe)
        return false;
    io_uring_prep_cancel64(sqe, what, 0);
    io_uring_sqe_set_data64(sqe, OP_CANCEL);
    return true;
}

static void unlisten_done(nova_engine *e, nova_listener *l)
{
    NOVA_COUNTED(e, close(l->fd));
    l->used = false;
}

static void uring_unlisten(nova_engine *e, nova_listener *l)
{
    shutdown(l->fd, SHUT_RDWR); /* from now on refused, whenever the accept comes back */
    if (l->armed)
        cancel(e, tag(l, OP_ACCEPT));
    else
        unlisten_done(e, l);
}

static int dial(nova_engine *e, nova_conn *c)
{
    struct io_uring_sqe *sqe = order(e);
    if (!sqe)
        return -EAGAIN;
    io_uring_prep_connect(sqe, c->fd, (struct sockaddr *)&c->address, c->address_bytes);
    io_uring_sqe_set_data64(sqe, tag(c, OP_DIAL));
    aim(c, sqe);
    c->dialled = true;
    c->operations++;
    return 0;
}

static int receive(nova_engine *e, nova_conn *c)
{
    nova_ring *u = e->state;
    if (!e->buffers_free) {
        nova_engine_starves(e, c);
        return 0;
    }
    struct io_uring_sqe *sqe = order(e);
    if (!sqe)
        return -EAGAIN;
    io_uring_prep_recv(sqe, c->fd, NULL, u->multishot ? 0 : e->options.buffer_bytes, 0);
    if (u->multishot)
        sqe->ioprio |= RECEIVE_MULTISHOT;
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = POOL_GROUP;
    io_uring_sqe_set_data64(sqe, tag(c, OP_RECEIVE));
    aim(c, sqe);
    c->receiving = true;
    c->operations++;
    e->stats.rearmed++;
    return 0;
}

static int region_of(const nova_engine *e, const uint8_t *bytes, size_t length)
{
    for (uint32_t i = 0; i < e->regions_count; i++) {
        const nova_region *r = &e->regions[i];
        if (bytes >= r->bytes && length <= r->length && (size_t)(bytes - r->bytes) <= r->length - length)
            return (int)i;
    }
    return -1;
}

static int send_some(nova_engine *e, nova_conn *c)
{
    nova_ring *u = e->state;
    nova_segment *s = c->first;
    size_t left = s->length - s->sent;
    bool zerocopy = u->zerocopy && c->zerocopy && s->token && left >= e->options.zerocopy_bytes_min;
    struct io_uring_sqe *sqe = order(e);
    if (!sqe)
        return -EAGAIN;
    if (zerocopy) {
        left = left < (1u << 30) ? left : 1u << 30;
        io_uring_prep_send_zc(sqe, c->fd, s->bytes + s->sent, left, MSG_NOSIGNAL, u->report ? ZEROCOPY_REPORT : 0);
        int region = region_of(e, s->bytes + s->sent, left);
        if (region >= 0) {
            sqe->ioprio |= ZEROCOPY_FIXED;
            sqe->buf_index = (uint16_t)region;
            e->stats.zerocopy_fixed++;
        }
        io_uring_sqe_set_data64(sqe, tag(s, OP_ZEROCOPY));
        s->holds++;
        c->notices++;
        e->notices_due++;
        e->stats.zerocopy++;
        c->sending_bytes = left;
    } else {
        size_t apart = u->zerocopy && c->zerocopy ? e->options.zerocopy_bytes_min : SIZE_MAX;
        c->sending_bytes = nova_engine_gather(c, apart);
        if (c->message.msg_iovlen == 1)
            io_uring_prep_send(sqe, c->fd, c->gather[0].iov_base, c->gather[0].iov_len, MSG_NOSIGNAL);
        else
            io_uring_prep_sendmsg(sqe, c->fd, &c->message, MSG_NOSIGNAL);
        io_uring_sqe_set_data64(sqe, tag(c, OP_SEND));
    }
    aim(c, sqe);
    c->sending = true;
    c->operations++;
    e->stats.sends++;
    return 0;
}

static int uring_arm(nova_engine *e, nova_conn *c)
{
    int status = 0;
    switch (c->phase) {
    case NOVA_DIALLING:
        return c->dialled ? 0 : dial(e, c);
    case NOVA_OPEN:
    case NOVA_LEAVING:
        if (!c->receiving && !c->ended && !c->starving)
            status = receive(e, c);
        if (!c->sending && c->first && status == 0)
            status = send_some(e, c);
        return status;
    case NOVA_DYING:
        if (c->cancelled || !c->operations)
            return 0;
        if ((c->dialled && !cancel(e, tag(c, OP_DIAL))) || (c->receiving && !cancel(e, tag(c, OP_RECEIVE))) ||
            (c->sending && !cancel(e, tag(c, OP_SEND))) ||
            (c->sending && c->first && c->first->holds && !cancel(e, tag(c->first, OP_ZEROCOPY))))
            return -EAGAIN;
        c->cancelled = true;
        return 0;
    default:
        return 0;
    }
}

/* ---- completions ---- */

static void received(nova_engine *e, nova_conn *c, int result, unsigned flags)
{
    nova_ring *u = e->state;
    if (!(flags & IORING_CQE_F_MORE)) {
        c->receiving = false;
        c->operations--;
        nova_engine_dirty(e, c);
    }
    if (flags & IORING_CQE_F_BUFFER)
        nova_engine_received(e, c, flags >> IORING_CQE_BUFFER_SHIFT, result > 0 ? (uint32_t)result : 0);
    if (result > 0)
        return;
    if (c->phase >= NOVA_DYING)
        return;
    if (result == -ENOBUFS) {
        e->stats.no_buffers += e->buffers_free > 0; /* else arming finds it starve, and counts */
    } else if (result == -EINVAL && u->multishot) {
        u->multishot = false; /* before Linux 6.0 */
        e->stats.multishot = 0;
    } else if (result != -EAGAIN && result != -EINTR) {
        nova_engine_hung_up(e, c, -result);
    }
}

static void sent(nova_engine *e, nova_conn *c, int result)
{
    c->sending = false;
    c->operations--;
    nova_engine_dirty(e, c);
    if (result >= 0) {
        e->stats.sends_short += (size_t)result < c->sending_bytes;
        nova_engine_took(e, c, (size_t)result);
    } else if (result != -EAGAIN && result != -EINTR && c->phase < NOVA_DYING) {
        nova_engine_hung_up(e, c, -result);
    }
}

/* A zero-copy send completes twice: when the socket has taken the bytes, and, if that said F_MORE, when the kernel
 * needs the memory no more. In between, a cancelled or closed connection changes nothing: the memory is still read. */
static void sent_without_copy(nova_engine *e, nova_segment *s, int result, unsigned flags)
{
    nova_ring *u = e->state;
    nova_conn *c = s->conn;
    if (flags & IORING_CQE_F_NOTIF) {
        if (u->report && ((unsigned)result & ZEROCOPY_COPIED)) {
            e->stats.zerocopy_copied++;
            c->zerocopy = e->options.flags & NOVA_ENGINE_KEEP_ZEROCOPY; /* it only costs where the path copies */
        }
        nova_engine_gave_back(e, s);
        return;
    }
    if (result == -EINVAL && u->report) {
        u->report = false, result = -EAGAIN; /* before 6.2; once more without */
    } else if (result == -EOPNOTSUPP || result == -EINVAL || result == -ENOMEM || result == -EFAULT) {
        c->zerocopy = false, result = -EAGAIN; /* this path, or the limit of locked memory: the kernel copies */
    }
    bool more = flags & IORING_CQE_F_MORE;
    s->holds++; /* `sent` may end the segment, which is still looked at */
    c->notices++, e->notices_due++;
    sent(e, c, result);
    nova_engine_gave_back(e, s);
    if (!more)
        nova_engine_gave_back(e, s);
}

static void accepted(nova_engine *e, nova_listener *l, int result, unsigned flags)
{
    if (!(flags & IORING_CQE_F_MORE))
        l->armed = false;
    if (result >= 0)
        nova_engine_accepted(e, l, result);
    if (l->dead) {
        if (!l->armed)
            unlisten_done(e, l);
    } else if (result < 0 && result != -ECONNABORTED && result != -EINTR && result != -EAGAIN) {
        nova_engine_accept_failed(e, l, -result);
    } else if (!l->armed && uring_listen(e, l) < 0) {
        e->accept_later = true;
    }
}

static void complete(nova_engine *e, uint64_t data, int result, unsigned flags)
{
    void *subject = (void *)(uintptr_t)(data & ~(uint64_t)OP_MASK);
    nova_conn *c = subject;
    switch (data & OP_MASK) {
    case OP_WAKE:
        ((nova_ring *)e->state)->wake_armed = false;
        e->stats.wakes++;
        break;
    case OP_ACCEPT:
        accepted(e, subject, result, flags);
        break;
    case OP_DIAL:
        c->operations--;
        nova_engine_dirty(e, c);
        nova_engine_connected(e, c, result < 0 ? -result : 0);
        break;
    case OP_RECEIVE:
        received(e, c, result, flags);
        break;
    case OP_SEND:
        sent(e, c, result);
        break;
    case OP_ZEROCOPY:
        sent_without_copy(e, subject, result, flags);
        break;
    default: /* a cancel: what it ended completes for itself */
        break;
    }
}

/* Asked for one completion, newer kernels work off RUN_MAX of those that are due; asked for many, as many. Where so many
 * came, it is worth another call, since callers pay for every turn. */
static int run_many(nova_engine *e)
{
    nova_ring *u = e->state;
    struct __kernel_timespec at_once = {0, 0};
    struct io_uring_cqe *first;
    return NOVA_COUNTED(e, io_uring_wait_cqes(&u->ring, &first, RUN_MANY, &at_once, NULL));
}

static bool more_to_run(const nova_ring *u)
{
    return IO_URING_READ_ONCE(*u->ring.sq.kflags) & SQ_TASKRUN;
}

static bool overflown(const nova_ring *u)
{
    return IO_URING_READ_ONCE(*u->ring.sq.kflags) & IORING_SQ_CQ_OVERFLOW;
}

static int uring_wait(nova_engine *e, int64_t timeout_ns)
{
    nova_ring *u = e->state;
    uint64_t signals;
    if (u->polled && NOVA_COUNTED(e, read(e->event_fd, &signals, sizeof signals)) < 0 && errno != EAGAIN)
        return -errno; /* cleared before the look: what completes after it signals again */
    if (!u->wake_armed) {
        struct io_uring_sqe *sqe = order(e);
        if (sqe) {
            io_uring_prep_read(sqe, e->wake_fd, &u->wake_value, sizeof u->wake_value, 0);
            io_uring_sqe_set_data64(sqe, OP_WAKE);
            u->wake_armed = true;
        } else {
            timeout_ns = 0; /* asleep without it nobody could wake us */
        }
    }
    int status;
    if (timeout_ns == 0) {
        status = NOVA_COUNTED(e, io_uring_submit_and_get_events(&u->ring));
    } else {
        struct __kernel_timespec time = {timeout_ns / 1000000000, timeout_ns % 1000000000};
        struct io_uring_cqe *first;
        status =
            NOVA_COUNTED(e, io_uring_submit_and_wait_timeout(&u->ring, &first, 1, timeout_ns < 0 ? NULL : &time, NULL));
    }
    if (status < 0 && status != -ETIME && status != -EINTR && status != -EBUSY && status != -EAGAIN)
        return status;
    for (int round = 0;; round++) {
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        bool over = overflown(u);
        io_uring_for_each_cqe(&u->ring, head, cqe)
        {
            complete(e, cqe->user_data, cqe->res, cqe->flags);
            seen++;
        }
        io_uring_cq_advance(&u->ring, seen);
        if (!over && (seen < RUN_MAX || round == ROUNDS_MAX || !more_to_run(u)))
            return 0;
        /* The kernel keeps what found no room, and hands it over when it is asked with room at hand. */
        e->stats.overflows += over;
        status = over ? NOVA_COUNTED(e, io_uring_get_events(&u->ring)) : run_many(e);
        if (status < 0 && status != -ETIME && status != -EINTR && status != -EBUSY && status != -EAGAIN)
            return status;
    }
}

static bool uring_pending(nova_engine *e)
{
    return io_uring_sq_ready(&((nova_ring *)e->state)->ring) > 0;
}

static int uring_poll_fd(nova_engine *e)
{
    /* The ring's own descriptor does not tell of completions that wait for the next turn to become visible. */
    nova_ring *u = e->state;
    int status = u->polled ? 0 : io_uring_register_eventfd(&u->ring, e->event_fd);
    if (status < 0)
        return status;
    u->polled = true;
    return e->event_fd;
}

#else /* without liburing: the same face, which says what is missing */

static int uring_open(nova_engine *e, char *cause, size_t cause_bytes)
{
    snprintf(cause, cause_bytes, "built without liburing: apt install liburing-dev, then build nova again");
    return NOVA_ENGINE_E_ABSENT;
}

#define uring_close NULL
#define uring_arm NULL
#define uring_listen NULL
#define uring_unlisten NULL
#define uring_attach NULL
#define uring_detach NULL
#define uring_refill NULL
#define uring_wait NULL
#define uring_pending NULL
#define uring_poll_fd NULL
#define uring_pin NULL
#endif

const nova_driver nova_uring_driver = {
    .name = "io_uring",
    .open = uring_open,
    .close = uring_close,
    .arm = uring_arm,
    .listen = uring_listen,
    .unlisten = uring_unlisten,
    .attach = uring_attach,
    .detach = uring_detach,
    .refill = uring_refill,
    .wait = uring_wait,
    .pending = uring_pending,
    .poll_fd = uring_poll_fd,
    .pin = uring_pin,
};
