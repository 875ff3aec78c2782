"""`ConsensusVote` that asks a group of three real engines."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from engines import Engines, eventually, free_ports

from nova.conflict.strategies import ConsensusVote
from nova.conflict.strategies.vote import Candidate, Question
from nova.consensus.balloting import (
    DONE,
    FULL,
    MALFORMED,
    UNKNOWN,
    Asked,
    BallotBox,
    Closed,
    GroupAsker,
    OpenTo,
    RecordOf,
    Voted,
    Voter,
    _pack,
    _record,
    question_id,
)
from nova.consensus.client import ConsensusClient
from nova.consensus.core import Command
from nova.consensus.serving import ClientServer
from nova.errors import CorruptionError, UnavailableError, UsageError
from tests.conflict.conflicts import at_paths, frozen, whole

VOTERS = ("a", "b", "c")


def run(scenario, folder):
    async def inner():
        async with Engines(folder, machine=BallotBox, close_ms=300) as engines:
            await engines.start()
            await asyncio.wait_for(scenario(engines), 60)

    asyncio.run(inner())


def of_origin(origin):
    """Votes for what came from there."""
    return lambda question: next(each.id for each in question.candidates if origin in each.origins)


@contextlib.asynccontextmanager
async def voting(engines, **choose):
    tasks = [asyncio.ensure_future(Voter(name, engines[name], chooses).run()) for name, chooses in choose.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def resolved(group, conflict, **options):
    loop = asyncio.get_running_loop()
    strategy = ConsensusVote(VOTERS, GroupAsker(group, loop, poll_ms=5), **options)
    return await asyncio.to_thread(strategy.resolve, conflict)


def test_what_a_majority_voted_for_is_settled_and_every_replica_is_told_the_same(tmp_path):
    async def scenario(engines):
        conflict = at_paths({"/x": ["one", "two"], "/y": [{"n": 1}, {"n": 2}], "/z": [3, 3]})
        async with voting(engines, a=of_origin("a"), b=of_origin("b"), c=of_origin("a")):
            found = await asyncio.gather(*(resolved(engine, conflict, otherwise=None) for engine in engines))
        assert found[0].settled == {"/x": "one", "/y": {"n": 1}, "/z": 3}
        assert "2 of 3 voters" in found[0].explanation[0]
        assert len({frozen(each) for each in found}) == 1
        again = await resolved(engines["b"], conflict, otherwise=None)  # nobody votes any more, nor has to
        assert frozen(again) == frozen(found[0])

    run(scenario, tmp_path)


def test_when_one_has_no_more_time_the_vote_ends_for_all_and_a_late_ballot_counts_for_nothing(tmp_path):
    async def scenario(engines):
        conflict = whole("old", "new")
        async with voting(engines, a=of_origin("a")):
            patient = asyncio.ensure_future(resolved(engines["b"], conflict))
            hasty = await resolved(engines["a"], conflict, timeout_ms=300)
        assert hasty.via == ("consensus_vote", "lww")
        assert frozen(await patient) == frozen(hasty)
        async with voting(engines, b=of_origin("a"), c=of_origin("a")):
            assert frozen(await resolved(engines["c"], conflict)) == frozen(hasty)

    run(scenario, tmp_path)


def test_a_tie_ends_the_vote_at_once_and_who_contradicts_itself_is_told(tmp_path):
    async def scenario(engines):
        conflict = whole("x", "y", "z")
        async with voting(engines, a=of_origin("a"), b=of_origin("b"), c=of_origin("c")):
            found = await resolved(engines["a"], conflict)
        assert found.via == ("consensus_vote", "lww")
        conflict = whole("old", "new")
        question = await asked_of(engines["a"], conflict)
        first, second = (each.id for each in question.candidates)
        for voter, choice in (("a", first), ("a", second), ("a", "third"), ("z", first), ("b", first)):
            assert await engines["a"].propose(_pack(Voted(question_id(question), voter, choice))) == DONE
        found = await resolved(engines["c"], conflict, otherwise=None)
        assert len(found.alarms) == 1
        assert "a voted twice" in found.alarms[0]

    async def asked_of(engine, conflict):
        """The question of a conflict, once the group has it."""
        noted = []

        class Noting:
            def ask(self, question):
                noted.append(question)
                raise TimeoutError

        ConsensusVote(VOTERS, Noting()).resolve(conflict)
        assert await engine.propose(_pack(Asked(question_id(noted[0]), noted[0]))) == DONE
        return noted[0]

    run(scenario, tmp_path)


def test_a_vote_goes_on_when_the_leader_ends_and_its_ballots_outlive_a_restart(tmp_path):
    async def scenario(engines):
        conflict = whole("old", "new")
        leader = await engines.leader()
        others = [engine for engine in engines if engine is not leader]
        async with voting(engines, **{leader.node: of_origin("a")}):
            waits = asyncio.ensure_future(resolved(others[0], conflict, otherwise=None))
            await eventually(lambda: any(vote.ballots for vote in others[0].machine._votes.values()))
        await engines.stop(leader.node)
        assert not waits.done()
        async with voting(engines, **{others[1].node: of_origin("a")}):
            found = await waits
        assert found.value == "old"
        for engine in others:
            await engines.stop(engine.node)
        await engines.start()
        assert frozen(await resolved(engines["c"], conflict, otherwise=None)) == frozen(found)

    run(scenario, tmp_path)


def test_clients_over_the_network_ask_and_vote_as_well(tmp_path):
    async def scenario(engines):
        ports = {name: f"127.0.0.1:{port}" for name, port in zip("abc", free_ports(3), strict=True)}
        async with contextlib.AsyncExitStack() as stack:
            for engine in engines:
                await stack.enter_async_context(ClientServer(engine, ports[engine.node], addresses=ports))
            clients = {}
            for name in ("asks", *VOTERS):
                clients[name] = await stack.enter_async_context(ConsensusClient(list(ports.values())))
            async with voting(clients, a=of_origin("b"), b=of_origin("b"), c=lambda question: None):
                found = await resolved(clients["asks"], whole("old", "new"))
            assert found.value == "new"
            assert found.via == ()

    run(scenario, tmp_path)


def test_on_the_loop_itself_a_vote_is_refused_for_it_would_wait_for_ever(tmp_path):
    async def scenario(engines):
        strategy = ConsensusVote(VOTERS, GroupAsker(engines["a"], asyncio.get_running_loop()))
        with pytest.raises(UsageError, match=r"resolve in asyncio\.to_thread"):
            strategy.resolve(whole("old", "new"))
        with pytest.raises(UsageError, match="cannot be sent"):
            await resolved(engines["a"], whole(1 << 80, 2), otherwise=None)

    run(scenario, tmp_path)


# --- the machine alone ------------------------------------------------------------------------------------------------


def question(name, voters=VOTERS):
    return Question(name, "r", "", (Candidate("x", 1, ("a",)), Candidate("y", 2, ("b",))), voters, 0)


def tell(box, *commands):
    return box.apply([Command(0, 1, _pack(command)) for command in commands])


def recorded(box, name):
    return _record.decode(box.read(_pack(RecordOf(question_id(question(name))))))


def ask(name, **more):
    asked = question(name, **more)
    return Asked(question_id(asked), asked)


def test_beyond_the_limit_ended_votes_are_forgotten_and_open_ones_never():
    box = BallotBox(questions_max=2)
    first, second, third = (ask(name) for name in ("1", "2", "3"))
    assert tell(box, first, second, third, first) == [DONE, DONE, FULL, DONE]
    assert tell(box, Closed(second.id), third, Voted(second.id, "a", "x")) == [DONE, DONE, UNKNOWN]
    assert recorded(box, "2") is None
    assert recorded(box, "1") == recorded(box, "3").__class__(question("1"), [], False)


def test_what_counts_is_kept_and_no_more():
    box = BallotBox()
    one = ask("1")
    ballots = [("stranger", "x"), ("a", "q" * 100), ("a", "x"), ("a", "y"), ("b", "x"), ("b", "x")]
    assert tell(box, one, *(Voted(one.id, voter, choice) for voter, choice in ballots)) == [DONE] * 7
    assert recorded(box, "1").ballots == [("a", "q" * 64), ("a", "x"), ("b", "x")]
    assert recorded(box, "1").ended
    tell(box, Voted(one.id, "c", "y"))
    assert len(recorded(box, "1").ballots) == 3


def test_a_state_is_taken_back_and_what_is_none_is_refused():
    box = BallotBox()
    tell(box, ask("1"), ask("2"), Voted(ask("2").id, "b", "x"))
    other = BallotBox()
    other.restore(box.snapshot())
    assert other.snapshot() == box.snapshot()
    assert other.read(_pack(OpenTo("b"))) == box.read(_pack(OpenTo("b"))) != box.read(_pack(OpenTo("a")))
    with pytest.raises(CorruptionError, match="holds no votes"):
        other.restore(b"\x01")
    with pytest.raises(UsageError, match="no query of a ballot box"):
        box.read(b"\xc1")
    assert box.apply([Command(0, 1, b"\xc1")]) == [MALFORMED]
    assert tell(box, ask("3", voters=())) == [MALFORMED]
    with pytest.raises(UsageError, match="questions_max is 0"):
        BallotBox(0)


def test_an_asker_says_when_the_group_cannot_be_asked(tmp_path):
    class Nobody:
        async def propose(self, data, key=b"", *, timeout_s=None):
            raise UnavailableError("no member is connected")

    async def scenario():
        found = await resolved(Nobody(), whole("old", "new"))
        assert found.via == ("consensus_vote", "lww")
        with pytest.raises(UnavailableError, match="no member is connected"):
            await resolved(Nobody(), whole("old", "new"), otherwise=None)

    asyncio.run(scenario())
