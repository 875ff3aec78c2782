"""Scenarios 64-71: one protocol ends, another goes on, and nobody loses anything."""

from __future__ import annotations

import contextlib

import pytest
from chainnet import Net, notices

from nova.consensus.chain import AHEAD_MAX
from nova.consensus.core import Epoch, Kind
from nova.consensus.notices import Fetch, Piece, Sealed, Switch
from nova.consensus.paxos.messages import Prepare
from nova.consensus.raft.messages import Append, Vote
from nova.consensus.replicated import Forward
from nova.consensus.sessions import Code
from nova.errors import CorruptionError, PeerError, UnavailableError, UsageError
from nova.sim.group import Group
from nova.sim.machine import Bags
from nova.sim.subjects import CONVERGENT, PROTOCOLS, SUBJECTS

PAIRS = [(old, new) for old in PROTOCOLS for new in PROTOCOLS]
SIZE = {"pbft": 4}


def options(protocol, names):
    """What it needs to begin: the regions of a hybrid."""
    return {"regions": dict.fromkeys(names, "east")} if protocol == "hybrid" else {}


def net(old="raft", new="raft", **kwargs):
    count = max(SIZE.get(old, 3), SIZE.get(new, 3))
    if old == "pbft":  # one operator asks one member here; that f + 1 have to is asked for below
        kwargs.setdefault("options", {"seal_votes": 1})
    if old == "hybrid":
        kwargs.setdefault("options", options(old, [f"n{number}" for number in range(count)]))
    if {old, new} & CONVERGENT:
        kwargs.setdefault("machine", Bags)
    return Net(PROTOCOLS, old, kwargs.pop("count", count), **kwargs)


def written(group, member, count, *, session=None, first=1, key="k"):
    session = session or group.session(member)
    names = [group.append(member, session, n, key, n) for n in range(first, first + count)]
    for name in names:
        assert group.done(member, name).code is Code.OK
    return session


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_64_every_write_is_there_once_and_in_order_after_a_switch_under_load(old, new):
    group = net(old, new)
    leader = group.lead()
    session = written(group, leader, 5)
    names = [group.append(leader, session, n, "k", n) for n in range(6, 31)]
    before = group.now
    leader.switch(new, options=options(new, group.names))
    names += [group.append(leader, session, n, "k", n) for n in range(31, 61)]
    for name in names:
        assert group.done(leader, name).code is Code.OK
    assert group.now - before < 30  # 300 ms
    assert group.agree() == {"k": list(range(1, 61))}
    assert {member.replica.epoch.protocol for member in group} == {new}
    assert all(member.epochs == leader.epochs for member in group)


def test_64_in_a_lossy_world_the_gap_is_short():
    group = Group(SUBJECTS["adaptive"], 3, faults=0, clients=50, seconds=3)
    assert group.run() == []
    assert max(group.epochs) > 2


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_65_the_leader_dies_when_the_seal_is_decided_and_told_nobody(old, new):
    group = net(old, new)
    leader = group.lead()
    session = written(group, leader, 3)
    group.lost = lambda source, target, frame: source == leader.name and (notices(frame) or frame[0] > 0)
    leader.switch(new, options=options(new, group.names))
    group.until(lambda: leader.replica.epoch.number == 1)
    leader.crash()
    group.lost = None
    others = list(group)
    group.until(lambda: all(member.replica.epoch.number == 1 and member.replica.chain.whole for member in others))
    assert {member.replica.epoch.start for member in others} == {others[0].replica.epoch.start}
    written(group, others[0], 2, session=session, first=4)
    leader.start()
    assert group.agree() == {"k": [1, 2, 3, 4, 5]}
    assert leader.replica.epoch == others[0].replica.epoch


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_66_who_was_away_for_the_whole_switch_is_told_and_catches_up(old, new):
    group = net(old, new)
    leader = group.lead()
    session = written(group, leader, 3)
    away = next(member for member in group if member is not leader)
    group.cut(away.name)
    # Known to nobody else. Where members are convergent a number of a session stands for one command: 99 would be none.
    tail = group.append(away, session, 4, "k", 4 if new in CONVERGENT else 99)
    leader.switch(new, options=options(new, group.names))
    group.until(lambda: sum(m.replica.epoch.number for m in group) == len(list(group)) - 1)
    there = next(member for member in group if member.replica.epoch.number == 1)
    written(group, there, 2, session=session, first=4)
    assert tail not in away.answers
    group.cuts.clear()
    group.until(lambda: away.replica.epoch.number == 1)
    assert group.agree() == {"k": [1, 2, 3, 4, 5]}
    # The answer to the sequence that another value got; where members are convergent, none may be kept.
    assert group.done(away, tail).code in ((Code.OK, Code.FORGOTTEN) if new in CONVERGENT else (Code.OK,))


