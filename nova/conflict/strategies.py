"""Strategies: what becomes of the versions of a conflict.

A strategy is a pure function of the conflict and its context. The same versions in any order give identical bytes, so
replicas settle a conflict alike without talking to each other. Nothing is lost in silence: whatever a resolution does
not hold is in `discarded`, with the reason.

That the versions of a conflict are concurrent is the word of whoever made it (`ConflictDetector`, or a store with
dotted rows); `detect.prune` drops superseded ones from a list of versions that nobody vouches for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import msgspec

from nova._native.conflict import Resolution, last_write
from nova.clock import VectorClock
from nova.conflict.detect import (
    MISSING,
    Conflict,
    Invariant,
    Version,
    canonical,
    matches,
    newest,
    ordered,
    same,
)
from nova.errors import UsageError

# ------------------------------------------------------------------------------------------------ the seam


class Discarded(msgspec.Struct, frozen=True):
    """A value that a resolution does not hold, whose it was, and why it went."""

    path: str
    value: Any
    origin: str
    reason: str


class ResolveContext(msgspec.Struct, frozen=True):
    """What a strategy may know besides the conflict. Replicas must give equal ones, or they settle differently.

    leaves      the uncontended leaves of the resource
    invariants  declared truths; rules prefer values that keep them
    """

    leaves: Mapping[str, Any] = {}
    invariants: tuple[Invariant, ...] = ()


NO_CONTEXT: Final = ResolveContext()


@runtime_checkable
class Strategy(Protocol):
    """Settles conflicts; see the module for what it owes."""

    @property
    def name(self) -> str: ...

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution: ...


STRATEGIES: Final[dict[str, Strategy]] = {}
_S = TypeVar("_S", bound=type[Any])


def strategy(cls: _S) -> _S:
    """Class decorator: register an instance made without arguments under its `name`; a name taken is replaced."""
    register_strategy(cls())
    return cls


def register_strategy(instance: Strategy) -> None:
    """Register a strategy under its `name`."""
    if not isinstance(instance, Strategy) or not isinstance(instance.name, str) or not instance.name:
        raise UsageError(f"{instance!r} is no strategy; it needs a name and resolve(conflict, context)")
    STRATEGIES[instance.name] = instance


def strategy_named(name: str) -> Strategy:
    """The strategy registered under `name`. Raises UsageError that lists the known ones."""
    try:
        return STRATEGIES[name]
    except KeyError:
        known = ", ".join(sorted(STRATEGIES))
        raise UsageError(f"strategy {name!r} is unknown; known are {known}; register it with @strategy") from None


def clock_of(versions: Sequence[Version]) -> VectorClock:
    """The least clock that covers all versions; the empty one if there are none."""
    if not versions:
        return VectorClock({})
    clock = versions[0].clock
    for version in versions[1:]:
        clock = clock.merge(version.clock)
    return clock


def show(value: Any) -> str:
    """A value for people, on one line, at most 80 characters."""
    if value is MISSING:
        return "nothing"
    if isinstance(value, Set):
        return "{" + ", ".join(show(item) for item in sorted(value, key=canonical)) + "}"
    try:
        text = msgspec.json.encode(value, order="deterministic").decode()
    except (TypeError, ValueError, OverflowError):
        text = type(value).__name__ + " 0x" + canonical(value).hex()
    return text if len(text) <= 80 else text[:77] + "..."


def _place(path: str) -> str:
    return path or "the value"


# ------------------------------------------------------------------------------------------------ last writer wins


class Settled(msgspec.Struct, frozen=True):
    """What one rule made of one leaf. `reason` says why the other values went."""

    value: Any
    explanation: str
    reason: str
    confidence: float = 0.9
    pending: bool = False


Rule = Callable[[str, Sequence[Version], ResolveContext], Settled]
"""Settles the leaf at a path: (path, versions oldest first, at least two of them different, context) -> Settled."""


def last_writer(path: str, versions: Sequence[Version], context: ResolveContext) -> Settled:
    """The version with the newest timestamp; ties go to the greater origin, then to the greater canonical bytes."""
    winner = versions[-1]
    tie = "" if versions[-2].timestamp < winner.timestamp else " (equal timestamps: the greater origin)"
    return Settled(
        winner.value,
        f"{_place(path)}: {show(winner.value)} by {winner.origin} was written last{tie}",
        f"a later write by {winner.origin}",
        0.6,
    )


def _finish(
    conflict: Conflict, name: str, outcomes: Mapping[str, tuple[Sequence[Version], Settled]], **more: Any
) -> Resolution:
    """The resolution that these outcomes, path -> (versions, what was settled), add up to."""
    settled = {path: outcome.value for path, (_, outcome) in outcomes.items()}
    discarded = tuple(
        Discarded(path, version.value, version.origin, outcome.reason)
        for path, (versions, outcome) in outcomes.items()
        for version in versions
        if not same(version.value, outcome.value) and not _absorbed(version.value, outcome.value)
    )
    explanation = tuple(outcome.explanation for _, outcome in outcomes.values())
    pending = any(outcome.pending for _, outcome in outcomes.values())
    confidence = min([outcome.confidence for _, outcome in outcomes.values()], default=1.0)
    if not conflict.auto_resolvable:
        pending = True
        explanation += (f"pending, somebody has to look: {conflict.reason}",)
    return Resolution(
        settled[""] if conflict.whole else settled,
        clock_of(conflict.versions),
        name,
        explanation,
        discarded,
        0.3 if pending else confidence,
        settled,
        pending=pending,
        **more,
    )


def _absorbed(value: Any, outcome: Any) -> bool:
    """Whether a set lost nothing on the way into a union. Not `<=`: Python takes True for 1."""
    if not isinstance(value, Set) or not isinstance(outcome, Set):
        return False
    return {canonical(item) for item in value} <= {canonical(item) for item in outcome}


def _agreed(path: str, versions: Sequence[Version]) -> Settled | None:
    """The newest form of the value if all versions are equal, else None."""
    last = versions[-1].value
    for version in versions:
        if not same(version.value, last):
            return None
    return Settled(last, f"{_place(path)}: all writers agree on {show(last)}", "", 1.0)


@strategy
class LastWriteWins:
    """Keeps the newest version at every path, by timestamp, then origin, then canonical bytes: a total order.

    The losers are listed as discarded, for the audit log to keep.
    """

    name = "lww"

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        if (quick := last_write(conflict, self.name, Discarded, _last_said)) is not None:
            return quick
        outcomes: dict[str, tuple[Sequence[Version], Settled]] = {}
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            outcomes[path] = versions, _agreed(path, versions) or last_writer(path, versions, context)
        return _finish(conflict, self.name, outcomes)


def _last_said(versions: Sequence[Version]) -> tuple[str, ...]:
    return ((_agreed("", versions) or last_writer("", versions, NO_CONTEXT)).explanation,)


# ------------------------------------------------------------------------------------------------ multi-value


@strategy
class MultiValue:
    """Keeps all concurrent versions readable; the value shown is the newest one.

    siblings_max  a path with more versions than this raises an alarm, and only the newest `siblings_max` stay readable:
                  a client that never reads before it writes must not grow a value without bound
    """

    name = "multi_value"

    def __init__(self, siblings_max: int = 32) -> None:
        if siblings_max < 2:
            raise UsageError(f"siblings_max is {siblings_max}; two versions make a conflict, so give 2 or more")
        self.siblings_max = siblings_max

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        explanation: list[str] = []
        alarms: list[str] = []
        discarded: list[Discarded] = []
        settled: dict[str, Any] = {}
        siblings: dict[str, tuple[Version, ...]] = {}
        confidence = 1.0
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            settled[path] = versions[-1].value
            if (agreed := _agreed(path, versions)) is not None:
                explanation.append(agreed.explanation)
                siblings[path] = tuple(versions)
                continue
            confidence = min(confidence, 1 / len(versions))
            kept = versions[-self.siblings_max :]
            siblings[path] = tuple(kept)
            explanation.append(
                f"{_place(path)}: {len(kept)} concurrent values kept; shown is {show(kept[-1].value)} "
                f"by {kept[-1].origin}, the newest"
            )
            if len(kept) < len(versions):
                reason = f"{len(versions)} siblings are over the limit of {self.siblings_max}"
                alarms.append(f"{_place(path)} of {conflict.resource_id}: {reason}; write with the clock that was read")
                discarded += [Discarded(path, v.value, v.origin, reason) for v in versions[: -self.siblings_max]]
        if not conflict.auto_resolvable:
            explanation.append(f"pending, somebody has to look: {conflict.reason}")
        return Resolution(
            settled[""] if conflict.whole else settled,
            clock_of(conflict.versions),
            self.name,
            tuple(explanation),
            tuple(discarded),
            confidence if conflict.auto_resolvable else min(confidence, 0.3),
            settled,
            siblings,
            tuple(alarms),
            not conflict.auto_resolvable,
        )


# ------------------------------------------------------------------------------------------------ semantic merge


def maximum(path: str, versions: Sequence[Version], context: ResolveContext) -> Settled:
    """The greatest number that keeps the invariants of this path; the least one if none does.

    Versions that hold no number (null, text) count as less than every number.
    """
    asked = [invariant for invariant in context.invariants if matches(invariant.path, path)]
    numbers = [version for version in versions if _is_number(version.value)]
    if not numbers:
        return last_writer(path, versions, context)
    fitting = [v for v in numbers if all(invariant.broken(v.value) is None for invariant in asked)]
    shown = ", ".join(show(version.value) for version in versions)
    if fitting:
        winner = _greatest(fitting)
        limited = len(fitting) < len(numbers)
        within = f" that keeps {', '.join(sorted(i.name for i in asked))}" if limited else ""
        return Settled(
            winner.value,
            f"{path}: {show(winner.value)} by {winner.origin} is the maximum of {shown}{within}",
            f"not the maximum{within}; {winner.origin} asked for {show(winner.value)}",
        )
    winner = min(numbers, key=lambda version: version.value)
    names = ", ".join(sorted(invariant.name for invariant in asked))
    return Settled(
        winner.value,
        f"{path}: none of {shown} keeps {names}; the least, {show(winner.value)} by {winner.origin}, stands",
        f"breaks {names} by more",
        0.3,
        pending=True,
    )


def _greatest(versions: Sequence[Version]) -> Version:
    best = versions[0]
    for version in versions[1:]:
        if version.value >= best.value:
            best = version
    return best


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def by_default(path: str, versions: Sequence[Version], context: ResolveContext) -> Settled:
    """Sets unite, anything else falls to the last writer."""
    if all(isinstance(version.value, Set) for version in versions):
        elements = {canonical(item): item for version in reversed(versions) for item in version.value}
        union = type(versions[-1].value)(elements[key] for key in sorted(elements))
        if len(union) == len(elements):  # Python takes True for 1: a union that would drop one of them is none
            return Settled(
                union, f"{_place(path)}: the union of {len(versions)} sets, {show(union)}", "not in the union"
            )
    return last_writer(path, versions, context)


class Schema(msgspec.Struct, frozen=True):
    """How one kind of value is merged.

    rules        (path pattern, rule), the first match decides; none: `by_default`
    split, join  a whole value to its leaves and back, where the kind is kept in leaves; else None
    invariants   truths about every whole value of this kind, checked on what a merge made
    """

    rules: tuple[tuple[str, Rule], ...] = ()
    invariants: tuple[Invariant, ...] = ()
    split: Callable[[Any], Mapping[str, Any]] | None = None
    join: Callable[[Mapping[str, Any]], Any] | None = None


SCHEMAS: Final[dict[str, Schema]] = {}
"""kind -> how it is merged; `nova.conflict.vm` puts `vm` here, `register_schema` others."""


def register_schema(kind: str, schema: Schema) -> None:
    """Merge values of `kind` by `schema`; a kind taken is replaced."""
    SCHEMAS[kind] = schema


@strategy
class SemanticMerge:
    """Merges by what the fields mean: a rule per kind and path pattern, used where writers changed the same leaf.

    A rule that raises leaves no half result: its leaf falls to the last writer, and the explanation says so.

    Whole values of a kind that is kept in leaves are split and merged leaf by leaf. With a base, a leaf that one side
    left alone follows the other side, removal included; only leaves that both changed come to a rule. Without a base
    nobody can tell a removal from an absence: what one side has is kept.
    """

    name = "semantic"

    def __init__(self, schemas: Mapping[str, Schema] | None = None) -> None:
        self._schemas = SCHEMAS if schemas is None else schemas

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        schema = self._schemas.get(conflict.kind, _PLAIN_SCHEMA)
        if conflict.whole and schema.split is not None and schema.join is not None:
            versions = ordered(conflict.siblings[""])
            known = (*versions, conflict.base) if conflict.base is not None else versions
            try:
                sides = [schema.split(version.value) for version in known]
            except UsageError:
                pass  # not of its kind: one opaque value
            else:
                return self._whole(conflict, versions, sides, schema.join, schema, context)
        outcomes: dict[str, tuple[Sequence[Version], Settled]] = {}
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            outcomes[path] = versions, self._leaf(path, versions, schema, context)
        resolution = _finish(conflict, self.name, outcomes)
        if context.leaves and schema.join is not None and schema.invariants:
            merged = {**context.leaves, **resolution.settled}
            value = schema.join({path: leaf for path, leaf in merged.items() if leaf is not MISSING})
            if broken := _broken(schema.invariants, value):
                resolution = resolution.replace(alarms=resolution.alarms + broken)
        return resolution

    def _leaf(self, path: str, versions: Sequence[Version], schema: Schema, context: ResolveContext) -> Settled:
        agreed = _agreed(path, versions)
        if agreed is not None:
            return agreed
        present = [version for version in versions if version.value is not MISSING]
        if len(present) < len(versions):  # delete against update: the content stays, once, at the deleted node
            kept = _agreed(path, present) or self._leaf(path, present, schema, context)
            gone = ", ".join(version.origin for version in versions if version.value is MISSING)
            return Settled(
                kept.value,
                f"{_place(path)}: removed by {gone}, changed by another; the content stays, {show(kept.value)}",
                kept.reason or f"an update by {present[-1].origin} outlives a concurrent removal",
                min(kept.confidence, 0.6),
                kept.pending,
            )
        for pattern, rule in schema.rules:
            if matches(pattern, path):
                try:
                    return rule(path, versions, context)
                except Exception as error:  # pure and alike on all replicas, so all of them fall back alike
                    fallback = last_writer(path, versions, context)
                    note = f"; the rule for {pattern} failed with {type(error).__name__}"
                    return Settled(fallback.value, fallback.explanation + note, fallback.reason, 0.3)
        return by_default(path, versions, context)

    def _whole(
        self,
        conflict: Conflict,
        versions: Sequence[Version],
        sides: list[Mapping[str, Any]],
        join: Callable[[Mapping[str, Any]], Any],
        schema: Schema,
        context: ResolveContext,
    ) -> Resolution:
        known = conflict.base is not None
        base = sides.pop() if known else {}
        changed: dict[str, list[int]] = {}
        for i, side in enumerate(sides):
            for path, leaf in side.items():
                before = base.get(path, MISSING)
                if before is not leaf and not same(before, leaf):
                    changed.setdefault(path, []).append(i)
            for path in base.keys() - side.keys():
                changed.setdefault(path, []).append(i)
        leaves = dict(base)
        outcomes: dict[str, tuple[Sequence[Version], Settled]] = {}
        for path in sorted(changed):
            contended = [
                Version(sides[i].get(path, MISSING), versions[i].clock, versions[i].timestamp, versions[i].origin)
                for i in changed[path]
            ]
            outcome = _agreed(path, contended)
            if outcome is None:
                outcome = self._leaf(path, contended, schema, context)
                outcomes[path] = contended, outcome
            leaves[path] = outcome.value
        value = join({path: leaf for path, leaf in leaves.items() if leaf is not MISSING})
        note = "" if outcomes else "the writers changed different parts; all changes are in"
        broken = _broken(schema.invariants + context.invariants, value)
        if broken and conflict.base is not None:  # what the base broke already must not block unrelated edits
            before = set(_broken(schema.invariants + context.invariants, conflict.base.value))
            broken = tuple(wrong for wrong in broken if wrong not in before)
        outcomes[""] = (), Settled(value, note, "", 1.0, bool(broken))
        part = _finish(conflict, self.name, outcomes)
        explanation = tuple(sentence for sentence in part.explanation if sentence) + broken
        return part.replace(explanation=explanation, settled={"": value}, alarms=broken)


def _broken(invariants: Sequence[Invariant], value: Any) -> tuple[str, ...]:
    """What whole-value invariants say is wrong with a value, one line each."""
    found = [(i.name, i.broken(value)) for i in invariants if i.path == ""]
    return tuple(f"invariant {name} is broken: {wrong}" for name, wrong in found if wrong is not None)


_PLAIN_SCHEMA: Final = Schema()

__all__ = [
    "NO_CONTEXT",
    "SCHEMAS",
    "STRATEGIES",
    "Discarded",
    "LastWriteWins",
    "MultiValue",
    "Resolution",
    "ResolveContext",
    "Rule",
    "Schema",
    "SemanticMerge",
    "Settled",
    "Strategy",
    "by_default",
    "clock_of",
    "last_writer",
    "maximum",
    "newest",
    "register_schema",
    "register_strategy",
    "show",
    "strategy",
    "strategy_named",
]
