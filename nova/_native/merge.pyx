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


# --- plain maps ------------------------------------------------------------------------------------------------------

cdef dict NONE_SPECIAL = {}
cdef frozenset PLAIN = frozenset((str, int, float, bool, NONE, dict, list))


cdef inline bint is_word(object value) noexcept:
    """Whether a value is of a type of which two are equal if Python says so."""
    return type(value) is str or type(value) is int


cdef class MapMerge:
    """Merges maps key by key: what only one side changed here, what both did by asking.

    A subclass has `value(base, local, remote, node, path, depth)`, which is asked.

    nothing  the node of what is not declared
    missing  stands for what is not there
    changes  gets (path, side, before, after, note) of what only one side changed; a path is (parent, segment) or ()

    `conflicts`, `lost` and `policy` are for the subclass: attributes of its own would cost it a call and a dict.
    """

    cdef object nothing, missing
    cdef readonly list changes
    cdef list clashes, losses       # None: none yet
    cdef public object policy
    cdef int deepest

    def __init__(self, nothing, missing, policy=None):
        self.begin(nothing, missing)
        self.policy = policy

    cdef int begin(self, object nothing, object missing) except -1:
        self.nothing = nothing
        self.missing = missing
        self.changes = []
        return 0

    @property
    def conflicts(self):
        if self.clashes is None:
            self.clashes = []
        return self.clashes

    @property
    def lost(self):
        if self.losses is None:
            self.losses = []
        return self.losses

    def maps(self, dict base not None, dict local not None, dict remote not None, dict declared not None, path,
              int depth):
        """The merged map. `declared` has the nodes of keys for which `value` is asked even if only one side changed
        them. Cost: one look-up a key in each map."""
        return self.merged(base, local, remote, declared, path, depth)

    cdef dict merged(self, dict base, dict local, dict remote, dict declared, object path, int depth):
        if depth > _DEPTH_MAX:
            raise too_deep()
        cdef dict out = PyDict_Copy(base)
        cdef PyObject *key
        cdef PyObject *b
        cdef PyObject *l
        cdef PyObject *r
        cdef Py_ssize_t at = 0, at_local = 0, at_remote = 0, mine = 0, yours = 0
        while PyDict_Next(base, &at, &key, &b):
            l = beside(local, &at_local, key)
            r = beside(remote, &at_remote, key)
            mine += l is not NULL
            yours += r is not NULL
            if l is not b or r is not b:
                self.settle(out, <object>key, <object>b, self.held(l), self.held(r), declared, path, depth)
        if mine != PyDict_Size(local):
            at = 0
            while PyDict_Next(local, &at, &key, &l):
                if PyDict_GetItemWithError(base, <object>key) is NULL:
                    r = PyDict_GetItemWithError(remote, <object>key)
                    self.settle(out, <object>key, self.missing, <object>l, self.held(r), declared, path, depth)
        if yours != PyDict_Size(remote):
            at = 0
            while PyDict_Next(remote, &at, &key, &r):
                if PyDict_GetItemWithError(base, <object>key) is NULL and PyDict_GetItemWithError(local, <object>key) is NULL:
                    self.settle(out, <object>key, self.missing, self.missing, <object>r, declared, path, depth)
        return out

    cdef inline object held(self, PyObject *value):
        return self.missing if value is NULL else <object>value

    cdef int settle(self, dict out, object key, object base, object local, object remote, dict declared, object path,
                    int depth) except -1:
        """What becomes of one key that is not the same object on all sides. `out` still has the base's value."""
        cdef object found
        cdef bint kept, stayed
        if type(key) is not str:
            check_key(key)
        if declared and (found := declared.get(key)) is not None:
            return self.put(out, key, base, self.value(base, local, remote, found, (path, escaped(key)), depth + 1))
        if is_word(base) and is_word(local) and is_word(remote):
            kept = base is local or (type(base) is type(local) and PyObject_RichCompareBool(base, local, Py_EQ))
            stayed = base is remote or (type(base) is type(remote) and PyObject_RichCompareBool(base, remote, Py_EQ))
            return self.taken(out, key, base, local, remote, kept, stayed, path, depth)
        # Maps are entered even if one side kept them: a record in them may have a monotone field. The test for a dict
        # keeps records themselves away: one may hold a counter, to which equal changes add up.
        if type(local) is dict and type(remote) is dict and (base is self.missing or type(base) is dict):
            out[key] = self.merged(
                {} if base is self.missing else base, local, remote, {}, (path, escaped(key)), depth + 1
            )
            return 0
        kept = compare(base, local, depth) != _DIFFERENT
        stayed = compare(base, remote, depth) != _DIFFERENT
        return self.taken(out, key, base, local, remote, kept, stayed, path, depth)

    cdef int taken(self, dict out, object key, object base, object local, object remote, bint kept, bint stayed,
                   object path, int depth) except -1:
        """Take what one side changed, and ask about what both did."""
        cdef object found
        if kept and stayed:
            return 0
        if (kept or stayed) and (type(local) in PLAIN or not is_record(local) or not is_record(remote)):
            found = remote if kept else local
            self.changes.append(((path, escaped(key)), "remote" if kept else "local", base, found, ""))
            return self.put(out, key, base, found)
        found = self.value(base, local, remote, self.nothing, (path, escaped(key)), depth + 1)
        return self.put(out, key, base, found)

    def documents(self, Document base not None, Document local not None, Document remote not None,
                  dict declared not None, path, int depth):
        """The same for documents; what is asked about is asked as plain values. Cost: follows the edits."""
        return self.merged_documents(base, local, remote, declared, path, depth)

    cdef Document merged_documents(self, Document base, Document local, Document remote, dict declared, object path,
                                   int depth):
        if depth > _DEPTH_MAX:
            raise too_deep()
        cdef dict special = NONE_SPECIAL
        if declared:
            special = {key: node for key, node in declared.items() if node.monotone}
        cdef object root = self.nodes(base.root, local.root, remote.root, declared, special, path, 0, depth)
        cdef Leaf before, mine, yours, found
        for key, node in special.items():       # that one side kept it settles nothing here
            before, mine, yours = sought(base.root, key), sought(local.root, key), sought(remote.root, key)
            found = self.asked(key, before, mine, yours, node, path, depth)
            if found is not None:
                root = with_leaf(root, found, 0)
            elif (before := sought(root, key)) is not None:
                root = without_leaf(root, before, 0)
        if root is local.root:
            return local
        cdef int levels = max(base.levels, local.levels, remote.levels)
        return Document.over(root, max(levels, self.deepest - depth))

    cdef object nodes(self, object b, object l, object r, dict declared, dict special, object path, int shift,
                      int depth):
        """Three nodes that hold the same stretch of keys."""
        cdef uint32_t bits, bit, left = 0
        cdef list out
        cdef bint as_local = type(l) is Branch
        if known_same(b, l):
            if not known_same(b, r):
                self.note(b, r, "remote", special, path, shift)
            return r
        if known_same(b, r):
            self.note(b, l, "local", special, path, shift)
            return l
        if type(b) is Branch and type(l) is Branch and type(r) is Branch and (<Branch>b).bits:
            if (<Branch>b).bits == (<Branch>l).bits == (<Branch>r).bits:
                return self.alike(b, l, r, declared, special, path, shift, depth)
        if apart(b, l, r, shift):
            return self.leaves(b, l, r, declared, special, path, shift, depth)
        bits = bits_of(b, shift) | bits_of(l, shift) | bits_of(r, shift)
        out = []
        while bits:
            bit = bits & -bits
            bits ^= bit
            before, mine, yours = child(b, bit, shift), child(l, bit, shift), child(r, bit, shift)
            if mine is before and yours is before:
                found = before
            else:
                found = self.nodes(before, mine, yours, declared, special, path, shift + BITS, depth)
                as_local = as_local and found is mine
            if found is not None:
                left |= bit
                out.append(found)
        return l if as_local and left == (<Branch>l).bits else closed(left, tuple(out), shift)

    cdef object alike(self, Branch b, Branch l, Branch r, dict declared, dict special, object path, int shift,
                      int depth):
        """Branches with the same places taken, as they are where values were only replaced."""
        cdef tuple before = b.slots, mine = l.slots, yours = r.slots
        cdef list out = None
        cdef PyObject *was
        cdef Py_ssize_t i
        cdef uint32_t bits = l.bits, left = 0
        for i in range(len(mine)):
            was = PyTuple_GET_ITEM(before, i)
            if was is PyTuple_GET_ITEM(mine, i) and was is PyTuple_GET_ITEM(yours, i):
                continue
            found = self.nodes(before[i], mine[i], yours[i], declared, special, path, shift + BITS, depth)
            if found is not mine[i]:
                if out is None:
                    out = list(mine)
                out[i] = found
        if out is None:
            return l
        if None in out:
            for found in out:
                if found is not None:
                    left |= bits & -bits
                bits &= bits - 1
            return closed(left, tuple([found for found in out if found is not None]), shift)
        return closed(bits, tuple(out), shift)

    cdef object leaves(self, object b, object l, object r, dict declared, dict special, object path, int shift,
                      int depth):
        cdef list out = []
        cdef Leaf found
        if shift < SHIFT_END:       # leaves of one key
            found = b if b is not None else l if l is not None else r
            return self.settled(found.key, b, l, r, declared, special, path, depth)
        before, mine, yours = by_key(b), by_key(l), by_key(r)
        for key in {**before, **mine, **yours}:
            found = self.settled(key, before.get(key), mine.get(key), yours.get(key), declared, special, path, depth)
            if found is not None:
                out.append(found)
        return packed(out, shift) if out else None

    cdef Leaf settled(self, str key, Leaf before, Leaf mine, Leaf yours, dict declared, dict special, object path,
                      int depth):
        cdef bint kept, stayed
        if special and key in special:
            return before
        kept = mine is before or (mine is not None and before is not None and same_value(before.value, mine.value))
        stayed = yours is before or (yours is not None and before is not None and same_value(before.value, yours.value))
        if kept and stayed:
            return before
        if kept or stayed:
            found = yours if kept else mine
            self.noted(key, before, found, "remote" if kept else "local", path)
            return found
        return self.asked(key, before, mine, yours, declared.get(key, self.nothing), path, depth)

    cdef Leaf asked(self, str key, Leaf before, Leaf mine, Leaf yours, object node, object path, int depth):
        """The leaf of a key that both sides changed, or that has to be asked about anyway."""
        cdef object b = self.missing if before is None else before.value
        cdef object l = self.missing if mine is None else mine.value
        cdef object r = self.missing if yours is None else yours.value
        cdef object found
        if type(l) is Document and type(r) is Document and (type(b) is Document or before is None) and node.plain:
            found = self.merged_documents(
                Document() if before is None else b, l, r, node.children, (path, escaped(key)), depth + 1
            )
            return leaf_of(key, found)
        found = self.value(
            copied(b, depth), copied(l, depth), copied(r, depth), node, (path, escaped(key)), depth + 1
        )
        if found is self.missing:
            return None
        found = frozen(found, depth + 1)
        self.deepest = max(self.deepest, depth + 1 + levels_of(found))
        return leaf_of(key, found)

    cdef int noted(self, str key, Leaf before, Leaf after, str side, object path) except -1:
        self.changes.append((
            (path, escaped(key)),
            side,
            self.missing if before is None else before.value,
            self.missing if after is None else after.value,
            "",
        ))
        return 0

    cdef int note(self, object b, object side_node, str side, dict special, object path, int shift) except -1:
        """Note what one side changed in a stretch of keys that the other left alone."""
        cdef list pairs = []
        cdef Py_ssize_t i
        leaves_apart(b, side_node, shift, pairs)
        for i in range(0, len(pairs), 2):
            self.note_leaf(pairs[i], pairs[i + 1], side, special, path)
        return 0

    cdef int note_leaf(self, Leaf one, Leaf other, str side, dict special, object path) except -1:
        cdef str key = other.key if one is None else one.key
        if one is other or (special and key in special):
            return 0
        if one is None or other is None or not same_value(one.value, other.value):
            self.noted(key, one, other, side, path)
        return 0

    cdef int put(self, dict out, object key, object base, object value) except -1:
        if value is not self.missing:
            out[key] = value
        elif base is not self.missing:
            del out[key]
        return 0


