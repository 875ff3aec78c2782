"""What carries the state of a key between nodes, by the class of the key and the mode of the network.

Strong keys go through the log of their group in every mode: a promise of one order does not bend to the weather.
Eventual keys go by gossip in every mode: they have to be writable where no majority is. Keys of class hybrid go through
the log of the region that owns them, and from there to the others: who owns a key does not change with the weather, nor
do logs move.

The mode is told, or found by looking at the links every ten seconds. It also sets the pace at which nodes tell each
other their clocks: on a wide network a round trip outlasts a short round.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from nova.errors import UsageError
from nova.sync.modes import Mode, mode_of

EVERY_NS: Final = 10 * 1_000_000_000
MARGIN: Final = 0.1
LOOKS: Final = 2
ROUND_MS: Final = {Mode.DATACENTER: 200, Mode.HYBRID: 200, Mode.INTERNET: 500}


class Carrier(StrEnum):
    """LOG: the consensus log of the group. GOSSIP: replicas that converge. REGIONS: a log in each region, and causal
    delivery between them."""

    LOG = "log"
    GOSSIP = "gossip"
    REGIONS = "regions"


_CARRIERS: Final[dict[str, dict[Mode, Carrier]]] = {
    "strong": dict.fromkeys(Mode, Carrier.LOG),
    "hybrid": dict.fromkeys(Mode, Carrier.REGIONS),
    "eventual": dict.fromkeys(Mode, Carrier.GOSSIP),
}


class StateSync:
    """Chooses; owns no clock and no socket.

    mode      `datacenter`, `internet` or `hybrid` for good; None: what `observe` finds, `hybrid` until then
    every_ns  between two looks
    margin    share by which what was measured has to be past a threshold before the mode changes
    raises    UsageError for a mode that there is not
    """

    def __init__(self, mode: str | None = None, *, every_ns: int = EVERY_NS, margin: float = MARGIN) -> None:
        if mode is not None and mode not in set(Mode):
            raise UsageError(f"mode is {mode!r}; use one of {', '.join(Mode)}, or None to find it out")
        if every_ns < 0 or not 0 <= margin < 1:
            raise UsageError(f"every_ns is {every_ns} and margin {margin}; 0 or more, and a share from 0 to below 1")
        self.fixed = mode is not None
        self.mode = Mode.HYBRID if mode is None else Mode(mode)
        """The mode in force."""
        self.changes = 0
        """How often the mode has changed."""
        self._every_ns, self._margin = every_ns, margin
        self._looked_ns: int | None = None
        self._seen: Mode | None = None
        self._times = 0

    def carrier(self, key_class: str) -> Carrier:
        """What carries keys of a class now. Raises UsageError for a class that there is not."""
        try:
            return _CARRIERS[key_class][self.mode]
        except KeyError:
            raise UsageError(f"class is {key_class!r}; use one of {', '.join(sorted(_CARRIERS))}") from None

    @property
    def round_ms(self) -> int:
        """How often clocks are told at most, in this mode."""
        return ROUND_MS[self.mode]

    def observe(self, now_ns: int, *, rtt_ms: float | None, bandwidth_gbit: float | None = None) -> Mode | None:
        """Take what was measured at a monotonic time, the median round trip and the narrowest link; the mode, if it
        changes now. It does if the same other mode is found at two looks in a row, and not close to a threshold."""
        if self.fixed or (self._looked_ns is not None and now_ns - self._looked_ns < self._every_ns):
            return None
        self._looked_ns = now_ns
        found = self._found(rtt_ms, bandwidth_gbit)
        if found is None or found is self.mode:
            self._seen, self._times = None, 0
            return None
        self._times = self._times + 1 if found is self._seen else 1
        self._seen = found
        if self._times < LOOKS:
            return None
        self.mode, self._seen, self._times = found, None, 0
        self.changes += 1
        return found

    def _found(self, rtt_ms: float | None, bandwidth_gbit: float | None) -> Mode | None:
        """The mode of these, if a little more or less of each gives the same. None: unknown, or too close to say."""
        factors = (1 - self._margin, 1 + self._margin)
        around = {
            mode_of(None if rtt_ms is None else rtt_ms * one, None if bandwidth_gbit is None else bandwidth_gbit * two)
            for one in factors
            for two in factors
        }
        return around.pop() if len(around) == 1 else None


__all__ = ["Carrier", "StateSync"]
