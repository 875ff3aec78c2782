"""Transformation: both operations in one picture; the rules are at the head of nova.conflict.ot.json1."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from nova.conflict.detect import MISSING
from nova.conflict.ot.json1.steps import (
    BLACK_HOLE,
    COLLISION,
    DEPTH_MAX,
    REMOVED_UNDER,
    ConflictError,
    Key,
    Op,
    Step,
    check,
    key_order,
    normal_edit,
    parse,
    puts_below,
    subtype_named,
    takes_below,
    write_as_is,
)
from nova.conflict.ot.text import Side, is_left
from nova.errors import LimitError, UsageError

# ------------------------------------------------------------------------------------------------ the picture


class Thing:
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

    def __init__(self, parent: Thing | None, key: Key, owner: int | None = None, value: Any = MISSING) -> None:
        self.parent = parent
        self.key = key
        self.owner = owner
        self.value = value
        self.shared = False  # inserted by both sides alike
        self.kids: dict[Key, Thing] = {}
        self.takes: list[str] = ["", ""]  # "r" or "p", by side
        self.removed: list[Any] = [True, True]  # the values that removals carry
        self.places: list[Place | None] = [None, None]  # where a side puts it
        self.drops: list[list[Thing]] = [[], []]  # what a side puts into it, in ascending order of index
        self.edits: list[tuple[str, Any] | None] = [None, None]
        self.steps: list[tuple[Key, ...]] = [(), ()]  # the path by which a side takes it
        self.slots: list[int] = [0, 0]
        self.ranks: dict[str | int, list[int]] = {}  # of a list: what _taken and _gaps have counted


class Place:
    __slots__ = ("gap", "key", "parent", "path")

    def __init__(self, parent: Thing, key: Key, gap: int, path: tuple[Key, ...]) -> None:
        self.parent = parent
        self.key = key
        self.gap = gap  # in a list: how many items that stayed are before it
        self.path = path


class Picture:
    """What two operations make of one document; side 0 is the left one."""

    def __init__(self, left: Step, right: Step) -> None:
        self.top = Thing(None, "")
        self.root = Thing(self.top, "")
        self.top.kids[""] = self.root
        self.things: list[Thing] = [self.root]
        # What a side puts (True) and edits (False), in the order of its operation, and the path it names for it.
        self.deeds: list[list[tuple[bool, Thing, tuple[Key, ...]]]] = [[], []]
        for side, step in enumerate((left, right)):
            above = Step()
            above.kids[""] = step
            slots: dict[int, Thing] = {}
            self._take(self.top, above, side, slots, ())
            self._put(self.top, above, side, slots, ())
        self.lost: set[Thing] = set()
        self.fates: dict[Thing, bool] = {}
        self.layouts: dict[Thing, tuple[dict[Thing, int], list[int]]] = {}
        self.united: dict[Thing, Thing] = {}
        self.collisions: list[tuple[Thing, Thing]] = []
        self._collide()
        if self.united:
            self.things = [thing for thing in self.things if thing not in self.united]
            self.deeds[1] = [(put, self.united.get(thing, thing), path) for put, thing, path in self.deeds[1]]

    def kid(self, thing: Thing, key: Key) -> Thing:
        found = thing.kids.get(key)
        if found is None:
            found = thing.kids[key] = Thing(thing, key)
            self.things.append(found)
        return found

    def _take(self, thing: Thing, step: Step, side: int, slots: dict[int, Thing], path: tuple[Key, ...]) -> None:
        for key, kid in step.sorted():
            if not takes_below(kid):
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

    def _put(self, thing: Thing, step: Step, side: int, slots: dict[int, Thing], path: tuple[Key, ...]) -> None:
        put = 0
        for key, kid in step.sorted():
            if not puts_below(kid):
                continue
            here = (*path, key)
            if kid.puts:
                if kid.insert:
                    below = Thing(None, key, side, kid.value)
                    self.things.append(below)
                else:
                    below = slots[kid.drop]
                below.places[side] = Place(thing, key, key - put if isinstance(key, int) else 0, here)
                thing.drops[side].append(below)
                self.deeds[side].append((True, below, here))
                put += isinstance(key, int)
            elif isinstance(key, int):
                below = self.kid(thing, nth_left(thing, key - put, side))
            else:
                below = self.kid(thing, key)
                if below.takes[side]:  # the operation puts something under what it takes: into something unnamed
                    below = Thing(None, key, side)
                    below.places[side] = Place(thing, key, 0, here)
            if kid.edit is not None:
                below.edits[side] = kid.edit
                self.deeds[side].append((False, below, here))
            self._put(below, kid, side, slots, here)

    # ---- fates

    def remover(self, thing: Thing, side: int) -> Thing | None:
        """The thing by whose removal the side removes this one."""
        at: Thing | None = thing
        while at is not None:
            if at.takes[side]:
                return at if at.takes[side] == "r" else None
            at = at.parent
        return None

    def home(self, thing: Thing) -> tuple[Thing | None, int | None]:
        """Where a thing is in the picture, and which side has put it there."""
        for side in (0, 1):
            place = thing.places[side]
            if place is not None:
                return place.parent, side
        return thing.parent, None

    def gone(self, thing: Thing | None) -> bool:
        """Whether a thing is not in the picture."""
        trail: dict[Thing, None] = {}
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

    def _unite(self, left: Thing, right: Thing) -> None:
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

    def path_after(self, thing: Thing, side: int) -> list[Key]:
        """The path of a thing in the document after one side's operation."""
        path: list[Key] = []
        at: Thing | None = thing
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

    def key_after(self, thing: Thing, side: int) -> Key:
        """The key or index of a thing after one side's operation."""
        place = thing.places[side]
        if place is not None:
            return place.key
        parent, key = thing.parent, thing.key
        if parent is None or isinstance(key, str):
            return key
        rank = key - bisect_left(_taken(parent, side), key)
        return rank + puts_before(parent, rank, side)

    def path(self, thing: Thing) -> list[Key]:
        """The path of a thing in the picture."""
        path: list[Key] = []
        at: Thing | None = thing
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

    def _layout(self, parent: Thing) -> tuple[dict[Thing, int], list[int]]:
        """Of a list in the picture: the index of each thing put into it, and how many staying items are before each."""
        found = self.layouts.get(parent)
        if found is None:
            order = self._puts_into(parent)
            indices = {thing: gap + n for n, (gap, thing) in enumerate(order)}
            found = self.layouts[parent] = indices, [gap for gap, _ in order]
        return found

    def _puts_into(self, parent: Thing) -> list[tuple[int, Thing]]:
        """What is put into a list, in order: (how many items that stay are before it, thing).

        What a side has put between two items that it leaves may stand anywhere among those that it takes between them.
        Where the ranges of two sides do not meet, their order is known; else what the left side puts comes first.
        """
        queues: list[list[tuple[int, int, Thing]]] = [[], []]
        for side in (0, 1):
            for thing in parent.drops[side]:
                place = thing.places[side]
                if place is None or not isinstance(place.key, int):
                    continue
                if self.home(thing) == (parent, side) and not self.gone(thing):
                    low = nth_left(parent, place.gap - 1, side) + 1 if place.gap else 0
                    queues[side].append((low, nth_left(parent, place.gap, side), thing))
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
        return {"type": kind, "op1": write_as_is(parts[mine]), "op2": write_as_is(parts[1 - mine])}

    def _clash(self, side: int, *, puts_meet: bool = True) -> tuple[int, list[Step]] | None:
        """The first thing that a side puts or edits where the other removes, or puts where the other puts."""
        rivals = {pair[side]: pair for pair in self.collisions}
        for put, thing, path in self.deeds[side]:
            if thing.shared or (put and self.home(thing)[1] != side):
                continue
            parts = [Step(), Step()]
            if put and puts_meet and thing in rivals:
                for each in (0, 1):
                    self._report_put(parts[each], rivals[thing][each], each, 0)
                return COLLISION, parts
            remover = self._remover_above(thing, side, put)
            if remover is not None:
                if put:
                    self._report_put(parts[side], thing, side, 0)
                else:
                    step_at(parts[side], path[1:]).edit = thing.edits[side]
                step_at(parts[1 - side], remover.steps[1 - side][1:]).remove = True
                return REMOVED_UNDER, parts
        return None

    def _remover_above(self, thing: Thing, side: int, put: bool) -> Thing | None:
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

    def _report_put(self, part: Step, thing: Thing, side: int, slot: int) -> None:
        place = thing.places[side]
        if place is None:
            return
        step = step_at(part, place.path[1:])
        if thing.owner is None:
            step_at(part, thing.steps[side][1:]).pick = slot
            step.drop = slot
        else:
            step.insert, step.value = True, thing.value

    def _black_hole(self, mine: int) -> tuple[int, list[Step]] | None:
        """Every move of both sides that ends in the ring; slots of `mine` in the order in which a walk leaves them."""
        moves = [
            [t for put, t, _ in self.deeds[side] if put and t.owner is None and self._is_swallowed(t, side)]
            for side in (0, 1)
        ]
        if not moves[mine]:
            return None
        parts = [Step(), Step()]
        place = moves[mine][0].places[mine]
        order = self._left_by_walk(place.parent if place is not None else self.root)
        for side in (0, 1):
            wanted = set(moves[side])
            ordered = [t for t in order if t in wanted] if side == mine else sorted(wanted, key=lambda t: t.slots[side])
            ordered += [t for t in moves[side] if t not in ordered]
            for slot, thing in enumerate(ordered):
                self._report_put(parts[side], thing, side, slot)
        return BLACK_HOLE, parts

    def _is_swallowed(self, thing: Thing, side: int) -> bool:
        """Whether a thing goes where the side puts it, and that hangs on a ring."""
        return self.home(thing)[1] == side and self._hangs_on_ring(thing)

    def _hangs_on_ring(self, thing: Thing) -> bool:
        trail: set[Thing] = set()
        at: Thing | None = thing
        while at is not None and at is not self.top:
            if at in trail:
                return True
            if at in self.lost or self.remover(at, 0) or self.remover(at, 1):
                return False
            trail.add(at)
            at = self.home(at)[0]
        return False

    def _left_by_walk(self, start: Thing) -> list[Thing]:
        """Things in and below the ring, in the order in which a walk through it from `start` leaves them."""
        below: dict[Thing, list[tuple[Key, Thing]]] = {}
        for thing in self.things:
            parent, side = self.home(thing)
            place = thing.places[side] if side is not None else None
            if parent is not None:
                below.setdefault(parent, []).append((place.key if place is not None else thing.key, thing))
        order: list[Thing] = []
        seen = {start}
        walk = [(start, iter(sorted(below.get(start, ()), key=key_order)))]
        while walk:
            thing, rest = walk[-1]
            for _, each in rest:
                if each not in seen:
                    seen.add(each)
                    walk.append((each, iter(sorted(below.get(each, ()), key=key_order))))
                    break
                if each is start and each not in order:
                    order.append(each)
            else:
                walk.pop()
                if thing not in order:
                    order.append(thing)
        return order

    # ---- reading it off

    def read(self, side: int) -> Step:
        """The operation of one side, for the document after the other's."""
        other = 1 - side
        root = Step()
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
                    removal = step_at(root, self.path_after(thing, other))
                    removal.remove = True
                    removal.removed = thing.removed[side] if alone else True
                continue
            placed = self.home(thing)[1]
            if thing.owner == side and not thing.shared:
                step = step_at(root, self.path(thing))
                step.insert, step.value = True, thing.value
            elif placed == side and not thing.shared and not self._agreed(thing):
                step_at(root, self.path_after(thing, other)).pick = slots
                step_at(root, self.path(thing)).drop = slots
                slots += 1
            edit = thing.edits[side]
            if edit is not None:
                theirs = thing.edits[other]
                if theirs is not None:
                    if edit[0] != theirs[0]:
                        raise UsageError(
                            f"one value is edited as {edit[0]!r} and as {theirs[0]!r}; use one type for it"
                        )
                    edit = (edit[0], subtype_named(edit[0]).transform(edit[1], theirs[1], ("left", "right")[side]))
                step_at(root, self.path(thing)).edit = normal_edit(edit)
        return root

    def _has_nothing(self, side: int) -> bool:
        """Whether all that a side does is gone by conflicts: what the other removes then is as it knew it."""
        return all(
            not thing.takes[side]
            and (thing.places[side] is None or self.gone(thing))
            and (thing.edits[side] is None or (self.gone(thing) and _is_new(thing)))
            for thing in self.things
        )

    def _agreed(self, thing: Thing) -> bool:
        """Whether both sides move a thing to the same key of a dict."""
        one, two = thing.places
        return (
            one is not None
            and two is not None
            and one.parent is two.parent
            and one.key == two.key
            and isinstance(one.key, str)
        )

    def _removes(self, thing: Thing, side: int, other: int) -> bool:
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

    def _goes_along(self, thing: Thing, side: int, other: int) -> bool:
        """Whether a thing is, after the other side, in one that the other has put and that is gone by a conflict."""
        place = thing.places[other]
        at = place.parent if place is not None else thing.parent
        while at is not None and at is not self.top:
            if not self.gone(at):  # it stays, or is moved out of what goes: what is in it goes by itself
                return False
            place = at.places[other]
            if place is not None and self.remover(at, side) is None:
                return True
            at = place.parent if place is not None else at.parent
        return False


