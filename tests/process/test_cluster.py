"""Real nodes on loopback: their promises hold when they are killed, cut off, stopped, and when their disk is full."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from real_nodes import (
    START_S,
    Load,
    Node,
    converge,
    cut_power_or_skip,
    eventually,
    key_path,
    meet,
    with_change,
)

from nova.conflict.audit import ChainMark

pytestmark = pytest.mark.process

MIB = 1 << 20


def settled(conflicts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What must be alike on all nodes: everything but when each one noticed."""
    return {
        id: (conflict["key"], conflict["types"], conflict["versions"], conflict["resolution"])
        for id, conflict in conflicts.items()
    }


def write_both_sides(one: Node, other: Node, prefix: str) -> set[str]:
    """Change the same keys on both nodes, which do not hear each other; the keys."""
    for at, node in enumerate((one, other)):
        for number in range(10):
            node.put(f"{prefix}/{number}", {"from": node.name, "number": number})
        node.put(f"{prefix}/vm", {"power_state": ("stopped", "running")[at], "cpu": 2 + at}, kind="vm", merge=True)
    return {f"{prefix}/{name}" for name in (*range(10), "vm")}


# --- 1: one write, all nodes ------------------------------------------------------------------------------------------


def test_what_one_node_takes_all_nodes_show_through_the_whole_api(cluster):
    a, b, c = cluster.all
    since = c.status()["revision"]
    written = a.put("tour/one", {"n": 1})
    assert written["value"] == {"n": 1}
    assert written["origin"] == "a"
    for node in (b, c):
        entry = eventually(lambda node=node: node.get("tour/one"), what=f"{node.name} never got the write")
        assert entry["value"] == {"n": 1}
        assert entry["clock"] == written["clock"]

    stale = b.put("tour/one", {"n": 2}, context=written["clock"], conditional=True)
    converge(a, b, c)
    status, body = a.ask(
        "PUT",
        key_path("tour/one"),
        json.dumps({"value": {"n": 3}, "context": written["clock"], "conditional": True}).encode(),
    )
    assert status == 409
    refused = json.loads(body)
    assert (refused["code"], refused["current"]["value"], refused["yours"]["value"]) == ("conflict", {"n": 2}, {"n": 3})

    b.put("tour/two/ü", [1, 2])
    c.put("tour/three", 3)
    converge(a, b, c)
    assert a.held("tour/") == b.held("tour/") == {"tour/one": {"n": 2}, "tour/two/ü": [1, 2], "tour/three": 3}
    assert c.delete("tour/one")["value"] is None
    converge(a, b, c)
    for node in (a, b, c):
        assert node.get("tour/one") is None
        assert sorted(node.held("tour/")) == ["tour/three", "tour/two/ü"]

    seen = watched(c, since, "tour/", until="tour/one", deleted=True)
    assert seen["tour/two/ü"]["value"] == [1, 2]
    assert seen["tour/three"]["origin"] == "c"
    why = a.call("GET", "/v1/why/tour/three")
    assert why["value"] == 3
    assert [write["origin"] for write in why["writes"]] == ["c"]
    assert stale["clock"] != written["clock"]
    assert {node.status()["digest"] for node in (a, b, c)} == {a.status()["digest"]}
    assert a.sees() == {"b": "alive", "c": "alive"}


def test_a_watch_misses_nothing_of_a_stream_of_writes(cluster):
    a, b, _ = cluster.all
    for node in (a, b):
        seen: dict[str, int] = {}
        prefix = f"load/watch-{node.name}"
        link = node.connect(20)
        link.request("GET", f"/v1/watch?prefix={prefix}", headers={"Authorization": _bearer(node)})
        feed = link.getresponse()
        # Keys that are written all the time are on their way to the disk whenever the feed comes to them.
        loads = [
            Load(a, f"watch-{node.name}-hot", connections=4, keys=1),
            Load(a, f"watch-{node.name}", connections=2, keys=10_000),
        ]
        loads[1].wait_for(150)
        for load in loads:
            load.stop()
        a.put(f"{prefix}/end", [0])
        while f"{prefix}/end" not in seen:
            line = feed.readline()
            assert line, "the feed ended"
            if line.startswith(b"data:"):
                change = json.loads(line[5:])
                seen[change["key"]] = change["value"][0]
        link.close()
        acked = loads[0].acked | loads[1].acked
        missed = {key: number for key, number in acked.items() if seen.get(key) != number}
        assert not missed, f"{node.name}: {len(missed)} of {len(acked)} changes never came: {list(missed)[:5]}"


