"""A whole cluster under faults, checked after every event and at the end.

A member is the very `ClusterCore` of `nova serve`, with its log on a simulated disk. Clients write, read and delete
keys of every kind on whichever node is up, with fresh, stale, foreign and empty contexts, on condition or not, and
follow the change feeds, while links are cut and lossy, nodes crash and lose what they had not synced, disks are slow
and clocks are off. Then everything is mended, and the replicas have to agree, to hold every acknowledged write, and to
explain every conflict.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from nova.conflict.audit import verify
from nova.errors import KeyNotFoundError, LimitError, NovaError, StaleContextError, UnavailableError, UsageError
from nova.sim.checkers import Histories, differences, lost
from nova.sim.faults import SECOND, Crash, Fault, Restart, random_plan
from nova.sim.network import Link
from nova.sim.world import InvariantError, World
from nova.storage.base import Log, Snapshots
from nova.store.cluster import CODEC, ClusterCore, Notice
from nova.store.core import Durable, Replica, StoreConfig, node_of
from nova.store.model import Entry, Put
from nova.sync.membership import Member
from nova.sync.retire import RetireConfig, count_of, floors
from nova.types import Actor, Dot, NodeId, Outputs, Random

TICK_NS = 100_000_000
FAULT_SECONDS = 20
CLIENT_NS_MEAN = 50_000_000
SETTLE_TICKS = 1_200
SNAPSHOT_RECORDS = 25
REDIAL_TICKS = 5
REBOOT_NS_MAX = 2 * SECOND
VALUE_BYTES_MAX = 2_000
FAMILIES = ("vm/", "vm/", "vm/", "n/", "c/", "s/", "m/", "x/", "x/", "y/")
"""Prefixes of the keys that clients use. Counters below n/ are only ever added to; keys below y/ are of any kind."""
KINDS = {"vm/": "vm", "n/": "counter", "c/": "counter", "s/": "set", "m/": "map", "x/": "register"}
CONFIG = StoreConfig(
    kinds=KINDS,
    value_bytes_max=VALUE_BYTES_MAX,
    siblings_max=4,
    history_bytes=6 * 1024,
    feed_count=60,
    conflicts_count=1_000,
)
RETIRE = RetireConfig(settle_ms=500, check_ms=200)
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
        config: StoreConfig = CONFIG,
    ) -> None:
        self._archive = archive
        self.node, self._names, self._log, self._snapshots = node, names, log, snapshots
        self._ticks = 0
        self.replica = Replica(node, region=_region(node), incarnation=incarnation, wall_ns=wall_ns, config=config)
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
            self.replica,
            Member(node, incarnation, region=_region(node), address=node),
            random=random,
            retire=RETIRE,
        )
        self.notices: list[Notice] = []
        self._pending: tuple[int, bytes] | None = None
        self._waiting: list[tuple[int, Callable[[], None]]] = []

    def wait(self, token: int, action: Callable[[], None]) -> None:
        """Do this when the token is durable; never, if this node crashes before."""
        if token <= self.replica.durable_token:
            action()
        else:
            self._waiting.append((token, action))

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
            assert event.token > self.replica.durable_token, (
                f"{self.node}: token {event.token} became durable after {self.replica.durable_token}"
            )
            self.replica.applied(event)
            self._archive += event.audit
            ready = [action for token, action in self._waiting if token <= event.token]
            self._waiting = [item for item in self._waiting if item[0] > event.token]
            for action in ready:
                action()
            self._snapshot_now_and_then()
        elif isinstance(event, Notice):
            self.notices.append(event)
        return None

    def _snapshot_now_and_then(self) -> None:
        # Taken of all that is applied, saved once the log holds as much: new records would take positions that a
        # snapshot ahead of its log covers.
        if self._pending is None and self._log.last - self._snapshot > SNAPSHOT_RECORDS and self.replica.settled:
            self._pending = self._log.last, self.replica.snapshot()
        if self._pending is not None and self._pending[0] <= self._log.durable:
            position, state = self._pending
            self._snapshots.save(position, state)
            self._log.truncate_before(position + 1)
            self._snapshot, self._pending = position, None


class Watcher:
    """A client that follows the change feed of one node, over its restarts, and keeps a copy of what is there."""

    def __init__(self) -> None:
        self.seen: int | None = None
        self.values: dict[str, tuple[Any, dict[str, int]]] = {}
        self.asked: SimulatedMember | None = None
        self.listed = 0

    def poll(self, member: SimulatedMember, share: float, broken: Callable[[str], None]) -> None:
        """Ask once, as the API does; of the answer this share arrives before the connection breaks."""
        replica = member.replica
        if self.asked is member:
            return  # still waits for the disk of that node
        if self.seen is None or self.seen < replica.feed.compacted:
            revision = replica.feed.newest
            entries = replica.scan(limit=10_000)[0]

            def listed() -> None:
                self.asked = None
                self.listed += 1
                self.seen = revision
                self.values = {entry.key: (entry.value, entry.clock) for entry in entries}

            self.asked = member
            member.wait(replica.newest_token, listed)
            return
        since, newest = self.seen, replica.feed.newest
        changes = replica.changes(since)
        revisions = [since, *(change.revision for change in changes), newest + 1]
        if any(following <= before for before, following in pairwise(revisions)):
            broken(f"{member.node}: the feed does not increase: {revisions[:-1]}, newest {newest}")
        arrived = changes[: int(len(changes) * share)]

        def told() -> None:
            self.asked = None
            for change in arrived:
                if change.deleted:
                    self.values.pop(change.key, None)
                else:
                    self.values[change.key] = (change.value, change.clock)
            if len(arrived) == len(changes):
                self.seen = newest
            elif arrived:
                self.seen = arrived[-1].revision

        self.asked = member
        member.wait(max((replica.token_of(change.key) for change in changes), default=0), told)


def _region(node: NodeId) -> str:
    return f"r{int(node[1:]) % 3}"


class History:
    """One seed: a cluster, its clients, its faults, and what was promised to whom."""

    def __init__(self, seed: int, nodes: int, faults: int | Sequence[Fault]) -> None:
        self.sessions = Histories()
        self.added = 0
        self.maybe_added = 0
        self._names = [f"n{number}" for number in range(nodes)]
        self._incarnations: dict[NodeId, int] = {}
        self.finals: dict[Actor, int] = {}
        """How much of each ended life of a node its disk kept: what was written beyond was never told to anybody."""
        self._archives: dict[NodeId, list[bytes]] = {}
        self._told: dict[NodeId, dict[str, int]] = {}
        self._broken: list[str] = []
        self._read: dict[str, dict[str, int]] = {}
        self._watchers = {name: Watcher() for name in self._names}
        self.refused = self.joined = self.retired = 0
        self.world = World(
            seed,
            self._names,
            self._make,
            network=LINK,
            tick_ns=TICK_NS,
            codec=CODEC,
            invariants=[self._told_is_durable, self._nothing_is_broken],
            dropped=self._refused,
        )
        self._clients = self.world.stream("clients")
        self._fault_random = self.world.stream("faults")
        self._end_ns = FAULT_SECONDS * SECOND
        self.plan = self._drawn(faults) if isinstance(faults, int) else list(faults)
        self.world.plan(self.plan)
        self.world.at(self._pause(), self._client)

    def run(self) -> list[str]:
        """What was violated; empty if nothing was."""
        try:
            self.world.run(self._end_ns // TICK_NS)
            self.world.mend()
            self.world.run(until=self._settled, ticks_max=SETTLE_TICKS)
        except InvariantError as error:
            return [str(error)]
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return [
                f"{type(error).__name__}: {error} (at {self.world.now / 1e9:.6f} s, in {where.name}:{where.lineno})"
            ]
        return self._violations()

    def _drawn(self, faults: int) -> list[Fault]:
        plan = random_plan(self._fault_random, self.world.names, self._end_ns, faults=faults)
        plan += self._reboots(faults // 4)
        return sorted(plan, key=lambda fault: fault.at_ns)

    def _reboots(self, count: int) -> list[Fault]:
        """Power cuts after which a node is back at once: it restarts in the middle of the traffic."""
        random = self._fault_random
        plan: list[Fault] = []
        for _ in range(count):
            at, node = random.randrange(self._end_ns), self._names[random.randrange(len(self._names))]
            plan += [Crash(at, node), Restart(at + random.randrange(REBOOT_NS_MAX), node)]
        return plan

    def _make(
        self, node: NodeId, log: Log, snapshots: Snapshots, random: Random, wall_ns: Callable[[], int]
    ) -> SimulatedMember:
        incarnation = self._incarnations[node] = self._incarnations.get(node, 0) + 1
        self._told.setdefault(node, {})
        archive = self._archives.setdefault(node, [])
        member = SimulatedMember(node, self._names, incarnation, log, snapshots, random, wall_ns, archive)
        before = sum(count for actor, count in self.finals.items() if node_of(actor) == node)
        kept = member.replica.space.operations(node, incarnation - 1)
        self.finals[f"{node}~{incarnation - 1}"] = kept - before
        return member

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
        family = FAMILIES[random.randrange(len(FAMILIES))]
        key = f"{family}{random.randrange(4)}"
        what = random.random()
        if what < 0.1:
            self._watchers[node].poll(member, random.random() * 1.5, self._broken.append)
        elif what < 0.18:
            self._get(member, key)
        elif what < 0.22:
            self._look_at_everything(member)
        else:
            self._write(member, family, key, delete=what > 0.9 and family != "n/")
            self.world.submit(node, Outputs())

    def _get(self, member: SimulatedMember, key: str) -> None:
        replica = member.replica
        token = replica.token_of(key)
        try:
            read = replica.get(key).clock
        except KeyNotFoundError:
            read = {}

        def answer() -> None:
            durable = replica.clock()
            for actor, count in read.items():
                if count_of(durable, actor) < count:
                    self._broken.append(
                        f"{member.node} showed {key} with event {count} of {actor}, which is not on disk"
                    )
            self._read[key] = read

        member.wait(token, answer)

    def _look_at_everything(self, member: SimulatedMember) -> None:
        """List all keys and conflicts: what is not there any more tells as much as what is."""
        replica = member.replica
        keys = {entry.key for entry in replica.scan(limit=10_000)[0]}
        clock, events = replica.space.clock, replica.conflicts.chain.seq

        def answer() -> None:
            durable = replica.clock()
            if any(count_of(durable, actor) < count for actor, count in clock.items()):
                self._broken.append(f"{member.node} listed {keys} at {clock}, and has {durable} on disk")
            if len(self._archives[member.node]) < events:
                self._broken.append(f"{member.node} told of conflicts that are not on disk")

        member.wait(replica.newest_token, answer)

    def _write(self, member: SimulatedMember, family: str, key: str, *, delete: bool) -> None:
        replica, random = member.replica, self._clients
        rows = replica.space.get(key)
        present = rows.clock if rows is not None else {}
        context, conditional = self._context(key, present, always=family == "n/")
        stale = conditional and context != present
        unseen = set()
        if context is not None and rows is not None:
            unseen = {item for item in _live(replica, key) if context.get(item[1].actor, 0) < item[1].count}
        before = replica.space.revision, replica.space.open_bytes, replica.digest
        added = 0
        merge = True
        try:
            if delete:
                token, write = replica.delete(key, context, conditional)
            else:
                kind = KINDS.get(family) or ("register", "map", "set", "counter")[random.randrange(4)]
                if rows is not None and family == "y/":
                    kind = replica.get(key).kind
                value, merge = self._value(key, kind, only_add=family == "n/")
                added = value if family == "n/" else 0
                asked = kind if rows is None else None
                token, write = replica.put(Put(key, value, asked, merge, context, conditional))
        except (UsageError, UnavailableError) as error:
            self._check_refused(member.node, key, error, stale, context)
            if before != (replica.space.revision, replica.space.open_bytes, replica.digest):
                self._broken.append(f"{member.node} refused a write of {key} and did it: {error}")
            return
        if stale:
            self._broken.append(
                f"{member.node} wrote {key} on a condition that did not hold: {context} is not {present}"
            )
        if unseen - _live(replica, key):
            self._broken.append(f"{member.node}: a write of {key} took what its context {context} did not know")
        if context is None or context == present:
            if delete:
                if replica.space.get(key) is not None:
                    self._broken.append(f"{member.node} deleted {key}, and it is there")
            elif not merge and (entry := replica.get(key)) and not _is_as_written(entry, value):
                self._broken.append(f"{member.node} wrote {key} = {value!r} and holds {entry.value!r}")
        self.maybe_added += added
        dot = Dot(*write.dot)
        session = f"{member.node}~{self._incarnations[member.node]}"

        def acknowledge() -> None:
            if count_of(replica.clock(), dot.actor) < dot.count:
                self._broken.append(f"{member.node} acknowledged {dot.actor}:{dot.count}, which is not on disk")
            self.added += added
            self.sessions.write(session, key, dot)
            self.sessions.read(session, key, replica.clock())

        member.wait(token, acknowledge)

    def _context(self, key: str, present: dict[str, int], *, always: bool) -> tuple[dict[str, int] | None, bool]:
        """What a client says that it knows, and whether it writes only if that is so; `always`: if it may be wrong."""
        random = self._clients
        draw = random.random()
        if draw < 0.6:
            return None, False
        if draw < 0.7:
            return dict(present), random.random() < 0.7
        stale = (
            {actor: count - 1 for actor, count in present.items() if count > 1} if draw < 0.8
            else self._read.get(key, {}) if draw < 0.93
            else {}
        )  # fmt: skip
        return stale, always or random.random() < 0.4

    def _check_refused(
        self, node: NodeId, key: str, error: NovaError, stale: bool, context: Mapping[str, int] | None
    ) -> None:
        self.refused += 1
        match error:
            case StaleContextError():
                if not stale:
                    self._broken.append(f"{node} refused a write of {key} whose condition held: {error}")
            case KeyNotFoundError() | LimitError():
                pass
            case UnavailableError():
                if not context or all(self.world[node].replica.space.count(a) >= n for a, n in context.items()):
                    self._broken.append(f"{node} refused a write of {key} that it could do: {error}")
            case _ if "nothing to write" not in str(error):
                self._broken.append(f"{node} refused a write of {key}: {error}")

    def _value(self, key: str, kind: str, *, only_add: bool) -> tuple[Any, bool]:
        """A value for a key of this kind, and whether it is a merge write."""
        random = self._clients
        number = random.randrange(1, 65)
        whole = random.random() < 0.3
        if not only_add and kind != "counter" and random.random() < 0.02:
            filler = "x" * VALUE_BYTES_MAX
            return (
                ([filler], False)
                if kind == "set"
                else ({"labels": {"f": filler}} if kind == "vm" else {"f": filler}, True)
            )
        match kind:
            case "counter":
                return (number, True) if only_add else (number - 30, not whole)
            case "set":
                items = [f"e{random.randrange(4)}"]
                return (items, False) if whole else ({("add", "remove")[random.randrange(2)]: items}, True)
            case "map":
                field = f"f{random.randrange(4)}"
                return ({field: number}, False) if whole else ({field: None if number % 4 == 0 else number}, True)
            case "vm":
                return self._machine(key, number, whole)
        return ({"n": number}, False) if number % 4 else ({f"f{number % 3}": number}, True)

    def _machine(self, key: str, number: int, whole: bool) -> tuple[Any, bool]:
        random = self._clients
        patch: dict[str, Any] = {"power_state": POWER[random.randrange(4)]}
        match random.randrange(4):
            case 0:
                patch = {"cpu": number}
            case 1:
                patch = {"disks": {f"d{random.randrange(2)}": None if number % 3 == 0 else {"size_gb": number}}}
            case 2:
                address = {"ip": f"10.0.0.{random.randrange(6)}"}
                patch |= {"networks": {f"52:54:00:00:00:0{random.randrange(6)}": address}}
        if whole:
            return {"id": key, "power_state": POWER[number % 4], "cpu": number, "memory_mb": 1024}, False
        return {"id": key, **patch}, True

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
                assert count_of(clock, actor) >= count, (
                    f"{member.node} knew {count} of {actor} and now {count_of(clock, actor)}"
                )
            self._told[member.node] = clock

    def _nothing_is_broken(self, world: World) -> None:
        """What clients and nodes found wrong, told at the event that showed it."""
        assert not self._broken, self._broken[0]
        for member in world:
            if member.notices:
                for notice in member.notices:
                    assert "hold different states" not in notice.text, f"{member.node}: {notice.text}"
                    assert "refused what" not in notice.text, f"{member.node}: {notice.text}"
                    self.joined += notice.text.startswith("took over")
                member.notices.clear()

    def _settled(self) -> bool:
        members = list(self.world)
        return (
            len(members) == len(self.world.names)
            and all(member.replica.durable_token == member.replica.newest_token for member in members)
            and not differences(self._states())
        )

    def _states(self) -> dict[NodeId, tuple[str, dict[str, int]]]:
        return {member.node: (member.replica.digest, member.replica.clock()) for member in self.world}

    def _violations(self) -> list[str]:
        found = differences(self._states()) + self.sessions.violations()
        self.retired = max((upto for member in self.world for _, upto, _ in floors(member.replica.clock())), default=0)
        values: dict[NodeId, bytes] = {}
        for member in self.world:
            node = member.node
            missing = lost(self.sessions.acknowledged, member.replica.clock())
            missing += [dot for dot in self.sessions.acknowledged if dot.count > self.finals.get(dot.actor, dot.count)]
            found += [f"{node} lost the acknowledged write {dot.actor}:{dot.count}" for dot in missing]
            entries = member.replica.scan(limit=10_000)[0]
            values[node] = msgspec.json.encode(
                [
                    (entry.key, entry.kind, entry.value, entry.clock, entry.timestamp, entry.conflict, entry.strategy)
                    for entry in entries
                ],
                order="deterministic",
            )
            counted = sum(entry.value for entry in entries if entry.key.startswith("n/"))
            if not self.added <= counted <= self.maybe_added:
                found.append(f"{node} counts {counted}; {self.added} were acknowledged, {self.maybe_added} asked for")
            for entry in entries:
                if (entry.conflict is None) != (not entry.siblings):
                    found.append(f"{node}: {entry.key} has {len(entry.siblings)} siblings, conflict {entry.conflict}")
            for record in member.replica.conflicts.page(10_000)["conflicts"]:
                if not record["resolution"]["explanation"]:
                    found.append(f"{node}: conflict {record['id']} of {record['key']} is not explained")
            verdict = verify(self._archives[node], member.replica.conflicts.chain.mark)
            if not verdict.ok:
                found.append(f"{node}: the audit chain does not verify: {verdict.error}")
            found += self._followed(member, entries)
        if len(set(values.values())) > 1:
            found.append(f"equal states show different values: {values}")
        return found

    def _followed(self, member: SimulatedMember, entries: list[Entry]) -> list[str]:
        """What the follower of a node's feed believes wrongly, once it is at the end of the feed."""
        watcher = self._watchers[member.node]
        for _ in range(2):  # the first may find that the feed is compacted
            watcher.poll(member, 1.0, self._broken.append)
        wrong = {entry.key for entry in entries if watcher.values.pop(entry.key, None) != (entry.value, entry.clock)}
        wrong |= watcher.values.keys()
        return self._broken + [f"{member.node}: its feed tells something else of {key} than a scan" for key in wrong]


def _live(replica: Replica, key: str) -> set[tuple[str, Dot]]:
    rows = replica.space.get(key)
    return set() if rows is None else {(path, row.write.dot) for path, items in rows.live() for row in items}


def _is_as_written(entry: Entry, value: Any) -> bool:
    """Does an entry hold a whole write that saw everything? VMs are shown in a normal form of their own."""
    return not entry.siblings and (entry.kind == "vm" or entry.value == value)
