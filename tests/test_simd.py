"""Each instruction set gives the same answers: one process a level does the work below; all must agree."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nova.digest import digest128

WORK = """
import numpy as np
from nova.clock import ClockBatch, VectorClock
from nova.digest import Reconciler

random = np.random.default_rng(7)
for actors in (1, 15, 64, 200):
    for spread in (3, 1 << 17, 1 << 40, (1 << 64) - 1):
        table = random.integers(0, spread, size=(333, actors), dtype=np.uint64)
        table[1::2, 1:] = table[:-1:2, 1:]
        batch = ClockBatch.from_array(range(actors), table)
        print(batch.compare(batch[5]).tolist(), batch.compare_all(batch).tolist()[:3])
        print(batch.merge_all().to_bytes(), batch.meet_all().to_bytes())
        print(batch.compare_pairs(ClockBatch.from_array(range(actors), table[::-1])).tolist())
        print([batch[i].compare(batch[i + 1]) for i in range(100)])
for count in range(12):
    ids = random.integers(1, (1 << 64) - 1, size=count, dtype=np.uint64)
    one = Reconciler(ids)
    print(one.encode(), one.encode(cells=99), Reconciler().decode(one.encode()))
"""


def answers(level: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", WORK], env={**os.environ, "NOVA_SIMD": level}, capture_output=True, check=True
    )
    assert done.stdout
    return done.stdout


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_every_level_gives_the_same_answers(level: str) -> None:
    assert digest128(answers(level)).hex() == digest128(answers("best")).hex()
