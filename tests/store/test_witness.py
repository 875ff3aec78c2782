"""Heads of audit trails at peers: told when they fit, kept when they do not, and no honest node accused."""

from __future__ import annotations

import pytest

from nova.conflict.audit import ChainMark
from nova.errors import PeerError
from nova.store.witness import ROUND_MS, HeadAsk, HeadHeld, HeadTold, Witness

TICK_MS = 100


def hash_of(count, branch=0):
    return bytes([count, branch]) * 16


class Node:
    """A trail of so many records; records from `other_from` on were made anew."""

    def __init__(self, trail="t"):
        self.count, self.anchor, self.other_from = 0, 0, 1 << 30
        self.kept = {}
        self.witness = Witness(trail, self.head, self.hash_at, self, tick_ms=TICK_MS)

    def head(self):
        return ChainMark(self.count, self.hash_at(self.count) or bytes(32)) if self.count else ChainMark()

    def hash_at(self, count):
        return None if count < self.anchor or not count else hash_of(count, count >= self.other_from)

    def held(self, node):
        return dict(self.kept.get(node, {}))

    def keep(self, node, trail, head):
        self.kept.setdefault(node, {})[trail] = head


def talk(nodes, sender, outputs):
    queue = [(sender, *each) for each in outputs.send]
    said = []
    while queue:
        source, target, message = queue.pop(0)
        said.append(message)
        queue += [(target, *each) for each in nodes[target].witness.step(source, message).send]
    return said


def rounds(nodes, name, count=1):
    said = []
    for _ in range(count * ROUND_MS // TICK_MS):
        said += talk(nodes, name, nodes[name].witness.tick([other for other in nodes if other != name]))
    return said


@pytest.fixture
def nodes():
    made = {"a": Node(), "b": Node()}
    made["a"].count = 3
    talk(made, "a", made["a"].witness.met("b"))
    rounds(made, "a")
    return made


def test_a_peer_keeps_the_head_and_hears_of_the_next(nodes):
    a, b = nodes["a"], nodes["b"]
    assert b.held("a") == {"t": str(ChainMark(3, hash_of(3)))}
    assert rounds(nodes, "a") == []  # no news
    a.count = 5
    assert rounds(nodes, "a") == [HeadTold("t", str(ChainMark(5, hash_of(5))))]
    assert b.held("a") == {"t": str(ChainMark(5, hash_of(5)))}


def test_nothing_is_told_before_the_peer_said_what_it_holds():
    nodes = {"a": Node(), "b": Node()}
    nodes["a"].count = 3
    out = [message for _ in range(3 * ROUND_MS // TICK_MS) for message in nodes["a"].witness.tick(["b"]).send]
    assert [type(message) for _, message in out] == [HeadAsk] * 3


def restarted(nodes):
    """Node a, as it comes back with what its disk holds."""
    old = nodes["a"]
    new = nodes["a"] = Node()
    new.count, new.anchor, new.other_from = old.count, old.anchor, old.other_from
    talk(nodes, "a", new.witness.met("b"))
    rounds(nodes, "a", 3)
    return new


def test_a_cut_end_is_found_and_what_shows_it_is_kept(nodes):
    nodes["a"].count = 2
    a = restarted(nodes)
    assert a.witness.accused == {"b": "this trail ends at record 2, and once reached 3: its end was cut off"}
    assert a.witness.heads == {"b": ChainMark(3, hash_of(3))}
    assert len(a.witness.news()) == 1
    assert a.witness.news() == []
    a.count, a.other_from = 9, 3  # it grows again, past the old end
    rounds(nodes, "a", 3)
    assert nodes["b"].held("a") == {"t": str(ChainMark(3, hash_of(3)))}
    a = restarted(nodes)
    assert "another one now" in a.witness.accused["b"]


@pytest.mark.parametrize("change", ["nothing", "growth", "retention"])
def test_an_honest_trail_is_not_accused(nodes, change):
    a = nodes["a"]
    if change == "growth":
        a.count = 8
    elif change == "retention":
        a.count, a.anchor = 8, 6
    a = restarted(nodes)
    assert not a.witness.accused
    assert nodes["b"].held("a") == {"t": str(ChainMark(a.count, hash_of(a.count)))}


def test_a_node_that_begins_anew_has_another_trail(nodes):
    anew = nodes["a"] = Node("u")
    anew.count = 1
    talk(nodes, "a", anew.witness.met("b"))
    rounds(nodes, "a")
    assert not anew.witness.accused
    assert nodes["b"].held("a") == {"t": str(ChainMark(3, hash_of(3))), "u": str(ChainMark(1, hash_of(1)))}


def test_a_late_word_of_an_older_head_changes_nothing(nodes):
    b = nodes["b"]
    b.witness.step("a", HeadTold("t", str(ChainMark(2, hash_of(2)))))
    assert b.held("a") == {"t": str(ChainMark(3, hash_of(3)))}


@pytest.mark.parametrize(
    "message",
    [HeadTold("t", "x"), HeadTold("", "3:" + "00" * 32), HeadTold("a/b", "3:" + "00" * 32), HeadHeld("t", "-1:00")],
)
def test_what_is_no_head_is_refused(nodes, message):
    with pytest.raises(PeerError):
        nodes["b"].witness.step("a", message)
