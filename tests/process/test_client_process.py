"""Clients over the network of members that are killed, stopped and restarted: scenarios 84 to 88."""

from __future__ import annotations

import asyncio

import pytest
from consensus_group import Group, eventually

from nova.consensus.client import ClientOptions, ConsensusClient
from nova.consensus.core import OverloadedError, SessionExpiredError, UnknownOutcomeError
from nova.consensus.dialogue import Open, Opened, client_cluster, question_codec, reply_codec
from nova.consensus.sessions import SESSIONS_MAX
from nova.errors import UnavailableError
from nova.sim.machine import answer, append, get
from nova.transport import Identity, TcpTransport

pytestmark = pytest.mark.process


def run(scenario, folder, **options):
    async def inner():
        group = Group(folder, **{"serving": {}, **options})
        try:
            async with group, asyncio.timeout(150):
                await scenario(group)
        except BaseException as error:
            error.add_note(group.words())
            raise

    asyncio.run(inner())


def client_of(group, *names, **options):
    addresses = [group.ports[name] for name in names or group.members]
    return ConsensusClient(addresses, options=ClientOptions(**{"patience_ms": 300, "timeout_ms": 30_000, **options}))


async def numbers(client, key="k"):
    return answer(await client.read(get(key))) or []


async def led(group, client):
    """The leader, once the client is there."""
    leader = await group.leader()
    await eventually(lambda: asyncio.sleep(0, client.standing is not None and client.standing.node == leader.name))
    return leader


def test_84_a_write_without_an_answer_goes_elsewhere_and_takes_effect_once(tmp_path):
    async def scenario(group):
        async with client_of(group) as client:
            count = 0
            for _ in range(3):
                await client.propose(append("k", count))
                leader = await led(group, client)
                leader.stop()  # it has the command, or will: the client hears nothing, and asks another one
                told = asyncio.ensure_future(client.propose(append("k", count + 1)))
                assert answer(await told) == count + 2
                leader.resume()
                count += 2
                for number in range(10):
                    assert answer(await client.propose(append("k", count + number))) == count + number + 1
                count += 10
            before = client._core.callers.session
            waits = asyncio.ensure_future(client.propose(append("k", count)))
            await asyncio.gather(*(member.kill() for member in group.members.values()))
            await asyncio.gather(*(member.start() for member in group.members.values()))
            assert answer(await waits) == count + 1
            assert client._core.callers.session == before, "the session outlived snapshots and restarts"
            assert await numbers(client) == list(range(count + 1))
            assert all([(await member.ask("status"))["checkpoint"] > 0 for member in group.members.values()])

    run(scenario, tmp_path, checkpoint_entries=10)


def test_85_a_retry_of_a_session_that_was_crowded_out_is_told_so(tmp_path):
    async def crowd(address):
        """As many sessions as the table holds."""
        transport = TcpTransport(Identity("crowd", "", client_cluster("nova"), 1, ""), key=None)
        stream = await transport.connect(address)
        questions, replies = question_codec(), reply_codec()
        opened = asked = 0
        while opened < SESSIONS_MAX:
            while asked < min(SESSIONS_MAX, opened + 2_000):
                stream.send(questions.encode(Open(asked.to_bytes(16, "big"))))
                asked += 1
            opened += sum(type(replies.decode(each)) is Opened for each in await stream.recv_batch())
        await transport.close()

    async def scenario(group):
        async with client_of(group) as client:
            await client.propose(append("k", 1))
            leader = await led(group, client)
            await crowd(group.ports[leader.name])
            with pytest.raises(SessionExpiredError, match="each was applied once or not at all, and will not be"):
                await client.propose(append("k", 2))
            assert await numbers(client) == [1]
            assert answer(await client.propose(append("k", 3))) == 2  # in a session of its own

    run(scenario, tmp_path)


def test_86_what_clients_are_told_while_leaders_are_killed_is_so(tmp_path):
    async def scenario(group):
        clients = [client_of(group, patience_ms=100 + 50 * number) for number in range(4)]
        for client in clients:
            await client.start()
        stopping = False
        told = {}
        serial = 0

        async def work(client):
            nonlocal serial
            while not stopping:
                serial += 1
                value = serial
                told[value] = None
                try:
                    await client.propose(append("k", value), timeout_s=0.15)
                    told[value] = True
                except UnknownOutcomeError:
                    pass
                except UnavailableError:
                    told[value] = False
                    await asyncio.sleep(0.005)

        workers = [asyncio.ensure_future(work(client)) for client in clients for _ in range(3)]
        for kill in (True, False, True, True):
            done = sum(each is True for each in told.values())
            await eventually(lambda done=done: asyncio.sleep(0, sum(e is True for e in told.values()) > done + 100))
            leader = await group.leader()
            if kill:
                await leader.kill()
                leader.cut_power()
            else:
                leader.stop()
            others = "".join(set(group.members) - {leader.name})
            await group.leader(among=others)
            if kill:
                await leader.start()
            else:
                leader.resume()
        stopping = True
        await asyncio.gather(*workers)
        # What nobody waits for any more is still on its way: a command of each client behind it tells when it is done.
        for client in clients:
            await client.propose(append("end", 0))
        held = await numbers(clients[0])
        assert len(held) == len(set(held)), "applied twice"
        assert not [value for value in held if told[value] is False], "told to have failed, and there"
        assert not [value for value, verdict in told.items() if verdict and value not in held], "acknowledged and lost"
        assert None in told.values()
        await asyncio.gather(*(client.aclose() for client in clients))

    run(scenario, tmp_path)


def test_87_writes_in_flight_while_the_leader_is_killed_take_effect_in_their_order(tmp_path):
    async def scenario(group):
        async with client_of(group) as client:
            count = 0
            for _ in range(4):
                await client.propose(append("k", count))
                leader = await led(group, client)
                waits = [asyncio.ensure_future(client.propose(append("k", count + n))) for n in range(1, 101)]
                await waits[(20 * count) % 60]
                await leader.kill()
                assert [answer(each) for each in await asyncio.gather(*waits)] == list(range(count + 2, count + 102))
                count += 101
                await leader.start()
            assert await numbers(client) == list(range(count))

    run(scenario, tmp_path, disk_ms=2)


def test_88_beyond_the_bound_writes_are_refused_with_a_time_to_come_back_and_those_taken_are_answered(tmp_path):
    async def scenario(group):
        clients = [client_of(group) for _ in range(4)]
        for client in clients:
            await client.start()
            await client.propose(append("k", 0))
            await led(group, client)
        told, waits = {}, []

        async def write(client, value):
            try:
                await client.propose(append("k", value))
                told[value] = True
            except OverloadedError as error:
                told[value] = False
                waits.append(error.retry_after_ns)

        for round in range(5):  # 400 at once, where 50 fit
            values = range(1 + 400 * round, 401 + 400 * round)
            await asyncio.gather(*(write(clients[value % 4], value) for value in values))
        held = (await numbers(clients[0]))[4:]
        assert len(held) == len(set(held))
        assert {value for value, taken in told.items() if taken} == set(held)
        assert 50 <= len(held) < 2_000 - 500
        assert min(waits) > 0
        await asyncio.gather(*(client.aclose() for client in clients))

    run(scenario, tmp_path, serving={"calls_max": 50}, disk_ms=2)
