"""Sets: one that only grows, and one whose removes take what they saw and leave no tombstone."""

from nova.crdt.base import GSet, ORSet

__all__ = ["GSet", "ORSet"]
