"""The scenarios of Raft: elections, logs, disks, members, snapshots and reads, each by its number."""

from __future__ import annotations

import random

import pytest

from nova.consensus.core import Entry, Fatal, Installed, Kind, NotLeaderError, ReadReady
from nova.consensus.quorum import Majority
from nova.consensus.raft import Raft
from nova.consensus.raft.core import ENTRIES, SNAPSHOT, _pack
from nova.consensus.raft.members import Members
from nova.consensus.raft.messages import Append, AppendReply, Heartbeat, SnapshotChunk, TimeoutNow, Vote, VoteReply
from nova.consensus.raft.options import RaftOptions
from nova.errors import CorruptionError, UsageError
from tests.consensus.net import Net, T, with_log


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "compiled"])
def compiled(request, monkeypatch):
    """Every scenario is played by all of Raft in Python, and with what is compiled of it."""
    monkeypatch.setattr(Raft, "compiled", request.param)


def kinds(*types):
    return lambda source, target, message: isinstance(message, types)


def to(*names):
    return lambda source, target, message: {source, target} <= set(map(str, names))


def test_01_a_split_vote_ends_in_a_leader():
    for seed in range(300):
        net = Net(3, seed=seed)
        for member in net:
            member.core._timeout = 1  # all on one tick
        for _ in range(10 * T):
            for member in net:
                member.tick()
            net.deliver()
            assert len(net.leaders) <= 1
            if net.leaders:
                break
        assert net.leaders, f"seed {seed}"


def test_02_a_shorter_log_cannot_win():
    net = Net(3)
    net.elect(1).propose(b"x")
    net.deliver(to(1, 2))
    assert net[1].committed == [(2, b"x")]
    net[1].crash()
    term = net[3].core.term + 5
    net[2].step("3", Vote(term, 1, 1, False, True))
    assert net[2].core.term == term
    assert net[2].core.voted_for is None
    net.flying.clear()
    net.elect(2)
    net.run(2)
    assert (2, 1, b"x") in net[3].log


def test_03_the_last_term_beats_length():
    net = Net(3)
    with_log(net, 1, [1])
    with_log(net, 2, [1, 1, 3, 3, 3])
    with_log(net, 3, [1, 4], term=4)
    assert net[2].core.log.up_to_date(2, 4)
    assert not net[3].core.log.up_to_date(5, 3)
    net.elect(3)
    net.run(3)
    assert net[2].log[:2] == net[3].log[:2]
    assert {member.core.log.last for member in net} == {3}


def test_04_one_who_was_cut_off_comes_back_quietly():
    net = Net(3)
    net.elect(1)
    net.run(2)
    net.cut(3)
    term = net[1].core.term
    net[1].propose(b"x")
    net.run(50 * T)
    assert net[3].core.term == term
    net.cuts.clear()
    net.run(3)
    assert (net.leaders, net[1].core.term) == (["1"], term)
    assert net[3].committed == [(2, b"x")]


def test_05_one_who_no_longer_hears_the_leader_raises_no_term():
    net = Net(3)
    net.elect(1)
    net.run(2)
    term = net[1].core.term
    net.cuts.add(("1", "3"))
    net.run(10 * T)
    assert (net.leaders, {member.core.term for member in net}) == (["1"], {term})


def test_06_a_leader_without_a_majority_steps_down():
    net = Net(3)
    net.elect(1)
    net.run(2)
    net.cut(1)
    net[1].propose(b"x")
    for _ in range(2 * T):
        net[1].tick()
    assert net[1].core.role != "leader"
    with pytest.raises(NotLeaderError):
        net[1].propose(b"y")
    assert net[1].committed == []


def test_07_an_entry_of_an_earlier_term_is_not_committed_by_counting():
    net = Net(5)
    with_log(net, 1, [1, 2], term=2)
    with_log(net, 2, [1, 2], term=2)
    for name in (3, 4):
        with_log(net, name, [1], term=2)
    with_log(net, 5, [1, 3], term=3)
    leader = net[1]
    net.cut(5)
    leader.core._timeout = 1
    leader.tick()
    net.deliver(kinds(Vote, VoteReply))
    assert leader.core.role == "leader"
    net.flying.clear()
    # The old entry reaches a majority: 3 has it, the no-op of the new term does not.
    leader.step("2", AppendReply(leader.core.term, 2))
    leader.step("3", AppendReply(leader.core.term, 2))
    assert leader.core.committed == 0
    leader.step("2", AppendReply(leader.core.term, 3))
    leader.step("3", AppendReply(leader.core.term, 3))
    assert leader.core.committed == 3


