"""A member of a replicated state machine: a core that orders, the sessions, the machine, and what of it is on disk.

It does no I/O and is driven like every core of the house (`nova.runtime.Runtime`, `nova.sim.World`): `step`, `tick`,
`turn`, and `applied` with each event once its records are durable. Messages leave as (epoch, message): one of an
earlier epoch is answered with the present one and otherwise ignored, so nothing of an ended epoch can count in its
successor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from nova.consensus.core import (
    Command,
    Committed,
    Core,
    Entry,
    Epoch,
    Fatal,
    Installed,
    Kind,
    Make,
    NotLeaderError,
    OverloadedError,
    Persisted,
    ReadLost,
    ReadReady,
    SealedError,
    Snapshot,
    pack,
    unpack,
)
from nova.consensus.sessions import BATCH_MAX, OPEN, Code, Machine, Outcome, Sessions
from nova.errors import CorruptionError, PeerError, UsageError
from nova.types import NodeId, Outputs, Random

Frame = tuple[int, Any]
"""(number of the epoch, message): what members send each other."""


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


MESSAGES: Final = (Forward,)


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
        self._protocols, self._random, self._now_ns, self._log_last = protocols, random, now_ns, log_last
        self.epoch = epoch
        self.core = self._make(epoch)
        self.sessions = Sessions(machine, ordered=self.core.ordered)
        self.applied_position = epoch.start - 1
        self.failure: str | None = None
        self._term = 0
        self._queue: deque[Command] = deque()
        self._pending: dict[tuple[int, int, bytes], _Pending] = {}
        self._reads: dict[int, bytes] = {}
        self._ready: list[tuple[int, int]] = []  # (position, id) of reads that wait until this much is applied
        self._since_checkpoint = 0

    def _make(self, epoch: Epoch) -> Core:
        try:
            make = self._protocols[epoch.protocol]
        except KeyError:
            known = ", ".join(sorted(self._protocols))
            raise UsageError(f"protocol {epoch.protocol!r} is unknown; there are {known}") from None
        return make(self.node, epoch, self._random, self._now_ns)

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
            return self._framed(self.core.read(id))
        except BaseException:
            del self._reads[id]
            raise

    # -- the driver's side --

    def step(self, sender: NodeId, frame: Frame) -> Outputs:
        """Take a frame of a peer."""
        number, message = frame
        if number != self.epoch.number:
            return Outputs()
        if isinstance(message, Forward):
            for command in message.commands[: self.config.queue_max - len(self._queue)]:
                self._queue.append(command)
            return Outputs()
        if not isinstance(message, self.core.messages):
            raise PeerError(f"{sender} sent a {type(message).__name__}; {self.epoch.protocol} knows no such message")
        return self._framed(self.core.step(sender, message))

    def tick(self) -> Outputs:
        """Let a tick pass; commands of sessions that have waited too long are proposed again."""
        for pending in self._pending.values():
            pending.age += 1
            again = pending.command.session or pending.command.sequence == OPEN
            if not pending.queued and again and pending.age >= self.config.retry_ticks:
                pending.age, pending.queued = 0, True
                self._queue.append(pending.command)
        return self._framed(self.core.tick())

    def turn(self) -> Outputs:
        """Propose, or forward to the leader, what was submitted since the last turn."""
        out = Outputs()
        while self._queue:
            batch = self._batch()
            try:
                # Without a leader they stay in the queue; else they are on their way, and wait for their answer.
                out.extend(self.core.propose([(Kind.COMMANDS, pack(batch))]))
            except NotLeaderError as error:
                if error.leader in (None, self.node):
                    self._queue.extendleft(reversed(batch))
                    break
                out.early.append((error.leader, Forward(batch)))
            except (OverloadedError, SealedError):
                self._queue.extendleft(reversed(batch))
                break
            for command in batch:
                if (pending := self._pending.get(_name(command))) is not None:
                    pending.queued = False
        return self._framed(out)

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
        """An event is due: its records are on disk. All but `Persisted` were acted upon when they came out."""
        return self._framed(self.core.advance(event.token)) if isinstance(event, Persisted) else Outputs()

    def _heed(self, event: Any) -> list[Any]:
        """What follows from an event of the core. What is decided is decided, whatever our own disk still writes."""
        match event:
            case Committed(entries):
                return self._apply(entries)
            case ReadReady(ids, position):
                self._ready += [(position, id) for id in ids]
                return self._answer_reads()
            case ReadLost(ids, _):
                for id in ids:
                    self._reads.pop(id, None)
            case Installed(snapshot):
                self._install(snapshot)
                return self._answer_reads()
            case Fatal(reason):
                self.failure = reason
                raise CorruptionError(f"{self.node}: {reason}")
        return []

    def _apply(self, entries: tuple[Entry, ...]) -> list[Any]:
        out: list[Any] = []
        for entry in entries:
            if self.core.ordered:
                if entry.position <= self.applied_position:
                    continue  # told again after a restart, or covered by a snapshot
                if entry.position != self.applied_position + 1:
                    raise CorruptionError(
                        f"{self.node} was told position {entry.position} after {self.applied_position}"
                    )
            self.applied_position = max(self.applied_position, entry.position)
            self._term = max(self._term, entry.term)
            self._since_checkpoint += 1
            if entry.kind != Kind.COMMANDS:
                continue
            commands = unpack(entry.data)
            for command, outcome in zip(commands, self.sessions.apply(entry.position, commands), strict=True):
                if outcome.code is Code.GAP:
                    continue  # not applied, and may yet be: the asker proposes again what is missing before it
                if self._pending.pop(_name(command), None) is not None:
                    out.append(Answered(command, outcome, entry.position))
        return out + self._answer_reads()

    def _answer_reads(self) -> list[Any]:
        out: list[Any] = []
        later: list[tuple[int, int]] = []
        for position, id in self._ready:
            query = self._reads.get(id)
            if query is None:
                continue
            if position > self.applied_position:
                later.append((position, id))
                continue
            del self._reads[id]
            out.append(ReadAnswered(id, self.machine.read(query)))
        self._ready = later
        return out

    def _install(self, snapshot: Snapshot) -> None:
        # Without a total order a position says nothing about what a state holds; the core knows.
        if self.core.ordered and snapshot.position <= self.applied_position:
            return
        self.sessions.restore(snapshot.state)
        self.applied_position, self._term = snapshot.position, snapshot.term

    def _framed(self, out: Outputs) -> Outputs:
        number = self.epoch.number
        if out.send:
            out.send = [(peer, (number, message)) for peer, message in out.send]
        if out.early:
            out.early = [(peer, (number, message)) for peer, message in out.early]
        if out.apply:
            out.apply += [more for event in out.apply for more in self._heed(event)]
        return out

    # -- recovery --

    def checkpoint(self, out: Outputs, least: int = 1) -> None:
        """Let the log begin anew, behind what `out` (of this turn) persists, with a snapshot of what is applied: if it
        is `least` entries more than in the last one."""
        wanted = self._since_checkpoint and getattr(self.core, "snapshot_wanted", False)
        if self._since_checkpoint < least and not wanted:
            return
        self._since_checkpoint = 0
        position = self._log_last() + len(out.persist)
        snapshot = self.core.snapshot(self.applied_position, self.sessions.snapshot())
        records = self.core.compact(snapshot)
        out.extend(Outputs(persist=records, apply=[Checkpoint(position, _pack((self.epoch, snapshot)))]))

    def restore(self, state: bytes) -> None:
        """Start from the state of a `Checkpoint`, before `replay`."""
        try:
            self.epoch, snapshot = _unpack(state)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"the snapshot of {self.node} is none: {error}") from None
        self.core = self._make(self.epoch)
        self.core.restore(snapshot)
        self._install(snapshot)

    def replay(self, record: bytes) -> None:
        """Take a record of the log back, oldest first."""
        self.core.replay(record)

    def recovered(self) -> Outputs:
        """The log is at its end; what comes back is to be done like that of any other call."""
        return self._framed(self.core.recovered())


def _name(command: Command) -> tuple[int, int, bytes]:
    if command.session:
        return command.session, command.sequence, b""
    return 0, command.sequence, command.data


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[Epoch, Snapshot]).decode
