import asyncio
import random

import pytest

from nova.errors import LimitError, PeerError
from nova.sim import loop as virtual
from nova.sim.transport import Links, SimTransport
from nova.transport.base import Identity
from nova.transport.choose import AutoTransport
from nova.transport.mesh import Mesh
from nova.transport.tcp import TcpTransport
from nova.transport.uring import EpollTransport

KEY = bytes(32)


class Node:
    """One node with a mesh; remembers all that it was told."""

    def __init__(self, name, links, *, incarnation=1, address=None, seed=0, make=TcpTransport):
        self.address = address or f"{name}:1"
        self.identity = Identity(name, "r", "c", incarnation, self.address)
        self.got, self.ups, self.downs = [], [], []
        self.transport = SimTransport(self.identity, links, key=KEY) if links else make(self.identity, key=KEY)
        self.mesh = Mesh(
            self.transport,
            self.identity,
            on_message=lambda node, data: self.got.append((node, bytes(data))),
            on_up=lambda who: self.ups.append((who.node, who.incarnation)),
            on_down=lambda who, why: self.downs.append((who.node, why)),
            chance=random.Random(seed),
        )

    async def start(self):
        self.address = await self.mesh.listen(self.address)
        return self

    def live(self):
        return sorted(who.node for who in self.mesh.connected())

    async def stop(self):
        await self.mesh.close()
        await self.transport.close()


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def cluster(links, names):
    nodes = [await Node(name, links, seed=number).start() for number, name in enumerate(names)]
    everybody = {node.identity.node: node.address for node in nodes}
    for node in nodes:
        node.mesh.set_peers(everybody)
    await until(lambda: all(len(node.live()) == len(names) - 1 for node in nodes))
    return nodes


@pytest.mark.parametrize("seed", range(20))
def test_all_find_each_other_and_double_dials_settle_on_one_stream(seed):
    async def test():
        chance = random.Random(seed)
        links = Links(chance, delay=0.15, jitter_ratio=3.0)  # slower than the larger name waits: double dials
        nodes = await cluster(links, "abc")
        await asyncio.sleep(20)
        assert [node.live() for node in nodes] == [["b", "c"], ["a", "c"], ["a", "b"]]
        assert len(links._pipes) == 6  # three streams, two pipes each
        for node in nodes:
            for other in node.live():
                assert node.mesh.send(other, node.identity.node.encode())
        await asyncio.sleep(2)
        for node in nodes:
            assert sorted(node.got) == [(n, n.encode()) for n in node.live()]

    virtual.run(test())


@pytest.mark.parametrize("make", [TcpTransport, EpollTransport, AutoTransport])
def test_a_mesh_works_over_real_sockets(make):
    async def test():
        nodes = [await Node(name, None, address="127.0.0.1:0", make=make).start() for name in "ab"]
        nodes[0].mesh.dial(nodes[1].address)
        await until(lambda: all(node.live() for node in nodes))
        assert nodes[0].mesh.send("b", b"hello")
        assert not nodes[0].mesh.send("z", b"nobody")
        await until(lambda: nodes[1].got == [("a", b"hello")])
        await until(lambda: nodes[0].mesh.stats()["b"].rtt_ms > 0)
        stats = nodes[0].mesh.stats()["b"]
        assert stats.connected
        assert stats.sent_bytes > 100
        assert stats.received_bytes > 100
        assert stats.incarnation == 1
        for node in nodes:
            await node.stop()
        await node.stop()
        assert nodes[1].downs
        assert "shuts down" in nodes[1].downs[0][1]

    asyncio.run(test())


def test_a_broken_stream_is_dialled_again():
    async def test():
        links = Links(random.Random(1), delay=0.001)
        a, b = await cluster(links, "ab")
        for _ in range(5):
            before = len(a.ups)
            links.break_streams("a", "b")
            await until(lambda before=before: len(a.ups) > before and b.live() and a.live())
        assert a.mesh.send("b", b"again")
        await until(lambda: ("a", b"again") in b.got)

    virtual.run(test())


def test_a_cut_breaks_refuses_and_heals_at_once():
    async def test():
        a, b, c = await cluster(Links(random.Random(1), delay=0.001), "abc")
        b.mesh.cut({"a"})
        assert not b.mesh.send("a", b"x")
        assert b.downs == [("a", "cut on purpose")]
        await until(lambda: a.live() == ["c"])
        await asyncio.sleep(30)  # dialled all the time, refused all the time
        assert a.live() == ["c"]
        assert b.live() == ["c"]
        assert c.live() == ["a", "b"]
        assert all(node != "a" for node, _ in b.ups[2:])
        a.mesh.heal()
        b.mesh.heal()
        await until(lambda: a.live() == ["b", "c"], 1.0)

    virtual.run(test())