@pytest.mark.parametrize(
    "terms",
    [
        [1, 1, 1, 4, 4, 5, 5, 6, 6],
        [1, 1, 1, 4],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        [1, 1, 1, 4, 4, 4, 4],
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ],
)
def test_08_logs_that_diverged_become_identical(terms):
    leader_terms = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    net = Net(3)
    with_log(net, 1, leader_terms, term=8)
    with_log(net, 2, leader_terms, term=8)
    with_log(net, 3, terms, term=8)
    rejected = []
    net.elect(1)

    def watch(source, target, message):
        if source == "3" and isinstance(message, AppendReply) and message.rejected:
            rejected.append(message.rejected)
        return True

    for _ in range(5):
        for member in net:
            member.tick()
        net.deliver(watch)
    assert net[1].log == net[2].log == net[3].log
    assert len(rejected) <= len(set(terms) | set(leader_terms))


def test_09_appends_out_of_order_truncate_nothing_that_matches():
    net = Net(3)
    follower = net[2]
    entries = tuple(Entry(number, 1, Kind.COMMANDS, b"%d" % number) for number in range(1, 6))
    first, longer = Append(1, 0, 0, 0, entries[:3]), Append(1, 0, 0, 0, entries)
    for message in (longer, first, longer):
        follower.step("1", message)
        assert follower.core.log.last == 5
    acks = [message.matched for source, _, message in net.flying if isinstance(message, AppendReply)]
    assert acks == [5, 3, 5]


def test_10_a_conflict_with_what_is_committed_is_fatal():
    net = Net(3)
    follower = net[2]
    entries = tuple(Entry(number, 1, Kind.COMMANDS, b"a") for number in range(1, 9))
    follower.step("1", Append(1, 0, 0, 8, entries))
    assert follower.core.committed == 8
    other = Entry(7, 2, Kind.COMMANDS, b"b")
    follower.step("3", Append(2, 6, 1, 0, (other,)))
    assert any(isinstance(event, Fatal) and "position 7" in event.reason for event in follower.events)
    assert follower.core.log.term(7) == 1


def test_11_a_vote_leaves_when_it_is_durable_and_is_given_once():
    net = Net(3)
    voter = net[2]
    voter.auto = False
    for _ in range(2):  # asked twice: the second answer must not overtake the sync of the first
        voter.step("1", Vote(1, 0, 0))
        assert not [m for _, _, m in net.flying if isinstance(m, VoteReply)]
    voter.crash()
    voter.start()
    voter.step("3", Vote(1, 0, 0))
    voter.sync()
    assert [(target, m.granted) for _, target, m in net.flying] == [("3", True)]
    voter.crash()
    voter.start()
    net.flying.clear()
    voter.step("1", Vote(1, 0, 0))
    voter.sync()
    assert [(target, m.granted) for _, target, m in net.flying] == [("1", False)]


def test_12_what_was_acknowledged_is_there_after_a_crash():
    net = Net(3)
    follower = net[2]
    follower.auto = False
    entries = tuple(Entry(number, 1, Kind.COMMANDS, b"x") for number in range(1, 51))
    follower.step("1", Append(1, 0, 0, 0, entries))
    assert not [m for _, _, m in net.flying if isinstance(m, AppendReply)]
    follower.step("1", Append(1, 0, 0, 0, entries[:10]))  # nothing new, and still not on disk
    assert not [m for _, _, m in net.flying if isinstance(m, AppendReply)]
    follower.sync()
    assert max(m.matched for _, _, m in net.flying if isinstance(m, AppendReply)) == 50
    follower.crash()
    follower.start()
    assert follower.core.log.last == 50


