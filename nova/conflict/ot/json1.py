"""Operations on a tree of dicts, lists and scalars with moves, in the json1 format.

An operation is None, or a list that descends: keys and indices lead down, a dict changes what is there, and two or more
lists at the end are branches. A change has up to three parts:

    {"r": value or True}  remove       {"i": value}  insert      {"es": op}             edit text, as ot.text has it
    {"p": slot}           pick up      {"d": slot}   drop        {"ena": number}        add to a number
                                                                 {"et": name, "e": op}  edit by a registered type

All picks and removes happen first and name places in the document as it was; all drops, inserts and edits then name
places in the document as it will be. A slot is a number that joins a pick with its drop.

Transformation here is not a table of cases. Both operations are read into one picture of the document, in which every
value that they name is a thing with an identity: a value of the document, or one that an operation inserts. In that
picture each thing gets one fate, by rules that know only a left and a right side:

 1. What either side removes is gone, wherever the other has moved it. What was in it goes too, unless its remover picks
    it up first.
 2. What both move goes where the left side puts it.
 3. What is put into something that is gone, is gone (a conflict: REMOVED_UNDER).
 4. Different things on one key of a dict: the left one stays (COLLISION). Equal inserts are one thing.
 5. Things that were moved into each other hang nowhere and are gone (BLACK_HOLE).
 6. In a list, what was put between the same two items that stay comes in the order left, right.

The transformed operation is then read off: its picks are places in the document after the other operation, its drops
places in the picture. As both sides read one picture, TP1 holds by construction.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, TypeAlias

from nova.conflict.detect import MISSING
from nova.conflict.ot import text
from nova.conflict.ot.text import Side, is_left, show
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
        if not isinstance(op, int | float) or isinstance(op, bool):
            raise UsageError(f"{show(op)} is to be added; it is no number")

    @staticmethod
    def apply(value: Any, op: Any) -> Any:
        if not isinstance(value, int | float) or isinstance(value, bool):
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


def _subtype(name: Any) -> Any:
    try:
        return SUBTYPES[name]
    except (KeyError, TypeError):
        known = ", ".join(sorted(SUBTYPES))
        raise UsageError(f"type {show(name)} is unknown; known are {known}; register it first") from None


def _edit_normal(edit: tuple[str, Any]) -> tuple[str, Any] | None:
    """The edit in normal form; None if it does nothing."""
    name, op = edit
    subtype = _subtype(name)
    if hasattr(subtype, "normalize"):
        op = subtype.normalize(op)
    return None if hasattr(subtype, "is_noop") and subtype.is_noop(op) else (name, op)


# ------------------------------------------------------------------------------------------------ operations as trees


class _Step:
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
        self.kids: dict[Key, _Step] = {}

    def kid(self, key: Key) -> _Step:
        found = self.kids.get(key)
        if found is None:
            found = self.kids[key] = _Step()
        return found

    @property
    def puts(self) -> bool:
        return self.insert or self.drop is not None

    @property
    def takes(self) -> bool:
        return self.remove or self.pick is not None

    def sorted(self) -> list[tuple[Key, _Step]]:
        return sorted(self.kids.items(), key=_order)


def _order(item: tuple[Key, Any]) -> tuple[bool, Any]:
    return isinstance(item[0], str), item[0]


def _parse(op: Any, *, loose: bool = False) -> _Step:
    """An operation as a tree. Raises UsageError or LimitError if it is none.

    loose  branches may come in any order and meet, and slots have any numbers: what normalize brings in order
    """
    root = _Step()
    if op is None:
        return root
    if not isinstance(op, list | tuple):
        raise UsageError(f"a json1 operation is None or a list, not {show(op)}")
    if not op:
        raise UsageError("a json1 operation has an end that changes nothing; the one that does nothing is None")
    picks: dict[int, int] = {}
    drops: dict[int, int] = {}
    left = CHANGES_MAX
    todo: list[tuple[Any, _Step, int, bool]] = [(op, root, 0, True)]
    while todo:
        descent, step, depth, top = todo.pop()
        before: Any = None
        changed = False
        last: Key | None = None
        for at, item in enumerate(descent):
            if isinstance(item, list | tuple):
                branches = descent[at:]
                if not all(isinstance(branch, list | tuple) and branch for branch in branches):
                    raise UsageError(
                        "branches of a json1 operation are lists that are not empty, and nothing follows them"
                    )
                if len(branches) < 2:
                    raise UsageError("one branch alone is no branch: write its keys without a list")
                heads = [_check_key(branch[0]) for branch in branches]
                if not loose and any(_order((a, 0)) >= _order((b, 0)) for a, b in pairwise(heads)):
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
                last = _check_key(item)
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


def _check_key(key: Any) -> Key:
    if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool) and key >= 0):
        return key
    raise UsageError(f"{show(key)} is no step of a path; keys are str and indices ints from 0")


def _read_change(change: dict[str, Any], step: _Step, picks: dict[int, int], drops: dict[int, int]) -> None:
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
        subtype = _subtype(edit[0])
        if hasattr(subtype, "check"):
            subtype.check(edit[1])
        step.edit = edit


def _write(root: _Step) -> Op:
    """The tree as an operation in normal form: slots numbered in the order of reading, branches sorted."""
    slots: dict[Any, int] = {}
    return _descent(root, slots) or None


def _write_as_is(root: _Step) -> Op:
    """As _write, with slots and edits as they are."""
    return _descent(root, None) or None


def _change(step: _Step, slots: dict[Any, int] | None) -> dict[str, Any]:
    change: dict[str, Any] = {}
    if step.remove:
        change["r"] = step.removed
    if step.pick is not None:
        change["p"] = step.pick if slots is None else slots.setdefault(step.pick, len(slots))
    if step.drop is not None:
        change["d"] = step.drop if slots is None else slots.setdefault(step.drop, len(slots))
    if step.insert:
        change["i"] = step.value
    edit = step.edit if slots is None or step.edit is None else _edit_normal(step.edit)
    if edit is not None:
        name, op = edit
        change.update(
            {"es": op} if name == "text-unicode" else {"ena": op} if name == "number" else {"et": name, "e": op}
        )
    return change


def _descent(step: _Step, slots: dict[Any, int] | None) -> list[Any]:
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
    _parse(op)


def normalize(op: Any) -> Op:
    """The same operation in normal form."""
    if isinstance(op, list | tuple) and not op:
        return None
    return _write(_parse(op, loose=True))


# ------------------------------------------------------------------------------------------------ apply


def apply(doc: Any, op: Any) -> Any:
    """The document after the operation; MISSING is no document. Raises UsageError if it has not what is changed."""
    root = _parse(op)
    held: dict[int, Any] = {}
    return _put(_take(doc, root, held, []), root, held, [])


def _takes_below(step: _Step) -> bool:
    todo = [step]
    while todo:
        at = todo.pop()
        if at.takes:
            return True
        todo += at.kids.values()
    return False


def _puts_below(step: _Step) -> bool:
    todo = [step]
    while todo:
        at = todo.pop()
        if at.puts or at.edit is not None:
            return True
        todo += at.kids.values()
    return False


def _take(value: Any, step: _Step, held: dict[int, Any], path: list[Key]) -> Any:
    copy: Any = None
    for key, kid in reversed(step.sorted()):
        if not _takes_below(kid):
            continue
        path.append(key)
        old = _entry(value, key, path)
        new = _take(old, kid, held, path)
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


def _put(value: Any, step: _Step, held: dict[int, Any], path: list[Key]) -> Any:
    if step.puts:
        if value is not MISSING:
            raise UsageError(f"something is at {_show_path(path)} already: remove it in the same operation")
        value = step.value if step.insert else held[step.drop]
    copy: Any = None
    for key, kid in step.sorted():
        if not _puts_below(kid):
            continue
        path.append(key)
        old = (
            _gap(value if copy is None else copy, key, path)
            if kid.puts
            else _entry(value if copy is None else copy, key, path)
        )
        new = _put(old, kid, held, path)
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
        value = _subtype(step.edit[0]).apply(value, step.edit[1])
    return value


def _entry(value: Any, key: Key, path: Sequence[Key]) -> Any:
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


# ------------------------------------------------------------------------------------------------ the picture


class _Thing:
    """A value: of the document (owner None), or inserted by a side. Its entries are things as well, made when named."""

    __slots__ = (
        "drops",
        "edits",
        "key",
        "kids",
        "owner",
        "parent",
        "places",
        "ranks",
        "removed",
        "shared",
        "slots",
        "steps",
        "takes",
        "value",
    )

    def __init__(self, parent: _Thing | None, key: Key, owner: int | None = None, value: Any = MISSING) -> None:
        self.parent = parent
        self.key = key
        self.owner = owner
        self.value = value
        self.shared = False  # inserted by both sides alike
        self.kids: dict[Key, _Thing] = {}
        self.takes: list[str] = ["", ""]  # "r" or "p", by side
        self.removed: list[Any] = [True, True]  # the values that removals carry
        self.places: list[_Place | None] = [None, None]  # where a side puts it
        self.drops: list[list[_Thing]] = [[], []]  # what a side puts into it, in ascending order of index
        self.edits: list[tuple[str, Any] | None] = [None, None]
        self.steps: list[tuple[Key, ...]] = [(), ()]  # the path by which a side takes it
        self.slots: list[int] = [0, 0]
        self.ranks: dict[str | int, list[int]] = {}  # of a list: what _taken and _gaps have counted


class _Place:
    __slots__ = ("gap", "key", "parent", "path")

    def __init__(self, parent: _Thing, key: Key, gap: int, path: tuple[Key, ...]) -> None:
        self.parent = parent
        self.key = key
        self.gap = gap  # in a list: how many items that stayed are before it
        self.path = path


class _Picture:
    """What two operations make of one document; side 0 is the left one."""

    def __init__(self, left: _Step, right: _Step) -> None:
        self.top = _Thing(None, "")
        self.root = _Thing(self.top, "")
        self.top.kids[""] = self.root
        self.things: list[_Thing] = [self.root]
        # What a side puts (True) and edits (False), in the order of its operation, and the path it names for it.
        self.deeds: list[list[tuple[bool, _Thing, tuple[Key, ...]]]] = [[], []]
        for side, step in enumerate((left, right)):
            above = _Step()
            above.kids[""] = step
            slots: dict[int, _Thing] = {}
            self._take(self.top, above, side, slots, ())
            self._put(self.top, above, side, slots, ())
        self.lost: set[_Thing] = set()
        self.fates: dict[_Thing, bool] = {}
        self.layouts: dict[_Thing, tuple[dict[_Thing, int], list[int]]] = {}
        self.united: dict[_Thing, _Thing] = {}
        self.collisions: list[tuple[_Thing, _Thing]] = []
        self._collide()
        if self.united:
            self.things = [thing for thing in self.things if thing not in self.united]
            self.deeds[1] = [(put, self.united.get(thing, thing), path) for put, thing, path in self.deeds[1]]

    def kid(self, thing: _Thing, key: Key) -> _Thing:
        found = thing.kids.get(key)
        if found is None:
            found = thing.kids[key] = _Thing(thing, key)
            self.things.append(found)
        return found

    def _take(self, thing: _Thing, step: _Step, side: int, slots: dict[int, _Thing], path: tuple[Key, ...]) -> None:
        for key, kid in step.sorted():
            if not _takes_below(kid):
                continue
            below = self.kid(thing, key)
            if kid.takes:
                below.takes[side] = "r" if kid.remove else "p"
                below.removed[side] = kid.removed
                below.steps[side] = (*path, key)
                if kid.pick is not None:
                    slots[kid.pick] = below
                    below.slots[side] = kid.pick
            self._take(below, kid, side, slots, (*path, key))

    def _put(self, thing: _Thing, step: _Step, side: int, slots: dict[int, _Thing], path: tuple[Key, ...]) -> None:
        put = 0
        for key, kid in step.sorted():
            if not _puts_below(kid):
                continue
            here = (*path, key)
            if kid.puts:
                if kid.insert:
                    below = _Thing(None, key, side, kid.value)
                    self.things.append(below)
                else:
                    below = slots[kid.drop]
                below.places[side] = _Place(thing, key, key - put if isinstance(key, int) else 0, here)
                thing.drops[side].append(below)
                self.deeds[side].append((True, below, here))
                put += isinstance(key, int)
            elif isinstance(key, int):
                below = self.kid(thing, _nth_left(thing, key - put, side))
            else:
                below = self.kid(thing, key)
                if below.takes[side]:  # the operation puts something under what it takes: into something unnamed
                    below = _Thing(None, key, side)
                    below.places[side] = _Place(thing, key, 0, here)
            if kid.edit is not None:
                below.edits[side] = kid.edit
                self.deeds[side].append((False, below, here))
            self._put(below, kid, side, slots, here)

    # ---- fates

    def remover(self, thing: _Thing, side: int) -> _Thing | None:
        """The thing by whose removal the side removes this one."""
        at: _Thing | None = thing
        while at is not None:
            if at.takes[side]:
                return at if at.takes[side] == "r" else None
            at = at.parent
        return None

    def home(self, thing: _Thing) -> tuple[_Thing | None, int | None]:
        """Where a thing is in the picture, and which side has put it there."""
        for side in (0, 1):
            place = thing.places[side]
            if place is not None:
                return place.parent, side
        return thing.parent, None

    def gone(self, thing: _Thing | None) -> bool:
        """Whether a thing is not in the picture."""
        trail: dict[_Thing, None] = {}
        fates = self.fates
        fate = False
        while thing is not None and thing is not self.top:
            if thing in fates:
                fate = fates[thing]
                break
            if thing in trail:  # a ring that hangs nowhere
                fate = True
                break
            trail[thing] = None
            if thing in self.lost or self.remover(thing, 0) or self.remover(thing, 1):
                fate = True
                break
            thing = self.home(thing)[0]
        for each in trail:
            fates[each] = fate
        return fate

    def _collide(self) -> None:
        """Settles what both sides put on one key of a dict, outermost first."""
        again = True
        while again:
            again = False
            for thing in [*self.things, self.top]:
                if not (thing.drops[0] and thing.drops[1]):
                    continue
                mine = {each.places[0].key: each for each in thing.drops[0] if each.places[0]}
                for right in list(thing.drops[1]):
                    place = right.places[1]
                    if place is None or isinstance(place.key, int) or self.home(right) != (thing, 1):
                        continue
                    left = mine.get(place.key)
                    if left is None or left is right or self.gone(left) or self.gone(right):
                        continue
                    if left.owner == 0 and right.owner == 1 and not left.shared and same(left.value, right.value):
                        self._unite(left, right)
                    else:
                        self.collisions.append((left, right))
                        self.lost.add(right)
                    self.fates.clear()
                    again = True

    def _unite(self, left: _Thing, right: _Thing) -> None:
        """Both sides insert the same: one thing, whose first content is the document of both."""
        pairs = [(left, right)]
        while pairs:
            one, other = pairs.pop()
            one.shared = True
            if other.places[1] is not None:
                one.places[1] = other.places[1]
                drops = other.places[1].parent.drops[1]
                drops[drops.index(other)] = one
            one.edits[1] = other.edits[1]
            one.drops[1], other.drops[1] = other.drops[1], []
            for each in one.drops[1]:
                place = each.places[1]
                if place is not None:
                    place.parent = one
            for key, kid in other.kids.items():
                if key in one.kids:
                    pairs.append((one.kids[key], kid))
                else:
                    one.kids[key] = kid
                    kid.parent = one
            self.united[other] = one

    # ---- places

    def path_after(self, thing: _Thing, side: int) -> list[Key]:
        """The path of a thing in the document after one side's operation."""
        path: list[Key] = []
        at: _Thing | None = thing
        while at is not None and at is not self.top:
            place = at.places[side]
            if place is not None:
                path.append(place.key)
                at = place.parent
                continue
            path.append(self.key_after(at, side))
            at = at.parent
        path.reverse()
        return path[1:]

    def key_after(self, thing: _Thing, side: int) -> Key:
        """The key or index of a thing after one side's operation."""
        place = thing.places[side]
        if place is not None:
            return place.key
        parent, key = thing.parent, thing.key
        if parent is None or isinstance(key, str):
            return key
        rank = key - bisect_left(_taken(parent, side), key)
        return rank + _puts_before(parent, rank, side)

    def path(self, thing: _Thing) -> list[Key]:
        """The path of a thing in the picture."""
        path: list[Key] = []
        at: _Thing | None = thing
        while at is not None and at is not self.top:
            parent, side = self.home(at)
            place = at.places[side] if side is not None else None
            key = place.key if place is not None else at.key
            if parent is not None and isinstance(key, int):
                indices, gaps = self._layout(parent)
                if place is not None:
                    key = indices[at]
                else:
                    rank = key - bisect_left(_taken(parent, 2), key)
                    key = rank + bisect_right(gaps, rank)
            path.append(key)
            at = parent
        path.reverse()
        return path[1:]

    def _layout(self, parent: _Thing) -> tuple[dict[_Thing, int], list[int]]:
        """Of a list in the picture: the index of each thing put into it, and how many staying items are before each."""
        found = self.layouts.get(parent)
        if found is None:
            order = self._puts_into(parent)
            indices = {thing: gap + n for n, (gap, thing) in enumerate(order)}
            found = self.layouts[parent] = indices, [gap for gap, _ in order]
        return found

    def _puts_into(self, parent: _Thing) -> list[tuple[int, _Thing]]:
        """What is put into a list, in order: (how many items that stay are before it, thing).

        What a side has put between two items that it leaves may stand anywhere among those that it takes between them.
        Where the ranges of two sides do not meet, their order is known; else what the left side puts comes first.
        """
        queues: list[list[tuple[int, int, _Thing]]] = [[], []]
        for side in (0, 1):
            for thing in parent.drops[side]:
                place = thing.places[side]
                if place is None or not isinstance(place.key, int):
                    continue
                if self.home(thing) == (parent, side) and not self.gone(thing):
                    low = _nth_left(parent, place.gap - 1, side) + 1 if place.gap else 0
                    queues[side].append((low, _nth_left(parent, place.gap, side), thing))
        left, right = queues
        entries = []
        i = j = 0
        while i < len(left) or j < len(right):
            if i == len(left) or (j < len(right) and right[j][1] < left[i][0]):
                entry, j = right[j], j + 1
            else:
                entry, i = left[i], i + 1
            entries.append((entry[1] - bisect_left(_taken(parent, 2), entry[1]), entry[2]))
        return entries

    # ---- conflicts

    def conflict(self, mine: int) -> dict[str, Any] | None:
        """The first conflict, with the parts of both operations that clash; None if there is none."""
        found = self._clash(1 - mine, puts_meet=False) or self._clash(mine) or self._black_hole(mine)
        if found is None:
            return None
        kind, parts = found
        return {"type": kind, "op1": _write_as_is(parts[mine]), "op2": _write_as_is(parts[1 - mine])}

    def _clash(self, side: int, *, puts_meet: bool = True) -> tuple[int, list[_Step]] | None:
        """The first thing that a side puts or edits where the other removes, or puts where the other puts."""
        rivals = {pair[side]: pair for pair in self.collisions}
        for put, thing, path in self.deeds[side]:
            if thing.shared or (put and self.home(thing)[1] != side):
                continue
            parts = [_Step(), _Step()]
            if put and puts_meet and thing in rivals:
                for each in (0, 1):
                    self._report_put(parts[each], rivals[thing][each], each, 0)
                return COLLISION, parts
            remover = self._remover_above(thing, side, put)
            if remover is not None:
                if put:
                    self._report_put(parts[side], thing, side, 0)
                else:
                    _at(parts[side], path[1:]).edit = thing.edits[side]
                _at(parts[1 - side], remover.steps[1 - side][1:]).remove = True
                return REMOVED_UNDER, parts
        return None

    def _remover_above(self, thing: _Thing, side: int, put: bool) -> _Thing | None:
        """The thing that the other side removes, and in which this side puts or edits `thing`."""
        other = 1 - side
        trail = {thing}
        at = self.home(thing)[0] if put else thing
        if put and self.remover(thing, other):
            return None
        while at is not None and at is not self.top and not (put and at in trail):
            trail.add(at)
            remover = self.remover(at, other)
            if remover is not None:
                return remover
            at = self.home(at)[0]
            if at in trail:
                return None
        return None

    def _report_put(self, part: _Step, thing: _Thing, side: int, slot: int) -> None:
        place = thing.places[side]
        if place is None:
            return
        step = _at(part, place.path[1:])
        if thing.owner is None:
            _at(part, thing.steps[side][1:]).pick = slot
            step.drop = slot
        else:
            step.insert, step.value = True, thing.value

    def _black_hole(self, mine: int) -> tuple[int, list[_Step]] | None:
        """Every move of both sides that ends in the ring; slots of `mine` in the order in which a walk leaves them."""
        moves = [
            [t for put, t, _ in self.deeds[side] if put and t.owner is None and self._is_swallowed(t, side)]
            for side in (0, 1)
        ]
        if not moves[mine]:
            return None
        parts = [_Step(), _Step()]
        place = moves[mine][0].places[mine]
        order = self._left_by_walk(place.parent if place is not None else self.root)
        for side in (0, 1):
            wanted = set(moves[side])
            ordered = [t for t in order if t in wanted] if side == mine else sorted(wanted, key=lambda t: t.slots[side])
            ordered += [t for t in moves[side] if t not in ordered]
            for slot, thing in enumerate(ordered):
                self._report_put(parts[side], thing, side, slot)
        return BLACK_HOLE, parts

    def _is_swallowed(self, thing: _Thing, side: int) -> bool:
        """Whether a thing goes where the side puts it, and that hangs on a ring."""
        return self.home(thing)[1] == side and self._hangs_on_ring(thing)

    def _hangs_on_ring(self, thing: _Thing) -> bool:
        trail: set[_Thing] = set()
        at: _Thing | None = thing
        while at is not None and at is not self.top:
            if at in trail:
                return True
            if at in self.lost or self.remover(at, 0) or self.remover(at, 1):
                return False
            trail.add(at)
            at = self.home(at)[0]
        return False

    def _left_by_walk(self, start: _Thing) -> list[_Thing]:
        """Things in and below the ring, in the order in which a walk through it from `start` leaves them."""
        below: dict[_Thing, list[tuple[Key, _Thing]]] = {}
        for thing in self.things:
            parent, side = self.home(thing)
            place = thing.places[side] if side is not None else None
            if parent is not None:
                below.setdefault(parent, []).append((place.key if place is not None else thing.key, thing))
        order: list[_Thing] = []
        seen = {start}
        walk = [(start, iter(sorted(below.get(start, ()), key=_order)))]
        while walk:
            thing, rest = walk[-1]
            for _, each in rest:
                if each not in seen:
                    seen.add(each)
                    walk.append((each, iter(sorted(below.get(each, ()), key=_order))))
                    break
                if each is start and each not in order:
                    order.append(each)
            else:
                walk.pop()
                if thing not in order:
                    order.append(thing)
        return order

    # ---- reading it off

    def read(self, side: int) -> _Step:
        """The operation of one side, for the document after the other's."""
        other = 1 - side
        root = _Step()
        slots = 0
        alone = self._has_nothing(other)
        # Slots are numbered in the order in which the operation drops.
        turns = {thing: turn for turn, (put, thing, _) in enumerate(self.deeds[side]) if put}
        for thing in sorted(self.things, key=lambda thing: turns.get(thing, -1)):
            there = thing.owner != side and self.remover(thing, other) is None  # in the document after the other side
            if thing.shared:
                there = True
            gone = self.gone(thing)
            if gone:
                if there and self._removes(thing, side, other):
                    removal = _at(root, self.path_after(thing, other))
                    removal.remove = True
                    removal.removed = thing.removed[side] if alone else True
                continue
            placed = self.home(thing)[1]
            if thing.owner == side and not thing.shared:
                step = _at(root, self.path(thing))
                step.insert, step.value = True, thing.value
            elif placed == side and not thing.shared and not self._agreed(thing):
                _at(root, self.path_after(thing, other)).pick = slots
                _at(root, self.path(thing)).drop = slots
                slots += 1
            edit = thing.edits[side]
            if edit is not None:
                theirs = thing.edits[other]
                if theirs is not None:
                    if edit[0] != theirs[0]:
                        raise UsageError(
                            f"one value is edited as {edit[0]!r} and as {theirs[0]!r}; use one type for it"
                        )
                    edit = (edit[0], _subtype(edit[0]).transform(edit[1], theirs[1], ("left", "right")[side]))
                _at(root, self.path(thing)).edit = _edit_normal(edit)
        return root

    def _has_nothing(self, side: int) -> bool:
        """Whether all that a side does is gone by conflicts: what the other removes then is as it knew it."""
        return all(
            not thing.takes[side]
            and (thing.places[side] is None or self.gone(thing))
            and (thing.edits[side] is None or (self.gone(thing) and _is_new(thing)))
            for thing in self.things
        )

    def _agreed(self, thing: _Thing) -> bool:
        """Whether both sides move a thing to the same key of a dict."""
        one, two = thing.places
        return (
            one is not None
            and two is not None
            and one.parent is two.parent
            and one.key == two.key
            and isinstance(one.key, str)
        )

    def _removes(self, thing: _Thing, side: int, other: int) -> bool:
        """Whether the side's transformed operation names a thing that is gone but there, to remove it."""
        above = thing.places[other]
        if thing.takes[side] == "r":
            return above is None or not self._goes_along(thing, side, other)
        edited = thing.edits[other] is not None
        parent = above.parent if above is not None else thing.parent
        if self.remover(thing, side) is not None:  # with what it was in, unless it was moved out of that
            if edited:
                return not self._goes_along(thing, side, other)
            return above is not None and not self.gone(parent)
        if above is None and not edited:
            if not thing.takes[side]:
                return False
            if parent is None or not self.gone(parent) or self.remover(parent, side) is not None:
                return True
            return self._remover_above(thing, side, True) is not None
        return self._hangs_on_ring(thing) or not self._goes_along(thing, side, other)

    def _goes_along(self, thing: _Thing, side: int, other: int) -> bool:
        """Whether a thing is, after the other side, in one that the other has put and that is gone by a conflict."""
        place = thing.places[other]
        at = place.parent if place is not None else thing.parent
        while at is not None and at is not self.top:
            place = at.places[other]
            if place is not None and self.gone(at) and self.remover(at, side) is None:
                return True
            at = place.parent if place is not None else at.parent
        return False


