"""What each command passes, compiled: against the rules in Python, and with what no member of good faith sends."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova._native import commands as native
from nova.consensus.callers import Callers
from nova.consensus.core import Command, OverloadedError
from nova.consensus.replicated import Answered, ReplicatedConfig
from nova.consensus.sessions import OPEN, Code, Outcome, Sessions
from nova.errors import CorruptionError


class Register:
    """Says how many commands it has seen."""

    def __init__(self):
        self.seen = []

    def apply(self, commands):
        out = [b"%d" % (len(self.seen) + number) for number, _ in enumerate(commands)]
        self.seen += [command.data for command in commands]
        return out

    def read(self, query):
        return bytes(10 // len(query))

    def snapshot(self):
        return b"".join(self.seen)

    def restore(self, data):
        self.seen = [data]


class Plain(Sessions):
    compiled = False


ids = st.sampled_from([0, 1 << 16, 2 << 16, 3 << 16, 7, (1 << 64) - 1])
sequences = st.one_of(st.integers(1, 9), st.sampled_from([0, -1, OPEN, OPEN - 1, (1 << 64) - 1, -(1 << 63), 1 << 62]))
runs = st.builds(
    lambda id, first, count: [Command(id, first + n, b"%d" % n) for n in range(count)],
    st.sampled_from([1 << 16, 2 << 16]),
    st.integers(1, 8),
    st.integers(1, 9),
)
odd = st.builds(lambda id, sequence: [Command(id, sequence, b"odd")], ids, sequences)
batches = st.lists(st.one_of(runs, odd), max_size=4).map(lambda parts: [each for part in parts for each in part])


@given(st.lists(batches, max_size=8), st.booleans(), st.sampled_from([1, 3, 100]))
@settings(max_examples=400, deadline=None)
def test_what_is_compiled_does_what_the_rules_say(entries, ordered, window):
    both = [kind(Register(), ordered=ordered, sessions_max=3, window=window) for kind in (Sessions, Plain)]
    for table in both:
        table.apply(1, [Command(0, OPEN, b"")])
        table.apply(2, [Command(0, OPEN, b"")])
    for position, batch in enumerate(entries, start=3):
        told, expected = (table.apply(position, batch) for table in both)
        assert told == expected
        assert both[0].snapshot() == both[1].snapshot()
        assert both[0].machine.seen == both[1].machine.seen


def usual(count=3, **changed):
    """Arguments of `apply_fresh` that it takes."""
    sessions = OrderedDict({5: native.Session(0), 6: native.Session(0)})
    given = {
        "sessions": sessions, "commands": [Command(5, n + 1, b"x") for n in range(count)], "apply": Register().apply,
        "outcome": Outcome, "ok": Code.OK, "ordered": True, "window": 4,
    }  # fmt: skip
    return {**given, **changed}


def test_a_batch_of_the_usual_kind_is_not_left_to_python():
    given = usual()
    assert [each.data for each in native.apply_fresh(**given)] == [b"0", b"1", b"2"]
    assert list(given["sessions"]) == [6, 5]
    assert given["sessions"][5].floor == 3


def test_what_was_applied_above_the_floor_is_joined_to_it_by_what_was_missing():
    given = usual(1, ordered=False)
    given["sessions"][5] = native.Session(0, {2: Outcome(Code.OK), 3: Outcome(Code.OK)})
    native.apply_fresh(**given)
    assert given["sessions"][5].floor == 3


@pytest.mark.parametrize("command", [Command(5, 2, b""), Command(5, 0, b""), Command(7, 1, b""), Command(0, 1, b"")])
def test_one_that_is_not_leaves_all_as_it_was(command):
    given = usual()
    given["commands"].append(command)
    given["apply"] = lambda commands: pytest.fail("it was applied")
    assert native.apply_fresh(**given) is None
    assert given["sessions"][5].floor == 0
    assert given["sessions"][5].answers == {}


@pytest.mark.parametrize("answers", [[], [b""] * 2, [b""] * 4])
def test_a_machine_that_miscounts_is_found_out(answers):
    with pytest.raises(CorruptionError, match=f"{len(answers)} answers to 3"):
        native.apply_fresh(**usual(apply=lambda commands: answers))


def test_a_machine_may_do_what_it_likes_with_the_list_that_it_gets():
    def eats(commands):
        out = [b""] * len(commands)
        commands.clear()
        return out

    given = usual(apply=eats)
    assert len(native.apply_fresh(**given)) == 3
    assert len(given["commands"]) == 3


def test_a_machine_that_raises_has_changed_no_session():
    given = usual(apply=lambda commands: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        native.apply_fresh(**given)
    assert given["sessions"][5].answers == {}


@pytest.mark.parametrize("wrong", [{5: 1}, {5: None}, {5: "session"}])
def test_a_table_of_something_else_is_refused(wrong):
    with pytest.raises(TypeError):
        native.apply_fresh(**usual(sessions=OrderedDict(wrong)))


@pytest.mark.parametrize("floor", [-1, (1 << 62) + 1, (1 << 64) - 1])
def test_a_floor_that_no_client_counts_to_is_refused(floor):
    with pytest.raises((ValueError, OverflowError)):
        native.Session(floor)
    with pytest.raises(CorruptionError, match="a state of"):
        Sessions(Register()).restore(msgspec.msgpack.encode((0, 0, [(5, floor, [])], b"")))


def test_a_queue_is_taken_by_count_and_bytes_and_never_nothing():
    queue = deque(Command(1, n, b"x" * 10) for n in range(6))
    assert [each.sequence for each in native.take(queue, 2, 1 << 20)] == [0, 1]
    assert [each.sequence for each in native.take(queue, 9, 3 * 34)] == [2, 3, 4]
    assert [each.sequence for each in native.take(queue, 9, 1)] == [5]
    assert native.take(queue, 9, 1) == []


def test_an_answer_ends_the_wait_and_a_gap_does_not():
    pending, queue = {}, deque()
    mine, other = Command(5, 1, b"a"), Command(5, 2, b"b")
    for command in (mine, other, mine):
        native.submit(pending, queue, command, OPEN, ReplicatedConfig())
    assert list(queue) == [mine, other]
    assert not native.aged(pending, 1)  # they wait for their turn
    native.proposed(pending, [mine, other, Command(9, 9, b"")])
    assert native.aged(pending, 2)
    told = [Outcome(Code.OK, b"yes"), Outcome(Code.GAP)]
    assert native.answer(pending, [mine, other], told, 7, Answered, Code.GAP, 50) == [Answered(mine, told[0], 7)]
    assert list(pending) == [native.name_of(other)]
    assert pending[native.name_of(other)].age == 50
    with pytest.raises(CorruptionError, match="1 outcomes of 2"):
        native.answer(pending, [mine, other], told[:1], 7, Answered, Code.GAP, 50)


@pytest.mark.parametrize("limits", [{"queue_max": 2}, {"pending_max": 2}, {"entry_bytes_max": 1}])
def test_beyond_its_limits_a_queue_takes_nothing(limits):
    pending, queue = {}, deque()
    took = [
        native.submit(pending, queue, Command(5, 1 + n, b"a" * n), OPEN, ReplicatedConfig(**limits)) for n in range(3)
    ]
    assert took == [True, True, False]
    assert len(queue) == len(pending) == 2


def test_nobody_holds_what_was_answered():
    pending, queue = {}, deque()
    command = Command(5, 1, b"a" * 50)
    count = sys.getrefcount(command)
    native.submit(pending, queue, command, OPEN, ReplicatedConfig())
    native.proposed(pending, native.take(queue, 9, 9999))
    native.answer(pending, [command], [Outcome(Code.OK)], 7, Answered, Code.GAP, 50)
    assert sys.getrefcount(command) == count


class Waiting:
    """Stands for a future."""

    def __init__(self):
        self.told = None

    def done(self):
        return self.told is not None

    def set_result(self, result):
        self.told = result

    set_exception = set_result


def test_calls_whose_time_is_over_are_found_and_those_of_their_own_time_are_not():
    callers = Callers(lambda command: None, lambda: b"fresh", calls_max=9)
    waiters = [Waiting() for _ in range(5)]
    for number, waiter in enumerate(waiters):
        callers.ask_one(b"", b"", waiter, float(number), number != 1)
    waiters[0].told = b"done"
    assert callers.overdue(3.5) == waiters[2:4]
    callers.answered(Command(0, OPEN, b"fresh"), Outcome(Code.OK, bytes(7) + b"\7"))
    callers.pump()
    assert callers.flying == 4
    assert callers.overdue(3.5) == waiters[2:4]


def test_a_call_too_many_is_refused_and_leaves_no_trace():
    callers = Callers(lambda command: None, lambda: b"fresh", calls_max=1)
    callers.ask_one(b"", b"", Waiting(), 0.0)
    with pytest.raises(OverloadedError, match="the limit is 1"):
        callers.ask_one(b"", b"", Waiting(), 0.0)
    assert len(callers) == 1


def test_events_of_another_kind_go_on_and_an_error_in_settling_is_fatal():
    callers = Callers(lambda command: None, lambda: b"fresh", calls_max=9)
    callers.session = 7
    others, errors, took = [], [], []
    take = native.Answers(
        callers, Answered, observe=took.append, clock=lambda: 5.0, pump=lambda: None, other=others.append,
        fatal=errors.append,
    )  # fmt: skip
    waiter = Waiting()
    callers.ask_one(b"", b"", waiter, 2.0)
    callers.ask_one(b"", b"", None, 2.0)  # whose settling raises
    take("an event")
    take(Answered(Command(7, 1, b""), Outcome(Code.OK, b"yes"), 3))
    take(Answered(Command(7, 2, b""), Outcome(Code.OK, b"yes"), 3))
    assert others == ["an event"]
    assert (waiter.told, took) == (b"yes", [3.0])
    assert [type(error) for error in errors] == [AttributeError]


def test_queries_that_the_machine_cannot_answer_are_refused_alone():
    told = native.found(Register().read, [b"12345", b"", b"1"], Outcome, Code.OK, Code.REFUSED)
    assert [each.code for each in told] == [Code.OK, Code.REFUSED, Code.OK]
    waiters = [Waiting(), Waiting(), Waiting()]
    waiters[2].told = b"given up"
    native.settle_reads([(b"", each, 0.0, True) for each in waiters], told, Code.OK, lambda outcome: outcome.data)
    assert [each.told for each in waiters] == [
        bytes(2),
        b"ZeroDivisionError: integer division or modulo by zero",
        b"given up",
    ]
    with pytest.raises(CorruptionError, match="2 outcomes of 3"):
        native.settle_reads([(b"", each, 0.0, True) for each in waiters], told[:2], Code.OK, lambda outcome: outcome)