def test_13_a_sync_of_what_was_overwritten_says_nothing_about_what_stands_there():
    net = Net(3)
    leader = net.elect(1)
    net.run(2)
    leader.auto = False
    leader.propose(b"old")
    position = leader.core.log.last
    assert leader.core.log.durable < position
    term = leader.core.term + 2
    entry = Entry(position, term, Kind.COMMANDS, b"new")
    leader.step("2", Append(term, position - 1, leader.core.log.term(position - 1), 0, (entry,)))
    leader.sync(1)  # the old one
    assert leader.core.log.durable < position
    assert not [m for s, _, m in net.flying if s == "1" and isinstance(m, AppendReply) and m.matched >= position]
    leader.sync()
    assert leader.core.log.durable == position


def test_14_a_learner_counts_nowhere_and_answers_all_the_same():
    net = Net(3, members=("1", "2"))
    leader = net.elect(1)
    net.run(2)
    leader.take(leader.core.change(("1", "2"), ("3",)))
    net.run(3)
    assert net[3].core.status.role == "learner"
    net.cut(2)
    leader.propose(b"x")
    net.deliver()
    assert net[3].core.log.last == leader.core.log.last
    assert (leader.core.log.last, b"x") not in leader.committed
    term = net[3].core.term + 1
    net[3].core._heard = T
    net[3].step("2", Vote(term, 100, term, False))  # promoted, as the others know
    assert net[3].core.voted_for == "2"
    net[3].tick(20 * T)
    assert net[3].core.role == "follower"


def test_15_one_change_at_a_time():
    net = Net(4, members=("1", "2", "3"))
    leader = net.elect(1)
    net.run(2)
    leader.take(leader.core.change(("1", "2", "3"), ("4",)))
    with pytest.raises(UsageError, match="not applied yet"):
        leader.core.change(("1", "2"))
    net.run(5)
    leader.take(leader.core.change(("1", "2", "3", "4")))
    net.run(5)
    assert leader.core.members.voters == ("1", "2", "3", "4")
    assert not leader.core.members.joint
    leader.take(leader.core.change(("1", "2", "3")))
    net.run(5)
    assert leader.core.members.voters == ("1", "2", "3")


def test_16_a_joint_configuration_needs_both_majorities():
    net = Net(5, members=("1", "2", "3"))
    leader = net.elect(1)
    net.run(2)
    leader.take(leader.core.change(("3", "4", "5")))
    position = leader.core.log.last
    for peer in ("2", "4"):
        leader.step(peer, AppendReply(leader.core.term, position))
    assert leader.core.committed < position  # {1, 2} of the old three, {4} of the new
    leader.step("5", AppendReply(leader.core.term, position))
    assert leader.core.committed >= position
    net = Net(5, members=("1", "2", "3"))
    leader = net.elect(1)
    net.run(2)
    leader.take(leader.core.change(("3", "4", "5")))
    position = leader.core.log.last
    for peer in ("4", "5"):
        leader.step(peer, AppendReply(leader.core.term, position))
    assert leader.core.committed < position  # {4, 5} of the new three, {1} of the old


@pytest.mark.parametrize("survivor", ["2", "3", "4"])
def test_17_a_change_is_completed_by_the_next_leader(survivor):
    net = Net(5, members=("1", "2", "3"))
    leader = net.elect(1)
    net.run(2)
    leader.take(leader.core.change(("3", "4", "5")))
    net.deliver(lambda s, t, m: not (isinstance(m, Append) and any(e.position > 3 for e in m.entries)))
    net.flying.clear()
    net[1].crash()
    for member in net:
        if member.core is not None:
            member.core._heard = T
    for _ in range(10 * T):
        net.run(1)
        if net.leaders and not net[net.leaders[0]].core.members.joint:
            break
    assert len(net.leaders) == 1
    members = net[net.leaders[0]].core.members
    assert (members.voters, members.joint) == (("3", "4", "5"), False)


