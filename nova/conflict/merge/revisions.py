"""Revision trees: every version of a document that was written without knowing of another, and which one is shown.

The rules are CouchDB's. A revision is a generation and a hash, `3-9af1`; writing on top of one makes a child. Replicas
send each other paths from a revision down to a leaf and merge them into their trees, in any order, to the same tree.
The leaf shown is a live one before a deleted one, then the longest, then the one with the greatest hash: every
replica picks the same without talking. The other live leaves are conflicts, for somebody to settle.

A tree is what CouchDB and PouchDB exchange: a list of roots {"pos": generation, "ids": [hash, options, children]}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from nova.conflict.words import show
from nova.errors import LimitError, UsageError

NEW_LEAF: Final = "new_leaf"
NEW_BRANCH: Final = "new_branch"
INTERNAL_NODE: Final = "internal_node"
REVISIONS_MAX: Final = 1_000_000


class Revisions(msgspec.Struct, frozen=True):
    """A merged tree; the revisions that were cut off its top; and what the path was to it: a longer branch (new_leaf),
    another branch (new_branch), or known or unconnected (internal_node)."""

    tree: list[Any]
    stemmed: tuple[str, ...]
    kind: str


class _Node:
    __slots__ = ("children", "id", "options")

    def __init__(self, id_: str, options: dict[str, Any]) -> None:
        self.id = id_
        self.options = options
        self.children: dict[str, _Node] = {}


_Root = tuple[int, _Node]


def merge_revisions(tree: Sequence[Any], path: Mapping[str, Any], depth: int = 1000) -> Revisions:
    """A tree with a path merged into it, and every branch cut to its last `depth` revisions.

    raises  UsageError for a tree or path of another form; LimitError above REVISIONS_MAX revisions
    cost    O(revisions), and O(depth) for each leaf where branches have to be cut
    """
    if type(depth) is not int or depth < 1:
        raise UsageError(f"depth is {show(depth)}; keep at least 1 revision of a branch")
    roots, kind = _joined(_read(tree), *_read([path]), expand=True)
    roots, stemmed = _stemmed(roots, depth)
    return Revisions([{"pos": pos, "ids": _written(node)} for pos, node in roots], stemmed, kind)


def path_of(hashes: Sequence[str], *, deleted: bool = False) -> dict[str, Any]:
    """The path from generation 1 to a leaf, given the hashes on the way."""
    if not hashes:
        raise UsageError("path has 0 revisions; give at least 1")
    ids: list[Any] = [hashes[-1], {"deleted": True} if deleted else {}, []]
    for each in reversed(hashes[:-1]):
        ids = [each, {}, [ids]]
    return {"pos": 1, "ids": ids}


def revision_leaves(tree: Sequence[Any]) -> list[tuple[str, bool]]:
    """(revision, whether it is deleted) of every leaf, in ascending order of generation and hash."""
    found = sorted((pos, node.id, bool(node.options.get("deleted"))) for pos, node in _leaves(_read(tree)))
    return [(f"{pos}-{id_}", deleted) for pos, id_, deleted in found]


def winning_revision(tree: Sequence[Any]) -> str:
    """The revision that every replica shows. Raises UsageError for an empty tree."""
    found = [(not node.options.get("deleted"), pos, node.id) for pos, node in _leaves(_read(tree))]
    if not found:
        raise UsageError("tree has 0 revisions; there is none to show")
    _, pos, id_ = max(found)
    return f"{pos}-{id_}"


def conflicting_revisions(tree: Sequence[Any]) -> list[str]:
    """The live leaves beside the winner, in ascending order."""
    winner = winning_revision(tree)
    return [revision for revision, deleted in revision_leaves(tree) if not deleted and revision != winner]


# ------------------------------------------------------------------------------------------------ merging


def _joined(roots: list[_Root], path: _Root, *, expand: bool) -> tuple[list[_Root], str]:
    """`expand`: a path may also go on from, or lead to, the middle of a branch."""
    if not roots:
        return [path], NEW_LEAF
    out: list[_Root] = []
    kind = ""
    merged = False
    for pos, node in roots:
        if pos == path[0] and node.id == path[1].id:
            kind = _graft(node, path[1]) or kind
            merged = True
            out.append((pos, node))
            continue
        early, late = ((pos, node), path) if pos < path[0] else (path, (pos, node))
        found = _descendant(early[1], late[0] - early[0], late[1].id) if expand else None
        if found is None:
            out.append((pos, node))
        else:
            kind = kind or _graft(found, late[1])
            merged = True
            out.append(early)
    if not merged:
        out.append(path)
    out.sort(key=lambda root: root[0])
    return out, kind or INTERNAL_NODE


def _graft(into: _Node, other: _Node) -> str:
    """Merge two trees with equal roots into the first; what was new."""
    kind = ""
    pairs = [(into, other)]
    while pairs:
        here, there = pairs.pop()
        if "status" in here.options or "status" in there.options:
            states = here.options.get("status"), there.options.get("status")
            here.options["status"] = "available" if "available" in states else "missing"
        for id_, child in there.children.items():
            known = here.children.get(id_)
            if known is not None:
                pairs.append((known, child))
            else:
                kind = NEW_BRANCH if here.children else NEW_LEAF
                here.children[id_] = child
    return kind


def _descendant(node: _Node, levels: int, id_: str) -> _Node | None:
    stack = [(node, levels)]
    while stack:
        here, left = stack.pop()
        if left == 0:
            if here.id == id_:
                return here
        else:
            stack += [(child, left - 1) for child in here.children.values()]
    return None


def _stemmed(roots: list[_Root], depth: int) -> tuple[list[_Root], tuple[str, ...]]:
    """The trees that the last `depth` revisions of every branch make, and the revisions that are in none of them."""
    above: dict[_Node, _Node | None] = {}
    order: list[_Root] = []
    stack: list[tuple[int, _Node, _Node | None]] = [(pos, node, None) for pos, node in reversed(roots)]
    while stack:
        pos, node, parent = stack.pop()
        above[node] = parent
        order.append((pos, node))
        stack += [(pos + 1, child, node) for child in reversed(node.children.values())]
    tops: dict[tuple[int, str], _Node] = {}
    kept: set[tuple[int, str]] = set()
    for pos, node in order:
        if node.children:
            continue
        branch = [node]
        while len(branch) < depth and (parent := above[branch[-1]]) is not None:
            branch.append(parent)
        pos -= len(branch) - 1
        here = tops.setdefault((pos, branch[-1].id), _Node(branch[-1].id, branch[-1].options))
        kept.add((pos, here.id))
        for each in reversed(branch[:-1]):
            pos += 1
            kept.add((pos, each.id))
            here = here.children.setdefault(each.id, _Node(each.id, each.options))
    cut = {f"{pos}-{node.id}": None for pos, node in order if (pos, node.id) not in kept}
    return sorted([(pos, node) for (pos, _), node in tops.items()], key=lambda root: root[0]), tuple(cut)


def _leaves(roots: list[_Root]) -> Iterator[_Root]:
    stack = list(roots)
    while stack:
        pos, node = stack.pop()
        if not node.children:
            yield pos, node
        stack += [(pos + 1, child) for child in node.children.values()]


# ------------------------------------------------------------------------------------------------ form


def _read(tree: Sequence[Any]) -> list[_Root]:
    roots: list[_Root] = []
    count = 0
    try:
        for root in tree:
            top = _Node("", {})
            stack = [(top, root["ids"])]
            while stack:
                parent, (id_, options, children) = stack.pop()
                node = parent.children.setdefault(id_, _Node(id_, dict(options)))
                stack += [(node, child) for child in reversed(children)]
                count += 1
                if count > REVISIONS_MAX:
                    raise LimitError(f"tree has more than {REVISIONS_MAX} revisions; cut its branches shorter")
            roots.append((root["pos"] + 0, next(iter(top.children.values()))))
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, LimitError):
            raise
        form = '{"pos": generation, "ids": [hash, options, children]}'
        raise UsageError(f"revision tree is {show(tree)}; it is a list of {form}") from None
    return roots


def _written(node: _Node) -> list[Any]:
    out: list[Any] = [node.id, node.options, []]
    stack = [(node, out)]
    while stack:
        here, said = stack.pop()
        for _, child in sorted(here.children.items()):
            below: list[Any] = [child.id, child.options, []]
            said[2].append(below)
            stack.append((child, below))
    return out
