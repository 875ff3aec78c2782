"""Strong and hybrid keys of a store inside a program: what a caller gets, from threads, over restarts and in groups."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time

import pytest
from strong_group import free_ports

from nova.consensus.core import NotLeaderError
from nova.consensus.sessions import Sessions
from nova.errors import (
    CompactedError,
    ConfigError,
    KeyNotFoundError,
    LimitError,
    StaleContextError,
    UnavailableError,
    UsageError,
)
from nova.metrics import Registry
from nova.server.config import Limits, NodeConfig
from nova.server.group import Group
from nova.server.group_config import Consensus
from nova.sim.linearize import Call, Register, check_linearizable
from nova.store import Put, ReplicatedStore, blocking
from nova.store.core import StoreConfig
from nova.store.strong import Add, Exists, GroupOptions, Read, ValueIs, VersionIs, Write
from nova.store.strong.commands import packed

SMALL = GroupOptions(segment_bytes=1 << 20)
CLASSES = {"acc/": "strong", "acc/seen/": "eventual", "vm/": "hybrid"}


def opened(folder, node="a", classes=CLASSES, **options):
    options = {"region": "eu", "group": SMALL, "region_group": SMALL, **options}
    return ReplicatedStore(folder / node, node=node, classes=classes, **options)


@pytest.fixture
def store(tmp_path):
    with opened(tmp_path) as store:
        yield store


def eventually(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true within {seconds} s"
        threading.Event().wait(0.005)
    return value


# ------------------------------------------------------------------------------------------------ one store alone


@pytest.mark.parametrize("key", ["acc/1", "vm/eu/1"])
def test_of_those_who_expect_one_version_one_succeeds(store, key):
    first = store.put(key, {"limit": 1, "a": None}, expect=0)
    assert (first.value, first.version, first.origin) == ({"limit": 1, "a": None}, 1, "a")
    for consistency in (None, "linearizable", "lease", "local"):
        assert store.get(key, consistency=consistency) == first
    with pytest.raises(StaleContextError, match="is at version 1, expected version 0") as stale:
        store.put(key, 2, expect=0)
    assert stale.value.current == first
    second = store.put(key, 2, expect=first.version)
    with pytest.raises(StaleContextError):
        store.delete(key, expect=first.version)
    assert key in store
    assert f"change 2 of {'its group' if key == 'acc/1' else 'region eu'}" in store.why(key)["text"]
    store.delete(key, expect=second.version)
    assert key not in store
    for read in (lambda: store.get(key), lambda: store.delete(key)):
        with pytest.raises(KeyNotFoundError):
            read()
    assert store.put(key, 3).version == 4


@pytest.mark.parametrize("key", ["acc/1", "vm/eu/1"])
def test_a_transaction_is_all_or_nothing(store, key):
    done = store.transact(key, [VersionIs(0)], [Write(packed(2)), Read(), Add(3)])
    assert (done.results, done.entry.value, done.revision) == ([2, 2, 5], 5, 1)
    with pytest.raises(StaleContextError, match="condition 2 does not hold"):
        store.transact(key, [Exists(), ValueIs(packed(3))], [Add(1)])
    with pytest.raises(UsageError, match="operation 2: add needs a number"):
        store.transact(key, [], [Write(packed("x")), Add(1)])
    assert store.get(key).value == 5


def test_lists_and_changes_go_over_all_classes(store):
    keys = ["acc/1", "acc/seen/1", "acc/z", "free", "vm/eu/1"]
    assert store.put_many([(key, key) for key in reversed(keys)]) == 5
    assert len(store) == 5
    found, after = [], ""
    while after is not None:
        page, after = store.scan("", 2, after)
        assert len(page) <= 2
        found += [entry.key for entry in page]
    assert found == keys
    assert [entry.key for entry in store.scan("acc/", consistency="lease")[0]] == keys[:3]
    assert [entry.key for entry in store.scan("vm/eu/", consistency="local")[0]] == ["vm/eu/1"]
    assert [change.key for change in store.changes(0, "", kind="eventual")] == ["free", "acc/seen/1"]
    store.put("acc/1", 2)
    store.delete("acc/z")
    told = [(change.key, change.deleted, change.value) for change in store.changes(2, "", kind="strong")]
    assert told == [("acc/1", False, 2), ("acc/z", True, None)]
    assert [change.key for change in store.changes(0, "vm/eu/")] == ["vm/eu/1"]
    with pytest.raises(UsageError, match="class=eventual or class=strong"):
        store.changes(0, "acc/")
    with pytest.raises(UsageError, match="those of one: PREFIX/REGION/, the regions are eu"):
        store.changes(0, "vm/")


def test_a_batch_keeps_the_order_of_a_key_and_tries_all_others(store):
    store.put_many([Put("acc/1", 1, expect=0), Put("acc/1", 2), ("acc/2", 1)])
    assert store.get("acc/1").value == 2
    with pytest.raises(StaleContextError, match="'acc/2' is at version"):
        store.put_many([("acc/3", 1), Put("acc/2", 5, expect=0), Put("acc/2", 6), ("acc/4", 1)])
    assert [entry.value for entry in store.scan("acc/")[0]] == [2, 1, 1, 1]


def test_a_watch_has_every_change_in_order_and_ends_when_it_is_told_to(store):
    for number in range(5):
        store.put(f"acc/{number}", number)
    assert [change.revision for change in store.watch("acc/0", 0, timeout_s=0.01)] == [1]
    watch = store.watch("acc/1", 1, kind="strong")
    assert next(watch).key == "acc/1"
    seen = []
    reader = threading.Thread(target=lambda: seen.append(next(watch)))
    reader.start()
    store.put("acc/2", 0)
    store.put("acc/1", "later")
    reader.join()
    assert [(change.key, change.value, change.revision) for change in seen] == [("acc/1", "later", 7)]
    watch.close()
    now = store.watch("acc/", timeout_s=2, kind="strong")
    store.put("acc/9", 9)
    assert next(now).key == "acc/9"
    with pytest.raises(UsageError, match="since is 99"):
        next(store.watch("acc/1", 99))
    with pytest.raises(UsageError, match=r"eventual, and change only .* ask changes\(3\)"):
        store.watch("free", 3)
    store.put("vm/eu/1", 1)
    assert next(store.watch("vm/eu/", 0)).key == "vm/eu/1"
    ended = []
    waits = threading.Thread(target=lambda: ended.extend(store.watch("acc/nothing", timeout_s=60)))
    waits.start()
    store.close()
    waits.join(10)
    assert not waits.is_alive()
    assert ended == []


def test_what_was_acknowledged_is_there_when_it_is_opened_again(tmp_path):
    with opened(tmp_path) as store:
        versions = [store.put("acc/1", number).version for number in range(50)]
        store.put("vm/eu/1", "here")
        store.put("free", 1)
    for round in range(3):
        with opened(tmp_path) as store:
            assert store.get("acc/1", consistency="local").version == versions[-1] + round
            assert store.get("vm/eu/1", consistency="local").value == "here"
            assert store.get("free").value == 1
            assert list(store.watch("acc/1", versions[-1] + round, timeout_s=0)) == []
            assert store.put("acc/1", 0, expect=versions[-1] + round).version == versions[-1] + round + 1


def test_a_store_that_is_alone_waits_for_no_election_and_listens_nowhere(tmp_path):
    slow = GroupOptions(segment_bytes=1 << 20, tick_ms=1_000, timeout_ms=1_000)  # an election would take ten seconds
    for start in range(2):
        with opened(tmp_path, group=slow, region_group=slow) as store:
            assert store.put("acc/1", start).version == start + 1
            assert {member.engine.address for member in store._ordered._members} == {""}


def test_a_region_forgets_the_sessions_of_starts_that_are_long_past(tmp_path, monkeypatch):
    monkeypatch.setitem(Sessions.__init__.__kwdefaults__, "sessions_max", 3)
    for start in range(7):  # each opens a session
        with opened(tmp_path, classes={"vm/": "hybrid"}) as store:
            assert store.transact("vm/eu/starts", [], [Add(1)]).results == [start + 1]


def test_what_a_prefix_held_before_it_was_strong_is_hidden_and_comes_back(tmp_path):
    with ReplicatedStore(tmp_path / "a", node="a") as store:
        store.put("acc/old", 1)
        store.put("free", 1)
    with opened(tmp_path) as store:
        store.put("acc/new", 2)
        assert "acc/old" not in store
        assert [entry.key for entry in store.scan("")[0]] == ["acc/new", "free"]
        assert [change.key for change in store.changes(0, "", kind="eventual")] == ["free"]
        assert [change.key for change in store.changes(0, "acc/", kind="strong")] == ["acc/new"]
    with ReplicatedStore(tmp_path / "a", node="a") as store:
        assert [entry.key for entry in store.scan("")[0]] == ["acc/old", "free"]


def test_a_node_goes_on_where_a_store_ended_and_the_other_way_round(tmp_path):
    with opened(tmp_path, classes={"acc/": "strong"}) as store:
        made = store.put("acc/1", 1)
    members = {"a": f"127.0.0.1:{free_ports(1)[0]}"}
    config = NodeConfig(
        name="a", data=str(tmp_path / "a"), classes={"acc/": "strong"}, limits=Limits(segment_bytes=1 << 20),
        consensus=Consensus(members=members),
    )  # fmt: skip

    async def as_a_node():
        group = Group(config, Registry())
        async with group.engine:
            assert await group.keys.get("acc/1") == made
            await group.keys.put("acc/1", 2, expect=made.version)

    asyncio.run(as_a_node())
    with opened(tmp_path, classes={"acc/": "strong"}) as store:
        assert store.get("acc/1").value == 2


def test_what_only_eventual_keys_have_is_refused_and_the_other_way_round(store):
    for put in (
        Put("acc/1", 1, merge=True), Put("acc/1", 1, kind="counter"), Put("acc/1", 1, {}),
        Put("acc/1", 1, conditional=True), Put("vm/eu/1", 1, {"a": 1}),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"is strong|is hybrid"):
            store.put(put.key, 1, kind=put.kind, merge=put.merge, context=put.context, conditional=put.conditional)
    for call in (
        lambda: store.point("acc/1"), lambda: store.points("vm/eu/1"), lambda: store.rollback("acc/1", "x"),
        lambda: store.decide("acc/1", "x", {}), lambda: store.delete("acc/1", context={"a": 1}),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"is strong|is hybrid"):
            call()
    store.put("free", 1)
    for call in (
        lambda: store.put("free", 1, expect=1), lambda: store.delete("free", expect=1),
        lambda: store.transact("free", [], [Add(1)]), lambda: store.get("free", consistency="linearizable"),
        lambda: store.scan("free", consistency="lease"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="eventual"):
            call()
    for key, words in (("vm/mars/1", "one of eu"), ("vm/eu", "vm/REGION/NAME")):
        with pytest.raises(UsageError, match=words):
            store.put(key, 1)
    with pytest.raises(UsageError, match="use one of linearizable, lease, local"):
        store.get("acc/1", consistency="strict")
    assert store.get("free").value == 1


def test_a_store_without_classes_says_what_it_lacks():
    with ReplicatedStore() as store:
        for call in (
            store.consensus, lambda: store.consensus_add("b"), lambda: store.transact("k", [], []), store.regions,
            lambda: store.changes(0, "k", kind="strong"), lambda: store.watch("k", kind="hybrid"),
        ):  # fmt: skip
            with pytest.raises(UsageError, match=r"eventual; trans|has no strong keys|has no hybrid keys"):
                call()
        assert store.changes(0, "", kind="eventual") == []


def test_sizes_are_checked_at_the_face(tmp_path):
    config = StoreConfig(value_bytes_max=100, key_bytes_max=20)
    group = GroupOptions(segment_bytes=1 << 20, bytes_max=1_000)
    with opened(tmp_path, config=config, group=group) as store:
        store.put("acc/1", "x" * 98)
        with pytest.raises(LimitError, match=r"'acc/1' takes 101 bytes; the limit is 100"):
            store.put("acc/1", "x" * 99)
        with pytest.raises(LimitError, match="a key of 21 bytes; keys have 1 to 20"):
            store.put("acc/" + "k" * 17, 1)
        with pytest.raises(UsageError, match="surrogate"):
            store.put("acc/\ud800", 1)
        with pytest.raises(UsageError, match="values are JSON"):
            store.put("acc/1", object())
        with pytest.raises(UsageError, match=r"the limit is 1000: delete some, or raise"):
            store.put_many([(f"acc/{number}", "x" * 98) for number in range(9)])


def test_what_cannot_be_a_group_is_refused_before_anything_is_open(tmp_path):
    one = {"a": "127.0.0.1:1"}
    for given, words in (
        ({"data": None}, "a store in memory has no log"),
        ({"classes": {"acc/": "fast"}}, "use one of eventual, strong, hybrid"),
        ({"classes": {}, "peers": one}, "no prefix is strong"),
        ({"classes": {"acc/": "strong"}, "regions": {"eu": one}}, "no prefix is hybrid"),
        ({"peers": {"b": "127.0.0.1:1"}}, "'a' is not among the members"),
        ({"peers": {**one, "b": ""}}, "has no address"),
        ({"peers": {**one, "b": "10.0.0.1:1"}}, "give a cluster key"),
        ({"regions": {"us": one}}, "has nobody in eu, not this store, a"),
        ({"regions": {"eu": one, "us": one}}, "has a in eu and in us"),
        ({"group": GroupOptions(protocol="zab")}, "unknown"),
    ):
        with pytest.raises((UsageError, ConfigError), match=words):
            ReplicatedStore(**{"data": tmp_path / "a", "node": "a", "region": "eu", "classes": CLASSES, **given})
    with opened(tmp_path) as store:
        store.put("acc/1", 1)
        with pytest.raises(UsageError, match="in use by process"):
            opened(tmp_path)
        assert store.get("acc/1").value == 1


def test_a_closed_store_and_a_child_of_fork_say_so(tmp_path, monkeypatch):
    store = opened(tmp_path)
    with monkeypatch.context() as forked:
        forked.setattr(blocking.os, "getpid", lambda: 7)
        with pytest.raises(UsageError, match="process 7 was forked from"):
            store.get("acc/1")
    store.put("acc/1", 1)
    store.close()
    store.close()
    with pytest.raises(UnavailableError, match="closed; open it again"):
        store.get("acc/1")


PROGRAM = """
import os, signal, sys, threading
from nova import ReplicatedStore
from nova.store.strong import GroupOptions

