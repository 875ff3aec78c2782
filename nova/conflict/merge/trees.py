"""Trees of texts, path -> text, merged as git merges commits: files that were renamed keep their edits, and so do files
that were added to a folder which the other side renamed.

Renames are found by content, as git finds them: equal texts first, then files that kept their name and three quarters
of their content, then the most alike pairs with at least half of it in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from nova.conflict.detect import MISSING
from nova.conflict.merge.text import lines, merge_text
from nova.errors import LimitError, UsageError

SIMILAR: Final = 0.5
SIMILAR_BY_NAME: Final = 0.75
PAIRS_MAX: Final = 1_000_000
"""Pairs of files that are compared to find renames; git has such a limit, too."""


class TreeConflict(msgspec.Struct, frozen=True):
    """What the sides made of one file.

    kind  content, add/add, modify/delete, rename/rename, rename/delete, file/directory, or file location: it was added
          to a folder that the other side renamed, and stands in the new one
    """

    path: str
    kind: str
    base: Any = MISSING
    local: Any = MISSING
    remote: Any = MISSING


class TreeMerge(msgspec.Struct, frozen=True):
    """The merged tree. Where there is a conflict, what the base has stays; the conflict holds what the sides have."""

    files: dict[str, str]
    conflicts: tuple[TreeConflict, ...]

    @property
    def clean(self) -> bool:
        return not self.conflicts


def merge_trees(base: Mapping[str, str], local: Mapping[str, str], remote: Mapping[str, str]) -> TreeMerge:
    """Merge two descendants of a tree of texts.

    raises  UsageError if a path or text is none; LimitError if too many files were removed and added to tell renames
    cost    O(size), and a comparison for each pair of a removed and an added file that are not equal
    """
    for tree in (base, local, remote):
        for path, text in tree.items():
            if not isinstance(path, str) or not isinstance(text, str):
                raise UsageError(f"file {path!r} of the tree holds a {type(text).__name__}; paths and files are text")
    return _Trees(base, local, remote).merged()


class _Trees:
    def __init__(self, base: Mapping[str, str], local: Mapping[str, str], remote: Mapping[str, str]) -> None:
        self.base = base
        self.sides = (local, remote)
        self.renames = (found_renames(base, local), found_renames(base, remote))
        self.conflicts: list[TreeConflict] = []
        self.files: dict[str, str] = {}
        # path -> what each side brings there, as far as it is not what the base has at that path
        self.landed: dict[str, list[Any]] = {}
        self.modified: list[tuple[str, int, TreeConflict]] = []  # what one side deleted: path and side of the other
        self.contended: set[str] = set()  # rename targets that only a conflict would fill

    def merged(self) -> TreeMerge:
        for path in self.base:
            self._known(path)
        for side in (0, 1):
            targets = set(self.renames[side].values())
            for path, text in self.sides[side].items():
                if path not in self.base and path not in targets:
                    self._land(self._relocated(path, side), side, text)
        for path, side, conflict in self.modified:
            if self.landed.get(path, (MISSING, MISSING))[1 - side] is MISSING:  # else it is told as add/add
                self.conflicts.append(conflict)
        for path, (mine, yours) in self.landed.items():
            self._added(path, mine, yours)
        self._directories()
        return TreeMerge(self.files, tuple(self.conflicts))

    def _land(self, path: str, side: int, text: str) -> None:
        self.landed.setdefault(path, [MISSING, MISSING])[side] = text

    def _conflict(self, path: str, kind: str, base: Any, local: Any, remote: Any) -> None:
        self.conflicts.append(TreeConflict(path, kind, base, local, remote))

    def _known(self, path: str) -> None:
        """A file that the base has: where each side has it now, and what becomes of it."""
        text = self.base[path]
        places: list[Any] = []
        texts: list[Any] = []
        for side in (0, 1):
            place = path if path in self.sides[side] else self.renames[side].get(path)
            texts.append(MISSING if place is None else self.sides[side][place])
            places.append(place if place in (None, path) else self._relocated(place, side))
        mine, yours = places
        if mine is None and yours is None:
            return
        if mine is None or yours is None:
            kept = 0 if yours is None else 1
            if places[kept] == path and texts[kept] == text:
                return  # deleted, and the other side has it as it was
            if places[kept] != path:
                self._conflict(path, "rename/delete", text, mine, yours)
                self._land(places[kept], kept, texts[kept])
                self.contended.add(places[kept])
            if texts[kept] != text:
                self.modified.append(
                    (places[kept], kept, TreeConflict(path, "modify/delete", text, texts[0], texts[1]))
                )
            self.files[path] = text
            return
        found = merge_text(text, texts[0], texts[1])
        if not found.clean:
            place = mine if yours in (path, mine) else yours if mine == path else path  # whichever side is which
            self._conflict(place, "content", text, texts[0], texts[1])
        merged = found.text if found.clean else text
        if mine == yours == path:
            self.files[path] = merged
            return
        if path not in (mine, yours) and mine != yours:
            self._conflict(path, "rename/rename", text, mine, yours)
            self.files[path] = text
            self.contended |= {mine, yours}
            merged = text
        for side, place in enumerate(places):
            if place != path:
                self._land(place, side, merged)

    def _added(self, path: str, mine: Any, yours: Any) -> None:
        text = mine if yours is MISSING else yours
        if mine is not MISSING and yours is not MISSING and mine != yours:
            self._conflict(path, "add/add", MISSING, mine, yours)
        elif path in self.files and self.files[path] != text:
            self._conflict(path, "add/add", self.files[path], mine, yours)
        elif path not in self.contended:
            self.files[path] = text

    def _relocated(self, path: str, side: int) -> str:
        """Where a file that a side put into a folder goes: along with the folder, if the other side renamed that."""
        folder = path
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            target = renamed_folder(folder, self.base, self.sides[1 - side], self.renames[1 - side])
            if target is not None:
                moved = (target + "/" if target else "") + path[len(folder) + 1 :]
                text = self.sides[side][path]
                self._conflict(moved, "file location", MISSING, *((text, path) if side == 0 else (path, text)))
                return moved
        return path

    def _directories(self) -> None:
        """No path can be a file and a folder."""
        folders = {folder for path in self.files for folder in _folders(path)}
        for path in sorted(folders & self.files.keys()):
            self._conflict(
                path, "file/directory", self.base.get(path, MISSING), *(s.get(path, MISSING) for s in self.sides)
            )
            if path in self.base:
                for inner in [other for other in self.files if other.startswith(path + "/") and other not in self.base]:
                    del self.files[inner]
            else:
                del self.files[path]


def _folders(path: str) -> Iterable[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


# ------------------------------------------------------------------------------------------------ renames


def found_renames(base: Mapping[str, str], side: Mapping[str, str]) -> dict[str, str]:
    """Files of the base that a side has under another path, old -> new."""
    old = [path for path in base if path not in side]
    new = [path for path in side if path not in base]
    found: dict[str, str] = {}
    by_text: dict[str, list[str]] = {}
    for path in old:
        by_text.setdefault(base[path], []).append(path)
    for path in new:  # equal texts: the one of the same name, else the first
        same = [origin for origin in by_text.get(side[path], ()) if origin not in found]
        if same and side[path]:
            found[next((origin for origin in same if _name(origin) == _name(path)), same[0])] = path
    old = [path for path in old if path not in found]
    new = [path for path in new if path not in found.values()]
    if len(old) * len(new) > PAIRS_MAX:
        raise LimitError(f"{len(old)} files vanished and {len(new)} appeared; compared are up to {PAIRS_MAX} pairs")
    chunks = {path: _chunks(base[path]) for path in old}
    others = {path: _chunks(side[path]) for path in new}
    by_name = Counter(map(_name, old)), Counter(map(_name, new))
    for path in [*old]:
        if by_name[0][_name(path)] == by_name[1][_name(path)] == 1:
            target = next(other for other in new if _name(other) == _name(path))
            if _similarity(chunks[path], others[target]) >= SIMILAR_BY_NAME:
                found[path] = target
                old.remove(path)
                new.remove(target)
    scored = []
    for path in old:
        for target in new:
            score = _similarity(chunks[path], others[target])
            if score >= SIMILAR:
                scored.append((-score, _name(path) != _name(target), old.index(path), new.index(target), path, target))
    taken: set[str] = set()
    for *_, path, target in sorted(scored):
        if path not in found and target not in taken:
            found[path] = target
            taken.add(target)
    return found


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _chunks(text: str) -> tuple[int, Counter[bytes]]:
    """Its size, and the bytes of it in each distinct piece: a line, or 64 bytes of a long one."""
    data = text.encode("utf-8", "surrogatepass")
    found: Counter[bytes] = Counter()
    for line in lines(data.decode("latin-1")):
        for start in range(0, len(line), 64):
            piece = line[start : start + 64].encode("latin-1")
            found[piece] += len(piece)
    return len(data), found


def _similarity(a: tuple[int, Counter[bytes]], b: tuple[int, Counter[bytes]]) -> float:
    """Bytes in common as a share of the larger text; empty texts are like nothing."""
    largest = max(a[0], b[0])
    if not largest or min(a[0], b[0]) < largest * SIMILAR:
        return 0.0
    return sum(min(count, b[1][piece]) for piece, count in a[1].items()) / largest


def renamed_folder(
    folder: str, base: Mapping[str, str], side: Mapping[str, str], renames: Mapping[str, str]
) -> str | None:
    """What a side renamed a folder to: where most of its files went, if it is gone; None if it was not renamed."""
    prefix = folder + "/"
    if any(path.startswith(prefix) for path in side):
        return None
    votes: Counter[str] = Counter()
    for path, target in renames.items():
        if path.startswith(prefix):
            rest = path[len(prefix) :]
            if target == rest or target.endswith("/" + rest):
                votes[target[: -len(rest)].rstrip("/")] += 1
            else:
                votes[target.rpartition("/")[0]] += 1
    if not votes:
        return None
    (first, most), *rest_votes = votes.most_common(2)
    return None if rest_votes and rest_votes[0][1] == most else first
