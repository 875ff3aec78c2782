"""Eventual: copies, causal order, catching up, session reads. How it ends is in test_eventual_seal.py."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams_net import Net

from nova.consensus.core import Epoch, OverloadedError, Persisted
from nova.consensus.eventual import Eventual
from nova.consensus.eventual.messages import Fetch, Gone, Marks, Push, SnapshotChunk
from nova.consensus.eventual.sealing import reports_needed
from nova.consensus.eventual.streams import Dot, Streams, covers
from nova.consensus.snapshots import pack_snapshot
from nova.errors import CorruptionError, PeerError, UsageError


def net(count=3, **options):
    return Net(Eventual, "eventual", count, **options)


# ---------------------------------------------------------------------------------------------- copies


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_any_w_copies_meet_the_reports_that_end_an_epoch_and_these_meet_each_other(case):
    count, w = case
    reports = reports_needed(count, w)
    assert reports <= count
    for holders in combinations(range(count), w):
        for reporters in combinations(range(count), reports):
            assert set(holders) & set(reporters)
    assert 2 * reports > count
    # Fewer would do neither: it is the least.
    assert reports == 1 or reports - 1 + w <= count or 2 * (reports - 1) <= count


@pytest.mark.parametrize("w", [0, 4, -1])
def test_a_w_that_cannot_be_is_refused(w):
    with pytest.raises(UsageError, match=f"w is {w}; (give 1 or more|it is from 1 to the 3 members)"):
        net(w=w)


@pytest.mark.parametrize(("w", "silent"), [(1, 2), (2, 1), (3, 0)])
def test_nothing_is_told_before_w_members_have_it(w, silent):
    group = net(w=w)
    group.cut(*["n1", "n2"][:silent])
    group["n0"].propose("a")
    group.run(30)
    assert group["n0"].told == ["a"]
    more = net(w=w)
    more.cut(*["n1", "n2"][: silent + 1])
    if silent < 2:
        more["n0"].propose("a")
        more.run(30)
        assert more["n0"].told == []
        more.cuts.clear()
    more.run(30)
    assert all(member.told == (["a"] if silent < 2 else []) for member in more)


def test_the_default_is_a_majority():
    assert [net(count)["n0"].core.w for count in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]


def test_an_acknowledgement_leaves_behind_its_sync_and_our_own_copy_counts_behind_ours():
    group = net(w=2)
    group["n1"].held = group["n2"].held = True
    group["n0"].propose("a")
    group.deliver()
    assert group["n0"].told == []
    group["n1"].held = False
    group["n1"].sync()
    group.deliver()
    assert group["n0"].told == ["a"]
    alone = net(1)
    alone["n0"].held = True
    alone["n0"].propose("b")
    assert alone["n0"].told == []
    alone["n0"].held = False
    alone["n0"].sync()
    assert alone["n0"].told == ["b"]


def test_a_sync_vouches_for_what_was_written_before_it_and_for_no_more():
    core = net()["n0"].core
    tokens = []
    for number in (1, 2):
        out = core.step("n1", Push((Dot(1, number, (0, 0, 0), 0, b""),)))
        tokens += [event.token for event in out.apply if isinstance(event, Persisted)]
    marks = [message for _, message in core.advance(tokens[0]).send if isinstance(message, Marks)]
    assert [mark.have for mark in marks] == [(0, 1, 0)]
    marks = [message for _, message in core.advance(tokens[1]).send if isinstance(message, Marks)]
    assert [mark.have for mark in marks] == [(0, 2, 0)]


def test_a_dot_leaves_when_it_is_on_the_disk_of_its_proposer():
    group = net()
    group["n0"].held = True
    group["n0"].propose("a")
    group.run(20)
    assert not any(isinstance(message, Push) for _, _, message in group.flying)
    assert group["n1"].core.streams.received == [0, 0, 0]
    group["n0"].crash()
    group["n0"].held = False
    group["n0"].start()
    group["n0"].propose("b")  # under the number of what never was
    group.all_told("b")


def test_whoever_counts_the_copies_tells_although_the_proposer_is_gone():
    group = net()
    group.lost = lambda source, target, message: isinstance(message, Marks) and target == "n0"
    group["n0"].propose("a")
    group.deliver()
    group["n0"].crash()
    group.run(20)
    assert [member.told for member in group] == [["a"], ["a"]]


# ---------------------------------------------------------------------------------------------- causal order


def test_what_a_proposer_saw_comes_first_everywhere():
    group = net()
    group.lost = lambda source, target, message: source == "n0" and target == "n2"
    group["n0"].propose("a")
    group.deliver()
    assert group["n1"].told == ["a"]
    group["n1"].propose("b")
    group.deliver()
    assert group["n0"].told == ["a", "b"]
    assert group["n2"].told == []  # b is here, and waits for a
    assert group["n2"].core.streams.received[1] == 1
    group.until(lambda: group["n2"].told == ["a", "b"])


def test_what_is_concurrent_comes_in_any_order_and_that_of_one_member_in_its_own():
    group = net(w=1)
    group["n0"].propose("a1", "a2")
    group["n1"].propose("b1", "b2")
    assert [member.told for member in group] == [["a1", "a2"], ["b1", "b2"], []]
    group.all_told("a1", "a2", "b1", "b2")
    for member in group:
        assert member.told.index("a1") < member.told.index("a2")
        assert member.told.index("b1") < member.told.index("b2")
    assert group["n0"].told != group["n1"].told


@given(st.data())
def test_streams_deliver_each_dot_once_behind_what_it_depends_on_and_all_of_them(data):
    count = data.draw(st.integers(1, 4))
    made, vectors = [], [[0] * count for _ in range(count)]
    for _ in range(data.draw(st.integers(0, 30))):
        owner = data.draw(st.integers(0, count - 1))
        vectors[owner] = list(map(max, vectors[owner], vectors[data.draw(st.integers(0, count - 1))]))
        number = 1 + sum(dot.owner == owner for dot in made)
        made.append(Dot(owner, number, tuple(vectors[owner]), 0, b""))
        vectors[owner][owner] = number
    streams, told = Streams(count), []
    left = [[dot for dot in made if dot.owner == owner] for owner in range(count)]
    while any(left):
        owner = data.draw(st.sampled_from([owner for owner in range(count) if left[owner]]))
        assert streams.take(left[owner].pop(0))
        told += streams.deliver([len(made)] * count)
    assert sorted(told, key=lambda dot: (dot.owner, dot.number)) == sorted(
        made, key=lambda dot: (dot.owner, dot.number)
    )
    seen = [0] * count
    for dot in told:
        assert covers(seen, dot.deps)
        assert dot.number == seen[dot.owner] + 1
        seen[dot.owner] += 1


# ---------------------------------------------------------------------------------------------- catching up


def test_what_was_lost_is_asked_for_and_comes_from_who_has_it():
    group = net()
    group.cut("n2")
    group["n0"].propose("a", "b")
    group.run(30)
    group["n0"].crash()
    group.cuts.clear()
    group.until(lambda: group["n2"].told == ["a", "b"])


def test_what_is_large_comes_in_parts():
    group = net(push_bytes_max=100, chunk_bytes=50)
    group.cut("n2")
    texts = [f"{number}-{'x' * 60}" for number in range(20)]
    group["n0"].propose(*texts)
    group.run(3)
    group.cuts.clear()
    sizes = []
    group.lost = lambda source, target, message: isinstance(message, Push) and sizes.append(len(message.dots))
    group.until(lambda: group["n2"].told == texts)
    assert max(sizes) == 1


def test_who_was_away_too_long_gets_a_snapshot_and_the_rest_on_top_of_it():
    group = net(w=2, retained_max=2, silent_ticks=10, chunk_bytes=20)
    group["n2"].held = True
    group["n2"].propose("mine")  # known to nobody else, and not told
    group["n2"].held = False
    group.cut("n2")
    group["n2"].sync()
    group["n0"].propose(*"abcdefgh")
    group.run(30)
    for name in ("n0", "n1"):
        group[name].checkpoint()
        assert group[name].core.streams.forgotten == [6, 0, 0]
    group["n1"].propose("i")
    group.run(5)
    group.cuts.clear()
    group.all_told(*"abcdefghi", "mine")
    assert len(group["n2"].installed) == 1
    group["n2"].crash()
    group["n2"].start()
    group.run(30)
    group.all_told(*"abcdefghi", "mine")


def test_what_was_told_here_and_is_not_in_a_snapshot_is_told_again():
    group = net(w=1, retained_max=100)
    group.cut("n2")
    group["n2"].propose("x", "y")
    group["n0"].propose("a")
    group.run(20)
    snapshot = group["n0"].core.snapshot(0, b"a")
    assert group["n2"].told == ["x", "y"]
    assert group["n2"].core.step("n0", Gone()).early  # asks for a snapshot
    data = pack_snapshot(snapshot)
    chunk = SnapshotChunk((snapshot.position, snapshot.term), 0, len(data), data)
    group["n2"].take(group["n2"].core.step("n0", chunk))
    assert group["n2"].told == ["a", "x", "y"]
    group.cuts.clear()
    group.all_told("a", "x", "y")


def test_with_one_copy_nothing_is_dropped_that_somebody_lacks_and_proposals_are_refused_instead():
    group = net(w=1, retained_max=5)
    group.cut("n2")
    group["n0"].propose(*"abcde")
    group.run(60)
    group["n0"].checkpoint()
    assert group["n0"].core.streams.forgotten == [0, 0, 0]
    with pytest.raises(OverloadedError, match=r"5 commands of n0 are kept for n2; the limit is 5"):
        group["n0"].propose("f")
    group.cuts.clear()
    group.run(20)
    group["n0"].propose("f")
    group.all_told(*"abcdef")


def test_what_everybody_has_is_dropped_and_memory_is_bounded():
    group = net(retained_max=10)
    for number in range(200):
        group["n0"].propose(f"{number}")
        group.deliver()
        if number % 20 == 19:
            group.run(10)
            for member in group:
                member.checkpoint()
    assert max(member.core.streams.retained for member in group) <= 20
    assert max(len(member.records) for member in group) <= 5


def test_what_no_w_have_is_bounded_and_so_is_what_is_taken_ahead():
    group = net(proposals_max=3, window=4)
    group.cut("n0")
    group["n0"].propose(*"abc")
    with pytest.raises(OverloadedError, match="3 proposals have no 2 copies yet, 1 more are too many"):
        group["n0"].propose("d")
    core = group["n1"].core
    core.step("n0", Push(tuple(Dot(0, number, (0, 0, 0), 0, b"") for number in range(1, 10))))
    assert core.streams.received == [4, 0, 0]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_restart_takes_nothing_back(checkpoint):
    group = net()
    group["n0"].propose("a", "b")
    group["n1"].propose("c")
    group.all_told("a", "b", "c")
    if checkpoint:
        for member in group:
            member.checkpoint()
    before = group["n0"].core.streams.received
    for member in list(group):
        member.crash()
    group.flying.clear()
    for name in group.names:
        group[name].start()
    assert group["n0"].core.streams.received == before
    group.all_told("a", "b", "c")
    group["n0"].propose("d")
    group.all_told("a", "b", "c", "d")


# ---------------------------------------------------------------------------------------------- reads


def test_a_session_reads_what_it_wrote_wherever_it_goes():
    group = net()
    group.cut("n2")
    group["n0"].propose("a")
    group.deliver()
    seen = group["n0"].core.frontier
    assert seen == (1, 0, 0)
    group["n2"].read(1)
    assert group["n2"].ready == [1]  # without a session: whatever is here
    group["n2"].read(2, seen)
    group.run(20)
    assert group["n2"].ready == [1]
    group.cuts.clear()
    group.until(lambda: group["n2"].ready == [1, 2])
    assert group["n2"].told == ["a"]


def test_a_read_behind_something_else_than_a_vector_is_refused():
    with pytest.raises(UsageError, match="epoch 0 has 3 streams"):
        net()["n0"].read(1, (1, 2))


def test_reads_that_wait_are_bounded():
    group = net(reads_max=2)
    for id in range(3):
        group["n0"].read(id, (0, 9, 0))
    assert group["n0"].lost == [2]


# ---------------------------------------------------------------------------------------------- hostile or broken


@pytest.mark.parametrize(
    "message",
    [
        Push((Dot(7, 1, (), 0, b""),)),
        Push((Dot(0, 0, (), 0, b""),)),
        Push((Dot(0, 1, (1,), 0, b""),)),
        Marks((1, 2), (0, 0, 0)),
        Marks((1, 2, -3), (0, 0, 0)),
        Fetch((0, 0)),
        Fetch((0, 0, 0), (1,)),
    ],
)
def test_what_no_member_can_have_sent_is_refused(message):
    core = net()["n0"].core
    with pytest.raises(PeerError, match="sent"):
        core.step("n1", message)
    assert core.streams.received == [0, 0, 0]


def test_nobody_speaks_but_members():
    core = net()["n0"].core
    for stranger in ("n7", "n0"):
        with pytest.raises(PeerError, match="no peer"):
            core.step(stranger, Gone())


def test_a_damaged_record_is_told():
    core = net()["n0"].core
    for record in (b"D\xc1", b"?x", b"Z\x01"):
        with pytest.raises(CorruptionError):
            core.replay(record)


def test_options_that_do_not_fit_are_refused():
    for options, text in (({"x": 1}, "do not fit"), ({"window": 0}, "window is 0"), ({"beat_ticks": -1}, "beat_ticks")):
        with pytest.raises(UsageError, match=text):
            net(**options)
    with pytest.raises(UsageError, match="is not among"):
        Eventual("n9", Epoch(0, "eventual", ("n0", "n1")), None, lambda: 0)
