# Who holds the memory of messages, in and out, and the MACs that Python computes.

cdef class Block:
    """Holds a block for the views of it. It goes back to the pool when the last view is released, in any thread."""
    cdef nova_block *block
    cdef const uint8_t *at
    cdef size_t size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.at, self.size, 1, flags)

    def __dealloc__(self):
        nova_block_drop(self.block)


cdef object view_of(nova_block *block, const uint8_t *at, size_t size):
    """A view of a block, which it takes over one hold of."""
    cdef Block holder = Block.__new__(Block)
    holder.block, holder.at, holder.size = block, at, size
    return PyMemoryView_FromObject(holder)


# ---- MACs that Python computes: those of peers without BLAKE3 ----

cdef void foreign_begin(void *self, const uint8_t *head, size_t n) noexcept with gil:
    (<object>self).begin((<char *>head)[:20], n)


cdef void foreign_add(void *self, const uint8_t *p, size_t n) noexcept with gil:
    (<object>self).add(PyMemoryView_FromMemory(<char *>p, n, PyBUF_READ))


cdef void foreign_end(void *self, uint8_t *mac) noexcept with gil:
    cdef bytes out = (<object>self).end()
    memcpy(mac, PyBytes_AS_STRING(out), NOVA_FRAME_MAC)


cdef int set_mac(nova_mac *m, object mac) except -1:
    if mac is None:
        m.kind = NOVA_MAC_NONE
    elif PyBytes_CheckExact(mac):
        if PyBytes_GET_SIZE(mac) != NOVA_BLAKE3_BYTES:
            raise UsageError(f"a MAC key of {PyBytes_GET_SIZE(mac)} bytes; it has {NOVA_BLAKE3_BYTES}")
        m.kind = NOVA_MAC_BLAKE3
        m.mode = nova_blake3_keyed(<const uint8_t *>PyBytes_AS_STRING(mac))
    else:
        m.kind = NOVA_MAC_FOREIGN
        m.self = <void *>mac
        m.begin, m.add, m.end = foreign_begin, foreign_add, foreign_end
    return 0


cdef class Lent:
    """A buffer that stays where it is until it has left; nobody may resize it before."""
    cdef Py_buffer view
    cdef bint has

    cdef int release(self) except -1:
        if self.has:
            self.has = False
            PyBuffer_Release(&self.view)
        return 0

    @property
    def left(self):
        """The buffer is its owner's again."""
        return not self.has

    def __dealloc__(self):
        if self.has:
            PyBuffer_Release(&self.view)
