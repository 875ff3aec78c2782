"""Random pairs of concurrent operations, held to TP1: both orders of application must end in one value.

usage: python tests/fuzz/ot.py [--type text|json0|json1] [--pairs N] [--seed S] [--start NUMBER]

Pair number n of seed S depends on S and n alone; a failure prints the document, the operations and how to run it again,
and --start goes on where a run was stopped. The last lines say what the pairs were made of: how many met (one operation
had to be changed to pass the other), how many left an operation with less to do, conflicts, operations that do nothing,
and the kinds of changes. Exit status 1 if any pair diverges or raises.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

from nova.conflict.detect import MISSING
from nova.conflict.ot import json0, json1, text

LETTERS = "abcdé中\U0001f600"
KEYS = "abcd"


def a_text(random: Random, most: int = 8) -> str:
    return "".join(random.choices(LETTERS, k=int(random.random() * (most + 1))))


def a_value(random: Random, depth: int = 3) -> Any:
    kind = random.random()
    if depth and kind < 0.3:
        return [a_value(random, depth - 1) for _ in range(random.randrange(4))]
    if depth and kind < 0.6:
        return {key: a_value(random, depth - 1) for key in random.sample(KEYS, random.randrange(4))}
    return random.choice([a_text(random), a_text(random), random.randrange(100), random.randrange(100), True, None])


def a_document(random: Random) -> Any:
    """Mostly something with entries that two operations can meet in; one in ten is any value, be it one number."""
    kind = random.random()
    if kind < 0.1:
        return a_value(random)
    size = int(random.random() * 3) + 2
    if kind < 0.5:
        return [a_value(random, 2) for _ in range(size)]
    return {key: a_value(random, 2) for key in random.sample(KEYS, size)}


class Pair(NamedTuple):
    """What was tried: the document, the operations, each of them past the other, and for json1 the type of conflict."""

    doc: Any
    a: Any
    b: Any
    a_prime: Any
    b_prime: Any
    conflict: int = 0


def slots(value: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Every place in a document and what is there."""
    found: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    for path, each in found:
        if isinstance(each, dict):
            found += [((*path, key), child) for key, child in each.items()]
        elif isinstance(each, list):
            found += [((*path, index), child) for index, child in enumerate(each)]
    return found


# ------------------------------------------------------------------------------------------------ text


def text_op(random: Random, doc: str) -> list[Any]:
    op: list[Any] = []
    at, size, chance = 0, len(doc), random.random
    while True:
        kind = chance()
        if kind < 0.35:
            op.append(a_text(random, 4))
        elif at == size:
            break
        else:
            step = int(chance() * min(6, size - at)) + 1
            op.append(step if kind < 0.7 else {"d": step} if kind < 0.85 else {"d": doc[at : at + step]})
            at += step
        if kind > 0.97:
            break
    return op


def text_pair(random: Random) -> Pair:
    doc = a_text(random, 12)
    a, b = text_op(random, doc), text_op(random, doc)
    after_a, after_b = text.apply(doc, a), text.apply(doc, b)
    a_prime, b_prime = text.transform(a, b, "left"), text.transform(b, a, "right")
    if text.apply(after_b, a_prime) != text.apply(after_a, b_prime):
        raise Diverged(doc, a, b, text.apply(after_b, a_prime), text.apply(after_a, b_prime))
    return Pair(doc, a, b, a_prime, b_prime)


# ------------------------------------------------------------------------------------------------ json0


def json0_component(random: Random, doc: Any) -> dict[str, Any]:
    path, value = random.choice(slots(doc))
    where, kind = list(path), random.random()
    if path and kind < 0.3:
        parent = doc
        for step in path[:-1]:
            parent = parent[step]
        if isinstance(parent, list):
            if kind < 0.15:
                return {"p": where, "lm": random.randrange(len(parent))}
            return {"p": where, "ld": value, **({"li": a_value(random, 1)} if kind < 0.22 else {})}
        return {"p": where, "od": value, **({"oi": a_value(random, 1)} if kind < 0.15 else {})}
    if isinstance(value, list):
        return {"p": [*where, random.randrange(len(value) + 1)], "li": a_value(random, 1)}
    if isinstance(value, dict):
        key = random.choice(KEYS)
        old = {"od": value[key]} if key in value else {}
        return {"p": [*where, key], **old, "oi": a_value(random, 1)}
    if isinstance(value, str):
        at = random.randrange(len(value) + 1)
        gone = value[at : at + random.randint(1, 3)]
        kind = random.random()
        change = {"sd": gone} if gone and kind < 0.5 else {"si": a_text(random, 3) or "x"}
        if kind > 0.2:
            return {"p": [*where, at], **change}
        inner = {"p": at, **{key[1]: change[key] for key in change}}
        return {"p": where, "t": "text0", "o": [inner]}
    if isinstance(value, int) and not isinstance(value, bool):
        return {"p": where, "na": random.randint(-5, 5)}
    return {"p": where, "od": value, "oi": a_value(random, 1)} if not path else json0_component(random, doc)


