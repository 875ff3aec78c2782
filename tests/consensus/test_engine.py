"""The engine on real logs and sockets: three members in one process."""

from __future__ import annotations

import asyncio
import os
from functools import partial

import pytest
from engines import Engines, eventually

from nova.consensus.core import (
    NotLeaderError,
    OverloadedError,
    SessionExpiredError,
    UnknownOutcomeError,
)
from nova.consensus.engine import ConsensusEngine, EngineOptions
from nova.consensus.replicated import ReplicatedMachine
from nova.consensus.sessions import Sessions
from nova.errors import CorruptionError, UnavailableError, UsageError
from nova.sim.machine import KeyValue, answer, append, get, put
from nova.storage.log import FileLog
from nova.types import Outputs


def run(scenario, folder, names="abc", **options):
    """Run an async function of some engines."""

    async def inner():
        async with Engines(folder, names, **options) as engines:
            await asyncio.wait_for(scenario(engines), 60)

    asyncio.run(inner())


async def numbers(engine, key="k"):
    return answer(await engine.read(get(key))) or []


# --- commands and reads -----------------------------------------------------------------------------------------------


def test_what_any_member_is_asked_is_applied_once_at_all(tmp_path):
    async def scenario(engines):
        await engines.start()
        for round in range(3):
            for place, engine in enumerate(engines):
                value = 3 * round + place
                assert answer(await engine.propose(append("k", value))) == value + 1
                for other in engines:  # linearizable everywhere, at once
                    assert await numbers(other) == list(range(value + 1))
        await engines.same()
        assert {engine.machine.digest for engine in engines} == {engines["a"].machine.digest}

    run(scenario, tmp_path)