def test_17_one_whose_removal_is_not_committed_stands_once_more_if_nobody_else_can_win():
    net = Net(2)
    leader = net.elect(1)
    net.run(2)
    leader.take(leader.core.change(("2",)))
    final = leader.core.log.last + 1
    for _ in range(10):  # until it has committed the joint configuration; of the last one the other hears nothing
        net.deliver(lambda s, t, m: not (isinstance(m, Append) and any(e.position >= final for e in m.entries)))
        leader.tick()
    assert leader.core.members.voters == ("2",)
    assert leader.core.committed == final - 1
    assert net[2].core.members.joint
    leader.crash()
    leader.start()
    net.run(12 * T)
    assert net.leaders == ["2"]
    assert net[2].core.members == Members(("2",))
    assert net[2].core.committed > final
    leader.tick(3 * T)
    assert leader.core.role == "follower", "now it is committed, and it stands no more"


def test_18_a_leader_that_removes_itself_does_not_count_itself():
    net = Net(3)
    leader = net.elect(1)
    net.run(2)
    leader.take(leader.core.change(("2", "3")))
    joint = leader.core.log.last
    leader.step("2", AppendReply(leader.core.term, joint))
    leader.step("3", AppendReply(leader.core.term, joint))
    final = leader.core.log.last
    assert final == joint + 1
    leader.step("2", AppendReply(leader.core.term, final))
    assert leader.core.committed < final
    leader.step("3", AppendReply(leader.core.term, final))
    assert leader.core.committed == final
    assert leader.core.role != "leader"


def test_18_its_last_word_commits_nothing_that_a_follower_was_not_known_to_hold():
    net = Net(4)
    with_log(net, 3, [1] * 5, term=1)  # a tail that nobody else has
    net.cut(3)
    leader = net.elect(1)
    leader.propose(b"x", b"y", b"z", b"w")
    net.deliver()
    net.cuts.clear()
    leader.take(leader.core.change(("2", "3", "4")))
    words = []
    net.deliver(lambda source, target, message: words.append(message) if target == "3" else source != "3")
    assert leader.core.role != "leader"
    assert isinstance(words[-1], Heartbeat)
    net[3].step("1", words[-1])
    assert net[3].committed == []


def test_19_one_who_never_heard_of_its_removal_disturbs_nobody():
    net = Net(3)
    leader = net.elect(1)
    net.run(2)
    net.cut(3)
    leader.take(leader.core.change(("1", "2")))
    net.run(5)
    net.cuts.clear()
    term = leader.core.term
    net.run(20 * T)
    assert (net.leaders, net[2].core.term) == (["1"], term)


def test_20_leadership_is_handed_over():
    net = Net(3)
    leader = net.elect(1)
    net.run(2)
    leader.propose(b"x")
    leader.take(leader.core.transfer("3"))
    with pytest.raises(NotLeaderError):
        leader.propose(b"y")
    net.deliver()
    assert net.leaders == ["3"]
    net.run(3)
    assert (2, b"x") in net[3].committed or (2, b"x") in net[2].committed


def test_21_a_hand_over_to_nobody_is_given_up():
    net = Net(4, members=("1", "2", "3"))
    leader = net.elect(1)
    net.run(2)
    for wrong in ("4", "9"):
        with pytest.raises(UsageError, match="is no voter"):
            leader.core.transfer(wrong)
    net.cut(3)
    leader.take(leader.core.transfer("3"))
    net.run(T + 1)
    leader.propose(b"x")
    net.run(2)
    assert leader.committed == [(2, b"x")]


def compacted(net, leader, upto=None):
    """The leader forgets what is committed."""
    snapshot = leader.core.snapshot(upto or leader.core.committed, b"state " * 100)
    leader.disk = list(leader.core.compact(snapshot))
    return snapshot


@pytest.mark.parametrize("behind", [0, 5])
def test_22_who_is_behind_a_compacted_log_gets_a_snapshot_and_goes_on(behind):
    net = Net(3, trailing=0, chunk_bytes=100)
    leader = net.elect(1)
    net.run(2)
    net.cut(3)
    for number in range(10):
        leader.propose(b"%d" % number)
    net.run(2)
    compacted(net, leader)
    for number in range(behind):
        leader.propose(b"late %d" % number)
    net.run(2)
    net.cuts.clear()
    net.run(3 * T)
    assert any(isinstance(event, Installed) for event in net[3].events)
    assert net[3].core.log.last == leader.core.log.last
    assert net[3].core.committed == leader.core.committed