def json0_op(random: Random, doc: Any) -> list[Any]:
    op: list[Any] = []
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        op = json0.compose(op, [json0_component(random, json0.apply(doc, op))])
    return op


def json0_pair(random: Random) -> Pair:
    doc = a_document(random)
    a, b = json0_op(random, doc), json0_op(random, doc)
    a_prime, b_prime = json0.transform(a, b, "left"), json0.transform(b, a, "right")
    one, two = json0.apply(json0.apply(doc, b), a_prime), json0.apply(json0.apply(doc, a), b_prime)
    if not same(one, two):
        raise Diverged(doc, a, b, one, two)
    return Pair(doc, a, b, a_prime, b_prime)


# ------------------------------------------------------------------------------------------------ json1


def json1_simple(random: Random, doc: Any) -> Any:
    """One change: a removal, a move, an insert, a replacement or an edit."""
    if doc is MISSING:
        return [{"i": a_value(random, 2)}]
    path, value = random.choice(slots(doc))
    kind = random.random()
    if kind < 0.2 and (path or kind < 0.01):
        return [*path, {"r": random.choice([True, value])}]
    if kind < 0.3 and (path or kind < 0.21):
        return [*path, {"r": True, "i": a_value(random, 1)}]
    if kind < 0.6 and path:
        rest = json1.apply(doc, [*path, {"r": True}])
        target = a_gap(random, rest)
        if target is not None:
            return json1.normalize([[*path, {"p": 0}], [*target, {"d": 0}]])
    if isinstance(value, str):
        return [*path, {"es": text.normalize(text_op(random, value)) or ["x"]}]
    if isinstance(value, int) and not isinstance(value, bool):
        return [*path, {"ena": random.randint(-5, 5)}]
    target = a_gap(random, doc)
    return None if target is None else [*target, {"i": a_value(random, 2)}]


def a_gap(random: Random, doc: Any) -> list[Any] | None:
    """A path at which something can be put."""
    containers = [(path, value) for path, value in slots(doc) if isinstance(value, (dict, list))]
    for path, value in random.sample(containers, len(containers)):
        if isinstance(value, list):
            return [*path, random.randrange(len(value) + 1)]
        free = [key for key in KEYS if key not in value]
        if free:
            return [*path, random.choice(free)]
    return None


def json1_op(random: Random, doc: Any) -> Any:
    op = None
    for _ in range(random.choice([1, 1, 2, 2, 3, 4])):
        more = json1_simple(random, doc)
        doc = json1.apply(doc, more)
        op = json1.compose(op, more)
    return op


def json1_pair(random: Random) -> Pair:
    doc = a_document(random)
    a, b = json1_op(random, doc), json1_op(random, doc)
    outcome = json1.try_transform(a, b, "left")
    a_prime = outcome["result"] if outcome["ok"] else json1.transform_no_conflict(a, b, "left")
    b_prime = json1.transform_no_conflict(b, a, "right")
    one, two = json1.apply(json1.apply(doc, b), a_prime), json1.apply(json1.apply(doc, a), b_prime)
    if not same(one, two):
        raise Diverged(doc, a, b, one, two)
    return Pair(doc, a, b, a_prime, b_prime, 0 if outcome["ok"] else outcome["conflict"]["type"])


# ------------------------------------------------------------------------------------------------ the runner

SLICE = 100_000


class Diverged(Exception):
    """document, a, b, the value after b then a, the value after a then b"""


