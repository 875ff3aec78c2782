"""What is refused of a group and of key classes, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from nova.errors import ConfigError
from nova.server.config import load

GROUP = """
name = "a"
[classes]
"cfg/" = "strong"
"cfg/open/" = "eventual"
[consensus.members]
a = "127.0.0.1:7520"
b = "127.0.0.1:7521"
"""
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def toml(tmp_path: Any) -> Any:
    def write(text: str) -> Any:
        path = tmp_path / "nova.toml"
        path.write_text(text)
        return path

    return write


def test_a_group_comes_from_the_file_and_from_the_environment(toml: Any) -> None:
    config = load(toml(GROUP))
    assert config.classes == {"cfg/": "strong", "cfg/open/": "eventual"}
    assert config.consensus.members == {"a": "127.0.0.1:7520", "b": "127.0.0.1:7521"}
    env = {
        "NOVA_NAME": "a",
        "NOVA_CLASSES": "cfg/=strong,cfg/open/=eventual",
        "NOVA_CONSENSUS_MEMBERS": "a=127.0.0.1:7520,b=127.0.0.1:7521",
    }
    assert load(None, env) == config
    assert load().consensus.members == {}


@pytest.mark.parametrize(
    ("was", "becomes", "words"),
    [
        ('"strong"', '"stong"', 'nova.toml line 3: .*gives "cfg/" the class "stong"; use one of eventual, strong'),
        ('"strong"', '"hybrid"', '"hybrid", whose protocol this build does not have'),
        ("7521", "7520", "names one address twice"),
        ("127.0.0.1:7521", "127.0.0.1:0", 'gives "b" the address "127.0.0.1:0", which has the port 0'),
        ("127.0.0.1:7521", "b", "which is not HOST:PORT"),
        ("127.0.0.1:7521", "10.0.0.2:7521", "10.0.0.2:7521 can be reached from other machines, but there is no key"),
        ('name = "a"', 'name = "c"', "names a, b, not this node, c; add its address"),
        ("127.0.0.1:7520", "127.0.0.1:7420", "listen and the group's port of this node are both 127.0.0.1:7420"),
        ("127.0.0.1:7520", "127.0.0.1:8420", "http and the group's port of this node are both 127.0.0.1:8420"),
        ("[consensus.members]", '[consensus]\nfounders = ["z"]\n[consensus.members]', "founders names z"),
        (
            "[consensus.members]",
            '[consensus]\nprotocol = "pbft"\n[consensus.members]',
            "use one of raft, paxos, epaxos",
        ),
        (
            "[consensus.members]",
            '[consensus]\nprotocol = "paxos"\nlease_reads = true\n[consensus.members]',
            "needs the protocol raft, not paxos",
        ),
        ("[consensus.members]", '[consensus]\nlisten = "x"\n[consensus.members]', "is not HOST:PORT"),
        ("[consensus.members]", "[consensus]\nbytes_max = 1\n[consensus.members]", "must lie between"),
        ("[consensus.members]", "[consensus]\ntick = 1\n[consensus.members]", "did you mean consensus.tick_ms"),
    ],
)
def test_what_cannot_be_is_refused(toml: Any, was: str, becomes: str, words: str) -> None:
    assert was in GROUP
    with pytest.raises(ConfigError, match=words):
        load(toml(GROUP.replace(was, becomes, 1)))


def test_strong_keys_without_a_group_are_refused(toml: Any) -> None:
    with pytest.raises(ConfigError, match=r'line 2: "cfg/" is strong, and there is no group: set consensus\.members'):
        load(toml('name = "a"\nclasses = { "cfg/" = "strong" }\n'))
    assert load(toml('name = "a"\nclasses = { "cfg/" = "eventual" }\n')).consensus.members == {}


def test_the_mode_of_the_network_is_one_of_a_few(toml: Any) -> None:
    assert load(toml('sync = "auto"\n')).sync == "auto"
    with pytest.raises(ConfigError, match='sync = "lan" is no mode; use auto, datacenter, internet or hybrid'):
        load(toml('sync = "lan"\n'))


def test_other_machines_may_be_members_with_a_key(toml: Any) -> None:
    text = GROUP.replace("127.0.0.1:7521", "10.0.0.2:7521").replace('name = "a"', f'name = "a"\nkey = "{KEY}"')
    assert load(toml(text)).consensus.members["b"] == "10.0.0.2:7521"
