"""What happens to every pair of versions: equality of values, paths that differ, pruning, the record of a conflict.

`nova.conflict.detect` is the face.
"""

from collections.abc import Mapping, Set
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from hashlib import blake2b
from types import MappingProxyType

import msgspec
from msgspec.msgpack import Ext

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next, PyDict_Size
from cpython.object cimport Py_EQ, Py_GT, PyObject, PyObject_RichCompareBool

from libc.stdint cimport int8_t, uint32_t, uint64_t

from nova._native.merge cimport beside
from nova._native.vclock cimport VectorClock, nova_clock, nova_vclock_compare

from nova.errors import UsageError

cdef extern from "Python.h":
    int Py_EnterRecursiveCall(const char *where) except -1
    void Py_LeaveRecursiveCall()
    object PyUnicode_Concat(object, object)

cdef enum:
    BEFORE = 1
    AFTER = 2
    CONCURRENT = 3

cdef object Struct = msgspec.Struct
cdef object ENCODE = msgspec.msgpack.Encoder(order="deterministic").encode
cdef type NONE = type(None)
cdef object NAN = float("nan")
cdef int MISSING_EXT = 1, BIG_EXT = 2, PAIRS_EXT = 3, SET_EXT = 4
cdef frozenset PLAIN = frozenset((str, bool, NONE, bytes))
cdef frozenset JSON = frozenset((str, int, float, bool, NONE, bytes, dict, list))
cdef object NOTHING = MappingProxyType({})


# --- values ----------------------------------------------------------------------------------------------------------

cdef class Missing:
    """Absence as a value: `null` is something a writer wrote, MISSING is nothing at all."""

    def __repr__(self):
        return "MISSING"

    def __bool__(self):
        return False

    def __reduce__(self):
        return "MISSING"


MISSING = Missing()
cdef object _MISSING = MISSING
cdef object ABSENT = object()      # the base is known, and has nothing here; MISSING: no base is known


def canonical(value):
    """Bytes that are equal exactly when two values are: map order, -0.0, NaN and 1 against 1.0 make no difference.

    True is not 1, null is not MISSING, a set is not a list, composed is not decomposed text. Values are JSON values,
    sets, bytes, datetimes, dataclasses, Structs and integers of any size.
    """
    return ENCODE(value) if type(value) in PLAIN else ENCODE(plain(value, True))


def exact(value):
    """Like `canonical`, but 1 and 1.0 differ: the last tie-break, so that replicas keep the same *form* too."""
    return ENCODE(plain(value, False))


cdef object plain(object value, bint fold):
    """The value in words that MessagePack has. Raises RecursionError for one that contains itself."""
    cdef type kind = type(value)
    if kind in PLAIN:
        return value
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 64 else Ext(BIG_EXT, b"%d" % value)
    if kind is float:
        if value != value:
            return NAN
        return plain(int(value), fold) if fold and value - value == 0 and value == int(value) else value
    Py_EnterRecursiveCall(b" in a value that is made canonical")
    try:
        return plain_container(value, fold)
    finally:
        Py_LeaveRecursiveCall()


cdef object plain_container(object value, bint fold):
    if isinstance(value, Mapping):
        if all([type(key) is str for key in value]):
            return {key: plain(item, fold) for key, item in value.items()}
        pairs = sorted([(ENCODE(plain(key, fold)), ENCODE(plain(item, fold))) for key, item in value.items()])
        return Ext(PAIRS_EXT, ENCODE(pairs))
    if isinstance(value, (list, tuple)):
        return [plain(item, fold) for item in value]
    if isinstance(value, Set):
        return Ext(SET_EXT, ENCODE(sorted([ENCODE(plain(item, fold)) for item in value])))
    if value is _MISSING:
        return Ext(MISSING_EXT, b"")
    if isinstance(value, Struct):
        return {name: plain(getattr(value, name), fold) for name in value.__struct_fields__}
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name), fold) for field in dataclass_fields(value)}
    return value        # datetimes, enums, UUIDs: msgspec knows them, or refuses with the type's name


