"""When to campaign: a leader's silence, and back-off by chance after campaigns that came to nothing. All in ticks."""

from __future__ import annotations

from nova.types import Random


class Pace:
    """Timeouts are drawn from [T, 2T); each failure doubles the range, `doublings` times at most.

    heard  ticks since a leader's last word; T when there was none
    """

    def __init__(self, random: Random, ticks: int, doublings: int) -> None:
        self._random, self._ticks, self._doublings = random, ticks, doublings
        self._failures = 0
        self.heard = ticks
        self.elapsed = 0
        self.timeout = 0
        self.rest()

    def tick(self) -> None:
        """Let a tick pass."""
        self.elapsed += 1
        self.heard += 1

    def rest(self) -> None:
        """Begin to wait."""
        self.elapsed = 0
        self.timeout = self._ticks + self._random.randrange(self._ticks << min(self._failures, self._doublings))

    def campaigns(self) -> None:
        """This campaign fails, unless `succeeds` follows."""
        self._failures += 1

    def succeeds(self) -> None:
        """There is a leader."""
        self._failures = 0

    def hears(self) -> None:
        """A leader's word."""
        self.elapsed = self.heard = self._failures = 0

    def silent(self) -> None:
        """There is no leader any more."""
        self.heard = self._ticks

    @property
    def due(self) -> bool:
        """It is time to campaign."""
        return self.elapsed >= self.timeout

    @property
    def led(self) -> bool:
        """A leader was heard of within T: whoever else asks for a promise is refused."""
        return self.heard < self._ticks
