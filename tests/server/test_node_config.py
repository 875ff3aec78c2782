"""Where a node's configuration comes from, and what is refused with which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nova.errors import ConfigError
from nova.server.config import NodeConfig, is_loopback, load, split_address

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "nova.toml"
        path.write_text(text)
        return path

    return write


def test_nothing_given_is_a_node_on_loopback() -> None:
    config = load()
    assert (config.listen, config.http, config.region) == ("127.0.0.1:7420", "127.0.0.1:8420", "local")
    assert (config.key, config.token, config.insecure, config.chaos) == (None, None, False, False)
    assert config.limits.body_bytes_max == 1 << 20
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name)


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults(toml: Any) -> None:
    file = toml(
        'name = "file"\nregion = "file"\ncluster = "file"\n[limits]\nvalue_bytes_max = 1000\nkey_bytes_max = 99\n'
    )
    env = {"NOVA_NAME": "env", "NOVA_REGION": "env", "NOVA_LIMITS_VALUE_BYTES_MAX": "2000", "HOME": "/"}
    config = load(file, env, {"name": "flag", "region": None, "join": []})
    assert (config.name, config.region, config.cluster) == ("flag", "env", "file")
    assert (config.limits.value_bytes_max, config.limits.key_bytes_max) == (2000, 99)
    assert config.limits.history_bytes == 64 << 20


def test_every_setting_can_come_from_every_place(toml: Any) -> None:
    file = toml(
        f"""
