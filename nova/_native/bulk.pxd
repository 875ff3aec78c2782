from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "bulk.h" nogil:
    enum:
        NOVA_BULK_SUM
        NOVA_BULK_HEAD
        NOVA_BULK_WINDOW
        NOVA_BULK_DONE
        NOVA_BULK_CRC32C
        NOVA_BULK_BLAKE3
        NOVA_BULK_ETYPE
        NOVA_BULK_ESEQUENCE
        NOVA_BULK_ETRANSFER
        NOVA_BULK_EOFFSET
        NOVA_BULK_ELENGTH
        NOVA_BULK_ECRC
        NOVA_BULK_EMAC
        NOVA_BULK_EACK
        NOVA_BULK_EOTHER
        NOVA_BULK_ESOCKET
        NOVA_BULK_EHANGUP
        NOVA_BULK_ECUT
        NOVA_BULK_EFILE
        NOVA_BULK_ESHORT
    ctypedef struct nova_bulk_plan:
        uint64_t transfer
        uint64_t bytes
        uint32_t chunk_bytes
        uint32_t chunks
        int digest
    ctypedef struct nova_bulk:
        nova_bulk_plan plan
        uint8_t *state
        uint8_t *sums
        uint32_t *list
        uint32_t listed
        uint32_t done
        uint64_t done_bytes
        uint64_t events
        int closed
        uint8_t *memory
        int file
        uint64_t base
        uint64_t pace_bytes_s
    ctypedef struct nova_bulk_stream:
        int fd
        int keyed
        uint8_t key_out[32]
        uint8_t key_in[32]
        uint8_t *scratch
        int cut
        int leave
        int cause
        uint64_t moved_bytes
        uint64_t heard_ns
        uint32_t waiting
    uint32_t nova_bulk_crc_power(uint64_t n)
    uint32_t nova_bulk_crc_join(uint32_t a, uint32_t b, uint32_t power)
    int nova_bulk_read(const nova_bulk_plan *plan, const uint8_t *head, int keyed, uint64_t sequence, uint32_t *chunk)
    void nova_bulk_root(const nova_bulk *b, uint8_t *out)
    void nova_bulk_init(nova_bulk *b)
    void nova_bulk_free(nova_bulk *b)
    void nova_bulk_mark(nova_bulk *b, uint32_t chunk)
    void nova_bulk_reset(nova_bulk *b)
    void nova_bulk_close(nova_bulk *b)
    void nova_bulk_cut(nova_bulk *b, nova_bulk_stream *s)
    void nova_bulk_leave(nova_bulk *b, nova_bulk_stream *s)
    uint32_t nova_bulk_fresh(nova_bulk *b, uint32_t *out, uint32_t room)
    uint64_t nova_bulk_wait(nova_bulk *b, uint64_t events, uint64_t timeout_ns)
    void nova_bulk_poke(nova_bulk *b)
    uint64_t nova_bulk_oldest_ns(nova_bulk *b, nova_bulk_stream *s)
    int nova_bulk_fill(nova_bulk *b, uint8_t *scratch)
    int nova_bulk_check(const nova_bulk *b, uint32_t chunk, uint8_t *scratch)
    int nova_bulk_send(nova_bulk *b, nova_bulk_stream *s)
    int nova_bulk_receive(nova_bulk *b, nova_bulk_stream *s)


cdef class Board:
    cdef nova_bulk b
    cdef object keeper
    cdef readonly bint receiving


cdef class BulkStream:
    cdef nova_bulk_stream s
    cdef readonly Board board
    cdef bint used
