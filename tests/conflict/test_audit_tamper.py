"""Samples of what audit_tamper.py tries in full, on a log of 100,000 events."""

from __future__ import annotations

import random
from functools import cache

import pytest
from audit_tamper import (
    KEY,
    make_log,
    unnoticed_changes,
    unnoticed_cuts,
    unnoticed_deletions,
    unnoticed_swaps,
    whole,
)

from nova.conflict.audit import verify
from nova.errors import CorruptionError
from nova.store import ReplicatedStore, verify_audit
from nova.store.core import StoreConfig

EVENTS = 100_000


@cache
def log():
    return make_log(EVENTS)


def test_every_byte_of_the_files_is_watched(tmp_path):
    """Of the records in the files of a store; sampled here, all of them take half a minute."""
    with ReplicatedStore(tmp_path / "d", node="a") as store:
        for n in range(12):
            store.put(f"k{n}", n)
            store.point(f"k{n}")
        end = store.audit.records.size_bytes
    assert verify_audit(tmp_path / "d")["ok"]
    (segment,) = (tmp_path / "d" / "audit").glob("*.log")
    before = segment.read_bytes()[:end]
    for at in [*range(0, end, 23), end - 1]:
        with segment.open("r+b") as file:
            file.write(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        assert not verify_audit(tmp_path / "d")["ok"], at
        with segment.open("r+b") as file:
            file.write(before)
    assert verify_audit(tmp_path / "d")["ok"]


def test_a_store_with_an_audit_key_is_verified_with_that_key_only(tmp_path):
    with ReplicatedStore(tmp_path / "d", node="a", config=StoreConfig(audit_key=KEY)) as store:
        store.put("x", 1)
        store.point("x")
    assert verify_audit(tmp_path / "d", key=KEY)["ok"]
    assert "the key is another" in verify_audit(tmp_path / "d")["error"]
    with pytest.raises(CorruptionError, match="the key is another"):
        ReplicatedStore(tmp_path / "d", node="a")
    with ReplicatedStore(tmp_path / "d", node="a", config=StoreConfig(audit_key=KEY)) as store:
        assert store.audit.verify().ok


def places(count):
    chance = random.Random(5)
    return sorted({0, 1, EVENTS // 2, EVENTS - 2, EVENTS - 1, *(chance.randrange(EVENTS) for _ in range(count))})


def test_the_log_itself_is_whole():
    assert whole(log().records, log().head)


def test_every_byte_of_sampled_records_is_watched():
    assert list(unnoticed_changes(log(), places(150), (1, 0x80))) == []
    assert list(unnoticed_changes(log(), [EVENTS // 3], range(1, 256))) == []


def test_every_deletion_is_noticed():
    assert list(unnoticed_deletions(log(), range(EVENTS))) == []


def test_every_exchange_of_neighbours_and_many_others_are_noticed():
    chance = random.Random(6)
    far = [
        pair
        for pair in ((chance.randrange(EVENTS), chance.randrange(EVENTS)) for _ in range(20_000))
        if len({*pair}) > 1
    ]
    assert list(unnoticed_swaps(log(), [*((n, n + 1) for n in range(EVENTS - 1)), *far])) == []


def test_every_cut_tail_is_noticed():
    assert list(unnoticed_cuts(log(), range(1, EVENTS))) == []


@pytest.mark.parametrize("place", places(5))
def test_on_the_whole_log_it_comes_to_the_same(place):
    records, head = log().records, log().head
    changed = bytearray(records[place])
    changed[random.Random(place).randrange(len(changed))] ^= 4
    other = (place * 7 + 1) % EVENTS
    low, high = sorted((place, other))
    for tampered in (
        [*records[:place], bytes(changed), *records[place + 1 :]],
        [*records[:place], *records[place + 1 :]],
        [*records[:low], records[high], *records[low + 1 : high], records[low], *records[high + 1 :]],
        records[:place],
    ):
        verdict = verify(tampered, head, key=KEY)
        assert not verdict.ok
        assert verdict.events <= max(place, low)
