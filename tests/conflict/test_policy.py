"""Policies: what decides, what is refused when one is built, and what happens where a strategy cannot decide."""

from __future__ import annotations

import contextlib
import threading
from itertools import permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict.detect import ConflictDetector, Contention, Severity, Version
from nova.conflict.metrics import ConflictMetrics, Hooks
from nova.conflict.policy import Facts, PolicyBuilder, PolicyError, PolicyManager, policy_from_toml
from nova.conflict.policy import conditions as on
from nova.conflict.policy.case import conflict_from_case
from nova.conflict.strategies import ConsensusVote, HighestPriority, ResolveContext, UndecidedError
from nova.errors import ConfigError, UnavailableError, UsageError
from nova.metrics import Registry
from tests.conflict.conflicts import at_paths, frozen, versions, whole


def builder() -> PolicyBuilder:
    return PolicyBuilder("production")


def resolve(policy, conflict, **more):
    return PolicyManager([policy]).resolve(conflict, policy.name, **more)


# ------------------------------------------------------------------------------------------------ what decides


def test_the_first_rule_that_holds_decides_then_the_default():
    policy = (
        builder()
        .rule("money", on.path_matches("/billing/*"), use="manual")
        .rule("hard", on.complexity_over(0.2), use="multi_value")
        .default("lww")
        .build()
    )
    hard = at_paths({"/a": [1, 2], "/b": [1, 2], "/billing/x": [1, 2]})
    assert {path: policy.choose(hard, path).use for path in hard.paths} == {
        "/a": "multi_value", "/b": "multi_value", "/billing/x": "manual",
    }  # fmt: skip
    assert policy.choose(at_paths({"/a": [1, 2]}), "/a").rule == "default"


def test_the_longest_pattern_decides_about_a_field_before_every_rule():
    policy = (
        builder()
        .field("/vm", "lww")
        .field("/vm/resources/*", "max")
        .field("vm.resources.cpu", "manual")
        .rule("all", use="multi_value")
        .build()
    )
    chosen = [
        policy.choose(whole(1, 2), path).use for path in ("/vm/name", "/vm/resources/mb", "/vm/resources/cpu", "/x")
    ]
    assert chosen == ["lww", "max", "manual", "multi_value"]


def test_parts_of_one_conflict_are_settled_by_different_strategies():
    policy = builder().field("/cpu", "max").field("/price", "manual").default("lww").build()
    found = resolve(policy, at_paths({"/cpu": [8, 2], "/name": ["x", "y"], "/price": [1, 2]}))
    assert found.settled == {"/cpu": 8, "/name": "y", "/price": 2}
    assert found.pending
    assert found.strategy == "lww+manual+max"


def test_a_field_inside_of_a_whole_value_has_its_own_strategy():
    policy = builder().field("networks[*].ip", "manual").field("cpu", "max").default("lww").build()
    base = {"cpu": 1, "networks": [{"id": "n", "ip": "10.0.0.1", "mtu": 1}]}
    one = {"cpu": 8, "networks": [{"id": "n", "ip": "10.0.0.2", "mtu": 1}]}
    other = {"cpu": 4, "networks": [{"id": "n", "ip": "10.0.0.3", "mtu": 2}]}
    found = resolve(policy, whole(one, other, base=base))
    assert found.value == {"cpu": 8, "networks": [{"id": "n", "ip": "10.0.0.1", "mtu": 2}]}
    assert found.pending
    assert [version.value for version in found.siblings["/networks/n/ip"]] == ["10.0.0.2", "10.0.0.3"]


def test_a_pattern_that_names_a_map_speaks_of_each_of_its_fields():
    policy = builder().field("labels", "lww").default("manual").build()
    found = resolve(policy, whole({"labels": {"a": 1, "x": 1}}, {"labels": {"a": 2}}, base={"labels": {"a": 0}}))
    assert found.value == {"labels": {"a": 2, "x": 1}}


def test_what_the_whole_and_a_field_dropped_is_told_once():
    policy = builder().field("labels", "lww").default("semantic").build()
    found = resolve(policy, whole({"cpu": 1, "labels": {"a": 1}}, {"cpu": 2, "labels": {"a": 2}}, base={"cpu": 0}))
    assert found.value == {"cpu": 2, "labels": {"a": 2}}
    told = [(lost.path, lost.value) for lost in found.discarded]
    assert ("/labels/a", 1) in told
    assert len(told) == len(set(told))


