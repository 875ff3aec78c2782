"""EPaxos besides its scenarios: order of execution, reads, catching up, what is forgotten, bounds, hostile messages."""

from __future__ import annotations

import random

import pytest

from nova.consensus.core import Committed, Epoch, Fatal, Installed, Kind, OverloadedError, ReadReady
from nova.consensus.epaxos import EPaxos
from nova.consensus.epaxos.conflicts import Conflicts
from nova.consensus.epaxos.execution import Graph
from nova.consensus.epaxos.instances import Executed, Instance, Status, Value, interfere, is_void, keys_of
from nova.consensus.epaxos.messages import (
    Accept,
    AcceptReply,
    Beat,
    Commit,
    Fetch,
    Gone,
    PreAccept,
    PreAcceptReply,
    Recover,
    Refused,
    SnapshotAsk,
    SnapshotChunk,
    Validate,
)
from nova.errors import CorruptionError, PeerError, UsageError
from tests.consensus.epaxos_net import Net, R, command

# ------------------------------------------------------------------------------------------------ execution


def graph_of(count=3):
    executed, conflicts = Executed(count), Conflicts(count, 1_000)
    return Graph(count, executed, conflicts)


def instance_of(graph, id, keys, deps, seq):
    instance = Instance(id)
    instance.keys, instance.known = keys, True
    instance.value = Value(Kind.COMMANDS, b"", tuple(deps), seq)
    graph.know(instance)
    return instance


def commit(graph, instance):
    instance.status = Status.COMMITTED
    return [each.id for each in graph.run([instance])]


def components(instances):
    """The order by definition: reachability as a relation, components by it, each after what it reaches."""
    needs = {
        one.id: {
            two.id
            for two in instances
            if two is not one and two.number <= one.value.deps[two.owner] and interfere(one.keys, two.keys)
        }
        for one in instances
    }
    reach = {id: set(those) for id, those in needs.items()}
    for middle in reach:
        for id in reach:
            if middle in reach[id]:
                reach[id] |= reach[middle]
    return needs, reach


@pytest.mark.parametrize("seed", range(60))
def test_execution_agrees_with_the_definition_in_any_order_of_commits(seed):
    chance = random.Random(seed)
    names = [(owner, number) for owner in range(3) for number in range(1, 5)]
    made = {}
    for id in names:
        keys = None if chance.random() < 0.15 else frozenset(chance.sample([b"a", b"b", b"c"], chance.randrange(1, 3)))
        made[id] = (keys, [chance.randrange(5) for _ in range(3)], chance.randrange(1, 6))
    for _ in range(3):
        graph = graph_of()
        for owner in range(3):
            graph.heard(owner, 4)
        order = []
        instances = {}
        chance.shuffle(names)
        for id in names:
            instances[id] = instance_of(graph, id, *made[id])
            if chance.random() < 0.5:  # what waited to know whether it interferes
                order += [each.id for each in graph.run([instances[id]])]
            order += commit(graph, instances[id])
        assert sorted(order) == sorted(names)
        assert graph.waiting == 0
        needs, reach = components(list(instances.values()))
        place = {id: number for number, id in enumerate(order)}
        for id, those in needs.items():
            for other in those:
                if id in reach[other]:  # one component
                    before = (made[id][2], id) < (made[other][2], other)
                    assert (place[id] < place[other]) == before
                else:
                    assert place[other] < place[id]


def test_a_long_chain_needs_no_recursion_and_no_second_look():
    graph = graph_of()
    chain = [
        instance_of(graph, (0, number), frozenset([b"k"]), (number - 1, 0, 0), number) for number in range(1, 2_001)
    ]
    for instance in reversed(chain[1:]):
        assert commit(graph, instance) == []
    assert commit(graph, chain[0]) == [instance.id for instance in chain]


def test_a_set_of_executed_instances_covers_what_it_holds():
    executed = Executed(2)
    for id in ((0, 1), (0, 3), (1, 2)):
        executed.add(id)
    assert executed.plain() == ([1, 0], [[3], [2]])
    executed.add((0, 2))
    assert executed.plain() == ([3, 0], [[], [2]])
    assert len(executed) == 4
    assert (1, 2) in executed
    assert (1, 1) not in executed
    other = Executed.of(*executed.plain())
    assert executed.covers(other)
    other.add((1, 1))
    assert not executed.covers(other)
    assert other.covers(executed)


