"""Linearizability by its definition: try every order of every choice of the calls that never came back."""

from __future__ import annotations

from itertools import combinations, permutations

from nova.sim.linearize import REFUSED


def linearizable(calls, model):
    ended = [call for call in calls if call.end is not None]
    lost = [call for call in calls if call.end is None]
    for count in range(len(lost) + 1):
        for some in combinations(lost, count):
            for order in permutations([*ended, *some]):
                if fits(order, model):
                    return True
    return False


def fits(order, model):
    state = model.initial
    for at, call in enumerate(order):
        if any(later.end is not None and later.end < call.begin for later in order[at + 1 :]):
            return False
        state = model.step(state, call)
        if state is REFUSED:
            return False
    return True