@pytest.mark.parametrize("chunks", range(9))
def test_23_a_snapshot_is_installed_whole_or_not_at_all(chunks):
    net = Net(3, trailing=0, chunk_bytes=100)
    leader = net.elect(1)
    net.run(2)
    net.cut(3)
    for number in range(10):
        leader.propose(b"%d" % number)
    net.run(2)
    snapshot = compacted(net, leader)
    net.cuts.clear()
    before = net[3].core.log.last
    seen = 0

    def some(source, target, message):
        nonlocal seen
        seen += isinstance(message, SnapshotChunk)
        return not isinstance(message, SnapshotChunk) or seen <= chunks

    for _ in range(3):
        for member in net:
            member.tick()
        net.deliver(some)
    net[3].crash()
    net.flying.clear()
    follower = net[3].start()
    assert follower.core.log.last in (before, leader.core.log.last)
    if follower.core.log.last == before:
        assert follower.core.log.offset == 0
    else:
        assert follower.core.log.offset == snapshot.position
    net.run(5 * T)
    assert follower.core.log.last == leader.core.log.last


def test_24_a_full_window_toward_a_dead_follower_is_taken_up_again():
    net = Net(3, flying_count_max=4)
    leader = net.elect(1)
    net.run(2)
    net.cut(3)
    for number in range(50):
        leader.propose(b"%d" % number)
    assert len(leader.core._progress["3"].flying) <= 4
    net.deliver()
    net.cuts.clear()
    net.run(2 * T)
    assert net[3].core.log.last == leader.core.log.last


def test_25_records_that_are_none_stop_the_start():
    net = Net(1)
    member = net[1]
    member.crash()
    for wrong in (b"", b"Z...", ENTRIES + b"\xff", ENTRIES + _pack([(5, 1, 0, b"")])):
        member.disk = [wrong]
        with pytest.raises(CorruptionError):
            member.start()


@pytest.mark.parametrize("count", range(1, 8))
def test_a_majority_is_more_than_half(count):
    names = [str(number) for number in range(count)]
    quorum = Majority(names)
    for some in range(count + 1):
        assert quorum.phase1(names[:some]) == (2 * some > count)
        assert quorum.committed(dict.fromkeys(names[:some], 9)) == (9 if 2 * some > count else 0)


# ------------------------------------------------------------------------------------------------ reads


def reads(member):
    return [(event.ids, event.position) for event in member.events if isinstance(event, ReadReady)]


def test_80_a_deposed_leader_answers_no_read():
    net = Net(5)
    net.elect(1)
    net.run(2)
    net.cuts = {(a, b) for a in "12345" for b in "12345" if (a in "12") != (b in "12")}
    net.elect(3).propose(b"x")
    net.deliver()
    net[1].take(net[1].core.read(7))
    net.deliver()
    for _ in range(3 * T):
        net[1].tick()
        net.deliver()
    assert reads(net[1]) == []  # 2 still follows it, and that is not enough


def test_81_a_read_waits_for_the_first_commit_of_the_term():
    net = Net(3)
    net.elect(1).propose(b"x")
    net.deliver(to(1, 2))
    net[1].crash()
    for name in (2, 3):
        net[name].core._heard = T
    net[2].core._timeout = 1
    net[2].tick()
    net.deliver(kinds(Vote, VoteReply))
    leader = net[2]
    assert leader.core.role == "leader"
    net.flying.clear()
    leader.take(leader.core.read(1))
    net.deliver(lambda s, t, m: not isinstance(m, Append))
    assert reads(leader) == []
    net.run(3)
    assert reads(leader) == [((1,), leader.core.committed)]
    assert leader.core.committed >= 2


def test_82_a_follower_asks_the_leader_for_the_position():
    net = Net(3)
    leader = net.elect(1)
    net.run(2)
    leader.propose(b"x")
    net.deliver()
    net[3].take(net[3].core.read(5))
    net.run(2)
    assert reads(net[3]) == [((5,), leader.core.committed)]


