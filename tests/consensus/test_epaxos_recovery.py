"""Recovery of EPaxos: each step of its argument, and schedules drawn at random in which several recoveries meet."""

from __future__ import annotations

import random

import pytest

from nova.consensus.core import unpack
from nova.consensus.epaxos.instances import Status, is_void
from nova.consensus.epaxos.messages import (
    Accept,
    Commit,
    PreAccept,
    PreAcceptReply,
    Recover,
    RecoverReply,
    Validate,
    ValidateReply,
    Waiting,
)
from nova.consensus.epaxos.recovery import Phase
from nova.types import Outputs
from tests.consensus.epaxos_net import Net, R


def preaccepted(net, owner, *others, key="k", text="x"):
    """An instance that these have pre-accepted; nothing else of it is under way."""
    id = net[owner].propose(key, text)
    for other in others:
        net.pick(source=str(owner), target=str(other), kind=PreAccept)
    net.flying = [each for each in net.flying if each[2].id != id]
    return id


def recover(net, name, id, *quorum):
    """Let a member take over, and the rest of this quorum promise."""
    core = net[name].core
    out = Outputs()
    core._recover(core._instance(id), out)
    net[name].take(core._done(out))
    for other in quorum:
        net.pick(source=str(name), target=str(other), kind=Recover)
        net.pick(source=str(other), target=str(name), kind=RecoverReply)
    net.flying = [each for each in net.flying if not isinstance(each[2], Recover | RecoverReply)]
    return core.instances[id]


def validate(net, name):
    net.pick(source=str(name), kind=Validate)
    net.pick(target=str(name), kind=ValidateReply)


def accepted(net, name):
    """What this one asks the others to accept."""
    (value,) = {each[2].value for each in net.flying if each[0] == str(name) and isinstance(each[2], Accept)}
    return value


def same_order(net):
    """Let everything come to an end, of all that live."""
    net.flying.clear()
    net.run(40 * R)
    orders = {tuple(member.executed) for member in net.alive}
    assert len(orders) == 1, orders
    return orders.pop()


def test_step_2_the_coordinator_knows_that_it_did_not_commit():
    net = Net(5)
    id = preaccepted(net, 1, 2, 3)
    instance = recover(net, 2, id, 1, 3)
    assert is_void(instance.value)
    assert same_order(net) == ()


def test_step_3_too_few_preaccepted_what_was_proposed():
    net = Net(7)
    id = preaccepted(net, 1, 2)
    assert is_void(recover(net, 2, id, 3, 4, 5).value)  # one of four; a fast quorum of five leaves two


def test_step_4_nothing_stands_against_it():
    net = Net(5)
    id = preaccepted(net, 1, 2)
    net[1].crash()
    instance = recover(net, 2, id, 3, 4)
    assert instance.lead.phase is Phase.VALIDATE
    assert instance.lead.count == 1
    validate(net, 2)
    assert accepted(net, 2) == net[2].state(id).init
    assert same_order(net) == ("x",)


def test_step_4_what_is_validated_is_a_dependency_from_then_on():
    net = Net(5)
    id = preaccepted(net, 1, 2)
    net[1].crash()
    recover(net, 2, id, 3, 4)
    validate(net, 2)
    held = [each for each in net.flying if isinstance(each[2], Accept)]
    net.flying.clear()
    net[3].propose("k", "y")
    net.deliver(only=lambda source, target, message: "2" not in (source, target))
    net.flying += held
    net.deliver()
    assert same_order(net) == ("x", "y")


def test_step_5_a_committed_command_without_it_stands_against_it():
    net = Net(5)
    id = preaccepted(net, 1, 2)
    net[3].propose("k", "y")
    net.deliver(only=lambda source, target, message: {source, target} <= {"3", "4", "5"})
    assert net[4].executed == ["y"]
    net[1].crash()
    recover(net, 2, id, 3, 4)
    validate(net, 2)
    assert is_void(accepted(net, 2))
    assert same_order(net) == ("y",)


def test_step_5_also_if_that_was_executed_and_forgotten():
    net = Net(5, trailing=0)
    id = preaccepted(net, 1, 2)
    net[3].propose("k", "y")
    net.deliver(only=lambda source, target, message: {source, target} <= {"3", "4", "5"})
    for name in "345":
        net[name].checkpoint()
        net[name].checkpoint()
        assert not net[name].core.instances
    net[3].crash()
    net[3].start()
    net[1].crash()
    recover(net, 2, id, 3, 4)
    validate(net, 2)
    assert is_void(accepted(net, 2))


