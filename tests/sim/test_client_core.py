"""The client over streams that break, members that fall and disks that lose: scenarios 84 to 88, seed by seed."""

from __future__ import annotations

from collections import Counter

import pytest
from client_world import MS, Net
from test_client_scenarios import p99

from nova.consensus.answering import ServingOptions
from nova.consensus.core import OverloadedError, SessionExpiredError, UnknownOutcomeError
from nova.consensus.raft.options import RaftOptions
from nova.consensus.replicated import ReplicatedConfig
from nova.consensus.sessions import Sessions
from nova.sim import machine
from nova.sim.faults import Crash, Restart, random_plan
from nova.sim.network import Link


@pytest.mark.parametrize("seed", range(10))
def test_84_a_write_that_is_asked_again_at_another_member_is_applied_once(seed):
    cell = Net(seed)
    chance = cell.world.stream("client")
    first, second = [name for name in cell.world.names if name != cell.leader]
    client = cell.client(first)
    for number in range(30):
        told = client.ask(machine.append("k", number))
        cell.world.at(chance.randrange(3 * MS), lambda place=number % 2: client.go((second, first)[place]))
        assert cell.world.run(until=told.done, ticks_max=500)
        assert machine.answer(told.result) == number + 1
    assert client.moves > 20
    for name in cell.world.names:  # and after a snapshot and a restart of all
        cell.world.crash(name)
    last = client.ask(machine.append("k", 30))
    for name in cell.world.names:
        cell.world.restart(name)
    assert cell.world.run(until=last.done, ticks_max=1_000)
    assert machine.answer(last.result) == 31
    assert cell.held("k") == list(range(31))


@pytest.mark.parametrize("seed", range(5))
def test_85_a_session_that_expired_is_told_of_and_its_command_is_never_applied_again(seed, monkeypatch):
    monkeypatch.setitem(Sessions.__init__.__kwdefaults__, "sessions_max", 3)
    cell = Net(seed)
    client = cell.client()
    told = client.ask(machine.append("k", 1))
    assert cell.world.run(until=told.done, ticks_max=500)
    client.hang_up()
    for _ in range(4):
        cell.open()
    # Asked for while no member was connected: it goes out under the old session once one is.
    client.go(cell.world.names[seed % 3])
    lost, behind = client.ask(machine.append("k", 2)), client.ask(machine.append("k", 3))
    assert cell.world.run(until=behind.done, ticks_max=500)
    assert isinstance(lost.error, SessionExpiredError), lost.error
    assert isinstance(behind.error, SessionExpiredError), behind.error
    again = client.ask(machine.append("k", 4))
    assert cell.world.run(until=again.done, ticks_max=500)
    assert again.verdict, again.error
    assert cell.held("k") == [1, 4]


