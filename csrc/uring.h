/* csrc/uring.h - many byte streams by one thread: on io_uring, or on epoll where the kernel forbids io_uring.
 *
 * An engine owns its sockets. Calls queue work; what happened comes back as events, in order for each connection. Two
 * ways to drive it: a thread of its own, which raises wake_fd whenever events wait, or the caller's thread, by
 * nova_engine_turn (NOVA_ENGINE_DRIVEN): one system call then moves a batch over all connections.
 *
 * Received bytes lie in buffers of the engine's pool and are the caller's until nova_engine_release, which any thread
 * may call. Bytes sent with a token are borrowed until the event NOVA_SENT with that token; without one (0) they are
 * copied. All functions but nova_engine_turn and the batch functions of a driven engine may be called from any thread.
 *
 * Functions return 0 or more, minus an errno, or a NOVA_ENGINE_E... */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* cffi reads from here */
enum { NOVA_ENGINE_URING = 1, NOVA_ENGINE_EPOLL = 2 };

/* Switches, to force what an older kernel or a test needs. */
enum {
    NOVA_ENGINE_DRIVEN = 1,         /* no thread: the one that opened the engine turns it */
    NOVA_ENGINE_NO_DEFER = 2,       /* completions interrupt, instead of waiting for the next turn */
    NOVA_ENGINE_NO_MULTISHOT = 4,   /* one receive an order */
    NOVA_ENGINE_NO_FIXED_FILES = 8, /* sockets by descriptor */
    NOVA_ENGINE_NO_ZEROCOPY = 16,   /* the kernel copies what is sent */
    NOVA_ENGINE_KEEP_ZEROCOPY = 32  /* go on with zero-copy sends even where the kernel copies all the same */
};

enum {
    NOVA_ACCEPTED = 1,  /* connection, listener */
    NOVA_CONNECTED = 2, /* connection */
    NOVA_RECEIVED = 3,  /* connection, buffer, bytes, length */
    NOVA_SENT = 4,      /* token: the bytes are the caller's again */
    NOVA_DRAINED = 5,   /* connection: its queue has fallen to queue_bytes_low */
    NOVA_CLOSED = 6,    /* connection, result: errno, or 0 for the end in good order; it is not named again */
    NOVA_FAILED = 7     /* result: errno. Without listener the engine has ended, else one accept failed */
};

enum {
    NOVA_ENGINE_E_FORKED = -10001, /* this process is a child of the one that opened the engine */
    NOVA_ENGINE_E_THREAD = -10002, /* a driven engine is turned by another thread than its own */
    NOVA_ENGINE_E_GONE = -10003,   /* no such connection, or it takes nothing more */
    NOVA_ENGINE_E_ENDED = -10004,  /* the engine was closed or has failed */
    NOVA_ENGINE_E_FULL = -10005,   /* all places for connections, listeners or regions are taken */
    NOVA_ENGINE_E_ABSENT = -10006, /* built without liburing */
    NOVA_ENGINE_E_KERNEL = -10007, /* the kernel lacks what the engine needs */
    NOVA_ENGINE_E_LENT = -10008    /* that buffer is not lent: released before */
};

typedef struct {
    uint32_t engine, flags;
    uint32_t submissions, completions; /* entries of the rings, powers of two */
    uint32_t buffers, buffer_bytes;    /* of the pool for received bytes; buffers is a power of two */
    uint32_t connections_max;
    uint32_t zerocopy_bytes_min; /* shorter sends are copied by the kernel */
    uint32_t queue_bytes_low;
    uint32_t queue_bytes_max; /* a connection whose queue grows over it is closed, with ENOBUFS; 0: no limit */
} nova_engine_options;

typedef struct {
    uint32_t kind, connection;
    int32_t result;
    uint32_t length;
    uint32_t buffer, listener;
    uint64_t token;
    const uint8_t *bytes;
} nova_event;

typedef struct {
    uint64_t turns, syscalls;
    uint64_t received_bytes, received, sent_bytes, sends, sends_short;
    uint64_t zerocopy, zerocopy_copied, zerocopy_fixed; /* sends; of those: copied all the same, from a region */
    uint64_t zerocopy_pending;                          /* buffers that the kernel still holds */
    uint64_t no_buffers, overflows, rearmed;
    uint64_t wakes, buffers_free, connections;
    uint32_t deferred, multishot, fixed_files, zerocopy_on; /* what the kernel gave */
} nova_engine_stats;

