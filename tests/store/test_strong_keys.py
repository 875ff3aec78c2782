"""Strong keys over real engines: what a caller gets, at any member."""

from __future__ import annotations

import asyncio

import pytest
from strong_group import Group, eventually

from nova.errors import CompactedError, KeyNotFoundError, LimitError, StaleContextError, UnavailableError, UsageError
from nova.store.strong import Add, Exists, Read, Remove, ValueIs, VersionIs, Write
from nova.store.strong.commands import packed


def run(scenario, folder, names="abc", **options):
    async def inner():
        async with asyncio.timeout(60), Group(folder, names, **options) as group:
            await scenario(group)

    asyncio.run(inner())


def test_any_member_writes_and_reads_what_another_was_told(tmp_path):
    async def scenario(group):
        a, b, c = group["a"], group["b"], group["c"]
        first = await a.put("cfg/x", {"limit": 1, "a": None}, expect=0)
        assert (first.value, first.version, first.origin) == ({"limit": 1, "a": None}, 1, "a")
        assert await b.get("cfg/x") == first
        second = await b.put("cfg/x", 2, expect=first.version)
        with pytest.raises(StaleContextError, match="'cfg/x' is at version 2, expected version 1") as stale:
            await c.put("cfg/x", 3, expect=first.version)
        assert stale.value.current == second
        assert (await c.get("cfg/x", consistency="lease")).value == 2
        await c.put("cfg/y", "y")
        entries, more = await a.list("cfg/", 1)
        assert ([entry.key for entry in entries], more) == (["cfg/x"], "cfg/x")
        entries, more = await a.list("cfg/", 9, "cfg/x")
        assert ([entry.value for entry in entries], more) == (["y"], None)
        with pytest.raises(StaleContextError, match="holds nothing, expected version 9"):
            await a.delete("cfg/z", expect=9)
        gone = await a.delete("cfg/x", expect=2)
        assert (gone.value, gone.version) == (None, 4)
        for read in (a.get("cfg/x"), b.delete("cfg/x"), c.get("cfg/x", consistency="lease")):
            with pytest.raises(KeyNotFoundError):
                await read
        await group.same()
        assert (await b.get("cfg/y", consistency="local")).value == "y"
        assert [entry.key for entry in (await b.list("", consistency="local"))[0]] == ["cfg/y"]

    run(scenario, tmp_path)


def test_counting_from_all_members_at_once_loses_nothing(tmp_path):
    async def scenario(group):
        async def by_cas(keys):
            for _ in range(15):
                while True:
                    try:
                        now = await keys.get("n")
                        value, version = now.value, now.version
                    except KeyNotFoundError:
                        value, version = 0, 0
                    try:
                        await keys.put("n", value + 1, expect=version)
                        break
                    except StaleContextError:
                        continue

        async def by_add(keys):
            for _ in range(15):
                await keys.transact("m", [], [Add(1)])

        await asyncio.gather(*(work(keys) for keys in group for work in (by_cas, by_add)))
        assert (await group["a"].get("n")).value == 45
        assert (await group["b"].get("m")).value == 45
        await group.same()

    run(scenario, tmp_path)


def test_a_transaction_tells_what_each_operation_left(tmp_path):
    async def scenario(group):
        (keys,) = group
        done = await keys.transact("k", [VersionIs(0)], [Write(packed([1])), Read(), Remove(), Add(2.5)])
        assert (done.results, done.entry.value, done.revision) == ([[1], [1], None, 2.5], 2.5, 1)
        with pytest.raises(StaleContextError, match="condition 2 does not hold"):
            await keys.transact("k", [Exists(), ValueIs(packed(3))], [Remove()])
        with pytest.raises(UsageError, match="operation 2: add needs a number"):
            await keys.transact("k", [], [Write(packed("x")), Add(1)])
        with pytest.raises(LimitError, match="65 operations; a transaction has at most 64"):
            await keys.transact("k", [], [Read()] * 65)
        with pytest.raises(UsageError, match="finite"):
            await keys.transact("k", [], [Add(float("nan"))])
        with pytest.raises(UsageError, match="give the version"):
            await keys.put("k", 1, expect=-1)
        with pytest.raises(UsageError, match="can't be stored"):
            await keys.put("\ud800", 1)
        with pytest.raises(UsageError, match="values are JSON"):
            await keys.put("k", object())
        with pytest.raises(UsageError, match="linearizable, lease, local"):
            await keys.get("k", consistency="strong")
        with pytest.raises(UsageError, match=r"consensus\.bytes_max"):
            await keys.put("big", "x" * 5000)
        assert (await keys.get("k")).value == 2.5

    run(scenario, tmp_path, "a", bytes_max=4000)


