"""Moves in trees of maps: found by what vanished here and appeared there, and merged as what they are.

Every thing is known by its path in the base. A side's tree is first brought back to those paths, with the side's
edits; a move is then a thing, the thing it went into, and its new key. The moves of both sides that can stand together
are made on all three trees alike, so that edits follow them, and what is left is a plain three-way merge.

Moves that cannot stand together are left out and reported: one thing moved to two places (it would become two), moves
that would close a circle (a part of the tree would hang on itself), two things moved to one place, a move into what
the other side removed (it would vanish with it), and a move of what the other side removed. A policy decides such a
conflict for a side, whose moves and removals then stand, or for the base, where nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

from nova.conflict.detect import MISSING, canonical
from nova.conflict.merge.model import CONCURRENT_UPDATE, SEMANTIC, Lost, MergeConflict
from nova.conflict.merge.patches import pointer_of
from nova.conflict.merge.values import DEPTH_MAX, same, too_deep

Path = tuple[str, ...]

SIDES = ("local", "remote")

Decide = Callable[[MergeConflict], tuple[str, str]]
"""For whom a policy decides a conflict: (local, remote, base, or "" if it stays open; a note)."""


class Moved(NamedTuple):
    """Three trees in common terms, the conflicts among moves, what they cost, and the moves made: (from, to, side)."""

    base: Any
    local: Any
    remote: Any
    conflicts: list[MergeConflict]
    lost: list[Lost]
    made: list[tuple[Path, Path, str]]


def in_common_terms(
    base: Mapping[str, Any], local: Mapping[str, Any], remote: Mapping[str, Any], decide: Decide, above: str = ""
) -> Moved:
    """The three trees with the moves of both sides made on all of them. Arguments are not changed.

    above  the pointer of the trees, which the paths of conflicts and losses begin with
    """
    ours, theirs = found_moves(base, local), found_moves(base, remote)
    if not ours and not theirs:
        return Moved(base, local, remote, [], [], [])
    trees = [_Tree(base), _Tree(local), _Tree(remote)]
    trees[1].bring_back(ours)
    trees[2].bring_back(theirs)
    moves = _Moves(trees[0], (trees[1], trees[2]), (_by_identity(ours), _by_identity(theirs)), decide, above)
    moves.settle()
    agreed = moves.agreed()
    for tree in trees:
        tree.make(agreed)
    made = [(path, _place(path, agreed), moves.side_of(path)) for path in sorted(agreed)]
    return Moved(trees[0].root, trees[1].root, trees[2].root, moves.conflicts, moves.lost, made)


def found_moves(base: Mapping[str, Any], side: Mapping[str, Any]) -> dict[Path, Path]:
    """What moved between two trees, from -> to, paths of keys.

    A thing is known by its value. It moved if it vanished from one place only and appeared in one only; under its old
    key if there are several, and a scalar only under its old key: equal numbers are not one thing.
    """
    gone: dict[Path, Any] = {}
    come: dict[Path, Any] = {}
    _collect(base, side, (), gone, come)
    moves: dict[Path, Path] = {}
    targets: set[Path] = set()
    places = [(_by_value(gone, with_key), _by_value(come, with_key)) for with_key in (True, False)]
    for path in sorted(gone, key=lambda path: (len(path), path)):  # a whole before its parts
        if _covered(path, moves):
            continue
        for with_key, (old, new) in zip((True, False), places, strict=True):
            identity = _identity(path, gone[path], with_key)
            fitting = new.get(identity, [])
            if len(old[identity]) == len(fitting) == 1 and (with_key or _container(gone[path])):
                if not _covered(fitting[0], targets):
                    moves[path] = fitting[0]
                    targets.add(fitting[0])
                break
    return moves


def _container(value: Any) -> bool:
    return isinstance(value, Mapping | list) and len(value) > 0


def _covered(path: Path, others: Container[Path]) -> bool:
    """Whether a path, or one above it, is among others."""
    return any(path[:n] in others for n in range(1, len(path) + 1))


def _identity(path: Path, value: Any, with_key: bool) -> tuple[str, bytes]:
    return path[-1] if with_key else "", canonical(value)


def _by_value(places: Mapping[Path, Any], with_key: bool) -> dict[tuple[str, bytes], list[Path]]:
    found: dict[tuple[str, bytes], list[Path]] = {}
    for path, value in places.items():
        found.setdefault(_identity(path, value, with_key), []).append(path)
    return found


def _collect(
    a: Mapping[str, Any], b: Mapping[str, Any], path: Path, gone: dict[Path, Any], come: dict[Path, Any]
) -> None:
    if len(path) > DEPTH_MAX:
        raise too_deep()
    for key, value in a.items():
        other = b.get(key, MISSING)
        if other is value:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            _collect(value, other, (*path, key), gone, come)
        elif other is MISSING:
            _all_below(value, (*path, key), gone)
    for key, value in b.items():
        if key not in a:
            _all_below(value, (*path, key), come)


def _all_below(value: Any, path: Path, found: dict[Path, Any]) -> None:
    if len(path) > DEPTH_MAX:
        raise too_deep()
    found[path] = value
    if isinstance(value, Mapping):
        for key, item in value.items():
            _all_below(item, (*path, key), found)


# ------------------------------------------------------------------------------------------------ moves that clash


def _by_identity(moves: Mapping[Path, Path]) -> dict[Path, Path]:
    """Moves with the target's parent named as the base names it: by where it came from, if it moved too."""
    origins = {to: path for path, to in moves.items()}
    return {path: (*_longest(origins, to[:-1]), to[-1]) for path, to in moves.items()}


