"""One live stream to every peer: dials, redials, settles double dials, refuses strangers in a known name.

Which of two streams to the same life of a peer stays is decided alike on both sides: of two directions the one whose
initiator has the smaller name; of one direction the newer, for its initiator knows that the older one is dead.
A higher incarnation always replaces a lower one. Messages in a stream that loses are lost: whoever sits on a mesh
already lives with loss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping

import msgspec

from nova.errors import NovaError, PeerError
from nova.transport.base import Buffer, Identity, Stream, Transport
from nova.types import NodeId, Random

logger = logging.getLogger("nova.transport")

BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 5.0
LARGER_NAME_WAITS_SECONDS = 0.2  # the smaller name dials first, so that double dials are rare


class PeerStats(msgspec.Struct, frozen=True):
    """What the mesh knows of one peer; totals run over all its streams."""

    address: str
    connected: bool
    incarnation: int
    sent_bytes: int
    received_bytes: int
    rtt_ms: float
    queue_bytes: int


class _Peer:
    __slots__ = ("received_bytes", "rtt_ns", "sent_bytes", "stream")

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.sent_bytes = 0
        self.received_bytes = 0
        self.rtt_ns = 0


class _Dial:
    __slots__ = ("address", "kick", "node", "task")

    def __init__(self, address: str, node: NodeId | None) -> None:
        self.address = address
        self.node = node
        self.kick = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Mesh:
    """Keeps the streams of one node.

    on_message  one message of a peer; must not block, its memoryview stays valid as long as it is held
    on_up       a peer without a stream has one now; also when a new life of it replaces the old
    on_down     its last stream ended, with the reason in one line
    chance      for the jitter of redials
    """

    def __init__(
        self,
        transport: Transport,
        identity: Identity,
        *,
        on_message: Callable[[NodeId, memoryview], None],
        on_up: Callable[[Identity], None],
        on_down: Callable[[Identity, str], None],
        chance: Random,
    ) -> None:
        self._transport = transport
        self._identity = identity
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._chance = chance
        self._wanted: dict[NodeId, _Dial] = {}
        self._seeds: dict[str, _Dial] = {}
        self._peers: dict[NodeId, _Peer] = {}
        self._cut: frozenset[NodeId] = frozenset()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def listen(self, address: str) -> str:
        """Accept peers; returns the address in use."""
        return await self._transport.listen(address, self.accept)

    async def accept(self, stream: Stream) -> None:
        """Serve a stream that the transport accepted; returns when it has ended."""
        await self._serve(stream)

    def set_peers(self, peers: Mapping[NodeId, str]) -> None:
        """Keep a stream to exactly these nodes; streams that others opened to us stay until they end."""
        for node in [n for n, dial in self._wanted.items() if peers.get(n) != dial.address]:
            self._stop(self._wanted.pop(node))
        for node, address in peers.items():
            if node != self._identity.node and node not in self._wanted and not self._closed:
                self._wanted[node] = self._start(_Dial(address, node))

    def dial(self, address: str) -> None:
        """Keep trying this address, whose node is not known yet, until it answered or is forgotten."""
        if address not in self._seeds and not self._closed:
            self._seeds[address] = self._start(_Dial(address, None))

    def forget(self, address: str) -> None:
        """Stop trying an address given to `dial`; a stream that it led to stays."""
        if (dial := self._seeds.pop(address, None)) is not None:
            self._stop(dial)

    def send(self, node: NodeId, payload: Buffer) -> bool:
        """Queue a message. False if there is no stream or its queue is full. Never waits.

        raises  LimitError for a message that the peer would never accept
        """
        peer = self._peers.get(node)
        return peer is not None and peer.stream is not None and peer.stream.send(payload)

    def connected(self) -> list[Identity]:
        """Who has a live stream."""
        return [peer.stream.peer for peer in self._peers.values() if peer.stream is not None]

    def cut(self, nodes: Iterable[NodeId]) -> None:
        """Chaos: break the streams with these nodes and refuse new ones until `heal`."""
        self._cut = frozenset(nodes)
        for node in self._cut:
            peer = self._peers.get(node)
            if peer is not None and peer.stream is not None:
                stream = peer.stream
                self._down(peer, stream, "cut on purpose")
                stream.abort("cut on purpose")

    def heal(self) -> None:
        """End every cut and redial at once."""
        self._cut = frozenset()
        for dial in (*self._wanted.values(), *self._seeds.values()):
            dial.kick.set()

    @property
    def cuts(self) -> frozenset[NodeId]:
        return self._cut

    def stats(self) -> dict[NodeId, PeerStats]:
        """Every peer that is wanted or was ever connected."""
        out = {}
        for node in sorted(self._wanted.keys() | self._peers.keys()):
            peer = self._peers.get(node) or _Peer()
            dial = self._wanted.get(node)
            stream = peer.stream
            now = stream.stats if stream is not None else None
            rtt_ns = now.rtt_ns if now is not None and now.rtt_ns else peer.rtt_ns
            out[node] = PeerStats(
                address=dial.address if dial is not None else stream.peer.address if stream is not None else "",
                connected=stream is not None,
                incarnation=stream.peer.incarnation if stream is not None else 0,
                sent_bytes=peer.sent_bytes + (now.sent_bytes if now is not None else 0),
                received_bytes=peer.received_bytes + (now.received_bytes if now is not None else 0),
                rtt_ms=rtt_ns / 1e6,
                queue_bytes=now.queue_bytes if now is not None else 0,
            )
        return out

    async def close(self, reason: str = "the node shuts down") -> None:
        """Send what is queued, say goodbye to everybody, stop dialling. May be called twice."""
        self._closed = True
        for dial in (*self._wanted.values(), *self._seeds.values()):
            self._stop(dial)
        self._wanted.clear()
        self._seeds.clear()
        streams = [peer.stream for peer in self._peers.values() if peer.stream is not None]
        await asyncio.gather(*(stream.close(reason) for stream in streams))
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- dialling ------------------------------------------------------------------------------------------------

    def _start(self, dial: _Dial) -> _Dial:
        dial.task = asyncio.get_running_loop().create_task(self._keep(dial))
        self._tasks.add(dial.task)
        dial.task.add_done_callback(self._ended)
        return dial

    def _stop(self, dial: _Dial) -> None:
        if dial.task is not None:
            dial.task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the mesh failed", exc_info=task.exception())

    async def _keep(self, dial: _Dial) -> None:
        """Dial whenever there is no stream, for as long as this dial is wanted."""
        failures = 0
        if dial.node is not None and dial.node < self._identity.node:
            await self._pause(dial, LARGER_NAME_WAITS_SECONDS)
        while True:
            if dial.node is not None and (dial.node in self._cut or self._live(dial.node)):
                # Whoever ends the stream or the cut kicks us.
                await dial.kick.wait()
                dial.kick.clear()
                failures = 0
                continue
            stream: Stream | None = None
            try:
                stream = await self._transport.connect(dial.address)
                failures = 0 if self._known(dial, stream) else failures + 1
            except NovaError as error:
                level = logging.INFO if failures == 0 else logging.DEBUG
                logger.log(level, "dialling %s at %s: %s", dial.node or "a seed", dial.address, error)
                failures += 1
            if stream is not None and failures == 0:
                if dial.node is None:
                    self._seeds.pop(dial.address, None)
                    await self._serve(stream)
                    return
                await self._serve(stream)
                if self._live(dial.node):
                    continue
                failures = 1
            elif stream is not None:
                if stream.peer == self._identity:
                    await stream.close("this is the node itself")
                    self._seeds.pop(dial.address, None)
                    return
                await stream.close(f"expected node {dial.node!r} here")
            ceiling = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2 ** min(failures, 16))
            await self._pause(dial, ceiling * (0.5 + self._chance.random() / 2))

    async def _pause(self, dial: _Dial, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await dial.kick.wait()
        except TimeoutError:
            pass
        dial.kick.clear()

    def _known(self, dial: _Dial, stream: Stream) -> bool:
        node = stream.peer.node
        if node == self._identity.node:
            if stream.peer != self._identity:  # the same in all is this node, dialled by its own address
                logger.error(
                    "%s answers as %r, the name of this node: two nodes must not share a name", dial.address, node
                )
            return False
        if dial.node is not None and node != dial.node:
            logger.warning("%s answers as %r, expected %r", dial.address, node, dial.node)
            return False
        return True

    def _live(self, node: NodeId) -> bool:
        peer = self._peers.get(node)
        return peer is not None and peer.stream is not None and not peer.stream.closed

    # -- streams -------------------------------------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        """Take part in settling, then deliver until the stream ends."""
        refusal = self._refusal(stream)
        if refusal:
            await stream.close(refusal)
            return
        identity = stream.peer
        peer = self._peers.setdefault(identity.node, _Peer())
        old, peer.stream = peer.stream, stream
        if old is not None:
            self._account(peer, old)
            self._aside(old.close("another stream between the same nodes took its place"))
            if old.peer.incarnation != identity.incarnation:
                self._on_down(old.peer, f"incarnation {identity.incarnation} took its place")
                self._on_up(identity)
        else:
            logger.info(
                "node %s (%s, incarnation %s) is connected", identity.node, identity.region, identity.incarnation
            )
            self._on_up(identity)
        reason = ""
        try:
            while batch := await stream.recv_batch():
                for message in batch:
                    self._on_message(identity.node, message)
        except PeerError as error:
            reason = str(error)
        except Exception as error:
            # A bug above must cost one stream, not the dialling of this peer nor the node.
            logger.exception("a message of node %s could not be handled: its stream is dropped", identity.node)
            reason = f"a message could not be handled: {error!r}"
        finally:
            self._down(peer, stream, reason or stream.reason or "the peer closed")
            if not stream.closed:
                stream.abort("nobody reads it any more")
        await stream.close()

    def _refusal(self, stream: Stream) -> str:
        """Why this stream must go; empty if it may stay."""
        identity = stream.peer
        if self._closed:
            return "the node shuts down"
        if identity == self._identity:
            return "this is the node itself"
        if identity.node == self._identity.node:
            logger.error(
                "node %s at %s has the name of this node: refused; give every node its own name",
                identity.node,
                identity.address,
            )
            return f"the name {identity.node!r} is taken by the node you called; give every node its own name"
        if identity.node in self._cut:
            return "cut on purpose"
        peer = self._peers.get(identity.node)
        old = peer.stream if peer is not None else None
        if old is None or old.closed or identity.incarnation > old.peer.incarnation:
            return ""
        if identity.address != old.peer.address:
            logger.error(
                "node %s at %s is refused: a node of that name runs at %s with incarnation %s; "
                "give every node its own name",
                identity.node, identity.address, old.peer.address, old.peer.incarnation,
            )  # fmt: skip
            return (
                f"the name {identity.node!r} is taken by the node at {old.peer.address}; give every node its own name"
            )
        if identity.incarnation < old.peer.incarnation:
            return f"incarnation {identity.incarnation} is over, {old.peer.incarnation} is here"
        if stream.initiator == old.initiator:
            return ""
        return (
            ""
            if stream.initiator == (self._identity.node < identity.node)
            else "another stream between the same nodes stays"
        )

    def _down(self, peer: _Peer, stream: Stream, reason: str) -> None:
        if peer.stream is not stream:
            return
        self._account(peer, stream)
        peer.stream = None
        identity = stream.peer
        logger.info("node %s is disconnected: %s", identity.node, reason)
        self._on_down(identity, reason)
        if (dial := self._wanted.get(identity.node)) is not None:
            dial.kick.set()

    def _account(self, peer: _Peer, stream: Stream) -> None:
        stats = stream.stats
        peer.sent_bytes += stats.sent_bytes
        peer.received_bytes += stats.received_bytes
        peer.rtt_ns = stats.rtt_ns or peer.rtt_ns

    def _aside(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)


__all__ = ["Mesh", "PeerStats"]