def test_65_where_some_may_lie_one_member_alone_ends_nothing():
    group = net("pbft", "raft", options={})
    leader = group.lead()
    session = written(group, leader, 3)
    group["n2"].switch("raft")
    for member in group:
        member.step("n3", (0, Switch(Epoch(1, "raft", ("n3",)))))
    group.run(300)
    assert {member.replica.epoch.number for member in group} == {0}
    group["n1"].switch("raft")
    group.until(lambda: all(member.replica.epoch.number == 1 for member in group))
    written(group, leader, 2, session=session, first=4)
    assert group.agree() == {"k": [1, 2, 3, 4, 5]}


def test_67_of_two_successors_one_comes():
    group = net(count=5)
    leader = group.lead()
    other = next(member for member in group if member is not leader)
    first, second = ("n0", "n1", "n2"), ("n2", "n3", "n4")
    other.switch("raft", first)
    leader.switch("raft", second)
    group.until(lambda: all(member.replica.epoch.number == 1 for member in group))
    chosen = {member.replica.epoch.members for member in group}
    assert len(chosen) == 1
    assert all(len(member.epochs) == 1 for member in group)


def test_69_what_cannot_start_is_refused_and_the_old_protocol_goes_on():
    group = net()
    leader = group.lead()
    session = written(group, leader, 1)
    with pytest.raises(UsageError, match="unknown"):
        leader.switch("zab")
    with pytest.raises(UsageError, match="n0"):
        leader.switch("raft", ["n0", "n0", "n1"])
    if "pbft" in PROTOCOLS:
        with pytest.raises(UsageError, match="at least 4"):
            leader.switch("pbft")
    written(group, leader, 2, session=session, first=2)
    assert {member.replica.epoch.number for member in group} == {0}


@pytest.mark.parametrize("new", PROTOCOLS)
def test_70_without_a_quorum_of_the_old_nothing_new_begins(new):
    group = net("raft", new, count=4)
    leader = group.lead()
    session = written(group, leader, 1)
    group["n0" if leader.name != "n0" else "n1"].crash()
    next(member for member in group if member is not leader).crash()
    alone = list(group)
    with contextlib.suppress(UnavailableError):
        leader.switch(new, options=options(new, group.names))
    group.run(500)
    assert all(member.replica.epoch.number == 0 for member in alone)
    for member in group.members.values():
        if member.replica is None:
            member.start()
    written(group, group.lead(), 1, session=session, first=2)
    assert group.agree() == {"k": [1, 2]}


def test_71_what_the_old_epoch_left_void_is_asked_of_the_new_one_under_its_number():
    group = net(retry_ticks=1_000_000)
    leader = group.lead()
    session = written(group, leader, 1)
    other = next(member for member in group if member is not leader)
    group.lost = lambda source, target, frame: isinstance(frame[1], Forward) and frame[0] == 0
    names = [group.append(other, session, n, "k", n) for n in (2, 3)]  # on their way to a leader that never hears
    group.deliver()
    leader.switch("raft")
    group.until(lambda: other.replica.epoch.number == 1)
    group.lost = None
    for name in names:
        assert group.done(other, name).code is Code.OK
    assert group.agree() == {"k": [1, 2, 3]}


def test_66_a_frame_of_an_ended_epoch_changes_nothing_and_is_answered():
    group = net()
    leader = group.lead()
    written(group, leader, 2)
    leader.switch("raft")
    group.until(lambda: all(member.replica.epoch.number == 1 for member in group))
    group.settle()
    leader.take(leader.replica.tick())  # it answers everybody once a tick
    group.flying.clear()
    status = leader.replica.core.status
    leader.step("n1" if leader.name != "n1" else "n0", (0, Append(99, 0, 0, 0, ())))
    assert leader.replica.core.status == status
    assert [frame[1].epoch for _, _, frame in group.flying if notices(frame)] == [leader.replica.epoch]


# ---------------------------------------------------------------------------------------------- beyond the scenarios


@pytest.mark.parametrize("new", ["raft", "paxos"])
@pytest.mark.parametrize("old", ["raft", "paxos", "epaxos"])
def test_who_seals_leads_on_without_asking_anybody(old, new):
    group = net(old, new)
    leader = group.lead()
    session = written(group, leader, 3)
    asked = []
    group.lost = lambda source, target, frame: type(frame[1]) in (Vote, Prepare) and asked.append(frame)
    leader.switch(new)
    name = group.append(leader, session, 4, "k", 4)
    group.deliver()  # and no tick passes
    assert leader.answers[name].code is Code.OK
    assert leader.replica.core.status.role == "leader"
    leader.read(1, "k")
    group.deliver()
    assert leader.reads[1] == [1, 2, 3, 4]
    assert all(member.replica.core.leader == leader.name and member.replica.chain.whole for member in group)
    assert not asked
    assert group.agree() == {"k": [1, 2, 3, 4]}


