"""Each instruction set finds the same differences and digests, so it makes the same deltas, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nova.digest import digest128

WORK = """
import random
from nova.delta import DeltaEncoder, decode, encode, identity

rng = random.Random(3)
for size in (0, 5, 4096, 4099, 100_000):
    for step in (1, 2, 3, 8, 63, 64, 65, 500, 4095, 10_000):
        base = rng.randbytes(size)
        new = bytearray(base)
        for at in range(rng.randrange(step), size, step):
            new[at] ^= 1 << rng.randrange(8)
        delta = encode(base, new)
        assert decode(base, delta) == new
        assert DeltaEncoder(base).encode(new, how="hash") == delta
        print(delta.hex(), identity(new).hex())
"""


def answers(level: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", WORK], env={**os.environ, "NOVA_SIMD": level}, capture_output=True, check=True
    )
    assert done.stdout
    return done.stdout


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_every_level_makes_the_same_deltas(level: str) -> None:
    assert digest128(answers(level)).hex() == digest128(answers("best")).hex()
