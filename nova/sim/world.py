"""A deterministic world for cores: one seed, one history.

Everything that happens is an event at an instant of virtual time: a message arrives, a node's tick, a disk is ready, a
fault. Events run one after the other; after each, every invariant is asked. What a core wants done goes through the
same `Pipeline` as on a real node, so that nothing leaves before it is durable. Chance comes in separate streams for
the network, the disks, the faults and each node: a change in one leaves the others as they were.

A node is an object with `step(sender, message)` and `tick()` that return `Outputs`. If it has them, `turn()` is asked
before each sync for what was written locally, and `applied(event)` gets each event when its records are durable.
"""

from __future__ import annotations

import random as chance
from collections.abc import Callable, Iterable, Iterator
from errno import ENOSPC
from hashlib import blake2b
from heapq import heappop, heappush
from struct import Struct
from typing import Any, Protocol, assert_never

from nova.errors import NovaError, UsageError
from nova.sim.disk import SimDisk
from nova.sim.faults import (
    Change,
    ClockSkew,
    Crash,
    Cut,
    Duplicate,
    Fault,
    FullDisk,
    Heal,
    Loss,
    Operation,
    Partition,
    Pause,
    Reorder,
    Restart,
    Resume,
    SlowDisk,
    SlowNode,
    Transfer,
    check_plan,
)
from nova.sim.network import LAN, Link, Network
from nova.storage.base import Log, Snapshots
from nova.storage.pipeline import Pipeline
from nova.types import NodeId, Outputs, Random

EPOCH_NS = 1_700_000_000 * 1_000_000_000
"""What wall clocks show when a world begins."""

_EVENT = Struct("<qBhh")
_DELIVER, _TICK, _ACTION, _FAULT = range(4)


class Node(Protocol):
    """What lives in a world."""

    def step(self, sender: NodeId, message: Any) -> Outputs: ...
    def tick(self) -> Outputs: ...


class Codec(Protocol):
    """How messages look on the wire."""

    def encode(self, message: Any) -> bytes: ...
    def decode(self, data: bytes) -> Any: ...


Make = Callable[[NodeId, Log, Snapshots, Random, Callable[[], int]], Any]
"""(node, log, snapshots, random, wall clock in ns) -> a Node; also called at each restart, with what the disk kept."""


class InvariantError(NovaError):
    """An invariant does not hold; the message says the seed and the instant at which to look."""

    code = "invariant"


class _Host:
    """A machine: what survives a crash, and what runs on it now."""

    __slots__ = (
        "applied", "clock_skew_ns", "disk", "held", "index", "life", "name", "node", "paused", "pipeline", "random",
        "slow_disk_ns", "turn",
    )  # fmt: skip

    def __init__(self, name: NodeId, index: int, random: chance.Random) -> None:
        self.name, self.index, self.random = name, index, random
        self.disk: SimDisk
        self.node: Any = None
        self.pipeline: Pipeline | None = None
        self.turn: Callable[[], Outputs] | None = None
        self.applied: Callable[[Any], Outputs | None] | None = None
        self.life = 0
        self.paused = False
        self.held: list[tuple[int, _Host | None, Any]] = []  # (kind, sender, what) that wait until it goes on
        self.clock_skew_ns = 0
        self.slow_disk_ns = 0