def test_what_interferes():
    one, other = keys_of(Kind.COMMANDS, command("a")), keys_of(Kind.COMMANDS, command("b"))
    everything, nothing = keys_of(Kind.COMMANDS, command("")), keys_of(Kind.NOOP, b"")
    assert interfere(one, one)
    assert not interfere(one, other)
    assert interfere(everything, one)
    assert interfere(everything, everything)
    assert keys_of(Kind.SEAL, b"") == keys_of(Kind.NOOP, b"fence") == everything
    assert not interfere(everything, nothing)
    assert not interfere(nothing, one)
    with pytest.raises(CorruptionError):
        keys_of(Kind.COMMANDS, b"\xff")


# ------------------------------------------------------------------------------------------------ reads


def test_a_read_sees_every_command_that_was_answered_before_it():
    net = Net(3)
    net[1].propose("k", "a")
    net.deliver(only=lambda source, target, message: "3" not in (source, target))
    assert net[1].executed == ["a"]
    net[3].take(net[3].core.read(7))
    net.deliver()
    assert net[3].reads == []  # it does not know yet what is missing
    net.run(6 * R)
    assert net[3].reads == [7]
    ready = next(number for number, event in enumerate(net[3].events) if isinstance(event, ReadReady))
    told = next(
        number
        for number, event in enumerate(net[3].events)
        if isinstance(event, Committed) and any(entry.data == command("k", "a") for entry in event.entries)
    )
    assert told < ready


def test_reads_that_come_together_share_a_fence():
    net = Net(3)
    for id in range(5):
        net[2].take(net[2].core.read(id))
    fences = {message.id for _, _, message in net.flying if isinstance(message, PreAccept)}
    assert len(fences) == 1
    net.deliver()
    assert sorted(net[2].reads) == [0, 1, 2, 3, 4]
    assert net[2].core._next == 3  # one for the first, one for those that came meanwhile


def test_a_read_outlives_a_fence_that_turned_out_void():
    net = Net(3)
    net[1].take(net[1].core.read(1))
    net.pick(source="1", target="2", kind=PreAccept)
    net.flying.clear()
    fence = (0, 1)
    net[2].core.instances[fence].due = 0
    net[2].core._arm(net[2].core.instances[fence], 1)
    net[2].tick()
    net.pick(source="2", target="1", kind=Recover)
    net.deliver(only=lambda source, target, message: True)
    assert is_void(net[1].state(fence).value)
    net.run(3)
    assert net[1].reads == [1]


def test_reads_of_a_sealed_epoch_are_lost():
    net = Net(3)
    net[1].take(net[1].core.seal(Epoch(1, "raft", net.names)))
    net.deliver()
    net[2].take(net[2].core.read(3))
    assert net[2].lost == [3]
    with pytest.raises(UsageError, match="epoch 5"):
        net[1].core.seal(Epoch(5, "raft", net.names))


# ------------------------------------------------------------------------------------------------ catching up


def test_a_member_that_missed_commits_fetches_them():
    net = Net(3)
    net.cut(3)
    for number in range(5):
        net[1].propose("k", str(number))
        net.deliver()
    net.cuts.clear()
    net.run(25)
    assert net[3].executed == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_a_member_behind_what_all_others_forgot_gets_a_snapshot(chunk):
    net = Net(3, trailing=0, chunk_bytes=chunk)
    net[3].propose("mine", "early")
    net.deliver()
    net.cut(3)
    for number in range(5):
        net[1].propose("k", str(number))
        net.deliver()
    for name in (1, 2):
        net[name].checkpoint(b"state of five")
        net[name].checkpoint(b"state of five")
        assert not net[name].core.instances
    net[2].crash()
    net[2].start()
    net.cuts.clear()
    net[1].propose("j", "after")
    net.run(60)
    (installed,) = [event for event in net[3].events if isinstance(event, Installed)]
    assert installed.snapshot.state == b"state of five"
    assert net[3].executed == ["early", "after"]
    assert {member.core.executed.plain()[0][0] for member in net} == {6}
    # After a restart it is where it was: the snapshot comes first, then what is not in it.
    net[3].crash()
    net[3].start()
    assert [type(event) for event in net[3].events[:1]] == [Installed]
    assert net[3].executed == ["after"]
    # It still depends on what it was only told to be executed.
    assert net[3].core.conflicts.deps(frozenset([b"k"]))[0][0] == 5