def same(a: Any, b: Any) -> bool:
    """Equal and of the same JSON types: 1 is not True."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


PAIRS: dict[str, Callable[[Random], Pair]] = {"text": text_pair, "json0": json0_pair, "json1": json1_pair}

# ------------------------------------------------------------------------------------------------ what there was

JSON1_KINDS = {"r": "remove", "p": "move", "i": "insert", "es": "edit text", "ena": "add"}
CONFLICTS = {json1.REMOVED_UNDER: "removed under", json1.COLLISION: "collision", json1.BLACK_HOLE: "black hole"}


def changes(kind: str, op: Any) -> list[str]:
    """The kind of every change in an operation."""
    if kind == "json0":
        return ["+".join(key for key in component if key not in {"p", "o"}) for component in op]
    if kind == "text":
        return ["insert" if isinstance(c, str) else "delete" for c in op if not isinstance(c, int)]
    found: list[str] = []
    todo = [op or []]
    while todo:
        for item in todo.pop():
            if isinstance(item, list):
                todo.append(item)
            elif isinstance(item, dict):
                found += [JSON1_KINDS[key] for key in item if key != "d"]
    return found


def count(kind: str, pair: Pair, mix: Counter[str]) -> None:
    """Adds a pair to the mix: keys "pairs ...", "operations ..." and "changes ..."."""
    doc, a, b, a_prime, b_prime, conflict = pair
    of_a, of_b = changes(kind, a), changes(kind, b)
    mix["pairs"] += 1
    mix["pairs met"] += a_prime != a or b_prime != b
    mix["pairs with less to do"] += len(changes(kind, a_prime)) < len(of_a) or len(changes(kind, b_prime)) < len(of_b)
    mix["pairs in which a side does nothing"] += not (of_a and of_b)
    mix["pairs on one scalar"] += not isinstance(doc, (dict, list))
    if conflict:
        mix[f"pairs in conflict: {CONFLICTS[conflict]}"] += 1
    mix["operations"] += 2
    mix["operations that do nothing"] += (not of_a) + (not of_b)
    mix["changes"] += len(of_a) + len(of_b)
    for name in (*of_a, *of_b):
        mix[f"changes: {name}"] += 1


def described(mix: Counter[str]) -> list[str]:
    lines = []
    for group in ("pairs", "operations", "changes"):
        whole = mix[group] or 1
        parts = sorted(((n, name) for name, n in mix.items() if name.startswith(f"{group} ")), reverse=True)
        parts += sorted(((n, name) for name, n in mix.items() if name.startswith(f"{group}: ")), reverse=True)
        shares = ", ".join(f"{name[len(group) :].strip(': ')} {100 * n / whole:.2f}%" for n, name in parts)
        lines.append(f"  {mix[group]} {group}: {shares}")
    return lines


def run(kind: str, pairs: int, seed: int, start: int = 0, mix: Counter[str] | None = None) -> Iterator[str]:
    """Runs the pairs and yields a report for each that fails; those that do not are added to `mix`."""
    random = Random()
    for number in range(start, start + pairs):
        random.seed(seed * 1_000_000_007 + number)
        try:
            pair = PAIRS[kind](random)
        except Exception as error:
            again = f"python tests/fuzz/ot.py --type {kind} --seed {seed} --start {number} --pairs 1"
            yield f"{type(error).__name__}: {error}\n  again: {again}"
            continue
        if mix is not None:
            count(kind, pair, mix)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=PAIRS, default="text")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first pair")
    parser.add_argument("--show", type=int, default=10, help="reports to print")
    args = parser.parse_args()
    begun, failures = time.monotonic(), 0
    mix: Counter[str] = Counter()
    end = args.start + args.pairs
    for start in range(args.start, end, SLICE):
        for report in run(args.type, min(SLICE, end - start), args.seed, start, mix):
            failures += 1
            if failures <= args.show:
                print(report, flush=True)
        reached = min(start + SLICE, end)
        done, seconds = reached - args.start, time.monotonic() - begun
        found = f"{mix['pairs met']} of them met, {failures} failures, {seconds:.0f} s, {done / seconds:.0f} a second"
        print(f"{args.type}: {done} pairs of seed {args.seed}, {found}; next is --start {reached}", flush=True)
        if done == args.pairs or done % (10 * SLICE) == 0:
            print(*described(mix), sep="\n", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
