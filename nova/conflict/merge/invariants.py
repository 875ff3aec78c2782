"""Truths about a whole value, checked on the outcome of a merge: every field may merge and the whole still not hold.

    unique     {"kind": "unique", "path": "/nics/*/ip"}: no value twice; null does not count
    sum_le     {"kind": "sum_le", "path": "/vms/*", "limit": "/capacity"}: the numbers add up to at most the limit
    ge, le     {"kind": "ge", "path": "/free", "limit": 0}: every number at the path is at least / at most the limit;
               gt and lt are the same without equality
    reference  {"kind": "reference", "from": "/s/*/parent", "to": "/s/*/id", "nullable": true}: names what is there

In a path, * is every member of a map or item of a list; a limit is a number or the pointer of one. A number that is
missing adds nothing and breaks nothing. A `detect.Invariant` is taken too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from nova.conflict.detect import MISSING, Invariant, canonical, escape
from nova.conflict.merge.model import INVARIANT_VIOLATION, RESOURCE_CONTENTION, MergeConflict
from nova.conflict.merge.patches import tokens_of
from nova.conflict.merge.schema import NOTHING, Counter, Keyed, Node
from nova.conflict.merge.values import fields_of, is_record
from nova.conflict.words import show
from nova.errors import UsageError

HOLDS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "ge": operator.ge,
    "le": operator.le,
    "gt": operator.gt,
    "lt": operator.lt,
}
KINDS: Final = ("unique", "sum_le", "reference", *HOLDS)


class Violation(NamedTuple):
    """Where an invariant does not hold, what identifies that among violations of it, and what is wrong, in words."""

    path: str
    identity: Any
    wrong: str


def check(
    invariants: Sequence[Any], base: Any, merged: Any, schema: Node
) -> tuple[list[MergeConflict], tuple[str, ...]]:
    """Conflicts for what `merged` breaks, and the names of the invariants that `base` had broken in the same way.

    One that was broken before does not block: an unrelated edit must pass.
    """
    conflicts: list[MergeConflict] = []
    before: list[str] = []
    for invariant in invariants:
        name, kind = _name(invariant)
        found = list(_violations(invariant, merged, schema))
        if not found:
            continue
        known = {violation.identity for violation in _violations(invariant, base, schema)}
        if any(violation.identity in known for violation in found):
            before.append(name)
        reported = set()
        for violation in found:
            if violation.identity in known or violation.path in reported:
                continue
            reported.add(violation.path)
            bound = kind in HOLDS and _counts(schema, violation.path)
            conflicts.append(
                MergeConflict(
                    violation.path,
                    RESOURCE_CONTENTION if bound else INVARIANT_VIOLATION,
                    "bound" if bound else kind,
                    note=f"{name}: {violation.wrong}",
                )
            )
    return conflicts, tuple(before)


def broken(invariants: Sequence[Any], value: Any, base: Any = MISSING) -> list[tuple[str, str]]:
    """(name, what is wrong) of everything that `value` breaks and `base` had not broken in the same way."""
    found: list[tuple[str, str]] = []
    for invariant in invariants:
        name, _ = _name(invariant)
        wrong = list(_violations(invariant, value, NOTHING))
        if wrong and base is not MISSING:
            known = {violation.identity for violation in _violations(invariant, base, NOTHING)}
            wrong = [violation for violation in wrong if violation.identity not in known]
        found += [(name, violation.wrong) for violation in wrong]
    return found


def _name(invariant: Any) -> tuple[str, str]:
    if isinstance(invariant, Invariant):
        return invariant.name, "check"
    if not isinstance(invariant, Mapping) or invariant.get("kind") not in KINDS:
        raise UsageError(f"invariant is {show(invariant)}; it is an Invariant or a map of kind {', '.join(KINDS)}")
    for member in ("from", "to") if invariant["kind"] == "reference" else ("path",):
        tokens_of(invariant.get(member))
    if invariant["kind"] in ("sum_le", *HOLDS) and "limit" not in invariant:
        raise UsageError(f"invariant {show(invariant)} has no `limit`; give a number or the pointer of one")
    return str(invariant.get("name", invariant["kind"])), invariant["kind"]


def _counts(schema: Node, path: str) -> bool:
    for token in tokens_of(path):
        schema = schema.child(token)
    return isinstance(schema.rule, Counter)


def _violations(invariant: Any, value: Any, schema: Node) -> Iterator[Violation]:
    if isinstance(invariant, Invariant):
        for path, item in _matches(value, tokens_of(invariant.path), schema, ""):
            if (wrong := invariant.broken(item)) is not None:
                yield Violation(path, (path, wrong), wrong)
        return
    kind = invariant["kind"]
    if kind == "reference":
        yield from _dangling(invariant, value, schema)
        return
    found = list(_matches(value, tokens_of(invariant["path"]), schema, ""))
    above = invariant["path"].partition("/*")[0]
    if kind == "unique":
        seen: dict[bytes, str] = {}
        for path, item in found:
            if item is None:
                continue
            key = canonical(item)
            if key in seen:
                yield Violation(above, key, f"{show(item)} stands at {seen[key]} and at {path}")
            seen.setdefault(key, path)
        return
    numbers = [(path, item) for path, item in found if type(item) in (int, float)]
    limit = _limit(invariant["limit"], value, schema)
    if limit is None:
        return
    if kind == "sum_le":
        total = sum(item for _, item in numbers)
        if total > limit:
            yield Violation(above, "", f"the sum is {show(total)}, over the limit of {show(limit)}")
        return
    for path, item in numbers:
        if not HOLDS[kind](item, limit):
            yield Violation(path, path, f"{show(item)} is not {kind} {show(limit)}")


def _dangling(invariant: Mapping[str, Any], value: Any, schema: Node) -> Iterator[Violation]:
    there = {canonical(item) for _, item in _matches(value, tokens_of(invariant["to"]), schema, "")}
    for path, item in _matches(value, tokens_of(invariant["from"]), schema, ""):
        if (item is None and invariant.get("nullable")) or canonical(item) in there:
            continue
        yield Violation(path, (path, canonical(item)), f"{show(item)} is at no {invariant['to']}")


def _limit(limit: Any, value: Any, schema: Node) -> Any:
    if isinstance(limit, str):
        found = [item for _, item in _matches(value, tokens_of(limit), schema, "")]
        limit = found[0] if found else None
    return limit if type(limit) in (int, float) else None


def _matches(value: Any, tokens: Sequence[str], schema: Node, path: str) -> Iterator[tuple[str, Any]]:
    """(pointer, value) of everything that a pattern names, in order."""
    if not tokens:
        yield path, value
        return
    token, rest = tokens[0], tokens[1:]
    if is_record(value):
        value = fields_of(value)
    if isinstance(value, Mapping):
        for key in list(value) if token == "*" else [token]:
            if key in value:
                yield from _matches(value[key], rest, schema.child(key), f"{path}/{escape(str(key))}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            name = item_name(item, schema.rule.keys) if isinstance(schema.rule, Keyed) else str(index)
            if token in ("*", name, str(index)):
                yield from _matches(item, rest, schema.every or schema.child("*"), f"{path}/{name}")


def item_name(item: Any, keys: Sequence[str]) -> str:
    """How a pointer names an item of a keyed list: [id=n0]."""
    fields = fields_of(item) if is_record(item) else item if isinstance(item, Mapping) else {}
    said = [f"{key}={_plain(fields.get(key))}" for key in keys]
    return f"[{escape(','.join(said))}]"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else show(value)
