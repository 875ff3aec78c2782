"""The asyncio half that all engines share: a `Session` on a byte pipe, with waiting, timers and an emulated delay.

An engine makes a pipe (a socket, a simulated link) and feeds what arrives to `SessionStream.bytes_received`; one that
owns a socket hands it to `DirectPipe.flush` and `SessionStream.readable`, and bytes never become objects. The first
send after something arrived leaves at once, for it may be the answer that the peer waits for; further ones are gathered
and leave once per turn of the loop. Nothing here makes a task per message.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from nova._native.channel import Channel
from nova.errors import PeerError
from nova.transport.base import Buffer, Identity, StreamStats
from nova.transport.session import Established, Event, Goodbye, Session

logger = logging.getLogger("nova.transport")

CLOSE_SECONDS = 5.0
READ_BYTES = 64 * 1024
HAS_MESSAGES, HAS_OUTPUT, HEARD_GOODBYE = 1, 2, 4
FLUSH_BYTES = 64 * 1024
"""So much in the queue is worth a write of its own, without waiting for the turn of the loop."""


class Pipe(Protocol):
    """Ordered bytes to the other side; the engine behind a stream."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take `data` over: nobody changes it later."""

    def close(self) -> None:
        """Close once everything written has left."""

    def abort(self) -> None: ...


@runtime_checkable
class DirectPipe(Pipe, Protocol):
    """A pipe that compiled code fills: a socket of its own, or memory."""

    @property
    def fd(self) -> int:
        """The socket, on which only compiled code writes once the handshake has left; -1: it is none."""

    def flush(self, channel: Channel) -> bool:
        """Send what may leave, behind everything written. False: it calls `resume_writing` when the socket takes more.

        Raises OSError.
        """


