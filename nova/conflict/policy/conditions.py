"""Conditions of policy rules: small tests on a conflict that can say in words what they ask.

They combine with `&`, `|` and `~`. What a condition asks is kept beside the test, so that a policy can be checked for
rules that can never fire.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any, Final, TypeAlias

import msgspec

from nova.conflict.detect import Conflict, ConflictType, Severity, same
from nova.conflict.words import show
from nova.errors import UsageError


class Facts(msgspec.Struct, frozen=True):
    """What a rule may ask beyond the conflict. Replicas that are to settle alike must be given equal ones.

    region   where the resource lives; "" is unknown
    tags     of the resource
    now_ms   the time, for `age_over`; the newest timestamp of the conflict is one that all replicas share
    leaves   uncontended leaves of the resource, path -> value
    """

    region: str = ""
    tags: frozenset[str] = frozenset()
    now_ms: int = 0
    leaves: Mapping[str, Any] = {}


NO_FACTS: Final = Facts()

Test: TypeAlias = Callable[[Conflict, str, Facts], bool]
"""(conflict, the path that is being decided or "" for all of it, facts) -> whether it holds."""

Bound: TypeAlias = tuple[float, float] | frozenset[Any]
"""What a quantity is held to: above the first and up to the second number, or one of a set."""


class Atom(msgspec.Struct, frozen=True):
    """One test. `bounds`: quantity -> what it is held to; `paths`: patterns, any of which is to match."""

    words: str
    test: Test
    bounds: tuple[tuple[str, Bound], ...] = ()
    paths: tuple[str, ...] = ()


class Condition(msgspec.Struct, frozen=True):
    """Holds if all atoms do."""

    atoms: tuple[Atom, ...]

    @property
    def words(self) -> str:
        return " and ".join(atom.words for atom in self.atoms) or "always"

    def holds(self, conflict: Conflict, path: str = "", facts: Facts = NO_FACTS) -> bool:
        """Whether it holds for a conflict; `path`: for the part of it there."""
        return all(atom.test(conflict, path, facts) for atom in self.atoms)

    def failing(self, conflict: Conflict, path: str = "", facts: Facts = NO_FACTS) -> list[str]:
        """What of it does not hold, in words."""
        return [atom.words for atom in self.atoms if not atom.test(conflict, path, facts)]

    def __and__(self, other: Condition) -> Condition:
        return Condition((*self.atoms, *other.atoms))

    def __or__(self, other: Condition) -> Condition:
        return any_of(self, other)

    def __invert__(self) -> Condition:
        return not_(self)

    def impossible(self) -> str | None:
        """Why no conflict can ever meet it; None if one can, as far as can be told."""
        held: dict[str, Bound] = {}
        for atom in self.atoms:
            for name, bound in atom.bounds:
                before = held.get(name, bound)
                both = _both(before, bound)
                if _empty(both):
                    return (
                        f"{name.replace('_', ' ')} cannot be {_told(before)} and {_told(bound)}"
                        if (before != bound)
                        else f"{name.replace('_', ' ')} cannot be {_told(bound)}"
                    )
                held[name] = both
        return None

    def covers(self, other: Condition) -> bool:
        """Whether this one surely holds wherever the other does."""
        held: dict[str, Bound] = {}
        for atom in other.atoms:
            for name, bound in atom.bounds:
                held[name] = _both(held.get(name, bound), bound)
        return all(_implied(atom, other, held) for atom in self.atoms)


def _both(a: Bound, b: Bound) -> Bound:
    if isinstance(a, frozenset) and isinstance(b, frozenset):
        return a & b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return max(a[0], b[0]), min(a[1], b[1])
    return frozenset()


def _empty(bound: Bound) -> bool:
    return bound[0] >= bound[1] if isinstance(bound, tuple) else not bound


def _told(bound: Bound) -> str:
    if isinstance(bound, frozenset):
        return " or ".join(sorted(map(str, bound))) or "anything"
    low, high = bound
    over = f"over {low:g}" if low > -inf else ""
    most = f"at most {high:g}" if high < inf else ""
    return " and ".join(filter(None, (over, most))) or "anything"


def _within(inner: Bound, outer: Bound) -> bool:
    if isinstance(inner, frozenset) and isinstance(outer, frozenset):
        return inner <= outer
    return isinstance(inner, tuple) and isinstance(outer, tuple) and outer[0] <= inner[0] and inner[1] <= outer[1]


def _implied(atom: Atom, other: Condition, held: Mapping[str, Bound]) -> bool:
    if any(atom.words == each.words for each in other.atoms):
        return True
    if atom.paths:
        tests = [pattern_test(pattern) for pattern in atom.paths]
        return any(
            each.paths and all("*" not in path and any(test(path) for test in tests) for path in each.paths)
            for each in other.atoms
        )
    return bool(atom.bounds) and all(name in held and _within(held[name], bound) for name, bound in atom.bounds)


# ------------------------------------------------------------------------------------------------ path patterns

_PART = re.compile(r"\.?([^.\[\]/]+)|\[([^\[\]]+)\]")


def pointer_pattern(pattern: str) -> str:
    """`networks[*].ip` as `/networks/*/ip`; patterns that are pointers already stay. Raises UsageError."""
    if pattern == "" or pattern[0] == "/":
        return pattern
    at, out = 0, []
    while at < len(pattern):
        found = _PART.match(pattern, at)
        if found is None:
            raise UsageError(
                f"the path {pattern!r} cannot be read at {pattern[at:]!r}; write networks[*].ip or /networks/*/ip"
            )
        out.append(found[1] or found[2].rpartition("=")[2])
        at = found.end()
    return "/" + "/".join(out)


def pattern_test(pattern: str, below: bool = False) -> Callable[[str], bool]:
    """A test for paths: `*` is one segment, a last `**` what is below. below: whatever lies below matches too."""
    pattern = pointer_pattern(pattern)
    parts = pattern.split("/")
    rest = "(?:/.*)?" if below else ""
    if parts[-1] == "**":
        parts.pop()
        rest = "/.+"
    matcher = re.compile("/".join("[^/]*" if part == "*" else re.escape(part) for part in parts) + rest, re.DOTALL)
    full = matcher.fullmatch
    return lambda path: full(path) is not None


def weight(pattern: str) -> tuple[int, int, str]:
    """How exactly a pattern names a path: by its length, then by how much of it is no wildcard."""
    parts = pointer_pattern(pattern).split("/")
    return len(parts), sum(part not in ("*", "**") for part in parts), pattern


# ------------------------------------------------------------------------------------------------ ready-made


def always() -> Condition:
    """Every conflict."""
    return Condition(())


def all_of(*conditions: Condition) -> Condition:
    """All of them hold."""
    return Condition(tuple(atom for condition in conditions for atom in condition.atoms))


def any_of(*conditions: Condition) -> Condition:
    """At least one of them holds."""
    possible = [condition for condition in conditions if condition.impossible() is None]
    if not possible:
        raise UsageError(f"none of {len(conditions)} alternatives can ever hold; give one that can")
    words = "(" + " or ".join(condition.words for condition in conditions) + ")"
    tests = [condition.holds for condition in possible]
    return Condition((Atom(words, lambda c, p, f: any(test(c, p, f) for test in tests)),))


def not_(condition: Condition) -> Condition:
    """It does not hold."""
    if not condition.atoms:
        raise UsageError("`not` of a condition that always holds can never hold; leave the rule out")
    return Condition((Atom(f"not ({condition.words})", lambda c, p, f: not condition.holds(c, p, f)),))


def custom(words: str, test: Callable[[Conflict], bool]) -> Condition:
    """A test of your own. It must be pure; one that raises does not hold."""

    def safe(conflict: Conflict, path: str, facts: Facts) -> bool:
        try:
            return bool(test(conflict))
        except Exception:  # alike on all replicas: the test is pure
            return False

    return Condition((Atom(words, safe),))


def type_is(*types: str) -> Condition:
    """The conflict is of one of these types."""
    known = {str(each) for each in ConflictType}
    wanted = frozenset(map(str, types))
    if not wanted or wanted - known:
        raise UsageError(f"the types are {sorted(wanted)}; give some of {', '.join(sorted(known))}")
    shown = " or ".join(sorted(wanted))
    return Condition((Atom(f"type is {shown}", lambda c, p, f: not wanted.isdisjoint(c.types)),))


def severity_is(*severities: str) -> Condition:
    """low, medium, high or critical."""
    levels = frozenset(_severity(each) for each in severities)
    if not levels:
        raise UsageError("severity names none; give low, medium, high or critical")
    shown = " or ".join(level.label for level in sorted(levels))
    bound = frozenset(level.label for level in levels)
    return Condition((Atom(f"severity is {shown}", lambda c, p, f: c.severity in levels, (("severity", bound),)),))


def severity_at_least(severity: str) -> Condition:
    """At least as bad as that."""
    least = _severity(severity)
    bound = frozenset(level.label for level in Severity if level >= least)
    return Condition(
        (Atom(f"severity is at least {least.label}", lambda c, p, f: c.severity >= least, (("severity", bound),)),)
    )


def _severity(word: str | Severity) -> Severity:
    for level in Severity:
        if level is word or level.label == word:
            return level
    raise UsageError(f"severity is {word!r}; it is one of {', '.join(level.label for level in Severity)}")


def complexity_over(score: float) -> Condition:
    """The complexity, 0 to 1, is greater."""
    _between("complexity_over", score, 0, 1)
    return Condition(
        (Atom(f"complexity is over {score:g}", lambda c, p, f: c.complexity > score, _over("complexity", score, 1)),)
    )


def complexity_at_most(score: float) -> Condition:
    """The complexity, 0 to 1, is that or less."""
    _between("complexity_at_most", score, 0, 1)
    bounds: tuple[tuple[str, Bound], ...] = (("complexity", (-inf, score)),)
    return Condition((Atom(f"complexity is at most {score:g}", lambda c, p, f: c.complexity <= score, bounds),))


def siblings_over(count: int) -> Condition:
    """More versions than that meet at one path."""
    _between("siblings_over", count, 0, inf)

    def test(conflict: Conflict, path: str, facts: Facts) -> bool:
        if path in conflict.siblings:
            return len(conflict.siblings[path]) > count
        return any(len(versions) > count for versions in conflict.siblings.values())

    return Condition((Atom(f"more than {count} siblings", test, _over("siblings", count, inf)),))


def age_over(age_ms: int) -> Condition:
    """Since the oldest version more time has passed, up to `facts.now_ms`."""
    _between("age_over_ms", age_ms, 0, inf)

    def test(conflict: Conflict, path: str, facts: Facts) -> bool:
        oldest = min([version.timestamp for version in conflict.versions], default=facts.now_ms << 16)
        return facts.now_ms - (oldest >> 16) > age_ms

    return Condition((Atom(f"age is over {age_ms} ms", test, _over("age_ms", age_ms, inf)),))


def _between(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        most = f"{low:g} to {high:g}" if high < inf else f"{low:g} or more"
        raise UsageError(f"{name} is {show(value)}; it is a number, {most}")


def _over(name: str, low: float, high: float) -> tuple[tuple[str, Bound], ...]:
    return ((name, (low, high)),)


def path_matches(*patterns: str) -> Condition:
    """A contended path matches one of these: `/networks/*/ip`, `networks[*].ip`, `/billing/**`."""
    if not patterns:
        raise UsageError("path names no pattern; give at least one, such as /billing/*")
    tests = [pattern_test(pattern) for pattern in patterns]
    normal = tuple(pointer_pattern(pattern) for pattern in patterns)

    def test(conflict: Conflict, path: str, facts: Facts) -> bool:
        if path:
            return any(each(path) for each in tests)
        return any(each(contended) for contended in conflict.paths for each in tests)

    return Condition((Atom(f"path matches {' or '.join(normal)}", test, (), normal),))


def resource_matches(*patterns: str) -> Condition:
    """The resource id, cut at its slashes, matches: `vm/*`, `cfg/**`."""
    if not patterns:
        raise UsageError("resource names no pattern; give at least one, such as vm/**")
    tests = [pattern_test("/" + pattern) for pattern in patterns]
    return Condition(
        (
            Atom(
                f"resource matches {' or '.join(patterns)}",
                lambda c, p, f: any(test("/" + c.resource_id) for test in tests),
            ),
        )
    )


def kind_is(*kinds: str) -> Condition:
    """The kind of the resource: vm, map, register, ..."""
    wanted = frozenset(kinds)
    if not wanted:
        raise UsageError("kind names none; give one, such as vm")
    shown = " or ".join(sorted(wanted))
    return Condition((Atom(f"kind is {shown}", lambda c, p, f: c.kind in wanted, (("kind", wanted),)),))


def region_is(*regions: str) -> Condition:
    """The resource, or a writer (metadata["region"]), is in one of these regions."""
    wanted = frozenset(regions)
    if not wanted:
        raise UsageError("region names none; give one, such as eu")

    def test(conflict: Conflict, path: str, facts: Facts) -> bool:
        return facts.region in wanted or any(
            v.metadata.get("region") in wanted for v in conflict.versions if v.metadata
        )

    return Condition((Atom(f"region is {' or '.join(sorted(wanted))}", test),))


def writer_is(*writers: str) -> Condition:
    """One of these wrote one of the versions."""
    wanted = frozenset(writers)
    if not wanted:
        raise UsageError("writer names none; give one")

    def test(conflict: Conflict, path: str, facts: Facts) -> bool:
        return any(version.origin in wanted for version in conflict.versions)

    return Condition((Atom(f"writer is {' or '.join(sorted(wanted))}", test),))


def tag_is(*tags: str) -> Condition:
    """The resource has one of these tags: in the facts, or, of a vm, as a leaf /tags/..."""
    wanted = frozenset(tags)
    if not wanted:
        raise UsageError("tag names none; give one")
    leaves = frozenset("/tags/" + tag.replace("~", "~0").replace("/", "~1") for tag in wanted)

    def test(conflict: Conflict, path: str, facts: Facts) -> bool:
        if not wanted.isdisjoint(facts.tags) or not leaves.isdisjoint(facts.leaves):
            return True
        held = (version.value for version in conflict.siblings.get("", ()))
        return any(
            not wanted.isdisjoint(map(str, value.get("tags", ()))) for value in held if isinstance(value, Mapping)
        )

    return Condition((Atom(f"tag is {' or '.join(sorted(wanted))}", test),))


def contended(*kinds: str) -> Condition:
    """Somebody else claims the same exclusive thing: an ip, a mac, a host-slot; any, if none is named."""
    prefixes = tuple(kind + ":" for kind in kinds) or ("",)
    shown = " or ".join(kinds) or "something exclusive"
    return Condition(
        (Atom(f"contended is {shown}", lambda c, p, f: any(x.resource.startswith(prefixes) for x in c.contentions)),)
    )


def invariant_broken(*names: str) -> Condition:
    """One of these invariants is broken; any, if none is named."""
    wanted = frozenset(names)
    shown = " or ".join(sorted(wanted)) or "any"
    return Condition(
        (Atom(f"broken invariant is {shown}", lambda c, p, f: any(not wanted or n in wanted for n, _ in c.broken)),)
    )


def auto_resolvable(wanted: bool = True) -> Condition:
    """Whether nobody has to look."""
    words = "nobody has to look" if wanted else "somebody has to look"
    bound = frozenset((wanted,))
    return Condition((Atom(words, lambda c, p, f: c.auto_resolvable is wanted, (("auto_resolvable", bound),)),))


def vm_running(wanted: bool = True) -> Condition:
    """A version, or what is uncontended, holds the vm to be running."""

    def test(conflict: Conflict, path: str, facts: Facts) -> bool:
        return conflict.kind == "vm" and _running(conflict, facts) is wanted

    words = "the vm is running" if wanted else "the vm is not running"
    return Condition((Atom(words, test, (("kind", frozenset(("vm",))),)),))


def _running(conflict: Conflict, facts: Facts) -> bool:
    if facts.leaves.get("/power_state") == "running":
        return True
    if any(version.value == "running" for version in conflict.siblings.get("/power_state", ())):
        return True
    whole = (version.value for version in conflict.siblings.get("", ()))
    return any(isinstance(value, Mapping) and value.get("power_state") == "running" for value in whole)


def value_is(path: str, value: Any) -> Condition:
    """A version writes this value at this path, or it is an uncontended leaf."""
    pointer = pointer_pattern(path)

    def test(conflict: Conflict, _: str, facts: Facts) -> bool:
        if pointer in facts.leaves and same(facts.leaves[pointer], value):
            return True
        return any(same(version.value, value) for version in conflict.siblings.get(pointer, ()))

    return Condition((Atom(f"{pointer} is {show(value)}", test),))


def words_of(value: Any) -> tuple[Any, ...]:
    """One or several, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


