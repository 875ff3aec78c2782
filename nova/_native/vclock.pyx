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


# --- bytes -------------------------------------------------------------------------------------------------------------

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


# --- actors ------------------------------------------------------------------------------------------------------------

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


include "vclock_clocks.pxi"
include "vclock_dotted.pxi"
include "vclock_hybrid.pxi"
include "vclock_contexts.pxi"
