"""How an eventual epoch ends: nothing acknowledged is lost, one successor comes, whatever crashes when."""

from __future__ import annotations

import pytest
from chainnet import Net as Chain
from streams_net import Net

from nova.consensus.adaptive import AdaptiveConsensus, Observation
from nova.consensus.core import Command, Epoch, SealedError, UnavailableError, pack_epoch, unpack_epoch
from nova.consensus.eventual import Eventual
from nova.consensus.eventual.messages import Accept, Accepted, Decided, Prepare, Promise, Push, Value
from nova.consensus.frontier import Frontier, unpack_frontier
from nova.consensus.sessions import BATCH_MAX, OPEN, Code, Sessions
from nova.errors import PeerError, UsageError
from nova.sim import machine
from nova.sim.machine import Bags, append
from nova.sim.subjects import PROTOCOLS

NAMES = ("n0", "n1", "n2")


def net(count=3, **options):
    return Net(Eventual, "eventual", count, **options)


def heir(*members, protocol="raft"):
    return Epoch(1, protocol, members or NAMES)


def sealed(group):
    """Wait until all that run have ended; the successor."""
    group.until(lambda: all(member.seal is not None for member in group))
    assert len({(member.seal.position, member.seal.data) for member in group}) == 1
    assert len({tuple(sorted(member.told)) for member in group}) == 1
    return unpack_epoch(next(iter(group)).seal.data)


def test_all_end_with_the_same_and_take_nothing_more():
    group = net()
    group["n0"].propose("a")
    group["n1"].propose("b")
    group["n2"].take(group["n2"].core.seal(heir()))
    group.run(20)
    assert sealed(group) == heir()
    assert sorted(group["n0"].told) == ["a", "b"]
    assert group["n0"].seal.position > 2
    for member in group:
        assert member.core.status.role == "sealed"
        with pytest.raises(SealedError):
            member.propose("c")
        with pytest.raises(SealedError):
            member.core.seal(heir())
        member.read(7)
        assert member.lost == [7]


@pytest.mark.parametrize("w", [1, 2, 3])
def test_what_w_members_have_is_in_the_end_whoever_reports(w):
    group = net(w=w)
    without = {1: ("n1", "n2"), 2: ("n2",), 3: ()}[w]
    group.lost = lambda source, target, message: isinstance(message, Push) and target in without
    group["n0"].propose("a")
    group.run(1)
    assert group["n0"].told == ["a"]
    if w == 2:
        group.cut("n1")
    group["n2"].take(group["n2"].core.seal(heir()))
    group.lost = None
    group.run(30)
    group.cuts.clear()
    sealed(group)
    assert all(member.told == ["a"] for member in group)


def test_what_only_one_that_is_away_has_is_void():
    group = net()
    group.cut("n0")
    group["n0"].propose("tail")
    group["n1"].propose("a")
    group["n1"].take(group["n1"].core.seal(heir()))
    group.run(30)
    group.cuts.clear()
    sealed(group)
    assert all(member.told == ["a"] for member in group)


def test_who_is_frozen_takes_nothing_and_tells_nobody_that_it_has_more():
    group = net()
    group["n1"].take(group["n1"].core.step("n2", Prepare(5, pack_epoch(heir()))))
    before = list(group["n1"].core.streams.received)
    group.flying.clear()
    group["n0"].propose("a")
    group.lost = lambda source, target, message: target == "n2" or isinstance(message, Prepare)
    group.deliver()
    assert group["n1"].core.streams.received == before
    assert group["n0"].told == []
    assert group["n1"].core.frozen


def test_what_is_fetched_to_complete_an_end_is_no_copy():
    """Else a dot could get its W copies behind the reports, be answered, and be missing from another end."""
    group = net()
    group.lost = lambda source, target, message: isinstance(message, Push) and target in ("n1", "n2")
    group["n0"].propose("a")
    group.deliver()
    core = group["n1"].core
    group["n1"].take(core.step("n2", Prepare(5, pack_epoch(heir()))))
    group["n1"].take(core.step("n2", Accept(5, Value((1, 0, 0), pack_epoch(heir())))))
    group["n1"].take(core.step("n0", Push((group["n0"].core.streams.get(0, 1),))))
    assert core.streams.received == [1, 0, 0]
    assert core._have["n1"] == [0, 0, 0]
    group.lost = lambda source, target, message: isinstance(message, Prepare | Promise | Accept | Accepted | Decided)
    group.run(5)
    assert group["n0"].told == []


