"""Hybrid: Raft inside a region, causal delivery across regions, and one end of all of them."""

from __future__ import annotations

import pytest
from chainnet import Net as Chain
from streams_net import Net

from nova.consensus.core import Epoch, Kind, NotLeaderError, OverloadedError, Persisted, SealedError, unpack_epoch
from nova.consensus.eventual.messages import Marks, Push
from nova.consensus.eventual.streams import Dot
from nova.consensus.hybrid import Hybrid
from nova.consensus.raft.messages import Append, Heartbeat
from nova.consensus.sessions import Code
from nova.errors import CorruptionError, PeerError, UnavailableError, UsageError
from nova.sim.machine import Bags
from nova.sim.subjects import PROTOCOLS
from nova.types import Outputs

EAST, WEST = ("n0", "n1", "n2"), ("n3", "n4", "n5")


def net(count=6, **options):
    names = [f"n{number}" for number in range(count)]
    regions = {name: "east" if name in EAST else "west" for name in names}
    return Net(Hybrid, "hybrid", count, **{"regions": regions} | options)


def lead(group, region):
    """The leader of a region, known to all that run there."""
    group.until(lambda: len({m.core.leader for m in group if m.core.region == region} - {None}) == 1)
    group.until(
        lambda: all(m.core.leader is not None and group[m.core.leader].core for m in group if m.core.region == region)
    )
    return group[next(m.core.leader for m in group if m.core.region == region)]


def sealed(group):
    group.until(lambda: all(member.seal is not None for member in group))
    assert len({(member.seal.position, member.seal.data) for member in group}) == 1
    assert len({tuple(sorted(member.told)) for member in group}) == 1
    return unpack_epoch(next(iter(group)).seal.data)


# ---------------------------------------------------------------------------------------------- what is strong


def test_a_region_orders_by_itself_while_all_others_are_gone():
    group = net()
    east = lead(group, "east")
    group.cut(*WEST)
    east.propose("a", "b")
    group.run(5)
    east.propose("c")
    group.run(5)
    assert all(group[name].told == ["a", "b", "c"] for name in EAST)
    group.cuts.clear()
    group.until(lambda: all(member.told == ["a", "b", "c"] for member in group))


def test_nothing_is_told_before_a_majority_of_its_region_has_it():
    group = net()
    east = lead(group, "east")
    group.cut(*(name for name in EAST if name != east.name))
    east.propose("a")
    group.run(5)
    assert all(member.told == [] for member in group)


def test_who_does_not_lead_says_who_does():
    group = net()
    east = lead(group, "east")
    other = next(group[name] for name in EAST if name != east.name)
    with pytest.raises(NotLeaderError) as caught:
        other.propose("a")
    assert caught.value.leader == east.name


def test_a_read_in_the_region_holds_what_was_answered_there_before_it():
    group = net()
    east = lead(group, "east")
    behind = next(group[name] for name in EAST if name != east.name)
    group.lost = lambda source, target, message: target == behind.name and isinstance(message, Append | Push)
    east.propose("a")
    group.run(2)
    assert east.told == ["a"]
    behind.read(1)
    group.run(2)
    assert behind.ready == []
    group.lost = None
    group.until(lambda: behind.ready == [1])
    assert behind.told == ["a"]


def test_an_old_leader_that_is_cut_off_answers_no_read():
    group = net()
    east = lead(group, "east")
    group.cut(east.name)
    east.read(1)
    group.until(lambda: any(group[n].core.leader == n for n in EAST if n != east.name))
    assert east.ready == []


def test_a_read_carries_what_its_session_saw_elsewhere():
    group = net()
    east, west = lead(group, "east"), lead(group, "west")
    group.cut(*WEST)
    east.propose("a")
    group.run(5)
    seen = east.core.frontier
    group.cuts = {cut for cut in group.cuts if not set(cut) <= set(WEST)}
    group.lost = lambda source, target, message: source in EAST or target in EAST
    west = lead(group, "west")
    west.read(1, seen)
    group.run(10)
    assert west.ready == []
    group.lost = None
    group.cuts.clear()
    group.until(lambda: 1 in west.ready)
    assert west.told == ["a"]
    with pytest.raises(UsageError, match="2 streams"):
        west.read(2, (1, 2, 3))


# ---------------------------------------------------------------------------------------------- across


def test_what_a_proposer_saw_of_another_region_comes_first_everywhere():
    group = net(7, regions=dict.fromkeys(EAST, "east") | dict.fromkeys(WEST, "west") | {"n6": "north"})
    east, west = lead(group, "east"), lead(group, "west")
    lead(group, "north")
    group.lost = lambda source, target, message: "n6" in (source, target) and source in EAST
    east.propose("a")
    group.until(lambda: west.told == ["a"])
    west.propose("b")
    group.run(1)
    assert west.told == ["a", "b"]
    assert group["n6"].told == []
    group.lost = None
    group.until(lambda: all(member.told == ["a", "b"] for member in group))