def test_a_watch_has_every_change_in_order_over_a_restart_and_says_what_is_compacted(tmp_path):
    async def scenario(group):
        (keys,) = group
        for number in range(3):
            await keys.put(f"p/{number}", number)
        await keys.delete("p/0")
        watch = keys.watch(1, "p/")
        seen = [await anext(watch) for _ in range(3)]
        assert [(change.revision, change.key, change.deleted, change.value) for change in seen] == [
            (2, "p/1", False, 1),
            (3, "p/2", False, 2),
            (4, "p/0", True, None),
        ]
        later = asyncio.ensure_future(anext(watch))
        await keys.put("other", 1)
        await keys.put("p/9", 9)
        assert (await later).key == "p/9"
        with pytest.raises(UsageError, match="since is 99"):
            await anext(keys.watch(99))
        await group.stop("a")
        keys = await group.start("a")
        await eventually(lambda: keys.machine.revision == 6)
        assert (await anext(keys.watch(4))).key == "other"
        keys.machine._feed.clear()
        with pytest.raises(CompactedError):
            await anext(keys.watch(4))

    run(scenario, tmp_path, "a")


@pytest.mark.parametrize("protocol", ["paxos", "epaxos"])
def test_versions_are_alike_at_all_members_under_every_protocol(tmp_path, protocol):
    async def scenario(group):
        first = await group["a"].put("x", 1)
        await asyncio.gather(*(keys.put(f"k{n % 4}", n) for n, keys in enumerate([*group] * 8)))
        with pytest.raises(StaleContextError):
            await group["b"].put("x", 2, expect=first.version + 1)
        assert (await group["c"].get("x")).value == 1
        await group.same()

    run(scenario, tmp_path, protocol=protocol)


def test_a_member_without_a_majority_answers_local_reads_only(tmp_path):
    async def scenario(group):
        await group["a"].put("k", 1)
        await group.same()
        await group.stop("b")
        await group.stop("c")
        keys = group["a"]
        assert (await keys.get("k", consistency="local")).value == 1
        for call in (keys.get("k"), keys.put("k", 2), keys.list("")):
            with pytest.raises(UnavailableError):
                await call
        assert (await keys.get("k", consistency="local")).value == 1

    run(scenario, tmp_path, timeout_ms=500)


def test_where_reads_go_by_lease_strict_ones_go_through_the_log(tmp_path):
    async def scenario(group):
        await group["a"].put("k", 1)
        leader = await group.leader()
        before = leader.engine.status().core.last
        for keys in group:
            assert (await keys.get("k", consistency="lease")).value == 1
        assert leader.engine.status().core.last == before
        for keys in group:
            assert (await keys.get("k")).value == 1
            assert len((await keys.list(""))[0]) == 1
        assert leader.engine.status().core.last >= before + 6

    run(scenario, tmp_path, lease=True)


def test_a_member_that_was_away_comes_back_by_a_snapshot_and_its_watch_says_what_it_lacks(tmp_path):
    async def scenario(group):
        await group["a"].put("first", 1)
        await group.stop("c")
        for number in range(60):
            await group["a"].put(f"k{number % 7}", number)
        await eventually(lambda: all(keys.engine.status().checkpoint for keys in group))
        await group.start("c")
        await group.same()
        assert (await group["c"].get("k3")).value == 59
        assert (await group["c"].put("first", 2, expect=1)).version == 62
        await group.same()
        if group["c"].machine.compacted:  # it may as well have got the entries
            with pytest.raises(CompactedError):
                await anext(group["c"].watch(0))
        assert (await anext(group["c"].watch(61))).key == "first"
        for name in "abc":
            await group.stop(name)
        for name in "abc":
            await group.start(name)
        assert (await group["b"].get("first")).version == 62
        await group.same()

    run(scenario, tmp_path, checkpoint_entries=10, protocol_options={"trailing": 5})
