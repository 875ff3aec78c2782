"""Delta-state CRDTs over one kind of state. `nova.crdt` holds the faces of this module.

Every type keeps live *rows* (container, leaf, dot, stamp, payload) under one causal context, as ORSWOT does (Bieniusa
et al. 2012): every write and every remove takes a dot; it drops rows that its writer saw and may add one. A row that
one side lacks although its context covers the dot was dropped there. So there are no tombstones, and the state is a
function of the context: who knows the same events holds the same rows, whatever way they came.

A delta is the sender's whole context, the rows that the asker's context lacks, and, as spans, the dots of the rows that
it has (`kept`). Applying one is therefore exactly a merge with the sender, and a delta that was made for somebody who
knew more is refused.
"""

import msgspec

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t

from nova._native.digest cimport hash_bytes, hash_row, nova_digest, nova_digest_add, nova_digest_sub
from nova._native.vclock cimport (
    CausalContext, Spans, as_actor, as_context, context_parts, malformed, nova_left, nova_put_number, nova_reader,
    nova_reader_of, nova_span, nova_store64le, nova_take, nova_take_byte, nova_take_number, nova_take_size, number,
    read_context, seal, unseal,
)

from nova.errors import CorruptionError, LimitError, UnavailableError, UsageError

DEF U64_MAX = 0xFFFFFFFFFFFFFFFF
DEF KEY_BYTES_MAX = 65536
DEF DEPTH_MAX = 32

cdef enum:
    G_COUNTER = 1
    PN_COUNTER = 2
    G_SET = 3
    LWW_REGISTER = 4
    MV_REGISTER = 5
    OR_SET = 6
    LWW_MAP = 7
    OR_MAP = 8
    TWO_P_SET = 9
    ENABLE_WINS_FLAG = 10
    BOUNDED_COUNTER = 11
    NESTED_MAX = 10                     # what may live in a map: all up to here
    TYPES_MAX = 11

cdef bytes STATE_MAGIC = b"NVR\x01"
cdef bytes DELTA_MAGIC = b"NVD\x01"
cdef object encode = msgspec.msgpack.Encoder(order="deterministic").encode
cdef object decode = msgspec.msgpack.Decoder().decode
cdef str WHAT = "CRDT state"


# --- values ----------------------------------------------------------------------------------------------------------

cdef bytes pack(object value):
    """A value in its one spelling."""
    cdef bytes out
    cdef int failed
    try:
        out = encode(value)
    except (TypeError, ValueError, OverflowError, UnicodeError, NotImplementedError) as error:
        raise UsageError(f"a value of type {type(value).__name__} cannot be kept ({error}); use JSON-like values and bytes") \
            from None
    except RecursionError:
        raise LimitError(f"a value of type {type(value).__name__} is nested too deep or holds itself; the limit is 64") \
            from None
    failed = nova_value_check(<uint8_t *>PyBytes_AS_STRING(out), PyBytes_GET_SIZE(out), True)    # `out` is still ours
    if failed == -2:
        raise LimitError(f"a value of type {type(value).__name__} is nested too deep; the limit is 64 levels")
    if failed < 0:
        raise UsageError(f"a value of type {type(value).__name__} cannot be kept; use JSON-like values and bytes")
    return out


cdef int check_value(bytes packed) except -1:
    """Is this the one spelling of a value?"""
    cdef int found = nova_value_check(<uint8_t *>PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed), False)
    if found >= 0:
        try:
            value = decode(packed)
            if found == 0 or encode(value) == packed:
                return 0
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
            pass
    raise malformed(WHAT, f"a value of {len(packed)} bytes is not canonical MessagePack")


cdef object frozen(object value):
    """An element of a set as a hashable value: lists become tuples."""
    return tuple([frozen(item) for item in value]) if type(value) is list else value


cdef bytes pack_element(object value):
    cdef bytes out = pack(value)
    try:
        hash(frozen(decode(out)))
    except TypeError:
        raise UsageError(f"an element of type {type(value).__name__} holds a mapping; elements must be hashable") from None
    return out


cdef bytes pack_key(object key):
    if not isinstance(key, str):
        raise UsageError(f"key {key!r} is a {type(key).__name__}; keys are str")
    try:
        out = key.encode()
    except UnicodeEncodeError:
        raise UsageError(f"key {key!r} holds a lone surrogate; use valid Unicode") from None
    if len(out) > KEY_BYTES_MAX:
        raise LimitError(f"a key of {len(out)} bytes; the limit is {KEY_BYTES_MAX}; use a shorter one")
    return out


cdef uint64_t as_amount(object amount) except 0:
    if isinstance(amount, bool) or not isinstance(amount, int):
        raise UsageError(f"amount {amount!r} is a {type(amount).__name__}; amounts are int")
    if not 1 <= amount <= U64_MAX:
        raise UsageError(f"amount {amount} is out of range; it is from 1 to 2**64 - 1 (a PNCounter also has decrement)")
    return amount


cdef uint64_t as_stamp(object stamp) except? U64_MAX:
    if isinstance(stamp, bool) or not isinstance(stamp, int) or not 0 <= stamp <= U64_MAX:
        raise UsageError(f"stamp {stamp!r} is none; pass an int from HybridLogicalClock.tick")
    return stamp


