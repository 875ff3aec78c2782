"""Strong keys on real nodes: what each class of keys promises, and that a killed leader costs nobody a change."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import threading
import time
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from real_nodes import TOKEN, Answer, Nodes, eventually, free_ports, key_path

from nova.sim.linearize import Call, Register, check_linearizable

pytestmark = pytest.mark.process

CLASSES = "cfg/=strong,cfg/open/=eventual"
SEGMENT_BYTES = 1 << 20


def strong(names, **settings):
    """What nodes of these names are told besides."""
    ports = free_ports(len(names))
    members = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(names, ports, strict=True))
    told = {"classes": CLASSES, "consensus_members": members, "limits_segment_bytes": SEGMENT_BYTES, **settings}
    return {f"NOVA_{name.upper()}": str(value) for name, value in told.items()}


def leader_of(nodes):
    """The node that leads, as a majority of those that run sees it."""

    def agreed():
        told = [node.call("GET", "/v1/consensus")["leader"] for node in nodes if node.running]
        return next((node for node in nodes if told.count(node.name) * 2 > len(nodes)), None)

    return eventually(agreed, 30, "no leader")


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    made = Nodes(tmp_path_factory.mktemp("strong"))
    try:
        made.start("a", "b", "c", environment=strong("abc"))
        yield made.all
    finally:
        made.end()


def refused(node, method, path, value=None):
    with pytest.raises(Answer) as refusal:
        node.call(method, path, value)
    return refusal.value.status, refusal.value.body["code"], refusal.value.body["error"]


def test_compare_and_set_at_one_node_is_seen_at_every_other_one_at_once(group):
    a, b, c = group
    made = a.put("cfg/x", {"limit": 1}, expect=0)
    assert (made["version"], made["clock"], made["origin"]) == (made["revision"], {}, "a")
    for node in group:
        assert node.get("cfg/x") == made
    assert refused(b, "PUT", key_path("cfg/x"), {"value": 2, "expect": 0})[:2] == (409, "conflict")
    changed = b.put("cfg/x", {"limit": 2}, expect=made["version"])
    assert c.get("cfg/x") == changed
    assert a.call("GET", key_path("cfg/x") + "?consistency=lease") == changed
    assert c.call("DELETE", key_path("cfg/x") + f"?expect={changed['version']}")["value"] is None
    assert a.get("cfg/x") is None
    eventually(lambda: b.ask("GET", key_path("cfg/x") + "?consistency=local")[0] == 404)


def test_eventual_keys_are_as_they_were_and_a_longer_prefix_wins(group):
    a, b, _ = group
    for key in ("vm/1", "cfg/open/1"):
        entry = a.put(key, 1)
        assert entry["clock"]
        assert "version" not in entry
        eventually(lambda key=key: b.get(key) is not None)
        assert refused(a, "PUT", key_path(key), {"value": 1, "expect": 1})[0] == 400
        assert refused(a, "DELETE", key_path(key) + "?expect=1")[0] == 400
        assert refused(a, "GET", key_path(key) + "?consistency=lease")[0] == 400
        assert refused(a, "POST", f"/v1/transact/{key}", {"do": [{"get": True}]})[0] == 400


def test_a_list_over_both_classes_is_one_list(group):
    a, b, _ = group
    keys = ["cfg/l/1", "cfg/l/2", "cfg/l/3", "cfg/open/l/1", "cfg/open/l/2", "cfx"]
    for key in keys:
        a.put(key, key)
    eventually(lambda: b.get("cfx") and b.get("cfg/open/l/2"))
    whole = [entry["key"] for entry in b.call("GET", "/v1/keys?prefix=cf")["keys"]]
    assert [key for key in whole if "/l/" in key or key == "cfx"] == keys
    assert whole == sorted(whole)
    found, after = [], None
    while True:
        query = {"prefix": "cf", "limit": 2, **({"after": after} if after else {})}
        page = b.call("GET", f"/v1/keys?{urlencode(query)}")
        assert len(page["keys"]) <= 2
        found += [entry["key"] for entry in page["keys"]]
        after = page["next"]
        if after is None:
            break
    assert found == whole
    inside = b.call("GET", "/v1/keys?prefix=cfg/l/&consistency=local")["keys"]
    assert [entry["key"] for entry in inside] == keys[:3]


def test_a_batch_over_both_classes_answers_for_each(group):
    a, _, c = group
    puts = [
        {"key": "cfg/b", "value": 1, "expect": 0},
        {"key": "vm/b", "value": 1},
        {"key": "cfg/b", "value": 2, "expect": 0},
        {"key": "cfg/b", "value": 3},
    ]
    results = a.call("POST", "/v1/batch", {"puts": puts})["results"]
    assert [result.get("code") for result in results] == [None, None, "conflict", None]
    assert c.get("cfg/b")["value"] == 3


def test_transactions_count_together_from_all_nodes(group):
    step = {"do": [{"add": 1}, {"get": True}]}
    threads = [
        threading.Thread(target=lambda node=node: [node.call("POST", "/v1/transact/cfg/n", step) for _ in range(10)])
        for node in group
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [node.get("cfg/n")["value"] for node in group] == [30, 30, 30]
    asked = {"if": [{"value": 30}], "do": [{"put": {"a": 1}}, {"delete": True}]}
    assert group[1].call("POST", "/v1/transact/cfg/n", asked)["results"] == [{"a": 1}, None]
    assert refused(group[1], "POST", "/v1/transact/cfg/n", asked)[:2] == (409, "conflict")


def test_what_strong_keys_do_not_have_is_refused_and_why_tells_what_there_is(group):
    a, b, _ = group
    version = a.put("cfg/w", "v")["version"]
    for body, words in (
        ({"value": 1, "context": {}, "conditional": True}, "expect"),
        ({"value": {"x": 1}, "merge": True}, "merge"),
        ({"value": 1, "kind": "counter"}, "kind"),
    ):
        status, code, error = refused(a, "PUT", key_path("cfg/w"), body)
        assert (status, code) == (400, "bad_request")
        assert words in error
    for method, path, body in (
        ("GET", "/v1/points/cfg/w", None),
        ("POST", "/v1/points/cfg/w", {}),
        ("POST", "/v1/rollback/cfg/w", {"to": "x"}),
        ("GET", "/v1/keys/cfg/w?at=0", None),
        ("POST", "/v1/decisions/cfg/w", {"shown": "x", "values": {}}),
    ):
        assert "strong" in refused(a, method, path, body)[2]
    why = b.call("GET", "/v1/why/cfg/w")
    assert f"change {version}" in why["text"]
    assert why["conflicts"] == []


def events(node, path, count):
    """The first `count` changes of a watch."""
    with contextlib.closing(node.connect()) as link:
        link.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
        answer = link.getresponse()
        assert answer.status == 200, answer.read()
        found = []
        while len(found) < count:
            line = answer.readline()
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
        return found


def test_a_watch_is_of_one_class_and_numbered_alike_at_all_nodes(group):
    a, b, c = group
    start = a.call("GET", "/v1/consensus")["revision"]
    eventually(lambda: c.call("GET", "/v1/consensus")["revision"] >= start)
    a.put("cfg/s/1", 1)
    b.put("cfg/s/1", 2)
    a.call("DELETE", key_path("cfg/s/1"))
    seen = [events(node, f"/v1/watch?since={start}&prefix=cfg/s/", 3) for node in (a, c)]
    assert [(change["value"], change["deleted"]) for change in seen[0]] == [(1, False), (2, False), (None, True)]
    assert seen[0] == seen[1]
    assert "class=" in refused(a, "GET", "/v1/watch?prefix=cf")[2]
    assert refused(a, "GET", "/v1/watch?prefix=cf&class=odd")[0] == 400
    both = events(a, f"/v1/watch?since={start}&prefix=&class=strong", 3)
    assert both == seen[0]
    revision = a.call("GET", "/v1/status")["revision"]
    a.put("cfg/open/s", 1)
    assert events(a, f"/v1/watch?since={revision}&prefix=cfg&class=eventual", 1)[0]["key"] == "cfg/open/s"


def test_the_group_is_shown_measured_and_led_where_it_is_told(group):
    leader = leader_of(group)
    status = leader.call("GET", "/v1/consensus")
    assert (status["protocol"], status["role"], status["failure"]) == ("raft", "leader", None)
    assert [(link["number"], link["protocol"], link["start"]) for link in status["epochs"]] == [(0, "raft", 1)]
    assert status["leader_http"] == leader.http
    assert [(member["node"], member["role"]) for member in status["members"]] == [(n, "voter") for n in "abc"]
    eventually(lambda: [m["lag"] for m in leader.call("GET", "/v1/consensus")["members"]] == [0, 0, 0])

    def equal():
        states = [node.call("GET", "/v1/consensus") for node in group]
        return len({(state["revision"], state["digest"], state["keys"], state["bytes"]) for state in states}) == 1

    eventually(equal)
    page = leader.ask("GET", "/metrics")[1].decode()
    for name in ('nova_consensus_leads{group="strong"} 1', "nova_strong_keys", "nova_consensus_committed", "nova_keys"):
        assert name in page
    other = next(node for node in group if node is not leader)
    status, code, error = refused(other, "POST", "/v1/consensus/transfer", {"node": other.name})
    assert (status, code) == (503, "not_leader")
    assert leader.name in error
    assert leader.call("POST", "/v1/consensus/transfer", {"node": other.name})["leader"] == other.name
    assert leader_of(group) is other


class Client(threading.Thread):
    """Reads a key and sets it to what nobody ever wrote, at one node after the other, and notes what it saw."""

    numbers = itertools.count(1)

    def __init__(self, nodes, seed, stop, history):
        super().__init__(daemon=True)
        self._nodes, self._chance, self._stop_event, self._history = nodes, random.Random(seed), stop, history
        self.acknowledged = 0
        self.error = None

    def run(self):
        try:
            while not self._stop_event.is_set():
                node = self._chance.choice(self._nodes)
                with contextlib.closing(node.connect(8)) as link:
                    for _ in range(5):
                        self._once(node, f"cfg/r{self._chance.randrange(3)}", link)
        except Exception as error:
            self.error = error

    def _once(self, node, key, link):
        begin = time.monotonic_ns()
        held = self._asked(begin, ("read",), key, lambda: get(node, key, link))
        if held is LOST:
            return
        old, version = (None, 0) if held is None else (held["value"], held["version"])
        new = next(self.numbers)
        begin = time.monotonic_ns()
        self._asked(begin, ("cas", old, new), key, lambda: cas(node, key, new, version, link))

    def _asked(self, begin, what, key, call):
        try:
            told = call()
        except (OSError, http.client.HTTPException):
            if what[0] == "cas":
                self._history.append(Call(begin, None, what, None, key))
            return LOST
        except Answer as answer:
            if answer.status != 503:
                raise
            # Anything but these means that it was not carried out, and will not be.
            if what[0] == "cas" and answer.body["code"] in ("unknown_outcome", "session_expired"):
                self._history.append(Call(begin, None, what, None, key))
            return LOST
        end = time.monotonic_ns()
        output = (None if told is None else told["value"]) if what[0] == "read" else told
        self._history.append(Call(begin, end, what, output, key))
        self.acknowledged += what[0] == "cas" and told
        return told


LOST = object()


def get(node, key, link):
    try:
        return node.call("GET", key_path(key), None, link)
    except Answer as answer:
        if answer.status == 404:
            return None
        raise


def cas(node, key, value, version, link):
    try:
        node.call("PUT", "/v1/keys/" + quote(key), {"value": value, "expect": version}, link)
    except Answer as answer:
        if answer.status == 409:
            return False
        raise
    return True


@pytest.mark.parametrize("lease", ["false", "true"], ids=["rounds", "lease"])
def test_leaders_that_are_killed_cost_no_acknowledged_change_and_what_clients_saw_has_one_order(
    nodes, tmp_path: Path, lease
):
    group = nodes.start(
        "a", "b", "c", environment=strong("abc", consensus_timeout_ms=2_000, consensus_lease_reads=lease)
    )
    stop, history = threading.Event(), []
    clients = [Client(group, seed, stop, history) for seed in range(6)]
    for client in clients:
        client.start()

    def acknowledged():
        assert not (errors := [client.error for client in clients if client.error]), errors
        return sum(client.acknowledged for client in clients)

    for _ in range(2):
        leader, count = leader_of(group), acknowledged()
        eventually(lambda count=count: acknowledged() > count + 40, 60)
        leader.kill()
        count = acknowledged()
        eventually(lambda count=count: acknowledged() > count + 20, 60, "the others did not go on")
        leader.start()
    stop.set()
    for client in clients:
        client.join(30)
        assert not client.is_alive()
    assert acknowledged() > 100
    for node in group:  # every one of them, a follower as well, answers with all that was acknowledged
        for number in range(3):
            key, begin = f"cfg/r{number}", time.monotonic_ns()
            held = node.get(key)
            history.append(Call(begin, time.monotonic_ns(), ("read",), held and held["value"], key))
    verdict = check_linearizable(history, Register())
    assert verdict.ok, f"{verdict.key}: behind {len(verdict.prefix)} calls none fits of {verdict.stuck[:5]}"


def test_a_node_without_a_group_says_how_to_have_one(nodes):
    (node,) = nodes.start("solo")
    status, _, error = refused(node, "GET", "/v1/consensus")
    assert status == 400
    assert "consensus.members" in error
    assert "consensus.members" in refused(node, "POST", "/v1/transact/x", {"do": [{"get": True}]})[2]
    assert node.put("x", 1)["clock"]
