"""Lines that repeat themselves are logged once a minute: who knocks every second must not fill a disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final

EVERY_S: Final = 60.0
KEYS_MAX: Final = 1024


class Quiet:
    """A logger that says a line of one kind at most once in `every_s` seconds, and then how many it kept to itself.

    clock  any steady clock, seconds
    """

    def __init__(
        self, logger: logging.Logger, *, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._said: dict[Hashable, tuple[float, int]] = {}  # oldest first; kind -> when, and how many since

    def warning(self, kind: Hashable, message: str, *arguments: object) -> None:
        """Log, unless the same kind was logged a moment ago."""
        now = self._clock()
        when, kept = self._said.get(kind, (-float("inf"), 0))
        if now - when < self._every_s:
            self._said[kind] = (when, kept + 1)
            return
        self._said.pop(kind, None)
        if len(self._said) >= KEYS_MAX:  # kinds hold names that strangers choose
            del self._said[next(iter(self._said))]
        self._said[kind] = (now, 0)
        if kept:
            message, arguments = message + " (and %d times more since the last such line)", (*arguments, kept)
        self._logger.warning(message, *arguments)


__all__ = ["Quiet"]