def _longest(paths: Mapping[Path, Path], path: Path) -> Path:
    """A path with the longest of its beginnings that `paths` knows replaced."""
    for n in range(len(path), 0, -1):
        if path[:n] in paths:
            return (*paths[path[:n]], *path[n:])
    return path


def _carrier(path: Path, moves: Mapping[Path, Path]) -> Path | None:
    """The moved thing that a thing is in, or is."""
    for n in range(len(path), 0, -1):
        if path[:n] in moves:
            return path[:n]
    return None


def _place(path: Path, moves: Mapping[Path, Path]) -> Path:
    """Where a thing of the base stands once the moves are made. There is no circle among them."""
    rest: Path = ()
    while (carrier := _carrier(path, moves)) is not None:
        rest = (moves[carrier][-1], *path[len(carrier) :], *rest)
        path = moves[carrier][:-1]
        if len(rest) > DEPTH_MAX:
            raise too_deep()
    return (*path, *rest)


class _Moves:
    """The moves of two sides on their way to agreement. `trees` are the sides at the paths of the base."""

    def __init__(
        self,
        base: _Tree,
        trees: tuple[_Tree, _Tree],
        moves: tuple[dict[Path, Path], dict[Path, Path]],
        decide: Decide,
        above: str,
    ) -> None:
        self.base, self.trees, self.moves = base, trees, moves
        self.decide, self.above = decide, above
        self.conflicts: list[MergeConflict] = []
        self.lost: list[Lost] = []

    def agreed(self) -> dict[Path, Path]:
        return {**self.moves[0], **self.moves[1]}

    def side_of(self, path: Path) -> str:
        ours, theirs = (path in moves for moves in self.moves)
        return "both" if ours and theirs else "local" if ours else "remote"

    def settle(self) -> None:
        """Leave out what clashes until nothing does: what stays where it was may be in the way of another move."""
        while self._two_places() or self._circles() or self._holes() or self._one_place():
            pass

    def _drop(self, *paths: Path) -> None:
        for moves in self.moves:
            for path in paths:
                moves.pop(path, None)

    def _settled(
        self,
        path: Path,
        kind: str,
        local: Any,
        remote: Any,
        note: str,
        can_win: tuple[bool, bool] = (True, True),
        type_: str = CONCURRENT_UPDATE,
    ) -> str:
        """Report a conflict; returns for whom the policy decided it: local, remote, base, or "" if nobody did.

        can_win  whether the trees allow that local has its way, and remote; else the conflict stays open
        """
        at, before = self.above + pointer_of(path), self.base.at(path)
        word, why = self.decide(MergeConflict(at, type_, kind, before, local, remote, note=note))
        if word in SIDES and not can_win[SIDES.index(word)]:
            word = ""
        self.conflicts.append(MergeConflict(at, type_, kind, before, local, remote, word != "", why or note))
        return word

    def _lose(self, path: Path, side: int, decided: bool, kind: str) -> None:
        """List what a side wrote at a place, or in place of the map around it, and the result will not hold."""
        if not isinstance(self.trees[side].at(path[:-1]), Mapping):
            path = path[:-1]
        value = self.trees[side].at(path)
        if value is not MISSING and not same(value, self.base.at(path)):
            reason = f"the policy decided the {kind} conflict" if decided else f"a {kind} conflict keeps the base"
            self.lost.append(Lost(self.above + pointer_of(path), value, SIDES[side], reason))

    def _two_places(self) -> bool:
        ours, theirs = self.moves
        found = [path for path in sorted(ours.keys() & theirs.keys()) if ours[path] != theirs[path]]
        for path in found:
            mine, yours = pointer_of(ours[path]), pointer_of(theirs[path])
            word = self._settled(path, "move/move", mine, yours, f"moved to {mine} and to {yours}")
            if word != "local":
                del ours[path]
            if word != "remote":
                del theirs[path]
        return bool(found)

    def _circles(self) -> bool:
        moves = self.agreed()
        open_ended: set[Path] = set()
        found = False
        for start in sorted(moves):
            way: dict[Path, None] = {}
            here: Path | None = start
            while here is not None and here in moves and here not in open_ended and here not in way:
                way[here] = None
                here = _carrier(moves[here][:-1], moves)
            if here is not None and here in way:
                names = list(way)
                circle = sorted(names[names.index(here) :])
                note = f"the moves of {' and '.join(map(pointer_of, circle))} would close a circle"
                # A side's own moves can close one too, once another of them was left out.
                opens = (not self.moves[0].keys() >= {*circle}, not self.moves[1].keys() >= {*circle})
                word = self._settled(circle[0], "cycle", MISSING, MISSING, note, opens, SEMANTIC)
                kept = self.moves[SIDES.index(word)] if word in SIDES else {}
                gone = [path for path in circle if path not in kept]
                self._drop(*gone)
                for path in gone:
                    del moves[path]
                found = True
            open_ended |= way.keys()
        return found

    def _holes(self) -> bool:
        """Moves of, or into, what the other side removed: it is kept, and the thing stays where it was."""
        found = False
        for mine, other in ((0, 1), (1, 0)):
            tree = self.trees[other]
            for path, to in sorted(self.moves[mine].items()):
                if path in self.moves[other]:
                    continue
                hole = self._first_hole(tree, path) or self._first_hole(tree, to[:-1])
                if hole is None:
                    continue
                found = True
                values = [MISSING, MISSING]
                values[mine] = self.trees[mine].at(hole)
                values[other] = tree.at(hole)
                kind = "delete/move" if hole == path else "delete/update" if values[other] is MISSING else "type_change"
                note = f"{pointer_of(path)} was moved to {pointer_of(to)}"
                word = self._settled(hole, kind, values[0], values[1], note)
                if word != SIDES[mine]:
                    self._drop(path)
                if word != SIDES[other]:
                    self._lose(hole, other, word != "", kind)
                    tree.put(hole, self.base.at(hole))
        return found

    def _first_hole(self, tree: _Tree, path: Path) -> Path | None:
        for n in range(1, len(path) + 1):
            if self.base.at(path[:n]) is MISSING:
                return None  # the side that moves made it
            if tree.at(path[:n]) is MISSING or (n < len(path) and not isinstance(tree.at(path[:n]), Mapping)):
                return path[:n]
        return None

    def _one_place(self) -> bool:
        """Several things for one place, or something that stays there already."""
        moves = self.agreed()
        targets: dict[Path, list[Path]] = {}
        for path, to in moves.items():
            targets.setdefault(to, []).append(path)
        found = False
        for to, paths in sorted(targets.items()):
            parents = [tree.at(to[:-1]) for tree in self.all]
            room = [parent is MISSING or isinstance(parent, Mapping) for parent in parents]
            taken = to not in moves and any(tree.at(to) is not MISSING for tree in self.all)
            if len(paths) > 1 or taken or not all(room):
                found = True
                sides = [[path for path in paths if path in each] for each in self.moves]
                values = [
                    self.base.at(own[0]) if own else tree.at(to) for own, tree in zip(sides, self.trees, strict=True)
                ]
                note = f"{' and '.join(map(pointer_of, sorted(paths)))} moved there"
                # A side wins with its one thing, or with what it has there; what it lost elsewhere may be in its way.
                able = [
                    not own or (len(own) == 1 and fits and tree.at(to) is MISSING)
                    for own, tree, fits in zip(sides, self.trees, room[1:], strict=True)
                ]
                word = self._settled(to, "add/add", values[0], values[1], note, (able[0], able[1]))
                kept = sides[SIDES.index(word)] if word in SIDES else []
                self._drop(*(path for path in paths if path not in kept))
                if kept:
                    self._lose(to, 1 - SIDES.index(word), True, "add/add")
                    for tree, fits in zip(self.all, room, strict=True):
                        tree.remove(to if fits else to[:-1])
        return found

    @property
    def all(self) -> tuple[_Tree, ...]:
        return self.base, *self.trees


