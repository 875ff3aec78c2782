"""Multi-Paxos around its two phases: seals, snapshots, recovery, reads by their numbers, and strangers."""

from __future__ import annotations

import random

import pytest

from nova.consensus.core import (
    Committed,
    Entry,
    Epoch,
    Fatal,
    Installed,
    Kind,
    ReadLost,
    ReadReady,
    SealedError,
)
from nova.consensus.paxos import Paxos, records
from nova.consensus.paxos.ballots import ROUND_MAX, Ballots
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
    SnapshotChunk,
)
from nova.consensus.snapshots import pack_snapshot
from nova.errors import CorruptionError, PeerError, UsageError
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


# ------------------------------------------------------------------------------------------------ seals


def successor(**options):
    return Epoch(1, "paxos", ("1", "2", "3"), start=1, options=options)


def test_nothing_is_told_behind_a_seal():
    net = PaxosNet(3)
    leader = net.elect(1)
    net.run(2)
    leader.propose(b"x")
    leader.take(leader.core.seal(successor()))
    with pytest.raises(SealedError):
        leader.propose(b"y")
    net.run(2)
    assert {member.core.sealed for member in net} == {2}
    assert {member.core.status.role for member in net} == {"sealed"}
    for member in net:
        with pytest.raises(SealedError):
            member.propose(b"y")
        with pytest.raises(SealedError):
            member.core.read(1)
    # Whoever says that slots behind it are decided: they are void.
    member = PaxosNet(3)[3]
    ballot = net.ballots.make(1, "1")
    entries = (command(1, ballot, b"x"), Entry(2, ballot, Kind.SEAL, b""), command(3, ballot, b"void"))
    member.step("1", Accept(ballot, 1, 3, entries))
    assert [entry.position for entry in told(member)] == [1, 2]
    # Slots behind it that an earlier leader left behind stay void, and are not proposed again.
    old = net.ballots.make(1, "1")
    again = PaxosNet(3)
    accepted(again, 2, old, {1: (old, b"x"), 3: (old, b"void")})
    member = again[2]
    member.core.slots.put(Entry(2, old, Kind.SEAL, b""))
    again.elect(2)
    again.run(3)
    assert [(entry.position, entry.kind) for entry in told(member)] == [(1, Kind.COMMANDS), (2, Kind.SEAL)]
    assert list(again[1].log) == [1, 2]
    assert again[1].core.sealed == 2


def test_a_seal_must_name_the_next_epoch():
    net = PaxosNet(3)
    leader = net.elect(1)
    with pytest.raises(UsageError, match="can't follow"):
        leader.core.seal(Epoch(5, "paxos", ("1",)))
    with pytest.raises(UsageError, match="do not change"):
        leader.core.propose([(Kind.MEMBERS, b"")])


def test_a_seal_survives_restarts_and_snapshots():
    net = PaxosNet(3, trailing=0)
    leader = net.elect(1)
    leader.take(leader.core.seal(successor()))
    net.run(2)
    leader.crash()
    leader.start()
    assert (leader.core.sealed, leader.core.committed) == (1, 1)
    snapshot = leader.core.snapshot(1, b"state")
    leader.core.compact(snapshot)
    fresh = Paxos("1", Epoch(0, "paxos", ("1", "2", "3")), random.Random(1), lambda: 0)
    fresh.restore(snapshot)
    with pytest.raises(SealedError):
        fresh.propose([(Kind.COMMANDS, b"")])


# ------------------------------------------------------------------------------------------------ snapshots, recovery


def compacted(member, upto=None):
    """A member forgets what is decided."""
    snapshot = member.core.snapshot(upto or member.core.committed, b"state " * 100)
    member.disk = list(member.core.compact(snapshot))
    return snapshot


