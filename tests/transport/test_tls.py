"""TLS between nodes: who is let in, who is refused with which line on which side, and certificates that change."""

import asyncio
import contextlib
import datetime
import logging
import shutil
import socket
import ssl
import threading
from pathlib import Path

import pytest
import uvloop

import nova.transport
from nova.errors import ConfigError, NovaError, PeerError
from nova.metrics import Registry
from nova.transport.authority import Authority
from nova.transport.base import Certified, Identity, Limits
from nova.transport.quiet import Quiet
from nova.transport.session import Session, refusal
from nova.transport.tcp import TcpTransport
from nova.transport.tls import CertifiedName, Tls, TlsFiles, handshake_in_memory
from nova.transport.tls_socket import secure
from tests import authorities
from tests.authorities import expired, files, not_yet_valid, tls

KEY = bytes(range(32))


def identity(node, region="r", cluster="c"):
    return Identity(node, region, cluster, 1, f"{node}:1")


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    return asyncio.run if request.param == "asyncio" else uvloop.run


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class Port:
    """A node that listens; `accepted` streams wait in a queue."""

    def __init__(self, side, node="b", *, key=KEY, use="peers", **options):
        self.tls = side
        self.transport = TcpTransport(identity(node), key=key, tls=side, use=use, **options)
        self.accepted = asyncio.Queue()

    async def __aenter__(self):
        self.address = await self.transport.listen("127.0.0.1:0", self.accepted.put)
        return self

    async def __aexit__(self, *_):
        await self.transport.close()


async def knock(address, side, node="a", *, key=KEY, region="r", cluster="c"):
    """What a node that connects is told."""
    transport = TcpTransport(identity(node, region, cluster), key=key, tls=side)
    try:
        async with asyncio.timeout(3):
            stream = await transport.connect(address)
            await stream.recv()
    except NovaError as error:
        return str(error)
    except TimeoutError:
        pass
    finally:
        await transport.close()
    raise AssertionError("it was let in")


def refused(run, caplog, said, *, port, caller, **knocking):
    """What a caller is told whom a port refuses; waits until the port has said its own line."""
    caplog.set_level(logging.INFO)

    async def whole():
        async with Port(port) as there:
            told = await knock(there.address, caller, **knocking)
            try:
                await until(lambda: said in caplog.text)
            except TimeoutError:
                raise AssertionError(f"the port did not say {said!r}, but:\n{caplog.text}") from None
            assert there.accepted.empty()
            return told

    return run(whole())


# -- who is let in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["p256", "ed25519"])
def test_two_nodes_with_certificates_of_their_authority_talk(run, algorithm):
    label = f"in order {algorithm}"
    authorities.authority(label, algorithm=algorithm)

    async def whole():
        async with Port(tls("b", label=label)) as there:
            transport = TcpTransport(identity("a"), key=KEY, tls=tls("a", label=label))
            stream = await transport.connect(there.address)
            other = await there.accepted.get()
            assert stream.send(b"x" * 1_000_000)
            assert await other.recv() == b"x" * 1_000_000
            assert other.peer == identity("a")
            assert stream.peer == identity("b")
            await transport.close()

    run(whole())


def test_streams_by_address_take_their_names_from_certificates(run):
    async def whole():
        async with await nova.transport.listen("tcp://127.0.0.1:0", tls=tls("b")) as listener:
            stream = await nova.transport.connect(listener.url, tls=tls("a"))
            served = await listener.accept()
            assert (served.peer.node, stream.peer.node) == ("a", "b")
            stream.send(b"hello")
            assert await served.recv() == b"hello"
            await stream.close()

    run(whole())


def test_certificates_are_enough_without_a_cluster_key(run):
    async def whole():
        async with Port(tls("b"), key=None) as there:
            transport = TcpTransport(identity("a"), key=None, tls=tls("a"))
            assert (await transport.connect(there.address)).peer.node == "b"
            await transport.close()

    run(whole())


def test_a_cluster_key_is_asked_for_behind_the_certificate_as_well(run, caplog):
    said = "does not hold this cluster's key"
    told = refused(run, caplog, said, port=tls("b"), caller=tls("a"), key=bytes(32))
    assert "you hold another cluster key" in told


