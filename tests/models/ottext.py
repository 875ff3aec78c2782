"""Text operations, one component at a time: the slow, obvious version of nova/_native/ottext.pyx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

END = 1 << 40


def compose(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """One operation that does what a and then b do."""
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


def transform(op: Sequence[Any], other: Sequence[Any], side: str) -> list[Any]:
    """`op` for the text that `other` has changed. At equal positions the text of the left side comes first."""
    first = side == "left"
    walk, out = _Reader(op), _Writer()
    for component in other:
        if isinstance(component, str):
            while first and walk.at_insert():
                out.put(walk.take(END))
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


def _length(component: Any) -> int:
    size = component["d"] if isinstance(component, dict) else component
    return len(size) if isinstance(size, str) else size


def _part(component: Any, start: int, size: int) -> Any:
    """`size` code points of a component from `start` on."""
    if isinstance(component, str):
        return component[start : start + size]
    if isinstance(component, int):
        return size
    gone = component["d"]
    return {"d": gone[start : start + size] if isinstance(gone, str) else size}


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
        self.op: list[Any] = []

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
            self.put(walk.take(END))

    def done(self) -> list[Any]:
        if self.op and isinstance(self.op[-1], int):
            self.op.pop()
        return self.op