BY_NAME: Final[Mapping[str, Callable[[Any], Condition]]] = {
    "type": lambda value: type_is(*words_of(value)),
    "severity": lambda value: severity_is(*words_of(value)),
    "severity_at_least": lambda value: severity_at_least(value),
    "complexity_over": lambda value: complexity_over(value),
    "complexity_at_most": lambda value: complexity_at_most(value),
    "siblings_over": lambda value: siblings_over(value),
    "age_over_ms": lambda value: age_over(value),
    "path": lambda value: path_matches(*words_of(value)),
    "resource": lambda value: resource_matches(*words_of(value)),
    "kind": lambda value: kind_is(*words_of(value)),
    "region": lambda value: region_is(*words_of(value)),
    "writer": lambda value: writer_is(*words_of(value)),
    "tag": lambda value: tag_is(*words_of(value)),
    "contended": lambda value: contended(*() if value is True else words_of(value)),
    "invariant_broken": lambda value: invariant_broken(*() if value is True else words_of(value)),
    "auto_resolvable": lambda value: auto_resolvable(value),
    "vm_running": lambda value: vm_running(value),
}
"""What a `when` table of a policy file may ask, by key."""

_FLAGS: Final = frozenset(("auto_resolvable", "vm_running"))
_NUMBERS: Final = frozenset(("complexity_over", "complexity_at_most", "siblings_over", "age_over_ms"))


def condition(name: str, value: Any) -> Condition:
    """The ready-made condition of a name with an argument. Raises UsageError."""
    if name not in BY_NAME:
        raise UsageError(f"{name} is no condition; known are all, any, not, {', '.join(BY_NAME)}")
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {show(value)}; it is true or false")
    elif name not in _NUMBERS:
        words: Iterable[Any] = words_of(value)
        if not (name in ("contended", "invariant_broken") and value is True) and not all(
            isinstance(word, str) for word in words
        ):
            raise UsageError(f"{name} is {show(value)}; it is a string or a list of strings")
    return BY_NAME[name](value)