name = "a"
region = "r"
listen = "127.0.0.1:1"
http = "[::1]:2"
data = "d"
join = ["10.0.0.1:7420", "b.example:7420"]
cluster = "c"
key = "{KEY}"
token = "tokentoken"
insecure = true
chaos = true
[limits]
segment_bytes = 1048576
[gossip]
probe_ms = 500
[kinds]
"vm/" = "vm"
[strategies]
"vm/" = "semantic"
[link_delay_ms]
eu-west = 40
"""
    )
    env = {
        "NOVA_NAME": "a", "NOVA_REGION": "r", "NOVA_LISTEN": "127.0.0.1:1", "NOVA_HTTP": "[::1]:2", "NOVA_DATA": "d",
        "NOVA_JOIN": "10.0.0.1:7420, b.example:7420", "NOVA_CLUSTER": "c", "NOVA_KEY": KEY, "NOVA_TOKEN": "tokentoken",
        "NOVA_INSECURE": "1", "NOVA_CHAOS": "true", "NOVA_LIMITS_SEGMENT_BYTES": "1048576",
        "NOVA_GOSSIP_PROBE_MS": "500", "NOVA_KINDS": "vm/=vm", "NOVA_STRATEGIES": "vm/=semantic",
        "NOVA_LINK_DELAY_MS": "eu-west=40",
    }  # fmt: skip
    flags = {
        "name": "a", "region": "r", "listen": "127.0.0.1:1", "http": "[::1]:2", "data": "d",
        "join": ["10.0.0.1:7420", "b.example:7420"], "cluster": "c", "key": KEY, "token": "tokentoken",
        "insecure": True, "chaos": True, "limits.segment_bytes": 1048576, "gossip.probe_ms": 500,
        "kinds": {"vm/": "vm"}, "strategies": "vm/=semantic", "link_delay_ms": "eu-west=40",
    }  # fmt: skip
    from_file = load(file)
    assert from_file == load(None, env) == load(None, None, flags)
    assert from_file.kinds == {"vm/": "vm"}
    assert from_file.link_delay_ms == {"eu-west": 40.0}
    assert from_file.join == ["10.0.0.1:7420", "b.example:7420"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 'a'\nregoin = 'eu'", ["line 2", "regoin", "did you mean region?"]),
        ("[limits]\n\nbody_bytes = 5", ["line 3", "limits.body_bytes", "limits.body_bytes_max"]),
        ("body_bytes_max = 5", ["line 1", "did you mean limits.body_bytes_max?"]),
        ("[limit]\nbody_bytes_max = 5", ["line 1", "limit is no setting"]),
        ("wholly_other = 1", ["line 1", "known keys:", "region"]),
        ("limits = 3", ["line 1", "limits"]),
        ("listen = 7420", ["line 1", "listen = 7420", "is a number", "string"]),
        ("chaos = 'yes'", ["chaos", "is a string", "true or false"]),
        ("join = 'a:1'", ["join", "list of strings"]),
        ("join = ['a']", ["join", '"a"', "HOST:PORT"]),
        ("join = ['a:0']", ["join", "port 0"]),
        ("listen = '127.0.0.1:70000'", ["70000", "65535"]),
        ("http = 'localhost'", ["http", "HOST:PORT"]),
        ("http = '::1:80'", ["http", "[::1]:7420"]),
        ("name = 'a~b'", ["name", "a~b", "letters"]),
        ("name = ''", ["name", "letters"]),
        ("key = 'short'", ['key = "***"', "5 characters", "32", "openssl"]),
        ("token = 'with a blank'", ["token", "openssl"]),
        (f"key = '{KEY}'\nkey_file = 'x'", ["line 2", "both"]),
        ("key_file = '/no/such/file'", ["line 1", "/no/such/file", "No such file"]),
        ("[kinds]\n'vm/' = 'vmm'", ["line 1", "vmm", 'did you mean "vm"?']),
        ("[strategies]\n'vm/' = 'semantics'", ["line 1", "semantics", 'did you mean "semantic"?']),
        ("[kinds]\n'vm/' = 3", ["line 1", "kinds", "table of strings"]),
        ("[link_delay_ms]\neu = 99999", ["eu", "99999", "10000"]),
        ("[limits]\nbody_bytes_max = 1", ["line 2", "limits.body_bytes_max = 1", "1024"]),
        ("[limits]\nvalue_bytes_max = 2000000", ["line 2", "2000000", "1048576"]),
        ("[limits]\nbody_bytes_max = 1.5", ["line 2", "whole number"]),
        ("[limits]\nbody_bytes_max = true", ["line 2", "whole number"]),
        ("[gossip]\nprobe_timeout_ms = 1000", ["line 2", "probe_ms 1000"]),
        ("listen = '127.0.0.1:9'\nhttp = '127.0.0.1:9'", ["line 2", "different ports"]),
        ("listen = '0.0.0.0:7420'", ["line 1", "key and token", "--insecure"]),
        ("http = '[::]:80'", ["line 1", "--insecure"]),
        (f"http = 'myhost:80'\nkey = '{KEY}'", ["line 1", "no token"]),
        ("name = a", ["not valid TOML", "line 1"]),
        ("name = 'a'\nname = 'b'", ["not valid TOML"]),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_with_the_mend(toml: Any, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(toml(text))
    message = str(caught.value)
    assert "\n" not in message
    for word in ["nova.toml", *words]:
        assert word in message, message


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"NOVA_REGOIN": "eu"}, ["NOVA_REGOIN", "did you mean NOVA_REGION?"]),
        ({"NOVA_LISTEN": "7420"}, ["NOVA_LISTEN=7420", "HOST:PORT"]),
        ({"NOVA_CHAOS": "maybe"}, ["NOVA_CHAOS=maybe", "1 or 0"]),
        ({"NOVA_LIMITS_BODY_BYTES_MAX": "1M"}, ["NOVA_LIMITS_BODY_BYTES_MAX=1M", "digits"]),
        ({"NOVA_KINDS": "vm"}, ["NOVA_KINDS=vm", "NAME=VALUE"]),
        ({"NOVA_LINK_DELAY_MS": "eu=x"}, ["NOVA_LINK_DELAY_MS=eu=x", "number"]),
        ({"NOVA_KEY": "short"}, ["NOVA_KEY=***", "32"]),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(env: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, env)
    for word in ["environment", *words]:
        assert word in str(caught.value)


def test_variables_of_other_programs_are_left_alone() -> None:
    load(None, {"NOVA_PORT": "tcp://10.0.0.1:80", "NOVA_SERVICE_HOST": "10.0.0.1", "NOVA_NODE": "http://x"})


@pytest.mark.parametrize(
    ("flags", "words"),
    [({"http": "x"}, ["--http x", "HOST:PORT"]), ({"regio": "x"}, ["regio", "region"]), ({"chaos": 3}, ["--chaos 3"])],
)
def test_what_is_wrong_in_a_flag_is_named(flags: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, None, flags)
    for word in ["command line", *words]:
        assert word in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: there is no such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "latin").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "latin")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not a directory"):
        load(flags={"data": str(tmp_path / "file")})


def test_a_secret_of_a_stronger_place_replaces_its_file_of_a_weaker_one(tmp_path: Path, toml: Any) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    file = toml(f"key_file = '{tmp_path}/key'\ntoken = 'from-the-file'")
    config = load(file)
    assert (config.key, config.token) == (KEY, "from-the-file")
    assert load(file, {"NOVA_KEY": KEY[::-1]}).key == KEY[::-1]
    (tmp_path / "token").write_text("from-a-file-of-its-own")
    assert load(file, {"NOVA_TOKEN_FILE": f"{tmp_path}/token"}).token == "from-a-file-of-its-own"
    (tmp_path / "key").write_text("short")
    with pytest.raises(ConfigError, match="32"):
        load(file)


def test_an_audit_key_fits_a_keyed_hash_and_does_not_show(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("k" * 64 + "\n")
    config = load(flags={"audit_key_file": f"{tmp_path}/audit"})
    assert config.audit_key == "k" * 64
    assert "kkk" not in repr(config)
    for key in ("short", "k" * 65, "é" * 33):
        with pytest.raises(ConfigError, match="16 to 64"):
            load(flags={"audit_key": key})


def test_secrets_do_not_show_in_the_words_for_a_configuration() -> None:
    shown = repr(load(flags={"key": KEY, "token": "very-secret"}))
    assert KEY not in shown
    assert "very-secret" not in shown
    assert "region='local'" in shown


def test_listening_beyond_loopback_takes_key_and_token_or_insecure() -> None:
    wide = {"listen": "0.0.0.0:7420", "http": "0.0.0.0:8420"}
    for given in ({}, {"key": KEY}, {"token": "tokentoken"}):
        with pytest.raises(ConfigError, match="--insecure"):
            load(flags={**wide, **given})
    assert load(flags={**wide, "key": KEY, "token": "tokentoken"}).listen == "0.0.0.0:7420"
    assert load(flags={**wide, "insecure": True}).http == "0.0.0.0:8420"


def test_an_address_is_a_host_and_a_port() -> None:
    assert split_address("[fe80::1]:80") == ("fe80::1", 80)
    assert split_address("node-1.example:65535") == ("node-1.example", 65535)
    for wrong in ("", ":80", "a:", "a:b", "a:80:90", "a:-1", "fe80::1:80", "http://a:80"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            split_address(wrong)
    assert [is_loopback(f"{host}:1") for host in ("127.9.9.9", "[::1]", "localhost", "0.0.0.0", "[::]", "host")] == [
        True, True, True, False, False, False
    ]  # fmt: skip


def test_a_configuration_can_be_made_by_hand() -> None:
    assert NodeConfig(name="a").limits.body_bytes_max == 1 << 20
