"""[tls] and transport in a node's configuration, and what the dashboard says of them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from nova.errors import ConfigError
from nova.metrics import Registry
from nova.server import engines
from nova.server.config import load
from nova.server.dashboard import render
from nova.server.dashboard.view import ClusterView, NodeView
from nova.server.tls_config import node_tls
from tests import authorities

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def folder() -> str:
    authorities.files("n", "local", "node", cluster="nova")
    return str(authorities.authority("node", cluster="nova").folder)


def test_a_folder_is_all_that_is_needed(folder: str) -> None:
    config = load(flags={"name": "n", "tls.dir": folder})
    tls = node_tls(config, Registry())
    assert tls is not None
    assert tls.status()["certificate"] == "nova://nova/local/n"
    assert node_tls(load(), Registry()) is None


def test_each_file_can_be_named_and_wins_over_the_folder(folder: str) -> None:
    table = load(env={"NOVA_NAME": "n", "NOVA_TLS_DIR": folder, "NOVA_TLS_CA": f"{folder}/n.pem"}).tls
    assert table.files("n").ca == f"{folder}/n.pem"
    assert table.files("n").key == f"{folder}/n.key"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"tls.dir": "nowhere"},
            "command line: tls.ca is nowhere/ca.pem, and there is no such file; make it: nova certs",
        ),
        ({"tls.ca": "x.pem"}, "tls.ca is x.pem, and there is no such file"),
        ({"tls.client_ca": "x.pem"}, "tls.ca is missing; set tls.ca, tls.certificate and tls.key, or tls.dir"),
        ({"tls.check_ms": 5}, "--tls-check-ms 5 is out of range; it must lie between 100 and 3600000"),
        ({"transport": "carrier pigeon"}, "--transport carrier pigeon is no engine; use one of auto, tcp, uring, rdma"),
        ({"transport": "rdma"}, "--transport rdma is not in this version of nova; use one of auto, tcp"),
    ],
)
def test_what_cannot_be_is_one_line_with_the_mend(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as told:
        load(flags={"name": "n", **flags})
    assert words in str(told.value)


def test_an_engine_joins_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.ENGINES, "uring", lambda *given, **options: ("uring", given, options))  # type: ignore[arg-type, return-value]
    assert load(flags={"transport": "uring"}).transport == "uring"
    assert engines.make_transport("uring", 1, key=b"") == ("uring", (1,), {"key": b""})  # type: ignore[comparison-overlap]
    monkeypatch.delitem(engines.ENGINES, "uring")
    with pytest.raises(ConfigError, match="transport uring is not in this version of nova"):
        engines.make_transport("uring")


def test_certificates_stand_for_the_cluster_key_but_not_for_the_token(folder: str) -> None:
    public = {"name": "n", "listen": "10.0.0.1:7420", "http": "10.0.0.1:8420", "tls.dir": folder}
    assert load(flags={**public, "token": TOKEN}).key is None
    with pytest.raises(ConfigError, match="can be reached from other machines, but there is no token"):
        load(flags=public)
    with pytest.raises(ConfigError, match="can be reached from other machines, but there is no key; set key"):
        load(flags={**public, "tls.dir": "", "token": TOKEN})


def seen(tls: dict[str, Any] | None, encrypted: bool) -> ClusterView:
    view = ClusterView([], None)
    node = NodeView("https://a", None)
    node.name, node.region, node.error = "a", "r", ""
    node.link_bps = {"b": 8_000.0}
    node.status = {
        "digest": "0" * 32, "region": "r", "keys": 1, "rss_bytes": 1, "uptime_s": 1.0, "peers": 1, "conflicts": 0,
        **({"tls": tls} if tls is not None else {}),
    }  # fmt: skip
    node.peers = [
        {
            "node": "b", "region": "s", "state": "alive", "connected": True, "rtt_ms": 1.5, "lag_ops": 0,
            "sent_bytes": 12_000, "received_bytes": 1, "queue_bytes": 2_000, "encrypted": encrypted,
        }
    ]  # fmt: skip
    view.nodes = {"https://a": node}
    return view


def told(expires_s: float, failures: dict[str, int] | None = None) -> dict[str, Any]:
    return {"expires_s": expires_s, "ca_expires_s": time.time() + 1e8, "failures": failures or {}}


def test_the_page_says_which_links_are_covered_and_what_they_carry() -> None:
    page = render.links(seen(told(time.time() + 1e7), encrypted=True))
    assert "<td>TLS 1.3</td><td>1.5 ms</td><td>0</td><td>12.0 kB</td><td>1.0 kB/s</td><td>2.0 kB</td>" in page
    assert "<td>plain</td>" in render.links(seen(None, encrypted=False))


def test_the_page_says_until_when_certificates_live_and_marks_those_that_end_soon() -> None:
    late = time.time() + 100 * 86_400
    page = render.nodes(seen(told(late), encrypted=True))
    assert f"certificate until {time.strftime('%Y-%m-%d', time.gmtime(late))}" in page
    assert 'class="row dim num" data-testid="tls"' in page
    soon = render.nodes(seen(told(time.time() + 86_400, {"expired": 3, "plain": 4}), encrypted=True))
    assert 'class="row bad num" data-testid="tls"' in soon
    assert "7 handshakes failed" in soon
    assert "not encrypted" in render.nodes(seen(None, encrypted=False))
