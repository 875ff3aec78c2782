"""Causality and time: which update saw which, and when it was made."""

from nova._native.clockbatch import ClockBatch
from nova._native.vclock import CausalContext, DottedVersionVector, HybridLogicalClock, VectorClock, stamp_ms
from nova.types import Dot, Order

__all__ = [
    "CausalContext",
    "ClockBatch",
    "Dot",
    "DottedVersionVector",
    "HybridLogicalClock",
    "Order",
    "VectorClock",
    "stamp_ms",
]
