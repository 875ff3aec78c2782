"""The sending side of a bulk transfer."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypedDict, Unpack

from nova._native.bulk import BLAKE3, CRC32C, Board
from nova.errors import CorruptionError, NovaError, PeerError, TransferCancelledError, UnavailableError, UsageError
from nova.transport.base import Identity
from nova.transport.bulk_lane import ANSWER_SECONDS, Lane, ask, dial
from nova.transport.bulk_place import Source, SourceLike
from nova.transport.bulk_wire import (
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    CHUNKS_MAX,
    BulkReceipt,
    Call,
    Finish,
    Finished,
    Go,
    Missing,
    Once,
    Open,
    Progress,
    Ready,
    check_key,
    default_identity,
    host_and_port,
)
from nova.transport.striping import STREAMS_MAX, LinkView, StreamCount, streams_for
from nova.transport.telemetry import LinkTelemetry, TcpMeter

__all__ = ["BulkSender", "SendOptions", "bulk_send"]

TICK_SECONDS = 0.05
RETRY_SECONDS_FIRST, RETRY_SECONDS_LAST = 0.05, 1.0
STALL_SECONDS = 10.0
END_GAME_RATIO, END_GAME_SECONDS = 4, 0.25
CHUNK_BYTES = 256 * 1024
CHUNKS_WANTED_MAX = 1 << 18
DIGESTS = {"crc32c": CRC32C, "blake3": BLAKE3}


def chunk_bytes_for(size: int) -> int:
    """Small chunks are lost less, large ones counted easier: 256 KiB until there would be more than 2^18 of them."""
    chunk = CHUNK_BYTES
    while size > chunk * CHUNKS_WANTED_MAX and chunk < CHUNK_BYTES_MAX:
        chunk *= 2
    return chunk


class BulkSender:
    """One object on its way; `bulk_send` describes the arguments. Iterating moves it and tells how far it is.

    Leaving the loop early, or `cancel` in any thread, ends the transfer. `receipt` is there after the loop.
    """

    def __init__(
        self,
        source: SourceLike,
        address: str,
        *,
        key: bytes | None = None,
        identity: Identity | None = None,
        streams: int | None = None,
        streams_max: int = STREAMS_MAX,
        transfer: int | None = None,
        chunk_bytes: int | None = None,
        digest: str | None = None,
        pace_bps: int | None = None,
        stream_pace_bps: int | None = None,
        congestion: str | None = None,
        deadline_s: float | None = None,
        retry_s: float = 30.0,
        telemetry: LinkTelemetry | None = None,
    ) -> None:
        self.target = host_and_port(address)
        check_key(address, key)
        if not 1 <= streams_max <= STREAMS_MAX or not (streams is None or 1 <= streams <= streams_max):
            raise UsageError(f"{streams} streams of at most {streams_max}; both are from 1 to {STREAMS_MAX}")
        if digest is None:
            digest = "blake3"
        if digest not in DIGESTS:
            raise UsageError(f"digest {digest!r} is not known; {' and '.join(DIGESTS)} are")
        if key is not None and digest != "blake3":
            raise UsageError(f"digest {digest!r} with a cluster key; chunks are authenticated by their blake3")
        for name, value in (("pace_bps", pace_bps), ("stream_pace_bps", stream_pace_bps)):
            if value is not None and value < 8:
                raise UsageError(f"{name} of {value} bit/s; a pace is 8 or more, or None")
        self._source = Source(source)
        size = self._source.size
        chunk_bytes = chunk_bytes or chunk_bytes_for(size)
        if not CHUNK_BYTES_MIN <= chunk_bytes <= CHUNK_BYTES_MAX or size > chunk_bytes * CHUNKS_MAX:
            self._source.close()
            raise UsageError(
                f"{size} bytes in chunks of {chunk_bytes}; chunks have from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX} "
                f"bytes, and there are at most {CHUNKS_MAX}"
            )
        self.identity = identity or default_identity()
        self.key = key
        self.congestion = congestion
        self.stream_pace_bps = stream_pace_bps
        # The name of a process that only sends changes with each of them; that of the host does not.
        self.transfer = transfer if transfer is not None else self._source.transfer_id(self.identity.cluster)
        if not 0 <= self.transfer < 2**63:
            raise UsageError(f"transfer {self.transfer} is not a number from 0 to 2^63 - 1")
        self.board = Board(
            self.transfer, size, chunk_bytes, DIGESTS[digest], receiving=False, memory=self._source.memory,
            file=self._source.file, base=self._source.base, pace=(pace_bps or 0) // 8,
        )  # fmt: skip
        self._digest = DIGESTS[digest]
        self._address = address
        self._once = Once("BulkSender")
        self._deadline_s = deadline_s
        self._retry_s = retry_s
        self._streams_max = streams_max
        self._count: StreamCount | None = None
        if streams is None:
            streams = self._start(telemetry)
            self._count = StreamCount(start=streams, streams_max=streams_max)
        self._wanted = streams
        self._telemetry = telemetry
        self._meter = TcpMeter()
        self._lanes: list[Lane] = []
        self._lock = threading.Lock()
        self._incarnation = 0
        self._resumed_bytes: int | None = None
        self._gone_bytes = 0
        self._peak = 0
        self._cancelled = False
        self._started_ns = time.monotonic_ns()
        self._heard_ns = self._started_ns
        self._dial_ns, self._backoff_s = 0, RETRY_SECONDS_FIRST
        self._last_error: Exception | None = None
        self._known_bytes = 0
        self.receipt: BulkReceipt | None = None

    # -- what users call -----------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Progress]:
        """Raises PeerError, UnavailableError, CorruptionError, UsageError, TransferCancelledError, as `bulk_send`."""
        self._once.begin()
        self._started_ns = self._heard_ns = time.monotonic_ns()
        try:
            while True:
                yield from self._move()
                root = self._root()
                if self._finish(root):
                    break
            moved = self._moved_bytes()
            self.receipt = BulkReceipt(
                self.transfer, self._source.name, self.board.size, moved, self._resumed_bytes or 0, self._peak,
                self._seconds(), root,
            )  # fmt: skip
            yield self.progress
        finally:
            self.close()

    def cancel(self) -> None:
        """End it from any thread; what the receiver has stays there."""
        self._cancelled = True
        self.board.poke()

    def close(self) -> None:
        """Let go of sockets, threads and the source. May be called twice."""
        self.board.close()
        for lane in self._lanes:
            lane.cut()
        for lane in self._lanes:
            if lane.attached:  # one that still connects ends by itself, and touches nothing any more
                lane.join()
            self._gone_bytes += lane.stream.moved_bytes
        self._lanes.clear()
        self.board.release()
        self._source.close()

    @property
    def progress(self) -> Progress:
        running = sum(lane.running for lane in self._lanes)
        return Progress(self.transfer, self.board.done_bytes, self.board.size, running, self._seconds())

    # -- what lanes call, in their threads -----------------------------------------------------------------------

    def opening(self) -> Open:
        board = self.board
        name = self._source.name[:255]
        return Open(self.transfer, board.size, board.chunk_bytes, self._digest, name, self._incarnation)

    def attach(self, lane: Lane, ready: Ready) -> None:
        """The receiver is there; what it has in place counts, and only that."""
        with self._lock:
            if ready.incarnation != self._incarnation:
                if ready.map is None:
                    raise PeerError("the receiver changed while a stream was opened")
                if len(ready.map) != (self.board.chunks + 7) // 8:
                    raise PeerError(f"the receiver told a map of {len(ready.map)} bytes for {self.board.chunks} chunks")
                # A new process on the other side lacks what the old one had not made durable. No stream of the old
                # one may tell of chunks any more before the map is laid anew.
                for other in list(self._lanes):
                    if other.attached:
                        other.cut()
                        other.over.wait()
                self.board.reset()
                self.board.mark_map(ready.map)
                self._incarnation = ready.incarnation
                if self._resumed_bytes is None:
                    self._resumed_bytes = self.board.done_bytes
                self._known_bytes = self.board.done_bytes
            self._streams_max = min(self._streams_max, ready.streams_max)
            lane.attached = True
            self._peak = max(self._peak, sum(one.attached and not one.over.is_set() for one in list(self._lanes)))
        self.board.poke()  # the others may follow

    # -- inside --------------------------------------------------------------------------------------------------

    def _start(self, telemetry: LinkTelemetry | None) -> int:
        """How many streams to begin with, by what is known of the link and forecast for it."""
        known = telemetry.estimate(self._address, time.time_ns()) if telemetry is not None else None
        if telemetry is None or known is None:
            return 1
        bandwidth_bps = telemetry.forecast_bps(self._address) or known.bandwidth_bps
        return streams_for(bandwidth_bps, known.rtt_ns, known.loss_ratio, streams_max=self._streams_max)

    def _seconds(self) -> float:
        return (time.monotonic_ns() - self._started_ns) / 1e9

    def _moved_bytes(self) -> int:
        return self._gone_bytes + sum(lane.stream.moved_bytes for lane in self._lanes)

    def _check(self) -> None:
        if self._cancelled:
            raise TransferCancelledError(self._so_far("cancelled"))
        if self._deadline_s is not None and self._seconds() > self._deadline_s:
            raise UnavailableError(self._so_far(f"not finished within {self._deadline_s:g} s"))

    def _so_far(self, what: str) -> str:
        return (
            f"transfer {self.transfer:016x} to {self._address} {what}: {self.board.done_bytes} of {self.board.size} "
            f"bytes are there; send again to go on"
        )

    def _move(self) -> Iterator[Progress]:
        events = self.board.events
        while not (self._incarnation and self.board.complete):
            self._check()
            self._reap()
            self._steer()
            if self._incarnation and self.board.complete:
                break
            events = self.board.wait(events, TICK_SECONDS)
            yield self.progress

    def _reap(self) -> None:
        """Look after the lanes that ended, and decide whether it makes sense to go on."""
        now_ns = time.monotonic_ns()
        for lane in [lane for lane in self._lanes if lane.over.is_set()]:
            lane.join()
            self._lanes.remove(lane)
            self._gone_bytes += lane.stream.moved_bytes
            self._meter.forget(lane)
            error = lane.error
            if error is None:
                continue
            first = not self._incarnation and not isinstance(error, UnavailableError)
            if lane.local or first or isinstance(error, UsageError | CorruptionError):
                raise error
            self._last_error = error
            self._dial_ns = now_ns + int(self._backoff_s * 1e9)
            self._backoff_s = min(RETRY_SECONDS_LAST, self._backoff_s * 2)
        if self.board.done_bytes != self._known_bytes or any(lane.running for lane in self._lanes):
            self._known_bytes = self.board.done_bytes
            self._heard_ns = now_ns
        if not self._lanes and now_ns - self._heard_ns > self._retry_s * 1e9:
            raise UnavailableError(
                self._so_far(f"given up after {self._retry_s:g} s without a connection ({self._last_error})")
            )

    def _steer(self) -> None:
        """As many streams as it takes, none that stalls, none that holds up the end."""
        now_ns = time.monotonic_ns()
        running = [lane for lane in self._lanes if lane.running]
        if running and any(lane.stream.moved_bytes for lane in running):
            self._backoff_s = RETRY_SECONDS_FIRST
        moved_bytes = self._moved_bytes()  # not what is done: a receiver may have had some of it before
        view = self._meter.look(now_ns, moved_bytes, {lane: lane.sock for lane in running})
        if self._telemetry is not None:
            self._telemetry.observe(self._address, time.time_ns(), view)
        if self._count is not None and self._incarnation:
            self._wanted = self._count.step(LinkView(now_ns, moved_bytes, view.rtt_ns, len(running)))
        self._wanted = min(self._wanted, self._streams_max)
        staying = [lane for lane in self._lanes if not lane.leaving]
        chunks_left = self.board.chunks - self.board.done
        # The first stream learns what is in place; all others follow it. More streams than chunks have nothing to do.
        room = min(self._wanted, max(1, chunks_left)) if self._incarnation else 1
        while len(staying) < room and now_ns >= self._dial_ns:
            lane = Lane(self)
            self._lanes.append(lane)
            staying.append(lane)
        for lane in staying[self._wanted :]:
            lane.leave()
        for lane in running:
            stream = lane.stream
            oldest_ns = stream.oldest_ns
            if oldest_ns and now_ns - max(oldest_ns, stream.heard_ns) > STALL_SECONDS * 1e9:
                lane.cut()
        self._end_game(now_ns, running)

    def _end_game(self, now_ns: int, running: list[Lane]) -> None:
        """When all that is left is under way, a stream that is much slower than one without work hands its own over."""
        under_way = sum(lane.stream.waiting for lane in running)
        idle = [lane for lane in running if not lane.stream.waiting and not lane.leaving]
        if not idle or self.board.chunks - self.board.done > under_way:
            return

        def bytes_per_s(lane: Lane) -> float:
            return lane.stream.moved_bytes / max(1e-3, (now_ns - lane.started_ns) / 1e9)

        best = max(map(bytes_per_s, idle))
        for lane in running:
            left = lane.stream.waiting * self.board.chunk_bytes
            if (
                left
                and best > 0
                and left / max(bytes_per_s(lane), 1.0) > END_GAME_RATIO * left / best + END_GAME_SECONDS
            ):
                lane.cut()

    def _root(self) -> bytes:
        """The digest of all; chunks that an earlier process sent are read for it."""
        code, cause = self.board.fill()
        if code:
            text = os.strerror(cause).lower() if cause else "it became shorter"
            raise UnavailableError(f"the source cannot be read to its end: {text}")
        return self.board.root()

    def _finish(self, root: bytes) -> bool:
        """Whether the other side has the whole object. False: it lost some of it, and has to be asked what."""
        while True:
            self._check()
            try:
                with dial(self.target, ANSWER_SECONDS) as sock:
                    call = Call(sock, self.identity, key=self.key, initiator=True, seconds=ANSWER_SECONDS)
                    answer = ask(call, Finish(self.transfer, root))
                    if isinstance(answer, Missing):
                        # What this side took for acknowledged went down with a receiver before it was durable.
                        self._incarnation = 0
                        self._heard_ns = time.monotonic_ns()
                        return False
                    if not isinstance(answer, Finished) or answer.root != root:
                        raise PeerError(f"the receiver answered {type(answer).__name__} where Finished was due")
                    with contextlib.suppress(NovaError):  # it need not remember the end for this side any more
                        call.send(Go())
                return True
            except (UnavailableError, PeerError) as error:
                self._last_error = error
                if time.monotonic_ns() - self._heard_ns > self._retry_s * 1e9:
                    raise UnavailableError(self._so_far(f"not confirmed ({error})")) from None
                self.board.wait(self.board.events, self._backoff_s)
                self._backoff_s = min(RETRY_SECONDS_LAST, self._backoff_s * 2)


class SendOptions(TypedDict, total=False):
    """What `bulk_send` and `BulkSender` take by name; `bulk_send` describes it."""

    key: bytes | None
    identity: Identity | None
    streams: int | None
    streams_max: int
    transfer: int | None
    chunk_bytes: int | None
    digest: str | None
    pace_bps: int | None
    stream_pace_bps: int | None
    congestion: str | None
    deadline_s: float | None
    retry_s: float
    telemetry: LinkTelemetry | None


def bulk_send(
    source: SourceLike,
    address: str,
    *,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[SendOptions],
) -> BulkReceipt:
    """Send one object to the `bulk_recv` or `BulkListener` at `address`, and return when it is verified there.

    source           a path; (descriptor, offset, size); or a contiguous buffer. It must not change meanwhile
    address          host:port
    key              the cluster key, 32 bytes or more; without one only on loopback
    identity         who this is; both sides must be of one cluster
    streams          how many TCP streams; None: as many as pay (`StreamCount`), up to streams_max (32)
    transfer         a number from 0 to 2^63 - 1 that names the transfer on both sides. Without one, a file's path, size
                     and time of change make it, so that a new process goes on; other sources get a new one
    chunk_bytes      4 KiB to 16 MiB; None: 256 KiB, more for objects over 64 GiB
    digest           "blake3", or, without a key, "crc32c": several times faster, and no help against intent
    pace_bps         bit/s of all streams together; stream_pace_bps of each, by the kernel's pacing
    congestion       the kernel's congestion control by name; None: the machine's default
    deadline_s       seconds until it is given up; retry_s seconds without any connection
    telemetry        where to note bandwidth, round trips and loss of the link, and to find what was noted before
    progress         called about twenty times a second, in this thread

    raises  UsageError or LimitError if source, arguments or destination do not fit; PeerError if the other side is not
            one of ours; UnavailableError if it is away too long, has no room, or the deadline is over; CorruptionError
            if the digests differ in the end; TransferCancelledError
    """
    sender = BulkSender(source, address, **options)
    for now in sender:
        if progress is not None:
            progress(now)
    assert sender.receipt is not None
    return sender.receipt
