"""Causality and time: which update saw which, and when it was made."""

from nova._native.vclock import CausalContext, HybridLogicalClock, VectorClock, stamp_ms
from nova.types import Dot, Order

__all__ = ["CausalContext", "Dot", "HybridLogicalClock", "Order", "VectorClock", "stamp_ms"]
