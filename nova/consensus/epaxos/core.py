"""Egalitarian Paxos: every member orders commands, and only those that interfere are ordered among each other.

A proposal is an instance of its own: pre-accepted by a fast quorum that adds nothing to its dependencies, it is
committed after one round trip; else the union of what was answered is accepted by a majority first (Moraru, Andersen &
Kaminsky 2013). Recovery and its argument: recovery.py. Order of execution: execution.py. What differs from the papers:

- Dependencies are one number for each member (instances.py), not a set.
- `seq` breaks ties within a cycle and nothing else: a command is answered when it is executed, so what is proposed
  later is never executed before it. So a different seq alone costs no fast path.
- A PreAccept leaves when it is durable at its coordinator, and a fast commit takes effect when that is durable too
  (P2, P3 in recovery.py): a command waits for three syncs one behind the other. Accepts leave early.
- A read proposes a fence, a no-op that interferes with everything, and is answered in its place of the order. Reads
  that come meanwhile share the next one. A read costs what a command costs, and may send commands down the slow path.
- The seal of an epoch interferes with everything. What is executed behind the first one is void.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec

from nova.consensus.core import (
    Epoch,
    Fatal,
    Installed,
    Kind,
    OverloadedError,
    ReadLost,
    SealedError,
    Snapshot,
    Status,
    checked_members,
    pack_epoch,
)
from nova.consensus.epaxos import instances
from nova.consensus.epaxos.catchup import CatchUp
from nova.consensus.epaxos.instances import FENCE, Id, Instance, Value, keys_of, unpack_record
from nova.consensus.epaxos.messages import (
    MESSAGES,
    Accept,
    AcceptReply,
    AnyMessage,
    Beat,
    Commit,
    Fetch,
    Gone,
    PreAccept,
    PreAcceptReply,
    Recover,
    RecoverReply,
    Refused,
    SnapshotAsk,
    SnapshotChunk,
    Validate,
    ValidateReply,
    Waiting,
)
from nova.consensus.epaxos.recovery import Lead, Phase
from nova.consensus.epaxos.replica import DECIDED, INSTANCE, SNAPSHOT
from nova.errors import CorruptionError, PeerError, UsageError
from nova.types import NodeId, Outputs, Random


class EPaxos(CatchUp):
    """A member; see `nova.consensus.core.Core`."""

    ordered: ClassVar[bool] = False
    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = MESSAGES

    def __init__(self, node: NodeId, epoch: Epoch, random: Random, now_ns: Callable[[], int]) -> None:
        super().__init__(node, epoch, random, now_ns)
        self._begin_catchup()
        self._seals: set[Id] = set()

    # -- what others see --

    @property
    def leader(self) -> NodeId | None:
        """Every member proposes."""
        return self.node

    @property
    def status(self) -> Status:
        last = max((self._position((owner, self.graph.newest(owner))) for owner in range(self.count)), default=0)
        return Status(
            self.node,
            "epaxos",
            "sealed" if self.sealed else "replica",
            max((instance.ballot for instance in self.instances.values()), default=0),
            self.node,
            len(self.executed),
            last,
            self.members,
            {peer: sum(frontier) for peer, frontier in self._frontiers.items()},
        )

    # -- inputs --

    def step(self, sender: NodeId, message: AnyMessage) -> Outputs:
        """Take a message."""
        if sender not in self._index or sender == self.node:
            raise PeerError(f"{sender} is no peer of {self.node}; members are {list(self.members)}")
        out = Outputs()
        match message:
            case PreAccept():
                self._on_preaccept(sender, message, out)
            case PreAcceptReply():
                self._on_preaccept_reply(sender, message, out)
            case Accept():
                self._on_accept(sender, message, out)
            case AcceptReply():
                self._on_accept_reply(sender, message, out)
            case Commit():
                self._on_commit(sender, message, out)
            case Refused():
                self._on_refused(sender, message, out)
            case Recover():
                self._on_recover(sender, message, out)
            case RecoverReply():
                self._on_recover_reply(sender, message, out)
            case Validate():
                self._on_validate(sender, message, out)
            case ValidateReply():
                self._on_validate_reply(sender, message, out)
            case Waiting():
                self._on_waiting(sender, message, out)
            case Beat():
                self._on_beat(sender, message, out)
            case Fetch():
                self._on_fetch(sender, message, out)
            case Gone():
                self._on_gone(sender, message, out)
            case SnapshotAsk():
                self._on_ask(sender, message, out)
            case SnapshotChunk():
                self._on_chunk(sender, message, out)
        return self._done(out)

    def tick(self) -> Outputs:
        """Let a tick pass."""
        out = Outputs()
        self._now += 1
        for id in self._due.pop(self._now, ()):
            instance = self.instances.get(id)
            if instance is None or instance.due != self._now:
                continue
            instance.due = 0
            if instance.status < instances.Status.COMMITTED:
                self._expired(instance, out)
        if self._now % self.options.beat_ticks == 0:
            self._beat(out)
        self._tick_pull(out)
        return self._done(out)

    def _expired(self, instance: Instance, out: Outputs) -> None:
        if instance.lead is None:
            self._recover(instance, out)
        elif instance.lead.phase is Phase.PREACCEPT:
            self._preaccept_expired(instance, out)
        else:
            self._recovery_expired(instance, out)

    def propose(self, entries: Sequence[tuple[Kind, bytes]]) -> Outputs:
        """Propose these, each as an instance of its own."""
        self._may_propose(len(entries))
        out = Outputs()
        for kind, data in entries:
            self._preaccept(kind, data, out)
        return self._done(out)

    def _may_propose(self, count: int) -> None:
        if self.sealed or any(self._sealing(id) for id in list(self._seals)):
            raise SealedError(f"epoch {self.epoch.number} ends; its successor takes proposals", 50_000_000)
        options = self.options
        if len(self._proposed) + count > options.proposals_max:
            raise OverloadedError(
                f"{len(self._proposed)} proposals have not committed, {count} more are too many; the limit is "
                f"{options.proposals_max}: try again when some have"
            )
        if self.graph.waiting >= options.chain_max:
            raise OverloadedError(
                f"{self.graph.waiting} commands are committed and wait for others that interfere; the limit is "
                f"{options.chain_max}: try again when some are executed"
            )
        if self._next + count > self.executed.frontier[self._me] + options.window:
            raise OverloadedError(
                f"own instance {self.executed.frontier[self._me] + 1} is not executed, and {self._next} is next; the "
                f"window is {options.window}: try again when it is"
            )

    def _sealing(self, id: Id) -> bool:
        """A seal that may come to be; one that turned out void is forgotten."""
        instance = self.instances.get(id)
        if instance is not None and (instance.value is None or not instances.is_void(instance.value)):
            return True
        self._seals.discard(id)
        return False

    def seal(self, successor: Epoch) -> Outputs:
        """Propose the end of this epoch."""
        if successor.number != self.epoch.number + 1:
            raise UsageError(f"epoch {successor.number} can't follow epoch {self.epoch.number}")
        checked_members(self.node, successor)
        out = self.propose([(Kind.SEAL, pack_epoch(successor))])
        self._seals.add((self._me, self._next - 1))
        return out

    def read(self, id: int) -> Outputs:
        """Ask for a linearizable read; `ReadReady` comes with the commands before it."""
        out = Outputs()
        if self.sealed or len(self._reads) >= self.options.reads_max:
            out.apply.append(ReadLost((id,), None))
        else:
            self._reads.append(id)
        return self._done(out)

    def advance(self, token: int) -> Outputs:
        """Everything up to this token is durable."""
        out = Outputs()
        self._durable_token = max(self._durable_token, token)
        while self._held and self._held[0][0] <= self._durable_token:
            _, peer, message = self._held.popleft()
            out.send.append((peer, message))
        while self._own and self._own[0][0] <= self._durable_token:
            _, id, ballot, phase = self._own.popleft()
            self._own_vote(id, ballot, phase, out)
        return self._done(out)

    def _own_vote(self, id: Id, ballot: int, phase: str, out: Outputs) -> None:
        if phase == DECIDED:
            instance = self.instances.get(id)
            if instance is None or instance.value is None:
                return  # a snapshot held it already
            instance.deciding = False
            commit = Commit(id, instance.value)
            out.early += [(peer, commit) for peer in self._peers]
            self._news = True
            self._execute([instance], out)
            return
        led = self._led(id, ballot, Phase(phase))
        if led is None:
            return
        if phase == Phase.PREACCEPT.value:
            assert led.value is not None
            self._preaccepted(self.node, led, (led.value.deps, led.value.seq), out)
        elif phase == Phase.ACCEPT.value:
            self._accepted(self.node, led, out)
        elif phase == Phase.RECOVER.value:
            self._promised(self.node, led, self._state(led), out)
        else:
            found = self._standing_against(led, led.lead.value)
            if found is not None:
                self._validated(self.node, led, found, out)

    # -- the fast path --

    def _preaccept(self, kind: Kind, data: bytes, out: Outputs) -> Id:
        """Make an instance of our own."""
        keys = keys_of(kind, data)
        deps, seq = self.conflicts.deps(keys)
        # Also all that is executed here: see the end of the argument in recovery.py.
        deps = [max(pair) for pair in zip(deps, self.executed.frontier, strict=True)]
        value = Value(kind, data, tuple(deps), seq + 1)
        instance = self._instance((self._me, self._next))
        instance.init = instance.value = value
        instance.status = instances.Status.PREACCEPTED
        instance.token = self._token + 1
        instance.lead = Lead(0, Phase.PREACCEPT, value)
        self._proposed.add(instance.id)
        self._know(instance, value)
        if kind == Kind.SEAL:
            self._seals.add(instance.id)
        self._write(instance, out)
        self._vote(instance, 0, Phase.PREACCEPT.value)
        message = PreAccept(instance.id, value)
        out.send += [(peer, message) for peer in self._peers]
        self._arm(instance, self.options.resend_ticks)
        return instance.id

    def _on_preaccept(self, sender: NodeId, message: PreAccept, out: Outputs) -> None:
        proposed = self._checked(message.value)
        instance = self._open(sender, message.id, 0)
        if instance is None or instance.status > instances.Status.PREACCEPTED:
            return
        if instance.status == instances.Status.NONE:
            keys = keys_of(proposed.kind, proposed.data)
            known, seq = self.conflicts.deps(keys)
            forgotten = self.conflicts.forgotten(proposed.deps)
            deps = tuple(max(each) for each in zip(proposed.deps, known, forgotten, strict=True))
            if deps == proposed.deps:
                seq = 0
            instance.init = proposed
            instance.value = Value(proposed.kind, proposed.data, deps, max(proposed.seq, seq + 1))
            instance.status = instances.Status.PREACCEPTED
            instance.token = self._token + 1
            self._write(instance, out)
            self._learn(instance, proposed, out)
            if proposed.kind == Kind.SEAL:
                self._seals.add(instance.id)
            self._arm_recovery(instance)
        assert instance.value is not None
        self._promise(sender, PreAcceptReply(message.id, instance.value.deps, instance.value.seq))

    def _on_preaccept_reply(self, sender: NodeId, message: PreAcceptReply, out: Outputs) -> None:
        if len(message.deps) != self.count:
            raise PeerError(f"dependencies {message.deps} are none; give {self.count} numbers from 0")
        instance = self._led(message.id, 0, Phase.PREACCEPT)
        if instance is not None:
            self._preaccepted(sender, instance, (message.deps, message.seq), out)

    def _preaccepted(
        self, sender: NodeId, instance: Instance, attributes: tuple[tuple[int, ...], int], out: Outputs
    ) -> None:
        lead = instance.lead
        lead.replies[sender] = attributes
        proposed = (lead.value.deps, lead.value.seq)
        exact = sum(reply == proposed for reply in lead.replies.values())
        if exact >= self.fast:
            instance.deciding = True
            self._settle(instance, lead.value)
            self._write(instance, out)
            self._vote(instance, 0, DECIDED)
        elif len(lead.replies) >= self.slow and (exact < len(lead.replies) or lead.tries):
            self._slow_path(instance, out)

    def _slow_path(self, instance: Instance, out: Outputs) -> None:
        """All that a quorum knows to interfere, and the highest seq."""
        lead = instance.lead
        replies = list(lead.replies.values())
        deps = tuple(max(each) for each in zip(*(reply[0] for reply in replies), strict=True))
        value = Value(lead.value.kind, lead.value.data, deps, max(reply[1] for reply in replies))
        self._propose_accept(instance, value, out)

    def _preaccept_expired(self, instance: Instance, out: Outputs) -> None:
        lead = instance.lead
        lead.tries += 1
        if len(lead.replies) >= self.slow:
            self._slow_path(instance, out)  # those who could make it fast do not answer
            return
        message = PreAccept(instance.id, lead.value)
        if instance.token <= self._durable_token:
            out.early += [(peer, message) for peer in self._peers if peer not in lead.replies]
        self._arm(instance, self.options.resend_ticks)

    # -- recovery of the member itself --

    def restore(self, snapshot: Snapshot) -> None:
        """Start from a snapshot."""
        self._adopt(snapshot)

    def replay(self, record: bytes) -> None:
        """Take a record back."""
        tag, data = record[:1], record[1:]
        self._replaying = True
        try:
            if tag == INSTANCE:
                self._replay_instance(*unpack_record(data))
            elif tag == SNAPSHOT:
                snapshot = self._pieces.take(data)
                if snapshot is not None:
                    again = self._adopt(snapshot)
                    self._installed = snapshot
                    self._retold.clear()
                    self._told(again, Outputs())
                    self._execute_all(Outputs())
            else:
                raise CorruptionError(f"the log of {self.node} holds a record {tag!r} that is not epaxos'")
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(
                f"a record of {len(record)} bytes in the log of {self.node} is none: {error}"
            ) from None
        finally:
            self._replaying = False

    def _replay_instance(
        self, id: Id, ballot: int, accepted: int, status: int, value: Value | None, init: Value | None
    ) -> None:
        if id in self.executed:
            return
        instance = self._instance(id)
        instance.ballot, instance.accepted, instance.init = ballot, accepted, init
        known = init or value
        if status >= instances.Status.COMMITTED:
            assert value is not None
            self._settle(instance, value)
            self._execute([instance], Outputs())
            return
        instance.status, instance.value = instances.Status(status), value
        self.graph.heard(*id)
        if known is not None:
            if known.kind == Kind.SEAL:
                self._seals.add(id)
            self._learn(instance, known, Outputs())

    def recovered(self) -> Outputs:
        """The log is at its end."""
        out = Outputs()
        if self._installed is not None:
            out.apply.append(Installed(self._installed))
            self._installed = None
        if self._retold:
            self._tell(self._retold, out)
            self._retold = []
        self._published = tuple(self.executed.frontier)
        self._news = False
        for instance in self.instances.values():
            if instance.status < instances.Status.COMMITTED:
                # Our own can't go on at ballot 0: we no longer know what was answered. To recover them is quick.
                own = instance.owner == self._me
                self._arm(instance, 1 + self._random.randrange(3) if own else self._patience(0))
        self._want([id for id in self.graph.awaited() if id not in self.instances])
        return self._done(out)

    # -- outputs --

    def _done(self, out: Outputs) -> Outputs:
        if not any(isinstance(event, Fatal) for event in out.apply):
            self._reconsider(out)
            self._begin_read(out)
        return self._finished(out)

    def _begin_read(self, out: Outputs) -> None:
        if not self._reads or self._fence is not None:
            return
        ids, self._reads = tuple(self._reads), []
        if self.sealed:
            out.apply.append(ReadLost(ids, None))
        else:
            self._fence = (self._preaccept(Kind.NOOP, FENCE, out), ids)


__all__ = ["EPaxos"]
