"""Recovery of EPaxos under schedules drawn at random, in which several recoveries meet."""

from __future__ import annotations

import random

import pytest

from nova.consensus.epaxos.instances import Status, is_void
from tests.consensus.epaxos_net import Net


class Schedule:
    """Messages in any order, lost or doubled, members that crash and forget; what was committed and executed.

    Everything interferes, so all members have to execute in one order. A minority is down at a time. `still`: no time
    passes at first; then coordinators crash, and their instances are left to the others.
    """

    def __init__(self, seed, count, *, commands=4, steps=250, still=False, crashes=0.02):
        self.name = f"seed {seed} of {count}"
        self.chance = random.Random(f"{seed} {count}")
        self.net = Net(count, seed=seed, auto=False, recovery_ticks=3, resend_ticks=2, beat_ticks=7)
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
                member.propose("k", str(self.proposed))
                self.proposed += 1
        elif what < 0.06 + self.crashes:
            if not self.still and len(self.net.alive) > self.count - (self.count - 1) // 2:
                self.crash(member)
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
        self.orders.append([instance.id for instance in member.core._recent])
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
            if self.quiet():
                break
        else:
            raise AssertionError(f"{self.name}: it does not come to an end")
        self.orders += [[instance.id for instance in member.core._recent] for member in self.net]
        orders = [[id for id in order if not is_void(self.decided[id])] for order in self.orders]
        longest = max(orders, key=len)
        for order in orders:
            assert order == longest[: len(order)], f"{self.name}: {order} and {longest}"
        assert len(orders[-1]) == len(longest)

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
