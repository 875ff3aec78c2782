"""The sequence CRDTs, of text and of values, on csrc/sequence.c. `nova.crdt.sequence` is the face of this module."""

import msgspec

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from nova._native.crdt cimport check_value, pack
from nova._native.digest cimport hash_bytes, nova_digest, nova_digest_add
from nova._native.vclock cimport (
    CausalContext, as_actor, as_context, malformed, nova_left, nova_reader, nova_reader_of, nova_store64le, nova_take,
    nova_take_number, nova_take_size, number, seal, unseal,
)

from nova.errors import CorruptionError, LimitError, UsageError

cdef extern from "Python.h":
    unsigned PyUnicode_KIND(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    bint PyUnicode_IS_ASCII(object text)
    str PyUnicode_FromKindAndData(int kind, const void *buffer, Py_ssize_t size)
    uint32_t *PyUnicode_AsUCS4(object text, uint32_t *buffer, Py_ssize_t size, bint copy_null) except NULL

cdef str WHAT = "sequence"
cdef object decode = msgspec.msgpack.Decoder().decode
DEF MARK_BYTES_MAX = 65536


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


cdef object bad_range(object pos, object n, str whole, object length, str unit):
    return UsageError(f"position {pos} and length {n} are not within the {whole} of {length} {unit}")


cdef object failed(int code):
    if code == NOVA_SEQUENCE_EMEMORY:
        return MemoryError()
    if code == NOVA_SEQUENCE_ECOUNT:
        return UsageError("an actor's events end at 2**48 - 1, and one call inserts less than 2**32 - 1; go on under a new actor")
    if code == NOVA_SEQUENCE_EAGENTS:
        return LimitError(f"a sequence has at most {NOVA_SEQUENCE_AGENTS_MAX} actors; start a new one from its value")
    if code == NOVA_SEQUENCE_EGAP:
        return UsageError("this delta was made for a replica that knew more; ask its sender for delta_since(ours.context)")
    return malformed(WHAT, "its events are no possible history")


# --- bytes -----------------------------------------------------------------------------------------------------------

cdef list packed(bytes raw):
    """Bytes with their length in front, in fewer if csrc/pack.c finds a way. The lowest bit of the length tells."""
    cdef size_t size = PyBytes_GET_SIZE(raw), n
    cdef bytes room = PyBytes_FromStringAndSize(NULL, size)
    n = nova_pack(<uint8_t *>PyBytes_AS_STRING(raw), size, <uint8_t *>PyBytes_AS_STRING(room))
    if not n:
        return [number(size << 1), raw]
    return [number(size << 1 | 1), number(n), room[:n]]


cdef bytes unpacked(nova_reader *r):
    cdef uint64_t head = nova_take_number(r), size = head >> 1, n = nova_take_number(r) if head & 1 else size
    cdef const uint8_t *at = nova_take(r, n)
    cdef bytes out
    if at == NULL or (head & 1 and size // NOVA_PACK_GAIN_MAX > n):
        raise malformed(WHAT, "its elements are cut")
    if not head & 1:
        return PyBytes_FromStringAndSize(<const char *>at, n)
    out = PyBytes_FromStringAndSize(NULL, size)
    if nova_unpack(at, n, <uint8_t *>PyBytes_AS_STRING(out), size):
        raise malformed(WHAT, "its elements are packed in no way of ours")
    return out


cdef str unpacked_text(nova_reader *r):
    cdef bytes raw = unpacked(r)
    try:
        return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), NULL)
    except UnicodeDecodeError:
        raise malformed(WHAT, "its text is not UTF-8") from None


cdef int read_names(nova_reader *r, bint delta, list names, list firsts, list lasts) except -1:
    """The actors of a state or delta, and from which to which of their events it goes."""
    cdef uint64_t i, n = nova_take_size(r, 3), size, first, last
    cdef const uint8_t *at
    for i in range(n):
        size = nova_take_number(r)
        at = nova_take(r, size)
        first = nova_take_number(r) if delta else 0
        last = nova_take_number(r)
        if not r.ok or size == 0 or size > 1024 or first > last or last == 0 or last > NOVA_SEQUENCE_COUNT_MASK:
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
    return 0


cdef int check_spelling(const uint8_t *at, size_t size) except -1:
    """Is this the one spelling of a value?"""
    if check_value(at, size, False):
        raise malformed(WHAT, f"a value of {size} bytes is not canonical MessagePack")
    return 0


cdef uint32_t *room_for_elements(nova_runs *runs, size_t n) except NULL:
    if nova_runs_grow(<void **>&runs.elements, 0, &runs.elements_room, sizeof(uint32_t), n + 1):
        raise MemoryError
    runs.elements_size = n
    return runs.elements


# --- what text and lists share ---------------------------------------------------------------------------------------

