# cython: autotestdict=False
"""The established part of a session, compiled: frames in and out, messages as views of pooled blocks.

`nova.transport.session` makes a `Channel` at the end of the handshake. Nothing here waits but what is in
channel_socket.pxi, the stream for threads; who holds memory, and the MACs of older peers, are in channel_parts.pxi.
"""

from cpython.buffer cimport (
    Py_buffer,
    PyBUF_SIMPLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
    WAIT_LOCK,
)
from libc.errno cimport errno
from libc.string cimport memcpy

import os

from nova.errors import DeadlineError, LimitError, PeerError, UsageError

cdef extern from "Python.h":
    object PyMemoryView_FromMemory(char *mem, Py_ssize_t size, int flags)
    int PyBUF_WRITE
    int PyBUF_READ

cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT

cdef extern from "<time.h>" nogil:
    ctypedef int clockid_t
    struct timespec:
        long tv_sec
        long tv_nsec
    clockid_t CLOCK_MONOTONIC
    int clock_gettime(clockid_t clock, timespec *out)

LANES = NOVA_LANES
PRIORITY_MAX = NOVA_LANES - 1
LARGE_BYTES = NOVA_LARGE_BYTES

cdef enum:
    UNLOCK_BYTES = 16384    # from here on work is worth the interpreter lock's hand-over


cdef uint64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


def pool_bytes():
    """(bytes that wait in the pool of receive blocks, bytes that somebody holds), of this process."""
    cdef size_t waiting, held
    nova_pool_count(&waiting, &held)
    return waiting, held


def keyed_hash(bytes key not None, list parts not None):
    """Keyed BLAKE3 of `parts`, one after the other: the MAC of frames is its first 16 bytes."""
    cdef nova_blake3_stream stream
    cdef nova_blake3_mode mode
    cdef uint8_t out[NOVA_BLAKE3_BYTES]
    cdef bytes part
    if len(key) != NOVA_BLAKE3_BYTES:
        raise UsageError(f"a key of {len(key)} bytes; BLAKE3 takes {NOVA_BLAKE3_BYTES}")
    mode = nova_blake3_keyed(<const uint8_t *>PyBytes_AS_STRING(key))
    nova_blake3_begin(&stream, &mode)
    for part in parts:
        nova_blake3_add(&stream, PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part))
    nova_blake3_end(&stream, out)
    return (<char *>out)[:NOVA_BLAKE3_BYTES]


include "channel_parts.pxi"


