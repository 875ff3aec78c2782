"""What the merge engine takes for equal, for a map, and for too much."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from typing import Any, Final

import msgspec

from nova.conflict.detect import MISSING, _exact, canonical
from nova.errors import LimitError, UsageError

DEPTH_MAX: Final = 200
"""Levels of containers in a value. Deeper ones are refused: nothing that a fleet holds nests like that."""

DIFFERENT: Final = 0
EQUAL: Final = 1
IDENTICAL: Final = 2

_ATOMS: Final = frozenset((str, bytes, bool, type(None), int))


def equal(a: Any, b: Any, depth: int = 0) -> int:
    """DIFFERENT; EQUAL in another form (1 and 1.0, -0.0 and 0.0, a list and a tuple); or IDENTICAL.

    True is no number, NaN equals NaN, null is not MISSING, text is compared code point by code point, maps and sets
    have no order. Raises LimitError below DEPTH_MAX levels, UsageError for a map with a key that is not text.
    """
    if a is b:
        return IDENTICAL
    kind, other = type(a), type(b)
    if kind is other and kind in _ATOMS:
        return IDENTICAL if a == b else DIFFERENT
    if depth > DEPTH_MAX:
        raise too_deep()
    if kind is dict and other is dict:
        return _equal_maps(a, b, depth + 1)
    if kind in _NUMBERS and other in _NUMBERS:
        return _equal_numbers(a, b)
    if isinstance(a, list | tuple):
        return _equal_lists(a, b, depth + 1) if isinstance(b, list | tuple) else DIFFERENT
    if isinstance(a, Mapping):
        return _equal_maps(a, b, depth + 1) if isinstance(b, Mapping) else DIFFERENT
    if isinstance(a, Set):
        if not isinstance(b, Set) or len(a) != len(b):
            return DIFFERENT
        if {canonical(item) for item in a} != {canonical(item) for item in b}:
            return DIFFERENT
        return IDENTICAL if kind is other and _exact(a) == _exact(b) else EQUAL
    if is_record(a):
        return _equal_maps(fields_of(a), fields_of(b), depth + 1) if kind is other else DIFFERENT
    if kind is other:
        return IDENTICAL if a == b else DIFFERENT
    if isinstance(a, str) and isinstance(b, str):  # a StrEnum and its text
        return EQUAL if str(a) == str(b) else DIFFERENT
    return DIFFERENT


_NUMBERS: Final = frozenset((int, float))


def _equal_numbers(a: Any, b: Any) -> int:
    if a != b:
        return IDENTICAL if a != a and b != b else DIFFERENT
    if type(a) is not type(b):
        return EQUAL
    return IDENTICAL if a or str(a) == str(b) else EQUAL


def _equal_maps(a: Mapping[Any, Any], b: Mapping[Any, Any], depth: int) -> int:
    if len(a) != len(b):
        return DIFFERENT
    found = IDENTICAL
    for key, value in a.items():
        if type(key) is not str:
            check_key(key)
        other = b.get(key, MISSING)
        if other is not value:
            how = equal(value, other, depth)
            if how == DIFFERENT:
                return DIFFERENT
            found = min(found, how)
    return found


def _equal_lists(a: Any, b: Any, depth: int) -> int:
    if len(a) != len(b):
        return DIFFERENT
    found = IDENTICAL if type(a) is type(b) else EQUAL
    for one, other in zip(a, b, strict=True):
        how = equal(one, other, depth)
        if how == DIFFERENT:
            return DIFFERENT
        found = min(found, how)
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal in any form."""
    return equal(a, b) != DIFFERENT


def prefer(a: Any, b: Any) -> Any:
    """One of two values that are EQUAL in different form: the same one whichever comes first."""
    one, other = _exact(a), _exact(b)
    if one == other:  # a list and a tuple, a StrEnum and its text
        one, other = repr(a).encode(), repr(b).encode()
    return a if one <= other else b


def too_deep() -> LimitError:
    return LimitError(f"value nests deeper than {DEPTH_MAX} levels; flatten it, or see whether it contains itself")


def check_key(key: Any) -> None:
    """Raises UsageError unless a map's key is text."""
    if not isinstance(key, str):
        raise UsageError(
            f"map key {key!r} is of type {type(key).__name__}; keys are text, so that pointers can name them"
        )


# ------------------------------------------------------------------------------------------------ records


def is_record(value: Any) -> bool:
    """Whether a value has declared fields: a Struct or a dataclass instance."""
    return isinstance(value, msgspec.Struct) or (is_dataclass(value) and not isinstance(value, type))


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a record, in the order of their declaration."""
    if isinstance(record, msgspec.Struct):
        return {name: getattr(record, name) for name in record.__struct_fields__}
    return {field.name: getattr(record, field.name) for field in fields(record)}


def rebuilt(record: Any, values: Mapping[str, Any]) -> Any:
    """A record of the same type with these fields. One that is not there takes the type's default.

    Neither `__init__` nor `__post_init__` runs: a merge must not be refused half-way by a check of its own input.
    """
    kind = type(record)
    before = fields_of(record)
    if isinstance(record, msgspec.Struct):
        return msgspec.structs.replace(record, **{name: values.get(name, before[name]) for name in before})
    made = object.__new__(kind)
    for name, value in before.items():
        object.__setattr__(made, name, values.get(name, value))
    return made


def kind_of(value: Any) -> str:
    """The JSON type of a value, or the nearest word for what JSON has not."""
    word = _KINDS.get(type(value))
    if word is not None:
        return word
    if isinstance(value, Mapping):
        return "map"
    if isinstance(value, list | tuple):
        return "list"
    if isinstance(value, Set):
        return "set"
    if isinstance(value, str):
        return "string"
    return type(value).__qualname__


_KINDS: Final = {
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    type(None): "null",
    dict: "map",
    list: "list",
    tuple: "list",
    set: "set",
    frozenset: "set",
    bytes: "bytes",
    type(MISSING): "missing",
}