def same(a, b):
    """Whether two values are equal in the sense of `canonical`. Raises RecursionError as that does."""
    return alike(a, b)


cdef int alike(object a, object b) except -1:
    cdef type kind = type(a), other = type(b)
    if a is b:
        return 1
    if kind is not other:
        if (kind is int and other is float) or (kind is float and other is int):
            return PyObject_RichCompareBool(a, b, Py_EQ)
        if kind in JSON and other in JSON:
            return 0
    elif kind is str or kind is int or kind is bytes:
        return PyObject_RichCompareBool(a, b, Py_EQ)
    elif kind is bool or kind is NONE:
        return 0            # two of a kind that are not one object
    elif kind is float:
        return a == b or (a != a and b != b)
    elif kind is dict or kind is list:
        Py_EnterRecursiveCall(b" in a value that is compared")
        try:
            return alike_lists(a, b) if kind is list else alike_dicts(a, b)
        finally:
            Py_LeaveRecursiveCall()
    return canonical(a) == canonical(b)


cdef int alike_lists(list a, list b) except -1:
    cdef Py_ssize_t i
    if len(a) != len(b):
        return 0
    for i in range(len(a)):
        if not alike(a[i], b[i]):
            return 0
    return 1


cdef int alike_dicts(dict a, dict b) except -1:
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *other
    cdef Py_ssize_t at = 0
    if PyDict_Size(a) == PyDict_Size(b):
        while PyDict_Next(a, &at, &key, &value):
            if type(<object>key) is not str:
                break       # True and 1 are one key to a dict
            other = PyDict_GetItemWithError(b, <object>key)
            if other is value:
                continue
            if other is NULL or not alike(<object>value, <object>other):
                return 0
        else:
            return 1
    return canonical(a) == canonical(b)


def differing(a, b, base):
    """Pointers where a and b differ, in order; with a base (MISSING: there is none), where both also differ from it.

    Cost: O(size), and little for what is equal.
    """
    cdef list out = []
    differ(a, b, base, "", out)
    return tuple(out)


cdef int differ(object a, object b, object base, str path, list out) except -1:
    if a is b:
        return 0
    if (type(a) is dict or isinstance(a, Mapping)) and (type(b) is dict or isinstance(b, Mapping)):
        Py_EnterRecursiveCall(b" in a value that is compared")
        try:
            differ_maps(
                a if type(a) is dict else dict(a), b if type(b) is dict else dict(b), base, path, out
            )
        finally:
            Py_LeaveRecursiveCall()
    elif not alike(a, b):
        if base is not _MISSING:
            before = _MISSING if base is ABSENT else base
            if alike(a, before) or alike(b, before):
                return 0
        out.append(path)
    return 0


cdef int differ_maps(dict a, dict b, object base, str path, list out) except -1:
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *other
    cdef Py_ssize_t at = 0, at_b = 0, common = 0
    cdef type kind
    cdef list keys = []
    cdef dict known = None
    cdef str where
    while PyDict_Next(a, &at, &key, &value):
        other = beside(b, &at_b, key)
        common += other is not NULL
        if other is value:
            continue
        kind = type(<object>value)
        if other is not NULL and (kind is str or kind is int) and kind is type(<object>other):
            if PyObject_RichCompareBool(<object>value, <object>other, Py_EQ):
                continue
        keys.append(<object>key)
    if common < PyDict_Size(b):
        at = 0
        while PyDict_Next(b, &at, &key, &other):
            if PyDict_GetItemWithError(a, <object>key) is NULL:
                keys.append(<object>key)
    if not keys:
        return 0
    if len(keys) > 1:
        keys.sort(key=str)
    if base is not _MISSING and (type(base) is dict or isinstance(base, Mapping)):
        known = base if type(base) is dict else dict(base)
    for name in keys:
        where = str(name)
        if "~" in where or "/" in where:
            where = where.replace("~", "~0").replace("/", "~1")
        before = _MISSING if known is None else known.get(name, ABSENT)
        differ(a.get(name, _MISSING), b.get(name, _MISSING), before, path + "/" + where, out)
    return 0


