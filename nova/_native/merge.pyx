"""The hot part of three-way merges: equality, plain maps, what differs. `nova.conflict.merge` is the face."""

from collections.abc import Mapping, Set
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass

import msgspec

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Copy, PyDict_GetItemWithError, PyDict_Next, PyDict_Size
from cpython.object cimport Py_EQ, PyObject, PyObject_RichCompareBool

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "Python.h":
    PyObject *PyTuple_GET_ITEM(object, Py_ssize_t)      # borrowed

from nova._native.digest cimport hash_bytes, nova_digest

from nova.errors import LimitError, UsageError

cdef extern from *:
    """
    static PyObject *nova_made(PyObject *type, PyObject *nothing) {
        return ((PyTypeObject *)type)->tp_new((PyTypeObject *)type, nothing, NULL);
    }
    """
    int __builtin_popcount(unsigned int x) nogil
    object nova_made(object type, object nothing)       # without __init__


DEPTH_MAX = 200
DIFFERENT, EQUAL, IDENTICAL = 0, 1, 2

cdef enum:
    _DIFFERENT, _EQUAL, _IDENTICAL
    _DEPTH_MAX = 200

cdef object Struct = msgspec.Struct
cdef type NONE = type(None)


# --- equality --------------------------------------------------------------------------------------------------------

def equal(a, b, int depth=0):
    """DIFFERENT; EQUAL in another form (1 and 1.0, -0.0 and 0.0, a list and a tuple); or IDENTICAL.

    True is no number, NaN equals NaN, null is not MISSING, text is compared code point by code point, maps and sets
    have no order. Raises LimitError below DEPTH_MAX levels, UsageError for a map with a key that is not text.
    """
    return compare(a, b, depth)


cdef int compare(object a, object b, int depth) except -1:
    if a is b:
        return _IDENTICAL
    cdef type kind = type(a), other = type(b)
    if kind is other:
        if kind is str or kind is int or kind is bytes:
            return _IDENTICAL if PyObject_RichCompareBool(a, b, Py_EQ) else _DIFFERENT
        if kind is bool or kind is NONE:
            return _DIFFERENT       # two of a kind that are not one object
        if kind is dict:
            return compare_dicts(a, b, depth + 1)
        if kind is list:
            return compare_lists(a, b, depth + 1)
    if (kind is float or kind is int) and (other is float or other is int):
        return compare_numbers(a, b)
    return compare_others(a, b, depth)


cdef int compare_numbers(object a, object b) except -1:
    if not PyObject_RichCompareBool(a, b, Py_EQ):
        return _IDENTICAL if a != a and b != b else _DIFFERENT
    if type(a) is not type(b):
        return _EQUAL
    return _IDENTICAL if a or str(a) == str(b) else _EQUAL


cdef int compare_dicts(dict a, dict b, int depth) except -1:
    if depth > _DEPTH_MAX:
        raise too_deep()
    if PyDict_Size(a) != PyDict_Size(b):
        return _DIFFERENT
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *other
    cdef Py_ssize_t at = 0
    cdef int found = _IDENTICAL, how
    while PyDict_Next(a, &at, &key, &value):
        if type(<object>key) is not str:
            check_key(<object>key)
        other = PyDict_GetItemWithError(b, <object>key)
        if other is value:
            continue
        if other is NULL:
            return _DIFFERENT
        how = compare(<object>value, <object>other, depth)
        if how == _DIFFERENT:
            return _DIFFERENT
        found = min(found, how)
    return found


cdef int compare_lists(list a, list b, int depth) except -1:
    if depth > _DEPTH_MAX:
        raise too_deep()
    cdef Py_ssize_t i, n = len(a)
    cdef int found = _IDENTICAL, how
    if len(b) != n:
        return _DIFFERENT
    for i in range(n):
        how = compare(a[i], b[i], depth)
        if how == _DIFFERENT:
            return _DIFFERENT
        found = min(found, how)
    return found


cdef int compare_others(object a, object b, int depth) except -1:
    """Whatever is no plain JSON value of one type."""
    if isinstance(a, (list, tuple)):
        if not isinstance(b, (list, tuple)):
            return _DIFFERENT
        return min(compare_lists(list(a), list(b), depth + 1), _IDENTICAL if type(a) is type(b) else _EQUAL)
    if isinstance(a, Mapping):
        return compare_dicts(dict(a), dict(b), depth + 1) if isinstance(b, Mapping) else _DIFFERENT
    if isinstance(a, Set):
        return compare_sets(a, b, depth + 1) if isinstance(b, Set) else _DIFFERENT
    if is_record(a):
        return compare_dicts(fields_of(a), fields_of(b), depth + 1) if type(a) is type(b) else _DIFFERENT
    if type(a) is type(b):
        return _IDENTICAL if a == b else _DIFFERENT
    if isinstance(a, str) and isinstance(b, str):   # a StrEnum and its text
        return _EQUAL if str(a) == str(b) else _DIFFERENT
    return _DIFFERENT


cdef int compare_sets(object a, object b, int depth) except -1:
    """Element by element: a set takes True for 1, and no NaN for another."""
    if depth > _DEPTH_MAX:
        raise too_deep()
    cdef dict others = {item: item for item in b if item == item}
    cdef int found = _IDENTICAL if type(a) is type(b) else _EQUAL, how
    if len(a) != len(b) or len([item for item in a if item != item]) != len(b) - len(others):
        return _DIFFERENT
    for item in a:
        if item != item:
            continue
        if item not in others:
            return _DIFFERENT
        how = compare(item, others[item], depth)
        if how == _DIFFERENT:
            return _DIFFERENT
        found = min(found, how)
    return found