typedef struct nova_engine nova_engine;

/* 0 if an engine of this kind can be opened here; else why not, and in words in cause. */
int nova_engine_probe(uint32_t engine, char *cause, size_t cause_bytes);
/* NULL: *error and cause say why. */
nova_engine *nova_engine_open(const nova_engine_options *options, int *error, char *cause, size_t cause_bytes);
/* End all connections, wait until the kernel has let go of every buffer, close. events() still gives what is left.
 * 1: after a second the kernel still reads memory that was sent without copying, to one that closed before but does not
 * read; what is lent must then be kept as it is, for good. */
int nova_engine_close(nova_engine *e);
/* Also frees; after nova_engine_close. In a child after fork it only lets the copy go. */
void nova_engine_free(nova_engine *e);
/* End as if the kernel had failed with this errno: what a failing kernel looks like from above. */
int nova_engine_fail(nova_engine *e, int error);

int nova_engine_wake_fd(nova_engine *e);
/* Take over a listening socket; returns the number of the listener. */
int nova_engine_listen(nova_engine *e, int fd);
int nova_engine_unlisten(nova_engine *e, int listener);
/* host is a numeric address. Returns the connection; NOVA_CONNECTED or NOVA_CLOSED follows. */
int64_t nova_engine_connect(nova_engine *e, const char *host, uint16_t port);
/* Numeric host and port of the other side, "host port"; valid from NOVA_ACCEPTED to NOVA_CLOSED. */
int nova_engine_peer(nova_engine *e, uint32_t connection, char *out, size_t out_bytes);
/* Returns how many bytes wait in the queue of the connection now. */
int64_t nova_engine_send(nova_engine *e, uint32_t connection, const void *bytes, size_t length, uint64_t token);
/* Close once all that is queued has left. */
int nova_engine_shut(nova_engine *e, uint32_t connection);
/* Close now, with a reset; nothing queued is sent. */
int nova_engine_abort(nova_engine *e, uint32_t connection);

/* Up to max events; 0: none, and the next one raises wake_fd. */
int nova_engine_events(nova_engine *e, nova_event *out, int max);
/* Of those only what nova_engine_recv_batch passed over. */
int nova_engine_notices(nova_engine *e, nova_event *out, int max);
int nova_engine_release(nova_engine *e, const uint32_t *buffers, int count);
/* Register memory with the ring, so that zero-copy sends from it pin no pages; it stays until the engine is closed. */
int nova_engine_register(nova_engine *e, const void *bytes, size_t length);

/* Drive: submit, wait up to timeout_ns (-1: without end) for something to happen, take it in. */
int nova_engine_turn(nova_engine *e, int64_t timeout_ns);
/* 1 if a driven engine has work for a turn already, so that nobody must wait for poll_fd first; 0 if not. */
int nova_engine_pending(nova_engine *e);
/* Readable whenever a turn of a driven engine would find something. */
int nova_engine_poll_fd(nova_engine *e);
/* Received bytes of all connections: piece i is slab[offsets[i], offsets[i + 1]) of connections[i]. Waits up to
 * timeout_ns for the first. Returns the number of pieces; other events wait for nova_engine_events. offsets has room
 * for max + 1, slab for at least one buffer. */
int nova_engine_recv_batch(nova_engine *e, uint8_t *slab, size_t slab_bytes, uint64_t *offsets, uint32_t *connections,
                           int max, int64_t timeout_ns);
/* Send piece i, slab[offsets[i], offsets[i + 1]), to connections[i]; the bytes are copied. Returns how many were
 * queued: those to connections that are gone are left out. -EINVAL if the offsets do not ascend or leave the slab. */
int nova_engine_send_batch(nova_engine *e, const uint8_t *slab, size_t slab_bytes, const uint64_t *offsets,
                           const uint32_t *connections, int count);
void nova_engine_stats_read(nova_engine *e, nova_engine_stats *out);
/* cffi reads to here */