def test_a_snapshot_takes_back_what_it_lacks_and_that_is_executed_again():
    net = Net(3, trailing=0)
    net.cut(3)
    for number in range(3):
        net[1].propose("k", str(number))
        net.deliver()
    for name in (1, 2):
        net[name].checkpoint(b"three")
        net[name].checkpoint(b"three")
    net.cuts.clear()
    # Member 3 executes something that is in nobody's snapshot, and the later one first.
    first = net[3].propose("one", "first")
    net[3].propose("other", "second")
    early = [each for each in net.flying if each[2].id == first]
    net.flying = [each for each in net.flying if each[2].id != first]
    net.deliver()
    net.flying = early
    net.deliver()
    assert net[3].executed == ["second", "first"]
    net.run(60)
    assert net[3].executed == ["second", "first"] * 2
    kinds = [type(event) for event in net[3].events if not hasattr(event, "token")]
    assert kinds.index(Installed) > 0
    assert {tuple(member.core.executed.frontier) for member in net} == {(3, 0, 2)}


def test_a_peer_is_asked_for_a_newer_snapshot_if_the_last_one_lacks_what_cannot_be_executed_again():
    net = Net(3, trailing=0)
    net.cut(3)
    net[1].propose("k", "lost to 3")
    net.deliver()
    for name in (1, 2):
        net[name].checkpoint()
        net[name].checkpoint()
    net.cuts.clear()
    net[3].propose("other", "mine")
    net.deliver()
    net[3].checkpoint()
    net[3].checkpoint()  # and has forgotten it
    for _ in range(30):
        net.run(2)
        for name in (1, 2):
            if net[name].core.snapshot_wanted:
                net[name].checkpoint()
    assert {tuple(member.core.executed.frontier) for member in net} == {(1, 0, 1)}


def test_what_everybody_executed_is_dropped_and_what_is_not_is_kept():
    net = Net(3)
    for number in range(20):
        net[1].propose(f"k{number}", "x")
        net.deliver()
    net[1].checkpoint()
    assert len(net[1].core.conflicts) == 20  # nobody has said yet that it is durable there
    net.run(25)
    net[1].checkpoint()
    assert len(net[1].core.conflicts) == 0
    net.cut(3)
    for number in range(20):
        net[1].propose(f"j{number}", "x")
        net.deliver()
    net.run(25)
    net[1].checkpoint()
    assert len(net[1].core.conflicts) == 20


def test_dropping_keys_costs_no_fast_path():
    net = Net(3)
    for round in range(4):
        for number in range(6):
            net[1 + number % 3].propose(f"k{number}", str(round))
            assert not [each for each in net.flying if isinstance(each[2], Accept)]
            net.deliver(only=lambda source, target, message: not isinstance(message, Accept | AcceptReply))
        net.run(25)
        net[1 + round % 3].checkpoint()
    assert {len(member.executed) for member in net} == {24}


def test_keys_beyond_the_limit_are_folded_into_one_mark():
    conflicts = Conflicts(2, 2)
    for number in range(1, 6):
        keys = frozenset([b"k%d" % number])
        conflicts.know(keys, 0, number, 1)
        if number != 2:
            conflicts.execute(keys, 0, number)
    conflicts.prune((0, 0), (1, 0))  # only the first is executed here without a gap
    assert len(conflicts) == 4
    assert conflicts.folded == [1, 0]
    conflicts.prune((0, 0), (5, 0))
    assert len(conflicts) == 2
    assert conflicts.folded == [3, 0]
    assert conflicts.forgotten((2, 0)) == [3, 0]  # whoever reaches less may interfere with what was folded
    assert conflicts.forgotten((3, 0)) == [0, 0]
    assert not conflicts.certain((2, 0))  # and can't be validated here
    assert conflicts.certain((3, 0))


# ------------------------------------------------------------------------------------------------ restarts