cdef uint64_t plus(uint64_t total, uint64_t amount, str actor) except? U64_MAX:
    if amount > U64_MAX - total:
        raise UsageError(f"the total of actor {actor!r}, {total}, plus {amount} is over 2**64 - 1; go on under a new actor")
    return total + amount


# --- state -----------------------------------------------------------------------------------------------------------

cdef class Row:
    pass


cdef class Node:
    pass


cdef Node make_node(Node parent, int type, str key):
    cdef Node node = Node.__new__(Node)
    cdef bytes encoded
    node.parent, node.type, node.key = parent, type, key
    node.leaves, node.kids = {}, {}
    if parent is None:
        node.path, node.steps = b"", ()
    else:
        encoded = key.encode()
        node.path = parent.path + bytes([type]) + number(len(encoded)) + encoded
        node.steps = parent.steps + ((type, key),)
    return node


cdef tuple wire_order(Row row):
    return row.node.path, row.leaf, row.actor, row.count


def _row_order(Row row not None):
    """Rows in the order of the canonical bytes."""
    return wire_order(row)


def _rank(Row row not None):
    """The last writer wins: by stamp, then actor, then bytes, then count (the same actor wrote the same again)."""
    return row.stamp, row.actor, row.payload, row.count


cdef class Store:
    def __cinit__(self, int type, actor=None):
        self.actor = None
        if actor is not None:
            if not isinstance(actor, str) or not actor:
                raise UsageError(f"actor {actor!r} is none; an actor is a str, new at every start: name~incarnation")
            self.actor = as_actor(actor)
        self.context = CausalContext()
        self.root = make_node(None, type, "")
        self.live = {}
        self.hashes = {}
        self.total.lo = self.total.hi = 0

    cdef Node find(self, tuple steps):
        cdef Node node = self.root
        for step in steps:
            found = node.kids.get(step)
            if found is None:
                return None
            node = <Node>found
        return node

    cdef Node reach(self, tuple steps):
        cdef Node node = self.root, kid
        for step in steps:
            found = node.kids.get(step)
            if found is None:
                kid = make_node(node, step[0], step[1])
                node.kids[step] = kid
                node = kid
            else:
                node = <Node>found
        return node

    cdef nova_digest hash(self, Row row) except *:
        cdef bytes name
        cdef uint64_t actor_hash
        found = self.hashes.get(row.actor)
        if found is None:
            name = row.actor.encode()
            found = hash_bytes(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), 0).lo
            self.hashes[row.actor] = found
        actor_hash = found
        return hash_row(PyBytes_AS_STRING(row.node.path), PyBytes_GET_SIZE(row.node.path),
                        PyBytes_AS_STRING(row.leaf), PyBytes_GET_SIZE(row.leaf), actor_hash, row.count, row.stamp,
                        PyBytes_AS_STRING(row.payload), PyBytes_GET_SIZE(row.payload))

    cdef int put(self, Node node, bytes leaf, str actor, uint64_t count, uint64_t stamp, bytes payload) except -1:
        cdef Row row = Row.__new__(Row)
        row.node, row.leaf, row.actor, row.count, row.stamp, row.payload = node, leaf, actor, count, stamp, payload
        rows = node.leaves.get(leaf)
        if rows is None:
            node.leaves[leaf] = [row]
        else:
            (<list>rows).append(row)
        dots = self.live.get(actor)
        if dots is None:
            self.live[actor] = {count: row}
        else:
            (<dict>dots)[count] = row
        self.total = nova_digest_add(self.total, self.hash(row))
        return 0

    cdef int drop(self, Row row) except -1:
        cdef Node node = row.node
        cdef list rows = <list>node.leaves[row.leaf]
        if len(rows) == 1:
            del node.leaves[row.leaf]
        else:
            rows.remove(row)
        dots = <dict>self.live[row.actor]
        del dots[row.count]
        if not dots:
            del self.live[row.actor]
        self.total = nova_digest_sub(self.total, self.hash(row))
        while node.parent is not None and not node.leaves and not node.kids:
            del node.parent.kids[(node.type, node.key)]
            node = node.parent
        return 0

    cdef uint64_t take_dot(self) except 0:
        cdef uint64_t last
        if self.actor is None:
            raise UsageError("this replica has no actor and only reads; write on one that was made with actor=")
        last = self.context.last(self.actor)
        if last == U64_MAX:
            raise UsageError(f"count of actor {self.actor!r} is 2**64 - 1, the last one; go on under a new actor")
        self.context.learn(self.actor, last + 1, last + 1)
        return last + 1

    cdef int write(self, tuple steps, bytes leaf, uint64_t stamp, bytes payload, list superseded) except -1:
        """One event: drop rows that the writer saw, then, unless payload is None, add one."""
        cdef uint64_t count = self.take_dot()
        for row in superseded:
            self.drop(<Row>row)
        if payload is not None:
            self.put(self.reach(steps), leaf, self.actor, count, stamp, payload)
        return 0

    cdef int join(self, CausalContext context, CausalContext kept, list rows) except -1:
        """Merge with a sender who knows `context` and holds `rows` and the rows of the dots `kept`. All or nothing."""
        cdef Row row, mine
        cdef Spans spans, cut
        cdef Node node
        cdef uint64_t count
        cdef size_t i
        if self.actor is not None and context.last(self.actor) > self.context.last(self.actor):
            raise CorruptionError(
                f"actor {self.actor!r} wrote event {context.last(self.actor)} elsewhere, this replica is at "
                f"{self.context.last(self.actor)}: two replicas share an actor; give each start, copy and restore its own")
        if self.context.covers_c(context):
            return 0
        cdef dict present = {}
        cdef list fresh = [], gone = []
        for item in rows:
            row = <Row>item
            present[(row.actor, row.count)] = row
            if not self.context.has(row.actor, row.count):
                fresh.append(row)
                if row.node.type == LWW_REGISTER or row.node.type == LWW_MAP:
                    node = self.find(row.node.steps)
                    for other in (node.leaves.get(row.leaf, ()) if node is not None else ()):
                        mine = <Row>other
                        if mine.stamp == row.stamp and mine.actor == row.actor and mine.payload != row.payload:
                            raise CorruptionError(
                                f"actor {row.actor!r} gave stamp {row.stamp} to two values; stamps of one actor must rise")
            else:
                found = (<dict>self.live.get(row.actor, {})).get(row.count)
                if found is not None:
                    mine = <Row>found
                    if (mine.node.path != row.node.path or mine.leaf != row.leaf or mine.stamp != row.stamp
                            or mine.payload != row.payload):
                        raise CorruptionError(
                            f"event {row.count} of actor {row.actor!r} is two different writes: two replicas share an "
                            "actor; give each start, copy and restore its own")
        # Ours that the sender knows and no longer holds.
        for actor, dots in self.live.items():
            spans_found = context.actors.get(actor)
            if spans_found is None:
                continue
            spans = <Spans>spans_found
            for number_, item in (<dict>dots).items():
                count = number_
                if spans.has(count) and (actor, count) not in present and not kept.has(actor, count):
                    gone.append(item)
        for item in gone:
            self.drop(<Row>item)
        for item in fresh:
            row = <Row>item
            node = self.reach(row.node.steps)
            self.put(node, row.leaf, row.actor, row.count, row.stamp, row.payload)
            if node.type == LWW_REGISTER:
                self._settle(node)
        self.context.join(context)
        return 0

    def _settle(self, Node node not None):
        """Of the rows of a last-writer-wins register only the winner lives."""
        cdef list rows = list(node.leaves[b""])
        if len(rows) > 1:
            rows.sort(key=_rank)
            rows.pop()
            for row in rows:
                self.drop(<Row>row)

    def _all_rows(self):
        cdef list out = []
        for dots in self.live.values():
            out.extend((<dict>dots).values())
        return out


