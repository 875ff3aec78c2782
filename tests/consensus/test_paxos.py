"""The scenarios of Multi-Paxos: promises, values that must be taken over, gaps, quorums; each by its number."""

from __future__ import annotations

from collections import Counter

import pytest

from nova.consensus.core import (
    Command,
    Committed,
    Entry,
    Fatal,
    Kind,
    NotLeaderError,
    OverloadedError,
    pack,
)
from nova.consensus.paxos import PaxosOptions
from nova.consensus.paxos.messages import (
    Accept,
    Accepted,
    Heartbeat,
    HeartbeatReply,
    Learn,
    Learned,
    Prepare,
    Promise,
    Refused,
)
from nova.consensus.sessions import OPEN, Sessions
from nova.errors import UsageError
from nova.sim.machine import KeyValue, answer, append, get
from tests.consensus.paxos_net import PaxosNet, T, accepted


def to(*names):
    return lambda source, target, message: {source, target} <= set(map(str, names))


def not_of(*types):
    return lambda source, target, message: not isinstance(message, types)


def command(slot, ballot, data):
    return Entry(slot, ballot, Kind.COMMANDS, data)


def told(member):
    return [entry for event in member.events if isinstance(event, Committed) for entry in event.entries]


def fatal(member):
    return [event.reason for event in member.events if isinstance(event, Fatal)]


# ------------------------------------------------------------------------------------------------ the scenarios


def test_26_duelling_proposers_end_by_chance():
    for seed in range(1_000):
        net = PaxosNet(3, seed=seed)
        first, second = net[1], net[2]
        for member in (first, second):
            member.core._pace.timeout = 1
        waiting = {"1": b"a", "2": b"b"}
        rounds = 0
        for _ in range(100 * T):
            for member in (first, second):
                # Each prepares as soon as it may, and whoever leads proposes; the other's prepare comes between.
                if member.core.role != "leader" and member.core._pace.elapsed + 1 >= member.core._pace.timeout:
                    member.core._pace.elapsed = 0
                    net.forget_leaders()
                    member.campaign()
                    rounds += 1
                else:
                    member.tick()
            flying, net.flying = net.flying, []
            for source, target, message in flying:  # one hop a tick: the rounds of both cross
                net[target].step(source, message)
            for member in (first, second):
                if member.core.role == "leader" and member.name in waiting and not member.core._lead.open_bytes:
                    member.propose(waiting.pop(member.name))
            if first.committed or second.committed:
                break
        assert first.committed or second.committed, f"seed {seed}"
        assert rounds <= 30, f"seed {seed}"
        net.forget_leaders()
        net.run(10 * T)
        slots = {}
        for member in net:
            for position, data in member.committed:
                assert slots.setdefault(position, data) == data, f"seed {seed}"


def test_27_a_late_accept_is_refused_with_what_was_promised():
    net = PaxosNet(3)
    low, high = net.ballots.make(7, "1"), net.ballots.make(9, "2")
    acceptor = net[3]
    acceptor.step("2", Prepare(high, 1))
    net.flying.clear()
    acceptor.step("1", Accept(low, 1, 0, (command(1, low, b"x"),)))
    assert net.flying == [("3", "1", Refused(low, high))]
    assert acceptor.log == {}
    acceptor.step("1", Prepare(low, 1))
    acceptor.step("1", Heartbeat(low, 1, 1, 0, 0))
    assert [message for _, _, message in net.flying] == [Refused(low, high)] * 3


def test_28_the_value_of_the_highest_accepted_ballot_is_proposed():
    net = PaxosNet(5)
    three, five = net.ballots.make(3, "1"), net.ballots.make(5, "2")
    accepted(net, 2, five, {1: (five, b"B")})
    accepted(net, 1, three, {1: (three, b"A")})
    net.cut(4, 5)
    leader = net[3]
    for order in (("1", "2"), ("2", "1")):
        leader.crash()
        leader.disk.clear()
        leader.start()
        leader.core._round_seen = 7
        leader.campaign()
        ballot = leader.core.promised
        answers = {}

        def hold(source, target, message, answers=answers):
            if isinstance(message, Promise):
                answers[source] = message
            return isinstance(message, Prepare)

        net.deliver(hold)
        for source in order:
            leader.step(source, answers[source])
        assert leader.log == {1: (ballot, b"B")}
        assert {m.entries for _, _, m in net.sent(Accept)} == {(command(1, ballot, b"B"),)}
        net.flying.clear()
        for name in order:  # as if nothing had been promised yet
            net[name].core.promised = net[name].log[1][0]


