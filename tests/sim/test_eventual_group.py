"""Groups that deliver in causal order, of members or of regions, while everything fails; and that change protocols.

After every event: causal delivery, W copies before anything is told, equal states of what is delivered alike, no number
given twice, nothing taken back. Clients read what they wrote and never go back; in the end all agree, and have it all.
"""

from __future__ import annotations

import pytest

from nova.sim.convergent import group_of
from nova.sim.subjects import SUBJECTS

EVENTUAL, HYBRID, CHAIN = SUBJECTS["eventual"], SUBJECTS["hybrid"], SUBJECTS["convergent"]
BATCH = 100


@pytest.mark.parametrize("first", range(0, 2_000, BATCH))
def test_two_thousand_histories(first):
    for seed in range(first, first + BATCH):
        assert group_of(EVENTUAL, seed, seconds=1, clients=1 + (seed % 3 == 1), faults=3).run() == []


def test_a_few_long_histories():
    for seed in range(3_000, 3_030):
        assert group_of(EVENTUAL, seed, nodes=3 + 2 * (seed % 4 == 3)).run() == []


@pytest.mark.parametrize("first", range(0, 2_000, BATCH))
def test_two_thousand_histories_of_regions(first):
    for seed in range(first, first + BATCH):
        nodes, clients = 3 + (seed % 4 == 3), 1 + (seed % 4 == 1)
        assert group_of(HYBRID, seed, nodes=nodes, seconds=1, clients=clients, faults=3).run() == []


def test_a_few_long_histories_of_regions():
    for seed in range(3_000, 3_020):
        assert group_of(HYBRID, seed, nodes=3 + 2 * (seed % 2)).run() == []


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_sessions_go_on_when_protocols_change(first):
    switched = 0
    for seed in range(first, first + 50):
        group = group_of(CHAIN, seed, clients=3, seconds=2)
        assert group.run() == []
        switched += max(group.epochs)
    assert switched > 50


@pytest.mark.parametrize("subject", [EVENTUAL, HYBRID])
def test_one_seed_is_one_history(subject):
    traces = []
    for _ in range(2):
        group = group_of(subject, 11)
        assert group.run() == []
        traces.append((group.world.trace, group.world.events, group.acknowledged))
    assert traces[0] == traces[1]


@pytest.mark.parametrize("subject", [EVENTUAL, HYBRID])
def test_clients_get_on_also_while_there_are_faults(subject):
    group = group_of(subject, 5, faults=0)
    assert group.run() == []
    assert group.acknowledged > 100
    assert group.reads
    assert not group.refused
