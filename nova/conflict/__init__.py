"""Conflicts: found by causality, merged and settled by rules, explained and recorded.

`merge` is the module; its function is `nova.conflict.merge.merge`. What is not needed to find and settle conflicts is
loaded when it is first asked for (PEP 562). Detection, strategies and the rules of VMs are there at once: they register
themselves, and what is found must not depend on who imported what.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from nova.conflict import detect, strategies, vm
from nova.conflict.detect import (
    MISSING,
    Conflict,
    ConflictDetector,
    ConflictType,
    Invariant,
    Severity,
    Version,
)
from nova.conflict.strategies import (
    AutomaticRollback,
    ConsensusVote,
    HighestPriority,
    LastWriteWins,
    ManualIntervention,
    MultiValue,
    OperationalTransform,
    Resolution,
    ResolveContext,
    SemanticMerge,
    Strategy,
    strategy_named,
)
from nova.conflict.vm import (
    VMState,
    VMStateHandler,
)

if TYPE_CHECKING:
    from nova.conflict import audit, batch, healing, merge, metrics, ot, policy, resolver
    from nova.conflict.audit import (
        AuditChain,
        AuditEvent,
        AuditLog,
    )
    from nova.conflict.batch import (
        BatchOutcome,
        VersionBatch,
        settle_many,
    )
    from nova.conflict.merge import (
        Atomic,
        Counter,
        Custom,
        Document,
        Group,
        Keyed,
        Max,
        MergeConflict,
        MergeResult,
        Min,
        Moves,
        Patch,
        Precedence,
        Sequence,
        SetOf,
        Sum,
        Text,
        apply_json_patch,
        apply_merge_patch,
        diff,
        merge_text,
        patch,
        to_json_patch,
        to_merge_patch,
    )
    from nova.conflict.metrics import (
        ConflictMetrics,
    )
    from nova.conflict.policy import (
        Policy,
        PolicyBuilder,
        PolicyManager,
    )
    from nova.conflict.resolver import (
        ConflictResolver,
        StateVersion,
    )
    from nova.conflict.semantics import (
        SemanticRule,
    )

_MODULES: Final = (
    "audit",
    "batch",
    "healing",
    "merge",
    "metrics",
    "ot",
    "policy",
    "resolver",
    "semantics",
)
_FROM: Final = {
    "audit": (
        "AuditChain",
        "AuditEvent",
        "AuditLog",
    ),
    "batch": (
        "BatchOutcome",
        "VersionBatch",
        "settle_many",
    ),
    "merge": (
        "Atomic",
        "Counter",
        "Custom",
        "Document",
        "Group",
        "Keyed",
        "Max",
        "MergeConflict",
        "MergeResult",
        "Min",
        "Moves",
        "Patch",
        "Precedence",
        "Sequence",
        "SetOf",
        "Sum",
        "Text",
        "apply_json_patch",
        "apply_merge_patch",
        "diff",
        "merge_text",
        "patch",
        "to_json_patch",
        "to_merge_patch",
    ),
    "metrics": ("ConflictMetrics",),
    "policy": (
        "Policy",
        "PolicyBuilder",
        "PolicyManager",
    ),
    "resolver": (
        "ConflictResolver",
        "StateVersion",
    ),
    "semantics": ("SemanticRule",),
}
_LATER: Final = {name: module for module, names in _FROM.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _LATER:
        raise AttributeError(f"module {__name__} has no {name}")
    found = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "MISSING",
    "Atomic",
    "AuditChain",
    "AuditEvent",
    "AuditLog",
    "AutomaticRollback",
    "BatchOutcome",
    "Conflict",
    "ConflictDetector",
    "ConflictMetrics",
    "ConflictResolver",
    "ConflictType",
    "ConsensusVote",
    "Counter",
    "Custom",
    "Document",
    "Group",
    "HighestPriority",
    "Invariant",
    "Keyed",
    "LastWriteWins",
    "ManualIntervention",
    "Max",
    "MergeConflict",
    "MergeResult",
    "Min",
    "Moves",
    "MultiValue",
    "OperationalTransform",
    "Patch",
    "Policy",
    "PolicyBuilder",
    "PolicyManager",
    "Precedence",
    "Resolution",
    "ResolveContext",
    "SemanticMerge",
    "SemanticRule",
    "Sequence",
    "SetOf",
    "Severity",
    "StateVersion",
    "Strategy",
    "Sum",
    "Text",
    "VMState",
    "VMStateHandler",
    "Version",
    "VersionBatch",
    "apply_json_patch",
    "apply_merge_patch",
    "audit",
    "batch",
    "detect",
    "diff",
    "healing",
    "merge",
    "merge_text",
    "metrics",
    "ot",
    "patch",
    "policy",
    "resolver",
    "settle_many",
    "strategies",
    "strategy_named",
    "to_json_patch",
    "to_merge_patch",
    "vm",
]