def test_29_a_gap_is_filled_with_a_no_op_before_what_stands_behind_it():
    net = PaxosNet(3)
    ballot = net.ballots.make(1, "1")
    for name in (1, 2):
        accepted(net, name, ballot, {1: (ballot, b"a"), 2: (ballot, b"b"), 4: (ballot, b"d")})
    leader = net[3]
    leader.campaign()
    net.deliver()
    entries = told(leader)
    assert [(entry.position, entry.kind, entry.data) for entry in entries] == [
        (1, Kind.COMMANDS, b"a"),
        (2, Kind.COMMANDS, b"b"),
        (3, Kind.NOOP, b""),
        (4, Kind.COMMANDS, b"d"),
    ]
    assert {entry.term for entry in entries} == {leader.core.promised}
    leader.propose(b"e")
    net.run(2)
    assert all(member.committed[-1] == (5, b"e") for member in net)


def test_30_accepting_raises_the_promise():
    net = PaxosNet(3)
    low, high = net.ballots.make(2, "1"), net.ballots.make(4, "2")
    acceptor = net[3]
    acceptor.step("2", Accept(high, 1, 0, (command(1, high, b"x"),)))
    net.flying.clear()
    acceptor.core._pace.heard = T
    acceptor.step("1", Prepare(low, 1))
    assert net.flying == [("3", "1", Refused(low, high))]
    acceptor.crash()
    acceptor.start()
    assert acceptor.core.promised == high


def test_31_a_promise_leaves_when_it_is_durable():
    net = PaxosNet(3)
    acceptor = net[3]
    acceptor.auto = False
    low, high = net.ballots.make(2, "1"), net.ballots.make(4, "2")
    for _ in range(2):  # asked twice: the second answer must not overtake the sync of the first
        acceptor.step("2", Prepare(high, 1))
        acceptor.step("1", Prepare(low, 1))  # nor may a refusal
        assert net.flying == []
    acceptor.crash()
    acceptor.start()
    acceptor.step("1", Prepare(low, 1))  # nobody was told of the other: this is free to be promised
    acceptor.sync()
    assert net.sent(Promise) == [("3", "1", Promise(low, 1, 0, 0))]
    acceptor.step("2", Prepare(high, 1))
    acceptor.sync()
    assert net.sent(Promise)[-1] == ("3", "2", Promise(high, 1, 0, 0))
    acceptor.crash()
    acceptor.start()
    net.flying.clear()
    acceptor.step("1", Accept(low, 1, 0, (command(1, low, b"x"),)))
    acceptor.sync()
    assert net.flying == [("3", "1", Refused(low, high))]


def test_32_a_stable_leader_needs_one_round_trip_a_slot():
    net = PaxosNet(3)
    leader = net.elect(1)
    net.run(2)
    seen = Counter()

    def count(source, target, message):
        seen[type(message).__name__] += 1
        return True

    for number in range(100):
        leader.propose(b"%d" % number)
        net.deliver(count)
        assert leader.committed[-1][1] == b"%d" % number
    assert seen == {"Accept": 200, "Accepted": 200}
    # Pre-empted with slots open, it asks once about all of them.
    net.cut(1)
    for number in range(10):
        leader.propose(b"open %d" % number)
    net.flying.clear()
    net.cuts.clear()
    leader.step("2", Refused(leader.core.promised, net.ballots.make(9, "2")))
    assert leader.core.role == "follower"
    seen.clear()
    net.forget_leaders()
    leader.campaign()
    net.deliver(count)
    assert (seen["Prepare"], seen["Promise"]) == (2, 2)
    assert [data for _, data in leader.committed[-10:]] == [b"open %d" % number for number in range(10)]


def test_33_a_command_in_two_slots_is_applied_once():
    net = PaxosNet(3)
    opened = pack([Command(0, OPEN, b"me")])
    leader = net.elect(1)
    leader.propose(opened)
    net.run(2)
    tables = {member.name: Sessions(KeyValue()) for member in net}
    machines = {name: table.machine for name, table in tables.items()}
    session = int.from_bytes(tables["1"].apply(1, [Command(0, OPEN, b"me")])[0].data, "big")
    for name in ("2", "3"):
        tables[name].apply(1, [Command(0, OPEN, b"me")])
    asked = pack([Command(session, 1, append("k", 7))])
    leader.propose(asked)
    net.deliver(to(1, 2))  # 3 hears nothing, nor the client
    net[1].crash()
    net.elect(3).propose(asked)
    net.run(2)
    for name in ("2", "3"):
        mine = [entry for entry in told(net[name]) if entry.data == asked]
        assert [entry.position for entry in mine] == [2, 3]
        outcomes = [tables[name].apply(entry.position, [Command(session, 1, append("k", 7))])[0] for entry in mine]
        assert outcomes[0] == outcomes[1]
        assert answer(machines[name].read(get("k"))) == [7]


