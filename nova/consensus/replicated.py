"""A member of a replicated state machine: a core that orders, the sessions, the machine, and what of it is on disk.

It does no I/O and is driven like every core of the house (`nova.runtime.Runtime`, `nova.sim.World`): `step`, `tick`,
`turn`, and `applied` with each event once its records are durable. Messages leave as (epoch, message): one of an
earlier epoch is answered with the present one and otherwise ignored (`nova.consensus.chain`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

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
    SealedError,
    Snapshot,
    pack,
    unpack,
)
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


class _Pending:
    __slots__ = ("age", "command", "queued")

    def __init__(self, command: Command) -> None:
        self.command = command
        self.age = 0
        self.queued = True


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
        self.sessions = Sessions(machine, ordered=self.core.ordered)
        self.applied_position = epoch.start - 1
        self.failure: str | None = None
        self._term = 0
        self._queue: deque[Command] = deque()
        self._pending: dict[tuple[int, int, bytes], _Pending] = {}
        self._reads: dict[int, bytes] = {}
        self._ready: list[tuple[int, int]] = []  # (position, id) of reads that wait until this much is applied
        self._since_checkpoint = 0

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
        if len(self._queue) >= self.config.queue_max or len(self._pending) >= self.config.pending_max:
            raise OverloadedError(
                f"{len(self._queue)} commands wait to be proposed and {len(self._pending)} for an answer; the limits "
                f"are {self.config.queue_max} and {self.config.pending_max}: try again when some are answered"
            )
        if len(command.data) > self.config.entry_bytes_max:
            raise UsageError(f"a command of {len(command.data)} bytes; the limit is {self.config.entry_bytes_max}")
        name = _name(command)
        if name not in self._pending:
            self._pending[name] = _Pending(command)
            self._queue.append(command)

    def forget_read(self, id: int) -> None:
        """Nobody waits for this read any more."""
        self._reads.pop(id, None)

    def forget(self, command: Command) -> None:
        """Nobody waits for this any more (a time-out): it may still be applied, or never."""
        self._pending.pop(_name(command), None)

    def read(self, id: int, query: bytes) -> Outputs:
        """Read linearizably; a `ReadAnswered` follows, or a ReadLost: ask again. Raises NotLeaderError."""
        if len(self._reads) >= self.config.pending_max:
            raise OverloadedError(f"{len(self._reads)} reads wait for an answer; try again when some are answered")
        self._reads[id] = query
        try:
            return self.chain.read(id)
        except BaseException:
            del self._reads[id]
            raise

    # -- the driver's side --

    def step(self, sender: NodeId, frame: Frame) -> Outputs:
        """Take a frame of a peer."""
        if isinstance(frame[1], Forward):
            for command in frame[1].commands[: self.config.queue_max - len(self._queue)]:
                # One that no member could have submitted would fit into no entry.
                if len(command.data) + len(command.key) <= 2 * self.config.entry_bytes_max:
                    self._queue.append(command)
            return Outputs()
        return self.chain.step(sender, frame)

    def tick(self) -> Outputs:
        """Let a tick pass; commands of sessions that have waited too long are proposed again."""
        for pending in self._pending.values():
            pending.age += 1
            again = pending.command.session or pending.command.sequence == OPEN
            if not pending.queued and again and pending.age >= self.config.retry_ticks:
                pending.age, pending.queued = 0, True
                self._queue.append(pending.command)
        return self.chain.tick()

    def turn(self) -> Outputs:
        """Propose, or forward to the leader, what was submitted since the last turn."""
        out = Outputs()
        while self._queue:
            batch = self._batch()
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
            for command in batch:
                if (pending := self._pending.get(_name(command))) is not None:
                    pending.queued = False
        return out

    def _batch(self) -> list[Command]:
        batch: list[Command] = []
        size = 0
        while self._queue and len(batch) < BATCH_MAX:
            size += len(self._queue[0].data) + len(self._queue[0].key) + 24
            if batch and size > self.config.entry_bytes_max:
                break
            batch.append(self._queue.popleft())
            if not self.core.ordered:  # an entry is what commutes or not
                break
        return batch

    def applied(self, event: Any) -> Outputs:
        """An event is due: its records are on disk, and so is the state of a `Checkpoint`. All others were acted upon
        when they came out."""
        if isinstance(event, Written):
            return self.chain.advance(event)
        return self.chain.saved(event.epoch) if isinstance(event, Checkpoint) else Outputs()

    def switch(self, protocol: str, members: Sequence[NodeId] = (), options: dict[str, Any] | None = None) -> Outputs:
        """End this epoch, to go on with another protocol, or among others (default: the present members).

        `Switched` follows with the epoch that came: another one if somebody was first. Raises UsageError for what can't
        start, UnavailableError while the present epoch is not settled or has no leader. Then nothing was proposed.
        """
        voters = tuple(sorted(members)) or self.core.status.members
        return self.chain.switch(Epoch(self.epoch.number + 1, protocol, voters, options=options or {}))

    # -- what the chain asks of its owner --

    def ended(self, position: int) -> int:
        """Where an epoch ends."""
        self.applied_position = max(self.applied_position, position)
        return self.applied_position

    def state(self) -> bytes:
        """Machine and sessions."""
        return self.sessions.snapshot()

    def reached(self, ordered: bool) -> None:
        """What is applied from here on is of an epoch with, or without, one order."""
        self.sessions.order(ordered)

    def began(self) -> list[Any]:
        """Ask the new epoch for what the old one may have left void; sessions tell what was applied."""
        again = []
        for pending in self._pending.values():
            if not pending.queued and (pending.command.session or pending.command.sequence == OPEN):
                pending.age, pending.queued = 0, True
                again.append(pending.command)
        self._queue.extendleft(reversed(again))
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
            for command, outcome in zip(commands, self.sessions.apply(entry.position, commands), strict=True):
                if outcome.code is Code.GAP:
                    continue  # not applied, and may yet be: the asker proposes again what is missing before it
                if self._pending.pop(_name(command), None) is not None:
                    out.append(Answered(command, outcome, entry.position))
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
            out.append(ReadAnswered(id, self.machine.read(query)))
        self._ready = later
        return out

    def install(self, snapshot: Snapshot, start: int) -> None:
        """Replace machine and sessions by a state of the epoch that begins at `start`."""
        self.sessions.restore(snapshot.state)
        # Without one order members told different no-ops, so positions of commands count alone.
        last = snapshot.position if self.sessions.ordered else self.sessions.last
        self.applied_position = max(last, start - 1)
        self._term = max(snapshot.term, self._term)

    # -- recovery --

    def checkpoint(self, out: Outputs, least: int = 1) -> None:
        """Let the log begin anew, behind what `out` (of this turn) persists, with a snapshot of what is applied: if it
        is `least` entries more than in the last one."""
        wanted = self.chain.owed or (self._since_checkpoint and self.core.snapshot_wanted)
        if not self.chain.whole or (self._since_checkpoint < least and not wanted):
            return
        self._since_checkpoint = 0
        position = self._log_last() + len(out.persist)
        snapshot = self.core.snapshot(self.applied_position, self.sessions.snapshot())
        records = self.chain.compact(snapshot)
        out.extend(Outputs(persist=records, apply=[Checkpoint(position, self.chain.save(snapshot), self.epoch.number)]))

    def restore(self, state: bytes) -> None:
        """Start from the state of a `Checkpoint`, before `replay`. Raises CorruptionError."""
        snapshot = self.chain.restore(state)
        self.sessions.order(self.core.ordered)
        self.install(snapshot, self.epoch.start)

    def replay(self, record: bytes) -> None:
        """Take a record of the log back, oldest first."""
        self.chain.replay(record)

    def recovered(self) -> Outputs:
        """The log is at its end; what comes back is to be done like that of any other call."""
        return self.chain.recovered()


def _name(command: Command) -> tuple[int, int, bytes]:
    if command.session:
        return command.session, command.sequence, b""
    return 0, command.sequence, command.data