@pytest.mark.parametrize("first", range(0, 24, 8))
def test_86_what_a_client_is_told_is_so(first):
    counts = Counter()
    for seed in range(first, first + 8):
        cell = Net(seed, nodes=5, serving=ServingOptions(calls_max=4))
        end = 1_000 * MS
        random = cell.world.stream("trouble")
        cell.world.plan(random_plan(random, cell.world.names, end, faults=12, kinds=["crash", "partition"]))
        cell.world.plan([Crash(end // 3, cell.leader), Restart(end // 2, cell.leader)])
        clients = [cell.client(patience=10 + number) for number in range(6)]
        asked = {}
        for number in range(100):
            client = clients[number % 6]
            for value in (2 * number, 2 * number + 1):
                asked[value] = client.ask(machine.append("k", value))
            if random.random() < 0.1:
                client.go(cell.world.names[random.randrange(5)])
            cell.world.run(1)
        verdicts = {value: told.verdict for value, told in asked.items()}  # as of now: who waits may give up
        held = cell.held("k")
        assert len(held) == len(set(held))
        assert not [value for value in held if verdicts[value] is False], "told to have failed, and is there"
        assert not [value for value, told in verdicts.items() if told and value not in held]
        assert cell.world.run(until=cell.idle, ticks_max=1_000), "once all is well, whoever waits is answered"
        late = {value: told.verdict for value, told in asked.items()}
        held = cell.held("k")
        assert {value for value, told in late.items() if told} == set(held)
        counts.update(verdicts.values())
    assert min(counts[True], counts[False], counts[None]) > 0, counts


@pytest.mark.parametrize("seed", range(30))
def test_87_pipelined_writes_take_effect_in_order_up_to_some_point(seed):
    cell = Net(seed, nodes=3, serving=ServingOptions(calls_max=30) if seed % 3 == 0 else None)
    client = cell.client(cell.world.names[seed % 3])
    leader = cell.leader
    crash = cell.world.stream("trouble").randrange(40 * MS)
    cell.world.plan([Crash(crash, leader), Restart(crash + 300 * MS, leader)])
    end = cell.world.now + crash + 400 * MS
    asked = []
    for number in range(1, 101):
        asked.append(client.ask(machine.append("k", number)))
        if number % 5 == 0 and seed % 3:  # else all at once, beyond what the port takes
            cell.world.run(1)
    assert cell.world.run(until=lambda: cell.idle() and cell.world.now > end, ticks_max=1_500)
    verdicts = [told.verdict for told in asked]
    count = verdicts.index(False) if False in verdicts else 100
    assert verdicts == [True] * count + [False] * (100 - count), "in order, without a gap"
    assert count == (30 if seed % 3 == 0 else 100)
    assert cell.held("k") == list(range(1, count + 1))


def test_a_call_of_many_that_was_taken_in_part_is_not_told_to_have_failed():
    cell = Net(1, serving=ServingOptions(calls_max=10))
    client = cell.client()
    opened = client.ask(machine.append("k", 0))
    assert cell.world.run(until=opened.done, ticks_max=500)
    part = client.ask(*[machine.append("k", number) for number in range(1, 21)])
    none = client.ask(*[machine.append("k", number) for number in range(21, 30)])
    assert cell.world.run(until=cell.idle, ticks_max=500)
    assert isinstance(part.error, UnknownOutcomeError), part.error
    assert "the first 10 of the commands were taken" in str(part.error)
    assert isinstance(none.error, OverloadedError), none.error
    assert cell.held("k") == list(range(11))


def test_a_command_that_is_too_large_is_refused_and_so_is_what_was_asked_behind_it():
    cell = Net(2)
    client = cell.client()
    before = client.ask(machine.append("k", 1))
    large = client.ask(machine.put("k", "x" * 200_000))
    behind = client.ask(machine.append("k", 2))
    assert cell.world.run(until=cell.idle, ticks_max=500)
    assert before.verdict
    assert large.verdict is False
    assert "the limit is 100000" in str(large.error)
    assert behind.verdict is False
    after = client.ask(machine.append("k", 3))
    assert cell.world.run(until=after.done, ticks_max=500)
    assert cell.held("k") == [1, 3]


def test_88_under_overload_the_surplus_is_refused_at_once_and_the_rest_stays_quick():
    def latencies(interval_ns, commands):
        cell = Net(3, serving=ServingOptions(calls_max=120), link=Link(delay_ns_min=500_000, jitter_ns_mean=100_000))
        cell.config = ReplicatedConfig(entry_bytes_max=4_000, retry_ticks=1_000)
        for member in cell.members():
            member.core.options = RaftOptions(uncommitted_bytes_max=4_000)
        clients = [cell.client() for _ in range(40)]
        opened = [client.ask(machine.put("k", number)) for number, client in enumerate(clients)]
        assert cell.world.run(until=cell.idle, ticks_max=500)
        assert all(told.verdict for told in opened)
        asked = []

        def ask(number):
            asked.append(clients[number % 40].ask(machine.put(f"k{number % 40}", "v" * 20)))

        for number in range(commands):
            cell.world.at(1 + number * interval_ns, lambda number=number: ask(number))
        cell.world.run(commands * interval_ns // 10_000_000 + 100)
        refused = [told for told in asked if told.error is not None]
        assert all(isinstance(told.error, OverloadedError) and told.error.retry_after_ns > 0 for told in refused)
        took = [told.at - told.begun for told in asked if told.verdict]
        assert len(took) + len(refused) == commands, "everybody is told something"
        return took, [told.at - told.begun for told in refused]

    alone, none_refused = latencies(4 * MS, 300)
    assert not none_refused
    crowded, refused = latencies(10_000, 6_000)
    assert len(refused) > 1_000
    assert p99(refused) <= 2 * Net.delay_ns, "at once: the way there and back"
    assert len(crowded) > 200
    assert p99(crowded) < 5 * p99(alone), (p99(crowded), p99(alone))


def test_a_port_that_refused_a_command_takes_no_later_one_until_it_comes_again():
    cell = Net(1, serving=ServingOptions(calls_max=2))
    cell.delay_ns = 20 * MS  # longer than a commit takes
    client = cell.client()
    opened = client.ask(machine.append("k", 0))
    assert cell.world.run(until=opened.done, ticks_max=500)
    asked = [client.ask(machine.append("k", number)) for number in range(1, 6)]
    # On their way before the refusal is heard of, and there when there is room again.
    later = []
    for delay in range(1, 4):
        cell.world.at(delay * 5 * MS, lambda: later.append(client.ask(machine.append("k", 10 + len(later)))))
    assert cell.world.run(until=lambda: len(later) == 3 and cell.idle(), ticks_max=500)
    verdicts = [told.verdict for told in asked + later]
    assert verdicts == [True, True] + [False] * 6
    again = client.ask(machine.append("k", 20))
    if again.error is not None:  # still within the time to come back
        assert isinstance(again.error, OverloadedError)
        cell.world.run(30)
        again = client.ask(machine.append("k", 20))
    assert cell.world.run(until=again.done, ticks_max=500)
    assert cell.held("k") == [0, 1, 2, 20]


def test_who_asks_a_client_that_was_refused_is_told_at_once_until_it_is_time_to_come_back():
    cell = Net(4, serving=ServingOptions(calls_max=1))
    client = cell.client()
    opened = client.ask(machine.append("k", 0))
    assert cell.world.run(until=opened.done, ticks_max=500)
    first, second = client.ask(machine.append("k", 1)), client.ask(machine.append("k", 2))
    assert cell.world.run(until=second.done, ticks_max=500)
    assert isinstance(second.error, OverloadedError)
    third = client.ask(machine.append("k", 3))
    assert third.done()
    assert third.error.retry_after_ns == second.error.retry_after_ns > 0
    assert cell.world.run(until=first.done, ticks_max=500)
    cell.world.run(second.error.retry_after_ns // 10_000_000 + 2)
    fourth = client.ask(machine.append("k", 4))
    assert cell.world.run(until=fourth.done, ticks_max=500)
    assert cell.held("k") == [0, 1, 4]


def test_what_waits_behind_a_command_that_is_too_large_for_a_session_of_many_is_refused_with_it():
    cell = Net(5)
    client = cell.client()
    opened = client.ask(machine.append("k", 0))
    assert cell.world.run(until=opened.done, ticks_max=500)
    large = client.ask(machine.put("k", "x" * 200_000))
    behind = [client.ask(machine.append("k", number)) for number in range(1, 1_500)]  # more than fly at once
    assert cell.world.run(until=cell.idle, ticks_max=1_000)
    assert large.verdict is False
    assert {told.verdict for told in behind} == {False}
    assert cell.held("k") == [0]


def test_one_client_among_others_does_not_take_all_of_a_port():
    cell = Net(6, serving=ServingOptions(calls_max=100, connection_calls_max=10))
    greedy, modest = cell.client(), cell.client()
    opened = [client.ask(machine.append("k", 0)) for client in (greedy, modest)]
    assert cell.world.run(until=cell.idle, ticks_max=500)
    assert all(told.verdict for told in opened)
    many = [greedy.ask(machine.append("many", number)) for number in range(50)]
    one = modest.ask(machine.append("k", 1))
    assert cell.world.run(until=cell.idle, ticks_max=500)
    assert [told.verdict for told in many] == [True] * 10 + [False] * 40
    assert "of this client wait for an answer, the limit" in str(many[-1].error)
    assert one.verdict


def test_nothing_that_waits_behind_an_expired_session_is_sent_in_a_new_one(monkeypatch):
    monkeypatch.setitem(Sessions.__init__.__kwdefaults__, "sessions_max", 2)
    cell = Net(7)
    client = cell.client()
    told = client.ask(machine.append("k", 0))
    assert cell.world.run(until=told.done, ticks_max=500)
    for _ in range(3):
        cell.open()
    asked = [client.ask(machine.append("k", number)) for number in range(1, 1_500)]  # more than fly at once
    assert cell.world.run(until=cell.idle, ticks_max=1_000)
    assert {type(told.error) for told in asked[:1_024]} == {SessionExpiredError}
    assert {told.verdict for told in asked[1_024:]} == {False}
    assert cell.held("k") == [0]


def test_a_member_that_says_nothing_is_left_for_another_one():
    cell = Net(8)
    client = cell.client(patience=5)
    first = client.ask(machine.append("k", 0))
    assert cell.world.run(until=first.done, ticks_max=500)
    here = client.stream.node
    _, _, streams = cell.port(here)
    streams.clear()  # what is said to it arrives nowhere
    client._gone = lambda: False
    asked = client.ask(machine.append("k", 1))
    assert cell.world.run(until=asked.done, ticks_max=200)
    assert client.stream.node != here
    assert cell.held("k") == [0, 1]