CONDITIONS = [
    (on.type_is("concurrent_update"), True),
    (on.type_is("invariant"), False),
    (on.severity_is("medium"), True),
    (on.severity_at_least("high"), False),
    (on.complexity_over(0.5), False),
    (on.complexity_at_most(0.5), True),
    (on.siblings_over(1), True),
    (on.siblings_over(2), False),
    (on.age_over(4_000), True),
    (on.age_over(6_000), False),
    (on.path_matches("tags.*"), False),
    (on.path_matches("/x"), True),
    (on.resource_matches("r"), True),
    (on.resource_matches("vm/**"), False),
    (on.kind_is("map"), True),
    (on.region_is("eu", "us"), True),
    (on.region_is("ap"), False),
    (on.writer_is("b"), True),
    (on.writer_is("q"), False),
    (on.tag_is("gold"), True),
    (on.tag_is("lead"), False),
    (on.contended(), False),
    (on.invariant_broken(), False),
    (on.auto_resolvable(), True),
    (on.auto_resolvable(False), False),
    (on.vm_running(), False),
    (on.value_is("/x", 2), True),
    (on.value_is("x", 3), False),
    (on.custom("two paths", lambda conflict: len(conflict.paths) == 1), True),
    (on.custom("raises", lambda conflict: 1 / 0), False),
    (on.always(), True),
]


@pytest.mark.parametrize(("condition", "holds"), CONDITIONS, ids=[condition.words for condition, _ in CONDITIONS])
def test_a_ready_made_condition_holds_where_it_says(condition, holds):
    conflict = at_paths({"/x": [1, 2]})
    facts = Facts(region="eu", tags=frozenset(("gold",)), now_ms=5_000)
    assert condition.holds(conflict, "/x", facts) is holds
    assert condition.holds(conflict, "", facts) is holds
    assert (not condition.failing(conflict, "", facts)) is holds
    if condition.atoms:
        assert (~condition).holds(conflict, "", facts) is not holds
    assert (condition | on.kind_is("map")).holds(conflict, "", facts)
    assert (condition & on.kind_is("vm")).holds(conflict, "", facts) is False


