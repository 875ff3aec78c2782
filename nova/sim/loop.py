"""asyncio in virtual time: when nothing is ready, the clock jumps to the next timer. One order of events."""

from __future__ import annotations

import asyncio
from asyncio import base_events
from collections.abc import Coroutine
from typing import Any, TypeVar

from nova.errors import CorruptionError

T = TypeVar("T")


class _Jump:
    """Stands where the event loop has its selector: instead of waiting, it moves the clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise CorruptionError(
                f"deadlock at virtual time {self.now:.6f} s: every task waits, and no timer will ever wake one"
            )
        self.now += timeout
        return []


class VirtualLoop(base_events.BaseEventLoop):
    """An event loop whose time is counted, not measured. It has no sockets, signals, processes or threads."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Jump()

    def time(self) -> float:
        return self._selector.now

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nothing sleeps, so nothing needs waking."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in virtual time, starting at 0; then cancel what is left.

    raises  CorruptionError when every task waits and no timer is set: a deadlock
    """
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
