"""The metrics of conflicts: all the names of the contract, and each moves when its event comes."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nova.clock import VectorClock
from nova.conflict.detect import ConflictDetector, ConflictType, Contention, Severity, Version, at_most
from nova.conflict.metrics import METRICS, RESOURCES_SHOWN, WINDOW_S, ConflictMetrics, Hooks
from nova.metrics import Registry

NAMES = {
    "dwcp_conflicts_detected_total": ("severity", "type"),
    "dwcp_conflict_detection_latency_ms": (),
    "dwcp_conflict_detection_rate": (),
    "dwcp_conflict_resolutions_attempted_total": ("result", "strategy"),
    "dwcp_conflict_resolution_latency_ms": ("strategy",),
    "dwcp_conflict_resolution_success_rate": (),
    "dwcp_manual_intervention_rate": (),
    "dwcp_pending_conflicts_count": (),
    "dwcp_average_resolution_time_ms": (),
    "dwcp_p99_resolution_time_ms": (),
    "dwcp_resource_conflict_count": ("resource_id",),
    "dwcp_strategy_usage_total": ("strategy",),
    "dwcp_data_loss_events_total": (),
    "dwcp_invariant_violations_total": (),
    "dwcp_recovery_attempts_total": ("result", "type"),
    "dwcp_split_brain_detections_total": (),
    "dwcp_recovery_latency_ms": ("type",),
    "dwcp_crdt_merges_total": ("crdt_type", "result"),
    "dwcp_crdt_conflicts_total": ("conflict_type", "crdt_type"),
    "dwcp_conflict_events_logged_total": ("event_type",),
    "dwcp_conflict_patterns_total": ("pattern",),
    "dwcp_policy_applications_total": ("policy_name", "result"),
    "dwcp_policy_evaluation_latency_ms": (),
}


class Page:
    """A registry, a clock that the test moves, and what a scrape says."""

    def __init__(self):
        self.now_ms, self.waiting, self.held = 1_000_000, 0, {}
        self.registry = Registry()
        self.metrics = ConflictMetrics(
            self.registry, Hooks(lambda: self.now_ms, lambda: self.waiting, lambda: self.held)
        )

    def read(self):
        """(name, labels...) -> number."""
        families = text_string_to_metric_families(self.registry.render().decode())
        return {
            (sample.name, *[sample.labels[name] for name in sorted(sample.labels)]): sample.value
            for family in families
            for sample in family.samples
            if "le" not in sample.labels
        }


@pytest.fixture
def page():
    return Page()


def conflict(value=2, **more):
    a, b = Version(1, VectorClock({"a": 1}), 1, "a"), Version(value, VectorClock({"b": 1}), 2, "b")
    return ConflictDetector().detect("r", a, b, **more)


def test_every_name_of_the_contract_is_there_with_its_labels_and_a_help_text(page):
    assert {metric.name: tuple(sorted(metric.labels)) for metric in METRICS} == NAMES
    text = page.registry.render().decode()
    for metric in METRICS:
        assert f"# HELP {metric.name} {metric.help}\n" in text
        assert len(metric.help) > 20
        if "_ms" in metric.name:
            assert metric.help.startswith(("Milliseconds", "Mean of the milliseconds", "99th percentile of the millis"))


EVENTS = {
    "dwcp_conflicts_detected_total": lambda m: m.detected(conflict()),
    "dwcp_conflict_detection_latency_ms": lambda m: m.searched(0.5),
    "dwcp_conflict_detection_rate": lambda m: m.detected(conflict()),
    "dwcp_conflict_resolutions_attempted_total": lambda m: m.resolved("lww", "ok", 0.2),
    "dwcp_conflict_resolution_latency_ms": lambda m: m.resolved("lww", "ok", 0.2),
    "dwcp_conflict_resolution_success_rate": lambda m: m.resolved("lww", "failed"),
    "dwcp_manual_intervention_rate": lambda m: m.resolved("manual", "pending"),
    "dwcp_average_resolution_time_ms": lambda m: m.resolved("lww", "ok", 0.2),
    "dwcp_p99_resolution_time_ms": lambda m: m.resolved("lww", "ok", 0.2),
    "dwcp_strategy_usage_total": lambda m: m.resolved("lww", "ok"),
    "dwcp_data_loss_events_total": lambda m: m.resolved("lww", "ok", 0.2, 1),
    "dwcp_invariant_violations_total": lambda m: m.detected(conflict(9, invariants=[at_most("", 5)])),
    "dwcp_recovery_attempts_total": lambda m: m.recovered("partition", "ok", 12.0),
    "dwcp_recovery_latency_ms": lambda m: m.recovered("partition", "ok", 12.0),
    "dwcp_split_brain_detections_total": lambda m: m.detected(
        conflict().replace(severity=Severity.CRITICAL, types=(ConflictType.RESOURCE_CONTENTION,))
    ),
    "dwcp_crdt_merges_total": lambda m: m.merged("map", "clean"),
    "dwcp_crdt_conflicts_total": lambda m: m.detected(conflict()),
    "dwcp_conflict_events_logged_total": lambda m: m.logged("detect"),
    "dwcp_conflict_patterns_total": lambda m: m.pattern_noticed("resource"),
    "dwcp_policy_applications_total": lambda m: m.policy_applied("production", "ok", 0.1),
    "dwcp_policy_evaluation_latency_ms": lambda m: m.policy_applied("production", "ok", 0.1),
}


def of(page, name):
    return {key: value for key, value in page.read().items() if key[0].startswith(name) and "bucket" not in key[0]}


@pytest.mark.parametrize("name", NAMES)
def test_each_metric_moves_when_its_event_comes(page, name):
    before = of(page, name)
    if name == "dwcp_pending_conflicts_count":
        page.waiting = 3
    elif name == "dwcp_resource_conflict_count":
        page.held = {"vm/1": 2}
    else:
        EVENTS[name](page.metrics)
    assert of(page, name) != before


def test_numbers_are_what_happened(page):
    found = conflict()
    page.metrics.detected(found)
    page.metrics.detected(found)
    for took in (1.0, 3.0):
        page.metrics.resolved("lww", "ok", took, 1)
    page.metrics.resolved("manual", "pending")
    page.metrics.resolved("semantic", "failed", 2.0)
    read = page.read()
    assert read["dwcp_conflicts_detected_total", "medium", "concurrent_update"] == 2
    assert read["dwcp_crdt_conflicts_total", "concurrent_update", "register"] == 2
    assert read["dwcp_conflict_resolution_success_rate",] == 0.5
    assert read["dwcp_manual_intervention_rate",] == 0.25
    assert read["dwcp_average_resolution_time_ms",] == 2.0
    assert read["dwcp_data_loss_events_total",] == 2
    assert read["dwcp_conflict_resolution_latency_ms_count", "lww"] == 2


def test_the_99th_percentile_is_within_1_percent(page):
    for took in range(1, 1001):
        page.metrics.resolved("lww", "ok", float(took))
    assert page.read()["dwcp_p99_resolution_time_ms",] == pytest.approx(990, rel=0.011)


def test_the_rate_looks_back_on_a_minute_and_holds_no_more(page):
    found = conflict()
    for _ in range(300):
        page.metrics.detected(found)
        page.now_ms += 1000
    page.now_ms -= 1000
    assert page.read()["dwcp_conflict_detection_rate",] == 1.0
    assert len(page.metrics._found_in) <= 2 * WINDOW_S
    page.now_ms += 1000 * WINDOW_S
    assert page.read()["dwcp_conflict_detection_rate",] == 0.0


def test_a_split_brain_is_a_contention_of_critical_severity(page):
    page.metrics.detected(ConflictDetector().examine("ip:1", "resource", {}, contentions=[Contention("ip:1", ("a",))]))
    assert page.read()["dwcp_split_brain_detections_total",] == 0
    clocks = VectorClock({"a": 1}), VectorClock({"b": 1})
    sides = [{"id": "v", "power_state": "running", "host": host} for host in ("h1", "h2")]
    versions = [Version(side, clock, 1, origin) for side, clock, origin in zip(sides, clocks, "ab", strict=True)]
    page.metrics.detected(ConflictDetector().detect("vm/v", *versions, kind="vm"))
    assert page.read()["dwcp_split_brain_detections_total",] == 1


def test_only_the_resources_with_the_most_conflicts_are_shown_and_others_make_room(page):
    page.held = {f"vm/{n}": n for n in range(1, 1000)}
    shown = [key[1] for key in of(page, "dwcp_resource_conflict_count")]
    assert shown == [f"vm/{n}" for n in range(999, 999 - RESOURCES_SHOWN, -1)]
    page.held = {"vm/new": 1}
    assert of(page, "dwcp_resource_conflict_count") == {("dwcp_resource_conflict_count", "vm/new"): 1.0}


def test_made_up_labels_do_not_eat_the_memory(page):
    for n in range(1000):
        page.metrics.resolved(f"strategy-{n}", "ok", 0.1)
    assert len(of(page, "dwcp_strategy_usage_total")) <= 201
    assert page.read()["dwcp_strategy_usage_total", "other"] == 800
