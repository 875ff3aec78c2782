"""The scenarios of EPaxos: fast and slow path, cycles, recovery, durability, hot keys, the seal; each by its number."""

from __future__ import annotations

import random

import pytest

from nova.consensus.core import Epoch, Fatal, Kind, OverloadedError, SealedError, unpack_epoch
from nova.consensus.epaxos.instances import Status, Value, is_void
from nova.consensus.epaxos.messages import (
    Accept,
    AcceptReply,
    Commit,
    PreAccept,
    PreAcceptReply,
    Recover,
    RecoverReply,
    Refused,
)
from nova.consensus.epaxos.recovery import Choice, choose
from tests.consensus.epaxos_net import Net, R, command


def among(*names):
    return lambda source, target, message: {source, target} <= set(map(str, names))


def value(key="k", text="x", deps=(0, 0, 0), seq=1):
    return Value(Kind.COMMANDS, command(key, text), tuple(deps), seq)


@pytest.mark.parametrize(("count", "fast"), [(3, 2), (5, 3), (7, 5)])
def test_35_different_keys_commit_in_one_round_trip_with_the_smallest_fast_quorum(count, fast):
    net = Net(count)
    ids = {member.name: member.propose(f"k{member.name}") for member in net}
    for member in net:
        others = [name for name in net.names if name != member.name]
        net.pick(source=member.name, kind=PreAccept)
        for name in others[: fast - 2]:
            net.pick(source=name, target=member.name, kind=PreAcceptReply)
        assert member.state(ids[member.name]).status == Status.PREACCEPTED
        net.pick(source=others[fast - 2], target=member.name, kind=PreAcceptReply)
        assert member.state(ids[member.name]).status == Status.EXECUTED
    net.pick(kind=PreAcceptReply)  # the others come late
    assert {type(message) for _, _, message in net.flying} == {Commit}
    net.deliver()
    for member in net:
        assert all(member.state(id).status == Status.EXECUTED for id in ids.values())


def test_35_all_commands_of_one_member_after_another_stay_on_the_fast_path():
    net = Net(3)
    for number in range(10):
        net[1 + number % 3].propose("k", str(number))
        assert not any(isinstance(message, Accept) for message in sent(net))
    assert [member.executed for member in net] == [[str(number) for number in range(10)]] * 3


def sent(net):
    """Deliver everything; what was sent."""
    found = []
    while net.flying:
        found.append(net.flying[0][2])
        net.arrive(*net.flying.pop(0))
    return found


def test_36_different_replies_lead_to_the_union_accepted_by_a_majority():
    net = Net(5)
    one, two, three = net[1].propose("k", "a"), net[2].propose("k", "b"), net[3].propose("k", "c")
    net.pick(source="1", target="4", kind=PreAccept)
    net.pick(source="3", target="5", kind=PreAccept)
    net.pick(source="2", target="4", kind=PreAccept)
    net.pick(source="2", target="5", kind=PreAccept)
    net.pick(target="2", kind=PreAcceptReply)
    b = net[2].state(two)
    assert b.status == Status.ACCEPTED
    assert b.init.deps == (0, 0, 0, 0, 0)
    assert b.value.deps == (1, 0, 1, 0, 0)  # the union of what 4 and 5 knew
    assert b.value.seq == 2
    accepts = net.pick(source="2", kind=Accept)
    assert {message.value for message in accepts} == {b.value}
    net.pick(source="1", target="2", kind=AcceptReply)
    assert b.status == Status.ACCEPTED
    net.pick(source="3", target="2", kind=AcceptReply)
    assert b.status == Status.COMMITTED  # with itself, three of five
    net.deliver()
    assert {tuple(member.executed) for member in net} == {tuple(net[1].executed)}
    assert [member.state(id).status for member in net for id in (one, two, three)] == [Status.EXECUTED] * 15


def test_37_a_cycle_is_executed_in_one_order_everywhere():
    for later in (1, 2):
        net = Net(3)
        if later == 1:  # so that the seq of the first is higher
            net[1].propose("k", "before")
            net.pick(target="3", kind=PreAccept)
            net.pick(target="1", kind=PreAcceptReply)
        a, b = net[1].propose("k", "a"), net[2].propose("k", "b")
        net.flying = [each for each in net.flying if isinstance(each[2], Commit) or {each[0], each[1]} == {"1", "2"}]
        net.pick(kind=PreAccept)
        net.pick(kind=PreAcceptReply)
        net.deliver()
        first, second = net[3].state(a).value, net[3].state(b).value
        assert first.deps[1] >= b[1]
        assert second.deps[0] >= a[1]
        expected = ["a", "b"] if (first.seq, a) < (second.seq, b) else ["b", "a"]
        for member in net:
            assert [text for text in member.executed if text != "before"] == expected


