from cpython.pythread cimport PyThread_type_lock
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "pool.h" nogil:
    ctypedef struct nova_block:
        size_t room
        uint8_t *data
    nova_block *nova_block_take(size_t n)
    void nova_block_hold(nova_block *b)
    void nova_block_drop(nova_block *b)
    void nova_pool_count(size_t *waiting, size_t *held)


cdef extern from "blake3.h" nogil:
    enum:
        NOVA_BLAKE3_BYTES
    ctypedef struct nova_blake3_mode:
        uint32_t flags
    ctypedef struct nova_blake3_stream:
        size_t held
    nova_blake3_mode nova_blake3_keyed(const uint8_t *key)
    void nova_blake3_begin(nova_blake3_stream *s, const nova_blake3_mode *mode)
    void nova_blake3_add(nova_blake3_stream *s, const void *p, size_t n)
    void nova_blake3_end(nova_blake3_stream *s, uint8_t *out)


cdef extern from "channel.h" nogil:
    enum:
        NOVA_LANES
        NOVA_COST_MIN
        NOVA_LARGE_BYTES
        NOVA_SMALL_BYTES
        NOVA_FRAME_MAC
        NOVA_FRAME_VERSION
        NOVA_PONGS
        NOVA_MAC_NONE
        NOVA_MAC_BLAKE3
        NOVA_MAC_FOREIGN
        NOVA_DONE
        NOVA_WAITS
        NOVA_EMAGIC
        NOVA_EVERSION
        NOVA_EFLAGS
        NOVA_ELENGTH
        NOVA_ESHORT
        NOVA_EFIRST
        NOVA_EMAC
        NOVA_EORDER
        NOVA_EAFTER
        NOVA_ETYPE
        NOVA_ENUMBER
        NOVA_ECREDIT
        NOVA_EPIECES
        NOVA_ERAGGED
        NOVA_EPIECE
        NOVA_EHOLLOW
        NOVA_ENONE
        NOVA_EMESSAGE
        NOVA_EMIDDLE
        NOVA_EPONGS
        NOVA_ECRC
        NOVA_EGOODBYE
        NOVA_EMEMORY
        NOVA_EEND
        NOVA_ESYSTEM
    ctypedef struct nova_frame:
        uint8_t type
        uint8_t flags
        uint32_t length
        uint32_t stream
        uint64_t sequence
    ctypedef struct nova_mac:
        int kind
        nova_blake3_mode mode
        void *self
        void (*begin)(void *self, const uint8_t *head, size_t bytes) noexcept nogil
        void (*add)(void *self, const uint8_t *p, size_t n) noexcept nogil
        void (*end)(void *self, uint8_t *mac) noexcept nogil
    ctypedef struct nova_message:
        const uint8_t *at
        size_t size
        nova_block *block
    ctypedef struct nova_item:
        nova_item *next
        void *owner
    ctypedef struct nova_channel:
        size_t frame_bytes_max, message_bytes_max, payload_bytes, queue_bytes_max
        uint64_t credit_bytes
        uint32_t lanes
        nova_mac mac_in, mac_out
        uint64_t sequence_in, granted, arrived, consumed, received_bytes
        uint8_t head[24]
        nova_frame frame
        size_t taken, ready, count
        nova_message *messages
        uint64_t heard_ns, rtt_ns, bad
        uint8_t reason[512]
        size_t reason_bytes
        int peer_done
        uint64_t may_send, grant, announced, sequence_out, data_out, sent_bytes, ping_ns, calls
        size_t queue_bytes, flight_at, flight_count
        unsigned pongs_in, pongs_out
        int closing, done, system
    uint64_t nova_cost(size_t payload_bytes)
    void nova_channel_begin(nova_channel *c)
    void nova_channel_end(nova_channel *c)
    void nova_channel_drop(nova_channel *c)
    int nova_channel_where(nova_channel *c, iovec *where)
    int nova_channel_arrived(nova_channel *c, size_t n, uint64_t now_ns)
    int nova_channel_feed(nova_channel *c, const uint8_t *p, size_t n, uint64_t now_ns)
    int nova_channel_take(nova_channel *c, nova_message *out, int *holds)
    void nova_channel_consumed(nova_channel *c, uint64_t cost)
    int nova_channel_copy(nova_channel *c, int lane, const uint8_t *p, size_t n)
    int nova_channel_lend(nova_channel *c, int lane, const uint8_t *p, size_t n, void *owner)
    int nova_channel_reclaim(nova_channel *c, void *owner)
    int nova_channel_copy_many(nova_channel *c, int lane, const uint8_t *p, const int64_t *offsets, size_t count,
                               size_t *done)
    int nova_channel_has_output(const nova_channel *c)
    int nova_channel_has_control(const nova_channel *c)
    int nova_channel_frame(nova_channel *c, uint8_t *head, int data, iovec *parts)
    void nova_channel_close(nova_channel *c, const uint8_t *reason, size_t n, int discard)
    nova_item *nova_channel_gone(nova_channel *c)
    void nova_channel_free_items(nova_item *items)
    int nova_channel_read(nova_channel *c, int fd, int flags, uint64_t (*now_ns)() noexcept nogil, size_t *got)
    int nova_channel_write(nova_channel *c, int fd, int flags, int data)
    ctypedef int64_t (*nova_put)(void *to, const iovec *parts, int count) noexcept nogil
    int nova_channel_pass(nova_channel *c, nova_put put, void *to, int data)
    unsigned nova_fork_count()