# -- who is not ------------------------------------------------------------------------------------------------------


def trusting(other_ca, node, label="", cluster="c"):
    """Files of a node that trusts a second authority as well, and so gets as far as being refused by it."""
    own = files(node, label=label, cluster=cluster)
    bundle = Path(own.ca).with_name(f"{node}-trusts.pem")
    bundle.write_bytes(Path(own.ca).read_bytes() + Path(other_ca).read_bytes())
    return Tls(TlsFiles(str(bundle), own.certificate, own.key), cluster=cluster)


def test_a_certificate_of_another_authority_is_refused(run, caplog):
    said = "is refused: its certificate is not of an authority that is trusted here"
    told = refused(run, caplog, said, port=tls("b"), caller=trusting(files("b").ca, "a", "other"))
    assert "refuses this side's certificate (nova://c/r/a, valid from 2" in told
    assert "it is not of an authority that is trusted there" in told


def test_a_port_with_a_certificate_of_another_authority_is_left(run, caplog):
    said = "refuses this side's certificate (nova://c/r/b"
    told = refused(run, caplog, said, port=trusting(files("a").ca, "b", "other"), caller=tls("a"))
    assert "is refused: its certificate is not of an authority that is trusted here" in told


def test_an_expired_certificate_is_refused(run, caplog):
    said = "is refused: its certificate has expired; make a new one: nova certs renew"
    told = refused(run, caplog, said, port=tls("b"), caller=Tls(expired("old"), cluster="c"), node="old")
    assert "refuses this side's certificate (nova://c/r/old" in told
    assert "for it, it has expired; make a new one: nova certs renew" in told


def test_a_certificate_that_is_not_yet_valid_is_refused(run, caplog):
    said = "is refused: its certificate is not yet valid; is the clock right on both machines?"
    told = refused(run, caplog, said, port=tls("b"), caller=Tls(not_yet_valid("early"), cluster="c"), node="early")
    assert "refuses this side's certificate (nova://c/r/early" in told
    assert "for it, it is not valid: too early" in told


@pytest.mark.parametrize(
    ("claims", "what"),
    [
        ({"node": "d"}, "node 'd', and 'a' in the certificate"),
        ({"region": "elsewhere"}, "region 'elsewhere', and 'r' in the certificate"),
    ],
)
def test_a_certificate_of_another_name_is_refused(run, caplog, claims, what):
    said = f"says {what}: refused, it takes another one's name"
    told = refused(run, caplog, said, port=tls("b"), caller=tls("a"), **claims)
    assert f"refused by the peer: your hello says {what}: run with the certificate that was issued for you" in told


def test_a_port_that_takes_another_name_is_left(run, caplog):
    said = "refused by the peer: your hello says node 'b', and 'z' in the certificate"
    told = refused(run, caplog, said, port=tls("z"), caller=tls("a"))
    assert "peer 'b' says node 'b', and 'z' in the certificate: refused, it takes another one's name" in told


def test_a_certificate_of_another_cluster_is_refused_though_its_authority_is_trusted(run, caplog):
    port = trusting(files("w", label="shared", cluster="w").ca, "b")
    caller = trusting(files("b").ca, "w", "shared", "w")
    told = refused(run, caplog, "is refused: its certificate is of cluster 'w', not of 'c'", port=port, caller=caller)
    assert "certificate is of cluster 'c', not of 'w'" in told


def test_a_client_certificate_is_no_key_to_a_port_of_nodes(run, caplog):
    said = "its certificate, nova-client://c/cli, is for clients, and this is a port of nodes"
    told = refused(run, caplog, said, port=tls("b"), caller=client(), node="cli", region="")
    assert "refused by the peer: your certificate, nova-client://c/cli, is for clients" in told


def client():
    return Tls(files("cli", "", client=True), cluster="c")


def test_a_client_certificate_is_let_in_at_a_port_for_clients(run):
    async def whole():
        async with Port(tls("b"), use="clients") as there:
            transport = TcpTransport(identity("cli", ""), key=KEY, tls=client())
            assert (await transport.connect(there.address)).peer.node == "b"
            await transport.close()

    run(whole())


