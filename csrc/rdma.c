/* csrc/rdma.c */
#define _GNU_SOURCE
#include "rdma.h"

#if defined(__has_include)
#if __has_include(<infiniband/verbs.h>)
#define NOVA_HAVE_VERBS 1
#endif
#endif

#ifdef NOVA_HAVE_VERBS

#include <arpa/inet.h>
#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* The calls that the header does not resolve by itself. */
#define CALLS(call)                                                                                                  \
    call(get_device_list) call(free_device_list) call(get_device_name) call(open_device) call(close_device)          \
        call(query_port) call(query_gid) call(alloc_pd) call(dealloc_pd) call(reg_mr) call(dereg_mr)                 \
            call(create_comp_channel) call(destroy_comp_channel) call(create_cq) call(destroy_cq) call(get_cq_event) \
                call(ack_cq_events) call(create_qp) call(modify_qp) call(destroy_qp)

#define MEMBER(name) __typeof__(ibv_##name) *name;
static struct {
    CALLS(MEMBER)
} verbs;

enum {
    SEND = 1u << 31, /* wr_id of what was sent; a receive has the number of its slot */
    MIN_RNR_TIMER = 12,
    RNR_RETRY = 6,
    RETRY = 6, /* 7 is "for ever" to rxe */
    TIMEOUT = 14,
    BATCH = 32,
    LENGTH_BITS = 19,
    BULK_BITS = 4,
    LENGTH_MAX = (1 << LENGTH_BITS) - 1,
    BULK_MAX = (1 << BULK_BITS) - 1,
    CREDIT_MAX = (1 << (32 - LENGTH_BITS - BULK_BITS)) - 1,
};

enum kind { SMALL, BULK, CREDIT };

/* What is under way, or was when a completion was asked for. */
struct load {
    uint32_t requests, messages, bulks;
};

struct nova_rdma {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_mr *mr, *bulk_mr; /* all of the memory; the part that the peer may write */
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_qp *qp;
    uint8_t *memory, *receive, *bulk, *send, *send_bulk;
    uint8_t *queue; /* queue_at .. queue_end of queue_room are to be sent */
    size_t queue_at, queue_end, queue_room;
    nova_rdma_offer own, peer;
    uint8_t port, gid_index;
    int status; /* of the first completion that failed */
    uint32_t inline_bytes;
    /* the flow */
    uint32_t credits, bulk_free, owed, bulk_owed, bulk_next, bulks_taken, unsignaled, sent_slots, sent_bulks;
    struct load load, since, signaled[NOVA_RDMA_SEND_QUEUE];
    uint32_t signaled_first, signaled_count;
};