def test_a_running_vm_and_contention_are_seen():
    conflict = at_paths({"/power_state": ["running", "stopped"]}, kind="vm")
    assert on.vm_running().holds(conflict)
    claims = ConflictDetector().examine("ip:1", "resource", {}, contentions=[Contention("ip:1", ("a", "b"))])
    assert on.contended("ip").holds(claims)
    assert not on.contended("mac").holds(claims)
    found = resolve(builder().build(), claims)
    assert found.settled == {}
    assert found.pending


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (builder().fallback("lww", "semantic", "lww"), "go in a circle: lww -> semantic -> lww"),
        (builder().fallback("lww", "lww"), "go in a circle: lww -> lww"),
        (builder().rule("all", use="lww").rule("never", on.kind_is("vm"), use="lww"), "'never' can never fire"),
        (
            builder().rule("wide", on.complexity_over(0.3), use="lww").rule("in", on.complexity_over(0.5), use="lww"),
            "can never fire: 'wide' before it",
        ),
        (
            builder().rule("wide", on.path_matches("/a/**"), use="lww").rule("in", on.path_matches("/a/b"), use="lww"),
            "can never fire",
        ),
        (builder().rule("no", on.severity_is("low"), on.severity_at_least("high"), use="lww"), "severity cannot be"),
        (builder().rule("no", on.complexity_over(0.7), on.complexity_at_most(0.5), use="lww"), "complexity cannot be"),
        (builder().rule("no", on.complexity_over(1), use="lww"), "complexity cannot be"),
        (builder().rule("no", on.kind_is("map"), on.vm_running(), use="lww"), "kind cannot be"),
        (builder().default("nothing"), "strategy 'nothing' is unknown"),
        (builder().field("a[", "lww"), "cannot be read at"),
        (builder().escalate("e", action="shout"), "it is one of notify"),
        (builder().retry(-1), "retry count is -1"),
        (builder().retry(1, factor=0.5), "factor is 0.5"),
        (builder().timeout(-1), "timeout_ms is -1"),
        (builder().auto_limit(0, window_ms=1), "both are 1 or more"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_when_it_is_built(made, message):
    with pytest.raises(PolicyError, match=message.replace("[", r"\[")):
        made.build()


def test_rules_that_overlap_but_can_fire_are_taken():
    builder().rule("a", on.complexity_over(0.5), use="lww").rule("b", on.complexity_over(0.3), use="lww").rule(
        "c", on.path_matches("/a/*"), use="lww"
    ).rule("d", on.path_matches("/a/**"), use="lww").build()


# ------------------------------------------------------------------------------------------------ where one cannot


class Raises:
    name = "raises"

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def resolve(self, conflict, context=None):
        self.calls += 1
        error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        if isinstance(error, Exception):
            raise error
        return error


class Time:
    def __init__(self):
        self.ns, self.slept = 0, []

    def now_ns(self):
        return self.ns

    def sleep_ns(self, ns):
        self.slept.append(ns / 1e6)
        self.ns += ns


def test_a_user_strategy_that_raises_leaves_no_half_result():
    good = resolve(builder().default("lww").build(), at_paths({"/x": [7, 7]}))
    forgetful = good.replace(clock=VectorClock({"a": 1}))
    for wrong in (ValueError("no"), "no resolution", resolve(builder().build(), whole(7, 8)), forgetful):
        policy = builder().strategy("mine", Raises(wrong)).default("mine").fallback("mine", "lww").build()
        conflict = at_paths({"/x": [1, 2]})
        found = resolve(policy, conflict)
        assert found.settled == {"/x": 2}
        assert found.via == ("mine", "lww")
        assert any("mine failed" in line for line in found.explanation)


def test_what_was_unavailable_is_tried_again_with_growing_waits_then_the_fallback_decides():
    time, mine = Time(), Raises(UnavailableError("later"))
    policy = (
        builder()
        .strategy("mine", mine)
        .default("mine")
        .fallback("mine", "lww")
        .retry(4, backoff_ms=10, backoff_ms_max=50)
    ).build()
    found = PolicyManager([policy], timer=time).resolve(whole(1, 2))
    assert found.via == ("mine", "lww")
    assert (mine.calls, found.attempts) == (5, 5)
    assert time.slept == [10, 20, 40, 50]


def test_an_answer_in_time_needs_no_fallback_and_a_tie_no_retry():
    good = resolve(builder().build(), whole(1, 2))
    policy = builder().strategy("mine", Raises(UnavailableError("later"), good)).default("mine").retry(2).build()
    found = resolve(policy, whole(1, 2))
    assert (found.attempts, found.via) == (2, ("mine",))
    tied = Raises(UndecidedError("a tie"))
    resolve(builder().strategy("mine", tied).default("mine").retry(5).build(), whole(1, 2))
    assert tied.calls == 1


def test_at_the_end_of_every_chain_somebody_decides():
    policy = builder().strategy("p", HighestPriority(otherwise=None)).default("p").build()
    found = resolve(policy, whole(1, 2, base=0))
    assert found.via == ("p", "manual")
    assert (found.value, found.pending) == (0, True)


def test_a_fallback_of_the_policy_goes_before_what_a_strategy_would_do_by_itself():
    policy = builder().default("highest_priority").fallback("highest_priority", "min").build()
    assert resolve(policy, whole(1, 2)).value == 1


def test_the_time_out_covers_all_attempts():
    time = Time()

    class Slow:
        def ask(self, question):
            time.ns += min(400, question.timeout_ms) * 1_000_000
            raise TimeoutError

    policy = (
        (builder().strategy("v", ConsensusVote("abc", Slow(), otherwise=None)).default("v").retry(9, backoff_ms=0))
        .timeout(1_000)
        .fallback("v", "lww")
        .build()
    )
    found = PolicyManager([policy], timer=time).resolve(whole(1, 2))
    assert time.ns == 1_000_000_000
    assert (found.attempts, found.via) == (2, ("v", "lww"))


# ------------------------------------------------------------------------------------------------ escalation


@pytest.mark.parametrize(
    ("action", "value", "pending"),
    [("notify", 2, False), ("require_approval", 2, True), ("freeze", 0, True), ("roll_back", 0, False)],
)
def test_an_escalation_does_what_it_says(action, value, pending):
    policy = builder().default("lww").escalate("bad", on.severity_at_least("medium"), action=action, to="ann").build()
    manager = PolicyManager([policy])
    found = manager.resolve(whole(1, 2, base=0))
    assert (found.value, found.pending) == (value, pending)
    assert [(each.action, each.to, each.rule) for each in found.actions] == [(action, "ann", "bad")]
    assert any("ann" in alarm or action == "roll_back" for alarm in found.alarms)
    assert manager.is_frozen("r") is (action == "freeze")
    assert manager.thaw("r") is (action == "freeze")
    assert not manager.frozen


def test_a_condition_that_does_not_hold_escalates_nothing():
    policy = builder().escalate("bad", on.severity_at_least("critical"), action="freeze").build()
    assert resolve(policy, whole(1, 2)).actions == ()
    worst = whole(1, 2).replace(severity=Severity.CRITICAL)
    assert resolve(policy, worst).actions


def test_conflicts_past_the_limit_escalate_until_the_window_is_over():
    time = Time()
    policy = builder().default("lww").auto_limit(2, window_ms=1_000).build()
    manager = PolicyManager([policy], timer=time)
    asked = []
    for moment in (0, 100, 200, 900, 2_500):
        time.ns = moment * 1_000_000
        found = manager.resolve(whole(1, 2))
        asked.append(bool(found.actions))
        assert found.value == 2  # how often changes who is told, not the value: replicas count differently
    assert asked == [False, False, True, True, False]


def test_a_conflict_that_is_read_again_is_not_another_one():
    policy = builder().default("lww").auto_limit(1, window_ms=1_000).build()
    applied = PolicyManager([policy], timer=Time()).applied("production")
    assert applied.settle(whole(1, 2)).actions == ()
    assert [applied.resolve(whole(1, 2)).actions for _ in range(3)] == [(), (), ()]
    assert applied.settle(whole(1, 2)).actions


# ------------------------------------------------------------------------------------------------ many callers


def test_many_threads_may_resolve_at_once():
    registry = Registry()
    policy = builder().field("/p/*", "max").default("lww").auto_limit(10_000, window_ms=1).build()
    manager = PolicyManager([policy], metrics=ConflictMetrics(registry, Hooks(lambda: 0)))
    failures = []

    def work(seed):
        for i in range(200):
            found = manager.resolve(at_paths({f"/p/{i * seed % 50}": [1, 2], f"/q/{i}": [3, 4]}))
            if set(found.settled.values()) != {2, 4}:
                failures.append(found)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    counted = {
        tuple(labels.values()): cell.value for labels, cell in registry.get("dwcp_policy_applications_total").children()
    }
    assert counted == {("production", "ok"): 800}


def test_an_unknown_policy_is_named_with_those_that_are_known():
    with pytest.raises(UsageError, match="known are production"):
        PolicyManager([builder().build()]).resolve(whole(1, 2), "prod")


values = st.recursive(
    st.sampled_from([None, 1, 2, 2.0, "a", "b"]),
    lambda inner: (
        st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
        | st.lists(st.builds(lambda i, v: {"id": i, "v": v}, st.integers(0, 2), inner), max_size=2)
    ),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(values, min_size=2, max_size=3), values, st.booleans())
def test_one_policy_gives_identical_bytes_in_any_order(several, base, known):
    policy = builder().field("/x", "max").field("y[*].v", "manual").field("z.*", "min").build()
    rows, found = versions(*several), set()
    for order in permutations(rows):
        conflict = ConflictDetector().examine("r", "register", {"": list(order)})
        if known:
            conflict = conflict.replace(base=Version(base, VectorClock({"z": 1}), 1, "z"))
        found.add(frozen(resolve(policy, conflict)))
    assert len(found) == 1


# ------------------------------------------------------------------------------------------------ files

GOOD = """
name = "production"
default = "semantic"
timeout_ms = 1000

[retry]
count = 3
backoff_ms = 20

[strategies.primary]
use = "highest_priority"
by = "region"
priorities = { eu = 2, us = 1 }

[strategies.quorum]
use = "consensus_vote"
voters = ["a", "b", "c"]

[strategies."power order"]
use = "precedence"
order = ["stopped", "running"]

[fallback]
primary = "quorum"
quorum = "manual"

[fields]
"networks[*].ip" = "manual"
cpu = "max"
power_state = "power order"

[[rules]]
name = "billing"
when = { path = "/billing/**" }
use = "manual"

[[rules]]
name = "hard"
when = { complexity_over = 0.7, any = [{ region = "eu" }, { tag = ["gold", "silver"] }], not = { kind = "vm" } }
use = "primary"

[[escalations]]
name = "split brain"
when = { severity_at_least = "critical" }
action = "freeze"
to = "on-call"

[auto_limit]
count = 3
window_s = 60
"""


def test_a_policy_file_says_the_same_as_the_builder():
    policy = policy_from_toml(GOOD)
    assert policy.name == "production"
    assert policy.chain("primary") == ("primary", "quorum", "manual")
    assert [rule.name for rule in policy.rules] == ["billing", "hard"]
    assert policy.retry.count == 3
    assert policy.auto_limit.window_ms == 60_000
    assert resolve(policy, at_paths({"/power_state": ["running", "stopped"]})).settled == {"/power_state": "running"}


@pytest.mark.parametrize(
    ("old", "new", "mark", "message"),
    [
        ('default = "semantic"', 'defalt = "semantic"', 'defalt = "semantic"', "did you mean default?"),
        ('quorum = "manual"', 'quorum = "primary"', 'primary = "quorum"', "go in a circle"),
        ("complexity_over", "complexity_ovr", "complexity_ovr", "did you mean complexity_over?"),
        ("complexity_over = 0.7", "complexity_over = 1.5", "complexity_over = 1.5", "a number, 0 to 1"),
        (
            "complexity_over = 0.7",
            "complexity_over = 0.7, complexity_at_most = 0.5",
            "complexity_over = 0.7, complexity_at_most = 0.5",
            "can never hold",
        ),
        ('"freeze"', '"freze"', '"freze"', "it is one of notify"),
        ('cpu = "max"', 'cpu = "maxi"', 'cpu = "maxi"', "strategy 'maxi' is unknown"),
        ('cpu = "max"', "cpu = 3", "cpu = 3", "the name of a strategy"),
        ("count = 3\nbackoff", "count = -3\nbackoff", "count = -3", "a whole number, 0 or more"),
        ('by = "region"', 'by = "regin"', "[strategies.primary]", "by is 'regin'"),
        ('voters = ["a", "b", "c"]', "voters = []", "[strategies.quorum]", "at least one name"),
        ('use = "highest_priority"', 'use = "highest_prio"', 'use = "highest_prio"', "did you mean highest_priority?"),
        ("window_s = 60", "window_s = 0", "window_s = 0", "seconds, above 0"),
        ("window_s = 60", "window_s = inf", "window_s = inf", "above 0 to 31622400"),
        ("count = 3\nbackoff", "factor = inf\ncount = 3\nbackoff", "factor = inf", "it is 1 to 1000"),
        ("window_s = 60", "windows = 60", "windows = 60", "did you mean window_s?"),
        ('path = "/billing/**"', "path = 7", "path = 7", "a string or a list of strings"),
        ('use = "manual"\n', "", "[[rules]]", "use is missing"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_line_and_mend(old, new, mark, message):
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(ConfigError) as caught:
        policy_from_toml(text, "p.toml")
    assert message in str(caught.value)
    line = text[: text.index(mark)].count("\n") + 1
    assert str(caught.value).startswith(f"p.toml line {line}:"), caught.value


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60) | st.sampled_from(GOOD.splitlines()).map(lambda line: GOOD.replace(line, line[::-1])))
def test_any_text_is_a_policy_or_a_clear_error(text):
    with contextlib.suppress(ConfigError):
        policy_from_toml(text, "p.toml")


# ------------------------------------------------------------------------------------------------ cases


def test_a_case_is_read_whole_or_by_leaves():
    two = [{"origin": "a", "value": {"x": 1}}, {"origin": "b", "time_ms": 5, "value": {"x": 2}}]
    conflict, facts = conflict_from_case({"key": "k", "versions": two, "base": {"x": 0}, "region": "eu", "tags": ["t"]})
    assert conflict.paths == ("/x",)
    assert (facts.region, facts.now_ms) == ("eu", 5)
    three, _ = conflict_from_case({"versions": [*two, {"origin": "c", "value": {"y": 1}}]})
    assert len(three.siblings[""]) == 3
    leaves, _ = conflict_from_case(
        {"versions": [{"origin": "a", "values": {"/x": 1}}, {"origin": "b", "values": {}, "missing": ["/x"]}]}
    )
    assert set(leaves.siblings) == {"/x"}


@pytest.mark.parametrize(
    "case",
    [
        7,
        {"versions": []},
        {"versions": [{"value": 1}]},
        {"versions": [7, 8]},
        {"versions": [{"origin": "a", "value": 1}, {"origin": "b", "clock": {"a": 1, "b": 1}, "value": 2}]},
        {"versions": [{"origin": "a", "clock": 7, "value": 1}, {"value": 2}]},
        {"versions": [{"origin": "a"}, {"value": 2}]},
        {"versions": [{"value": 1}, {"value": 2}], "tags": 7},
    ],
)
def test_what_is_no_case_is_refused(case):
    with pytest.raises(UsageError):
        conflict_from_case(case)


def test_an_explanation_names_the_rule_that_fired_and_those_that_did_not():
    policy = policy_from_toml(GOOD)
    lines = policy.explain(at_paths({"/billing/x": [1, 2], "/cpu": [1, 2]}))
    assert any("/billing/x: rule 1, billing, fires" in line for line in lines)
    assert any("/cpu: max, by field cpu (/cpu)" in line for line in lines)
    assert any("does not apply: severity is at least critical" in line for line in lines)
    other = policy.explain(at_paths({"/a": [1, 2]}))
    assert any("rule 2, hard, does not hold: not complexity is over 0.7" in line for line in other)
    assert (
        resolve(policy, whole(1, 2), context=ResolveContext()).explanation[0].startswith("policy production: semantic")
    )