@pytest.mark.parametrize("behind", [0, 5])
def test_who_is_behind_compacted_slots_gets_a_snapshot_and_goes_on(behind):
    net = PaxosNet(3, trailing=0, chunk_bytes=100)
    leader = net.elect(1)
    net.cut(3)
    for number in range(10):
        leader.propose(b"%d" % number)
    net.run(2)
    compacted(leader)
    for number in range(behind):
        leader.propose(b"late %d" % number)
    net.run(2)
    net.cuts.clear()
    net.run(3 * T)
    assert [event.snapshot.position for event in net[3].events if isinstance(event, Installed)] == [10]
    assert net[3].core.committed == leader.core.committed == 10 + behind
    leader.propose(b"more")
    net[2].crash()
    net.run(2)
    assert leader.committed[-1] == (11 + behind, b"more")  # with 3, whose slots up to 10 are in a snapshot


@pytest.mark.parametrize("chunks", range(9))
def test_a_snapshot_is_installed_whole_or_not_at_all(chunks):
    net = PaxosNet(3, trailing=0, chunk_bytes=100)
    leader = net.elect(1)
    net.cut(3)
    for number in range(10):
        leader.propose(b"%d" % number)
    net.run(2)
    snapshot = compacted(leader)
    net.cuts.clear()
    seen = 0

    def some(source, target, message):
        nonlocal seen
        seen += isinstance(message, SnapshotChunk)
        return not isinstance(message, SnapshotChunk) or seen <= chunks

    for _ in range(T):
        for member in net:
            member.tick()
        net.deliver(some)
    net[3].crash()
    net.flying.clear()
    member = net[3].start()
    assert member.core.committed in (0, snapshot.position)
    assert member.core.slots.offset == member.core.committed
    net.run(5 * T)
    assert member.core.committed == leader.core.committed


def test_a_snapshot_leaves_what_was_accepted_behind_it():
    net = PaxosNet(3, trailing=0)
    leader = net.elect(1)
    net.run(2)
    leader.propose(b"a", b"b")
    net.cuts.add(("1", "3"))
    net.deliver()
    net.cuts.clear()
    leader.propose(b"c")
    net.deliver()  # 3 accepted slot 3, and lacks 1 and 2
    snapshot = compacted(leader, 2)
    packed = pack_snapshot(snapshot)
    member = net[3]
    member.step("1", SnapshotChunk(0, 2, snapshot.term, 0, len(packed), packed))
    assert member.core.slots.offset == 2
    ballot = leader.core.promised
    assert member.log == {3: (ballot, b"c")}
    member.crash()
    member.start()
    assert member.log == {3: (ballot, b"c")}
    assert [event.snapshot.position for event in member.events if isinstance(event, Installed)] == [2]


def test_a_proposer_behind_a_snapshot_gets_it_before_it_campaigns():
    net = PaxosNet(3, trailing=0)
    leader = net.elect(1)
    net.cut(3)
    for number in range(10):
        leader.propose(b"%d" % number)
    net.run(2)
    for name in (1, 2):
        compacted(net[name])
    net[1].crash()
    net.cuts.clear()
    net.forget_leaders()
    net[3].campaign()
    net.deliver()
    assert net[3].core.role == "follower"
    assert net[3].core.committed == 10
    net.run(8 * T)
    assert len(net.leaders) == 1


def test_what_is_known_to_be_decided_is_told_again_after_a_restart():
    net = PaxosNet(3)
    leader = net.elect(1)
    net.run(2)
    for number in range(5):
        leader.propose(b"%d" % number)
        net.run(1)
    for member in net:
        before = member.committed
        promised = member.core.promised
        member.crash()
        member.start()
        assert member.core.promised == promised
        assert member.committed == before[:4]  # the last one is known by its successor's record
        assert member.core.role == "follower"


