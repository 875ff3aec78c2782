"""Sessions where each region orders its own: they expire there, alike at all members, whatever came between."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.consensus.callers import Callers
from nova.consensus.core import Command, Homes, SessionExpiredError, UnknownOutcomeError
from nova.consensus.sessions import BATCH_MAX, OPEN, Code, Outcome, Sessions
from nova.sim.convergent import ConvergentGroup, RegionalGroup
from nova.sim.machine import Bags, append
from nova.sim.subjects import SUBJECTS

START, STREAMS = 7, 2


def table(own=0, sessions_max=4):
    """Two sessions for each of two regions; epoch from position 7: the odd positions are of the first region."""
    return Sessions(
        Bags(), ordered=False, convergent=True, homes=Homes(START, STREAMS, own), sessions_max=sessions_max, window=3
    )


def at(stream, number):
    """Position of the number-th entry of a stream."""
    return START + number * STREAMS + stream


def opened(sessions, stream, number):
    (outcome,) = sessions.apply(at(stream, number), [Command(0, OPEN, b"")])
    return int.from_bytes(outcome.data, "big")


def told(sessions, stream, number, session, sequence):
    (outcome,) = sessions.apply(at(stream, number), [Command(session, sequence, append("k", number))])
    return outcome.code


def test_of_a_region_that_opened_too_many_the_one_that_was_silent_the_longest_expires():
    sessions = table()
    first, second, other = opened(sessions, 0, 0), opened(sessions, 0, 1), opened(sessions, 1, 0)
    assert told(sessions, 0, 2, first, 1) is Code.OK
    resumed = table()
    resumed.restore(sessions.snapshot())
    third = opened(sessions, 0, 3)
    assert second not in sessions
    assert opened(resumed, 0, 3) == third  # a snapshot tells which was used last, too
    assert resumed.snapshot() == sessions.snapshot()
    assert {first, third, other} == {id for id in (first, second, third, other) if id in sessions}
    assert told(sessions, 0, 4, second, 1) is Code.EXPIRED
    assert told(sessions, 1, 1, other, 1) is Code.OK  # the other region has its own count
    for number in range(5, 50):
        opened(sessions, 0, number)
    assert len(sessions) == 3
    assert other in sessions


def test_a_command_in_the_stream_of_another_region_is_applied_nowhere():
    sessions = table()
    mine = opened(sessions, 0, 0)
    assert told(sessions, 1, 0, mine, 1) is Code.ELSEWHERE
    assert told(sessions, 0, 1, mine, 1) is Code.OK
    assert sessions.applied == 1


def test_what_may_be_proposed():
    sessions = table()
    first, second = opened(sessions, 0, 0), opened(sessions, 0, 1)
    later = (at(0, 9)) * BATCH_MAX
    far = opened(sessions, 1, 5)
    opened(sessions, 0, 2)
    opened(sessions, 1, 6)
    assert len(sessions) == sessions.sessions_max

    def admitted(session, sequence=1):
        refused = sessions.admission(Command(session, sequence, b""), START)
        return None if refused is None else refused.code

    assert admitted(second) is None
    assert admitted(first) is Code.EXPIRED  # its stream has gone on, and forgotten it
    assert admitted(later) is Code.GAP  # it may have been opened, and is on its way here
    assert admitted(far) is Code.ELSEWHERE
    assert admitted(5) is Code.EXPIRED  # from before the epoch, and nobody had it then
    assert sessions.admission(Command(0, OPEN, b""), START) is None  # though there are as many as there may be
    resumed = table()
    resumed.restore(sessions.snapshot())
    assert resumed.admission(Command(first, 1, b""), START).code is Code.EXPIRED


def test_sessions_of_before_the_epoch_are_of_all_regions_and_stay():
    sessions = Sessions(Bags(), ordered=True, sessions_max=4)
    old = [int.from_bytes(sessions.apply(n, [Command(0, OPEN, b"")])[0].data, "big") for n in (1, 2, 3)]
    sessions.order(False, True, Homes(START, STREAMS, 1))
    for number in range(20):
        opened(sessions, number % 2, number)
    assert all(id in sessions for id in old)
    assert len(sessions) == 3 + 4
    assert [told(sessions, stream, 30, id, 1) for stream, id in ((0, old[0]), (1, old[1]))] == [Code.OK, Code.OK]
    # The next epoch begins with as many as there may be, and with those that were opened last.
    kept = sorted(id for id in range(START * BATCH_MAX, 100 * BATCH_MAX, BATCH_MAX) if id in sessions)
    sessions.order(False, True, Homes(1_000, STREAMS, 1))
    assert [id for id in kept if id in sessions] == kept
    assert len(sessions) == 4


streams = st.lists(st.tuples(st.sampled_from("ooccccx"), st.integers(0, 5), st.integers(1, 4)), max_size=30)


@settings(deadline=None)
@given(streams, streams, st.randoms(use_true_random=False), st.integers(0, 60))
def test_members_that_were_told_the_same_hold_the_same_whatever_came_between(one, other, chance, cut):
    def entries(stream, steps):
        """Opens, commands of sessions that may be there, and of the other region's."""
        for number, (what, which, sequence) in enumerate(steps):
            home = 1 - stream if what == "x" else stream
            command = Command(0, OPEN, b"") if what == "o" else (
                Command(at(home, which) * BATCH_MAX, sequence, append(f"{stream}", number * 2 + stream))
            )  # fmt: skip
            yield at(stream, number), command

    def fed(order, cut=-1):
        """One that goes on from its snapshot at `cut`, -1: from none."""
        sessions, left = table(sessions_max=4), [list(entries(0, one)), list(entries(1, other))]
        outcomes = {}
        for number, stream in enumerate(order):
            if number == cut:
                before, sessions = sessions, table(sessions_max=4)
                sessions.restore(before.snapshot())
                assert sessions.snapshot() == before.snapshot()
            position, command = left[stream].pop(0)
            outcomes[position] = sessions.apply(position, [command])
        return sessions, outcomes

    order = [0] * len(one) + [1] * len(other)
    first, answers = fed(order)
    chance.shuffle(order)
    second, others = fed(order, cut)
    assert first.snapshot() == second.snapshot()
    codes = {position: [outcome.code for outcome in told] for position, told in answers.items()}
    assert codes == {position: [outcome.code for outcome in told] for position, told in others.items()}


