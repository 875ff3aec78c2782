"""Conflict detection: which versions of a resource were written without knowing of each other, and how bad that is.

Causality decides, never wall clocks: two versions conflict exactly when neither vector clock covers the other (Fidge
1988, Mattern 1989). There is no heuristic in that answer, so there are no false positives and no false negatives.
What the conflict *means* is then said by classifiers, one small function per question, which users may add to or
replace.

Everything here is a pure function of its arguments, so that replicas that see the same versions in any order make the
same record under the same id without talking to each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from enum import IntEnum, StrEnum
from hashlib import blake2b
from typing import Any, Final, final

import msgspec
from msgspec.msgpack import Ext

from nova.clock import VectorClock
from nova.errors import UsageError
from nova.types import Order

# ------------------------------------------------------------------------------------------------ values


@final
class _Missing:
    """Absence as a value: `null` is something a writer wrote, MISSING is nothing at all."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()

_NAN: Final = float("nan")
_MISSING_EXT, _BIG_EXT, _PAIRS_EXT, _SET_EXT = 1, 2, 3, 4
_ENCODE: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_PLAIN: Final = frozenset((str, bool, type(None), bytes))
_ATOMS: Final = _PLAIN | {int}


def canonical(value: Any) -> bytes:
    """Bytes that are equal exactly when two values are: map order, -0.0, NaN and 1 against 1.0 make no difference.

    True is not 1, null is not MISSING, a set is not a list, composed is not decomposed text. Values are JSON values,
    sets, bytes, datetimes, dataclasses, Structs and integers of any size.
    """
    if type(value) in _PLAIN:
        return _ENCODE(value)
    return _ENCODE(_plain(value, True))


def _exact(value: Any) -> bytes:
    """Like `canonical`, but 1 and 1.0 differ: the last tie-break, so that replicas keep the same *form* too."""
    return _ENCODE(_plain(value, False))


def _plain(value: Any, fold: bool) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 64 else Ext(_BIG_EXT, b"%d" % value)
    if kind is float:
        if value != value:
            return _NAN
        return _plain(int(value), fold) if fold and not math.isinf(value) and value == int(value) else value
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value):
            return {key: _plain(item, fold) for key, item in value.items()}
        pairs = sorted((_ENCODE(_plain(key, fold)), _ENCODE(_plain(item, fold))) for key, item in value.items())
        return Ext(_PAIRS_EXT, _ENCODE(pairs))
    if isinstance(value, list | tuple):
        return [_plain(item, fold) for item in value]
    if isinstance(value, Set):
        return Ext(_SET_EXT, _ENCODE(sorted(_ENCODE(_plain(item, fold)) for item in value)))
    if value is MISSING:
        return Ext(_MISSING_EXT, b"")
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name), fold) for name in value.__struct_fields__}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), fold) for field in dataclass_fields(value)}
    return value  # datetimes, enums, UUIDs: msgspec knows them, or refuses with the type's name


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal in the sense of `canonical`."""
    if a is b:
        return True
    if type(a) is type(b):
        if type(a) in _ATOMS:
            return bool(a == b)
        if type(a) is dict and len(a) == len(b):
            for key, value in a.items():
                if type(key) is not str:
                    break  # True and 1 are one key to a dict
                if key not in b or not same(value, b[key]):
                    return False
            else:
                return True
    return canonical(a) == canonical(b)


def escape(key: str) -> str:
    """One segment of an RFC 6901 pointer."""
    return key.replace("~", "~0").replace("/", "~1") if "~" in key or "/" in key else key


def unescape(segment: str) -> str:
    """The key behind one segment of an RFC 6901 pointer."""
    return segment.replace("~1", "/").replace("~0", "~") if "~" in segment else segment


# ------------------------------------------------------------------------------------------------ versions


class Version(msgspec.Struct, frozen=True):
    """One version of a value, or of the leaf at one path.

    clock      what the version knows, its own event included
    timestamp  hybrid logical clock of the write: 48 bits of milliseconds above 16 bits of counter
    origin     the writer
    metadata   free; `replica_clock` (a VectorClock), if given, is what the writer's replica had seen when it accepted
               the version, and lets a version that claims more than that be found out
    """

    value: Any
    clock: VectorClock
    timestamp: int
    origin: str
    metadata: Mapping[str, Any] = {}


def ordered(versions: Iterable[Version]) -> list[Version]:
    """Oldest first, in the one order all replicas agree on: timestamp, then origin, then canonical bytes."""
    out = sorted(versions, key=_stamp)
    for i in range(1, len(out)):
        if out[i].timestamp == out[i - 1].timestamp and out[i].origin == out[i - 1].origin:
            out.sort(key=_rank)
            break
    return out


def newest(versions: Sequence[Version]) -> Version:
    """The last of `ordered(versions)`: the one a last-writer-wins rule keeps."""
    best = versions[0]
    for version in versions[1:]:
        if _stamp(version) > _stamp(best) or (_stamp(version) == _stamp(best) and _rank(version) > _rank(best)):
            best = version
    return best


def _stamp(version: Version) -> tuple[int, str]:
    return version.timestamp, version.origin


def _rank(version: Version) -> tuple[int, str, bytes, bytes]:
    return version.timestamp, version.origin, canonical(version.value), _exact(version.value)


def prune(versions: Sequence[Version]) -> list[Version]:
    """Only the versions that no other one supersedes; of several with equal clocks the newest.

    A dominated version never survives, whatever its wall clock says. Cost: one compare per pair.
    """
    kept: list[Version] = []
    for version in versions:
        clock = version.clock
        for i, other in enumerate(kept):
            order = clock.compare(other.clock)
            if order is Order.CONCURRENT:
                continue
            if order is Order.EQUAL:
                kept[i] = newest((other, version))
            elif order is Order.AFTER:
                kept = [o for o in kept if clock.compare(o.clock) is not Order.AFTER]
                kept.append(version)
            break
        else:
            kept.append(version)
    return kept


# ------------------------------------------------------------------------------------------------ conflicts


class ConflictType(StrEnum):
    """What is wrong. One conflict may be of several types."""

    CONCURRENT_UPDATE = "concurrent_update"
    CAUSAL_VIOLATION = "causal_violation"
    SEMANTIC = "semantic"
    INVARIANT = "invariant"
    RESOURCE_CONTENTION = "resource_contention"


class Severity(IntEnum):
    """How bad it is; `label` is the word for people and JSON."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4

    @property
    def label(self) -> str:
        return self.name.lower()


