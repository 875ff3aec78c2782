"""Declared rules of one key whose parts are written apart: what no field shows, because none of them overlaps.

A write that breaks a rule by itself is refused where it is made. So what stands in a store and breaks one was made by
writers who did not know of each other: it stays, is recorded as a conflict of type `semantic`, and waits for somebody
until it holds again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from nova.clock import VectorClock
from nova.conflict.detect import Conflict, ConflictDetector, ConflictType, Version
from nova.conflict.semantics import SemanticRule
from nova.crdt.keyspace import Entry as Rows
from nova.crdt.keyspace import Row
from nova.errors import ConfigError, UsageError
from nova.types import Order

SEMANTIC: Final = "semantic"
RULES_MAX: Final = 256


class Rules:
    """The rules of a store.

    version  a row as a version, its value unpacked
    """

    def __init__(
        self, rules: tuple[SemanticRule, ...], detector: ConflictDetector, version: Callable[[Row], Version]
    ) -> None:
        if len(rules) > RULES_MAX:
            raise ConfigError(f"{len(rules)} semantic rules are declared; the limit is {RULES_MAX}")
        self._rules, self._detector, self._version = rules, detector, version

    def __bool__(self) -> bool:
        return bool(self._rules)

    def concerns(self, key: str) -> bool:
        """Whether a rule speaks about this key."""
        return any(key.startswith(rule.prefix) for rule in self._rules)

    def check(self, key: str, before: Any, after: Any) -> None:
        """Raises UsageError if a write breaks a rule that held before it."""
        for rule in self._rules:
            if key.startswith(rule.prefix) and (wrong := rule.broken(after)) and not rule.broken(before):
                raise UsageError(f"{key!r} would break the rule {rule.name!r}: {wrong}; write both in one change")

    def disagreements(self, rows: Rows, value: Any) -> Iterator[Conflict]:
        """What `value`, which these rows make, breaks because their writers did not know of each other."""
        for rule in self._rules:
            if not rows.key.startswith(rule.prefix) or (wrong := rule.broken(value)) is None:
                continue
            siblings = {}
            for pointer in (rule.path, rule.requires or rule.excludes):
                path, versions = self._at(rows, pointer)
                if versions:
                    siblings[path] = versions
            if siblings and _apart(list(siblings.values()), rows):
                yield self._detector.examine(rows.key, SEMANTIC, siblings).replace(
                    types=(ConflictType.SEMANTIC,),
                    paths=tuple(siblings),
                    reason=f"{rule.name}: together {wrong}",
                    auto_resolvable=False,
                )

    def beside(self, rows: Rows) -> dict[str, list[Version]]:
        """What stands where a rule looks, with its writers."""
        rules = [rule for rule in self._rules if rows.key.startswith(rule.prefix)]
        found = [self._at(rows, pointer) for rule in rules for pointer in (rule.path, rule.requires or rule.excludes)]
        return {path: versions for path, versions in found if versions}

    def _at(self, rows: Rows, pointer: str) -> tuple[str, list[Version]]:
        """The leaf that holds what a pointer names, and what stands there."""
        path = pointer
        while path and not (found := rows.at(path)):
            path = path.rpartition("/")[0]
        return path, [self._version(row) for row in found] if path else []


def _apart(parts: Sequence[Sequence[Version]], rows: Rows) -> bool:
    """Whether there are writers who did not know of each other: of both parts, or where one of them was removed, one
    who does not know all that was done to the key."""
    if len(parts) == 2:
        return any(a.clock.compare(b.clock) is Order.CONCURRENT for a in parts[0] for b in parts[1])
    known = VectorClock(rows.clock)
    return any(version.clock.compare(known) in (Order.BEFORE, Order.CONCURRENT) for version in parts[0])


__all__ = ["SEMANTIC", "Rules"]
