"""Commands on their way: numbers, sessions, and who hears what."""

from __future__ import annotations

import pytest

from nova.consensus.callers import Callers
from nova.consensus.core import Command, OverloadedError, SessionExpiredError, UnknownOutcomeError
from nova.consensus.sessions import OPEN, WINDOW, Code, Outcome
from nova.errors import UnavailableError


class Waiting:
    """Stands for a future."""

    def __init__(self):
        self.result = self.error = None

    def done(self):
        return self.result is not None or self.error is not None

    def set_result(self, result):
        assert not self.done()
        self.result = result

    def set_exception(self, error):
        assert not self.done()
        self.error = error


class Group:
    """Takes commands; answers when told to."""

    def __init__(self, calls_max=100_000, *, session=7):
        self.taken: list[Command] = []
        self.refusals = 0
        self.callers = Callers(self.submit, lambda: b"fresh", calls_max=calls_max)
        if session:
            self.ask(1)
            self.open(session)
            self.answer(0)

    def submit(self, command):
        if self.refusals:
            self.refusals -= 1
            raise OverloadedError("others fill the queue")
        self.taken.append(command)

    def ask(self, count):
        waiter = Waiting()
        self.holder = self.callers.ask([(b"%d" % n, b"") for n in range(count)], waiter, 0.0)
        return waiter

    def open(self, session):
        (opening,) = self.taken
        assert (opening.session, opening.sequence) == (0, OPEN)
        self.taken.clear()
        self.callers.answered(opening, Outcome(Code.OK, session.to_bytes(8, "big")))
        self.callers.pump()

    def answer(self, place, outcome=None):
        command = self.taken.pop(place)
        return self.callers.answered(command, outcome or Outcome(Code.OK, b"to " + command.data))


def test_the_first_command_opens_a_session_and_numbers_follow():
    group = Group(session=0)
    first, second = group.ask(1), group.ask(2)
    group.open(9)
    assert [(command.session, command.sequence) for command in group.taken] == [(9, 1), (9, 2), (9, 3)]
    group.answer(1)
    assert not first.done()
    assert not second.done()
    group.answer(1)
    assert second.result == [b"to 0", b"to 1"]
    group.answer(0)
    assert first.result == b"to 0"
    assert len(group.callers) == 0


def test_no_more_fly_than_a_session_keeps_answers_of():
    group = Group()
    waiter = group.ask(WINDOW + 10)
    assert len(group.taken) == group.callers.flying == WINDOW
    for _ in range(5):
        group.answer(0)
    group.callers.pump()
    assert len(group.taken) == WINDOW
    assert group.taken[-1].data == b"%d" % (WINDOW + 4)
    while group.taken:
        group.answer(0)
        group.callers.pump()
    assert waiter.result == [b"to %d" % n for n in range(WINDOW + 10)]


def test_what_nobody_waits_for_is_sent_only_if_it_has_a_number():
    group = Group()
    flying, kept, withdrawn = group.ask(WINDOW), group.ask(1), group.ask(1)
    holder = group.holder
    flying.set_exception(TimeoutError())
    assert group.callers.withdraw(holder)
    withdrawn.set_exception(TimeoutError())
    for _ in range(WINDOW):
        group.answer(0)
        group.callers.pump()
    assert [command.sequence for command in group.taken] == [1 + WINDOW + 1]  # the first was of the session's opening
    group.answer(0)
    assert kept.result == b"to 0"


def test_a_waiter_of_which_some_flew_is_not_withdrawn_as_if_nothing_had_happened():
    group = Group()
    group.ask(WINDOW + 1)
    assert not group.callers.withdraw(group.holder)
    assert len(group.callers) == WINDOW


def test_beyond_the_bound_all_are_refused_and_told_when_to_come_back():
    group = Group(calls_max=10)
    group.ask(8)
    with pytest.raises(OverloadedError, match="8 commands wait for an answer, 3 more are too many; the limit is 10"):
        group.ask(3)
    assert len(group.taken) == 8
    for _ in range(100):
        group.ask(1)
        group.answer(0)
        group.callers.ticked(20_000_000)
    assert group.callers.retry_after_ns == pytest.approx(4 * 20_000_000, rel=0.1)  # one a tick: half of 8 in 4


def test_a_full_queue_is_tried_again():
    group = Group()
    group.refusals = 1
    waiter = group.ask(1)
    assert not group.taken
    group.callers.pump()
    group.answer(0)
    assert waiter.result == b"to 0"


def test_an_expired_session_is_told_to_all_that_flew_and_the_rest_goes_in_another():
    group = Group()
    flying, later = group.ask(WINDOW), group.ask(1)
    group.answer(0, Outcome(Code.EXPIRED))
    assert isinstance(flying.error, SessionExpiredError)
    stale = list(group.taken)
    group.taken.clear()
    group.callers.pump()
    group.open(11)
    for command in stale:
        assert group.callers.answered(command, Outcome(Code.EXPIRED)) is None
    assert [(command.session, command.sequence) for command in group.taken] == [(11, 1)]
    group.answer(0)
    assert later.result == b"to 0"


def test_at_the_end_only_what_flew_is_in_doubt():
    group = Group()
    flying, waiting = group.ask(WINDOW), group.ask(1)
    group.callers.fail(UnavailableError("the disk is gone"))
    assert isinstance(flying.error, UnknownOutcomeError)
    assert type(waiting.error) is UnavailableError
    assert len(group.callers) == 0


def test_a_single_command_overtakes_nothing_that_waits():
    group = Group()
    group.ask(WINDOW + 1)
    for _ in range(10):
        group.answer(0)
    late = group.ask(1)
    assert [command.data for command in group.taken[-2:]] == [b"%d" % WINDOW, b"0"]
    while group.taken:
        group.answer(0)
    assert late.result == b"to 0"


def test_the_answer_to_the_opening_of_another_process_opens_nothing():
    group = Group(session=0)
    group.ask(1)
    group.callers.answered(Command(0, OPEN, b"another's"), Outcome(Code.OK, (5).to_bytes(8, "big")))
    assert group.callers.session == 0
    group.open(6)
    assert group.callers.session == 6