def test_34_flexible_quorums_decide_with_two_and_elect_with_four():
    net = PaxosNet(5, phase1=4, phase2=2)
    leader = net.elect(1)
    net.run(2)
    for name in (3, 4):
        net[name].crash()
    leader.propose(b"x")
    net.run(3 * T)
    assert leader.core.role == "leader"
    assert leader.committed == net[5].committed == [(1, b"x")]
    net[1].crash()
    net.run(20 * T)
    assert net.leaders == []
    net[3].start()
    net[4].start()
    net.run(20 * T)
    assert len(net.leaders) == 1
    assert net[net.leaders[0]].committed == [(1, b"x")]


@pytest.mark.parametrize(("phase1", "phase2"), [(3, 2), (2, 3), (6, 1), (0, 5), (4, 1)])
def test_34_quorums_that_need_not_meet_are_refused(phase1, phase2):
    with pytest.raises(UsageError, match="need not meet"):
        PaxosNet(5, phase1=phase1, phase2=phase2)


@pytest.mark.parametrize(("given", "sizes"), [({"phase1": 4}, (4, 2)), ({"phase2": 1}, (5, 1)), ({}, (3, 3))])
def test_34_one_phase_gives_the_other(given, sizes):
    quorum = PaxosOptions(**given).quorum("abcde")
    least = [next(n for n in range(6) if phase("abcde"[:n])) for phase in (quorum.phase1, quorum.phase2)]
    assert tuple(least) == sizes


# ------------------------------------------------------------------------------------------------ phase 1


def test_a_prepare_leaves_when_its_ballot_is_durable():
    net = PaxosNet(3)
    proposer = net[1]
    proposer.auto = False
    proposer.campaign()
    assert net.flying == []
    ballot = proposer.core.promised
    proposer.crash()
    proposer.start()
    proposer.campaign()
    assert proposer.core.promised == ballot  # nobody ever heard of it
    proposer.sync()
    assert len(net.sent(Prepare)) == 2
    proposer.crash()
    proposer.start()
    proposer.campaign()
    assert proposer.core.promised > ballot


def test_a_proposer_counts_its_own_promise_and_accept_when_they_are_durable():
    net = PaxosNet(3)
    leader = net.elect(1)
    net.run(2)
    leader.auto = False
    leader.propose(b"x")
    net.cut(3)
    net.deliver()
    assert net[2].log[1][1] == b"x"  # sent while our disk still writes
    assert leader.core.committed == 0
    leader.sync()
    assert leader.core.committed == 1
    lone = PaxosNet(1)[1]
    lone.auto = False
    lone.campaign()
    assert lone.core.role == "candidate"
    lone.sync()
    assert lone.core.role == "leader"


def test_a_long_promise_comes_in_pieces_and_teaches_what_is_decided():
    net = PaxosNet(3, append_entries_max=3)
    leader = net.elect(1)
    net.cut(3)
    for number in range(10):
        leader.propose(b"%d" % number)
    net.run(2)
    for number in range(7):
        leader.propose(b"open %d" % number)
    net.deliver(not_of(Accepted))
    net[1].crash()
    net.cuts.clear()
    net.flying.clear()
    pages = []
    net.forget_leaders()
    net[3].campaign()
    net.deliver(lambda s, t, m: not isinstance(m, Promise) or not pages.append(m))
    assert [len(page.entries) for page in pages] == [3, 3, 3, 3, 3, 2]
    net.run(2)
    assert [data for _, data in net[3].committed][-7:] == [b"open %d" % number for number in range(7)]
    assert net[3].committed == net[2].committed


def test_who_hears_a_leader_promises_nobody():
    net = PaxosNet(3)
    net.elect(1)
    net.run(2)
    promised = net[2].core.promised
    net.cuts.add(("1", "3"))
    net.run(10 * T)
    assert net.leaders == ["1"]
    assert net[2].core.promised == promised  # 3 asked, and did not prepare
    net[2].step("3", Prepare(net.ballots.make(50, "3"), 1))
    assert net[2].core.promised == promised


def test_who_was_cut_off_comes_back_quietly():
    net = PaxosNet(3)
    leader = net.elect(1)
    net.run(2)
    ballot = leader.core.promised
    net.cut(3)
    leader.propose(b"x")
    net.run(50 * T)
    net.cuts.clear()
    net.run(3)
    assert (net.leaders, net[3].core.promised) == (["1"], ballot)
    assert net[3].committed == [(1, b"x")]


def test_who_promised_more_makes_the_leader_prepare_again():
    net = PaxosNet(3)
    leader = net.elect(1)
    net.run(2)
    net[3].campaign()
    net.flying.clear()
    net.run(8 * T)
    assert len(net.leaders) == 1
    net[net.leaders[0]].propose(b"x")
    net.run(2)
    assert all(member.committed == [(1, b"x")] for member in net)
    assert leader.core.promised > net.ballots.make(2, "3")


