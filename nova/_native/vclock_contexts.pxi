# Causal contexts: which events are known, with gaps. Part of vclock.pyx.

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
