"""Votes of real nodes: the story of a VM through partition, vote and rollback, and SIGKILL of who counts."""

from __future__ import annotations

import pytest
from real_nodes import Nodes, converge, eventually, meet, with_change
from test_audit_node import VM, nova, told

pytestmark = pytest.mark.process


def test_why_tells_the_whole_story_of_a_vm_through_partition_vote_and_rollback(nodes: Nodes) -> None:
    voters = ("--voter", "a", "--voter", "b", "--voter", "c", "--strategies", "vm/=consensus_vote")
    a, b, c = nodes.start("a", "b", "c", flags=voters)
    meet(a, b, c)
    a.put("vm/7", {**VM, "host": "h1"}, kind="vm")
    point = nova(a, "points", "save", "vm/7", "--note", "before the move").stdout.strip()
    converge(a, b, c)
    c.cut(a, b)
    a.put("vm/7", {"host": "h2"}, merge=True)
    eventually(lambda: b.get("vm/7")["value"]["host"] == "h2")  # type: ignore[index]
    c.put("vm/7", {"host": "h9"}, merge=True)  # the last writer, whom only c heard
    for one in (a, b, c):
        one.heal()
    eventually(lambda: all(one.status()["conflicts"] == 1 and not one.status()["pending"] for one in (a, b, c)))
    converge(a, b, c)
    assert [one.get("vm/7")["value"]["host"] for one in (a, b, c)] == ["h2"] * 3  # type: ignore[index]
    assert told(a, "rollback", "vm/7", "--to", point, "--by", "ann")["restored"] == {"/host": "h1"}
    converge(a, b, c)
    assert c.get("vm/7")["value"]["host"] == "h1"  # type: ignore[index]

    story = nova(a, "why", "vm/7").stdout
    parts = (
        f"was kept as point {point} (before the move)",
        "conflict",
        'a wrote /host = "h2"',
        'c wrote /host = "h9"',
        "are asked; until they have decided",
        "a cast its vote in conflict",
        "a vote on vm/7 asked",
        'a "h2"',
        'b "h2"',
        '"h2" won (2 of 3 needed)',
        "a vote decided conflict",
        'discarded: "h9" of c at /host',
        f"vm/7 was rolled back to {point} by ann",
        '/host is "h1" again',
        'discarded: "h2" of a at /host: rolled back',
    )
    at = 0
    for words in parts:
        found = story.find(words, at)
        assert found >= 0, f"{words!r} is missing behind {story[:at][-80:]!r} in\n{story}"
        at = found if words != "conflict" else at
    for other in (b, c):  # they counted nothing, and were told how it ended
        eventually(lambda other=other: '"h2" won (2 of 3 needed)' in nova(other, "why", "vm/7").stdout)
    assert all(told(one, "audit", "verify")["ok"] for one in (a, b, c))


def test_a_vote_outlives_who_counts_it(nodes: Nodes) -> None:
    voters = ("--voter", "a", "--voter", "b", "--voter", "c", "--strategies", "x/=consensus_vote")
    a, b, c = nodes.start("a", "b", "c", flags=voters)
    meet(a, b, c)
    c.cut(a, b)
    a.put("x/1", "first")
    eventually(lambda: b.get("x/1"))
    c.put("x/1", "second")
    # Both are heard by b, which is not the one to count; then a, which is, is gone.
    b.heal()
    c.call("POST", "/v1/chaos/heal")
    c.cut(a)
    eventually(lambda: b.status()["conflicts"] == 1)
    a.kill()
    eventually(lambda: b.get("x/1")["siblings"] == [] and c.get("x/1")["siblings"] == [], seconds=60)  # type: ignore[index]
    converge(b, c)
    value = b.get("x/1")["value"]  # type: ignore[index]
    a.start()
    a.heal()
    c.heal()
    converge(a, b, c)
    assert [one.get("x/1")["value"] for one in (a, b, c)] == [value] * 3  # type: ignore[index]


DIE = """
import os, signal
import nova.store.votes as votes

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

finish, decide = votes.Votes._finish, votes.decide
votes.Votes._finish = lambda self, conflict, poll: COUNTED
votes.decide = lambda replica, *rest: WRITTEN
"""
MOMENTS = {
    "when it has counted a majority": {
        "COUNTED": "die() if poll.ended and self.node == 'a' else finish(self, conflict, poll)",
        "WRITTEN": "decide(replica, *rest)",
    },
    "when it has written the outcome and nobody heard of it": {
        "COUNTED": "finish(self, conflict, poll)",
        "WRITTEN": "(decide(replica, *rest), die() if replica.node == 'a' else None)[0]",
    },
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_who_counts_is_killed(nodes: Nodes, moment: str) -> None:
    code = DIE
    for name, what in MOMENTS[moment].items():
        code = code.replace(name, what)
    voters = ("--voter", "a", "--voter", "b", "--voter", "c", "--strategies", "x/=consensus_vote")
    a, b, c, d = nodes.start("a", "b", "c", "d", flags=voters, environment=with_change(nodes._folder, code))
    d.cut(a, b, c)
    a.put("x/1", "first")
    eventually(lambda: b.get("x/1") and c.get("x/1"))
    d.put("x/1", "second")  # the last writer
    for one in (a, b, c, d):
        one.heal()
    eventually(lambda: not a.running, 30, "it did not count")
    alive = (b, c, d)
    eventually(lambda: all(one.status()["conflicts"] and not one.status()["pending"] for one in alive), 30)
    converge(*alive)
    assert [one.get("x/1")["value"] for one in alive] == ["first"] * 3  # type: ignore[index]
    a.start()
    meet(a, *alive)
    converge(a, *alive)
    eventually(lambda: not any(one.status()["pending"] for one in (a, *alive)))
    assert [one.get("x/1")["value"] for one in (a, *alive)] == ["first"] * 4  # type: ignore[index]
    for one in (a, *alive):
        eventually(lambda one=one: '"first" won (2 of 3 needed)' in nova(one, "why", "x/1").stdout, 40)
        assert told(one, "audit", "verify")["ok"]
