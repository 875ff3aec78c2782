"""Is a history linearizable: is there one order of its calls that fits real time and a sequential model?

A call that never came back may have taken effect at any time after it began, or never. Histories are split by key
first: one is linearizable if the part of each key is (Herlihy & Wing 1990). The search is that of Wing & Gong (1993)
with the memory of Lowe (2017), compiled; what a model answers to a state and a call is asked once. It is exponential at
worst; what it may remember is bounded, and beyond that the verdict is that nobody knows. It tells configurations apart
by 128 bits of hash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec

from nova._native.linearize import search
from nova.errors import UsageError

ENTRIES_MAX: Final = 20_000_000
CALLS_MAX: Final = 1 << 28
REFUSED: Final = object()
"""What a model returns for a call that cannot have that output."""


class Call(msgspec.Struct, frozen=True):
    """One call of a client.

    begin, end  instants on one clock; `end` None: it never came back, or nobody knows what became of it
    input       what was asked, as the model has it; `output` what was answered, not looked at without an end
    """

    begin: int
    end: int | None
    input: tuple[Any, ...]
    output: Any = None
    key: Hashable = None


class Model(Protocol):
    """A sequential object. States are hashable."""

    @property
    def initial(self) -> Hashable: ...

    def step(self, state: Any, call: Call) -> Any:
        """The state after the call, or REFUSED if the object would not have given that output."""


class Register:
    """("read",), ("write", value), ("cas", old, new); an output of `cas` is whether it replaced."""

    initial: Hashable = None

    def step(self, state: Any, call: Call) -> Any:
        match call.input:
            case ("read",):
                return state if call.end is None or state == call.output else REFUSED
            case ("write", value):
                return value
            case ("cas", old, new):
                if call.end is not None and (state == old) != bool(call.output):
                    return REFUSED
                return new if state == old else state
        raise UsageError(f"a register knows read, write and cas, not {call.input!r}")


class KeyValue:
    """("get",), ("put", text), ("append", text) on the text of one key, "" at first."""

    initial: Hashable = ""

    def step(self, state: Any, call: Call) -> Any:
        match call.input:
            case ("get",):
                return state if call.end is None or state == call.output else REFUSED
            case ("put", text):
                return text
            case ("append", text):
                return state + text
        raise UsageError(f"a key knows get, put and append, not {call.input!r}")


class Verdict(msgspec.Struct, frozen=True):
    """What was found.

    ok      None: nobody knows, the limit was reached
    key     of the first part that is not linearizable
    prefix  of that part, the longest order that was found to fit
    stuck   the calls that had ended when it could go no further, and none of which fits behind it
    looked  configurations looked at, over all keys
    """

    ok: bool | None
    key: Hashable = None
    prefix: tuple[Call, ...] = ()
    stuck: tuple[Call, ...] = ()
    looked: int = 0


def check_linearizable(history: Iterable[Call], model: Model, *, entries_max: int = ENTRIES_MAX) -> Verdict:
    """Whether there is an order; see `Verdict`.

    raises  UsageError for a call that ends before it begins, or that the model does not know
    cost    about the number of calls where few are concurrent, exponential in how many are, at worst
    """
    parts: dict[Hashable, list[Call]] = {}
    for call in history:
        if call.end is not None and call.end < call.begin:
            raise UsageError(f"a call begins at {call.begin} and ends at {call.end}; it ends after it begins")
        parts.setdefault(call.key, []).append(call)
    looked, unknown = 0, False
    for key, calls in parts.items():
        if len(calls) > CALLS_MAX:
            raise UsageError(f"{len(calls)} calls of one key; the limit is {CALLS_MAX}")
        ok, order, entries = search(
            _events(calls), [call.end is None for call in calls], _asked(model, calls), entries_max
        )
        looked += entries
        if ok is False:
            return Verdict(False, key, tuple(calls[i] for i in order), _stuck(calls, order), looked)
        unknown = unknown or ok is None
    return Verdict(None if unknown else True, looked=looked)


def _events(calls: list[Call]) -> list[int]:
    """Beginnings before ends of one instant: who cannot be told apart in time may stand either way."""
    times: list[tuple[float, int, int]] = []
    for number, call in enumerate(calls):
        times.append((call.begin, 0, 2 * number))
        times.append((float("inf") if call.end is None else call.end, 1, 2 * number + 1))
    return [event for _, _, event in sorted(times)]


def _asked(model: Model, calls: list[Call]) -> Callable[[int, int], int]:
    """The model over numbers: states are numbered as they come up."""
    states: list[Any] = [model.initial]
    numbers: dict[Any, int] = {model.initial: 0}

    def step(state: int, call: int) -> int:
        after = model.step(states[state], calls[call])
        if after is REFUSED:
            return -1
        number = numbers.setdefault(after, len(states))
        if number == len(states):
            states.append(after)
        return number

    return step


def _stuck(calls: list[Call], order: list[int]) -> tuple[Call, ...]:
    left = set(range(len(calls))) - set(order)
    ends = sorted(calls[i].end for i in left if calls[i].end is not None)  # type: ignore[type-var]
    if not ends:
        return ()
    first = ends[0]
    return tuple(calls[i] for i in sorted(left, key=lambda i: calls[i].begin) if calls[i].begin <= (first or 0))


# ------------------------------------------------------------------------------------------------ files

_JEPSEN = re.compile(r"^INFO\s+jepsen\.util - (\d+)\s+:(invoke|ok|fail|info)\s+:(read|write|cas)\s+(.*?)\s*$")
_EDN = re.compile(
    r'^\{:process (\d+), :type :(invoke|ok|fail|info), :f :(get|put|append), :key "([^"]*)", :value (.*)\}$'
)


def read_history(text: str, name: str = "history") -> tuple[list[Call], Model]:
    """A recorded history and its model, by its form:

    - lines `INFO jepsen.util - PROCESS :invoke|:ok|:fail|:info :read|:write|:cas VALUE`: a register
    - lines `{:process N, :type :invoke, :f :get|:put|:append, :key "k", :value "v"}`: texts by key
    - JSON Lines `{"begin": 1, "end": 2, "input": ["write", 3], "output": null, "key": "k"}`: either, by the inputs

    raises  UsageError with the line that is none of these
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UsageError(f"{name} is empty; give a history")
    if lines[0][1].startswith("{:"):
        return _paired(_edn(lines, name)), KeyValue()
    if lines[0][1].startswith("{"):
        return _json(lines, name)
    return _paired(_jepsen(lines, name)), Register()