def merge_plain(type kind not None, nothing, missing, dict base not None, dict local not None, dict remote not None,
                result, tell):
    """What a merge of `kind`, a MapMerge without a policy, makes of three maps of which nothing is declared.

    result  makes the outcome of a clean one: (value, conflicts, lost, changes, preexisting, proposal)
    tell    makes any other: (the merge, value, base)
    """
    cdef MapMerge work = nova_made(kind, ())
    work.begin(nothing, missing)
    value = work.merged(base, local, remote, NONE_SPECIAL, (), 0)
    if work.clashes is None and work.losses is None:
        return result(value, (), (), work.changes, (), value)
    return tell(work, value, base)


cdef str escaped(str key):
    if "~" in key or "/" in key:
        return key.replace("~", "~0").replace("/", "~1")
    return key


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


# --- documents -------------------------------------------------------------------------------------------------------
# A hash array mapped trie (Bagwell 2001): 32 ways a level, chosen by five bits of the key's hash. Nodes never change;
# an edit copies those on its way, and all others are shared with the document that it was made from. Two documents are
# compared only where their nodes are different objects, so that a difference or merge costs what the edits cost.

cdef enum:
    BITS = 5
    SHIFT_END = 65          # past the last bit of a hash: a bucket, in which keys are told apart one by one