# --- versions --------------------------------------------------------------------------------------------------------

cdef inline int order_of(object a, object b) except -1:
    """How the clock of a version stands to that of another, as nova_order."""
    cdef VectorClock x = a.clock, y = b.clock
    cdef nova_clock one, other
    one.actors, one.counts, one.size = x.actors.ids, x.counts, x.actors.size
    other.actors, other.counts, other.size = y.actors.ids, y.counts, y.actors.size
    return nova_vclock_compare(one, other)


def concurrent(local, remote):
    """Whether neither version knows all that the other does."""
    return order_of(local, remote) == CONCURRENT


def orders(pairs):
    """One byte per pair of versions, its Order."""
    cdef list given = pairs if type(pairs) is list else list(pairs)
    cdef Py_ssize_t i
    cdef bytes out = PyBytes_FromStringAndSize(NULL, len(given))
    cdef char *at = PyBytes_AS_STRING(out)
    for i in range(len(given)):
        local, remote = given[i]
        at[i] = <char>order_of(local, remote)
    return out


def last_of(const int8_t[::1] orders not None, const uint64_t[::1] mine not None, const uint64_t[::1] yours not None,
            const uint32_t[::1] my_origin not None, const uint32_t[::1] your_origin not None, int8_t[::1] out not None):
    """Which of two versions stays, a row each: 0 ours, 1 theirs, 2 for what only the values can tell.

    orders   nova_order of ours to theirs; of concurrent ones the timestamps decide, then the ranks of the origins
    """
    cdef Py_ssize_t i, n = out.shape[0]
    cdef bint later, equal
    if not (orders.shape[0] == mine.shape[0] == yours.shape[0] == my_origin.shape[0] == your_origin.shape[0] == n):
        raise UsageError("columns of versions differ in length; all must be equally long")
    with nogil:
        for i in range(n):
            equal = mine[i] == yours[i]
            later = (yours[i] > mine[i]) | (equal & (your_origin[i] > my_origin[i]))
            equal &= your_origin[i] == my_origin[i]
            out[i] = (orders[i] == BEFORE) | ((orders[i] == CONCURRENT) & later)
            out[i] |= ((orders[i] == CONCURRENT) & equal) << 1


def stamp_of(version):
    return version.timestamp, version.origin


def rank_of(version):
    return version.timestamp, version.origin, canonical(version.value), exact(version.value)


cdef int newer(object a, object b) except? -1:
    """1: a is newer than b, 0: b than a, by timestamp and origin; -1: these are equal."""
    one, other = a.timestamp, b.timestamp
    if PyObject_RichCompareBool(one, other, Py_GT):
        return 1
    if not PyObject_RichCompareBool(one, other, Py_EQ):
        return 0
    one, other = a.origin, b.origin
    return -1 if PyObject_RichCompareBool(one, other, Py_EQ) else PyObject_RichCompareBool(one, other, Py_GT)


def ordered(versions):
    """Oldest first, in the one order all replicas agree on: timestamp, then origin, then canonical bytes."""
    return in_order(versions)


cdef list in_order(object versions):
    cdef list out = list(versions)
    cdef Py_ssize_t i, k, n = len(out)
    cdef int how
    if n > 8:       # fewer are soonest put in order by hand
        out.sort(key=stamp_of)
        for i in range(1, n):
            if newer(out[i], out[i - 1]) < 0:
                out.sort(key=rank_of)
                break
        return out
    for i in range(1, n):
        version = out[i]
        k = i
        while k:
            how = newer(out[k - 1], version)
            if how < 0:         # their bytes decide
                out[k] = version
                out.sort(key=rank_of)
                return out
            if not how:
                break
            out[k] = out[k - 1]
            k -= 1
        out[k] = version
    return out