@pytest.mark.parametrize("new", ["raft", "paxos"])
def test_who_led_an_epoch_first_and_forgot_it_in_a_crash_does_not_lead_it_first_again(new):
    group = net("raft", new)
    leader = group.lead()
    session = written(group, leader, 3)
    leader.held = True
    leader.switch(new)
    group.append(leader, session, 4, "k", "of the first life")
    group.deliver()
    assert all(member.replica.epoch.number == 1 for member in group)
    status = leader.replica.core.status
    assert status.role == "leader"
    leader.crash()
    leader.held = False
    leader.start()
    assert leader.replica.epoch.number == 0  # neither the seal nor what followed was on its disk
    group.append(leader, session, 5, "k", "of the second life")
    group.until(lambda: leader.replica.epoch.number == 1)
    assert leader.replica.epoch.first == leader.name
    assert leader.replica.core.status.role != "leader"
    assert group.lead().replica.core.status.term > status.term
    group.agree()


def test_what_a_later_leader_puts_behind_the_seal_is_told_to_nobody():
    group = net()
    leader = group.lead()
    session = written(group, leader, 2)
    group.lost = lambda source, target, frame: target == leader.name  # it never hears that the seal is stored
    leader.switch("raft")
    group.deliver()
    leader.crash()
    group.lost = None
    group.until(lambda: all(member.replica.epoch.number == 1 for member in group))
    for member in group:
        kinds = [entry.kind for epoch, entry in member.told if epoch == 0]
        assert kinds[-1] == Kind.SEAL
    written(group, group.lead(), 1, session=session, first=3)


@pytest.mark.parametrize("new", ["raft", "paxos", "epaxos", "pbft"])
def test_what_comes_of_the_next_epoch_before_its_beginning_is_kept(new):
    group = net("raft", new)
    leader = group.lead()
    session = written(group, leader, 2)
    others = [member for member in group if member is not leader]
    silent = {member.name for member in others[1:]}
    words = []  # by which these would hear of the seal

    def notice(source, target, frame):
        held = target in silent and (frame[0] == 0 or notices(frame))
        if held:
            words.append((source, target, frame))
        return held

    leader.switch(new)
    while leader.replica.epoch.number == 0:
        group.deliver(rounds=1)
    group.lost = notice
    name = group.append(others[0], session, 3, "k", 3)
    group.deliver()
    assert all(member.replica.epoch.number == 0 for member in others[1:])
    group.lost = None
    group.flying += words
    group.deliver()  # no tick passes, and nothing is sent again
    assert others[0].answers[name].code is Code.OK
    assert group.agree() == {"k": [1, 2, 3]}


def test_frames_of_the_next_epoch_are_kept_up_to_a_limit():
    group = net()
    leader = group.lead()
    chain = leader.replica.chain
    for _ in range(AHEAD_MAX + 10):
        leader.step("n1", (1, Append(1, 0, 0, 0, ())))
        leader.step("n1", (2, Append(1, 0, 0, 0, ())))
    assert len(chain._ahead) == AHEAD_MAX


def test_who_voted_in_an_epoch_whose_prefix_it_lacks_is_in_it_after_a_crash():
    group = net()
    leader = group.lead()
    session = written(group, leader, 2)
    late = next(member for member in group if member is not leader)
    group.lost = lambda source, target, frame: target == late.name and (frame[0] == 0 or isinstance(frame[1], Piece))
    leader.switch("raft")
    written(group, leader, 1, session=session, first=3)
    group.until(lambda: late.replica.epoch.number == 1 and late.replica.core.status.last > 2)
    last = late.replica.core.status.last
    assert not late.replica.chain.whole
    late.crash()
    late.start()
    assert (late.replica.epoch.number, late.replica.core.status.last) == (1, last)
    group.lost = None
    assert group.agree() == {"k": [1, 2, 3]}


@pytest.mark.parametrize("protocol", ["raft", "paxos"])
def test_who_comes_back_into_an_epoch_is_not_first_there(protocol):
    group = net()
    epoch = Epoch(1, protocol, ("n0", "n1", "n2"), start=5, first="n0", token=7)
    core = PROTOCOLS[protocol]("n0", epoch, group["n0"].random, lambda: 0)
    core.recovered()
    core.lead()
    assert core.status.role != "leader"