def test_a_coordinator_that_restarts_does_not_go_on_at_ballot_0():
    net = Net(3)
    id = net[1].propose("k", "a")
    net.pick(source="1", target="2", kind=PreAccept)
    answers = [each for each in net.flying if isinstance(each[2], PreAcceptReply)]
    net[1].crash()
    net[1].start()
    net.flying = answers
    net.deliver()
    assert net[1].state(id).status == Status.PREACCEPTED
    net.run(10)
    assert is_void(net[1].state(id).value)  # it knows that it did not commit, and the client asks again
    assert net[1].propose("k", "b") == (0, 2)


def test_a_preaccept_leaves_when_it_is_durable_at_its_coordinator():
    net = Net(3)
    net[1].auto = False
    net[1].propose("k", "a")
    net[1].tick(30)
    assert not [each for each in net.flying if isinstance(each[2], PreAccept)]
    net[1].crash()
    net[1].auto = True
    net[1].start()
    net.flying.clear()
    assert net[1].propose("k", "b") == (0, 1)  # nobody has heard of the other one
    net.deliver()
    assert [member.executed for member in net] == [["b"]] * 3


def test_one_member_alone_commits_when_its_disk_has_it():
    net = Net(1)
    net[1].auto = False
    net[1].propose("k", "a")
    net[1].sync(1)
    assert net[1].executed == []
    net[1].sync()
    assert net[1].executed == ["a"]


def test_a_torn_log_is_told_from_a_foreign_one():
    net = Net(1)
    for record in (b"X", b"I\xff", b"S\xff"):
        with pytest.raises(CorruptionError):
            net[1].core.replay(record)


# ------------------------------------------------------------------------------------------------ bounds, bad input


def test_proposals_beyond_the_limits_are_refused():
    net = Net(3, proposals_max=2)
    net[1].propose("a")
    net[1].propose("b")
    with pytest.raises(OverloadedError, match="limit is 2"):
        net[1].propose("c")
    net.deliver()
    net[1].propose("c")
    net = Net(3, window=3)
    for key in "ab":
        net[1].propose(key)
    with pytest.raises(OverloadedError, match="window is 3"):
        net[1].propose("c")


def test_a_chain_ends_because_nobody_makes_it_longer():
    net = Net(3, chain_max=3)
    net[1].propose("k", "missing")
    net.pick(source="1", target="2", kind=PreAccept)
    net.flying.clear()
    net[1].crash()
    for number in range(3):
        net[2].propose("k", str(number))
        net.deliver()
    with pytest.raises(OverloadedError, match="3 commands are committed and wait"):
        net[2].propose("other")
    net.run(6 * R)
    assert net[2].executed == ["missing", "0", "1", "2"]
    net[2].propose("other")


def test_a_promise_leaves_when_it_is_durable_and_outlives_a_crash():
    net = Net(3)
    net[2].auto = False
    net[2].step("3", Recover((0, 1), 5))
    net[2].step("3", Recover((0, 1), 5))  # asked again, it still has to wait
    assert not net.flying
    net[2].sync()
    assert {each[2].ballot for each in net.flying} == {5}
    net[2].crash()
    net[2].start()
    net.flying.clear()
    net[2].step("1", PreAccept((0, 1), Value(Kind.COMMANDS, command("k"), (0, 0, 0), 1)))
    net[2].sync()
    assert [each[2] for each in net.flying] == [Refused((0, 1), 5)]
    assert net[2].state((0, 1)).status == Status.NONE


def test_what_lies_beyond_the_window_is_not_taken():
    net = Net(3, window=10)
    far = Value(Kind.COMMANDS, command("k"), (0, 0, 0), 1)
    for message in (PreAccept((0, 11), far), Accept((0, 11), 0, far), Commit((0, 11), far), Recover((0, 11), 3)):
        net[2].step("1", message)
    net[2].step("1", Beat((10**9, 0, 0), (10**9, 0, 0)))
    assert not [id for id in net[2].core.instances if id[1] > 10]
    assert net[2].core.graph.newest(0) <= 10


