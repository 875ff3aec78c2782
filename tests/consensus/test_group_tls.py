"""A consensus group and its clients over TLS: certificates stand for the key, and say who may sit at which port."""

import asyncio

import pytest
from engines import Engines, free_ports

from nova.consensus.client import ConsensusClient
from nova.consensus.serving import ClientServer
from nova.errors import UnavailableError, UsageError
from nova.sim.machine import answer, append, get
from nova.transport.tls import Tls
from tests import authorities


def member(name):
    return authorities.tls(name, "r", "group", cluster="nova")


def client(name="ops"):
    return Tls(authorities.files(name, "", "group", cluster="nova", client=True), cluster="nova")


class Secured(Engines):
    def make(self, name, **more):
        return super().make(name, tls=member(name), **more)


def run(scenario, folder):
    async def inner():
        async with Secured(folder) as engines:
            await asyncio.wait_for(scenario(engines), 60)

    asyncio.run(inner())


def test_members_and_clients_with_certificates_agree_and_others_are_refused(tmp_path):
    async def scenario(engines):
        await engines.start()
        ports = {name: f"127.0.0.1:{port}" for name, port in zip("abc", free_ports(3), strict=True)}
        servers = [ClientServer(engines[name], ports[name], tls=member(name), addresses=ports) for name in "abc"]
        try:
            for server in servers:
                await server.start()
            async with ConsensusClient(ports, tls=client(), name="whatever it says") as asking:
                await asking.propose(append("k", 1))
                assert answer(await asking.read(get("k"))) == [1]
            async with ConsensusClient(ports, tls=member("a")) as asking:  # a node may be a client
                await asking.propose(append("k", 2))
            async with ConsensusClient(ports) as asking:
                with pytest.raises(UnavailableError, match="and you do not: set"):
                    await asking.propose(append("k", 3), timeout_s=1)
            # A client at the port of members: its certificate is for clients.
            async with ConsensusClient([engines.addresses["a"]], tls=client()) as asking:
                with pytest.raises(UnavailableError, match="is for clients, and this is a port of nodes"):
                    await asking.propose(append("k", 4), timeout_s=1)
            await engines.same()
        finally:
            for server in servers:
                await server.aclose()

    run(scenario, tmp_path)


def test_certificates_do_for_a_key_beyond_loopback(tmp_path):
    with pytest.raises(UsageError, match="give a cluster key or tls"):
        Engines(tmp_path).make("a", listen="0.0.0.0:0")
    assert Secured(tmp_path).make("a", listen="0.0.0.0:0").node == "a"
    with pytest.raises(UsageError, match="or tls"):
        ConsensusClient(["10.1.2.3:7600"])
    ConsensusClient(["10.1.2.3:7600"], tls=client())
