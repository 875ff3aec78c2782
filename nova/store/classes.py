"""What is promised of a key: its class, by the longest prefix that is configured."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from nova.errors import ConfigError


class KeyClass(StrEnum):
    """EVENTUAL: written anywhere, at once; replicas converge. STRONG: one order by consensus. HYBRID: strong inside a
    region, eventual between them."""

    EVENTUAL = "eventual"
    STRONG = "strong"
    HYBRID = "hybrid"


READY: Final = (KeyClass.EVENTUAL, KeyClass.STRONG)
"""Classes that this build can keep."""


class KeyClasses:
    """prefix -> class; keys below none are eventual. The longest prefix of a key decides.

    raises  ConfigError for a class that there is not, or that this build can't keep
    """

    def __init__(self, classes: Mapping[str, str] | None = None) -> None:
        self._classes: dict[str, KeyClass] = {}
        for prefix, name in (classes or {}).items():
            self._classes[prefix] = _class_named(prefix, name)
        self._longest_first = sorted(self._classes, key=lambda prefix: (-len(prefix), prefix))

    def __bool__(self) -> bool:
        return bool(self._classes)

    def of(self, key: str) -> KeyClass:
        """The class of a key."""
        for prefix in self._longest_first:
            if key.startswith(prefix):
                return self._classes[prefix]
        return KeyClass.EVENTUAL

    def below(self, prefix: str) -> frozenset[KeyClass]:
        """All classes that keys beginning with `prefix` may have."""
        inner = {kind for other, kind in self._classes.items() if other.startswith(prefix)}
        return frozenset({*inner, self.of(prefix)})

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
    if kind not in READY:
        raise ConfigError(
            f'gives "{prefix}" the class "{name}", whose protocol this build does not have; '
            f"use one of {', '.join(READY)}"
        )
    return kind


__all__ = ["READY", "KeyClass", "KeyClasses"]
