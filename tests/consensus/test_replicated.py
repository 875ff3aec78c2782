"""Members without a driver: what they forward, ask again, and hold void."""

from __future__ import annotations

import random
from collections import deque

import pytest

from nova.consensus.chain import Written
from nova.consensus.core import Command, Epoch
from nova.consensus.frames import FrameCodec
from nova.consensus.notices import Which
from nova.consensus.protocols import all_messages, protocols
from nova.consensus.raft.messages import Append
from nova.consensus.replicated import Answered, Forward, ReadsAnswered, ReplicatedConfig, ReplicatedMachine
from nova.consensus.sessions import OPEN, Code, Outcome
from nova.errors import PeerError
from nova.sim.machine import KeyValue, answer, append, get


class Three:
    """Members a, b and c; disks are done at once, messages when a test delivers them."""

    def __init__(self, **config):
        self.now = 0
        self.events = {name: [] for name in "abc"}
        self.flying = deque()
        self.members = {
            name: ReplicatedMachine(
                name,
                Epoch(0, "raft", ("a", "b", "c")),
                KeyValue(),
                protocols=protocols(),
                random=random.Random(name),
                now_ns=lambda: self.now,
                log_last=lambda: 0,
                config=ReplicatedConfig(**config),
            )
            for name in "abc"
        }
        while self["a"].core.role != "leader":
            self.take("a", self["a"].tick())
            self.deliver()

    def __getitem__(self, name):
        return self.members[name]

    def take(self, name, out):
        for peer, frame in (*out.early, *out.send):
            self.flying.append((name, peer, frame))
        for event in out.apply:
            if isinstance(event, Written):
                self.take(name, self[name].applied(event))
            else:
                self.events[name].append(event)

    def deliver(self, lost=lambda source, target, message: False):
        while self.flying:
            source, target, frame = self.flying.popleft()
            if not lost(source, target, frame[1]):
                self.take(target, self[target].step(source, frame))

    def turn(self, name):
        self.take(name, self[name].turn())

    def submit(self, name, *commands):
        for command in commands:
            self[name].submit(command)
        self.turn(name)

    def session(self, name):
        self.submit(name, Command(0, OPEN, name.encode()))
        self.settle()
        return int.from_bytes(self.answers(name)[-1].outcome.data, "big")

    def settle(self):
        for _ in range(3):
            self.deliver()
            for name in "abc":
                self.turn(name)
                self.take(name, self[name].tick())
        self.deliver()

    def answers(self, name):
        return [event for event in self.events[name] if isinstance(event, Answered)]


def test_whoever_forwarded_commands_hears_of_the_commit_before_any_tick():
    group = Three()
    session = group.session("b")
    group.submit("b", Command(session, 1, append("k", 7)))
    group.deliver()
    group.turn("a")
    group.deliver()  # no tick passes
    assert [each.outcome.code for each in group.answers("b")] == [Code.OK, Code.OK]
    # Also if the leader hears last of the asker that it has the entry, when the others have made the commit.
    group.submit("b", Command(session, 2, append("k", 8)))
    group.deliver()
    group.turn("a")
    late = []

    def from_b(source, target, message):
        if source == "b":
            late.append((source, target, (0, message)))
        return source == "b"

    group.deliver(from_b)
    assert group["a"].machine.values == {"k": [7, 8]}
    assert len(group.answers("b")) == 3
    group.flying += late
    group.deliver()
    assert [answer(each.outcome.data) for each in group.answers("b")[1:]] == [1, 2]


def test_what_a_lost_leader_was_given_goes_to_the_next_one_at_once_and_in_order():
    group = Three()
    session = group.session("b")
    group.submit("b", *(Command(session, number, append("k", number)) for number in range(1, 6)))
    group.flying.clear()  # the forwarded ones are lost with the leader
    group.submit("b", Command(session, 6, append("k", 6)))
    group.flying.clear()
    for name in "bc":
        group[name].core._heard = 100
    cut = lambda source, target, message: "a" in (source, target)  # noqa: E731
    while group["c"].core.role != "leader":
        group.take("c", group["c"].tick())
        group.deliver(cut)
    assert [command.sequence for command in group["b"]._queue] == [1, 2, 3, 4, 5, 6]
    group.turn("b")
    group.deliver(cut)
    group.turn("c")
    group.deliver(cut)
    assert [answer(each.outcome.data) for each in group.answers("b")[1:]] == [1, 2, 3, 4, 5, 6]


