"""What clients are told, and what is then true: the scenarios 84 to 88, with members that lose packets and power."""

from __future__ import annotations

from collections import Counter

import pytest

from nova.consensus.core import Command, unpack
from nova.consensus.raft.options import RaftOptions
from nova.consensus.replicated import Answered, ReplicatedConfig
from nova.consensus.sessions import OPEN, Code, Sessions
from nova.errors import UnavailableError
from nova.sim import machine
from nova.sim.faults import Crash, Heal, Partition, Restart, random_plan
from nova.sim.group import Group
from nova.sim.network import Link
from nova.sim.subjects import SUBJECTS
from nova.types import Outputs

MS = 1_000_000


class Cell(Group):
    """A Raft group without clients of its own: the test asks, and sees every answer."""

    config = ReplicatedConfig(retry_ticks=30)

    def __init__(self, seed, **options):
        self.answers = []
        self.asked = 0
        super().__init__(SUBJECTS["raft"], seed, clients=0, **{"faults": 0, **options})
        assert self.world.run(until=lambda: self.leader is not None, ticks_max=300)

    def _event(self, node, event):
        super()._event(node, event)
        if isinstance(event, Answered):
            self.answers.append((self.world.now, node, event.command, event.outcome))

    @property
    def leader(self):
        leading = self._newest_leader()
        return leading.node if leading is not None else None

    def submit(self, node, *commands):
        replica = self.world[node].replica
        replica.config = self.config
        try:
            for command in commands:
                replica.submit(command)
        finally:
            self.world.submit(node, Outputs())

    def ask(self, node, command):
        """The outcome of a command that somebody waits for."""
        before = len(self.answers)
        self.submit(node, command)

        def told():
            return [outcome for _, where, what, outcome in self.answers[before:] if (where, what) == (node, command)]

        assert self.world.run(until=told, ticks_max=500)
        return told()[0]

    def open(self, node=None):
        self.asked += 1
        outcome = self.ask(node or self.leader, Command(0, OPEN, self.asked.to_bytes(8, "big")))
        return int.from_bytes(outcome.data, "big")

    def settle(self):
        self.world.mend()
        assert self.world.run(until=self._settled, ticks_max=1_500)

    def chosen(self, command):
        """How often it stands in the order."""
        return sum(
            unpack(data).count(command) for kind, data, _ in self.decided.values() if kind == 0 and data is not None
        )

    def held(self, key):
        self.settle()
        (held,) = {tuple(member.values.values.get(key) or ()) for member in self.members()}
        return list(held)


@pytest.mark.parametrize("seed", range(10))
def test_84_a_retry_elsewhere_is_applied_once_and_answered_alike_also_after_snapshot_and_restart(seed):
    cell = Cell(seed)
    session = cell.open()
    write = Command(session, 1, machine.append("k", 7))
    first, second = [name for name in cell.world.names if name != cell.leader]
    cell.submit(first, write)  # no answer in time: the client asks elsewhere while it is on its way
    told = [cell.ask(second, write)]
    told.append(cell.ask(cell.leader, write))
    assert cell.world.run(until=lambda: any(node == first for _, node, *_ in cell.answers[1:]), ticks_max=200)
    assert cell.chosen(write) >= 2, "both reached the log"
    for number in range(2, 100):
        told.append(cell.ask(cell.leader, Command(session, number, machine.append("other", number))))
    for name in cell.world.names:
        cell.world.crash(name)
    for name in cell.world.names:
        cell.world.restart(name)
        assert cell.world[name].core.log.offset > 0, "a snapshot stands for the beginning"
    assert cell.world.run(until=lambda: cell.leader is not None, ticks_max=300)
    told.append(cell.ask(first, write))
    assert told[0] == told[1] == told[-1] == next(o for _, node, what, o in cell.answers if what == write)
    assert machine.answer(told[0].data) == 1
    assert cell.held("k") == [7]
    assert cell.held("other") == list(range(2, 100))


@pytest.mark.parametrize("seed", range(5))
def test_85_a_retry_of_an_expired_session_is_told_so_and_never_applied_again(seed, monkeypatch):
    monkeypatch.setitem(Sessions.__init__.__kwdefaults__, "sessions_max", 3)
    cell = Cell(seed)
    session = cell.open()
    write = Command(session, 1, machine.append("k", 1))
    assert cell.ask(cell.leader, write).code is Code.OK
    others = [cell.open() for _ in range(3)]
    for name in cell.world.names:
        assert cell.ask(name, write).code is Code.EXPIRED
        assert cell.ask(name, Command(session, 2, machine.append("k", 2))).code is Code.EXPIRED
    assert cell.ask(cell.leader, Command(others[0], 1, machine.append("k", 3))).code is Code.OK
    cell.world.crash(cell.leader)
    assert cell.world.run(until=lambda: cell.leader is not None, ticks_max=300)
    assert cell.ask(cell.leader, write).code is Code.EXPIRED
    assert cell.held("k") == [1, 3]


