from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "frame.h" nogil:
    enum:
        NOVA_FRAME_HEADER
        NOVA_FRAME_SIGNED
        NOVA_FRAME_TRACE
        NOVA_FRAME_MAC
        NOVA_FRAME_VERSION
        NOVA_FLAG_TRACE
        NOVA_FLAG_MAC
        NOVA_EMAGIC
        NOVA_EVERSION
        NOVA_EFLAGS
        NOVA_ELENGTH
        NOVA_ESHORT
    ctypedef struct nova_frame:
        uint8_t type
        uint8_t flags
        uint32_t length
        uint32_t stream
        uint32_t crc
        uint64_t sequence
    uint32_t nova_frame_crc32c(uint32_t crc, const uint8_t *bytes, size_t n)
    int nova_frame_crc32c_level()
    uint32_t nova_frame_crc32c_at(int level, uint32_t crc, const uint8_t *bytes, size_t n)
    uint32_t nova_frame_crc32c_plain(uint32_t crc, const uint8_t *bytes, size_t n)
    int nova_frame_read(const uint8_t *bytes, size_t length_max, nova_frame *out)
    void nova_frame_write(uint8_t *bytes, const nova_frame *frame)
    void nova_frame_write_signed(uint8_t *bytes, const nova_frame *frame)
    int nova_frame_checks(const uint8_t *header, const uint8_t *body, size_t n)


cdef class Frame:
    cdef readonly int type
    cdef readonly int flags
    cdef readonly unsigned int stream
    cdef readonly unsigned long long sequence
    cdef readonly bytes head
    cdef readonly object body


cdef class FrameParser:
    cdef readonly size_t frame_bytes_max
    cdef uint8_t head[24]
    cdef size_t head_bytes
    cdef nova_frame header
    cdef bint in_body
    cdef bint broken
    cdef object pending
    cdef size_t filled
    cdef int read_header(self) except -1
    cdef Frame finish(self, object body, const uint8_t *bytes)
