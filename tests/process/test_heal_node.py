"""`nova heal` between nodes that run: what it says is so."""

from __future__ import annotations

import json
import signal
import subprocess
import threading

import pytest
from real_nodes import Nodes, converge, eventually, meet
from test_audit_node import nova

pytestmark = pytest.mark.process


def test_two_running_nodes_are_brought_together_and_it_is_told_what_that_took(nodes: Nodes) -> None:
    a, b = nodes.start("a", "b")
    a.cut(b)
    eventually(lambda: a.status()["peers"] == 0)
    refused = nova(a, "heal", "b")
    assert refused.returncode == 3
    assert "no session with 'b'" in refused.stderr
    for node in (a, b):
        node.put(f"only/{node.name}", "x" * 1000)
        node.put("both", node.name)
    a.heal()
    b.heal()
    meet(a, b)
    done = nova(a, "heal", "b", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["equal"]
    assert report["after"][0] == report["after"][1]
    assert a.status()["digest"] == b.status()["digest"]
    assert a.get("both") is not None
    assert a.held("only/") == b.held("only/")
    assert b'dwcp_recovery_attempts_total{type="heal",result="ok"} 1' in a.ask("GET", "/metrics")[1]
    again = nova(a, "heal", "b")
    assert again.returncode == 0
    assert "equal" in again.stdout
    wrong = nova(a, "heal", "nobody")
    assert wrong.returncode == 3
    assert "only with b" in wrong.stderr
    converge(a, b)


def test_a_node_that_stops_tells_who_waits_for_it(nodes: Nodes) -> None:
    a, b = nodes.start("a", "b")
    b.send_signal(signal.SIGSTOP)
    asked: list[subprocess.CompletedProcess[str]] = []

    def ask() -> None:
        while not asked or "being healed already" in asked[-1].stderr:
            asked.append(nova(a, "heal", "b", "--seconds", "50"))

    thread = threading.Thread(target=ask, daemon=True)
    try:
        thread.start()
        eventually(lambda: "being healed already" in nova(a, "heal", "b", "--seconds", "0.1").stderr)
        assert a.stop() == 0
        thread.join(30)
        assert not thread.is_alive()
        assert asked[-1].returncode == 3
        assert "this node is stopping" in asked[-1].stderr
    finally:
        b.send_signal(signal.SIGCONT)
