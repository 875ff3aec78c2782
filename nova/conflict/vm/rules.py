"""What becomes of a leaf of a VM that two writers changed, and what two VMs or writers cannot both have.

The rules apply where *both* sides changed a leaf concurrently, and only there: "running beats stopped" as a plain
lattice would mean that a VM can never be stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

from nova.conflict.detect import (
    MISSING,
    Case,
    ConflictType,
    Finding,
    Invariant,
    Severity,
    Version,
    canonical,
    classifier,
    same,
)
from nova.conflict.strategies import ResolveContext, Schema, Settled, last_writer, maximum, register_schema, show
from nova.conflict.vm.state import ENDED_RANK, MIGRATION_RANK, POWER_RANK, join, split
from nova.types import Order

# ------------------------------------------------------------------------------------------------ invariants


def snapshot_links(vm: Mapping[str, Any]) -> str | None:
    """What is wrong with the parent links of a VM's snapshots: a parent that is not there, or a circle."""
    parents = {item["id"]: item.get("parent") for item in vm.get("snapshots", ())}
    for child, parent in sorted(parents.items()):
        if parent is not None and parent not in parents:
            return f"snapshot {child} builds on {parent}, which is not there"
        seen = {child}
        while parent is not None:
            if parent in seen:
                return f"snapshot {child} builds on itself through {parent}"
            seen.add(parent)
            parent = parents.get(parent)
    return None


SNAPSHOT_LINKS: Final = Invariant("snapshot_links", snapshot_links)


# ------------------------------------------------------------------------------------------------ field rules


def _power_state(path: str, versions: Sequence[Version], context: ResolveContext) -> Settled:
    winner = versions[0]
    for version in versions[1:]:
        if POWER_RANK.get(version.value, -1) >= POWER_RANK.get(winner.value, -1):
            winner = version
    return Settled(
        winner.value,
        f"{path}: {show(winner.value)} by {winner.origin} ranks highest of running > paused > suspended > stopped",
        f"{winner.value} ranks higher when both sides changed the power state",
    )


def _disk(path: str, versions: Sequence[Version], context: ResolveContext) -> Settled:
    last = versions[-1]
    sizes = [(v.value.get("size_gb", 0), v) for v in versions]
    size, largest = max(sizes, key=lambda pair: pair[0])
    if size == last.value.get("size_gb", 0):
        return Settled(
            last.value,
            f"{path}: {show(last.value)} by {last.origin} was written last and is no smaller than any other",
            f"a later write by {last.origin}; disks grow, never shrink",
        )
    value = {**last.value, "size_gb": size}
    return Settled(
        value,
        f"{path}: {show(size)} GB by {largest.origin} is the largest size, the rest by {last.origin} was written last",
        "disks grow, never shrink; the other fields are the last writer's",
    )


def _nic(path: str, versions: Sequence[Version], context: ResolveContext) -> Settled:
    settled = last_writer(path, versions, context)
    ips = sorted({show(version.value.get("ip")) for version in versions})
    if len(ips) < 2:
        return settled
    note = f"{settled.explanation}; one MAC was given {len(ips)} addresses, {', '.join(ips)}"
    return Settled(settled.value, note, settled.reason, settled.confidence)


def _migration(path: str, versions: Sequence[Version], context: ResolveContext) -> Settled:
    winner = versions[0]
    for version in versions[1:]:
        if migration_rank(version.value) >= migration_rank(winner.value):
            winner = version
    return Settled(
        winner.value,
        f"{path}: {show(winner.value)} by {winner.origin} has the newest epoch and, in it, the furthest state; "
        "one under way goes before one that ended",
        f"an older epoch or an earlier state than that of {winner.origin}",
    )


def migration_rank(value: Any) -> tuple[int, int, int]:
    """An ended migration beats one under way only by a newer epoch: at equal epochs somebody may still be copying."""
    if not isinstance(value, Mapping):
        return (-1, 0, 0)
    status = value.get("status")
    under_way = status in MIGRATION_RANK
    rank = MIGRATION_RANK[status] if status in MIGRATION_RANK else ENDED_RANK.get(str(status), -1)
    return (value.get("epoch", 0), int(under_way), rank)


def excludes(a: Any, b: Any) -> bool:
    """Whether two migrations of one epoch cannot both be: two under way to different targets, or two that ended
    differently. No state machine orders them, and the host that really runs the VM is not for a merge to guess."""
    if not isinstance(a, Mapping) or not isinstance(b, Mapping) or a.get("epoch", 0) != b.get("epoch", 0):
        return False
    if (a.get("status") in MIGRATION_RANK) != (b.get("status") in MIGRATION_RANK):
        return False
    ended = a.get("status") not in MIGRATION_RANK
    return a.get("target") != b.get("target") or (ended and a.get("status") != b.get("status"))


RULES: Final = (
    ("/power_state", _power_state),
    ("/cpu", maximum),
    ("/memory_mb", maximum),
    ("/updated_ms", maximum),
    ("/migration", _migration),
    ("/disks/*", _disk),
    ("/networks/*", _nic),
)
register_schema("vm", Schema(RULES, (SNAPSHOT_LINKS,), split, join))


# ------------------------------------------------------------------------------------------------ split brain