cdef bytes row_bytes(Row row, dict actors):
    return b"".join([
        number(len(row.node.steps)), row.node.path, number(len(row.leaf)), row.leaf, number(actors[row.actor]),
        number(row.count), number(row.stamp), number(len(row.payload)), row.payload,
    ])


cdef bytes take_bytes(nova_reader *r):
    cdef uint64_t n = nova_take_number(r)
    cdef const uint8_t *at = nova_take(r, n)
    if at == NULL:
        raise malformed(WHAT, "it is cut")
    return PyBytes_FromStringAndSize(<const char *>at, n)


cdef str take_key(bytes raw):
    if len(raw) > KEY_BYTES_MAX:
        raise malformed(WHAT, f"a key of {len(raw)} bytes, the limit is {KEY_BYTES_MAX}")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise malformed(WHAT, "a key is not UTF-8") from None


cdef int check_row(Row row, set seen) except -1:
    """What the type of the row's container allows."""
    cdef nova_reader r
    cdef int type = row.node.type
    cdef int numbers
    cdef uint64_t sum = 0
    if type == G_COUNTER or type == PN_COUNTER:
        r = nova_reader_of(PyBytes_AS_STRING(row.payload), PyBytes_GET_SIZE(row.payload))
        for numbers in range(type):                     # one number, or plus and minus
            sum |= nova_take_number(&r)
        if not r.ok or nova_left(&r) or not sum:
            raise malformed(WHAT, "the total of a counter is no total")
        if (row.node.path, row.actor) in seen:
            raise malformed(WHAT, f"actor {row.actor!r} has two totals in one counter")
        seen.add((row.node.path, row.actor))
    elif type == G_SET or type == OR_SET:
        check_value(row.leaf)
        try:
            hash(frozen(decode(row.leaf)))
        except TypeError:
            raise malformed(WHAT, "an element of a set holds a mapping") from None
        if row.payload:
            raise malformed(WHAT, "an element of a set has a value")
    elif type == TWO_P_SET:
        check_value(row.leaf)
        try:
            hash(frozen(decode(row.leaf)))
        except TypeError:
            raise malformed(WHAT, "an element of a set holds a mapping") from None
        if row.payload and row.payload != REMOVED:
            raise malformed(WHAT, "an element of a two-phase set is neither added nor removed")
    elif type == ENABLE_WINS_FLAG:
        if row.payload:
            raise malformed(WHAT, "a flag has a value")
    elif type == BOUNDED_COUNTER:
        check_value(row.payload)
        check_account(row.payload, row.actor)
        if row.actor in seen:
            raise malformed(WHAT, f"actor {row.actor!r} has two accounts in one counter")
        seen.add(row.actor)
    elif type == OR_MAP:
        raise malformed(WHAT, "a map holds a value without a type")
    else:
        check_value(row.payload)
    if type == LWW_MAP:
        take_key(row.leaf)
    elif row.leaf and type != G_SET and type != OR_SET and type != TWO_P_SET:
        raise malformed(WHAT, f"type {type} has no keys")
    if type == LWW_REGISTER:
        if row.node.path in seen:
            raise malformed(WHAT, "a last-writer-wins register has two values")
        seen.add(row.node.path)
    elif type == LWW_MAP:
        if (row.node.path, row.leaf, row.stamp, row.actor) in seen:
            raise malformed(WHAT, f"actor {row.actor!r} gave stamp {row.stamp} to two values of one key")
        seen.add((row.node.path, row.leaf, row.stamp, row.actor))
    elif row.stamp:
        raise malformed(WHAT, f"type {type} has no stamps")
    return 0


