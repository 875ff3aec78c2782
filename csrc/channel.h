/* csrc/channel.h - an established session's frames, in and out: checked, credited, assembled and packed.
 *
 * Nothing here knows a clock or the handshake; `nova_channel_read` and `nova_channel_write` at the end are the only ones
 * that touch a socket. Bytes arrive in a slab: small messages stay where they arrived, messages of NOVA_LARGE_BYTES and
 * more, and those that come in several pieces, get a block of their own, into which the rest of them may be received
 * without another copy. A message is handed out when its whole frame has passed checksum and MAC.
 *
 * One thread may be inside of the functions that take bytes in and one inside of those that give bytes out, at the same
 * time: what passes between the two sides is atomic. */
#pragma once
#include <sys/uio.h>

#include "blake3.h"
#include "frame.h"
#include "pool.h"

enum {
    NOVA_FRAME_DATA = 3,
    NOVA_FRAME_CREDIT = 4,
    NOVA_FRAME_PING = 5,
    NOVA_FRAME_PONG = 6,
    NOVA_FRAME_GOODBYE = 7,

    NOVA_LANES = 4,     /* priorities; each may be in the middle of one message */
    NOVA_COST_MIN = 64, /* what the smallest message costs */
    NOVA_PIECE_HEADER = 4,
    NOVA_PIECE_MIN = 4096,    /* a message is not cut for less credit than this */
    NOVA_LARGE_BYTES = 16384, /* from here on a message has a block of its own */
    NOVA_SMALL_BYTES = 8192,  /* up to here a message is copied beside others when it is sent */
    NOVA_SLAB_BYTES = 131072,
    NOVA_AHEAD_BYTES = 128, /* what is read behind a message that goes into its own block: the next headers */
    NOVA_PONGS = 1024,      /* answers that wait; a peer that asks for more does not read */
    NOVA_REASON_BYTES_MAX = 512,
    NOVA_GOODBYE_BYTES_MAX = 4096,
    NOVA_FLIGHT_FRAMES = 32,
    NOVA_FLIGHT_BYTES = 1 << 17, /* sent in one call, a frame more: checksummed just before, they are in the cache */
};

/* Why the peer broke the protocol, or what stopped us. Those of frame.h count on from -1. */
enum {
    NOVA_EFIRST = -20, /* the first byte begins no frame */
    NOVA_EMAC = -21,
    NOVA_EORDER = -22, /* sequence or stream */
    NOVA_EAFTER = -23, /* a frame after the goodbye */
    NOVA_ETYPE = -24,
    NOVA_ENUMBER = -25, /* not 8 bytes of number */
    NOVA_ECREDIT = -26,
    NOVA_EPIECES = -27,  /* a piece in the frame of one that goes on */
    NOVA_ERAGGED = -28,  /* bytes behind the last piece */
    NOVA_EPIECE = -29,   /* a piece is longer than its frame */
    NOVA_EHOLLOW = -30,  /* an empty piece that goes on */
    NOVA_ENONE = -31,    /* a data frame without a message */
    NOVA_EMESSAGE = -32, /* over the limit */
    NOVA_EMIDDLE = -33,  /* goodbye in the middle of a message */
    NOVA_EPONGS = -34,
    NOVA_ECRC = -35,
    NOVA_EGOODBYE = -36,
    NOVA_EMEMORY = -37,
    NOVA_EEND = -38,    /* the peer hung up */
    NOVA_ESYSTEM = -39, /* errno of a call is in .system */
};
/* What is no error. */
enum { NOVA_DONE = 0, NOVA_WAITS = 1 };

enum { NOVA_MAC_NONE, NOVA_MAC_BLAKE3, NOVA_MAC_FOREIGN };

/* The MAC of one direction: none, keyed BLAKE3, or what the owner lends functions for. */
typedef struct {
    int kind;
    nova_blake3_mode mode;
    nova_blake3_stream hash;
    void *self;
    void (*begin)(void *self, const uint8_t *head, size_t bytes); /* bytes: of body that it will cover */
    void (*add)(void *self, const uint8_t *p, size_t n);
    void (*end)(void *self, uint8_t *mac);
} nova_mac;

typedef struct {
    const uint8_t *at;
    size_t size;
    nova_block *block;
} nova_message;

typedef struct {
    nova_block *block; /* NULL: not in the middle of a message */
    size_t filled;
    uint64_t cost;
} nova_assembly;

/* What waits to be sent: pieces in wire form that stand in `block`, or one message that is cut on its way. */
typedef struct nova_item {
    struct nova_item *next;
    nova_block *block; /* holds the bytes; NULL: `owner` does */
    void *owner;       /* given back to the caller once everything has left */
    const uint8_t *data;
    size_t size, sent;
    int whole;
} nova_item;

