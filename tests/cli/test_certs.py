"""nova certs: what it makes, what it refuses to overwrite, what it finds wrong."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from nova.cli.app import run
from nova.errors import UsageError
from nova.transport import authority
from tests.authorities import days_ago


@pytest.fixture
def certs(tmp_path, monkeypatch, capsys):
    """Runs `nova certs ...` on a folder of the test: (exit code, standard output, standard error)."""
    monkeypatch.delenv("NOVA_CERTS", raising=False)
    monkeypatch.chdir(tmp_path)

    def nova(*arguments):
        code = run(["certs", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return nova


def made(certs, *nodes):
    assert certs("init", "--cluster", "prod")[0] == 0
    for node in nodes:
        assert certs("issue", node, "--region", "eu")[0] == 0
    return os.path.join("certs", "")


@pytest.mark.parametrize("algorithm", ["p256", "ed25519"])
def test_what_is_issued_is_good_and_private_keys_are_private(certs, algorithm):
    assert certs("init", "--algorithm", algorithm)[0] == 0
    assert certs("issue", "a", "--region", "eu", "--host", "a.example.org", "--host", "10.0.0.1")[0] == 0
    assert certs("issue", "ops", "--client")[0] == 0
    assert certs("verify") == (0, "a  good\nops  good\n", "")
    for name in ("ca", "a", "ops"):
        assert stat.S_IMODE(os.stat(f"certs/{name}.key").st_mode) == 0o600
    shown = {each["name"]: each for each in json.loads(certs("show", "--json")[1])["certificates"]}
    assert shown["a"]["uri"] == "nova://nova/eu/a"
    assert shown["a"]["hosts"] == ["localhost", "a.example.org", "127.0.0.1", "::1", "10.0.0.1"]
    assert shown["a"]["algorithm"] == algorithm
    assert (shown["ops"]["uri"], shown["ops"]["role"], shown["ops"]["hosts"]) == (
        "nova-client://nova/ops",
        "client",
        [],
    )


def test_nothing_is_overwritten(certs):
    folder = made(certs, "a")
    before = {name: (Path(folder, name).read_bytes()) for name in os.listdir(folder)}
    for arguments, words in (
        (("init",), "certs/ca.pem is there already, and is not overwritten"),
        (("issue", "a", "--region", "eu"), "certs/a.pem is there already, and is not overwritten; to replace it: nova"),
        (("issue", "ca"), "a node can't be called 'ca'"),
    ):
        code, _, told = certs(*arguments)
        assert code == 2
        assert words in told
    os.remove("certs/a.pem")
    assert "certs/a.key is there already" in certs("issue", "a", "--region", "eu")[2]
    assert before == {**before, **{name: Path(folder, name).read_bytes() for name in os.listdir(folder)}}


def test_a_file_that_appears_between_look_and_write_is_not_overwritten_either(tmp_path):
    file = tmp_path / "a.key"
    authority._write_new(file, b"first", 0o600)
    with pytest.raises(UsageError, match="is there already, and is not overwritten"):
        authority._write_new(file, b"second", 0o600)
    assert file.read_bytes() == b"first"


def test_renewing_keeps_the_name_and_replaces_the_key(certs):
    made(certs, "a", "b")
    before = json.loads(certs("show", "a", "--json")[1])["certificates"][0]
    key = Path("certs/a.key").read_text()
    others = Path("certs/b.pem").read_text()
    assert certs("renew", "a", "--days", "7")[0] == 0
    after = json.loads(certs("show", "a", "--json")[1])["certificates"][0]
    assert Path("certs/a.key").read_text() != key
    assert Path("certs/b.pem").read_text() == others
    assert (after["uri"], after["hosts"]) == (before["uri"], before["hosts"])
    assert after["fingerprint"] != before["fingerprint"]
    assert after["expires_s"] - after["starts_s"] == 7 * 86_400 + 300
    assert certs("verify", "a")[0] == 0
    assert stat.S_IMODE(os.stat("certs/a.key").st_mode) == 0o600


def test_the_authority_is_changed_in_two_steps_and_not_before_all_are_renewed(certs):
    made(certs, "a", "b")
    assert certs("roll")[0] == 0
    assert certs("verify")[0] == 0
    assert "certs/ca.pem is in the middle of a change" in certs("roll")[2]
    assert certs("renew", "a")[0] == 0
    assert "nova: b would be refused" in certs("roll", "--finish")[2]
    assert certs("renew")[0] == 0
    assert certs("roll", "--finish")[0] == 0
    assert certs("verify") == (0, "a  good\nb  good\n", "")
    assert "there is no change to finish" in certs("roll", "--finish")[2]


def test_what_is_wrong_is_found(certs):
    from nova.transport.authority import Authority

    made(certs, "a", "b", "c", "d")
    os.chmod("certs/a.key", 0o644)
    os.replace("certs/b.key", "certs/c.key")
    Authority("certs").issue("old", "eu", now=days_ago(10), days=9)
    os.link("certs/d.pem", "certs/e.pem")
    os.link("certs/d.key", "certs/e.key")
    code, said, _ = certs("verify")
    assert code == 1
    assert said == (
        "a  bad  certs/a.key can be read by others; chmod 600 certs/a.key\n"
        "c  bad  certs/c.key is not the key of certs/c.pem; give those that belong together\n"
        "d  good\n"
        "e  bad  certs/e.pem is for 'd', and not for 'e'\n"
        "old  bad  its certificate has expired\n"
    )
    found = json.loads(certs("verify", "--json")[1])["verified"]
    assert found["d"] == {"good": True, "problems": []}
    assert not found["old"]["good"]


def test_a_certificate_never_outlives_its_authority(certs):
    assert certs("init", "--days", "10")[0] == 0
    assert certs("issue", "a", "--days", "1000")[0] == 0
    ca, a = json.loads(certs("show", "--json")[1])["certificates"]
    assert a["expires_s"] == ca["expires_s"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("issue", "no/name"), "node 'no/name' is no name; use 1 to 63 letters"),
        (("issue", "x", "--region", "a b"), "region 'a b' is no name"),
        (("issue", "x", "--host", "a:80"), "host 'a:80' is neither a name nor an address; leave the port away"),
        (("issue", "x", "--algorithm", "rsa"), "algorithm 'rsa' is not known; use one of p256, ed25519"),
        (
            ("renew", "nobody"),
            "certs/nobody.pem cannot be read (No such file or directory); nova certs issue makes one",
        ),
        (
            ("show", "--dir", "nowhere"),
            "nowhere/ca.pem cannot be read (No such file or directory); nova certs init makes",
        ),
        (
            ("issue", "x", "--dir", "nowhere"),
            "nowhere/ca.key cannot be read (No such file or directory); nova certs init",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_mend(certs, arguments, words):
    made(certs)
    code, _, told = certs(*arguments)
    assert code == 2
    assert words in told
    assert told.count("\n") == 1


def test_without_cryptography_it_says_what_to_install(certs, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert certs("init")[2] == (
        "nova: nova certs needs the Python module cryptography; install it with: pip install 'novacron[tls]'\n"
    )