cdef list read_rows(nova_reader *r, Store store, CausalContext context, CausalContext kept):
    """Rows as detached objects: their nodes hang below `store`'s root type, but not in it."""
    cdef uint64_t n = nova_take_size(r, 6), i, j, depth, index
    cdef list rows = [], actors = sorted(context.actors)
    cdef dict nodes = {(): make_node(None, store.root.type, "")}
    cdef set seen = set(), dots = set()
    cdef Node node
    cdef Row row
    cdef int type
    cdef object last = None
    for i in range(n):
        depth = nova_take_number(r)
        if not r.ok or depth > DEPTH_MAX:
            raise malformed(WHAT, f"a row is cut or nested deeper than {DEPTH_MAX} maps")
        node = <Node>nodes[()]
        for j in range(depth):
            type = nova_take_byte(r)
            key = take_key(take_bytes(r))
            if node.type != OR_MAP or not G_COUNTER <= type <= NESTED_MAX:
                raise malformed(WHAT, f"type {type} inside type {node.type}")
            steps = node.steps + ((type, key),)
            found = nodes.get(steps)
            if found is None:
                found = nodes[steps] = make_node(node, type, key)
            node = <Node>found
        row = Row.__new__(Row)
        row.node = node
        row.leaf = take_bytes(r)
        index = nova_take_number(r)
        row.count = nova_take_number(r)
        row.stamp = nova_take_number(r)
        row.payload = take_bytes(r)
        if not r.ok or index >= <uint64_t>len(actors):
            raise malformed(WHAT, "a row is cut or names an unknown actor")
        row.actor = actors[index]
        if not context.has(row.actor, row.count) or (kept is not None and kept.has(row.actor, row.count)):
            raise malformed(WHAT, f"its context and event {row.count} of actor {row.actor!r} do not fit")
        order = wire_order(row)
        if last is not None and order <= last:
            raise malformed(WHAT, "its rows are out of order")
        last = order
        if (row.actor, row.count) in dots:
            raise malformed(WHAT, f"event {row.count} of actor {row.actor!r} has two rows")
        dots.add((row.actor, row.count))
        check_row(row, seen)
        rows.append(row)
    if not r.ok or nova_left(r):
        raise malformed(WHAT, "its length is wrong")
    return rows


cdef list rows_parts(list rows, CausalContext context):
    cdef dict actors = {actor: i for i, actor in enumerate(sorted(context.actors))}
    rows.sort(key=_row_order)
    return [number(len(rows))] + [row_bytes(<Row>row, actors) for row in rows]


cdef dict TYPES = {}                    # class -> type number
cdef list CLASSES = [None] * (TYPES_MAX + 1)          # and back


