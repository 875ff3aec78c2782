"""FugueMax too simple to be wrong: the tree of the paper (Weidner, Kleppmann 2023), built anew from all operations.

An operation is ("insert", id, left, right, char) or ("delete", id, target), where id is (actor, count) and left and
right are ids or None for the ends. A node is the right child of its left origin if that had no right child when it was
inserted, else the left child of its right origin.
"""

from __future__ import annotations

from functools import cmp_to_key
from typing import Any

Id = tuple[str, int]
Op = tuple[Any, ...]


class Fugue:
    """The order and the text that a set of operations make; `ops` must hold whatever they name. Marks change none."""

    def __init__(self, ops: set[Op]) -> None:
        self.chars = {op[1]: op[4] for op in ops if op[0] == "insert"}
        self.gone = {op[2] for op in ops if op[0] == "delete"}
        self.rights = {op[1]: op[3] for op in ops if op[0] == "insert"}
        self.side = {op[1]: op[5] for op in ops if op[0] == "insert"}
        self.parents = {op[1]: op[2] if op[5] == "R" else op[3] for op in ops if op[0] == "insert"}
        self.kids: dict[tuple[Id | None, str], list[Id]] = {}
        for node, parent in self.parents.items():
            self.kids.setdefault((parent, self.side[node]), []).append(node)
        self.order: list[Id] = []
        self._walk()

    def _path(self, node: Id) -> list[Id | None]:
        out: list[Id | None] = [node]
        while out[-1] is not None:
            out.append(self.parents[out[-1]])
        return out[::-1]

    def _compare(self, a: Id | None, b: Id | None) -> int:
        """How the places of two nodes stand; None is the end of the document."""
        if a == b:
            return 0
        if a is None or b is None:
            return 1 if a is None else -1
        x, y = self._path(a), self._path(b)
        i = 0
        while i < len(x) and i < len(y) and x[i] == y[i]:
            i += 1
        if i == len(x):  # a is above b
            return -1 if self.side[y[i]] == "R" else 1  # type: ignore[index]
        if i == len(y):
            return 1 if self.side[x[i]] == "R" else -1  # type: ignore[index]
        p, q = x[i], y[i]
        assert p is not None
        assert q is not None
        if self.side[p] != self.side[q]:
            return -1 if self.side[p] == "L" else 1
        return self._siblings(p, q)

    def _siblings(self, a: Id, b: Id) -> int:
        if self.side[a] == "R":  # the farther right origin comes first
            order = self._compare(self.rights[b], self.rights[a])
            if order:
                return order
        return -1 if a < b else 1

    def _walk(self) -> None:
        stack: list[tuple[Id | None, bool]] = [(None, False)]
        while stack:
            node, out = stack.pop()
            if out:
                if node is not None:
                    self.order.append(node)
                continue
            for kid in sorted(self.kids.get((node, "R"), []), key=cmp_to_key(self._siblings), reverse=True):
                stack.append((kid, False))
            stack.append((node, True))
            for kid in sorted(self.kids.get((node, "L"), []), key=cmp_to_key(self._siblings), reverse=True):
                stack.append((kid, False))

    @property
    def text(self) -> str:
        return "".join(self.chars[node] for node in self.order if node not in self.gone)

    def visible(self) -> list[Id]:
        return [node for node in self.order if node not in self.gone]


def insert(ops: set[Op], actor: str, pos: int, text: str) -> None:
    """Insert at a position of what `ops` make, one character after the other."""
    for i, char in enumerate(text):
        tree = Fugue(ops)
        left = tree.visible()[pos + i - 1] if pos + i else None
        at = tree.order.index(left) + 1 if left is not None else 0
        right = tree.order[at] if at < len(tree.order) else None
        side = "L" if tree.kids.get((left, "R")) else "R"
        ops.add(("insert", (actor, next_count(ops, actor)), left, right, char, side))


def claim(ops: set[Op], actor: str, left: Id | None, right: Id | None, char: str) -> None:
    """Insert between any two nodes, as no honest writer would: csrc/sequence_join.c tells what such origins mean."""
    tree = Fugue(ops)
    place: dict[Id | None, int] = {node: i for i, node in enumerate(tree.order)}
    place[None] = -1
    above, side = right, "L"
    if right is not None and place[right] <= place[left]:
        above = right = None
    while above is not None and tree.side[above] == "L":
        above = tree.parents[above]
    above = None if above is None else tree.parents[above]
    if right is None or place[above] < place[left]:
        side = "R"
    else:
        left = above
    ops.add(("insert", (actor, next_count(ops, actor)), left, right, char, side))


def delete(ops: set[Op], actor: str, pos: int, n: int) -> None:
    for _ in range(n):
        target = Fugue(ops).visible()[pos]
        ops.add(("delete", (actor, next_count(ops, actor)), target))


def mark(ops: set[Op], actor: str, pos: int, n: int, name: str, value: Any, expand: str) -> None:
    """Mark n visible characters: ("mark", id, start, whether behind it, end, whether behind it, name, value, stamp)."""
    at = Fugue(ops).visible()
    start: tuple[Id | None, bool] = (at[pos], False)
    end: tuple[Id | None, bool] = (at[pos + n - 1], True)
    if expand in ("before", "both"):
        start = (at[pos - 1], True) if pos else (None, False)
    if expand in ("after", "both"):
        end = (at[pos + n], False) if pos + n < len(at) else (None, False)
    stamp = 1 + max((op[8] for op in ops if op[0] == "mark"), default=0)
    ops.add(("mark", (actor, next_count(ops, actor)), *start, *end, name, value, stamp))


def spans(ops: set[Op]) -> list[tuple[str, dict[str, Any]]]:
    """The text in stretches that are marked alike, character by character."""
    tree = Fugue(ops)
    place = {node: i for i, node in enumerate(tree.order)}
    out: list[tuple[str, dict[str, Any]]] = []
    for node in tree.visible():
        latest: dict[str, tuple[int, str, Any]] = {}
        for op in ops:
            if op[0] != "mark":
                continue
            _, (actor, _), start, behind, end, through, name, value, stamp = op
            if start is not None and place[node] < place[start] + behind:
                continue
            if end is not None and place[node] >= place[end] + through:
                continue
            if name not in latest or latest[name][:2] < (stamp, actor):
                latest[name] = (stamp, actor, value)
        found = {name: latest[name][2] for name in sorted(latest) if latest[name][2] is not None}
        if out and str(out[-1][1]) == str(found):
            out[-1] = (out[-1][0] + tree.chars[node], found)
        else:
            out.append((tree.chars[node], found))
    return out


def next_count(ops: set[Op], actor: str) -> int:
    return sum(1 for op in ops if op[1][0] == actor)
