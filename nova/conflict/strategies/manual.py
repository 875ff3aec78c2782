"""Decisions that people make: what waits, what they were shown, and a decision that is refused if that changed.

`ManualQueue` is a pure core: it has no clock and does no I/O. Whoever drives it hands in the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from nova.clock import VectorClock
from nova.conflict.detect import MISSING, Conflict, Version, ordered, same
from nova.conflict.strategies.base import (
    NO_CONTEXT,
    Discarded,
    Resolution,
    ResolveContext,
    admitted,
    agreed,
    base_at,
    clock_of,
    place,
    strategy,
    without,
)
from nova.conflict.words import show
from nova.errors import KeyNotFoundError, LimitError, StaleContextError, UsageError

CASES_MAX: Final = 100_000


@strategy
class ManualIntervention:
    """Leaves the conflict to a person; until then the base stays, or, where none is known, the newest is shown.

    All versions stay readable. The outcome is pending; `ManualQueue` holds what waits.
    """

    name = "manual"

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        conflict, refused = admitted(conflict, context)
        settled: dict[str, Any] = {}
        siblings: dict[str, tuple[Version, ...]] = {}
        explanation: list[str] = []
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            siblings[path] = tuple(versions)
            if (unanimous := agreed(path, versions)) is not None:
                settled[path] = unanimous.value
                explanation.append(unanimous.explanation)
                continue
            if conflict.base is not None:
                settled[path], stays = base_at(conflict, path), "what was there before"
            else:
                settled[path], stays = versions[-1].value, f"the newest, by {versions[-1].origin}"
            explanation.append(
                f"{place(path)}: {len(versions)} versions wait for somebody to decide; until then "
                f"{show(settled[path])} stays, {stays}"
            )
        resolution = Resolution(
            settled[""] if conflict.whole else settled,
            clock_of(conflict.versions),
            self.name,
            tuple(explanation),
            (),
            0.3,
            settled,
            siblings,
            pending=True,
        )
        return without(resolution, refused)


class Case(msgspec.Struct, frozen=True):
    """One conflict that waits. `id` names exactly the versions in `candidates`: it is what a decision is held against.

    candidates  path -> versions, oldest first
    clock       covers all candidates; the write that carries out a decision has it as its context
    opened_ms   when it came, `reopened` how often a newer write changed the candidates since
    """

    id: str
    resource_id: str
    candidates: Mapping[str, tuple[Version, ...]]
    base: Version | None
    clock: VectorClock
    reason: str
    opened_ms: int
    reopened: int = 0
    level: int = 0


class Decision(msgspec.Struct, frozen=True):
    """What somebody decided: path -> value (MISSING removes), to be written with `clock` as context."""

    case_id: str
    resource_id: str
    settled: Mapping[str, Any]
    clock: VectorClock
    discarded: tuple[Discarded, ...]
    by: str
    decided_ms: int


class Escalation(msgspec.Struct, frozen=True):
    """A case that waited too long: the `level`th time, so tell `to`."""

    case: Case
    level: int
    to: str
    waited_ms: int


class ManualQueue:
    """What waits for people, by resource.

    timeout_ms  how long each level has before the next one is told
    levels      who is told, one after the other; the last one is told once
    cases_max   most cases; one more raises LimitError
    """

    def __init__(
        self, *, timeout_ms: int = 3_600_000, levels: Sequence[str] = ("on-call",), cases_max: int = CASES_MAX
    ) -> None:
        if timeout_ms < 1:
            raise UsageError(f"timeout_ms is {timeout_ms}; people need at least 1 ms")
        self.timeout_ms, self.levels, self.cases_max = timeout_ms, tuple(levels), cases_max
        self._cases: dict[str, Case] = {}

    def __len__(self) -> int:
        return len(self._cases)

    def open(self, conflict: Conflict, now_ms: int) -> Case:
        """A conflict waits. The same one again changes nothing; other versions of its resource reopen the case."""
        resource = conflict.resource_id
        present = self._cases.get(resource)
        if present is not None and present.id == conflict.id:
            return present
        if present is None and len(self._cases) >= self.cases_max:
            raise LimitError(f"{len(self._cases)} cases wait; the limit is {self.cases_max}: decide some first")
        candidates = {path: tuple(ordered(versions)) for path, versions in sorted(conflict.siblings.items())}
        case = Case(
            conflict.id,
            resource,
            candidates,
            conflict.base,
            clock_of(conflict.versions),
            conflict.reason,
            now_ms if present is None else present.opened_ms,
            0 if present is None else present.reopened + 1,
            0 if present is None else present.level,
        )
        self._cases[resource] = case
        return case

    def withdraw(self, resource_id: str) -> None:
        """A later write superseded the conflict, so nothing waits. Unknown resources are fine."""
        self._cases.pop(resource_id, None)

    def get(self, resource_id: str) -> Case:
        """The case of a resource. Raises KeyNotFoundError."""
        try:
            return self._cases[resource_id]
        except KeyError:
            raise KeyNotFoundError(f"nothing about {resource_id!r} waits for a decision") from None

    def pending(self) -> list[Case]:
        """What waits, the longest first."""
        return sorted(self._cases.values(), key=lambda case: (case.opened_ms, case.resource_id))

    def decide(self, resource_id: str, shown: str, values: Mapping[str, Any], *, by: str, now_ms: int) -> Decision:
        """Settle a case, if it still is the one that was shown.

        shown   the id of the case that the decider saw
        values  path -> value for every contended path, {"": value} for a whole value; MISSING removes. It need not be
                one of the candidates
        raises  StaleContextError if the siblings changed, with the present case as `current`; KeyNotFoundError
        """
        case = self.get(resource_id)
        if case.id != shown:
            raise StaleContextError(
                f"stale decision: siblings changed; {resource_id!r} is now case {case.id}, not {shown}: "
                "look at its candidates and decide again",
                case,
            )
        if wrong := sorted(case.candidates.keys() ^ values.keys()):
            raise UsageError(
                f"the decision about {resource_id!r} and its candidates differ at {place(wrong[0])}; "
                f"give a value for each of {', '.join(map(place, case.candidates))}, and for nothing else"
            )
        discarded = tuple(
            Discarded(path, version.value, version.origin, f"{by} decided for {show(values[path])}")
            for path, versions in case.candidates.items()
            for version in versions
            if not same(version.value, values[path])
        )
        del self._cases[resource_id]
        settled = {path: values[path] for path in sorted(values)}
        return Decision(case.id, resource_id, settled, case.clock, discarded, by, now_ms)

    def due(self, now_ms: int) -> list[Escalation]:
        """Who has to be told by now, oldest case first; each level of each case once."""
        out: list[Escalation] = []
        for case in self.pending():
            level = min((now_ms - case.opened_ms) // self.timeout_ms, len(self.levels))
            for reached in range(case.level + 1, level + 1):
                out.append(Escalation(case, reached, self.levels[reached - 1], now_ms - case.opened_ms))
            if level > case.level:
                self._cases[case.resource_id] = msgspec.structs.replace(case, level=level)
        return out


__all__ = ["MISSING", "Case", "Decision", "Escalation", "ManualIntervention", "ManualQueue"]
