"""The test of the harness: fifty seeds that hold, and that every bug of tests/mutants/swarm.toml breaks."""

from __future__ import annotations

import pytest

from nova.sim.group import Group
from nova.sim.subjects import SUBJECTS


@pytest.mark.parametrize("seed", range(50))
def test_fifty_seeds_hold_and_would_notice(seed):
    assert Group(SUBJECTS["raft"], seed, nodes=3 + seed % 3, spares=2 * (seed % 2), faults=20, seconds=2).run() == []
