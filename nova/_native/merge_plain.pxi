# Plain maps, merged side by side; a part of merge.pyx.

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