def watched(node: Node, since: int, prefix: str, *, until: str, deleted: bool = False) -> dict[str, dict[str, Any]]:
    """Changes of the feed, newest of each key, up to the one that is waited for."""
    link = node.connect(10)
    seen: dict[str, dict[str, Any]] = {}
    try:
        link.request("GET", f"/v1/watch?since={since}&prefix={prefix}", headers={"Authorization": _bearer(node)})
        answer = link.getresponse()
        assert answer.status == 200
        while until not in seen or seen[until]["deleted"] != deleted:
            line = answer.readline()
            assert line, "the feed ended"
            if line.startswith(b"data:"):
                change = json.loads(line[5:])
                seen[change["key"]] = change
        return seen
    finally:
        link.close()


def _bearer(node: Node) -> str:
    return f"Bearer {node.environment['NOVA_TOKEN']}"


# --- 3: cut and heal --------------------------------------------------------------------------------------------------


def test_both_sides_of_a_cut_take_writes_and_agree_on_every_conflict_after_it(cluster):
    a, b, c = cluster.all
    c.cut(a, b)
    eventually(lambda: c.status()["peers"] == 0, what="the cut links stay up")
    keys = write_both_sides(a, c, "cut")
    assert a.get("cut/0")["value"] != c.get("cut/0")["value"]
    for node in (a, b, c):
        node.heal()
    took = converge(a, b, c)
    print(f"equal {took:.2f} s after healing")
    meet(a, b, c)

    mine = {id: conflict for id, conflict in settled(a.conflicts()).items() if conflict[0] in keys}
    assert {conflict[0] for conflict in mine.values()} == keys
    for node in (b, c):
        theirs = settled(node.conflicts())
        assert {id: theirs.get(id) for id in mine} == mine
    for node in (a, b, c):
        for key in keys:
            assert node.get(key)["conflict"] in mine
        assert node.get("cut/vm")["value"] == {"power_state": "running", "cpu": 3}  # highest power, most processors
        assert "running" in node.call("GET", "/v1/why/cut/vm")["text"]
        assert node.call("GET", "/v1/audit/verify")["ok"]


def test_a_stopped_process_is_missed_and_catches_up_when_it_goes_on(cluster):
    a, b, c = cluster.all
    c.send_signal(signal.SIGSTOP)
    answers: list[dict[str, Any]] = []
    try:
        # Its kernel takes these; it answers when it goes on, with what it knew when it was stopped.
        waiting = threading.Thread(target=lambda: answers.append(c.put("stopped/both", "from c")), daemon=True)
        waiting.start()
        for number in range(50):
            a.put(f"stopped/{number}", number)
        b.put("stopped/both", "from b")
        converge(a, b)
        eventually(lambda: a.sees()["c"] != "alive", what="nobody missed the stopped process")
    finally:
        c.send_signal(signal.SIGCONT)
    waiting.join(20)
    assert answers, "a put that was made to a stopped process was never answered"
    converge(a, b, c)
    held = c.held("stopped/")
    assert held == a.held("stopped/") == b.held("stopped/")
    assert {f"stopped/{number}": number for number in range(50)}.items() <= held.items()
    eventually(lambda: a.sees()["c"] == b.sees()["c"] == "alive", what="c is back, and not alive for its peers")


# --- 2: SIGKILL and the loss of power ---------------------------------------------------------------------------------


def test_a_node_killed_under_load_comes_back_with_every_acknowledged_put(nodes):
    a, b, c = nodes.start("a", "b", "c")
    loads: list[Load] = []
    taken = 0
    for number in range(3):
        alone = number != 1
        if alone:  # then nobody can give back what its disk does not hold
            b.cut(a, c)
        loads += [Load(a, f"a{number}", connections=2), Load(b, f"b{number}")]
        loads[-1].wait_for(150 + 100 * number)
        b.kill()
        for load in loads[-2:]:
            load.stop()
        taken += cut_power_or_skip(b)
        b.start()
        loads[-1].check(b)
        if alone:
            a.heal()
            c.heal()
        converge(a, b, c)
        for node in (a, b, c):
            for load in loads:
                load.check(node)
    print(f"{sum(load.count for load in loads)} acknowledged, {taken} unsynced bytes taken")
    assert b.status()["incarnation"] == 4


def test_nothing_acknowledged_is_lost_when_all_nodes_are_killed_at_once(nodes):
    """Nobody is left to give anything back: what is there was on the disks."""
    all_nodes = nodes.start("a", "b", "c")
    loads = [Load(node, node.name, connections=4) for node in all_nodes]
    for load in loads:
        load.wait_for(100)
    for node in all_nodes:
        node.send_signal(signal.SIGKILL)
    for node in all_nodes:
        node.wait()
    for load in loads:
        load.join()
    cut_power_or_skip(*all_nodes)
    for node in all_nodes:
        node.launch()
    for node, load in zip(all_nodes, loads, strict=True):
        node.ready()
        load.check(node)
    converge(*all_nodes)
    for node in all_nodes:
        for load in loads:
            load.check(node)