const char *nova_rdma_load(void)
{
    static const char *lack = "";
    if (*lack || (lack && verbs.get_device_list))
        return *lack ? lack : NULL;
    void *library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return lack = "no libibverbs.so.1: apt install rdma-core ibverbs-providers";
#define RESOLVE(name)                                                           \
    if (!(verbs.name = (__typeof__(verbs.name))dlsym(library, "ibv_" #name))) { \
        verbs.get_device_list = NULL;                                           \
        return lack = "libibverbs.so.1 has no ibv_" #name ": it is too old";    \
    }
    CALLS(RESOLVE)
    return NULL;
}

static struct ibv_context *open_by_name(const char *name)
{
    int count = 0;
    struct ibv_context *context = NULL;
    struct ibv_device **list = verbs.get_device_list(&count);
    if (!list)
        return NULL;
    errno = ENODEV;
    for (int i = 0; i < count && !context; i++)
        if (!strcmp(verbs.get_device_name(list[i]), name))
            context = verbs.open_device(list[i]);
    verbs.free_device_list(list);
    return context;
}

static int post_receives(nova_rdma *r, const uint32_t *slots, int count)
{
    struct ibv_sge parts[NOVA_RDMA_SLOTS];
    struct ibv_recv_wr requests[NOVA_RDMA_SLOTS], *bad;
    memset(requests, 0, sizeof *requests * count);
    for (int i = 0; i < count; i++) {
        parts[i].addr = (uintptr_t)(r->receive + (size_t)slots[i] * NOVA_RDMA_SLOT_BYTES);
        parts[i].length = NOVA_RDMA_SLOT_BYTES;
        parts[i].lkey = r->mr->lkey;
        requests[i].wr_id = slots[i];
        requests[i].sg_list = &parts[i];
        requests[i].num_sge = 1;
        requests[i].next = i + 1 < count ? &requests[i + 1] : NULL;
    }
    return count ? ibv_post_recv(r->qp, requests, &bad) : 0;
}

static int create_queue_pair(nova_rdma *r)
{
    struct ibv_qp_init_attr init = {
        .qp_type = IBV_QPT_RC,
        .send_cq = r->cq,
        .recv_cq = r->cq,
        .cap = {.max_send_wr = NOVA_RDMA_SEND_QUEUE,
                .max_recv_wr = NOVA_RDMA_SLOTS,
                .max_send_sge = 1,
                .max_recv_sge = 1,
                .max_inline_data = NOVA_RDMA_INLINE_BYTES},
    };
    r->qp = verbs.create_qp(r->pd, &init);
    if (!r->qp) { /* not every device takes bytes inline */
        init.cap.max_inline_data = 0;
        r->qp = verbs.create_qp(r->pd, &init);
    }
    if (!r->qp)
        return -1;
    r->inline_bytes = init.cap.max_inline_data < NOVA_RDMA_INLINE_BYTES ? 0 : NOVA_RDMA_INLINE_BYTES;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT,
        .port_num = r->port,
        .qp_access_flags = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE,
    };
    return verbs.modify_qp(r->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

static int open_parts(nova_rdma *r, const char *device, uint32_t psn)
{
    const size_t slots = (size_t)NOVA_RDMA_SLOTS * NOVA_RDMA_SLOT_BYTES;
    const size_t bulks = (size_t)NOVA_RDMA_BULK_SLOTS * NOVA_RDMA_BULK_BYTES;
    struct ibv_port_attr port;
    uint32_t all[NOVA_RDMA_SLOTS];
    memset(&port, 0, sizeof port);
    if (!(r->context = open_by_name(device)))
        return NOVA_RDMA_EDEVICE;
    if ((errno = verbs.query_port(r->context, r->port, (void *)&port)) != 0)
        return NOVA_RDMA_EDEVICE;
    if (!(r->pd = verbs.alloc_pd(r->context)))
        return NOVA_RDMA_EDEVICE;
    r->memory = mmap(NULL, NOVA_RDMA_MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r->memory == MAP_FAILED) {
        r->memory = NULL;
        return NOVA_RDMA_EMEMORY;
    }
    madvise(r->memory, NOVA_RDMA_MEMORY_BYTES, MADV_DONTFORK); /* a child would take pages from under the device */
    r->receive = r->memory;
    r->bulk = r->receive + slots;
    r->send = r->bulk + bulks;
    r->send_bulk = r->send + slots;
    r->mr = verbs.reg_mr(r->pd, r->memory, NOVA_RDMA_MEMORY_BYTES, IBV_ACCESS_LOCAL_WRITE);
    if (!r->mr)
        return NOVA_RDMA_EMEMORY;
    r->bulk_mr = verbs.reg_mr(r->pd, r->bulk, bulks, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    if (!r->bulk_mr)
        return NOVA_RDMA_EMEMORY;
    if (!(r->channel = verbs.create_comp_channel(r->context)))
        return NOVA_RDMA_EDEVICE;
    int flags = fcntl(r->channel->fd, F_GETFL);
    if (flags < 0 || fcntl(r->channel->fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return NOVA_RDMA_EDEVICE;
    /* Every receive and every request can be complete at once, so the queue cannot overrun. */
    r->cq = verbs.create_cq(r->context, NOVA_RDMA_SLOTS + NOVA_RDMA_SEND_QUEUE, NULL, r->channel, 0);
    if (!r->cq || create_queue_pair(r))
        return NOVA_RDMA_EDEVICE;
    for (uint32_t i = 0; i < NOVA_RDMA_SLOTS; i++)
        all[i] = i;
    if ((errno = post_receives(r, all, NOVA_RDMA_SLOTS)) != 0)
        return NOVA_RDMA_EDEVICE;
    union ibv_gid gid;
    if (verbs.query_gid(r->context, r->port, r->gid_index, &gid))
        return NOVA_RDMA_EDEVICE;
    memcpy(r->own.gid, gid.raw, sizeof r->own.gid);
    r->own.lid = port.lid;
    r->own.mtu = (uint8_t)port.active_mtu;
    r->own.qpn = r->qp->qp_num;
    r->own.psn = psn;
    r->own.slots = NOVA_RDMA_SLOTS;
    r->own.slot_bytes = NOVA_RDMA_SLOT_BYTES;
    r->own.bulk_address = (uintptr_t)r->bulk;
    r->own.bulk_rkey = r->bulk_mr->rkey;
    r->own.bulk_slots = NOVA_RDMA_BULK_SLOTS;
    r->own.bulk_bytes = NOVA_RDMA_BULK_BYTES;
    return 0;
}

int nova_rdma_open(const char *device, uint8_t port, uint8_t gid_index, uint32_t psn, nova_rdma **out,
                   nova_rdma_offer *offer)
{
    nova_rdma *r = calloc(1, sizeof *r);
    if (!r)
        return NOVA_RDMA_EROOM;
    r->port = port;
    r->gid_index = gid_index;
    int result = open_parts(r, device, psn & 0xffffff);
    if (result) {
        int cause = errno;
        nova_rdma_close(r);
        errno = cause;
        return result;
    }
    *out = r;
    *offer = r->own;
    return 0;
}

int nova_rdma_connect(nova_rdma *r, const nova_rdma_offer *peer)
{
    struct ibv_qp_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.qp_state = IBV_QPS_RTR;
    attr.path_mtu = r->own.mtu < peer->mtu ? r->own.mtu : peer->mtu;
    attr.dest_qp_num = peer->qpn;
    attr.rq_psn = peer->psn;
    attr.max_dest_rd_atomic = 1;
    attr.min_rnr_timer = MIN_RNR_TIMER;
    attr.ah_attr.is_global = 1;
    memcpy(attr.ah_attr.grh.dgid.raw, peer->gid, sizeof peer->gid);
    attr.ah_attr.grh.sgid_index = r->gid_index;
    attr.ah_attr.grh.hop_limit = 64;
    attr.ah_attr.dlid = peer->lid;
    attr.ah_attr.port_num = r->port;
    errno = verbs.modify_qp(r->qp, &attr,
                            IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    if (errno)
        return NOVA_RDMA_EROUTE;
    memset(&attr, 0, sizeof attr);
    attr.qp_state = IBV_QPS_RTS;
    attr.timeout = TIMEOUT;
    attr.retry_cnt = RETRY;
    attr.rnr_retry = RNR_RETRY;
    attr.sq_psn = r->own.psn;
    attr.max_rd_atomic = 1;
    errno = verbs.modify_qp(r->qp, &attr,
                            IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                                IBV_QP_MAX_QP_RD_ATOMIC);
    if (errno)
        return NOVA_RDMA_EROUTE;
    r->peer = *peer;
    r->credits = peer->slots;
    r->bulk_free = peer->bulk_slots;
    return 0;
}

/* ---- out ---- */

static uint32_t least(size_t a, size_t b)
{
    return (uint32_t)(a < b ? a : b);
}

/* Post one message of the first bytes of data; how many it took. Their place in the send slab is free: the flow says
 * how many messages may be under way. */
static int post(nova_rdma *r, enum kind kind, const uint8_t *data, uint32_t size, int last)
{
    enum { WRITES = NOVA_RDMA_BULK_BYTES / NOVA_RDMA_WRITE_BYTES };
    struct ibv_send_wr requests[WRITES], *bad;
    struct ibv_sge parts[WRITES];
    uint32_t slot = r->sent_slots++ % NOVA_RDMA_SLOTS, count = 1, target = r->bulk_next;
    uint8_t *at = r->send + (size_t)slot * NOVA_RDMA_SLOT_BYTES;
    if (kind == BULK) {
        at = r->send_bulk + (size_t)(r->sent_bulks++ % NOVA_RDMA_BULK_SLOTS) * NOVA_RDMA_BULK_BYTES;
        count = (size + NOVA_RDMA_WRITE_BYTES - 1) / NOVA_RDMA_WRITE_BYTES;
        r->bulk_free--;
        r->bulk_next = (target + 1) % r->peer.bulk_slots;
    }
    assert(count <= WRITES);
    if (size)
        memcpy(at, data, size);
    uint32_t credits = least(r->owed, CREDIT_MAX), freed = least(r->bulk_owed, BULK_MAX);
    r->owed -= credits;
    r->bulk_owed -= freed;
    r->credits--;
    int signaled = ++r->unsignaled >= NOVA_RDMA_SIGNAL_EVERY || kind == BULK || last;
    r->since.requests += count, r->since.messages += 1, r->since.bulks += kind == BULK;
    r->load.requests += count, r->load.messages += 1, r->load.bulks += kind == BULK;
    if (signaled) {
        r->signaled[(r->signaled_first + r->signaled_count++) % NOVA_RDMA_SEND_QUEUE] = r->since;
        memset(&r->since, 0, sizeof r->since);
        r->unsignaled = 0;
    }
    memset(requests, 0, sizeof *requests * count);
    for (uint32_t i = 0; i < count; i++) {
        int end = i + 1 == count;
        struct ibv_send_wr *request = &requests[i];
        parts[i].addr = (uintptr_t)at + (size_t)i * NOVA_RDMA_WRITE_BYTES;
        parts[i].length = end ? size - i * NOVA_RDMA_WRITE_BYTES : NOVA_RDMA_WRITE_BYTES;
        parts[i].lkey = r->mr->lkey;
        request->wr_id = SEND;
        request->sg_list = &parts[i];
        request->num_sge = 1;
        request->next = end ? NULL : request + 1;
        if (kind == BULK) {
            request->opcode = end ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE;
            request->wr.rdma.remote_addr =
                r->peer.bulk_address + (uint64_t)target * r->peer.bulk_bytes + (uint64_t)i * NOVA_RDMA_WRITE_BYTES;
            request->wr.rdma.rkey = r->peer.bulk_rkey;
        } else {
            request->opcode = IBV_WR_SEND_WITH_IMM;
            request->send_flags = size <= r->inline_bytes ? IBV_SEND_INLINE : 0;
        }
        if (end) {
            request->imm_data =
                htonl(credits << (LENGTH_BITS + BULK_BITS) | freed << LENGTH_BITS | (kind == BULK ? size : 0));
            request->send_flags |= signaled ? IBV_SEND_SIGNALED : 0;
        }
    }
    if (ibv_post_send(r->qp, requests, &bad)) {
        r->status = -1;
        return NOVA_RDMA_EBROKEN;
    }
    return (int)size;
}

/* One message of the bytes that are there, or of credits only; how many bytes it took, or -1 if nothing may be sent. */
static int step(nova_rdma *r, const uint8_t *data, size_t size, int last, int *took)
{
    int owes = r->owed * 2 >= NOVA_RDMA_SLOTS || r->bulk_owed * 2 >= NOVA_RDMA_BULK_SLOTS;
    *took = -1;
    if (r->credits < 1 || r->load.requests + 8 > NOVA_RDMA_SEND_QUEUE || r->load.messages >= NOVA_RDMA_SLOTS)
        return 0;
    if (size && r->credits > 1) {
        uint32_t slot_bytes = least(NOVA_RDMA_SLOT_BYTES, r->peer.slot_bytes);
        if (size <= slot_bytes)
            return *took = post(r, SMALL, data, (uint32_t)size, last);
        if (r->bulk_free && r->load.bulks < NOVA_RDMA_BULK_SLOTS) {
            uint32_t part = least(size, least(NOVA_RDMA_BULK_BYTES, r->peer.bulk_bytes));
            return *took = post(r, BULK, data, part, last && part == size);
        }
    }
    if (owes || (last && r->unsignaled))
        return *took = post(r, CREDIT, NULL, 0, last);
    return 0;
}

int nova_rdma_flush(nova_rdma *r, int last)
{
    if (r->status)
        return NOVA_RDMA_EBROKEN;
    for (int took;;) {
        int result = step(r, r->queue + r->queue_at, r->queue_end - r->queue_at, last, &took);
        if (result < 0)
            return result;
        if (took < 0)
            return 0;
        r->queue_at += (size_t)took;
        if (r->queue_at == r->queue_end)
            r->queue_at = r->queue_end = 0;
    }
}

int nova_rdma_write(nova_rdma *r, const uint8_t *data, size_t size)
{
    if (r->status)
        return NOVA_RDMA_EBROKEN;
    /* What may leave at once does not pass through the queue. */
    for (int took = 0; size && r->queue_at == r->queue_end; data += took, size -= (size_t)took) {
        int result = step(r, data, size, 0, &took);
        if (result < 0)
            return result;
        if (took < 0)
            break;
    }
    if (!size)
        return 0;
    if (r->queue_end + size > r->queue_room) {
        size_t used = r->queue_end - r->queue_at;
        if (used)
            memmove(r->queue, r->queue + r->queue_at, used);
        r->queue_at = 0;
        r->queue_end = used;
        if (used + size > r->queue_room) {
            size_t room = 2 * r->queue_room > used + size ? 2 * r->queue_room : used + size;
            uint8_t *queue = realloc(r->queue, room);
            if (!queue)
                return NOVA_RDMA_EROOM;
            r->queue = queue;
            r->queue_room = room;
        }
    }
    memcpy(r->queue + r->queue_end, data, size);
    r->queue_end += size;
    return nova_rdma_flush(r, 0);
}

/* ---- in ---- */

static void completed(nova_rdma *r)
{
    assert(r->signaled_count);
    struct load done = r->signaled[r->signaled_first];
    r->signaled_first = (r->signaled_first + 1) % NOVA_RDMA_SEND_QUEUE;
    r->signaled_count--;
    r->load.requests -= done.requests;
    r->load.messages -= done.messages;
    r->load.bulks -= done.bulks;
}

static int arrived(nova_rdma *r, const struct ibv_wc *wc, nova_rdma_piece *piece)
{
    uint32_t told = ntohl(wc->imm_data), length = told & LENGTH_MAX;
    piece->bulk = wc->opcode == IBV_WC_RECV_RDMA_WITH_IMM;
    piece->slot = (uint32_t)wc->wr_id;
    r->credits += told >> (LENGTH_BITS + BULK_BITS);
    r->bulk_free += told >> LENGTH_BITS & BULK_MAX;
    if (!(wc->wc_flags & IBV_WC_WITH_IMM) || r->credits > r->peer.slots || r->bulk_free > r->peer.bulk_slots)
        return NOVA_RDMA_EPEER;
    if (length > NOVA_RDMA_BULK_BYTES || !length != !piece->bulk)
        return NOVA_RDMA_EPEER;
    piece->size = piece->bulk ? length : wc->byte_len;
    piece->data = r->receive + (size_t)piece->slot * NOVA_RDMA_SLOT_BYTES;
    if (piece->bulk)
        piece->data = r->bulk + (size_t)(r->bulks_taken++ % NOVA_RDMA_BULK_SLOTS) * NOVA_RDMA_BULK_BYTES;
    return 0;
}

int nova_rdma_collect(nova_rdma *r, nova_rdma_piece *pieces)
{
    struct ibv_wc wc[BATCH];
    int count = 0, polled;
    if (r->status)
        return NOVA_RDMA_EBROKEN;
    while ((polled = ibv_poll_cq(r->cq, BATCH, wc)) > 0)
        for (int i = 0; i < polled; i++) {
            if (r->status)
                continue; /* whatever was under way is flushed */
            if (wc[i].status != IBV_WC_SUCCESS) {
                r->status = (int)wc[i].status;
            } else if (wc[i].wr_id & SEND) {
                completed(r);
            } else {
                int result = arrived(r, &wc[i], &pieces[count]);
                if (result)
                    return result;
                count++;
            }
        }
    if (polled < 0 && !r->status)
        r->status = -1;
    /* What came before the break counts; the next call tells of it. */
    return count || !r->status ? count : NOVA_RDMA_EBROKEN;
}

int nova_rdma_release(nova_rdma *r, const nova_rdma_piece *pieces, int count)
{
    uint32_t slots[NOVA_RDMA_SLOTS] = {0};
    assert(count <= NOVA_RDMA_SLOTS);
    if (r->status)
        return 0;
    for (int i = 0; i < count; i++)
        slots[i] = pieces[i].slot;
    if (post_receives(r, slots, count)) {
        r->status = -1;
        return NOVA_RDMA_EBROKEN;
    }
    for (int i = 0; i < count; i++)
        r->bulk_owed += pieces[i].bulk;
    r->owed += (uint32_t)count;
    return 0;
}

int nova_rdma_fd(const nova_rdma *r)
{
    return r->channel->fd;
}

int nova_rdma_arm(nova_rdma *r)
{
    return ibv_req_notify_cq(r->cq, 0) ? NOVA_RDMA_EDEVICE : 0;
}

void nova_rdma_take_event(nova_rdma *r)
{
    struct ibv_cq *cq;
    void *context;
    if (!verbs.get_cq_event(r->channel, &cq, &context))
        verbs.ack_cq_events(cq, 1);
}

size_t nova_rdma_queued(const nova_rdma *r)
{
    return r->queue_end - r->queue_at;
}

int nova_rdma_idle(const nova_rdma *r)
{
    return r->queue_at == r->queue_end && !r->signaled_count && !r->unsignaled;
}

int nova_rdma_status(const nova_rdma *r)
{
    return r->status;
}

void nova_rdma_close(nova_rdma *r)
{
    /* Children first. A queue pair that is gone writes no more into memory that is given back. */
    if (r->qp)
        verbs.destroy_qp(r->qp);
    if (r->cq)
        verbs.destroy_cq(r->cq);
    if (r->channel)
        verbs.destroy_comp_channel(r->channel);
    if (r->bulk_mr)
        verbs.dereg_mr(r->bulk_mr);
    if (r->mr)
        verbs.dereg_mr(r->mr);
    if (r->pd)
        verbs.dealloc_pd(r->pd);
    if (r->context)
        verbs.close_device(r->context);
    if (r->memory)
        munmap(r->memory, NOVA_RDMA_MEMORY_BYTES);
    free(r->queue);
    free(r);
}

#else

#include <errno.h>

struct nova_rdma {
    int none;
};

const char *nova_rdma_load(void)
{
    return "built without libibverbs: apt install libibverbs-dev, then build nova again";
}

int nova_rdma_open(const char *device, uint8_t port, uint8_t gid_index, uint32_t psn, nova_rdma **out,
                   nova_rdma_offer *offer)
{
    errno = ENOSYS;
    return NOVA_RDMA_EDEVICE;
}

/* Without an open connection nothing below is ever called. */
int nova_rdma_connect(nova_rdma *r, const nova_rdma_offer *remote)
{
    return NOVA_RDMA_EDEVICE;
}

int nova_rdma_write(nova_rdma *r, const uint8_t *data, size_t size)
{
    return NOVA_RDMA_EDEVICE;
}

int nova_rdma_flush(nova_rdma *r, int last)
{
    return NOVA_RDMA_EDEVICE;
}

int nova_rdma_collect(nova_rdma *r, nova_rdma_piece *pieces)
{
    return NOVA_RDMA_EDEVICE;
}

int nova_rdma_release(nova_rdma *r, const nova_rdma_piece *pieces, int count)
{
    return NOVA_RDMA_EDEVICE;
}

int nova_rdma_fd(const nova_rdma *r)
{
    return -1;
}

int nova_rdma_arm(nova_rdma *r)
{
    return NOVA_RDMA_EDEVICE;
}

void nova_rdma_take_event(nova_rdma *r)
{
}

size_t nova_rdma_queued(const nova_rdma *r)
{
    return 0;
}

int nova_rdma_idle(const nova_rdma *r)
{
    return 1;
}

int nova_rdma_status(const nova_rdma *r)
{
    return 0;
}

void nova_rdma_close(nova_rdma *r)
{
}

#endif
