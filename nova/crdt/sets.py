"""Sets: one that only grows, one whose removes are for good, one whose removes take what they saw and leave nothing."""

from nova.crdt.base import GSet, ORSet, TwoPSet

__all__ = ["GSet", "ORSet", "TwoPSet"]
