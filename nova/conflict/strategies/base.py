"""The seam of strategies: what they are given, what they owe, and how they are found by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from importlib.metadata import entry_points
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import msgspec

from nova._native.conflict import Resolution as Resolution
from nova.clock import VectorClock, stamp_ms
from nova.conflict.detect import MISSING, Conflict, Invariant, Version, canonical, ordered, same
from nova.conflict.words import show
from nova.errors import UnavailableError, UsageError

ENTRY_POINTS: Final = "nova.strategies"
"""Group of entry points whose packages bring strategies: each names a class or an instance."""


class Discarded(msgspec.Struct, frozen=True):
    """A value that a resolution does not hold, whose it was, and why it went."""

    path: str
    value: Any
    origin: str
    reason: str


class Action(msgspec.Struct, frozen=True):
    """What somebody should do about a conflict: `notify`, `require_approval`, `freeze` or `roll_back`.

    to      whom to tell; "" is whoever is on duty
    rule    the escalation rule that asks for it
    """

    action: str
    resource_id: str
    to: str
    rule: str
    reason: str


class ResolveContext(msgspec.Struct, frozen=True):
    """What a strategy may know besides the conflict. Replicas must give equal ones, or they settle differently.

    leaves      the uncontended leaves of the resource
    invariants  declared truths; rules prefer values that keep them
    history     settled versions from before the conflict, oldest first; what AutomaticRollback goes back to
    stamp_max   versions with a greater timestamp are refused, 0: none is. Of one conflict all replicas need the same
                limit: a log's or a leader's, not each one's own clock
    timeout_ms  how long a strategy that asks somebody may take, 0: as long as it likes
    """

    leaves: Mapping[str, Any] = {}
    invariants: tuple[Invariant, ...] = ()
    history: tuple[Version, ...] = ()
    stamp_max: int = 0
    timeout_ms: int = 0


NO_CONTEXT: Final[ResolveContext] = ResolveContext()


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
    """The strategy registered under `name`, or brought by an installed package under that name.

    Raises UsageError that lists the known ones.
    """
    found = STRATEGIES.get(name)
    if found is not None:
        return found
    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            loaded = point.load()
            instance = loaded() if isinstance(loaded, type) else loaded
        except Exception as error:
            raise UsageError(f"strategy {name!r} of {point.value} cannot be loaded: {error}") from error
        register_strategy(instance)
        if name in STRATEGIES:
            return STRATEGIES[name]
        raise UsageError(f"strategy {name!r} of {point.value} calls itself {instance.name!r}; the names must be equal")
    raise UsageError(
        f"strategy {name!r} is unknown; known are {', '.join(known_strategies())}; register it with @strategy"
    )


def known_strategies() -> list[str]:
    """Names of all strategies, registered or brought by installed packages, sorted."""
    return sorted(STRATEGIES.keys() | {point.name for point in entry_points(group=ENTRY_POINTS)})


class UndecidedError(UnavailableError):
    """A strategy cannot decide this conflict and names no next one: a tie, a time-out, nothing to go by."""

    code = "undecided"


def clock_of(versions: Sequence[Version]) -> VectorClock:
    """The least clock that covers all versions; the empty one if there are none."""
    if not versions:
        return VectorClock({})
    clock = versions[0].clock
    for version in versions[1:]:
        clock = clock.merge(version.clock)
    return clock


def place(path: str) -> str:
    return path or "the value"


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
        f"{place(path)}: {show(winner.value)} by {winner.origin} was written last{tie}",
        f"a later write by {winner.origin}",
        0.6,
    )


def finish(
    conflict: Conflict, name: str, outcomes: Mapping[str, tuple[Sequence[Version], Settled]], **more: Any
) -> Resolution:
    """The resolution that these outcomes, path -> (versions, what was settled), add up to."""
    settled = {path: outcome.value for path, (_, outcome) in outcomes.items()}
    discarded = tuple(
        Discarded(path, version.value, version.origin, outcome.reason)
        for path, (versions, outcome) in outcomes.items()
        for version in versions
        if not same(version.value, outcome.value) and not absorbed(version.value, outcome.value)
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


def absorbed(value: Any, outcome: Any) -> bool:
    """Whether a set lost nothing on the way into a union. Not `<=`: Python takes True for 1."""
    if not isinstance(value, Set) or not isinstance(outcome, Set):
        return False
    return {canonical(item) for item in value} <= {canonical(item) for item in outcome}


def agreed(path: str, versions: Sequence[Version]) -> Settled | None:
    """The newest form of the value if all versions are equal, else None."""
    last = versions[-1].value
    for version in versions:
        if not same(version.value, last):
            return None
    return Settled(last, f"{place(path)}: all writers agree on {show(last)}", "", 1.0)


# ------------------------------------------------------------------------------------------------ parts of conflicts


def part(conflict: Conflict, siblings: Mapping[str, Sequence[Version]], base: Version | None = None) -> Conflict:
    """The same conflict, only about these siblings. Its clock still covers all versions."""
    return conflict.replace(
        siblings={path: tuple(siblings[path]) for path in sorted(siblings)},
        paths=tuple(path for path in conflict.paths if path in siblings) or tuple(sorted(siblings)),
        base=conflict.base if base is None else base,
    )


def base_at(conflict: Conflict, path: str) -> Any:
    """The common ancestor's value at a path of `siblings`: MISSING if it has none there, or nobody knows it."""
    base = conflict.base
    if base is None:
        return MISSING
    if path == "" and conflict.whole:
        return base.value
    return base.value.get(path, MISSING) if isinstance(base.value, Mapping) else MISSING


