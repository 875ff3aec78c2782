"""One reliable connection over libibverbs. The protocol is told in nova.transport.rdma.flow."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.string cimport memcpy
from posix.unistd cimport getpid

from nova.errors import PeerError, UsageError

__all__ = ["QueuePair", "lack"]

MEMORY_BYTES = NOVA_RDMA_MEMORY_BYTES


def lack():
    """What is missing to use it here; empty if nothing is."""
    cdef const char *said = nova_rdma_load()
    return "" if said is NULL else said.decode()


cdef class QueuePair:
    """A queue pair with its memory.

    raises  OSError, whose first line says "memory" if it was memory that could not be registered
    """

    def __cinit__(self, str device not None, int port, int gid_index, int psn):
        cdef bytes name = device.encode()
        cdef const char *chars = name
        cdef int result
        self.pid = getpid()
        if nova_rdma_load() is not NULL:
            raise OSError(0, lack())
        with nogil:
            result = nova_rdma_open(chars, port, gid_index, psn, &self.r, &self.own)
        if result == NOVA_RDMA_EROOM:
            raise MemoryError
        if result:
            raise OSError(errno, "memory" if result == NOVA_RDMA_EMEMORY else "device")

    def __dealloc__(self):
        # The device knows nothing of a process that was forked off.
        if self.r is not NULL and getpid() == self.pid:
            nova_rdma_close(self.r)

    cdef int check(self) except -1:
        if getpid() != self.pid:
            raise UsageError(f"this RDMA connection belongs to process {self.pid}: open one in each process")
        if self.r is NULL:
            raise PeerError("this RDMA connection is closed")
        return 0

    cdef int refuse(self, int result) except -1:
        """Raise for what went wrong; the words for a status are not known here."""
        if result == NOVA_RDMA_EROOM:
            raise MemoryError
        if result == NOVA_RDMA_EPEER:
            self.broken = -2
            raise PeerError("the RDMA connection broke: the peer gives out credits or lengths that cannot be")
        if result == NOVA_RDMA_EBROKEN:
            self.broken = nova_rdma_status(self.r)
            raise PeerError(f"the RDMA connection broke: {self.explain(self.broken)}")
        raise OSError(errno, "device")

    def explain(self, int status):
        """A completion's status in words."""
        return f"completion status {status}"

    @property
    def offer_fields(self):
        own = self.own
        return (
            PyBytes_FromStringAndSize(<char *> self.own.gid, 16), self.own.lid, self.own.qpn, self.own.psn,
            self.own.mtu, self.own.slots, self.own.slot_bytes, self.own.bulk_address, self.own.bulk_rkey,
            self.own.bulk_slots, self.own.bulk_bytes,
        )

    def connect_fields(self, tuple fields not None):
        """Connect to a peer's `offer_fields`, which are within their bounds. Raises OSError."""
        cdef nova_rdma_offer peer
        cdef bytes gid
        cdef int result
        self.check()
        gid, peer.lid, peer.qpn, peer.psn, peer.mtu, peer.slots, peer.slot_bytes = fields[:7]
        peer.bulk_address, peer.bulk_rkey, peer.bulk_slots, peer.bulk_bytes = fields[7:]
        if len(gid) != 16:
            raise UsageError(f"a GID of {len(gid)} bytes; it has 16")
        memcpy(peer.gid, PyBytes_AS_STRING(gid), 16)
        with nogil:
            result = nova_rdma_connect(self.r, &peer)
        if result:
            raise OSError(errno, "route")
        self.connected = True

    cdef int ready(self) except -1:
        self.check()
        if not self.connected:
            raise PeerError("not connected yet")
        if self.broken == -2:
            self.refuse(NOVA_RDMA_EPEER)
        return 0

    @property
    def fd(self):
        self.check()
        return nova_rdma_fd(self.r)

    def write(self, const uint8_t[::1] data not None):
        """Queue bytes and post what may be posted."""
        cdef int result
        cdef size_t size = data.shape[0]
        self.ready()
        if not size:
            return
        with nogil:
            result = nova_rdma_write(self.r, &data[0], size)
        if result < 0 and result != NOVA_RDMA_EBROKEN:  # a break is told by `flush` and `poll`
            self.refuse(result)

    def flush(self, bint last=False):
        """Post what may be posted. Raises PeerError if the connection broke."""
        cdef int result
        self.ready()
        with nogil:
            result = nova_rdma_flush(self.r, last)
        if result < 0:
            self.refuse(result)

    def poll(self):
        """What has arrived, in order. Raises PeerError if the connection broke."""
        cdef nova_rdma_piece pieces[NOVA_RDMA_SLOTS]
        cdef int count, i, result
        cdef size_t size = 0
        cdef char *at
        cdef bytes data
        self.ready()
        with nogil:
            count = nova_rdma_collect(self.r, pieces)
        if count < 0:
            self.refuse(count)
        for i in range(count):
            size += pieces[i].size
        data = PyBytes_FromStringAndSize(NULL, size)
        at = PyBytes_AS_STRING(data)
        with nogil:
            for i in range(count):
                memcpy(at, pieces[i].data, pieces[i].size)
                at += pieces[i].size
            result = nova_rdma_release(self.r, pieces, count)
            if result == 0 and nova_rdma_status(self.r) == 0:
                result = nova_rdma_flush(self.r, 0)
        if result < 0 and not size:
            self.refuse(result)
        return [data] if size else []

    def arm(self):
        """Ask for an event at the next completion."""
        if self.r is not NULL:
            nova_rdma_arm(self.r)

    def take_event(self):
        """Take the event that made `fd` readable."""
        if self.r is not NULL:
            nova_rdma_take_event(self.r)

    @property
    def queued_bytes(self):
        return nova_rdma_queued(self.r) if self.r is not NULL else 0

    @property
    def idle(self):
        return self.r is NULL or bool(nova_rdma_idle(self.r))

    def close(self):
        """Give everything back to the device. May be called twice."""
        cdef nova_rdma *r = self.r
        if r is NULL or getpid() != self.pid:
            return
        self.r = NULL
        with nogil:
            nova_rdma_close(r)
