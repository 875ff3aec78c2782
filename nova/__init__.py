"""Nova keeps the state of a fleet that lives in many regions consistent, and explains every conflict it settled.

The names below are the public library; each is loaded on first use, so that ``import nova`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nova._version import __version__

if TYPE_CHECKING:
    from nova.clock import CausalContext, ClockBatch, DottedVersionVector, HybridLogicalClock, VectorClock
    from nova.conflict import AuditChain, AuditLog, Conflict, ConflictDetector, Resolution, Version, VMState
    from nova.consensus.client import ConsensusClient
    from nova.consensus.engine import ConsensusEngine, EngineOptions
    from nova.consensus.serving import ClientServer
    from nova.crdt import (
        RGA,
        BoundedCounter,
        EnableWinsFlag,
        GCounter,
        GSet,
        LWWMap,
        LWWRegister,
        MVRegister,
        ORMap,
        ORSet,
        PNCounter,
        RGAList,
        TwoPSet,
    )
    from nova.digest import Reconciler, SetDigest, digest128
    from nova.errors import CorruptionError, NovaError, PeerError, UnavailableError, UsageError
    from nova.metrics import Registry
    from nova.store import ReplicatedStore
    from nova.types import Dot, Order

_HOMES = {
    "nova.clock": ("CausalContext", "ClockBatch", "DottedVersionVector", "HybridLogicalClock", "VectorClock"),
    "nova.conflict": ("AuditChain", "AuditLog", "Conflict", "ConflictDetector", "Resolution", "VMState", "Version"),
    "nova.consensus.client": ("ConsensusClient",),
    "nova.consensus.engine": ("ConsensusEngine", "EngineOptions"),
    "nova.consensus.serving": ("ClientServer",),
    "nova.crdt": (
        "RGA",
        "BoundedCounter",
        "EnableWinsFlag",
        "GCounter",
        "GSet",
        "LWWMap",
        "LWWRegister",
        "MVRegister",
        "ORMap",
        "ORSet",
        "PNCounter",
        "RGAList",
        "TwoPSet",
    ),
    "nova.digest": ("Reconciler", "SetDigest", "digest128"),
    "nova.errors": ("CorruptionError", "NovaError", "PeerError", "UnavailableError", "UsageError"),
    "nova.metrics": ("Registry",),
    "nova.store": ("ReplicatedStore",),
    "nova.types": ("Dot", "Order"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "RGA",
    "AuditChain",
    "AuditLog",
    "BoundedCounter",
    "CausalContext",
    "ClientServer",
    "ClockBatch",
    "Conflict",
    "ConflictDetector",
    "ConsensusClient",
    "ConsensusEngine",
    "CorruptionError",
    "Dot",
    "DottedVersionVector",
    "EnableWinsFlag",
    "EngineOptions",
    "GCounter",
    "GSet",
    "HybridLogicalClock",
    "LWWMap",
    "LWWRegister",
    "MVRegister",
    "NovaError",
    "ORMap",
    "ORSet",
    "Order",
    "PNCounter",
    "PeerError",
    "RGAList",
    "Reconciler",
    "Registry",
    "ReplicatedStore",
    "Resolution",
    "SetDigest",
    "TwoPSet",
    "UnavailableError",
    "UsageError",
    "VMState",
    "VectorClock",
    "Version",
    "__version__",
    "digest128",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'nova' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
