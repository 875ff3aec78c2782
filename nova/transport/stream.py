"""The asyncio half that all engines share: a `Session` on a byte pipe, with waiting, timers and an emulated delay.

An engine makes a pipe (a socket, a simulated link) and feeds what arrives to `SessionStream.bytes_received`. The first
send after something arrived leaves at once, for it may be the answer that the peer waits for; further ones are gathered
and leave once per turn of the loop. Nothing here makes a task per message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from nova.errors import PeerError
from nova.transport.base import Buffer, Identity, StreamStats
from nova.transport.quiet import Quiet
from nova.transport.session import Established, Goodbye, Session

logger = logging.getLogger("nova.transport")

CLOSE_SECONDS = 5.0


class Pipe(Protocol):
    """Ordered bytes to the other side; the engine behind a stream."""

    def write(self, data: bytes | bytearray) -> None:
        """Take `data` over: nobody changes it later."""

    def close(self) -> None:
        """Close once everything written has left."""

    def abort(self) -> None: ...


class SessionStream:
    """A `Stream` over a pipe. Made by the engines; usable once `ready` is done."""

    def __init__(
        self,
        session: Session,
        pipe: Pipe,
        remote: str,
        *,
        on_established: Callable[[SessionStream], None] | None = None,
        on_closed: Callable[[SessionStream], None] | None = None,
        send_delay: Callable[[Identity], float] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        quiet: Quiet | None = None,
    ) -> None:
        self._quiet = quiet  # where strangers are logged, of whom there may be many
        self._loop = asyncio.get_running_loop()
        self._session = session
        self._pipe = pipe
        self._remote = remote
        self._on_established = on_established
        self._on_closed = on_closed
        self._send_delay = send_delay
        self._now_ns = clock  # not the loop's: uvloop counts milliseconds, a round trip takes microseconds
        self._answering = False
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._messages: deque[memoryview] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._error: PeerError | None = None
        self._reason = ""
        self._over = False  # no further message will come
        self._closing = False
        self._paused = False
        self._flush_due = False
        self._delayed: deque[tuple[float, bytes | bytearray | None]] = deque()
        self._delay_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._arm()
        self._schedule_flush()

    # -- the Stream seam -----------------------------------------------------------------------------------------

    @property
    def local(self) -> Identity:
        return self._session.identity

    @property
    def peer(self) -> Identity:
        if self._session.peer is None:
            raise PeerError(f"{self._remote} has not said who it is yet")
        return self._session.peer

    @property
    def initiator(self) -> bool:
        return self._session.initiator

    @property
    def closed(self) -> bool:
        return self._over or self._closing

    @property
    def reason(self) -> str:
        return self._reason

    @property
    def stats(self) -> StreamStats:
        session = self._session
        return StreamStats(session.sent_bytes, session.received_bytes, session.rtt_ns, session.queue_bytes)

    def send(self, payload: Buffer) -> bool:
        if self._over or self._closing or not self._session.send(payload):
            return False
        if not self._flush_due:
            if self._answering:
                self._flush()
            else:
                self._schedule_flush()
        return True

    async def drain(self) -> None:
        while not self._over and self._session.queue_bytes * 2 > self._session.limits.queue_bytes_max:
            waiter = self._loop.create_future()
            self._writers.append(waiter)
            await waiter
        if self._error is not None:
            raise self._error

    async def recv(self) -> memoryview | None:
        if not await self._wait():
            return None
        message = self._messages.popleft()
        self._took([message])
        return message

    async def recv_batch(self) -> list[memoryview]:
        if not await self._wait():
            return []
        batch = list(self._messages)
        self._messages.clear()
        self._took(batch)
        return batch

    async def close(self, reason: str = "") -> None:
        if not self._closing and not self._over:
            self._closing = True
            self._reason = self._reason or reason or "closed by this node"
            self._session.close(reason)
            self._schedule_flush()
            self._wake()
            if not self._session.established:
                self.abort(self._reason)
        if not self._gone.done():
            await asyncio.wait([self._gone], timeout=CLOSE_SECONDS)
            if not self._gone.done():
                self.abort("the peer did not take what was queued before the goodbye")
                await self._gone

    def abort(self, reason: str) -> None:
        if not self._gone.done():
            self._break(PeerError(f"stream to {self._name()} broken: {reason}"))
            self._pipe.abort()
            self.pipe_lost("")

    # -- what the engine calls -----------------------------------------------------------------------------------

    def bytes_received(self, data: bytes) -> None:
        if self._over and not self._closing:
            return
        try:
            events = self._session.receive(data, self._now_ns())
        except PeerError as error:
            self._fail(error)
            return
        for event in events:
            if type(event) is memoryview:
                self._messages.append(event)
            elif isinstance(event, Established):
                self._arm()
                if not self.ready.done():
                    self.ready.set_result(None)
                if self._on_established is not None:
                    self._on_established(self)
            elif isinstance(event, Goodbye):
                self._over = True
                self._reason = self._reason or event.reason or "the peer closed"
                self._session.close(discard=True)
        if self._messages or self._over:
            self._wake()
        self._answering = True
        # The last flush of a stream has nothing to send, it closes the pipe.
        if not self._flush_due and (self._over or self._session.has_output):
            self._schedule_flush()

    def pipe_lost(self, cause: str) -> None:
        """The pipe is gone, for whatever cause. May be called twice."""
        if self._gone.done():
            return
        if not self._over and not self._closing:
            self._break(PeerError(f"{self._name()} hung up without a goodbye" + (f": {cause}" if cause else "")))
        self._over = True
        for timer in (self._timer, self._delay_timer):
            if timer is not None:
                timer.cancel()
        self._delayed.clear()
        self._gone.set_result(None)
        self._wake()
        if not self.ready.done():
            self.ready.set_exception(self._error or PeerError(f"stream to {self._name()} closed: {self._reason}"))
            self.ready.exception()  # a responder has nobody who waits for it
        if self._on_closed is not None:
            self._on_closed(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._schedule_flush()

    # -- inside --------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        peer = self._session.peer
        return f"node {peer.node!r} at {self._remote}" if peer is not None else self._remote

    async def _wait(self) -> bool:
        """True as soon as a message is here, False when none will come."""
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._over or self._closing:
                return False
            if self._reader is not None and not self._reader.done():
                raise PeerError(f"two readers wait on the stream to {self._name()}; one is the limit")
            self._reader = self._loop.create_future()
            await self._reader
        return True

    def _took(self, messages: list[memoryview]) -> None:
        try:
            self._session.consumed(messages)
        except PeerError as error:
            self._fail(error)
        if not self._over and not self._flush_due and self._session.has_output:
            self._schedule_flush()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if self._writers and (self._over or self._session.queue_bytes * 2 <= self._session.limits.queue_bytes_max):
            writers, self._writers = self._writers, []
            for waiter in writers:
                if not waiter.done():
                    waiter.set_result(None)

    def _schedule_flush(self) -> None:
        self._flush_due = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = self._answering = False
        if self._gone.done() or self._paused:
            return
        try:
            while not self._paused:
                out = self._session.take_output()
                if not out:
                    break
                self._write(out[0] if len(out) == 1 else b"".join(out))
        except PeerError as error:
            self._fail(error)
            return
        if self._writers:
            self._wake()
        if self._session.done and self._over:
            self._write(None)  # both sides have said goodbye

    def _write(self, data: bytes | bytearray | None) -> None:
        delay = 0.0
        if self._send_delay is not None and self._session.established and self._session.peer is not None:
            delay = self._send_delay(self._session.peer)
        if not self._delayed and delay <= 0:
            self._emit(data)
            return
        # First in, first out: whatever is due earlier than its predecessors leaves with them, bytes never overtake.
        due = self._loop.time() + max(0.0, delay)
        self._delayed.append((due, data))
        if self._delay_timer is None:
            self._delay_timer = self._loop.call_at(due, self._delay_over)

    def _delay_over(self) -> None:
        self._delay_timer = None
        now = self._loop.time() + 1e-6
        while self._delayed and self._delayed[0][0] <= now:
            self._emit(self._delayed.popleft()[1])
        if self._delayed and not self._gone.done():
            self._delay_timer = self._loop.call_at(self._delayed[0][0], self._delay_over)

    def _emit(self, data: bytes | bytearray | None) -> None:
        if data is None:
            self._pipe.close()
        else:
            self._pipe.write(data)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later((self._session.deadline_ns - self._now_ns()) / 1e9 + 1e-6, self._tick)

    def _tick(self) -> None:
        if self._gone.done():
            return
        try:
            self._session.tick(self._now_ns())
        except PeerError as error:
            self._fail(error)
            return
        self._schedule_flush()
        self._arm()

    def _break(self, error: PeerError) -> None:
        if self._error is None and not self._over:
            self._error = error
            self._reason = self._reason or str(error)
        self._over = True
        self._wake()

    def _fail(self, error: PeerError) -> None:
        """The peer broke the protocol: tell it what may be told (the session decides), then hang up."""
        if self._gone.done():
            return
        if self.ready.done() or self._quiet is None:
            logger.warning("stream with %s broken: %s", self._name(), error)
        else:  # a stranger, who will be back in a moment
            kind = (self._remote.rpartition(":")[0], str(error))
            self._quiet.warning(kind, "stream with %s broken: %s", self._name(), error)
        self._break(error)
        last = b"".join(self._session.take_output(0))
        if last:
            self._pipe.write(last)
            self._pipe.close()
        else:
            self._pipe.abort()
        self.pipe_lost("")
