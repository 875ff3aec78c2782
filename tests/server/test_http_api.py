"""The HTTP face on real sockets, over a node that is one dictionary."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any
from urllib.parse import quote

import pytest
from memory_backend import Running, eventually, running

from nova.errors import ConfigError
from nova.server.config import Limits
from nova.server.serving import bind


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)


def ask(node: Running, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=10)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def refused(answer: Answer, status: int, code: str) -> str:
    """Check the shape of an error; returns its words."""
    problem = answer.json()
    assert (answer.status, problem["code"]) == (status, code), answer.body
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    return str(problem["error"])


def test_a_value_is_written_read_and_deleted(node: Running) -> None:
    written = ask(node, "PUT", "/v1/keys/vm/7", {"value": {"cpus": 4}, "kind": "vm"})
    assert written.status == 200
    read = ask(node, "GET", "/v1/keys/vm/7").json()
    assert read == written.json()
    assert read["value"] == {"cpus": 4}
    assert read["kind"] == "vm"
    assert read["time_ms"] == read["timestamp"] >> 16
    assert ask(node, "DELETE", "/v1/keys/vm/7").json()["value"] is None
    assert "vm/7" in refused(ask(node, "GET", "/v1/keys/vm/7"), 404, "not_found")


@pytest.mark.parametrize("key", ["a", "a/b/c", "a//b", "a/", "ä/☃", "a b?c#d", "%2F", "x" * 1024, "../up"])
def test_a_key_is_taken_byte_by_byte(node: Running, key: str) -> None:
    path = "/v1/keys/" + quote(key)
    assert ask(node, "PUT", path, {"value": 1}).json()["key"] == key
    assert ask(node, "GET", path).json()["key"] == key


@pytest.mark.parametrize("shortcut", [True, False])
def test_both_ways_to_a_key_answer_alike(shortcut: bool) -> None:
    seen = []
    requests: list[tuple[str, str, Any]] = [
        ("PUT", "/v1/keys/a/b", {"value": [1, {"x": None}]}),
        ("PUT", "/v1/keys/a/b", {"value": 2, "conditional": True, "context": {"n1~1": 1}}),
        ("PUT", "/v1/keys/a/b", {"value": 3, "conditional": True, "context": {"n1~1": 1}}),
        ("GET", "/v1/keys/a/b", None),
        ("GET", "/v1/keys/none", None),
        ("PUT", "/v1/keys/a", {"valu": 2}),
        ("PUT", "/v1/keys/a", b"{"),
        ("PUT", "/v1/keys/broken", {"value": 2}),
        ("PUT", "/v1/keys/busy", {"value": 2}),
        ("PUT", "/v1/keys/a", b" " * 3000),
        ("POST", "/v1/batch", {"puts": [{"key": "p", "value": 1}, {"key": "", "value": 1}]}),
        ("DELETE", "/v1/keys/a/b?conditional=true&context=" + quote('{"n1~1":1}'), None),
        ("DELETE", "/v1/keys/a/b?conditional=true&context=" + quote('{"n1~1":2}'), None),
    ]
    with running(shortcut=shortcut, limits=Limits(body_bytes_max=2048)) as node:
        for method, path, body in requests:
            answer = ask(node, method, path, body)
            problem = answer.json()
            seen.append((answer.status, problem.get("code"), problem.get("value"), problem.get("dot")))
            assert answer.headers["X-Request-Id"]
            assert answer.headers["Content-Type"].startswith("application/json")
    assert seen == [
        (200, None, [1, {"x": None}], ["n1~1", 1]),
        (200, None, 2, ["n1~1", 2]),
        (409, "conflict", None, None),
        (200, None, 2, ["n1~1", 2]),
        (404, "not_found", None, None),
        (400, "bad_request", None, None),
        (400, "bad_request", None, None),
        (500, "internal", None, None),
        (503, "unavailable", None, None),
        (413, "limit", None, None),
        (200, None, None, None),
        (409, "conflict", None, None),
        (200, None, None, ["n1~1", 4]),
    ]


def test_a_stale_conditional_write_gets_both_versions(node: Running) -> None:
    first = ask(node, "PUT", "/v1/keys/stale", {"value": "mine"}).json()
    ask(node, "PUT", "/v1/keys/stale", {"value": "theirs"})
    body = {"value": "again", "context": first["clock"], "conditional": True}
    answer = ask(node, "PUT", "/v1/keys/stale", body)
    assert "moved on" in refused(answer, 409, "conflict")
    assert answer.json()["current"]["value"] == "theirs"
    assert answer.json()["yours"] == {"value": "again", "context": first["clock"]}


def test_a_batch_answers_for_each_write(node: Running) -> None:
    puts = [
        {"key": "b/1", "value": 1},
        {"key": "b/2", "value": 2, "kind": "nonsense"},
        {"key": "k" * 1025, "value": 3},
        {"key": "broken", "value": 4},
        {"key": "b/5", "value": 5},
    ]
    results = ask(node, "POST", "/v1/batch", {"puts": puts}).json()["results"]
    assert [result.get("code") for result in results] == [None, "bad_request", "limit", "internal", None]
    assert results[0].keys() == {"key", "clock", "timestamp", "dot"}
    assert results[1].keys() == {"key", "code", "error"}
    assert "secret" not in results[3]["error"]
    assert ask(node, "GET", "/v1/keys/b/5").json()["value"] == 5


def test_a_batch_has_at_most_ten_thousand_writes(node: Running) -> None:
    puts = [{"key": "k", "value": 0}] * 10_001
    assert "10001" in refused(ask(node, "POST", "/v1/batch", {"puts": puts}), 413, "limit")


def test_keys_come_in_order_page_by_page(node: Running) -> None:
    for number in range(7):
        ask(node, "PUT", f"/v1/keys/list/{number}", {"value": number})
    keys, after = [], ""
    while after is not None:
        page = ask(node, "GET", f"/v1/keys?prefix=list/&limit=3&after={after}").json()
        assert len(page["keys"]) <= 3
        keys += [entry["key"] for entry in page["keys"]]
        after = page["next"]
    assert keys == [f"list/{number}" for number in range(7)]


@pytest.mark.parametrize("path", ["/v1/keys?limit=0", "/v1/keys?limit=1001", "/v1/keys?limit=x", "/v1/watch?since=-1"])
def test_a_wrong_query_is_named(node: Running, path: str) -> None:
    name = path.partition("?")[2].partition("=")[0]
    assert name in refused(ask(node, "GET", path), 400, "bad_request")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b'{"value": NaN}', "JSON"),
        (b'{"value": "\xff"}', ""),
        (b"[]", "object"),
        (b"{}", "value"),
        (b'{"value":1,"values":2}', "values"),
        (b'{"value":1,"context":{"a":"b"}}', "context"),
        (b'{"value":1,"kind":"nonsense"}', "nonsense"),
    ],
)
def test_a_wrong_body_is_refused_with_a_reason(node: Running, body: bytes, word: str) -> None:
    assert word in refused(ask(node, "PUT", "/v1/keys/wrong", body), 400, "bad_request")


@pytest.mark.parametrize("depth", [65, 900, 100_000])
def test_a_value_that_is_nested_too_deep_is_refused(node: Running, depth: int) -> None:
    body = b'{"value":' + b"[" * depth + b"]" * depth + b"}"
    assert "64" in refused(ask(node, "PUT", "/v1/keys/deep", body), 413, "limit")
    fits = b'{"value":' + b"[" * 64 + b"]" * 64 + b"}"
    assert ask(node, "PUT", "/v1/keys/deep", fits).status == 200


def test_sizes_have_limits_that_are_told(node: Running) -> None:
    assert "1024" in refused(ask(node, "PUT", "/v1/keys/" + "x" * 1025, {"value": 1}), 413, "limit")
    assert "1024" in refused(ask(node, "PUT", "/v1/keys/" + quote("ä" * 513), {"value": 1}), 413, "limit")
    assert "262144" in refused(ask(node, "PUT", "/v1/keys/v", {"value": "x" * 262_143}), 413, "limit")
    assert ask(node, "PUT", "/v1/keys/v", {"value": "x" * 262_142}).status == 200
    assert "1048576" in refused(ask(node, "PUT", "/v1/keys/v", b" " * 1_048_577), 413, "limit")
    refused(ask(node, "PUT", "/v1/keys/", {"value": 1}), 400, "bad_request")
    refused(ask(node, "PUT", "/v1/keys/%ff", {"value": 1}), 400, "bad_request")


@pytest.mark.parametrize("path", ["/v1/keys/long", "/v1/batch"])
def test_a_body_without_a_length_is_cut_off_at_the_limit(node: Running, path: str) -> None:
    with socket.create_connection(("127.0.0.1", node.port), 10) as sock:
        method = "PUT" if "keys" in path else "POST"
        sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        sent = 0
        try:
            for _ in range(1000):
                sock.sendall(chunk)
                sent += 65536
        except OSError:
            pass  # the node hung up, as it should
        assert sent < 60_000_000
        with sock.makefile("rb") as stream:
            try:
                head = stream.readline()
            except ConnectionResetError:
                head = b""
        assert head in (b"", b"HTTP/1.1 413 Request Entity Too Large\r\n", b"HTTP/1.1 413 Content Too Large\r\n")


def test_a_body_may_come_in_pieces(node: Running) -> None:
    pieces = iter([b'{"val', b'ue": "', b"x" * 100_000, b'"}'])
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=10)
    connection.request("PUT", "/v1/keys/pieces", pieces, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert Answer(connection.getresponse()).json()["value"] == "x" * 100_000
    connection.close()


def test_what_fails_inside_is_logged_and_not_told(node: Running, caplog: pytest.LogCaptureFixture) -> None:
    message = refused(ask(node, "PUT", "/v1/keys/broken", {"value": 1}, {"X-Request-Id": "me-1"}), 500, "internal")
    assert "me-1" in message
    assert "secret" not in message
    eventually(lambda: "me-1" in caplog.text)
    assert "the secret inside" in caplog.text


def test_not_now_says_when(node: Running) -> None:
    answer = ask(node, "PUT", "/v1/keys/busy", {"value": 1})
    refused(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] == "3"


def test_a_request_keeps_its_name_and_every_answer_has_one(node: Running) -> None:
    for path in ("/v1/keys/none", "/v1/status", "/healthz", "/nowhere"):
        assert ask(node, "GET", path, headers={"X-Request-Id": "abc.1"}).headers["X-Request-Id"] == "abc.1"
        made = {ask(node, "GET", path, headers={"X-Request-Id": "bad id"}).headers["X-Request-Id"] for _ in range(2)}
        assert len(made) == 2
        assert "bad id" not in made


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/nothing", "/v1/keysx"])
def test_an_unknown_route_is_refused(node: Running, path: str) -> None:
    refused(ask(node, "GET", path), 404, "not_found")


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/keys/a"), ("PUT", "/v1/status"), ("GET", "/v1/batch")])
def test_a_method_that_a_route_does_not_have_is_refused(node: Running, method: str, path: str) -> None:
    refused(ask(node, method, path), 405, "method_not_allowed")


def test_reading_routes_pass_on_what_the_node_says(node: Running) -> None:
    ask(node, "PUT", "/v1/keys/why/me", {"value": 1})
    assert ask(node, "GET", "/v1/status").json()["name"] == "n1"
    assert ask(node, "GET", "/v1/peers").json()["peers"][0]["node"] == "n2"
    assert ask(node, "GET", "/v1/conflicts").json()["total"] == 1
    assert ask(node, "GET", "/v1/conflicts?key=other").json()["conflicts"] == []
    assert ask(node, "GET", "/v1/why/why/me").json()["text"] == "why/me was written once, by n1."
    refused(ask(node, "GET", "/v1/why/none"), 404, "not_found")
    events = ask(node, "GET", "/v1/audit?resource=vm/1&type=resolved&limit=5").json()["events"]
    asked = {"resource": "vm/1", "conflict": None, "type": "resolved", "limit": 5, "after": 0}
    assert events[0]["asked"] == {**asked, "since_ms": None, "until_ms": None}
    between = ask(node, "GET", "/v1/audit?since_ms=5&until_ms=9").json()["events"][0]["asked"]
    assert (between["since_ms"], between["until_ms"]) == (5, 9)
    refused(ask(node, "GET", "/v1/audit?after=x1"), 400, "bad_request")
    assert ask(node, "GET", "/v1/audit/verify").json()["ok"] is True
    assert ask(node, "GET", "/v1/audit/verify?head=9:00").json()["ok"] is False
    assert ask(node, "GET", "/v1/audit/statistics?top=1").json()["hotspots"][0]["subject"] == "vm/1"
    assert ask(node, "GET", "/v1/audit/export").body == b'{"seq":1}\n{"seq":2}\n'
    assert ask(node, "POST", "/v1/audit/retain", {"events_max": 3}).json() == {"dropped": 3}
    metrics = ask(node, "GET", "/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert metrics.body.startswith(b"nova_keys ")


def test_points_are_made_listed_and_gone_back_to(node: Running) -> None:
    ask(node, "PUT", "/v1/keys/a/b", {"value": 1})
    assert ask(node, "POST", "/v1/points/a/b", {"note": "x"}).json() == {"point": "p2x"}
    assert ask(node, "GET", "/v1/points/a/b").json()["points"][0]["value"] == "a/b"
    done = ask(node, "POST", "/v1/rollback/a/b", {"to": "p1", "context": {"n~1": 1}, "by": "ann"}).json()
    assert (done["restored"], done["kept"][0]["origin"]) == ({"/a": "ann"}, "n2")
    refused(ask(node, "POST", "/v1/points/nothing", {}), 404, "not_found")
    refused(ask(node, "POST", "/v1/rollback/a/b", {"to": "none"}), 404, "not_found")
    refused(ask(node, "POST", "/v1/rollback/a/b", {}), 400, "bad_request")
    refused(ask(node, "POST", "/v1/audit/retain", {"days": 3}), 400, "bad_request")


def test_what_waits_is_listed_and_decided(node: Running) -> None:
    (waits,) = ask(node, "GET", "/v1/decisions").json()["waiting"]
    assert [each["value"] for each in waits["candidates"]] == [4, 8]
    decision = {"shown": waits["shown"], "values": {"/cpus": 8}, "by": "ann"}
    done = ask(node, "POST", "/v1/decisions/vm/1", decision).json()
    assert (done["key"], done["values"], done["discarded"][0]["origin"]) == ("vm/1", {"/cpus": 8}, "n1")
    stale = ask(node, "POST", "/v1/decisions/vm/1", decision | {"shown": "s0"})
    refused(stale, 409, "conflict")
    assert stale.json()["current"]["shown"] == "s1"
    refused(ask(node, "POST", "/v1/decisions/vm/1", {"values": {}}), 400, "bad_request")


def test_checkpoints_and_witnesses(node: Running) -> None:
    assert ask(node, "GET", "/v1/checkpoints").json() == {"checkpoints": []}
    made = ask(node, "POST", "/v1/checkpoints").json()
    assert ask(node, "GET", "/v1/checkpoints").json() == {"checkpoints": [made]}
    assert ask(node, "GET", "/v1/audit/witnesses").json()["held_by"] == {}


def test_a_peer_is_healed_and_the_time_that_takes_is_bounded(node: Running) -> None:
    report = ask(node, "POST", "/v1/heal", {"peer": "n2"}).json()
    assert (report["node"], report["equal"], report["before"], report["conflicts"]) == ("n2", True, ["00", "ff"], 1)
    assert ask(node, "POST", "/v1/heal", {"peer": "n2", "timeout_ms": 200}).json()["equal"] is False
    for wrong in ({}, {"peer": "n2", "timeout_ms": 0}, {"peer": "n2", "seconds": 1}):
        refused(ask(node, "POST", "/v1/heal", wrong), 400, "bad_request")


@pytest.mark.parametrize("shortcut", [True, False])
def test_a_key_is_read_as_of_a_time(shortcut: bool) -> None:
    with running(shortcut=shortcut) as node:
        ask(node, "PUT", "/v1/keys/k", {"value": 1})
        for at in ("1769860800000", "2026-01-31T12:00:00Z", "2026-01-31T13:00:00%2B01:00"):
            assert ask(node, "GET", f"/v1/keys/k?at={at}").json()["value"] == 1
        for at in ("", "yesterday", "2026-01-31T12:00:00", "-1"):
            words = refused(ask(node, "GET", f"/v1/keys/k?at={at}"), 400, "bad_request")
            assert "give Unix milliseconds, or a time with its zone" in words
        refused(ask(node, "GET", "/v1/keys/k?at=999"), 503, "unavailable")


def test_health_is_the_process_and_readiness_the_node(node: Running) -> None:
    assert ask(node, "GET", "/healthz").status == 200
    assert ask(node, "GET", "/readyz").json() == {"ready": True, "reason": "serving"}
    node.backend.is_ready = False
    try:
        assert ask(node, "GET", "/healthz").status == 200
        answer = ask(node, "GET", "/readyz")
        assert (answer.status, answer.json()["reason"]) == (503, "replaying the log")
    finally:
        node.backend.is_ready = True


def test_links_are_cut_only_where_the_node_allows_it(node: Running) -> None:
    assert ask(node, "POST", "/v1/chaos/cut", {"peers": ["n2"]}).json() == {"cut": ["n2"]}
    assert ask(node, "POST", "/v1/chaos/heal").json() == {"cut": []}
    refused(ask(node, "POST", "/v1/chaos/cut", {"peer": "n2"}), 400, "bad_request")
    with running() as tame:
        refused(ask(tame, "POST", "/v1/chaos/cut", {"peers": ["n2"]}), 404, "not_found")


def test_the_description_names_every_route(node: Running) -> None:
    paths = ask(node, "GET", "/openapi.json").json()["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    keys = {(method, "/v1/keys/{key}") for method in ("PUT", "GET", "DELETE")}
    plain = "/ /healthz /readyz /metrics /openapi.json /v1/keys /v1/watch /v1/status /v1/peers /v1/conflicts"
    plain += (
        " /v1/why/{key} /v1/audit /v1/audit/verify /v1/audit/statistics /v1/audit/export /v1/points/{key} /v1/decisions"
    )
    plain += " /v1/audit/witnesses /v1/checkpoints /v1/consensus"
    gets = {("GET", path) for path in plain.split()}
    writes = "/v1/batch /v1/chaos/cut /v1/chaos/heal /v1/audit/retain /v1/points/{key} /v1/rollback/{key}"
    writes += " /v1/decisions/{key} /v1/checkpoints /v1/heal /v1/transact/{key}"
    writes += " /v1/consensus/members /v1/consensus/transfer /v1/consensus/switch /v1/regions/{region}/members"
    posts = {("POST", path) for path in writes.split()}
    deletes = {("DELETE", f"/v1/{group}/members/{{node}}") for group in ("consensus", "regions/{region}")}
    assert routes == keys | gets | posts | deletes
    answers = paths["/v1/keys/{key}"]["put"]["responses"]
    assert answers.keys() >= {"200", "400", "409", "413", "503"}
    assert "application/json" in paths["/v1/keys/{key}"]["put"]["requestBody"]["content"]


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_a_node_with_a_token_asks_for_it() -> None:
    with running(token="sesame-sesame") as node:
        for path in ("/v1/status", "/v1/keys/a", "/v1/keys", "/metrics", "/v1/watch", "/v1/nothing"):
            answer = ask(node, "GET", path)
            assert "token" in refused(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            refused(ask(node, "GET", path, headers={"Authorization": "Bearer sesame"}), 401, "unauthorized")
            refused(ask(node, "GET", path, headers={"Authorization": "Basic sesame-sesame"}), 401, "unauthorized")
        for scheme in ("Bearer", "bearer"):
            assert ask(node, "GET", "/v1/status", headers={"Authorization": f"{scheme} sesame-sesame"}).status == 200
        for path in ("/healthz", "/readyz", "/", "/openapi.json"):
            assert ask(node, "GET", path).status == 200


def test_a_foreign_web_page_gets_nothing_from_a_local_node(node: Running) -> None:
    refused(ask(node, "GET", "/v1/status", headers={"Host": "evil.example:8420"}), 403, "forbidden")
    for origin in ("http://evil.example", "null"):
        answer = ask(node, "POST", "/v1/batch", {"puts": []}, {"Origin": origin, "Content-Type": "text/plain"})
        refused(answer, 403, "forbidden")
    own = {"Origin": f"http://127.0.0.1:{node.port}"}
    assert ask(node, "PUT", "/v1/keys/own", {"value": 1}, own).status == 200
    for host in ("localhost", f"localhost:{node.port}", f"[::1]:{node.port}", "[::1]"):
        assert ask(node, "GET", "/v1/status", headers={"Host": host}).status == 200
    assert "Access-Control-Allow-Origin" not in ask(node, "GET", "/v1/status", headers=own).headers


def test_the_page_needs_nothing_from_elsewhere(node: Running) -> None:
    answer = ask(node, "GET", "/")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert b"http://" not in answer.body
    assert b"https://" not in answer.body
    assert b" src=" not in answer.body


# --- watch ------------------------------------------------------------------------------------------------------------


class Feed:
    """The raw lines of a watch."""

    def __init__(self, node: Running, query: str = "", headers: dict[str, str] | None = None) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=10)
        self.connection.request("GET", "/v1/watch" + query, headers=headers or {})
        self.response = self.connection.getresponse()

    def next(self) -> tuple[str | None, Any]:
        """(id, data) of the next event, (None, None) for a keep-alive."""
        fields: dict[str, str] = {}
        while line := self.response.readline().decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            fields[name] = value
        return fields.get("id"), json.loads(fields["data"]) if "data" in fields else None

    def change(self) -> tuple[str | None, Any]:
        while (event := self.next()) == (None, None):
            pass
        return event

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def test_a_watch_shows_what_was_missed_and_what_comes() -> None:
    with running() as node:
        for number in range(3):
            ask(node, "PUT", f"/v1/keys/w/{number}", {"value": number})
        feed = Feed(node, "?since=1&prefix=w/")
        assert feed.response.headers["Content-Type"].startswith("text/event-stream")
        assert [feed.change()[0] for _ in range(2)] == ["2", "3"]
        ask(node, "PUT", "/v1/keys/other", {"value": 0})
        ask(node, "DELETE", "/v1/keys/w/0")
        revision, change = feed.change()
        assert (revision, change["key"], change["deleted"], change["revision"]) == ("5", "w/0", True, 5)
        feed.close()


def test_a_watch_without_a_start_shows_only_what_comes() -> None:
    with running() as node:
        ask(node, "PUT", "/v1/keys/before", {"value": 0})
        feed = Feed(node)
        ask(node, "PUT", "/v1/keys/after", {"value": 0})
        assert feed.change()[1]["key"] == "after"
        feed.close()
        resumed = Feed(node, headers={"Last-Event-ID": "0"})
        assert resumed.change()[1]["key"] == "before"
        resumed.close()


def test_a_watch_of_forgotten_changes_is_refused() -> None:
    with running(oldest=5) as node:
        answer = ask(node, "GET", "/v1/watch?since=4")
        refused(answer, 410, "compacted")
        assert answer.json()["oldest"] == 5


def test_a_silent_watch_is_kept_alive_and_its_end_is_noticed() -> None:
    with running() as node:
        feed = Feed(node)
        assert [feed.next() for _ in range(3)] == [(None, None)] * 3
        eventually(lambda: node.backend.open_watches == 1)
        feed.close()
        eventually(lambda: node.backend.open_watches == 0)


# --- the server -------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_clear_line(node: Running) -> None:
    with pytest.raises(ConfigError, match=rf"http 127.0.0.1:{node.port}: cannot listen there .*--http"):
        bind(f"127.0.0.1:{node.port}")
    with pytest.raises(ConfigError, match="no address of this machine"):
        bind("no.such.host.invalid:80")


def test_garbage_on_the_wire_does_not_stop_the_node(node: Running) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00" * 50,
        b"PUT /v1/keys/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\r\n" * 9,
    ):
        with socket.create_connection(("127.0.0.1", node.port), 10) as sock:
            sock.sendall(garbage)
    for length in ("-1", "x", "99999999999999999999"):
        assert ask(node, "PUT", "/v1/keys/a", b"{}", {"Content-Length": length}).status in (400, 413)
    assert ask(node, "GET", "/healthz").status == 200
