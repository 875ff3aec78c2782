from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next
from cpython.object cimport Py_EQ, PyObject, PyObject_RichCompareBool
from libc.stdint cimport uint8_t, uint32_t


cdef extern from "text.h" nogil:
    size_t nova_text_scratch_bytes(size_t na, size_t nb, size_t distinct)
    void nova_text_diff(const uint32_t *a, size_t na, const uint32_t *b, size_t nb, size_t distinct, uint8_t *gone,
                        uint8_t *come, void *scratch)


cdef inline PyObject *beside(dict side, Py_ssize_t *at, PyObject *key) except? NULL:
    """The value of a key, NULL if there is none. It is mostly the next one of the side, since copies keep the order of
    a map and mostly its very keys: then there is nothing to look up."""
    cdef PyObject *here
    cdef PyObject *value
    cdef Py_ssize_t after = at[0]
    if PyDict_Next(side, &after, &here, &value):
        if here is key or (
            type(<object>here) is str and type(<object>key) is str
            and PyObject_RichCompareBool(<object>here, <object>key, Py_EQ)
        ):
            at[0] = after
            return value
    return PyDict_GetItemWithError(side, <object>key)
