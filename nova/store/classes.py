"""What is promised of a key: its class, by the longest prefix that is configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

from nova.errors import ConfigError, UsageError
from nova.store.model import Entry, Put, StrongEntry


class KeyClass(StrEnum):
    """EVENTUAL: written anywhere, at once; replicas converge. STRONG: one order by consensus. HYBRID: strong inside a
    region, eventual between them."""

    EVENTUAL = "eventual"
    STRONG = "strong"
    HYBRID = "hybrid"


READY: Final = (KeyClass.EVENTUAL, KeyClass.STRONG, KeyClass.HYBRID)
"""Classes that this build can keep."""


class KeyClasses:
    """prefix -> class; keys below none are eventual. The longest prefix of a key decides.

    Below a prefix of class hybrid the next part of a key, up to the next slash, names the region that owns it.

    raises  ConfigError for a class that there is not, or a hybrid prefix that ends in the middle of a part or lies in
            another one
    """

    def __init__(self, classes: Mapping[str, str] | None = None) -> None:
        self._classes: dict[str, KeyClass] = {}
        for prefix, name in (classes or {}).items():
            self._classes[prefix] = _class_named(prefix, name)
        hybrid = [prefix for prefix, kind in sorted(self._classes.items()) if kind is KeyClass.HYBRID]
        for outer, inner in pairwise(hybrid):
            if inner.startswith(outer):
                raise ConfigError(
                    f'gives "{inner}" the class "hybrid", and it lies below "{outer}", which has it, too: a key would '
                    "name two regions; keep one of them"
                )
        self._longest_first = sorted(self._classes, key=lambda prefix: (-len(prefix), prefix))

    def __bool__(self) -> bool:
        return bool(self._classes)

    def of(self, key: str) -> KeyClass:
        """The class of a key."""
        return self._classes.get(self._prefix(key), KeyClass.EVENTUAL)

    def _prefix(self, key: str) -> str:
        return next((prefix for prefix in self._longest_first if key.startswith(prefix)), "")

    def owner(self, key: str) -> str:
        """The region that owns a key of class hybrid, as the key names it. Raises UsageError if it names none."""
        prefix = self._prefix(key)
        region, slash, name = key[len(prefix) :].partition("/")
        if not (region and slash and name):
            raise UsageError(
                f"{key!r} names no region that owns it; keys below {prefix!r} are hybrid: {prefix}REGION/NAME"
            )
        return region

    def pinned(self, prefix: str) -> str | None:
        """The one region that owns all keys of class hybrid below a prefix, as far as that says so."""
        region, slash, _ = prefix[len(self._prefix(prefix)) :].partition("/")
        return region if slash and region and self.of(prefix) is KeyClass.HYBRID else None

    def below(self, prefix: str) -> frozenset[KeyClass]:
        """All classes that keys beginning with `prefix` may have."""
        inner = {kind for other, kind in self._classes.items() if other.startswith(prefix)}
        return frozenset({*inner, self.of(prefix)})

    def check_plain(self, put: Put) -> None:
        """Keys that a log orders hold one value, and have versions and no clocks. Raises UsageError."""
        kind = self.of(put.key)
        if put.context is not None or put.conditional:
            raise UsageError(f"{put.key!r} is {kind} and has no clock; give the version that was read as expect")
        if put.merge:
            raise UsageError(f"{put.key!r} is {kind}; merge is for eventual keys: write the whole value with expect")
        if put.kind not in (None, "register"):
            raise UsageError(f"{put.key!r} is {kind} and holds one value, a register; leave out the kind {put.kind!r}")

    def only_eventual(self, key: str, what: str) -> None:
        """Raises UsageError for a key of another class: of it there is not `what`."""
        if (kind := self.of(key)) is not KeyClass.EVENTUAL:
            raise UsageError(f"{key!r} is {kind}, and {what}; write it with the version that you expect")

    def watched(self, prefix: str, kind: str | None) -> KeyClass:
        """The one class of the keys below a prefix whose changes are asked for. Raises UsageError if it isn't said."""
        if kind is not None:
            if kind not in READY:
                raise UsageError(f"class is {kind!r}; use one of {', '.join(READY)}")
            return KeyClass(kind)
        below = self.below(prefix)
        if len(below) > 1:
            raise UsageError(
                f"keys below {prefix!r} are {' and '.join(sorted(below))}, whose revisions are numbered apart; "
                f"watch one class: {' or '.join(f'class={each}' for each in sorted(below))}"
            )
        return next(iter(below))

    def uses(self, kind: KeyClass) -> bool:
        """Whether some prefix has this class."""
        return kind in self._classes.values()

    def plain(self) -> dict[str, str]:
        """prefix -> name, in order."""
        return {prefix: str(self._classes[prefix]) for prefix in sorted(self._classes)}


def _class_named(prefix: str, name: str) -> KeyClass:
    try:
        kind = KeyClass(name)
    except ValueError:
        raise ConfigError(f'gives "{prefix}" the class "{name}"; use one of {", ".join(KeyClass)}') from None
    if kind is KeyClass.HYBRID and prefix and not prefix.endswith("/"):
        raise ConfigError(
            f'gives "{prefix}" the class "{name}"; behind its prefix a hybrid key names a region, so end it with a '
            f'slash: "{prefix}/"'
        )
    return kind


def merged(pages: Sequence[tuple[list[Entry], str | None]], limit: int) -> tuple[list[Entry], str | None]:
    """Pages of several sources as one in order of key; each comes with the key up to which it was looked at, None: to
    its end."""
    # Behind the end of the shortest page nothing is known of its side.
    end = min((more for _, more in pages if more is not None), default=None)
    found = [entry for entries, _ in pages for entry in entries if end is None or entry.key <= end]
    found.sort(key=lambda entry: entry.key)
    if len(found) > limit:
        return found[:limit], found[limit - 1].key
    return found, end


def explained(entry: StrongEntry, owner: str | None) -> dict[str, Any]:
    """What `why` says of a key that a log orders: that of strong keys (None), or of the region that owns it."""
    kind, whose, order = (
        ("strong", "its group", "strong keys have")
        if owner is None
        else ("hybrid", f"region {owner}, which owns it", "one region have")
    )
    text = (
        f"{entry.key} is {kind}: it holds what {entry.origin} wrote as change {entry.revision} of {whose}. Changes of "
        f"{order} one order, so there was nothing to settle."
    )
    write = {
        "path": "", "value": entry.value, "origin": entry.origin, "dot": entry.dot, "timestamp": entry.timestamp,
        "time_ms": entry.timestamp >> 16,
    }  # fmt: skip
    return {
        "key": entry.key, "kind": entry.kind, "value": entry.value, "writes": [write], "conflicts": [], "text": text,
    }  # fmt: skip


__all__ = ["READY", "KeyClass", "KeyClasses", "explained", "merged"]
