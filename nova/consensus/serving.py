"""A member's port for clients: what `ConsensusClient` talks to.

    async with ConsensusEngine(...) as engine, ClientServer(engine, "10.0.0.1:7600", key=client_key):
        await engine.failed()

Frames, proofs and flow control are those of the streams between members, under a key that may be the clients' own:
who holds only that one can't pass for a member. What comes in a turn of the loop is proposed, and answered, together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

from nova.consensus.answering import Answering, ServingOptions
from nova.consensus.dialogue import (
    LEASE,
    LINEARIZABLE,
    LOCAL,
    AskStatus,
    Found,
    MemberStatus,
    Open,
    Propose,
    Query,
    Question,
    Reply,
    Standing,
    client_cluster,
    question_codec,
    reply_codec,
)
from nova.consensus.engine import ConsensusEngine
from nova.consensus.replicated import Answered
from nova.errors import LimitError, NovaError, PeerError, UnavailableError, UsageError
from nova.transport import Identity, Limits, Stream, TcpTransport
from nova.transport.tcp import is_loopback
from nova.transport.tls import Tls
from nova.types import NodeId

log = logging.getLogger("nova.consensus")

TICK_S: Final = 0.02
CLOSE_S: Final = 2.0
"""How long a server that closes waits for answers to what it took."""


class ClientServer:
    """Answers clients of a member. Start the engine first, close it last; `async with` does.

    listen     host:port for clients; not that of the members
    key        what clients prove, 32 bytes or more: the cluster's, or one that members do not share. None only on
               loopback, or with tls
    tls        encrypt, and let in only clients and nodes with certificates; None: plain
    addresses  member -> host:port for clients, of all: clients are told, so that they find the leader and new members
    raises     UsageError if these cannot be
    """

    def __init__(
        self,
        engine: ConsensusEngine,
        listen: str,
        *,
        key: bytes | None = None,
        tls: Tls | None = None,
        cluster: str = "nova",
        addresses: Mapping[NodeId, str] | None = None,
        options: ServingOptions | None = None,
    ) -> None:
        if key is None and tls is None and not is_loopback(listen):
            raise UsageError(f"{listen} can be reached from other machines; give a key for clients, or tls")
        self.options = options or ServingOptions()
        self._engine, self._listen, self._key, self._cluster = engine, listen, key, cluster
        self._tls = tls
        self._addresses = dict(addresses or {})
        # A message holds a command and a few numbers.
        self._command_bytes_max = min(engine.options.entry_bytes_max, self.options.message_bytes_max - 1_024)
        self._core = Answering(
            engine.submit, engine.forget, command_bytes_max=self._command_bytes_max, options=self.options
        )
        self._questions, self._replies = question_codec(), reply_codec()
        self._streams: set[Stream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: list[tuple[Stream, Query, float]] = []  # local reads that wait until enough is applied
        self._standing: Standing | None = None
        self._flush_due = self._closing = self._started = False
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> str:
        """Listen; the address in use. Raises UsageError if that cannot be."""
        if self._started:
            raise UsageError("this server was started before; make a new one")
        self._started = True
        self._loop = asyncio.get_running_loop()
        engine, options = self._engine, self.options
        engine.attach(self._answered, self._core)
        region = self._tls.name.region if self._tls is not None else ""
        identity = Identity(engine.node, region, client_cluster(self._cluster), time.time_ns(), "")
        limits = Limits(message_bytes_max=options.message_bytes_max, queue_bytes_max=options.queue_bytes_max)
        self._transport = TcpTransport(identity, key=self._key, limits=limits, tls=self._tls, use="clients")
        try:
            self.address = await self._transport.listen(self._listen, self._serve)
        except BaseException:
            engine.attach(None)
            raise
        self._addresses.setdefault(engine.node, self.address)
        self._failed = self._loop.create_task(self._until_failed())
        self._tick()
        return self.address

    async def __aenter__(self) -> ClientServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Take nothing more, answer what was taken, close. May be called twice."""
        if self._closing or not self._started:
            self._closing = self._started = True
            return
        self._closing = True
        end = self._loop.time() + CLOSE_S
        while (self._core.calls or self._core.reads) and self._loop.time() < end and not self._failed.done():
            await asyncio.sleep(TICK_S)
        self._flush()
        self._engine.attach(None)
        if self._timer is not None:
            self._timer.cancel()
        for task in [self._failed, *self._tasks]:
            task.cancel()
        await asyncio.gather(self._failed, *self._tasks, return_exceptions=True)
        await asyncio.gather(*(stream.close("the member closes") for stream in list(self._streams)))
        await self._transport.close()

    def set_addresses(self, addresses: Mapping[NodeId, str]) -> None:
        """Where clients find the members, from now on: after a change of members, say. Clients are told."""
        self._addresses = {self._engine.node: self.address, **addresses}

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return len(self._core)

    @property
    def refused(self) -> int:
        """Commands and reads that were refused for overload, so far."""
        return self._core.refused

    # -- streams --

    async def _serve(self, stream: Stream) -> None:
        core = self._core
        try:
            if self._closing:
                raise UnavailableError("the member closes; ask another one")
            if self._failed.done():  # not even a local read: nobody knows what its state is worth
                raise UnavailableError(f"the member {self._engine.node} has stopped; ask another one")
            core.connected(stream)
        except UnavailableError as error:
            await stream.close(str(error))
            return
        self._streams.add(stream)
        reason = ""
        try:
            core.say(stream, self._standing or self._stands())
            self._flush()
            while batch := await stream.recv_batch():
                self._take_all(stream, batch)
        except PeerError as error:
            reason = str(error)
            log.info("client %s of %s: %s", stream.peer.node, self._engine.node, error)
        except UnavailableError as error:
            reason = str(error)
        finally:
            self._streams.discard(stream)
            core.disconnected(stream)
            await stream.close(reason)

    def _take_all(self, stream: Stream, batch: list[memoryview]) -> None:
        if self._closing:  # what is not taken is asked for elsewhere, once the stream ends
            return
        for payload in batch:
            self._take(stream, self._questions.decode(payload))
        self._flush()

    def _take(self, stream: Stream, question: Question) -> None:
        match question:
            case Propose():
                self._core.propose(stream, question)
            case Open():
                self._core.open(stream, question)
            case Query():
                self._query(stream, question)
            case AskStatus():
                self._core.say(stream, self._status(question.id))

    def _answered(self, event: Answered) -> None:
        self._core.answered(event.command, event.outcome, event.position)
        if not self._flush_due and self._core.ready:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """All that is ready for clients, each reply of its own, gathered by their streams."""
        self._flush_due = False
        for stream, reply in self._core.take():
            self._send(stream, reply)

    def _send(self, stream: Any, reply: Reply) -> None:
        try:
            taken = stream.send(self._replies.encode(reply))
        except LimitError as error:
            log.error("an answer of %s for client %s is not sent: %s", self._engine.node, stream.peer.node, error)
            if isinstance(reply, Found) and reply.data:
                self._send(stream, _failed(reply.id, error))
                return
            taken = False
        if not taken and not stream.closed:
            stream.abort("the client does not read its answers")

    # -- reads --

    def _query(self, stream: Stream, query: Query) -> None:
        try:
            if query.consistency not in (LINEARIZABLE, LEASE, LOCAL):
                raise PeerError(f"a read with consistency {query.consistency[:40]!r}")
            self._core.reading(stream)
        except UnavailableError as error:
            self._core.say(stream, _failed(query.id, error))
            return
        if query.consistency == LOCAL:
            if self._engine.applied < query.position:
                end = self._loop.time() + self._engine.options.timeout_ms / 1000
                self._late.append((stream, query, end))
            else:
                self._local(stream, query)
            return
        task = self._loop.create_task(self._read(stream, query))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, stream: Stream, query: Query) -> None:
        engine = self._engine
        try:
            if query.consistency == LEASE and not engine.status().epoch.options.get("lease_reads"):
                raise UsageError("the group does not read by lease; set lease_reads in the options of its protocol")
            found = Found(query.id, await engine.read(query.data), engine.applied)
        except (UsageError, UnavailableError) as error:
            found = _failed(query.id, error)
        self._core.read_done(stream)
        self._reply(stream, found)

    def _local(self, stream: Stream, query: Query) -> None:
        engine = self._engine
        self._core.read_done(stream)
        position = engine.applied
        try:
            self._reply(stream, Found(query.id, engine.machine.read(query.data), position))
        except Exception as error:  # a query changes nothing: it is the asker's trouble, not the member's
            text = f"the machine refused the query: {type(error).__name__}: {error}"
            self._reply(stream, _failed(query.id, UsageError(text)))

    def _reply(self, stream: Stream, found: Found) -> None:
        self._core.say(stream, found)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _look_at_late(self) -> None:
        late, self._late = self._late, []
        now = self._loop.time()
        for stream, query, end in late:
            if stream.closed:
                continue  # its reads went with it
            if self._engine.applied >= query.position:
                self._local(stream, query)
            elif now >= end:
                self._core.read_done(stream)
                text = f"{self._engine.node} has applied {self._engine.applied}, and not {query.position}; ask another"
                self._reply(stream, _failed(query.id, UnavailableError(text)))
            else:
                self._late.append((stream, query, end))

    # -- how the member stands --

    def _stands(self) -> Standing:
        engine = self._engine
        status = engine.status()
        return Standing(
            engine.node, status.core.leader, status.epoch.number, status.epoch.protocol, status.core.members,
            dict(self._addresses), self._command_bytes_max,
        )  # fmt: skip

    def _status(self, id: int) -> MemberStatus:
        status = self._engine.status()
        core, epoch = status.core, status.epoch
        return MemberStatus(
            id, self._engine.node, core.role, core.term, core.leader, epoch.number, epoch.protocol, core.members,
            core.committed, status.applied, len(self._core), self._core.calls,
        )  # fmt: skip

    def _tick(self) -> None:
        self._core.tick(int(TICK_S * 1e9))
        standing = self._stands()
        if standing != self._standing:
            self._standing = standing
            for connection in self._core.connections:
                self._core.say(connection, standing)
        if self._late:
            self._look_at_late()
        self._flush()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    async def _until_failed(self) -> None:
        """A member that has stopped answers nobody: its clients had better know."""
        error = await self._engine.failed()
        log.warning("%s drops its clients: %s", self._engine.node, error)
        for stream in list(self._streams):
            stream.abort(f"the member has stopped: {error}")


def _failed(id: int, error: NovaError) -> Found:
    retry_ns = error.retry_after_ns if isinstance(error, UnavailableError) else 0
    code = UsageError.code if isinstance(error, UsageError) else error.code
    return Found(id, b"", 0, code, str(error), retry_ns)


__all__ = ["ClientServer", "ServingOptions"]
