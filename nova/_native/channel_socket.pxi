# A stream for threads: its calls go straight to the socket, without a loop and, while they wait, without the
# interpreter lock. One thread may be receiving and one sending at a time; more of them queue for the locks. Whoever
# waits to send also takes in what arrives, if nobody else does: two ends that only send would wait for each other.

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int POLLOUT
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef extern from "pythread.h" nogil:
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int interruptible)

cdef enum:
    STEP_MS = 1000          # a wait is cut into such pieces: between them signals, pings and the idle limit are seen to
    GATE_MICROSECONDS = 100000
    ROUND_BYTES = 262144    # of a batch are copied before they are sent: they are still in the cache then

cdef uint64_t FOREVER = <uint64_t>-1


cdef uint64_t until_of(object timeout) except? 1:
    """When `timeout` seconds from now have passed."""
    cdef double seconds
    if timeout is None:
        return FOREVER
    seconds = timeout
    if not seconds >= 0:
        raise UsageError(f"timeout is {timeout}; it is seconds, 0 or more, or None to wait for ever")
    if seconds > 1e9:
        return FOREVER
    return monotonic_ns() + <uint64_t>(seconds * 1e9)


cdef int step_ms(uint64_t until) noexcept nogil:
    cdef uint64_t now
    if until == FOREVER:
        return STEP_MS
    now = monotonic_ns()
    if until <= now:
        return 0
    return <int>min(<uint64_t>STEP_MS, (until - now + 999999) // 1000000)


cdef class SocketStream:
    """One session on one connected socket, for threads. Made by `nova.transport.blocking`.

    The socket blocks; its receive and send timeouts are set by who makes this.
    """
    def __cinit__(self, Channel channel not None, sock not None, *args, **kwargs):
        self.channel = channel
        self.socket = sock
        self.fd = sock.fileno()
        self.reason = ""
        self.in_lock = PyThread_allocate_lock()
        self.out_lock = PyThread_allocate_lock()
        self.gate = PyThread_allocate_lock()
        if self.in_lock == NULL or self.out_lock == NULL or self.gate == NULL:
            raise MemoryError()
        PyThread_acquire_lock(self.gate, NOWAIT_LOCK)

    def __dealloc__(self):
        for lock in (<size_t>self.in_lock, <size_t>self.out_lock, <size_t>self.gate):
            if lock:
                PyThread_free_lock(<PyThread_type_lock><size_t>lock)

    # What a stream on something else than a socket does in its own way (nova._native.shm).

    cdef int give(self, int flags) noexcept nogil:
        """Send what may leave: as nova_channel_write."""
        return nova_channel_write(&self.channel.c, self.fd, flags, 1)

    cdef int take(self, int flags, size_t *got) noexcept nogil:
        """Receive once: as nova_channel_read."""
        return nova_channel_read(&self.channel.c, self.fd, flags, monotonic_ns, got)

    cdef int take_now(self) noexcept:
        """Receive what is there, if that is quicker than to hand the interpreter lock over; else NOVA_WAITS."""
        return NOVA_WAITS

    cdef int watch(self, int events, int ms) noexcept nogil:
        """Wait until one of POLLIN and POLLOUT is there."""
        cdef pollfd wanted
        wanted.fd, wanted.events = self.fd, <short>events
        poll(&wanted, 1, ms)
        return 0

    cdef int complain(self, int code) except -1:
        """Raise for what one of them returned."""
        return self.channel.fail(code)

    cdef int unplug(self) except -1:
        """Whoever is inside of them comes out."""
        cdef int shut_both = 2
        try:
            self.socket.shutdown(shut_both)
        except OSError:
            pass
        return 0

    cdef int enter(self, PyThread_type_lock lock) except -1:
        self.channel.check()
        if not PyThread_acquire_lock(lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(lock, WAIT_LOCK)
        return 0

    cdef int failed(self, object error) except -1:
        """The stream broke: every later call says the same."""
        if self.error is None and not self.over:
            self.error = error
            self.reason = str(error)
        self.over = True
        return 0

    cdef int raise_if_closed(self) except -1:
        if self.error is not None:
            raise self.error
        if self.over or self.channel.c.closing or self.channel.c.peer_done:
            who = self.channel.who
            raise PeerError(f"the stream to {who} is closed: {self.reason or self.channel.reason or 'the peer closed'}")
        return 0

    cdef int answer(self) noexcept nogil:
        """Send what waits to leave, if nobody else is at it. NOVA_WAITS if the socket takes no more."""
        cdef int code = 0
        if nova_channel_has_output(&self.channel.c) and PyThread_acquire_lock(self.out_lock, NOWAIT_LOCK):
            code = self.give(MSG_DONTWAIT)
            PyThread_release_lock(self.out_lock)
        return code

    cdef int take_in(self, uint64_t until) noexcept nogil:
        """Receive once, waiting for it; in_lock is held."""
        cdef size_t got = 0
        cdef int code = self.answer()
        if code < 0:
            code = 0  # what the peer sent before it hung up is still to be received, and says how it ended
        if until == FOREVER and code == 0:
            code = self.take(0, &got)
        else:
            self.watch(POLLIN | (POLLOUT if code else 0), step_ms(until))
            code = self.take(MSG_DONTWAIT, &got)
        if self.sender_waits:
            PyThread_release_lock(self.gate)
            self.sender_waits = 0
        return code

    cdef int check_code(self, int code) except -1:
        """After a call without the interpreter lock: errors are raised, and time passes."""
        if code < 0:
            if code == NOVA_EEND and (self.over or self.channel.c.peer_done):
                self.over = True
                return 0
            try:
                self.complain(code)
            except PeerError as error:
                self.failed(error)
                raise
        elif code == NOVA_WAITS:
            PyErr_CheckSignals()
            try:
                self.channel.tick(monotonic_ns())
            except PeerError as error:
                self.failed(error)
                raise
        return 0

    cdef int part(self) noexcept:
        """The peer has said goodbye: say it, too, instead of what is queued; out_lock is held."""
        if not self.over:
            self.over = True
            self.reason = self.reason or self.channel.reason or "the peer closed"
            nova_channel_close(&self.channel.c, NULL, 0, 1)
            self.give(MSG_DONTWAIT)
        return 0

    cdef int fill(self, uint64_t until) except -1:
        """Wait until a message is here. 0: none will come. in_lock is held."""
        cdef nova_channel *c = &self.channel.c
        cdef int code
        while c.ready == c.taken:
            if self.error is not None:
                raise self.error
            if c.peer_done or self.over:
                # A thread that sends notices for itself: the queue is its own.
                if not self.over and PyThread_acquire_lock(self.out_lock, NOWAIT_LOCK):
                    self.part()
                    PyThread_release_lock(self.out_lock)
                return 0
            code = self.take_now()
            if code == NOVA_WAITS:
                with nogil:
                    code = self.take_in(until)
            self.check_code(code)
            if code == NOVA_WAITS and until != FOREVER and c.ready == c.taken and monotonic_ns() >= until:
                raise DeadlineError(f"no message from {self.channel.who} in time")
        return 1

    def recv(self, timeout=None):
        """The next message, None once the peer has closed in good order.

        timeout   seconds; DeadlineError after them, and nothing is lost
        raises    PeerError if the stream broke
        """
        cdef uint64_t until = until_of(timeout)
        self.enter(self.in_lock)
        try:
            if not self.fill(until):
                return None
            out = self.channel.recv()
            if nova_channel_has_control(&self.channel.c):
                self.answer()
            return out
        finally:
            PyThread_release_lock(self.in_lock)

    def recv_batch(self, timeout=None):
        """All messages that are here, waiting for the first; empty once the peer has closed."""
        cdef uint64_t until = until_of(timeout)
        self.enter(self.in_lock)
        try:
            if not self.fill(until):
                return []
            out = self.channel.recv_batch()
            if nova_channel_has_control(&self.channel.c):
                self.answer()
            return out
        finally:
            PyThread_release_lock(self.in_lock)

    def recv_slab(self, timeout=None):
        """As recv_batch, in one piece: bytes, and int64 offsets, one more than there are messages."""
        cdef uint64_t until = until_of(timeout)
        self.enter(self.in_lock)
        try:
            if not self.fill(until):
                return memoryview(b""), memoryview(bytes(8)).cast("q")
            out = self.channel.recv_slab()
            if nova_channel_has_control(&self.channel.c):
                self.answer()
            return out
        finally:
            PyThread_release_lock(self.in_lock)

    cdef int await_room(self, int code, uint64_t until) noexcept nogil:
        """The socket is full (NOVA_WAITS) or the credit used up: wait for either; out_lock is held."""
        cdef size_t got = 0
        cdef int events = POLLOUT if code == NOVA_WAITS else 0
        if PyThread_acquire_lock(self.in_lock, NOWAIT_LOCK):
            self.watch(events | POLLIN, step_ms(until))
            code = self.take(MSG_DONTWAIT, &got)
            PyThread_release_lock(self.in_lock)
            return code
        if code == NOVA_WAITS:
            self.watch(events, min(step_ms(until), GATE_MICROSECONDS // 1000))
        else:
            self.sender_waits = 1
            PyThread_acquire_lock_timed(self.gate, min(<long long>step_ms(until) * 1000, <long long>GATE_MICROSECONDS), 0)
        return NOVA_WAITS

    cdef int leave(self, uint64_t until) except -1:
        """Send until everything that is queued has left; out_lock is held. 0: the time has passed before."""
        cdef nova_channel *c = &self.channel.c
        cdef int code, flags = 0
        while True:
            if self.quick and c.queue_bytes < UNLOCK_BYTES:
                code = self.give(flags)
            else:
                with nogil:
                    code = self.give(flags)
            self.channel.give_back()
            if code == NOVA_WAITS:  # the peer does not read: it may wait for us to
                flags = MSG_DONTWAIT
            if code < 0:
                self.check_code(code)
            if c.queue_bytes == 0 and c.flight_at == c.flight_count:
                return 1
            if c.peer_done:
                self.part()
                self.channel.give_back()
                self.raise_if_closed()
            if until != FOREVER and monotonic_ns() >= until:
                return 0
            with nogil:
                code = self.await_room(code, until)
            self.check_code(code)

    cdef int late(self) except -1:
        raise DeadlineError(
            f"{self.channel.who} did not take the message in time; it stays queued, and leaves with the next call"
        )

    def send(self, payload not None, int priority=0, timeout=None, bint flush=True):
        """Send one message; on return it has left, and the buffer is the caller's again.

        priority  0 to 3; higher ones leave first
        flush     False: a small message is copied and waits for `flush`, or until 64 KiB are together
        timeout   seconds; after them DeadlineError: the message stays queued (a copy of it), the buffer is free
        raises    PeerError if the stream is closed or broke, LimitError if the peer would never accept it
        """
        cdef uint64_t until = until_of(timeout)
        cdef Lent lent
        cdef Py_ssize_t size
        self.enter(self.out_lock)
        try:
            self.channel.lane(priority)
            self.raise_if_closed()
            size = PyBytes_GET_SIZE(payload) if PyBytes_CheckExact(payload) else memoryview(payload).nbytes
            if size <= NOVA_SMALL_BYTES:
                while not self.channel.put(payload, priority):
                    if not self.leave(until):
                        self.late()
                if not flush and self.channel.c.queue_bytes < 65536:
                    return
                if not self.leave(until):
                    self.late()
                return
            lent = self.channel.lend(payload, priority)
            while lent is None:
                if not self.leave(until):
                    raise DeadlineError(f"{self.channel.who} takes nothing; the message was not sent")
                lent = self.channel.lend(payload, priority)
            try:
                if not self.leave(until):
                    self.late()
            finally:
                self.channel.reclaim(lent)
        finally:
            PyThread_release_lock(self.out_lock)

    def flush(self, timeout=None):
        """Wait until everything that is queued has left."""
        cdef uint64_t until = until_of(timeout)
        self.enter(self.out_lock)
        try:
            if self.error is not None:
                raise self.error
            if not self.leave(until):
                self.late()
        finally:
            PyThread_release_lock(self.out_lock)

    def send_batch(self, slab not None, offsets=None, int priority=0, timeout=None):
        """Send many messages: ``slab[offsets[i]:offsets[i + 1]]``, or, without offsets, each buffer in the list `slab`.

        On return they have left, and the buffers are the caller's again. Raises as `send`; after DeadlineError it is
        not known how many have left.
        """
        cdef uint64_t until = until_of(timeout)
        cdef const int64_t[::1] index
        cdef size_t done = 0, count, end
        self.enter(self.out_lock)
        try:
            self.channel.lane(priority)
            self.raise_if_closed()
            if offsets is None:
                for payload in slab:
                    while not self.channel.put(payload, priority):
                        if not self.leave(until):
                            self.late()
                    if self.channel.c.queue_bytes >= ROUND_BYTES and not self.leave(until):
                        self.late()
            else:
                index = offsets
                self.channel.check_batch(slab, index, 0)
                count = index.shape[0] - 1
                while done < count:
                    end = done
                    while end < count and index[end] - index[done] < ROUND_BYTES:
                        end += 1
                    done = self.channel.put_batch(slab, index[:end + 1], priority, done)
                    if not self.leave(until):
                        self.late()
            if not self.leave(until):
                self.late()
        finally:
            PyThread_release_lock(self.out_lock)

    def close(self, str reason="", timeout=5.0):
        """Send what is queued, say goodbye, wait for the peer's, close the socket. May be called twice.

        Messages that were not received are gone. After `timeout` seconds without the peer's goodbye it is closed anyway.
        """
        cdef uint64_t until = until_of(timeout)
        cdef int code = 0
        cdef bint done
        if self.fd < 0:
            return
        self.enter(self.out_lock)
        try:
            if not self.over:
                self.reason = self.reason or reason or "closed by this side"
                self.channel.close(reason)
                with nogil:
                    code = self.say_goodbye(until)
                self.channel.give_back()
        finally:
            PyThread_release_lock(self.out_lock)
        try:
            if not self.over and code >= 0 and not self.channel.c.peer_done:
                self.enter(self.in_lock)
                try:
                    while not self.channel.c.peer_done and monotonic_ns() < until:
                        with nogil:
                            code = self.take_in(until)
                        if code < 0:
                            break
                        self.channel.recv_batch()
                        PyErr_CheckSignals()
                finally:
                    PyThread_release_lock(self.in_lock)
        finally:
            self.over = True
            self.shut()

    cdef int say_goodbye(self, uint64_t until) noexcept nogil:
        cdef int code
        while True:
            code = self.give(MSG_DONTWAIT)
            if code < 0 or self.channel.c.done or monotonic_ns() >= until or self.channel.c.peer_done:
                return code
            code = self.await_room(code, until)
            if code < 0:
                return code

    def abort(self, str reason="aborted"):
        """Break the stream now; nothing queued is sent. Other threads' calls end with an error."""
        if self.fd >= 0:
            self.failed(PeerError(f"stream to {self.channel.who} broken: {reason}"))
            self.shut()

    cdef int shut(self) except -1:
        """Close the socket once nobody is inside of it any more."""
        if self.channel.forks == nova_fork_count():
            self.unplug()
        self.enter(self.in_lock)
        self.enter(self.out_lock)
        self.fd = -1
        self.socket.close()
        self.channel.drop()
        PyThread_release_lock(self.out_lock)
        PyThread_release_lock(self.in_lock)
        return 0

    @property
    def closed(self):
        """No message will leave any more."""
        return self.over or self.channel.c.closing != 0 or self.channel.c.peer_done != 0

    @property
    def waiting(self):
        """Messages that are here."""
        return self.channel.waiting

    @property
    def queue_bytes(self):
        return self.channel.c.queue_bytes

    @property
    def calls(self):
        """System calls that moved bytes."""
        return self.channel.c.calls
