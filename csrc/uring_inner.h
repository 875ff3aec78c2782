/* csrc/uring_inner.h - what the engine and its two drivers share. See uring.h.
 *
 * One mutex guards what callers touch: commands, events, the table of connections, lent buffers. All else belongs to
 * the driving thread. A connection lives FREE -> DIALLING -> OPEN -> LEAVING -> DYING -> LINGERING -> FREE; its memory
 * is kept for the next one, so completions may point to it for as long as the ring lives. */
#pragma once
#include "uring.h"
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { NOVA_GATHER_MAX = 32, NOVA_SEGMENT_BYTES = 4096, NOVA_LISTENERS_MAX = 16, NOVA_REGIONS_MAX = 16 };

typedef enum {
    NOVA_FREE,
    NOVA_DIALLING,
    NOVA_OPEN,
    NOVA_LEAVING,  /* sends what is queued, then closes */
    NOVA_DYING,    /* the driver is getting its operations back */
    NOVA_LINGERING /* closed, but the kernel still holds memory that was sent */
} nova_phase;

typedef enum {
    NOVA_DO_SEND,
    NOVA_DO_BATCH,
    NOVA_DO_DIAL,
    NOVA_DO_SHUT,
    NOVA_DO_ABORT,
    NOVA_DO_LISTEN,
    NOVA_DO_UNLISTEN,
    NOVA_DO_REGISTER
} nova_order_kind;

typedef struct nova_command {
    struct nova_command *next;
    nova_order_kind kind;
    uint32_t connection;
} nova_command;

typedef struct nova_conn nova_conn;

typedef struct nova_segment {
    nova_command head; /* a send travels as the segment that it becomes */
    struct nova_segment *next;
    nova_conn *conn;
    const uint8_t *bytes;
    size_t length, sent;
    uint64_t token;
    uint32_t room;  /* bytes behind this; 0: `bytes` are the caller's */
    uint32_t holds; /* zero-copy sends whose memory the kernel has not given back */
    bool over;      /* left the queue: sent in full, or dropped */
    bool standard;  /* of NOVA_SEGMENT_BYTES: kept for reuse */
    uint8_t own[];
} nova_segment;

typedef struct {
    nova_command head;
    int count;
    const uint64_t *offsets;
    const uint32_t *connections;
    const uint8_t *slab;
} nova_batch;

/* A command whose caller waits for the result. */
typedef struct {
    nova_command head;
    const void *bytes;
    size_t length;
    int argument, result;
    bool done;
} nova_call;

struct nova_conn {
    nova_phase phase;
    atomic_uint handle; /* 0 once it is closed */
    uint32_t slot, life;
    int fd, result;
    bool readable, writable, hung; /* epoll: what the last edge said */
    bool receiving, sending;       /* io_uring: operations in the kernel */
    bool dialled, cancelled, ended, starving, dirty, fixed, reset;
    bool zerocopy;
    uint32_t operations; /* in the kernel, but for notices */
    uint32_t notices;    /* zero-copy notifications that are due */
    atomic_size_t queued;
    nova_segment *first, *last;
    nova_conn *next_dirty, *next_starving;
    size_t sending_bytes;
    struct msghdr message;
    struct iovec gather[NOVA_GATHER_MAX];
    struct sockaddr_storage address; /* of the other side */
    socklen_t address_bytes;
};

typedef struct {
    _Alignas(16) int fd; /* the low bits of its address carry what completed */
    bool used, armed, dead;
    uint32_t number;
} nova_listener;

typedef struct {
    const uint8_t *bytes;
    size_t length;
} nova_region;

typedef struct {
    const char *name;
    /* Both run on the driving thread. open leaves nothing behind when it fails, and says why in cause. */
    int (*open)(nova_engine *e, char *cause, size_t cause_bytes);
    void (*close)(nova_engine *e);
    /* Start what the state of c asks for. -EAGAIN: no room, or more to do; try again next turn. */
    int (*arm)(nova_engine *e, nova_conn *c);
    int (*listen)(nova_engine *e, nova_listener *l);
    void (*unlisten)(nova_engine *e, nova_listener *l);
    void (*attach)(nova_engine *e, nova_conn *c); /* c has a descriptor now */
    void (*detach)(nova_engine *e, nova_conn *c); /* and is about to lose it */
    void (*refill)(nova_engine *e, uint32_t buffer);
    int (*wait)(nova_engine *e, int64_t timeout_ns);
    bool (*pending)(nova_engine *e); /* orders that only the next wait hands to the kernel */
    int (*poll_fd)(nova_engine *e);
    int (*pin)(nova_engine *e, uint32_t number, const nova_region *region);
} nova_driver;