def executed_everywhere(net, name, *dropping):
    """A command on `k` that all have executed, and these members no longer remember."""
    net[name].propose("k", "old")
    net.deliver()
    net.run(25)
    for each in dropping:
        net[each].checkpoint()
        assert net[each].core.conflicts.deps(frozenset([b"k"]))[0] == [0] * len(net.names)


def test_what_some_have_dropped_does_not_stand_against_a_fast_commit():
    net = Net(5)
    executed_everywhere(net, 4, 1, 2, 3)
    net[1].auto = False
    id = net[1].propose("k", "x")
    net[1].sync()
    for other in "23":
        net.pick(source="1", target=other, kind=PreAccept)
        net.pick(source=other, target="1", kind=PreAcceptReply)
    net[1].sync(1)  # the commit is durable, and nobody has heard of it yet
    decided = net[1].state(id)
    assert decided.decided
    net[1].crash()
    net.flying.clear()
    recover(net, 4, id, 5, 2)
    validate(net, 4)
    assert accepted(net, 4) == decided.value


def test_a_member_adds_what_it_has_dropped_to_a_command_that_does_not_reach_it():
    net = Net(3)
    id = net[1].propose("k", "x")
    (late,) = {each[2] for each in net.flying}
    net.flying.clear()
    net[2].propose("k", "y")
    net.deliver(only=lambda source, target, message: "1" not in (source, target) or isinstance(message, Commit))
    assert net[1].executed == ["y"]
    net[1].core.instances[id].due = 0  # its PreAccept is late, and nobody repeats it
    net.run(25)
    net[3].checkpoint()
    assert not len(net[3].core.conflicts)
    net[3].step("1", late)
    (reply,) = [each[2] for each in net.flying if isinstance(each[2], PreAcceptReply)]
    assert late.value.deps == (0, 0, 0)
    assert reply.deps == (0, 1, 0)


def test_step_6_the_coordinator_of_what_may_stand_against_it_is_away():
    net = Net(5)
    x = preaccepted(net, 1, 2, text="x")
    y = preaccepted(net, 3, 4, 5, text="y")
    net[1].crash()
    net[3].crash()
    recover(net, 2, x, 4, 5)
    validate(net, 2)
    assert is_void(accepted(net, 2))
    net.deliver()
    recover(net, 4, y, 2, 5)
    validate(net, 4)
    assert accepted(net, 4) == net[4].state(y).init  # it may have been committed: three of five are a fast quorum
    assert same_order(net) == ("y",)


def test_step_7_what_may_stand_against_it_is_waited_for():
    for has_it in (False, True):
        net = Net(5)
        x = preaccepted(net, 1, 2, text="x")
        net[3].propose("k", "y")
        net.pick(source="3", target="4", kind=PreAccept)
        net.pick(source="3", target="5" if not has_it else "2", kind=PreAccept)
        replies = [each for each in net.flying if isinstance(each[2], PreAcceptReply)]
        net.flying.clear()
        net[1].crash()
        instance = recover(net, 2, x, 3, 4)
        validate(net, 2)
        if has_it:
            net.pick(source="2", target="3", kind=PreAcceptReply)
        assert instance.lead.phase is Phase.WAIT
        assert not [each for each in net.flying if isinstance(each[2], Accept)]
        net.flying = replies
        net.pick(kind=PreAcceptReply)  # y commits: without x, or after it
        net.deliver(only=lambda source, target, message: isinstance(message, Accept | Commit) or source != "2")
        net.pick(kind=Commit)
        assert is_void(instance.value) != has_it
        assert same_order(net) == (("x", "y") if has_it else ("y",))


def test_step_7_of_two_that_wait_for_each_other_the_weaker_one_gives_way():
    net = Net(7)
    x = preaccepted(net, 1, 2, 3, text="x")
    y = preaccepted(net, 7, 4, 5, 6, text="y")
    net[1].crash()
    first = recover(net, 2, x, 3, 7, 4)
    validate(net, 2)
    assert first.lead.phase is Phase.WAIT
    second = recover(net, 4, y, 5, 6, 2)
    validate(net, 4)
    assert second.lead.phase is Phase.WAIT
    net.pick(source="2", target="4", kind=Waiting)
    assert second.lead.phase is Phase.WAIT  # two besides the coordinator: no more than n - f - e
    net.pick(source="4", target="2", kind=Waiting)
    assert is_void(accepted(net, 2))
    assert same_order(net) == ("y",)


def meets(data, key):
    keys = {command.key for command in unpack(data)}
    return bool(keys & {key, b""})


