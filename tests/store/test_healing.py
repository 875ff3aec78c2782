"""Two nodes are brought together when somebody asks: what is told of it is true, however it ends."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest

from nova.errors import UnavailableError
from nova.store.cluster import ClusterCore
from nova.store.core import Durable, Replica
from nova.store.healing import Healing
from nova.store.model import Put
from nova.sync.antientropy import Compare, Part
from nova.sync.membership import Member
from nova.types import Outputs

TICK_MS = 100


class Two:
    """Nodes a and b, driven by hand. Messages wait in `queue`; nobody gossips, so only what is asked for moves."""

    def __init__(self):
        self.now = 1_000_000
        self.cores, self.ended, self.queue, self.sent = {}, [], deque(), []
        for name in "ab":
            replica = Replica(name, region=name, incarnation=1, wall_ns=lambda: self.now * 1_000_000)
            core = ClusterCore(replica, Member(name, 1, region=name, address=f"{name}:1"), random=Random(7))
            replica.published = lambda batch: Outputs()
            self.cores[name] = core
        for name, other in ("ab", "ba"):
            self.cores[name]._connected.add(other)
            self.cores[name].antientropy.set_peers([other])

    def put(self, name, key, value):
        self.cores[name].replica.put(Put(key, value))
        self.take(name, self.cores[name].turn())

    def take(self, name, outputs):
        for event in outputs.apply:
            if isinstance(event, Durable):
                self.cores[name].replica.applied(event)
            elif isinstance(event, Healing):
                self.ended.append(event)
        for peer, message in outputs.send:
            self.sent.append((name, message))
            self.queue.append((name, peer, message))

    def heal(self, timeout_ms=5_000):
        self.take("a", self.cores["a"].heal("b", timeout_ms))

    def run(self, ticks, *, losing=lambda message: False, between=lambda: None):
        for _ in range(ticks):
            between()
            while self.queue:
                sender, peer, message = self.queue.popleft()
                if not losing(message):
                    self.take(peer, self.cores[peer].step(sender, message))
            if self.ended:
                return
            self.now += TICK_MS
            for name in "ab":  # these parts only: membership and gossip would do it on their own
                core = self.cores[name]
                self.take(name, core._digested(core.antientropy.tick()))
                self.take(name, core._digested(core.healer.tick()))


@pytest.fixture
def two():
    return Two()


def test_what_either_side_lacks_both_have_in_the_end(two):
    two.put("a", "only/a", 1)
    two.put("b", "only/b", 2)
    two.put("a", "both", "a")
    two.put("b", "both", "b")
    two.heal()
    two.run(50)
    (done,) = two.ended
    assert (done.node, done.equal, done.exchanged, done.caught_up, done.why) == ("b", True, True, True, "")
    assert done.before[0] != done.before[1]
    assert done.after[0] == done.after[1] != done.before[0]
    a, b = (two.cores[name].replica for name in "ab")
    assert a.digest == b.digest
    assert a.conflicts.total == b.conflicts.total == 1
    parts = sum(len(message.data) for _, message in two.sent if isinstance(message, Part))
    assert done.state_bytes == parts > 0
    assert done.sent_bytes > 0 < done.received_bytes


def test_a_second_time_sends_a_question_and_its_answer(two):
    two.put("b", "k", 1)
    two.heal()
    two.run(50)
    two.ended.clear()
    two.heal()
    two.run(2)
    (done,) = two.ended
    assert (done.equal, done.exchanged, done.messages, done.state_bytes) == (True, False, 2, 0)
    assert done.before == done.after


def test_lost_messages_only_make_it_longer(two):
    two.put("b", "k", 1)
    lost = []

    def losing(message):
        lost.append(message)
        return len(lost) <= 3

    two.heal(timeout_ms=30_000)
    two.run(300, losing=losing)
    assert two.ended[0].equal


def test_a_peer_that_does_not_answer_is_told_as_that(two):
    two.heal(timeout_ms=1_000)
    two.run(20, losing=lambda message: True)
    (done,) = two.ended
    assert (done.equal, done.caught_up, done.before, done.received_bytes) == (False, False, ("", ""), 0)
    assert "did not answer" in done.why
    two.ended.clear()
    two.heal()  # and one can try again
    two.run(20)
    assert two.ended[0].equal


def test_where_writes_go_on_it_is_told_what_is_certain(two):
    two.put("a", "first", 1)
    two.put("b", "first", 2)
    two.heal(timeout_ms=3_000)
    count = iter(range(1000))
    two.run(40, between=lambda: two.put("b", f"k{next(count)}", 0))
    (done,) = two.ended
    assert (done.equal, done.caught_up) == (False, True)
    assert "writes go on" in done.why


def test_equal_clocks_over_other_states_are_not_called_healed(two):
    two.put("b", "k", 1)
    two.heal()
    two.run(50)
    two.ended.clear()
    two.cores["b"].antientropy._replica = Otherwise(two.cores["b"].replica)
    two.heal(timeout_ms=20_000)
    two.run(200)
    (done,) = two.ended
    assert not done.equal
    assert "same events but hold different states" in done.why


class Otherwise:
    """A replica whose state is another than its clock says."""

    def __init__(self, replica):
        self._replica = replica

    def leaf_digests(self):
        return b"other" + bytes(self._replica.leaf_digests())

    def __getattr__(self, name):
        return getattr(self._replica, name)


def test_a_session_that_breaks_ends_it_and_without_one_there_is_none(two):
    two.heal()
    with pytest.raises(UnavailableError, match="being healed already"):
        two.heal()
    two.take("a", two.cores["a"].lost("b"))
    assert "broke off" in two.ended[0].why
    with pytest.raises(UnavailableError, match="no session with 'b', only with nobody"):
        two.heal()


def test_only_who_asks_is_answered_though_all_is_equal(two):
    core = two.cores["b"]
    mine = core.antientropy.comparison()
    assert not core.step("a", mine).send
    assert len(core.step("a", Compare(mine.clock, mine.digest, True)).send) == 1


def test_the_peer_takes_what_it_lacks_at_once_and_not_when_it_is_asked_again(two):
    two.put("a", "k", 1)
    two.heal()
    two.run(1)
    assert two.cores["b"].replica.get("k").value == 1