@classifier("vm_split_brain", kind="vm")
def _split_brain(case: Case) -> Finding | None:
    """One VM, running on two hosts (or in two regions) for writers that did not know of each other."""
    if case.kind != "vm":
        return None
    for field in ("host", "region"):
        places = _running_places(case, field)
        if len(places) > 1:
            shown = " and ".join(show(place) for place in places)
            reason = f"split brain: running at {field} {shown}; the last writer's stands until one is fenced"
            return Finding(ConflictType.RESOURCE_CONTENTION, Severity.CRITICAL, reason, manual=True)
    if started := _started_elsewhere(case):
        host, writer = started
        reason = (
            f"split brain: {host.origin} put it to host {show(host.value)}, where it runs, and {writer.origin} started "
            "it without having seen that; stop one of them, or fence it"
        )
        return Finding(ConflictType.RESOURCE_CONTENTION, Severity.CRITICAL, reason, manual=True)
    return None


def _started_elsewhere(case: Case) -> tuple[Version, Version] | None:
    """The write that says where the VM is, and a writer who started it without having seen that, while another had."""
    hosts = case.siblings.get("/host", ())
    started = [version for version in case.siblings.get("/power_state", ()) if version.value == "running"]
    if len(hosts) != 1 or len(started) < 2:
        return None
    unaware = [version for version in started if version.clock.compare(hosts[0].clock) is Order.CONCURRENT]
    return (hosts[0], unaware[0]) if 0 < len(unaware) < len(started) else None


def _states(case: Case, *fields: str) -> list[Mapping[str, Any]]:
    """The whole states whose writers changed one of `fields` since the base; all of them if no base is known."""
    states = [version.value for version in case.siblings[""] if isinstance(version.value, Mapping)]
    base = case.base.value if case.base is not None else None
    if not isinstance(base, Mapping):
        return states
    return [
        state
        for state in states
        if any(not same(state.get(field, MISSING), base.get(field, MISSING)) for field in fields)
    ]


def _running_places(case: Case, field: str) -> list[Any]:
    """The different values of `field` whose writers hold the VM to be running, in canonical order."""
    running: list[Any] = []
    if "" in case.siblings:
        for state in _states(case, field, "power_state"):
            if state.get("power_state") == "running":
                running.append(state.get(field))
    else:
        powers = case.siblings.get("/power_state", ())
        by_writer = {(version.origin, version.timestamp): version.value for version in powers}
        settled = {version.value for version in powers} or {case.leaves.get("/power_state")}
        for version in case.siblings.get("/" + field, ()):
            power = by_writer.get((version.origin, version.timestamp))
            if power == "running" or (power is None and "running" in settled):
                running.append(version.value)
    places = {canonical(place): place for place in running if place is not None and place is not MISSING}
    return [places[key] for key in sorted(places)]


@classifier("vm_address", kind="vm")
def _address(case: Case) -> Finding | None:
    """One MAC that concurrent writers gave different addresses."""
    if case.kind != "vm":
        return None
    for path, versions in case.siblings.items():
        if path.startswith("/networks/"):
            found = _addresses([version.value for version in versions])
            if found:
                return found
    if "" in case.siblings:
        before = dict(_nics(case.base.value)) if case.base is not None else {}
        by_mac: dict[str, list[Any]] = {}
        for state in _states(case, "networks"):
            for mac, nic in _nics(state):
                if mac not in before or before[mac].get("ip") != nic.get("ip"):
                    by_mac.setdefault(mac, []).append(nic)
        for mac in sorted(by_mac):
            if found := _addresses(by_mac[mac]):
                return found
    return None


def _nics(state: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    nics = state.get("networks", ()) if isinstance(state, Mapping) else ()
    for nic in nics if isinstance(nics, list | tuple) else ():
        if isinstance(nic, Mapping) and isinstance(nic.get("mac"), str):
            yield nic["mac"].lower(), nic


def _addresses(nics: Sequence[Any]) -> Finding | None:
    held = [nic for nic in nics if isinstance(nic, Mapping)]
    ips = sorted({show(nic.get("ip")) for nic in held})
    if len(ips) < 2:
        return None
    reason = f"mac {held[0].get('mac')} was given {' and '.join(ips)}"
    return Finding(ConflictType.RESOURCE_CONTENTION, Severity.HIGH, reason)


@classifier("vm_migration", kind="vm")
def _migrations(case: Case) -> Finding | None:
    """Migrations of one epoch that exclude each other."""
    if case.kind != "vm":
        return None
    if "" in case.siblings:
        migrations: list[Any] = [state.get("migration") for state in _states(case, "migration")]
    else:
        migrations = [version.value for version in case.siblings.get("/migration", ())]
    for a, b in combinations(migrations, 2):
        if not excludes(a, b):
            continue
        if a.get("target") != b.get("target"):
            targets = " and to ".join(sorted((show(a.get("target")), show(b.get("target")))))
            reason = f"two migrations in epoch {a.get('epoch', 0)}, to {targets}"
            return Finding(ConflictType.RESOURCE_CONTENTION, Severity.HIGH, reason, manual=True)
        reason = f"one migration ended {' and '.join(sorted((show(a.get('status')), show(b.get('status')))))}"
        return Finding(ConflictType.SEMANTIC, Severity.HIGH, reason, manual=True)
    return None
