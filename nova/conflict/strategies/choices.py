"""Strategies that choose by what stands above the values: a declared priority, or the last state that was sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nova.conflict.detect import MISSING, Conflict, Version, canonical, matches, ordered, same, unescape
from nova.conflict.strategies.base import (
    NO_CONTEXT,
    Discarded,
    Resolution,
    ResolveContext,
    Settled,
    admitted,
    agreed,
    base_at,
    combined,
    deferred,
    finish,
    part,
    place,
    strategy,
    without,
)
from nova.conflict.strategies.semantic import SCHEMAS
from nova.conflict.words import show
from nova.errors import UsageError

# ------------------------------------------------------------------------------------------------ priority


@strategy
class HighestPriority:
    """The version of highest priority; where several have it and differ, the next strategy chooses among those.

    priorities  name -> number, the greater goes first; who is not in it has 0
    by          what the names are: `writer` (a version's origin) or `region` (its metadata["region"]); or the JSON
                pointer of a field whose number in the value itself is the priority, such as `/generation`
    otherwise   name of the strategy for ties; None: a tie raises UndecidedError
    """

    name = "highest_priority"

    def __init__(
        self, priorities: Mapping[str, float] | None = None, *, by: str = "writer", otherwise: str | None = "lww"
    ) -> None:
        if by not in ("writer", "region") and not by.startswith("/"):
            raise UsageError(f"by is {by!r}; it is writer, region or the pointer of a field, such as /generation")
        for name, number in (priorities or {}).items():
            if isinstance(number, bool) or not isinstance(number, int | float) or number != number:
                raise UsageError(f"the priority of {name!r} is {number!r}; priorities are numbers")
        if priorities and by.startswith("/"):
            raise UsageError(f"priorities are given, but by is the field {by!r}, which has its own; give one of them")
        self.priorities = dict(priorities or {})
        self.by = by
        self.otherwise = otherwise

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        conflict, refused = admitted(conflict, context)
        outcomes: dict[str, tuple[Sequence[Version], Settled]] = {}
        tied: dict[str, Sequence[Version]] = {}
        lower: list[Discarded] = []
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            ranks = [self._priority(version) for version in versions]
            top = max(ranks)
            first = [version for version, rank in zip(versions, ranks, strict=True) if rank == top]
            if agreed(path, versions) is not None:
                outcomes[path] = versions, agreed(path, versions)  # type: ignore[assignment]
            elif agreed(path, first) is None:
                tied[path] = first
                reason = f"priority below {show(top)}, which {' and '.join(v.origin for v in first)} have"
                lower += [
                    Discarded(path, version.value, version.origin, reason)
                    for version, rank in zip(versions, ranks, strict=True)
                    if rank < top and not any(same(version.value, other.value) for other in first)
                ]
            else:
                winner = first[-1]
                line = f"{place(path)}: {show(winner.value)} by {winner.origin} has the highest priority, {show(top)}"
                outcomes[path] = versions, Settled(winner.value, line, f"a lower priority than {winner.origin}")
        parts = [
            finish(part(conflict, {path: versions for path, (versions, _) in outcomes.items()}), self.name, outcomes)
        ]
        if tied:
            reason = f"a tie at {', '.join(map(place, tied))}"
            found = deferred(part(conflict, tied), context, self.name, self.otherwise, reason)
            found = found.replace(discarded=(*lower, *found.discarded))
            parts = [*parts, found] if outcomes else [found]
        return without(combined(conflict, self.name, parts), refused)

    def _priority(self, version: Version) -> float:
        if self.by == "writer":
            return self.priorities.get(version.origin, 0)
        if self.by == "region":
            return self.priorities.get(str(version.metadata.get("region", "")), 0)
        value: Any = version.value
        for token in self.by.split("/")[1:]:
            value = value.get(unescape(token)) if isinstance(value, Mapping) else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) and value == value else 0


# ------------------------------------------------------------------------------------------------ rollback


@strategy
class AutomaticRollback:
    """Undoes the conflicting writes: back to the last settled version that satisfies every invariant.

    Settled versions are `context.history`, newest first, and then the conflict's base. Only what is contended goes
    back: leaves beside it, and whatever is written later, stay. Where no settled version is known to satisfy the
    invariants, the newest of the conflicting ones that does stays; where none does, the next strategy decides, and
    somebody has to look.
    """

    name = "automatic_rollback"

    def __init__(self, otherwise: str | None = "manual") -> None:
        self.otherwise = otherwise

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        conflict, refused = admitted(conflict, context)
        paths = sorted(conflict.siblings)
        settled = [*_newest_first(context.history), *([conflict.base] if conflict.base is not None else [])]
        for version in settled:
            if conflict.whole:
                values: Mapping[str, Any] = {"": version.value}
            elif isinstance(version.value, Mapping):
                values = {path: version.value.get(path, MISSING) for path in paths}
            else:
                continue
            if not self._faults(conflict, context, values):
                why = f"by {version.origin}, the last version that satisfies every invariant"
                return without(self._back(conflict, values, ("rolled back to", why), 0.6), refused)
        for version in _newest_first(conflict.versions):
            values = {path: base_at(conflict, path) for path in paths} | dict(conflict.values_of(version))
            values = {path: values[path] for path in paths}
            if not self._faults(conflict, context, values) and (
                conflict.whole or set(conflict.values_of(version)) >= set(paths)
            ):
                why = f"by {version.origin} stays: no earlier version is known to satisfy every invariant"
                return without(self._back(conflict, values, ("", why), 0.3), refused)
        reason = "no version, earlier or now, is known to satisfy every invariant"
        return without(deferred(conflict, context, self.name, self.otherwise, reason), refused)

    def _back(
        self, conflict: Conflict, values: Mapping[str, Any], words: tuple[str, str], confidence: float
    ) -> Resolution:
        outcomes = {}
        for path in sorted(conflict.siblings):
            line = f"{place(path)}: {' '.join(filter(None, (words[0], show(values[path]), words[1])))}"
            settled = Settled(values[path], line, "undone by the rollback", confidence)
            outcomes[path] = ordered(conflict.siblings[path]), settled
        return finish(conflict, self.name, outcomes)

    def _faults(self, conflict: Conflict, context: ResolveContext, values: Mapping[str, Any]) -> list[str]:
        """What invariants say is wrong with these values at the contended paths."""
        schema = SCHEMAS.get(conflict.kind)
        invariants = context.invariants + (schema.invariants if schema is not None else ())
        found = [
            wrong
            for invariant in invariants
            for path, value in values.items()
            if value is not MISSING
            and (path == "" or invariant.path != "")
            and matches(invariant.path, path)
            and (wrong := invariant.broken(value)) is not None
        ]
        whole = [invariant for invariant in invariants if invariant.path == ""]
        if whole and not conflict.whole and context.leaves and schema is not None and schema.join is not None:
            joined = _joined(schema.join, {**context.leaves, **values})
            found += [wrong for each in whole if (wrong := each.broken(joined)) is not None]
        return found


def _joined(join: Any, leaves: Mapping[str, Any]) -> Any:
    return join({path: leaf for path, leaf in leaves.items() if leaf is not MISSING})


def _newest_first(versions: Sequence[Version]) -> list[Version]:
    return sorted(versions, key=lambda v: (v.timestamp, v.origin, canonical(v.value)), reverse=True)
