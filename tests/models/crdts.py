"""CRDTs too simple to be wrong: the value as a function of the set of operations that a replica knows.

An operation is (dot, what, arguments, dots known when it was made). Nothing is ever forgotten or merged in place.
"""

from __future__ import annotations

from typing import Any

Dot = tuple[str, int]
Op = tuple[Dot, str, tuple[Any, ...], frozenset[Dot]]


def shadowed(op: Op, ops: set[Op], by: Any) -> bool:
    """Did the writer of some other operation know `op` and, as `by` says, undo it?"""
    return any(op[0] in other[3] and by(other) for other in ops)


def g_counter(ops: set[Op]) -> int:
    return sum(args[0] for _, _, args, _ in ops)


def pn_counter(ops: set[Op]) -> int:
    return sum(args[0] if what == "increment" else -args[0] for _, what, args, _ in ops)


def g_set(ops: set[Op]) -> frozenset[Any]:
    return frozenset(args[0] for _, _, args, _ in ops)


def two_p_set(ops: set[Op]) -> frozenset[Any]:
    removed = {args[0] for _, what, args, _ in ops if what == "remove"}
    return frozenset(args[0] for _, what, args, _ in ops if what == "add" and args[0] not in removed)


def enable_wins_flag(ops: set[Op]) -> bool:
    return any(op[1] == "enable" and not shadowed(op, ops, lambda o: o[1] == "disable") for op in ops)


def bounded_counter(ops: set[Op]) -> int:
    """Never below 0 for any set of operations that holds the past of each of its own."""
    out = sum(args[0] * {"increment": 1, "decrement": -1, "transfer": 0}[what] for _, what, args, _ in ops)
    assert out >= 0
    return out


def or_set(ops: set[Op]) -> frozenset[Any]:
    adds = [op for op in ops if op[1] == "add"]
    return frozenset(op[2][0] for op in adds if not shadowed(op, ops, lambda o, op=op: o[1:3] == ("remove", op[2])))


def lww_register(ops: set[Op]) -> Any:
    return max(((args[1], dot[0], args[0]) for dot, _, args, _ in ops), default=(0, "", None))[2]


def mv_register(ops: set[Op]) -> list[Any]:
    return sorted({op[2][0] for op in ops if not shadowed(op, ops, lambda o: True)})


def lww_map(ops: set[Op]) -> dict[str, Any]:
    """Stamps rise along causality here, so a later write always outranks what its writer saw."""
    live = [op for op in ops if op[1] == "set" and not shadowed(op, ops, lambda o, op=op: o[2][0] == op[2][0])]
    out: dict[str, Any] = {}
    for op in sorted(live, key=lambda op: (op[2][2], op[0][0], op[2][1])):
        out[op[2][0]] = op[2][1]
    return out


def or_map(ops: set[Op]) -> dict[str, Any]:
    """Keys to observed-remove sets: ("add", key, element), ("remove", key, element), ("drop", key)."""
    out: dict[str, set[Any]] = {}
    for op in ops:
        if op[1] != "add":
            continue
        if not shadowed(
            op,
            ops,
            lambda o, op=op: (o[1] == "remove" and o[2] == op[2]) or (o[1] == "drop" and o[2][0] == op[2][0]),
        ):
            out.setdefault(op[2][0], set()).add(op[2][1])
    return {key: frozenset(value) for key, value in out.items()}