cdef class Leaf:
    """A key and its value: a Document, or something without keys, which nobody changes."""

    cdef str key
    cdef object value
    cdef uint64_t hash
    cdef nova_digest sum
    cdef bint summed


cdef class Branch:
    """Up to 32 nodes, packed; `bits` says which. A bucket has no bits."""

    cdef uint32_t bits
    cdef tuple slots
    cdef nova_digest sum
    cdef bint summed


cdef uint64_t hash_mask = ~<uint64_t>0


def _blur(mask):
    """For tests: use only these bits of hashes from now on, so that keys collide."""
    global hash_mask
    hash_mask = mask


cdef inline uint64_t hash_of(str key) except? 0:
    return <uint64_t>hash(key) & hash_mask


cdef Leaf leaf_of(str key, object value):
    cdef Leaf leaf = Leaf.__new__(Leaf)
    leaf.key = key
    leaf.value = value
    leaf.hash = hash_of(key)
    return leaf


cdef Branch branch_of(uint32_t bits, tuple slots):
    cdef Branch branch = Branch.__new__(Branch)
    branch.bits = bits
    branch.slots = slots
    return branch


cdef Branch EMPTY = branch_of(0, ())


cdef inline uint32_t bit_at(uint64_t key_hash, int shift) noexcept nogil:
    return <uint32_t>1 << ((key_hash >> shift) & 31)


