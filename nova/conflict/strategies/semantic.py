"""Merging by what the fields mean: rules for leaves, three-way merges for whole values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any, Final

import msgspec

from nova.conflict.detect import MISSING, Conflict, Invariant, Version, canonical, matches, ordered, same, unescape
from nova.conflict.merge import (
    Counter,
    Lost,
    Max,
    MergeConflict,
    MergeResult,
    Min,
    SetOf,
    compile_schema,
    merge,
)
from nova.conflict.merge.schema import Schema as MergeSchema
from nova.conflict.strategies.base import (
    NO_CONTEXT,
    Discarded,
    Resolution,
    ResolveContext,
    Rule,
    Settled,
    admitted,
    agreed,
    base_at,
    finish,
    last_writer,
    place,
    register_strategy,
    strategy,
    without,
)
from nova.conflict.words import show
from nova.errors import UsageError


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
                union, f"{place(path)}: the union of {len(versions)} sets, {show(union)}", "not in the union"
            )
    return last_writer(path, versions, context)


Merge = Callable[[Any, Any, Any, ResolveContext], MergeResult]


class Schema(msgspec.Struct, frozen=True):
    """How one kind of value is merged.

    rules        of leaves: (path pattern, rule), the first match decides; none: `by_default`
    join         the whole value that leaves make, where the kind is kept in leaves; else None
    invariants   truths about every whole value of this kind, checked on what a merge made
    declared     how whole values merge: a record type with annotations, or {JSON pointer: declaration}; see
                 `nova.conflict.merge`
    merge        the same, where declarations do not say all: (base or MISSING, older, newer, context) -> MergeResult;
                 raises UsageError for what is not of this kind
    """

    rules: tuple[tuple[str, Rule], ...] = ()
    invariants: tuple[Invariant, ...] = ()
    join: Callable[[Mapping[str, Any]], Any] | None = None
    declared: MergeSchema | None = None
    merge: Merge | None = None


SCHEMAS: Final[dict[str, Schema]] = {}
"""kind -> how it is merged; `nova.conflict.vm` puts `vm` here, `register_schema` others."""


def register_schema(kind: str, schema: Schema) -> None:
    """Merge values of `kind` by `schema`; a kind taken is replaced."""
    SCHEMAS[kind] = schema


@strategy
class SemanticMerge:
    """Merges by what the fields mean: a rule per kind and path pattern, used where writers changed the same leaf.

    A rule that raises leaves no half result: its leaf falls to the last writer, and the explanation says so.

    Whole maps, and whatever has a base or a declared schema, merge three-way. With a base, a part that one side left
    alone follows the other side, removal included; only parts that both changed come to a rule, and where there is
    none, to the last writer. Without a base nobody can tell a removal from an absence: what one side has is kept.
    """

    name = "semantic"

    def __init__(self, schemas: Mapping[str, Schema] | None = None) -> None:
        self._schemas = SCHEMAS if schemas is None else schemas

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        if context.stamp_max:
            conflict, refused = admitted(conflict, context)
            if refused:
                return without(self.resolve(conflict, msgspec.structs.replace(context, stamp_max=0)), refused)
        schema = self._schemas.get(conflict.kind, _PLAIN_SCHEMA)
        if conflict.whole and (found := self._three_way(conflict, schema, context)) is not None:
            return found
        outcomes: dict[str, tuple[Sequence[Version], Settled]] = {}
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            outcomes[path] = versions, self._leaf(path, versions, schema, context)
        resolution = finish(conflict, self.name, outcomes)
        if context.leaves and schema.join is not None and schema.invariants:
            merged = {**context.leaves, **resolution.settled}
            value = schema.join({path: leaf for path, leaf in merged.items() if leaf is not MISSING})
            if broken := _broken(schema.invariants, value):
                resolution = resolution.replace(alarms=resolution.alarms + broken)
        return resolution

    def _leaf(self, path: str, versions: Sequence[Version], schema: Schema, context: ResolveContext) -> Settled:
        settled = agreed(path, versions)
        if settled is not None:
            return settled
        present = [version for version in versions if version.value is not MISSING]
        if len(present) < len(versions):  # delete against update: the content stays, once, at the deleted node
            kept = agreed(path, present) or self._leaf(path, present, schema, context)
            gone = ", ".join(version.origin for version in versions if version.value is MISSING)
            return Settled(
                kept.value,
                f"{place(path)}: removed by {gone}, changed by another; the content stays, {show(kept.value)}",
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

    def _three_way(self, conflict: Conflict, schema: Schema, context: ResolveContext) -> Resolution | None:
        """Whole values merged by the engine; None where it has nothing to go by."""
        versions = ordered(conflict.siblings[""])
        declares = schema.declared is not None or schema.merge is not None
        merges = declares or conflict.base is not None
        if not merges and not all(isinstance(version.value, Mapping) for version in versions):
            return None
        if agreed("", versions) is not None and not declares:
            return None
        step = None if schema.merge is None else partial(_by_kind, schema.merge, context)
        try:
            merged = merge_all(base_at(conflict, ""), versions, schema.declared, step)
        except UsageError:
            return None  # not of the declared type, or too deep: one opaque value
        broken = _new_faults(schema.invariants + context.invariants, merged.value, conflict)
        # What no writer may have, and what moved into itself, stays as the base has it until somebody looks.
        broken += merged.open
        outcome = Settled(merged.value, "", "", merged.confidence, bool(broken))
        found = finish(conflict, self.name, {"": ((), outcome)})
        explanation = merged.explanation + tuple(line for line in found.explanation if line) + broken
        return found.replace(explanation=explanation, discarded=merged.discarded, alarms=broken)


def _broken(invariants: Sequence[Invariant], value: Any) -> tuple[str, ...]:
    """What whole-value invariants say is wrong with a value, one line each."""
    found = [(i.name, i.broken(value)) for i in invariants if i.path == ""]
    return tuple(f"invariant {name} is broken: {wrong}" for name, wrong in found if wrong is not None)


def _new_faults(invariants: Sequence[Invariant], value: Any, conflict: Conflict) -> tuple[str, ...]:
    """What is wrong with a merged value. What the base broke already must not block unrelated edits."""
    broken = _broken(invariants, value)
    if broken and conflict.base is not None:
        before = set(_broken(invariants, conflict.base.value))
        broken = tuple(wrong for wrong in broken if wrong not in before)
    return broken


_PLAIN_SCHEMA: Final = Schema()

# ------------------------------------------------------------------------------------------------ by the engine

_DECIDABLE: Final = frozenset(
    ("update/update", "add/add", "delete/update", "type_change", "insert/insert", "move/move")
)


class Merged(msgspec.Struct, frozen=True):
    """What `merge_all` made. `open` tells, a line each, of conflicts that no last writer can decide."""

    value: Any
    explanation: tuple[str, ...]
    discarded: tuple[Discarded, ...]
    open: tuple[str, ...]
    confidence: float


Step = Callable[[Any, Any, Any], tuple[MergeResult, Any]]
"""(base, older, newer) -> what the engine made of it, and the value to go on with."""


def merge_all(
    base: Any, versions: Sequence[Version], declared: MergeSchema | None = None, step: Step | None = None
) -> Merged:
    """Versions, oldest first, merged into one by the three-way engine, one after the other, each against the base.

    Where two changed the same thing and nothing is declared, the later one wins, but for a removal: content outlives
    it. A three-way merge is not associative, but the order is one that all replicas share, and every step tells its
    conflicts and losses, so that none vanishes.
    """
    step = step or partial(_by_schema, None if declared is None else compile_schema(declared))
    value, clashed = versions[0].value, False
    explanation: list[str] = []
    discarded: list[Discarded] = []
    open_: list[str] = []
    refused: MergeResult | None = None
    for i, version in enumerate(versions[1:] or versions[:1], 1):
        found, merged = step(base, value, version.value)
        for conflict in found.conflicts:
            clashed = True
            at = _place(conflict.path)
            if not conflict.resolved:
                open_.append(f"{place(at)}: {conflict.note or f'{conflict.kind} is left open'}")
                continue
            winner = _at(merged, conflict.path)
            if winner is MISSING:
                winner = _later(conflict)
            mine = winner is conflict.remote or same(winner, conflict.remote)
            writer = version.origin if mine else _holder(versions[:i], conflict.path, winner)
            why = "was written last"
            if conflict.kind == "delete/update":
                why = "outlives a concurrent removal"
                gone = version.origin if conflict.remote is MISSING else _holder(versions[:i], conflict.path, MISSING)
                discarded.append(Discarded(conflict.path, MISSING, gone, f"an update by {writer} {why}"))
            explanation.append(f"{place(at)}: {show(winner)} by {writer} {why}")
        for lost in found.lost:
            writer = version.origin if lost.side == "remote" else _holder(versions[:i], lost.path, lost.value)
            discarded.append(Discarded(lost.path, lost.value, writer, _reason(lost, version.origin)))
        value = merged
        refused = refused if found.committed else found
    discarded = [
        msgspec.structs.replace(lost, path=_place(lost.path))
        for lost in discarded
        if not same(_at(value, lost.path), lost.value)
    ]
    if refused is not None and base is not MISSING:
        value = refused.value
        reason = "the merge must not be committed, so the base stays"
        discarded += [Discarded("", v.value, v.origin, reason) for v in versions if not same(v.value, value)]
    if not explanation and not open_:
        told = [f"{place(lost.path)}: {show(lost.value)} by {lost.origin} went: {lost.reason}" for lost in discarded]
        explanation += told or ["the writers changed different parts; all changes are in"]
    return Merged(value, tuple(explanation), tuple(discarded), tuple(open_), 0.6 if clashed else 0.9)


def _by_schema(node: Any, base: Any, older: Any, newer: Any) -> tuple[MergeResult, Any]:
    found = merge(base, older, newer, node, _later)
    return found, found.value


def _by_kind(of_kind: Merge, context: ResolveContext, base: Any, older: Any, newer: Any) -> tuple[MergeResult, Any]:
    found = of_kind(base, older, newer, context)
    return found, found.proposal


def _place(pointer: str) -> str:
    """A pointer of the engine as a path of leaves: `/disks/[id=d]` is `/disks/d`."""
    if "[" not in pointer:
        return pointer
    tokens = pointer.split("/")
    return "/".join([t[1:-1].partition("=")[2] if t[:1] == "[" and "=" in t else t for t in tokens])


def _later(conflict: MergeConflict) -> Any:
    if conflict.kind not in _DECIDABLE or conflict.type == "resource_contention":
        return conflict
    if conflict.remote is MISSING:
        return conflict.local
    return conflict.remote


def _reason(lost: Lost, later: str) -> str:
    return f"a later write by {later}" if lost.reason.startswith("the policy") else lost.reason


def _holder(versions: Sequence[Version], path: str, value: Any) -> str:
    """Who of the earlier writers has this value there; of several the last one."""
    for version in reversed(versions):
        if same(_at(version.value, path), value):
            return version.origin
    return versions[-1].origin


def _at(value: Any, path: str) -> Any:
    """What a pointer of the merge engine names; MISSING if there is nothing."""
    for token in path.split("/")[1:]:
        key, is_item, wanted = token[1:-1].partition("=") if token[:1] == "[" else ("", "", "")
        if is_item and isinstance(value, list | tuple):
            items = [item for item in value if isinstance(item, Mapping) and str(item.get(key)) == wanted]
            value = items[0] if items else MISSING
        elif isinstance(value, Mapping):
            value = value.get(unescape(token), MISSING)
        else:
            value = getattr(value, token, MISSING)
    return value


class Declared:
    """Settles every leaf by one declared rule of the merge engine: `Declared("max", Max())`.

    Without a base a counter cannot tell what each writer added: there the last writer wins.
    """

    def __init__(self, name: str, rule: Any) -> None:
        self.name = name
        self._schema = compile_schema({"": rule})
        self._needs_base = isinstance(rule, Counter)

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        conflict, refused = admitted(conflict, context)
        outcomes: dict[str, tuple[Sequence[Version], Settled]] = {}
        discarded: list[Discarded] = []
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            base = base_at(conflict, path)
            if self._needs_base and base is MISSING:
                outcomes[path] = versions, agreed(path, versions) or last_writer(path, versions, context)
                continue
            merged = merge_all(base, versions, self._schema)
            words = [line for line in merged.explanation if not line.startswith("all changes")]
            shown = ", ".join(show(version.value) for version in versions)
            line = f"{place(path)}: {show(merged.value)} is the {self.name} of {shown}"
            outcomes[path] = (), Settled(merged.value, "; ".join(words) or line, "", merged.confidence)
            discarded += [
                Discarded(path + lost.path, lost.value, lost.origin, lost.reason) for lost in merged.discarded
            ]
        found = finish(conflict, self.name, outcomes)
        return without(found.replace(discarded=found.discarded + tuple(discarded)), refused)


for _name, _rule in (("max", Max()), ("min", Min()), ("union", SetOf()), ("sum", Counter())):
    register_strategy(Declared(_name, _rule))
