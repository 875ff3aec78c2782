"""Policies: which strategy settles which conflict, and what happens where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, Final

import msgspec

from nova.conflict.detect import Conflict
from nova.conflict.policy.conditions import (
    NO_FACTS,
    Condition,
    Facts,
    all_of,
    always,
    pattern_test,
    pointer_pattern,
    weight,
)
from nova.conflict.strategies import Strategy, strategy_named
from nova.errors import UsageError

ACTIONS: Final = ("notify", "require_approval", "freeze", "roll_back")
LAST_RESORT: Final = "manual"
RULES_MAX: Final = 1_000
RETRIES_MAX: Final = 100
_PATHS_HELD: Final = 4_096


class Rule(msgspec.Struct, frozen=True):
    """Conflicts, or parts of them, for which `when` holds are settled by the strategy `use`."""

    name: str
    when: Condition
    use: str


class Escalation(msgspec.Struct, frozen=True):
    """What else happens where `when` holds.

    notify            somebody is told
    require_approval  the outcome stands until somebody confirms it or decides otherwise: it is pending
    freeze            nothing changes, and the resource takes no writes until it is thawed
    roll_back         back to the last version that satisfies every invariant
    """

    name: str
    when: Condition
    action: str
    to: str = ""


class Retry(msgspec.Struct, frozen=True):
    """How often a strategy that was unavailable is asked again, and how long to wait before: exponentially more."""

    count: int = 0
    backoff_ms: int = 50
    factor: float = 2.0
    backoff_ms_max: int = 5_000

    def wait_ms(self, attempt: int) -> float:
        """Before the repetition number `attempt`, from 1."""
        return min(self.backoff_ms * self.factor ** (attempt - 1), self.backoff_ms_max)


class AutoLimit(msgspec.Struct, frozen=True):
    """More than `count` conflicts of one resource in a window are no noise: the next ones need `action`."""

    count: int
    window_ms: int
    action: str = "require_approval"
    to: str = ""


class Choice(msgspec.Struct, frozen=True):
    """Which strategy, and why."""

    use: str
    rule: str
    why: str


class PolicyError(UsageError):
    """A policy cannot be. `where` says in which part: ("rules", 2, "when"), ("fallback", "lww"), ..."""

    code = "policy"

    def __init__(self, message: str, *where: str | int) -> None:
        super().__init__(message)
        self.where = where


class Policy:
    """Rules in order, strategies by field, and what to do where a strategy cannot decide.

    fields       path pattern -> strategy; the longest pattern that matches a path or something above it wins, and goes
                 before every rule: what a field means is known better than what a conflict is like
    rules        the first one that holds decides
    default      the strategy where none does
    strategies   name -> a strategy made for this policy; other names are those of `strategy_named`
    retry, timeout_ms  for strategies that ask somebody; the time-out covers all attempts, 0: none
    fallback     strategy -> the one to take where it cannot decide; at the end of every chain stands `manual`
    escalations  all that hold apply
    raises       PolicyError for a circle of fallbacks, a rule that can never fire, an unknown strategy or action
    """

    __slots__ = (
        "_chains",
        "_field_of",
        "_fields",
        "_plan",
        "auto_limit",
        "deep",
        "default",
        "escalations",
        "fallback",
        "fields",
        "name",
        "retry",
        "rules",
        "strategies",
        "timeout_ms",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        rules: Sequence[Rule] = (),
        default: str = "semantic",
        fields: Mapping[str, str] | None = None,
        strategies: Mapping[str, Strategy] | None = None,
        retry: Retry = Retry(),
        timeout_ms: int = 0,
        fallback: Mapping[str, str] | None = None,
        escalations: Sequence[Escalation] = (),
        auto_limit: AutoLimit | None = None,
    ) -> None:
        self.name, self.rules, self.default = name, tuple(rules), default
        self.fields, self.strategies = dict(fields or {}), dict(strategies or {})
        self.retry, self.timeout_ms, self.fallback = retry, timeout_ms, dict(fallback or {})
        self.escalations, self.auto_limit = tuple(escalations), auto_limit
        _check(self)
        for strategy in self.fallback:
            # What the policy says goes before what the strategy would do by itself.
            instance = self.strategy(strategy)
            if isinstance(getattr(instance, "otherwise", None), str):
                self.strategies[strategy] = instance = copy(instance)
                instance.otherwise = None  # type: ignore[attr-defined]
        # Longest first, so that the first hit is the answer.
        patterns = sorted(self.fields, key=weight, reverse=True)
        self._fields = [
            (pattern_test(pattern, below=True), Choice(self.fields[pattern], pattern, f"field {pattern_of(pattern)}"))
            for pattern in patterns
        ]
        self.deep = [pointer_pattern(pattern).split("/")[1:] for pattern in reversed(patterns)]
        self._plan: list[tuple[Callable[[Conflict, str, Facts], bool], Choice]] = []
        for number, rule in enumerate(self.rules, 1):
            choice = Choice(rule.use, rule.name, f"rule {number}, {rule.name}: {rule.when.words}")
            tests = [atom.test for atom in rule.when.atoms]
            self._plan.append((tests[0] if len(tests) == 1 else rule.when.holds, choice))
        self._plan.append(
            (lambda conflict, path, facts: True, Choice(default, "default", "no rule holds: the default"))
        )
        self._field_of: dict[str, Choice | None] = {}
        self._chains: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"Policy({self.name!r}, {len(self.fields)} fields, {len(self.rules)} rules, default {self.default!r})"

    def field_of(self, path: str) -> Choice | None:
        """The strategy of a field; None if no pattern names it or anything above it."""
        try:
            return self._field_of[path]
        except KeyError:
            pass
        found = next((choice for test, choice in self._fields if test(path)), None)
        if len(self._field_of) >= _PATHS_HELD:
            self._field_of.clear()
        self._field_of[path] = found
        return found

    def choose(self, conflict: Conflict, path: str = "", facts: Facts = NO_FACTS) -> Choice:
        """The strategy for a conflict, or for the part of it at a path. Cost: a few tests."""
        if path and self._fields and (found := self.field_of(path)) is not None:
            return found
        for test, choice in self._plan:
            if test(conflict, path, facts):
                return choice
        raise AssertionError("the default always holds")

    def strategy(self, name: str) -> Strategy:
        """A strategy of this policy's own, or a registered one."""
        return self.strategies.get(name) or strategy_named(name)

    def chain(self, name: str) -> tuple[str, ...]:
        """The strategies that are tried, in order, from `name` on."""
        found = self._chains.get(name)
        if found is None:
            out = [name]
            while (following := self.fallback.get(out[-1])) is not None:
                out.append(following)
            if LAST_RESORT not in out:
                out.append(LAST_RESORT)
            found = self._chains[name] = tuple(out)
        return found

    def explain(self, conflict: Conflict, facts: Facts = NO_FACTS) -> list[str]:
        """Which rule fires for each part of a conflict and why, and which before it do not, one sentence a line."""
        lines: list[str] = []
        named = [path for path in conflict.paths if path and self.field_of(path) is not None]
        for path in ("", *named) if conflict.whole else conflict.siblings or ("",):
            at = path or "the conflict"
            chosen = self.choose(conflict, path, facts)
            if path and (field := self.field_of(path)) is not None:
                lines.append(f"{at}: {field.use}, by {field.why}, the longest of {len(self.fields)} patterns")
            else:
                for number, rule in enumerate(self.rules, 1):
                    failing = rule.when.failing(conflict, path, facts)
                    if not failing:
                        lines.append(
                            f"{at}: rule {number}, {rule.name}, fires: {rule.when.words}; {rule.use} settles it"
                        )
                        break
                    lines.append(f"{at}: rule {number}, {rule.name}, does not hold: not {', not '.join(failing)}")
                else:
                    lines.append(f"{at}: no rule holds; the default, {self.default}, settles it")
            lines.append(f"{at}: where it cannot decide: {' -> '.join(self.chain(chosen.use))}")
        for escalation in self.escalations:
            holds = escalation.when.holds(conflict, "", facts)
            to = f" to {escalation.to}" if escalation.to else ""
            word = "applies" if holds else "does not apply"
            lines.append(f"escalation {escalation.name} ({escalation.action}{to}) {word}: {escalation.when.words}")
        return lines