cdef inline Py_ssize_t place(uint32_t bits, uint32_t bit) noexcept nogil:
    return __builtin_popcount(bits & (bit - 1))


cdef object packed(list leaves, int shift):
    """A node of these leaves: a leaf if it is one, a branch if there are more or it is the top."""
    cdef Leaf leaf
    cdef list groups, found
    cdef uint32_t bits = 0
    cdef int i
    if len(leaves) == 1 and shift:
        return leaves[0]
    if shift >= SHIFT_END:
        return branch_of(0, tuple(leaves))
    groups = [None] * 32
    for leaf in leaves:
        i = (leaf.hash >> shift) & 31
        if groups[i] is None:
            groups[i] = [leaf]
        else:
            (<list>groups[i]).append(leaf)
    found = []
    for i in range(32):
        if groups[i] is not None:
            bits |= <uint32_t>1 << i
            found.append(packed(groups[i], shift + BITS))
    return branch_of(bits, tuple(found))


cdef Leaf sought(object node, str key):
    cdef Branch branch
    cdef Leaf leaf
    cdef uint32_t bit
    cdef uint64_t key_hash = hash_of(key)
    cdef int shift = 0
    while type(node) is Branch:
        branch = node
        if not branch.bits:
            for leaf in branch.slots:
                if leaf.key == key:
                    return leaf
            return None
        bit = bit_at(key_hash, shift)
        if not branch.bits & bit:
            return None
        node = branch.slots[place(branch.bits, bit)]
        shift += BITS
    leaf = node
    return leaf if leaf.hash == key_hash and leaf.key == key else None


