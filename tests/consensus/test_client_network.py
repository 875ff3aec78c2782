"""Clients of engines over loopback: real ports, real streams, real disks."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from engines import Engines, eventually, free_ports
from test_engine_switch import keys as pbft_keys

from nova.consensus.answering import ServingOptions
from nova.consensus.client import ClientOptions, ConsensusClient
from nova.consensus.core import OverloadedError, UnknownOutcomeError
from nova.consensus.dialogue import Answers, Found, Opened, client_cluster, question_codec, reply_codec
from nova.consensus.serving import ClientServer
from nova.consensus.sessions import Code, Outcome
from nova.errors import CorruptionError, LimitError, UnavailableError, UsageError
from nova.sim.machine import answer, append, get
from nova.transport import Identity, TcpTransport

KEY = b"a key for clients, of 32 bytes and more"


class Served(Engines):
    """Engines with ports for clients."""

    def __init__(self, folder, names="abc", *, key=None, serving=None, kinds=None, others="", **options):
        super().__init__(folder, names, others=others, **options)
        every = [*names, *others]
        self.ports = {name: f"127.0.0.1:{port}" for name, port in zip(every, free_ports(len(every)), strict=True)}
        self.key, self.serving, self.kinds = key, serving, kinds or {}
        self.servers = {}

    async def start(self, *names, **more):
        for name in names or self.voters:
            engine = self.make(name, **more)
            await engine.start()
            self.up[name] = engine
            kind = self.kinds.get(name, ClientServer)
            server = self.servers[name] = kind(
                engine, self.ports[name], key=self.key, addresses=self.ports, options=self.serving
            )
            assert await server.start() == self.ports[name]
        return self

    async def stop(self, name):
        await self.servers.pop(name).aclose()
        await super().stop(name)

    async def __aexit__(self, *ended):
        for server in self.servers.values():
            await server.aclose()
        await super().__aexit__(*ended)

    def client(self, *names, **options):
        addresses = [self.ports[name] for name in names or self.voters]
        return ConsensusClient(addresses, **{"key": self.key, **options})


def run(scenario, folder, names="abc", **options):
    async def inner():
        async with Served(folder, names, **options) as engines:
            await asyncio.wait_for(scenario(engines), 60)

    asyncio.run(inner())


async def numbers(client, key="k", consistency="linearizable"):
    return answer(await client.read(get(key), consistency)) or []


# --- calls ------------------------------------------------------------------------------------------------------------


def test_commands_take_effect_once_in_order_and_reads_see_them(tmp_path):
    async def scenario(engines):
        await engines.start()
        async with engines.client() as client:
            assert answer(await client.propose(append("k", 0))) == 1
            count = 2_500  # more than fly at once
            told = await client.propose_many([append("k", n) for n in range(1, count)])
            assert [answer(each) for each in told] == list(range(2, count + 1))
            assert await client.propose_many([]) == []
            assert await numbers(client) == list(range(count))
            assert await numbers(client, consistency="local") == list(range(count))
            with pytest.raises(UsageError, match="does not read by lease"):
                await client.read(get("k"), "lease")
            with pytest.raises(UsageError, match="'eventual'; it is one of linearizable, lease, local"):
                await client.read(get("k"), "eventual")
            for consistency in ("linearizable", "local"):
                with pytest.raises(UsageError, match="the machine refused the query"):
                    await client.read(b"\xc1", consistency)
            with pytest.raises(LimitError, match="the limit is 262144"):
                await client.propose(b"x" * 300_000)
            status = await client.status()
            assert status.members == ("a", "b", "c")
            assert status.protocol == "raft"
            assert status.connections == 1
        await engines.same()

    run(scenario, tmp_path)


def test_the_page_of_metrics_shows_the_port(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        (engine,) = engines

        def shown(name):
            page = engine.metrics.render().decode()
            return float(
                next(line.split()[1] for line in page.splitlines() if line.startswith(f"nova_consensus_{name} "))
            )

        assert shown("clients") == 0
        async with engines.client("a"), engines.client("a") as client:
            asked = [asyncio.ensure_future(client.propose(append("k", 1)))]
            asked += [asyncio.ensure_future(client.read(get("k"))) for _ in range(20)]
            await eventually(lambda: shown("clients") == 2)
            # Nobody leads: they wait, and those beyond the limit do not.
            await eventually(lambda: shown("client_commands_waiting") and shown("client_reads_waiting") == 10)
            assert shown("client_calls_refused") == 10
            await engines.start("b")
            told = await asyncio.gather(*asked, return_exceptions=True)
            assert sum(isinstance(error, OverloadedError) for error in told) == 10
            assert shown("client_commands_answered") == 2  # with the opening of the session
            assert shown("client_commands_waiting") == shown("client_reads_waiting") == 0
        await eventually(lambda: shown("clients") == 0)
        await engines.servers["a"].aclose()
        assert shown("client_commands_answered") == 0  # there is no port any more

    run(scenario, tmp_path, "ab", serving=ServingOptions(connection_calls_max=10))


def test_many_clients_at_all_members_are_served_at_once(tmp_path):
    async def scenario(engines):
        await engines.start()
        clients = [engines.client("abc"[place % 3]) for place in range(9)]
        for client in clients:
            await client.start()

        async def work(place, client):
            for n in range(20):
                value = place * 100 + n
                await client.propose(append("k", value))
                assert value in await numbers(client)

        await asyncio.gather(*(work(place, client) for place, client in enumerate(clients)))
        final = await numbers(clients[0])
        assert len(final) == len(set(final)) == 180
        for place in range(9):
            mine = [value for value in final if value // 100 == place]
            assert mine == sorted(mine)
        await asyncio.gather(*(client.aclose() for client in clients))

    run(scenario, tmp_path)


def test_a_lease_read_is_answered_where_the_group_has_leases(tmp_path):
    async def scenario(engines):
        await engines.start()
        async with engines.client() as client:
            await client.propose(append("k", 1))
            assert await numbers(client, consistency="lease") == [1]

    run(scenario, tmp_path, protocol={"lease_reads": True})


def test_a_local_read_shows_at_least_what_its_client_has_seen(tmp_path):
    async def scenario(engines):
        await engines.start()
        leader = await engines.leader()
        behind = next(engine for engine in engines if engine is not leader)
        async with engines.client(leader.node) as client:
            await client.propose(append("k", 1))
            position = client._core.position
            assert position > 0
        await eventually(lambda: behind.applied >= position)
        behind.cut([engine.node for engine in engines if engine is not behind])
        async with engines.client(leader.node) as client:
            await client.propose(append("k", 2))
            position = client._core.position
        assert behind.applied < position
        async with engines.client(behind.node, options=ClientOptions(follow_leader=False)) as client:
            assert await numbers(client, consistency="local") == [1]  # old, and that is what was asked for
            client._core.position = position
            with pytest.raises(UnavailableError, match="no answer"):
                await client.read(get("k"), "local", timeout_s=0.3)
            waits = asyncio.ensure_future(numbers(client, consistency="local"))
            behind.cut([])
            assert await waits == [1, 2]

    run(scenario, tmp_path)


# --- where it asks ----------------------------------------------------------------------------------------------------


def test_a_client_goes_to_the_leader_and_goes_on_when_that_closes(tmp_path):
    async def scenario(engines):
        await engines.start()
        leader = await engines.leader()
        follower = await engines.follower()
        async with engines.client(follower.node) as client:  # it knows one member, and is told of the others
            await client.propose(append("k", 0))
            await eventually(lambda: client.standing.node == leader.node)
            done = 0
            stop = asyncio.Event()

            async def work():
                nonlocal done
                while not stop.is_set():
                    done += 1
                    await client.propose(append("k", done))

            worker = asyncio.ensure_future(work())
            await eventually(lambda: done > 10)
            await engines.stop(leader.node)
            seen = done
            await eventually(lambda: done > seen + 10)
            stop.set()
            await worker
            assert client.standing.node != leader.node
            assert await numbers(client) == list(range(done + 1))

    run(scenario, tmp_path)


def test_without_a_member_nothing_is_sent_and_that_is_told(tmp_path):
    async def scenario(engines):
        async with engines.client() as client:
            with pytest.raises(
                UnavailableError, match=r"not applied; no member is connected: .*connection refused"
            ) as told:
                await client.propose(b"x", timeout_s=0.2)
            assert not isinstance(told.value, UnknownOutcomeError)
            with pytest.raises(UnavailableError, match="the read has no answer"):
                await client.read(b"x", timeout_s=0.1)
            waits = asyncio.ensure_future(client.propose(append("k", 1)))
            await engines.start()
            assert answer(await waits) == 1

    run(scenario, tmp_path)


def test_a_group_that_lost_its_majority_leaves_in_doubt_what_was_sent(tmp_path):
    async def scenario(engines):
        await engines.start()
        async with engines.client(options=ClientOptions(patience_ms=200)) as client:
            await client.propose(append("k", 0))
            for name in [engine.node for engine in engines if engine is not await engines.leader()]:
                await engines.stop(name)
            with pytest.raises(UnknownOutcomeError, match="may or may not have been applied"):
                await client.propose(append("k", 1), timeout_s=0.6)
            down = [name for name in "abc" if name not in engines.up]
            behind = asyncio.ensure_future(client.propose(append("k", 2)))
            await engines.start(*down)
            assert answer(await behind) == 3
            assert await numbers(client) == [0, 1, 2]  # in order: what nobody waits for went before it

    run(scenario, tmp_path, close_ms=100)


def test_a_member_that_has_stopped_for_good_drops_its_clients_and_takes_none(tmp_path):
    async def scenario(engines):
        await engines.start()
        async with engines.client() as client:
            await client.propose(append("k", 0))
            stopped = await engines.leader()
            await eventually(lambda: client.standing.node == stopped.node)
            stopped._fatal(CorruptionError("the impossible was seen"))
            assert answer(await client.propose(append("k", 1))) == 2
            assert client.standing.node != stopped.node
        async with engines.client(stopped.node) as client:
            with pytest.raises(UnavailableError, match=f"the member {stopped.node} has stopped"):
                await client.read(get("k"), "local", timeout_s=0.3)
        del engines.up[stopped.node]
        await engines.servers.pop(stopped.node).aclose()
        await stopped.aclose()

    run(scenario, tmp_path)


def test_a_client_goes_on_while_protocols_change(tmp_path):
    async def scenario(engines):
        await engines.start(keys=pbft_keys)
        async with engines.client() as client:
            stop, done = asyncio.Event(), {}

            async def work(place):
                done[place] = 0
                while not stop.is_set():
                    await client.propose(append(f"k{place}", done[place]), f"k{place}".encode())
                    done[place] += 1

            workers = [asyncio.ensure_future(work(place)) for place in range(5)]
            for protocol in ("epaxos", "pbft", "paxos", "raft"):
                seen = sum(done.values())
                await eventually(lambda seen=seen: sum(done.values()) > seen + 20)
                await eventually(lambda: all(engine.status().settled for engine in engines))
                askers = list(engines)[: 2 if engines["a"].status().epoch.protocol == "pbft" else 1]
                await asyncio.gather(*(engine.switch(protocol) for engine in askers))
                await eventually(lambda protocol=protocol: client.standing.protocol == protocol)
            stop.set()
            await asyncio.gather(*workers)
            for place in range(5):
                assert await numbers(client, f"k{place}") == list(range(done[place]))

    run(scenario, tmp_path, "abcd")


def test_a_client_finds_members_that_came_after_it_and_leaves_those_that_went(tmp_path):
    async def scenario(engines):
        await engines.start()
        async with engines.client() as client:
            await client.propose(append("k", 0))
            leader = await engines.leader()
            await engines.start("d")
            await leader.change(["a", "b", "c"], ["d"])
            await leader.change(["a", "b", "c", "d"])
            while (leader := await engines.leader()) is not engines["d"]:
                with contextlib.suppress(UnavailableError):  # on a slow machine it is given up, and asked again
                    await leader.transfer("d", timeout_s=1)
            for gone in [name for name in "abc" if name != "a"]:
                await engines["d"].change([name for name in engines["d"].status().core.members if name != gone])
                await engines.stop(gone)
            for n in range(1, 5):
                await client.propose(append("k", n))
            await eventually(lambda: client.standing.node == "d")
            assert await numbers(client) == [0, 1, 2, 3, 4]

    run(scenario, tmp_path, others="d", close_ms=200)


# --- who may ask, and how much ----------------------------------------------------------------------------------------


def test_clients_prove_a_key_and_members_another(tmp_path):
    async def scenario(engines):
        await engines.start()
        async with engines.client() as client:
            await client.propose(append("k", 0))
        for key, why in ((None, "asks for a cluster key"), (b"x" * 32, "another cluster key")):
            async with engines.client(key=key) as client:
                with pytest.raises(UnavailableError, match=why):
                    await client.propose(append("k", 1), timeout_s=0.5)
        async with ConsensusClient([engines.addresses["a"]], key=KEY) as client:  # that of the members
            with pytest.raises(UnavailableError, match="not of cluster 'nova/clients'"):
                await client.propose(append("k", 1), timeout_s=0.5)
        with pytest.raises(UsageError, match="give a key for clients"):
            ClientServer(engines["a"], "0.0.0.0:0")
        with pytest.raises(UsageError, match="give the key that its members ask of clients"):
            ConsensusClient(["10.1.2.3:7600"])
        with pytest.raises(UsageError, match="at least 1 of a member"):
            ConsensusClient([])
        with pytest.raises(UsageError, match="2 addresses, 1 of which may lie; give 3 or more"):
            ConsensusClient(["127.0.0.1:1", "127.0.0.1:2"], faults=1)

    run(scenario, tmp_path, key=KEY)


def test_more_clients_than_the_limit_are_told_so(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        first = [engines.client("a") for _ in range(2)]
        for client in first:
            await client.start()
            await client.propose(append("k", 0))
        async with engines.client("a") as third:
            with pytest.raises(UnavailableError, match="2 clients are connected, the limit"):
                await third.propose(append("k", 1), timeout_s=0.3)
            await first[0].aclose()
            assert answer(await third.propose(append("k", 2))) == 3
        await first[1].aclose()

    run(scenario, tmp_path, "a", serving=ServingOptions(connections_max=2))


def test_reads_and_commands_beyond_the_limit_are_refused_with_a_time_to_come_back(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        async with engines.client("a") as client:
            await client.propose(append("k", 0))
            told = await asyncio.gather(*(client.propose(append("k", n)) for n in range(1, 50)), return_exceptions=True)
            refused = [each for each in told if isinstance(each, OverloadedError)]
            assert len(refused) == 39
            assert all(error.retry_after_ns > 0 for error in refused)
            assert await numbers(client) == list(range(11))
            reads = await asyncio.gather(*(numbers(client) for _ in range(50)), return_exceptions=True)
            assert sum(isinstance(each, OverloadedError) for each in reads) >= 30
            assert engines.servers["a"].refused >= 31

    run(scenario, tmp_path, "a", serving=ServingOptions(calls_max=10))


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"\x00\x01nonsense", "not a nova message"),
        (("p", 0, 1, [(b"x", b"")]), "command 1 of session 0"),
        (("p", 1, 0, [(b"x", b"")]), "command 0 of session 1"),
        (("o", b""), "nonce of 0 bytes"),
        (("q", 1, b"", "sometimes", 0), "consistency 'sometimes'"),
        (("S", "a", None, 0, "raft", [], {}, 1), "unknown message tag 'S'"),
    ],
)
def test_what_no_client_says_ends_the_stream_and_nothing_else(tmp_path, payload, why):
    import msgspec

    async def scenario(engines):
        await engines.start("a")
        transport = TcpTransport(Identity("x", "", client_cluster("nova"), 1, ""), key=None)
        stream = await transport.connect(engines.ports["a"])
        await stream.recv_batch()
        stream.send(payload if isinstance(payload, bytes) else b"NVW\x01" + msgspec.msgpack.encode(payload))
        async with asyncio.timeout(10):
            while await stream.recv_batch():
                pass
        assert why in stream.reason
        await transport.close()
        async with engines.client("a") as client:
            assert answer(await client.propose(append("k", 0))) == 1

    run(scenario, tmp_path, "a")


def test_what_is_larger_than_a_message_may_be_is_refused_before_it_is_sent(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        async with engines.client("a") as client:  # it does not know the limit yet
            asked = [append("k", 0), append("k", "x" * 600_000), append("k", 1)]
            told = await asyncio.gather(*(client.propose(each) for each in asked), return_exceptions=True)
            assert answer(told[0]) == 1
            assert isinstance(told[1], LimitError)
            assert isinstance(told[2], UnavailableError)
            assert not isinstance(told[2], UnknownOutcomeError)
            with pytest.raises(LimitError, match="the limit is 523264"):
                await client.propose(append("k", "x" * 524_000))
            with pytest.raises(LimitError, match="over the limit of 524288"):
                await client.read(get("x" * 600_000))
            batch = await client.propose_many([b"\x93\xa3put\xa1x\x01"] * 40_000)  # as little as there is, together
            assert len(batch) == 40_000
            assert answer(await client.propose(append("k", 2))) == 2
            assert await numbers(client) == [0, 2]

    run(scenario, tmp_path, "a", serving=ServingOptions(message_bytes_max=1 << 19), entry_bytes_max=1 << 21)
    with pytest.raises(UsageError, match="message_bytes_max is 4000; give 524288 or more"):
        ServingOptions(message_bytes_max=4_000)


def test_what_a_client_that_went_away_waited_for_is_forgotten(tmp_path):
    async def scenario(engines):
        await engines.start()
        leader = await engines.leader()
        leader.cut([name for name in "abc" if name != leader.node])
        replica = leader._replica
        async with engines.client(leader.node) as client:
            lost = asyncio.ensure_future(client.propose(append("k", 1)))
            await eventually(lambda: replica.pending)
        with pytest.raises(UnavailableError, match="the client is closed"):
            await lost
        await eventually(lambda: not replica.pending)

    run(scenario, tmp_path, close_ms=100)


# --- members that lie -------------------------------------------------------------------------------------------------


class Lying(ClientServer):
    """A port that makes every answer up."""

    def _send(self, stream, reply):
        match reply:
            case Answers(session, outcomes, position):
                reply = Answers(session, [(n, Outcome(Code.OK, b"\x63")) for n, _ in outcomes], position + 1_000_000)
            case Opened(nonce, _):
                reply = Opened(nonce, 99)
            case Found(id, _, position):
                reply = Found(id, b"\x91\x63", position)
        super()._send(stream, reply)


@pytest.mark.parametrize("liar", "abcd")
def test_with_faults_an_answer_needs_as_many_members_as_cannot_all_lie(tmp_path, liar):
    async def scenario(engines):
        await engines.start(keys=pbft_keys)
        async with engines.client(faults=1) as client:
            for n in range(20):
                assert answer(await client.propose(append("k", n))) == n + 1
            assert answer((await client.propose_many([append("k", n) for n in range(20, 50)]))[-1]) == 50
            assert await numbers(client) == list(range(50))
            with pytest.raises(UsageError, match="read linearizably"):
                await client.read(get("k"), "local")
            with pytest.raises(UsageError, match="the machine refused the query"):
                await client.read(b"\xc1")
            assert not client._core._votes, "late replies are not kept"
            await engines.stop("abcd"[("abcd".index(liar) + 1) % 4])  # a sound one is gone: f + 1 of the others suffice
            assert answer(await client.propose(append("k", 50))) == 51
        async with engines.client(
            liar, options=ClientOptions(follow_leader=False)
        ) as client:  # who believes a single member can be deceived
            assert answer(await client.propose(append("k", 51))) == 99

    async def inner():
        async with Served(tmp_path, "abcd", kinds={liar: Lying}, close_ms=200, checkpoint_entries=1_000_000) as engines:
            make = engines.make
            engines.make = lambda name, **more: make(name, **{"protocol": "pbft", **more})
            await asyncio.wait_for(scenario(engines), 60)

    asyncio.run(inner())


def test_the_codecs_have_no_tag_in_common():
    assert not set(question_codec()._types) & set(reply_codec()._types)
