# cython: autotestdict=False
"""One end of a striped transfer: the board that its streams share, and the streams. `nova.transport.bulk` is the face."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport errno
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from nova.errors import UsageError

CRC32C = NOVA_BULK_CRC32C
BLAKE3 = NOVA_BULK_BLAKE3
SUM_BYTES = NOVA_BULK_SUM
RECORD_BYTES = 4 + NOVA_BULK_SUM
HEAD_BYTES = NOVA_BULK_HEAD
WINDOW = NOVA_BULK_WINDOW
ETYPE, ESEQUENCE, ETRANSFER, EOFFSET, ELENGTH = (
    NOVA_BULK_ETYPE, NOVA_BULK_ESEQUENCE, NOVA_BULK_ETRANSFER, NOVA_BULK_EOFFSET, NOVA_BULK_ELENGTH)
ECRC, EMAC, EACK, EOTHER = NOVA_BULK_ECRC, NOVA_BULK_EMAC, NOVA_BULK_EACK, NOVA_BULK_EOTHER
ESOCKET, EHANGUP, ECUT, EFILE, ESHORT = (
    NOVA_BULK_ESOCKET, NOVA_BULK_EHANGUP, NOVA_BULK_ECUT, NOVA_BULK_EFILE, NOVA_BULK_ESHORT)


def crc_join(uint32_t a, uint32_t b, uint64_t b_bytes):
    """CRC32C of two byte strings in a row, from that of each and the size of the second."""
    return nova_bulk_crc_join(a, b, nova_bulk_crc_power(b_bytes))


cdef class Board:
    """The chunks of one object and what became of them.

    memory     the object, a buffer (writable on the receiving side); or None, and
    file       a descriptor, in which it begins at byte `base`
    pace       bytes per second of all streams together; 0: no pace

    All methods may be called from any thread.
    """

    def __cinit__(self):
        nova_bulk_init(&self.b)

    def __init__(self, uint64_t transfer, uint64_t size, uint32_t chunk_bytes, int digest, *, bint receiving,
                 memory=None, int file=-1, uint64_t base=0, uint64_t pace=0):
        cdef const uint8_t[::1] readable
        cdef uint8_t[::1] writable
        cdef uint64_t chunks
        if self.b.state != NULL:
            raise UsageError("this board is made already")
        if chunk_bytes == 0 or digest not in (NOVA_BULK_CRC32C, NOVA_BULK_BLAKE3):
            raise UsageError(f"chunks of {chunk_bytes} bytes with digest {digest}; chunks have 1 byte or more, digests are 1 and 2")
        chunks = size // chunk_bytes + (size % chunk_bytes != 0)
        if chunks >= 0xffffffff:
            raise UsageError(f"{chunks} chunks are over the limit of 2^32 - 2; make chunks larger")
        self.receiving = receiving
        self.b.plan.transfer, self.b.plan.bytes, self.b.plan.digest = transfer, size, digest
        self.b.plan.chunk_bytes, self.b.plan.chunks = chunk_bytes, <uint32_t>chunks
        self.b.file, self.b.base, self.b.pace_bytes_s = file, base, pace
        if memory is not None:
            if len(memory) != size:
                raise UsageError(f"memory of {len(memory)} bytes for an object of {size}")
            if size:
                # The view holds the exporter: a bytearray cannot be resized, an array not be freed, until `release`.
                if receiving:
                    writable = memory
                    self.keeper, self.b.memory = writable, &writable[0]
                else:
                    readable = memory
                    self.keeper, self.b.memory = readable, <uint8_t *>&readable[0]
        elif file < 0 and size:
            raise UsageError("a board needs memory or a file")
        self.b.state = <uint8_t *>calloc(chunks + 1, 1)
        self.b.sums = <uint8_t *>calloc(chunks + 1, NOVA_BULK_SUM)
        self.b.list = <uint32_t *>calloc(chunks + 1, sizeof(uint32_t))
        if self.b.state == NULL or self.b.sums == NULL or self.b.list == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.b.state)
        free(self.b.sums)
        free(self.b.list)
        nova_bulk_free(&self.b)

    @property
    def chunks(self):
        return self.b.plan.chunks

    @property
    def chunk_bytes(self):
        return self.b.plan.chunk_bytes

    @property
    def size(self):
        return self.b.plan.bytes

    @property
    def done(self):
        """Chunks in place, as far as this side knows."""
        return self.b.done

    @property
    def done_bytes(self):
        return self.b.done_bytes

    @property
    def complete(self):
        return self.b.done == self.b.plan.chunks

    @property
    def closed(self):
        return bool(self.b.closed)

    @property
    def events(self):
        return self.b.events

    def wait(self, uint64_t events, double seconds):
        """Wait until something happened since `events`, or the time is over. The events by then."""
        cdef uint64_t timeout_ns = <uint64_t>(max(0.0, seconds) * 1e9)
        with nogil:
            events = nova_bulk_wait(&self.b, events, timeout_ns)
        return events

    def poke(self):
        """Wake who waits."""
        nova_bulk_poke(&self.b)

    def close(self):
        """End all loops; nothing is sent or placed any more."""
        nova_bulk_close(&self.b)

    def release(self):
        """Let go of the memory. No stream may run; nothing may be asked of the bytes afterwards."""
        self.b.memory = NULL
        self.keeper = None

    def reset(self):
        """All is to do again. No stream may run."""
        nova_bulk_reset(&self.b)

    def mark_map(self, const uint8_t[::1] map not None):
        """All chunks are in place whose bit is set; the lowest bit of a byte comes first."""
        cdef uint32_t i
        if map.shape[0] != (self.b.plan.chunks + 7) // 8:
            raise UsageError(f"a map of {map.shape[0]} bytes for {self.b.plan.chunks} chunks")
        for i in range(self.b.plan.chunks):
            if map[i >> 3] >> (i & 7) & 1:
                nova_bulk_mark(&self.b, i)

    def map(self):
        """A bit for each chunk that is in place."""
        cdef uint32_t i
        cdef bytes out = PyBytes_FromStringAndSize(NULL, (self.b.plan.chunks + 7) // 8)
        cdef uint8_t *raw = <uint8_t *>PyBytes_AS_STRING(out)
        memset(raw, 0, PyBytes_GET_SIZE(out))
        for i in range(self.b.plan.chunks):
            raw[i >> 3] |= <uint8_t>((self.b.state[i] == NOVA_BULK_DONE) << (i & 7))
        return out

    def fresh(self):
        """(chunk, sum) of what was placed since the last call, as the bytes of a journal: u32 little-endian, 32 bytes."""
        cdef uint32_t i, n, room = self.b.plan.chunks
        cdef uint32_t *chunks = <uint32_t *>malloc((<size_t>room + 1) * sizeof(uint32_t))
        cdef bytes out
        cdef uint8_t *raw
        if chunks == NULL:
            raise MemoryError()
        try:
            n = nova_bulk_fresh(&self.b, chunks, room)
            out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>n * (4 + NOVA_BULK_SUM))
            raw = <uint8_t *>PyBytes_AS_STRING(out)
            for i in range(n):
                raw[0], raw[1] = <uint8_t>chunks[i], <uint8_t>(chunks[i] >> 8)
                raw[2], raw[3] = <uint8_t>(chunks[i] >> 16), <uint8_t>(chunks[i] >> 24)
                memcpy(raw + 4, self.b.sums + <size_t>chunks[i] * NOVA_BULK_SUM, NOVA_BULK_SUM)
                raw += 4 + NOVA_BULK_SUM
        finally:
            free(chunks)
        return out

    def sum(self, uint32_t chunk):
        if chunk >= self.b.plan.chunks:
            raise UsageError(f"chunk {chunk} of {self.b.plan.chunks}")
        return PyBytes_FromStringAndSize(<char *>self.b.sums + <size_t>chunk * NOVA_BULK_SUM, NOVA_BULK_SUM)

    def fill(self):
        """Compute the sums that are not known yet, on the sending side. (0, 0), or (code, errno)."""
        cdef int code, cause
        cdef uint8_t *scratch = <uint8_t *>malloc(self.b.plan.chunk_bytes)
        if scratch == NULL:
            raise MemoryError()
        with nogil:
            code = nova_bulk_fill(&self.b, scratch)
            cause = errno
            free(scratch)
        return code, cause if code else 0

    def recall(self, const uint8_t[::1] records not None):
        """Take as placed what `fresh` told once, if the bytes are there and still have their sums; returns how many are."""
        cdef size_t at, size = 4 + NOVA_BULK_SUM, n = records.shape[0] // size
        cdef uint32_t chunk, count = 0
        cdef uint8_t *sum
        cdef const uint8_t *raw
        cdef uint8_t *scratch = <uint8_t *>malloc(self.b.plan.chunk_bytes)
        if scratch == NULL:
            raise MemoryError()
        with nogil:
            for at in range(n):
                raw = &records[at * size]
                chunk = raw[0] | <uint32_t>raw[1] << 8 | <uint32_t>raw[2] << 16 | <uint32_t>raw[3] << 24
                if chunk >= self.b.plan.chunks or self.b.state[chunk] == NOVA_BULK_DONE:
                    continue
                sum = self.b.sums + <size_t>chunk * NOVA_BULK_SUM
                memcpy(sum, raw + 4, NOVA_BULK_SUM)
                if nova_bulk_check(&self.b, chunk, scratch) == 1:
                    nova_bulk_mark(&self.b, chunk)
                    count += 1
                else:
                    memset(sum, 0, NOVA_BULK_SUM)
            free(scratch)
        return count

    def root(self):
        """The digest of the whole object, from the sums of its chunks."""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, NOVA_BULK_SUM)
        cdef uint8_t *raw = <uint8_t *>PyBytes_AS_STRING(out)
        with nogil:
            nova_bulk_root(&self.b, raw)
        return out

    def read_head(self, const uint8_t[::1] head not None, bint keyed, uint64_t sequence):
        """The chunk that a head announces, or why it is refused, below 0."""
        cdef uint32_t chunk = 0
        if head.shape[0] < NOVA_BULK_HEAD:
            return NOVA_BULK_ELENGTH
        cdef int code = nova_bulk_read(&self.b.plan, &head[0], keyed, sequence, &chunk)
        return code if code else chunk


cdef class BulkStream:
    """One connection of a board. `run` is called once, in a thread of its own."""

    def __init__(self, Board board not None):
        self.board = board

    def run(self, int fd, bytes key_out=None, bytes key_in=None):
        """Move chunks on a connected blocking socket until there is nothing more to do. 0, or why it ended.

        The caller closes `fd`, after this returned.
        """
        cdef nova_bulk *b = &self.board.b
        cdef int code
        if self.used:
            raise UsageError("a stream runs once; make a new one")
        if (key_out is None) != (key_in is None) or (key_out is not None and (len(key_out) != 32 or len(key_in) != 32)):
            raise UsageError("a stream has two keys of 32 bytes, or none")
        self.used = True
        self.s.fd, self.s.keyed = fd, key_out is not None
        if key_out is not None:
            memcpy(self.s.key_out, PyBytes_AS_STRING(key_out), 32)
            memcpy(self.s.key_in, PyBytes_AS_STRING(key_in), 32)
        if b.memory == NULL or self.board.receiving:
            self.s.scratch = <uint8_t *>malloc(b.plan.chunk_bytes)
            if self.s.scratch == NULL:
                raise MemoryError()
        with nogil:
            code = nova_bulk_receive(b, &self.s) if self.board.receiving else nova_bulk_send(b, &self.s)
            free(self.s.scratch)
            self.s.scratch = NULL
        return code

    def cut(self):
        """End it now; what it had taken is taken by others."""
        nova_bulk_cut(&self.board.b, &self.s)

    def leave(self):
        """Take no more chunks; end once those on their way are acknowledged."""
        nova_bulk_leave(&self.board.b, &self.s)

    @property
    def cause(self):
        """errno of what ended it."""
        return self.s.cause

    @property
    def moved_bytes(self):
        return self.s.moved_bytes

    @property
    def heard_ns(self):
        """When, on the monotonic clock, the last chunk or acknowledgement came; 0 before it runs."""
        return self.s.heard_ns

    @property
    def oldest_ns(self):
        """When the chunk was sent that is on its way longest; 0: none is."""
        return nova_bulk_oldest_ns(&self.board.b, &self.s)

    @property
    def waiting(self):
        """Chunks on their way."""
        return self.s.waiting
