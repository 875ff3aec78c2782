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
        ('"strong"', '"hybrid"', 'line 3: "cfg/" is hybrid, and there are no members: set hybrid.members'),
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


REGIONS = """
name = "a"
region = "eu"
[classes]
"vm/" = "hybrid"
[hybrid.members]
a = "127.0.0.1:7530"
b = "127.0.0.1:7531"
[hybrid.regions]
a = "eu"
b = "us"
"""


def test_regions_come_from_the_file_and_from_the_environment_and_stand_beside_a_group(toml: Any) -> None:
    config = load(toml(REGIONS))
    assert config.hybrid.regions == {"a": "eu", "b": "us"}
    env = {
        "NOVA_NAME": "a",
        "NOVA_REGION": "eu",
        "NOVA_CLASSES": "vm/=hybrid",
        "NOVA_HYBRID_MEMBERS": "a=127.0.0.1:7530,b=127.0.0.1:7531",
        "NOVA_HYBRID_REGIONS": "a=eu,b=us",
    }
    assert load(None, env) == config
    both = load(None, env | {"NOVA_CLASSES": "vm/=hybrid,cfg/=strong", "NOVA_CONSENSUS_MEMBERS": "a=127.0.0.1:7520"})
    assert (both.consensus.members, both.hybrid) == ({"a": "127.0.0.1:7520"}, config.hybrid)
    assert load().hybrid.members == {}


@pytest.mark.parametrize(
    ("was", "becomes", "words"),
    [
        ("7531", "7530", "names one address twice"),
        ("127.0.0.1:7531", "127.0.0.1:0", r"give the port of the member's hybrid\.listen"),
        ("127.0.0.1:7531", "10.0.0.2:7531", "10.0.0.2:7531 can be reached from other machines, but there is no key"),
        ('name = "a"', 'name = "c"', "hybrid.members names a, b, not this node, c; add its address"),
        ('b = "us"', 'c = "us"', "hybrid.members names b, and hybrid.regions does not; each member"),
        ('b = "us"', 'b = "us"\nc = "us"', "hybrid.regions names c, and hybrid.members does not; each member"),
        ('b = "us"', 'b = "u/s"', 'gives "b" the region "u/s"'),
        ('region = "eu"', 'region = "us"', "puts this node, a, into eu, and its region is us; make them the same"),
        ("127.0.0.1:7530", "127.0.0.1:7420", r"listen and the port of \[hybrid\] of this node are both"),
        ('"vm/" =', '"vm" =', 'end it with a slash: "vm/"'),
        (
            "[hybrid.members]",
            '[consensus.members]\na = "127.0.0.1:7530"\n[hybrid.members]',
            r"the port of \[consensus\] and the port of \[hybrid\] of this node are both 127.0.0.1:7530",
        ),
        ("[hybrid.members]", "[hybrid]\nbytes_max = 1\n[hybrid.members]", "must lie between"),
        (
            "[hybrid.members]",
            '[hybrid]\nfounders = ["c"]\n[hybrid.members]',
            "names c, who is not among hybrid.members",
        ),
        ("[hybrid.members]", '[hybrid]\nfounders = ["a"]\n[hybrid.members]', "founders has nobody in us; regions stay"),
    ],
)
def test_regions_that_cannot_be_are_refused(toml: Any, was: str, becomes: str, words: str) -> None:
    assert was in REGIONS
    with pytest.raises(ConfigError, match=words):
        load(toml(REGIONS.replace(was, becomes, 1)))