def _taken(thing: Thing, side: int) -> list[int]:
    """The indices that a side takes out of a list, ascending; side 2 is either."""
    found = thing.ranks.get(side)
    if found is None:
        found = thing.ranks[side] = sorted(
            key
            for key, kid in thing.kids.items()
            if isinstance(key, int) and (kid.takes[side] if side < 2 else kid.takes[0] or kid.takes[1])
        )
    return found


def nth_of(taken: list[int], n: int) -> int:
    """The index of the nth item of a list that is not taken."""
    return n + bisect_right(range(len(taken)), n, key=lambda count: taken[count] - count)


def nth_left(thing: Thing, n: int, side: int) -> int:
    """The index, in the list as it was, of the nth item that a side leaves in it."""
    return nth_of(_taken(thing, side), n)


def puts_before(parent: Thing, rank: int, side: int) -> int:
    """How many things a side puts into a list before the item that `rank` items which it leaves there are before."""
    gaps = parent.ranks.get(f"gaps {side}")
    if gaps is None:
        places = (each.places[side] for each in parent.drops[side])
        gaps = [place.gap for place in places if place is not None and isinstance(place.key, int)]
        parent.ranks[f"gaps {side}"] = gaps
    return bisect_right(gaps, rank)


def step_at(step: Step, path: Sequence[Key]) -> Step:
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


