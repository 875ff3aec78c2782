"""The transport seam without a network: the real sessions and streams over in-memory links.

`Links` is the network of one simulation. Like TCP it loses and reorders nothing while a link lives: what a one-way cut
holds back arrives after the heal, unless the session gave up before. Runs under `nova.sim.loop` and any asyncio loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from nova.errors import UnavailableError, UsageError
from nova.transport.base import Identity, Limits, Stream
from nova.transport.session import NONCE_BYTES, Session
from nova.transport.stream import SessionStream, logger
from nova.types import NodeId, Random

Delay = Callable[[NodeId, NodeId], float]


def _virtual_ns() -> int:
    return int(asyncio.get_running_loop().time() * 1e9)


class Links:
    """All links of one simulated network.

    chance  jitter and nonces come from here: one seed, one history
    delay   seconds from a node to another, one way
    jitter_ratio   how much a delay may grow, drawn anew for every write; order is kept
    """

    def __init__(self, chance: Random, *, delay: Delay | float = 0.0, jitter_ratio: float = 0.0) -> None:
        self.chance = chance
        self.jitter_ratio = jitter_ratio
        self._delay = delay
        self._listeners: dict[str, SimTransport] = {}
        self._pipes: set[_Pipe] = set()
        self._cuts: set[tuple[NodeId, NodeId]] = set()
        self._port = 1

    def cut(self, source: NodeId, target: NodeId) -> None:
        """From now on nothing gets from `source` to `target`; the other way still works."""
        self._cuts.add((source, target))

    def heal(self, source: NodeId | None = None, target: NodeId | None = None) -> None:
        """End the cuts from `source` to `target`; of all nodes, where None."""
        self._cuts = {
            (a, b)
            for a, b in self._cuts
            if (source is not None and a != source) or (target is not None and b != target)
        }
        for pipe in sorted(self._pipes, key=lambda pipe: pipe.number):
            pipe.move()

    def break_streams(self, one: NodeId, other: NodeId) -> None:
        """Reset every stream between two nodes, as a rebooting router would."""
        for pipe in sorted(self._pipes, key=lambda pipe: pipe.number):
            if {pipe.source, pipe.target} == {one, other}:
                pipe.abort()

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        return (source, target) in self._cuts

    def delay_s(self, source: NodeId, target: NodeId) -> float:
        base = self._delay(source, target) if callable(self._delay) else self._delay
        return base * (1 + self.jitter_ratio * self.chance.random()) if self.jitter_ratio else base

    def nonce(self) -> bytes:
        return bytes(self.chance.randrange(256) for _ in range(NONCE_BYTES))


class SimTransport:
    """`Transport` over `Links`: same sessions, same limits, same errors as TCP."""

    def __init__(self, identity: Identity, links: Links, *, key: bytes | None, limits: Limits | None = None) -> None:
        self.identity = identity
        self._links = links
        self._key = key
        self._limits = limits or Limits()
        self._accept: Callable[[Stream], Awaitable[None]] | None = None
        self._addresses: list[str] = []
        self._streams: dict[SessionStream, None] = {}  # a set would forget the order, and with it the history
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._closed = False

    async def listen(self, address: str, accept: Callable[[Stream], Awaitable[None]]) -> str:
        if self._closed:
            raise UsageError("this transport is closed; make a new one to listen")
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit():
            raise UsageError(f"address {address!r} is not host:port")
        if int(port) == 0:
            address = f"{host}:{self._links._port}"
            self._links._port += 1
        if address in self._links._listeners:
            raise UsageError(f"address {address} is in use by another process: stop it or choose another port")
        self._links._listeners[address] = self
        self._addresses.append(address)
        self._accept = accept
        return address

    async def connect(self, address: str) -> Stream:
        if self._closed:
            raise UsageError("this transport is closed; make a new one to connect")
        links, here = self._links, self.identity.node
        there = links._listeners.get(address)
        if there is None:
            await asyncio.sleep(0)
            raise UnavailableError(f"cannot connect to {address}: connection refused")
        node = there.identity.node
        if links.is_cut(here, node) or links.is_cut(node, here):
            await asyncio.sleep(self._limits.handshake_ms_max / 1000)
            raise UnavailableError(f"no answer from {address} within {self._limits.handshake_ms_max / 1000:g} s")
        out, back = _Pipe(links, here, node), _Pipe(links, node, here)
        out.other, back.other = back, out
        stream = out.stream = self._stream(out, address, initiator=True, accepted=None)
        back.stream = there._stream(back, f"sim:{here}", initiator=False, accepted=there._accepted)
        try:
            await asyncio.shield(stream.ready)
        except asyncio.CancelledError:
            stream.abort("given up while connecting")
            raise
        return stream

    async def close(self) -> None:
        self._closed = True
        for address in self._addresses:
            self._links._listeners.pop(address, None)
        self._addresses.clear()
        await asyncio.gather(*(stream.close("the node shuts down") for stream in list(self._streams)))
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def crash(self) -> None:
        """The process is gone: no goodbye, every stream resets."""
        self._closed = True
        for address in self._addresses:
            self._links._listeners.pop(address, None)
        for stream in list(self._streams):
            stream.abort("crashed")
        for task in list(self._tasks):
            task.cancel()

    def _stream(
        self, pipe: _Pipe, remote: str, *, initiator: bool, accepted: Callable[[SessionStream], None] | None
    ) -> SessionStream:
        session = Session(
            self.identity,
            key=self._key,
            initiator=initiator,
            nonce=self._links.nonce(),
            now_ns=_virtual_ns(),
            limits=self._limits,
        )
        stream = SessionStream(session, pipe, remote, on_established=accepted, on_closed=self._gone, clock=_virtual_ns)
        self._streams[stream] = None
        return stream

    def _gone(self, stream: SessionStream) -> None:
        self._streams.pop(stream, None)

    def _accepted(self, stream: SessionStream) -> None:
        accept = self._accept
        assert accept is not None

        async def serve() -> None:
            await accept(stream)

        task = asyncio.get_running_loop().create_task(serve())
        self._tasks[task] = None
        task.add_done_callback(self._accept_done)

    def _accept_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            logger.error("serving a peer failed", exc_info=task.exception())


class _Pipe:
    """One direction of a link. Bytes wait here for their time, and for the end of a cut."""

    def __init__(self, links: Links, source: NodeId, target: NodeId) -> None:
        self.links = links
        self.source = source
        self.target = target
        self.number = links._port
        links._port += 1
        self.other: _Pipe | None = None
        self.stream: SessionStream | None = None
        self._waiting: list[tuple[float, bytes | None]] = []
        self._last = 0.0
        self._dead = False
        links._pipes.add(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._put(bytes(data))

    def close(self) -> None:
        self._put(None)

    def abort(self) -> None:
        if self._dead:
            return
        self._kill()
        assert self.other is not None
        self.other._kill()
        asyncio.get_running_loop().call_soon(self._lost, "connection reset")

    def _kill(self) -> None:
        self._dead = True
        self._waiting.clear()
        self.links._pipes.discard(self)

    def _lost(self, cause: str) -> None:
        for pipe in (self, self.other):
            if pipe is not None and pipe.stream is not None:
                pipe.stream.pipe_lost(cause)

    def _put(self, data: bytes | None) -> None:
        if self._dead:
            return
        loop = asyncio.get_running_loop()
        due = self._last = max(self._last, loop.time() + self.links.delay_s(self.source, self.target))
        self._waiting.append((due, data))
        loop.call_at(due, self.move)

    def move(self) -> None:
        """Hand over what is due, unless the way is cut."""
        if not self._waiting or self.links.is_cut(self.source, self.target):
            return
        now = asyncio.get_running_loop().time() + 1e-9
        while self._waiting and self._waiting[0][0] <= now:
            _, data = self._waiting.pop(0)
            assert self.other is not None
            if data is None:
                self._kill()
                self.other._kill()
                self._lost("")
            elif self.other.stream is not None:
                self.other.stream.bytes_received(data)
