"""Faults as data: what each does to a world, how plans are drawn, written down and read, and made small."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import combinations

import pytest

from nova.cli.app import run
from nova.consensus.raft import Raft
from nova.errors import UsageError
from nova.sim.faults import (
    KINDS,
    OPERATIONS,
    SECOND,
    Change,
    Crash,
    Cut,
    Duplicate,
    FullDisk,
    Heal,
    Loss,
    Partition,
    Pause,
    Reorder,
    Restart,
    Resume,
    Transfer,
    dump_plan,
    load_plan,
    random_plan,
    random_swarm,
)
from nova.sim.group import Group
from nova.sim.network import Link
from nova.sim.shrink import shrink
from nova.sim.subjects import SUBJECTS
from nova.sim.world import World
from nova.types import Outputs

MS = 1_000_000
STEADY = Link(delay_ns_min=MS, jitter_ns_mean=0)


class Counted:
    """Persists each number it hears, and answers when it is on disk; the first one counts at each tick."""

    def __init__(self, name, log, *_):
        self.name, self.log = name, log
        self.kept = [int(record) for _, record in log.replay()]
        self.heard = []
        self.ticks = 0

    def step(self, sender, message):
        self.heard.append(message)
        if sender == "n1":
            return Outputs()
        self.kept.append(message)
        return Outputs(persist=[b"%d" % message], send=[(sender, message)], apply=[message])

    def tick(self):
        self.ticks += 1
        return Outputs(send=[("n1", self.ticks)]) if self.name == "n0" else Outputs()


def counting(seed=0, link=STEADY, **options):
    return World(seed, 2, Counted, network=link, tick_ns=10 * MS, **options)


# ------------------------------------------------------------------------------------------------ what they do


def test_a_paused_node_keeps_its_state_sees_nothing_and_then_gets_everything_at_once():
    world = counting()
    world.run(20)
    world.pause("n1")
    node = world["n1"]
    state = list(node.heard), list(node.kept), node.ticks, node.log.durable
    world.run(30)
    assert (list(node.heard), list(node.kept), node.ticks, node.log.durable) == state
    assert world.up == ["n0"]
    before = world.now
    world.resume("n1")
    assert world.run(until=lambda: len(node.heard) >= len(state[0]) + 29, ticks_max=1)
    assert world.now - before <= world.tick_ns
    assert world["n1"] is node
    assert node.heard == list(range(1, len(node.heard) + 1)), "in the order in which it was sent"
    world.run(10)
    assert node.ticks <= state[2] + 1 + 11, "ticks that it slept through are not made up for"


def test_a_paused_node_promises_nothing_and_a_crash_then_is_a_crash_of_what_was_not_synced():
    told = []
    world = counting(on_event=lambda node, event: told.append(event))
    world.submit("n1", Outputs([b"777"], [("n0", 777)], [777]))
    world.pause("n1")
    sent = world.messages
    world.run(5)
    assert not told
    assert world.messages - sent <= 6, "only n0 talks"
    world.crash("n1")
    sent = world["n0"].ticks
    world.restart("n1")
    assert world.up == ["n0", "n1"]
    world.run(5)
    assert 777 not in told
    assert min(world["n1"].heard) >= sent, "what waited for it is gone"


@pytest.mark.parametrize("seed", range(20))
def test_with_a_full_disk_nothing_is_acknowledged_and_nothing_acknowledged_is_lost(seed):
    told = []
    world = counting(seed, on_event=lambda node, event: told.append((world.now, event)))
    world.plan([FullDisk(200 * MS, "n1"), Restart(300 * MS, "n1"), FullDisk(500 * MS, "n1", False)])
    world.run(50)
    assert world.up == ["n0"], "it stopped, and again when it was started with its disk still full"
    assert told
    assert max(at for at, _ in told) <= 200 * MS
    world.restart("n1")
    kept = list(world["n1"].kept)
    assert [event for _, event in told] == kept[: len(told)]
    world.run(10)
    assert len(told) > len(kept)


def test_bursts_double_and_disorder_what_is_sent_and_end():
    def heard(*faults):
        world = counting(3, Link(delay_ns_min=MS, jitter_ns_mean=30 * MS))
        world.plan(faults)
        world.run(100)
        return world["n1"].heard

    calm = heard()
    assert calm == sorted(set(calm))
    doubled = heard(Duplicate(0, 1.0))
    assert max(Counter(doubled).values()) == 2
    disordered = heard(Reorder(0, 1.0))
    assert disordered != sorted(disordered)
    assert sorted(disordered) == sorted(set(disordered))
    for burst in (Duplicate(0, 1.0), Reorder(0, 1.0), Loss(0, 1.0)):
        assert heard(burst, Heal(0)) == calm
        assert heard(burst, type(burst)(0, 0.0)) == calm


def test_to_mend_leaves_nothing_broken():
    for seed in range(60):
        world = counting(seed)
        plan = random_plan(random.Random(seed), world.names, SECOND, faults=12)
        broken = [fault for fault in plan if not isinstance(fault, Heal | Restart | Resume)]
        world.plan(fault for fault in broken if not (isinstance(fault, FullDisk) and not fault.full))
        world.run(101)
        world.mend()
        heard = len(world["n1"].heard)
        assert world.up == ["n0", "n1"]
        world.run(30)
        assert len(world["n1"].heard) >= heard + 28
        assert world["n1"].log.durable >= len(world["n1"].kept) - 2


# ------------------------------------------------------------------------------------------------ plans


def test_a_drawn_plan_ends_what_it_begins():
    for seed in range(100):
        world = counting(seed)
        plan = random_plan(random.Random(seed), world.names, SECOND, faults=12)
        world.plan(plan)
        assert isinstance(plan[-1], Heal)
        assert [fault.at_ns for fault in plan] == sorted(fault.at_ns for fault in plan)
        world.run(102)
        assert world.up == world.names
        network = world.network
        assert not network.cuts
        assert not network.loss_ratio + network.duplicate_ratio + network.reorder_ratio
        assert all(host.slow_disk_ns == 0 and host.disk._failure is None for host in world._hosts.values())


def test_a_swarm_leaves_about_half_of_all_kinds_out_and_every_two_kinds_meet_alone_and_together():
    swarms = [random_swarm(random.Random(seed), SECOND) for seed in range(400)]
    pairs = list(combinations(KINDS, 2))
    seen = Counter((a in swarm.kinds, b in swarm.kinds, a, b) for swarm in swarms for a, b in pairs)
    assert len(seen) == 4 * len(pairs)
    assert min(seen.values()) > 400 / 4 / 2
    assert len({(swarm.length_ns_mean, swarm.ratio_max, swarm.delay_ns_max) for swarm in swarms}) == 4 * 3 * 3


def test_every_kind_is_drawn_and_a_kind_that_is_out_is_not():
    def drawn(**options):
        nodes = ["n0", "n1", "n2"]
        plans = [random_plan(random.Random(seed), nodes, SECOND, faults=10, **options) for seed in range(60)]
        return {type(fault).__struct_config__.tag for plan in plans for fault in plan}

    assert set(KINDS) <= drawn()
    assert drawn(kinds=OPERATIONS) == {*OPERATIONS, "heal"}
    assert "clock_skew" not in drawn(skew_ns_max=0)
    assert drawn(kinds=["pause"]) == {"pause", "resume", "heal"}


def test_a_plan_is_the_same_after_it_was_written_down():
    for seed in range(50):
        plan = random_plan(random.Random(seed), ["a", "b", "c"], SECOND, faults=10, kinds=KINDS + OPERATIONS)
        assert load_plan(dump_plan(plan)) == plan
    assert load_plan('[{"type":"heal","at_ns":5},{"type":"pause","at_ns":2,"node":"a"}]') == [Pause(2, "a"), Heal(5)]
    assert load_plan(dump_plan([])) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "no array of faults: Expected `array`"),
        ('[{"type":"quake","at_ns":1}]', r"quake.*\$\[0\]"),
        ('[{"type":"crash","node":"n0"}]', "at_ns"),
        ('[{"type":"heal","at_ns":1},{"type":"loss","at_ns":-1,"ratio":0.1}]', r"0.*\$\[1\].at_ns"),
        ('[{"type":"loss","at_ns":1,"ratio":1.5}]', r"<= 1.0.*\$\[0\].ratio"),
        ("[", "no array"),
        (b"\xff", "no array"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_place(text, told):
    with pytest.raises(UsageError, match=told):
        load_plan(text, "plan.json")


@pytest.mark.parametrize("fault", [Crash(0, "n7"), Cut(0, "n0", "n7"), Partition(0, [["n0"], ["n7"]])])
def test_a_fault_of_a_node_that_is_not_there_is_refused(fault):
    with pytest.raises(UsageError, match=r"n7.*the nodes are \['n0', 'n1'\]"):
        counting().plan([fault])


@pytest.mark.parametrize("operation", [Change(0, ["n0"]), Transfer(0, "n1")])
def test_a_world_without_operators_refuses_what_they_do(operation):
    with pytest.raises(UsageError, match="nobody here can"):
        counting().plan([operation])


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_with_its_own_plan_from_a_file_is_the_same_history(seed):
    first = Group(SUBJECTS["raft"], seed, spares=1)
    again = Group(SUBJECTS["raft"], seed, spares=1, faults=load_plan(dump_plan(first.plan)))
    assert first.run() == again.run() == []
    assert first.world.trace == again.world.trace


# ------------------------------------------------------------------------------------------------ small ones


def test_a_plan_is_shrunk_to_the_faults_that_matter_together():
    plan = [Heal(number) for number in range(60)]
    for seed in range(40):
        chance = random.Random(seed)
        wanted = set(chance.sample(range(60), chance.randrange(6)))
        shrunk = shrink(plan, lambda tried, wanted=wanted: wanted <= {fault.at_ns for fault in tried})
        assert [fault.at_ns for fault in shrunk.plan] == sorted(wanted)
        assert shrunk.minimal
        assert shrunk.tries < 200
    few = shrink(plan, lambda tried: len(tried) == 60 or len(tried) == 7, tries_max=3)
    assert (few.tries, few.minimal, few.plan) == (3, False, plan)


def hasty(monkeypatch):
    """A core that acknowledges before its disk has what it acknowledges."""
    done = Raft._done

    def early(self, out):
        out = done(self, out)
        out.early += out.send
        out.send = []
        return out

    monkeypatch.setattr(Raft, "_done", early)


def test_the_command_line_shrinks_a_failing_seed_to_a_plan_that_fails_again(monkeypatch, tmp_path, capsys):
    hasty(monkeypatch)
    base = ["simulate", "--protocol", "raft", "--faults", "30"]
    assert run([*base, "--seeds", "10", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    seed, number = str(told["first"]["seed"]), len(told["first"]["plan"])
    assert told["failing_seeds"][0] == told["first"]["seed"]
    assert run([*base, "--seed", seed, "--shrink"]) == 1
    text = capsys.readouterr().out
    plan = load_plan(text)
    assert len(plan) < number / 4
    (tmp_path / "plan.json").write_text(text)
    replay = ["simulate", "--protocol", "raft", "--seed", seed, "--faults"]
    assert run([*replay, str(tmp_path / "plan.json")]) == 1
    for left_out in range(len(plan)):
        (tmp_path / "less.json").write_text(dump_plan(plan[:left_out] + plan[left_out + 1 :]))
        assert run([*replay, str(tmp_path / "less.json")]) == 0
    monkeypatch.undo()
    capsys.readouterr()
    assert run([*replay, str(tmp_path / "plan.json")]) == 0
    assert run([*replay, str(tmp_path / "plan.json"), "--shrink"]) == 0
    assert "nothing to shrink" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--faults", "-1"], "0 faults or more"),
        (["--faults", "no such file"], "neither a number nor a file"),
        (["--shrink"], "--seed"),
        (["--spares", "1"], "--protocol"),
        (["--protocol", "smoke"], "smoke"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, told, capsys):
    assert run(["simulate", *arguments]) == 2
    assert told in capsys.readouterr().err
