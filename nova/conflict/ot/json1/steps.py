"""Operations of the json1 format, read, checked, written and applied."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, TypeAlias

from nova.conflict.detect import MISSING
from nova.conflict.ot import text
from nova.conflict.ot.text import Side, show
from nova.errors import LimitError, UsageError

Key: TypeAlias = int | str
Op: TypeAlias = list[Any] | None

DEPTH_MAX: Final = 200
CHANGES_MAX: Final = 10_000

REMOVED_UNDER: Final = 1
COLLISION: Final = 2
BLACK_HOLE: Final = 3
_WORDS: Final = {
    REMOVED_UNDER: "one side changes what the other removes",
    COLLISION: "both sides put something at the same place",
    BLACK_HOLE: "the two sides move things into each other",
}


class ConflictError(UsageError):
    """Two operations that cannot both have their way; `conflict` has the type, and op1 and op2: its parts."""

    code = "conflict"

    def __init__(self, conflict: dict[str, Any]) -> None:
        super().__init__(f"{_WORDS[conflict['type']]}: decide, or use transform_no_conflict")
        self.conflict = conflict


# ------------------------------------------------------------------------------------------------ types of edits


class _Text:
    name = "text-unicode"
    check = staticmethod(text.check)
    normalize = staticmethod(text.normalize)
    apply = staticmethod(text.apply)
    compose = staticmethod(text.compose)
    transform = staticmethod(text.transform)
    invert = staticmethod(text.invert)
    make_invertible = staticmethod(text.make_invertible)
    transform_position = staticmethod(text.transform_position)

    @staticmethod
    def is_noop(op: Any) -> bool:
        return not op


class _Number:
    name = "number"

    @staticmethod
    def check(op: Any) -> None:
        if not isinstance(op, (int, float)) or isinstance(op, bool):
            raise UsageError(f"{show(op)} is to be added; it is no number")

    @staticmethod
    def apply(value: Any, op: Any) -> Any:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise UsageError(f"{show(value)} is no number to add to")
        return value + op

    @staticmethod
    def compose(a: Any, b: Any) -> Any:
        return a + b

    @staticmethod
    def transform(op: Any, other: Any, side: Side) -> Any:
        return op

    @staticmethod
    def invert(op: Any) -> Any:
        return -op


SUBTYPES: Final[dict[str, Any]] = {"text-unicode": _Text(), "number": _Number()}


def register(subtype: Any) -> None:
    """Register a type of edits under its name: apply, compose, transform, and if it can invert."""
    if not isinstance(getattr(subtype, "name", None), str) or not subtype.name:
        raise UsageError(f"{show(subtype)} is no type; it needs a name, apply, compose, transform")
    SUBTYPES[subtype.name] = subtype


def subtype_named(name: Any) -> Any:
    try:
        return SUBTYPES[name]
    except (KeyError, TypeError):
        known = ", ".join(sorted(SUBTYPES))
        raise UsageError(f"type {show(name)} is unknown; known are {known}; register it first") from None


def normal_edit(edit: tuple[str, Any]) -> tuple[str, Any] | None:
    """The edit in normal form; None if it does nothing."""
    name, op = edit
    subtype = subtype_named(name)
    if hasattr(subtype, "normalize"):
        op = subtype.normalize(op)
    return None if hasattr(subtype, "is_noop") and subtype.is_noop(op) else (name, op)


# ------------------------------------------------------------------------------------------------ operations as trees


class Step:
    """What an operation does at one place, and below it."""

    __slots__ = ("drop", "edit", "insert", "kids", "pick", "remove", "removed", "value")

    def __init__(self) -> None:
        self.pick: Any = None
        self.remove = False
        self.removed: Any = True  # the value that is removed, if the operation carries it
        self.drop: Any = None
        self.insert = False
        self.value: Any = None
        self.edit: tuple[str, Any] | None = None
        self.kids: dict[Key, Step] = {}

    def kid(self, key: Key) -> Step:
        found = self.kids.get(key)
        if found is None:
            found = self.kids[key] = Step()
        return found

    @property
    def puts(self) -> bool:
        return self.insert or self.drop is not None

    @property
    def takes(self) -> bool:
        return self.remove or self.pick is not None

    def sorted(self) -> list[tuple[Key, Step]]:
        kids = self.kids
        return list(kids.items()) if len(kids) < 2 else sorted(kids.items(), key=key_order)


def key_order(item: tuple[Key, Any]) -> tuple[bool, Any]:
    return isinstance(item[0], str), item[0]


def parse(op: Any, *, loose: bool = False) -> Step:
    """An operation as a tree. Raises UsageError or LimitError if it is none.

    loose  branches may come in any order and meet, and slots have any numbers: what normalize brings in order
    """
    root = Step()
    if op is None:
        return root
    if not isinstance(op, (list, tuple)):
        raise UsageError(f"a json1 operation is None or a list, not {show(op)}")
    if not op:
        raise UsageError("a json1 operation has an end that changes nothing; the one that does nothing is None")
    picks: dict[int, int] = {}
    drops: dict[int, int] = {}
    left = CHANGES_MAX
    todo: list[tuple[Any, Step, int, bool]] = [(op, root, 0, True)]
    while todo:
        descent, step, depth, top = todo.pop()
        before: Any = None
        changed = False
        last: Key | None = None
        for at, item in enumerate(descent):
            if isinstance(item, (list, tuple)):
                branches = descent[at:]
                if not all(isinstance(branch, (list, tuple)) and branch for branch in branches):
                    raise UsageError(
                        "branches of a json1 operation are lists that are not empty, and nothing follows them"
                    )
                if len(branches) < 2:
                    raise UsageError("one branch alone is no branch: write its keys without a list")
                heads = [check_key(branch[0]) for branch in branches]
                if not loose and any(key_order((a, 0)) >= key_order((b, 0)) for a, b in pairwise(heads)):
                    raise UsageError(f"branches {show(list(heads))} are not in ascending order")
                todo += [(branch, step, depth, False) for branch in reversed(branches)]
                changed = True
                break
            if isinstance(item, dict):
                if isinstance(before, dict) or (at == 0 and not top):
                    raise UsageError(f"{show(item)} has no key of its own; one place has one change")
                _read_change(item, step, picks, drops)
                changed = True
            else:
                last = check_key(item)
                depth += 1
                if depth > DEPTH_MAX:
                    raise LimitError(f"the json1 operation is more than {DEPTH_MAX} deep")
                step = step.kid(last)
                changed = False
            left -= 1
            if left < 0:
                raise LimitError(f"the json1 operation has more than {CHANGES_MAX} parts: split it")
            before = item
        if not changed:
            raise UsageError("a json1 operation has an end that changes nothing; leave it out")
    if picks.keys() != drops.keys() or not (loose or sorted(picks) == list(range(len(picks)))):
        raise UsageError(f"picks {sorted(picks)} and drops {sorted(drops)} are not the same slots from 0 on")
    return root


def check_key(key: Any) -> Key:
    if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool) and key >= 0):
        return key
    raise UsageError(f"{show(key)} is no step of a path; keys are str and indices ints from 0")


def _read_change(change: dict[str, Any], step: Step, picks: dict[int, int], drops: dict[int, int]) -> None:
    known = change.keys() & {"p", "r", "d", "i", "es", "ena", "et", "e"}
    if not known or known != change.keys():
        raise UsageError(
            f"a change has {sorted(map(str, change)) or 'nothing'}; it may have p or r, d or i, es or ena or et and e"
        )
    if {"p", "r"} <= known or {"d", "i"} <= known or len(known & {"es", "ena", "et"}) > 1:
        raise UsageError(f"a change has {sorted(known)}; one of p and r, one of d and i, and one edit are the most")
    for name, slots in (("p", picks), ("d", drops)):
        if name in known:
            slot = change[name]
            if not isinstance(slot, int) or isinstance(slot, bool) or slot < 0 or slot in slots:
                raise UsageError(f"slot {show(slot)} of {name} is no number from 0 that is used once")
            slots[slot] = slot
    if (known & {"p", "r"} and step.takes) or (known & {"d", "i"} and step.puts):
        raise UsageError(f"the change {sorted(known)} meets another at its place; one place has one change")
    step.pick, step.drop = change.get("p", step.pick), change.get("d", step.drop)
    if "r" in known:
        step.remove, step.removed = True, change["r"]
    if "i" in known:
        step.insert, step.value = True, change["i"]
    if ("e" in known) != ("et" in known):
        raise UsageError("an edit has e without et or et without e; it needs both, the operation and its type")
    edit = (
        ("text-unicode", change["es"])
        if "es" in known
        else ("number", change["ena"])
        if "ena" in known
        else (change["et"], change["e"])
        if "et" in known
        else None
    )
    if edit is not None:
        subtype = subtype_named(edit[0])
        if hasattr(subtype, "check"):
            subtype.check(edit[1])
        step.edit = edit


def _write(root: Step) -> Op:
    """The tree as an operation in normal form: slots numbered in the order of reading, branches sorted."""
    slots: dict[Any, int] = {}
    return _descent(root, slots) or None


def write_as_is(root: Step) -> Op:
    """As _write, with slots and edits as they are."""
    return _descent(root, None) or None


def _change(step: Step, slots: dict[Any, int] | None) -> dict[str, Any]:
    change: dict[str, Any] = {}
    if step.remove:
        change["r"] = step.removed
    if step.pick is not None:
        change["p"] = step.pick if slots is None else slots.setdefault(step.pick, len(slots))
    if step.drop is not None:
        change["d"] = step.drop if slots is None else slots.setdefault(step.drop, len(slots))
    if step.insert:
        change["i"] = step.value
    edit = step.edit if slots is None or step.edit is None else normal_edit(step.edit)
    if edit is not None:
        name, op = edit
        change.update(
            {"es": op} if name == "text-unicode" else {"ena": op} if name == "number" else {"et": name, "e": op}
        )
    return change


def _descent(step: Step, slots: dict[Any, int] | None) -> list[Any]:
    change = _change(step, slots)
    branches = []
    for key, kid in step.sorted():
        below = _descent(kid, slots)
        if below:
            branches.append([key, *below])
    out: list[Any] = [change] if change else []
    return out + (branches[0] if len(branches) == 1 else branches)


def check(op: object) -> None:
    """Raise UsageError or LimitError if `op` is no json1 operation."""
    parse(op)


def normalize(op: Any) -> Op:
    """The same operation in normal form."""
    if isinstance(op, (list, tuple)) and not op:
        return None
    return _write(parse(op, loose=True))


# ------------------------------------------------------------------------------------------------ apply


def apply(doc: Any, op: Any) -> Any:
    """The document after the operation; MISSING is no document. Raises UsageError if it has not what is changed."""
    root = parse(op)
    held: dict[int, Any] = {}
    return put_into(take_from(doc, root, held, []), root, held, [])


def takes_below(step: Step) -> bool:
    todo = [step]
    for at in todo:
        if at.remove or at.pick is not None:
            return True
        if at.kids:
            todo += at.kids.values()
    return False


def puts_below(step: Step) -> bool:
    todo = [step]
    for at in todo:
        if at.insert or at.drop is not None or at.edit is not None:
            return True
        if at.kids:
            todo += at.kids.values()
    return False


def take_from(value: Any, step: Step, held: dict[int, Any], path: list[Key]) -> Any:
    copy: Any = None
    for key, kid in reversed(step.sorted()):
        if not takes_below(kid):
            continue
        path.append(key)
        old = entry_of(value, key, path)
        new = take_from(old, kid, held, path)
        path.pop()
        if new is not old:
            copy = value.copy() if copy is None else copy
            if new is MISSING:
                del copy[key]
            else:
                copy[key] = new
    if copy is not None:
        value = copy
    if step.takes and value is MISSING:
        raise UsageError(f"nothing is at {_show_path(path)} to take: transform the operation first")
    if step.pick is not None:
        held[step.pick] = value
    return MISSING if step.takes else value


def put_into(value: Any, step: Step, held: dict[int, Any], path: list[Key]) -> Any:
    if step.puts:
        if value is not MISSING:
            raise UsageError(f"something is at {_show_path(path)} already: remove it in the same operation")
        value = step.value if step.insert else held[step.drop]
    copy: Any = None
    for key, kid in step.sorted():
        if not puts_below(kid):
            continue
        path.append(key)
        old = (
            _gap(value if copy is None else copy, key, path)
            if kid.puts
            else entry_of(value if copy is None else copy, key, path)
        )
        new = put_into(old, kid, held, path)
        path.pop()
        copy = value.copy() if copy is None else copy
        if kid.puts and isinstance(copy, list):
            copy.insert(key, new)  # type: ignore[arg-type]
        else:
            copy[key] = new
    if copy is not None:
        value = copy
    if step.edit is not None:
        if value is MISSING:
            raise UsageError(f"nothing is at {_show_path(path)} to edit: transform the operation first")
        value = subtype_named(step.edit[0]).apply(value, step.edit[1])
    return value


def entry_of(value: Any, key: Key, path: Sequence[Key]) -> Any:
    if isinstance(value, dict) if isinstance(key, str) else (isinstance(value, list) and key < len(value)):
        found = value.get(key, MISSING) if isinstance(value, dict) else value[key]
        if found is not MISSING:
            return found
    raise UsageError(f"nothing is at {_show_path(path)} of the document: transform the operation first")


def _gap(value: Any, key: Key, path: Sequence[Key]) -> Any:
    if isinstance(key, str) and isinstance(value, dict):
        return value.get(key, MISSING)
    if isinstance(key, int) and isinstance(value, list) and key <= len(value):
        return MISSING
    raise UsageError(f"nothing can be put at {_show_path(path)} of the document: transform the operation first")


def _show_path(path: Sequence[Key]) -> str:
    steps = "/".join(map(str, path[-8:]))
    return f"'/{steps}'" if len(path) <= 8 else f"'.../{steps}'"
