"""At most once: what each client asked before, and what it was told (Ongaro 2014, chapter 6).

The table is part of the replicated state: it is changed only by applied commands, so every member holds the same one,
and a snapshot carries it. A session is opened by a command of its own, whose place in the order names it, so an id that
is not in the table was never given or has expired: a retry of an old command can't run a second time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, ClassVar, Final, Protocol

import msgspec

from nova._native.commands import Session, apply_fresh
from nova.consensus.core import Command
from nova.errors import CorruptionError

SESSIONS_MAX: Final = 10_000
WINDOW: Final = 1_024
BATCH_MAX: Final = 1 << 16
"""Commands of one entry: the id of a session is made of a position and a place in its batch."""


class Code(IntEnum):
    """What became of a command."""

    OK = 0
    EXPIRED = 1  # the session is not known (any more); it was not applied now, and may have been before
    GAP = 2  # an earlier command of the session is missing: not applied
    FORGOTTEN = 3  # applied before, longer ago than answers are kept
    REFUSED = 4  # the machine raised; `data` is its message


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The answer to one command; `data` is the machine's."""

    code: Code
    data: bytes = b""


class Machine(Protocol):
    """What commands are applied to: deterministic, the same at every member."""

    def apply(self, commands: Sequence[Command]) -> list[bytes]:
        """Apply in order; an answer for each."""

    def read(self, query: bytes) -> bytes:
        """Answer without changing anything."""

    def snapshot(self) -> bytes:
        """The whole state; equal states give equal bytes."""

    def restore(self, data: bytes) -> None:
        """Replace the state."""


OPEN: Final = (1 << 63) - 1
"""`sequence` of the command (of session 0) that opens a session; its data tells retries apart for the asker only."""


