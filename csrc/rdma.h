/* csrc/rdma.h - bytes in order over one reliable connection (RC) of libibverbs.
 *
 * The C side of nova.transport.rdma.flow, which tells the protocol: what is said here about credits, slots and
 * immediates has its reasons there. The library is looked for at run time; built without its headers every call says
 * that they were missing. Nothing here waits, and nothing knows of Python. One connection belongs to one thread at a
 * time. Calls that can fail return 0 or more, or a negative NOVA_RDMA_E... */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum {
    NOVA_RDMA_INLINE_BYTES = 256,
    NOVA_RDMA_SLOT_BYTES = 8 * 1024,
    NOVA_RDMA_SLOTS = 64,
    NOVA_RDMA_BULK_BYTES = 256 * 1024,
    NOVA_RDMA_BULK_SLOTS = 4,
    NOVA_RDMA_WRITE_BYTES = 64 * 1024,
    NOVA_RDMA_SIGNAL_EVERY = 32,
    NOVA_RDMA_SEND_QUEUE = 128,
    NOVA_RDMA_MEMORY_BYTES = 2 * (NOVA_RDMA_SLOTS * NOVA_RDMA_SLOT_BYTES + NOVA_RDMA_BULK_SLOTS * NOVA_RDMA_BULK_BYTES),
};

enum {
    NOVA_RDMA_EBROKEN = -1, /* nova_rdma_status tells the completion that broke it */
    NOVA_RDMA_EPEER = -2,   /* the peer gave out credits or lengths that cannot be */
    NOVA_RDMA_EMEMORY = -3, /* memory cannot be registered; errno */
    NOVA_RDMA_EDEVICE = -4, /* the device, or a part of it, cannot be had; errno */
    NOVA_RDMA_EROUTE = -5,  /* no way to the peer; errno */
    NOVA_RDMA_EROOM = -6,   /* no memory for the queue */
};

typedef struct nova_rdma nova_rdma;

typedef struct {
    uint8_t gid[16];
    uint16_t lid;
    uint8_t mtu;
    uint32_t qpn, psn;
    uint32_t slots, slot_bytes;
    uint64_t bulk_address;
    uint32_t bulk_rkey, bulk_slots, bulk_bytes;
} nova_rdma_offer;

/* One message that has arrived; `data` stands until the pieces are released. */
typedef struct {
    const uint8_t *data;
    uint32_t size, slot, bulk;
} nova_rdma_piece;

/* Load the library, once. NULL, or what is missing. */
const char *nova_rdma_load(void);

/* A queue pair with its memory and its receives posted. psn: 24 bits. */
int nova_rdma_open(const char *device, uint8_t port, uint8_t gid_index, uint32_t psn, nova_rdma **out,
                   nova_rdma_offer *offer);
int nova_rdma_connect(nova_rdma *r, const nova_rdma_offer *remote);

/* Queue bytes and post what may be posted. last: nothing follows, so ask whether it arrived. */
int nova_rdma_write(nova_rdma *r, const uint8_t *data, size_t size);
int nova_rdma_flush(nova_rdma *r, int last);

/* What has arrived, at most NOVA_RDMA_SLOTS pieces; then give their slots back. */
int nova_rdma_collect(nova_rdma *r, nova_rdma_piece *pieces);
int nova_rdma_release(nova_rdma *r, const nova_rdma_piece *pieces, int count);

int nova_rdma_fd(const nova_rdma *r);
int nova_rdma_arm(nova_rdma *r);
void nova_rdma_take_event(nova_rdma *r);
size_t nova_rdma_queued(const nova_rdma *r);
int nova_rdma_idle(const nova_rdma *r);
int nova_rdma_status(const nova_rdma *r);
void nova_rdma_close(nova_rdma *r);
