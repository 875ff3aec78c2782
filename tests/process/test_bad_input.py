"""Whatever a node is given at its start or on its ports: one clear line or a 4xx, and it serves on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sqlite3
import struct
from collections.abc import Iterator

import pytest
from real_nodes import KEY, TOKEN, Node, Nodes, cut_power_or_skip, eventually, key_path

from nova.errors import NovaError
from nova.storage.log import crc32c
from nova.transport import Identity, TcpTransport
from nova.transport.session import Session

pytestmark = pytest.mark.process

MIB = 1 << 20


def refusal(node: Node, *flags: str, exit_code: int = 2, **environment: str | None) -> str:
    """Start a node that must not start; the one line in which it says why."""
    before = len(node.words())
    command, settings = list(node.command), dict(node.environment)
    node.command = command + list(flags)
    node.environment = {name: value for name, value in (settings | environment).items() if value is not None}
    try:
        node.launch()
        assert node.wait() == exit_code, node.words()
    finally:
        node.command, node.environment = command, settings
    said = node.words()[before:]
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("nova: "), said
    return lines[0]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node that serves through all the bad input of this module, and holds what it acknowledged at the end."""
    made = Nodes(tmp_path_factory.mktemp("target"))
    try:
        (target,) = made.start("target")
        target.put("acknowledged", {"before": "all of it"})
        yield target
        assert target.running
        assert target.get("acknowledged")["value"] == {"before": "all of it"}
        assert "Traceback" not in target.words()
    finally:
        made.end()


# --- start-up ---------------------------------------------------------------------------------------------------------


def test_an_unknown_configuration_key_is_named_with_its_line_and_the_likely_one(nodes):
    (node,) = nodes.make("a")
    config = node.folder / "nova.toml"
    config.write_text("[limits]\nbody_byte_max = 5\n")
    line = refusal(node)
    assert "nova.toml line 2" in line
    assert "did you mean limits.body_bytes_max?" in line
    config.write_text("")
    assert "NOVA_LISTENN" in refusal(node, NOVA_LISTENN="127.0.0.1:1")
    assert "--listn" in refusal(node, "--listn", "127.0.0.1:1")


def test_a_port_in_use_is_named_for_peers_and_for_http(nodes, node):
    (other,) = nodes.make("a")
    assert f"http {node.http}" in refusal(other, "--http", node.http)
    line = refusal(other, "--listen", node.listen)
    assert node.listen in line
    assert "in use" in line


def test_a_data_directory_in_use_by_another_process_or_of_another_node_is_refused(nodes, node):
    (other,) = nodes.make("a")
    assert f"in use by process {node.pid}" in refusal(other, "--data", str(node.data), "--name", "target")
    other.start().put("mine", 1)
    assert other.stop() == 0
    assert "belongs to node 'a' of cluster 'nova', not to 'b'" in refusal(other, "--name", "b")
    assert "not to 'a' of 'elsewhere'" in refusal(other, "--cluster", "elsewhere")
    assert other.start().get("mine")["value"] == 1


def test_a_data_directory_of_a_newer_format_is_refused_and_left_as_it_is(nodes):
    (node,) = nodes.make("a")
    node.start().put("kept", 1)
    assert node.stop() == 0

    def set_catalogue_version(version: int) -> None:
        with contextlib.closing(sqlite3.connect(node.data / "catalog.sqlite")) as database:
            database.execute(f"PRAGMA user_version = {version}")

    set_catalogue_version(99)
    assert "catalogue version 99" in refusal(node)
    set_catalogue_version(1)

    (segment,) = node.segments()
    whole = segment.read_bytes()
    header = bytearray(whole[:64])
    struct.pack_into("<I", header, 8, 7)
    struct.pack_into("<I", header, 60, crc32c(bytes(header[:60])))
    segment.write_bytes(bytes(header) + whole[64:])
    line = refusal(node)
    assert f"{segment} has log format version 7" in line
    assert "use a newer nova" in line
    segment.write_bytes(whole)
    assert node.start().get("kept")["value"] == 1


def test_listening_beyond_loopback_without_key_and_token_is_refused(nodes):
    (node,) = nodes.make("a")
    port = node.http_port
    assert "there is no key and token" in refusal(node, "--http", f"0.0.0.0:{port}", NOVA_KEY=None, NOVA_TOKEN=None)
    assert "there is no key;" in refusal(node, "--listen", f"0.0.0.0:{port}", NOVA_KEY=None)
    assert "there is no token;" in refusal(node, "--http", f"[::]:{port}", NOVA_TOKEN=None)