@pytest.mark.parametrize("count", [3, 5, 7])
def test_38_what_a_fast_quorum_preaccepted_is_what_a_recovery_commits(count):
    net = Net(count)
    net[1].auto = False
    quorum = [str(number) for number in range(1, net[1].core.fast + 1)]
    id = net[1].propose("k", "a")
    net[1].sync()
    net.pick(target="1")
    for name in quorum[1:]:
        net.pick(target=name, kind=PreAccept)
        net.pick(target="1", kind=PreAcceptReply)
    decided = net[1].state(id)
    assert decided.status == Status.COMMITTED
    assert decided.deciding
    assert not net.pick(source="1", kind=Commit)  # not before it is durable here
    promised = decided.value
    net[1].crash()
    net.flying.clear()
    # Others that never heard of it propose on the same key, and are recovered together with it.
    net[count].propose("k", "b")
    net.run(20 * R)
    for member in net.alive:
        assert member.state(id).value == promised
        assert member.executed == net[count].executed
        assert sorted(member.executed) == ["a", "b"]


def test_39_what_nobody_knows_is_committed_as_void_and_what_waited_for_it_goes_on():
    net = Net(5)
    lost = net[1].propose("k", "lost")
    net.pick(source="1", target="2", kind=PreAccept)
    net.flying.clear()
    after = net[2].propose("k", "after")
    net.deliver(only=lambda source, target, message: "1" not in (source, target))
    assert net[3].state(after).status == Status.COMMITTED
    net[1].crash()
    net[2].crash()
    assert not net[3].executed
    net.run(10 * R)
    for name in "345":
        assert is_void(net[name].state(lost).value)
        assert net[name].executed == ["after"]


def test_40_the_accepted_ballot_is_not_the_promised_one():
    net = Net(5)
    member = net[5]
    a, b = value(text="a", deps=(0,) * 5), value(text="b", deps=(0,) * 5)
    id = (0, 1)
    member.step("3", Accept(id, 7, a))  # ballot 7 is member 3's
    member.step("4", Recover(id, 8))
    net.flying.clear()
    member.step("2", Recover(id, 11))
    ((_, _, reply),) = net.flying
    assert reply == RecoverReply(id, 11, 7, Status.ACCEPTED, a, None)
    other = RecoverReply(id, 11, 8, Status.ACCEPTED, b, None)
    for replies in ({"5": reply, "4": other, "2": RecoverReply(id, 11, 0, 0, None, None)},):
        choice, chosen, _ = choose(replies, "1", 2, net[2].core._void())
        assert (choice, chosen) == (Choice.ACCEPT, b)
    # An accept of a ballot below the promise is refused, and says what is promised.
    net.flying.clear()
    member.step("4", Accept(id, 8, b))
    assert [message for _, _, message in net.flying] == [Refused(id, 11)]
    assert member.state(id).accepted == 7


def test_41_a_missing_dependency_holds_up_its_own_key_only_and_is_recovered():
    net = Net(3)
    net[1].propose("k", "missing")
    net.pick(source="1", target="2", kind=PreAccept)
    net.flying.clear()
    net[1].crash()
    net[2].propose("k", "blocked")
    net.deliver()
    for number in range(5):
        net[2 + number % 2].propose("other", str(number))
        net.deliver()
    for name in (2, 3):
        assert net[name].executed == ["0", "1", "2", "3", "4"]
    posted = 0
    for _ in range(8 * R):
        for member in net.alive:
            member.tick()
        posted += len(net.flying)
        net.deliver()
    assert net[2].executed == net[3].executed == ["0", "1", "2", "3", "4", "missing", "blocked"]
    assert posted < 100  # it waits, and does not spin


def test_42_an_answer_to_a_preaccept_leaves_when_it_is_durable():
    net = Net(3)
    net[2].propose("k", "own")
    net.pick(source="2", target="3")
    net.flying.clear()
    net[3].auto = False
    net[1].propose("k", "a")
    ((_, _, message),) = [each for each in net.flying if each[1] == "3"]
    net.flying.clear()
    net[3].step("1", message)
    net[3].step("1", message)  # asked again, it promises no more than it can keep
    assert not net.flying
    net[3].crash()
    net[3].start()
    assert message.id not in net[3].core.instances
    net[3].step("1", message)
    net[3].sync()
    ((_, _, first),) = net.flying
    assert first.deps == (0, 1, 0)
    net.flying.clear()
    net[3].crash()
    net[3].start()
    net[3].step("1", message)
    assert [each[2] for each in net.flying] == [first]


