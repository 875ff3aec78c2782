"""Streams over RDMA, and how they come to be.

Two nodes meet over TCP and prove to each other who they are, in a session as any other. Over it the initiator tells how
its queue pair can be reached, the responder connects its own and answers; then both begin a second session, with keys
of its own, whose bytes go over the queue pairs. So strangers get no word with the device, and frames are the same as on
every engine. The TCP connection stays: its end is how one side learns that the other is gone when nothing is under way.

A side that has no device declines with the reason. Then the stream is the TCP session that is there already, or an
error: as `fallback` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from nova.errors import NovaError, PeerError, UnavailableError, UsageError
from nova.transport.base import Identity, Limits, Stream
from nova.transport.rdma.devices import import_pyverbs
from nova.transport.rdma.endpoint import Endpoint, choose_device
from nova.transport.rdma.flow import Offer
from nova.transport.session import CAPABILITIES, NONCE_BYTES, Session
from nova.transport.stream import SessionStream
from nova.transport.tcp import TcpTransport, split_address
from nova.wire import Codec

logger = logging.getLogger("nova.transport")

CAPABILITY = "rdma1"
QUEUE_BYTES_HIGH = 1 << 20
POLLS_MAX = 16
"""Rounds of completions in one turn of the loop; others have their turn as well."""

DataPath = Literal["auto", "c", "pyverbs"]


class Declined(msgspec.Struct, frozen=True, array_like=True, tag="declined", forbid_unknown_fields=True):
    reason: str


_words: Codec[Offer | Declined] = Codec(Offer, Declined)


class RdmaTransport:
    """Streams over RDMA. `listen` and `connect` take the host:port on which the nodes meet over TCP.

    device     name of the RDMA device; without one, the device whose address the TCP connection uses, else the first
    data_path  "c", "pyverbs", or what there is of them
    fallback   a peer without RDMA, or no device here, gives a stream over TCP instead of an error
    """

    def __init__(
        self,
        identity: Identity,
        *,
        key: bytes | None,
        limits: Limits | None = None,
        device: str = "",
        data_path: DataPath = "auto",
        fallback: bool = False,
    ) -> None:
        self._limits = limits or Limits()
        self._identity, self._key = identity, key
        self._device, self._data_path, self._fallback = device, data_path, fallback
        self._tcp = _Meeting(identity, key=key, limits=limits)
        self._pipes: set[RdmaPipe] = set()

    async def listen(self, address: str, accept: Callable[[Stream], Awaitable[None]]) -> str:
        async def met(stream: Stream) -> None:
            try:
                one = await self._respond(stream)
            except (NovaError, TimeoutError) as error:
                logger.warning("no RDMA with node %r: %s", stream.peer.node, error)
                await stream.close(str(error))
                return
            if one is not None:
                await accept(one)

        return await self._tcp.listen(address, met)

    async def connect(self, address: str) -> Stream:
        stream = await self._tcp.connect(address)
        try:
            async with asyncio.timeout(self._limits.handshake_ms_max / 1000):
                return await self._initiate(stream, address)
        except TimeoutError:
            stream.abort("no answer about RDMA")
            raise UnavailableError(f"{address} did not answer about RDMA in time") from None
        except BaseException:
            stream.abort("no RDMA")
            raise

    async def close(self) -> None:
        await asyncio.gather(*(pipe.stream.close("the node shuts down") for pipe in list(self._pipes)))
        await self._tcp.close()

    # -- how a stream comes to be --------------------------------------------------------------------------------

    async def _initiate(self, meeting: Stream, address: str) -> Stream:
        if not _speaks(meeting):
            return self._without(meeting, f"{address} does not speak RDMA: it listens for tcp:// only")
        try:
            endpoint = await self._endpoint(address)
        except (UnavailableError, UsageError) as error:
            meeting.send(_words.encode(Declined(str(error))))
            return self._without(meeting, str(error))
        try:
            meeting.send(_words.encode(endpoint.offer))
            answer = await _word(meeting)
            if isinstance(answer, Declined):
                endpoint.close()
                return self._without(meeting, f"{address} has no RDMA: {answer.reason}")
            endpoint.connect(answer)
            pipe = self._pipe(endpoint, meeting, address, None)
        except BaseException:
            endpoint.close()
            raise
        try:
            await asyncio.shield(pipe.stream.ready)
        except asyncio.CancelledError:
            pipe.stream.abort("given up while connecting")
            raise
        return pipe.stream

    async def _respond(self, meeting: Stream) -> Stream | None:
        if not _speaks(meeting):
            if self._fallback:
                return meeting
            raise PeerError("it does not speak RDMA, and this node takes nothing else here; connect by rdma://")
        async with asyncio.timeout(self._limits.handshake_ms_max / 1000):
            offer = await _word(meeting)
        if isinstance(offer, Declined):
            return self._without(meeting, f"node {meeting.peer.node!r} has no RDMA: {offer.reason}")
        try:
            endpoint = await self._endpoint("")
        except (UnavailableError, UsageError) as error:
            meeting.send(_words.encode(Declined(str(error))))
            return self._without(meeting, str(error))
        try:
            endpoint.connect(offer)
            established = asyncio.get_running_loop().create_future()
            pipe = self._pipe(endpoint, meeting, f"node {meeting.peer.node!r}", established)
            meeting.send(_words.encode(endpoint.offer))
        except BaseException:
            endpoint.close()
            raise
        with contextlib.suppress(NovaError):
            await asyncio.shield(pipe.stream.ready)
            return pipe.stream
        return None

    def _without(self, meeting: Stream, reason: str) -> Stream:
        if not self._fallback:
            raise UnavailableError(reason)
        logger.info("a stream over TCP: %s", reason)
        return meeting

    async def _endpoint(self, address: str) -> Endpoint:
        device, port, gid = choose_device(self._device, split_address(address)[0] if address else "")
        return make_endpoint(self._data_path)(device, port, gid)

    def _pipe(
        self, endpoint: Endpoint, meeting: Stream, remote: str, accepted: asyncio.Future[None] | None
    ) -> RdmaPipe:
        session = Session(
            self._identity,
            key=self._key,
            initiator=accepted is None,
            nonce=os.urandom(NONCE_BYTES),
            now_ns=time.monotonic_ns(),
            limits=self._limits,
        )
        pipe = RdmaPipe(endpoint, meeting, session, remote, self._pipes.discard)
        self._pipes.add(pipe)
        return pipe


class RdmaPipe:
    """The bytes of one stream over an endpoint; what `nova.transport.stream` calls a pipe."""

    def __init__(
        self, endpoint: Endpoint, meeting: Stream, session: Session, remote: str, gone: Callable[[RdmaPipe], None]
    ) -> None:
        self._endpoint, self._meeting, self._gone = endpoint, meeting, gone
        self._loop = asyncio.get_running_loop()
        self._closing = self._ended = self._full = self._due = False
        self.stream = SessionStream(session, self, remote)
        self._loop.add_reader(endpoint.fd, self._readable)
        self._watch = self._loop.create_task(self._companion())
        self._schedule()

    # -- what the stream calls -----------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._ended:
            return
        self._endpoint.write(data)
        try:
            self._endpoint.flush()
        except PeerError:
            self._schedule()  # not from inside the stream: it is in the middle of something
            return
        if self._endpoint.queued_bytes > QUEUE_BYTES_HIGH and not self._full:
            self._full = True
            self.stream.pause_writing()

    def close(self) -> None:
        self._closing = True
        self._schedule()

    def abort(self) -> None:
        self._end()

    # -- what the loop calls -------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if not self._ended:
            self._endpoint.take_event()
            self._work()

    def _schedule(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        """Take what is complete, ask for an event, and look once more: what came in between brings none."""
        self._due = False
        try:
            for _ in range(POLLS_MAX):
                if self._ended:
                    return
                if not self._take():
                    self._endpoint.arm()
                    if not self._take():
                        break
            else:
                self._schedule()
            if self._closing:
                self._endpoint.flush(last=True)
        except PeerError as error:
            self._lost(str(error))
            return
        if self._ended:
            return
        if self._full and self._endpoint.queued_bytes * 2 <= QUEUE_BYTES_HIGH:
            self._full = False
            self.stream.resume_writing()
        if self._closing and self._endpoint.idle:
            self._lost("")

    def _take(self) -> bool:
        arrived = self._endpoint.poll()
        for data in arrived:
            if not self._ended:
                self.stream.bytes_received(data)
        return bool(arrived)

    async def _companion(self) -> None:
        """Waits for the end of the TCP connection, which says that the peer is gone."""
        cause = ""
        try:
            while await self._meeting.recv() is not None:
                pass
        except PeerError as error:
            cause = str(error)
        if self._ended:
            return
        with contextlib.suppress(PeerError):  # its last words may be here already
            while self._take():
                pass
        self._lost("the peer is gone" + (f" ({cause})" if cause else ""))

    # -- the end -------------------------------------------------------------------------------------------------

    def _lost(self, cause: str) -> None:
        self._end()
        self.stream.pipe_lost("" if self._closing else cause)

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._loop.remove_reader(self._endpoint.fd)
        self._endpoint.close()
        self._gone(self)
        if self._closing:
            self._closer = self._loop.create_task(self._meeting.close(self.stream.reason))
        else:
            self._meeting.abort("the RDMA connection is over")
        if asyncio.current_task() is not self._watch:
            self._watch.cancel()


class _Meeting(TcpTransport):
    """TCP between nodes that know of RDMA."""

    _capabilities = (*CAPABILITIES, CAPABILITY)


def _speaks(stream: Stream) -> bool:
    return CAPABILITY in stream._session.capabilities  # type: ignore[attr-defined]


async def _word(stream: Stream) -> Offer | Declined:
    message = await stream.recv()
    if message is None:
        raise PeerError(f"node {stream.peer.node!r} hung up: {stream.reason}")
    return _words.decode(bytes(message))


def make_endpoint(data_path: DataPath) -> Callable[..., Endpoint]:
    """The constructor of a data path. Raises UnavailableError with what is missing."""
    if data_path not in ("auto", "c", "pyverbs"):
        raise UsageError(f"data path {data_path!r} is not known; there are auto, c and pyverbs")
    missing = []
    if data_path != "pyverbs":
        from nova.transport.rdma.native import NativeEndpoint, lack

        if not (why := lack()):
            return NativeEndpoint
        missing.append(f"no compiled data path ({why})")
    if data_path != "c":
        try:
            import_pyverbs("qp")
        except Exception as error:  # a build for another Python or another libibverbs fails in many ways
            missing.append(f"no pyverbs ({error}): apt install python3-pyverbs")
        else:
            from nova.transport.rdma.verbs import VerbsEndpoint

            return VerbsEndpoint
    raise UnavailableError("; ".join(missing))
