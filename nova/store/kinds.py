"""The types that a key can have: how a value becomes paths, so that writers of different parts do not conflict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from nova.conflict import vm
from nova.conflict.detect import escape, unescape
from nova.errors import UsageError

Leaves = dict[str, Any]
"""path -> value of the leaf there."""


class Kind(Protocol):
    """One type of key. `code` is stored with every write: it never changes and is never given to another kind."""

    name: str
    code: int

    def split(self, value: Any) -> Leaves:
        """The leaves of a whole value. Raises UsageError if the value is not of this kind."""

    def patch(self, value: Any, current: Mapping[str, Any], actor: str) -> tuple[Leaves, list[str]]:
        """What a merge write puts and which paths it drops, given the leaves that it can see."""

    def join(self, leaves: Mapping[str, Any]) -> Any:
        """The value that these leaves make."""


def _object(value: Any, kind: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"a {kind} is written as a JSON object, not as {type(value).__name__}")
    return value


class Register:
    """Any JSON value, written as a whole."""

    name, code = "register", 0

    def split(self, value: Any) -> Leaves:
        return {"": value}

    def patch(self, value: Any, current: Mapping[str, Any], actor: str) -> tuple[Leaves, list[str]]:
        """JSON Merge Patch (RFC 7396) onto what is there."""
        return {"": _merge_patch(current.get(""), value)}, []

    def join(self, leaves: Mapping[str, Any]) -> Any:
        return leaves.get("")


def _merge_patch(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            out.pop(name, None)
        else:
            out[name] = _merge_patch(out.get(name), value)
    return out


class Map:
    """A JSON object whose fields are written independently of each other."""

    name, code = "map", 2

    def split(self, value: Any) -> Leaves:
        return {"/" + escape(name): item for name, item in _object(value, "map").items()} or {"": {}}

    def patch(self, value: Any, current: Mapping[str, Any], actor: str) -> tuple[Leaves, list[str]]:
        puts, drops = {}, []
        for name, item in _object(value, "map").items():
            if item is None:
                drops.append("/" + escape(name))
            else:
                puts["/" + escape(name)] = item
        return puts, [path for path in drops if path in current]

    def join(self, leaves: Mapping[str, Any]) -> Any:
        return {unescape(path[1:]): leaves[path] for path in sorted(leaves) if path}


class Set:
    """A set of JSON values; an add beats a concurrent remove (observed-remove)."""

    name, code = "set", 3

    def split(self, value: Any) -> Leaves:
        if not isinstance(value, list):
            raise UsageError(f"a set is written as a JSON array, not as {type(value).__name__}")
        return {self._path(item): item for item in value} or {"": []}

    def patch(self, value: Any, current: Mapping[str, Any], actor: str) -> tuple[Leaves, list[str]]:
        changes = _object(value, "change of a set, {'add': [...], 'remove': [...]},")
        unknown = changes.keys() - {"add", "remove"}
        if unknown:
            raise UsageError(f"a change of a set has 'add' and 'remove', not {sorted(unknown)[0]!r}")
        for name, items in changes.items():
            if not isinstance(items, list):
                raise UsageError(f"{name!r} of a change of a set is a JSON array, not {type(items).__name__}")
        puts = {self._path(item): item for item in changes.get("add", [])}
        drops = [self._path(item) for item in changes.get("remove", [])]
        return puts, [path for path in drops if path in current and path not in puts]

    def join(self, leaves: Mapping[str, Any]) -> Any:
        return [leaves[path] for path in sorted(leaves) if path]

    @staticmethod
    def _path(item: Any) -> str:
        return "/" + msgspec.json.encode(item, order="deterministic").decode()


class Counter:
    """An integer that every writer adds to; concurrent additions all count (PN-Counter, one path per actor)."""

    name, code = "counter", 4

    def split(self, value: Any) -> Leaves:
        return {"": self._number(value)}

    def patch(self, value: Any, current: Mapping[str, Any], actor: str) -> tuple[Leaves, list[str]]:
        amount = self._number(value)
        path = "/" + escape(actor)
        up, down = self._tally(current.get(path))
        return {path: [up + amount, down] if amount >= 0 else [up, down - amount]}, []

    def join(self, leaves: Mapping[str, Any]) -> Any:
        start = leaves.get("")
        tallies = [self._tally(leaf) for path, leaf in leaves.items() if path]
        return (start if type(start) is int else 0) + sum(up - down for up, down in tallies)

    @staticmethod
    def _tally(leaf: Any) -> tuple[int, int]:
        """What an actor added and took. Leaves of a writer who meant another kind, and was not seen, count nothing."""
        match leaf:
            case [int(up), int(down)]:
                return up, down
        return 0, 0

    @staticmethod
    def _number(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 53:
            raise UsageError(f"a counter takes an integer between -2^53 and 2^53, not {value!r}")
        return value


class Vm:
    """The state of a virtual machine, split into its fields, disks, networks, snapshots, tags and labels."""

    name, code = "vm", 1

    def split(self, value: Any) -> Leaves:
        return vm.split(_object(value, "vm"))

    def patch(self, value: Any, current: Mapping[str, Any], actor: str) -> tuple[Leaves, list[str]]:
        return vm.split_patch(_object(value, "vm"), current)

    def join(self, leaves: Mapping[str, Any]) -> Any:
        return vm.join({path: leaf for path, leaf in leaves.items() if path})


KINDS: dict[str, Kind] = {kind.name: kind for kind in (Register(), Vm(), Map(), Set(), Counter())}
BY_CODE: dict[int, Kind] = {kind.code: kind for kind in KINDS.values()}


def kind_named(name: str) -> Kind:
    """The kind of that name. Raises UsageError that lists the known ones."""
    try:
        return KINDS[name]
    except KeyError:
        raise UsageError(f"kind {name!r} is unknown; the kinds are {', '.join(KINDS)}") from None
