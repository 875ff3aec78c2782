"""Conflict detection: which versions of a resource were written without knowing of each other, and how bad that is.

Causality decides, never wall clocks: two versions conflict exactly when neither vector clock covers the other (Fidge
1988, Mattern 1989). There is no heuristic in that answer, so there are no false positives and no false negatives.
What the conflict *means* is then said by classifiers, one small function per question, which users may add to or
replace.

Everything here is a pure function of its arguments, so that replicas that see the same versions in any order make the
same record under the same id without talking to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from enum import IntEnum, StrEnum
from typing import Any, Final

import msgspec

from nova._native.conflict import (
    MISSING,
    Conflict,
    canonical,
    complexity_of,
    concurrent,
    conflict_id,
    differing,
    exact,
    found,
    newest,
    ordered,
    orders,
    prune,
    same,
)
from nova.clock import VectorClock
from nova.errors import LimitError, UsageError
from nova.types import Order

__all__ = [
    "MISSING",
    "STANDARD",
    "Case",
    "Classifier",
    "Conflict",
    "ConflictDetector",
    "ConflictType",
    "Contention",
    "Finding",
    "Invariant",
    "ResourceIndex",
    "Severity",
    "Version",
    "at_most",
    "canonical",
    "classifier",
    "complexity_of",
    "conflict_id",
    "escape",
    "exact",
    "matches",
    "newest",
    "ordered",
    "prune",
    "same",
    "unescape",
]

# ------------------------------------------------------------------------------------------------ pointers


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


class Case(msgspec.Struct, frozen=True):
    """What a classifier looks at. `leaves` are the uncontended leaves of the resource, as far as the caller knows, and
    `beside` those of them whose writers he named."""

    resource_id: str
    kind: str
    siblings: Mapping[str, tuple[Version, ...]]
    versions: tuple[Version, ...]
    paths: tuple[str, ...]
    base: Version | None
    invariants: Sequence[Invariant | Mapping[str, Any]]
    contentions: tuple[Contention, ...]
    leaves: Mapping[str, Any]
    beside: Mapping[str, Sequence[Version]] = {}


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


_KIND_OF: Final[dict[Classifier, str]] = {}


def classifier(name: str, kind: str = "") -> Callable[[Classifier], Classifier]:
    """Register a function among the standard classifiers of detectors made from now on; a name taken is replaced.

    kind  it is asked about conflicts of this kind only, and costs others nothing; "": of all kinds
    """

    def register(function: Classifier) -> Classifier:
        STANDARD[name] = function
        if kind:
            _KIND_OF[function] = kind
        return function

    return register


@classifier("concurrent_update")
def _concurrent_update(case: Case) -> Finding | None:
    if not case.versions:
        return None
    severity, reason = _DIFFER if case.paths else _AGREE
    return Finding(ConflictType.CONCURRENT_UPDATE, severity, reason)


_DIFFER: Final = Severity.MEDIUM, "concurrent writes differ"
_AGREE: Final = Severity.LOW, "concurrent writes agree"
_UPDATE: Final = (ConflictType.CONCURRENT_UPDATE,)


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
    broken = _broken_by_values(case) if "" in case.siblings else _broken_by_leaves(case)
    if not broken:
        return None
    broken = sorted(set(broken))
    return Finding(ConflictType.INVARIANT, Severity.HIGH, f"{broken[0][0]}: {broken[0][1]}", broken=tuple(broken))


def _broken_by_values(case: Case) -> list[tuple[str, str]]:
    """What one of the values breaks, or what they make together: two that fit may not fit beside each other.

    What the base already broke is not this conflict's doing, and must not block unrelated edits.
    """
    from nova.conflict.merge import invariants, merge  # who declares none does not wait for the merge engine

    base = MISSING if case.base is None else case.base.value
    values = [version.value for version in case.versions]
    if len(values) == 2 and base is not MISSING and MISSING not in values:
        with suppress(UsageError, LimitError):  # values that do not merge are judged one by one
            values.append(merge(base, *values).proposal)
    return [
        pair for value in values for pair in invariants.broken(case.invariants, value, base) if value is not MISSING
    ]


def _broken_by_leaves(case: Case) -> list[tuple[str, str]]:
    asked = [invariant for invariant in case.invariants if isinstance(invariant, Invariant)]
    return [
        (invariant.name, wrong)
        for invariant in asked
        for path, versions in case.siblings.items()
        if matches(invariant.path, path)
        for version in versions
        if version.value is not MISSING and (wrong := invariant.broken(version.value)) is not None
    ]


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


_NOTHING: Final[Mapping[str, Any]] = {}


class ConflictDetector:
    """Finds and describes conflicts.

    classifiers  name -> function; None takes the STANDARD ones. `add` adds or replaces one by name
    """

    __slots__ = ("_asked", "_classifiers", "_plain")

    def __init__(self, classifiers: Mapping[str, Classifier] | None = None) -> None:
        self._classifiers = dict(STANDARD if classifiers is None else classifiers)
        self._asked: dict[str, tuple[Classifier, ...]] = {}
        self._plain: dict[str, bool] = {}  # kind -> whether only `_OURS` are asked about it

    @property
    def classifiers(self) -> Mapping[str, Classifier]:
        return dict(self._classifiers)

    def add(self, name: str, function: Classifier) -> None:
        """Ask `function` too; a classifier of that name is replaced."""
        self._classifiers[name] = function
        self._asked.clear()
        self._plain.clear()

    def _who(self, kind: str) -> tuple[Classifier, ...]:
        """Those that are asked about conflicts of a kind."""
        asked = self._asked.get(kind)
        if asked is None:
            asked = tuple([ask for ask in self._classifiers.values() if _KIND_OF.get(ask, kind) == kind])
            if len(self._asked) < _KINDS_MAX:
                self._asked[kind], self._plain[kind] = asked, asked == _OURS
        return asked

    def detect(
        self,
        resource_id: str,
        local: Version,
        remote: Version,
        *,
        base: Version | None = None,
        invariants: Sequence[Invariant | Mapping[str, Any]] = (),
        kind: str = "register",
    ) -> Conflict | None:
        """The conflict between two versions; None, always and only, when their clocks are ordered or equal.

        base        the last version both come from, if known: paths are then those that both changed, and differently
        invariants  truths that either value, or with a base both merged, may break: an Invariant, or one across values
                    as `nova.conflict.merge.invariants` declares it (sum_le, unique, reference, ge, le, gt, lt)
        raises      UsageError for an invariant that is none
        cost        one compare if there is none; else O(size of the values)
        """
        if not concurrent(local, remote):
            return None
        plain = self._plain.get(kind)
        if plain is None:
            plain = self._who(kind) == _OURS
        if plain and base is None and not (invariants or local.metadata or remote.metadata):
            # Of our classifiers only the first has anything to say here: they need not be asked.
            return found(resource_id, kind, local, remote, _UPDATE, _DIFFER, _AGREE)
        paths = differing(local.value, remote.value, MISSING if base is None else base.value)
        siblings = {"": (local, remote)}
        return self._classify(Case(resource_id, kind, siblings, (local, remote), paths, base, invariants, (), _NOTHING))

    def detect_many(self, pairs: Iterable[tuple[Version, Version]]) -> bytes:
        """One byte per pair, its Order: a conflict where it is Order.CONCURRENT (3), else none."""
        return orders(pairs)

    def examine(
        self,
        resource_id: str,
        kind: str,
        siblings: Mapping[str, Sequence[Version]],
        *,
        contentions: Sequence[Contention] = (),
        invariants: Sequence[Invariant] = (),
        leaves: Mapping[str, Any] = _NOTHING,
        beside: Mapping[str, Sequence[Version]] = _NOTHING,
    ) -> Conflict:
        """Describe concurrent leaf versions that a store found; that they are concurrent is its word.

        siblings     path -> versions; may be empty if there are contentions
        leaves       uncontended leaves that classifiers may want to know, such as a VM's power state
        beside       uncontended leaves with their writers: path -> versions
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
                beside,
            )
        )

    def _classify(self, case: Case) -> Conflict:
        findings = [found for ask in self._who(case.kind) if (found := ask(case)) is not None]
        types = tuple(dict.fromkeys(found.type for found in findings))
        broken = tuple(pair for found in findings for pair in found.broken)
        reasons = [found.reason for found in findings if found.manual] or [found.reason for found in findings]
        return Conflict(
            case.resource_id,
            case.kind,
            case.versions,
            types or _UPDATE,
            max([found.severity for found in findings], default=Severity.MEDIUM),
            case.paths,
            case.siblings,
            case.base,
            not any(found.manual for found in findings),
            "; ".join(reasons) or _DIFFER[1],
            case.contentions,
            broken,
        )


_OURS: Final = tuple(STANDARD.values())
"""Classifiers of which only the first has anything to say about two versions with no more than a value and a clock."""
_KINDS_MAX: Final = 1024  # kinds are few; a stranger's words must not fill the memory


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
