"""What turned one value into another: computed, applied, undone, and spoken in two public tongues.

A `Patch` is exact: it knows what was there before, applies only where that is still so, and can be inverted. JSON
Patch (RFC 6902) and JSON Merge Patch (RFC 7396) are for the outside. No function here changes its arguments; results
share what did not change with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

import msgspec

from nova._native.merge import Document, differences, differences_below
from nova.conflict.detect import MISSING, canonical, escape
from nova.conflict.merge.sequences import hunks, numbered
from nova.conflict.merge.values import (
    DEPTH_MAX,
    fields_of,
    is_record,
    kind_of,
    rebuilt,
    same,
    too_deep,
)
from nova.conflict.words import show
from nova.errors import LimitError, StaleContextError, UsageError

OPERATIONS_MAX: Final = 100_000
"""Operations of one JSON Patch."""

COPIED_MAX: Final = 1_000_000
"""Values that the copy operations of one JSON Patch may add: copies of copies double with every operation."""

INDEX_DIGITS_MAX: Final = 12

Path = tuple[str | int, ...]


class Edit(msgspec.Struct, frozen=True):
    """One change at a path of keys and list indices; MISSING before it is an addition, after it a removal.

    In a list an addition makes room and a removal closes the gap; indices count what edits before it left.
    """

    path: Path
    before: Any
    after: Any

    @property
    def pointer(self) -> str:
        """The path as an RFC 6901 pointer."""
        return pointer_of(self.path)


class Patch(msgspec.Struct, frozen=True):
    """Edits in the order in which they apply."""

    edits: tuple[Edit, ...] = ()

    def __len__(self) -> int:
        return len(self.edits)

    def __bool__(self) -> bool:
        return bool(self.edits)

    def invert(self) -> Patch:
        """The patch that undoes this one."""
        return Patch(tuple(Edit(edit.path, edit.after, edit.before) for edit in reversed(self.edits)))


def pointer_of(path: Path) -> str:
    """The RFC 6901 pointer of a path."""
    return "".join(["/" + (escape(part) if isinstance(part, str) else str(part)) for part in path])


# ------------------------------------------------------------------------------------------------ two values


def diff(a: Any, b: Any) -> Patch:
    """The patch that turns `a` into `b`: maps and records by key, lists by longest common subsequence.

    raises  LimitError for values deeper than DEPTH_MAX levels
    cost    O(size), and for lists that of `sequences`
    """
    if type(a) is Document and type(b) is Document:
        return Patch(tuple([Edit(*each) for each in _diff_documents(a, b)]))
    return Patch(tuple([Edit(*each) for each in differences(a, b, MISSING, _diff_lists)]))


def _diff_documents(a: Document, b: Document) -> list[tuple[Path, Any, Any]]:
    found: list[tuple[Path, Any, Any]] = []
    for path, before, after in sorted(a.differences(b, MISSING), key=lambda each: each[0]):
        if before is MISSING or after is MISSING:
            found.append((path, _plain(before), _plain(after)))
        else:
            differences_below(_plain(before), _plain(after), path, MISSING, _diff_lists, found)
    return found


def _plain(value: Any) -> Any:
    return value.value if type(value) is Document else value


def _diff_lists(a: list[Any], b: list[Any], path: Path, found: list[tuple[Path, Any, Any]]) -> None:
    shift = 0
    for hunk in hunks(*numbered(canonical, a, b)):
        at = hunk.a_start + shift
        paired = min(hunk.a_count, hunk.b_count)
        for i in range(paired):
            one, other = a[hunk.a_start + i], b[hunk.b_start + i]
            differences_below(one, other, (*path, at + i), MISSING, _diff_lists, found)
        for i in range(hunk.a_start + paired, hunk.a_start + hunk.a_count):
            found.append(((*path, at + paired), a[i], MISSING))
        for i in range(paired, hunk.b_count):
            found.append(((*path, at + i), MISSING, b[hunk.b_start + i]))
        shift += hunk.b_count - hunk.a_count


def patch(a: Any, changes: Patch) -> Any:
    """`a` with these changes.

    raises  StaleContextError, with `current`, where `a` does not hold what the patch says was there before
    """
    if type(a) is Document:
        for edit in changes.edits:
            a = _patch_document(a, edit)
        return a
    workshop = _Workshop(a)
    for edit in changes.edits:
        workshop.change(edit)
    return workshop.root


def _patch_document(a: Document, edit: Edit) -> Document:
    """One edit, made on the leaf that it is at or in."""
    for n in range(len(edit.path)):
        keys = edit.path[: n + 1]
        here = a.get(keys, MISSING)  # type: ignore[arg-type]
        if type(here) is Document and n < len(edit.path) - 1:
            continue
        workshop = _Workshop(_plain(here))
        workshop.change(Edit(edit.path[n + 1 :], edit.before, edit.after))
        return a.remove(keys) if workshop.root is MISSING else a.set(keys, workshop.root)  # type: ignore[arg-type]
    workshop = _Workshop(a.value)
    workshop.change(edit)
    return Document(workshop.root)


# ------------------------------------------------------------------------------------------------ JSON Patch


def to_json_patch(changes: Patch) -> list[dict[str, Any]]:
    """The patch as operations of RFC 6902, whose receiver does not check what was there before.

    Records and documents in it become maps, sets and tuples lists. Bytes, dates and NaN stay: JSON has none.
    """
    out = []
    for edit in changes.edits:
        if edit.after is MISSING:
            out.append({"op": "remove", "path": edit.pointer})
        else:
            op = "add" if edit.before is MISSING else "replace"
            out.append({"op": op, "path": edit.pointer, "value": _json(edit.after)})
    return out


def _json(value: Any, depth: int = 0) -> Any:
    """A value in the containers that JSON has."""
    if isinstance(value, str) or type(value) in (int, float, bool, type(None)):
        return value
    if depth > DEPTH_MAX:
        raise too_deep()
    if type(value) is Document:
        return value.value
    if is_record(value):
        value = fields_of(value)
    if isinstance(value, Mapping):
        return {key: _json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Set):
        return [_json(item, depth + 1) for item in sorted(value, key=canonical)]
    if isinstance(value, list | tuple):
        return [_json(item, depth + 1) for item in value]
    return value


def apply_json_patch(document: Any, operations: Sequence[Mapping[str, Any]]) -> Any:
    """A document with the operations of a JSON Patch (RFC 6902) applied, all or none.

    raises  UsageError that names the operation which is malformed, or does not apply, or whose test fails; LimitError
            for more than OPERATIONS_MAX operations or COPIED_MAX copied values
    """
    if not isinstance(operations, list | tuple):
        raise UsageError(f"JSON Patch is a {kind_of(operations)}; it is a list of operations")
    if len(operations) > OPERATIONS_MAX:
        raise LimitError(f"JSON Patch has {len(operations)} operations; the limit is {OPERATIONS_MAX}: send several")
    workshop = _Workshop(document)
    for index, operation in enumerate(operations):
        try:
            _apply(workshop, operation)
        except UsageError as error:
            raise type(error)(f"operation {index} of the JSON Patch, {show(operation)}: {error}") from None
    return workshop.root


def _apply(workshop: _Workshop, operation: Any) -> None:
    if not isinstance(operation, Mapping):
        raise UsageError(f"it is a {kind_of(operation)}; an operation is a map")
    op = operation.get("op")
    path = _tokens(operation, "path")
    if op == "add":
        workshop.add(path, _value(operation))
    elif op == "remove":
        workshop.remove(path)
    elif op == "replace":
        workshop.replace(path, _value(operation))
    elif op == "test":
        expected, found = _value(operation), workshop.at(path)
        if not same(expected, found):
            raise UsageError(f"the value there is {show(found)}")
    elif op == "move":
        origin = _tokens(operation, "from")
        if len(origin) < len(path) and path[: len(origin)] == origin:
            raise UsageError("a value cannot move into itself; `path` lies below `from`")
        value = workshop.at(origin)
        if origin != path:
            workshop.remove(origin)
            workshop.add(path, value)
    elif op == "copy":
        workshop.copy(_tokens(operation, "from"), path)
    else:
        raise UsageError(f"op is {show(op)}; it is one of add, remove, replace, move, copy, test")


def _value(operation: Mapping[str, Any]) -> Any:
    if "value" not in operation:
        raise UsageError("it has no `value`")
    return operation["value"]


def _tokens(operation: Mapping[str, Any], member: str) -> list[str]:
    pointer = operation.get(member, MISSING)
    if pointer is MISSING:
        raise UsageError(f"it has no `{member}`")
    return tokens_of(pointer)


def tokens_of(pointer: Any) -> list[str]:
    """The keys that an RFC 6901 pointer names. Raises UsageError."""
    if not isinstance(pointer, str):
        raise UsageError(f"pointer is {show(pointer)}; it is text such as /a/b")
    if not pointer:
        return []
    if pointer[0] != "/":
        raise UsageError(f"pointer {show(pointer)} starts without /; the empty one is the whole document")
    tokens = pointer.split("/")[1:]
    if len(tokens) > DEPTH_MAX:
        raise LimitError(f"pointer has {len(tokens)} parts; documents have at most {DEPTH_MAX} levels")
    if "~" in pointer:
        for i, token in enumerate(tokens):
            plain = token.replace("~1", "/").replace("~0", "~")
            if token.count("~") != token.count("~0") + token.count("~1"):
                raise UsageError(f"pointer {show(pointer)} has a ~ that is followed by neither 0 nor 1; write ~0 for ~")
            tokens[i] = plain
    return tokens


class _Workshop:
    """A document under change. Containers on the way to a change are copied once and then worked on in place.

    What `copy` duplicates stands in two places from then on, so after it no container is our own any more.
    """

    __slots__ = ("_copied", "_own", "root")

    def __init__(self, root: Any) -> None:
        self.root = root
        self._own: dict[int, Any] = {}  # id -> container; holding it keeps the id from being given to another
        self._copied = 0

    def at(self, path: Sequence[str]) -> Any:
        value = self.root
        for token in path:
            value = self._child(value, token)
        return value

    def add(self, path: Sequence[str], value: Any) -> None:
        if not path:
            self.root = value
            return
        parent, token = self._parent(path), path[-1]
        if type(parent) is list:
            parent.insert(len(parent) if token == "-" else _index(token, len(parent) + 1), value)
        else:
            parent[token] = value

    def remove(self, path: Sequence[str]) -> None:
        if not path:
            raise UsageError("the whole document cannot be removed; replace it")
        parent, token = self._parent(path), path[-1]
        self._child(parent, token)
        if type(parent) is list:
            del parent[_index(token, len(parent))]
        else:
            del parent[token]

    def replace(self, path: Sequence[str], value: Any) -> None:
        if not path:
            self.root = value
            return
        parent, token = self._parent(path), path[-1]
        self._child(parent, token)
        parent[_index(token, len(parent)) if type(parent) is list else token] = value

    def copy(self, origin: Sequence[str], path: Sequence[str]) -> None:
        value = self.at(origin)
        self._copied += _size(value, COPIED_MAX - self._copied)
        if self._copied > COPIED_MAX:
            raise LimitError(f"copies add more than {COPIED_MAX} values; apply the patch in parts")
        self._own.clear()
        self.add(path, value)

    def change(self, edit: Edit) -> None:
        """Apply an exact edit. Records are rebuilt, since they may be frozen."""
        self.root = self._changed(self.root, edit, 0)

    def _changed(self, value: Any, edit: Edit, level: int) -> Any:
        if level == len(edit.path):
            _expect(value, edit)
            return edit.after
        key = edit.path[level]
        last = level == len(edit.path) - 1
        if isinstance(value, list) and isinstance(key, int):
            inserts = last and edit.before is MISSING
            if not 0 <= key < len(value) + inserts:
                raise _stale(edit, MISSING)
            value = self._owned(value)
            if inserts:
                value.insert(key, edit.after)
            elif last and edit.after is MISSING:
                _expect(value[key], edit)
                del value[key]
            else:
                value[key] = self._changed(value[key], edit, level + 1)
            return value
        if isinstance(value, Mapping) and isinstance(key, str):
            value = self._owned(value)
            self._set(value, key, edit, level)
            return value
        if is_record(value) and isinstance(key, str):
            values = fields_of(value)
            self._set(values, key, edit, level)
            return rebuilt(value, values)
        raise _stale(edit, value)

    def _set(self, values: dict[str, Any], key: str, edit: Edit, level: int) -> None:
        child = values.get(key, MISSING)
        if child is MISSING and level < len(edit.path) - 1:
            raise _stale(edit, MISSING)
        after = self._changed(child, edit, level + 1)
        if after is MISSING:
            del values[key]
        else:
            values[key] = after

    def _owned(self, value: Any) -> Any:
        if id(value) in self._own:
            return value
        made = list(value) if isinstance(value, list | tuple) else dict(value)
        self._own[id(made)] = made
        return made

    def _parent(self, path: Sequence[str]) -> Any:
        """The container that holds the last part of a path, and all above it, made our own."""
        here = self.root = self._owned(_container(self.root))
        for token in path[:-1]:
            child = self._owned(_container(self._child(here, token)))
            here[_index(token, len(here)) if type(here) is list else token] = child
            here = child
        return here

    def _child(self, value: Any, token: str) -> Any:
        if isinstance(value, Mapping):
            try:
                return value[token]
            except KeyError:
                raise UsageError(f"there is no member {show(token)}") from None
        if isinstance(value, list | tuple):
            return value[_index(token, len(value))]
        raise UsageError(
            f"there is nothing below the {kind_of(value)} {show(value)}; {show(token)} is none of its parts"
        )


def _container(value: Any) -> Any:
    if not isinstance(value, Mapping | list | tuple):
        raise UsageError(f"there is nothing below the {kind_of(value)} {show(value)}")
    return value


def _index(token: str, limit: int) -> int:
    digits = token.isascii() and token.isdigit() and len(token) <= INDEX_DIGITS_MAX
    if not digits or (token[0] == "0" and token != "0"):
        raise UsageError(f"list index is {show(token)}; it is a number without sign or leading zeros")
    index = int(token)
    if index >= limit:
        raise UsageError(f"list index is {index}; the greatest here is {limit - 1}")
    return index


def _size(value: Any, limit: int) -> int:
    """How many values are in a value, itself included; a count above `limit` stops there."""
    size, stack = 0, [value]
    while stack and size <= limit:
        size += 1
        item = stack.pop()
        if isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
    return size


def _expect(value: Any, edit: Edit) -> None:
    if edit.before is MISSING or value is MISSING:
        if value is not edit.before:
            raise _stale(edit, value)
    elif not same(value, edit.before):
        raise _stale(edit, value)


def _stale(edit: Edit, current: Any) -> StaleContextError:
    return StaleContextError(
        f"patch expects {show(edit.before)} at {edit.pointer or 'the top'} and finds {show(current)}; "
        "compute it against the present value",
        current,
    )


# ------------------------------------------------------------------------------------------------ JSON Merge Patch


def apply_merge_patch(document: Any, changes: Any) -> Any:
    """A document with a JSON Merge Patch (RFC 7396) applied: maps merge, null removes, all else replaces.

    raises  LimitError below DEPTH_MAX levels
    """
    return _merge_patch(document, changes, 0)


def _merge_patch(document: Any, changes: Any, depth: int) -> Any:
    if not isinstance(changes, Mapping):
        return changes
    if depth > DEPTH_MAX:
        raise too_deep()
    out = dict(document) if isinstance(document, Mapping) else {}
    for key, value in changes.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = _merge_patch(out.get(key), value, depth + 1)
    return out


def to_merge_patch(a: Any, b: Any) -> Any:
    """The JSON Merge Patch (RFC 7396) that turns `a` into `b`.

    raises  UsageError where `b` holds a null that `a` has not: this tongue cannot say it, JSON Patch can
    """
    return _to_merge_patch(a, b, ())


def _to_merge_patch(a: Any, b: Any, path: Path) -> Any:
    if len(path) > DEPTH_MAX:
        raise too_deep()
    if not isinstance(b, Mapping):
        if b is None and path:
            raise UsageError(f"{pointer_of(path)} becomes null, which removes in a merge patch; make a JSON Patch")
        return b
    known: Mapping[str, Any] = a if isinstance(a, Mapping) else {}
    out: dict[str, Any] = {key: None for key in known if key not in b}
    for key, value in b.items():
        before = known.get(key, MISSING)
        if before is MISSING or not same(before, value):
            out[key] = _to_merge_patch(before, value, (*path, key))
    return out
