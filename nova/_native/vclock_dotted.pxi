# Dotted version vectors: a clock and one event beyond it. Part of vclock.pyx.

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