def newest(versions):
    """The last of `ordered(versions)`: the one a last-writer-wins rule keeps."""
    best = versions[0]
    for version in versions[1:]:
        how = newer(version, best)
        if how > 0 or (how < 0 and rank_of(version) > rank_of(best)):
            best = version
    return best


def prune(versions):
    """Only the versions that no other one supersedes; of several with equal clocks the newest.

    A dominated version never survives, whatever its wall clock says. Cost: one compare per pair.
    """
    cdef list kept = []
    cdef Py_ssize_t i
    cdef int order
    for version in versions:
        for i in range(len(kept)):
            order = order_of(version, kept[i])
            if order == CONCURRENT:
                continue
            if order == AFTER:
                kept = [other for other in kept if order_of(version, other) != AFTER]
                kept.append(version)
            elif order != BEFORE:
                kept[i] = newest((kept[i], version))
            break
        else:
            kept.append(version)
    return kept


# --- conflicts -------------------------------------------------------------------------------------------------------

def conflict_id(resource_id, versions, contentions=()):
    """BLAKE2b-128 over the resource and every distinct (origin, timestamp, clock), in any order of arrival.

    Contentions count only where there are no versions, and then the resource id does not: which of two keys came
    second, and whether a third had arrived already, differs between replicas.
    """
    writes = sorted({ENCODE((v.origin, v.timestamp, tuple(v.clock.items()))) for v in versions})
    if writes:
        payload = (resource_id, writes)
    else:
        payload = sorted([(c.resource, sorted(c.owners)) for c in contentions])
    return blake2b(ENCODE(payload), digest_size=16, person=b"nova.conflict").hexdigest()


def complexity_of(int paths, int siblings, int depth, int types, int invariants):
    """1 - 1 / (1 + s), to three digits, where s adds up

    0.10 for each differing path after the first, 0.15 for each sibling at a path beyond two, 0.10 for each level of
    depth below the first, 0.25 for each conflict type after the first and 0.25 for each broken invariant.
    """
    s = 0.10 * max(paths - 1, 0) + 0.15 * siblings + 0.10 * max(depth - 1, 0) + 0.25 * max(types - 1, 0)
    return round(1 - 1 / (1 + s + 0.25 * invariants), 3)


cdef tuple CONFLICT_FIELDS = (
    "resource_id", "kind", "versions", "types", "severity", "paths", "siblings", "base", "auto_resolvable", "reason",
    "contentions", "broken",
)


cdef dict changed(tuple names, tuple values, dict changes, str what):
    cdef dict fields = dict(zip(names, values))
    if unknown := changes.keys() - fields.keys():
        raise UsageError(f"a {what} has no {', '.join(sorted(unknown))}; its fields are {', '.join(names)}")
    return fields | changes


