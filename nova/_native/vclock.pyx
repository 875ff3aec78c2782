"""Vector clocks, hybrid logical time and causal contexts. `nova.clock` is the face of this module."""

from collections.abc import Mapping

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from nova._native.digest cimport hash_bytes, nova_digest

from nova.errors import CorruptionError, LimitError, UsageError
from nova.types import Dot, Order


cdef extern from "bytes.h" nogil:
    ctypedef struct nova_reader:
        const uint8_t *at
        const uint8_t *end
        int ok
    nova_reader nova_reader_of(const void *p, size_t n)
    size_t nova_left(const nova_reader *r)
    const uint8_t *nova_take(nova_reader *r, uint64_t n)
    uint8_t nova_take_byte(nova_reader *r)
    uint64_t nova_take_number(nova_reader *r)
    uint64_t nova_take_size(nova_reader *r, size_t each)
    size_t nova_put_number(uint8_t *out, uint64_t value)
    uint64_t nova_load64le(const void *p)
    void nova_store64le(void *p, uint64_t v)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

DEF U64_MAX = 0xFFFFFFFFFFFFFFFF
DEF ACTOR_BYTES_MAX = 1024

cdef tuple ORDERS = tuple(Order)        # indexed by nova_order; Order(n) costs ten times more
cdef bytes CLOCK_MAGIC = b"NVC\x01"
cdef bytes DOTTED_MAGIC = b"NVO\x01"
cdef bytes CONTEXT_MAGIC = b"NVX\x01"
cdef uint64_t CHECK_SEED = 0x4e56


# --- bytes -----------------------------------------------------------------------------------------------------------

cdef bytes number(uint64_t value):
    cdef uint8_t raw[10]
    return PyBytes_FromStringAndSize(<char *>raw, nova_put_number(raw, value))


cdef bytes seal(bytes magic, list parts):
    """Magic, the parts, and 8 bytes of check sum over both."""
    cdef bytes body = magic + b"".join(parts)
    cdef char raw[8]
    nova_store64le(raw, hash_bytes(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), CHECK_SEED).lo)
    return body + PyBytes_FromStringAndSize(raw, 8)


cdef int unseal(object data, bytes magic, str what, nova_reader *r) except -1:
    """Check magic, version and sum of `data` and set a reader on what is between; `data` must outlive it."""
    if type(data) is not bytes:
        raise UsageError(f"a {what} is read from bytes, got {type(data).__name__}; pass what to_bytes returned")
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef const char *at = PyBytes_AS_STRING(data)
    if size < 12 or data[:3] != magic[:3]:
        raise CorruptionError(f"{size} bytes that are no {what}: they must start with {magic[:3]!r}; get them again")
    if data[3] != magic[3]:
        raise CorruptionError(f"a {what} of version {data[3]}; this release reads version {magic[3]}; upgrade it")
    if nova_load64le(at + size - 8) != hash_bytes(at, size - 8, CHECK_SEED).lo:
        raise CorruptionError(f"a {what} of {size} bytes fails its check sum; get it again from its source")
    r[0] = nova_reader_of(at + 4, size - 12)
    return 0


cdef object malformed(str what, str why):
    return CorruptionError(f"malformed {what}: {why}; its writer is broken or hostile")


# --- actors ----------------------------------------------------------------------------------------------------------

# Actors are numbered while some clock names them. A number is local: nothing that leaves the process shows it.
cdef dict ACTOR_IDS = {}                # actor -> id; str, bytes and int never equal one another
cdef list ACTORS = []                   # id -> actor, None if the id is free
cdef list IDS_FREE = []
cdef uint32_t *uses = NULL
cdef size_t uses_room = 0


cdef object as_actor(object actor):
    """An actor in its one form: exact str (UTF-8), bytes, or int of 64 bits without sign."""
    if type(actor) is str:
        pass
    elif isinstance(actor, bool) or not isinstance(actor, (str, int, bytes)):
        raise UsageError(f"actor {actor!r} is a {type(actor).__name__}; actors are str, int or bytes")
    elif isinstance(actor, str):
        actor = str.__str__(actor)
    elif isinstance(actor, int):
        actor = int(actor)
        if not 0 <= actor <= U64_MAX:
            raise UsageError(f"actor {actor} is out of range; an actor that is an int is from 0 to 2**64 - 1")
        return actor
    else:
        actor = bytes(actor)
    if len(actor) * 4 > ACTOR_BYTES_MAX or type(actor) is str and not (<str>actor).isascii():
        size = len(actor)
        if type(actor) is str:
            try:
                size = len((<str>actor).encode())
            except UnicodeEncodeError:
                raise UsageError(f"actor {actor!r} holds a lone surrogate; name actors in valid Unicode") from None
        if size > ACTOR_BYTES_MAX:
            raise LimitError(f"an actor of {size} bytes; the limit is {ACTOR_BYTES_MAX}; give it a shorter name")
    return actor


def _actor_key(actor):
    """Sorts actors of all types: int, then bytes, then str by code point."""
    if type(actor) is str:
        return 2, actor
    return (0, actor) if type(actor) is int else (1, actor)