def test_nobody_accepts_an_end_whose_dots_it_lacks():
    group = net()
    core = group["n1"].core
    group["n1"].take(core.step("n2", Prepare(5, pack_epoch(heir()))))
    group["n1"].take(core.step("n2", Accept(5, Value((1, 0, 0), pack_epoch(heir())))))
    assert core._seal.accepted == 0
    group["n1"].take(core.step("n0", Push(())))
    assert not any(isinstance(message, Accepted) for _, _, message in group.flying)


def test_promises_and_acceptances_leave_behind_their_sync():
    group = net()
    group["n1"].held = True
    group["n1"].take(group["n1"].core.step("n2", Prepare(5, pack_epoch(heir()))))
    assert group.flying == []
    group["n1"].held = False
    group["n1"].sync()
    assert [type(message) for _, _, message in group.flying] == [Promise]
    group["n1"].crash()
    group["n1"].start()
    assert group["n1"].core.frozen


def test_a_value_that_may_be_decided_is_what_others_go_on_with():
    group = net()
    group["n0"].propose("a")
    group.run(5)
    first, second = heir(), heir("n0", "n1")
    group["n0"].take(group["n0"].core.seal(first))
    group.lost = lambda source, target, message: isinstance(message, Accepted | Decided) or "n2" in (source, target)
    group.deliver()
    assert group["n1"].core._seal.accepted  # by n0 and n1: decided, and nobody knows
    group["n0"].crash()
    group.lost = None
    group["n2"].take(group["n2"].core.seal(second))
    assert sealed(group) == first


def test_a_ballot_that_is_promised_away_is_accepted_nowhere():
    group = net()
    core = group["n1"].core
    group["n1"].take(core.step("n2", Prepare(5, pack_epoch(heir()))))
    value = Value((0, 0, 0), pack_epoch(heir("n0")))
    group["n1"].take(core.step("n0", Accept(3, value)))
    assert core._seal.accepted == 0
    assert core._seal.promised == 5


def test_an_accepted_value_outlives_a_restart_and_later_promises():
    group = net()
    member = group["n1"]
    value = Value((0, 0, 0), pack_epoch(heir("n0")))
    member.take(member.core.step("n0", Accept(3, value)))
    member.crash()
    member.start()
    member.checkpoint()
    member.crash()
    member.start()
    group.flying.clear()
    member.take(member.core.step("n2", Prepare(8, pack_epoch(heir()))))
    (promise,) = [message for _, _, message in group.flying if isinstance(message, Promise)]
    assert (promise.accepted, promise.value) == (3, value)
    group.flying.clear()
    member.take(member.core.step("n2", Prepare(11, pack_epoch(heir()))))
    (promise,) = [message for _, _, message in group.flying if isinstance(message, Promise)]
    assert (promise.ballot, promise.accepted, promise.value) == (11, 3, value)


def test_67_of_two_who_end_it_one_wins():
    for seed in range(20):
        group = net(5, seal_ticks=2 + seed % 3)
        group["n0"].propose("a")
        group["n0"].take(group["n0"].core.seal(heir("n0", "n1", "n2")))
        group["n4"].take(group["n4"].core.seal(heir("n2", "n3", "n4")))
        group.deliver(seed)
        assert sealed(group).members in (("n0", "n1", "n2"), ("n2", "n3", "n4"))


def test_an_end_that_too_few_can_report_is_refused_and_nobody_freezes():
    group = net(w=1, silent_ticks=10)
    group.cut("n2")
    group.run(20)
    with pytest.raises(UnavailableError, match=r"2 of 3 members were heard of late \(n0, n1\); with w 1 3 have to"):
        group["n0"].core.seal(heir())
    assert not group["n0"].core.frozen
    group["n0"].propose("a")
    assert group["n0"].told == ["a"]


