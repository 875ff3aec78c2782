/* csrc/bulk.h - one large object over many TCP streams: which chunk goes where, and the loops that move the chunks.
 *
 * The object is a grid of chunks of one size; only the last one may be shorter. A stream that has shaken hands carries
 * chunk frames one way and acknowledgements the other way (the header is that of csrc/frame.h, numbers big-endian):
 *
 *      0  header; sequence counts the frames of this stream and direction
 *     24  transfer, u64
 *     32  CHUNK: offset in the object, u64, a multiple of the chunk size     ACK: chunk frames of this stream placed, u64
 *     40  CHUNK: the bytes of the chunk                                      [MAC, 16 bytes, of a stream with a key]
 *
 * The MAC is keyed BLAKE3 over bytes 0..19, 24..39 and the BLAKE3 of the chunk: a chunk is hashed once for its MAC and
 * for the digest of the whole object, which is BLAKE3 over the plan and the sums of all chunks in order.
 *
 * A board is what the streams of one end share: chunks that are to do, taken, done. A stream takes its next chunk when
 * it has room, so a slow one holds no other up, and what a broken one took others take again. All fields of boards and
 * streams are guarded by the board's lock, but for those that only the thread of a stream touches.
 *
 * Nothing here allocates; whoever owns a board hands in its arrays. */
#pragma once
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

enum {
    NOVA_BULK_CHUNK = 9, /* frame types */
    NOVA_BULK_ACK = 10,
    NOVA_BULK_HEAD = 40,
    NOVA_BULK_MAC = 16,
    NOVA_BULK_SUM = 32,
    NOVA_BULK_WINDOW = 1024, /* chunks of one stream on their way */
    NOVA_BULK_ACK_EVERY = 8,
    NOVA_BULK_PATIENCE_MS = 10
};
enum { NOVA_BULK_CRC32C = 1, NOVA_BULK_BLAKE3 = 2 };                  /* what the sums of chunks are */
enum { NOVA_BULK_TODO = 0, NOVA_BULK_TAKEN = 1, NOVA_BULK_DONE = 2 }; /* states of a chunk */
enum {                                                                /* why a loop ended; 0 is in good order */
       NOVA_BULK_ETYPE = -20,
       NOVA_BULK_ESEQUENCE = -21,
       NOVA_BULK_ETRANSFER = -22,
       NOVA_BULK_EOFFSET = -23,
       NOVA_BULK_ELENGTH = -24,
       NOVA_BULK_ECRC = -25,
       NOVA_BULK_EMAC = -26,
       NOVA_BULK_EACK = -27,
       NOVA_BULK_EOTHER = -28,  /* a chunk came twice, with different bytes */
       NOVA_BULK_ESOCKET = -30, /* errno in the stream */
       NOVA_BULK_EHANGUP = -31,
       NOVA_BULK_ECUT = -32,  /* cut or closed from this side */
       NOVA_BULK_EFILE = -33, /* reading the source or writing the destination; errno in the stream */
       NOVA_BULK_ESHORT = -34 /* the source ended before the size it began with */
};
#define NOVA_BULK_NONE UINT32_MAX

typedef struct {
    uint64_t transfer, bytes;
    uint32_t chunk_bytes, chunks;
    int digest;
} nova_bulk_plan;

struct nova_bulk_stream;

typedef struct {
    nova_bulk_plan plan;
    pthread_mutex_t lock;
    pthread_cond_t change;
    uint8_t *state; /* of each chunk */
    uint8_t *sums;  /* NOVA_BULK_SUM bytes of each chunk; a CRC32C is four bytes and zeros */
    uint32_t *list; /* sending: chunks that came back; receiving: chunks placed since the last look */
    uint32_t listed;
    uint32_t cursor, done;
    uint64_t done_bytes;
    uint64_t events; /* counts what `nova_bulk_wait` waits for */
    int closed;
    uint8_t *memory; /* the object in memory, or NULL and */
    int file;        /* a descriptor, in which it begins at `base` */
    uint64_t base;
    uint64_t pace_bytes_s, pace_due_ns; /* 0: as fast as it goes */
    struct nova_bulk_stream *streams;
} nova_bulk;

typedef struct nova_bulk_stream {
    struct nova_bulk_stream *next;
    int fd, keyed;
    uint8_t key_out[32], key_in[32];
    uint8_t *scratch;        /* chunk_bytes, or NULL where no file is read or written and nothing is received */
    int cut, leave;          /* end at once; end once what is on its way is acknowledged */
    int cause;               /* errno */
    uint64_t moved_bytes;    /* acknowledged to or by this side */
    uint64_t heard_ns;       /* when the last chunk or acknowledgement came */
    uint32_t waiting, first; /* sending: the ring of chunks on their way */
    uint32_t claimed;        /* receiving: the chunk that is being placed */
    /* of its own thread */
    uint64_t sequence_out, sequence_in, acked, placed, unacked;
    uint32_t held;  /* bytes of acknowledgements in `inbox` */
    uint32_t power; /* x^(8 chunk_bytes), for checksums */
    uint32_t ring[NOVA_BULK_WINDOW];
    uint64_t ring_ns[NOVA_BULK_WINDOW]; /* when each was sent */
    uint8_t inbox[2048];
} nova_bulk_stream;

