"""The one order in which every driver honours what a core asks for: persist - sync - send - apply."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from nova.storage.base import Log
from nova.types import NodeId, Outputs


class Pipeline:
    """Holds each `Outputs` back until its records are durable, then sends, then applies.

    One sync is in flight at a time; what arrives meanwhile shares the next one (group commit). Outputs without
    records are released at once: they promise nothing that a crash could take back, and neither do `early` messages.

    log    where records go
    send   called with (peer, message)
    apply  called with each event, after the sends of the same Outputs
    defer  runs a function on the driver's own thread of control; the log's `done` may come from another thread
    failed called once, with the first storage error; after it nothing is released any more
    ready  called when a sync has ended, to bring what gathered meanwhile; else `flush` alone is
    """

    def __init__(
        self,
        log: Log,
        *,
        send: Callable[[NodeId, Any], None],
        apply: Callable[[Any], None],
        defer: Callable[[Callable[[], None]], None] | None = None,
        failed: Callable[[BaseException], None] | None = None,
        ready: Callable[[], None] | None = None,
    ) -> None:
        self._log = log
        self._send = send
        self._apply = apply
        self._defer = defer or (lambda action: action())
        self._failed = failed
        self._ready = ready or self.flush
        self._waiting: deque[tuple[int, Outputs]] = deque()
        self._syncing = False
        self._error: BaseException | None = None

    @property
    def error(self) -> BaseException | None:
        """The storage failure that stopped this pipeline, if any."""
        return self._error

    @property
    def idle(self) -> bool:
        """Nothing waits for the disk."""
        return not self._waiting

    @property
    def busy(self) -> bool:
        """A sync is in flight: what is submitted now shares the next one."""
        return self._syncing

    def submit(self, outputs: Outputs) -> None:
        """Take what a core wants done."""
        if self._error is not None:
            raise self._error
        for peer, message in outputs.early:
            self._send(peer, message)
        if not outputs.persist:
            self._release(outputs)
            return
        self._waiting.append((self._log.append(outputs.persist), outputs))

    def flush(self) -> None:
        """Start a sync if records wait for one; the driver calls this once per turn of its loop."""
        if self._waiting and not self._syncing and self._error is None:
            self._syncing = True
            self._log.sync(self._synced)

    def _synced(self, position: int, error: BaseException | None) -> None:
        self._defer(lambda: self._advance(position, error))

    def _advance(self, position: int, error: BaseException | None) -> None:
        self._syncing = False
        if error is not None:
            self._error = error
            if self._failed is not None:
                self._failed(error)
            return
        try:
            while self._waiting and self._waiting[0][0] <= position:
                self._release(self._waiting.popleft()[1])
        except Exception as problem:
            # A defect of who takes what is released. Going on would leave waiters waiting for ever: stop, and say so.
            self._error = problem
            if self._failed is not None:
                self._failed(problem)
            raise
        self._ready()

    def _release(self, outputs: Outputs) -> None:
        for peer, message in outputs.send:
            self._send(peer, message)
        for event in outputs.apply:
            self._apply(event)
