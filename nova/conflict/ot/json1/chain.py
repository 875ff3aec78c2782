"""One operation after the other: composed, inverted, and where a place goes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from nova.conflict.detect import MISSING
from nova.conflict.ot.json1.picture import Picture, Place, Thing, inserted_above, nth_left, nth_of, puts_before, step_at
from nova.conflict.ot.json1.steps import (
    Key,
    Op,
    Step,
    check_key,
    entry_of,
    key_order,
    normal_edit,
    parse,
    puts_below,
    subtype_named,
    takes_below,
    write_as_is,
)
from nova.errors import UsageError

# ------------------------------------------------------------------------------------------------ one after the other


class _Chain:
    """What two operations make of a document, one after the other: side 0 first, side 1 on what it leaves."""

    def __init__(self, first: Step, second: Step) -> None:
        self.before = before = Picture(first, Step())
        self.top, self.things, self.kid = before.top, before.things, before.kid
        self.put: dict[Thing, tuple[dict[Key, Thing], list[int]]] = {}  # what the first operation puts in, by key
        self.taken: dict[Thing, list[int]] = {}  # list -> indices, after the first operation, that the second takes
        above = Step()
        above.kids[""] = second
        slots: dict[int, Thing] = {}
        self._take(self.top, above, slots)
        self._put(self.top, above, slots)

    def child(self, thing: Thing, key: Key) -> Thing:
        """What the first operation leaves at a key or an index."""
        found = self.put.get(thing)
        if found is None:
            places = [(each.places[0], each) for each in thing.drops[0]]
            named = {place.key: each for place, each in places if place is not None}
            found = self.put[thing] = named, [key for key in named if isinstance(key, int)]
        if key in found[0]:
            return found[0][key]
        return self.kid(thing, nth_left(thing, key - bisect_left(found[1], key), 0) if isinstance(key, int) else key)

    def _take(self, thing: Thing, step: Step, slots: dict[int, Thing]) -> None:
        for key, kid in step.sorted():
            if not takes_below(kid):
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

    def _put(self, thing: Thing, step: Step, slots: dict[int, Thing]) -> None:
        put = 0
        for key, kid in step.sorted():
            if not puts_below(kid):
                continue
            if kid.puts:
                if kid.insert:
                    below = Thing(None, key, 1, kid.value)
                    self.things.append(below)
                else:
                    below = slots[kid.drop]
                below.places[1] = Place(thing, key, key - put if isinstance(key, int) else 0, ())
                thing.drops[1].append(below)
                put += isinstance(key, int)
            elif isinstance(key, int):
                below = self.child(thing, nth_of(self.taken.get(thing, []), key - put))
            else:
                below = self.child(thing, key)
            if kid.edit is not None:
                below.edits[1] = kid.edit
            self._put(below, kid, slots)

    def gone(self, thing: Thing) -> bool:
        if self.before.remover(thing, 0) is not None:
            return True
        at: Thing | None = thing
        while at is not None:
            if at.takes[1]:
                return at.takes[1] == "r"
            place = at.places[0]
            at = place.parent if place is not None else at.parent
        return False

    def path(self, thing: Thing) -> list[Key]:
        """The path of a thing in the end."""
        path: list[Key] = []
        at: Thing | None = thing
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
                key = rank + puts_before(at, rank, 1)
            path.append(key)
        path.reverse()
        return path[1:]

    def read(self) -> Step:
        root = Step()
        order = sorted(self.things, key=lambda thing: [key_order((key, 0)) for key in self.before.path_after(thing, 0)])
        slot = 0
        for thing in order:
            top = inserted_above(thing)
            named = bool(thing.takes[0] or thing.takes[1]) and thing.owner is None
            if self.gone(thing):
                if named and top is None:
                    gone = step_at(root, _path_before(thing))
                    gone.remove = True
                    gone.removed = next((thing.removed[side] for side in (0, 1) if thing.takes[side] == "r"), True)
                continue
            if thing.owner is not None and thing.value is not MISSING:
                step = step_at(root, self.path(thing))
                step.insert, step.value = True, _without_taken(thing, thing.value, 1)
            elif named and top is not None:  # moved out of what the first operation inserted
                step = step_at(root, self.path(thing))
                step.insert, step.value = True, _without_taken(thing, _value_in(thing, top), 1)
            elif named:
                step_at(root, _path_before(thing)).pick = slot
                step_at(root, self.path(thing)).drop = slot
                slot += 1
            one, two = thing.edits
            if one is not None and two is not None:
                if one[0] != two[0]:
                    raise UsageError(f"one value is edited as {one[0]!r} and then as {two[0]!r}; use one type for it")
                two = (one[0], subtype_named(one[0]).compose(one[1], two[1]))
            if one is not None or two is not None:
                step_at(root, self.path(thing)).edit = normal_edit(two or one)  # type: ignore[arg-type]
        return root


def _path_before(thing: Thing) -> list[Key]:
    path: list[Key] = []
    at: Thing | None = thing
    while at is not None:
        path.append(at.key)
        at = at.parent
    path.reverse()
    return path[2:]


def _value_in(thing: Thing, top: Thing) -> Any:
    """The value of a thing in the value of an inserted one above it."""
    path: list[Key] = []
    at: Thing | None = thing
    while at is not None and at is not top:
        path.append(at.key)
        at = at.parent
    value = top.value
    for key in reversed(path):
        value = entry_of(value, key, [key])
    return value


def _without_taken(thing: Thing, value: Any, side: int) -> Any:
    """The value of a thing without what a side takes out of it."""
    copy: Any = None
    for key, kid in sorted(thing.kids.items(), key=key_order, reverse=True):
        if not kid.kids and not kid.takes[side]:
            continue
        old = entry_of(value, key, [key])
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
    first, second = parse(a), parse(b)
    if a is None or b is None:
        return b if a is None else a  # type: ignore[no-any-return]
    return write_as_is(_Chain(first, second).read())


def invert(op: Any) -> Op:
    """The operation that undoes `op`, which must carry what it removes (see make_invertible)."""
    step = parse(op)
    picture = Picture(step, Step())
    root = Step()
    for thing in picture.things:
        if thing.takes[0] == "r":
            undo = step_at(root, _path_before(thing))
            undo.insert, undo.value = True, thing.removed[0]
        elif thing.owner is not None and thing.value is not MISSING:
            undo = step_at(root, picture.path_after(thing, 0))
            undo.remove, undo.removed = True, _edited_value(thing, thing.value)
        elif thing.takes[0] == "p":
            step_at(root, picture.path_after(thing, 0)).pick = thing.slots[0]
            step_at(root, _path_before(thing)).drop = thing.slots[0]
        edit = thing.edits[0]
        if edit is not None and thing.owner is None and inserted_above(thing) is None:
            step_at(root, _path_before(thing)).edit = normal_edit((edit[0], subtype_named(edit[0]).invert(edit[1])))
    return write_as_is(root)


def _edited_value(thing: Thing, value: Any) -> Any:
    """An inserted value with the edits that the same operation makes in it."""
    copy: Any = None
    for key, kid in thing.kids.items():
        old = entry_of(value, key, [key])
        new = _edited_value(kid, old)
        if new is not old:
            copy = value.copy() if copy is None else copy
            copy[key] = new
    value = value if copy is None else copy
    edit = thing.edits[0]
    return value if edit is None else subtype_named(edit[0]).apply(value, edit[1])


def make_invertible(op: Any, doc: Any) -> Op:
    """The same operation with what it removes from `doc` in it, so that it can be inverted."""
    step = parse(op)
    if op is None:
        return None
    picture = Picture(step, Step())
    root = Step()
    for thing in picture.things:
        if thing.takes[0]:
            taken = step_at(root, _path_before(thing))
            if thing.takes[0] == "r":
                taken.remove, taken.removed = True, _without_taken(thing, _first_value(thing, doc), 0)
            else:
                taken.pick = thing.slots[0]
                step_at(root, picture.path_after(thing, 0)).drop = thing.slots[0]
        if thing.owner is not None and thing.value is not MISSING:
            put = step_at(root, picture.path_after(thing, 0))
            put.insert, put.value = True, thing.value
        edit = thing.edits[0]
        if edit is not None:
            subtype = subtype_named(edit[0])
            if hasattr(subtype, "make_invertible"):
                edit = (edit[0], subtype.make_invertible(edit[1], _first_value(thing, doc)))
            step_at(root, picture.path_after(thing, 0)).edit = edit
    return write_as_is(root)


def _first_value(thing: Thing, doc: Any) -> Any:
    """The value of a thing as it was in the document, or as it was inserted."""
    if thing.owner is not None:
        return thing.value
    top = inserted_above(thing)
    if top is not None:
        return _value_in(thing, top)
    path = _path_before(thing)
    for depth, key in enumerate(path):
        doc = entry_of(doc, key, path[: depth + 1])
    return doc


def transform_position(path: Sequence[Key], op: Any) -> list[Key] | None:
    """Where what is at a path is after the operation; None if it is removed. A last step may be a place in a text."""
    picture = Picture(parse(op), Step())
    thing = picture.root
    for at, key in enumerate(path):
        edit = thing.edits[0]
        if edit is not None and isinstance(key, int) and hasattr(subtype_named(edit[0]), "transform_position"):
            if picture.remover(thing, 0) is not None:
                return None
            moved = subtype_named(edit[0]).transform_position(key, edit[1])
            return [*picture.path_after(thing, 0), moved, *path[at + 1 :]]
        thing = picture.kid(thing, check_key(key))
    return None if picture.remover(thing, 0) is not None else picture.path_after(thing, 0)
