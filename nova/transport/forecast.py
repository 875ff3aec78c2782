"""What bandwidth a link will have next: predictive bandwidth allocation (PBA), a committee of small forecasters.

Links differ: one repeats its hour, one only wanders, one is bursts on a floor. So several forecasters run beside each
other, each too simple to be wrong for long, and each is believed by how well it did lately: its weight is
exp(-TRUST * its decayed error), the exponentially weighted average forecaster (Littlestone & Warmuth 1994) with
forgetting (Herbster & Warmuth 1998). What they say is averaged as logarithms: bandwidths differ by factors. The error
is the relative one, |forecast - value| / value, by which the whole is judged too; under it a value that is forecast too
high costs more than one too low, so some members look at the lower values of a window.

The members: the last value; exponential and harmonic averages; quantiles of windows; an autoregression of logarithms by
recursive least squares; and what followed the moments that looked most like the present one (analogues, Lorenz 1969),
which learns any rhythm that there is without being told its period.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Protocol

from nova.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["BandwidthForecast"]

HISTORY = 2048
TRUST = 50.0
DECAY = 0.9
ERROR_MAX = 3.0


class _Member(Protocol):
    """Forecasts logarithms. `past` are those of all values so far, at least one, and the newest is the last."""

    def predict(self, past: npt.NDArray[np.float64]) -> float: ...

    def observe(self, log: float) -> None:
        """The next value, before it is among the past."""


class _Stateless:
    def observe(self, log: float) -> None:
        pass


class _Last(_Stateless):
    def predict(self, past: npt.NDArray[np.float64]) -> float:
        return float(past[-1])


class _Quantile(_Stateless):
    def __init__(self, window: int, quantile: float) -> None:
        self._window, self._quantile = window, quantile

    def predict(self, past: npt.NDArray[np.float64]) -> float:
        return _quantile(past[-self._window :], self._quantile)


class _Harmonic(_Stateless):
    def __init__(self, window: int) -> None:
        self._window = window

    def predict(self, past: npt.NDArray[np.float64]) -> float:
        seen = past[-self._window :].tolist()
        return -math.log(sum(math.exp(-log) for log in seen) / len(seen))


class _Ewma:
    def __init__(self, alpha: float) -> None:
        self._alpha, self._mean = alpha, 0.0

    def predict(self, past: npt.NDArray[np.float64]) -> float:
        return math.log(self._mean)

    def observe(self, log: float) -> None:
        value = math.exp(log)
        self._mean = self._mean + self._alpha * (value - self._mean) if self._mean else value


class _Analogues(_Stateless):
    """What followed the `count` moments whose last `window` values were nearest to the present ones.

    relative  compare shapes, and forecast a change; else levels
    """

    def __init__(self, window: int, count: int, *, relative: bool) -> None:
        self._window, self._count, self._relative = window, count, relative

    def predict(self, past: npt.NDArray[np.float64]) -> float:
        import numpy as np

        size = self._window
        if len(past) < size + 5:
            return float(past[-1])
        windows = np.lib.stride_tricks.sliding_window_view(past, size)
        shapes = windows - windows[:, -1:] if self._relative else windows
        distance = np.abs(shapes[:-1] - shapes[-1]).sum(1)
        nearest = np.argsort(distance, kind="stable")[: self._count]
        after = past[nearest + size]
        if self._relative:
            after = after - past[nearest + size - 1] + past[-1]
        return _quantile(after, 0.5)


class _Regression:
    """Recursive least squares over the last `order` logarithms and a constant, with forgetting."""

    def __init__(self, order: int, forget: float) -> None:
        n = order + 1
        self._order, self._forget = order, forget
        self._weights = [1.0, *[0.0] * order]
        self._spread = [[10.0 * (i == j) for j in range(n)] for i in range(n)]
        self._seen: deque[float] = deque(maxlen=order)

    def _row(self) -> tuple[list[float], float]:
        """The last values, newest first, less their mean, and a constant; and the mean."""
        mean = sum(self._seen) / len(self._seen)
        return [log - mean for log in reversed(self._seen)] + [1.0], mean

    def predict(self, past: npt.NDArray[np.float64]) -> float:
        if len(self._seen) < self._order:
            return float(past[-1])
        row, mean = self._row()
        guess = mean + sum(w * x for w, x in zip(self._weights, row, strict=True))
        return min(max(guess, float(past.min())), float(past.max()))  # never beyond what was ever seen

    def observe(self, log: float) -> None:
        if len(self._seen) == self._order:
            row, mean = self._row()
            lean = [sum(a * b for a, b in zip(line, row, strict=True)) for line in self._spread]
            scale = self._forget + sum(a * b for a, b in zip(row, lean, strict=True))
            error = log - mean - sum(w * x for w, x in zip(self._weights, row, strict=True))
            self._weights = [w + a / scale * error for w, a in zip(self._weights, lean, strict=True)]
            self._spread = [
                [(self._spread[i][j] - lean[i] * lean[j] / scale) / self._forget for j in range(len(row))]
                for i in range(len(row))
            ]
        self._seen.append(log)


class BandwidthForecast:
    """Forecasts the next of a series of bandwidths, one at a time; it keeps the last 2,048.

    Cost: about a millisecond a value.
    """

    def __init__(self) -> None:
        import numpy as np

        self._kept = np.empty(2 * HISTORY)
        self._start = self._end = 0
        self._members: list[_Member] = [
            _Last(), _Ewma(0.3), _Ewma(0.8), _Harmonic(5), _Harmonic(20), _Quantile(9, 0.3), _Quantile(25, 0.5),
            _Regression(4, 0.995), _Analogues(12, 11, relative=False), _Analogues(24, 7, relative=False),
            _Analogues(12, 11, relative=True),
        ]  # fmt: skip
        self._errors = [0.0] * len(self._members)
        self._said: list[float] | None = None

    def __len__(self) -> int:
        return self._end - self._start

    def predict(self) -> float | None:
        """The next value; None before the first is known."""
        if not len(self):
            return None
        said = self._say()
        best = min(self._errors)
        weights = [math.exp(-TRUST * (error - best)) for error in self._errors]
        return math.exp(sum(w * log for w, log in zip(weights, said, strict=True)) / sum(weights))

    def observe(self, value: float) -> None:
        """The value that came. Raises UsageError if it is not above 0 and finite."""
        if not 0 < value < math.inf:
            raise UsageError(f"bandwidth {value} is not a number above 0; leave out times in which nothing moved")
        log = math.log(value)
        if len(self):
            for i, guess in enumerate(self._say()):
                error = min(ERROR_MAX, abs(math.exp(guess - log) - 1))
                self._errors[i] = DECAY * self._errors[i] + (1 - DECAY) * error
        for member in self._members:
            member.observe(log)
        self._said = None
        if self._end == len(self._kept):
            self._kept[:HISTORY] = self._kept[HISTORY:]
            self._start, self._end = 0, HISTORY
        self._kept[self._end] = log
        self._end += 1
        self._start = max(self._start, self._end - HISTORY)

    def _say(self) -> list[float]:
        """What each member says, asked once for each value."""
        if self._said is None:
            past = self._kept[self._start : self._end]
            self._said = [member.predict(past) for member in self._members]
        return self._said


def _quantile(values: npt.NDArray[np.float64], quantile: float) -> float:
    return float(sorted(values.tolist())[int(quantile * (len(values) - 1) + 0.5)])
