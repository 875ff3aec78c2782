"""`nova simulate`: seeded histories of a whole cluster under faults, checked after every event and at the end.

A member is the very `ClusterCore` of `nova serve`, with its log on a simulated disk. Clients write VMs, registers,
sets and counters on whichever node is up, while links are cut and lossy, nodes crash and lose what they had not synced,
disks are slow and clocks are off. Then everything is mended, and the replicas have to agree, to hold every acknowledged
write, and to explain every conflict.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer

from nova.cli.output import Json, print_json
from nova.errors import NovaError, UsageError
from nova.sim.checkers import Histories, differences, lost
from nova.sim.faults import SECOND, random_plan
from nova.sim.network import Link
from nova.sim.world import InvariantError, World
from nova.storage.base import Log, Snapshots
from nova.store.cluster import CODEC, ClusterCore
from nova.store.core import Durable, Replica, StoreConfig
from nova.store.model import Put
from nova.sync.membership import Member
from nova.types import Dot, NodeId, Outputs, Random

TICK_NS = 100_000_000
FAULT_SECONDS = 20
CLIENT_NS_MEAN = 60_000_000
SETTLE_TICKS = 1_200
SNAPSHOT_RECORDS = 60
REDIAL_TICKS = 5
CONFIG = StoreConfig(kinds={"vm/": "vm", "n/": "counter", "s/": "set"}, history_bytes=24 * 1024, conflicts_count=1_000)
LINK = Link(
    delay_ns_min=5_000_000, jitter_ns_mean=10_000_000, loss_ratio=0.01, duplicate_ratio=0.02, reorder_ratio=0.05
)
POWER = ("running", "paused", "suspended", "stopped")


class SimulatedMember:
    """A cluster member in a `World`: what a node's runtime and mesh do around the core, without the I/O."""

    def __init__(
        self,
        node: NodeId,
        names: list[NodeId],
        incarnation: int,
        log: Log,
        snapshots: Snapshots,
        random: Random,
        wall_ns: Callable[[], int],
        archive: list[bytes],
    ) -> None:
        self._archive = archive
        self.node, self._names, self._log, self._snapshots = node, names, log, snapshots
        self._ticks = 0
        self.replica = Replica(node, region=_region(node), incarnation=incarnation, wall_ns=wall_ns, config=CONFIG)
        start = 1
        found = snapshots.load()
        if found is not None:
            start = found[0] + 1
            self.replica.restore(found[1])
        self._snapshot = start - 1
        for record in archive:
            self.replica.conflicts.replayed(record)
        for _, record in log.replay(start):
            event = self.replica.replay(record)
            if event is not None and event.seq > len(archive):
                archive.append(record[1:])
        self.replica.recovered()
        self.core = ClusterCore(
            self.replica, Member(node, incarnation, region=_region(node), address=node), random=random
        )
        self.waiting: list[tuple[int, Callable[[], None]]] = []

    def step(self, sender: NodeId, message: Any) -> Outputs:
        return self.core.step(sender, message)

    def tick(self) -> Outputs:
        out = self.core.tick()
        # The mesh dials whoever is not a live peer again and again; here a message stands for the session.
        if self._ticks % REDIAL_TICKS == 0:
            live = self.core.membership.peers()
            for name in self._names:
                if name != self.node and name not in live:
                    out.extend(self.core.met(Member(name, region=_region(name), address=name)))
        self._ticks += 1
        return out

    def turn(self) -> Outputs:
        return self.core.turn()

    def applied(self, event: Any) -> Outputs | None:
        if isinstance(event, Durable):
            self.replica.applied(event)
            self._archive += event.audit
            ready = [acknowledge for token, acknowledge in self.waiting if token <= event.token]
            self.waiting = [item for item in self.waiting if item[0] > event.token]
            for acknowledge in ready:
                acknowledge()
            # Never of more than the log holds durably: new records would take positions that the snapshot covers.
            position = self._log.durable
            if position == self._log.last and position - self._snapshot > SNAPSHOT_RECORDS and self.replica.settled:
                self._snapshots.save(position, self.replica.snapshot())
                self._log.truncate_before(position + 1)
                self._snapshot = position
        return None


def _region(node: NodeId) -> str:
    return f"r{int(node[1:]) % 3}"


