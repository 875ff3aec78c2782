"""What a node measures of its links, and what follows from it for the pace at which state is kept in step."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from nova.metrics import Registry
from nova.sync.modes import Mode
from nova.sync.statesync import StateSync


def state_sync(sync: str) -> StateSync:
    """As it is configured: "auto" finds the mode out; "" has none, and so nothing to look at."""
    return StateSync(None if sync == "auto" else sync or "hybrid")


class Pace:
    """Lets the mode of the network set how often a node tells clocks.

    sync  as configured; "": the pace stays as it is
    """

    def __init__(self, sync: str, registry: Registry) -> None:
        self.sync = state_sync(sync)
        self.configured = bool(sync)
        if self.configured:
            for mode in Mode:
                registry.gauge(
                    f"nova_sync_mode_{mode}", f"Whether the network counts as {mode}: 1 or 0",
                    function=lambda mode=mode: float(self.sync.mode is mode),  # type: ignore[misc]
                )  # fmt: skip

    def round_ms(self, given: int) -> int:
        """The pace to begin with, where `given` is configured."""
        return self.sync.round_ms if self.configured else given

    def look(self, now_ns: int, rtts_ms: Iterable[float]) -> int | None:
        """Take the round trips of all links; the new pace in milliseconds if it changes. 0: not measured."""
        known = [rtt for rtt in rtts_ms if rtt > 0]
        before = self.sync.round_ms
        self.sync.observe(now_ns, rtt_ms=statistics.median(known) if known else None)
        return self.sync.round_ms if self.configured and self.sync.round_ms != before else None


__all__ = ["Pace", "state_sync"]
