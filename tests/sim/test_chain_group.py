"""Groups whose operator goes from protocol to protocol, and from members to members, while everything else fails.

After every event: one successor of each epoch, nothing decided twice, equal states, no epoch and nothing applied taken
back. At the end the group has to serve, and to hold every acknowledged write in an order that fits real time.
"""

from __future__ import annotations

import pytest

from nova.sim.group import Group
from nova.sim.subjects import SUBJECTS

CHAIN = SUBJECTS["adaptive"]
BATCH = 50


@pytest.mark.parametrize("first", range(0, 1_000, BATCH))
def test_nothing_is_lost_when_protocols_change(first):
    for seed in range(first, first + BATCH):
        assert Group(CHAIN, seed).run() == []


def test_a_few_histories():
    switched = 0
    for seed in range(2_000, 2_040):
        group = Group(CHAIN, seed)
        assert group.run() == []
        switched += max(group.epochs)
    assert switched > 40