cdef class Replica:
    """What all types share: merge, deltas, bytes, digest. A nested one writes through the map that holds it."""

    def __init__(self, actor=None):
        found = TYPES.get(type(self))
        if found is None:
            for base in type(self).__mro__:
                found = TYPES.get(base, found)
            if found is None:
                raise UsageError(f"{type(self).__name__} is no CRDT type; use one of nova.crdt")
        if self.store is not None:
            raise UsageError(f"this {type(self).__name__} is made already; make a new one")
        self.store = Store(found, actor)
        self.steps = ()

    cdef list rows(self, bytes leaf):
        """The live rows at one leaf; a list of the caller's own."""
        cdef Node node = self.store.find(self.steps)
        return list(node.leaves.get(leaf, ())) if node is not None else []

    cdef int check_root(self) except -1:
        if self.steps:
            raise UsageError(f"this {type(self).__name__} lives in a map under {self.steps[len(self.steps) - 1][1]!r}; call this on the map")
        return 0

    @property
    def actor(self):
        """Who writes here; None: nobody, this replica reads and merges."""
        return self.store.actor

    @property
    def context(self):
        """A copy of the events known here; `delta_since` on another replica takes it."""
        return self.store.context.clone()

    def merge(self, Replica other not None):
        """Learn all that `other` knows; returns self. Linear in what both hold, and at once if nothing is new.

        raises   UsageError for another type; CorruptionError if one event is two writes; the state is then as before
        """
        self.check_root()
        other.check_root()
        if other.store.root.type != self.store.root.type:
            raise UsageError(f"a {type(other).__name__} cannot merge into a {type(self).__name__}; merge equal types")
        if other.store is not self.store and not self.store.context.covers_c(other.store.context):
            self.store.join(other.store.context, NOTHING, other.store._all_rows())
        return self

    def delta_since(self, context=None):
        """What somebody who knows `context` (a context, clock or mapping) lacks, as bytes for `apply_delta`."""
        self.check_root()
        cdef CausalContext known = as_context(context)
        cdef CausalContext kept = CausalContext()
        cdef list rows = []
        cdef Row row
        for dots in self.store.live.values():
            for item in sorted(dots):
                row = <Row>dots[item]
                if known.has(row.actor, row.count):
                    kept.learn(row.actor, row.count, row.count)
                else:
                    rows.append(row)
        return seal(DELTA_MAGIC, [bytes([self.store.root.type]), *context_parts(self.store.context),
                                  *context_parts(kept), *rows_parts(rows, self.store.context)])

    def apply_delta(self, data):
        """Learn what a delta holds, exactly as by merging with its sender; twice or late does no harm. Returns self.

        raises   CorruptionError for bytes that are no delta of this type; UsageError if it was made for a context
                 that knew more than this replica; the state is then as before
        """
        cdef nova_reader r
        cdef CausalContext context, kept
        cdef list rows
        self.check_root()
        unseal(data, DELTA_MAGIC, "CRDT delta", &r)
        check_type(&r, self.store.root.type)
        context = read_context(&r)
        kept = read_context(&r)
        if not context.covers_c(kept):
            raise malformed("CRDT delta", "it keeps events that its context does not know")
        rows = read_rows(&r, self.store, context, kept)
        if not self.store.context.covers_c(kept):
            raise UsageError("this delta was made for a replica that knew more; ask its sender for delta_since(ours.context)")
        self.store.join(context, kept, rows)
        return self

    def to_bytes(self):
        """The state in canonical bytes: replicas that know the same events give the same."""
        self.check_root()
        return seal(STATE_MAGIC, [bytes([self.store.root.type]), *context_parts(self.store.context),
                                  *rows_parts(self.store._all_rows(), self.store.context)])

    @classmethod
    def from_bytes(cls, data, *, actor=None):
        """Read what `to_bytes` wrote.

        actor    who goes on writing here; it must be a new one, because somebody else may hold what the old one wrote
                 since; without it the replica reads and merges only
        raises   CorruptionError for anything that is no state of this type
        """
        cdef nova_reader r
        cdef Replica out = cls(actor)
        cdef CausalContext context
        cdef list rows
        unseal(data, STATE_MAGIC, WHAT, &r)
        check_type(&r, out.store.root.type)
        context = read_context(&r)
        rows = read_rows(&r, out.store, context, None)
        out._adopt(context, rows)
        return out

    def _adopt(self, CausalContext context not None, list rows not None):
        if self.store.actor is not None and self.store.actor in context.actors:
            raise UsageError(
                f"actor {self.store.actor!r} already wrote here; restore and fork under a new one, as name~incarnation")
        self.store.join(context, NOTHING, rows)

    def fork(self, actor):
        """A replica that goes its own way under a new actor (None: it only reads and merges)."""
        self.check_root()
        cdef Replica out = type(self)(actor)
        out._adopt(self.store.context, self.store._all_rows())
        return out

    def digest(self):
        """16 bytes, equal exactly if the states are. The rows' part is kept up by every write; the rest is O(actors)."""
        cdef bytes body
        cdef char raw[16]
        cdef nova_digest d
        self.check_root()
        body = b"".join(context_parts(self.store.context))
        d = nova_digest_add(self.store.total, hash_bytes(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body),
                                                         self.store.root.type))
        nova_store64le(raw, d.lo)
        nova_store64le(raw + 8, d.hi)
        return PyBytes_FromStringAndSize(raw, 16)

    def __eq__(self, other):
        if not isinstance(other, Replica):
            return NotImplemented
        if self.steps or (<Replica>other).steps:
            return self is other
        return self.to_bytes() == other.to_bytes()

    __hash__ = None

    def __reduce__(self):
        self.check_root()
        return type(self).from_bytes, (self.to_bytes(),)

    def __repr__(self):
        return f"{type(self).__name__}(actor={self.store.actor!r}, value={self.value!r})"


cdef CausalContext NOTHING = CausalContext()


cdef int check_type(nova_reader *r, int type) except -1:
    cdef int found = nova_take_byte(r)
    if found != type:
        raise CorruptionError(f"bytes of CRDT type {found}, expected {type}; read them with the class that wrote them")
    return 0


# --- counters --------------------------------------------------------------------------------------------------------