def test_a_dot_of_another_region_is_told_when_a_majority_here_has_it():
    """Else what this region commits could depend on what is lost with one member."""
    group = net()
    east, west = lead(group, "east"), lead(group, "west")
    group.lost = lambda source, target, message: isinstance(message, Push) and target != west.name
    east.propose("a")
    group.run(3)
    assert west.core.streams.received[0] == east.core.streams.received[0]
    assert west.told == []
    group.lost = None
    group.until(lambda: all(member.told == ["a"] for member in group))


def test_marks_leave_behind_their_sync():
    group = net()
    east, west = lead(group, "east"), lead(group, "west")
    mates = [group[name] for name in WEST]
    for member in mates:
        member.held = True
    east.propose("a")
    group.deliver()
    assert west.core.streams.received[0] == east.core.streams.received[0]
    assert all(member.told == [] for member in mates)
    for member in mates:
        member.held = False
        member.sync()
    group.until(lambda: all(member.told == ["a"] for member in group))


def test_a_sync_vouches_for_what_was_written_before_it_and_for_no_more():
    core = net()["n3"].core
    tokens = []
    for number in (1, 2):
        out = core.step("n0", Push((Dot(0, number, (0, 0), 0, b""),)))
        tokens += [event.token for event in out.apply if isinstance(event, Persisted)]
    marks = [message for _, message in core.advance(tokens[0]).send if isinstance(message, Marks)]
    assert {mark.have for mark in marks} == {(1, 0)}
    marks = [message for _, message in core.advance(tokens[1]).send if isinstance(message, Marks)]
    assert {mark.have for mark in marks} == {(2, 0)}


def test_a_member_of_one_region_has_no_say_in_another():
    group = net()
    west = lead(group, "west")
    with pytest.raises(PeerError, match="n0 of another region sent a Heartbeat"):
        west.core.step("n0", Heartbeat(99, 1, 0))
    with pytest.raises(PeerError, match="no peer"):
        west.core.step("n9", Marks((0, 0), (0, 0)))
    with pytest.raises(PeerError, match="numbers start at 1"):
        west.core.step("n0", Push((Dot(5, 1, (), 0, b""),)))


# ---------------------------------------------------------------------------------------------- catching up


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_restart_takes_nothing_back(checkpoint):
    group = net()
    lead(group, "east").propose("a", "b")
    lead(group, "west").propose("c")
    group.all_told("a", "b", "c")
    if checkpoint:
        for member in group:
            member.checkpoint()
    for member in list(group):
        member.crash()
    group.flying.clear()
    for name in group.names:
        group[name].start()
    lead(group, "east")
    group.all_told("a", "b", "c")
    lead(group, "west").propose("d")
    group.all_told("a", "b", "c", "d")


def test_who_was_away_too_long_gets_a_snapshot_where_the_log_is_cut():
    group = net(retained_max=2, silent_ticks=10, inner_options={"trailing": 0})
    east = lead(group, "east")
    away = next(group[name] for name in EAST if name != east.name)
    group.cut(away.name)
    for text in "abcdefgh":
        east.propose(text)
        group.run(8)
    lead(group, "west").propose("w")
    group.run(30)
    for member in group:
        if member is not away:
            member.checkpoint()
    assert east.core.streams.forgotten[0] >= 6
    assert east.core.inner.log.offset >= 8
    assert max(len(member.records) for member in group if member is not away) <= 5
    group.cuts.clear()
    group.all_told(*"abcdefgh", "w")
    assert away.installed
    away.checkpoint()
    away.crash()
    away.start()
    group.all_told(*"abcdefgh", "w")
    lead(group, "east").propose("i")
    group.all_told(*"abcdefgh", "w", "i")


def test_a_region_that_is_away_is_waited_for_and_then_proposals_are_refused():
    group = net(retained_max=4, silent_ticks=10)
    east = lead(group, "east")
    group.run(10)
    group.cut(*WEST)
    group.run(20)
    east.propose(*"abcdefghij")
    group.run(3)
    with pytest.raises(OverloadedError, match="10 commands of region east are kept for west; the limit is 4"):
        east.propose("k")
    told = list(east.told)
    group.run(20)
    east.checkpoint()
    assert east.core.streams.forgotten[0] == 1  # what began the term, which west had
    group.cuts.clear()
    group.all_told(*told)
    group.run(10)
    lead(group, "east").propose("z")
    group.all_told(*told, "z")


# ---------------------------------------------------------------------------------------------- the end


def heir(members=(*EAST, *WEST)):
    return Epoch(1, "raft", members)


