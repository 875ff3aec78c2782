"""Hybrid keys on real nodes: strong in the region that owns them, seen by all others, whatever is cut or killed."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest
from real_nodes import eventually, free_ports, key_path, meet
from test_strong_members import nova
from test_strong_nodes import LOST, Client, events, refused

from nova.sim.linearize import Register, check_linearizable

pytestmark = pytest.mark.process

REGIONS = {"a": "eu", "b": "eu", "c": "eu", "d": "us", "e": "ap"}


@pytest.fixture
def group(nodes):
    """Three nodes in eu, one in us, one in ap."""
    ports = free_ports(len(REGIONS))
    members = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(REGIONS, ports, strict=True))
    environment = {
        "NOVA_CLASSES": "vm/=hybrid",
        "NOVA_HYBRID_MEMBERS": members,
        "NOVA_HYBRID_REGIONS": ",".join(f"{name}={region}" for name, region in REGIONS.items()),
        "NOVA_HYBRID_TIMEOUT_MS": "3000",
        "NOVA_LIMITS_SEGMENT_BYTES": str(1 << 20),
    }
    for name, region in REGIONS.items():
        nodes.make(name, environment=environment, flags=("--region", region))
    for node in nodes.all:
        node.region = REGIONS[node.name]
        node.launch()
    for node in nodes.all:
        node.ready()
    meet(*nodes.all)
    for node in nodes.all:
        eventually(lambda node=node: hybrid(node)["leader"] is not None, 30, "no leader")
    return nodes.all


def hybrid(node):
    return node.status()["hybrid"]


def local(node, key):
    """What a node has of a key, None if nothing."""
    status, body = node.ask("GET", key_path(key) + "?consistency=local")
    assert status in (200, 404), body
    return json.loads(body)["value"] if status == 200 else None


def equal(nodes):
    """Wait until all hold the same of all regions."""
    eventually(lambda: len({hybrid(node)["digest"] for node in nodes}) == 1, 30, "the digests differ")


class RegionClient(Client):
    """As `Client`, on keys of eu."""

    def _once(self, node, key, link):
        super()._once(node, key.replace("cfg/", "vm/eu/"), link)


def test_a_region_owns_its_keys_and_the_others_see_them(group):
    a, b, c, d, e = group
    made = a.put("vm/eu/1", {"cpu": 1}, expect=0)
    assert b.get("vm/eu/1") == c.get("vm/eu/1") == made
    assert refused(c, "PUT", key_path("vm/eu/1"), {"value": 2, "expect": 0})[:2] == (409, "conflict")
    changed = b.put("vm/eu/1", {"cpu": 2}, expect=made["version"])
    assert c.call("GET", key_path("vm/eu/1") + "?consistency=lease") == changed
    assert d.put("vm/us/1", 1, expect=0)["version"] == 1
    step = {"do": [{"add": 1}, {"get": True}]}
    assert d.call("POST", "/v1/transact/vm/us/1", step)["results"] == [2, 2]
    for node in (d, e):
        eventually(lambda node=node: local(node, "vm/eu/1") == {"cpu": 2})
    eventually(lambda: a.get("vm/us/1") and a.get("vm/us/1")["value"] == 2)  # its default there is local

    for method, path, body in (
        ("PUT", key_path("vm/eu/1"), {"value": 3}),
        ("DELETE", key_path("vm/eu/1"), None),
        ("POST", "/v1/transact/vm/eu/1", step),
        ("GET", key_path("vm/eu/1") + "?consistency=linearizable", None),
        ("GET", "/v1/keys?prefix=vm/&consistency=linearizable", None),
    ):
        status, code, error = refused(d, method, path, body)
        assert (status, code) == (400, "bad_request")
        assert "region eu" in error or path.startswith("/v1/keys?")
        assert a.http in error or e.http in error  # where to ask instead
    for key, words in (("vm/mars/1", "ap, eu, us"), ("vm/eu", "vm/REGION/NAME"), ("vm//x", "vm/REGION/NAME")):
        assert words in refused(a, "PUT", key_path(key), {"value": 1})[2]
    assert local(d, "vm/eu/1") == {"cpu": 2}

    listed = [entry["key"] for entry in e.call("GET", "/v1/keys?prefix=vm/")["keys"]]
    eventually(lambda: [entry["key"] for entry in e.call("GET", "/v1/keys?prefix=")["keys"]] == ["vm/eu/1", "vm/us/1"])
    assert set(listed) <= {"vm/eu/1", "vm/us/1"}
    a.put("free", 1)
    assert [entry["key"] for entry in a.call("GET", "/v1/keys?prefix=")["keys"]] == ["free", "vm/eu/1", "vm/us/1"]
    results = a.call("POST", "/v1/batch", {"puts": [{"key": f"vm/{there}/9", "value": 1} for there in ("eu", "us")]})
    assert [result.get("code") for result in results["results"]] == [None, "bad_request"]

    seen = [events(node, "/v1/watch?since=0&prefix=vm/eu/", 3) for node in (a, e)]
    assert seen[0] == seen[1]
    assert [change["revision"] for change in seen[0]] == [1, 2, 3]
    assert "PREFIX/REGION/" in refused(a, "GET", "/v1/watch?prefix=vm/")[2]
    assert "change 2 of region eu" in d.call("GET", "/v1/why/vm/eu/1")["text"]
    assert "hybrid" in refused(a, "GET", "/v1/points/vm/eu/1")[2]
    assert "consensus.members" in refused(a, "GET", "/v1/consensus")[2]
    assert 'nova_hybrid_keys{owner="us"} 1' in a.ask("GET", "/metrics")[1].decode()
    equal(group)


def test_an_operator_lets_a_node_join_a_region_and_takes_another_one_out(nodes):
    ports = free_ports(3)
    places = dict(zip("abc", ("eu", "us", "us"), strict=True))
    members = {name: f"127.0.0.1:{port}" for name, port in zip("abc", ports, strict=True)}

    def environment(names):
        return {
            "NOVA_CLASSES": "vm/=hybrid",
            "NOVA_HYBRID_MEMBERS": ",".join(f"{name}={members[name]}" for name in names),
            "NOVA_HYBRID_REGIONS": ",".join(f"{name}={places[name]}" for name in names),
            "NOVA_HYBRID_FOUNDERS": "a,b",
            "NOVA_LIMITS_SEGMENT_BYTES": str(1 << 20),
        }

    for name in places:
        nodes.make(name, environment=environment("ab" if name < "c" else "abc"), flags=("--region", places[name]))
    a, b, c = nodes.all
    for node in (a, b, c):
        node.region = places[node.name]
        node.launch()
    for node in (a, b, c):
        node.ready()
    eventually(lambda: all(hybrid(node)["leader"] for node in (a, b)))
    b.put("vm/us/1", 1, expect=0)
    asked = {"node": "c", "address": members["c"]}
    assert "they are eu, us" in refused(a, "POST", "/v1/regions/ap/members", asked)[2]
    assert nova(a, "add", "c", members["c"], "--region", "us") == "in us: b, c\n"
    eventually(lambda: hybrid(c)["leader"] in ("b", "c"))
    assert c.put("vm/us/1", 2, expect=1)["origin"] == "c"
    assert nova(c, "remove", "b", "--region", "us") == "in us: c\n"
    b.stop()
    c.kill()
    c.start()  # it finds in its log that it is all of its region
    eventually(lambda: hybrid(c)["leader"] == "c")
    assert c.put("vm/us/1", 3, expect=2)["version"] == 3
    eventually(lambda: local(a, "vm/us/1") == 3)
    assert "the last member in us" in refused(a, "DELETE", "/v1/regions/us/members/c")[2]


def test_regions_that_are_cut_off_go_on_and_hold_the_same_when_they_meet_again(group):
    a, b, c, d, e = group
    a.put("vm/eu/x", 0)
    d.put("vm/us/x", 0)
    eventually(lambda: all(local(node, "vm/eu/x") == 0 and local(node, "vm/us/x") == 0 for node in group))
    for node in (a, b, c):
        node.cut(d, e)
    for number in range(1, 21):
        version = b.get("vm/eu/x")["version"]
        assert c.put("vm/eu/x", number, expect=version)["value"] == number
        d.put("vm/us/x", -number)
    eventually(lambda: local(e, "vm/us/x") == -20)  # us and ap still talk
    assert (local(d, "vm/eu/x"), local(a, "vm/us/x")) == (0, 0)
    for node in group:
        node.heal()
    eventually(lambda: all((local(n, "vm/eu/x"), local(n, "vm/us/x")) == (20, -20) for n in group), 30)
    equal(group)


def test_a_region_whose_leader_is_killed_loses_nothing_that_it_acknowledged(group):
    eu, d = group[:3], group[3]
    stop, history = threading.Event(), []
    clients = [RegionClient(eu, seed, stop, history) for seed in range(4)]
    for client in clients:
        client.start()

    def acknowledged():
        assert not (errors := [client.error for client in clients if client.error]), errors
        return sum(client.acknowledged for client in clients)

    eventually(lambda: acknowledged() > 40, 60)
    leader = next(node for node in eu if node.name == hybrid(random.choice(eu))["leader"])
    leader.kill()
    count = acknowledged()
    eventually(lambda: acknowledged() > count + 20, 60, "the others did not go on")
    assert d.put("vm/us/1", 1)["version"] == 1
    leader.start()
    count = acknowledged()
    eventually(lambda: acknowledged() > count + 20, 60)
    stop.set()
    for client in clients:
        client.join(30)
        assert not client.is_alive()
    for node in eu:
        for number in range(3):
            key, begin = f"vm/eu/r{number}", time.monotonic_ns()
            held = RegionClient._asked(clients[0], begin, ("read",), key, lambda node=node, key=key: node.get(key))
            assert held is not LOST
    verdict = check_linearizable(history, Register())
    assert verdict.ok, f"{verdict.key}: behind {len(verdict.prefix)} calls none fits of {verdict.stuck[:5]}"
    equal(group)
