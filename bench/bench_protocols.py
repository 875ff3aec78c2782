"""The four protocols in memory: what a core costs, how often EPaxos is fast, how long a switch keeps silent.

Cores are members without disks and networks: a sync is done at once, a message arrives at once, and all run on one
processor. So these figures are what Python takes, and nothing else. Switching is measured on real members.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from nova.consensus.core import Command, Committed, Epoch, Kind, Persisted, StateWanted, pack
from nova.consensus.epaxos.messages import Accept
from nova.consensus.protocols import protocols
from nova.sim.byzantine import dealt

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "consensus"))

MAKERS = protocols(dealt)
MEMBERS = {"raft": 3, "paxos": 3, "epaxos": 3, "pbft": 4}
DATA = bytes(128)


class Members:
    """Cores of one protocol. PBFT's have real MACs, and signatures that are MACs, too."""

    def __init__(self, protocol):
        names = tuple("abcdefg"[: MEMBERS[protocol]])
        options = {"raft": {"trailing": 0}, "paxos": {"trailing": 0}}.get(protocol, {})
        epoch = Epoch(0, protocol, names, options=options)
        self.cores = {name: MAKERS[protocol](name, epoch, random.Random(name), time.monotonic_ns) for name in names}
        self.flying = deque()
        self.told = dict.fromkeys(names, 0)
        self.slow = set()
        self.numbers = itertools.count(1)
        for name, core in self.cores.items():
            self.take(name, core.recovered())
        while self.cores["a"].leader is None:
            self.take("a", self.cores["a"].tick())
            self.deliver()

    def take(self, name, out):
        for peer, message in (*out.early, *out.send):
            self.flying.append((name, peer, message))
            if type(message) is Accept:
                self.slow.add(message.id)
        for event in out.apply:
            if type(event) is Persisted:
                self.take(name, self.cores[name].advance(event.token))
            elif type(event) is Committed:
                self.told[name] += sum(entry.kind == Kind.COMMANDS for entry in event.entries)
            elif type(event) is StateWanted:
                self.take(name, self.cores[name].checkpointed(event.position, b"state"))

    def deliver(self):
        while self.flying:
            source, target, message = self.flying.popleft()
            self.take(target, self.cores[target].step(source, message))

    def propose(self, name, count=1, key=b""):
        commands = [Command(1, next(self.numbers), DATA, key or b"%d" % n) for n in range(count)]
        self.take(name, self.cores[name].propose([(Kind.COMMANDS, pack(commands))]))

    def forget(self):
        for core in self.cores.values():
            core.compact(core.snapshot(core.status.committed, b"state"))


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("protocol", MEMBERS)
def test_commands_through_cores(benchmark, protocol, batch):
    benchmark.group = f"consensus.cores in memory, {batch} command{'s' * (batch > 1)} an entry"
    entries = 200 if batch == 1 else 50
    benchmark.extra_info["operations"] = entries * batch
    members = Members(protocol)

    def commit():
        before = members.told["a"]
        for number in range(entries):
            members.propose("a", batch, b"" if batch > 1 or protocol != "epaxos" else b"k%d" % number)
            members.deliver()
        if protocol != "epaxos":  # its executed instances are bounded by themselves
            members.forget()
        return members.told["a"] - before

    assert benchmark(commit) == entries


@pytest.mark.parametrize("conflict", [0, 10, 100])
def test_the_fast_path_of_epaxos(benchmark, conflict):
    members, chance = Members("epaxos"), random.Random(conflict)
    began, rounds = time.process_time(), 300
    for number in range(rounds):
        for name in members.cores:  # all three at once: none has heard of the others' commands
            hot = chance.random() * 100 < conflict
            members.propose(name, key=b"hot" if hot else b"%s %d" % (name.encode(), number))
        members.deliver()
    took = time.process_time() - began
    commands = rounds * len(members.cores)
    assert set(members.told.values()) == {commands}
    benchmark.group = "consensus.EPaxos, 3 members that propose at once, by share of commands on one key"
    benchmark.extra_info["figures"] = {
        "fast_path_percent": round(100 * (1 - len(members.slow) / commands), 1),
        "per_s": round(commands / took),
    }
    benchmark.pedantic(lambda: None, rounds=1)
    assert conflict or not members.slow


def test_the_silence_of_a_switch(benchmark, tmp_path):
    """Four members with disks and sockets in one process, 16 callers; the longest time without an answer."""
    from engines import Engines
    from test_engine_switch import LAP, Load, started, switched

    silences = []

    async def scenario():
        async with Engines(tmp_path, "abcd") as engines:
            await started(engines)
            load = Load(engines, 16)
            for protocol in LAP * 5:
                await asyncio.sleep(0.3)
                began = time.monotonic()
                await switched(engines, protocol)
                await asyncio.sleep(0.2)
                acked = [at for at in load.acked if at > began - 0.1]
                silences.append(max(later - earlier for earlier, later in itertools.pairwise(acked)))
            await load.stop()

    asyncio.run(scenario())
    benchmark.group = "consensus.switch of protocols under load, longest silence, 20 times"
    benchmark.extra_info["figures"] = {
        "p50_ms": round(statistics.median(silences) * 1e3, 1), "most_ms": round(max(silences) * 1e3, 1)
    }  # fmt: skip
    benchmark.pedantic(lambda: None, rounds=1)
