"""nova consensus, and strong keys on the command line, against the node that is one dictionary."""

from __future__ import annotations

import json
from typing import Any

import pytest
from memory_backend import Running, running
from test_commands import failed


@pytest.fixture
def node() -> Any:
    with running() as node:
        yield node


def test_the_group_is_shown(nova: Any, node: Running) -> None:
    shown = nova("consensus", "status")
    assert shown.returncode == 0
    facts, members, epochs = shown.stdout.split("\n\n")
    assert "strong keys  2, 150 of 1000 bytes" in facts
    assert "cfg/ strong" in facts
    assert [line.split()[:2] for line in members.splitlines()[1:]] == [["n1", "leader"], ["n2", "voter"]]
    assert epochs.splitlines()[1].split() == ["1", "raft", "5", "n1,", "n2"]
    assert json.loads(nova("consensus", "status", "--json").stdout)["term"] == 4
    node.backend.leader = None
    assert nova("consensus", "status").returncode == 1


def test_members_come_go_and_lead(nova: Any, node: Running) -> None:
    failed(nova("consensus", "add", "n3"), 2, "n3 is not known")
    assert nova("consensus", "add", "n3", "127.0.0.1:9").stdout == "n3 votes; voters: n1, n2, n3\n"
    assert nova("consensus", "remove", "n3").stdout == "n3 is out; voters: n1, n2\n"
    assert nova("consensus", "transfer", "n2").stdout == "n2 leads\n"
    failed(nova("consensus", "transfer", "n1"), 3, "ask n2")


def test_the_protocol_is_switched(nova: Any, node: Running) -> None:
    assert nova("consensus", "switch", "paxos").stdout == "epoch 1: paxos; voters: n1, n2\n"
    done = json.loads(nova("consensus", "switch", "raft", "n1", "n4=127.0.0.1:4", "--json").stdout)
    assert [member["node"] for member in done["members"]] == ["n1", "n4"]
    failed(nova("consensus", "switch", "zab"), 2, "zab")
    failed(nova("consensus", "switch", "raft", "n1="), 2, "NAME=HOST:PORT")
    failed(nova("consensus", "switch"), 2, "consensus switch")


def test_a_version_is_expected_or_the_exit_code_is_four(nova: Any, node: Running) -> None:
    assert nova("put", "cfg/x", "1", "--expect", "0").returncode == 0
    stale = nova("put", "cfg/x", "2", "--expect", "0")
    failed(stale, 4, "expected version 0")
    failed(nova("put", "cfg/x", "2", "--expect", "-1"), 2, "--expect")
    assert nova("get", "cfg/x", "--consistency", "local").returncode == 0
    assert node.backend.asked[-1] == ("get", "cfg/x", "local")
    failed(nova("get", "cfg/x", "--consistency", "odd"), 2, "linearizable, lease, local")
    assert nova("list", "cfg/", "--consistency", "lease").returncode == 0
    assert node.backend.asked[-1] == ("list", "cfg/", "lease")
    assert nova("watch", "cfg/", "--since", "0", "--count", "1", "--class", "strong").returncode == 0
    assert node.backend.asked[-1] == ("watch", "cfg/", "strong")
    assert nova("delete", "cfg/x", "--expect", "1").returncode == 0
    assert node.backend.asked[-1] == ("delete", "cfg/x", 1)
