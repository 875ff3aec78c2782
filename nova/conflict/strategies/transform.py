"""Operational transformation as a strategy: all writers' operations, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Final

from nova.conflict.detect import MISSING, Conflict, Version, canonical, escape, ordered, same
from nova.conflict.merge.sequences import hunks, numbered
from nova.conflict.ot import json0, json1, text
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
from nova.conflict.words import show
from nova.errors import LimitError, UsageError

_SURROGATES: Final = range(0xD800, 0xE000)
_TYPES: Final = ("text", "json0", "json1")


@strategy
class OperationalTransform:
    """Applies what every writer did to the base, each operation transformed over those before it.

    A version may bring its operation: metadata["op"], and metadata["ot"] its type, `text`, `json0` or `json1`; it must
    lead from the base to the version's value. Without one, the operation is read off the difference: by character for
    texts, by item for lists (an item that changed is one removed and one put in), json1 for maps.

    TP1 alone does not settle three writers, and TP2 holds for no transformation of positions. The answer is a central
    order: that of the versions, by timestamp, origin and bytes, is the same on every replica, and each operation is
    transformed over the composition of all before it. For text without a base that all share, use `nova.crdt.RGA`.

    otherwise  the strategy where there is no base, or an operation does not fit it; None raises UndecidedError
    """

    name = "operational_transform"

    def __init__(self, otherwise: str | None = "lww") -> None:
        self.otherwise = otherwise

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        conflict, refused = admitted(conflict, context)
        metadata = {(v.origin, v.timestamp): v.metadata for v in conflict.versions}
        outcomes: dict[str, tuple[Sequence[Version], Settled]] = {}
        discarded: list[Discarded] = []
        cannot: dict[str, Sequence[Version]] = {}
        reasons: list[str] = []
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            if (unanimous := agreed(path, versions)) is not None and not any(v.metadata.get("op") for v in versions):
                outcomes[path] = (), unanimous
                continue
            base = base_at(conflict, path)
            try:
                given = [v.metadata or metadata.get((v.origin, v.timestamp), {}) for v in versions]
                kind, value = transformed(base, [v.value for v in versions], given)
            except UsageError as error:
                cannot[path] = versions
                reasons.append(f"{place(path)}: {error}")
                continue
            writers = ", ".join(version.origin for version in versions)
            line = f"{place(path)}: the {kind} operations of {writers}, in this order, make {show(value)}"
            outcomes[path] = (), Settled(value, line, "", 0.9)
            for version in versions:
                for at, lost in _losses(base, version.value, value):
                    reason = "a concurrent operation took its place, or removed what it was in"
                    discarded.append(Discarded(path + at, lost, version.origin, reason))
        done = finish(part(conflict, {path: conflict.siblings[path] for path in outcomes}), self.name, outcomes)
        parts = [done.replace(discarded=tuple(discarded))]
        if cannot:
            found = deferred(part(conflict, cannot), context, self.name, self.otherwise, "; ".join(reasons))
            parts = [*parts, found] if outcomes else [found]
        return without(combined(conflict, self.name, parts), refused)


def transformed(base: Any, values: Sequence[Any], metadata: Sequence[Mapping[str, Any]] = ()) -> tuple[str, Any]:
    """(type, value): the operations that lead from `base` to each of `values`, applied in this order.

    Raises UsageError where an operation does not lead to its value, and where types are mixed or do not fit.
    """
    if base is MISSING:
        raise UsageError("there is no base, so what each writer did is not known")
    given = list(metadata) or [{}] * len(values)
    kinds = {str(each["ot"]) for each in given if each.get("op") is not None and "ot" in each}
    if len(kinds) > 1:
        raise UsageError(f"the operations are of types {', '.join(sorted(kinds))}; use one type for one value")
    kind = next(iter(kinds), "")
    if kind and kind not in _TYPES:
        raise UsageError(f"the operation type is {show(kind)}; it is one of {', '.join(_TYPES)}")
    if any(each.get("op") is not None for each in given) and not kind:
        raise UsageError('an operation comes without its type; give metadata["ot"]')
    if not kind and all(isinstance(value, str) for value in (base, *values)):
        return "text", _fold("text", base, [_text_op(base, value) for value in values])
    if not kind and all(isinstance(value, list | tuple) for value in (base, *values)):
        return "list", _lists(base, values)
    if not kind:
        if not all(isinstance(value, Mapping) for value in (base, *values)):
            raise UsageError("base and versions are neither all texts, nor all lists, nor all maps")
        kind = "json1"
    ops = [
        each["op"] if each.get("op") is not None else _derived(kind, base, value)
        for each, value in zip(given, values, strict=True)
    ]
    for op, value in zip(ops, values, strict=True):
        if not same(_apply(kind, base, op), value):
            raise UsageError(f"the operation {show(op)} does not lead from the base to {show(value)}")
    return kind, _fold(kind, base, ops)


def _derived(kind: str, base: Any, value: Any) -> Any:
    if kind == "text":
        if not isinstance(base, str) or not isinstance(value, str):
            raise UsageError(f"a text operation cannot lead to {show(value)}")
        return _text_op(base, value)
    if kind == "json0":
        if not same(base, value):
            raise UsageError("a version brings no json0 operation, but others do; bring one with each, or with none")
        return []
    return _tree_op(base, value)


def _apply(kind: str, base: Any, op: Any) -> Any:
    if kind == "text":
        return text.apply(base, op)
    return json0.apply(base, op) if kind == "json0" else json1.apply(base, op)


def _fold(kind: str, base: Any, ops: Sequence[Any]) -> Any:
    """The earlier operation is left: at equal places it comes first."""
    if kind == "json1":
        done: Any = None
        for op in ops:
            done = json1.compose(done, json1.transform_no_conflict(op, done, "right"))
        return json1.apply(base, done)
    module: Any = text if kind == "text" else json0
    done = []
    for op in ops:
        done = module.compose(done, module.transform(op, done, "right"))
    return module.apply(base, done)


# ------------------------------------------------------------------------------------------------ read off


def _text_op(base: str, value: str) -> text.Op:
    op: text.Op = []
    at = 0
    for hunk in hunks(list(map(ord, base)), list(map(ord, value))):
        if hunk.a_start > at:
            op.append(hunk.a_start - at)
        if hunk.b_count:
            op.append(value[hunk.b_start : hunk.b_start + hunk.b_count])
        if hunk.a_count:
            op.append({"d": hunk.a_count})
        at = hunk.a_start + hunk.a_count
    return op


def _lists(base: Sequence[Any], values: Sequence[Sequence[Any]]) -> list[Any]:
    """Every different item is a character, so that the operations on lists are those on texts."""
    table: dict[int, Any] = {}
    texts = []
    for sequence, numbers in zip((base, *values), numbered(canonical, base, *values), strict=True):
        letters = [number if number < _SURROGATES.start else number + len(_SURROGATES) for number in numbers]
        if letters and max(letters) > 0x10FFFF:
            raise LimitError(
                f"the lists have {max(numbers)} different items; the limit is {0x10FFFF - len(_SURROGATES)}"
            )
        for letter, item in zip(letters, sequence, strict=True):
            table.setdefault(letter, item)  # 1 before 1.0, if the base or an earlier writer has it so
        texts.append("".join(map(chr, letters)))
    merged = _fold("text", texts[0], [_text_op(texts[0], other) for other in texts[1:]])
    return [table[ord(letter)] for letter in merged]


def _tree_op(base: Any, value: Any) -> json1.Op:
    parts = list(_descent(base, value))
    if not parts:
        return None
    return json1.normalize(parts[0] if len(parts) == 1 else parts)


def _descent(base: Any, value: Any) -> Iterator[list[Any]]:
    """Branches of a json1 operation, in order of their keys."""
    if isinstance(base, Mapping):
        for key in sorted(base.keys() | value.keys()):
            before, after = base.get(key, MISSING), value.get(key, MISSING)
            if same(before, after):
                continue
            if isinstance(before, Mapping) and isinstance(after, Mapping):
                below = list(_descent(before, after))
            elif isinstance(before, list | tuple) and isinstance(after, list | tuple):
                below = list(_items(before, after))
            else:
                below = [[_change(before, after)]]
            yield [key, *(below[0] if len(below) == 1 else below)]


def _change(before: Any, after: Any) -> dict[str, Any]:
    if isinstance(before, str) and isinstance(after, str):
        return {"es": _text_op(before, after)}
    change: dict[str, Any] = {}
    if before is not MISSING:
        change["r"] = True
    if after is not MISSING:
        change["i"] = after
    return change


def _items(before: Sequence[Any], after: Sequence[Any]) -> Iterator[list[Any]]:
    """Removals name places in the list as it was, insertions in the list as it will be."""
    changes: dict[int, dict[str, Any]] = {}
    for hunk in hunks(*numbered(canonical, before, after)):
        for at in range(hunk.a_start, hunk.a_start + hunk.a_count):
            changes.setdefault(at, {})["r"] = True
        for at in range(hunk.b_start, hunk.b_start + hunk.b_count):
            changes.setdefault(at, {})["i"] = after[at]
    for at in sorted(changes):
        yield [at, changes[at]]


# ------------------------------------------------------------------------------------------------ nothing in silence


def _losses(base: Any, wrote: Any, result: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(pointer, value) of what a writer put into the base and the result does not hold."""
    if same(wrote, result) or same(wrote, base) or wrote is MISSING:
        return
    if isinstance(wrote, Mapping) and isinstance(result, Mapping):
        before = base if isinstance(base, Mapping) else {}
        for key in sorted(wrote, key=str):
            at = f"{path}/{escape(str(key))}"
            yield from _losses(before.get(key, MISSING), wrote[key], result.get(key, MISSING), at)
    elif isinstance(wrote, list | tuple) and isinstance(result, list | tuple):
        items: dict[Hashable, Any] = {canonical(item): item for item in wrote}
        known = Counter(map(canonical, base)) if isinstance(base, list | tuple) else Counter()
        missing = Counter(map(canonical, wrote)) - known - Counter(map(canonical, result))
        for key in sorted(missing):
            yield path, items[key]
    elif not (isinstance(wrote, str) and isinstance(result, str) and isinstance(base, str)):
        yield path, wrote