def test_43_late_messages_take_nothing_back():
    net = Net(3)
    preaccept, decided = value(), value(deps=(0, 0, 1), seq=5)
    id = (0, 1)
    net[2].step("1", Commit(id, decided))
    before = (net[2].state(id).status, net[2].state(id).value, net[2].state(id).ballot)
    for message in (PreAccept(id, preaccept), Accept(id, 0, preaccept)):
        net[2].step("1", message)
        assert (net[2].state(id).status, net[2].state(id).value, net[2].state(id).ballot) == before
    id = (0, 2)
    net[2].step("1", Accept(id, 0, decided))
    net[2].step("1", PreAccept(id, preaccept))
    assert (net[2].state(id).status, net[2].state(id).value) == (Status.ACCEPTED, decided)
    net[2].step("3", Accept(id, 5, value(text="other")))
    net[2].step("1", Accept(id, 0, decided))
    assert net[2].state(id).value == value(text="other")


def test_44_a_commit_that_differs_from_what_was_executed_is_fatal():
    net = Net(3)
    id = net[1].propose("k", "a")
    net.deliver()
    decided = net[2].state(id).value
    assert net[2].state(id).status == Status.EXECUTED
    net[2].step("1", Commit(id, decided))
    assert not [event for event in net[2].events if isinstance(event, Fatal)]
    for wrong in (value(text="b"), Value(decided.kind, decided.data, (0, 1, 0), decided.seq)):
        out = net[2].core.step("1", Commit(id, wrong))
        assert [type(event) for event in out.apply] == [Fatal]
        assert (out.persist, out.send, out.early) == ([], [], [])
        assert net[2].state(id).value == decided
        assert net[2].executed == ["a"]


def test_45_on_a_hot_key_every_command_is_executed_soon_after_its_commit():
    chance = random.Random(1)
    net = Net(3, chain_max=16, trailing=1)
    committed, latest = {}, 0
    late, proposed = [], 0
    for tick in range(6_000):
        for member in net:
            member.tick()
            if tick % 3 == 0:
                try:
                    member.propose("hot", f"{member.name} {tick}")
                    proposed += 1
                except OverloadedError:
                    pass
        late += [(tick + chance.randrange(1, 7), each) for each in net.flying]
        net.flying.clear()
        due = [each for at, each in late if at <= tick]
        late = [pair for pair in late if pair[0] > tick]
        for each in due:
            net.arrive(*each)
        for member in net:
            for instance in member.core.instances.values():
                name = (member.name, instance.id)
                if instance.status == Status.COMMITTED and name not in committed:
                    committed[name] = tick
                elif instance.status == Status.EXECUTED and committed.get(name) is not None:
                    latest = max(latest, tick - committed[name])
                    committed[name] = None
            if tick % 10 == 0:
                member.checkpoint()
    assert proposed > 1_500
    assert latest < 60  # 94 without `chain_max`
    assert not [tick for tick in committed.values() if tick is not None and tick < 5_900]


def test_68_the_seal_stands_at_one_place_and_nothing_is_executed_behind_it():
    voids, chosen = 0, set()
    for seed in range(60):
        chance = random.Random(seed)
        net = Net(3, seed=seed)
        successors = [Epoch(1, protocol, net.names, start=1_000) for protocol in ("raft", "paxos")]
        for number in range(12):
            member = net[1 + number % 3]
            try:
                if number in (6, 7):  # two ask for different successors: one of them gets it
                    member.take(member.core.seal(successors[number - 6]))
                else:
                    member.propose(f"k{chance.randrange(2)}", str(number))
            except SealedError:
                continue
            chance.shuffle(net.flying)
            for _ in range(chance.randrange(12)):
                if net.flying:
                    net.arrive(*net.flying.pop())
        chance.shuffle(net.flying)
        net.deliver()
        net.run(20 * R)
        told = [[(entry.position, entry.kind) for entry in member.entries] for member in net]
        chosen.add(unpack_epoch(net[1].entries[-1].data).protocol)
        assert [sorted(each) for each in told] == [sorted(told[0])] * 3, f"seed {seed}"
        for member, entries in zip(net, told, strict=True):
            assert entries[-1][1] == Kind.SEAL
            assert [kind for _, kind in entries].count(Kind.SEAL) == 1
            assert member.entries[-1] == net[1].entries[-1]
            assert member.core.status.role == "sealed"
            with pytest.raises(SealedError):
                member.propose("k0")
            for key in ("k0", "k1"):
                assert on(member, key) == on(net[1], key), f"seed {seed}"
        voids += len(net[1].core.executed) - len(told[0])
    assert voids  # there were some to be rejected
    assert chosen == {"raft", "paxos"}


def on(member, key):
    return [entry.position for entry in member.entries if entry.kind == Kind.COMMANDS and key.encode() in entry.data]
