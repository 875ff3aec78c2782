"""What kind of network a fleet has: it decides how state is kept in step, and which protocol orders strong keys."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

RTT_DATACENTER_MS: Final = 10.0
RTT_INTERNET_MS: Final = 50.0
BANDWIDTH_GBIT: Final = 1.0


class Mode(StrEnum):
    """DATACENTER: near and wide. INTERNET: far or narrow. HYBRID: what lies between."""

    DATACENTER = "datacenter"
    INTERNET = "internet"
    HYBRID = "hybrid"


def mode_of(rtt_ms: float | None, bandwidth_gbit: float | None) -> Mode | None:
    """The mode of a round trip (median, milliseconds) and a bandwidth (Gbit/s); None if it can't be told.

    Datacenter below 10 ms and above 1 Gbit/s; internet above 50 ms or below 1 Gbit/s; otherwise hybrid. One bad figure
    is enough for internet; nothing else can be told of one figure.
    """
    rtt, bandwidth = (known(value) for value in (rtt_ms, bandwidth_gbit))
    if (rtt is not None and rtt > RTT_INTERNET_MS) or (bandwidth is not None and bandwidth < BANDWIDTH_GBIT):
        return Mode.INTERNET
    if rtt is None or bandwidth is None:
        return None
    return Mode.DATACENTER if rtt < RTT_DATACENTER_MS and bandwidth > BANDWIDTH_GBIT else Mode.HYBRID


def known(value: float | None) -> float | None:
    """A sample, or None if it is none: absent, not a number, infinite or negative."""
    return value if value is not None and math.isfinite(value) and value >= 0 else None


__all__ = ["Mode", "known", "mode_of"]
