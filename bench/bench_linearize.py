"""The linearizability checker: histories of a key-value store with few and with many clients at once.

Run with `pytest bench/bench_linearize.py`. The peer is the same search without memory of what the model answered, in
Python: what one writes in an afternoon.
"""

from __future__ import annotations

import pytest

from nova.sim.linearize import REFUSED, KeyValue, check_linearizable
from tests.sim.test_linearize import served


def plainly(history, model):
    """Wing & Gong with a set of what was seen, in plain Python, key by key."""
    for key in {call.key for call in history}:
        calls = sorted((call for call in history if call.key == key), key=lambda call: call.begin)
        ends = [float("inf") if call.end is None else call.end for call in calls]
        stack, seen = [(0, model.initial)], set()
        full = sum(1 << i for i, call in enumerate(calls) if call.end is not None)
        while stack:
            done, state = stack.pop()
            if done & full == full:
                break
            first = min(ends[i] for i in range(len(calls)) if not done >> i & 1)
            for i in range(len(calls) - 1, -1, -1):
                if not done >> i & 1 and calls[i].begin <= first:
                    after = model.step(state, calls[i])
                    if after is not REFUSED and (done | 1 << i, after) not in seen:
                        seen.add((done | 1 << i, after))
                        stack.append((done | 1 << i, after))
        else:
            return False
    return True


@pytest.mark.benchmark(group="linearize.history")
@pytest.mark.parametrize("peer", ["nova", "plain Python"])
@pytest.mark.parametrize(("clients", "count"), [(5, 1_000), (50, 1_000), (50, 10_000)])
def test_history(benchmark, clients, count, peer):
    if peer != "nova" and count > 1_000:
        pytest.skip("minutes in plain Python")
    history = served(clients, count, 10, 1)
    benchmark.extra_info["operations"] = count
    if peer == "nova":
        assert benchmark(check_linearizable, history, KeyValue()).ok
    else:
        assert benchmark.pedantic(plainly, (history, KeyValue()), rounds=1)
