"""Eventual and hybrid epochs on real logs and sockets: under load, over restarts, with sessions that go about."""

from __future__ import annotations

import asyncio

from engines import Engines, eventually

from nova.consensus.adaptive import AdaptiveConsensus, Observation
from nova.consensus.core import UnknownOutcomeError
from nova.consensus.frontier import Frontier
from nova.consensus.steering import steer
from nova.sim.machine import Bags, answer, append, get

REGIONS = {"regions": {"a": "east", "b": "east", "c": "west"}}


def run(scenario, folder, **options):
    async def inner():
        async with Engines(folder, "abc", machine=Bags, **options) as engines:
            await engines.start()
            await asyncio.wait_for(scenario(engines), 60)

    asyncio.run(inner())


async def switched(engines, protocol, options=None):
    await eventually(lambda: all(engine.status().settled for engine in engines))
    epoch = await engines["a"].switch(protocol, options=options)
    await eventually(lambda: all(engine.status().epoch == epoch for engine in engines))


def test_there_and_back_under_load(tmp_path):
    async def scenario(engines):
        stopping, sent = False, dict.fromkeys("abc", 0)

        async def call(name):
            while not stopping:
                sent[name] += 1
                try:
                    await engines[name].propose(append(name, sent[name]))
                except UnknownOutcomeError as error:  # applied, and asked again over a switch: no answer was kept
                    if "FORGOTTEN" not in str(error):
                        raise

        await engines.leader()
        tasks = [asyncio.ensure_future(call(name)) for name in sent]
        for protocol, options in (("eventual", {"w": 1}), ("hybrid", REGIONS), ("eventual", None), ("raft", None)):
            before = dict(sent)
            await eventually(lambda before=before: all(sent[name] > before[name] + 10 for name in sent))
            await switched(engines, protocol, options)
        before = dict(sent)
        await eventually(lambda: all(sent[name] > before[name] + 10 for name in sent))
        stopping = True
        await asyncio.gather(*tasks)
        for engine in engines:
            for name, count in sent.items():
                assert answer(await engine.read(get(name))) == list(range(1, count + 1))

    run(scenario, tmp_path)


def test_a_session_that_goes_about_reads_what_it_wrote(tmp_path):
    async def scenario(engines):
        await engines.leader()
        for protocol, options in (("eventual", {"w": 1}), ("hybrid", REGIONS)):
            await switched(engines, protocol, options)
            seen = Frontier()
            for value in range(30):
                writer, reader = engines["abc"[value % 3]], engines["abc"[(value + 1) % 3]]
                await writer.propose(append(protocol, value))
                seen = seen.join(writer.frontier)
                found, _ = await asyncio.gather(reader.read(get(protocol), after=seen), reader.read(get(protocol)))
                assert answer(found) == list(range(value + 1))
                seen = seen.join(reader.frontier)

    run(scenario, tmp_path)


def test_what_was_acknowledged_is_there_after_all_restart(tmp_path):
    async def scenario(engines):
        await engines.leader()
        for protocol, options in (("eventual", None), ("hybrid", REGIONS)):
            await switched(engines, protocol, options)
            for value in range(20):
                await engines["abc"[value % 3]].propose(append(protocol, value))
            await eventually(lambda: all(engine.status().settled for engine in engines))
            for name in "abc":
                await engines.stop(name)
            await engines.start()
            await eventually(
                lambda protocol=protocol: all(
                    engine._replica.machine.values.get(protocol) == list(range(20)) for engine in engines
                )
            )
            assert {engine.status().epoch.protocol for engine in engines} == {protocol}

    run(scenario, tmp_path, checkpoint_entries=7)


def test_61_a_controller_lets_convergent_keys_go_on_eventually_when_members_are_far_apart(tmp_path):
    async def scenario(engines):
        await engines.leader()
        rtt = {"ms": 20.0}
        told = []
        tasks = [
            asyncio.ensure_future(
                steer(
                    engine,
                    AdaptiveConsensus("classic", dwell_ns=0),
                    lambda: Observation(rtt_ms=rtt["ms"], regions=3),
                    every_s=0.02,
                    decided=told.append,
                    convergent=True,
                )
            )
            for engine in engines
        ]
        await engines["a"].propose(append("k", 1))
        rtt["ms"] = 300.0
        await eventually(lambda: {engine.status().epoch.protocol for engine in engines} == {"eventual"})
        await engines["c"].propose(append("k", 2))
        await eventually(lambda: all(engine.status().settled for engine in engines))
        assert "rtt > 200 ms" in told[0].reason
        rtt["ms"] = 20.0
        await eventually(lambda: {engine.status().epoch.protocol for engine in engines} == {"raft"})
        assert answer(await engines["b"].read(get("k"))) == [1, 2]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scenario, tmp_path)
