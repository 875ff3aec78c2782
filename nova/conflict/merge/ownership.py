"""Server-side apply: who owns which field of an object that many write.

Each manager says what it wants (`apply`) or what it changed (`update`). What it applies, it owns; what it applied once
and no longer does, goes, unless another owns it too. An apply that would change what another manager owns is refused
and names every such field, or takes them over by force. The rules are those of Kubernetes' structured merge.

Fields are paths of the managedFields notation: `f:name` a member, `k:{"id":"n0"}` an item of an associative list by its
keys, `v:"a"` an element of a set. Schemas are those of Kubernetes: maps are separable unless atomic, lists atomic
unless associative, which makes them sets, or maps if they have keys.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from nova.conflict.detect import MISSING
from nova.conflict.merge.values import DEPTH_MAX, kind_of, same, too_deep
from nova.conflict.words import show
from nova.errors import StaleContextError, UsageError

Path: TypeAlias = tuple[str, ...]
Fields: TypeAlias = frozenset[Path]
Convert: TypeAlias = Callable[[Any, str, str], Any]
"""(object, from version, to version) -> object."""

ATOMIC: Final = "atomic"
ASSOCIATIVE: Final = "associative"


def unconverted(value: Any, origin: str, version: str) -> Any:
    """The conversion of objects whose versions are alike."""
    return value


class Owner(msgspec.Struct, frozen=True):
    """What one manager owns, at the version of its schema; `applied` if it said so by apply."""

    fields: Fields
    version: str
    applied: bool = False


class Owned(msgspec.Struct, frozen=True):
    """An object, its version, and who owns what of it. Every write makes a new one."""

    schema: ObjectSchema
    value: Any = {}
    version: str = ""
    managers: Mapping[str, Owner] = {}
    convert: Convert = unconverted

    def update(self, manager: str, value: Any, version: str = "") -> Owned:
        """The manager has replaced the object: what it changed it owns now, and nobody else does."""
        self.schema.validate(value, version, repeats=True)
        live = self._at(version)
        managers, compared = self._taken(live, value, version, dict(self.managers), manager, force=True)
        mine = managers[manager].fields if manager in managers else frozenset()
        mine = (mine - compared.removed) | compared.modified | compared.added
        return self._with(value, version, {**managers, manager: Owner(mine, version, False)})

    def apply(self, manager: str, wanted: Any, version: str = "", *, force: bool = False) -> Owned:
        """The manager wants these fields to be so.

        raises  StaleContextError if others own fields that would change; `current` has (manager, path) of each.
                UsageError if `wanted` does not fit the schema
        """
        self.schema.validate(wanted, version)
        live = self._at(version)
        merged = _Merging(self.schema).value(live, wanted, self.schema.root_at(version), 0)
        before = self.managers.get(manager)
        managers = {**self.managers, manager: Owner(self.schema.fields(wanted, version), version, True)}
        if before is not None and before.fields:
            merged = self._pruned(merged, managers, version, before)
        managers, _ = self._taken(live, merged, version, managers, manager, force=force)
        return self._with(merged, version, managers)

    def extract(self, manager: str, version: str = "") -> Any:
        """What a manager owns of the object, as something it could apply again. None if that is nothing."""
        owner = self.managers.get(manager)
        if owner is not None and owner.version != version:
            raise UsageError(f"fields of {manager} are of version {owner.version!r}; extract them at that version")
        fields = owner.fields if owner is not None else frozenset()
        above = {path[:n] for path in fields for n in range(1, len(path))}
        root = self.schema.root_at(version)
        return _Removal(self.schema, extract=True).value(self._at(version), _tree(fields - above), root)

    def extract_apply(self, manager: str, wanted: Any, version: str = "", *, force: bool = False) -> Owned:
        """Apply these fields beside those that the manager owns already."""
        self.schema.validate(wanted, version)
        known = self.extract(manager, version)
        merged = _Merging(self.schema).value(known, wanted, self.schema.root_at(version), 0)
        return self.apply(manager, merged, version, force=force)

    # -------------------------------------------------------------------------------------------- steps

    def _at(self, version: str) -> Any:
        return self.value if self.version in ("", version) else self.convert(self.value, self.version, version)

    def _with(self, value: Any, version: str, managers: Mapping[str, Owner]) -> Owned:
        kept = {name: owner for name, owner in managers.items() if owner.fields}
        return Owned(self.schema, value, version, kept, self.convert)

    def _taken(
        self, live: Any, value: Any, version: str, managers: dict[str, Owner], manager: str, *, force: bool
    ) -> tuple[dict[str, Owner], Compared]:
        """Managers after a write: nobody else owns what it changed, nobody what it removed."""
        compared = {version: self.schema.compare(live, value, version)}
        conflicts = []
        for name, owner in managers.items():
            if name == manager:
                continue
            at = owner.version
            if at not in compared:
                sides = self.convert(live, version, at), self.convert(value, version, at)
                compared[at] = self.schema.compare(*sides, at)
            contended = owner.fields & (compared[at].modified | compared[at].added)
            conflicts += [(name, path) for path in sorted(contended)]
            managers[name] = Owner(owner.fields - contended - compared[at].removed, at, owner.applied)
        if conflicts and not force:
            names = ", ".join(f"{'/'.join(path)} of {name}" for name, path in conflicts[:5])
            more = f" and {len(conflicts) - 5} more" if len(conflicts) > 5 else ""
            raise StaleContextError(
                f"apply of {manager} would change {names}{more}; leave them out, apply the same values, or force it",
                conflicts,
            )
        return managers, compared[version]

    def _pruned(self, merged: Any, managers: Mapping[str, Owner], version: str, before: Owner) -> Any:
        """What the manager applied before and no longer does goes, but for what others own or what it never had."""
        schema, past = self.schema, before.version
        then = self.convert(merged, version, past)
        left = schema.without(then, schema.named(before.fields, past), past)
        owned: dict[str, set[Path]] = {}
        for owner in managers.values():
            owned.setdefault(owner.version, set()).update(owner.fields)
        here, at = then, past
        for each in sorted(owned, key=lambda each: (each != past, each)):
            here, left = self.convert(here, at, each), self.convert(left, at, each)
            at = each
            all_fields = schema.named(schema.fields(here, at), at)
            kept = schema.named(schema.fields(left, at), at) | schema.named(frozenset(owned[each]), at)
            left = schema.without(here, all_fields - kept, at)
        left = self.convert(left, at, past)
        gone = schema.named(schema.fields(then, past), past) - schema.named(schema.fields(left, past), past)
        left = schema.without(then, gone & schema.named(before.fields, past), past)
        return self.convert(left, past, version)


class Compared(msgspec.Struct, frozen=True):
    """Fields in which one object differs from another."""

    removed: Fields
    modified: Fields
    added: Fields


# ------------------------------------------------------------------------------------------------ schemas


class ObjectSchema:
    """Types of objects, as Kubernetes writes them.

    types  a list of {"name": ..., "map" | "list" | "scalar": ...}; None: all maps are separable, all lists atomic
    root   the name of the object's type, or "by_version": each version names its own
    """

    __slots__ = ("_root", "_types")

    def __init__(self, types: Sequence[Mapping[str, Any]] | None = None, root: str = "by_version") -> None:
        self._types = None if types is None else {each["name"]: each for each in types}
        self._root = root
        if self._types is not None and root != "by_version" and root not in self._types:
            raise UsageError(f"root type is {root!r}; known are {', '.join(sorted(self._types))}")

    def root_at(self, version: str) -> Mapping[str, Any]:
        """The type of an object of a version."""
        name = version if self._root == "by_version" else self._root
        return _DEDUCED_REF if self._types is None else {"namedType": name}

    def atom(self, reference: Mapping[str, Any], value: Any = MISSING) -> Mapping[str, Any]:
        """{"map" | "list" | "scalar": ...} of a type reference; where it allows several, what fits the value."""
        if self._types is None:
            found: Mapping[str, Any] = _DEDUCED
        elif (name := reference.get("namedType")) is not None:
            try:
                found = self._types[name]
            except KeyError:
                raise UsageError(f"type {name!r} is unknown; known are {', '.join(sorted(self._types))}") from None
        else:
            found = reference
        relation = reference.get("elementRelationship")
        parts = {part: found[part] for part in ("map", "scalar", "list") if part in found}
        if relation:
            for part in ("map", "list"):
                if part in parts:
                    parts[part] = {**parts[part], "elementRelationship": relation}
        if len(parts) > 1 and value is not None and value is not MISSING:
            word = _part_of(value)
            parts = {word: parts[word]} if word in parts else parts
        return parts

    def member(self, atom: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
        """The type of a member of a map; None if there can be none."""
        for field in atom.get("fields", ()):
            if field["name"] == key:
                return field["type"]  # type: ignore[no-any-return]
        return atom.get("elementType")

    def element(self, atom: Mapping[str, Any], item: Any) -> str:
        """How a path names an item of an associative list. Raises UsageError for one that has no name."""
        keys = atom.get("keys")
        if not keys:
            if item is None or isinstance(item, Mapping | list | tuple):
                raise UsageError(f"set holds {show(item)}; it holds texts, numbers and booleans")
            return "v:" + _json(item)
        if not isinstance(item, Mapping):
            raise UsageError(f"associative list holds {show(item)}; its items are maps with {', '.join(keys)}")
        types = self.atom(atom["elementType"], item).get("map", {})
        defaults = {field["name"]: field.get("default") for field in types.get("fields", ())}
        named = {key: item.get(key, MISSING) for key in keys}
        for key, value in named.items():
            if value is MISSING:
                named[key] = defaults.get(key)
                if named[key] is None:
                    raise UsageError(f"item {show(item)} of an associative list has no {key}, which has no default")
        return "k:" + _json(named)

    # -------------------------------------------------------------------------------------------- walks

    def validate(self, value: Any, version: str, *, repeats: bool = False) -> None:
        """Raises UsageError where a value does not fit; `repeats`: a list may hold several items of one key."""
        self._validate(value, self.root_at(version), "", repeats, 0)

    def _validate(self, value: Any, reference: Mapping[str, Any], at: str, repeats: bool, depth: int) -> None:
        if depth > DEPTH_MAX:
            raise too_deep()
        if value is None:
            return
        atom = self.atom(reference, value)
        word = _part_of(value)
        if word not in atom:
            raise UsageError(f"{at or 'the object'} is {show(value)}; its type allows {' or '.join(atom) or 'nothing'}")
        here = atom[word]
        if word == "scalar":
            if here not in ("untyped", _scalar_of(value)):
                raise UsageError(f"{at} is {show(value)}; it is {here}")
        elif word == "map":
            for key, item in value.items():
                inner = self.member(here, key)
                if inner is None:
                    raise UsageError(f"{at}/{key} is not in the schema; leave it out or declare it")
                self._validate(item, inner, f"{at}/{key}", repeats, depth + 1)
        else:
            seen = set()
            for index, item in enumerate(value):
                if here.get("elementRelationship") == ASSOCIATIVE:
                    name = self.element(here, item)
                    if name in seen and not repeats:
                        raise UsageError(f"{at} has {name} twice; an item of a list map or set stands there once")
                    seen.add(name)
                self._validate(item, here["elementType"], f"{at}/{index}", repeats, depth + 1)

    def fields(self, value: Any, version: str) -> Fields:
        """Every field that an object sets: its leaves, items of lists, and empty or undeclared members."""
        found: set[Path] = set()
        self._fields(value, self.root_at(version), (), found)
        return frozenset(found - {()})

    def _fields(self, value: Any, reference: Mapping[str, Any], path: Path, found: set[Path]) -> None:
        word, here = _first(self.atom(reference, value))
        if word == "scalar" or here.get("elementRelationship", _USUAL[word]) == ATOMIC:
            found.add(path)
        elif word == "map" and isinstance(value, Mapping):
            declared = {field["name"] for field in here.get("fields", ())}
            for key, item in value.items():
                below = (*path, f"f:{key}")
                self._fields(item, self.member(here, key) or {}, below, found)
                if item is None or item == {} or key not in declared:
                    found.add(below)
        elif word == "list" and isinstance(value, list | tuple):
            names = [self.element(here, item) for item in value]
            times = Counter(names)
            for name, item in zip(names, value, strict=True):
                if times[name] == 1:
                    self._fields(item, here["elementType"], (*path, name), found)
                found.add((*path, name))

    def named(self, fields: Fields, version: str) -> Fields:
        """The fields, and every declared member on the way to one."""
        found = set(fields)
        for path in fields:
            reference: Mapping[str, Any] | None = self.root_at(version)
            for n, part in enumerate(path[:-1], 1):
                if reference is None:
                    break
                atom = self.atom(reference)
                reference = None
                if part[0] == "f" and "map" in atom:
                    reference = self.member(atom["map"], part[2:])
                    if any(field["name"] == part[2:] for field in atom["map"].get("fields", ())):
                        found.add(path[:n])
                elif part[0] == "k" and "list" in atom:
                    reference = atom["list"]["elementType"]
        return frozenset(found)

    def without(self, value: Any, fields: Fields, version: str) -> Any:
        """The value without these fields; a container that gets empty becomes None."""
        return _Removal(self, extract=False).value(value, _tree(fields), self.root_at(version))

    def compare(self, before: Any, after: Any, version: str) -> Compared:
        """What `after` removed from, modified in, and added to `before`."""
        walk = _Comparison(self)
        walk.value(before, after, self.root_at(version), (), 0)
        return Compared(*(frozenset(found - {()}) for found in (walk.removed, walk.modified, walk.added)))


_DEDUCED_REF: Final[Mapping[str, Any]] = {"namedType": "deduced"}
_DEDUCED: Final[Mapping[str, Any]] = {
    "map": {"elementType": _DEDUCED_REF},
    "list": {"elementType": _DEDUCED_REF, "elementRelationship": ATOMIC},
    "scalar": "untyped",
}
_USUAL: Final = {"map": "separable", "list": ATOMIC}


def _part_of(value: Any) -> str:
    return {"map": "map", "list": "list"}.get(kind_of(value), "scalar")


def _scalar_of(value: Any) -> str:
    return {"number": "numeric"}.get(kind_of(value), kind_of(value))


def _first(atom: Mapping[str, Any]) -> tuple[str, Any]:
    for word in ("map", "scalar", "list"):
        if word in atom:
            return word, atom[word]
    raise UsageError(f"type {show(atom)} is none of map, list, scalar")


def _json(value: Any) -> str:
    """A value as it stands in a path: keys sorted, whole numbers without a fraction."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {key: plain(each) for key, each in item.items()}
        if isinstance(item, list | tuple):
            return [plain(each) for each in item]
        return int(item) if isinstance(item, float) and item.is_integer() else item

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _separable(word: str, here: Any, *sides: Any) -> bool:
    """Whether two values are to be taken part by part: not if both are empty, which could not be told from null."""
    if word == "scalar" or here.get("elementRelationship", _USUAL[word]) == ATOMIC:
        return False
    return any(_parts(word, side) for side in sides)