def test_records_written_in_pieces_claim_what_is_decided_at_their_end_only():
    net = PaxosNet(3, append_bytes_max=20)
    old, new = net.ballots.make(1, "1"), net.ballots.make(2, "2")
    member = accepted(net, 3, old, dict.fromkeys(range(1, 5), (old, b"stale")))
    before = len(member.disk)
    member.step("2", Learned(0, 4, tuple(command(slot, new, b"decided") for slot in range(1, 5))))
    assert len(member.disk) == before + 4
    for count in range(before, before + 5):
        torn = PaxosNet(3)[3]
        torn.crash()
        torn.disk = member.disk[:count]
        torn.start()
        assert all(data == b"decided" for _, data in torn.committed)
        assert len(torn.committed) == (4 if count == before + 4 else 0)


def test_records_that_are_none_stop_the_start():
    member = PaxosNet(1)[1]
    member.crash()
    for wrong in (b"", b"Z...", records.ACCEPTED + b"\xff", records.LEARNED, records.SNAPSHOT + b"\x01"):
        member.disk = [wrong]
        with pytest.raises(CorruptionError):
            member.start()


# ------------------------------------------------------------------------------------------------ reads


def reads(member):
    return [(event.ids, event.position) for event in member.events if isinstance(event, ReadReady)]


def test_80_a_deposed_leader_answers_no_read():
    net = PaxosNet(5)
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
    assert [event.ids for event in net[1].events if isinstance(event, ReadLost)] == [(7,)]


def test_80_a_read_needs_members_that_meet_every_phase_1_quorum():
    # Phase 1 takes two, so phase 2 takes four: two members may elect another leader, and three know nothing of it.
    net = PaxosNet(5, phase1=2, phase2=4)
    net.elect(1)
    net.run(2)
    net.cuts = {(a, b) for a in "12345" for b in "12345" if (a in "123") != (b in "123")}
    for name in (4, 5):
        net[name].core._pace.heard = T
    net[4].campaign()
    net.deliver()
    assert net[4].core.role == "leader"
    net[1].take(net[1].core.read(7))
    net.deliver()
    assert reads(net[1]) == []  # three of five, a majority, said that it leads


def test_81_a_read_waits_for_what_was_found_in_phase_1():
    net = PaxosNet(3)
    net.elect(1).propose(b"x")
    net.deliver(to(1, 2))
    assert net[1].committed == [(1, b"x")]
    net[1].crash()
    net.flying.clear()
    net.forget_leaders()
    leader = net[2]
    leader.campaign()
    net.deliver(lambda s, t, m: isinstance(m, Prepare | Promise))
    assert leader.core.role == "leader"
    net.flying.clear()
    leader.take(leader.core.read(1))
    net.deliver(not_of(Accept))
    assert reads(leader) == []
    net.run(3)
    assert reads(leader) == [((1,), 1)]


def test_82_a_follower_asks_the_leader_for_the_position():
    net = PaxosNet(3)
    leader = net.elect(1)
    net.run(2)
    leader.propose(b"x")
    net.deliver()
    net[3].take(net[3].core.read(5))
    net.deliver()
    assert reads(net[3]) == [((5,), 1)]
    net.cut(1)
    net[3].take(net[3].core.read(6))
    net.run(5 * T)
    assert reads(net[3]) == [((5,), 1)]
    assert [event.ids for event in net[3].events if isinstance(event, ReadLost)] == [(6,)]


def test_83_a_lease_is_measured_by_the_clock():
    net = PaxosNet(3, lease_reads=True)
    leader = net.elect(1)
    net.run(2)
    leader.take(leader.core.read(1))
    assert reads(leader) == [((1,), 0)]  # at once
    leader.now_ns += (T - 1) * 10_000_000  # it slept
    net.cut(1)
    leader.take(leader.core.read(2))
    net.deliver()
    assert len(reads(leader)) == 1


def test_83_who_restarts_keeps_the_vow_of_its_last_life():
    net = PaxosNet(3, lease_reads=True)
    net.elect(1)
    net.run(2)
    for name in (2, 3):
        net[name].crash()
        net[name].start()
    net.cut(1)
    net[3].campaign()
    net.deliver()
    assert net.leaders == ["1"]
    assert net[2].core.promised < net[3].core.promised


