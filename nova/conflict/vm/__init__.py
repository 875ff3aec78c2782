"""Virtual machines: their typed state and its leaves, the rules of its fields, and two that cannot both be.

state    `VMState`, and what a VM is kept as: leaves
rules    what becomes of a leaf that two writers changed; the invariants and classifiers of VMs
handler  `VMStateHandler`: merging whole states, and the one that runs at two places
"""

from nova.conflict.detect import escape
from nova.conflict.vm.handler import VMStateHandler, capacity
from nova.conflict.vm.rules import RULES, SNAPSHOT_LINKS, snapshot_links
from nova.conflict.vm.state import (
    COLLECTIONS,
    ENDED_RANK,
    FIELDS,
    ITEM_KEYS,
    MIGRATION_RANK,
    PLACES,
    POWER_RANK,
    Disk,
    Migration,
    MigrationStatus,
    Nic,
    PowerState,
    Snapshot,
    VMState,
    canonical_ip,
    canonical_mac,
    join,
    placed,
    resources,
    split,
    split_patch,
    validate,
)

__all__ = [
    "COLLECTIONS",
    "ENDED_RANK",
    "FIELDS",
    "ITEM_KEYS",
    "MIGRATION_RANK",
    "PLACES",
    "POWER_RANK",
    "RULES",
    "SNAPSHOT_LINKS",
    "Disk",
    "Migration",
    "MigrationStatus",
    "Nic",
    "PowerState",
    "Snapshot",
    "VMState",
    "VMStateHandler",
    "canonical_ip",
    "canonical_mac",
    "capacity",
    "escape",
    "join",
    "placed",
    "resources",
    "snapshot_links",
    "split",
    "split_patch",
    "validate",
]
