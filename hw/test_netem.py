"""Wide networks as netem makes them: our streams stay whole and in order, a consensus group keeps its promises."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from engines import Engines

from nova.errors import NovaError
from nova.sim.linearize import Call, Register, check_linearizable
from nova.sim.machine import answer, cas, get, put
from nova.transport.base import Identity
from nova.transport.mesh import Mesh
from nova.transport.tcp import TcpTransport

KEY = bytes(range(32))

PROFILES = {
    "metro": "delay 1ms",
    "continent": "delay 15ms 2ms distribution normal loss 0.3%",
    "ocean": "delay 60ms 5ms loss 0.1% rate 50mbit",
    "lossy": "delay 10ms 2ms loss 1%",
    "reordering": "delay 10ms reorder 25% 50%",
    "narrow": "delay 5ms rate 8mbit",
}
DELAY_MS = {"metro": 1, "continent": 11, "ocean": 50, "lossy": 8, "reordering": 0, "narrow": 5}
"""One way, at least."""


class Node:
    def __init__(self, name):
        self.name, self.got = name, []
        identity = Identity(name, "r", "c", 1, "")
        self.transport = TcpTransport(identity, key=KEY)
        self.mesh = Mesh(
            self.transport,
            identity,
            on_message=lambda node, data: self.got.append((node, bytes(data))),
            on_up=lambda who: None,
            on_down=lambda who, why: None,
            chance=random.Random(name),
        )

    def of(self, node):
        return [data for sender, data in self.got if sender == node]


async def until(condition, seconds=120):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_mesh_carries_stays_whole_and_in_order(wide, profile):
    wide(PROFILES[profile])

    async def test():
        nodes = [Node(name) for name in "abc"]
        addresses = {node.name: await node.mesh.listen("127.0.0.1:0") for node in nodes}
        try:
            for node in nodes:
                # One side dials: of two streams that cross on the way one is given up, with what is in it.
                node.mesh.set_peers({name: place for name, place in addresses.items() if name > node.name})
            await until(lambda: all(len(node.mesh.connected()) == 2 for node in nodes))
            chance = random.Random(3)
            sent = [chance.randbytes(chance.choice([0, 1, 64, 3000, 20_000])) for _ in range(40)]
            began = time.monotonic()
            for message in sent:
                for node in nodes:
                    for other in "abc".replace(node.name, ""):
                        assert node.mesh.send(other, message)
            await until(lambda: all(len(node.got) == 2 * len(sent) for node in nodes))
            took = time.monotonic() - began
            for node in nodes:
                for other in "abc".replace(node.name, ""):
                    assert node.of(other) == sent
                    stats = node.mesh.stats()[other]
                    assert stats.rtt_ms >= 2 * DELAY_MS[profile]
            if profile == "narrow":  # all of it passes the one bottleneck
                assert took > 6 * sum(map(len, sent)) * 8 / 8e6 * 0.8
        finally:
            for node in nodes:
                await node.mesh.close()
                await node.transport.close()

    asyncio.run(test())


@pytest.mark.parametrize("profile", PROFILES)
def test_a_group_keeps_its_promises_also_when_it_loses_its_leader(wide, tmp_path, profile):
    wide(PROFILES[profile])

    async def test():
        # An emulated processor is slow, so members are patient.
        async with Engines(tmp_path, tick_ms=50, timeout_ms=30_000, close_ms=1000) as engines:
            await engines.start()
            await engines.leader()
            history, stop = [], asyncio.Event()
            clients = [asyncio.create_task(client(engines, name, history, stop)) for name in "abc"]
            await until(lambda: sum(call.end is not None for call in history) >= 15)
            lost = (await engines.leader()).node
            await engines.stop(lost)
            count = len(history)
            await until(lambda: sum(call.end is not None for call in history[count:]) >= 15)
            stop.set()
            await asyncio.gather(*clients)
            await engines.start(lost)
            await engines.same()
            verdict = check_linearizable(history, Register())
            assert verdict.ok, verdict

    asyncio.run(asyncio.wait_for(test(), 300))


async def client(engines, name, history, stop):
    """Calls through one member as long as it is there, else through another; what never came back stays open."""
    chance, number = random.Random(name), 0
    while not stop.is_set():
        engine = engines.up.get(name) or next(iter(engines))
        key, number = chance.choice("xy"), number + 1
        value = f"{name}{number}"
        begin = time.monotonic_ns()
        what = chance.choice(["read", "write", "cas"])
        old = next((call.input[-1] for call in reversed(history) if call.key == key and call.input[0] != "read"), None)
        asked = {"read": ("read",), "write": ("write", value), "cas": ("cas", old, value)}[what]
        place = len(history)
        history.append(Call(begin, None, asked, key=key))
        try:
            if what == "read":
                output = answer(await engine.read(get(key)))
            elif what == "write":
                output = answer(await engine.propose(put(key, value)))
            else:
                output = answer(await engine.propose(cas(key, old, value)))
        except NovaError:
            await asyncio.sleep(0.05)
            continue
        history[place] = Call(begin, time.monotonic_ns(), asked, output, key)
