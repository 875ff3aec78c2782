"""Eventual consistency with causal delivery: every member takes commands, W copies make one safe."""

from nova.consensus.eventual.core import Eventual
from nova.consensus.eventual.options import EventualOptions

__all__ = ["Eventual", "EventualOptions"]
