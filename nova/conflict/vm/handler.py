"""Whole states of a VM: merged three ways, settled as a conflict, and seen running at two places.

The one three-way engine merges (`nova.conflict.merge`), under the schema below; what it leaves open is decided here.
Without a base nobody can tell a removal from an absence: what one side has is kept. What is kept in leaves, each with
its writers and without a base, is settled leaf by leaf by the rules of `nova.conflict.vm.rules`, which rank alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from nova.clock import VectorClock
from nova.conflict.detect import (
    MISSING,
    Conflict,
    Contention,
    Invariant,
    ResourceIndex,
    Version,
    at_most,
    same,
)
from nova.conflict.healing.fencing import (
    Decision,
    Observation,
    Quorum,
    SplitBrain,
    find_split_brain,
    resolve_split_brain,
)
from nova.conflict.merge.engine import merge
from nova.conflict.merge.model import RESOURCE_CONTENTION, MergeConflict, MergeResult
from nova.conflict.merge.schema import (
    Atomic,
    Custom,
    Keyed,
    Max,
    Node,
    Precedence,
    SetOf,
    compile_schema,
)
from nova.conflict.strategies import (
    NO_CONTEXT,
    Resolution,
    ResolveContext,
    Schema,
    SemanticMerge,
    maximum,
    register_schema,
    register_strategy,
    show,
)
from nova.conflict.vm.rules import RULES, SNAPSHOT_LINKS, excludes, migration_rank
from nova.conflict.vm.state import (
    COLLECTIONS,
    ENDED_RANK,
    ITEM_KEYS,
    POWER_RANK,
    VMState,
    canonical_state,
    join,
    resources,
    split,
)
from nova.errors import LimitError, UsageError

Side = str
"""`local` or `remote`; "" is neither."""

_NO_CLOCK: Final = VectorClock({})


def capacity(*, cpu: int | None = None, memory_mb: int | None = None) -> tuple[Invariant, ...]:
    """What the host has for this VM, as invariants: a merge takes the greatest value that fits."""
    limits = (("/cpu", cpu), ("/memory_mb", memory_mb))
    return tuple(at_most(path, limit, f"host_capacity:{path}") for path, limit in limits if limit is not None)


class VMStateHandler:
    """Merges states of one VM. Also a `Strategy`, registered as `vm`.

    invariants  what must hold of every merged state, `capacity(...)` for instance; that snapshots' parents are there
                is always asked
    quorum      who decides where a VM that runs at two places stays; without one nothing is fenced

    power_state  running > paused > suspended > stopped, if both sides changed it
    cpu, memory  the greater that fits the invariants, if both changed it
    networks     by MAC; MAC, IP and address space of one come from one side, its other fields merge; one address at two
                 NICs is RESOURCE_CONTENTION
    disks        by id; size_gb never shrinks, not even if one side alone lowers it. One that was detached stays so,
                 unless the other side changed it meanwhile
    snapshots    by id, whole
    migration    whole: the newer epoch, then under way before ended, then the further state; two targets, or two ends,
                 in one epoch are left open
    the rest     field by field; what both sides changed falls to the newer one, or is left open if nobody says which
    """

    name = "vm"

    def __init__(self, invariants: Iterable[Invariant] = (), *, quorum: Quorum | None = None) -> None:
        self.invariants = tuple(invariants)
        self.quorum = quorum
        self._schema = _schema(self.invariants)
        self._settles = Schema(RULES, (SNAPSHOT_LINKS,), join, merge=self._step)

    # -- merging --

    def merge(self, base: Any, local: Any, remote: Any, *, newer: Side = "") -> MergeResult:
        """What two states make that both come from `base`; each a VMState or its plain form.

        base    MISSING (or None) if no common ancestor is known
        newer   `local` or `remote`: whose word counts where no rule decides; else that is left open, and the base stays
        returns as `nova.conflict.merge.merge`: `value` is a VMState if `local` is one, else plain and canonical; the
                base where it must not be committed: an invariant breaks, an address or a VM would be at two places
        raises  UsageError if a state is no VM
        """
        if newer not in ("", "local", "remote"):
            raise UsageError(f"newer is {newer!r}; it is local, remote or empty")
        known = base is not None and base is not MISSING
        before: Any = _whole(base) if known else MISSING
        given = (base if known else MISSING, local, remote)
        mine, yours = _whole(local), _whole(remote)
        invariants = (SNAPSHOT_LINKS, *self.invariants)
        found = merge(before, mine, yours, self._schema, partial(_decide, newer), invariants=invariants)
        conflicts = [c for c in found.conflicts if c.path not in ("/host", "/region")]
        place = _two_places(before, mine, yours)
        conflicts += [place] if place else [c for c in found.conflicts if c.path in ("/host", "/region")]
        conflicts += _twice(found.proposal, before)
        found.conflicts = tuple(conflicts)
        found.proposal = canonical_state(_as_named(found.proposal, given))
        found.value = found.proposal if found.committed else canonical_state(_plain(base)) if known else MISSING
        if isinstance(local, VMState):
            found.value = found.value if found.value is MISSING else VMState.of(found.value)
            found.proposal = VMState.of(found.proposal)
        return found

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        """Settle a conflict of whole states, or of leaves; see `nova.conflict.strategies.Strategy`."""
        return SemanticMerge({conflict.kind: self._settles}).resolve(conflict, context).replace(strategy=self.name)

    def _step(self, base: Any, older: Any, newer: Any, context: ResolveContext) -> MergeResult:
        asked = {invariant.name: invariant for invariant in (*self.invariants, *context.invariants)}
        handler = self if len(asked) == len(self.invariants) else VMStateHandler(asked.values())
        return handler.merge(base, older, newer, newer="remote")

    # -- two that cannot both be --

    def contentions(self, vms: Mapping[str, Any]) -> list[Contention]:
        """Addresses that several of these VMs (key -> state) claim, sorted. Cost: O(addresses)."""
        index = ResourceIndex()
        for key, state in vms.items():
            index.update(key, resources(split(_plain(state))))
        return index.contentions()

    def detect_split_brain(self, vm_id: str, observations: Iterable[Observation]) -> SplitBrain | None:
        """Whether nodes that did not know of each other hold the VM to be running at different hosts."""
        return find_split_brain(vm_id, observations)

    def fence(self, split_brain: SplitBrain) -> Decision:
        """What is to be done: as the quorum says; without one, or a majority in it, escalate and destroy nothing."""
        if self.quorum is None:
            hosts = " and ".join(split_brain.hosts)
            reason = f"{split_brain.resource_id} runs at {hosts}; there is no quorum to decide which stays"
            return Decision("escalate", None, (), 0, reason)
        return resolve_split_brain(split_brain, "quorum", self.quorum)


# ------------------------------------------------------------------------------------------------ the schema


def _schema(invariants: tuple[Invariant, ...]) -> Node:
    context = ResolveContext(invariants=invariants)
    return compile_schema(
        {
            "/power_state": Precedence(*POWER_RANK),
            "/cpu": Custom(_greatest("/cpu", context)),
            "/memory_mb": Custom(_greatest("/memory_mb", context)),
            "/updated_ms": Max(),
            "/fencing_token": Max(),
            "/networks": Keyed("mac"),
            "/networks/*": {"groups": [["mac", "ip", "network"]]},
            "/disks": Keyed("id"),
            "/disks/*/size_gb": Max(monotone=True),
            "/snapshots": Keyed("id"),
            "/snapshots/*": Atomic(),
            "/migration": Atomic("target", "status", tuple(ENDED_RANK)),
            "/tags": SetOf(),
        }
    )


def _greatest(path: str, context: ResolveContext) -> Callable[[Any, Any, Any], Any]:
    def choose(base: Any, local: Any, remote: Any) -> Any:
        sides = (("local", local), ("remote", remote))
        settled = maximum(path, [Version(value, _NO_CLOCK, 0, side) for side, value in sides], context)
        if settled.pending:
            raise LimitError(settled.explanation)
        return settled.value

    return choose


def _plain(state: Any) -> Mapping[str, Any]:
    if isinstance(state, VMState):
        return state.to_dict()
    if not isinstance(state, Mapping):
        raise UsageError(f"the state of a vm is {show(state)}; give a VMState or an object of its fields")
    return state


def _whole(state: Any) -> dict[str, Any]:
    """The canonical form with its empty collections: a side that has none removed single items, not the collection.

    And with the size of each disk, so that to leave it out is no way to shrink one.
    """
    empty: dict[str, Any] = {name: [] if name in ITEM_KEYS or name == "tags" else {} for name in sorted(COLLECTIONS)}
    whole = {**empty, **canonical_state(_plain(state))}
    return {**whole, "disks": [{"size_gb": 0, **disk} for disk in whole["disks"]]}


def _as_named(merged: Mapping[str, Any], states: Iterable[Any]) -> dict[str, Any]:
    """Without the sizes of disks that nobody gave."""
    sized = {d["id"] for s in states if s is not MISSING for d in _plain(s).get("disks", ()) if "size_gb" in d}
    disks = [d if d["id"] in sized else {k: v for k, v in d.items() if k != "size_gb"} for d in merged["disks"]]
    return {**merged, "disks": disks}


# ------------------------------------------------------------------------------------------------ what is left open


def _decide(newer: Side, conflict: MergeConflict) -> Any:
    """The value for a conflict, or the conflict itself: it is left open."""
    if conflict.path == "/migration":
        return _of_migrations(newer, conflict)
    if conflict.kind == "delete/update":  # the content stays, reported once, at what was deleted
        kept = conflict.remote if conflict.local is MISSING else conflict.local
        if conflict.path.startswith("/disks/[") and conflict.path.count("/") == 2:
            return {**kept, "size_gb": max(kept["size_gb"], conflict.base["size_gb"])}
        return kept
    return getattr(conflict, newer) if newer else conflict


def _of_migrations(newer: Side, conflict: MergeConflict) -> Any:
    local, remote = conflict.local, conflict.remote
    ranks = migration_rank(local), migration_rank(remote)
    if ranks[0] == ranks[1]:
        return conflict if excludes(local, remote) or not newer else getattr(conflict, newer)
    return conflict if excludes(local, remote) else local if ranks[0] > ranks[1] else remote


def _two_places(base: Any, local: Mapping[str, Any], remote: Mapping[str, Any]) -> MergeConflict | None:
    """Both sides, each by a change of its own, hold the VM to be running, at different places.

    Fields alone do not show that: one side may start it where it was while the other starts it elsewhere.
    """
    for field in ("host", "region"):
        here, there = local.get(field), remote.get(field)
        if None in (here, there) or same(here, there):
            continue
        if any(side.get("power_state") != "running" for side in (local, remote)):
            continue
        said = [[side.get(field), "running"] for side in (local, remote)]
        if base is not MISSING and any(same([base.get(field), base.get("power_state")], each) for each in said):
            continue  # one side only left it as it was
        before = MISSING if base is MISSING else base.get(field, MISSING)
        note = f"split brain: running at {field} {show(here)} and {show(there)}; one has to be fenced first"
        return MergeConflict(f"/{field}", RESOURCE_CONTENTION, "split_brain", before, here, there, note=note)
    return None


def _twice(merged: Mapping[str, Any], base: Any) -> list[MergeConflict]:
    """Addresses that stand at two NICs of the merged VM, and did not in the base."""
    known = set() if base is MISSING else {ip for ip, _ in _shared(base)}
    return [
        MergeConflict("/networks", RESOURCE_CONTENTION, "duplicate_ip", note=f"{ip} stands at {' and '.join(macs)}")
        for ip, macs in _shared(merged)
        if ip not in known
    ]


def _shared(vm: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    at: dict[str, list[str]] = {}
    for nic in vm.get("networks", ()):
        if nic.get("ip") is not None:
            space = nic.get("network")
            at.setdefault(f"{nic['ip']}@{space}" if space else nic["ip"], []).append(nic["mac"])
    return [(ip, sorted(macs)) for ip, macs in sorted(at.items()) if len(macs) > 1]


_STANDARD: Final = VMStateHandler()
register_strategy(_STANDARD)
register_schema("vm", _STANDARD._settles)
