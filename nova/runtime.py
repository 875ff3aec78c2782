"""The driver loop of a node: receive, step, tick, then persist - sync - send - apply. Real time enters here."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

from nova.errors import NovaError, PeerError
from nova.storage.base import Log
from nova.storage.pipeline import Pipeline
from nova.types import NodeId, Outputs

log = logging.getLogger("nova.runtime")


class Core(Protocol):
    """What a runtime drives: a state machine without I/O."""

    def step(self, sender: NodeId, message: Any) -> Outputs:
        """Take a message from a peer."""

    def tick(self) -> Outputs:
        """Let one tick of time pass."""

    def turn(self) -> Outputs:
        """Hand over what was written locally since the last turn."""


def wall_ns() -> int:
    """Unix time in nanoseconds."""
    return time.time_ns()


def seeded() -> random.Random:
    """A generator for one node, seeded by the operating system."""
    return random.Random(random.SystemRandom().getrandbits(64))


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop for a node: uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class Runtime:
    """Runs one core on one asyncio loop.

    Local writes call `wake`; they share a turn until the log is free again, so that the batch of a group commit grows
    with the load. Messages of peers go through `received`.

    core     the state machine
    log      where records go
    send     (peer, message): queue it for the peer; it may be lost, cores repeat what matters
    applied  called with each event once it is durable and sent
    fatal    called once with the storage error after which nothing can be acknowledged any more
    tick_ms  the length of a tick
    """

    def __init__(
        self,
        core: Core,
        records: Log,
        *,
        send: Callable[[NodeId, Any], None],
        applied: Callable[[Any], None],
        fatal: Callable[[BaseException], None],
        tick_ms: int = 100,
    ) -> None:
        self._core = core
        self._fatal = fatal
        self._loop = asyncio.get_running_loop()
        self._pipeline = Pipeline(
            records, send=send, apply=applied, defer=self._defer, failed=self._failed, ready=self._turn
        )
        self._tick_s = tick_ms / 1000
        self._woken = False
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event = asyncio.Event()

    def start(self) -> None:
        """Begin to tick."""
        self._running = True
        self._next = self._loop.time() + self._tick_s
        self._timer = self._loop.call_at(self._next, self._tick)

    async def stop(self) -> None:
        """Let no more time pass, and wait until all that was written is durable, sent and applied."""
        self.halt()
        self._turn()
        while not self._pipeline.idle and self._pipeline.error is None:
            self._idle.clear()
            await self._idle.wait()

    def halt(self) -> None:
        """Let no more time pass; nothing is waited for."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()

    def wake(self) -> None:
        """Something was written: take it in the next turn of the loop, or when the sync in flight is done."""
        if not self._woken and not self._pipeline.busy:
            self._woken = True
            self._loop.call_soon(self._turn)

    def received(self, sender: NodeId, message: Any) -> None:
        """A message came in. Raises PeerError if the peer broke the protocol: drop its stream."""
        self.submit(self._core.step(sender, message))

    def submit(self, outputs: Outputs) -> None:
        """Do what a core wants done."""
        if outputs and self._pipeline.error is None:
            self._pipeline.submit(outputs)
            if outputs.persist:
                self.wake()

    def _defer(self, action: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(action)

    def _failed(self, error: BaseException) -> None:
        self._idle.set()  # nothing will come to an end any more
        self._fatal(error)

    def _turn(self) -> None:
        self._woken = False
        if self._pipeline.error is None:
            try:
                outputs = self._core.turn()
                if outputs:
                    self._pipeline.submit(outputs)
                self._pipeline.flush()
            except NovaError as error:  # the log takes no more: what was written is not acknowledged
                self._failed(error)
        if self._pipeline.idle or self._pipeline.error is not None:
            self._idle.set()

    def _tick(self) -> None:
        # Ticks that were missed while the process slept are not made up for: a burst of them would accuse every peer.
        now = self._loop.time()
        self._next = max(self._next + self._tick_s, now)
        try:
            outputs = self._core.tick()
            try:
                self.submit(outputs)
            except NovaError as error:  # the log takes no more, as in `_turn`
                self._failed(error)
        except PeerError as error:
            log.warning("tick: %s", error)
        except Exception:  # a defect in one part must not stop the heart of the others
            log.exception("tick failed")
        if self._running:
            self._timer = self._loop.call_at(self._next, self._tick)
