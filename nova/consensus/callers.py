"""The commands of one process on their way through the group: numbered in a session, and who waits for each.

At most as many fly at once as a session keeps answers of: so the answer to one that is asked again is always there.
What nobody waits for any more flies on, for a session's commands are applied in order, without gaps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from nova._native.commands import Call, CallTable
from nova.consensus.core import Command, OverloadedError, SealedError, SessionExpiredError, UnknownOutcomeError
from nova.consensus.sessions import OPEN, WINDOW, Code, Outcome
from nova.errors import NovaError, UnavailableError

RETRY_NS_MIN: Final = 5_000_000
RETRY_NS_MAX: Final = 5_000_000_000


class Waiter(Protocol):
    """Who waits; an asyncio future is one."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


class Many:
    """Waits for the answers to several commands, and hands them on in order when all are there.

    The first failure is what is told; it is told when nothing flies any more, so that nothing else is in doubt.
    """

    __slots__ = ("_answers", "_error", "_left", "_waiter")

    def __init__(self, waiter: Waiter, count: int) -> None:
        self._waiter, self._left = waiter, count
        self._answers: list[bytes | None] = [None] * count
        self._error: NovaError | None = None

    def done(self) -> bool:
        """Nobody waits any more."""
        return self._waiter.done()

    def settle(self, index: int, answer: bytes | NovaError) -> None:
        """One of them has its answer."""
        self._left -= 1
        if isinstance(answer, bytes):
            self._answers[index] = answer
        else:
            self._error = self._error or answer
        if self._left == 0 and not self._waiter.done():
            if self._error is not None:
                self._waiter.set_exception(self._error)
            else:
                self._waiter.set_result(self._answers)

    def set_exception(self, exception: NovaError) -> None:
        """All of them."""
        if not self._waiter.done():
            self._waiter.set_exception(exception)


