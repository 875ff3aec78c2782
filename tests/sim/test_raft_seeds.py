"""The test of the harness: fifty seeds that hold, and that every bug of tests/mutants/swarm.toml breaks."""

from __future__ import annotations

import pytest

from nova.sim.group import Group
from nova.sim.subjects import SUBJECTS


def rough(seed):
    """Two of three change their members all the time; the third has more clients, on one key, and is cut apart."""
    if seed % 3 == 2:
        options = {"faults": 25, "clients": 8, "keys": 1, "kinds": ("partition", "cut", "loss")}
    else:
        options = {"faults": 30, "operations": 20, "clients": 3, "spares": 2}
    return Group(SUBJECTS["raft"], seed, nodes=3 + seed // 3 % 2, seconds=2, **options)


@pytest.mark.parametrize("seed", range(50))
def test_fifty_seeds_hold_and_would_notice(seed):
    assert rough(seed).run() == []
