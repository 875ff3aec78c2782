"""The routes of strong keys and of their group, over the node that is one dictionary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from memory_backend import Running, running
from test_http_api import ask, refused

from nova.store.strong import Add, Exists, Read, Remove, ValueIs, VersionIs, Write


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.fixture(params=[True, False], ids=["short", "litestar"])
def node(request: Any) -> Iterator[Running]:
    with running(shortcut=request.param) as node:
        yield node


def test_an_expected_version_comes_through_on_both_ways(node: Running) -> None:
    made = ask(node, "PUT", "/v1/keys/cfg/x", {"value": 1, "expect": 0})
    assert made.status == 200
    stale = ask(node, "PUT", "/v1/keys/cfg/x", {"value": 2, "expect": 0})
    assert "expected version 0" in refused(stale, 409, "conflict")
    assert (stale.json()["current"]["value"], stale.json()["yours"]["value"]) == (1, 2)
    assert ask(node, "DELETE", "/v1/keys/cfg/x?expect=7").status == 200
    assert ("delete", "cfg/x", 7) in node.backend.asked
    refused(ask(node, "DELETE", "/v1/keys/cfg/x?expect=-1"), 400, "bad_request")
    refused(ask(node, "PUT", "/v1/keys/cfg/x", {"value": 1, "expect": "x"}), 400, "bad_request")


def test_the_consistency_that_is_asked_for_comes_through(node: Running) -> None:
    ask(node, "PUT", "/v1/keys/cfg/x", {"value": 1})
    for wanted in ("lease", "local", "linearizable"):
        assert ask(node, "GET", f"/v1/keys/cfg/x?consistency={wanted}").status == 200
        assert node.backend.asked[-1] == ("get", "cfg/x", wanted)
    ask(node, "GET", "/v1/keys/cfg/x")
    assert node.backend.asked[-1] == ("get", "cfg/x", None)
    refused(ask(node, "GET", "/v1/keys/cfg/x?consistency=strict"), 400, "bad_request")
    ask(node, "GET", "/v1/keys?prefix=cfg/&consistency=local")
    assert node.backend.asked[-1] == ("list", "cfg/", "local")


def test_a_transaction_is_read_and_answered(node: Running) -> None:
    asked = {
        "if": [{"version": 3}, {"value": {"b": 1, "a": None}}, {"exists": True}],
        "do": [{"put": None}, {"add": 2.5}, {"get": True}, {"delete": True}],
    }
    done = ask(node, "POST", "/v1/transact/cfg//x", asked)
    assert node.backend.asked[-1] == (
        "cfg//x",
        [VersionIs(3), ValueIs(b'{"a":null,"b":1}'), Exists()],
        [Write(b"null"), Add(2.5), Read(), Remove()],
    )
    body = done.json()
    assert (body["entry"]["version"], body["entry"]["time_ms"], body["results"], body["revision"]) == (
        3,
        7,
        [None, {"a": 1}],
        3,
    )
    refused(ask(node, "POST", "/v1/transact/stale", {"do": [{"get": True}]}), 409, "conflict")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"do": [{}]}, "do, number 1, has 0 of put, add, delete, get"),
        ({"do": [{"put": 1, "add": 1}]}, "has 2 of"),
        ({"do": [{"get": False}]}, "get is false"),
        ({"do": [], "if": [{"exists": False}]}, "version 0"),
        ({"do": [{"add": "x"}]}, ""),
        ({"do": [{"put": deep(70)}]}, ""),
        ({"do": [], "unless": []}, ""),
        ({}, ""),
    ],
)
def test_a_transaction_that_is_none_is_refused(node: Running, asked: Any, words: str) -> None:
    answer = ask(node, "POST", "/v1/transact/x", asked)
    assert words in answer.json()["error"]
    assert answer.status in (400, 413)


def test_the_group_is_shown_and_changed_and_who_does_not_lead_says_who_does(node: Running) -> None:
    status = ask(node, "GET", "/v1/consensus").json()
    assert (status["leader"], status["term"], status["epochs"][0]["former"]) == ("n1", 4, "paxos")
    refused(ask(node, "POST", "/v1/consensus/members", {"node": "n3"}), 400, "bad_request")
    added = ask(node, "POST", "/v1/consensus/members", {"node": "n3", "address": "127.0.0.1:9"}).json()
    assert [member["node"] for member in added["members"]] == ["n1", "n2", "n3"]
    assert len(ask(node, "DELETE", "/v1/consensus/members/n3").json()["members"]) == 2
    assert ask(node, "POST", "/v1/consensus/switch", {"protocol": "paxos"}).json()["protocol"] == "paxos"
    refused(ask(node, "POST", "/v1/consensus/switch", {"protocol": "zab"}), 400, "bad_request")
    assert ask(node, "POST", "/v1/consensus/transfer", {"node": "n2"}).json()["leader"] == "n2"
    late = ask(node, "POST", "/v1/consensus/transfer", {"node": "n1"})
    assert "ask n2" in refused(late, 503, "not_leader")
    assert late.json()["leader"] == "n2"
    assert late.headers["Retry-After"] == "1"


def test_members_of_a_region_come_and_go(node: Running) -> None:
    added = ask(node, "POST", "/v1/regions/eu/members", {"node": "n3", "address": "127.0.0.1:9"}).json()
    assert added["regions"]["eu"]["members"] == ["n1", "n2", "n3"]
    left = ask(node, "DELETE", "/v1/regions/eu/members/n2").json()
    assert left["regions"]["eu"]["members"] == ["n1"]


def test_the_routes_are_described(node: Running) -> None:
    paths = ask(node, "GET", "/openapi.json").json()["paths"]
    for path in ("/v1/transact/{key}", "/v1/consensus", "/v1/consensus/members", "/v1/consensus/switch"):
        assert path in paths, sorted(paths)
    assert "GroupStatus" in json.dumps(paths["/v1/consensus"])
    asked = {parameter["name"] for parameter in paths["/v1/keys/{key}"]["get"]["parameters"]}
    assert "consistency" in asked