class Caller:
    """Sends one command at a time, and remembers what it was told of each value: yes, no, or nothing (None)."""

    def __init__(self, cell, number):
        self.cell, self.session = cell, cell.open()
        self.sequence, self.value = 0, number * 1_000
        self.waits = False
        self.told = {}

    def write(self, node):
        if self.waits:
            return
        self.value += 1
        try:
            self.cell.submit(node, Command(self.session, self.sequence + 1, machine.append("k", self.value)))
        except UnavailableError:
            self.told[self.value] = False  # known not to be applied: the number is free
            return
        self.sequence += 1
        self.told[self.value], self.waits = None, True

    def hear(self):
        last = (self.session, self.sequence)
        if any((what.session, what.sequence) == last and o.code is Code.OK for _, _, what, o in self.cell.answers):
            self.told[self.value], self.waits = True, False


@pytest.mark.parametrize("first", range(0, 24, 8))
def test_86_what_a_client_was_told_has_failed_is_never_there_and_what_succeeded_is(first):
    counts = Counter()
    for seed in range(first, first + 8):
        cell = Cell(seed, nodes=5)
        callers = [Caller(cell, number) for number in range(1, 11)]
        cell.config = ReplicatedConfig(queue_max=2, retry_ticks=30)
        end = 1_000 * MS
        random = cell.world.stream("trouble")
        cell.world.plan(random_plan(random, cell.world.names, end, faults=12, kinds=["crash", "partition"]))
        cell.world.plan([Crash(end // 3, cell.leader), Restart(end // 2, cell.leader)])
        for _ in range(100):
            for caller in callers:
                if up := cell.world.up:
                    caller.write(up[random.randrange(len(up))])
            cell.world.run(1)
            for caller in callers:
                caller.hear()
            cell.answers.clear()
        held = cell.held("k")
        assert len(held) == len(set(held))
        for told in (caller.told for caller in callers):
            assert not [value for value in held if value in told and told[value] is False]
            assert not [value for value, what in told.items() if what is True and value not in held]
            counts.update(told.values())
    assert min(counts[True], counts[False], counts[None]) > 0, counts


@pytest.mark.parametrize("seed", range(30))
def test_87_pipelined_writes_take_effect_in_order_up_to_some_point(seed):
    cell = Cell(seed, nodes=3)
    session = cell.open()
    chance = cell.world.stream("trouble")
    leader = cell.leader
    asked = cell.world.names[chance.randrange(3)]
    victim = (leader, leader, asked)[seed % 3]
    crash = chance.randrange(40 * MS)
    if seed % 2:
        cell.world.plan([Crash(crash, victim), Restart(crash + 300 * MS, victim)])
    else:
        rest = [name for name in cell.world.names if name != victim]
        cell.world.plan([Partition(crash, [[victim], rest]), Heal(crash + 400 * MS)])
    for number in range(1, 101):
        if asked in cell.world.up:
            cell.submit(asked, Command(session, number, machine.append("k", number)))
        if number % 5 == 0:
            cell.world.run(1)
    cell.world.run(100)
    held = cell.held("k")
    done = [command.sequence for _, _, command, o in cell.answers if command.session == session and o.code is Code.OK]
    assert held == list(range(1, len(held) + 1)), "in order, without a gap"
    assert len(held) >= max(done, default=0)
    if asked != victim or not seed % 2:
        assert len(held) == 100, "who asked lives, and asks again"


def p99(values):
    return sorted(values)[len(values) * 99 // 100]


def test_88_under_overload_the_surplus_is_refused_at_once_and_the_rest_stays_quick():
    def latencies(interval_ns, commands):
        cell = Cell(3, link=Link(delay_ns_min=500_000, jitter_ns_mean=100_000))
        sessions = [[cell.open(), 0] for _ in range(40)]
        cell.config = ReplicatedConfig(queue_max=120, entry_bytes_max=4_000, retry_ticks=1_000)
        for member in cell.members():
            member.core.options = RaftOptions(uncommitted_bytes_max=4_000)
        cell.answers.clear()
        leader, begun, refused = cell.leader, {}, []

        def ask(session):
            id, last = session
            try:
                cell.submit(leader, Command(id, last + 1, machine.put(f"k{id}", "v" * 20)))
            except UnavailableError as error:
                refused.append(error)
                return
            session[1] += 1
            begun[id, session[1]] = cell.world.now

        for number in range(commands):
            cell.world.at(1 + number * interval_ns, lambda session=sessions[number % 40]: ask(session))
        cell.world.run(commands * interval_ns // 10_000_000 + 50)
        took = [at - begun[command.session, command.sequence] for at, _, command, _ in cell.answers]
        assert len(took) == len(begun), "whatever was accepted is answered"
        return took, refused

    alone, none_refused = latencies(4 * MS, 300)
    assert not none_refused
    crowded, refused = latencies(10_000, 3_000)
    assert len(refused) > 1_000
    assert all(error.code == "overloaded" and error.retry_after_ns > 0 for error in refused)
    assert len(crowded) > 200
    assert p99(crowded) < 5 * p99(alone), (p99(crowded), p99(alone))
