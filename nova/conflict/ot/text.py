"""Operations on a text, and their transformation (Ellis and Gibbs 1989; one pass, after Google Wave's operations).

An operation is a list of components that walk through the text from its start:

    n > 0        skip n characters
    "abc"        insert before what comes next
    {"d": n}     delete n characters
    {"d": "ab"}  delete these characters: what carries them can be inverted

Positions count code points. What comes after the last component stays. In normal form neighbours differ in kind,
nothing is empty, and there is no skip at the end; every result is in normal form.

`transform(a, b, side)` gives the a that can be applied after b, and TP1 holds: b then transform(a, b, "left") gives the
same text as a then transform(b, a, "right"). At equal positions the left text comes first. TP2 does not hold, as for
every transformation of insert and delete by position: three sites need one order of operations, which a store's log or
a leader gives, or the sequence type `nova.crdt.RGA` instead. docs/explanation/ot.md says more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias

from nova._native import ottext
from nova._native.ottext import apply, check, compose, is_left, normalize, show, transform
from nova.errors import UsageError

Side: TypeAlias = Literal["left", "right"]
Op: TypeAlias = list[Any]

COMPONENTS_MAX: Final = ottext.COMPONENTS_MAX
LENGTH_MAX: Final = ottext.LENGTH_MAX
"""The most code points that an operation may walk over or insert."""

__all__ = [
    "COMPONENTS_MAX",
    "LENGTH_MAX",
    "Op",
    "Side",
    "apply",
    "check",
    "compose",
    "from_spans",
    "invert",
    "is_left",
    "make_invertible",
    "normalize",
    "show",
    "to_spans",
    "transform",
    "transform_position",
]


def transform_position(position: int, op: Sequence[Any], side: Side = "left") -> int:
    """Where a cursor stands after the operation: before text inserted at it, or behind it if on the right side."""
    check(op)
    before = is_left(side)
    at, moved = 0, position
    for component in op:
        if at > position or (before and at == position):
            break
        size = _length(component)
        if isinstance(component, str):
            moved += size
            continue
        if isinstance(component, dict):
            moved -= min(size, position - at)
        at += size
    return moved


def make_invertible(op: Sequence[Any], text: str) -> Op:
    """The same operation, with the text that it deletes from `text` in it."""
    apply(text, op)
    at, out = 0, []
    for component in op:
        size = _length(component)
        out.append({"d": text[at : at + size]} if isinstance(component, dict) else component)
        if not isinstance(component, str):
            at += size
    return normalize(out)


def invert(op: Sequence[Any]) -> Op:
    """The operation that undoes `op`, which must carry the text that it deletes (see make_invertible)."""
    check(op)
    out: Op = []
    for at, component in enumerate(op):
        if isinstance(component, str):
            out.append({"d": component})
        elif isinstance(component, int):
            out.append(component)
        elif isinstance(component["d"], str):
            out.append(component["d"])
        else:
            raise UsageError(f"component {at} deletes {component['d']} characters unnamed: use make_invertible first")
    return normalize(out)


def from_spans(op: Sequence[Any]) -> Op:
    """An operation from the notation of ot.js: -n deletes n, and all of the text is covered."""
    if not isinstance(op, list | tuple):
        raise UsageError(f"a text operation is a list, not {show(op)}")
    return normalize([{"d": -c} if isinstance(c, int) and c < 0 else c for c in _inserts_first(op)])


def to_spans(op: Sequence[Any], size: int) -> Op:
    """An operation on a text of `size` code points in the notation of ot.js, in which inserts come before deletes."""
    check(op)
    covered = sum(_length(c) for c in op if not isinstance(c, str))
    if covered > size:
        raise UsageError(f"the operation reaches {covered} code points in; the text has {size}: transform it first")
    spans: Op = []
    for component in _inserts_first([*op, size - covered]):
        plain = -_length(component) if isinstance(component, dict) else component
        if spans and type(spans[-1]) is type(plain) and (isinstance(plain, str) or (spans[-1] < 0) == (plain < 0)):
            spans[-1] += plain
        elif plain:
            spans.append(plain)
    return spans


# ------------------------------------------------------------------------------------------------ components


def _length(component: Any) -> int:
    """How many code points a component skips, inserts or deletes."""
    size = component["d"] if isinstance(component, dict) else component
    return len(size) if isinstance(size, str) else int(size)


def _inserts_first(op: Iterable[Any]) -> Op:
    """Inserts moved before the deletes that they touch: the text comes out the same."""
    out: Op = []
    deletes: Op = []
    for component in op:
        if isinstance(component, dict) or (isinstance(component, int) and component < 0):
            deletes.append(component)
            continue
        if not isinstance(component, str) and component:
            out += deletes
            deletes = []
        out.append(component)
    return out + deletes
