"""What must be in the store, worked out again from the acknowledgements alone, by other means than the store's.

A write was acknowledged with its dot and with the clock of its key, which names every write that it had seen. From
these the oracle decides for each path of each VM which writes nobody superseded, and what the rules of a VM make of
them where there are several. It shares no code with the store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

ITEM_KEYS: Final = {"networks": "mac", "disks": "id", "snapshots": "id"}
MAPS: Final = ("labels", "metrics")
PLACES: Final = ("/host", "/region")
POWER: Final = ("stopped", "suspended", "paused", "running")
UNDER_WAY: Final = ("planned", "preparing", "running", "switchover")
ENDED: Final = ("cancelled", "failed", "completed")


class Acked(msgspec.Struct, gc=False):
    """One acknowledged write. `changes` None: a delete. `count` is its own number at `actor`."""

    key: str
    actor: str
    count: int
    clock: dict[str, int]
    stamp: int
    changes: dict[str, Any] | None


class Sibling(msgspec.Struct):
    path: str
    value: Any


class Held(msgspec.Struct):
    """One key as a node tells it."""

    key: str
    value: Any
    siblings: list[Sibling] = []


class Verdict(NamedTuple):
    """lost: writes that are nowhere; wrong: values that do not follow from the writes. One sentence each."""

    lost: list[str]
    wrong: list[str]


class Ledger:
    """Every acknowledged write, and the ones whose fate nobody was told."""

    def __init__(self) -> None:
        self.writes: dict[str, list[Acked]] = defaultdict(list)
        self.unknown: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.acked = 0

    def add(self, write: Acked) -> None:
        self.writes[write.key].append(write)
        self.acked += 1

    def maybe(self, key: str, changes: dict[str, Any]) -> None:
        """A write without an answer: it may be there or not."""
        self.unknown[key].append(changes)

    def expected(self) -> dict[str, dict[str, list[Any]]]:
        """key -> path -> values that nobody superseded, oldest first."""
        return {key: surviving(writes) for key, writes in self.writes.items()}


def check(
    ledger: Ledger,
    expected: dict[str, dict[str, list[Any]]],
    held: Iterable[Held],
    discarded: set[tuple[str, str, str]] | None = None,
) -> Verdict:
    """Hold what one node tells against what was acknowledged.

    discarded  (key, path, canonical value) of what conflicts list as discarded: a record of it, so no silent loss
    """
    lost: list[str] = []
    wrong: list[str] = []
    told = {entry.key: entry for entry in held}
    for key, paths in expected.items():
        entry = told.pop(key, None)
        actual = leaves(entry.value) if entry is not None else {}
        beside = [(s.path, s.value) for s in entry.siblings] if entry is not None else []
        unsure = [leaf for changes in ledger.unknown.get(key, ()) for leaf in leaves(changes).items()]
        for path, values in paths.items():
            if path not in actual:
                lost += [f"{key}{path}: {show(value)} was acknowledged and is gone" for value in values]
                continue
            now = actual.pop(path)
            if (path, now) in unsure:
                continue
            for value in values:
                if (
                    value != now
                    and (path, value) not in beside
                    and (key, path, canonical(value)) not in (discarded or ())
                ):
                    lost.append(
                        f"{key}{path}: {show(value)} was acknowledged; the value is {show(now)}, no record of it"
                    )
            ruled = rule(path, values)
            if now != ruled:
                wrong.append(f"{key}{path} is {show(now)}; the writes {show(values)} make {show(ruled)}")
        for path, value in actual.items():
            if (path, value) not in unsure:
                wrong.append(f"{key}{path} is {show(value)}, which nobody wrote or somebody removed")
    wrong += [f"{key} is there, which nobody wrote or somebody removed" for key in told if key not in ledger.unknown]
    return Verdict(lost, wrong)


def surviving(writes: list[Acked]) -> dict[str, list[Any]]:
    """path -> values of the writes at it that no other write at it knew of, oldest first."""
    if len(writes) > 1:
        writes.sort(key=_order)
    several = any(write.actor != writes[0].actor for write in writes)
    history: dict[str, list[tuple[Acked, Any]]] = {}
    for write in writes:
        if write.changes is None:
            for path in history:
                history[path].append((write, _GONE))
            continue
        said = dict(parts(write.changes))
        if several:
            said |= implied(write, said, history)
        for path, value in said.items():
            before = history.get(path)
            if before is None:
                history[path] = [(write, value)]
            elif several:
                before.append((write, value))
            else:  # a single writer's last word stands alone; what it replaced need not be kept
                history[path] = [(write, value)]
    out = {}
    for path, entries in history.items():
        live = _maximal(entries)
        if live:
            out[path] = live
    return out


def implied(write: Acked, said: dict[str, Any], history: dict[str, list[tuple[Acked, Any]]]) -> dict[str, Any]:
    """What a write says without words: who starts a VM, that it is where he saw it; who moves a running one, its id."""

    def seen(path: str) -> Any:
        known = _maximal([entry for entry in history.get(path, ()) if knows(write, entry[0])])
        return known[0] if known and all(value == known[0] for value in known) else None

    power = said.get("/power_state")
    if power == "running" and seen("/power_state") != "running":
        told = {path: seen(path) for path in PLACES if path not in said}
    elif power is None and not said.keys().isdisjoint(PLACES) and seen("/power_state") == "running":
        told = {"/id": seen("/id")} if "/id" not in said else {}
    else:
        told = {}
    return {path: value for path, value in told.items() if value}


def _maximal(entries: list[tuple[Acked, Any]]) -> list[Any]:
    if len(entries) == 1:
        return [] if entries[0][1] is _GONE else [entries[0][1]]
    return [
        value
        for write, value in entries
        if value is not _GONE and not any(other is not write and knows(other, write) for other, _ in entries)
    ]


def knows(write: Acked, other: Acked) -> bool:
    """Had `write` seen `other`?"""
    return write.clock.get(other.actor, 0) >= other.count


def _order(write: Acked) -> tuple[int, str, int]:
    return write.stamp, write.actor, write.count


class _Gone:
    def __repr__(self) -> str:
        return "nothing"


_GONE: Final = _Gone()


def parts(changes: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The paths that a write, whole or merge, says something about; _GONE where it removes."""
    for name, value in changes.items():
        key = ITEM_KEYS.get(name)
        if name == "tags":
            for tag, on in dict.fromkeys(value, True).items() if isinstance(value, list) else value.items():
                yield f"/tags/{tag}", True if on else _GONE
        elif isinstance(value, list) and key is not None:
            for item in value:
                yield f"/{name}/{item[key]}", item
        elif key is not None or name in MAPS:
            for member, item in value.items():
                yield f"/{name}/{member}", _GONE if item is None else item
        else:
            yield f"/{name}", _GONE if value is None else value