def test_a_seed_is_dialled_until_it_answers_or_is_forgotten():
    async def test():
        links = Links(random.Random(1), delay=0.001)
        a = await Node("a", links).start()
        a.mesh.dial("b:1")
        a.mesh.dial("never:1")
        await asyncio.sleep(20)
        assert not a.ups
        b = await Node("b", links).start()
        await until(lambda: a.live() == ["b"])
        a.mesh.forget("never:1")
        a.mesh.forget("never:1")
        await asyncio.sleep(0)
        assert not a.mesh._seeds
        await b.stop()

    virtual.run(test())


def test_a_node_that_dials_itself_stops():
    async def test():
        a = await Node("a", Links(random.Random(1))).start()
        a.mesh.dial("a:1")
        await until(lambda: not a.mesh._seeds)
        assert not a.ups

    virtual.run(test())


def test_a_new_life_replaces_the_old_one():
    async def test():
        links = Links(random.Random(1), delay=0.01)
        a, b = await cluster(links, "ab")
        links.cut("b", "a")  # a does not hear how the old life ends
        for stream in list(b.transport._streams):
            stream._pipe.other.stream = None
        b.transport.crash()
        links.heal()
        again = await Node("b", links, incarnation=2).start()
        again.mesh.set_peers({"a": a.address})
        await until(lambda: ("b", 2) in a.ups and again.live())
        assert a.mesh.stats()["b"].incarnation == 2
        again.mesh.send("a", b"second life")
        await until(lambda: ("b", b"second life") in a.got)

    virtual.run(test())


def test_a_second_node_of_the_same_name_is_refused_with_a_clear_line(caplog):
    async def test():
        links = Links(random.Random(1), delay=0.01)
        a, _b = await cluster(links, "ab")
        double = await Node("b", links, address="elsewhere:1").start()
        double.mesh.dial(a.address)
        await asyncio.sleep(5)
        assert a.live() == ["b"]
        assert a.mesh.connected()[0].address == "b:1"
        assert a.downs == []
        namesake = await Node("a", links, address="third:1", incarnation=5).start()
        namesake.mesh.dial(a.address)
        await asyncio.sleep(5)

    virtual.run(test())
    assert "node b at elsewhere:1 is refused: a node of that name runs at b:1" in caplog.text
    assert "the name of this node" in caplog.text


def test_peers_no_longer_wanted_are_not_dialled_again():
    async def test():
        links = Links(random.Random(1), delay=0.001)
        a, b = await cluster(links, "ab")
        a.mesh.set_peers({})
        b.mesh.set_peers({})
        links.break_streams("a", "b")
        await asyncio.sleep(20)
        assert not a.live()
        assert not b.live()

    virtual.run(test())


@pytest.mark.parametrize(
    ("error", "tracebacks", "reason"),
    [
        (PeerError("batch of another cluster"), 0, "batch of another cluster"),
        (LimitError("full"), 1, "could not be handled: LimitError('full')"),
        (ZeroDivisionError("a bug"), 1, "could not be handled: ZeroDivisionError('a bug')"),
    ],
    ids=["PeerError", "NovaError", "bug"],
)
@pytest.mark.parametrize("receiver", "ab")
def test_a_message_that_cannot_be_handled_costs_its_stream_and_nothing_else(
    error, tracebacks, reason, receiver, caplog
):
    async def test():
        nodes = {node.identity.node: node for node in await cluster(Links(random.Random(1), delay=0.001), "abc")}
        here, there = nodes[receiver], nodes["a" if receiver == "b" else "b"]
        deliver = here.mesh._on_message

        def handle(node, data):
            if data == b"poison":
                raise error
            deliver(node, data)

        here.mesh._on_message = handle
        caplog.set_level("INFO", "nova.transport")
        caplog.clear()
        assert there.mesh.send(receiver, b"poison")
        await until(lambda: here.downs)
        ((node, why),) = here.downs
        assert node == there.identity.node
        assert reason in why
        await until(lambda: len(here.live()) == 2 and len(there.live()) == 2)  # dialled again, by whoever dials
        await asyncio.sleep(5)  # of virtual time: a double dial has settled
        assert there.mesh.send(receiver, b"fine")
        assert nodes["c"].mesh.send(receiver, b"untouched")
        await until(lambda: len(here.got) == 2)
        assert len(here.downs) == 1
        logged = [record for record in caplog.records if reason in record.getMessage()]
        assert len(logged) == 1
        assert sum(record.exc_info is not None for record in caplog.records) == tracebacks

    virtual.run(test())
