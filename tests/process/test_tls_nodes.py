"""TLS between real nodes: they work as without it, strangers get a line on both sides, certificates change."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import ssl
import threading
from pathlib import Path

import pytest
from real_nodes import TOKEN, Nodes, eventually, free_ports, meet
from test_demo import kept

from nova.cli.app import run
from nova.server.dashboard import render
from nova.server.dashboard.view import ClusterView
from nova.transport.authority import Authority
from nova.transport.tls import http_client
from tests.authorities import days_ago

pytestmark = pytest.mark.process


class Secured(Nodes):
    """Nodes with certificates of one authority, made as they are made."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.authority = Authority.create(folder / "certs")
        self.certs = self.authority.folder
        self.trusting = http_client(str(self.certs / "ca.pem"))

    def make(self, *names, **options):
        for name in names:
            if "flags" not in options:
                self.authority.issue(name, f"region-{name}")
        return super().make(*names, **{"flags": ("--tls", str(self.certs)), "tls": self.trusting, **options})


@pytest.fixture
def nodes(tmp_path):
    made = Secured(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Secured(tmp_path_factory.mktemp("secured"))
    try:
        made.start("a", "b", "c")
        yield made
    finally:
        made.end()


def served(node):
    """The certificate that its API shows now."""
    with socket.create_connection(("127.0.0.1", node.http_port)) as sock, node.tls.wrap_socket(
        sock, server_hostname="127.0.0.1"
    ) as end:  # fmt: skip
        return end.getpeercert(binary_form=True)


def test_nodes_meet_and_hold_the_same_and_say_that_links_are_encrypted(cluster):
    a, b, c = cluster.all
    a.put("k", {"from": "a"})
    eventually(lambda: (c.get("k") or {}).get("value") == {"from": "a"})
    for node in (a, b, c):
        assert [peer["encrypted"] for peer in node.call("GET", "/v1/peers")["peers"]] == [True, True]
        told = node.status()["tls"]
        assert told["certificate"] == f"nova://nova/region-{node.name}/{node.name}"
        assert told["ca_expires_s"] > told["expires_s"]
    page = a.ask("GET", "/metrics")[1].decode()
    assert f"nova_tls_certificate_expiry_seconds {a.status()['tls']['expires_s']:.0f}" in page


def test_the_dashboard_finds_the_nodes_by_https_and_tells_their_links(cluster):
    async def look():
        view = ClusterView([f"https://{cluster.all[0].http}"], TOKEN, cluster.trusting)
        for _ in range(2):
            await view.ask()
        pages = render.links(view), render.nodes(view)
        assert {node.name for node in view.up} == {"a", "b", "c"}, [node.error for node in view.nodes.values()]
        for node in view.nodes.values():
            await node.client.close()
        return pages

    links, nodes = asyncio.run(look())
    assert links.count("<td>TLS 1.3</td>") == 6
    assert nodes.count("TLS 1.3 · certificate until 2") == 3


def test_a_cut_and_a_kill_heal_as_without_tls(cluster):
    a, b, c = cluster.all
    c.cut(a, b)
    a.put("during", 1)
    c.put("during", 2)
    b.kill()
    b.start()
    a.heal()
    c.heal()
    b.heal()
    meet(a, b, c)
    eventually(lambda: len({node.status()["digest"] for node in (a, b, c)}) == 1)


def stranger(nodes, node, *flags, name="stranger", **options):
    """A real node that asks to be a peer and never is; what both wrote."""
    (made,) = nodes.make(name, join=[node.listen], flags=flags, **options)
    made.launch()
    return made


def both_say(node, stranger, said, told):
    eventually(lambda: said in node.words(), what=lambda: f"no {said!r} in:\n{node.words()}")
    eventually(lambda: told in stranger.words(), what=lambda: f"no {told!r} in:\n{stranger.words()}")
    assert node.sees().get(stranger.name) != "alive"
    assert "(region-stranger" not in node.words()


def test_a_node_of_another_authority_is_refused(nodes, tmp_path):
    (node,) = nodes.start("target")
    other = Authority.create(tmp_path / "others")
    other.issue("stranger", "region-stranger")
    # It trusts the node, so that it is its own certificate that is looked at.
    ca = tmp_path / "others" / "ca.pem"
    ca.write_bytes(ca.read_bytes() + (nodes.certs / "ca.pem").read_bytes())
    alone = stranger(nodes, node, "--tls", str(tmp_path / "others"))
    both_say(
        node, alone,
        "is refused: its certificate is not of an authority that is trusted here",
        "refuses this side's certificate (nova://nova/region-stranger/stranger, valid from ",
    )  # fmt: skip
    assert node.status()["tls"]["failures"]["untrusted"] >= 1
    assert node.put("still", 1)["value"] == 1


def test_a_node_whose_certificate_has_expired_is_refused_until_it_is_renewed_without_a_restart(nodes):
    (node,) = nodes.start("target")
    nodes.authority.issue("late", "region-late", now=days_ago(20), days=19)
    late = stranger(nodes, node, "--tls", str(nodes.certs), name="late")
    both_say(
        node, late, "its certificate has expired; make a new one: nova certs renew", "it has expired; make a new one"
    )
    assert "the certificate in " in late.words()
    assert "late.pem expired at 2" in late.words()
    pid = late.pid
    nodes.authority.renew("late", days=30)
    late.send_signal(signal.SIGHUP)
    late.ready()
    meet(node, late)
    assert late.pid == pid


def test_a_node_without_tls_is_refused(nodes):
    (node,) = nodes.start("target")
    plain = stranger(nodes, node, tls=None)
    both_say(
        node, plain,
        "is refused: it does not speak TLS, and this side does: give both sides [tls], or neither",
        "refused by the peer: this port speaks TLS 1.3, and you do not: set [tls]",
    )  # fmt: skip
    plain.end()
    # And the other way round.
    (open_one,) = nodes.make("open", flags=(), tls=None, join=[])
    open_one.start()
    node.end()
    node.command += ["--join", open_one.listen]
    node.start()
    eventually(lambda: "the peer speaks TLS, and this node does not" in open_one.words(), what=open_one.words)
    eventually(lambda: "it speaks no TLS 1.3: TLS 1.2 or older, or none at all" in node.words(), what=node.words)


def test_who_shows_no_certificate_is_refused(nodes):
    (node,) = nodes.start("target")
    host, port = node.listen.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as sock,
        nodes.trusting.wrap_socket(sock, server_hostname=host) as end,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        end.recv(1)
    eventually(lambda: "is refused: it shows no certificate, and has to" in node.words(), what=node.words)


def test_a_node_with_the_certificate_of_another_one_does_not_start(nodes):
    nodes.authority.issue("a", "region-a")
    (made,) = nodes.make("b", flags=("--tls", str(nodes.certs)))
    for end in ("pem", "key"):
        (nodes.certs / f"a.{end}").rename(nodes.certs / f"b.{end}")
    made.launch()
    assert made.wait() == 2
    assert "is of node 'a' in region 'region-a', this is 'b' in 'region-b'; issue one for it" in made.words()


def test_renewed_certificates_are_taken_up_while_nodes_work(nodes):
    a, b = nodes.start("a", "b", environment={"NOVA_TLS_CHECK_MS": "100"})
    before = served(a)
    nodes.authority.renew("a")
    eventually(lambda: served(a) != before, what=a.words)
    # A whole change of the authority, and no moment at which new streams would fail.
    link = [0]

    def talks():
        b.call("POST", "/v1/chaos/cut", {"peers": ["a"]})
        b.heal()
        meet(a, b)
        link[0] += 1
        a.put("k", link[0])
        eventually(lambda: b.get("k")["value"] == link[0])

    def read_again(count):
        eventually(lambda: a.words().count("TLS files are read again") >= count, what=a.words)

    nodes.authority.roll()
    read_again(2)
    a.tls = b.tls = http_client(str(nodes.certs / "ca.pem"))
    talks()
    nodes.authority.renew("a")
    nodes.authority.renew("b")
    read_again(3)
    talks()
    nodes.authority.roll(finish=True)
    read_again(4)
    a.tls = b.tls = http_client(str(nodes.certs / "ca.pem"))
    talks()


def test_the_api_asks_for_certificates_of_the_clients_authority(nodes, tmp_path, capsys, monkeypatch):
    clients = Authority.create(tmp_path / "clients")
    clients.issue("ops", client=True)
    (tmp_path / "clients" / "ops.both").write_bytes(
        (tmp_path / "clients" / "ops.pem").read_bytes() + (tmp_path / "clients" / "ops.key").read_bytes()
    )
    ca, cert = str(nodes.certs / "ca.pem"), str(tmp_path / "clients" / "ops.pem")
    knows = http_client(ca, cert, cert.replace(".pem", ".key"))
    (node,) = nodes.make("a", tls=knows, environment={"NOVA_TLS_CLIENT_CA": str(tmp_path / "clients" / "ca.pem")})
    node.start()
    assert node.put("k", 1)["value"] == 1
    monkeypatch.setenv("NOVA_TOKEN", TOKEN)
    monkeypatch.setenv("NOVA_NODE", f"https://{node.http}")

    def nova(*arguments):
        code = run([*arguments])
        said = capsys.readouterr()
        return code, said.out.strip(), said.err

    assert nova("get", "k", "--ca", ca, "--cert", cert)[:2] == (0, "1")
    assert nova("get", "k", f"--ca={ca}", "--cert", cert.replace(".pem", ".both"))[:2] == (0, "1")
    code, _, told = nova("get", "k", "--ca", ca)
    assert code == 3
    assert "it refuses this side's certificate: it asks for a certificate, and none was shown; --cert names one" in told
    code, _, told = nova("get", "k")
    assert code == 3
    assert "its certificate is not of an authority that is trusted here" in told
    assert "--ca names whom to trust" in told
    code, _, told = nova("get", "k", "--node", f"http://{node.http}")
    assert (code, told) == (2, "nova: this port speaks TLS 1.3, and you do not: ask https://\n")
    eventually(lambda: "it shows no certificate, and has to" in node.words(), what=node.words)
    eventually(lambda: "it speaks plain HTTP, and this port speaks TLS: ask https://" in node.words(), what=node.words)


def test_a_plain_node_is_not_asked_by_https(nodes, capsys):
    (node,) = nodes.make("plain", flags=(), tls=None)
    node.start()
    assert run(["status", "--node", f"https://{node.http}", "--token", TOKEN]) == 3
    assert "(it does not speak TLS; ask http://)" in capsys.readouterr().err


def test_what_is_said_is_not_to_be_read_on_the_way(nodes):
    (a,) = nodes.start("a")
    (port,) = free_ports(1)
    carried = bytearray()
    listener = socket.create_server(("127.0.0.1", port))

    def carry(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                carried.extend(data)
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                host, number = a.listen.split(":")
                far = socket.create_connection((host, int(number)))
                for ends in itertools.permutations((near, far)):
                    threading.Thread(target=carry, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    # b dials a by way of the listener only: the smaller name would dial first, and knows no address of b.
    (b,) = nodes.make("b", join=[f"127.0.0.1:{port}"])
    b.start()
    meet(a, b)
    a.put("k", "a word that nobody else shall read " * 20)
    eventually(lambda: b.get("k") is not None)
    listener.close()
    assert len(carried) > 1000
    assert b"nobody else" not in carried
    assert b"region-b" not in carried


def test_strong_keys_and_their_group_go_by_tls_too(nodes):
    names, ports = ("a", "b", "c"), free_ports(3)
    members = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(names, ports, strict=True))
    environment = {
        "NOVA_CLASSES": "cfg/=strong", "NOVA_CONSENSUS_MEMBERS": members, "NOVA_LIMITS_SEGMENT_BYTES": str(1 << 20),
    }  # fmt: skip
    made = nodes.start(*names, environment=environment, key=None)  # certificates alone
    eventually(lambda: made[0].call("GET", "/v1/consensus")["leader"], 30, "no leader")

    def written():
        with contextlib.suppress(Exception):
            return made[1].put("cfg/limit", 7)
        return None

    eventually(written)
    assert all(node.get("cfg/limit")["value"] == 7 for node in made)
    host, port = "127.0.0.1", ports[0]
    with (
        socket.create_connection((host, port), timeout=10) as sock,
        nodes.trusting.wrap_socket(sock, server_hostname=host) as end,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        end.recv(1)
    eventually(lambda: "it shows no certificate, and has to" in made[0].words(), what=made[0].words)


def test_the_demo_keeps_its_promises_over_tls(tmp_path):
    report = kept(tmp_path, "--tls", "--vms", "300", "--events", "1500", "--seed", "5")
    assert report["tls"] is True
    words = (tmp_path / "demo" / "us-east" / "node.log").read_text()
    assert "serves https://" in words