cdef class Conflict:
    """Versions of one resource, none of which saw the others, or claims of several on one exclusive thing.

    id               32 hex digits, the same on every replica; made when it is first asked for, as is `complexity`
    versions         one per write; for a conflict at paths its value is {path: leaf} as far as that write goes
    types, severity  what classifiers found; the first type is the main one
    paths            where the versions differ, RFC 6901 pointers
    siblings         path -> concurrent leaf versions, oldest first; {"": versions} for a conflict of whole values
    complexity       0 (trivial) to 1, see `complexity_of`
    auto_resolvable  False: a strategy may choose, but somebody has to look; `reason` says why
    contentions      exclusive resources that more than one key claims
    broken           (invariant, what is wrong) pairs

    Immutable; made by a ConflictDetector, and `replace` makes another.
    """

    def __init__(self, resource_id, kind, tuple versions not None, tuple types not None, severity,
                 tuple paths not None, siblings, base, bint auto_resolvable, reason, tuple contentions not None=(),
                 tuple broken not None=()):
        if self.versions is not None:
            raise UsageError("a Conflict is immutable; replace() makes another")
        self.resource_id = resource_id
        self.kind = kind
        self.versions = versions
        self.types = types
        self.severity = severity
        self.paths = paths
        self.siblings = siblings
        self.base = base
        self.auto_resolvable = auto_resolvable
        self.reason = reason
        self.contentions = contentions
        self.broken = broken

    @property
    def id(self):
        if self.source is not None:
            return self.source.id
        if self.named is None:
            self.named = conflict_id(self.resource_id, self.versions, self.contentions)
        return self.named

    @property
    def complexity(self):
        if self.weighed is None and self.source is not None:
            return self.source.complexity
        if self.weighed is None:
            extra = sum([len(versions) - 2 for versions in self.siblings.values() if len(versions) > 2])
            depth = max([path.count("/") for path in self.paths], default=0)
            self.weighed = complexity_of(len(self.paths), extra, depth, len(self.types), len(self.broken))
        return self.weighed

    @property
    def local(self):
        """The version that was here (`detect`), or the oldest one (`examine`)."""
        return self.version(0)

    @property
    def remote(self):
        """The version that came in (`detect`), or the newest one (`examine`)."""
        return self.version(len(self.versions) - 1)

    @property
    def whole(self):
        """Whether this is a conflict of whole values, not of leaves at paths."""
        return self.is_whole()

    cdef bint is_whole(self):
        if type(self.siblings) is dict:
            return PyDict_Size(self.siblings) == 1 and "" in <dict>self.siblings
        return len(self.siblings) == 1 and "" in self.siblings

    def values_of(self, version):
        """{path: value} that `version`, one of `versions`, stands for."""
        return {"": version.value} if self.whole else version.value

    def replace(self, **changes):
        """The same conflict with these fields instead: a part of it, as a rule. It has its id and, unless another is
        given, its complexity."""
        cdef object weighed = changes.pop("complexity", None)
        cdef Conflict out = Conflict(**changed(CONFLICT_FIELDS, self.told(), changes, "Conflict"))
        out.source = self
        out.weighed = weighed
        return out

    cdef object version(self, Py_ssize_t at):
        if not self.versions:
            raise UsageError(f"conflict {self.id} is about resources, not versions; look at its contentions")
        return self.versions[at]

    cdef tuple told(self):
        return (self.resource_id, self.kind, self.versions, self.types, self.severity, self.paths, self.siblings,
                self.base, self.auto_resolvable, self.reason, self.contentions, self.broken)

    def __eq__(self, other):
        return self.told() == (<Conflict>other).told() if type(other) is Conflict else NotImplemented

    def __hash__(self):
        return hash(self.id)

    def __reduce__(self):
        return (Conflict, self.told()) if self.source is None else (restored, (self.source, self.told(), self.weighed))

    def __repr__(self):
        types = ", ".join([str(each) for each in self.types])
        return f"<Conflict {self.id} of {self.resource_id!r}: {types}; {self.reason}>"


def restored(Conflict source not None, tuple told not None, complexity):
    """For pickle: a part of another conflict."""
    return source.replace(complexity=complexity, **dict(zip(CONFLICT_FIELDS, told)))


def found(resource_id, kind, local, remote, tuple types not None, differs, agrees):
    """The Conflict of two versions of which nothing else is known than that they are concurrent.

    differs, agrees  (severity, reason) where their values are different, and where they are not
    """
    cdef Conflict out = Conflict.__new__(Conflict)
    cdef list paths = []
    differ(local.value, remote.value, _MISSING, "", paths)
    out.resource_id = resource_id
    out.kind = kind
    out.versions = (local, remote)
    out.types = types
    out.paths = tuple(paths)
    out.severity, out.reason = differs if paths else agrees
    out.siblings = {"": out.versions}
    out.auto_resolvable = True
    out.contentions = out.broken = ()
    return out


# --- resolutions -----------------------------------------------------------------------------------------------------

