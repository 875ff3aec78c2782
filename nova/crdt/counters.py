"""Counters that several nodes count on at once: a total per actor, never summed on merge."""

from nova.crdt.base import BoundedCounter, GCounter, PNCounter

__all__ = ["BoundedCounter", "GCounter", "PNCounter"]
