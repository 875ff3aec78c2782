"""Operations on a text, read, checked, transformed and written in one pass. `nova.conflict.ot.text` is their face."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint32_t

from nova.errors import LimitError, UsageError

COMPONENTS_MAX = 1 << 20
LENGTH_MAX = (1 << 31) - 1
DEF COMPONENTS = 1 << 20
DEF LENGTH = (1 << 31) - 1


def show(value):
    """A value for an error message: its representation, cut short, or the name of its type if it is a container."""
    text = type(value).__name__ if isinstance(value, (list, tuple, dict, set)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_left(side):
    """Whether a side is the left one. Raises UsageError if it is neither."""
    if side == "left":
        return True
    if side == "right":
        return False
    raise UsageError(f"side is {show(side)}; it is 'left' or 'right'")


cdef class Pieces:
    """An operation as the kernel takes it, without what is empty, and the component that each piece was."""

    cdef nova_ottext_piece *at
    cdef size_t size
    cdef list components

    def __dealloc__(self):
        PyMem_Free(self.at)


cdef nova_ottext_piece *room_for(size_t n) except NULL:
    cdef nova_ottext_piece *out = <nova_ottext_piece *>PyMem_Malloc((n + 1) * sizeof(nova_ottext_piece))
    if out == NULL:
        raise MemoryError
    return out


cdef object refused(object component, Py_ssize_t index):
    return UsageError(
        f"component {index} is {show(component)}; it is a count to skip, a str to insert, or {{'d': count or str}}"
    )


cdef Py_ssize_t size_of(object component, Py_ssize_t index, uint32_t *kind) except -1:
    """How many code points a component skips, inserts or deletes; at most LENGTH + 1 is told of any number."""
    cdef object size = component
    if isinstance(component, str):
        kind[0] = NOVA_INSERT
        return len(<str>component)
    kind[0] = NOVA_SKIP
    if isinstance(component, dict):
        if len(<dict>component) != 1 or "d" not in component:
            raise refused(component, index)
        kind[0] = NOVA_DELETE
        size = (<dict>component)["d"]
        if isinstance(size, str):
            return len(<str>size)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise refused(component, index)
    return LENGTH + 1 if size > LENGTH else size


cdef Pieces pieces_of(object op):
    cdef Pieces pieces = Pieces.__new__(Pieces)
    cdef Py_ssize_t index, size, total = 0
    cdef uint32_t kind = 0
    cdef nova_ottext_piece *piece
    if not isinstance(op, (list, tuple)):
        raise UsageError(f"a text operation is a list, not {show(op)}")
    if len(op) > COMPONENTS:
        raise LimitError(f"the text operation has {len(op)} components; it may have {COMPONENTS}: split it")
    pieces.components = []
    pieces.at = room_for(len(op))
    pieces.size = 0
    for index, component in enumerate(op):
        size = size_of(component, index, &kind)
        total += size
        if total > LENGTH:
            raise LimitError(f"component {index} ends more than {LENGTH} code points into the text, the most that one has")
        if not size:
            continue
        piece = pieces.at + pieces.size
        piece.kind, piece.source, piece.start, piece.size = kind, <uint32_t>pieces.size, 0, <uint32_t>size
        pieces.components.append(component)
        pieces.size += 1
    return pieces


cdef list written(const nova_ottext_piece *pieces, size_t n, list components):
    """The pieces as an operation in normal form."""
    cdef list out = []
    cdef size_t i = 0, j
    cdef uint32_t kind
    cdef Py_ssize_t size
    cdef bint named
    while i < n:
        kind, size, j = pieces[i].kind, 0, i
        while j < n and pieces[j].kind == kind:
            size += pieces[j].size
            j += 1
        if kind == NOVA_SKIP:
            if j < n:
                out.append(size)
        elif kind == NOVA_INSERT:
            out.append(joined(pieces + i, j - i, components))
        else:
            text = joined(pieces + i, j - i, components)
            out.append({"d": size if text is None else text})
        i = j
    return out


cdef object joined(const nova_ottext_piece *pieces, size_t n, list components):
    """The text of pieces of one kind; None if it is unknown of one of them."""
    cdef list parts = []
    cdef size_t i
    for i in range(n):
        component = components[pieces[i].source]
        text = (<dict>component)["d"] if isinstance(component, dict) else component
        if not isinstance(text, str):
            return None
        if pieces[i].size != len(<str>text):
            text = (<str>text)[pieces[i].start:<Py_ssize_t>pieces[i].start + pieces[i].size]
        parts.append(text)
    return parts[0] if n == 1 else "".join(parts)


def check(op):
    """Raise UsageError or LimitError if `op` is no text operation."""
    pieces_of(op)


def normalize(op):
    """The same operation in normal form."""
    cdef Pieces pieces = pieces_of(op)
    return written(pieces.at, pieces.size, pieces.components)


def transform(op, other, side):
    """`op` for the text that `other` has changed. At equal positions the text of the left side comes first."""
    cdef Pieces first = pieces_of(op), second = pieces_of(other)
    cdef bint left = is_left(side)
    cdef nova_ottext_piece *out = room_for(2 * (first.size + second.size))
    cdef size_t n
    try:
        n = nova_ottext_transform(first.at, first.size, second.at, second.size, left, out)
        return written(out, n, first.components)
    finally:
        PyMem_Free(out)


def compose(a, b):
    """One operation that does what a and then b do."""
    cdef Pieces first = pieces_of(a), second = pieces_of(b)
    cdef nova_ottext_piece *out = room_for(2 * (first.size + second.size))
    cdef size_t n
    try:
        n = nova_ottext_compose(first.at, first.size, second.at, second.size, out)
        return written(out, n, first.components + second.components)
    finally:
        PyMem_Free(out)


def apply(text, op):
    """The text after the operation. Raises UsageError if it is too short, or has not the text that is to be deleted."""
    cdef Pieces pieces
    cdef Py_ssize_t at = 0, end, size
    cdef size_t i
    cdef uint32_t kind
    cdef list parts = []
    if not isinstance(text, str):
        raise UsageError(f"a text operation applies to a str, not {show(text)}")
    pieces = pieces_of(op)
    size = len(<str>text)
    for i in range(pieces.size):
        kind = pieces.at[i].kind
        if kind == NOVA_INSERT:
            parts.append(pieces.components[i])
            continue
        end = at + pieces.at[i].size
        if end > size:
            raise UsageError(f"the operation reaches {end} code points in; the text has {size}: transform it first")
        if kind == NOVA_SKIP:
            parts.append((<str>text)[at:end])
        else:
            gone = (<dict>pieces.components[i])["d"]
            if isinstance(gone, str) and (<str>text)[at:end] != gone:
                raise UsageError(f"{show(gone)} is to go at {at}, where {show(text[at:end])} is: transform it first")
        at = end
    if at < size:
        parts.append((<str>text)[at:])
    return "".join(parts)