class Schedule:
    """Messages in any order, lost or doubled, members that crash and forget; what was committed and executed.

    On each key, all members have to execute in one order. A minority is down at a time. `still`: no time passes at
    first; then coordinators crash, and their instances are left to the others. `forgetting`: members take snapshots,
    and drop what these hold, so that some are behind what others still know.
    """

    def __init__(self, seed, count, *, commands=4, steps=250, still=False, crashes=0.02, forgetting=0.0):
        self.name = f"seed {seed} of {count}"
        self.chance = random.Random(f"{seed} {count}")
        self.net = Net(
            count, seed=seed, auto=False, recovery_ticks=3, resend_ticks=2, beat_ticks=7 if not forgetting else 2,
            trailing=0,
        )  # fmt: skip
        self.keys = ["k"] if not forgetting else ["k", "k", "j", ""]
        self.forgetting = forgetting
        self.count, self.commands, self.steps, self.crashes = count, commands, steps, crashes
        self.still = 15 * commands if still else 0
        self.decided, self.orders = {}, []
        self.proposed = 0

    def run(self):
        """How many commands were committed, and how many instances."""
        for step in range(self.steps):
            if step and step == self.still:
                proposers = [member for member in self.net if member.core._next > 1]
                self.chance.shuffle(proposers)
                for member in proposers[: (self.count - 1) // 2]:
                    self.crash(member)
            self.step(self.net[1 + self.chance.randrange(self.count)], step < self.still)
        self.finish()
        return sum(not is_void(value) for value in self.decided.values()), len(self.decided)

    def step(self, member, still):
        chance = self.chance
        what = chance.random()
        if member.core is None:
            if what < 0.05 and not self.still:
                member.start()
            return
        if what < (0.2 if still else 0.06):
            if self.proposed < self.commands:
                member.propose(self.keys[self.chance.randrange(len(self.keys))], str(self.proposed))
                self.proposed += 1
        elif what < 0.06 + self.crashes:
            if not self.still and len(self.net.alive) > self.count - (self.count - 1) // 2:
                self.crash(member)
        elif what < 0.08 + self.crashes + self.forgetting:
            if self.forgetting:
                member.checkpoint()
        elif what < 0.4:
            member.sync(1)
        elif what < 0.5:
            if not still:
                member.tick()
        else:
            self.deliver(member)
        if member.core is not None:
            self.look(member)

    def deliver(self, member):
        chance, net = self.chance, self.net
        flying = [each for each in net.flying if each[1] == member.name]
        if flying:
            each = flying[chance.randrange(len(flying))]
            if chance.random() > 0.05:
                net.flying.remove(each)
            if chance.random() > 0.1:
                member.step(each[0], each[2])

    def crash(self, member):
        self.orders.append(member.machine)
        member.crash()

    def look(self, member):
        for instance in member.core.instances.values():
            if instance.decided:
                known = self.decided.setdefault(instance.id, instance.value)
                assert known == instance.value, f"{self.name}: {instance.id} is {known} and {instance.value}"

    def finish(self):
        """Everybody is back, everything arrives, and what was begun has to come to an end."""
        for member in self.net:
            if member.core is None:
                member.start()
            member.auto = True
            member.sync()
        for _ in range(500):
            self.net.run(1)
            for member in self.net:
                self.look(member)
                if member.core.snapshot_wanted:
                    member.checkpoint()
            if self.quiet():
                break
        else:
            raise AssertionError(f"{self.name}: it does not come to an end")
        self.orders += [member.machine for member in self.net]
        for key in {key.encode() for key in self.keys}:
            orders = [[each for each in order if meets(each[1], key)] for order in self.orders]
            longest = max(orders, key=len)
            for order in orders:
                assert order == longest[: len(order)], f"{self.name}: {order} and {longest}"
            assert len(orders[-1]) == len(longest)
        assert len({len(member.machine) for member in self.net}) == 1

    def quiet(self):
        instances = [instance for member in self.net for instance in member.core.instances.values()]
        return (
            all(instance.status == Status.EXECUTED for instance in instances)
            and len({tuple(member.core.executed.frontier) for member in self.net}) == 1
        )


@pytest.mark.parametrize("count", [3, 5, 7])
@pytest.mark.parametrize("still", [False, True])
def test_any_schedule_leaves_one_value_for_each_instance_and_one_order(count, still):
    real = total = 0
    for seed in range(100):
        found = Schedule(seed, count, still=still).run()
        real, total = real + found[0], total + found[1]
    assert 0 < real < total  # some were recovered as void, some were not


@pytest.mark.parametrize("count", [3, 5])
def test_any_schedule_leaves_one_order_also_for_members_that_forget(count):
    for seed in range(100):
        Schedule(seed, count, commands=12, steps=600, crashes=0.03, forgetting=0.05, still=seed % 2).run()