def test_a_plain_peer_is_refused_by_a_port_with_tls(run, caplog):
    said = "is refused: it does not speak TLS, and this side does: give both sides [tls], or neither"
    told = refused(run, caplog, said, port=tls("b"), caller=None)
    assert "refused by the peer: this port speaks TLS 1.3, and you do not: set [tls]" in told


def test_a_peer_with_tls_is_refused_by_a_plain_port(run, caplog):
    said = "the peer speaks TLS, and this node does not: give both sides [tls], or neither"
    told = refused(run, caplog, said, port=None, caller=tls("a"))
    assert "is refused: it speaks no TLS 1.3: TLS 1.2 or older, or none at all" in told


def raw_client(port, context):
    """What somebody's own TLS client gets from a port, by the standard library alone."""

    async def whole():
        async with Port(port) as there:
            host, number = there.address.split(":")
            reader, writer = await asyncio.open_connection(host, int(number), ssl=context)
            try:
                return await reader.read()
            finally:
                writer.close()

    return whole()


def client_context(of=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(files("b").ca)
    context.set_alpn_protocols(["nova/1"])
    if of is not None:
        context.load_cert_chain(of.certificate, of.key)
    return context


def test_who_shows_no_certificate_is_refused(run, caplog):
    with pytest.raises((ssl.SSLError, ConnectionError), match=r"(?i)certificate required|reset"):
        run(raw_client(tls("b"), client_context()))
    assert "is refused: it shows no certificate, and has to" in caplog.text


def test_tls_1_2_is_refused(run, caplog):
    context = client_context(files("a"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError), match=r"(?i)protocol version|reset"):
        run(raw_client(tls("b"), context))
    assert "is refused: it speaks TLS 1.2 or older, and only TLS 1.3 is spoken here" in caplog.text


def test_a_port_that_speaks_tls_1_2_only_is_left(run):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files("b").certificate, files("b").key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            sock, _ = server.accept()
            with contextlib.suppress(ssl.SSLError), context.wrap_socket(sock, server_side=True):
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        told = run(knock(f"127.0.0.1:{server.getsockname()[1]}", tls("a")))
        thread.join()
    assert "is refused: it speaks no TLS 1.3: TLS 1.2 or older, or none at all" in told


def test_what_speaks_another_protocol_over_tls_is_refused(run, caplog):
    context = client_context(files("a"))
    context.set_alpn_protocols(["http/1.1"])
    answer = run(raw_client(tls("b"), context))
    assert b"it speaks no protocol by name, not nova" in answer
    assert "is refused: it speaks no protocol by name, not nova" in caplog.text


def test_a_port_that_hangs_up_says_nothing_of_tls(run):
    async def whole():
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        try:
            return await knock(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", tls("a"))
        finally:
            server.close()

    assert "hung up in the TLS handshake; does it speak TLS 1.3?" in run(whole())


def test_a_handshake_that_does_not_end_is_given_up_by_the_port_and_by_the_caller(run, caplog):
    async def whole():
        async with Port(tls("b"), limits=Limits(handshake_ms_max=100)) as there:
            host, number = there.address.split(":")
            reader, _writer = await asyncio.open_connection(host, int(number))
            async with asyncio.timeout(3):
                assert await reader.read() == b""
            silent = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
            transport = TcpTransport(identity("a"), key=KEY, tls=tls("a"), limits=Limits(handshake_ms_max=100))
            with pytest.raises(NovaError, match=r"within 0\.1 s"):
                await transport.connect(f"127.0.0.1:{silent.sockets[0].getsockname()[1]}")
            await transport.close()
            silent.close()

    run(whole())
    assert "is refused: no TLS handshake within 0.1 s" in caplog.text


def test_so_many_handshakes_at_a_time_and_no_more(run, caplog):
    async def whole():
        async with Port(tls("b")) as there:
            there.transport._layer._handshakes_max = 3
            host, number = there.address.split(":")
            held = [await asyncio.open_connection(host, int(number)) for _ in range(3)]
            await until(lambda: len(there.transport._layer._shaking) == 3)
            reader, _ = await asyncio.open_connection(host, int(number))
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            assert "a connection is refused: too many handshakes under way" in caplog.text
            for _, writer in held:
                writer.close()
            await until(lambda: not there.transport._layer._shaking)
            transport = TcpTransport(identity("a"), key=KEY, tls=tls("a"))
            await transport.connect(there.address)
            await transport.close()

    run(whole())


def test_a_closing_port_gives_up_the_handshakes_that_are_under_way(run):
    async def whole():
        async with Port(tls("b")) as there:
            host, number = there.address.split(":")
            reader, _ = await asyncio.open_connection(host, int(number))
            await until(lambda: there.transport._layer._shaking)
            await there.transport.close()
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(2):  # less than a handshake may take
                    assert await reader.read() == b""

    run(whole())


def test_who_knocks_again_and_again_fills_no_log_but_is_counted(run, caplog):
    registry = Registry()
    side = Tls(files("b"), cluster="c", metrics=registry)

    async def whole():
        async with Port(side) as there:
            for _ in range(5):
                await knock(there.address, None)
            await until(lambda: side.failures.get("plain") == 5)

    run(whole())
    assert caplog.text.count("does not speak TLS") == 1
    assert b'nova_tls_handshake_failures_total{cause="plain"} 5' in registry.render()


def test_a_line_that_was_kept_back_is_told_of_by_the_next_one(caplog):
    now = 0.0
    quiet = Quiet(logging.getLogger("nova.transport"), every_s=60, clock=lambda: now)
    for _ in range(4):
        quiet.warning("kind", "it knocks")
    quiet.warning("other kind", "something else")
    now = 61.0
    quiet.warning("kind", "it knocks")
    said = [record.getMessage() for record in caplog.records]
    assert said == ["it knocks", "something else", "it knocks (and 3 times more since the last such line)"]


# -- what a session makes of it --------------------------------------------------------------------------------------


def sessions(one, other, key=KEY):
    """Two sessions over channels, fed with each other's bytes until nothing is left to say."""
    ends = [
        Session(identity("a"), key=key, initiator=True, nonce=b"a" * 32, now_ns=0, certified=one),
        Session(identity("b"), key=key, initiator=False, nonce=b"b" * 32, now_ns=0, certified=other),
    ]
    carried = []
    while out := [b"".join(end.take_output()) for end in ends]:
        if not any(out):
            return ends, b"".join(carried)
        carried += out
        for end, data in zip(ends, reversed(out), strict=True):
            if data:
                end.receive(data, 0)
    raise AssertionError


def test_a_proof_is_bound_to_the_certificates_of_its_channel():
    a, b = (Certified("c", "r", node, b"these two") for node in ("a", "b"))
    ends, _ = sessions(b, a)
    assert all(end.established for end in ends)
    relayed = Certified("c", "r", "b", b"those of a relay")
    with pytest.raises(PeerError, match="its proof does not fit"):
        sessions(relayed, a)


def test_frames_over_a_channel_carry_no_mac_and_those_of_a_plain_session_do():
    a, b = (Certified("c", "r", node, b"these two") for node in ("a", "b"))
    for channels, mac_bytes in (((b, a), 0), ((None, None), 16)):
        (one, _), _ = sessions(*channels)
        assert one.send(b"x" * 100)
        assert len(b"".join(one.take_output())) == 24 + 4 + 100 + mac_bytes


def test_a_part_of_a_cluster_is_the_clusters():
    channel = Certified("c", "r", "a", b"")
    assert not channel.mismatch(identity("a", cluster="c/strong/clients"))
    assert "cluster 'd'" in channel.mismatch(identity("a", cluster="d"))


@pytest.mark.parametrize(
    "name", [CertifiedName("c", "r", "n"), CertifiedName("a b/c", "ü", "n?#"), CertifiedName("c", "", "x", "client")]
)
def test_a_name_survives_its_uri(name):
    assert CertifiedName.parse(name.uri) == name


@pytest.mark.parametrize(
    "uri", ["nova://c/n", "nova://c/r/n/more", "nova-client://c/r/n", "https://c/r/n", "nova://c//n", "nova://"]
)
def test_what_is_no_name_is_none(uri):
    assert CertifiedName.parse(uri) is None


# -- certificates that change ----------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """An authority of one test, with certificates for a and b."""
    made = Authority.create(tmp_path / "certs", "c")
    made.issue("a", "r")
    made.issue("b", "r")
    return made


def side(made, node, **options):
    return Tls(TlsFiles.in_folder(made.folder, node), cluster="c", **options)


def test_new_handshakes_use_the_new_certificate_and_streams_stay(run, own):
    a, b = side(own, "a"), side(own, "b")

    async def whole():
        async with Port(b) as there:
            transport = TcpTransport(identity("a"), key=KEY, tls=a)
            first = await transport.connect(there.address)
            other = await there.accepted.get()
            before = b.fingerprint
            assert not b.look()
            own.renew("b")
            assert b.look()
            assert b.fingerprint != before
            second = await transport.connect(there.address)
            newer = await there.accepted.get()
            for stream, end in ((first, other), (second, newer)):
                stream.send(b"on")
                assert await end.recv() == b"on"
            await transport.close()

    run(whole())


def test_an_expired_certificate_is_replaced_without_a_restart(run, own, caplog):
    own.issue("old", "r", now=authorities.days_ago(30), days=29)
    old = side(own, "old")

    async def whole():
        async with Port(side(own, "b")) as there:
            assert "has expired" in await knock(there.address, old, node="old")
            own.renew("old")
            assert old.look()
            transport = TcpTransport(identity("old"), key=KEY, tls=old)
            assert (await transport.connect(there.address)).peer.node == "b"
            await transport.close()

    run(whole())
    assert "expired at 2" in caplog.text


def test_a_change_of_authority_never_parts_the_nodes(run, own):
    a, b = side(own, "a"), side(own, "b")

    async def talk():
        async with Port(b) as there:
            transport = TcpTransport(identity("a"), key=KEY, tls=a)
            assert (await transport.connect(there.address)).peer.node == "b"
            await transport.close()

    before = Path(own.folder / "ca.pem").read_bytes()
    own.roll()
    assert a.look()  # b still trusts the old one alone
    run(talk())
    assert b.look()
    run(talk())
    own.renew("a")
    assert a.look()
    run(talk())
    own.renew("b")
    assert b.look()
    run(talk())
    own.roll(finish=True)
    assert a.look()
    run(talk())
    assert b.look()
    run(talk())
    assert before not in (own.folder / "ca.pem").read_bytes()


def test_files_that_do_not_fit_are_told_of_once_and_the_old_ones_stay(own, caplog):
    b = side(own, "b")
    before = b.fingerprint
    key = own.folder / "b.key"
    kept = key.read_bytes()
    shutil.copy(own.folder / "a.key", key)
    for _ in range(3):
        assert not b.look()
    assert caplog.text.count("b.key is not the key of") == 1
    assert "the old ones are" in caplog.text
    assert b.fingerprint == before
    key.write_bytes(kept)
    assert b.look()


def test_files_that_are_gone_for_a_moment_do_no_harm(own, caplog):
    b = side(own, "b")
    file = own.folder / "b.pem"
    moved = file.rename(own.folder / "elsewhere.pem")
    assert not b.look()
    assert "b.pem cannot be read" in caplog.text
    moved.rename(file)
    b.look()
    assert b.name.node == "b"


def test_a_certificate_is_warned_of_before_it_expires_once_a_day(own, caplog):
    now = datetime.datetime.now().timestamp()
    registry = Registry()
    b = side(own, "b", now_s=lambda: now, metrics=registry, warn_days=14)
    assert "expires" not in caplog.text
    now = b.expires_s - 13.5 * 86_400
    for _ in range(3):
        b.look()
    assert caplog.text.count("b.pem expires at 2") == 1
    assert "in 13.5 days; make a new one: nova certs renew" in caplog.text
    now += 86_401
    b.look()
    assert caplog.text.count("b.pem expires at 2") == 2
    assert f"nova_tls_certificate_expiry_seconds {b.expires_s:.0f}" in registry.render().decode()
    assert "nova_tls_ca_expiry_seconds" in registry.render().decode()


# -- files that cannot be used ---------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_said_at_the_start(own, tmp_path):
    good = TlsFiles.in_folder(own.folder, "b")
    empty = tmp_path / "empty.pem"
    empty.touch()
    foreign = files("b", label="other").ca
    for wrong, word in (
        (TlsFiles(good.ca, good.certificate, str(own.folder / "a.key")), "a.key is not the key of"),
        (TlsFiles(good.ca, str(empty), good.key), "are not a certificate and its key in PEM"),
        (TlsFiles(str(empty), good.certificate, good.key), "empty.pem holds no certificate in PEM"),
        (TlsFiles("nowhere.pem", good.certificate, good.key), "nowhere.pem cannot be read (No such file or directory)"),
        (TlsFiles(good.ca, good.certificate, "nowhere.key"), "nowhere.key cannot be read"),
        (TlsFiles(foreign, good.certificate, good.key), "is not of an authority that is trusted here"),
    ):
        with pytest.raises(ConfigError) as told:
            Tls(wrong, cluster="c")
        assert word in str(told.value)
    with pytest.raises(ConfigError, match=r"is of cluster 'c', this side of 'd'; issue one for it"):
        Tls(good, cluster="d")
    with pytest.raises(ConfigError, match=r"is of node 'b' in region 'r', this is 'b' in 's'; .* nova certs issue b"):
        Tls(good, cluster="c", name=("b", "s"))


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(own):
    from cryptography.hazmat.primitives import serialization as part

    file = own.folder / "b.key"
    key = part.load_pem_private_key(file.read_bytes(), None)
    locked = part.BestAvailableEncryption(b"a password")
    file.write_bytes(key.private_bytes(part.Encoding.PEM, part.PrivateFormat.PKCS8, locked))
    with pytest.raises(ConfigError, match="without a password"):
        side(own, "b")


# -- blocking sockets ------------------------------------------------------------------------------------------------


def blocking(port, caller):
    """Both ends of a handshake of blocking sockets: what `secure` returned or raised at the port, and at the caller."""
    found = {}

    def serve(sock):
        try:
            found["port"] = secure(sock, port, server_side=True, tell=refusal)
        except PeerError as error:
            found["port"] = error

    one, two = pair()
    thread = threading.Thread(target=serve, args=(two,))
    thread.start()
    try:
        found["caller"] = caller(one)
    except (PeerError, OSError) as error:
        found["caller"] = error
    thread.join()
    return found["port"], found["caller"]


def pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname(), timeout=10)
        two, _ = server.accept()
        two.settimeout(10)
        return one, two


def test_blocking_sockets_carry_what_is_sent_and_know_who_sends():
    (there, theirs), (here, ours) = blocking(tls("b"), lambda sock: secure(sock, tls("a"), server_side=False))
    with here, there:
        assert (theirs.node, ours.node) == ("a", "b")
        assert theirs.binding == ours.binding
        assert here.version() == "TLSv1.3"
        data = bytes(range(256)) * 4096
        thread = threading.Thread(target=here.sendall, args=(data,))
        thread.start()
        got = bytearray()
        while len(got) < len(data):
            got += there.recv(1 << 20)
        thread.join()
        assert got == data


def test_blocking_sockets_refuse_alike():
    def expired_caller(sock):
        end, _ = secure(sock, Tls(expired("old"), cluster="c"), server_side=False)
        with end:
            return end.recv(100)

    said, told = blocking(tls("b"), expired_caller)
    assert "is refused: its certificate has expired" in str(said)
    assert "CERTIFICATE_EXPIRED" in str(told).upper().replace(" ", "_")

    def plain(sock):
        with sock:
            sock.sendall(b"N" * 100)
            return sock.recv(1000)

    said, told = blocking(tls("b"), plain)
    assert "it does not speak TLS" in str(said)
    assert b"this port speaks TLS 1.3" in told

    def stranger(sock):
        with secure(sock, client(), server_side=False)[0] as end:
            return end.recv(1000)

    said, told = blocking(tls("b"), stranger)
    assert "is for clients, and this is a port of nodes" in str(said)
    assert b"your certificate, nova-client://c/cli, is for clients" in told


def test_a_context_and_a_check_are_all_that_an_engine_of_its_own_needs():
    a, b = tls("a"), tls("b")
    one, two = handshake_in_memory(a.context(server=False), b.context(server=True))
    a.check(one, identity("b"))
    b.check(two, identity("a"))
    with pytest.raises(PeerError, match="it takes another one's name"):
        b.check(two, identity("c"))
