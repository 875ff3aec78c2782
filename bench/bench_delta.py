"""Deltas of images beside what else makes them: speed, and size, of real memory and of known changes.

All codecs of one pair of images take turns, so that whatever else the machine does slows all of them; figures are the
median of the rounds, in CPU time, that of children included. `images.py` makes the pairs, `delta_peers.py` has the
others. Without timing (`--benchmark-disable`) images are small, and only what is made is checked.
"""

from __future__ import annotations

import functools
import itertools
import resource
import statistics
import time

import images
import pytest
from delta_peers import decompressed, peers

from nova.cli import delta_works as works
from nova.delta import DeltaDecoder, DeltaEncoder, decode, encode

ROUNDS = 5
KNOWN = [
    "near-identical",
    "0.4% of pages",
    "10% of pages",
    "1% of bytes",
    "5% of bytes",
    "25% of bytes",
    "moved pages",
    "released pages",
    "inserted bytes",
    "random",
]
REAL = ["python objects", "python objects, much work", "sqlite in memory", "etcd"]


def cpu_s() -> float:
    """CPU time of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def in_turns(works, rounds, round_s=0.02):
    """Median CPU seconds of each."""
    loops = []
    for work in works:
        started = cpu_s()
        work()
        loops.append(max(1, int(round_s / max(cpu_s() - started, 1e-6))))
    times = [[] for _ in works]
    for _ in range(rounds):
        for work, count, mine in zip(works, loops, times, strict=True):
            started = cpu_s()
            for _ in range(count):
                work()
            mine.append((cpu_s() - started) / count)
    return [statistics.median(mine) for mine in times]


@pytest.fixture(scope="module")
def pair_of(request, tmp_path_factory):
    """A pair of images by name; made when it is first asked for."""
    timed = not request.config.getoption("benchmark_disable")
    operations = {"python objects": 300, "python objects, much work": 6000, "sqlite in memory": 300}

    @functools.cache
    def real(name):
        if name == "etcd":
            pair = images.of_etcd(tmp_path_factory.mktemp("etcd")) if timed else None
            return pair or pytest.skip("etcd is not installed, or nothing is timed")
        program = images.TABLE if "sqlite" in name else images.OBJECTS
        return images.of_program(program if timed else program.replace("0_000", "_000"), operations[name])

    @functools.cache
    def known():
        images.BYTES = 32 << 20 if timed else 1 << 20
        return dict(images.synthetic(real("python objects")[0]))

    return lambda name: known()[name] if name in KNOWN else real(name)


@pytest.fixture(scope="module")
def measured(pair_of, request):
    """Median seconds and the delta of each codec for a pair, all in turns."""
    timed = not request.config.getoption("benchmark_disable")

    @functools.cache
    def run(name):
        base, new = pair_of(name)
        encoder = DeltaEncoder(base)
        codecs = {"nova": lambda _, image: encoder.encode(image), "nova, base and all": encode, **peers()}
        times, made = {who: [] for who in codecs}, {}
        for _ in range(ROUNDS if timed else 1):
            for who, codec in codecs.items():
                if who == "xdelta3 -1" and len(times[who]) == 1 and times[who][0] > 3:
                    continue  # once is enough to see it
                started = cpu_s()
                made[who] = codec(base, new)
                times[who].append(cpu_s() - started)
        return {who: (statistics.median(times[who]), made[who]) for who in codecs}

    return run


@pytest.mark.parametrize("peer", ["nova", "nova, base and all", *peers()])
@pytest.mark.parametrize("name", [*REAL, *KNOWN])
def test_encode(benchmark, measured, pair_of, name, peer):
    benchmark.group = f"delta.encode, {name}"
    base, new = pair_of(name)
    seconds, made = measured(name)[peer]
    if peer.startswith("nova"):
        assert decode(base, made) == new
    elif "patch-from" in peer:
        assert decompressed(made, len(new), base).tobytes() == new
    benchmark.extra_info.update(
        timing={"median": seconds, "spread": 0.0},
        GB_per_s=len(new) / seconds / 1e9,
        ratio=len(new) / len(made),
        bytes=len(made),
        image_bytes=len(new),
    )
    benchmark.pedantic(lambda: None, rounds=1)


CASES = {
    "encode by comparing": (functools.partial(works.encodes, how="compare"), 1),
    "encode by hash": (functools.partial(works.encodes, how="hash"), 1),
    "encode, base and all": (works.encodes_once, 1),
    "apply in place": (works.applies, 2),
    "decode to a new image": (works.decodes, 1),
    "identity": (works.identifies, 1),
    "memcmp": (works.memcmps, 1),
}


@pytest.mark.parametrize("what", CASES)
@pytest.mark.parametrize("size", ["1 MiB", "256 MiB"])
def test_speed(benchmark, request, size, what):
    """1% of the pages changed. `of_memcmp`: how many times as fast as libc compares equal images."""
    benchmark.group = f"delta.speed, {size}"
    timed = not request.config.getoption("benchmark_disable")
    size_bytes = int(size.split()[0]) << 20 if timed else 1 << 20
    make, operations = CASES[what]
    work, memcmp = make(size_bytes), works.memcmps(size_bytes)
    if timed:
        ours, peer = in_turns([work, memcmp], 15)
        seconds = ours / operations
        benchmark.extra_info.update(
            timing={"median": seconds, "spread": 0.0},
            GB_per_s=size_bytes / seconds / 1e9,
            of_memcmp=peer / seconds,
        )
    assert benchmark.pedantic(work, rounds=1)


@pytest.mark.parametrize("peer", ["dirty tracking", "compare all", "memcmp of all"])
def test_snapshot_of_256_mib_of_which_a_part_in_250_is_dirty(benchmark, request, peer):
    benchmark.group = "delta.snapshot, 256 MiB, 0.4% of the pages dirty"
    timed = not request.config.getoption("benchmark_disable")
    found = snapshots(256 << 20 if timed else 1 << 20)
    seconds, size = found[peer]
    benchmark.extra_info.update(
        timing={"median": seconds, "spread": 0.0}, times_as_fast=found["compare all"][0] / seconds, bytes=size
    )
    benchmark.pedantic(lambda: None, rounds=1)


@functools.cache
def snapshots(size):
    """Seconds and bytes for each way: in turns, with the same writes before each."""
    tracked, plain = works.snapshots(size, dirty=True), works.snapshots(size, dirty=False)
    memory = plain.deltas._memory
    comparing = DeltaEncoder(memory, follow=True)
    memcmp = works.memcmps(size)
    times = {"dirty tracking": [], "compare all": [], "memcmp of all": []}
    made = dict.fromkeys(times, b"")
    for _ in range(9):
        for who, prepare, work in (
            ("dirty tracking", tracked.prepare, tracked),
            ("compare all", plain.prepare, lambda: comparing.encode(memory, how="compare")),
            ("memcmp of all", lambda: None, memcmp),
        ):
            prepare()
            started = cpu_s()
            result = work()
            times[who].append(cpu_s() - started)
            made[who] = result if isinstance(result, bytes) else b""
    return {who: (statistics.median(times[who]), len(made[who])) for who in times}


def test_a_decoder_follows_what_was_measured(pair_of):
    """The deltas of the table are applied in place, too."""
    base, new = pair_of("python objects")
    room = bytearray(base)
    assert DeltaDecoder(room).apply(encode(base, new)) == len(new)
    assert room == new
    assert list(itertools.islice(peers(), 1))