def test_reads_share_rounds_of_heartbeats():
    net = PaxosNet(3)
    leader = net.elect(1)
    net.run(2)
    for number in range(100):
        leader.take(leader.core.read(number))
    assert len({m.round for _, _, m in net.sent(Heartbeat)}) == 1
    net.deliver()
    assert len(reads(leader)) == 100


# ------------------------------------------------------------------------------------------------ strangers


def test_messages_of_another_life_change_nothing():
    net = PaxosNet(3)
    leader = net.elect(1)
    net.run(2)
    leader.propose(b"x")
    net.run(2)
    before = (leader.core.status, leader.log)
    ballot = leader.core.promised
    old = net.ballots.make(1, "3")
    net.flying.clear()
    for message in (
        Promise(ballot, 1, 0, 0, (command(2, old, b"no"),)),
        Promise(old, 1, 0, 0),
        Accepted(ballot, 99),
        Accepted(old, 1),
        HeartbeatReply(ballot, 10_000, 99, 1),
        Refused(old, ballot),
        Refused(ballot, 0),
        Learned(0, 99, (command(2, old, b"no"),)),
        Learn(0, 50),
        SnapshotChunk(0, 1, 1, 0, 3, b"abc"),
    ):
        leader.step("3", message)
        assert (leader.core.status, leader.log) == before
    assert net.flying == []


def test_what_no_member_can_have_sent_is_refused():
    net = PaxosNet(3)
    member = net[3]
    mine, other = net.ballots.make(1, "1"), net.ballots.make(1, "2")
    for sender, message in (
        ("9", Prepare(mine, 1)),
        ("3", Prepare(net.ballots.make(1, "3"), 1)),
        ("1", Prepare(other, 1)),
        ("1", Prepare(0, 1)),
        ("1", Prepare(net.ballots.make(ROUND_MAX + 1, "1"), 1)),
        ("1", Heartbeat(other, 1, 1, 0, 0)),
        ("1", Accept(mine, 1, 0, (command(1, other, b""),))),
        ("1", Accept(mine, 1, 0, (command(1, mine, b""), command(3, mine, b"")))),
        ("1", Accept(mine, 5, 0, (command(1, mine, b""),))),
        ("1", SnapshotChunk(0, 9, 9, 0, 1 << 60, b"")),
    ):
        with pytest.raises(PeerError):
            member.core.step(sender, message)
        assert (member.core.promised, member.log) == (0, {})


def test_a_promise_of_what_was_not_asked_for_is_refused():
    net = PaxosNet(3, open_slots_max=5)
    member = net[1]
    member.campaign()
    ballot, old = member.core.promised, net.ballots.make(1, "3")
    for message in (
        Promise(ballot, 2, 0, 0, (command(1, old, b""),)),
        Promise(ballot, 1, 0, 0, (command(6, old, b""),)),
        Promise(ballot, 1, 0, 0, (), 1),
    ):
        with pytest.raises(PeerError):
            member.core.step("2", message)
    assert member.core.role == "candidate"


@pytest.mark.parametrize(
    "options",
    [{"election_ticks": 1}, {"heartbeat_ticks": 10}, {"append_bytes_max": 0}, {"no_such": 1}, {"trailing": -1},
     {"drift_ratio": 1.0}],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError):
        PaxosNet(3, **options)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_ballots_are_ordered_by_round_and_then_by_node(count):
    members = [f"n{number}" for number in range(count)]
    ballots = Ballots(members)
    pairs = [(round, member) for round in range(1, 5) for member in members]
    made = [ballots.make(*pair) for pair in pairs]
    assert made == sorted(set(made))
    assert [(ballots.round(ballot), ballots.owner(ballot)) for ballot in made] == pairs
    assert ballots.owner(0) is ballots.owner(-1) is ballots.owner(count - 1) is None
