"""Text and lists that many write at once."""

from nova._native.sequence import RGA, RGAList

__all__ = ["RGA", "RGAList"]
