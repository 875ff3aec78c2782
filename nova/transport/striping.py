"""How many TCP streams a transfer is worth: a start from what the link is known to be, then hill-climbing.

One loss-based TCP stream carries at most about mss / rtt * 1.22 / sqrt(loss) (Mathis, Semke, Mahdavi, Ott 1997), and
never more than its window per round trip. On a long or lossy path that is far below what the path has, and n streams
carry n times as much until the path is full. From there on more streams only cost. So the count doubles while doubling
pays, falls back to the last one that did, and then now and then tries a neighbour: upward it needs a clear gain,
downward a small loss is accepted, for what fewer streams carry as well is better carried by fewer. Between those two
thresholds nothing moves (hysteresis), and tries get rarer the longer they change nothing. A path that loses is noisy,
and a stream that starts is faster than it stays: a count is judged by the median of three looks, of two if they agree.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

from nova.errors import UsageError

__all__ = ["STREAMS_MAX", "LinkView", "StreamCount", "streams_for"]

STREAMS_MAX = 32
MATHIS = 1.22
MSS_BYTES = 1448
WINDOW_BYTES = 3 * 1024 * 1024  # what one stream keeps under way with the usual limits of Linux
EPOCH_NS_MIN = 250_000_000
EPOCH_RTTS = 8
SETTLE_RTTS = 4
GROW_GAIN = 1.15
UP_GAIN = 1.07
DOWN_LOSS = 0.97
COLLAPSE = 0.6
COLLAPSES = 3
DOUBTS = 2
HOLD_EPOCHS_MIN, HOLD_EPOCHS_MAX = 6, 96


class LinkView(NamedTuple):
    """What is seen at one moment: bytes acknowledged so far, the round trip (0: not known), the streams that run."""

    now_ns: int
    acked_bytes: int
    rtt_ns: int
    streams: int


def streams_for(
    bandwidth_bps: float,
    rtt_ns: int,
    loss_ratio: float,
    *,
    window_bytes: int = WINDOW_BYTES,
    streams_max: int = STREAMS_MAX,
) -> int:
    """How many streams fill a link of this bandwidth, at least 1."""
    if bandwidth_bps <= 0 or rtt_ns <= 0:
        return 1
    rtt_s = rtt_ns / 1e9
    one_bytes = float(window_bytes)
    if loss_ratio > 0:
        one_bytes = min(one_bytes, MSS_BYTES * MATHIS / math.sqrt(loss_ratio))
    return max(1, min(streams_max, math.ceil(bandwidth_bps / 8 * rtt_s / one_bytes)))


class _Phase(Enum):
    GROW = 0
    HOLD = 1
    TRY = 2


class StreamCount:
    """Tells how many streams to run. `step` is called often, with the clock of its caller; it has none of its own.

    start  where to begin, from `streams_for`
    raises UsageError
    """

    def __init__(self, *, start: int = 1, streams_max: int = STREAMS_MAX) -> None:
        if not 1 <= start <= streams_max:
            raise UsageError(f"start with {start} streams of at most {streams_max}; it is from 1 to that")
        self.streams = start
        self.streams_max = streams_max
        self._phase = _Phase.GROW
        self._from: tuple[int, int] | None = None  # when and at which total the epoch began
        self._settle_ns = 0
        self._best = 0.0  # bytes per second with the count that is held
        self._before = start  # the count to go back to
        self._hold_epochs = HOLD_EPOCHS_MIN
        self._held = 0
        self._up_next = True
        self._low = 0
        self._looks: list[float] = []
        self._doubts = DOUBTS

    def step(self, view: LinkView) -> int:
        """The count to have from now on."""
        rtt_ns = view.rtt_ns
        if view.streams < self.streams and not (self._from is None and view.streams == 0 and self._best):
            # Streams that are still on their way to run would be taken for ones that bring nothing.
            self._from = None
            return self.streams
        if self._from is None:
            if self._settle_ns == 0:
                self._settle_ns = view.now_ns + max(EPOCH_NS_MIN // 2, SETTLE_RTTS * rtt_ns)
            if view.now_ns >= self._settle_ns:
                self._from = view.now_ns, view.acked_bytes
                self._settle_ns = 0
            return self.streams
        since_ns = view.now_ns - self._from[0]
        if since_ns < max(EPOCH_NS_MIN, EPOCH_RTTS * rtt_ns):
            return self.streams
        speed = max(0, view.acked_bytes - self._from[1]) / (since_ns / 1e9)
        self._from = view.now_ns, view.acked_bytes
        if speed > 0:
            self._judge(speed)
        return self.streams

    def _pays(self, speed: float, least: float) -> bool | None:
        """Whether the median of three looks is at least so much; None: it takes another look."""
        self._looks.append(speed)
        good = sum(look >= least for look in self._looks)
        if max(good, len(self._looks) - good) < 2:
            return None
        return good >= 2

    def _judge(self, speed: float) -> None:
        looks = self._looks
        match self._phase:
            case _Phase.GROW:
                pays = self._pays(speed, GROW_GAIN * self._best)
                if pays is None:
                    return
                if pays:
                    self._best, self._before = sum(looks) / len(looks), self.streams
                    self._doubts = DOUBTS
                    looks.clear()
                    if self.streams < self.streams_max:
                        self._go(min(self.streams_max, self.streams * 2))
                    else:
                        self._hold()
                else:
                    self._go(self._before)
                    self._hold()
            case _Phase.HOLD:
                self._low = self._low + 1 if speed < COLLAPSE * self._best else 0
                if self._low >= COLLAPSES:
                    # Another link than before: what is known of it does not count any more.
                    self._phase, self._best, self._before, self._low = _Phase.GROW, speed, self.streams, 0
                    self._go(min(self.streams_max, self.streams * 2))
                    return
                self._best += (speed - self._best) / 4
                self._held += 1
                if self._held >= self._hold_epochs:
                    self._try()
            case _Phase.TRY:
                up = self.streams > self._before
                pays = self._pays(speed, self._best * (UP_GAIN if up else DOWN_LOSS))
                if pays is None:
                    return
                if pays:
                    self._best, self._before = sum(looks) / len(looks), self.streams
                    self._hold_epochs = HOLD_EPOCHS_MIN
                    self._up_next = up  # what helped once is tried again
                    self._hold()
                else:
                    self._go(self._before)
                    self._hold_epochs = min(HOLD_EPOCHS_MAX, self._hold_epochs * 2)
                    self._up_next = not up
                    self._hold()

    def _try(self) -> None:
        self._before = self.streams
        if self._doubts and self.streams < self.streams_max:
            # That doubling did not pay is too much to believe at once.
            self._doubts -= 1
            self._phase = _Phase.GROW
            self._go(min(self.streams_max, self.streams * 2))
            return
        step = max(1, self.streams // 4)
        wanted = self.streams + step if self._up_next else self.streams - step
        wanted = max(1, min(self.streams_max, wanted))
        if wanted == self.streams:
            self._up_next = not self._up_next
            self._hold()
            return
        self._phase = _Phase.TRY
        self._go(wanted)

    def _hold(self) -> None:
        self._phase, self._held, self._low = _Phase.HOLD, 0, 0
        self._looks.clear()

    def _go(self, streams: int) -> None:
        if streams != self.streams:
            self.streams, self._from, self._settle_ns = streams, None, 0
            self._looks.clear()
