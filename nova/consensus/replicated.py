"""A member of a replicated state machine: a core that orders, the sessions, the machine, and what of it is on disk.

It does no I/O and is driven like every core of the house (`nova.runtime.Runtime`, `nova.sim.World`): `step`, `tick`,
`turn`, and `applied` with each event once its records are durable. Messages leave as (epoch, message): one of an
earlier epoch is answered with the present one and otherwise ignored (`nova.consensus.chain`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from nova._native import commands as native
from nova._native.commands import Pending, name_of
from nova.consensus.chain import Chain, Frame, Written
from nova.consensus.core import (
    Command,
    Core,
    Entry,
    Epoch,
    Fatal,
    Kind,
    Make,
    NotLeaderError,
    OverloadedError,
    ReadLost,
    ReadReady,
    Reconfigurable,
    SealedError,
    Snapshot,
    homes_of,
    is_convergent,
    pack,
    unpack,
)
from nova.consensus.frontier import Frontier
from nova.consensus.notices import CONTROL
from nova.consensus.sessions import BATCH_MAX, OPEN, Code, Machine, Outcome, Sessions
from nova.errors import CorruptionError, UsageError
from nova.types import NodeId, Outputs, Random


class Forward(msgspec.Struct, frozen=True, array_like=True, tag="F"):
    """Commands for the leader, from a member that is not."""

    commands: list[Command]


class Answered(msgspec.Struct, frozen=True):
    """Event: a command that was submitted here was applied, or refused by its session."""

    command: Command
    outcome: Outcome
    position: int


class ReadAnswered(msgspec.Struct, frozen=True):
    """Event: what a read found. Linearizable: it holds every command that was answered before the read was asked."""

    id: int
    data: bytes


class ReadsAnswered(msgspec.Struct, frozen=True):
    """Event: what the queries of a `read_many` found, in their order. REFUSED: the machine raised; its message."""

    id: int
    outcomes: tuple[Outcome, ...]


class Checkpoint(msgspec.Struct, frozen=True):
    """Event: save this as the snapshot that covers the log up to `position`, then drop the log before it."""

    position: int
    state: bytes
    epoch: int = 0


class ReplicatedConfig(msgspec.Struct, frozen=True):
    """Limits of a member.

    queue_max        commands that wait here to be proposed; more raise OverloadedError
    pending_max      commands that wait here for an answer
    entry_bytes_max  of one entry; a batch is closed before it gets larger
    retry_ticks      after as many without an answer, a command of a session is proposed again
    """

    queue_max: int = 65_536
    pending_max: int = 262_144
    entry_bytes_max: int = 256 * 1024
    retry_ticks: int = 20


MESSAGES: Final = (Forward, *CONTROL)


class ReplicatedMachine:
    """One member.

    epoch      the one that a member without any history begins with
    protocols  name -> maker of its core
    log_last   position of the newest record of the log, for checkpoints
    """

    def __init__(
        self,
        node: NodeId,
        epoch: Epoch,
        machine: Machine,
        *,
        protocols: Mapping[str, Make],
        random: Random,
        now_ns: Callable[[], int],
        log_last: Callable[[], int],
        config: ReplicatedConfig | None = None,
    ) -> None:
        self.node, self.machine = node, machine
        self.config = config or ReplicatedConfig()
        self._log_last = log_last
        self.chain = Chain(node, epoch, self, protocols=protocols, random=random, now_ns=now_ns)
        core = self.core
        self.sessions = Sessions(machine, ordered=core.ordered, convergent=is_convergent(core), homes=homes_of(core))
        self.applied_position = epoch.start - 1
        self.failure: str | None = None
        self._term = 0
        self._queue: deque[Command] = deque()
        self._pending: dict[tuple[int, int, bytes], Pending] = {}
        self._reads: dict[int, bytes | tuple[bytes, ...]] = {}
        self._ready: list[tuple[int, int]] = []  # (position, id) of reads that wait until this much is applied
        self._since_checkpoint = 0
        self._strangers: dict[tuple[int, int, bytes], int] = {}  # commands that wait for their session to be known
        self._askers: dict[NodeId, int] = {}  # who forwarded commands, and the position of the newest; 0: queued
        self._followed: NodeId | None = None  # the leader to whom, or by whom, what is pending was proposed

    @property
    def epoch(self) -> Epoch:
        """The newest epoch that began here."""
        return self.chain.epoch

    @property
    def core(self) -> Core:
        """Its core."""
        return self.chain.core

    # -- clients --

    def submit(self, command: Command) -> None:
        """Take a command; it is proposed at the next turn, and an `Answered` follows if it is applied while we live.

        Without an answer it may have been applied or not. Raises OverloadedError: then it was not taken.
        """
        if native.submit(self._pending, self._queue, command, OPEN, self.config):
            return
        if len(command.data) > self.config.entry_bytes_max:
            raise UsageError(f"a command of {len(command.data)} bytes; the limit is {self.config.entry_bytes_max}")
        raise OverloadedError(
            f"{len(self._queue)} commands wait to be proposed and {len(self._pending)} for an answer; the limits are "
            f"{self.config.queue_max} and {self.config.pending_max}: try again when some are answered"
        )

    def forget_read(self, id: int) -> None:
        """Nobody waits for this read any more."""
        self._reads.pop(id, None)

    def forget(self, command: Command) -> None:
        """Nobody waits for this any more (a time-out): it may still be applied, or never."""
        self._strangers.pop(name_of(command), None)
        self._pending.pop(name_of(command), None)

    def read(self, id: int, query: bytes, after: Frontier | None = None) -> Outputs:
        """Read linearizably; a `ReadAnswered` follows, or a ReadLost: ask again. Raises NotLeaderError.

        Where members are convergent: read what is here, when it holds all that was seen by a session (`after`). Raises
        UnavailableError if that is of an epoch of which nothing is known here.
        """
        return self._read(id, query, after)

    def read_many(self, id: int, queries: Sequence[bytes], after: Frontier | None = None) -> Outputs:
        """As `read`, with many queries for the price of one: a `ReadsAnswered` follows."""
        return self._read(id, tuple(queries), after)

    @property
    def frontier(self) -> Frontier:
        """What a session has seen that was answered here just now; it joins these, and reads behind them."""
        return self.chain.frontier

    def _read(self, id: int, asked: bytes | tuple[bytes, ...], after: Frontier | None) -> Outputs:
        if len(self._reads) >= self.config.pending_max:
            raise OverloadedError(f"{len(self._reads)} reads wait for an answer; try again when some are answered")
        self._reads[id] = asked
        try:
            return self._done(self.chain.read(id, after))
        except BaseException:
            del self._reads[id]
            raise

    @property
    def queued(self) -> int:
        """Commands that wait for a `turn`."""
        return len(self._queue)

    @property
    def pending(self) -> int:
        """Commands that were submitted here and wait for an answer."""
        return len(self._pending)

    @property
    def since_checkpoint(self) -> int:
        """Entries applied that no checkpoint covers."""
        return self._since_checkpoint

    # -- operators --

    def change(self, voters: Iterable[NodeId], learners: Iterable[NodeId] = ()) -> Outputs:
        """Change the members; see `Reconfigurable`. Raises UsageError for a protocol that cannot."""
        return self._done(self.chain.core_does(self._reconfigurable().change(voters, learners)))

    def transfer(self, target: NodeId) -> Outputs:
        """Hand leadership over; see `Reconfigurable`. Raises UsageError for a protocol that cannot."""
        return self._done(self.chain.core_does(self._reconfigurable().transfer(target)))

    def lead(self) -> Outputs:
        """Try to lead at once; see `Core.lead`."""
        return self._done(self.chain.core_does(self.core.lead()))

    @property
    def changing(self) -> bool:
        """A change of members is under way."""
        return isinstance(self.core, Reconfigurable) and self.core.changing

    def _reconfigurable(self) -> Reconfigurable:
        if not isinstance(self.core, Reconfigurable):
            raise UsageError(f"{self.epoch.protocol} has no leader to hand over and no members that change in an epoch")
        return self.core

    def switch(self, protocol: str, members: Sequence[NodeId] = (), options: dict[str, Any] | None = None) -> Outputs:
        """End this epoch, to go on with another protocol, or among others (default: the present members).

        `Switched` follows with the epoch that came: another one if somebody was first. Raises UsageError for what can't
        start, UnavailableError while the present epoch is not settled or has no leader. Then nothing was proposed.
        """
        voters = tuple(sorted(members)) or self.core.status.members
        return self._done(self.chain.switch(Epoch(self.epoch.number + 1, protocol, voters, options=options or {})))

    # -- the driver's side --

    def step(self, sender: NodeId, frame: Frame) -> Outputs:
        """Take a frame of a peer."""
        message = frame[1]
        if isinstance(message, Forward):
            # Whoever sent them asks again, so they stop at one that does not lead and at a queue that is full.
            if self.core.leader == self.node:
                self._askers[sender] = 0
                for command in message.commands[: max(0, self.config.queue_max - len(self._queue))]:
                    # One that no member could have submitted would fit into no entry.
                    if len(command.data) + len(command.key) <= 2 * self.config.entry_bytes_max:
                        self._queue.append(command)
            return Outputs()
        return self._done(self.chain.step(sender, frame))

    def tick(self) -> Outputs:
        """Let a tick pass; commands of sessions that have waited too long are proposed again."""
        if native.aged(self._pending, self.config.retry_ticks):
            self._ask_again(self.config.retry_ticks)
        return self._done(self.chain.tick())

    def _ask_again(self, age_ticks_min: int) -> None:
        """Queue anew what has waited so long: in the order of its submission, for a session's commands have one."""
        for pending in self._pending.values():
            if not pending.queued and pending.age >= age_ticks_min and pending.retries:
                pending.age, pending.queued = 0, True
        others = [command for command in self._queue if name_of(command) not in self._pending]
        self._queue = deque(others)
        self._queue += [pending.command for pending in self._pending.values() if pending.queued]

    def turn(self) -> Outputs:
        """Propose, or forward to the leader, what was submitted since the last turn."""
        out = Outputs()
        queued = bool(self._queue)
        convergent = queued and is_convergent(self.core)
        if convergent and not self.chain.whole:
            return self._done(out)  # what is admitted is a matter of the state before this epoch
        while self._queue:
            batch = self._batch()
            if convergent and not (batch := self._admitted(batch, out)):
                continue
            try:
                # Without a leader they stay in the queue; else they are on their way, and wait for their answer.
                out.extend(self.chain.propose([(Kind.COMMANDS, pack(batch))]))
            except NotLeaderError as error:
                if error.leader in (None, self.node):
                    self._queue.extendleft(reversed(batch))
                    break
                out.early.append((error.leader, (self.epoch.number, Forward(batch))))
            except (OverloadedError, SealedError):
                self._queue.extendleft(reversed(batch))
                break
            native.proposed(self._pending, batch)
        if queued and self._askers:
            last = self.core.status.last
            self._askers = {asker: position or last for asker, position in self._askers.items()}
        return self._done(out)

    def _admitted(self, batch: list[Command], out: Outputs) -> list[Command]:
        """Those that may be proposed; see `Sessions.admission`. Some are answered, and some wait until they are due."""
        admitted: list[Command] = []
        for command in batch:
            refused = self.sessions.admission(command, self.epoch.start)
            name = name_of(command)
            if refused is None:
                admitted.append(command)
            elif refused.code is not Code.GAP:
                if self._pending.pop(name, None) is not None:
                    out.apply.append(Answered(command, refused, self.applied_position))
            elif (pending := self._pending.get(name)) is not None:
                pending.queued = False
                if command.session and command.session not in self.sessions:
                    self._strangers[name] = command.session
        return admitted

    def _welcome(self) -> None:
        """Commands whose session was not known here may be proposed when it is."""
        for name, session in list(self._strangers.items()):
            if session in self.sessions:
                del self._strangers[name]
                pending = self._pending.get(name)
                if pending is not None and not pending.queued:
                    pending.queued = True
                    self._queue.append(pending.command)

    def _batch(self) -> list[Command]:
        # Without a total order an entry is what commutes or not; where all of it does, that is nothing to go by.
        many = self.core.ordered or is_convergent(self.core)
        return native.take(self._queue, BATCH_MAX if many else 1, self.config.entry_bytes_max)

    def applied(self, event: Any) -> Outputs:
        """An event is due: its records are on disk, and so is the state of a `Checkpoint`. All others were acted upon
        when they came out."""
        if isinstance(event, Written):
            return self._done(self.chain.advance(event))
        return self.chain.saved(event.epoch) if isinstance(event, Checkpoint) else Outputs()

    # -- what the chain asks of its owner --

    def ended(self, position: int) -> int:
        """Where an epoch ends."""
        self.applied_position = max(self.applied_position, position)
        return self.applied_position

    def state(self) -> bytes:
        """Machine and sessions."""
        return self.sessions.snapshot()

    def reached(self, core: Core) -> None:
        """What is applied from here on is told by this core."""
        self.sessions.order(core.ordered, is_convergent(core), homes_of(core))

    def began(self) -> list[Any]:
        """Ask the new epoch for what the old one may have left void; sessions tell what was applied."""
        self._askers.clear()
        self._strangers.clear()
        self._ask_again(0)
        ready = {id for _, id in self._ready}
        lost = tuple(id for id in self._reads if id not in ready)
        for id in lost:
            del self._reads[id]
        return [ReadLost(lost, None)] if lost else []

    def heed(self, event: ReadReady | ReadLost | Fatal) -> list[Any]:
        """What the newest core told."""
        match event:
            case ReadReady(ids, position):
                self._ready += [(position, id) for id in ids]
                return self._answer_reads()
            case ReadLost(ids, _):
                for id in ids:
                    self._reads.pop(id, None)
            case Fatal(reason):
                self.failure = reason
                raise CorruptionError(f"{self.node}: {reason}")
        return []

    def apply(self, entries: Sequence[Entry]) -> list[Any]:
        """Apply decided entries."""
        out: list[Any] = []
        for entry in entries:
            if self.sessions.ordered:
                if entry.position <= self.applied_position:
                    continue  # told again after a restart, or covered by a snapshot
                if entry.position != self.applied_position + 1:
                    raise CorruptionError(
                        f"{self.node} was told position {entry.position} after {self.applied_position}"
                    )
                self.applied_position = entry.position
            self._term = max(self._term, entry.term)
            self._since_checkpoint += 1
            if entry.kind != Kind.COMMANDS:
                continue
            commands = unpack(entry.data)
            if not self.sessions.ordered:  # no-ops commute, so members have told different ones: they don't count
                self.applied_position = max(self.applied_position, entry.position)
            outcomes = self.sessions.apply(entry.position, commands)
            out += native.answer(
                self._pending, commands, outcomes, entry.position, Answered, Code.GAP, self.config.retry_ticks
            )
        if self._strangers:
            self._welcome()
        return out + self._answer_reads()

    def _answer_reads(self) -> list[Any]:
        if not self.chain.whole:
            return []  # without one order a position does not tell that the prefix is missing
        out: list[Any] = []
        later: list[tuple[int, int]] = []
        for position, id in self._ready:
            query = self._reads.get(id)
            if query is None:
                continue
            # Without one order the core tells it in its place.
            if self.sessions.ordered and position > self.applied_position:
                later.append((position, id))
                continue
            del self._reads[id]
            if isinstance(query, bytes):
                out.append(ReadAnswered(id, self.machine.read(query)))
            else:
                found = native.found(self.machine.read, query, Outcome, Code.OK, Code.REFUSED)
                out.append(ReadsAnswered(id, tuple(found)))
        self._ready = later
        return out

    def install(self, snapshot: Snapshot, start: int) -> None:
        """Replace machine and sessions by a state of the epoch that begins at `start`."""
        self.sessions.restore(snapshot.state)
        # Without one order members told different no-ops, so positions of commands count alone.
        last = snapshot.position if self.sessions.ordered else self.sessions.last
        self.applied_position = max(last, start - 1)
        self._term = max(snapshot.term, self._term)

    # -- outputs --

    def _done(self, out: Outputs) -> Outputs:
        if self._askers:
            self._tell_askers(out)
        if (leader := self.core.leader) != self._followed:
            self._followed = leader
            self._askers.clear()
            if leader is not None and self._pending:
                self._ask_again(0)  # what the last one was given may be lost with it
        return out

    def _tell_askers(self, out: Outputs) -> None:
        """Whoever forwarded commands waits until it hears that they are committed."""
        tell = getattr(self.core, "tell", None)
        for asker, position in list(self._askers.items()):
            if not 0 < position <= self.applied_position:
                continue
            told = tell(asker, position).early if tell is not None else []
            out.early += [(peer, (self.epoch.number, message)) for peer, message in told]
            if told or tell is None:
                del self._askers[asker]

    # -- recovery --

    @property
    def checkpoint_wanted(self) -> bool:
        """One is due however little it covers: an epoch began, or a peer needs one."""
        wanted = self._since_checkpoint > 0 and getattr(self.core, "snapshot_wanted", False)
        return self.chain.owed or (self.chain.whole and wanted)

    def checkpoint(self, out: Outputs, least: int = 1) -> bool:
        """Let the log begin anew, behind what `out` (of this turn) persists, with a snapshot of what is applied: if it
        is `least` entries more than in the last one, or `checkpoint_wanted`. Whether it does; not while the epoch waits
        for what was before it."""
        if not self.chain.whole or (self._since_checkpoint < least and not self.checkpoint_wanted):
            return False
        self._since_checkpoint = 0
        position = self._log_last() + len(out.persist)
        snapshot = self.core.snapshot(self.applied_position, self.sessions.snapshot())
        records = self.chain.compact(snapshot)
        out.extend(Outputs(persist=records, apply=[Checkpoint(position, self.chain.save(snapshot), self.epoch.number)]))
        return True

    def not_saved(self) -> None:
        """The state of the last checkpoint did not reach the disk."""
        self.chain.not_saved()

    def restore(self, state: bytes) -> None:
        """Start from the state of a `Checkpoint`, before `replay`. Raises CorruptionError."""
        snapshot = self.chain.restore(state)
        self.reached(self.core)
        self.install(snapshot, self.epoch.start)

    def replay(self, record: bytes) -> None:
        """Take a record of the log back, oldest first."""
        self.chain.replay(record)

    def recovered(self) -> Outputs:
        """The log is at its end; what comes back is to be done like that of any other call."""
        return self._done(self.chain.recovered())
