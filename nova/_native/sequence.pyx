"""The sequence CRDT on csrc/sequence.c. `nova.crdt.sequence` is the face of this module."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from nova._native.digest cimport hash_bytes, nova_digest, nova_digest_add
from nova._native.vclock cimport (
    CausalContext, as_actor, as_context, malformed, nova_left, nova_reader, nova_store64le, nova_take, nova_take_number,
    nova_take_size, number, seal, unseal,
)

from nova.errors import CorruptionError, LimitError, UsageError

cdef extern from "Python.h":
    unsigned PyUnicode_KIND(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    bint PyUnicode_IS_ASCII(object text)
    str PyUnicode_FromKindAndData(int kind, const void *buffer, Py_ssize_t size)

cdef bytes STATE_MAGIC = b"NVT\x01"
cdef bytes DELTA_MAGIC = b"NVU\x01"
cdef str WHAT = "sequence"
DEF COUNT_BITS = 48
DEF COUNT_MASK = 0xFFFFFFFFFFFF


cdef int check_text(object text) except -1:
    """Code points only: a lone surrogate is none."""
    cdef const uint16_t *two
    cdef const uint32_t *four
    cdef Py_ssize_t i, n
    cdef unsigned kind
    if not isinstance(text, str):
        raise UsageError(f"text is a {type(text).__name__}; insert a str")
    kind = PyUnicode_KIND(text)
    n = PyUnicode_GET_LENGTH(text)
    if kind == 2:
        two = <const uint16_t *>PyUnicode_DATA(text)
        for i in range(n):
            if two[i] & 0xF800 == 0xD800:
                raise UsageError(f"text holds a lone surrogate at {i}; insert valid Unicode")
    elif kind == 4:
        four = <const uint32_t *>PyUnicode_DATA(text)
        for i in range(n):
            if four[i] & 0xFFFFF800 == 0xD800:
                raise UsageError(f"text holds a lone surrogate at {i}; insert valid Unicode")
    return 0


cdef object bad_range(object pos, object n, object length):
    return UsageError(f"position {pos} and length {n} are not within the text of {length} code points")


cdef inline int check_range(int64_t pos, int64_t n, int64_t length) except -1:
    if pos < 0 or n < 0 or pos > length or n > length - pos:
        raise bad_range(pos, n, length)
    return 0


cdef object failed(int code):
    if code == NOVA_SEQUENCE_EMEMORY:
        return MemoryError()
    if code == NOVA_SEQUENCE_ECOUNT:
        return UsageError("an actor's events end at 2**48 - 1, and one call inserts less than 2**32 - 1; go on under a new actor")
    if code == NOVA_SEQUENCE_EAGENTS:
        return LimitError("a sequence has at most 65535 actors; start a new one from its text")
    if code == NOVA_SEQUENCE_EGAP:
        return UsageError("this delta was made for a replica that knew more; ask its sender for delta_since(ours.context)")
    return malformed(WHAT, "its events are no possible history")


cdef class RGA:
    """A text that many write at once: inserts and deletes by position, merged without conflicts.

    RGA is the familiar name; the order of concurrent inserts is FugueMax (Weidner, Kleppmann 2023, "The Art of the
    Fugue"), ties going to the smaller actor, then the smaller event: what was typed in one run stays in one run, forwards and
    backwards. Positions count code points. An insert or delete of n code points is n events of the actor; deleting
    twice is deleting once; deleted content is not kept, only that it was there.

    cost   an edit next to the one before: O(1); elsewhere O(log runs) and a move of the bytes between the two places;
           memory by runs of events, not by characters, and 1 byte a visible character (4 once one is above U+00FF)
    """

    def __cinit__(self):
        self.events = nova_sequence_new()
        if self.events == NULL:
            raise MemoryError
        self.names = []
        self.numbers = {}
        self.own = 0xFFFFFFFF

    def __init__(self, actor=None):
        if self.actor is not None or self.names:
            raise UsageError("this RGA is made already; make a new one")
        if actor is not None:
            if not isinstance(actor, str) or not actor:
                raise UsageError(f"actor {actor!r} is none; an actor is a str, new at every start: name~incarnation")
            self.actor = as_actor(actor)
            self.own = self.agent(self.actor)
            self.rank()

    def __dealloc__(self):
        nova_sequence_free(self.events)

    cdef int ready(self) except -1:
        if nova_sequence_broken(self.events):
            raise CorruptionError("this sequence ran out of memory in the middle of a change; read it again from its bytes")
        return 0

    cdef uint32_t agent(self, str name) except? 0xFFFFFFFF:
        """The number of an actor, a new one if need be; `rank` is to follow when all are there."""
        cdef bytes raw
        cdef int made
        found = self.numbers.get(name)
        if found is not None:
            return found
        raw = name.encode()
        made = nova_sequence_add_agent(self.events, hash_bytes(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), 0).lo)
        if made < 0:
            raise failed(made)
        self.names.append(name)
        self.numbers[name] = made
        return made

    cdef int rank(self) except -1:
        """Put the ranks in order of the names."""
        for place, name in enumerate(sorted(self.names)):
            nova_sequence_rank(self.events, self.numbers[name], place)
        return 0

    cdef list known_names(self):
        """Actors with events, in wire order."""
        return sorted([name for i, name in enumerate(self.names) if nova_sequence_count(self.events, i)])

    # -- edits --

    cdef int put(self, uint64_t pos, str text) except -1:
        cdef int code = nova_sequence_insert(self.events, self.own, pos, PyUnicode_DATA(text), PyUnicode_KIND(text),
                                             PyUnicode_GET_LENGTH(text))
        if code:
            raise failed(code)
        return 0

    cdef int cut(self, uint64_t pos, uint64_t n) except -1:
        cdef int code = nova_sequence_delete(self.events, self.own, pos, n)
        if code:
            raise failed(code)
        return 0

    def insert(self, int64_t pos, text):
        """Insert text before position pos. raises UsageError for a position beyond the text."""
        self.splice(pos, 0, text)

    def delete(self, int64_t pos, int64_t n):
        """Delete n code points from position pos on. raises UsageError if they are not all there."""
        self.splice(pos, n, "")

    def splice(self, int64_t pos, int64_t n, text):
        """Delete n code points from position pos on, then insert text there. Nothing happens if it cannot be done whole."""
        if self.actor is None:
            raise UsageError("this replica has no actor and only reads; write on one that was made with actor=")
        self.ready()
        check_range(pos, n, nova_sequence_length(self.events))
        if type(text) is not str or not PyUnicode_IS_ASCII(text):
            check_text(text)
        if n:
            self.cut(pos, n)
        if PyUnicode_GET_LENGTH(text):
            self.put(pos, text)

    def apply_patches(self, patches, text=None):
        """Many splices in one call: all of them, or none if one does not fit.

        patches   a list of (position, deleted count, inserted text); or, with `text`, a C-contiguous int64 buffer of
                  shape (n, 3) of position, deleted count, inserted count, and the inserted code points one behind the
                  other in `text`
        raises    UsageError that names the first patch that does not fit
        """
        cdef int64_t length = nova_sequence_length(self.events), pos, n, more, at = 0, total
        cdef Py_ssize_t i
        cdef const int64_t[:, ::1] rows
        cdef unsigned kind
        cdef int code
        cdef const uint8_t *data
        cdef list checked
        if self.actor is None:
            raise UsageError("this replica has no actor and only reads; write on one that was made with actor=")
        self.ready()
        if text is None:
            checked = list(patches)
            for i in range(len(checked)):
                patch = checked[i]
                if type(patch) is not tuple:
                    checked[i] = patch = tuple(patch)
                if len(<tuple>patch) != 3:
                    raise UsageError(f"patch {i} has {len(patch)} parts; a patch is (position, deleted, inserted text)")
                pos, n, inserted = <tuple>patch
                if pos < 0 or n < 0 or pos > length or n > length - pos:
                    raise UsageError(f"patch {i}: {bad_range(pos, n, length)}")
                if type(inserted) is not str or not PyUnicode_IS_ASCII(inserted):
                    check_text(inserted)
                length += PyUnicode_GET_LENGTH(inserted) - n
            for patch in checked:
                pos, n, inserted = <tuple>patch
                if n:
                    self.cut(pos, n)
                if PyUnicode_GET_LENGTH(inserted):
                    self.put(pos, inserted)
            return
        check_text(text)
        rows = patches
        if rows.shape[1] != 3:
            raise UsageError(f"patches have {rows.shape[1]} columns; they are position, deleted count, inserted count")
        total = PyUnicode_GET_LENGTH(text)
        for i in range(rows.shape[0]):
            pos, n, more = rows[i, 0], rows[i, 1], rows[i, 2]
            if pos < 0 or n < 0 or pos > length or n > length - pos:
                raise UsageError(f"patch {i}: {bad_range(pos, n, length)}")
            if more < 0 or more > total - at:
                raise UsageError(f"patch {i} inserts {more} code points; the text has {total - at} left")
            at += more
            length += more - n
        kind = PyUnicode_KIND(text)
        data = <const uint8_t *>PyUnicode_DATA(text)
        for i in range(rows.shape[0]):
            pos, n, more = rows[i, 0], rows[i, 1], rows[i, 2]
            code = nova_sequence_delete(self.events, self.own, pos, n) if n else 0
            if code == 0 and more:
                code = nova_sequence_insert(self.events, self.own, pos, data, kind, more)
            if code:
                raise failed(code)
            data += more * kind

    # -- reading --

    @property
    def text(self):
        """The text as it stands here."""
        cdef unsigned width
        cdef const void *at
        self.ready()
        at = nova_sequence_view(self.events, &width)
        return PyUnicode_FromKindAndData(width, at, nova_sequence_length(self.events)) if at != NULL else ""

    @property
    def value(self):
        """The text as it stands here."""
        return self.text

    def __len__(self):
        return nova_sequence_length(self.events)

    @property
    def context(self):
        """A copy of the events known here; `delta_since` on another replica takes it."""
        return CausalContext({name: nova_sequence_count(self.events, self.numbers[name]) for name in self.known_names()})

    @property
    def runs(self):
        """How many runs of events the text is made of; memory grows with them."""
        return nova_sequence_spans(self.events)

    @property
    def memory_bytes(self):
        """Bytes held beyond the Python object."""
        return nova_sequence_memory(self.events)

    # -- exchange --

    cdef int since(self, dict known, list names, nova_sequence_runs *out) except -1:
        """The events of `names`, in that order, that somebody who knows `known` (actor -> count) lacks."""
        cdef size_t i, n = len(self.names)
        cdef int code
        cdef uint64_t *counts = <uint64_t *>PyMem_Malloc((n + 1) * sizeof(uint64_t))
        cdef uint32_t *order = <uint32_t *>PyMem_Malloc((n + 1) * sizeof(uint32_t))
        memset(out, 0, sizeof(nova_sequence_runs))
        if counts == NULL or order == NULL:
            PyMem_Free(counts)
            PyMem_Free(order)
            raise MemoryError
        try:
            for i in range(n):
                counts[i] = min(known.get(self.names[i], 0), nova_sequence_count(self.events, i))
            for i in range(<size_t>len(names)):
                order[i] = self.numbers[names[i]]
            code = nova_sequence_since(self.events, counts, order, len(names), out)
        finally:
            PyMem_Free(counts)
            PyMem_Free(order)
        if code:
            nova_sequence_runs_free(out)
            raise failed(code)
        return 0

    cdef int learn(self, nova_sequence_runs *runs, list names, list lasts) except -1:
        """Apply runs whose agents are places in `names`; frees them. All or nothing."""
        cdef size_t i
        cdef int code
        cdef uint32_t *mine = NULL
        cdef nova_sequence_run *r
        cdef size_t known = len(self.names)
        try:
            if self.actor is not None and self.actor in names:
                last = lasts[names.index(self.actor)]
                if last > nova_sequence_count(self.events, self.own):
                    raise CorruptionError(
                        f"actor {self.actor!r} wrote event {last} elsewhere, this replica is at "
                        f"{nova_sequence_count(self.events, self.own)}: two replicas share an actor; give each start, "
                        "copy and restore its own")
            mine = <uint32_t *>PyMem_Malloc((len(names) + 1) * sizeof(uint32_t))
            if mine == NULL:
                raise MemoryError
            for i in range(<size_t>len(names)):
                mine[i] = self.agent(names[i])
            if <size_t>len(self.names) > known:
                self.rank()
            for i in range(runs.size):
                r = &runs.at[i]
                r.dot = <uint64_t>mine[r.dot >> COUNT_BITS] << COUNT_BITS | r.dot & COUNT_MASK
                if r.left != NOVA_SEQUENCE_ROOT:
                    r.left = <uint64_t>mine[r.left >> COUNT_BITS] << COUNT_BITS | r.left & COUNT_MASK
                if r.right != NOVA_SEQUENCE_ROOT:
                    r.right = <uint64_t>mine[r.right >> COUNT_BITS] << COUNT_BITS | r.right & COUNT_MASK
            code = nova_sequence_apply(self.events, runs)
            if code:
                raise failed(code)
        except BaseException:
            # Whom only refused events name is forgotten: strangers must not fill the table of actors.
            if <size_t>len(self.names) > known and not nova_sequence_broken(self.events):
                nova_sequence_forget_agents(self.events, <uint32_t>known)
                while <size_t>len(self.names) > known:
                    self.numbers.pop(self.names.pop(), None)
                self.rank()
            raise
        finally:
            PyMem_Free(mine)
            nova_sequence_runs_free(runs)
        return 0

    def merge(self, RGA other not None):
        """Learn all that `other` knows; returns self. O(what is new), O(actors) if nothing is.

        raises   CorruptionError if the other knows events of our own actor that we did not make; the text is then as before
        """
        cdef nova_sequence_runs runs
        cdef size_t i
        self.ready()
        other.ready()
        if other is self:
            return self
        known = {name: nova_sequence_count(self.events, i) for i, name in enumerate(self.names)}
        lasts = [nova_sequence_count(other.events, i) for i in range(<size_t>len(other.names))]
        if all([last <= known.get(name, 0) for name, last in zip(other.names, lasts)]):
            return self
        other.since(known, other.names, &runs)
        self.learn(&runs, list(other.names), lasts)
        return self

    cdef bytes runs_bytes(self, nova_sequence_runs *runs, list names):
        """Runs on the wire; frees them."""
        cdef uint8_t *out = NULL
        cdef size_t size = 0
        cdef int code
        cdef uint32_t *rank = <uint32_t *>PyMem_Malloc((len(self.names) + 1) * sizeof(uint32_t))
        if rank == NULL:
            nova_sequence_runs_free(runs)
            raise MemoryError
        for place, name in enumerate(names):
            rank[<uint32_t>self.numbers[name]] = place
        code = nova_sequence_runs_write(runs, rank, &out, &size)
        PyMem_Free(rank)
        nova_sequence_runs_free(runs)
        if code:
            raise failed(code)
        try:
            return PyBytes_FromStringAndSize(<char *>out, size)
        finally:
            free(out)

    def delta_since(self, context=None):
        """What somebody who knows `context` (a context, clock or mapping) lacks, as bytes for `apply_delta`."""
        cdef nova_sequence_runs runs
        cdef CausalContext asked = as_context(context)
        self.ready()
        known = asked.vector.to_dict()
        names = self.known_names()
        parts = [number(len(names))]
        for name in names:
            raw = name.encode()
            count = nova_sequence_count(self.events, self.numbers[name])
            parts += [number(len(raw)), raw, number(min(known.get(name, 0), count)), number(count)]
        self.since(known, names, &runs)
        parts.append(self.runs_bytes(&runs, names))
        return seal(DELTA_MAGIC, parts)

    def apply_delta(self, data):
        """Learn what a delta holds, exactly as by merging with its sender; twice or late does no harm. Returns self.

        raises   CorruptionError for bytes that are no delta of a sequence; UsageError if it was made for a context that
                 knew more than this replica; the text is then as before
        """
        cdef nova_sequence_runs runs
        self.ready()
        names, firsts, lasts = read_events(data, DELTA_MAGIC, True, &runs)
        for name, first, last in zip(names, firsts, lasts):
            found = self.numbers.get(name)
            if first > (nova_sequence_count(self.events, found) if found is not None else 0):
                nova_sequence_runs_free(&runs)
                raise failed(NOVA_SEQUENCE_EGAP)
        self.learn(&runs, names, lasts)
        return self

    def to_bytes(self):
        """All events in canonical bytes: replicas that know the same events give the same."""
        cdef nova_sequence_runs runs
        self.ready()
        names = self.known_names()
        parts = [number(len(names))]
        for name in names:
            raw = name.encode()
            parts += [number(len(raw)), raw, number(nova_sequence_count(self.events, self.numbers[name]))]
        self.since({}, names, &runs)
        parts.append(self.runs_bytes(&runs, names))
        return seal(STATE_MAGIC, parts)

    @classmethod
    def from_bytes(cls, data, *, actor=None):
        """Read what `to_bytes` wrote.

        actor    who goes on writing here; it must be a new one, because somebody else may hold what the old one wrote
                 since; without it the replica reads and merges only
        raises   CorruptionError for anything that is no state of a sequence
        """
        cdef nova_sequence_runs runs
        cdef RGA out = cls(actor)
        names, _, lasts = read_events(data, STATE_MAGIC, False, &runs)
        if out.actor is not None and out.actor in names:
            nova_sequence_runs_free(&runs)
            raise UsageError(
                f"actor {out.actor!r} already wrote here; restore and fork under a new one, as name~incarnation")
        out.learn(&runs, names, lasts)
        if out.to_bytes() != data:
            raise malformed(WHAT, "its runs are not in their one spelling")
        return out

    def fork(self, actor):
        """A replica that goes its own way under a new actor (None: it only reads and merges)."""
        cdef RGA out = type(self)(actor)
        if out.actor is not None and out.actor in self.known_names():
            raise UsageError(
                f"actor {out.actor!r} already wrote here; restore and fork under a new one, as name~incarnation")
        return out.merge(self)

    def digest(self):
        """16 bytes, equal if the states are: the visible elements with their ids, and which events are known."""
        cdef bytes body = self.context.to_bytes()
        cdef char raw[16]
        cdef nova_digest d
        self.ready()
        d = nova_digest_add(nova_sequence_digest(self.events), hash_bytes(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 12))
        nova_store64le(raw, d.lo)
        nova_store64le(raw + 8, d.hi)
        return PyBytes_FromStringAndSize(raw, 16)

    def _check(self):
        """0, or where csrc/sequence.c found an invariant broken."""
        return nova_sequence_check(self.events)

    def __eq__(self, other):
        if not isinstance(other, RGA):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    __hash__ = None

    def __reduce__(self):
        return type(self).from_bytes, (self.to_bytes(),)

    def __str__(self):
        return self.text

    def __repr__(self):
        return f"{type(self).__name__}(actor={self.actor!r}, value={self.value!r})"


cdef tuple read_events(object data, bytes magic, bint delta, nova_sequence_runs *runs):
    """(names, first counts, last counts) and the runs, which the caller frees."""
    cdef nova_reader r
    cdef uint64_t i, n, size, first, last
    cdef const uint8_t *at
    cdef list names = [], firsts = [], lasts = []
    cdef uint64_t *counts = NULL
    cdef int code
    memset(runs, 0, sizeof(nova_sequence_runs))
    unseal(data, magic, "sequence delta" if delta else WHAT, &r)
    n = nova_take_size(&r, 3)
    for i in range(n):
        size = nova_take_number(&r)
        at = nova_take(&r, size)
        first = nova_take_number(&r) if delta else 0
        last = nova_take_number(&r)
        if not r.ok or size == 0 or size > 1024 or first > last or last == 0 or last > COUNT_MASK:
            raise malformed(WHAT, "an actor is cut, too long or has no events")
        try:
            name = PyBytes_FromStringAndSize(<const char *>at, size).decode()
        except UnicodeDecodeError:
            raise malformed(WHAT, "an actor is not UTF-8") from None
        if names and name <= names[len(names) - 1]:
            raise malformed(WHAT, "its actors are out of order")
        names.append(name)
        firsts.append(first)
        lasts.append(last)
    if not r.ok:
        raise malformed(WHAT, "it is cut")
    counts = <uint64_t *>PyMem_Malloc((2 * n + 1) * sizeof(uint64_t))
    if counts == NULL:
        raise MemoryError
    for i in range(n):
        counts[i], counts[n + i] = firsts[i], lasts[i]
    code = nova_sequence_runs_read(r.at, nova_left(&r), counts, counts + n, n, runs)
    PyMem_Free(counts)
    if code:
        nova_sequence_runs_free(runs)
        raise MemoryError if code == NOVA_SEQUENCE_EMEMORY else malformed(WHAT, "a run or an element is cut or out of bounds")
    return names, firsts, lasts
