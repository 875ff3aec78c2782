from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "rdma.h" nogil:
    enum:
        NOVA_RDMA_SLOTS
        NOVA_RDMA_MEMORY_BYTES
        NOVA_RDMA_EBROKEN
        NOVA_RDMA_EPEER
        NOVA_RDMA_EMEMORY
        NOVA_RDMA_EDEVICE
        NOVA_RDMA_EROUTE
        NOVA_RDMA_EROOM

    ctypedef struct nova_rdma:
        pass

    ctypedef struct nova_rdma_offer:
        uint8_t gid[16]
        uint16_t lid
        uint8_t mtu
        uint32_t qpn, psn
        uint32_t slots, slot_bytes
        uint64_t bulk_address
        uint32_t bulk_rkey, bulk_slots, bulk_bytes

    ctypedef struct nova_rdma_piece:
        const uint8_t *data
        uint32_t size, slot, bulk

    const char *nova_rdma_load()
    int nova_rdma_open(const char *device, uint8_t port, uint8_t gid_index, uint32_t psn, nova_rdma **out,
                       nova_rdma_offer *offer)
    int nova_rdma_connect(nova_rdma *r, const nova_rdma_offer *remote)
    int nova_rdma_write(nova_rdma *r, const uint8_t *data, size_t size)
    int nova_rdma_flush(nova_rdma *r, int last)
    int nova_rdma_collect(nova_rdma *r, nova_rdma_piece *pieces)
    int nova_rdma_release(nova_rdma *r, const nova_rdma_piece *pieces, int count)
    int nova_rdma_fd(const nova_rdma *r)
    int nova_rdma_arm(nova_rdma *r)
    void nova_rdma_take_event(nova_rdma *r)
    size_t nova_rdma_queued(const nova_rdma *r)
    int nova_rdma_idle(const nova_rdma *r)
    int nova_rdma_status(const nova_rdma *r)
    void nova_rdma_close(nova_rdma *r)

cdef class QueuePair:
    cdef nova_rdma *r
    cdef nova_rdma_offer own
    cdef long pid
    cdef int broken
    cdef bint connected
    cdef int check(self) except -1
    cdef int refuse(self, int result) except -1
    cdef int ready(self) except -1
