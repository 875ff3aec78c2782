"""Conflicts for tests."""

from __future__ import annotations

from typing import Any

import msgspec

from nova.clock import VectorClock
from nova.conflict.detect import Conflict, ConflictDetector, Version, canonical
from nova.conflict.strategies import Resolution

UNKNOWN = object()


def versions(*values: Any, start: int = 10, **metadata: Any) -> list[Version]:
    """Concurrent versions by a, b, c, ..., each a millisecond after the one before."""
    return [
        Version(value, VectorClock({"z": 1, name: 1}), (start + i) << 16, name, metadata)
        for i, (name, value) in enumerate(zip("abcdefgh", values, strict=False))
    ]


def whole(*values: Any, base: Any = UNKNOWN, kind: str = "register") -> Conflict:
    """A conflict of whole values, with a base or without."""
    found = ConflictDetector().examine("r", kind, {"": versions(*values)})
    if base is UNKNOWN:
        return found
    return found.replace(base=Version(base, VectorClock({"z": 1}), 1, "z"))


def at_paths(rows: dict[str, list[Any]], kind: str = "map", **more: Any) -> Conflict:
    """A conflict of leaves."""
    return ConflictDetector().examine("r", kind, {path: versions(*values) for path, values in rows.items()}, **more)


def frozen(resolution: Resolution) -> bytes:
    """Every word of a resolution as bytes."""
    settled = [(path, canonical(value), repr(value)) for path, value in resolution.settled.items()]
    lost = [(d.path, canonical(d.value), d.origin, d.reason) for d in resolution.discarded]
    kept = [(path, [v.origin for v in several]) for path, several in resolution.siblings.items()]
    return msgspec.msgpack.encode(
        [
            canonical(resolution.value), sorted(resolution.clock.to_dict().items()), resolution.strategy,
            resolution.explanation, lost, resolution.confidence, settled, kept, resolution.alarms, resolution.pending,
            resolution.via, [msgspec.structs.astuple(action) for action in resolution.actions],
        ]
    )  # fmt: skip
