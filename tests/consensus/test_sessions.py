"""At most once, whatever is sent again: sessions, their answers, gaps, expiry, and the same bytes at every member."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.consensus.core import Command
from nova.consensus.sessions import OPEN, Code, Sessions
from nova.errors import CorruptionError


class Counting:
    """A machine that remembers what it applied."""

    def __init__(self):
        self.applied = []

    def apply(self, commands):
        out = []
        for command in commands:
            self.applied.append(command.data)
            out.append(b"%d" % len(self.applied))
        return out

    def read(self, query):
        return b""

    def snapshot(self):
        return b"\n".join(self.applied)

    def restore(self, data):
        self.applied = data.split(b"\n") if data else []


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def sessions(request, monkeypatch):
    monkeypatch.setattr(Sessions, "compiled", request.param)
    return Sessions(Counting(), sessions_max=3, window=4)


def opened(sessions, position):
    (outcome,) = sessions.apply(position, [Command(0, OPEN, b"nonce")])
    assert outcome.code is Code.OK
    return int.from_bytes(outcome.data, "big")


def test_a_command_is_applied_once_and_answered_alike(sessions):
    id = opened(sessions, 1)
    first = sessions.apply(2, [Command(id, 1, b"a")])
    again = sessions.apply(3, [Command(id, 1, b"a")])
    assert first == again
    assert sessions.machine.applied == [b"a"]
    twice = sessions.apply(4, [Command(id, 2, b"b"), Command(id, 2, b"b")])
    assert twice[0] == twice[1]
    assert sessions.machine.applied == [b"a", b"b"]


def test_what_comes_behind_a_gap_waits_for_what_is_missing(sessions):
    id = opened(sessions, 1)
    assert sessions.apply(2, [Command(id, 2, b"b")])[0].code is Code.GAP
    assert [o.code for o in sessions.apply(3, [Command(id, 1, b"a"), Command(id, 2, b"b")])] == [Code.OK, Code.OK]
    assert sessions.machine.applied == [b"a", b"b"]


def test_a_session_that_was_never_given_is_expired_and_nothing_is_applied(sessions):
    assert sessions.apply(1, [Command(77, 1, b"a")])[0].code is Code.EXPIRED
    assert sessions.machine.applied == []


def test_the_one_that_was_silent_the_longest_expires(sessions):
    ids = [opened(sessions, position) for position in (1, 2, 3)]
    sessions.apply(4, [Command(ids[0], 1, b"a")])
    opened(sessions, 5)
    assert len(sessions) == 3
    codes = [sessions.apply(6, [Command(id, 1, b"x")])[0].code for id in ids]
    assert codes == [Code.OK, Code.EXPIRED, Code.OK]
    assert sessions.machine.applied == [b"a", b"x"]


def test_answers_are_kept_for_a_window(sessions):
    id = opened(sessions, 1)
    for number in range(1, 8):
        sessions.apply(number + 1, [Command(id, number, b"%d" % number)])
    assert sessions.apply(9, [Command(id, 2, b"2")])[0].code is Code.FORGOTTEN
    assert sessions.apply(9, [Command(id, 7, b"7")])[0].data == b"7"
    assert len(sessions.machine.applied) == 7


def test_without_one_order_commands_may_overtake_each_other_within_the_window():
    sessions = Sessions(Counting(), ordered=False, window=4)
    id = opened(sessions, 1)
    codes = [sessions.apply(9, [Command(id, n, b"%d" % n)])[0].code for n in (3, 1, 3, 2, 9)]
    assert codes == [Code.OK, Code.OK, Code.OK, Code.OK, Code.GAP]
    assert sorted(sessions.machine.applied) == [b"1", b"2", b"3"]


commands = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=4), min_size=1, max_size=25
)


@settings(deadline=None)
@given(commands, st.integers(0, 24))
def test_a_snapshot_carries_the_table(batches, cut):
    def feed(sessions, batches, first):
        for position, batch in enumerate(batches, first):
            entries = [
                Command(0, OPEN, b"") if who == 3 else Command((who + 1) * 65_536, sequence, b"%d" % sequence)
                for who, sequence in batch
            ]
            yield sessions.apply(position, entries)

    whole, other = Sessions(Counting(), sessions_max=3), Sessions(Counting(), sessions_max=3)
    for each in (whole, other):
        for position in (1, 2, 3):
            each.apply(position, [Command(0, OPEN, b"")])
    list(feed(other, batches[:cut], 10))
    resumed = Sessions(Counting(), sessions_max=3)
    resumed.restore(other.snapshot())
    assert resumed.snapshot() == other.snapshot()
    told = list(feed(resumed, batches[cut:], 10 + cut))
    assert list(feed(whole, batches, 10))[cut:] == told
    assert whole.snapshot() == resumed.snapshot()


def test_bytes_that_are_no_state_are_refused(sessions):
    with pytest.raises(CorruptionError):
        sessions.restore(b"\xff")


def test_a_command_that_comes_twice_in_a_batch_in_which_its_session_expires_is_no_ones_end(sessions):
    id = opened(sessions, 1)
    command = Command(id, 1, b"a")
    opening = [Command(0, OPEN, b"%d" % n) for n in range(3)]
    told = sessions.apply(2, [command, command, *opening])
    assert [outcome.code for outcome in told] == [Code.OK, Code.EXPIRED, Code.OK, Code.OK, Code.OK]
    assert sessions.machine.applied == [b"a"]