def _taken(thing: _Thing, side: int) -> list[int]:
    """The indices that a side takes out of a list, ascending; side 2 is either."""
    found = thing.ranks.get(side)
    if found is None:
        found = thing.ranks[side] = sorted(
            key
            for key, kid in thing.kids.items()
            if isinstance(key, int) and (kid.takes[side] if side < 2 else kid.takes[0] or kid.takes[1])
        )
    return found


def _nth_of(taken: list[int], n: int) -> int:
    """The index of the nth item of a list that is not taken."""
    return n + bisect_right(range(len(taken)), n, key=lambda count: taken[count] - count)


def _nth_left(thing: _Thing, n: int, side: int) -> int:
    """The index, in the list as it was, of the nth item that a side leaves in it."""
    return _nth_of(_taken(thing, side), n)


def _puts_before(parent: _Thing, rank: int, side: int) -> int:
    """How many things a side puts into a list before the item that `rank` items which it leaves there are before."""
    gaps = parent.ranks.get(f"gaps {side}")
    if gaps is None:
        places = (each.places[side] for each in parent.drops[side])
        gaps = [place.gap for place in places if place is not None and isinstance(place.key, int)]
        parent.ranks[f"gaps {side}"] = gaps
    return bisect_right(gaps, rank)


def _at(step: _Step, path: Sequence[Key]) -> _Step:
    if len(path) > DEPTH_MAX:
        raise LimitError(f"the operations together reach {len(path)} deep; the most is {DEPTH_MAX}")
    for key in path:
        step = step.kid(key)
    return step


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal, and of the same types all the way down."""
    todo = [(a, b)]
    while todo:
        one, two = todo.pop()
        if type(one) is not type(two):
            return False
        if isinstance(one, dict):
            if one.keys() != two.keys():
                return False
            todo += [(one[key], two[key]) for key in one]
        elif isinstance(one, list):
            if len(one) != len(two):
                return False
            todo += zip(one, two, strict=True)
        elif one != two:
            return False
    return True


# ------------------------------------------------------------------------------------------------ transform


def _picture(op: Any, other: Any, side: Side) -> tuple[_Picture, int]:
    mine, theirs = _parse(op), _parse(other)
    return (_Picture(mine, theirs), 0) if is_left(side) else (_Picture(theirs, mine), 1)


def transform_no_conflict(op: Any, other: Any, side: Side) -> Op:
    """`op` for the document that `other` has changed; conflicts are settled by the rules at the head of this module."""
    if other is None:
        check(op)
        return list(op) if op is not None else None
    picture, mine = _picture(op, other, side)
    step = picture.read(mine)
    if picture.conflict(mine) is not None:
        _number_by_picks(step)
    return _write_as_is(step)


def _number_by_picks(root: _Step) -> None:
    """Slots in the order of the picks, as in an operation that was composed with what settles its conflicts."""
    slots: dict[int, int] = {}
    steps = [root]
    for step in steps:
        steps += step.kids.values()
    todo = [root]
    while todo:
        step = todo.pop()
        if step.pick is not None:
            slots[step.pick] = len(slots)
        todo += [kid for _, kid in reversed(step.sorted())]
    for step in steps:
        step.pick, step.drop = slots.get(step.pick), slots.get(step.drop)


def try_transform(op: Any, other: Any, side: Side) -> dict[str, Any]:
    """{"ok": True, "result": op}, or {"ok": False, "conflict": {"type", "op1", "op2"}} if something would be lost.

    op1 and op2 are the parts of `op` and `other` that clash; type is REMOVED_UNDER, COLLISION or BLACK_HOLE.
    """
    if other is None:
        check(op)
        return {"ok": True, "result": op}
    picture, mine = _picture(op, other, side)
    conflict = picture.conflict(mine)
    if conflict is not None:
        return {"ok": False, "conflict": conflict}
    return {"ok": True, "result": _write_as_is(picture.read(mine))}


def transform(op: Any, other: Any, side: Side) -> Op:
    """As transform_no_conflict, but raises ConflictError where something would be lost."""
    outcome = try_transform(op, other, side)
    if not outcome["ok"]:
        raise ConflictError(outcome["conflict"])
    result: Op = outcome["result"]
    return result


# ------------------------------------------------------------------------------------------------ one after the other


class _Chain:
    """What two operations make of a document, one after the other: side 0 first, side 1 on what it leaves."""

    def __init__(self, first: _Step, second: _Step) -> None:
        self.before = before = _Picture(first, _Step())
        self.top, self.things, self.kid = before.top, before.things, before.kid
        self.put: dict[_Thing, tuple[dict[Key, _Thing], list[int]]] = {}  # what the first operation puts in, by key
        self.taken: dict[_Thing, list[int]] = {}  # list -> indices, after the first operation, that the second takes
        above = _Step()
        above.kids[""] = second
        slots: dict[int, _Thing] = {}
        self._take(self.top, above, slots)
        self._put(self.top, above, slots)

    def child(self, thing: _Thing, key: Key) -> _Thing:
        """What the first operation leaves at a key or an index."""
        found = self.put.get(thing)
        if found is None:
            places = [(each.places[0], each) for each in thing.drops[0]]
            named = {place.key: each for place, each in places if place is not None}
            found = self.put[thing] = named, [key for key in named if isinstance(key, int)]
        if key in found[0]:
            return found[0][key]
        return self.kid(thing, _nth_left(thing, key - bisect_left(found[1], key), 0) if isinstance(key, int) else key)

    def _take(self, thing: _Thing, step: _Step, slots: dict[int, _Thing]) -> None:
        for key, kid in step.sorted():
            if not _takes_below(kid):
                continue
            below = self.child(thing, key)
            if kid.takes:
                below.takes[1] = "r" if kid.remove else "p"
                below.removed[1] = kid.removed
                if isinstance(key, int):
                    self.taken.setdefault(thing, []).append(key)
                if kid.pick is not None:
                    slots[kid.pick] = below
            self._take(below, kid, slots)

    def _put(self, thing: _Thing, step: _Step, slots: dict[int, _Thing]) -> None:
        put = 0
        for key, kid in step.sorted():
            if not _puts_below(kid):
                continue
            if kid.puts:
                if kid.insert:
                    below = _Thing(None, key, 1, kid.value)
                    self.things.append(below)
                else:
                    below = slots[kid.drop]
                below.places[1] = _Place(thing, key, key - put if isinstance(key, int) else 0, ())
                thing.drops[1].append(below)
                put += isinstance(key, int)
            elif isinstance(key, int):
                below = self.child(thing, _nth_of(self.taken.get(thing, []), key - put))
            else:
                below = self.child(thing, key)
            if kid.edit is not None:
                below.edits[1] = kid.edit
            self._put(below, kid, slots)

    def gone(self, thing: _Thing) -> bool:
        if self.before.remover(thing, 0) is not None:
            return True
        at: _Thing | None = thing
        while at is not None:
            if at.takes[1]:
                return at.takes[1] == "r"
            place = at.places[0]
            at = place.parent if place is not None else at.parent
        return False

    def path(self, thing: _Thing) -> list[Key]:
        """The path of a thing in the end."""
        path: list[Key] = []
        at: _Thing | None = thing
        while at is not None and at is not self.top:
            place = at.places[1]
            if place is not None:
                path.append(place.key)
                at = place.parent
                continue
            key = self.before.key_after(at, 0)
            first = at.places[0]
            at = first.parent if first is not None else at.parent
            if at is not None and isinstance(key, int):
                rank = key - bisect_left(self.taken.get(at, []), key)
                key = rank + _puts_before(at, rank, 1)
            path.append(key)
        path.reverse()
        return path[1:]

    def read(self) -> _Step:
        root = _Step()
        order = sorted(self.things, key=lambda thing: [_order((key, 0)) for key in self.before.path_after(thing, 0)])
        slot = 0
        for thing in order:
            top = _inserted_above(thing)
            named = bool(thing.takes[0] or thing.takes[1]) and thing.owner is None
            if self.gone(thing):
                if named and top is None:
                    gone = _at(root, _path_before(thing))
                    gone.remove = True
                    gone.removed = next((thing.removed[side] for side in (0, 1) if thing.takes[side] == "r"), True)
                continue
            if thing.owner is not None and thing.value is not MISSING:
                step = _at(root, self.path(thing))
                step.insert, step.value = True, _without_taken(thing, thing.value, 1)
            elif named and top is not None:  # moved out of what the first operation inserted
                step = _at(root, self.path(thing))
                step.insert, step.value = True, _without_taken(thing, _value_in(thing, top), 1)
            elif named:
                _at(root, _path_before(thing)).pick = slot
                _at(root, self.path(thing)).drop = slot
                slot += 1
            one, two = thing.edits
            if one is not None and two is not None:
                if one[0] != two[0]:
                    raise UsageError(f"one value is edited as {one[0]!r} and then as {two[0]!r}; use one type for it")
                two = (one[0], _subtype(one[0]).compose(one[1], two[1]))
            if one is not None or two is not None:
                _at(root, self.path(thing)).edit = _edit_normal(two or one)  # type: ignore[arg-type]
        return root


def _is_new(thing: _Thing) -> bool:
    """Whether a thing was inserted, alone or in the value of another one."""
    return thing.owner is not None or _inserted_above(thing) is not None


def _path_before(thing: _Thing) -> list[Key]:
    path: list[Key] = []
    at: _Thing | None = thing
    while at is not None:
        path.append(at.key)
        at = at.parent
    path.reverse()
    return path[2:]


def _inserted_above(thing: _Thing) -> _Thing | None:
    """The inserted thing in whose value this one is."""
    at = thing.parent
    while at is not None:
        if at.owner is not None:
            return at
        at = at.parent
    return None


def _value_in(thing: _Thing, top: _Thing) -> Any:
    """The value of a thing in the value of an inserted one above it."""
    path: list[Key] = []
    at: _Thing | None = thing
    while at is not None and at is not top:
        path.append(at.key)
        at = at.parent
    value = top.value
    for key in reversed(path):
        value = _entry(value, key, [key])
    return value


def _without_taken(thing: _Thing, value: Any, side: int) -> Any:
    """The value of a thing without what a side takes out of it."""
    copy: Any = None
    for key, kid in sorted(thing.kids.items(), key=_order, reverse=True):
        if not kid.kids and not kid.takes[side]:
            continue
        old = _entry(value, key, [key])
        if kid.takes[side]:
            copy = value.copy() if copy is None else copy
            del copy[key]
            continue
        new = _without_taken(kid, old, side)
        if new is not old:
            copy = value.copy() if copy is None else copy
            copy[key] = new
    return value if copy is None else copy


def compose(a: Any, b: Any) -> Op:
    """One operation that does what a and then b do."""
    first, second = _parse(a), _parse(b)
    if a is None or b is None:
        return b if a is None else a  # type: ignore[no-any-return]
    return _write_as_is(_Chain(first, second).read())


def invert(op: Any) -> Op:
    """The operation that undoes `op`, which must carry what it removes (see make_invertible)."""
    step = _parse(op)
    picture = _Picture(step, _Step())
    root = _Step()
    for thing in picture.things:
        if thing.takes[0] == "r":
            undo = _at(root, _path_before(thing))
            undo.insert, undo.value = True, thing.removed[0]
        elif thing.owner is not None and thing.value is not MISSING:
            undo = _at(root, picture.path_after(thing, 0))
            undo.remove, undo.removed = True, _edited_value(thing, thing.value)
        elif thing.takes[0] == "p":
            _at(root, picture.path_after(thing, 0)).pick = thing.slots[0]
            _at(root, _path_before(thing)).drop = thing.slots[0]
        edit = thing.edits[0]
        if edit is not None and thing.owner is None and _inserted_above(thing) is None:
            _at(root, _path_before(thing)).edit = _edit_normal((edit[0], _subtype(edit[0]).invert(edit[1])))
    return _write_as_is(root)


def _edited_value(thing: _Thing, value: Any) -> Any:
    """An inserted value with the edits that the same operation makes in it."""
    copy: Any = None
    for key, kid in thing.kids.items():
        old = _entry(value, key, [key])
        new = _edited_value(kid, old)
        if new is not old:
            copy = value.copy() if copy is None else copy
            copy[key] = new
    value = value if copy is None else copy
    edit = thing.edits[0]
    return value if edit is None else _subtype(edit[0]).apply(value, edit[1])


def make_invertible(op: Any, doc: Any) -> Op:
    """The same operation with what it removes from `doc` in it, so that it can be inverted."""
    step = _parse(op)
    if op is None:
        return None
    picture = _Picture(step, _Step())
    root = _Step()
    for thing in picture.things:
        if thing.takes[0]:
            taken = _at(root, _path_before(thing))
            if thing.takes[0] == "r":
                taken.remove, taken.removed = True, _without_taken(thing, _first_value(thing, doc), 0)
            else:
                taken.pick = thing.slots[0]
                _at(root, picture.path_after(thing, 0)).drop = thing.slots[0]
        if thing.owner is not None and thing.value is not MISSING:
            put = _at(root, picture.path_after(thing, 0))
            put.insert, put.value = True, thing.value
        edit = thing.edits[0]
        if edit is not None:
            subtype = _subtype(edit[0])
            if hasattr(subtype, "make_invertible"):
                edit = (edit[0], subtype.make_invertible(edit[1], _first_value(thing, doc)))
            _at(root, picture.path_after(thing, 0)).edit = edit
    return _write_as_is(root)


def _first_value(thing: _Thing, doc: Any) -> Any:
    """The value of a thing as it was in the document, or as it was inserted."""
    if thing.owner is not None:
        return thing.value
    top = _inserted_above(thing)
    if top is not None:
        return _value_in(thing, top)
    path = _path_before(thing)
    for depth, key in enumerate(path):
        doc = _entry(doc, key, path[: depth + 1])
    return doc


def transform_position(path: Sequence[Key], op: Any) -> list[Key] | None:
    """Where what is at a path is after the operation; None if it is removed. A last step may be a place in a text."""
    picture = _Picture(_parse(op), _Step())
    thing = picture.root
    for at, key in enumerate(path):
        edit = thing.edits[0]
        if edit is not None and isinstance(key, int) and hasattr(_subtype(edit[0]), "transform_position"):
            if picture.remover(thing, 0) is not None:
                return None
            moved = _subtype(edit[0]).transform_position(key, edit[1])
            return [*picture.path_after(thing, 0), moved, *path[at + 1 :]]
        thing = picture.kid(thing, _check_key(key))
    return None if picture.remover(thing, 0) is not None else picture.path_after(thing, 0)
