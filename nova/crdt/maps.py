"""Maps: last write wins per key, or any CRDT under a key, nested."""

from nova.crdt.base import LWWMap, ORMap

__all__ = ["LWWMap", "ORMap"]