@pytest.mark.parametrize(
    "message",
    [
        PreAccept((9, 1), Value(Kind.COMMANDS, command("k"), (0, 0, 0), 1)),
        PreAccept((0, 0), Value(Kind.COMMANDS, command("k"), (0, 0, 0), 1)),
        PreAccept((1, 1), Value(Kind.COMMANDS, command("k"), (0, 0, 0), 1)),
        PreAccept((0, 1), Value(Kind.COMMANDS, command("k"), (0, 0), 1)),
        PreAccept((0, 1), Value(Kind.COMMANDS, command("k"), (0, 0, -1), 1)),
        PreAccept((0, 1), Value(Kind.COMMANDS, b"\xff", (0, 0, 0), 1)),
        Accept((1, 1), 0, Value(Kind.COMMANDS, command("k"), (0, 0, 0), 1)),
        Accept((1, 1), 4, Value(Kind.COMMANDS, command("k"), (0, 0, 0), 1)),
        Recover((1, 1), 0),
        Recover((1, 1), 5),
        Validate((1, 1), -3, Value(Kind.COMMANDS, command("k"), (0, 0, 0), 1)),
        Commit((0, 1), Value(Kind.COMMANDS, command("k"), (), 1)),
        PreAcceptReply((1, 1), (), 1),
        Beat((0,), (0,)),
        Fetch(((7, 7),)),
        Gone((7, 7)),
    ],
)
def test_what_no_member_can_have_sent_is_refused_and_changes_nothing(message):
    net = Net(3)
    with pytest.raises(PeerError):
        net[2].core.step("1", message)
    assert not net[2].core.instances
    with pytest.raises(PeerError, match="no peer"):
        net[2].core.step("stranger", message)


def test_answers_that_nobody_asked_for_change_nothing():
    net = Net(3)
    id = net[2].propose("k", "a")
    before = net[2].state(id).record()
    for message in (
        AcceptReply(id, 0),
        AcceptReply((0, 5), 3),
        SnapshotChunk((1, 1), 0, 3, b"abc"),
        SnapshotAsk(b"\xff", (0, 0), 0),
        Fetch(((0, 1),)),
    ):
        net[2].step("1", message)
    assert net[2].state(id).record() == before
    assert not [event for event in net[2].events if isinstance(event, Fatal | Installed)]


def test_bad_options_are_refused():
    for options, match in (({"window": 0}, "window is 0"), ({"resend_ticks": 20}, "recovery_ticks"), ({"x": 1}, "fit")):
        with pytest.raises(UsageError, match=match):
            EPaxos("1", Epoch(0, "epaxos", ("1",), options=options), random.Random(0), lambda: 0)
    with pytest.raises(UsageError, match="not among"):
        EPaxos("9", Epoch(0, "epaxos", ("1",)), random.Random(0), lambda: 0)


@pytest.mark.parametrize(("count", "slow", "fast"), [(1, 1, 1), (2, 2, 2), (3, 2, 2), (4, 3, 3), (5, 3, 3), (6, 4, 4)])
def test_quorums(count, slow, fast):
    core = Net(count)[1].core
    assert (core.slow, core.fast) == (slow, fast)
    failures = count - slow
    assert count >= 2 * core.spared + failures - 1


def test_reads_of_several_keys_fit_one_order():
    different = 0
    for seed in range(300):
        chance = random.Random(seed)
        net = Net(3, seed=seed)
        for name, key in ((1, "a"), (2, "b"), (3, "c")):
            net[name].propose(key, key)
        for name in (1, 2, 3):
            net[name].take(net[name].core.read(name))
        while net.flying:
            net.arrive(*net.flying.pop(chance.randrange(len(net.flying))))
        seen = []
        for member in net:
            (place,) = [number for number, event in enumerate(member.events) if isinstance(event, ReadReady)]
            member.events = member.events[:place]
            seen.append(set(member.executed))
        seen.sort(key=len)
        assert seen[0] <= seen[1] <= seen[2], f"seed {seed}"
        different += seen[0] != seen[2]
    assert different


def test_what_was_executed_beyond_a_gap_is_not_taken_for_unknown():
    executed = Executed(1)
    for number in (1, 3):
        executed.add((0, number))
    graph = Graph(1, executed, Conflicts(1, 10))
    assert graph.blank(0) == 2
    assert graph.blanks(0, 9) == [2]
    commit(graph, instance_of(graph, (0, 2), frozenset([b"k"]), (0,), 1))
    assert graph.blank(0) == 4
