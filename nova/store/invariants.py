"""Truths about many keys of a store, kept up to date change by change: what a write costs does not grow with the keys.

    sum_le      the numbers at `path` of all keys below `prefix` add up to at most `limit`, for each value at `by`
    unique      no two keys below `prefix` hold the same value at `path`
    reference   the value at `path`, if there is one, names a key: `to` + value

A store never refuses what several regions wrote: what breaks a truth stays, is recorded as a conflict of type
`invariant`, and waits for somebody until it holds again. A truth that was broken before does not make a new conflict
of every later write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from heapq import nsmallest
from math import isfinite
from sys import float_info
from typing import Any, Final, Literal

import msgspec

from nova.conflict.detect import canonical, unescape
from nova.conflict.words import show
from nova.errors import ConfigError

INVARIANTS_MAX: Final = 256
OWNERS_SHOWN: Final = 16
FLOAT_MAX: Final = Fraction(float_info.max)


class StoreInvariant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One declared truth.

    path, by  JSON pointers into the value of a key: `/cpu`, `/host`, `/networks/52:54:00:00:00:01/ip`
    limit     of `sum_le`
    to        prefix of the keys that a `reference` names
    """

    kind: Literal["sum_le", "unique", "reference"]
    prefix: str
    path: str
    by: str = ""
    limit: float = 0
    to: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("path", "by"):
            pointer = getattr(self, field)
            if pointer and not pointer.startswith("/"):
                raise ConfigError(f"{field} of an invariant is {pointer!r}; a JSON pointer begins with /")
        if not self.path:
            raise ConfigError(
                f"an invariant of kind {self.kind} has no path; give the JSON pointer of what it is about"
            )
        if self.kind == "reference" and not self.to:
            raise ConfigError("a reference has no `to`; give the prefix of the keys that it names")
        if not self.limit >= 0 or self.limit == float("inf"):
            raise ConfigError(f"limit of an invariant is {self.limit}; give a number from 0")

    @property
    def title(self) -> str:
        """Its name, or what it says."""
        return self.name or f"{self.kind} {self.prefix}*{self.path}"


class Broken(msgspec.Struct, frozen=True):
    """What does not hold any more. `subject` is the same on every replica and for as long as it is broken."""

    subject: str
    name: str
    wrong: str
    owners: tuple[str, ...]


Amount = int | Fraction
"""Exact: what was added and taken away again leaves nothing behind, so no sum has to be made anew."""


class _Groups:
    """Of one truth, who takes part: group -> key -> amount. A group is a value at `by` of a sum, else one at `path`."""

    __slots__ = ("members", "of_key", "totals", "values")

    def __init__(self) -> None:
        self.members: dict[bytes, dict[str, Amount]] = {}
        self.totals: dict[bytes, Amount] = {}
        self.values: dict[bytes, Any] = {}
        self.of_key: dict[str, bytes] = {}

    def leave(self, key: str) -> None:
        group = self.of_key.pop(key, None)
        if group is None:
            return
        members = self.members[group]
        self.totals[group] -= members.pop(key)
        if not members:
            del self.members[group], self.totals[group], self.values[group]

    def enter(self, key: str, group: bytes, value: Any, amount: Amount) -> None:
        self.of_key[key] = group
        self.members.setdefault(group, {})[key] = amount
        self.totals[group] = self.totals.get(group, 0) + amount
        self.values[group] = value


