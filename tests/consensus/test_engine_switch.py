"""Going from protocol to protocol under load, on real logs and sockets: nothing lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import time
from hashlib import blake2b

import pytest
from engines import Engines, eventually

from nova.consensus.adaptive import AdaptiveConsensus, Observation
from nova.consensus.pbft.auth import Ed25519Keys
from nova.consensus.steering import steer
from nova.crypto import ed25519
from nova.errors import UnavailableError, UsageError
from nova.sim.machine import answer, append, get

LAP = ["epaxos", "pbft", "paxos", "raft"]


def secret(*names):
    return blake2b(" ".join(sorted(names)).encode(), key=b"a test's own", digest_size=32).digest()


def keys(node, epoch):
    """Real keys of a member; a test may know those of all."""
    library = ed25519("a test")
    publics = {
        member: library.Ed25519PrivateKey.from_private_bytes(secret(member)).public_key().public_bytes_raw()
        for member in epoch.members
    }
    return Ed25519Keys(secret(node), publics, {peer: secret(node, peer) for peer in epoch.members})


def run(scenario, folder, names="abcd", **options):
    async def inner():
        async with Engines(folder, names, **options) as engines:
            await asyncio.wait_for(scenario(engines), 100)

    asyncio.run(inner())


async def started(engines):
    for name in engines.voters:
        engine = engines.make(name, keys=keys)
        await engine.start()
        engines.up[name] = engine
    return await engines.leader()


async def switched(engines, protocol):
    """PBFT ends when f + 1 ask; all others when one does."""
    first = engines["a"]
    await eventually(lambda: all(engine.status().settled for engine in engines))
    askers = [engines["a"], engines["b"]] if first.status().epoch.protocol == "pbft" else [first]
    epochs = await asyncio.gather(*(engine.switch(protocol) for engine in askers))
    assert {epoch.protocol for epoch in epochs} == {protocol}
    await eventually(lambda: all(engine.status().epoch == epochs[0] for engine in engines))


class Load:
    """Callers at every member, each with a list of its own."""

    def __init__(self, engines, callers):
        self.engines, self.stopping = engines, False
        self.sent = {f"k{caller}": 0 for caller in range(callers)}
        self.acked = []
        self.tasks = [asyncio.ensure_future(self._call(place, key)) for place, key in enumerate(self.sent)]

    async def _call(self, place, key):
        while not self.stopping:
            engine = list(self.engines)[place % len(list(self.engines))]
            value = self.sent[key]
            self.sent[key] += 1
            assert answer(await engine.propose(append(key, value), key.encode())) == value + 1
            self.acked.append(time.monotonic())

    async def stop(self):
        self.stopping = True
        await asyncio.gather(*self.tasks)


def test_once_around_all_protocols_under_load(tmp_path):
    async def scenario(engines):
        await started(engines)
        load = Load(engines, 16)
        for protocol in LAP:
            before = len(load.acked)
            await eventually(lambda before=before: len(load.acked) > before + 50)
            await switched(engines, protocol)
        before = len(load.acked)
        await eventually(lambda: len(load.acked) > before + 50)
        await load.stop()
        for key, sent in load.sent.items():
            for engine in engines:
                assert answer(await engine.read(get(key))) == list(range(sent))
        await engines.same()
        assert {engine.machine.digest for engine in engines} == {engines["a"].machine.digest}
        assert [engine.status().epoch.number for engine in engines] == [4] * 4
        assert "nova_consensus_switches_total 4" in engines["a"].metrics.render().decode()

    run(scenario, tmp_path)


def test_what_was_written_under_one_protocol_is_there_after_a_restart_under_another(tmp_path):
    async def scenario(engines):
        await started(engines)
        for value in range(5):
            await engines["a"].propose(append("k", value))
        await switched(engines, "paxos")
        await engines["b"].propose(append("k", 5))
        for name in engines.voters:
            await engines.stop(name)
        await started(engines)
        assert {engine.status().epoch.protocol for engine in engines} == {"paxos"}
        assert answer(await engines["c"].read(get("k"))) == list(range(6))
        await engines["d"].propose(append("k", 6))
        await switched(engines, "epaxos")
        assert answer(await engines["c"].read(get("k"))) == list(range(7))

    run(scenario, tmp_path)


def test_who_was_down_for_the_whole_switch_comes_back_into_the_new_epoch(tmp_path):
    async def scenario(engines):
        await started(engines)
        for value in range(5):
            await engines["a"].propose(append("k", value))
        await engines.stop("d")
        await engines["a"].switch("paxos")
        await engines["b"].propose(append("k", 5))
        engines.up["d"] = engines.make("d", keys=keys)
        await engines["d"].start()
        await eventually(lambda: engines["d"].status().epoch.protocol == "paxos")
        assert answer(await engines["d"].read(get("k"))) == list(range(6))

    run(scenario, tmp_path)


def test_what_cannot_start_is_refused_and_nothing_changes(tmp_path):
    async def scenario(engines):
        await engines.start()
        await engines.leader()
        with pytest.raises(UsageError, match="unknown"):
            await engines["a"].switch("zab")
        with pytest.raises(UsageError, match="pbft"):  # nobody gave it keys
            await engines["a"].switch("pbft")
        with pytest.raises(UsageError, match="wavelength"):
            await engines["a"].switch("paxos", options={"wavelength": 7})
        await engines["a"].propose(append("k", 0))
        assert {engine.status().epoch.number for engine in engines} == {0}

    run(scenario, tmp_path, "abc")


def test_of_two_operators_one_is_told_that_he_lost(tmp_path):
    async def scenario(engines):
        await engines.start()
        await engines.leader()
        results = await asyncio.gather(
            engines["a"].switch("paxos"), engines["b"].switch("epaxos"), return_exceptions=True
        )
        lost = [result for result in results if isinstance(result, Exception)]
        assert len(lost) <= 1
        assert all(isinstance(error, UnavailableError) for error in lost), lost
        await eventually(lambda: all(engine.status().epoch.number >= 1 for engine in engines))
        if len(lost) == 1:
            assert {engine.status().epoch.number for engine in engines} == {1}
            assert len({engine.status().epoch.protocol for engine in engines}) == 1
        await engines["c"].propose(append("k", 0))

    run(scenario, tmp_path, "abc")


def test_a_group_follows_its_controllers(tmp_path):
    async def scenario(engines):
        await engines.start()
        await engines.leader()
        seen = Observation(rtt_ms=5.0, regions=1)
        reasons = []
        controllers = {
            engine.node: AdaptiveConsensus(available=("raft", "paxos", "epaxos"), dwell_ns=0) for engine in engines
        }
        tasks = [
            asyncio.ensure_future(
                steer(
                    engine,
                    controllers[engine.node],
                    lambda: seen,
                    every_s=0.02,
                    decided=lambda decision: reasons.append(decision.reason),
                )
            )
            for engine in engines
        ]
        try:
            await engines["a"].propose(append("k", 0))
            assert reasons == []
            seen = Observation(rtt_ms=120.0, regions=5, conflict_rate=0.5)
            await eventually(lambda: all(engine.status().epoch.protocol == "paxos" for engine in engines))
            await engines["b"].propose(append("k", 1))
            seen = Observation(rtt_ms=120.0, regions=5, conflict_rate=0.0)
            await eventually(lambda: all(engine.status().epoch.protocol == "epaxos" for engine in engines))
            assert answer(await engines["c"].read(get("k"))) == [0, 1]
            assert reasons[0].startswith("paxos")
            assert reasons[-1].startswith("epaxos")
        finally:
            for task in tasks:
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes

    run(scenario, tmp_path, "abc")
