# Numbers, texts and values to bytes and back; whoever sent them may be hostile, so bounds come first. Part of keyspace.pyx.

cdef int reserve(Bytes *out, size_t more) except -1:
    cdef size_t room
    cdef uint8_t *at
    if out.size + more <= out.room:
        return 0
    room = max(out.room * 2, out.size + more, <size_t>256)
    at = <uint8_t *>realloc(out.at, room)
    if at == NULL:
        raise MemoryError
    out.at, out.room = at, room
    return 0


cdef inline int put_raw(Bytes *out, const void *data, size_t size) except -1:
    reserve(out, size)
    memcpy(out.at + out.size, data, size)
    out.size += size
    return 0


cdef inline int put_byte(Bytes *out, uint8_t value) except -1:
    reserve(out, 1)
    out.at[out.size] = value
    out.size += 1
    return 0


cdef inline int put_number(Bytes *out, uint64_t value) except -1:
    """LEB128, as protocol buffers write it."""
    reserve(out, 10)
    while value >= 0x80:
        out.at[out.size] = <uint8_t>(value & 0x7F) | 0x80
        out.size += 1
        value >>= 7
    out.at[out.size] = <uint8_t>value
    out.size += 1
    return 0


cdef inline int put_text(Bytes *out, str text) except -1:
    cdef Py_ssize_t size
    cdef const char *data = PyUnicode_AsUTF8AndSize(text, &size)
    put_number(out, size)
    put_raw(out, data, size)
    return 0


cdef inline int put_bytes(Bytes *out, bytes data) except -1:
    put_number(out, PyBytes_GET_SIZE(data))
    put_raw(out, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return 0


cdef object malformed(str what):
    return PeerError(f"malformed batch or state: {what}; the sender is broken or speaks another version")


cdef inline int need(Cursor *c, uint64_t size) except -1:
    if size > <uint64_t>(c.end - c.at):
        raise malformed(f"{size} bytes announced, {c.end - c.at} left")
    return 0


cdef inline uint64_t get_number(Cursor *c) except? 0xDEADBEEF:
    cdef uint64_t value = 0
    cdef unsigned shift = 0
    cdef uint8_t byte
    while True:
        need(c, 1)
        byte = c.at[0]
        c.at += 1
        if shift == 63 and byte > 1:
            raise malformed("a number over 64 bits")
        value |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7
        if shift > 63:
            raise malformed("a number over 64 bits")


cdef inline str get_text(Cursor *c):
    cdef uint64_t size = get_number(c)
    need(c, size)
    try:
        text = PyUnicode_DecodeUTF8(<const char *>c.at, size, NULL)
    except UnicodeDecodeError as error:
        raise malformed(f"text is not UTF-8 ({error.reason})") from None
    c.at += size
    return text


cdef inline bytes get_bytes(Cursor *c):
    cdef uint64_t size = get_number(c)
    need(c, size)
    data = PyBytes_FromStringAndSize(<const char *>c.at, size)
    c.at += size
    return data


cdef inline uint64_t get_size(Cursor *c) except? 0xDEADBEEF:
    """How many items follow: never more than the bytes that are left, so that nobody makes us allocate by a number."""
    cdef uint64_t size = get_number(c)
    need(c, size)
    return size
