from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from nova._native.channel cimport Channel, SocketStream, iovec


cdef extern from "shm.h" nogil:
    enum:
        NOVA_SHM_PAGE
        NOVA_SHM_HUGE
        NOVA_SHM_DATA
        NOVA_SHM_ROOM
        NOVA_SHM_BOTH
        NOVA_SHM_EHEAD
        NOVA_SHM_ETAIL
    ctypedef struct nova_shm_half:
        uint64_t at
        uint64_t peer_at
        uint64_t bad
        int error
    ctypedef struct nova_shm:
        uint64_t ring_bytes
        nova_shm_half out
        nova_shm_half in_ "in"
    size_t nova_shm_map_bytes(size_t ring_bytes)
    void nova_shm_begin(nova_shm *s, void *map, size_t ring_bytes, int side, uint64_t start)
    int nova_shm_room(nova_shm *s, size_t most, iovec *parts)
    uint32_t nova_shm_put(nova_shm *s, size_t n)
    int64_t nova_shm_write(nova_shm *s, const iovec *source, int count, uint32_t *bell)
    int nova_shm_here(nova_shm *s, size_t most, iovec *parts)
    uint32_t nova_shm_took(nova_shm *s, size_t n)
    int64_t nova_shm_read(nova_shm *s, void *p, size_t n, uint32_t *bell)
    int nova_shm_ready(nova_shm *s, uint32_t wants)
    int nova_shm_spin(nova_shm *s, uint32_t wants, uint64_t ns)
    int nova_shm_arm(nova_shm *s, uint32_t wants, int by_socket)
    int nova_shm_sleep(nova_shm *s, uint32_t wants, uint64_t ns)
    void nova_shm_ring(nova_shm *s, uint32_t bell, int fd)
    void nova_shm_wake_all(nova_shm *s)
    unsigned nova_shm_forks()


cdef class Rings:
    cdef nova_shm s
    cdef void *map
    cdef size_t map_bytes
    cdef readonly bint closed
    cdef int fd
    cdef unsigned forks
    cdef int pid
    cdef readonly uint64_t bells
    cdef int check(self) except -1
    cdef int fail(self, int code) except -1
    cdef void ring(self, uint32_t bell) noexcept nogil
    cdef int push_frames(self, Channel channel, int data) noexcept nogil
    cdef int64_t pull_bytes(self, Channel channel, size_t most, int *complaint) noexcept nogil


cdef class RingStream(SocketStream):
    cdef readonly Rings rings
    cdef uint64_t spin_ns, spin_ns_max
    cdef int hung_up, ring_code, spin_pause
    cdef void rest(self, uint32_t wants, uint64_t ns) noexcept nogil
    cdef void look_whether_it_hung_up(self) noexcept nogil
