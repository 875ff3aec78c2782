"""Policies in TOML. What is wrong is told with the file, the line and the mend.

name = "production"
default = "semantic"
timeout_ms = 1000

[fields]
"networks[*].ip" = "manual"

[[rules]]
name = "billing is decided by people"
when = { path = "/billing/**" }
use = "manual"
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from nova.conflict.merge.schema import Precedence
from nova.conflict.policy.conditions import BY_NAME, Condition, all_of, always, any_of, condition, not_
from nova.conflict.policy.model import AutoLimit, Escalation, Policy, PolicyError, Retry, Rule
from nova.conflict.strategies import (
    Asker,
    AutomaticRollback,
    ConsensusVote,
    Declared,
    HighestPriority,
    MultiValue,
    OperationalTransform,
    Strategy,
)
from nova.conflict.words import show
from nova.errors import ConfigError, UsageError

BYTES_MAX: Final = 1 << 20
DEPTH_MAX: Final = 32
WINDOW_S_MAX: Final = 366 * 86_400

_TOP: Final = (
    "name", "default", "timeout_ms", "retry", "fallback", "fields", "strategies", "rules", "escalations", "auto_limit",
)  # fmt: skip
_WORDS: Final = ("all", "any", "not", *BY_NAME)
Where = tuple[str | int, ...]


def policy_from_toml(text: str, file: str = "policy", *, asker: Asker | None = None) -> Policy:
    """The policy that a TOML document describes.

    file   its name, for errors
    asker  who asks the voters of a consensus_vote; None: it cannot decide, and its fallback does
    raises ConfigError: one line with file, line, value and mend
    """
    if len(text) > BYTES_MAX:
        raise ConfigError(f"{file}: {len(text)} characters; a policy has at most {BYTES_MAX}: split it")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}; strings need quotes, tables a [name] line") from None
    try:
        return _policy(document, asker)
    except PolicyError as error:
        line = line_of(text, error.where)
        place = f"{file} line {line}" if line else file
        raise ConfigError(f"{place}: {error}") from None


# ------------------------------------------------------------------------------------------------ parts


def _policy(document: Mapping[str, Any], asker: Asker | None) -> Policy:
    _keys(document, _TOP, ())
    name = _text(document, "name", (), default="")
    strategies = {each: _strategy(each, table, asker) for each, table in _table(document, "strategies", ()).items()}
    rules = [_rule(table, index) for index, table in enumerate(_tables(document, "rules"))]
    escalations = [_escalation(table, index) for index, table in enumerate(_tables(document, "escalations"))]
    return Policy(
        name,
        rules=rules,
        default=_text(document, "default", (), default="semantic"),
        fields=_names(document, "fields"),
        strategies=strategies,
        retry=_retry(_table(document, "retry", ())),
        timeout_ms=_whole(document, "timeout_ms", (), 0),
        fallback=_names(document, "fallback"),
        escalations=escalations,
        auto_limit=_auto_limit(document),
    )


def _rule(table: Mapping[str, Any], index: int) -> Rule:
    where: Where = ("rules", index)
    _keys(table, ("name", "when", "use"), where)
    when = _when(table["when"], (*where, "when")) if "when" in table else always()
    return Rule(_text(table, "name", where, default=f"number {index + 1}"), when, _text(table, "use", where))


def _escalation(table: Mapping[str, Any], index: int) -> Escalation:
    where: Where = ("escalations", index)
    _keys(table, ("name", "when", "action", "to"), where)
    when = _when(table["when"], (*where, "when")) if "when" in table else always()
    return Escalation(
        _text(table, "name", where, default=f"number {index + 1}"),
        when,
        _text(table, "action", where),
        _text(table, "to", where, default=""),
    )


def _when(table: Any, where: Where, depth: int = 0) -> Condition:
    if not isinstance(table, Mapping):
        raise PolicyError(
            f'when is {show(table)}; it is a table of conditions, such as {{ path = "/billing/*" }}', *where
        )
    if depth > DEPTH_MAX:
        raise PolicyError(f"conditions are nested {depth} deep; the limit is {DEPTH_MAX}", *where)
    found: list[Condition] = []
    for name, value in table.items():
        at: Where = (*where, name)
        if name not in _WORDS:
            raise PolicyError(_unknown(name, _WORDS, "condition"), *at)
        try:
            if name == "not":
                found.append(not_(_when(value, at, depth + 1)))
            elif name in ("all", "any"):
                if not isinstance(value, list) or not value:
                    raise PolicyError(f"{name} is {show(value)}; it is a list of at least one table", *at)
                several = [_when(each, at, depth + 1) for each in value]
                found.append(all_of(*several) if name == "all" else any_of(*several))
            else:
                found.append(condition(name, value))
        except PolicyError:
            raise
        except UsageError as error:
            raise PolicyError(str(error), *at) from None
    return all_of(*found)


def _retry(table: Mapping[str, Any]) -> Retry:
    _keys(table, ("count", "backoff_ms", "factor", "backoff_ms_max"), ("retry",))
    factor = table.get("factor", 2.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise PolicyError(f"factor is {show(factor)}; it is a number, 1 or more", "retry", "factor")
    return Retry(
        _whole(table, "count", ("retry",), 0),
        _whole(table, "backoff_ms", ("retry",), 50),
        float(factor),
        _whole(table, "backoff_ms_max", ("retry",), 5_000),
    )


def _auto_limit(document: Mapping[str, Any]) -> AutoLimit | None:
    if "auto_limit" not in document:
        return None
    where: Where = ("auto_limit",)
    table = _table(document, "auto_limit", ())
    _keys(table, ("count", "window_s", "action", "to"), where)
    window = table.get("window_s", 60)
    if isinstance(window, bool) or not isinstance(window, int | float) or not 0 < window <= WINDOW_S_MAX:
        raise PolicyError(
            f"window_s is {window!r}; it is a number of seconds, above 0 to {WINDOW_S_MAX}", *where, "window_s"
        )
    if "count" not in table:
        raise PolicyError("auto_limit has no count; say how many conflicts are too many", *where)
    return AutoLimit(
        _whole(table, "count", where, 0),
        int(window * 1000),
        _text(table, "action", where, default="require_approval"),
        _text(table, "to", where, default=""),
    )


# ------------------------------------------------------------------------------------------------ strategies


def _strategy(name: str, table: Any, asker: Asker | None) -> Strategy:
    where: Where = ("strategies", name)
    if not isinstance(table, Mapping):
        raise PolicyError(f"strategy {name!r} is {show(table)}; it is a table with `use`", *where)
    use = _text(table, "use", where)
    if use not in _MAKERS:
        raise PolicyError(_unknown(use, _MAKERS, "strategy that takes settings"), *where, "use")
    known, make = _MAKERS[use]
    _keys(table, ("use", *known), where)
    try:
        return make(name, {key: value for key, value in table.items() if key != "use"}, asker)
    except PolicyError:
        raise
    except (UsageError, TypeError) as error:
        raise PolicyError(f"strategy {name!r}: {error}", *where) from None


def _priority(name: str, given: dict[str, Any], asker: Asker | None) -> Strategy:
    priorities = given.get("priorities", {})
    if not isinstance(priorities, Mapping):
        raise UsageError(f"priorities are {show(priorities)}; they are a table of numbers by name")
    by = given.get("by", "writer")
    if not isinstance(by, str):
        raise UsageError(f"by is {show(by)}; it is writer, region or the pointer of a field")
    return HighestPriority(priorities, by=by, otherwise=None)


def _vote(name: str, given: dict[str, Any], asker: Asker | None) -> Strategy:
    voters = given.get("voters", [])
    if not isinstance(voters, list) or not voters or not all(isinstance(voter, str) for voter in voters):
        raise UsageError(f"voters are {show(voters)}; they are a list of at least one name")
    return ConsensusVote(voters, asker, otherwise=None, timeout_ms=_whole(given, "timeout_ms", ("strategies", name), 0))


def _precedence(name: str, given: dict[str, Any], asker: Asker | None) -> Strategy:
    order = given.get("order", [])
    if not isinstance(order, list):
        raise UsageError(f"order is {show(order)}; it is a list, the weakest first")
    return Declared(name, Precedence(*order))


_Maker = Callable[[str, dict[str, Any], Asker | None], Strategy]
_MAKERS: Final[Mapping[str, tuple[tuple[str, ...], _Maker]]] = {
    "highest_priority": (("priorities", "by"), _priority),
    "consensus_vote": (("voters", "timeout_ms"), _vote),
    "precedence": (("order",), _precedence),
    "multi_value": (
        ("siblings_max",),
        lambda name, given, asker: MultiValue(_whole(given, "siblings_max", ("strategies", name), 32)),
    ),
    "operational_transform": ((), lambda name, given, asker: OperationalTransform(otherwise=None)),
    "automatic_rollback": ((), lambda name, given, asker: AutomaticRollback(otherwise=None)),
}


# ------------------------------------------------------------------------------------------------ values


def _keys(table: Mapping[str, Any], known: Iterable[str], where: Where) -> None:
    for name in table:
        if name not in known:
            raise PolicyError(
                _unknown(name, known, "key of a policy" if not where else f"key of {where[0]}"), *where, name
            )


def _unknown(name: str, known: Iterable[str], what: str) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    mend = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"{name} is no {what}; {mend}"


def _text(table: Mapping[str, Any], name: str, where: Where, default: str | None = None) -> str:
    value = table.get(name, default)
    if value is None:
        raise PolicyError(f"{name} is missing in {where[0]}; give a string", *where)
    if not isinstance(value, str):
        raise PolicyError(f"{name} is {show(value)}; it is a string in quotes", *where, name)
    return value


def _whole(table: Mapping[str, Any], name: str, where: Where, default: int) -> int:
    value = table.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PolicyError(f"{name} is {show(value)}; it is a whole number, 0 or more", *where, name)
    return value


def _table(table: Mapping[str, Any], name: str, where: Where) -> Mapping[str, Any]:
    value = table.get(name, {})
    if not isinstance(value, Mapping):
        raise PolicyError(f"{name} is {show(value)}; it is a table: write [{name}]", *where, name)
    return value


def _tables(table: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise PolicyError(f"{name} is {show(value)}; it is a list of tables: write [[{name}]]", name)
    return value


def _names(document: Mapping[str, Any], name: str) -> dict[str, str]:
    table = _table(document, name, ())
    for key, value in table.items():
        if not isinstance(value, str):
            raise PolicyError(f"{key} is {show(value)}; it is the name of a strategy in quotes", name, key)
    return dict(table)


# ------------------------------------------------------------------------------------------------ lines

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]")


def line_of(text: str, where: Where) -> int | None:
    """The line, from 1, of a part of a policy: the deepest part of `where` that is written in the plain way."""
    if not where:
        return None
    lines = text.splitlines()
    start, end, depth = _section(lines, where)
    best = start
    at = start if start is not None else 0
    for part in where[depth:]:
        if isinstance(part, int):
            continue
        key = re.compile(rf"""(?:^|[\s{{,\[.])["']?{re.escape(part)}["']?\s*=""")
        found = next((i for i in range(at, end) if key.search(lines[i])), None)
        if found is None:
            continue
        best = at = found
    return None if best is None else best + 1


def _section(lines: list[str], where: Where) -> tuple[int | None, int, int]:
    """(first line of the section or None, line after it, how many parts of `where` its header stands for)."""
    table = str(where[0])
    wanted = where[1] if len(where) > 1 and isinstance(where[1], int) else None
    headers = [(i, found[2].replace('"', "").replace("'", "").replace(" ", "")) for i, line in enumerate(lines)
               if (found := _HEADER.match(line))]  # fmt: skip
    count = -1
    best: tuple[int | None, int, int] = (None, headers[0][0] if headers else len(lines), 0)
    for number, (i, name) in enumerate(headers):
        end = next((line for line, other in headers[number + 1 :] if not other.startswith(f"{table}.")), len(lines))
        if wanted is not None:
            count += name == table
            if name == table and count == wanted:
                return i, end, 2
        elif len(where) > 1 and name == f"{table}.{where[1]}":
            return i, end, 2
        elif name == table:
            best = (i, end, 1)
    return best
