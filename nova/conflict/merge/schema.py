"""How the parts of a value merge: declared on fields of a record, or by JSON pointer for plain maps.

    class Vm(msgspec.Struct):
        cpu: Annotated[int, Max]
        restarts: Annotated[int, Counter] = 0
        power_state: Annotated[str, Precedence("stopped", "paused", "running")] = "stopped"
        nics: Annotated[list[Nic], Keyed("id")] = []
        tags: Annotated[list[str], SetOf] = []

    {"/cpu": {"merge": "max"}, "/nics": {"type": "map_list", "key": "id"}, "/nics/*/mtu": {"merge": "min"}}

Undeclared maps merge by key, sets by element; all else is atomic, lists included: to merge them by position corrupts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Final, TypeAlias, get_args, get_origin, get_type_hints

import msgspec

from nova.conflict.merge.patches import tokens_of
from nova.conflict.merge.text import UNITS
from nova.conflict.words import show
from nova.errors import UsageError

# ------------------------------------------------------------------------------------------------ rules


class Counter(msgspec.Struct, frozen=True):
    """A number to which both sides' changes add up, equal ones too: 10, made 12 by each, becomes 14."""


Sum = Counter


class Max(msgspec.Struct, frozen=True):
    """Where both sides changed it, the greater. `monotone`: it never goes down, even if only one side lowered it."""

    monotone: bool = False


class Min(msgspec.Struct, frozen=True):
    """Where both sides changed it, the lesser. `monotone`: it never goes up."""

    monotone: bool = False


@dataclass(frozen=True, init=False)
class Precedence:
    """Where both sides changed it, the word that stands later: `Precedence("stopped", "paused", "running")`."""

    order: tuple[Any, ...]

    def __init__(self, *order: Any) -> None:
        object.__setattr__(self, "order", order)
        if len(order) < 2:
            raise UsageError(f"precedence has {len(order)} words; give at least 2, the weakest first")


@dataclass(frozen=True, init=False)
class Keyed:
    """A list of maps or records with an identity in these fields: items merge field by field, wherever they stand."""

    keys: tuple[str, ...]

    def __init__(self, *keys: str) -> None:
        object.__setattr__(self, "keys", keys)
        if not keys or not all(isinstance(key, str) for key in keys):
            raise UsageError(f"keys of a keyed list are {keys!r}; name the fields that identify an item")


class SetOf(msgspec.Struct, frozen=True):
    """A list whose order means nothing: what either side removed is gone, what either added is there."""


class Sequence(msgspec.Struct, frozen=True):
    """A list whose order means something: merged like the lines of a text."""


class Text(msgspec.Struct, frozen=True):
    """A text, merged by line or by character."""

    unit: str = "line"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UsageError(f"unit of a text is {self.unit!r}; it is one of {', '.join(UNITS)}")


class Atomic(msgspec.Struct, frozen=True):
    """Never merged part by part.

    exclusive  a field that only one side can have its way with, such as the target of a migration: different ones
               there are contention, and the merge must not be committed
    state      a field with the state of a machine, and `ended` its final states: two different ends exclude each other
    """

    exclusive: str = ""
    state: str = ""
    ended: tuple[str, ...] = ()


class Group(msgspec.Struct, frozen=True):
    """Fields of a record that belong together, such as ip and mac: all of them come from one side.

    On a field: `Annotated[str, Group("address")]`; fields that name the same group are one.
    """

    name: str


class Moves(msgspec.Struct, frozen=True):
    """Below this map, what vanishes in one place and appears in another has moved, and edits follow it."""


class Custom(msgspec.Struct, frozen=True):
    """`function(base, local, remote)` decides where both sides changed it. If it raises, the path is a conflict.

    It must be pure, and symmetric if replicas are to agree. What is absent is MISSING.
    """

    function: Callable[[Any, Any, Any], Any]


Rule: TypeAlias = Counter | Max | Min | Precedence | Keyed | SetOf | Sequence | Text | Atomic | Moves | Custom
_RULES: Final = (Counter, Max, Min, Precedence, Keyed, SetOf, Sequence, Text, Atomic, Moves, Custom)
_BARE: Final = frozenset((Counter, Max, Min, SetOf, Sequence, Text, Atomic, Moves))

# ------------------------------------------------------------------------------------------------ compiled


class Node:
    """What is declared at one place and below it.

    adds      a counter is here or below: equal changes of both sides are not yet agreement
    monotone  a monotone field is here or below: a side that changed nothing does not yet yield
    unordered a set written as a list is here or below: equal values may differ as lists
    """

    __slots__ = ("adds", "children", "every", "groups", "monotone", "rule", "unordered")

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule
        self.children: dict[str, Node] = {}
        self.every: Node | None = None
        self.groups: tuple[tuple[str, ...], ...] = ()
        self.adds = self.monotone = self.unordered = False

    @property
    def plain(self) -> bool:
        """Whether a map here merges by key, and all that is declared below it has a name."""
        return self.rule is None and self.every is None and not self.groups

    def child(self, key: str) -> Node:
        """What is declared for the member `key`, or for every member, or nothing."""
        return self.children.get(key) or self.every or NOTHING

    def below(self) -> Iterator[Node]:
        yield from self.children.values()
        if self.every is not None:
            yield self.every

    def settle(self) -> None:
        """Compute the three flags, here and below."""
        for node in self.below():
            node.settle()
            self._take(node)
        self._own()

    def _take(self, node: Node) -> None:
        self.adds |= node.adds
        self.monotone |= node.monotone
        self.unordered |= node.unordered

    def _own(self) -> None:
        self.adds |= isinstance(self.rule, Counter)
        self.monotone |= isinstance(self.rule, Max | Min) and self.rule.monotone
        self.unordered |= isinstance(self.rule, SetOf)