cdef class Channel:
    cdef nova_channel c
    cdef readonly str who

    cdef size_t send_bytes_max
    cdef uint64_t idle_ns, every_ns, pinged_ns
    cdef readonly bint broken
    cdef object foreign_in, foreign_out, view
    cdef nova_block *view_block
    cdef unsigned forks
    cdef int pid
    cdef int fail(self, int code) except -1
    cdef int check(self) except -1
    cdef object message(self, nova_message *m, int holds)
    cdef int give_back(self) except -1
    cdef int put(self, object payload, int lane) except -1
    cdef int lane(self, int priority) except -1
    cdef int check_batch(self, object slab, const int64_t[::1] offsets, size_t first) except -1
    cdef size_t put_batch(self, object slab, const int64_t[::1] offsets, int lane, size_t first) except? 0
    cpdef Py_ssize_t read(self, int fd, size_t bytes_max=*) except? -2
    cpdef bint write(self, int fd) except? 0
    # The channel for engines that are modules of their own: as the functions of channel.h.
    cdef int places(self, iovec *where) noexcept nogil
    cdef int came(self, size_t n, uint64_t now_ns) noexcept nogil
    cdef int pass_on(self, nova_put put, void *to, int data) noexcept nogil


cdef class SocketStream:
    cdef Channel channel
    cdef int fd
    cdef PyThread_type_lock in_lock, out_lock, gate
    cdef int sender_waits
    cdef readonly object socket
    cdef readonly str reason
    cdef bint over
    cdef bint quick  # `give` of little is quicker than to hand the interpreter lock over
    cdef object error
    cdef int give(self, int flags) noexcept nogil
    cdef int take(self, int flags, size_t *got) noexcept nogil
    cdef int take_now(self) noexcept
    cdef int watch(self, int events, int ms) noexcept nogil
    cdef int complain(self, int code) except -1
    cdef int unplug(self) except -1
    cdef int enter(self, PyThread_type_lock lock) except -1
    cdef int failed(self, object error) except -1
    cdef int raise_if_closed(self) except -1
    cdef int answer(self) noexcept nogil
    cdef int take_in(self, uint64_t until) noexcept nogil
    cdef int check_code(self, int code) except -1
    cdef int part(self) noexcept
    cdef int fill(self, uint64_t until) except -1
    cdef int await_room(self, int code, uint64_t until) noexcept nogil
    cdef int leave(self, uint64_t until) except -1
    cdef int late(self) except -1
    cdef int say_goodbye(self, uint64_t until) noexcept nogil
    cdef int shut(self) except -1
