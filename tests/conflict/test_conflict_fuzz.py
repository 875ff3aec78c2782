"""A short run of tests/fuzz/conflicts.py, and that it would see what it looks for."""

from __future__ import annotations

from random import Random

import pytest

from nova.conflict.detect import ConflictDetector
from nova.conflict.strategies import LastWriteWins
from tests.fuzz import conflicts


def test_twenty_thousand_pairs_have_no_false_verdict_and_no_silent_loss():
    rounds = list(conflicts.run(20_000, seed=7))
    assert [report for _, _, reports in rounds for report in reports] == []
    assert sum(checked for checked, _, _ in rounds) == 20_000
    assert sum(concurrent for _, concurrent, _ in rounds) > 4_000


class Blind(ConflictDetector):
    def detect(self, resource_id, local, remote, **more):
        return None


class Nervous(ConflictDetector):
    def detect(self, resource_id, local, remote, **more):
        found = super().detect(resource_id, local, remote, **more)
        return found or self.examine(resource_id, "register", {"": [local, remote]})


class Forgetful(LastWriteWins):
    def resolve(self, conflict, *context):
        return super().resolve(conflict, *context).replace(discarded=())


class Local(LastWriteWins):
    def resolve(self, conflict, *context):
        return super().resolve(conflict, *context).replace(value=conflict.local.value)


@pytest.mark.parametrize(
    ("detector", "strategy", "said"),
    [
        (Blind(), LastWriteWins(), "a false negative"),
        (Nervous(), LastWriteWins(), "a false positive"),
        (ConflictDetector(), Forgetful(), "a silent loss"),
        (ConflictDetector(), Local(), "settle differently"),
    ],
)
def test_a_wrong_verdict_and_a_silent_loss_are_seen(detector, strategy, said):
    made = conflicts.history(Random(3))
    pairs = [(one, other) for at, one in enumerate(made) for other in made[:at]]
    assert any(said in conflicts.check(one, other, detector, strategy) for one, other in pairs)
