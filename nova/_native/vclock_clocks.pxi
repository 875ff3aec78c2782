# Vector clocks: columns of actors and counts (csrc/vclock.h). Part of vclock.pyx.

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
