"""Rules by which two values disagree though no field of them overlaps.

One writer starts a machine, another takes its host away: each did something sound, and both together make what nobody
meant. A merge cannot see that; whoever knows the fields declares it:

    detector = ConflictDetector()
    detector.add("semantic", semantic(SemanticRule("placed", "/power_state", ("running",), requires="/host")))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from nova.conflict.detect import (
    MISSING,
    Case,
    Classifier,
    ConflictType,
    Finding,
    Severity,
    Version,
    same,
    unescape,
)
from nova.conflict.words import show
from nova.errors import LimitError, UsageError
from nova.types import Order


class SemanticRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where `path` holds one of `values`, `requires` has to hold something (of `one_of`, if given), and `excludes`
    nothing (of `one_of`, if given).

    path, requires, excludes  JSON pointers; null counts as nothing
    values                    () for any value
    prefix                    of the resources that it speaks about
    """

    name: str
    path: str
    values: tuple[Any, ...] = ()
    requires: str = ""
    excludes: str = ""
    one_of: tuple[Any, ...] = ()
    prefix: str = ""

    def __post_init__(self) -> None:
        if bool(self.requires) == bool(self.excludes):
            raise UsageError(f"rule {self.name!r} has to name either what it requires or what it excludes")
        for pointer in (self.path, self.requires or self.excludes):
            if not pointer.startswith("/"):
                raise UsageError(f"rule {self.name!r} names {pointer!r}; a JSON pointer begins with /")

    def broken(self, value: Any) -> str | None:
        """What is wrong with a value, None if nothing."""
        held = _at(value, self.path)
        if held is None or (self.values and not any(same(held, each) for each in self.values)):
            return None
        other = self.requires or self.excludes
        found = _at(value, other)
        fits = found is not None and (not self.one_of or any(same(found, each) for each in self.one_of))
        if fits == bool(self.requires):
            return None
        wanted = f"one of {', '.join(map(show, self.one_of))}" if self.one_of else "a value"
        return f"{self.path} is {show(held)}, which {'needs' if self.requires else 'excludes'} {wanted} at {other}"


def semantic(*rules: SemanticRule) -> Classifier:
    """A classifier, for `ConflictDetector.add`: a conflict is `semantic` if what both make together breaks a rule.

    What a side breaks by itself, or the base already did, is not the doing of the two.
    """

    def ask(case: Case) -> Finding | None:
        for together in _together(case):
            for rule in rules:
                if not case.resource_id.startswith(rule.prefix):
                    continue
                wrong = rule.broken(together)
                if wrong is not None and not any(rule.broken(value) for value in _alone(case, rule)):
                    reason = f"{rule.name}: together {wrong}"
                    return Finding(ConflictType.SEMANTIC, Severity.HIGH, reason, manual=True)
        return None

    return ask


def _alone(case: Case, rule: SemanticRule) -> Iterator[Any]:
    """What each side and the base say by themselves. Of leaves, only who names both parts says something."""
    for version in case.versions:
        if "" in case.siblings:
            if version.value is not MISSING:
                yield version.value
        else:
            seen = {path: leaf for path, leaf in case.leaves.items() if _knew(version, case.beside.get(path, ()))}
            if {rule.path, rule.requires or rule.excludes} <= {**seen, **version.value}.keys():
                yield _tree({**seen, **version.value})
    if case.base is not None:
        yield case.base.value


def _knew(version: Version, others: Iterable[Version]) -> bool:
    return all(other.clock.compare(version.clock) in (Order.BEFORE, Order.EQUAL) for other in others)


def _together(case: Case) -> Iterator[Any]:
    if "" not in case.siblings:
        merged = dict(case.leaves)
        for path, versions in case.siblings.items():
            merged[path] = versions[-1].value
        yield _tree(merged)
        return
    from nova.conflict.merge import merge  # who declares no rules does not wait for the merge engine

    values = [version.value for version in case.siblings[""] if version.value is not MISSING]
    base = MISSING if case.base is None else case.base.value
    if len(values) == 2:
        with suppress(UsageError, LimitError):
            yield merge(base, *values).proposal


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if leaf is MISSING:
            continue
        *above, last = [unescape(token) for token in path.split("/")[1:]] or [""]
        at = out
        for token in above:
            at = at.setdefault(token, {})
            if not isinstance(at, dict):
                break
        else:
            at[last] = leaf
    return out


def _at(value: Any, pointer: str) -> Any:
    for token in pointer.split("/")[1:]:
        if not isinstance(value, Mapping):
            return None
        value = value.get(unescape(token))
    return value


__all__ = ["SemanticRule", "semantic"]
