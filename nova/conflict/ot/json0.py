"""Operations on a tree of dicts, lists, strings and numbers, in the json0 format.

An operation is a list of components that happen one after the other. `p` is the path of keys and indices to what a
component changes; the rest says how:

    {"p": [.., key], "oi": new}              set a key of a dict        {"p": [.., i], "li": new}             insert
    {"p": [.., key], "od": old}              remove it                  {"p": [.., i], "ld": old}             delete
    {"p": [.., key], "od": old, "oi": new}   replace it                 {"p": [.., i], "ld": old, "li": new}  replace
    {"p": [..], "na": number}                add to a number            {"p": [.., i], "lm": j}               move to j
    {"p": [.., at], "si": text}              insert in a string         {"p": [.., at], "sd": text}           delete
    {"p": [..], "t": name, "o": op}          an operation of another type; "text0" edits strings

The path [] with oi and od is the whole document. Old values make an operation invertible; they are believed, not
compared. Positions in strings count code points. Values are shared between operations and documents, never changed.

`transform` crosses two operations component by component: each of one side with each of the other. When both replace,
the left side wins; what is done inside something that the other removed is dropped, and the removed value that a
component carries is kept up to date, so that its inverse brings back what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from nova.conflict.ot.text import Side, is_left, show
from nova.errors import LimitError, UsageError

Component: TypeAlias = dict[str, Any]
Op: TypeAlias = list[Component]

COMPONENTS_MAX: Final = 1_000
DEPTH_MAX: Final = 500

_FORMS: Final = (
    {"oi"},
    {"od"},
    {"od", "oi"},
    {"li"},
    {"ld"},
    {"ld", "li"},
    {"lm"},
    {"na"},
    {"si"},
    {"sd"},
    {"t", "o"},
)


class Subtype(Protocol):
    """What `register` takes: operations on the values below a path. Those that are lists are dropped when empty."""

    @property
    def name(self) -> str: ...
    def apply(self, value: Any, op: Any) -> Any: ...
    def compose(self, a: Any, b: Any) -> Any: ...
    def transform(self, op: Any, other: Any, side: Side) -> Any: ...
    def invert(self, op: Any) -> Any: ...


SUBTYPES: Final[dict[str, Any]] = {}


def register(subtype: Any) -> None:
    """Register a type under its name, for components with `t`. Every replica must know the same ones."""
    if not isinstance(getattr(subtype, "name", None), str) or not subtype.name:
        raise UsageError(f"{show(subtype)} is no type; it needs a name, apply, compose, transform and invert")
    SUBTYPES[subtype.name] = subtype


def check(op: object) -> None:
    """Raise UsageError or LimitError if `op` is no json0 operation."""
    if not isinstance(op, (list, tuple)):
        raise UsageError(f"a json0 operation is a list of components, not {show(op)}")
    if len(op) > COMPONENTS_MAX:
        raise LimitError(f"the json0 operation has {len(op)} components; it may have {COMPONENTS_MAX}: split it")
    for at, component in enumerate(op):
        _check_component(component, f"component {at}")


def apply(doc: Any, op: Sequence[Component]) -> Any:
    """The document after the operation. Raises UsageError if it has not what the operation changes."""
    check(op)
    for component in op:
        doc = _apply(doc, component)
    return doc


def normalize(op: Sequence[Component]) -> Op:
    """The same operation, neighbours that act on the same place merged."""
    check(op)
    out: Op = []
    for component in op:
        _append(out, component)
    return out


def compose(a: Sequence[Component], b: Sequence[Component]) -> Op:
    """One operation that does what a and then b do."""
    check(a)
    check(b)
    out = list(a)
    for component in b:
        _append(out, component)
    return out


def invert(op: Sequence[Component]) -> Op:
    """The operation that undoes `op`."""
    check(op)
    return [_inverse(component) for component in reversed(op)]


def transform(op: Sequence[Component], other: Sequence[Component], side: Side) -> Op:
    """`op` for the document that `other` has changed; where both want the same place, the left side wins."""
    check(op)
    check(other)
    if is_left(side):
        return cross(op, other, _transform, _append)[0]
    return cross(other, op, _transform, _append)[1]


def cross(
    lefts: Sequence[Any],
    rights: Sequence[Any],
    one: Callable[[Any, Any, bool], list[Any]],
    append: Callable[[list[Any], Any], None],
) -> tuple[list[Any], list[Any]]:
    """Both sides transformed past each other: (lefts after rights, rights after lefts).

    one(a, b, left) is component a after component b, as none, one or several; append joins what comes out.
    """
    if not rights or not lefts:
        return list(lefts), list(rights)
    done: list[Any] = []
    for right in rights:
        pending = [right]
        after: list[Any] = []
        for at, left in enumerate(lefts):
            if not pending:  # what is left has nothing more to pass
                for rest in lefts[at:]:
                    append(after, rest)
                break
            if len(pending) == 1:
                now, pending = one(left, pending[0], True), one(pending[0], left, False)
            else:
                now, pending = cross([left], pending, one, append)
            for piece in now:
                append(after, piece)
        lefts = after
        for piece in pending:
            append(done, piece)
    return list(lefts), done


# ------------------------------------------------------------------------------------------------ components


def _check_component(component: Any, where: str) -> None:
    if not isinstance(component, dict) or "p" not in component:
        raise UsageError(f"{where} is {show(component)}; it is a dict with the path 'p'")
    path = component["p"]
    if not isinstance(path, (list, tuple)):
        raise UsageError(f"{where} has the path {show(path)}; a path is a list of keys and indices")
    if len(path) > DEPTH_MAX:
        raise LimitError(f"the path of {where} is {len(path)} deep; the most is {DEPTH_MAX}")
    for step in path:
        if not isinstance(step, str) and not _is_index(step):
            raise UsageError(f"the path of {where} holds {show(step)}; keys are str and indices ints from 0")
    form = component.keys() - {"p"}
    if form not in _FORMS:
        raise UsageError(f"{where} has {', '.join(sorted(map(str, form))) or 'no change'}; see the forms of json0")
    if not path and not form <= {"oi", "od", "na", "t", "o"}:
        raise UsageError(f"{where} has {', '.join(sorted(form))} with the path []; only the whole document is there")
    if "na" in form and not _is_number(component["na"]):
        raise UsageError(f"{where} adds {show(component['na'])}; 'na' is a number")
    for key in ("si", "sd"):
        if key in form and not isinstance(component[key], str):
            raise UsageError(f"{where} has {key} {show(component[key])}; it is a str")
    if "lm" in form and not _is_index(component["lm"]):
        raise UsageError(f"{where} moves to {show(component['lm'])}; 'lm' is an index from 0")
    if form & {"li", "ld", "lm"} and not _is_index(path[-1]):
        raise UsageError(f"{where} changes a list at {show(path[-1])}; an index is an int from 0")
    if form & {"si", "sd"} and not _is_index(path[-1]):
        raise UsageError(f"{where} changes a string at {show(path[-1])}; a position is an int from 0")
    if "t" in form:
        _subtype(component["t"])


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _subtype(name: Any) -> Any:
    try:
        return SUBTYPES[name]
    except (KeyError, TypeError):
        known = ", ".join(sorted(SUBTYPES))
        raise UsageError(f"type {show(name)} is unknown; known are {known}; register it first") from None


def _apply(doc: Any, component: Component) -> Any:
    if "si" in component or "sd" in component:
        component = _as_text(component)
    path = component["p"]
    if "na" in component or "t" in component:
        return _changed(doc, path, len(path), lambda value: _edited(value, component))
    if not path:
        return component.get("oi")
    return _changed(doc, path, len(path) - 1, lambda container: _stirred(container, path[-1], component))


def _changed(doc: Any, path: Sequence[Any], size: int, change: Callable[[Any], Any]) -> Any:
    """The document with what is at path[:size] changed. Only what lies on the path is copied."""
    above = []
    for at in range(size):
        above.append(doc)
        doc = _child(doc, path[at], path[: at + 1])
    value = change(doc)
    for at in reversed(range(size)):
        copy: Any = above[at].copy()
        copy[path[at]] = value
        value = copy
    return value


def _child(container: Any, step: Any, path: Sequence[Any]) -> Any:
    if isinstance(container, list) and _is_index(step) and step < len(container):
        return container[step]
    if isinstance(container, dict) and isinstance(step, str) and step in container:
        return container[step]
    raise UsageError(f"nothing is at {show_path(path)} of the document: transform the operation first")


def show_path(path: Sequence[Any]) -> str:
    steps = "/".join(map(str, path[-8:]))
    return f"'/{steps}'" if len(path) <= 8 else f"'.../{steps}'"


def _edited(value: Any, component: Component) -> Any:
    if "t" in component:
        return _subtype(component["t"]).apply(value, component["o"])
    if not _is_number(value):
        raise UsageError(f"{show(value)} at {show_path(component['p'])} is no number to add to")
    return value + component["na"]


def _stirred(container: Any, key: Any, component: Component) -> Any:
    """A copy of a list or dict after the component changed the entry `key`."""
    where = show_path(component["p"])
    if "oi" in component or "od" in component:
        if not isinstance(container, dict) or not isinstance(key, str):
            raise UsageError(f"{where} is no key of a dict, as 'oi' and 'od' need")
        changed = dict(container)
        if "oi" in component:
            changed[key] = component["oi"]
        else:
            changed.pop(key, None)
        return changed
    if not isinstance(container, list):
        raise UsageError(f"{where} is no place in a list, as 'li', 'ld' and 'lm' need")
    items = list(container)
    if key > len(items) - (component.keys() != {"p", "li"}):
        raise UsageError(f"{where} is beyond the list, which has {len(items)} items: transform the operation first")
    if "lm" in component:
        if component["lm"] >= len(items):
            raise UsageError(f"{where} moves to {component['lm']} of {len(items)} items: transform the operation first")
        items.insert(component["lm"], items.pop(key))
    elif "ld" not in component:
        items.insert(key, component["li"])
    elif "li" in component:
        items[key] = component["li"]
    else:
        del items[key]
    return items


def _inverse(component: Component) -> Component:
    path = component["p"]
    if "t" in component:
        return {**component, "o": _subtype(component["t"]).invert(component["o"])}
    if "na" in component:
        return {"p": path, "na": -component["na"]}
    if "lm" in component:
        return {"p": [*path[:-1], component["lm"]], "lm": path[-1]}
    return {"p": path, **{key[0] + ("d" if key[1] == "i" else "i"): component[key] for key in component.keys() - {"p"}}}


def _as_text(component: Component) -> Component:
    """si and sd as what they are short for."""
    if "t" in component:
        return component
    kind = "si" if "si" in component else "sd"
    return {"p": component["p"][:-1], "t": "text0", "o": [{"p": component["p"][-1], kind[1]: component[kind]}]}


def _as_short(component: Component) -> list[Component]:
    return [{"p": [*component["p"], c["p"]], **{"s" + key: c[key] for key in c if key != "p"}} for c in component["o"]]


def _append(out: Op, component: Component) -> None:
    """Put a component at the end, joined with the last one if they change the same place."""
    if not out:
        out.append(component)
        return
    last = out[-1]
    short = _is_short(last) and _is_short(component)
    if short:
        last, component = _as_text(last), _as_text(component)
    if list(component["p"]) != list(last["p"]):
        out.append(_as_short(component)[0] if short else component)
        return
    if "t" in component and component["t"] == last.get("t"):
        both = {**last, "o": _subtype(component["t"]).compose(last["o"], component["o"])}
        out.pop()
        out += _as_short(both) if short else [both]
    elif "na" in component and "na" in last:
        out[-1] = {**last, "na": last["na"] + component["na"]}
    elif "li" in last and "ld" in component and "li" not in component and same(last["li"], component["ld"]):
        _without_insert(out, "ld", "li")
    elif "od" in last and "oi" not in last and "oi" in component and "od" not in component:
        out[-1] = {**last, "oi": component["oi"]}
    elif "oi" in last and "od" in component:
        if "oi" in component:
            out[-1] = {**last, "oi": component["oi"]}
        else:
            _without_insert(out, "od", "oi")
    elif component.get("lm") != component["p"][-1] if component["p"] and "lm" in component else True:
        out.append(component)


def _without_insert(out: Op, removed: str, inserted: str) -> None:
    last = out.pop()
    if removed in last:
        out.append({key: last[key] for key in last if key != inserted})


def _is_short(component: Component) -> bool:
    return "si" in component or "sd" in component


def same(a: Any, b: Any) -> bool:
    """Whether two scalars are one JSON value; containers are not looked into."""
    return type(a) is type(b) and not isinstance(a, (list, dict)) and bool(a == b)


# ------------------------------------------------------------------------------------------------ one past another


def _span(component: Component) -> int:
    """The length of the path, and one more for what changes the value itself and not its place."""
    return len(component["p"]) + ("na" in component or "t" in component)


def _meeting(outer: Component, inner: Component) -> int | None:
    """The index in both paths at which `outer` names its entry, if `inner` is in the same container or below it.

    -1 if outer is the whole document.
    """
    at, depth = _span(outer) - 1, _span(inner) - 1
    if at < 0:
        return -1
    if at > depth or list(outer["p"][:at]) != list(inner["p"][:at]):
        return None
    return at


def _step(component: Component, at: int) -> Any:
    path = component["p"]
    return path[at] if 0 <= at < len(path) else None


def _moved(component: Component, at: int, index: int) -> Component:
    path = component["p"]
    return component if path[at] == index else {**component, "p": [*path[:at], index, *path[at + 1 :]]}


def _transform(c: Component, other: Component, left: bool) -> list[Component]:
    """c for the document that `other` has changed."""
    c = _kept_up(c, other)
    at = _meeting(other, c)
    if at is None:
        return [c]
    beside = _span(c) == _span(other)  # both change entries of one container
    if "t" in other or _is_short(other):
        return _past_subtype(c, other, left)
    if "oi" in other or "od" in other:
        return _past_entry(c, other, at, beside, left)
    if "lm" in other:
        return _past_move(c, other, at, beside, left)
    if "ld" in other and "li" in other:
        return _past_replacement(c, other, at, beside, left)
    if "li" in other:
        return _past_insertion(c, other, at, beside, left)
    if "ld" in other:
        return _past_deletion(c, other, at, beside)
    return [c]


def _kept_up(c: Component, other: Component) -> Component:
    """c with the value that it removes as `other` leaves it."""
    gone = "ld" if "ld" in c else "od" if "od" in c else None
    if gone is None or _span(other) <= _span(c):
        return c
    at = _meeting(c, other)
    if at is None or _step(c, at) != _step(other, at):
        return c
    inner = {**other, "p": list(other["p"][_span(c) :])}
    return {**c, gone: _apply(c[gone], inner)}


def _past_subtype(c: Component, other: Component, left: bool) -> list[Component]:
    short, past = _is_short(c), _as_text(other)
    inner = _as_text(c) if short or "t" in c else c
    if inner.get("t") != past["t"] or list(inner["p"]) != list(past["p"]):
        return [c]
    op = _subtype(past["t"]).transform(inner["o"], past["o"], "left" if left else "right")
    if short:
        return _as_short({**inner, "o": op})
    return [] if isinstance(op, (list, tuple)) and not op else [{**c, "o": op}]


def _past_entry(c: Component, other: Component, at: int, beside: bool, left: bool) -> list[Component]:
    if _step(c, at) != _step(other, at):
        return [c]
    if "oi" not in other:  # removed: what would be put there still is, the rest has no place
        return [{key: c[key] for key in c if key != "od"}] if beside and "oi" in c else []
    if "oi" not in c or (not beside and "od" in other):
        return []
    if not left:
        return []
    # The left side wins and replaces what the right side has put there.
    return [{"p": c["p"], "od": other["oi"], "oi": c["oi"]}] if beside else [{"p": c["p"], "od": other["oi"]}, c]


def _past_replacement(c: Component, other: Component, at: int, beside: bool, left: bool) -> list[Component]:
    if _step(c, at) != _step(other, at):
        return [c]
    if not beside:
        return []
    if "ld" not in c:
        return [c]
    return [{**c, "ld": other["li"]}] if "li" in c and left else []


def _past_insertion(c: Component, other: Component, at: int, beside: bool, left: bool) -> list[Component]:
    index, new = _step(c, at), other["p"][at]
    if not isinstance(index, int):
        return [c]
    ahead = new < index or (new == index and not (beside and "li" in c and "ld" not in c and left))
    moved = _moved(c, at, index + ahead)
    if beside and "lm" in c and new <= c["lm"]:
        moved = {**moved, "lm": c["lm"] + 1}
    return [moved]


def _past_deletion(c: Component, other: Component, at: int, beside: bool) -> list[Component]:
    index, gone = _step(c, at), other["p"][at]
    if not isinstance(index, int):
        return [c]
    if beside and "lm" in c:
        if index == gone:
            return []
        target = c["lm"]
        if gone < target or (gone == target and index < target):
            c = {**c, "lm": target - 1}
    if gone < index:
        return [_moved(c, at, index - 1)]
    if gone > index:
        return [c]
    if not beside:
        return []
    if "ld" not in c:
        return [c]
    return [{"p": c["p"], "li": c["li"]}] if "li" in c else []


def _past_move(c: Component, other: Component, at: int, beside: bool, left: bool) -> list[Component]:
    index, start, end = _step(c, at), other["p"][at], other["lm"]
    if not isinstance(index, int):
        return [c]
    if beside and "lm" in c:
        return _move_past_move(c, at, start, end, left)
    if beside and "li" in c and "ld" not in c:  # a gap between items, which no move takes along
        return [_moved(c, at, index - (index > start) + (index > end))]
    return [_moved(c, at, _item_after_move(index, start, end))]


def _item_after_move(index: int, start: int, end: int) -> int:
    """Where the item at `index` is after the one at `start` has moved to `end`."""
    if index == start:
        return end
    return index - (index > start) + (index > end or (index == end and start > end))


def _move_past_move(c: Component, at: int, start: int, end: int, left: bool) -> list[Component]:
    source, target = c["p"][at], c["lm"]
    if start == end:
        return [c]
    if source == start:  # both move one item: the left side says where to
        if not left:
            return []
        return [{**_moved(c, at, end), "lm": end if source == target else target}]
    moved = _item_after_move(source, start, end)
    if source == target == end and start > end:
        return [{**_moved(c, at, moved), "lm": target + 1}]  # the move of an item to where it is stays one
    wanted = target - (target > start or (target == start and target > source))
    if target > end:
        wanted += 1
    elif target == end:
        if (end > start) == (target > source) and end != start and target != source:
            wanted += not left  # both go the same way to the same place
        elif target > source:
            wanted += 1
        elif target == start:
            wanted -= 1
    return [{**_moved(c, at, moved), "lm": wanted}]


# ------------------------------------------------------------------------------------------------ strings


class Text0:
    """Edits of a string one after the other: {"p": position, "i": text} inserts, {"p": position, "d": text} deletes."""

    name = "text0"

    def check(self, op: object) -> None:
        if not isinstance(op, (list, tuple)):
            raise UsageError(f"a text0 operation is a list, not {show(op)}")
        if len(op) > COMPONENTS_MAX:
            raise LimitError(f"the text0 operation has {len(op)} components; it may have {COMPONENTS_MAX}: split it")
        for at, c in enumerate(op):
            form = c.keys() - {"p"} if isinstance(c, dict) else set()
            if form not in ({"i"}, {"d"}) or not _is_index(c.get("p")) or not isinstance(c[next(iter(form))], str):
                raise UsageError(f"component {at} is {show(c)}; it is {{'p': position, 'i' or 'd': text}}")

    def apply(self, value: Any, op: Any) -> str:
        self.check(op)
        if not isinstance(value, str):
            raise UsageError(f"{show(value)} is no string to edit")
        for c in op:
            at = c["p"]
            text = c.get("i", c.get("d"))
            if at > len(value):
                raise UsageError(f"position {at} is beyond the string, which has {len(value)}: transform it first")
            if "i" in c:
                value = value[:at] + text + value[at:]
            elif value[at : at + len(text)] == text:
                value = value[:at] + value[at + len(text) :]
            else:
                raise UsageError(f"{show(text)} is to go at {at} of {show(value)}, where it is not: transform it first")
        return str(value)

    def compose(self, a: Any, b: Any) -> list[Component]:
        self.check(a)
        self.check(b)
        out = list(a)
        for c in b:
            self.append(out, c)
        return out

    def invert(self, op: Any) -> list[Component]:
        self.check(op)
        return [{"p": c["p"], "d": c["i"]} if "i" in c else {"p": c["p"], "i": c["d"]} for c in reversed(op)]

    def transform(self, op: Any, other: Any, side: Side) -> list[Component]:
        self.check(op)
        self.check(other)
        left = is_left(side)
        lefts, rights = ((op, other), (other, op))[not left]
        return cross(lefts, rights, self.one, self.append)[not left]

    def append(self, out: list[Component], c: Component) -> None:
        if not (c.get("i") or c.get("d")):
            return
        last = out[-1] if out else {}
        at = c["p"]
        if "i" in last and "i" in c and last["p"] <= at <= last["p"] + len(last["i"]):
            cut = at - last["p"]
            out[-1] = {"p": last["p"], "i": last["i"][:cut] + c["i"] + last["i"][cut:]}
        elif "d" in last and "d" in c and at <= last["p"] <= at + len(c["d"]):
            cut = last["p"] - at
            out[-1] = {"p": at, "d": c["d"][:cut] + last["d"] + c["d"][cut:]}
        else:
            out.append(c)

    def one(self, c: Component, other: Component, left: bool) -> list[Component]:
        out: list[Component] = []
        at, there = c["p"], other["p"]
        if "i" in c:
            self.append(out, {"p": self._position(at, other, not left), "i": c["i"]})
        elif "i" in other:
            cut = min(max(there - at, 0), len(c["d"]))
            self.append(out, {"p": at, "d": c["d"][:cut]})
            # The first part is gone when the second one goes.
            self.append(out, {"p": at + len(other["i"]), "d": c["d"][cut:]})
        else:
            end, gone = at + len(c["d"]), there + len(other["d"])
            rest = c["d"][: max(there - at, 0)] + c["d"][max(gone - at, 0) :]
            self.append(out, {"p": self._position(at, other, False) if end > there else at, "d": rest})
        return out

    @staticmethod
    def _position(at: int, other: Component, behind: bool) -> int:
        there = other["p"]
        if "i" in other:
            return at + len(other["i"]) if there < at or (there == at and behind) else at
        return at if at <= there else max(there, at - len(other["d"]))


TEXT0: Final = Text0()
register(TEXT0)