class Sessions:
    """The table, and the commands that pass through it to the machine.

    ordered       commands of a session must come in order; what comes after a gap is refused. Otherwise (EPaxos) those
                  of different keys may overtake each other within `window`
    convergent    members apply concurrent commands in different orders (nova.consensus.eventual). No answer is kept
                  then, for it may differ, and no session expires: `admission` refuses at the proposer what would
    sessions_max  beyond, one expires: that which was silent the longest, or, without one order, the oldest. Commands
                  that open sessions have no key, so they stand in one order with all others everywhere
    window        answers kept of each session

    A batch in which every command is the next one of its session, which is nearly all that ever comes, goes through
    `apply_fresh`, compiled; the rules for the others are here, and hold for that one, too.
    """

    compiled: ClassVar[bool] = True
    """Tests turn it off, to hold both against each other."""

    def __init__(
        self,
        machine: Machine,
        *,
        ordered: bool = True,
        convergent: bool = False,
        sessions_max: int = SESSIONS_MAX,
        window: int = WINDOW,
    ) -> None:
        self.machine = machine
        self.convergent = convergent
        self.ordered, self.sessions_max, self.window = ordered, sessions_max, window
        self._sessions: OrderedDict[int, Session] = OrderedDict()
        self.applied = 0
        """Commands that reached the machine."""
        self.last = 0
        """The highest position of any command."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session: int) -> bool:
        return session in self._sessions

    def order(self, ordered: bool, convergent: bool = False) -> None:
        """Go on under a protocol with, or without, one order: from a table that is the same everywhere."""
        self.convergent = convergent
        if ordered != self.ordered:
            self.ordered = ordered
            self._sessions = OrderedDict(sorted(self._sessions.items()))

    def admission(self, command: Command, start: int) -> Outcome | None:
        """Before a command is proposed where members are convergent: None if it may be.

        What this member admits all others will: they apply it behind all that was applied here. GAP: not yet, for its
        session is not known here, or what comes before it; EXPIRED: its session is older than the epoch, which begins
        at `start` with a table that is the same everywhere. Any other: it was applied.
        """
        if command.session:
            refused = self._refusal(self._sessions.get(command.session), command)
            young = command.session >= start * BATCH_MAX
            return Outcome(Code.GAP) if refused is not None and refused.code is Code.EXPIRED and young else refused
        full = command.sequence == OPEN and len(self._sessions) >= self.sessions_max
        return Outcome(Code.GAP) if full else None  # it waits for the end of the epoch

    def apply(self, position: int, commands: Sequence[Command]) -> list[Outcome]:
        """Apply the commands of one entry; an outcome for each. The id of an opened session is 8 bytes, big-endian."""
        self.last = max(self.last, position)
        if self.compiled and not self.convergent:  # where answers are kept
            usual = apply_fresh(
                self._sessions, commands, self.machine.apply, Outcome, Code.OK, self.ordered, self.window
            )
            if usual is not None:
                self.applied += len(usual)
                return usual
        outcomes: list[Outcome | None] = [None] * len(commands)
        fresh: list[tuple[int, Command, Session | None]] = []
        waiting: set[tuple[int, int]] = set()
        for place, command in enumerate(commands):
            if not command.session:
                if command.sequence == OPEN:
                    outcomes[place] = self._open(position, place)
                else:
                    fresh.append((place, command, None))
                continue
            if (command.session, command.sequence) in waiting:  # twice in one batch: applied below, answered from there
                continue
            session = self._sessions.get(command.session)
            refused = self._refusal(session, command)
            if refused is not None:
                outcomes[place] = refused
                continue
            assert session is not None
            if self.ordered:  # else members apply in different orders, and would forget different ones
                self._sessions.move_to_end(command.session)
            self._reserve(session, command.sequence)
            waiting.add((command.session, command.sequence))
            fresh.append((place, command, session))
        if fresh:
            self.applied += len(fresh)
            answers = self.machine.apply([command for _, command, _ in fresh])
            if len(answers) != len(fresh):
                raise CorruptionError(f"the machine gave {len(answers)} answers to {len(fresh)} commands")
            for (place, command, session), answer in zip(fresh, answers, strict=True):
                outcomes[place] = outcome = Outcome(Code.OK, answer)
                if session is not None and command.sequence in session.answers and not self.convergent:
                    session.answers[command.sequence] = outcome
        return [
            outcome if outcome is not None else self._told(command)
            for outcome, command in zip(outcomes, commands, strict=True)
        ]

    def _open(self, position: int, place: int) -> Outcome:
        id = position * BATCH_MAX + place
        self._sessions[id] = Session()
        while len(self._sessions) > self.sessions_max and not self.convergent:
            if self.ordered:
                self._sessions.popitem(last=False)
            else:  # a member that got a snapshot does not know in which order they were opened
                del self._sessions[min(other for other in self._sessions if other != id)]
        return Outcome(Code.OK, id.to_bytes(8, "big"))

    def _refusal(self, session: Session | None, command: Command) -> Outcome | None:
        if session is None:
            return Outcome(Code.EXPIRED)
        told: Outcome | None = session.answers.get(command.sequence)
        if told is not None:
            return told
        if command.sequence <= session.floor:
            return Outcome(Code.FORGOTTEN)
        if self.ordered and command.sequence != session.floor + 1:
            return Outcome(Code.GAP)
        return Outcome(Code.GAP) if command.sequence > session.floor + self.window else None

    def _reserve(self, session: Session, sequence: int) -> None:
        session.reserve(sequence, Outcome(Code.FORGOTTEN), self.window)  # replaced by the answer, a moment later

    def _told(self, command: Command) -> Outcome:
        session = self._sessions.get(command.session)
        if session is None:  # one that was opened behind it in the batch has let it expire
            return Outcome(Code.EXPIRED)
        told: Outcome = session.answers.get(command.sequence, Outcome(Code.FORGOTTEN))
        return told

    def snapshot(self) -> bytes:
        """The machine and the table; equal states give equal bytes."""
        table = [
            (id, session.floor, sorted((sequence, *_plain(told)) for sequence, told in session.answers.items()))
            for id, session in (self._sessions.items() if self.ordered else sorted(self._sessions.items()))
        ]
        packed: bytes = _pack((self.applied, self.last, table, self.machine.snapshot()))
        return packed

    def restore(self, data: bytes) -> None:
        """Replace both. Raises CorruptionError."""
        try:
            self.applied, self.last, table, machine = _unpack(data)
            sessions = OrderedDict(
                (id, Session(floor, {sequence: Outcome(Code(code), told) for sequence, code, told in answers}))
                for id, floor, answers in table
            )
        except (msgspec.MsgspecError, ValueError, OverflowError) as error:
            raise CorruptionError(f"a state of {len(data)} bytes is none: {error}") from None
        self._sessions = sessions
        self.machine.restore(machine)


def _plain(outcome: Outcome) -> tuple[int, bytes]:
    return int(outcome.code), outcome.data


_State = tuple[int, int, list[tuple[int, int, list[tuple[int, int, bytes]]]], bytes]
_pack: Any = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_State).decode