cdef uint32_t take_id(object actor) except? 0xFFFFFFFF:
    """The id of an actor (in its one form), counted as used once more."""
    global uses, uses_room
    cdef uint32_t id
    cdef size_t room
    cdef void *grown
    found = ACTOR_IDS.get(actor)
    if found is not None:
        id = found
        uses[id] += 1
        return id
    if not IDS_FREE:
        if <size_t>len(ACTORS) == uses_room:
            room = max(2 * uses_room, <size_t>64)
            grown = PyMem_Realloc(uses, room * sizeof(uint32_t))
            if grown == NULL:
                raise MemoryError
            uses, uses_room = <uint32_t *>grown, room
        ACTORS.append(None)
        IDS_FREE.append(len(ACTORS) - 1)
    id = IDS_FREE[len(IDS_FREE) - 1]
    ACTOR_IDS[actor] = id
    IDS_FREE.pop()
    ACTORS[id] = actor
    uses[id] = 1
    return id


cdef void drop_id(uint32_t id) noexcept:
    uses[id] -= 1
    if not uses[id]:
        actor = ACTORS[id]
        ACTORS[id] = None
        ACTOR_IDS.pop(actor, None)
        IDS_FREE.append(id)


cdef class ActorSet:
    def __dealloc__(self):
        cdef size_t i
        for i in range(self.size):
            drop_id(self.ids[i])
        PyMem_Free(self.ids)


cdef ActorSet NOBODY = ActorSet.__new__(ActorSet)


cdef ActorSet actor_set(const uint32_t *ids, size_t size):
    """A set of ids that are alive; counts each as used once more."""
    cdef ActorSet out
    cdef size_t i
    if size == 0:
        return NOBODY
    out = ActorSet.__new__(ActorSet)
    out.ids = <uint32_t *>PyMem_Malloc(size * sizeof(uint32_t))
    if out.ids == NULL:
        raise MemoryError
    for i in range(size):
        out.ids[i] = ids[i]
        uses[ids[i]] += 1
    out.size = size
    return out


cdef object actor_name(uint32_t id):
    """The actor of an id that is alive."""
    return ACTORS[id]


# --- vector clocks ---------------------------------------------------------------------------------------------------

DEF ALIGNED_FROM = 32                   # counts; fewer lie in so few lines of the cache that a split does not show