class World:
    """Nodes, the network between them and their disks.

    nodes       their names, or how many
    make        makes a node, at the beginning and at each restart
    network     the link between any two; `links` for pairs with another
    codec       every message goes through it if given
    on_event    called with (node, event) for each applied event
    operate     does what operators do in a plan: changes of members, transfers of leadership
    """

    def __init__(
        self,
        seed: int,
        nodes: int | Iterable[NodeId],
        make: Make,
        *,
        network: Link = LAN,
        links: dict[tuple[NodeId, NodeId], Link] | None = None,
        tick_ns: int = 100_000_000,
        codec: Codec | None = None,
        invariants: Iterable[Callable[[World], None]] = (),
        on_event: Callable[[NodeId, Any], None] | None = None,
        sent: Callable[[NodeId, NodeId, Any], Any] | None = None,
        dropped: Callable[[NodeId, NovaError], None] | None = None,
        operate: Callable[[Operation], None] | None = None,
    ) -> None:
        self.seed = seed
        self.now = 0
        self.tick_ns = tick_ns
        self.invariants = list(invariants)
        self.events = 0
        self.messages = 0
        self.touched: NodeId | None = None
        """The one node that the present event is about; None if it may be any."""
        self._make = make
        self._codec = codec
        self._on_event, self._sent, self._dropped, self._operate = on_event, sent, dropped, operate
        self._heap: list[tuple[int, int, int, Any, Any, Any]] = []
        self._number = 0
        self._trace = blake2b(digest_size=16)
        self._pending_trace: list[bytes] = []
        self.network = Network(self.stream("network"), network, links)
        names = [f"n{i}" for i in range(nodes)] if isinstance(nodes, int) else list(nodes)
        self._hosts: dict[NodeId, _Host] = {}
        for index, name in enumerate(names):
            host = _Host(name, index, self.stream(f"node {name}"))
            host.disk = SimDisk(self.stream(f"disk {name}"), self._disk_schedule(host))
            self._hosts[name] = host
        for host in self._hosts.values():
            self._start(host)

    def stream(self, name: str) -> chance.Random:
        """A generator of its own under this world's seed."""
        return chance.Random(f"{self.seed} {name}")

    def __getitem__(self, node: NodeId) -> Any:
        """The running node; KeyError if there is no such node, UsageError if it is down."""
        running = self._hosts[node].node
        if running is None:
            raise UsageError(f"node {node!r} is down; restart it first")
        return running

    def __iter__(self) -> Iterator[Any]:
        return (host.node for host in self._hosts.values() if host.node is not None)

    def running(self, node: NodeId) -> tuple[Any, ...]:
        """That node, if it runs (or is paused)."""
        running = self._hosts[node].node
        return () if running is None else (running,)

    @property
    def up(self) -> list[NodeId]:
        """Names of the nodes that run and are not paused: those that can be called."""
        return [name for name, host in self._hosts.items() if host.node is not None and not host.paused]

    @property
    def names(self) -> list[NodeId]:
        """Names of all nodes."""
        return list(self._hosts)

    @property
    def trace(self) -> str:
        """Digest of all that happened: equal for equal seeds."""
        self._trace.update(b"".join(self._pending_trace))
        self._pending_trace.clear()
        return self._trace.hexdigest()

    # -- doing things to it --

    def submit(self, node: NodeId, outputs: Outputs) -> None:
        """Do what a node wants done after a local call, as its runtime would."""
        host = self._hosts[node]
        if host.pipeline is None:
            raise UsageError(f"node {node!r} is down; restart it first")
        self._submit(host, outputs)

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Run `action` after this much virtual time."""
        self._push(self.now + delay_ns, _ACTION, None, None, action)

    def crash(self, node: NodeId) -> None:
        """Stop a node as a power cut would."""
        host = self._hosts[node]
        if host.node is not None:
            host.life += 1
            host.node = host.pipeline = host.turn = host.applied = None
            host.paused = False
            host.held.clear()
            host.disk.crash()

    def restart(self, node: NodeId) -> None:
        """Start a stopped node from its disk."""
        host = self._hosts[node]
        if host.node is None:
            self._start(host)

    def pause(self, node: NodeId) -> None:
        """Let a running node stand still: its ticks, what is sent to it and what its disk has done wait."""
        host = self._hosts[node]
        host.paused = host.node is not None

    def resume(self, node: NodeId) -> None:
        """Let a paused node go on: what waited arrives now, in its order. Missed ticks are not made up for."""
        host = self._hosts[node]
        host.paused = False
        for kind, sender, what in host.held:
            self._push(self.now, kind, host, sender, what)
        host.held.clear()

    def fill_disk(self, node: NodeId, full: bool = True) -> None:
        """Let every sync of a node fail from now on, and with it the node; or give it room again."""
        self._hosts[node].disk.fail(OSError(ENOSPC, "No space left on device") if full else None)

    def cut(self, source: NodeId, target: NodeId) -> None:
        """Cut one direction."""
        self.network.cut(source, target)

    def partition(self, *groups: Iterable[NodeId]) -> None:
        """Cut every link between the groups."""
        self.network.partition(*map(set, groups))

    def heal(self) -> None:
        """Mend the network."""
        self.network.heal()

    def mend(self) -> None:
        """Mend everything: network and disks work, whoever stopped or is paused runs. Clocks stay as they are."""
        self.heal()
        for name, host in self._hosts.items():
            self.fill_disk(name, False)
            host.slow_disk_ns = 0
            self.resume(name)
            self.restart(name)

    def plan(self, faults: Iterable[Fault]) -> None:
        """Let these faults happen, at their times from now.

        Raises UsageError for one that names a node that is not here, or an operation that this world doesn't know.
        """
        faults = list(faults)
        check_plan(faults, self._hosts)
        if self._operate is None and (refused := [fault for fault in faults if isinstance(fault, Operation)]):
            raise UsageError(f"nobody here can {type(refused[0]).__name__.lower()}; leave it out of the plan")
        for fault in faults:
            self._push(self.now + fault.at_ns, _FAULT, None, None, fault)

    def skew_ns(self, node: NodeId) -> int:
        """How far this node's wall clock is off."""
        return self._hosts[node].clock_skew_ns

    def inject(self, fault: Fault) -> None:
        """Let a fault happen now."""
        match fault:
            case Partition(groups=groups):
                self.partition(*groups)
            case Cut(source=source, target=target):
                self.cut(source, target)
            case Heal():
                self.heal()
            case Crash(node=node):
                self.crash(node)
            case Restart(node=node):
                self.restart(node)
            case Pause(node=node):
                self.pause(node)
            case Resume(node=node):
                self.resume(node)
            case Loss(ratio=ratio):
                self.network.loss_ratio = ratio
            case Duplicate(ratio=ratio):
                self.network.duplicate_ratio = ratio
            case Reorder(ratio=ratio):
                self.network.reorder_ratio = ratio
            case SlowNode(node=node, delay_ns=delay_ns):
                self.network.slow_ns[node] = delay_ns
            case SlowDisk(node=node, delay_ns=delay_ns):
                self._hosts[node].slow_disk_ns = delay_ns
            case FullDisk(node=node, full=full):
                self.fill_disk(node, full)
            case ClockSkew(node=node, skew_ns=skew_ns):
                self._hosts[node].clock_skew_ns = skew_ns
            case Change() | Transfer():
                if self._operate is not None:
                    self._operate(fault)
            case _:
                assert_never(fault)

    # -- letting time pass --

    def run(
        self, ticks: int | None = None, *, until: Callable[[], bool] | None = None, ticks_max: int = 100_000
    ) -> bool:
        """Run for `ticks`, or until `until()` (asked once per tick of time) holds; whether it came to hold.

        Raises InvariantError where an invariant does not hold.
        """
        end = self.now + (ticks if ticks is not None else ticks_max) * self.tick_ns
        next_look = self.now
        heap = self._heap
        while True:
            if until is not None and self.now >= next_look:
                if until():
                    return True
                next_look = self.now + self.tick_ns
            if not heap or heap[0][0] > end:
                self.now = end
                return until() if until is not None else True
            self._run_one()

    def _run_one(self) -> None:
        at, _, kind, host, sender, what = heappop(self._heap)
        self.now = at
        self.events += 1
        self.touched = host.name if host is not None else None
        source = sender.index if sender is not None else -1
        self._pending_trace.append(_EVENT.pack(at, kind, source, host.index if host is not None else -1))
        if host is not None and host.paused:
            host.held.append((kind, sender, what))
            return
        if kind == _DELIVER:
            if host.node is not None:
                self._deliver(host, sender, what)
        elif kind == _TICK:
            if host.life == what:
                self._push(at + self.tick_ns, _TICK, host, None, what)
                self._submit(host, host.node.tick())
        elif kind == _ACTION:
            what()
        else:
            self.inject(what)
        if len(self._pending_trace) >= 4096:
            self._trace.update(b"".join(self._pending_trace))
            self._pending_trace.clear()
        for invariant in self.invariants:
            try:
                invariant(self)
            except AssertionError as error:
                raise InvariantError(
                    f"seed {self.seed}, event {self.events} at {self.now / 1e9:.6f} s: {error or invariant.__name__}"
                ) from error

    def _deliver(self, host: _Host, sender: _Host, data: Any) -> None:
        message = data
        if self._codec is not None:
            self._pending_trace.append(data)
            message = self._codec.decode(data)
        try:
            outputs = host.node.step(sender.name, message)
        except NovaError as error:
            if self._dropped is None:
                raise
            self._dropped(host.name, error)
            return
        self._submit(host, outputs)

    def _push(self, at: int, kind: int, host: _Host | None, sender: _Host | None, what: Any) -> None:
        self._number += 1
        heappush(self._heap, (at, self._number, kind, host, sender, what))

    # -- hosts --

    def _start(self, host: _Host) -> None:
        host.life += 1
        log = host.disk.log()
        host.node = self._make(
            host.name, log, host.disk.snapshots(), host.random, lambda: EPOCH_NS + self.now + host.clock_skew_ns
        )
        host.turn = getattr(host.node, "turn", None)
        host.applied = getattr(host.node, "applied", None)
        life = host.life

        def send(peer: NodeId, message: Any) -> None:
            self._send(host, peer, message)

        def apply(event: Any) -> None:
            if self._on_event is not None:
                self._on_event(host.name, event)
            if host.applied is not None and host.life == life:
                more = host.applied(event)
                if more:
                    self._submit(host, more)

        def fail(error: BaseException) -> None:
            self.crash(host.name)

        host.pipeline = Pipeline(
            log, send=send, apply=apply, failed=fail, ready=lambda: self._turn(host) if host.life == life else None
        )
        self._push(self.now + 1 + host.random.randrange(self.tick_ns), _TICK, host, None, life)

    def _submit(self, host: _Host, outputs: Outputs) -> None:
        pipeline = host.pipeline
        if pipeline is None:
            return
        if outputs:
            pipeline.submit(outputs)
        if not pipeline.busy:
            self._turn(host)

    def _turn(self, host: _Host) -> None:
        pipeline = host.pipeline
        if pipeline is None:
            return
        if host.turn is not None:
            outputs = host.turn()
            if outputs:
                pipeline.submit(outputs)
        pipeline.flush()

    def _send(self, host: _Host, peer: NodeId, message: Any) -> None:
        if self._sent is not None:
            self._sent(host.name, peer, message)
        target = self._hosts.get(peer)
        if target is None:
            return
        self.messages += 1
        arrivals = self.network.arrivals(self.now, host.name, peer)
        if not arrivals:
            return
        data = self._codec.encode(message) if self._codec is not None else message
        for at in arrivals:
            self._push(at, _DELIVER, target, host, data)

    def _disk_schedule(self, host: _Host) -> Callable[[int, Callable[[], None]], None]:
        return lambda delay_ns, action: self._push(self.now + delay_ns + host.slow_disk_ns, _ACTION, host, None, action)