def admitted(conflict: Conflict, context: ResolveContext) -> tuple[Conflict, tuple[Discarded, ...]]:
    """The conflict without versions from the far future, and those.

    One clock that is years ahead would win every time from then on. Where every version is, all stay.
    """
    if not context.stamp_max:
        return conflict, ()
    limit = context.stamp_max
    kept: dict[str, tuple[Version, ...]] = {}
    refused: list[Discarded] = []
    for path, versions in conflict.siblings.items():
        sound = tuple(version for version in versions if version.timestamp <= limit)
        if not sound or len(sound) == len(versions):
            kept[path] = versions
            continue
        kept[path] = sound
        for version in ordered(versions):
            if version.timestamp > limit:
                ahead = stamp_ms(version.timestamp) - stamp_ms(limit)
                reason = f"refused: its timestamp is {ahead} ms past the limit; set the clock of {version.origin}"
                refused.append(Discarded(path, version.value, version.origin, reason))
    return (part(conflict, kept), tuple(refused)) if refused else (conflict, ())


def without(resolution: Resolution, refused: tuple[Discarded, ...]) -> Resolution:
    """A resolution that also tells what was refused."""
    if not refused:
        return resolution
    lines = tuple(f"{place(each.path)}: {show(each.value)} by {each.origin} was {each.reason}" for each in refused)
    return resolution.replace(
        explanation=lines + resolution.explanation,
        discarded=refused + resolution.discarded,
        alarms=resolution.alarms + lines,
    )


def deferred(
    conflict: Conflict,
    context: ResolveContext,
    name: str,
    otherwise: str | None,
    reason: str,
    asked: Sequence[str] = (),
) -> Resolution:
    """What the next strategy makes of a conflict that `name` cannot decide. Raises UndecidedError if there is none."""
    if otherwise is None:
        raise UndecidedError(f"{name}: {reason}; name the strategy that is to decide `otherwise`")
    found = strategy_named(otherwise).resolve(conflict, context)
    return found.replace(
        strategy=name,
        explanation=(f"{name}: {reason}; {otherwise} decides", *found.explanation),
        via=(*asked, name, *(found.via or (found.strategy,))),
    )


def combined(conflict: Conflict, name: str, parts: Sequence[Resolution]) -> Resolution:
    """The resolution that those of parts of a conflict, each about other paths, add up to."""
    settled: dict[str, Any] = {}
    siblings: dict[str, tuple[Version, ...]] = {}
    for each in parts:
        settled |= each.settled
        siblings |= each.siblings
    settled = {path: settled[path] for path in sorted(settled)}

    def every(field: str) -> tuple[Any, ...]:
        return tuple(item for each in parts for item in getattr(each, field))

    return Resolution(
        settled[""] if conflict.whole else settled,
        clock_of(conflict.versions),
        name,
        tuple(dict.fromkeys(every("explanation"))),
        every("discarded"),
        min([each.confidence for each in parts], default=1.0),
        settled,
        siblings,
        tuple(dict.fromkeys(every("alarms"))),
        any(each.pending for each in parts),
        tuple(dict.fromkeys(every("via"))),
        every("actions"),
        max([each.attempts for each in parts], default=1),
    )
