"""Counters that several nodes count on at once: a total per actor, never summed on merge."""

from nova.crdt.base import GCounter, PNCounter

__all__ = ["GCounter", "PNCounter"]
