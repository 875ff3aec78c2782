"""What the merge engine takes for equal, for a map, and for too much."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Final

import msgspec

from nova._native.merge import (
    DEPTH_MAX,
    DIFFERENT,
    EQUAL,
    IDENTICAL,
    check_key,
    equal,
    fields_of,
    is_record,
    too_deep,
)
from nova.conflict.detect import MISSING, exact

__all__ = [
    "DEPTH_MAX",
    "DIFFERENT",
    "EQUAL",
    "IDENTICAL",
    "check_key",
    "equal",
    "fields_of",
    "is_record",
    "kind_of",
    "prefer",
    "rebuilt",
    "same",
    "too_deep",
]


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal in any form."""
    return equal(a, b) != DIFFERENT


def prefer(a: Any, b: Any) -> Any:
    """One of two values that are EQUAL in different form: the same one whichever comes first."""
    one, other = exact(a), exact(b)
    if one == other:  # a list and a tuple, a StrEnum and its text
        one, other = repr(a).encode(), repr(b).encode()
    return a if one <= other else b


# ------------------------------------------------------------------------------------------------ records


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