cdef tuple spliced(tuple slots, Py_ssize_t at, Py_ssize_t gone, tuple come):
    return slots[:at] + come + slots[at + gone:]


cdef object with_leaf(object node, Leaf leaf, int shift):
    cdef Branch branch
    cdef Leaf other
    cdef uint32_t bit
    cdef Py_ssize_t at
    if type(node) is Leaf:
        other = node
        if other.hash == leaf.hash and other.key == leaf.key:
            return leaf
        return packed([other, leaf], shift)
    branch = node
    if shift >= SHIFT_END:
        for at in range(len(branch.slots)):
            if (<Leaf>branch.slots[at]).key == leaf.key:
                return branch_of(0, spliced(branch.slots, at, 1, (leaf,)))
        return branch_of(0, branch.slots + (leaf,))
    bit = bit_at(leaf.hash, shift)
    at = place(branch.bits, bit)
    if not branch.bits & bit:
        return branch_of(branch.bits | bit, spliced(branch.slots, at, 0, (leaf,)))
    return branch_of(branch.bits, spliced(branch.slots, at, 1, (with_leaf(branch.slots[at], leaf, shift + BITS),)))


cdef object without_leaf(object node, Leaf leaf, int shift):
    """The node without a leaf that is in it; None if it is empty then."""
    cdef Branch branch
    cdef uint32_t bit, bits
    cdef Py_ssize_t at
    cdef tuple slots
    if type(node) is Leaf:
        return None
    branch = node
    bits = branch.bits
    if shift >= SHIFT_END:
        slots = tuple([each for each in branch.slots if each is not leaf])
    else:
        bit = bit_at(leaf.hash, shift)
        at = place(bits, bit)
        left = without_leaf(branch.slots[at], leaf, shift + BITS)
        if left is None:
            bits &= ~bit
        slots = spliced(branch.slots, at, 1, () if left is None else (left,))
    return closed(bits, slots, shift)


cdef object closed(uint32_t bits, tuple slots, int shift):
    """A branch in its one form: below the top none is empty, and none has a single leaf for its only child."""
    if not slots:
        return None if shift else EMPTY
    if shift and len(slots) == 1 and type(slots[0]) is Leaf:
        return slots[0]
    return branch_of(bits, slots)


cdef int gather(object node, list out) except -1:
    if type(node) is Leaf:
        out.append(node)
    elif node is not None:
        for each in (<Branch>node).slots:
            gather(each, out)
    return 0


cdef object frozen(object value, int depth):
    """A value as a document holds it: maps as documents, lists copied, so that nobody can change it behind our back."""
    if type(value) is str or type(value) is int or type(value) is Document:
        return value
    if depth > _DEPTH_MAX:
        raise too_deep()
    if isinstance(value, Mapping):
        return document_of(value, depth)
    if isinstance(value, (list, tuple)):
        return type(value)([copied(item, depth + 1) for item in value])
    return value


