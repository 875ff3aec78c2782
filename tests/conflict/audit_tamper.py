"""Every single-byte change, deletion, exchange and cut of a log of audit records, tried and found.

A change of one record is seen by looking at that record alone, after the mark of the record before it: `verify` looks
at nothing else. So each try verifies one or two records, a whole log can be tried in minutes, and some tries are done
on the whole log as well, to show that they come to the same.

    python tests/conflict/audit_tamper.py --events 100000            one changed bit of every byte: about a minute
    python tests/conflict/audit_tamper.py --events 100000 --values   all 255 other values of every byte: hours
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from nova.conflict.audit import AuditChain, ChainMark, decode_event, verify

KEY = b"kept elsewhere"


class Log(NamedTuple):
    """Records, and the mark before each of them and behind the last."""

    records: list[bytes]
    marks: list[ChainMark]

    @property
    def head(self) -> ChainMark:
        return self.marks[-1]


def make_log(count: int, seed: int = 1) -> Log:
    """A log as a node writes it: detections with their versions, resolutions, some of the others."""
    chance = random.Random(seed)
    chain = AuditChain(key=KEY)
    events = []
    for n in range(count):
        kind = chance.choice(("detect", "resolve", "detect", "resolve", "fail", "escalate", "rollback", "vote"))
        body = {"n": n, "paths": ["/cpu"] * chance.randrange(3), "value": "x" * chance.randrange(60)}
        events.append((kind, 1_700_000_000_000 + n, f"{chance.getrandbits(64):016x}", f"vm/{n % 997}", body))
    records = chain.append_many(events)
    return Log(records, [ChainMark(), *(ChainMark(n, record[4:36]) for n, record in enumerate(records, 1))])


def unnoticed_changes(log: Log, numbers: Iterable[int], masks: Sequence[int]) -> Iterator[str]:
    for n in numbers:
        record, anchor = bytearray(log.records[n]), log.marks[n]
        for at in range(len(record)):
            for mask in masks:
                record[at] ^= mask
                if verify([bytes(record)], anchor=anchor, key=KEY).ok:
                    yield f"record {n + 1}: byte {at} changed by {mask:#x}"
                record[at] ^= mask


def unnoticed_deletions(log: Log, numbers: Iterable[int]) -> Iterator[str]:
    for n in numbers:
        # The record behind it does not follow the one before; of the last one, the head tells.
        if verify(log.records[n + 1 : n + 2], log.head, anchor=log.marks[n], key=KEY).ok:
            yield f"record {n + 1} removed"


def unnoticed_swaps(log: Log, pairs: Iterable[tuple[int, int]]) -> Iterator[str]:
    for a, b in pairs:
        # At the place of the first of the two stands the other.
        if verify([log.records[max(a, b)]], anchor=log.marks[min(a, b)], key=KEY).ok:
            yield f"records {a + 1} and {b + 1} exchanged"


def unnoticed_cuts(log: Log, numbers: Iterable[int]) -> Iterator[str]:
    for n in numbers:
        if verify(log.records[n - 1 : n], log.head, anchor=log.marks[n - 1], key=KEY).ok:
            yield f"cut behind record {n}"


def whole(records: Sequence[bytes], head: ChainMark) -> bool:
    """What `nova audit verify` comes to."""
    return verify(records, head, key=KEY).ok


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--values", action="store_true", help="all values of every byte, not one bit of it")
    given = parser.parse_args()
    log, count = make_log(given.events), given.events
    chance = random.Random(2)
    assert whole(log.records, log.head)
    masks = range(1, 256) if given.values else (1,)
    far = [(a, b) for _ in range(count) if (a := chance.randrange(count)) != (b := chance.randrange(count))]
    pairs = [*((n, n + 1) for n in range(count - 1)), *far]
    size = sum(map(len, log.records))
    for name, tries, tried in (
        ("changes", size * len(masks), unnoticed_changes(log, range(count), masks)),
        ("deletions", count, unnoticed_deletions(log, range(count))),
        ("exchanges", len(pairs), unnoticed_swaps(log, pairs)),
        ("cuts", count - 1, unnoticed_cuts(log, range(1, count))),
    ):
        start = time.perf_counter()
        missed = list(tried)
        print(f"{tries:>12,} {name:<10} {len(missed)} unnoticed  {time.perf_counter() - start:.0f} s", flush=True)
        assert not missed, missed[:5]
    assert len({decode_event(record).previous for record in log.records}) == count, "no two places look alike"


if __name__ == "__main__":
    main()
