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

from nova.errors import LimitError, UsageError

Side: TypeAlias = Literal["left", "right"]
Op: TypeAlias = list[Any]

COMPONENTS_MAX: Final = 1 << 20
LENGTH_MAX: Final = (1 << 31) - 1
"""The most code points that an operation may walk over or insert."""


def check(op: object) -> None:
    """Raise UsageError or LimitError if `op` is no text operation."""
    if not isinstance(op, list | tuple):
        raise UsageError(f"a text operation is a list, not {show(op)}")
    if len(op) > COMPONENTS_MAX:
        raise LimitError(f"the text operation has {len(op)} components; it may have {COMPONENTS_MAX}: split it")
    total = 0
    for at, component in enumerate(op):
        total += _length(component, at)
        if total > LENGTH_MAX:
            raise LimitError(f"component {at} ends {total} code points into the text; the most is {LENGTH_MAX}")


def normalize(op: Sequence[Any]) -> Op:
    """The same operation in normal form."""
    check(op)
    out = _Writer()
    for component in op:
        out.put(component)
    return out.done()


def apply(text: str, op: Sequence[Any]) -> str:
    """The text after the operation. Raises UsageError if it is too short, or has not the text that is to be deleted."""
    if not isinstance(text, str):
        raise UsageError(f"a text operation applies to a str, not {show(text)}")
    check(op)
    at, size, parts = 0, len(text), []
    for component in op:
        if isinstance(component, str):
            parts.append(component)
            continue
        gone = None if isinstance(component, int) else component["d"]
        end = at + (component if gone is None else gone if isinstance(gone, int) else len(gone))
        if end > size:
            raise UsageError(f"the operation reaches {end} code points in; the text has {size}: transform it first")
        if gone is None:
            parts.append(text[at:end])
        elif isinstance(gone, str) and text[at:end] != gone:
            raise UsageError(
                f"{show(gone)} is to go at {at}, where {show(text[at:end])} is: transform the operation first"
            )
        at = end
    parts.append(text[at:])
    return "".join(parts)


def compose(a: Sequence[Any], b: Sequence[Any]) -> Op:
    """One operation that does what a and then b do."""
    check(a)
    check(b)
    walk, out = _Reader(a), _Writer()
    for component in b:
        if isinstance(component, str):
            out.put(component)
            continue
        keep = isinstance(component, int)
        left = _length(component)
        while left:
            piece = walk.take(left, whole_deletes=True)
            if isinstance(piece, dict):  # a deleted it: b never saw it
                out.put(piece)
                continue
            size = _length(piece)
            if keep:
                out.put(piece)
            elif isinstance(piece, int):
                out.put(_part(component, _length(component) - left, size))
            left -= size
    out.extend(walk)
    return out.done()


def transform(op: Sequence[Any], other: Sequence[Any], side: Side) -> Op:
    """`op` for the text that `other` has changed. At equal positions the text of the left side comes first."""
    check(op)
    check(other)
    first = is_left(side)
    walk, out = _Reader(op), _Writer()
    for component in other:
        if isinstance(component, str):
            while first and walk.at_insert():
                out.put(walk.take(LENGTH_MAX))
            out.put(len(component))
            continue
        keep = isinstance(component, int)
        left = _length(component)
        while left:
            piece = walk.take(left, whole_inserts=True)
            if isinstance(piece, str):
                out.put(piece)
                continue
            if keep:
                out.put(piece)
            left -= _length(piece)
    out.extend(walk)
    return out.done()


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
    at, out = 0, _Writer()
    for component in op:
        size = _length(component)
        if isinstance(component, dict):
            component = {"d": text[at : at + size]}
        if not isinstance(component, str):
            at += size
        out.put(component)
    return out.done()


def invert(op: Sequence[Any]) -> Op:
    """The operation that undoes `op`, which must carry the text that it deletes (see make_invertible)."""
    check(op)
    out = _Writer()
    for at, component in enumerate(op):
        if isinstance(component, str):
            out.put({"d": component})
        elif isinstance(component, int):
            out.put(component)
        elif isinstance(component["d"], str):
            out.put(component["d"])
        else:
            raise UsageError(f"component {at} deletes {component['d']} characters unnamed: use make_invertible first")
    return out.done()


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


def is_left(side: object) -> bool:
    if side == "left":
        return True
    if side == "right":
        return False
    raise UsageError(f"side is {show(side)}; it is 'left' or 'right'")


# ------------------------------------------------------------------------------------------------ components


def _length(component: Any, at: int | None = None) -> int:
    """How many code points a component skips, inserts or deletes; checks it if `at` says where it is."""
    if isinstance(component, str):
        return len(component)
    size = component["d"] if isinstance(component, dict) and len(component) == 1 and "d" in component else component
    if isinstance(size, str):
        return len(size)
    if at is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise UsageError(
            f"component {at} is {show(component)}; it is a count to skip, a str to insert, or {{'d': count or str}}"
        )
    return int(size)


def _part(component: Any, start: int, size: int) -> Any:
    """`size` code points of a component from `start` on."""
    if isinstance(component, str):
        return component[start : start + size]
    if isinstance(component, int):
        return size
    gone = component["d"]
    return {"d": gone[start : start + size] if isinstance(gone, str) else size}


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


def show(value: object) -> str:
    text = type(value).__name__ if isinstance(value, list | tuple | dict | set) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Reader:
    """Hands an operation out in pieces. After its end there is only text to skip."""

    def __init__(self, op: Sequence[Any]) -> None:
        self.op = [component for component in op if _length(component)]
        self.index = 0
        self.start = 0  # what of the present component was taken

    def at_insert(self) -> bool:
        return self.index < len(self.op) and isinstance(self.op[self.index], str)

    def take(self, size: int, *, whole_inserts: bool = False, whole_deletes: bool = False) -> Any:
        """The next piece, of at most `size` code points unless its kind is to stay whole."""
        if self.index == len(self.op):
            return size
        component = self.op[self.index]
        rest = _length(component) - self.start
        whole = (whole_inserts and isinstance(component, str)) or (whole_deletes and isinstance(component, dict))
        taken = rest if whole else min(rest, size)
        piece = _part(component, self.start, taken)
        self.start += taken
        if taken == rest:
            self.index, self.start = self.index + 1, 0
        return piece


class _Writer:
    """Builds an operation in normal form."""

    def __init__(self) -> None:
        self.op: Op = []

    def put(self, component: Any) -> None:
        op = self.op
        if not _length(component):
            return
        last: Any = op[-1] if op else None
        if isinstance(component, dict):
            gone = component["d"]
            if isinstance(last, dict):
                before = last["d"]
                if type(before) is not type(gone):  # a part whose text is unknown: only the count remains
                    before, gone = _length(last), _length(component)
                op[-1] = {"d": before + gone}
            else:
                op.append({"d": gone})
        elif type(last) is type(component):
            op[-1] = last + component
        else:
            op.append(component)

    def extend(self, walk: _Reader) -> None:
        while walk.index < len(walk.op):
            self.put(walk.take(LENGTH_MAX))

    def done(self) -> Op:
        if self.op and isinstance(self.op[-1], int):
            self.op.pop()
        return self.op
