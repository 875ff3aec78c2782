"""The laws, for every CRDT: random replicas write and exchange states and deltas, and answer to a naive model."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import permutations, product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova.clock import HybridLogicalClock
from nova.crdt import (
    BoundedCounter,
    Crdt,
    EnableWinsFlag,
    GCounter,
    GSet,
    LWWMap,
    LWWRegister,
    MVRegister,
    ORMap,
    ORSet,
    PNCounter,
    TwoPSet,
)
from nova.errors import UnavailableError
from tests.models import crdts as model

NAMES = ("a", "b", "c")
KEYS = ("k", "l")


class Bench:
    """A replica, the operations that it knows, and how to make one more from a small number."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind, self.name = kind, name
        self.replica: Any = kind(actor=name)
        self.ops: set[model.Op] = set()
        self.hlc = HybridLogicalClock()

    def write(self, n: int) -> None:
        what, args, done = self._do(n)
        if done is not None and done is not False:
            known = frozenset(op[0] for op in self.ops)
            count = 1 + sum(1 for dot in known if dot[0] == self.name)
            self.ops.add(((self.name, count), what, args, known))

    def _do(self, n: int) -> tuple[str, tuple[Any, ...], Any]:
        r, kind = self.replica, self.kind
        if kind is GCounter:
            r.increment(1 + n)
            return "increment", (1 + n,), True
        if kind is PNCounter:
            what = "increment" if n % 2 else "decrement"
            getattr(r, what)(1 + n)
            return what, (1 + n,), True
        if kind is GSet:
            fresh = n not in r
            r.add(n)
            return "add", (n,), fresh
        if kind is BoundedCounter:
            if n < 4:
                r.increment(1 + n)
                return "increment", (1 + n,), True
            try:
                if n == 7:
                    r.transfer(NAMES[(NAMES.index(self.name) + 1) % 3], 2)
                    return "transfer", (2,), True
                r.decrement(n - 3)
            except UnavailableError:
                return "decrement", (0,), False
            return "decrement", (n - 3,), True
        if kind is EnableWinsFlag:
            if n % 2:
                r.enable()
                return "enable", (), True
            return "disable", (), r.disable()
        if kind is TwoPSet:
            element = n % 4
            if n < 4:
                fresh = element not in r
                return "add", (element,), r.add(element) and fresh
            return "remove", (element,), r.remove(element)
        if kind is ORSet:
            element = n % 3
            if n % 2:
                r.add(element)
                return "add", (element,), True
            return "remove", (element,), r.remove(element)
        if kind is MVRegister:
            r.set(n)
            return "set", (n,), True
        stamp = self.hlc.tick(n << 16)
        if kind is LWWRegister:
            assert r.set(n, stamp)
            return "set", (n, stamp), True
        key = KEYS[n // 2 % 2]
        if kind is LWWMap:
            if n % 4 == 0:
                return "remove", (key,), r.remove(key)
            assert r.set(key, n, stamp)
            return "set", (key, n, stamp), True
        element = n % 3
        if n == 7:
            return "drop", (key,), r.remove(key)
        if n % 2:
            r.at(key, ORSet).add(element)
            return "add", (key, element), True
        return "remove", (key, element), r.at(key, ORSet).remove(element)

    def learn(self, other: Bench, delta: bool) -> None:
        if delta:
            self.replica.apply_delta(other.replica.delta_since(self.replica.context))
        else:
            self.replica.merge(other.replica)
        self.ops |= other.ops
        self.hlc = HybridLogicalClock(last=max(self.hlc.last, other.hlc.last))


MODELS: dict[type, Any] = {
    GCounter: model.g_counter,
    PNCounter: model.pn_counter,
    GSet: model.g_set,
    ORSet: model.or_set,
    LWWRegister: model.lww_register,
    MVRegister: model.mv_register,
    LWWMap: model.lww_map,
    ORMap: model.or_map,
    TwoPSet: model.two_p_set,
    EnableWinsFlag: model.enable_wins_flag,
    BoundedCounter: model.bounded_counter,
}
every_type = pytest.mark.parametrize("kind", list(MODELS), ids=lambda kind: kind.__name__)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 2), st.integers(0, 7)),
        st.tuples(st.sampled_from(["merge", "delta"]), st.integers(0, 2), st.integers(0, 2)),
    ),
    max_size=24,
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def play(kind: type, steps: list[tuple[str, int, int]], check: bool = True) -> list[Bench]:
    benches = [Bench(kind, name) for name in NAMES]
    for what, i, n in steps:
        if what == "write":
            benches[i].write(n)
        else:
            benches[i].learn(benches[n], what == "delta")
        if check:
            assert benches[i].replica.value == MODELS[kind](benches[i].ops)
    return benches