uint64_t nova_bulk_now_ns(void);

/* Bytes of one chunk. */
size_t nova_bulk_size(const nova_bulk_plan *plan, uint32_t chunk);

/* x^(8 n) modulo the polynomial of CRC32C: what appending n bytes multiplies a checksum with. */
uint32_t nova_bulk_crc_power(uint64_t n);

/* CRC32C of A and B in a row, given both and the power of B's length. */
uint32_t nova_bulk_crc_join(uint32_t a, uint32_t b, uint32_t power);

/* The sum of one chunk, and its CRC32C. */
uint32_t nova_bulk_sum(const nova_bulk_plan *plan, const uint8_t *p, size_t n, uint8_t *sum);

/* Read the first NOVA_BULK_HEAD bytes of a chunk frame. 0 and its chunk; else NOVA_E... of frame.h or NOVA_BULK_E... and
 * nothing written. A chunk that is told lies on the grid, has the size that belongs there and is in turn. */
int nova_bulk_read(const nova_bulk_plan *plan, const uint8_t *head, int keyed, uint64_t sequence, uint32_t *chunk);

/* Write those bytes with a checksum of 0; `nova_bulk_close_frame` completes them. */
void nova_bulk_write(const nova_bulk_plan *plan, uint8_t *head, int keyed, uint64_t sequence, uint32_t chunk);

/* The MAC of a chunk frame. */
void nova_bulk_mac(const uint8_t *head, const uint8_t *sum, const uint8_t *key, uint8_t *mac);

/* The checksum of a chunk frame: head, bytes with this CRC32C and power of length, MAC or NULL. */
uint32_t nova_bulk_frame_crc(const uint8_t *head, uint32_t crc, uint32_t power, const uint8_t *mac);

/* Read a whole acknowledgement. 0 and the count, or an error. */
int nova_bulk_read_ack(const nova_bulk_plan *plan, const uint8_t *frame, const uint8_t *key, uint64_t sequence,
                       uint64_t *count);

/* Write one, NOVA_BULK_HEAD bytes and those of the MAC if there is a key; returns its size. */
size_t nova_bulk_write_ack(const nova_bulk_plan *plan, uint8_t *frame, const uint8_t *key, uint64_t sequence,
                           uint64_t count);

/* BLAKE3 of the plan and all sums. */
void nova_bulk_root(const nova_bulk *b, uint8_t *out);

void nova_bulk_init(nova_bulk *b);
void nova_bulk_free(nova_bulk *b);

/* A chunk is known to be in place. */
void nova_bulk_mark(nova_bulk *b, uint32_t chunk);

/* Forget what is done; all of it is to do again. No stream may run. */
void nova_bulk_reset(nova_bulk *b);

/* No stream takes or places anything any more; all loops end. */
void nova_bulk_close(nova_bulk *b);

/* End the loop of one stream now. */
void nova_bulk_cut(nova_bulk *b, nova_bulk_stream *s);

/* Let the loop of one sending stream end once what is on its way is acknowledged. */
void nova_bulk_leave(nova_bulk *b, nova_bulk_stream *s);

/* What was placed since the last call, up to `room` chunks; returns how many. */
uint32_t nova_bulk_fresh(nova_bulk *b, uint32_t *out, uint32_t room);

/* Wait until there are other events than `events` or the time is over; returns the events. */
uint64_t nova_bulk_wait(nova_bulk *b, uint64_t events, uint64_t timeout_ns);

/* Something that the waiter wants to know. */
void nova_bulk_poke(nova_bulk *b);

/* When the chunk that is on its way longest was sent; 0: none is. */
uint64_t nova_bulk_oldest_ns(nova_bulk *b, nova_bulk_stream *s);

/* Read one chunk of a file into `into`, or point into memory. NULL and errno (0: the file is too short) on failure. */
const uint8_t *nova_bulk_source(const nova_bulk *b, uint32_t chunk, uint8_t *into);

/* Compute the sums that are not known yet (all zero) from the source. 0, or NOVA_BULK_EFILE and errno, NOVA_BULK_ESHORT. */
int nova_bulk_fill(nova_bulk *b, uint8_t *scratch);

/* Whether the bytes in place have the sum that is known of them: 1, 0, or NOVA_BULK_EFILE and errno, NOVA_BULK_ESHORT. */
int nova_bulk_check(const nova_bulk *b, uint32_t chunk, uint8_t *scratch);

/* The loops: each runs in a thread of its own on a connected blocking socket until all is done, the stream is cut or
 * broken, or, for the receiver, the other side closed it between two frames. */
int nova_bulk_send(nova_bulk *b, nova_bulk_stream *s);
int nova_bulk_receive(nova_bulk *b, nova_bulk_stream *s);
