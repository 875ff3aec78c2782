"""What recurs is found in bounded memory, and the counts are as good as the paper says."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.conflict.audit import AuditLog, Pattern, PatternDetector, SpaceSaving
from nova.conflict.audit.patterns import DAY_MS, HOUR_MS
from nova.errors import UsageError


@given(st.lists(st.integers(0, 12), max_size=300), st.integers(1, 9))
def test_counts_are_within_their_errors_and_no_frequent_item_is_missed(stream, capacity):
    counted, true = SpaceSaving[int](capacity), Counter(stream)
    for item in stream:
        counted.add(item)
    assert counted.total == len(stream)
    assert len(counted) <= capacity
    assert counted.error_max <= len(stream) / capacity
    for item in range(13):
        found = counted.of(item)
        assert found.least <= true[item] <= found.count
        assert found.error <= counted.error_max
    held = {found.item for found in counted}
    assert {item for item, count in true.items() if count > len(stream) / capacity} <= held
    assert sum(found.count for found in counted) == len(stream)
    ranks = [found.count for found in counted.top(capacity)]
    assert ranks == sorted(ranks, reverse=True)


def test_few_counters_are_exact_for_few_items():
    counted = SpaceSaving[str](3)
    for item in "abacab":
        counted.add(item)
    assert [(found.item, found.count, found.error) for found in counted.top(9)] == [
        ("a", 3, 0),
        ("b", 2, 0),
        ("c", 1, 0),
    ]
    assert counted.of("z").count == 1, "one that has no counter may have come as often as the least"
    with pytest.raises(UsageError, match="at least 1"):
        SpaceSaving(0)


def test_the_heavy_ones_of_a_skewed_stream_are_found_in_the_memory_of_few():
    chance = random.Random(3)
    stream = [f"hot{n % 5}" if chance.random() < 0.4 else f"cold{chance.randrange(100_000)}" for n in range(50_000)]
    counted = SpaceSaving[str](64)
    for item in stream:
        counted.add(item)
    assert {found.item for found in counted.top(5)} == {f"hot{n}" for n in range(5)}
    assert len(counted) == 64


def conflict(paths=("/cpu",), origins=("eu", "us"), kind="vm"):
    return {"kind": kind, "paths": list(paths), "versions": [{"origin": origin} for origin in origins]}


def test_what_recurs_is_told_once_by_resource_path_and_pair_of_writers():
    detector = PatternDetector(threshold=3)
    told = []
    for n in range(10):
        told += detector.observe(n * HOUR_MS, "vm/1", conflict(origins=("us", "eu", "us")))
    assert told == [
        Pattern("resource", "vm/1", 3, 0), Pattern("path", "vm:/cpu", 3, 0), Pattern("writers", "eu & us", 3, 0)
    ]  # fmt: skip
    assert {(p.kind, p.subject, p.count) for p in detector.patterns()} == {
        ("resource", "vm/1", 10), ("path", "vm:/cpu", 10), ("writers", "eu & us", 10)
    }  # fmt: skip
    assert detector.observe(0, "vm/2", conflict(paths=("/x",), origins=("a",))) == []


def test_what_stopped_recurring_is_forgotten_after_two_windows_and_told_again():
    detector = PatternDetector(threshold=2, window_ms=1000)
    assert not detector.observe(1500, "vm/1", {})
    assert Pattern("resource", "vm/1", 2, 0) in detector.observe(2500, "vm/1", {}), "the windows are two"

    def resources():
        return [pattern for pattern in detector.patterns() if pattern.kind == "resource"]

    detector.observe(3500, "vm/2", {})
    assert resources() == [], "one is left in the older window"
    detector.observe(4500, "vm/1", {})
    assert Pattern("resource", "vm/1", 2, 0) in detector.observe(4600, "vm/1", {})
    detector.observe(99_000, "vm/3", {})
    assert resources() == []
    assert [spot.subject for spot in detector.hotspots()] == ["vm/3"]


def test_a_time_of_day_is_a_pattern_where_it_stands_out_and_not_where_all_are_alike():
    even, nightly = PatternDetector(threshold=5), PatternDetector(threshold=5)
    told = []
    for day in range(30):
        for hour in range(24):
            even.observe(day * DAY_MS + hour * HOUR_MS, f"r{day}{hour}", {})
        told += nightly.observe(day * DAY_MS + 2 * HOUR_MS, f"n{day}", {})
        nightly.observe(day * DAY_MS + day % 24 * HOUR_MS, f"m{day}", {})
    assert not [pattern for pattern in even.patterns() if pattern.kind == "hour"]
    hours = [pattern for pattern in nightly.patterns() if pattern.kind == "hour"]
    assert [pattern.subject for pattern in hours] == ["2"]
    assert ("hour", "2") in {(pattern.kind, pattern.subject) for pattern in told}


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 50)), max_size=300))
def test_a_pattern_is_never_told_of_what_came_less_often(events):
    detector = PatternDetector(threshold=4, window_ms=1000, capacity=3)
    seen = Counter()
    for at, n in events:
        seen[f"r{n}"] += 1
        for pattern in detector.observe(at, f"r{n}", {}):
            if pattern.kind == "resource":
                assert seen[pattern.subject] >= 4


@pytest.mark.parametrize("body", [{"paths": 5, "versions": "x"}, {"versions": [1, None]}, {"paths": [1] * 100}])
def test_any_body_can_be_watched(body):
    detector = PatternDetector()
    detector.observe(-5, "r", body)
    assert detector.hotspots()[0].subject == "r"


def test_the_log_watches_detections_and_remembers_them_over_a_restart():
    found = []
    log = AuditLog(found=found.append)
    for n in range(6):
        log.append("detect", n, f"c{n}", "vm/1", conflict())
        log.append("resolve", n, f"c{n}", "vm/2", {})
    assert {(pattern.kind, pattern.subject) for pattern in found} == {
        ("resource", "vm/1"), ("path", "vm:/cpu"), ("writers", "eu & us"), ("hour", "0")
    }  # fmt: skip
    log.flush()
    again = AuditLog(log.records, log.index)
    assert again.statistics().patterns == log.statistics().patterns
    assert again.statistics().hotspots == [Pattern("resource", "vm/1", 6, 0)]
    with pytest.raises(UsageError, match="threshold 1"):
        PatternDetector(threshold=1)