cdef uint64_t *counts_room(size_t n) except NULL:
    """Room for so many counts, which `free` gives back."""
    cdef size_t size = (n + 1) * sizeof(uint64_t)
    cdef void *out = malloc(size) if n < ALIGNED_FROM else aligned_alloc(64, (size + 63) // 64 * 64)
    if out == NULL:
        raise MemoryError
    return <uint64_t *>out


cdef inline nova_order order_of(VectorClock a, VectorClock b) noexcept:
    """How a stands to b."""
    if a.actors is not b.actors and not share_actors(a, b):
        return nova_vclock_compare(view(a), view(b))
    return nova_counts_compare(a.counts, b.counts, a.actors.size)


cdef bint share_actors(VectorClock a, VectorClock b) noexcept:
    """Do both name the same actors? Then from now on they have one column of them, and this is not asked again."""
    if a.actors.size != b.actors.size:
        return False
    if a.actors.size and memcmp(a.actors.ids, b.actors.ids, a.actors.size * sizeof(uint32_t)):
        return False
    b.actors = a.actors
    return True


cdef inline nova_clock view(VectorClock clock) noexcept:
    cdef nova_clock out
    out.actors, out.counts, out.size = clock.actors.ids, clock.counts, clock.actors.size
    return out


cdef VectorClock with_room(ActorSet actors):
    cdef VectorClock out = VectorClock.__new__(VectorClock)
    out.actors = actors
    out.hashed = -1
    out.counts = counts_room(actors.size)
    return out


cdef uint64_t as_count(object actor, object count) except? U64_MAX:
    if isinstance(count, bool) or not isinstance(count, int):
        raise UsageError(f"count of actor {actor!r} is {count!r}; counts are int")
    if count < 0:
        raise UsageError(f"count of actor {actor!r} is {count}; counts start at 0")
    if count > U64_MAX:
        raise UsageError(f"count of actor {actor!r} is {count}; counts end at 2**64 - 1")
    return count


cdef int fill(VectorClock clock, dict counts) except -1:
    """Set a new clock to counts > 0 of actors in their one form."""
    cdef size_t n = 0
    cdef ActorSet actors = ActorSet.__new__(ActorSet)
    clock.actors = actors
    clock.hashed = -1
    clock.counts = counts_room(len(counts))
    actors.ids = <uint32_t *>PyMem_Malloc((len(counts) + 1) * sizeof(uint32_t))
    if actors.ids == NULL:
        raise MemoryError
    for actor in counts:
        actors.ids[actors.size] = take_id(actor)
        actors.size += 1
    order = sorted([(actors.ids[i], c) for i, c in enumerate(counts.values())])
    for id, count in order:
        actors.ids[n] = id
        clock.counts[n] = count
        n += 1
    return 0


cdef class VectorClock:
    """How much of each actor's history is known: a count per actor, 0 if absent (Fidge 1988, Mattern 1989).

    Immutable. Actors are str, or int or bytes; 1, "1" and b"1" are three actors. Comparing costs 12 to 50 ns for up to
    256 actors; clocks derived from one another share their column of actors.
    """

    def __init__(self, counts=None):
        cdef dict checked = {}
        if self.counts != NULL:
            raise UsageError("a VectorClock is immutable; make a new one")
        if isinstance(counts, VectorClock):
            counts = counts.to_dict()
        if counts is not None:
            if not isinstance(counts, Mapping):
                raise UsageError(f"a VectorClock is made of a mapping actor -> count, got {type(counts).__name__}")
            for actor, count in counts.items():
                actor = as_actor(actor)
                if as_count(actor, count):
                    checked[actor] = int(count)
        fill(self, checked)

    def __dealloc__(self):
        free(self.counts)

    def compare(self, VectorClock other not None):
        """How this clock stands to `other`."""
        return ORDERS[order_of(self, other)]

    def __richcmp__(self, other, int op):
        cdef int order
        if not isinstance(other, VectorClock):
            return NotImplemented
        order = order_of(self, <VectorClock>other)
        if op == 0:                     # <
            return order == 1
        if op == 1:                     # <=
            return order <= 1
        if op == 2:                     # ==
            return order == 0
        if op == 3:                     # !=
            return order != 0
        if op == 4:                     # >
            return order == 2
        return order == 2 or order == 0

    def concurrent(self, VectorClock other not None):
        """Does each know something that the other does not?"""
        return order_of(self, other) == 3

    def dominates(self, VectorClock other not None):
        """Does this clock know everything that `other` knows?"""
        return not order_of(self, other) & 1

    def increment(self, actor):
        """The clock after one more event of `actor`. Raises UsageError at 2**64 - 1: a count never wraps."""
        cdef VectorClock out
        cdef uint32_t id
        cdef size_t i, at, n = self.actors.size
        cdef ActorSet actors
        actor = as_actor(actor)
        found = ACTOR_IDS.get(actor)
        if found is not None:
            at = nova_vclock_find(self.actors.ids, n, found)
            if at < n:
                if self.counts[at] == U64_MAX:
                    raise UsageError(f"count of actor {actor!r} is 2**64 - 1, the last one; go on under a new actor")
                out = with_room(self.actors)
                memcpy(out.counts, self.counts, n * sizeof(uint64_t))
                out.counts[at] += 1
                return out
        actors = ActorSet.__new__(ActorSet)
        out = with_room(actors)
        free(out.counts)
        out.counts = NULL
        out.counts = counts_room(n + 1)
        actors.ids = <uint32_t *>PyMem_Malloc((n + 1) * sizeof(uint32_t))
        if actors.ids == NULL:
            raise MemoryError
        id = take_id(actor)
        at = 0
        while at < n and self.actors.ids[at] < id:
            at += 1
        for i in range(at):
            actors.ids[i], out.counts[i] = self.actors.ids[i], self.counts[i]
        actors.ids[at], out.counts[at] = id, 1
        for i in range(at, n):
            actors.ids[i + 1], out.counts[i + 1] = self.actors.ids[i], self.counts[i]
        for i in range(n):
            uses[self.actors.ids[i]] += 1
        actors.size = n + 1
        return out

    def merge(self, VectorClock other not None):
        """Least upper bound: what is known to either. Returns one of the two as it is if that is the answer."""
        cdef int order = order_of(self, other)
        cdef size_t room = self.actors.size + other.actors.size, n
        cdef uint32_t *ids
        cdef uint64_t *counts
        cdef VectorClock out
        if order == 0 or order == 2:
            return self
        if order == 1:
            return other
        ids = <uint32_t *>PyMem_Malloc(room * sizeof(uint32_t))
        counts = <uint64_t *>PyMem_Malloc(room * sizeof(uint64_t))
        try:
            if ids == NULL or counts == NULL:
                raise MemoryError
            n = nova_vclock_merge(view(self), view(other), ids, counts)
            # A union as large as one side is that side's set of actors.
            if n == self.actors.size:
                out = with_room(self.actors)
            elif n == other.actors.size:
                out = with_room(other.actors)
            else:
                out = with_room(actor_set(ids, n))
            memcpy(out.counts, counts, n * sizeof(uint64_t))
            return out
        finally:
            PyMem_Free(ids)
            PyMem_Free(counts)

    def without(self, actors):
        """The clock that forgets these actors. Safe only once nobody can still send what they wrote."""
        cdef size_t i
        cdef set gone = {ACTOR_IDS.get(as_actor(actor)) for actor in ([actors] if isinstance(actors, (str, bytes)) else actors)}
        cdef VectorClock out
        cdef uint64_t *counts
        if not any([self.actors.ids[i] in gone for i in range(self.actors.size)]):
            return self
        counts = <uint64_t *>PyMem_Malloc((self.actors.size + 1) * sizeof(uint64_t))
        if counts == NULL:
            raise MemoryError
        try:
            for i in range(self.actors.size):
                counts[i] = 0 if self.actors.ids[i] in gone else self.counts[i]
            return clock_of(self.actors, counts)
        finally:
            PyMem_Free(counts)

    def get(self, actor):
        """The count of one actor, 0 if it is absent."""
        cdef size_t at
        found = ACTOR_IDS.get(as_actor(actor))
        if found is None:
            return 0
        at = nova_vclock_find(self.actors.ids, self.actors.size, found)
        return self.counts[at] if at < self.actors.size else 0

    def items(self):
        """(actor, count) pairs in canonical order: int, bytes, str, each ascending."""
        cdef size_t i
        cdef list out = [(ACTORS[self.actors.ids[i]], self.counts[i]) for i in range(self.actors.size)]
        out.sort(key=_pair_key)
        return out

    def to_dict(self):
        """Actor -> count in canonical order; JSON can carry it if all actors are str."""
        return dict(self.items())

    def __len__(self):
        return self.actors.size

    def __contains__(self, actor):
        return self.get(actor) > 0

    def __iter__(self):
        return iter([actor for actor, _ in self.items()])

    def __hash__(self):
        cdef uint64_t h = 0x9e3779b97f4a7c15
        cdef size_t i
        if self.hashed == -1:
            for i in range(self.actors.size):
                h = (h ^ self.actors.ids[i]) * <uint64_t>0xbf58476d1ce4e5b9
                h = (h ^ h >> 29 ^ self.counts[i]) * <uint64_t>0x94d049bb133111eb
            self.hashed = <Py_hash_t>(h ^ h >> 32)
            if self.hashed == -1:
                self.hashed = -2
        return self.hashed

    def __repr__(self):
        return f"VectorClock({self.to_dict()!r})"

    def __reduce__(self):
        return VectorClock, (self.to_dict(),)

    def to_bytes(self):
        """Canonical bytes: equal clocks give equal bytes in every process."""
        cdef list parts = [number(self.actors.size)]
        for actor, count in self.items():
            parts.append(actor_bytes(actor))
            parts.append(number(count))
        return seal(CLOCK_MAGIC, parts)

    @staticmethod
    def from_bytes(data):
        """Read what `to_bytes` wrote. Raises CorruptionError for anything else; costs no more than the bytes hold."""
        cdef nova_reader r
        cdef VectorClock out
        unseal(data, CLOCK_MAGIC, "vector clock", &r)
        counts = read_counts(&r, "vector clock")
        if not r.ok or nova_left(&r):
            raise malformed("vector clock", "its length is wrong")
        out = VectorClock.__new__(VectorClock)
        fill(out, counts)
        return out


def _pair_key(pair):
    return _actor_key(pair[0])


cdef VectorClock clock_of(ActorSet actors, const uint64_t *counts):
    """The clock of these counts; whoever counts 0 is left out."""
    cdef VectorClock out
    cdef uint32_t *ids
    cdef size_t i, n = 0
    for i in range(actors.size):
        n += counts[i] != 0
    if n == actors.size:
        out = with_room(actors)
        memcpy(out.counts, counts, n * sizeof(uint64_t))
        return out
    ids = <uint32_t *>PyMem_Malloc((n + 1) * sizeof(uint32_t))
    if ids == NULL:
        raise MemoryError
    try:
        n = 0
        for i in range(actors.size):
            if counts[i]:
                ids[n] = actors.ids[i]
                n += 1
        out = with_room(actor_set(ids, n))
    finally:
        PyMem_Free(ids)
    n = 0
    for i in range(actors.size):
        if counts[i]:
            out.counts[n] = counts[i]
            n += 1
    return out


# --- dotted version vectors ------------------------------------------------------------------------------------------

cdef class DottedVersionVector:
    """The causality of one stored version: its own event (the dot) and what its writer had seen (the vector).

    It names exactly the events vector + dot, also where the dot is not the next one of its actor; so a server can write
    for many clients under one actor, and versions of clients that did not see one another stay siblings (Preguica,
    Baquero, Almeida et al. 2012). Immutable. `compare` is inclusion of events; asking whether a clock covers a version,
    `known_to`, costs O(log actors).

    A coordinator stores a client's write so:
        siblings = DottedVersionVector.sync(siblings, [DottedVersionVector.write(context, siblings, actor)])
    and hands out `DottedVersionVector.join(siblings)` with what is read.
    """

    def __init__(self, vector=None, dot=None):
        if self.past is not None:
            raise UsageError("a DottedVersionVector is immutable; make a new one")
        self.past = vector if type(vector) is VectorClock else VectorClock(vector)
        self.actor = None
        if dot is not None:
            try:
                actor, count = dot
            except (TypeError, ValueError):
                raise UsageError(f"{dot!r} is no dot; a dot is (actor, count)") from None
            if as_count(actor, count) == 0:
                raise UsageError(f"count of actor {actor!r} is 0; dots count from 1")
            self.actor, self.count = as_actor(actor), count
            if self.count <= self.past.get(self.actor):
                raise UsageError(f"dot {dot!r} is in the vector, which is at {self.past.get(self.actor)}; "
                                 "a version cannot have seen itself")
            if self.count == self.past.get(self.actor) + 1:
                self.whole = self.past.increment(self.actor)

    @property
    def vector(self):
        """What the writer had seen."""
        return self.past

    @property
    def dot(self):
        """The version's own event, None if it has none."""
        return None if self.actor is None else Dot(self.actor, self.count)

    cdef bint within(self, DottedVersionVector other):
        """Are all our events among the other's?"""
        cdef uint64_t seen
        if self.actor is not None:
            seen = other.past.get(self.actor)
            if not (self.count <= seen or (other.actor == self.actor and other.count == self.count)):
                return False
        if other.past.dominates(self.past):
            return True
        # The one event more that our vector may hold is the other's dot.
        return other.whole is not None and other.whole.dominates(self.past)

    def compare(self, DottedVersionVector other not None):
        """How the events of this version stand to those of `other`."""
        cdef int below = self.within(other), above = other.within(self)
        return ORDERS[(not above) | (not below) << 1]

    def __richcmp__(self, other, int op):
        cdef bint below, above
        if not isinstance(other, DottedVersionVector):
            return NotImplemented
        below = self.within(<DottedVersionVector>other)
        above = (<DottedVersionVector>other).within(self)
        return (below and not above, below, below and above, not (below and above), above and not below, above)[op]

    def concurrent(self, DottedVersionVector other not None):
        """Did neither see the other?"""
        return not self.within(other) and not other.within(self)

    def known_to(self, VectorClock clock not None):
        """Does this clock cover the version: its dot, or, without one, its vector?"""
        return clock.get(self.actor) >= self.count if self.actor is not None else clock.dominates(self.past)

    @staticmethod
    def write(VectorClock context not None, siblings, actor):
        """The version that a client who saw `context` makes at the replica `actor`, which holds `siblings`."""
        cdef uint64_t last = context.get(actor)
        for item in siblings:
            if not isinstance(item, DottedVersionVector):
                raise UsageError(f"{item!r} is a {type(item).__name__}; siblings are DottedVersionVector objects")
            last = max(last, (<DottedVersionVector>item).ceiling(actor))
        if last == U64_MAX:
            raise UsageError(f"count of actor {actor!r} is 2**64 - 1, the last one; go on under a new actor")
        return DottedVersionVector(context, (actor, last + 1))

    cdef uint64_t ceiling(self, actor):
        return max(<uint64_t>self.past.get(actor), self.count if self.actor is not None and self.actor == as_actor(actor) else 0)

    @staticmethod
    def sync(*groups):
        """The siblings of several replicas as one list: no version twice, none that another one has seen."""
        cdef list out = []
        for group in groups:
            for version in group:
                if not isinstance(version, DottedVersionVector):
                    raise UsageError(f"{version!r} is a {type(version).__name__}; siblings are DottedVersionVector objects")
                if any([version <= other for other in out]):
                    continue
                out = [other for other in out if not other < version]
                out.append(version)
        return out

    @staticmethod
    def join(siblings):
        """What a reader of these siblings has seen, as one VectorClock: the context of its next write."""
        cdef VectorClock out = VectorClock()
        for item in siblings:
            if not isinstance(item, DottedVersionVector):
                raise UsageError(f"{item!r} is a {type(item).__name__}; siblings are DottedVersionVector objects")
            out = out.merge((<DottedVersionVector>item).past)
            if (<DottedVersionVector>item).actor is not None:
                out = out.merge(VectorClock({(<DottedVersionVector>item).actor: (<DottedVersionVector>item).count}))
        return out

    def __hash__(self):
        if self.whole is not None:
            return hash(self.whole)
        return hash(self.past) if self.actor is None else hash(self.past) ^ hash((self.actor, self.count))

    def __repr__(self):
        return f"DottedVersionVector({self.past.to_dict()!r}, dot={None if self.actor is None else (self.actor, self.count)!r})"

    def __reduce__(self):
        return DottedVersionVector, (self.past, self.dot)

    def to_bytes(self):
        """Canonical bytes: the same vector and dot give the same bytes in every process."""
        cdef list parts = [number(self.past.actors.size)]
        for actor, count in self.past.items():
            parts.append(actor_bytes(actor))
            parts.append(number(count))
        if self.actor is not None:
            parts.append(actor_bytes(self.actor))
            parts.append(number(self.count))
        return seal(DOTTED_MAGIC, parts)

    @staticmethod
    def from_bytes(data):
        """Read what `to_bytes` wrote. Raises CorruptionError for anything else."""
        cdef nova_reader r
        cdef dict counts
        cdef object dot = None
        unseal(data, DOTTED_MAGIC, "dotted version vector", &r)
        counts = read_counts(&r, "dotted version vector")
        if r.ok and nova_left(&r):
            actor = read_actor(&r, "dotted version vector")
            dot = (actor, nova_take_number(&r))
            if not r.ok or dot[1] <= counts.get(actor, 0):
                raise malformed("dotted version vector", "its dot is cut or in its vector")
        if not r.ok or nova_left(&r):
            raise malformed("dotted version vector", "its length is wrong")
        return DottedVersionVector(counts, dot)


cdef bytes actor_bytes(object actor):
    if type(actor) is int:
        return b"\x00" + number(actor)
    if type(actor) is bytes:
        return b"\x01" + number(len(actor)) + actor
    encoded = (<str>actor).encode()
    return b"\x02" + number(len(encoded)) + encoded


cdef dict read_counts(nova_reader *r, str what):
    """As many (actor, count) pairs as the number before them says, in canonical order."""
    cdef dict counts = {}
    cdef uint64_t n = nova_take_size(r, 3), i, count
    last = None
    for i in range(n):
        actor = read_actor(r, what)
        count = nova_take_number(r)
        key = _actor_key(actor)
        if not r.ok or count == 0:
            raise malformed(what, "a count is 0, too long or cut")
        if last is not None and key <= last:
            raise malformed(what, f"actor {actor!r} is out of order")
        last = key
        counts[actor] = count
    return counts


cdef object read_actor(nova_reader *r, str what):
    cdef uint8_t tag = nova_take_byte(r)
    cdef uint64_t n = nova_take_number(r)
    cdef const uint8_t *at
    if tag == 0 and r.ok:
        return n
    if n > ACTOR_BYTES_MAX:
        raise malformed(what, f"an actor of {n} bytes, the limit is {ACTOR_BYTES_MAX}")
    at = nova_take(r, n)
    if at == NULL or tag > 2:
        raise malformed(what, "an actor is cut or of unknown type")
    raw = PyBytes_FromStringAndSize(<const char *>at, n)
    if tag == 1:
        return raw
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise malformed(what, "an actor is not UTF-8") from None


# --- hybrid logical clock --------------------------------------------------------------------------------------------

def stamp_ms(stamp):
    """Unix milliseconds of a stamp."""
    return stamp >> 16


cdef class HybridLogicalClock:
    """Time that respects causality and stays near the wall clock (Kulkarni et al. 2014).

    A stamp is an int: unix milliseconds << 16 | counter. Stamps of one clock only rise, also when the wall clock steps
    back; a counter that is full carries into the milliseconds. The caller brings the wall clock, in nanoseconds.
    After a restart, `last` must be at least the greatest stamp ever given out or received.
    """

    def __init__(self, drift_ms_max=60_000, last=0):
        if isinstance(drift_ms_max, bool) or not isinstance(drift_ms_max, int) or not 0 <= drift_ms_max < 1 << 48:
            raise UsageError(f"drift_ms_max is {drift_ms_max!r}; it is an int from 0 to 2**48 - 1")
        if isinstance(last, bool) or not isinstance(last, int) or not 0 <= last <= U64_MAX:
            raise UsageError(f"last is {last!r}; a stamp is an int from 0 to 2**64 - 1")
        self.drift_ms_max = drift_ms_max
        self.last_stamp = last

    @property
    def last(self):
        """The greatest stamp given out or received."""
        return self.last_stamp

    cdef uint64_t tick_c(self, int64_t wall_ns) except? 0:
        cdef uint64_t wall = 0
        if wall_ns > 0:
            wall = <uint64_t>wall_ns // 1_000_000 << 16
        if self.last_stamp < wall:
            self.last_stamp = wall
        elif self.last_stamp == U64_MAX:
            raise UsageError(f"stamp {self.last_stamp} is the last one of 64 bits; set the wall clock that made it right")
        else:
            self.last_stamp += 1
        return self.last_stamp

    cdef uint64_t receive_c(self, uint64_t stamp, int64_t wall_ns) except? 0:
        cdef uint64_t wall_ms = 0, last = self.last_stamp
        if wall_ns > 0:
            wall_ms = <uint64_t>wall_ns // 1_000_000
        if stamp >> 16 > wall_ms + self.drift_ms_max:
            raise UsageError(
                f"stamp {stamp} is {(stamp >> 16) - wall_ms} ms ahead of this clock; the limit is {self.drift_ms_max} ms; "
                "set the clock of its sender (or ours) right")
        if stamp == U64_MAX:
            raise UsageError(f"stamp {stamp} is the last one of 64 bits; set the clock of its sender right")
        if self.last_stamp < stamp:
            self.last_stamp = stamp
        return self.tick_c(wall_ns)

    def tick(self, int64_t wall_ns):
        """A stamp for an event here, greater than all before."""
        return self.tick_c(wall_ns)

    def receive(self, stamp, int64_t wall_ns):
        """Take note of a remote stamp; returns one greater than it, than all before, and not behind the wall.

        raises   UsageError if the stamp is more than `drift_ms_max` ahead of the wall; the clock is then as before
        """
        if isinstance(stamp, bool) or not isinstance(stamp, int) or not 0 <= stamp <= U64_MAX:
            raise UsageError(f"stamp {stamp!r} is none; a stamp is an int from 0 to 2**64 - 1")
        return self.receive_c(stamp, wall_ns)

    def __repr__(self):
        return f"HybridLogicalClock(drift_ms_max={self.drift_ms_max}, last={self.last_stamp})"


# --- causal contexts -------------------------------------------------------------------------------------------------

cdef class Spans:
    def __dealloc__(self):
        PyMem_Free(self.at)

    cdef bint has(self, uint64_t count) noexcept:
        cdef size_t i
        if self.size and self.at[0].first <= count <= self.at[0].last:      # the compact part: nearly always
            return True
        i = nova_spans_seek(self.at, self.size, count)
        return i < self.size and self.at[i].first <= count

    cdef int join(self, const nova_span *other, size_t size) except -1:
        cdef nova_span *out
        if size == 0:
            return 0
        if self.size and size == 1 and self.at[self.size - 1].first <= other[0].first \
                and self.at[self.size - 1].last >= other[0].first - 1:
            if self.at[self.size - 1].last < other[0].last:                 # the next event: in place
                self.at[self.size - 1].last = other[0].last
            return 0
        out = <nova_span *>PyMem_Malloc((self.size + size) * sizeof(nova_span))
        if out == NULL:
            raise MemoryError
        self.size = nova_spans_union(self.at, self.size, other, size, out)
        PyMem_Free(self.at)
        self.at = out
        return 0

    cdef int cut(self, const nova_span *other, size_t size) except -1:
        cdef nova_span *out = <nova_span *>PyMem_Malloc((self.size + size + 1) * sizeof(nova_span))
        if out == NULL:
            raise MemoryError
        self.size = nova_spans_minus(self.at, self.size, other, size, out)
        PyMem_Free(self.at)
        self.at = out
        return 0

    cdef Spans copy(self):
        cdef Spans out = Spans.__new__(Spans)
        out.join(self.at, self.size)
        return out


cdef tuple as_dot(object dot):
    try:
        actor, count = dot
    except (TypeError, ValueError):
        raise UsageError(f"{dot!r} is no dot; a dot is (actor, count)") from None
    if not isinstance(actor, str):
        raise UsageError(f"actor {actor!r} of a dot is a {type(actor).__name__}; actors of dots are str")
    if as_count(actor, count) == 0:
        raise UsageError(f"count of actor {actor!r} is 0; dots count from 1")
    return as_actor(actor), count


cdef class CausalContext:
    """Which events are known: per actor a run without gaps from 1 (the vector) and, beyond gaps, single dots (the cloud).

    Mutable. Kept as spans, so a cloud of neighbours costs as much as one dot, and a gap that closes joins the vector.
    """

    def __init__(self, vector=None, dots=()):
        self.actors = {}
        if vector is not None:
            if isinstance(vector, VectorClock):
                vector = vector.to_dict()
            if not isinstance(vector, Mapping):
                raise UsageError(f"a vector is a mapping actor -> count, got {type(vector).__name__}")
            for actor, count in vector.items():
                if as_count(actor, count):
                    actor, count = as_dot((actor, count))
                    self.learn(actor, 1, count)
        for dot in dots:
            self.add(dot)

    cdef bint has(self, str actor, uint64_t count):
        cdef void *found = <void *>PyDict_GetItem(self.actors, actor)
        return found != NULL and (<Spans>found).has(count)

    cdef uint64_t last(self, str actor):
        cdef void *found = <void *>PyDict_GetItem(self.actors, actor)
        if found == NULL:
            return 0
        return (<Spans>found).at[(<Spans>found).size - 1].last

    cdef int learn(self, str actor, uint64_t first, uint64_t last) except -1:
        cdef nova_span span
        cdef Spans spans
        cdef void *found = <void *>PyDict_GetItem(self.actors, actor)
        span.first, span.last = first, last
        if found != NULL:
            return (<Spans>found).join(&span, 1)
        spans = Spans.__new__(Spans)
        spans.join(&span, 1)
        self.actors[actor] = spans
        return 0

    cdef int join(self, CausalContext other) except -1:
        cdef Spans theirs
        if other is self:
            return 0
        for actor, spans in other.actors.items():
            theirs = <Spans>spans
            mine = self.actors.get(actor)
            if mine is None:
                self.actors[actor] = theirs.copy()
            else:
                (<Spans>mine).join(theirs.at, theirs.size)
        return 0

    cdef bint covers_c(self, CausalContext other):
        cdef Spans theirs, mine
        for actor, spans in other.actors.items():
            found = self.actors.get(actor)
            if found is None:
                return False
            mine, theirs = <Spans>found, <Spans>spans
            if not nova_spans_cover(mine.at, mine.size, theirs.at, theirs.size):
                return False
        return True

    cdef CausalContext clone(self):
        cdef CausalContext out = CausalContext.__new__(CausalContext)
        out.actors = {actor: (<Spans>spans).copy() for actor, spans in self.actors.items()}
        return out

    def add(self, dot):
        """Learn one dot, in any order."""
        actor, count = as_dot(dot)
        self.learn(actor, count, count)

    def __contains__(self, dot):
        actor, count = as_dot(dot)
        return self.has(actor, count)

    def next(self, actor):
        """The dot that `actor` gives its next event. It is not learned by this."""
        actor, _ = as_dot((actor, 1))
        last = self.last(actor)
        if last == U64_MAX:
            raise UsageError(f"count of actor {actor!r} is 2**64 - 1, the last one; go on under a new actor")
        return Dot(actor, last + 1)

    def merge(self, CausalContext other not None):
        """Learn all that `other` knows."""
        self.join(other)

    def covers(self, CausalContext other not None):
        """Is everything known here that `other` knows?"""
        return self.covers_c(other)

    def forget(self, actors):
        """Drop all that is known of these actors. Safe only once nobody can still send what they wrote."""
        for actor in ([actors] if isinstance(actors, str) else actors):
            self.actors.pop(as_actor(actor), None)

    def copy(self):
        """A context that goes its own way."""
        return self.clone()

    @property
    def vector(self):
        """The run without gaps of each actor, as a VectorClock; it never advances over a gap."""
        cdef Spans spans
        cdef dict out = {}
        for actor, item in self.actors.items():
            spans = <Spans>item
            if spans.at[0].first == 1:
                out[actor] = spans.at[0].last
        return VectorClock(out)

    def cloud(self):
        """Spans (actor, first, last) beyond the vector, sorted."""
        cdef Spans spans
        cdef size_t i
        cdef list out = []
        for actor, item in self.actors.items():
            spans = <Spans>item
            for i in range(spans.size):
                if spans.at[i].first != 1:
                    out.append((actor, spans.at[i].first, spans.at[i].last))
        out.sort()
        return out

    def __len__(self):
        return len(self.actors)

    def __eq__(self, other):
        if not isinstance(other, CausalContext):
            return NotImplemented
        return self.covers_c(<CausalContext>other) and (<CausalContext>other).covers_c(self)

    __hash__ = None

    def __repr__(self):
        return f"CausalContext({self.vector.to_dict()!r}, cloud={self.cloud()!r})"

    def __reduce__(self):
        return _context_from_bytes, (self.to_bytes(),)

    def to_bytes(self):
        """Canonical bytes: equal contexts give equal bytes in every process."""
        return seal(CONTEXT_MAGIC, context_parts(self))

    @staticmethod
    def from_bytes(data):
        """Read what `to_bytes` wrote. Raises CorruptionError for anything else."""
        cdef nova_reader r
        unseal(data, CONTEXT_MAGIC, "causal context", &r)
        out = read_context(&r)
        if nova_left(&r):
            raise malformed("causal context", "its length is wrong")
        return out


def _context_from_bytes(data):
    return CausalContext.from_bytes(data)


cdef list context_parts(CausalContext context):
    """Per actor, ascending: its name, how many spans, and for each the step to its first and its length less one."""
    cdef Spans spans
    cdef size_t i
    cdef uint64_t last
    cdef list parts = [number(len(context.actors))]
    for actor in sorted(context.actors):
        spans = <Spans>context.actors[actor]
        parts.append(actor_bytes(actor))
        parts.append(number(spans.size))
        last = 0
        for i in range(spans.size):
            parts.append(number(spans.at[i].first - last))
            parts.append(number(spans.at[i].last - spans.at[i].first))
            last = spans.at[i].last
    return parts


cdef CausalContext read_context(nova_reader *r):
    cdef CausalContext out = CausalContext.__new__(CausalContext)
    cdef uint64_t n = nova_take_size(r, 5), i, j, size, step, length, last
    cdef Spans spans
    out.actors = {}
    name = None
    for i in range(n):
        actor = read_actor(r, "causal context")
        if type(actor) is not str or (name is not None and actor <= name):
            raise malformed("causal context", f"actor {actor!r} is out of order or no text")
        name = actor
        size = nova_take_size(r, 2)
        if size == 0:
            raise malformed("causal context", f"actor {actor!r} has no events or the bytes are cut")
        spans = Spans.__new__(Spans)
        spans.at = <nova_span *>PyMem_Malloc(size * sizeof(nova_span))
        if spans.at == NULL:
            raise MemoryError
        last = 0
        for j in range(size):
            step = nova_take_number(r)
            length = nova_take_number(r)
            # The first span may start at 1; later ones leave a gap.
            if not r.ok or step < (2 if j else 1) or step > U64_MAX - last or length > U64_MAX - last - step:
                raise malformed("causal context", f"a span of actor {actor!r} is cut or out of order")
            spans.at[j].first = last + step
            spans.at[j].last = last = last + step + length
        spans.size = size
        out.actors[actor] = spans
    if not r.ok:
        raise malformed("causal context", "it is cut")
    return out


cdef CausalContext as_context(object context):
    """A context from what users hold: a context, a clock, a mapping, or None for nothing known."""
    return <CausalContext>context if isinstance(context, CausalContext) else CausalContext(context)
