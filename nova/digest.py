"""Digests of many small things: equal sets have equal digests, and what differs is found from a few bytes."""

from nova._native.digest import SetDigest, digest128
from nova._native.reconcile import Reconciler
from nova.types import Difference

__all__ = ["Difference", "Reconciler", "SetDigest", "digest128"]