cdef class Resolution:
    """The outcome of one conflict.

    value        the settled value of a conflict of whole values; for one at paths the same as `settled`
    clock        covers the clock of every version: a write with it as context supersedes them all
    explanation  one plain sentence per decision; the last writer's is made when it is first read
    discarded    every value that is not in the outcome
    confidence   1 where nothing was at stake, least where a guess was made: 1.0 all agree, 0.9 a declared rule decided,
                 0.6 the last writer won, 1/n one of n kept siblings is shown, 0.3 somebody has to look
    settled      path -> leaf value, or MISSING, for every contended path; {"": value} for whole values
    siblings     path -> versions that stay readable beside the value (MultiValue), oldest first
    alarms       what an operator should hear about now
    pending      True: a deterministic stand-in until a human or a quorum decides
    via          names of the strategies that were asked, the one that decided last; () where it was only one
    actions      what a policy's escalation rules ask for
    attempts     how often a strategy that asks somebody was tried and had its time

    Immutable; `replace` makes another.
    """

    def __init__(self, value, clock, strategy, explanation, tuple discarded not None, confidence, settled,
                 siblings=NOTHING, tuple alarms not None=(), bint pending=False, tuple via not None=(),
                 tuple actions not None=(), attempts=1):
        if self.discarded is not None:
            raise UsageError("a Resolution is immutable; replace() makes another")
        self.value = value
        self.clock = clock
        self.strategy = strategy
        self.said = tuple(explanation)
        self.discarded = discarded
        self.confidence = confidence
        self.settled = settled
        self.siblings = siblings
        self.alarms = alarms
        self.pending = pending
        self.via = via
        self.actions = actions
        self.attempts = attempts

    @property
    def explanation(self):
        if self.said is None:
            self.said = self.say(self.about)
            self.say = self.about = None
        return self.said

    def replace(self, **changes):
        """The same with these fields instead."""
        return Resolution(**changed(RESOLUTION_FIELDS, self.told(), changes, "Resolution"))

    cdef tuple told(self):
        return (self.value, self.clock, self.strategy, self.explanation, self.discarded, self.confidence, self.settled,
                {} if self.siblings is NOTHING else self.siblings, self.alarms, self.pending, self.via,
                self.actions, self.attempts)

    def __eq__(self, other):
        return self.told() == (<Resolution>other).told() if type(other) is Resolution else NotImplemented

    def __reduce__(self):
        return Resolution, self.told()

    def __repr__(self):
        return "Resolution(" + ", ".join([f"{name}={value!r}" for name, value in zip(RESOLUTION_FIELDS, self.told())]) + ")"


cdef tuple RESOLUTION_FIELDS = (
    "value", "clock", "strategy", "explanation", "discarded", "confidence", "settled", "siblings", "alarms", "pending",
    "via", "actions", "attempts",
)


def last_write(Conflict conflict not None, strategy, discarded, say):
    """The Resolution that keeps the last of the versions of a whole value; None where more than their order decides:
    sets, leaves at paths, what somebody has to look at.

    discarded  makes a record of one that goes: (path, value, origin, reason)
    say        makes the explanation of versions, oldest first
    """
    cdef list versions
    cdef tuple gone = ()
    cdef Resolution out
    cdef VectorClock clock
    cdef object winner, reason = None
    cdef Py_ssize_t i
    if not conflict.auto_resolvable or not conflict.is_whole():
        return None
    versions = in_order(conflict.siblings[""])
    winner = versions[len(versions) - 1]
    value = winner.value
    clock = winner.clock
    for i in range(len(versions) - 1):
        version = versions[i]
        other = version.value
        if type(other) not in JSON and isinstance(other, Set):
            return None
        if not alike(other, value):
            if reason is None:
                reason = PyUnicode_Concat("a later write by ", winner.origin)
            made = (discarded("", other, version.origin, reason),)
            gone = gone + made if gone else made
    for version in conflict.versions:       # there may be more than are contended: none of them comes back
        if version is not winner:
            clock = clock.merge(version.clock)
    out = Resolution.__new__(Resolution)
    out.value = value
    out.clock = clock
    out.strategy = strategy
    out.say, out.about = say, versions
    out.discarded = gone
    out.confidence = 0.6 if gone else 1.0
    out.settled = {"": value}
    out.siblings = NOTHING
    out.alarms = out.via = out.actions = ()
    out.attempts = 1
    return out