class Contention(msgspec.Struct, frozen=True):
    """Several keys claim one exclusive resource, for instance `ip:10.0.0.1`. Owners are sorted."""

    resource: str
    owners: tuple[str, ...]


class Invariant(msgspec.Struct, frozen=True):
    """A declared truth about a value.

    check  returns None if it holds, else what is wrong, in words. It must be pure: every replica asks it
    path   pattern of the leaves it speaks about (`/cpu`, `/disks/*`); "" is the whole value
    """

    name: str
    check: Callable[[Any], str | None]
    path: str = ""

    def broken(self, value: Any) -> str | None:
        """What is wrong with `value`, None if nothing. A check that raises counts as broken, not as an accident."""
        try:
            return self.check(value)
        except Exception as error:  # the text may hold addresses, which differ between replicas: name the type only
            return f"check {self.name} failed with {type(error).__name__}"


def at_most(path: str, limit: float, name: str = "") -> Invariant:
    """The capacity invariant: the number at `path` is at most `limit`."""

    def check(value: Any) -> str | None:
        return f"{path} is {value}, over the limit of {limit}" if value > limit else None

    return Invariant(name or f"at_most:{path}", check, path)


class Conflict(msgspec.Struct, frozen=True):
    """Versions of one resource, none of which saw the others, or claims of several on one exclusive thing.

    id               32 hex digits, the same on every replica
    versions         one per write; for a conflict at paths its value is {path: leaf} as far as that write goes
    types, severity  what classifiers found; the first type is the main one
    paths            where the versions differ, RFC 6901 pointers
    siblings         path -> concurrent leaf versions, oldest first; {"": versions} for a conflict of whole values
    complexity       0 (trivial) to 1, see `complexity_of`
    auto_resolvable  False: a strategy may choose, but somebody has to look; `reason` says why
    contentions      exclusive resources that more than one key claims
    broken           (invariant, what is wrong) pairs
    """

    id: str
    resource_id: str
    kind: str
    versions: tuple[Version, ...]
    types: tuple[ConflictType, ...]
    severity: Severity
    paths: tuple[str, ...]
    siblings: Mapping[str, tuple[Version, ...]]
    base: Version | None
    complexity: float
    auto_resolvable: bool
    reason: str
    contentions: tuple[Contention, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()

    @property
    def local(self) -> Version:
        """The version that was here (`detect`), or the oldest one (`examine`)."""
        return self._version(0)

    @property
    def remote(self) -> Version:
        """The version that came in (`detect`), or the newest one (`examine`)."""
        return self._version(-1)

    @property
    def whole(self) -> bool:
        """Whether this is a conflict of whole values, not of leaves at paths."""
        return len(self.siblings) == 1 and "" in self.siblings

    def values_of(self, version: Version) -> Mapping[str, Any]:
        """{path: value} that `version`, one of `versions`, stands for."""
        return {"": version.value} if self.whole else version.value

    def _version(self, index: int) -> Version:
        if not self.versions:
            raise UsageError(f"conflict {self.id} is about resources, not versions; look at its contentions")
        return self.versions[index]


class Case(msgspec.Struct, frozen=True):
    """What a classifier looks at. `leaves` are the uncontended leaves of the resource, as far as the caller knows."""

    resource_id: str
    kind: str
    siblings: Mapping[str, tuple[Version, ...]]
    versions: tuple[Version, ...]
    paths: tuple[str, ...]
    base: Version | None
    invariants: Sequence[Invariant]
    contentions: tuple[Contention, ...]
    leaves: Mapping[str, Any]


class Finding(msgspec.Struct, frozen=True):
    """What a classifier says. `manual` set: the conflict must not pass as settled without a human or a quorum."""

    type: ConflictType
    severity: Severity
    reason: str
    manual: bool = False
    broken: tuple[tuple[str, str], ...] = ()


Classifier = Callable[[Case], Finding | None]

STANDARD: Final[dict[str, Classifier]] = {}
"""Classifiers of a detector that is not given its own, by name, asked in this order."""


def classifier(name: str) -> Callable[[Classifier], Classifier]:
    """Register a function among the standard classifiers of detectors made from now on; a name taken is replaced."""

    def register(function: Classifier) -> Classifier:
        STANDARD[name] = function
        return function

    return register


@classifier("concurrent_update")
def _concurrent_update(case: Case) -> Finding | None:
    if not case.versions:
        return None
    if not case.paths:
        return Finding(ConflictType.CONCURRENT_UPDATE, Severity.LOW, "concurrent writes agree")
    return Finding(ConflictType.CONCURRENT_UPDATE, Severity.MEDIUM, "concurrent writes differ")


@classifier("causal_violation")
def _causal_violation(case: Case) -> Finding | None:
    base = case.base
    for version in case.versions:
        what = ""
        if base is not None and version.clock.compare(base.clock) in (Order.BEFORE, Order.CONCURRENT):
            what = "has a clock that went backwards: it does not cover its base"
        elif version.metadata and (seen := version.metadata.get("replica_clock")) is not None:
            if not isinstance(seen, VectorClock):
                seen = VectorClock(seen)
            if version.clock.compare(seen) in (Order.AFTER, Order.CONCURRENT):
                what = "claims events that its replica has not seen"
        if what:
            reason = f"the version of {version.origin} {what}"
            return Finding(ConflictType.CAUSAL_VIOLATION, Severity.HIGH, reason, manual=True)
    return None


@classifier("invariant")
def _invariant(case: Case) -> Finding | None:
    if not case.invariants:
        return None
    broken: list[tuple[str, str]] = []
    for invariant in case.invariants:
        # What the base already broke is not this conflict's doing, and must not block unrelated edits.
        if case.base is not None and invariant.path == "" and invariant.broken(case.base.value) is not None:
            continue
        for path, versions in case.siblings.items():
            if not matches(invariant.path, path):
                continue
            for version in versions:
                if version.value is not MISSING and (wrong := invariant.broken(version.value)) is not None:
                    broken.append((invariant.name, wrong))
    if not broken:
        return None
    broken = sorted(set(broken))
    return Finding(ConflictType.INVARIANT, Severity.HIGH, f"{broken[0][0]}: {broken[0][1]}", broken=tuple(broken))


@classifier("resource_contention")
def _resource_contention(case: Case) -> Finding | None:
    if not case.contentions:
        return None
    first = case.contentions[0]
    reason = f"{first.resource} is claimed by {', '.join(first.owners)}"
    return Finding(ConflictType.RESOURCE_CONTENTION, Severity.HIGH, reason, manual=True)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern names a path: segment by segment, `*` is any one segment, a last `**` any rest."""
    if pattern == path:
        return True
    if "*" not in pattern:
        return False
    wanted, given = pattern.split("/"), path.split("/")
    if wanted[-1] == "**":
        wanted.pop()
        given = given[: len(wanted)] if len(given) > len(wanted) else []
    return len(wanted) == len(given) and all(w in ("*", g) for w, g in zip(wanted, given, strict=True))


def complexity_of(paths: int, siblings: int, depth: int, types: int, invariants: int) -> float:
    """1 - 1 / (1 + s), to three digits, where s adds up

    0.10 for each differing path after the first, 0.15 for each sibling at a path beyond two, 0.10 for each level of
    depth below the first, 0.25 for each conflict type after the first and 0.25 for each broken invariant.
    """
    s = 0.10 * max(paths - 1, 0) + 0.15 * siblings + 0.10 * max(depth - 1, 0) + 0.25 * max(types - 1, 0)
    return round(1 - 1 / (1 + s + 0.25 * invariants), 3)


def conflict_id(resource_id: str, versions: Iterable[Version], contentions: Iterable[Contention] = ()) -> str:
    """BLAKE2b-128 over the resource and every distinct (origin, timestamp, clock), in any order of arrival.

    Contentions count only where there are no versions, and then the resource id does not: which of two keys came
    second, and whether a third had arrived already, differs between replicas.
    """
    writes = sorted({_ENCODE((v.origin, v.timestamp, tuple(v.clock.items()))) for v in versions})
    if writes:
        payload: Any = (resource_id, writes)
    else:
        payload = sorted((c.resource, sorted(c.owners)) for c in contentions)
    return blake2b(_ENCODE(payload), digest_size=16, person=b"nova.conflict").hexdigest()


_NOTHING: Final[Mapping[str, Any]] = {}
_CONCURRENT: Final = Order.CONCURRENT


class ConflictDetector:
    """Finds and describes conflicts.

    classifiers  name -> function; None takes the STANDARD ones. `add` adds or replaces one by name
    """

    __slots__ = ("_classifiers",)

    def __init__(self, classifiers: Mapping[str, Classifier] | None = None) -> None:
        self._classifiers = dict(STANDARD if classifiers is None else classifiers)

    @property
    def classifiers(self) -> Mapping[str, Classifier]:
        return dict(self._classifiers)

    def add(self, name: str, function: Classifier) -> None:
        """Ask `function` too; a classifier of that name is replaced."""
        self._classifiers[name] = function

    def detect(
        self,
        resource_id: str,
        local: Version,
        remote: Version,
        *,
        base: Version | None = None,
        invariants: Sequence[Invariant] = (),
        kind: str = "register",
    ) -> Conflict | None:
        """The conflict between two versions; None, always and only, when their clocks are ordered or equal.

        base  the last version both come from, if known: paths are then those that both changed, and differently
        cost  one compare if there is none; else O(size of the values)
        """
        if local.clock.compare(remote.clock) is not _CONCURRENT:
            return None
        paths = tuple(_differing(local.value, remote.value, MISSING if base is None else base.value))
        siblings = {"": (local, remote)}
        return self._classify(Case(resource_id, kind, siblings, (local, remote), paths, base, invariants, (), _NOTHING))

    def detect_many(self, pairs: Iterable[tuple[Version, Version]]) -> bytes:
        """One byte per pair, its Order: a conflict where it is Order.CONCURRENT (3), else none."""
        return bytes([local.clock.compare(remote.clock) for local, remote in pairs])

    def examine(
        self,
        resource_id: str,
        kind: str,
        siblings: Mapping[str, Sequence[Version]],
        *,
        contentions: Sequence[Contention] = (),
        invariants: Sequence[Invariant] = (),
        leaves: Mapping[str, Any] = _NOTHING,
    ) -> Conflict:
        """Describe concurrent leaf versions that a store found; that they are concurrent is its word.

        siblings     path -> versions; may be empty if there are contentions
        leaves       uncontended leaves that classifiers may want to know, such as a VM's power state
        raises       UsageError if there is nothing to describe
        """
        if not siblings and not contentions:
            raise UsageError(f"conflict of {resource_id!r} has 0 siblings and 0 contentions; give at least 1")
        rows = {path: tuple(ordered(siblings[path])) for path in sorted(siblings)}
        paths = tuple(path for path, versions in rows.items() if not _agree(versions))
        return self._classify(
            Case(
                resource_id,
                kind,
                rows,
                _by_write(rows),
                paths,
                None,
                invariants,
                tuple(sorted(contentions, key=lambda c: c.resource)),
                leaves,
            )
        )

    def _classify(self, case: Case) -> Conflict:
        findings = [found for ask in self._classifiers.values() if (found := ask(case)) is not None]
        types = tuple(dict.fromkeys(found.type for found in findings))
        broken = tuple(pair for found in findings for pair in found.broken)
        reasons = [found.reason for found in findings if found.manual] or [found.reason for found in findings]
        extra = sum([len(versions) - 2 for versions in case.siblings.values() if len(versions) > 2])
        depth = max([path.count("/") for path in case.paths], default=0)
        return Conflict(
            conflict_id(case.resource_id, case.versions, case.contentions),
            case.resource_id,
            case.kind,
            case.versions,
            types or (ConflictType.CONCURRENT_UPDATE,),
            max([found.severity for found in findings], default=Severity.MEDIUM),
            case.paths,
            case.siblings,
            case.base,
            complexity_of(len(case.paths), extra, depth, len(types), len(broken)),
            not any(found.manual for found in findings),
            "; ".join(reasons) or "concurrent writes differ",
            case.contentions,
            broken,
        )


def _agree(versions: Sequence[Version]) -> bool:
    return all(same(versions[0].value, other.value) for other in versions[1:])


def _by_write(rows: Mapping[str, tuple[Version, ...]]) -> tuple[Version, ...]:
    """One version per write, oldest first. Rows of one write share origin, timestamp and clock."""
    if len(rows) == 1 and "" in rows:
        return rows[""]
    writes: dict[tuple[Any, ...], tuple[Version, dict[str, Any]]] = {}
    for path, versions in rows.items():
        for v in versions:
            key = (v.timestamp, v.origin, tuple(v.clock.items()))
            writes.setdefault(key, (v, {}))[1][path] = v.value
    return tuple(
        Version(values, v.clock, v.timestamp, v.origin, v.metadata) for _, (v, values) in sorted(writes.items())
    )


def _differing(a: Any, b: Any, base: Any, path: str = "") -> Iterator[str]:
    """Pointers where a and b differ; with a base, only where both also differ from it."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        common: Mapping[Any, Any] = base if isinstance(base, Mapping) else _NOTHING
        known = isinstance(base, Mapping)
        for key in sorted(a.keys() | b.keys(), key=str):
            before = common.get(key, _ABSENT) if known else MISSING
            yield from _differing(a.get(key, MISSING), b.get(key, MISSING), before, f"{path}/{escape(str(key))}")
    elif not same(a, b):
        if base is not MISSING:
            before = MISSING if base is _ABSENT else base
            if same(a, before) or same(b, before):
                return
        yield path


_ABSENT: Final = object()  # the base is known, and has nothing here; MISSING: no base is known


# ------------------------------------------------------------------------------------------------ exclusive resources


class ResourceIndex:
    """Which key claims which exclusive resource, kept up to date change by change.

    Resources are words: `ip:10.0.0.1`, `mac:52:54:00:00:00:01`, `host-slot:h1/3`, `port:h1/8080`.
    """

    __slots__ = ("_claims", "_owners")

    def __init__(self) -> None:
        self._claims: dict[str, frozenset[str]] = {}
        # resource -> its owner, or the set of its owners where there are more: most have one, and a set costs 216 bytes
        self._owners: dict[str, str | set[str]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def update(self, key: str, resources: Set[str]) -> list[Contention]:
        """`key` now claims exactly `resources`; returns contentions on those it did not claim before, sorted.

        Cost: O(resources claimed or given up since the last call).
        """
        before = self._claims.get(key)
        if before is None:
            gained: Set[str] = resources
        elif before == resources:
            return []
        else:
            gained = resources - before
            for resource in before - resources:
                self._release(key, resource)
        if resources:
            self._claims[key] = frozenset(resources)
        elif before is not None:
            del self._claims[key]
        found = []
        for resource in gained:
            owner = self._owners.get(resource)
            if owner is None:
                self._owners[resource] = key
                continue
            if isinstance(owner, str):
                self._owners[resource] = owner = {owner}
            owner.add(key)
            found.append(Contention(resource, tuple(sorted(owner))))
        found.sort(key=lambda contention: contention.resource)
        return found

    def remove(self, key: str) -> None:
        """`key` is gone and claims nothing. Unknown keys are fine."""
        for resource in self._claims.pop(key, ()):
            self._release(key, resource)

    def contention(self, resource: str) -> Contention | None:
        """Who contends for `resource` now; None if at most one claims it."""
        owner = self._owners.get(resource)
        return None if owner is None or isinstance(owner, str) else Contention(resource, tuple(sorted(owner)))

    def of(self, key: str) -> list[Contention]:
        """Contentions that `key` is a party to now, sorted by resource."""
        found = (self.contention(resource) for resource in sorted(self._claims.get(key, ())))
        return [contention for contention in found if contention is not None]

    def contentions(self) -> list[Contention]:
        """All contentions there are now, sorted by resource. Cost: O(resources)."""
        return [
            Contention(resource, tuple(sorted(owner)))
            for resource, owner in sorted(self._owners.items(), key=lambda item: item[0])
            if not isinstance(owner, str)
        ]

    def _release(self, key: str, resource: str) -> None:
        owner = self._owners[resource]
        if isinstance(owner, str):
            del self._owners[resource]
            return
        owner.discard(key)
        if len(owner) == 1:
            self._owners[resource] = owner.pop()