def test_83_a_lease_is_measured_by_the_clock_and_needs_check_quorum():
    with pytest.raises(UsageError, match="check_quorum"):
        RaftOptions(lease_reads=True, check_quorum=False)
    net = Net(3, lease_reads=True)
    leader = net.elect(1)
    net.run(2)
    net.deliver()
    leader.take(leader.core.read(1))
    assert reads(leader) == [((1,), leader.core.committed)]  # at once
    leader.now_ns += 3 * T * 10_000_000  # it slept
    net.cut(1)
    leader.take(leader.core.read(2))
    net.deliver()
    assert len(reads(leader)) == 1


def test_83_a_lease_outlives_the_restart_of_those_on_whom_it_rests():
    net = Net(3, lease_reads=True)
    leader = net.elect(1)
    net.run(2)
    net[2].crash()
    net[2].start()
    net.cut(1)
    for _ in range(T // 2):  # the third has not heard of the leader for long; the second would elect it
        net[3].core._heard = net[3].core._elapsed = 2 * T
        net[3].tick()
        net.deliver()
    assert net[3].core.role != "leader"
    leader.take(leader.core.read(1))
    assert reads(leader) == [((1,), leader.core.committed)]
    net.run(5 * T)
    assert net.leaders != []


def test_83_who_was_to_hand_over_reads_by_rounds_for_the_rest_of_its_term():
    net = Net(3, lease_reads=True)
    leader = net.elect(1)
    net.run(2)
    net.cut(2)
    leader.take(leader.core.transfer("2"))  # the word to go flies, and may arrive at any time
    net.flying.clear()
    net.run(3 * T)
    assert net.leaders == ["1"]
    net.cuts.clear()
    net.run(3)
    net.flying.clear()
    leader.take(leader.core.read(1))
    assert reads(leader) == []
    net.deliver()
    assert reads(leader) == [((1,), leader.core.committed)]


def test_reads_share_rounds_of_heartbeats():
    net = Net(3)
    leader = net.elect(1)
    net.run(2)
    net.deliver()
    for number in range(100):
        leader.take(leader.core.read(number))
    rounds = {m.round for _, _, m in net.flying if isinstance(m, Heartbeat)}
    assert len(rounds) == 1
    net.deliver()
    assert len(reads(leader)) == 100


# ------------------------------------------------------------------------------------------------ strangers


def test_messages_of_another_life_change_nothing():
    net = Net(3)
    leader = net.elect(1)
    net.run(2)
    before = leader.core.status
    for message in (
        VoteReply(1, True),
        AppendReply(0, 99),
        AppendReply(leader.core.term, 99),
        TimeoutNow(leader.core.term),
    ):
        leader.step("2", message)
    assert leader.core.status == before


@pytest.mark.parametrize(
    "options", [{"election_ticks": 1}, {"heartbeat_ticks": 10}, {"append_bytes_max": 0}, {"no_such": 1}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError):
        Net(3, **options)


def test_what_is_not_committed_is_written_again_behind_a_snapshot_in_records_of_bounded_size():
    net = Net(3)
    leader = net.elect("1")
    committed, large = leader.core.committed, bytes(3 << 20)
    for number in range(4):
        leader.propose(large + b"%d" % number)  # nobody else hears of them
    snapshot = leader.core.snapshot(committed, b"state")
    records = leader.core.compact(snapshot)
    assert max(len(record) for record in records) < 5 << 20
    again = Raft("1", leader.core.epoch, random.Random(1), lambda: 0)
    again.restore(snapshot)
    for record in records:
        again.replay(record)
    again.recovered()
    assert again.log.last == leader.core.log.last
    assert [entry.data[-1:] for entry in again.log.entries] == [b"0", b"1", b"2", b"3"]
    assert again.term == leader.core.term


def test_pieces_of_an_installed_snapshot_count_when_all_are_there():
    net = Net(3, trailing=0)
    leader = net.elect(1)
    net.run(2)
    leader.propose(b"x")
    net.run(2)
    packed = _pack(compacted(net, leader))
    half = len(packed) // 2
    follower = net[3]
    follower.crash()
    follower.disk = [SNAPSHOT + _pack((0, 2, packed[:half]))]
    follower.start()
    assert follower.core.log.offset == 0
    follower.crash()
    follower.disk.append(SNAPSHOT + _pack((1, 2, packed[half:])))
    follower.start()
    assert follower.core.log.offset == follower.core.committed > 0