def test_a_command_behind_a_gap_is_proposed_again_soon_after_what_was_missing():
    group = Three(retry_ticks=5)
    session = group.session("b")
    group.submit("b", Command(session, 1, append("k", 1)))
    group.flying.clear()  # lost
    group.submit("b", Command(session, 2, append("k", 2)))
    group.settle()
    assert len(group.answers("b")) == 1  # of the session
    for _ in range(3):
        group.settle()
    assert group["c"].machine.values == {"k": [1, 2]}
    assert [answer(each.outcome.data) for each in group.answers("b")[1:]] == [1, 2]


def test_a_full_queue_takes_no_forwarded_command_and_one_that_follows_takes_none_at_all():
    group = Three(queue_max=3)
    commands = [Command(1, number, b"") for number in range(10)]
    group["a"].step("b", (0, Forward(commands)))
    assert group["a"].queued == 3
    group["a"]._queue.append(commands[0])  # one that was proposed again
    group["a"].step("b", (0, Forward(commands)))
    assert group["a"].queued == 4
    group["b"].step("c", (0, Forward(commands)))
    assert group["b"].queued == 0


def test_what_stands_behind_the_seal_is_void_and_takes_effect_in_the_next_epoch():
    group = Three()
    session = group.session("a")
    a = group["a"]
    group.take("a", a.switch("raft"))
    a.core._sealed_at = None  # a leader that does not know of the seal yet
    group.submit("a", Command(session, 1, append("k", 1)))
    assert a.core.log.last > a.applied_position + 1
    group.settle()
    assert all(member.epoch.number == 1 for member in group.members.values())
    assert a.machine.values == {"k": [1]}
    assert [told.position >= a.epoch.start for told in group.answers("a")] == [False, True]


def test_queries_of_one_question_are_answered_in_order_and_a_bad_one_spoils_no_other():
    group = Three()
    session = group.session("a")
    group.submit("a", Command(session, 1, append("k", 5)))
    group.settle()
    group.take("b", group["b"].read_many(9, [get("k"), b"\xc1", get("l")]))
    group.settle()
    (found,) = [event for event in group.events["b"] if isinstance(event, ReadsAnswered)]
    assert found.id == 9
    assert [outcome.code for outcome in found.outcomes] == [Code.OK, Code.REFUSED, Code.OK]
    assert answer(found.outcomes[0].data) == [5]
    assert isinstance(found.outcomes[1], Outcome)


def test_a_frame_keeps_its_epoch_and_what_is_none_is_the_peers_fault():
    codec = FrameCodec(*all_messages())
    frame = (7, Append(1, 2, 3, 4, ()))
    assert codec.decode(codec.encode(frame)) == frame
    for data in (b"", b"\0\0\0", codec.encode(frame)[:-1], b"\0\0\0\1junk"):
        with pytest.raises(PeerError):
            codec.decode(data)


def test_what_goes_to_several_peers_is_encoded_once_and_nothing_else_is_taken_for_it():
    codec = FrameCodec(*all_messages())
    message, other = Append(1, 2, 3, 4, ()), Append(1, 2, 3, 5, ())
    first = codec.encode((7, message))
    assert codec.encode((7, message)) is first
    for frame in ((8, message), (8, other), (7, other), (7, message)):
        assert codec.decode(codec.encode(frame)) == frame


def test_a_frame_of_another_epoch_counts_for_nothing():
    group = Three()
    before = group["b"].core.log.last
    out = group["b"].step("a", (1, Append(1, before, 1, before, ())))
    assert not out.persist
    assert out.early == [("a", (0, Which()))]
    assert group["b"].core.log.last == before