def test_a_first_that_is_no_member_is_refused():
    group = net()
    with pytest.raises(UsageError, match="n9 is to lead epoch 1 first and is none of"):
        PROTOCOLS["raft"]("n0", Epoch(1, "raft", ("n0", "n1"), first="n9"), group["n0"].random, lambda: 0)


def test_a_new_member_hears_of_its_epoch_and_fetches_what_was_before():
    group = net(count=3, spares=2)
    leader = group.lead()
    session = written(group, leader, 20)
    leader.switch("raft", ["n2", "n3", "n4"])
    group.until(lambda: group["n4"].replica.epoch.number == 1)
    heir = group["n3"]
    group.until(lambda: heir.replica.chain.whole)
    written(group, heir, 2, session=session, first=21)
    assert group.agree() == {"k": list(range(1, 23))}
    group.settle()
    assert group["n0"].replica.core.status.role == "outside"
    with pytest.raises(UnavailableError, match="does not lead"):
        group["n0"].read(1, "k")


def test_a_prefix_that_is_not_what_was_sealed_is_not_taken():
    group = net(count=3, spares=1)
    leader = group.lead()
    written(group, leader, 5)
    forged = 0

    def forge(source, target, frame):
        nonlocal forged
        if isinstance(frame[1], Piece) and forged < 2:
            forged += 1
            bad = bytearray(frame[1].data)
            bad[-1] ^= 1
            piece = Piece(frame[1].number, frame[1].offset, frame[1].total, bytes(bad))
            group[target].step(source, (frame[0], piece))
            return True
        return False

    group.lost = forge
    leader.switch("raft", ["n0", "n1", "n2", "n3"])
    assert group.agree() == {"k": [1, 2, 3, 4, 5]}
    assert forged == 2
    assert group["n3"].values.values == {"k": [1, 2, 3, 4, 5]}


def test_an_epoch_is_not_sealed_before_a_quorum_has_its_prefix_on_disk():
    group = net()
    leader = group.lead()
    written(group, leader, 1)
    group.lost = lambda source, target, frame: type(frame[1]).__name__ == "Holds"
    leader.switch("raft")
    group.until(lambda: all(member.replica.epoch.number == 1 for member in group))
    head = group.lead()
    with pytest.raises(UnavailableError, match="not settled"):
        head.switch("raft")
    group.lost = None
    group.settle()
    group.lead().switch("raft")
    group.until(lambda: all(member.replica.epoch.number == 2 for member in group))


@pytest.mark.parametrize("moment", range(12))
def test_all_crash_in_the_middle_of_a_switch(moment):
    group = net(seed=moment)
    leader = group.lead()
    session = written(group, leader, 4)
    leader.held = True
    leader.switch("raft")
    leader.held = False
    leader.sync()
    for _ in range(moment):
        if group.flying:
            group.deliver(rounds=1)
    for member in list(group):
        member.crash()
    group.flying.clear()
    for member in group.members.values():
        member.start()
    written(group, group.lead(), 1, session=session, first=5)
    assert group.agree() == {"k": [1, 2, 3, 4, 5]}


def test_a_notice_of_what_cannot_begin_is_refused():
    group = net()
    leader = group.lead()
    written(group, leader, 1)
    victim = next(member for member in group if member is not leader)
    lie = Epoch(1, "zab", ("n0", "n1", "n2"), start=2, former=("n0", "n1", "n2"))
    with pytest.raises(PeerError, match="can't begin"):
        victim.step("n0", (1, Sealed(lie, b"x")))
    assert victim.replica.epoch.number == 0


def test_two_beginnings_of_one_epoch_stop_the_member():
    group = net()
    leader = group.lead()
    written(group, leader, 1)
    leader.switch("raft")
    group.until(lambda: all(member.replica.epoch.number == 1 for member in group))
    with pytest.raises(CorruptionError, match="another beginning"):
        leader.step("n1", (1, Sealed(leader.replica.epoch, b"another digest")))


def test_nonsense_about_epochs_changes_nothing():
    group = net()
    leader = group.lead()
    written(group, leader, 1)
    state = leader.replica.sessions.snapshot()
    for message in (Fetch(7, 0), Fetch(0, -1), Piece(3, 0, 1 << 60, b"x"), Piece(1, 5, 4, b"xx")):
        leader.step("n1", (0, message))
    leader.step("n1", (0, Switch(Epoch(5, "raft", ("n0",)))))
    leader.step("n1", (0, Switch(Epoch(1, "zab", ("n0",)))))
    assert leader.replica.epoch.number == 0
    assert leader.replica.sessions.snapshot() == state
