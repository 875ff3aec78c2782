# Documents: values that share what did not change, and what differs between two; a part of merge.pyx.

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
