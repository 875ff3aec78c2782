"""CRDTs beside plain dicts and, where installed, pycrdt and loro. Run: pytest bench/bench_crdt.py"""

from __future__ import annotations

from typing import Any

import pytest

from nova.cli.benchmarks import DictORSet
from nova.crdt import LWWMap, LWWRegister, MVRegister, ORSet, PNCounter
from nova.digest import SetDigest

SIZES = [1_000, 20_000]


PEERS = {"nova": ORSet, "dict": DictORSet}


def filled(kind: Any, actor: str, size: int) -> Any:
    out = kind(actor)
    for i in range(size):
        out.add(f"element-{i}")
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", list(PEERS))
def test_or_set_merge_of_concurrent_adds(benchmark: Any, size: int, peer: str) -> None:
    benchmark.group = f"crdt.or_set.merge, {size:,} concurrent adds a side"
    a, b = filled(PEERS[peer], "a", size), filled(PEERS[peer], "b", size)

    def setup() -> Any:
        return (a.fork("c"), b), {}

    benchmark.pedantic(lambda x, y: x.merge(y), setup=setup, rounds=5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", list(PEERS))
def test_merge_that_brings_nothing_new(benchmark: Any, size: int, peer: str) -> None:
    benchmark.group = f"crdt.or_set.merge that brings nothing new, {size:,} elements"
    a = filled(PEERS[peer], "a", size)
    b = a.fork("b")
    benchmark(a.merge, b)


@pytest.mark.parametrize("peer", ["nova", "dict", "pycrdt", "loro"])
def test_or_set_add(benchmark: Any, peer: str) -> None:
    benchmark.group = "crdt.or_set.add"
    if peer in PEERS:
        benchmark(PEERS[peer]("a").add, "element")
    elif peer == "pycrdt":
        pycrdt = pytest.importorskip("pycrdt", reason="peer pycrdt is not installed")
        doc = pycrdt.Doc()
        doc["m"] = peers_map = pycrdt.Map()
        benchmark(peers_map.__setitem__, "element", True)
    else:
        loro = pytest.importorskip("loro", reason="peer loro is not installed")
        benchmark(loro.LoroDoc().get_map("m").insert, "element", True)


@pytest.mark.benchmark(group="crdt.or_set")
def test_or_set_contains(benchmark: Any) -> None:
    assert benchmark(filled(ORSet, "a", 1000).__contains__, "element-7")


@pytest.mark.benchmark(group="crdt.delta")
@pytest.mark.parametrize("size", SIZES)
def test_or_set_delta_of_one(benchmark: Any, size: int) -> None:
    a = filled(ORSet, "a", size)
    b = a.fork("b")
    a.add("one more")
    assert benchmark(
        lambda: b.fork(None).apply_delta(a.delta_since(b.context)) if size < 2000 else a.delta_since(b.context)
    )


@pytest.mark.benchmark(group="crdt.bytes")
@pytest.mark.parametrize("size", SIZES)
def test_or_set_bytes_and_back(benchmark: Any, size: int) -> None:
    a = filled(ORSet, "a", size)
    assert len(benchmark(lambda: ORSet.from_bytes(a.to_bytes()))) == size


@pytest.mark.benchmark(group="crdt.small")
def test_counter_increment(benchmark: Any) -> None:
    benchmark(PNCounter("a").increment)


@pytest.mark.benchmark(group="crdt.small")
def test_registers_of_two_writers_merge(benchmark: Any) -> None:
    a, b = MVRegister("a"), MVRegister("b")
    a.set(1)
    b.set(2)
    assert len(benchmark(lambda: a.fork(None).merge(b)).value) == 2


@pytest.mark.benchmark(group="crdt.small")
def test_register_set(benchmark: Any) -> None:
    register, stamps = LWWRegister("a"), iter(range(1, 10**9))
    benchmark(lambda: register.set("value", next(stamps)))


@pytest.mark.benchmark(group="crdt.small")
def test_map_set(benchmark: Any) -> None:
    lww, stamps = LWWMap("a"), iter(range(1, 10**9))
    benchmark(lambda: lww.set("key", "value", next(stamps)))


@pytest.mark.benchmark(group="digest")
def test_digest_upkeep(benchmark: Any) -> None:
    benchmark(SetDigest().add, b"a row of forty bytes or so, give or take")