def test_all_regions_end_with_the_same_and_take_nothing_more():
    group = net()
    east, west = lead(group, "east"), lead(group, "west")
    east.propose("a")
    west.propose("b")
    group.run(5)
    with pytest.raises(NotLeaderError) as caught:
        west.core.seal(heir())
    assert caught.value.leader in EAST
    east.take(east.core.seal(heir()))
    assert sealed(group) == heir()
    assert sorted(east.told) == ["a", "b"]
    for member in (east, west):
        with pytest.raises(SealedError):
            member.propose("c")
        with pytest.raises(SealedError):
            member.core.seal(heir())
        assert member.core.status.role == "sealed"


def test_what_a_region_orders_behind_its_seal_is_void():
    group = net()
    east, west = lead(group, "east"), lead(group, "west")
    group.lost = lambda source, target, message: source in EAST and target in WEST
    east.take(east.core.seal(heir()))
    group.run(3)
    west.propose("before")  # west has not heard of it
    group.run(3)
    assert "before" in west.told
    with pytest.raises(SealedError):
        east.propose("behind")
    group.lost = None
    assert sealed(group) == heir()
    assert all(member.told == ["before"] for member in group)


def test_what_a_leader_that_knows_of_no_seal_orders_behind_it_is_void():
    group = net()
    east = lead(group, "east")
    group.cut(*WEST)
    east.take(east.core.seal(heir()))
    group.run(3)
    assert east.core.ending
    east.core.inner._sealed_at = None  # as behind a snapshot that holds the seal
    east.core._do(east.core.inner.propose([(Kind.COMMANDS, b"\x92\x92\x00\x00\xc4\x04void")]), out := Outputs())
    east.take(east.core._done(out))
    group.run(10)
    assert east.core.inner.committed > east.core._ends[0]
    group.cuts.clear()
    sealed(group)
    assert all(member.told == [] for member in group)


def test_67_the_first_seal_of_the_first_region_decides():
    group = net()
    east = lead(group, "east")
    east.take(east.core.seal(heir(EAST)))
    with pytest.raises(SealedError):
        east.core.seal(heir(WEST))
    assert sealed(group) == heir(EAST)


def test_an_end_that_a_region_cannot_take_part_in_is_refused():
    group = net(silent_ticks=10)
    east = lead(group, "east")
    group.cut("n3", "n4")
    group.run(20)
    with pytest.raises(UnavailableError, match=r"of region west only \['n5'\] was heard"):
        east.core.seal(heir())
    east.propose("a")
    group.run(3)
    assert east.told == ["a"]
    with pytest.raises(UsageError, match="can't follow"):
        east.core.seal(Epoch(5, "raft", EAST))


@pytest.mark.parametrize("fallen", ["east", "west"])
def test_65_a_leader_dies_in_the_middle_of_the_end(fallen):
    for steps in range(0, 40, 5):
        group = net()
        east, west = lead(group, "east"), lead(group, "west")
        west.propose("a")
        group.run(5)
        east.take(east.core.seal(heir()))
        group.deliver(steps)
        dead = east if fallen == "east" else west
        dead.crash()
        group.run(80)
        if not any(member.seal for member in group):  # it died before anybody had it
            first = lead(group, "east")
            first.take(first.core.seal(heir()))
        sealed(group)
        dead.start()
        group.until(lambda dead=dead: dead.told == ["a"])


@pytest.mark.parametrize("moment", range(0, 60, 4))
def test_65_all_crash_at_any_moment_of_the_end(moment):
    regions = {"n0": "a", "n1": "a", "n2": "b", "n3": "b"}
    group = Chain(PROTOCOLS, "hybrid", 4, machine=Bags, options={"regions": regions})
    group.until(lambda: all(member.replica.core.leader for member in group))
    first = group["n0"]
    session = group.session(first)
    for number in range(1, 4):
        assert group.done(first, group.append(first, session, number, "k", number)).code is Code.OK
    group["n2"].switch("eventual")
    group.deliver(rounds=moment)
    for member in list(group):
        member.crash()
    group.flying.clear()
    for member in group.members.values():
        member.start()
    group.run(200)
    assert group.done(first, group.append(first, session, 4, "k", 4)).code is Code.OK
    assert group.agree() == {"k": [1, 2, 3, 4]}


# ---------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"regions": {}}, "n0, n1, n2, n3, n4, n5 are missing"),
        ({"regions": dict.fromkeys([*EAST, *WEST, "n9"], "east")}, "n9 is no member"),
        ({"across": "leaders"}, "no leader of leaders orders them"),
        ({"inner": "pbft"}, "inside a region there is `raft`"),
        ({"inner_options": {"x": 1}}, "do not fit raft"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        net(**options)


def test_a_damaged_record_is_told():
    core = net()["n0"].core
    for record in (b"D\xc1", b"?x", b"RE\xc1"):
        with pytest.raises(CorruptionError):
            core.replay(record)