typedef struct {
    /* what both sides agreed on */
    size_t frame_bytes_max, message_bytes_max, payload_bytes, queue_bytes_max;
    uint64_t credit_bytes;
    uint32_t lanes;

    /* in */
    nova_mac mac_in;
    uint64_t sequence_in, granted, arrived, consumed, received_bytes;
    int state, more, pieces;
    int after_large; /* the last thing that came was a large piece: likely another one follows */
    uint8_t head[NOVA_FRAME_HEADER], control[NOVA_REASON_BYTES_MAX];
    nova_frame frame;
    uint32_t crc;
    size_t left, control_bytes, piece_left, hint;
    nova_assembly assembly[NOVA_LANES];
    nova_message *messages; /* [taken, ready) may be taken, [ready, count) belong to a frame that is not whole yet */
    size_t taken, ready, count, room;
    nova_block *slab;
    size_t slab_at, slab_end;
    uint64_t heard_ns, rtt_ns, bad; /* bad: a number for the complaint */
    uint8_t reason[NOVA_REASON_BYTES_MAX];
    size_t reason_bytes;
    int peer_done, expects_goodbye;

    /* from in to out */
    uint64_t may_send, grant, pongs[NOVA_PONGS];
    unsigned pongs_in, pongs_out;

    /* out */
    nova_mac mac_out;
    uint64_t sequence_out, announced, data_out, sent_bytes, ping_ns;
    size_t queue_bytes;
    nova_item *first[NOVA_LANES], *last[NOVA_LANES], *leaving, *gone, *spare;
    int cut_lane; /* the lane whose message has been begun; -1: none */
    int closing, done;
    uint8_t goodbye[NOVA_FRAME_HEADER + NOVA_REASON_BYTES_MAX + NOVA_FRAME_MAC];
    size_t goodbye_bytes;
    struct iovec flight[3 * NOVA_FLIGHT_FRAMES];
    size_t flight_at, flight_count;
    uint8_t heads[NOVA_FLIGHT_FRAMES][64], together[2048];
    int system;
    uint64_t calls; /* to the kernel */
} nova_channel;

/* All counters 0, nothing keyed. The caller sets the agreement and the counters that the handshake has moved. */
void nova_channel_begin(nova_channel *c);

/* The connection is gone: what is queued or in flight counts as gone. */
void nova_channel_drop(nova_channel *c);

/* Give every block back. Items whose owners are still to be given back are in c->gone afterwards. */
void nova_channel_end(nova_channel *c);

/* What a message or piece charges to credit and queue. */
static inline uint64_t nova_cost(size_t payload_bytes)
{
    return payload_bytes + NOVA_PIECE_HEADER < NOVA_COST_MIN ? NOVA_COST_MIN : payload_bytes + NOVA_PIECE_HEADER;
}

/* ---- in ---- */

/* Where the next bytes belong: one or two places, at most `most` of them. Returns how many, or NOVA_EMEMORY. */
int nova_channel_where(nova_channel *c, struct iovec where[2]);

/* n bytes stand there now. 0 or an error; after an error nothing may be fed any more. */
int nova_channel_arrived(nova_channel *c, size_t n, uint64_t now_ns);

/* The same for bytes that stand elsewhere: they are copied. */
int nova_channel_feed(nova_channel *c, const uint8_t *p, size_t n, uint64_t now_ns);

/* Take the next message. It is held (by its block) for the caller if `holds` says so: once for a run of messages that
 * share a block. 0: none is here. */
int nova_channel_take(nova_channel *c, nova_message *out, int *holds);

/* The application has taken messages of this cost. */
void nova_channel_consumed(nova_channel *c, uint64_t cost);

/* ---- out ---- */

/* Queue a copy (n <= NOVA_SMALL_BYTES fits with others). 0, NOVA_WAITS if the queue is full, or NOVA_EMEMORY. */
int nova_channel_copy(nova_channel *c, int lane, const uint8_t *p, size_t n);

/* Queue a message where it stands; `owner` comes back in c->gone when it has left. */
int nova_channel_lend(nova_channel *c, int lane, const uint8_t *p, size_t n, void *owner);

/* What one lent message has left unsent is copied, so that its owner may be given back now. 0 or NOVA_EMEMORY. */
int nova_channel_reclaim(nova_channel *c, void *owner);

/* Queue messages p[offsets[i]..offsets[i+1]) from i = *done on, until the queue is full; offsets are checked by the
 * caller. */
int nova_channel_copy_many(nova_channel *c, int lane, const uint8_t *p, const int64_t *offsets, size_t count,
                           size_t *done);

/* Would `nova_channel_frame` give one? */
int nova_channel_has_output(const nova_channel *c);

/* Do answers or credit wait to leave? */
int nova_channel_has_control(const nova_channel *c);

/* The next frame, as up to three parts; head has 64 bytes of room for what is not elsewhere. 0: nothing may leave.
 * Without `data` only answers and credit leave. */
int nova_channel_frame(nova_channel *c, uint8_t *head, int data, struct iovec parts[3]);

/* Say goodbye when the queue is empty; with discard, instead of what is queued. */
void nova_channel_close(nova_channel *c, const uint8_t *reason, size_t n, int discard);

/* Items that have left: the caller gives their owners back, then the items. */
nova_item *nova_channel_gone(nova_channel *c);
void nova_channel_free_items(nova_item *items);

/* ---- a socket ---- */

/* Receive once, for at most what the socket has (flags of recvmsg). Bytes, NOVA_WAITS with 0 bytes in *got, or an
 * error: NOVA_EEND, NOVA_ESYSTEM. */
int nova_channel_read(nova_channel *c, int fd, int flags, uint64_t (*now_ns)(void), size_t *got);

/* Send until nothing may leave (0) or the socket takes no more (NOVA_WAITS). */
int nova_channel_write(nova_channel *c, int fd, int flags, int data);

/* ---- something else ---- */

/* Hand what may leave to `put`, frame by frame, so that the other end reads one while the next is made. It takes what it
 * has room for and returns how many bytes that is; below 0, what is returned here. 0, or NOVA_WAITS if it is full. */
typedef int64_t (*nova_put)(void *to, const struct iovec *parts, int count);
int nova_channel_pass(nova_channel *c, nova_put put, void *to, int data);

/* Counts the forks behind us; a channel of another count belongs to a parent. */
unsigned nova_fork_count(void);
