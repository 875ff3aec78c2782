"""A replicated state machine in a `World`, with clients, faults, and everything that must hold of it.

Two phases: faults, in which only safety is asked; then everything is mended, and the group has to answer fresh writes
and reads at every member, to agree, and to hold every acknowledged write. What holds of every protocol is asked after
every event; what is a protocol's own comes with its `Subject`.
"""

from __future__ import annotations

import random as chance
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from nova.consensus.chain import Frame, Switched
from nova.consensus.core import (
    Command,
    Committed,
    Epoch,
    Installed,
    Kind,
    Make,
    OverloadedError,
    Status,
)
from nova.consensus.frames import FrameCodec
from nova.consensus.replicated import (
    Answered,
    Checkpoint,
    ReadAnswered,
    ReplicatedConfig,
    ReplicatedMachine,
)
from nova.consensus.sessions import OPEN, Code
from nova.errors import NovaError, UnavailableError, UsageError
from nova.sim import machine
from nova.sim.faults import KINDS, SECOND, Change, Fault, Operation, Transfer, random_plan
from nova.sim.machine import Bags, KeyValue
from nova.sim.network import Link
from nova.sim.world import InvariantError, World
from nova.storage.base import Log, Snapshots
from nova.types import NodeId, Outputs, Random

TICK_NS: Final = 10_000_000
LINK: Final = Link(
    delay_ns_min=500_000, jitter_ns_mean=1_000_000, loss_ratio=0.01, duplicate_ratio=0.01, reorder_ratio=0.03
)
FAULT_SECONDS: Final = 3
SETTLE_TICKS: Final = 1_500
QUIET_TICKS: Final = 60
CLIENT_PATIENCE_TICKS: Final = 60
CHECKPOINT_ENTRIES: Final = 40


class Subject(msgspec.Struct, frozen=True):
    """A protocol to be put to the test.

    make        makes a core
    messages    its wire messages
    invariants  makes, for a run, what is asked after every event, of the group; an AssertionError is a violation. If it
                has `sent`, that is called with (group, sender, target, message) for all that leaves
    nodes       members of a run
    options     of the epoch; each run draws one of `variants` to be added: small limits show what large ones hide
    operations  kinds of what operators can do with it: a core has `change` and `transfer`
    calm        who comes back after a while deposes no leader
    liars       (random, names) -> members that lie, as for `Group`, if that is not told
    convergent  members apply concurrent commands in different orders (nova.sim.convergent)
    place       (protocol, members, random) -> options that depend on the members
    successors  other protocols that an operator switches to meanwhile, at random: name -> (maker, options)
    """

    name: str
    make: Make
    messages: tuple[type[msgspec.Struct], ...]
    invariants: Callable[[], Callable[[Group], None]] | None = None
    nodes: int = 3
    options: dict[str, Any] = {}
    variants: tuple[dict[str, Any], ...] = ({},)
    operations: tuple[str, ...] = ()
    calm: bool = False
    convergent: bool = False
    place: Callable[[str, Sequence[NodeId], Random], dict[str, Any]] | None = None
    liars: Callable[[Random, Sequence[NodeId]], Mapping[NodeId, Callable[[Any, Random], Any]]] | None = None
    successors: dict[str, tuple[Make, dict[str, Any]]] = {}


class GroupMember:
    """A `ReplicatedMachine` and what a driver does for it."""

    def __init__(
        self, group: Group, node: NodeId, log: Log, snapshots: Snapshots, random: Random, now_ns: Callable[[], int]
    ) -> None:
        self._snapshots, self._log = snapshots, log
        self.values = Bags() if group.subject.convergent else KeyValue()
        self.replica = ReplicatedMachine(
            node,
            group.epoch,
            self.values,
            protocols=group.protocols | {group.subject.name: group.maker_of(node)},
            random=random,
            now_ns=now_ns,
            log_last=lambda: log.last,
            config=ReplicatedConfig(retry_ticks=30),
        )
        start = 1
        found = snapshots.load()
        if found is not None:
            start = found[0] + 1
            self.replica.restore(found[1])
        for _, record in log.replay(start):
            self.replica.replay(record)
        self._first: Outputs | None = self.replica.recovered()

    @property
    def core(self) -> Any:
        return self.replica.core

    def step(self, sender: NodeId, frame: Frame) -> Outputs:
        return self.replica.step(sender, frame)

    def tick(self) -> Outputs:
        return self.replica.tick()

    def operate(self, operation: Operation) -> Outputs:
        match operation:
            case Change(voters=voters, learners=learners):
                return self.replica.change(voters, learners)
            case Transfer(target=target):
                return self.replica.transfer(target)

    def turn(self) -> Outputs:
        out = self.replica.turn()
        if self._first is not None:
            self._first.extend(out)
            out, self._first = self._first, None
        self.replica.checkpoint(out, CHECKPOINT_ENTRIES)
        return out

    def applied(self, event: Any) -> Outputs:
        if isinstance(event, Checkpoint):
            try:
                self._snapshots.save(event.position, event.state)
            except UnavailableError:  # a full disk: the log is kept, so nothing is lost; again at the next turn
                self.replica.not_saved()
                return Outputs()
            self._log.truncate_before(event.position + 1)
        return self.replica.applied(event)


