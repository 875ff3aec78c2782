"""A conflict as JSON, to try a policy on: one that was recorded, or one that somebody made up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nova.clock import VectorClock
from nova.conflict.detect import MISSING, Conflict, ConflictDetector, Contention, Version, ordered
from nova.conflict.policy.conditions import Facts
from nova.conflict.words import show
from nova.errors import UsageError

VERSIONS_MAX: Final = 1_000


def conflict_from_case(case: Any, detector: ConflictDetector | None = None) -> tuple[Conflict, Facts]:
    """(conflict, facts) of a case, which is an object with

    resource_id        or `key`, as records of conflicts call it
    versions           at least two objects of origin, timestamp (or time_ms), clock, metadata, and either `value`, the
                       whole value, or `values`, {path: leaf}, with the paths that it removed in `missing`
    base               optional: the value that both come from
    kind, region, tags, now_ms, leaves, contentions   optional
    raises             UsageError for what is no conflict, also where one version saw the other
    """
    if not isinstance(case, Mapping):
        raise UsageError(f"the case is {show(case)}; it is an object with resource_id and versions")
    given = case.get("versions", [])
    if not isinstance(given, list) or len(given) > VERSIONS_MAX:
        raise UsageError(f"versions is {show(given)}; it is a list of 2 to {VERSIONS_MAX} objects")
    resource = case.get("resource_id", case.get("resource", case.get("key", "case")))
    kind = case.get("kind", "register")
    detector = detector or ConflictDetector()
    read = [_version(each, number) for number, each in enumerate(given, 1)]
    facts = _facts(case, [version for version, _ in read])
    contentions = [
        Contention(str(each.get("resource")), tuple(map(str, each.get("owners", ()))))
        for each in case.get("contentions", ())
    ]
    if all(values is None for _, values in read) and read:
        conflict = _whole(detector, str(resource), str(kind), [version for version, _ in read], case)
    else:
        siblings: dict[str, list[Version]] = {}
        for version, values in read:
            for path, value in (values if values is not None else {"": version.value}).items():
                siblings.setdefault(path, []).append(msgspec.structs.replace(version, value=value))
        conflict = detector.examine(str(resource), str(kind), siblings, contentions=contentions, leaves=facts.leaves)
    return conflict, facts


def _whole(
    detector: ConflictDetector, resource: str, kind: str, versions: list[Version], case: Mapping[str, Any]
) -> Conflict:
    if len(versions) < 2:
        raise UsageError(f"the case has {len(versions)} versions; a conflict has at least 2")
    base = None
    if "base" in case:
        base = Version(case["base"], VectorClock({}), 0, "base")
    found: Conflict | None = None
    paths: dict[str, None] = {}
    for i, one in enumerate(versions):
        for other in versions[i + 1 :]:
            found = detector.detect(resource, one, other, base=base, kind=kind)
            if found is None:
                raise UsageError(
                    f"the version of {one.origin} and that of {other.origin} are no conflict: one saw the other, by "
                    f"their clocks {one.clock.to_dict()} and {other.clock.to_dict()}"
                )
            paths |= dict.fromkeys(found.paths)
    assert found is not None
    if len(versions) == 2:
        return found
    together = detector.examine(resource, kind, {"": versions})
    return together.replace(base=base, paths=tuple(sorted(paths)), siblings={"": tuple(ordered(versions))})


def _version(given: Any, number: int) -> tuple[Version, dict[str, Any] | None]:
    """A version, and its leaves if it is one of leaves."""
    if not isinstance(given, Mapping):
        raise UsageError(f"version {number} is {show(given)}; it is an object with origin, clock and value")
    origin = str(given.get("origin", f"writer-{number}"))
    clock = given.get("clock", {origin: 1})
    stamp = given.get("timestamp", given.get("time_ms", 0) << 16 if isinstance(given.get("time_ms", 0), int) else None)
    if not isinstance(clock, Mapping) or not isinstance(stamp, int) or isinstance(stamp, bool) or stamp < 0:
        raise UsageError(
            f"version {number} has the clock {show(clock)} and the timestamp {show(given.get('timestamp'))}; "
            "a clock is an object of counts by writer, a timestamp a whole number"
        )
    values = None
    if "value" not in given:
        values = dict(given.get("values", {})) | dict.fromkeys(given.get("missing", ()), MISSING)
        if not values:
            raise UsageError(f"version {number} has neither value nor values; give what {origin} wrote")
    version = Version(given.get("value"), VectorClock(clock), stamp, origin, given.get("metadata", {}))
    return version, values


def _facts(case: Mapping[str, Any], versions: list[Version]) -> Facts:
    newest = max([version.timestamp >> 16 for version in versions], default=0)
    try:
        return msgspec.convert(
            {
                "region": case.get("region", ""),
                "tags": case.get("tags", []),
                "now_ms": case.get("now_ms", newest),
                "leaves": case.get("leaves", {}),
            },
            Facts,
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"the case cannot be read: {error}; region is a text, tags a list, now_ms a number") from None