cdef int totals(bytes payload, int type, uint64_t *plus_, uint64_t *minus) except -1:
    cdef nova_reader r = nova_reader_of(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
    plus_[0] = nova_take_number(&r)
    minus[0] = nova_take_number(&r) if type == PN_COUNTER else 0
    return 0


cdef int count_on(Replica self, int type, uint64_t more, uint64_t less) except -1:
    """Replace our own total by a new one."""
    cdef uint64_t up = 0, down = 0
    cdef list own = []
    for row in self.rows(b""):
        if (<Row>row).actor == self.store.actor:
            own.append(row)
            totals((<Row>row).payload, type, &up, &down)
    up = plus(up, more, self.store.actor)
    down = plus(down, less, self.store.actor)
    return self.store.write(self.steps, b"", 0, number(up) + number(down) if type == PN_COUNTER else number(up), own)


cdef class GCounter(Replica):
    """A counter that only grows: a total per actor, the value is their sum."""

    def increment(self, amount=1):
        """Count on by 1 to 2**64 - 1. A total of an actor over 64 bits is refused, never wrapped."""
        count_on(self, G_COUNTER, as_amount(amount), 0)

    @property
    def value(self):
        cdef uint64_t up, down
        out = 0
        for row in self.rows(b""):
            totals((<Row>row).payload, G_COUNTER, &up, &down)
            out += up
        return out


cdef class PNCounter(Replica):
    """A counter that goes both ways: two totals per actor.

    In a map, removing its key drops the totals that were seen; an actor that counts on meanwhile keeps its whole total.
    """

    def increment(self, amount=1):
        """Count up by 1 to 2**64 - 1."""
        count_on(self, PN_COUNTER, as_amount(amount), 0)

    def decrement(self, amount=1):
        """Count down by 1 to 2**64 - 1."""
        count_on(self, PN_COUNTER, 0, as_amount(amount))

    @property
    def value(self):
        cdef uint64_t up, down
        out = 0
        for row in self.rows(b""):
            totals((<Row>row).payload, PN_COUNTER, &up, &down)
            out = out + up - down
        return out


# --- registers -------------------------------------------------------------------------------------------------------

cdef object winner(list rows):
    return max(rows, key=_rank) if rows else None


cdef bint write_last(Replica self, bytes leaf, object value, object stamp) except -1:
    """A last-writer-wins write: it drops the rows it outranks, and is itself dropped if one outranks it."""
    cdef bytes payload = pack(value)
    cdef uint64_t at = as_stamp(stamp)
    cdef list rows = self.rows(leaf), beaten = []
    cdef Row row
    cdef tuple mine = (at, self.store.actor or "", payload, U64_MAX)
    for item in rows:
        row = <Row>item
        if row.stamp == at and row.actor == self.store.actor and row.payload != payload:
            raise UsageError(f"stamp {at} of actor {row.actor!r} has another value already; take a new one from the clock")
        if _rank(row) < mine:
            beaten.append(row)
    self.store.write(self.steps, leaf, at, payload if len(beaten) == len(rows) else None, beaten)
    return len(beaten) == len(rows)


cdef class LWWRegister(Replica):
    """One value: the write with the greatest (stamp, actor, bytes) stays."""

    def set(self, value, stamp):
        """Write a value at a stamp of a HybridLogicalClock. False: the present value has a greater stamp and stays."""
        return write_last(self, b"", value, stamp)

    @property
    def value(self):
        """The value, None if there is none."""
        row = winner(self.rows(b""))
        return None if row is None else decode((<Row>row).payload)

    @property
    def stamp(self):
        """The stamp of the value, 0 if there is none."""
        row = winner(self.rows(b""))
        return 0 if row is None else (<Row>row).stamp


cdef class MVRegister(Replica):
    """Every value that no later write has seen: a write replaces exactly what its writer read."""

    def set(self, value):
        """Write a value over all that are here now."""
        self.store.write(self.steps, b"", 0, pack(value), self.rows(b""))

    @property
    def value(self):
        """The concurrent values, equal ones once, in order of their bytes."""
        return [decode(packed) for packed in sorted({(<Row>row).payload for row in self.rows(b"")})]


# --- sets ------------------------------------------------------------------------------------------------------------

cdef class SetReplica(Replica):
    """Elements are scalars or nested lists of them (given back as tuples); 1, 1.0 and True are three elements."""

    def __contains__(self, element):
        cdef Node node = self.store.find(self.steps)
        return node is not None and pack_element(element) in node.leaves

    def __len__(self):
        cdef Node node = self.store.find(self.steps)
        return len(node.leaves) if node is not None else 0

    def __iter__(self):
        cdef Node node = self.store.find(self.steps)
        return iter([frozen(decode(leaf)) for leaf in sorted(node.leaves)] if node is not None else [])

    @property
    def value(self):
        """A frozenset. Python takes 1, 1.0 and True for one; iterate to see each."""
        return frozenset(self)


cdef class GSet(SetReplica):
    """A set that only grows."""

    def add(self, element):
        """Add an element; nothing happens if it is here."""
        cdef bytes leaf = pack_element(element)
        if not self.rows(leaf):
            self.store.write(self.steps, leaf, 0, b"", [])


cdef class ORSet(SetReplica):
    """A set where a remove takes exactly the adds that it has seen, so a concurrent add wins."""

    def add(self, element):
        """Add an element, again if it is here: so it outlives a concurrent remove."""
        cdef bytes leaf = pack_element(element)
        self.store.write(self.steps, leaf, 0, b"", self.rows(leaf))

    def remove(self, element):
        """Remove an element. False: it is not here, nothing happened."""
        cdef list rows = self.rows(pack_element(element))
        if rows:
            self.store.write(self.steps, b"", 0, None, rows)
        return bool(rows)

    def clear(self):
        """Remove all elements that are here, as one event."""
        cdef list rows = below(self.store.find(self.steps))
        if rows:
            self.store.write(self.steps, b"", 0, None, rows)


cdef bytes REMOVED = b"\x01"


cdef bint is_removed(list rows):
    for row in rows:
        if (<Row>row).payload:
            return True
    return False


cdef class TwoPSet(SetReplica):
    """A set where a removed element never comes back, on any replica (2P-Set; Shapiro et al. 2011).

    A removal stays as a mark of its element for good, so it beats adds made at the same time, and later.
    """

    def add(self, element):
        """Add an element; nothing happens if it is here. False: it was removed, and stays so."""
        cdef bytes leaf = pack_element(element)
        cdef list rows = self.rows(leaf)
        if not rows:
            self.store.write(self.steps, leaf, 0, b"", [])
        return not is_removed(rows)

    def remove(self, element):
        """Remove an element for good. False: it is not here, nothing happened."""
        cdef bytes leaf = pack_element(element)
        cdef list rows = self.rows(leaf)
        if not rows or is_removed(rows):
            return False
        self.store.write(self.steps, leaf, 0, REMOVED, rows)
        return True

    def __contains__(self, element):
        cdef list rows = self.rows(pack_element(element))
        return bool(rows) and not is_removed(rows)

    def __len__(self):
        cdef Node node = self.store.find(self.steps)
        return sum([not is_removed(<list>rows) for rows in node.leaves.values()]) if node is not None else 0

    def __iter__(self):
        cdef Node node = self.store.find(self.steps)
        if node is None:
            return iter([])
        return iter([frozen(decode(leaf)) for leaf in sorted(node.leaves) if not is_removed(<list>node.leaves[leaf])])


cdef class EnableWinsFlag(Replica):
    """On or off; of an enable and a disable that did not see each other, the enable wins."""

    def enable(self):
        """Switch on, again if it is on: so it outlives a concurrent disable."""
        self.store.write(self.steps, b"", 0, b"", self.rows(b""))

    def disable(self):
        """Switch off what is seen. False: it is off, nothing happened."""
        cdef list rows = self.rows(b"")
        if rows:
            self.store.write(self.steps, b"", 0, None, rows)
        return bool(rows)

    @property
    def value(self):
        return bool(self.rows(b""))

    def __bool__(self):
        return self.value


# --- bounded counters ------------------------------------------------------------------------------------------------

cdef int check_account(bytes payload, str actor) except -1:
    """[added, taken, {to: given}]: what one actor did, all of it positive."""
    account = decode(payload)
    if (type(account) is not list or len(account) != 3 or type(account[2]) is not dict
            or type(account[0]) is not int or type(account[1]) is not int or account[0] < 0 or account[1] < 0
            or not all([type(to) is str and to and to != actor and type(given) is int and given > 0
                        for to, given in (<dict>account[2]).items()])):
        raise malformed(WHAT, f"the account of actor {actor!r} is no account")
    return 0


cdef class BoundedCounter(Replica):
    """A counter that never goes below 0, however replicas are cut off (escrow; Balegas et al. 2015).

    Each actor holds rights: what it added, plus what others gave it, less what it took and gave away. It takes only
    what it has rights for, so no replica needs to ask another, and the sum over all cannot be overdrawn.
    """

    cdef dict accounts(self):
        return {(<Row>row).actor: decode((<Row>row).payload) for row in self.rows(b"")}

    cdef int settle(self, list account) except -1:
        """Replace our own account by a new one."""
        for total in (account[0], account[1], *account[2].values()):
            if total > U64_MAX:
                raise UsageError(f"a total of actor {self.store.actor!r} would be over 2**64 - 1; go on under a new actor")
        self.store.write(self.steps, b"", 0, pack(account),
                         [row for row in self.rows(b"") if (<Row>row).actor == self.store.actor])
        return 0

    def rights_of(self, actor):
        """How much an actor may take, as far as is known here."""
        cdef dict accounts = self.accounts()
        added, taken, given = accounts.get(actor, (0, 0, {}))
        return added - taken - sum(given.values()) + sum([other[2].get(actor, 0) for other in accounts.values()])

    @property
    def rights(self):
        """How much this replica may take now."""
        return self.rights_of(self.store.actor) if self.store.actor is not None else 0

    cdef list spend(self, object amount, str what):
        """Our account, after rights for the amount were found."""
        cdef object more = as_amount(amount), rights = self.rights
        if self.store.actor is not None and more > rights:
            raise UnavailableError(
                f"{what} {amount} needs as many rights; actor {self.store.actor!r} holds {rights}: "
                "wait for a transfer from a replica that has some")
        return list(self.accounts().get(self.store.actor, (0, 0, {})))

    def increment(self, amount=1):
        """Add 1 to 2**64 - 1, and hold the rights for it."""
        cdef object more = as_amount(amount)
        account = self.accounts().get(self.store.actor, [0, 0, {}])
        account[0] += more
        self.settle(account)

    def decrement(self, amount=1):
        """Take from the counter. raises UnavailableError, which names the rights held here, if they are too few."""
        account = self.spend(amount, "decrement by")
        account[1] += amount
        self.settle(account)

    def transfer(self, to, amount):
        """Give rights to another actor, who can use them when it has heard. raises UnavailableError as decrement does."""
        if not isinstance(to, str) or not to or to == self.store.actor:
            raise UsageError(f"rights cannot go to {to!r}; name another actor")
        to = as_actor(to)
        account = self.spend(amount, "transfer of")
        account[2] = {**account[2], to: account[2].get(to, 0) + amount}
        self.settle(account)

    @property
    def value(self):
        return sum([added - taken for added, taken, _ in self.accounts().values()])


# --- maps ------------------------------------------------------------------------------------------------------------

cdef list below(Node node):
    """All rows in a container and in those nested in it."""
    cdef list out = []
    if node is not None:
        for rows in node.leaves.values():
            out.extend(rows)
        for kid in node.kids.values():
            out.extend(below(<Node>kid))
    return out


cdef class LWWMap(Replica):
    """Keys to values; of concurrent writes to a key the greatest (stamp, actor, bytes) shows, and a remove takes what it saw."""

    def set(self, key, value, stamp):
        """Write a key at a stamp of a HybridLogicalClock. False: its present value has a greater stamp and stays."""
        return write_last(self, pack_key(key), value, stamp)

    def remove(self, key):
        """Remove a key; a concurrent write to it stays. False: it is not here, nothing happened."""
        cdef list rows = self.rows(pack_key(key))
        if rows:
            self.store.write(self.steps, b"", 0, None, rows)
        return bool(rows)

    def get(self, key, default=None):
        """The value under a key."""
        row = winner(self.rows(pack_key(key)))
        return default if row is None else decode((<Row>row).payload)

    def stamp(self, key):
        """The stamp of the value under a key, 0 if there is none."""
        row = winner(self.rows(pack_key(key)))
        return 0 if row is None else (<Row>row).stamp

    def __contains__(self, key):
        return bool(self.rows(pack_key(key)))

    def __len__(self):
        cdef Node node = self.store.find(self.steps)
        return len(node.leaves) if node is not None else 0

    def __iter__(self):
        cdef Node node = self.store.find(self.steps)
        return iter([key.decode() for key in sorted(node.leaves)] if node is not None else [])

    @property
    def value(self):
        """A dict in order of its keys."""
        cdef Node node = self.store.find(self.steps)
        if node is None:
            return {}
        return {key.decode(): decode((<Row>winner(node.leaves[key])).payload) for key in sorted(node.leaves)}


cdef class ORMap(Replica):
    """Keys to CRDTs of any type, maps among them, all under one context.

    The type is part of the key. A key is there while something lives in it; removing it drops what was seen, so a
    concurrent update keeps the key, without the part that was seen.
    """

    def at(self, key, kind):
        """The CRDT of class `kind` under a key, empty if there is none; writing to it writes here."""
        cdef Replica out
        found = TYPES.get(kind)
        if found is None:
            raise UsageError(f"{kind!r} is no CRDT class; use one of nova.crdt")
        if found > NESTED_MAX:
            raise UsageError(f"a {kind.__name__} cannot live in a map: removing its key would forge rights; keep it beside the map")
        pack_key(key)
        if len(self.steps) == DEPTH_MAX:
            raise LimitError(f"{key!r} would be nested in {DEPTH_MAX + 1} maps; the limit is {DEPTH_MAX}; use a flatter shape")
        out = kind.__new__(kind)
        out.store = self.store
        out.steps = self.steps + ((found, str.__str__(key)),)
        return out

    def types(self, key):
        """The classes that live under a key, in their fixed order."""
        cdef Node node = self.store.find(self.steps)
        pack_key(key)
        return [CLASSES[type] for type in range(1, NESTED_MAX + 1) if node is not None and (type, key) in node.kids]

    def remove(self, key):
        """Remove what is seen under a key, of all types. False: there is nothing."""
        cdef Node node = self.store.find(self.steps)
        cdef list rows = []
        for kind in self.types(key):
            rows.extend(below(<Node>node.kids[(TYPES[kind], key)]))
        if rows:
            self.store.write(self.steps, b"", 0, None, rows)
        return bool(rows)

    def __contains__(self, key):
        return bool(self.types(key))

    def __iter__(self):
        cdef Node node = self.store.find(self.steps)
        return iter(sorted({key for _, key in node.kids}) if node is not None else [])

    def __len__(self):
        cdef Node node = self.store.find(self.steps)
        return len({key for _, key in node.kids}) if node is not None else 0

    @property
    def value(self):
        """A dict in order of its keys; of several types under one key the first of `types` shows."""
        return {key: self.at(key, self.types(key)[0]).value for key in self}


for _number, _class in enumerate((GCounter, PNCounter, GSet, LWWRegister, MVRegister, ORSet, LWWMap, ORMap, TwoPSet,
                                  EnableWinsFlag, BoundedCounter), 1):
    TYPES[_class] = _number
    CLASSES[_number] = _class
