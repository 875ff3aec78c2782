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


POLICY = """
name = "production"
default = "semantic"

[[rules]]
name = "maps"
when = { resource = "m/*" }
use = "lww"
"""
DECLARED = """
policy = "{policy}"

[[invariants]]
kind = "sum_le"
prefix = "m/"
path = "/cpu"
by = "/rack"
limit = 8
"""
MANY = 300


def test_every_metric_of_a_running_node_follows_what_happens(nodes):
    a, b = nodes.make("a", "b", limits={"history_bytes": 1 << 20})
    for node in (a, b):
        (node.folder / "policy.toml").write_text(POLICY)
        config = node.folder / "nova.toml"
        config.write_text(DECLARED.format(policy=node.folder / "policy.toml") + config.read_text())
        node.start()
    meet(a, b)
    a.stop()
    a.start()  # from what its disk holds: a recovery
    meet(a, b)
    told, before = scrape(a)
    assert {metric.name for metric in METRICS} <= told

    b.cut(a)
    eventually(lambda: b.status()["peers"] == 0, what="the cut links stay up")
    for at, node in enumerate((a, b)):
        for number in range(8):
            node.put(f"m/{number}", {"from": node.name})
        node.put("m/vm", {"power_state": "running", "host": f"h{at}"}, kind="vm", merge=True)
        node.put(f"m/full-{node.name}", {"cpu": 5, "rack": "r1"}, kind="map")
        nics = [{"mac": f"52:54:00:00:00:0{at}", "ip": "10.0.0.1"}]
        node.put(f"m/vm-{node.name}", {"power_state": "stopped", "networks": nics}, kind="vm", merge=True)
    for number in range(MANY):  # more than b's history holds: what a lacks comes as a state, and is merged
        b.put(f"bulk/{number % 20}", "x" * 6_000)
    for node in (a, b):
        node.heal()
    converge(a, b)
    meet(a, b)

    _, after = scrape(a)
    still = {metric.name for metric in METRICS if not _moved(metric, before, after)}
    assert still == {"dwcp_recovery_attempts_total", "dwcp_recovery_latency_ms"}
    for name in still:  # it recovered before the first scrape
        assert sum(value for sample, value in before.items() if sample.startswith(name)) > 0, name
    assert after["dwcp_split_brain_detections_total"] == before.get("dwcp_split_brain_detections_total", 0) + 1
    assert after["dwcp_invariant_violations_total"] == before.get("dwcp_invariant_violations_total", 0) + 1
    listed = len(a.conflicts())
    assert after["dwcp_conflict_resolutions_attempted_total"] == listed
    assert after["dwcp_conflict_events_logged_total"] == 2 * listed


def _moved(metric, before, after):
    names = [name for name in after if name == metric.name or name.startswith(metric.name + "_")]
    return any(after[name] != before.get(name, 0.0) for name in names)
