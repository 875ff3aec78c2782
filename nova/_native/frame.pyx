# cython: autotestdict=False
"""Frames on the wire: writing them, and an incremental parser for bytes that nobody vouches for yet."""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

from nova.errors import PeerError

FLAG_TRACE = NOVA_FLAG_TRACE
FLAG_MAC = NOVA_FLAG_MAC
HEADER_BYTES = NOVA_FRAME_HEADER
TRACE_BYTES = NOVA_FRAME_TRACE
MAC_BYTES = NOVA_FRAME_MAC
cdef enum:
    COST_MIN = 64
MESSAGE_COST_BYTES_MIN = COST_MIN


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0):
    cdef size_t n = data.shape[0]
    if n > 65536:
        with nogil:
            crc = nova_frame_crc32c(crc, &data[0], n)
        return crc
    return nova_frame_crc32c(crc, &data[0], n) if n else crc


def crc32c_levels():
    """How many ways of computing the checksum this processor has; `crc32c_at` takes 0, the plain one, up to one less."""
    return nova_frame_crc32c_level() + 1


def crc32c_at(int level, const uint8_t[::1] data not None, uint32_t crc=0):
    return nova_frame_crc32c_at(level, crc, &data[0], data.shape[0]) if data.shape[0] else crc


def crc32c_plain(const uint8_t[::1] data not None, uint32_t crc=0):
    return nova_frame_crc32c_plain(crc, &data[0], data.shape[0]) if data.shape[0] else crc


cdef bytearray room(int type, int flags, uint32_t stream, uint64_t sequence, size_t payload_bytes, bytes trace,
                    bint mac, nova_frame *frame):
    cdef size_t extras = 0
    if trace is not None:
        if len(trace) != NOVA_FRAME_TRACE:
            raise ValueError(f"a trace context has {NOVA_FRAME_TRACE} bytes, not {len(trace)}")
        extras, flags = NOVA_FRAME_TRACE, flags | NOVA_FLAG_TRACE
    if mac:
        extras, flags = extras + NOVA_FRAME_MAC, flags | NOVA_FLAG_MAC
    if payload_bytes + extras > 0xffffffff:
        raise ValueError(f"a frame of {payload_bytes} bytes is over the format's limit of 4 GiB; send it in pieces")
    cdef bytearray out = bytearray(NOVA_FRAME_HEADER + payload_bytes + extras)
    frame.type, frame.flags, frame.stream, frame.sequence = type, flags, stream, sequence
    frame.length = <uint32_t>(payload_bytes + extras)
    nova_frame_write_signed(<uint8_t *>PyByteArray_AS_STRING(out), frame)
    if trace is not None:
        memcpy(PyByteArray_AS_STRING(out) + NOVA_FRAME_HEADER, PyBytes_AS_STRING(trace), NOVA_FRAME_TRACE)
    return out


def encode(int type, uint32_t stream, uint64_t sequence, const uint8_t[::1] payload not None, bytes trace=None,
           bint mac=False):
    """A frame around `payload`, with 16 zero bytes where the MAC belongs; `seal` completes it."""
    cdef nova_frame frame
    cdef bytearray out = room(type, 0, stream, sequence, payload.shape[0], trace, mac, &frame)
    if payload.shape[0]:
        memcpy(PyByteArray_AS_STRING(out) + NOVA_FRAME_HEADER + (NOVA_FRAME_TRACE if trace is not None else 0),
               &payload[0], payload.shape[0])
    return out


def seal(bytearray frame not None, bytes mac=None):
    """Write the MAC, if there is one, and the checksum into a frame made here."""
    cdef uint8_t *raw = <uint8_t *>PyByteArray_AS_STRING(frame)
    cdef nova_frame header
    cdef size_t size = len(frame)
    if size < NOVA_FRAME_HEADER or nova_frame_read(raw, size - NOVA_FRAME_HEADER, &header) < 0 \
            or header.length != size - NOVA_FRAME_HEADER:
        raise ValueError("seal() completes frames of encode() and pack() only")
    if mac is not None:
        if not header.flags & NOVA_FLAG_MAC or len(mac) != NOVA_FRAME_MAC:
            raise ValueError(f"the frame has room for {NOVA_FRAME_MAC if header.flags & NOVA_FLAG_MAC else 0} bytes of MAC, not {len(mac)}")
        memcpy(raw + size - NOVA_FRAME_MAC, PyBytes_AS_STRING(mac), NOVA_FRAME_MAC)
    nova_frame_write(raw, &header)