def leaves(value: Any) -> dict[str, Any]:
    """A VM as a node tells it, path -> value."""
    if not isinstance(value, dict):
        return {} if value is None else {"": value}
    return {path: leaf for path, leaf in parts(value) if leaf is not _GONE}


def rule(path: str, values: list[Any]) -> Any:
    """What concurrent writes of one path make, given oldest first (spec: VM state, field rules)."""
    last = values[-1]
    if all(value == last for value in values):
        return last
    field = path.split("/", 2)[1]
    if field == "power_state":
        return max(values, key=POWER.index)
    if field in ("cpu", "memory_mb", "updated_ms"):
        return max(values)
    if field == "disks":
        return {**last, "size_gb": max(value.get("size_gb", 0) for value in values)}
    if field == "migration":
        best = values[0]
        for value in values[1:]:
            if _migration_rank(value) >= _migration_rank(best):
                best = value
        return best
    return last


def _migration_rank(value: dict[str, Any]) -> tuple[int, bool, int]:
    status = value["status"]
    under_way = status in UNDER_WAY
    return value.get("epoch", 0), under_way, UNDER_WAY.index(status) if under_way else ENDED.index(status)


def canonical(value: Any) -> str:
    """One text for equal values."""
    return msgspec.json.encode(value, order="deterministic").decode()


def show(value: Any) -> str:
    """A value on one short line."""
    text = canonical(value)
    return text if len(text) <= 100 else text[:97] + "..."
