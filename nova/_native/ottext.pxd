from libc.stdint cimport uint32_t


cdef extern from "ottext.h" nogil:
    ctypedef enum nova_ottext_kind:
        NOVA_SKIP
        NOVA_INSERT
        NOVA_DELETE

    ctypedef struct nova_ottext_piece:
        uint32_t kind
        uint32_t source
        uint32_t start
        uint32_t size

    size_t nova_ottext_transform(const nova_ottext_piece *first, size_t nfirst, const nova_ottext_piece *second,
                                 size_t nsecond, int left, nova_ottext_piece *out)
    size_t nova_ottext_compose(const nova_ottext_piece *first, size_t nfirst, const nova_ottext_piece *second,
                               size_t nsecond, nova_ottext_piece *out)
