"""Random histories of writes, and every pair of their versions held against what was really seen.

usage: python tests/fuzz/conflicts.py [--pairs N] [--seed S]

Replicas write, read and gossip at random. Each version remembers the set of writes that its writer had seen, which is
what causality is about (Schwarz & Mattern 1994): two versions conflict exactly if neither's set holds the other's. The
sets know nothing of clocks, timestamps or our code. Of each pair it is checked that `detect` and `detect_many` say so
in both directions, that `paths` is empty exactly if the values are equal, that the last writer's resolution is the same
from both sides and loses no value in silence, and that batches say what single calls say.

Round number n of seed S depends on S and n alone. Exit status 1 with the first pairs that fail.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from random import Random
from typing import Any

from nova.clock import VectorClock
from nova.conflict.batch import THEIRS, UNDECIDED, VersionBatch, settle_many
from nova.conflict.detect import ConflictDetector, Version
from nova.conflict.strategies import LastWriteWins

WRITES = 100  # of a history: some 10,000 pairs, each in both directions
VALUES: list[tuple[Any, str]] = [
    (1, "n1"), (1.0, "n1"), (True, "true"), (None, "null"), ("", "s"), ("x", "sx"), (0, "n0"), (-0.0, "n0"),
    ({"a": 1}, "{a:n1}"), ({"a": 1.0}, "{a:n1}"), ({"a": None}, "{a:null}"), ({}, "{}"), ([], "[]"),
    ([1, "x"], "[n1,sx]"),
    ({"a": {"b": [1]}, "c": 2}, "{a:{b:[n1]},c:n2}"), ({"c": 2, "a": {"b": [True]}}, "{a:{b:[true]},c:n2}"),
]  # fmt: skip
"""Values, and a name that equal ones share: written down by hand, so that no code of ours decides what is equal."""


class Written:
    """A version, the name of its value, and the writes that were seen when it was made, its own among them, as bits."""

    __slots__ = ("known", "name", "version")

    def __init__(self, version: Version, name: str, known: int) -> None:
        self.version, self.name, self.known = version, name, known


def history(random: Random) -> list[Written]:
    """Writes of a few replicas that hear of each other now and then. Wall clocks are wrong by a lot."""
    replicas = random.choice((2, 3, 5, 9))
    clocks = [VectorClock() for _ in range(replicas)]
    known = [0] * replicas
    gossip = random.choice((0.05, 0.3, 0.8))
    out: list[Written] = []
    while len(out) < WRITES:
        at = random.randrange(replicas)
        if random.random() < gossip:
            other = random.randrange(replicas)
            clocks[at] = clocks[at].merge(clocks[other])
            known[at] |= known[other]
            continue
        clocks[at] = clocks[at].increment(f"replica-{at}")
        known[at] |= 1 << len(out)
        value, name = random.choice(VALUES)
        value = copy.deepcopy(value)  # no two versions share an object, but for scalars
        # No two stamps of one writer are equal; those of different ones may be.
        stamp = random.randrange(1 << 20) << 16 | sum(1 for each in out if each.version.origin == f"replica-{at}")
        out.append(Written(Version(value, clocks[at], stamp, f"replica-{at}"), name, known[at]))
    return out


def check(one: Written, other: Written, detector: ConflictDetector, strategy: LastWriteWins) -> str:
    """What is wrong with what is said about a pair; empty if nothing."""
    unseen = one.known & ~other.known != 0 and other.known & ~one.known != 0
    a, b = one.version, other.version
    found, turned = detector.detect("r", a, b), detector.detect("r", b, a)
    if (found is not None) != unseen or (turned is not None) != unseen:
        return "a false negative" if unseen else "a false positive"
    if found is None or turned is None:
        return ""
    if bool(found.paths) != (one.name != other.name):
        return f"the values are {one.name} and {other.name}, the paths {found.paths}"
    mine, yours = strategy.resolve(found), strategy.resolve(turned)
    newer = one if (a.timestamp, a.origin) > (b.timestamp, b.origin) else other
    if mine.value is not newer.version.value or yours.value is not mine.value:
        return "the sides settle differently, or not for the last writer"
    gone = {id(each.value) for each in mine.discarded}
    for each in (one, other):
        if each.name != newer.name and id(each.version.value) not in gone:
            return f"a silent loss of {each.name}"
    if one.name == other.name and mine.discarded:
        return "a loss of what was not lost"
    if not (mine.clock.dominates(a.clock) and mine.clock.dominates(b.clock)) or mine.clock != yours.clock:
        return "the clock of the resolution does not cover both"
    return ""


def check_batch(pairs: list[tuple[Written, Written]], detector: ConflictDetector) -> str:
    """The same for all pairs at once: verdicts and winners."""
    orders = detector.detect_many([(one.version, other.version) for one, other in pairs])
    out = settle_many(
        VersionBatch.of(one.version for one, _ in pairs), VersionBatch.of(other.version for _, other in pairs)
    )
    if bytes(out.orders) != orders:
        return "detect_many and settle_many differ"
    for order, winner, (one, other) in zip(orders, out.winners.tolist(), pairs, strict=True):
        behind, ahead = other.known & ~one.known != 0, one.known & ~other.known != 0
        if order != behind + 2 * ahead:
            return f"a batch says {order} of a pair of which it is {behind + 2 * ahead}"
        a, b = one.version, other.version
        theirs = (b.timestamp, b.origin) > (a.timestamp, a.origin) if behind and ahead else behind
        if winner == UNDECIDED or (winner == THEIRS) != theirs:
            return "a batch keeps the wrong version"
    return ""


def run(pairs: int, seed: int, first: int = 0) -> Iterator[tuple[int, int, list[str]]]:
    """(pairs checked, of them concurrent, reports) of each round, until there were enough pairs."""
    detector, strategy = ConflictDetector(), LastWriteWins()
    number = first
    while pairs > 0:
        made = history(Random(seed * 1_000_000_007 + number))
        every = [(one, other) for at, one in enumerate(made) for other in made[:at]][:pairs]
        reports = []
        for one, other in every:
            if wrong := check(one, other, detector, strategy):
                reports.append(f"{wrong}\n  {one.version}\n  {other.version}")
        if wrong := check_batch(every, detector):
            reports.append(wrong)
        concurrent = sum(one.known & ~other.known != 0 and other.known & ~one.known != 0 for one, other in every)
        again = f"  again: python tests/fuzz/conflicts.py --seed {seed} --first {number} --pairs {len(every)}"
        yield len(every), concurrent, [f"{report}\n{again}" for report in reports]
        pairs -= len(every)
        number += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--show", type=int, default=10, help="reports to print")
    args = parser.parse_args()
    begun = time.monotonic()
    checked = concurrent = failures = 0
    for count, clashes, reports in run(args.pairs, args.seed, args.first):
        checked, concurrent = checked + count, concurrent + clashes
        for report in reports[: max(0, args.show - failures)]:
            print(report, flush=True)
        failures += len(reports)
    seconds = time.monotonic() - begun
    print(
        f"{checked:,} pairs of seed {args.seed}, {concurrent:,} of them concurrent: {failures} false positives, false "
        f"negatives or silent losses, {seconds:.0f} s"
    )
    return 1 if failures or not concurrent else 0


if __name__ == "__main__":
    sys.exit(main())