def test_an_end_that_is_none_is_refused():
    core = net()["n0"].core
    with pytest.raises(UsageError, match="can't follow"):
        core.seal(Epoch(2, "raft", NAMES))
    with pytest.raises(UsageError, match="sorted"):
        core.seal(Epoch(1, "raft", ("n1", "n0")))
    with pytest.raises(PeerError, match="ballot 4, which is n1's"):
        core.step("n2", Prepare(4, pack_epoch(heir())))


def test_the_reporter_of_a_dot_dies_and_the_end_goes_on_without_it():
    group = net()
    group.lost = lambda source, target, message: isinstance(message, Push)
    group["n2"].propose("only here")
    group["n0"].take(group["n0"].core.seal(heir()))
    group.lost = lambda source, target, message: isinstance(message, Push) or "n1" in (source, target)
    group.deliver()
    assert group["n0"].core._campaign.value.vector == (0, 0, 1)
    group["n2"].crash()
    group.lost = None
    group.until(lambda: group["n0"].seal is not None)
    assert group["n0"].told == []
    group["n2"].start()
    sealed(group)
    assert group["n2"].told == []


@pytest.mark.parametrize("moment", range(0, 40, 2))
def test_65_all_crash_at_any_moment_of_the_end(moment):
    group = Chain(PROTOCOLS, "eventual", 3, machine=Bags)
    first = group["n0"]
    session = group.session(first)
    for number in range(1, 5):
        assert group.done(first, group.append(first, session, number, "k", number)).code is Code.OK
    first.switch("raft")
    if moment % 4:
        group["n1"].switch("raft", ["n0", "n1"])
    group.deliver(rounds=moment)
    for member in list(group):
        member.crash()
    group.flying.clear()
    for member in group.members.values():
        member.start()
    group.run(200)
    leader = group.lead()
    assert group.done(leader, group.append(leader, session, 5, "k", 5)).code is Code.OK
    assert group.agree() == {"k": [1, 2, 3, 4, 5]}
    begun = [epoch for member in group for epoch in member.epochs]
    assert len({epoch.members for epoch in begun if epoch.number == 1}) <= 1


# ---------------------------------------------------------------------------------------------- sessions


def test_a_command_of_a_session_that_is_not_known_yet_waits_for_it():
    group = Chain(PROTOCOLS, "eventual", 3, machine=Bags, retry_ticks=1_000_000)
    group.cut("n2")
    session = group.session(group["n0"])
    asked = group.append(group["n2"], session, 1, "k", 1)
    group.run(20)
    assert asked not in group["n2"].answers
    assert group["n2"].replica.core.streams.received[2] == 0  # nothing that others could apply before the session
    group.cuts.clear()
    assert group.done(group["n2"], asked).code is Code.OK
    assert group.agree() == {"k": [1]}


def test_a_command_that_is_asked_at_two_members_takes_effect_once():
    group = Chain(PROTOCOLS, "eventual", 3, machine=Bags)
    session = group.session(group["n0"])
    group.run(20)
    asked = [group.append(group[name], session, 1, "k", 1) for name in ("n0", "n1")]
    for name, each in zip(("n0", "n1"), asked, strict=True):
        assert group.done(group[name], each).code is Code.OK
    assert group.agree() == {"k": [1]}
    group.run(20)
    late = group.append(group["n2"], session, 1, "k", 1)
    assert group.done(group["n2"], late).code is Code.FORGOTTEN
    assert len({member.replica.state() for member in group}) == 1


def test_a_session_of_before_the_epoch_that_nobody_knows_has_expired():
    sessions = Sessions(Bags(), ordered=False, convergent=True, sessions_max=2)
    start = 100
    command = Command(5 * BATCH_MAX, 1, append("k", 1))
    assert sessions.admission(command, start).code is Code.EXPIRED
    assert sessions.admission(Command(100 * BATCH_MAX, 1, b""), start).code is Code.GAP
    for position in (100, 101, 102):  # opened at members that did not know of each other
        sessions.apply(position, [Command(0, OPEN, b"")])
    assert len(sessions) == 3  # none expires: elsewhere it might be another one
    assert sessions.admission(Command(0, OPEN, b""), start).code is Code.GAP
    sessions.order(True)
    sessions.apply(103, [Command(0, OPEN, b"")])
    assert len(sessions) == 2