def test_a_damaged_log_is_refused_with_file_and_offset_and_not_touched(nodes):
    (node,) = nodes.make("a")
    node.start()
    for number in range(30):
        node.put(f"key/{number}", "x" * 500)
    assert node.stop() == 0
    (segment,) = node.segments()
    whole = bytearray(segment.read_bytes())
    middle = whole.index(b"key/15")
    damaged = bytes(whole[:middle]) + b"K" + bytes(whole[middle + 1 :])
    segment.write_bytes(damaged)
    line = refusal(node, exit_code=1)
    assert str(segment) in line
    offset = int(re.search(r"offset (\d+)", line)[1])
    assert offset <= middle < offset + 2_000
    assert segment.read_bytes() == damaged
    segment.write_bytes(whole)
    assert len(node.start().held("key/")) == 30


def test_a_log_that_ends_before_its_snapshot_is_refused(nodes):
    """A node that went on from there would give positions to new records that its snapshot claims to cover."""
    (node,) = nodes.make("a", limits={"snapshot_log_bytes": MIB, "segment_bytes": MIB})
    node.start()
    for number in range(80):
        node.put(f"key/{number % 5}", [number, "x" * 20_000])
    eventually(lambda: list((node.data / "snapshots").glob("*.snap")), what="no snapshot was made")
    assert node.stop() == 0
    kept = {segment: segment.read_bytes() for segment in node.segments()}
    for segment in kept:
        segment.unlink()
    line = refusal(node, exit_code=1)
    assert "log files are missing" in line
    for segment in node.segments():
        segment.unlink()
    for segment, content in kept.items():
        segment.write_bytes(content)
    assert {key: value[0] for key, value in node.start().held("key/").items()} == {
        f"key/{number % 5}": number for number in range(75, 80)
    }


# --- the HTTP port ----------------------------------------------------------------------------------------------------


