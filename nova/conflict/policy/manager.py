"""Policies at work: a conflict is settled by its policy, part by part, with retries, time-outs and fallbacks.

What depends on the moment (a strategy that was unavailable, how often a resource conflicted lately) changes who is told
and what is pending; only the strategies that ask somebody, and what stands in for them, may give other values on other
replicas. All else is a function of the conflict, its context and its facts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from nova.conflict.detect import MISSING, Conflict, Version, escape, ordered, same, unescape
from nova.conflict.metrics import ConflictMetrics
from nova.conflict.policy.conditions import NO_FACTS, Facts
from nova.conflict.policy.model import LAST_RESORT, Choice, Policy
from nova.conflict.strategies import (
    NO_CONTEXT,
    Action,
    AutomaticRollback,
    Discarded,
    ManualIntervention,
    Resolution,
    ResolveContext,
    UndecidedError,
    clock_of,
)
from nova.conflict.strategies.base import base_at, combined, part
from nova.errors import NovaError, UnavailableError, UsageError
from nova.types import Order

RESOURCES_MAX: Final = 10_000
FIELDS_MAX: Final = 10_000
_IDENTITIES: Final = ("id", "mac", "name", "key")
"""Fields by which an item of a list is known to a pattern such as networks[*].ip."""


class Timer(Protocol):
    """Time, for retries and time-outs. Both in nanoseconds; `now_ns` never goes back."""

    def now_ns(self) -> int: ...
    def sleep_ns(self, ns: int) -> None: ...


class NoTime:
    """A timer that stands still: nothing times out, nobody waits."""

    def now_ns(self) -> int:
        return 0

    def sleep_ns(self, ns: int) -> None:
        return None


class PolicyManager:
    """Applies policies by name. Safe to call from many threads: what calls share is only appended to or replaced whole.

    policies  whatever is to be known by name; `add` adds or replaces one
    timer     None: nothing times out and nobody waits between attempts
    metrics   is told of each conflict that is settled, with the result and the time
    watch_ns  what times are measured by, and the window of `auto_limit`; None: the timer. No value depends on it, so it
              may run where replicas have to settle alike
    """

    def __init__(
        self,
        policies: Iterable[Policy] = (),
        *,
        timer: Timer | None = None,
        metrics: ConflictMetrics | None = None,
        watch_ns: Callable[[], int] | None = None,
    ) -> None:
        self._policies = {policy.name: policy for policy in policies}
        self._timer: Timer = timer or NoTime()
        self._watch_ns = watch_ns or self._timer.now_ns
        self._recent: dict[tuple[str, str], deque[int]] = {}
        self._frozen: dict[str, Action] = {}
        self._metrics = metrics

    def add(self, policy: Policy) -> None:
        """Know a policy by its name from now on."""
        self._policies = {**self._policies, policy.name: policy}

    def policy(self, name: str) -> Policy:
        """The policy of that name. Raises UsageError that lists the known ones."""
        try:
            return self._policies[name]
        except KeyError:
            known = ", ".join(sorted(self._policies)) or "none"
            raise UsageError(f"policy {name!r} is unknown; known are {known}; add it first") from None

    def resolve(
        self,
        conflict: Conflict,
        policy: str | Policy = "production",
        context: ResolveContext = NO_CONTEXT,
        facts: Facts = NO_FACTS,
        *,
        again: bool = False,
    ) -> Resolution:
        """Settle a conflict. `via` tells which strategies were asked, `actions` what escalation asks for.

        again  this conflict was settled before, and is only read: it is not counted, and nothing is frozen
        cost   that of the strategy, and some ten microseconds
        """
        chosen = policy if isinstance(policy, Policy) else self.policy(policy)
        start = self._watch_ns()
        settling = _Settling(chosen, conflict, context, facts, self._timer, self._timer.now_ns())
        found = settling.run()
        if chosen.escalations or chosen.auto_limit is not None:
            found = self._escalated(chosen, conflict, context, facts, found, start, again)
        if again:
            return found
        result = "pending" if found.pending else "fallback" if settling.fell else "ok"
        if self._metrics is not None:
            self._metrics.policy_applied(chosen.name, result, max(self._watch_ns() - start, 0) / 1e6)
        return found

    def applied(self, name: str) -> PolicyStrategy:
        """A policy in the place of a strategy."""
        return PolicyStrategy(self, self.policy(name))

    # -- escalation --

    def _escalated(
        self,
        policy: Policy,
        conflict: Conflict,
        context: ResolveContext,
        facts: Facts,
        found: Resolution,
        now_ns: int,
        again: bool,
    ) -> Resolution:
        actions = [
            Action(rule.action, conflict.resource_id, rule.to, rule.name, rule.when.words)
            for rule in policy.escalations
            if rule.when.holds(conflict, "", facts)
        ]
        asked = {action.action for action in actions}
        # Of what changes the value the strongest applies, and the same on every replica.
        if "freeze" in asked:
            found = ManualIntervention().resolve(conflict, context)
        elif "roll_back" in asked:
            found = AutomaticRollback().resolve(conflict, context)
        if policy.auto_limit is not None and not again and (hot := self._hot(policy, conflict, now_ns)) is not None:
            actions.append(hot)
        if not actions:
            return found
        words = tuple(_told(action) for action in actions)
        for action in actions:
            if action.action == "freeze" and not again:
                self._freeze(action)
        pending = found.pending or any(action.action in ("require_approval", "freeze") for action in actions)
        return found.replace(
            explanation=found.explanation + words,
            alarms=found.alarms + words,
            actions=tuple(actions),
            pending=pending,
            confidence=min(found.confidence, 0.3) if pending else found.confidence,
        )

    def _hot(self, policy: Policy, conflict: Conflict, now_ns: int) -> Action | None:
        limit = policy.auto_limit
        assert limit is not None
        key = (policy.name, conflict.resource_id)
        times = self._recent.get(key)
        if times is None:
            if len(self._recent) >= RESOURCES_MAX:
                self._recent.pop(next(iter(self._recent), key), None)
            times = self._recent.setdefault(key, deque(maxlen=limit.count + 1))
        times.append(now_ns)
        if len(times) <= limit.count or now_ns - times[0] >= limit.window_ms * 1_000_000:
            return None
        reason = f"more than {limit.count} conflicts in {limit.window_ms} ms"
        return Action(limit.action, conflict.resource_id, limit.to, "auto_limit", reason)

    def _freeze(self, action: Action) -> None:
        if len(self._frozen) >= RESOURCES_MAX and action.resource_id not in self._frozen:
            raise UnavailableError(f"{len(self._frozen)} resources are frozen; the limit is {RESOURCES_MAX}: thaw some")
        self._frozen[action.resource_id] = action

    @property
    def frozen(self) -> Mapping[str, Action]:
        """Frozen resources, and why: whoever stores them refuses writes of others until `thaw`."""
        return dict(self._frozen)

    def is_frozen(self, resource_id: str) -> bool:
        """Whether an escalation froze it."""
        return resource_id in self._frozen

    def thaw(self, resource_id: str) -> bool:
        """Let it be written again; whether it was frozen."""
        return self._frozen.pop(resource_id, None) is not None


def _told(action: Action) -> str:
    to = f" {action.to}" if action.to else ""
    what = {
        "notify": f"tell{to or ' whoever is on duty'}",
        "require_approval": f"needs the approval of{to or ' somebody'}",
        "freeze": "is frozen until somebody thaws it",
        "roll_back": "was rolled back",
    }[action.action]
    subject = "" if action.action == "notify" else f"{action.resource_id} "
    about = f" about {action.resource_id}" if action.action == "notify" else to and f", tell{to}"
    about = "" if action.action == "require_approval" else about
    return f"escalation {action.rule}: {subject}{what}{about} ({action.reason})"


class PolicyStrategy:
    """A policy where a strategy is asked for. What rules ask beyond the conflict is taken from what replicas share:
    the time is that of the newest version, region and tags are leaves of the resource.

    `resolve` reads and may be repeated; `settle` is the one time that a conflict was found.
    """

    def __init__(self, manager: PolicyManager, policy: Policy) -> None:
        self.manager, self.policy = manager, policy

    @property
    def name(self) -> str:
        return f"policy:{self.policy.name}"

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        return self.manager.resolve(conflict, self.policy, context, self._facts(conflict, context), again=True)

    def settle(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        """The same, counted."""
        return self.manager.resolve(conflict, self.policy, context, self._facts(conflict, context))

    @staticmethod
    def _facts(conflict: Conflict, context: ResolveContext) -> Facts:
        newest = max([version.timestamp for version in conflict.versions], default=0)
        region = context.leaves.get("/region")
        return Facts(region if isinstance(region, str) else "", frozenset(), newest >> 16, context.leaves)


# ------------------------------------------------------------------------------------------------ one conflict


class _Settling:
    """One conflict under a policy."""

    __slots__ = ("_conflict", "_context", "_deadline", "_facts", "_policy", "_timer", "fell")

    def __init__(
        self, policy: Policy, conflict: Conflict, context: ResolveContext, facts: Facts, timer: Timer, start: int
    ) -> None:
        self._policy, self._conflict, self._context, self._facts = policy, conflict, context, facts
        self._timer, self.fell = timer, False
        self._deadline = start + policy.timeout_ms * 1_000_000 if policy.timeout_ms else 0

    def run(self) -> Resolution:
        policy, conflict = self._policy, self._conflict
        chosen: dict[str, list[str]] = {}
        choices: dict[str, Choice] = {}
        for path in conflict.siblings:
            choice = policy.choose(conflict, path, self._facts)
            chosen.setdefault(choice.use, []).append(path)
            choices.setdefault(choice.use, choice)
        parts = []
        for use, paths in chosen.items():
            about = conflict if len(chosen) == 1 else part(conflict, {path: conflict.siblings[path] for path in paths})
            parts.append(self._attempt(use, about, choices[use].why))
        if len(parts) == 1:
            found = parts[0]
        elif parts:
            found = combined(conflict, "+".join(sorted(chosen)), parts)
        else:  # contention between resources: there is no value to choose
            found = self._attempt(policy.choose(conflict, "", self._facts).use, conflict, "a conflict without versions")
        return self._fields(found) if policy.deep else found

    def _attempt(self, use: str, conflict: Conflict, why: str) -> Resolution:
        """What the strategy, or the first of its fallbacks that can decide, makes of it."""
        policy, notes, via, attempts = self._policy, [f"policy {self._policy.name}: {use} by {why}"], [], 0
        for name in policy.chain(use):
            via.append(name)
            strategy = policy.strategy(name)
            for attempt in range(1, policy.retry.count + 2):
                context = self._context
                if self._deadline and getattr(strategy, "asks", False):
                    left_ms = (self._deadline - self._timer.now_ns()) // 1_000_000
                    if left_ms <= 0:
                        notes.append(f"{name}: {policy.timeout_ms} ms are over after {attempts} attempts")
                        break
                    context = msgspec.structs.replace(context, timeout_ms=left_ms)
                try:
                    found = strategy.resolve(conflict, context)
                except UndecidedError as error:
                    notes.append(f"{name} cannot decide: {error}")
                    break
                except (UnavailableError, TimeoutError) as error:
                    if not self._deadline or self._timer.now_ns() < self._deadline:
                        attempts += 1
                    notes.append(f"{name}, attempt {attempt}: {_named(error)}")
                    if attempt <= policy.retry.count:
                        self._wait(policy.retry.wait_ms(attempt))
                    continue
                except Exception as error:  # a user's strategy: it leaves no half result, the next one decides
                    notes.append(f"{name} failed with {_named(error)}")
                    break
                if (wrong := self._wrong(found, conflict)) is not None:
                    notes.append(f"{name} failed: {wrong}")
                    break
                own = found.via if found.via[:1] == (name,) else (name,)
                self.fell = self.fell or len(via) + len(own) > 2
                return found.replace(
                    explanation=(*notes, *found.explanation),
                    via=(*via[:-1], *own),
                    attempts=attempts + 1 if name == use else max(attempts, 1),
                )
        raise AssertionError(f"{LAST_RESORT} always answers")

    def _wait(self, wait_ms: float) -> None:
        ns = int(wait_ms * 1_000_000)
        if self._deadline:
            ns = min(ns, self._deadline - self._timer.now_ns())
        if ns > 0:
            self._timer.sleep_ns(ns)

    @staticmethod
    def _wrong(found: Any, conflict: Conflict) -> str | None:
        """What a strategy owes and did not give."""
        if not isinstance(found, Resolution):
            return f"it returned {type(found).__name__}, no Resolution"
        if found.settled.keys() != conflict.siblings.keys():
            return f"it settled {sorted(found.settled)}, not {sorted(conflict.siblings)}"
        if found.clock.compare(clock_of(conflict.versions)) in (Order.BEFORE, Order.CONCURRENT):
            return "its clock does not cover all versions"
        return None

    # -- fields inside of values --

    def _fields(self, found: Resolution) -> Resolution:
        """Fields for which the policy names a strategy, inside of the values that were settled as a whole."""
        conflict = self._conflict
        settled = dict(found.settled)
        parts: list[Resolution] = []
        for path, versions in conflict.siblings.items():
            tops = [version.value for version in versions]
            here = conflict.base is not None
            base = base_at(conflict, path)
            for tokens in self._inside(path, [*tops, settled[path]]):
                at = path + "".join("/" + escape(token) for token in tokens)
                choice = self._policy.field_of(at)
                if choice is None:
                    continue
                leaves = [_leaf(version, tokens) for version in ordered(versions)]
                before = _get(base, tokens) if here else MISSING
                changed = [leaf for leaf in leaves if not here or not same(leaf.value, before)]
                value = _get(settled[path], tokens)
                if not changed or _parent_of(settled[path], tokens) is None:
                    continue
                if len(changed) == 1 or all(same(leaf.value, changed[0].value) for leaf in changed):
                    outcome = changed[-1].value
                else:
                    sub = conflict.replace(
                        versions=tuple(msgspec.structs.replace(leaf, value={at: leaf.value}) for leaf in changed),
                        paths=(at,),
                        siblings={at: tuple(changed)},
                        base=msgspec.structs.replace(conflict.base, value={at: before}) if conflict.base else None,
                    )
                    parts.append(self._attempt(choice.use, sub, choice.why))
                    outcome = parts[-1].settled[at]
                if not same(value, outcome):
                    settled[path] = _put(settled[path], tokens, outcome)
        if not parts and all(same(settled[path], found.settled[path]) for path in settled):
            return found
        every = combined(conflict, found.strategy, [found, *parts])
        # What the whole and then a field dropped is told once, by the field, which knows why.
        stands = [
            lost
            for i, lost in enumerate(every.discarded)
            if not _holds(settled, lost) and not any(_drops(later, lost) for later in every.discarded[i + 1 :])
        ]
        return every.replace(
            discarded=tuple(stands),
            value=settled[""] if conflict.whole else settled,
            settled=settled,
            siblings={**found.siblings, **{p: v for each in parts for p, v in each.siblings.items()}},
            clock=found.clock,
        )

    def _inside(self, path: str, values: Sequence[Any]) -> Iterator[tuple[str, ...]]:
        """Places below a path that a pattern names and a value has, those above others first."""
        above = path.split("/")[1:] if path else []
        found: dict[tuple[str, ...], None] = {}
        for pattern in self._policy.deep:
            if len(pattern) <= len(above) or not all(w in ("*", g) for w, g in zip(pattern, above, strict=False)):
                continue
            ways: dict[tuple[str, ...], None] = {(): None}
            for wanted in pattern[len(above) :]:
                ways = {
                    (*way, key): None
                    for way in ways
                    for value in values
                    for key in _keys(_get(value, way))
                    if wanted in ("*", "**") or escape(key) == wanted
                }
            for way in ways:
                found |= dict.fromkeys(_differing(values, way))
            if len(ways) > FIELDS_MAX or len(found) > FIELDS_MAX:
                raise UsageError(f"a pattern names {max(len(ways), len(found))} fields; the limit is {FIELDS_MAX}")
        yield from sorted(found, key=lambda way: (len(way), way))


def _named(error: BaseException) -> str:
    """The error in words. Of errors that are not ours the type only: their texts may hold what differs by replica."""
    return str(error) if isinstance(error, NovaError) else type(error).__name__


def _drops(a: Discarded, b: Discarded) -> bool:
    return a.path == b.path and a.origin == b.origin and same(a.value, b.value)


def _identity(item: Any) -> str | None:
    if isinstance(item, Mapping):
        for field in _IDENTITIES:
            if isinstance(item.get(field), str | int):
                return str(item[field])
    return None


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (key for key in value if isinstance(key, str))
    elif isinstance(value, list | tuple):
        yield from (name for item in value if (name := _identity(item)) is not None)


def _differing(values: Sequence[Any], way: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Where values differ at or below a place: a pattern that names a map speaks of each of its fields."""
    here = [_get(value, way) for value in values]
    if all(same(value, here[0]) for value in here):
        return
    if all(isinstance(value, Mapping) for value in here):
        for key in dict.fromkeys(key for value in here for key in value if isinstance(key, str)):
            yield from _differing(values, (*way, key))
    else:
        yield way


