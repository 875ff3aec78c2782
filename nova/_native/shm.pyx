# cython: autotestdict=False
"""Two byte rings in memory that another process shares: owner of the mapping, and the ways between rings and channel.

What stands in the shared memory is copied out once, into memory that nobody else can write, and only then looked at.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, EPIPE, errno
from libc.string cimport memcpy

import os

from nova._native.channel cimport NOVA_DONE, NOVA_EEND, NOVA_ESYSTEM, NOVA_WAITS
from nova.errors import PeerError, UsageError

cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MADV_DONTFORK
        MADV_HUGEPAGE
    void *mmap(void *at, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void *at, size_t size)
    int madvise(void *at, size_t size, int advice)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
        SHUT_RDWR
    ssize_t recv(int fd, void *at, size_t size, int flags)
    int shutdown(int fd, int how)

cdef extern from "<poll.h>" nogil:
    int POLLIN
    int POLLOUT

cdef extern from "<time.h>" nogil:
    ctypedef int clockid_t
    struct timespec:
        long tv_sec
        long tv_nsec
    clockid_t CLOCK_MONOTONIC
    int clock_gettime(clockid_t clock, timespec *out)

cdef enum:
    UNLOCK_BYTES = 16384        # from here on work is worth the interpreter lock's hand-over
    COMPLAINT_CHANNEL = 1
    PULL_BYTES = 262144
    SPIN_NS_MIN = 1000          # what is tried to see whether spinning pays again,
    SPIN_PAUSE = 32             # after so many waits without
    SPIN_LOCKED_NS = 2000
    SLICE_NS = 50000000         # who sleeps on the futex looks this often whether the other end is still there
    STEP_NS = 200000000         # and this often for signals, pings and the idle limit

DATA = NOVA_SHM_DATA
ROOM = NOVA_SHM_ROOM
RING_BYTES_MIN = 65536
"""The smallest ring of a stream."""


def map_bytes(size_t ring_bytes):
    """What two rings take with what goes before them; 0 if there is no such ring."""
    return nova_shm_map_bytes(ring_bytes)


cdef uint64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef int64_t put_parts(void *rings, const iovec *parts, int count) noexcept nogil:
    cdef uint32_t bell = 0
    cdef int64_t n = nova_shm_write(&(<Rings>rings).s, parts, count, &bell)
    (<Rings>rings).ring(bell)
    return n


cdef class Rings:
    """One end of both rings.

    memory      a descriptor of sealed shared memory of `map_bytes(ring_bytes)`; it may be closed afterwards
    bell        the socket's descriptor, on which the other end is woken; it must stay open until `close`
    start       where positions begin; the same at both ends
    """

    def __cinit__(self, int memory, size_t ring_bytes, *, bint initiator, int bell, uint64_t start=0):
        self.map_bytes = nova_shm_map_bytes(ring_bytes)
        if self.map_bytes == 0:
            raise UsageError(f"a ring of {ring_bytes} bytes; it has a power of two of them, 4096 at least")
        self.map = mmap(NULL, self.map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0)
        if self.map == <void *>-1:
            self.map = NULL
            raise OSError(errno, f"cannot map {self.map_bytes} bytes of shared memory: {os.strerror(errno).lower()}")
        madvise(self.map, self.map_bytes, MADV_DONTFORK)  # a child has nothing to do here
        if ring_bytes >= NOVA_SHM_HUGE:
            madvise(self.map, self.map_bytes, MADV_HUGEPAGE)
        nova_shm_begin(&self.s, self.map, ring_bytes, 0 if initiator else 1, start)
        self.fd = bell
        self.forks = nova_shm_forks()
        self.pid = os.getpid()

    def __dealloc__(self):
        if self.map != NULL:
            munmap(self.map, self.map_bytes)

    cdef int check(self) except -1:
        if self.forks != nova_shm_forks():
            raise UsageError(
                f"this stream belongs to process {self.pid}; process {os.getpid()}, forked from it, has to open its own"
            )
        if self.map == NULL:
            raise PeerError("the memory of this stream has been given back: it is closed")
        return 0

    cdef int fail(self, int code) except -1:
        if code == NOVA_SHM_EHEAD:
            raise PeerError(
                f"the other end says that {self.s.in_.bad} bytes wait in a ring of {self.s.ring_bytes}, or takes back what "
                f"it put: it is not believed any more"
            )
        if code == NOVA_SHM_ETAIL:
            raise PeerError(
                f"the other end says that it has {self.s.out.bad} of our bytes still to take, where "
                f"{self.s.out.at - self.s.out.peer_at} were left: it is not believed any more"
            )
        return 0

    cdef void ring(self, uint32_t bell) noexcept nogil:
        if bell and not self.closed:
            self.bells += 1
            nova_shm_ring(&self.s, bell, self.fd)

    def close(self):
        """End the socket, wake who sleeps, ring no more. The memory goes with the last reference. May be called twice."""
        if not self.closed and self.forks == nova_shm_forks():
            self.closed = True
            shutdown(self.fd, SHUT_RDWR)  # before it is woken: it looks at the socket then
            nova_shm_wake_all(&self.s)

    def unmap(self):
        """Give the memory back now; nobody may be inside of a call. What is called later raises PeerError."""
        self.close()
        if self.map != NULL and self.forks == nova_shm_forks():
            munmap(self.map, self.map_bytes)
            self.map = NULL

    # -- bytes -------------------------------------------------------------------------------------------------------

    def write(self, data not None):
        """Copy in what fits; bytes that did. Raises PeerError if the other end's positions cannot be."""
        cdef Py_buffer view
        cdef iovec whole
        cdef uint32_t bell = 0
        cdef int64_t n
        self.check()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        whole.iov_base, whole.iov_len = view.buf, view.len
        n = nova_shm_write(&self.s, &whole, 1, &bell)
        PyBuffer_Release(&view)
        self.ring(bell)
        self.fail(<int>min(n, <int64_t>0))
        return n

    def read(self, size_t bytes_max=65536):
        """Copy out what has come, at most so much. Raises PeerError."""
        cdef iovec parts[2]
        cdef int count
        cdef uint32_t bell = 0
        cdef size_t n = 0
        cdef int i
        self.check()
        count = nova_shm_here(&self.s, bytes_max, parts)
        self.fail(count)
        for i in range(count):
            n += parts[i].iov_len
        out = PyBytes_FromStringAndSize(NULL, n)
        n = 0
        for i in range(count):
            memcpy(PyBytes_AS_STRING(out) + n, parts[i].iov_base, parts[i].iov_len)
            n += parts[i].iov_len
        if n:
            bell = nova_shm_took(&self.s, n)
        self.ring(bell)
        return out

    # -- a channel ---------------------------------------------------------------------------------------------------

    def fit(self, Channel channel not None):
        """Frames that leave by these rings are a quarter of one at most, so that one is read while the next is made."""
        channel.c.payload_bytes = min(channel.c.payload_bytes, <size_t>self.s.ring_bytes // 4)

    cdef int push_frames(self, Channel channel, int data) noexcept nogil:
        """1: everything that may leave has; 0: the ring is full, or an error of shm.h."""
        cdef int code = channel.pass_on(put_parts, <void *>self, data)
        return code if code < 0 else code == NOVA_DONE

    def push(self, Channel channel not None):
        """Put in what may leave, frame by frame. False: it waits for room. Raises PeerError."""
        cdef int code
        self.check()
        if channel.c.queue_bytes >= UNLOCK_BYTES:
            with nogil:
                code = self.push_frames(channel, not channel.broken)
        else:
            code = self.push_frames(channel, not channel.broken)
        channel.give_back()
        self.fail(code)
        return code == 1

    cdef int64_t pull_bytes(self, Channel channel, size_t most, int *complaint) noexcept nogil:
        """Bytes that went to the channel; an error of its own, with *complaint set, or one of shm.h."""
        cdef iovec where[2]
        cdef size_t total = 0, room = 0
        cdef int64_t n = 0
        cdef uint32_t bell
        cdef int code
        complaint[0] = 0
        while total < most and n == <int64_t>room:  # else the ring was empty behind it
            code = channel.places(where)
            if code < 0:
                complaint[0] = COMPLAINT_CHANNEL
                return code
            bell = 0
            room = where[0].iov_len
            n = nova_shm_read(&self.s, where[0].iov_base, room, &bell)
            self.ring(bell)
            if n <= 0:
                return n if n < 0 else <int64_t>total
            total += n
            code = channel.came(n, monotonic_ns())
            if code < 0:
                complaint[0] = COMPLAINT_CHANNEL
                return code
        return total

    def pull(self, Channel channel not None, size_t bytes_max=1 << 20):
        """Give what has come to the channel, about `bytes_max` of it; bytes that were. Raises PeerError."""
        cdef int complaint = 0
        cdef int64_t n
        self.check()
        if channel.broken:
            raise PeerError("this session is broken already")
        if nova_shm_ready(&self.s, NOVA_SHM_DATA) > 0 and self.s.in_.peer_at - self.s.in_.at >= UNLOCK_BYTES:
            with nogil:
                n = self.pull_bytes(channel, bytes_max, &complaint)
        else:
            n = self.pull_bytes(channel, bytes_max, &complaint)
        if n < 0:
            if complaint:
                channel.fail(<int>n)
            self.fail(<int>n)
        return n

    # -- sleeping ----------------------------------------------------------------------------------------------------

    def arm(self, int wants):
        """Have the socket rung for DATA, ROOM or both. True: it is there already, go on. Raises PeerError."""
        cdef int ready
        self.check()
        ready = nova_shm_arm(&self.s, wants & NOVA_SHM_BOTH, 1)
        self.fail(ready)
        return ready > 0

    def wait(self, int wants, double seconds):
        """Sleep until one of `wants` is there, by the futex. False: the time has passed, or a signal came."""
        cdef int ready
        cdef uint32_t bits = wants & NOVA_SHM_BOTH
        cdef uint64_t now = monotonic_ns()
        cdef uint64_t until = now + <uint64_t>(seconds * 1e9)
        self.check()
        with nogil:
            while True:
                ready = nova_shm_arm(&self.s, bits, 0)
                if ready or self.closed:
                    break
                now = monotonic_ns()
                if now >= until or nova_shm_sleep(&self.s, bits, until - now):
                    break
        self.fail(ready)
        return ready > 0

    @property
    def ready(self):
        """Have bytes come? Raises PeerError."""
        cdef int ready
        self.check()
        ready = nova_shm_ready(&self.s, NOVA_SHM_DATA)
        self.fail(ready)
        return ready > 0

    @property
    def ring_bytes(self):
        return self.s.ring_bytes

    @property
    def memory_bytes(self):
        """What the mapping takes."""
        return self.map_bytes


cdef class RingStream(SocketStream):
    """A stream for threads through rings. Made by `nova.transport.shm_blocking`.

    spin_ns   how long who waits looks again and again before he sleeps: at most, and less while that is in vain
    """

    def __cinit__(self, Channel channel not None, sock not None, session, Rings rings not None, uint64_t spin_ns=0):
        rings.fit(channel)
        self.rings = rings
        self.quick = True
        self.spin_ns = self.spin_ns_max = spin_ns

    cdef int give(self, int flags) noexcept nogil:
        cdef int code
        if self.hung_up:
            self.channel.c.system = EPIPE
            return NOVA_ESYSTEM
        code = self.rings.push_frames(self.channel, 1)
        if code < 0:
            self.ring_code = code
            return NOVA_ESYSTEM
        return 0 if code else NOVA_WAITS

    cdef int take(self, int flags, size_t *got) noexcept nogil:
        cdef int gone = self.hung_up  # before the last look at the ring: what it says then is all there will be
        cdef int complaint = 0
        cdef int64_t n = self.rings.pull_bytes(self.channel, PULL_BYTES, &complaint)
        if n == 0 and not flags & MSG_DONTWAIT and not gone:
            self.rest(NOVA_SHM_DATA, STEP_NS)
            gone = self.hung_up
            n = self.rings.pull_bytes(self.channel, PULL_BYTES, &complaint)
        got[0] = 0
        if n < 0:
            if complaint:
                return <int>n
            self.ring_code = <int>n
            return NOVA_ESYSTEM
        got[0] = n
        self.channel.c.calls += n > 0
        return 0 if n else NOVA_EEND if gone else NOVA_WAITS

    cdef int take_now(self) noexcept:
        cdef size_t got
        # A spin this short keeps the interpreter lock: its hand-over takes longer.
        cdef int ready = nova_shm_ready(&self.rings.s, NOVA_SHM_DATA)
        if not ready and self.spin_ns_max and not self.spin_pause:
            ready = nova_shm_spin(&self.rings.s, NOVA_SHM_DATA, min(self.spin_ns, <uint64_t>SPIN_LOCKED_NS))
        if ready <= 0 or self.rings.s.in_.peer_at - self.rings.s.in_.at >= UNLOCK_BYTES:
            return NOVA_WAITS
        self.answer()
        return self.take(MSG_DONTWAIT, &got)

    cdef int watch(self, int events, int ms) noexcept nogil:
        cdef uint32_t wants = 0
        if events & POLLIN:
            wants |= NOVA_SHM_DATA
        if events & POLLOUT:
            wants |= NOVA_SHM_ROOM
        if wants and ms > 0:
            self.rest(wants, <uint64_t>ms * 1000000)
        return 0

    cdef void rest(self, uint32_t wants, uint64_t ns) noexcept nogil:
        """Spin, then sleep, until one of `wants` is there, the other end is gone, or the time has passed."""
        cdef uint64_t now, until
        if self.spin_pause:
            self.spin_pause -= 1
        elif self.spin_ns_max:
            if nova_shm_spin(&self.rings.s, wants, self.spin_ns):
                self.spin_ns = min(self.spin_ns * 2, self.spin_ns_max)
                return
            self.spin_ns //= 2
            if self.spin_ns < SPIN_NS_MIN:
                self.spin_ns = min(<uint64_t>SPIN_NS_MIN, self.spin_ns_max)
                self.spin_pause = SPIN_PAUSE
        now = monotonic_ns()
        until = now + ns
        while not self.hung_up and now < until:
            if nova_shm_arm(&self.rings.s, wants, 0):
                return
            if nova_shm_sleep(&self.rings.s, wants, min(until - now, <uint64_t>SLICE_NS)):
                return
            if nova_shm_ready(&self.rings.s, wants):
                return
            self.look_whether_it_hung_up()
            now = monotonic_ns()

    cdef void look_whether_it_hung_up(self) noexcept nogil:
        cdef char bells[64]
        cdef ssize_t n = recv(self.fd, bells, sizeof(bells), MSG_DONTWAIT)
        if n == 0 or (n < 0 and errno != EAGAIN and errno != EINTR):
            self.hung_up = 1

    cdef int complain(self, int code) except -1:
        if code == NOVA_ESYSTEM and self.ring_code:
            return self.rings.fail(self.ring_code)
        return self.channel.fail(code)

    cdef int unplug(self) except -1:
        self.rings.close()
        return 0

    @property
    def spins_ns(self):
        """How long a wait spins now before it sleeps."""
        return self.spin_ns if self.spin_ns_max else 0
