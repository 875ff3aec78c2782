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
    classifier,
    same,
)
from nova.conflict.healing.fencing import Observation, find_split_brain
from nova.conflict.strategies import ResolveContext, Settled, last_writer, maximum, show
from nova.conflict.vm.state import ENDED_RANK, MIGRATION_RANK, POWER_RANK
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
    ("/fencing_token", maximum),
    ("/migration", _migration),
    ("/disks/*", _disk),
    ("/networks/*", _nic),
)


# ------------------------------------------------------------------------------------------------ split brain


@classifier("vm_split_brain", kind="vm")
def _split_brain(case: Case) -> Finding | None:
    """One VM, running on two hosts (or in two regions) for writers that did not know of each other.

    What counts is where each writer saw it or put it when he started it. Which one stays is for fencing to say.
    """
    for field in ("host", "region"):
        found = find_split_brain(case.resource_id, _observed(case, field))
        if found is None:
            continue
        places = " and ".join(show(place) for place in found.hosts)
        verdict = (
            f"fencing would keep {show(found.leader)}, which has the newest token, {found.epoch_max}"
            if found.leader is not None
            else "tokens give no order, so nobody is fenced"
        )
        reason = (
            f"split brain: running at {field} {places}; {verdict}; it waits until one has stopped or somebody decides"
        )
        return Finding(ConflictType.RESOURCE_CONTENTION, Severity.CRITICAL, reason, manual=True)
    return None


def _observed(case: Case, field: str) -> Iterator[Observation]:
    """Where writers hold the VM to be running, and under which fencing token."""
    if "" in case.siblings:
        for version, state in _states(case, field, "power_state"):
            if state.get("power_state") == "running" and state.get(field):
                yield _observation(version, state[field], state.get("fencing_token"))
        return
    known = {**case.beside, **case.siblings}
    powers, tokens = known.get("/power_state", ()), known.get("/fencing_token", ())
    places = known.get("/" + field, ())
    for place in places:
        if not place.value or place.value is MISSING:
            continue
        if _runs(place, powers, known.get("/id", ())) if powers else case.leaves.get("/power_state") == "running":
            token = next((each.value for each in tokens if _one_write(each, place)), None)
            yield _observation(place, place.value, token)


def _runs(place: Version, powers: Sequence[Version], ids: Sequence[Version]) -> bool:
    """Whether it runs at this place, for those who know of it, or else for who put it there."""
    aware = [power for power in powers if power.clock.compare(place.clock) in (Order.AFTER, Order.EQUAL)]
    if aware:
        return any(power.value == "running" for power in aware)
    # What he saw may be overwritten by others who had not seen him. But who moves a VM that runs names it with the
    # place; and where none has a name, better one alarm too many.
    seen = any(power.value == "running" for power in powers if power.clock.compare(place.clock) is Order.BEFORE)
    return seen or not ids or any(_one_write(id, place) for id in ids)


def _one_write(a: Version, b: Version) -> bool:
    return (a.timestamp, a.origin) == (b.timestamp, b.origin)


def _observation(version: Version, place: Any, token: Any) -> Observation:
    epoch = token if isinstance(token, int) and token > 0 else 0
    return Observation(version.origin, str(place), "running", version.clock, epoch)


def _states(case: Case, *fields: str) -> list[tuple[Version, Mapping[str, Any]]]:
    """The versions and whole states whose writers changed one of `fields` since the base; all if no base is known."""
    states = [(version, version.value) for version in case.siblings[""] if isinstance(version.value, Mapping)]
    base = case.base.value if case.base is not None else None
    if not isinstance(base, Mapping):
        return states
    return [
        (version, state)
        for version, state in states
        if any(not same(state.get(field, MISSING), base.get(field, MISSING)) for field in fields)
    ]


@classifier("vm_address", kind="vm")
def _address(case: Case) -> Finding | None:
    """One MAC that concurrent writers gave different addresses."""
    for path, versions in case.siblings.items():
        if path.startswith("/networks/"):
            found = _addresses([version.value for version in versions])
            if found:
                return found
    if "" in case.siblings:
        before = dict(_nics(case.base.value)) if case.base is not None else {}
        by_mac: dict[str, list[Any]] = {}
        for _, state in _states(case, "networks"):
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
    if "" in case.siblings:
        migrations: list[Any] = [state.get("migration") for _, state in _states(case, "migration")]
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