def problem(node: Node, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
    """Status and code of a refused request."""
    status, answer = node.ask(method, path, body)
    said = json.loads(answer)
    assert said["error"]
    assert said["request_id"]
    return status, said["code"]


def test_bad_requests_get_a_4xx_with_a_code(node):
    put = key_path("bad")
    assert problem(node, "PUT", put, b'{"value": 1') == (400, "bad_request")
    assert problem(node, "PUT", put, b"\xff\xfe") == (400, "bad_request")
    assert problem(node, "PUT", put, b"") == (400, "bad_request")
    assert problem(node, "PUT", put, b'{"valu": 1}') == (400, "bad_request")
    assert problem(node, "PUT", put, b'{"value": 1, "kind": "table"}') == (400, "bad_request")
    assert problem(node, "PUT", put, b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}") == (413, "limit")
    assert problem(node, "PUT", put, b'{"value": "%b"}' % (b"x" * 300_000)) == (413, "limit")
    assert problem(node, "PUT", put, b'{"value": "%b"}' % (b"x" * (MIB + 1))) == (413, "limit")
    assert b"the body is over the limit of 1048576 bytes" in node.ask("PUT", put, b"x" * (MIB + 1))[1]
    assert problem(node, "PUT", key_path("k" * 1025), b'{"value": 1}') == (413, "limit")
    assert problem(node, "PUT", "/v1/keys/%ff", b'{"value": 1}') == (400, "bad_request")
    assert problem(node, "PUT", key_path("vm/bad"), b'{"value": {"power_state": "on"}, "kind": "vm"}') == (
        400, "bad_request",
    )  # fmt: skip
    assert problem(node, "POST", "/v1/batch", b'{"puts": 5}') == (400, "bad_request")
    assert problem(node, "GET", "/v1/keys?limit=many") == (400, "bad_request")
    assert problem(node, "GET", "/v1/audit?after=yesterday") == (400, "bad_request")
    assert problem(node, "DELETE", key_path("absent")) == (404, "not_found")
    assert problem(node, "GET", "/v1/nothing") == (404, "not_found")
    assert problem(node, "POST", put) == (405, "method_not_allowed")
    assert node.get("bad") is None


def test_a_request_without_the_token_is_refused(node):
    with contextlib.closing(node.connect()) as link:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            link.request("GET", "/v1/status", headers=headers)
            answer = link.getresponse()
            assert (answer.status, json.loads(answer.read())["code"]) == (401, "unauthorized")


def test_garbage_on_the_http_port_ends_that_connection_only(node):
    for garbage in (
        os.urandom(4096),
        b"GET / HTTP/9.9\r\n\r\n",
        b"PUT /v1/keys/x HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        assert hung_up(node.http, garbage)
    with contextlib.closing(socket.create_connection(("127.0.0.1", node.http_port))) as cut:
        cut.sendall(b"PUT /v1/keys/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert node.put("whole", 1)["value"] == 1
    assert node.get("half") is None


# --- the peer port ----------------------------------------------------------------------------------------------------


def hung_up(address: str, sent: bytes, seconds: float = 15.0) -> bytes:
    """Send bytes and read until the other side hangs up; what came, at least a mark that it ended."""
    host, port = address.rsplit(":", 1)
    came = b""
    with (
        contextlib.closing(socket.create_connection((host, int(port)), timeout=seconds)) as sock,
        contextlib.suppress(ConnectionError),
    ):
        sock.sendall(sent)
        while data := sock.recv(65536):
            came += data
    return came or b"(nothing)"


def hello(version: int = 1, cluster: str = "nova") -> bytes:
    """The first frame of a node that asks to be a peer."""
    session = Session(
        Identity("stranger", "nowhere", cluster, 1, "127.0.0.1:1"),
        key=KEY.encode(), initiator=True, nonce=os.urandom(32), now_ns=0, version=version,
    )  # fmt: skip
    return b"".join(session.take_output())


def test_garbage_and_hostile_lengths_on_the_peer_port_end_that_connection_only(node):
    good = hello()
    hostile = [
        os.urandom(10_000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        good[:-1] + bytes([good[-1] ^ 1]),
        good + good,
        *(good[:at] + b"\xff\xff\xff\xff" + good[at + 4 :] for at in range(0, 24, 4)),
    ]
    for data in hostile:
        assert hung_up(node.listen, data)
    assert node.status()["rss_bytes"] < 300 * MIB
    assert node.sees() == {}


def test_a_peer_of_another_cluster_or_protocol_version_is_told_so(node):
    assert b"this node is not of cluster 'elsewhere'" in hung_up(node.listen, hello(cluster="elsewhere"))
    assert b"protocol version 9 is not spoken here, version 1 is" in hung_up(node.listen, hello(version=9))
    eventually(lambda: "peer speaks protocol version 9, this node version 1" in node.words(), what=node.words)
    eventually(lambda: "'stranger' is of cluster 'elsewhere'" in node.words(), what=node.words)
    assert node.sees() == {}


def test_a_peer_without_the_cluster_key_is_not_let_in(node):
    async def refused(key: bytes | None) -> str:
        transport = TcpTransport(Identity("stranger", "nowhere", "nova", 1, "127.0.0.1:1"), key=key)
        try:
            await transport.connect(node.listen)
        except NovaError as error:
            return str(error)
        finally:
            await transport.close()
        pytest.fail("a stranger was let in")

    assert "another cluster key" in asyncio.run(refused(b"another key, also of thirty-two bytes"))
    assert "asks for a cluster key" in asyncio.run(refused(None))
    assert node.sees() == {}


def test_a_node_with_a_wrong_key_says_so_stays_alone_and_takes_nothing(nodes, node):
    (stranger,) = nodes.make("stranger", join=[node.listen], key="a key that no other node of this cluster has")
    stranger.start()
    eventually(lambda: "you hold another cluster key" in stranger.words(), what=stranger.words)
    eventually(lambda: "'stranger' does not hold this cluster's key" in node.words(), what=node.words)
    assert stranger.status()["peers"] == node.status()["peers"] == 0
    assert stranger.get("acknowledged") is None
    assert stranger.put("own", 1)["value"] == 1


def test_a_second_node_of_the_same_name_is_refused_and_the_first_serves_on(nodes, node):
    (twin,) = nodes.make("target", join=[node.listen])
    twin.start()
    said = f"node target at {twin.listen} has the name of this node: refused"
    eventually(lambda: said in node.words(), what=node.words)
    assert node.status()["peers"] == 0
    assert node.put("still", 1)["value"] == 1


def test_nothing_acknowledged_is_lost_through_all_of_it(node):
    before = node.held()
    node.kill()
    cut_power_or_skip(node)
    node.start()
    assert node.held() == before
    assert node.get("acknowledged")["value"] == {"before": "all of it"}
