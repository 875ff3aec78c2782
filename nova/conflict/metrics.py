"""What conflicts look like on a dashboard: every metric of the conflict parts, declared in one table, and who feeds it.

Names and units are a contract with dashboards and alerts: a name is here before the part that feeds it is, so that a
panel shows zero and not nothing. Times are in milliseconds, given by the caller; nothing here reads a clock by itself.

A part that knows of an event calls the method named for it; nobody else touches a family. Label values that strangers
could make up are bounded: types, strategies and results come from closed sets or fold into "other" beyond a limit, and
of resources only the few with the most conflicts are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from nova._native.conflict import Conflict
from nova.conflict.detect import ConflictType, Severity
from nova.metrics import Counter, Distribution, Gauge, Histogram, Registry

LATENCY_BUCKETS_MS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 50.0, 250.0, 1000.0, 10_000.0,
)  # fmt: skip
"""Upper bounds in milliseconds, 1 us to 10 s: a detection takes a microsecond, a vote or a restore seconds."""
RESOURCES_SHOWN: Final = 20
CHILDREN_MAX: Final = 200
WINDOW_S: Final = 60
"""What a rate looks back on."""


class Metric(NamedTuple):
    """One row: `kind` is counter, gauge, histogram, or told (a gauge whose number is worked out when it is read)."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = (
    Metric("dwcp_conflicts_detected_total", "counter", "Conflicts found, by type and severity", ("type", "severity")),
    Metric(
        "dwcp_conflict_detection_latency_ms", "histogram", "Milliseconds that looking for conflicts in a batch took"
    ),
    Metric("dwcp_conflict_detection_rate", "told", f"Conflicts found per second, over the last {WINDOW_S} s"),
    Metric(
        "dwcp_conflict_resolutions_attempted_total",
        "counter",
        "Resolutions, by strategy and result: ok, pending (somebody has to look) or failed",
        ("strategy", "result"),
    ),
    Metric(
        "dwcp_conflict_resolution_latency_ms",
        "histogram",
        "Milliseconds that a resolution took, by strategy",
        ("strategy",),
    ),
    Metric(
        "dwcp_conflict_resolution_success_rate",
        "told",
        "Share of resolutions since the start that settled their conflict, 0 to 1; 1 before the first one",
    ),
    Metric(
        "dwcp_manual_intervention_rate", "told", "Share of resolutions since the start that wait for somebody, 0 to 1"
    ),
    Metric("dwcp_pending_conflicts_count", "told", "Conflicts that wait for somebody"),
    Metric("dwcp_average_resolution_time_ms", "told", "Mean of the milliseconds that resolutions took since the start"),
    Metric(
        "dwcp_p99_resolution_time_ms", "told", "99th percentile of the milliseconds that resolutions took, within 1%"
    ),
    Metric(
        "dwcp_resource_conflict_count",
        "told",
        f"Conflicts among those held in memory, of the {RESOURCES_SHOWN} resources that have the most",
        ("resource_id",),
    ),
    Metric("dwcp_strategy_usage_total", "counter", "How often a strategy was asked", ("strategy",)),
    Metric("dwcp_data_loss_events_total", "counter", "Written values that a resolution did not keep; all are recorded"),
    Metric("dwcp_invariant_violations_total", "counter", "Declared invariants that a version in a conflict breaks"),
    Metric(
        "dwcp_recovery_attempts_total", "counter", "Recoveries, by type and result: ok or failed", ("type", "result")
    ),
    Metric("dwcp_split_brain_detections_total", "counter", "Conflicts of one VM that runs in two places"),
    Metric("dwcp_recovery_latency_ms", "histogram", "Milliseconds that a recovery took, by type", ("type",)),
    Metric(
        "dwcp_crdt_merges_total",
        "counter",
        "Keys whose replicated state took in that of a peer, by type and result: clean or conflict",
        ("crdt_type", "result"),
    ),
    Metric(
        "dwcp_crdt_conflicts_total",
        "counter",
        "Conflicts in replicated values, by type of the value and of the conflict",
        ("crdt_type", "conflict_type"),
    ),
    Metric(
        "dwcp_conflict_events_logged_total", "counter", "Events written to the audit chain, by type", ("event_type",)
    ),
    Metric(
        "dwcp_conflict_patterns_total", "counter", "Recurring conflicts that were noticed, by pattern", ("pattern",)
    ),
    Metric(
        "dwcp_policy_applications_total",
        "counter",
        "Conflicts that a policy was applied to, by policy and result",
        ("policy_name", "result"),
    ),
    Metric("dwcp_policy_evaluation_latency_ms", "histogram", "Milliseconds that choosing the rule of a policy took"),
)


class Hooks(NamedTuple):
    """What only the owner of the conflicts can tell.

    now_ms     time in milliseconds, for rates; it may be a simulated one
    pending    how many conflicts wait for somebody
    resources  resource -> how many conflicts of it are held, in any order
    """

    now_ms: Callable[[], int]
    pending: Callable[[], int] = int
    resources: Callable[[], Mapping[str, int]] = dict


