"""Strategies that take versions as they are: the last writer's, or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nova._native.conflict import last_write
from nova.conflict.detect import Conflict, Version, ordered
from nova.conflict.strategies.base import (
    NO_CONTEXT,
    Discarded,
    Resolution,
    ResolveContext,
    Settled,
    admitted,
    agreed,
    clock_of,
    finish,
    last_writer,
    place,
    strategy,
    without,
)
from nova.conflict.words import show
from nova.errors import UsageError


@strategy
class LastWriteWins:
    """Keeps the newest version at every path, by timestamp, then origin, then canonical bytes: a total order.

    The losers are listed as discarded, for the audit log to keep.
    """

    name = "lww"

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        if context.stamp_max:
            conflict, refused = admitted(conflict, context)
            if refused:
                return without(self.resolve(conflict), refused)
        if (quick := last_write(conflict, self.name, Discarded, _last_said)) is not None:
            return quick
        outcomes: dict[str, tuple[Sequence[Version], Settled]] = {}
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            outcomes[path] = versions, agreed(path, versions) or last_writer(path, versions, context)
        return finish(conflict, self.name, outcomes)


def _last_said(versions: Sequence[Version]) -> tuple[str, ...]:
    return ((agreed("", versions) or last_writer("", versions, NO_CONTEXT)).explanation,)


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
        conflict, refused = admitted(conflict, context)
        explanation: list[str] = []
        alarms: list[str] = []
        discarded: list[Discarded] = []
        settled: dict[str, Any] = {}
        siblings: dict[str, tuple[Version, ...]] = {}
        confidence = 1.0
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            settled[path] = versions[-1].value
            if (unanimous := agreed(path, versions)) is not None:
                explanation.append(unanimous.explanation)
                siblings[path] = tuple(versions)
                continue
            confidence = min(confidence, 1 / len(versions))
            kept = versions[-self.siblings_max :]
            siblings[path] = tuple(kept)
            explanation.append(
                f"{place(path)}: {len(kept)} concurrent values kept; shown is {show(kept[-1].value)} "
                f"by {kept[-1].origin}, the newest"
            )
            if len(kept) < len(versions):
                reason = f"{len(versions)} siblings are over the limit of {self.siblings_max}"
                alarms.append(f"{place(path)} of {conflict.resource_id}: {reason}; write with the clock that was read")
                discarded += [Discarded(path, v.value, v.origin, reason) for v in versions[: -self.siblings_max]]
        if not conflict.auto_resolvable:
            explanation.append(f"pending, somebody has to look: {conflict.reason}")
        resolution = Resolution(
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
        return without(resolution, refused)