class Callers(CallTable):
    """All that this process asks for. What is done for each command is in `CallTable`, compiled.

    submit     takes a command (`ReplicatedMachine.submit`)
    fresh      makes bytes that nobody made before: they tell the opening of one session from another
    calls_max  commands that fly or wait to
    """

    def __init__(self, submit: Callable[[Command], None], fresh: Callable[[], bytes], *, calls_max: int) -> None:
        super().__init__(submit, Command, (OverloadedError, SealedError), Code.OK, deque(), WINDOW, calls_max)
        self._submit, self._fresh = submit, fresh
        self._opening: bytes | None = None
        self._per_tick = 0.0
        self._tick_ns = 0

    @property
    def flying(self) -> int:
        """Commands that were submitted and have no answer."""
        return len(self._flying)

    def ask(
        self, commands: Sequence[tuple[bytes, bytes]], waiter: Waiter, now_s: float, timed: bool = False
    ) -> Waiter | Many:
        """Take (data, key) pairs, in order. Raises OverloadedError: then none was taken.

        timed  they fail with `overdue`; else whoever waits sees to that
        """
        if len(commands) == 1:
            self.ask_one(*commands[0], waiter, now_s, timed)
            return waiter
        self.admit(len(commands))
        many = Many(waiter, len(commands))
        self.backlog += [Call(many, index, now_s, data, key, timed) for index, (data, key) in enumerate(commands)]
        self.pump()
        return many

    def _overloaded(self, count: int) -> OverloadedError:
        return OverloadedError(
            f"{len(self)} commands wait for an answer, {count} more are too many; the limit is {self.calls_max}: try "
            "again when some are answered",
            self.retry_after_ns,
        )

    def pump(self) -> None:
        """Let fly what may: after answers, and when time has passed."""
        if not self.session:
            if self.backlog and self._opening is None:
                opening = self._fresh()
                with suppress(OverloadedError, SealedError):
                    self._submit(Command(0, OPEN, opening))
                    self._opening = opening
            return
        backlog, flying = self.backlog, self._flying
        while backlog and len(flying) < WINDOW:
            call = backlog[0]
            if not call.waiter.done() and not self.fly(call):
                return  # others fill the queue, or the successor has not begun: later
            backlog.popleft()

    def _refused(self, command: Command, outcome: Outcome, call: Call) -> None:
        """A command that flew has another outcome than an answer."""
        if outcome.code in (Code.EXPIRED, Code.ELSEWHERE):
            self._flying[command.sequence] = call
            self._ended(elsewhere=outcome.code is Code.ELSEWHERE)
            return
        call.settle(
            UnknownOutcomeError(f"command {command.sequence} of session {command.session}: {outcome.code.name}")
        )

    def _opened(self, command: Command, outcome: Outcome) -> None:
        if command.sequence == OPEN and not command.session and command.data == self._opening:
            self._opening = None
            self.session, self._sequence = int.from_bytes(outcome.data, "big"), 0

    def _ended(self, *, elsewhere: bool) -> None:
        """The session is of no use any more."""
        calls, self._flying = list(self._flying.values()), {}
        error: UnknownOutcomeError = SessionExpiredError(
            f"the group forgot session {self.session}, of which {len(calls)} commands had no answer: each was applied "
            "once or not at all, and will not be any more; look before you ask again"
        )
        if elsewhere:
            error = UnknownOutcomeError(
                f"session {self.session} is of another region than the member that is asked now; {len(calls)} of its "
                "commands had no answer: each is applied there once or not at all, perhaps later. Ask members of one "
                "region"
            )
        self.session = 0
        for call in calls:
            call.settle(error)

    @property
    def opening(self) -> bytes | None:
        """What opens the session that is asked for and not there yet."""
        return self._opening

    def reopen(self) -> None:
        """What was to open a session will not: begin anew."""
        self._opening = None
        self.pump()

    def flies(self, number: int) -> bool:
        """Whether the command with this number has no answer yet."""
        return number in self._flying

    def flown(self, after: int) -> list[tuple[int, Call]]:
        """What flies with a number above this one, in order."""
        flying = self._flying
        return [(number, flying[number]) for number in range(after + 1, self._sequence + 1) if number in flying]

    def refused(self, sequence: int, error: NovaError, rest: NovaError | None = None) -> None:
        """Nothing from this number on was taken, nor will be: the numbers are free again. What waits behind it is told
        the same, `rest` if given: nothing takes effect without what was asked for before it."""
        numbers = [number for number, _ in self.flown(sequence - 1)]
        calls = [self._flying.pop(number) for number in numbers] + list(self.backlog)
        self._sequence = min(self._sequence, sequence - 1)
        self.backlog = deque()
        split: dict[int, NovaError] = {}
        for index, call in enumerate(calls):
            told = rest if rest is not None and index else error
            if isinstance(call.waiter, Many):
                if call.place:  # the first that we meet of this call: those before it were taken
                    retry_ns = error.retry_after_ns if isinstance(error, UnavailableError) else 0
                    text = (
                        f"the first {call.place} of the commands were taken, and may be applied; the others are not: "
                    )
                    told = split.setdefault(id(call.waiter), UnknownOutcomeError(text + str(told), retry_ns))
                else:
                    told = split.setdefault(id(call.waiter), told)
            call.settle(told)

    def withdraw(self, waiter: Waiter | Many) -> bool:
        """Nobody waits for these any more; whether none of them was submitted."""
        self.backlog = deque(call for call in self.backlog if call.waiter is not waiter)
        return not any(call.waiter is waiter for call in self._flying.values())

    def fail(self, error: UnavailableError) -> None:
        """Nothing will be answered any more: those that flew were applied or not; the others were not."""
        unknown = UnknownOutcomeError(f"{error}; the command may have been applied, or not", error.retry_after_ns)
        flying, self._flying = list(self._flying.values()), {}
        backlog, self.backlog = list(self.backlog), deque()
        for call in flying:
            call.settle(unknown)
        for call in backlog:
            call.settle(error)

    def ticked(self, tick_ns: int) -> None:
        """A tick has passed: how fast answers come."""
        self._tick_ns = tick_ns
        self._per_tick += (self._answered - self._per_tick) / 16
        self._answered = 0

    @property
    def retry_after_ns(self) -> int:
        """When half of what waits should have its answer, at the pace of late."""
        if self._per_tick < 0.01:
            return 200_000_000
        return min(RETRY_NS_MAX, max(RETRY_NS_MIN, int(len(self) / 2 / self._per_tick * self._tick_ns)))


__all__ = ["Call", "Callers", "Many", "Waiter"]