def pattern_of(pattern: str) -> str:
    """A pattern as its user wrote it, with the pointer behind it where that differs."""
    pointer = pointer_pattern(pattern)
    return pattern if pointer == pattern else f"{pattern} ({pointer})"


# ------------------------------------------------------------------------------------------------ checks


def _check(policy: Policy) -> None:
    if not policy.name:
        raise PolicyError("the policy has no name; give it one", "name")
    if len(policy.rules) > RULES_MAX:
        raise PolicyError(f"the policy has {len(policy.rules)} rules; the limit is {RULES_MAX}", "rules")
    if policy.timeout_ms < 0:
        raise PolicyError(f"timeout_ms is {policy.timeout_ms}; give 0 for no limit, or milliseconds", "timeout_ms")
    retry = policy.retry
    if not 0 <= retry.count <= RETRIES_MAX:
        raise PolicyError(f"retry count is {retry.count}; it is 0 to {RETRIES_MAX}", "retry", "count")
    if retry.backoff_ms < 0 or retry.backoff_ms_max < retry.backoff_ms:
        raise PolicyError(
            f"backoff_ms is {retry.backoff_ms}, backoff_ms_max {retry.backoff_ms_max}; give 0 <= the one <= the other",
            "retry", "backoff_ms",
        )  # fmt: skip
    if not 1 <= retry.factor <= 1000:  # to the power of 99 it is still a number
        raise PolicyError(f"the backoff factor is {retry.factor}; it is 1 to 1000", "retry", "factor")
    for index, rule in enumerate(policy.rules):
        _known(policy, rule.use, "rules", index, "use")
        _possible(rule.when, f"rule {rule.name!r}", "rules", index, "when")
        for earlier in policy.rules[:index]:
            if earlier.when.covers(rule.when):
                raise PolicyError(
                    f"rule {rule.name!r} can never fire: {earlier.name!r} before it holds wherever it does "
                    f"({earlier.when.words}); move it up or take it out",
                    "rules", index,
                )  # fmt: skip
    _known(policy, policy.default, "default")
    for pattern, use in policy.fields.items():
        try:
            pattern_test(pattern)
        except UsageError as error:
            raise PolicyError(str(error), "fields", pattern) from None
        _known(policy, use, "fields", pattern)
    for index, escalation in enumerate(policy.escalations):
        _action(escalation.action, "escalations", index, "action")
        _possible(escalation.when, f"escalation {escalation.name!r}", "escalations", index, "when")
    if (limit := policy.auto_limit) is not None:
        _action(limit.action, "auto_limit", "action")
        if limit.count < 1 or limit.window_ms < 1:
            raise PolicyError(
                f"auto_limit is {limit.count} in {limit.window_ms} ms; both are 1 or more", "auto_limit", "count"
            )
    for name, following in policy.fallback.items():
        _known(policy, name, "fallback", name)
        _known(policy, following, "fallback", name)
    _acyclic(policy)