def test_who_asks_a_member_of_another_region_is_told_that_the_outcome_is_unknown():
    for code, kind in ((Code.EXPIRED, SessionExpiredError), (Code.ELSEWHERE, UnknownOutcomeError)):
        sent, errors = [], []

        class Waiter:
            def done(self):
                return False

            def set_exception(self, error):
                errors.append(error)  # noqa: B023

        callers = Callers(sent.append, lambda: b"n", calls_max=10)
        callers.ask([(b"a", b"")], Waiter(), 0.0)
        callers.answered(sent[0], Outcome(Code.OK, (9).to_bytes(8, "big")))
        callers.pump()
        callers.answered(sent[1], Outcome(code))
        assert [type(error) for error in errors] == [kind]
        assert callers.session == 0


@pytest.mark.parametrize("group", [RegionalGroup, ConvergentGroup])
def test_histories_in_which_sessions_expire(group, monkeypatch):
    """Of clients that stay in their region; and of those that ask anywhere, and are told that this is elsewhere."""
    monkeypatch.setitem(Sessions.__init__.__kwdefaults__, "sessions_max", 4)
    outcomes = Counter()
    admission = Sessions.admission

    def watched(self, command, start):
        refused = admission(self, command, start)
        outcomes[refused and refused.code] += 1
        return refused

    monkeypatch.setattr(Sessions, "admission", watched)
    for seed in range(8):
        assert group(SUBJECTS["hybrid"], seed, seconds=1, clients=8, faults=2).run() == [], seed
    assert outcomes[Code.EXPIRED] > 20
    assert (outcomes[Code.ELSEWHERE] > 0) == (group is ConvergentGroup)
