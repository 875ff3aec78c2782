"""Two values may disagree though no field of them overlaps: declared rules find that, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict.detect import ConflictDetector, ConflictType, Version
from nova.conflict.semantics import SemanticRule, semantic
from nova.errors import UsageError

PLACED = SemanticRule("placed", "/power", ("running",), requires="/host")
FROZEN = SemanticRule("frozen", "/locked", (True,), excludes="/move", one_of=("planned", "running"))


def found(base, local, remote, *rules):
    detector = ConflictDetector()
    detector.add("semantic", semantic(*rules))
    origin = Version(base, VectorClock({"o": 1}), 1, "o")
    one = Version(local, VectorClock({"o": 1, "a": 1}), 2, "a")
    other = Version(remote, VectorClock({"o": 1, "b": 1}), 3, "b")
    return detector.detect("vm/1", one, other, base=origin)


def test_two_sound_changes_that_make_what_nobody_meant():
    base = {"power": "stopped", "host": "h1"}
    conflict = found(base, {"power": "running", "host": "h1"}, {"power": "stopped", "host": None}, PLACED)
    assert ConflictType.SEMANTIC in conflict.types
    assert conflict.paths == ()  # no field overlaps
    assert not conflict.auto_resolvable
    assert conflict.reason == 'placed: together /power is "running", which needs a value at /host'


def test_what_excludes_each_other():
    base = {"locked": False, "move": None}
    conflict = found(base, {"locked": True, "move": None}, {"locked": False, "move": "planned"}, FROZEN)
    assert ConflictType.SEMANTIC in conflict.types
    conflict = found(base, {"locked": True, "move": None}, {"locked": False, "move": "completed"}, FROZEN)
    assert ConflictType.SEMANTIC not in conflict.types


@pytest.mark.parametrize(
    ("base", "local", "remote"),
    [
        ({"power": "stopped", "host": "h1"}, {"power": "running", "host": "h1"}, {"power": "stopped", "host": "h2"}),
        ({"power": "running"}, {"power": "running", "x": 1}, {"power": "running", "y": 1}),  # it was so before
        ({"power": "stopped"}, {"power": "running"}, {"power": "stopped", "x": 1}),  # one side alone did that
    ],
)  # fmt: skip
def test_what_is_sound_or_was_wrong_before_is_no_semantic_conflict(base, local, remote):
    conflict = found(base, local, remote, PLACED)
    assert conflict is not None
    assert ConflictType.SEMANTIC not in conflict.types


def test_leaves_of_a_store_are_asked_too():
    detector = ConflictDetector()
    detector.add("semantic", semantic(PLACED))
    siblings = {
        "/power": [Version("running", VectorClock({"a": 1}), 2, "a"), Version("off", VectorClock({"b": 1}), 1, "b")],
        "/host": [Version(None, VectorClock({"b": 2}), 3, "b"), Version("h1", VectorClock({"c": 1}), 1, "c")],
    }
    conflict = detector.examine("vm/1", "map", siblings, leaves={"/name": "web"})
    assert ConflictType.SEMANTIC in conflict.types


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)),
)
def test_without_a_broken_rule_nothing_is_semantic(local, remote):
    rule = SemanticRule("never", "/a", (9,), requires="/b")
    conflict = found({}, local, remote, rule)
    assert conflict is None or ConflictType.SEMANTIC not in conflict.types


@pytest.mark.parametrize("wrong", [{}, {"requires": "/a", "excludes": "/b"}, {"requires": "host"}])
def test_a_rule_that_says_nothing_is_refused(wrong):
    with pytest.raises(UsageError, match="rule 'r'"):
        SemanticRule("r", "/power", **wrong)
