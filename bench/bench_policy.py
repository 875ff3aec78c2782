"""Which strategy settles a conflict: a policy of ten rules, beside the same rules as a chain of `if`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nova.clock import VectorClock
from nova.conflict.detect import Conflict, ConflictDetector, Severity, Version
from nova.conflict.policy import PolicyBuilder, PolicyManager
from nova.conflict.policy import conditions as on
from nova.conflict.strategies import LastWriteWins

LOOP = 100
PATHS = [f"/area{i}/**" for i in range(7)]


def conflict_at(path: str) -> Conflict:
    rows = [Version(i, VectorClock({name: 1}), i << 16, name) for i, name in enumerate("ab", 1)]
    return ConflictDetector().examine("doc/1", "map", {path: rows})


def built() -> Any:
    builder = PolicyBuilder("ten").field("/vm/resources/*", "max").default("lww")
    builder.rule("worst", on.severity_at_least("critical"), use="manual")
    for i, path in enumerate(PATHS):
        builder.rule(f"area {i}", on.path_matches(path), use="multi_value")
    builder.rule("hard", on.complexity_over(0.7), on.kind_is("vm"), use="manual")
    return builder.rule("many", on.siblings_over(4), use="multi_value").build()


def by_hand(conflict: Conflict, path: str) -> str:
    if path.startswith("/vm/resources/"):
        return "max"
    if conflict.severity >= Severity.CRITICAL:
        return "manual"
    for i in range(7):
        if path.startswith(f"/area{i}/"):
            return "multi_value"
    if conflict.complexity > 0.7 and conflict.kind == "vm":
        return "manual"
    return "multi_value" if len(conflict.siblings.get(path, ())) > 4 else "lww"


@pytest.mark.parametrize(("path", "use"), [("/vm/resources/cpu", "max"), ("/area0/x", "multi_value"), ("/x", "lww")])
@pytest.mark.parametrize("peer", ["nova", "if chain"])
@pytest.mark.benchmark(group="policy.choose x100")
def test_choose_among_ten_rules(benchmark: Any, peer: str, path: str, use: str) -> None:
    conflict, policy = conflict_at(path), built()
    choose: Callable[[], str] = (
        (lambda: policy.choose(conflict, path).use) if peer == "nova" else (lambda: by_hand(conflict, path))
    )

    def loop() -> str:
        for _ in range(LOOP):
            found = choose()
        return found

    assert benchmark(loop) == use


@pytest.mark.parametrize("peer", ["policy", "the strategy alone"])
@pytest.mark.benchmark(group="policy.resolve x100")
def test_resolve_by_the_last_of_ten_rules(benchmark: Any, peer: str) -> None:
    conflict, manager, lww = conflict_at("/x"), PolicyManager([built()]), LastWriteWins()
    resolve = (lambda: manager.resolve(conflict, "ten")) if peer == "policy" else (lambda: lww.resolve(conflict))

    def loop() -> Any:
        for _ in range(LOOP):
            found = resolve()
        return found.settled["/x"]

    assert benchmark(loop) == 2
