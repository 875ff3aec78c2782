"""Single values: the last write wins, or every concurrent one stays."""

from nova.crdt.base import LWWRegister, MVRegister

__all__ = ["LWWRegister", "MVRegister"]
