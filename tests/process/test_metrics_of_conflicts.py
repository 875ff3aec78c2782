"""A running node tells every metric of conflicts, and those change that partitions, writes and merges should change."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from real_nodes import converge, eventually, meet

from nova.conflict.metrics import METRICS

pytestmark = pytest.mark.process


def scrape(node):
    """name -> sum over its labels, and the names of all families."""
    status, body = node.ask("GET", "/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(body.decode()))
    told = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    sums = {}
    for family in families:
        for sample in family.samples:
            if "le" not in sample.labels:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return told, sums


def test_a_running_node_tells_all_metrics_and_they_follow_what_happens(nodes):
    a, b = nodes.start("a", "b")
    told, before = scrape(a)
    assert {metric.name for metric in METRICS} <= told

    b.cut(a)
    eventually(lambda: b.status()["peers"] == 0, what="the cut links stay up")
    for at, node in enumerate((a, b)):
        for number in range(4):
            node.put(f"m/{number}", {"from": node.name})
        node.put("m/vm", {"power_state": "running", "host": f"h{at}"}, kind="vm", merge=True)
        nics = [{"mac": f"52:54:00:00:00:0{at}", "ip": "10.0.0.1"}]
        node.put(f"m/vm-{node.name}", {"power_state": "stopped", "networks": nics}, kind="vm", merge=True)
    for node in (a, b):
        node.heal()
    converge(a, b)
    meet(a, b)

    _, after = scrape(a)
    moved = {name for name in after if after[name] != before.get(name, 0.0)}
    assert {
        "dwcp_conflicts_detected_total",
        "dwcp_conflict_detection_latency_ms_count",
        "dwcp_conflict_detection_rate",
        "dwcp_conflict_resolutions_attempted_total",
        "dwcp_conflict_resolution_latency_ms_count",
        "dwcp_conflict_resolution_success_rate",
        "dwcp_manual_intervention_rate",
        "dwcp_pending_conflicts_count",
        "dwcp_average_resolution_time_ms",
        "dwcp_p99_resolution_time_ms",
        "dwcp_resource_conflict_count",
        "dwcp_strategy_usage_total",
        "dwcp_data_loss_events_total",
        "dwcp_split_brain_detections_total",
        "dwcp_crdt_conflicts_total",
        "dwcp_conflict_events_logged_total",
    } <= moved
    listed = len(a.conflicts())
    assert after["dwcp_conflict_resolutions_attempted_total"] == listed
    assert after["dwcp_resource_conflict_count"] == listed
    assert after["dwcp_conflict_events_logged_total"] == 2 * listed