cdef object copied(object value, int depth):
    """A plain copy: documents as maps, containers new."""
    if depth > _DEPTH_MAX:
        raise too_deep()
    if type(value) is Document:
        return (<Document>value).plain(depth)
    if isinstance(value, Mapping):
        return {key: copied(item, depth + 1) for key, item in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)([copied(item, depth + 1) for item in value])
    return value


cdef Document document_of(object value, int depth):
    cdef list leaves = []
    cdef int levels = 0
    for key, item in value.items():
        if type(key) is not str:
            check_key(key)
        item = frozen(item, depth + 1)
        levels = max(levels, levels_of(item))
        leaves.append(leaf_of(str(key), item))
    return Document.over(packed(leaves, 0) if leaves else EMPTY, levels + 1)


cdef int levels_of(object value):
    return (<Document>value).levels if type(value) is Document else 0


cdef class Document:
    """A map of maps that never changes: an edit makes a new one and shares the rest. A path is a tuple of keys.

    Maps in it are documents too; lists, records and scalars are leaves. `value` gives plain values back, with the keys
    of maps in order. Two documents are equal if their values are; the comparison is cheap where they share parts, and
    where it was made before, since every part keeps its digest.
    """

    cdef Branch root
    cdef int levels         # at least as many as there are; never more than DEPTH_MAX, so that recursion has an end

    def __init__(self, value=None):
        if value is not None and not isinstance(value, (Mapping, Document)):
            raise UsageError(f"document is made of a {type(value).__name__}; give it a map")
        cdef Document made = value if type(value) is Document else document_of({} if value is None else value, 0)
        self.root, self.levels = made.root, made.levels

    @staticmethod
    cdef Document over(Branch root, int levels):
        if levels > _DEPTH_MAX:
            raise too_deep()
        cdef Document made = Document.__new__(Document)
        made.root = root
        made.levels = levels
        return made

    @property
    def value(self):
        """The document as plain maps and lists, all of them new. Cost: O(size)."""
        return self.plain(0)

    cdef dict plain(self, int depth):
        cdef list leaves = []
        cdef Leaf leaf
        if depth > _DEPTH_MAX:
            raise too_deep()
        gather(self.root, leaves)
        leaves.sort(key=key_of)
        return {leaf.key: copied(leaf.value, depth + 1) for leaf in leaves}

    def __len__(self):
        cdef list leaves = []
        gather(self.root, leaves)
        return len(leaves)

    def __iter__(self):
        cdef list leaves = []
        gather(self.root, leaves)
        return iter(sorted([key_of(leaf) for leaf in leaves]))

    def __contains__(self, key):
        return type(key) is str and sought(self.root, key) is not None

    def get(self, keys, default=None):
        """What stands at a path of keys: a Document, or a leaf, which is yours to read only."""
        cdef Leaf leaf
        cdef object here = self
        for key in keys:
            if type(here) is not Document or type(key) is not str:
                return default
            leaf = sought((<Document>here).root, key)
            if leaf is None:
                return default
            here = leaf.value
        return here

    def set(self, keys, value):
        """A document with another value at a path of keys; the map that holds it must be there. Cost: O(depth)."""
        keys = tuple(keys)
        if not keys:
            raise UsageError("path has 0 keys; a document as a whole is made, not set")
        return self.changed(keys, 0, frozen(value, len(keys)))

    def remove(self, keys):
        """A document without what stands at a path of keys."""
        keys = tuple(keys)
        if not keys:
            raise UsageError("path has 0 keys; a document cannot be removed from itself")
        return self.changed(keys, 0, GONE)

    cdef Document changed(self, tuple keys, Py_ssize_t at, object value):
        cdef str key = keys[at]
        cdef Leaf leaf = sought(self.root, key)
        cdef object root
        if at < len(keys) - 1:
            if leaf is None or type(leaf.value) is not Document:
                raise UsageError(f"there is no map at {list(keys[:at + 1])!r}; make it first")
            value = (<Document>leaf.value).changed(keys, at + 1, value)
        elif value is GONE:
            if leaf is None:
                raise UsageError(f"there is nothing at {list(keys)!r}")
            return Document.over(without_leaf(self.root, leaf, 0), self.levels)
        return Document.over(with_leaf(self.root, leaf_of(key, value), 0), max(self.levels, levels_of(value) + 1))

    def __eq__(self, other):
        if type(other) is not Document:
            return NotImplemented
        cdef Branch mine = self.root, yours = (<Document>other).root
        return mine is yours or same_sum(sum_of(mine), sum_of(yours))

    def __hash__(self):
        return <Py_hash_t>(sum_of(self.root).lo >> 1)

    def __repr__(self):
        return f"Document({self.value!r})"

    def differences(self, Document other not None, missing):
        """(path of keys, before, after) of every leaf in which two documents differ. Cost: follows the edits."""
        cdef list found = []
        differ_nodes(self.root, other.root, (), missing, found)
        return found


