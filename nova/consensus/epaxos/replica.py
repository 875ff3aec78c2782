"""What all parts of an EPaxos member share: its instances, records, promises and timers; how a commit takes effect."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from nova.consensus.core import Committed, Entry, Epoch, Fatal, Kind, Persisted, ReadReady, checked_members
from nova.consensus.epaxos.conflicts import Conflicts
from nova.consensus.epaxos.execution import Graph
from nova.consensus.epaxos.instances import Executed, Id, Instance, Status, Value, is_void, keys_of
from nova.consensus.epaxos.messages import Commit
from nova.consensus.epaxos.options import EPaxosOptions
from nova.errors import CorruptionError, PeerError, UsageError
from nova.types import NodeId, Outputs, Random

INSTANCE: Final = b"I"
SNAPSHOT: Final = b"S"
"""First byte of a record: the state of an instance, a piece of an installed snapshot."""

DECIDED: Final = "decided"


class Replica:
    """The state of a member, and what is done to it everywhere."""

    def __init__(self, node: NodeId, epoch: Epoch, random: Random, now_ns: Callable[[], int]) -> None:
        self.members = checked_members(node, epoch)
        if node not in self.members:
            raise UsageError(f"{node} is not among {list(self.members)}; every replica of EPaxos is a member")
        try:
            self.options = msgspec.convert(epoch.options, EPaxosOptions)
        except msgspec.ValidationError as error:
            raise UsageError(f"the options of epoch {epoch.number} do not fit epaxos: {error}") from None
        self.node, self.epoch = node, epoch
        self._random = random
        count = self.count = len(self.members)
        failures = (count - 1) // 2
        self.slow = count - failures
        """Members of a slow quorum, the coordinator included."""
        self.spared = min(failures, (count - failures + 1) // 2)
        """How many a fast quorum can do without: e, with n >= 2e + f - 1 (Ryabinin et al. 2025)."""
        self.fast = count - self.spared
        self._me = self.members.index(node)
        self._index = {member: index for index, member in enumerate(self.members)}
        self._peers = tuple(member for member in self.members if member != node)
        self.instances: dict[Id, Instance] = {}
        self.executed = Executed(count)
        self.conflicts = Conflicts(count, self.options.keys_max)
        self.graph = Graph(count, self.executed, self.conflicts)
        self.sealed = False
        self._next = 1
        self._proposed: set[Id] = set()  # own, and not committed
        self._recent: deque[Instance] = deque()  # executed, and still in memory
        self._fence: tuple[Id, tuple[int, ...]] | None = None
        self._reads: list[int] = []
        self._waits: set[Id] = set()  # recoveries that wait for others
        self._news = False
        self._now = 0
        self._due: dict[int, list[Id]] = {}
        self._token = self._durable_token = 0
        self._promises: list[tuple[NodeId, Any]] = []
        self._held: deque[tuple[int, NodeId, Any]] = deque()
        self._own: deque[tuple[int, Id, int, str]] = deque()  # (token, id, ballot, phase): our votes until durable
        self._replaying = False
        self._retold: list[Instance] = []

    # -- instances --

    def _instance(self, id: Id) -> Instance:
        instance = self.instances.get(id)
        if instance is None:
            instance = self.instances[id] = Instance(id)
            if id[0] == self._me and id[1] >= self._next:
                self._next = id[1] + 1
        return instance

    def _position(self, id: Id) -> int:
        return self.epoch.start + (id[1] - 1) * self.count + id[0]

    def _known(self, id: Id) -> bool:
        """An instance that can be: of a member, and not further ahead than the window. Raises PeerError."""
        owner, number = id
        if not 0 <= owner < self.count or number < 1:
            raise PeerError(f"instance {id} is none: owners are 0 to {self.count - 1}, numbers start at 1")
        return number <= self.executed.frontier[owner] + self.options.window

    def _checked(self, value: Value) -> Value:
        """A value that a member can have sent. Raises PeerError."""
        if len(value.deps) != self.count or min(value.deps) < 0 or value.seq < 0:
            raise PeerError(f"dependencies {value.deps} are none; give {self.count} numbers from 0")
        try:
            keys_of(value.kind, value.data)
        except CorruptionError as error:
            raise PeerError(str(error)) from None
        return value

    def _void(self) -> Value:
        return Value(Kind.NOOP, b"", (0,) * self.count, 0)

    def _know(self, instance: Instance, value: Value) -> bool:
        """The command of an instance, and whether it is news; void says nothing of what it was."""
        if instance.known or is_void(value):
            return False
        instance.known = True
        instance.keys = keys_of(value.kind, value.data)
        self.conflicts.know(instance.keys, instance.owner, instance.number, value.seq)
        self.graph.know(instance)
        return True

    def _write(self, instance: Instance, out: Outputs) -> None:
        out.persist.append(INSTANCE + instance.record())

    def _vote(self, instance: Instance, ballot: int, phase: str) -> None:
        """Our own vote counts when its record, written just now, is durable."""
        self._own.append((self._token + 1, instance.id, ballot, phase))

    def _promise(self, peer: NodeId, message: Any) -> None:
        """Send what must not be known before all that it rests on is durable."""
        self._promises.append((peer, message))

    def _arm(self, instance: Instance, ticks: int) -> None:
        instance.due = self._now + ticks
        self._due.setdefault(instance.due, []).append(instance.id)

    def _patience(self, attempt: int) -> int:
        ticks = self.options.recovery_ticks << min(attempt, 4)
        return ticks + self._random.randrange(ticks)

    def _arm_recovery(self, instance: Instance) -> None:
        if not self._replaying:
            self._arm(instance, self._patience(instance.attempt))

    def _want(self, ids: Iterable[Id]) -> None:
        """Something depends on these: recover what nobody decides."""
        for id in ids:
            if id not in self.executed and self._known(id):
                self.graph.heard(*id)
                instance = self._instance(id)
                if not instance.due:
                    self._arm_recovery(instance)

    # -- commits --

    def _commit(self, instance: Instance, value: Value, out: Outputs) -> None:
        """It is decided, and others know or can find out."""
        if instance.status >= Status.COMMITTED:
            if instance.value != value:
                out.apply.append(
                    Fatal(
                        f"instance {instance.id} is committed here as {_shown(instance.value)} and told as "
                        f"{_shown(value)}; one of both disks lies"
                    )
                )
            return
        if instance.status == Status.NONE:
            instance.token = self._token + 1
        self._settle(instance, value)
        self._write(instance, out)
        self._execute([instance], out)

    def _settle(self, instance: Instance, value: Value) -> None:
        instance.status, instance.value = Status.COMMITTED, value
        instance.lead = None
        self._waits.discard(instance.id)
        self._proposed.discard(instance.id)
        self.graph.heard(*instance.id)
        self._know(instance, value)
        self._news = True

    def _execute(self, decided: list[Instance], out: Outputs) -> None:
        """Execute what these make possible."""
        self._told(self.graph.run(decided), out)
        if not self._replaying:
            self._want([id for id in self.graph.awaited() if id not in self.instances])

    def _told(self, order: list[Instance], out: Outputs) -> None:
        """These were executed."""
        self._recent += order
        if self._replaying:
            self._retold += order
        elif order:
            self._tell(order, out)

    def _tell(self, order: list[Instance], out: Outputs) -> None:
        entries: list[Entry] = []
        for instance in order:
            value = instance.value
            assert value is not None
            if not self.sealed:
                position = self._position(instance.id)
                # No ballot: members may know a commit from different ones, and entries are the same everywhere.
                entries.append(Entry(position, 0, value.kind, value.data))
                self.sealed = value.kind == Kind.SEAL
            if self._fence is not None and self._fence[0] == instance.id:
                ids, self._fence = self._fence[1], None
                if is_void(value) or self.sealed:
                    self._reads[:0] = ids
                else:
                    # Answered in this very place of the order: nothing that comes behind the fence may be seen.
                    out.apply += [Committed(tuple(entries)), ReadReady(ids, 0)]
                    entries = []
        if entries:
            out.apply.append(Committed(tuple(entries)))

    def _answer_commit(self, peer: NodeId, instance: Instance) -> None:
        assert instance.value is not None
        self._promise(peer, Commit(instance.id, instance.value))

    def _finished(self, out: Outputs) -> Outputs:
        """Let what is promised wait for the records that it rests on."""
        if out.persist:
            self._token += 1
            out.apply.insert(0, Persisted(self._token))
            out.send += self._promises
        elif self._token > self._durable_token:
            self._held += [(self._token, peer, message) for peer, message in self._promises]
        else:
            out.send += self._promises
        self._promises.clear()
        return out


def _shown(value: Value | None) -> str:
    return f"{value.kind.name} of {len(value.data)} bytes, deps {value.deps}, seq {value.seq}" if value else "nothing"
