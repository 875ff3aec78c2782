"""A client of a consensus group over the network.

    async with ConsensusClient(["10.0.0.1:7600", "10.0.0.2:7600", "10.0.0.3:7600"], key=client_key) as client:
        answer = await client.propose(b"...")

It finds the leader, goes where that goes, and asks again what has no answer, under the same session and number: each
command takes effect once. What is asked for in one turn of the loop travels together. Calls of one client take effect
in the order in which they were made (where the protocol has one order): when one is refused, so are those behind it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final

import msgspec

from nova.consensus.asking import Asking
from nova.consensus.callers import Many, Waiter
from nova.consensus.core import UnknownOutcomeError
from nova.consensus.dialogue import (
    LINEARIZABLE,
    MemberStatus,
    Propose,
    Standing,
    client_cluster,
    question_codec,
    reply_codec,
)
from nova.errors import LimitError, PeerError, UnavailableError, UsageError
from nova.transport import Identity, Limits, Stream, TcpTransport
from nova.transport.tcp import is_loopback, split_address
from nova.transport.tls import Tls
from nova.types import NodeId

log = logging.getLogger("nova.consensus")

AVOID_S: Final = 1.0
"""A member that could not be reached, or said nothing, is not the first to be asked for so long."""
PAUSE_S_MIN: Final = 0.02
PAUSE_S_MAX: Final = 0.5


class ClientOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may set.

    timeout_ms    a call without an answer for so long fails
    patience_ms   a member that owes an answer for so long is left for another one
    calls_max     commands, and as many reads, that wait for an answer
    tick_ms       how often time is looked at
    message_bytes_max  of one message from a member
    follow_leader go to the leader, which saves commands a way; else stay with the first member that answers, which may
                  be the nearest, for local reads
    """

    timeout_ms: int = 10_000
    patience_ms: int = 1_000
    calls_max: int = 65_536
    tick_ms: int = 20
    message_bytes_max: int = 64 * 1024 * 1024
    follow_leader: bool = True

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not isinstance(value, bool) and value < 1:
                raise UsageError(f"{name} is {value}; give 1 or more")