store = ReplicatedStore(sys.argv[1], classes={"acc/": "strong"}, group=GroupOptions(segment_bytes=1 << 20))
store.put("acc/1", 1)
watch = store.watch("acc/", since=0)
next(watch)
if sys.argv[2] == "interrupt":
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 1)  # again, for one may come where nothing can be raised
    try:
        next(watch)
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("interrupted", store.get("acc/1").value)
else:
    print("left open")
"""


@pytest.mark.parametrize(("how", "said"), [("leave", "left open\n"), ("interrupt", "interrupted 1\n")])
def test_a_program_ends_though_it_closes_nothing(tmp_path, how, said):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "a"), how], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_a_watch_that_nobody_has_any_more_is_closed_by_any_thread(store):
    store.put("acc/1", 1)
    watches = [store.watch("acc/1", 0)]
    next(watches[0])

    async def forget():
        watches.clear()  # on the thread of the store, which could not wait for itself

    store._ordered.run(forget())

    async def asks_itself():
        with pytest.raises(UsageError, match="can't wait for itself"):
            store.get("acc/1")

    store._ordered.run(asks_itself())
    assert store.get("acc/1").value == 1


def test_the_page_of_metrics_tells_the_groups_apart(tmp_path):
    metrics = Registry()
    with opened(tmp_path, metrics=metrics) as store:
        store.put("acc/1", 1)
        page = metrics.render().decode()
        assert 'nova_consensus_command_seconds_count{group="strong"} 1' in page
        assert 'nova_consensus_command_seconds_count{group="hybrid/eu"} 0' in page
        assert page.count("# TYPE nova_consensus_leads gauge") == 1
        assert 'nova_consensus_leads{group="strong"} 1\n' in page


# ------------------------------------------------------------------------------------------------ many threads


def recorded(store, seed, calls, key="acc/x"):
    """What a thread asks of a register, call by call, as the checker wants it."""
    chance, values = random.Random(seed), seed * 10_000
    for number in range(calls):
        begin, kind = time.monotonic_ns(), chance.randrange(3)
        if kind == 0:
            value = values + number
            store.put(key, value)
            yield Call(begin, time.monotonic_ns(), ("write", value), None, key)
            continue
        consistency = chance.choice(("linearizable", "lease"))
        try:
            entry = store.get(key, consistency=consistency)
            old, version = entry.value, entry.version
        except KeyNotFoundError:
            old, version = None, 0
        yield Call(begin, time.monotonic_ns(), ("read",), old, key)
        if kind == 1:
            continue
        begin, new = time.monotonic_ns(), values + number
        try:
            store.put(key, new, expect=version)
            yield Call(begin, time.monotonic_ns(), ("cas", old, new), True, key)
        except StaleContextError:
            pass  # it changed nothing, and versions say more than values: no call of this model


def in_threads(*works):
    errors = []

    def watched(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=watched, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_what_threads_saw_fits_one_order_in_real_time(store):
    history = []
    in_threads(*(lambda seed=seed: history.extend(recorded(store, seed, 120)) for seed in range(6)))
    assert len(history) > 400
    assert check_linearizable(history, Register()).ok is True
    # The checker would have noticed: one read of what was overwritten long before is enough.
    writes = sorted((call for call in history if call.input[0] == "write"), key=lambda call: call.begin)
    end = max(call.end for call in history)
    stale = Call(end + 1, end + 2, ("read",), writes[0].input[1], "acc/x")
    assert check_linearizable([*history, stale], Register()).ok is False


def test_counting_from_threads_loses_nothing(store):
    def by_cas():
        for _ in range(25):
            while True:
                try:
                    now = store.get("acc/n")
                    value, version = now.value, now.version
                except KeyNotFoundError:
                    value, version = 0, 0
                try:
                    store.put("acc/n", value + 1, expect=version)
                    break
                except StaleContextError:
                    continue

    def by_add():
        for _ in range(25):
            store.transact("vm/eu/n", [], [Add(1)])

    in_threads(*[by_cas] * 4, *[by_add] * 4)
    assert (store.get("acc/n").value, store.get("vm/eu/n").value) == (100, 100)


# ------------------------------------------------------------------------------------------------ several stores


def addresses(names):
    return {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}


def test_three_stores_are_one_group_and_two_go_on_without_the_third(tmp_path):
    peers = addresses("abc")
    classes = {"acc/": "strong"}
    key = b"a key of the tests, never used elsewhere"
    stores = {name: opened(tmp_path, name, classes, peers=peers, key=key) for name in peers}
    try:
        a, b, c = stores.values()
        first = a.put("acc/1", 1, expect=0)
        assert b.get("acc/1") == c.get("acc/1", consistency="lease") == first
        with pytest.raises(StaleContextError):
            c.put("acc/1", 2, expect=0)
        history = []
        in_threads(
            *(
                lambda seed=seed, store=store: history.extend(recorded(store, seed, 40))
                for seed, store in enumerate((a, b, c, a, b, c))
            )
        )
        assert check_linearizable(history, Register()).ok is True
        a.put("free", "at a")
        assert "free" not in b  # eventual keys of stores in programs meet through sync_with
        b.sync_with(a)
        assert b.get("free").value == "at a"
        leader = eventually(lambda: a.consensus()["leader"])
        follower = next(name for name in peers if name != leader)
        with pytest.raises(NotLeaderError):
            stores[follower].consensus_transfer(follower)
        stores[leader].consensus_transfer(follower)
        eventually(lambda: all(store.consensus()["leader"] == follower for store in stores.values()))
        stores.pop(leader).close()
        for number, store in enumerate(stores.values()):
            store.put(f"acc/after/{number}", number)
        assert {len(store.scan("acc/after/")[0]) for store in stores.values()} == {2}
        digests = {store.consensus()["digest"] for store in stores.values()}
        assert len(digests) == 1
        gone, stays = stores
        stores.pop(gone).close()
        alone = stores[stays]
        assert alone.get("acc/1", consistency="local").key == "acc/1"
        watch = alone.watch("acc/", 0, timeout_s=0)
        assert next(watch).key == "acc/1"
    finally:
        for store in stores.values():
            store.close()


def test_without_a_majority_calls_end_and_local_reads_are_answered(tmp_path):
    peers = addresses("ab")
    group = GroupOptions(segment_bytes=1 << 20, timeout_ms=300)
    with (
        opened(tmp_path, "a", {"acc/": "strong"}, peers=peers, group=group) as a,
        opened(tmp_path, "b", {"acc/": "strong"}, peers=peers, group=group) as b,
    ):
        eventually(lambda: a.consensus()["leader"] and b.consensus()["leader"])
        a.put("acc/1", 1)
        eventually(lambda: b.consensus()["revision"] == 1)
        a.close()
        for call in (lambda: b.put("acc/1", 2), lambda: b.get("acc/1"), lambda: b.scan("acc/")):
            with pytest.raises(UnavailableError):
                call()
        assert b.get("acc/1", consistency="local").value == 1


def test_a_store_that_was_alone_takes_others_in_and_lets_them_go(tmp_path):
    peers = addresses("ab")
    founded = GroupOptions(segment_bytes=1 << 20, founders=("a",))
    classes = {"acc/": "strong"}
    with opened(tmp_path, "a", classes) as a:
        a.put("acc/1", 1)
        with pytest.raises(UsageError, match="a listens nowhere, so nobody can join it"):
            a.consensus_add("b", peers["b"])
    # With b that was told the same there would be two groups: a alone, and both of them.
    with pytest.raises(UsageError, match="began with a alone, and now is told of a, b: name a as the founder"):
        opened(tmp_path, "a", classes, peers=peers)
    with (
        opened(tmp_path, "a", classes, peers={"a": peers["a"]}, group=founded) as a,
        opened(tmp_path, "b", classes, peers=peers, group=founded) as b,
    ):
        a.consensus_add("b", peers["b"])
        assert b.put("acc/1", 2, expect=1).origin == "b"
        assert {member["node"]: member["role"] for member in a.consensus()["members"]} == {"a": "voter", "b": "voter"}
        b.consensus_switch("paxos")
        assert a.put("acc/2", 1).version == 3
        eventually(lambda: a.consensus()["settled"])
        a.consensus_switch("raft")
        assert a.consensus()["epoch"] == 2
        eventually(lambda: a.consensus()["leader"])
        if a.consensus()["leader"] != "a":
            b.consensus_transfer("a")
        a.consensus_remove("b")
        assert a.put("acc/1", 3, expect=2).version == 4


def test_stores_of_two_regions_own_their_keys(tmp_path):
    ports = addresses("ab")
    regions = {"eu": {"a": ports["a"]}, "us": {"b": ports["b"]}}
    classes = {"vm/": "hybrid"}
    with (
        opened(tmp_path, "a", classes, regions=regions) as a,
        opened(tmp_path, "b", classes, regions=regions, region="us") as b,
    ):
        a.put("vm/eu/1", 1, expect=0)
        b.put("vm/us/1", 2, expect=0)
        eventually(lambda: "vm/eu/1" in b and "vm/us/1" in a)
        with pytest.raises(UsageError, match=r"owned by region eu.* ask a node of eu"):
            b.put("vm/eu/1", 3)
        with pytest.raises(UsageError, match="read with consistency local"):
            b.get("vm/eu/1", consistency="linearizable")
        assert [entry.key for entry in a.scan("vm/")[0]] == ["vm/eu/1", "vm/us/1"]
        assert [change.key for change in a.changes(0, "vm/us/")] == ["vm/us/1"]
        a.put("vm/eu/2", 1)
        assert [change.key for change in b.watch("vm/eu/", 0, timeout_s=1)] == ["vm/eu/1", "vm/eu/2"]
        address, founded = addresses("c")["c"], GroupOptions(segment_bytes=1 << 20, founders=("a", "b"))
        more = {"eu": regions["eu"], "us": {**regions["us"], "c": address}}
        with opened(tmp_path, "c", classes, regions=more, region="us", region_group=founded) as c:
            a.region_add("c", address, "us")
            assert c.put("vm/us/1", 3, expect=1).origin == "c"
            assert c.regions()["regions"]["us"]["members"] == ["b", "c"]
            b.region_remove("c", "us")
            assert b.put("vm/us/1", 4, expect=2).version == 3


def test_a_watch_from_before_the_last_snapshot_says_so(store):
    store.put("acc/1", 1)
    store.put("acc/1", 2)

    async def forget():
        store._ordered.strong.machine._feed.clear()

    store._ordered.run(forget())
    with pytest.raises(CompactedError):
        next(store.watch("acc/1", 0))
    with pytest.raises(CompactedError):
        store.changes(0, "acc/1")
