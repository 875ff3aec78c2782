"""At most once: what each client asked before, and what it was told (Ongaro 2014, chapter 6).

The table is part of the replicated state: it is changed only by applied commands, so every member holds the same one,
and a snapshot carries it. A session is opened by a command of its own, whose place in the order names it, so an id that
is not in the table was never given or has expired: a retry of an old command can't run a second time.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, ClassVar, Final, Protocol

import msgspec

from nova._native.commands import Session, apply_fresh
from nova.consensus.core import Command, Homes
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
    ELSEWHERE = 5  # the session is of another region: not applied now, and what is asked there may be


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
    homes         of such members whose streams have one order each (nova.consensus.hybrid). A session is of the stream
                  in which it was opened: only what comes there is applied, so that one stream decides of it. So it may
                  expire, when its own stream has opened too many; those from before the epoch do not, and are of all
    sessions_max  (divided among `homes`) beyond, one expires: that which was silent the longest, or, without one order,
                  the oldest. Commands that open sessions have no key, so they stand in one order with all others
                  everywhere
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
        homes: Homes | None = None,
        sessions_max: int = SESSIONS_MAX,
        window: int = WINDOW,
    ) -> None:
        self.machine = machine
        self.convergent, self.homes = convergent, homes
        self.ordered, self.sessions_max, self.window = ordered, sessions_max, window
        self._sessions: OrderedDict[int, Session] = OrderedDict()
        self._opened: Counter[int] = Counter()  # stream -> sessions that it opened and that are known
        self._reached = 0  # position of the newest entry of the own stream
        self.applied = 0
        """Commands that reached the machine."""
        self.last = 0
        """The highest position of any command."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session: int) -> bool:
        return session in self._sessions

    def order(self, ordered: bool, convergent: bool = False, homes: Homes | None = None) -> None:
        """Go on under a protocol with, or without, one order: from a table that is the same everywhere."""
        self.convergent = convergent
        if ordered != self.ordered or homes != self.homes:
            self.ordered, self.homes = ordered, homes
            self._sessions = OrderedDict(sorted(self._sessions.items()))
            # In an epoch of regions none of these expires, and the next one would have them beside its own.
            while homes is not None and len(self._sessions) > self.sessions_max:
                self._sessions.popitem(last=False)
            self._count()

    def _count(self) -> None:
        """What follows from the table."""
        self._opened.clear()
        self._reached = 0
        for id in self._sessions:
            home = self._home(id)
            if self.homes is not None and home is not None:
                self._opened[home] += 1
                if home == self.homes.own:
                    self._reached = max(self._reached, id // BATCH_MAX)

    def _home(self, session: int) -> int | None:
        """The stream that a session is of; None: any."""
        homes = self.homes
        if homes is None or session < homes.start * BATCH_MAX:
            return None
        return homes.stream(session // BATCH_MAX)

    def admission(self, command: Command, start: int) -> Outcome | None:
        """Before a command is proposed where members are convergent: None if it may be.

        What this member admits all others will: they apply it behind all that was applied here. GAP: not yet, for its
        session is not known here, or what comes before it; EXPIRED: its session is older than the epoch, which begins
        at `start` with a table that is the same everywhere, or its own stream has forgotten it; ELSEWHERE: it is not of
        the own stream. Any other: it was applied.
        """
        if not command.session:
            full = command.sequence == OPEN and self.homes is None and len(self._sessions) >= self.sessions_max
            return Outcome(Code.GAP) if full else None  # it waits for the end of the epoch
        home = self._home(command.session)
        if home is not None and self.homes is not None and home != self.homes.own:
            return Outcome(Code.ELSEWHERE)
        refused = self._refusal(self._sessions.get(command.session), command)
        if refused is None or refused.code is not Code.EXPIRED:
            return refused
        known = home is not None and command.session // BATCH_MAX <= self._reached
        young = command.session >= start * BATCH_MAX
        return Outcome(Code.GAP) if young and not known else refused

    def apply(self, position: int, commands: Sequence[Command]) -> list[Outcome]:
        """Apply the commands of one entry; an outcome for each. The id of an opened session is 8 bytes, big-endian."""
        self.last = max(self.last, position)
        stream = self.homes.stream(position) if self.homes is not None else None
        if self.homes is not None and stream == self.homes.own:
            self._reached = position
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
            home = self._home(command.session)
            if home != stream and home is not None:
                outcomes[place] = Outcome(Code.ELSEWHERE)
                continue
            refused = self._refusal(session, command)
            if refused is not None:
                outcomes[place] = refused
                continue
            assert session is not None
            # Where members apply in different orders they would forget different ones, but for those of one stream.
            if self.ordered or home is not None:
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
        if (home := self._home(id)) is not None:
            self._opened[home] += 1
            assert self.homes is not None
            if self._opened[home] > max(1, self.sessions_max // self.homes.streams):
                del self._sessions[next(other for other in self._sessions if self._home(other) == home)]
                self._opened[home] -= 1
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
            for id, session in (
                self._sessions.items() if self.ordered else sorted(self._sessions.items(), key=self._at)
            )
        ]
        packed: bytes = _pack((self.applied, self.last, table, self.machine.snapshot()))
        return packed

    def _at(self, item: tuple[int, Session]) -> tuple[int, int]:
        """Where one stands in a state, without one order: those of a stream stay in the order of their use."""
        home = self._home(item[0])
        return (-1, item[0]) if home is None else (home, 0)

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
        self._count()
        self.machine.restore(machine)


def _plain(outcome: Outcome) -> tuple[int, bytes]:
    return int(outcome.code), outcome.data


_State = tuple[int, int, list[tuple[int, int, list[tuple[int, int, bytes]]]], bytes]
_pack: Any = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_State).decode