class Client:
    """One caller: one command or read at a time; it asks elsewhere if nobody answers."""

    def __init__(self, name: int) -> None:
        self.name = name
        self.session = 0
        self.sequence = 0
        self.command: Command | None = None
        self.reading: int | None = None
        self.key = ""
        self.value = 0
        self.began = 0
        self.waited = 0
        self.node: NodeId | None = None


class Append(msgspec.Struct):
    """An append as its client saw it; `end` None: never answered, so it took effect once, or not at all."""

    key: str
    value: int
    begin: int
    end: int | None = None


class Read(msgspec.Struct):
    """A read that was answered."""

    key: str
    values: list[int]
    begin: int
    end: int


class Group:
    """One seed: members, clients, faults, and what was promised to whom.

    nodes    members at the beginning; `spares` more run beside them, and may be made members
    faults   how many, drawn of these `kinds`; or a plan
    operations  how many changes of members and transfers are drawn besides, with `faults` a number; None: half as many.
             Without spares nobody changes members
    clients  callers at once
    liars    members that need not keep to the protocol, and what makes such a core of a sound one; nothing is asked of
             them, and no client asks them
    """

    def __init__(
        self,
        subject: Subject,
        seed: int,
        *,
        nodes: int | None = None,
        spares: int = 0,
        faults: int | Sequence[Fault] = 10,
        operations: int | None = None,
        kinds: Sequence[str] = KINDS,
        clients: int = 5,
        seconds: int = FAULT_SECONDS,
        link: Link = LINK,
        keys: int = 3,
        liars: Mapping[NodeId, Callable[[Any, Random], Any]] | None = None,
        invariants: Iterable[Callable[[Group], None]] = (),
    ) -> None:
        self.subject, self.seed = subject, seed
        members = tuple(f"n{number}" for number in range(nodes or subject.nodes))
        names = (*members, *(f"s{number}" for number in range(spares)))
        if liars is None and subject.liars is not None:
            liars = subject.liars(chance.Random(f"{seed} liars"), members)
        self.liars = dict(liars or {})
        variant = subject.variants[chance.Random(f"{seed} options").randrange(len(subject.variants))]
        self._operator = chance.Random(f"{seed} places")
        options = {**subject.options, **variant, **self._placed(subject.name, members)}
        self.epoch = Epoch(0, subject.name, members, options=options)
        self.protocols = {
            subject.name: subject.make,
            **{name: make for name, (make, _) in subject.successors.items()},
        }
        self.epochs = {0: self.epoch}
        """Every epoch that began anywhere."""
        self.decided: dict[int, tuple[int, bytes, NodeId]] = {}
        self.terms: dict[int, int] = {}
        self.news: list[tuple[NodeId, Any]] = []
        """What happened at whom since the last event: for invariants that heed the order in which things were told."""
        self.appends: dict[int, Append] = {}
        self.reads: list[Read] = []
        self.refused: list[str] = []
        self.acknowledged = 0
        self.operated = 0
        """Operations that were not refused."""
        self._keys = keys
        self._end_ns = seconds * SECOND
        self._serial = 0
        self._own = [*([subject.invariants()] if subject.invariants else []), *invariants]
        watching = [check.sent for check in self._own if hasattr(check, "sent")]
        self.world = World(
            seed,
            names,
            lambda node, log, snapshots, random, wall: GroupMember(
                self, node, log, snapshots, random, lambda: self.world.now if hasattr(self, "world") else 0
            ),
            network=link,
            tick_ns=TICK_NS,
            codec=FrameCodec(*subject.messages),
            invariants=[self._invariants] if self._own else [],
            on_event=self._event,
            sent=(lambda *it: [sent(self, it[0], it[1], it[2][1]) for sent in watching]) if watching else None,
            dropped=self._dropped,
            operate=self._operate,
        )
        self._random = self.world.stream("clients")
        self.clients = [Client(number) for number in range(clients)]
        self._by_command: dict[tuple[int, int, bytes], Client] = {}
        self._by_read: dict[int, Client] = {}
        self.plan = self._drawn(faults, kinds, operations, spares) if isinstance(faults, int) else list(faults)
        self.world.plan(self.plan)
        self._mended = self._stopping = False
        self._operator = self.world.stream("operator")
        self._clients_tick()
        if subject.successors:
            self._operator_tick()

    def _drawn(self, faults: int, kinds: Sequence[str], operations: int | None, spares: int) -> list[Fault]:
        names, end = self.world.names, self._end_ns
        plan = random_plan(self.world.stream("faults"), names, end, faults=faults, kinds=kinds, skew_ns_max=0)
        kinds = [kind for kind in self.subject.operations if spares or kind != "change"]
        count = faults // 2 if operations is None else operations
        if kinds and count:
            members = self.epoch.members
            stream = self.world.stream("operations")
            plan += random_plan(stream, names, end, faults=count, kinds=kinds, members=members)
        return sorted(plan, key=lambda fault: fault.at_ns)

    def _placed(self, protocol: str, members: Sequence[NodeId]) -> dict[str, Any]:
        return {} if self.subject.place is None else self.subject.place(protocol, members, self._operator)

    # -- running --

    def run(self) -> list[str]:
        """What was violated; empty if nothing was."""
        try:
            self.world.run(self._end_ns // TICK_NS)
            self.world.mend()
            self._mended = True
            self.before_healing = self.acknowledged
            if not self.world.run(until=self._serves, ticks_max=SETTLE_TICKS):
                return [f"seed {self.seed}: healed for {SETTLE_TICKS} ticks, and {self._why_not()}"]
            self._stopping = True
            if not self.world.run(until=self._settled, ticks_max=SETTLE_TICKS):
                return [f"seed {self.seed}: nobody writes any more, and {self._why_not()}"]
            if disturbed := self._disturbed():
                return [f"seed {self.seed}: {disturbed}"]
        except InvariantError as error:
            return [str(error)]
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"at {self.world.now / 1e9:.6f} s, in {where.name}:{where.lineno}"
            return [f"seed {self.seed}: {type(error).__name__}: {error} ({at})"]
        return self.violations()

    def members(self) -> list[GroupMember]:
        """Those that run, and of which something is asked."""
        return [member for member in self.world if member.replica.node not in self.liars]

    def maker_of(self, node: NodeId) -> Make:
        """What makes the core of a member."""
        lying = self.liars.get(node)
        if lying is None:
            return self.subject.make
        return lambda node, epoch, random, now_ns: lying(self.subject.make(node, epoch, random, now_ns), random)

    def _asked(self) -> list[NodeId]:
        """Whom clients ask."""
        return [node for node in self.world.up if node not in self.liars]

    def serving(self) -> list[GroupMember]:
        """Those who get the log: members of the newest epoch, as its newest leader knows them."""
        newest = self.epochs[max(self.epochs)]
        leader = self._newest_leader()
        names = {*newest.members}
        if not newest.number and leader is not None:
            names = {*leader.peers, *leader.members, leader.node}
        return [member for member in self.members() if member.replica.node in names]

    def _newest_leader(self) -> Status | None:
        leaders = [status for member in self.members() if (status := member.core.status).role == "leader"]
        return max(leaders, key=lambda status: status.term, default=None)

    def _disturbed(self) -> str:
        """Nobody loses leadership for one that comes back, or for one that was removed and never heard of it."""
        before = self._newest_leader()
        if before is None or not self.subject.calm:
            return ""
        others = [node for node in before.members if node != before.node]
        spare = len(before.members) > 2  # without one of them there still is a majority
        cut = others[self._random.randrange(len(others))] if spare else None
        if cut is not None:
            self.world.partition({cut}, {*self.world.names} - {cut})
        self.world.run(QUIET_TICKS // 2)
        self.world.heal()
        self.world.run(QUIET_TICKS // 2)
        after = self._newest_leader()
        if after is not None and (after.node, after.term) == (before.node, before.term):
            return ""
        now = f"{after.node} in term {after.term}" if after is not None else "nobody"
        return (
            f"{before.node} led in term {before.term}; {cut or 'nobody'} was cut off for a while, and now {now} leads"
        )

    def _operate(self, operation: Operation) -> None:
        for node in self.world.up:
            if self.world[node].core.status.role != "leader":
                continue
            try:
                out = self.world[node].operate(operation)
            except (UsageError, UnavailableError):
                continue
            self.operated += 1
            self.world.submit(node, out)

    def _serves(self) -> bool:
        return self.acknowledged - self.before_healing >= 3 * len(self.clients) and len(self.world.up) == len(
            self.world.names
        )

    def _settled(self) -> bool:
        if any(client.command is not None or client.reading is not None for client in self.clients):
            return False
        members = self.serving()
        newest = self.epochs[max(self.epochs)]
        replicas = [member.replica for member in members]
        return (
            all(replica.epoch == newest and replica.chain.whole and replica.chain.settled for replica in replicas)
            and len({(member.replica.applied_position, member.values.digest) for member in members}) == 1
        )

    def _why_not(self) -> str:
        states = ", ".join(
            f"{member.replica.node} {member.core.status.role} term {member.core.status.term} epoch "
            f"{member.replica.epoch.number} applied {member.replica.applied_position} of {member.core.status.last}"
            for member in self.world
        )
        return f"{self.acknowledged - self.before_healing} commands were answered; {states}"

    def _dropped(self, node: NodeId, error: NovaError) -> None:
        self.refused.append(f"{node}: {error}")

    def _invariants(self, world: World) -> None:
        for check in self._own:
            check(self)
        self.news.clear()

    # -- an operator --

    def _operator_tick(self) -> None:
        """Asks somebody to go on with another protocol, or among others."""
        self.world.at(1 + self._operator.randrange(100 * TICK_NS), self._operator_tick)
        up = self.world.up
        if not up or self._stopping:
            return
        node = up[self._operator.randrange(len(up))]
        protocol = self._operator.choice(sorted(self.subject.successors))
        names = list(self.world.names)
        members = names if self._operator.random() < 0.6 else self._operator.sample(names, max(3, len(names) - 1))
        try:
            options = self.subject.successors[protocol][1] | self._placed(protocol, sorted(members))
            out = self.world[node].replica.switch(protocol, members, options)
        except (UsageError, UnavailableError):
            return
        self.world.submit(node, out)

    # -- clients --

    def _clients_tick(self) -> None:
        self.world.at(1 + self._random.randrange(2 * TICK_NS), self._clients_tick)
        up = self._asked() if not self._mended else [member.replica.node for member in self.serving()]
        if not up:
            return
        touched: set[NodeId] = set()
        for client in self.clients:
            busy = client.command is not None or client.reading is not None
            if busy:
                client.waited += 1
                if client.waited > CLIENT_PATIENCE_TICKS:
                    self._give_up(client, up, touched)
            elif not self._stopping and self._random.random() < 0.7:
                self._begin(client, up, touched)
        for node in sorted(touched):
            if node in up:
                self.world.submit(node, Outputs())

    def _begin(self, client: Client, up: list[NodeId], touched: set[NodeId]) -> None:
        node = up[self._random.randrange(len(up))]
        if self.world[node].core.leader is None and self._random.random() < 0.8:
            return  # it would have to wait there: most look elsewhere
        client.node, client.waited, client.began = node, 0, self.world.now
        client.key = f"k{self._random.randrange(self._keys)}"
        self._serial += 1
        if not client.session:
            self._submit(client, Command(0, OPEN, self._serial.to_bytes(8, "big")), touched)
        elif self._random.random() < 0.3:
            self._read(client, touched)
        else:
            client.value = self._serial
            self.appends[client.value] = Append(client.key, client.value, self.world.now)
            data = machine.append(client.key, client.value)
            self._submit(client, Command(client.session, client.sequence + 1, data, client.key.encode()), touched)

    def _submit(self, client: Client, command: Command, touched: set[NodeId]) -> None:
        client.command = command
        self._by_command[_name(command)] = client
        try:
            self.world[client.node].replica.submit(command)  # type: ignore[index]
        except OverloadedError:
            return  # as if it had been lost: asked again later
        touched.add(client.node)  # type: ignore[arg-type]

    def _read(self, client: Client, touched: set[NodeId]) -> None:
        client.reading = self._serial
        self._by_read[client.reading] = client
        try:
            out = self.world[client.node].replica.read(client.reading, machine.get(client.key))  # type: ignore[index]
        except UnavailableError:
            self._by_read.pop(client.reading)
            client.reading = None
            return
        self.world.submit(client.node, out)  # type: ignore[arg-type]

    def _give_up(self, client: Client, up: list[NodeId], touched: set[NodeId]) -> None:
        """No answer: a read is asked anew, a command again under its number, elsewhere."""
        if client.node in up:
            replica = self.world[client.node].replica
            if client.command is not None:
                replica.forget(client.command)
            if client.reading is not None:
                replica.forget_read(client.reading)
        client.node, client.waited = up[self._random.randrange(len(up))], 0
        if client.reading is not None:
            self._by_read.pop(client.reading, None)
            client.reading = None
        elif client.command is not None:
            self._submit(client, client.command, touched)

    # -- what happened --

    def _event(self, node: NodeId, event: Any) -> None:
        if node in self.liars:
            return
        if self._own:
            self.news.append((node, event))
        match event:
            case Committed(entries, number):
                ordered = getattr(self.protocols[self.epochs[number].protocol], "ordered", True)
                for entry in entries:
                    if entry.kind == Kind.NOOP and not ordered:
                        continue  # a position of its own in no order: the next epoch may give it anew
                    value = (int(entry.kind), entry.data)
                    known = self.decided.setdefault(entry.position, (*value, node))
                    self.terms.setdefault(entry.position, entry.term)
                    assert known[:2] == value, (
                        f"I3: position {entry.position} is decided differently by {known[2]} and {node}"
                    )
            case Installed(snapshot):
                assert not self.world[node].replica.sessions.ordered or snapshot.position <= max(
                    self.decided, default=0
                ), f"I3: {node} installed what nobody decided"
            case Switched(epoch):
                first = self.epochs.setdefault(epoch.number, epoch)
                assert first == epoch, f"epoch {epoch.number} is {first} here and {epoch} at {node}"
            case Answered(command, outcome, _):
                self._answered(command, outcome)
            case ReadAnswered(id, data):
                self._read_answered(id, data)

    def _answered(self, command: Command, outcome: Any) -> None:
        client = self._by_command.pop(_name(command), None)
        if client is None or client.command != command:
            return
        client.command = None
        self.acknowledged += 1
        if command.sequence == OPEN and not command.session:
            client.session, client.sequence = int.from_bytes(outcome.data, "big"), 0
            return
        if outcome.code is not Code.OK and outcome.code is not Code.FORGOTTEN:
            client.session = 0  # expired: as a client does, open another one; the append stays in doubt
            return
        client.sequence = command.sequence
        self.appends[client.value].end = self.world.now

    def _read_answered(self, id: int, data: bytes) -> None:
        client = self._by_read.pop(id, None)
        if client is None:
            return
        client.reading = None
        self.acknowledged += 1
        self.reads.append(Read(client.key, machine.answer(data) or [], client.began, self.world.now))

    # -- the end --

    def violations(self) -> list[str]:
        """What does not hold of the whole history: it must be linearizable, and every acknowledged append be there.

        Lists of values that are appended once each make that exact and cheap: the final list is the only possible order
        of the appends, each read is a beginning of it, and real time must agree with both.
        """
        found: list[str] = []
        final = self.serving()[0].values.values
        for key in sorted({append.key for append in self.appends.values()}):
            found += self._key_violations(key, final.get(key) or [])
        return found

    def _key_violations(self, key: str, final: list[int]) -> list[str]:
        found: list[str] = []
        place = {value: number for number, value in enumerate(final)}
        if len(place) != len(final):
            found.append(f"I8: {key} holds an append twice")
        appends = [append for append in self.appends.values() if append.key == key]
        found += [
            f"I8: {key} holds {value}, which nobody appended to it"
            for value in final
            if value not in self.appends or self.appends[value].key != key
        ]
        found += [
            f"I10: append {append.value} to {key} was acknowledged and is not there"
            for append in appends
            if append.end is not None and append.value not in place
        ]
        if found:
            return found
        # Each operation as a point of the order: appends at their place, reads behind the last that they saw.
        points: list[tuple[int, int, int, int, str]] = []  # place, append 0 / read 1, begin, end, name
        for append in appends:
            if append.value in place:
                end = append.end if append.end is not None else 1 << 62
                points.append((place[append.value], 0, append.begin, end, f"append {append.value}"))
        for read in self.reads:
            if read.key != key:
                continue
            if read.values != final[: len(read.values)]:
                found.append(f"I10: a read of {key} at {read.begin} saw {read.values[-3:]}, no beginning of it")
                continue
            points.append((len(read.values) - 1, 1, read.begin, read.end, f"read at {read.begin}"))
        points.sort(key=lambda point: (point[0], point[1], point[2]))
        latest = -1
        by = ""
        for _, _, begin, end, name in points:
            if end < latest:
                found.append(f"I10: {key}: {name} ended before {by} began, and stands behind it")
            if begin > latest:
                latest, by = begin, name
        return found


def _name(command: Command) -> tuple[int, int, bytes]:
    return command.session, command.sequence, b"" if command.session else command.data