def _known(policy: Policy, name: str, *where: str | int) -> None:
    try:
        policy.strategy(name)
    except UsageError as error:
        raise PolicyError(str(error), *where) from None


def _action(action: str, *where: str | int) -> None:
    if action not in ACTIONS:
        raise PolicyError(f"action is {action!r}; it is one of {', '.join(ACTIONS)}", *where)


def _possible(when: Condition, what: str, *where: str | int) -> None:
    if (why := when.impossible()) is not None:
        raise PolicyError(f"{what} can never hold: {why}; loosen one of them", *where)


def _acyclic(policy: Policy) -> None:
    """Fallbacks, and the next strategies that strategies name themselves, make no circle."""

    def following(name: str) -> list[str]:
        if name in policy.fallback:
            return [policy.fallback[name]]
        otherwise = getattr(policy.strategy(name), "otherwise", None)
        return [otherwise] if isinstance(otherwise, str) else []

    done: set[str] = set()
    for start in [*policy.fallback, *policy.strategies]:
        stack: list[tuple[str, tuple[str, ...]]] = [(start, (start,))]
        while stack:
            name, way = stack.pop()
            if name in done:
                continue
            for other in following(name):
                if other in way:
                    circle = " -> ".join((*way[way.index(other) :], other))
                    section = "fallback" if start in policy.fallback else "strategies"
                    raise PolicyError(
                        f"the fallbacks go in a circle: {circle}; let one of them end, the last is {LAST_RESORT}",
                        section, start,
                    )  # fmt: skip
                stack.append((other, (*way, other)))
        done.add(start)