class History:
    """One seed: a cluster, its clients, its faults, and what was promised to whom."""

    def __init__(self, seed: int, nodes: int, faults: int) -> None:
        self.sessions = Histories()
        self.added = 0
        self.maybe_added = 0
        self._names = [f"n{number}" for number in range(nodes)]
        self._incarnations: dict[NodeId, int] = {}
        self._archives: dict[NodeId, list[bytes]] = {}
        self._told: dict[NodeId, dict[str, int]] = {}
        self.world = World(
            seed,
            self._names,
            self._make,
            network=LINK,
            tick_ns=TICK_NS,
            codec=CODEC,
            invariants=[self._told_is_durable],
            dropped=self._refused,
        )
        self._clients = self.world.stream("clients")
        self._fault_random = self.world.stream("faults")
        self._end_ns = FAULT_SECONDS * SECOND
        self.world.plan(random_plan(self._fault_random, self.world.names, self._end_ns, faults=faults))
        self.world.at(self._pause(), self._client)

    def run(self) -> list[str]:
        """What was violated; empty if nothing was."""
        try:
            self.world.run(self._end_ns // TICK_NS)
            self.world.run(until=self._settled, ticks_max=SETTLE_TICKS)
        except InvariantError as error:
            return [str(error)]
        except NovaError as error:
            return [f"{type(error).__name__}: {error}"]
        return self._violations()

    def _make(
        self, node: NodeId, log: Log, snapshots: Snapshots, random: Random, wall_ns: Callable[[], int]
    ) -> SimulatedMember:
        incarnation = self._incarnations[node] = self._incarnations.get(node, 0) + 1
        self._told.setdefault(node, {})
        archive = self._archives.setdefault(node, [])
        return SimulatedMember(node, self._names, incarnation, log, snapshots, random, wall_ns, archive)

    def _pause(self) -> int:
        return 1 + int(self._clients.random() * 2 * CLIENT_NS_MEAN)

    def _client(self) -> None:
        if self.world.now < self._end_ns:
            self.world.at(self._pause(), self._client)
        up = self.world.up
        if not up:
            return
        random = self._clients
        node = up[random.randrange(len(up))]
        member: SimulatedMember = self.world[node]
        kind = random.randrange(10)
        key = f"{('vm/', 'vm/', 'n/', 's/', 'x/')[kind % 5]}{random.randrange(4)}"
        session = f"{node}~{self._incarnations[node]}"
        added = 0
        try:
            if kind == 9 and member.replica.space.get(key) is not None:
                token, write = member.replica.delete(key) if not key.startswith("n/") else (0, None)
            else:
                value, merge = self._value(key)
                added = value if key.startswith("n/") else 0
                context = None
                if random.random() < 0.1 and (rows := member.replica.space.get(key)) is not None and not added:
                    context = {actor: count - 1 for actor, count in rows.clock.items()}
                token, write = member.replica.put(Put(key, value, merge=merge, context=context))
        except UsageError:
            return
        if write is None:
            return
        self.maybe_added += added
        dot = Dot(*write.dot)

        def acknowledge() -> None:
            self.added += added
            self.sessions.write(session, key, dot)
            self.sessions.read(session, key, member.replica.clock())

        member.waiting.append((token, acknowledge))
        self.world.submit(node, Outputs())

    def _value(self, key: str) -> tuple[Any, bool]:
        random = self._clients
        number = random.randrange(1, 65)
        if key.startswith("n/"):
            return number, True
        if key.startswith("s/"):
            return {("add", "remove")[random.randrange(2)]: [f"e{random.randrange(4)}"]}, True
        if key.startswith("vm/"):
            patch: dict[str, Any] = {"power_state": POWER[random.randrange(4)]}
            match random.randrange(4):
                case 0:
                    patch = {"cpu": number}
                case 1:
                    patch = {"disks": {f"d{random.randrange(2)}": None if number % 3 == 0 else {"size_gb": number}}}
                case 2:
                    address = {"ip": f"10.0.0.{random.randrange(6)}"}
                    patch |= {"networks": {f"52:54:00:00:00:0{random.randrange(6)}": address}}
            if random.random() < 0.3:
                return {"id": key, "power_state": POWER[number % 4], "cpu": number, "memory_mb": 1024}, False
            return {"id": key, **patch}, True
        return {"n": number}, False

    def _refused(self, node: NodeId, error: NovaError) -> None:
        raise error

    def _told_is_durable(self, world: World) -> None:
        """A clock that a node may tell others never goes back, crashes included."""
        for member in world:
            clock = member.replica.clock()
            before = self._told[member.node]
            if clock is before:
                continue
            for actor, count in before.items():
                assert clock.get(actor, 0) >= count, (
                    f"{member.node} knew {count} of {actor} and now {clock.get(actor, 0)}"
                )
            self._told[member.node] = clock

    def _settled(self) -> bool:
        members = list(self.world)
        return len(members) == len(self.world.names) and not differences(self._states())

    def _states(self) -> dict[NodeId, tuple[str, dict[str, int]]]:
        return {member.node: (member.replica.digest, member.replica.clock()) for member in self.world}

    def _violations(self) -> list[str]:
        found = differences(self._states()) + self.sessions.violations()
        values: dict[NodeId, bytes] = {}
        for member in self.world:
            node = member.node
            missing = lost(self.sessions.acknowledged, member.replica.clock())
            found += [f"{node} lost the acknowledged write {dot.actor}:{dot.count}" for dot in missing]
            entries = member.replica.scan(limit=10_000)[0]
            values[node] = msgspec.json.encode(
                [(entry.key, entry.value, entry.clock, entry.conflict, entry.strategy) for entry in entries],
                order="deterministic",
            )
            counted = sum(entry.value for entry in entries if entry.kind == "counter")
            if not self.added <= counted <= self.maybe_added:
                found.append(f"{node} counts {counted}; {self.added} were acknowledged, {self.maybe_added} asked for")
            for entry in entries:
                if (entry.conflict is None) != (not entry.siblings):
                    found.append(f"{node}: {entry.key} has {len(entry.siblings)} siblings, conflict {entry.conflict}")
            for record in member.replica.conflicts.page(10_000)["conflicts"]:
                if not record["resolution"]["explanation"]:
                    found.append(f"{node}: conflict {record['id']} of {record['key']} is not explained")
        if len(set(values.values())) > 1:
            found.append(f"equal states show different values: {values}")
        return found


def simulate(
    seeds: Annotated[int, typer.Option(help="How many histories.", min=1)] = 100,
    seed: Annotated[int | None, typer.Option(help="Replay only this one.")] = None,
    nodes: Annotated[int, typer.Option(help="Members of the cluster.", min=1, max=50)] = 3,
    faults: Annotated[int, typer.Option(help="Faults in each history.", min=0)] = 12,
    protocol: Annotated[str, typer.Option(help="What is simulated: store.")] = "store",
    json: Json = False,
) -> None:
    """Run seeded histories of a cluster under faults and check every one; exit status 1 if a promise was broken.

    Example: nova simulate --seeds 500 --nodes 5
    """
    if protocol != "store":
        raise UsageError(f"protocol {protocol!r} cannot be simulated; use store")
    started = time.perf_counter()
    failing: dict[int, list[str]] = {}
    events = conflicts = writes = 0
    trace = ""
    for number in [seed] if seed is not None else range(seeds):
        history = History(number, nodes, faults)
        violations = history.run()
        events += history.world.events
        writes += len(history.sessions.acknowledged)
        conflicts += max((member.replica.conflicts.total for member in history.world), default=0)
        trace = history.world.trace
        if violations:
            failing[number] = violations
            if not json:
                typer.echo(f"seed {number}: {violations[0]}")
    wall = time.perf_counter() - started
    runs = 1 if seed is not None else seeds
    if json:
        print_json(
            {
                "runs": runs,
                "events": events,
                "events_per_s": round(events / wall),
                "writes_acknowledged": writes,
                "conflicts": conflicts,
                "violations": sum(map(len, failing.values())),
                "failing_seeds": sorted(failing),
                "trace_hash": trace,
            }
        )
    else:
        verdict = f"{len(failing)} failed: {sorted(failing)}" if failing else "every promise held"
        typer.echo(
            f"{runs} histories of {nodes} nodes, {events} events, {writes} acknowledged writes, {conflicts} conflicts "
            f"in {wall:.1f} s: {verdict}"
        )
    if failing:
        raise typer.Exit(1)
