"""A seed is one history also in another process: nothing depends on how texts happen to be hashed there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nova.sim.subjects import SUBJECTS

SCRIPT = """
from nova.sim.convergent import group_of
from nova.sim.subjects import SUBJECTS
for seed in range(6):
    group = group_of(SUBJECTS[{name!r}], seed, nodes=5)
    assert group.run() == []
    print(seed, group.world.events, group.world.trace)
"""


@pytest.mark.parametrize("name", SUBJECTS)
def test_one_seed_is_one_history_in_every_process(name):
    histories = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT.format(name=name)],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("1", "2")
    ]
    assert histories[0] == histories[1]
    assert histories[0].count("\n") == 6