def merged(*replicas: Any) -> Any:
    out = replicas[0].fork(None)
    for replica in replicas[1:]:
        out.merge(replica)
    return out


@every_type
@given(actions)
@quick
def test_every_step_agrees_with_the_model(kind, steps):
    play(kind, steps)


@every_type
@given(actions)
@quick
def test_merge_is_commutative_associative_idempotent_and_only_adds(kind, steps):
    a, b, c = (bench.replica for bench in play(kind, steps, check=False))
    assert merged(a, b) == merged(b, a)
    assert merged(merged(a, b), c) == merged(a, merged(b, c))
    assert merged(a, a) == a
    both = merged(a, b)
    assert merged(both, a) == both == merged(a, both)
    assert both.context.covers(a.context)
    assert both.context.covers(b.context)


@every_type
@given(actions)
@quick
def test_a_delta_does_what_the_state_does(kind, steps):
    a, b, _ = (bench.replica for bench in play(kind, steps, check=False))
    by_state, by_delta = merged(a, b), a.fork(None)
    delta = b.delta_since(a.context)
    by_delta.apply_delta(delta)
    assert by_delta == by_state
    by_delta.apply_delta(delta).apply_delta(b.delta_since())
    assert by_delta == by_state
    assert by_delta.digest() == by_state.digest()


@every_type
@given(actions)
@quick
def test_replicas_that_know_the_same_are_the_same_bytes_and_digest(kind, steps):
    benches = play(kind, steps, check=False)
    full = [merged(*order) for order in permutations([bench.replica for bench in benches])]
    assert len({replica.to_bytes() for replica in full}) == 1
    assert len({replica.digest() for replica in full}) == 1
    again = kind.from_bytes(full[0].to_bytes())
    assert again == full[0]
    assert again.value == full[0].value
    assert again.digest() == full[0].digest()
    assert again.to_bytes() == full[0].to_bytes()


@every_type
@given(actions)
@quick
def test_different_states_have_different_digests(kind, steps):
    a, b, c = (bench.replica for bench in play(kind, steps, check=False))
    for x, y in ((a, b), (b, c), (a, c)):
        assert (x.digest() == y.digest()) == (x.to_bytes() == y.to_bytes())


@every_type
@pytest.mark.parametrize("numbers", [(1, 3, 2, 7), (3, 6, 1, 4)], ids=str)
def test_all_interleavings_of_three_replicas_and_four_operations_converge(kind, numbers):
    """Every choice of writers, and of no exchange, a delta or a state after the first three writes: 2,187 histories."""
    for writers in product(range(3), repeat=4):
        for exchanges in product((None, 1, 2), repeat=3):
            steps: list[tuple[str, int, int]] = []
            for turn, (writer, n) in enumerate(zip(writers, numbers, strict=True)):
                steps.append(("write", writer, n))
                if turn < 3 and exchanges[turn] is not None:
                    steps.append(("delta" if exchanges[turn] == 1 else "merge", (writer + exchanges[turn]) % 3, writer))
            a, b, c = (bench.replica for bench in play(kind, steps, check=False))
            one, other = merged(a, b, c), merged(c, b, a)
            assert one.to_bytes() == other.to_bytes()
            assert one.digest() == other.digest()


@every_type
def test_every_type_fills_the_seam(kind):
    assert isinstance(kind(actor="a"), Crdt)


@every_type
def test_bytes_do_not_depend_on_the_process(kind):
    code = (
        "import sys; from tests.conformance.test_crdt_laws import *;"
        f"b = play({kind.__name__}, [('write', i % 3, i % 8) for i in range(9)], check=False);"
        "sys.stdout.write(merged(*(x.replica for x in b)).to_bytes().hex())"
    )
    here = eval_hex(kind)
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert there.stdout == here


def eval_hex(kind: type) -> str:
    benches = play(kind, [("write", i % 3, i % 8) for i in range(9)], check=False)
    return str(merged(*(bench.replica for bench in benches)).to_bytes().hex())
