"""The consensus engine: one member of a replicated state machine on real time, disk and network.

    async with ConsensusEngine("a", {"a": "10.0.0.1:7500", ...}, "/var/lib/group", machine, key=key) as engine:
        answer = await engine.propose(b"...")

A commit is one write and one sync of the leader's log, beside the same at a majority's: commands that come while a sync
is under way share the next. What a member promises (votes, acknowledgements) leaves when it is on its disk, the rest at
once; all that leaves in one turn of the loop shares a frame. Everything that waits has a bound, beyond which callers
are refused and told when to come back.

A disk that fails, or a state that cannot be, ends the member: it falls silent, and whoever waits hears so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from nova._native.commands import Answers, settle_reads
from nova.consensus.callers import Callers, Many, Waiter
from nova.consensus.chain import Switched
from nova.consensus.core import (
    Command,
    Epoch,
    OverloadedError,
    ReadLost,
    UnknownOutcomeError,
)
from nova.consensus.directory import MemberDirectory
from nova.consensus.frames import FrameCodec
from nova.consensus.frontier import Frontier
from nova.consensus.measures import GroupPage
from nova.consensus.options import EngineOptions, EngineStatus
from nova.consensus.pbft.auth import Authenticator
from nova.consensus.protocols import all_messages, protocol_named, protocols
from nova.consensus.replicated import Answered, Checkpoint, ReadsAnswered, ReplicatedConfig, ReplicatedMachine
from nova.consensus.sessions import Code, Machine, Outcome
from nova.errors import LimitError, NovaError, PeerError, UnavailableError, UsageError
from nova.metrics import Registry
from nova.runtime import Runtime, seeded
from nova.transport import Identity, Mesh, TcpTransport
from nova.transport.tcp import is_loopback
from nova.transport.tls import Tls
from nova.types import NodeId, Outputs

log = logging.getLogger("nova.consensus")

EPOCHS_MAX: Final = 64
HAND_OVER_S: Final = 1.0
"""How long a leader that closes waits for another one to take over."""

_Query = tuple[bytes, asyncio.Future[bytes], float, bool, Frontier | None]
"""(query, who waits, when it began, whether it fails when the time of all reads is over, what its session has seen)."""


class Port(Protocol):
    """What a port for clients counts; `nova.consensus.answering.Answering` is one."""

    reads: int
    refused: int
    answers: int

    def __len__(self) -> int:
        """Clients that are connected."""

    @property
    def calls(self) -> int:
        """Commands that wait for an answer."""


class _Reads:
    """Queries that went out as one."""

    __slots__ = ("age", "asked")

    def __init__(self, asked: list[_Query]) -> None:
        self.age = 0
        self.asked = asked


class ConsensusEngine:
    """One member. Make it anywhere; `start` it on the loop that it shall live on, or use it by `async with`.

    node       its name, unique and stable
    members    name -> host:port of every member that is known, itself included: whom to talk to
    directory  its data, made if it is missing; one for each member
    machine    what commands are applied to: deterministic, the same at all, and it never raises
    protocol   what the group began with (`nova.consensus.protocols`)
    voters     who began the group, None: all members. A member that joins later names those, not itself; it takes part
               when a `change` names it
    keys       what makes this member's keys for an epoch of PBFT, and so what makes `pbft` possible; None: it is not
    key        the cluster key, 32 bytes or more, that members prove to each other. None only on loopback, or with tls
    tls        encrypt, and let in only members with certificates, which name them; None: plain
    listen     where to listen, if not at its address among the members
    group      label of its metrics, so that several groups may share `metrics`; "": no label
    raises     UsageError if these cannot be

    A member that has no others may have the address "": it listens nowhere.
    """

    def __init__(
        self,
        node: NodeId,
        members: Mapping[NodeId, str],
        directory: str | os.PathLike[str],
        machine: Machine,
        *,
        protocol: str = "raft",
        voters: Collection[NodeId] | None = None,
        keys: Callable[[NodeId, Epoch], Authenticator] | None = None,
        key: bytes | None = None,
        tls: Tls | None = None,
        cluster: str = "nova",
        listen: str | None = None,
        options: EngineOptions | None = None,
        metrics: Registry | None = None,
        group: str = "",
    ) -> None:
        self.node, self.machine, self.group = node, machine, group
        self.options = options or EngineOptions()
        self.metrics = metrics or Registry()
        self._command_bytes_max = self.options.entry_bytes_max
        self._addresses = dict(members)
        self._path, self._key, self._cluster = Path(directory), key, cluster
        self._tls = tls
        if node not in members:
            raise UsageError(f"{node!r} is not among the members {sorted(members)}; name its own address, too")
        self._listen = listen or members[node]
        reachable = [address for address in (*members.values(), self._listen) if address or len(members) > 1]
        if "" in reachable:
            raise UsageError(f"a member of {dict(members)} has no address; give each its HOST:PORT")
        if key is None and tls is None:
            for address in reachable:
                if not is_loopback(address):
                    raise UsageError(f"{address} can be reached from other machines; give a cluster key or tls")
        self._protocols = protocols(keys)
        protocol_named(protocol, self._protocols)
        given = dict(self.options.protocol)
        if protocol == "raft":
            given.setdefault("tick_ns", self.options.tick_ms * 1_000_000)  # what a lease is worth
        self._voters = voters
        self._genesis = Epoch(0, protocol, tuple(sorted(members if voters is None else voters)), options=given)
        first = node if node in self._genesis.members else next(iter(self._genesis.members), node)
        self._protocols[protocol](first, self._genesis, seeded(), time.monotonic_ns)  # refuses what cannot be, now
        self._codec = FrameCodec(*all_messages())
        self._failure: BaseException | None = None
        self._started = self._serving = self._closing = False
        self._closed: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._checkpointing = False
        self._save_not_before = 0.0
        self._asking: list[_Query] = []
        self._asking_due = False
        self._reading: dict[int, _Reads] = {}
        self._reads = 0
        self._read_id = 0
        self._conditions: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._leader: NodeId | None = None
        self._attached: Callable[[Answered], None] | None = None
        self._port: Port | None = None
        self._log_bytes = self._log_bytes_covered = 0
        self.epochs: deque[Epoch] = deque(maxlen=EPOCHS_MAX)
        """Those that began here since the start, oldest first, and the one that it started in."""

    # -- life --

    async def start(self) -> None:
        """Recover, listen, meet the others; returns when it takes part, which may be before there is a leader.

        raises  what `MemberDirectory` raises, UsageError if the address cannot be listened on
        """
        if self._started:
            raise UsageError(f"the engine of {self.node} was started before; make a new one")
        self._started = True
        self._loop = asyncio.get_running_loop()
        options = self.options
        self._directory = await asyncio.to_thread(
            MemberDirectory,
            self._path,
            node=self.node,
            cluster=self._cluster,
            genesis=self._genesis,
            any_members=self._voters is None,
            segment_bytes=options.segment_bytes,
        )
        try:
            self._replica = ReplicatedMachine(
                self.node,
                self._directory.genesis,
                self.machine,
                protocols=self._protocols,
                random=seeded(),
                now_ns=time.monotonic_ns,
                log_last=lambda: self._directory.log.last,
                config=ReplicatedConfig(
                    entry_bytes_max=options.entry_bytes_max,
                    retry_ticks=options.retry_ticks,
                    queue_max=max(65_536, options.calls_max),
                ),
            )
            first = self._directory.recover(self._replica)  # on this thread: so are all calls of the machine
            self.epochs.append(self._replica.epoch)
            # Unique over restarts: an answer to a read of an earlier life must not answer one of this.
            self._read_id = self._directory.incarnation << 40
            self._callers = Callers(self._replica.submit, lambda: os.urandom(16), calls_max=options.calls_max)
            self._measures = Measures(self)
            await self._connect()
        except BaseException:
            await asyncio.to_thread(self._directory.close)
            raise
        self._mesh.set_peers(self._addresses)
        self._runtime.start()
        self._serving = True
        self._do(first)
        if self._replica.core.status.members == (self.node,):
            self._do(self._replica.lead())  # nobody else can: an election timeout would be waited for in vain

    async def _connect(self) -> None:
        identity = Identity(
            node=self.node,
            region=self._tls.name.region if self._tls is not None else "",
            cluster=self._cluster,
            incarnation=self._directory.incarnation,
            address=self._addresses[self.node],
        )
        self._transport = TcpTransport(identity, key=self._key, tls=self._tls)
        self._mesh = Mesh(
            self._transport,
            identity,
            on_message=self._message,
            on_up=lambda peer: None,
            on_down=lambda peer, reason: None,
            chance=seeded(),
        )
        self._runtime = Runtime(
            _Member(self),
            self._directory.log,
            send=self._send,
            applied=Answers(
                self._callers,
                Answered,
                observe=self._measures.latency.observe,
                clock=time.perf_counter,
                pump=self._pump,
                other=self._applied,
                fatal=self._fatal,
            ),
            fatal=self._fatal,
            tick_ms=self.options.tick_ms,
        )
        try:
            self.address = await self._mesh.listen(self._listen) if self._listen else ""
        except BaseException:
            await self._transport.close()
            raise

    async def __aenter__(self) -> ConsensusEngine:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Take nothing more, let what is under way end, hand leadership over, sync and close. May be called twice."""
        if not self._serving:  # it never did, or could not start
            self._started = self._closing = True
            return
        if self._closed is None:
            self._closing = True
            self._closed = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closed)

    async def _close(self) -> None:
        end = self._loop.time() + self.options.close_ms / 1000
        try:
            if self._failure is None:
                await self._until(lambda: not len(self._callers) and not self._reads, end)
                await self._retire(min(end, self._loop.time() + HAND_OVER_S))
            if self._failure is None:
                await self._runtime.stop()
            if self._saving is not None:
                await asyncio.wait([self._saving])
        finally:
            self._fail_all(UnavailableError(f"the engine of {self.node} is closed; ask another member"))
            self._running_down()
            await self._mesh.close()
            await self._transport.close()
            try:
                await asyncio.to_thread(self._directory.close)
            except NovaError as error:
                if self._failure is None:
                    raise
                log.warning("closing the log of %s: %s", self.node, error)

    async def _retire(self, end: float) -> None:
        """Whoever follows need not wait for an election timeout."""
        status = self._replica.core.status
        connected = {peer.node for peer in self._mesh.connected()}
        heirs = [peer for peer in status.members if peer in connected and peer != self.node]
        if status.role != "leader" or not heirs:
            return
        try:
            self._do(self._replica.transfer(max(heirs, key=lambda peer: status.peers.get(peer, 0))))
        except NovaError as error:
            log.info("leadership of %s is not handed over: %s", self.node, error)
            return
        await self._until(lambda: self._replica.core.leader not in (None, self.node), end)

    def _running_down(self) -> None:
        self._failure = self._failure or UnavailableError(f"the engine of {self.node} is closed")
        self._look()
        self._runtime.halt()

    async def failed(self) -> BaseException:
        """Wait until the member has failed for good; why. The process should then say so, and end."""
        while self._failure is None:
            await self._until(lambda: False, self._loop.time() + 3600)
        return self._failure

    # -- clients --

    async def propose(self, data: bytes, key: bytes = b"", *, timeout_s: float | None = None) -> bytes:
        """Have a command applied, once; the machine's answer. Any member takes it.

        key     commands with different keys commute; b"" with none. Only protocols without a total order look at it
        raises  OverloadedError, SealedError, UnavailableError: it was not applied and will not be. UnknownOutcomeError:
                it may have been applied, or will be, once. UsageError for one that is too large
        """
        self._must_serve()
        if len(data) + len(key) > self._command_bytes_max:
            raise self._too_large(len(data) + len(key))
        future: asyncio.Future[bytes] = self._loop.create_future()
        try:
            self._callers.ask_one(data, key, future, time.perf_counter(), timeout_s is None)
        except OverloadedError:
            self._measures.refused.inc()
            raise
        if timeout_s is not None:
            self._loop.call_later(timeout_s, self._late, future, timeout_s)
        self._runtime.wake()
        return await future

    async def propose_many(self, commands: Sequence[bytes], *, timeout_s: float | None = None) -> list[bytes]:
        """As `propose`, for many at once: they are applied in their order, though not without others between.

        If it raises UnknownOutcomeError, a beginning of them was or will be applied.
        """
        if not commands:
            return []
        answers = await self._ask([(data, b"") for data in commands], timeout_s)
        return [answers] if len(commands) == 1 else answers

    def _ask(self, commands: list[tuple[bytes, bytes]], timeout_s: float | None) -> asyncio.Future[Any]:
        self._must_serve()
        for data, key in commands:
            if len(data) + len(key) > self._command_bytes_max:
                raise self._too_large(len(data) + len(key))
        future: asyncio.Future[Any] = self._loop.create_future()
        try:
            waiter = self._callers.ask(commands, future, time.perf_counter(), timeout_s is None)
        except OverloadedError:
            self._measures.refused.inc()
            raise
        if timeout_s is not None:
            self._loop.call_later(timeout_s, self._late, waiter, timeout_s)
        self._runtime.wake()
        return future

    def _too_large(self, size: int) -> UsageError:
        return UsageError(f"a command of {size} bytes; the limit is {self._command_bytes_max}: split it")

    def _late(self, waiter: Waiter | Many, after_s: float) -> None:
        if waiter.done():
            return
        if self._callers.withdraw(waiter):
            text = f"the command could not be sent within {after_s:g} s and is not applied; {self._who_leads()}"
            waiter.set_exception(UnavailableError(text))
        else:
            text = f"no answer after {after_s:g} s: the command may or may not have been applied, or may be yet; "
            waiter.set_exception(UnknownOutcomeError(text + self._who_leads()))

    def _late_read(self, future: asyncio.Future[bytes], after_s: float) -> None:
        if not future.done():
            future.set_exception(UnavailableError(f"the read has no answer after {after_s:g} s; {self._who_leads()}"))

    def _who_leads(self) -> str:
        leader = self._replica.core.leader
        return f"{leader} leads" if leader else "no leader is known: is a majority of the members up and connected?"

    @property
    def frontier(self) -> Frontier:
        """What a session has seen that was answered here just now: joined to what it had, its reads go behind it."""
        return self._replica.frontier

    async def read(self, query: bytes, *, after: Frontier | None = None, timeout_s: float | None = None) -> bytes:
        """What the machine answers to a query now: linearizable, without an entry in the log. Any member answers.

        after   under `eventual` and `hybrid`: what the session has seen, for which the read waits
        raises  UnavailableError without a leader, OverloadedError; UsageError if the machine refuses the query
        """
        self._must_serve()
        if self._reads >= self.options.calls_max:
            self._measures.refused.inc()
            raise OverloadedError(
                f"{self._reads} reads wait for an answer; the limit is {self.options.calls_max}: try again when some "
                "are answered",
                self._callers.retry_after_ns,
            )
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._reads += 1
        self._asking.append((query, future, self._loop.time(), timeout_s is None, after))
        if timeout_s is not None:
            self._loop.call_later(timeout_s, self._late_read, future, timeout_s)
        if not self._asking_due:
            self._asking_due = True
            self._loop.call_soon(self._ask_reads)
        try:
            return await future
        finally:
            self._reads -= 1

    def _ask_reads(self) -> None:
        """All queries of a turn of the loop go as one; sessions that have seen different things, as one each."""
        self._asking_due = False
        asked = [each for each in self._asking if not each[1].done()]
        self._asking = []
        if self._failure is None:
            for after in dict.fromkeys(each[4] for each in asked):
                self._ask_behind(after, [each for each in asked if each[4] == after])

    def _ask_behind(self, after: Frontier | None, asked: list[_Query]) -> None:
        self._read_id += 1
        try:
            out = self._replica.read_many(self._read_id, [each[0] for each in asked], after)
        except OverloadedError as error:
            for each in asked:
                each[1].set_exception(error)
            return
        except UnavailableError:
            self._asking += asked  # until there is a leader, or a successor, or their time is over
            return
        self._reading[self._read_id] = _Reads(asked)
        self._do(out)

    def _read_again(self, id: int) -> None:
        reads = self._reading.pop(id, None)
        if reads is not None:
            self._replica.forget_read(id)
            self._asking += reads.asked
            self._asking.sort(key=lambda each: each[2])  # the oldest first, for `_ticked`

    def _reads_answered(self, id: int, outcomes: Sequence[Outcome]) -> None:
        reads = self._reading.pop(id, None)
        if reads is None:
            return
        settle_reads(reads.asked, outcomes, Code.OK, _refusal)
        self._measures.reads.inc(len(reads.asked))

    # -- the clients of others: see nova.consensus.serving --

    def attach(self, answered: Callable[[Answered], None] | None, port: Port | None = None) -> None:
        """Who hears what became of commands that were `submit`ted; one at a time, None: nobody any more.

        port  what of it the page of metrics shows
        """
        if answered is not None and self._attached is not None:
            raise UsageError(f"the engine of {self.node} has a server for clients; close it first")
        self._attached, self._port = answered, port

    def submit(self, command: Command) -> None:
        """Take a command that somebody else numbered; raises as `propose`, and `attach`ed is told of its outcome."""
        self._must_serve()
        self._replica.submit(command)
        self._runtime.wake()

    def forget(self, command: Command) -> None:
        """Nobody waits any more for a command that was submitted: it may be applied, or not."""
        self._replica.forget(command)

    @property
    def applied(self) -> int:
        """Position up to which the machine has applied."""
        return self._replica.applied_position

    # -- operators --

    def status(self) -> EngineStatus:
        """How this member stands."""
        return EngineStatus(
            self._replica.core.status,
            self._replica.epoch,
            self._replica.chain.settled,
            self._replica.applied_position,
            self._directory.covered,
            len(self._callers),
            self._reads,
            tuple(sorted(peer.node for peer in self._mesh.connected())),
            None if self._failure is None else str(self._failure),
        )

    async def transfer(self, node: NodeId, *, timeout_s: float = 5.0) -> None:
        """Hand leadership to another voter; returns when it leads. Commands that come meanwhile wait.

        raises  NotLeaderError with who leads; UsageError for a node that is no voter, or a protocol without leaders;
                UnavailableError if it did not take over in time: this member leads on
        """
        self._must_serve()
        self._do(self._replica.transfer(node))
        if not await self._until(lambda: self._replica.core.leader == node, self._loop.time() + timeout_s):
            raise UnavailableError(f"{node} did not take over within {timeout_s:g} s; {self._who_leads()}")

    async def change(
        self,
        voters: Collection[NodeId],
        learners: Collection[NodeId] = (),
        *,
        addresses: Mapping[NodeId, str] | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """Change who votes and who learns, by the protocol's own consensus; returns when the change is committed.

        addresses  of members that are new here; a new member that knows ours calls us anyhow
        raises     NotLeaderError with who leads, UsageError for a change that is none or while one is under way,
                   SealedError; UnknownOutcomeError if it is not committed in time
        """
        self._must_serve()
        self._do(self._replica.change(voters, learners))
        self._addresses |= addresses or {}
        self._mesh.set_peers(self._addresses)
        if not await self._until(lambda: not self._replica.changing, self._loop.time() + timeout_s):
            raise UnknownOutcomeError(f"the change is not committed after {timeout_s:g} s; it may be yet")
        stay = {*voters, *learners, self.node}
        self._addresses = {node: address for node, address in self._addresses.items() if node in stay}
        self._mesh.set_peers(self._addresses)

    async def switch(
        self,
        protocol: str,
        members: Collection[NodeId] = (),
        options: Mapping[str, Any] | None = None,
        *,
        addresses: Mapping[NodeId, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Epoch:
        """Go on with another protocol, or among others, while commands come and are answered; the epoch that began.

        A seal ends the present epoch from within; see `nova.consensus.chain`. Commands that it made void are proposed
        again by those who wait for them. PBFT ends when f + 1 members are asked: call this at as many.

        members    who orders from then on; as now if not told
        addresses  of members that are new here
        raises     UsageError for what cannot start: nothing has changed. UnavailableError while the present epoch is
                   not settled or has no leader, or if another successor came first. UnknownOutcomeError if none came
                   in time
        """
        self._must_serve()
        before = self._replica.epoch.number
        voters = tuple(sorted(members))
        given = dict(options or {})
        if protocol == "raft":
            given.setdefault("tick_ns", self.options.tick_ms * 1_000_000)
        self._addresses |= addresses or {}
        self._mesh.set_peers(self._addresses)
        self._do(self._replica.switch(protocol, voters, given))
        if not await self._until(lambda: self._replica.epoch.number > before, self._loop.time() + timeout_s):
            raise UnknownOutcomeError(f"epoch {before} has not ended after {timeout_s:g} s; it may yet")
        epoch = self._replica.epoch
        if epoch.protocol != protocol or (voters and epoch.members != voters):
            raise UnavailableError(
                f"lost to epoch {epoch.number}: {epoch.protocol} among {list(epoch.members)} was sealed first"
            )
        return epoch

    @property
    def addresses(self) -> dict[NodeId, str]:
        """name -> host:port of the members that this one talks to, itself included."""
        return dict(self._addresses)

    def cut(self, peers: Iterable[NodeId]) -> None:
        """Chaos: break the streams with these members and refuse new ones, until `cut` with others, or none."""
        self._mesh.heal()
        self._mesh.cut(peers)

    # -- the driver's side --

    def _must_serve(self) -> None:
        if not self._serving or self._closing:
            state = "is closed" if self._closing else "is not started"
            raise UnavailableError(f"the engine of {self.node} {state}; ask another member")
        if self._failure is not None:
            raise UnavailableError(f"the member {self.node} has stopped: {self._failure}; ask another one", 10**10)

    def _do(self, outputs: Outputs) -> None:
        """What a core wants done. If the log does not take it, the core knows more than the disk: that is the end."""
        try:
            self._runtime.submit(outputs)
        except Exception as error:
            self._fatal(error)
            return
        self._after()

    def _after(self) -> None:
        leader = self._replica.core.leader
        if leader != self._leader:
            self._leader = leader
            self._measures.leader_changes.inc()
            log.info("%s: %s", self.node, f"{leader} leads" if leader else "no leader is known")
            if leader is not None and self._asking and not self._asking_due:
                self._asking_due = True
                self._loop.call_soon(self._ask_reads)
        if (leader is not None and self._replica.queued) or (
            self._replica.checkpoint_wanted and not self._checkpointing
        ):
            self._runtime.wake()

    def _send(self, peer: NodeId, frame: Any) -> None:
        try:
            self._mesh.send(peer, self._codec.encode(frame))
        except LimitError as error:  # lost, as any message may be
            log.error("a message for %s is not sent: %s", peer, error)

    def _message(self, peer: NodeId, payload: memoryview) -> None:
        try:
            self._runtime.received(peer, self._codec.decode(payload))
        except PeerError:
            raise
        except Exception as error:
            self._fatal(error)

    def _applied(self, event: Any) -> None:
        try:
            self._take(event)
        except Exception as error:
            self._fatal(error)

    def _take(self, event: Any) -> None:
        kind = type(event)
        if kind is Answered:  # none of our own callers
            if self._attached is not None:
                self._attached(event)
        elif kind is ReadsAnswered:
            self._reads_answered(event.id, event.outcomes)
        elif kind is ReadLost:
            for id in event.ids:
                self._read_again(id)
        elif kind is Checkpoint:
            self._saving = self._loop.create_task(self._save(event))
        elif kind is Switched:
            self._switched(event.epoch)
        else:
            more = self._replica.applied(event)
            if more:
                self._do(more)

    def _pump(self) -> None:
        if self._callers.backlog:
            self._callers.pump()
            if self._replica.queued:
                self._runtime.wake()

    def _turn(self) -> Outputs:
        out = self._replica.turn()
        if not self._checkpointing and self._due_for_checkpoint():
            self._checkpointing = self._replica.checkpoint(out)
        return out

    def _switched(self, epoch: Epoch) -> None:
        log.info("%s: epoch %d begins: %s among %s", self.node, epoch.number, epoch.protocol, list(epoch.members))
        self._measures.switches.inc()
        self.epochs.append(epoch)

    def _due_for_checkpoint(self) -> bool:
        options, replica = self.options, self._replica
        if self._loop.time() < self._save_not_before:
            return False
        if replica.checkpoint_wanted:
            return True
        if not replica.since_checkpoint:
            return False
        return replica.since_checkpoint >= options.checkpoint_entries or (
            self._log_bytes - self._log_bytes_covered >= options.checkpoint_bytes
        )

    async def _save(self, checkpoint: Checkpoint) -> None:
        try:
            await asyncio.to_thread(self._directory.save, checkpoint)
            self._log_bytes_covered = self._directory.log.size_bytes
            self._measures.checkpoints.inc()
            if self._failure is None:
                self._do(self._replica.applied(checkpoint))
        except NovaError as error:  # the log is kept, so nothing is lost: again in a while
            log.error("the snapshot of %s is not saved, the log is kept: %s", self.node, error)
            self._replica.not_saved()
            self._save_not_before = self._loop.time() + 10
        except Exception as error:
            self._fatal(error)
        finally:
            self._checkpointing = False

    def _ticked(self) -> None:
        self._log_bytes = self._directory.log.size_bytes
        self._callers.ticked(self.options.tick_ms * 1_000_000)
        self._pump()
        after_s = self.options.timeout_ms / 1000
        for waiter in self._callers.overdue(time.perf_counter() - after_s):
            self._late(waiter, after_s)
        begun = self._loop.time() - after_s
        for asked in (self._asking, *(reads.asked for reads in self._reading.values())):
            for each in asked:
                if each[2] > begun:  # they stand in the order in which they began
                    break
                if each[3]:
                    self._late_read(each[1], after_s)
        for id in [id for id, reads in self._reading.items() if reads.age >= self.options.retry_ticks]:
            self._read_again(id)
        for reads in self._reading.values():
            reads.age += 1
        if self._asking and not self._asking_due:
            self._ask_reads()
        self._look()

    # -- waiting for a state --

    async def _until(self, condition: Callable[[], bool], end: float) -> bool:
        """Whether it came true before the end (on the loop's clock); it is looked at once a tick."""
        while self._failure is None and not condition():
            if self._loop.time() >= end:
                return False
            future: asyncio.Future[None] = self._loop.create_future()
            self._conditions.append((condition, future))
            await asyncio.wait([future], timeout=end - self._loop.time())
            self._conditions = [each for each in self._conditions if each[1] is not future]
        return condition()

    def _look(self) -> None:
        for condition, future in self._conditions:
            if not future.done() and (self._failure is not None or condition()):
                future.set_result(None)

    # -- the end --

    def _fatal(self, error: BaseException) -> None:
        if self._failure is not None:
            return
        log.critical("%s has stopped: %s", self.node, error, exc_info=None if isinstance(error, NovaError) else error)
        self._failure = error
        self._fail_all(UnavailableError(f"the member {self.node} has stopped: {error}; ask another one", 10**10))
        self._look()

    def _fail_all(self, error: UnavailableError) -> None:
        self._callers.fail(error)
        waiting = [*self._asking, *(each for reads in self._reading.values() for each in reads.asked)]
        self._asking, self._reading = [], {}
        for each in waiting:
            if not each[1].done():
                each[1].set_exception(error)


def _refusal(outcome: Outcome) -> UsageError:
    return UsageError(f"the machine refused the query: {outcome.data.decode()}")


class Measures:
    """What the page for Prometheus has of an engine."""

    def __init__(self, engine: ConsensusEngine) -> None:
        page, replica = GroupPage(engine.metrics, engine.group), engine._replica

        def of_port(name: str) -> Callable[[], float]:
            return lambda: 0.0 if engine._port is None else float(getattr(engine._port, name))

        self.latency = page.histogram(
            "nova_consensus_command_seconds", "From the call to the answer of a command, in this process"
        )
        self.reads = page.counter("nova_consensus_reads_total", "Reads answered")
        self.refused = page.counter("nova_consensus_overloaded_total", "Commands and reads refused: too many wait")
        self.checkpoints = page.counter("nova_consensus_checkpoints_total", "Snapshots saved")
        self.switches = page.counter("nova_consensus_switches_total", "Epochs that began here")
        self.leader_changes = page.counter("nova_consensus_leader_changes_total", "Leaders found and lost")
        gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("epoch", "Number of the newest epoch", lambda: replica.epoch.number),
            ("term", "Term, ballot or view", lambda: replica.core.status.term),
            ("leads", "1 if this member leads", lambda: float(replica.core.leader == engine.node)),
            ("committed", "Newest committed position", lambda: replica.core.status.committed),
            ("applied", "Newest applied position", lambda: replica.applied_position),
            ("commands_waiting", "Commands without an answer", lambda: len(engine._callers)),
            ("queue", "Commands that wait to be proposed", lambda: replica.queued),
            ("log_bytes", "Log since it was last shortened", lambda: engine._log_bytes),
            ("peers", "Members with a live stream", lambda: len(engine._mesh.connected())),
            ("sessions", "Sessions that are known", lambda: len(replica.sessions)),
            ("clients", "Clients that are connected to the port for clients", lambda: len(engine._port or ())),
            ("client_commands_waiting", "Commands of these clients without an answer", of_port("calls")),
            ("client_reads_waiting", "Reads of these clients without an answer", of_port("reads")),
            ("client_commands_answered", "Commands of clients answered since the port opened", of_port("answers")),
            ("client_calls_refused", "Commands and reads of clients refused since then: too many", of_port("refused")),
        )
        for name, help, function in gauges:
            page.gauge(f"nova_consensus_{name}", help, function)


class _Member:
    """What the runtime drives: the replica, until it fails. A failed one is silent, whatever comes."""

    def __init__(self, engine: ConsensusEngine) -> None:
        self._engine = engine
        self._replica = engine._replica

    def step(self, sender: NodeId, message: Any) -> Outputs:
        engine = self._engine
        if engine._failure is not None:
            return Outputs()
        out = self._replica.step(sender, message)  # PeerError drops the stream, all else is fatal: see _message
        engine._after()
        return out

    def tick(self) -> Outputs:
        engine = self._engine
        if engine._failure is not None:
            return Outputs()
        try:
            engine._ticked()
            out = self._replica.tick()
        except Exception as error:
            engine._fatal(error)
            return Outputs()
        engine._after()
        return out

    def turn(self) -> Outputs:
        engine = self._engine
        if engine._failure is not None:
            return Outputs()
        try:
            return engine._turn()
        except Exception as error:
            engine._fatal(error)
            return Outputs()


__all__ = ["ConsensusEngine", "EngineOptions", "EngineStatus"]