cdef inline size_t charge(size_t payload_bytes) noexcept:
    return max(payload_bytes + 4, <size_t>COST_MIN)


def cost(list messages not None):
    """What these messages or pieces charge to credit and queue: 4 bytes more than their payload, and never less than
    MESSAGE_COST_BYTES_MIN each, for an object weighs as much even when it is empty."""
    cdef size_t total = 0
    cdef object message
    for message in messages:
        total += charge(PyBytes_GET_SIZE(message) if type(message) is bytes else len(message))
    return total


def pack(int type, uint32_t stream, uint64_t sequence, object queue not None, size_t offset, size_t payload_bytes_max,
         size_t credit, bint mac=False):
    """Fill one frame with pieces of the messages in `queue` (a deque of bytes), taking out those it finishes.

    offset   how much of the first message has left already
    credit   what all pieces together may charge, see `cost`
    returns  (frame, charged, how much lighter the queue is, new offset); None if not even one byte fits

    A piece is a u32 (high bit: the message goes on in the next frame; else its length) and its bytes.
    """
    cdef size_t total = 0, charged = 0, left = 0, whole = 0, size, take, tail = 0, spare
    cdef bytes message
    for message in queue:
        size = PyBytes_GET_SIZE(message) - (offset if whole == 0 else 0)
        if total + 4 + size > payload_bytes_max or charged + charge(size) > credit:
            # A small message waits for the next frame rather than being cut, unless it would never fit one.
            spare = min(payload_bytes_max - total, credit - charged)
            if spare > 4 and (total == 0 or spare > 16384) and credit - charged >= <size_t>COST_MIN:
                tail = spare - 4
            break
        total += 4 + size
        charged += charge(size)
        left += charge(PyBytes_GET_SIZE(message)) - (offset if whole == 0 else 0)
        whole += 1
    if whole == 0 and tail == 0:
        return None
    if tail:
        total += 4 + tail
        charged += charge(tail)
        left += tail
    cdef nova_frame frame
    cdef bytearray out = room(type, 0, stream, sequence, total, None, mac, &frame)
    cdef uint8_t *at = <uint8_t *>PyByteArray_AS_STRING(out) + NOVA_FRAME_HEADER
    cdef size_t i
    for i in range(whole + (1 if tail else 0)):
        message = queue.popleft() if i < whole else queue[0]
        take = PyBytes_GET_SIZE(message) - offset if i < whole else tail
        at[0] = <uint8_t>(take >> 24) | (0 if i < whole else 0x80)
        at[1], at[2], at[3] = <uint8_t>(take >> 16), <uint8_t>(take >> 8), <uint8_t>take
        memcpy(at + 4, PyBytes_AS_STRING(message) + offset, take)
        at += 4 + take
        offset = 0 if i < whole else offset + tail
    return out, charged, left, offset


def split(object payload not None):
    """The pieces in a payload made by `pack`, and whether the last one goes on in the next frame."""
    cdef const uint8_t[::1] raw = payload
    cdef size_t n = raw.shape[0], at = 0, size
    cdef bint more = False
    cdef list pieces = []
    while at < n:
        if more:
            raise PeerError("a message that goes on in the next frame is not the last one of its frame")
        if n - at < 4:
            raise PeerError(f"a data frame ends {n - at} bytes after its last piece")
        size = (<size_t>(raw[at] & 0x7f) << 24) | (<size_t>raw[at + 1] << 16) | (<size_t>raw[at + 2] << 8) | raw[at + 3]
        more = raw[at] >> 7
        at += 4
        if size > n - at:
            raise PeerError(f"a piece of {size} bytes stands in a frame with {n - at} bytes left")
        if more and size == 0:
            raise PeerError("an empty piece that goes on: no honest sender makes one")
        pieces.append(payload[at:at + size])
        at += size
    if not pieces:
        raise PeerError("a data frame without a message")
    return pieces, bool(more)


cdef class Frame:
    """One whole frame with a good checksum. `head` and `body` without its last 16 bytes are what the MAC covers."""

    @property
    def trace(self):
        return bytes(self.body[:NOVA_FRAME_TRACE]) if self.flags & NOVA_FLAG_TRACE else None

    @property
    def payload(self):
        cdef Py_ssize_t start = NOVA_FRAME_TRACE if self.flags & NOVA_FLAG_TRACE else 0
        cdef Py_ssize_t stop = len(self.body) - (NOVA_FRAME_MAC if self.flags & NOVA_FLAG_MAC else 0)
        return self.body[start:stop]

    @property
    def signed(self):
        return self.body[:len(self.body) - NOVA_FRAME_MAC] if self.flags & NOVA_FLAG_MAC else self.body

    @property
    def mac(self):
        return bytes(self.body[len(self.body) - NOVA_FRAME_MAC:]) if self.flags & NOVA_FLAG_MAC else b""


