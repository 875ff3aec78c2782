"""What tests/fuzz/run.py fuzzes: each target is there, begins from real objects, and stands what is near them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.targets import decoders

FOLDER = Path(decoders.__file__).parent


def test_every_target_has_a_program_and_seeds():
    assert set(decoders.SEEDS) == {*run.IN_C, *run.IN_PYTHON}
    assert {path.stem for path in FOLDER.glob("*.c")} == {*run.IN_C, "python"}
    for target, seeds in decoders.SEEDS.items():
        sizes = [len(seed) for seed in seeds()]
        assert sizes, target
        assert max(sizes) <= run.BYTES_MAX.get(target, run.BYTES), target


@pytest.mark.parametrize("target", run.IN_PYTHON)
def test_what_is_near_real_bytes_is_refused_or_sound(target):
    rng = random.Random(target)
    call = getattr(decoders, target)
    call(b"")
    for seed in decoders.SEEDS[target]():
        call(seed)
        for _ in range(20):
            data = bytearray(seed)
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(1, len(data) + 1)
                match rng.randrange(3):
                    case 0:
                        data[at:at] = data[rng.randrange(len(data)) :][: rng.randrange(1, 9)]
                    case 1:
                        del data[at : at + rng.randrange(1, 9)]
                    case 2:
                        data[at - 1] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            call(bytes(data))
