"""Conflicts: found by causality, merged and settled by rules, explained and recorded.

`merge` is the module; its function is `nova.conflict.merge.merge`.
"""

from nova.conflict import audit, detect, merge, strategies, vm
from nova.conflict.audit import AuditChain, AuditEvent
from nova.conflict.detect import MISSING, Conflict, ConflictDetector, ConflictType, Invariant, Severity, Version
from nova.conflict.merge import (
    MergeConflict,
    MergeResult,
    Patch,
    apply_json_patch,
    apply_merge_patch,
    diff,
    merge_text,
    patch,
    to_json_patch,
    to_merge_patch,
)
from nova.conflict.strategies import (
    LastWriteWins,
    MultiValue,
    Resolution,
    ResolveContext,
    SemanticMerge,
    Strategy,
    strategy_named,
)
from nova.conflict.vm import VMState

__all__ = [
    "MISSING",
    "AuditChain",
    "AuditEvent",
    "Conflict",
    "ConflictDetector",
    "ConflictType",
    "Invariant",
    "LastWriteWins",
    "MergeConflict",
    "MergeResult",
    "MultiValue",
    "Patch",
    "Resolution",
    "ResolveContext",
    "SemanticMerge",
    "Severity",
    "Strategy",
    "VMState",
    "Version",
    "apply_json_patch",
    "apply_merge_patch",
    "audit",
    "detect",
    "diff",
    "merge",
    "merge_text",
    "patch",
    "strategies",
    "strategy_named",
    "to_json_patch",
    "to_merge_patch",
    "vm",
]