NOTHING: Final = Node()

Schema: TypeAlias = Mapping[str, Any] | type | Node


def compile_schema(schema: Schema) -> Node:
    """A schema read and checked once, to be passed to `merge` in its place: reading takes longer than merging."""
    return compiled(schema, None)


def compiled(schema: Schema | None, value: Any) -> Node:
    """The node of a schema; without one that of the value's type. Raises UsageError for a declaration that is none."""
    if schema is None:
        return of_type(type(value)) if hasattr(type(value), "__annotations__") else NOTHING
    if isinstance(schema, Node):
        return schema
    if isinstance(schema, type):
        node = of_type(schema)
        if node is NOTHING:
            raise UsageError(f"schema is {schema.__qualname__}; it is a dataclass, a Struct or a map of pointers")
        return node
    if isinstance(schema, Mapping):
        return _of_pointers(schema)
    raise UsageError(f"schema is {show(schema)}; it is a dataclass, a Struct or a map of pointers")


def _of_pointers(schema: Mapping[str, Any]) -> Node:
    root = Node()
    for pointer, declared in schema.items():
        node = root
        for token in tokens_of(pointer):
            if token == "*" or (token[:1] == "[" and token[-1:] == "]"):
                node.every = node = node.every or Node()
            else:
                node = node.children.setdefault(token, Node())
        _declare(node, pointer, declared)
    root.settle()
    return root


def _declare(node: Node, pointer: str, declared: Any) -> None:
    if isinstance(declared, type) and declared in _BARE:
        declared = declared()
    if isinstance(declared, _RULES):
        node.rule = declared
        return
    if not isinstance(declared, Mapping):
        raise UsageError(f"schema at {pointer!r} is {show(declared)}; it is a map with `type` or `merge`, or a rule")
    known = {"type", "merge", "key", "keys", "order", "monotone", "unit", "track_moves", "groups"}
    known |= {"exclusive", "state", "ended"}
    if unknown := sorted(set(declared) - known, key=str):
        raise UsageError(f"schema at {pointer!r} has {show(unknown[0])}; known are {', '.join(sorted(known))}")
    groups = declared.get("groups", ())
    node.groups = tuple(tuple(group) for group in groups)
    word = declared.get("type", declared.get("merge"))
    if word is None:
        if declared.get("track_moves"):
            node.rule = Moves()
        elif not groups:
            raise UsageError(f"schema at {pointer!r} is {show(declared)}; it needs `type` or `merge`")
        return
    try:
        make = _WORDS[word] if not callable(word) else None
    except (KeyError, TypeError):
        raise UsageError(f"schema at {pointer!r} says {show(word)}; known are {', '.join(sorted(_WORDS))}") from None
    node.rule = Custom(word) if make is None else make(declared)


def _keyed(declared: Mapping[str, Any]) -> Keyed:
    keys = declared.get("keys", declared.get("key", ()))
    return Keyed(keys) if isinstance(keys, str) else Keyed(*keys)


def _plain(declared: Mapping[str, Any]) -> None:
    return None


_WORDS: Final[dict[str, Callable[[Mapping[str, Any]], Rule | None]]] = {
    "atomic": lambda d: Atomic(d.get("exclusive", ""), d.get("state", ""), tuple(d.get("ended", ()))),
    "counter": lambda d: Counter(),
    "sum": lambda d: Counter(),
    "max": lambda d: Max(bool(d.get("monotone"))),
    "min": lambda d: Min(bool(d.get("monotone"))),
    "precedence": lambda d: Precedence(*d.get("order", ())),
    "map_list": _keyed,
    "keyed": _keyed,
    "set": lambda d: SetOf(),
    "sequence": lambda d: Sequence(),
    "text": lambda d: Text(d.get("unit", "line")),
    "map": _plain,
    "last": _plain,
}


# ------------------------------------------------------------------------------------------------ record types

_TYPES: Final[dict[type, Node]] = {}


def of_type(kind: type) -> Node:
    """What the fields of a dataclass or Struct declare; NOTHING for another type."""
    try:
        return _TYPES[kind]
    except KeyError:
        pass
    if not is_dataclass(kind) and not issubclass(kind, msgspec.Struct):
        return NOTHING
    node = _TYPES[kind] = Node()
    groups: dict[str, list[str]] = {}
    held: list[type] = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        field = Node()
        for note in _notes(hint):
            if isinstance(note, type) and note in _BARE:
                note = note()
            if isinstance(note, _RULES):
                field.rule = note
            elif isinstance(note, Group):
                groups.setdefault(note.name, []).append(name)
        held += _records(hint)
        field._own()
        node.children[name] = field
        node._take(field)
    node.groups = tuple(tuple(names) for names in groups.values())
    for inner in held:  # a type that holds itself finds its own node, whose own flags are set by now
        node._take(of_type(inner))
    for field in node.children.values():
        field._take(node)  # a flag too many costs time, one too few a change
    return node


def _notes(hint: Any) -> tuple[Any, ...]:
    return hint.__metadata__ if get_origin(hint) is Annotated else ()


def _records(hint: Any) -> Iterator[type]:
    """Record types anywhere in a type hint."""
    if isinstance(hint, type) and get_origin(hint) is None:
        if is_dataclass(hint) or issubclass(hint, msgspec.Struct):
            yield hint
        return
    for part in get_args(hint):
        yield from _records(part)
