"""Text that many write at once."""

from nova._native.sequence import RGA

__all__ = ["RGA"]