def test_commands_of_one_call_keep_their_order_among_those_of_others(tmp_path):
    async def scenario(engines):
        await engines.start()
        count = 1500  # more than a session lets fly
        batches = [[append("k", place * count + n) for n in range(count)] for place in range(3)]
        answers = await asyncio.gather(*(e.propose_many(b) for e, b in zip(engines, batches, strict=True)))
        final = await numbers(engines["a"])
        assert sorted(final) == list(range(3 * count))
        for place, told in enumerate(answers):
            mine = [value for value in final if value // count == place]
            assert mine == sorted(mine)
            # each was told the length that the list had just then
            assert [final[answer(length) - 1] for length in told] == mine
        assert await engines["a"].propose_many([]) == []

    run(scenario, tmp_path)


def test_a_query_that_the_machine_refuses_is_the_callers_trouble_only(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        await engines["a"].propose(append("k", 1))
        with pytest.raises(UsageError, match="refused the query"):
            await engines["a"].read(b"\xc1")
        assert await numbers(engines["a"]) == [1]

    run(scenario, tmp_path, "a")


def test_many_reads_of_one_turn_share_a_round(tmp_path):
    async def scenario(engines):
        await engines.start()
        leader = await engines.leader()
        await leader.propose(append("k", 7))
        before = leader._replica.core._rounds.number
        found = await asyncio.gather(*(numbers(leader) for _ in range(500)))
        assert found == [[7]] * 500
        assert leader._replica.core._rounds.number - before < 50

    run(scenario, tmp_path)


def test_a_command_over_the_limit_is_refused_with_the_limit(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        with pytest.raises(UsageError, match=r"1001 bytes; the limit is 1000"):
            await engines["a"].propose(b"x" * 1001)

    run(scenario, tmp_path, "a", entry_bytes_max=1000)


# --- limits and time-outs ---------------------------------------------------------------------------------------------


def test_beyond_the_bound_callers_are_refused_at_once_and_told_when_to_come_back(tmp_path):
    async def scenario(engines):
        await engines.start("a")  # of three: nothing commits
        calls = [asyncio.ensure_future(engines["a"].propose(append("k", n), timeout_s=0.3)) for n in range(5)]
        reads = [asyncio.ensure_future(engines["a"].read(get("k"), timeout_s=0.3)) for n in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="the limit is 5") as refused:
            await engines["a"].propose(append("k", 5))
        assert 0 < refused.value.retry_after_ns <= 5_000_000_000
        with pytest.raises(OverloadedError, match="the limit is 5"):
            await engines["a"].read(get("k"))
        for outcome in await asyncio.gather(*calls, *reads, return_exceptions=True):
            assert isinstance(outcome, UnavailableError)
            assert not isinstance(outcome, UnknownOutcomeError)  # no session: surely not applied
        assert engines["a"].status().calls == engines["a"].status().reads == 0
        await engines.start("b")
        assert answer(await engines["a"].propose(append("k", 9))) == 1

    run(scenario, tmp_path, calls_max=5)


def test_a_time_out_says_what_is_not_known_and_the_command_takes_effect_once_at_most(tmp_path):
    async def scenario(engines):
        await engines.start()
        leader = await engines.leader()
        await leader.propose(append("k", 0))
        others = [engine.node for engine in engines if engine is not leader]
        leader.cut(others)
        with pytest.raises(UnknownOutcomeError, match="may or may not have been applied"):
            await leader.propose(append("k", 1), timeout_s=0.2)
        leader.cut([])
        # Commands of a session have no gaps: the next one shows what became of it.
        assert answer(await leader.propose(append("k", 2))) == 3
        assert await numbers(engines[others[0]]) == [0, 1, 2]

    run(scenario, tmp_path)


def test_a_caller_that_gives_up_leaves_no_hole(tmp_path):
    async def scenario(engines):
        await engines.start()
        engine = await engines.follower()
        tasks = [asyncio.ensure_future(engine.propose(append("k", n))) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.propose(append("k", 99))
        final = await numbers(engine)
        assert final[-1] == 99
        assert {n for n in range(20) if n % 2} <= set(final)
        assert len(set(final)) == len(final)

    run(scenario, tmp_path)


def test_an_expired_session_is_told_and_another_one_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("nova.consensus.replicated.Sessions", partial(Sessions, sessions_max=1))

    async def scenario(engines):
        await engines.start()
        await engines["a"].propose(append("k", 1))
        await engines["b"].propose(append("k", 2))  # its session takes the place of that of a
        with pytest.raises(SessionExpiredError, match="look before you ask again"):
            await engines["a"].propose(append("k", 3))
        await engines["a"].propose(append("k", 4))
        assert await numbers(engines["c"]) == [1, 2, 4]

    run(scenario, tmp_path)


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_after_a_restart_of_all_everything_is_there(tmp_path):
    async def scenario(engines):
        await engines.start()
        await asyncio.gather(*(engine.propose(append("k", n)) for n in range(50) for engine in engines))
        before = await numbers(engines["b"])
        for name in "abc":
            await engines.stop(name)
        await engines.start()
        assert await numbers(engines["c"]) == before
        await engines["c"].propose(append("k", 7))
        assert await numbers(engines["a"]) == [*before, 7]

    run(scenario, tmp_path)


def test_a_member_behind_the_log_gets_a_snapshot_and_then_the_rest(tmp_path):
    async def scenario(engines):
        await engines.start()
        await engines["a"].propose(append("k", 0))
        await engines.same()
        behind = (await engines.follower()).node
        last = engines[behind].status().applied
        await engines.stop(behind)
        leader = await engines.leader()
        for n in range(1, 200):
            await leader.propose(append("k", n))
        await eventually(lambda: leader._replica.core.log.offset > last, "the log is compacted")
        assert leader.status().checkpoint > 0
        await engines.start(behind)
        assert await numbers(engines[behind]) == list(range(200))
        assert engines[behind]._replica.core._snapshot is not None
        await engines.stop(behind)
        await engines.start(behind)  # what was installed is durable
        assert await numbers(engines[behind]) == list(range(200))

    run(scenario, tmp_path, checkpoint_entries=20, protocol={"trailing": 5})


def test_the_log_is_dropped_behind_snapshots_and_a_damaged_snapshot_is_not_the_end(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        engine = engines["a"]
        for n in range(60):  # some segments between two snapshots
            await engine.propose(append("l", n))
            await engine.propose(put("ballast", "x" * 20_000))
            await eventually(lambda: not engine._checkpointing)
        assert engine.status().checkpoint > 0
        held = await numbers(engine, "l")
        await engines.stop("a")
        snapshots = sorted((tmp_path / "a" / "snapshots").glob("*.snap"))
        assert len(snapshots) == 2
        with open(snapshots[-1], "r+b") as file:
            file.seek(200)
            file.write(b"\0\1\2\3\4")
        await engines.start("a")
        assert await numbers(engines["a"], "l") == held == list(range(60))

    run(scenario, tmp_path, "a", checkpoint_entries=25, segment_bytes=1 << 16)


def test_a_torn_tail_is_cut_and_a_damaged_middle_refuses_to_start_with_the_offset(tmp_path):
    folder = tmp_path / "a" / "log"

    async def scenario(engines):
        await engines.start("a")
        for n in range(20):
            await engines["a"].propose(append("k", n))
        await engines.stop("a")
        (segment,) = folder.glob("*.log")
        data = segment.read_bytes()
        places = [at for at in range(len(data)) if data.startswith(b"append\xa1k\x05", at)]
        with FileLog(folder, segment_bytes=1 << 20) as log:
            end = log.size_bytes
        with open(segment, "r+b") as file:  # a record of which only the beginning was written
            file.seek(end)
            file.write(b"\x40\0\0\0torn" + os.urandom(9))
        await engines.start("a")
        assert engines["a"]._directory.log.recovered.dropped_bytes > 0
        assert await numbers(engines["a"]) == list(range(20))
        await engines["a"].propose(append("k", 20))
        await engines.stop("a")
        with open(segment, "r+b") as file:
            file.seek(places[0])
            file.write(b"A")
        with pytest.raises(CorruptionError, match=r"offset \d+: record \d+ is damaged"):
            await engines.make("a").start()

    run(scenario, tmp_path, "a")


def test_a_log_without_its_beginning_refuses_to_start(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        for n in range(60):
            await engines["a"].propose(append(f"k{n}", "x" * 9_000))
            await eventually(lambda: not engines["a"]._checkpointing)
        await engines.stop("a")
        assert not (tmp_path / "a" / "log" / f"{1:020d}.log").exists()
        snapshots = sorted((tmp_path / "a" / "snapshots").glob("*.snap"))
        for path in snapshots:
            path.unlink()
        with pytest.raises(CorruptionError, match="and the newest whole snapshot ends at 0"):
            await engines.make("a").start()

    run(scenario, tmp_path, "a", checkpoint_entries=15, segment_bytes=1 << 17)


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_leader_that_closes_hands_over_and_loses_nothing_that_it_acknowledged(tmp_path):
    async def scenario(engines):
        await engines.start()
        leader = await engines.leader()
        acknowledged, refused = [], []

        async def client(number):
            for n in range(1000):
                value = number * 1000 + n
                try:
                    await leader.propose(append("k", value))
                except UnavailableError as error:
                    refused.append((value, isinstance(error, UnknownOutcomeError)))
                    return
                acknowledged.append(value)

        clients = [asyncio.ensure_future(client(number)) for number in range(8)]
        await eventually(lambda: len(acknowledged) > 20)
        term = leader.status().core.term
        await engines.stop(leader.node)
        # Not after a time-out: when it has closed, another one leads already, and the rest is being told.
        assert {engine.status().core.leader for engine in engines} - {leader.node, None}
        heir = (await engines.leader()).node
        await eventually(lambda: {engine.status().core.leader for engine in engines} == {heir})
        await asyncio.gather(*clients)
        assert len(refused) == 8
        survivor = next(iter(engines))
        final = await numbers(survivor)
        assert set(acknowledged) <= set(final)
        assert len(final) == len(set(final))
        assert not {value for value, unknown in refused if not unknown} & set(final)
        assert (await engines.leader()).status().core.term == term + 1  # by TimeoutNow, without a pre-vote
        with pytest.raises(UnavailableError, match="is closed"):
            await leader.propose(b"")
        await leader.aclose()

    run(scenario, tmp_path)


def test_a_machine_that_raises_ends_the_member_and_whoever_waits_hears_it(tmp_path):
    class Fragile(KeyValue):
        def apply(self, commands):
            raise ZeroDivisionError("a defect")

    async def scenario(engines):
        await engines.start("a")
        with pytest.raises(UnknownOutcomeError, match="a defect"):
            await engines["a"].propose(b"")
        assert "a defect" in str(await asyncio.wait_for(engines["a"].failed(), 5))
        assert "a defect" in engines["a"].status().failure
        with pytest.raises(UnavailableError, match="has stopped"):
            await engines["a"].read(get("k"))

    run(scenario, tmp_path, "a", machine=Fragile)


def test_a_leader_whose_disk_fails_acknowledges_nothing_more_and_another_one_leads(tmp_path):
    async def scenario(engines):
        await engines.start()
        leader = await engines.leader()
        await leader.propose(append("k", 1))
        log = leader._directory.log
        leader._runtime._pipeline._log = BrokenLog(log)
        with pytest.raises(UnknownOutcomeError, match="no space"):
            await leader.propose(append("k", 2))
        with pytest.raises(UnavailableError, match="has stopped"):
            await leader.propose(append("k", 3))
        engines.up.pop(leader.node)
        try:
            survivor = next(iter(engines))
            await survivor.propose(append("k", 4))
            final = await numbers(survivor)
            assert [value for value in final if value != 2] == [1, 4]
            await engines.same()
        finally:
            await leader.aclose()

    run(scenario, tmp_path)


class BrokenLog:
    """A log whose next sync fails."""

    def __init__(self, log):
        self._log = log

    def __getattr__(self, name):
        return getattr(self._log, name)

    def sync(self, done):
        done(self._log.durable, UnavailableError("no space left"))


def test_a_log_that_takes_no_record_is_the_end_also_when_it_is_a_tick_that_asks(tmp_path, monkeypatch):
    # One that is alone leads at once; here it waits for its election timeout, as one of several does.
    monkeypatch.setattr(ReplicatedMachine, "lead", lambda self: Outputs())

    async def scenario(engines):
        engine = engines.make("a")
        await engine.start()
        engine._runtime._pipeline._log = FullLog(engine._directory.log)
        try:
            # It votes for itself when its election timeout has passed.
            assert "wait for the disk" in str(await asyncio.wait_for(engine.failed(), 10))
            assert engine._replica.core.role != "leader"
        finally:
            await engine.aclose()

    run(scenario, tmp_path, "a")


class FullLog(BrokenLog):
    """A log that takes no record."""

    def append(self, records):
        raise UnavailableError("too many bytes wait for the disk")


# --- operators --------------------------------------------------------------------------------------------------------


def test_leadership_is_handed_over_without_a_loss(tmp_path):
    async def scenario(engines):
        await engines.start()
        leader, follower = await engines.leader(), await engines.follower()
        with pytest.raises(NotLeaderError) as refused:
            await follower.transfer(follower.node)
        assert refused.value.leader == leader.node
        with pytest.raises(UsageError, match="is no voter"):
            await leader.transfer("z")
        calls = [asyncio.ensure_future(leader.propose(append("k", n))) for n in range(100)]
        await leader.transfer(follower.node)
        assert (await engines.leader()) is follower
        assert sorted([answer(each) for each in await asyncio.gather(*calls)]) == list(range(1, 101))
        assert await numbers(leader) == list(range(100))

    run(scenario, tmp_path)


def test_members_come_and_go(tmp_path):
    async def scenario(engines):
        await engines.start()
        leader = await engines.leader()
        for n in range(30):
            await leader.propose(append("k", n))
        await engines.start("d")
        await leader.change("abc", ["d"])
        await eventually(lambda: engines["d"].status().applied == leader.status().applied)
        assert engines["d"].status().core.role == "learner"
        gone = (await engines.follower()).node
        await leader.change(sorted({*"abcd"} - {gone}))
        assert leader.status().core.members == tuple(sorted({*"abcd"} - {gone}))
        await engines.stop(gone)
        await engines["d"].propose(append("k", 30))
        assert await numbers(leader) == await numbers(engines["d"]) == list(range(31))
        # The new one counts: without it and the one that went there is no majority.
        await engines.stop("d")
        with pytest.raises(UsageError, match="no voter would be left"):
            await leader.change([])
        assert answer(await leader.propose(append("k", 31))) == 32

    run(scenario, tmp_path, others="d")


def test_what_is_measured_is_on_the_page(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        await engines["a"].propose(append("k", 1))
        await numbers(engines["a"])
        page = engines["a"].metrics.render().decode()
        assert "nova_consensus_command_seconds_count 1" in page
        assert "nova_consensus_reads_total 1" in page
        assert "nova_consensus_leads 1" in page
        assert "nova_consensus_applied 3" in page  # the no-op of the term, the session, the command

    run(scenario, tmp_path, "a")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_with_the_mend(tmp_path):
    def make(node="a", members=None, **more):
        return ConsensusEngine(node, members or {"a": "127.0.0.1:0"}, tmp_path / "x", KeyValue(), **more)

    with pytest.raises(UsageError, match=r"not among the members \['a'\]"):
        make("b")
    with pytest.raises(UsageError, match="give a cluster key"):
        make(members={"a": "127.0.0.1:0", "b": "10.0.0.2:7500"})
    with pytest.raises(UsageError, match="protocol 'zab' is unknown; there are"):
        make(protocol="zab")
    with pytest.raises(UsageError, match="do not fit raft"):
        make(options=EngineOptions(protocol={"election_tocks": 3}))
    with pytest.raises(UsageError, match="tick_ms is 0"):
        EngineOptions(tick_ms=0)


def test_a_directory_belongs_to_one_member_of_one_group(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        await engines["a"].propose(append("k", 1))
        with pytest.raises(UsageError, match="in use by process"):
            await engines.make("a").start()
        await engines.stop("a")
        other = ConsensusEngine("b", {"b": "127.0.0.1:0"}, tmp_path / "a", KeyValue(), options=engines.options)
        with pytest.raises(UsageError, match="belongs to node 'a'"):
            await other.start()
        with pytest.raises(UsageError, match=r"began with members \('a',\), not \('a', 'b'\)"):
            await engines.make("a", voters=["a", "b"]).start()
        with pytest.raises(UsageError, match="began with options"):
            await engines.make("a", options=EngineOptions(tick_ms=50)).start()
        (tmp_path / "a" / "catalog.sqlite").unlink()
        last = engines.make("a")
        with pytest.raises(CorruptionError, match="not how its group began"):
            await last.start()
        with pytest.raises(UnavailableError, match="is not started"):
            await last.propose(b"")
        await last.aclose()

    run(scenario, tmp_path, "a")


def test_an_answer_to_a_read_of_an_earlier_life_answers_none_of_this(tmp_path):
    async def scenario(engines):
        await engines.start("a")
        await numbers(engines["a"])
        first = engines["a"]._read_id
        await engines.stop("a")
        await engines.start("a")
        assert engines["a"]._read_id > first + 1_000_000_000

    run(scenario, tmp_path, "a")


def test_an_engine_that_never_started_can_be_closed(tmp_path):
    async def scenario(engines):
        engine = engines.make("a")
        await engine.aclose()
        with pytest.raises(UsageError, match="started before"):
            await engine.start()
        with pytest.raises(UnavailableError):
            await engine.propose(b"")

    run(scenario, tmp_path, "a")