cdef object GONE = object()


def key_of(Leaf leaf not None):
    return leaf.key


# --- documents: digests ----------------------------------------------------------------------------------------------

cdef uint64_t SEED = <uint64_t>hash("nova")     # differs in every process: nobody outside can aim at a collision


cdef inline bint same_sum(nova_digest a, nova_digest b) noexcept nogil:
    return a.lo == b.lo and a.hi == b.hi


cdef nova_digest sum_of(object node) except *:
    """The digest of a node, from now on kept in it: the sum of those of its leaves, whatever the shape of the tree."""
    cdef Branch branch
    cdef Leaf leaf
    cdef nova_digest total, more
    total.lo = total.hi = 0
    if type(node) is Leaf:
        leaf = node
        if not leaf.summed:
            leaf.sum = digest_of(["m", leaf.key, leaf.value], 0)
            leaf.summed = True
        return leaf.sum
    branch = node
    if not branch.summed:
        for each in branch.slots:
            more = sum_of(each)
            total.lo += more.lo
            total.hi += more.hi + (total.lo < more.lo)
        branch.sum = total
        branch.summed = True
    return branch.sum


cdef nova_digest digest_of(object value, int depth) except *:
    """A digest that equal values have in common."""
    cdef nova_digest total, more
    cdef bytes said
    total.lo = total.hi = 0
    if depth > _DEPTH_MAX:
        raise too_deep()
    if type(value) is Document:
        total = sum_of((<Document>value).root)
        said = b"d%d,%d" % (total.lo, total.hi)
    elif value is None or type(value) is bool:
        said = b"c%d" % (2 if value is None else value)
    elif isinstance(value, str):
        said = b"s" + value.encode("utf-8", "surrogatepass")
    elif type(value) is int:
        said = b"i%x" % value
    elif type(value) is float:
        said = b"i%x" % int(value) if value == value and value - value == 0 and value == int(value) else b"f%r" % value
    elif isinstance(value, bytes):
        said = b"b" + value
    elif isinstance(value, (list, tuple)):
        parts = []
        for item in value:
            more = digest_of(item, depth + 1)
            parts.append(b"%d,%d" % (more.lo, more.hi))
        said = b"l" + b";".join(parts)
    elif isinstance(value, (Mapping, Set)) or is_record(value):
        if isinstance(value, Set):
            items = [["s", item] for item in value]
        else:
            fields = value if isinstance(value, Mapping) else fields_of(value)
            items = [["m", key, item] for key, item in fields.items()]
        for item in items:
            more = digest_of(item, depth + 1)
            total.lo += more.lo
            total.hi += more.hi + (total.lo < more.lo)
        kind = b"r" + type(value).__qualname__.encode() if is_record(value) else b"d"
        said = b"%b%d,%d" % (kind, total.lo, total.hi)
    else:
        said = f"o{type(value).__qualname__}:{value!r}".encode("utf-8", "surrogatepass")
    return hash_bytes(PyBytes_AS_STRING(said), PyBytes_GET_SIZE(said), SEED)


# --- documents: what differs -----------------------------------------------------------------------------------------