SLOW_DISK = """
import threading
import nova.storage.log as log

class Slow(log.FileLog):
    def sync(self, done):
        threading.Timer(0.7, super().sync, (done,)).start()

log.FileLog = Slow
"""


def test_what_a_reader_was_shown_is_there_after_a_kill(nodes, tmp_path):
    (node,) = nodes.start("a", environment=with_change(tmp_path, SLOW_DISK))
    since = node.status()["revision"]

    def put(value: int) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the kill comes first
            node.put("slow", value)

    def written(count: int) -> None:
        eventually(lambda: node.status()["writes_total"] == count, what=f"{count} writes never began")

    def ask() -> Callable[[], Any]:
        link = node.connect()
        link.request("GET", key_path("slow"), headers={"Authorization": _bearer(node)})
        return lambda: json.loads(link.getresponse().read())["value"]

    def watch() -> Callable[[], Any]:
        return lambda: watched(node, since, "", until="slow")["slow"]["value"]

    for value, begin_to_read in ((1, ask), (2, watch)):
        first, second = (threading.Thread(target=put, args=(value + more,), daemon=True) for more in (0, 10))
        first.start()
        written(1)
        read = begin_to_read()
        second.start()
        written(2)
        shown = read()  # answers when it may: once on disk
        node.kill()
        first.join(20)
        second.join(20)
        node.start()
        assert node.get("slow")["value"] in (shown, value + 10), f"{shown} was shown, and the kill took it back"


# --- 4: SIGTERM -------------------------------------------------------------------------------------------------------


def test_sigterm_answers_what_is_under_way_keeps_it_and_tells_the_peers(nodes):
    a, b = nodes.start("a", "b")
    load = Load(b, "b")
    load.wait_for(200)
    feed = b.connect()
    feed.request("GET", "/v1/watch", headers={"Authorization": _bearer(b)})
    watching = feed.getresponse()
    begin = time.monotonic()
    assert b.stop() == 0
    with contextlib.suppress(http.client.HTTPException, OSError):
        watching.read()  # it ends
    feed.close()
    stopped_s = time.monotonic() - begin
    load.join()
    assert {answer.status for answer in load.refused} <= {503}
    assert all(answer.body["code"] == "unavailable" for answer in load.refused)
    assert "Traceback" not in b.words()
    eventually(lambda: a.sees()["b"] == "left", what=lambda: a.sees())
    load.check(a)  # what was acknowledged was also sent before it went

    a.kill()
    begin = time.monotonic()
    b.start()
    started_s = time.monotonic() - begin
    load.check(b)
    print(f"{load.count} acknowledged; stopped in {stopped_s:.2f} s, ready again in {started_s:.2f} s")
    assert stopped_s < 5
    assert started_s < START_S / 3
    a.start()
    meet(a, b)
    eventually(lambda: a.sees()["b"] == "alive", what=lambda: a.sees())


# --- 5: snapshots -----------------------------------------------------------------------------------------------------


def test_a_node_that_snapshots_and_trims_its_log_loses_nothing_when_it_is_killed(nodes):
    a, b = nodes.start("a", "b", limits={"snapshot_log_bytes": MIB, "segment_bytes": MIB})
    a.cut(b)
    write_both_sides(a, b, "both")
    for node in (a, b):
        node.heal()
    converge(a, b)
    conflicts = settled(a.conflicts())
    assert len(conflicts) >= 11
    events = a.call("GET", "/v1/audit/verify")["events"]
    b.kill()  # from here on nobody gives anything back to a

    loads: list[Load] = []
    taken = 0
    for number in range(2):
        oldest = a.segments()[0]
        load = Load(a, f"{number}", connections=4, keys=20, padding=20_000)
        loads.append(load)
        eventually(
            lambda oldest=oldest: not oldest.exists() and list((a.data / "snapshots").glob("*.snap")),
            what=f"the log was never trimmed: {a.segments()}",
        )
        load.wait_for(load.count + 20)  # into the log behind the snapshot
        a.kill()
        load.join()
        taken += cut_power_or_skip(a)
        a.start()
        for earlier in loads:
            earlier.check(a)
        assert settled(a.conflicts()) == conflicts
        audit = a.call("GET", "/v1/audit/verify")
        assert audit["ok"], audit
        assert audit["events"] == events
    print(f"{sum(load.count for load in loads)} acknowledged, {taken} unsynced bytes taken")
    b.start()
    converge(a, b)
    assert settled(b.conflicts()) == conflicts
    for load in loads:
        load.check(b)


