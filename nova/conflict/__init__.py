"""Conflicts: found by causality, settled by strategies, explained and recorded."""

from nova.conflict import audit, detect, strategies, vm
from nova.conflict.audit import AuditChain, AuditEvent
from nova.conflict.detect import MISSING, Conflict, ConflictDetector, ConflictType, Invariant, Severity, Version
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
    "MultiValue",
    "Resolution",
    "ResolveContext",
    "SemanticMerge",
    "Severity",
    "Strategy",
    "VMState",
    "Version",
    "audit",
    "detect",
    "strategies",
    "strategy_named",
    "vm",
]