# ------------------------------------------------------------------------------------------------ builder


class PolicyBuilder:
    """A policy, part by part; every call returns the builder, and `build` checks the whole.

    PolicyBuilder("production").field("networks[*].ip", "manual").rule(
        "billing is decided by people", path_matches("/billing/**"), use="manual"
    ).default("semantic").retry(3, backoff_ms=50).timeout(1_000).fallback("consensus_vote", "manual").build()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._rules: list[Rule] = []
        self._fields: dict[str, str] = {}
        self._strategies: dict[str, Strategy] = {}
        self._fallback: dict[str, str] = {}
        self._escalations: list[Escalation] = []
        self._more: dict[str, Any] = {}

    def rule(self, name: str, *when: Condition, use: str) -> PolicyBuilder:
        """Where all of `when` hold, and no earlier rule does, `use` settles; without `when`, always."""
        self._rules.append(Rule(name, all_of(*when) if when else always(), use))
        return self

    def field(self, pattern: str, use: str) -> PolicyBuilder:
        """`use` settles the fields of this pattern, and what is below them."""
        self._fields[pattern] = use
        return self

    def strategy(self, name: str, strategy: Strategy) -> PolicyBuilder:
        """A strategy made for this policy, under a name of its own."""
        self._strategies[name] = strategy
        return self

    def default(self, use: str) -> PolicyBuilder:
        """What settles where no rule holds."""
        self._more["default"] = use
        return self

    def fallback(self, *names: str) -> PolicyBuilder:
        """Where the first cannot decide the second does, and so on."""
        if len(names) < 2:
            raise UsageError(f"fallback names {len(names)} strategies; give at least 2, the first one first")
        self._fallback |= dict(pairwise(names))
        return self

    def retry(
        self, count: int, *, backoff_ms: int = 50, factor: float = 2.0, backoff_ms_max: int = 5_000
    ) -> PolicyBuilder:
        """Ask a strategy that was unavailable again."""
        self._more["retry"] = Retry(count, backoff_ms, factor, backoff_ms_max)
        return self

    def timeout(self, timeout_ms: int) -> PolicyBuilder:
        """All attempts together take no longer."""
        self._more["timeout_ms"] = timeout_ms
        return self

    def escalate(self, name: str, *when: Condition, action: str, to: str = "") -> PolicyBuilder:
        """Where all of `when` hold, do this as well."""
        self._escalations.append(Escalation(name, all_of(*when), action, to))
        return self

    def auto_limit(
        self, count: int, *, window_ms: int, action: str = "require_approval", to: str = ""
    ) -> PolicyBuilder:
        """Past `count` conflicts of one resource in a window, do this."""
        self._more["auto_limit"] = AutoLimit(count, window_ms, action, to)
        return self

    def build(self) -> Policy:
        """The policy. Raises PolicyError."""
        return Policy(
            self._name,
            rules=self._rules,
            fields=self._fields,
            strategies=self._strategies,
            fallback=self._fallback,
            escalations=self._escalations,
            **self._more,
        )