cdef class Channel:
    """What an established session does with bytes and messages. Made by `Session`; one session, one process.

    who             names the peer in complaints
    mac_in/mac_out  None, a key of 32 bytes (BLAKE3), or an object with begin(head, bytes), add(view), end() -> bytes
    lanes           4 if both sides let urgent messages pass the frames of large ones, else 1
    """

    def __cinit__(self, *args, **kwargs):
        nova_channel_begin(&self.c)
        self.forks = nova_fork_count()
        self.pid = os.getpid()

    def __init__(self, str who not None, *, mac_in, mac_out, uint64_t sequence_in, uint64_t sequence_out,
                 size_t frame_bytes_max, size_t message_bytes_max, size_t send_bytes_max, size_t payload_bytes,
                 size_t queue_bytes_max, uint64_t credit_bytes, uint64_t may_send, int lanes, uint64_t idle_ns,
                 uint64_t ping_ns, uint64_t now_ns, uint64_t sent_bytes, uint64_t received_bytes):
        cdef nova_channel *c = &self.c
        if lanes != 1 and lanes != NOVA_LANES:
            raise UsageError(f"{lanes} lanes; there are 1 or {NOVA_LANES}")
        self.who = who
        self.foreign_in, self.foreign_out = mac_in, mac_out
        set_mac(&c.mac_in, mac_in)
        set_mac(&c.mac_out, mac_out)
        c.sequence_in, c.sequence_out = sequence_in, sequence_out
        c.frame_bytes_max, c.message_bytes_max = frame_bytes_max, message_bytes_max
        c.payload_bytes, c.queue_bytes_max = payload_bytes, queue_bytes_max
        c.credit_bytes = c.granted = credit_bytes
        c.grant = c.announced = credit_bytes
        c.may_send, c.lanes = may_send, lanes
        c.heard_ns, c.sent_bytes, c.received_bytes = now_ns, sent_bytes, received_bytes
        self.send_bytes_max = send_bytes_max
        self.idle_ns, self.every_ns, self.pinged_ns = idle_ns, ping_ns, now_ns
        c.ping_ns = now_ns if now_ns else 1

    def __dealloc__(self):
        self.view = None
        nova_channel_end(&self.c)
        self.give_back()

    cdef int check(self) except -1:
        if self.forks != nova_fork_count():
            raise UsageError(f"this stream belongs to process {self.pid}; process {os.getpid()}, forked from it, has to open its own")
        return 0

    cdef int fail(self, int code) except -1:
        """Raise for what a kernel function complained of."""
        cdef nova_channel *c = &self.c
        cdef nova_frame *f = &c.frame
        cdef size_t length = (<size_t>c.head[4] << 24) | (<size_t>c.head[5] << 16) | (<size_t>c.head[6] << 8) | c.head[7]
        if code >= 0:
            return 0
        if code == NOVA_EMEMORY:
            self.broken = True
            raise MemoryError("no memory for a block of messages")
        self.broken = True
        who = self.who
        if code == NOVA_EFIRST or code == NOVA_EMAGIC:
            size = c.bad if code == NOVA_EFIRST else 4
            raise PeerError(f"bytes {bytes(c.head[:4])[:size]!r} start no frame: not a nova peer")
        if code == NOVA_EVERSION:
            raise PeerError(f"frame format {c.head[1]}, this node speaks format {NOVA_FRAME_VERSION}: upgrade the older one")
        if code == NOVA_EFLAGS:
            raise PeerError(f"frame has unknown flags {c.head[3]:#04x}")
        if code == NOVA_ELENGTH:
            raise PeerError(f"frame of {length} bytes is over the limit of {c.frame_bytes_max}")
        if code == NOVA_ESHORT:
            raise PeerError(f"frame of {length} bytes is too short for its flags {c.head[3]:#04x}")
        if code == NOVA_EMAC:
            raise PeerError(f"frame {f.sequence} from {who} was not made by it: its MAC is wrong")
        if code == NOVA_EORDER:
            raise PeerError(
                f"frame {f.sequence} of stream {f.stream} from {who} came where frame {c.sequence_in} of "
                f"{'stream 0' if c.lanes == 1 else f'streams 0 to {c.lanes - 1}'} was due: replayed, lost or moved"
            )
        if code == NOVA_EAFTER:
            raise PeerError(f"{who} sent a frame of type {f.type} after its goodbye")
        if code == NOVA_ETYPE:
            raise PeerError(f"frame of type {f.type} from {who} does not belong into a session")
        if code == NOVA_ENUMBER:
            raise PeerError(f"{('credit', 'ping', 'pong')[f.type - 4]} of {c.bad} bytes; it has 8")
        if code == NOVA_EGOODBYE:
            raise PeerError(f"goodbye of {c.bad} bytes; a reason has 512 at most")
        if code == NOVA_ECREDIT:
            raise PeerError(f"{who} sent {c.bad} bytes more than its credit")
        if code == NOVA_EPIECES:
            raise PeerError("a message that goes on in the next frame is not the last one of its frame")
        if code == NOVA_ERAGGED:
            raise PeerError(f"a data frame ends {c.bad} bytes after its last piece")
        if code == NOVA_EPIECE:
            raise PeerError(f"a piece of {c.bad} bytes stands in a frame that ends before it")
        if code == NOVA_EHOLLOW:
            raise PeerError("an empty piece that goes on: no honest sender makes one")
        if code == NOVA_ENONE:
            raise PeerError("a data frame without a message")
        if code == NOVA_EMESSAGE:
            raise PeerError(f"message of {c.bad} bytes and more is over the limit of {c.message_bytes_max}")
        if code == NOVA_EMIDDLE:
            raise PeerError(f"{who} said goodbye in the middle of a message")
        if code == NOVA_EPONGS:
            raise PeerError(f"{who} asks for answers and does not read them: {NOVA_PONGS} are waiting")
        if code == NOVA_ECRC:
            raise PeerError(f"checksum of frame {f.sequence} ({f.length} bytes) is wrong")
        if code == NOVA_EEND:
            raise PeerError(f"{who} hung up without a goodbye")
        raise PeerError(f"the connection to {who} broke: {os.strerror(c.system).lower()}")

    # -- in ----------------------------------------------------------------------------------------------------------

    def feed(self, data not None, uint64_t now_ns):
        """Bytes that came, in any buffer: they are copied. Raises PeerError."""
        cdef Py_buffer view
        cdef int code
        if self.broken:
            raise PeerError("this session is broken already")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        if view.len >= UNLOCK_BYTES:
            with nogil:
                code = nova_channel_feed(&self.c, <const uint8_t *>view.buf, view.len, now_ns)
        else:
            code = nova_channel_feed(&self.c, <const uint8_t *>view.buf, view.len, now_ns)
        PyBuffer_Release(&view)
        self.fail(code)

    def where(self):
        """Memory for the next bytes. Valid until `arrived` is called; it has no owner."""
        cdef iovec where[2]
        self.fail(nova_channel_where(&self.c, where))
        return PyMemoryView_FromMemory(<char *>where[0].iov_base, where[0].iov_len, PyBUF_WRITE)

    def arrived(self, size_t n, uint64_t now_ns):
        """n bytes stand where `where` said. Raises PeerError."""
        cdef int code
        if self.broken:
            raise PeerError("this session is broken already")
        if n >= UNLOCK_BYTES:
            with nogil:
                code = nova_channel_arrived(&self.c, n, now_ns)
        else:
            code = nova_channel_arrived(&self.c, n, now_ns)
        self.fail(code)

    cpdef Py_ssize_t read(self, int fd, size_t bytes_max=1 << 20) except? -2:
        """Take what a non-blocking socket has, about `bytes_max` bytes of it.

        returns  bytes read; -1 at the end of the stream
        raises   PeerError if they break the protocol, OSError if the socket is broken
        """
        cdef size_t got = 0, total = 0, room
        cdef int code = 0
        cdef iovec where[2]
        if self.broken:
            raise PeerError("this session is broken already")
        while total < bytes_max:
            code = nova_channel_where(&self.c, where)
            if code < 0:
                break
            room = where[0].iov_len
            if code == 2:  # into a large message
                with nogil:
                    code = nova_channel_read(&self.c, fd, MSG_DONTWAIT, monotonic_ns, &got)
            else:
                code = nova_channel_read(&self.c, fd, MSG_DONTWAIT, monotonic_ns, &got)
            total += got
            if code or got < room:
                break
        if code == NOVA_ESYSTEM:
            raise OSError(self.c.system, os.strerror(self.c.system))
        if code == NOVA_EEND:
            return total if total else -1
        self.fail(code)
        return total

    def look(self, int fd):
        """`read`, and what there is afterwards, in one call: 1 messages, 2 something to send, 4 the peer's goodbye."""
        cdef int seen = 0
        if self.read(fd) < 0:
            return -1
        if self.c.ready != self.c.taken:
            seen = 1
        if nova_channel_has_output(&self.c):
            seen |= 2
        if self.c.peer_done:
            seen |= 4
        return seen

    @property
    def waiting(self):
        """Messages that are here."""
        return self.c.ready - self.c.taken

    cdef object message(self, nova_message *m, int holds):
        cdef Py_ssize_t start
        if m.block != self.view_block:
            if holds:  # alone in its block, or the first that is asked for is the last: no view of the whole is needed
                return view_of(m.block, m.at, m.size)
            nova_block_hold(m.block)
            self.view = view_of(m.block, m.block.data, m.block.room)
            self.view_block = m.block
        if holds:
            nova_block_drop(m.block)
        start = m.at - m.block.data
        return self.view[start:start + <Py_ssize_t>m.size]

    def recv(self):
        """The next message; None if there is none. It is the application's from now on, and its credit the peer's."""
        cdef nova_message m
        cdef int holds
        self.check()
        if not nova_channel_take(&self.c, &m, &holds):
            return None
        if self.c.ready == self.c.taken and self.view_block == NULL:  # alone: it needs no view of its whole block
            if not holds:
                nova_block_hold(m.block)
            out = view_of(m.block, m.at, m.size)
        else:
            out = self.message(&m, holds)
            if self.c.ready == self.c.taken:
                self.view, self.view_block = None, NULL
        nova_channel_consumed(&self.c, nova_cost(m.size))
        return out

    def recv_batch(self, bint consume=True):
        """All messages that are here; without `consume` the caller tells `consumed` later."""
        cdef nova_message m
        cdef int holds
        cdef uint64_t cost = 0
        cdef list out = []
        self.check()
        while nova_channel_take(&self.c, &m, &holds):
            out.append(self.message(&m, holds))
            cost += nova_cost(m.size)
        self.view, self.view_block = None, NULL
        if consume and out:
            nova_channel_consumed(&self.c, cost)
        return out

    def recv_slab(self):
        """All messages that are here, one behind the other: (bytes, offsets), as views of pooled memory.

        Message i is ``slab[offsets[i]:offsets[i + 1]]``; the offsets are int64.
        """
        cdef nova_channel *c = &self.c
        cdef size_t count = c.ready - c.taken, total = 0, i
        cdef nova_message m
        cdef nova_block *slab
        cdef nova_block *index
        cdef int64_t *offsets
        cdef int holds
        cdef uint64_t cost = 0
        self.check()
        self.view, self.view_block = None, NULL
        for i in range(c.taken, c.ready):
            total += c.messages[i].size
        slab = nova_block_take(total if total else 1)
        index = nova_block_take(8 * (count + 1))
        if slab == NULL or index == NULL:
            nova_block_drop(slab)
            nova_block_drop(index)
            raise MemoryError()
        offsets = <int64_t *>index.data
        with nogil:
            total = 0
            for i in range(count):
                nova_channel_take(c, &m, &holds)
                memcpy(slab.data + total, m.at, m.size)
                if holds:
                    nova_block_drop(m.block)
                offsets[i] = total
                total += m.size
                cost += nova_cost(m.size)
            offsets[count] = total
            nova_channel_consumed(c, cost)
        return view_of(slab, slab.data, total), view_of(index, index.data, 8 * (count + 1)).cast("q")

    def consumed(self, uint64_t cost):
        """Messages of this cost, taken without `consume`, are the application's now."""
        nova_channel_consumed(&self.c, cost)

    # -- out ---------------------------------------------------------------------------------------------------------

    cdef int put(self, object payload, int lane) except -1:
        """Queue one message: 1 if it is, 0 if the queue is full."""
        cdef nova_channel *c = &self.c
        cdef int code
        cdef Py_buffer view
        cdef size_t size
        if PyBytes_CheckExact(payload):
            size = PyBytes_GET_SIZE(payload)
            if size > self.send_bytes_max:
                raise self.over(size)
            if size <= NOVA_SMALL_BYTES:
                code = nova_channel_copy(c, lane, <const uint8_t *>PyBytes_AS_STRING(payload), size)
            else:  # nobody can change it
                code = nova_channel_lend(c, lane, <const uint8_t *>PyBytes_AS_STRING(payload), size, <void *>payload)
                if code == 0:
                    Py_INCREF(payload)
        else:
            PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
            size = view.len
            try:
                if size > self.send_bytes_max:
                    raise self.over(size)
                if size >= UNLOCK_BYTES:
                    with nogil:
                        code = nova_channel_copy(c, lane, <const uint8_t *>view.buf, size)
                else:
                    code = nova_channel_copy(c, lane, <const uint8_t *>view.buf, size)
            finally:
                PyBuffer_Release(&view)
        if code == NOVA_EMEMORY:
            raise MemoryError()
        return code == 0

    def lend(self, payload not None, int priority=0):
        """Queue a message where it stands: `left` of what is returned tells when its buffer is free. None: as False of
        `send`. Until then its bytes must not change, and what can be resized refuses to."""
        cdef Lent lent = Lent.__new__(Lent)
        cdef int code
        self.check()
        self.lane(priority)
        if self.c.closing or self.c.peer_done or self.broken:
            return None
        PyObject_GetBuffer(payload, &lent.view, PyBUF_SIMPLE)
        lent.has = True
        if <size_t>lent.view.len > self.send_bytes_max:
            raise self.over(lent.view.len)
        code = nova_channel_lend(&self.c, priority, <const uint8_t *>lent.view.buf, lent.view.len, <void *>lent)
        if code == NOVA_EMEMORY:
            raise MemoryError()
        if code:
            return None
        Py_INCREF(lent)
        return lent

    def reclaim(self, Lent lent not None):
        """Free the buffer of a lent message now; what has not left of it is copied."""
        if lent.has:
            if nova_channel_reclaim(&self.c, <void *>lent) < 0:
                raise MemoryError()
            lent.release()
            Py_DECREF(lent)

    cdef int lane(self, int priority) except -1:
        if priority < 0 or priority >= NOVA_LANES:
            raise UsageError(f"priority is {priority}; it is 0, for bulk, to {NOVA_LANES - 1}, what leaves first")
        return priority

    def over(self, size_t size):
        return LimitError(
            f"message of {size} bytes is over the limit of {self.send_bytes_max} that {self.who} accepts; "
            f"split it or raise message_bytes_max"
        )

    def send(self, payload not None, int priority=0):
        """Queue one message. False when the queue is full or the session over; LimitError if no peer would take it.

        priority  0 to 3; higher ones leave first
        payload   any buffer; it is the caller's again on return (bytes, which nobody can change, are not copied)
        """
        self.check()
        self.lane(priority)
        if self.c.closing or self.c.peer_done or self.broken:
            return False
        return self.put(payload, priority) == 1

    def send_now(self, payload not None, int priority, int fd):
        """`send`, and `write` behind it: 0 not queued, 1 all has left, 2 the socket takes no more now. Raises OSError."""
        self.check()
        self.lane(priority)
        if self.c.closing or self.c.peer_done or self.broken or not self.put(payload, priority):
            return 0
        return 1 if self.write(fd) else 2

    def send_batch(self, slab not None, const int64_t[::1] offsets not None, int priority=0, size_t first=0):
        """Queue messages ``slab[offsets[i]:offsets[i + 1]]`` from i = first on; returns how many of them are now.

        Fewer than all: the queue is full. The buffers are the caller's again on return.
        """
        self.check()
        self.lane(priority)
        self.check_batch(slab, offsets, first)
        if self.c.closing or self.c.peer_done or self.broken:
            return 0
        return self.put_batch(slab, offsets, priority, first) - first

    cdef int check_batch(self, object slab, const int64_t[::1] offsets, size_t first) except -1:
        cdef Py_ssize_t bytes_there = slab.nbytes if hasattr(slab, "nbytes") else len(memoryview(slab).cast("B"))
        cdef int64_t most = self.send_bytes_max
        cdef size_t count, i
        if offsets.shape[0] < 1:
            raise UsageError("offsets is empty; n messages have n + 1 offsets")
        count = offsets.shape[0] - 1
        if first > count:
            raise UsageError(f"first is {first}; there are {count} messages")
        if offsets[0] < 0 or offsets[count] > bytes_there:
            raise UsageError(f"offsets run from {offsets[0]} to {offsets[count]}; the slab has {bytes_there} bytes")
        for i in range(count):
            if offsets[i + 1] < offsets[i]:
                raise UsageError(f"offset {i + 1} is {offsets[i + 1]}, before offset {i}, {offsets[i]}; offsets ascend")
            if offsets[i + 1] - offsets[i] > most:
                raise self.over(offsets[i + 1] - offsets[i])
        return 0

    cdef size_t put_batch(self, object slab, const int64_t[::1] offsets, int lane, size_t first) except? 0:
        """Queue from message `first` on; returns the first that is not. The offsets have been checked."""
        cdef Py_buffer view
        cdef size_t done = first, count = offsets.shape[0] - 1
        cdef int code
        PyObject_GetBuffer(slab, &view, PyBUF_SIMPLE)
        with nogil:
            code = nova_channel_copy_many(&self.c, lane, <const uint8_t *>view.buf, &offsets[0], count, &done)
        PyBuffer_Release(&view)
        if code == NOVA_EMEMORY:
            raise MemoryError()
        return done

    cdef int give_back(self) except -1:
        cdef nova_item *items = nova_channel_gone(&self.c)
        cdef nova_item *item = items
        while item != NULL:
            if item.owner != NULL:
                owner = <object>item.owner
                if type(owner) is Lent:
                    (<Lent>owner).release()
                Py_DECREF(owner)
            item = item.next
        if items != NULL:
            nova_channel_free_items(items)
        return 0

    def drop(self):
        """The connection is gone: give back what is queued and what was lent."""
        nova_channel_drop(&self.c)
        self.give_back()

    def take_output(self, size_t bytes_max=1 << 20):
        """Frames to send now, in order: answers and credit, then data up to about `bytes_max`; each whole."""
        cdef uint8_t head[64]
        cdef iovec parts[3]
        cdef size_t taken = 0, size
        cdef int count, i
        cdef bytearray frame
        cdef char *to
        cdef list out = []
        self.check()
        while True:
            count = nova_channel_frame(&self.c, head, taken < bytes_max and not self.broken, parts)
            if count == 0:
                break
            size = 0
            for i in range(count):
                size += parts[i].iov_len
            frame = bytearray(size)
            to = PyByteArray_AS_STRING(frame)
            for i in range(count):
                memcpy(to, parts[i].iov_base, parts[i].iov_len)
                to += parts[i].iov_len
            taken += size
            out.append(frame)
        self.give_back()
        return out

    cpdef bint write(self, int fd) except? 0:
        """Send to a non-blocking socket what may leave. False: it takes no more now. Raises OSError."""
        cdef int code
        self.check()
        if self.c.queue_bytes >= UNLOCK_BYTES or self.c.flight_at < self.c.flight_count:
            with nogil:
                code = nova_channel_write(&self.c, fd, MSG_DONTWAIT, not self.broken)
        else:
            code = nova_channel_write(&self.c, fd, MSG_DONTWAIT, not self.broken)
        self.give_back()
        if code < 0:
            raise OSError(self.c.system, os.strerror(self.c.system))
        return code == 0

    def close(self, str reason="", bint discard=False):
        """Say goodbye once the queue has left; with `discard`, at once."""
        cdef bytes text = reason.encode()[:512]
        nova_channel_close(&self.c, <const uint8_t *>PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), discard)

    def tick(self, uint64_t now_ns):
        """Let time pass. Raises PeerError when the peer was silent for too long."""
        if self.broken:
            return
        if now_ns - self.c.heard_ns >= self.idle_ns and now_ns > self.c.heard_ns:
            self.broken = True
            raise PeerError(f"no word from {self.who} for {self.idle_ns // 1000000} ms")
        if now_ns - self.pinged_ns >= self.every_ns and not self.c.done:
            self.pinged_ns = now_ns
            self.c.ping_ns = now_ns

    # -- for other modules -----------------------------------------------------------------------------------------------

    cdef int places(self, iovec *where) noexcept nogil:
        return nova_channel_where(&self.c, where)

    cdef int came(self, size_t n, uint64_t now_ns) noexcept nogil:
        return nova_channel_arrived(&self.c, n, now_ns)

    cdef int pass_on(self, nova_put put, void *to, int data) noexcept nogil:
        return nova_channel_pass(&self.c, put, to, data)

    # -- what it knows -------------------------------------------------------------------------------------------------

    @property
    def deadline_ns(self):
        silence = self.c.heard_ns + self.idle_ns
        return silence if self.c.done else min(silence, self.pinged_ns + self.every_ns)

    @property
    def has_output(self):
        """False when `take_output` and `write` would surely have nothing to send."""
        return nova_channel_has_output(&self.c) != 0

    @property
    def peer_done(self):
        """The peer has said goodbye."""
        return self.c.peer_done != 0

    @property
    def reason(self):
        """Why the peer said goodbye."""
        return bytes(self.c.reason[:self.c.reason_bytes]).decode("utf-8", "replace")

    @property
    def done(self):
        """Our goodbye is among what was sent: nothing follows it."""
        return self.c.done != 0

    @property
    def queue_bytes(self):
        return self.c.queue_bytes

    @property
    def sent_bytes(self):
        return self.c.sent_bytes

    @property
    def received_bytes(self):
        return self.c.received_bytes

    @property
    def rtt_ns(self):
        return self.c.rtt_ns

    @rtt_ns.setter
    def rtt_ns(self, uint64_t value):
        self.c.rtt_ns = value

    @property
    def sequence_out(self):
        """Number of the next frame that leaves."""
        return self.c.sequence_out

    @property
    def data_totals(self):
        """What data has been charged so far, in bytes: (arrived, consumed, sent)."""
        return self.c.arrived, self.c.consumed, self.c.data_out

    @property
    def calls(self):
        """System calls that moved bytes."""
        return self.c.calls


include "channel_socket.pxi"
