# The list of values; a part of sequence.pyx.

cdef class RGAList(Sequence):
    """A list that many write at once: elements are JSON-like values and bytes; order and merging are those of RGA.

    An element is a value for good: to change one, put another in its place (`splice(pos, 1, [value])`); two who do so at
    once leave both. What changes in place by merging belongs into an ORMap, and its key into the list.

    cost   as RGA; an element is kept as its bytes, and what is deleted is given back
    """

    def __cinit__(self):
        self.state_magic, self.delta_magic = b"NVL\x01", b"NVM\x01"
        self.whole, self.unit = "list", "elements"
        self.values = []

    def __dealloc__(self):
        PyMem_Free(self.hashes)

    cdef uint32_t number_of(self, bytes raw) except? 0xFFFFFFFF:
        """A number for a value."""
        cdef size_t n = len(self.values), room = self.hashes_room
        cdef uint64_t *grown
        if n == room:
            room = 2 * room + 16
            grown = <uint64_t *>PyMem_Realloc(self.hashes, room * sizeof(uint64_t))
            if grown == NULL:
                raise MemoryError
            self.hashes, self.hashes_room = grown, room
            nova_sequence_stand_for(self.events, self.hashes)
        if n >= 0xFFFFFFFF:
            raise LimitError("a list has less than 2**32 - 1 elements; start another one")
        self.hashes[n] = hash_bytes(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), 0).lo
        self.values.append(raw)
        return <uint32_t>n

    cdef int settle(self, bint kept) except -1:
        """Give up the values of elements that are gone, once they are more than half."""
        cdef size_t i, n = len(self.values), length = nova_sequence_length(self.events), fresh = 0
        cdef unsigned width = 0
        cdef const void *at
        cdef uint32_t *numbers
        cdef list values = []
        if n <= 2 * length + 64 or nova_sequence_broken(self.events):
            return 0
        numbers = <uint32_t *>PyMem_Malloc(n * sizeof(uint32_t))
        if numbers == NULL:
            return 0  # another time
        memset(numbers, 0, n * sizeof(uint32_t))
        at = nova_sequence_view(self.events, &width)
        for i in range(length):
            numbers[(<const uint8_t *>at)[i] if width == 1 else (<const uint32_t *>at)[i]] = 1
        for i in range(n):
            if numbers[i]:
                numbers[i] = <uint32_t>fresh
                self.hashes[fresh] = self.hashes[i]
                values.append(self.values[i])
                fresh += 1
        nova_sequence_renumber(self.events, numbers)
        PyMem_Free(numbers)
        self.values = values
        return 0

    # -- edits --

    cdef int edit(self, uint64_t pos, uint64_t n, list raws) except -1:
        cdef size_t i, more = len(raws)
        cdef uint32_t *numbers = NULL
        cdef int code = 0
        if more:
            numbers = <uint32_t *>PyMem_Malloc(more * sizeof(uint32_t))
            if numbers == NULL:
                raise MemoryError
        try:
            for i in range(more):
                numbers[i] = self.number_of(raws[i])
            if n:
                code = nova_sequence_delete(self.events, self.own, pos, n)
            if not code and more:
                code = nova_sequence_insert(self.events, self.own, pos, numbers, sizeof(uint32_t), more)
            if code:
                raise failed(code)
        finally:
            PyMem_Free(numbers)
        if n:
            self.settle(True)
        return 0

    def insert(self, int64_t pos, values):
        """Insert an iterable of values before position pos. raises UsageError for a position beyond the end."""
        self.splice(pos, 0, values)

    def append(self, value):
        """Insert one value at the end."""
        self.splice(len(self), 0, (value,))

    def delete(self, int64_t pos, int64_t n=1):
        """Delete n elements from position pos on. raises UsageError if they are not all there."""
        self.splice(pos, n, ())

    def splice(self, int64_t pos, int64_t n, values):
        """Delete n elements from position pos on, then insert values there. Nothing happens if it cannot be done whole."""
        cdef list raws
        self.writable()
        raws = packed_values(values)
        self.check_range(pos, n)
        self.edit(pos, n, raws)

    def apply_patches(self, patches):
        """Many splices in one call, (position, deleted count, values) each: all of them, or none if one does not fit.

        raises    UsageError that names the first patch that does not fit
        """
        cdef int64_t length, pos, n
        cdef list checked = []
        cdef list raws
        self.writable()
        length = nova_sequence_length(self.events)
        for i, patch in enumerate(patches):
            patch = tuple(patch)
            if len(patch) != 3:
                raise UsageError(f"patch {i} has {len(patch)} parts; a patch is (position, deleted, inserted values)")
            pos, n, values = patch
            if pos < 0 or n < 0 or pos > length or n > length - pos:
                raise UsageError(f"patch {i}: {bad_range(pos, n, self.whole, length, self.unit)}")
            raws = packed_values(values)
            checked.append((pos, n, raws))
            length += len(raws) - n
        for pos, n, raws in checked:
            self.edit(pos, n, raws)

    # -- reading --

    cdef list raws(self):
        """The elements as bytes."""
        cdef unsigned width = 0
        cdef const void *at
        cdef size_t i, n
        if self.unread is not None:
            return self.unread_elements
        self.ready()
        at = nova_sequence_view(self.events, &width)
        n = nova_sequence_length(self.events)
        if width == 1:
            return [self.values[(<const uint8_t *>at)[i]] for i in range(n)]
        return [self.values[(<const uint32_t *>at)[i]] for i in range(n)]

    @property
    def value(self):
        """The elements as they stand here, in a new list."""
        cdef list raws = self.raws()
        return decode(b"\xdd" + len(raws).to_bytes(4, "big") + b"".join(raws))

    def __iter__(self):
        return iter(self.value)

    def __getitem__(self, index):
        cdef unsigned width = 0
        cdef const void *at
        cdef int64_t i, n
        if isinstance(index, slice):
            return self.value[index]
        self.ready()
        i, n = index, nova_sequence_length(self.events)
        if i < 0:
            i += n
        if i < 0 or i >= n:
            raise IndexError(f"index {index} is not within the list of {n} elements")
        at = nova_sequence_view(self.events, &width)
        return decode(self.values[(<const uint8_t *>at)[i] if width == 1 else (<const uint32_t *>at)[i]])

    # -- what elements are --

    cdef list whole_bytes(self):
        return list_bytes(self.raws())

    cdef object read_whole(self, nova_reader *r):
        return read_list(r)

    cdef int load(self, nova_runs *runs, object whole) except -1:
        cdef size_t i, n = len(whole)
        cdef uint32_t *numbers = room_for_elements(runs, n)
        cdef int code
        for i in range(n):
            numbers[i] = self.number_of(whole[i])
        code = nova_sequence_load(self.events, runs, numbers, sizeof(uint32_t), n)
        if code:
            raise failed(code)
        return 0

    cdef list elements_bytes(self, nova_runs *runs):
        cdef size_t i
        return list_bytes([self.values[runs.elements[i]] for i in range(runs.elements_size)])

    cdef int read_elements(self, nova_reader *r, nova_runs *runs) except -1:
        cdef list raws = read_list(r)
        cdef size_t i, n = len(raws)
        cdef uint32_t *numbers = room_for_elements(runs, n)
        for i in range(n):
            numbers[i] = self.number_of(raws[i])
        return 0

    cdef int adopt(self, Sequence other, nova_runs *runs) except -1:
        cdef size_t i
        cdef list theirs = (<RGAList>other).values
        for i in range(runs.elements_size):
            runs.elements[i] = self.number_of(theirs[runs.elements[i]])
        return 0


cdef list packed_values(object values):
    if isinstance(values, (str, bytes, dict)):
        raise UsageError(f"values are a {type(values).__name__}; pass a list of them")
    return [pack(value) for value in values]


cdef list list_bytes(list raws):
    """How many values, and all of them, each behind its size."""
    cdef list parts = []
    for raw in raws:
        parts += [number(len(raw)), raw]
    return [number(len(raws)), *packed(b"".join(parts))]


cdef list read_list(nova_reader *r):
    cdef uint64_t i, n = nova_take_number(r), size
    cdef bytes body = unpacked(r)
    cdef nova_reader inner = nova_reader_of(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    cdef const uint8_t *at
    cdef list out = []
    if n > nova_left(&inner) // 2:
        raise malformed(WHAT, "its elements are cut")
    for i in range(n):
        size = nova_take_number(&inner)
        at = nova_take(&inner, size)
        if at == NULL:
            raise malformed(WHAT, "an element is cut")
        check_spelling(at, size)
        out.append(PyBytes_FromStringAndSize(<const char *>at, size))
    if nova_left(&inner):
        raise malformed(WHAT, "it has more elements than it says")
    return out