def test_a_snapshot_never_covers_what_the_log_does_not_hold(nodes, tmp_path):
    """Else a node that is killed then would write new records at positions that its snapshot claims to cover."""
    (node,) = nodes.make("a", limits={"snapshot_log_bytes": MIB, "segment_bytes": MIB})
    fast = node.environment
    node.environment = fast | with_change(tmp_path, SLOW_DISK)
    node.start()
    load = Load(node, "a", connections=8, keys=5, padding=150_000)
    eventually(lambda: list((node.data / "snapshots").glob("*.snap")), what="no snapshot was made")
    node.kill()
    load.join()
    cut_power_or_skip(node)
    node.environment = fast
    node.start()
    load.check(node)


def test_an_audit_head_that_a_crash_left_behind_is_no_alarm_and_a_cut_audit_is(nodes):
    (node,) = nodes.start("a")

    def conflict(key: str) -> str:
        node.put(key, 1)
        node.put(key, 2, context={})  # by somebody who saw nothing
        audit = node.call("GET", "/v1/audit/verify")
        assert audit["ok"], audit
        return f"{audit['events']}:{audit['head']}"

    def stop_and_set_head(head: str) -> None:
        assert node.stop() == 0
        sealed = ChainMark.parse(head).seal(b"")
        with contextlib.closing(sqlite3.connect(node.data / "catalog.sqlite")) as catalog, catalog:
            catalog.execute("UPDATE settings SET value = ? WHERE name = 'audit_head'", (sealed,))

    first, second = conflict("one"), conflict("two")
    assert first != second
    # Killed between the two transactions that index events and move the head.
    stop_and_set_head(first)
    node.start()
    assert node.call("GET", "/v1/audit/verify")["ok"]
    count, _, digest = second.partition(":")
    stop_and_set_head(f"{int(count) + 1}:{digest}")
    node.launch()
    assert node.wait() != 0
    assert "its tail was cut off" in node.words()


# --- 6: away for long -------------------------------------------------------------------------------------------------


def test_a_peer_away_longer_than_the_history_catches_up_and_deleted_keys_stay_deleted(nodes):
    a, b = nodes.start("a", "b", limits={"history_bytes": MIB})
    for number in range(50):
        a.put(f"doomed/{number}", number)
        b.put(f"kept/{number}", number)
    converge(a, b)
    b.kill()
    for number in range(50):
        a.delete(f"doomed/{number}")
    for number in range(60):
        puts = [{"key": f"much/{number}/{at}", "value": "x" * 1_000} for at in range(50)]
        assert not any("error" in result for result in a.call("POST", "/v1/batch", {"puts": puts})["results"])
    b.start()
    b.put("back", True)
    took = converge(a, b)
    print(f"3 MB behind, equal {took:.2f} s after it was ready")
    eventually(lambda: "of state from a" in b.words(), what="it caught up by history, so this test tested nothing")
    for node in (a, b):
        assert node.held("doomed/") == {}
        assert len(node.held("kept/")) == 50
        assert len(node.held("much/")) == 3_000
        assert node.get("back")["value"] is True

    b.kill()
    cut_power_or_skip(b)
    b.start()
    converge(a, b)
    assert b.held("doomed/") == {}
    assert len(b.held("much/")) == 3_000


# --- 8: the disk is full ----------------------------------------------------------------------------------------------


def test_a_node_whose_disk_is_full_refuses_writes_answers_reads_and_keeps_what_it_acknowledged(nodes):
    (node,) = nodes.start("a")
    node.put("before", 1)
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))  # the log cannot grow beyond
    load = Load(node, "a", connections=4, keys=1_000, padding=20_000)
    load.join()
    assert load.broken == 0
    assert load.count > 20
    assert [answer.status for answer in load.refused] == [503] * 4
    assert all("storage failed" in answer.body["error"] for answer in load.refused), load.refused[0]

    assert node.get("before")["value"] == 1
    for key, number in load.acked.items():
        if load.sent[key] == number:
            assert node.get(key)["value"][0] == number
    answers = []
    for key in {key for key, number in load.sent.items() if load.acked.get(key) != number}:
        link = node.connect(10)  # an answer, not silence: either it was never written, or it may yet be lost
        answers.append(node.ask("GET", key_path(key), connection=link)[0])
        link.close()
    assert 503 in answers
    assert set(answers) <= {404, 503}
    status, body = node.ask("GET", "/readyz")
    assert status == 503
    assert "storage failed" in json.loads(body)["reason"]
    assert not node.status()["healthy"]
    status, body = node.ask("PUT", key_path("after"), b'{"value": 1}')
    assert (status, json.loads(body)["code"]) == (503, "unavailable")
    assert node.get("after") is None

    node.stop()
    assert "Traceback" not in node.words()
    node.start()
    load.check(node)
    node.put("after", 2)
    assert node.get("before")["value"] == 1