class Source(Protocol):
    """Where bytes come from that do not come by a descriptor."""

    def read(self, bytes_max: int, /) -> bytes:
        """What is there, at most so much."""

    def pull(self, channel: Channel, /) -> int:
        """Give what is there to the channel; bytes that were. Raises PeerError."""


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
        on_proved: Callable[[Identity], None] | None = None,
        send_delay: Callable[[Identity], float] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._session = session
        self._pipe = pipe
        self._direct = pipe if isinstance(pipe, DirectPipe) and send_delay is None else None
        self._fd = -1  # of the direct pipe, as soon as nothing else writes there
        self._channel: Channel | None = None  # as soon as the session is established
        self._remote = remote
        self._on_established = on_established
        self._on_closed = on_closed
        self._on_proved = on_proved  # may still refuse the peer by a PeerError
        self._send_delay = send_delay
        self._now_ns = clock  # not the loop's: uvloop counts milliseconds, a round trip takes microseconds
        self._answering = False
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._error: PeerError | None = None
        self._reason = ""
        self._over = False  # no further message will come
        self._closing = False
        self._paused = False
        self._flush_due = False
        self._flushed_handshake = False  # what the handshake had to say has gone to the pipe
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

    def send(self, payload: Buffer, priority: int = 0) -> bool:
        channel = self._channel
        if channel is None or self._over or self._closing:
            return False
        if self._answering and self._fd >= 0 and not self._paused:
            self._answering = False
            try:
                code = channel.send_now(payload, priority, self._fd)
                if code == 2 and self._direct is not None:
                    self._paused = not self._direct.flush(channel)
            except OSError as error:
                self._lose(error)
                return False
            return code > 0
        if not channel.send(payload, priority):
            return False
        if self._answering or not self._flush_due or channel.queue_bytes >= FLUSH_BYTES:
            self._sent(channel)
        return True

    def send_batch(self, slab: Buffer, offsets: Buffer, priority: int = 0, first: int = 0) -> int:
        channel = self._channel
        if channel is None or self._over or self._closing:
            return 0
        count = channel.send_batch(slab, offsets, priority, first)
        self._sent(channel)
        return count

    async def put(self, payload: Buffer, priority: int = 0) -> None:
        while True:
            await self.drain()
            channel = self._channel
            if channel is None or self.closed:
                raise PeerError(f"stream to {self._name()} is closed: {self._reason}")
            if (lent := channel.lend(payload, priority)) is not None:
                break
            if channel.peer_done or channel.broken:
                raise PeerError(f"stream to {self._name()} takes nothing any more")
            await self._written()
        try:
            self._flush()
            while not lent.left and not self._over:
                await self._written()
        finally:
            channel.reclaim(lent)
        if self._error is not None:
            raise self._error

    async def drain(self) -> None:
        while not self._over and self._session.queue_bytes * 2 > self._session.limits.queue_bytes_max:
            await self._written()
        if self._error is not None:
            raise self._error

    async def recv(self) -> memoryview | None:
        while (channel := self._channel) is None or (message := channel.recv()) is None:
            if self._ended():
                return None
            self._reader = reader = self._loop.create_future()
            await reader
        if channel.has_output:
            self._took(channel)
        return message

    async def recv_batch(self) -> list[memoryview]:
        channel = await self._wait()
        if channel is None:
            return []
        batch = channel.recv_batch()
        self._took(channel)
        return batch

    async def recv_slab(self) -> tuple[memoryview, memoryview]:
        channel = await self._wait()
        if channel is None:
            return memoryview(b""), memoryview(bytes(8)).cast("q")
        slab = channel.recv_slab()
        self._took(channel)
        return slab

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

    def bytes_received(self, data: Buffer) -> None:
        """Bytes from the pipe, in any buffer; they are used up or copied on return."""
        if self._over and not self._closing:
            return
        try:
            events = self._session.feed(data, self._now_ns())
        except PeerError as error:
            self._fail(error)
            return
        self._arrived(events)

    def readable(self, fd: int) -> bool:
        """A socket of the pipe has something. False: it has ended; raises OSError if it is broken."""
        channel = self._channel
        if channel is None or (self._over and not self._closing):
            data = os.read(fd, READ_BYTES)
            if data:
                self.bytes_received(data)
            return bool(data)
        try:
            seen = channel.look(fd)
        except PeerError as error:
            self._fail(error)
            return True
        if seen < 0:
            return False
        if seen & HEARD_GOODBYE:
            self._arrived(self._session.news())
            return True
        self._answering = True
        if seen & HAS_MESSAGES and (reader := self._reader) is not None and not reader.done():
            reader.set_result(None)
        if seen & HAS_OUTPUT and not self._flush_due:
            self._schedule_flush()
        return True

    def pull(self, source: Source) -> int:
        """Take in what a source has; bytes of it. Raises PeerError if it is the source that cannot be believed."""
        channel = self._channel
        if channel is None or (self._over and not self._closing):
            data = source.read(READ_BYTES)
            if data:
                self.bytes_received(data)
            return len(data)
        try:
            count = source.pull(channel)
        except PeerError as error:
            self._fail(error)
            return 0
        if count:
            self._arrived(self._session.news() if channel.peer_done else ())
        return count

    def _arrived(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Established):
                self._channel = self._session.channel
                self._arm()
                try:
                    if self._on_proved is not None:
                        self._on_proved(event.peer)
                except PeerError as error:
                    self._fail(error)
                    return
                if not self.ready.done():
                    self.ready.set_result(None)
                if self._on_established is not None:
                    self._on_established(self)
            elif isinstance(event, Goodbye):
                self._over = True
                self._reason = self._reason or event.reason or "the peer closed"
                self._session.close(discard=True)
        channel = self._channel
        if self._over or (channel is not None and channel.waiting):
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
        self._fd = -1
        if self._channel is not None:
            self._channel.drop()
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
        if self._direct is not None:
            self._flush()
        else:
            self._schedule_flush()

    # -- inside --------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        peer = self._session.peer
        return f"node {peer.node!r} at {self._remote}" if peer is not None else self._remote

    def _ended(self) -> bool:
        """True if no message will come any more; an error if the stream broke, or if somebody waits already."""
        if self._error is not None:
            raise self._error
        if self._over or self._closing:
            return True
        if self._reader is not None and not self._reader.done():
            raise PeerError(f"two readers wait on the stream to {self._name()}; one is the limit")
        return False

    async def _wait(self) -> Channel | None:
        """The channel as soon as a message is here, None when none will come."""
        while self._channel is None or not self._channel.waiting:
            if self._ended():
                return None
            self._reader = self._loop.create_future()
            await self._reader
        return self._channel

    async def _written(self) -> None:
        waiter = self._loop.create_future()
        self._writers.append(waiter)
        await waiter

    def _sent(self, channel: Channel) -> None:
        if self._answering or channel.queue_bytes >= FLUSH_BYTES:
            self._flush()
        elif not self._flush_due:
            self._schedule_flush()

    def _took(self, channel: Channel) -> None:
        if not self._over and not self._flush_due and channel.has_output:
            self._schedule_flush()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if self._over:
            self._wake_writers()

    def _wake_writers(self) -> None:
        writers, self._writers = self._writers, []
        for waiter in writers:
            if not waiter.done():
                waiter.set_result(None)

    def _schedule_flush(self) -> None:
        self._flush_due = True
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        self._answering = False
        if self._gone.done() or self._paused:
            return
        channel = self._channel
        try:
            if self._direct is not None and channel is not None and self._flushed_handshake:
                self._fd = self._direct.fd
                self._paused = not self._direct.flush(channel)
            else:
                while not self._paused:
                    out = self._session.take_output()
                    if not out:
                        break
                    self._write(out[0] if len(out) == 1 else b"".join(out))
                self._flushed_handshake = channel is not None
        except PeerError as error:
            self._fail(error)
            return
        except OSError as error:
            self._lose(error)
            return
        if self._writers:
            self._wake_writers()  # each looks for itself whether it is his turn
        if self._over and not self._paused and self._session.done:
            self._write(None)  # both sides have said goodbye

    def _lose(self, error: OSError) -> None:
        self._pipe.abort()
        self.pipe_lost(os.strerror(error.errno).lower() if error.errno else str(error))

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
        logger.warning("stream with %s broken: %s", self._name(), error)
        self._break(error)
        last = b"".join(self._session.take_output(0))
        if last:
            self._pipe.write(last)
            self._pipe.close()
        else:
            self._pipe.abort()
        self.pipe_lost("")