struct nova_engine {
    nova_engine_options options;
    const nova_driver *driver;
    void *state; /* the driver's own */
    uint32_t forks;
    pthread_t owner; /* who drives */
    bool threaded;
    int wake_fd;  /* callers write: the driver sleeps */
    int event_fd; /* the driver writes: events wait */

    pthread_mutex_t lock;
    pthread_cond_t answered;
    nova_command *commands, **commands_end;
    nova_event *ready;
    size_t ready_at, ready_count, ready_room;
    nova_event *notices; /* what recv_batch passed over */
    size_t notices_at, notices_count, notices_room;
    uint32_t *returned;
    uint32_t returned_count;
    uint8_t *lent;
    bool asleep, hungry, signalled, stopping, ended, opened;
    int error;
    char cause[160];
    nova_conn **conns;
    uint32_t *free_slots, free_count;

    nova_event *local;
    size_t local_count, local_room;
    nova_conn *dirty, *starving;
    nova_segment *spare;
    uint32_t spare_count;
    nova_listener listeners[NOVA_LISTENERS_MAX];
    nova_region regions[NOVA_REGIONS_MAX];
    uint32_t regions_count;
    bool accept_later; /* an accept failed for want of descriptors: again in a while */
    uint8_t *pool;
    size_t stride; /* from buffer to buffer: not a power of two, or small messages would share a few cache lines */
    uint32_t buffers_free;
    uint64_t notices_due;
    uint32_t living;
    bool kept, closed;
    nova_engine_stats stats;
};

extern const nova_driver nova_uring_driver, nova_epoll_driver;

/* What drivers tell the engine. */
void nova_engine_dirty(nova_engine *e, nova_conn *c);
void nova_engine_accepted(nova_engine *e, nova_listener *l, int fd);
void nova_engine_accept_failed(nova_engine *e, nova_listener *l, int error);
void nova_engine_connected(nova_engine *e, nova_conn *c, int error);
/* buffer holds n bytes more; it is the caller's now, or back in the pool if nobody wants them. */
void nova_engine_received(nova_engine *e, nova_conn *c, uint32_t buffer, uint32_t n);
void nova_engine_starves(nova_engine *e, nova_conn *c);
/* The other side has closed (error 0), or the connection broke. */
void nova_engine_hung_up(nova_engine *e, nova_conn *c, int error);
/* n bytes from the head of the queue were taken by the kernel. */
void nova_engine_took(nova_engine *e, nova_conn *c, size_t n);
/* The kernel has given back what a zero-copy send of s held. */
void nova_engine_gave_back(nova_engine *e, nova_segment *s);
/* Gather what may leave with one sendmsg into c->message; returns its bytes. Stops before what `apart` is told to. */
size_t nova_engine_gather(nova_conn *c, size_t apart_from);
uint8_t *nova_engine_buffer(nova_engine *e, uint32_t buffer);

/* The parts of the engine to each other. */
int nova_events_put(nova_event **events, size_t *at, size_t *count, size_t *room, const nova_event *more, size_t n);
void nova_engine_say(nova_engine *e, const nova_event *event); /* at the end of the turn */
void nova_segment_release(nova_engine *e, nova_segment *s);
void nova_queue_append(nova_engine *e, nova_conn *c, nova_segment *s);
int nova_queue_copy(nova_engine *e, nova_conn *c, const uint8_t *bytes, size_t n);
void nova_queue_drop(nova_engine *e, nova_conn *c);
bool nova_engine_is_child(const nova_engine *e);
bool nova_engine_is_owner(const nova_engine *e); /* of a driven engine: does this thread drive it? */
void nova_engine_push(nova_engine *e, nova_command *command);
void nova_engine_unlock(nova_engine *e); /* and wake the driver if it sleeps */
int nova_engine_give(nova_engine *e, uint32_t buffer);
void nova_engine_ring(nova_engine *e, int fd);
nova_conn *nova_engine_place(nova_engine *e);                 /* a free connection, or NULL; under the lock */
nova_conn *nova_engine_find(nova_engine *e, uint32_t handle); /* NULL: gone */
int nova_engine_queue_copy(nova_engine *e, nova_conn *c, const uint8_t *bytes, size_t n);
void nova_engine_apply(nova_engine *e, nova_command *command); /* and free it, unless its caller waits */
int nova_engine_step(nova_engine *e, int64_t timeout_ns);
void nova_engine_finish(nova_engine *e);
void *nova_engine_thread(void *engine);

/* One system call, counted. */
#define NOVA_COUNTED(e, call) ((e)->stats.syscalls++, (call))
