"""A small key-value machine for simulated groups: lists that are appended to, and registers."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from nova.consensus.core import Command
from nova.errors import UsageError

_pack = msgspec.msgpack.Encoder(order="deterministic").encode
_unpack = msgspec.msgpack.Decoder().decode

_MASK = (1 << 128) - 1


def append(key: str, value: int) -> bytes:
    """Append to the list of a key; the answer is its length."""
    return _pack(("append", key, value))


def put(key: str, value: Any) -> bytes:
    """Replace a register; the answer is what was there."""
    return _pack(("put", key, value))


def cas(key: str, old: Any, new: Any) -> bytes:
    """Replace a register if it holds `old`; the answer is whether it did."""
    return _pack(("cas", key, old, new))


def get(key: str) -> bytes:
    """What a key holds; also a query for `read`."""
    return _pack(("get", key))


def answer(data: bytes) -> Any:
    """An answer as a plain value."""
    return _unpack(data)


class KeyValue:
    """The machine. `digest` is kept up to date with each command: a sum over the entries, cheap and without order."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._digest = 0

    @property
    def digest(self) -> int:
        """Equal for equal states."""
        return self._digest

    def apply(self, commands: Sequence[Command]) -> list[bytes]:
        return [_pack(self._one(*_unpack(command.data))) for command in commands]

    def _one(self, what: str, key: str, *arguments: Any) -> Any:
        value = self.values.get(key)
        if what == "get":
            return value
        if what == "append":
            self._replace(key, value, [*(value or ()), arguments[0]])
            return len(value or ()) + 1
        if what == "cas":
            if value != arguments[0]:
                return False
            self._replace(key, value, arguments[1])
            return True
        self._replace(key, value, arguments[0])
        return value

    def _replace(self, key: str, old: Any, new: Any) -> None:
        self.values[key] = new
        self._digest = (self._digest - _hash(key, old) + _hash(key, new)) & _MASK

    def read(self, query: bytes) -> bytes:
        return _pack(self.values.get(_unpack(query)[1]))

    def snapshot(self) -> bytes:
        return _pack(self.values)

    def restore(self, data: bytes) -> None:
        self.values = _unpack(data)
        self._digest = sum(_hash(key, value) for key, value in self.values.items()) & _MASK


class Bags(KeyValue):
    """A machine for members that apply concurrent commands in different orders: each key has a sorted bag of values.

    Its answers do depend on the order, as those of a convergent machine may.
    """

    def _one(self, what: str, key: str, *arguments: Any) -> Any:
        value = self.values.get(key)
        if what == "get":
            return value
        if what != "append":
            raise UsageError(f"{what} does not commute; convergent machines here know append and get")
        self._replace(key, value, sorted([*(value or ()), arguments[0]]))
        return len(value or ()) + 1


def _hash(key: str, value: Any) -> int:
    if value is None:
        return 0
    return int.from_bytes(blake2b(_pack((key, value)), digest_size=16).digest(), "big")
