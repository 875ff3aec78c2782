"""Digests of many small things: equal sets have equal digests, and a member comes or goes in O(1)."""

from nova._native.digest import SetDigest, digest128

__all__ = ["SetDigest", "digest128"]
