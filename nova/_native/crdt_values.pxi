# Values, keys, amounts and stamps: from what users give to their one spelling in bytes, and back. Part of crdt.pyx.
#
# A value is MessagePack in its shortest form, the keys of mappings in order: equal values are equal bytes.

cdef struct Packed:
    const uint8_t *at
    size_t size


cdef uint8_t *scratch = NULL            # of the value packed last, until another one is
cdef size_t scratch_room = 0


cdef bytes pack_checked(object value, int *found):
    """A value in its one spelling, and what `nova_value_check` found."""
    cdef bytes out
    try:
        out = encode(value)
    except (TypeError, ValueError, OverflowError, UnicodeError, NotImplementedError) as error:
        raise UsageError(f"a value of type {type(value).__name__} cannot be kept ({error}); use JSON-like values and bytes") \
            from None
    except RecursionError:
        raise LimitError(f"a value of type {type(value).__name__} is nested too deep or holds itself; the limit is 64") \
            from None
    found[0] = nova_value_check(<uint8_t *>PyBytes_AS_STRING(out), PyBytes_GET_SIZE(out), True)  # `out` is still ours
    if found[0] == -2:
        raise LimitError(f"a value of type {type(value).__name__} is nested too deep; the limit is 64 levels")
    if found[0] < 0:
        raise UsageError(f"a value of type {type(value).__name__} cannot be kept; use JSON-like values and bytes")
    return out


cdef bytes pack(object value):
    cdef int found
    return pack_checked(value, &found)


cdef inline size_t put_header(uint8_t *out, size_t size) noexcept:
    """How a MessagePack str of this size begins."""
    cdef int i, width
    if size < 32:
        out[0] = 0xA0 | <uint8_t>size
        return 1
    width = 1 if size < 0x100 else 2 if size < 0x10000 else 4
    out[0] = 0xD9 + (width >> 1)
    for i in range(width):
        out[1 + i] = <uint8_t>(size >> (8 * (width - 1 - i)))
    return 1 + width


cdef inline size_t put_integer(uint8_t *out, int64_t value) noexcept:
    """A MessagePack integer in its shortest form."""
    cdef int i, width, kind
    if -32 <= value < 128:
        out[0] = <uint8_t>value
        return 1
    if value >= 0:
        kind = 0 if value < 0x100 else 1 if value < 0x10000 else 2 if value < 0x100000000 else 3
        out[0] = 0xCC + kind
    else:
        kind = 0 if value >= -0x80 else 1 if value >= -0x8000 else 2 if value >= -<int64_t>0x80000000 else 3
        out[0] = 0xD0 + kind
    width = 1 << kind
    for i in range(width):
        out[1 + i] = <uint8_t>(<uint64_t>value >> (8 * (width - 1 - i)))
    return 1 + width


cdef int need_scratch(size_t size) except -1:
    global scratch, scratch_room
    cdef uint8_t *grown
    if size > scratch_room:
        grown = <uint8_t *>PyMem_Realloc(scratch, size + 64)
        if grown == NULL:
            raise MemoryError
        scratch, scratch_room = grown, size + 64
    return 0


cdef object pack_value(Replica self, object value, Packed *out, bint element):
    """A value in its one spelling, for a replica. What is returned must live as long as `out` is read, and nothing else
    be packed meanwhile: either no code of others ran and the replica's store is settled still, or `out` is not in the
    scratch space. An element of a set must be hashable."""
    cdef const char *text
    cdef Py_ssize_t size
    cdef size_t head
    cdef int found
    cdef bytes packed
    if self.store is not None:
        settled(self.store)
    if type(value) is str:
        try:
            text = PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError as error:
            raise UsageError(f"a value of type str cannot be kept ({error}); use JSON-like values and bytes") from None
        if size < 0x10000:
            need_scratch(size + 8)
            head = put_header(scratch, size)
            memcpy(scratch + head, text, size)
            out.at, out.size = scratch, head + size
            return None
    elif type(value) is int and -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF:
        need_scratch(16)
        out.at, out.size = scratch, put_integer(scratch, PyLong_AsLongLong(value))
        return None
    packed = pack_checked(value, &found)
    if element and found & NOVA_VALUE_MAPS:
        raise UsageError(f"an element of type {type(value).__name__} holds a mapping; elements must be hashable")
    out.at, out.size = <const uint8_t *>PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed)
    return packed


cdef inline object pack_element(Replica self, object value, Packed *out):
    return pack_value(self, value, out, True)


cdef int pack_key(object key, Packed *out) except -1:
    """The UTF-8 of a key; it lives as long as the key."""
    cdef Py_ssize_t size
    if not isinstance(key, str):
        raise UsageError(f"key {key!r} is a {type(key).__name__}; keys are str")
    try:
        out.at = <const uint8_t *>PyUnicode_AsUTF8AndSize(key, &size)
    except UnicodeEncodeError:
        raise UsageError(f"key {key!r} holds a lone surrogate; use valid Unicode") from None
    if size > KEY_BYTES_MAX:
        raise LimitError(f"a key of {size} bytes; the limit is {KEY_BYTES_MAX}; use a shorter one")
    out.size = size
    return 0


cdef bint in_order(const uint8_t *at, size_t size) noexcept with gil:
    """Are the keys of the mappings in a value in their order?"""
    try:
        packed = PyBytes_FromStringAndSize(<const char *>at, size)
        return encode(decode(packed)) == packed
    except Exception:                   # whatever it is, it is not what we would have written
        return False


cdef object unpack(const uint8_t *at, size_t size):
    return decode(PyBytes_FromStringAndSize(<const char *>at, size))


cdef object frozen(object value):
    """An element of a set as a hashable value: lists become tuples."""
    return tuple([frozen(item) for item in value]) if type(value) is list else value


cdef str text_of(const uint8_t *at, size_t size):
    return at[:size].decode("utf-8")


cdef uint64_t as_amount(object amount) except 0:
    if type(amount) is int and 1 <= amount <= 0x3FFFFFFF:
        return amount
    if isinstance(amount, bool) or not isinstance(amount, int):
        raise UsageError(f"amount {amount!r} is a {type(amount).__name__}; amounts are int")
    if not 1 <= amount <= U64_MAX:
        raise UsageError(f"amount {amount} is out of range; it is from 1 to 2**64 - 1 (a PNCounter also has decrement)")
    return amount


cdef uint64_t as_stamp(object stamp) except? U64_MAX:
    if type(stamp) is int:
        try:
            return PyLong_AsUnsignedLongLong(stamp)
        except OverflowError:
            pass
    if isinstance(stamp, bool) or not isinstance(stamp, int) or not 0 <= stamp <= U64_MAX:
        raise UsageError(f"stamp {stamp!r} is none; pass an int from HybridLogicalClock.tick")
    return stamp


cdef uint64_t plus(uint64_t total, uint64_t amount, str actor) except? U64_MAX:
    if amount > UINT64_MAX - total:
        raise UsageError(f"the total of actor {actor!r}, {total}, plus {amount} is over 2**64 - 1; go on under a new actor")
    return total + amount