class _Tree:
    """A tree that may be rearranged: maps are copied, leaves shared."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = _copied(root)
        self._ghosts: list[Path] = []

    def at(self, path: Sequence[str]) -> Any:
        here = self.root
        for key in path:
            if not isinstance(here, Mapping) or key not in here:
                return MISSING
            here = here[key]
        return here

    def put(self, path: Path, value: Any) -> None:
        """Set a value; parents that are not there are made, and go with their last content."""
        here = self.root
        for n, key in enumerate(path[:-1], 1):
            below = here.get(key)
            if not isinstance(below, dict):
                below = here[key] = {}
                self._ghosts.append(path[:n])
            here = below
        here[path[-1]] = _copied(value)

    def remove(self, path: Path) -> None:
        """Take out what stands at a place, if something does."""
        parent = self.at(path[:-1])
        if isinstance(parent, dict):
            parent.pop(path[-1], None)

    def bring_back(self, moves: Mapping[Path, Path]) -> None:
        """Undo the side's own moves, with the edits that it made to what it moved."""
        self._rearrange({to: path for path, to in moves.items()})

    def make(self, moves: Mapping[Path, Path]) -> None:
        """Make moves that do not clash."""
        self._rearrange({path: _place(path, moves) for path in moves})
        for path in sorted(self._ghosts, key=len, reverse=True):
            if self.at(path) == {} and self.at(path[:-1]) is not MISSING:
                del self.at(path[:-1])[path[-1]]

    def _rearrange(self, ways: Mapping[Path, Path]) -> None:
        """Take everything out, the innermost first, then put it in, the outermost first."""
        held = {}
        for path in sorted(ways, key=len, reverse=True):
            parent = self.at(path[:-1])
            if isinstance(parent, dict) and path[-1] in parent:
                held[path] = parent.pop(path[-1])
        for path in sorted(held, key=lambda path: len(ways[path])):
            self.put(ways[path], held[path])


def _copied(value: Any, depth: int = 0) -> Any:
    if depth > DEPTH_MAX:
        raise too_deep()
    if isinstance(value, Mapping):
        return {key: _copied(item, depth + 1) for key, item in value.items()}
    return value