def test_a_leader_without_a_phase_2_quorum_steps_down():
    net = PaxosNet(3)
    leader = net.elect(1)
    net.run(2)
    net.cut(1)
    leader.propose(b"x")
    for _ in range(2 * T):
        leader.tick()
    assert leader.core.role != "leader"
    with pytest.raises(NotLeaderError):
        leader.propose(b"y")
    assert leader.committed == []


# ------------------------------------------------------------------------------------------------ phase 2


def test_what_was_acknowledged_is_there_after_a_crash():
    net = PaxosNet(3)
    acceptor = net[2]
    acceptor.auto = False
    ballot = net.ballots.make(1, "1")
    entries = tuple(command(slot, ballot, b"x") for slot in range(1, 51))
    acceptor.step("1", Accept(ballot, 1, 0, entries))
    acceptor.step("1", Accept(ballot, 1, 0, entries[:10]))  # nothing new, and still not on disk
    acceptor.step("1", Heartbeat(ballot, 1, 1, 0, 50))
    assert net.flying == []
    acceptor.sync()
    assert [message.upto for _, _, message in net.sent(Accepted)] == [50, 50]
    assert [(m.upto, m.missing) for _, _, m in net.sent(HeartbeatReply)] == [(0, 0)]
    acceptor.crash()
    acceptor.start()
    assert len(acceptor.log) == 50
    net.flying.clear()
    acceptor.step("1", Heartbeat(ballot, 2, 1, 0, 50))
    assert [(m.upto, m.missing) for _, _, m in net.sent(HeartbeatReply)] == [(0, 0)]
    net.flying.clear()
    acceptor.step("1", Heartbeat(ballot, 3, 1, 0, 50))
    assert [(m.upto, m.missing) for _, _, m in net.sent(HeartbeatReply)] == [(50, 0)]


def test_accepts_in_any_order_are_acknowledged_without_a_hole():
    net = PaxosNet(3)
    acceptor = net[2]
    ballot = net.ballots.make(1, "1")
    for slots in ((3, 4), (1,), (2,), (1,)):
        acceptor.step("1", Accept(ballot, 1, 0, tuple(command(slot, ballot, b"x") for slot in slots)))
    assert [message.upto for _, _, message in net.sent(Accepted)] == [0, 1, 4, 4]


def test_a_lost_accept_is_sent_again_after_a_heartbeat():
    net = PaxosNet(3, flying_count_max=4)
    leader = net.elect(1)
    net.run(2)
    net.cut(3)
    for number in range(50):
        leader.propose(b"%d" % number)
    assert len(leader.core._lead.peers["3"].flying) <= 4
    net.deliver()
    net.cuts.clear()
    net.run(3)
    assert len(net[3].log) == 50
    assert leader.core._lead.peers["3"].matched == 50


def test_a_commit_position_says_nothing_about_what_another_ballot_accepted():
    net = PaxosNet(3)
    old, new = net.ballots.make(1, "1"), net.ballots.make(2, "2")
    member = accepted(net, 3, old, {1: (old, b"stale"), 2: (old, b"stale too")})
    member.step("2", Heartbeat(new, 1, 3, 2, 2))  # 1 and 2 were decided before it led; as what, 3 can't know
    assert member.committed == []
    member.step("2", Heartbeat(new, 2, 3, 2, 2))
    assert [(t, m) for _, t, m in net.sent(Learn)] == [("2", Learn(0, 1))]
    member.step("2", Learned(0, 2, (command(1, new, b"x"), command(2, new, b"y"))))
    assert member.committed == [(1, b"x"), (2, b"y")]


def test_another_value_in_a_decided_slot_is_fatal():
    net = PaxosNet(3)
    low, high = net.ballots.make(1, "1"), net.ballots.make(2, "2")
    member = net[3]
    member.step("1", Accept(low, 1, 1, (command(1, low, b"x"),)))
    assert member.committed == [(1, b"x")]
    net.flying.clear()
    member.step("2", Accept(high, 1, 0, (command(1, high, b"y"),)))
    assert "slot 1" in fatal(member)[0]
    assert member.log[1] == (low, b"x")
    assert net.sent(Accepted) == []


def test_the_leader_refuses_more_than_may_be_open():
    net = PaxosNet(3, open_bytes_max=10, open_slots_max=3)
    leader = net.elect(1)
    net.run(2)
    net.cut(1)
    leader.propose(b"12345")
    with pytest.raises(OverloadedError, match="bytes"):
        leader.propose(b"123456")
    leader.propose(b"1", b"2")
    with pytest.raises(OverloadedError, match="slots"):
        leader.propose(b"3")
    member = net[2]
    ballot = leader.core.promised
    member.step("1", Accept(ballot, 1, 0, tuple(command(slot, ballot, b"") for slot in range(1, 9))))
    assert list(member.log) == [1, 2, 3]