cdef class Sequence:
    """What RGA and RGAList share: events and their exchange. What an element is, and what a mark says, is theirs."""

    def __cinit__(self):
        self.events = nova_sequence_new()
        if self.events == NULL:
            raise MemoryError
        self.names = []
        self.numbers = {}
        self.own = 0xFFFFFFFF

    def __init__(self, actor=None):
        if self.state_magic is None:
            raise UsageError("Sequence is what RGA and RGAList share; make one of these")
        if self.actor is not None or self.names or self.unread is not None:
            raise UsageError(f"this {type(self).__name__} is made already; make a new one")
        if actor is not None:
            if not isinstance(actor, str) or not actor:
                raise UsageError(f"actor {actor!r} is none; an actor is a str, new at every start: name~incarnation")
            self.actor = as_actor(actor)
            self.own = self.agent(self.actor)
            self.rank()

    def __dealloc__(self):
        nova_sequence_free(self.events)

    cdef int ready(self) except -1:
        if self.unread is not None:
            self.read_history()
        if self.refused is not None:
            raise CorruptionError(self.refused)
        if nova_sequence_broken(self.events):
            raise CorruptionError("this sequence ran out of memory in the middle of a change; read it again from its bytes")
        return 0

    cdef int writable(self) except -1:
        if self.actor is None:
            raise UsageError("this replica has no actor and only reads; write on one that was made with actor=")
        return self.ready()

    cdef int check_range(self, int64_t pos, int64_t n) except -1:
        cdef int64_t length = nova_sequence_length(self.events)
        if pos < 0 or n < 0 or pos > length or n > length - pos:
            raise bad_range(pos, n, self.whole, length, self.unit)
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
        if self.unread is not None:
            return self.unread_names
        return sorted([name for i, name in enumerate(self.names) if nova_sequence_count(self.events, i)])

    # -- what elements and marks are --

    cdef list whole_bytes(self):
        """All elements, in their order, as bytes."""
        raise NotImplementedError

    cdef object read_whole(self, nova_reader *r):
        """And back, as `load` takes them."""
        raise NotImplementedError

    cdef int load(self, nova_runs *runs, object whole) except -1:
        """`nova_sequence_load` with what `read_whole` returned."""
        raise NotImplementedError

    cdef list elements_bytes(self, nova_runs *runs):
        """The elements of runs as bytes."""
        raise NotImplementedError

    cdef int read_elements(self, nova_reader *r, nova_runs *runs) except -1:
        """And back."""
        raise NotImplementedError

    cdef list marks_bytes(self, nova_runs *runs):
        """What marks say, as bytes; the runs are then numbered by places in them."""
        return []

    cdef list read_says(self, nova_reader *r):
        """And back."""
        return []

    cdef uint32_t say(self, bytes raw) except? 0xFFFFFFFF:
        """Our number of what a mark says."""
        raise NotImplementedError

    cdef int adopt(self, Sequence other, nova_runs *runs) except -1:
        """Give runs of another replica's our numbers of elements and marks."""
        return 0

    cdef int settle(self, bint kept) except -1:
        """Events were applied and their elements and marks kept, or they were refused."""
        return 0

    # -- reading --

    def __len__(self):
        if self.unread is not None:
            return len(self.unread_elements)
        return nova_sequence_length(self.events)

    @property
    def context(self):
        """A copy of the events known here; `delta_since` on another replica takes it."""
        if self.unread is not None:
            return CausalContext(dict(zip(self.unread_names, self.unread_lasts)))
        return CausalContext({name: nova_sequence_count(self.events, self.numbers[name]) for name in self.known_names()})

    @property
    def runs(self):
        """How many runs of inserted elements the sequence is made of; memory grows with them."""
        self.ready()
        return nova_sequence_spans(self.events)

    @property
    def memory_bytes(self):
        """Bytes held beyond the Python object, and beyond the values of an RGAList."""
        self.ready()
        return nova_sequence_memory(self.events)

    # -- exchange --

    cdef int since(self, dict known, list names, bint elements, nova_runs *out) except -1:
        """The events of `names`, in that order, that somebody who knows `known` (actor -> count) lacks."""
        cdef size_t i, n = len(self.names)
        cdef int code
        cdef uint64_t *counts = <uint64_t *>PyMem_Malloc((n + 1) * sizeof(uint64_t))
        cdef uint32_t *order = <uint32_t *>PyMem_Malloc((n + 1) * sizeof(uint32_t))
        memset(out, 0, sizeof(nova_runs))
        if counts == NULL or order == NULL:
            PyMem_Free(counts)
            PyMem_Free(order)
            raise MemoryError
        try:
            for i in range(n):
                counts[i] = min(known.get(self.names[i], 0), nova_sequence_count(self.events, i))
            for i in range(<size_t>len(names)):
                order[i] = self.numbers[names[i]]
            code = nova_sequence_since(self.events, counts, order, len(names), elements, out)
        finally:
            PyMem_Free(counts)
            PyMem_Free(order)
        if code:
            nova_runs_free(out)
            raise failed(code)
        return 0

    cdef int learn(self, nova_runs *runs, list names, list lasts, object whole) except -1:
        """Apply runs whose agents are places in `names`, and frees them; or load them with the elements of a whole state.
        All or nothing."""
        cdef size_t i
        cdef int code
        cdef uint32_t *mine = NULL
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
            nova_runs_rename(runs, mine)
            if whole is not None:
                self.load(runs, whole)
            else:
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
            self.settle(False)
            raise
        finally:
            PyMem_Free(mine)
            nova_runs_free(runs)
        self.settle(True)
        return 0

    def merge(self, Sequence other not None):
        """Learn all that `other` knows; returns self. O(what is new), O(actors) if nothing is.

        raises   CorruptionError if the other knows events of our own actor that we did not make; nothing is then changed
        """
        cdef nova_runs runs
        cdef size_t i
        if other.state_magic != self.state_magic:
            raise UsageError(f"a {type(other).__name__} cannot be merged into a {type(self).__name__}; merge equal types")
        self.ready()
        other.ready()
        if other is self:
            return self
        known = {name: nova_sequence_count(self.events, i) for i, name in enumerate(self.names)}
        lasts = [nova_sequence_count(other.events, i) for i in range(<size_t>len(other.names))]
        if all([last <= known.get(name, 0) for name, last in zip(other.names, lasts)]):
            return self
        other.since(known, other.names, True, &runs)
        try:
            self.adopt(other, &runs)
        except BaseException:
            nova_runs_free(&runs)
            self.settle(False)
            raise
        self.learn(&runs, list(other.names), lasts, None)
        return self

    cdef bytes runs_bytes(self, nova_runs *runs, list names):
        """Runs on the wire."""
        cdef uint8_t *out = NULL
        cdef size_t size = 0
        cdef int code
        cdef uint32_t *rank = <uint32_t *>PyMem_Malloc((len(self.names) + 1) * sizeof(uint32_t))
        if rank == NULL:
            raise MemoryError
        for place, name in enumerate(names):
            rank[<uint32_t>self.numbers[name]] = place
        code = nova_runs_write(runs, rank, len(names), &out, &size)
        PyMem_Free(rank)
        if code:
            raise failed(code)
        try:
            return PyBytes_FromStringAndSize(<char *>out, size)
        finally:
            free(out)

    cdef int read_runs(self, nova_reader *r, list firsts, list lasts, nova_runs *runs) except -1:
        """And back, to the end of the bytes: what marks say, then runs."""
        cdef size_t i, n = len(lasts)
        cdef int code
        cdef bytes raw
        cdef list says = self.read_says(r)
        cdef uint64_t *counts = <uint64_t *>PyMem_Malloc((2 * n + 1) * sizeof(uint64_t))
        if counts == NULL:
            raise MemoryError
        for i in range(n):
            counts[i], counts[n + i] = firsts[i], lasts[i]
        code = nova_runs_read(r.at, nova_left(r), counts, counts + n, n, runs)
        PyMem_Free(counts)
        if code:
            if code == NOVA_SEQUENCE_EBYTES:
                raise malformed(WHAT, "a run is cut or out of bounds")
            raise failed(code)
        for i in range(runs.marks_size):
            if runs.marks[i].value >= <size_t>len(says):
                raise malformed(WHAT, "a mark says nothing")
            raw = says[runs.marks[i].value]
            runs.marks[i].value = self.say(raw)
            runs.marks[i].hash = hash_bytes(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), 0).lo
        return 0

    def delta_since(self, context=None):
        """What somebody who knows `context` (a context, clock or mapping) lacks, as bytes for `apply_delta`."""
        cdef nova_runs runs
        cdef CausalContext asked = as_context(context)
        self.ready()
        known = asked.vector.to_dict()
        names = self.known_names()
        parts = [number(len(names))]
        for name in names:
            raw = name.encode()
            count = nova_sequence_count(self.events, self.numbers[name])
            parts += [number(len(raw)), raw, number(min(known.get(name, 0), count)), number(count)]
        self.since(known, names, True, &runs)
        try:
            parts += self.elements_bytes(&runs)
            parts += self.marks_bytes(&runs)
            parts.append(self.runs_bytes(&runs, names))
        finally:
            nova_runs_free(&runs)
        return seal(self.delta_magic, parts)

    def apply_delta(self, data):
        """Learn what a delta holds, exactly as by merging with its sender; twice or late does no harm. Returns self.

        raises   CorruptionError for bytes that are no delta of this type; UsageError if it was made for a context that
                 knew more than this replica; nothing is then changed
        """
        cdef nova_runs runs
        cdef nova_reader r
        cdef list names = [], firsts = [], lasts = []
        self.ready()
        unseal(data, self.delta_magic, "sequence delta", &r)
        read_names(&r, True, names, firsts, lasts)
        for name, first in zip(names, firsts):
            found = self.numbers.get(name)
            if first > (nova_sequence_count(self.events, found) if found is not None else 0):
                raise failed(NOVA_SEQUENCE_EGAP)
        memset(&runs, 0, sizeof(nova_runs))
        try:
            self.read_elements(&r, &runs)
            self.read_runs(&r, firsts, lasts, &runs)
        except BaseException:
            nova_runs_free(&runs)
            self.settle(False)
            raise
        self.learn(&runs, names, lasts, None)
        return self

    def to_bytes(self):
        """All events in canonical bytes: replicas that know the same events give the same."""
        cdef nova_runs runs
        if self.unread is not None:
            return self.unread
        self.ready()
        names = self.known_names()
        parts = [number(len(names))]
        for name in names:
            raw = name.encode()
            parts += [number(len(raw)), raw, number(nova_sequence_count(self.events, self.numbers[name]))]
        self.since({}, names, False, &runs)
        try:
            parts += self.whole_bytes()
            parts += self.marks_bytes(&runs)
            parts.append(self.runs_bytes(&runs, names))
        finally:
            nova_runs_free(&runs)
        return seal(self.state_magic, parts)

    @classmethod
    def from_bytes(cls, data, *, actor=None):
        """Read what `to_bytes` wrote.

        actor    who goes on writing here; it must be a new one, because somebody else may hold what the old one wrote
                 since; without it the replica reads and merges only
        raises   CorruptionError for anything that is no state of this type
        cost     that of its elements; its history is read by the first call that needs more than `value`, `context` and
                 `to_bytes`. If a stranger made that up, this call raises CorruptionError.
        """
        cdef nova_reader r
        cdef Sequence out = cls(actor)
        cdef list names = [], firsts = [], lasts = []
        unseal(data, out.state_magic, WHAT, &r)
        read_names(&r, False, names, firsts, lasts)
        if out.actor is not None and out.actor in names:
            raise UsageError(
                f"actor {out.actor!r} already wrote here; restore and fork under a new one, as name~incarnation")
        out.unread_elements = out.read_whole(&r)
        out.unread_from = r.at - <const uint8_t *>PyBytes_AS_STRING(data)
        out.unread_names, out.unread_lasts = names, lasts
        out.unread = data
        return out

    cdef int read_history(self) except -1:
        cdef nova_runs runs
        cdef bytes data = self.unread
        cdef list names = self.unread_names, lasts = self.unread_lasts
        cdef object whole = self.unread_elements
        cdef nova_reader r = nova_reader_of(PyBytes_AS_STRING(data) + self.unread_from,
                                            PyBytes_GET_SIZE(data) - 8 - self.unread_from)
        self.unread = None
        self.unread_elements = None
        memset(&runs, 0, sizeof(nova_runs))
        try:
            try:
                self.read_runs(&r, [0] * len(lasts), lasts, &runs)
            except BaseException:
                nova_runs_free(&runs)
                raise
            self.learn(&runs, names, lasts, whole)
            if self.to_bytes() != data:
                raise malformed(WHAT, "its runs are not in their one spelling")
        except (CorruptionError, LimitError) as error:
            self.refused = str(error)
            raise
        return 0

    def fork(self, actor):
        """A replica that goes its own way under a new actor (None: it only reads and merges)."""
        cdef Sequence out = type(self)(actor)
        if out.actor is not None and out.actor in self.known_names():
            raise UsageError(
                f"actor {out.actor!r} already wrote here; restore and fork under a new one, as name~incarnation")
        return out.merge(self)

    def digest(self):
        """16 bytes, equal if the states are: the visible elements with their ids, marks, and which events are known."""
        cdef bytes body
        cdef char raw[16]
        cdef nova_digest d
        self.ready()
        body = self.context.to_bytes()
        d = nova_digest_add(nova_sequence_digest(self.events), hash_bytes(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 12))
        nova_store64le(raw, d.lo)
        nova_store64le(raw + 8, d.hi)
        return PyBytes_FromStringAndSize(raw, 16)

    def _check(self):
        """0, or where csrc/sequence.c found an invariant broken."""
        self.ready()
        return nova_sequence_check(self.events)

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    __hash__ = None

    def __reduce__(self):
        return type(self).from_bytes, (self.to_bytes(),)

    def __repr__(self):
        return f"{type(self).__name__}(actor={self.actor!r}, value={self.value!r})"


include "sequence_text.pxi"
include "sequence_list.pxi"