def _parts(word: str, side: Any) -> Any:
    fits = isinstance(side, Mapping) if word == "map" else isinstance(side, list | tuple)
    return side if fits else {} if word == "map" else []


# ------------------------------------------------------------------------------------------------ comparing


class _Comparison:
    def __init__(self, schema: ObjectSchema) -> None:
        self.schema = schema
        self.removed: set[Path] = set()
        self.modified: set[Path] = set()
        self.added: set[Path] = set()

    def value(self, a: Any, b: Any, reference: Mapping[str, Any], path: Path, depth: int) -> None:
        if depth > DEPTH_MAX:
            raise too_deep()
        left, right = self.schema.atom(reference, a), self.schema.atom(reference, b)
        if b is MISSING:
            right = left
        elif a is not MISSING and a is not None and b is not None and left != right:
            self._parts_of(a, b, left, path, depth)  # of another kind: what was below is gone
        elif b is None and a is not MISSING:
            right = left
        apart = self._parts_of(a, b, right, path, depth)
        if not apart and a is not MISSING and b is not MISSING and not same(a, b):
            self.modified.add(path)
        if a is MISSING:
            self.added.add(path)
        elif b is MISSING:
            self.removed.add(path)

    def _parts_of(self, a: Any, b: Any, atom: Mapping[str, Any], path: Path, depth: int) -> bool:
        """Compare part by part; False if the value is a leaf here."""
        word, here = _first(atom)
        if not _separable(word, here, a, b):
            return False
        one, other = _parts(word, a), _parts(word, b)
        if word == "map":
            for key in {**one, **other}:
                inner = self.schema.member(here, key) or {}
                self.value(one.get(key, MISSING), other.get(key, MISSING), inner, (*path, f"f:{key}"), depth + 1)
            return True
        left, right = self._by_name(here, one), self._by_name(here, other)
        for name in {**left, **right}:
            self._items(left.get(name, []), right.get(name, []), here["elementType"], (*path, name), depth + 1)
        return True

    def _items(self, a: list[Any], b: list[Any], reference: Mapping[str, Any], path: Path, depth: int) -> None:
        """Items of one name. Where there are several of it they are one leaf, and none of them is told apart."""
        if len(a) < 2 and len(b) < 2:
            self.value(a[0] if a else MISSING, b[0] if b else MISSING, reference, path, depth)
        elif len(a) > 1 and len(b) > 1:
            if not same(a, b):
                self.modified.add(path)
        elif len(a) > 1:
            if b:
                self.value(MISSING, b[0], reference, path, depth)
            self.removed.add(path)
        else:
            if a:
                self.value(a[0], MISSING, reference, path, depth)
            self.added.add(path)

    def _by_name(self, atom: Mapping[str, Any], items: Iterable[Any]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for item in items:
            found.setdefault(self.schema.element(atom, item), []).append(item)
        return found


# ------------------------------------------------------------------------------------------------ merging


class _Merging:
    """An object with what a manager applies put over it. Nothing is removed by it."""

    def __init__(self, schema: ObjectSchema) -> None:
        self.schema = schema

    def value(self, live: Any, wanted: Any, reference: Mapping[str, Any], depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise too_deep()
        if wanted is MISSING or live is MISSING:
            return live if wanted is MISSING else wanted
        word, here = _first(self.schema.atom(reference, live if wanted is None else wanted))
        if not _separable(word, here, live, wanted):
            return wanted
        old, new = _parts(word, live), _parts(word, wanted)
        if word == "map":
            return {
                key: self.value(
                    old.get(key, MISSING), new.get(key, MISSING), self.schema.member(here, key) or {}, depth + 1
                )
                for key in {**old, **new}
            }
        return self._list(list(old), list(new), here, depth)

    def _list(self, live: list[Any], wanted: list[Any], atom: Mapping[str, Any], depth: int) -> list[Any]:
        """Items both have stand in the applier's order; what only the object has stays where it stood among them."""
        names = [[self.schema.element(atom, item) for item in side] for side in (live, wanted)]
        known: dict[str, Any] = {}
        for each, item in zip(names[0], live, strict=True):
            known[each] = MISSING if each in known else item  # several of one name: not told apart, so replaced
        new = dict(zip(names[1], wanted, strict=True))
        shared = [each for each in names[1] if each in known]
        shared.reverse()
        out: list[Any] = []
        done: set[str] = set()

        def put(key: str) -> None:
            done.add(key)
            if shared and shared[-1] == key:
                shared.pop()
            out.append(self.value(known.get(key, MISSING), new[key], atom["elementType"], depth + 1))

        i = j = 0
        while i < len(live) or j < len(wanted):
            name: str | None = names[0][i] if i < len(live) else None
            other: str | None = names[1][j] if j < len(wanted) else None
            if name is not None and name == other:
                i, j = i + 1, j + 1
                put(name)
            elif name is not None and name not in new:
                out.append(live[i])
                i += 1
            elif name is not None and (name in done or (other is not None and shared and shared[-1] != name)):
                i += 1  # it stands, or will stand, where the applier has it
            elif other is None:
                i += 1
            else:
                j += 1
                put(other)
        return out


# ------------------------------------------------------------------------------------------------ removing

_Tree: TypeAlias = dict[str, Any]
"""part -> (whether a path ends here, tree of the paths below)."""


def _tree(fields: Iterable[Path]) -> _Tree:
    root: _Tree = {}
    for path in fields:
        here = root
        for part in path[:-1]:
            here = here.setdefault(part, [False, {}])[1]
        here.setdefault(path[-1], [False, {}])[0] = True
    return root


class _Removal:
    """A value without some fields, or, to extract, with nothing but them."""

    def __init__(self, schema: ObjectSchema, *, extract: bool) -> None:
        self.schema = schema
        self.extract = extract

    def value(self, value: Any, fields: _Tree, reference: Mapping[str, Any]) -> Any:
        word, here = _first(self.schema.atom(reference, value))
        if word == "scalar":
            return value
        if here.get("elementRelationship", _USUAL[word]) == ATOMIC:
            return value if self.extract else None
        if word == "map":
            found = {}
            for key, item in _parts(word, value).items():
                kept = self._part(item, fields.get(f"f:{key}"), self.schema.member(here, key) or {})
                if kept is not MISSING:
                    found[key] = kept
            return found or None
        items = []
        for item in _parts(word, value):
            kept = self._part(item, fields.get(self.schema.element(here, item)), here["elementType"])
            if kept is not MISSING:
                items.append(kept)
        return items or None

    def _part(self, item: Any, found: Sequence[Any] | None, reference: Mapping[str, Any]) -> Any:
        if found is None:
            return MISSING if self.extract else item
        ends, below = found
        if ends and not self.extract:
            return MISSING
        return self.value(item, below, reference)
