"""What differs between two sets of a million ids, and the upkeep beside xxhash. Run: pytest bench/bench_reconcile.py"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nova.digest import Reconciler, SetDigest

IDS = 1_000_000
LOOP = 100


@pytest.fixture(scope="module")
def ids() -> Any:
    return np.random.default_rng(1).integers(1, 1 << 63, size=IDS, dtype=np.uint64)


@pytest.mark.parametrize("differences", [1, 10, 100, 1_000])
def test_decode(benchmark: Any, ids: Any, differences: int) -> None:
    """The bytes that went over the wire are in the results as `bytes`. The set is not looked at."""
    mine, theirs = Reconciler(ids), Reconciler(ids[: IDS - differences])
    data = theirs.encode(cells=0 if differences <= 10 else Reconciler.cells_for(differences))
    benchmark.group = f"digest.reconcile, 1 M ids, {differences} differences"
    benchmark.extra_info["bytes"] = len(data)
    found = benchmark(mine.decode, data)
    assert found.here == sorted(ids[IDS - differences :].tolist())


@pytest.mark.parametrize(("kept", "peer"), [("SetDigest", "nova"), ("SetDigest", "xxhash"), ("Reconciler", "nova")])
def test_upkeep_of_a_write(benchmark: Any, kept: str, peer: str) -> None:
    """The peer is one call of XXH3, 128 bits: the hash alone, added to nothing."""
    benchmark.group = "digest.upkeep"
    benchmark.extra_info["operations"] = LOOP
    row = b"vm/eu-1/000042:running"
    if peer == "xxhash":
        digest_of = pytest.importorskip("xxhash", reason="peer xxhash is not installed").xxh3_128_digest

        def loop() -> bool:
            for _ in range(LOOP):
                digest_of(row)
            return True
    elif kept == "SetDigest":
        digest = SetDigest()

        def loop() -> bool:
            for _ in range(LOOP):
                digest.add(row)
            return True
    else:
        summary = Reconciler()

        def loop() -> bool:
            for id in range(1, LOOP + 1):
                summary.add(id)
            return True

    assert benchmark(loop)


@pytest.mark.benchmark(group="digest.reconcile, cells a difference")
@pytest.mark.parametrize("differences", [50, 1000])
def test_cells_that_were_needed(benchmark: Any, differences: int) -> None:
    """The median of fifty pairs of sets is in the results as `cells_a_difference`; what is timed is one decoding."""
    values, needs = np.random.default_rng(2), []
    for seed in range(50):
        theirs = Reconciler(values.integers(1, 1 << 63, size=differences, dtype=np.uint64), seed=seed)
        mine, need = Reconciler(seed=seed), differences
        while mine.decode(theirs.encode(cells=need)) is None:
            need += 1 + differences // 200
        needs.append(need / differences)
    benchmark.extra_info["cells_a_difference"] = round(sorted(needs)[25], 3)
    assert benchmark(mine.decode, theirs.encode(cells=need)) is not None
