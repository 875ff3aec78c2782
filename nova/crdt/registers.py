"""Single values: the last write wins, or every concurrent one stays; and a flag."""

from nova.crdt.base import EnableWinsFlag, LWWRegister, MVRegister

__all__ = ["EnableWinsFlag", "LWWRegister", "MVRegister"]