class ConsensusClient:
    """One client, which many callers on one loop may share. `start` it, or use it by `async with`.

    addresses  host:port for clients (`ClientServer`) of some members, or of all, by name or in any order
    key        what the members ask of clients, 32 bytes or more; or one for each address, so that no member can pass
               for another. None only on loopback, or with tls
    tls        encrypt; the client goes by the name in its certificate, whatever `name` says. None: plain
    faults     members that may lie, as in a group of PBFT: every answer needs faults + 1 equal ones, so name more than
               2 faults members. With 0 any member is believed, whatever the protocol
    raises     UsageError if these cannot be
    """

    def __init__(
        self,
        addresses: Sequence[str] | Mapping[NodeId, str],
        *,
        key: bytes | Mapping[str, bytes] | None = None,
        tls: Tls | None = None,
        cluster: str = "nova",
        name: str = "client",
        faults: int = 0,
        options: ClientOptions | None = None,
    ) -> None:
        self.options = options or ClientOptions()
        self._learned: dict[NodeId, str] = dict(addresses) if isinstance(addresses, Mapping) else {}
        self._seeds = list(dict.fromkeys(addresses.values() if isinstance(addresses, Mapping) else addresses))
        if isinstance(addresses, str) or not self._seeds:
            raise UsageError(f"the addresses are {addresses!r}; give a list of host:port with at least 1 of a member")
        if len(self._seeds) <= 2 * faults:
            raise UsageError(f"{len(self._seeds)} addresses, {faults} of which may lie; give {2 * faults + 1} or more")
        for address in self._seeds:
            split_address(address)
            if self._key_of(key, address) is None and tls is None and not is_loopback(address):
                raise UsageError(
                    f"{address} is on another machine; give the key that its members ask of clients, or tls"
                )
        self._key, self._cluster, self._name, self._faults = key, cluster, name, faults
        self._tls = tls
        patience = max(1, self.options.patience_ms // self.options.tick_ms)
        self._core = Asking(lambda: os.urandom(16), calls_max=self.options.calls_max, faults=faults, patience=patience)
        self._questions, self._replies = question_codec(), reply_codec()
        self._streams: dict[str, Stream] = {}
        self._transports: dict[bytes | None, TcpTransport] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving: asyncio.Task[None] | None = None
        self._moved: tuple[str, Stream] | None = None
        self._avoided: dict[str, float] = {}
        self._place = 0
        self._hint: str | None = None
        self._why = "no member was asked yet"
        self._deadlines: deque[tuple[float, Waiter | Many]] = deque()
        self._flush_due = self._started = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self.standing: Standing | None = None
        """What the member that is asked said of the group last."""

    @staticmethod
    def _key_of(key: bytes | Mapping[str, bytes] | None, address: str) -> bytes | None:
        return key.get(address) if isinstance(key, Mapping) else key

    # -- life --

    async def start(self) -> None:
        """Begin to look for members; calls wait until one is found, or their time is over."""
        if self._started:
            raise UsageError("this client was started before; make a new one")
        self._started = True
        self._loop = asyncio.get_running_loop()
        if self._faults:
            for address in self._seeds:
                self._spawn(self._stay_with(address))
        else:
            self._spawn(self._follow())
        self._timer = self._loop.call_later(self.options.tick_ms / 1000, self._tick)

    async def __aenter__(self) -> ConsensusClient:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ask nothing more. What has no answer fails: commands that were sent may have been applied. May be called
        twice."""
        if self._closed or not self._started:
            self._closed = self._started = True
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._core.fail(UnavailableError("the client is closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(transport.close() for transport in self._transports.values()))

    # -- calls --

    async def propose(self, data: bytes, key: bytes = b"", *, timeout_s: float | None = None) -> bytes:
        """Have a command applied, once; the machine's answer.

        key     commands with different keys commute; b"" with none. Only protocols without a total order look at it
        raises  OverloadedError, UnavailableError: it was not applied and will not be. UnknownOutcomeError: it may have
                been applied, or will be, once. LimitError for one that is too large: it was not applied
        """
        return await self._ask([(data, key)], timeout_s)  # type: ignore[no-any-return]

    async def propose_many(self, commands: Sequence[bytes], *, timeout_s: float | None = None) -> list[bytes]:
        """As `propose`, for many at once: they are applied in their order, though not without others between.

        If it raises UnknownOutcomeError, a beginning of them was or will be applied.
        """
        if not commands:
            return []
        answers = await self._ask([(data, b"") for data in commands], timeout_s)
        return [answers] if len(commands) == 1 else answers

    async def read(self, query: bytes, consistency: str = LINEARIZABLE, *, timeout_s: float | None = None) -> bytes:
        """What the machine answers to a query, without an entry in the log.

        consistency  `linearizable`: with all that was acknowledged to anybody before. `lease`: the same, and by the
                     leader's lease, if the group has those. `local`: what one member has applied, which may be old, but
                     never older than what this client has seen
        raises       UnavailableError, OverloadedError; UsageError if the machine refuses the query, or a group without
                     leases is asked for one
        """
        self._must_serve()
        future: asyncio.Future[bytes] = _ReadWaiter(loop=self._loop)
        self._core.read(query, future, consistency)
        found: bytes = await self._sent(future, timeout_s)
        return found

    async def status(self, *, timeout_s: float | None = None) -> MemberStatus:
        """How the member that is asked stands: the leader, if there is one and it can be reached."""
        self._must_serve()
        future: asyncio.Future[MemberStatus] = _ReadWaiter(loop=self._loop)
        self._core.status(future)
        told: MemberStatus = await self._sent(future, timeout_s)
        return told

    def _ask(self, commands: list[tuple[bytes, bytes]], timeout_s: float | None) -> asyncio.Future[Any]:
        self._must_serve()
        future: asyncio.Future[Any] = self._loop.create_future()
        waiter = self._core.ask(commands, future, time.perf_counter())
        return self._sent(future, timeout_s, waiter)

    def _sent(
        self, future: asyncio.Future[Any], timeout_s: float | None, waiter: Waiter | Many | None = None
    ) -> asyncio.Future[Any]:
        waiter = future if waiter is None else waiter
        if timeout_s is None:
            self._deadlines.append((self._loop.time() + self.options.timeout_ms / 1000, waiter))
        else:
            self._loop.call_later(timeout_s, self._late, waiter, timeout_s)
        self._wake()
        return future

    def _must_serve(self) -> None:
        if self._closed or not self._started:
            raise UnavailableError(f"the client is {'closed' if self._closed else 'not started'}; make one, start it")

    def _late(self, waiter: Waiter | Many, after_s: float) -> None:
        if waiter.done():
            return
        if isinstance(waiter, _ReadWaiter):
            waiter.set_exception(UnavailableError(f"the read has no answer after {after_s:g} s; {self._asked()}"))
            self._core.forget_reads()
        elif self._core.callers.withdraw(waiter):
            text = f"the command could not be sent within {after_s:g} s and is not applied; {self._asked()}"
            waiter.set_exception(UnavailableError(text))
        else:
            text = f"no answer after {after_s:g} s: the command may or may not have been applied, or may be yet; "
            waiter.set_exception(UnknownOutcomeError(text + self._asked()))

    def _asked(self) -> str:
        if not self._streams:
            return f"no member is connected: {self._why}"
        if self.standing is not None and self.standing.leader is None:
            return f"{self.standing.node} is asked and knows no leader: is a majority of the members up and connected?"
        return f"{', '.join(self._streams)} was asked"

    # -- time and streams --

    def _wake(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """All that was asked in a turn of the loop goes as one."""
        self._flush_due = False
        full: set[Any] = set()
        for address, question in self._core.take():
            stream = self._streams.get(str(address))
            if stream is None or (address in full and isinstance(question, Propose)):
                continue
            try:
                if not stream.send(self._questions.encode(question)) and not stream.closed:
                    stream.abort("the member does not read what it is asked")
            except LimitError as error:  # asked before the member told its limit, or a query: nothing was queued
                full.add(address)
                self._core.unsendable(address, question, error)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self.options.tick_ms / 1000, self._tick)
        now, deadlines = self._loop.time(), self._deadlines
        while deadlines and (deadlines[0][0] <= now or deadlines[0][1].done()):
            self._late(deadlines.popleft()[1], self.options.timeout_ms / 1000)
        for address in self._core.tick(int(now * 1e9), self.options.tick_ms * 1_000_000):
            stream = self._streams.get(str(address))
            if stream is not None:
                self._avoid(str(address))
                stream.abort(f"no answer for {self.options.patience_ms} ms")
        if self.standing is not None:
            for address in self._streams:
                self._seek(address, self.standing)
        self._flush()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self, address: str) -> Stream:
        key = self._key_of(self._key, address)
        if isinstance(self._key, bytes):
            key = self._key  # of members that were learned, too
        transport = self._transports.get(key)
        if transport is None:
            own = self._tls.name if self._tls is not None else None
            node, region = (own.node, own.region) if own is not None else (self._name, "")
            identity = Identity(node, region, client_cluster(self._cluster), time.time_ns(), "")
            limits = Limits(
                message_bytes_max=self.options.message_bytes_max, handshake_ms_max=max(100, self.options.patience_ms)
            )
            transport = self._transports[key] = TcpTransport(identity, key=key, limits=limits, tls=self._tls)
        return await transport.connect(address)

    async def _stay_with(self, address: str) -> None:
        """Keep a stream to this member."""
        pause_s = PAUSE_S_MIN
        while True:
            try:
                stream = await self._connect(address)
            except (PeerError, UnavailableError) as error:
                self._why = str(error)
                await asyncio.sleep(pause_s)
                pause_s = min(PAUSE_S_MAX, 2 * pause_s)
                continue
            pause_s = PAUSE_S_MIN
            if not await self._attend(address, stream):
                await asyncio.sleep(pause_s)

    async def _follow(self) -> None:
        """Keep a stream to one member, best the leader."""
        failed = 0
        while True:
            moved, self._moved = self._moved, None
            if moved is not None:
                address, stream = moved
            else:
                address = self._next()
                try:
                    stream = await self._connect(address)
                except (PeerError, UnavailableError) as error:
                    self._why = str(error)
                    self._avoid(address)
                    failed += 1
                    if failed % len(self._known()) == 0:
                        await asyncio.sleep(min(PAUSE_S_MAX, PAUSE_S_MIN * failed))
                    continue
            if await self._attend(address, stream):
                failed = 0
            else:
                failed += 1
                self._avoid(address)
                await asyncio.sleep(PAUSE_S_MIN)

    def _known(self) -> list[str]:
        return list(dict.fromkeys([*self._learned.values(), *self._seeds]))

    def _avoid(self, address: str) -> None:
        self._avoided[address] = self._loop.time() + AVOID_S

    def _next(self) -> str:
        """The leader, if it is known; else one after the other, first those that did not fail just now."""
        now = self._loop.time()
        hint, self._hint = self._hint, None
        if hint is not None and self._avoided.get(hint, 0) <= now:
            return hint
        known = self._known()
        order = [known[(self._place + step) % len(known)] for step in range(len(known))]
        self._place += 1
        return next((address for address in order if self._avoided.get(address, 0) <= now), order[0])

    async def _attend(self, address: str, stream: Stream) -> bool:
        """Listen to a member until the stream ends; whether it said anything."""
        heard = False
        self._streams[address] = stream
        self._core.linked(address)
        self._wake()
        try:
            while batch := await stream.recv_batch():
                heard = True
                for payload in batch:
                    message = self._replies.decode(payload)
                    self._core.step(address, message)
                    if type(message) is Standing:
                        self.standing = message
                        self._seek(address, message)
                self._wake()
            self._why = f"{address}: {stream.reason}"
        except PeerError as error:
            self._why = str(error)
            log.info("client: %s", error)
        finally:
            if self._streams.get(address) is stream:
                del self._streams[address]
                self._core.unlinked(address)
            if not stream.closed:
                stream.abort("given up")
        return heard

    def _seek(self, address: str, standing: Standing) -> None:
        """Go to the leader, if this member knows it and is not."""
        if self._faults:  # one liar could lead us to others
            return
        if standing.addresses.items() - self._learned.items():
            self._learned = {**self._learned, **standing.addresses}
        target = None
        if standing.leader is not None and self.options.follow_leader:
            target = self._learned.get(standing.leader)
        if standing.node not in standing.members and target is None:
            target = next((self._learned[node] for node in standing.members if node in self._learned), None)
        if target is None or target == address or self._avoided.get(target, 0) > self._loop.time():
            return
        if self._moving is None or self._moving.done():
            self._moving = self._spawn(self._move(address, target))

    async def _move(self, source: str, target: str) -> None:
        """Go where the leader is, once it is reached: until then this member hands on what it is asked."""
        try:
            stream = await self._connect(target)
        except (PeerError, UnavailableError) as error:
            self._why = str(error)
            self._avoid(target)
            return
        before = self._streams.get(source)
        if before is None or self._moved is not None:  # it was left for another one
            stream.abort("not needed")
            self._hint = target
            return
        self._moved = target, stream
        before.abort("the leader is elsewhere")


class _ReadWaiter(asyncio.Future[Any]):
    """A future that is known to be a read's."""


__all__ = ["ClientOptions", "ConsensusClient", "MemberStatus"]