cdef inline bint known_same(object a, object b):
    """Whether two nodes are known to hold the same without looking into them."""
    if a is b:
        return True
    if type(a) is Branch and type(b) is Branch:
        return (<Branch>a).summed and (<Branch>b).summed and same_sum((<Branch>a).sum, (<Branch>b).sum)
    return False


cdef object child(object node, uint32_t bit, int shift):
    """The part of a node under one bit; a leaf stands for a branch that has only it."""
    cdef Branch branch
    if node is None:
        return None
    if type(node) is Leaf:
        return node if bit_at((<Leaf>node).hash, shift) == bit else None
    branch = node
    return branch.slots[place(branch.bits, bit)] if branch.bits & bit else None


cdef uint32_t bits_of(object node, int shift):
    if node is None:
        return 0
    return bit_at((<Leaf>node).hash, shift) if type(node) is Leaf else (<Branch>node).bits


cdef dict by_key(object node):
    cdef list leaves = []
    gather(node, leaves)
    return {key_of(leaf): leaf for leaf in leaves}


cdef inline bint alike_bits(Branch a, Branch b):
    """Whether two branches have the same places taken, and are no buckets."""
    return a.bits == b.bits != 0


cdef bint apart(object a, object b, object c, int shift):
    """Whether nodes are to be looked at key by key, since there is nothing left to divide them by."""
    if shift >= SHIFT_END:
        return True
    if type(a) is Branch or type(b) is Branch or type(c) is Branch:
        return False
    return one_key(a, b) and one_key(b, c) and one_key(a, c)


cdef inline bint one_key(object a, object b):
    """Whether two leaves, if they are two, have one key."""
    return a is None or b is None or (<Leaf>a).hash == (<Leaf>b).hash and (<Leaf>a).key == (<Leaf>b).key


cdef int leaves_apart(object a, object b, int shift, list pairs) except -1:
    """Append the leaves, two for each key, in which two nodes are not known to hold the same; None where there is none.
    Cost: follows the edits."""
    cdef uint32_t bits, bit
    cdef Py_ssize_t i
    if known_same(a, b):
        return 0
    if type(a) is Branch and type(b) is Branch and alike_bits(a, b):
        for i in range(len((<Branch>a).slots)):
            if PyTuple_GET_ITEM((<Branch>a).slots, i) is not PyTuple_GET_ITEM((<Branch>b).slots, i):
                leaves_apart((<Branch>a).slots[i], (<Branch>b).slots[i], shift + BITS, pairs)
        return 0
    if not apart(a, b, None, shift):
        bits = bits_of(a, shift) | bits_of(b, shift)
        while bits:
            bit = bits & -bits
            bits ^= bit
            leaves_apart(child(a, bit, shift), child(b, bit, shift), shift + BITS, pairs)
        return 0
    if shift < SHIFT_END:       # leaves of one key
        pairs += [a, b]
        return 0
    mine, yours = by_key(a), by_key(b)
    for key in {**mine, **yours}:
        pairs += [mine.get(key), yours.get(key)]
    return 0


cdef int differ_nodes(object a, object b, tuple path, object missing, list found) except -1:
    cdef list pairs = []
    cdef Leaf one, other
    cdef Py_ssize_t i
    leaves_apart(a, b, 0, pairs)
    for i in range(0, len(pairs), 2):
        one, other = pairs[i], pairs[i + 1]
        if one is other:
            continue
        where = path + ((other if one is None else one).key,)
        if one is not None and other is not None:
            if type(one.value) is Document and type(other.value) is Document:
                differ_nodes((<Document>one.value).root, (<Document>other.value).root, where, missing, found)
                continue
            if same_value(one.value, other.value):
                continue
        found.append((where, missing if one is None else one.value, missing if other is None else other.value))
    return 0


cdef bint same_value(object a, object b) except -1:
    if type(a) is Document or type(b) is Document:
        return type(a) is type(b) and a == b
    return compare(a, b, 0) != _DIFFERENT


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
