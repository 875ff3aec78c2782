"""An event loop on a thread of its own, for callers that block: what lives on it is asked from any other thread."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from nova.errors import UnavailableError, UsageError
from nova.runtime import new_loop

Result = TypeVar("Result")


class LoopThread:
    """The thread runs until `close`, or with the process: it keeps no program from ending."""

    def __init__(self, name: str) -> None:
        self._loop = new_loop()
        self._process = os.getpid()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What the coroutine returns or raises, run on the loop. An interrupt (Ctrl-C) cancels it and goes on.

        raises  UnavailableError when closed; UsageError in a child of `fork`, which has no such thread
        """
        try:
            if os.getpid() != self._process:
                raise UsageError(
                    f"process {os.getpid()} was forked from {self._process}, whose threads it has not; open a store of "
                    "its own, after the fork"
                )
            if self._closed or sys.is_finalizing():  # the thread has ended with the program, nobody would answer
                raise UnavailableError("the store is closed; open it again")
            if threading.current_thread() is self._thread:
                raise UsageError("the thread of a store can't wait for itself; ask from another one")
        except BaseException:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[Result], timeout_s: float | None) -> Iterator[Result]:
        """The items, none of which is None, one at a time; ends when none has come for `timeout_s`, None: never."""

        async def following() -> Result | None:
            async with asyncio.timeout(timeout_s):
                return await anext(items, None)

        async def end() -> None:
            aclose = getattr(items, "aclose", None)
            if aclose is not None:
                await aclose()

        try:
            while True:
                try:
                    item = self.call(following())
                except TimeoutError:
                    return
                if item is None:
                    return
                yield item
        finally:
            # Not waited for: a generator that nobody has any more may be closed by any thread, this loop's, too.
            if self.alive and not sys.is_finalizing():
                asyncio.run_coroutine_threadsafe(end(), self._loop)

    @property
    def alive(self) -> bool:
        """Not closed, and of this process."""
        return not self._closed and os.getpid() == self._process

    def close(self) -> None:
        """Stop the loop, and wait for the thread. May be called twice."""
        if not self.alive:
            return
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


__all__ = ["LoopThread"]