def _get(value: Any, tokens: Sequence[str]) -> Any:
    for token in tokens:
        if isinstance(value, Mapping):
            value = value.get(token, MISSING)
        elif isinstance(value, list | tuple):
            value = next((item for item in value if _identity(item) == token), MISSING)
        else:
            return MISSING
    return value


def _parent_of(value: Any, tokens: Sequence[str]) -> Any:
    """The map that holds, or could hold, the last token; None if the way ends before."""
    parent = _get(value, tokens[:-1])
    return parent if isinstance(parent, Mapping) else None


def _put(value: Any, tokens: Sequence[str], leaf: Any) -> Any:
    """The value with the leaf there; nothing is changed in place."""
    if not tokens:
        return leaf
    if isinstance(value, list | tuple):
        return [_put(item, tokens[1:], leaf) if _identity(item) == tokens[0] else item for item in value]
    out = dict(value)
    if len(tokens) == 1 and leaf is MISSING:
        out.pop(tokens[0], None)
    else:
        out[tokens[0]] = _put(out.get(tokens[0]), tokens[1:], leaf)
    return out


def _holds(settled: Mapping[str, Any], lost: Discarded) -> bool:
    """Whether the outcome has at this very place what a part of it discarded."""
    for path, value in settled.items():
        if lost.path == path or lost.path.startswith(path + "/"):
            tokens = [unescape(token.rpartition("=")[2].rstrip("]")) if token[:1] == "[" else unescape(token)
                      for token in lost.path[len(path) :].split("/")[1:]]  # fmt: skip
            return same(_get(value, tokens), lost.value)
    return False


def _leaf(version: Version, tokens: Sequence[str]) -> Version:
    return msgspec.structs.replace(version, value=_get(version.value, tokens))


__all__ = ["NoTime", "PolicyManager", "PolicyStrategy", "Timer"]
