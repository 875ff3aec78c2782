"""A failing plan made small: delta debugging (Zeller & Hildebrandt 2002, "Simplifying and isolating failure-inducing
input"), over the faults of a plan.

What is left fails, and no longer does so when any single one of its faults is left out, unless the tries ran out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from nova.sim.faults import Fault

TRIES_MAX: Final = 500


class Shrunk:
    """What came of it: the smallest `plan` that still fails, after how many `tries`; `minimal` if none can go."""

    def __init__(self, plan: list[Fault]) -> None:
        self.plan = plan
        self.tries = 0
        self.minimal = False


def shrink(plan: Sequence[Fault], fails: Callable[[list[Fault]], bool], *, tries_max: int = TRIES_MAX) -> Shrunk:
    """Leave faults out of a plan that fails for as long as it goes on failing.

    fails  runs a plan under the same seed, and has to mend whatever the plan leaves broken
    cost   O(n log n) runs for a few faults that matter among n, O(n^2) at worst; never more than `tries_max`
    """
    best = Shrunk(list(plan))

    def still(candidate: list[Fault]) -> bool:
        best.tries += 1
        if fails(candidate):
            best.plan = candidate
            return True
        return False

    if best.plan and tries_max > 0 and still([]):
        best.minimal = True
        return best
    parts = 2
    while len(best.plan) > 1:
        parts = min(parts, len(best.plan))
        for without in _complements(best.plan, parts):
            if best.tries >= tries_max:
                return best
            if still(without):
                parts = max(parts - 1, 2)
                break
        else:
            if parts == len(best.plan):
                break
            parts *= 2
    best.minimal = True
    return best


def _complements(plan: list[Fault], parts: int) -> list[list[Fault]]:
    """The plan without each of so many equal parts of it, later ones first: ends are less often what matters."""
    edges = [len(plan) * number // parts for number in range(parts + 1)]
    return [plan[: edges[i]] + plan[edges[i + 1] :] for i in reversed(range(parts))]
