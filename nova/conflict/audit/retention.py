"""How much of the trail is kept, and how what is personal in it can be made unreadable for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from nova.conflict.audit.chain import encoded
from nova.errors import UsageError

ERASED: Final = {"$": "erased"}
"""What `reveal` puts where a key is gone."""

_DECODE: Final = msgspec.msgpack.Decoder().decode


class Retention(msgspec.Struct, frozen=True):
    """What is kept: events not older than `age_ms_max`, and at most `events_max`; None: no such limit.

    A chain can only be shortened at its beginning, so an event goes when all before it go.
    """

    age_ms_max: int | None = None
    events_max: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("age_ms_max", self.age_ms_max), ("events_max", self.events_max)):
            if value is not None and value < 0:
                raise UsageError(f"{name} is {value}; give at least 0, or None for no limit")


class Vault(Protocol):
    """Keeps one key for each subject, seals with it, and destroys it (`nova.storage.subjects` is one).

    What was sealed under a destroyed key cannot be opened by anybody, wherever copies of it are.
    """

    def seal(self, subject: str, data: bytes, context: bytes) -> tuple[str, bytes]:
        """Encrypt and authenticate `data` under the subject's key, which is made if there is none. (key id, sealed);
        the id says nothing about the subject."""

    def open(self, key_id: str, sealed: bytes, context: bytes) -> bytes | None:
        """What was sealed, None if the key was destroyed. Raises CorruptionError if something else was sealed."""

    def destroy(self, subject: str) -> str | None:
        """Destroy a subject's key, durably; its id, None if there is none."""


def seal_fields(body: Mapping[str, Any], personal: Mapping[str, str], vault: Vault, context: str) -> dict[str, Any]:
    """A copy of a body with the values at JSON pointers (pointer -> subject) sealed.

    raises  UsageError for a pointer that names nothing
    """
    out = _DECODE(encoded(body))
    for pointer, subject in sorted(personal.items()):
        holder, last = _find(out, pointer)
        key_id, sealed = vault.seal(subject, encoded(holder[last]), f"{context}\0{pointer}".encode())
        holder[last] = {"$": "sealed", "key": key_id, "bytes": sealed}
    return dict(out)


def reveal_fields(body: Mapping[str, Any], vault: Vault, context: str) -> dict[str, Any]:
    """A copy of a body with what was sealed in clear again, or ERASED where the key is gone."""

    def revealed(value: Any, at: str) -> Any:
        if isinstance(value, Mapping):
            if value.get("$") == "sealed" and isinstance(value.get("bytes"), bytes):
                data = vault.open(str(value.get("key")), value["bytes"], f"{context}\0{at}".encode())
                return dict(ERASED) if data is None else _DECODE(data)
            return {name: revealed(item, f"{at}/{_escaped(name)}") for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [revealed(item, f"{at}/{index}") for index, item in enumerate(value)]
        return value

    return dict(revealed(body, ""))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _find(body: Any, pointer: str) -> tuple[Any, Any]:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    holder: Any = None
    here: Any = body
    last: str | int | None = None
    for part in parts:
        holder = here
        if isinstance(here, dict) and part in here:
            last, here = part, here[part]
        elif isinstance(here, list) and part in map(str, range(len(here))):
            last, here = int(part), here[int(part)]
        else:
            holder = None
            break
    if holder is None or not pointer.startswith("/"):
        raise UsageError(
            f"there is nothing at {pointer!r} of the event's body; give a JSON pointer to what is personal"
        )
    return holder, last
