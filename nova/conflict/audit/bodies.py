"""What the events of the audit trail say: one builder for each type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nova.conflict.detect import MISSING, Conflict
from nova.conflict.strategies import Resolution


def detect_body(conflict: Conflict) -> dict[str, Any]:
    """A conflict as the body of a `detect` event, and as the API shows it.

    Missing values are named, never shown as null.
    """
    versions = []
    for version in conflict.versions:
        values = conflict.values_of(version)
        shown: dict[str, Any] = {
            "origin": version.origin,
            "timestamp": version.timestamp,
            "time_ms": version.timestamp >> 16,
            "clock": version.clock.to_dict(),
            "values": {path: value for path, value in values.items() if value is not MISSING},
        }
        if len(shown["values"]) < len(values):
            shown["missing"] = sorted(path for path, value in values.items() if value is MISSING)
        versions.append(shown)
    body: dict[str, Any] = {
        "kind": conflict.kind,
        "types": [str(type_) for type_ in conflict.types],
        "severity": conflict.severity.label,
        "complexity": conflict.complexity,
        "paths": list(conflict.paths),
        "versions": versions,
        "auto_resolvable": conflict.auto_resolvable,
        "reason": conflict.reason,
    }
    if conflict.contentions:
        body["contentions"] = [{"resource": c.resource, "owners": list(c.owners)} for c in conflict.contentions]
    if conflict.broken:
        body["broken"] = [list(pair) for pair in conflict.broken]
    return body


def resolve_body(resolution: Resolution) -> dict[str, Any]:
    """A resolution as the body of a `resolve` event, and as the API shows it."""
    settled = resolution.settled
    body: dict[str, Any] = {
        "strategy": resolution.strategy,
        "values": {path: value for path, value in settled.items() if value is not MISSING},
        "explanation": list(resolution.explanation),
        "discarded": [
            {
                "path": lost.path,
                "value": None if lost.value is MISSING else lost.value,
                "origin": lost.origin,
                "reason": lost.reason,
            }
            for lost in resolution.discarded
        ],
        "confidence": resolution.confidence,
        "pending": resolution.pending,
    }
    removed = sorted(path for path, value in settled.items() if value is MISSING)
    if removed:
        body["removed"] = removed
    if resolution.alarms:
        body["alarms"] = list(resolution.alarms)
    return body


def fail_body(error: object, strategy: str | None = None, attempts: int = 1) -> dict[str, Any]:
    """A conflict that could not be settled: why, by which strategy, after how many attempts."""
    return {"error": str(error), "strategy": strategy, "attempts": attempts}


def escalate_body(action: str, reason: str, to: str | None = None) -> dict[str, Any]:
    """A conflict that was handed on: the action (notify, require approval, freeze, roll back), why, and to whom."""
    return {"action": action, "reason": reason, "to": to}


def vote_body(
    question: str, ballots: Mapping[str, object], *, voters: int, needed: int, outcome: object | None
) -> dict[str, Any]:
    """A vote that was counted: who chose what of how many voters, how many had to agree, and on what they did."""
    return {
        "question": question,
        "ballots": dict(ballots),
        "voters": voters,
        "needed": needed,
        "outcome": outcome,
    }


def decision_body(
    by: str, values: Mapping[str, Any], discarded: Iterable[Mapping[str, Any]] = (), note: str = ""
) -> dict[str, Any]:
    """What somebody decided: path -> value, and the values that this drops, as in a resolution."""
    return {"by": by, "values": dict(values), "discarded": [dict(lost) for lost in discarded], "note": note}


def point_body(
    point: str, kind: str, leaves: Mapping[str, Any], clock: Mapping[str, int], note: str = ""
) -> dict[str, Any]:
    """A state to return to: every leaf of the resource, path -> value, and the clock that it was read at."""
    return {"point": point, "kind": kind, "leaves": dict(leaves), "clock": dict(clock), "note": note}


def rollback_body(
    to: str,
    *,
    by: str,
    restored: Mapping[str, Any],
    removed: Iterable[str],
    kept: Iterable[Mapping[str, Any]],
    discarded: Iterable[Mapping[str, Any]],
    clock: Mapping[str, int],
) -> dict[str, Any]:
    """A return to a point.

    restored, removed  what changed: path -> value that is there again, and the paths that are gone again
    kept               writes that the rollback did not know of, which stay: path, value, origin
    discarded          the values that it replaced: path, value, origin, reason
    clock              of the new version: it dominates everything that the rollback knew
    """
    return {
        "to": to,
        "by": by,
        "restored": dict(restored),
        "removed": sorted(removed),
        "kept": [dict(write) for write in kept],
        "discarded": [dict(lost) for lost in discarded],
        "clock": dict(clock),
    }