def test_a_session_of_too_many_open_ends_waits_where_it_is_proposed():
    sessions = Sessions(Bags(), ordered=False, convergent=True, window=4)
    sessions.apply(1, [Command(0, OPEN, b"")])
    session = BATCH_MAX
    assert sessions.admission(Command(session, 4, append("k", 4)), 1) is None
    assert sessions.admission(Command(session, 5, append("k", 5)), 1).code is Code.GAP
    sessions.apply(2, [Command(session, 4, append("k", 4))])
    assert sessions.admission(Command(session, 4, append("k", 4)), 1).code is Code.FORGOTTEN


# ---------------------------------------------------------------------------------------------- who chooses it


def test_61_far_apart_convergent_keys_go_on_eventually_and_strong_ones_do_not():
    controller = AdaptiveConsensus("classic", dwell_ns=0)
    near = controller.observe(1, Observation(rtt_ms=30.0, regions=2))
    assert near is None  # raft, as it is
    assert controller.decide(Observation(rtt_ms=200.0, regions=5)).convergent == "paxos"
    at = controller.decide(Observation(rtt_ms=200.1, regions=5))
    assert (at.strong, at.convergent) == ("paxos", "eventual")
    decision = controller.observe(2, Observation(rtt_ms=250.0, regions=5))
    assert (decision.strong, decision.convergent) == ("paxos", "eventual")
    assert "rtt > 200 ms" in decision.reason
    strong, convergent = Chain(PROTOCOLS, "raft"), Chain(PROTOCOLS, "raft", machine=Bags)
    for group, protocol in ((strong, decision.strong), (convergent, decision.convergent)):
        leader = group.lead()
        session = group.session(leader)
        assert group.done(leader, group.append(leader, session, 1, "k", 1)).code is Code.OK
        leader.switch(protocol)
        group.until(lambda group=group: all(member.replica.epoch.number == 1 for member in group))
        group.settle()
        assert {member.replica.epoch.protocol for member in group} == {protocol}
        assert group.done(leader, group.append(leader, session, 2, "k", 2)).code is Code.OK
        assert group.agree() == {"k": [1, 2]}
    # Nobody waits for anybody far away: with W = 1 a member that is cut off goes on.
    convergent["n0"].switch("eventual", options={"w": 1})
    convergent.until(lambda: all(member.replica.epoch.number == 2 for member in convergent))
    convergent.settle()
    alone = convergent["n1"]
    session = convergent.session(alone)
    convergent.run(20)
    convergent.cut("n1")
    assert convergent.done(alone, convergent.append(alone, session, 1, "k", 3)).code is Code.OK
    convergent.cuts.clear()
    assert convergent.agree() == {"k": [1, 2, 3]}


def test_a_session_carries_what_it_saw_over_epochs():
    group = Chain(PROTOCOLS, "raft", machine=Bags)
    leader = group.lead()
    session = group.session(leader)
    group.done(leader, group.append(leader, session, 1, "k", 1))
    seen = leader.replica.frontier
    leader.switch("eventual")
    group.until(lambda: all(member.replica.epoch.number == 1 for member in group))
    other = next(member for member in group if member is not leader)
    group.cut(other.name)
    group.done(leader, group.append(leader, session, 2, "k", 2))
    seen = seen.join(leader.replica.frontier)
    assert seen.epoch == 1
    assert sum(seen.vector) >= 1
    other.take(other.replica.read(1, machine.get("k"), seen))
    group.run(10)
    assert other.reads == {}
    group.cuts.clear()
    group.until(lambda: other.reads == {1: [1, 2]})
    with pytest.raises(UnavailableError, match="has not heard of epoch 7"):
        other.replica.read(2, machine.get("k"), Frontier(7, (1, 2)))


def test_frontiers_join_to_what_either_has_seen():
    frontier = Frontier(7, (1, 2))
    assert unpack_frontier(frontier.pack()) == frontier
    assert frontier.join(Frontier(7, (2, 1))) == Frontier(7, (2, 2))
    assert frontier.join(Frontier(6, (9, 9))) == Frontier(6, (9, 9)).join(frontier) == frontier
    assert frontier.join(Frontier(7)) == Frontier(7).join(frontier) == frontier
    with pytest.raises(UsageError, match="give what a member told"):
        unpack_frontier(b"\xc1")
