from libc.stdint cimport uint8_t, uint32_t


cdef extern from "text.h" nogil:
    size_t nova_text_scratch_bytes(size_t na, size_t nb, size_t distinct)
    void nova_text_diff(const uint32_t *a, size_t na, const uint32_t *b, size_t nb, size_t distinct, uint8_t *gone,
                        uint8_t *come, void *scratch)
