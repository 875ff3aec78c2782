"""Operators change the group of real nodes, by the command line, while keys are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from real_nodes import ROOT, TOKEN, Answer, eventually, free_ports
from test_strong_nodes import leader_of, strong

pytestmark = pytest.mark.process


def nova(node, *arguments, code=0):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NOVA_")}
    done = subprocess.run(
        [sys.executable, "-m", "nova", "consensus", *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT,
        env=environment | {"NOVA_NODE": f"http://{node.http}", "NOVA_TOKEN": TOKEN, "COLUMNS": "120"},
    )  # fmt: skip
    assert done.returncode == code, done
    return done.stdout if code == 0 else done.stderr


class Writer(threading.Thread):
    """Adds one to a key, at one node, until it is stopped; what has no answer is in doubt."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.done, self.doubt, self.stopped = node, 0, 0, threading.Event()
        self.start()

    def run(self):
        while not self.stopped.is_set():
            try:
                self.node.call("POST", "/v1/transact/cfg/n", {"do": [{"add": 1}]})
                self.done += 1
            except Answer as answer:
                self.doubt += answer.body["code"] != "unavailable"


def test_members_join_lead_and_leave_and_protocols_change_under_load(nodes):
    ports = free_ports(4)
    members = {name: f"127.0.0.1:{port}" for name, port in zip("abcd", ports, strict=True)}
    three = ",".join(f"{name}={members[name]}" for name in "abc")
    four = ",".join(f"{name}={address}" for name, address in members.items())
    group = nodes.start("a", "b", "c", environment=strong("abc", consensus_members=three))
    a, b, _ = group
    leader_of(group)
    writer = Writer(a)

    def goes_on():
        count = writer.done
        eventually(lambda: writer.done > count + 5)

    (d,) = nodes.start("d", environment=strong("d", consensus_members=four, consensus_founders="a,b,c"))
    assert "d is not known here" in nova(b, "add", "d", code=2)
    assert nova(b, "add", "d", members["d"], "--learner") == "d learns; voters: a, b, c\n"
    assert nova(a, "add", "d") == "d votes; voters: a, b, c, d\n"
    assert "votes already" in nova(a, "add", "d", code=2)
    assert d.put("cfg/of-d", 1, expect=0)["origin"] == "d"
    goes_on()
    assert nova(b, "transfer", "d") == "d leads\n"
    eventually(lambda: a.call("GET", "/v1/consensus")["leader"] == "d")
    shown = json.loads(nova(b, "status", "--json"))
    assert {member["node"]: member["role"] for member in shown["members"]} == dict.fromkeys("abcd", "voter")
    assert all(member["lag"] is not None for member in shown["members"])
    goes_on()
    assert nova(a, "remove", "d") == "d is out; voters: a, b, c\n"  # the leader itself
    d.stop()
    leader_of([*group])  # until then the others send operators to d
    assert "is no member" in nova(a, "remove", "d", code=2)
    goes_on()
    assert nova(a, "switch", "paxos").endswith("paxos; voters: a, b, c\n")
    goes_on()
    assert nova(b, "switch", "raft").startswith("epoch 2: raft")
    goes_on()
    assert "zab" in nova(a, "switch", "zab", code=2)
    assert "is not known here" in nova(a, "switch", "raft", "a", "x", code=2)
    writer.stopped.set()
    writer.join(30)
    eventually(lambda: all(node.call("GET", "/v1/consensus")["epoch"] == 2 for node in group))
    links = [(link["number"], link["protocol"]) for link in b.call("GET", "/v1/consensus")["epochs"]]
    assert links == [(0, "raft"), (1, "paxos"), (2, "raft")]
    for node in group:
        assert writer.done <= node.get("cfg/n")["value"] <= writer.done + writer.doubt


def test_measured_round_trips_choose_the_protocol(nodes):
    """The links of the nodes are emulated to be slow; what they measure makes them leave raft, by themselves."""
    slow = ",".join(f"region-{name}=40" for name in "abc")
    environment = strong("abc", consensus_adaptive="true", link_delay_ms=slow)
    group = nodes.start("a", "b", "c", environment=environment)
    assert group[0].put("cfg/x", 1, expect=0)["version"] == 1
    eventually(lambda: {node.call("GET", "/v1/consensus")["protocol"] for node in group} == {"paxos"}, 30)
    told = [node.call("GET", "/v1/consensus")["adaptive"] for node in group]
    reasons = [each["decision"] for each in told if each["decision"]]
    assert any(reason.startswith("paxos") and "rtt_ms" in reason for reason in reasons), told
    assert "measured v1" in nova(group[0], "status")
    assert group[1].get("cfg/x")["value"] == 1
    assert group[2].put("cfg/x", 2, expect=1)["value"] == 2


def test_near_nodes_stay_with_raft_and_a_learner_takes_what_comes(nodes):
    ports = free_ports(4)
    members = {name: f"127.0.0.1:{port}" for name, port in zip("abcd", ports, strict=True)}
    three = ",".join(f"{name}={members[name]}" for name in "abc")
    four = ",".join(f"{name}={address}" for name, address in members.items())
    group = nodes.start("a", "b", "c", environment=strong("abc", consensus_members=three, consensus_adaptive="true"))
    leader_of(group)
    (d,) = nodes.start("d", environment=strong("d", consensus_members=four, consensus_founders="a,b,c"))
    nova(group[0], "add", "d", members["d"], "--learner")
    made = d.put("cfg/learned", 1, expect=0)
    assert group[1].get("cfg/learned") == made
    assert d.get("cfg/learned") == made
    eventually(lambda: d.call("GET", "/v1/consensus")["role"] == "learner")
    assert [node.call("GET", "/v1/consensus")["protocol"] for node in group] == ["raft"] * 3
    assert group[0].call("GET", "/v1/consensus")["adaptive"] == {"policy": "measured v1", "decision": None}