def _picture(op: Any, other: Any, side: Side) -> tuple[Picture, int]:
    mine, theirs = parse(op), parse(other)
    return (Picture(mine, theirs), 0) if is_left(side) else (Picture(theirs, mine), 1)


def transform_no_conflict(op: Any, other: Any, side: Side) -> Op:
    """`op` for the document that `other` has changed; conflicts are settled by the rules at the head of this module."""
    if other is None:
        check(op)
        return list(op) if op is not None else None
    picture, mine = _picture(op, other, side)
    step = picture.read(mine)
    if picture.conflict(mine) is not None:
        _number_by_picks(step)
    return write_as_is(step)


def _number_by_picks(root: Step) -> None:
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
    return {"ok": True, "result": write_as_is(picture.read(mine))}


def transform(op: Any, other: Any, side: Side) -> Op:
    """As transform_no_conflict, but raises ConflictError where something would be lost."""
    outcome = try_transform(op, other, side)
    if not outcome["ok"]:
        raise ConflictError(outcome["conflict"])
    result: Op = outcome["result"]
    return result


def _is_new(thing: Thing) -> bool:
    """Whether a thing was inserted, alone or in the value of another one."""
    return thing.owner is not None or inserted_above(thing) is not None


def inserted_above(thing: Thing) -> Thing | None:
    """The inserted thing in whose value this one is."""
    at = thing.parent
    while at is not None:
        if at.owner is not None:
            return at
        at = at.parent
    return None