class ConflictMetrics:
    """The families of METRICS in a registry, and a method for each event that moves them."""

    def __init__(self, registry: Registry, hooks: Hooks) -> None:
        self._hooks = hooks
        self._times = Distribution(LATENCY_BUCKETS_MS)
        self._found_in: dict[int, int] = {}  # second -> conflicts found in it, for the last WINDOW_S
        self._attempts = self._settled = self._waiting = 0
        told: dict[str, Callable[[], Any]] = {
            "dwcp_conflict_detection_rate": self._rate,
            "dwcp_conflict_resolution_success_rate": lambda: self._settled / self._attempts if self._attempts else 1.0,
            "dwcp_manual_intervention_rate": lambda: self._waiting / self._attempts if self._attempts else 0.0,
            "dwcp_pending_conflicts_count": hooks.pending,
            "dwcp_average_resolution_time_ms": lambda: (
                self._times.sum / self._times.count if self._times.count else 0.0
            ),
            "dwcp_p99_resolution_time_ms": lambda: self._times.quantile(0.99) if self._times.count else 0.0,
            "dwcp_resource_conflict_count": self._resources,
        }
        made: dict[str, Counter | Gauge | Histogram] = {}
        for name, kind, help, labels in METRICS:
            if kind == "told":
                which = "table" if labels else "function"
                made[name] = registry.gauge(name, help, labels, **{which: told[name]})  # type: ignore[arg-type]
            elif kind == "histogram":
                made[name] = registry.histogram(
                    name, help, labels, buckets=LATENCY_BUCKETS_MS, children_max=CHILDREN_MAX
                )
            else:
                made[name] = registry.counter(name, help, labels, children_max=CHILDREN_MAX)
        self._made: Any = made

    # -- events that a store sees --

    def searched(self, took_ms: float) -> None:
        """A batch was searched for conflicts."""
        self._made["dwcp_conflict_detection_latency_ms"].observe(took_ms)

    def detected(self, conflict: Conflict) -> None:
        """A conflict was found. A contention of critical severity is one VM that runs in two places."""
        made = self._made
        severity = conflict.severity.label
        for kind in conflict.types:
            made["dwcp_conflicts_detected_total"].labels(str(kind), severity).inc()
            made["dwcp_crdt_conflicts_total"].labels(conflict.kind, str(kind)).inc()
        if conflict.broken:
            made["dwcp_invariant_violations_total"].inc(len(conflict.broken))
        if conflict.severity is Severity.CRITICAL and ConflictType.RESOURCE_CONTENTION in conflict.types:
            made["dwcp_split_brain_detections_total"].inc()
        second = self._hooks.now_ms() // 1000
        found = self._found_in
        found[second] = found.get(second, 0) + 1
        if len(found) > 2 * WINDOW_S:
            self._found_in = {at: count for at, count in found.items() if at > second - WINDOW_S}

    def resolved(self, strategy: str, result: str, took_ms: float | None = None, discarded: int = 0) -> None:
        """A strategy was asked about a conflict.

        result     ok, pending or failed
        took_ms    None: nothing was worked out, as where a person is waited for
        discarded  written values that its outcome does not hold
        """
        made = self._made
        made["dwcp_conflict_resolutions_attempted_total"].labels(strategy, result).inc()
        made["dwcp_strategy_usage_total"].labels(strategy).inc()
        self._attempts += 1
        self._settled += result == "ok"
        self._waiting += result == "pending"
        if discarded:
            made["dwcp_data_loss_events_total"].inc(discarded)
        if took_ms is not None:
            made["dwcp_conflict_resolution_latency_ms"].labels(strategy).observe(took_ms)
            self._times.observe(took_ms)

    def logged(self, event_type: str) -> None:
        """An event was written to the audit chain."""
        self._made["dwcp_conflict_events_logged_total"].labels(event_type).inc()

    def merged(self, crdt_type: str, result: str, count: int = 1) -> None:
        """Replicated values took in the state of a peer; result is clean or conflict."""
        self._made["dwcp_crdt_merges_total"].labels(crdt_type, result).inc(count)

    # -- events of other parts --

    def policy_applied(self, policy_name: str, result: str, took_ms: float) -> None:
        """A policy chose what becomes of a conflict: ok, fallback, escalated, pending or failed."""
        self._made["dwcp_policy_applications_total"].labels(policy_name, result).inc()
        self._made["dwcp_policy_evaluation_latency_ms"].observe(took_ms)

    def recovered(self, type: str, result: str, took_ms: float) -> None:
        """A checkpoint was restored, a partition healed, a split brain resolved: ok or failed."""
        self._made["dwcp_recovery_attempts_total"].labels(type, result).inc()
        self._made["dwcp_recovery_latency_ms"].labels(type).observe(took_ms)

    def pattern_noticed(self, pattern: str) -> None:
        """Conflicts were seen to recur."""
        self._made["dwcp_conflict_patterns_total"].labels(pattern).inc()

    # -- what is worked out --

    def _rate(self) -> float:
        since = self._hooks.now_ms() // 1000 - WINDOW_S
        return sum(count for second, count in self._found_in.items() if second > since) / WINDOW_S

    def _resources(self) -> dict[tuple[str, ...], float]:
        ranked: Iterable[tuple[str, int]] = sorted(
            self._hooks.resources().items(), key=lambda item: (-item[1], item[0])
        )
        return {(resource,): float(count) for resource, count in islice(ranked, RESOURCES_SHOWN)}