class InvariantIndex:
    """The declared truths of a store, and who takes part in each.

    exists  whether a key holds anything
    """

    def __init__(self, invariants: tuple[StoreInvariant, ...], exists: Callable[[str], bool]) -> None:
        if len(invariants) > INVARIANTS_MAX:
            raise ConfigError(f"{len(invariants)} invariants are declared; the limit is {INVARIANTS_MAX}")
        self._invariants = invariants
        self._exists = exists
        self._groups = [_Groups() for _ in invariants]
        self._where: dict[str, tuple[int, bytes]] = {}  # subject -> (invariant, group), of what was reported

    def __bool__(self) -> bool:
        return bool(self._invariants)

    def concerns(self, key: str) -> bool:
        """Whether a change of this key can break anything."""
        return any(key.startswith(each.prefix) or (each.to and key.startswith(each.to)) for each in self._invariants)

    def update(self, key: str, value: Any) -> list[Broken]:
        """A key holds `value` now (None: nothing); what is broken by that.

        Cost: O(invariants of its prefix), and where one breaks one pass over the keys of the group that it names.
        """
        found: list[Broken] = []
        for number, each in enumerate(self._invariants):
            if key.startswith(each.prefix):
                self._moved(number, each, key, value, found)
            if each.kind == "reference" and value is None and key.startswith(each.to):
                group = canonical(key[len(each.to) :])
                if group in self._groups[number].members:
                    found.append(self._broken(number, group))
        return found

    def _moved(self, number: int, each: StoreInvariant, key: str, value: Any, found: list[Broken]) -> None:
        groups, held = self._groups[number], _at(value, each.path)
        amount: Amount = 1
        if each.kind == "sum_le":
            if not isinstance(held, int | float) or isinstance(held, bool) or not isfinite(held):
                groups.leave(key)
                return
            amount = _exact(held)
            held = _at(value, each.by) if each.by else None
        elif held is None:
            groups.leave(key)
            return
        group = canonical(held)
        if groups.of_key.get(key) == group and groups.members[group][key] == amount:
            return
        before = self._holds(number, group)
        groups.leave(key)
        groups.enter(key, group, held, amount)
        # What was broken before is not this write's doing; but each dangling reference is one of its own, as long as it
        # would be named.
        dangles = each.kind == "reference" and len(groups.members[group]) <= OWNERS_SHOWN
        if (before or dangles) and not self._holds(number, group):
            found.append(self._broken(number, group))

    def _holds(self, number: int, group: bytes) -> bool:
        each, groups = self._invariants[number], self._groups[number]
        if group not in groups.members:
            return True
        if each.kind == "sum_le":
            return groups.totals[group] <= _exact(each.limit)
        if each.kind == "unique":
            return len(groups.members[group]) < 2
        return self._exists(f"{each.to}{groups.values[group]}")

    def _broken(self, number: int, group: bytes) -> Broken:
        each, groups = self._invariants[number], self._groups[number]
        members, shown = groups.members[group], groups.values[group]
        if each.kind == "sum_le":
            of = f" where {each.by} is {show(shown)}" if each.by else ""
            wrong = f"{each.path}{of} adds up to {_shown(groups.totals[group])}, over the limit of {each.limit:g}"
        elif each.kind == "unique":
            wrong = f"{show(shown)} stands at {each.path} of {len(members)} keys"
        else:
            wrong = f"{each.path} names {each.to}{shown}, and there is no such key"
        subject = f"{each.kind}:{each.prefix}*{each.path}" + (f"@{shown}" if shown is not None else "")
        self._where[subject] = number, group
        return Broken(subject, each.title, wrong, tuple(nsmallest(OWNERS_SHOWN, members)))

    def broken(self, subject: str) -> bool:
        """Whether what was reported under this name is (still) broken."""
        where = self._where.get(subject)
        return where is not None and not self._holds(*where)

    def everything(self) -> list[Broken]:
        """All that is broken now. Cost: O(groups)."""
        return [
            self._broken(number, group)
            for number, groups in enumerate(self._groups)
            for group in list(groups.members)
            if not self._holds(number, group)
        ]


def _exact(number: float) -> Amount:
    """A number as it is written: ten times 0.1 is 1."""
    return number if isinstance(number, int) else Fraction(repr(number))


def _shown(total: Amount) -> str:
    if isinstance(total, int):
        return str(total)
    return f"{float(total):g}" if total < FLOAT_MAX else "more than a float holds"


def _at(value: Any, pointer: str) -> Any:
    """What a pointer names in a value, None if there is nothing. Items of a list are found by `id`, `mac` or index."""
    for token in pointer.split("/")[1:]:
        name = unescape(token)
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list):
            items = [item for item in value if isinstance(item, Mapping) and name in (item.get("id"), item.get("mac"))]
            value = items[0] if items else value[int(name)] if name.isdigit() and int(name) < len(value) else None
        else:
            return None
    return value


__all__ = ["Broken", "InvariantIndex", "StoreInvariant"]