def too_deep():
    """The error for a value of more levels than DEPTH_MAX."""
    return LimitError(f"value nests deeper than {DEPTH_MAX} levels; flatten it, or see whether it contains itself")


def check_key(key):
    """Raises UsageError unless a map's key is text."""
    if not isinstance(key, str):
        raise UsageError(f"map key {key!r} is of type {type(key).__name__}; keys are text")


def is_record(value):
    """Whether a value has declared fields: a Struct or a dataclass instance."""
    return isinstance(value, Struct) or (is_dataclass(value) and not isinstance(value, type))


def fields_of(record):
    """The fields of a record, in the order of their declaration."""
    if isinstance(record, Struct):
        return {name: getattr(record, name) for name in record.__struct_fields__}
    return {field.name: getattr(record, field.name) for field in dataclass_fields(record)}


include "merge_plain.pxi"


# --- what differs ----------------------------------------------------------------------------------------------------

def differences(a, b, missing, lists):
    """(path, before, after) of every place in which two values differ, maps and records by key.

    missing  stands for what is not there
    lists    (a, b, path, found) is asked about lists that differ
    """
    cdef list found = []
    differ(a, b, (), 0, missing, lists, found)
    return found


def differences_below(a, b, tuple path not None, missing, lists, list found not None):
    """Like `differences` of two values that stand at a path."""
    differ(a, b, path, len(path), missing, lists, found)


cdef int differ(object a, object b, tuple path, int depth, object missing, object lists, list found) except -1:
    if a is b:
        return 0
    if depth > _DEPTH_MAX:
        raise too_deep()
    if type(a) is dict and type(b) is dict:
        return differ_dicts(a, b, path, depth, missing, lists, found)
    if type(a) is list and type(b) is list:
        if compare_lists(a, b, depth) == _DIFFERENT:
            lists(a, b, path, found)
        return 0
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return differ_dicts(dict(a), dict(b), path, depth, missing, lists, found)
    if type(a) is type(b) and is_record(a):
        return differ_dicts(fields_of(a), fields_of(b), path, depth, missing, lists, found)
    if compare(a, b, depth) == _DIFFERENT:
        found.append((path, a, b))
    return 0


cdef int differ_dicts(dict a, dict b, tuple path, int depth, object missing, object lists, list found) except -1:
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *other
    cdef Py_ssize_t at = 0, common = 0
    cdef type kind
    while PyDict_Next(a, &at, &key, &value):
        other = PyDict_GetItemWithError(b, <object>key)
        common += other is not NULL
        if other is value:
            continue
        if type(<object>key) is not str:
            check_key(<object>key)
        if other is NULL:
            found.append((path + (<object>key,), <object>value, missing))
            continue
        kind = type(<object>value)
        if (kind is str or kind is int) and kind is type(<object>other):
            if not PyObject_RichCompareBool(<object>value, <object>other, Py_EQ):
                found.append((path + (<object>key,), <object>value, <object>other))
            continue
        differ(<object>value, <object>other, path + (<object>key,), depth + 1, missing, lists, found)
    if common == PyDict_Size(b):
        return 0
    at = 0
    while PyDict_Next(b, &at, &key, &other):
        if PyDict_GetItemWithError(a, <object>key) is NULL:
            if type(<object>key) is not str:
                check_key(<object>key)
            found.append((path + (<object>key,), missing, <object>other))
    return 0


include "merge_documents.pxi"


# --- sequences -------------------------------------------------------------------------------------------------------

cdef enum:
    SEQUENCE_MAX = 1 << 20


def hunks(a not None, b not None):
    """(a start, a count, b start, b count) of what has to change in a list of numbers to make another, in ascending
    order; no two touch. See csrc/text.h."""
    cdef Py_ssize_t na = len(a), nb = len(b), i, j, i0, j0
    cdef dict numbers = {}
    cdef size_t distinct, size
    cdef uint8_t *room
    cdef uint32_t *left
    cdef uint32_t *right
    cdef uint8_t *gone
    cdef uint8_t *come
    cdef list found = []
    if na > SEQUENCE_MAX or nb > SEQUENCE_MAX:
        raise LimitError(f"sequences have {na} and {nb} elements; the limit is {SEQUENCE_MAX}: take them in parts")
    # Numbers of our own: those of the caller may be far apart, and tables are as long as the greatest is great.
    ours = [numbers.setdefault(item, len(numbers)) for item in a]
    theirs = [numbers.setdefault(item, len(numbers)) for item in b]
    distinct = len(numbers)
    size = nova_text_scratch_bytes(na, nb, distinct)
    room = <uint8_t *>PyMem_Malloc(size + 4 * (na + nb) + na + nb + 2)
    if room == NULL:
        raise MemoryError
    try:
        left = <uint32_t *>(room + size)
        right = left + na
        gone = <uint8_t *>(right + nb)
        come = gone + na + 1
        for i in range(na):
            left[i] = ours[i]
        for j in range(nb):
            right[j] = theirs[j]
        with nogil:
            nova_text_diff(left, na, right, nb, distinct, gone, come, room)
        i = j = 0
        while i < na or j < nb:
            if not gone[i] and not come[j]:
                i += 1
                j += 1
                continue
            i0, j0 = i, j
            while gone[i]:
                i += 1
            while come[j]:
                j += 1
            found.append((i0, i - i0, j0, j - j0))
    finally:
        PyMem_Free(room)
    return found
