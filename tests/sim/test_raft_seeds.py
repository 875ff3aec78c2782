"""The test of the harness: fifty seeds that hold, and that every bug of tests/mutants/swarm.toml breaks.

Those bugs are in the Python of Raft, all of which runs when nothing of it is compiled."""

from __future__ import annotations

import pytest

from nova.consensus.raft import Raft
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
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_fifty_seeds_hold_and_would_notice(seed, compiled, monkeypatch):
    monkeypatch.setattr(Raft, "compiled", compiled)
    assert rough(seed).run() == []


@pytest.mark.parametrize("seed", range(6))
def test_a_seed_is_one_history_compiled_or_not(seed, monkeypatch):
    traces = []
    for compiled in (True, False):
        monkeypatch.setattr(Raft, "compiled", compiled)
        group = rough(seed)
        assert group.run() == []
        traces.append(group.world.trace)
    assert traces[0] == traces[1]