cdef class FrameParser:
    """Takes whatever bytes arrived, gives whole frames. Bodies are views of the bytes fed in, without a copy, unless
    a frame came in several reads: then of one buffer of its exact size, allocated after its length passed the limit.
    After an error it stays broken: nothing behind a bad header can be believed."""

    def __init__(self, size_t frame_bytes_max):
        self.frame_bytes_max = frame_bytes_max

    def limit(self, size_t frame_bytes_max):
        """Change what later frames may weigh."""
        self.frame_bytes_max = frame_bytes_max

    @property
    def partial(self):
        """True in the middle of a frame."""
        return self.in_body or self.head_bytes > 0

    @property
    def need(self):
        """Bytes still missing from the present header or body. Feeding no more than that never begins a next frame."""
        return self.header.length - self.filled if self.in_body else NOVA_FRAME_HEADER - self.head_bytes

    cdef int read_header(self) except -1:
        cdef int code = nova_frame_read(self.head, self.frame_bytes_max, &self.header)
        if code == 0:
            return 0
        self.broken = True
        cdef size_t length = (<size_t>self.head[4] << 24) | (<size_t>self.head[5] << 16) | (<size_t>self.head[6] << 8) | self.head[7]
        if code == NOVA_EMAGIC:
            raise PeerError(f"bytes {bytes(self.head[:4])!r} start no frame: not a nova peer")
        if code == NOVA_EVERSION:
            raise PeerError(f"frame format {self.head[1]}, this node speaks format {NOVA_FRAME_VERSION}: upgrade the older one")
        if code == NOVA_ELENGTH:
            raise PeerError(f"frame of {length} bytes is over the limit of {self.frame_bytes_max}")
        if code == NOVA_ESHORT:
            raise PeerError(f"frame of {length} bytes is too short for its flags {self.head[3]:#04x}")
        raise PeerError(f"frame has unknown flags {self.head[3]:#04x}")

    cdef Frame finish(self, object body, const uint8_t *raw):
        if not nova_frame_checks(self.head, raw, self.header.length):
            self.broken = True
            raise PeerError(f"checksum of frame {self.header.sequence} ({self.header.length} bytes) is wrong")
        cdef Frame frame = Frame.__new__(Frame)
        frame.type, frame.flags = self.header.type, self.header.flags
        frame.stream, frame.sequence = self.header.stream, self.header.sequence
        frame.head = PyBytes_FromStringAndSize(<char *>self.head, NOVA_FRAME_SIGNED)
        frame.body = body
        self.head_bytes, self.in_body, self.pending = 0, False, None
        return frame

    def feed(self, data not None):
        """Whole frames in `data` and what came before it. Raises PeerError."""
        if self.broken:
            raise PeerError("this stream of frames is broken already")
        cdef bytes chunk = data if type(data) is bytes else bytes(data)
        cdef const uint8_t *raw = <const uint8_t *>PyBytes_AS_STRING(chunk)
        cdef size_t n = PyBytes_GET_SIZE(chunk), at = 0, take
        cdef list frames = []
        cdef object view = memoryview(chunk)
        cdef uint8_t *target
        while True:
            if not self.in_body:
                take = min(n - at, <size_t>NOVA_FRAME_HEADER - self.head_bytes)
                memcpy(self.head + self.head_bytes, raw + at, take)
                self.head_bytes += take
                at += take
                if self.head_bytes < NOVA_FRAME_HEADER:
                    # A wrong first byte needs no second one.
                    if self.head_bytes and self.head[0] != c'N':
                        self.broken = True
                        raise PeerError(f"bytes {bytes(self.head[:min(self.head_bytes, <size_t>4)])!r} start no frame: not a nova peer")
                    return frames
                self.read_header()
                if self.header.length <= n - at:
                    frames.append(self.finish(view[at:at + self.header.length], raw + at))
                    at += self.header.length
                    continue
                self.in_body, self.filled = True, 0
                self.pending = bytearray(self.header.length)
            take = min(n - at, self.header.length - self.filled)
            target = <uint8_t *>PyByteArray_AS_STRING(self.pending)
            memcpy(target + self.filled, raw + at, take)
            self.filled += take
            at += take
            if self.filled < self.header.length:
                return frames
            frames.append(self.finish(memoryview(self.pending).toreadonly(), target))