_Event = tuple[int, str, tuple[Any, ...], Any, Hashable]
"""process, type, input, output, key"""


def _jepsen(lines: list[tuple[int, str]], name: str) -> Iterable[_Event]:
    for number, line in lines:
        found = _JEPSEN.match(line)
        if found is None:
            if line.startswith("INFO") and ":nemesis" not in line and "jepsen.util" in line:
                raise UsageError(f"{name}, line {number}: {line[:80]!r} is no event of a register")
            continue
        process, type_, what, value = int(found[1]), found[2], found[3], found[4]
        if what == "read":
            yield process, type_, ("read",), _number(value), None
        elif what == "write":
            yield process, type_, ("write", _number(value)), None, None
        else:
            old, new = (_number(part) for part in value.strip("[]").split()) if value.startswith("[") else (None, None)
            yield process, type_, ("cas", old, new), type_ == "ok", None


def _number(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdigit() else None


def _edn(lines: list[tuple[int, str]], name: str) -> Iterable[_Event]:
    for number, line in lines:
        found = _EDN.match(line)
        if found is None:
            raise UsageError(f"{name}, line {number}: {line[:80]!r} is no event of a key")
        value = None if found[5] == "nil" else found[5].strip('"')
        what: tuple[Any, ...] = ("get",) if found[3] == "get" else (found[3], value)
        yield int(found[1]), found[2], what, value if found[3] == "get" else None, found[4]


def _paired(events: Iterable[_Event]) -> list[Call]:
    """Calls of the beginnings and ends of each process. What failed did not happen; a lost read says nothing."""
    calls: list[Call] = []
    open_: dict[int, tuple[int, tuple[Any, ...], Hashable]] = {}
    for at, (process, type_, what, output, key) in enumerate(events):
        if type_ == "invoke":
            if process in open_:
                calls += _lost(*open_.pop(process))
            open_[process] = (at, what, key)
            continue
        if process not in open_:
            continue
        begin, asked, of = open_.pop(process)
        failed_cas = type_ == "fail" and asked[0] == "cas"
        if type_ == "ok" or failed_cas:
            calls.append(Call(begin, at, asked, output if type_ == "ok" else False, of))
        elif type_ == "info":
            calls += _lost(begin, asked, of)
    for begin, asked, of in open_.values():
        calls += _lost(begin, asked, of)
    return calls


def _lost(begin: int, asked: tuple[Any, ...], key: Hashable) -> list[Call]:
    return [] if asked[0] in ("read", "get") else [Call(begin, None, asked, None, key)]


def _json(lines: list[tuple[int, str]], name: str) -> tuple[list[Call], Model]:
    calls = []
    for number, line in lines:
        try:
            calls.append(msgspec.json.decode(line, type=Call))
        except (msgspec.MsgspecError, ValueError) as error:
            raise UsageError(f"{name}, line {number}: {error}") from None
    words = {call.input[0] for call in calls if call.input}
    model: Mapping[str, Model] = {"read": Register(), "write": Register(), "cas": Register()}
    return calls, next((model[word] for word in words if word in model), KeyValue())


__all__ = ["REFUSED", "Call", "KeyValue", "Model", "Register", "Verdict", "check_linearizable", "read_history"]
